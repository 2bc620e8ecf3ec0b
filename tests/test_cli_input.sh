#!/bin/sh
# tests/test_cli_input.sh - the tool against every kind of input: what it must refuse, and with which words.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool moe_ep_cli.c
cli=$tool
LC_ALL=C.UTF-8
export LC_ALL

# bad NAME TEXT ARGS...: exit code 2, nothing on stdout, TEXT on stderr, and of a report no file left behind
bad() {
    name=$1 text=$2
    shift 2
    if [ "$1" = report ]; then
        case "$*" in *--html*) ;; *) set -- "$@" --html "$tmp/out.html" ;; esac
    fi
    rc=0
    timeout 100 "$cli" "$@" >"$tmp/o" 2>"$tmp/e" </dev/null || rc=$?
    if [ $rc -eq 2 ] && [ ! -s "$tmp/o" ] && grep -qF -- "$text" "$tmp/e" && ! ls "$tmp"/out.html* >/dev/null 2>&1
    then pass "$name"
    else
        { echo "exit status $rc, wanted 2 and: $text"; cat "$tmp/e"; ls "$tmp"/out.html* 2>/dev/null; } >"$tmp/why"
        fail "$name" "$tmp/why"
    fi
}
# good NAME TEXT ARGS...: exit code 0, nothing on stderr, TEXT on stdout
good() {
    name=$1 text=$2
    shift 2
    rc=0
    "$cli" "$@" >"$tmp/o" 2>"$tmp/e" </dev/null || rc=$?
    if [ $rc -eq 0 ] && [ ! -s "$tmp/e" ] && grep -qF -- "$text" "$tmp/o"; then pass "$name"
    else
        { echo "exit status $rc, wanted 0 and: $text"; cat "$tmp/e"; head -n 20 "$tmp/o"; } >"$tmp/why"
        fail "$name" "$tmp/why"
    fi
}
data=examples/data
ids=$data/prose_topk_ids.npy
# npy DESCR ORDER SHAPE: an .npy header on stdout
npy() {
    printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '$1', 'fortran_order': $2, 'shape': $3, }"
}

# --- .npy
head -c 60000 $ids >"$tmp/cut.npy"
bad "truncated .npy" "truncated" report "$tmp/cut.npy"
head -c 40 $ids >"$tmp/cuth.npy"
bad "truncated .npy header" "truncated inside the .npy header" report "$tmp/cuth.npy"
{ cat $ids; echo more; } >"$tmp/long.npy"
bad "bytes behind the array" "follow the array" report "$tmp/long.npy"
{ npy '<i4' False '(2500000000,)'; echo; } >"$tmp/big.npy"
bad "10 GB claimed in a header" "needs 10,000,000,000 bytes" report "$tmp/big.npy"
{ npy '<i4' False '(9000000000000000000, 9)'; echo; } >"$tmp/huge.npy"
bad "more than any file claimed" "no file can hold" report "$tmp/huge.npy"
{ npy '<i4' False '(4,)'; head -c 16 /dev/zero; } >"$tmp/one.npy"
bad "ids with one axis" "shape (4)" report "$tmp/one.npy"
{ npy '<i4' False '(1, 1, 2, 2)'; head -c 16 /dev/zero; } >"$tmp/four.npy"
bad "ids with four axes" "shape (1, 1, 2, 2)" report "$tmp/four.npy"
{ npy '<i4' False '(0, 8)'; } >"$tmp/none.npy"
bad "no ids at all" "holds no ids" report "$tmp/none.npy"
{ npy '<c8' False '(2, 1)'; head -c 16 /dev/zero; } >"$tmp/cplx.npy"
bad "complex numbers" "'<c8'" report "$tmp/cplx.npy"
{ npy '|b1' False '(2, 2)'; head -c 4 /dev/zero; } >"$tmp/bool.npy"
bad "booleans as ids" "holds no integers" report "$tmp/bool.npy"
{ npy '<i4' True '(2, 2)'; head -c 16 /dev/zero; } >"$tmp/fort.npy"
bad "Fortran order" "Fortran order" report "$tmp/fort.npy"
ids_0_1_x_2() { # ids 0, 1, X, 2; X = -1 (lowest byte 377) or -2 (376)
    npy '<i4' False '(2, 2)'
    printf '\000\000\000\000\001\000\000\000'"\\$1"'\377\377\377\002\000\000\000'
}
ids_0_1_x_2 376 >"$tmp/neg.npy"
bad "id -2" "ids[1, 0] = -2" report "$tmp/neg.npy"
ids_0_1_x_2 377 >"$tmp/skip.npy"
good "id -1 is skipped and counted" "1 choices were -1 and skipped" report "$tmp/skip.npy" --devices 2
{ npy '<i8' False '(1, 2)'; printf '\001\000\000\000\000\000\000\000\003\000\000\000\000\001\000\000'; } \
    >"$tmp/wide.npy"
bad "an id of 41 bits" "ids[0, 1] = 1099511627779 is" report "$tmp/wide.npy"
{ npy '<u8' False '(1, 2)'; printf '\001\000\000\000\000\000\000\000\377\377\377\377\377\377\377\377'; } \
    >"$tmp/wide.npy"
bad "an id of 64 bits" "ids[0, 1] = 18446744073709551615 is" report "$tmp/wide.npy"
bad "id out of range" "but there are 32 experts" report $ids --experts 32
for command in report diagnose; do
    bad "$command: --topk of other ids" "ids.npy: has ids of top-8, --topk says 4" $command $ids --devices 8 --topk 4
    good "$command: --topk of these ids" "top-8" $command $ids --devices 8 --topk 8 --json
done
bad "the second input, too" "c_topk_ids.npy: has ids of top-8, --topk says 4" \
    report $data/expert_counts.csv --only prose $data/c_topk_ids.npy --devices 8 --topk 4
line='{"step":4,"layer":0,"ids":[[0,1],[2,3]]}'
echo "$line" >"$tmp/two.jsonl"
bad "--topk of other ids in JSON lines" "two.jsonl: has ids of top-2, --topk says 1" \
    report "$tmp/two.jsonl" --devices 2 --topk 1
bad "watch: --topk of other ids" "two.jsonl:1: has ids of top-2, --topk says 1" \
    watch "$tmp/two.jsonl" --once --devices 2 --topk 1

# --- counts that are read as ids: bytes of one row, rows of them
u8() { # u8 ROWS COLUMNS: rows of the numbers 0, 3, 6, ..., every second row with its first number twice
    npy '|u1' False "($1, $2)"
    awk -v r="$1" -v c="$2" 'BEGIN { for (i = 0; i < r; i++) for (j = 0; j < c; j++)
        printf "%03o\n", 3 * (i % 2 && j == 1 ? 0 : j) }' | while read -r o; do printf "\\$o"; done
}
u8 4 8 >"$tmp/c8.npy"; u8 4 40 >"$tmp/c40.npy"; u8 1 40 >"$tmp/one40.npy"
good "rows that name an expert twice" "but 2 of the first 4 rows name an expert twice, as no token does: if these" \
    report "$tmp/c8.npy" --devices 2 --json
good "as counts nothing is said" "4 layers, 8 experts" place "$tmp/c8.npy" --devices 2 --counts
if grep -q 'read as ids' "$tmp/o"; then fail "nothing" "$tmp/o"; else pass "nothing"; fi
"$cli" drops "$tmp/c8.npy" --json >"$tmp/o" 2>&1
grep -q '"note": "c8 is read as ids, top-8 of 24 experts, but' "$tmp/o"
result $? "drops says it" "$tmp/o"
good "more choices than routers take" "no router known takes so many experts: if these are counts" \
    report "$tmp/one40.npy" --devices 2 --json
bad "both" "shape (4, 40) would mean top-40, but 2 of the first 4 rows name an expert twice" place "$tmp/c40.npy" \
    --devices 2
good "may be read as counts" "4 layers, 40 experts" place "$tmp/c40.npy" --devices 2 --counts
bad "an id out of range in such rows" "there are 8 experts (0..7); for counts say --counts" \
    place "$tmp/c8.npy" --experts 8 --devices 2
bad "an id of 64 bits may be a count" "is no expert id (0.. or -1 for none); for counts say --counts" \
    report "$tmp/wide.npy"
{ npy '<i4' False '(1, 2)'; printf '\000\000\000\000\210\023\000\000'; } >"$tmp/5000.npy"
good "more experts than ids" "top-2 of 5004 experts, but a layer holds no more than 2 ids" \
    report "$tmp/5000.npy" --devices 2 --json

# --- a map whose slots do not divide over the devices
for command in "report $ids --current" "diagnose $ids --current" "rebalance"; do
    input=; [ "$command" = rebalance ] && input=$ids
    # shellcheck disable=SC2086
    bad "${command%% *}: 72 slots on 7 devices" "if the first 2 do have one more, --slots 72 says so" \
        $command $data/sglang_map.json $input --devices 7
    # shellcheck disable=SC2086
    good "${command%% *}: unless it is said" '"headline"' \
        $command $data/sglang_map.json $input --devices 7 --slots 72 --json
done
bad "traffic: 72 slots on 7 devices" "if the first 2 do have one more, a .csv map says so" \
    traffic $ids $data/sglang_map.json --devices 7
bad "watch: 72 slots on 7 devices" "if the first 2 do have one more, a .csv map says so" \
    watch $data/routing.jsonl --once --current $data/sglang_map.json --devices 7
{ npy '<f4' False '(1, 4)'; printf '\000\000\200\077\000\000\300\177\000\000\200\077\000\000\200\077'; } >"$tmp/nan.npy"
bad "NaN in .npy loads" "counts[0, 0, 1]: a load is not a finite number" report "$tmp/nan.npy"
head -c 4096 /dev/zero | tr '\000' '\377' >"$tmp/garbage.npy"
bad "garbage named .npy" "does not begin like a .npy file" report "$tmp/garbage.npy"
good "big-endian int16 ids" "top-2" \
    report "$(npy '>i2' False '(4, 2)' >"$tmp/be.npy"; printf \
        '\000\000\000\001\000\002\000\003\000\000\000\002\000\001\000\003' >>"$tmp/be.npy"; echo \
        "$tmp/be.npy")" --devices 2

# --- any file
: >"$tmp/empty.csv"
bad "empty file" "is empty" report "$tmp/empty.csv"
bad "missing file" "No such file" report "$tmp/missing.csv"
bad "directory" "is a directory" report $data
mkfifo "$tmp/pipe.json" "$tmp/pipe.npy"
bad "a pipe" "inputs must be files" report "$tmp/pipe.json"
bad "a pipe named .npy" "inputs must be files" report "$tmp/pipe.npy"
bad "a pipe for a map" "inputs must be files" diagnose $ids --current "$tmp/pipe.json"
bad "a pipe for a cluster" "inputs must be files" simulate --config "$tmp/pipe.json"
bad "standard input" "inputs must be files" report -
head -c 3000 /dev/urandom >"$tmp/random.bin"
bad "binary garbage" "random.bin" report "$tmp/random.bin"
printf 'PK\003\004xxxx' >"$tmp/a.npz"
bad "zip file" "zip" report "$tmp/a.npz"

# --- CSV
csv() { printf "$1" >"$tmp/t.csv"; echo "$tmp/t.csv"; }
bad "negative count" "t.csv:3: column 4: a load is negative" \
    report "$(csv 'domain,layer,0,1\na,0,1,2\na,1,3,-4\n')"
bad "NaN count" "t.csv:2: column 3: a load is not a finite number" \
    report "$(csv 'domain,layer,0,1\na,0,nan,2\n')"
bad "infinite count" "not a finite number" report "$(csv '1,inf\n')"
bad "word for a count" "t.csv:2: column 4: \"x\" is not a number" report "$(csv 'domain,layer,0,1\na,0,1,x\n')"
bad "short row" "t.csv:3: 3 fields where the header has 4" report "$(csv 'domain,layer,0,1\na,0,1,2\na,1,3\n')"
bad "layer twice" "t.csv:3: layer 0 of a was already given on line 2" \
    report "$(csv 'domain,layer,0,1\na,0,1,2\na,0,3,4\n')"
bad "layer missing in one step" "step 1 has no row for layer 1" \
    report "$(csv 'step,layer,0,1\n0,0,1,2\n0,1,1,2\n1,0,1,2\n')"
bad "rows of different length" "t.csv:2: 3 loads where the rows before have 2" report "$(csv '1,2\n1,2,3\n')"
bad "columns without a meaning" "neither columns 0, 1, 2" report "$(csv 'a,b\nx,y\n')"
bad "a labelled row without a header" "put a line label,layer,0,1,... above" report "$(csv 'prose,0,112,1306,5,6\n')"
good "a separator in quotes" "a, \"b\", 4 experts" \
    report "$(csv 'label,layer,0,1,2,3\n"a, ""b""",0,4,3,2,1\n"c;d", 0 ,4,3,2,1\n')" --devices 2
good "quoted numbers" "2 layers" report "$(csv '"layer";"0";"1"\n"0"; "5" ;"7"\n"1";"5";"7"\n')" --devices 2
bad "a quote that stays open" "t.csv:2: a quote is not closed" report "$(csv 'label,layer,0,1\n"a,0,1,2\n')"
bad "text after a quote" "t.csv:2: text follows a closing quote" report "$(csv 'label,layer,0,1\n"a"b,0,1,2\n')"
bad "hexadecimal" "\"0x10\" is not a number" report "$(csv 'layer,0,1\n0,0x10,3\n')"
bad "header only" "holds no loads" report "$(csv 'domain,layer,0,1\n')"
bad "all zero" "every load is zero" report "$(csv '0,0\n0,0\n')"
bad "routing weights for loads" "these are routing weights" report $data/prose_topk_weights.npy --devices 8
bad "label not there" "no recording has a label with" report $data/expert_counts.csv --only klingon
good "a header of experts alone" "its first line, 0 to 3, is taken for the header of the experts" \
    report "$(csv '0,1,2,3\n40,30,20,10\n10,20,30,40\n')" --devices 2
good "is no layer" "2 layers" report "$tmp/t.csv" --devices 2
for command in place copies rebalance; do
    good "$command says so, too" "its first line, 0 to 3" $command "$tmp/t.csv" --devices 2
done
good "a header of c0, c1, ... needs no such word" "2 layers" report "$(csv 'c0,c1\n3,1\n2,2\n')" --devices 2
bad "0,1 may be loads" "t.csv:1: this line, 0 to 1, may be the header of the experts or the loads of a layer" \
    report "$(csv '0,1\n3,1\n2,2\n')" --devices 2
bad "so may an only line" "t.csv:2: this line, 0 to 3, may be the header" report "$(csv '# x\n0,1,2,3\n')" --devices 2
good "loads that do not count up" "2 layers" report "$(csv '0,1,2,4\n4,3,2,1\n')" --devices 2
good "nor in whole numbers" "2 layers" report "$(csv '0.0,1.0,2.0,3.0\n4,3,2,1\n')" --devices 2
good "plain rows of counts" "2 layers" report "$(csv '10,20,30,40\n40,30,20,10\n')" --devices 2
good "long form" "top-" report "$(csv 'layer,expert,count\n0,0,5\n0,1,6\n0,2,7\n0,3,8\n')" --devices 2
good "a layer without load is named" "left out: 1" \
    report "$(csv 'layer,0,1,2,3\n0,1,2,3,4\n1,0,0,0,0\n2,4,3,2,1\n')" --devices 2
left=$(csv 'layer,0,1,2,3,4,5,6,7\n0,1,2,3,4,1,1,1,1\n1,0,0,0,0,0,0,0,0\n2,4,3,2,1,1,1,1,1\n')
good "copies names it" "Layers without load, left out: 1." copies "$left" --devices 2
good "sweep, too" "Layers without load, left out: 1." sweep "$left" --model mixtral-8x7b --machine h200 --devices 4
left=$(csv "$(awk 'BEGIN { printf "layer"
    for (e = 0; e < 128; e++) printf ",%d", e
    for (l = 0; l < 3; l++) { printf "\\n%d", l; for (e = 0; e < 128; e++) printf ",%d", l == 1 ? 0 : e + 1 }
    printf "\\n" }')")
good "and simulate" "Layers without load, left out: 1." simulate "$left" \
    --config $data/cluster/single_node_moe_single_instance.json --requests 2 --layers 1
good "copies of layers that all have loads" "Taken for granted" copies "$(csv '1,2,3,4\n4,3,2,1\n')" --devices 2
! grep -q 'left out' "$tmp/o"
result $? "names none" "$tmp/o"

# --- JSON
json() { printf '%s' "$1" >"$tmp/t.json"; echo "$tmp/t.json"; }
bad "JSON cut short" "t.json:1:" report "$(json '{"logical_count": [[1, 2], [3')"
bad "negative in JSON" "logical_count[1][0]: a load is negative" \
    report "$(json '{"logical_count": [[1, 2], [-3, 4]]}')"
bad "text in JSON" "logical_count[0][1] is not a number" \
    report "$(json '{"logical_count": [[1, "2"], [3, 4]]}')"
bad "NaN in JSON" "t.json:1:" report "$(json '{"logical_count": [[1, NaN]]}')"
bad "ragged JSON" "1 loads where the rows before have 2" report "$(json '{"logical_count": [[1, 2], [3]]}')"
bad "empty list" "not a filled list" report "$(json '{"logical_count": []}')"
bad "other keys" "neither \"logical_count\" nor layer numbers" report "$(json '{"foo": [1]}')"
bad "a number alone" "t.json" report "$(json '7')"
good "JSON with steps" "2 layers" \
    report "$(json '{"logical_count": [[[1,2,3,4],[4,3,2,1]],[[1,2,3,4],[4,3,2,1]]]}')" --devices 2
jsonl() { printf '%s\n' "$@" >"$tmp/t.jsonl"; echo "$tmp/t.jsonl"; }
bad "JSON lines: bad line" "t.jsonl:2:" \
    report "$(jsonl '{"layer": 0, "ids": [[0, 1]]}' '{"layer": 1, "ids": [[0')"
bad "JSON lines: bad id" "t.jsonl:1: ids[0][1] is no expert id" \
    report "$(jsonl '{"layer": 0, "ids": [[0, -3]]}')"
bad "JSON lines: uneven choices" "t.jsonl:1: ids[1] has 1 choices" \
    report "$(jsonl '{"layer": 0, "ids": [[0, 1], [2]]}')"
good "JSON lines" "top-2" \
    report "$(jsonl '{"step":0,"layer":0,"ids":[[0,1],[2,3]]}' '{"step":1,"layer":0,"ids":[[0,1]]}')" --devices 2

# --- recordings that do not belong together, options, output
bad "other number of experts" "experts" report "$(csv '1,2,3\n')" "$(json '{"0": [1, 2]}')"
bad "no input" "no input" report
bad "unknown command" "no such command" banana
bad "unknown option" "unrecognized option" report $ids --banana
bad "number wanted" "--devices x: a whole number" report $ids --devices x
bad "no devices" "--devices 0: a whole number from 1" report $ids --devices 0
bad "too few slots" "fewer than the 64 experts" report $ids --slots 63
bad "unknown model" "no such preset" report $ids --model banana
bad "unknown machine" "no such preset" report $ids --machine banana
bad "folder that is not there" "cannot be written" report $ids --html "$tmp/nowhere/out.html"
bad "output is a directory" "is a directory" report $ids --html "$tmp"
bad "unknown router" "no such router" \
    route $data/prose_layer2_hidden.npy --gate $data/layer2_gate.npy --router banana --topk 8
for o in --bias --gate-bias; do
    bad "$o of another size" "values for 256 experts" \
        route $data/prose_layer2_hidden.npy --gate $data/prose_layer2_hidden.npy --router kimi_k2 --topk 8 $o \
            $data/layer2_gate.npy
done
bad "plan name without format" "must end in .json (SGLang), .yaml (TensorRT-LLM) or .csv" \
    place $ids --devices 8 --out "$tmp/plan.txt"
rc=0; "$cli" report $ids >/dev/full 2>"$tmp/e" || rc=$?; [ $rc -eq 1 ]
result $? "full disk is exit code 1" "$tmp/e"

# --- what must work
good "version" "moe-ep 0." --version
good "help" "usage" --help
good "the router reproduces the recorded experts" "256 of 256 tokens have the recorded experts" \
    route $data/prose_layer2_hidden.npy --gate $data/layer2_gate.npy --router mixtral --topk 8 --compare $ids \
        --layer 2
good "and on C" "256 of 256 tokens have the recorded experts" \
    route $data/c_layer2_hidden.npy --gate $data/layer2_gate.npy --router mixtral --topk 8 --compare \
        $data/c_topk_ids.npy --layer 2
good "and on Python" "256 of 256 tokens have the recorded experts" \
    route $data/python_layer2_hidden.npy --gate $data/layer2_gate.npy --router mixtral --topk 8 --compare \
        $data/python_topk_ids.npy --layer 2
good "demo shows the domain shift" "Does it hold for other traffic?" \
    report $ids $data/c_topk_ids.npy $data/python_topk_ids.npy
good "ids and their counts agree" "max/mean" report $data/expert_counts.csv --topk 8 --devices 8
good "plan as SGLang map" "physical_to_logical_map" place $ids --devices 8 --slots 72 --json
good "JSON report is one object" '"bottleneck"' report $ids $data/c_topk_ids.npy --json
"$cli" report $ids $data/c_topk_ids.npy --html "$tmp/page.html" >/dev/null &&
    grep -q '</html>' "$tmp/page.html" &&
    ! grep -qE '<script|src="http|href="http|@import|url\(http' "$tmp/page.html"
    result $? "the page is whole and names no other site" "$tmp/page.html"
rm -f "$tmp/page.html"
# The same bytes twice: "$cli" report ... --json compared with itself must not differ.
cp $ids "$tmp/copy.npy"; rc=0; "$cli" report "$tmp/copy.npy" --html "$tmp/copy.npy" 2>"$tmp/e" >"$tmp/o" ||
    rc=$?
[ $rc -eq 2 ] && cmp -s $ids "$tmp/copy.npy"
result $? "an input is not overwritten" "$tmp/e"
LC_ALL=C "$cli" report $ids $data/c_topk_ids.npy --charts >"$tmp/o" 2>&1 &&
    ! LC_ALL=C grep -q '[^ -~]' "$tmp/o"
    result $? "in the C locale every picture is plain ASCII" "$tmp/o"
"$cli" report $ids --color always | grep -q "$(printf '\033')"
result $? "colour when asked" "$tmp/o"
! "$cli" report $ids | grep -q "$(printf '\033')"
result $? "no colour in a pipe" "$tmp/o"
"$cli" report $ids --json >"$tmp/j1" && "$cli" report $ids --json >"$tmp/j2" && cmp -s "$tmp/j1" "$tmp/j2"
result $? "the same input gives the same bytes" "$tmp/j1"

# --- numbers of every type and byte order, through every reader of .npy
hex() { # hex TYPE V: the bytes of one element, highest first
    case $1 in
        ?i2 | ?u2) printf '%04x' "$2" ;;
        ?i4 | ?u4) printf '%08x' "$2" ;;
        ?i8 | ?u8) printf '%016x' "$2" ;;
        ?f2) case $2 in 0) echo 0000 ;; 1) echo 3c00 ;; 2) echo 4000 ;; 3) echo 4200 ;; *) echo 4400 ;; esac ;;
        ?f4) case $2 in 0) echo 00000000 ;; 1) echo 3f800000 ;; 2) echo 40000000 ;; 3) echo 40400000 ;;
            *) echo 40800000 ;; esac ;;
        *) case $2 in 0) echo 0000000000000000 ;; 1) echo 3ff0000000000000 ;; 2) echo 4000000000000000 ;;
            3) echo 4008000000000000 ;; *) echo 4010000000000000 ;; esac ;;
    esac
}
array() { # array FILE TYPE SHAPE N...
    array_file=$1 array_type=$2
    npy "$2" False "$3" >"$1"
    shift 3
    for v in "$@"; do
        h=$(hex "$array_type" "$v")
        h=$(printf '%s\n' "$h" | sed 's/\(..\)/\1 /g')
        case $array_type in '<'*) h=$(printf '%s\n' "$h" | awk '{ for (i = NF; i; i--) printf "%s ", $i }') ;; esac
        for b in $h; do
            # shellcheck disable=SC2059
            printf "\\$(printf '%03o' "0x$b")"
        done
    done >>"$array_file"
}
ids_of='0 1 2 258 0 2 1 258 3 0 2 1 0 258 1 2' # 258 has two bytes that are not 0
counts_of='4 1 2 3 0 2 4 1'
logits_of='0 1 2 3 4 2 1 0 1 3 0 2'
one() { "$cli" "$@" 2>&1 | sed "s|$tmp||g"; }
for t in '<i2' '>i2' '<i4' '>i4' '<i8' '>i8' '<u2' '>u2' '<u4' '>u4' '<u8' '>u8'; do
    # shellcheck disable=SC2086
    { array "$tmp/n.npy" "$t" '(8, 2)' $ids_of; array "$tmp/c.npy" "$t" '(2, 4)' 4 1 2 770 0 2 258 1
      array "$tmp/logits.npy" '<f4' '(3, 4)' $logits_of; array "$tmp/k.npy" "$t" '(3, 2)' 3 2 0 1 1 3; }
    { one report "$tmp/n.npy" --devices 2 --json; one report "$tmp/c.npy" --counts --devices 2 --json
      one drops "$tmp/n.npy" --tokens 4 --capacity 2; one traffic "$tmp/n.npy" --devices 2
      one route "$tmp/logits.npy" --router mixtral --topk 2 --compare "$tmp/k.npy"; } >"$tmp/got_$t"
    cmp "$tmp/got_$t" "$tmp/got_<i2" >"$tmp/why" 2>&1
    result $? "whole numbers as $t" "$tmp/why"
done
grep -q '3 of 3 tokens have the recorded experts' "$tmp/got_<i2" && grep -q '"max_over_mean\|"imbalance' "$tmp/got_<i2"
result $? "and they are read as what they are" "$tmp/got_<i2"
for t in '<f2' '>f2' '<f4' '>f4' '<f8' '>f8'; do
    # shellcheck disable=SC2086
    { array "$tmp/c.npy" "$t" '(2, 4)' $counts_of; array "$tmp/logits.npy" "$t" '(3, 4)' $logits_of
      array "$tmp/gate.npy" "$t" '(4, 4)' 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1; array "$tmp/bias.npy" "$t" '(4)' 4 0 0 0
      array "$tmp/n.npy" '<i4' '(8, 2)' $ids_of
      array "$tmp/w.npy" "$t" '(8, 2)' 1 2 3 4 1 1 2 2 3 3 4 4 1 2 3 4; }
    { one report "$tmp/c.npy" --devices 2 --json; one drops "$tmp/n.npy" --weights "$tmp/w.npy" --tokens 4 --capacity 2
      one route "$tmp/logits.npy" --gate "$tmp/gate.npy" --bias "$tmp/bias.npy" --router deepseek-v3 --topk 2
      one route "$tmp/logits.npy" --gate "$tmp/gate.npy" --router mixtral --topk 2 --ids "$tmp/i.csv" \
          --weights "$tmp/x.csv"
      cat "$tmp/i.csv" "$tmp/x.csv"; } >"$tmp/got_$t"
    cmp "$tmp/got_$t" "$tmp/got_<f2" >"$tmp/why" 2>&1
    result $? "fractions as $t" "$tmp/why"
done
[ "$(cat "$tmp/i.csv")" = "$(printf '3,2\n0,1\n1,3')" ]
result $? "and the largest are chosen" "$tmp/i.csv"
# softmax over two choices that differ by 1, 2 and 1: 0.731058598 0.268941432 and 0.880797029 0.119202919
"$cli" route "$tmp/logits.npy" --router mixtral --topk 2 --ids "$tmp/i.npy" >"$tmp/o" 2>&1
array "$tmp/want.npy" '<i4' '(3, 2)' 3 2 0 1 1 3
[ "$(tail -c 24 "$tmp/i.npy" | od -An -tx1)" = "$(tail -c 24 "$tmp/want.npy" | od -An -tx1)" ]
result $? "ids are written lowest byte first" "$tmp/o"
# A bias of the gate belongs to the logits: softmax of 1 + 4 and 3.  One for the choice alone leaves the weights.
array "$tmp/l.npy" '<f4' '(1, 4)' 1 3 2 0
array "$tmp/b.npy" '<f4' '(4)' 4 0 0 0
array "$tmp/eye.npy" '<f4' '(4, 4)' 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1
biased() { # biased NAME IDS WEIGHTS OPTION...: weights to four digits
    biased_name=$1 biased_ids=$2 biased_weights=$3
    shift 3
    "$cli" route "$tmp/l.npy" --topk 2 --ids "$tmp/i.csv" --weights "$tmp/x.csv" "$@" >"$tmp/o" 2>&1 &&
        [ "$(cat "$tmp/i.csv")" = "$biased_ids" ] &&
        [ "$(awk -F, '{ printf "%.4f,%.4f", $1, $2 }' "$tmp/x.csv")" = "$biased_weights" ]
    result $? "$biased_name" "$tmp/o"
}
biased "gpt-oss without its gate's bias" 1,2 0.7311,0.2689 --router gpt_oss
biased "gpt-oss with its gate's bias" 0,1 0.8808,0.1192 --router gpt_oss --gate-bias "$tmp/b.npy"
biased "and with the gate" 0,1 0.8808,0.1192 --router gpt_oss --gate "$tmp/eye.npy" --gate-bias "$tmp/b.npy"
biased "a soft-cap comes behind it" 0,1 0.8770,0.1230 --router grok1_vllm --gate-bias "$tmp/b.npy"
for r in kimi_k2 glm4_moe nemotron_h minimax_m2 lfm2 deepseek_v4 megatron_sigmoid; do
    "$cli" route "$tmp/l.npy" --topk 2 --ids "$tmp/i.csv" --router $r --bias "$tmp/b.npy" >"$tmp/o" 2>&1 &&
        [ "$(cat "$tmp/i.csv")" = 0,1 ]
    result $? "a selection bias: $r" "$tmp/o"
done
# sigmoid 0.731059 and 0.952574, divided by their sum; softmax 0.087144 and 0.643914, and times 6
biased "it leaves the weights" 0,1 0.4342,0.5658 --router minimax_m2 --bias "$tmp/b.npy"
biased "and those of softmax" 0,1 0.1192,0.8808 --router ernie45 --bias "$tmp/b.npy"
biased "and of LongCat" 0,1 0.5229,3.8635 --router longcat_flash --bias "$tmp/b.npy"
for r in gpt_oss granite mixtral qwen2_moe llama4 phimoe grok1_vllm megatron_post_softmax hunyuan llama_cpp sinkhorn \
    deepseek_v4_hash; do
    bad "no selection bias: $r" "--bias: router $r has no selection bias; --gate-bias adds one to the logits" \
        route "$tmp/l.npy" --router $r --topk 2 --bias "$tmp/b.npy"
done
bad "nor Sinkhorn's sigmoid" "has no selection bias" route "$tmp/l.npy" --router sinkhorn --topk 1 --bias "$tmp/b.npy"
{ npy '<i4' False "(2, 2), 'shape': (1, 4)"; head -c 16 /dev/zero; } >"$tmp/twice.npy"
bad "a shape twice in a .npy header" "has 'shape' twice" report "$tmp/twice.npy"
{ npy '<i4' False '(2, 2)' | tr '}' '\000'; head -c 16 /dev/zero; } >"$tmp/zero.npy"
bad "a zero byte in a .npy header" "header holds a zero byte" report "$tmp/zero.npy"

# --- a zero byte does not hide the rest of a line; what is given twice is not guessed at
line='{"step":4,"layer":0,"ids":[[0,1],[2,3]]}'
raw() { printf "$1" >"$tmp/t.$2"; echo "$tmp/t.$2"; }
bad "a zero byte before a line" "t.jsonl:1: holds a zero byte" report "$(raw '\000'"$line\n$line\n" jsonl)"
bad "a zero byte behind a line" "t.jsonl:1: holds a zero byte" report "$(raw "$line"'\000 garbage\n' jsonl)"
{ echo "$line"; head -c 4096 /dev/zero; } >"$tmp/t.jsonl"
bad "zero bytes at the end" "t.jsonl:2: holds a zero byte" report "$tmp/t.jsonl"
bad "a zero byte in a map" "t.csv:3: holds a zero byte" \
    report $ids --devices 2 --current "$(raw 'layer,device,slot,expert\n0,0,0,0\n\00000,0,1,1\n' csv)"
bad "an empty field in a map" "t.csv:2: expert \"\" is not a whole number from -1 to 65535" \
    report $ids --devices 2 --current "$(raw 'layer,device,slot,expert,note\n0,0,0,,7\n' csv)"
bad "ids and counts on one line" 't.jsonl:1: both "ids" and "counts"' \
    report "$(jsonl '{"ids":[[0,1]],"counts":[1,1]}')"
bad "two names for ids" 'both "ids" and "topk_ids"' report "$(jsonl '{"ids":[[0,1]],"topk_ids":[[0,1]]}')"
bad "a key twice on a line" 't.jsonl:1: duplicate object key' report "$(jsonl '{"step":1,"step":2,"ids":[[0,1]]}')"
bad "a key twice in a dump" 't.json:1: "logical_count" for the second time' \
    report "$(json '{"logical_count":[[1,2]],"logical_count":[[3,4]]}')"
bad "an id that is none, by value" 'ids[0][0] is no expert id: 99999999999 (0 to 65535' \
    report "$(jsonl '{"ids":[[99999999999,1]]}')"
bad "a step that is none, by value" '"step" is not a whole number from 0: -7' \
    report "$(jsonl '{"step":-7,"ids":[[0,1]]}')"
map='"physical_to_logical_map":[[0,1]]'
printf '{%s,%s}' "$map" "$map" >"$tmp/map.json"
bad "a key twice in a map" "\"physical_to_logical_map\" for the second time" \
    rebalance "$tmp/map.json" "$(csv '5,3\n')" --devices 2
for word in '[' '- ' '{a: '; do
    awk -v w="$word" 'BEGIN { for (i = 0; i < 100000; i++) printf "%s", w }' >"$tmp/deep.yaml"
    timeout 5 "$cli" rebalance "$tmp/deep.yaml" "$tmp/t.csv" --devices 2 >"$tmp/o" 2>"$tmp/e"
    [ $? -eq 2 ] && grep -q 'deep.yaml:1: nested too deep' "$tmp/e"
    result $? "YAML: 100,000 times \"$word\"" "$tmp/e"
done

# --- requests and clusters
config=$data/cluster/single_node_moe_single_instance.json
sim() { bad_name=$1 bad_text=$2; shift 2; bad "$bad_name" "$bad_text" simulate --config $config --layers 1 "$@"; }
for rate in 1e-310 1e-300 1e-09; do
    sim "--rate $rate" "--rate $rate with --requests 3: the last would arrive after more than 1e+09 seconds" \
        --requests 3 --rate $rate
done
sim "a zero byte in requests" "t.jsonl:1: holds a zero byte" \
    --trace "$(raw '\000{"input_toks":3,"output_toks":3}\n{"input_toks":3,"output_toks":3}\n' jsonl)"
sim "too many tokens in" '"input_toks" is 2147483648; a whole number from 1 to 16777216 is needed' \
    --trace "$(jsonl '{"input_toks":2147483648,"output_toks":3}')"
sim "too many tokens out" '"output_toks" is 1000000000.0; a whole number from 1 to 16777216 is needed' \
    --trace "$(jsonl '{"input_toks":3,"output_toks":1e9}')"
sim "no tokens out" '"output_toks" is missing' --trace "$(jsonl '{"input_toks":3}')"
sim "tokens in by two names" 'both "input_toks" and "input_tokens"' \
    --trace "$(jsonl '{"input_toks":3,"input_tokens":4,"output_toks":3}')"
sim "an arrival that is none" '"arrival_s" is -1; a number from 0 to 1e+09 is needed' \
    --trace "$(jsonl '{"input_toks":3,"output_toks":3,"arrival_s":-1}')"
sim "a request with a key twice" "duplicate object key" \
    --trace "$(jsonl '{"input_toks":3,"input_toks":4,"output_toks":3}')"
cluster() { sed "$1" $config >"$tmp/cluster.json"; echo "$tmp/cluster.json"; }
bad "half a device" '"num_npus" is 2.5; a whole number from 1 to 65536 is needed' \
    simulate --config "$(cluster 's/"num_npus": *[0-9]*/"num_npus": 2.5/')"
bad "a bandwidth in words" '"link_bw" is "fast"; a number from 1e-06 to 1e+12 is needed' \
    simulate --config "$(cluster 's/"link_bw": *[0-9.]*/"link_bw": "fast"/')"
bad "hardware by number" '"hardware" is 7; a text is needed' \
    simulate --config "$(cluster 's/"hardware": *"[^"]*"/"hardware": 7/')"
sim "a log inside JSON" "--log and --json cannot both" --log --json --requests 1

# --- two outputs in one file, an output that is the answer's, options twice
mkdir "$tmp/two"
two() { # two NAME FILE ARGS...: refused, and the file is as it was
    two_name=$1 two_file=$2
    shift 2
    echo before >"$tmp/two/$two_file"
    ln -f "$tmp/two/$two_file" "$tmp/two/hard"
    ln -sf "$two_file" "$tmp/two/soft"
    (cd "$tmp/two" && "$cli" "$@") >"$tmp/o" 2>"$tmp/e" </dev/null
    [ $? -eq 2 ] && grep -q 'two outputs cannot go to one file' "$tmp/e" &&
        [ "$(cat "$tmp/two/$two_file")" = before ] && [ "$(find "$tmp/two" | wc -l)" -eq 4 ]
    result $? "two outputs: $two_name" "$tmp/e"
    rm -f "$tmp/two"/*
}
here=$(pwd)
printf '{"physical_to_logical_map":[[0,1]]}' >"$tmp/map.json"
csv '5,3\n' >"$tmp/o"
array "$tmp/logits.npy" '<f4' '(2, 4)' 0 1 2 3 4 3 2 1
two "rebalance --out and --moves-out" x.json rebalance "$tmp/map.json" "$tmp/t.csv" --devices 2 --out x.json \
    --moves-out ./x.json
two "rebalance --out twice" x.json rebalance "$tmp/map.json" "$tmp/t.csv" --devices 2 --out x.json --out x.json
two "rebalance --html" x.json rebalance "$tmp/map.json" "$tmp/t.csv" --devices 2 --out x.json --html hard
two "simulate" z simulate --config "$here/$config" --layers 1 --requests 1 --csv z --html ../two/z
two "simulate, by a link" z simulate --config "$here/$config" --layers 1 --requests 1 --csv soft --html z
two "route" w.npy route "$tmp/logits.npy" --router mixtral --topk 2 --ids w.npy --weights ./w.npy
two "place" p.csv place "$tmp/t.csv" --devices 2 --out p.csv --html soft
(cd "$tmp/two" && "$cli" simulate --config "$here/$config" --layers 1 --requests 1 --csv new --html ./new) \
    >"$tmp/o" 2>"$tmp/e"
[ $? -eq 2 ] && grep -q 'two outputs' "$tmp/e" && [ -z "$(ls -A "$tmp/two")" ]
result $? "two outputs: a file that is not there yet" "$tmp/e"
"$cli" report $ids --html "$tmp/two/r" >"$tmp/two/r" 2>"$tmp/e"
[ $? -eq 2 ] && grep -q 'is standard output' "$tmp/e"
result $? "a page into the file of standard output" "$tmp/e"
cp "$tmp/logits.npy" "$tmp/two/l.npy"
"$cli" route "$tmp/two/l.npy" --router mixtral --topk 2 --ids "$tmp/two/l.npy" >"$tmp/o" 2>"$tmp/e"
[ $? -eq 2 ] && grep -q 'is an input' "$tmp/e" && cmp -s "$tmp/logits.npy" "$tmp/two/l.npy"
result $? "route does not write over its input" "$tmp/e"
cp $config "$tmp/two/c.json"
"$cli" simulate --config "$tmp/two/c.json" --layers 1 --requests 1 --csv "$tmp/two/c.json" >"$tmp/o" 2>"$tmp/e"
[ $? -eq 2 ] && grep -q 'is an input' "$tmp/e" && cmp -s $config "$tmp/two/c.json"
result $? "simulate does not write over its cluster" "$tmp/e"
bad "a table into the answer" "--csv -: a file is needed" simulate --config $config --csv -
bad "ids into the answer" "--ids -: a file is needed" route "$tmp/logits.npy" --router mixtral --topk 2 --ids -
rm -f "$tmp/two"/*
"$cli" report $ids --html "$tmp/two/a" --html "$tmp/two/b" >"$tmp/o" 2>"$tmp/e"
[ $? -eq 2 ] && grep -qF -- '--html is given twice' "$tmp/e" && [ -z "$(ls -A "$tmp/two")" ]
result $? "an option with two values" "$tmp/e"
bad "devices twice" "--devices is given twice; it takes one value" place $ids --devices 2 --devices 4
bad "an abbreviation is the same option" "--devices is given twice" place $ids --devices 2 --dev 4
bad "two forms of the answer" "--json and --format csv: one of them" report $ids --json --format csv
good "the same form by two names" '"moe_ep"' report $ids --json --format json
ln -s real "$tmp/two/link"
"$cli" report $ids --html "$tmp/two/link" >"$tmp/o" 2>"$tmp/e" && [ -L "$tmp/two/link" ] &&
    grep -q '</html>' "$tmp/two/real"
result $? "a page through a symbolic link, which stays" "$tmp/e"
rm -f "$tmp/two"/*
(trap - XFSZ; ulimit -f 8; "$cli" report $ids --html "$tmp/two/g.html") >/dev/null 2>"$tmp/e"
[ $? -eq 1 ] && grep -q 'g.html: File too large' "$tmp/e" && [ -z "$(ls -A "$tmp/two")" ]
result $? "a file that may not grow is an error, and leaves nothing" "$tmp/e"

# --- names are whatever somebody made them
esc=$(printf '\033')
ugly=$(printf 'n\033[31m\302\233\nx')
tame() { # tame NAME ARGS...: no escape character in what is said, and one line of it at most on stderr
    tame_name=$1
    shift
    "$cli" "$@" >"$tmp/o" 2>"$tmp/e" </dev/null
    ! cat "$tmp/o" "$tmp/e" | LC_ALL=C grep -q "$esc\|$(printf '\302\233')" && [ "$(wc -l <"$tmp/e")" -le 1 ]
    result $? "a name with an escape sequence: $tame_name" "$tmp/e"
}
printf '5,3\n' >"$tmp/$ugly.csv"; printf '5,z\n' >"$tmp/${ugly}_bad.csv"; cp $config "$tmp/$ugly.json"
printf '%s\n' "$line" >"$tmp/$ugly.jsonl"; printf '[[' >"$tmp/$ugly.yaml"; printf 'no' >"$tmp/$ugly.npy"
for form in text csv svg html; do
    tame "report --format $form" report "$tmp/$ugly.csv" --devices 2 --format $form
done
"$cli" report "$tmp/$ugly.csv" --devices 2 --json >"$tmp/o" 2>"$tmp/e" && ! grep -q "$esc" "$tmp/o"
result $? "a name with an escape sequence: JSON escapes it" "$tmp/e"
tame "bad content" report "$tmp/${ugly}_bad.csv" --devices 2
tame "no .npy" report "$tmp/$ugly.npy" --devices 2
tame "a file that is not there" report "$tmp/$ugly" --devices 2
tame "no cluster" simulate --config "$tmp/$ugly.jsonl"
tame "a cluster" simulate --config "$tmp/$ugly.json" --layers 1 --requests 1
tame "a page of a cluster" simulate --config "$tmp/$ugly.json" --layers 1 --requests 1 --html -
tame "no map" rebalance "$tmp/$ugly.yaml" "$tmp/t.csv" --devices 2
tame "plans" place "$tmp/$ugly.csv" --devices 2 --out "$tmp/$ugly.plan.csv" --html "$tmp/$ugly.html"
! LC_ALL=C grep -q "$esc" "$tmp/$ugly.html"
result $? "nor in the page"
tame "a folder that is not there" place "$tmp/t.csv" --devices 2 --out "$tmp/nowhere/$ugly.json"
tame "watch" watch "$tmp/$ugly.jsonl" --once
tame "watch --only" watch "$tmp/$ugly.none" --once
tame "a label" report $data/expert_counts.csv --only "$ugly"
tame "an option" report $ids "--$ugly"
tame "a command" "$ugly"
tame "a model" report $ids --model "$ugly"
printf '{"step": 1, "ids": %s[31m\n' "$esc" >"$tmp/esc.jsonl"
tame "content" watch "$tmp/esc.jsonl" --once
rm -f "$tmp/$ugly"*

# --- what is nonsense is not taken
bad "presets with an option" "nothing can follow moe-ep presets" presets --json
bad "presets with a word" "nothing can follow moe-ep presets" presets foo --nonsense
good "presets --help" "usage: moe-ep presets" presets --help
good "-h" "usage: moe-ep report" report -h
bad "--version with more" "nothing can follow moe-ep --version" --version --bogus
bad "--help with more" "nothing can follow moe-ep --help" --help report
sweep='sweep --model qwen3-30b-a3b --machine h200 --devices 2'
# shellcheck disable=SC2086
{
    bad "a hole in a list" "--tokens 2,,2,: nothing stands before a comma" $sweep --tokens 2,,2,
    bad "a comma at the end" "--ep 1,: nothing stands behind a comma" $sweep --ep 1,
    bad "a comma at the beginning" "--redundant ,1: nothing stands before a comma" $sweep --redundant ,1
    bad "a list of nothing" "--overlap: a value is needed" $sweep --overlap ''
}
bad "a hole in --dead" "--dead 1,,: nothing stands" place $ids --devices 8 --slots 80 --dead 1,,
bad "a hole in --speeds" "--speeds 1,,1: nothing stands" place $ids --devices 2 --speeds 1,,1
bad "forward: a hole" "--tokens 1,,2: nothing stands" forward --tokens 1,,2
bad "a capacity twice" "--capacity and --capacity-factor: one of them" drops $ids --capacity 1 --capacity-factor 1
bad "groups that do not divide" "--groups 3: 64 experts do not divide" report $ids --groups 3
bad "diagnose: groups that do not divide" "--groups 3: 64 experts do not divide" diagnose $ids $ids --groups 3
bad "diagnose: two placements of today" "--current and --round-robin: one of them" \
    diagnose $ids $ids --current $data/sglang_map.json --devices 8 --round-robin
bad "place: groups that do not divide" "--groups 3: 64 experts do not divide" place $ids --devices 8 --groups 3
for word in --banana --devices --json=3 -x --co; do
    "$cli" report $ids $word >"$tmp/o" 2>"$tmp/e"
    [ $? -eq 2 ] && [ "$(wc -l <"$tmp/e")" -eq 1 ] && grep -qF -- "${word%%=*}" "$tmp/e" && [ ! -s "$tmp/o" ]
    result $? "one line about $word" "$tmp/e"
done
for command in --help --version presets 'report --help' 'route --help' 'watch --help'; do
    # shellcheck disable=SC2086
    "$cli" $command >/dev/full 2>"$tmp/e"
    [ $? -eq 1 ] && grep -q 'standard output: No space left on device' "$tmp/e"
    result $? "$command on a full disk says why" "$tmp/e"
done
finish 190
