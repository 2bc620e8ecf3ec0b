# bench/peers/eplb_peer.py - times DeepSeek's own planner on the loads that bench_place gives it.
# SPDX-License-Identifier: MIT
#
# usage: python3 eplb_peer.py FOLDER FILE LAYERS EXPERTS SLOTS GROUPS NODES DEVICES ROUNDS
# FOLDER holds eplb.py of https://github.com/deepseek-ai/EPLB (needs torch); FILE holds LAYERS*EXPERTS doubles.  Writes
# the expert of every slot (int32) to FILE.slots and prints the least time of ROUNDS calls in milliseconds.  Sorts are
# made stable, which upstream leaves open, so that plans can be compared.  One thread.
import array
import sys
import time

import torch

folder, path = sys.argv[1:3]
layers, experts, slots, groups, nodes, devices, rounds = map(int, sys.argv[3:10])
sys.path.insert(0, folder)
import eplb  # noqa: E402

plain_sort = torch.Tensor.sort


def stable_sort(self, dim=-1, descending=False):
    return plain_sort(self, dim=dim, descending=descending, stable=True)


torch.Tensor.sort = stable_sort
torch.set_num_threads(1)
loads = array.array("d")
with open(path, "rb") as f:
    loads.fromfile(f, layers * experts)
weight = torch.tensor(loads, dtype=torch.float64).reshape(layers, experts)
least = 1e300
for _ in range(rounds):
    start = time.perf_counter()
    plan = eplb.rebalance_experts(weight, slots, groups, nodes, devices)[0]
    least = min(least, time.perf_counter() - start)
with open(path + ".slots", "wb") as f:
    array.array("i", plan.reshape(-1).tolist()).tofile(f)
print(least * 1e3)
