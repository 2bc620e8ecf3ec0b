#!/bin/sh
# tests/planted.sh - do the tests notice?  Defects of different kinds are planted in copies of the header, one at a
# time, and the suite that should must fail.
# SPDX-License-Identifier: MIT
. tests/lib.sh
mkdir -p "$tmp/tree/tests"
export MOE_EP_SLOW=1 # what measures time or maps gigabytes has no part in this

# run PROGRAM: built and run with the header in the tree, what it says goes to $tmp/log; false where it does not compile
printf '#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n' >"$tmp/tree/i.c"
run() {
    # shellcheck disable=SC2086
    $CC -std=gnu99 -w -O0 -DMOE_EP_NO_BLAS -DMOE_EP_NO_SIMD -DKERNEL_CASES=500 -I"$tmp/tree" -I. -Itests \
        "tests/$1.c" "$tmp/tree/i.c" -o "$tmp/tree/t" -lm -pthread >"$tmp/log" 2>&1 || return 1
    timeout 600 "$tmp/tree/t" >"$tmp/log" 2>&1
    return 0
}
# planted NAME PROGRAM SED-EXPRESSION: PROGRAM passes with the header as it is; the changed one must differ in one line,
# compile, and make checks of PROGRAM fail; a crash would be luck and does not count
planted() {
    cp moe_ep.h "$tmp/tree/moe_ep.h"
    run "$2"
    case $(tail -n 1 "$tmp/log") in
        *[1-9]*" passed, 0 failed"*) ;;
        *) fail "$1: $2 passes with nothing planted" "$tmp/log"; return ;;
    esac
    sed "$3" moe_ep.h >"$tmp/tree/moe_ep.h"
    if [ "$(diff moe_ep.h "$tmp/tree/moe_ep.h" | grep -c '^>')" != 1 ]; then
        fail "$1: the one place to change is gone"
        return
    fi
    if ! run "$2"; then
        fail "$1: the changed header compiles" "$tmp/log"
        return
    fi
    case $(tail -n 1 "$tmp/log") in
        *" passed, 0 failed"*) fail "$1: $2 passes all the same" ;;
        *" passed, "*" failed"*) pass "$1: checks of $2 fail ($(tail -n 1 "$tmp/log"))" ;;
        *) fail "$1: $2 crashes instead of saying what is wrong" "$tmp/log" ;;
    esac
}
planted "a wrong constant" test_basics '0,/0x94d049bb133111eb/s//0x94d049bb133111ec/'
planted "a bound off by one" test_cost '/^MOE_EP_API int64_t moe_ep_step_time/,/^}/s/\] >= D)/] > D)/'
planted "a lost overflow check" test_cost '/^MOE_EP_API int64_t moe_ep_step_time/,/^}/s/part < 0/part < -1/'
planted "a status of another kind" test_route '0,/err, MOE_EP_ERR_TOP_K/s//err, MOE_EP_ERR_SIZE/'
planted "a tie to the higher index" test_balance 's/if (load > r->max) {/if (load >= r->max) {/'
planted "scratch one byte short" test_oom \
    '/^static moe_ep_status moe_epi_arena_open/,/^}/s/s->bytes < want/s->bytes + 1 < want/'

# what no test program can see, the suite that looks at symbols must
cp -r tests examples bench Makefile README.md CHANGELOG.md LICENSE "$tmp/tree/" 2>/dev/null
cp moe_ep.h "$tmp/tree/moe_ep.h"
(cd "$tmp/tree" && sh tests/symbols.sh) >"$tmp/log" 2>&1 || fail "symbols.sh passes with nothing planted" "$tmp/log"
cat >>"$tmp/tree/moe_ep.h" <<'END'
#ifdef MOE_EP_IMPLEMENTATION_DONE
int moe_ep_counter;
int *moe_ep_count(void);
int *moe_ep_count(void) { return &moe_ep_counter; }
#endif
END
(cd "$tmp/tree" && sh tests/symbols.sh) >"$tmp/log" 2>&1
if grep -q 'FAIL.*no writable globals' "$tmp/log"; then pass "a writable global: symbols.sh fails"
else fail "a writable global: symbols.sh passes all the same" "$tmp/log"; fi
finish 7
