#!/bin/sh
# tests/style.sh - the rules that a reader or a packager would trip over.
# SPDX-License-Identifier: MIT
# usage: style.sh          all rules
#        style.sh --docs   only lists the public functions whose comment lacks Errors, Example or the cost
. tests/lib.sh
header=moe_ep.h

# undocumented: "line name: what is missing" for every public function.  One comment may stand above a group of
# functions.  Names (*_str, *_name), presets, which return a struct by value, and counters of lists are exempt.
undocumented() {
    awk '
        /MOE_EP_IMPLEMENTATION_DONE/ { exit }
        /^\/\*/ { text = ""; open = 1 }
        open { text = text " " $0 }
        /\*\// { open = 0 }
        /^(typedef|enum|struct)|^#/ && !open { if ($0 !~ /^#/) text = "" }
        /^MOE_EP_API / {
            line = $0
            name = line
            sub(/\(.*/, "", name)
            type = name
            sub(/.*[ *]/, "", name)
            sub(/^MOE_EP_API (const )?/, "", type)
            if (name ~ /_(str|name|source|count|version|text)$/ || name == "moe_ep_version") next
            if (type ~ /^moe_ep_[a-z0-9_]+ +moe_ep_/ && type !~ /^moe_ep_status /) next
            missing = ""
            if (text !~ /Errors?[ :,(]|egative (results )?= a moe_ep_status|a NULL|NULL is allowed/)
                missing = missing " Errors"
            if (text !~ /Example/) missing = missing " Example"
            if (text !~ /O\([^)]*\)|[Cc]onstant time/) missing = missing " O("
            if (missing != "") print FNR ": " name ":" missing
        }' $header
}
if [ "${1:-}" = --docs ]; then
    undocumented
    exit
fi

if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then git ls-files -co --exclude-standard
else find . -path ./build -prune -o -path ./.git -prune -o -type f -print | sed 's|^\./||'; fi |
    while read -r f; do [ -f "$f" ] && echo "$f"; done | sort >"$tmp/all"
grep -E '\.(c|h|cc|cu|sh|py|bash)$|^Makefile$|^\.ci/run$' "$tmp/all" >"$tmp/code"
grep -E '\.(c|h|cc|cu|sh|py|bash|md|1)$|^Makefile$|^\.ci/run$' "$tmp/all" >"$tmp/text"
grep -E '\.(c|h|cc|cu)$' "$tmp/all" >"$tmp/c"

# none NAME: passes when $tmp/found is empty
none() {
    if [ -s "$tmp/found" ]; then fail "$1" "$tmp/found"; else pass "$1"; fi
}
in_files() { # in_files LIST GREP-ARGS...
    list=$1
    shift
    tr '\n' '\0' <"$list" | xargs -0 grep -nI "$@" /dev/null
}

[ "$(wc -l <"$tmp/code")" -ge 15 ]
result $? "$(wc -l <"$tmp/code") source files are looked at"

tr '\n' '\0' <"$tmp/code" |
    xargs -0 awk 'length > 120 { print FILENAME ":" FNR ": " length " columns" }' >"$tmp/found"
none "no line of code is longer than 120 columns"
in_files "$tmp/c" "$(printf '\t')" >"$tmp/found"
none "no tabs in C"
in_files "$tmp/text" -E '[[:blank:]]+$' >"$tmp/found"
none "no blanks at the end of a line"
in_files "$tmp/text" "$(printf '\r')" >"$tmp/found"
none "no carriage returns"
while read -r f; do [ -s "$f" ] && [ -n "$(tail -c 1 "$f")" ] && echo "$f"; done <"$tmp/text" >"$tmp/found"
none "every text file ends with a newline"
LC_ALL=C grep -n '[^ -~]' $header >"$tmp/found"
none "$header is plain ASCII"

# The words are spelled with brackets so that this file does not contain them.
in_files "$tmp/code" -iwE 'T[O]DO|F[I]XME|X[X]X|H[A]CK|st[u]b|not impl[e]mented|place[h]older|for n[o]w' >"$tmp/found"
none "no words that say something is unfinished"
in_files "$tmp/text" -E '/wor[k]/|/far[m]/|bash_jo[b]s|\.\./shar[e]d|\.\./\.librar[y]' >"$tmp/found"
none "no paths of one particular machine"
cut -d/ -f1 "$tmp/all" | sort -u |
    grep -vxE 'moe_ep\.h|tests|examples|bench|Makefile|README\.md|CHANGELOG\.md|LICENSE|\..*' >"$tmp/found"
none "the top level holds what it should and no more"
while read -r f; do s=$(wc -c <"$f") && [ "$s" -gt 2097152 ] && echo "$f: $s bytes"; done <"$tmp/all" >"$tmp/found"
none "no file over 2 MiB"
grep -vE '^tests/compile/.*\.[ch]$' "$tmp/code" | while read -r f; do
    head -n 4 "$f" | grep -q 'SPDX-License-Identifier: MIT' || echo "$f"
done >"$tmp/found"
none "every source file names its licence in its first lines"

# ---- the header ----
grep -nE '#[[:space:]]*pragma[[:space:]]+(GCC|clang|warning)' $header |
    grep -vE 'pragma (clang fp |GCC (push_options|optimize\("no-fast-math"(, "fp-contract=off")?\)|pop_options)$)' \
        >"$tmp/found" # those are about rounding
none "$header silences no warning"
awk '/^\{/ { start = FNR }
    /^\}/ && start { if (FNR - start - 1 > 70) print FILENAME ":" start ": " FNR - start - 1 " lines"; start = 0 }
    ' $header >"$tmp/found"
none "no function of $header is longer than 70 lines"
sed -n 's/^ \* *\([0-9][0-9]*\) \([A-Z][A-Z]*\)  .*/\1 \2/p' $header | sort -u >"$tmp/contents"
while read -r number name; do
    n=$(grep -cE "^ \* +$number $name([ :]|\$)" $header)
    [ "$n" -ge 3 ] || echo "section $number $name: named $n times, want 3 (contents, declarations, implementation)"
done <"$tmp/contents" >"$tmp/found"
none "each of the $(wc -l <"$tmp/contents") sections of the contents is there, twice"
grep -oE '^# *include +[<"][^>"]+[>"]' $header | head -n 2 | tr -d ' ' | tr '\n' ' ' |
    grep -qxF '#include<stddef.h> #include<stdint.h> '
result $? "the public half includes <stddef.h> and <stdint.h>"

undocumented >"$tmp/found"
none "every public function says its errors, its cost and an example"

# ---- what explains a surviving mutant speaks of a line that is there ----
sed 's/^[[:space:]]*//; s/[[:space:]]*$//' $header | sort -u >"$tmp/lines"
grep -v '^#' tests/mutants.txt | awk -F '\t' 'NF != 3 || $1 == $2 { print "not three fields: " $0 }' >"$tmp/found"
grep -v '^#' tests/mutants.txt | cut -f 1 | sed 's/^moe_epi\{0,1\}_[A-Za-z0-9_]*: //' | sort -u |
    comm -23 - "$tmp/lines" >>"$tmp/found"
none "every row of tests/mutants.txt names a line of $header"

# ---- one version everywhere ----
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' $header)
echo "$version" | grep -qE '^[0-9]+\.[0-9]+\.[0-9]+$'
result $? "the version is three numbers: $version"
check "$header, line 1, names $version" sh -c "head -n 1 $header | grep -qF ' v$version '"
if [ -e README.md ]; then
    grep -oE '\bv?[0-9]+\.[0-9]+\.[0-9]+\b' README.md | sed 's/^v//' | grep -qxF "$version"
    result $? "README.md names $version"
else fail "README.md is there"; fi
first=$(sed -n 's/^## \[\{0,1\}v\{0,1\}\([0-9][0-9.]*\)\]\{0,1\}.*/\1/p' CHANGELOG.md | head -n 1)
[ "$first" = "$version" ]
result $? "CHANGELOG.md begins with $version (it has $first)"

# ---- the licence ----
awk '/^MIT License/ { on = 1 } /^\*\// { on = 0 } on' $header >"$tmp/licence"
diff "$tmp/licence" LICENSE >"$tmp/diff" 2>&1
result $? "the licence in $header is LICENSE" "$tmp/diff"

if have shellcheck; then
    grep -E '\.sh$|^\.ci/run$' "$tmp/code" | tr '\n' '\0' | xargs -0 shellcheck -x -S warning >"$tmp/sc" 2>&1
    result $? "shellcheck" "$tmp/sc"
else skip "shellcheck" "not installed (package shellcheck)"; fi
finish 20
