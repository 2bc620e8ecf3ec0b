/* cli_figures.c - the figures of the HTML report, each with its question, answer and legend
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_figures.h"

#include "cli_page.h"

#include <stb_ds.h>

static const double *layer_of(const double *values, int32_t layer, int32_t columns)
{
    return values + (size_t)layer * (size_t)columns;
}

static double sum_of(const double *v, int32_t n)
{
    double total = 0.0;
    for (int32_t i = 0; i < n; i++) total += v[i];
    return total;
}

static double max_of(const double *v, int32_t n)
{
    double top = 0.0;
    for (int32_t i = 0; i < n; i++) top = v[i] > top ? v[i] : top;
    return top;
}

static int32_t index_of_max(const double *v, int32_t n)
{
    int32_t at = 0;
    for (int32_t i = 1; i < n; i++) at = v[i] > v[at] ? i : at;
    return at;
}

static double ratio_of(const double *v, int32_t n)
{
    double mean = sum_of(v, n) / n;
    return mean > 0.0 ? max_of(v, n) / mean : 1.0;
}

/* First expert of each device when blocks of neighbours stand on the devices today; NULL otherwise. */
static int *device_blocks(const cli_report *r)
{
    int *start;
    if (r->setup->round_robin || r->setup->map || r->today.num_devices > 128) return NULL;
    start = cli_alloc((size_t)r->today.num_devices + 1, sizeof *start);
    for (int32_t d = 0; d <= r->today.num_devices; d++) start[d] = r->today.slot_start[d];
    return start[r->today.num_devices] == r->E ? start : (free(start), NULL);
}

/* ---- device loads ------------------------------------------------------------------------------------- */

typedef struct panel {
    const double *devices;
    chart_kind kind;
    double top;
    const char *title;
} panel;

static void draw_panel(const cli_report *r, FILE *f, const panel *p, cli_width w, double width,
                       const char *id)
{
    int32_t D = r->today.num_devices;
    double mean = sum_of(p->devices, D) / D;
    int32_t busiest = index_of_max(p->devices, D);
    cli_marks m = cli_marks_new(D);
    chart_bars c;
    char *title = cli_format("Rows per device, %s, layer %d", p->title, r->layer[r->hot].number);
    char *text = cli_format(
        "%d bars. Mean %s rows. Busiest device %d with %s rows, %.2f times the mean.", D,
        cli_count(mean), busiest, cli_count(p->devices[busiest]), ratio_of(p->devices, D));
    char *line = cli_format("mean %s rows", cli_count(mean));
    double slot = (width - 48) / D;
    for (int32_t d = 0; d < D; d++) {
        int shown = (slot >= 10 && D <= MOST_LABELLED) || d == busiest;
        m.label[d] = cli_format("%d", d);
        m.value[d] = shown ? cli_format("%.2f", mean > 0.0 ? p->devices[d] / mean : 1.0) : cli_strdup("");
        m.tip[d] = cli_format("device %d: %s rows, %.2f x mean", d, cli_count(p->devices[d]),
                            mean > 0.0 ? p->devices[d] / mean : 1.0);
        m.kind[d] = p->kind == CHART_HOT && d != busiest ? CHART_PLAIN : p->kind;
    }
    c = (chart_bars){.id = id, .title = title, .description = text, .y_title = "rows", .x_title = "device",
                     .n = D, .value = p->devices, .label = m.label, .value_label = m.value,
                     .tip = m.tip, .kind = m.kind, .line = mean, .line_label = line, .top = p->top};
    chart_svg_bars(f, &c, width, w == CLI_WIDE && D <= 12 ? 250 : 186);
    cli_marks_free(&m);
    free(title);
    free(text);
    free(line);
}

static void put_swatch(FILE *f, chart_kind kind)
{
    fprintf(f,
            "<svg class=\"key\" width=\"22\" height=\"14\" aria-hidden=\"true\"><rect "
            "class=\"k%d\" width=\"22\" height=\"14\"/></svg>",
            (int)kind);
}

void cli_section_devices(const cli_report *r, FILE *f)
{
    int32_t D = r->today.num_devices, l = r->hot;
    panel p[3] = {{layer_of(r->today_devices, l, D), CHART_HOT, 0,
                   "today"},
                  {layer_of(r->one_devices, l, D), CHART_GOOD, 0, "best placement, no copies"},
                  {layer_of(r->copies_devices, l, D), CHART_BEST, 0, "best placement with copies"}};
    double top = 0.0;
    char *answer = cli_format("Rows per step on each device in layer %d%s, the layer with the worst pile-up. Figures "
                              "on the bars are multiples of the mean; the step waits for the tallest bar.%s",
                              r->layer[l].number, cli_shown_name(r),
                              r->traces > 2 ? " Of the judged recordings it is the one where this stands out most; the "
                                              "figures on top are means over all of them." : "");
    for (int i = 0; i < 3; i++) top = max_of(p[i].devices, D) > top ? max_of(p[i].devices, D) : top;
    cli_page_figure(f, "Which device does everybody wait for?", answer);
    fprintf(f, "<div class=\"%s\">", D <= 12 ? "three" : "stack");
    for (int i = 0; i < (r->slots > r->E ? 3 : 2); i++) {
        static const char *const name[] = {"dev-today", "dev-one", "dev-copies"};
        p[i].top = top;
        fputs("<div><h4>", f);
        fputs("<span>", f);
        put_swatch(f, p[i].kind);
        cli_put_html(
            f, i == 0   ? "Today: "
               : i == 1 ? "Best placement, no copies"
                        : "");
        if (i == 0) cli_put_html(f, cli_today(r));
        if (i == 2) fprintf(f, "Best placement, %d copies", r->slots - r->E);
        fprintf(f, "</span> <b>max/mean %.2f</b></h4>", ratio_of(p[i].devices, D));
        for (int w = 0; w < CLI_WIDTHS; w++) {
            char *unique = cli_format("%s-%s", name[i], cli_width_name[w]);
            fprintf(f, "<div class=\"%s\">", cli_width_name[w]);
            draw_panel(r, f, &p[i], (cli_width)w, (D <= 12 ? cli_third_width : cli_full_width)[w],
                       unique);
            fputs("</div>\n", f);
            free(unique);
        }
        fputs("</div>\n", f);
    }
    fputs("</div>", f);
    cli_legend(f, CLI_KEYS({CLI_KEY_MEAN, 0, "mean over devices: what every device would have in perfect balance"}));
    cli_page_figure_end(f);
    free(answer);
}

/* ---- layer x expert heatmap ------------------------------------------------------------------------------ */

static void draw_heatmap(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    const char **label = cli_alloc((size_t)r->L, sizeof *label),
               **note = cli_alloc((size_t)r->L, sizeof *note);
    int *peak = cli_alloc((size_t)r->L, sizeof *peak),
        *shown = cli_alloc((size_t)r->L, sizeof *shown);
    int *blocks = device_blocks(r);
    char *text = cli_format("%d layers by %d experts. The most loaded expert is number %d in layer "
                            "%d with %.1f times the mean of its layer.",
                            r->L, r->E, r->layer[r->worst[0]].hot_expert,
                            r->layer[r->worst[0]].number, r->layer[r->worst[0]].expert_imbalance);
    char *x_title = cli_format("expert 0 to %d", r->E - 1);
    chart_heat c;
    (void)w;
    for (int32_t l = 0; l < r->L; l++) {
        label[l] = cli_format("%d", r->layer[l].number);
        note[l] = cli_format("%.1fx", r->layer[l].expert_imbalance);
        peak[l] = r->layer[l].hot_expert;
        shown[l] = 1;
    }
    c = (chart_heat){.id = id,
                     .title = "Load of every expert in every layer, as a multiple of the layer's mean",
                     .description = text, .cells = "cells-layers", .rows = r->L, .cols = r->E, .label = label,
                     .note = note, .note_title = "max/mean", .peak = peak, .note_shown = shown,
                     .blocks = blocks ? r->today.num_devices : 0, .block_start = blocks, .x_title = x_title,
                     .y_title = blocks ? "layer, devices above" : "layer"};
    chart_svg_heatmap(f, &c, width);
    cli_free_labels(label, r->L);
    cli_free_labels(note, r->L);
    free(peak);
    free(shown);
    free(blocks);
    free(text);
    free(x_title);
}

/* Loads as multiples of the mean of their row. */
static double *over_mean(const double *loads, int32_t rows, int32_t columns)
{
    double *out = cli_alloc((size_t)rows * (size_t)columns, sizeof *out);
    for (int32_t l = 0; l < rows; l++) {
        double mean = sum_of(layer_of(loads, l, columns), columns) / columns;
        for (int32_t e = 0; e < columns; e++)
            out[(size_t)l * (size_t)columns + (size_t)e] =
                mean > 0.0 ? layer_of(loads, l, columns)[e] / mean : 0.0;
    }
    return out;
}

void cli_put_heat_legend(FILE *f)
{
    fputs("<div class=\"heat-legend\"><span>times the mean</span>", f);
    for (int w = 0; w < CLI_WIDTHS; w++) {
        fprintf(f, "<div class=\"%s\">", cli_width_name[w]);
        chart_svg_heat_legend(f, cli_full_width[w]);
        fputs("</div>", f);
    }
    fputs("</div>", f);
}

void cli_section_heatmap(const cli_report *r, FILE *f)
{
    double *times = over_mean(r->shown_loads, r->L, r->E);
    char *answer = cli_format("Load of each expert%s as a multiple of its layer's mean. The frame "
                              "marks each layer's hottest expert; the figure at the right is how "
                              "hot it is. A cross is an expert that received nothing.", cli_shown_name(r));
    chart_heat_cells(f, "cells-layers", r->L, r->E, times);
    cli_page_figure(f, "Where in the model are the hot experts?", answer);
    cli_page_draw(r, f, draw_heatmap, "heat", cli_full_width);
    cli_put_heat_legend(f);
    cli_page_figure_end(f);
    free(answer);
    free(times);
}

/* ---- expert loads with the chance band ------------------------------------------------------------------- */

static int by_load(const void *a, const void *b, void *loads)
{
    double x = ((const double *)loads)[*(const int32_t *)a],
           y = ((const double *)loads)[*(const int32_t *)b];
    return x < y ? 1 : x > y ? -1 : *(const int32_t *)a - *(const int32_t *)b;
}

static int32_t *hottest_first(const double *loads, int32_t n)
{
    int32_t *order = cli_alloc((size_t)n, sizeof *order);
    for (int32_t i = 0; i < n; i++) order[i] = i;
    qsort_r(order, (size_t)n, sizeof *order, by_load, (void *)(uintptr_t)loads);
    return order;
}

static void draw_experts(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    int32_t E = r->E;
    const double *loads = layer_of(r->shown_loads, r->hot, E);
    int32_t *order = hottest_first(loads, E);
    double mean = sum_of(loads, E) / E, *value = cli_alloc((size_t)E, sizeof *value),
           slot = (width - 48) / E;
    cli_marks m = cli_marks_new(E);
    int hot = 0, cold = 0;
    char *text, *line = cli_format("mean %s rows", cli_count(mean));
    chart_bars c;
    for (int32_t i = 0; i < E; i++) {
        double v = loads[order[i]];
        value[i] = v;
        m.kind[i] = v > mean * r->chance.one_p95   ? CHART_HOT
                  : v < mean * r->chance.one_p05 ? CHART_COLD
                                                 : CHART_PLAIN;
        hot += m.kind[i] == CHART_HOT;
        cold += m.kind[i] == CHART_COLD;
        m.label[i] = slot >= 13 ? cli_format("%d", order[i]) : cli_strdup("");
        m.value[i] = m.kind[i] == CHART_HOT && (slot >= 11 || i < 1)
                       ? cli_format(slot >= 11 ? "%.1f" : "%.1fx", mean > 0.0 ? v / mean : 0.0)
                       : cli_strdup("");
        m.tip[i] = cli_format("expert %d: %s rows, %.2f x mean", order[i], cli_count(v),
                            mean > 0.0 ? v / mean : 0.0);
    }
    text = cli_format("%d experts from the most to the least loaded. %d lie above the range that "
                      "uniform routing explains, %d below it. The hottest is expert %d "
                      "with %.1f times the mean.",
                      E, hot, cold, order[0], mean > 0.0 ? value[0] / mean : 0.0);
    c = (chart_bars){.id = id, .title = "Load of each expert, hottest first", .description = text,
                     .y_title = "rows per step",
                     .x_title = slot >= 13 ? "expert number, hottest first" : "experts, hottest first", .n = E,
                     .value = value, .label = m.label, .value_label = m.value, .tip = m.tip, .kind = m.kind,
                     .line = mean, .line_label = line, .band_low = mean * r->chance.one_p05,
                     .band_high = mean * r->chance.one_p95};
    chart_svg_bars(f, &c, width, w == CLI_NARROW ? 220 : 260);
    cli_marks_free(&m);
    free(value);
    free(order);
    free(text);
    free(line);
}

void cli_section_experts(const cli_report *r, FILE *f)
{
    const cli_layer_row *row = &r->layer[r->hot];
    char *answer = cli_format("Layer %d%s, %s tokens. The shaded band holds 9 of 10 experts if a "
                              "router chose uniformly at random; the hottest of %d would then "
                              "reach %.2f times the mean. Here it reaches %.2f: %s.",
                              row->number, cli_shown_name(r), cli_count((double)r->shown_tokens), r->E,
                              r->chance.max_over_mean, row->expert_imbalance,
                              row->expert_imbalance > row->chance ? "real skew, not chance"
                                                                  : "no more than chance");
    cli_page_figure(f, "Is this skew, or the luck of a small batch?", answer);
    cli_page_draw(r, f, draw_experts, "experts", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 0, "above the chance band"}, {CHART_PLAIN, 0, "within it"},
                           {CHART_COLD, 0, "below it"}, {CLI_KEY_BAND, 0, "chance band, 5 % to 95 %"},
                           {CLI_KEY_MEAN, 0, "mean"}));
    cli_page_figure_end(f);
    free(answer);
}

/* ---- imbalance against batch ------------------------------------------------------------------------------ */

static void draw_sweep(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    chart_series s[3];
    double slope_x[2], slope_y[2];
    int n = r->sweep, own = 0;
    chart_lines c;
    char *text = cli_format("Uniform routing falls from %.2g at %s tokens to %.2g at %s tokens; where an "
                            "expert has a few rows, at a slope of minus one half.",
                            r->sweep_chance[0], cli_count(r->sweep_tokens[0]),
                            r->sweep_chance[n - 1], cli_count(r->sweep_tokens[n - 1]));
    slope_x[0] = r->sweep_tokens[0];
    slope_x[1] = r->sweep_tokens[n - 1];
    slope_y[1] = r->sweep_chance[n - 1];
    slope_y[0] = slope_y[1] * sqrt(slope_x[1] / slope_x[0]);
    memset(s, 0, sizeof s);
    for (int i = 0; i < n; i++) own |= r->sweep_own[i] > 0.0;
    s[0] = (chart_series){2, slope_x, slope_y, CHART_COLD, 0, NULL};
    s[1] = (chart_series){n, r->sweep_tokens, r->sweep_chance, CHART_GOOD, 1, NULL};
    s[2] = (chart_series){n, r->sweep_tokens, r->sweep_own, CHART_HOT, 1, NULL};
    c = (chart_lines){.id = id, .title = "Expert imbalance against batch size", .description = text,
                      .x_title = "tokens in the batch", .y_title = "max/mean over experts, minus 1",
                      .n = own ? 3 : 2, .series = s};
    chart_svg_lines(f, &c, width, w == CLI_NARROW ? 280 : 330);
    free(text);
}

void cli_section_sweep(const cli_report *r, FILE *f)
{
    int own = 0;
    for (int i = 0; i < r->sweep; i++) own |= r->sweep_own[i] > 0.0;
    cli_page_figure(
        f, "How much of it is batch size?",
        own ? "Small batches are lumpy by arithmetic alone. Where the recording flattens out above "
              "the chance curve, more tokens do not help: that part is the router's."
            : "Small batches are lumpy by arithmetic alone: this is the least that any step of so "
              "few tokens will show, however good the router.");
    cli_page_draw(r, f, draw_sweep, "sweep", cli_half_width);
    cli_legend(f, CLI_KEYS({CHART_GOOD, 1, "uniform routing, computed"},
                           {CHART_HOT, 1, own ? "this recording, same layer" : NULL},
                           {CHART_COLD, 2, "slope -1/2"}));
    cli_page_figure_end(f);
}

/* ---- experts per device against EP size -------------------------------------------------------------------- */

static void draw_ep_sizes(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    double value[16];
    cli_marks m = cli_marks_new(r->ep_sizes);
    chart_bars c;
    for (int i = 0; i < r->ep_sizes; i++) {
        int exact = r->E % r->ep_size[i] == 0;
        value[i] = r->ep_experts[i];
        m.label[i] = cli_format("%d", r->ep_size[i]);
        m.value[i] = exact ? cli_format("%d", r->ep_experts[i])
                         : cli_format("%d-%d", r->E / r->ep_size[i], r->ep_experts[i]);
        m.kind[i] = r->ep_size[i] == r->today.num_devices ? CHART_HOT : CHART_PLAIN;
    }
    c = (chart_bars){.id = id, .title = "Experts per device and layer against the number of devices",
                     .description = "Each doubling of the devices halves the experts on each of them.",
                     .y_title = "experts held per layer", .x_title = "devices (EP size)", .n = r->ep_sizes,
                     .value = value, .label = m.label, .value_label = m.value, .kind = m.kind};
    chart_svg_bars(f, &c, width, w == CLI_NARROW ? 280 : 330);
    cli_marks_free(&m);
}

void cli_section_ep_sizes(const cli_report *r, FILE *f)
{
    char *answer = cli_format("With %d experts on %d devices each holds %d%s. The fewer a device "
                              "holds, the less a hot one is diluted by its neighbours.",
                              r->E, r->today.num_devices, r->E / r->today.num_devices,
                              r->E % r->today.num_devices ? " or one more" : "");
    cli_page_figure(f, "How many experts share a device?", answer);
    cli_page_draw(r, f, draw_ep_sizes, "ep", cli_half_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 0, "this report"}, {CHART_PLAIN, 0, "other sizes"}));
    cli_page_figure_end(f);
    free(answer);
}

/* ---- token -> expert strips --------------------------------------------------------------------------------- */

static void draw_strips(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    const cli_trace *t = &r->trace[r->shown];
    int tokens = t->kept < 16 ? (int)t->kept : 16, K = t->top_k;
    int *ids = cli_alloc((size_t)(tokens * K), sizeof *ids), *blocks = device_blocks(r);
    char *text = cli_format("The first %d tokens of %s in layer %d: each row lights the %d experts "
                            "that the token went to.",
                            tokens, t->name, r->layer[r->hot].number, K);
    char *x_title = cli_format("expert 0 to %d%s", r->E - 1, blocks ? ", devices above" : "");
    chart_strips c;
    (void)w;
    for (int i = 0; i < tokens; i++)
        for (int k = 0; k < K; k++)
            ids[i * K + k] =
                t->ids[((size_t)i * (size_t)r->L + (size_t)r->hot) * (size_t)K + (size_t)k];
    c = (chart_strips){.id = id, .title = "Experts chosen by the first tokens", .description = text,
                       .x_title = x_title, .y_title = "token", .tokens = tokens, .top_k = K, .experts = r->E,
                       .ids = ids, .blocks = blocks ? r->today.num_devices : 0, .block_start = blocks};
    if (blocks) {
        c.hot_from = blocks[r->layer[r->hot].hot_device];
        c.hot_to = blocks[r->layer[r->hot].hot_device + 1];
    }
    chart_svg_strips(f, &c, width);
    free(ids);
    free(blocks);
    free(text);
    free(x_title);
}

void cli_section_strips(const cli_report *r, FILE *f)
{
    const cli_trace *t = &r->trace[r->shown];
    char *answer;
    if (!t->ids) return;
    answer = cli_format("The first tokens of %s in layer %d, each with its %d experts; the tall "
                        "mark is the first choice. Choices on the bottleneck, device %d, are "
                        "orange and hatched.",
                        t->name, r->layer[r->hot].number, t->top_k, r->layer[r->hot].hot_device);
    cli_page_figure(f, "What does one token do?", answer);
    cli_page_draw(r, f, draw_strips, "strips", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 0, "on the bottleneck device"}, {CHART_GOOD, 0, "on another device"}));
    cli_page_figure_end(f);
    free(answer);
}

/* ---- predicted throughput -------------------------------------------------------------------------------------- */

static void draw_strategies(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    int n = (int)arrlen(r->strategy);
    double *value = cli_alloc((size_t)n, sizeof *value);
    cli_marks m = cli_marks_new(n);
    chart_hbars c;
    (void)w;
    for (int i = 0; i < n; i++) {
        value[i] = r->strategy[i].tokens_per_s;
        m.label[i] = cli_strdup(r->strategy[i].name);
        m.value[i] = cli_format("%s tokens/s, %.2fx", cli_count(value[i]), cli_against_today(r, i));
        m.kind[i] = (chart_kind)r->strategy[i].kind;
    }
    c = (chart_hbars){.id = id, .title = "Predicted throughput of the MoE layers by placement strategy",
                      .description = "Computed from the recorded loads with the cost model; not measured.",
                      .n = n, .value = value, .label = m.label, .value_label = m.value, .kind = m.kind,
                      .line = value[0], .line_label = "today"};
    chart_svg_hbars(f, &c, width);
    cli_marks_free(&m);
    free(value);
}

void cli_section_strategies(const cli_report *r, FILE *f)
{
    char *answer =
        cli_format("Predicted, not measured: %s on %s, a step of %s tokens, MoE layers only%s; "
                   "each strategy %s.%s%s",
                   r->setup->model.name, r->setup->machine.name, cli_count((double)cli_report_batch(r)),
                   !(r->setup->other_s > 0.0)                   ? ""
                   : r->L < r->setup->whole.num_moe_layers ? " plus their share of the rest of the step"
                                                           : " plus the rest of the step as given",
                   r->self_judged ? "judged on the window it was planned on"
                                  : "planned on the first window and judged on the second",
                   r->self_judged ? "" : " ", r->self_judged ? "" : cli_other_loads);
    cli_page_figure(f, "What would each strategy deliver?", answer);
    cli_page_draw(r, f, draw_strategies, "strategies", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 0, "today"}, {CHART_PLAIN, 0, "other one-copy placements"},
                           {CHART_GOOD, 0, "best, no copies"}, {CHART_BEST, 0, "with copies"},
                           {CHART_COLD, 0, "limit: perfect balance"}));
    cli_page_figure_end(f);
    free(answer);
}

/* ---- per layer -------------------------------------------------------------------------------------------------- */

static void draw_layers(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    static const chart_kind kind[3] = {CHART_HOT, CHART_GOOD, CHART_BEST};
    int series = r->slots > r->E ? 3 : 2;
    double *value = cli_alloc((size_t)r->L * 3, sizeof *value);
    const char **label = cli_alloc((size_t)r->L, sizeof *label);
    chart_points c;
    char *text = cli_format("Layer by layer; the worst today is layer %d with %.2f, which the best "
                            "placement brings to %.2f.",
                            r->layer[r->worst[0]].number, r->layer[r->worst[0]].before,
                            r->layer[r->worst[0]].copies);
    for (int32_t l = 0; l < r->L; l++) {
        value[l] = r->layer[l].before;
        value[r->L + l] = r->layer[l].one_copy;
        value[2 * r->L + l] = r->layer[l].copies;
        label[l] = cli_format("%d", r->layer[l].number);
    }
    c = (chart_points){.id = id, .title = "Imbalance over devices in each layer, before and after",
                       .description = text, .x_title = "layer", .y_title = "max/mean over devices", .n = r->L,
                       .series = series, .value = value, .kind = kind, .label = label, .line = 1.0};
    chart_svg_points(f, &c, width, w == CLI_NARROW ? 250 : 270);
    cli_free_labels(label, r->L);
    free(value);
    free(text);
}

static void put_layer_table(const cli_report *r, FILE *f)
{
    fputs("<details><summary>All layers as a table</summary>" CLI_PAGE_SCROLL "<table "
          "class=\"figures\"><thead><tr><th>layer<th>experts max/mean<th>chance, 95 %"
          "<th>devices today<th>best, no copies<th>best, copies<th>bound<th>busiest "
          "device<th>hottest expert<th>experts unused</thead><tbody>",
          f);
    for (int32_t i = 0; i < r->L; i++) {
        const cli_layer_row *row = &r->layer[r->worst[i]];
        fprintf(f, "<tr><th>%d<td>%.2f<td>%.2f<td>%.3f<td>%.3f<td>%.3f<td>%.3f<td>%d<td>%d<td>%d\n",
                row->number, row->expert_imbalance, row->chance, row->before, row->one_copy,
                row->copies, row->bound, row->hot_device, row->hot_expert, row->dead);
    }
    fputs("</tbody></table></div>", f);
    if (r->traces > 1) {
        char *text = cli_format("Experts, chance, busiest, hottest and unused are those%s; the columns of devices are "
                                "of all judged steps (%s).", cli_shown_name(r), r->judged_on);
        cli_page_note(f, text);
        free(text);
    }
    fputs("</details>", f);
}

void cli_section_layers(const cli_report *r, FILE *f)
{
    char *answer =
        cli_format("Busiest device over the mean device in each layer. 1 is perfect balance. The "
                   "dashed line cannot be beaten; the proven bound for %d slots is on "
                   "average %.3f.",
                   r->slots, r->copies.imbalance_bound);
    cli_page_figure(f, "Does the fix work in every layer?", answer);
    cli_page_draw(r, f, draw_layers, "layers", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 1, "today"}, {CHART_GOOD, 1, "best placement, no copies"},
                           {CHART_BEST, 1, r->slots > r->E ? "best placement with copies" : NULL}));
    put_layer_table(r, f);
    cli_page_figure_end(f);
    free(answer);
}

/* ---- domain shift ------------------------------------------------------------------------------------------------ */

static void draw_shift(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_report *r = data;
    const char **label = cli_alloc((size_t)r->traces, sizeof *label);
    char *text = cli_format("One row per recording; experts in the order of their load in %s.",
                            r->trace[0].name);
    char *x_title = cli_format("experts of layer %d, hottest in %s first",
                               r->layer[r->shift_layer].number, r->trace[0].name);
    chart_heat c;
    (void)w;
    for (int i = 0; i < r->traces; i++) {
        size_t n = strlen(r->trace[i].name);
        label[i] = w == CLI_NARROW && n > 9 ? cli_format("%.8s.", r->trace[i].name)
                                            : cli_strdup(r->trace[i].name);
    }
    c = (chart_heat){.id = id, .title = "The same experts in each recording", .description = text,
                     .cells = "cells-shift", .rows = r->traces, .cols = r->E, .label = label,
                     .x_title = x_title, .y_title = "recording"};
    chart_svg_heatmap(f, &c, width);
    cli_free_labels(label, r->traces);
    free(text);
    free(x_title);
}

static void put_shift_table(const cli_report *r, FILE *f)
{
    fputs(CLI_PAGE_SCROLL "<table class=\"figures\"><thead><tr><th>recording<th>correlation "
          "with ",
          f);
    cli_put_html(f, r->trace[0].name);
    fputs(
        "<th>lowest in a layer<th>same among the hottest<th>max/mean today<th>with the plan from ",
        f);
    cli_put_html(f, r->trace[0].name);
    fputs("<th>with a plan of its own</thead><tbody>", f);
    for (int i = 0; i < r->traces; i++) {
        const cli_shift_row *s = &r->shift[i];
        fputs("<tr><th>", f);
        cli_put_html(f, s->name);
        fprintf(f, "<td>%.2f<td>%.2f (layer %d)<td>%.0f %%<td>%.3f<td>%.3f<td>%.3f\n",
                s->correlation, s->lowest, s->lowest_layer, 100.0 * s->overlap, s->today,
                s->planned, s->own);
    }
    fprintf(f, "</tbody></table></div><p class=\"below\">Hottest experts of layer %d:",
            r->layer[r->shift_layer].number);
    for (int i = 0; i < r->traces; i++) {
        fprintf(f, "%s %s in ", i > 0 ? ";" : "", r->shift[i].hottest);
        cli_put_html(f, r->shift[i].name);
    }
    fputs(".</p>", f);
}

void cli_section_shift(const cli_report *r, FILE *f)
{
    const double *base;
    int32_t *order;
    double *times;
    char *answer;
    if (r->traces < 2) return;
    base = layer_of(r->trace[0].loads, r->shift_layer, r->E);
    order = hottest_first(base, r->E);
    times = cli_alloc((size_t)r->traces * (size_t)r->E, sizeof *times);
    for (int i = 0; i < r->traces; i++) {
        const double *v = layer_of(r->trace[i].loads, r->shift_layer, r->E);
        double mean = sum_of(v, r->E) / r->E;
        for (int32_t e = 0; e < r->E; e++) times[i * r->E + e] = v[order[e]] / mean;
    }
    answer = cli_format("Layer %d, where the recordings differ most; experts sorted by their load "
                        "in %s. Where another row does not fade from left to right, other "
                        "experts are hot there, and a plan made on %s does not fit.",
                        r->layer[r->shift_layer].number, r->trace[0].name, r->trace[0].name);
    chart_heat_cells(f, "cells-shift", r->traces, r->E, times);
    cli_page_figure(f, "Does it hold for other traffic?", answer);
    cli_page_draw(r, f, draw_shift, "shift", cli_full_width);
    cli_put_heat_legend(f);
    put_shift_table(r, f);
    cli_page_figure_end(f);
    free(answer);
    free(order);
    free(times);
}
