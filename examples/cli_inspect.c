/* cli_inspect.c - moe-ep inspect: does a model fit, is it legal, expert or tensor parallelism?  From numbers alone.
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_commands.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static const char inspect_help[] =
    "usage: moe-ep inspect --model NAME --machine NAME --devices D [options]\n"
    "\n"
    "Parameters, memory, legality, and expert against tensor parallelism of one model on one machine; no recording is\n"
    "read, nothing is measured.\n"
    "\n"
    "  --model NAME      --machine NAME   (moe-ep presets)\n"
    "  --layers L        --experts E   --topk K   --hidden H   --intermediate I   MoE layers and their shapes, of a\n"
    "                    model without a name, or instead of the model's\n"
    "  --shared N        shared experts   --dense-layers N   without experts   --dense-intermediate I   --vocab V\n"
    "  --attention-params N   weights of a layer's attention   --kv-elems N   cache elements per token and layer\n"
    "  --weights NAME    bf16, f16, f32, fp8, int8, mxfp4 or nvfp4; the last two of experts, the rest is bf16\n"
    "  --devices D       --nodes N   devices in all, nodes they are on\n"
    "  --ep N            devices that share the experts (all)\n"
    "  --tp N            --dp N   devices that share an attention (1), groups of them\n"
    "  --slots P         places for experts, copies included, or --redundant R of them beyond the experts (0)\n"
    "  --memory GB       of a device, instead of the machine's   --reserve-gb X   for activations and runtime (8)\n"
    "  --tokens T        tokens per device and step (64)   --uneven   the server takes unequal numbers of slots\n"
    "  --kernels NAME    of dispatch and combine: auto (normal from 512 tokens per device on), normal or low-latency\n"
    "  --exit-code       exit code 3 when it is not legal or does not fit; 0 without\n"
    "  --json            --width W   --ascii   --color auto|always|never\n";

enum { O_WEIGHTS = 256, O_UNEVEN, O_EXIT, O_NUMBER, MOST_REASONS = 16 /* there are ten */, MOST_DEVICES = 65536 };

typedef struct inspect {
    cli_setup setup;
    moe_ep_model given;   /* instead of the model's; -1 = not given, and num_layers are the dense ones */
    const char *weights;  /* NULL = as published, or bf16                                              */
    int32_t ep, tp, dp, redundant; /* redundant -1 = not given, until it is settled                    */
    int32_t ep_nodes;     /* nodes that ep devices are on                                              */
    int64_t tokens;       /* per device                                                                */
    double memory_bytes, reserve_bytes;
    int uneven, exit_code, normal; /* normal: the kernels                                              */

    moe_ep_params_result params;
    moe_ep_memory_result memory;
    int32_t smallest_ep;  /* 0 = none fits                                                             */
    moe_ep_reason reason[MOST_REASONS];
    int32_t reasons;
    int legal;
    moe_ep_ep_vs_tp_result against;
    const char *not_compared; /* why there is no `against`; NULL = there is                            */
    const char *headline, *why;
} inspect;

#define GIVEN(field) offsetof(inspect, given.field)
#define FIELD(field) offsetof(inspect, field)
enum { SHAPES_NEEDED = 5, SHAPES = 10 };
static const cli_number_option numbers[] = {
    {0, "layers", CLI_INT32, GIVEN(num_moe_layers), 1, 4096, 0}, /* the first five: no model is without them */
    {0, "experts", CLI_INT32, GIVEN(num_experts), 1, 65536, 0},
    {0, "topk", CLI_INT32, GIVEN(top_k), 1, 512, 0},
    {0, "hidden", CLI_INT32, GIVEN(hidden), 1, 1 << 20, 0},
    {0, "intermediate", CLI_INT32, GIVEN(inter), 1, 1 << 20, 0},
    {0, "shared", CLI_INT32, GIVEN(num_shared), 0, 65536, 0},
    {0, "dense-layers", CLI_INT32, GIVEN(num_layers), 0, 4096, 0},
    {0, "dense-intermediate", CLI_INT32, GIVEN(dense_inter), 1, 1 << 20, 0},
    {0, "vocab", CLI_INT32, GIVEN(vocab), 0, 1 << 24, 0},
    {0, "kv-elems", CLI_INT32, GIVEN(kv_elems), 0, 1 << 22, 0}, /* the last of the SHAPES */
    {0, "attention-params", CLI_INT64, GIVEN(attention_params), 0, 1e12, 0},
    {0, "ep", CLI_INT32, FIELD(ep), 1, MOST_DEVICES, 0},
    {0, "tp", CLI_INT32, FIELD(tp), 1, MOST_DEVICES, 0},
    {0, "dp", CLI_INT32, FIELD(dp), 1, MOST_DEVICES, 0},
    {0, "redundant", CLI_INT32, FIELD(redundant), 0, 1 << 20, 0},
    {0, "memory", CLI_DOUBLE, FIELD(memory_bytes), 0.001, 1e6, 1e9},
    {0, "reserve-gb", CLI_DOUBLE, FIELD(reserve_bytes), 0, 1e6, 1e9},
    {0, "tokens", CLI_INT64, FIELD(tokens), 1, 65536, 0}};
enum { NUMBERS = sizeof numbers / sizeof numbers[0] };

static const struct option other_options[] = {
    {"weights", 1, NULL, O_WEIGHTS},     {"uneven", 0, NULL, O_UNEVEN},     {"exit-code", 0, NULL, O_EXIT},
    {"devices", 1, NULL, CLI_O_DEVICES}, {"nodes", 1, NULL, CLI_O_NODES},   {"slots", 1, NULL, CLI_O_SLOTS},
    {"model", 1, NULL, CLI_O_MODEL},     {"machine", 1, NULL, CLI_O_MACHINE}, {"kernels", 1, NULL, CLI_O_KERNELS},
    {"json", 0, NULL, CLI_O_JSON},       {"width", 1, NULL, CLI_O_WIDTH},   {"ascii", 0, NULL, CLI_O_ASCII},
    {"color", 1, NULL, CLI_O_COLOR},     {"help", 0, NULL, CLI_O_HELP},     {NULL, 0, NULL, 0}};

/* ---- what is asked for ----------------------------------------------------------------------------------- */

static void take_options(inspect *x, cli_common *common, int argc, char **argv)
{
    struct option list[NUMBERS + sizeof other_options / sizeof other_options[0]];
    int option;
    for (int i = 0; i < NUMBERS; i++) list[i] = (struct option){numbers[i].name, 1, NULL, O_NUMBER + i};
    memcpy(list + NUMBERS, other_options, sizeof other_options);
    while ((option = cli_option(argc, argv, list, NULL)) != -1) {
        if (option >= O_NUMBER && option < O_NUMBER + NUMBERS) {
            cli_number_option number = numbers[option - O_NUMBER];
            number.option = option;
            (void)cli_take_number(&number, 1, x, option, optarg);
        } else if (option == O_WEIGHTS) x->weights = optarg;
        else if (option == O_UNEVEN) x->uneven = 1;
        else if (option == O_EXIT) x->exit_code = 1;
        else if (!cli_setup_option(&x->setup, option, optarg))
            (void)cli_common_option(common, option, optarg, inspect_help);
    }
    if (optind < argc) cli_die(CLI_USAGE, "inspect reads no input: %s", cli_printable(argv[optind]));
}

/* One of the SHAPES, in `given` or in the model. */
static int32_t *shape(moe_ep_model *m, int i)
{
    return (int32_t *)(void *)((char *)m + numbers[i].offset - offsetof(inspect, given));
}

/* What a model without a name has where nothing is said. */
static void start_nameless(inspect *x)
{
    moe_ep_model *m = &x->setup.model, *given = &x->given;
    for (int i = 0; i < SHAPES_NEEDED; i++)
        if (*shape(given, i) < 0)
            cli_die(CLI_USAGE, "--model is needed, or --layers, --experts, --topk, --hidden and --intermediate: there "
                               "is no --%s", numbers[i].name);
    m->name = "the model";
    m->attention_params = 4 * (int64_t)given->hidden * given->hidden;
    m->kv_elems = 2 * given->hidden;
    if (given->attention_params < 0 || given->kv_elems < 0)
        cli_note(&x->setup, "Attention is plain multi-head: 4 x hidden x hidden weights and, per token, 2 x hidden "
                            "elements of cache in a layer, unless --attention-params and --kv-elems say otherwise.");
    cli_note(&x->setup, "An expert has 3 matrices, the router no groups. Shared experts, dense layers and embeddings: "
                        "as far as --shared, --dense-layers and --vocab say.");
}

static void settle_shapes(inspect *x)
{
    moe_ep_model *m = &x->setup.model;
    int32_t dense;
    int changed = x->given.attention_params >= 0;
    if (x->setup.model_name) cli_setup_sizes(&x->setup, 0, 0, 0);
    else start_nameless(x);
    dense = x->given.num_layers >= 0 ? x->given.num_layers : m->num_layers - m->num_moe_layers;
    if (changed) m->attention_params = x->given.attention_params;
    for (int i = 0; i < SHAPES; i++) {
        changed |= *shape(&x->given, i) >= 0;
        if (*shape(&x->given, i) >= 0) *shape(m, i) = *shape(&x->given, i);
    }
    if ((dense > 0) != (m->dense_inter > 0) && (x->given.num_layers > 0 || x->given.dense_inter > 0))
        cli_die(CLI_USAGE, "--%s: only with --%s", numbers[dense > 0 ? 6 : 7].name, numbers[dense > 0 ? 7 : 6].name);
    m->num_layers = m->num_moe_layers + dense;
    if (m->top_k > m->num_experts)
        cli_die(CLI_USAGE, "--topk %d: there are only %d experts", m->top_k, m->num_experts);
    if (!x->setup.model_name || !changed) return;
    cli_note(&x->setup, "What is not given is that of %s.", m->name);
    m->name = cli_keep(cli_format("%s with other shapes", m->name));
    if (m->num_groups > 1 &&
        (m->num_experts % m->num_groups != 0 || m->top_k > m->num_experts / m->num_groups * m->top_groups)) {
        cli_note(&x->setup, "No router groups: these experts and choices do not go with its %d.", m->num_groups);
        m->num_groups = m->top_groups = 0;
    }
}

static void settle_weights(inspect *x)
{
    static const struct { const char *name; double bytes; } format[] = {
        {"bf16", 2}, {"f16", 2}, {"f32", 4}, {"fp8", 1}, {"int8", 1}, {"mxfp4", 0.53125}, {"nvfp4", 0.5625}};
    moe_ep_model *m = &x->setup.model;
    moe_ep_error err;
    size_t i = 0;
    while (x->weights && i < 7 && strcmp(x->weights, format[i].name) != 0) i++;
    if (i == 7)
        cli_die(CLI_USAGE, "--weights %s: bf16, f16, f32, fp8, int8, mxfp4 or nvfp4", cli_printable(x->weights));
    if (x->weights || !x->setup.model_name) { /* bf16 is the first */
        m->weight_bytes = format[i].bytes;
        m->other_weight_bytes = format[i].bytes < 1.0 ? 2.0 : format[i].bytes;
        m->math = i == 3 ? MOE_EP_MATH_FP8 : MOE_EP_MATH_BF16;
        m->in_bytes = i == 3 ? 1.0 : 2.0;
    }
    cli_note(&x->setup, "Bytes of a weight: %g in experts, %g elsewhere%s; products in %s.%s", m->weight_bytes,
             m->other_weight_bytes, x->weights || !x->setup.model_name ? "" : ", as published",
             m->math == MOE_EP_MATH_FP8 ? "FP8" : "bf16", x->weights ? "" : " --weights changes it.");
    cli_check(moe_ep_params(m, &x->params, &err), &err, "model");
    if ((double)x->params.total > 1e15)
        cli_die(CLI_USAGE, "these shapes make %.3g parameters; at most 1e15 are counted", (double)x->params.total);
}

static void settle_devices(inspect *x)
{
    cli_setup *s = &x->setup;
    int64_t span = (int64_t)(x->tp > 0 ? x->tp : 1) * (x->dp > 0 ? x->dp : 1);
    if (s->devices == 0) cli_die(CLI_USAGE, "--devices is needed");
    if (x->tp > 0 && x->dp > 0 && span != s->devices)
        cli_die(CLI_USAGE, "--tp %d --dp %d: that is not the %d of --devices", x->tp, x->dp, s->devices);
    if (s->devices % span != 0)
        cli_die(CLI_USAGE, "--%s %d: does not divide the %d of --devices", x->tp > 0 ? "tp" : "dp", (int)span,
                s->devices);
    if (x->tp + x->dp == 0)
        cli_note(s, "Attention is data parallel: every device has all of it and a cache of its own; --tp shares it.");
    if (x->tp == 0) x->tp = x->dp > 0 ? s->devices / x->dp : 1;
    x->dp = s->devices / x->tp;
    cli_setup_nodes(s);
    x->ep = x->ep > 0 ? x->ep : s->devices;
    x->ep_nodes = (x->ep - 1) / (s->devices / s->nodes) + 1;
}

static void settle_slots(inspect *x)
{
    int32_t E = x->setup.model.num_experts;
    int32_t *slots = &x->setup.slots;
    if (*slots > 0 && x->redundant >= 0) cli_die(CLI_USAGE, "--slots and --redundant: one of them");
    if (*slots > 0 && *slots < E) cli_die(CLI_USAGE, "--slots %d: fewer than the %d experts", *slots, E);
    if (*slots == 0 && x->redundant < 0)
        cli_note(&x->setup, "No redundant experts; --redundant or --slots adds them.");
    if (*slots == 0) *slots = E + (x->redundant > 0 ? x->redundant : 0);
    x->redundant = *slots - E;
    if (!x->uneven)
        cli_note(&x->setup, "The server wants as many slots on every device; --uneven takes that back.");
}

/* ---- the figures --------------------------------------------------------------------------------------- */

static moe_ep_memory_result weigh(const inspect *x, int32_t ep)
{
    moe_ep_memory_desc d = {.model = &x->setup.model, .num_devices = ep, .num_slots = x->setup.slots,
                            .tensor_parallel = x->tp, .reserve_bytes = x->reserve_bytes,
                            .memory_bytes = x->memory_bytes};
    moe_ep_memory_result r;
    moe_ep_error err;
    if (ep > 1 && !x->normal)
        d.buffer_bytes = moe_ep_ll_buffer_bytes((int32_t)x->tokens, d.model->hidden, d.num_slots, 1, &err);
    if (d.buffer_bytes < 0) cli_check((moe_ep_status)d.buffer_bytes, &err, "buffers");
    cli_check(moe_ep_memory(&d, &r, &err), &err, "memory");
    return r;
}

static void weigh_all(inspect *x)
{
    x->memory = weigh(x, x->ep);
    for (int32_t ep = 1; ep <= x->setup.slots && ep <= MOST_DEVICES && x->smallest_ep == 0; ep++)
        if ((x->uneven || x->setup.slots % ep == 0) && weigh(x, ep).fits) x->smallest_ep = ep;
    cli_note(&x->setup, "%s of memory are kept for activations and the runtime%s; --reserve-gb changes it.%s",
             cli_bytes(x->reserve_bytes), x->normal ? ", buffers of the normal kernels among them" : "",
             x->ep > 1 && !x->normal ? " Buffers are those of DeepEP's low-latency kernels for this batch." : "");
}

static void judge(inspect *x)
{
    moe_ep_config c = {.model = &x->setup.model, .ep = x->ep, .tp = x->tp, .dp = x->dp, .num_redundant = x->redundant,
                       .num_nodes = x->ep_nodes, .equal_slots = !x->uneven}; /* weigh() knows more of memory */
    moe_ep_error err;
    cli_check(moe_ep_check_config(&c, x->reason, MOST_REASONS, &x->reasons, NULL, &err), &err, "configuration");
    x->legal = 1;
    for (int32_t i = 0; i < x->reasons; i++) x->legal &= x->reason[i].severity != MOE_EP_WRONG;
}

static void compare(inspect *x)
{
    int bf16 = x->setup.model.math == MOE_EP_MATH_BF16;
    moe_ep_a2a_mode far = x->ep_nodes > 1 ? MOE_EP_A2A_NODE_DEDUP : MOE_EP_A2A_RANK_DEDUP;
    moe_ep_ep_vs_tp_desc d = {.model = &x->setup.model, .machine = &x->setup.machine, .num_devices = x->ep,
                              .num_nodes = x->ep_nodes, .num_slots = x->setup.slots, .tokens = (double)x->tokens,
                              .high_throughput = x->normal, .mode = x->normal ? far : MOE_EP_A2A_PAIR,
                              .dispatch_wire = bf16 ? MOE_EP_WIRE_BF16 : MOE_EP_WIRE_FP8};
    moe_ep_error err;
    char text[256] = "one device has nothing to share";
    moe_ep_status status = x->ep > 1 ? moe_ep_ep_vs_tp(&d, &x->against, &err) : MOE_EP_ERR_SIZE;
    if (status != MOE_EP_OK && x->ep > 1) (void)moe_ep_error_text(&err, text, sizeof text);
    if (status != MOE_EP_OK) x->not_compared = cli_keep(cli_strdup(text));
    else
        cli_note(&x->setup, "EP against TP: even loads; EP sends rows in %s and back in bf16, by %s kernels, TP "
                            "gathers and sums them in bf16. Shared experts are left out.",
                 bf16 ? "bf16" : "FP8", x->normal ? "normal" : "low-latency");
}

static void write_verdict(inspect *x)
{
    const moe_ep_memory_result *r = &x->memory;
    double speedup = x->against.speedup;
    int32_t slots = x->setup.slots, add = (x->ep - slots % x->ep) % x->ep;
    const char *size = "none", *equal = "", *faster = "", *lack = "";
    if (x->smallest_ep > 0) size = cli_keep(cli_format("%d", x->smallest_ep));
    if (add > 0 && !x->uneven)
        equal = cli_keep(cli_format(" --redundant %d makes it %d slots, %d on each device.", x->redundant + add,
                                    slots + add, (slots + add) / x->ep));
    if (!x->not_compared)
        faster = cli_keep(cli_format(" %s is %.2f times as fast as %s at %s tokens per device.",
                                     speedup < 1.0 ? "TP" : "EP", speedup < 1.0 ? 1.0 / speedup : speedup,
                                     speedup < 1.0 ? "EP" : "TP", cli_count((double)x->tokens)));
    if (!r->fits) lack = cli_keep(cli_format(", %s too much", cli_bytes(-r->kv_room_bytes)));
    x->headline = cli_keep(cli_format("%s %s on %d %s at EP %d: %s of %s per device%s", x->setup.model.name,
                                      !x->legal ? "is not legal" : r->fits ? "fits" : "does not fit",
                                      x->setup.devices, x->setup.machine.name, x->ep, cli_bytes(r->total_bytes),
                                      cli_bytes(x->memory_bytes), lack));
    x->why = cli_keep(cli_format("The smallest EP that fits: %s.%s%s", size, equal, faster));
}

/* ---- the answer ---------------------------------------------------------------------------------------- */

/* Numbers by their names in JSON and in the text, in three tables. */
enum { PARAMS, MEMORY, SIDES, FIGURES = 25 };
typedef struct figure {
    int table;
    const char *key, *label;
    double value, other; /* other: bytes of so many parameters; under tensor parallelism */
} figure;

static void list_figures(const inspect *x, figure *list)
{
    const moe_ep_params_result *p = &x->params;
    const moe_ep_memory_result *r = &x->memory;
    const moe_ep_ep_vs_tp_result *a = &x->against;
    double w = x->setup.model.weight_bytes, o = x->setup.model.other_weight_bytes, expert = (double)p->expert;
    double slot = expert * x->setup.model.num_moe_layers, experts = (double)(p->routed + p->shared);
    const figure all[FIGURES] = {
        {PARAMS, "expert", "one expert", expert, expert * w},
        {PARAMS, "layer", "experts of a layer", (double)p->layer, (double)p->layer * w},
        {PARAMS, "routed", "routed experts", (double)p->routed, (double)p->routed * w},
        {PARAMS, "shared", "shared experts", (double)p->shared, (double)p->shared * w},
        {PARAMS, "router", "router", (double)p->router, (double)p->router * o},
        {PARAMS, "dense", "dense layers", (double)p->dense, (double)p->dense * o},
        {PARAMS, "attention", "attention", (double)p->attention, (double)p->attention * o},
        {PARAMS, "embedding", "embeddings", (double)p->embedding, (double)p->embedding * o},
        {PARAMS, "total", "total", (double)p->total, experts * w + ((double)p->total - experts) * o},
        {PARAMS, "redundant_slot", "one redundant slot", slot, slot * w},
        {PARAMS, "active", "active for a token", (double)p->active, -1.0},
        {MEMORY, "routed_bytes", "experts", r->routed_bytes, 0.0},
        {MEMORY, "redundant_bytes", "  redundant of them", r->redundant_bytes, 0.0},
        {MEMORY, "shared_bytes", "shared experts", r->shared_bytes, 0.0},
        {MEMORY, "router_bytes", "router", r->router_bytes, 0.0},
        {MEMORY, "other_bytes", "other weights", r->other_bytes, 0.0},
        {MEMORY, "buffer_bytes", "buffers", r->buffer_bytes, 0.0},
        {MEMORY, "reserve_bytes", "reserve", x->reserve_bytes, 0.0},
        {MEMORY, "total_bytes", "total", r->total_bytes, 0.0},
        {MEMORY, "kv_room_bytes", "left for cache", r->kv_room_bytes, 0.0},
        {SIDES, "weight_bytes", "weights on a device", a->ep_weight_bytes, a->tp_weight_bytes},
        {SIDES, "sent_bytes", "sent by a device", a->ep_sent_bytes, a->tp_sent_bytes},
        {SIDES, "compute_s", "experts compute", a->ep_compute_s, a->tp_compute_s},
        {SIDES, "comm_s", "communication", a->ep_comm_s, a->tp_comm_s},
        {SIDES, "total_s", "together", a->ep_s, a->tp_s}};
    memcpy(list, all, sizeof all);
}

static const char *severity(const moe_ep_reason *r)
{
    return r->severity == MOE_EP_WRONG ? "wrong" : r->severity == MOE_EP_WARNING ? "warning" : "note";
}

/* A heading, which it takes over, and the table below it. */
static void put_table(const inspect *x, FILE *f, const chart_text *t, char *title, int table)
{
    figure list[FIGURES];
    list_figures(x, list);
    cli_put_title(f, t, title);
    for (const figure *g = list; g < list + FIGURES; g++) {
        const char *(*text)(double v) = table == SIDES && !strstr(g->key, "bytes") ? cli_seconds : cli_bytes;
        if (g->table != table || !(g->value > 0.0)) continue;
        fprintf(f, "  %-19s ", g->label);
        if (table == PARAMS) fprintf(f, "%19s", cli_count(g->value));
        else fprintf(f, "%10s", text(g->value));
        if (table != MEMORY && g->other >= 0.0) fprintf(f, " %10s", text(g->other));
        fputc('\n', f);
    }
    free(title);
}

static void inspect_text(const void *data, FILE *f, const chart_text *t)
{
    const inspect *x = data;
    const moe_ep_model *m = &x->setup.model;
    const moe_ep_memory_result *r = &x->memory;
    cli_put_headline(f, t, x->headline, x->why);
    put_table(x, f, t, cli_format("Parameters: %d of %d layers with %d experts of %d x %d x %d, top-%d",
                                  m->num_moe_layers, m->num_layers, m->num_experts, m->ungated ? 2 : 3, m->hidden,
                                  m->inter, m->top_k), PARAMS);
    put_table(x, f, t, cli_format("Memory of the fullest device, slots: %d", r->slots), MEMORY);
    if (r->fits && m->kv_elems > 0)
        fprintf(f, "  that is a cache of %s tokens, %s for each of %s\n", cli_count((double)r->kv_tokens),
                cli_count((double)(r->kv_tokens / x->tokens)), cli_count((double)x->tokens));
    put_table(x, f, t, cli_format("Configuration: EP %d, TP %d, DP %d, %d slots for %d experts: %s", x->ep, x->tp,
                                  x->dp, x->setup.slots, m->num_experts, x->legal ? "legal" : "not legal"), FIGURES);
    for (const moe_ep_reason *w = x->reason; w < x->reason + x->reasons; w++) {
        fprintf(f, "  %s:", severity(w));
        cli_put_wrapped(f, cli_keep(cli_format("%s (%s, %s)", w->text, cli_count(w->have), cli_count(w->need))),
                        t->width, 4, 3 + cli_columns(severity(w)));
    }
    if (x->not_compared) put_table(x, f, t, cli_format("EP and TP are not compared: %s", x->not_compared), FIGURES);
    else put_table(x, f, t, cli_strdup("Experts of one layer          EP         TP"), SIDES);
    cli_put_assumed(f, t, x->setup.assumed);
}

static void inspect_json(const void *data, FILE *f)
{
    static const char *const name[] = {"parameters", "memory", "ep"}, *const other[] = {"bytes", NULL, "tp"};
    const inspect *x = data;
    const cli_setup *s = &x->setup;
    json_t *root = json_object(), *against = json_object(), *reasons = json_array();
    figure list[FIGURES];
    list_figures(x, list);
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", x->headline, "reason", x->why, "model", s->model.name,
                   "machine", s->machine.name, "assumed", s->assumed, NULL);
    cli_json_counts(root, "devices", (int64_t)s->devices, "nodes", (int64_t)s->nodes, "ep", (int64_t)x->ep, "tp",
                    (int64_t)x->tp, "dp", (int64_t)x->dp, "slots", (int64_t)s->slots, "redundant",
                    (int64_t)x->redundant, "slots_per_device", (int64_t)x->memory.slots, "tokens_per_device",
                    x->tokens, "smallest_ep", (int64_t)x->smallest_ep, "kv_tokens", x->memory.kv_tokens, NULL);
    cli_json_numbers(root, "memory_bytes", x->memory_bytes, NULL);
    if (x->smallest_ep == 0) json_object_set_new(root, "smallest_ep", json_null());
    json_object_set_new(root, "legal", json_boolean(x->legal));
    json_object_set_new(root, "fits", json_boolean(x->memory.fits));
    for (const moe_ep_reason *w = x->reason; w < x->reason + x->reasons; w++)
        json_array_append_new(reasons, json_pack("{s:s, s:s, s:I, s:I}", "severity", severity(w), "text", w->text,
                                                 "have", (json_int_t)w->have, "need", (json_int_t)w->need));
    json_object_set_new(root, "reasons", reasons);
    for (int table = PARAMS; table <= SIDES; table++) {
        json_t *a = json_object(), *b = json_object();
        for (const figure *g = list; g < list + FIGURES; g++) {
            if (g->table != table) continue;
            if (table == PARAMS) cli_json_counts(a, g->key, (int64_t)g->value, NULL);
            else cli_json_numbers(a, g->key, g->value, NULL);
            if (g->other >= 0.0) cli_json_numbers(b, g->key, g->other, NULL);
        }
        json_object_set_new(table == SIDES ? against : root, name[table], a);
        if (other[table]) json_object_set(table == SIDES ? against : root, other[table], b);
        json_decref(b);
    }
    if (x->not_compared) json_object_clear(against);
    if (x->not_compared) cli_json_words(against, "not_compared", x->not_compared, NULL);
    else cli_json_numbers(against, "speedup", x->against.speedup, NULL);
    json_object_set_new(root, "ep_vs_tp", against);
    cli_json_write(root, f);
}

int cli_inspect_main(int argc, char **argv)
{
    static const cli_writers writers = {.text = inspect_text, .json = inspect_json};
    static inspect x = {.redundant = -1, .tokens = 64, .reserve_bytes = 8e9, .given.attention_params = -1};
    static cli_common common = {.screen.color = "auto"};
    static cli_out page;
    for (int i = 0; i < SHAPES; i++) *shape(&x.given, i) = -1;
    take_options(&x, &common, argc, argv);
    settle_shapes(&x);
    settle_weights(&x);
    cli_setup_machine(&x.setup);
    settle_devices(&x);
    settle_slots(&x);
    x.normal = x.setup.kernels == CLI_KERNELS_AUTO ? x.tokens >= 512 : x.setup.kernels == CLI_KERNELS_NORMAL;
    if (!(x.memory_bytes > 0.0)) x.memory_bytes = x.setup.machine.memory_bytes;
    weigh_all(&x);
    judge(&x);
    compare(&x);
    write_verdict(&x);
    cli_write_all(&common, &page, &x, &writers);
    free(x.setup.assumed);
    return x.exit_code && !(x.legal && x.memory.fits) ? 3 : CLI_OK;
}
