#!/bin/sh
# tests/fuzz/record.sh - adds a run to tests/fuzz/executions.tsv and writes tests/fuzz/executions.md from it.
# SPDX-License-Identifier: MIT
# usage: record.sh TARGET ENGINE HEADER LOG | record.sh        (the second only writes the table)
table=tests/fuzz/executions.tsv readers=tests/fuzz/readers.tsv
tries=0
until mkdir $table.lock 2>/dev/null; do # two runs may end at once
    tries=$((tries + 1))
    if [ $tries -gt 20 ]; then break; fi
    sleep 1
done
trap 'rmdir $table.lock 2>/dev/null' EXIT
for f in $table $readers; do [ -f "$f" ] || : >"$f"; done
if [ $# -eq 4 ]; then
    now=$(date +%Y-%m-%d) state=$(sha256sum "$3" | cut -c1-10)
    awk -F'\t' -v OFS='\t' -v t="$1" -v g="$2" -v now="$now" -v state="$state" '
        FNR == NR {
            if ($0 ~ /executions,/) {
                split($0, w, " +"); n = w[3]
                if (match($0, /\([0-9.]+ s of/)) s = substr($0, RSTART + 1, RLENGTH - 6)
                else s = w[5]
            }
            kinds += $0 ~ /^ +[0-9]+ times /
            next
        }
        $1 == t && $2 == g { $3 += n; $4 += s; $5 = kinds; $6 = now; $7 = state; done = 1 }
        { print }
        END { if (!done && n > 0) print t, g, n, s, kinds + 0, now, state }' "$4" $table >$table.new &&
        sort -o $table.new $table.new && mv $table.new $table
    awk -F'\t' -v OFS='\t' '
        FNR == NR {
            if ($0 ~ /^  reader /) {
                sub(/^  reader /, ""); split($0, w, ": "); gsub(/[^0-9 ]/, "", w[2]); split(w[2], v, " +")
                for (i = 1; i <= 4; i++) sum[w[1], i] = v[i]
                if (!(w[1] in kinds)) kinds[w[1]] = 1
            }
            next
        }
        { for (i = 1; i <= 4; i++) $(i + 1) += sum[$1, i]; delete kinds[$1]; print }
        END { for (k in kinds) print k, sum[k, 1], sum[k, 2], sum[k, 3], sum[k, 4] }' "$4" $readers >$readers.new &&
        sort -o $readers.new $readers.new && mv $readers.new $readers
fi
machine=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
{
    cat <<END
# Executions of the fuzz targets

Written by \`tests/fuzz/record.sh\` after a run with \`FUZZ_RECORD=1\`; one row per target and engine, over all runs.
Machine: ${machine:-unknown}, 2 of its threads, shared with other work. Engines: see \`tests/fuzz/fuzz.sh\`;
\`random\` is gcc -O2 with forbidden pages around every array, \`sanitized\` clang -O1 with ASan and UBSan.
"open" counts the kinds of findings of the last run that the header of that state still had; rows of
\`findings.h\` are replayed by \`make test\`. Seconds of libfuzzer and afl are wall time.
Header: the first ten digits of the SHA-256 of moe_ep.h in the last run.

| target | engine | executions | processor seconds | per second | open | last run | header |
|---|---|---:|---:|---:|---:|---|---|
END
    awk -F'\t' '
        { printf "| %s | %s | %d | %s | %s | %d | %s | %s |\n", $1, $2, $3, ($4 > 0 ? int($4) : "-"),
              ($4 > 0 ? int($3 / $4) : "-"), $5, $6, $7
                  all += $3; least[$1] += $3 }
        END {
            m = -1
            for (t in least) if (m < 0 || least[t] < m) { m = least[t]; which = t }
            printf "\nIn all %d executions; the fewest of a target: %d (%s).\n", all, m, which
        }' $table
    printf '\nWhat was thrown at each reader of the tool (engines `random` and `sanitized`), and what happened:\n\n'
    echo '| reader | files | of them damaged | read | refused with a message | kinds of faults open |'
    echo '|---|---:|---:|---:|---:|---:|'
    open=$(awk -F'\t' '$1 == "readers" { n += $5 } END { print n + 0 }' $table)
    awk -F'\t' -v open="$open" '{ printf "| %s | %d | %d | %d | %d | %d |\n", $1, $2, $3, $4, $5, open }' $readers
    cat <<'END'

Commands: `FUZZ_RECORD=1 FUZZ_RUNS=20000000 FUZZ_SECONDS=100000 make fuzz` for one engine after the other
(`FUZZ_ENGINE=random`, `sanitized`, `libfuzzer`, `afl`), or `sh tests/fuzz/long.sh`, which goes around the
targets that have fewer than 20 million until none is left.
END
} >tests/fuzz/executions.md
