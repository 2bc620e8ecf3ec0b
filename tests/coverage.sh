#!/bin/sh
# tests/coverage.sh - lines and branches of moe_ep.h that the test programs reach; `make coverage`.
# SPDX-License-Identifier: MIT
# usage: coverage.sh [--lines SECTION]   also lists what SECTION lacks
# Fuzzing (test_fuzz) is left out, so is what only MOE_EP_ASSERT would do.  gcc's branches count the two sides of
# every comparison, && and || of a condition.  Kernels of all instruction sets this machine has are in.
# A line or branch that no input can reach is listed in tests/coverage.txt: code, a tab, the reason; one line for each.
# All that gcc 12 counts is demanded; other versions divide some conditions into other branches: 99 percent there.
least=99
case $(gcc -dumpversion 2>/dev/null) in 12*) least=100 ;; esac
LINES=${LINES_LEAST:-$least} BRANCHES=${BRANCHES_LEAST:-$least}
. tests/lib.sh
if ! have gcc || ! have gcov || ! have python3; then
    skip "coverage" "gcc, gcov or python3 is not installed (packages gcc, python3)"
    finish 1
    exit
fi
dir=build/coverage
rm -rf $dir
mkdir -p $dir
root=$(pwd)
flags="-std=gnu99 -O0 -w -I$root -I$root/tests -DKERNEL_CASES=4000 -DMOE_EP_NO_BLAS"
objects=
# Each private static copy of the header (test_oom, test_basics, ..) is an object of its own; gcov adds them up.
printf '#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n' >$dir/impl.c
# shellcheck disable=SC2086
(cd $dir && gcc $flags --coverage -c impl.c -o impl.o &&
    # threads that count at the same time lose counts, which can make a branch's negative
    cp impl.c threads.c && gcc $flags --coverage -fprofile-update=atomic -c threads.c -o threads.o) || exit 2
run=0
for source in tests/test_*.c; do
    name=$(basename "$source" .c)
    case $name in test_fuzz) continue ;; esac
    libs=
    grep -q 'needs: glpk' "$source" && libs=${GLPK_LIBS:-}
    implementation=impl.o
    grep -q 'pthread_create' "$source" && implementation=threads.o
    # the same lines are reached with fewer numbers, too, where layers are computed, rows counted and experts placed
    case $name in test_forward* | test_balance | test_loads* | test_place*) slow=2 ;; *) slow=1 ;; esac
    counted=
    grep -qE 'define MOE_EP_(STATIC|IMPLEMENTATION)' "$source" && counted="--coverage -fprofile-update=atomic"
    # shellcheck disable=SC2086
    if (cd $dir && gcc $flags $counted -c "$root/$source" -o "$name.o" &&
        gcc --coverage "$name.o" $implementation -o "$name" $libs -lm -pthread) >"$tmp/log" 2>&1 &&
        MOE_EP_SLOW=$slow timeout 900 "$dir/$name" >"$tmp/log" 2>&1; then
        run=$((run + 1))
    else tail -n 5 "$tmp/log" >"$tmp/tail"; fail "$name runs with coverage" "$tmp/tail"; fi
    objects="$objects $name"
done
# experts with many rows once more through BLAS, where it is installed
if [ "${BLAS:-0}" = 1 ]; then
    # shellcheck disable=SC2086
    (cd $dir && cp impl.c blas.c && gcc ${flags% *} -DMOE_EP_USE_BLAS ${BLAS_CFLAGS:-} --coverage \
        -fprofile-update=atomic -c blas.c -o blas.o &&
        gcc ${flags% *} "$root/tests/test_forward.c" blas.o -o blas --coverage ${BLAS_LIBS:--lopenblas} -lm -pthread) \
        >"$tmp/log" 2>&1 && MOE_EP_SLOW=2 $dir/blas >>"$tmp/log" 2>&1
    result $? "experts with BLAS" "$tmp/log"
else skip "experts with BLAS" "BLAS=0"; fi
export MOE_EP_SLOW=1
# the choice of kernels on machines without AVX, and without half floats
if have qemu-x86_64; then
    for cpu in Nehalem Haswell,-f16c; do
        { qemu-x86_64 -cpu $cpu $dir/test_forward --filter instruction_sets &&
            qemu-x86_64 -cpu $cpu $dir/test_loads --only histogram_pieces &&
            qemu-x86_64 -cpu $cpu $dir/test_route --only kernels_that_are_not_here; } >"$tmp/log" 2>&1
        result $? "kernels chosen on a $cpu" "$tmp/log"
    done
else skip "kernels of other machines" "no qemu-x86_64 (package qemu-user)"; fi
(cd $dir && gcov --json-format --stdout --branch-probabilities ./*.gcda 2>/dev/null) >$dir/gcov.json
# shellcheck disable=SC2086
python3 tests/coverage.py $dir/gcov.json ${1:+"$@"} >$dir/table.txt 2>"$tmp/log" || fail "the table is made" "$tmp/log"
cat $dir/table.txt
lines=$(awk '/^all/ { print $4 }' $dir/table.txt) branches=$(awk '/^all/ { print $7 }' $dir/table.txt)
[ "$run" -ge 22 ]
result $? "$run test programs ran"
awk "BEGIN { exit !(${lines:-0} >= $LINES) }"
result $? "lines ${lines:-0} %, at least $LINES"
awk "BEGIN { exit !(${branches:-0} >= $BRANCHES) }"
result $? "branches ${branches:-0} %, at least $BRANCHES"
finish 3
