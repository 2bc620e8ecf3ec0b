/* cli_inspect.c - moe-ep inspect: does a model fit, is it legal, expert or tensor parallelism?  From numbers alone.
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_inspect.h"

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
    "  --kv-heads N      heads over which --tp shares these (from the model; 1 = whole on each device, as MLA's)\n"
    "  --weights NAME    bf16, f16, f32, fp8, int8, mxfp4 or nvfp4; the last two of experts, the rest is bf16\n"
    "  --devices D       --nodes N   devices in all, nodes they are on\n"
    "  --ep N            groups of devices that share the experts (all devices)\n"
    "  --expert-tp N     devices that cut each expert (as many as are in a group; 1 = none do, copies of all instead)\n"
    "  --tp N            --dp N   devices that share an attention (1), groups of them\n"
    "  --slots P         places for experts, copies included, or --redundant R of them beyond the experts (0)\n"
    "  --memory GB       of a device, instead of the machine's   --reserve-gb X   for activations and runtime (8)\n"
    "  --tokens T        tokens per device and step (64)   --uneven   the server takes unequal numbers of slots\n"
    "  --kernels NAME    of dispatch and combine: auto (normal from 512 tokens per device on), normal or low-latency\n"
    "  --exit-code       exit code 3 when it is not legal or does not fit; 0 without\n"
    "  --json            --width W   --ascii   --color auto|always|never\n";

enum { O_WEIGHTS = 256, O_UNEVEN, O_EXIT, O_NUMBER, MOST_DEVICES = 65536 };

#define GIVEN(field) offsetof(cli_inspect, given.field)
#define FIELD(field) offsetof(cli_inspect, field)
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
    {0, "expert-tp", CLI_INT32, FIELD(expert_tp), 1, MOST_DEVICES, 0},
    {0, "tp", CLI_INT32, FIELD(tp), 1, MOST_DEVICES, 0},
    {0, "dp", CLI_INT32, FIELD(dp), 1, MOST_DEVICES, 0},
    {0, "redundant", CLI_INT32, FIELD(redundant), 0, 1 << 20, 0},
    {0, "kv-heads", CLI_INT32, FIELD(kv_heads), 1, 1 << 22, 0},
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

static void take_options(cli_inspect *x, cli_common *common, int argc, char **argv)
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
    cli_check_form(common, NULL);
    if (optind < argc) cli_die(CLI_USAGE, "inspect reads no input: %s", cli_printable(argv[optind]));
}

/* One of the SHAPES, in `given` or in the model. */
static int32_t *shape(moe_ep_model *m, int i)
{
    return (int32_t *)(void *)((char *)m + numbers[i].offset - offsetof(cli_inspect, given));
}

/* What a model without a name has where nothing is said. */
static void start_nameless(cli_inspect *x)
{
    moe_ep_model *m = &x->setup.model, *given = &x->given;
    for (int i = 0; i < SHAPES_NEEDED; i++)
        if (*shape(given, i) < 0)
            cli_die(CLI_USAGE, "--model is needed, or --layers, --experts, --topk, --hidden and --intermediate: there "
                               "is no --%s", numbers[i].name);
    m->name = "the model";
    m->attention_params = 4 * (int64_t)given->hidden * given->hidden;
    m->kv_elems = 2 * given->hidden;
    m->attention_flops = 4 * (int64_t)given->hidden;
    m->kv_bytes = 2.0;
    if (given->attention_params < 0 || given->kv_elems < 0)
        cli_note(&x->setup, "Attention is plain multi-head: 4 x hidden x hidden weights and, per token, 2 x hidden "
                            "elements of cache in a layer, unless --attention-params and --kv-elems say otherwise.");
    cli_note(&x->setup, "An expert has 3 matrices, the router no groups. Shared experts, dense layers and embeddings: "
                        "as far as --shared, --dense-layers and --vocab say.");
}

static void settle_shapes(cli_inspect *x)
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
    if (m->window_layers > 0) /* the same share of them */
        m->window_layers = (int32_t)((int64_t)m->window_layers * (m->num_moe_layers + dense) / m->num_layers);
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

static void settle_weights(cli_inspect *x)
{
    static const char *const format[] = {"bf16", "f16", "f32", "fp8", "int8", "mxfp4", "nvfp4"};
    static const char *const math[] = {"bf16", "FP8", "FP4"}; /* in the order of moe_ep_math */
    moe_ep_model *m = &x->setup.model, like;
    moe_ep_error err;
    size_t i = 0;
    while (x->weights && i < 7 && strcmp(x->weights, format[i]) != 0) i++;
    if (i == 7)
        cli_die(CLI_USAGE, "--weights %s: bf16, f16, f32, fp8, int8, mxfp4 or nvfp4", cli_printable(x->weights));
    if (x->weights || !x->setup.model_name) { /* bf16 is the first; as in a bf16 model's checkpoint of that name */
        char *name = cli_format("mixtral-8x7b-%s", i == 1 || i == 2 ? format[0] : format[i]);
        cli_check(moe_ep_model_by_name(name, &like, &err), &err, name);
        free(name);
        m->math = like.math;
        m->in_bytes = like.in_bytes;
        m->weight_bytes = i == 2 ? 4.0 : like.weight_bytes;
        m->other_weight_bytes = i == 2 ? 4.0 : like.other_weight_bytes;
        m->shared_weight_bytes = like.shared_weight_bytes;
        m->embedding_weight_bytes = i == 2 ? 4.0 : like.embedding_weight_bytes;
    }
    cli_note(&x->setup, "Bytes of a weight: %g in experts%s, %g elsewhere%s%s; products in %s.%s", m->weight_bytes,
             m->shared_weight_bytes > 0.0 ? cli_keep(cli_format(" (%g in shared ones)", m->shared_weight_bytes)) : "",
             m->other_weight_bytes,
             m->embedding_weight_bytes > m->other_weight_bytes
                 ? cli_keep(cli_format(" (%g in embeddings)", m->embedding_weight_bytes))
                 : "",
             x->weights || !x->setup.model_name ? "" : ", as published",
             math[m->math], x->weights ? "" : " --weights changes it.");
    cli_check(moe_ep_params(m, &x->params, &err), &err, "model");
    if ((double)x->params.total > 1e15)
        cli_die(CLI_USAGE, "these shapes make %.3g parameters; at most 1e15 are counted", (double)x->params.total);
}

static int32_t nodes_of(const cli_inspect *x, int32_t devices)
{
    return (devices - 1) / (x->setup.devices / x->setup.nodes) + 1;
}

/* How many devices share the experts, and how many cut each. */
static void settle_experts(cli_inspect *x)
{
    cli_setup *s = &x->setup;
    if (x->expert_tp > 0 && s->devices % x->expert_tp != 0)
        cli_die(CLI_USAGE, "--expert-tp %d: does not divide the %d of --devices", x->expert_tp, s->devices);
    if (x->ep == 0) x->ep = s->devices / (x->expert_tp > 0 ? x->expert_tp : 1);
    if (x->expert_tp > 1 && x->ep > s->devices / x->expert_tp)
        cli_die(CLI_USAGE, "--ep %d --expert-tp %d: more than the %d of --devices", x->ep, x->expert_tp, s->devices);
    x->cut = x->expert_tp > 0 ? x->expert_tp : s->devices % x->ep == 0 ? s->devices / x->ep : 1;
    if (x->cut > 1)
        cli_note(s, "With EP %d each expert is cut over %d devices, as in %sSGLang and TensorRT-LLM%s. They cut the "
                    "shared experts over TP, too, and sum rows without all-to-all buffers.", x->ep, x->cut,
                 x->ep == 1 ? "vLLM without --enable-expert-parallel, " : "",
                 x->expert_tp > 0 ? "" : "; --expert-tp 1 makes them copies of whole experts");
    else if (x->tp > 1 && x->setup.model.num_shared > 0)
        cli_note(s, "Shared experts are whole on every device, as with all-to-all kernels; servers without these cut "
                    "them over TP.");
    if (x->expert_tp > 0 && x->ep < s->devices / x->cut)
        cli_note(s, "%d of the %d devices hold all experts, the others have copies of them.", x->ep * x->cut,
                 s->devices);
}

static void settle_devices(cli_inspect *x)
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
    settle_experts(x);
}

/* How many KV heads the cache has: the presets' are of 2 x 128 elements, those of gpt-oss of 2 x 64; latent attention,
 * which is no multiple of that, has one cache for all heads. */
static int32_t presumed_heads(const moe_ep_model *m)
{
    int32_t head = strncmp(m->name, "gpt-oss", 7) == 0 ? 128 : 256;
    return m->kv_elems > 0 && m->kv_elems % head == 0 ? m->kv_elems / head : 1;
}

static void settle_cache(cli_inspect *x)
{
    const moe_ep_model *m = &x->setup.model;
    int given = x->kv_heads > 0;
    int32_t held;
    if (!given) x->kv_heads = presumed_heads(m);
    if (m->kv_elems % x->kv_heads != 0)
        cli_die(CLI_USAGE, "--kv-heads %d: does not divide the %d cache elements of a token and layer", x->kv_heads,
                m->kv_elems);
    held = (x->kv_heads - 1) / x->tp + 1;
    x->kv_on_device = m->kv_elems / x->kv_heads * held;
    x->sequences = x->tokens * x->tp;
    if (x->tp == 1 || m->kv_elems == 0) return;
    cli_note(&x->setup, "The %d devices of TP have the tokens of all of them, %s sequences. Of their cache %s%s", x->tp,
             cli_count((double)x->sequences),
             x->kv_heads == 1
                 ? "each holds the whole: one head for all, as in latent attention (MLA)"
                 : cli_keep(cli_format("each holds %d of %d KV heads of %d elements%s", held, x->kv_heads,
                                       m->kv_elems / x->kv_heads, x->tp > x->kv_heads ? ", some the same" : "")),
             given ? "." : "; --kv-heads changes that.");
}

static void settle_slots(cli_inspect *x)
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

/* ep groups of so many devices that cut each expert. */
static moe_ep_memory_result weigh(const cli_inspect *x, int32_t ep, int32_t cut)
{
    moe_ep_model on_device = x->setup.model;
    moe_ep_memory_desc d = {.model = &on_device, .num_devices = ep, .num_slots = x->setup.slots,
                            .tensor_parallel = x->tp, .reserve_bytes = x->reserve_bytes,
                            .memory_bytes = x->memory_bytes, .expert_tensor_parallel = cut,
                            .shared_tensor_parallel = cut > 1 ? x->tp : 1};
    moe_ep_memory_result r;
    moe_ep_error err;
    on_device.kv_elems = x->kv_on_device;
    if (ep > 1 && cut == 1 && !x->normal)
        d.buffer_bytes = moe_ep_ll_buffer_bytes((int32_t)x->tokens, d.model->hidden, d.num_slots, 1, &err);
    if (d.buffer_bytes < 0) cli_check((moe_ep_status)d.buffer_bytes, &err, "buffers");
    cli_check(moe_ep_memory(&d, &r, &err), &err, "memory");
    return r;
}

/* Whether ep groups of so many devices may share the experts, and what is said of it. */
static int is_legal(const cli_inspect *x, int32_t ep, int32_t cut, int32_t devices, moe_ep_reason *reason,
                    int32_t *reasons)
{
    moe_ep_config c = {.model = &x->setup.model, .ep = ep, .tp = x->tp, .dp = devices / x->tp,
                       .num_redundant = x->redundant, .num_nodes = nodes_of(x, ep),
                       .equal_slots = !x->uneven, .num_devices = devices,
                       .expert_tp = cut}; /* weigh() knows more of memory */
    moe_ep_error err;
    int legal = 1;
    cli_check(moe_ep_check_config(&c, reason, CLI_REASONS, reasons, NULL, &err), &err, "configuration");
    for (int32_t i = 0; i < *reasons; i++) legal &= reason[i].severity != MOE_EP_WRONG;
    return legal;
}

/* What the smallest EP is looked for with: whole experts, unless they are to be cut. */
static int32_t cut_of_all(const cli_inspect *x)
{
    return x->expert_tp > 0 ? x->expert_tp : 1;
}

static int legal_and_fits(const cli_inspect *x, int32_t ep, int32_t devices)
{
    moe_ep_reason reason[CLI_REASONS];
    int32_t reasons, cut = cut_of_all(x);
    return is_legal(x, ep, cut, devices, reason, &reasons) && weigh(x, ep, cut).fits;
}

static int64_t common_multiple(int64_t a, int64_t b)
{
    int64_t x = a, y = b;
    while (y > 0) {
        int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

/* The fewest devices of this kind that the groups of experts and of TP divide: part of a node, or whole nodes. */
static int64_t devices_for(const cli_inspect *x, int32_t ep)
{
    int32_t per = x->setup.machine.devices_per_node;
    int64_t least = common_multiple((int64_t)ep * cut_of_all(x), x->tp);
    if (x->setup.nodes_given || x->setup.nodes > 1) per = x->setup.devices / x->setup.nodes;
    return per > 0 && least > per ? common_multiple(least, per) : least;
}

static void search_sizes(cli_inspect *x)
{
    for (int32_t ep = 1; ep <= x->setup.devices && x->smallest_ep == 0; ep++)
        if (x->setup.devices % ep == 0 && legal_and_fits(x, ep, x->setup.devices)) x->smallest_ep = ep;
    if (x->smallest_ep > 0) return;
    for (int32_t ep = 1; ep <= x->setup.slots && ep <= MOST_DEVICES; ep++) {
        int64_t devices = devices_for(x, ep);
        if (devices > MOST_DEVICES || (x->needed > 0 && devices >= x->needed)) continue;
        if (!legal_and_fits(x, ep, (int32_t)devices)) continue;
        x->needed = (int32_t)devices;
        x->needed_ep = ep;
    }
}

static void weigh_all(cli_inspect *x)
{
    x->memory = weigh(x, x->ep, x->cut);
    x->legal = is_legal(x, x->ep, x->cut, x->setup.devices, x->reason, &x->reasons);
    search_sizes(x);
    cli_note(&x->setup, "%s of memory are kept for activations and the runtime%s; --reserve-gb changes it.%s",
             cli_bytes(x->reserve_bytes), x->normal ? ", buffers of the normal kernels among them" : "",
             x->memory.buffer_bytes > 0.0 ? " Buffers are those of DeepEP's low-latency kernels for this batch." : "");
}

/* Cut experts compute on each device what fewer columns of ep groups' experts take, all devices' tokens among them;
 * rows are gathered and summed over all devices, as where every expert is cut over all of them. */
static void compare_cut(cli_inspect *x)
{
    moe_ep_ep_vs_tp_result *a = &x->against, part;
    moe_ep_model thin = x->setup.model;
    moe_ep_ep_vs_tp_desc d = {.model = &thin, .machine = &x->setup.machine, .num_devices = x->ep, .num_nodes = 1,
                              .num_slots = x->setup.slots, .tokens = (double)x->tokens * x->cut};
    moe_ep_error err;
    thin.inter = (thin.inter - 1) / x->cut + 1;
    cli_check(moe_ep_ep_vs_tp(&d, &part, &err), &err, "cut experts");
    a->tp_weight_bytes = part.ep_weight_bytes;
    a->tp_compute_s = part.ep_compute_s;
    a->tp_s = a->tp_compute_s + a->tp_comm_s;
    a->speedup = a->tp_s / a->ep_s;
}

static void compare(cli_inspect *x)
{
    int bf16 = x->setup.model.math == MOE_EP_MATH_BF16;
    int32_t group = x->group = x->ep * x->cut, nodes = nodes_of(x, group);
    moe_ep_a2a_mode far = nodes > 1 ? MOE_EP_A2A_NODE_DEDUP : MOE_EP_A2A_RANK_DEDUP;
    moe_ep_ep_vs_tp_desc d = {.model = &x->setup.model, .machine = &x->setup.machine, .num_devices = group,
                              .num_nodes = nodes, .num_slots = x->setup.slots, .tokens = (double)x->tokens,
                              .high_throughput = x->normal, .mode = x->normal ? far : MOE_EP_A2A_PAIR,
                              .dispatch_wire = bf16 ? MOE_EP_WIRE_BF16 : MOE_EP_WIRE_FP8};
    moe_ep_error err;
    char text[256] = "one device has nothing to share";
    moe_ep_status status = group > 1 ? moe_ep_ep_vs_tp(&d, &x->against, &err) : MOE_EP_ERR_SIZE;
    if (status == MOE_EP_OK && x->ep > 1 && x->cut > 1) compare_cut(x);
    if (status != MOE_EP_OK && group > 1) (void)moe_ep_error_text(&err, text, sizeof text);
    if (status != MOE_EP_OK) x->not_compared = cli_keep(cli_strdup(text));
    else
        cli_note(&x->setup, "EP against TP: even loads; EP%s sends rows in %s and back in bf16, by %s kernels, %s "
                            "gathers and sums them in bf16. Shared experts are left out.",
                 x->cut > 1 ? cli_keep(cli_format(" %d", group)) : "", bf16 ? "bf16" : "FP8",
                 x->normal ? "normal" : "low-latency",
                 x->ep > 1 && x->cut > 1 ? cli_keep(cli_format("EP %d with cut experts", x->ep)) : "TP");
}

static const char *smallest(const cli_inspect *x)
{
    int32_t devices = x->setup.devices;
    const char *none = devices == 1 ? "none on this device" : cli_keep(cli_format("none on these %d devices", devices));
    if (x->smallest_ep > 0) return cli_keep(cli_format("%d", x->smallest_ep));
    if (x->needed == 0) return cli_keep(cli_format("%s, nor on more of them", none));
    return cli_keep(cli_format("%s; %d such device%s would do, at EP %d", none, x->needed, x->needed == 1 ? "" : "s",
                               x->needed_ep));
}

/* Whether so many more slots make it legal: they do not where something else is wrong, too. */
static int slots_suffice(const cli_inspect *x, int32_t add)
{
    cli_inspect more = *x;
    moe_ep_reason reason[CLI_REASONS];
    int32_t reasons;
    more.redundant += add;
    return is_legal(&more, x->ep, x->cut, x->setup.devices, reason, &reasons);
}

static void write_verdict(cli_inspect *x)
{
    const moe_ep_memory_result *r = &x->memory;
    double speedup = x->against.speedup;
    int32_t slots = x->setup.slots, add = (x->ep - slots % x->ep) % x->ep;
    const char *equal = "", *faster = "", *lack = "", *cut = "", *ep = "EP", *tp = "TP";
    if (add > 0 && !x->uneven && slots_suffice(x, add))
        equal = cli_keep(cli_format(" --redundant %d makes it %d slots, %d on each device.", x->redundant + add,
                                    slots + add, (slots + add) / x->ep));
    if (x->cut > 1) {
        cut = cli_keep(cli_format(", experts cut over %d", x->cut));
        ep = cli_keep(cli_format("EP %d with whole experts", x->group));
        if (x->ep > 1) tp = cli_keep(cli_format("EP %d with cut ones", x->ep));
    }
    if (!x->not_compared)
        faster = cli_keep(cli_format(" %s is %.2f times as fast as %s at %s tokens per device.",
                                     speedup < 1.0 ? tp : ep, speedup < 1.0 ? 1.0 / speedup : speedup,
                                     speedup < 1.0 ? ep : tp, cli_count((double)x->tokens)));
    if (!r->fits) lack = cli_keep(cli_format(", %s too much", cli_bytes(-r->kv_room_bytes)));
    x->headline = cli_keep(cli_format("%s %s on %d %s at EP %d%s: %s of %s per device%s", x->setup.model.name,
                                      !x->legal ? "is not legal" : r->fits ? "fits" : "does not fit",
                                      x->setup.devices, x->setup.machine.name, x->ep, cut, cli_bytes(r->total_bytes),
                                      cli_bytes(x->memory_bytes), lack));
    x->why = cli_keep(cli_format("The smallest EP that fits%s: %s.%s%s",
                                 x->expert_tp > 1 ? cli_keep(cli_format(" with experts cut over %d", x->expert_tp))
                                 : x->cut > 1     ? " with whole experts"
                                                  : "",
                                 smallest(x), equal, faster));
}

int cli_inspect_main(int argc, char **argv)
{
    static const cli_writers writers = {.text = cli_inspect_text, .json = cli_inspect_json};
    static cli_inspect x = {.redundant = -1, .tokens = 64, .reserve_bytes = 8e9, .given.attention_params = -1};
    static cli_common common = {.screen.color = "auto"};
    static cli_out page;
    for (int i = 0; i < SHAPES; i++) *shape(&x.given, i) = -1;
    take_options(&x, &common, argc, argv);
    settle_shapes(&x);
    settle_weights(&x);
    cli_setup_machine(&x.setup);
    settle_devices(&x);
    settle_slots(&x);
    settle_cache(&x);
    x.normal = x.setup.kernels == CLI_KERNELS_AUTO ? x.tokens >= 512 : x.setup.kernels == CLI_KERNELS_NORMAL;
    if (!(x.memory_bytes > 0.0)) x.memory_bytes = x.setup.machine.memory_bytes;
    weigh_all(&x);
    compare(&x);
    write_verdict(&x);
    cli_write_all(&common, &page, &x, &writers);
    free(x.setup.assumed);
    return x.exit_code && !(x.legal && x.memory.fits) ? 3 : CLI_OK;
}
