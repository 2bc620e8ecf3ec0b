#!/bin/sh
# tests/test_cli_inspect.sh - moe-ep inspect against closed forms (awk): parameters, memory, legality, EP against TP;
# bad input.
# SPDX-License-Identifier: MIT
. tests/lib.sh
need_tool cli_inspect.c
need_json_check
cli=$tool
LC_ALL=C
export LC_ALL

inspect() { "$cli" inspect "$@" --json >"$tmp/out" 2>"$tmp/err" </dev/null; }
at() { "$tmp/json_check" "$tmp/out" "$@" 2>&1; }
# are NAME "KEY... WANT" ...: the values there, within 1e-9 of a number, or the very word
are() {
    name=$1 wrong=
    shift
    for line in "$@"; do
        want=${line##* }
        # shellcheck disable=SC2086
        got=$(at ${line% *})
        awk -v g="$got" -v w="$want" 'BEGIN {
            d = g - w; if (d < 0) d = -d
            if (w !~ /^-?[0-9]/) exit g != w
            exit !(g ~ /^-?[0-9]/ && d <= 1e-9 * (w < 0 ? -w : w)) }' || wrong="$wrong${line% *}: $got, not $want
"
    done
    printf '%s' "$wrong" >"$tmp/why"
    [ -z "$wrong" ] && [ ! -s "$tmp/err" ]
    result $? "$name" "$tmp/why"
}
# calc EXPRESSION: by awk, in full
calc() { awk "BEGIN { printf \"%.17g\", $1 }"; }

# ---- parameters and memory ----------------------------------------------------------------------------------------
# DeepSeek-V3's config.json: 61 layers, 3 of them dense, 256 experts of 3 matrices of 7168 x 2048 and a shared one;
# multi-head latent attention with ranks 1536 and 512, 128 heads of 128 + 64 and 128.
expert=$(calc '3 * 7168 * 2048') shared=$(calc '58 * 3 * 7168 * 2048') router=$(calc '58 * 256 * 7168')
attention=$(calc '61 * (7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168)')
dense=$(calc '3 * 3 * 7168 * 18432') embedding=$(calc '2 * 129280 * 7168')
# One byte a weight, two in the embeddings; nvidia-smi prints 143771MiB of an H200 and 81559MiB of an H100.
rest=$(calc "$attention + $dense + 2 * $embedding") all=$(calc "$attention + $dense + $embedding")
h200=$(calc '143771 * 1024 * 1024') h100=$(calc '81559 * 1024 * 1024')
inspect --model deepseek-v3 --machine h200 --devices 32 --redundant 32
are "DeepSeek-V3's parameters are those of its config" "parameters expert $expert" \
    "parameters layer $(calc "256 * $expert")" "parameters routed $(calc "58 * 256 * $expert")" \
    "parameters shared $shared" "parameters router $router" "parameters attention $attention" \
    "parameters dense $dense" "parameters embedding $embedding" \
    "parameters total $(calc "58 * 256 * $expert + $shared + $router + $all")" \
    "parameters active $(calc "58 * 8 * $expert + $shared + $router + $attention + $dense + 129280 * 7168")"
are "a redundant slot takes 2.554 GB in fp8, over 58 layers" "bytes redundant_slot 2554331136"
# DeepEP's buffer: 4 T P rows of the longest message, 2 H and a scale of 4 bytes for every 128, and the signals
buffer=$(calc '4 * 64 * 288 * (2 * 7168 + 4 * 56) + 2 * 128 * int((4 * 289 + 127) / 128)')
total=$(calc "9 * 58 * $expert + $shared + $router + $rest + $buffer + 8e9")
are "288 slots on 32 H200: every part of the memory" "slots_per_device 9" \
    "memory routed_bytes $(calc "9 * 58 * $expert")" "memory redundant_bytes $(calc "58 * $expert")" \
    "memory shared_bytes $shared" "memory router_bytes $router" "memory other_bytes $rest" \
    "memory buffer_bytes $buffer" "memory reserve_bytes 8e9" "memory total_bytes $total" "memory_bytes $h200" \
    "memory kv_room_bytes $(calc "$h200 - $total")" "fits true" "legal true" \
    "bytes embedding $(calc "2 * $embedding")" \
    "kv_tokens $(calc "int(($h200 - $total) / (61 * 576 * 2))")" \
    "bytes total $(calc "58 * 256 * $expert + $shared + $router + $rest")"
at assumed | grep -qF '1 in experts, 1 elsewhere (2 in embeddings), as published; products in FP8.'
result $? "and its number formats" "$tmp/out"
smallest=$(awk -v rest="$(calc "$total - 9 * 58 * $expert")" -v slot="$(calc "58 * $expert")" 'BEGIN {
    for (ep = 1; 288 % ep != 0 || 32 % ep != 0 || rest + 288 / ep * slot > '"$h200"'; ep++) continue
    print ep }')
are "the smallest EP that fits divides slots and devices and fits" "smallest_ep $smallest" "devices_needed null"

# 97871MiB of an H20: beside DeepSeek-R1, 8 of them have room for 114,809 tokens; for 20,530 if they had 96e9 bytes
inspect --model deepseek-r1 --machine h20 --devices 8 --tp 8 --ep 8 --tokens 8
buffer8=$(calc '4 * 8 * 256 * (2 * 7168 + 4 * 56) + 2 * 128 * int((4 * 257 + 127) / 128)')
room=$(calc "102625181696 - 32 * 58 * $expert - $shared - $router - $rest / 8 - $buffer8 - 8e9")
are "DeepSeek-R1 on 8 H20" "memory_bytes 102625181696" "kv_tokens $(calc "int($room / 70272)")" "kv_tokens 114809"

inspect --model deepseek-v3 --machine h200 --devices 32 --slots 288 --tp 8 --memory 80 --reserve-gb 20
are "TP 8 shares the attention, --memory and --reserve-gb count" "tp 8" "dp 4" "redundant 32" \
    "memory other_bytes $(calc "$rest / 8")" "memory_bytes 80e9" \
    "memory total_bytes $(calc "$total - 7 * $rest / 8 + 12e9")"
inspect --model deepseek-v3 --machine h200 --devices 32 --redundant 32 --weights bf16
are "bf16 doubles what is weights" \
    "memory total_bytes $(calc "2 * ($total - $embedding - $buffer - 8e9) + $buffer + 8e9")" \
    "bytes expert $(calc "2 * $expert")"
inspect --model deepseek-v3 --machine h200 --devices 32 --redundant 32 --weights mxfp4
are "mxfp4: experts of 17 / 32 bytes, the rest bf16" "memory routed_bytes $(calc "9 * 58 * $expert * 17 / 32")" \
    "memory other_bytes $(calc "2 * $all")"
inspect --model deepseek-v3 --machine h200 --devices 32 --redundant 32 --weights f32
are "f32: the embeddings as the rest" "memory other_bytes $(calc "4 * $all")"
# what a checkpoint's name says and --weights are the same
for pair in nvfp4,NVFP4 nvfp4,FP4 int8,INT8 fp8,FP8 mxfp4,MXFP4; do
    inspect --model "qwen3-235b-a22b-${pair#*,}" --machine b200 --devices 8
    compute=$(at ep_vs_tp ep compute_s) memory=$(at memory total_bytes) sent=$(at ep_vs_tp ep sent_bytes)
    inspect --model qwen3-235b-a22b --machine b200 --devices 8 --weights "${pair%,*}"
    are "--weights ${pair%,*} is ${pair#*,} of a name" "ep_vs_tp ep compute_s $compute" "memory total_bytes $memory" \
        "ep_vs_tp ep sent_bytes $sent"
done
inspect --model qwen3-235b-a22b-FP4 --machine b200 --devices 8
at assumed | tr '\n' ' ' | grep -q 'products in FP4\.'
result $? "and FP4 is called FP4" "$tmp/out"
# other layers keep the share that has an indexer, of 132 bytes a token: here all
inspect --model deepseek-v3.2 --layers 17 --machine h200 --devices 32
are "fewer layers, each with its indexer" "memory kv_token_bytes $(calc '20 * (2 * 576 + 132)')"
# 60 layers of 384 experts of 4.5 bits; in bf16 the shared one, the router, the attention with 64 heads, the first layer
# and the embeddings.
inspect --model moonshotai/Kimi-K2.5 --machine h200 --devices 8
k2=$(calc '7168 * 1536 + 1536 * 64 * 192 + 7168 * 576 + 512 * 64 * 256 + 64 * 128 * 7168')
k2=$(calc "2 * (61 * $k2 + 3 * 7168 * 18432 + 2 * 163840 * 7168)")
are "Kimi-K2.5: experts of 4.5 bits, the shared one of bf16" \
    "memory routed_bytes $(calc "48 * 60 * $expert * 4.5 / 8")" "memory other_bytes $k2" \
    "memory shared_bytes $(calc "2 * 60 * $expert")" "bytes shared $(calc "2 * 60 * $expert")"
at assumed | grep -qF '0.5625 in experts (2 in shared ones), 2 elsewhere, as published; products in bf16.'
result $? "and says so" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 32 --tokens 512
are "the normal kernels have no low-latency buffers" "memory buffer_bytes 0" "tokens_per_device 512"
inspect --model qwen3-30b-a3b --machine h100 --devices 1
are "Qwen3-30B-A3B in bf16: experts of 57.98 GB" "memory routed_bytes $(calc '2 * 48 * 128 * 3 * 2048 * 768')" \
    "memory routed_bytes 57982058496"
[ "$(at ep_vs_tp not_compared)" = "one device has nothing to share" ]
result $? "one device is not compared"
inspect --model qwen3-30b-a3b --machine h100 --devices 2
are "28.99 GB on each of 2 devices" "memory routed_bytes 28991029248" "smallest_ep 1"
cp "$tmp/out" "$tmp/named"
inspect --layers 48 --experts 128 --topk 8 --hidden 2048 --intermediate 768 --vocab 151936 --kv-elems 1024 \
    --attention-params 18874368 --machine h100 --devices 2
for f in named out; do sed '/"model"/d; /"headline"/d; /"assumed"/d' "$tmp/$f" >"$tmp/$f.rest"; done
diff "$tmp/named.rest" "$tmp/out.rest" >"$tmp/diff" && [ "$(wc -l <"$tmp/out.rest")" -gt 60 ]
result $? "the same from its shapes" "$tmp/diff"
inspect --layers 4 --experts 8 --topk 2 --hidden 1024 --intermediate 512 --shared 2 --dense-layers 1 \
    --dense-intermediate 4096 --devices 1
are "without more: plain attention, no embeddings" "parameters attention $(calc '5 * 4 * 1024 ^ 2')" \
    "parameters embedding 0" "parameters shared $(calc '4 * 2 * 3 * 1024 * 512')" \
    "parameters dense $(calc '3 * 1024 * 4096')" "kv_tokens $(at kv_tokens)" \
    "kv_tokens $(calc "int($(at memory kv_room_bytes) / (5 * 2 * 1024 * 2))")"
grep -q 'Attention is plain multi-head' "$tmp/out" && grep -q 'Machine h100; --machine changes it' "$tmp/out"
result $? "and it says so" "$tmp/out"

# ---- legality ------------------------------------------------------------------------------------------------------
bad=0 cases=0
for D in 3 5 6 7 8 12 24 32 40 48 64 72 100; do
    need=$(((D - 256 % D) % D))
    inspect --model deepseek-v3 --machine gb200 --nodes 1 --devices $D
    if [ $need = 0 ]; then [ "$(at legal)" = true ] || bad=$D
    else
        [ "$(at legal)" = false ] && [ "$(at reasons 0 severity)" = wrong ] && [ "$(at reasons 0 need)" = $need ] &&
            grep -qF -- "--redundant $need makes it $((256 + need)) slots, $(((256 + need) / D)) on each" "$tmp/out" ||
            bad=$D
    fi
    inspect --model deepseek-v3 --machine gb200 --nodes 1 --devices $D --redundant $need
    [ "$(at legal)" = true ] && [ "$(at slots_per_device)" = $(((256 + need) / D)) ] || bad=$D
    inspect --model deepseek-v3 --machine gb200 --nodes 1 --devices $D --uneven
    [ "$(at legal)" = true ] || bad=$D
    cases=$((cases + 1))
done
[ $bad = 0 ] && [ $cases = 13 ]
result $? "redundant experts that make slots equal, on 3 to 100 devices (wrong: $bad)" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 32 --ep 12
[ "$(at legal)" = false ] && [ "$(at reasons length)" = 2 ] && [ "$(at reasons 1 need)" = 8 ] &&
    ! grep -qF -- '--redundant 8 makes it' "$tmp/out"
result $? "slots that would not make it legal are no advice" "$tmp/out"
inspect --model qwen3-30b-a3b --machine h100 --devices 8 --ep 3 --redundant 1
[ "$(at legal)" = false ] && [ "$(at reasons length)" = 1 ] && at reasons 0 text | grep -q 'ep must divide tp \* dp'
result $? "EP 3 does not divide 8 devices" "$tmp/out"
inspect --model qwen3-30b-a3b --machine h100 --devices 8 --ep 16
at reasons 0 text | grep -q 'ep spans at most tp \* dp devices' && [ "$(at legal)" = false ]
result $? "EP 16 on 8 devices" "$tmp/out"
inspect --model mixtral-8x7b --machine h100 --devices 16
at reasons 0 text | grep -q 'more devices than slots' && [ "$(at legal)" = false ]
result $? "16 devices for 8 experts" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 24 --redundant 8
[ "$(at legal)" = true ] && at reasons 0 text | grep -q 'do not divide the routing groups' &&
    [ "$(at reasons 0 severity)" = warning ]
result $? "8 groups on 3 nodes are a warning" "$tmp/out"

status() { # status NAME CODE ARGS...
    name=$1 code=$2
    shift 2
    "$cli" inspect "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    [ $? -eq "$code" ] && [ -s "$tmp/out" ] && [ ! -s "$tmp/err" ]
    result $? "exit status $code: $name" "$tmp/out"
}
status "legal and fits" 0 --model deepseek-v3 --machine h200 --devices 32 --exit-code
status "not legal" 3 --model deepseek-v3 --machine h200 --devices 24 --exit-code
status "not legal, not asked" 0 --model deepseek-v3 --machine h200 --devices 24
status "does not fit, not asked" 0 --model deepseek-v3 --machine h100 --devices 8
status "does not fit" 3 --model deepseek-v3 --machine h100 --devices 8 --exit-code
buffer=$(calc '4 * 64 * 256 * (2 * 7168 + 4 * 56) + 2 * 128 * int((4 * 257 + 127) / 128)')
lack=$(calc "(32 * 58 * $expert + $shared + $router + $rest + $buffer + 8e9 - $h100) / 1e9")
grep -qF "$(printf '%.1f GB too much' "$lack")" "$tmp/out" && tr -s ' \n' ' ' <"$tmp/out" |
    grep -q 'The smallest EP that fits: none on these 8 devices; 16 such devices would do, at EP 16\.'
result $? "it says how much is lacking" "$tmp/out"
inspect --model deepseek-v3 --machine h100 --devices 8 --memory 20
are "nothing fits where the rest alone does not" "smallest_ep null" "fits false" "devices_needed null" \
    "devices_needed_ep null"
at reason | grep -q 'The smallest EP that fits: none on these 8 devices, nor on more of them\.'
result $? "and no number of devices is enough" "$tmp/out"

# ---- the smallest EP -------------------------------------------------------------------------------------------------
# What --ep asks for is legal and fits with whole experts at the size that is named, at no smaller one, and where none
# is named at none.
exits() { # exits ARGS...: prints the exit status of --exit-code, of whole experts
    "$cli" inspect "$@" --expert-tp 1 --exit-code >"$tmp/ep" 2>"$tmp/err" </dev/null
    echo $?
}
: >"$tmp/why"
sizes=0 none=0
for model in deepseek-v3 deepseek-v2 kimi-k2 qwen3-235b-a22b mixtral-8x22b; do
    for question in "h100 8" "h200 6" "h200 7" "h200 8" "h200 16" "h200 24" "h200 8 --uneven" "gb200 10 --tp 2" \
        "h200 8 --memory 80 --reserve-gb 0" "h200 8 --redundant 8 --tp 4"; do
        # shellcheck disable=SC2086
        set -- --model $model --machine $question
        machine=$4 devices=$5
        shift 5
        set -- --model "$model" --machine "$machine" "$@"
        inspect "$@" --devices "$devices"
        size=$(at smallest_ep) needed=$(at devices_needed) needed_ep=$(at devices_needed_ep)
        if [ "$size" = null ]; then
            none=$((none + 1)) past=$((devices + 1))
            [ "$needed" = null ] || [ "$(exits "$@" --devices "$needed" --ep "$needed_ep")" = 0 ] ||
                echo "$model $question: not $needed_ep on $needed" >>"$tmp/why"
        else
            sizes=$((sizes + 1)) past=$size
            [ "$(exits "$@" --devices "$devices" --ep "$size")" = 0 ] && [ "$needed" = null ] ||
                echo "$model $question: not $size" >>"$tmp/why"
        fi
        ep=1
        while [ "$ep" -lt "$past" ]; do
            [ "$(exits "$@" --devices "$devices" --ep $ep)" = 3 ] || echo "$model $question: $ep, too" >>"$tmp/why"
            ep=$((ep + 1))
        done
    done
done
[ ! -s "$tmp/why" ] && [ $sizes -ge 20 ] && [ $none -ge 5 ]
result $? "the smallest EP is legal and fits, smaller ones are not or do not ($sizes, $none times none)" "$tmp/why"
# By hand, in 141 GB: DeepSeek-V2 at EP 4 has 40 experts of 2.784 GB in 59 layers and 34.5 GB beside them; Kimi-K2 at
# EP 8 48 of 2.642 and 24 GB; DeepSeek-V3 at EP 4 64 of 2.554 GB.  Next of the divisors are 8, 16 and 8.
inspect --model deepseek-v2 --machine h200 --devices 8 --memory 141
are "8 devices are not shared out by fives" "smallest_ep 8"
inspect --model kimi-k2 --machine h200 --devices 16 --memory 141
are "16 devices are not shared out by twelves" "smallest_ep 16"
inspect --model deepseek-v3 --machine h200 --devices 8 --uneven --memory 141
are "nor 8 by sixes where slots may be unequal" "smallest_ep 8"
inspect --model deepseek-v3 --machine h200 --devices 8 --memory 80 --reserve-gb 0
are "what 8 devices do not hold, 16 do" "smallest_ep null" "devices_needed 16" "devices_needed_ep 16"
# 160 experts on 7 devices: EP 7 leaves slots over; EP 4 is too few, see above, and EP 5 holds 32 x 2.784 + 34.5 GB
inspect --model deepseek-v2 --machine h200 --devices 7 --memory 141
are "what 7 devices cannot share, 5 can" "smallest_ep null" "devices_needed 5" "devices_needed_ep 5"
# --tp 3: 9 devices are no whole nodes of 8, EP 8 wants 24
inspect --model deepseek-v3 --machine h200 --devices 3 --tp 3
are "groups of 3 and of 8 on nodes of 8" "smallest_ep null" "devices_needed 24" "devices_needed_ep 8"

# ---- the cache -------------------------------------------------------------------------------------------------------
# KV heads and their size of the published configurations, 0 heads: latent attention of 512 + 64; bytes of a token in
# all layers on one device, bf16, where tp devices share the heads as far as they go.
: >"$tmp/why"
cases=0
while read -r model layers heads head; do
    for tp in 1 2 4 8; do
        inspect --model "$model" --machine h200 --devices 8 --tp $tp --memory 2000 --tokens 48
        awk -v layers="$layers" -v heads="$heads" -v head="$head" -v tp=$tp -v room="$(at memory kv_room_bytes)" \
            -v bytes="$(at memory kv_token_bytes)" -v tokens="$(at kv_tokens)" -v sequences="$(at sequences)" \
            -v each="$(at kv_tokens_sequence)" -v model="$model" 'BEGIN {
                held = heads > tp ? heads / tp : 1
                token = 2 * layers * (heads > 0 ? 2 * head * held : 576) + (model ~ /v3.2/) * layers * (128 + 4)
                exit !(bytes == token && tokens == int(room / token) && sequences == 48 * tp &&
                       each == int(tokens / (48 * tp)) && each > 0)
            }' || echo "$model, TP $tp" >>"$tmp/why"
        cases=$((cases + 1))
    done
done <<'MODELS'
deepseek-v3 61 0 0
deepseek-r1 61 0 0
deepseek-v3.2 61 0 0
deepseek-v2 60 0 0
deepseek-v2-lite 27 0 0
kimi-k2 61 0 0
qwen3-235b-a22b 94 4 128
qwen3-30b-a3b 48 4 128
qwen1.5-moe-a2.7b 24 16 128
mixtral-8x7b 32 8 128
mixtral-8x22b 56 8 128
gpt-oss-120b 36 8 64
gpt-oss-20b 24 8 64
olmoe-1b-7b 16 16 128
phi-tiny-moe 32 4 128
MODELS
[ ! -s "$tmp/why" ] && [ $cases = 60 ]
result $? "the cache of a sequence, of every model under TP 1 to 8" "$tmp/why"
presets=$("$cli" presets | grep -c ' experts, top-')
[ "$presets" -eq $((cases / 4)) ]
result $? "which are all presets ($presets)"
# DeepSeek-V3, TP 8: the cache stands whole on each, 512 sequences are in it
buffer=$(calc '4 * 64 * 256 * (2 * 7168 + 4 * 56) + 2 * 128 * int((4 * 257 + 127) / 128)')
room=$(calc "$h200 - (32 * 58 * $expert + $shared + $router + $rest / 8 + $buffer + 8e9)")
inspect --model deepseek-v3 --machine h200 --devices 8 --tp 8
are "TP 8: a cache for 512 sequences" "kv_tokens $(calc "int($room / (61 * 576 * 2))")" "sequences 512" \
    "kv_tokens_sequence $(calc "int($room / (61 * 576 * 2) / 512)")" "kv_heads 1"
at assumed | tr '\n' ' ' | grep -q 'each holds the whole: one head for all, as in latent attention (MLA); --kv-heads'
result $? "and why is said" "$tmp/out"
each=$(at kv_tokens_sequence | sed 's/\(...\)$/,\1/')
"$cli" inspect --model deepseek-v3 --machine h200 --devices 8 --tp 8 >"$tmp/text"
grep -qE "^  that is a cache of [0-9,]+ tokens, $each for each of 512 sequences\$" "$tmp/text" &&
    grep -qE '^  cache of a token       70.3 kB$' "$tmp/text"
result $? "in the text, too" "$tmp/text"
inspect --model qwen3-235b-a22b --machine h200 --devices 8 --tp 8
at assumed | tr '\n' ' ' | grep -q 'each holds 1 of 4 KV heads of 256 elements, some the same; --kv-heads changes'
result $? "heads that are repeated" "$tmp/out"
inspect --model qwen3-235b-a22b --machine h200 --devices 8 --tp 8 --kv-heads 16
are "other heads" "memory kv_token_bytes $(calc '94 * 1024 / 16 * 2 * 2')" "kv_heads 16"
! at assumed | grep -q -- --kv-heads
result $? "are not presumed" "$tmp/out"
inspect --model qwen3-235b-a22b --machine h200 --devices 6 --tp 3
are "4 heads on 3 devices: 2 on the fullest" "memory kv_token_bytes $(calc '94 * 1024 / 2 * 2')"
inspect --layers 4 --experts 8 --topk 2 --hidden 1024 --intermediate 512 --devices 8 --tp 2
are "plain attention has heads of 128" "kv_heads 8" "memory kv_token_bytes $(calc '4 * 2048 / 2 * 2')"

# ---- EP against TP -------------------------------------------------------------------------------------------------
# Bytes: a row to 7 of 8 devices for each choice, FP8 with a scale for every 128 out, bf16 back; under TP 7 others'
# rows in bf16 both ways.  Seconds on 8 H200: 22 us + bytes / 250 GB/s for each phase, and for each product 10 us +
# the root of the squares of weights and rows at 88 % of 4.8 TB/s and of tiles of 64 rows at 62 % of 1979 TFLOP/s.
inspect --model deepseek-v3 --machine h200 --devices 8
set -- "$(awk 'function product(K, N, active, rows, tiles, mem, flop) {
        mem = (active * K * N + rows * (K + 2 * N)) / (0.88 * 4.8e12)
        flop = 2 * K * N * tiles / (0.62 * 1979e12)
        return 10e-6 + sqrt(mem * mem + flop * flop)
    }
    function experts(I, active, rows, tiles, x) {
        x = rows / (active * 64)
        tiles = active * 64 * (x == int(x) ? x : int(x) + 1)
        return product(7168, 2 * I, active, rows, tiles) + product(I, 7168, active, rows, tiles)
    }
    BEGIN {
        active = 256 * (1 - (1 - 8 / 256) ^ 512)
        sent[0] = 64 * 8 * 7 / 8 * (7168 + 224 + 14336); sent[1] = 64 * 7 * 2 * 14336
        compute[0] = experts(2048, active / 8, 512); compute[1] = experts(256, active, 4096)
        for (i = 0; i < 2; i++) printf "%.17g %.17g %.17g ", sent[i], compute[i], 44e-6 + sent[i] / 250e9
        printf "%.17g", experts(512, active / 2, 2048) # in 2 groups of 4 devices that cut an expert
    }')"
# shellcheck disable=SC2086
set -- $1
are "8 H200, 64 tokens each: weights, bytes and seconds of both" "ep_vs_tp ep weight_bytes $(calc "32 * $expert")" \
    "ep_vs_tp tp weight_bytes $(calc '256 * 3 * 7168 * 256')" "ep_vs_tp ep sent_bytes $1" "ep_vs_tp ep compute_s $2" \
    "ep_vs_tp ep comm_s $3" "ep_vs_tp tp sent_bytes $4" "ep_vs_tp tp compute_s $5" "ep_vs_tp tp comm_s $6" \
    "ep_vs_tp ep total_s $(calc "$2 + $3")" "ep_vs_tp speedup $(calc "($5 + $6) / ($2 + $3)")"
faster=$(printf %.2f "$(calc "($5 + $6) / ($2 + $3)")")
at reason | grep -qF "EP is $faster times as fast as TP"
result $? "and which is faster" "$tmp/out"
# Cut experts: --tp 8 --ep 1 on 8 devices is the TP of above; two groups of four gather and sum the same rows.
inspect --model deepseek-v3 --machine h200 --devices 8 --tp 8 --ep 1
are "experts cut over 8 devices: a plain --tp 8" "expert_tp 8" "ep 1" "fits true" "legal true" "smallest_ep 8" \
    "memory routed_bytes $(calc "32 * 58 * $expert")" "memory shared_bytes $(calc "$shared / 8")" \
    "memory buffer_bytes 0" \
    "memory total_bytes $(calc "32 * 58 * $expert + $shared / 8 + $router + $rest / 8 + 8e9")" \
    "ep_vs_tp devices 8" "ep_vs_tp cut_ep 1" "ep_vs_tp ep compute_s $2" "ep_vs_tp tp compute_s $5" \
    "ep_vs_tp tp comm_s $6" "ep_vs_tp speedup $(calc "($5 + $6) / ($2 + $3)")"
at headline | grep -q 'fits on 8 h200 at EP 1, experts cut over 8: 92.2 GB of 151 GB per device' && at reason |
    grep -qF "The smallest EP that fits with whole experts: 8. EP 8 with whole experts is $faster times as fast as TP"
result $? "in words, too" "$tmp/out"
at assumed | grep -q 'With EP 1 each expert is cut over 8 devices, as in vLLM without --enable-expert-parallel'
result $? "and whose they are" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 8 --tp 8 --expert-tp 4
are "2 groups of 4 that cut each expert" "expert_tp 4" "ep 2" "fits true" "legal true" "slots_per_device 128" \
    "memory routed_bytes $(calc "32 * 58 * $expert")" "ep_vs_tp devices 8" "ep_vs_tp cut_ep 2" \
    "ep_vs_tp ep compute_s $2" "ep_vs_tp tp weight_bytes $(calc "128 * $expert / 4")" "ep_vs_tp tp compute_s $7" \
    "ep_vs_tp tp comm_s $6" "ep_vs_tp speedup $(calc "($7 + $6) / ($2 + $3)")" "smallest_ep 2"
at reason | grep -q 'with experts cut over 4: 2\. EP 8 with whole experts is .* times as fast as EP 2 with cut ones at'
result $? "and the smallest EP with so many" "$tmp/out"
"$cli" inspect --model deepseek-v3 --machine h200 --devices 8 --tp 8 --ep 2 >"$tmp/text"
grep -q '^Experts of one layer        EP 8   EP 2 x 4$' "$tmp/text" &&
    grep -q '^Configuration: EP 2 x 4, TP 8, DP 1, 256 slots for 256 experts: legal$' "$tmp/text"
result $? "the same when only --ep is given" "$tmp/text"
inspect --model deepseek-v3 --machine h200 --devices 8 --tp 8 --ep 1 --expert-tp 1
are "copies of all experts on every device" "expert_tp 1" "fits false" "smallest_ep 8" \
    "memory routed_bytes $(calc "256 * 58 * $expert")" "memory shared_bytes $shared"
at assumed | grep -q '1 of the 8 devices hold all experts, the others have copies of them'
result $? "and it says so" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 12 --nodes 1 --ep 4 --expert-tp 2
[ "$(at legal)" = false ] && [ "$(at reasons 0 have)" = 8 ] && at reasons 0 text | grep -q 'ep \* expert_tp must divide'
result $? "8 of 12 devices" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 7 --ep 1
are "7 devices do not cut 2048 columns evenly" "legal false" \
    "memory routed_bytes $(calc '58 * 256 * 3 * 7168 * 293')"
at reasons 0 text | grep -q 'do not divide its columns' && [ "$(at reasons 0 have)" = 2048 ]
result $? "which is why it is not legal" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 32 --ep 1 --tp 32
[ "$(at legal)" = true ] && at reasons 0 text | grep -q 'blocks of 128 cannot be cut' && [ "$(at reasons 0 have)" = 64 ]
result $? "32 do, but not by blocks of 128" "$tmp/out"
inspect --model deepseek-v3 --machine h200 --devices 16 --weights bf16
are "bf16 weights send bf16 rows, between nodes, too" \
    "ep_vs_tp ep sent_bytes $(calc '64 * 8 * 15 / 16 * 2 * 14336')"
inspect --model deepseek-v3 --machine h200 --devices 8 --kernels normal
# each of the 7 others gets a token once if any of its 32 experts is among the 8, which lie in 4 of 8 groups
are "normal kernels send a row once per device" \
    "ep_vs_tp ep sent_bytes $(calc "64 * 7 * $(awk 'BEGIN {
        # P(device has none) = 1/2 (group not chosen) + 1/2 P(none of 8 from 32 of 128)
        none = 1; for (i = 0; i < 8; i++) none *= (96 - i) / (128 - i)
        printf "%.17g", 1 - 0.5 - 0.5 * none }') * (7168 + 224 + 14336)")"

# ---- text ----------------------------------------------------------------------------------------------------------
"$cli" inspect --model deepseek-v3 --machine h200 --devices 24 --width 80 >"$tmp/text" 2>&1
awk 'length > 80 || / $/' "$tmp/text" >"$tmp/why"
[ ! -s "$tmp/why" ] && [ "$(wc -l <"$tmp/text")" -gt 40 ]
result $? "the text keeps to 80 columns" "$tmp/why"
grep -qE '^  one redundant slot +2,554,331,136    2.55 GB$' "$tmp/text" && grep -qE '^  total +56.0 GB$' "$tmp/text" &&
    grep -qE '^  wrong: .* \(0, 8\)$' "$tmp/text" && grep -q '^Taken for granted$' "$tmp/text"
result $? "figures, reasons and what is taken for granted" "$tmp/text"
"$cli" inspect --help | grep -q '^usage: moe-ep inspect' && "$cli" --help | grep -q '^  inspect '
result $? "help"

# ---- refusals ------------------------------------------------------------------------------------------------------
refuses() { # refuses NAME TEXT ARGS...
    name=$1 text=$2
    shift 2
    "$cli" inspect "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    [ $? -eq 2 ] && [ ! -s "$tmp/out" ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && grep -qF -- "$text" "$tmp/err"
    result $? "refused: $name" "$tmp/err"
}
v3="--model deepseek-v3 --devices 8"
shapes="--layers 4 --experts 8 --topk 2 --hidden 64"
# shellcheck disable=SC2086
{
    refuses "no model" "there is no --layers" --devices 8
    refuses "a shape is missing" "there is no --intermediate" $shapes --devices 8
    refuses "a model that is not known" "--model abacus: no such preset" --model abacus --devices 8
    refuses "a machine that is not known" "--machine abacus: no such preset" $v3 --machine abacus
    refuses "no devices" "--devices is needed" --model deepseek-v3
    refuses "devices that make no nodes" "not a whole number of nodes" --model deepseek-v3 --devices 12
    refuses "no devices at all" "--devices 0" --model deepseek-v3 --devices 0
    refuses "TP that does not divide" "--tp 3: does not divide the 8 of --devices" $v3 --tp 3
    refuses "DP that does not divide" "--dp 3: does not divide the 8 of --devices" $v3 --dp 3
    refuses "TP x DP of others" "--tp 4 --dp 4: that is not the 8 of --devices" $v3 --tp 4 --dp 4
    refuses "experts cut over other devices" "--expert-tp 3: does not divide the 8 of --devices" $v3 --expert-tp 3
    refuses "experts cut over more" "--ep 4 --expert-tp 4: more than the 8 of --devices" $v3 --ep 4 --expert-tp 4
    refuses "slots and redundant" "--slots and --redundant: one of them" $v3 --slots 288 --redundant 32
    refuses "fewer slots than experts" "--slots 200: fewer than the 256 experts" $v3 --slots 200
    refuses "a negative number of copies" "--redundant -1" $v3 --redundant -1
    refuses "an unknown format" "--weights fp5: bf16" $v3 --weights fp5
    refuses "more choices than experts" "--topk 2: there are only 1 experts" --layers 4 --experts 1 --topk 2 \
        --hidden 64 --intermediate 8 --devices 1
    refuses "top-k beyond the experts" "--topk 8: there are only 4 experts" $v3 --experts 4
    refuses "dense layers of no size" "--dense-layers: only with --dense-intermediate" $shapes --intermediate 8 \
        --devices 1 --dense-layers 2
    refuses "a size of no dense layers" "--dense-intermediate: only with --dense-layers" $shapes --intermediate 8 \
        --devices 1 --dense-intermediate 2
    refuses "heads that do not divide the cache" "--kv-heads 5: does not divide the 576 cache" $v3 --kv-heads 5
    refuses "no memory" "--memory 0" $v3 --memory 0
    refuses "memory that is no number" "--memory lots" $v3 --memory lots
    refuses "no tokens" "--tokens 0" $v3 --tokens 0
    refuses "kernels that are not known" "--kernels odd" $v3 --kernels odd
    refuses "more parameters than are counted" "at most 1e15" --layers 4096 --experts 65536 --topk 2 --hidden 16384 \
        --intermediate 8192 --devices 1
    refuses "more than fit a number" "does not fit" --layers 4096 --experts 65536 --topk 2 --hidden 1048576 \
        --intermediate 1048576 --devices 1
    refuses "an input" "inspect reads no input: x" x $v3
    refuses "a page" "unrecognized option '--html'" $v3 --html x
    refuses "a value twice" "--ep is given twice" $v3 --ep 2 --ep 4
}
finish 105
