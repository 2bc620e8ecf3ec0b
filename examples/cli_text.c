/* cli_text.c - the report for a terminal, a log or a mail
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "chart.h"
#include "cli_report.h"
#include "cli_screen.h"

#include <stb_ds.h>

enum { MOST_DEVICES = 32, MOST_LAYERS = 8, MOST_HEAT_ROWS = 64, SHORT = 16, SHORT_DEVICES = 5 };

static const double *row_of(const double *values, int32_t row, int32_t columns)
{
    return values + (size_t)row * (size_t)columns;
}

static void put_steps(const cli_report *r, FILE *f, const chart_text *t)
{
    int name = 0, value = 0, used;
    for (ptrdiff_t i = 0; i < arrlen(r->line); i++) {
        if (cli_columns(r->line[i].name) > name) name = cli_columns(r->line[i].name);
        if (i + 1 < arrlen(r->line) && cli_columns(r->line[i].value) > value)
            value = cli_columns(r->line[i].value);
    }
    cli_put_title(f, t, "From loads to the verdict");
    for (ptrdiff_t i = 0; i + 1 < arrlen(r->line); i++) { /* the verdict itself stands on top */
        fprintf(f, "  %-*s  %s%*s  ", name, r->line[i].name, r->line[i].value,
                value - cli_columns(r->line[i].value), "");
        used = name + value + 6;
        cli_put_wrapped(f, r->line[i].meaning, t->width - used > 24 ? t->width : used + 24, used,
                        used);
    }
}

/* Devices to draw: all of them in order, or the busiest few of many, the busiest first. */
static int32_t devices_to_draw(const double *loads, int32_t D, int all, int32_t *order)
{
    int32_t shown = D > SHORT && !all ? SHORT_DEVICES : D < MOST_DEVICES ? D : MOST_DEVICES;
    for (int32_t d = 0; d < D; d++) order[d] = d;
    for (int32_t i = 0; shown == SHORT_DEVICES && D > SHORT && i < shown; i++)
        for (int32_t j = i + 1; j < D; j++)
            if (loads[order[j]] > loads[order[i]]) {
                int32_t swapped = order[i];
                order[i] = order[j];
                order[j] = swapped;
            }
    return shown;
}

static void put_devices(const cli_report *r, FILE *f, const chart_text *t, const char *title,
                        const double *loads, chart_kind kind, int all)
{
    int32_t D = r->setup->devices, *order = cli_alloc((size_t)D, sizeof *order);
    int32_t shown = devices_to_draw(loads, D, all, order);
    double total = 0.0, top = 0.0, *value = cli_alloc((size_t)D, sizeof *value);
    char **label = cli_alloc((size_t)D, sizeof *label), **tail = cli_alloc((size_t)D, sizeof *tail);
    chart_kind *kinds = cli_alloc((size_t)D, sizeof *kinds);
    for (int32_t d = 0; d < D; d++) {
        total += loads[d];
        if (loads[d] > top) top = loads[d];
    }
    for (int32_t i = 0; i < shown; i++) {
        double times = total > 0.0 ? loads[order[i]] * D / total : 1.0;
        value[i] = loads[order[i]];
        label[i] = cli_format("device %d", order[i]);
        tail[i] = cli_format("%9s %5.2f%s", cli_count(value[i]), times, value[i] >= top ? "  <- busiest" : "");
        kinds[i] = value[i] >= top ? kind : CHART_PLAIN;
    }
    fprintf(f, "  %s, mean %s, max/mean %.2f\n", title, cli_count(total / D),
            total > 0.0 ? top * D / total : 1.0);
    chart_text_bars(f, t, shown, (const char *const *)label, value, (const char *const *)tail, kinds);
    if (shown < D)
        fprintf(f, "  (the other %d devices: %s)\n", D - shown,
                all || D > MOST_DEVICES ? "in the HTML and JSON reports" : "--charts, --html");
    for (int32_t i = 0; i < shown; i++) {
        free(label[i]);
        free(tail[i]);
    }
    free(order);
    free(value);
    free(label);
    free(tail);
    free(kinds);
}

static void put_layers(const cli_report *r, FILE *f, const chart_text *t)
{
    int shown = r->L < MOST_LAYERS ? r->L : MOST_LAYERS;
    cli_put_title(f, t, r->L > shown ? "The worst layers (max/mean)" : "Layer by layer (max/mean)");
    fputs("  layer   experts  chance |  devices: today   best  +copies   bound |  busiest  hottest "
          " unused\n",
          f);
    fputs("                     95 % |                  placement              |   device   expert "
          "experts\n",
          f);
    for (int i = 0; i < shown; i++) {
        const cli_layer_row *row = &r->layer[r->worst[i]];
        fprintf(f, "  %5d %9.2f %7.2f | %15.2f %6.2f %8.2f %7.2f | %8d %8d %7d\n", row->number,
                row->expert_imbalance, row->chance, row->before, row->one_copy, row->copies,
                row->bound, row->hot_device, row->hot_expert, row->dead);
    }
    if (r->traces > 1) {
        char *text = cli_format("experts, chance, busiest, hottest and unused are those%s; the columns of devices are "
                                "of all judged steps (%s).", cli_shown_name(r), r->judged_on);
        fputs("  ", f);
        cli_put_wrapped(f, text, t->width, 2, 2);
        free(text);
    }
}

static void put_heatmap(const cli_report *r, FILE *f, const chart_text *t, int all)
{
    int few = r->L > SHORT && !all; /* of many layers the worst, the worst first */
    int shown = few ? MOST_LAYERS : r->L < MOST_HEAT_ROWS ? r->L : MOST_HEAT_ROWS;
    double *times = cli_alloc((size_t)r->L * (size_t)r->E, sizeof *times);
    char **label = cli_alloc((size_t)r->L, sizeof *label),
         **tail = cli_alloc((size_t)r->L, sizeof *tail);
    for (int32_t i = 0; i < shown; i++) {
        int32_t l = few ? r->worst[i] : i;
        const double *loads = row_of(r->shown_loads, l, r->E);
        double total = 0.0;
        for (int32_t e = 0; e < r->E; e++) total += loads[e];
        for (int32_t e = 0; e < r->E; e++)
            times[(size_t)i * (size_t)r->E + (size_t)e] = loads[e] * r->E / total;
        label[i] = cli_format("%d", r->layer[l].number);
        tail[i] = cli_format("%.1f", r->layer[l].expert_imbalance);
    }
    cli_put_title(
        f, t,
        cli_keep(cli_format("Layer x expert%s, times the mean%s(blank 0, . 1/4, : 1/2, - 3/4, = 1, + 1.5, * 2, # 3, "
                            "%% 4, @ 6 and more)", cli_shown_name(r), r->traces > 1 ? "\n" : " ")));
    chart_text_heatmap(f, t, shown, r->E, (const char *const *)label, times,
                       (const char *const *)tail);
    if (few) fprintf(f, "  (the worst %d of %d layers; --charts draws every one)\n", shown, r->L);
    for (int32_t l = 0; l < shown; l++) {
        free(label[l]);
        free(tail[l]);
    }
    free(times);
    free(label);
    free(tail);
}

static void put_shift(const cli_report *r, FILE *f, const chart_text *t)
{
    if (r->traces < 2) return;
    cli_put_title(f, t, "Does it hold for other traffic?");
    fprintf(f, "  %-14s  correlation with %-10.10s  same among  max/mean  plan from   plan of\n",
            "recording", r->trace[0].name);
    fprintf(f, "  %-14s  mean    lowest layer         the hottest    today  %-9.9s  its own\n", "",
            r->trace[0].name);
    for (int i = 0; i < r->traces; i++) {
        const cli_shift_row *s = &r->shift[i];
        fprintf(f, "  %-14.14s  %4.2f    %5.2f (layer %d) %*s %9.0f %% %8.2f %10.2f %9.2f\n",
                s->name, s->correlation, s->lowest, s->lowest_layer, s->lowest_layer < 10 ? 5 : 4,
                "", 100.0 * s->overlap, s->today, s->planned, s->own);
    }
    fprintf(f, "  hottest experts of layer %d:", r->layer[r->shift_layer].number);
    for (int i = 0; i < r->traces; i++)
        fprintf(f, "%s %s in %s", i > 0 ? ";" : "", r->shift[i].hottest, r->shift[i].name);
    fputc('\n', f);
}

static void put_strategies(const cli_report *r, FILE *f, const chart_text *t)
{
    ptrdiff_t n = arrlen(r->strategy);
    char **label = cli_alloc((size_t)n, sizeof *label), **tail = cli_alloc((size_t)n, sizeof *tail);
    double *value = cli_alloc((size_t)n, sizeof *value);
    chart_kind *kind = cli_alloc((size_t)n, sizeof *kind);
    cli_put_title(f, t, "Predicted throughput by strategy (computed, not measured)");
    for (ptrdiff_t i = 0; i < n; i++) {
        value[i] = r->strategy[i].tokens_per_s;
        kind[i] = (chart_kind)r->strategy[i].kind;
        label[i] = r->strategy[i].name;
        tail[i] = cli_format("%12s tokens/s  %.2fx", cli_count(value[i]), cli_against_today(r, i));
    }
    chart_text_bars(f, t, (int)n, (const char *const *)label, value, (const char *const *)tail,
                    kind);
    if (!r->self_judged) {
        fputs("  ", f);
        cli_put_wrapped(f, cli_other_loads, t->width, 2, 2);
    }
    for (ptrdiff_t i = 0; i < n; i++) free(tail[i]);
    free(label);
    free(tail);
    free(value);
    free(kind);
}

static void put_what_if(const cli_report *r, FILE *f, const chart_text *t)
{
    int wide = 0;
    cli_put_title(f, t, "What if? (best placement with copies each time)");
    for (ptrdiff_t i = 0; i < arrlen(r->what_if); i++)
        if (cli_columns(r->what_if[i].name) > wide) wide = cli_columns(r->what_if[i].name);
    fprintf(f, "  %-*s   max/mean        step                   saved\n", wide, "");
    for (ptrdiff_t i = 0; i < arrlen(r->what_if); i++) {
        const cli_what_if *w = &r->what_if[i];
        fprintf(f, "  %-*s  %5.2f -> %-5.2f  %8s -> %-8s %6.1f %%  %s\n", wide, w->name,
                w->imbalance_before, w->imbalance_after, cli_seconds(w->before_s),
                cli_seconds(w->after_s), 100.0 * w->gain, moe_ep_verdict_str(w->verdict));
    }
    for (ptrdiff_t i = 0; i < arrlen(r->hint); i++) {
        fputs("  * ", f);
        cli_put_wrapped(f, r->hint[i], t->width, 4, 4);
    }
}

/* ---- the other pictures, on request --------------------------------------------------------- */

static void put_experts(const cli_report *r, FILE *f, const chart_text *t)
{
    enum { MOST = 16 };
    const double *loads = row_of(r->shown_loads, r->hot, r->E);
    int32_t *list = cli_alloc((size_t)r->E, sizeof *list), count = 0;
    int shown;
    double value[MOST], mean = 0.0;
    char *label[MOST], *tail[MOST];
    chart_kind kind[MOST];
    moe_ep_error err;
    memset(value, 0, sizeof value);
    memset(label, 0, sizeof label);
    memset(tail, 0, sizeof tail);
    memset(kind, 0, sizeof kind);
    cli_check(moe_ep_hot_list(loads, r->E, 0.0, list, &count, &err), &err, "hottest experts");
    for (int32_t e = 0; e < r->E; e++) mean += loads[e] / r->E;
    shown = count < MOST ? count : MOST;
    for (int i = 0; i < shown; i++) {
        value[i] = loads[list[i]] / mean;
        kind[i] = value[i] > r->chance.one_p95 ? CHART_HOT : CHART_PLAIN;
        label[i] = cli_format("expert %d", list[i]);
        tail[i] = cli_format("%5.2f%s", value[i], kind[i] == CHART_HOT ? "  above chance" : "");
    }
    cli_put_title(f, t,
                  cli_keep(cli_format("Hottest experts of layer %d%s, times the mean (chance: %.2f to %.2f)",
                                      r->layer[r->hot].number, cli_shown_name(r), r->chance.one_p05,
                                      r->chance.one_p95)));
    chart_text_bars(f, t, shown, (const char *const *)label, value, (const char *const *)tail,
                    kind);
    for (int i = 0; i < shown; i++) {
        free(label[i]);
        free(tail[i]);
    }
    free(list);
}

static void put_sweep(const cli_report *r, FILE *f, const chart_text *t)
{
    char *label[CLI_SWEEP], *tail[CLI_SWEEP];
    double value[CLI_SWEEP];
    cli_put_title(
        f, t,
        cli_keep(cli_format("Expert max/mean%s against batch size (bars: the logarithm of uniform chance's excess)",
                            cli_shown_name(r))));
    for (int i = 0; i < r->sweep; i++) {
        value[i] = log10(r->sweep_chance[i]) - log10(r->sweep_chance[r->sweep - 1]);
        label[i] = cli_format("%7s tokens", cli_count(r->sweep_tokens[i]));
        tail[i] = r->sweep_own[i] > 0.0
                      ? cli_format("chance %6.2f  recorded %6.2f", r->sweep_chance[i] + 1.0,
                                   r->sweep_own[i] + 1.0)
                      : cli_format("chance %6.2f", r->sweep_chance[i] + 1.0);
    }
    chart_text_bars(f, t, r->sweep, (const char *const *)label, value, (const char *const *)tail,
                    NULL);
    for (int i = 0; i < r->sweep; i++) {
        free(label[i]);
        free(tail[i]);
    }
}

static void put_ep_sizes(const cli_report *r, FILE *f, const chart_text *t)
{
    char *label[16], *tail[16];
    double value[16];
    chart_kind kind[16];
    cli_put_title(f, t, "Experts per device and layer against EP size");
    for (int i = 0; i < r->ep_sizes; i++) {
        int here = r->ep_size[i] == r->setup->devices;
        value[i] = r->ep_experts[i];
        kind[i] = here ? CHART_HOT : CHART_PLAIN;
        label[i] = cli_format("%d device%s", r->ep_size[i], r->ep_size[i] == 1 ? "" : "s");
        tail[i] = cli_format("%d%s", r->ep_experts[i], here ? "  this report" : "");
    }
    chart_text_bars(f, t, r->ep_sizes, (const char *const *)label, value, (const char *const *)tail,
                    kind);
    for (int i = 0; i < r->ep_sizes; i++) {
        free(label[i]);
        free(tail[i]);
    }
}

static void put_strips(const cli_report *r, FILE *f, const chart_text *t)
{
    const cli_trace *trace = &r->trace[r->shown];
    int tokens = trace->kept < 12 ? (int)trace->kept : 12, K = trace->top_k, *ids;
    if (!trace->ids) return;
    ids = cli_alloc((size_t)(tokens * K), sizeof *ids);
    for (int i = 0; i < tokens * K; i++)
        ids[i] = trace->ids[((size_t)(i / K) * (size_t)r->L + (size_t)r->hot) * (size_t)K +
                            (size_t)(i % K)];
    cli_put_title(f, t,
                  cli_keep(cli_format("First tokens of %s in layer %d: their experts, 1 = first choice",
                                      trace->name, r->layer[r->hot].number)));
    chart_text_strips(f, t, tokens, K, r->E, ids);
    free(ids);
}

/* A command, broken where a shell lets it be: before an option, outside quotes. */
static void put_command(FILE *f, const char *command, int width)
{
    int column = 4, quoted = 0;
    fputs("    ", f);
    for (const char *p = command; *p; p++) {
        size_t next = 1;
        quoted ^= *p == '\'';
        if (*p != ' ' || quoted || p[1] != '-') {
            fputc(*p, f);
            column++;
            continue;
        }
        while (p[next] && !(p[next] == ' ' && p[next + 1] == '-')) next++;
        if (column + (int)next + 2 <= width) {
            fputc(' ', f);
            column++;
            continue;
        }
        fputs(" \\\n        ", f);
        column = 8;
    }
    fputc('\n', f);
}

static void put_next(const cli_report *r, FILE *f, const chart_text *t)
{
    cli_put_title(f, t, "Next");
    for (ptrdiff_t i = 0; i < arrlen(r->next); i++) {
        fputs("  * ", f);
        cli_put_wrapped(f, r->next[i].what, t->width, 4, 4);
        put_command(f, r->next[i].command, t->width);
    }
}

void cli_report_text(const cli_report *r, FILE *f, int width, int ascii, int color, int all)
{
    chart_text t = {width, ascii, color};
    fprintf(f, "%s", color ? "\033[1m" : "");
    cli_put_wrapped(f, r->headline, width, 0, 0);
    fprintf(f, "%s\n  ", color ? "\033[0m" : "");
    cli_put_wrapped(f, r->verdict, width, 2, 2);
    fprintf(f, "\n  %s%s%s: ", chart_ansi(&t, r->recommend ? CHART_BEST : CHART_HOT), r->badge,
            chart_ansi_end(&t));
    cli_put_wrapped(f, r->reason, width, 2, cli_columns(r->badge) + 4);
    put_steps(r, f, &t);
    cli_put_title(f, &t, cli_keep(cli_format("Rows per device in layer %d%s", r->layer[r->hot].number,
                                       cli_shown_name(r))));
    put_devices(r, f, &t, cli_keep(cli_format("today, %s", cli_today(r))),
                row_of(r->today_devices, r->hot, r->setup->devices), CHART_HOT, all);
    put_devices(r, f, &t, "best placement, no copies",
                row_of(r->one_devices, r->hot, r->setup->devices), CHART_GOOD, all);
    if (r->slots > r->E)
        put_devices(r, f, &t, "best placement with copies",
                    row_of(r->copies_devices, r->hot, r->setup->devices), CHART_BEST, all);
    put_layers(r, f, &t);
    put_heatmap(r, f, &t, all);
    if (all) {
        put_experts(r, f, &t);
        put_sweep(r, f, &t);
        put_ep_sizes(r, f, &t);
        put_strips(r, f, &t);
    }
    put_shift(r, f, &t);
    put_strategies(r, f, &t);
    put_what_if(r, f, &t);
    cli_put_assumed(f, &t, r->setup->assumed);
    put_next(r, f, &t);
}
