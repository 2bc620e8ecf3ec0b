#!/bin/sh
# tests/check.sh - the heavier gates of `make check`: sanitizers, Valgrind, static analysers.
# SPDX-License-Identifier: MIT
# usage: check.sh [GATE]   only the gates whose name contains GATE: ASan, MSan, TSan, Valgrind, level, tool, examples,
#                          fanalyzer, cppcheck, clang-tidy
. tests/lib.sh
only=${1:-}
dir=build/check/${only:-all}
mkdir -p "$dir"
gate() { case $1 in *"$only"*) return 0 ;; *) return 1 ;; esac }
flags=$TEST_FLAGS
programs=$(ls tests/test_*.c)
# A build under a sanitizer or Valgrind is slow on purpose, see t_slow in t.h.  Simulations that gcc's sanitizers have
# watched are fewer under clang's.
export MOE_EP_SLOW=1

# The object of a test program that is compiled once for all gates that only exchange the implementation.
shared() { # shared SOURCE
    o=build/check/shared/$(basename "$1" .c).o
    mkdir -p build/check/shared
    # shellcheck disable=SC2086
    if [ ! -e "$o" ] || [ -n "$(find moe_ep.h "$1" tests/*.h -newer "$o")" ]; then
        $CC $flags ${at:--O1} -c "$1" -o "$o.$$" && mv "$o.$$" "$o"
    fi
}

# of_source SOURCE: what the program is told to run; nothing: all of it
of_source() { :; }

# all_tests GATE NAME COMPILER_AND_FLAGS RUNNER...: builds each test program that way and runs it; with share=1 only the
# implementation, and the programs that have a copy of it of their own, at the gate's level.  Otherwise programs that
# hardly compute are not optimised, which takes a minute less where they have a copy of the header.
# NAME is the implementation's among the objects that suites share.
all_tests() {
    gate=$1 build=$3 kept=$2
    shift 3
    gate "$gate" || return 0
    # shellcheck disable=SC2086
    if ! implementation "$kept" $build $flags -DMOE_EP_NO_BLAS ${of_header:-}; then
        fail "$gate: the implementation compiles" "$tmp/cc.log"
        return
    fi
    impl=$object
    for source in $programs; do
        name=$(basename "$source" .c)
        libs="-lm -pthread" object=$source at=-O0
        grep -q 'needs: glpk' "$source" && libs="$libs ${GLPK_LIBS:-}"
        case $name in test_forward* | test_loads_portable | test_balance | test_place_plain) at= ;; esac
        if [ "${share:-0}" = 1 ]; then
            if grep -qE 'define MOE_EP_(STATIC|IMPLEMENTATION)' "$source"; then at=
            elif shared "$source" >"$tmp/log" 2>&1; then object=$o
            fi
        fi
        start=$(date +%s) said=$(of_source "$source")
        # shellcheck disable=SC2086
        if ! $build $flags $at "$object" "$impl" -o "$dir/$name" $libs >"$tmp/log" 2>&1; then
            fail "$gate: $name compiles" "$tmp/log"
        elif timeout 1200 "$@" "$dir/$name" $said >"$tmp/log" 2>&1; then
            pass "$gate: $name, $(($(date +%s) - start)) s$(sed -n '$s/.*\(, [0-9]* skipped\)$/\1/p' "$tmp/log")"
        else tail -n 25 "$tmp/log" >"$tmp/tail"; fail "$gate: $name" "$tmp/tail"; fi
    done
}
sanitizer_works() { # sanitizer_works COMPILER FLAGS
    printf 'int main(void) { return 0; }\n' >"$tmp/san.c"
    # shellcheck disable=SC2086
    "$1" $2 "$tmp/san.c" -o "$tmp/san" >/dev/null 2>&1 && "$tmp/san"
}

for compiler in gcc clang; do
    sanitizers $compiler
    if [ $compiler = gcc ]; then slow=1; else slow=2; fi
    if ! have $compiler; then skip "ASan and UBSan with $compiler" "not installed (package $compiler)"
    elif sanitizer_works $compiler "$san"; then
        all_tests "ASan and UBSan, $compiler" asan-$compiler "$compiler $san -DMOE_EP_DEBUG" env MOE_EP_SLOW=$slow
    else skip "ASan and UBSan with $compiler" "its runtime is missing (package libgcc-12-dev or libclang-rt-dev)"; fi
done
of_header=
if ! have clang; then skip "MSan" "clang is not installed (package clang)"
elif sanitizer_works clang -fsanitize=memory; then
    all_tests "MSan, clang" msan "clang -fsanitize=memory -fno-sanitize-recover=all -O1" env MOE_EP_SLOW=2
else skip "MSan" "its runtime is missing (package libclang-rt-dev)"; fi
# The expert forward with a caller's threads, and every section on shared inputs.  Tests that start no threads have one,
# which races with nobody.
of_source() {
    awk '/^TEST\(/ { test = $0; sub(/^TEST\(/, "", test); sub(/\).*/, "", test) }
        test != "" && /threads_start\(|pthread_create\(/ { only = only (only == "" ? "--only " : ",") test; test = "" }
        /^}/ { test = "" }
        END { print only == "" ? "--only none" : only }' "$1" # of that name there is none, which fails
}
for compiler in gcc clang; do
    if have $compiler && sanitizer_works $compiler -fsanitize=thread; then
        saved=$programs programs="tests/test_threads.c tests/test_forward.c tests/test_hooks.c"
        all_tests "TSan, $compiler" tsan-$compiler "$compiler -fsanitize=thread -fno-sanitize-recover=all -O1" env
        programs=$saved
    else skip "TSan with $compiler" "its runtime is missing (package libgcc-12-dev or libclang-rt-dev)"; fi
done
of_source() { :; }
share=1
if have valgrind; then
    # Valgrind is slow at fused multiply-adds: glibc is asked for its exp and log without them.  The kernels are those
    # of the processor all the same, which the header asks itself; other C libraries do not read the variable.
    plain=glibc.cpu.hwcaps=-AVX2,-FMA
    all_tests "Valgrind" cc-O2 "$CC -O2" env MOE_EP_SLOW=2 GLIBC_TUNABLES=$plain valgrind -q --error-exitcode=9 \
        --leak-check=full --errors-for-leak-kinds=definite
else skip "Valgrind" "not installed (package valgrind)"; fi
for level in -O0 -O3 -Os; do all_tests "level $level, $CC" cc$level "$CC $level" env; done

# The tool and the examples, too.
if gate "examples" && have gcc && sanitizer_works gcc "-fsanitize=address,undefined"; then
    sanitizers gcc
    # shellcheck disable=SC2086
    implementation asan-gcc gcc $san $flags -DMOE_EP_NO_BLAS || exit 2
    for source in examples/[0-9]*.c; do
        [ -e "$source" ] || break
        # shellcheck disable=SC2086
        libs=
        grep -q 'needs: jansson' "$source" && libs=$(pkg-config --cflags --libs jansson)
        # shellcheck disable=SC2086
        check "ASan and UBSan, example $(basename "$source" .c)" sh -c \
            'libs=$1 dir=$2; shift 2; gcc "$@" $libs -o "$dir/example" -lm && "$dir/example"' sh \
            "$libs" "$dir" $san $flags -Iexamples "$source" "$object"
    done
fi

# The tool under ASan, UBSan and LeakSanitizer: every command, every format and every refusal of its own suites.
# A refusal (exit status 2) leaves in the middle of its work: what a function held in registers then is no leak.
tool_suites() {
    cat >"$tmp/refusal.c" <<'EOF_C'
#include <stdlib.h>
static int left_with;
static void note(int status, void *unused) { (void)unused; left_with = status; }
__attribute__((constructor)) static void begin(void) { (void)on_exit(note, NULL); }
int __lsan_is_turned_off(void) { return left_with == 2; }
EOF_C
    sanitizers gcc
    # shellcheck disable=SC2086
    if ! implementation asan-gcc gcc $san $flags -DMOE_EP_NO_BLAS; then
        fail "tool: the implementation compiles" "$tmp/cc.log"
        return
    fi
    libs="$(pkg-config --cflags --libs jansson yaml-0.1 2>/dev/null || echo '-ljansson -lyaml') -lm -pthread"
    flags="$flags -DMOE_EP_NO_BLAS -Iexamples ${STB_CFLAGS:--isystem /usr/include/stb}"
    # stb_ds.h hashes bytes with d[3] << 24 in an int, undefined by the letter for 128 and more; it is not ours: its
    # bodies, which stand in cli_base.c, get a file of their own.
    others=$(for f in examples/cli_*.c; do [ "$f" = examples/cli_base.c ] || echo "$f"; done)
    sed '/^#define STB_DS_IMPLEMENTATION/d' examples/cli_base.c >"$tmp/cli_base.c"
    printf '#define STB_DS_IMPLEMENTATION\n#include <stb_ds.h>\n' >"$tmp/stb.c"
    # shellcheck disable=SC2086
    if ! { gcc $san -fno-sanitize=shift $flags -c "$tmp/stb.c" -o "$dir/stb.o" &&
        gcc $san $flags examples/moe_ep_cli.c "$tmp/cli_base.c" $others "$dir/stb.o" "$object" "$tmp/refusal.c" \
            -o "$dir/moe-ep" $libs; } >"$tmp/log" 2>&1; then
        fail "tool: compiles" "$tmp/log"
        return
    fi
    for suite in tests/test_cli*.sh; do
        name="tool: sanitizers and leaks, $(basename "$suite" .sh)"
        ASAN_OPTIONS=detect_leaks=1:log_path="$tmp/report" TOOL=$(pwd)/$dir/moe-ep sh "$suite" >"$tmp/log" 2>&1
        code=$?
        grep -v '^  ok ' "$tmp/log" | cat - "$tmp"/report* 2>/dev/null | tail -n 25 >"$tmp/tail"
        [ $code -eq 0 ] && ! ls "$tmp"/report* >/dev/null 2>&1
        result $? "$name" "$tmp/tail"
        rm -f "$tmp"/report*
    done
}
if ! gate "tool: sanitizers and leaks"; then :
elif have gcc && sanitizer_works gcc "-fsanitize=address,undefined"; then tool_suites
else skip "tool under ASan" "gcc or its runtime is missing (package libgcc-12-dev)"; fi

if ! gate fanalyzer; then :
elif have gcc; then
    # gcc 12 takes memory that is stored behind a caller's pointer for lost (moe_epi_grow); leaks are what
    # LeakSanitizer and Valgrind look for above.
    # The paths it follows are bounded, or it needs more than 7 GB for a header of this size.
    bounded="--param analyzer-bb-explosion-factor=2 --param analyzer-max-enodes-per-program-point=4"
    bounded="$bounded -Wno-analyzer-too-complex"
    # shellcheck disable=SC2086
    check "gcc -fanalyzer" timeout 2400 gcc -std=c99 -O1 -fanalyzer $bounded -Wno-analyzer-malloc-leak -Werror \
        -DMOE_EP_NO_BLAS -DMOE_EP_NO_SIMD -I. -c tests/compile/implementation.c -o "$dir/analyzer.o"
else skip "gcc -fanalyzer" "not installed (package gcc)"; fi
if ! gate cppcheck; then :
elif have cppcheck; then
    # the order of floats as integers needs an arithmetic shift, which every compiler that builds this has; test_route
    # compares with plain comparisons
    check "cppcheck" cppcheck --quiet --std=c99 --language=c --inline-suppr \
        --enable=warning,portability,performance --error-exitcode=1 -DMOE_EP_IMPLEMENTATION \
        -DMOE_EP_NO_BLAS -UMOE_EP_STATIC -UMOE_EP_USE_BLAS \
        --suppress=missingIncludeSystem --suppress=shiftTooManyBitsSigned moe_ep.h
else skip "cppcheck" "not installed (package cppcheck)"; fi
# clang-tidy, what is switched off and why:
# - macro-parentheses: cannot hold for lists of enumerators and for macros that take a type or a function;
# - easily-swappable-parameters: neighbouring parameters of one type are how arrays and sizes are passed;
# - DeprecatedOrUnsafeBufferHandling: wants Annex K's memcpy_s, which hardly any C library has;
# - implicit-widening-of-multiplication-result: what a caller's sizes multiply to goes through moe_epi_mul.  What is
#   left, each read: constants and lanes below 64 (routing kernels, tiles of the forward: tokens x rows of a panel
#   that is smaller than the cache); part x size, which is at most the number of experts or slots (EPLB); 2 node of a
#   tree over packs, of which there are at most half of 2^31 - 1, as each takes two items or more.  UBSan watches;
# - integer-division: five places, each meant to round down before the number becomes a double;
# - cert-flp30-c, FloatLoopCounter: ten loops that count whole numbers below 2^53, exact in a double, or lower a limit.
if ! gate clang-tidy; then :
elif have clang-tidy; then
    checks="-*,bugprone-*,cert-*,clang-analyzer-*,-bugprone-easily-swappable-parameters,-bugprone-macro-parentheses"
    checks="$checks,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling"
    checks="$checks,-bugprone-implicit-widening-of-multiplication-result,-bugprone-integer-division"
    checks="$checks,-cert-flp30-c,-clang-analyzer-security.FloatLoopCounter"
    check "clang-tidy" clang-tidy --quiet --warnings-as-errors='*' --checks="$checks" \
        --header-filter='moe_ep\.h' tests/compile/implementation.c -- -std=c99 -I. -DMOE_EP_NO_BLAS
else skip "clang-tidy" "not installed (package clang-tidy)"; fi
case $only in
    '') finish 100 ;;
    fanalyzer | cppcheck | clang-tidy) finish 1 ;; # gates of one check
    *) finish 3 ;;
esac
