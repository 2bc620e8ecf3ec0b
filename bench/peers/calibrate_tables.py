# bench/peers/calibrate_tables.py - other projects' measured tables into the lines that bench/peers/calibrate.c reads.
# SPDX-License-Identifier: MIT
#
# usage: python3 calibrate_tables.py TABLES OUT
# TABLES is searched for CSV files (parquet, too, where pyarrow is installed) named as in ai-dynamo/aiconfigurator
# (nccl_perf, wideep_deepep_ll_perf, wideep_deepep_normal_perf, trtllm_alltoall_perf, moe_perf with its balanced rows)
# and alibaba/InferSim (bench_data/grouped_gemm/*/*/data.csv).  One file per table goes to OUT; nothing of them is
# kept in this repository.  Bytes are those a device sends under uniform routing: a row per (token, expert) in the
# low-latency tables, per (token, device) and (token, node) in the normal ones, per (token, device) over NVLink.
import collections
import csv
import os
import sys
from math import comb

MATH = {"bfloat16": (0, 2, 2), "fp8": (1, 1, 1), "fp8_block": (1, 1, 1), "int4_wo": (0, 0.5, 2),
        "w4a16_mxfp4": (0, 0.53, 2),
        "nvfp4": (2, 0.5625, 0.5625)}  # format of the products, bytes of a weight, of an activation read


def rows_of(path):
    if path.endswith(".csv"):
        with open(path, newline="") as f:
            yield from csv.DictReader(f)
    elif path.endswith(".parquet"):
        import pyarrow.parquet as parquet
        for row in parquet.read_table(path).to_pylist():
            yield {k: str(v) for k, v in row.items()}


def distinct(experts, groups, k):
    return groups * (1 - comb(experts - experts // groups, k) / comb(experts, k)) if groups > 1 else 1.0


def numbers(row, *names):
    return [int(float(row[n])) for n in names]


def low_latency(row, out):
    nodes, H, T, K, E = numbers(row, "node_num", "hidden_size", "num_token", "num_topk", "num_experts")
    pairs, near, far = T * K, T * K * 7 / (8 * nodes), T * K * (1 - 1 / nodes)
    for phase, wire in (("dispatch", H + 4 * -(-H // 128) + 16), ("combine", 2 * H)):
        out[phase].append(f"L {near * wire} {far * wire} {pairs} {E} {float(row[phase + '_avg_t_us']) * 1e-6}")


def normal(row, out):
    nodes, H, T, K, E = numbers(row, "node_num", "hidden_size", "num_token", "num_topk", "num_experts")
    D = 8 * nodes
    rows = T * distinct(E, D, K)
    far = T * distinct(E, nodes, K) * (1 - 1 / nodes)
    for phase, wire in (("dispatch", H + 4 * -(-H // 128)), ("combine", 2 * H)):
        sms = numbers(row, phase + "_sms")[0]
        out[f"{phase}_sm{sms}"].append(
            f"L {rows * 7 / 8 * wire} {far * wire} {rows} {D} {float(row[phase + '_transmit_us']) * 1e-6}")


def nvlink(row, out):
    H, T, K, E, D = numbers(row, "hidden_size", "num_tokens", "topk", "num_experts", "moe_ep_size")
    wire = {"fp8": H, "nvfp4": H // 2 + H // 16}.get(row["moe_dtype"], 2 * H) if "dispatch" in row["op_name"] else 2 * H
    rows = T * distinct(E, D, K)
    name = f"{row['kernel_source']}_{row['op_name']}_{row['moe_dtype']}"
    out[name].append(f"L {rows * (1 - 1 / D) * wire} 0 {rows} {D} {float(row['latency']) * 1e-3}")


def nccl(row, out):
    if "alltoall" not in row["op_name"]:
        return
    D, elements = numbers(row, "num_gpus", "message_size")
    size = elements * {"half": 2, "int8": 1}[row["nccl_dtype"]]
    out[row["nccl_dtype"]].append(f"L {size * (1 - 1 / D)} 0 0 {D} {float(row['latency']) * 1e-3}")


def moe(row, out):
    if row["distribution"] != "balanced" or row["moe_dtype"] not in MATH or "nongated" in row["kernel_source"]:
        return
    names = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size", "num_tokens")
    H, I, K, E, tp, ep, T = numbers(row, *names)
    if I % tp or E % ep:
        return
    math, weight, read = MATH[row["moe_dtype"]]
    line = f"E {math} {H} {I // tp} 0 {E // ep} {T * K / E} {weight} {read} 2 {float(row['latency']) * 1e-3} {E} {K}"
    out[f"{row['kernel_source']}_{row['moe_dtype']}_all"].append(line)
    out[f"{row['kernel_source']}_{row['moe_dtype']}_{H}-{I}-{E}-{K}"].append(line)


def gemm(row, out):
    H, I, slots, each = numbers(row, "hidden_size", "intermediate_size", "num_local_experts", "tokens_per_expert")
    for product, name in ((1, "up_proj_us"), (2, "down_proj_us")):
        if each > 0:
            out["gemm"].append(f"E 1 {H} {I} {product} {slots} {each} 1 1 2 {float(row[name]) * 1e-6} 0 0")


KINDS = (("deepep_ll_perf", "ll", low_latency), ("deepep_normal_perf", "normal", normal), ("nccl_perf", "nccl", nccl),
         ("trtllm_alltoall_perf", "nvlink", nvlink), ("moe_perf", "moe", moe), ("grouped_gemm", "gemm", gemm))


def main():
    source, target = sys.argv[1:3]
    os.makedirs(target, exist_ok=True)
    for folder, _, files in sorted(os.walk(source)):
        for name in sorted(files):
            path = os.path.join(folder, name)
            kind = next((k for k in KINDS if k[0] in path), None)
            if not kind or not name.endswith((".csv", ".parquet")) or "wideep_" in name and "moe_perf" in name:
                continue
            out = collections.defaultdict(list)
            for row in rows_of(path):
                kind[2](row, out)
            place = os.path.relpath(path, source).rsplit(".", 1)[0].replace(os.sep, "_")
            for table, lines in out.items():
                with open(os.path.join(target, f"{kind[1]}_{place}_{table}.txt".replace(" ", "_")), "w") as f:
                    f.write("\n".join(lines) + "\n")


main()
