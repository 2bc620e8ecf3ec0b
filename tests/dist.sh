#!/bin/sh
# tests/dist.sh - the source tarball: the same bytes twice, complete, and it builds and makes itself again.
# SPDX-License-Identifier: MIT
. tests/lib.sh
MAKE=${MAKE:-make}
unset MAKEFLAGS MFLAGS MAKELEVEL
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
if ! tar --version 2>/dev/null | grep -q 'GNU tar'; then
    skip "the tarball" "GNU tar is needed (package tar)"
    finish 1
    exit
fi
dist() { sh examples/packaging/dist.sh "$version" "$1" >"$tmp/log" 2>&1; }

dist "$tmp/one.tar.gz"
result $? "the tarball is made" "$tmp/log"
(umask 077 && TZ=Asia/Tokyo LC_ALL=C.UTF-8 dist "$tmp/two.tar.gz")
cmp "$tmp/one.tar.gz" "$tmp/two.tar.gz" >"$tmp/log" 2>&1
result $? "a second one is the same, whatever umask, time zone and locale" "$tmp/log"
SOURCE_DATE_EPOCH=1700000000 dist "$tmp/three.tar.gz"
tar -tvzf "$tmp/three.tar.gz" --utc --full-time | awk '{ print $4, $5 }' | sort -u >"$tmp/times"
[ "$(cat "$tmp/times")" = "2023-11-14 22:13:20" ]
result $? "SOURCE_DATE_EPOCH sets every time stamp" "$tmp/times"
tar -tvzf "$tmp/one.tar.gz" --numeric-owner | awk '{ print $1, $2 }' | sort -u |
    grep -vxE -- '-rw[x-]r-[x-]r-[x-] 0/0' >"$tmp/odd"
[ ! -s "$tmp/odd" ]
result $? "plain files with plain modes, of no one" "$tmp/odd"
tar -tzf "$tmp/one.tar.gz" | grep -vE "^moe_ep-$version/" >"$tmp/odd"
[ ! -s "$tmp/odd" ]
result $? "all of it is in moe_ep-$version/" "$tmp/odd"

mkdir "$tmp/x"
tar -xzf "$tmp/one.tar.gz" -C "$tmp/x"
source=$tmp/x/moe_ep-$version
for file in moe_ep.h README.md LICENSE CHANGELOG.md Makefile tests/run.sh examples/moe-ep.1 examples/python/moe_ep.py \
    examples/packaging/debian/control bench/bench.h .ci/run; do
    cmp "$file" "$source/$file" >/dev/null 2>&1 || echo "$file"
done >"$tmp/odd"
[ ! -s "$tmp/odd" ]
result $? "what must be in it is" "$tmp/odd"
[ ! -e "$source/build" ] && [ ! -e "$source/.git" ]
result $? "what was built is not"
(cd "$source" && sh examples/packaging/dist.sh "$version" "$tmp/four.tar.gz") >"$tmp/log" 2>&1
cmp "$tmp/one.tar.gz" "$tmp/four.tar.gz" >>"$tmp/log" 2>&1
result $? "the unpacked tarball makes the same tarball" "$tmp/log"
# its header is this one (compared above), whose kernels other suites compile
check "it builds: make lib install" "$MAKE" --no-print-directory -C "$source" lib install \
    DESTDIR="$tmp/root" PREFIX=/usr BLAS=0 CC="$CC" CFLAGS=-O0 CPPFLAGS=-DMOE_EP_NO_SIMD
check "and the tool from it runs" "$tmp/root/usr/bin/moe-ep" --version

# ---- the Debian packaging, as far as it can be looked at without building ----
debian=examples/packaging/debian
for file in control rules changelog copyright source/format; do [ -s $debian/$file ] || echo "$file"; done >"$tmp/odd"
[ ! -s "$tmp/odd" ]
result $? "the Debian packaging is complete" "$tmp/odd"
if have dpkg-parsechangelog; then
    [ "$(dpkg-parsechangelog -l $debian/changelog -S Version)" = "$version-1" ]
    result $? "its changelog begins with $version-1"
else skip "the Debian changelog" "not installed (package dpkg-dev)"; fi
finish 11
