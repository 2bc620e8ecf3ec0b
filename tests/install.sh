#!/bin/sh
# tests/install.sh - `make install` into a staging folder, then a program built from what was installed.
# SPDX-License-Identifier: MIT
. tests/lib.sh
MAKE=${MAKE:-make}
root=$tmp/root
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
unset MAKEFLAGS MFLAGS MAKELEVEL

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
        $CC -O1 -o consumer consumer.c consumer_impl.c $flags
    [ "$("$tmp/consumer")" = "$version" ]
    result $? "and prints the version"
    check "pkg-config --modversion is $version" [ "$(pkg-config --modversion moe_ep)" = "$version" ]
else
    skip "a program builds through pkg-config" "pkg-config is not installed (package pkg-config)"
fi

if [ -e examples/moe_ep_cli.c ]; then
    check "the tool is installed and runs" "$prefix/bin/moe-ep" --version
    check "the tool's version is $version" sh -c '"$1" --version | grep -qF "$2"' sh "$prefix/bin/moe-ep" "$version"
    check "the man page is installed" test -s "$prefix/share/man/man1/moe-ep.1"
    check "the man page names the version" grep -qF "$version" "$prefix/share/man/man1/moe-ep.1"
else
    skip "the tool" "no examples/moe_ep_cli.c"
fi
check "make uninstall" "$MAKE" --no-print-directory uninstall DESTDIR="$root" PREFIX=/opt/moe
find "$root" -type f >"$tmp/left"
if [ -s "$tmp/left" ]; then fail "nothing is left behind" "$tmp/left"; else pass "nothing is left behind"; fi
finish 6
