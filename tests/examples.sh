#!/bin/sh
# tests/examples.sh - every example runs, says nothing on stderr, and prints what its golden file holds.
# SPDX-License-Identifier: MIT
# usage: examples.sh            compares with examples/out/NAME.txt
#        examples.sh --update   rewrites those files (make golden); look at the difference before committing
. tests/lib.sh
if [ "${1:-}" = --update ]; then
    mkdir -p examples/out
    for source in examples/[0-9]*.c; do
        name=$(basename "$source" .c)
        "build/examples/$name" >"$tmp/out" || { echo "examples/$name failed" >&2; exit 1; }
        cmp -s "$tmp/out" "examples/out/$name.txt" && continue
        cp "$tmp/out" "examples/out/$name.txt" && echo "wrote examples/out/$name.txt"
    done
    exit 0
fi

for source in examples/[0-9]*.c; do
    [ -e "$source" ] || break
    name=$(basename "$source" .c)
    lines=$(wc -l <"$source")
    [ "$lines" -le 80 ] && pass "$name: $lines lines" || fail "$name: $lines lines, want at most 80"
    if [ ! -x "build/examples/$name" ]; then
        fail "$name: was not built"
        continue
    fi
    timeout 20 "build/examples/$name" >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    if [ $code -ne 0 ]; then cat "$tmp/out" >>"$tmp/err"; fail "$name: exit status $code" "$tmp/err"; continue; fi
    if [ -s "$tmp/err" ]; then fail "$name: wrote to stderr" "$tmp/err"; continue; fi
    if [ -e "examples/out/$name.txt" ]; then
        diff "examples/out/$name.txt" "$tmp/out" >"$tmp/diff"
        result $? "$name: prints what examples/out/$name.txt holds (make golden rewrites it)" "$tmp/diff"
    elif [ -s "$tmp/out" ]; then skip "$name: output" "no examples/out/$name.txt to compare with"
    else fail "$name: printed nothing"; fi
done
for golden in examples/out/*.txt; do
    [ -e "$golden" ] || break
    [ -e "examples/$(basename "$golden" .txt).c" ] || fail "$golden belongs to no example"
done
if [ $((passed + failed + skipped)) -eq 0 ]; then skip "examples" "there are none"; fi
finish 1
