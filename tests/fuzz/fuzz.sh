#!/bin/sh
# tests/fuzz/fuzz.sh - builds the fuzz targets and runs them; `make fuzz`.
# SPDX-License-Identifier: MIT
# environment: FUZZ_ONLY     targets, "route place"; default: all
#              FUZZ_RUNS     executions of each target (default 200000)
#              FUZZ_SECONDS  at most so long each (default 60)
#              FUZZ_SEED     of the random engine
#              FUZZ_ENGINE   random     random inputs, -O2, a forbidden page behind every array (default, fastest)
#                            sanitized  random inputs under ASan and UBSan
#                            libfuzzer  clang's coverage-guided engine, ASan and UBSan (package libclang-rt-14-dev)
#                            afl        AFL++, persistent mode (package afl++); findings in build/fuzz/afl/TARGET
#              FUZZ_SURVEY   1 = the random engines go on after a finding and list each kind once
#              FUZZ_RECORD   1 = add what ran to tests/fuzz/executions.tsv and write executions.md anew
#              FUZZ_FLAGS    for the compiler: -DFZ_STRICT=0 lets results of cases beyond 1e30 be infinite
#              FUZZ_DIR      where to build (default build/fuzz);  FUZZ_HEADER  where moe_ep.h is (default .)
# One line per target: executions and seconds.  A finding prints a row for tests/fuzz/findings.h.
. tests/lib.sh
if [ "${1:-}" = --check ]; then # the short run of `make check`
    if have clang; then FUZZ_ENGINE=${FUZZ_ENGINE:-sanitized}
    else skip "fuzz targets under ASan and UBSan" "clang is not installed (package clang): without them"; fi
    FUZZ_RUNS=${FUZZ_RUNS:-20000} FUZZ_SECONDS=${FUZZ_SECONDS:-10}
fi
engine=${FUZZ_ENGINE:-random} runs=${FUZZ_RUNS:-200000} seconds=${FUZZ_SECONDS:-60} seed=${FUZZ_SEED:-1}
out=${FUZZ_DIR:-build/fuzz} header=${FUZZ_HEADER:-.}
mkdir -p "$out"
flags="-std=gnu99 -g1 -I$header -Iexamples -DMOE_EP_NO_BLAS ${FUZZ_FLAGS:-}"
san="-fsanitize=address,undefined -fno-sanitize-recover=all"
case $engine in
    random) compiler=$CC mode="-O2 -DMOE_EP_DEBUG" ;;
    sanitized) compiler=clang mode="-O1 $san" ;;
    libfuzzer) compiler=clang mode="-O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DFUZZ_ENGINE" ;;
    afl) compiler=afl-clang-fast mode="-O1 -fsanitize=fuzzer -DFUZZ_ENGINE" ;;
    *) echo "FUZZ_ENGINE=$engine: random, sanitized, libfuzzer or afl" >&2; exit 2 ;;
esac
if ! have "${compiler%% *}"; then
    skip "fuzz with $engine" "$compiler is not installed (package clang, libclang-rt-14-dev or afl++)"
    finish 1
    exit
fi

# build TARGET: the driver linked with an implementation built the same way; the readers with the tool's objects
build() {
    link="-lm" files=tests/fuzz/fuzz_$1.c from="tests/fuzz $impl"
    if [ "$1" = readers ]; then
        link="@tests/fuzz/readers.link -ljansson -lyaml -lm"
        files="$files tests/fuzz/simulate_inside.c" # which includes cli_simulate.c
        # stb_ds.h hashes bytes with d[3] << 24 in an int, undefined by the letter for 128 and more; it is not ours
        printf '[shift]\nsrc:*/stb_ds.h\n' >"$tmp/ignored"
        case $mode in *undefined*) link="$link -fsanitize-ignorelist=$tmp/ignored" ;; esac
        for f in examples/cli_*.c; do
            [ "$f" = examples/cli_simulate.c ] || files="$files $f"
        done
        from="$from examples"
    fi
    # shellcheck disable=SC2086
    if [ -x "$out/$1_$engine" ] && [ -z "$(find $from -name '*.[cho]' -newer "$out/$1_$engine")" ]; then return 0; fi
    # shellcheck disable=SC2086
    $compiler $flags $mode ${STB_CFLAGS:--I/usr/include/stb} $files "$impl" -o "$out/$1_$engine" $link
}
# replay TARGET: its rows of findings.h, by the binaries that have a main of ours
replay() {
    case $engine in random | sanitized) ;; *) return 0 ;; esac
    rows=$(sed -n "s/^ *{\"$1\", \"\([0-9a-f]*\)\".*/\1/p" tests/fuzz/findings.h)
    # shellcheck disable=SC2086
    [ -z "$rows" ] || "$out/$1_$engine" --rows $rows
}
run() {
    target=$1
    dir=$out/afl/$target
    case $engine in
        random | sanitized)
            ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 "$out/${target}_$engine" --runs "$runs" \
                --seconds "$seconds" --seed "$seed" --survey "${FUZZ_SURVEY:-0}" ;;
        libfuzzer)
            mkdir -p "$out/corpus_$target"
            [ -d tests/fuzz/corpus ] && cp tests/fuzz/corpus/"${target}"_* "$out/corpus_$target" 2>/dev/null
            ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 "$out/${target}_$engine" -runs="$runs" \
                -max_total_time="$seconds" -max_len=2048 -rss_limit_mb=0 -verbosity=0 -print_final_stats=1 \
                -artifact_prefix="$out/${target}_" "$out/corpus_$target" >"$out/$target.log" 2>&1 || {
                tail -n 30 "$out/$target.log"
                return 1
            }
            awk -v t="$target" '/number_of_executed_units/ { n = $2 } /average_exec_per_sec/ { r = $2 }
                END { printf "fuzz %-10s %d executions, %d s, libFuzzer\n", t, n, r ? n / r : 0 }' "$out/$target.log" ;;
        afl)
            rm -rf "$dir"
            mkdir -p "$dir/in"
            printf '0123456789abcdef' >"$dir/in/a"
            AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_NO_UI=1 AFL_NO_AFFINITY=1 \
                afl-fuzz -V "$seconds" -E "$runs" -i "$dir/in" -o "$dir/out" "$out/${target}_$engine" \
                >"$out/$target.log" 2>&1
            awk -F: -v t="$target" '/^execs_done/ { n = $2 } /^run_time/ { s = $2 } /^saved_crashes/ { c = $2 }
                END { printf "fuzz %-10s %d executions, %d s, AFL++, %d crashes\n", t, n, s, c; exit c > 0 }' \
                "$dir/out/default/fuzzer_stats" ;;
    esac
}

# Public functions that no target calls; the presets of routers, models and machines are called by name.
uncalled() {
    # shellcheck disable=SC2154
    sed -n 's/^MOE_EP_API [^(]*[ *]\(moe_ep_[A-Za-z0-9_]*\)(.*/\1/p' "$header/moe_ep.h" | sort -u |
        grep -v '^moe_ep_\(router\|model\|machine\)_' >"$tmp/api"
    wc -l <"$tmp/api" | tr -d ' ' >"$tmp/count"
    # a comment that names a function does not call it
    cat tests/fuzz/fuzz_*.c tests/fuzz/fuzz*.h | sed -e 's,/\*[^*]*\*/,,g' -e '/^ \* /d' -e 's,/\*.*,,' |
        grep -o 'moe_ep_[A-Za-z0-9_]*(' | tr -d '(' | sort -u | comm -23 "$tmp/api" -
}
if [ -z "${FUZZ_ONLY:-}" ]; then
    uncalled >"$tmp/uncalled"
    [ ! -s "$tmp/uncalled" ]
    result $? "every public function is called by a target ($(cat "$tmp/count"))" "$tmp/uncalled"
fi

impl=$out/impl_$engine.o
if [ "$engine" = sanitized ] && [ "$header" = . ] && [ -z "${FUZZ_FLAGS:-}" ]; then # check.sh's, which looks closer
    sanitizers clang
    # shellcheck disable=SC2086
    implementation asan-clang clang $san $TEST_FLAGS -DMOE_EP_NO_BLAS $of_header || { cat "$tmp/cc.log"; exit 2; }
    impl=$object
elif [ -z "$(find "$impl" -newer "$header/moe_ep.h" 2>/dev/null)" ]; then
    printf '#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n' >"$out/impl.c"
    # shellcheck disable=SC2086
    $compiler $flags $mode -c "$out/impl.c" -o "$impl" || exit 2
fi
for source in tests/fuzz/fuzz_*.c; do
    target=$(basename "$source" .c)
    target=${target#fuzz_}
    case " ${FUZZ_ONLY:-$target} " in *" $target "*) ;; *) continue ;; esac
    if ! build "$target" >"$tmp/log" 2>&1; then
        if [ "$target" = readers ] &&
            ! printf '#include <jansson.h>\n#include <yaml.h>\n' | $CC -E - >/dev/null 2>&1; then
            skip "$target" "no jansson.h or yaml.h (packages libjansson-dev, libyaml-dev)"
        else fail "$target compiles" "$tmp/log"; fi
    elif ! replay "$target" >"$tmp/log" 2>&1; then fail "$target: an old finding is back" "$tmp/log"
    elif run "$target" >"$tmp/log" 2>&1; then
        cat "$tmp/log"
        [ "${FUZZ_RECORD:-0}" = 1 ] && sh tests/fuzz/record.sh "$target" "$engine" "$header/moe_ep.h" "$tmp/log"
        pass "$target"
    else fail "$target" "$tmp/log"; fi
done
finish 1
