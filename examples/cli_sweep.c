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
    "  --nodes N         nodes of the machine, or --devices D devices in all; both: D devices on N nodes of equal\n"
    "                    size\n"
    "  --tokens T,...    tokens per device and step; the first is the one that is asked about, "
    "without a list its\n"
    "                    quarter, half, double and fourfold are tried, too (64)\n"
    "  --ep D,...        EP sizes; more devices serve several copies (all that divide the devices and lie evenly on "
    "nodes,\n"
    "                    up to the experts, at most 16 of them with the largest)\n"
    "  --redundant R,... redundant experts per layer (the fewest that give all devices equally many slots; 1, 2 and 4 "
    "more\n"
    "                    slots on each)\n"
    "  --overlap X,...   none, shared (expert under dispatch), two (batches, attention hides the "
    "other's experts),\n"
    "                    two-hidden (communication under all compute), two-staggered (attention "
    "under combine,\n"
    "                    experts under dispatch) (none,shared,two)\n"
    "  --policy P,...    placement: best, lpt, eplb, eplb-nodes, trtllm, contiguous, round-robin "
    "(best)\n"
    "  --kernels NAME    of dispatch and combine: auto (normal from 512 tokens per device on), normal or low-latency\n"
    "  --context C       tokens of cache per sequence (4096)\n"
    "  --drafts N        tokens drafted for each sequence and step: N + 1 of the tokens are one sequence's (0)\n"
    "  --accepted X      tokens of them, its own included, that are accepted on average (1)\n"
    "  --attention-us X  attention of a layer at these tokens (from its weights, the cache and what it multiplies)\n"
    "  --other-ms X      the rest of a step      --reserve-gb X   memory for activations and "
    "runtime (8)\n"
    "  --tpot-ms X       longest time per token that is allowed (no limit)\n"
    "  INPUT             popularity of the experts: plans are made on the first, tokens drawn from "
    "the second\n"
    "                    (or the first).  Without: lognormal, --sigma S (1.1), drifted by --drift "
    "S (0.1)\n"
    "  --walk S          the logarithm of each weight walks by S in every step (0)\n"
    "  --age N           steps since the plan was made (1): with --walk it is off by S sqrt(N)\n"
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
    O_POLICY,
    O_CONTEXT,
    O_ATTENTION,
    O_RESERVE,
    O_TPOT,
    O_SIGMA,
    O_DRAFTS,
    O_ACCEPTED,
    O_DRIFT,
    O_WALK,
    O_AGE,
    O_SPLIT,
    O_LAYERS,
    O_SEED
};

/* Before the shared options, so that --tokens is a list here. */
static const struct option sweep_long[] = {{"ep", 1, NULL, O_EP},
                                           {"redundant", 1, NULL, O_REDUNDANT},
                                           {"tokens", 1, NULL, O_TOKENS},
                                           {"overlap", 1, NULL, O_OVERLAP},
                                           {"policy", 1, NULL, O_POLICY},
                                           {"context", 1, NULL, O_CONTEXT},
                                           {"attention-us", 1, NULL, O_ATTENTION},
                                           {"reserve-gb", 1, NULL, O_RESERVE},
                                           {"tpot-ms", 1, NULL, O_TPOT},
                                           {"sigma", 1, NULL, O_SIGMA},
                                           {"drafts", 1, NULL, O_DRAFTS},
                                           {"accepted", 1, NULL, O_ACCEPTED},
                                           {"drift", 1, NULL, O_DRIFT},
                                           {"walk", 1, NULL, O_WALK},
                                           {"age", 1, NULL, O_AGE},
                                           {"split", 1, NULL, O_SPLIT},
                                           {"layers", 1, NULL, O_LAYERS},
                                           {"seed", 1, NULL, O_SEED},
                                           {"other-ms", 1, NULL, CLI_O_OTHER},
                                           {"devices", 1, NULL, CLI_O_DEVICES},
                                           {"nodes", 1, NULL, CLI_O_NODES},
                                           {"model", 1, NULL, CLI_O_MODEL},
                                           {"machine", 1, NULL, CLI_O_MACHINE},
                                           {"kernels", 1, NULL, CLI_O_KERNELS},
                                           {"hidden", 1, NULL, CLI_O_HIDDEN},
                                           {"intermediate", 1, NULL, CLI_O_INTER},
                                           CLI_COMMON_OPTIONS,
                                           {NULL, 0, NULL, 0}};

typedef struct named {
    const char *name;
    int value;
} named;

static const named overlaps[] = {{"none", MOE_EP_OVERLAP_NONE},
                                 {"shared", MOE_EP_OVERLAP_SHARED},
                                 {"two", MOE_EP_OVERLAP_TWO_EXPOSED},
                                 {"two-hidden", MOE_EP_OVERLAP_TWO_HIDDEN},
                                 {"two-staggered", MOE_EP_OVERLAP_TWO_STAGGERED},
                                 {NULL, 0}};

static const named policies[] = {{"best", MOE_EP_PLACE_BEST},
                                 {"lpt", MOE_EP_PLACE_LPT},
                                 {"eplb", MOE_EP_PLACE_EPLB_GLOBAL},
                                 {"eplb-nodes", MOE_EP_PLACE_EPLB_HIERARCHICAL},
                                 {"trtllm", MOE_EP_PLACE_TRTLLM},
                                 {"contiguous", MOE_EP_PLACE_CONTIGUOUS},
                                 {"round-robin", MOE_EP_PLACE_ROUND_ROBIN},
                                 {NULL, 0}};

static const char *name_of(const named *list, int value)
{
    while (list->name && list->value != value) list++;
    return list->name ? list->name : "unknown";
}

const char *cli_policy_str(moe_ep_place_policy policy)
{
    return name_of(policies, (int)policy);
}

const char *cli_overlap_str(moe_ep_overlap overlap)
{
    return name_of(overlaps, (int)overlap);
}

/* ---- options ------------------------------------------------------------------------------------------- */

static int64_t *take_counts(const char *option, const char *value, int64_t least, int64_t most)
{
    char **text = cli_list(option, value);
    int64_t *list = NULL;
    for (ptrdiff_t i = 0; i < arrlen(text); i++) {
        int64_t count = cli_option_count(option, text[i], least, most);
        for (ptrdiff_t j = 0; j < i; j++)
            if (list[j] == count) cli_die(CLI_USAGE, "--%s %s: %lld twice", option, value, (long long)count);
        arrput(list, count);
    }
    arrfree(text);
    return list;
}

static int32_t *narrow(int64_t *list)
{
    int32_t *out = NULL;
    for (ptrdiff_t i = 0; i < arrlen(list); i++) arrput(out, (int32_t)list[i]);
    arrfree(list);
    return out;
}

/* The values of "name,name,..."; what is said when one is wrong. */
static int *take_names(const char *option, const char *value, const named *list, const char *names)
{
    char **text = cli_list(option, value);
    int *out = NULL;
    for (ptrdiff_t i = 0; i < arrlen(text); i++) {
        const named *a = list;
        while (a->name && strcmp(text[i], a->name) != 0) a++;
        if (!a->name) cli_die(CLI_USAGE, "--%s %s: %s", option, text[i], names);
        for (ptrdiff_t j = 0; j < i; j++)
            if (out[j] == a->value) cli_die(CLI_USAGE, "--%s %s: %s twice", option, value, a->name);
        arrput(out, a->value);
    }
    arrfree(text);
    return out;
}

static void take_overlaps(cli_sweep *s, const char *value)
{
    const char *names = "none, shared, two, two-hidden or two-staggered";
    int *list = take_names("overlap", value, overlaps, names);
    arrfree(s->overlap);
    for (ptrdiff_t i = 0; i < arrlen(list); i++) arrput(s->overlap, (moe_ep_overlap)list[i]);
    arrfree(list);
}

static void take_policies(cli_sweep *s, const char *value)
{
    int *list = take_names("policy", value, policies, "best, lpt, eplb, eplb-nodes, trtllm, contiguous or round-robin");
    arrfree(s->policy);
    for (ptrdiff_t i = 0; i < arrlen(list); i++) arrput(s->policy, (moe_ep_place_policy)list[i]);
    arrfree(list);
}

static const cli_number_option numbers[] = {
    {O_CONTEXT, "context", CLI_INT32, offsetof(cli_sweep, context), 1, 1 << 24, 0},
    {O_ATTENTION, "attention-us", CLI_DOUBLE, offsetof(cli_sweep, attention_us), 0, 1e9, 0},
    {O_RESERVE, "reserve-gb", CLI_DOUBLE, offsetof(cli_sweep, reserve_bytes), 0, 1e6, 1e9},
    {O_TPOT, "tpot-ms", CLI_DOUBLE, offsetof(cli_sweep, tpot_s), 1e-6, 1e9, 1e-3},
    {O_SIGMA, "sigma", CLI_DOUBLE, offsetof(cli_sweep, sigma), 0, 5, 0},
    {O_DRAFTS, "drafts", CLI_INT32, offsetof(cli_sweep, drafts), 0, 64, 0},
    {O_ACCEPTED, "accepted", CLI_DOUBLE, offsetof(cli_sweep, accepted), 1, 65, 0},
    {O_DRIFT, "drift", CLI_DOUBLE, offsetof(cli_sweep, drift), 0, 5, 0},
    {O_WALK, "walk", CLI_DOUBLE, offsetof(cli_sweep, walk), 0, 5, 0},
    {O_LAYERS, "layers", CLI_INT32, offsetof(cli_sweep, layers), 1, 4096, 0}};

static void take_option(cli_sweep *s, cli_common *common, int option, const char *value)
{
    if (cli_take_number(numbers, sizeof numbers / sizeof numbers[0], s, option, value)) return;
    switch (option) {
    case O_SEED:
        s->seed = (uint64_t)cli_option_count("seed", value, 0, INT64_MAX);
        return;
    case O_AGE:
        s->age = cli_option_count("age", value, 1, (int64_t)1 << 32);
        return;
    case O_EP:
        arrfree(s->ep);
        s->ep = narrow(take_counts("ep", value, 1, 65536));
        return;
    case O_REDUNDANT:
        arrfree(s->redundant);
        s->redundant = narrow(take_counts("redundant", value, 0, 1 << 20));
        return;
    case O_TOKENS:
        arrfree(s->tokens);
        s->tokens = take_counts("tokens", value, 1, 65536);
        return;
    case O_OVERLAP:
        take_overlaps(s, value);
        return;
    case O_POLICY:
        take_policies(s, value);
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

/* All devices, and as many of them on each node as --nodes says. */
static void settle_nodes(cli_sweep *s)
{
    moe_ep_machine *m = &s->setup.machine;
    int32_t per = m->devices_per_node > 0 ? m->devices_per_node : 8, nodes = s->setup.nodes;
    s->devices = s->setup.devices > 0 ? s->setup.devices : nodes * per;
    if (s->devices == 0) cli_die(CLI_USAGE, "--nodes or --devices is needed");
    if (nodes > 0 && (int64_t)nodes * per < s->devices)
        cli_die(CLI_USAGE, "--nodes %d with --devices %d: a node of %s has %d", nodes, s->devices, m->name, per);
    if (nodes == 0 && s->devices > per && s->devices % per != 0)
        cli_die(CLI_USAGE, "--devices %d: not a whole number of nodes of %d, as %s has them; --nodes says how many "
                           "nodes of equal size there are", s->devices, per, m->name);
    if (nodes == 0 || s->setup.devices == 0) return;
    cli_setup_check_nodes(&s->setup);
    m->devices_per_node = s->devices / nodes;
    if (nodes > 1 && m->devices_per_node < per)
        cli_note(&s->setup, "%d nodes of %d devices, as --nodes says; a full one of %s has %d.", nodes,
                 m->devices_per_node, m->name, per);
}

static void settle_shapes(cli_sweep *s)
{
    int32_t K, E;
    if (!s->setup.model_name) cli_die(CLI_USAGE, "--model is needed; moe-ep presets lists them");
    if (!s->setup.machine_name)
        cli_die(CLI_USAGE, "--machine is needed; moe-ep presets lists them");
    cli_setup_sizes(&s->setup, 0, 0, 0);
    cli_setup_machine(&s->setup);
    E = s->setup.model.num_experts;
    K = s->setup.model.top_k;
    settle_nodes(s);
    if (s->plan_on && s->plan_on->experts != E)
        cli_die(CLI_USAGE, "%s has %d experts, %s has %d", s->plan_on->path, s->plan_on->experts,
                s->setup.model.name, E);
    if (s->plan_on && s->layers > s->plan_on->layers) s->layers = s->plan_on->layers;
    if (s->layers > s->setup.model.num_moe_layers) s->layers = s->setup.model.num_moe_layers;
    if (K > E) cli_die(CLI_USAGE, "%s: top-%d of %d experts", s->setup.model.name, K, E);
}

/* Whether every group of this many devices has a part of one node or whole nodes; the library computes the others as
 * if they had equal parts of as few nodes as hold them. */
static int lies_evenly(const cli_sweep *s, int32_t ep)
{
    int32_t per = s->setup.machine.devices_per_node;
    return per < 1 || s->devices <= per || per % ep == 0 || ep % per == 0;
}

/* Leaves out sizes until there are few enough, each time the one that leaves the smallest gap; never the two ends. */
static void thin_sizes(cli_sweep *s)
{
    while (arrlen(s->ep) > CLI_SWEEP_SIZES) {
        ptrdiff_t least = 1;
        for (ptrdiff_t i = 2; i + 1 < arrlen(s->ep); i++)
            if ((int64_t)s->ep[i + 1] * s->ep[least - 1] < (int64_t)s->ep[least + 1] * s->ep[i - 1]) least = i;
        arrput(s->close, s->ep[least]);
        arrdel(s->ep, least);
    }
}

static int by_size(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* Without a list: what shares all devices out, so that no size is missed for not being a power of two. */
static void settle_sizes(cli_sweep *s)
{
    for (int32_t ep = 1; ep <= s->devices && ep <= s->setup.model.num_experts; ep++)
        if (s->devices % ep == 0) {
            if (lies_evenly(s, ep)) arrput(s->ep, ep);
            else arrput(s->uneven, ep);
        }
    thin_sizes(s);
    if (s->close) qsort(s->close, (size_t)arrlen(s->close), sizeof *s->close, by_size);
}

static void settle_lists(cli_sweep *s)
{
    int32_t E = s->setup.model.num_experts;
    if (!s->tokens) arrput(s->tokens, 64);
    if (arrlen(s->tokens) == 1) {
        int64_t t = s->tokens[0];
        if (t / 4 > 0) arrput(s->tokens, t / 4);
        if (t / 2 > t / 4) arrput(s->tokens, t / 2);
        arrput(s->tokens, 2 * t);
        arrput(s->tokens, 4 * t);
    }
    for (ptrdiff_t i = 0; i < arrlen(s->ep); i++) {
        if (s->ep[i] > s->devices)
            cli_die(CLI_USAGE, "--ep %d: there are only %d devices", s->ep[i], s->devices);
        if (s->devices % s->ep[i] != 0)
            cli_die(CLI_USAGE, "--ep %d: %d devices are left of %d when copies of the model share them out", s->ep[i],
                    s->devices % s->ep[i], s->devices);
        if (s->ep[i] > E) cli_die(CLI_USAGE, "--ep %d: there are only %d experts", s->ep[i], E);
    }
    s->ep_given = s->ep != NULL;
    if (!s->ep) settle_sizes(s);
}

/* ---- loads ---------------------------------------------------------------------------------------------- */

/* Layer l of those drawn is this layer of a recording. */
static int32_t recorded_layer(const cli_sweep *s, int32_t l)
{
    return (int32_t)((int64_t)l * s->plan_on->layers / s->layers);
}

/* The popularity (layers, E) of a recording, by the layers that are drawn. */
static double *recorded_loads(const cli_sweep *s, const cli_trace *t)
{
    size_t E = (size_t)s->setup.model.num_experts;
    double *loads;
    if (!t) return NULL;
    loads = cli_alloc((size_t)s->layers * E, sizeof *loads);
    for (int32_t l = 0; l < s->layers; l++)
        memcpy(loads + (size_t)l * E, t->loads + (size_t)recorded_layer(s, l) * E,
               E * sizeof *loads);
    return loads;
}

/* ---- the search, by the library -------------------------------------------------------------------- */

static void show_progress(void *user, int64_t done, int64_t total)
{
    (void)user;
    cli_progress("sweep", (double)done, (double)total);
}

static moe_ep_sweep_desc sweep_desc(const cli_sweep *s)
{
    moe_ep_sweep_desc d;
    memset(&d, 0, sizeof d);
    d.model = &s->setup.model;
    d.machine = &s->setup.machine;
    d.throughput_from = s->setup.kernels == CLI_KERNELS_NORMAL        ? 1
                        : s->setup.kernels == CLI_KERNELS_LOW_LATENCY ? INT64_MAX
                                                                      : 0;
    d.num_devices = s->devices;
    d.tokens = s->tokens;
    d.num_tokens = (int32_t)arrlen(s->tokens);
    d.ep = s->ep;
    d.num_ep = (int32_t)arrlen(s->ep);
    d.redundant = s->redundant;
    d.num_redundant = (int32_t)arrlen(s->redundant);
    d.overlaps = s->overlap;
    d.num_overlaps = (int32_t)arrlen(s->overlap);
    d.policies = s->policy;
    d.num_policies = (int32_t)arrlen(s->policy);
    d.split = s->exact ? MOE_EP_SPLIT_EXACT : MOE_EP_SPLIT_EVEN;
    d.num_layers = s->layers;
    d.context = (double)s->context;
    d.rows_per_sequence = s->drafts + 1;
    d.tokens_per_pass = s->accepted;
    d.other_s = s->setup.other_s;
    d.reserve_bytes = s->reserve_bytes;
    d.max_tpot_s = s->tpot_s;
    d.serve_step = s->age;
    d.progress = show_progress;
    return d;
}

static void try_all(cli_sweep *s)
{
    moe_ep_sweep_desc d = sweep_desc(s);
    moe_ep_workload w;
    moe_ep_sweep_result r;
    moe_ep_error err;
    size_t batches = (size_t)arrlen(s->tokens);
    double *plan = recorded_loads(s, s->plan_on), *serve = recorded_loads(s, s->serve);
    double *attention = cli_alloc(batches, sizeof *attention);
    int64_t count;
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_LOGNORMAL;
    w.seed = s->seed;
    w.num_experts = s->setup.model.num_experts;
    w.top_k = s->setup.model.top_k;
    w.sigma = s->sigma;
    w.drift = s->drift;
    w.walk = s->walk;
    d.workload = &w;
    d.plan_loads = plan;
    d.serve_loads = serve;
    for (size_t i = 0; i < batches; i++) attention[i] = 1e-6 * s->attention_us;
    if (s->attention_us >= 0.0) d.attention_s = attention;
    count = moe_ep_sweep_count(&d, &err);
    if (count < 0) cli_check(err.status, &err, "sweep");
    arrsetlen(s->config, (size_t)count);
    cli_check(moe_ep_sweep(&d, s->config, count, &r, NULL, &err), &err, "sweep");
    s->best = (int)r.best;
    free(attention);
    free(serve);
    free(plan);
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

/* The front, from the shortest time per token on. */
static void find_front(cli_sweep *s)
{
    for (int i = 0; i < (int)arrlen(s->config); i++)
        if (s->config[i].pareto) arrput(s->front, i);
    if (s->front) qsort_r(s->front, (size_t)arrlen(s->front), sizeof *s->front, by_tpot, s->config);
}

/* Asked about: this batch, and as fast as was asked for. */
static int is_candidate(const cli_sweep *s, const cli_config *c)
{
    return c->fits && c->tokens == s->tokens[0] &&
           (!(s->tpot_s > 0.0) || c->step.tpot_s <= s->tpot_s);
}

/* The same without redundant experts; NULL when it was not tried or does not fit. */
static const cli_config *without_copies(const cli_sweep *s, const cli_config *c)
{
    const cli_config *least = NULL;
    for (ptrdiff_t i = 0; i < arrlen(s->config); i++) {
        const cli_config *o = &s->config[i];
        if (o->fits && o->ep == c->ep && o->tokens == c->tokens && o->overlap == c->overlap &&
            o->policy == c->policy && o->redundant < c->redundant &&
            (!least || o->redundant < least->redundant))
            least = o;
    }
    return least;
}

/* " EP 32 with 32 redundant experts is within 1 %, too.": other shapes as fast as the answer. */
static const char *rivals(const cli_sweep *s)
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
    (void)cli_keep(text);
    return count > 0 ? cli_keep(cli_format("%s.", text)) : text;
}

/* "EP 1, 2 and 4"; a long list is cut and says so. */
static const char *sizes_text(const int32_t *list)
{
    ptrdiff_t n = arrlen(list), shown = n > CLI_SWEEP_SIZES ? CLI_SWEEP_SIZES : n;
    cli_text t;
    cli_text_open(&t);
    fputs("EP ", t.stream);
    for (ptrdiff_t i = 0; i < shown; i++)
        fprintf(t.stream, "%s%d", i == 0 ? "" : i + 1 < n ? ", " : " and ", list[i]);
    if (n > shown) fprintf(t.stream, " and %td more up to %d", n - shown, list[n - 1]);
    cli_text_end(&t);
    return cli_keep(t.text);
}

/* Which sizes would share the devices out, too, and why they were not tried; each sentence with a space in front. */
static const char *untried_text(const cli_sweep *s)
{
    int32_t E = s->setup.model.num_experts;
    char *text = cli_strdup("");
    if (s->uneven)
        text = cli_format("%s %s would lie unevenly on nodes of %d and %s not tried; --ep tries %s.", cli_keep(text),
                          sizes_text(s->uneven), s->setup.machine.devices_per_node,
                          arrlen(s->uneven) > 1 ? "were" : "was", arrlen(s->uneven) > 1 ? "them" : "it");
    if (s->close)
        text = cli_format("%s %s, between others that were tried, %s left out; --ep tries %s.", cli_keep(text),
                          sizes_text(s->close), arrlen(s->close) > 1 ? "were" : "was",
                          arrlen(s->close) > 1 ? "them" : "it");
    if (!s->ep_given && s->devices > E)
        text = cli_format("%s No EP size above the %d experts of %s can be tried.", cli_keep(text), E,
                          s->setup.model.name);
    return cli_keep(text);
}

const char *cli_sweep_no_plan(const cli_sweep *s, const cli_config *c)
{
    int32_t per = s->setup.machine.devices_per_node, nodes = per > 0 ? (c->ep - 1) / per + 1 : 1;
    if ((s->setup.model.num_experts + c->redundant) % c->ep != 0) return "unequal slots";
    if (c->ep % nodes != 0) return "unequal nodes";
    return "the nodes do not divide the expert groups";
}

/* What keeps an EP size from being the answer, from the configuration of the asked batch that is nearest to it: the
 * fastest, else one that has room and no plan, else the one with the most room. */
static char *lack_of(const cli_sweep *s, int32_t ep)
{
    const cli_config *closest = NULL;
    const char *who;
    for (ptrdiff_t i = 0; i < arrlen(s->config); i++) {
        const cli_config *c = &s->config[i];
        int better;
        if (c->ep != ep || c->tokens != s->tokens[0]) continue;
        if (!closest || c->fits != closest->fits) better = !closest || c->fits;
        else if (c->fits) better = c->step.tpot_s < closest->step.tpot_s;
        else if (c->limit != closest->limit) better = c->limit == MOE_EP_LIMIT_PLACEMENT;
        else better = c->memory.kv_room_bytes > closest->memory.kv_room_bytes;
        if (better) closest = c;
    }
    who = cli_keep(closest->redundant > 0 ? cli_format("EP %d with %d redundant expert%s", ep, closest->redundant,
                                                       closest->redundant == 1 ? "" : "s")
                                          : cli_format("EP %d", ep));
    if (closest->fits) return cli_format("%s takes %s", who, cli_seconds(closest->step.tpot_s));
    if (closest->limit == MOE_EP_LIMIT_PLACEMENT)
        return cli_format("%s has no plan by %s: %s", who, cli_policy_str(closest->policy),
                          cli_sweep_no_plan(s, closest));
    if (!closest->memory.fits)
        return cli_format("%s lacks %s for weights and buffers", who, cli_bytes(-closest->memory.kv_room_bytes));
    return cli_format("%s has room for %s of %s cache tokens", who, cli_count((double)closest->memory.kv_tokens),
                      cli_count(closest->batch_kv_tokens));
}

/* Every size that was tried and what it lacks. */
static const char *lacks_text(const cli_sweep *s)
{
    cli_text t;
    cli_text_open(&t);
    for (ptrdiff_t i = 0; i < arrlen(s->ep); i++) {
        char *lack = lack_of(s, s->ep[i]);
        fprintf(t.stream, "%s%s", i > 0 ? "; " : "", lack);
        free(lack);
    }
    cli_text_end(&t);
    return cli_keep(t.text);
}

/* "9 of 60 configurations fit in memory": there is room for those, too, that cannot be planned. */
static const char *counts_text(const cli_sweep *s)
{
    int tried = (int)arrlen(s->config), fit = 0, unplanned = 0;
    for (int i = 0; i < tried; i++) {
        fit += s->config[i].fits;
        unplanned += s->config[i].limit == MOE_EP_LIMIT_PLACEMENT;
    }
    return cli_keep(unplanned > 0 ? cli_format("%d of %d configurations fit in memory, %d of these cannot be planned",
                                               fit + unplanned, tried, unplanned)
                                  : cli_format("%d of %d configurations fit in memory", fit, tried));
}

/* No configuration is the answer: too slow, not to be planned, or too large.  What was not tried might be one. */
static void write_refusal(cli_sweep *s)
{
    int asked = 0, hopeless = 0, unequal = 0, room = 0; /* of those asked about */
    int32_t E = s->setup.model.num_experts;
    char *tokens = cli_format("%s token%s per device", cli_count((double)s->tokens[0]), s->tokens[0] == 1 ? "" : "s");
    for (ptrdiff_t i = 0; i < arrlen(s->config); i++) {
        int here = s->config[i].tokens == s->tokens[0], no_plan = s->config[i].limit == MOE_EP_LIMIT_PLACEMENT;
        unequal += here && no_plan && (E + s->config[i].redundant) % s->config[i].ep != 0;
        asked += here;
        hopeless += here && no_plan;
        room += here && s->config[i].fits;
    }
    s->badge = hopeless == asked ? "No plan" : room > 0 ? "Too slow" : "Nothing tried fits";
    s->state = "open";
    if (hopeless == asked)
        s->headline = cli_format(unequal == hopeless ? "No plan: %s needs the same number of slots on every device"
                                                     : "No plan: %s has none for the EP sizes tried",
                                 cli_policy_str(s->config[0].policy));
    else if (room > 0)
        s->headline = cli_format("No configuration tried with %s stays within %s per token", tokens,
                                 cli_seconds(s->tpot_s));
    else
        s->headline = cli_format("Nothing tried fits%s: %s with %s on %d device%s of %s",
                                 hopeless > 0 ? " and can be planned" : "", s->setup.model.name, tokens, s->devices,
                                 s->devices == 1 ? "" : "s", s->setup.machine.name);
    s->reason = cli_format("%s.%s %s.", lacks_text(s), untried_text(s), counts_text(s));
    free(tokens);
}

static void write_verdict(cli_sweep *s)
{
    const cli_config *c, *plain;
    if (s->best < 0) {
        write_refusal(s);
        return;
    }
    s->badge = "Recommended";
    s->state = "yes";
    c = &s->config[s->best];
    plain = without_copies(s, c);
    s->headline = cli_format("Run EP %d with %d redundant experts: %s per token, %s tokens/s per "
                             "device",
                             c->ep, c->redundant, cli_seconds(c->step.tpot_s),
                             cli_count(c->step.tokens_per_s_device));
    s->reason = cli_format(
        "Overlap: %s.%s Limited by %s. %d slot%s per device, %s of %s used, max/mean over devices "
        "%.2f.%s%s Of all within 1 %% of the fastest the one with the fewest slots per device is named. %s %s "
        "tried; %s.",
        cli_overlap_str(c->overlap),
        arrlen(s->policy) > 1 ? cli_keep(cli_format(" Placed by %s.", cli_policy_str(c->policy))) : "",
        moe_ep_limit_str(c->limit), c->memory.slots, c->memory.slots == 1 ? "" : "s",
        cli_bytes(c->memory.total_bytes), cli_bytes(s->setup.machine.memory_bytes), c->imbalance,
        plain ? cli_keep(cli_format(" With %d redundant experts it would be %s.", plain->redundant,
                                    cli_seconds(plain->step.tpot_s)))
              : "",
        rivals(s), sizes_text(s->ep), arrlen(s->ep) > 1 ? "were" : "was", counts_text(s));
}

/* Sizes that were not tried (a refusal has said so already), and those that are computed as what they are not. */
static void note_sizes(cli_sweep *s)
{
    const char *untried = untried_text(s);
    int32_t *uneven = NULL, E = s->setup.model.num_experts;
    int filled = 0;
    if (*untried && s->best >= 0) cli_note(&s->setup, "%s", untried + 1);
    for (ptrdiff_t i = 0; i < arrlen(s->ep); i++) {
        filled |= !s->redundant && E % s->ep[i] != 0;
        if (!lies_evenly(s, s->ep[i])) arrput(uneven, s->ep[i]);
    }
    if (filled)
        cli_note(&s->setup,
                 "Where EP does not divide the %d experts, redundant ones give all devices equally many slots, as EPLB "
                 "needs them; --redundant 0 tries none.",
                 E);
    if (uneven)
        cli_note(&s->setup,
                 "%s would lie unevenly on nodes of %d and %s computed as if each group had equal parts of as few "
                 "nodes as hold it: where groups cross more nodes the network takes longer.",
                 sizes_text(uneven), s->setup.machine.devices_per_node, arrlen(uneven) > 1 ? "are" : "is");
    arrfree(uneven);
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
    if (!s->plan_on && s->walk > 0.0)
        cli_note(&s->setup, "The logarithm of each weight walks by %.2g in every step; the plan is %s step%s old.",
                 s->walk, cli_count((double)s->age), s->age == 1 ? "" : "s");
    cli_note(&s->setup, "%d layers were drawn and scaled to %d.", s->layers,
             s->setup.model.num_moe_layers);
    if (s->attention_us < 0.0)
        cli_note(&s->setup,
                 "Attention is two kernels, its weights and %s tokens of cache per sequence: each takes what reading "
                 "once takes, or multiplying if that takes longer; --attention-us replaces it.",
                 cli_count(s->context));
    if (s->attention_us < 0.0 && s->setup.model.attention_window > 0)
        cli_note(&s->setup,
                 "In %d of %d layers a token attends to %s tokens of its context%s; all of it is in the cache.",
                 s->setup.model.window_layers, s->setup.model.num_layers,
                 cli_count(s->setup.model.attention_window),
                 s->setup.model.index_flops > 0 ? ", which an indexer chooses" : "");
    cli_note(&s->setup,
             "Attention is data parallel: each device holds all of it and the cache of its "
             "own sequences. %s of memory are kept for activations and the runtime.",
             cli_bytes(s->reserve_bytes));
    if (s->drafts > 0)
        cli_note(&s->setup,
                 "Tokens per device are %d of each sequence, of which %.3g are accepted in a step; what drafting takes "
                 "is for --other-ms.", s->drafts + 1, s->accepted);
    cli_note(&s->setup, "Rows are split %s over copies.", s->exact ? "exactly" : "evenly");
    note_sizes(s);
}

static void free_sweep(cli_sweep *s)
{
    arrfree(s->ep);
    arrfree(s->uneven);
    arrfree(s->close);
    arrfree(s->redundant);
    arrfree(s->tokens);
    arrfree(s->overlap);
    arrfree(s->policy);
    arrfree(s->config);
    arrfree(s->front);
    free(s->headline);
    free(s->reason);
    free(s->setup.assumed);
}

int cli_sweep_main(int argc, char **argv)
{
    static const cli_writers writers = {cli_sweep_text, cli_sweep_json, cli_sweep_html};
    cli_sweep s;
    cli_common common;
    cli_out page;
    cli_trace *list = NULL;
    char *left_out = NULL;
    int option;
    memset(&s, 0, sizeof s);
    memset(&common, 0, sizeof common);
    common.screen.color = "auto";
    s.layers = 8;
    s.context = 4096;
    s.accepted = 1.0;
    s.attention_us = -1.0;
    s.reserve_bytes = 8e9;
    s.sigma = 1.1;
    s.drift = 0.1;
    s.age = 1;
    s.seed = 1;
    while ((option = cli_option(argc, argv, sweep_long, NULL)) != -1)
        take_option(&s, &common, option, optarg);
    if (s.accepted > s.drafts + 1.0)
        cli_die(CLI_USAGE, "--accepted %g: of %d drafted tokens and its own no more than %d can be", s.accepted,
                s.drafts, s.drafts + 1);
    if (optind < argc) list = cli_read_all(argc, argv, optind, &common.read, 1, &left_out);
    if (arrlen(list) > 2)
        cli_die(CLI_USAGE, "%td recordings: at most one to plan on and one to serve", arrlen(list));
    if (list) s.plan_on = &list[0];
    if (list) s.serve = &list[arrlen(list) - 1];
    cli_note_inputs(&s.setup, list);
    cli_note_left_out(&s.setup, left_out);
    settle_shapes(&s);
    settle_lists(&s);
    cli_check_form(&common, NULL);
    cli_open_page(&common, &page, argc, argv, optind);
    try_all(&s);
    find_front(&s);
    write_verdict(&s);
    note_assumptions(&s);
    cli_progress_end();
    cli_write_all(&common, &page, &s, &writers);
    cli_traces_free(list);
    free_sweep(&s);
    free(left_out);
    return CLI_OK;
}
