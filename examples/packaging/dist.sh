#!/bin/sh
# examples/packaging/dist.sh - the source tarball; the same files give the same bytes, on any machine and day.
# SPDX-License-Identifier: MIT
# usage: dist.sh VERSION OUTPUT.tar.gz      (`make dist`; run from the repository root)
# Time stamps: SOURCE_DATE_EPOCH, else the last commit's date, else (unpacked from such a tarball) that of moe_ep.h.
set -eu
name=moe_ep-$1 output=$2
tar --version 2>/dev/null | grep -q 'GNU tar' || { echo "dist: GNU tar is needed" >&2; exit 1; }
tmp=$(mktemp -d "${TMPDIR:-/tmp}/moe_ep_dist.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

if git rev-parse --is-inside-work-tree >/dev/null 2>&1 && [ -z "$(git rev-parse --show-prefix)" ]; then
    git ls-files -z -co --exclude-standard
    epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
else
    find . \( -path ./build -o -path ./.git \) -prune -o -type f -print0 | sed -z 's|^\./||'
    epoch=${SOURCE_DATE_EPOCH:-$(stat -c %Y moe_ep.h)}
fi >"$tmp/all"
# files that git knows but that are gone are left out
while IFS= read -r file; do
    [ ! -f "$file" ] || printf '%s\0' "$file"
done <<END >"$tmp/list"
$(tr '\0' '\n' <"$tmp/all" | LC_ALL=C sort)
END
mkdir -p "$(dirname "$output")"
tar --create --format=ustar --sort=none --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$epoch" \
    --transform="s|^|$name/|" --null --no-recursion --files-from="$tmp/list" --file="$tmp/dist.tar"
gzip -9n "$tmp/dist.tar"
mv "$tmp/dist.tar.gz" "$output"
printf '  %s  %s files, %s bytes, sha256 %s\n' "$output" "$(tr -cd '\0' <"$tmp/list" | wc -c)" "$(wc -c <"$output")" \
    "$(sha256sum "$output" | cut -d' ' -f1)"
