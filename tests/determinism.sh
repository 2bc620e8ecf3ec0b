#!/bin/sh
# tests/determinism.sh - the same inputs give the same bits, from run to run and from build to build.
# SPDX-License-Identifier: MIT
# tests/digest.c prints one number per section.  Promised:
#   one build, any run and thread    every section (test_threads)
#   x86-64, any compiler, level and sanitizer without -ffast-math    every section but 9: whether a product and a sum
#                                    of the expert forward are fused is the compiler's choice there
#   any two builds and machines      section 9 within 2e-5 of max |y|: each is within 1e-5 of the exact result
#   every machine                    sections 0, 2, 4, 6, 7, 12 and the plans of 5: integers and sums in a fixed
#                                    order; 10: a layer whose sums are exact, by weights of four types, on 8 ranks; the
#                                    others go through exp, log and fused multiply-adds of the machine
. tests/lib.sh
dir=build/determinism
mkdir -p $dir
flags="$TEST_FLAGS -DMOE_EP_NO_BLAS"

# digest NAME OBJECT RUNNER COMPILER...: builds the program and keeps what it prints.  OBJECT is the implementation's
# name among those that suites share: check.sh and portability.sh compile most of them.
digest() {
    name=$1 kept=$2 runner=$3
    shift 3
    # shellcheck disable=SC2086
    implementation "$kept" "$@" $flags ${of_header:-} || { cp "$tmp/cc.log" "$tmp/log"; return 1; }
    # shellcheck disable=SC2086
    "$@" $flags tests/digest.c "$object" -o "$dir/$name" -lm >"$tmp/log" 2>&1 &&
        $runner "$dir/$name" >"$dir/$name.txt" 2>"$tmp/log" && $runner "$dir/$name" layer >"$dir/$name.y" 2>"$tmp/log"
}
works() { # works RUNNER COMPILER...: whether this compiler and what it builds are there at all
    runner=$1
    shift
    printf '#include <stdio.h>\nint main(void) { return printf("x\\n") < 0; }\n' >"$tmp/works.c"
    "$@" "$tmp/works.c" -o "$tmp/works" >/dev/null 2>&1 && $runner "$tmp/works" >/dev/null 2>&1
}
near() { # near NAME: the layer's numbers against those of the first build
    paste "$dir/base.y" "$dir/$1.y" | awk 'NF == 2 { d = $1 - $2; d = d < 0 ? -d : d; v = $1 < 0 ? -$1 : $1
        if (d > worst) worst = d; if (v > top) top = v; n++ }
        END { printf "%d numbers, %.1e of max |y|\n", n, worst / top
              exit !(n == 1536 && worst <= 2e-5 * top) }' >"$tmp/near"
    result $? "$1: section 9, $(cat "$tmp/near")" "$tmp/near"
}
same() { # same NAME SECTIONS-REGEX
    grep -E "^($2) " $dir/base.txt >"$tmp/want"
    grep -E "^($2) " "$dir/$1.txt" >"$tmp/got"
    if [ -s "$tmp/want" ] && cmp -s "$tmp/want" "$tmp/got"; then pass "$1: sections $2"
    else diff "$tmp/want" "$tmp/got" >"$tmp/diff"; fail "$1: sections $2" "$tmp/diff"; fi
}
# build NAME OBJECT RUNNER SECTIONS PACKAGE COMPILER...
build() {
    name=$1 kept=$2 runner=$3 sections=$4 package=$5
    shift 5
    if ! have "$1" || ! have "${runner:-env}"; then skip "$name" "no $1 or ${runner:-env} (package $package)"
    elif ! works "${runner:-env}" "$@"; then skip "$name" "builds no programs that run here (package $package)"
    elif digest "$name" "$kept" "${runner:-env}" "$@"; then same "$name" "$sections"; near "$name"
    else fail "$name: tests/digest.c builds and runs" "$tmp/log"; fi
}

every='0|1|2|3|4|5|6|7|8|9|10|11|12'
all='0|1|2|3|4|5|6|7|8|10|11|12'
exact='0|2|4|5|6|7|10|12'
digest base cc-O2 env "$CC" -O2 || { fail "tests/digest.c builds" "$tmp/log"; finish 1; exit; }
[ "$(wc -l <$dir/base.txt)" -eq 13 ]
result $? "13 sections have a digest"
$dir/base >"$dir/again.txt"
same again "$every"
gcc=gcc # by the name under which check.sh has compiled with it
[ "$(readlink -f "$(command -v "$CC")")" != "$(readlink -f "$(command -v gcc)")" ] || gcc=$CC
build gcc-O0 cc-O0 "" "$all" gcc $gcc -O0
build gcc-O3 cc-O3 "" "$all" gcc $gcc -O3
build gcc-portable portable "" "$all" gcc gcc -O2 -DMOE_EP_NO_SIMD
sanitizers gcc
# shellcheck disable=SC2086
build gcc-asan asan-gcc "" "$all" gcc gcc $san
build clang-O2 clang-O2 "" "$all" clang clang -O2
build clang-O0 clang-O0 "" "$all" clang clang -O0
sanitizers clang
# shellcheck disable=SC2086
build clang-asan asan-clang "" "$all" libclang-rt-14-dev clang $san
of_header=
build m32 m32 "" "$exact" gcc-multilib gcc -m32 -O1 -msse2 -mfpmath=sse
build musl musl "" "$exact" musl-tools musl-gcc -O1 -static
build aarch64 aarch64 qemu-aarch64 "$exact" gcc-aarch64-linux-gnu aarch64-linux-gnu-gcc -O1 -static
build armv7 armv7 qemu-arm "$exact" gcc-arm-linux-gnueabihf arm-linux-gnueabihf-gcc -O1 -static
build riscv64 riscv64 qemu-riscv64 "$exact" gcc-riscv64-linux-gnu riscv64-linux-gnu-gcc -O1 -static
build ppc64le ppc64le qemu-ppc64le "$exact" gcc-powerpc64le-linux-gnu powerpc64le-linux-gnu-gcc -O1 -static
build s390x s390x qemu-s390x "$exact" gcc-s390x-linux-gnu s390x-linux-gnu-gcc -O1 -static
finish 14
