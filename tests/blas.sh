#!/bin/sh
# tests/blas.sh - the forward with reference BLAS and BLIS: one program, whose libblas.so.3 is exchanged when it runs.
# SPDX-License-Identifier: MIT
# The builds of OpenBLAS are test_blas_variants.sh's affair.
. tests/lib.sh
if [ "${BLAS:-1}" = 0 ]; then
    skip "reference BLAS and BLIS" "BLAS=0"
    finish 1
    exit
fi
printf '#include <cblas.h>\nint main(void) { return cblas_sdot(0, 0, 1, 0, 1) > 0; }\n' >"$tmp/try.c"
if ! $CC "$tmp/try.c" -o "$tmp/try" -lblas >"$tmp/log" 2>&1; then
    skip "reference BLAS and BLIS" "no -lblas with <cblas.h> (package libblas-dev)"
    finish 1
    exit
fi
printf '#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n' >"$tmp/moe_ep.c"
if ! { $CC -std=c99 -O1 -DMOE_EP_USE_BLAS -I. -c "$tmp/moe_ep.c" -o "$tmp/moe_ep.o" &&
    $CC -std=gnu99 -O1 -D_GNU_SOURCE -w -I. -Itests tests/test_forward.c "$tmp/moe_ep.o" -o "$tmp/test_forward" \
        -lblas -lm -pthread; } >"$tmp/log" 2>&1; then
    fail "test_forward builds with -lblas" "$tmp/log"
    finish 1
    exit
fi
for variant in blas blis-openmp blis-pthread blis-serial; do
    dir=
    for d in /usr/lib/*/$variant; do [ -e "$d/libblas.so.3" ] && dir=$d; done
    if [ -z "$dir" ]; then
        case $variant in blas) package=libblas3 ;; *) package=libblis4-${variant#blis-} ;; esac
        skip "$variant" "not installed (package $package)"
        continue
    fi
    LD_LIBRARY_PATH=$dir ldd "$tmp/test_forward" | grep -q "$dir"
    result $? "$variant is the one that is loaded"
    BLIS_NUM_THREADS=1 OMP_NUM_THREADS=1 LD_LIBRARY_PATH=$dir \
        timeout 300 "$tmp/test_forward" --filter blas >"$tmp/log" 2>&1
    result $? "$variant: $(tail -n 1 "$tmp/log")" "$tmp/log"
done
finish 3
