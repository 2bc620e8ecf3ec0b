#!/bin/sh
# tests/portability.sh - the test programs, vectors included, on other machines (qemu-user) and other C libraries.
# SPDX-License-Identifier: MIT
# usage: portability.sh [TARGET...]   targets: m32 aarch64 armv7 riscv64 ppc64le s390x musl tcc fastmath lto
# environment: PROGRAMS   test programs to run.  Default: those that read the vectors, which is what a machine can get
#                         wrong, and test_basics; PROGRAMS=all: all that need no library
#              FILTER     only the tests whose name contains it: FILTER=vectors for the reference vectors alone
# Test programs that compute little are compiled without the optimiser, which is quicker in all; link says how.
# One check = one test program on one target; a target whose tools are missing is one skip with its packages.
# test_fuzz, test_oom and test_labs say nothing about a machine and are left to the host.
. tests/lib.sh
export MOE_EP_SLOW=2
dir=build/portability
mkdir -p $dir
flags="$TEST_FLAGS -DMOE_EP_NO_BLAS"
programs=${PROGRAMS:-test_basics test_sim $(grep -l '"vec.h"' tests/test_*.c | sed 's|.*/||; s|\.c$||')}
if [ "$programs" = all ]; then
    programs=$(for f in tests/test_*.c; do
        case $f in *_lp.c | *_fuzz.c | *_oom.c | *_labs.c | *_mutants.c) continue ;; esac
        grep -q 'needs: ' "$f" || basename "$f" .c
    done)
fi

# on NAME PACKAGES "COMPILER AND FLAGS" RUNNER...
on() {
    name=$1 packages=$2 build=$3
    shift 3
    if ! have "${build%% *}"; then
        skip "$name" "no ${build%% *} (packages $packages)"
        return
    fi
    if [ $# -gt 0 ] && ! have "$1"; then
        skip "$name" "no $1 (package qemu-user)"
        return
    fi
    printf '#include <math.h>\n#include <stdio.h>\nint main(void) { return 0; }\n' >"$tmp/try.c"
    # shellcheck disable=SC2086
    if ! { $build "$tmp/try.c" -o "$tmp/try" -lm && "$@" "$tmp/try"; } >"$tmp/log" 2>&1; then
        skip "$name" "cannot build or run a program (packages $packages)"
        return
    fi
    # shellcheck disable=SC2086
    if ! implementation "$name" $build $flags; then
        fail "$name: the implementation compiles" "$tmp/cc.log"
        return
    fi
    for p in $programs; do
        # shellcheck disable=SC2086
        if ! ${link:-$build} $flags -DKERNEL_CASES=2000 "tests/$p.c" "$object" ${libs:-} -o "$dir/$name-$p" -lm \
            -pthread >"$tmp/log" 2>&1; then
            fail "$name: $p compiles" "$tmp/log"
        elif timeout 900 "$@" "$dir/$name-$p" ${FILTER:+--filter "$FILTER"} >"$tmp/log" 2>&1; then
            pass "$name: $p$(sed -n '$s/.*\(, [0-9]* skipped\)$/\1/p' "$tmp/log")"
        else
            { grep -iE 'FAIL|tests/' "$tmp/log"; tail -n 5 "$tmp/log"; } | tail -n 25 >"$tmp/tail"
            fail "$name: $p" "$tmp/tail"
        fi
    done
}

wanted=" ${*:-m32 aarch64 armv7 riscv64 ppc64le s390x musl tcc fastmath lto} "
want() { case $wanted in *" $1 "*) return 0 ;; *) return 1 ;; esac }
cross() { # cross NAME TRIPLET LIBC-PACKAGE QEMU [MORE PROGRAMS]
    usual=$programs
    # shellcheck disable=SC2086
    programs=$(printf '%s ' $programs) # one line
    case " $programs " in *" ${5:-} "*) ;; *) programs="$programs $5" ;; esac
    want "$1" && link="$2-gcc -O0 -static" on "$1" "gcc-$2 $3 qemu-user" "$2-gcc -O1 -static" "$4"
    programs=$usual
}
also() { # also PROGRAM...: on the next machine, too
    usual=$programs
    programs=$(printf '%s\n' $programs "$@" | sort -u)
}
also test_forward test_hooks # sizes beyond 32 bits
link="gcc -m32 -O0 -msse2 -mfpmath=sse"
want m32 && on m32 "gcc-multilib, or gcc-12-multilib beside cross compilers" "gcc -m32 -O1 -msse2 -mfpmath=sse" env
link='' programs=$usual
cross aarch64 aarch64-linux-gnu libc6-dev-arm64-cross qemu-aarch64 test_forward # it has kernels of its own
cross armv7 arm-linux-gnueabihf libc6-dev-armhf-cross qemu-arm
cross riscv64 riscv64-linux-gnu libc6-dev-riscv64-cross qemu-riscv64
cross ppc64le powerpc64le-linux-gnu libc6-dev-ppc64el-cross qemu-ppc64le
cross s390x s390x-linux-gnu libc6-dev-s390x-cross qemu-s390x
link="musl-gcc -O0 -static"
want musl && on musl musl-tools "musl-gcc -O1 -static" env
# tcc 0.9.27 runs no constructors, which register the tests: its object is linked with gcc's programs.
libs=$(find /usr/lib /usr/local/lib -name libtcc1.a 2>/dev/null | head -n 1) link="gcc -no-pie -z execstack"
want tcc && on tcc "tcc gcc" "tcc -DMOE_EP_NO_SIMD" env
libs='' link=''
# A host may be built with fast-math, the implementation in it: results stay the same bits all the same.
also test_forward test_hooks # start-up code that takes subnormal numbers for 0
link="gcc -O1 -ffast-math"
want fastmath && on fastmath gcc "gcc -O3 -ffast-math" env
link="clang -O1 -ffast-math"
want fastmath && on fastmath-clang clang "clang -O3 -ffast-math" env
link='' programs=$usual
want lto && on lto gcc "gcc -O2 -flto" env
finish 1
