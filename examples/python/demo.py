# demo.py - the four questions of moe-ep, asked from Python, on the recordings of examples/data
# SPDX-License-Identifier: MIT
"""python3 examples/python/demo.py    (after make lib; needs numpy)"""
import os

import numpy as np

import moe_ep

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data")
GPUS, STEP = 16, 256  # what is asked about: 16 GPUs, 256 tokens per step


def steps(name):
    """Loads (steps, layers, experts) of a recording of ids (tokens, layers, choices)."""
    ids = np.load(os.path.join(DATA, name + "_topk_ids.npy"))
    whole = len(ids) // STEP * STEP
    return np.stack([moe_ep.expert_loads(part, EXPERTS) for part in np.split(ids[:whole], whole // STEP)]), ids.shape[2]


EXPERTS = len(np.load(os.path.join(DATA, "layer2_gate.npy")))
prose, top_k = steps("prose")
code, _ = steps("c")
layers = prose.shape[1]

# 1. Which GPU is the bottleneck?  Experts in blocks, one copy each.
today = moe_ep.plan(np.zeros((layers, EXPERTS)), GPUS, policy="contiguous")
gpus = np.stack([today.device_loads(step) for step in code])
worst = moe_ep.balance_layers(gpus.reshape(-1, GPUS))
chance = moe_ep.chance(STEP, top_k, EXPERTS, GPUS)
print("C code: %d steps of %d tokens, %d layers, %d experts, top-%d, on %d GPUs" % (
    len(code), STEP, layers, EXPERTS, top_k, GPUS))
print("  a step waits for %.2f times the mean; chance alone gives %.2f to %.2f" % (
    worst.imbalance, chance.p05, chance.p95))

# 2. What does a better placement give?  Planned on the text, used on the code; and planned on the code.
for name, window in (("prose", prose), ("C code", code)):
    for copies in (0, GPUS):
        plan = moe_ep.plan(window, GPUS, EXPERTS + copies)
        after = sum(r.max for r in plan.evaluate(code)) / sum(r.mean for r in plan.evaluate(code))
        print("  planned on %-6s with %d copies per layer: %.2f" % (name, copies, after))

# 3. Is it worth it?  Half of the recording to plan on, the other half to judge.
half = len(code) // 2
verdict = moe_ep.diagnose(code[:half], code[half:], GPUS, EXPERTS + GPUS, top_k=top_k)
print("verdict: %s - %s" % (verdict.verdict, verdict.text))

# 4. The maps, as a server loads them.
phy2log, log2phy, logcnt = moe_ep.rebalance_experts(code.sum(0), EXPERTS + GPUS, 1, 1, GPUS)
print("EPLB's physical_to_logical_map %s, layer 0: %s ..." % (phy2log.shape, phy2log[0, :10].tolist()))
