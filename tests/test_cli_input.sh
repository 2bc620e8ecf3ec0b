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
    "$cli" "$@" >"$tmp/o" 2>"$tmp/e" </dev/null || rc=$?
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
good "plain rows of counts" "2 layers" report "$(csv '10,20,30,40\n40,30,20,10\n')" --devices 2
good "long form" "top-" report "$(csv 'layer,expert,count\n0,0,5\n0,1,6\n0,2,7\n0,3,8\n')" --devices 2
good "a layer without load is named" "left out: 1" \
    report "$(csv 'layer,0,1,2,3\n0,1,2,3,4\n1,0,0,0,0\n2,4,3,2,1\n')" --devices 2

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
bad "biases of another size" "values for 256 experts" \
    route $data/prose_layer2_hidden.npy --gate $data/prose_layer2_hidden.npy --router mixtral --topk 8 --bias \
        $data/layer2_gate.npy
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
finish 75
