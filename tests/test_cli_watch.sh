#!/bin/sh
# tests/test_cli_watch.sh - moe-ep watch: what it makes of growing, cut, replaced and broken files, and how it ends.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool cli_watch.c
data=examples/data
LC_ALL=C
export LC_ALL

has() { # has NAME TEXT FILE
    grep -qF -- "$2" "$3"
    result $? "$1" "$3"
}
once() { # once FILE ARGS...: standard output in $tmp/out
    "$tool" watch "$@" --once >"$tmp/out" 2>"$tmp/err" </dev/null
}
refuses() { # refuses NAME TEXT ARGS...
    name=$1 text=$2
    shift 2
    "$tool" watch "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    [ $code -eq 2 ] && [ ! -s "$tmp/out" ] && grep -qF -- "$text" "$tmp/err"
    result $? "refused: $name" "$tmp/err"
}
until_has() { # until_has TEXT FILE: waits up to fifteen seconds
    n=0
    until grep -qF -- "$1" "$2" 2>/dev/null; do
        n=$((n + 1))
        [ $n -gt 150 ] && return 1
        sleep 0.1
    done
}

# ---- one picture ----
once $data/routing.jsonl --devices 8
result $? "JSON lines of ids" "$tmp/err"
has "twelve steps" "mean of 12 steps" "$tmp/out"
has "the busiest device is named" "2  ####" "$tmp/out"
once $data/vllm.log
result $? "vLLM's log" "$tmp/err"
has "its balancedness becomes max/mean" "mean of 40 steps 1.95" "$tmp/out"
has "what a log cannot say" "which experts are hot a log does not say" "$tmp/out"
has "and what older ones say" "vLLM before pull request 51813 logs this over layers, not over ranks" "$tmp/out"
log() { # log STEP "MODEL" AVERAGE MOST
    echo "(EngineCore_DP0 pid=1) INFO 09-14 10:20:00 [eplb_state.py:612] EPLB step: $1$2: avg_tokens=$3, max_tokens=$4"
}
# Steps of a model and its drafter: the ranks wait for the one and not for the other, 48 + 8 where the mean is 24 + 8.
for step in 1 2; do
    log $step " for model big" 24.00 48
    log $step " for model draft" 8.00 8
done >"$tmp/two.log"
once "$tmp/two.log" --json
has "lines of two models are one step: 56 / 32" '"steps":2,"imbalance":1.75,"imbalance_mean":1.75' "$tmp/out"
has "and each is reported" \
    '"models":[{"name":"big","imbalance_mean":2.0},{"name":"draft","imbalance_mean":1.0}]' "$tmp/out"
once "$tmp/two.log"
has "in words, too" "big 50 %, draft 0 %" "$tmp/out"
# A large even step and a small uneven one: 100 + 20 tokens where the mean is 100 + 10, not the mean of 1 and 2.
{ log 1 "" 100.00 100; log 2 "" 10.00 20; log 3 "" 0.00 0; } | sed 's/: avg/, avg/' >"$tmp/size.log"
once "$tmp/size.log" --json
has "steps weigh as much as they take" '"steps":2,"imbalance":2.0,"imbalance_mean":1.09090909,"imbalance_worst":2.0' \
    "$tmp/out"
has "of one model without a name" '"models":[{"name":"","imbalance_mean":1.09090909}]' "$tmp/out"
{ log 1 " for model big" 24.00 48; log 1 " for model big" 24.00 24; } >"$tmp/again.log"
once "$tmp/again.log" --json
has "a model twice is two steps" '"steps":2,"imbalance":1.0,"imbalance_mean":1.5,' "$tmp/out"
{ log 1 "" 1e-300 1e300; log 2 "" 1.00 2; log 3 "" -1 2; log 4 "" 9 2; } >"$tmp/odd.log"
once "$tmp/odd.log" --json
has "numbers that are no tokens" '"steps":1,"imbalance":2.0,' "$tmp/out"
has "are not understood" '"lines_not_understood":3' "$tmp/out"
i=0
while [ $i -lt 20 ]; do
    log 1 " for model m$i" 10.00 20
    i=$((i + 1))
done >"$tmp/many.log"
once "$tmp/many.log" --json
has "twenty models" '"imbalance_mean":2.0' "$tmp/out"
[ "$(grep -o '"name"' "$tmp/out" | wc -l)" = 16 ]
result $? "sixteen are kept apart" "$tmp/out"

# Two devices, 3 of 4 rows on the first: 1.5 in each of five steps.
i=0
while [ $i -lt 5 ]; do
    echo "{\"step\": $i, \"layer\": 0, \"counts\": [2, 1, 1, 0]}"
    i=$((i + 1))
done >"$tmp/t.jsonl"
once "$tmp/t.jsonl" --devices 2 --json
has "max/mean of a known load" '"imbalance":1.5,"imbalance_mean":1.5,"imbalance_worst":1.5' "$tmp/out"
has "rows of a known load" '"device_rows":[3.0,1.0]' "$tmp/out"
once "$tmp/t.jsonl" --devices 2 --round-robin --json
has "round robin" '"device_rows":[3.0,1.0]' "$tmp/out"
echo '{"physical_to_logical_map": [[0, 3, 1, 2]]}' >"$tmp/map.json"
once "$tmp/t.jsonl" --devices 2 --current "$tmp/map.json" --json
has "the placement that runs" '"device_rows":[2.0,2.0]' "$tmp/out"
printf 'step,layer,0,1,2,3\n0,0,2,1,1,0\n0,1,1,1,1,1\n1,0,2,1,1,0\n1,1,1,1,1,1\n' >"$tmp/t.csv"
once "$tmp/t.csv" --devices 2 --json
has "CSV: two layers, (3 + 2) / (2 + 2)" '"imbalance":1.25' "$tmp/out"

# The layers of a map: with rows 0 1 | 2 3 for the first of two layers and 0 3 | 1 2 for the second, seven of eight rows
# are on one device; with the rows of each other's layer, four.
awk 'BEGIN { print "layer,device,slot,expert"; row[0] = "0123"; row[1] = "0312"
    for (l = 0; l < 2; l++) for (s = 0; s < 4; s++) print l "," int(s / 2) "," s "," substr(row[l], s + 1, 1) }' \
    >"$tmp/m01.csv"
lines() { # lines STEPS FIRST SECOND: a step has two layers, of these numbers
    awk -v steps="$1" -v a="$2" -v b="$3" 'BEGIN { for (s = 0; s < steps; s++) {
        printf "{\"step\": %d, \"layer\": %d, \"counts\": [4, 3, 1, 0]}\n", s, a
        printf "{\"step\": %d, \"layer\": %d, \"counts\": [4, 0, 1, 3]}\n", s, b } }'
}
order="Map and recording have no layer number in common: the map's layers 0-1 stand for the recording's 5-6, in order."
lines 5 0 1 >"$tmp/l01.jsonl"; lines 5 1 0 >"$tmp/l10.jsonl"
lines 5 5 6 >"$tmp/l56.jsonl"; lines 5 1 2 >"$tmp/l12.jsonl"
once "$tmp/l01.jsonl" --current "$tmp/m01.csv" --json
has "layers of a map by number: 2 * 7 / 8" '"imbalance":1.75' "$tmp/out"
has "the rows of both layers" '"device_rows":[14.0,2.0]' "$tmp/out"
! grep -qF "Map and recording have no layer number in common" "$tmp/out"
result $? "nothing is assumed of the map" "$tmp/out"
once "$tmp/l10.jsonl" --current "$tmp/m01.csv" --json
has "whatever their order in the file" '"imbalance":1.0,' "$tmp/out"
once "$tmp/l56.jsonl" --current "$tmp/m01.csv" --json
has "no number in common: in order" '"imbalance":1.75' "$tmp/out"
has "in the rows of the devices, too" '"device_rows":[14.0,2.0]' "$tmp/out"
has "and in the verdict" '"hot_layer":5' "$tmp/out"
has "which is said in JSON" "\"assumed\":\"$order" "$tmp/out"
once "$tmp/l56.jsonl" --current "$tmp/m01.csv" --width 160
has "and in the picture" "$order" "$tmp/out"
refuses "some numbers in common" "has layers 1-2, and of these both have only 1: they do not fit together" \
    "$tmp/l12.jsonl" --once --current "$tmp/m01.csv"
lines 2 1 2 >"$tmp/short.jsonl"
once "$tmp/short.jsonl" --current "$tmp/m01.csv" --json
has "before there can be a verdict, a reason" '"verdict":"waiting","reason":"'"$tmp/m01.csv has layers 0-1, " "$tmp/out"

# ---- the same file, the same verdict ----
# Few rows a step: the step waits for weights, and of rows saved little is time saved.
awk 'BEGIN { srand(3); for (s = 0; s < 12; s++) for (l = 0; l < 2; l++) {
    printf "{\"step\": %d, \"layer\": %d, \"counts\": [", s, l
    for (e = 0; e < 32; e++) printf "%s%d", e ? ", " : "", 40 + int(8 * rand()) + (e < 4 ? 20 : 0)
    print "]}" } }' >"$tmp/priced.jsonl"
verdict_of() { sed -n 's/.*"verdict": *"\([^"]*\)".*/\1/p' "$1" | head -n 1; }
reason_of() { sed -n 's/.*"reason": *"\([^"]*\)".*/\1/p' "$1" | head -n 1; }
for options in "" "--min-gain 0.001" "--model deepseek-v3" "--machine gb200" "--kernels normal --topk 2" \
    "--other-ms 5" "--hidden 512 --intermediate 64" "--nodes 4" "--round-robin" "--devices 16"; do
    # shellcheck disable=SC2086
    "$tool" diagnose "$tmp/priced.jsonl" --slots 32 $options --json >"$tmp/diagnosed" 2>"$tmp/err"
    # shellcheck disable=SC2086
    once "$tmp/priced.jsonl" $options --json
    [ -n "$(reason_of "$tmp/out")" ] && [ "$(reason_of "$tmp/out")" = "$(reason_of "$tmp/diagnosed")" ] &&
        [ "$(verdict_of "$tmp/out")" = "$(verdict_of "$tmp/diagnosed")" ]
    result $? "watch says what diagnose says: $options" "$tmp/out"
done
once "$tmp/priced.jsonl" --json --model deepseek-v3
has "not what the rows alone would give" '"verdict":"not now"' "$tmp/out"
once "$tmp/priced.jsonl" --json
has "what it is priced by" '"model":"gpt-oss-20b","machine":"h100","nodes":1,"kernels":"low-latency"' "$tmp/out"
once "$tmp/priced.jsonl"
has "in words, too" "times: gpt-oss-20b on h100, 1 node, low-latency kernels (--model, --machine, --nodes," "$tmp/out"
# Chance of a router that limits a token to 4 of its 8 groups, two experts from each: more than of a flat one.
awk 'BEGIN { srand(5); for (s = 0; s < 8; s++) {
    printf "{\"step\": %d, \"layer\": 0, \"ids\": [", s
    for (t = 0; t < 64; t++) {
        first = int(8 * rand())
        printf "%s[", t ? ", " : ""
        for (k = 0; k < 8; k++)
            printf "%s%d", k ? ", " : "", (first + int(k / 2) * 3) % 8 * 32 + int(16 * rand()) * 2 + k % 2
        printf "]"
    }
    print "]}" } }' >"$tmp/grouped.jsonl"
for model in deepseek-v3 olmoe-1b-7b; do
    grouped="$tmp/grouped.jsonl --devices 8 --topk 8 --model $model"
    # shellcheck disable=SC2086
    "$tool" diagnose $grouped --slots 256 --json >"$tmp/diagnosed" 2>"$tmp/err"
    chance=$(sed -n 's/.*"imbalance_chance": *\([0-9.]*\).*/\1/p' "$tmp/diagnosed" |
        awk 'NR == 1 { printf "%.2f", $1 }')
    echo "$chance" >>"$tmp/chance"
    # shellcheck disable=SC2086
    "$tool" watch $grouped --once | tr -s " \n" "  " >"$tmp/out"
    has "watch: chance as diagnose has it, $model" "chance alone gives up to $chance " "$tmp/out"
done
[ "$(sort -rn "$tmp/chance" | uniq | tr '\n' ' ')" = "$(tr '\n' ' ' <"$tmp/chance")" ]
result $? "and groups have more of it" "$tmp/chance"
# Sums over many steps: more tokens than a step can hold.
sed 's/[0-9]*\([,]\]*\)/&/g; s/\([0-9]\)\([],]\)/\1000000\2/g; s/"step": \([0-9]*\)000000,/"step": \1,/
    s/"layer": \([0-9]\)000000,/"layer": \1,/' "$tmp/priced.jsonl" >"$tmp/sums.jsonl"
"$tool" diagnose "$tmp/sums.jsonl" --slots 32 --json >"$tmp/diagnosed" 2>"$tmp/err"
once "$tmp/sums.jsonl" --json
[ -n "$(reason_of "$tmp/out")" ] && [ "$(reason_of "$tmp/out")" = "$(reason_of "$tmp/diagnosed")" ]
result $? "sums over many steps are scaled alike" "$tmp/out"
refuses "a model that is none" "no such preset" "$tmp/priced.jsonl" --model none --once
refuses "a machine that is none" "no such preset" "$tmp/priced.jsonl" --machine none --once
refuses "devices that are no whole nodes" "not a whole number of nodes of 8" "$tmp/priced.jsonl" --devices 12 --once
# Layers without experts in ids are zeros: one id for all choices.
awk 'BEGIN { for (s = 0; s < 5; s++) {
    printf "{\"step\": %d, \"layer\": 0, \"ids\": [[0, 0], [0, 0]]}\n", s
    printf "{\"step\": %d, \"layer\": 1, \"ids\": [[0, 3], [1, 2]]}\n", s } }' >"$tmp/zeros.jsonl"
once "$tmp/zeros.jsonl" --devices 2 --json
has "a layer without experts has no rows" '"imbalance":1.0,' "$tmp/out"
has "and those of the other are there" '"device_rows":[2.0,2.0]' "$tmp/out"
echo '{"step": 0, "layer": 0, "ids": [[0], [0]]}' >"$tmp/one.jsonl"
once "$tmp/one.jsonl" --devices 2 --experts 4 --json
has "of one choice it cannot be told" '"imbalance":2.0,' "$tmp/out"

# ---- lines that are broken ----
{ cat "$tmp/t.jsonl"; printf '{"step": 5, "layer": 0, "counts": [9, 0'; } >"$tmp/half.jsonl"
once "$tmp/half.jsonl" --devices 2 --json
has "half a last line is no fault" '"lines_not_understood":0' "$tmp/out"
{ cat "$tmp/t.jsonl"; echo '{"step": 5, "layer": 0, "counts": [9, -1, 0, 0]}'; echo 'nonsense'; } >"$tmp/bad.jsonl"
once "$tmp/bad.jsonl" --devices 2 --json
has "broken lines are counted" '"lines_not_understood":2' "$tmp/out"
has "and leave the rest alone" '"steps":5,"imbalance":1.5' "$tmp/out"
refuses "a file that is not there" "No such file" "$tmp/missing.jsonl" --once
refuses "a folder" "is no ordinary file" $data --once
refuses "no step at all" "holds no complete step" "$tmp/map.json" --once
refuses "a dump" "moe-ep report reads a dump" $data/sglang_counts.json --once
refuses "an array" "is .npy, which has no lines to follow; moe-ep report reads it" $data/prose_topk_ids.npy --once
timeout 20 "$tool" watch $data/prose_topk_ids.npy >"$tmp/out" 2>"$tmp/err" </dev/null
[ $? -eq 2 ] && grep -qF "is .npy, which has no lines to follow" "$tmp/err"
result $? "refused: an array, live" "$tmp/err"
printf 'a,b\n1,2\n' >"$tmp/other.csv"
refuses "a CSV without experts" "no header with columns step, layer" "$tmp/other.csv" --once
refuses "two files" "one FILE is needed" a b
refuses "no devices" "a whole number from 1" "$tmp/t.jsonl" --devices 0 --once
echo '{"physical_to_logical_map": [[0, 1, 2, 0]]}' >"$tmp/three.json"
refuses "a map of other experts" "stands in no slot" "$tmp/t.jsonl" --devices 2 --once --current "$tmp/three.json"
refuses "a page" "moe-ep report writes pages" "$tmp/t.jsonl" --html "$tmp/x.html"

# ---- following, without a terminal ----
head -n 2 "$tmp/t.jsonl" >"$tmp/grow.jsonl"
"$tool" watch "$tmp/grow.jsonl" --devices 2 --interval 0.05 >"$tmp/live" 2>"$tmp/live.err" </dev/null &
pid=$!
until_has "step 0 " "$tmp/live"
result $? "a complete step is a line" "$tmp/live"
printf '{"step": 2, "layer": 0, ' >>"$tmp/grow.jsonl"
sleep 0.2
printf '"counts": [4, 0, 0, 0]}\n{"step": 3, "layer": 0, "counts": [1, 1, 1, 1]}\n' >>"$tmp/grow.jsonl"
until_has "step 2  max/mean 2.00" "$tmp/live"
result $? "a line written in two halves" "$tmp/live"
cp "$tmp/t.jsonl" "$tmp/next" && mv "$tmp/next" "$tmp/grow.jsonl"
until_has "the file was replaced" "$tmp/live"
result $? "the file is replaced" "$tmp/live"
echo '{"step": 90, "layer": 0, "counts": [1, 1, 1, 1]}' >"$tmp/grow.jsonl"
echo '{"step": 91, "layer": 0, "counts": [1, 1, 1, 1]}' >>"$tmp/grow.jsonl"
until_has "the file was cut" "$tmp/live"
result $? "the file is cut" "$tmp/live"
until_has "step 90 " "$tmp/live"
result $? "and read from its start" "$tmp/live"
rm "$tmp/grow.jsonl"
sleep 0.2
printf '{"step": 200, "layer": 0, "counts": [0, 0, 2, 0]}\n{"step": 201, "layer": 0, "counts": [1]}\n' >"$tmp/new.jsonl"
mv "$tmp/new.jsonl" "$tmp/grow.jsonl"
until_has "step 200 " "$tmp/live"
result $? "the file goes and comes back" "$tmp/live"
kill -TERM $pid
wait $pid
code=$?
[ $code -eq 143 ]
result $? "SIGTERM ends it (status $code)" "$tmp/live.err"
grep -q "$(printf '\033')" "$tmp/live"
[ $? -ne 0 ]
result $? "no escape sequences without a terminal" "$tmp/live"

# A step of one layer where the map has two: it fits when the other has come, which is said once.
: >"$tmp/late.jsonl"
: >"$tmp/live" # before the other process may get to it: the lines of the run before are no answer
"$tool" watch "$tmp/late.jsonl" --current "$tmp/m01.csv" --interval 0.05 >"$tmp/live" 2>"$tmp/live.err" </dev/null &
pid=$!
{ sed -n 1p "$tmp/l56.jsonl"; sed -n '3,$p' "$tmp/l56.jsonl"; } >>"$tmp/late.jsonl"
until_has "step 3 " "$tmp/live"
result $? "a first step that lacks a layer" "$tmp/live.err"
has "max/mean of the others" "step 3  max/mean 1.75" "$tmp/live"
lines 9 5 6 | sed -n '11,$p' >>"$tmp/late.jsonl"
until_has "step 7 " "$tmp/live"
kill -TERM $pid
wait $pid
[ "$(grep -cF "($order)" "$tmp/live")" = 1 ]
result $? "what is taken for granted is said once" "$tmp/live"

# A reader that goes away: SIGPIPE ends it with the next line, and not before.
# shellcheck disable=SC2094
( sleep 0.5; while [ ! -e "$tmp/gone" ]; do cat "$tmp/t.jsonl" >>"$tmp/pipe.jsonl"; sleep 0.1; done ) &
feeder=$!
cp "$tmp/t.jsonl" "$tmp/pipe.jsonl"
{
    timeout 120 "$tool" watch "$tmp/pipe.jsonl" --devices 2 --interval 0.05 2>"$tmp/err"
    echo $? >"$tmp/code"
} | head -n 1 >"$tmp/one"
touch "$tmp/gone"
wait $feeder
[ "$(cat "$tmp/code")" = 141 ] && [ "$(wc -l <"$tmp/one")" = 1 ] && [ ! -s "$tmp/err" ]
result $? "a reader that goes away ends it (status $(cat "$tmp/code"))" "$tmp/err"

# ---- on a terminal ----
esc=$(printf '\033')
# played NAME WANTED ACTION...: what pty says of a run on a terminal
played() {
    name=$1 wanted=$2
    shift 2
    TERM=${term:-xterm} "$tmp/pty" "$tmp/screen" "$@" -- "$tool" watch $data/routing.jsonl --devices 8 --interval 0.05 \
        >"$tmp/how" 2>&1
    [ "$(cat "$tmp/how")" = "$wanted" ]
    result $? "$name" "$tmp/how"
}
left() { # left NAME: cursor, wrapping and screen are given back at the end
    tail -c 40 "$tmp/screen" | grep -qF "${esc}[?7h${esc}[?25h${esc}[?1049l"
    result $? "$1" "$tmp/screen"
}
if ! $CC -O1 tests/pty.c -o "$tmp/pty" 2>"$tmp/log"; then fail "a program with a terminal" "$tmp/log"
elif ! "$tmp/pty" "$tmp/screen" -- /bin/echo there >"$tmp/log" 2>&1; then skip "on a terminal" "there are none here"
else
    played "q ends it" "exit 0 cooked" "wait:q quits" raw key:q
    grep -qF "${esc}[?1049h" "$tmp/screen"
    result $? "it draws on a screen of its own" "$tmp/screen"
    left "and gives the terminal back"
    played "space holds it still, space goes on" "exit 0 cooked" "wait:q quits" "key: " "wait:held still" \
        "key: " "wait:q quits, space" key:q
    played "the interrupt key ends it" "exit 0 cooked" "wait:q quits" "key:$(printf '\003')"
    left "and gives the terminal back"
    played "SIGTERM ends it" "signal 15 cooked" "wait:q quits" signal:15
    left "and gives the terminal back"
    played "SIGHUP ends it" "signal 1 cooked" "wait:q quits" signal:1
    left "and gives the terminal back"
    played "the suspend key gives the terminal back for the time" "exit 0 cooked" "wait:q quits" \
        "key:$(printf '\032')" stopped cooked signal:18 "wait:${esc}[?1049h" "wait:q quits" raw key:q
    played "another size: the last line moves" "exit 0 cooked" "wait:${esc}[24;1H" size:12:60 "wait:${esc}[12;1H" \
        size:40:200 "wait:${esc}[40;1H" key:q
    played "a very small terminal" "exit 0 cooked" size:4:22 "wait:q quits" key:q
    played "a connection that is lost" "signal 1 gone" "wait:q quits" hangup
    term=dumb
    played "TERM=dumb" "exit 0 cooked" "wait:max/mean" cooked "key:$(printf '\003')"
    grep -q "$esc" "$tmp/screen"
    [ $? -ne 0 ]
    result $? "gets plain lines" "$tmp/screen"
    term=xterm
    NO_COLOR=1 played "NO_COLOR" "exit 0 cooked" "wait:q quits" key:q
    grep -q "${esc}\[[0-9;]*m" "$tmp/screen"
    [ $? -ne 0 ]
    result $? "is respected" "$tmp/screen"
fi
finish 25
