#!/bin/sh
# examples/packaging/deb.sh - Debian packages from the source tarball.
# SPDX-License-Identifier: MIT
# usage: deb.sh VERSION TARBALL FOLDER      (`make deb`; DEB_BUILD_OPTIONS=nocheck leaves the tests out)
set -eu
version=$1 tarball=$2 folder=$3
for tool in dpkg-buildpackage dh; do
    command -v $tool >/dev/null 2>&1 ||
        { echo "deb: $tool is missing: apt-get install dpkg-dev debhelper" >&2; exit 1; }
done
rm -rf "$folder"
mkdir -p "$folder"
cp "$tarball" "$folder/moe-ep_$version.orig.tar.gz"
tar -xzf "$tarball" -C "$folder"
mv "$folder/moe_ep-$version" "$folder/moe-ep-$version"
cp -R "$folder/moe-ep-$version/examples/packaging/debian" "$folder/moe-ep-$version/debian"
case ${DEB_BUILD_OPTIONS:-} in
    *nocheck*) echo "  building the packages, without their tests" ;;
    *) echo "  building the packages and running the tests; DEB_BUILD_OPTIONS=nocheck leaves the tests out" ;;
esac
# The whole output goes to build.log; the steps of debhelper and the suites are shown as they come.
rm -f "$folder/failed"
{
    (cd "$folder/moe-ep-$version" && unset MAKEFLAGS MFLAGS MAKELEVEL && dpkg-buildpackage -us -uc 2>&1) ||
        echo failed >"$folder/failed"
} | tee "$folder/build.log" | awk '
    /^   dh_/ && $1 != last { print "    " $1; last = $1; fflush() }
    /^  (CC|LINK|AR|ok|FAIL) / || /^[0-9]+ passed/ { print "  " $0; fflush() }'
if [ -e "$folder/failed" ]; then
    tail -n 40 "$folder/build.log" >&2
    echo "deb: dpkg-buildpackage failed, see $folder/build.log" >&2
    exit 1
fi
case ${DEB_BUILD_OPTIONS:-} in
    *nocheck*) ;;
    *) # a build that left the tests out by itself is no success
        line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$folder/build.log" | tail -n 1)
        case $line in
            [1-9]*" passed, 0 failed"*) echo "  tests: $line" ;;
            *) echo "deb: the tests did not run, see $folder/build.log" >&2; exit 1 ;;
        esac ;;
esac
ls -l "$folder"/*.deb | awk '{ printf "  %s  %s bytes\n", $NF, $5 }'
if command -v lintian >/dev/null 2>&1; then
    lintian --allow-root --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "$folder"/*.changes
    echo "  lintian: no errors and no warnings"
else
    echo "  lintian is not installed (package lintian): the packages were not looked at"
fi
