#!/bin/sh
# tests/oom_tool.sh - every command of moe-ep, every reader and writer, while the N-th allocation fails
# SPDX-License-Identifier: MIT
# usage: oom_tool.sh [--full]   --full: every N; without, the first and last N of some of the places that allocate
# What counts as right is in oom_tool.c, which is linked with the objects of build/moe-ep.
. tests/lib.sh
how="--sites 16"
[ "${1:-}" = --full ] && how=
if [ ! -e build/cli/moe_ep_cli.o ] || [ ! -e build/lib/moe_ep_lib.o ]; then
    skip "memory of the tool" "it is not built (make tool lib)"
    finish 1
    exit
fi
LC_ALL=C # in a locale of UTF-8, setlocale without memory means ASCII pictures
export LC_ALL
data=examples/data
moe_ep=$tmp/moe-ep-oom
libs="$(pkg-config --libs jansson yaml-0.1 2>/dev/null || echo '-ljansson -lyaml') -lm -pthread"
printf '#include <features.h>\n#ifndef __GLIBC__\n#error\n#endif\n' >"$tmp/libc.c"
if ! $CC -E "$tmp/libc.c" >/dev/null 2>&1; then
    skip "memory of the tool" "needs glibc"
    finish 1
    exit
fi
# shellcheck disable=SC2086
if ! $CC -std=gnu99 -O1 -g -Wall -Wextra -fno-builtin tests/oom_tool.c build/cli/*.o build/lib/moe_ep_lib.o \
    -Wl,--wrap=main -rdynamic ${LDFLAGS:-} -o "$moe_ep" $libs >"$tmp/log" 2>&1; then
    fail "the tool with refused memory is linked" "$tmp/log"
    finish 1
    exit
fi
mkdir "$tmp/dir"
o=$tmp/dir

survives() { # survives NAME [--timed] -- ARGS...
    name=$1
    shift
    timed=
    [ "$1" = --timed ] && { timed=--timed; shift; }
    # shellcheck disable=SC2086
    "$moe_ep" $how $timed --dir "$o" "$@" >"$tmp/log" 2>&1
    code=$?
    result $code "$name: $(tail -n 1 "$tmp/log")" "$tmp/log"
    runs=$((runs + $(sed -n '$s/.* \([0-9]*\) runs.*/\1/p' "$tmp/log")))
}
runs=0

# ---- inputs, small -----------------------------------------------------------------------------------------------
counts() { # counts ROWS...: one line of a JSON array for each
    printf '{"logical_count": [[%s]' "$1"
    shift
    for row in "$@"; do printf ', [%s]' "$row"; done
    printf ']}\n'
}
counts 9,1,2,4,3,3,1,1 2,2,8,1,4,4,3,0 >"$tmp/counts.json"
printf '{"physical_to_logical_map": [[0,1,2,3,4,5,6,7,0,3],[0,1,2,3,4,5,6,7,2,4]]}\n' >"$tmp/map.json"
cat >"$tmp/lines.jsonl" <<'EOF_J'
{"step": 0, "layer": 0, "ids": [[1, 5], [0, 2], [0, 7]]}
{"step": 1, "layer": 0, "ids": [[1, 4], [3, 2], [0, 6]]}
{"step": 2, "layer": 0, "ids": [[1, 5], [0, 2], [0, 7]]}
{"step": 3, "layer": 0, "ids": [[1, 5], [0, 2], [0, 7]]}
EOF_J
cat >"$tmp/long.csv" <<'EOF_C'
step,layer,expert,count
0,0,0,5
0,0,1,2
0,0,2,1
0,0,3,4
1,0,0,1
1,0,1,2
1,0,2,3
1,0,3,4
EOF_C
cat >"$tmp/wide.csv" <<'EOF_C'
step,layer,0,1,2,3
0,0,5,2,1,4
1,0,4,2,1,4
2,0,5,3,1,4
3,0,5,2,2,4
EOF_C
sed 's/,4$/,3/' "$tmp/wide.csv" >"$tmp/other.csv"
printf 'initial_global_assignments:\n  0: [0,1,2,3,4,5,6,7]\n  1: [7,6,5,4,3,2,1,0]\nnum_slots: 8\n' >"$tmp/map.yaml"
printf 'layer,device,slot,expert\n0,0,0,0\n0,0,1,1\n0,1,2,2\n0,1,3,3\n' >"$tmp/map.csv"
printf '{"input_toks": 8, "output_toks": 4, "arrival_time_ns": 0}\n' >"$tmp/requests.jsonl"
printf '{"input_toks": 4, "output_toks": 2, "arrival_time_ns": 9}\n' >>"$tmp/requests.jsonl"
mkdir "$tmp/stat"
{
    tensor='{"dtype":"I32","shape":[4],"data_offsets"'
    header="{\"0_0\":$tensor:[0,16]},\"1_0\":$tensor:[16,32]}}"
    # shellcheck disable=SC2059
    printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
    for n in 5 2 1 4 1 2 3 4; do
        # shellcheck disable=SC2059
        printf "\\00$n\\0\\0\\0"
    done
} >"$tmp/stat/rank0.safetensors"
echo '{"num_experts": 4, "num_experts_per_token": 2}' >"$tmp/stat/meta_info.json"
first() { # first FILE DESCR SHAPE BYTES OUT: the first BYTES of the values of a .npy, of another shape
    printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '$2', 'fortran_order': False, 'shape': ($3), }" >"$5"
    tail -c +129 "$1" | head -c "$4" >>"$5"
}
{
    printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 1, 2), }"
    printf '\000\001\002\003\000\001\000\003'
} >"$tmp/ids.npy"
{
    printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1, 2), }"
    for n in 1 2 3 4 5 6 7 8; do printf '\000\000\200\077'; done
} >"$tmp/weights.npy"
first $data/prose_layer2_hidden.npy '<f4' '2, 256' 2048 "$tmp/hidden.npy"

# ---- commands and their forms --------------------------------------------------------------------------------------
survives "presets" -- presets
survives "no such command" -- mend
survives "report: JSON counts, text" -- report "$tmp/counts.json" --devices 4 --slots 12
survives "report: every form" -- report "$tmp/counts.json" --devices 4 --slots 12 --html "$o/r.html" --json
survives "report: a current map, CSV out" -- report "$tmp/counts.json" --devices 5 --current "$tmp/map.json" \
    --format csv
survives "report: long CSV" -- report "$tmp/long.csv" --devices 2 --format svg
survives "report: charts of ids in a .npy" -- report "$tmp/ids.npy" --devices 2 --charts --width 60
survives "report: JSON lines of ids" -- report "$tmp/lines.jsonl" --devices 4
survives "report: statistics folder" -- report "$tmp/stat" --devices 2
survives "report: refused" -- report "$tmp/counts.json" --devices 3x
survives "place: three files" -- place "$tmp/counts.json" --devices 4 --slots 12 --out "$o/p.json" --out "$o/p.yaml" \
    --out "$o/p.csv" --html "$o/p.html"
survives "place: dead devices, nodes" -- place "$tmp/counts.json" --devices 4 --slots 12 --nodes 2 --dead 3 \
    --format json
survives "rebalance: YAML, moves out" -- rebalance "$tmp/map.yaml" "$tmp/counts.json" --devices 4 \
    --moves 4 --moves-out "$o/m.csv" --out "$o/m.json"
survives "rebalance: CSV map" -- rebalance "$tmp/map.csv" "$tmp/stat/rank0.safetensors" --html "$o/r.html" --json
survives "diagnose" -- diagnose "$tmp/wide.csv" "$tmp/wide.csv" --devices 2 --html "$o/d.html"
survives "diagnose: two recordings" -- diagnose "$tmp/wide.csv" "$tmp/other.csv" --devices 2 --html "$o/d.html"
survives "diagnose: JSON" -- diagnose "$tmp/wide.csv" --devices 2 --current "$tmp/map.csv" --json
survives "copies" -- copies "$tmp/counts.json" --devices 4 --max-copies 2 --html "$o/c.html"
survives "copies: JSON" -- copies "$tmp/counts.json" --devices 4 --max-copies 2 --json
survives "sweep" -- sweep --model mixtral-8x7b --machine h100 --nodes 1 --layers 1 --ep 4,8 --redundant 0 --tokens 64 \
    --overlap none,two --policy best,lpt --html "$o/s.html"
survives "sweep: popularity, JSON" -- sweep "$tmp/counts.json" --model mixtral-8x7b --machine h100 --nodes 1 \
    --layers 1 --ep 4 --redundant 0 --tokens 64 --overlap none --json
survives "inspect" -- inspect --model deepseek-v3 --machine h200 --devices 24
survives "inspect: shapes, JSON" -- inspect --layers 2 --experts 8 --topk 2 --hidden 64 --intermediate 32 \
    --devices 4 --json
set -- $data/cluster/*.json
cluster=$1
survives "simulate" -- simulate --config "$cluster" --trace "$tmp/requests.jsonl" --layers 1 --csv "$o/s.csv" \
    --html "$o/s.html"
survives "simulate: JSON" -- simulate --config "$cluster" --requests 2 --input 8 --output 2 --layers 1 --json
survives "forward" --timed -- forward --hidden 16 --intermediate 8 --experts 4 --topk 2 --tokens 2 --seconds 0.001 \
    --threads 1
survives "forward: threads, JSON" --timed -- forward --hidden 16 --intermediate 8 --experts 4 --topk 2 --tokens 2 \
    --seconds 0.001 --threads 2 --type int8 --json
survives "traffic: ids" -- traffic "$tmp/ids.npy" --devices 2 --out "$o/t.csv"
survives "traffic: counts and map, JSON" -- traffic "$tmp/counts.json" "$tmp/map.json" --devices 5 --out "$o/t.json"
survives "drops" -- drops "$tmp/ids.npy" --weights "$tmp/weights.npy" --tokens 2
survives "drops: JSON" -- drops "$tmp/lines.jsonl" --format json
survives "route: ids and weights" -- route "$tmp/hidden.npy" --gate $data/layer2_gate.npy --router qwen3 --topk 2 \
    --ids "$o/i.npy" --weights "$o/w.csv"
survives "watch: ids" -- watch "$tmp/lines.jsonl" --once --devices 4
survives "watch: CSV, JSON out" -- watch "$tmp/wide.csv" --once --devices 2 --json --current "$tmp/map.csv"
head -n 12 $data/vllm.log >"$tmp/vllm.log"
survives "watch: log" -- watch "$tmp/vllm.log" --once
pass "$runs runs in all"
finish 32
