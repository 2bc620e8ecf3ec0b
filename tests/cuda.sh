#!/bin/sh
# tests/cuda.sh - the CUDA and NCCL examples: run on the CPU by tests/cuda_on_host.h, compiled where there is nvcc,
# run where there is a GPU.
# SPDX-License-Identifier: MIT
# environment: NVCC (default: the one in PATH, else /usr/local/cuda/bin/nvcc)
. tests/lib.sh

# The programs ask for the implementation; where the library is built, linking it saves most of the compiler's time.
# That it compiles as C++ is what matrix.sh looks at, and nvcc compiles it once below.
own=-DMOE_EP_STATIC archive=
if [ -n "$(find build/libmoe_ep.a -newer moe_ep.h 2>/dev/null)" ]; then
    case ${CFLAGS:-} in
        *sanitize*) ;;
        *) own=-DMOE_EP_IMPLEMENTATION_DONE archive=build/libmoe_ep.a ;;
    esac
fi

# One program on the CPU: source on_host [define].
on_host() {
    # shellcheck disable=SC2086
    if ! $CXX -std=c++11 -O1 $own -Wall -Wextra -Wno-unused-function -ffp-contract=off ${2:-} -I. -Itests \
        tests/cuda_on_host.cc $archive -o "$tmp/on_host" -lm -pthread >"$tmp/log" 2>&1 || [ -s "$tmp/log" ]; then
        fail "$1 compiles for the CPU without warnings" "$tmp/log"
        return
    fi
    timeout 600 "$tmp/on_host" >"$tmp/log" 2>&1
    code=$?
    if [ $code -ne 0 ]; then grep -v '^  ok' "$tmp/log" >"$tmp/bad"; fi
    result $code "$1 on the CPU: $(grep -c '^  ok' "$tmp/log") checks" "$tmp/bad"
}

# The command that examples/README.md prints for one program, its words behind nvcc.
printed() { sed -n "s|^nvcc \\(.*/$1\\.cu .*\\) && .*|\\1|p" examples/README.md; }

# One program for the GPU: on_gpu NAME GPUS_NEEDED [WITHOUT_THE_IMPLEMENTATION].
on_gpu() {
    build=$(printed "$1" | sed "s|-o [^ ]*|-o $tmp/$1|")
    [ "$gpus" -ge "$2" ] || build=$(echo "$build" | sed "s|-O3|-O0 ${3:-}|") # it is not going to run
    # shellcheck disable=SC2086
    if [ -z "$build" ] || ! "$nvcc" $build >"$tmp/log" 2>&1 || [ ! -x "$tmp/$1" ]; then
        fail "nvcc compiles $1" "$tmp/log"
        return
    fi
    pass "nvcc compiles $1"
    if [ "$gpus" -lt "$2" ]; then
        skip "$1 on a GPU" "it needs $2, nvidia-smi lists $gpus"
        return
    fi
    LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} timeout 300 "$tmp/$1" --check >"$tmp/log" 2>&1
    result $? "$1 on $(head -n 1 "$tmp/log")" "$tmp/log"
}

if have "${CXX%% *}"; then
    on_host moe_ep_cuda
    on_host moe_ep_nccl -DPROGRAM_NCCL
else
    for program in moe_ep_cuda moe_ep_nccl; do skip "$program on the CPU" "no C++ compiler (package g++)"; done
fi

for program in moe_ep_cuda moe_ep_nccl; do
    case $(printed $program) in
        "-O3 -I. examples/cuda/$program.cu -o $program -lcublas"*) true ;;
        *) false ;;
    esac
    result $? "examples/README.md prints the command for $program"
done
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ ! -x "$nvcc" ]; then
    for program in moe_ep_cuda moe_ep_nccl; do
        skip "nvcc compiles $program" "no nvcc (package nvidia-cuda-toolkit, or NVIDIA's cuda-nvcc)"
    done
else
    root=$(dirname "$(dirname "$nvcc")")
    libraries=$root/lib64
    on_gpu moe_ep_cuda 1
    if [ -e "$root/include/nccl.h" ] || [ -e /usr/include/nccl.h ]; then
        on_gpu moe_ep_nccl 2 "${archive:+$own $archive}"
    else
        skip "nvcc compiles moe_ep_nccl" "no nccl.h (package libnccl-dev)"
    fi
fi
finish 5
