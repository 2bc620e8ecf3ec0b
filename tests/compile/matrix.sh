#!/bin/sh
# tests/compile/matrix.sh - the header under every compiler and standard that is here, warnings are errors.
# SPDX-License-Identifier: MIT
# usage: matrix.sh          every compiler x standard; the first standard of a compiler is compiled (gcc: -O2, whose
#                           warnings need the optimiser), the others are read only (-fsyntax-only), which is all
#                           that a standard changes and where clang gives its warnings
#        matrix.sh --full   each compiled at -O0 -O2 -O3 -Os, GNU dialects too, and every gcc and clang installed
#                           (where two standards hand the optimiser the same code, see `known`, it runs once for both)
# One check = one compiler, standard and level: the declarations alone, then the implementation.
. tests/lib.sh
. tests/compile/strict.sh
full=
if [ "${1:-}" = --full ]; then full=-O2; fi

# What -Weverything says beyond that and why it is not wanted: struct padding is not an error, C99 allows
# declarations between statements, pointers are how C passes arrays, C++98 is no target, and a C header
# writes NULL and casts the C way.
EVERYTHING="-Weverything -Wno-padded -Wno-declaration-after-statement -Wno-unsafe-buffer-usage
 -Wno-disabled-macro-expansion -Wno-unknown-warning-option -Wno-pre-c11-compat -Wno-switch-default"
EVERYTHING_CXX="$EVERYTHING -Wno-c++98-compat -Wno-c++98-compat-pedantic -Wno-old-style-cast
 -Wno-zero-as-null-pointer-constant"

# try NAME COMPILER FLAGS... : both halves of the header
try() {
    name=$1
    shift
    # shellcheck disable=SC2086
    check "$name" both "$@"
}
both() {
    "$@" -I. -c tests/compile/declarations.c -o "$tmp/d.o" || return
    if [ -n "$full" ]; then
        known "$@" || { "$@" -I. -c tests/compile/implementation.c -o "$tmp/i.o" && : >"$seen"; }
        return
    fi
    case "$*" in
        *-fsyntax-only*) "$@" -I. -c tests/compile/implementation.c ;;
        "gcc -std=c99 -O2 "*) in_library || "$@" -I. -c tests/compile/implementation.c -o "$tmp/i.o" ;;
        *std=c++17*) implementation c++17 "$@" || { cat "$tmp/cc.log"; return 1; } ;; # include.sh links it
        *) "$@" -I. -c tests/compile/implementation.c -o "$tmp/i.o" ;;
    esac
}
# known COMPILER FLAGS...: whether the compiler makes the same of the implementation as in a cell that has passed.
# The whole front end runs, with its warnings as errors; compared is what it hands to the optimiser: for clang, whose
# warnings end there, its code before the first pass; for gcc the preprocessed header and all functions after the early
# passes, which no warning waits for.  From there on it is the same work with the same end.  GNU dialects of gcc let it
# join products and sums later, and count as another command.  A level whose preprocessed text, library headers and all,
# is that of the level before it has been through the front end there and hands over what was handed over there: two
# standards that came to the same there do here.  Sets seen, a file that says that this one has passed.
known() {
    seen=$tmp/seen
    case "$*" in *" -D"*) return 1 ;; *" -std="*" -O"[23s]*) ;; *) return 1 ;; esac
    read=$tmp/read-$(printf '%s\n' "$@" | grep -v '^-O[23s]$' | cksum | tr ' ' '-')
    "$@" -I. -E -P tests/compile/implementation.c >"$tmp/text" || return 1
    text=$(cksum <"$tmp/text")
    : >"$tmp/handed"
    if [ -e "$read" ] && [ "$(sed 1q "$read")" = "$text" ]; then :
    elif is_clang "$1"; then
        "$@" -I. -S -emit-llvm -Xclang -disable-llvm-passes tests/compile/implementation.c -o "$tmp/handed.s" &&
            awk "$same_code" "$tmp/handed.s" >"$tmp/handed" || return 1
    else
        "$@" -I. -E tests/compile/implementation.c >"$tmp/handed.i" && rm -f "$tmp/handed.s" &&
            "$@" -I. -flto -fdump-tree-release_ssa="$tmp/handed.s" -c tests/compile/implementation.c -o "$tmp/i.o" &&
            awk '/^# [0-9]+ "/ { inside = $3 ~ /moe_ep\.h"$/; next } inside' "$tmp/handed.i" >"$tmp/handed" &&
            awk "$same_code" "$tmp/handed.s" >>"$tmp/handed" || return 1
    fi
    if is_clang "$1"; then key=$(printf '%s\n' "$@" | grep -vE '^-(std=|W)')
    else key=$(printf '%s\n' "$@" | sed 's/^-std=gnu.*/gnu/; /^-std=/d'); fi
    if [ -s "$tmp/handed" ]; then
        [ "$(wc -l <"$tmp/handed")" -gt 50000 ] || return 1
        printf '%s\n' "$text" "$(cksum <"$tmp/handed")" >"$read"
    fi
    seen=$tmp/seen-$({ printf '%s\n' "$key"; sed 1d "$read"; } | cksum | tr ' ' '-')
    [ -e "$seen" ]
}
# Numbers that are places in tables of the compiler, where library headers of other standards declare more, become the
# order in which they come; places in the source, which clang keeps for messages about assembly, are left out.
# shellcheck disable=SC2016
same_code='
    function order(name) { if (!(name in number)) number[name] = ++count; return number[name] }
    /^;; Function / { sub(/ \(.*/, "") }
    match($0, /!srcloc ![0-9]+/) { place[substr($0, RSTART + 8, RLENGTH - 8)] = 1; sub(/!srcloc ![0-9]+/, "") }
    /^![0-9]+ = / && $1 in place { next }
    {
        out = ""
        while (match($0, /<T[0-9a-f]+>|[A-Za-z_]\.[0-9]+|_anon_[0-9]+/)) {
            out = out substr($0, 1, RSTART - 1) "@" order(substr($0, RSTART, RLENGTH))
            $0 = substr($0, RSTART + RLENGTH)
        }
        print out $0
    }'
# in_library: whether the library was compiled by gcc at -O2 with all these warnings, and none was given
in_library() {
    # shellcheck disable=SC2086
    [ -z "$full" ] && built_library && is_gcc gcc && [ "$(readlink -f "$(command -v "${CC%% *}")")" = \
        "$(readlink -f "$(command -v gcc)")" ] && [ "$CC" = "${CC%% *}" ] &&
        sed 1q build/lib/moe_ep_lib.log | grep -qE -- '-std=c99 (.* )?-O2 ' &&
        sed 1q build/lib/moe_ep_lib.log | grep -qF -- "$(as_warnings $STRICT $STRICT_C $STRICT_GCC)" &&
        [ "$(wc -l <build/lib/moe_ep_lib.log)" = 1 ]
}

c_compiler() { # c_compiler COMMAND PACKAGE
    if ! have "$1"; then
        skip "$1, C99 to C23" "not installed (package $2)"
        return
    fi
    more=$STRICT_GCC
    is_clang "$1" && more=
    for std in c99 c11 c17 c2x ${full:+gnu99 gnu17}; do
        levels="-O0 -O2 -O3 -Os"
        [ -n "$full" ] || case $std in
            c99) if is_clang "$1"; then levels=-O0; else levels=-O2; fi ;;
            *) levels=-fsyntax-only ;;
        esac
        for level in $levels; do
            # shellcheck disable=SC2086
            try "$1 -std=$std $level" "$1" -std=$std $level $STRICT $STRICT_C $more
        done
    done
    level=${full:--fsyntax-only} # symbols.sh compiles some of them, too
    for define in MOE_EP_STATIC MOE_EP_NO_FORWARD MOE_EP_NO_MALLOC MOE_EP_NO_SIMD MOE_EP_DEBUG; do
        # shellcheck disable=SC2086
        try "$1 -std=c11 -D$define" "$1" -std=c11 $level -D$define $STRICT $STRICT_C $more
    done
    if [ "${BLAS:-1}" = 1 ]; then
        # shellcheck disable=SC2086
        try "$1 -std=c99 -DMOE_EP_USE_BLAS" "$1" -std=c99 $level -DMOE_EP_USE_BLAS ${BLAS_CFLAGS:-} \
            $STRICT $STRICT_C $more
    fi
    if is_clang "$1"; then
        # shellcheck disable=SC2086
        try "$1 -Weverything" "$1" -std=c99 $level $STRICT $EVERYTHING
    fi
}

cxx_compiler() { # cxx_compiler COMMAND PACKAGE
    if ! have "$1"; then
        skip "$1, C++11 to C++20" "not installed (package $2)"
        return
    fi
    for std in c++11 c++14 c++17 c++20 ${full:+gnu++17}; do
        levels="-O0 -O2 -O3 -Os"
        [ -n "$full" ] || case $std in
            c++17) if is_clang "$1"; then levels=-fsyntax-only; else levels=-O0; fi ;;
            *) levels=-fsyntax-only ;;
        esac
        for level in $levels; do
            # shellcheck disable=SC2086
            try "$1 -std=$std $level" "$1" -x c++ -std=$std $level $STRICT
        done
    done
    # shellcheck disable=SC2086
    check "$1 declarations -Wold-style-cast" "$1" -x c++ -std=c++11 $STRICT -Wold-style-cast -I. \
        -c tests/compile/declarations.c -o "$tmp/d.o"
    # shellcheck disable=SC2086
    try "$1 -std=c++11 -DMOE_EP_STATIC" "$1" -x c++ -std=c++11 ${full:--fsyntax-only} -DMOE_EP_STATIC $STRICT
    if is_clang "$1"; then
        # shellcheck disable=SC2086
        try "$1 -Weverything" "$1" -x c++ -std=c++17 ${full:--fsyntax-only} $STRICT $EVERYTHING_CXX
    fi
}

c_compiler gcc gcc
c_compiler clang clang
cxx_compiler g++ g++
cxx_compiler clang++ clang
case $CC in cc | gcc | clang) ;; *) c_compiler "$CC" "$CC" ;; esac
if [ -n "$full" ]; then
    # every other version that is installed, and those that Debian 12 offers by name
    for path in /usr/bin/gcc-[0-9]* /usr/bin/clang-[0-9]* /usr/bin/g++-[0-9]* /usr/bin/clang++-[0-9]*; do
        other=$(basename "$path")
        # the one behind gcc and clang has had its turn
        if [ ! -x "$path" ] || [ "$(readlink -f "$path")" = "$(readlink -f "$(command -v "${other%-*}")")" ]; then
            continue
        fi
        more=$STRICT_GCC std=c99 lang=c
        if is_clang "$other"; then more=; fi
        case $other in *++*) more='' std=c++11 lang=c++ ;; *) more="$STRICT_C $more" ;; esac
        for level in -O0 -O2; do
            # shellcheck disable=SC2086
            try "$other -std=$std $level" "$other" -x $lang -std=$std $level $STRICT $more
        done
    done
    for other in gcc-11 g++-11 clang-13 clang-14 clang-15 clang-16 clang-19; do
        have $other || skip $other "not installed (package $other)"
    done
    if have tcc; then try "tcc" tcc -DMOE_EP_NO_SIMD; else skip tcc "not installed (package tcc)"; fi
    if have musl-gcc; then
        # shellcheck disable=SC2086
        try "musl-gcc" musl-gcc -std=c99 -O2 $STRICT $STRICT_C
    else skip musl-gcc "not installed (package musl-tools)"; fi
    if printf '#include <math.h>\nint main(void){return 0;}\n' | gcc -m32 -x c - -o "$tmp/m32" 2>/dev/null; then
        # shellcheck disable=SC2086
        try "gcc -m32" gcc -m32 -msse2 -mfpmath=sse -std=c99 -O2 $STRICT $STRICT_C
    else skip "gcc -m32" "no 32-bit libc (package gcc-multilib)"; fi
fi
finish 4
