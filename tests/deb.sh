#!/bin/sh
# tests/deb.sh - a gate of `make check`: the Debian packages build, lintian has nothing to say, and they work unpacked.
# Their own tests, the C programs once more, are left out here (nocheck); `make deb` runs them and wants their sum.
# SPDX-License-Identifier: MIT
. tests/lib.sh
unset MAKEFLAGS MFLAGS MAKELEVEL
for tool in dpkg-buildpackage dh lintian; do
    have $tool && continue
    skip "Debian packages" "no $tool (packages dpkg-dev debhelper lintian)"
    finish 1
    exit
done
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
deb=$tmp/deb
sh examples/packaging/dist.sh "$version" "$tmp/moe_ep.tar.gz" >/dev/null || exit 2
# shellcheck disable=SC2086
env -u CC -u CFLAGS -u LDFLAGS DEB_BUILD_OPTIONS="nocheck parallel=${JOBS:-2}" \
    sh examples/packaging/deb.sh "$version" "$tmp/moe_ep.tar.gz" "$deb" >"$tmp/log" 2>&1
result $? "the packages build (nocheck), and lintian finds no errors and no warnings" "$tmp/log"
root=$tmp/root
for package in moe-ep libmoe-ep0 libmoe-ep-dev; do
    file=$(find "$deb" -name "${package}_$version-1_*.deb")
    [ -n "$file" ] && dpkg-deb -x "$file" "$root"
    result $? "$package is there"
done
dpkg-deb -f "$deb"/moe-ep_*.deb Depends >"$tmp/depends" 2>&1
grep -q blas "$tmp/depends"
[ $? -eq 1 ]
result $? "the tool needs no BLAS" "$tmp/depends"
check "the tool runs" "$root/usr/bin/moe-ep" report examples/data/prose_topk_ids.npy
check "its man page is there" gzip -t "$root/usr/share/man/man1/moe-ep.1.gz"
lib=$(dirname "$(find "$root" -name libmoe_ep.so)")
cat >"$tmp/use.c" <<'END'
#include <moe_ep.h>
#include <stdio.h>
int main(void) { puts(moe_ep_version()); return 0; }
END
if have pkg-config; then
    # shellcheck disable=SC2046,SC2086
    PKG_CONFIG_PATH="$lib/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$root" sh -c \
        'cd "$1" && $2 use.c -o use $(pkg-config --cflags --libs libmoe_ep)' sh "$tmp" "$CC" >"$tmp/log" 2>&1 &&
        [ "$(LD_LIBRARY_PATH=$lib "$tmp/use")" = "$version" ]
    result $? "a program builds with libmoe-ep-dev and runs with libmoe-ep0" "$tmp/log"
else skip "a program with libmoe-ep-dev" "pkg-config is not installed (package pkg-config)"; fi
demo=$root/usr/share/doc/libmoe-ep-dev/examples/python/demo.py
for python in python3 /usr/bin/python3; do
    "$python" -c 'import numpy' 2>/dev/null || continue
    check "the Python demonstration runs" env MOE_EP_LIBRARY="$lib/libmoe_ep.so.0" "$python" "$demo"
    break
done
finish 7
