/* cli_drops.c - moe-ep drops: what a capacity costs, in rows and in routing weight, by who comes first
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_commands.h"
#include "cli_npy.h"

#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

enum { O_FACTOR = 256, O_CAPACITY, O_WEIGHTS, O_STEP };
enum { ORDERS = 4, DEFAULT_STEP = 4096 };

static const char drops_help[] =
    "usage: moe-ep drops IDS [--weights FILE.npy] [--capacity-factor F | --capacity C] [options]\n"
    "\n"
    "What is lost when every expert takes at most C rows of a step: rows, tokens, and with the recorded weights of\n"
    "the choices how much of the routing weight, for each order in which tokens are served.  IDS is a recording of\n"
    "ids (.npy or .jsonl).\n"
    "\n"
    "  --capacity-factor F   C = ceil(tokens * K / experts * F) (1.25)\n"
    "  --capacity C          rows per expert and step\n"
    "  --tokens N            tokens of a step or group that shares the capacity (the steps as recorded; without steps\n"
    "                        4096, or all there are)\n"
    "  --weights FILE        .npy (tokens, layers, choices) like the ids: the weight of every choice\n"
    "  --experts E           --layers-first   (see moe-ep report --help)\n"
    "  --format FORM         text, json or csv (a line per layer); --json is short for --format json\n"
    "  --width N   --ascii   --color WHEN\n"
    "\n"
    "Orders: token = all choices of a token, then the next token (Switch, MaxText, MegaBlocks); choice = all first\n"
    "choices, then all second ones (GShard, Tutel, NLLB); weight = the largest weights first (Megatron and DeepSpeed\n"
    "\"probs\"); token weight = tokens with the largest weight first (batch-prioritised routing).\n";

static const struct option drops_long[] = {{"capacity-factor", 1, NULL, O_FACTOR},
                                           {"capacity", 1, NULL, O_CAPACITY},
                                           {"weights", 1, NULL, O_WEIGHTS},
                                           {"tokens", 1, NULL, O_STEP},
                                           CLI_COMMON_OPTIONS,
                                           {NULL, 0, NULL, 0}};

static const moe_ep_drop_order order_of[ORDERS] = {MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_DROP_CHOICE_MAJOR,
                                                   MOE_EP_DROP_GATE, MOE_EP_DROP_MAX_GATE};
static const char *const order_name[ORDERS] = {"token", "choice", "weight", "token weight"};
static const char *const order_key[ORDERS] = {"token", "choice", "weight", "token_weight"};

/* What all steps of a layer lost together. */
typedef struct layer_drops {
    double assigned, dropped;                   /* rows                                            */
    double hit[ORDERS], lost[ORDERS];           /* tokens that lost a choice, and all of them      */
    double mass, kept[ORDERS];                  /* weight of all choices, and of those that remain */
    int32_t by_rows, by_mass;                   /* the expert with most rows, with most weight     */
    double row_share, mass_share;               /* of that expert, of all                          */
} layer_drops;

typedef struct drops {
    const cli_trace *t;
    char *left_out; /* layers without load */
    const char *weights_name;
    float *weights; /* (kept, layers, top_k) or NULL */
    int64_t *start;      /* stb_ds: first tokens of the steps as recorded, and the end; NULL = all have `step` tokens */
    int64_t step, steps; /* step: tokens of one, as recorded the mean */
    int64_t tokens;      /* of all steps */
    int64_t fixed;       /* capacity of every step, 0 = by the factor */
    int64_t size[2], capacity[2]; /* tokens and capacity of the smallest step and of the largest */
    double factor;
    int orders;          /* those that need no weights, or all */
    layer_drops *layer;  /* (layers)                           */
    layer_drops all;
} drops;

/* ---- reading ----------------------------------------------------------------------------------------------- */

static float weight_of(double v, const char *path, int64_t at)
{
    if (!(v >= 0.0 && v <= 1e6))
        cli_die(CLI_USAGE, "%s: element %lld is %g, which is no weight of a choice", path, (long long)at, v);
    return (float)v;
}

/* The weights of the kept tokens, in the order of the ids. */
static float *read_weights(const cli_trace *t, const char *path, int layers_first)
{
    cli_npy a;
    int64_t K = t->top_k, L = t->layers, part = 4096 * K;
    double *buf = cli_alloc((size_t)part, sizeof *buf);
    float *out = cli_keep_block(cli_alloc((size_t)(t->kept * L * K), sizeof *out));
    cli_npy_open(&a, path);
    int flat = a.ndim == 2 && L == 1 && a.shape[0] == t->tokens && a.shape[1] == K;
    if (a.kind != 'f') cli_die(CLI_USAGE, "%s: '%s' holds no fractions; weights are float16 to float64", path, a.descr);
    if (!flat && !(a.ndim == 3 && a.shape[layers_first ? 1 : 0] == t->tokens &&
                   a.shape[layers_first ? 0 : 1] == L && a.shape[2] == K))
        cli_die(CLI_USAGE, "%s: shape %s, but the ids of %s are %lld tokens, %lld layers, %lld choices", path,
                a.shape_text, t->path, (long long)t->tokens, (long long)L, (long long)K);
    for (int64_t done = 0; done < a.count; done += part) {
        if (part > a.count - done) part = a.count - done;
        cli_npy_read_double(&a, buf, part);
        for (int64_t i = 0; i < part; i++) {
            int64_t row = (done + i) / K, token = layers_first && !flat ? row % t->tokens : row / L,
                    layer = layers_first && !flat ? row / t->tokens : row % L;
            float w = weight_of(buf[i], path, done + i);
            if (token < t->kept) out[(token * L + layer) * K + (done + i) % K] = w;
        }
    }
    cli_npy_close(&a);
    free(buf);
    return out;
}

/* ---- counting ---------------------------------------------------------------------------------------------- */

static void look_at_experts(const drops *d, int32_t l, layer_drops *out)
{
    const cli_trace *t = d->t;
    int64_t K = t->top_k, L = t->layers, E = t->experts;
    double *rows = cli_alloc((size_t)E, sizeof *rows), *mass = cli_alloc((size_t)E, sizeof *mass), total = 0.0;
    for (int64_t i = 0; i < d->tokens; i++)
        for (int64_t k = 0; k < K; k++) {
            int64_t at = (i * L + l) * K + k;
            if (t->ids[at] < 0) continue;
            rows[t->ids[at]] += 1.0;
            total += 1.0;
            if (d->weights) mass[t->ids[at]] += (double)d->weights[at];
        }
    for (int32_t e = 0; e < t->experts; e++) {
        if (rows[e] > rows[out->by_rows]) out->by_rows = e;
        if (mass[e] > mass[out->by_mass]) out->by_mass = e;
        out->mass += mass[e];
    }
    out->row_share = total > 0.0 ? rows[out->by_rows] / total : 0.0;
    out->mass_share = out->mass > 0.0 ? mass[out->by_mass] / out->mass : 0.0;
    free(rows);
    free(mass);
}

/* Rows that an expert takes in a step of so many tokens. */
static int64_t capacity_of(const drops *d, int64_t tokens)
{
    moe_ep_capacity_desc desc;
    moe_ep_error err;
    int64_t capacity;
    if (d->fixed > 0) return d->fixed;
    memset(&desc, 0, sizeof desc);
    desc.rule = MOE_EP_CAPACITY_MEGATRON;
    desc.num_tokens = tokens;
    desc.top_k = d->t->top_k;
    desc.num_experts = d->t->experts;
    desc.factor = d->factor;
    capacity = moe_ep_capacity(&desc, &err);
    if (capacity < 1) cli_check((moe_ep_status)capacity, &err, "capacity");
    return capacity;
}

static int64_t first_of(const drops *d, int64_t step)
{
    return d->start ? d->start[step] : step * d->step;
}

static void drop_step(const drops *d, const int32_t *ids, const float *weights, int64_t tokens, layer_drops *out)
{
    const cli_trace *t = d->t;
    double mass = 0.0;
    for (int64_t i = 0; i < tokens * t->top_k && weights; i++)
        if (ids[i] >= 0) mass += (double)weights[i];
    for (int k = 0; k < d->orders; k++) {
        moe_ep_drop_policy policy;
        moe_ep_drop_result r;
        moe_ep_error err;
        memset(&policy, 0, sizeof policy);
        policy.capacity = capacity_of(d, tokens);
        policy.order = order_of[k];
        cli_check(moe_ep_drop(&policy, ids, weights, tokens, t->top_k, t->experts, NULL, NULL, NULL, NULL, &r, NULL,
                              &err),
                  &err, "drops");
        out->hit[k] += (double)r.tokens_hit;
        out->lost[k] += (double)r.tokens_lost;
        out->kept[k] += mass * r.weight_kept;
        if (k > 0) continue;
        out->assigned += (double)r.assignments;
        out->dropped += (double)r.dropped;
    }
}

static void count_layer(drops *d, int32_t l)
{
    const cli_trace *t = d->t;
    size_t K = (size_t)t->top_k, L = (size_t)t->layers, most = (size_t)d->size[1];
    int32_t *ids = cli_alloc(most * K, sizeof *ids);
    float *weights = d->weights ? cli_alloc(most * K, sizeof *weights) : NULL;
    for (int64_t s = 0; s < d->steps; s++) {
        size_t first = (size_t)first_of(d, s), n = (size_t)first_of(d, s + 1) - first;
        for (size_t i = 0; i < n; i++) {
            size_t from = ((first + i) * L + (size_t)l) * K;
            memcpy(ids + i * K, t->ids + from, K * sizeof *ids);
            if (weights) memcpy(weights + i * K, d->weights + from, K * sizeof *weights);
        }
        drop_step(d, ids, weights, (int64_t)n, &d->layer[l]);
    }
    free(ids);
    free(weights);
    look_at_experts(d, l, &d->layer[l]);
}

static void add_up(drops *d)
{
    for (int32_t l = 0; l < d->t->layers; l++) {
        const layer_drops *q = &d->layer[l];
        d->all.assigned += q->assigned;
        d->all.dropped += q->dropped;
        d->all.mass += q->mass;
        for (int k = 0; k < d->orders; k++) {
            d->all.hit[k] += q->hit[k];
            d->all.lost[k] += q->lost[k];
            d->all.kept[k] += q->kept[k];
        }
    }
}

static double percent(double part, double whole)
{
    return whole > 0.0 ? 100.0 * part / whole : 0.0;
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

/* "16", or of steps that differ "3 to 16". */
static const char *range_of(const int64_t *v)
{
    return v[0] == v[1] ? cli_count((double)v[0])
                        : cli_keep(cli_format("%s to %s", cli_count((double)v[0]), cli_count((double)v[1])));
}

static char *headline(const drops *d)
{
    double tokens = (double)d->tokens * d->t->layers;
    char *of = d->tokens < d->t->tokens
                   ? cli_format("the rows of the first %s of %s tokens", cli_count((double)d->tokens),
                                cli_count((double)d->t->tokens))
                   : cli_strdup("all rows");
    char *rows = cli_format("A capacity of %s row%s drops %.2f %% of %s; %.2f %% of the tokens lose a choice",
                            range_of(d->capacity), d->capacity[1] == 1 ? "" : "s",
                            percent(d->all.dropped, d->all.assigned), of, percent(d->all.hit[0], tokens));
    char *text = d->weights ? cli_format("%s, and %.2f %% of the routing weight goes (%.2f %% when the largest weights "
                                         "come first)",
                                         rows, 100.0 - percent(d->all.kept[0], d->all.mass),
                                         100.0 - percent(d->all.kept[2], d->all.mass))
                            : cli_strdup(rows);
    free(rows);
    free(of);
    return text;
}

/* What the steps are, where the recording says it, and what makes no whole one. */
static void put_steps(const drops *d, FILE *f, int width)
{
    int64_t rest = d->t->kept - d->tokens;
    if (rest > 0) {
        char *text = cli_format("%s last %s token%s no whole step and %s not counted.",
                                *cli_kept_ids(d->t) ? "Of these the" : "The", cli_count((double)rest),
                                rest == 1 ? " makes" : "s make", rest == 1 ? "is" : "are");
        cli_put_wrapped(f, text, width, 0, 0);
        free(text);
    }
    if (d->start)
        cli_put_wrapped(f, "Steps as recorded; --tokens cuts others from the recording in order.", width, 0, 0);
}

static void put_text(const void *data, FILE *f, const chart_text *t)
{
    const drops *d = data;
    char *head = headline(d);
    double tokens = (double)d->tokens;
    cli_put_wrapped(f, head, chart_width(t), 0, 0);
    if (*cli_kept_ids(d->t)) cli_put_wrapped(f, cli_kept_ids(d->t), chart_width(t), 0, 0);
    if (*cli_idle_steps(d->t)) cli_put_wrapped(f, cli_idle_steps(d->t), chart_width(t), 0, 0);
    if (d->t->note) cli_put_wrapped(f, d->t->note, chart_width(t), 0, 0);
    fprintf(f, "\n%s: %s step%s of %s token%s, %d layer%s%s%s%s, top-%d of %d experts, capacity %s row%s "
               "(factor %.3g)\n",
            d->t->name, cli_count((double)d->steps), d->steps == 1 ? "" : "s", range_of(d->size),
            d->size[1] == 1 ? "" : "s", d->t->layers, d->t->layers == 1 ? "" : "s",
            *d->left_out ? " (without load and left out: " : "", d->left_out, *d->left_out ? ")" : "", d->t->top_k,
            d->t->experts, range_of(d->capacity), d->capacity[1] == 1 ? "" : "s", d->factor);
    put_steps(d, f, chart_width(t));
    cli_put_title(f, t, "Tokens that lose a choice, by who comes first");
    fputs("  layer  rows dropped", f);
    for (int k = 0; k < d->orders; k++) fprintf(f, "  %12s", order_name[k]);
    fputc('\n', f);
    for (int32_t l = 0; l < d->t->layers; l++) {
        fprintf(f, "  %5d  %10.2f %%", d->t->layer[l], percent(d->layer[l].dropped, d->layer[l].assigned));
        for (int k = 0; k < d->orders; k++) fprintf(f, "  %10.2f %%", percent(d->layer[l].hit[k], tokens));
        fputc('\n', f);
    }
    if (d->weights) {
        cli_put_title(f, t, "Routing weight that remains, and who carries it");
        fputs("  layer", f);
        for (int k = 0; k < d->orders; k++) fprintf(f, "  %12s", order_name[k]);
        fputs("  most rows          most weight\n", f);
        for (int32_t l = 0; l < d->t->layers; l++) {
            const layer_drops *q = &d->layer[l];
            fprintf(f, "  %5d", d->t->layer[l]);
            for (int k = 0; k < d->orders; k++) fprintf(f, "  %10.2f %%", percent(q->kept[k], q->mass));
            fprintf(f, "  expert %3d %4.1f %%  expert %3d %4.1f %%\n", q->by_rows, 100.0 * q->row_share, q->by_mass,
                    100.0 * q->mass_share);
        }
    }
    free(head);
}

static json_t *per_order(const drops *d, const double *value, double whole)
{
    json_t *o = json_object();
    for (int k = 0; k < d->orders; k++)
        json_object_set_new(o, order_key[k], json_real(whole > 0.0 ? value[k] / whole : 0.0));
    return o;
}

static json_t *layer_json(const drops *d, int32_t l)
{
    const layer_drops *q = &d->layer[l];
    double tokens = (double)d->tokens;
    json_t *o = json_object();
    json_object_set_new(o, "layer", json_integer(d->t->layer[l]));
    json_object_set_new(o, "rows", json_real(q->assigned));
    json_object_set_new(o, "rows_dropped", json_real(q->dropped));
    json_object_set_new(o, "tokens_hit", per_order(d, q->hit, tokens));
    json_object_set_new(o, "tokens_lost", per_order(d, q->lost, tokens));
    json_object_set_new(o, "hottest_by_rows", json_integer(q->by_rows));
    json_object_set_new(o, "its_share_of_rows", json_real(q->row_share));
    if (!d->weights) return o;
    json_object_set_new(o, "weight_kept", per_order(d, q->kept, q->mass));
    json_object_set_new(o, "hottest_by_weight", json_integer(q->by_mass));
    json_object_set_new(o, "its_share_of_weight", json_real(q->mass_share));
    return o;
}

static void put_json(const void *data, FILE *f)
{
    const drops *d = data;
    json_t *o = json_object(), *layers = json_array();
    char *head = headline(d);
    json_object_set_new(o, "moe_ep", json_string(MOE_EP_VERSION_STRING));
    json_object_set_new(o, "headline", json_string(head));
    json_object_set_new(o, "tokens_per_step", json_integer(d->step));
    json_object_set_new(o, "steps", json_integer(d->steps));
    json_object_set_new(o, "steps_as_recorded", json_boolean(d->start != NULL));
    json_object_set_new(o, "steps_left_out", json_integer(d->t->idle));
    json_object_set_new(o, "layers_left_out", json_string(d->left_out));
    json_object_set_new(o, "tokens", json_integer(d->tokens));
    json_object_set_new(o, "tokens_recorded", json_integer(d->t->tokens));
    if (*cli_kept_ids(d->t)) json_object_set_new(o, "counted", json_string(cli_kept_ids(d->t)));
    if (d->t->note) json_object_set_new(o, "note", json_string(d->t->note));
    json_object_set_new(o, "smallest_step", json_integer(d->size[0]));
    json_object_set_new(o, "largest_step", json_integer(d->size[1]));
    json_object_set_new(o, "capacity", json_integer(d->capacity[1]));
    json_object_set_new(o, "capacity_smallest", json_integer(d->capacity[0]));
    json_object_set_new(o, "capacity_factor", json_real(d->factor));
    json_object_set_new(o, "rows", json_real(d->all.assigned));
    json_object_set_new(o, "rows_dropped", json_real(d->all.dropped));
    if (d->weights) json_object_set_new(o, "weight_kept", per_order(d, d->all.kept, d->all.mass));
    for (int32_t l = 0; l < d->t->layers; l++) json_array_append_new(layers, layer_json(d, l));
    json_object_set_new(o, "layers", layers);
    (void)json_dumpf(o, f, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    fputc('\n', f);
    json_decref(o);
    free(head);
}

static void put_csv(const void *data, FILE *f)
{
    const drops *d = data;
    double tokens = (double)d->tokens;
    fputs("layer,rows,rows_dropped", f);
    for (int k = 0; k < d->orders; k++) fprintf(f, ",tokens_hit_%s", order_key[k]);
    for (int k = 0; k < d->orders && d->weights; k++) fprintf(f, ",weight_kept_%s", order_key[k]);
    fputc('\n', f);
    for (int32_t l = 0; l < d->t->layers; l++) {
        const layer_drops *q = &d->layer[l];
        fprintf(f, "%d,%.0f,%.0f", d->t->layer[l], q->assigned, q->dropped);
        for (int k = 0; k < d->orders; k++) fprintf(f, ",%.6g", q->hit[k] / tokens);
        for (int k = 0; k < d->orders && d->weights; k++)
            fprintf(f, ",%.6g", q->mass > 0.0 ? q->kept[k] / q->mass : 0.0);
        fputc('\n', f);
    }
}

/* ---- the command ------------------------------------------------------------------------------------------- */

/* Leaves out layers without load, and their weights with them. */
static void leave_out(drops *d, cli_trace *list)
{
    int32_t had = list->layers, *number = cli_alloc((size_t)had, sizeof *number);
    size_t K = (size_t)list->top_k, at = 0;
    memcpy(number, list->layer, (size_t)had * sizeof *number);
    d->left_out = cli_read_align(list, 1, 1);
    for (int64_t token = 0; d->weights && token < list->kept; token++)
        for (int32_t l = 0, with = 0; l < had && with < list->layers; l++) {
            if (number[l] != list->layer[with]) continue;
            memmove(d->weights + at * K, d->weights + ((size_t)token * (size_t)had + (size_t)l) * K,
                    K * sizeof *d->weights);
            at++;
            with++;
        }
    free(number);
}

/* The steps as recorded, those whose ids are kept. */
static void settle_recorded(drops *d)
{
    d->start = cli_step_starts(d->t);
    d->steps = arrlen(d->start) - 1;
    d->tokens = d->t->kept;
    d->step = (d->tokens + d->steps / 2) / d->steps;
    d->size[0] = d->size[1] = d->start[1];
    for (int64_t s = 1; s < d->steps; s++) {
        int64_t n = d->start[s + 1] - d->start[s];
        if (n < d->size[0]) d->size[0] = n;
        if (n > d->size[1]) d->size[1] = n;
    }
}

/* ", the ids of the first 512 are kept", where not all are. */
static const char *ids_kept(const cli_trace *t)
{
    if (!*cli_kept_ids(t)) return "";
    return cli_keep(cli_format(", the ids of the first %s are kept", cli_count((double)t->kept)));
}

static void settle_cut(drops *d, int64_t step)
{
    d->step = step > 0 ? step : DEFAULT_STEP;
    if (d->step > d->t->kept) {
        if (step > 0)
            cli_die(CLI_USAGE, "--tokens %lld: %s holds %s%s", (long long)step, d->t->path,
                    cli_count((double)d->t->tokens), ids_kept(d->t));
        d->step = d->t->kept;
    }
    d->steps = d->t->kept / d->step;
    d->tokens = d->steps * d->step;
    d->size[0] = d->size[1] = d->step;
}

static void settle(drops *d, int64_t step)
{
    if (step == 0 && d->t->step_tokens)
        settle_recorded(d);
    else
        settle_cut(d, step);
    for (int i = 0; i < 2; i++) d->capacity[i] = capacity_of(d, d->size[i]);
    if (d->fixed > 0)
        d->factor = (double)d->fixed * d->t->experts * (double)d->steps / ((double)d->tokens * d->t->top_k);
}

static void refuse_page(const cli_common *o)
{
    if (o->html) cli_die(CLI_USAGE, "--html: moe-ep drops writes no page; --format text, json or csv");
}

int cli_drops_main(int argc, char **argv)
{
    static const cli_writers writers = {put_text, put_json, NULL};
    static const cli_more_writers more = {put_csv, NULL};
    cli_common o;
    cli_out page;
    cli_trace *list;
    drops d;
    char *left_out;
    const char *weights = NULL;
    int64_t step = 0;
    double factor = 0.0;
    int option;
    memset(&o, 0, sizeof o);
    memset(&d, 0, sizeof d);
    o.screen.color = "auto";
    while ((option = cli_option(argc, argv, drops_long, NULL)) != -1) {
        if (option == O_FACTOR)
            factor = cli_option_number("capacity-factor", optarg, 1e-6, 1e6);
        else if (option == O_CAPACITY)
            d.fixed = cli_option_count("capacity", optarg, 1, INT32_MAX);
        else if (option == O_WEIGHTS)
            weights = optarg;
        else if (option == O_STEP)
            step = cli_option_count("tokens", optarg, 1, 1 << 30);
        else
            (void)cli_common_option(&o, option, optarg, drops_help);
    }
    if (d.fixed > 0 && factor > 0.0) cli_die(CLI_USAGE, "--capacity and --capacity-factor: one of them");
    d.factor = factor > 0.0 ? factor : 1.25;
    refuse_page(&o);
    cli_check_form(&o, &more);
    cli_open_page(&o, &page, argc, argv, optind);
    list = cli_read_all(argc, argv, optind, &o.read, 0, &left_out);
    if (argc - optind != 1) cli_die(CLI_USAGE, "moe-ep drops reads one recording");
    d.t = &list[0];
    if (!d.t->ids) cli_die(CLI_USAGE, "%s: holds counts; drops are counted token by token, from ids", d.t->path);
    settle(&d, step);
    if (weights) d.weights = read_weights(d.t, weights, o.read.layers_first);
    leave_out(&d, list);
    d.orders = weights ? ORDERS : 2;
    d.layer = cli_keep_block(cli_alloc((size_t)d.t->layers, sizeof *d.layer));
    for (int32_t l = 0; l < d.t->layers; l++) count_layer(&d, l);
    add_up(&d);
    cli_progress_end();
    cli_write_forms(&o, &page, &d, &writers, &more);
    arrfree(d.start);
    cli_traces_free(list);
    free(left_out);
    free(d.left_out);
    return CLI_OK;
}
