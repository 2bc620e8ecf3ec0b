#!/bin/sh
# tests/compile/include.sh - every way of including the header that a program may choose.
# SPDX-License-Identifier: MIT
. tests/lib.sh
. tests/compile/strict.sh
dir=tests/compile
flags="-I. -I$dir -Wall -Wextra -Werror"
stb=${STB_CFLAGS:--isystem /usr/include/stb}

# builds NAME FLAGS... FILES...: compiles, links and runs
builds() {
    name=$1
    shift
    # shellcheck disable=SC2086
    check "$name" run_it "$@"
}
run_it() { # shellcheck disable=SC2086
    "$@" -o "$tmp/program" -lm && "$tmp/program"
}

# Where the question is how the header reads and links, its functions are private (MOE_EP_STATIC): the compiler
# reads all of it and at -O1 generates only what the program calls, which takes a third of the time.
private="-O1 -DMOE_EP_STATIC"
# Where they must not be, the kernels of instruction sets are left out, of which nothing is asked there.
public="-DMOE_EP_NO_SIMD"
# shellcheck disable=SC2086
implementation unoptimised $CC -std=c99 -O0 -Wall -Wextra -Werror || {
    fail "the implementation compiles" "$tmp/cc.log"
    finish 1
    exit 1
}
cp "$object" "$tmp/impl.o"
# shellcheck disable=SC2086
$CC -std=c99 $flags -c $dir/main.c -o "$tmp/main.o" || exit 2
# shellcheck disable=SC2086
$CC -std=c99 $flags -O1 -c $dir/static_a.c -o "$tmp/static_a.o" 2>"$tmp/log" || {
    fail "a static copy compiles" "$tmp/log"
    finish 1
    exit 1
}

c="$CC -std=c99 $flags $tmp/main.o"
# shellcheck disable=SC2086
{
    builds "alone, first include of a file" $c $dir/alone.c "$tmp/impl.o"
    builds "declarations twice" $c $dir/twice.c "$tmp/impl.o"
    builds "implementation twice in one file" $c $private $dir/impl_twice.c
    builds "declarations before the implementation" $c $public $dir/decl_then_impl.c
    builds "two files and one implementation" $c $dir/alone.c $dir/two_units.c "$tmp/impl.o"
    builds "static copies in two files" $c -O1 "$tmp/static_a.o" $dir/static_b.c
    builds "a static copy beside the implementation" $c "$tmp/static_a.o" $dir/two_units.c "$tmp/impl.o"
    builds "after <complex.h>" $c $private $dir/complex_before.c
    builds "before <complex.h>" $c $private $dir/complex_after.c
    builds "the declarations include no other header" $c $dir/no_includes.c "$tmp/impl.o"
    builds "hostile macros around the declarations" $c $dir/hostile.c "$tmp/impl.o"
    builds "hostile macros around the implementation" $c $private -DHOSTILE_IMPLEMENTATION $dir/hostile.c
    builds "MOE_EP_API set by the caller" $c $public "-DMOE_EP_API=__attribute__((visibility(\"hidden\"))) extern" \
        $dir/decl_then_impl.c
}

printf '#include "stb_ds.h"\n' >"$tmp/stb.c"
# shellcheck disable=SC2086
if $CC $stb -fsyntax-only "$tmp/stb.c" 2>/dev/null; then
    builds "after stb_ds.h" $CC -std=gnu99 $flags $stb "$tmp/main.o" $private $dir/stb_before.c
    builds "before stb_ds.h" $CC -std=gnu99 $flags $stb "$tmp/main.o" $private $dir/stb_after.c
else
    skip "before and after stb_ds.h" "no stb_ds.h (package libstb-dev)"
fi

if have "$CXX"; then
    cxx="$CXX -std=c++11 $flags $tmp/main.o"
    # shellcheck disable=SC2086
    {
        builds "from C++, implementation in C" $cxx -x c++ $dir/alone.c -x none "$tmp/impl.o"
        implementation c++17 $CXX -x c++ -std=c++17 -O0 $STRICT || cat "$tmp/cc.log"
        cp "$object" "$tmp/impl_cxx.o"
        builds "from C++, implementation in C++" $cxx -x c++ $dir/alone.c -x none "$tmp/impl_cxx.o"
        builds "declarations before the implementation in C++" $cxx $private -x c++ $dir/decl_then_impl.c -x none
        $CC -std=c99 $flags -c $dir/alone.c -o "$tmp/alone.o"
        builds "from C, implementation in C++" $cxx "$tmp/alone.o" "$tmp/impl_cxx.o"
        builds "hostile macros in C++" $cxx $private -x c++ -DHOSTILE_IMPLEMENTATION $dir/hostile.c -x none
    }
else
    skip "from C++" "$CXX is not installed (package g++)"
fi

# No macro may stay behind that does not begin with MOE_EP_; measured as the difference to what the
# standard headers that the implementation includes leave by themselves.
for h in stddef stdint math string stdlib assert; do echo "#include <$h.h>"; done >"$tmp/base.c"
grep -hoE '^# *include *<[a-z0-9_/]+\.h>' moe_ep.h | sed 's/ //g; s/include/include /' | grep -v cblas |
    while read -r line; do # includes that this machine has
        printf '%s\n' "$line" >"$tmp/one.c"
        $CC -std=c99 -fsyntax-only "$tmp/one.c" 2>/dev/null && printf '%s\n' "$line"
    done >>"$tmp/base.c"
macros() { $CC -std=c99 -I. -dM -E "$1" | awk '{ sub(/\(.*/, "", $2); print $2 }' | sort -u; }
macros "$tmp/base.c" >"$tmp/base.txt"
macros $dir/leaks.c | comm -13 "$tmp/base.txt" - | grep -v '^MOE_EP_' >"$tmp/leaks.txt"
if [ -s "$tmp/leaks.txt" ]; then fail "no macro without MOE_EP_ stays behind" "$tmp/leaks.txt"
else pass "no macro without MOE_EP_ stays behind"; fi
finish 15
