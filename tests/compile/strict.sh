# shellcheck shell=sh
# tests/compile/strict.sh - the warnings that the header is compiled with; sourced by the suites in here.
# SPDX-License-Identifier: MIT
# usage: sh tests/compile/strict.sh --library COMPILER   prints what the Makefile compiles the library with where the
#                                                        compiler is gcc: the same warnings, not as errors
STRICT="-pedantic-errors -Wall -Wextra -Werror -Wconversion -Wsign-conversion -Wshadow -Wundef -Wcast-qual
 -Wcast-align -Wdouble-promotion -Wfloat-equal -Wswitch-enum -Wwrite-strings -Wvla -Wformat=2
 -Wredundant-decls -Wnull-dereference"
STRICT_C="-Wstrict-prototypes -Wmissing-prototypes"
STRICT_GCC="-Wduplicated-cond -Wlogical-op -Warith-conversion"

is_clang() { "$1" --version 2>/dev/null | grep -qi clang; }
is_gcc() { ! is_clang "$1" && "$1" --version 2>/dev/null | grep -qi 'free software foundation'; }
# as_warnings FLAGS...: the same flags where errors are warnings
as_warnings() { printf '%s ' "$@" | sed 's/-pedantic-errors/-pedantic/; s/-Werror //; s/ $//'; }

if [ "${1:-}" = --library ] && is_gcc "$2"; then
    # calls inside a shared library are to be seen through as in a program: by the optimiser, and so by its warnings
    # shellcheck disable=SC2086
    as_warnings -fno-semantic-interposition $STRICT $STRICT_C $STRICT_GCC
fi
