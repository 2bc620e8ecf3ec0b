# bench/peers/eplb_compare.py - moe_ep.py's planners against DeepSeek's eplb.py: the same maps, and how long each takes.
# SPDX-License-Identifier: MIT
#
# usage: make lib && python3 bench/peers/eplb_compare.py FOLDER [CASES [SEED]]
# FOLDER holds eplb.py of https://github.com/deepseek-ai/EPLB.  Needs torch.
# Its sort leaves the order of equal loads open; here it is made stable, which is what moe_ep.h does.  How many maps are
# equal to those of eplb.py as it is, is counted, too.  Times are the least of several calls, one thread.
import importlib.util
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples", "python"))
sys.dont_write_bytecode = True

import numpy as np
import torch

import moe_ep

if len(sys.argv) < 2 or not os.path.isfile(os.path.join(sys.argv[1], "eplb.py")):
    sys.exit("usage: eplb_compare.py FOLDER [CASES [SEED]]; FOLDER holds eplb.py")
spec = importlib.util.spec_from_file_location("eplb", os.path.join(sys.argv[1], "eplb.py"))
eplb = importlib.util.module_from_spec(spec)
spec.loader.exec_module(eplb)
cases = int(sys.argv[2]) if len(sys.argv) > 2 else 500
rng = np.random.default_rng(int(sys.argv[3]) if len(sys.argv) > 3 else 20261121)
torch.set_num_threads(1)
plain = torch.Tensor.sort


def stable(self, dim=-1, descending=False):
    return plain(self, dim=dim, descending=descending, stable=True)


def with_sort(sort, *arguments):
    torch.Tensor.sort = sort
    try:
        return eplb.rebalance_experts(*arguments)
    finally:
        torch.Tensor.sort = plain


def random_case():
    """weight, slots, groups, nodes, devices that eplb.py takes; every second kind has many equal loads."""
    while True:
        nodes, groups = int(rng.choice([1, 1, 2, 4])), int(rng.choice([1, 2, 3, 4, 8]))
        devices, experts = nodes * int(rng.choice([1, 2, 4, 8])), groups * int(rng.integers(1, 17))
        slots, layers = devices * int(rng.integers(1, 9)), int(rng.integers(1, 5))
        if not experts <= slots <= 512 or groups % nodes == 0 and experts % nodes:
            continue
        shape = layers, experts
        weight = [lambda: rng.integers(0, 1000, shape), lambda: rng.lognormal(0, 1.5, shape) * 1000,
                  lambda: rng.integers(0, 4, shape), lambda: rng.integers(0, 3000000, shape),
                  lambda: rng.random(shape).astype(np.float32)][rng.integers(0, 5)]()
        return torch.tensor(weight), slots, groups, nodes, devices


def equal(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


def busiest(maps, weight, devices):
    """(L) load of the busiest device."""
    phy, _, count = (np.asarray(m) for m in maps)
    share = np.asarray(weight, np.float64) / count
    return np.take_along_axis(share, phy, 1).reshape(len(phy), devices, -1).sum(-1).max(-1)


def least_ms(call, rounds):
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


same = as_it_is = busier = done = 0
while done < cases:
    case = random_case()
    try:
        wanted = with_sort(stable, *case)
    except (AssertionError, RuntimeError):  # eplb.py does not plan this one
        continue
    ours = moe_ep.rebalance_experts(*case)
    same += equal(wanted, ours)
    as_it_is += equal(with_sort(plain, *case), ours)
    best = moe_ep.rebalance_experts_best(*case)
    busier += bool((busiest(best, case[0], case[4]) > busiest(ours, case[0], case[4]) * (1 + 1e-6)).any())
    done += 1
print("%d random inputs: %d equal to eplb.py with a stable sort, %d to eplb.py as it is" % (cases, same, as_it_is))
print("rebalance_experts_best is busier than EPLB in %d of them" % busier)

weight = torch.tensor(np.random.default_rng(1).lognormal(0, 1, (58, 256)) * 1000)
print("58 layers, 256 experts, 288 slots, 8 groups, 4 nodes, 32 GPUs:")
for name, call, rounds in (("eplb.py", eplb.rebalance_experts, 3),
                           ("moe_ep.rebalance_experts", moe_ep.rebalance_experts, 20),
                           ("moe_ep.rebalance_experts_best", moe_ep.rebalance_experts_best, 10)):
    print("  %-30s %8.2f ms" % (name, least_ms(lambda: call(weight, 288, 8, 4, 32), rounds)))
sys.exit(same != cases or busier > 0)
