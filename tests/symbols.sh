#!/bin/sh
# tests/symbols.sh - what the compiled implementation shows the linker.
# SPDX-License-Identifier: MIT
. tests/lib.sh
if ! have nm; then
    skip "symbols" "nm is not installed (package binutils)"
    finish 1
    exit
fi
NM=${NM:-nm}

object() { # object NAME DEFINES...
    name=$1
    shift
    # shellcheck disable=SC2086
    if implementation "$name" $CC -std=c99 -O0 "$@"; then cp "$object" "$tmp/$name.o"
    else fail "$name compiles" "$tmp/cc.log"; fi
}
# nothing NAME: passes when $tmp/found is empty
nothing() {
    if [ -s "$tmp/found" ]; then fail "$1" "$tmp/found"; else pass "$1"; fi
}
exported() { $NM -g --defined-only "$1" | awk '{ print $3 }'; }
undefined() { $NM -u "$1" | awk '{ print $NF }'; }

not_for_a_library='v?f?printf|puts|putchar|fopen|fwrite|_?exit|abort|__assert_fail|getenv|setlocale|system|s?rand|time'
math='exp|log|pow|sqrt|cbrt|floor|ceil|tanh|erf|gamma|fabs|fmin|fmax|round|rint|cos|sin|hypot|ldexp|frexp|fmod|trunc'

# what the optimiser makes of it: the library, where it is built
if built_library; then cp build/lib/moe_ep_lib.o "$tmp/plain.o"; else object plain -O1; fi
# the optimiser would hide private functions and globals that are only written
object unoptimised -Wall -Wextra -Werror
object no_malloc -DMOE_EP_NO_MALLOC
object no_forward -DMOE_EP_NO_FORWARD
object static -O1 -DMOE_EP_STATIC
for o in plain unoptimised no_malloc no_forward; do
    count=$(exported "$tmp/$o.o" | wc -l)
    if [ "$count" -ge 8 ]; then pass "$o: $count functions are exported"
    else fail "$o: only $count functions are exported"; fi
    exported "$tmp/$o.o" | grep -v '^moe_ep_' >"$tmp/found"
    nothing "$o: every exported symbol begins with moe_ep_"
    $NM "$tmp/$o.o" | awk '$2 ~ /^[BbDdCcSs]$/ { print $3 }' >"$tmp/found"
    nothing "$o: no writable globals"
    undefined "$tmp/$o.o" | grep -xE "$not_for_a_library" >"$tmp/found"
    nothing "$o: never prints, exits, aborts or reads the environment"
done
exported "$tmp/static.o" >"$tmp/found"
nothing "static: nothing is exported"
undefined "$tmp/no_malloc.o" | grep -E '^(malloc|calloc|realloc|free|aligned_alloc|posix_memalign)$' >"$tmp/found"
nothing "no_malloc: no allocator is called"
undefined "$tmp/plain.o" | grep -E '^(cblas_|sgemm)' >"$tmp/found"
nothing "plain: BLAS is not called unless asked for"
exported "$tmp/no_forward.o" | grep -E '^moe_ep_forward' >"$tmp/found"
nothing "no_forward: sections 9 and 10 are left out"
undefined "$tmp/plain.o" | grep -vxE '_GLOBAL_OFFSET_TABLE_|__stack_chk_fail.*|__?cpu_.*|malloc|free' |
    grep -vxE 'mem(cpy|set|move|cmp)|strlen|str(n?cmp|r?chr)' | grep -vxE "_?_?[a-z0-9]*($math)[a-z0-9]*" >"$tmp/found"
nothing "plain: needs malloc, free, <string.h> and <math.h> only"

# Private names keep their own prefix; tables local to a function (name.0) and the compiler's inline
# functions (__get_cpuid) are nobody else's business.
$NM "$tmp/unoptimised.o" | awk '$2 ~ /^[tr]$/ { print $3 }' | sort -u | grep -vE '^(moe_epi_|__)|\.' >"$tmp/found"
nothing "private functions and tables begin with moe_epi_"
finish 18
