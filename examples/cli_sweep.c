/* cli_sweep.c - moe-ep sweep: which EP size, how many redundant experts, which batch?
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_sweep.h"

#include "cli_commands.h"

#include <getopt.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static const char sweep_help[] =
    "usage: moe-ep sweep [PLANNED_ON [SERVED]] --model NAME --machine NAME --nodes N [options]\n"
    "\n"
    "Predicts a decode step for every combination of EP size, redundant experts, tokens per device "
    "and overlap,\n"
    "drops what does not fit in memory, and names the best and the Pareto front of throughput "
    "against time per\n"
    "token, with what limits each.  Computed, never measured.\n"
    "\n"
    "  --model NAME      --machine NAME   (moe-ep presets)      --hidden H   --intermediate I\n"
    "  --nodes N         nodes of the machine, or --devices D devices in all\n"
    "  --tokens T,...    tokens per device and step; the first is the one that is asked about, "
    "without a list its\n"
    "                    quarter, half, double and fourfold are tried, too (64)\n"
    "  --ep D,...        EP sizes (powers of two that divide the devices); more devices serve "
    "several copies\n"
    "  --redundant R,... redundant experts per layer (0, 1, 2 and 4 more slots on each device)\n"
    "  --overlap X,...   none, shared (expert under dispatch), two (batches, attention hides the "
    "other's experts),\n"
    "                    two-hidden (communication under all compute) (none,shared,two)\n"
    "  --context C       tokens of cache per sequence (4096)\n"
    "  --attention-us X  attention of a layer at these tokens (from its weights and the cache, "
    "read once)\n"
    "  --other-ms X      the rest of a step      --reserve-gb X   memory for activations and "
    "runtime (8)\n"
    "  --tpot-ms X       longest time per token that is allowed (no limit)\n"
    "  INPUT             popularity of the experts: plans are made on the first, tokens drawn from "
    "the second\n"
    "                    (or the first).  Without: lognormal, --sigma S (1.1), drifted by --drift "
    "S (0.1)\n"
    "  --split NAME      rows over copies: even (default) or exact      --layers N   layers drawn "
    "(8)\n"
    "  --seed N          of the draws (1)\n"
    "  --experts E       --only TEXT   --layers-first   --counts   (see moe-ep report --help)\n"
    "  --html FILE       --json   --width W   --ascii   --color auto|always|never\n";

enum {
    O_EP = 256,
    O_REDUNDANT,
    O_TOKENS,
    O_OVERLAP,
    O_CONTEXT,
    O_ATTENTION,
    O_RESERVE,
    O_TPOT,
    O_SIGMA,
    O_DRIFT,
    O_SPLIT,
    O_LAYERS,
    O_SEED
};

/* Before the shared options, so that --tokens is a list here. */
static const struct option sweep_long[] = {{"ep", 1, NULL, O_EP},
                                           {"redundant", 1, NULL, O_REDUNDANT},
                                           {"tokens", 1, NULL, O_TOKENS},
                                           {"overlap", 1, NULL, O_OVERLAP},
                                           {"context", 1, NULL, O_CONTEXT},
                                           {"attention-us", 1, NULL, O_ATTENTION},
                                           {"reserve-gb", 1, NULL, O_RESERVE},
                                           {"tpot-ms", 1, NULL, O_TPOT},
                                           {"sigma", 1, NULL, O_SIGMA},
                                           {"drift", 1, NULL, O_DRIFT},
                                           {"split", 1, NULL, O_SPLIT},
                                           {"layers", 1, NULL, O_LAYERS},
                                           {"seed", 1, NULL, O_SEED},
                                           {"other-ms", 1, NULL, CLI_O_OTHER},
                                           {"devices", 1, NULL, CLI_O_DEVICES},
                                           {"nodes", 1, NULL, CLI_O_NODES},
                                           {"model", 1, NULL, CLI_O_MODEL},
                                           {"machine", 1, NULL, CLI_O_MACHINE},
                                           {"hidden", 1, NULL, CLI_O_HIDDEN},
                                           {"intermediate", 1, NULL, CLI_O_INTER},
                                           CLI_COMMON_OPTIONS,
                                           {NULL, 0, NULL, 0}};

static const struct {
    const char *name;
    moe_ep_overlap overlap;
} overlaps[] = {{"none", MOE_EP_OVERLAP_NONE},
                {"shared", MOE_EP_OVERLAP_SHARED},
                {"two", MOE_EP_OVERLAP_TWO_EXPOSED},
                {"two-hidden", MOE_EP_OVERLAP_TWO_HIDDEN}};

const char *cli_overlap_str(moe_ep_overlap overlap)
{
    for (size_t i = 0; i < sizeof overlaps / sizeof overlaps[0]; i++)
        if (overlaps[i].overlap == overlap) return overlaps[i].name;
    return "unknown";
}

const char *cli_limit_str(cli_limit limit)
{
    static const char *const name[] = {"memory", "attention", "network", "expert weights",
                                       "expert FLOPs"};
    return name[limit];
}

/* ---- options ------------------------------------------------------------------------------------------- */

static int64_t *take_counts(const char *option, const char *value, int64_t least, int64_t most)
{
    char *copy = cli_strdup(value), *save = NULL;
    int64_t *list = NULL;
    for (char *at = strtok_r(copy, ",", &save); at; at = strtok_r(NULL, ",", &save))
        arrput(list, cli_option_count(option, at, least, most));
    if (!list) cli_die(CLI_USAGE, "--%s: a number is needed", option);
    free(copy);
    return list;
}

static int32_t *narrow(int64_t *list)
{
    int32_t *out = NULL;
    for (ptrdiff_t i = 0; i < arrlen(list); i++) arrput(out, (int32_t)list[i]);
    arrfree(list);
    return out;
}

static void take_overlaps(cli_sweep *s, const char *value)
{
    char *copy = cli_strdup(value), *save = NULL;
    arrfree(s->overlap);
    for (char *at = strtok_r(copy, ",", &save); at; at = strtok_r(NULL, ",", &save)) {
        size_t i = 0, n = sizeof overlaps / sizeof overlaps[0];
        while (i < n && strcmp(at, overlaps[i].name) != 0) i++;
        if (i == n)
            cli_die(CLI_USAGE, "--overlap %s: none, shared, two or two-hidden", cli_printable(at));
        arrput(s->overlap, overlaps[i].overlap);
    }
    if (!s->overlap) cli_die(CLI_USAGE, "--overlap: none, shared, two or two-hidden");
    free(copy);
}

static int take_number(cli_sweep *s, int option, const char *value)
{
    switch (option) {
    case O_CONTEXT:
        s->context = (int32_t)cli_option_count("context", value, 1, 1 << 24);
        return 1;
    case O_ATTENTION:
        s->attention_us = cli_option_number("attention-us", value, 0.0, 1e9);
        return 1;
    case O_RESERVE:
        s->reserve_bytes = 1e9 * cli_option_number("reserve-gb", value, 0.0, 1e6);
        return 1;
    case O_TPOT:
        s->tpot_s = 1e-3 * cli_option_number("tpot-ms", value, 1e-6, 1e9);
        return 1;
    case O_SIGMA:
        s->sigma = cli_option_number("sigma", value, 0.0, 5.0);
        return 1;
    case O_DRIFT:
        s->drift = cli_option_number("drift", value, 0.0, 5.0);
        return 1;
    case O_LAYERS:
        s->layers = (int32_t)cli_option_count("layers", value, 1, 4096);
        return 1;
    case O_SEED:
        s->seed = (uint64_t)cli_option_count("seed", value, 0, INT64_MAX);
        return 1;
    default:
        return 0;
    }
}

static void take_option(cli_sweep *s, cli_common *common, int option, const char *value)
{
    if (take_number(s, option, value)) return;
    switch (option) {
    case O_EP:
        s->ep = narrow(take_counts("ep", value, 1, 65536));
        return;
    case O_REDUNDANT:
        s->redundant = narrow(take_counts("redundant", value, 0, 1 << 20));
        return;
    case O_TOKENS:
        s->tokens = take_counts("tokens", value, 1, 65536);
        return;
    case O_OVERLAP:
        take_overlaps(s, value);
        return;
    case O_SPLIT:
        if (strcmp(value, "even") != 0 && strcmp(value, "exact") != 0)
            cli_die(CLI_USAGE, "--split %s: even or exact", cli_printable(value));
        s->exact = value[1] == 'x';
        return;
    default:
        if (!cli_setup_option(&s->setup, option, value))
            (void)cli_common_option(common, option, value, sweep_help);
    }
}

/* ---- what to try ------------------------------------------------------------------------------------------ */

static void settle_shapes(cli_sweep *s)
{
    int32_t K, E, per;
    if (!s->setup.model_name) cli_die(CLI_USAGE, "--model is needed; moe-ep presets lists them");
    if (!s->setup.machine_name)
        cli_die(CLI_USAGE, "--machine is needed; moe-ep presets lists them");
    cli_setup_sizes(&s->setup, 0, 0, 0);
    cli_setup_machine(&s->setup);
    E = s->setup.model.num_experts;
    K = s->setup.model.top_k;
    per = s->setup.machine.devices_per_node > 0 ? s->setup.machine.devices_per_node : 8;
    s->devices = s->setup.devices > 0 ? s->setup.devices : s->setup.nodes * per;
    if (s->devices == 0) cli_die(CLI_USAGE, "--nodes or --devices is needed");
    if (s->plan_on && s->plan_on->experts != E)
        cli_die(CLI_USAGE, "%s has %d experts, %s has %d", s->plan_on->path, s->plan_on->experts,
                s->setup.model.name, E);
    if (s->plan_on && s->layers > s->plan_on->layers) s->layers = s->plan_on->layers;
    if (s->layers > s->setup.model.num_moe_layers) s->layers = s->setup.model.num_moe_layers;
    if (K > E) cli_die(CLI_USAGE, "%s: top-%d of %d experts", s->setup.model.name, K, E);
}

static void settle_lists(cli_sweep *s)
{
    static const moe_ep_overlap usual[] = {MOE_EP_OVERLAP_NONE, MOE_EP_OVERLAP_SHARED,
                                           MOE_EP_OVERLAP_TWO_EXPOSED};
    int32_t E = s->setup.model.num_experts;
    if (!s->tokens) arrput(s->tokens, 64);
    if (arrlen(s->tokens) == 1) {
        int64_t t = s->tokens[0];
        if (t / 4 > 0) arrput(s->tokens, t / 4);
        if (t / 2 > t / 4) arrput(s->tokens, t / 2);
        arrput(s->tokens, 2 * t);
        arrput(s->tokens, 4 * t);
    }
    if (!s->ep)
        for (int32_t ep = 1; ep <= s->devices && ep <= E; ep *= 2)
            if (s->devices % ep == 0) arrput(s->ep, ep);
    for (ptrdiff_t i = 0; i < arrlen(s->ep); i++) {
        if (s->ep[i] > s->devices)
            cli_die(CLI_USAGE, "--ep %d: there are only %d devices", s->ep[i], s->devices);
        if (s->ep[i] > E) cli_die(CLI_USAGE, "--ep %d: there are only %d experts", s->ep[i], E);
    }
    if (!s->overlap)
        for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++) arrput(s->overlap, usual[i]);
}

/* Numbers of redundant experts for an EP size: what was asked for, or so that devices have equal slots. */
static int32_t *redundant_for(const cli_sweep *s, int32_t ep)
{
    static const int32_t more[] = {0, 1, 2, 4};
    int32_t E = s->setup.model.num_experts, least = (ep - E % ep) % ep, *list = NULL;
    for (ptrdiff_t i = 0; i < arrlen(s->redundant); i++) arrput(list, s->redundant[i]);
    if (list) return list;
    for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
        int32_t r = least + more[i] * ep;
        if ((r <= E && ep > 1) || i == 0) arrput(list, r);
    }
    return list;
}

/* ---- loads ---------------------------------------------------------------------------------------------- */

/* Layer l of those drawn is this layer of a recording. */
static int32_t recorded_layer(const cli_sweep *s, int32_t l)
{
    return (int32_t)((int64_t)l * s->plan_on->layers / s->layers);
}

static moe_ep_workload workload(const cli_sweep *s, const cli_trace *t, int32_t l)
{
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_LOGNORMAL;
    w.seed = s->seed;
    w.num_experts = s->setup.model.num_experts;
    w.top_k = s->setup.model.top_k;
    w.sigma = s->sigma;
    w.drift = s->drift;
    if (t) {
        w.kind = MOE_EP_LOAD_RECORDED;
        w.drift = 0.0;
        w.popularity = t->loads + (size_t)recorded_layer(s, l) * (size_t)t->experts;
    }
    return w;
}

/* What the planner knows: (layers, E). */
static double *planning_loads(const cli_sweep *s)
{
    int32_t E = s->setup.model.num_experts;
    double *loads = cli_alloc((size_t)s->layers * (size_t)E, sizeof *loads);
    uint64_t *weight = cli_alloc((size_t)E, sizeof *weight);
    moe_ep_error err;
    for (int32_t l = 0; l < s->layers; l++) {
        moe_ep_workload w = workload(s, s->plan_on, l);
        cli_check(moe_ep_popularity(&w, l, 0, 1, weight, &err), &err, "popularity");
        for (int32_t e = 0; e < E; e++)
            loads[(size_t)l * (size_t)E + (size_t)e] = (double)weight[e];
    }
    free(weight);
    return loads;
}

/* What the step brings: rows (layers, E) of `tokens` tokens over all devices of one copy of the model. */
static int64_t *step_rows(const cli_sweep *s, int64_t tokens)
{
    int32_t E = s->setup.model.num_experts, K = s->setup.model.top_k;
    int64_t *rows = cli_alloc((size_t)s->layers * (size_t)E, sizeof *rows);
    int32_t *ids = cli_alloc((size_t)tokens * (size_t)K, sizeof *ids);
    moe_ep_error err;
    for (int32_t l = 0; l < s->layers; l++) {
        moe_ep_workload w = workload(s, s->serve, l);
        cli_check(moe_ep_simulate(&w, l, 1, tokens, ids, NULL, &err), &err, "drawing tokens");
        cli_check(moe_ep_expert_loads(ids, tokens * K, E, rows + (size_t)l * (size_t)E, NULL, &err),
                  &err, "loads");
    }
    free(ids);
    return rows;
}

/* ---- one configuration ------------------------------------------------------------------------------------ */

/* Attention of one layer: weights and cache read once, or the multiplications if they take longer. */
static double attention_s(const cli_sweep *s, double tokens)
{
    const moe_ep_model *m = &s->setup.model;
    const moe_ep_machine *h = &s->setup.machine;
    double bytes, memory, flops;
    if (s->attention_us >= 0.0) return 1e-6 * s->attention_us;
    bytes =
        (double)m->attention_params * (m->other_weight_bytes > 0.0 ? m->other_weight_bytes : 2.0) +
        tokens * s->context * m->kv_elems * (m->kv_bytes > 0.0 ? m->kv_bytes : 2.0);
    memory = h->memory_Bps > 0.0 ? bytes / h->memory_Bps : 0.0;
    flops = h->flops[m->math] > 0.0 ? 2.0 * tokens * (double)m->attention_params / h->flops[m->math]
                                    : 0.0;
    memory /= h->gemm.mem_eff > 0.0 ? h->gemm.mem_eff : 1.0;
    flops /= h->gemm.flop_eff > 0.0 ? h->gemm.flop_eff : 1.0;
    return memory > flops ? memory : flops;
}

/* Dense layers and the output matrix, read once, and what the caller adds. */
static double other_s(const cli_sweep *s, double tokens)
{
    const moe_ep_model *m = &s->setup.model;
    int32_t dense = m->num_layers > m->num_moe_layers ? m->num_layers - m->num_moe_layers : 0;
    double bytes =
        ((double)dense * 3.0 * m->hidden * m->dense_inter + (double)m->vocab * m->hidden) *
        (m->other_weight_bytes > 0.0 ? m->other_weight_bytes : 2.0);
    double eff = s->setup.machine.gemm.mem_eff > 0.0 ? s->setup.machine.gemm.mem_eff : 1.0;
    return s->setup.other_s + dense * attention_s(s, tokens) +
           (s->setup.machine.memory_Bps > 0.0 ? bytes / s->setup.machine.memory_Bps / eff : 0.0);
}

static void weigh(const cli_sweep *s, cli_config *c)
{
    moe_ep_memory_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.model = &s->setup.model;
    d.num_devices = c->ep;
    d.num_slots = s->setup.model.num_experts + c->redundant;
    d.reserve_bytes = s->reserve_bytes;
    d.memory_bytes = s->setup.machine.memory_bytes;
    if (c->ep > 1) {
        d.buffer_bytes =
            moe_ep_ll_buffer_bytes((int32_t)c->tokens, s->setup.model.hidden, d.num_slots, 1, &err);
        if (d.buffer_bytes < 0) cli_check(err.status, &err, "communication buffer");
    }
    cli_check(moe_ep_memory(&d, &c->memory, &err), &err, "memory");
    c->batch_kv_tokens = (double)c->tokens * s->context;
    c->fits = (c->memory.fits || !(d.memory_bytes > 0.0)) &&
              (!(d.memory_bytes > 0.0) || s->setup.model.kv_elems == 0 ||
               c->batch_kv_tokens <= (double)c->memory.kv_tokens);
    c->limit = CLI_LIMIT_MEMORY;
}

static moe_ep_placement plan(const cli_sweep *s, const cli_config *c, const double *loads,
                             void **mem)
{
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_error err;
    int32_t per = s->setup.machine.devices_per_node > 0 ? s->setup.machine.devices_per_node : c->ep;
    size_t bytes;
    memset(&d, 0, sizeof d);
    d.num_layers = s->layers;
    d.num_experts = s->setup.model.num_experts;
    d.loads = loads;
    d.shape.num_devices = c->ep;
    d.shape.num_slots = d.num_experts + c->redundant;
    d.shape.num_nodes = (c->ep + per - 1) / per;
    bytes = moe_ep_placement_bytes(d.num_layers, d.num_experts, &d.shape);
    if (bytes == 0)
        cli_die(CLI_USAGE, "EP %d with %d redundant experts: no such shape", c->ep, c->redundant);
    *mem = cli_alloc(bytes, 1);
    cli_check(moe_ep_placement_init(&p, d.num_layers, d.num_experts, &d.shape, *mem, bytes, &err),
              &err, "shape");
    cli_check(moe_ep_best_placement(&d, &p, NULL, NULL, &err), &err, "plan");
    return p;
}

/* Rows of every slot (layers, P), and the imbalance they make. */
static int64_t *share_rows(const cli_sweep *s, const moe_ep_placement *p, const int64_t *rows,
                           double *imbalance)
{
    int64_t *slot = cli_alloc((size_t)s->layers * (size_t)p->num_slots, sizeof *slot);
    int64_t *device = cli_alloc((size_t)p->num_devices, sizeof *device);
    double most = 0.0, mean = 0.0;
    moe_ep_split_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.policy = s->exact ? MOE_EP_SPLIT_EXACT : MOE_EP_SPLIT_EVEN;
    for (int32_t l = 0; l < s->layers; l++) {
        int64_t *at = slot + (size_t)l * (size_t)p->num_slots, top = 0;
        cli_check(moe_ep_split(&d, p, l, rows + (size_t)l * (size_t)p->num_experts, at, NULL, &err),
                  &err, "split");
        cli_check(moe_ep_device_rows(p, at, device, &err), &err, "device rows");
        for (int32_t i = 0; i < p->num_devices; i++) {
            top = device[i] > top ? device[i] : top;
            mean += (double)device[i] / p->num_devices;
        }
        most += (double)top;
    }
    *imbalance = mean > 0.0 ? most / mean : 1.0;
    free(device);
    return slot;
}

static moe_ep_step_desc step_desc(const cli_sweep *s, const cli_config *c,
                                  const moe_ep_placement *p)
{
    moe_ep_step_desc d;
    memset(&d, 0, sizeof d);
    d.layer.model = &s->setup.model;
    d.layer.machine = &s->setup.machine;
    d.layer.placement = p;
    d.layer.tokens = c->tokens;
    d.layer.high_throughput = c->tokens >= 512;
    d.layer.mode = !d.layer.high_throughput ? MOE_EP_A2A_PAIR
                   : p->num_nodes > 1       ? MOE_EP_A2A_NODE_DEDUP
                                            : MOE_EP_A2A_RANK_DEDUP;
    d.layer.dispatch_wire =
        s->setup.model.math == MOE_EP_MATH_BF16 ? MOE_EP_WIRE_BF16 : MOE_EP_WIRE_FP8;
    d.layer.combine_wire = MOE_EP_WIRE_BF16;
    d.layer.overlap = c->overlap;
    d.layer.attention_s = attention_s(s, (double)c->tokens);
    d.layer.attention_half_s = s->attention_us >= 0.0 ? 0.5 * d.layer.attention_s
                                                      : attention_s(s, 0.5 * (double)c->tokens);
    d.num_layers = s->layers;
    d.other_s = other_s(s, (double)c->tokens);
    return d;
}

/* The longest part of the step. */
static cli_limit limit_of(const cli_config *c, moe_ep_regime regime)
{
    double network = c->step.dispatch_s + c->step.combine_s;
    if (c->attention_s > network && c->attention_s > c->step.compute_s) return CLI_LIMIT_ATTENTION;
    if (network > c->step.compute_s) return CLI_LIMIT_NETWORK;
    return regime == MOE_EP_REGIME_FLOPS ? CLI_LIMIT_FLOPS : CLI_LIMIT_WEIGHTS;
}

static void time_step(const cli_sweep *s, cli_config *c, const moe_ep_placement *p,
                      const int64_t *slot_rows)
{
    moe_ep_step_desc d = step_desc(s, c, p);
    moe_ep_time_result layer;
    moe_ep_device_time *devices = cli_alloc((size_t)c->ep, sizeof *devices);
    moe_ep_error err;
    cli_check(moe_ep_step(&d, slot_rows, &c->step, NULL, &err), &err, "step time");
    cli_check(moe_ep_layer_time(&d.layer, slot_rows, &layer, devices, &err), &err, "layer time");
    c->attention_s = d.layer.attention_s * s->setup.model.num_moe_layers + d.other_s;
    c->limit =
        limit_of(c, devices[layer.slowest_device].flop_s > devices[layer.slowest_device].memory_s
                        ? MOE_EP_REGIME_FLOPS
                        : MOE_EP_REGIME_WEIGHTS);
    free(devices);
}

/* Every batch and overlap of one EP size and number of redundant experts. */
static void try_shape(cli_sweep *s, int32_t ep, int32_t redundant, const double *loads,
                      int64_t *const *rows)
{
    cli_config c;
    moe_ep_placement p;
    void *mem = NULL;
    memset(&c, 0, sizeof c);
    c.ep = ep;
    c.redundant = redundant;
    for (ptrdiff_t t = 0; t < arrlen(s->tokens); t++) {
        int64_t *slot = NULL;
        c.tokens = s->tokens[t];
        weigh(s, &c);
        if (c.fits && !mem) p = plan(s, &c, loads, &mem);
        if (c.fits) slot = share_rows(s, &p, rows[t], &c.imbalance);
        for (ptrdiff_t i = 0; i < arrlen(s->overlap); i++) {
            c.overlap = s->overlap[i];
            memset(&c.step, 0, sizeof c.step);
            if (c.fits) time_step(s, &c, &p, slot);
            arrput(s->config, c);
        }
        free(slot);
    }
    free(mem);
}

static void try_all(cli_sweep *s)
{
    double *loads = planning_loads(s);
    int64_t **rows = cli_alloc((size_t)arrlen(s->tokens), sizeof *rows);
    for (ptrdiff_t i = 0; i < arrlen(s->ep); i++) {
        int32_t *redundant = redundant_for(s, s->ep[i]);
        for (ptrdiff_t t = 0; t < arrlen(s->tokens); t++)
            rows[t] = step_rows(s, s->tokens[t] * s->ep[i]);
        for (ptrdiff_t r = 0; r < arrlen(redundant); r++) {
            try_shape(s, s->ep[i], redundant[r], loads, rows);
            cli_progress("sweep", (double)i + ((double)r + 1.0) / (double)arrlen(redundant),
                         (double)arrlen(s->ep));
        }
        for (ptrdiff_t t = 0; t < arrlen(s->tokens); t++) free(rows[t]);
        arrfree(redundant);
    }
    free(rows);
    free(loads);
}

/* ---- the answer ------------------------------------------------------------------------------------------- */

static int by_tpot(const void *a, const void *b, void *configs)
{
    const cli_config *x = &((const cli_config *)configs)[*(const int *)a],
                     *y = &((const cli_config *)configs)[*(const int *)b];
    if (x->step.tpot_s < y->step.tpot_s || x->step.tpot_s > y->step.tpot_s)
        return x->step.tpot_s < y->step.tpot_s ? -1 : 1;
    return *(const int *)a - *(const int *)b;
}

static void find_front(cli_sweep *s)
{
    int *order = NULL;
    double best = 0.0;
    for (int i = 0; i < (int)arrlen(s->config); i++)
        if (s->config[i].fits) arrput(order, i);
    qsort_r(order, (size_t)arrlen(order), sizeof *order, by_tpot, s->config);
    for (ptrdiff_t i = 0; i < arrlen(order); i++) {
        cli_config *c = &s->config[order[i]];
        if (c->step.tokens_per_s_device <= best * (1.0 + 1e-9)) continue;
        best = c->step.tokens_per_s_device;
        c->pareto = 1;
        arrput(s->front, order[i]);
    }
    arrfree(order);
}

/* Asked about: this batch, and as fast as was asked for. */
static int is_candidate(const cli_sweep *s, const cli_config *c)
{
    return c->fits && c->tokens == s->tokens[0] &&
           (!(s->tpot_s > 0.0) || c->step.tpot_s <= s->tpot_s);
}

/* Of all within 1 % of the best the one with the fewest slots per device, then the smallest EP size. */
static void find_best(cli_sweep *s)
{
    double top = 0.0;
    s->best = -1;
    for (int i = 0; i < (int)arrlen(s->config); i++)
        if (is_candidate(s, &s->config[i])) top = fmax(top, s->config[i].step.tokens_per_s_device);
    for (int i = 0; i < (int)arrlen(s->config); i++) {
        const cli_config *c = &s->config[i], *b = s->best < 0 ? c : &s->config[s->best];
        if (!is_candidate(s, c) || c->step.tokens_per_s_device < 0.99 * top) continue;
        if (s->best < 0 || c->memory.slots < b->memory.slots ||
            (c->memory.slots == b->memory.slots && c->redundant < b->redundant))
            s->best = i;
    }
}

/* The same without redundant experts; NULL when it was not tried or does not fit. */
static const cli_config *without_copies(const cli_sweep *s, const cli_config *c)
{
    const cli_config *least = NULL;
    for (ptrdiff_t i = 0; i < arrlen(s->config); i++) {
        const cli_config *o = &s->config[i];
        if (o->fits && o->ep == c->ep && o->tokens == c->tokens && o->overlap == c->overlap &&
            o->redundant < c->redundant && (!least || o->redundant < least->redundant))
            least = o;
    }
    return least;
}

/* " EP 32 with 32 redundant experts is within 1 %, too.": other shapes as fast as the answer. */
static char *rivals(const cli_sweep *s)
{
    const cli_config *b = &s->config[s->best], *last = NULL;
    char *text = cli_strdup("");
    int count = 0;
    for (ptrdiff_t i = 0; i < arrlen(s->config); i++) {
        const cli_config *c = &s->config[i];
        char *more;
        if (!is_candidate(s, c) || (c->ep == b->ep && c->redundant == b->redundant) ||
            c->step.tokens_per_s_device < 0.99 * b->step.tokens_per_s_device ||
            (last && last->ep == c->ep && last->redundant == c->redundant))
            continue;
        more = cli_format("%s%sEP %d with %d", text,
                          count++ > 0 ? ", " : " As fast within 1 %: ", c->ep, c->redundant);
        free(text);
        text = more;
        last = c;
    }
    return count > 0 ? cli_format("%s.", text) : text;
}

static void write_verdict(cli_sweep *s)
{
    const cli_config *c, *plain;
    int tried = (int)arrlen(s->config), fit = 0;
    for (int i = 0; i < tried; i++) fit += s->config[i].fits;
    s->badge = s->best >= 0 ? "Recommended" : "Nothing fits";
    s->state = s->best >= 0 ? "yes" : "open";
    if (s->best < 0) {
        s->headline =
            fit > 0 && s->tpot_s > 0.0
                ? cli_format("No configuration with %s tokens per device stays within %s per token",
                             cli_count((double)s->tokens[0]), cli_seconds(s->tpot_s))
                : cli_format("%s with %s tokens per device does not fit on %d devices of %s",
                             s->setup.model.name, cli_count((double)s->tokens[0]), s->devices,
                             s->setup.machine.name);
        s->reason = cli_format("%d of %d configurations fit in memory at all.", fit, tried);
        return;
    }
    c = &s->config[s->best];
    plain = without_copies(s, c);
    s->headline = cli_format("Run EP %d with %d redundant experts: %s per token, %s tokens/s per "
                             "device",
                             c->ep, c->redundant, cli_seconds(c->step.tpot_s),
                             cli_count(c->step.tokens_per_s_device));
    s->reason = cli_format(
        "Overlap: %s. Limited by %s. %d slots per device, %s of %s used, max/mean over devices "
        "%.2f.%s%s Of all within 1 %% of the fastest the one with the fewest slots is named. %d of "
        "%d "
        "configurations fit in memory.",
        cli_overlap_str(c->overlap), cli_limit_str(c->limit), c->memory.slots,
        cli_bytes(c->memory.total_bytes), cli_bytes(s->setup.machine.memory_bytes), c->imbalance,
        plain ? cli_format(" With %d redundant experts it would be %s.", plain->redundant,
                           cli_seconds(plain->step.tpot_s))
              : "",
        rivals(s), fit, tried);
}

static void note_assumptions(cli_sweep *s)
{
    if (s->plan_on)
        cli_note(&s->setup, "Plans made on %s, tokens drawn from the popularity in %s.",
                 s->plan_on->name, s->serve->name);
    else
        cli_note(
            &s->setup,
            "Expert popularity is lognormal with sigma %.2g, drifted by %.2g since the plan was "
            "made (fits published imbalance of DeepSeek-V3); a recording as INPUT replaces it.",
            s->sigma, s->drift);
    cli_note(&s->setup, "%d layers were drawn and scaled to %d.", s->layers,
             s->setup.model.num_moe_layers);
    if (s->attention_us < 0.0)
        cli_note(&s->setup,
                 "Attention reads its weights and %s tokens of cache per sequence once, or "
                 "multiplies if that takes longer; --attention-us replaces it.",
                 cli_count(s->context));
    cli_note(&s->setup,
             "Attention is data parallel: each device holds all of it and the cache of its "
             "own sequences. %s of memory are kept for activations and the runtime.",
             cli_bytes(s->reserve_bytes));
    cli_note(&s->setup, "Rows are split %s over copies.", s->exact ? "exactly" : "evenly");
}

int cli_sweep_main(int argc, char **argv)
{
    static const cli_writers writers = {cli_sweep_text, cli_sweep_json, cli_sweep_html};
    cli_sweep s;
    cli_common common;
    cli_out page;
    cli_trace *list = NULL;
    char *left_out;
    int option;
    memset(&s, 0, sizeof s);
    memset(&common, 0, sizeof common);
    common.screen.color = "auto";
    s.layers = 8;
    s.context = 4096;
    s.attention_us = -1.0;
    s.reserve_bytes = 8e9;
    s.sigma = 1.1;
    s.drift = 0.1;
    s.seed = 1;
    while ((option = getopt_long(argc, argv, "", sweep_long, NULL)) != -1)
        take_option(&s, &common, option, optarg);
    if (optind < argc) list = cli_read_all(argc, argv, optind, &common.read, 1, &left_out);
    if (arrlen(list) > 2)
        cli_die(CLI_USAGE, "%td recordings: at most one to plan on and one to serve", arrlen(list));
    if (list) s.plan_on = &list[0];
    if (list) s.serve = &list[arrlen(list) - 1];
    settle_shapes(&s);
    settle_lists(&s);
    cli_open_page(&common, &page, argc, argv, optind);
    try_all(&s);
    find_front(&s);
    find_best(&s);
    write_verdict(&s);
    note_assumptions(&s);
    cli_progress_end();
    cli_write_all(&common, &page, &s, &writers);
    return CLI_OK;
}
