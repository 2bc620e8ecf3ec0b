/* cli_watch_view.c - what the last steps say: figures, verdict, the picture
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_report.h"
#include "cli_screen.h"
#include "cli_watch.h"

#include <errno.h>
#include <jansson.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

/* ---- devices ------------------------------------------------------------------------------------------- */

/* Contiguous blocks, the first E mod D devices with one expert more; or expert e on device e mod D. */
static int32_t device_of(const cli_watch *w, int32_t e)
{
    int32_t D = w->devices, few = w->experts / D, more = w->experts % D;
    if (w->setup->round_robin) return e % D;
    return e < more * (few + 1) ? e / (few + 1) : few > 0 ? more + (e - more * (few + 1)) / few : D - 1;
}

/* Where a layer is, or would be, among those that were seen. */
static ptrdiff_t place_of(const cli_watch *w, int32_t layer)
{
    ptrdiff_t at = 0;
    while (at < arrlen(w->map_layer) && w->map_layer[at] < layer) at++;
    return at;
}

void cli_watch_match(cli_watch *w, const cli_watch_step *s)
{
    cli_trace t;
    char *before = w->map_words;
    ptrdiff_t known = arrlen(w->map_layer);
    for (ptrdiff_t i = 0; w->map && i < arrlen(s->row); i++) {
        ptrdiff_t at = place_of(w, s->row[i].layer);
        if (at < arrlen(w->map_layer) && w->map_layer[at] == s->row[i].layer) continue;
        arrins(w->map_layer, (size_t)at, s->row[i].layer);
    }
    if (arrlen(w->map_layer) == known) return;
    memset(&t, 0, sizeof t);
    t.path = (char *)(uintptr_t)w->path;
    t.layers = (int32_t)arrlen(w->map_layer);
    t.layer = w->map_layer;
    free(w->map_row);
    w->map_row = cli_map_match(w->map, &t, &w->map_words);
    w->map_news = w->map_row && w->map_words && (!before || strcmp(before, w->map_words) != 0);
    free(before);
}

/* The slots of a layer in the map; NULL where they are not known. */
static const int32_t *slots_of(const cli_watch *w, int32_t layer)
{
    return w->map_row ? w->map->expert + (size_t)w->map_row[place_of(w, layer)] * (size_t)w->map->slots : NULL;
}

void cli_watch_devices(const cli_watch *w, const cli_watch_row *row, double *out)
{
    const int32_t *slot = slots_of(w, row->layer);
    int32_t *copies;
    memset(out, 0, (size_t)w->devices * sizeof *out);
    if (!slot) {
        for (int32_t e = 0; e < row->n; e++) out[device_of(w, e)] += row->loads[e];
        return;
    }
    copies = cli_alloc((size_t)w->experts + 1, sizeof *copies);
    for (int32_t s = 0; s < w->map->slots; s++)
        if (slot[s] >= 0 && slot[s] < row->n) copies[slot[s]]++;
    for (int32_t s = 0; s < w->map->slots; s++) {
        int32_t d = w->map->slot_device ? w->map->slot_device[s] : (int32_t)((int64_t)s * w->devices / w->map->slots);
        if (slot[s] >= 0 && slot[s] < row->n) out[d] += row->loads[slot[s]] / copies[slot[s]];
    }
    free(copies);
}

/* Numbers of the layers in the window, sorted; stb_ds. */
static int32_t *layers_of(const cli_watch *w)
{
    int32_t *list = NULL;
    for (ptrdiff_t s = 0; s < arrlen(w->steps); s++)
        for (ptrdiff_t i = 0; i < arrlen(w->steps[s].row); i++) {
            int32_t v = w->steps[s].row[i].layer;
            ptrdiff_t at = 0;
            while (at < arrlen(list) && list[at] < v) at++;
            if (at == arrlen(list) || list[at] != v) arrins(list, (size_t)at, v);
        }
    return list;
}

/* ---- figures -------------------------------------------------------------------------------------------- */

static double recent(const cli_watch *w, int64_t back)
{
    return w->history[(w->seen - 1 - back) % CLI_HISTORY];
}

static int64_t shown_steps(const cli_watch *w)
{
    int64_t n = w->kind == CLI_WATCH_LOG ? w->window : (int64_t)arrlen(w->steps);
    n = n < w->seen ? n : w->seen;
    return n < CLI_HISTORY ? n : CLI_HISTORY;
}

double cli_watch_of_model(const cli_watch *w, const cli_watch_model *m)
{
    double mean = 0.0, most = 0.0;
    for (int64_t i = 0; i < shown_steps(w); i++)
        for (ptrdiff_t k = 0; k < arrlen(w->model); k++) {
            if (m && m != &w->model[k]) continue;
            mean += w->model[k].mean[(w->seen - 1 - i) % CLI_HISTORY];
            most += w->model[k].most[(w->seen - 1 - i) % CLI_HISTORY];
        }
    return mean > 0.0 ? most / mean : 1.0;
}

static void average(cli_watch *w)
{
    int64_t n = shown_steps(w);
    w->imbalance = w->worst = n > 0 ? 0.0 : 1.0;
    for (int64_t i = 0; i < n; i++) {
        w->imbalance += recent(w, i) / (double)n;
        w->worst = recent(w, i) > w->worst ? recent(w, i) : w->worst;
    }
    if (w->kind == CLI_WATCH_LOG) w->imbalance = cli_watch_of_model(w, NULL);
}

/* Mean rows per device and step. */
static void sum_devices(cli_watch *w)
{
    double *devices = cli_alloc((size_t)w->devices, sizeof *devices);
    free(w->device_rows);
    w->device_rows = cli_alloc((size_t)w->devices, sizeof *w->device_rows);
    for (ptrdiff_t s = 0; s < arrlen(w->steps); s++)
        for (ptrdiff_t i = 0; i < arrlen(w->steps[s].row); i++) {
            cli_watch_devices(w, &w->steps[s].row[i], devices);
            for (int32_t d = 0; d < w->devices; d++) w->device_rows[d] += devices[d] / (double)arrlen(w->steps);
        }
    free(devices);
}

/* ---- verdict -------------------------------------------------------------------------------------------- */

/* (steps, layers, experts) of the window. */
static double *dense(const cli_watch *w, const int32_t *layers)
{
    size_t L = (size_t)arrlen(layers), E = (size_t)w->experts;
    double *out = cli_alloc((size_t)arrlen(w->steps) * L * E, sizeof *out);
    for (ptrdiff_t s = 0; s < arrlen(w->steps); s++)
        for (ptrdiff_t i = 0; i < arrlen(w->steps[s].row); i++) {
            const cli_watch_row *row = &w->steps[s].row[i];
            size_t l = 0;
            while (layers[l] != row->layer) l++;
            memcpy(out + ((size_t)s * L + l) * E, row->loads, (size_t)row->n * sizeof *out);
        }
    return out;
}

static moe_ep_placement placement_now(const cli_watch *w, int32_t *layers, void **mem)
{
    moe_ep_placement p;
    moe_ep_place_desc d;
    moe_ep_error err;
    cli_trace t;
    size_t bytes;
    if (w->map) {
        int32_t *rows;
        if (!w->map_row) cli_die(CLI_USAGE, "%s", w->map_words);
        rows = cli_alloc((size_t)arrlen(layers), sizeof *rows);
        for (ptrdiff_t l = 0; l < arrlen(layers); l++) rows[l] = w->map_row[place_of(w, layers[l])];
        memset(&t, 0, sizeof t);
        t.path = (char *)(uintptr_t)w->path;
        t.layers = (int32_t)arrlen(layers);
        t.experts = w->experts;
        t.layer = layers;
        p = cli_map_placement_in(w->map, &t, rows, w->devices, w->cost.nodes, mem);
        free(rows);
        return p;
    }
    memset(&d, 0, sizeof d);
    d.num_layers = (int32_t)arrlen(layers);
    d.num_experts = w->experts;
    d.shape = cli_shape(w->devices, w->setup->round_robin || w->experts % w->devices == 0 ? w->experts : 0,
                        w->cost.nodes);
    bytes = moe_ep_placement_bytes(d.num_layers, d.num_experts, &d.shape);
    *mem = cli_alloc(bytes, 1);
    cli_check(moe_ep_placement_init(&p, d.num_layers, d.num_experts, &d.shape, *mem, bytes, &err), &err, w->path);
    cli_check((w->setup->round_robin ? moe_ep_place_round_robin : moe_ep_place_contiguous)(&d, &p, NULL, NULL, &err),
              &err, w->path);
    return p;
}

/* Model, machine and nodes as moe-ep diagnose takes them for L layers of which E experts were seen. */
static void settle_cost(cli_watch *w, int32_t L)
{
    int32_t E = w->experts, K = w->setup->top_k > 0 ? w->setup->top_k : w->top_k;
    if (K > E) K = E; /* not all have been seen yet */
    if (w->cost_layers == L && w->cost_experts == E && w->cost_k == K) return;
    w->cost_layers = L;
    w->cost_experts = E;
    w->cost_k = K;
    free(w->cost.assumed);
    w->cost = *w->setup;
    w->cost.devices = w->devices;
    cli_setup_model(&w->cost, L, E, &K);
    cli_setup_machine(&w->cost);
    cli_setup_nodes(&w->cost);
}

/* Layers with loads. */
static int32_t loaded_layers(const double *loads, int32_t steps, int32_t L, int32_t E)
{
    int32_t with = 0;
    for (int64_t l = 0; l < L; l++) {
        int any = 0;
        for (int64_t s = 0; s < steps; s++)
            for (int64_t e = 0; e < E; e++) any |= loads[(s * L + l) * E + e] > 0.0;
        with += any;
    }
    return with;
}

/* How a layer of steps of these loads is priced, by the judged ones; steps of more than one can hold are scaled. */
static moe_ep_layer_desc price(cli_watch *w, double *loads, int32_t steps, int32_t L)
{
    int32_t with = loaded_layers(loads, steps, L, w->experts);
    size_t n = (size_t)L * (size_t)w->experts;
    double *tokens = cli_alloc((size_t)steps, sizeof *tokens), all = 0.0, judged = 0.0, scaled;
    moe_ep_layer_desc layer;
    cli_report r;
    settle_cost(w, with);
    for (int32_t s = 0; s < steps; s++) {
        for (size_t i = 0; i < n; i++) tokens[s] += loads[(size_t)s * n + i];
        tokens[s] /= (double)with * w->cost.model.top_k;
        all += tokens[s] / steps;
        if (s >= steps / 2) judged += tokens[s] / (steps - steps / 2);
    }
    scaled = cli_scaled_tokens(all, w->devices);
    for (int32_t s = 0; s < steps && scaled > 0.0; s++)
        for (size_t i = 0; i < n; i++) loads[(size_t)s * n + i] *= scaled / tokens[s];
    memset(&r, 0, sizeof r);
    r.setup = &w->cost;
    layer = cli_report_layer(&r, (int64_t)((scaled > 0.0 ? scaled : judged) + 0.5), w->devices, w->cost.nodes);
    layer.model = &w->cost.whole;
    w->kernels = cli_kernels_name(layer.high_throughput ? CLI_KERNELS_NORMAL : CLI_KERNELS_LOW_LATENCY);
    free(tokens);
    return layer;
}

/* Plans on the first half of the window and judges on the second. */
static void diagnose(cli_watch *w)
{
    int32_t *layers = layers_of(w), steps = (int32_t)arrlen(w->steps);
    double *loads = dense(w, layers);
    void *mem;
    moe_ep_layer_desc layer = price(w, loads, steps, (int32_t)arrlen(layers));
    moe_ep_placement now = placement_now(w, layers, &mem);
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis out;
    moe_ep_status status;
    moe_ep_error err;
    size_t half = (size_t)(steps / 2) * (size_t)arrlen(layers) * (size_t)w->experts;
    const moe_ep_link *links = &w->cost.machine.normal_dispatch;
    memset(&d, 0, sizeof d);
    moe_ep_diagnose_thresholds(&d);
    d.num_layers = (int32_t)arrlen(layers);
    d.num_experts = w->experts;
    d.top_k = w->cost.model.top_k;
    d.router_groups = w->cost.router_groups;
    d.top_groups = w->cost.top_groups;
    d.shape = cli_shape(w->devices, now.num_slots >= w->experts ? now.num_slots : 0, w->cost.nodes);
    d.cost = &layer;
    d.other_s = w->setup->other_s;
    d.move_Bps = w->cost.nodes > 1 ? links->inter_Bps : links->intra_Bps;
    d.current = &now;
    d.plan_loads = loads;
    d.plan_steps = steps / 2;
    d.judge_loads = loads + half;
    d.judge_steps = steps - steps / 2;
    d.min_gain = w->setup->min_gain;
    status = moe_ep_diagnose(&d, NULL, &out, NULL, &err);
    if (status == MOE_EP_ERR_MEMORY) cli_check(status, &err, "diagnosis");
    if (status == MOE_EP_OK) {
        w->verdict = out.verdict;
        w->state = moe_ep_verdict_str(out.verdict);
        w->reason = cli_reason(&d, &out);
        w->hot_device = out.hot_device;
        w->hot_layer = layers[out.hot_layer];
        w->hot_times = out.hot_imbalance;
        w->hot_own = out.hot_own;
        w->hot_share = out.hot_share;
        w->hot_steps = d.judge_steps;
        w->chance = out.chance_imbalance;
    } else {
        char text[256];
        (void)moe_ep_error_text(&err, text, sizeof text);
        w->state = "no verdict";
        w->reason = cli_strdup(text);
    }
    w->layers = (int32_t)arrlen(layers);
    free(loads);
    free(mem);
    arrfree(layers);
}

static double waits(double imbalance) { return 100.0 * (1.0 - 1.0 / imbalance); }

static void judge_log(cli_watch *w)
{
    cli_text each;
    cli_text_open(&each);
    for (ptrdiff_t i = 0; i < arrlen(w->model) && arrlen(w->model) > 1; i++)
        fprintf(each.stream, "%s%s %.0f %%", i > 0 ? ", " : ": ", *w->model[i].name ? w->model[i].name : "(no name)",
                waits(cli_watch_of_model(w, &w->model[i])));
    cli_text_end(&each);
    w->state = w->imbalance <= 1.05 ? "balanced" : "uneven";
    w->reason =
        cli_format("the ranks wait %.0f %% of the time of the expert layers for the busiest one (balancedness "
                   "%.2f)%s; vLLM before pull request 51813 logs this over layers, not over ranks: then it says "
                   "nothing of ranks; which experts are hot a log does not say: record counts or ids",
                   waits(w->imbalance), 1.0 / w->imbalance, each.text);
    free(each.text);
}

void cli_watch_judge(cli_watch *w)
{
    free(w->reason);
    w->reason = NULL;
    w->hot_layer = -1;
    average(w);
    if (w->seen == 0) {
        w->state = "waiting";
        w->reason = cli_strdup("no complete step yet");
        return;
    }
    if (w->kind == CLI_WATCH_LOG || arrlen(w->steps) == 0) {
        judge_log(w);
        return;
    }
    sum_devices(w);
    if (arrlen(w->steps) >= 4) {
        diagnose(w);
        return;
    }
    w->state = "waiting";
    w->reason = cli_strdup(w->map && !w->map_row ? w->map_words : "a verdict needs four complete steps");
}

/* ---- picture -------------------------------------------------------------------------------------------- */

typedef struct frame {
    FILE *f;
    const char *eol;
    int left; /* lines that still fit */
} frame;

static void end_line(frame *o)
{
    fputs(o->eol, o->f);
    o->left--;
}

static void put_words(frame *o, const char *text, int width, int most)
{
    char *save = NULL;
    cli_text all;
    cli_text_open(&all);
    cli_put_wrapped(all.stream, text, width - 2, 2, 2);
    cli_text_end(&all);
    for (char *line = strtok_r(all.text, "\n", &save); line && most-- > 0; line = strtok_r(NULL, "\n", &save)) {
        fprintf(o->f, "%s%s", *line == ' ' ? "" : "  ", line);
        end_line(o);
    }
    free(all.text);
}

static void put_spark(const cli_watch *w, frame *o, const chart_text *t)
{
    int n = t->width - 4 < 200 ? t->width - 4 : 200;
    double value[200], low = 1.0, high = 1.1;
    static const char *const block[] = {"\xe2\x96\x81", "\xe2\x96\x82", "\xe2\x96\x83", "\xe2\x96\x84",
                                        "\xe2\x96\x85", "\xe2\x96\x86", "\xe2\x96\x87", "\xe2\x96\x88"};
    if (n > w->seen) n = (int)w->seen;
    for (int i = 0; i < n; i++) {
        value[i] = recent(w, n - 1 - i);
        high = value[i] > high ? value[i] : high;
    }
    fprintf(o->f,
            "  max/mean  now %.2f   mean of %lld steps %.2f   worst %.2f   so %.0f %% of the devices' time is work",
            recent(w, 0), (long long)shown_steps(w), w->imbalance, w->worst, 100.0 / w->imbalance);
    end_line(o);
    fprintf(o->f, "  %s", chart_ansi(t, CHART_GOOD));
    for (int i = 0; i < n; i++) {
        int level = (int)(7.999 * (value[i] - low) / (high - low));
        level = level < 0 ? 0 : level > 7 ? 7 : level;
        if (t->ascii)
            fputc("_.-:=+*#"[level], o -> f);
        else
            fputs(block[level], o->f);
    }
    fputs(chart_ansi_end(t), o->f);
    end_line(o);
}

static int busier(const void *a, const void *b, void *rows)
{
    double x = ((const double *)rows)[*(const int32_t *)a], y = ((const double *)rows)[*(const int32_t *)b];
    return x < y ? 1 : x > y ? -1 : *(const int32_t *)a - *(const int32_t *)b;
}

static void put_bars(const cli_watch *w, frame *o, const chart_text *t)
{
    int32_t D = w->devices, room = o->left - 3, shown = D < room ? D : room - 1, *order;
    double total = 0.0, top = 0.0;
    int cells = t->width - 40 > 10 ? t->width - 40 : 10;
    if (shown < 1 || !w->device_rows) return;
    order = cli_alloc((size_t)D, sizeof *order);
    for (int32_t d = 0; d < D; d++) {
        order[d] = d;
        total += w->device_rows[d];
        top = w->device_rows[d] > top ? w->device_rows[d] : top;
    }
    if (shown < D) qsort_r(order, (size_t)D, sizeof *order, busier, w->device_rows);
    end_line(o);
    fprintf(o->f, "  rows per device and step, all layers (mean %s)%s", cli_count(total / D),
            shown < D ? ", the busiest first" : "");
    end_line(o);
    for (int32_t i = 0; i < shown; i++) {
        double v = w->device_rows[order[i]];
        int hot = v >= top;
        fprintf(o->f, "  %6d  %s", order[i], chart_ansi(t, hot ? CHART_HOT : CHART_PLAIN));
        chart_text_bar(o->f, t, top > 0.0 ? v / top : 0.0, cells);
        fprintf(o->f, "%s %9s %5.2f%s", chart_ansi_end(t), cli_count(v), total > 0.0 ? v * D / total : 1.0,
                hot ? " <- busiest" : "");
        end_line(o);
    }
    if (shown < D) {
        fprintf(o->f, "  (%d more)", D - shown);
        end_line(o);
    }
    free(order);
}

static void put_head(const cli_watch *w, frame *o, const chart_text *t)
{
    char *name = cli_printable(w->path), *chance, *text;
    chart_kind kind = strcmp(w->state, "recommend") == 0 || strcmp(w->state, "uneven") == 0 ? CHART_HOT : CHART_GOOD;
    fprintf(o->f, "%smoe-ep watch %s%s  step %lld", t->color ? "\033[1m" : "", name, t->color ? "\033[0m" : "",
            (long long)w->last_step);
    if (w->kind != CLI_WATCH_LOG && w->layers > 0)
        fprintf(o->f, ", %d layers, %d experts on %d devices%s", w->layers, w->experts, w->devices,
                w->map                  ? " as the map says"
                : w->setup->round_robin ? ", round robin"
                                        : "");
    end_line(o);
    free(name);
    fprintf(o->f, "  %s%s%s", chart_ansi(t, kind), w->state, chart_ansi_end(t));
    end_line(o);
    put_words(o, w->reason, t->width, 5);
    if (w->map_row && w->map_words) put_words(o, w->map_words, t->width, 3);
    if (w->hot_layer < 0) return;
    chance = cli_chance_words("chance alone gives up to", w->chance, 2);
    text = cli_format("times: %s on %s, %d node%s, %s kernels (--model, --machine, --nodes, --kernels)",
                      w->cost.model.name, w->cost.machine.name, w->cost.nodes, w->cost.nodes == 1 ? "" : "s",
                      w->kernels);
    put_words(o, text, t->width, 2);
    free(text);
    text = cli_stays_hot(w->hot_share)
               ? cli_format("device %d is the bottleneck: in layer %d it carries %.2f times its share over the last %d "
                            "steps, the busiest in %.0f %% of them; over all layers %s",
                            w->hot_device, w->hot_layer, w->hot_own, w->hot_steps, 100.0 * w->hot_share, chance)
               : cli_format("no device stays the busiest: that of layer %d has %.2f times the mean on average over the "
                            "last %d steps; over all layers %s", w->hot_layer, w->hot_times, w->hot_steps, chance);
    put_words(o, text, t->width, 3);
    free(chance);
    free(text);
}

void cli_watch_frame(const cli_watch *w, FILE *f, const chart_text *t, int height, const char *eol)
{
    frame o = {f, eol, height > 0 ? height : 1 << 20};
    put_head(w, &o, t);
    if (w->seen > 0) {
        end_line(&o);
        put_spark(w, &o, t);
    }
    if (w->kind != CLI_WATCH_LOG) put_bars(w, &o, t);
    if (w->bad > 0) {
        char *text = cli_format("%lld line%s not understood; %s", (long long)w->bad, w->bad == 1 ? " was" : "s were",
                                w->complaint);
        put_words(&o, text, t->width, 1);
        free(text);
    }
    if (w->news) put_words(&o, w->news, t->width, 1);
}

void cli_watch_plain(const cli_watch *w, FILE *f)
{
    fprintf(f, "step %lld  max/mean %.2f  mean %.2f  worst %.2f", (long long)w->last_step,
            w->seen > 0 ? recent(w, 0) : 1.0, w->imbalance, w->worst);
    if (w->hot_layer >= 0 && cli_stays_hot(w->hot_share))
        fprintf(f, "  device %d busiest in layer %d", w->hot_device, w->hot_layer);
    fprintf(f, "  %s: %s\n", w->state, w->reason);
    if (w->map_news) fprintf(f, "(%s)\n", w->map_words);
    if (w->news) fprintf(f, "(%s)\n", w->news);
}

void cli_watch_json(const cli_watch *w, FILE *f)
{
    json_t *o = json_object(), *list = json_array();
    char *assumed;
    const char *map;
    json_object_set_new(o, "step", json_integer(w->last_step));
    json_object_set_new(o, "steps", json_integer(shown_steps(w)));
    json_object_set_new(o, "imbalance", json_real(w->seen > 0 ? recent(w, 0) : 1.0));
    json_object_set_new(o, "imbalance_mean", json_real(w->imbalance));
    json_object_set_new(o, "imbalance_worst", json_real(w->worst));
    json_object_set_new(o, "verdict", json_string(w->state));
    json_object_set_new(o, "reason", json_string(w->reason));
    for (int32_t d = 0; w->device_rows && d < w->devices; d++)
        json_array_append_new(list, json_real(w->device_rows[d]));
    json_object_set_new(o, "device_rows", list);
    list = json_array();
    for (ptrdiff_t i = 0; i < arrlen(w->model); i++)
        json_array_append_new(list, json_pack("{s:s,s:f}", "name", w->model[i].name, "imbalance_mean",
                                              cli_watch_of_model(w, &w->model[i])));
    json_object_set_new(o, "models", list);
    if (w->hot_layer >= 0) {
        json_object_set_new(o, "hot_device", json_integer(w->hot_device));
        json_object_set_new(o, "hot_layer", json_integer(w->hot_layer));
        json_object_set_new(o, "hot_steps", json_integer(w->hot_steps));
        json_object_set_new(o, "hot_share_of_steps", json_real(w->hot_share));
        json_object_set_new(o, "hot_times_its_share", json_real(w->hot_own));
    }
    if (w->hot_layer >= 0) {
        json_object_set_new(o, "model", json_string(w->cost.model.name));
        json_object_set_new(o, "machine", json_string(w->cost.machine.name));
        json_object_set_new(o, "nodes", json_integer(w->cost.nodes));
        json_object_set_new(o, "kernels", json_string(w->kernels));
    }
    json_object_set_new(o, "lines_not_understood", json_integer(w->bad));
    map = w->map_row && w->map_words ? w->map_words : "";
    assumed = cli_format("%s%s%s", map, *map && w->cost.assumed ? "\n" : "", w->cost.assumed ? w->cost.assumed : "");
    cli_json_assumed(o, assumed);
    free(assumed);
    if (json_dumpf(o, f, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0)
        cli_die(CLI_INTERNAL, "cannot write JSON: %s", strerror(errno));
    fputc('\n', f);
    json_decref(o);
}
