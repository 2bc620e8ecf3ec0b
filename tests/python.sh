#!/bin/sh
# tests/python.sh - examples/python: its structures against the header, its answers against eplb.py's, its documents.
# SPDX-License-Identifier: MIT
# usage: python.sh [--update]      --update: rewrite the structures in moe_ep.py and the output in its README
. tests/lib.sh
PYTHON=${PYTHON:-}
for candidate in $PYTHON python3 /usr/bin/python3; do
    if "$candidate" -c 'import numpy' >/dev/null 2>&1; then
        PYTHON=$candidate
        break
    fi
    PYTHON=
done
if [ -z "$PYTHON" ]; then
    skip "Python" "no python3 with numpy (package python3-numpy)"
    finish 1
    exit
fi
if [ ! -e build/libmoe_ep.so ]; then
    fail "build/libmoe_ep.so is there (make lib)"
    finish 1
    exit
fi
export PYTHONPATH="$PWD/examples/python" PYTHONDONTWRITEBYTECODE=1 MOE_EP_LIBRARY="$PWD/build/libmoe_ep.so"

if [ "${1:-}" = --update ]; then # after the header or what the examples print has changed
    "$PYTHON" tests/python_test.py --structs && "$PYTHON" tests/python_test.py --update
    exit
fi

# ---- every size, offset, value and signature, as Python has it and as the compiler has it ----
"$PYTHON" - >"$tmp/layout.python" <<'END'
import ctypes
import moe_ep
for name, kind in moe_ep._STRUCTS.items():
    print("struct", name, ctypes.sizeof(kind))
    for field, _ in kind._fields_:
        f = getattr(kind, field)
        print("field", name, field, f.offset, f.size)
for name, (prefix, values) in moe_ep._ENUMS.items():
    for value, number in values.items():
        print("enum", prefix + value.upper(), number)
for name, (result, arguments) in moe_ep._CALLS.items():
    print("call", name, result + arguments)
END
awk '
    BEGIN {
        print "#include \"moe_ep.h\"\n#include <stdio.h>\n#include <stddef.h>"
        print "template <class T> struct code { static const char c = 105; };"  # int32_t and enumerations
        print "template <> struct code<int64_t> { static const char c = 113; };"
        print "template <> struct code<size_t> { static const char c = 81; };"
        print "template <> struct code<double> { static const char c = 100; };"
        print "template <> struct code<void> { static const char c = 118; };"
        print "template <class T> struct code<T *> { static const char c = 112; };"
        print "template <> struct code<const char *> { static const char c = 115; };"
        print "template <class R, class... A> void call(const char *name, R (*)(A...)) {"
        print "    const char letters[] = {code<R>::c, code<A>::c..., 0};"
        print "    printf(\"call %s %s\\n\", name, letters);\n}"
        print "int main(void)\n{"
    }
    $1 == "struct" { printf "printf(\"struct %s %%zu\\n\", sizeof(%s));\n", $2, $2 }
    $1 == "field" { printf "printf(\"field %s %s %%zu %%zu\\n\", offsetof(%s, %s), sizeof(((%s *)0)->%s));\n",
                           $2, $3, $2, $3, $2, $3 }
    $1 == "enum" { printf "printf(\"enum %s %%d\\n\", (int)%s);\n", $2, $2 }
    $1 == "call" { printf "call(\"%s\", %s);\n", $2, $2 }
    END { print "return 0;\n}" }' "$tmp/layout.python" >"$tmp/layout.cc"
checked=$(wc -l <"$tmp/layout.python")
[ "$checked" -ge 300 ]
result $? "$checked sizes, offsets, values and signatures are compared"
if have "$CXX"; then
    if "$CXX" -std=c++11 -I. "$tmp/layout.cc" build/libmoe_ep.a -o "$tmp/layout" -lm >"$tmp/log" 2>&1; then
        "$tmp/layout" >"$tmp/layout.header"
        diff "$tmp/layout.header" "$tmp/layout.python" >"$tmp/diff"
        result $? "they are those of moe_ep.h" "$tmp/diff"
    else fail "the program that prints the header's layout compiles" "$tmp/log"; fi
else
    # without a C++ compiler all but the signatures
    grep -v '^call ' "$tmp/layout.python" >"$tmp/layout.some"
    grep -vE '^(template|    const char|    printf\("call|}$|call)' "$tmp/layout.cc" >"$tmp/layout.c"
    echo '}' >>"$tmp/layout.c"
    if $CC -std=c99 -I. "$tmp/layout.c" -o "$tmp/layout" >"$tmp/log" 2>&1; then
        "$tmp/layout" >"$tmp/layout.header"
        diff "$tmp/layout.header" "$tmp/layout.some" >"$tmp/diff"
        result $? "they are those of moe_ep.h" "$tmp/diff"
    else fail "the program that prints the header's layout compiles" "$tmp/log"; fi
    skip "signatures" "$CXX is not installed (package g++)"
fi

"$PYTHON" tests/python_test.py >"$tmp/unit" 2>&1
code=$?
grep -E '^  (ok|FAIL|skip) ' "$tmp/unit" >"$tmp/lines"
while read -r mark name; do
    case $mark in
        ok) pass "$name" ;;
        skip) skip "${name%%:*}" "${name#*: }" ;;
        *) grep -vE '^  (ok|skip) ' "$tmp/unit" >"$tmp/trace"; fail "$name" "$tmp/trace" ;;
    esac
done <"$tmp/lines"
if [ $code -ne 0 ] && ! grep -q '^  FAIL' "$tmp/lines"; then fail "tests/python_test.py ends well" "$tmp/unit"; fi
ran=$(wc -l <"$tmp/lines")
[ "$ran" -ge 19 ]
result $? "$ran tests of tests/python_test.py ran"

"$PYTHON" tests/python_test.py --readme >"$tmp/output" 2>&1
result $? "README.md: the code runs and prints what it says, $(tail -n 1 "$tmp/output")" "$tmp/output"

# ---- where the library is looked for ----
mkdir "$tmp/beside"
cp examples/python/moe_ep.py "$tmp/beside/"
cp build/libmoe_ep.so "$tmp/beside/libmoe_ep.so.0"
where() {
    (cd "$tmp" && env -u MOE_EP_LIBRARY PYTHONPATH="$1" "$PYTHON" -c 'import moe_ep; print(moe_ep.library_path)')
}
[ "$(where "$tmp/beside")" = "$tmp/beside/libmoe_ep.so.0" ]
result $? "the library beside the file is found"
[ "$(where "$PWD/examples/python")" = "$PWD/build/libmoe_ep.so.0" ]
result $? "the library in build/ is found"
(cd "$tmp" && MOE_EP_LIBRARY=/nowhere/lib.so PYTHONPATH="$tmp/beside" "$PYTHON" -c 'import moe_ep') >"$tmp/log" 2>&1
grep -q 'make lib.*MOE_EP_LIBRARY' "$tmp/log" && grep -q /nowhere/lib.so "$tmp/log"
result $? "without a library it says what to do" "$tmp/log"
finish 24
