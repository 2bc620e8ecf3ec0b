#!/bin/sh
# tests/test_cli_formats.sh - every format that the tool reads and writes: the samples, the same loads in several
# formats, round trips, and what is wrong with a file said with its place.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool moe_ep_cli.c
data=examples/data
LC_ALL=C
export LC_ALL

works() { # works NAME ARGS...: status 0, nothing on stderr
    name=$1
    shift
    "$tool" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null && [ ! -s "$tmp/err" ]
    result $? "$name" "$tmp/err"
    tr -s ' \n' '  ' <"$tmp/out" >"$tmp/squeezed" # sentences on one line
}
refuses() { # refuses NAME TEXT ARGS...: status 2, TEXT on stderr, nothing on stdout
    name=$1 text=$2
    shift 2
    "$tool" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    [ $? -eq 2 ] && [ ! -s "$tmp/out" ] && grep -qF -- "$text" "$tmp/err"
    result $? "refused: $name" "$tmp/err"
}
same() { # same NAME FILE FILE
    cmp "$2" "$3" >"$tmp/log" 2>&1
    result $? "$1" "$tmp/log"
}
has() { # has NAME TEXT FILE
    grep -qF -- "$2" "$3"
    result $? "$1" "$3"
}
shape='--devices 8 --slots 72'

# ---- the same loads in five formats give the same plan ----
# shellcheck disable=SC2086
for input in prose_topk_ids.npy sglang_counts.json trtllm_statistic expert_loads.npy; do
    works "place $input" place $data/$input $shape --json
    cp "$tmp/out" "$tmp/plan_$input"
    same "the plan of $input is that of the ids" "$tmp/plan_prose_topk_ids.npy" "$tmp/plan_$input"
done
# shellcheck disable=SC2086
works "place from a CSV" place $data/expert_counts.csv --only prose $shape --json
same "the plan of expert_counts.csv is that of the ids" "$tmp/plan_prose_topk_ids.npy" "$tmp/out"
works "report on JSON lines" report $data/routing.jsonl --devices 8
has "its layers and choices" "2 layers" "$tmp/out"
has "top-8 of 64" "64 experts, top-8" "$tmp/out"
works "one file of the statistics" report $data/trtllm_statistic/rank0.safetensors --devices 8
works "a plan worth making" report $data/trtllm_statistic --devices 8 --min-gain 0.001
has "what comes next is TensorRT-LLM's file" "load_balancer: plan.yaml" "$tmp/out"
works "the folder with a slash" report $data/trtllm_statistic/ --devices 8 --json
has "iterations are steps, layers keep their numbers" '"layer": 6' "$tmp/out"
has "the folder is the name" '"name": "trtllm_statistic"' "$tmp/out"

# ---- plans, out and in ----
for kind in json yaml csv; do
    # shellcheck disable=SC2086
    works "a plan as .$kind" place $data/trtllm_statistic $shape --out "$tmp/plan.$kind"
    works "rebalance from the .$kind" rebalance "$tmp/plan.$kind" $data/trtllm_statistic --devices 8 \
        --out "$tmp/again.$kind"
    has "nothing is left to move" "Nothing to move" "$tmp/out"
    same "and the .$kind comes back as it was" "$tmp/plan.$kind" "$tmp/again.$kind"
done
has "how TensorRT-LLM's file begins" "initial_global_assignments:" "$tmp/plan.yaml"
has "its layers by number" "  6: [" "$tmp/plan.yaml"
has "its slots" "num_slots: 72" "$tmp/plan.yaml"
has "static" "layer_updates_per_iter: 0" "$tmp/plan.yaml"
[ "$(sed -n 's/^  3: //p' "$tmp/plan.yaml")" = "$(sed -n '2s/^ //; 2s/,$//p' "$tmp/plan.json")" ]
result $? "the YAML and the JSON hold the same experts"
printf '{"logical_count": [[0,0,0,0],[4,3,2,1]]}' >"$tmp/dense.json"
works "a layer without load" place "$tmp/dense.json" --devices 2 --out "$tmp/dense.yaml" --out "$tmp/dense_plan.json"
[ "$(grep -c '^  [0-9]*: ' "$tmp/dense.yaml")" = 1 ]
result $? "TensorRT-LLM's file leaves a dense layer out" "$tmp/dense.yaml"
[ "$(grep -c '^ \[' "$tmp/dense_plan.json")" = 2 ]
result $? "SGLang's map has a row for every layer" "$tmp/dense_plan.json"
refuses "unequal slots for TensorRT-LLM" "as many slots on every device (64 or 72)" \
    place $data/sglang_counts.json --devices 8 --slots 70 --out "$tmp/uneven.yaml"
[ ! -e "$tmp/uneven.yaml" ]
result $? "and nothing is written"

# ---- a report from the placement that runs ----
works "report --current" report $data/sglang_counts.json --current $data/sglang_map.json --devices 8 --json
has "the map balances what it was made from" '"imbalance_today": 1.0' "$tmp/out"
works "report --current from TensorRT-LLM's file" report $data/sglang_counts.json \
    --current $data/trtllm_balancer.yaml --devices 8
has "says so" "today, as the map says" "$tmp/out"
awk 'BEGIN { printf "layer"; for (e = 0; e < 256; e++) printf ",%d", e
    printf "\n0"; for (e = 0; e < 256; e++) printf ",%d", 100 + e; print "" }' >"$tmp/wide.csv"
for command in report "diagnose $tmp/wide.csv"; do # the map has too few slots, and nobody gave --slots
    # shellcheck disable=SC2086
    refuses "${command%% *}: a map with too few slots is named" \
        "$data/sglang_map.json has 72 slots, fewer than the 256 experts" $command "$tmp/wide.csv" --topk 8 \
        --current $data/sglang_map.json --devices 8
    # shellcheck disable=SC2086
    refuses "${command%% *}: too few --slots" "--slots 72: fewer than the 256 experts" $command "$tmp/wide.csv" \
        --topk 8 --current $data/sglang_map.json --devices 8 --slots 72
done
works "report --current with devices from the CSV" report $data/trtllm_statistic --current "$tmp/plan.csv"
refuses "a map that does not say its devices" "--devices is needed" report $data/sglang_counts.json \
    --current $data/sglang_map.json
refuses "two placements of today" "one of them" report $data/sglang_counts.json \
    --current $data/sglang_map.json --round-robin
refuses "a map of other layers" "do not fit together" \
    report $data/routing.jsonl --current "$tmp/plan.yaml" --devices 8
printf '{"logical_count": [[3, 1]]}\n' >"$tmp/pair.json"
printf 'layer,device,slot,expert\n0,0,0,0\n0,0,1,1\n0,1,2,0\n0,1,3,-1\n' >"$tmp/gap.csv"
works "a free slot beside experts that have copies elsewhere" rebalance "$tmp/gap.csv" "$tmp/pair.json" --target 3 \
    --out "$tmp/gap.json"
has "says what it takes" "Some of these take load" "$tmp/out"
has "is filled" "[0, 1, 0, 0]" "$tmp/gap.json"
printf '{"logical_count": [[3, 1, 2, 2]]}\n' >"$tmp/one.json"
printf '{"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 3]]}\n' >"$tmp/two.json"
refuses "JSON has no layer numbers: a map of more layers" \
    "one.json has 1 (0 to 0), neither with layer numbers: they do not fit together" \
    rebalance "$tmp/two.json" "$tmp/one.json" --devices 2
works "slots that no server loads" place "$tmp/one.json" --devices 2 --slots 5 --out "$tmp/five.json"
has "are named" "will not load it: 5 slots do not divide over 2 devices; --slots 6 would" "$tmp/out"

# ---- traffic and time line of the bottleneck layer ----
compact() { tr -d ' \n' <"$tmp/out" >"$tmp/compact"; }
printf '{"logical_count": [[6, 2, 0, 0]]}' >"$tmp/two.json"
works "traffic from counts" report "$tmp/two.json" --devices 2 --slots 4 --topk 1 --tokens 8 --json
compact
has "every device sends the same" '"slowest_device":0,"waiting":' "$tmp/compact"
has "half of the rows from each to device 0" '"traffic":[[4,0],[4,0]]},"hot_layer_planned"' "$tmp/compact"
# Four tokens of one choice, two on each device; experts 0 and 1 on device 0, 2 and 3 on device 1.
printf '{"step":0,"layer":0,"ids":[[2],[0],[3],[3]]}\n' >"$tmp/four.jsonl"
works "traffic from ids" report "$tmp/four.jsonl" --devices 2 --slots 4 --tokens 4 --experts 4 --json
compact
has "counted token by token" '"traffic_counted":true' "$tmp/compact"
has "who sends what to whom" '"traffic":[[1,1],[0,2]]},"hot_layer_planned"' "$tmp/compact"

# ---- how far it is, on a terminal ----
# A clock that runs a second ahead with every look at it, so that the line is due at once.
cat >"$tmp/clock.c" <<'END'
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t)
{
    static time_t ahead;
    int status = (int)syscall(SYS_clock_gettime, id, t);
    t->tv_sec += ahead++;
    return status;
}
END
if ! $CC -O1 tests/pty.c -o "$tmp/pty" 2>"$tmp/log" ||
    ! $CC -shared -fPIC "$tmp/clock.c" -o "$tmp/clock.so" 2>"$tmp/log"
then fail "a terminal and a clock" "$tmp/log"
elif ! "$tmp/pty" "$tmp/screen" -- /bin/echo there >"$tmp/log" 2>&1; then skip "on a terminal" "there are none here"
else
    # shellcheck disable=SC2086
    works "place without a terminal" place $data/sglang_counts.json $shape
    "$tmp/pty" "$tmp/screen" -- /bin/sh -c '
        export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0"
        plan=$1 && shift && exec env LD_PRELOAD="$0" "$@" >"$plan"' \
        "$tmp/clock.so" "$tmp/plan" "$tool" place $data/sglang_counts.json $shape >"$tmp/log" 2>&1
    grep -qx 'exit 0 cooked' "$tmp/log" && cmp "$tmp/out" "$tmp/plan" >>"$tmp/log" 2>&1
    result $? "the plan on a terminal is the same" "$tmp/log"
    esc=$(printf '\033')
    sed "s/$esc/E/g" "$tmp/screen" | tr '\r' '\n' >"$tmp/lines"
    for layer in 25 50 75; do
        grep -qx "E\[Kplanning: $layer %" "$tmp/lines"
        result $? "it says that $layer % of the layers are planned" "$tmp/lines"
    done
    grep -q '^E\[Kreading: ' "$tmp/lines"
    result $? "it says how much is read" "$tmp/lines"
    [ "$(tail -n 1 "$tmp/lines")" = 'E[K' ]
    result $? "and leaves nothing behind" "$tmp/lines"
fi

# ---- what may be wrong with statistics ----
bad() { # bad NAME TEXT SED_SCRIPT: a changed copy of a good file
    sed "$3" $data/trtllm_statistic/rank0.safetensors >"$tmp/rank0.safetensors"
    refuses "$1" "$2" report "$tmp/rank0.safetensors" --devices 8
}
bad "floats as counts" "is of type F64; counts are I64 or I32" 's/I64/F64/'
bad "a tensor of another name" "is not named ITERATION_LAYER" 's/"100_3"/"100-3"/'
bad "another shape" "has 65 counts where there are 64 experts" 's/\[64\]/[65]/2'
bad "a place outside the file" "lies outside the file" 's/"data_offsets":\[0,512\]/"data_offsets":[9,521]/'
bad "no JSON in the header" ":1:3: a key in quotes expected" 's/{"100_3"/{ 100_3"/'
bad "the same tensor twice" "step 100, layer 3 was already given" 's/"100_4"/"100_3"/'
bad "a layer missing in one iteration" "step 100 has no row for layer 4" 's/"100_4"/"100_9"/'
bad "two axes" "holds the ids of every token" 's/"shape":\[64\]/"shape":[8,8]/'
head -c 9000 $data/trtllm_statistic/rank0.safetensors >"$tmp/cut.safetensors"
refuses "truncated" "outside the file" report "$tmp/cut.safetensors" --devices 8
head -c 500 $data/trtllm_statistic/rank0.safetensors >"$tmp/cut.safetensors"
refuses "truncated in the header" "is truncated" report "$tmp/cut.safetensors" --devices 8
head -c 5 $data/trtllm_statistic/rank0.safetensors >"$tmp/cut.safetensors"
refuses "a few bytes" "truncated inside the header" report "$tmp/cut.safetensors" --devices 8
mkdir "$tmp/stat"
cp $data/trtllm_statistic/rank0.safetensors "$tmp/stat/"
refuses "a folder without meta_info.json" "is a directory" report "$tmp/stat" --devices 8
meta() { # meta NAME TEXT CONTENT: a meta_info.json that is refused
    echo "$3" >"$tmp/stat/meta_info.json"
    refuses "$1" "$2" report "$tmp/stat" --devices 8
}
meta "another number of experts" "has 64 counts where there are 32 experts" \
    '{"num_experts": 32, "num_experts_per_token": 8}'
meta "no number of experts" '"num_experts" is not a whole number' '{"num_experts": "64"}'
meta "broken meta_info.json" "meta_info.json:" '{'
echo '{"num_experts": 64, "num_experts_per_token": 8}' >"$tmp/stat/meta_info.json"
rm "$tmp/stat/rank0.safetensors"
refuses "a folder without counts" "holds no loads" report "$tmp/stat" --devices 8

# ---- what may be wrong with a load balancer's file ----
yaml() { # yaml NAME TEXT CONTENT
    printf '%s\n' "$3" >"$tmp/bad.yaml"
    refuses "$1" "$2" rebalance "$tmp/bad.yaml" $data/trtllm_statistic --devices 8
}
yaml "no YAML" "bad.yaml:" 'initial_global_assignments: {3: [1, 2'
yaml "nothing of it" "has no initial_global_assignments" 'num_slots: 8'
yaml "an empty file" "has no initial_global_assignments" ''
yaml "a list instead of layers" "is not a list of slots per layer" 'initial_global_assignments: [1, 2]'
yaml "a word for an expert" "bad.yaml:2: expert x is not a whole number" 'initial_global_assignments:
  3: [1, x]'
yaml "a negative expert" "expert -1 is not a whole number" 'initial_global_assignments: {3: [0, -1]}'
yaml "rows of different length" "layer 4 has 1 slots where the first layer has 2" \
    'initial_global_assignments: {3: [0, 1], 4: [0]}'
yaml "a layer twice" "layer 3 was already given" 'initial_global_assignments: {3: [0, 1], 3: [0, 1]}'
yaml "num_slots that do not fit" "num_slots is 9, but the layers have 2 slots" 'initial_global_assignments: {3: [0, 1]}
num_slots: 9'
yaml "other layers" "they do not fit together" 'initial_global_assignments: {9: [0, 1, 2, 3, 4, 5, 6, 7]}'
sed 's/^num_slots/other: {a: [1, {b: 2}]}\nnum_slots/' $data/trtllm_balancer.yaml >"$tmp/more.yaml"
works "keys that do not matter" rebalance "$tmp/more.yaml" $data/sglang_counts.json --devices 8

# ---- layers of a map and of a recording ----
# Two layers of 8 rows on 2 devices.  The map's rows P = 0 1 | 2 3 and Q = 0 3 | 1 2 give the loads A = 4 3 1 0 and
# B = 4 0 1 3 seven rows on one device where A meets P and B meets Q, max/mean 7/4, and four on each where they cross.
map_of() { # map_of "NUMBER LETTER ...": layer numbers and rows as a CSV map
    echo "$1" | awk 'BEGIN { print "layer,device,slot,expert"; row["P"] = "0123"; row["Q"] = "0312" }
        { for (i = 1; i < NF; i += 2) for (s = 0; s < 4; s++)
            print $i "," int(s / 2) "," s "," substr(row[$(i + 1)], s + 1, 1) }'
}
loads_of() { printf 'layer,0,1,2,3\n%d,4,3,1,0\n%d,4,0,1,3\n' "$1" "$2"; }
# today MAP RECORDING: today's max/mean in report (input and both layers), diagnose, rebalance and traffic: six values,
# how often which; what is taken for granted about layers in $tmp/said, a line for each command
today() {
    "$tool" report "$2" --current "$1" --devices 2 --slots 4 --topk 1 --json >"$tmp/r.json" 2>&1 </dev/null
    "$tool" diagnose "$2" --current "$1" --devices 2 --slots 4 --topk 1 --json >"$tmp/d.json" 2>&1 </dev/null
    "$tool" rebalance "$1" "$2" --devices 2 --json >"$tmp/b.json" 2>&1 </dev/null
    "$tool" traffic "$2" "$1" --devices 2 --matrix dispatch >"$tmp/t.csv" 2>"$tmp/t.json" </dev/null
    {
        sed -n 's/.*"imbalance_today": *\([0-9.]*\).*/\1/p' "$tmp/r.json"
        sed -n '/"imbalance_before"/{s/.*: *\([0-9.]*\).*/\1/p;q;}' "$tmp/d.json"
        sed -n '/"today": {/,/}/s/.*"imbalance_worst": *\([0-9.]*\).*/\1/p' "$tmp/b.json"
        awk -F, '{ to[0] += $1; to[1] += $2 }
            END { if (NR > 0) print 2 * (to[0] > to[1] ? to[0] : to[1]) / (to[0] + to[1]) }' "$tmp/t.csv"
    } | awk '{ print $1 + 0 }' | sort | uniq -c | awk '{ print $1 " x " $2 }'
    for one in r d b t; do awk '{ gsub(/\\n/, "\n"); print }' "$tmp/$one.json"; done |
        grep 'stand for\|taken for those\|fit together' >"$tmp/said"
}
# meets NAME WANTED SENTENCE MAP RECORDING: SENTENCE in each of the four, or in none when it is empty
meets() {
    got=$(today "$4" "$5")
    n=$(wc -l <"$tmp/said")
    if [ -z "$3" ]; then [ "$n" -eq 0 ]; else [ "$n" -eq 4 ] && [ "$(grep -cF -- "$3" "$tmp/said")" -eq 4 ]; fi &&
        [ "$got" = "${2:+6 x $2}" ]
    result $? "$1 (max/mean $got, $n sentences)" "$tmp/said"
}
loads_of 3 4 >"$tmp/l34.csv"; loads_of 100 101 >"$tmp/l100.csv"; loads_of 1 2 >"$tmp/l12.csv"
printf '4,3,1,0\n4,0,1,3\n' >"$tmp/plain.csv"
printf '[[4, 3, 1, 0], [4, 0, 1, 3]]\n' >"$tmp/list.json"
map_of "3 P 4 Q" >"$tmp/m34.csv"; map_of "4 P 3 Q" >"$tmp/m43.csv"; map_of "0 P 1 Q" >"$tmp/m01.csv"
map_of "1 P 2 Q" >"$tmp/m12.csv"; map_of "0 P 1 Q 2 P" >"$tmp/m012.csv"; map_of "0 P 1 Q 7 P" >"$tmp/m017.csv"
echo '{"physical_to_logical_map": [[0, 1, 2, 3], [0, 3, 1, 2]]}' >"$tmp/m.json"
meets "the same numbers" 1.75 "" "$tmp/m34.csv" "$tmp/l34.csv"
meets "the same numbers, in another order of the file" 1 "" "$tmp/m43.csv" "$tmp/l34.csv"
meets "numbers of a larger map" 1 "" "$tmp/m012.csv" "$tmp/l12.csv"
meets "no number in common: in order" 1.75 "the map's layers 0-1 stand for the recording's 100-101, in order." \
    "$tmp/m01.csv" "$tmp/l100.csv"
meets "a map without numbers" 1.75 \
    "The map has no layer numbers: its layers stand for the recording's 100-101, in order." \
    "$tmp/m.json" "$tmp/l100.csv"
for input in list.json plain.csv; do
    meets "a recording without numbers: $input" 1.75 \
        "The recording has no layer numbers: its layers stand for the map's 3-4, in order." \
        "$tmp/m34.csv" "$tmp/$input"
    meets "nor are places numbers: $input" 1.75 \
        "The recording has no layer numbers: its layers stand for the map's 1-2, in order." \
        "$tmp/m12.csv" "$tmp/$input"
    meets "unless the map is larger: $input" 1.75 "counted from 0, its layers are taken for those of the map." \
        "$tmp/m012.csv" "$tmp/$input"
    meets "neither has numbers: $input" 1.75 "" "$tmp/m.json" "$tmp/$input"
done
some="m01.csv has layers 0-1, $tmp/l12.csv has layers 1-2, and of these both have only 1: they do not fit together"
meets "some numbers in common: refused" "" "$some" "$tmp/m01.csv" "$tmp/l12.csv"
some="m017.csv has layers 0-1, 7, $tmp/l12.csv has layers 1-2, and of these both have only 1: they do not fit together"
meets "also of a larger map" "" "$some" "$tmp/m017.csv" "$tmp/l12.csv"
refuses "some numbers in common: status 2" "both have only 1" rebalance "$tmp/m01.csv" "$tmp/l12.csv"
refuses "report, too" "both have only 1" report "$tmp/l12.csv" --current "$tmp/m01.csv" --topk 1
refuses "more layers than the map, no number in common" "they do not fit together" \
    rebalance "$tmp/m012.csv" "$tmp/l100.csv"

# the bundled pair of TensorRT-LLM's files
# shellcheck disable=SC2086
works "the plan of the statistics" place $data/trtllm_statistic $shape --out "$tmp/plan.yaml"
same "is the bundled file, layer numbers and all" $data/trtllm_balancer.yaml "$tmp/plan.yaml"
works "and fits them" report $data/trtllm_statistic --current $data/trtllm_balancer.yaml --devices 8 --json
[ "$(grep -c 'stand for' "$tmp/out")" = 0 ]
result $? "by number" "$tmp/out"
works "a map without numbers becomes TensorRT-LLM's file" rebalance $data/sglang_map.json $data/trtllm_statistic \
    --devices 8 --out "$tmp/numbers.yaml"
[ "$(sed -n 's/^  \([0-9]*\): .*/\1/p' "$tmp/numbers.yaml" | tr '\n' ' ')" = "3 4 5 6 " ]
result $? "with the numbers of the recording" "$tmp/numbers.yaml"
works "arrays have no layer numbers" report $data/expert_loads.npy --current $data/trtllm_balancer.yaml --devices 8
has "which is said" "The recording has no layer numbers: its layers stand for the map's 3-6, in order." "$tmp/squeezed"

# ---- a model that is not the recording's ----
"$tool" presets >"$tmp/presets"
preset() { # preset NAME: number of layers, experts and choices
    sed -n "s/^  $1  *\([0-9]*\) layers, *\([0-9]*\) experts, top-\([0-9]*\),.*/\1 \2 \3/p" "$tmp/presets"
}
preset deepseek-v3 >"$tmp/numbers"
read -r layers experts choices <"$tmp/numbers"
other="Matrix shapes of deepseek-v3 ($experts experts, top-$choices) for a recording of 64 experts, top-8:"
few="cover the 4 recorded layers alone; deepseek-v3 has $layers with experts."
for command in report diagnose copies "rebalance $data/sglang_map.json"; do
    # shellcheck disable=SC2086
    works "$command --model" $command $data/trtllm_statistic --devices 8 --model deepseek-v3
    has "names it and the recording" "$other" "$tmp/squeezed"
    case $command in report | diagnose) has "and what times cover" "$few" "$tmp/squeezed" ;; esac
    # shellcheck disable=SC2086
    works "$command --model, as JSON" $command $data/trtllm_statistic --devices 8 --model deepseek-v3 --json
    grep '"assumed"' "$tmp/out" | grep -qF "$other"
    result $? "has it among what is assumed" "$tmp/out"
    case $command in report | diagnose) has "and what times cover" "$few" "$tmp/out" ;; esac
    # shellcheck disable=SC2086
    works "$command --model, its own" $command $data/trtllm_statistic --devices 8 --model olmoe-1b-7b
    grep -q 'Matrix shapes' "$tmp/out"
    [ $? -ne 0 ]
    result $? "says nothing" "$tmp/out"
done
"$tool" traffic $data/prose_topk_ids.npy --devices 8 --model deepseek-v3 >"$tmp/out" 2>"$tmp/err"
has "traffic --model names it and the recording" "$other" "$tmp/err"
"$tool" traffic $data/prose_topk_ids.npy --devices 8 --model deepseek-v3 --json >"$tmp/out" 2>"$tmp/err"
has "in JSON, too" "$other" "$tmp/out"
preset deepseek-v2-lite >"$tmp/numbers"
read -r layers experts choices <"$tmp/numbers"
[ "$experts $choices" = "64 6" ]
result $? "a preset of as many experts and other choices" "$tmp/numbers"
works "is another model, too" copies $data/prose_topk_ids.npy --devices 8 --model deepseek-v2-lite
has "which is said" "(64 experts, top-6) for a recording of 64 experts, top-8:" "$tmp/squeezed"
works "where the choices are not known" copies $data/sglang_counts.json --devices 8 --model deepseek-v2-lite
grep -q 'Matrix shapes' "$tmp/out"
[ $? -ne 0 ]
result $? "they are not asked for" "$tmp/out"
works "nor named" copies $data/sglang_counts.json --devices 8 --model deepseek-v3
has "beside the experts" "deepseek-v3 (256 experts) for a recording of 64 experts:" "$tmp/squeezed"
preset olmoe-1b-7b >"$tmp/numbers"
read -r layers experts choices <"$tmp/numbers"
for n in $((layers - 1)) "$layers"; do
    awk -v L="$n" -v E="$experts" 'BEGIN {
        for (l = 0; l < L; l++) for (e = 0; e < E; e++) printf "%d%s", 10 + (e * 7 + l) % 5, e + 1 < E ? "," : "\n" }' \
        >"$tmp/layers.csv"
    works "$n layers" report "$tmp/layers.csv" --devices 8 --topk "$choices"
    found=$(grep -o "cover the $n recorded layers alone; olmoe-1b-7b has $layers with experts." "$tmp/squeezed" | wc -l)
    [ "$found" -eq $((n < layers)) ]
    result $? "times cover the recorded layers: said $found times" "$tmp/squeezed"
done
# What is given for a whole step counts by the layers that were recorded: one says what all of the same loads say.
whole=$layers
for n in 1 "$whole"; do
    awk -v L="$n" -v E="$experts" 'BEGIN {
        printf "step,layer"
        for (e = 0; e < E; e++) printf ",%d", e
        print ""
        for (s = 0; s < 4; s++) for (l = 0; l < L; l++) {
            printf "%d,%d", s, l
            for (e = 0; e < E; e++) printf ",%d", 4000 / (1 + e)
            print "" } }' >"$tmp/layers.csv"
    for command in report diagnose; do
        pause=
        [ $command = report ] || pause="--pause-ms 40"
        # shellcheck disable=SC2086
        works "$command of $n layers" $command "$tmp/layers.csv" --devices 8 --topk "$choices" --other-ms 3 $pause
        grep -c "Of the 3.00 ms of --other-ms, which are of a whole step, the recorded layers' share counts" \
            "$tmp/squeezed" >"$tmp/said"
        [ "$(cat "$tmp/said")" = $((n < whole)) ]
        result $? "--other-ms is of a whole step: said $(cat "$tmp/said") times" "$tmp/squeezed"
        [ $command = report ] || {
            grep -c "Of the pause, which is for all $whole layers, the share of the $n recorded counts" \
                "$tmp/squeezed" >"$tmp/said"
            [ "$(cat "$tmp/said")" = $((n < whole)) ]
            result $? "the pause is for all layers: said $(cat "$tmp/said") times" "$tmp/squeezed"
        }
        # shellcheck disable=SC2086
        works "$command of $n layers, as JSON" $command "$tmp/layers.csv" --devices 8 --topk "$choices" --other-ms 3 \
            $pause --json
        grep -E '"(gain|break_even_steps)"' "$tmp/out" | sed 's/\(\.[0-9]\{6\}\)[0-9]*/\1/' >"$tmp/$command.$n"
    done
done
for command in report diagnose; do
    [ "$(wc -l <"$tmp/$command.1")" -ge 2 ] && cmp -s "$tmp/$command.1" "$tmp/$command.$whole"
    result $? "$command: one of $whole layers gains and pays back as all of them" "$tmp/$command.1"
done
works "shapes that only stand in" report "$tmp/pair.json" --devices 2 --topk 1
grep -q 'recorded layer' "$tmp/squeezed"
[ $? -ne 0 ]
result $? "have no layers" "$tmp/squeezed"

# ---- what is taken for granted is the same in the text and in JSON ----
config=$data/cluster/single_node_moe_single_instance.json
for command in "report $data/prose_topk_ids.npy" "diagnose $data/prose_topk_ids.npy" "copies $data/prose_topk_ids.npy" \
    "rebalance $data/sglang_map.json $data/sglang_counts.json" "place $data/sglang_counts.json --dead 1" \
    "sweep --model mixtral-8x7b --machine h100 --tokens 64 --ep 8" "simulate --config $config --requests 2"; do
    case $command in simulate*) devices= ;; *) devices='--devices 8' ;; esac
    # shellcheck disable=SC2086
    "$tool" $command $devices >"$tmp/out" 2>"$tmp/err" </dev/null
    awk '/^$/ { on = 0 } on { sub(/^ *\*/, "*"); print } /^Taken for granted/ { on = 1 }' "$tmp/out" |
        tr -s ' \n' '  ' >"$tmp/want"
    # shellcheck disable=SC2086
    "$tool" $command $devices --format json >"$tmp/out" 2>"$tmp/err" </dev/null
    sed -n 's/^ *"assumed": "\(.*\)",*$/\1/p' "$tmp/out" |
        awk '{ gsub(/\\n/, " * "); gsub(/\\"/, "\""); if ($0 != "") print "* " $0 }' | tr -s ' \n' '  ' >"$tmp/found"
    grep -q '^ *"assumed": ' "$tmp/out" && cmp -s "$tmp/want" "$tmp/found"
    result $? "${command%% *}: $(wc -w <"$tmp/want") words" "$tmp/found"
done

# ---- other files ----
refuses "a server's log as loads" "moe-ep watch" report $data/vllm.log --devices 8
printf '{"logical_count": [[], [1, 2]]}' >"$tmp/empty.json"
refuses "a layer of no experts" "2 loads where the rows before have 0" report "$tmp/empty.json" --devices 2
printf '{"logical_count": [[4.5, 3, 2, 1]]}' >"$tmp/means.json"
works "loads that are no whole numbers (means)" report "$tmp/means.json" --devices 2
refuses "ids that are no whole numbers" "ids[0][0] is no expert id" report \
    "$(printf '{"layer":0,"ids":[[1.5]]}\n' >"$tmp/f.jsonl"; echo "$tmp/f.jsonl")"

# ---- dumps of any size ----
# rss COMMAND...: the most memory it held at a time, in kB
cat >"$tmp/rss.c" <<'END'
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    struct rusage use;
    int status = 1;
    pid_t pid = fork();
    if (pid == 0) {
        if (argc < 2 || !freopen("/dev/null", "w", stdout)) _exit(126);
        execv(argv[1], argv + 1);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) return 1;
    if (getrusage(RUSAGE_CHILDREN, &use) != 0) return 1;
    printf("%ld\n", use.ru_maxrss);
    return 0;
}
END
# dump STEPS: two layers of 256 experts
dump() {
    awk -v steps="$1" 'BEGIN {
        for (l = 0; l < 7; l++) {
            row[l] = "["
            for (e = 0; e < 256; e++) row[l] = row[l] (e ? ", " : "") 1000 + (e * 37 + l * 11) % 991
            row[l] = row[l] "]"
        }
        printf "{\"rank\": 0, \"logical_count\": ["
        for (s = 0; s < steps; s++) printf "%s[%s, %s]", s ? ", " : "", row[s % 7], row[(s + 3) % 7]
        print "], \"note\": {\"more\": [1, {\"a\": [\"]\"]}]}}"
    }'
}
# ids STEPS, counts STEPS: two layers of 64 experts, 8 tokens a step, top-2; a line per layer, a line per expert
ids() {
    awk -v steps="$1" 'BEGIN {
        for (s = 0; s < steps; s++) for (l = 0; l < 2; l++) {
            printf "{\"step\": %d, \"layer\": %d, \"ids\": [", s, l
            for (t = 0; t < 8; t++) printf "%s[%d, %d]", t ? ", " : "", (s * 7 + t * 5 + l) % 64, (s * 11 + t * 3) % 64
            print "]}"
        }
    }'
}
counts() {
    awk -v steps="$1" 'BEGIN {
        print "step,layer,expert,count"
        for (s = 0; s < steps; s++) for (l = 0; l < 2; l++)
            for (e = 0; e < 64; e++) printf "%d,%d,%d,%d\n", s, l, e, (s * 7 + e * 5 + l) % 97
    }'
}
if $CC "$tmp/rss.c" -o "$tmp/rss" 2>"$tmp/log"; then
    dump 600 >"$tmp/small.json" && dump 6000 >"$tmp/large.json" # 1.8 MB and 18 MB
    # a sanitizer's store of freed blocks would be counted, too
    ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}quarantine_size_mb=0:thread_local_quarantine_size_kb=0
    export ASAN_OPTIONS
    flat() { # flat NAME SMALL LARGE: not more memory for the larger file
        small=$("$tmp/rss" "$tool" place "$2" --devices 8) || small=0
        large=$("$tmp/rss" "$tool" place "$3" --devices 8) || large=0
        echo "$small kB and $large kB" >"$tmp/log"
        [ "$small" -gt 0 ] && [ "$large" -gt 0 ] && [ $((large - small)) -lt "$4" ]
        result $? "$1, not more memory" "$tmp/log"
    }
    flat "ten times the dump" "$tmp/small.json" "$tmp/large.json" 6000
    ids 2000 >"$tmp/small.jsonl" && ids 60000 >"$tmp/large.jsonl" # 0.5 MB and 14 MB
    flat "thirty times the steps as JSON lines of ids" "$tmp/small.jsonl" "$tmp/large.jsonl" 1500
    counts 600 >"$tmp/small.csv" && counts 6000 >"$tmp/large.csv" # 0.9 MB and 10 MB
    flat "ten times the steps with a count per line" "$tmp/small.csv" "$tmp/large.csv" 3000
else
    fail "a program that measures memory" "$tmp/log"
fi
# ---- lines in any order ----
ids 40 >"$tmp/order.jsonl"
awk '{ print NR % 7, NR % 3, NR, $0 }' "$tmp/order.jsonl" | sort -k1,1n -k2,2n -k3,3nr |
    cut -d' ' -f4- >"$tmp/mixed.jsonl"
! cmp -s "$tmp/order.jsonl" "$tmp/mixed.jsonl"
result $? "the lines are mixed"
counts 40 >"$tmp/order.csv"
{ head -n 1 "$tmp/order.csv"; sed 1d "$tmp/order.csv" | sort -t, -k3,3nr -k2,2n -k1,1nr; } >"$tmp/mixed.csv"
for kind in jsonl csv; do
    for form in order mixed; do
        mkdir -p "$tmp/$form"
        cp "$tmp/$form.$kind" "$tmp/$form/trace.$kind"
        (cd "$tmp/$form" && "$tool" report trace.$kind --devices 8 --json >../$form.out 2>&1)
    done
    same "the lines of a .$kind may come in any order" "$tmp/order.out" "$tmp/mixed.out"
done
{ cat "$tmp/order.jsonl"; sed -n 5p "$tmp/order.jsonl"; } >"$tmp/twice.jsonl"
sed 's/\[\[[0-9]*, /[[-1, /' "$tmp/order.jsonl" >"$tmp/none.jsonl"
works "choices of no expert" report "$tmp/none.jsonl" --devices 8 --json
has "are counted" '"skipped": 80' "$tmp/out"
refuses "a line of ids twice" "twice.jsonl:81: layer 0 was already given on line 5" \
    report "$tmp/twice.jsonl" --devices 8
sed '7d' "$tmp/order.jsonl" >"$tmp/gap.jsonl"
refuses "a layer missing in a step" "step 3 has no row for layer 0" report "$tmp/gap.jsonl" --devices 8
sed '8s/\[\[[0-9]*, [0-9]*\], /[/' "$tmp/order.jsonl" >"$tmp/uneven.jsonl"
refuses "other tokens in one layer" "uneven.jsonl:8: 7 tokens where another layer of step 3 has 8" \
    report "$tmp/uneven.jsonl" --devices 8
refuses "an id beyond --experts" "order.jsonl:9: expert id 62, but there are 60 experts" \
    report "$tmp/order.jsonl" --devices 8 --experts 60
{ counts 1200; echo 0,0,64,5; } >"$tmp/late.csv"
refuses "a count that comes far behind its row" "sort the file by step and layer" report "$tmp/late.csv" --devices 8

works "report says which steps it looks at" report "$tmp/small.json" --devices 8
has "in words" "first 512 of its 600 steps" "$tmp/out"
wrong() { # wrong NAME TEXT CONTENT: a JSON file that is refused
    printf '%b' "$3" >"$tmp/tail.json"
    refuses "$1" "$2" report "$tmp/tail.json" --devices 2
}
wrong "a fault behind the counts" "tail.json:1:45: ',' expected" '{"logical_count": [[1, 2], [3, 4]], "x": [1 2]}'
wrong "a second value" "tail.json:1:37: end of file expected" '{"logical_count": [[1, 2], [3, 4]]} {}'
wrong "a number among lists" "logical_count[1] is not a list of numbers" '{"logical_count": [[1, 2], 3]}'
wrong "a layer among steps" "logical_count[1] is not a list of layers" '{"logical_count": [[[1, 2]], [3, 4]]}'
wrong "no JSON number" "tail.json:3:" '{"logical_count":\n [[1, 2],\n  [3, 04]]}'
printf '%080d' 0 | sed 's/0/[/g; s/^/{"x": /' >"$tmp/deep.json"
refuses "nested too deep" "nested too deep" report "$tmp/deep.json" --devices 2
printf '{"counts": [[1, 2], [3, 4]], "logical_count": [[4, 3], [2, 1]]}' >"$tmp/both.json"
works "logical_count goes before counts" report "$tmp/both.json" --devices 2 --json

# ---- kernels ----
seconds() { # seconds ARGS...: the predicted step
    "$tool" report $data/sglang_counts.json --devices 8 --tokens 4000 --json "$@" 2>"$tmp/err" |
        sed -n '/"no_copies"/,/"before_s"/s/.*"before_s": \([0-9.e-]*\).*/\1/p'
}
[ -n "$(seconds)" ] && [ "$(seconds)" = "$(seconds --kernels auto)" ] &&
    [ "$(seconds)" = "$(seconds --kernels low-latency)" ] && [ "$(seconds)" != "$(seconds --kernels normal)" ]
result $? "500 tokens per device are low-latency unless --kernels says normal" "$tmp/err"
works "report --kernels" report $data/sglang_counts.json --devices 8 --tokens 4000 --kernels normal
has "the report says so" "normal kernels at every batch, as --kernels says" "$tmp/squeezed"
works "report without" report $data/sglang_counts.json --devices 8 --tokens 4000
has "auto says which" "here low-latency; --kernels changes it" "$tmp/squeezed"
works "diagnose --kernels" diagnose $data/sglang_counts.json --devices 8 --tokens 4000 --kernels normal --json
has "diagnose names them" '"kernels": "normal"' "$tmp/out"
for kernels in normal low-latency; do
    works "sweep --kernels $kernels" sweep --model deepseek-v3 --machine h200 --nodes 2 --tokens 512 \
        --kernels $kernels --layers 1 --ep 16 --redundant 0 --overlap none --json
    cp "$tmp/out" "$tmp/sweep_$kernels"
done
! cmp -s "$tmp/sweep_normal" "$tmp/sweep_low-latency"
result $? "sweep goes by them"
refuses "other kernels" "auto, normal or low-latency" report $data/sglang_counts.json --kernels fast

# ---- nodes: one default for all commands ----
for command in place copies report diagnose "rebalance --target 1.3"; do
    # shellcheck disable=SC2086
    works "$command on 16 devices" $command $data/sglang_counts.json --devices 16 --json
    [ "$command" = place ] || { grep -q '"nodes": 2' "$tmp/out" || grep -q '2 nodes of 8 devices' "$tmp/out"; }
    result $? "$command takes two nodes of 8" "$tmp/out"
    # shellcheck disable=SC2086
    refuses "$command on nodes of unequal size" "not a whole number of nodes of 8" \
        $command $data/sglang_counts.json --devices 12
    # shellcheck disable=SC2086
    refuses "$command on nodes that do not divide the devices" "--nodes 3: 16 devices do not divide over them" \
        $command $data/sglang_counts.json --devices 16 --nodes 3
    # shellcheck disable=SC2086
    works "$command, three nodes of four" $command $data/sglang_counts.json --devices 12 --nodes 3
done
works "place says its nodes" place $data/sglang_counts.json --devices 16 --format json
has "two" '"nodes": 2' "$tmp/out"
works "place on a machine of larger nodes" place $data/sglang_counts.json --devices 36 --machine gb200 --format json
has "one" '"nodes": 1' "$tmp/out"
refuses "traffic on nodes of unequal size" "not a whole number of nodes of 8" \
    traffic $data/sglang_counts.json --devices 12
"$tool" traffic $data/sglang_counts.json --devices 16 >/dev/null 2>"$tmp/err"
has "traffic takes two nodes of 8" "2 nodes of 8 devices" "$tmp/err"
refuses "sweep on nodes of unequal size" "not a whole number of nodes of 8" \
    sweep --model deepseek-v3 --machine h200 --devices 12
refuses "sweep on fewer nodes than devices" "a node of h200 has 8" \
    sweep --model deepseek-v3 --machine h200 --devices 32 --nodes 2
for command in place diagnose; do
    refuses "$command: groups that the nodes do not divide" \
        "1 group of experts does not divide over 2 nodes; --groups says" \
        $command $data/sglang_counts.json --devices 16 --slots 64 --policy eplb-hierarchical
done
for nodes in '' '--nodes 2' '--nodes 1'; do
    # shellcheck disable=SC2086
    works "EPLB with groups $nodes" place $data/sglang_counts.json --devices 16 --slots 96 --groups 8 --policy eplb \
        --json $nodes
    cp "$tmp/out" "$tmp/eplb$(echo "$nodes" | tr -dc 0-9)"
done
same "EPLB is hierarchical over two nodes of 8" "$tmp/eplb" "$tmp/eplb2"
! cmp -s "$tmp/eplb" "$tmp/eplb1"
result $? "on one node the plan is another"
# One meaning of eplb: where the groups divide over the nodes the hierarchical plan, else the global one.
figure() { grep -m 1 "\"$1\": " "$tmp/out" | tr -dc 0-9.; } # figure KEY: the first of its numbers in JSON
for groups in '' '--groups 8' '--groups 1'; do
    here=global
    [ "$groups" != '--groups 8' ] || here=hierarchical
    for policy in eplb eplb-$here; do
        # shellcheck disable=SC2086
        works "diagnose --policy $policy $groups" diagnose $data/sglang_counts.json $data/sglang_counts.json \
            --devices 16 --slots 96 --policy $policy $groups --json
        cp "$tmp/out" "$tmp/$policy.json"
    done
    grep -q "\"policy\": \"EPLB, $here\"" "$tmp/eplb.json"
    result $? "diagnose: eplb is $here $groups" "$tmp/eplb.json"
    same "diagnose: with the plan of that name" "$tmp/eplb.json" "$tmp/eplb-$here.json"
    # shellcheck disable=SC2086
    works "place --policy eplb $groups" place $data/sglang_counts.json --devices 16 --slots 96 --policy eplb $groups
    has "place: eplb is $here" "EPLB, $here: $here: " "$tmp/out"
    [ -n "$groups" ] || has "place: because there are no groups" "global: no groups were given" "$tmp/out"
    # shellcheck disable=SC2086
    works "report $groups" report $data/sglang_counts.json --devices 16 --slots 96 $groups --json
    sed -n '/"strategies"/,/\]/p' "$tmp/out" | grep -A 6 '"name": "EPLB' >"$tmp/bar.$here"
    case $here in
    global) has "report: $here EPLB" '"EPLB, 32 copies"' "$tmp/bar.$here" ;;
    *) has "report: $here EPLB" '"EPLB by nodes, 32 copies"' "$tmp/bar.$here" ;;
    esac
    bar=$(sed -n 's/.*"imbalance": \([0-9.]*\).*/\1/p' "$tmp/bar.$here")
    cp "$tmp/eplb.json" "$tmp/out"
    after=$(figure imbalance_after)
    awk -v a="$bar" -v b="$after" 'BEGIN { d = a - b; exit !(a > 1 && d * d < 1e-12) }'
    result $? "report and diagnose give eplb one figure: $bar, $after"
done
refuses "diagnose: groups that the nodes do not divide" "1 group of experts does not divide over 2 nodes" \
    diagnose $data/sglang_counts.json $data/sglang_counts.json --devices 16 --slots 64 --policy eplb-hierarchical

# ---- sentences that agree ----
works "a plan from the prose" place $data/sglang_counts.json $shape --out "$tmp/runs.json"
works "report on what the plan was made from" report $data/sglang_counts.json --current "$tmp/runs.json" $shape
has "the plan runs already" "it is the plan that these loads give" "$tmp/out"
works "report on other text" report $data/expert_counts.csv --current "$tmp/runs.json" $shape
has "the plan that runs does not carry over" "The plan made on prose is what runs; it does not carry over" "$tmp/out"
works "rebalance within the target" rebalance "$tmp/runs.json" $data/sglang_counts.json --devices 8
has "says which" "Nothing to move: max/mean is 1.000 in the worst layer, within the 1.05 asked for" "$tmp/squeezed"
works "rebalance that cannot" rebalance $data/sglang_counts.json --devices 8 --target 1 --layer-moves 1 --moves 1
! grep -qF "Nothing to move" "$tmp/out"
result $? "a missed target is not nothing to move" "$tmp/out"

# ---- marks of an axis ----
cat >"$tmp/axis.c" <<'END'
#include "chart.h"
#include <stdlib.h>
int main(int argc, char **argv)
{
    double x[2] = {1, 2}, y[2];
    chart_series series;
    chart_lines c;
    if (argc < 3) return 2;
    y[0] = atof(argv[1]);
    y[1] = atof(argv[2]);
    memset(&series, 0, sizeof series);
    memset(&c, 0, sizeof c);
    series.n = 2;
    series.x = x;
    series.y = y;
    c.id = c.title = c.description = c.x_title = c.y_title = "";
    c.n = c.linear_x = c.linear_y = 1;
    c.series = &series;
    chart_svg_lines(stdout, &c, 400, 200);
    return 0;
}
END
if $CC -std=gnu99 -I. -Iexamples "$tmp/axis.c" -o "$tmp/axis" -lm 2>"$tmp/log"; then
    for ends in '0 0' '7 7' '123.4 123.4' '123.4 123.9' '1234.5 1234.5' '99999 99999' '0.0012 0.0012' \
        '999.7 999.7' '1 3'; do
        # shellcheck disable=SC2086
        "$tmp/axis" $ends | tr '<' '\n' | sed -n 's/^text class="s e"[^>]*>//p' >"$tmp/marks"
        [ "$(wc -l <"$tmp/marks")" -ge 2 ] && [ -z "$(sort "$tmp/marks" | uniq -d)" ]
        result $? "a line from ${ends% *} to ${ends#* }: no two marks of its axis read alike" "$tmp/marks"
    done
else fail "a program that draws a line" "$tmp/log"; fi

# ---- steps as recorded: the same routing as ids and as counts ----
# ids in $tmp/ids.jsonl, counts in $tmp/counts.jsonl; printed: max/mean of four devices over the second half of the
# first 512 steps that hold tokens, what the busiest devices of all layers have over what the mean ones have.  even: 32
# tokens a step, all on one device, the next one in every step.
routing() { # routing STEPS LAYERS even|uneven
    awk -v S="$1" -v L="$2" -v uneven="$3" -v ids="$tmp/ids.jsonl" -v counts="$tmp/counts.jsonl" 'BEGIN {
        srand(S + L); E = 16; uneven = uneven == "uneven"
        for (s = 0; s < S; s++) {
            T = uneven ? int(40 * rand()) : 32
            for (l = 0; l < L; l++) {
                for (e = 0; e < E; e++) n[e] = d[e] = 0
                printf "{\"step\": %d, \"layer\": %d, \"ids\": [", s, l >ids
                for (t = 0; t < T; t++) {
                    a = uneven ? int(E * rand() * rand()) : 4 * (s % 4) + t % 4
                    b = uneven ? (a + 1 + int(3 * rand())) % E : 4 * (s % 4) + (a + 1) % 4
                    printf "%s[%d, %d]", t ? ", " : "", a, b >ids
                    n[a]++; n[b]++
                }
                print "]}" >ids
                printf "{\"step\": %d, \"layer\": %d, \"counts\": [", s, l >counts
                for (e = top = 0; e < E; e++) {
                    printf "%s%d", e ? ", " : "", n[e] >counts
                    d[int(e / 4)] += n[e]
                    if (d[int(e / 4)] > top) top = d[int(e / 4)]
                }
                print "]}" >counts
                most[full + 0] += top; of[full + 0] += 2 * T
            }
            full += T > 0
        }
        if (full > 512) full = 512
        for (s = int(full / 2); s < full; s++) { tops += most[s]; rows += of[s] }
        printf "%.6f\n", tops / (rows / 4)
    }'
}
before() { # before FILE: max/mean today
    awk '/"imbalance_before"/ { printf "%.6f\n", $2; exit }' "$1"
}
what_counts() { # the lines of a JSON answer that must not depend on how the routing is written; other batches may
    sed '/"what_if": \[/,/^ *\]/d' "$1" |
        grep -E '"(verdict|reason|tokens_per|steps"|imbalance|gain|improved|moves|break_even|[a-z]*_s")'
}
as='--devices 4 --experts 16 --topk 2'
for case in '40 1 even' '40 3 uneven' '9 2 uneven' '600 1 uneven'; do
    # shellcheck disable=SC2086
    want=$(routing $case)
    for command in report diagnose; do
        # shellcheck disable=SC2086
        works "$command: $case steps as ids" $command "$tmp/ids.jsonl" $as --json
        cp "$tmp/out" "$tmp/of_ids"
        # shellcheck disable=SC2086
        works "$command: $case steps as counts" $command "$tmp/counts.jsonl" $as --json
        [ "$(before "$tmp/of_ids")" = "$want" ] && [ "$(before "$tmp/out")" = "$want" ]
        result $? "$command: max/mean of both as counted by hand, $want" "$tmp/of_ids"
        what_counts "$tmp/of_ids" >"$tmp/a" && what_counts "$tmp/out" >"$tmp/b" && [ "$(wc -l <"$tmp/a")" -gt 10 ]
        result $? "$command: there is something to compare" "$tmp/a"
        same "$command: the same verdict and figures" "$tmp/a" "$tmp/b"
    done
done
# shellcheck disable=SC2086
works "more steps than are kept" report "$tmp/ids.jsonl" $as
full=$(grep -cF '[[' "$tmp/ids.jsonl")
has "are named" "ids: the first 512 of its $full steps are looked at one by one" "$tmp/squeezed"
has "those without tokens, too" "ids: $((600 - full)) of 600 steps hold no tokens and are left out" "$tmp/squeezed"
mean=$(awk '{ n += gsub(/\], \[/, "") + (/\[\[/ > 0) } END { printf "%.0f", n / '"$full"' }' "$tmp/ids.jsonl")
has "the tokens of a step" "Steps as recorded, $mean tokens on average; --tokens cuts others" "$tmp/squeezed"
! grep -qF "of the recording (256 steps)" "$tmp/squeezed"
result $? "no half of the recording is named" "$tmp/squeezed"
has "but of what is looked at" "Planned on the first half of the steps that are looked at (256), judged on the second \
half of them (256); the later steps of the recording are in neither." "$tmp/squeezed"
# 1,200 steps: expert 0 is hot in the first 600 and expert 5 in the others, or 0 in all of them.
hot_from() { # hot_from STEP
    awk -v from="$1" 'BEGIN { for (s = 0; s < 1200; s++) {
        printf "{\"step\": %d, \"layer\": 0, \"counts\": [", s
        for (e = 0; e < 16; e++) printf "%s%d", e ? ", " : "", 28 + s % 5 + 300 * (e == (s < from ? 0 : 5))
        print "]}" } }' >"$tmp/moves.jsonl"
}
for from in 600:false:"insufficient evidence" 1200:true:recommend; do
    hot_from "${from%%:*}"
    for command in report diagnose; do
        works "$command: hot from ${from%%:*}" $command "$tmp/moves.jsonl" --devices 4 --topk 2 --min-gain 0.01 --json
        [ "$(sed -n 's/^ "verdict": "\(.*\)",/\1/p' "$tmp/out")" = "${from##*:}" ]
        result $? "the verdict has the steps behind the first 512 in mind" "$tmp/out"
        has "what they say" "steps that are not looked at one by one the sum is known: its max/mean is" "$tmp/out"
    done
    works "in words" report "$tmp/moves.jsonl" --devices 4 --topk 2 --min-gain 0.01
    [ "${from%%:*}" = 600 ] || continue
    has "why" "of the steps behind them, of which only the sum is known, the plan keeps less than half" "$tmp/squeezed"
    works "diagnose in words" diagnose "$tmp/moves.jsonl" --devices 4 --topk 2 --min-gain 0.01
    has "the headline" "Insufficient evidence: later steps of the recording differ" "$tmp/squeezed"
done
# Ids without steps: 1,200 of a token each, of experts 0 to 3 and then of others; cut into steps of one the second half
# of what is looked at is of the second half of the recording.
{
    printf '\223NUMPY\001\000\166\000'
    printf '%-117s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (1200, 1), }"
    awk 'BEGIN { for (t = 0; t < 1200; t++) printf "%c", t < 600 ? 1 + t % 2 : 5 + t % 2 }'
} >"$tmp/cut.npy"
for command in report diagnose; do
    works "$command: more steps cut than are looked at" $command "$tmp/cut.npy" --experts 8 --devices 4 --tokens 1
    has "is said" "cut: of its 1,200 steps of 1 token 512 are looked at, evenly spread." "$tmp/squeezed"
    has "over all of it" "Planned on the first half of the recording (256 steps), judged on the second (256 steps)." \
        "$tmp/squeezed"
done
works "its figures" report "$tmp/cut.npy" --experts 8 --devices 4 --tokens 1 --json
tr -d ' \n' <"$tmp/out" | grep -qF '"expert_loads":[[0.0,0.0,0.0,0.0,0.0,0.5,0.5,0.0]]'
result $? "the judged steps are those of its second half" "$tmp/out"
printf '{"step": %d, "layer": 0, "ids": [[0, 1]]}\n' 0 1 2 >"$tmp/one.jsonl"
# shellcheck disable=SC2086
works "steps of one token" report "$tmp/one.jsonl" $as
has "are counted in words" "Steps as recorded, 1 token on average" "$tmp/squeezed"
cp "$tmp/ids.jsonl" "$tmp/other.jsonl"
[ "$(routing 40 1 even)" = 4.000000 ]
result $? "all rows of a step on one of four devices"
# shellcheck disable=SC2086
works "a device that is hot for a step" report "$tmp/ids.jsonl" $as --json
grep -qxF ' "verdict": "recommend",' "$tmp/out"
result $? "is worth a new placement" "$tmp/out"
has "the device of a figure has a figure of its own" '"times_its_share": 1.0' "$tmp/out"
# shellcheck disable=SC2086
works "in words" report "$tmp/ids.jsonl" $as
has "no device is blamed" "No device stays the busiest; a new placement saves" "$tmp/squeezed"
has "for what another one has" \
    "No device stays the busiest: the busiest of layer 0 has 4.00 times the mean on average." "$tmp/squeezed"
# shellcheck disable=SC2086
works "in diagnose" diagnose "$tmp/ids.jsonl" $as
has "too" "no device stays the busiest: that of layer 0 has 4.00 times the mean on average" "$tmp/squeezed"
# Two devices; the first has 3 of 4 rows in three steps of four, and 1 of 4 in the others: 10 rows where its share is 8.
awk 'BEGIN { for (s = 0; s < 16; s++)
    printf "{\"step\": %d, \"layer\": 0, \"counts\": [%d, 1, %d, 1]}\n", s, s % 4 ? 5 : 1, s % 4 ? 1 : 5 }' \
    >"$tmp/mostly.jsonl"
works "a device that is the busiest of most steps" report "$tmp/mostly.jsonl" --devices 2 --topk 1
has "carries what it carries itself" "Device 0 is the bottleneck: in layer 0 it carries 1.25 times its share." \
    "$tmp/squeezed"
works "in diagnose" diagnose "$tmp/mostly.jsonl" --devices 2 --topk 1
has "too, with the steps" "device 0 in layer 0: 1.25 times its share, the busiest in 75 % of the steps" "$tmp/squeezed"
"$tool" watch "$tmp/mostly.jsonl" --devices 2 --once >"$tmp/out" 2>&1
tr -s ' \n' '  ' <"$tmp/out" >"$tmp/squeezed"
has "and in watch" "in layer 0 it carries 1.25 times its share over the last 8 steps, the busiest in 75 % of them" \
    "$tmp/squeezed"
"$tool" watch "$tmp/mostly.jsonl" --devices 2 --once --json >"$tmp/out" 2>&1
has "and its JSON" '"hot_steps":8' "$tmp/out"
"$tool" watch "$tmp/counts.jsonl" --devices 4 --once >"$tmp/out" 2>&1
tr -s ' \n' '  ' <"$tmp/out" >"$tmp/squeezed"
has "where none does" "no device stays the busiest: that of layer 0 has 4.00 times the mean on average" "$tmp/squeezed"
# Five steps of 32 tokens: two on one device, 2 * 64 rows where the mean is 5 * 64 / 4.
# shellcheck disable=SC2086
works "--tokens" report "$tmp/ids.jsonl" $as --tokens 160 --json
[ "$(before "$tmp/out")" = 1.600000 ] && grep -qF '"steps_as_recorded": false' "$tmp/out"
result $? "cuts others: 1.6" "$tmp/out"
# shellcheck disable=SC2086
works "another recording" report "$tmp/ids.jsonl" "$tmp/other.jsonl" $as
has "keeps its steps" "other: steps as recorded, $mean tokens on average" "$tmp/squeezed"
{ printf '{"step": 7, "ids": ['; sed 's/.*"ids": \[//; s/\]}$/,/' "$tmp/ids.jsonl" | tr -d '\n' | sed 's/,$//'
    echo ']}'; } >"$tmp/one.jsonl"
sed 's/"step": 7, //' "$tmp/one.jsonl" >"$tmp/none.jsonl"
# shellcheck disable=SC2086
works "one step" report "$tmp/one.jsonl" $as
has "is taken as one" "Steps as recorded, 1,280 tokens on average" "$tmp/squeezed"
# shellcheck disable=SC2086
works "lines that say no step" report "$tmp/none.jsonl" $as
has "are cut" "Steps of 320 tokens over all devices, cut from the recording in order" "$tmp/squeezed"
awk 'BEGIN { for (s = 0; s < 2; s++) { printf "{\"step\": %d, \"ids\": [[0]", s
    for (t = 1; t < 70000; t++) printf ",[%d]", t % 4; print "]}" } }' >"$tmp/huge.jsonl"
works "a step that no device can hold" report "$tmp/huge.jsonl" --devices 1
has "is cut" "hold 70,000 tokens each, more than one step can. * Steps of 4,096 tokens over" "$tmp/squeezed"

# ---- the batch that a headline is for ----
for each in "4096 512" "32768 4,096"; do
    for command in report "diagnose --min-steps 1"; do
        # shellcheck disable=SC2086
        works "$command: ${each% *} tokens on 8 devices" $command $data/prose_topk_ids.npy $data/python_topk_ids.npy \
            --devices 8 --tokens "${each% *}"
        has "are named" " of a step of ${each#* } tokens per device" "$tmp/squeezed"
    done
done
works "tokens of a small batch" report $data/prose_topk_ids.npy --devices 8 --tokens 4095
! head -n 2 "$tmp/out" | grep -qF "tokens per device"
result $? "are not" "$tmp/out"

# ---- times, rates and kernels are those of the judged steps ----
# steps FILE ids|counts T...: a step of so many tokens each, one layer, top-2 of 16; small steps leave two experts out,
# for recordings with the same loads are not judged on
steps() {
    to=$1 form=$2
    shift 2
    echo "$*" | tr ' ' '\n' | awk -v form="$form" '{
        for (e = 0; e < 16; e++) n[e] = 0
        printf "{\"step\": %d, \"layer\": 0, \"%s\": [", NR - 1, form
        for (t = 0; t < $1; t++) {
            a = 2 * t % ($1 < 100 ? 14 : 16)
            if (form == "ids") printf "%s[%d, %d]", t ? ", " : "", a, a + 1
            n[a]++; n[a + 1]++
        }
        for (e = 0; e < 16 && form == "counts"; e++) printf "%s%d", e ? ", " : "", n[e]
        print "]}"
    }' >"$to"
}
rates() { # rates TOKENS: every strategy of the report in $tmp/out delivers so many tokens in a step
    awk -v want="$1" '/"step_s":/ { step = $2 + 0 }
        /"tokens_per_s":/ { n++; x = step * $2 - want; if (x > 1e-6 * want || x < -1e-6 * want) bad = 1 }
        END { exit !(n >= 5 && !bad) }' "$tmp/out"
}
for form in ids counts; do
    steps "$tmp/large.jsonl" $form 400 400 400 400
    steps "$tmp/little.jsonl" $form 16 16 16 16
    steps "$tmp/falls.jsonl" $form 400 400 400 400 16 16 16 16
    steps "$tmp/odd.jsonl" $form 400 400 400 400 8 16 24 10 # the judged ones 14.5 on average
    for case in "large.jsonl $tmp/little.jsonl:16:16" "little.jsonl $tmp/large.jsonl:400:400" falls.jsonl:16:16 \
        odd.jsonl:14.5:15; do
        files=${case%%:*} shown=${case##*:} mean=${case#*:}
        # shellcheck disable=SC2086
        works "$form: ${files%%.*}" report "$tmp"/$files $as --json
        rates "${mean%:*}" && grep -qF "\"tokens_per_step\": $shown," "$tmp/out"
        result $? "tokens/s are ${mean%:*} by the time of a judged step" "$tmp/out"
        # shellcheck disable=SC2086
        works "$form: in words" report "$tmp"/$files $as
        grep -qE "on h100, $shown tokens; bal" "$tmp/squeezed" &&
            grep -qF "The judged steps hold $shown tokens on average" "$tmp/squeezed"
        result $? "the time names its tokens" "$tmp/squeezed"
    done
    steps "$tmp/large.jsonl" $form 4096 4096 4096 4096
    steps "$tmp/little.jsonl" $form 64 64 64 64
    for case in large:little:low-latency little:large:normal; do
        two=${case%:*} kernels=${case##*:}
        for command in report "diagnose --min-steps 1"; do
            # shellcheck disable=SC2086
            works "$form: $command, $two" $command "$tmp/${two%:*}.jsonl" "$tmp/${two#*:}.jsonl" $as
            has "takes the kernels of what is judged" "kernels from 512 tokens per device on, low-latency kernels \
below: here $kernels;" "$tmp/squeezed"
            # shellcheck disable=SC2086
            works "$form: $command, $two, JSON" $command "$tmp/${two%:*}.jsonl" "$tmp/${two#*:}.jsonl" $as --json
            has "the same" "\"kernels\": \"$kernels\"" "$tmp/out"
        done
    done
done
# A headline that saves something: all rows on the first of two devices.
hot() { # hot TOKENS
    awk -v T="$1" 'BEGIN { for (s = 0; s < 4; s++)
        printf "{\"step\": %d, \"layer\": 0, \"counts\": [%d, %d, 0, 0]}\n", s, T, T }'
}
hot 4096 >"$tmp/large.jsonl" && hot 64 >"$tmp/little.jsonl" && hot 4095 | sed 's/, 0, 0/, 1, 1/' >"$tmp/large2.jsonl"
sed 's/, 0, 0/, 1, 1/' "$tmp/little.jsonl" >"$tmp/little2.jsonl"
as='--devices 2 --experts 4 --topk 2 --model mixtral-8x7b'
for command in report diagnose; do
    # shellcheck disable=SC2086
    works "$command: judged on small steps" $command "$tmp/large.jsonl" "$tmp/little2.jsonl" $as
    ! head -n 2 "$tmp/out" | grep -qF "tokens per device"
    result $? "the headline names no large one" "$tmp/out"
    # shellcheck disable=SC2086
    works "$command: judged on large steps" $command "$tmp/little.jsonl" "$tmp/large2.jsonl" $as
    has "the headline names them" " of a step of 2,048 tokens per device" "$tmp/squeezed"
done

# ---- batches larger than a recorded step: joined ----
# 40 steps of 32 tokens, all on one device, the next one in every step: any four in a row are even, five are 1.6.
as='--devices 4 --experts 16 --topk 2'
[ "$(routing 40 1 even)" = 4.000000 ]
result $? "steps that are uneven one by one"
case_of() { # case_of NAME: max/mean today in a what-if row
    awk -v name="\"$1" 'index($0, name) { on = 1 } on && /"imbalance_before"/ { printf "%.6f\n", $2; exit }' "$tmp/out"
}
for form in ids counts; do
    for case in 160:1.600000 128:1.000000 16384:1.000000 32:4.000000; do
        for command in report diagnose; do
            # shellcheck disable=SC2086
            works "$command $form --tokens ${case%:*}" $command "$tmp/$form.jsonl" $as --tokens "${case%:*}" --json
            [ "$(before "$tmp/out")" = "${case#*:}" ]
            result $? "is max/mean ${case#*:}" "$tmp/out"
        done
    done
    # shellcheck disable=SC2086
    works "$form: what if" report "$tmp/$form.jsonl" $as --json
    [ "$(case_of 'decode, 128')" = 1.000000 ] && [ "$(case_of 'prefill, 4096')" = 1.000000 ]
    result $? "larger batches of a router that is even are even" "$tmp/out"
    has "what there is too little of is said" "What if, prefill, 4096 tokens per device: a recording of fewer tokens \
than one such step is taken once and scaled" "$tmp/out"
    # shellcheck disable=SC2086
    works "$form: less than one step" diagnose "$tmp/$form.jsonl" $as --tokens 16384
    has "is said" "$form holds 1,280 tokens in all, less than one step of 16,384: its sum is taken once" "$tmp/squeezed"
done
# shellcheck disable=SC2086
works "counts of several steps" report "$tmp/counts.jsonl" $as --tokens 128
has "are joined, which is said" "counts: recorded steps are joined in order until they hold 128 tokens." "$tmp/squeezed"
has "and leave ten" "first half of the recording (5 steps), judged on the second (5 steps)" "$tmp/squeezed"
awk 'BEGIN { for (s = 0; s < 8; s++)
    printf "{\"step\": %d, \"layer\": 0, \"counts\": [0.5, 0.25, 0.125, 0.125]}\n", s }' >"$tmp/shares.jsonl"
works "shares instead of counts" report "$tmp/shares.jsonl" --devices 2 --topk 1 --tokens 512
has "are no tokens to join" "first half of the recording (4 steps), judged on the second (4 steps)" "$tmp/squeezed"

# One step judged on itself: what chance alone makes uneven is no reason to move experts, however a plan fits it.
single() { # single NAME COUNTS: one step of a layer
    printf '{"step": 0, "layer": 0, "counts": [%s]}\n' "$2" >"$tmp/$1.jsonl"
}
verdict_of() { sed -n 's/^ "verdict": "\(.*\)",/\1/p' "$tmp/out"; }
single noise '13, 11, 10, 9, 8, 6, 8, 8, 8, 6, 7, 8, 6, 6, 7, 7'
single hot '40, 30, 30, 20, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0'
one='--devices 8 --topk 2 --min-gain 0.001'
# shellcheck disable=SC2086
works "one step as uneven as chance makes it" report "$tmp/noise.jsonl" $one --json
[ "$(verdict_of)" = "insufficient evidence" ] && grep -qF '"recommend": false' "$tmp/out"
result $? "is no evidence" "$tmp/out"
for tokens in 1024 32768; do
    # shellcheck disable=SC2086
    works "scaled to $tokens tokens" report "$tmp/noise.jsonl" $one --json --tokens $tokens
    [ "$(verdict_of)" = "insufficient evidence" ] && ! grep -qF '"verdict": "recommend"' "$tmp/out"
    result $? "it is none either" "$tmp/out"
done
# shellcheck disable=SC2086
works "in words" report "$tmp/noise.jsonl" $one
has "a second recording is asked for" \
    "The unevenness is no more than chance gives; a second recording is needed to tell" "$tmp/squeezed"
has "the reason names chance" "that even routing of as many tokens as were recorded gives by chance" "$tmp/squeezed"
# shellcheck disable=SC2086
works "one step that is more uneven" report "$tmp/hot.jsonl" $one --json
[ "$(verdict_of)" = recommend ] && grep -qF '"provisional": true' "$tmp/out"
result $? "is worth a trial" "$tmp/out"
single sums '1300, 1100, 1000, 900, 800, 600, 800, 800, 800, 600, 700, 800, 600, 600, 700, 700'
# shellcheck disable=SC2086
works "sums over many steps, scaled down" report "$tmp/sums.jsonl" $one --json --tokens 64
[ "$(verdict_of)" = recommend ]
result $? "are more than the chance of what was recorded" "$tmp/out"

# What if never judges on what it planned on: with fewer than four larger steps each half is joined for itself.
# 12 steps: the best pairs for the first six are {0, 3} and {1, 2}, and in the others all rows are those of 0 and 3,
# which today's pairs part.
halves() { # halves A B C D N: rows of the experts in the first six steps, and of 0 and 3 in the others
    awk -v first="$1, $2, $3, $4" -v n="$5" 'BEGIN { for (s = 0; s < 12; s++)
        printf "{\"step\": %d, \"layer\": 0, \"counts\": [%s]}\n", s, s < 6 ? first : n ", 0, 0, " n }' \
        >"$tmp/halves.jsonl"
    works "two halves of other traffic, $5" report "$tmp/halves.jsonl" --devices 2 --topk 2 --slots 4 --json
}
what_of() { # what_of NAME KEY: of a what-if row
    awk -v name="\"$1" -v key="\"$2\"" 'index($0, name) { on = 1 }
        on && index($0, key) { sub(/.*: /, ""); gsub(/[",]/, ""); print; exit }' "$tmp/out"
}
halves 60 34 22 12 64
for row in decode prefill; do
    [ "$(what_of $row imbalance_before) $(what_of $row imbalance_after)" = "1.0 2.0" ] &&
        [ "$(what_of $row verdict)" = "insufficient evidence" ]
    result $? "$row: judged on the second half, which is less than two such steps" "$tmp/out"
    has "is said" "What if, $row, $([ $row = decode ] && echo 128 || echo 4096) tokens per device: planned on the \
first half of the recording, joined for itself, and judged on the second" "$tmp/out"
done
halves 40 20 13 7 96
[ "$(what_of decode imbalance_after) $(what_of decode verdict)" = "2.0 not now" ]
result $? "two such steps in the second half are enough for a verdict" "$tmp/out"
works "four such steps and more" report "$tmp/counts.jsonl" --devices 2 --topk 2 --json
! grep -qF "What if, decode, 128 tokens per device: planned on the first half" "$tmp/out"
result $? "are judged as they come" "$tmp/out"

# ---- the command for the next report ----
for options in '--tokens 64 --min-gain 0.25' '--round-robin --tokens 160' '--min-gain 0.375' \
    '--groups 4 --other-ms 12.5' '--other-ms 12.5 --target 1.25' '--other-ms 30 --horizon 1e+15'; do
    # shellcheck disable=SC2086
    works "report $options" report "$tmp/counts.jsonl" $as $options
    sed 's/ \\ / /g' "$tmp/squeezed" >"$tmp/command"
    has "its next command has them" " --machine h100 $options" "$tmp/command"
done
# shellcheck disable=SC2086
works "a report of groups that is worth a plan" report "$tmp/counts.jsonl" $as --groups 4 --tokens 64
sed 's/ \\ / /g' "$tmp/squeezed" >"$tmp/command"
grep -q 'moe-ep place .* --groups 4 --out plan.json' "$tmp/command"
result $? "its plan has them" "$tmp/command"
# shellcheck disable=SC2086
works "a report without them" report "$tmp/counts.jsonl" $as
! grep -qE -e 'NEW .*--(tokens|min-gain|round-robin|groups|other-ms|target|horizon|hidden|intermediate)' "$tmp/out"
result $? "its next command has none of them" "$tmp/squeezed"
# shellcheck disable=SC2086
works "report with sizes" report "$tmp/counts.jsonl" $as --hidden 512 --intermediate 96
sed 's/ \\ / /g' "$tmp/squeezed" >"$tmp/command"
has "its next command has them behind the model" " --hidden 512 --intermediate 96 --machine h100" "$tmp/command"
steps "$tmp/single.jsonl" ids 1 1 1 1
works "steps of one token" report "$tmp/single.jsonl" --devices 4
has "one token, one layer" "8 rows in 1 layer " "$tmp/squeezed"
has "and a time for it" "on h100, 1 token; balanced" "$tmp/squeezed"

# ---- the forms of the report ----
works "--format csv" report $data/sglang_counts.json --devices 8 --format csv
[ "$(wc -l <"$tmp/out")" = 5 ] && grep -q '^layer,experts_max_over_mean,' "$tmp/out" && grep -q '^3,3.23633,' "$tmp/out"
result $? "a line per layer" "$tmp/out"
works "--format svg" report $data/sglang_counts.json --devices 8 --format svg
head -c 4 "$tmp/out" | grep -qxF '<svg' && tail -n 1 "$tmp/out" | grep -qF '</svg>'
result $? "one picture" "$tmp/out"
if have xmllint; then xmllint --noout "$tmp/out" >"$tmp/log" 2>&1; result $? "it is XML" "$tmp/log"
else skip "the picture is XML" "xmllint is not installed (package libxml2-utils)"; fi
works "--format html" report $data/sglang_counts.json --devices 8 --format html
has "a page" "</html>" "$tmp/out"
has "four pictures" "The proof in four pictures" "$tmp/out"
for part in traffic-now-w traffic-then-n gantt-now-m gantt-then-n dev-today-w experts-w; do
    has "the page has $part" "id=\"$part-t\"" "$tmp/out"
done
[ "$(grep -o '<svg class="c"' "$tmp/out" | wc -l)" = "$(grep -o 'role="img" aria-labelledby' "$tmp/out" | wc -l)" ]
result $? "every picture has a text"
! grep -oE 'class="scroll"( tabindex="0")?' "$tmp/out" | grep -qvF tabindex
result $? "every block that scrolls can be reached by keyboard"
[ "$(grep -o 'id="[^"]*"' "$tmp/out" | sort | uniq -d | wc -l)" = 0 ]
result $? "every id is there once"
[ "$(grep -o '<details><summary>Layer' "$tmp/out" | wc -l)" = 4 ]
result $? "every layer can be opened"
works "--format json" report $data/sglang_counts.json --devices 8 --format json
has "an object" '"headline"' "$tmp/out"
works "--format text" report $data/sglang_counts.json --devices 8 --format text
refuses "a page in two places" "--format html writes the page to standard output, --html to a file: one of them" \
    report $data/sglang_counts.json --format html --html "$tmp/p.html"
refuses "whichever comes first" "--format html writes the page to standard output, --html to a file: one of them" \
    report $data/sglang_counts.json --html "$tmp/p.html" --format html
[ ! -e "$tmp/p.html" ]
result $? "and nothing is written"
works "--html - is the same as --format html" report $data/sglang_counts.json --devices 8 --format html --html -
refuses "another form" "text, json, csv, html or svg" report $data/sglang_counts.json --format pdf
refuses "a form that a command has not" "has none" copies $data/sglang_counts.json --devices 8 --format svg
# Judged steps without a token: that is said, and no figure is made of it.
# The one recording has nothing in layer 0, which is left out; the other has nothing else in the steps that are kept.
row='{"step": %d, "layer": %d, "counts": [%d, 0, %d, 0, 0, 0, 0, %d]}\n'
awk -v row="$row" 'BEGIN { for (s = 0; s < 4; s++) for (l = 0; l < 2; l++) printf row, s, l, l, 2 * l, l }' \
    >"$tmp/full.jsonl"
awk -v row="$row" 'BEGIN { for (s = 0; s < 520; s++) for (l = 0; l < 2; l++) {
    n = l == 0 || s > 514
    printf row, s, l, n, n, n } }' >"$tmp/empty.jsonl"
as="$tmp/full.jsonl $tmp/empty.jsonl --devices 4 --topk 2"
for form in text html csv json; do
    # shellcheck disable=SC2086
    works "report: judged steps without tokens, as $form" report $as --format $form
    ! grep -qiE '[^a-z](-?nan|inf)[^a-z]' "$tmp/out"
    result $? "no figure that is none" "$tmp/out"
done
# shellcheck disable=SC2086
works "and in words" report $as
has "and in words: nothing is said of a placement" 'hold no tokens: nothing can be said' "$tmp/out"
! grep -q 'holds everybody up' "$tmp/out"
result $? "and no device is blamed" "$tmp/out"

# ---- steps that hold no tokens ----
# A ring buffer that a server dumps whole: 8 steps among rows of zeros say what the 8 steps say, in every format.
# padded FORMAT BEFORE BEHIND: 8 steps of two layers, BEFORE and BEHIND empty ones around them
padded() {
    awk -v form="$1" -v before="$2" -v behind="$3" 'BEGIN { srand(5); all = before + 8 + behind
        if (form == "json") printf "{\"logical_count\": ["
        if (form == "csv") { printf "step,layer"; for (e = 0; e < 8; e++) printf ",%d", e; print "" }
        for (s = 0; s < all; s++) { full = s >= before && s < before + 8
            if (form == "json") printf "%s[", s ? ", " : ""
            for (l = 0; l < 2; l++) {
                for (e = 0; e < 8; e++) n[e] = 0
                for (t = 0; t < 32 && full; t++) { id[t] = int(8 * rand() * rand()); n[id[t]]++; n[(id[t] + 3) % 8]++ }
                if (form == "json") printf "%s[", l ? ", " : ""
                else if (form == "csv") printf "%d,%d,", s, l
                else printf "{\"step\": %d, \"layer\": %d, \"%s\": [", s, l, form
                if (form == "ids" || form == "none")
                    for (t = 0; t < (full || form == "none" ? 32 : 0); t++)
                        printf full ? "%s[%d, %d]" : "%s[-1, -1]", t ? ", " : "", id[t], (id[t] + 3) % 8
                else
                    for (e = 0; e < 8; e++) printf "%s%d", e ? "," : "", n[e]
                print form == "json" ? "]" : form == "csv" ? "" : "]}"
            }
            if (form == "json") print "]"
        }
        if (form == "json") print "]}" }' | sed 's/"none"/"ids"/'
}
# what_remains: the answer without the lines that say how many steps the file has
what_remains() { grep -v '"steps_left_out"\|"assumed"\|hold no tokens' "$tmp/out"; }
for form in json csv counts ids none; do
    kind=jsonl
    case $form in json | csv) kind=$form ;; esac
    for around in "0 0" "0 5" "520 9" "3 1"; do
        mkdir -p "$tmp/ring"
        # shellcheck disable=SC2086
        padded $form $around >"$tmp/ring/ring.$kind"
        for command in report diagnose; do
            works "$command: 8 steps as $form, empty ones around them: $around" $command "$tmp/ring/ring.$kind" \
                --devices 4 --experts 8 --topk 2 --json
            [ "$around" != "0 0" ] || what_remains >"$tmp/ring/$command"
            what_remains >"$tmp/ring/got"
            cmp "$tmp/ring/$command" "$tmp/ring/got" >"$tmp/log" 2>&1
            result $? "say the same" "$tmp/log"
        done
        left=$((${around% *} + ${around#* }))
        [ $left = 0 ] ||
            has "and that is noted" "$left of $((8 + left)) steps hold no tokens and are left out" "$tmp/out"
    done
done
printf '[[[1,2],[0,0]],[[0,0],[0,0]],[[0,0],[3,1]]]' >"$tmp/rows.json"
works "an empty row is no empty step" report "$tmp/rows.json" --devices 2 --topk 1 --json
grep -qF '"steps": 2,' "$tmp/out" && grep -qF '"steps_left_out": 1' "$tmp/out"
result $? "a step counts as soon as one layer has loads" "$tmp/out"
np() { printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '$1', 'fortran_order': False, 'shape': $2, }"; }
{ np '<u1' '(5, 1, 4)'; printf '\0\0\0\0\3\1\2\2\0\0\0\0\1\1\1\5\0\0\0\0'; } | sed "1s/'<u1'/'|u1'/" >"$tmp/ring.npy"
works "counts as .npy" report "$tmp/ring.npy" --counts --devices 2 --topk 1 --json
grep -qF '"steps": 2,' "$tmp/out" && grep -qF '"steps_left_out": 3' "$tmp/out" &&
    grep -qF "ring: 3 of 5 steps hold no tokens and are left out" "$tmp/out"
result $? "two of five steps hold some" "$tmp/out"
printf '{"step": %d, "ids": [[-1, -1]]}\n{"step": %d, "ids": [[0, 1], [2, 3]]}\n' 0 1 2 3 >"$tmp/idle.jsonl"
works "drops: steps in which no token has an expert" drops "$tmp/idle.jsonl" --json
grep -qF '"steps": 2,' "$tmp/out" && grep -qF '"tokens_recorded": 4,' "$tmp/out" &&
    grep -qF '"steps_left_out": 2' "$tmp/out"
result $? "are none" "$tmp/out"
works "and in words" drops "$tmp/idle.jsonl"
has "that is said" "idle: 2 of 4 steps hold no tokens and are left out." "$tmp/out"
"$tool" traffic "$tmp/idle.jsonl" --devices 2 --hidden 64 >"$tmp/out" 2>"$tmp/err"
has "in traffic, too" "idle: 2 of 4 steps hold no tokens and are left out." "$tmp/err"

# ---- layers without experts in an array of ids ----
# Servers return (tokens, layers, choices) for all layers, zeros where a layer has no experts.
{ np '|u1' '(4, 3, 2)'; printf '\0\0\0\1\2\3\0\0\1\2\0\3\0\0\3\0\1\2\0\0\0\2\1\3'; } >"$tmp/three.npy"
{ np '|u1' '(4, 2, 2)'; printf '\0\1\2\3\1\2\0\3\3\0\1\2\0\2\1\3'; } >"$tmp/moe.npy"
{ np '|u1' '(3, 4, 2)'; printf '\0\0\0\0\0\0\0\0\0\1\1\2\3\0\0\2\2\3\0\3\1\2\1\3'; } >"$tmp/first.npy"
awk 'BEGIN { split("0 0 0 1 2 3 0 0 1 2 0 3 0 0 3 0 1 2 0 0 0 2 1 3", v, " ")
    for (l = 0; l < 3; l++) { printf "{\"step\": 0, \"layer\": %d, \"ids\": [", l
        for (t = 0; t < 4; t++) printf "%s[%d, %d]", t ? ", " : "", v[t * 6 + l * 2 + 1], v[t * 6 + l * 2 + 2]
        print "]}" } }' >"$tmp/three.jsonl"
for file in three.npy three.jsonl first.npy; do
    first=
    [ $file != first.npy ] || first=--layers-first
    # shellcheck disable=SC2086
    works "a layer in which every token holds one id twice, $file" report "$tmp/$file" --devices 2 $first
    has "has no experts" "layers without load, left out: 0" "$tmp/squeezed"
    # shellcheck disable=SC2086
    works "drops leaves it out, $file" drops "$tmp/$file" --capacity 1 --format csv $first
    awk -F, '{ print $2 "," $3 "," $4 }' "$tmp/out" >"$tmp/got"
    # shellcheck disable=SC2086
    "$tool" drops "$tmp/moe.npy" --capacity 1 --format csv 2>&1 | awk -F, '{ print $2 "," $3 "," $4 }' >"$tmp/want"
    cmp "$tmp/want" "$tmp/got" >"$tmp/log" 2>&1
    result $? "and says of the others what it says without it" "$tmp/log"
    # shellcheck disable=SC2086
    "$tool" traffic "$tmp/$file" --devices 2 --hidden 64 $first 2>"$tmp/err" | awk -F, '$1 == 0' >"$tmp/out"
    [ ! -s "$tmp/out" ]
    result $? "nothing is sent in it, $file" "$tmp/out"
done
works "drops names it" drops "$tmp/three.npy"
has "in words" "2 layers (without load and left out: 0)" "$tmp/out"
{ np '|u1' '(2, 2, 2)'; printf '\0\0\1\1\2\2\1\1'; } >"$tmp/alike.npy"
refuses "every layer alike" "in every layer each token holds one id 2 times" report "$tmp/alike.npy" --devices 2
printf '{"layer": 0, "ids": [[1, 1], [2, 2]]}\n' >"$tmp/alike.jsonl"
refuses "the same as JSON lines" "in every layer each token holds one id 2 times" report "$tmp/alike.jsonl" --devices 2
{ np '|u1' '(4, 2, 1)'; printf '\0\0\0\1\0\2\0\3'; } >"$tmp/top1.npy"
works "of top-1 it cannot be told" report "$tmp/top1.npy" --devices 2
has "both layers count" "8 rows in 2 layers" "$tmp/out"
# ---- what stands beside the experts, above the header, and in layers without loads ----
printf 'layer,tokens,c0,c1,c2,c3\n0,100,40,30,20,10\n' >"$tmp/sums.csv"
works "a column of sums" report "$tmp/sums.csv" --devices 2 --topk 1 --json
has "four experts" '"experts": 4' "$tmp/out"
printf 'step,batch,c0,c1\n0,1,40,30\n' >"$tmp/twice.csv"
refuses "two columns of steps" 'twice.csv:1: columns "step" and "batch" both number the steps' \
    place "$tmp/twice.csv" --devices 1
printf 'layer,layer_idx,c0,c1\n0,1,40,30\n' >"$tmp/twice.csv"
refuses "two columns of layers" 'both number the layers' place "$tmp/twice.csv" --devices 1
for type in '<f1' '|f1' '<b2' '<b8'; do
    { np "$type" '(2, 8)'; head -c 128 /dev/zero; } >"$tmp/type.npy"
    refuses "no such number: $type" "number type '$type' is not one of" report "$tmp/type.npy" --devices 2
done
printf 'layer,0,1\n0,3,1\n' >"$tmp/two.csv"
printf 'layer,device,slot,expert\n0,0,0,0\n0,1,1,1\n' >"$tmp/plain.csv"
{ printf '\n \n'; cat "$tmp/plain.csv"; } >"$tmp/below.csv"
{ printf '\357\273\277'; cat "$tmp/plain.csv"; } >"$tmp/marked.csv"
for map in below marked; do
    works "a map: $map" report "$tmp/two.csv" --current "$tmp/$map.csv" --topk 1 --json
    cp "$tmp/out" "$tmp/$map.json"
done
works "a map: plain" report "$tmp/two.csv" --current "$tmp/plain.csv" --topk 1 --json
for map in below marked; do
    sed "s/$map.csv/plain.csv/g" "$tmp/$map.json" >"$tmp/as_plain.json"
    same "the same of the map: $map" "$tmp/as_plain.json" "$tmp/out"
done
printf '\nlayer,device,slot\n' >"$tmp/lacks.csv"
refuses "the header on its line" 'lacks.csv:2: the header has no column "expert"' \
    report "$tmp/two.csv" --current "$tmp/lacks.csv"
{
    printf 'layer,device,slot,expert\n0,0,0,0\n0,0,1,1\n0,1,2,2\n0,1,3,-1\n'
    printf '1,0,0,0\n1,0,1,1\n1,1,2,2\n1,1,3,-1\n'
} >"$tmp/two_layers.csv"
printf 'layer,0,1,2\n1,5,3,2\n' >"$tmp/one_layer.csv"
works "a layer without loads" rebalance "$tmp/two_layers.csv" "$tmp/one_layer.csv" \
    --out "$tmp/n.json" --out "$tmp/n.csv"
has "is named" "There are no loads of layer 0 of the map, which stays as it is." "$tmp/squeezed"
has "has no empty slots in JSON" " [0, 1, 2, 2]," "$tmp/n.json"
has "has one in CSV" "0,1,3,-1" "$tmp/n.csv"
sed 's/,3$/,0/' "$tmp/two_layers.csv" | sed 's/,-1$/,1/' >"$tmp/spare.csv"
sed -i 's/,1,2,2$/,1,2,0/' "$tmp/spare.csv"
printf 'layer,0,1\n1,5,3\n' >"$tmp/one_layer.csv"
refuses "a dead device in a layer without loads" \
    "--dead needs loads of every layer of $tmp/spare.csv: $tmp/one_layer.csv has none of layer 0" \
    rebalance "$tmp/spare.csv" "$tmp/one_layer.csv" --dead 1 --out "$tmp/dead.json"
[ ! -e "$tmp/dead.json" ]
result $? "and nothing is written"
map_of "3 P 4 Q" >"$tmp/m34.csv"
printf '4,3,1,0\n4,0,1,3\n' >"$tmp/unnumbered.csv"
works "the numbers of the map" rebalance "$tmp/m34.csv" "$tmp/unnumbered.csv" --target 1 \
    --out "$tmp/n.csv" --moves-out "$tmp/mv.csv"
[ "$(sed 1d "$tmp/mv.csv" | cut -d, -f1 | sort -u | tr -d '34\n')" = "" ] && [ "$(wc -l <"$tmp/mv.csv")" -gt 1 ]
result $? "in the moves as in the plan" "$tmp/mv.csv"

# ---- forms that a command has not, before anything is written ----
rm -f "$tmp/plan.json"
for command in "rebalance $tmp/one_layer.csv --devices 2 --out $tmp/plan.json" "copies $tmp/one_layer.csv --devices 2" \
    "sweep --model mixtral-8x7b --machine h100 --devices 8" "forward --hidden 16 --intermediate 16" \
    "diagnose $tmp/one_layer.csv $tmp/one_layer.csv --devices 2"; do
    # shellcheck disable=SC2086
    refuses "${command%% *} --format csv" "--format csv: moe-ep ${command%% *} has none" $command --format csv
done
refuses "drops --format svg" "--format svg: moe-ep drops has none" drops examples/data/prose_topk_ids.npy --format svg
[ ! -e "$tmp/plan.json" ]
result $? "no plan was written"

# ---- how many experts a token takes, from the recording that says so ----
printf 'label,layer,expert,count\na,0,0,5\na,0,1,6\nb,0,0,5\n' >"$tmp/sparse.csv"
works "the last experts of a label received nothing" report "$tmp/sparse.csv" --devices 2 --json
has "two experts" '"experts": 2' "$tmp/out"
works "nor did more" report "$tmp/sparse.csv" --devices 2 --experts 4 --json
has "four of them" '"experts": 4' "$tmp/out"
refuses "fewer than were named" "has 2 experts, --experts says 1" report "$tmp/sparse.csv" --devices 2 --experts 1
printf '{"ids":[[0,0,1],[1,0,0]]}\n' >"$tmp/wide.jsonl"
refuses "more choices than experts" "the recording's top 3: there are only 2 experts" report "$tmp/wide.jsonl"
{ np '<i4' '(2, 1, 2)'; printf '\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0'; } >"$tmp/choices.npy"
printf 'layer,0,1,2,3\n0,4,3,1,0\n' >"$tmp/counted.csv"
works "counts, then ids" report "$tmp/counted.csv" "$tmp/choices.npy" --devices 2 --topk 2 --json
works "counts, then ids that say it" report "$tmp/counted.csv" "$tmp/choices.npy" --devices 2 --json
has "top-2" '"top_k": 2' "$tmp/out"
refuses "ids of another choice" "choices.npy: has ids of top-2, --topk says 3" \
    report "$tmp/counted.csv" "$tmp/choices.npy" --devices 2 --topk 3

# ---- the commands that a report ends with ----
data=examples/data/expert_counts.csv
works "the first of those chosen" report $data --only p --devices 8
has "stands for them" "moe-ep report $data --only prose NEW --devices 8" "$tmp/squeezed"
works "choices that were said" report $data --only prose --devices 8 --topk 4
has "are said again" "--topk 4" "$tmp/squeezed"
printf 'layer,0,1,2,3,4,5\n0,9000000,1000,1000,9000000,1000,1000\n' >"$tmp/robin.csv"
works "round robin on nodes" report "$tmp/robin.csv" --devices 3 --nodes 3 --slots 6 --round-robin --topk 1
sed 's/ \\ / /g' "$tmp/squeezed" >"$tmp/command"
has "has the nodes" "--devices 3 --nodes 3 --policy round-robin --out today.csv" "$tmp/command"
sed -n 's/.* \(moe-ep place [^ ]* --devices 3 --nodes 3 --policy round-robin --out \)today.csv.*/\1/p' \
    "$tmp/command" >"$tmp/line"
# shellcheck disable=SC2046
works "and works" $(cut -d ' ' -f 2- "$tmp/line") "$tmp/today.csv"

# ---- letters and watch ----
refuses "a letter that others follow" "place: unrecognized option '-n'" place --json -n8 x.npy
refuses "watch: other devices than the map's" "has 2 devices, --devices says 16" \
    watch "$tmp/wide.jsonl" --once --devices 16 --current "$tmp/m34.csv"
{
    printf '{"step":0,"layer":0,"counts":[1,2]}\nnot json\n{"step":1,"layer":0,"counts":[1,2]}\n'
    printf '{"step":2,"layer":0,"counts":[1,2]}\n{"step"'
} >"$tmp/half.jsonl"
works "watch: half a line" watch "$tmp/half.jsonl" --once --devices 2
grep -q 'line 2' "$tmp/squeezed" && ! grep -q 'line 5' "$tmp/squeezed"
result $? "is no complaint" "$tmp/squeezed"
finish 500
