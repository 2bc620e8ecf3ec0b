#!/bin/sh
# tests/load.sh - a 2 GB recording in bounded memory, a million plans without growth, writers killed at any moment.
# SPDX-License-Identifier: MIT
. tests/lib.sh
tool=build/moe-ep
if [ ! -x $tool ]; then
    skip "load" "the tool is not built (make tool)"
    finish 1
    exit
fi

# ---- 2 GB of ids: a sparse file, 67 million tokens of one layer, 8 choices; zeros are expert 0 ----
# The first token takes eight experts: ids that are all one would be no routing.
trace=$tmp/big.npy
header="{'descr': '<i4', 'fortran_order': False, 'shape': (67108864, 1, 8), }"
length=$((118 - ${#header} - 1))
{
    printf '\223NUMPY\001\000\166\000%s%*s\n' "$header" $length ''
    for id in 0 1 2 3 4 5 6 7; do printf "\\$id\000\000\000"; done
} >"$trace"
[ "$(wc -c <"$trace")" -eq 160 ] && truncate -s $((128 + 67108864 * 32)) "$trace"
result $? "a trace of 2 GB is there"
if have /usr/bin/time; then
    /usr/bin/time -f '%M' "$tool" report "$trace" --experts 64 --devices 8 >"$tmp/out" 2>"$tmp/err"
    result $? "moe-ep report reads it" "$tmp/err"
    grep -q ' 536,870,912 rows ' "$tmp/out"
    result $? "all of its rows" "$tmp/out"
    kb=$(tail -n 1 "$tmp/err")
    [ "${kb:-0}" -gt 0 ] && [ "$kb" -lt 400000 ]
    result $? "in $((${kb:-0} / 1024)) MB of memory"
else skip "memory of moe-ep report" "no /usr/bin/time (package time)"; fi
rm -f "$trace"

# ---- a million plans ----
cat >"$tmp/plans.c" <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "moe_ep.h"
static long rss(void)
{
    long pages = 0, all;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld", &all, &pages) != 2) {
        fprintf(stderr, "no /proc/self/statm\n");
        exit(4);
    }
    fclose(f);
    return pages;
}
int main(void)
{
    double loads[4] = {9, 4, 2, 1};
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_scratch scratch;
    static double memory[512];
    long i, start = 0;
    memset(&d, 0, sizeof d);
    memset(&scratch, 0, sizeof scratch);
    d.num_layers = 1;
    d.num_experts = 4;
    d.loads = loads;
    d.shape.num_devices = 2;
    d.shape.num_slots = 6;
    if (moe_ep_placement_init(&p, 1, 4, &d.shape, memory, sizeof memory, NULL) != MOE_EP_OK) return 1;
    for (i = 0; i < 1000000; i++) {
        loads[i % 4] = (double)(1 + i * 7 % 100);
        if (moe_ep_best_placement(&d, &p, NULL, i % 2 ? &scratch : NULL, NULL) != MOE_EP_OK) return 2;
        if (i == 10000) start = rss();
    }
    printf("%ld pages before, %ld after\n", start, rss());
    i = rss() - start;
    moe_ep_scratch_free(&scratch);
    return i > 64 ? 3 : 0; /* 256 kB: the C library and printf */
}
END
# shellcheck disable=SC2086
$CC -std=gnu99 -O2 -DMOE_EP_NO_BLAS -I. "$tmp/plans.c" tests/compile/implementation.c -o "$tmp/plans" -lm \
    >"$tmp/log" 2>&1
result $? "the planner's loop builds" "$tmp/log"
"$tmp/plans" >"$tmp/log" 2>&1
result $? "1,000,000 plans: $(cat "$tmp/log")" "$tmp/log"

# ---- killed at random moments: the output is whole or not there ----
data=examples/data/prose_topk_ids.npy
# killed NAME ENDING COMMAND...: the command, which writes $tmp/outputENDING, killed 40 times between its start and its
# end and a little later.  Whole is what is equal to the output of a run that nobody killed.
killed() {
    name=$1 output=$tmp/output$2 whole=0 absent=0 torn=0 n=0
    shift 2
    rm -f "$output"
    start=$(date +%s%N)
    "$@" >/dev/null 2>&1
    result $? "$name: writes its output"
    took=$((($(date +%s%N) - start) / 1000000)) # milliseconds
    mv "$output" "$tmp/whole" || return
    while [ $n -lt 40 ]; do
        n=$((n + 1))
        rm -f "$output"
        "$@" >/dev/null 2>&1 &
        pid=$!
        sleep "$(awk -v n=$n -v took="$took" 'BEGIN { printf "%.3f", n / 40 * 1.5 * took / 1000 }')"
        kill -KILL $pid 2>/dev/null
        wait $pid 2>/dev/null
        if [ ! -e "$output" ]; then absent=$((absent + 1))
        elif cmp -s "$output" "$tmp/whole"; then whole=$((whole + 1))
        else torn=$((torn + 1)); fi
    done
    rm -f "$tmp"/output*
    [ $torn -eq 0 ] && [ $whole -gt 0 ] && [ $absent -gt 0 ]
    result $? "$name, killed 40 times: $whole outputs whole, $absent absent, $torn torn"
}
# What is written reaches the disk before it takes the name, and the name's folder after it: killing shows nothing of
# that, the calls in their order do.
cat >"$tmp/order.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
static void note(const char *what)
{
    FILE *f = fopen(getenv("ORDER"), "a");
    if (!f) abort();
    fprintf(f, "%s ", what);
    fclose(f);
}
int fsync(int fd)
{
    struct stat s;
    note(fstat(fd, &s) != 0 ? "?" : S_ISDIR(s.st_mode) ? "folder" : s.st_size > 0 ? "file" : "empty");
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int rename(const char *from, const char *to)
{
    note("rename");
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}
END
synced() { # synced NAME COMMAND...
    name=$1
    shift
    rm -f "$tmp/order"
    ORDER=$tmp/order LD_PRELOAD=$tmp/order.so "$@" >/dev/null 2>"$tmp/log"
    [ "$(cat "$tmp/order" 2>/dev/null)" = "file rename folder " ]
    result $? "$name: $(cat "$tmp/order" 2>/dev/null)" "$tmp/log"
}
if [ -e $data ]; then
    if $CC -w -shared -fPIC "$tmp/order.c" -o "$tmp/order.so" -ldl >"$tmp/log" 2>&1; then
        synced "report --html" "$tool" report $data --devices 8 --html "$tmp/output.html"
        synced "place --out" "$tool" place $data --devices 8 --out "$tmp/output.json"
        synced "traffic --out" "$tool" traffic $data --devices 8 --out "$tmp/output.csv"
    else fail "a library that notes calls builds" "$tmp/log"; fi
    killed "report --html" .html "$tool" report $data --devices 8 --html "$tmp/output.html"
    killed "place --out" .json "$tool" place $data --devices 8 --out "$tmp/output.json"
    killed "traffic --out" .csv "$tool" traffic $data --devices 8 --out "$tmp/output.csv"
else skip "killed writers" "no $data"; fi
finish 11
