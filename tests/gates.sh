#!/bin/sh
# tests/gates.sh - the table "gate | count | command" from build/logs/*.sum, into build/gates.md and on the screen.
# SPDX-License-Identifier: MIT
# A gate that ran fewer checks than tests/gates.txt demands has failed, unless it skipped more than it does on a machine
# that has every tool, or one of its suites skipped all it has; its row says then how many are wanted.  A gate of which
# no suite ran, and a suite that no gate counts, have failed, too.
for f in build/logs/*.sum; do printf '%s %s\n' "$(basename "$f" .sum)" "$(cat "$f")"; done >build/gates.sums
awk -F'\t' '
    FILENAME != "tests/gates.txt" {
        split($0, w, " "); n++; name[n] = w[1]; p[n] = w[2]; f[n] = w[3]; s[n] = w[4]; t[n] = w[5]; next
    }
    /^#/ || NF < 4 { next }
    !header {
        print "| gate | passed | failed | skipped | seconds | command |\n|---|---:|---:|---:|---:|---|"
        header = 1
    }
    {
        P = F = S = T = ran = without = 0
        for (i = 1; i <= n; i++)
            if (name[i] ~ $1) {
                P += p[i]; F += f[i]; S += s[i]; T += t[i]; ran++; counted[i] = 1
                if (s[i] && !p[i] && !f[i]) without = 1
            }
        if (!ran) {
            printf "| %s | - | - | - | - | `%s` |\n", $2, $4
            printf "%s: none of its suites ran\n", $2 > "/dev/stderr"
            bad = 1
            next
        }
        wanted = P < $3 ? " of " $3 " wanted" : ""
        printf "| %s | %d%s | %d | %d | %d | `%s` |\n", $2, P, wanted, F, S, T, $4
        if (P < $3 && S <= $5 + 0 && !without) {
            printf "%s: %d checks, at least %d are wanted\n", $2, P, $3 > "/dev/stderr"
            bad = 1
        }
    }
    END {
        for (i = 1; i <= n; i++)
            if (!counted[i]) { printf "%s: no gate counts it\n", name[i] > "/dev/stderr"; bad = 1 }
        exit bad
    }' build/gates.sums tests/gates.txt >build/gates.md
code=$?
cat build/gates.md
exit $code
