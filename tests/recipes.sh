#!/bin/sh
# tests/recipes.sh - every recipe of examples/recipes.md, built and run as it stands there.
# SPDX-License-Identifier: MIT
# usage: recipes.sh          without the optimiser (-O0 behind what is printed), nothing else changed
#        recipes.sh --full   at the printed level
# Each "## " section gets a folder of its own with moe_ep.h and the tarball in it, and an installed copy in the paths
# that compilers, pkg-config, CMake and the loader look in.  A block whose first line is a comment with a file name is
# that file; ```sh blocks are run; a ```text block is what they must print ("..." stands for any lines).
. tests/lib.sh
MAKE=${MAKE:-make}
unset MAKEFLAGS MFLAGS MAKELEVEL
doc=examples/recipes.md
prefix=$tmp/prefix
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
check "make install-header install-lib" "$MAKE" --no-print-directory install-header install-lib \
    PREFIX="$prefix" CC="$CC"
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig:$prefix/share/pkgconfig" CMAKE_PREFIX_PATH="$prefix"
export LD_LIBRARY_PATH="$prefix/lib" LIBRARY_PATH="$prefix/lib" C_INCLUDE_PATH="$prefix/include" CFLAGS='' LDFLAGS=''
sh examples/packaging/dist.sh "$version" "$tmp/moe_ep-$version.tar.gz" >/dev/null 2>&1 # needed by one recipe only

# without_optimiser NAME COMPILER DEFINES...: a compiler that is the other one with a closing -O0.  A private copy
# (-DMOE_EP_STATIC), of which the optimiser leaves what is called, takes less time as it is printed.
without_optimiser() {
    name=$1 real=$2
    shift 2
    printf '#!/bin/sh\ncase " $* " in *" -DMOE_EP_STATIC "*) ;; *) set -- "$@" %s ;; esac\nexec %s "$@"\n' \
        "-O0 $*" "$real" >"$tmp/$name"
    chmod +x "$tmp/$name"
}
level=
if [ "${1:-}" != --full ]; then
    level=' at -O0'
    without_optimiser cc "$CC"
    ! have "${CXX%% *}" || without_optimiser c++ "$CXX" -DMOE_EP_NO_SIMD # include.sh compiles the kernels as C++
    CC=$tmp/cc CXX=$tmp/c++
fi

awk -v dir="$tmp" '
    /^## / { section++; title = substr($0, 4); printf "%d %s\n", section, title > (dir "/sections") }
    /^```/ && !inside { lang = substr($0, 4); inside = 1; n++; name = sprintf("%s/block%03d", dir, n); next }
    /^```/ { inside = 0; close(name); printf "%d %03d %s\n", section, n, lang > (dir "/blocks"); next }
    inside { print > name }' $doc

# lacking BLOCK: the first command of the block that this machine has not
lacking() {
    sed 's/ .*//' "$1" | while read -r command; do
        case $command in
            ./* | build/*) ;;
            cc) have "${CC%% *}" || echo "$CC" ;;
            c++) have "${CXX%% *}" || echo "$CXX" ;;
            meson) have meson && have ninja || echo "meson and ninja" ;;
            *) have "$command" || echo "$command" ;;
        esac
    done | head -n 1
}

ran=0
while read -r section title; do
    work=$tmp/recipe$section
    mkdir "$work"
    cp moe_ep.h "$work/"
    [ ! -e "$tmp/moe_ep-$version.tar.gz" ] || ln -s "$tmp/moe_ep-$version.tar.gz" "$work/"
    output='' why=''
    while read -r number lang; do
        [ -n "$number" ] || continue
        block=$tmp/block$number
        case $lang in
            sh)
                why=$(lacking "$block")
                case $(cat "$block") in
                    *pkg-config* | *meson*) have pkg-config || why=pkg-config ;;
                    *cmake*) ! grep -q FetchContent "$work/CMakeLists.txt" || [ -e "$tmp/moe_ep-$version.tar.gz" ] ||
                        why="GNU tar" ;;
                esac
                if [ -n "$why" ]; then
                    skip "$title" "no $why"
                    continue
                fi
                sed "s|^cc |$CC |; s|^c++ |$CXX |" "$block" >"$work/.run"
                output=$tmp/output
                (cd "$work" && CC="$CC" timeout 300 sh -e ./.run) >"$output" 2>&1 </dev/null
                result $? "$title: builds and runs$level" "$output"
                ran=$((ran + 1)) ;;
            text)
                [ -z "$why" ] || continue
                diff "$block" "$output" >"$tmp/diff"
                same "$block" "$output"
                result $? "$title: prints what it says" "$tmp/diff" ;;
            *)
                name=$(sed -n '1s,^\(/\*\|//\|#\) *\([A-Za-z0-9_.]*\).*,\2,p' "$block")
                if [ -n "$name" ]; then cp "$block" "$work/$name"
                else fail "$title: a block without a file name"; fi ;;
        esac
    done <<END
$(sed -n "s/^$section //p" "$tmp/blocks")
END
done <"$tmp/sections"
[ $((ran + skipped)) -ge 8 ]
result $? "$ran recipes ran, $skipped could not"

# The C++ recipe's scratch has one owner: a copy of it does not compile, and nothing else is in the way.
if have "${CXX%% *}"; then
    {
        printf '#include "moe_ep.h"\n'
        sed -n '/^struct Scratch /,/^};/p' $doc
        printf '#ifdef AGAIN\nvoid f(Scratch &a) { Scratch b(a); }\n#endif\n'
        printf '#ifdef SET\nvoid f(Scratch &a, Scratch &b) { a = b; }\n#endif\n'
    } >"$tmp/copy.cc"
    check "C++: its Scratch compiles" "$CXX" -std=c++11 -I. -fsyntax-only "$tmp/copy.cc"
    for copy in AGAIN SET; do
        ! "$CXX" -std=c++11 -I. -fsyntax-only -D$copy "$tmp/copy.cc" >"$tmp/check.log" 2>&1
        result $? "C++: a second owner of its memory does not ($copy)" "$tmp/check.log"
    done
fi

# The table in front and the links lead somewhere.
grep -oE '\]\([^)]+\)' $doc | sed 's/^](//; s/)$//' | sort -u | while read -r link; do
    case $link in
        \#*)
            grep '^## ' $doc | sed 's/^## //' | tr 'A-Z ' 'a-z-' | tr -d '+,._' |
                awk '{ print n[$0]++ ? $0 "-" n[$0] - 1 : $0 }' >"$tmp/anchors"
            grep -qxF -- "${link#\#}" "$tmp/anchors" || echo "$link" ;;
        *) [ -e "examples/$link" ] || echo "$link" ;;
    esac
done >"$tmp/broken"
[ ! -s "$tmp/broken" ]
result $? "the links lead somewhere" "$tmp/broken"
finish 12
