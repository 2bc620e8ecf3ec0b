/* cli_proof_figures.c - traffic between devices, the time line of a layer, every layer by itself
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_figures.h"
#include "cli_page.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_CELLS = 64, MOST_ROWS = 16 };

static const double two_width[CLI_WIDTHS] = {504, 640, 334};

/* ---- traffic ---------------------------------------------------------------------------------------------- */

/* Devices in the picture: all of them, or so many groups of neighbours. */
static int groups_of(const cli_report *r)
{
    int32_t D = r->setup->devices, per = (D + MOST_CELLS - 1) / MOST_CELLS;
    return (D + per - 1) / per;
}

static double *grouped(const cli_report *r, const cli_timeline *t, double mean)
{
    int32_t D = r->setup->devices, per = (D + MOST_CELLS - 1) / MOST_CELLS, n = groups_of(r);
    double *v = cli_alloc((size_t)n * (size_t)n, sizeof *v);
    for (int32_t s = 0; s < D; s++)
        for (int32_t d = 0; d < D; d++)
            v[(size_t)(s / per) * (size_t)n + (size_t)(d / per)] +=
                (double)t->traffic[(size_t)s * (size_t)D + (size_t)d] / mean / per / per;
    return v;
}

static double mean_cell(const cli_timeline *t, int32_t D)
{
    double total = 0.0;
    for (int64_t i = 0; i < (int64_t)D * D; i++) total += (double)t->traffic[i];
    return total > 0.0 ? total / D / D : 1.0;
}

typedef struct arrivals {
    int32_t device;
    double rows, times; /* of the mean device */
} arrivals;

/* The device that receives the most rows of others. */
static arrivals most_arrivals(const cli_timeline *t, int32_t D)
{
    arrivals a = {0, -1.0, 1.0};
    double total = 0.0;
    for (int32_t d = 0; d < D; d++) {
        double in = 0.0;
        for (int32_t s = 0; s < D; s++) in += s == d ? 0.0 : (double)t->traffic[(size_t)s * (size_t)D + (size_t)d];
        total += in;
        if (in > a.rows) a.device = d, a.rows = in;
    }
    a.times = total > 0.0 ? a.rows * D / total : 1.0;
    return a;
}

typedef struct traffic_panel {
    const cli_report *r;
    const cli_timeline *t;
    const char *cells, *title;
} traffic_panel;

static void draw_traffic(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const traffic_panel *p = data;
    int n = groups_of(p->r);
    const char **label = cli_alloc((size_t)n, sizeof *label);
    int *start = cli_alloc((size_t)n + 1, sizeof *start);
    arrivals a = most_arrivals(p->t, p->r->setup->devices);
    char *text =
        cli_format("%d by %d devices, source down, destination across. Device %d receives the most from others: "
                   "%s rows, %.2f times the mean.",
                   p->r->setup->devices, p->r->setup->devices, a.device, cli_count(a.rows), a.times);
    int group = (p->r->setup->devices + n - 1) / n;
    char *per = group > 1 ? cli_format("to device, in groups of %d", group) : cli_strdup("to device");
    chart_heat c;
    (void)w;
    for (int i = 0; i <= n; i++) start[i] = i;
    for (int i = 0; i < n; i++) label[i] = cli_format("%d", i * ((p->r->setup->devices + n - 1) / n));
    c = (chart_heat){.id = id, .title = p->title, .description = text, .cells = p->cells, .rows = n, .cols = n,
                     .label = label};
    if (n == p->r->setup->devices) {
        c.blocks = n;
        c.block_start = start;
    }
    c.x_title = per;
    c.y_title = "from device";
    chart_svg_heatmap(f, &c, width);
    cli_free_labels(label, n);
    free(start);
    free(per);
    free(text);
}

static void put_traffic(const cli_report *r, FILE *f, const cli_timeline *t, int after, double mean)
{
    traffic_panel p = {r, t, after ? "cells-then" : "cells-now",
                       after ? "Rows between devices with the plan" : "Rows between devices today"};
    double *v = grouped(r, t, mean);
    arrivals a = most_arrivals(t, r->setup->devices);
    int n = groups_of(r);
    chart_heat_cells(f, p.cells, n, n, v);
    fprintf(f, "<div><h4><span>%s</span> <b>device %d receives %.2f times the mean</b></h4>",
            after ? "With the plan" : "Today", a.device, a.times);
    cli_page_draw(&p, f, draw_traffic, after ? "traffic-then" : "traffic-now", two_width);
    fputs("</div>\n", f);
    free(v);
}

void cli_section_traffic(const cli_report *r, FILE *f)
{
    int32_t D = r->setup->devices;
    double mean = mean_cell(&r->now, D);
    char *answer =
        cli_format("Rows of one step that each device (down) sends to each other (across) in layer %d%s, as multiples "
                   "of today's mean. "
                   "%s. A strong column is a device that everybody sends to; the diagonal stays at home.",
                   r->layer[r->hot].number, cli_shown_name(r),
                   r->counted_traffic ? "Counted token by token; the tokens come from all devices in equal parts"
                                      : "The recording holds counts only, so every device is taken to send the same");
    cli_page_figure(f, "Who sends how much to whom?", answer);
    fputs("<div class=\"two\">", f);
    put_traffic(r, f, &r->now, 0, mean);
    put_traffic(r, f, &r->then, 1, mean);
    fputs("</div>", f);
    cli_put_heat_legend(f);
    cli_page_figure_end(f);
    free(answer);
}

/* ---- time line --------------------------------------------------------------------------------------------- */

typedef struct gantt {
    const cli_report *r;
    const cli_timeline *t;
    double end; /* of the axis, seconds */
    const char *title;
} gantt;

static int slower(const void *a, const void *b, void *devices)
{
    const moe_ep_device_time *x = (const moe_ep_device_time *)devices + *(const int32_t *)a,
                             *y = (const moe_ep_device_time *)devices + *(const int32_t *)b;
    return x->compute_s < y->compute_s   ? 1
           : x->compute_s > y->compute_s ? -1
                                         : *(const int32_t *)a - *(const int32_t *)b;
}

static int by_number(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* Devices of the picture in their order: all, or the slowest ones. */
static int32_t *shown_devices(const gantt *g, int *n)
{
    int32_t D = g->r->setup->devices, *list = cli_alloc((size_t)D, sizeof *list);
    for (int32_t d = 0; d < D; d++) list[d] = d;
    *n = D < MOST_ROWS ? D : MOST_ROWS;
    if (D > MOST_ROWS) {
        qsort_r(list, (size_t)D, sizeof *list, slower, g->t->device);
        qsort(list, (size_t)*n, sizeof *list, by_number);
    }
    return list;
}

static void put_phase(FILE *f, chart_kind kind, double x, double y, double w, double h, const char *phase, int32_t d,
                      double seconds)
{
    char *tip = cli_format("device %d: %s %s", d, phase, cli_seconds(seconds));
    if (w > 0.05) chart_bar(f, kind, x, y, w, h, tip);
    free(tip);
}

static void put_device(const gantt *g, FILE *f, int32_t d, double left, double y, double scale, double bar)
{
    const moe_ep_device_time *t = &g->t->device[d];
    double compute = left + scale * g->t->time.dispatch_s, combine = compute + scale * g->t->time.compute_s;
    char *label = cli_format("%d", d);
    int slowest = d == g->t->time.slowest_device;
    chart_label(f, slowest ? "b e" : "s e", left - 7, y + bar / 2 + 4, label);
    put_phase(f, CHART_PLAIN, left, y, scale * t->dispatch_s, bar, "dispatch", d, t->dispatch_s);
    put_phase(f, slowest ? CHART_HOT : CHART_GOOD, compute, y, scale * t->compute_s, bar, "experts", d, t->compute_s);
    put_phase(f, CHART_BEST, combine, y, scale * t->combine_s, bar, "combine", d, t->combine_s);
    free(label);
}

static void put_barrier(FILE *f, double x, double top, double bottom)
{
    fprintf(f, "<path class=\"mean\" fill=\"none\" d=\"M%.1f %.1fV%.1f\"/>\n", x, top, bottom);
}

static void draw_gantt(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const gantt *g = data;
    int n;
    int32_t *list = shown_devices(g, &n);
    double left = 34, top = 26, bar = n <= 8 ? 18 : 13, pitch = bar + 5, bottom = top + n * pitch,
           height = bottom + 40, scale = (width - left - 8) / g->end;
    const moe_ep_time_result *t = &g->t->time;
    char *text = cli_format(
        "Dispatch ends after %s, the experts of device %d take longest with %s (mean %s), combine takes %s.",
        cli_seconds(t->dispatch_s), t->slowest_device, cli_seconds(t->compute_s), cli_seconds(t->mean_compute_s),
        cli_seconds(t->combine_s));
    (void)w;
    chart_open(f, id, width, height, g->title, text);
    chart_label(f, "s", 0, 12, n < g->r->setup->devices ? "device (slowest)" : "device");
    for (int i = 0; i <= 4; i++) {
        double x = left + (width - left - 8) * i / 4;
        fprintf(f, "<path class=\"g\" d=\"M%.1f %.1fV%.1f\"/>\n", x, top, bottom);
        chart_label(f,
                    i == 4   ? "s e"
                    : i == 0 ? "s"
                             : "s mid",
                    x, bottom + 15, i == 0 ? "0" : cli_seconds(g->end * i / 4));
    }
    for (int i = 0; i < n; i++) put_device(g, f, list[i], left, top + i * pitch + 2, scale, bar);
    put_barrier(f, left + scale * t->dispatch_s, top, bottom);
    put_barrier(f, left + scale * (t->dispatch_s + t->compute_s), top, bottom);
    put_barrier(f, left + scale * (t->dispatch_s + t->compute_s + t->combine_s), top, bottom);
    chart_label(f, "s mid", (left + width) / 2, height - 6, "time since the layer began");
    chart_close(f);
    free(list);
    free(text);
}

static void put_gantt(const cli_report *r, FILE *f, const cli_timeline *t, int after, double end)
{
    gantt g = {r, t, end, after ? "Time line with the plan" : "Time line today"};
    double total = t->time.dispatch_s + t->time.compute_s + t->time.combine_s;
    fprintf(f, "<div><h4><span>%s</span> <b>%s, %.0f %% of it waiting</b></h4>", after ? "With the plan" : "Today",
            cli_seconds(total), 100.0 * cli_timeline_wait(t, r->setup->devices));
    cli_page_draw(&g, f, draw_gantt, after ? "gantt-then" : "gantt-now", two_width);
    fputs("</div>\n", f);
}

void cli_section_gantt(const cli_report *r, FILE *f)
{
    const moe_ep_time_result *a = &r->now.time, *b = &r->then.time;
    double before = a->dispatch_s + a->compute_s + a->combine_s, after = b->dispatch_s + b->compute_s + b->combine_s;
    char *answer =
        cli_format("One step of layer %d%s, predicted for %s on %s: dispatch, experts, combine on each device. "
                   "Nobody goes on before the dashed line, so every gap is waiting.",
                   r->layer[r->hot].number, cli_shown_name(r), r->setup->model.name, r->setup->machine.name);
    cli_page_figure(f, "What does each device do, and when does it wait?", answer);
    fputs("<div class=\"two\">", f);
    put_gantt(r, f, &r->now, 0, before > after ? before : after);
    put_gantt(r, f, &r->then, 1, before > after ? before : after);
    fputs("</div>", f);
    cli_legend(f, CLI_KEYS({CHART_PLAIN, 0, "dispatch"}, {CHART_GOOD, 0, "experts"},
                           {CHART_HOT, 0, "experts of the slowest device"}, {CHART_BEST, 0, "combine"},
                           {CLI_KEY_MEAN, 0, "everybody waits for the slowest"}));
    cli_page_figure_end(f);
    free(answer);
}

/* ---- every layer ------------------------------------------------------------------------------------------- */

/* Bars without text, as wide as they may be. */
static void put_mini(FILE *f, const double *v, int32_t n, double top, chart_kind kind, const char *text)
{
    double total = 0.0;
    for (int32_t i = 0; i < n; i++) total += v[i];
    fprintf(f, "<svg class=\"mini\" viewBox=\"0 0 %d 60\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"",
            10 * n);
    cli_put_html(f, text);
    fputs("\">", f);
    for (int32_t i = 0; i < n; i++) {
        double h = top > 0.0 ? 60.0 * v[i] / top : 0.0;
        fprintf(f, "<rect class=\"p%d\" x=\"%d\" y=\"%.1f\" width=\"8\" height=\"%.1f\"/>", (int)kind, 10 * i + 1,
                60.0 - h, h);
    }
    fprintf(f, "<path class=\"line\" d=\"M0 %.1fH%d\"/></svg>", top > 0.0 ? 60.0 - 60.0 * total / n / top : 60.0,
            10 * n);
}

static void put_hottest(FILE *f, const double *loads, int32_t E)
{
    int32_t *list = cli_alloc((size_t)E, sizeof *list), count = 0;
    double total = 0.0;
    moe_ep_error err;
    cli_check(moe_ep_hot_list(loads, E, 0.0, list, &count, &err), &err, "hottest experts");
    for (int32_t e = 0; e < E; e++) total += loads[e];
    fputs("<p class=\"below\">Hottest experts: ", f);
    for (int32_t i = 0; i < count && i < 6 && total > 0.0; i++)
        fprintf(f, "%s%d (%.1f times the mean)", i > 0 ? ", " : "", list[i], loads[list[i]] * E / total);
    fputs("</p>", f);
    free(list);
}

static void put_layer(const cli_report *r, FILE *f, int32_t l)
{
    int32_t D = r->setup->devices;
    const cli_layer_row *row = &r->layer[l];
    const double *a = r->today_devices + (size_t)l * (size_t)D,
                 *b = (r->chosen == &r->one ? r->one_devices : r->copies_devices) + (size_t)l * (size_t)D;
    double after = r->chosen == &r->one ? row->one_copy : row->copies, top = 0.0;
    char *now = cli_format("Layer %d today: max/mean %.2f, device %d is the busiest", row->number, row->before,
                           row->hot_device);
    char *then = cli_format("Layer %d with the plan: max/mean %.2f", row->number, after);
    for (int32_t d = 0; d < D; d++) top = fmax(top, fmax(a[d], b[d]));
    fprintf(f,
            "<details><summary>Layer %d: <b>%.2f \xe2\x86\x92 %.2f</b></summary><div class=\"pair\"><div><p>%s</p>",
            row->number, row->before, after, now);
    put_mini(f, a, D, top, CHART_HOT, now);
    fprintf(f, "</div><div><p>%s</p>", then);
    put_mini(f, b, D, top, CHART_BEST, then);
    fputs("</div></div>", f);
    put_hottest(f, r->shown_loads + (size_t)l * (size_t)r->E, r->E);
    fputs("</details>\n", f);
    free(now);
    free(then);
}

void cli_section_drill(const cli_report *r, FILE *f)
{
    cli_page_figure(f, "Each layer by itself",
                    "max/mean over devices today and with the plan. Open a layer for its devices "
                    "before and after (bars on one scale, the line is the mean) and its "
                    "hottest experts.");
    fputs("<div class=\"drill\">", f);
    for (int32_t l = 0; l < r->L; l++) put_layer(r, f, l);
    fputs("</div>", f);
    cli_page_figure_end(f);
}
