# bench/peers/router_peer.py - two routers written in torch, run on the logits that bench_route gives it.
# SPDX-License-Identifier: MIT
#
# usage: python3 router_peer.py FILE TOKENS EXPERTS TOP_K THREADS
# FILE holds TOKENS*EXPERTS float32 logits, then EXPERTS float32 biases.  For every line read, "0" or "1", that router
# is called once and its milliseconds are printed: 0 = softmax and top-k; 1 = sigmoid + bias, 8 groups by the sum
# of their two best, 4 open, divided by the sum, x 2.5 (the rule of DeepSeek-V3, one tensor operation per step).
import sys
import time

import numpy
import torch

path = sys.argv[1]
tokens, experts, k, threads = map(int, sys.argv[2:6])
torch.set_num_threads(threads)
data = torch.from_numpy(numpy.fromfile(path, dtype=numpy.float32))
logits, bias = data[: tokens * experts].reshape(tokens, experts), data[tokens * experts :]


def softmax_topk():
    weights, ids = torch.topk(torch.softmax(logits, dim=-1), k, dim=-1)
    return ids, weights


def grouped_sigmoid():
    scores = torch.sigmoid(logits)
    keys = scores + bias
    groups = torch.topk(keys.view(tokens, 8, -1), 2, dim=-1)[0].sum(dim=-1)
    best = torch.topk(groups, 4, dim=-1)[1]
    closed = torch.ones_like(groups, dtype=torch.bool).scatter_(1, best, False)
    keys = keys.view(tokens, 8, -1).masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)
    ids = torch.topk(keys, k, dim=-1)[1]
    weights = scores.gather(1, ids)
    return ids, weights / weights.sum(dim=-1, keepdim=True) * 2.5


with torch.no_grad():
    for line in sys.stdin:
        router = grouped_sigmoid if line.strip() == "1" else softmax_topk
        start = time.perf_counter()
        router()
        print((time.perf_counter() - start) * 1e3, flush=True)
