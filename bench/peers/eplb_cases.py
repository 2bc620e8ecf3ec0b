# bench/peers/eplb_cases.py - random planning problems with the answers of DeepSeek's eplb.py, as a vector file.
# SPDX-License-Identifier: MIT
#
# usage: python3 eplb_cases.py FOLDER COUNT SEED FILE.vec
#        build/tests/test_place --filter eplb_vectors FILE.vec
# FOLDER holds eplb.py of https://github.com/deepseek-ai/EPLB; needs torch and numpy.  Its sorts are made stable, which
# upstream leaves open.  Groups, nodes and devices that divide and that do not (upstream then plans globally), slots
# from E to several times E, loads that are integers, full of ties, all equal, all zero, heavy-tailed, real, above 2^24.
# Cases that upstream refuses are left out.  The test compares every slot, replica and count.
import importlib.util
import os
import sys

import numpy
import torch

folder, count, seed, target = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
plain_sort = torch.Tensor.sort
torch.Tensor.sort = lambda self, dim=-1, descending=False: plain_sort(self, dim=dim, descending=descending, stable=True)
spec = importlib.util.spec_from_file_location("eplb", os.path.join(folder, "eplb.py"))
eplb = importlib.util.module_from_spec(spec)
spec.loader.exec_module(eplb)
rng = numpy.random.default_rng(seed)


def pick(values):
    return int(rng.choice(values))


def loads_of(kind, layers, experts):
    shape = (layers, experts)
    if kind == "int":
        return rng.integers(0, 200, shape)
    if kind == "ties":
        return rng.integers(0, 4, shape)
    if kind == "equal":
        return numpy.full(shape, pick([1, 3, 7]))
    if kind == "zero":
        return numpy.zeros(shape, int)
    if kind == "tail":
        ranks = rng.permuted(numpy.tile(numpy.arange(experts), (layers, 1)), axis=1)
        return (10000 / (1 + ranks) ** 1.1).astype(int)
    if kind == "real":
        return rng.exponential(100, shape).astype(numpy.float32).astype(numpy.float64)
    return rng.integers(0, 1 << 30, shape)


def field(out, name, array):
    array = numpy.asarray(array)
    real = array.dtype.kind == "f"
    values = (float(v).hex() if real else str(int(v)) for v in array.reshape(-1))
    dims = "".join(" %d" % d for d in array.shape)
    out.append("%s %s %d%s : %s" % ("f" if real else "i", name, array.ndim, dims, " ".join(values)))


cases = []
while len(cases) < count:
    nodes = pick([1, 1, 2, 2, 3, 4, 8])
    devices = nodes * pick([1, 2, 3, 4, 8])
    groups = nodes * pick([1, 1, 2, 3, 4]) if rng.random() < 0.7 else pick([1, 2, 3, 4, 8])
    experts = groups * pick([1, 2, 3, 4, 6, 8, 16, 32, 64])
    if experts < 2 or experts > 512:
        continue
    slots = ((experts + devices - 1) // devices + pick([0, 1, 2, 3, 5])) * devices
    kind = str(rng.choice(["int", "ties", "equal", "zero", "tail", "real", "big"]))
    weight = loads_of(kind, pick([1, 1, 2, 3]), experts)
    try:
        phy2log, log2phy, logcnt = eplb.rebalance_experts(torch.tensor(weight), slots, groups, nodes, devices)
    except (AssertionError, RuntimeError):
        continue
    lines = ["case %s_%d" % (kind, len(cases))]
    field(lines, "weight", weight)
    for name, value in (("num_replicas", slots), ("num_groups", groups), ("num_nodes", nodes), ("num_gpus", devices)):
        field(lines, name, numpy.array(value))
    for name, value in (("phy2log", phy2log), ("log2phy", log2phy), ("logcnt", logcnt)):
        field(lines, name, value.numpy())
    cases.append("\n".join(lines) + "\nend\n")
with open(target, "w") as f:
    f.write("moe_ep_vec 1 eplb %d\n" % len(cases) + "".join(cases))
print("%d cases" % len(cases))
