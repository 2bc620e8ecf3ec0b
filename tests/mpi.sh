#!/bin/sh
# tests/mpi.sh - the MPI example on 1, 2, 3 and 4 ranks: equal to one process, weights moved by the planner's list.
# SPDX-License-Identifier: MIT
. tests/lib.sh
if ! command -v mpicc >/dev/null 2>&1 || ! command -v mpirun >/dev/null 2>&1; then
    skip "MPI example" "no mpicc and mpirun (packages libopenmpi-dev openmpi-bin)"
    finish 1
    exit $?
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_mpi_yield_when_idle=1
program=$tmp/moe_ep_mpi
# Read as examples/README.md says, then built without the optimiser and with the library, or where that was not built
# with an implementation of its own.
build=$(sed -n 's|^\(mpicc .*\) && mpirun .*|\1|p' examples/README.md | sed "s|-O2|-O0|; s|-o [^ ]*|-o $program|")
if built_library; then
    read=$(printf '%s' "$build" | sed 's|-O0|-fsyntax-only|; s| -o [^ ]*||')
    link=$(printf '%s' "$build" | sed 's|-I\.|& -DMOE_EP_IMPLEMENTATION_DONE|; s|\.c |&build/lib/moe_ep_lib.o |')
    build=${build:+$read && $link}
fi
if ! { [ -n "$build" ] && eval "$build"; } >"$tmp/log" 2>&1 || [ ! -x "$program" ]; then
    fail "the MPI example compiles" "$tmp/log"
else
    for n in 1 2 3 4; do
        timeout 60 mpirun -n $n "$program" >"$tmp/out" 2>"$tmp/log"
        result $? "mpirun -n $n ends with status 0" "$tmp/log"
        [ "$(grep -c 'the bits of one process' "$tmp/out")" = 4 ]
        result $? "mpirun -n $n: all steps equal one process" "$tmp/out"
        [ $n -gt 1 ] || continue
        moved=$(sed -n 's/^rebalance *\([0-9]*\) experts.*/\1/p' "$tmp/out")
        [ "${moved:-0}" -gt 0 ]
        result $? "mpirun -n $n: $moved experts moved" "$tmp/out"
    done
fi
finish 1
