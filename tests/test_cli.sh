#!/bin/sh
# tests/test_cli.sh - the tool: what it answers, and what it does with every kind of bad input.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool moe_ep_cli.c
data=$(pwd)/examples/data

need_json_check
LC_ALL=C
export LC_ALL

# run CODE ARGS...: runs the tool in an empty folder; $tmp/out and $tmp/err hold what it said
run() {
    want=$1
    shift
    rm -rf "$tmp/cwd" && mkdir "$tmp/cwd"
    (cd "$tmp/cwd" && timeout 200 "$tool" "$@") >"$tmp/out" 2>"$tmp/err" </dev/null
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
cp "$tmp/out" "$tmp/main_help"
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
has "in the tool's own name" '^moe-ep: report: ' "$tmp/err"
has "with a hint at the help" '; moe-ep report --help lists the options$' "$tmp/err"
refuses "place: an unknown option" "moe-ep place --help" place --bogus
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
# The pictures show one of two judged recordings: it is named, and so are the columns that are means over both.
tr -s ' \n' '  ' <"$tmp/report.txt" >"$tmp/flat"
has "the experts are those of one recording" 'max/mean [0-9.]* in layer [0-9]+ of python; chance alone' "$tmp/flat"
has "and the rows of devices" '^Rows per device in layer [0-9]+ of python$' "$tmp/report.txt"
has "and the cells" '^Layer x expert of python, times the mean$' "$tmp/report.txt"
has "a table of both says so" 'those of python; the columns of devices are of all judged steps \(c and python\)' \
    "$tmp/flat"
has "HTML: so does its table" 'columns of devices are of all judged steps \(c and python\)' "$tmp/report.html"
has "HTML: the devices are all layers together" 'over mean device, all layers together' "$tmp/report.html"
# shellcheck disable=SC2086
works "report on one device" report ${ids%% *} --devices 1
has "has nothing to balance" 'No device has more than the mean rows' "$tmp/out"
! grep -q 'make balance worth more' "$tmp/out"
result $? "where no step gains by it" "$tmp/out"
has "one recording needs no name" '^Rows per device in layer [0-9]+$' "$tmp/out"

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
equal "JSON: whose loads the layers show" "$(json "$tmp/r.json" shown_recording)" python
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
has "place says what it wrote" '^wrote plan.csv$' "$tmp/out"
has "and how SGLang takes it" 'init-expert-location plan.json --ep-num-redundant-experts 8$' "$tmp/out"
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
printf 'layer,0,1,2,3,4,5,6,7\n0,960,92,92,92,91,91,91,91\n' >"$tmp/hot.csv"
refuses "EPLB: slots that do not divide" \
    "--slots 16 does not divide over 7 devices; EPLB needs equal slots (14 or 21)" \
    place "$tmp/hot.csv" --policy eplb --devices 7 --slots 16
refuses "the same in diagnose" "EPLB needs equal slots (14 or 21)" \
    diagnose "$tmp/hot.csv" "$tmp/hot.csv" --topk 1 --policy eplb --devices 7 --slots 16
refuses "and without --slots" "without --slots there are 8 slots, which do not divide over 7 devices; EPLB needs equal \
slots: --slots 14" place "$tmp/hot.csv" --policy eplb --devices 7
awk 'BEGIN { print "layer,device,slot,expert"; for (i = 0; i < 10; i++) print "0," int(i * 3 / 10) "," i "," i % 8 }' \
    >"$tmp/lopsided.csv"
refuses "and with a map's slots" \
    "lopsided.csv has 10 slots, which do not divide over 3 devices; EPLB needs equal slots: --slots 9 or 12" \
    diagnose "$tmp/hot.csv" "$tmp/hot.csv" --topk 1 --policy eplb --devices 3 --current "$tmp/lopsided.csv"
printf 'layer,0,1,2,3\n0,1e-320,1e-320,2e-320,1e-320\n' >"$tmp/tiny.csv"
refuses "loads too small to be loads" "tiny.csv:2: column 2: a load of 9.99" report "$tmp/tiny.csv" --devices 2
printf '{"logical_count": [[0, 0, 0, 0, 0, 0, 0, 0], [9, 2, 3, 4, 5, 6, 7, 8]]}' >"$tmp/idle.json"
works "place with a layer without load" place "$tmp/idle.json" --devices 4 --slots 16 --json
equal "its spare slots are shared out" "$(json "$tmp/out" $map 0 count=0)" 2
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

# ---- rebalance, diagnose, copies -------------------------------------------------------------------------
for command in rebalance diagnose copies; do
    works "$command --help" $command --help
    has "$command --help tells how it is called" "^usage: moe-ep $command" "$tmp/out"
    awk 'length > 130' "$tmp/out" >"$tmp/log"
    [ -s "$tmp/log" ] && fail "$command --help: lines too long" "$tmp/log" || pass "$command --help fits a terminal"
    has "moe-ep --help names $command" "^  $command " "$tmp/main_help"
    refuses "$command: no input" "" $command
    refuses "$command: an unknown option" "bogus" $command --bogus
    refuses "$command: a bad input" "cut.npy" $command "$bad/cut.npy" --devices 4 --html r.html
    refuses "$command: a page into a folder that is not there" "nowhere" \
        $command "$data/expert_counts.csv" --only prose --devices 8 --html nowhere/r.html
    refuses "$command: --json and a page to standard output" "both" $command "$data/expert_counts.csv" --json --html -
done
# page NAME FILE: one self-contained page with at least one picture
page() {
    has "$1: a whole page" '</html>' "$2"
    ! grep -oE 'class="scroll"( tabindex="0")?' "$2" | grep -qvF tabindex
    result $? "$1: what scrolls can be reached by keyboard" "$2"
    grep -nioE '(src|href) *= *"[^#"][^"]*"|url\([^#)][^)]*\)|@import|<script|<link|-?\bnan\b|\binf\b' "$2" |
        head -n 5 >"$tmp/log"
    [ -s "$tmp/log" ] && fail "$1: self-contained, no script, no NaN" "$tmp/log" ||
        pass "$1: self-contained, no script, no NaN"
    less "$1: pictures" 3 "$(grep -oE '<svg class="c"' "$2" | wc -l)"
    sed -n 's/.*aria-labelledby="\([^ "]*\).*/\1/p' "$2" | sort | uniq -d >"$tmp/log"
    [ -s "$tmp/log" ] && fail "$1: every picture has a name of its own" "$tmp/log" ||
        pass "$1: every picture has a name of its own"
}

# ---- place: figures, pictures, devices that are not alike ----------------------------------------------------
prose="$data/expert_counts.csv --only prose --devices 8"
# shellcheck disable=SC2086
works "place --html" place $prose --slots 72 --html r.html --out plan.csv
page "place --html" "$tmp/cwd/r.html"
has "place: the text is the table still" '^  layer +max/mean before +after +bound' "$tmp/out"
has "place: and names the page" '^The same with pictures: r.html$' "$tmp/out"
has "place: the page begins with the answer" '<h1>The plan brings the worst layer from max/mean 1.772 to 1.00' \
    "$tmp/cwd/r.html"
cp "$tmp/cwd/plan.csv" "$tmp/plan.csv"
for form in html svg; do
    # shellcheck disable=SC2086
    works "place --format $form" place $prose --slots 72 --format $form
    ! grep -qiE '\bnan\b|\binf\b' "$tmp/out" && grep -q "</$form>" "$tmp/out"
    result $? "place: the $form is whole" "$tmp/out"
done
# shellcheck disable=SC2086
works "place --format csv" place $prose --slots 72 --format csv
equal "place: a line for each layer" "$(wc -l <"$tmp/out")" 5
cp "$tmp/out" "$tmp/layers.csv"
# shellcheck disable=SC2086
works "place --format json" place $prose --slots 72 --format json
cp "$tmp/out" "$tmp/place.json"
equal "place: the CSV says what the JSON says" "$(awk -F, 'NR == 5 { print $3, $4, $5, $6 }' "$tmp/layers.csv")" \
    "$(for v in before after bound slots_used; do json "$tmp/place.json" layers 3 $v; done |
        xargs printf '%.6g %.6g %.6g %d')"
less "place: no layer beats its bound" "$(json "$tmp/place.json" bound worst)" "$(json "$tmp/place.json" after worst)"
equal "place: 8 copies in each of 4 layers" "$(json "$tmp/place.json" copies)" 32
for l in 0 1 2 3; do
    equal "place: layer $l: the devices carry as much as before" \
        "$(json "$tmp/place.json" layers $l devices_after sum)" "$(json "$tmp/place.json" layers $l devices_before sum)"
done
# max/mean of a layer, worked out from the loads and the plan: ratio LAYER LOADS PLAN [SPEED OF DEVICE 3]
ratio() {
    awk -F, -v layer="$1" -v speed="${4:-1}" '
        FNR == 1 { next }
        FNR == NR { if ($1 == layer) for (e = 2; e <= NF; e++) load[e - 2] = $e; next }
        $1 == layer && $4 >= 0 { holds[$2, ++held[$2]] = $4; copies[$4]++; total = 0 }
        END {
            for (e in load) total += load[e]
            for (d in held) {
                sum = 0
                for (i = 1; i <= held[d]; i++) sum += load[holds[d, i]] / copies[holds[d, i]]
                if (d == 3) sum /= speed
                if (sum > most) most = sum
                speeds += d == 3 ? speed : 1
            }
            printf "%.6g\n", most * speeds / total
        }' "$2" "$3"
}
printf 'layer,0,1,2,3,4,5,6,7\n0,960,92,92,92,91,91,91,91\n5,10,20,30,40,50,60,70,80\n' >"$tmp/two.csv"
sed 2d "$tmp/two.csv" >"$tmp/second.csv"
for more in "--slots 8" "--slots 12" "--slots 16 --policy eplb" "--slots 12 --speeds 1,1,1,2" \
    "--slots 12 --dead 1"; do
    # shellcheck disable=SC2086
    works "place $more" place "$tmp/two.csv" --devices 4 $more --out plan.csv --format json
    case $more in *speeds*) slow=2 ;; *) slow=1 ;; esac
    for l in 0 5; do
        equal "place $more: max/mean of layer $l by hand" "$(ratio $l "$tmp/two.csv" "$tmp/cwd/plan.csv" $slow)" \
            "$(printf '%.6g' "$(json "$tmp/out" layers $((l / 5)) after)")"
        equal "place $more: and so carries the busiest device of layer $l" \
            "$(awk -v r="$(json "$tmp/out" layers $((l / 5)) after)" -v m="$(json "$tmp/out" layers $((l / 5)) mean)" \
                'BEGIN { printf "%.6g", r * m }')" \
            "$(printf '%.6g' "$(json "$tmp/out" layers $((l / 5)) devices_after max)")"
    done
    grep '^5,' "$tmp/cwd/plan.csv" >"$tmp/five.csv"
    # shellcheck disable=SC2086
    works "place $more: layer 5 alone" place "$tmp/second.csv" --devices 4 $more --out plan.csv --format json
    grep '^5,' "$tmp/cwd/plan.csv" | diff - "$tmp/five.csv" >"$tmp/log"
    result $? "place $more: a layer's plan does not depend on the others" "$tmp/log"
done
# shellcheck disable=SC2086
works "place --dead" place $prose --dead 3,5 --out plan.csv
has "place --dead: as many slots as it takes" '88 slots: the fewest' "$tmp/out"
tr -s ' \n' '  ' <"$tmp/out" >"$tmp/words"
has "place --dead: which experts lost their only copy" 'experts 24-31, 40-47 had the only copy' "$tmp/words"
equal "place --dead: nothing stands on a dead device" \
    "$(awk -F, '($2 == 3 || $2 == 5) && $4 >= 0' "$tmp/cwd/plan.csv" | wc -l)" 0
equal "place --dead: every expert stands in every layer" \
    "$(awk -F, 'NR > 1 && $4 >= 0 { print $1, $4 }' "$tmp/cwd/plan.csv" | sort -u | wc -l)" 256
# shellcheck disable=SC2086
works "place --off-node 0" place $prose --slots 72 --nodes 2 --off-node 0 --out plan.csv --format json
equal "place: nothing is served off its home node" "$(json "$tmp/out" off_node)" 0.0
equal "place: each half of the experts stays on one node" "$(awk -F, 'NR > 1 && $4 >= 0 {
    print $1, int($4 / 32), int($2 / 4) }' "$tmp/cwd/plan.csv" | sort -u | wc -l)" 8
home=$(json "$tmp/out" after worst)
# shellcheck disable=SC2086
works "place --off-node 0.05" place $prose --slots 72 --nodes 2 --off-node 0.05 --html r.html --format json
less "place: no more than that is served off its home node" "$(json "$tmp/out" off_node)" 0.05
less "place: and the plan is no worse" "$(json "$tmp/out" after worst)" "$home"
page "place --off-node" "$tmp/cwd/r.html"
while IFS='|' read -r name text options; do
    # shellcheck disable=SC2086
    refuses "place: $name" "$text" place $prose $options
done <<'EOF_OPTIONS'
a dead device that there is not|only 8 devices|--dead 8
a dead device that is no number|dead x|--dead x
a dead device twice|device 5 twice|--dead 5,3,5
no dead device|nothing stands before a comma|--dead ,
all devices dead|no device is left|--dead 0,1,2,3,4,5,6,7
too few slots without the dead|--slots 80 is enough|--dead 3 --slots 72
a dead device in SGLang's map|device 3 empty|--dead 3 --out plan.json
EPLB without a device|--policy eplb cannot|--dead 3 --slots 80 --policy eplb
too few speeds|2 numbers for 8 devices|--speeds 1,2
a device without speed|speeds 0|--speeds 1,1,1,1,1,1,1,0
LPT with speeds|--policy lpt cannot|--speeds 1,1,1,1,1,1,1,2 --policy lpt
home nodes on one node|--nodes|--off-node 0.1
a share above all|off-node 2|--off-node 2 --nodes 2
groups that do not divide|3 groups|--off-node 0.1 --nodes 2 --groups 3
nodes that do not divide|--nodes 3: 8 devices do not divide|--off-node 0.1 --nodes 3
a format that there is not|pdf|--format pdf
a page into a folder that is not there|nowhere|--html nowhere/r.html
page and plan in one file|two outputs|--html p.csv --out p.csv
two answers on standard output|standard output|--html - --json
EOF_OPTIONS
[ ! -e examples/packaging/moe-ep.bash ] || ! have bash ||
    equal "place --format completes the forms" "text json csv html svg" "$(bash -c '. examples/packaging/moe-ep.bash
        COMP_WORDS=("$1" place --format "") COMP_CWORD=3; _moe_ep; echo "${COMPREPLY[*]}"' - "$tool")"

maps=$tmp/maps
mkdir "$maps"
run 0 place "$data/expert_counts.csv" --only prose --devices 8 --slots 72 --out plan.json --out plan.csv &&
    cp "$tmp/cwd/plan.json" "$tmp/cwd/plan.csv" "$maps"
python="$data/expert_counts.csv --only python"
# shellcheck disable=SC2086
works "rebalance from a JSON map" rebalance "$maps/plan.json" $python --devices 8 --target 1.05 \
    --out new.json --out new.csv --moves-out moves.csv --html r.html
cp "$tmp/cwd/new.json" "$tmp/cwd/new.csv" "$tmp/cwd/moves.csv" "$maps"
page "rebalance --html" "$tmp/cwd/r.html"
has "rebalance begins with the answer" 'bring the worst layer from max/mean [0-9.]+ to 1.0[0-5]$' "$tmp/out"
awk 'length > 120' "$tmp/out" >"$tmp/log"
[ -s "$tmp/log" ] && fail "rebalance: no line beyond 120 columns" "$tmp/log" ||
    pass "rebalance: no line beyond 120 columns"
# shellcheck disable=SC2086
works "rebalance --json" rebalance "$maps/plan.csv" $python --target 1.05 --json
cp "$tmp/out" "$tmp/rb.json"
less "rebalance: the target is kept in the worst layer" "$(json "$tmp/rb.json" rebalanced imbalance_worst)" 1.05
less "rebalance: moves less than a replan with renamed devices" "$(json "$tmp/rb.json" rebalanced moves)" \
    "$(json "$tmp/rb.json" relabelled moves)"
less "rebalance: which moves no more than a plain one" "$(json "$tmp/rb.json" relabelled moves)" \
    "$(json "$tmp/rb.json" replan moves)"
equal "rebalance: a JSON map and a CSV map give the same" "$(json "$tmp/rb.json" rebalanced moves)" \
    "$(($(wc -l <"$maps/moves.csv") - 1))"
equal "rebalance: bytes = moves x one expert" "$(printf '%.6g' "$(json "$tmp/rb.json" rebalanced bytes)")" \
    "$(awk -v m="$(json "$tmp/rb.json" rebalanced moves)" -v b="$(json "$tmp/rb.json" expert_bytes)" \
        'BEGIN { printf "%.6g", m * b }')"
for e in $(seq 0 63); do grep -cE "^2,[0-9]+,[0-9]+,$e\$" "$maps/new.csv"; done | grep -c '^0$' >"$tmp/lost"
equal "rebalance: every expert keeps a slot" "$(cat "$tmp/lost")" 0
# The move list turns the old map into the new one: every arrival it names is there, and no other device
# gained an expert.
awk -F, -v staging="$tmp/staging" '
    FNR == 1 { file++; next }
    file == 1 { held[$1, $2, $4] = 1; next }
    file == 2 && $4 >= 0 && !(($1, $2, $4) in held) { gained[$1, $4, $2] = 1; n++; next }
    file == 3 {
        if (!(($1, $2, $5) in gained)) print "not in the new map: " $0
        m++
        if (out[$7, $3]++ || in_[$7, $5]++) print "two at once: " $0
        if (!($7 in layer)) layer[$7] = $1
        if (layer[$7] != $1) print "two layers in a round: " $0
        if ((waits[$1, $5] += 1) > staged) staged = waits[$1, $5]
    }
    END {
        if (n != m) print n " arrivals, " m " moves"
        print staged >staging
    }' "$maps/plan.csv" "$maps/new.csv" "$maps/moves.csv" >"$tmp/log"
[ -s "$tmp/log" ] && fail "rebalance: the moves make the new map, one sent and received per device and round" \
    "$tmp/log" ||
    pass "rebalance: the moves make the new map, one sent and received per device and round"
equal "rebalance: staging is the most that arrive on a device in a layer" "$(json "$tmp/rb.json" rebalanced staging)" \
    "$(cat "$tmp/staging")"
# shellcheck disable=SC2086
# Looser targets may move as many experts or more for less: the curve has the best of a number of moves, once.
run 0 place "$data/prose_topk_ids.npy" --devices 8 --slots 72 --out prose.json && cp "$tmp/cwd/prose.json" "$maps"
works "rebalance --json: the curve" rebalance "$maps/prose.json" "$data/python_topk_ids.npy" --devices 8 --json
points=$(json "$tmp/out" frontier length)
for i in $(seq 0 $((points - 1))); do
    echo "$(json "$tmp/out" frontier "$i" moves) $(json "$tmp/out" frontier "$i" imbalance_worst)"
done >"$tmp/curve"
awk 'NR > 1 && ($1 <= moves || $2 >= worst) { print "behind", moves, worst ":", $0; bad = 1 }
    { moves = $1; worst = $2 } END { exit bad || NR < 5 }' "$tmp/curve" >"$tmp/log"
result $? "rebalance: more moves, better balance" "$tmp/log"
equal "rebalance: the curve has the plan's own point" \
    "$(grep -c "^$(json "$tmp/out" rebalanced moves) $(json "$tmp/out" rebalanced imbalance_worst)\$" "$tmp/curve")" 1
works "rebalance from the new JSON map" rebalance "$maps/new.json" $python --devices 8 --json
equal "rebalance: it carries the loads of the CSV map" "$(json "$tmp/out" today imbalance_worst)" \
    "$(json "$tmp/rb.json" rebalanced imbalance_worst)"
equal "rebalance: the JSON map has no empty slots" "$(json "$maps/new.json" $map count=-1)" 0
works "rebalance from its own result" rebalance "$maps/new.csv" "$data/expert_counts.csv" --only python --target 1.05
has "rebalance: nothing is left to move" '^Nothing to move' "$tmp/out"
# shellcheck disable=SC2086
works "rebalance --moves" rebalance "$maps/plan.csv" $python --moves 5 --json
less "rebalance: no more moves than allowed" "$(json "$tmp/out" rebalanced moves)" 5
# shellcheck disable=SC2086
works "rebalance without a map" rebalance $python --devices 8 --target 1.1 --json
less "rebalance: contiguous blocks can be mended" "$(json "$tmp/out" rebalanced imbalance_worst)" 1.1
# shellcheck disable=SC2086
works "rebalance on 16 devices" rebalance $python --devices 16 --machine h100
has "rebalance: nodes as the machine has them" '2 nodes of 8 devices, as h100 has them' "$tmp/out"
run 0 place "$data/expert_counts.csv" --only prose --devices 8 --slots 80 --out wide.csv &&
    cp "$tmp/cwd/wide.csv" "$maps"
# shellcheck disable=SC2086
works "rebalance --dead" rebalance "$maps/wide.csv" $python --dead 3 --out alive.csv --moves-out m.csv
has "rebalance: what was lost comes from elsewhere" '^[0-9]+,[0-9]+,-1,-1,' "$tmp/cwd/m.csv"
for e in $(seq 0 63); do awk -F, -v e="$e" '$1 == 0 && $2 != 3 && $4 == e' "$tmp/cwd/alive.csv" | wc -l; done |
    grep -c '^ *0$' >"$tmp/lost"
equal "rebalance: every expert stands on a device that works" "$(cat "$tmp/lost")" 0

sed 's/^0,0,3,.*/0,0,3,64/' "$maps/plan.csv" >"$bad/id_map.csv"
awk -F, -v OFS=, 'NR == 1 || $1 < 3 { if (NR > 1) $1 += 5; print }' "$maps/plan.csv" >"$maps/other_layers.csv"
sed '5d' "$maps/plan.csv" >"$bad/gap_map.csv"
sed '5p' "$maps/plan.csv" >"$bad/twice_map.csv"
sed 's/^0,0,3,.*/0,0,3,x/' "$maps/plan.csv" >"$bad/word_map.csv"
sed 's/^\(.*\),[0-9]*$/\1,7/' "$maps/plan.csv" | sed '1s/.*/layer,device,slot,expert/' >"$bad/lost_map.csv"
printf '{"physical_to_logical_map": [[0, 1], [1]]}' >"$bad/ragged_map.json"
printf '{"physical_to_logical_map": [[0, 1.5]]}' >"$bad/half_map.json"
printf '{"logical_count": [[1, 2, 3]]}' >"$bad/three_experts.json"
printf '{"physical_to_logical_map": []}' >"$bad/empty_map.json"
printf '{"physical_to_logical_map": [[0, 1' >"$bad/cut_map.json"
refuses "a map with an expert too many" "expert 64" rebalance "$bad/id_map.csv" "$data/expert_counts.csv" --only c
refuses "a map without a slot" "slot 3" rebalance "$bad/gap_map.csv" "$data/expert_counts.csv" --only c
refuses "a map with a slot twice" "twice_map.csv:6" rebalance "$bad/twice_map.csv" "$data/expert_counts.csv" --only c
refuses "a map with a word for an expert" "word_map.csv:5" rebalance "$bad/word_map.csv" \
    "$data/expert_counts.csv" --only c
refuses "a map that lost experts" "stands in no slot" rebalance "$bad/lost_map.csv" "$data/expert_counts.csv" --only c
for m in ragged half empty cut; do
    refuses "a $m JSON map" "${m}_map.json" diagnose "$data/c_topk_ids.npy" --current "$bad/${m}_map.json" --devices 2
done
refuses "a JSON map without --devices" "devices" rebalance "$maps/plan.json" "$data/expert_counts.csv" --only c
refuses "a JSON map whose slots do not divide over the devices" "cannot hold in equal numbers" \
    rebalance "$maps/plan.json" "$data/expert_counts.csv" --only c --devices 7
refuses "a map of other devices" "8 devices" rebalance "$maps/plan.csv" "$data/expert_counts.csv" --only c --devices 4
printf 'layer,device,slot,expert\n0,4000,0,0\n0,0,1,1\n' >"$bad/falling.csv"
refuses "a map whose devices fall" "device after device" rebalance "$bad/falling.csv" "$data/expert_counts.csv" --only c
refuses "a dead device that is none" "dead" rebalance "$maps/plan.csv" "$data/expert_counts.csv" --only c --dead 8
refuses "a dead device twice" "twice" rebalance "$maps/plan.csv" "$data/expert_counts.csv" --only c --dead 1,1
refuses "too many dead devices" "dead" rebalance "$maps/plan.csv" "$data/expert_counts.csv" --only c --dead 0,1,2,3
refuses "a map of another model" "holds expert" rebalance "$maps/plan.csv" "$bad/three_experts.json"
refuses "a map of other layers" "fit together" rebalance "$maps/other_layers.csv" "$data/expert_counts.csv" --only c
refuses "the new map over an input" "overwritten" rebalance "$maps/plan.csv" "$data/expert_counts.csv" --only c \
    --out "$maps/plan.csv"
refuses "rebalance: loads of nothing" "zero" rebalance "$bad/zero.csv" --devices 2

# shellcheck disable=SC2086
works "diagnose" diagnose $ids --html r.html
page "diagnose --html" "$tmp/cwd/r.html"
has "diagnose begins with the verdict" '^(Recommend|Not now|Insufficient evidence): ' "$tmp/out"
# shellcheck disable=SC2086
works "diagnose --json" diagnose $ids --json
cp "$tmp/out" "$tmp/dg.json"
equal "diagnose: two judged recordings" "$(json "$tmp/dg.json" windows length)" 2
equal "diagnose: every step is judged" "$(json "$tmp/dg.json" step_imbalance length)" "$(json "$tmp/dg.json" steps)"
equal "diagnose: a moved workload does not recommend a plan" "$(json "$tmp/dg.json" verdict)" "not now"
less "diagnose: bound <= with the plan" "$(json "$tmp/dg.json" imbalance_bound)" \
    "$(json "$tmp/dg.json" imbalance_after)"
less "diagnose: perfect balance <= bound" "$(json "$tmp/dg.json" rows_balanced)" "$(json "$tmp/dg.json" rows_bound)"
# shellcheck disable=SC2086
run 3 diagnose $ids --exit-code && pass "--exit-code: 3 for not now" || fail "--exit-code: 3 for not now" "$tmp/err"
run 4 diagnose "$tmp/one.json" --devices 8 --exit-code && pass "--exit-code: 4 for insufficient evidence" ||
    fail "--exit-code: 4 for insufficient evidence" "$tmp/err"
has "one window is no evidence" '^Insufficient evidence: a second window' "$tmp/out"
works "one window without --exit-code" diagnose "$tmp/one.json" --devices 8
{ printf 'step,layer,0,1,2,3,4,5,6,7\n'; for s in 0 1 2 3 4 5 6 7;
    do printf '%d,0,40000,38000,500,500,500,500,500,500\n' $s; done; } >"$tmp/steady.csv"
run 0 diagnose "$tmp/steady.csv" --topk 1 --devices 4 --slots 8 --model mixtral-8x7b --exit-code --json &&
    pass "--exit-code: 0 for recommend" ||
    fail "--exit-code: 0 for recommend" "$tmp/err"
equal "diagnose: a steady pile-up is worth mending" "$(json "$tmp/out" verdict)" recommend
less "diagnose: the two hot experts part" "$(json "$tmp/out" imbalance_after)" 2
run 3 diagnose "$tmp/steady.csv" --topk 1 --devices 4 --slots 8 --model mixtral-8x7b --exit-code --horizon 1 \
    --pause-ms 60000 &&
    pass "diagnose: a plan that never repays its pause is not recommended" ||
        fail "diagnose: a plan that never repays its pause is not recommended" "$tmp/err"
run 4 diagnose "$tmp/steady.csv" --topk 1 --devices 4 --slots 8 --min-steps 5 --exit-code &&
    pass "diagnose --min-steps" || fail "diagnose --min-steps" "$tmp/err"
run 3 diagnose "$tmp/steady.csv" --topk 1 --devices 4 --slots 8 --model mixtral-8x7b --exit-code --min-gain 0.9 &&
    pass "diagnose --min-gain" || fail "diagnose --min-gain" "$tmp/err"
run 4 diagnose "$tmp/steady.csv" --topk 1 --devices 4 --slots 8 --model mixtral-8x7b --exit-code --min-sigmas 900 &&
    pass "diagnose --min-sigmas" || fail "diagnose --min-sigmas" "$tmp/err"
has "diagnose: chance alone may save as much" '^Insufficient evidence: chance alone may save as much$' "$tmp/out"
has "diagnose: a gain within chance" 'more than chance saves +[0-9.]+ % +wanted [0-9.]+ % or more +not met$' "$tmp/out"
has "diagnose: by how much rows differ by chance" 'in so few steps chance moves that by' "$tmp/out"
run 0 diagnose "$tmp/steady.csv" --topk 1 --devices 4 --slots 8 --model mixtral-8x7b --min-sigmas 0 --json
equal "diagnose: --min-sigmas 0 does not ask" "$(json "$tmp/out" verdict)" recommend
less "diagnose --json: what chance does to the gain" "$(json "$tmp/out" gain_sd)" 0.01
run 3 diagnose "$tmp/steady.csv" --topk 1 --devices 4 --slots 8 --model mixtral-8x7b --exit-code --target 4 &&
    pass "diagnose --target" || fail "diagnose --target" "$tmp/err"
# A device with 1.315 times its share in batches of 64 tokens: more than chance, unless routing is by groups.
awk 'BEGIN { for (s = -1; s < 4; s++) { printf s < 0 ? "step,layer" : s ",0"; for (e = 0; e < 256; e++)
    printf ",%d", s < 0 ? e : e < 20 ? 3 : e < 32 || e % 32 < 29 ? 2 : 1; print "" } }' >"$tmp/lumpy.csv"
works "diagnose: more than chance" diagnose "$tmp/lumpy.csv" --topk 8 --devices 8 --min-gain 0.9
has "diagnose: the plan saves too little" 'The plan saves too little' "$tmp/out"
has "diagnose: the mean of two steps is held against chance" 'against chance +1\.315 +wanted above 1\.254 .* met$' \
    "$tmp/out"
works "diagnose: no more than chance under groups" diagnose "$tmp/lumpy.csv" --topk 8 --devices 8 --min-gain 0.9 \
    --model deepseek-v3
tr -s ' \n' '  ' <"$tmp/out" >"$tmp/flat"
has "diagnose: what little the plan saves is said" \
    'no more than the 1\.36 that .* by chance; larger batches help, the plan saves only [0-9.]+ %' "$tmp/flat"
has "diagnose: whose groups" "router of deepseek-v3: a token's experts come from 4 of 8 groups" "$tmp/flat"
works "diagnose: more devices than experts" diagnose "$tmp/steady.csv" --topk 1 --devices 16 --slots 16
has "diagnose: chance is not known then" 'proven bound 1\.580, chance not known$' "$tmp/out"
if grep -q 'against chance' "$tmp/out"; then fail "diagnose: no line against chance" "$tmp/out"
else pass "diagnose: no line against chance"; fi
works "diagnose --json of them" diagnose "$tmp/steady.csv" --topk 1 --devices 16 --slots 16 --json
equal "diagnose --json: chance is null" "$(json "$tmp/out" imbalance_chance)" null
equal "diagnose --json: so is what it does to the gain" "$(json "$tmp/out" gain_sd)" null
works "report: more devices than experts" report "$tmp/steady.csv" --topk 1 --devices 16 --slots 16
has "report: chance is not known then" 'all layers together; chance not known; device 0' "$tmp/out"
works "watch: more devices than experts" watch "$tmp/steady.csv" --topk 1 --devices 16 --once
tr -s ' \n' '  ' <"$tmp/out" >"$tmp/flat"
has "watch: chance is not known then" '100 % of them; over all layers chance not known' "$tmp/flat"
works "diagnose --current" diagnose "$data/c_topk_ids.npy" --current "$maps/plan.csv" --json
equal "diagnose: devices and slots are the map's" "$(json "$tmp/out" setup slots)" 72
refuses "diagnose: a share above 1" "min-improved" diagnose "$data/c_topk_ids.npy" --min-improved 1.5
refuses "diagnose: an unknown policy" "policy" diagnose "$data/c_topk_ids.npy" --policy magic

# Without --slots two plans are judged.  What each gives by itself is asked for with --slots; which of them is the
# answer is worked out here.
two_plans() { # two_plans NAME SLOTS ARGS...: diagnose ARGS judges 64 slots and SLOTS; leaves $answer
    name=$1 slots=$2
    shift 2
    for n in 64 "$slots"; do
        run 0 diagnose "$@" --slots "$n"
        for key in verdict gain imbalance_after moves other; do json "$tmp/out" $key >"$tmp/$key.$n"; done
    done
    # one that is worth it; of two the one without copies unless copies save 0.01 more; of none the larger gain
    answer=$(awk -v a="$(cat "$tmp/verdict.64")" -v b="$(cat "$tmp/verdict.$slots")" -v E=64 -v P="$slots" \
        -v with="$(cat "$tmp/gain.$slots")" -v without="$(cat "$tmp/gain.64")" '
        BEGIN { one = a == "recommend"; copies = b == "recommend"; more = with - without
            pays = one != copies ? copies : one ? more >= 0.01 : more > 0
            print pays ? P : E }')
    other=$((64 + slots - answer))
    {
        cat "$tmp/verdict.$answer" "$tmp/gain.$answer" "$tmp/imbalance_after.$answer" "$tmp/moves.$answer" \
            "$tmp/verdict.$other" "$tmp/gain.$other" "$tmp/moves.$other"
        printf '%d\n%d\nnull\nnull\n' "$answer" "$other"
    } >"$tmp/want"
    run 0 diagnose "$@"
    cp "$tmp/out" "$tmp/two.json"
    for key in verdict gain imbalance_after moves "other verdict" "other gain" "other moves" slots "other slots"; do
        # shellcheck disable=SC2086
        json "$tmp/two.json" $key
    done >"$tmp/got"
    cat "$tmp/other.64" "$tmp/other.$slots" >>"$tmp/got"
    cmp "$tmp/got" "$tmp/want" >"$tmp/log" 2>&1
    result $? "diagnose $name: the better of two plans, $answer slots" "$tmp/log"
}
for devices in 8 16; do
    for pair in prose:c prose:python c:prose c:python python:prose python:c; do
        set -- "$data/${pair%:*}_topk_ids.npy" "$data/${pair#*:}_topk_ids.npy" --devices $devices --json
        two_plans "$pair on $devices" $((64 + devices)) "$@"
        run 0 report "$@"
        chosen=$(json "$tmp/out" chosen)
        equal "report $pair on $devices says the same" \
            "$(json "$tmp/out" verdict), $chosen, $(printf '%.6f' "$(json "$tmp/out" "$chosen" gain)")" \
            "$(json "$tmp/two.json" verdict), $([ "$answer" = 64 ] && echo no_copies || echo copies), $(
            printf '%.6f' "$(json "$tmp/two.json" gain)")"
    done
done
two_plans "with copies that save 0.5 % more" 80 "$data/prose_topk_ids.npy" "$data/python_topk_ids.npy" --devices 16 \
    --policy eplb --json
equal "they are not worth their memory" "$answer, $(cat "$tmp/verdict.64"), $(cat "$tmp/verdict.80")" \
    "64, recommend, recommend"
less "though more is saved" "$(cat "$tmp/gain.64")" "$(cat "$tmp/gain.80")"
# Nothing to judge on: what the loads that were planned on say decides which plan is described, as in the report.
for shape in "c_topk_ids.npy --tokens 2048 --devices 8" "python_topk_ids.npy --tokens 4096 --devices 14"; do
    # shellcheck disable=SC2086
    run 0 diagnose "$data/"$shape --nodes 1 --json
    cp "$tmp/out" "$tmp/two.json"
    # shellcheck disable=SC2086
    run 0 report "$data/"$shape --nodes 1 --json
    gain=$(printf '%.6f' "$(json "$tmp/two.json" gain)") chosen=$(json "$tmp/out" chosen)
    equal "one window, $shape: the report's plan" \
        "$(json "$tmp/two.json" verdict), $(json "$tmp/two.json" slots), $gain" \
        "insufficient evidence, $(json "$tmp/out" "$chosen" slots), $(
            printf '%.6f' "$(json "$tmp/out" "$chosen" gain)")"
    case $shape in # with copies more would be saved, not 1 %; where neither is beyond chance they are the answer
    python*) less "$shape: without copies" "$(json "$tmp/two.json" gain)" "$(json "$tmp/two.json" other gain)" ;;
    *) less "$shape: with copies" "$(json "$tmp/two.json" other gain)" "$(json "$tmp/two.json" gain)" ;;
    esac
done
# Loads of which the plans are known: these need no copies, the second ones gain nothing without.
steps() { # steps LOADS: eight steps of one layer
    printf 'step,layer,0,1,2,3,4,5,6,7\n'
    for s in 0 1 2 3 4 5 6 7; do printf '%d,0,%s\n' $s "$1"; done
}
steps 20000,20000,1000,1000,10500,10500,10500,10500 >"$tmp/no_copies.csv"
steps 100000,2000,2000,2000,2000,2000,2000,2000 >"$tmp/copies.csv"
small="--topk 1 --devices 4 --model mixtral-8x7b"
# shellcheck disable=SC2086
works "diagnose: loads that need no copies" diagnose "$tmp/no_copies.csv" $small --json
equal "are planned without: 21000 on each device instead of 40000 on one" \
    "$(printf '%s %.5f %.5f' "$(json "$tmp/out" slots)" "$(json "$tmp/out" imbalance_before)" \
        "$(json "$tmp/out" imbalance_after)")" "8 $(awk 'BEGIN { printf "%.5f", 40000 / 21000 }') 1.00000"
# shellcheck disable=SC2086
works "diagnose: one hot expert" diagnose "$tmp/copies.csv" $small --json
equal "is copied: a quarter and two others on the busiest device" \
    "$(printf '%s %.5f' "$(json "$tmp/out" slots)" "$(json "$tmp/out" imbalance_after)")" \
    "12 $(awk 'BEGIN { printf "%.5f", (100000 / 4 + 2 * 2000) / (114000 / 4) }')"
equal "because without copies nothing is saved" \
    "$(json "$tmp/out" other slots) $(json "$tmp/out" other verdict) $(printf '%.4f' "$(json "$tmp/out" other gain)")" \
    "8 not now 0.0000"
# shellcheck disable=SC2086
works "diagnose: one hot expert, in words" diagnose "$tmp/copies.csv" $small --html r.html
page "diagnose --html with two plans" "$tmp/cwd/r.html"
says='This is the plan with 4 copies per layer (12 slots). Without copies (8 slots): not now, 0.0 % of a step saved.'
tr -s ' \n' ' ' <"$tmp/out" | grep -qF "$says"
result $? "the other plan is named" "$tmp/out"
sed 's/&nbsp;/ /g' "$tmp/cwd/r.html" | grep -qF "$says"
result $? "on the page, too" "$tmp/cwd/r.html"
# shellcheck disable=SC2086
works "diagnose --slots" diagnose "$tmp/copies.csv" $small --slots 12
! grep -qE 'This is the plan|Two plans' "$tmp/out"
result $? "judges one plan" "$tmp/out"
works "diagnose: EPLB where no plan without copies has equal slots" diagnose "$data/c_topk_ids.npy" --policy eplb \
    --devices 12 --nodes 1
has "judges one plan and says so" 'Only the plan with 84 slots was judged' "$tmp/out"

# A recording that is given twice, whole or times three, is one recording; one with other loads in it is another.
twin() { sed -E 's/"equal_recordings": \[\],?//; /"equal_recordings": \[$/,/\]/d; /^ *"assumed": /d; /^ *$/d' "$1"; }
cp "$data/prose_topk_ids.npy" "$tmp/prose_again.npy"
sed -n '1p; /^prose,/p' "$data/expert_counts.csv" >"$tmp/sums.csv"
awk -F, -v OFS=, 'NR > 1 { for (i = 3; i <= NF; i++) $i *= 3 } 1' "$tmp/sums.csv" >"$tmp/sums_x3.csv"
awk -F, -v OFS=, 'NR > 1 { for (i = 3; i <= NF; i++) $i *= NR } 1' "$tmp/sums.csv" >"$tmp/sums_each.csv"
awk -F, -v OFS=, 'NR == 3 { $7++ } 1' "$tmp/sums.csv" >"$tmp/sums_other.csv"
awk -F, -v OFS=, 'NR > 1 { for (i = 3; i <= NF; i++) $i *= NR } NR == 3 { $7 += NR } 1' "$tmp/sums.csv" \
    >"$tmp/sums_each_other.csv"
for twins in "$data/prose_topk_ids.npy $tmp/prose_again.npy" "$tmp/sums.csv $tmp/sums_x3.csv" \
    "$tmp/sums.csv $tmp/sums_each.csv"; do
    for command in diagnose report; do
        # shellcheck disable=SC2086
        works "$command: one recording twice" $command $twins --devices 8 --json
        equal "is noticed" "$(json "$tmp/out" equal_recordings length)" 1
        twin "$tmp/out" >"$tmp/twice.json"
        works "$command: the same once" $command "${twins% *}" --devices 8 --json
        twin "$tmp/out" >"$tmp/once.json"
        cmp "$tmp/twice.json" "$tmp/once.json" >"$tmp/log" 2>&1
        result $? "gives the same answer" "$tmp/log"
        # shellcheck disable=SC2086
        works "$command: one recording twice, in words" $command $twins --devices 8
        tr -s ' \n' ' ' <"$tmp/out" >"$tmp/flat.txt"
        has "it is said" 'has the same loads as .* and was left out' "$tmp/flat.txt"
        ! grep -q 'has not seen' "$tmp/flat.txt"
        result $? "and not called unseen" "$tmp/flat.txt"
    done
done
run 4 diagnose "$tmp/sums.csv" "$tmp/sums_x3.csv" --devices 8 --exit-code && pass "twice the same sum is no evidence" ||
    fail "twice the same sum is no evidence" "$tmp/err"
for command in diagnose report; do
    for other in other each_other; do
        works "$command: one load differs by one row" $command "$tmp/sums.csv" \
            "$tmp/sums_$other.csv" --devices 8
        tr -s ' \n' ' ' <"$tmp/out" >"$tmp/flat.txt"
        has "is another recording" 'which the plan has not seen' "$tmp/flat.txt"
    done
done
works "diagnose: the first again between others" diagnose "$data/prose_topk_ids.npy" "$tmp/prose_again.npy" \
    "$data/c_topk_ids.npy" "$data/python_topk_ids.npy" --devices 8 --json
twin "$tmp/out" >"$tmp/twice.json"
# shellcheck disable=SC2086
works "diagnose: the others alone" diagnose $ids --devices 8 --json
twin "$tmp/out" >"$tmp/once.json"
cmp "$tmp/twice.json" "$tmp/once.json" >"$tmp/log" 2>&1
result $? "judge alike" "$tmp/log"

# A recording of more layers than the model has, or of fewer, is noted; one of as many is not.
for layers in 31 32 40; do
    awk -v L=$layers 'BEGIN {
        for (l = 0; l < L; l++) for (e = 0; e < 16; e++) printf "%d%s", 10 + (e * 7 + l) % 5, e < 15 ? "," : "\n" }' \
        >"$tmp/layers.csv"
    for command in report diagnose; do
        works "$command: $layers layers" $command "$tmp/layers.csv" --devices 8 --topk 2 --model phi-tiny-moe
        tr -s ' \n' ' ' <"$tmp/out" >"$tmp/flat.txt"
        equal "more than the 32 of phi-tiny-moe" "$(grep -oE \
            "recording has $layers layers with experts, more than the 32 of phi-tiny-moe: .* the shapes alone" \
            "$tmp/flat.txt" | wc -l)" $((layers > 32))
        equal "or fewer" "$(grep -oF "cover the $layers recorded layers alone; phi-tiny-moe has 32 with experts" \
            "$tmp/flat.txt" | wc -l)" $((layers < 32))
    done
done

# Recordings that are sums: report and diagnose count them alike, and say so in the same words.
awk 'BEGIN { printf "{\"logical_count\": ["; for (l = 0; l < 4; l++) { printf "%s[", l ? ", " : "";
    for (e = 0; e < 64; e++) printf "%s%d", e ? ", " : "", e < 8 ? 900000 - 50000 * e : 40000 + 100 * e + l;
    printf "]" } print "]}" }' >"$tmp/sum_a.json"
sed 's/40000/41000/; s/850000/840000/' "$tmp/sum_a.json" >"$tmp/sum_b.json"
sums="$tmp/sum_a.json $tmp/sum_b.json --devices 8 --slots 72 --topk 8 --model olmoe-1b-7b"
# shellcheck disable=SC2086
works "report on sums" report $sums
cp "$tmp/out" "$tmp/sums.txt"
has "report on sums: recommended" '^  Recommended: ' "$tmp/sums.txt"
has "one judged step is named as such" 'faster in the one judged' "$tmp/sums.txt"
tr -s ' \n' ' ' <"$tmp/sums.txt" >"$tmp/flat.txt"
has "the step time says that its size is a guess" '4,096 tokens per device is prefill-sized; for decode give --tokens' \
    "$tmp/flat.txt"
has "what the step time takes for granted" 'bf16 dispatch and bf16 combine, no overlap' "$tmp/flat.txt"
has "the best plan need not lead elsewhere" 'need not lead on the others' "$tmp/flat.txt"
sed 's/^{"logical_count": /{"logical_count": [/; s/}$/, /' "$tmp/sum_a.json" >"$tmp/sum_steps.json"
sed 's/^{"logical_count": //; s/}$/]}/' "$tmp/sum_b.json" >>"$tmp/sum_steps.json"
works "steps that are sums" report "$tmp/sum_steps.json" --devices 8 --topk 8 --json
equal "are scaled to a step" "$(json "$tmp/out" setup tokens_per_step)" 32768
has "report ends with what to do" '^ +moe-ep place .*sum_a.json --devices 8' "$tmp/sums.txt"
has "and with the cheaper change" '^ +moe-ep rebalance .*sum_a.json' "$tmp/sums.txt"
# shellcheck disable=SC2086
works "report on sums with sizes of its own" report $sums --hidden 512 --intermediate 96
tr -s ' \\\n' ' ' <"$tmp/out" >"$tmp/flat.txt"
has "its cheaper change is told them" \
    'moe-ep rebalance [^:]* --model olmoe-1b-7b --hidden 512 --intermediate 96 --out plan.json' "$tmp/flat.txt"
# The command that the report names runs as it stands.
awk '/^ +moe-ep place / { on = 1 } on { print; if (!/\\$/) exit }' "$tmp/sums.txt" |
    sed "s|moe-ep place|\"$tool\" place|" >"$tmp/next.sh"
mkdir -p "$tmp/next" && (cd "$tmp/next" && sh "$tmp/next.sh") >"$tmp/log" 2>&1 && [ -s "$tmp/next/plan.json" ]
result $? "the command that the report names writes the plan" "$tmp/log"
grep -E '[0-9]{4,} experts|0\.[0-9] steps|100\.0 % of' "$tmp/sums.txt" >"$tmp/log"
[ ! -s "$tmp/log" ]
result $? "figures in one style" "$tmp/log"
has "devices: all layers together" 'all layers together' "$tmp/sums.txt"
! grep -qF 'mean over layers' "$tmp/sums.txt"
result $? "devices: no plain mean over layers" "$tmp/sums.txt"
# shellcheck disable=SC2086
run 0 diagnose $sums --exit-code && pass "diagnose on sums agrees with report" ||
    fail "diagnose on sums agrees with report" "$tmp/err"
# shellcheck disable=SC2086
run 4 diagnose $sums --exit-code --min-steps 2 && pass "unless --min-steps asks for more" ||
    fail "unless --min-steps asks for more" "$tmp/err"
# Counts without steps that hold few tokens are one step of these: rows that nobody recorded would make chance small.
few() { # few A|B: 40 tokens, top-2 of 64 experts, by chance alone
    case $1 in
    A) set -- 0 2 4 0 0 2 2 2 2 2 0 2 0 0 3 3 0 3 1 1 1 2 0 1 4 1 1 0 3 0 1 1 0 0 1 0 3 2 0 1 0 2 0 1 2 2 2 \
        1 0 1 1 2 2 0 1 2 3 1 0 2 1 1 0 2 ;;
    B) set -- 0 3 1 0 0 0 1 3 0 1 3 2 1 0 3 2 3 1 0 0 7 0 2 1 0 2 0 1 1 2 2 2 0 1 2 3 0 0 2 3 1 1 0 0 0 1 1 \
        2 0 2 1 1 2 1 1 1 1 3 0 0 0 3 3 0 ;;
    esac
    echo "layer $(seq -s ' ' 0 63)" | tr ' ' ','
    echo "0 $*" | tr ' ' ','
}
few A >"$tmp/few_a.csv"
few B >"$tmp/few_b.csv"
few="$tmp/few_a.csv $tmp/few_b.csv --devices 8 --topk 2 --slots 64"
# shellcheck disable=SC2086
works "diagnose: 40 tokens on eight devices" diagnose $few --json
equal "one judged step is no evidence" "$(json "$tmp/out" verdict) $(json "$tmp/out" setup min_steps)" \
    "insufficient evidence 2"
few_chance=$(json "$tmp/out" imbalance_chance)
less "chance is that of 40 tokens" 1.75 "$few_chance"
# shellcheck disable=SC2086
run 4 diagnose $few --exit-code && pass "exit code 4" || fail "exit code 4" "$tmp/err"
tr -s ' \n' ' ' <"$tmp/out" >"$tmp/flat.txt"
has "what the step is" 'says nothing of steps and holds 40 tokens: taken as one step; ' "$tmp/flat.txt"
has "of the other one, too" 'few_b holds 40 tokens in all: taken as one step' "$tmp/flat.txt"
# shellcheck disable=SC2086
run 3 diagnose $few --exit-code --min-steps 1 && pass "as one step asked for: chance" ||
    fail "as one step asked for: chance" "$tmp/err"
# shellcheck disable=SC2086
run 4 diagnose $few --exit-code --tokens 32768 && pass "scaled by --tokens it is no more evidence" ||
    fail "scaled by --tokens it is no more evidence" "$tmp/err"
tr -s ' \n' ' ' <"$tmp/out" >"$tmp/flat.txt"
has "and chance is understated" 'few_b holds 40 tokens in all, less than one step of 32,768: .* then understated' \
    "$tmp/flat.txt"
# shellcheck disable=SC2086
works "report: 40 tokens" report $few --json
equal "are the step" "$(json "$tmp/out" setup tokens_per_step)" 40
# A small one is no measure for a sum of many rows, nor that for it.
awk -F, -v OFS=, 'NR > 1 { for (i = 2; i <= NF; i++) $i = 100000 * $i + 40000 * i } 1' "$tmp/few_b.csv" >"$tmp/many.csv"
for pair in "few_a many 32768 1" "many few_a 40 2" "few_a many 1000 1 --tokens 1000" \
    "many few_a 1000 2 --tokens 1000"; do
    # shellcheck disable=SC2086
    set -- $pair
    from=$1 to=$2 step=$3 least=$4
    shift 4
    works "diagnose: planned on $from, judged on $to" diagnose "$tmp/$from.csv" "$tmp/$to.csv" --devices 8 --topk 2 \
        --slots 64 "$@" --json
    equal "steps of its own size${1:+ or as $1 says}" \
        "$(json "$tmp/out" setup tokens_per_step) $(json "$tmp/out" setup min_steps)" "$step $least"
    tr -s ' \n' ' ' <"$tmp/out" >"$tmp/flat.txt"
    [ "$from$#" != few_a0 ] ||
        has "the sum is called one" 'many is a sum over many steps: scaled to steps of 32,768' "$tmp/flat.txt"
done
# Text C's loads: 1000 + 800 rows are 1,800 on GPU 0, not 4,096 tokens' worth.
printf 'layer,0,1,2,3,4,5,6,7\n0,1000,800,600,500,300,200,100,50\n' >"$tmp/text_c.csv"
works "report: the loads of text C" report "$tmp/text_c.csv" --devices 4 --topk 2
has "rows as they stand there" 'device 0 .* 1,800  *2.03' "$tmp/out"
has "of 1,775 tokens" '1,775 tokens; balanced' "$tmp/out"
awk -F, -v OFS=, 'NR > 1 { for (i = 2; i <= NF; i++) $i *= 1000 } 1' "$tmp/text_c.csv" >"$tmp/text_c_1000.csv"
works "report: a thousand times as many" report "$tmp/text_c_1000.csv" --devices 4 --topk 2
has "are a sum over many steps" '16,384 tokens; *(balanced|$)' "$tmp/out"
awk -F, -v OFS=, 'NR > 1 { for (i = 2; i <= NF; i++) $i /= 3550 } 1' "$tmp/text_c.csv" >"$tmp/shares.csv"
works "report: shares stand for no tokens" report "$tmp/shares.csv" --devices 4 --topk 2 --json
equal "and are made prefill-sized" "$(json "$tmp/out" setup tokens_per_step)" 16384

works "many devices and layers, short" report "$tmp/sum_a.json" --devices 32 --topk 8
equal "short: the busiest five" "$(grep -cE '^  device [0-9]+ +[|]' "$tmp/out")" 15
has "short: where the others are" 'the other 27 devices: --charts' "$tmp/out"
works "many devices, every picture" report "$tmp/sum_a.json" --devices 32 --topk 8 --charts --html r.html
equal "with --charts all of them" "$(grep -cE '^  device [0-9]+ +[|]' "$tmp/out")" 96
works "report --json counts copies" report "$tmp/sum_a.json" --devices 32 --topk 8 --model olmoe-1b-7b --json
fewest=$(json "$tmp/out" copies_needed)
works "copies counts them" copies "$tmp/sum_a.json" --devices 32 --json
[ -n "$fewest" ] && equal "report and copies need as many" "$fewest" "$(json "$tmp/out" fewest)"

printf 'layer,0,1,2,3,4,5,6,7\n0,960,92,92,92,91,91,91,91\n' >"$tmp/hot.csv"
works "copies" copies "$tmp/hot.csv" --devices 8 --policy eplb --target 1.04 --max-copies 32 --html r.html
page "copies --html" "$tmp/cwd/r.html"
has "copies: the answer" '^24 copies per layer reach max/mean 1.04; without copies the worst layer has 4.80' "$tmp/out"
has "copies: the curve is not monotone, and that is said" 'not monotone: it rises 2 times, most at 16 copies' "$tmp/out"
works "copies --json" copies "$tmp/hot.csv" --devices 8 --policy eplb --target 1.04 --max-copies 32 --json
equal "copies: five plans" "$(json "$tmp/out" curve length)" 5
for point in 0:4.8 1:1.06667 2:1.10017 4:1.03366; do
    equal "copies: max/mean of plan ${point%%:*}" \
        "$(printf '%.4f' "$(json "$tmp/out" curve "${point%%:*}" worst)")" "$(printf '%.4f' "${point#*:}")"
done
equal "copies: bytes = copies x one expert" "$(printf '%.6g' "$(json "$tmp/out" curve 4 bytes)")" \
    "$(awk -v b="$(json "$tmp/out" expert_bytes)" 'BEGIN { printf "%.6g", 32 * b }')"
works "copies: the best placement" copies "$data/expert_counts.csv" --only prose --devices 16 --target 1.001 --json
less "copies: what each layer needs is no more than as many for all" "$(json "$tmp/out" target_need per_layer)" \
    "$(json "$tmp/out" fewest)"
works "copies: shared out over the layers" copies "$data/prose_topk_ids.npy" --devices 64 --max-copies 8 --json
for key in copies worst mean device_bytes; do
    equal "copies: none shared out are none, $key" "$(json "$tmp/out" budgets 0 $key)" "$(json "$tmp/out" curve 0 $key)"
done
works "copies: with EPLB" copies "$data/prose_topk_ids.npy" --devices 32 --max-copies 64 --policy eplb --json
equal "copies: EPLB shares none out" "$(json "$tmp/out" budgets length)" 0
refuses "copies without --devices" "devices" copies "$tmp/hot.csv"
works "copies: eplb on devices that do not divide" copies "$tmp/hot.csv" --devices 3 --policy eplb --html r.html
page "copies --html, eplb on devices that do not divide" "$tmp/cwd/r.html"
has "begins with the copies that fill every device" \
    '^7 copies per layer reach max/mean 1.05; with 1, the fewest that give every device as many slots,' "$tmp/out"
has "and says why" 'EPLB needs as many slots on every device: 8 experts on 3 devices take 1 copy at least' "$tmp/out"
works "copies: the first of them suffices" copies "$tmp/hot.csv" --devices 3 --policy eplb --target 1.3
has "and that is said" '^1 copy per layer, the fewest that give every device as many slots, reaches max/mean 1.30' \
    "$tmp/out"
works "copies: none of them suffices" copies "$tmp/hot.csv" --devices 5 --policy eplb --target 1.01 --max-copies 2
has "what the fewest give" 'With 2, the fewest that give every device as many slots, the worst layer has 1.284 and' \
    "$tmp/out"
works "copies --json, eplb" copies "$tmp/hot.csv" --devices 3 --policy eplb --json
equal "copies: eplb on 3 devices: 1, 4, 7 .. copies" \
    "$(json "$tmp/out" curve 0 copies) $(json "$tmp/out" curve 1 copies) $(json "$tmp/out" fewest)" "1 4 7"
refuses "copies: fewer than eplb needs" "take 2 copies at least" \
    copies "$tmp/hot.csv" --devices 5 --policy eplb --max-copies 1
refuses "copies: eplb in other steps" "multiples of the 3 devices" \
    copies "$tmp/hot.csv" --devices 3 --policy eplb --step 2
works "copies: --slots" copies "$tmp/hot.csv" --devices 4 --slots 12
has "is named as not used" '[-]-slots 12 was not used' "$tmp/out"

# ---- sweep -----------------------------------------------------------------------------------------------
question="--model deepseek-v3 --machine h200 --nodes 8 --tokens 64"
works "sweep --help" sweep --help
has "moe-ep --help names sweep" "^  sweep " "$tmp/main_help"
# shellcheck disable=SC2086
works "sweep: DeepSeek-V3 on 8 nodes of H200" sweep $question --html r.html
page "sweep --html" "$tmp/cwd/r.html"
has "sweep: the answer" '^Run EP [0-9]+ with [0-9]+ redundant experts: [0-9.]+ ms per token' "$tmp/out"
cp "$tmp/out" "$tmp/sweep.txt"
awk 'length > 120' "$tmp/out" >"$tmp/log"
[ -s "$tmp/log" ] && fail "sweep: no line beyond 120 columns" "$tmp/log" || pass "sweep: no line beyond 120 columns"
# shellcheck disable=SC2086
works "sweep again" sweep $question --html r.html
cmp "$tmp/out" "$tmp/sweep.txt" >"$tmp/log" 2>&1 && pass "the same seed, the same bytes" ||
    fail "the same seed, the same bytes" "$tmp/log"
# shellcheck disable=SC2086
works "sweep --json" sweep $question --json
cp "$tmp/out" "$tmp/sw.json"
equal "sweep: 671 GB do not fit on one device" "$(json "$tmp/sw.json" configurations 0 fits)" false
equal "sweep: memory limits it there" "$(json "$tmp/sw.json" configurations 0 limit)" memory
less "sweep: what is named fits" "$(json "$tmp/sw.json" best memory_bytes)" 150754820096
tpot=$(json "$tmp/sw.json" best tpot_s)
less "sweep: throughput is tokens over time" "$(json "$tmp/sw.json" best tokens_per_s_device)" \
    "$(awk -v t="$tpot" 'BEGIN { print 64 / t * 1.000001 }')"
# shellcheck disable=SC2086
works "sweep: perfectly even experts need no copies" sweep $question --sigma 0 --drift 0 --ep 32 --overlap none --json
equal "sweep: none then" "$(json "$tmp/out" best redundant)" 0
equal "sweep: one overlap, one EP size, four numbers of copies, five batches" \
    "$(json "$tmp/out" configurations length)" 20
# A plan that popularity walks away from: fresh, then a thousand steps old.
set -- --model deepseek-v3 --machine h200 --nodes 4 --tokens 64 --ep 32 --redundant 32 --overlap none --walk 0.05 --json
works "sweep --walk: a fresh plan" sweep "$@"
fresh=$(json "$tmp/out" best imbalance)
works "sweep --walk --age" sweep "$@" --age 1000
less "sweep: an old plan is less even than a fresh one" "$fresh" "$(json "$tmp/out" best imbalance)"
has "sweep: which its assumptions say" 'walks by 0.05 in every step; the plan is 1,000 steps old' "$tmp/out"
refuses "sweep: a plan of the future" "age 0: a whole number from 1" sweep "$@" --age 0
# shellcheck disable=SC2086
set -- --model deepseek-v3 --machine h200 --nodes 8 --ep 32 --redundant 32 --overlap none --attention-us 100 --json
works "sweep: without drafts" sweep "$@" --tokens 64
cp "$tmp/out" "$tmp/plain.json"
works "sweep --drafts --accepted" sweep "$@" --tokens 128 --drafts 1 --accepted 1.85
equal "sweep: two tokens of a sequence share its cache" "$(json "$tmp/out" best batch_kv_tokens)" \
    "$(json "$tmp/plain.json" best batch_kv_tokens)"
step=$(json "$tmp/out" best step_s) tpot=$(json "$tmp/out" best tpot_s) made=$(json "$tmp/out" best tokens_per_s_device)
equal "sweep: its 64 sequences make what is accepted, 1.85 in a step" \
    "$(awk "BEGIN { printf \"%.3f %.4f\", $tpot * $made, $step / $tpot }")" "64.000 1.8500"
has "sweep: which its assumptions say" 'are 2 of each sequence, of which 1.85 are accepted' "$tmp/out"
refuses "sweep: more accepted than there are" "of 1 drafted tokens and its own no more than 2" sweep "$@" --drafts 1 \
    --accepted 2.5
works "sweep: no time at all" sweep $question --tpot-ms 0.001
has "sweep: which nothing keeps" '^No configuration' "$tmp/out"
works "sweep: a recording as popularity" sweep "$data/expert_counts.csv" --only prose --model olmoe-1b-7b \
    --machine h100 --devices 8 --tokens 128 --json
equal "sweep: on 8 devices" "$(json "$tmp/out" devices)" 8
# Without a list: all sizes that divide the devices, up to the experts, in parts of a node or whole nodes.
numbers() { # numbers KEY FILE: a list of JSON on one line
    awk -v key="\"$1\": [" 'index($0, key) { on = 1; next } on && /\]/ { exit }
        on { gsub(/[ ,]/, ""); printf "%s%s", sep, $0; sep = " " }' "$2"
}
divisors() { # divisors DEVICES EXPERTS NODE EVEN: those that lie evenly on nodes (EVEN 1) or that do not (0)
    awk -v D="$1" -v E="$2" -v N="$3" -v even="$4" 'BEGIN {
        for (d = 1; d <= D && d <= E; d++)
            if (D % d == 0 && (D <= N || N % d == 0 || d % N == 0) == even) { printf "%s%d", sep, d; sep = " " }
    }'
}
least_copies() { # least_copies EXPERTS FILE: every configuration has equal slots, every EP size also the fewest such
    awk -v E="$1" '/"configurations"/ { on = 1 } !on { next }
        /"ep":/ { ep = $2 + 0 }
        /"redundant":/ {
            seen[ep] = 1
            if ((E + $2) % ep) print "EP " ep " with " $2 + 0 ": unequal slots"
            if ($2 + 0 == ep * int((E + ep - 1) / ep) - E) least[ep] = 1
        }
        END { for (ep in seen) if (!(ep in least)) print "EP " ep ": not with the fewest" }' "$2"
}
rack="--model deepseek-v3 --machine gb200 --nodes 1"
# shellcheck disable=SC2086
works "sweep: a rack of 72" sweep $rack --json
cp "$tmp/out" "$tmp/rack.json"
equal "sweep: all that divides 72 is tried" "$(numbers ep_tried "$tmp/rack.json")" "$(divisors 72 256 72 1)"
equal "sweep: and nothing left out" "$(json "$tmp/rack.json" ep_untried length)" 0
equal "sweep: equal slots everywhere, and the fewest" "$(least_copies 256 "$tmp/rack.json")" ""
has "sweep: the answer names what was tried" \
    '"reason": .* EP 1, 2, 3, 4, 6, 8, 9, 12, 18, 24, 36 and 72 were tried; ' "$tmp/rack.json"
# shellcheck disable=SC2086
works "sweep: the same from lists" sweep $rack --ep 8,24,36,72 --redundant 0,16,32,48,64 --json
less "sweep: lists find nothing that is 2 % faster" \
    "$(awk -v v="$(json "$tmp/out" best tokens_per_s_device)" 'BEGIN { print v / 1.02 }')" \
    "$(json "$tmp/rack.json" best tokens_per_s_device)"
works "sweep: eight experts on six devices as text" sweep --model mixtral-8x7b --machine h100 --devices 6
has "sweep: why there are copies at least" '^  \* Where EP does not divide the 8 experts, redundant ones ' "$tmp/out"
works "sweep: eight experts on eight devices" sweep --model mixtral-8x7b --machine h100 --devices 8
! grep -q 'does not divide' "$tmp/out"
result $? "sweep: no need for them there" "$tmp/out"
works "sweep: eight experts on six devices" sweep --model mixtral-8x7b --machine h100 --devices 6 --json
equal "sweep: two slots each" "$(json "$tmp/out" best ep) $(json "$tmp/out" best redundant)" "6 4"
works "sweep: three nodes" sweep --model deepseek-v3 --machine h200 --devices 24 --json
equal "sweep: parts of a node and whole nodes" "$(numbers ep_tried "$tmp/out")" "$(divisors 24 256 8 1)"
equal "sweep: the others are named" "$(numbers ep_untried "$tmp/out")" "$(divisors 24 256 8 0)"
equal "sweep: all three nodes" "$(json "$tmp/out" best ep)" 24
works "sweep: three nodes as text" sweep --model deepseek-v3 --machine h200 --devices 24
has "sweep: what was not tried is said" \
    '^  \* EP 3, 6 and 12 would lie unevenly on nodes of 8 and were not tried' "$tmp/out"
works "sweep: sizes that lie unevenly" sweep --model deepseek-v3 --machine h200 --devices 24 --ep 12,24
has "sweep: and how they are computed" '^  \* EP 12 would lie unevenly on nodes of 8 and is computed as if' "$tmp/out"
works "sweep: more devices than experts" sweep --model mixtral-8x7b --machine h100 --devices 16
has "sweep: where the sizes end" '^  \* No EP size above the 8 experts of mixtral-8x7b can be tried' "$tmp/out"
# Two nodes of four are not one of eight: half of the rows take the network, and hierarchical EPLB packs for two.
for nodes in 1 2; do
    works "sweep: 8 devices on $nodes" sweep --model deepseek-v3 --machine h200 --devices 8 --nodes $nodes --ep 8 \
        --tokens 64 --redundant 0 --overlap none --layers 1 --json
    cp "$tmp/out" "$tmp/nodes$nodes.json"
done
less "sweep: two nodes of four take longer to dispatch" "$(json "$tmp/nodes1.json" best dispatch_s)" \
    "$(json "$tmp/nodes2.json" best dispatch_s)"
has "sweep: their size is said" '2 nodes of 4 devices, as --nodes says; a full one of h200 has 8' "$tmp/nodes2.json"
works "sweep: two nodes of six" sweep --model deepseek-v3 --machine h200 --devices 12 --nodes 2 --tokens 64 \
    --redundant 0 --overlap none --layers 1 --json
equal "sweep: sizes that lie evenly on them" "$(numbers ep_tried "$tmp/out")" "$(divisors 12 256 6 1)"
works "sweep: many sizes" sweep --model kimi-k2 --machine h200 --devices 20160 --tokens 1,2 --layers 1 \
    --overlap none --json
equal "sweep: sixteen of them" "$(json "$tmp/out" ep_tried length)" 16
divisors 20160 384 8 1 | tr ' ' '\n' >"$tmp/even"
equal "sweep: from the smallest to the largest" "$(numbers ep_tried "$tmp/out" | tr ' ' '\n' | sed -n '1p;$p')" \
    "$(sed -n '1p;$p' "$tmp/even")"
equal "sweep: what was left out is named" \
    "$(echo "$(numbers ep_tried "$tmp/out") $(numbers ep_untried "$tmp/out")" | tr ' ' '\n' | sort -n)" \
    "$(divisors 20160 384 10000000 1 | tr ' ' '\n' | sort -n)"
less "sweep: no gap between neighbours is wider than two" \
    "$(numbers ep_tried "$tmp/out" | tr ' ' '\n' | awk 'NR > 1 && $1 / last > most { most = $1 / last }
        { last = $1 } END { print most }')" 2

# Where nothing is recommended: what was tried, and what each size lacked.
works "sweep: nothing fits" sweep --model mixtral-8x22b --machine h200 --devices 6 --context 5000 --json
cp "$tmp/out" "$tmp/small.json"
has "sweep: of what was tried" \
    '"headline": "Nothing tried fits: mixtral-8x22b with 64 tokens per device on 6 ' "$tmp/out"
# 56 layers of 8 experts of 3 matrices, attention with 8 of 48 heads as keys and values, embeddings; bf16, 8 GB kept
weights() { # weights SLOTS: GB of one device, without router and buffers
    awk -v P="$1" -v H=6144 'BEGIN {
        layer = P * 3 * H * 16384 + 2 * H * H + 2 * H * 1024
        print (2 * (56 * layer + 2 * 32768 * H) + 8e9) / 1e9
    }'
}
for lack in "1 8" "2 4"; do
    got=$(sed -n "s/.*EP ${lack% *} lacks \([0-9.]*\) GB for weights and buffers.*/\1/p" "$tmp/small.json")
    less "sweep: EP ${lack% *} lacks what its weights have above 150.8 GB" \
        "$(awk -v w="$(weights "${lack#* }")" -v g="$got" 'BEGIN {
            d = g - (w - 150.755)
            print (d < 0 ? -d : d) }')" 0.6
done
has "sweep: EP 3 and 6 lack cache" \
    'EP 3 with 1 redundant expert has room for [0-9,]+ of 320,000 cache tokens; EP 6 with 4 redundant experts has ' \
    "$tmp/small.json"
works "sweep: nothing is fast enough" sweep --model deepseek-v3 --machine h200 --devices 24 --tpot-ms 20 --json
has "sweep: how fast what was tried is" \
    'EP 4 lacks [0-9.]+ GB for [a-z ]+; EP 8 takes [0-9.]+ ms; EP 24 with 8 redundant experts takes [0-9.]+ ms\.' \
    "$tmp/out"
has "sweep: and what was not tried" 'EP 3, 6 and 12 would lie unevenly on nodes of 8 and were not tried' "$tmp/out"
works "sweep: too slow with 16 tokens, too large with 64" sweep --model mixtral-8x22b --machine h200 --devices 6 \
    --context 5000 --tpot-ms 1
has "sweep: the batch that is asked about does not fit" '^Nothing tried fits' "$tmp/out"
works "sweep: eight expert groups on three nodes" sweep --model deepseek-v3 --machine h200 --devices 24 --ep 24 \
    --policy eplb-nodes
has "sweep: it is not the slots" '^No plan: eplb-nodes has none for the EP sizes tried' "$tmp/out"
has "sweep: it is the nodes" 'EP 24 +\+8 .* the nodes do not divide the expert groups' "$tmp/out"
has "sweep: there is room for them" '[1-9][0-9]* of 60 configurations fit in memory, [1-9][0-9]* of these' \
    "$tmp/out"
works "sweep: or no room" sweep --model deepseek-v3 --machine h200 --devices 24 --ep 4,24 --policy eplb-nodes
has "sweep: both are said" '^Nothing tried fits and can be planned: deepseek-v3 ' "$tmp/out"
# Several policies: every row says which it is of.
works "sweep: two policies" sweep --model deepseek-v3 --machine h200 --nodes 2 --policy contiguous,eplb --ep 16 \
    --overlap none --html r.html
cp "$tmp/out" "$tmp/two.txt"
grep -cE '<tr[^<]*><th>16<td>[0-9]+<td>(contiguous|eplb)<td>' "$tmp/cwd/r.html" >"$tmp/two.rows"
works "sweep: two policies, --json" sweep --model deepseek-v3 --machine h200 --nodes 2 --policy contiguous,eplb \
    --ep 16 --overlap none --json
has "sweep: which of them is the answer" "Placed by $(json "$tmp/out" best policy)\\." "$tmp/two.txt"
at=0 wrong=
for row in $(numbers front "$tmp/out"); do
    at=$((at + 1))
    want="$(json "$tmp/out" configurations "$row" tokens_per_device) $(json "$tmp/out" configurations "$row" policy)"
    got=$(sed -n '/^Pareto front/,/^$/p' "$tmp/two.txt" | awk -v at="$at" 'NR == at + 3 { print $4, $7 }')
    [ "$got" = "$want" ] || wrong="$wrong$row: $got, not $want; "
done
equal "sweep: the policy of every row of the front" "${at}${wrong}" "$(json "$tmp/out" front length)"
equal "sweep: and of every row of the page" "$(cat "$tmp/two.rows")" \
    "$(($(json "$tmp/out" configurations length) + at))"

refuses "sweep without --model" "model" sweep --machine h200 --nodes 8
refuses "sweep: nodes of unequal size" "12 devices do not divide over them" sweep --model deepseek-v3 --machine h200 \
    --devices 12 --nodes 5
refuses "sweep without --nodes" "nodes" sweep --model deepseek-v3 --machine h200
refuses "sweep: an unknown machine" "machine" sweep --model deepseek-v3 --machine abacus --nodes 8
refuses "sweep: an unknown overlap" "overlap" sweep --model deepseek-v3 --machine h200 --nodes 8 --overlap magic
while IFS='|' read -r option list what; do
    # shellcheck disable=SC2086
    refuses "sweep: $option with a value twice" "$option $list: $what twice" sweep --model deepseek-v3 --machine h200 \
        --nodes 1 $option $list
done <<'TWICE'
--ep|4,8,4|4
--redundant|0,0|0
--tokens|64,16,064|64
--overlap|two,none,two|two
--policy|eplb,eplb|eplb
TWICE
refuses "sweep: more EP than devices" "ep" sweep --model deepseek-v3 --machine h200 --nodes 1 --ep 16
refuses "sweep: EP that leaves devices over" "left" sweep --model deepseek-v3 --machine h200 --nodes 1 --ep 3
works "sweep: EPLB cannot plan nine slots on eight devices" sweep --model mixtral-8x7b --machine h100 --nodes 1 \
    --policy eplb --redundant 1 --ep 8
has "sweep: the plan is what is missing, not the memory" "^No plan: eplb" "$tmp/out"
refuses "sweep: a recording of another model" "experts" sweep "$data/expert_counts.csv" --only c --model \
    deepseek-v3 --machine h200 --nodes 1
refuses "sweep: a bad recording" "cut.npy" sweep "$bad/cut.npy" --model deepseek-v3 --machine h200 --nodes 1 \
    --html r.html

# ---- simulate --------------------------------------------------------------------------------------------
config=$data/cluster/single_node_moe_single_instance.json
works "simulate --help" simulate --help
has "moe-ep --help names simulate" "^  simulate " "$tmp/main_help"
works "simulate" simulate --config "$config" --requests 16 --rate 4 --csv steps.csv --html r.html
page "simulate --html" "$tmp/cwd/r.html"
cp "$tmp/cwd/steps.csv" "$tmp/steps.csv"
cp "$tmp/out" "$tmp/simulate.txt"
awk 'length > 120' "$tmp/out" >"$tmp/log"
[ -s "$tmp/log" ] && fail "simulate: no line beyond 120 columns" "$tmp/log" ||
    pass "simulate: no line beyond 120 columns"
awk -F, '
    NR > 1 { prompt += $6; decode += $7 }
    NR > 1 && ($2 + 1e-6 < end || $3 < $8 + $9 + $10 + $11 - 1e-6) { bad++ }
    NR > 1 { end = $2 + $3 }
    END { print prompt, decode, bad + 0 }' "$tmp/steps.csv" >"$tmp/sums"
equal "simulate: every token is read and made, steps follow each other" "$(cat "$tmp/sums")" "8192 2032 0"
works "simulate again" simulate --config "$config" --requests 16 --rate 4 --csv steps.csv --html r.html
cmp "$tmp/cwd/steps.csv" "$tmp/steps.csv" >"$tmp/log" 2>&1 && pass "the same seed, the same steps" ||
    fail "the same seed, the same steps" "$tmp/log"
works "simulate --log" simulate --config "$config" --requests 2 --output 4 --log
equal "simulate: a line for each step" \
    "$(grep -cE '^step=[0-9]+ +batch=[0-9]+ +prompt_t=[0-9]+ tok/s decode_t=[0-9]+ tok/s npu_mem=[0-9.]+ GB' \
        "$tmp/out")" 4
works "simulate --json" simulate --config "$config" --requests 4 --policy balanced --json
equal "simulate: half the experts on each device, 28.99 GB" \
    "$(awk -v b="$(json "$tmp/out" expert_bytes_per_device)" 'BEGIN { printf "%.2f", b / 1e9 }')" 28.99
less "simulate: balanced routing is balanced" "$(json "$tmp/out" imbalance)" 1.01
printf '{"input_toks": 100, "output_toks": 3, "arrival_time_ns": 2000000000}\n' >"$tmp/requests.jsonl"
printf '{"input_toks": 50, "output_toks": 1, "arrival_time_ns": 0}\n' >>"$tmp/requests.jsonl"
works "simulate --trace" simulate --config "$config" --trace "$tmp/requests.jsonl" --json
equal "simulate: one step for the short request, three for the long one" "$(json "$tmp/out" steps)" 4
less "simulate: the second is served when it comes" 2 "$(json "$tmp/out" seconds)"
printf '{"input_toks": 100, "output_toks": 0}\n' >"$bad/none.jsonl"
printf '{"input_toks": 100, "output_toks": 5}\n{"output_toks": 5}\n' >"$bad/half.jsonl"
printf '{"input_toks": 9000000, "output_toks": 5}\n' >"$bad/long.jsonl"
for f in none:1 half:2; do refuses "simulate: a bad request" "${f%%:*}.jsonl:${f#*:}" simulate --config "$config" \
    --trace "$bad/${f%%:*}.jsonl" --csv s.csv; done
refuses "simulate: a request beyond the cache" "room" simulate --config "$config" --trace "$bad/long.jsonl"
refuses "simulate: no requests" "empty.jsonl" simulate --config "$config" --trace "$bad/empty.jsonl"
refuses "simulate without --config" "config" simulate
refuses "simulate: a config that is not there" "missing.json" simulate --config "$bad/missing.json"
refuses "simulate: a config that stops" "cut.json" simulate --config "$bad/cut.json"
printf '{"something": 1}' >"$bad/other_config.json"
sed 's/RTXPRO6000/ABACUS/' "$config" >"$bad/hardware.json"
sed 's/"mem_size": 96/"mem_size": 16/' "$config" >"$bad/small.json"
sed 's/"ep_size": 2/"ep_size": 0/' "$config" >"$bad/ep.json"
refuses "simulate: a config of another kind" "nodes" simulate --config "$bad/other_config.json"
refuses "simulate: unknown hardware" "ABACUS" simulate --config "$bad/hardware.json"
refuses "simulate: too little memory" "needs" simulate --config "$bad/small.json"
refuses "simulate: ep_size 0" "ep_size" simulate --config "$bad/ep.json"
refuses "simulate: an unknown policy" "policy" simulate --config "$config" --policy magic
sed 's/"ep_size": 2/"ep_size": 4/' "$config" >"$bad/wide.json"
sed 's/"tp_size": 2/"tp_size": 1/' "$config" >"$bad/npus.json"
sed 's/: 2\([,}]\)/: 3\1/; s/: 2$/: 3/' "$config" >"$bad/three.json"
sed 's/"ep_size": 2/"ep_size": 2, "pp_size": 2/' "$config" >"$bad/pipe.json"
sed 's/20000/[0, 20000]/' "$config" >"$bad/dims.json"
sed 's/"ep_size": 2/"ep_size": 2, "ep_size": 1/' "$config" >"$bad/twice.json"
sed 's/1597/1e300/' "$config" >"$bad/huge.json"
refuses "simulate: more expert groups than devices" "tp * dp" simulate --config "$bad/wide.json"
refuses "simulate: fewer devices than there are" "num_npus" simulate --config "$bad/npus.json"
refuses "simulate: three devices for 128 experts" "divide" simulate --config "$bad/three.json"
refuses "simulate: a pipeline" "pp_size" simulate --config "$bad/pipe.json"
refuses "simulate: links by dimension" "link" simulate --config "$bad/dims.json"
refuses "simulate: a key that is there twice" "ep_size" simulate --config "$bad/twice.json"
refuses "simulate: a number beyond reason" "mem_bw" simulate --config "$bad/huge.json"
printf '{"sub_requests": [{"input_toks": 1, "output_toks": 1}]}\n' >"$bad/session.jsonl"
refuses "simulate: sessions" "session.jsonl:1" simulate --config "$config" --trace "$bad/session.jsonl"
refuses "simulate: two popularities" "only one" simulate "$data/c_topk_ids.npy" "$data/prose_topk_ids.npy" \
    --config "$config"
refuses "simulate: a policy and a popularity" "only one" simulate "$data/c_topk_ids.npy" --config "$config" \
    --policy rand
# EP 1 on two devices: half of every expert on each, 28.99 GB as with EP 2, and the halves are summed up
sed 's/"ep_size": 2/"ep_size": 1/' "$config" >"$tmp/ep1.json"
works "simulate: experts cut over tp_size devices" simulate --config "$tmp/ep1.json" --requests 2 --output 2 --json
equal "simulate: half of every expert on each device, 28.99 GB" \
    "$(awk -v b="$(json "$tmp/out" expert_bytes_per_device)" 'BEGIN { printf "%.2f", b / 1e9 }')" 28.99
less "simulate: cut experts are summed up" 1e-3 "$(json "$tmp/out" spent_s combine)"
# two instances of two devices that share the experts: a quarter of them on each of four devices
one='{"model_name": "Qwen3-30B-A3B", "hardware": "RTXPRO6000", "tp_size": 2, "ep_size": 4, "dp_group": "A"}'
printf '{"link_bw": 16, "link_latency": 20000, "nodes": [{"instances": [%s, %s]}]}\n' "$one" "$one" >"$tmp/dp.json"
works "simulate: a dp_group" simulate --config "$tmp/dp.json" --requests 4 --output 4 --json
equal "simulate: a quarter of the experts on each of four devices" \
    "$(json "$tmp/out" dp) $(awk -v b="$(json "$tmp/out" expert_bytes_per_device)" \
        'BEGIN { printf "%.2f", b / 1e9 }')" \
    "2 14.50"
# what the file leaves out: the preset's memory and links, experts on all devices, devices by tp_size
sed '/link_/d; /npu_mem/d; /ep_size/d; /num_npus/d' "$config" >"$tmp/short.json"
works "simulate: a short config" simulate --config "$tmp/short.json" --requests 2 --output 2
has "simulate: what was left out is the preset's" "preset rtxpro6000" "$tmp/out"
has "simulate: experts on all devices" "TP 2, EP 2" "$tmp/out"
sed 's/"ep_size": 2/"ep_size": 2, "max_num_seqs": 1/' "$config" >"$tmp/single.json"
works "simulate: one request at a time" simulate --config "$tmp/single.json" --requests 4 --output 2 --json
equal "simulate: as many steps as requests one after the other take" "$(json "$tmp/out" steps)" 8
# attention to a part of the context: of gpt-oss-20b's 24 layers 12 have a window of 128, DeepSeek-V3.2 chooses 2048 in
# all 61; one request of 3000 tokens in one step, then of one token with 3001 and 3002 in its cache
for model in gpt-oss-20b deepseek-v3.2; do
    printf '{"link_bw": 16, "link_latency": 20000, "nodes": [{"instances": [{"model_name": "%s", "hardware": "H200",
        "npu_mem": {"mem_size": 900, "mem_bw": 4800}, "num_npus": 1, "tp_size": 1, "ep_size": 1}]}]}\n' "$model" \
        >"$tmp/part.json"
    works "simulate: $model" simulate --config "$tmp/part.json" --requests 1 --input 3000 --output 3 \
        --max-tokens 4096 --layers 1 --csv part.csv
    awk -F, -v sparse="$([ $model = gpt-oss-20b ] || echo 1)" '
        function roof(bytes, flops, rate) {
            bytes /= 0.88 * 4.8e12
            flops /= 0.62 * rate
            return bytes > flops ? bytes : flops
        }
        function part(read, pairs) { return roof(read * elem * 2, pairs * multiply, 989e12) }
        NR == 1 { next }
        {
            elem = sparse ? 576 : 1024; multiply = sparse ? 278528 : 16384; window = sparse ? 2048 : 128
            weights = sparse ? 201064448 : 26542080
            tokens = $6 + $7; past = NR == 2 ? 0 : 2997 + NR; cached = past + tokens
            pairs = near = 0
            for (t = 1; t <= tokens; t++) {
                pairs += past + t
                near += past + t < window ? past + t : window
            }
            read = sparse ? near : window + tokens - 1
            if (read > cached) read = cached
            want = part(read, near) * (sparse ? 1 : 0.5) + part(cached, pairs) * (sparse ? 0 : 0.5)
            if (sparse) want += roof(cached * 132, pairs * 2 * 64 * 128, 1979e12)
            want += roof(weights * (sparse ? 1 : 2), 2 * tokens * weights, sparse ? 1979e12 : 989e12)
            want *= sparse ? 58 : 24
            if ($8 < want * 0.999 || $8 > want * 1.001) print NR, $8, want
        }
        END { print NR }' "$tmp/cwd/part.csv" >"$tmp/sums"
    equal "simulate: attention of $model, three steps" "$(cat "$tmp/sums")" 4
done
works "simulate: one token" simulate --config "$config" --requests 1 --input 1 --output 1
has "simulate: no time between tokens when there is one" "^1 request takes .* first token after [0-9.]* ms$" "$tmp/out"
finish 294
