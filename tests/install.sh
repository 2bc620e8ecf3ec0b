#!/bin/sh
# tests/install.sh - `make install` into a staging folder, then a program built from what was installed.
# SPDX-License-Identifier: MIT
. tests/lib.sh
MAKE=${MAKE:-make}
root=$tmp/root
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
unset MAKEFLAGS MFLAGS MAKELEVEL

umask 077 # the installed files are everyone's all the same
check "make install DESTDIR=... PREFIX=..." "$MAKE" --no-print-directory install \
    DESTDIR="$root" PREFIX=/opt/moe CC="$CC"
prefix=$root/opt/moe
check "the header is installed as it is" cmp moe_ep.h "$prefix/include/moe_ep.h"
pc=$prefix/share/pkgconfig/moe_ep.pc
check "moe_ep.pc carries the version" grep -qx "Version: $version" "$pc"
check "moe_ep.pc knows nothing of the staging folder" sh -c '! grep -q "$1" "$2"' sh "$root" "$pc"

cat >"$tmp/consumer.c" <<'END'
#include <moe_ep.h>
#include <stdio.h>
int main(void) { printf("%s\n", moe_ep_version()); return 0; }
END
printf '#define MOE_EP_IMPLEMENTATION\n#include <moe_ep.h>\n' >"$tmp/consumer_impl.c"
if have pkg-config; then
    export PKG_CONFIG_PATH="$prefix/share/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$root"
    flags=$(pkg-config --cflags --libs moe_ep)
    # shellcheck disable=SC2086
    check "a program builds through pkg-config" sh -c 'cd "$1" && shift && "$@"' sh "$tmp" \
        $CC -O0 -DMOE_EP_NO_SIMD -o consumer consumer.c consumer_impl.c $flags
    [ "$("$tmp/consumer")" = "$version" ]
    result $? "and prints the version"
    check "pkg-config --modversion is $version" [ "$(pkg-config --modversion moe_ep)" = "$version" ]
else
    skip "a program builds through pkg-config" "pkg-config is not installed (package pkg-config)"
fi

lib=$prefix/lib
[ "$(readlink "$lib/libmoe_ep.so")" = "libmoe_ep.so.${version%%.*}" ] &&
    [ "$(readlink "$lib/libmoe_ep.so.${version%%.*}")" = "libmoe_ep.so.$version" ] &&
    [ -s "$lib/libmoe_ep.so.$version" ]
result $? "libmoe_ep.so -> .so.${version%%.*} -> .so.$version"
if have readelf; then
    readelf -d "$lib/libmoe_ep.so.$version" >"$tmp/dynamic"
    grep -q "soname: \[libmoe_ep.so.${version%%.*}\]" "$tmp/dynamic"
    result $? "its soname is libmoe_ep.so.${version%%.*}" "$tmp/dynamic"
    sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' "$tmp/dynamic" |
        grep -vE '^(libc|libm|ld-linux.*|libmvec)\.so' >"$tmp/needed"
    [ ! -s "$tmp/needed" ]
    result $? "it needs libc and libm, no more" "$tmp/needed"
else skip "the soname" "no readelf (package binutils)"; fi
if have nm; then
    nm -D --defined-only "$lib/libmoe_ep.so.$version" | awk '{ print $3 }' | sort >"$tmp/shown"
    nm -g --defined-only "$lib/libmoe_ep.a" | awk 'NF == 3 && $3 ~ /^moe_ep_/ { print $3 }' | sort >"$tmp/there"
    diff "$tmp/there" "$tmp/shown" >"$tmp/diff" && [ "$(wc -l <"$tmp/shown")" -ge 200 ]
    result $? "it exports the $(wc -l <"$tmp/shown") functions of the header and nothing else" "$tmp/diff"
else skip "the exported names" "no nm (package binutils)"; fi
if have pkg-config; then
    PKG_CONFIG_PATH="$lib/pkgconfig:$PKG_CONFIG_PATH"
    for how in "" --static; do
        # shellcheck disable=SC2046,SC2086
        check "a program links with libmoe_ep through pkg-config $how" sh -c 'cd "$1" && shift && "$@"' sh "$tmp" \
            $CC -O1 -o linked consumer.c $(pkg-config --cflags --libs $how libmoe_ep)
        [ "$(LD_LIBRARY_PATH=$lib "$tmp/linked")" = "$version" ]
        result $? "and prints the version"
    done
    # shellcheck disable=SC2046
    check "and with the archive" sh -c 'cd "$1" && shift && "$@"' sh "$tmp" \
        $CC -O1 -o archived consumer.c "$lib/libmoe_ep.a" $(pkg-config --cflags libmoe_ep) -lm
    [ "$("$tmp/archived")" = "$version" ]
    result $? "and prints the version"
    for field in includedir libdir; do
        [ -d "$root$(pkg-config --define-prefix --variable=$field libmoe_ep 2>/dev/null | sed "s|^$root||")" ] ||
            [ -d "$root$(pkg-config --variable=$field libmoe_ep)" ]
        result $? "libmoe_ep.pc's $field is there"
    done
fi
check "the CMake package is installed" test -s "$prefix/share/cmake/moe_ep/moe_epConfig.cmake"
check "and carries the version" grep -qF "\"$version\"" "$prefix/share/cmake/moe_ep/moe_epConfigVersion.cmake"

if [ -e examples/moe_ep_cli.c ]; then
    check "the tool is installed and runs" "$prefix/bin/moe-ep" --version
    check "the tool's version is $version" sh -c '"$1" --version | grep -qF "$2"' sh "$prefix/bin/moe-ep" "$version"
    check "the man page is installed" test -s "$prefix/share/man/man1/moe-ep.1"
    check "the man page names the version" grep -qF "$version" "$prefix/share/man/man1/moe-ep.1"
    check "the completion is installed" cmp examples/packaging/moe-ep.bash \
        "$prefix/share/bash-completion/completions/moe-ep"
else
    skip "the tool" "no examples/moe_ep_cli.c"
fi
find "$root" -type f ! -perm -444 >"$tmp/modes"
[ ! -s "$tmp/modes" ]
result $? "everyone may read what is installed" "$tmp/modes"
check "make install-header alone" "$MAKE" --no-print-directory install-header DESTDIR="$root/alone" PREFIX=/usr
[ "$(cd "$root/alone/usr" && find . -type f | sort | tr '\n' ' ')" = "./include/moe_ep.h \
./share/cmake/moe_ep/moe_epConfig.cmake ./share/cmake/moe_ep/moe_epConfigVersion.cmake ./share/pkgconfig/moe_ep.pc " ]
result $? "installs the header and what finds it"
rm -rf "$root/alone"
check "make uninstall" "$MAKE" --no-print-directory uninstall DESTDIR="$root" PREFIX=/opt/moe
find "$root" ! -type d >"$tmp/left"
if [ -s "$tmp/left" ]; then fail "nothing is left behind" "$tmp/left"; else pass "nothing is left behind"; fi
find "$root/opt" -mindepth 1 >"$tmp/left" 2>&1
if [ -s "$tmp/left" ]; then fail "no empty folder either" "$tmp/left"; else pass "no empty folder either"; fi
finish 20
