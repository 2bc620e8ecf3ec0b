#!/bin/sh
# tests/test_cli_findings.sh - what fuzzing has found in the readers of the tool (tests/fuzz/findings.h), once more,
# by the tool's own objects.  Its sanitized twin is in tests/fuzz/fuzz.sh.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool cli_read.c
objects=
for f in build/cli/*.o; do # without main; simulate_inside.c includes the source of the other
    case $f in */moe_ep_cli.o | */cli_simulate.o) ;; *) objects="$objects $f" ;; esac
done
# shellcheck disable=SC2046,SC2086
$CC -std=gnu99 -O1 -w -I. -Iexamples -DMOE_EP_NO_BLAS ${STB_CFLAGS:--I/usr/include/stb} \
    $(pkg-config --cflags jansson yaml-0.1 2>/dev/null) tests/fuzz/fuzz_readers.c tests/fuzz/simulate_inside.c \
    $objects build/moe_ep.o -o "$tmp/readers" @tests/fuzz/readers.link -ljansson -lyaml ${BLAS_LIBS:-} -lpthread -lm \
    >"$tmp/log" 2>&1
result $? "the readers' target links with the tool's objects" "$tmp/log"
rows=$(sed -n 's/^ *{"readers", "\([0-9a-f]*\)".*/\1/p' tests/fuzz/findings.h)
for row in $rows; do
    "$tmp/readers" --rows "$row" >"$tmp/log" 2>&1
    result $? "finding $(echo "$row" | cut -c1-16)" "$tmp/log"
done
finish 3
