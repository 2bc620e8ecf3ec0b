#!/bin/sh
# tests/test_openmp.sh - the OpenMP adapter of examples/threads.h: 1, 2, 3 and 8 threads give the bits of one.
# SPDX-License-Identifier: MIT
. tests/lib.sh
printf '#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n' >"$tmp/moe_ep.c"
printf '#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' >"$tmp/probe.c"
if ! $CC -fopenmp "$tmp/probe.c" -o "$tmp/probe" >"$tmp/log" 2>&1 || ! "$tmp/probe"; then
    skip "OpenMP adapter" "$CC -fopenmp does not work (packages libgomp1 or libomp-dev)"
    finish 1
    exit
fi
object=build/lib/moe_ep_lib.o # the implementation knows nothing of OpenMP
: >"$tmp/log"
built_library || {
    object=$tmp/moe_ep.o
    $CC -std=c99 -O1 -DMOE_EP_NO_BLAS -I. -c "$tmp/moe_ep.c" -o "$object" >"$tmp/log" 2>&1
} && $CC -std=gnu99 -O1 -fopenmp -I. -Itests tests/test_forward.c "$object" -o "$tmp/test_forward" -lm \
    -pthread >>"$tmp/log" 2>&1
result $? "tests/test_forward.c compiles with OpenMP" "$tmp/log"
for threads in 1 2 3 8; do
    OMP_NUM_THREADS=$threads timeout 300 "$tmp/test_forward" --filter openmp >"$tmp/log" 2>&1
    result $? "OMP_NUM_THREADS=$threads: the bits of one thread" "$tmp/log"
    grep -q "openmp: $threads threads" "$tmp/log"
    result $? "OMP_NUM_THREADS=$threads: that many took part" "$tmp/log"
done
finish 9
