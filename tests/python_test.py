# tests/python_test.py - examples/python/moe_ep.py, called by tests/python.sh
# SPDX-License-Identifier: MIT
# usage: python_test.py            one line per test: "  ok   name", "  FAIL name", "  skip name: reason"
#        python_test.py --readme   runs the code blocks of examples/python/README.md and compares what they print
#        python_test.py --update   writes what they print into that file
#        python_test.py --structs  rewrites the structures and enumerations of moe_ep.py after moe_ep.h has new ones
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
import types
import warnings

import numpy as np

import moe_ep

try:
    import torch
except ImportError:
    torch = None

F = np.float32
HERE = os.path.dirname(os.path.abspath(moe_ep.__file__))
EXAMPLE = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
           [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
MAPS = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


class Skip(Exception):
    pass


def raises(status, call, *arguments, **named):
    """The error a call must end with."""
    try:
        call(*arguments, **named)
    except moe_ep.MoeEpError as problem:
        assert problem.status == status, (problem.status, str(problem))
        assert len(str(problem)) > 10
        return problem
    raise AssertionError("no error")


# ---- EPLB by its definition, one layer at a time, float32 ------------------------------------------------------

def naive_pack(weights, packs):
    """Heaviest first into the lightest pack with room: lists of items per pack."""
    room, content, total = len(weights) // packs, [[] for _ in range(packs)], [F(0)] * packs
    if room == 1:
        return [[i] for i in range(packs)]
    for item in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        pack = min((p for p in range(packs) if len(content[p]) < room), key=lambda p: (total[p], p))
        content[pack].append(item)
        total[pack] = F(total[pack] + weights[item])
    return content


def naive_eplb(loads, P, groups, nodes, gpus):
    """(expert, number of the copy) of every slot."""
    if groups % nodes:
        groups = nodes = 1
    loads, size = [F(x) for x in loads], len(loads) // groups
    sums = []
    for g in range(groups):
        total = F(0)
        for x in loads[g * size:(g + 1) * size]:
            total = F(total + x)
        sums.append(total)
    slots = []
    for node in naive_pack(sums, nodes):
        experts = [g * size + i for g in node for i in range(size)]
        copies, count = [(e, 0) for e in experts], {e: 1 for e in experts}
        while len(copies) < P // nodes:
            hot = max(experts, key=lambda e: F(loads[e] / F(count[e])))  # max takes the first of equals
            copies.append((hot, count[hot]))
            count[hot] += 1
        shares = [F(loads[e] / F(count[e])) for e, _ in copies]
        for gpu in naive_pack(shares, gpus // nodes):
            slots += [copies[i] for i in gpu]
    return slots


def eplb_cases(n):
    rng = np.random.default_rng(7)
    while n:
        nodes, per_node, groups, size = (int(rng.choice(c)) for c in ((1, 1, 2, 4), (1, 2, 4), (1, 2, 3, 4, 8),
                                                                      range(1, 9)))
        gpus, E = nodes * per_node, groups * size
        P = gpus * int(rng.integers(1, 7))
        if P >= E and (groups % nodes or P // nodes >= E // nodes):
            kind = rng.integers(0, 3)
            loads = (rng.integers(0, 5, (2, E)), rng.integers(0, 10**6, (2, E)), rng.lognormal(0, 1.5, (2, E)))[kind]
            yield loads, P, groups, nodes, gpus
            n -= 1


def test_eplb_is_its_definition():
    for case in eplb_cases(200):
        phy2log, log2phy, logcnt = moe_ep.rebalance_experts(*case)
        assert phy2log.dtype == log2phy.dtype == logcnt.dtype == np.int64
        assert log2phy.shape[2] == logcnt.max()
        for layer, loads in enumerate(case[0]):
            want = naive_eplb(loads, *case[1:])
            assert [e for e, _ in want] == phy2log[layer].tolist(), case
            for slot, (expert, copy) in enumerate(want):
                assert log2phy[layer, expert, copy] == slot, case
            assert (log2phy[layer] >= 0).sum(1).tolist() == logcnt[layer].tolist()


def test_eplb_worked_example():
    assert moe_ep.rebalance_experts(EXAMPLE, 16, 4, 2, 8)[0].tolist() == MAPS


def test_eplb_takes_any_array():
    for dtype in (np.int32, np.int64, np.uint8, np.float32, np.float64):
        weight = np.asarray(EXAMPLE).astype(dtype)
        before = weight.copy()
        assert moe_ep.rebalance_experts(weight, 16, 4, 2, 8)[0].tolist() == MAPS
        assert (weight == before).all()
    assert moe_ep.rebalance_experts(np.asarray(EXAMPLE).T.copy().T, 16, 4, 2, 8)[0].tolist() == MAPS


def test_eplb_gives_tensors_for_tensors():
    if torch is None:
        raise Skip("no torch")
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        maps = moe_ep.rebalance_experts(torch.tensor(EXAMPLE).to(dtype), 16, 4, 2, 8)
        assert all(isinstance(m, torch.Tensor) and m.dtype == torch.int64 for m in maps)
        assert maps[0].tolist() == MAPS
    half = moe_ep.rebalance_experts(torch.tensor(EXAMPLE).to(torch.bfloat16), 16, 4, 2, 8)[0]
    assert half.shape == (2, 16)
    phy = moe_ep.DefaultEplbPolicy.rebalance_experts(torch.tensor(EXAMPLE), 16, 4, 2, 8, torch.tensor(MAPS))
    assert isinstance(phy, torch.Tensor) and phy.tolist() == MAPS


def test_eplb_errors_are_assertions():
    for arguments in ((EXAMPLE, 15, 4, 2, 8), (EXAMPLE, 8, 4, 2, 8), (EXAMPLE, 16, 5, 1, 8), (EXAMPLE, 16, 4, 2, 0),
                      (EXAMPLE[0], 16, 4, 2, 8), ([[1, -1]], 2, 1, 1, 2), ([[1, float("nan")]], 2, 1, 1, 2)):
        try:
            moe_ep.rebalance_experts(*arguments)
        except AssertionError as problem:
            assert isinstance(problem, ValueError) and len(str(problem)) > 10
        else:
            raise AssertionError("no error for %s" % (arguments,))


def test_bad_arguments_are_named():
    weight = np.arange(1, 17).reshape(2, 8)
    rebalance = moe_ep.rebalance_experts
    for arguments, status, words in (
            ((weight, 8, 1, 0, 2), "ERR_SIZE", "num_nodes = 0: must be at least 1"),
            ((weight, 8, 1, 2.0, 2), "ERR_RANGE", "num_nodes = 2.0: a whole number is needed"),
            ((weight, 8, 1, 1, "2"), "ERR_RANGE", "num_gpus = '2': a whole number is needed"),
            ((weight, 8, 1, 1, None), "ERR_RANGE", "num_gpus = None"),
            ((weight, 8.5, 1, 1, 2), "ERR_RANGE", "num_replicas = 8.5"),
            ((weight, 2 ** 40, 1, 1, 2), "ERR_RANGE", "num_replicas = 1099511627776 does not fit int32_t"),
            (([[1, 1e308, 1, 1]], 4, 1, 1, 2), "ERR_RANGE", "weight[0, 1] = 1e+308 does not fit float32"),
            (([[1, 2], [3, -3]], 2, 1, 1, 2), "ERR_NEGATIVE", "weight[1, 1] = -3")):
        problem = raises(status, rebalance, *arguments)
        assert words in str(problem), str(problem)
        assert isinstance(problem, AssertionError)
    problem = raises("ERR_NEGATIVE", moe_ep.plan, [[[1, 2, 1, 1], [1, 2, 3, 1]], [[1, 2, 1, 1], [1, 2, -3, 1]]], 2)
    assert problem.index == 14 and problem.place == (1, 1, 2) and "loads[1, 1, 2]" in str(problem), str(problem)
    assert raises("ERR_EXPERT_ID", moe_ep.expert_loads, [[1, 2], [3, 9]], 4).place == (1, 1)
    assert raises("ERR_NAN", moe_ep.balance_layers, [[1, 2], [3, float("nan")]]).place == (1, 1)
    assert raises("ERR_SIZE", moe_ep.plan(weight, 2).rebalance, weight, max_moves=-5).value == -5
    for call, words in ((lambda: moe_ep.plan(weight, "2"), "num_devices = '2'"),
                        (lambda: moe_ep.chance(1.5, 2, 8), "num_tokens = 1.5"),
                        (lambda: moe_ep.expert_loads([[1]], "4"), "num_experts = '4'"),
                        (lambda: moe_ep.route([[1.0, 2.0]], "k"), "top_k = 'k'"),
                        (lambda: moe_ep.route([[1.0, 2.0]], 1, router=7), "7 is no name"),
                        (lambda: moe_ep.plan(weight, 2).split(weight[0], layer="x"), "layer = 'x'"),
                        (lambda: moe_ep.plan(weight, 2, risk_z="x"), "risk_z = 'x'"),
                        (lambda: moe_ep.model("deepseek-v3", hidden="x"), "hidden = 'x'")):
        assert words in str(raises("ERR_RANGE", call)), words
    deepseek = moe_ep.EplbAlgorithm.deepseek
    problem = raises("ERR_SIZE", moe_ep.eplb_algorithms.rebalance_experts, weight, 8, 0, 1, 1, deepseek)
    assert "num_local_physical_experts = 0" in str(problem), str(problem)


def test_an_old_map_of_another_shape_is_not_ignored_in_silence():
    weight = np.arange(1, 17).reshape(2, 8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        phy = moe_ep.DefaultEplbPolicy.rebalance_experts(weight, 8, 1, 1, 2, np.zeros((2, 7), int))
    assert len(said) == 1 and "shape (2, 7)" in str(said[0].message)
    assert np.array_equal(phy, moe_ep.rebalance_experts(weight, 8, 1, 1, 2)[0])


def test_route_gives_tensors_for_tensors():
    if torch is None:
        raise Skip("torch is not installed")
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.0, 0.25]], dtype=torch.bfloat16)
    ids, weights = moe_ep.route(logits, 2)
    assert isinstance(ids, torch.Tensor) and isinstance(weights, torch.Tensor)
    assert ids.tolist() == [[1, 2], [0, 2]] and abs(float(weights[0].sum()) - 1) < 1e-6
    assert isinstance(moe_ep.route(logits.float().numpy(), 2)[0], np.ndarray)
    bias = torch.tensor([0.0, 0.0, 9.0])
    assert moe_ep.route(logits, 1, "deepseek_v3", select_bias=bias, n_group=1, topk_group=1)[0].tolist() == [[2], [2]]
    assert moe_ep.plan(torch.ones(2, 4), 2, speed=torch.ones(2)).num_slots == 4
    raises("ERR_SIZE", moe_ep.route, logits, 1, "deepseek_v3", select_bias=torch.zeros(2), n_group=1, topk_group=1)


def test_sglang_keywords():
    weight = np.asarray(EXAMPLE)
    flat = moe_ep.rebalance_experts(weight=weight, num_replicas=16, num_groups=None, num_nodes=2, num_gpus=8,
                                    enable_hierarchical=False)
    assert (flat[0] == moe_ep.rebalance_experts(weight, 16, 1, 1, 8)[0]).all()
    A = moe_ep.eplb_algorithms
    assert A.compute_algorithm("auto", 8, 4) == A.EplbAlgorithm.deepseek_hierarchical
    assert A.compute_algorithm("auto", None, 4) == A.EplbAlgorithm.deepseek
    assert A.compute_algorithm("moe_ep_best", 8, 4) == A.EplbAlgorithm.moe_ep_best
    steps = np.stack([weight - 4, np.full_like(weight, 4)])
    for algorithm in (A.EplbAlgorithm.deepseek_hierarchical, A.EplbAlgorithm.deepseek, A.EplbAlgorithm.moe_ep_best):
        maps = A.rebalance_experts(tokens_per_expert=steps, num_physical_experts=16, num_local_physical_experts=2,
                                   num_groups=4, num_nodes=2, algorithm=algorithm)
        assert maps[2].sum() == 32
        if algorithm == A.EplbAlgorithm.deepseek_hierarchical:
            assert maps[0].tolist() == MAPS


def test_sglang_lost_ranks():
    active = np.array([1, 0, 1, 1])
    phy, log, count = moe_ep.rebalance_experts(np.arange(1, 129.0)[None], 172, 1, 1, 4, False, active)
    assert phy.shape == (1, 172) and (phy[0, 43:86] == 0).all() and (count >= 1).all()
    used = log[log >= 0]
    assert len(set(used)) == len(used) == 129 and not ((used >= 43) & (used < 86)).any()
    for expert in range(128):
        assert all(phy[0, slot] == expert for slot in log[0, expert] if slot >= 0)
    raises("ERR_NULL", moe_ep.eplb_algorithms.rebalance_experts, np.ones((1, 4)), 8, 2, 1, 1,
           moe_ep.EplbAlgorithm.elasticity_aware)


def test_sglang_is_asked_which_ranks_are_active():
    """Its dispatcher gives no active_ranks: older versions have get_elastic_ep_state, newer ElasticEPStateManager."""
    name = "sglang.srt.elastic_ep.elastic_ep"
    A, weight, ranks = moe_ep.eplb_algorithms, np.asarray(EXAMPLE), np.array([1, 1, 1, 0, 1, 1, 1, 1])
    kinds = A.EplbAlgorithm.elasticity_aware, A.EplbAlgorithm.elasticity_aware_hierarchical

    def ask(algorithm):
        return A.rebalance_experts(tokens_per_expert=weight[None], num_physical_experts=16, num_groups=4, num_nodes=2,
                                   num_local_physical_experts=2, algorithm=algorithm)

    def servers(state):
        old, new, strange = (types.ModuleType(name) for _ in range(3))
        old.get_elastic_ep_state = lambda: state
        new.ElasticEPStateManager = types.SimpleNamespace(instance=lambda: state)
        return old, new, strange

    assert A.compute_algorithm("elasticity_aware_hierarchical", 4, 2) == kinds[1]
    try:
        for lost in servers(types.SimpleNamespace(active_ranks=ranks))[:2]:
            sys.modules[name] = lost
            for kind in kinds:
                got = ask(kind)
                want = moe_ep.rebalance_experts(weight, 16, 4, 2, 8, active_ranks=ranks)
                assert all((a == b).all() for a, b in zip(got, want)) and (got[0][:, 6:8] == 0).all()
        for state in [None] + [types.SimpleNamespace(active_ranks=a) for a in (None, np.ones_like(ranks))]:
            for healthy in servers(state)[:2]:
                sys.modules[name] = healthy
                assert ask(kinds[1])[0].tolist() == MAPS
                assert (ask(kinds[0])[0] == moe_ep.rebalance_experts(weight, 16, 1, 1, 8)[0]).all()
        for missing in (servers(None)[2], None):  # another SGLang; none at all
            sys.modules[name] = missing
            assert isinstance(raises("ERR_NULL", ask, kinds[0]), AssertionError)
    finally:
        del sys.modules[name]


def test_vllm_policy_keeps_slots():
    rng = np.random.default_rng(5)
    for _ in range(100):
        gpus, each, E = int(rng.integers(1, 5)), int(rng.integers(1, 6)), int(rng.integers(1, 6))
        old, new = rng.integers(0, E, (2, 3, gpus * each))
        got = moe_ep.DefaultEplbPolicy.preserve_intragpu_slots(new, gpus, old)
        for a, b, c in zip(old.reshape(-1, each), new.reshape(-1, each), got.reshape(-1, each)):
            assert sorted(b) == sorted(c)
            kept = sum(min((a == e).sum(), (b == e).sum()) for e in range(E))
            assert (a == c).sum() >= kept, (a, b, c)
    P = moe_ep.DefaultEplbPolicyWithMaps
    phy, log, count = P.rebalance_experts(np.asarray(EXAMPLE)[::-1], 16, 4, 2, 8, np.asarray(MAPS))
    assert phy.shape == (2, 16) and count.sum() == 32
    assert all(phy[l, s] == e for l in range(2) for e in range(12) for s in log[l, e] if s >= 0)
    old = np.array([[0, 1, -1, -1, 2, 3]])  # a GPU that has just joined holds nothing
    got = moe_ep.DefaultEplbPolicy.preserve_intragpu_slots([[1, 0, 3, 2, 3, 0]], 3, old)
    assert got.tolist() == [[0, 1, 3, 2, 0, 3]]
    odd = np.zeros((1, 5), int)
    assert moe_ep.DefaultEplbPolicy.preserve_intragpu_slots(odd, 2, odd) is odd


def test_best_is_never_busier():
    for loads, P, groups, nodes, gpus in eplb_cases(100):
        phy = [f(loads, P, groups, nodes, gpus)[0]
               for f in (moe_ep.rebalance_experts, moe_ep.rebalance_experts_best)]
        assert (phy[1] >= 0).all() and phy[1].shape == phy[0].shape
        e, b = (np.max(moe_ep.Placement.from_phy2log(p, loads.shape[1], gpus).device_loads(loads.astype(F)), 1)
                for p in phy)
        assert (b <= e * (1 + 1e-6)).all(), (loads, P, groups, nodes, gpus)
    assert moe_ep.BestEplbPolicy.rebalance_experts(np.asarray(EXAMPLE), 16, 4, 2, 8).shape == (2, 16)


def test_packing_and_replication():
    rng = np.random.default_rng(6)
    for _ in range(100):
        packs, room = int(rng.integers(1, 6)), int(rng.integers(1, 6))
        weight = rng.integers(0, 20, (2, packs * room))
        pack, rank = moe_ep.balanced_packing(weight, packs)
        for layer in range(2):
            for p, items in enumerate(naive_pack([F(x) for x in weight[layer]], packs)):
                assert [(pack[layer, i], rank[layer, i]) for i in items] == [(p, r) for r in range(room)]
        P = weight.shape[1] + int(rng.integers(0, 5))
        phy, rank, count = moe_ep.replicate_experts(weight, P)
        assert (phy[:, :weight.shape[1]] == np.arange(weight.shape[1])).all() and count.sum() == 2 * P
        for layer in range(2):
            seen = np.zeros(weight.shape[1], int)
            for slot in range(P):
                assert rank[layer, slot] == seen[phy[layer, slot]]
                seen[phy[layer, slot]] += 1


# ---- routing, loads, balance -----------------------------------------------------------------------------------

def test_route():
    x = np.random.default_rng(1).standard_normal((50, 16))
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    ids, weights = moe_ep.route(x, 3, "olmoe")
    want = np.argsort(-p, 1, kind="stable")[:, :3]
    assert (ids == want).all() and np.allclose(weights, np.take_along_axis(p, want, 1), rtol=1e-5)
    assert ids.dtype == np.int32 and weights.dtype == F
    assert np.allclose(moe_ep.route(x, 3, "Mixtral")[1].sum(1), 1)
    bias = np.zeros(16)
    bias[7] = 100
    assert (moe_ep.route(x, 1, "deepseek_v3", select_bias=bias, n_group=1, topk_group=1)[0] == 7).all()
    table = np.array([[3], [5]])
    assert moe_ep.route(x[:2], 1, "hash", token_ids=[1, 0], table=table)[0].tolist() == [[5], [3]]
    assert "deepseek_v3" in moe_ep.routers() and len(moe_ep.routers()) > 40
    raises("ERR_TOP_K", moe_ep.route, x, 17)
    raises("ERR_RANGE", moe_ep.route, x, 2, "no such router")
    raises("ERR_SIZE", moe_ep.route, x, 2, "gpt_oss", logit_bias=np.zeros(3))
    assert raises("ERR_NAN", moe_ep.route, np.where(x == x[3, 4], np.nan, x), 2).index == 3 * 16 + 4
    try:
        moe_ep.route(x, 2, no_such_field=1)
    except TypeError as problem:
        assert "select_bias" in str(problem)
    else:
        raise AssertionError("an unknown field was taken")


def test_expert_loads():
    ids = np.random.default_rng(2).integers(-1, 9, (40, 3, 2))
    loads = moe_ep.expert_loads(ids, 9)
    for layer in range(3):
        assert loads[layer].tolist() == [(ids[:, layer] == e).sum() for e in range(9)]
    assert moe_ep.expert_loads([[1, 1], [0, 1], [2, 2]], 4).tolist() == [1, 3, 2, 0]
    problem = raises("ERR_EXPERT_ID", moe_ep.expert_loads, [[3, 300]], 256)
    assert problem.index == 1 and problem.value == 300 and "300" in str(problem)
    raises("ERR_RANGE", moe_ep.expert_loads, [[0.5]], 4)
    raises("ERR_RANGE", moe_ep.expert_loads, [[2**40]], 4)
    raises("ERR_ARGUMENT", moe_ep.expert_loads, [["a"]], 4)


def test_balance_and_chance():
    b = moe_ep.balance([960, 92, 92, 92, 91, 91, 91, 91])
    assert abs(b.imbalance - 4.8) < 1e-12 and b["argmax"] == 0 and abs(b.efficiency - 1 / 4.8) < 1e-12
    layers = moe_ep.balance_layers([[100, 0, 0, 0], [100, 0, 0, 0]])
    assert layers.avg_sum == 50 and layers.max_sum == 200 and layers.balancedness == 0.25
    dense_first = moe_ep.balance_layers([[0, 0], [60, 20]])
    assert abs(dense_first.sglang_balancedness - 5 / 6) < 1e-6 and abs(dense_first.mean_balancedness - 2 / 3) < 1e-12
    assert abs(moe_ep.chance(64, 2, 64).max_over_mean - 2.96) < 0.01
    assert abs(moe_ep.chance(16, 8, 256, 8).max_over_mean - 1.36) < 0.01
    assert abs(moe_ep.chance(64, 8, 256, 8, num_groups=8, top_groups=4).max_over_mean - 1.25) < 0.01
    assert abs(moe_ep.chance(64, 8, 256, num_groups=8, top_groups=4).max_over_mean - 3.43) < 0.02
    raises("ERR_CONFIG", moe_ep.chance, 64, 8, 256, 8, num_groups=7, top_groups=4)
    assert abs(moe_ep.efficiency([1800, 1100, 500, 150]) - 3550 / 7200) < 1e-12
    labs = [1000, 800, 600, 500, 300, 200, 100, 50]
    assert moe_ep.step_rows(labs, 4, [0, 0, 1, 1, 2, 2, 3, 3]) == 1800 and moe_ep.step_rows(labs, 4) == 1300
    raises("ERR_NEGATIVE", moe_ep.balance, [1, -1])
    raises("ERR_DEVICE_ID", moe_ep.step_rows, [1, 2], 2, [0, 2])
    raises("ERR_SIZE", moe_ep.step_rows, [1, 2], 2, [0])
    raises("ERR_TOP_K", moe_ep.chance, 10, 9, 8)


# ---- placement ----------------------------------------------------------------------------------------------------

def device_loads(phy2log, loads, gpus):
    out = np.zeros((len(phy2log), gpus))
    each = phy2log.shape[1] // gpus
    for layer, row in enumerate(phy2log):
        for slot, expert in enumerate(row):
            if expert >= 0:
                out[layer, slot // each] += loads[layer][expert] / (row == expert).sum()
    return out


def test_plan():
    loads = np.random.default_rng(3).lognormal(0, 1, (3, 24))
    for policy in ("best", "eplb", "trtllm", "lpt", "contiguous", "round-robin"):
        p = moe_ep.plan(loads, 4, 24 if policy == "lpt" else 32, policy)
        assert np.allclose(p.device_loads(loads), device_loads(p.slot_expert, loads, 4))
        assert np.allclose([r.max for r in p.results], p.device_loads(loads).max(1), rtol=1e-6)
        phy, log, count = p.maps()
        assert (phy == p.slot_expert).all()
        again = moe_ep.Placement.from_phy2log(phy, 24, 4, log, count)
        assert all((a == b).all() for a, b in zip(again.maps(), (phy, log, count)))
    assert moe_ep.plan(loads, 4, 32).results[0].policy == "best"
    assert [r.max for r in moe_ep.plan([600, 560, 120, 120, 20, 10, 10, 10], 8, 16).results] == [590 / 3]
    odd = moe_ep.plan(loads, 3, slots_per_device=[10, 9, 8], speed=[1.2, 1, 0.8])
    assert odd.slot_device.tolist() == [0] * 10 + [1] * 9 + [2] * 8
    steps = np.stack([loads, loads[:, ::-1]])
    assert len(moe_ep.plan(steps, 4).evaluate(steps)) == 3
    raises("ERR_RANGE", moe_ep.plan, loads, 4, 0, "luck")
    raises("ERR_SLOTS", moe_ep.plan, loads, 4, 20)
    raises("ERR_SIZE", moe_ep.plan, loads, 4, speed=[1, 2])
    raises("ERR_SIZE", moe_ep.plan(loads, 4).device_loads, loads[:2])
    raises("ERR_PLACEMENT", moe_ep.Placement.from_phy2log, [[0, 1]], 2, 2, [[[1], [0]]])


def test_split_and_assign():
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 500, 12)
    p = moe_ep.plan(counts, 4, 16)
    for policy in ("even", "exact", "least_loaded", "hash"):
        rows = p.split(counts, policy=policy)
        assert [rows[p.slot_expert[0] == e].sum() for e in range(12)] == counts.tolist()
        assert p.device_rows(rows).sum() == counts.sum()
        ids = rng.permutation(np.repeat(np.arange(12), counts)).reshape(-1, 1)
        slots = p.assign_slots(ids, rows)
        assert (np.bincount(slots.ravel(), minlength=16) == rows).all()
        assert (p.slot_expert[0][slots] == ids).all()
    assert p.assign_slots([-1], np.zeros(16)).tolist() == [-1]
    raises("ERR_SIZE", p.split, counts[:5])
    raises("ERR_RANGE", p.split, counts, 1)
    raises("ERR_CONFIG", p.assign_slots, [0], np.zeros(16))


def test_arrays_of_other_shapes_are_refused():
    """What C would read behind the end of, and what it would take for another layer's."""
    def refused(shape, field, call, *arguments, **named):
        problem = raises("ERR_SIZE", call, *arguments, **named)
        assert problem.arg == field and "%s has the shape %s, not (" % (field, shape) in str(problem), str(problem)

    x, table = np.zeros((3, 8)), np.array([[0, 1], [2, 3], [4, 5]])
    for array, named in (((1, 8), {"keys": np.zeros((1, 8))}), ((8,), {"keys": np.zeros(8)}),
                         ((8, 3), {"keys": np.zeros((8, 3))})):
        refused(array, "keys", moe_ep.route, x, 2, select="keys", **named)
    for bias in ("logit_bias", "select_bias", "per_expert_scale"):
        refused((2, 4), bias, moe_ep.route, x, 2, **{bias: np.zeros((2, 4))})
    assert "not (any, 4)" in str(raises("ERR_SIZE", moe_ep.route, x, 4, "hash", table=table))
    refused((3, 2), "table", moe_ep.route, x, 4, "hash", table=table)
    assert moe_ep.route(x, 2, "hash", table=table)[0].tolist() == table.tolist()
    keys = np.arange(24.0).reshape(3, 8)[:, ::-1]
    assert moe_ep.route(x, 1, select="keys", keys=keys)[0].ravel().tolist() == [0, 0, 0]
    assert moe_ep.route(x[:1], 1, select="keys", keys=keys[0])[0].tolist() == [[0]]
    for field, value in (("num_experts", 16), ("logits_stride", 16)):
        assert raises("ERR_SIZE", moe_ep.route, x, 2, **{field: value}).arg == field
    assert moe_ep.route(x, 2, logits_stride=8, num_experts=8)[0].tolist() == [[0, 1]] * 3

    w = np.random.default_rng(9).uniform(1, 2, (3, 64))
    for named in ({"layer_slots": [70]}, {"layer_slots": np.full(100, 70)}, {"pinned": np.zeros(64)},
                  {"home_node": np.zeros((64, 3)), "node_soft": 1, "num_nodes": 2},
                  {"coactivation": np.ones((64, 64)), "num_groups": 8}, {"speed": np.ones((2, 4))},
                  {"inactive": np.zeros(9)}, {"slots_per_device": [10]}):
        field = next(iter(named))
        refused(np.shape(named[field]), field, moe_ep.plan, w, 8, 80, **named)
    assert moe_ep.plan(w[0], 8, 80, pinned=np.full(64, -1)).num_layers == 1  # one layer needs no dimension for it
    assert moe_ep.plan(w[0], 8, 80, layer_slots=72).results[0].slots_used == 72
    phy = np.arange(8).reshape(1, 8)
    for named in ({"node_of_device": [0, 1], "num_nodes": 2}, {"speed": [1.0]}, {"slots_per_device": [8]}):
        field = next(iter(named))
        refused(np.shape(named[field]), field, moe_ep.Placement.from_phy2log, phy, 8, 4, **named)
    p = moe_ep.plan(w, 8, 80)
    refused((1,), "layer_slots", p.rebalance, w, layer_slots=[72])
    refused((64,), "source_counts", p.split, np.full(64, 8), policy="local_first", source_counts=np.full(64, 8))
    assert p.split(np.full(64, 8), policy="local_first", source_counts=np.ones((8, 64))).sum() == 512

    rows = np.full((4, 256), 100)
    D = {"num_devices": 16}
    traffic, nodes = np.full((4, 16, 16), 400), np.full((4, 16, 2), 400)
    both = dict(D, traffic=traffic[0], node_traffic=nodes[0], mode="node_dedup")
    refused((4, 4), "traffic", moe_ep.layer_time, rows[0], "deepseek-v3", "h200", traffic=traffic[0, :4, :4], **D)
    refused((4, 16, 16), "traffic", moe_ep.layer_time, rows[0], "deepseek-v3", "h200", traffic=traffic, **D)
    refused((16, 2), "node_traffic", moe_ep.layer_time, rows[0], "deepseek-v3", "h200", **dict(both, num_nodes=4))
    refused((16, 4), "node_traffic", moe_ep.layer_time, rows[0], "deepseek-v3", "h200",
            **dict(both, node_traffic=np.full((16, 4), 9)))
    one = moe_ep.layer_time(rows[0], "deepseek-v3", "h200", **both)
    for wrong in ({"traffic": traffic[0]}, {"traffic": traffic, "node_traffic": nodes[0]}):
        field = next(reversed(list(wrong)))
        refused(wrong[field].shape, field, moe_ep.step_time, rows, "deepseek-v3", "h200", **dict(both, **wrong))
    step = moe_ep.step_time(rows, "deepseek-v3", "h200", **dict(both, traffic=traffic, node_traffic=nodes))
    assert np.allclose(step.layer_s, one.total_s, rtol=1e-12)
    two = moe_ep.plan(np.ones(256), 16, 256, num_nodes=2)
    assert moe_ep.layer_time(rows[0], "deepseek-v3", "h200", two, **dict(both, num_devices=0)).total_s == one.total_s
    refused((16, 4), "node_traffic", moe_ep.layer_time, rows[0], "deepseek-v3", "h200", two,
            **dict(both, node_traffic=np.full((16, 4), 9)))
    raises("ERR_SIZE", moe_ep.layer_time, rows[0], "deepseek-v3", "h200", traffic=traffic[0])
    loads = np.ones((2, 1, 256))
    layer = {"traffic": traffic[0]}  # not looked at there
    assert moe_ep.diagnose(loads, loads, 16, model="deepseek-v3", machine="h200", layer=layer).before_s > 0


def test_structures_of_another_kind_are_refused():
    rows, model, machine = np.full(256, 100), moe_ep.model("deepseek-v3"), moe_ep.machine("h200")
    for arguments, words in (((machine, model), "model: moe_ep_model is needed, not moe_ep_machine"),
                             ((model, model), "machine: moe_ep_machine is needed, not moe_ep_model"),
                             ((5, machine), "model: moe_ep_model is needed, not int"),
                             (("deepseek-v3", 7), "machine: moe_ep_machine is needed, not int")):
        assert words in str(raises("ERR_RANGE", moe_ep.layer_time, rows, *arguments, num_devices=8))
    assert moe_ep.layer_time(rows, model, machine, num_devices=8).total_s > 0


def test_rebalance_and_moves():
    rng = np.random.default_rng(8)
    loads = rng.lognormal(0, 1, (3, 32))
    p = moe_ep.plan(loads, 4, 40)
    new = p.rebalance(loads[:, ::-1], max_moves=6)
    moves, totals = p.moves(new, expert_bytes=2.0)
    assert len(moves) == totals.moves <= 6 and totals.bytes == 2.0 * totals.moves
    phy, arrived = p.slot_expert, new.slot_expert
    for m in moves:
        assert phy[m["layer"], m["from_slot"]] == m["expert"] == arrived[m["layer"], m["to_slot"]]
    assert totals.staging == max(np.unique(moves["layer"] * 4 + moves["to_device"], return_counts=True)[1])
    assert (np.diff(moves["layer"]) >= 0).all() and moves["round"].max() == totals.rounds - 1
    before, after = ([r.max for r in q.evaluate(loads[:, ::-1])] for q in (p, new))
    assert all(a <= b for a, b in zip(after, before)) and sum(after) < sum(before)
    roomy = moe_ep.plan(loads, 4, 48)
    budget = {"layer_slots": [36, 32, 35], "max_replicas": 2}
    new = moe_ep.plan(loads, 4, 48, **budget).rebalance(loads[:, ::-1], **budget)
    assert all(r.max_replicas <= 2 and r.slots_used <= n for r, n in zip(new.results, budget["layer_slots"]))
    dead = roomy.rebalance(loads, dead=[2])
    assert (dead.slot_expert[:, 24:36] == -1).all() and set(dead.slot_expert[0]) - {-1} == set(range(32))
    raises("ERR_SLOTS", p.rebalance, loads, dead=[2])
    assert (p.slot_expert == phy).all()
    full = moe_ep.plan(loads[:, ::-1], 4, 40)
    assert p.moves(p.relabel(full))[1].moves <= p.moves(full)[1].moves
    assert len(p.moves(p)[0]) == 0
    raises("ERR_DEVICE_ID", p.rebalance, loads, dead=[4])


# ---- seconds ------------------------------------------------------------------------------------------------------

def test_layer_and_step_time():
    t = moe_ep.layer_time(np.full(256, 256), "deepseek-v3", "h800", num_devices=128, tokens=64, dispatch_wire="fp8")
    assert np.allclose([t.dispatch_s, t.compute_s, t.combine_s], [111.9e-6, 71.1e-6, 181.4e-6], rtol=0, atol=1e-7)
    assert len(t.devices) == 128 and t.devices[5].rows == 512 and t.devices[5].regime == "network"
    two = moe_ep.step_time(np.full((2, 256), 256), moe_ep.model("deepseek-v3", num_moe_layers=2, num_layers=2),
                           moe_ep.machine("h800"), num_devices=128, tokens=64, dispatch_wire="fp8")
    assert abs(two.step_s - 2 * t.total_s) < 1e-12 and two.layer_s.shape == (2,)
    p = moe_ep.plan(np.ones(256), 16, 288, num_nodes=2)
    rows = p.split(np.full(256, 64))
    assert "num_nodes=2" in repr(p)
    two_nodes = moe_ep.layer_time(rows, "deepseek-v3", "h200", p)
    assert two_nodes.max_rows >= 1024
    flat = moe_ep.plan(np.ones(256), 16, 288)  # one node for the planner, two for the wires: H200 come in eights
    assert moe_ep.layer_time(rows, "deepseek-v3", "h200", flat).total_s == two_nodes.total_s
    assert moe_ep.layer_time(rows, "deepseek-v3", "h200", flat, num_nodes=1).total_s < two_nodes.total_s
    rack = moe_ep.machine("h200", devices_per_node=16)
    assert moe_ep.layer_time(rows, "deepseek-v3", rack, flat).total_s < two_nodes.total_s
    assert "h200" in moe_ep.machines() and moe_ep.model("Qwen/Qwen3-30B-A3B").num_experts == 128
    assert "qwen3-30b-a3b" in moe_ep.models() and "memory_Bps" in repr(moe_ep.machine("h200"))
    raises("ERR_CONFIG", moe_ep.model, "no such model")
    raises("ERR_SIZE", moe_ep.layer_time, np.ones(5), "deepseek-v3", "h200", p)
    raises("ERR_RANGE", moe_ep.layer_time, np.ones(256), "deepseek-v3", "h200", num_devices=16, mode="pigeon")


def test_diagnose():
    loads = np.zeros((4, 1, 8))
    loads[:] = [960, 92, 92, 92, 91, 91, 91, 91]
    d = moe_ep.diagnose(loads, loads, 4, 12)
    assert d.verdict == "recommend" and d.reason == "pays" and d.before_rows == 1052 and "1052" in d.text
    assert d.plan.slot_expert.shape == (1, 12) and d.policy == "best"
    assert moe_ep.diagnose(loads, None, 4).verdict == "insufficient_evidence"
    kept = moe_ep.diagnose(loads, loads, 4, 12, current=d.plan, policy="eplb-global")
    assert kept.verdict == "not_now" and kept.before_rows == d.after_rows
    toy = moe_ep.model("deepseek-v3", num_experts=8, num_groups=0, top_groups=0)
    timed = moe_ep.diagnose(loads, loads, 4, 12, model=toy, machine="h200", layer={"dispatch_wire": "fp8"},
                            pause_s=1.0, horizon_steps=10)
    assert timed.before_s > timed.after_s > 0 and timed.reason == "break_even"
    raises("ERR_SIZE", moe_ep.diagnose, loads, loads[:, :, :4], 4)
    many = np.random.default_rng(7).poisson(np.linspace(100, 4000, 256), (4, 1, 256))
    timed = [moe_ep.diagnose(many, many, 16, 288, nodes, model="deepseek-v3", machine="h200") for nodes in (0, 2, 1)]
    assert timed[0].before_s == timed[1].before_s > timed[2].before_s and timed[0].plan.num_nodes == 2
    assert moe_ep.diagnose(many, many, 16, 288, current=timed[0].plan).plan.num_nodes == 2


# ---- the module -----------------------------------------------------------------------------------------------

def test_threads():
    want = moe_ep.rebalance_experts(EXAMPLE, 16, 4, 2, 8)[0]
    wrong = []

    def work():
        for _ in range(200):
            if (moe_ep.rebalance_experts(EXAMPLE, 16, 4, 2, 8)[0] != want).any():
                wrong.append(1)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_everything_is_documented():
    for name in moe_ep.__all__:
        thing = getattr(moe_ep, name)
        assert thing.__doc__, name
        for method, function in vars(thing).items() if isinstance(thing, type) else ():
            function = getattr(function, "__func__", function)
            if not method.startswith("_") and callable(function) and not isinstance(function, type):
                assert function.__doc__ or method in vars(thing.__mro__[1]), (name, method)


def header_text():
    with open("moe_ep.h", encoding="utf-8") as f:
        return re.sub(r"(?s)/\*.*?\*/", " ", f.read())


def enumerators(header, name):
    if name == "moe_ep_status":
        return ["MOE_EP_" + n for n in re.findall(r"\bX\((\w+), -?\d+, ", header)]
    body = re.search(r"typedef enum %s \{([^}]*)\}" % name, header).group(1)
    return [n for n in re.findall(r"\b(MOE_EP_\w+)", re.sub(r"=[^,]*", "", body)) if not n.endswith("_COUNT")]


def test_enumerations_are_complete():
    header = header_text()
    for name, (prefix, values) in moe_ep._ENUMS.items():
        assert enumerators(header, name) == [prefix + n.upper() for n in values], name


def test_version_is_checked():
    with open(moe_ep.__file__, encoding="utf-8") as f:
        text = re.sub(r"(?m)^__version__ = .*", '__version__ = "9.9.0"', f.read())
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "moe_ep.py"), "w", encoding="utf-8") as f:
            f.write(text)
        out = subprocess.run([sys.executable, "-c", "import moe_ep"], capture_output=True, text=True, cwd=folder,
                             env=dict(os.environ, PYTHONPATH=folder,
                                      MOE_EP_LIBRARY=os.path.abspath(moe_ep.library_path)))
    assert out.returncode and "this file is for 9.9.0" in out.stderr, out.stderr


def test_servers_are_served_without_an_edit():
    """Packages laid out as the servers', and the sitecustomize.py of the README."""
    with open("examples/python/README.md", encoding="utf-8") as f:
        site = re.search(r"(?ms)^```python\n(# sitecustomize.py.*?)^```", f.read()).group(1)
    files = {
        "sitecustomize.py": site,
        "vllm/distributed/eplb/policy/__init__.py": "from .default import DefaultEplbPolicy\n",
        "vllm/distributed/eplb/policy/default.py": "raise RuntimeError('the server has its own planner')\n",
        "vllm/distributed/eplb/rebalance_algo.py": "raise RuntimeError('the server has its own planner')\n",
        "vllm/distributed/eplb/eplb_state.py": "from .policy import DefaultEplbPolicy\n"
                                               "from .rebalance_algo import rebalance_experts\n",
        "sglang/srt/eplb/eplb_algorithms/__init__.py": "raise RuntimeError('the server has its own planner')\n",
        "sglang/srt/eplb/expert_location.py": "from sglang.srt.eplb import eplb_algorithms\n",
        "sglang/srt/elastic_ep/elastic_ep.py": "class ElasticEPStateManager:\n    active_ranks = [1, 0, 1, 1, 1]\n"
                                               "    instance = classmethod(lambda state: state)\n",
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        program = """if True:
            import sitecustomize, eplb, numpy
            from vllm.distributed.eplb import eplb_state as v
            from sglang.srt.eplb import expert_location as s
            w = numpy.arange(8.0).reshape(1, 8)
            a = v.DefaultEplbPolicy.rebalance_experts(w, 8, 1, 1, 4, None)
            b = v.rebalance_experts(w, 8, 1, 1, 4)[0]
            c = s.eplb_algorithms.rebalance_experts(tokens_per_expert=w[None], num_physical_experts=8,
                num_local_physical_experts=2, num_groups=None, num_nodes=1,
                algorithm=s.eplb_algorithms.compute_algorithm(raw_algorithm="auto", num_groups=None, num_nodes=1))[0]
            d = eplb.rebalance_experts(w, 8, 1, 1, 4)[0]
            e = s.eplb_algorithms.rebalance_experts(tokens_per_expert=w[None], num_physical_experts=10,
                num_local_physical_experts=2, num_groups=None, num_nodes=1,
                algorithm=s.eplb_algorithms.compute_algorithm("elasticity_aware", None, 1))
            assert sorted(e[0][0]) == [0, 0] + list(range(8)) and not ((e[1] == 2) | (e[1] == 3)).any()
            assert (a == b).all() and (b == c).all() and (c == d).all() and a.shape == (1, 8)
        """
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder,
                             env=dict(os.environ, PYTHONPATH=os.pathsep.join((folder, HERE)),
                                      MOE_EP_LIBRARY=os.path.abspath(moe_ep.library_path)))
    assert out.returncode == 0, out.stderr


def readme(update=False):
    """Runs the python and sh blocks of the README in one go; a text block behind one must be what it printed."""
    bad, ran, got, names, path = 0, 0, None, {}, "examples/python/README.md"
    with open(path, encoding="utf-8") as f:
        parts = re.split(r"(?ms)^(```\w+\n.*?^```\n)", f.read())
    for i in range(1, len(parts), 2):
        kind, text = re.match(r"(?s)```(\w+)\n(.*)```\n", parts[i]).groups()
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, "README block %d" % ran, "exec"), names)
            got, ran = out.getvalue(), ran + 1
        elif kind == "sh":
            got = subprocess.run(text.replace("python3", sys.executable), shell=True, capture_output=True,
                                 text=True, check=True).stdout
            ran += 1
        elif kind == "text":
            if got != text and update:
                parts[i] = "```text\n%s```\n" % got
            elif got != text:
                bad += 1
                print("README says:\n%sbut it printed:\n%s" % (text, got))
            got = None
    if update:
        with open(path, "w", encoding="utf-8") as f:
            f.write("".join(parts))
    print("%d blocks ran" % ran)
    return 1 if bad or ran < 3 else 0


def structs():
    """The declarations of every _struct and _enum of moe_ep.py, anew from the header."""
    header = header_text()
    for name in ("MOE_EP_MATH_COUNT", "MOE_EP_LINK_LEVELS"):
        header = re.sub(r"\b%s\b" % name, re.search(r"\b%s = (\d+)" % name, header).group(1), header)

    def declarations(name):
        text, last = [], None
        body = re.search(r"(?s)typedef struct %s \{(.*?)\} %s;" % (name, name), header).group(1)
        for line in body.split(";"):
            words = re.fullmatch(r"(?:const )?(\w+) ?(.+)", " ".join(line.split()))
            if not words:
                continue
            kind, names = words.groups()
            if "*" in names and kind not in moe_ep._TYPES:
                kind = "void"
            text.append((", " if kind == last else "; " * bool(text) + kind + " ") + names)
            last = kind
        return "".join(text) + ";"

    def block(match):
        lines = textwrap.wrap(declarations(match.group(1)), 112)
        if len(lines) == 1 and len(lines[0]) + len(match.group(1)) < 100:
            return '_struct("%s", "%s")' % (match.group(1), lines[0])
        return '_struct("%s", """\n    %s""")' % (match.group(1), "\n    ".join(lines))

    with open(moe_ep.__file__, encoding="utf-8") as f:
        module = f.read()
    module = re.sub(r'(?ms)^_struct\("(\w+)", (?:"""|").*?"\)$', block, module)

    def names(match):
        name, prefix = match.groups()
        text = " ".join(n[len(prefix):].lower() for n in enumerators(header, name))
        line = '_enum("%s", "%s", "%s")' % (name, prefix, text)
        return line if len(line) <= 120 else '_enum("%s", "%s",\n      "%s")' % (name, prefix, text)
    module = re.sub(r'(?ms)^_enum\("(?!moe_ep_status)(\w+)", "(\w+)",\s+"[^"]*"\)$', names, module)
    with open(moe_ep.__file__, "w", encoding="utf-8") as f:
        f.write(module)
    return 0


def main():
    failed = 0
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            title = name[5:].replace("_", " ")
            try:
                test()
                print("  ok   " + title)
            except Skip as reason:
                print("  skip %s: %s" % (title, reason))
            except Exception:
                failed += 1
                print("  FAIL " + title)
                traceback.print_exc(file=sys.stdout)
    return 1 if failed else 0


if __name__ == "__main__":
    actions = {"--readme": readme, "--update": lambda: readme(True), "--structs": structs}
    sys.exit(actions.get("".join(sys.argv[1:]), main)())
