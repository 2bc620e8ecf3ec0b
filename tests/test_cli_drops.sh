#!/bin/sh
# tests/test_cli_drops.sh - moe-ep drops against queues filled by hand (awk), with and without weights; bad input.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool cli_drops.c
cli=$tool
data=examples/data
LC_ALL=C
export LC_ALL

# npy DESCR SHAPE: an .npy header on stdout
npy() { printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '$1', 'fortran_order': False, 'shape': $2, }"; }

# 30 cases: T tokens of K different experts of E, weights 1/8, 1/4, 1/2 or 1, as the bytes of float32.  What is wanted:
# rows dropped, tokens hit and weight kept when queues are filled in token order, and by weight.
case=0 bad=0
while [ $case -lt 30 ]; do
    awk -v seed=$case -v ids="$tmp/t.jsonl" -v bytes="$tmp/bytes" -v want="$tmp/want" 'BEGIN {
        srand(seed + 1); T = 5 + int(40 * rand()); E = 3 + int(6 * rand()); K = 1 + seed % 3
        C = 1 + int(T * K / E * (0.3 + rand()))
        octal[0] = "\\000\\000\\000\\076"; octal[1] = "\\000\\000\\200\\076"
        octal[2] = "\\000\\000\\000\\077"; octal[3] = "\\000\\000\\200\\077"
        printf "{\"layer\": 0, \"ids\": [" > ids
        for (t = 0; t < T; t++) {
            printf "%s[", t ? ", " : "" > ids
            e = int(E * rand() * rand())
            for (k = 0; k < K; k++) {
                x[t, k] = (e + k) % E; v = int(4 * rand()); w[t, k] = 2 ^ (v - 3)
                printf "%s%d", k ? ", " : "", x[t, k] > ids
                printf "%s", octal[v] > bytes
                mass += w[t, k]
            }
            printf "]" > ids
        }
        print "]}" > ids
        for (t = 0; t < T; t++) for (k = 0; k < K; k++)
            if (n[x[t, k]]++ < C) kept += w[t, k]; else { dropped++; hit[t] = 1 }
        for (v = 3; v >= 0; v--) for (t = 0; t < T; t++) for (k = 0; k < K; k++)
            if (w[t, k] == 2 ^ (v - 3)) { if (m[x[t, k]]++ < C) best += w[t, k]; else lost[t] = 1 }
        for (t in hit) hits++
        for (t in lost) losses++
        printf "0,%d,%d,%.6g,%.6g,%.6g,%.6g\n", T * K, dropped, hits / T, losses / T, kept / mass, best / mass > want
        print T, K, E, C
    }' >"$tmp/shape"
    read -r T K E C <"$tmp/shape"
    # shellcheck disable=SC2059
    { npy '<f4' "($T, 1, $K)"; printf "$(cat "$tmp/bytes")"; } >"$tmp/w.npy"
    "$cli" drops "$tmp/t.jsonl" --experts "$E" --capacity "$C" --weights "$tmp/w.npy" --format csv >"$tmp/all" 2>&1
    tail -n 1 "$tmp/all" | cut -d, -f1-4,6,8,10 >"$tmp/got"
    cmp -s "$tmp/got" "$tmp/want" || { bad=1; paste "$tmp/want" "$tmp/got" >"$tmp/why"; break; }
    case=$((case + 1))
done
[ $bad = 0 ] && [ $case = 30 ]
result $? "30 cases: rows, tokens and weight as queues filled by hand" "$tmp/why"

works() { # works NAME TEXT ARGS...
    name=$1 text=$2
    shift 2
    "$cli" drops "$@" >"$tmp/out" 2>"$tmp/err" </dev/null && [ ! -s "$tmp/err" ] && grep -qF -- "$text" "$tmp/out"
    result $? "$name" "$tmp/out"
}
refuses() { # refuses NAME TEXT ARGS...
    name=$1 text=$2
    shift 2
    "$cli" drops "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    [ $? -eq 2 ] && [ ! -s "$tmp/out" ] && grep -qF -- "$text" "$tmp/err"
    result $? "refused: $name" "$tmp/err"
}
# Steps as recorded: 20 cases of several steps of different sizes, each with the capacity of its own tokens and with
# queues filled anew.
case=0 bad=0
while [ $case -lt 20 ]; do
    awk -v seed=$case -v ids="$tmp/s.jsonl" -v want="$tmp/want" 'BEGIN {
        srand(seed + 1); E = 4 * (1 + seed % 3); F = 0.5 + rand()
        for (s = 0; s < 6; s++) {
            T = int(30 * rand()); C = int(T * 2 / E * F); C += C < T * 2 / E * F
            all += T
            split("", n)
            printf "{\"step\": %d, \"ids\": [", s > ids
            for (t = 0; t < T; t++) {
                a = int(E * rand() * rand()); b = (a + 1) % E
                printf "%s[%d, %d]", t ? ", " : "", a, b > ids
                lost = (n[a]++ >= C) + (n[b]++ >= C); dropped += lost; hit += lost > 0
            }
            print "]}" > ids
        }
        printf "0,%d,%d,%.6g\n", 2 * all, dropped, hit / all > want
        printf "%.17g %d\n", F, E
    }' >"$tmp/shape"
    read -r F E <"$tmp/shape"
    "$cli" drops "$tmp/s.jsonl" --experts "$E" --capacity-factor "$F" --format csv >"$tmp/all" 2>&1
    tail -n 1 "$tmp/all" | cut -d, -f1-4 >"$tmp/got"
    cmp -s "$tmp/got" "$tmp/want" || { bad=1; paste "$tmp/want" "$tmp/got" >"$tmp/why"; break; }
    case=$((case + 1))
done
[ $bad = 0 ] && [ $case = 20 ]
result $? "20 cases of recorded steps: queues filled by hand" "$tmp/why"
printf '{"step": %d, "ids": [[0, 1], [0, 1], [0, 2], [0, 3]]}\n' 0 1 >"$tmp/two.jsonl"
printf '{"step": 2, "ids": []}\n{"step": 3, "ids": [[0, 3]]}\n' >>"$tmp/two.jsonl"
works "sizes and capacities" "3 steps of 1 to 4 tokens, 1 layer, top-2 of 4 experts, capacity 1 to 2 rows (factor 1)" \
    "$tmp/two.jsonl" --capacity-factor 1
grep -qF "Steps as recorded; --tokens cuts others" "$tmp/out"
result $? "that steps are as recorded is said" "$tmp/out"
# 9 tokens have 18 rows: of two steps with 4, 4 and 1, 2 rows on expert 0 are too many in each of the first two.
works "in JSON" '"rows_dropped": 4.0' "$tmp/two.jsonl" --capacity-factor 1 --json
for word in '"steps": 3' '"steps_as_recorded": true' '"tokens": 9' '"smallest_step": 1' '"largest_step": 4' \
    '"capacity": 2' '"capacity_smallest": 1' '"rows": 18.0'; do
    grep -qF "$word" "$tmp/out"
    result $? "with $word" "$tmp/out"
done
works "--tokens cuts others" '"steps": 4' "$tmp/two.jsonl" --tokens 2 --json
works "a recording that has them" "12 steps of 16 tokens, 2 layers" $data/routing.jsonl
works "what is not kept is said" "The first 512 of 600 tokens are counted" "$(
    awk 'BEGIN { for (s = 0; s < 600; s++) printf "{\"step\": %d, \"ids\": [[%d]]}\n", s, s % 4 }' \
        >"$tmp/long.jsonl"
    echo "$tmp/long.jsonl")"
# 512 steps of a token, then 88 of nine: of 1,304 tokens the ids of 512 are kept.
awk 'BEGIN { for (s = 0; s < 600; s++) { printf "{\"step\": %d, \"ids\": [[0]", s
    for (t = 1; t < (s < 512 ? 1 : 9); t++) printf ", [%d]", t % 4; print "]}" } }' >"$tmp/grows.jsonl"
works "a headline of what is counted" "of the rows of the first 512 of 1,304 tokens" "$tmp/grows.jsonl"
tr '\n' ' ' <"$tmp/out" | grep -qF "The first 512 of 1,304 tokens are counted, those of the first 512 of 600 steps: \
of the others the ids are not kept."
result $? "and why" "$tmp/out"
works "in JSON" '"counted": "The first 512 of 1,304 tokens' "$tmp/grows.jsonl" --json
# Four steps of 1,000 leave 96 of 4,096 tokens, and of the 512 that are kept, 5 of 100 leave 12.
works "a headline of the whole steps" "of the rows of the first 4,000 of 4,096 tokens" $data/prose_topk_ids.npy \
    --tokens 1000
grep -qF "The last 96 tokens make no whole step and are not counted." "$tmp/out"
result $? "and of what is left" "$tmp/out"
works "the same of those that are kept" "of the rows of the first 500 of 1,304 tokens" "$tmp/grows.jsonl" --tokens 100
tr '\n' ' ' <"$tmp/out" | grep -qF "Of these the last 12 tokens make no whole step"
result $? "and of what is left of them" "$tmp/out"
works "steps that leave nothing" "of all rows; " $data/prose_topk_ids.npy --tokens 1024
! grep -q "no whole step" "$tmp/out"
result $? "need no word" "$tmp/out"
refuses "--tokens above what is kept" "grows.jsonl holds 1,304, the ids of the first 512 are kept" "$tmp/grows.jsonl" \
    --tokens 1000
refuses "--tokens above what there is" "two.jsonl holds 9" "$tmp/two.jsonl" --tokens 10
works "everything is all rows" "of all rows; " "$tmp/two.jsonl"
! grep -q "are counted" "$tmp/out"
result $? "and needs no reason" "$tmp/out"
"$cli" traffic "$tmp/grows.jsonl" --devices 2 --hidden 64 --json >"$tmp/out" 2>"$tmp/why"
grep -qF "those of the first 512 of 600 steps: of the others" "$tmp/why"
result $? "traffic says it, too" "$tmp/why"
# One row more than fits in each step.
for step in 0 9223372036854775806; do
    printf '{"step": %s, "ids": [[0, 1], [0, 2]]}\n' $step 9223372036854775807 >"$tmp/last.jsonl"
    works "the last step number after $step" '"rows_dropped": 2.0' "$tmp/last.jsonl" --capacity 1 --json
    grep -qF '"steps": 2' "$tmp/out" && grep -qF '"rows": 8.0' "$tmp/out"
    result $? "both steps with their ids" "$tmp/out"
done
printf '{"step": 9223372036854775807, "ids": [[0, 1], [0, 2]]}\n' >"$tmp/last.jsonl"
works "the last step number alone" '"rows_dropped": 1.0' "$tmp/last.jsonl" --capacity 1 --json
works "a capacity of one" "A capacity of 1 row drops 25.00 % of all rows" "$tmp/last.jsonl" --capacity 1
ids=$data/prose_topk_ids.npy weights=$data/prose_topk_weights.npy
works "the recording with its weights" "15.18 % when the largest weights come first" $ids --weights $weights
works "without weights two orders" "tokens_hit_choice" $ids --format csv
works "a capacity for everything drops nothing" '"rows_dropped": 0.0' $ids --capacity 4096 --json
works "factor and capacity say the same" '"capacity": 640' $ids --capacity-factor 1.25 --json
works "steps share no capacity" '"steps": 4' $ids --tokens 1000 --json
works "help" "usage: moe-ep drops" --help
refuses "counts" "drops are counted token by token" $data/sglang_counts.json
refuses "ids for weights" "holds no fractions" $ids --weights $ids
refuses "weights of another shape" "4096 tokens, 4 layers, 8 choices" $ids --weights $data/layer2_gate.npy
refuses "weights that are not there" "No such file" $ids --weights "$tmp/none.npy"
{ npy '<f4' '(1, 1, 2)'; printf '\000\000\200\077\000\000\200\277'; } >"$tmp/negative.npy"
printf '{"layer": 0, "ids": [[0, 1]]}\n' >"$tmp/one.jsonl"
refuses "a negative weight" "element 1 is -1" "$tmp/one.jsonl" --weights "$tmp/negative.npy"
head -c 100000 $weights >"$tmp/cut.npy"
refuses "truncated weights" "truncated" $ids --weights "$tmp/cut.npy"
refuses "two recordings" "reads one recording" $ids $data/c_topk_ids.npy
refuses "more tokens than there are" "holds 4,096" $ids --tokens 5000
refuses "no capacity" "--capacity 0" $ids --capacity 0
refuses "a page" "writes no page" $ids --format html
refuses "a picture" "has none" $ids --format svg
finish 47
