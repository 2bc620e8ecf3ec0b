# bench/peers/eplb_tests.py - runs the EPLB tests of vLLM, SGLang and sgl-jax, as they are, against moe_ep.py.
# SPDX-License-Identifier: MIT
#
# usage: make lib && python3 bench/peers/eplb_tests.py FOLDER [arguments of pytest]
# FOLDER holds your copies of whichever of these files you want to run; every .py in it that pytest collects is run:
#   https://github.com/vllm-project/vllm      tests/distributed/test_eplb_algo.py (the class DefaultEplbPolicy; older
#                                             versions of the same file: the function rebalance_algo.rebalance_experts)
#   https://github.com/sgl-project/sglang     test/.../test_balanced_packing.py and other tests of sglang.srt.eplb
#   https://github.com/sgl-project/sglang-jax test/.../test_eplb.py
# Needs torch and pytest, and neither vLLM nor SGLang: the modules that the tests import their planner from are stood in
# for here, and hold nothing but moe_ep.py's entry points.
import glob
import os
import sys
import types
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples", "python"))
sys.dont_write_bytecode = True

import pytest
import torch

import moe_ep


def module(name, **names):
    """A module, and the packages around it, that has these names."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    for key, value in names.items():
        setattr(sys.modules[name], key, value)


def compute_logical_maps(phy2log, num_logical):
    """What vLLM works out from a physical map: where each expert's copies are, and how many."""
    _, log, count = moe_ep.Placement.from_phy2log(phy2log, num_logical, 1).maps()
    return torch.from_numpy(log), torch.from_numpy(count)


def load_stats(rows):
    """vLLM's mean and maximum over the ranks, summed over the layers."""
    stats = moe_ep.balance_layers(rows)
    return torch.tensor(stats.avg_sum), torch.tensor(stats.max_sum)


module("vllm.distributed.eplb.eplb_state", compute_logical_maps=compute_logical_maps,
       _compute_eplb_load_stats=load_stats)
module("vllm.distributed.eplb.policy.default", DefaultEplbPolicy=moe_ep.DefaultEplbPolicy)
module("vllm.distributed.eplb.rebalance_algo", rebalance_experts=moe_ep.rebalance_experts)
module("sglang.test.ci.ci_register", register_cpu_ci=lambda **_: None)
module("sglang.test.test_utils", CustomTestCase=unittest.TestCase)
module("sglang.srt.eplb.eplb_algorithms")
module("sgl_jax.srt.eplb")
for package in ("sglang", "sgl_jax"):
    sys.modules[package + ".srt.eplb.eplb_algorithms"] = moe_ep.eplb_algorithms
for algorithm in ("deepseek", "elasticity_aware"):
    sys.modules["sglang.srt.eplb.eplb_algorithms." + algorithm] = moe_ep

if len(sys.argv) < 2 or not os.path.isdir(sys.argv[1]):
    sys.exit("usage: eplb_tests.py FOLDER [arguments of pytest]")
files = [f for f in sorted(glob.glob(os.path.join(sys.argv[1], "*.py"))) if "test" in os.path.basename(f)]
if not files:
    sys.exit("%s holds no file whose name has \"test\" in it" % sys.argv[1])
sys.exit(pytest.main(["-q", "--noconftest", "-p", "no:cacheprovider", "--rootdir", sys.argv[1]] + files + sys.argv[2:]))
