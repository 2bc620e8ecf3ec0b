# bench/peers/eplb_peer.py - times the planners of DeepSeek and vLLM on the loads that bench_place gives them.
# SPDX-License-Identifier: MIT
#
# usage: python3 eplb_peer.py WHOSE FOLDER FILE LAYERS EXPERTS SLOTS GROUPS NODES DEVICES ROUNDS
# WHOSE deepseek: FOLDER holds eplb.py of https://github.com/deepseek-ai/EPLB.  WHOSE vllm: FOLDER holds
# vllm_default.py, a copy of vllm/distributed/eplb/policy/default.py (older: rebalance_algo.py) of
# https://github.com/vllm-project/vllm.  Both need torch.  FILE holds LAYERS*EXPERTS doubles.  Writes the expert of
# every slot (int32) to FILE.slots and prints the least time of ROUNDS calls in milliseconds.  Sorts are made stable,
# which upstream leaves open, so that plans can be compared.  One thread.
import array
import importlib.util
import os
import sys
import time
import types

import numpy
import torch

whose, folder, path = sys.argv[1:4]
layers, experts, slots, groups, nodes, devices, rounds = map(int, sys.argv[4:11])


def module_from(file, name):
    """A source file as a module of a made-up package, so that its relative import of a base class works."""
    package = types.ModuleType("peer")
    package.__path__ = []
    base = types.ModuleType("peer.abstract")
    base.AbstractEplbPolicy = object
    sys.modules["peer"], sys.modules["peer.abstract"] = package, base
    spec = importlib.util.spec_from_file_location("peer." + name, os.path.join(folder, file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain_sort, plain_argsort = torch.Tensor.sort, numpy.argsort
torch.Tensor.sort = lambda self, dim=-1, descending=False: plain_sort(self, dim=dim, descending=descending, stable=True)
numpy.argsort = lambda a, axis=-1: plain_argsort(a, axis=axis, kind="stable")
torch.set_num_threads(1)
if whose == "vllm":
    module = module_from("vllm_default.py", "vllm_default")
    plan_of = getattr(module, "DefaultEplbPolicy", module).rebalance_experts
else:
    plan_of = module_from("eplb.py", "eplb").rebalance_experts
loads = array.array("d")
with open(path, "rb") as f:
    loads.fromfile(f, layers * experts)
weight = torch.tensor(loads, dtype=torch.float64).reshape(layers, experts)
least = 1e300
for _ in range(rounds):
    start = time.perf_counter()
    plan = plan_of(weight, slots, groups, nodes, devices)
    least = min(least, time.perf_counter() - start)
plan = plan[0] if isinstance(plan, tuple) else plan
with open(path + ".slots", "wb") as f:
    array.array("i", plan.reshape(-1).tolist()).tofile(f)
print(least * 1e3)
