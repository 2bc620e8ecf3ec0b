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
# Counts of which one layer's bytes, or those of both layers, are at the edge of 64 bits: 6e14 rows of 14336 bytes each.
printf '3e14,3e14\n3e14,3e14\n' >"$tmp/large.csv"
$cli traffic "$tmp/large.csv" --devices 1 --hidden 7168 --dispatch bf16 --layer 1 --matrix combine >"$tmp/o" 2>"$tmp/e"
[ "$(cat "$tmp/o")" = 8601600000000000000 ]; result $? "bytes near 2^63" "$tmp/o"
$cli traffic "$tmp/large.csv" --devices 1 --hidden 7168 --dispatch bf16 --matrix combine >"$tmp/o" 2>"$tmp/e"
[ $? -eq 2 ] && [ ! -s "$tmp/o" ] && grep -q 'large: 1.2e+15 rows of 14336 bytes are more than 9e18 bytes' "$tmp/e"
result $? "refuses bytes beyond it" "$tmp/e"
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
# --mode nodes: a token crosses once to each node, to the rank in its sender's place there, and from there once to each
# rank; by hand, with the nodes and ranks of every token gone through.  20 cases of 2 or 3 nodes of 2 or 3 ranks.
case=0 bad=0
while [ $case -lt 20 ]; do
    awk -v seed=$case -v ids="$tmp/n.jsonl" -v csv="$tmp/want.csv" \
        -v matrix="$tmp/want" -v nodes="$tmp/want.nodes" '
    function put(phase, of, back, s, d, n) {
        for (s = 0; s < D; s++) for (d = 0; d < D; d++) {
            n = back ? of[d, s] : of[s, d]
            if (n) print "7," phase "," s "," d "," n "," 128 * n > csv
        }
    }
    BEGIN {
        srand(seed + 1); N = 2 + seed % 2; P = 2 + int(seed / 2) % 2; D = N * P; E = 2 * D; K = 1 + seed % 4
        T = D * (1 + int(5 * rand()))
        printf "{\"step\": 0, \"layer\": 7, \"ids\": [" > ids
        for (t = 0; t < T; t++) {
            printf "%s[", t ? ", " : "" > ids
            source = int(t / (T / D)); split("", node); split("", rank)
            first = int(E * rand())
            for (k = 0; k < K; k++) {
                e = (first + k * (1 + seed % 3)) % E
                if (seed % 5 == 0 && k == 1) e = -1
                printf "%s%d", k ? ", " : "", e > ids
                if (e >= 0) { rank[int(e / 2)] = 1; node[int(int(e / 2) / P)] = 1 }
            }
            printf "]" > ids
            for (n in node) {
                crossed[int(source / P), n]++
                if (n != int(source / P)) hop[source, n * P + source % P]++
            }
            for (r in rank) rows[int(r / P) * P + source % P, r]++
        }
        print "]}" > ids
        print "layer,phase,source,destination,rows,bytes" > csv
        put("dispatch_node", hop, 0)
        put("dispatch", rows, 0)
        put("combine", rows, 1)
        put("combine_node", hop, 1)
        for (s = 0; s < D; s++) for (d = 0; d < D; d++)
            printf "%d%s", 128 * (hop[s, d] + rows[s, d]), d + 1 < D ? "," : "\n" > matrix
        printf "\"node_rows\":[" > nodes
        for (s = 0; s < N; s++) for (d = 0; d < N; d++)
            printf "%s%d%s", d ? "," : s ? ",[" : "[", crossed[s, d], d + 1 < N ? "" : "]" > nodes
        print "]" > nodes
        print D, E, N > "/dev/stdout"
    }' >"$tmp/shape"
    read -r D E N <"$tmp/shape"
    as="--devices $D --experts $E --nodes $N --hidden 64 --dispatch bf16 --combine bf16 --mode nodes"
    # shellcheck disable=SC2086
    {
        $cli traffic "$tmp/n.jsonl" $as --out "$tmp/got.csv"
        $cli traffic "$tmp/n.jsonl" $as --matrix dispatch >"$tmp/got"
        $cli traffic "$tmp/n.jsonl" $as --json >"$tmp/got.json"
    } >"$tmp/e" 2>&1
    if ! cmp -s "$tmp/want.csv" "$tmp/got.csv" || ! cmp -s "$tmp/want" "$tmp/got" ||
        ! grep -qF "$(cat "$tmp/want.nodes")" "$tmp/got.json"; then
        bad=$((bad + 1))
        diff "$tmp/want.csv" "$tmp/got.csv" >"$tmp/why" 2>&1
        cat "$tmp/e" "$tmp/want.nodes" >>"$tmp/why"
    fi
    case=$((case + 1))
done
[ $bad -eq 0 ]; result $? "once per node, then once per rank, 20 cases" "$tmp/why"
# Two nodes of two ranks, an expert and a token on each: rank 0 has a token of experts 2 and 3, rank 1 one of 0 and 3,
# rank 2 one of 2.
printf '{"step": 0, "ids": [[2, 3], [0, 3], [2, -1], [-1, -1]]}\n' >"$tmp/four.jsonl"
$cli traffic "$tmp/four.jsonl" --devices 4 --nodes 2 --hidden 64 --mode nodes 2>/dev/null | cut -d, -f2-5 >"$tmp/got"
for line in phase,source,destination,rows dispatch_node,0,2,1 dispatch_node,1,3,1 dispatch,1,0,1 dispatch,2,2,2 \
    dispatch,2,3,1 dispatch,3,3,1 combine,0,1,1 combine,2,2,2 combine,3,2,1 combine,3,3,1 combine_node,2,0,1 \
    combine_node,3,1,1; do echo $line; done >"$tmp/want"
cmp "$tmp/want" "$tmp/got" >"$tmp/why" 2>&1
result $? "four tokens by hand" "$tmp/got"
# A copy on each of four ranks for the one expert of all 64 tokens: each serves 16 rows, of all ranks.
awk 'BEGIN { printf "{\"step\": 0, \"ids\": [[0]"; for (t = 1; t < 64; t++) printf ", [0]"; print "]}" }' \
    >"$tmp/hot.jsonl"
echo '{"physical_to_logical_map": [[0, 1, 0, 2, 0, 3, 0, 1]]}' >"$tmp/copies.json"
$cli traffic "$tmp/hot.jsonl" "$tmp/copies.json" --devices 4 --experts 4 --hidden 64 --dispatch bf16 --matrix dispatch \
    2>/dev/null >"$tmp/got"
awk -F, '{ for (d = 1; d <= 4; d++) { sent[NR] += $d / 128; came[d] += $d / 128; if ($d > 8 * 128) exit bad = 1 } }
    END { for (d = 1; d <= 4; d++) if (sent[d] != 16 || came[d] != 16) bad = 1; exit bad }' "$tmp/got"
result $? "copies are not filled rank by rank" "$tmp/got"
finish 15
