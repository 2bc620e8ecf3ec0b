/* cli_route.c - moe-ep route: logits, or hidden states and a gate, through a named router
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_commands.h"
#include "cli_npy.h"

#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char route_help[] =
    "usage: moe-ep route INPUT.npy --router NAME --topk K [options]\n"
    "\n"
    "INPUT is logits (tokens, experts); with --gate it is hidden states (tokens, hidden).\n"
    "\n"
    "  --router NAME     softmax, sigmoid, groups ... of a model family (moe-ep presets lists "
    "them)\n"
    "  --topk K          experts per token\n"
    "  --gate W.npy      router weight (experts, hidden)\n"
    "  --gate-bias B.npy bias of the gate (experts), added to the logits: changes ids and weights\n"
    "  --bias B.npy      selection bias (experts), as DeepSeek-V3 has one: changes ids, not weights\n"
    "  --ids FILE        writes the ids, .npy (tokens, K) int32 or .csv\n"
    "  --weights FILE    writes the weights, .npy (tokens, K) float32 or .csv\n"
    "  --compare I.npy   recorded ids (tokens, K) or, with --layer N, (tokens, layers, K): how "
    "many tokens agree\n"
    "  --layer N         layer of --compare, from 0\n";

typedef struct route_options {
    const char *router, *gate, *gate_bias, *bias, *ids, *weights, *compare;
    int32_t top_k, layer;
} route_options;

enum { O_ROUTER = 256, O_TOPK, O_GATE, O_GATE_BIAS, O_BIAS, O_IDS, O_WEIGHTS, O_COMPARE, O_LAYER };

static const struct option route_long[] = {
    {"router", 1, NULL, O_ROUTER},   {"topk", 1, NULL, O_TOPK},
    {"gate", 1, NULL, O_GATE},       {"gate-bias", 1, NULL, O_GATE_BIAS},
    {"bias", 1, NULL, O_BIAS},       {"ids", 1, NULL, O_IDS},
    {"weights", 1, NULL, O_WEIGHTS}, {"compare", 1, NULL, O_COMPARE},
    {"layer", 1, NULL, O_LAYER},     {"help", 0, NULL, CLI_O_HELP},
    {NULL, 0, NULL, 0}};

static void take_option(route_options *o, int option, const char *value)
{
    switch (option) {
    case O_ROUTER:
        o->router = value;
        break;
    case O_TOPK:
        o->top_k = (int32_t)cli_option_count("topk", value, 1, 512);
        break;
    case O_GATE:
        o->gate = value;
        break;
    case O_GATE_BIAS:
        o->gate_bias = value;
        break;
    case O_BIAS:
        o->bias = value;
        break;
    case O_IDS:
        o->ids = value;
        break;
    case O_WEIGHTS:
        o->weights = value;
        break;
    case O_COMPARE:
        o->compare = value;
        break;
    case O_LAYER:
        o->layer = (int32_t)cli_option_count("layer", value, 0, 65535);
        break;
    default:
        cli_help(route_help);
    }
}

typedef struct table {
    float *value;
    int64_t rows, columns;
} table;

/* A float .npy of one or two axes; a vector is one row. */
static table read_table(const char *path, const char *what)
{
    cli_npy a;
    table t;
    double *wide;
    cli_npy_open(&a, path);
    if (a.kind != 'f')
        cli_die(CLI_USAGE, "%s: '%s' holds no floating-point numbers; %s are needed", path, a.descr,
                what);
    if (a.ndim < 1 || a.ndim > 2 || a.count == 0)
        cli_die(CLI_USAGE, "%s: shape %s; %s are (rows, columns)", path, a.shape_text, what);
    t.rows = a.ndim == 2 ? a.shape[0] : 1;
    t.columns = a.shape[a.ndim - 1];
    if (t.columns > 65536)
        cli_die(CLI_USAGE, "%s: %lld columns; at most 65536", path, (long long)t.columns);
    wide = cli_alloc((size_t)a.count, sizeof *wide);
    t.value = cli_alloc((size_t)a.count, sizeof *t.value);
    cli_npy_read_double(&a, wide, a.count);
    for (int64_t i = 0; i < a.count; i++) {
        if (isnan(wide[i]))
            cli_die(CLI_USAGE, "%s: [%lld, %lld] is not a number", path, (long long)(i / t.columns),
                    (long long)(i % t.columns));
        t.value[i] = (float)wide[i];
    }
    free(wide);
    cli_npy_close(&a);
    return t;
}

/* One number for each of E experts. */
static table read_bias(const char *path, int64_t E)
{
    table bias = read_table(path, "biases");
    if (bias.rows * bias.columns != E)
        cli_die(CLI_USAGE, "%s: %lld values for %lld experts", path, (long long)(bias.rows * bias.columns),
                (long long)E);
    return bias;
}

/* Has the model family of this router a selection bias?  Those with sigmoid or sqrt(softplus) scores that are
 * divided by their sum have one; of the softmax routers only these. */
static int has_selection_bias(const moe_ep_router *r)
{
    static const char *const softmax[] = {"ernie45", "longcat"};
    moe_ep_router known;
    moe_ep_error err;
    if (r->select != MOE_EP_SELECT_TOPK) return 0;
    if (r->score == MOE_EP_SCORE_SIGMOID || r->score == MOE_EP_SCORE_SQRT_SOFTPLUS) return r->renorm;
    for (size_t i = 0; i < sizeof softmax / sizeof *softmax; i++) {
        cli_check(moe_ep_router_by_name(softmax[i], r->num_experts, r->top_k, &known, &err), &err, softmax[i]);
        if (r->score == known.score && r->renorm == known.renorm && memcmp(&r->eps, &known.eps, sizeof r->eps) == 0 &&
            memcmp(&r->scale, &known.scale, sizeof r->scale) == 0)
            return 1;
    }
    return 0;
}

/* Adds the bias of the gate to the logits, before a router's soft-cap. */
static void add_bias(const route_options *o, const table *logits)
{
    table bias = read_bias(o->gate_bias, logits->columns);
    for (int64_t i = 0; i < logits->rows * logits->columns; i++)
        logits->value[i] += bias.value[i % logits->columns];
    free(bias.value);
}

static table read_logits(const route_options *o, const char *input)
{
    table x = read_table(input, o->gate ? "hidden states" : "logits"), w, logits;
    moe_ep_error err;
    if (!o->gate) return x;
    w = read_table(o->gate, "router weights");
    if (w.columns != x.columns)
        cli_die(CLI_USAGE, "%s: %lld columns, but the hidden states of %s have %lld", o->gate,
                (long long)w.columns, input, (long long)x.columns);
    logits.rows = x.rows;
    logits.columns = w.rows;
    logits.value = cli_alloc((size_t)(x.rows * w.rows), sizeof *logits.value);
    cli_check(moe_ep_gate(x.value, x.rows, (int32_t)x.columns, w.value, NULL, (int32_t)w.rows,
                          logits.value, &err),
              &err, input);
    free(x.value);
    free(w.value);
    return logits;
}

/* Writes (rows, K) numbers as .npy or .csv. */
static void write_table(cli_out *out, int64_t rows, int32_t K, const int32_t *ids, const float *weights)
{
    int64_t shape[2] = {rows, K};
    size_t n = strlen(out->path);
    if (n > 4 && strcasecmp(out->path + n - 4, ".csv") == 0) {
        for (int64_t i = 0; i < rows * K; i++) {
            if (ids)
                fprintf(out->stream, "%d", ids[i]);
            else
                fprintf(out->stream, "%.9g", (double)weights[i]);
            fputc(i % K == K - 1 ? '\n' : ',', out->stream);
        }
    } else {
        cli_npy_write(out->stream, ids ? "<i4" : "<f4", 2, shape, ids ? (const void *)ids : (const void *)weights,
                      (size_t)(rows * K));
    }
    cli_out_commit(out);
}

static int is_in(const int32_t *list, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++)
        if (list[i] == id) return 1;
    return 0;
}

/* Says how many tokens have the same experts as recorded, and where the first differs. */
static void compare(const route_options *o, const int32_t *ids, int64_t rows, FILE *f)
{
    cli_npy a;
    int64_t tokens, layers, same = 0, ordered = 0, first = -1;
    int32_t *recorded, K = o->top_k;
    cli_npy_open(&a, o->compare);
    if ((a.ndim != 2 && a.ndim != 3) || a.count == 0 || a.shape[a.ndim - 1] != K)
        cli_die(CLI_USAGE, "%s: shape %s; (tokens, %d) or (tokens, layers, %d) is needed",
                o->compare, a.shape_text, K, K);
    layers = a.ndim == 3 ? a.shape[1] : 1;
    if (o->layer >= layers)
        cli_die(CLI_USAGE, "--layer %d: %s has layers 0 to %lld", o->layer, o->compare,
                (long long)layers - 1);
    tokens = a.shape[0] < rows ? a.shape[0] : rows;
    recorded = cli_alloc((size_t)(tokens * layers * K), sizeof *recorded);
    cli_npy_read_i32(&a, recorded, tokens * layers * K);
    for (int64_t t = 0; t < tokens; t++) {
        const int32_t *theirs = recorded + (t * layers + o->layer) * K, *ours = ids + t * K;
        int32_t found = 0;
        for (int32_t k = 0; k < K; k++) found += is_in(theirs, K, ours[k]);
        same += found == K;
        ordered += memcmp(theirs, ours, (size_t)K * sizeof *ours) == 0;
        if (found != K && first < 0) first = t;
    }
    fprintf(f, "%s of %s tokens have the recorded experts, %s also in the recorded order\n",
            cli_count((double)same), cli_count((double)tokens), cli_count((double)ordered));
    if (first >= 0) fprintf(f, "the first that differs is token %lld\n", (long long)first);
    cli_npy_close(&a);
    free(recorded);
}

int cli_route_main(int argc, char **argv)
{
    route_options o;
    moe_ep_router router;
    moe_ep_error err;
    table logits, bias = {NULL, 0, 0};
    cli_out text, ids_file, weights_file;
    int64_t *loads;
    int32_t *ids, E;
    float *weights;
    int option;
    memset(&o, 0, sizeof o);
    while ((option = cli_option(argc, argv, route_long, NULL)) != -1)
        take_option(&o, option, optarg);
    if (optind + 1 != argc)
        cli_die(CLI_USAGE, "route takes one input; moe-ep route --help tells more");
    if (!o.router || o.top_k == 0) cli_die(CLI_USAGE, "--router and --topk are needed");
    cli_refuse_stdout("ids", o.ids);
    cli_refuse_stdout("weights", o.weights);
    if (o.ids) cli_out_open(&ids_file, o.ids);
    if (o.weights) cli_out_open(&weights_file, o.weights);
    logits = read_logits(&o, argv[optind]);
    E = (int32_t)logits.columns;
    if (o.gate_bias) add_bias(&o, &logits);
    if (moe_ep_router_by_name(o.router, E, o.top_k, &router, &err) != MOE_EP_OK) {
        if (err.status == MOE_EP_ERR_RANGE)
            cli_die(CLI_USAGE, "--router %s: no such router; moe-ep presets lists them",
                    cli_printable(o.router));
        cli_check(err.status, &err, o.router);
    }
    if (o.bias) {
        if (!has_selection_bias(&router))
            cli_die(CLI_USAGE, "--bias: router %s has no selection bias; --gate-bias adds one to the logits",
                    cli_printable(o.router));
        bias = read_bias(o.bias, E);
        router.select_bias = bias.value;
    }
    ids = cli_alloc((size_t)(logits.rows * o.top_k), sizeof *ids);
    weights = cli_alloc((size_t)(logits.rows * o.top_k), sizeof *weights);
    loads = cli_alloc((size_t)E, sizeof *loads);
    cli_check(moe_ep_route(&router, logits.value, logits.rows, NULL, ids, weights, &err), &err,
              argv[optind]);
    cli_check(moe_ep_expert_loads(ids, logits.rows * o.top_k, E, loads, NULL, &err), &err,
              argv[optind]);
    cli_out_open(&text, "-");
    fprintf(text.stream, "%s tokens, %d experts, top-%d, router %s: expert max/mean %.3f\n",
            cli_count((double)logits.rows), E, o.top_k, o.router, moe_ep_imbalance(loads, E, &err));
    if (o.compare) compare(&o, ids, logits.rows, text.stream);
    if (o.ids) write_table(&ids_file, logits.rows, o.top_k, ids, NULL);
    if (o.weights) write_table(&weights_file, logits.rows, o.top_k, NULL, weights);
    cli_out_commit(&text);
    free(logits.value);
    free(bias.value);
    free(ids);
    free(weights);
    free(loads);
    return CLI_OK;
}
