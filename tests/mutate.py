#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutation testing of moe_ep.h: changes one place at a time and asks whether the tests notice.

usage: mutate.py [--section N] [--count N] [--seed N] [--jobs N] [--least PERCENT] [--own]

--own asks the programs of the section alone: quicker, stricter, for writing their tests.

A mutant is one changed operator, constant or condition, or one removed statement, in the lines of the
implementation that a portable build compiles (-DMOE_EP_NO_SIMD; the kernels of other instruction sets are
compared with these by test_route and test_forward).  tcc compiles a mutant in a tenth of a second, so that
hundreds fit into minutes; without tcc it is gcc -O0, which is also taken for the programs that tcc's calling
convention does not suit (structs by value).  A mutant is shown to the tests that enter its function, which a header
that notes what is entered tells beforehand; the others compute what they always do.  The quick tests of the section
run first, each program ends at its first failing check (--stop), then the quick ones of the four quickest other
programs, the section's slow ones, and the quick ones of the rest.  What none of them sees is judged once more, by
the section's programs and test_oom under gcc's address and undefined behaviour sanitizers and clang's memory
sanitizer with the kernels of this machine, as `make check` runs them.  Killed = a check fails, a crash, or no end.
Tests that fail or are too slow without any change take no part.  Mutants that do not compile
are replaced by others, and so are survivors that gcc -O2 or gcc -O1 makes the same machine code of as of the
header itself: nothing was changed (trivial compiler equivalence, Papadakis and others, ICSE 2015).  Survivors are
printed with their line; tests/mutants.txt explains those that no test can see.
"""
import argparse
import array
import collections
import concurrent.futures
import glob
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

SECTIONS = {0: ["basics"], 1: ["route"], 2: ["loads"], 3: ["balance"], 4: ["capacity"], 5: ["place", "place_plain"],
            6: ["split"], 7: ["dispatch"], 8: ["cost", "cost_errors", "fit"], 9: ["forward"], 10: ["hooks"],
            11: ["diagnose"], 12: ["sim", "sweep"]}
NAMES = {n: programs[0] for n, programs in SECTIONS.items()}
NOT_HERE = ["threads", "loads_portable", "forward_amx", "place_lp"]  # other kernels, GLPK, the same tests
BY_GCC = ["forward"]  # not for tcc's calling convention, as far as known; baselines find others
QUICK, SLOW = 2.0, 90.0  # seconds of one test without any change: beyond QUICK it runs later, beyond SLOW not at all
WHOLE = 3.0  # seconds it takes to compile a program with a copy of the header of its own

SWAPS = [(r"(?<![<>=!\-+])<=(?!=)", "<"), (r"(?<![<>=!\-+])<(?![<=])", "<="), (r"(?<![<>=!\-])>=(?!=)", ">"),
         (r"(?<![<>=!\-])>(?![>=])", ">="), (r"==", "!="), (r"!=", "=="), (r"&&", "||"), (r"\|\|", "&&"),
         (r"(?<=[\w)\]] )\+(?= [\w(])", "-"), (r"(?<=[\w)\]] )-(?= [\w(])", "+"),
         (r"(?<=[\w)\]] )\*(?= [\w(])", "+"), (r"(?<=[\w)\]] )/(?= [\w(])", "*"), (r"(?<=[\w)\]] )%(?= [\w(])", "/"),
         (r"\+=", "-="), (r"-=", "+="), (r"(?<![\w.])0(?![\w.])", "1"), (r"(?<![\w.])1(?![\w.])", "0"),
         (r"(?<![\w.])1(?![\w.])", "2"), (r"(?<![\w.])2(?![\w.])", "3"), (r"(?<![\w.])0\.5(?![\w])", "0.25"),
         (r"(?<![\w.])1\.0(?![\w])", "2.0"), (r"(?<![\w.])0\.0(?![\w])", "1.0"),
         (r"\bif \((?=[^;]*\) )", "if (!"), (r"\bbreak;", ";"), (r"\bcontinue;", ";")]
STATEMENT = re.compile(r"^(\s*)(?!return|if|for|while|else|do|case|default|break|continue|goto|static|const|struct|#)"
                       r"([A-Za-z_][\w\->.\[\] +*()&,]*(=|\+=|-=|\+\+|--|\().*;)\s*$")
DECLARATION = re.compile(r"^\s*(const |static |unsigned |u?int\d*_t|int|size_t|double|float|char|void|moe_ep\w*|"
                         r"moe_epi_\w+|struct|enum|FILE)\b[ *]+\w+[^(]*[;,=]")


FUNCTION = re.compile(r"^(?:static|MOE_EP_API)\b.*?(\w+)\(")


def compiled_lines(header):
    """Numbers of the header's lines that a portable build sees."""
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "i.c")
        with open(path, "w") as f:
            f.write('#define MOE_EP_IMPLEMENTATION\n#include "%s"\n' % os.path.abspath(header))
        text = subprocess.run(["gcc", "-E", "-DMOE_EP_NO_SIMD", "-DMOE_EP_NO_BLAS", path], check=True,
                              capture_output=True, text=True).stdout
    lines, here, inside = set(), 0, False
    for line in text.split("\n"):
        mark = re.match(r'# (\d+) "([^"]*)"', line)
        if mark:
            here, inside = int(mark.group(1)), mark.group(2).endswith("moe_ep.h")
            continue
        if inside and line.strip():
            lines.add(here)
        here += 1
    return lines


def section_ranges(text):
    """Section number of every line of the implementation, 0-based list; None elsewhere."""
    where, now, inside = [], None, False
    for i, line in enumerate(text):
        if "MOE_EP_IMPLEMENTATION_DONE" in line:
            inside = True
        if line.startswith("/* =====") and i + 1 < len(text):
            m = re.match(r" \* (\d+) [A-Z]", text[i + 1])
            if m and inside:
                now = int(m.group(1))
        where.append(now)
    return where


def function_of(text):
    """For every line of the header, 0-based: the line where the body of its function begins, None outside of one."""
    where, now = [], None
    for i, line in enumerate(text):
        if line == "{":
            now = i
        where.append(now)
        if line == "}":
            now = None
    return where


NOTE = """
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static void moe_epi_note(int at)
{
    static unsigned char noted[100000];
    static int to = -2;
    const char *name;
    if (noted[at]) return;
    noted[at] = 1;
    name = to == -2 ? getenv("MOE_EP_ENTERED") : NULL;
    if (to == -2) to = name ? open(name, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (to >= 0 && write(to, &at, sizeof at) < 0) abort();
}
"""


def noting(text):
    """The header with functions of the implementation that write the line of their body to the file MOE_EP_ENTERED."""
    inside, made = False, []
    for i, line in enumerate(text):
        if "define MOE_EP_IMPLEMENTATION_DONE" in line:
            inside, line = True, line + NOTE
        made.append("{ moe_epi_note(%d);" % i if inside and line == "{" else line)
    return made


def places(text, lines, where):
    """All (section, line, column, old, new) that could be changed."""
    found, comment = [], False
    for i, line in enumerate(text):
        code = line
        starts, ends = code.rfind("/*"), code.rfind("*/")
        was, comment = comment, (comment and ends < 0) or starts > ends
        if was or where[i] is None or i + 1 not in lines:
            continue
        if code.lstrip().startswith(("#", "*", "/*")) or "MOE_EP_ASSERT" in code or "MOE_EP_API" in code:
            continue
        if "prefetch" in code or "_fetch(" in code: # where a cache line is asked for changes the time alone
            continue
        code = re.sub(r'"(\\.|[^"\\])*"', lambda m: '"' * len(m.group(0)), code)
        code = re.sub(r"/\*.*?\*/|/\*.*$", lambda m: " " * len(m.group(0)), code)
        if re.match(r"^(static|struct|typedef|enum|extern)\b", code) or "moe_epi_fail(" in code:
            # what a message says about index and value is checked where it matters
            code = re.sub(r"moe_epi_fail\(.*", lambda m: " " * len(m.group(0)), code)
            if re.match(r"^(static|struct|typedef|enum|extern)\b", code):
                continue
        for pattern, new in SWAPS:
            for m in re.finditer(pattern, code):
                if new in ("2", "3") and DECLARATION.match(code) and re.match(r"\]+[,;\[]", code[m.end():]):
                    continue # an array with room for one more
                found.append((where[i], i, m.start(), m.group(0), new))
        m = STATEMENT.match(code)
        if m and not DECLARATION.match(code) and code.count("(") == code.count(")"):
            found.append((where[i], i, m.start(2), line[m.start(2):], ";"))
    return found


def change(text, place):
    _, i, column, old, new = place
    line = text[i]
    if new == "if (!":  # the whole condition
        depth, at = 0, line.index("(", column)
        for k in range(at, len(line)):
            depth += (line[k] == "(") - (line[k] == ")")
            if depth == 0:
                return text[:i] + [line[:at] + "(!" + line[at:k + 1] + ")" + line[k + 1:]] + text[i + 1:]
        return None
    return text[:i] + [line[:column] + new + line[column + len(old):]] + text[i + 1:]


class Bench:
    """Compiles mutants and runs test programs on them."""

    def __init__(self, work, jobs, own):
        self.work, self.lock, self.known = work, threading.Lock(), explained()
        self.slow_lock = threading.Lock()
        self.tcc = shutil.which("tcc")
        self.lib = []
        if self.tcc:
            for root, _, files in os.walk("/usr/lib"):
                if "libtcc1.a" in files:
                    self.lib = [os.path.join(root, "libtcc1.a")]
                    break
        self.objects, self.quick, self.slow, self.sane = {}, {}, {}, {}
        self.by_gcc = set(BY_GCC if self.tcc else [])
        self.entered, self.function = {}, []  # (program, test): the functions it enters; of each line of the header
        self.pending = {}  # tests beyond QUICK of each program, whose time nobody has asked for yet
        self.original, self.times = [], None
        self.others = collections.Counter()  # mutants that others took the place of, by reason
        for path in sorted(glob.glob("tests/test_*.c")):
            name = os.path.basename(path)[5:-2]
            if name in NOT_HERE or (own and name not in own):
                continue
            # a program with a copy of the header of its own is compiled with each mutant
            whole = re.search(r"define MOE_EP_(STATIC|IMPLEMENTATION)", open(path).read())
            self.objects[name] = None if whole else os.path.join(work, "test_%s.o" % name)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self.compile_test, [n for n, o in self.objects.items() if o]))

    def compile_test(self, name):
        subprocess.run(["gcc", "-std=gnu99", "-O1", "-w", "-DKERNEL_CASES=200", "-I.", "-Itests", "-c",
                        "tests/test_%s.c" % name, "-o", self.objects[name]])

    def compile(self, text, d, gcc=False):
        """Makes i.o (or gcc.o) in the folder d."""
        tcc = None if gcc else self.tcc
        with open(os.path.join(d, "moe_ep.h"), "w") as f:
            f.write("\n".join(text))
        with open(os.path.join(d, "i.c"), "w") as f:
            f.write('#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n')
        command = [tcc or "gcc", "-w", "-DMOE_EP_NO_SIMD", "-DMOE_EP_NO_BLAS", "-I" + d, "-c", d + "/i.c",
                   "-o", d + ("/gcc.o" if gcc else "/i.o")] + ([] if tcc else ["-std=gnu99", "-O0"])
        return subprocess.run(command, capture_output=True).returncode == 0

    def compile_both(self, text, gcc=False):
        """The header as it is and the one that notes what is entered, which baselines run."""
        return (self.compile(noting(text), os.path.join(self.work, "noting"), gcc) and
                self.compile(text, os.path.join(self.work, "base"), gcc))

    def link(self, name, d):
        program = os.path.join(d, name)
        if self.objects[name]:
            implementation = d + ("/gcc.o" if name in self.by_gcc else "/i.o")
            build = ["-no-pie", "-z", "execstack", self.objects[name], implementation] + self.lib
        else:
            build = ["-std=gnu99", "-O0", "-DMOE_EP_NO_SIMD", "-I" + d, "-I.", "-Itests", "tests/test_%s.c" % name]
        build = subprocess.run(["gcc", "-w"] + build + ["-o", program, "-lm", "-pthread"], capture_output=True)
        return program if build.returncode == 0 else None

    def run(self, program, arguments, limit, processor="unlimited", entered=None):
        # 8 GB of address space: a loop that allocates ends; so does one that only turns, after seconds of the processor
        return subprocess.run(["sh", "-c", 'ulimit -v 8000000; ulimit -t "$1"; shift; exec "$@"', "sh",
                               str(processor), program] + arguments, capture_output=True, timeout=limit,
                              env=dict(os.environ, MOE_EP_ENTERED=entered) if entered else None)

    def passes(self, name, test, limit):
        """Seconds of one test without any change and its exit status, None when it takes longer than the limit."""
        entered = os.path.join(self.work, "noting", name + ".entered")
        for d in "noting", "base":  # a test that sees the difference, of the stack for example, is shown every mutant
            start = time.time()
            try:
                code = self.run(os.path.join(self.work, d, name), ["--only", test], limit,
                                entered=entered if d == "noting" else None).returncode
            except subprocess.TimeoutExpired:
                code = None
            took = time.time() - start
            if d == "noting" and os.path.exists(entered):
                with open(entered, "rb") as f:
                    noted = array.array("i", f.read())
                os.unlink(entered)
                if code == 0:
                    self.entered[name, test] = set(noted)
            if not code:  # it passed, or takes too long either way
                break
        return took, code

    def that_enter(self, name, tests, line):
        """Those of a program's tests that may run this line of the header."""
        at = self.function[line]
        return [(took, test) for took, test in tests or [] if at is None or at in self.entered.get((name, test), [at])]

    def baseline(self, name, d, text):
        """Times the quick tests of a program without any change; says which take no part."""
        with self.lock:
            if name in self.by_gcc and not os.path.exists(d + "/gcc.o"):
                self.compile_both(text, True)
        program = self.link(name, d)
        if not program or not self.link(name, os.path.join(self.work, "noting")):
            self.quick[name] = self.pending[name] = []
            return "it does not build"
        listed = subprocess.run([program, "--list"], capture_output=True, text=True).stdout.split()
        quick, pending, failing = [], [], []
        for test in listed:
            took, code = self.passes(name, test, 2 * QUICK)
            if code and self.tcc and self.objects[name] and name not in self.by_gcc:
                self.by_gcc.add(name)
                return self.baseline(name, d, text)
            if code:
                failing.append(test)
            elif code is None or took >= QUICK:
                pending.append(test)
            else:
                quick.append((took, test))
        self.quick[name], self.pending[name] = sorted(quick), pending
        return "without " + " ".join(failing) if failing else ""

    def slow_tests(self, name):
        """(seconds, name) of the slow tests of a program that pass without any change."""
        with self.slow_lock:
            if name not in self.slow:
                timed = [(self.passes(name, test, SLOW), test) for test in self.pending[name]]
                self.slow[name] = sorted((took, test) for (took, code), test in timed if code == 0)
                for (took, code), test in timed:
                    if code:
                        print("  (test_%s, with nothing changed: without %s)" % (name, test))
            return self.slow[name]

    def notices(self, name, d, changed, tests):
        """Do the tests of a list of (seconds, name) of a program fail on this mutant?  None: it does not compile."""
        if not tests:
            return False
        gcc = name in self.by_gcc
        if not os.path.exists(d + ("/gcc.o" if gcc else "/i.o")):
            self.compile(changed, d, gcc)
        program = self.link(name, d)
        if not program:
            return None
        try:
            alone = sum(t for t, _ in tests)
            return self.run(program, ["--stop", "--only", ",".join(n for _, n in tests)], alone * 6 + 20,
                            int(alone * 4) + 5).returncode != 0
        except subprocess.TimeoutExpired:
            return True
        finally:
            os.unlink(program)

    SANITIZERS = [[compiler, "-w", "-std=gnu99", "-O1", "-DMOE_EP_DEBUG", "-fsanitize=" + kind,
                   "-fno-sanitize-recover=all"]
                  for compiler, kind in (("gcc", "address,undefined"), ("clang", "memory")) if shutil.which(compiler)]

    def strict_programs(self, section):
        return SECTIONS[section] + ["oom"] + (["forward_amx"] if section == 9 else [])

    def strict(self, name, d, build, line=None):
        """Runs the quick tests of a program, which enter a line, under a sanitizer on d/moe_ep.h; its exit status, or
        None."""
        path, program = "tests/test_%s.c" % name, os.path.join(d, name + ".san")
        own = re.search(r"define MOE_EP_(STATIC|IMPLEMENTATION)", open(path).read())
        flags = ["-DMOE_EP_NO_BLAS", "-DKERNEL_CASES=200", "-I" + d, "-I.", "-Itests"]
        implementation = os.path.join(d, build[0] + ".san.o")
        compiled = os.path.join(self.work, name + "." + build[0] + ".o")  # the same for every mutant
        mine = "%s.%d" % (compiled, threading.get_ident())  # another one may be compiling it, too
        steps = [build + flags + [path, "-o", program, "-lm", "-pthread"]] if own else [
            None if os.path.exists(implementation) else build + flags + ["-c", d + "/i.c", "-o", implementation],
            None if os.path.exists(compiled) else build + flags + ["-c", path, "-o", mine],
            build + [compiled, implementation, "-o", program, "-lm", "-pthread"]]
        for step in steps:
            if step and subprocess.run(step, capture_output=True).returncode != 0:
                return None
            if step and step[-1] == mine:
                os.replace(mine, compiled)
        tests = self.quick.get(name) or []
        if line is not None:
            tests = self.that_enter(name, tests, line)
        try: # memory is not limited here: the sanitizer's own map is 20 TB
            slow = dict(os.environ, MOE_EP_SLOW="1" if build[0] == "gcc" else "2") # as check.sh has it
            return subprocess.run([program, "--stop"] + (["--only", ",".join(n for _, n in tests)] if tests else []),
                                  capture_output=True, timeout=300, env=slow).returncode
        except subprocess.TimeoutExpired:
            return 124
        finally:
            os.unlink(program)

    def strict_notices(self, section, text, changed, line):
        with tempfile.TemporaryDirectory(dir=self.work) as d:
            for build, name in [(b, n) for b in self.SANITIZERS for n in self.strict_programs(section)
                                if b[0] == "gcc" or n != "oom"]:
                if self.quick.get(name) and not self.that_enter(name, self.quick[name], line):
                    continue
                if not os.path.exists(d + "/i.c"):
                    self.compile(changed, d)
                if self.strict(name, d, build, line) in (0, None):
                    continue
                with self.lock:
                    if (build[0], name) not in self.sane: # does the program pass on the header as it is?
                        base = os.path.join(self.work, "base")
                        self.compile(text, base)
                        self.sane[build[0], name] = self.strict(name, base, build) == 0
                if self.sane[build[0], name]:
                    return name + ", sanitizers"
        return ""

    def machine_code(self, d, level):
        """What gcc makes of d/i.c: all sections of the object that hold code or constants."""
        made = subprocess.run(["gcc", "-w", "-std=gnu99", level, "-DMOE_EP_NO_SIMD", "-DMOE_EP_NO_BLAS", "-c", "i.c",
                               "-o", "same.o"], capture_output=True, cwd=d)
        if made.returncode != 0:
            return None
        with open(d + "/same.o", "rb") as f:
            return f.read()

    def same_code(self, text, changed):
        """Is the mutant the same program?  The objects carry no line numbers and no path."""
        with self.lock:
            if not self.original:
                base = os.path.join(self.work, "base")
                self.compile(text, base)
                self.original = [self.machine_code(base, level) for level in ("-O1", "-O2")]
        with tempfile.TemporaryDirectory(dir=self.work) as d:
            self.compile(changed, d)
            return any(was and was == self.machine_code(d, level) for was, level in zip(self.original, ("-O1", "-O2")))

    def is_explained(self, text, i, after):
        """A row that does not name the function speaks of a line that stands only once."""
        line = text[i].strip()
        if not self.times:
            self.times = collections.Counter(l.strip() for l in text)
        if self.times[line] == 1:
            return (line, after) in self.known
        functions = (FUNCTION.match(text[k]) for k in range(i, -1, -1))
        return ("%s: %s" % (next(m.group(1) for m in functions if m), line), after) in self.known

    def replaced(self, why):
        with self.lock:
            self.others[why] += 1

    def judge(self, text, place):
        """None = is replaced by another, else the name of the program that noticed, or ''."""
        changed = change(text, place)
        if changed is None:
            return None
        if self.is_explained(text, place[1], changed[place[1]].strip()):
            return self.replaced("explained")
        with tempfile.TemporaryDirectory(dir=self.work) as d:
            first = [n for n in SECTIONS[place[0]] if n in self.objects]
            if not self.compile(changed, d, bool(first) and first[0] in self.by_gcc):
                return self.replaced("not compiled")
            quick = {n: self.that_enter(n, self.quick[n], place[1]) for n in self.objects}
            others = sorted((n for n in self.objects if n not in first and quick[n]),
                            key=lambda n: sum(t for t, _ in quick[n]) + (0 if self.objects[n] else WHOLE))
            for name, tests in ([(n, quick.get) for n in first + others[:4]] +
                                [(n, lambda n: self.that_enter(n, self.slow_tests(n), place[1])) for n in first] +
                                [(n, quick.get) for n in others[4:]]):
                noticed = self.notices(name, d, changed, tests(name))
                if noticed is None:
                    return self.replaced("not compiled")
                if noticed:
                    return name
        if self.same_code(text, changed):
            return self.replaced("the same program")
        return self.strict_notices(place[0], text, changed, place[1])


def explained():
    """Lines of tests/mutants.txt: code of the line, a tab, what it becomes, a tab, why nothing can notice."""
    known = set()
    if os.path.exists("tests/mutants.txt"):
        for line in open("tests/mutants.txt"):
            parts = line.rstrip("\n").split("\t")
            if len(parts) == 3 and not line.startswith("#"):
                known.add((parts[0], parts[1]))
    return known


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--section", type=int)
    ap.add_argument("--count", type=int, default=20, help="mutants per section")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--jobs", type=int, default=int(os.environ.get("JOBS", "2")))
    ap.add_argument("--least", type=float, default=95.0)
    ap.add_argument("--own", action="store_true", help="with --section: its own programs alone")
    o = ap.parse_args()
    text = open("moe_ep.h").read().split("\n")
    where = section_ranges(text)
    everywhere = places(text, compiled_lines("moe_ep.h"), where)
    killed = survived = 0
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(work, o.jobs, SECTIONS[o.section] if o.own and o.section is not None else None)
        bench.function = function_of(text)
        base = os.path.join(work, "base")
        os.mkdir(base)
        os.mkdir(os.path.join(work, "noting"))
        if not bench.compile_both(text):
            sys.exit("the unchanged header does not compile")
        with concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
            for name, said in zip(bench.objects, pool.map(lambda n: bench.baseline(n, base, text), bench.objects)):
                if said:
                    print("  (test_%s, with nothing changed: %s)" % (name, said))
        for section, name in NAMES.items():
            if o.section is not None and section != o.section:
                continue
            mine = [p for p in everywhere if p[0] == section]
            random.Random(o.seed * 100 + section).shuffle(mine)
            results, hits = [], 0
            with concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
                waiting = iter(mine)
                while len(results) < o.count:
                    batch = [p for _, p in zip(range(min(4 * o.jobs, o.count - len(results))), waiting)]
                    if not batch:
                        break
                    for p, verdict in zip(batch, pool.map(lambda p: bench.judge(text, p), batch)):
                        if verdict is None:
                            continue
                        after = change(text, p)[p[1]].strip()
                        results.append((p, verdict))
                        if verdict == "":
                            print("  survived  section %d, line %d: %s" % (section, p[1] + 1, text[p[1]].strip()))
                            print("            becomes: %s" % after)
                        sys.stdout.flush()
            hits = sum(1 for _, v in results if v)
            killed += hits
            survived += len(results) - hits
            print("mutants of section %d (%s): %d of %d killed, %d places in all" %
                  (section, name, hits, len(results), len(mine)))
            sys.stdout.flush()
    total = killed + survived
    share = 100.0 * killed / total if total else 0.0
    print("mutants: %d of %d killed, %.1f %%" % (killed, total, share))
    others = ["%d %s" % (n, why) for why, n in sorted(bench.others.items())]
    print("replaced by others: %s" % (", ".join(others) or "none"))
    ok = total > 0 and share >= o.least
    print("%d passed, %d failed" % (killed if ok else 0, 0 if ok else survived or 1))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
