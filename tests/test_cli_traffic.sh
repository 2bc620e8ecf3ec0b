#!/bin/sh
# tests/test_cli_traffic.sh - moe-ep traffic against a count by hand (awk), in every form it writes.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool cli_traffic.c
cli=$tool

# by_hand FILE: its matrix on D ranks against the one in want; counts the cases and those that differ
by_hand() {
    $cli traffic "$1" --devices "$D" --experts "$E" --hidden 7168 --dispatch bf16 --matrix dispatch \
        >"$tmp/got" 2>"$tmp/e" || cp "$tmp/e" "$tmp/why"
    if ! cmp -s "$tmp/want" "$tmp/got"; then bad=$((bad + 1)); cat "$tmp/e" "$tmp/want" "$tmp/got" >"$tmp/why"; fi
    case=$((case + 1))
}

# 40 cases: random ids, one layer, tokens in equal blocks over D ranks, E = 4 D experts in contiguous blocks.
case=0 bad=0
while [ $case -lt 40 ]; do
    awk -v seed=$case -v ids="$tmp/t.jsonl" -v want="$tmp/want" 'BEGIN {
        srand(seed + 1); D = 2 + seed % 5; E = 4 * D; T = D * (1 + int(9 * rand())); K = 1 + seed % 3
        printf "{\"step\": 0, \"layer\": 0, \"ids\": [" > ids
        for (t = 0; t < T; t++) {
            printf "%s[", t ? ", " : "" > ids
            e = int(E * rand())
            for (k = 0; k < K; k++) {
                x = (e + k * 3) % E
                printf "%s%d", k ? ", " : "", x > ids
                n[int(t / (T / D)), int(x / 4)]++
            }
            printf "]" > ids
        }
        print "]}" > ids
        for (s = 0; s < D; s++) for (d = 0; d < D; d++) printf "%d%s", 14336 * n[s, d], d + 1 < D ? "," : "\n" > want
        print D, E > "/dev/stdout"
    }' >"$tmp/shape"
    read -r D E <"$tmp/shape"
    by_hand "$tmp/t.jsonl"
done
[ $bad -eq 0 ]; result $? "dispatch in bytes is the count by hand, 40 cases" "$tmp/why"

$cli traffic "$tmp/t.jsonl" --devices "$D" --experts "$E" --hidden 7168 --out "$tmp/m.csv" >/dev/null 2>&1
result $? "--out .csv"
awk -F, 'NR > 1 { rows[$2] += $5 }
    END { exit !(rows["dispatch"] > 0 && rows["dispatch"] == rows["combine"]) }' "$tmp/m.csv"
result $? "what is dispatched comes back" "$tmp/m.csv"
$cli traffic "$tmp/t.jsonl" --devices "$D" --experts "$E" --hidden 7168 --out "$tmp/m.json" >/dev/null 2>&1 &&
    grep -q "\"ranks\":$D" "$tmp/m.json"
result $? "--out .json"
for wrong in "--mode odd" "--dispatch odd" "--matrix odd" "--out x.txt" "--layer 99" "--json --out x.csv"; do
    # shellcheck disable=SC2086
    $cli traffic "$tmp/t.jsonl" --devices "$D" --experts "$E" $wrong >"$tmp/o" 2>"$tmp/e"
    [ $? -eq 2 ] && [ ! -s "$tmp/o" ]; result $? "refuses $wrong" "$tmp/e"
done
# The same over several steps: the tokens of each start on the ranks in blocks, the first T mod D ranks one more.
case=0 bad=0
while [ $case -lt 20 ]; do
    awk -v seed=$case -v ids="$tmp/s.jsonl" -v want="$tmp/want" 'BEGIN {
        srand(seed + 1); D = 2 + seed % 4; E = 4 * D
        for (s = 0; s < 5; s++) {
            T = int(4 * D * rand())
            printf "{\"step\": %d, \"ids\": [", 3 * s > ids
            for (r = t = 0; r < D; r++) for (i = 0; i < int(T / D) + (r < T % D); i++) {
                a = int(E * rand()); b = (a + 5) % E
                printf "%s[%d, %d]", t++ ? ", " : "", a, b > ids
                n[r, int(a / 4)]++; n[r, int(b / 4)]++
            }
            print "]}" > ids
        }
        for (s = 0; s < D; s++) for (d = 0; d < D; d++) printf "%d%s", 14336 * n[s, d], d + 1 < D ? "," : "\n" > want
        print D, E > "/dev/stdout"
    }' >"$tmp/shape"
    read -r D E <"$tmp/shape"
    by_hand "$tmp/s.jsonl"
done
[ $bad -eq 0 ]; result $? "step after step as recorded, 20 cases" "$tmp/why"
grep -qF "Steps as recorded" "$tmp/e"; result $? "and says so" "$tmp/e"
finish 12
