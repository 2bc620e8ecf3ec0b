/* cli_simulate.c - moe-ep simulate: requests through an instance of a cluster file, step by step
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_simulate.h"

#include "cli_commands.h"
#include "cli_stream.h"

#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char simulate_help[] =
    "usage: moe-ep simulate [INPUT] --config CLUSTER.json [--trace REQUESTS.jsonl] [options]\n"
    "\n"
    "Serves requests on the first instance of an LLMServingSim cluster file with continuous "
    "batching and predicts\n"
    "every step: attention, dispatch, experts, combine, memory, imbalance.  Computed, never "
    "measured.\n"
    "\n"
    "  --config FILE     model_name, hardware, num_npus, tp_size, ep_size, dp_group, npu_mem, "
    "link_bw (GiB/s),\n"
    "                    link_latency (ns), max_num_seqs, max_num_batched_tokens\n"
    "  --trace FILE      a request a line: {\"input_toks\": 128, \"output_toks\": 64, "
    "\"arrival_time_ns\": 0}\n"
    "  --requests N      without a trace: N requests (64) of --input I (512) and --output O (128) "
    "tokens,\n"
    "                    --rate R of them per second (0: all at once)\n"
    "  --policy NAME     routing: balanced, rr, rand (default), copy (one layer's routing in all), "
    "lognormal;\n"
    "                    with an INPUT (see moe-ep report --help) its popularity\n"
    "  --max-batch N     requests at a time (the file's, or 256)      --max-tokens N   tokens in a "
    "step (the\n"
    "                    file's, or 2048)\n"
    "  --layers N        layers drawn per step (4)     --seed N   of the draws (42)\n"
    "  --reserve-gb X    memory for activations and the runtime (4)      --other-ms X   the rest "
    "of a step\n"
    "  --csv FILE        every step as CSV             --log   every step as a line before the "
    "answer\n"
    "  --experts E       --only TEXT   --layers-first   --counts   (see moe-ep report --help)\n"
    "  --html FILE       --json   --width W   --ascii   --color auto|always|never\n";

enum {
    O_CONFIG = 256,
    O_TRACE,
    O_REQUESTS,
    O_INPUT,
    O_OUTPUT,
    O_RATE,
    O_POLICY,
    O_BATCH,
    O_TOKENS,
    O_LAYERS,
    O_SEED,
    O_RESERVE,
    O_CSV,
    O_LOG
};
enum {
    MOST_STEPS = 1000000,
    MOST_REQUESTS = 1000000,
    MOST_BATCH = 1 << 16,
    MOST_TOKENS = 1 << 17,
    MOST_LENGTH = 1 << 24 /* tokens of one request */
};

static const struct option simulate_long[] = {{"config", 1, NULL, O_CONFIG},
                                              {"trace", 1, NULL, O_TRACE},
                                              {"requests", 1, NULL, O_REQUESTS},
                                              {"input", 1, NULL, O_INPUT},
                                              {"output", 1, NULL, O_OUTPUT},
                                              {"rate", 1, NULL, O_RATE},
                                              {"policy", 1, NULL, O_POLICY},
                                              {"max-batch", 1, NULL, O_BATCH},
                                              {"max-tokens", 1, NULL, O_TOKENS},
                                              {"layers", 1, NULL, O_LAYERS},
                                              {"seed", 1, NULL, O_SEED},
                                              {"reserve-gb", 1, NULL, O_RESERVE},
                                              {"other-ms", 1, NULL, CLI_O_OTHER},
                                              {"csv", 1, NULL, O_CSV},
                                              {"log", 0, NULL, O_LOG},
                                              CLI_COMMON_OPTIONS,
                                              {NULL, 0, NULL, 0}};

typedef struct simulate_files {
    const char *csv;
    int log;
} simulate_files;

/* ---- options ------------------------------------------------------------------------------------------- */

static void take_policy(cli_simulate *s, const char *value)
{
    static const struct {
        const char *name;
        moe_ep_workload_kind kind;
    } list[] = {{"balanced", MOE_EP_LOAD_BALANCED},
                {"rr", MOE_EP_LOAD_ROUND_ROBIN},
                {"rand", MOE_EP_LOAD_UNIFORM},
                {"copy", MOE_EP_LOAD_UNIFORM},
                {"lognormal", MOE_EP_LOAD_LOGNORMAL}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (strcasecmp(value, list[i].name) == 0) {
            s->policy = list[i].name;
            s->workload.kind = list[i].kind;
            s->workload.copy_layers = list[i].name[0] == 'c';
            return;
        }
    cli_die(CLI_USAGE, "--policy %s: balanced, rr, rand, copy or lognormal", cli_printable(value));
}

static int take_size(cli_simulate *s, int option, const char *value)
{
    switch (option) {
    case O_REQUESTS:
        s->requests = (int32_t)cli_option_count("requests", value, 1, MOST_REQUESTS);
        return 1;
    case O_INPUT:
        s->input = (int32_t)cli_option_count("input", value, 1, 1 << 20);
        return 1;
    case O_OUTPUT:
        s->output = (int32_t)cli_option_count("output", value, 1, 1 << 20);
        return 1;
    case O_RATE:
        s->rate = cli_option_number("rate", value, 0.0, 1e9);
        return 1;
    case O_BATCH:
        s->max_batch = (int32_t)cli_option_count("max-batch", value, 1, MOST_BATCH);
        return 1;
    case O_TOKENS:
        s->max_tokens = (int32_t)cli_option_count("max-tokens", value, 1, MOST_TOKENS);
        return 1;
    case O_LAYERS:
        s->layers = (int32_t)cli_option_count("layers", value, 1, 4096);
        return 1;
    case O_SEED:
        s->workload.seed = (uint64_t)cli_option_count("seed", value, 0, INT64_MAX);
        return 1;
    case O_RESERVE:
        s->reserve_bytes = 1e9 * cli_option_number("reserve-gb", value, 0.0, 1e6);
        return 1;
    default:
        return 0;
    }
}

static void take_option(cli_simulate *s, cli_common *common, simulate_files *files, int option,
                        const char *value)
{
    if (take_size(s, option, value)) return;
    switch (option) {
    case O_CONFIG:
        s->cluster.path = value;
        return;
    case O_TRACE:
        s->trace = value;
        return;
    case O_POLICY:
        take_policy(s, value);
        return;
    case O_CSV:
        files->csv = value;
        return;
    case O_LOG:
        files->log = 1;
        return;
    default:
        if (!cli_setup_option(&s->setup, option, value))
            (void)cli_common_option(common, option, value, simulate_help);
    }
}

/* ---- inputs --------------------------------------------------------------------------------------------- */

static const double most_figure = 1e12, most_arrival_s = 1e9;

/* A number of the file from `least`; `fallback` when it is not there, NAN = it must be. */
static double json_figure(const char *path, json_t *object, const char *key, double least, double fallback)
{
    json_t *v = json_object_get(object, key);
    if (!v && !isnan(fallback)) return fallback;
    if (!v) cli_die(CLI_USAGE, "%s: \"%s\" is missing", path, key);
    if (!json_is_number(v) || !(json_number_value(v) >= least) || json_number_value(v) > most_figure)
        cli_die(CLI_USAGE, "%s: \"%s\" is %s; a number from %g to %g is needed", path, key, cli_json_shown(v), least,
                most_figure);
    return json_number_value(v);
}

static int32_t json_size(const char *path, json_t *object, const char *key, int32_t least, int32_t fallback)
{
    json_t *v = json_object_get(object, key);
    double size = json_is_number(v) ? json_number_value(v) : -1.0;
    if (!v) return fallback;
    if (!(size >= least) || size > 65536.0 || size > floor(size))
        cli_die(CLI_USAGE, "%s: \"%s\" is %s; a whole number from %d to 65536 is needed", path, key, cli_json_shown(v),
                least);
    return (int32_t)size;
}

static char *json_word(const char *path, json_t *object, const char *key)
{
    json_t *v = json_object_get(object, key);
    if (!v) cli_die(CLI_USAGE, "%s: \"%s\" is missing", path, key);
    if (!json_is_string(v)) cli_die(CLI_USAGE, "%s: \"%s\" is %s; a text is needed", path, key, cli_json_shown(v));
    return cli_keep(cli_printable(json_string_value(v)));
}

/* link_bw in GiB/s (binary, as ASTRA-sim counts) and link_latency in ns; without them the machine's links hold. */
static void read_links(const cli_cluster *c, json_t *root, moe_ep_machine *m)
{
    moe_ep_link *link[] = {&m->ll_dispatch, &m->ll_combine, &m->normal_dispatch,
                           &m->normal_combine};
    if (json_is_array(json_object_get(root, "link_bw")) || json_is_array(json_object_get(root, "link_latency")))
        cli_die(CLI_USAGE, "%s: links by dimension are not simulated: \"link_bw\" and \"link_latency\" must be "
                           "numbers", c->path);
    for (size_t i = 0; i < sizeof link / sizeof link[0]; i++) {
        double gib = 1073741824.0, bw = json_figure(c->path, root, "link_bw", 1e-6, link[i]->intra_Bps / gib);
        link[i]->alpha_s = 1e-9 * json_figure(c->path, root, "link_latency", 0.0, 1e9 * link[i]->alpha_s);
        link[i]->intra_Bps = link[i]->inter_Bps = gib * bw;
    }
    m->devices_per_node = 0;
}

/* Instances of the file, and those in the data-parallel group of the first, which serve together. */
static void count_instances(cli_cluster *c, json_t *nodes, json_t *first)
{
    json_t *node, *instance, *group = json_object_get(first, "dp_group");
    size_t i, j;
    json_array_foreach(nodes, i, node) {
        json_array_foreach(json_object_get(node, "instances"), j, instance) {
            c->instances++;
            c->dp += json_is_string(group) && json_equal(group, json_object_get(instance, "dp_group"));
        }
    }
    if (c->dp == 0) c->dp = 1;
}

/* Devices, and what they share; num_npus or tp_size says the other. */
static void read_devices(cli_simulate *s, json_t *instance)
{
    cli_cluster *c = &s->cluster;
    int32_t npus = json_size(c->path, instance, "num_npus", 1, 0), count = 0;
    moe_ep_config config;
    moe_ep_reason reason[8];
    moe_ep_error err;
    if (json_size(c->path, instance, "pp_size", 1, 1) > 1)
        cli_die(CLI_USAGE, "%s: \"pp_size\": pipelines are not simulated", c->path);
    if (npus == 0 && !json_object_get(instance, "tp_size"))
        cli_die(CLI_USAGE, "%s: \"num_npus\" or \"tp_size\" is needed", c->path);
    c->tp = json_size(c->path, instance, "tp_size", 1, npus);
    if (npus > 0 && c->tp != npus)
        cli_die(CLI_USAGE, "%s: tp_size %d, but num_npus %d: an instance has tp_size devices", c->path, c->tp, npus);
    c->ep = json_size(c->path, instance, "ep_size", 1, c->tp * c->dp < 65536 ? c->tp * c->dp : 65536);
    c->devices = c->tp * c->dp;
    memset(&config, 0, sizeof config);
    config.model = &s->setup.model;
    config.ep = c->ep;
    config.tp = c->tp;
    config.dp = c->dp;
    config.must_divide = 1;
    cli_check(moe_ep_check_config(&config, reason, 8, &count, NULL, &err), &err, c->path);
    for (int32_t i = 0; i < count && i < 8; i++)
        if (reason[i].severity == MOE_EP_WRONG)
            cli_die(CLI_USAGE, "%s: ep_size %d, tp_size %d, %d in the dp_group: %s (%g, %g)", c->path, c->ep, c->tp,
                    c->dp, reason[i].text, reason[i].have, reason[i].need);
}

/* With fewer expert groups than devices every expert is cut over devices / ep of them. */
static int32_t cut_of(const cli_cluster *c)
{
    return c->devices / c->ep;
}

/* Limits of one instance; 0 = none.  Options come first. */
static void read_limits(cli_simulate *s, json_t *instance)
{
    const cli_cluster *c = &s->cluster;
    double batch = json_size(c->path, instance, "max_num_seqs", 0, 256),
           tokens = json_size(c->path, instance, "max_num_batched_tokens", 0, 2048);
    batch = batch > 0.0 ? batch * c->dp : MOST_BATCH;
    tokens = tokens > 0.0 ? tokens * c->dp : MOST_TOKENS;
    if (s->max_batch == 0) s->max_batch = (int32_t)fmin(batch, MOST_BATCH);
    if (s->max_tokens == 0) s->max_tokens = (int32_t)fmin(tokens, MOST_TOKENS);
}

static void note_cluster(cli_simulate *s, json_t *root, json_t *instance)
{
    const cli_cluster *c = &s->cluster;
    json_t *memory = json_object_get(instance, "npu_mem");
    if (c->instances > c->dp)
        cli_note(&s->setup, "The file has %d instances; %s all requests here.", c->instances,
                 c->dp > 1 ? "the group of the first of them serves" : "the first of them serves");
    if (c->dp > 1)
        cli_note(&s->setup, "The %d instances of the first one's dp_group share its experts and the requests, "
                            "in equal parts; limits on requests and tokens are for all of them.", c->dp);
    if (!json_object_get(root, "link_bw") || !json_object_get(root, "link_latency") ||
        !json_object_get(memory, "mem_size") || !json_object_get(memory, "mem_bw"))
        cli_note(&s->setup, "Memory and links that the file does not give are those of the preset %s.",
                 s->setup.machine.name);
    if (json_is_string(json_object_get(instance, "pd_type")))
        cli_note(&s->setup, "pd_type %s is not looked at: prompts and decoding run together.",
                 json_word(c->path, instance, "pd_type"));
    if (cut_of(c) > 1)
        cli_note(&s->setup, "Every expert is cut over %d devices, which sum up what they computed: counted as "
                            "combine.", cut_of(c));
}

/* The first instance of the first node, with the others of its dp_group. */
static void read_cluster(cli_simulate *s)
{
    cli_cluster *c = &s->cluster;
    json_error_t e;
    json_t *root, *nodes, *instance, *memory;
    moe_ep_machine *m = &s->setup.machine;
    moe_ep_error err;
    FILE *f;
    if (!c->path) cli_die(CLI_USAGE, "--config is needed");
    f = cli_open_input(c->path);
    root = json_loadf(f, JSON_REJECT_DUPLICATES, &e);
    (void)fclose(f);
    if (!root) cli_die(CLI_USAGE, "%s:%d:%d: %s", c->path, e.line, e.column, cli_printable(e.text));
    nodes = json_object_get(root, "nodes");
    instance = json_array_get(json_object_get(json_array_get(nodes, 0), "instances"), 0);
    if (!json_is_object(instance))
        cli_die(CLI_USAGE, "%s: has no \"nodes\": [{\"instances\": [{...}]}]", c->path);
    count_instances(c, nodes, instance);
    c->model_name = json_word(c->path, instance, "model_name");
    c->hardware = json_word(c->path, instance, "hardware");
    memory = json_object_get(instance, "npu_mem");
    if (moe_ep_model_by_name(c->model_name, &s->setup.model, &err) != MOE_EP_OK)
        cli_die(CLI_USAGE, "%s: model_name %s: no such preset; moe-ep presets lists them", c->path,
                c->model_name);
    if (moe_ep_machine_by_name(c->hardware, m, &err) != MOE_EP_OK)
        cli_die(CLI_USAGE, "%s: hardware %s: no such preset; moe-ep presets lists them", c->path,
                c->hardware);
    if (memory && !json_is_object(memory)) cli_die(CLI_USAGE, "%s: \"npu_mem\" is %s; an object is needed", c->path,
                                                  cli_json_shown(memory));
    read_devices(s, instance);
    read_limits(s, instance);
    m->memory_bytes = 1e9 * json_figure(c->path, memory, "mem_size", 1e-3, 1e-9 * m->memory_bytes);
    m->memory_Bps = 1e9 * json_figure(c->path, memory, "mem_bw", 1e-3, 1e-9 * m->memory_Bps);
    read_links(c, root, m);
    note_cluster(s, root, instance);
    json_decref(root);
}

/* The number of tokens under the one of these keys that the object has. */
static int32_t request_tokens(const cli_simulate *s, json_t *object, int64_t line, const char *const *key)
{
    const char *found = NULL, *wanted = *key;
    json_t *v;
    for (; *key; key++) {
        if (!json_object_get(object, *key)) continue;
        if (found)
            cli_die(CLI_USAGE, "%s:%lld: both \"%s\" and \"%s\": one of them", s->trace, (long long)line, found,
                    *key);
        found = *key;
    }
    if (!found) cli_die(CLI_USAGE, "%s:%lld: \"%s\" is missing", s->trace, (long long)line, wanted);
    v = json_object_get(object, found);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > MOST_LENGTH)
        cli_die(CLI_USAGE, "%s:%lld: \"%s\" is %s; a whole number from 1 to %d is needed", s->trace, (long long)line,
                found, cli_json_shown(v), MOST_LENGTH);
    return (int32_t)json_integer_value(v);
}

static cli_request read_request(const cli_simulate *s, json_t *object, int64_t line)
{
    static const char *const input[] = {"input_toks", "input_tokens", "prompt_tokens",
                                        "input_length", NULL};
    static const char *const output[] = {"output_toks", "output_tokens", "completion_tokens",
                                         "output_length", NULL};
    json_t *ns = json_object_get(object, "arrival_time_ns"),
           *at = ns ? ns : json_object_get(object, "arrival_s");
    cli_request q;
    memset(&q, 0, sizeof q);
    if (json_object_get(object, "sub_requests"))
        cli_die(CLI_USAGE, "%s:%lld: sessions (\"sub_requests\") are not simulated, only single requests", s->trace,
                (long long)line);
    q.line = line;
    q.input = request_tokens(s, object, line, input);
    q.output = request_tokens(s, object, line, output);
    if (ns && json_object_get(object, "arrival_s"))
        cli_die(CLI_USAGE, "%s:%lld: both \"arrival_time_ns\" and \"arrival_s\": one of them", s->trace,
                (long long)line);
    if (!at) return q;
    q.arrival_s = json_number_value(at) * (ns ? 1e-9 : 1.0);
    if (!json_is_number(at) || !(q.arrival_s >= 0.0 && q.arrival_s <= most_arrival_s))
        cli_die(CLI_USAGE, "%s:%lld: \"%s\" is %s; a number from 0 to %g is needed", s->trace, (long long)line,
                ns ? "arrival_time_ns" : "arrival_s", cli_json_shown(at), ns ? 1e9 * most_arrival_s : most_arrival_s);
    return q;
}

static int by_arrival(const void *a, const void *b)
{
    const cli_request *x = a, *y = b;
    if (x->arrival_s < y->arrival_s || x->arrival_s > y->arrival_s)
        return x->arrival_s < y->arrival_s ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

static void read_requests(cli_simulate *s)
{
    char *text = NULL;
    size_t room = 0;
    FILE *f = cli_open_input(s->trace);
    ssize_t n;
    for (int64_t line = 1; (n = cli_getline(&text, &room, f, s->trace)) >= 0; line++) {
        json_t *object = cli_json_line(s->trace, line, text, (size_t)n);
        if (!object) continue;
        arrput(s->request, read_request(s, object, line));
        json_decref(object);
    }
    (void)fclose(f);
    free(text);
    if (arrlen(s->request) > MOST_REQUESTS)
        cli_die(CLI_USAGE, "%s: more than %s requests", s->trace, cli_count(MOST_REQUESTS));
    if (!s->request) cli_die(CLI_USAGE, "%s: holds no requests", s->trace);
    qsort(s->request, (size_t)arrlen(s->request), sizeof *s->request, by_arrival);
}

static void make_requests(cli_simulate *s)
{
    if (s->rate > 0.0 && (s->requests - 1) / s->rate > most_arrival_s)
        cli_die(CLI_USAGE, "--rate %g with --requests %d: the last would arrive after more than %g seconds", s->rate,
                s->requests, most_arrival_s);
    for (int32_t i = 0; i < s->requests; i++) {
        cli_request q;
        memset(&q, 0, sizeof q);
        q.arrival_s = s->rate > 0.0 ? i / s->rate : 0.0;
        q.input = s->input;
        q.output = s->output;
        q.line = i + 1;
        arrput(s->request, q);
    }
}

/* Bytes of a token in the caches of all layers. */
static double token_bytes(const moe_ep_model *m)
{
    return (double)m->num_layers * m->kv_elems * (m->kv_bytes > 0.0 ? m->kv_bytes : 2.0) +
           m->index_bytes * m->window_layers;
}

static void weigh(cli_simulate *s)
{
    const moe_ep_model *m = &s->setup.model;
    moe_ep_memory_desc d;
    moe_ep_error err;
    double token = token_bytes(m);
    memset(&d, 0, sizeof d);
    d.model = &s->part;
    d.num_devices = s->cluster.ep;
    d.tensor_parallel = s->cluster.tp;
    d.reserve_bytes = s->reserve_bytes;
    d.memory_bytes = s->setup.machine.memory_bytes;
    cli_check(moe_ep_memory(&d, &s->memory, &err), &err, "memory");
    if (!s->memory.fits)
        cli_die(CLI_USAGE, "%s: %s with ep_size %d needs %s on a device of %s", s->cluster.path,
                m->name, s->cluster.ep, cli_bytes(s->memory.total_bytes),
                cli_bytes(d.memory_bytes));
    s->kv_capacity = token > 0.0 ? s->memory.kv_room_bytes * s->cluster.devices / token : 1e15;
    for (ptrdiff_t i = 0; i < arrlen(s->request); i++)
        if ((double)s->request[i].input + s->request[i].output > s->kv_capacity)
            cli_die(CLI_USAGE, "%s: request %lld needs a cache of %s tokens, there is room for %s",
                    s->trace ? s->trace : s->cluster.path, (long long)s->request[i].line,
                    cli_count((double)s->request[i].input + s->request[i].output),
                    cli_count(s->kv_capacity));
}

/* ---- one step -------------------------------------------------------------------------------------------- */

typedef struct engine {
    moe_ep_placement p;
    int32_t *ids;
    int64_t *rows, *device;
} engine;

static engine start_engine(const cli_simulate *s)
{
    const moe_ep_model *m = &s->setup.model;
    moe_ep_place_desc d;
    moe_ep_error err;
    engine g;
    size_t bytes;
    memset(&d, 0, sizeof d);
    d.num_layers = s->layers;
    d.num_experts = m->num_experts;
    d.shape.num_devices = s->cluster.ep;
    bytes = moe_ep_placement_bytes(d.num_layers, d.num_experts, &d.shape);
    cli_check(moe_ep_placement_init(&g.p, d.num_layers, d.num_experts, &d.shape,
                                    cli_keep_block(cli_alloc(bytes, 1)), bytes, &err),
              &err, "shape");
    cli_check(moe_ep_place_contiguous(&d, &g.p, NULL, NULL, &err), &err, "contiguous blocks");
    g.ids = cli_keep_block(cli_alloc((size_t)(s->max_tokens + s->max_batch) * (size_t)m->top_k, sizeof *g.ids));
    g.rows = cli_keep_block(cli_alloc((size_t)s->layers * (size_t)g.p.num_slots, sizeof *g.rows));
    g.device = cli_keep_block(cli_alloc((size_t)s->cluster.ep, sizeof *g.device));
    return g;
}

/* Routes the tokens of a step: rows per slot of every drawn layer, imbalance and busiest device. */
static void route(const cli_simulate *s, engine *g, int64_t number, int64_t tokens,
                  cli_step_row *row)
{
    const moe_ep_model *m = &s->setup.model;
    int64_t *counts = cli_alloc((size_t)m->num_experts, sizeof *counts);
    double most = 0.0, *total = cli_alloc((size_t)s->cluster.ep, sizeof *total);
    moe_ep_split_desc even;
    moe_ep_error err;
    memset(&even, 0, sizeof even);
    for (int32_t l = 0; l < s->layers; l++) {
        moe_ep_workload w = s->workload;
        int64_t *at = g->rows + (size_t)l * (size_t)g->p.num_slots, top = 0;
        if (s->popularity)
            w.popularity =
                s->popularity->loads +
                (size_t)((int64_t)l * s->popularity->layers / s->layers) * (size_t)m->num_experts;
        cli_check(moe_ep_simulate(&w, l, number, tokens, g->ids, NULL, &err), &err,
                  "drawing tokens");
        cli_check(
            moe_ep_expert_loads(g->ids, tokens * m->top_k, m->num_experts, counts, NULL, &err),
            &err, "loads");
        cli_check(moe_ep_split(&even, &g->p, l, counts, at, NULL, &err), &err, "split");
        cli_check(moe_ep_device_rows(&g->p, at, g->device, &err), &err, "device rows");
        for (int32_t d = 0; d < s->cluster.ep; d++) {
            top = g->device[d] > top ? g->device[d] : top;
            total[d] += (double)g->device[d];
        }
        most += (double)top;
    }
    row->imbalance = most * s->cluster.ep / ((double)tokens * m->top_k * s->layers);
    row->max_rows = (int64_t)(most / s->layers + 0.5);
    for (int32_t d = 1; d < s->cluster.ep; d++)
        if (total[d] > total[row->busiest]) row->busiest = d;
    free(total);
    free(counts);
}

/* Seconds in which `devices` add up rows of all tokens that each holds a part of. */
static double sum_s(const cli_simulate *s, double tokens, int32_t devices)
{
    moe_ep_error err;
    double part = 2.0 * (devices - 1) / devices * tokens * s->setup.model.hidden * 2.0,
           seconds = devices > 1 ? moe_ep_link_time(&s->setup.machine.ll_dispatch, part, 0.0, &err) : 0.0;
    if (seconds < 0.0) cli_check(err.status, &err, "all-reduce");
    return seconds;
}

/* What the requests of a step have in their caches, and pairs of a token and one of its context that it computes; the
 * same of layers whose tokens attend to a part of their context. */
typedef struct context {
    double cached, pairs, near_cached, near_pairs;
} context;

/* A request with so many tokens in its cache computes so many more. */
static void add_context(const moe_ep_model *m, double past, double tokens, context *c)
{
    double window = m->attention_window, all = past + tokens, growing, pairs;
    growing = fmin(fmax(window - past, 0.0), tokens); /* tokens whose context is no longer than the window */
    pairs = growing * (past + (growing + 1.0) / 2.0) + (tokens - growing) * window;
    c->cached += all;
    c->pairs += tokens * (past + (tokens + 1.0) / 2.0);
    c->near_cached += tokens > 0.0 ? fmin(m->index_flops > 0 ? pairs : window + tokens - 1.0, all) : 0.0;
    c->near_pairs += pairs;
}

/* Seconds to read these bytes or to do these multiplications, whichever is longer. */
static double longer_s(const moe_ep_machine *h, double bytes, double flops, moe_ep_math math)
{
    double read = bytes / h->memory_Bps / (h->gemm.mem_eff > 0.0 ? h->gemm.mem_eff : 1.0);
    double rate = h->flops[math] * (h->gemm.flop_eff > 0.0 ? h->gemm.flop_eff : 1.0);
    return rate > 0.0 ? fmax(read, flops / rate) : read;
}

/* Attention of a layer on one of tp devices of an instance: projections, then the kernel, prompts as decoded tokens are
 * (latent attention can take a third for them), then the sum over the devices on the links. */
static double attention_s(const cli_simulate *s, double tokens, context c)
{
    const moe_ep_model *m = &s->setup.model;
    const moe_ep_machine *h = &s->setup.machine;
    double tp = s->cluster.tp, weights = (double)m->attention_params / tp;
    double bytes = m->other_weight_bytes > 0.0 ? m->other_weight_bytes : 2.0;
    double elem = m->kv_elems * (m->kv_bytes > 0.0 ? m->kv_bytes : 2.0) / tp, flops = (double)m->attention_flops / tp;
    double share = m->attention_window > 0 ? (double)m->window_layers / m->num_layers : 0.0, kernel;
    moe_ep_math math = m->math == MOE_EP_MATH_FP4 ? MOE_EP_MATH_FP8 : m->math; /* 4 bits are of experts */
    kernel = (1.0 - share) * longer_s(h, c.cached * elem, c.pairs * flops, MOE_EP_MATH_BF16);
    if (share > 0.0) /* as moe_ep_attention_time has it; every device chooses for itself */
        kernel += share * (longer_s(h, c.cached * m->index_bytes, c.pairs * (double)m->index_flops, MOE_EP_MATH_FP8) +
                           longer_s(h, c.near_cached * elem, c.near_pairs * flops, MOE_EP_MATH_BF16));
    return longer_s(h, weights * bytes, 2.0 * tokens * weights, bytes < 2.0 ? math : MOE_EP_MATH_BF16) + kernel +
           sum_s(s, tokens, s->cluster.tp);
}

static void time_step(const cli_simulate *s, engine *g, int64_t number, context c, cli_step_row *row)
{
    const moe_ep_model *m = &s->setup.model;
    int64_t tokens = row->prompt + row->decode;
    double each = ceil((double)tokens / s->cluster.dp), joined; /* tokens of one instance; the sum over cut experts */
    moe_ep_step_desc d;
    moe_ep_step_result out;
    moe_ep_error err;
    route(s, g, number, tokens, row);
    memset(&d, 0, sizeof d);
    d.layer.model = &s->part;
    d.layer.machine = &s->setup.machine;
    d.layer.placement = &g->p;
    d.layer.tokens = (tokens + s->cluster.ep - 1) / s->cluster.ep;
    d.layer.mode = MOE_EP_A2A_RANK_DEDUP;
    d.layer.attention_s =
        attention_s(s, each, (context){c.cached / s->cluster.dp, c.pairs / s->cluster.dp,
                                       c.near_cached / s->cluster.dp, c.near_pairs / s->cluster.dp});
    d.num_layers = s->layers;
    d.other_s = s->setup.other_s;
    cli_check(moe_ep_step(&d, g->rows, &out, NULL, &err), &err, "step time");
    joined = sum_s(s, (double)tokens, cut_of(&s->cluster)) * m->num_moe_layers;
    row->length_s = out.step_s + joined;
    row->attention_s = d.layer.attention_s * m->num_moe_layers;
    row->dispatch_s = out.dispatch_s;
    row->compute_s = out.compute_s;
    row->combine_s = out.combine_s + joined;
    row->memory_bytes = s->memory.total_bytes + c.cached * token_bytes(m) / s->cluster.devices;
}

/* ---- serving ----------------------------------------------------------------------------------------------- */

typedef struct server {
    double now, reserved; /* cache tokens promised to running requests */
    ptrdiff_t next;       /* first request not admitted                */
    ptrdiff_t arrived;    /* first request still to come               */
    int32_t *running;     /* stb_ds, indices of requests               */
} server;

static void admit(const cli_simulate *s, server *v)
{
    while (v->arrived < arrlen(s->request) && s->request[v->arrived].arrival_s <= v->now) v->arrived++;
    while (v->next < v->arrived && arrlen(v->running) < s->max_batch) {
        const cli_request *q = &s->request[v->next];
        double need = (double)q->input + q->output;
        if (v->reserved + need > s->kv_capacity) return;
        v->reserved += need;
        arrput(v->running, (int32_t)v->next);
        v->next++;
    }
}

/* Plans a step: one token of every request that has read its prompt, prompts with what is left of the limit. */
static cli_step_row plan_step(const cli_simulate *s, const server *v, int32_t *take, context *c)
{
    cli_step_row row;
    memset(&row, 0, sizeof row);
    row.start_s = v->now;
    row.batch = (int32_t)arrlen(v->running);
    *c = (context){0.0, 0.0, 0.0, 0.0};
    for (ptrdiff_t i = 0; i < arrlen(v->running); i++) {
        const cli_request *q = &s->request[v->running[i]];
        take[i] = q->filled == q->input;
        row.decode += take[i];
    }
    for (ptrdiff_t i = 0; i < arrlen(v->running); i++) {
        const cli_request *q = &s->request[v->running[i]];
        int64_t room = s->max_tokens - row.prompt - row.decode;
        if (q->filled < q->input && room > 0) {
            take[i] = q->input - q->filled < room ? q->input - q->filled : (int32_t)room;
            row.prompt += take[i];
        }
        add_context(&s->setup.model, (double)q->filled + q->made, take[i], c);
    }
    row.waiting = (int32_t)(v->arrived - v->next);
    return row;
}

/* Books what the step has done; requests that are through leave. */
static void finish_step(cli_simulate *s, server *v, const int32_t *take)
{
    ptrdiff_t left = 0;
    for (ptrdiff_t i = 0; i < arrlen(v->running); i++) {
        cli_request *q = &s->request[v->running[i]];
        if (q->filled < q->input) {
            q->filled += take[i];
            if (q->filled == q->input) {
                q->made = 1;
                q->first_s = v->now;
            }
        } else {
            q->made++;
        }
        if (q->filled == q->input && q->made >= q->output) {
            q->done_s = v->now;
            v->reserved -= (double)q->input + q->output;
            continue;
        }
        v->running[left++] = v->running[i];
    }
    arrsetlen(v->running, left);
}

static void serve(cli_simulate *s, const simulate_files *files)
{
    engine g = start_engine(s);
    server v;
    int32_t *take = cli_alloc((size_t)s->max_batch, sizeof *take);
    memset(&v, 0, sizeof v);
    while (v.next < arrlen(s->request) || arrlen(v.running) > 0) {
        cli_step_row row;
        context c;
        admit(s, &v);
        if (arrlen(v.running) == 0) {
            v.now = s->request[v.next].arrival_s;
            continue;
        }
        if (arrlen(s->row) >= MOST_STEPS)
            cli_die(CLI_USAGE, "more than %s steps; fewer or shorter requests, or a larger batch",
                    cli_count(MOST_STEPS));
        row = plan_step(s, &v, take, &c);
        time_step(s, &g, arrlen(s->row), c, &row);
        arrput(s->row, row);
        v.now += row.length_s;
        finish_step(s, &v, take);
        if (files->log) cli_simulate_log(s, &row, arrlen(s->row), stdout);
        cli_progress("simulating", (double)v.next, (double)arrlen(s->request));
    }
    s->end_s = v.now;
    free(take);
    arrfree(v.running);
}

/* ---- summary ------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Mean and 95th percentile. */
static void spread(double *v, ptrdiff_t n, double *mean, double *p95)
{
    *mean = *p95 = 0.0;
    if (n == 0) return;
    qsort(v, (size_t)n, sizeof *v, by_value);
    for (ptrdiff_t i = 0; i < n; i++) *mean += v[i] / (double)n;
    *p95 = v[(ptrdiff_t)(0.95 * (double)(n - 1) + 0.5)];
}

static void sum_up_requests(cli_simulate *s)
{
    ptrdiff_t n = arrlen(s->request), m = 0;
    double *first = cli_alloc((size_t)n, sizeof *first), *each = cli_alloc((size_t)n, sizeof *each);
    for (ptrdiff_t i = 0; i < n; i++) {
        const cli_request *q = &s->request[i];
        first[i] = q->first_s - q->arrival_s;
        if (q->output > 1) each[m++] = (q->done_s - q->first_s) / (q->output - 1);
    }
    spread(first, n, &s->ttft_s, &s->ttft95_s);
    spread(each, m, &s->tpot_s, &s->tpot95_s);
    free(first);
    free(each);
}

/* A step counts in every bin of time by the part of it that lies there. */
static void put_in_bins(cli_simulate *s, const cli_step_row *r, double *time)
{
    double bin = s->end_s / s->bins, end = r->start_s + r->length_s;
    for (int b = (int)(r->start_s / bin); b < s->bins && bin * b < end; b++) {
        double from = fmax(r->start_s, bin * b), part = fmin(end, bin * (b + 1)) - from;
        if (!(part > 0.0)) continue;
        time[b] += part;
        s->bin_prompt[b] += (double)r->prompt * part / r->length_s;
        s->bin_decode[b] += (double)r->decode * part / r->length_s;
        s->bin_batch[b] += r->batch * part;
        s->bin_imbalance[b] += r->imbalance * part;
    }
}

static void sum_up_steps(cli_simulate *s)
{
    double busy = 0.0, prompt = 0.0, made = 0.0, *time;
    s->bins = arrlen(s->row) < CLI_BINS ? (int)arrlen(s->row) : CLI_BINS;
    time = cli_alloc((size_t)s->bins, sizeof *time);
    for (ptrdiff_t i = 0; i < arrlen(s->row); i++) {
        const cli_step_row *r = &s->row[i];
        busy += r->length_s;
        prompt += (double)r->prompt;
        s->imbalance += r->imbalance * r->length_s;
        s->peak_bytes = fmax(s->peak_bytes, r->memory_bytes);
        put_in_bins(s, r, time);
    }
    s->imbalance /= busy;
    s->prompt_per_s = prompt / s->end_s;
    for (ptrdiff_t i = 0; i < arrlen(s->request); i++) made += s->request[i].made;
    s->decode_per_s = made / s->end_s;
    for (int b = 0; b < s->bins; b++) {
        s->bin_s[b] = s->end_s * (b + 0.5) / s->bins;
        s->bin_prompt[b] *= s->bins / s->end_s;
        s->bin_decode[b] *= s->bins / s->end_s;
        s->bin_batch[b] /= time[b] > 0.0 ? time[b] : 1.0;
        s->bin_imbalance[b] = time[b] > 0.0 ? s->bin_imbalance[b] / time[b] : 1.0;
    }
    free(time);
}

static void write_words(cli_simulate *s)
{
    sum_up_requests(s);
    sum_up_steps(s);
    s->headline =
        cli_format("%s request%s %s: %s tokens/s out, first token after %s%s%s",
                   cli_count((double)arrlen(s->request)), arrlen(s->request) == 1 ? " takes" : "s take",
                   cli_seconds(s->end_s), cli_count(s->decode_per_s), cli_seconds(s->ttft_s),
                   s->tpot_s > 0.0 ? ", then one every " : "", s->tpot_s > 0.0 ? cli_seconds(s->tpot_s) : "");
    s->reason =
        cli_format("%s on %d x %s, TP %d, EP %d, routing %s: %s step%s, max/mean over devices "
                   "%.2f on average, at most %s of %s in use. 19 of 20 requests see "
                   "their first token within %s%s%s%s.",
                   s->setup.model.name, s->cluster.devices, s->setup.machine.name, s->cluster.tp,
                   s->cluster.ep, s->policy, cli_count((double)arrlen(s->row)), arrlen(s->row) == 1 ? "" : "s",
                   s->imbalance,
                   cli_bytes(s->peak_bytes), cli_bytes(s->setup.machine.memory_bytes),
                   cli_seconds(s->ttft95_s), s->tpot_s > 0.0 ? ", further ones at most " : "",
                   s->tpot_s > 0.0 ? cli_seconds(s->tpot95_s) : "", s->tpot_s > 0.0 ? " apart" : "");
    cli_note(&s->setup,
             "Experts stand in contiguous blocks; %d of %d layers are drawn in each step.",
             s->layers, s->setup.model.num_moe_layers);
    cli_note(
        &s->setup,
        "Attention reads its weights and the cache once, or multiplies its weights and scores if that takes "
        "longer, and sums over the TP devices.");
}

static void settle(cli_simulate *s, cli_trace *list)
{
    const moe_ep_model *m = &s->setup.model;
    int32_t cut = cut_of(&s->cluster);
    s->part = *m;
    s->part.inter = (m->inter - 1) / cut + 1;
    if (s->layers > m->num_moe_layers) s->layers = m->num_moe_layers;
    s->workload.num_experts = m->num_experts;
    s->workload.top_k = m->top_k;
    s->workload.num_devices = s->cluster.ep;
    s->workload.sigma = 1.1;
    if (s->workload.copy_layers) s->layers = 1;
    if (!list && !s->policy) s->policy = "rand";
    if (!list) return;
    if (s->policy) cli_die(CLI_USAGE, "--policy %s and an INPUT: only one of them can say the routing", s->policy);
    if (arrlen(list) > 1)
        cli_die(CLI_USAGE, "%td recordings: only one can give the popularity; --only chooses", arrlen(list));
    if (list[0].experts != m->num_experts)
        cli_die(CLI_USAGE, "%s has %d experts, %s has %d", list[0].path, list[0].experts, m->name,
                m->num_experts);
    s->popularity = &list[0];
    s->workload.kind = MOE_EP_LOAD_RECORDED;
    s->policy = list[0].name;
}

int cli_simulate_main(int argc, char **argv)
{
    static const cli_writers writers = {cli_simulate_text, cli_simulate_json, cli_simulate_html};
    cli_simulate s;
    cli_common common;
    simulate_files files;
    cli_out page, csv;
    cli_trace *list = NULL;
    char *left_out = NULL;
    int option;
    memset(&s, 0, sizeof s);
    memset(&common, 0, sizeof common);
    memset(&files, 0, sizeof files);
    common.screen.color = "auto";
    s.layers = 4;
    s.requests = 64;
    s.input = 512;
    s.output = 128;
    s.reserve_bytes = 4e9;
    s.workload.seed = 42;
    while ((option = cli_option(argc, argv, simulate_long, NULL)) != -1)
        take_option(&s, &common, &files, option, optarg);
    cli_refuse_stdout("csv", files.csv);
    if (files.log && (common.json || (common.html && strcmp(common.html, "-") == 0)))
        cli_die(CLI_USAGE, "--log and %s cannot both go to standard output", common.json ? "--json" : "--html -");
    read_cluster(&s);
    if (optind < argc) list = cli_read_all(argc, argv, optind, &common.read, 1, &left_out);
    cli_note_inputs(&s.setup, list);
    cli_note_left_out(&s.setup, left_out);
    settle(&s, list);
    if (s.trace)
        read_requests(&s);
    else
        make_requests(&s);
    weigh(&s);
    cli_check_form(&common, NULL);
    cli_open_page(&common, &page, argc, argv, optind);
    if (files.csv) cli_out_open(&csv, files.csv);
    serve(&s, &files);
    write_words(&s);
    cli_progress_end();
    if (files.csv) {
        cli_simulate_csv(&s, csv.stream);
        cli_out_commit(&csv);
    }
    cli_write_all(&common, &page, &s, &writers);
    cli_traces_free(list);
    arrfree(s.request);
    arrfree(s.row);
    free(s.headline);
    free(s.reason);
    free(s.setup.assumed);
    free(left_out);
    return CLI_OK;
}
