#!/bin/sh
# tests/test_blas_variants.sh - the forward with each of Debian's three builds of OpenBLAS: pthread, openmp, serial.
# environment: OPENBLAS_ROOT, a folder into which packages were unpacked (dpkg -x), for builds that are not installed
# SPDX-License-Identifier: MIT
. tests/lib.sh
if [ "${BLAS:-1}" = 0 ]; then skip "OpenBLAS builds" "BLAS=0"; finish 1; exit; fi
# The program that was built already is linked with OpenBLAS; alone, this script builds one.
built=build/tests/test_forward
if grep -q 'BLAS=1$' build/flags 2>/dev/null && [ -n "$(find $built -newer moe_ep.h 2>/dev/null)" ] &&
    [ -n "$(find $built -newer tests/test_forward.c)" ]; then cp $built "$tmp/"; fi
printf '#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n' >"$tmp/moe_ep.c"
# shellcheck disable=SC2086
[ -e "$tmp/test_forward" ] || {
    $CC -std=c99 -O2 -DMOE_EP_USE_BLAS ${BLAS_CFLAGS:-} -I. -c "$tmp/moe_ep.c" -o "$tmp/moe_ep.o" &&
        $CC -std=gnu99 -O1 -D_GNU_SOURCE -I. -Itests tests/test_forward.c "$tmp/moe_ep.o" -o "$tmp/test_forward" \
            ${BLAS_LIBS:--lopenblas} -lm -pthread
} >"$tmp/log" 2>&1 || {
    fail "tests/test_forward.c compiles with BLAS" "$tmp/log"; finish 1; exit 1; }
for variant in pthread openmp serial; do
    dir=
    for d in "${OPENBLAS_ROOT:-}"/usr/lib/*/openblas-$variant; do [ -e "$d/libopenblas.so.0" ] && dir=$d; done
    if [ -z "$dir" ]; then skip "openblas-$variant" "libopenblas0-$variant is not installed"; continue; fi
    LD_LIBRARY_PATH=$dir ldd "$tmp/test_forward" | grep -q "$dir"
    result $? "openblas-$variant is the one that is loaded"
    # its own threads stay out of the way: the layer's tasks are the threads
    for threads in 1 4; do
        OPENBLAS_NUM_THREADS=$threads OMP_NUM_THREADS=$threads LD_LIBRARY_PATH=$dir timeout 120 \
            "$tmp/test_forward" --filter blas >"$tmp/log" 2>&1
        result $? "openblas-$variant, $threads of its threads: the layer is right" "$tmp/log"
    done
done
finish 3
