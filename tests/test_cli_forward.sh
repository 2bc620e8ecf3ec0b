#!/bin/sh
# tests/test_cli_forward.sh - moe-ep forward: small shapes, every type, every instruction set, bad options.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool cli_forward.c
need_json_check
LC_ALL=C
export LC_ALL
small="--hidden 96 --intermediate 80 --experts 6 --topk 2 --seconds 0"

run() { # run CODE ARGS...
    want=$1
    shift
    timeout 200 "$tool" forward "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    [ $code -eq "$want" ] || echo "exit status $code, want $want: moe-ep forward $*" >>"$tmp/err"
    [ $code -eq "$want" ]
}
works() {
    name=$1
    shift
    if run 0 "$@" && [ ! -s "$tmp/err" ]; then pass "$name"; else fail "$name" "$tmp/err"; fi
}
refuses() { # refuses TEXT ARGS...: exit code 2, one short message that names TEXT, nothing on standard output
    text=$1
    shift
    if run 2 "$@" && grep -qF -- "$text" "$tmp/err" && [ ! -s "$tmp/out" ] && [ "$(wc -l <"$tmp/err")" -le 3 ]; then
        pass "refused: $*"
    else fail "refused: $*" "$tmp/err"; fi
}
has() {
    grep -qE -- "$2" "$tmp/out"
    result $? "$1" "$tmp/out"
}

works "--help" --help
has "--help names the options" "--tokens N"
# shellcheck disable=SC2086
for type in f32 bf16 f16 int8; do
    works "$type" $small --type $type --tokens 1,7,40 --threads 2
    has "$type: a line for each batch size" "^ +40 "
    has "$type: checked" "rows against float64"
    works "$type, fp32 activations, plain C" $small --type $type --exact --isa portable --tokens 5 --threads 1
    has "$type: the unit is named" "unit portable"
done
# shellcheck disable=SC2086
works "avx2" $small --isa avx2 --tokens 3
# shellcheck disable=SC2086
works "neon" $small --isa neon --tokens 3
# shellcheck disable=SC2086
works "--check 0" $small --check 0 --tokens 3 --width 100 --ascii --color never
has "the columns" "tokens/s +GB/s +read +GFLOP/s +limit +of it"
has "the limit of the multipliers" "at most [0-9,]+ GFLOP/s"
! grep -q "float64" "$tmp/out"
result $? "--check 0 checks nothing"
# shellcheck disable=SC2086
works "--json" $small --json --tokens 2,4 --seed 7
"$tmp/json_check" "$tmp/out" batches >"$tmp/log" 2>&1
result $? "--json is JSON" "$tmp/log"
[ "$("$tmp/json_check" "$tmp/out" experts 2>/dev/null)" = 6 ]
result $? "--json: six experts" "$tmp/out"
# a terminal, so that there is a line of progress
if have script && script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    longer="--hidden 1024 --intermediate 1024 --experts 8 --topk 2 --seconds 3 --tokens 8192 --check 1"
    script -qec "$tool forward $longer" "$tmp/typed" >"$tmp/log" 2>&1 </dev/null
    grep -q 'timing: [0-9]* %' "$tmp/typed"
    result $? "a line of progress on a terminal" "$tmp/log"
else skip "a line of progress" "no script that makes terminals (package bsdutils)"; fi
# shellcheck disable=SC2086
works "a model, cut down" --model phi-tiny-moe --experts 2 --seconds 0 --tokens 1 --check 1
has "the model's shape" "2 experts of 4096 x 448, top-2"
refuses "abacus" --model abacus
refuses "topk" --experts 2 --topk 3
refuses "tokens" --tokens 0
refuses "tokens" --tokens ,
refuses "batch sizes" --tokens 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1
refuses "type" --type fp4
refuses "isa" --isa altivec
refuses "threads" --threads 65
refuses "seconds" --seconds -1
refuses "reads no input" ids.npy
refuses "no --html" --html x.html
refuses "frobnicate" --frobnicate
if [ -r /proc/meminfo ]; then refuses "memory" --model kimi-k2 --experts 65536 --hidden 65536; fi
finish 40
