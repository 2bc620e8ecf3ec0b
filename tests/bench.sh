#!/bin/sh
# tests/bench.sh - every benchmark builds; those that know --quick also run (their times are not judged).
# SPDX-License-Identifier: MIT
. tests/lib.sh
for source in bench/bench_*.c; do
    [ -e "$source" ] || break
    name=$(basename "$source" .c)
    if [ ! -x "build/bench/$name" ]; then fail "$name was built"
    elif ! grep -q -e '--quick' "$source"; then skip "$name" "has no --quick"
    else
        timeout 120 "build/bench/$name" --quick >"$tmp/out" 2>&1 </dev/null && [ -s "$tmp/out" ]
        result $? "$name --quick" "$tmp/out"
    fi
done
[ $((passed + failed + skipped)) -gt 0 ] || skip "benchmarks" "there are none"
finish 1
