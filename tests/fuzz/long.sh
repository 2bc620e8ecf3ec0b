#!/bin/sh
# tests/fuzz/long.sh - goes around the fuzz targets until each has GOAL executions on record, or until a time of day.
# SPDX-License-Identifier: MIT
# usage: [UNTIL=13:00] [GOAL=20000000] [SLICE=60] [FUZZ_DIR=...] nice -n 19 sh tests/fuzz/long.sh
# Each round works on a copy of the header, so that it may change meanwhile; a header that does not compile is left
# out.  Findings do not stop it: they are listed in $FUZZ_DIR/TARGET.findings.  Counts: tests/fuzz/executions.md.
goal=${GOAL:-20000000} slice=${SLICE:-60} dir=${FUZZ_DIR:-build/fuzz/long}
export FUZZ_DIR="$dir" FUZZ_HEADER="$dir/header" FUZZ_ENGINE=random FUZZ_SURVEY=1 FUZZ_RECORD=1
export FUZZ_RUNS=4000000000 FUZZ_SECONDS="$slice" FUZZ_ONLY FUZZ_SEED
mkdir -p "$dir/header"
count() {
    awk -F'\t' -v t="$1" '$1 == t { n += $3 } END { printf "%d\n", n }' tests/fuzz/executions.tsv 2>/dev/null
}
late() { [ -n "${UNTIL:-}" ] && [ "$(date +%H%M)" -ge "$(echo "$UNTIL" | tr -d :)" ]; }
while ! late; do
    left=0
    if ! cmp -s moe_ep.h "$dir/header/moe_ep.h"; then
        cp moe_ep.h "$dir/header/moe_ep.new" && mkdir -p "$dir/try" && cp "$dir/header/moe_ep.new" "$dir/try/moe_ep.h"
        echo '#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"' >"$dir/try/try.c"
        if "${CC:-cc}" -std=gnu99 -fsyntax-only -I"$dir/try" "$dir/try/try.c" 2>/dev/null; then
            mv "$dir/header/moe_ep.new" "$dir/header/moe_ep.h"
        fi
    fi
    for source in tests/fuzz/fuzz_*.c; do
        FUZZ_ONLY=$(basename "$source" .c | sed s/fuzz_//)
        have=$(count "$FUZZ_ONLY")
        [ "${have:-0}" -ge "$goal" ] && continue
        left=1
        late && break
        FUZZ_SEED=$((${have:-0} + 1))
        sh tests/fuzz/fuzz.sh >"$dir/log" 2>&1
        { grep -A 1 '^fuzz .*: ' "$dir/log" || grep -A 20 FAIL "$dir/log"; } >>"$dir/$FUZZ_ONLY.findings"
    done
    [ $left = 0 ] && break
done
