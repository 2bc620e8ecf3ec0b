#!/bin/sh
# tests/check.sh - the heavier gates of `make check`: sanitizers, Valgrind, static analysers.
# SPDX-License-Identifier: MIT
. tests/lib.sh
dir=build/check
mkdir -p $dir
flags="-std=gnu99 -g -I. -Itests -Wall -Wextra"
programs=$(ls tests/test_*.c)

# all_tests GATE COMPILER_AND_FLAGS RUNNER...: builds each test program that way and runs it
all_tests() {
    gate=$1 build=$2
    shift 2
    # shellcheck disable=SC2086
    if ! $build $flags -DMOE_EP_NO_BLAS -c tests/compile/implementation.c -o $dir/impl.o >"$tmp/log" 2>&1; then
        fail "$gate: the implementation compiles" "$tmp/log"
        return
    fi
    for source in $programs; do
        name=$(basename "$source" .c)
        # shellcheck disable=SC2086
        if ! $build $flags "$source" $dir/impl.o -o "$dir/$name" -lm >"$tmp/log" 2>&1; then
            fail "$gate: $name compiles" "$tmp/log"
        elif timeout 600 "$@" "$dir/$name" >"$tmp/log" 2>&1; then pass "$gate: $name"
        else tail -n 25 "$tmp/log" >"$tmp/tail"; fail "$gate: $name" "$tmp/tail"; fi
    done
}
sanitizer_works() { # sanitizer_works COMPILER FLAGS
    printf 'int main(void) { return 0; }\n' >"$tmp/san.c"
    # shellcheck disable=SC2086
    "$1" $2 "$tmp/san.c" -o "$tmp/san" >/dev/null 2>&1 && "$tmp/san"
}

for compiler in gcc clang; do
    san="-fsanitize=address,undefined -fno-sanitize-recover=all -O1"
    if ! have $compiler; then skip "ASan and UBSan with $compiler" "not installed (package $compiler)"
    elif sanitizer_works $compiler "$san"; then all_tests "ASan and UBSan, $compiler" "$compiler $san" env
    else skip "ASan and UBSan with $compiler" "its runtime is missing (package libgcc-12-dev or libclang-rt-dev)"; fi
done
if ! have clang; then skip "MSan" "clang is not installed (package clang)"
elif sanitizer_works clang -fsanitize=memory; then
    all_tests "MSan, clang" "clang -fsanitize=memory -fno-sanitize-recover=all -O1" env
else skip "MSan" "its runtime is missing (package libclang-rt-dev)"; fi
if have valgrind; then
    all_tests "Valgrind" "$CC -O1" valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite
else skip "Valgrind" "not installed (package valgrind)"; fi
for level in -O0 -O3 -Os; do all_tests "$CC $level" "$CC $level" env; done

# The tool and the examples, too.
if have gcc && sanitizer_works gcc "-fsanitize=address,undefined"; then
    san="-fsanitize=address,undefined -fno-sanitize-recover=all -O1"
    # shellcheck disable=SC2086
    gcc $san $flags -DMOE_EP_NO_BLAS -c tests/compile/implementation.c -o $dir/impl.o || exit 2
    for source in examples/[0-9]*.c; do
        [ -e "$source" ] || break
        # shellcheck disable=SC2086
        libs=
        grep -q 'needs: jansson' "$source" && libs=$(pkg-config --cflags --libs jansson)
        # shellcheck disable=SC2086
        check "ASan and UBSan: $(basename "$source" .c)" sh -c \
            'libs=$1; shift; gcc "$@" $libs -o build/check/example -lm && build/check/example' sh \
            "$libs" $san $flags -Iexamples "$source" $dir/impl.o
    done
fi

if have gcc; then
    # gcc 12 takes memory that is stored behind a caller's pointer for lost (moe_epi_grow); leaks are what
    # LeakSanitizer and Valgrind look for above.
    check "gcc -fanalyzer" gcc -std=c99 -O1 -fanalyzer -Wno-analyzer-malloc-leak -Werror -DMOE_EP_NO_BLAS -I. \
        -c tests/compile/implementation.c -o $dir/analyzer.o
else skip "gcc -fanalyzer" "not installed (package gcc)"; fi
if have cppcheck; then
    check "cppcheck" cppcheck --quiet --std=c99 --language=c --enable=warning,portability,performance --inline-suppr \
        --error-exitcode=1 -DMOE_EP_IMPLEMENTATION -DMOE_EP_NO_BLAS -UMOE_EP_STATIC -UMOE_EP_USE_BLAS \
        --suppress=missingIncludeSystem moe_ep.h
else skip "cppcheck" "not installed (package cppcheck)"; fi
# clang-tidy: macro-parentheses cannot hold for lists of enumerators; neighbouring parameters of one type are
# how arrays and sizes are passed; the deprecated-functions check wants Annex K's memcpy_s.
if have clang-tidy; then
    checks="-*,bugprone-*,cert-*,clang-analyzer-*,-bugprone-easily-swappable-parameters,-bugprone-macro-parentheses"
    checks="$checks,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling"
    check "clang-tidy" clang-tidy --quiet --warnings-as-errors='*' --checks="$checks" \
        --header-filter='moe_ep\.h' tests/compile/implementation.c -- -std=c99 -I. -DMOE_EP_NO_BLAS
else skip "clang-tidy" "not installed (package clang-tidy)"; fi
finish 10
