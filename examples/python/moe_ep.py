# moe_ep.py - moe_ep.h from Python: one file, ctypes and numpy, nothing to compile but `make lib`
# SPDX-License-Identifier: MIT
"""Mixture-of-Experts routing and expert-parallel load-balance maths, from Python.

    import moe_ep
    phy2log, log2phy, logcnt = moe_ep.rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus)

The entry points that serving stacks call return what theirs return (torch tensors for torch tensors, numpy arrays
otherwise, int64):

    rebalance_experts           DeepSeek's eplb.py, vLLM's rebalance_algo, SGLang's deepseek and elasticity_aware
    DefaultEplbPolicy           vLLM's policy class (returns physical_to_logical only)
    DefaultEplbPolicyWithMaps   the same where the class returns three maps
    eplb_algorithms             SGLang's dispatcher
    BestEplbPolicy, rebalance_experts_best   the same signatures, but a plan that is never busier

Everything else: route, expert_loads, balance, chance, plan (a Placement: maps, device_loads, split, rebalance, moves),
diagnose, step_rows, layer_time, step_time.  A bad argument is a MoeEpError (a ValueError) that names it.

The library is looked for in $MOE_EP_LIBRARY (a file), beside this file, in the build/ of the repository, and where the
system looks.  Calls release Python's lock.
"""
import contextlib
import ctypes
import ctypes.util
import enum
import importlib
import operator
import os
import re
import sys
import warnings

import numpy as np

__version__ = "0.1.0"
__all__ = ["rebalance_experts", "rebalance_experts_best", "DefaultEplbPolicy", "DefaultEplbPolicyWithMaps",
           "BestEplbPolicy", "eplb_algorithms", "balanced_packing", "replicate_experts", "MoeEpError", "Placement",
           "route", "routers", "expert_loads", "balance", "balance_layers", "chance", "plan", "diagnose",
           "step_rows", "efficiency", "model", "models", "machine", "machines", "layer_time", "step_time"]

# ---- the C side: enumerations, structures, functions ---------------------------------------------------------
# Written as in moe_ep.h.  tests/python.sh compares every size, offset, value and signature with the header;
# tests/python_test.py --structs rewrites the structures after fields were added there.

_TYPES = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint8_t": ctypes.c_uint8, "size_t": ctypes.c_size_t,
          "uint64_t": ctypes.c_uint64, "float": ctypes.c_float, "double": ctypes.c_double, "char": ctypes.c_char,
          "int": ctypes.c_int}
_NUMPY = {"int32_t": np.int32, "int64_t": np.int64, "uint8_t": np.uint8, "float": np.float32, "double": np.float64}
_ENUMS = {}    # C name -> (prefix of its constants, {name: value})
_STRUCTS = {}  # C name -> ctypes class


def _enum(name, prefix, names, step=1):
    _ENUMS[name] = (prefix, {n: step * i for i, n in enumerate(names.split())})
    _TYPES[name] = ctypes.c_int32


class _Struct(ctypes.Structure):
    def __repr__(self):
        return repr(_result(self))


def _struct(name, declarations):
    fields, kinds = [], {}
    for base, names in re.findall(r"(\w+)\s+([^;]+);", declarations):
        for field in "".join(names.split()).split(","):
            if field.startswith("*"):
                field = field[1:]
                kinds[field] = "*" + base
                fields.append((field, ctypes.c_char_p if base == "char" else ctypes.c_void_p))
            elif "[" in field:
                field, size = field[:-1].split("[")
                kinds[field] = base
                fields.append((field, _TYPES[base] * int(size)))
            else:
                kinds[field] = base
                fields.append((field, _TYPES[base]))
    _TYPES[name] = _STRUCTS[name] = type(name, (_Struct,), {"_fields_": fields, "_kinds": kinds})


_enum("moe_ep_status", "MOE_EP_", "OK ERR_NULL ERR_SIZE ERR_RANGE ERR_EXPERT_ID ERR_DEVICE_ID ERR_TOP_K ERR_NAN "
      "ERR_NEGATIVE ERR_OVERFLOW ERR_SCRATCH ERR_MEMORY ERR_SLOTS ERR_CONFIG ERR_PLACEMENT ERR_LOST_EXPERT "
      "ERR_INFEASIBLE ERR_UNSUPPORTED", -1)
_enum("moe_ep_isa", "MOE_EP_ISA_", "auto portable avx2 avx512 neon")
_enum("moe_ep_score", "MOE_EP_SCORE_", "logit softmax sigmoid sqrt_softplus")
_enum("moe_ep_select", "MOE_EP_SELECT_", "topk sparsemixer table keys")
_enum("moe_ep_weight", "MOE_EP_WEIGHT_", "score softmax_of_selected sigmoid_of_logit one")
_enum("moe_ep_eps_mode", "MOE_EP_EPS_", "none add clamp")
_enum("moe_ep_place_policy", "MOE_EP_PLACE_",
      "given round_robin contiguous lpt eplb_global eplb_hierarchical trtllm best rebalance")
_enum("moe_ep_eplb_mode", "MOE_EP_EPLB_", "auto global hierarchical")
_enum("moe_ep_bound", "MOE_EP_BOUND_", "mean replica slots")
_enum("moe_ep_split_policy", "MOE_EP_SPLIT_", "even round_robin hash random local_first least_loaded exact")
_enum("moe_ep_math", "MOE_EP_MATH_", "bf16 fp8 fp4")
_enum("moe_ep_regime", "MOE_EP_REGIME_", "idle weights flops network")
_enum("moe_ep_a2a_mode", "MOE_EP_A2A_", "pair rank_dedup node_dedup padded allgather")
_enum("moe_ep_wire", "MOE_EP_WIRE_", "bf16 fp32 fp8 mxfp8 nvfp4")
_enum("moe_ep_overlap", "MOE_EP_OVERLAP_", "none shared two_exposed two_hidden two_staggered")
_enum("moe_ep_verdict", "MOE_EP_", "insufficient_evidence not_now recommend")
_enum("moe_ep_verdict_reason", "MOE_EP_REASON_",
      "no_judge_window no_load few_steps balanced chance small_gain unreliable noise break_even pays")

_struct("moe_ep_error", "moe_ep_status status; char *arg, *what; int64_t index; double value;")
_struct("moe_ep_router", """
    int32_t num_experts, top_k; moe_ep_score score; moe_ep_select select; moe_ep_weight weight; int32_t
    select_on_logit; float logit_softcap, *logit_bias, *select_bias; int32_t n_group, topk_group, group_top_m,
    mask_zero, group_top_k, renorm; float renorm_p; int32_t renorm_skip_k1; moe_ep_eps_mode eps_mode; float eps,
    scale; int32_t scale_only_without_renorm; float *per_expert_scale, sparsemixer_jitter; int32_t num_null,
    weight_on_input, nan_as_masked; int64_t logits_stride; int32_t *table; int64_t table_rows; float *keys;
    moe_ep_isa isa_max;""")
_struct("moe_ep_ids", """
    int32_t *ids; int64_t num_tokens; int32_t num_layers, top_k, num_experts; int64_t token_stride, layer_stride;""")
_struct("moe_ep_balance_result", """
    int32_t n, zero_load, argmax, argmin, active; double sum, mean, max, min, p50, p95, p99, std, imbalance,
    balancedness, sglang_utilization, maxvio, minvio, cv_population, cv_sample, cv2_sample, entropy_nats,
    entropy_norm, perplexity, kl_from_uniform_nats, gini, jain, hhi, effective_experts, idle_fraction,
    max_minus_mean, max_over_min, step_time, efficiency, step_inflation;""")
_struct("moe_ep_layers_result", """
    int32_t num_layers, loaded_layers, worst_layer; double worst_imbalance, mean_imbalance, p50, p90, p95, p99,
    mean_balancedness, mean_of_layer_ratios, avg_sum, max_sum, balancedness, imbalance, imbalance_of_sum,
    balancedness_wrong_axis, sglang_balancedness;""")
_struct("moe_ep_chance_result", """
    double mean_load, max_over_mean, sd, p05, p95, one_sd, one_p05, one_p95, distinct, tokens, gauss_bound;""")
_struct("moe_ep_shape", """
    int32_t num_devices, num_slots, num_nodes, *slots_per_device, *node_of_device; double *speed; uint8_t *inactive;""")
_struct("moe_ep_placement", """
    int32_t num_layers, num_experts, num_devices, num_nodes, num_slots, *slot_start, *slot_device, *device_node,
    *slot_expert, *replica_start, *replica_slot; double *device_speed; uint8_t *device_inactive;""")
_struct("moe_ep_place_desc", """
    int32_t num_layers, num_experts; moe_ep_shape shape; double *loads; int32_t num_groups; moe_ep_eplb_mode
    eplb_mode; int32_t num_steps; double risk_z; int32_t *layer_slots, *pinned, max_replicas, max_refinements,
    node_soft; double max_off_node; int32_t *home_node; int64_t *coactivation; double coactivation_slack; int32_t
    allow_duplicates;""")
_struct("moe_ep_plan_result", """
    moe_ep_place_policy policy; char *reason; double total, mean, max_before, max, lower_bound, gap, imbalance,
    node_imbalance, off_node; moe_ep_bound bound; int32_t busiest_device, slots_used, duplicates, max_replicas,
    refinements, moves;""")
_struct("moe_ep_split_desc", """
    moe_ep_split_policy policy; uint64_t seed; int64_t *source_counts; int32_t max_sweeps;""")
_struct("moe_ep_rebalance_desc", """
    moe_ep_placement *current; double *loads, target; int64_t max_moves; int32_t max_layer_moves, max_device_moves,
    max_link_moves, max_replicas, *layer_slots;""")
_struct("moe_ep_move", "int32_t layer, expert, from_slot, to_slot, from_device, to_device, round;")
_struct("moe_ep_moves_result", """
    int64_t moves, slot_changes, cross_node, lost, unchanged, rounds, max_in, max_out; double bytes; int64_t
    staging;""")
_struct("moe_ep_model", """
    char *name, *source; int32_t num_layers, num_moe_layers, num_experts, top_k, num_groups, top_groups, num_shared,
    hidden, inter, shared_inter, dense_inter, ungated, vocab, tied; int64_t attention_params; int32_t kv_elems;
    moe_ep_math math; double weight_bytes, other_weight_bytes, in_bytes, out_bytes, kv_bytes; int64_t
    attention_flops; int32_t attention_window, window_layers; int64_t index_flops; double index_bytes,
    shared_weight_bytes, embedding_weight_bytes;""")
_struct("moe_ep_gemm", """
    double t0_s, mem_eff, flop_eff, p; int32_t tile; double expert_s, row_byte_s, t0_p, other_byte_s; int32_t
    other_reached, other_multiplied, small_tokens; double small_byte, small_t0;""")
_struct("moe_ep_link", """
    double alpha_s, intra_Bps, inter_Bps, p; int32_t alpha_in_norm; double row_s, peer_s, alpha_p, row_byte_s,
    pair_Bps, crowd_s, short_s, short_Bps; int32_t num_levels; double level_peers[8], level_a[8], level_bytes[8];""")
_struct("moe_ep_machine", """
    char *name, *source; int32_t devices_per_node; double memory_bytes, memory_Bps, flops[3]; moe_ep_gemm gemm;
    moe_ep_link ll_dispatch, ll_combine, normal_dispatch, normal_combine;""")
_struct("moe_ep_device_time", """
    int64_t rows, padded_rows; int32_t active; moe_ep_regime regime; double dispatch_s, compute_s, combine_s,
    memory_s, flop_s;""")
_struct("moe_ep_layer_desc", """
    moe_ep_model *model; moe_ep_machine *machine; moe_ep_placement *placement; int32_t num_devices, num_slots,
    num_nodes; int64_t tokens; int32_t high_throughput; moe_ep_a2a_mode mode; moe_ep_wire dispatch_wire,
    combine_wire; int32_t dispatch_extra, combine_extra; double capacity; int64_t *traffic, *node_traffic;
    moe_ep_overlap overlap; double attention_s, attention_half_s, microbatch_s; void *hooks;""")
_struct("moe_ep_time_result", """
    double total_s, serial_s, no_barrier_s, dispatch_s, compute_s, combine_s, shared_s; moe_ep_regime regime;
    int32_t slowest_device, busiest_device; int64_t max_rows; int32_t max_active; double mean_compute_s, balanced_s,
    balanced_total_s;""")
_struct("moe_ep_step_desc", """
    moe_ep_layer_desc layer; int32_t num_layers; double other_s, tokens_per_pass; int32_t rows_per_sequence;""")
_struct("moe_ep_step_result", """
    double step_s, tpot_s, tokens_per_s_device, tokens_per_s_node, serial_s, no_barrier_s, dispatch_s, compute_s,
    combine_s, shared_s, balanced_s; int32_t slowest_layer; double slowest_layer_s; int64_t max_rows; double
    balanced_step_s;""")
_struct("moe_ep_diagnose_desc", """
    int32_t num_layers, num_experts, top_k, num_groups; moe_ep_shape shape; moe_ep_place_policy policy;
    moe_ep_placement *current; double *plan_loads; int32_t plan_steps; double *judge_loads; int32_t judge_steps;
    moe_ep_layer_desc *cost; double other_s, expert_bytes, move_Bps, pause_s, horizon_steps, target_imbalance,
    min_gain, min_improved; int32_t min_steps, top_groups, router_groups; double min_sigmas;""")
_struct("moe_ep_diagnosis", """
    moe_ep_verdict verdict; moe_ep_verdict_reason reason; char text[320]; moe_ep_place_policy policy; int32_t steps,
    layers_loaded, hot_device, hot_layer; double hot_share, hot_imbalance, mean_rows, before_rows, after_rows,
    bound_rows, imbalance_before, imbalance_after, imbalance_bound, chance_imbalance, before_s, after_s, balanced_s,
    gain, speedup, improved; int64_t moves; double move_bytes, move_s, break_even_steps, hot_own, gain_sd,
    improved_wanted;""")

# Function: result, then arguments, in letters: i int32, q int64, Q size_t, d double, s text, p pointer, v none.
_CALLS = {name: (letters[0], letters[1:]) for name, letters in (line.split() for line in """
    moe_ep_version s
    moe_ep_error_text QppQ
    moe_ep_router_count i
    moe_ep_router_name si
    moe_ep_router_by_name isiipp
    moe_ep_route ippqpppp
    moe_ep_expert_loads ipqippp
    moe_ep_layer_loads ipppp
    moe_ep_balance_d ipippp
    moe_ep_balance_layers_d ipiippp
    moe_ep_chance iqiipp
    moe_ep_chance_devices iqiiipp
    moe_ep_chance_grouped iqiiiiipp
    moe_ep_placement_bytes Qiip
    moe_ep_placement_init ipiippQp
    moe_ep_placement_copy ippp
    moe_ep_placement_from_eplb ippippp
    moe_ep_place_round_robin ippppp
    moe_ep_place_contiguous ippppp
    moe_ep_place_lpt ippppp
    moe_ep_place_eplb ippppp
    moe_ep_place_trtllm ippppp
    moe_ep_best_placement ippppp
    moe_ep_max_replicas qpp
    moe_ep_eplb_arrays ipipppp
    moe_ep_device_loads ipppp
    moe_ep_evaluate ippippp
    moe_ep_split ippipppp
    moe_ep_device_rows ipppp
    moe_ep_assign_slots ipipqpppp
    moe_ep_rebalance ippppp
    moe_ep_plan_moves ippdpqppp
    moe_ep_relabel ippipp
    moe_ep_step_time qpipip
    moe_ep_efficiency_d dpip
    moe_ep_model_preset_name si
    moe_ep_model_by_name ispp
    moe_ep_machine_preset_name si
    moe_ep_machine_by_name ispp
    moe_ep_layer_time ippppp
    moe_ep_step ippppp
    moe_ep_diagnose_thresholds vp
    moe_ep_diagnose ippppp
""".strip().splitlines())}
_LETTERS = {"i": ctypes.c_int32, "q": ctypes.c_int64, "Q": ctypes.c_size_t, "d": ctypes.c_double,
            "s": ctypes.c_char_p, "p": ctypes.c_void_p, "v": None}


class MoeEpError(ValueError):
    """What the library says is wrong.  status ("ERR_EXPERT_ID"), arg, index (-1: none; flat), place (the same as a
    tuple for an array of several dimensions), value; str() is a sentence."""

    def __init__(self, text, status="ERR_ARGUMENT", arg="", index=-1, value=0.0, place=()):
        super().__init__(text)
        self.status, self.arg, self.index, self.value, self.place = status, arg, index, value, place


class PlanError(MoeEpError, AssertionError):
    """A MoeEpError of the entry points that replace eplb.py, which asserts what it is given."""


def _library_files():
    here = os.path.dirname(os.path.abspath(__file__))
    if os.environ.get("MOE_EP_LIBRARY"):
        yield os.environ["MOE_EP_LIBRARY"]
        return
    for folder in (here, os.path.join(here, "..", "..", "build"), os.path.join(here, "build"), "build"):
        for name in ("libmoe_ep.so.0", "libmoe_ep.so"):
            if os.path.exists(os.path.join(folder, name)):
                yield os.path.abspath(os.path.join(folder, name))
    yield "libmoe_ep.so.0"
    found = ctypes.util.find_library("moe_ep")
    if found:
        yield found


def _load():
    tried = []
    for path in _library_files():
        try:
            library = ctypes.CDLL(path)
        except OSError as problem:
            tried.append("  %s: %s" % (path, problem))
            continue
        for name, (result, arguments) in _CALLS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = _LETTERS[result], [_LETTERS[a] for a in arguments]
        version = library.moe_ep_version().decode()
        if version.split(".")[:2] != __version__.split(".")[:2]:
            raise ImportError("%s is version %s, this file is for %s" % (path, version, __version__))
        return library, path
    raise ImportError("libmoe_ep.so was not found: run `make lib` in the repository, or set MOE_EP_LIBRARY to the "
                      "file.  Tried:\n" + "\n".join(tried))


_lib, library_path = _load()


# ---- from Python to C and back --------------------------------------------------------------------------------

def _array(x, dtype, name, dims=None):
    """Anything array-like, tensors of torch included, as a contiguous array of dtype; never loses a value."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        if x.is_floating_point():
            x = x.float() if x.element_size() < 8 else x.double()
        x = x.numpy()
    try:
        a = np.asarray(x)
    except ValueError:  # rows that differ in length, since numpy 1.24
        a = np.empty(0, object)
    if a.dtype == object or a.dtype.kind not in "biuf":
        raise MoeEpError("%s holds no numbers, or its rows differ in length" % name, arg=name)
    if dims is not None and a.ndim not in (dims if isinstance(dims, tuple) else (dims,)):
        wanted = " or ".join(map(str, dims)) if isinstance(dims, tuple) else dims
        raise MoeEpError("%s has %d dimension%s, not %s" % (name, a.ndim, "" if a.ndim == 1 else "s", wanted),
                         "ERR_SIZE", name)
    if np.dtype(dtype).kind == "i" and a.size:
        if a.dtype.kind == "f" and not np.array_equal(a, np.rint(a)):
            raise MoeEpError("%s holds numbers that are not whole" % name, "ERR_RANGE", name)
        limits = np.iinfo(dtype)
        if a.max() > limits.max or a.min() < limits.min:
            raise MoeEpError("%s holds numbers that do not fit %s" % (name, limits.dtype), "ERR_RANGE", name)
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(a, dtype=dtype)
    if np.dtype(dtype).itemsize < 8 and out.dtype.kind == "f" and a.dtype.kind != "b":
        lost = np.flatnonzero(np.isinf(out) & np.isfinite(a))
        if lost.size:
            place = tuple(int(i) for i in np.unravel_index(lost[0], a.shape))
            raise MoeEpError("%s[%s] = %g does not fit %s" % (name, ", ".join(map(str, place)), a[place], out.dtype),
                             "ERR_RANGE", name, int(lost[0]), float(a[place]), place)
    return out


def _whole(x, name, least=None):
    """x as an int; what is none is an error that says which argument it was."""
    try:
        value = operator.index(x)
    except (TypeError, ValueError):
        raise MoeEpError("%s = %r: a whole number is needed" % (name, x), "ERR_RANGE", name) from None
    if least is not None and value < least:
        raise MoeEpError("%s = %d: must be at least %d" % (name, value, least), "ERR_SIZE", name, value=float(value))
    if not -2 ** 63 <= value < 2 ** 63:
        raise MoeEpError("%s = %d does not fit 64 bits" % (name, value), "ERR_RANGE", name)
    return value


def _small(x, name, least=1):
    """The same for what must fit int32."""
    value = _whole(x, name, least)
    if value >= 2 ** 31:
        raise MoeEpError("%s = %d does not fit int32_t" % (name, value), "ERR_RANGE", name)
    return value


@contextlib.contextmanager
def _places(**arrays):
    """Errors inside that name an element of one of these arrays say where it is: loads[1, 2] instead of loads[6]."""
    try:
        yield
    except MoeEpError as problem:
        array = arrays.get(problem.arg.split(".")[-1])
        if array is None or array.ndim < 2 or not 0 <= problem.index < array.size:
            raise
        place = tuple(int(i) for i in np.unravel_index(problem.index, array.shape))
        text = str(problem).replace("[%d]" % problem.index, "[%s]" % ", ".join(map(str, place)), 1)
        raise type(problem)(text, problem.status, problem.arg, problem.index, problem.value, place) from None


def _new(name):
    """A zeroed structure, with room behind it for the fields of later versions."""
    kind = _STRUCTS[name]
    return kind.from_buffer(ctypes.create_string_buffer(ctypes.sizeof(kind) + 256))


def _value(kind, field, value):
    """A number that fits; text as the value of an enumeration."""
    if kind in ("int32_t", "int64_t"):
        value, limit = _whole(value, field), 2 ** (31 if kind == "int32_t" else 63)
        if not -limit <= value < limit:
            raise MoeEpError("%s: %r does not fit %s" % (field, value, kind), "ERR_RANGE", field)
    if kind in ("float", "double"):
        try:
            return float(value)
        except (TypeError, ValueError):
            raise MoeEpError("%s = %r: a number is needed" % (field, value), "ERR_RANGE", field) from None
    if kind in _ENUMS and not isinstance(value, str):
        return _whole(value, field)
    if not isinstance(value, str) or kind not in _ENUMS:
        return value
    names = _ENUMS[kind][1]
    word = value.lower().replace("-", "_")
    if word not in names:
        raise MoeEpError("%s: %r is none of %s" % (field, value, ", ".join(names)), "ERR_RANGE", field)
    return names[word]


def _fits(shape, wanted):
    """Is an array of this shape what C reads?  None: any length; what is (1, ...) may come without its 1."""
    if wanted[0] == 1 and len(shape) == len(wanted) - 1:
        shape = (1,) + shape
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted))


def _fill(struct, _shapes=(), **values):
    """Sets fields by name: numbers, names of enumerations, arrays for pointers, structures; None leaves 0.
    _shapes: {field: shape} of the arrays whose length the caller chooses; another shape is an error."""
    keep, shapes = struct.__dict__.setdefault("keep", []), dict(_shapes)
    for field, value in values.items():
        if value is None:
            continue
        kind = type(struct)._kinds.get(field)
        if kind is None:
            raise TypeError("%s has no field %r; it has %s" % (type(struct).__name__, field,
                                                               ", ".join(type(struct)._kinds)))
        needed = _STRUCTS.get(kind.lstrip("*"))
        if needed is not None and type(value) is not needed:
            raise MoeEpError("%s: %s is needed, not %s" % (field, needed.__name__, type(value).__name__), "ERR_RANGE",
                             field)
        if isinstance(value, ctypes.Structure):
            keep.append(value)
            setattr(struct, field, ctypes.addressof(value) if kind.startswith("*") else value)
        elif kind.startswith("*") and kind[1:] in _NUMPY:
            value = _array(value, _NUMPY[kind[1:]], field)
            if field in shapes and not _fits(value.shape, shapes[field]):
                raise MoeEpError("%s has the shape %s, not (%s)" % (
                    field, value.shape, ", ".join("any" if n is None else str(n) for n in shapes[field])), "ERR_SIZE",
                    field)
            keep.append(value)
            setattr(struct, field, value.ctypes.data)
        else:
            setattr(struct, field, _value(kind, field, value))
    return struct


class Result(dict):
    """A result of the library: a dict whose entries are attributes, too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _result(struct):
    out = Result()
    for field, kind in type(struct)._kinds.items():
        value = getattr(struct, field)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, _Struct):
            value = _result(value)
        elif kind in _ENUMS:
            value = next((n for n, v in _ENUMS[kind][1].items() if v == value), value)
        elif isinstance(value, ctypes.Array):
            value = list(value)
        out[field] = value
    return out


def _pointer(x):
    if isinstance(x, np.ndarray):
        return x.ctypes.data
    if isinstance(x, (ctypes.Structure, ctypes.Array)):
        return ctypes.addressof(x)
    return x.encode() if isinstance(x, str) else x


def _call(name, *arguments):
    """Calls a function whose last argument is the error; returns its result, raises what it says is wrong."""
    err = _new("moe_ep_error")
    try:
        result = getattr(_lib, name)(*[_pointer(a) for a in arguments], ctypes.addressof(err))
    except (ctypes.ArgumentError, OverflowError) as problem:
        wrong = [a for a in arguments if not isinstance(a, (np.ndarray, ctypes.Structure, ctypes.Array, type(None)))]
        raise MoeEpError("%s: %s is not what it takes (%s)" % (name, " or ".join(map(repr, wrong)), problem)) from None
    if result >= 0:
        return result
    text = ctypes.create_string_buffer(512)
    _lib.moe_ep_error_text(ctypes.addressof(err), ctypes.addressof(text), 512)
    status = _result(err).status
    if status == "ERR_MEMORY":
        raise MemoryError(text.value.decode())
    raise MoeEpError(text.value.decode(), status, (err.arg or b"").decode(), err.index, err.value)


def _preset(function, names, name, *arguments):
    """Calls a ..._by_name function; a name it does not know is in the message."""
    if not isinstance(name, str):
        raise MoeEpError("%r is no name; moe_ep.%s() lists the names" % (name, names), "ERR_RANGE", "name")
    try:
        _call(function, name, *arguments)
    except MoeEpError as problem:
        if problem.arg != "name":
            raise
        raise MoeEpError("no preset is named %r; moe_ep.%s() lists the names" % (name, names), problem.status,
                         problem.arg) from None


def _rows(x, name):
    """(L,n) of doubles from (n) or (L,n)."""
    return np.atleast_2d(_array(x, np.float64, name, (1, 2)))


# ---- routing, loads, balance ------------------------------------------------------------------------------------

def routers():
    """Names of the routers that `route` knows."""
    return [_lib.moe_ep_router_name(i).decode() for i in range(_lib.moe_ep_router_count())]


def route(logits, top_k, router="mixtral", token_ids=None, **fields):
    """Which experts does each token use?  logits (T,E) -> ids (T,K) int32, weights (T,K) float32.

    fields sets fields of moe_ep_router, for instance select_bias=bias (E) for DeepSeek-V3, scale=2.5, n_group=8.
    Tensors of torch for a tensor of torch, on the CPU.
    """
    top_k = _small(top_k, "top_k", None)
    x = _array(logits, np.float32, "logits", 2)
    cfg = _new("moe_ep_router")
    _preset("moe_ep_router_by_name", "routers", router, x.shape[1], top_k, cfg)
    E = x.shape[1]
    _fill(cfg, {"logit_bias": (E,), "select_bias": (E,), "per_expert_scale": (E,), "keys": x.shape,
                "table": (None, top_k)}, **fields)
    for field, value in (("num_experts", E), ("logits_stride", E)):
        if fields.get(field) and getattr(cfg, field) != value:
            raise MoeEpError("%s = %d, but the arguments make it %d" % (field, getattr(cfg, field), value), "ERR_SIZE",
                             field)
    cfg.num_experts, cfg.logits_stride = E, 0
    if fields.get("table") is not None:
        cfg.table_rows = len(fields["table"])
    rows = None if token_ids is None else _array(token_ids, np.int32, "token_ids", 1)
    if rows is not None and len(rows) != x.shape[0]:
        raise MoeEpError("token_ids has not one value per token", "ERR_SIZE", "token_ids")
    ids = np.empty((x.shape[0], top_k), np.int32)
    weights = np.empty(ids.shape, np.float32)
    with _places(logits=x):
        _call("moe_ep_route", cfg, x, x.shape[0], rows, ids, weights)
    return _like(logits, ids, weights)


def expert_loads(ids, num_experts):
    """How many assignments does each expert get?  ids (T,K), or (T,L,K) for several layers; -1 is skipped.
    Returns (E), or (L,E)."""
    ids, num_experts = _array(ids, np.int32, "ids", (1, 2, 3)), _small(num_experts, "num_experts")
    if ids.ndim < 3:
        loads = np.empty(num_experts, np.int64)
        with _places(ids=ids):
            _call("moe_ep_expert_loads", ids, ids.size, num_experts, loads, None)
        return loads
    view = _fill(_new("moe_ep_ids"), ids=ids, num_tokens=ids.shape[0], num_layers=ids.shape[1], top_k=ids.shape[2],
                 num_experts=num_experts)
    loads = np.empty((ids.shape[1], num_experts), np.int64)
    with _places(ids=ids):
        _call("moe_ep_layer_loads", view, loads, None)
    return loads


def balance(loads):
    """Every metric of one load vector (n): imbalance (max/mean), efficiency, argmax, gini, ..."""
    x = _array(loads, np.float64, "loads", 1)
    out = _new("moe_ep_balance_result")
    _call("moe_ep_balance_d", x, len(x), out, None)
    return _result(out)


def balance_layers(loads):
    """The same over layers (L,n): worst_layer, mean_imbalance, balancedness as vLLM logs it, ..."""
    x = _rows(loads, "loads")
    out = _new("moe_ep_layers_result")
    with _places(loads=x):
        _call("moe_ep_balance_layers_d", x, x.shape[0], x.shape[1], out, None)
    return _result(out)


def chance(num_tokens, top_k, num_experts, num_devices=None, num_groups=0, top_groups=0):
    """What max/mean does pure chance give?  Of experts, or, with num_devices, of devices: max_over_mean, p05, p95.

    num_groups, top_groups: a token draws its experts from top_groups of num_groups groups, as in DeepSeek-V3 4 of 8."""
    out = _new("moe_ep_chance_result")
    batch = _whole(num_tokens, "num_tokens"), _small(top_k, "top_k", None), _small(num_experts, "num_experts", None)
    if num_groups or top_groups:
        devices = batch[2] if num_devices is None else _small(num_devices, "num_devices", None)
        _call("moe_ep_chance_grouped", *batch, devices, _small(num_groups, "num_groups", 0),
              _small(top_groups, "top_groups", 0), out)
    elif num_devices is None:
        _call("moe_ep_chance", *batch, out)
    else:
        _call("moe_ep_chance_devices", *batch, _small(num_devices, "num_devices", None), out)
    return _result(out)


def efficiency(device_loads):
    """Share of the devices' time that is work: sum / (D * max)."""
    x = _array(device_loads, np.float64, "device_loads", 1)
    return _call("moe_ep_efficiency_d", x, len(x))


def step_rows(loads, num_devices, device_of_expert=None):
    """Rows of the busiest device, the step time in rows; expert e is on device e % D unless device_of_expert says."""
    x = _array(loads, np.int64, "loads", 1)
    where = None if device_of_expert is None else _array(device_of_expert, np.int32, "device_of_expert", 1)
    if where is not None and len(where) != len(x):
        raise MoeEpError("device_of_expert has not one value per expert", "ERR_SIZE", "device_of_expert")
    return _call("moe_ep_step_time", x, len(x), where, _small(num_devices, "num_devices"))


# ---- placement ------------------------------------------------------------------------------------------------

_PLANNERS = {"best": "moe_ep_best_placement", "eplb": "moe_ep_place_eplb", "trtllm": "moe_ep_place_trtllm",
             "lpt": "moe_ep_place_lpt", "contiguous": "moe_ep_place_contiguous",
             "round_robin": "moe_ep_place_round_robin"}


def _shape(num_devices, num_slots=0, num_nodes=0, **fields):
    each = dict.fromkeys(("slots_per_device", "node_of_device", "speed", "inactive"), (num_devices,))
    return _fill(_new("moe_ep_shape"), each, num_devices=num_devices, num_slots=num_slots, num_nodes=num_nodes,
                 **fields)


class Placement:
    """Which expert lies in which slot of which device, for L layers.  From plan(), Placement.from_phy2log() or
    another placement's rebalance().  results (where a planner made it): one Result per layer."""

    def __init__(self, num_layers, num_experts, shape):
        self._c = _new("moe_ep_placement")
        size = _lib.moe_ep_placement_bytes(num_layers, num_experts, ctypes.addressof(shape))
        self._memory = np.zeros(size // 8 + 1, np.int64)
        self.shape, self.results = shape, []
        _call("moe_ep_placement_init", self._c, num_layers, num_experts, shape, self._memory, size)
        for field in ("num_layers", "num_experts", "num_devices", "num_nodes", "num_slots"):
            setattr(self, field, getattr(self._c, field))

    def __repr__(self):
        return "Placement(num_layers=%d, num_experts=%d, num_devices=%d, num_slots=%d, num_nodes=%d)" % (
            self.num_layers, self.num_experts, self.num_devices, self.num_slots, self.num_nodes)

    @classmethod
    def from_phy2log(cls, phy2log, num_experts, num_devices, log2phy=None, logcnt=None, **shape):
        """From the maps of EPLB, vLLM or SGLang: phy2log (L,P), -1 = empty slot; log2phy (L,E,X) gives the order."""
        phy = np.atleast_2d(_array(phy2log, np.int32, "phy2log", (1, 2)))
        self = cls(phy.shape[0], num_experts, _shape(num_devices, phy.shape[1], **shape))
        log = None if log2phy is None else _array(log2phy, np.int32, "log2phy", 3)
        count = None if logcnt is None else _array(logcnt, np.int32, "logcnt", 2)
        if log is not None and log.shape[:2] != (self.num_layers, num_experts) or \
                count is not None and count.shape != (self.num_layers, num_experts):
            raise MoeEpError("the maps differ in layers or experts", "ERR_SIZE", "log2phy")
        _call("moe_ep_placement_from_eplb", phy, log, 0 if log is None else log.shape[2], count, self._c)
        return self

    def _view(self, field, shape, dtype=ctypes.c_int32):
        data = (dtype * int(np.prod(shape))).from_address(getattr(self._c, field))
        return np.frombuffer(data, dtype=dtype).reshape(shape).copy()

    @property
    def slot_expert(self):
        """(L,P) expert in each slot, -1 = empty."""
        return self._view("slot_expert", (self.num_layers, self.num_slots))

    @property
    def slot_device(self):
        """(P) device of each slot."""
        return self._view("slot_device", (self.num_slots,))

    def maps(self):
        """phy2log (L,P), log2phy (L,E,X) padded with -1, logcnt (L,E), int64, as eplb.py returns them."""
        X = _call("moe_ep_max_replicas", self._c)
        phy = np.empty((self.num_layers, self.num_slots), np.int32)
        log = np.empty((self.num_layers, self.num_experts, X), np.int32)
        count = np.empty((self.num_layers, self.num_experts), np.int32)
        _call("moe_ep_eplb_arrays", self._c, X, phy, log, count)
        return phy.astype(np.int64), log.astype(np.int64), count.astype(np.int64)

    def _loads(self, loads, steps=False):
        x = _array(loads, np.float64, "loads", (1, 2, 3) if steps else (1, 2))
        x = np.atleast_2d(x)
        if x.shape[-2:] != (self.num_layers, self.num_experts):
            raise MoeEpError("loads has the shape %s, not (%d layers, %d experts)" % (
                x.shape, self.num_layers, self.num_experts), "ERR_SIZE", "loads")
        return x

    def device_loads(self, loads):
        """loads (L,E), shared equally over the replicas -> (L,D)."""
        x, out = self._loads(loads), np.empty((self.num_layers, self.num_devices))
        with _places(loads=x):
            _call("moe_ep_device_loads", self._c, x, out)
        return out

    def evaluate(self, loads):
        """How busy is this placement under loads (L,E) or (steps,L,E)?  One Result per layer."""
        x = self._loads(loads, steps=True)
        with _places(loads=x):
            return _per_layer(self, lambda out: _call("moe_ep_evaluate", self._c, x, x.size // (
                self.num_layers * self.num_experts), out, None))

    def split(self, counts, layer=0, policy="even", **fields):
        """Rows of the experts (E) of one layer -> rows of the slots (P).  policy: even, exact, least_loaded, ..."""
        x = _array(counts, np.int64, "counts", 1)
        if len(x) != self.num_experts:
            raise MoeEpError("counts has not one value per expert", "ERR_SIZE", "counts")
        out = np.empty(self.num_slots, np.int64)
        desc = _fill(_new("moe_ep_split_desc"), {"source_counts": (self.num_devices, self.num_experts)},
                     policy=policy, **fields)
        _call("moe_ep_split", desc, self._c, _small(layer, "layer", None), x, out, None)
        return out

    def device_rows(self, slot_rows):
        """Rows of the slots (P) -> rows of the devices (D)."""
        rows, out = _array(slot_rows, np.int64, "slot_rows", 1), np.empty(self.num_devices, np.int64)
        if len(rows) != self.num_slots:
            raise MoeEpError("slot_rows has not one value per slot", "ERR_SIZE", "slot_rows")
        _call("moe_ep_device_rows", self._c, rows, out)
        return out

    def assign_slots(self, ids, slot_rows, layer=0):
        """Logical ids (any shape) -> slot ids, so that slot s receives slot_rows[s] of them; -1 stays."""
        ids, rows = _array(ids, np.int32, "ids"), _array(slot_rows, np.int64, "slot_rows", 1)
        if len(rows) != self.num_slots:
            raise MoeEpError("slot_rows has not one value per slot", "ERR_SIZE", "slot_rows")
        out = np.empty(ids.shape, np.int32)
        _call("moe_ep_assign_slots", self._c, _small(layer, "layer", None), ids, ids.size, rows, out, None)
        return out

    def rebalance(self, loads, target=1.05, max_moves=0, dead=(), **fields):
        """A better placement for loads (L,E) with few moves.  dead: devices that are gone.  fields sets fields of
        moe_ep_rebalance_desc (layer_slots, max_replicas, max_device_moves, ...)."""
        now, out, x = self._copy(), self._copy(), self._loads(loads)
        for device in (_whole(d, "dead") for d in dead):
            if not 0 <= device < self.num_devices:
                raise MoeEpError("dead: there is no device %d" % device, "ERR_DEVICE_ID", "dead")
            for p in (now, out):
                ctypes.c_uint8.from_address(p._c.device_inactive + device).value = 1
        desc = _fill(_new("moe_ep_rebalance_desc"), {"layer_slots": (self.num_layers,)}, current=now._c, loads=x,
                     target=target, max_moves=_whole(max_moves, "max_moves", 0), **fields)
        with _places(loads=x):
            out.results = _per_layer(out, lambda r: _call("moe_ep_rebalance", desc, out._c, r, None))
        return out

    def moves(self, to, expert_bytes=0.0):
        """What must be copied to get from here to the placement `to`: a structured array (layer, expert, from_slot,
        to_slot, from_device, to_device, round) and a Result with the totals.  Arrivals of a layer (at most `staging` on
        a device) wait until its last round, and only then go to their slots."""
        total = _new("moe_ep_moves_result")
        _call("moe_ep_plan_moves", self._c, to._c, expert_bytes, None, 0, total, None)
        out = np.empty(total.moves, np.dtype(_STRUCTS["moe_ep_move"]))
        _call("moe_ep_plan_moves", self._c, to._c, expert_bytes, out if len(out) else None, len(out), total, None)
        return out, _result(total)

    def relabel(self, to, slots_only=False, keep_nodes=False):
        """`to` with its devices (or, slots_only, only their slots) renamed so that most experts stay where they are."""
        out = to._copy()
        _call("moe_ep_relabel", self._c, out._c, (1 if slots_only else 0) | (2 if keep_nodes else 0), None)
        return out

    def _copy(self):
        out = Placement(self.num_layers, self.num_experts, self.shape)
        _call("moe_ep_placement_copy", self._c, out._c)
        return out


def _per_layer(placement, call):
    """The array of moe_ep_plan_result, one per layer, that call fills."""
    kind = _STRUCTS["moe_ep_plan_result"]
    out = (kind * placement.num_layers)()
    call(out)
    return [_result(r) for r in out]


def plan(loads, num_devices, num_slots=0, policy="best", num_nodes=0, num_groups=0, slots_per_device=None, speed=None,
         inactive=None, **fields):
    """A placement for loads (L,E), or (steps,L,E): which expert goes into which slot?

    num_slots: over all devices, copies included; 0 = one per expert.  num_nodes: 0 = one node: experts may go
    anywhere (layer_time and step_time then take as many nodes as the machine has for so many GPUs).  policy: best,
    eplb, trtllm, lpt, contiguous, round_robin.  fields sets fields of moe_ep_place_desc (max_replicas, pinned, risk_z,
    node_soft, ...)."""
    x, num_devices = np.atleast_2d(_array(loads, np.float64, "loads", (1, 2, 3))), _small(num_devices, "num_devices")
    planner = _PLANNERS.get(str(policy).replace("-", "_"))
    if planner is None:
        raise MoeEpError("policy: %r is none of %s" % (policy, ", ".join(_PLANNERS)), "ERR_RANGE", "policy")
    shape = _shape(num_devices, num_slots, num_nodes, slots_per_device=slots_per_device, speed=speed, inactive=inactive)
    L, E = x.shape[-2:]
    out = Placement(L, E, shape)
    desc = _fill(_new("moe_ep_place_desc"), {"layer_slots": (L,), "pinned": (L, E), "home_node": (L, E),
                                             "coactivation": (L, E, E)},
                 num_layers=L, num_experts=E, shape=shape, loads=x, num_groups=num_groups,
                 num_steps=x.shape[0] if x.ndim == 3 else 1, **fields)
    with _places(loads=x):
        out.results = _per_layer(out, lambda results: _call(planner, desc, out._c, results, None))
    return out


# ---- what serving stacks call -----------------------------------------------------------------------------------

def _like(weight, *arrays):
    """The arrays as tensors on the CPU when weight is one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(weight, torch.Tensor):
        arrays = tuple(torch.from_numpy(a) for a in arrays)
    return arrays if len(arrays) > 1 else arrays[0]


def _eplb(weight, num_replicas, num_groups, num_nodes, num_gpus, hierarchical, policy="eplb"):
    """A Placement; loads rounded to float32 as the callers round them."""
    try:
        loads = _array(weight, np.float32, "weight", 2)
        num_replicas, num_gpus = _small(num_replicas, "num_replicas"), _small(num_gpus, "num_gpus")
        num_nodes = _small(num_nodes, "num_nodes")
        options = {"num_nodes": num_nodes if hierarchical else 1, "num_groups": num_groups if hierarchical else 1}
        if policy == "eplb":
            options["eplb_mode"] = "hierarchical" if hierarchical else "global"
        elif hierarchical and num_nodes > 1:
            options["node_soft"] = 1
        return plan(loads, num_gpus, num_replicas, policy, **options)
    except MoeEpError as problem:
        text, arg = str(problem), problem.arg
        if arg == "loads":
            text, arg = text.replace("loads", "weight", 1), "weight"
        if arg.startswith(("desc.", "shape.")):  # in the caller's words, too
            text += "; called with weight %s, num_replicas=%s, num_groups=%s, num_nodes=%s, num_gpus=%s" % (
                loads.shape, num_replicas, num_groups, num_nodes, num_gpus)
        raise PlanError(text, problem.status, arg, problem.index, problem.value, problem.place) from None


def _divides(num_groups, num_nodes):
    try:
        return num_groups is not None and num_nodes > 0 and num_groups % num_nodes == 0
    except TypeError:
        return False  # what is wrong with it is said by _eplb


def _on_active(weight, num_replicas, num_gpus, active):
    """A plan on the active ranks only; the others' slots hold expert 0 and no map points at them."""
    each = num_replicas // num_gpus
    phy, log, count = _eplb(weight, each * len(active), 1, 1, len(active), False).maps()
    everywhere = np.zeros((phy.shape[0], num_gpus, each), np.int64)
    everywhere[:, active] = phy.reshape(phy.shape[0], len(active), each)
    slot = (np.asarray(active)[:, None] * each + np.arange(each)).reshape(-1)
    return everywhere.reshape(phy.shape[0], -1), np.where(log >= 0, slot[log], -1), count


def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus, enable_hierarchical=None,
                      active_ranks=None):
    """DeepSeek's expert-parallelism load balancer, the same maps (its sort made stable), float32 as there.

    weight (layers, experts) -> physical_to_logical_map (layers, num_replicas), logical_to_physical_map (layers,
    experts, X) padded with -1, expert_count (layers, experts).  Groups are packed to nodes when num_groups divides over
    num_nodes; SGLang says so by enable_hierarchical.  active_ranks (num_gpus), 0 = lost: SGLang's elasticity_aware.
    """
    active = None if active_ranks is None else np.flatnonzero(_array(active_ranks, np.int64, "active_ranks", 1))
    if active is not None and len(active) < num_gpus:
        return _like(weight, *_on_active(weight, num_replicas, num_gpus, active))
    hierarchical = _divides(num_groups, num_nodes) if enable_hierarchical is None else enable_hierarchical
    return _like(weight, *_eplb(weight, num_replicas, num_groups, num_nodes, num_gpus, hierarchical).maps())


def rebalance_experts_best(weight, num_replicas, num_groups, num_nodes, num_gpus):
    """The signature of rebalance_experts with the planner that minimises the busiest GPU: in every layer its plan, or
    EPLB's where that is less busy (by putting an expert twice on a GPU) or fills slots that would stay empty.  Experts
    of a group stay on their group's node where groups divide over several nodes, as EPLB keeps them."""
    arguments = weight, num_replicas, num_groups, num_nodes, num_gpus, _divides(num_groups, num_nodes)
    eplb, best = _eplb(*arguments), _eplb(*arguments, policy="best")
    better = [b.max <= e.max and b.slots_used == num_replicas for b, e in zip(best.results, eplb.results)]
    phy2log = np.where(np.array(better)[:, None], best.slot_expert, eplb.slot_expert)
    return _like(weight, *Placement.from_phy2log(phy2log, eplb.num_experts, num_gpus).maps())


def balanced_packing(weight, num_packs):
    """n weighted items (X,n) into num_packs packs of n / num_packs items each: pack_index, rank_in_pack (X,n)."""
    X, n = _array(weight, np.float32, "weight", 2).shape
    slot = _eplb(weight, n, 1, 1, num_packs, False).maps()[1][:, :, 0]
    return _like(weight, slot // (n // num_packs), slot % (n // num_packs))


def replicate_experts(weight, num_phy):
    """Copies for the heaviest: (X,E) -> phy2log (X,num_phy) in the order of their making, rank (X,num_phy), logcnt."""
    phy, log, count = _eplb(weight, num_phy, 1, 1, num_phy, False).maps()
    rank = np.zeros_like(phy)
    layer, expert, r = np.nonzero(log >= 0)
    rank[layer, log[layer, expert, r]] = r
    return _like(weight, phy, rank, count)


class DefaultEplbPolicy:
    """vLLM's policy class (vllm.distributed.eplb.policy.default).  rebalance_experts returns physical_to_logical."""
    _plan = staticmethod(rebalance_experts)
    balanced_packing = staticmethod(balanced_packing)

    @classmethod
    def _maps(cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices):
        maps = cls._plan(weight, num_replicas, num_groups, num_nodes, num_ranks)
        if old_global_expert_indices is None:
            return maps
        phy = _array(maps[0], np.int64, "phy2log")
        old = _array(old_global_expert_indices, np.int64, "old_global_expert_indices", 2)
        if old.shape != phy.shape:
            warnings.warn("old_global_expert_indices has the shape %s, the new map %s: the experts' slots are not "
                          "kept" % (old.shape, phy.shape), RuntimeWarning, stacklevel=3)
            return maps
        phy = cls.preserve_intragpu_slots(phy, num_ranks, old)
        again = Placement.from_phy2log(phy, maps[2].shape[1], num_ranks).maps()
        return _like(weight, *again)

    @classmethod
    def rebalance_experts(cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None):
        """weight (layers, experts) -> physical_to_logical_map (layers, num_replicas).  With the old map an expert that
        stays on its GPU stays in its slot."""
        return cls._maps(weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices)[0]

    @classmethod
    def preserve_intragpu_slots(cls, phy2log, num_ranks, old_phy2log):
        """phy2log (L,P) reordered inside each GPU so that what stays keeps its slot."""
        new, old = _array(phy2log, np.int64, "phy2log", 2), _array(old_phy2log, np.int64, "old_phy2log", 2)
        if num_ranks <= 0 or new.shape[1] % num_ranks or new.shape != old.shape:
            return phy2log
        experts = int(max(new.max(), old.max())) + 1
        before = Placement.from_phy2log(old, experts, num_ranks)
        after = before.relabel(Placement.from_phy2log(new, experts, num_ranks), slots_only=True)
        return _like(phy2log, after.slot_expert.astype(np.int64))


class DefaultEplbPolicyWithMaps(DefaultEplbPolicy):
    """The same for vLLM versions whose class returns all three maps."""

    @classmethod
    def rebalance_experts(cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None):
        return cls._maps(weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices)


class BestEplbPolicy(DefaultEplbPolicy):
    """vLLM's policy class with the planner that minimises the busiest GPU."""
    _plan = staticmethod(rebalance_experts_best)


class EplbAlgorithm(enum.Enum):
    """What SGLang's --eplb-algorithm names, as far as it is here, and moe_ep_best."""
    deepseek = enum.auto()
    deepseek_hierarchical = enum.auto()
    elasticity_aware = enum.auto()
    elasticity_aware_hierarchical = enum.auto()
    moe_ep_best = enum.auto()


def _sglang_active_ranks():
    """The active ranks of the SGLang that runs here: its own dispatcher fetches them, too.  None: all of them."""
    try:
        server = importlib.import_module("sglang.srt.elastic_ep.elastic_ep")
        state = getattr(server, "get_elastic_ep_state", None)
        state = (state or server.ElasticEPStateManager.instance)()
    except (ImportError, AttributeError):
        raise PlanError("elasticity_aware needs active_ranks: no SGLang with Elastic EP is here to ask", "ERR_NULL",
                        "active_ranks") from None
    return None if state is None else state.active_ranks


class eplb_algorithms:
    """SGLang's sglang.srt.eplb.eplb_algorithms: `from moe_ep import eplb_algorithms`."""
    EplbAlgorithm = EplbAlgorithm
    deepseek = elasticity_aware = sys.modules[__name__]

    @staticmethod
    def compute_algorithm(raw_algorithm, num_groups, num_nodes):
        """The algorithm of a name; "auto" is hierarchical when the groups divide over the nodes."""
        if raw_algorithm == "auto":
            raw_algorithm = "deepseek_hierarchical" if _divides(num_groups, num_nodes) else "deepseek"
        return EplbAlgorithm[raw_algorithm]

    @staticmethod
    def rebalance_experts(tokens_per_expert, num_physical_experts, num_local_physical_experts, num_groups, num_nodes,
                          algorithm, active_ranks=None):
        """tokens_per_expert (steps, layers, experts), or (layers, experts) -> the three maps of rebalance_experts.
        elasticity_aware without active_ranks, as SGLang calls it, asks SGLang for them."""
        weight = tokens_per_expert.sum(0) if len(tokens_per_expert.shape) == 3 else tokens_per_expert
        try:
            num_gpus = _small(num_physical_experts, "num_physical_experts") // _small(
                num_local_physical_experts, "num_local_physical_experts")
        except MoeEpError as problem:
            raise PlanError(str(problem), problem.status, problem.arg, problem.index, problem.value) from None
        if algorithm == EplbAlgorithm.moe_ep_best:
            return rebalance_experts_best(weight, num_physical_experts, num_groups, num_nodes, num_gpus)
        elastic = algorithm in (EplbAlgorithm.elasticity_aware, EplbAlgorithm.elasticity_aware_hierarchical)
        if elastic and active_ranks is None:
            active_ranks = _sglang_active_ranks()
        hierarchical = algorithm in (EplbAlgorithm.deepseek_hierarchical, EplbAlgorithm.elasticity_aware_hierarchical)
        return rebalance_experts(weight, num_physical_experts, num_groups, num_nodes, num_gpus, hierarchical,
                                 active_ranks)


# ---- seconds, and whether it is worth it ---------------------------------------------------------------------

def _names(function):
    out = []
    while function(len(out)) is not None:
        out.append(function(len(out)).decode())
    return out


def models():
    """Names of the models whose shapes are known."""
    return _names(_lib.moe_ep_model_preset_name)


def machines():
    """Names of the machines whose speeds are known."""
    return _names(_lib.moe_ep_machine_preset_name)


def model(name, **fields):
    """The shapes of a model by name ("deepseek-v3", "Qwen/Qwen3-30B-A3B"); fields sets fields of moe_ep_model."""
    out = _new("moe_ep_model")
    _preset("moe_ep_model_by_name", "models", name, out)
    return _fill(out, **fields)


def machine(name, **fields):
    """The speeds of a machine by name ("h200"); fields sets fields of moe_ep_machine."""
    out = _new("moe_ep_machine")
    _preset("moe_ep_machine_by_name", "machines", name, out)
    return _fill(out, **fields)


def _machine(x):
    return machine(x) if isinstance(x, str) else x


def _nodes(num_devices, machine_):
    """Nodes that so many devices fill; 0 when the machine does not say."""
    per = getattr(machine_, "devices_per_node", 0)
    return -(-num_devices // per) if per > 0 else 0


def _layer_desc(desc, model_, machine_, placement=None, layers=(), traffic=None, node_traffic=None, **fields):
    """A moe_ep_layer_desc; layers: (L,) where traffic has one matrix per layer."""
    machine_ = _machine(machine_)
    _fill(desc, model=model(model_) if isinstance(model_, str) else model_, machine=machine_,
          placement=None if placement is None else placement._c, **fields)
    devices = desc.num_devices if placement is None else placement.num_devices
    nodes = 0 if placement is None or placement.num_nodes < 2 else placement.num_nodes
    nodes = nodes or desc.num_nodes or _nodes(devices, machine_) or 1
    shapes = {"traffic": layers + (devices, devices), "node_traffic": layers + (devices, nodes)}
    return _fill(desc, shapes if devices > 0 else (), traffic=traffic, node_traffic=node_traffic)


def _slot_rows(slot_rows, placement, fields, dims):
    rows = _array(slot_rows, np.int64, "slot_rows", dims)
    slots = fields.get("num_slots", 0) if placement is None else placement.num_slots
    if slots and rows.shape[-1] != slots:
        raise MoeEpError("slot_rows has %d slots, not %d" % (rows.shape[-1], slots), "ERR_SIZE", "slot_rows")
    if not slots:
        fields["num_slots"] = rows.shape[-1]
    return rows


def layer_time(slot_rows, model, machine, placement=None, **fields):
    """Seconds of one MoE layer for rows per slot (P), as Placement.split gives them: total_s, dispatch_s, compute_s,
    combine_s, regime, slowest_device, ...; devices is a list, one Result each.

    model, machine: a name or what model() and machine() return.  Without a placement give num_devices=D.
    fields sets fields of moe_ep_layer_desc (tokens, mode, dispatch_wire="fp8", high_throughput, overlap, traffic (D,D),
    node_traffic (D,N), ...)."""
    rows = _slot_rows(slot_rows, placement, fields, 1)
    desc = _layer_desc(_new("moe_ep_layer_desc"), model, machine, placement, **fields)
    out = _new("moe_ep_time_result")
    devices = (_STRUCTS["moe_ep_device_time"] * (placement.num_devices if placement else desc.num_devices))()
    _call("moe_ep_layer_time", desc, rows, out, devices)
    result = _result(out)
    result["devices"] = [_result(d) for d in devices]
    return result


def step_time(slot_rows, model, machine, placement=None, other_s=0.0, tokens_per_pass=0.0, **fields):
    """Seconds of a whole step from the rows of every layer (L,P): step_s, tpot_s, tokens_per_s_device, ...; layer_s is
    an array (L).  Layers without rows are left out; with fewer others than the model has, the sum is scaled up.
    traffic is (L,D,D) here, node_traffic (L,D,N)."""
    rows = _slot_rows(slot_rows, placement, fields, 2)
    desc = _fill(_new("moe_ep_step_desc"), num_layers=rows.shape[0], other_s=other_s, tokens_per_pass=tokens_per_pass)
    layer = _layer_desc(_new("moe_ep_layer_desc"), model, machine, placement, rows.shape[:1], **fields)
    _fill(desc, layer=layer)
    out, seconds = _new("moe_ep_step_result"), np.empty(rows.shape[0])
    with _places(slot_rows=rows):
        _call("moe_ep_step", desc, rows, out, seconds)
    result = _result(out)
    result["layer_s"] = seconds
    return result


def diagnose(plan_loads, judge_loads, num_devices, num_slots=0, num_nodes=0, policy=None, current=None, model=None,
             machine=None, layer=None, **fields):
    """Is a new placement worth it?  Planned on plan_loads (steps,L,E), judged on every step of judge_loads.

    current: the Placement that runs; None = contiguous blocks.  num_nodes: 0 = as current has them, or as many as the
    machine's devices_per_node makes.  model and machine give seconds (layer: fields of moe_ep_layer_desc).  fields sets
    thresholds and costs (target_imbalance, min_gain, min_sigmas, min_steps, expert_bytes, move_Bps, pause_s,
    horizon_steps, top_k, ...); the rest is as moe_ep_diagnose_thresholds sets it.
    Returns a Result: verdict, reason, text, gain, hot_device, ...; plan is the new Placement."""
    a = _array(plan_loads, np.float64, "plan_loads", (2, 3))
    a = a.reshape((-1,) + a.shape[-2:])
    b = None if judge_loads is None else _array(judge_loads, np.float64, "judge_loads", (2, 3))
    if b is not None and b.shape[-2:] != a.shape[-2:]:
        raise MoeEpError("judge_loads has other layers or experts than plan_loads", "ERR_SIZE", "judge_loads")
    num_devices = _small(num_devices, "num_devices")
    machine = _machine(machine)
    given = num_nodes
    if not num_nodes:
        num_nodes = _nodes(num_devices, machine) if current is None else current.num_nodes
    shape = _shape(num_devices, num_slots, num_nodes)
    out = Placement(a.shape[1], a.shape[2], shape)
    desc = _new("moe_ep_diagnose_desc")
    _lib.moe_ep_diagnose_thresholds(ctypes.addressof(desc))
    cost = None
    if model is not None or machine is not None:
        cost = _layer_desc(_new("moe_ep_layer_desc"), model, machine, **dict({"num_nodes": given}, **(layer or {})))
    _fill(desc, num_layers=a.shape[1], num_experts=a.shape[2], shape=shape, policy=policy, plan_loads=a,
          plan_steps=a.shape[0], judge_loads=b, judge_steps=0 if b is None else b.size // (a.shape[1] * a.shape[2]),
          current=None if current is None else current._c, cost=cost, **fields)
    diagnosis = _new("moe_ep_diagnosis")
    with _places(plan_loads=a, judge_loads=b):
        _call("moe_ep_diagnose", desc, out._c, diagnosis, None)
    result = _result(diagnosis)
    result["plan"] = out
    return result
