#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Adds up gcov's JSON of all objects and prints a table of lines and branches per section of moe_ep.h.

usage: coverage.py GCOV_JSON [--lines SECTION]
"""
import json
import os
import re
import sys


def sections(text):
    where, now, inside = [None], None, False
    for i, line in enumerate(text):
        inside = inside or "MOE_EP_IMPLEMENTATION_DONE" in line
        if line.startswith("/* =====") and i + 1 < len(text) and inside:
            m = re.match(r" \* (\d+) ([A-Z]+)", text[i + 1])
            if m:
                now = (int(m.group(1)), m.group(2).lower())
        where.append(now)
    return where


def excused(text):
    """Numbers of the lines that tests/coverage.txt names; each name must fit one line of the header and no other."""
    places, known = {}, set()
    for n, code in enumerate(text, 1):
        for name in (code.strip(), (text[n - 2].strip() if n > 1 else "") + " // " + code.strip()):
            places.setdefault(name, []).append(n)
    if os.path.exists("tests/coverage.txt"):
        for line in open("tests/coverage.txt"):
            name, tab, reason = line.rstrip("\n").partition("\t")
            if line.startswith("#"):
                continue
            if not reason or len(places.get(name, [])) != 1:
                sys.exit("tests/coverage.txt: %d lines of moe_ep.h are '%s'%s, one with a reason is wanted" %
                         (len(places.get(name, [])), name, "" if reason else " (no reason)"))
            known.add(places[name][0])
    return known


def main():
    text = open("moe_ep.h").read().split("\n")
    where, known = sections(text), excused(text)
    lines, branches = {}, {}
    for document in open(sys.argv[1]):
        if not document.startswith("{"):
            continue
        for f in json.loads(document)["files"]:
            if not f["file"].endswith("moe_ep.h"):
                continue
            # a line of a static copy can appear once per function instance; branches are matched by position
            for entry in f["lines"]:
                n = entry["line_number"]
                lines[n] = lines.get(n, 0) + entry["count"]
                taken = [b["count"] for b in entry["branches"] if not b["throw"]]
                old = branches.get(n, [])
                if len(old) == len(taken):
                    branches[n] = [a + b for a, b in zip(old, taken)]
                elif len(taken) > len(old):
                    branches[n] = taken
    rows, lacking = {}, []
    for n, count in lines.items():
        if where[n] is None:
            continue
        code = text[n - 1].strip()
        r = rows.setdefault(where[n], [0, 0, 0, 0, 0])
        if "MOE_EP_ASSERT" in code:
            continue
        full = count > 0 and all(b > 0 for b in branches.get(n, []))
        if not full and (n in known or (code == "}" and n - 1 in known)):
            r[4] += 1
            continue
        r[0] += 1
        r[1] += count > 0
        r[2] += len(branches.get(n, []))
        r[3] += sum(b > 0 for b in branches.get(n, []))
        if not full:
            lacking.append((n, where[n][0], count, branches.get(n, []), code))
    print("section             lines  reached      %  branches  taken      %  excused")
    total = [0, 0, 0, 0, 0]
    for key in sorted(rows):
        r = rows[key]
        total = [a + b for a, b in zip(total, r)]
        print("%2d %-14s %8d %8d %6.2f %9d %6d %6.2f %8d" %
              (key[0], key[1], r[0], r[1], 100.0 * r[1] / max(1, r[0]), r[2], r[3], 100.0 * r[3] / max(1, r[2]), r[4]))
    print("all %d %d %.2f %d %d %.2f %d" % (total[0], total[1], 100.0 * total[1] / max(1, total[0]), total[2], total[3],
                                           100.0 * total[3] / max(1, total[2]), total[4]))
    if len(sys.argv) > 3:
        for n, section, count, taken, code in sorted(lacking):
            if section == int(sys.argv[3]):
                print("  %d: %s%s" % (n, "never reached" if not count else
                                      "%d of %d branches" % (sum(b > 0 for b in taken), len(taken)), "   " + code))


main()
