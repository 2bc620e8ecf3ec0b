#!/bin/sh
# tests/run.sh - runs every suite, several at a time, and sums up; called by `make test` and `make check`.
# SPDX-License-Identifier: MIT
# usage: run.sh [--check] TEST_PROGRAM...
# environment: JOBS, ONLY (run the suites whose name contains it), and what the suites themselves read
# A suite is a program or script whose last line is "N passed, N failed[, N skipped]"; its whole output
# is kept in build/logs/NAME.log.  No such line, or an exit status against it, is a failure of its own.
# `make test` prints its suites in one order, whichever ends first; `make check`, which takes long, as they end.
logs=build/logs
mkdir -p "$logs" || exit 2

name_of() { printf '%s' "$1" | sed 's|^sh tests/||; s|^build/||; s|^tests/||; s| --|_|; s|[ /]|_|g; s|\.sh||g'; }

if [ "$1" = --one ]; then # run.sh --one COMMAND-LINE: one suite, one line of output
    suite=$2
    name=$(name_of "$suite")
    log=$logs/$name.log
    start=$(date +%s)
    $suite >"$log" 2>&1 </dev/null
    code=$?
    took=$(($(date +%s) - start))
    line=$(tail -n 1 "$log" | grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$')
    # shellcheck disable=SC2046
    set -- $(printf '%s' "$line" | tr -c '0-9' ' ')
    p=${1:-0} f=${2:-0} s=${3:-0}
    if [ ! -e "${suite#sh }" ] && [ "${suite#sh }" = "$suite" ]; then
        why="it was not built"
        f=1
    elif [ -z "$line" ]; then
        why="it ended without its closing line, exit status $code"
        f=$((f + 1))
    elif [ "$code" -ne 0 ] && [ "$f" -eq 0 ]; then
        why="exit status $code"
        f=$((f + 1))
    elif [ "$p$f$s" = 000 ]; then
        why="nothing ran"
        f=1
    fi
    echo "$p $f $s $took" >"$logs/$name.sum"
    if [ "$f" -eq 0 ]; then
        mark=ok note=
        [ "$s" -gt 0 ] && note=" ($s skipped)"
    else
        mark=FAIL note=" ($f failed, see $log)"
    fi
    # one write, so that suites running side by side do not mix their lines
    lines=$(
        printf '  %-4s %-24s %5d passed%s, %d s\n' "$mark" "$name" "$p" "$note" "$took"
        if [ "$f" -gt 0 ]; then
            [ -n "${why:-}" ] && echo "       $why"
            if [ -n "$line" ]; then grep -vE '^  (ok  |skip) ' "$log"; else tail -n 25 "$log"; fi |
                head -n 40 | sed 's/^/       /'
        fi
        [ "$s" -gt 0 ] && grep -E '^ +skip(ped)?:? ' "$log" | head -n 12 | sed 's/^ */       /'
    )
    if [ -n "${IN_ORDER:-}" ]; then
        printf '%s\n' "$lines" >"$logs/$name.out.part"
        mv "$logs/$name.out.part" "$logs/$name.out"
    else printf '%s\n' "$lines"; fi
    exit 0
fi

gates=
if [ "$1" = --check ]; then
    gates=1
    shift
fi
rm -f "$logs"/*.sum "$logs"/*.out
{
    # the longest first, so that the others fill the gaps
    if [ -n "$gates" ]; then
        echo "sh tests/mutate.sh"
        for gate in ASan Valgrind fanalyzer MSan; do echo "sh tests/check.sh $gate"; done
    fi
    echo "sh tests/compile/matrix.sh${gates:+ --full}"
    echo "sh tests/oom_tool.sh${gates:+ --full}"
    echo "sh tests/recipes.sh${gates:+ --full}"
    if [ -n "$gates" ]; then
        for gate in level TSan tool cppcheck clang-tidy examples; do echo "sh tests/check.sh $gate"; done
        for target in s390x armv7 aarch64 riscv64 ppc64le m32 tcc musl fastmath lto; do
            echo "sh tests/portability.sh $target"
        done
        echo "sh tests/fuzz/fuzz.sh --check"
        for gate in coverage load determinism planted blas bench deb; do
            [ -e "tests/$gate.sh" ] && echo "sh tests/$gate.sh"
        done
    fi
    early="tests/cuda.sh tests/compile/include.sh tests/readme.sh tests/manpage.sh tests/dist.sh"
    early="$early tests/symbols.sh tests/cmake.sh"
    for script in $early; do [ -e "$script" ] && echo "sh $script"; done
    for program in "$@"; do echo "$program"; done
    for script in tests/install.sh tests/python.sh tests/style.sh tests/examples.sh tests/mpi.sh tests/test_*.sh; do
        [ -e "$script" ] && echo "sh $script"
    done
} >"$logs/suites"
[ -n "${ONLY:-}" ] && { grep -F -- "$ONLY" "$logs/suites" >"$logs/some"; mv "$logs/some" "$logs/suites"; }
want=$(wc -l <"$logs/suites")
run_all() { tr '\n' '\0' <"$logs/suites" | xargs -0 -P "${JOBS:-2}" -n 1 sh "$0" --one; }
if [ -n "$gates" ]; then run_all
else
    export IN_ORDER=1
    run_all &
    runner=$!
    trap 'kill $runner 2>/dev/null; exit 130' INT TERM HUP
    while IFS= read -r suite; do
        out=$logs/$(name_of "$suite").out
        while [ ! -e "$out" ] && kill -0 $runner 2>/dev/null; do sleep 0.2; done
        [ ! -e "$out" ] || cat "$out"
    done <"$logs/suites"
    wait $runner
fi

if [ -n "$gates" ] && [ -z "${ONLY:-}" ]; then
    sh tests/gates.sh || echo "0 1 0" >"$logs/gates.sum"
    [ -e "$logs/gates.sum" ] || echo "1 0 0" >"$logs/gates.sum"
    want=$((want + 1))
fi
cat "$logs"/*.sum 2>/dev/null | awk -v want="$want" '
    { p += $1; f += $2; s += $3; n++ }
    END {
        if (n != want || n == 0) { printf "  FAIL %d suites should have run, %d did\n", want, n; f++ }
        if (s) printf "%d passed, %d failed, %d skipped\n", p, f, s
        else printf "%d passed, %d failed\n", p, f
        exit f > 0 || p == 0
    }'
