# shellcheck shell=sh
# tests/lib.sh - what the shell suites share: one line per check, a summary line at the end.
# SPDX-License-Identifier: MIT
# Source it from the repository root, then: pass NAME | fail NAME [FILE_WITH_OUTPUT] | skip NAME REASON,
# and finish AT_LEAST as the last command: fewer checks than AT_LEAST is a failure of its own.

passed=0 failed=0 skipped=0
CC=${CC:-cc} CXX=${CXX:-c++}
# What the Makefile passes on, for a suite that is run without it.
[ "${BLAS:-1}" = 0 ] && BLAS_LIBS=
BLAS_LIBS=${BLAS_LIBS-$(pkg-config --libs openblas 2>/dev/null || echo -lopenblas)}
GLPK_LIBS=${GLPK_LIBS-$(printf '#include <glpk.h>\n' | $CC -E - >/dev/null 2>&1 && echo -lglpk)}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/moe_ep_test.XXXXXX") || exit 2
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP

pass() { passed=$((passed + 1)); printf '  ok   %s\n' "$1"; }
fail() {
    failed=$((failed + 1))
    printf '  FAIL %s\n' "$1"
    if [ -n "${2:-}" ] && [ -s "$2" ]; then head -n 25 "$2" | sed 's/^/      /'; fi
}
# result STATUS NAME [FILE]: pass or fail by an exit status, as in: grep -q x file; result $? "x is there" file
result() { if [ "$1" -eq 0 ]; then pass "$2"; else fail "$2" "${3:-}"; fi; }
skip() { skipped=$((skipped + 1)); printf '  skip %s: %s\n' "$1" "$2"; }
command -v timeout >/dev/null 2>&1 || timeout() { shift; "$@"; }
have() { command -v "$1" >/dev/null 2>&1; }

# check NAME COMMAND...: passes when the command succeeds; its output is shown when it does not.
check() {
    check_name=$1
    shift
    if "$@" >"$tmp/check.log" 2>&1; then pass "$check_name"; else fail "$check_name" "$tmp/check.log"; fi
}

# same WANT GOT: line by line; "..." in WANT skips any number of lines
same() {
    awk 'NR == FNR { want[++n] = $0; next } { got[++m] = $0 }
        function match_from(i, j) {
            for (; i <= n; i++) {
                if (want[i] == "...") {
                    for (; j <= m + 1; j++) if (match_from(i + 1, j)) return 1
                    return 0
                }
                if (j > m || want[i] != got[j]) return 0
                j++
            }
            return j > m
        }
        END { exit match_from(1, 1) ? 0 : 1 }' "$1" "$2"
}

# How the suites that run the test programs compile: the same words mean the same object of the implementation.  -g1
# names the lines in what sanitizers and Valgrind say; all of -g takes a third longer to compile at -O1 and above.
# shellcheck disable=SC2034
TEST_FLAGS="-std=gnu99 -g1 -I. -Itests -Wall -Wextra"
# sanitizers COMPILER: sets san, for every source, and of_header, for the implementation.
# clang's bounds and floats that no integer holds; in the header, which uses no number without looking at its type,
# every implicit conversion that changes a value, too (the tests hand wrong numbers to enums).  Of its group
# "integer" that leaves out unsigned sums that wrap: they are defined, and random numbers are made of them.
# shellcheck disable=SC2034
sanitizers() {
    of_header='' san="-fsanitize=address,undefined -fno-sanitize-recover=all -O1"
    [ "$1" != clang ] || {
        san="$san -fsanitize=bounds,float-cast-overflow,implicit-signed-integer-truncation"
        of_header=-fsanitize=implicit-conversion,local-bounds
    }
}

# implementation NAME COMPILER FLAGS...: sets object to tests/compile/implementation.c compiled so, once for all suites:
# it lies in build/objects under a sum of everything that went into it.  What the compiler says goes to $tmp/cc.log.
implementation() {
    implementation_name=$1
    shift
    object=$({
        printf '%s\n' "$*"
        "$1" --version 2>/dev/null
        cat moe_ep.h tests/compile/implementation.c
    } | cksum | tr ' ' '-')
    object=build/objects/$implementation_name-$object.o
    : >"$tmp/cc.log"
    [ ! -e "$object" ] || return 0
    mkdir -p build/objects
    for other in "build/objects/$implementation_name-"*.o; do [ "$other" = "$object" ] || rm -f "$other"; done
    "$@" -I. -c tests/compile/implementation.c -o "$tmp/implementation.o" >"$tmp/cc.log" 2>&1 || return
    cp "$tmp/implementation.o" "$object.$$" && mv "$object.$$" "$object"
}
# built_library: whether build/lib/moe_ep_lib.o is $CC's of this header, at -O2 or what CFLAGS says, without a sanitizer
built_library() {
    case ${CFLAGS:-} in *sanitize* | *coverage*) return 1 ;; esac
    [ -n "$(find build/lib/moe_ep_lib.o -newer moe_ep.h 2>/dev/null)" ] &&
        case $(cat build/lib/flags) in "$CC  ${CFLAGS:-} "*-DMOE_EP_NO_BLAS*) return 0 ;; *) return 1 ;; esac
}

# need_tool SOURCE: sets tool, or ends the suite where its source is not there or it was not built
need_tool() {
    tool=${TOOL:-$(pwd)/build/moe-ep}
    if [ ! -e "examples/$1" ]; then skip "the tool" "no examples/$1"; finish 1; exit; fi
    if [ ! -x "$tool" ]; then fail "the tool was not built"; finish 1; exit; fi
}
# need_json_check: builds $tmp/json_check, which reads JSON, or ends the suite
need_json_check() {
    # shellcheck disable=SC2046
    $CC -std=gnu99 $(pkg-config --cflags jansson 2>/dev/null) tests/json_check.c -o "$tmp/json_check" \
        $(pkg-config --libs jansson 2>/dev/null || echo -ljansson) >"$tmp/log" 2>&1 || {
        fail "tests/json_check.c compiles" "$tmp/log"
        finish 1
        exit 1
    }
}

finish() {
    if [ $((passed + failed + skipped)) -lt "$1" ]; then
        fail "at least $1 checks ran (there were $((passed + failed + skipped)))"
    fi
    if [ "$skipped" -gt 0 ]; then printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    else printf '%d passed, %d failed\n' "$passed" "$failed"; fi
    [ "$failed" -eq 0 ] && [ $((passed + skipped)) -gt 0 ]
}
