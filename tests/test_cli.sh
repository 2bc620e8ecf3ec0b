#!/bin/sh
# tests/test_cli.sh - the tool: what it answers, and what it does with every kind of bad input.
# SPDX-License-Identifier: MIT
. tests/lib.sh
tool=${TOOL:-$(pwd)/build/moe-ep}
data=$(pwd)/examples/data
if [ ! -e examples/moe_ep_cli.c ]; then skip "the tool" "no examples/moe_ep_cli.c"; finish 1; exit; fi
if [ ! -x "$tool" ]; then fail "the tool was not built"; finish 1; exit; fi

json_cflags=$(pkg-config --cflags jansson 2>/dev/null)
json_libs=$(pkg-config --libs jansson 2>/dev/null || echo -ljansson)
# shellcheck disable=SC2086
$CC -std=gnu99 $json_cflags tests/json_check.c -o "$tmp/json_check" $json_libs >"$tmp/log" 2>&1 || {
    fail "tests/json_check.c compiles" "$tmp/log"; finish 1; exit 1; }
LC_ALL=C
export LC_ALL

# run CODE ARGS...: runs the tool in an empty folder; $tmp/out and $tmp/err hold what it said
run() {
    want=$1
    shift
    rm -rf "$tmp/cwd" && mkdir "$tmp/cwd"
    (cd "$tmp/cwd" && timeout 60 "$tool" "$@") >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    [ $code -eq "$want" ] || echo "exit status $code, want $want: moe-ep $*" >>"$tmp/err"
    [ $code -eq "$want" ]
}
# works NAME ARGS...: succeeds and is silent on stderr
works() {
    name=$1
    shift
    if run 0 "$@" && [ ! -s "$tmp/err" ]; then pass "$name"; else fail "$name" "$tmp/err"; fi
}
# refuses NAME TEXT ARGS...: exit code 2, TEXT in one short message on stderr, nothing on stdout, no file left behind
refuses() {
    name=$1 text=$2
    shift 2
    if ! run 2 "$@"; then fail "refused: $name" "$tmp/err"
    elif ! grep -qF -- "$text" "$tmp/err"; then
        echo "the message does not name \"$text\"" >>"$tmp/err"
        fail "refused: $name" "$tmp/err"
    elif [ "$(wc -l <"$tmp/err")" -gt 3 ]; then fail "refused: $name: the message is too long" "$tmp/err"
    elif [ -s "$tmp/out" ]; then fail "refused: $name: wrote to standard output" "$tmp/out"
    elif [ -n "$(ls -A "$tmp/cwd")" ]; then
        ls -A "$tmp/cwd" >"$tmp/log"
        fail "refused: $name: left a file behind" "$tmp/log"
    else pass "refused: $name"; fi
}
has() { # has NAME PATTERN FILE
    head -n 20 "$3" >"$tmp/log"
    grep -qE -- "$2" "$3"
    result $? "$1" "$tmp/log"
}
json() { "$tmp/json_check" "$@" 2>&1; }
equal() { # equal NAME GOT WANT
    if [ "$2" = "$3" ]; then pass "$1"; else echo "got $2, want $3" >"$tmp/log"; fail "$1" "$tmp/log"; fi
}
less() { # less NAME SMALLER LARGER (or equal)
    if awk -v a="$2" -v b="$3" 'BEGIN { exit !(a + 0 <= b + 1e-9 && a != "" && b != "") }'; then pass "$1"
    else echo "$2 is not at most $3" >"$tmp/log"; fail "$1" "$tmp/log"; fi
}

# ---- help, version, usage ----------------------------------------------------------------------------
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
works "--version" --version
equal "--version says the version" "$(cat "$tmp/out")" "moe-ep $version"
works "--help" --help
has "--help lists the commands" 'report' "$tmp/out"
for command in report place route; do
    works "$command --help" $command --help
    [ "$(wc -l <"$tmp/out")" -ge 5 ]
    result $? "$command --help says something"
    awk 'length > 130' "$tmp/out" >"$tmp/log"
    [ -s "$tmp/log" ] && fail "$command --help: lines too long" "$tmp/log" || pass "$command --help fits a terminal"
done
works "presets" presets
has "presets knows DeepSeek-V3" '[Dd]eep[Ss]eek' "$tmp/out"
run 2 && [ -s "$tmp/err" ]
result $? "no command: usage on stderr" "$tmp/err"
refuses "an unknown command" "bogus" bogus
refuses "no input" "no input" report
refuses "an unknown option" "bogus" report --bogus
refuses "an option without its value" "devices" report --devices
for pair in devices:0 devices:-1 devices:x devices:99999999999 slots:1.5 target:0.5 target:nan min-gain:2 width:5 \
    color:pink; do
    refuses "--${pair%%:*} ${pair#*:}" "${pair%%:*}" report "$data/expert_counts.csv" "--${pair%%:*}" "${pair#*:}"
done

# ---- the main job on the bundled trace ---------------------------------------------------------------
ids="$data/prose_topk_ids.npy $data/c_topk_ids.npy $data/python_topk_ids.npy"
start=$(date +%s)
# shellcheck disable=SC2086
works "report on the bundled ids" report $ids --devices 8 --html r.html
less "the report takes less than 20 s" $(($(date +%s) - start)) 20
cp "$tmp/out" "$tmp/report.txt"
[ -s "$tmp/cwd/r.html" ]
result $? "--html writes the file"
cp "$tmp/cwd/r.html" "$tmp/report.html"
equal "and nothing else" "$(ls -A "$tmp/cwd")" r.html
has "the table gives a verdict" '[Rr]ecommend|not now|[Ii]nsufficient' "$tmp/report.txt"
LC_ALL=C grep -n '[^ -~]' "$tmp/report.txt" >"$tmp/log"
[ ! -s "$tmp/log" ]
result $? "plain ASCII in the C locale" "$tmp/log"
awk 'length > 120' "$tmp/report.txt" >"$tmp/log"
[ ! -s "$tmp/log" ]
result $? "no line of the table beyond 120 columns" "$tmp/log"
has "HTML: starts as a page" '<!DOCTYPE html>|<!doctype html>' "$tmp/report.html"
has "HTML: ends as one" '</html>' "$tmp/report.html"
grep -nioE '(src|href) *= *"[^#"][^"]*"|url\([^#)][^)]*\)|@import|<script|<link' "$tmp/report.html" |
    head -n 5 >"$tmp/log"
[ ! -s "$tmp/log" ]
result $? "HTML: self-contained, no script" "$tmp/log"
less "HTML: at least 4 pictures" 4 "$(grep -oE '<svg' "$tmp/report.html" | wc -l)"
less "HTML: smaller than 2 MB" "$(wc -c <"$tmp/report.html")" 2000000
grep -noE '\b-?nan\b|\binf\b' "$tmp/report.html" | head -n 3 >"$tmp/log"
[ ! -s "$tmp/log" ]
result $? "HTML: no NaN, no infinity" "$tmp/log"
# shellcheck disable=SC2086
works "the same report again" report $ids --devices 8 --html r.html
cmp "$tmp/out" "$tmp/report.txt" >"$tmp/log" 2>&1 && cmp "$tmp/cwd/r.html" "$tmp/report.html" >>"$tmp/log" 2>&1
result $? "is the same, byte for byte" "$tmp/log"

# shellcheck disable=SC2086
works "report --json" report $ids --devices 8 --json
cp "$tmp/out" "$tmp/r.json"
check "it is valid JSON" "$tmp/json_check" "$tmp/r.json"
equal "JSON: version" "$(json "$tmp/r.json" moe_ep)" "$version"
equal "JSON: layers" "$(json "$tmp/r.json" setup layers)" 4
equal "JSON: experts" "$(json "$tmp/r.json" setup experts)" 64
equal "JSON: devices" "$(json "$tmp/r.json" setup devices)" 8
equal "JSON: inputs" "$(json "$tmp/r.json" inputs length)" 3
equal "JSON: tokens of the first input" "$(json "$tmp/r.json" inputs 0 tokens)" 4096
equal "JSON: one row per layer" "$(json "$tmp/r.json" layers length)" 4
less "JSON: no placement of the experts beats its bound" 1 "$(json "$tmp/r.json" layers 0 imbalance_bound)"
for l in 0 1 2 3; do
    less "layer $l: bound <= today" "$(json "$tmp/r.json" layers $l imbalance_bound)" \
        "$(json "$tmp/r.json" layers $l imbalance_today)"
    less "layer $l: plan without copies <= today" 1 "$(json "$tmp/r.json" layers $l imbalance_no_copies)"
done
total=$(json "$tmp/r.json" expert_loads sum)
for which in today no_copies copies; do
    sum=$(json "$tmp/r.json" device_loads_$which sum)
    off=$(awk -v a="$sum" -v t="$total" 'BEGIN { d = a / t - 1; print d < 0 ? -d : d }')
    less "device loads ($which) sum to the expert loads" "$off" 1e-6
done
less "the domain shift shows: prose and python are little alike in some layer" \
    "$(json "$tmp/r.json" inputs 2 correlation_lowest)" 0.5

# The same counts in other formats give the same answer: the share of the hottest expert, and the whole report.
head -n 2 "$data/expert_counts.csv" | tail -n 1 | cut -d, -f3- | tr -d '\r' >"$tmp/row"
share=$(tr ',' '\n' <"$tmp/row" | awk '{ s += $1; if ($1 > m) m = $1 } END { printf "%.5f", m / s }')
hottest() {
    awk -v m="$(json "$1" expert_loads 0 max)" -v s="$(json "$1" expert_loads 0 sum)" 'BEGIN { printf "%.5f", m / s }'
}
{ printf '{"logical_count": [['; tr -d '\n' <"$tmp/row"; printf ']]}'; } >"$tmp/one.json"
{ printf 'layer'; for e in $(seq 0 63); do printf ',%d' "$e"; done; printf '\n0,'; cat "$tmp/row"; } >"$tmp/one.csv"
{ printf 'layer,expert,count\n'; tr ',' '\n' <"$tmp/row" | awk '{ print "0," NR - 1 "," $1 }'; } >"$tmp/long.csv"
{ printf '{"step": 0, "layer": 0, "counts": ['; tr -d '\n' <"$tmp/row"; printf ']}\n'; } >"$tmp/one.jsonl"
for f in one.json one.csv long.csv one.jsonl; do
    works "report on $f" report "$tmp/$f" --topk 8 --devices 8 --json
    cp "$tmp/out" "$tmp/$f.out"
    equal "$f: one layer" "$(json "$tmp/out" setup layers)" 1
    equal "$f: 64 experts" "$(json "$tmp/out" setup experts)" 64
    equal "$f: the hottest expert's share is the file's" "$(hottest "$tmp/out")" "$share"
    equal "$f: the same figures as one.json" "$(json "$tmp/$f.out" layers)" "$(json "$tmp/one.json.out" layers)"
done

# ---- place and route ---------------------------------------------------------------------------------
works "place" place "$data/expert_counts.csv" --only prose --devices 8 --slots 72 --out plan.json --out plan.csv
check "the plan is valid JSON" "$tmp/json_check" "$tmp/cwd/plan.json"
map=physical_to_logical_map
equal "the plan: a list for each layer" "$(json "$tmp/cwd/plan.json" $map length)" 4
equal "the plan: 72 slots" "$(json "$tmp/cwd/plan.json" $map 0 length)" 72
equal "the plan: ids from 0" "$(json "$tmp/cwd/plan.json" $map min)" 0
equal "the plan: to 63" "$(json "$tmp/cwd/plan.json" $map max)" 63
lost=0
for e in $(seq 0 63); do [ "$(json "$tmp/cwd/plan.json" $map 2 count=$e)" -ge 1 ] || lost=$((lost + 1)); done
equal "the plan: every expert has a slot" $lost 0
equal "the plan as CSV: a line for each slot, and a header" "$(wc -l <"$tmp/cwd/plan.csv")" 289
for policy in best eplb eplb-global trtllm lpt contiguous round-robin; do
    works "place --policy $policy" place "$data/expert_counts.csv" --only prose --devices 8 --policy $policy
done
refuses "fewer slots than experts" "fewer" place "$data/expert_counts.csv" --devices 8 --slots 32
refuses "place without --devices" "devices" place "$data/expert_counts.csv"
refuses "an unknown policy" "policy" place "$data/expert_counts.csv" --devices 8 --policy magic
refuses "an output folder that is not there" "nowhere" \
    place "$data/expert_counts.csv" --devices 8 --out nowhere/plan.json
refuses "a report into a folder that is not there" "nowhere" report "$data/expert_counts.csv" --html nowhere/r.html
router=$("$tool" presets 2>/dev/null | grep -oE '\b(softmax_renorm|olmoe|qwen3|mixtral|qwen3_moe)\b' | head -n 1)
for domain in prose c python; do
    works "route: the $domain hidden states" route "$data/${domain}_layer2_hidden.npy" \
        --gate "$data/layer2_gate.npy" --router "${router:-mixtral}" --topk 8 \
        --compare "$data/${domain}_topk_ids.npy" --layer 2
    has "route: all 256 $domain tokens as recorded" '256 of 256 tokens' "$tmp/out"
done

# ---- odd files beyond those of test_cli_input.sh: a message, exit code 2, no partial report --------------
bad=$tmp/bad
mkdir "$bad"
# npy FILE DESCR SHAPE [BYTES_OF_DATA]: a .npy file with that header, its data zero bytes
npy() {
    {
        printf '\223NUMPY\001\000v\000'
        printf '%-117s\n' "{'descr': '$2', 'fortran_order': ${5:-False}, 'shape': ($3), }"
        head -c "${4:-0}" /dev/zero
    } >"$bad/$1"
}
try() { # try NAME FILE [ARGS...]: report on a bad file
    name=$1 file=$2
    shift 2
    refuses "$name" "$file" report "$bad/$file" --devices 4 --html r.html "$@"
}
: >"$bad/empty.npy"; : >"$bad/empty.csv"; : >"$bad/empty.json"; : >"$bad/empty.jsonl"
for e in npy csv json jsonl; do try "empty .$e" empty.$e; done
head -c 3000 "$tool" >"$bad/garbage"
for e in npy csv json jsonl bin; do cp "$bad/garbage" "$bad/garbage.$e"; try "binary garbage as .$e" garbage.$e; done
head -c 6 "$data/prose_topk_ids.npy" >"$bad/cut6.npy"; try "cut inside the magic" cut6.npy
head -c 60 "$data/prose_topk_ids.npy" >"$bad/cut60.npy"; try "cut inside the header" cut60.npy
head -c 5000 "$data/prose_topk_ids.npy" >"$bad/cut.npy"; try "cut inside the data" cut.npy
npy overflow.npy '<i8' '9223372036854775807, 4, 8' 100; try "a shape that overflows" overflow.npy
npy negative.npy '<i4' '-5, 1, 2' 40; try "a negative shape" negative.npy
npy text.npy '<U8' '4, 2' 256; try "text for numbers" text.npy
npy object.npy '|O' '4, 2' 64; try "Python objects" object.npy
printf '\223NUMPY\011\000v\000' >"$bad/version.npy"; try "an unknown .npy version" version.npy
printf '\223NUMPY\001\000\377\377{' >"$bad/header.npy"; try "a header longer than the file" header.npy
printf '\223NUMPY\001\000\020\000%-16s' "{'descr': " >"$bad/dict.npy"; try "a header that stops" dict.npy
printf 'layer,0,1\n0,1,1e999\n' >"$bad/inf.csv"; try "infinity for a count" inf.csv:2
head -c 3000 /dev/zero | tr '\000' '[' >"$bad/nested.json"; try "JSON nested 3000 deep" nested.json

# A file name may hold anything; it is printed without control characters and escaped in HTML.
printf '{"logical_count": [[5, 2, 3, 4]]}' >"$bad/<b>&\"x.json"
works "a name with markup in it" report "$bad/<b>&\"x.json" --topk 1 --devices 2 --html r.html
grep -qF '<b>&"x' "$tmp/cwd/r.html" && fail "is escaped in the page" || pass "is escaped in the page"

# Output that cannot be written is an error, not a success with half a report.
if [ -e /dev/full ]; then
    "$tool" report "$tmp/one.json" --topk 8 --devices 8 >/dev/full 2>"$tmp/err"
    [ $? -eq 1 ] && [ -s "$tmp/err" ]
    result $? "a full disk: exit code 1 and a message" "$tmp/err"
else skip "a full disk" "no /dev/full"; fi
mkdir "$tmp/kept" && echo old >"$tmp/kept/r.html"
"$tool" report "$bad/cut.npy" --devices 4 --html "$tmp/kept/r.html" >/dev/null 2>&1
equal "an older report survives a bad input" "$(cat "$tmp/kept/r.html")" old
equal "and no temporary file stays" "$(ls -A "$tmp/kept")" r.html
finish 100
