#!/bin/sh
# tests/readme.sh - every code block of README.md and of the texts in examples/ is compiled and run, and its output
# compared.
# SPDX-License-Identifier: MIT
# How these texts must be written for this:
#   ```c     with a main: a whole program, saved under the name in its first comment (/* hot.c ... */) or
#            block.c, compiled by itself beside a copy of moe_ep.h, and run.  Without a main: statements,
#            compiled inside a function behind the includes; run, too, when a ```text follows; or functions,
#            saved under the name in a first comment, too.
#   ```cpp   the same in C++.
#   ```sh    lines with cc, ./program or build/moe-ep (a leading "$ " is allowed) are run as they stand; of
#            make, the target must exist; other lines (git clone, apt-get, cd) are left alone.
#   ```text  right behind one of these: what it must have printed, exactly; a line "..." stands for any lines.
#   Other languages (make, cmake, none) are only counted.
. tests/lib.sh
top=$(pwd)
BLAS_LIBS=${BLAS_LIBS--lopenblas} LDFLAGS=${LDFLAGS-}
work=$tmp/work
mkdir "$work"
cp moe_ep.h "$work/"
ln -s "$top/tests" "$top/build" "$work/"
built=$([ -z "$(find build/moe_ep.o -newer moe_ep.h 2>/dev/null)" ] || echo build/moe_ep.o)

blocks_of() { # blocks_of FILE: each block into a file of its own; a list of number, language, line
    rm -f "$tmp"/block*
    awk -v dir="$tmp" '
    /^ *```/ && !inside { sub(/^ *```/, ""); lang = $1 == "" ? "none" : $1; n++; start = FNR; inside = 1
                          name = sprintf("%s/block%03d.%s", dir, n, lang); printf "" > name; next }
    /^ *```/ && inside { inside = 0; close(name); printf "%03d %s %d\n", n, lang, start; next }
    inside { print > name }
    END { if (inside) printf "%03d unclosed %d\n", n, start }' "$1" >"$tmp/blocks"
}

compile() { # compile LANG SOURCE PROGRAM [OBJECT]
    case $1 in c) set -- "$CC" -std=gnu99 "$2" "$3" ;; *) set -- "$CXX" -std=c++11 "$2" "$3" ;; esac
    # whether it compiles and what it prints is asked: where its functions are private, the compiler reads all of the
    # implementation and generates what the program calls.  The printed command compiles it as it stands.
    private=
    grep -q 'define MOE_EP_IMPLEMENTATION' "$work/$3" && ! grep -q 'define MOE_EP_STATIC' "$work/$3" &&
        private=-DMOE_EP_STATIC
    # shellcheck disable=SC2086
    (cd "$work" && $1 "$2" -O1 $private -Wall -Wextra -Werror -I. "$3" ${5:-} -o "$4" ${5:+$LDFLAGS $BLAS_LIBS} -lm)
}

program() { # program LANG BLOCK LINE
    name=$(sed -n '1s,^/[/*] *\([A-Za-z0-9_.-]*\.c[cp]*\)[^A-Za-z0-9].*,\1,p' "$2")
    [ -n "$name" ] || name=block.$1
    cp "$2" "$work/$name"
    if compile "$1" "$name" ./block.out >"$tmp/log" 2>&1; then
        (cd "$work" && timeout 20 ./block.out) >"$tmp/output" 2>&1
        result $? "line $3: the program runs" "$tmp/output"
        ran=1
    else fail "line $3: the program compiles" "$tmp/log"; fi
}

# Statements whose output is given: linked with the implementation that the tests use.
shown_snippet() { # shown_snippet BLOCK LINE
    if [ ! -e build/moe_ep.o ]; then skip "line $2" "build/moe_ep.o was not built"; return; fi
    {
        for h in '"moe_ep.h"' '<math.h>' '<stdio.h>' '<stdlib.h>' '<string.h>'; do echo "#include $h"; done
        printf 'int main(void)\n{\n'
        cat "$1"
        printf 'return 0;\n}\n'
    } >"$work/shown.c"
    # shellcheck disable=SC2086
    if $CC -std=gnu99 -O1 -Wall -Wextra -Werror -I. "$work/shown.c" build/moe_ep.o -o "$work/shown" \
        $LDFLAGS $BLAS_LIBS -lm >"$tmp/log" 2>&1
    then
        timeout 20 "$work/shown" >"$tmp/output" 2>&1
        result $? "line $2: the statements run" "$tmp/output"
        ran=1
    else fail "line $2: the statements compile" "$tmp/log"; fi
}

# Statements of which only the compiler and the linker are asked: beside the implementation that the tests use, or,
# where that was not built, with one of their own.
snippet() { # snippet LANG BLOCK LINE
    {
        [ -n "$built" ] || echo '#define MOE_EP_STATIC'
        printf '#include "moe_ep.h"\n#include <stdio.h>\n'
        grep -E '^ *# *include' "$2"
        printf 'int main(void)\n{\n'
        grep -vE '^ *# *include' "$2"
        printf '\nreturn 0;\n}\n'
    } >"$work/snippet.$1"
    cp "$2" "$work/file.$1"
    name=$(sed -n '1s,^/[/*] *\([A-Za-z0-9_.-]*\.c[cp]*\)[^A-Za-z0-9].*,\1,p' "$2")
    [ -z "$name" ] || cp "$2" "$work/$name" # for the commands that follow
    # statements, or else declarations and functions at file scope
    if compile "$1" "snippet.$1" ./snippet.out "$built" >"$tmp/log" 2>&1 ||
        at_file_scope "$1" >>"$tmp/log" 2>&1
    then pass "line $3: the snippet compiles"
    else fail "line $3: the snippet compiles" "$tmp/log"; fi
}

at_file_scope() { # at_file_scope LANG
    if [ "$1" = c ]; then (cd "$work" && $CC -std=gnu99 -I. -c file.c -o file.o)
    else (cd "$work" && $CXX -std=c++11 -I. -c "file.$1" -o file.o); fi
}

make_target() { # make_target NAME LINE
    grep -qE "^([a-z-]+ )*$1( [a-z -]*)?:" Makefile
    result $? "line $2: make $1 exists"
}

shell() { # shell BLOCK LINE: runs what can be run, together, in one shell
    : >"$tmp/script"
    where=$work
    sed 's/^ *\$ //; s/ *#.*$//' "$1" >"$tmp/lines"
    while IFS= read -r line; do
        case $line in
            build/moe-ep*) printf '%s\n' "$line" >>"$tmp/script"; where=$top ;;
            cc\ * | gcc\ * | c++\ * | g++\ * | ./*) printf '%s\n' "$line" >>"$tmp/script" ;;
            *make | *make\ *)
                for target in $(printf '%s\n' "$line" | sed 's/.*make//; s/&&.*//'); do
                    case $target in
                        *=* | -*) ;;
                        *) make_target "$target" "$2" ;;
                    esac
                done ;;
        esac
    done <"$tmp/lines"
    [ -s "$tmp/script" ] || return
    if grep -q ' build/libmoe_ep\.a ' "$tmp/script" && [ ! -e build/libmoe_ep.a ]; then
        skip "line $2" "build/libmoe_ep.a was not built"
        return
    fi
    if [ "$where" = "$top" ] && [ ! -x build/moe-ep ]; then
        skip "line $2" "build/moe-ep was not built"
        return
    fi
    (cd "$where" && timeout 60 sh -e "$tmp/script") >"$tmp/output" 2>&1 </dev/null
    code=$?
    ran=1
    result $code "line $2: the commands run" "$tmp/output"
}

check_text() { # check_text FILE LEAST_C LEAST: every block of a text, of which there must be so many
    file=$1 least_c=$2 least_all=$3 ran=0 c_blocks=0
    if [ ! -e "$file" ]; then fail "$file is there"; return; fi
    echo "$file"
    blocks_of "$file"
    while read -r n lang line; do
        check_block
    done <"$tmp/blocks"
    all=$(wc -l <"$tmp/blocks")
    [ "$c_blocks" -ge "$least_c" ]
    result $? "$c_blocks C blocks were found, at least $least_c are there"
    [ "$all" -ge "$least_all" ]
    result $? "$all blocks were found, at least $least_all are there"
    # Links to files of the repository lead somewhere.
    grep -oE '\]\([^)#]+' "$file" | sed 's/^](//' | grep -vE '^[a-z]+:' | sort -u >"$tmp/links"
    while read -r link; do [ -e "$(dirname "$file")/$link" ] || echo "$link"; done <"$tmp/links" >"$tmp/broken"
    [ ! -s "$tmp/broken" ]
    result $? "all $(wc -l <"$tmp/links") links lead somewhere" "$tmp/broken"
}

# The language of the next block of $n.
next_lang() { awk -v n="$n" 'found { print $2; exit } $1 == n { found = 1 }' "$tmp/blocks"; }

check_block() { # of $n, $lang, $line
    block=$tmp/block$n.$lang
    case $lang in
        text | output | console-output)
            if [ $ran = 1 ]; then
                diff "$block" "$tmp/output" >"$tmp/diff"
                same "$block" "$tmp/output"
                result $? "line $line: the output is what was printed" "$tmp/diff"
            fi
            ran=0 ;;
        c | cpp | c++)
            ran=0
            ext=c
            if [ "$lang" != c ]; then ext=cc; fi
            if [ $ext = cc ] && ! have "$CXX"; then
                skip "line $line" "$CXX is not installed (package g++)"
            elif grep -qE '\bmain *\(' "$block"; then
                program $ext "$block" "$line"
            elif [ $ext = c ] && [ "$(next_lang)" = text ]; then
                shown_snippet "$block" "$line"
            else
                snippet $ext "$block" "$line"
            fi
            c_blocks=$((c_blocks + 1)) ;;
        sh | bash | shell | console) ran=0; shell "$block" "$line" ;;
        unclosed) fail "line $line: the block is closed" ;;
        *) ran=0 ;;
    esac
}

check_text README.md 1 3
check_text examples/README.md 0 2
check_text examples/QUESTIONS.md 20 55
check_text examples/SERVERS.md 0 4
finish 60
