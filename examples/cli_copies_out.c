/* cli_copies_out.c - the answer of moe-ep copies as text, JSON and page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_copies.h"

#include <stdlib.h>
#include <string.h>

/* ---- text ---------------------------------------------------------------------------------------------- */

/* Better than the fewest copies that reach the target, in the digits that are shown. */
static int is_best(const cli_copies *c, int32_t i)
{
    return i == c->best && (c->fewest < 0 || c->point[c->fewest].worst - c->point[i].worst >= 0.001);
}

/* Rows worth a line: the first, then fewer and fewer, the fewest, the best and the largest rise. */
static int is_shown(const cli_copies *c, int32_t i)
{
    int32_t row = 0;
    while (row < i) row += row < 8 ? 1 : row / 4;
    return row == i || i == c->points - 1 || i == c->fewest || i == c->fewest_equal ||
           is_best(c, i) || (c->rises > 0 && (i == c->rise_at || i + 1 == c->rise_at));
}

static const char *remark(const cli_copies *c, int32_t i)
{
    if (i == c->fewest) return "  <- fewest that reach the target";
    if (i == c->fewest_equal) return "  <- fewest with equal slots";
    if (is_best(c, i)) return "  <- best of all";
    if (c->rises > 0 && i == c->rise_at) return "  <- worse than with fewer";
    return "";
}

static void put_curve(const cli_copies *c, FILE *f, const chart_text *t)
{
    cli_bar_list b;
    memset(&b, 0, sizeof b);
    for (int32_t i = 0; i < c->points; i++) {
        const moe_ep_copies_point *p = &c->point[i];
        if (!is_shown(c, i)) continue;
        cli_bar(&b, p->worst - 1.0,
                i == c->fewest                ? CHART_BEST
                : p->worst <= c->setup.target ? CHART_GOOD
                                              : CHART_HOT,
                cli_format("%4d cop%s", p->extra, p->extra == 1 ? "y  " : "ies"),
                cli_format("%.3f  mean %.3f  %8s%s", p->worst, p->mean, cli_bytes(c->device_bytes[i]), remark(c, i)));
    }
    cli_bars_text(&b, f, t,
                  "max/mean of the worst layer (bars from 1), mean over layers, bytes more on the fullest device");
}

static void put_needs(const cli_copies *c, FILE *f, const chart_text *t)
{
    if (c->needs < 2) return;
    cli_put_title(f, t, "Every layer with the copies it needs");
    fputs("  worst layer   copies per layer   least..most   bytes over all devices\n", f);
    for (int i = 0; i < c->needs; i++) {
        const cli_need *n = &c->need[i];
        fprintf(f, "  %11.3f   %16.1f   %5d..%-5d   %s\n", n->worst, n->per_layer, n->least,
                n->most, cli_bytes(n->bytes));
    }
}

static void put_budgets(const cli_copies *c, FILE *f, const chart_text *t)
{
    if (c->budgets < 2) return;
    cli_put_title(f, t, "Copies shared out over the layers until more would help none of them");
    fputs("  copies per layer   least..most   worst layer   mean   bytes more on the fullest "
          "device\n",
          f);
    for (int i = 0; i < c->budgets; i++) {
        const cli_budget *b = &c->budget[i];
        fprintf(f, "  %16.1f   %5d..%-5d %12.3f  %5.3f   %8s%s\n", b->per_layer, b->least, b->most,
                b->worst, b->mean, cli_bytes(b->device_bytes),
                i == c->fewest_budget ? "  <- reaches the target" : "");
    }
}

void cli_copies_text(const void *data, FILE *f, const chart_text *t)
{
    const cli_copies *c = data;
    cli_put_headline(f, t, c->headline, c->reason);
    fputs("  ", f);
    cli_put_wrapped(f, c->not_monotone, t->width, 2, 2);
    if (c->spread) {
        fputs("  ", f);
        cli_put_wrapped(f, c->spread, t->width, 2, 2);
    }
    put_curve(c, f, t);
    put_needs(c, f, t);
    put_budgets(c, f, t);
    cli_put_assumed(f, t, c->setup.assumed);
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */

static json_t *extra_or_null(const cli_copies *c, int32_t i)
{
    return i < 0 ? json_null() : json_integer(c->point[i].extra);
}

static json_t *need(const cli_need *n)
{
    return json_pack("{s:f,s:I,s:f,s:i,s:i,s:f}", "worst", n->worst, "copies", (json_int_t)n->extra,
                     "per_layer", n->per_layer, "least", (int)n->least, "most", (int)n->most,
                     "bytes", n->bytes);
}

void cli_copies_json(const void *data, FILE *f)
{
    const cli_copies *c = data;
    json_t *root = json_object(), *points = json_array(), *budgets = json_array(),
           *needs = json_array();
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", c->headline, "verdict", c->badge,
                   "reason", c->reason, NULL);
    json_object_set_new(root, "target", json_real(c->setup.target));
    json_object_set_new(root, "fewest", extra_or_null(c, c->fewest));
    json_object_set_new(root, "fewest_equal_slots", extra_or_null(c, c->fewest_equal));
    json_object_set_new(root, "best", extra_or_null(c, c->best));
    json_object_set_new(root, "rises", json_integer(c->rises));
    json_object_set_new(root, "setup",
                        json_pack("{s:i,s:i,s:i,s:i,s:s,s:s,s:s}", "layers", (int)c->L, "experts",
                                  (int)c->E, "devices", (int)c->D, "nodes", (int)c->setup.nodes, "policy",
                                  moe_ep_place_policy_str(c->policy), "model", c->setup.model.name,
                                  "layers_left_out", c->left_out));
    json_object_set_new(root, "expert_bytes", json_real(c->expert_bytes));
    for (int32_t i = 0; i < c->points; i++)
        json_array_append_new(
            points, json_pack("{s:i,s:f,s:f,s:f,s:f}", "copies", (int)c->point[i].extra, "worst",
                              c->point[i].worst, "mean", c->point[i].mean, "bytes",
                              c->point[i].bytes, "device_bytes", c->device_bytes[i]));
    json_object_set_new(root, "curve", points);
    for (int i = 0; i < c->budgets; i++) {
        const cli_budget *b = &c->budget[i];
        json_array_append_new(budgets,
                              json_pack("{s:I,s:f,s:i,s:i,s:f,s:f,s:f}", "copies",
                                        (json_int_t)b->extra, "per_layer", b->per_layer, "least",
                                        (int)b->least, "most", (int)b->most, "worst", b->worst,
                                        "mean", b->mean, "device_bytes", b->device_bytes));
    }
    json_object_set_new(root, "budgets", budgets);
    for (int i = 0; i < c->needs; i++) json_array_append_new(needs, need(&c->need[i]));
    json_object_set_new(root, "needs", needs);
    json_object_set_new(root, "target_need",
                        c->target_need.extra < 0 ? json_null() : need(&c->target_need));
    cli_json_assumed(root, c->setup.assumed);
    cli_json_write(root, f);
}

/* ---- page ------------------------------------------------------------------------------------------------- */

static char *fewer(const cli_copies *c)
{
    if (c->first == 0) return cli_strdup("without and with these copies");
    return cli_format("with %d, the fewest on equal slots, and with these", c->first);
}

static void put_tiles(const cli_copies *c, FILE *f)
{
    int32_t at = c->fewest >= 0 ? c->fewest : c->best;
    const moe_ep_copies_point *none = &c->point[0], *p = &c->point[at];
    fputs("<dl class=\"tiles\">\n", f);
    cli_tile(f, "Copies per layer", cli_format("%d", p->extra), NULL,
             c->fewest >= 0 ? cli_format("fewest that reach max/mean %.2f", c->setup.target)
                            : cli_format("come closest; %.2f is out of reach", c->setup.target));
    cli_tile(f, "Worst layer, max/mean", cli_format("%.3f", none->worst), cli_format("%.3f", p->worst), fewer(c));
    cli_tile(f, "Mean over layers", cli_format("%.3f", none->mean), cli_format("%.3f", p->mean), fewer(c));
    cli_tile(f, "Memory", cli_strdup(cli_bytes(c->device_bytes[at])), NULL,
             cli_format("more on the fullest device; %s over all devices", cli_bytes(p->bytes)));
    fputs("</dl>\n", f);
}

/* Plans to draw: as far as anything happens, and as far again. */
static int32_t drawn(const cli_copies *c)
{
    double flat = c->point[c->best].worst + 0.02 * (c->point[0].worst - c->point[c->best].worst);
    int32_t last = 0;
    for (int32_t i = 0; i < c->points; i++)
        if (c->point[i].worst > flat || i <= c->fewest) last = i;
    return 2 * last + 4 < c->points ? 2 * last + 4 : c->points;
}

/* Short curves show every plan. */
static int marks_of(const cli_copies *c)
{
    return drawn(c) <= 40;
}

static void draw_curve(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_copies *c = data;
    size_t n = (size_t)c->points;
    double *x = cli_alloc(n, sizeof *x), *worst = cli_alloc(n, sizeof *worst),
           *mean = cli_alloc(n, sizeof *mean), nx[CLI_NEEDS], ny[CLI_NEEDS], bx[CLI_BUDGETS],
           by[CLI_BUDGETS];
    int32_t at = c->fewest >= 0 ? c->fewest : c->best, count = 0, plans = drawn(c);
    int needs = 0, budgets = 0;
    char *text = cli_format("%d copies", c->point[at].extra);
    const char *label[1] = {text};
    chart_series s[5];
    chart_lines q;
    for (int32_t i = 0; i < plans; i++) {
        x[i] = c->point[i].extra;
        worst[i] = c->point[i].worst;
        mean[i] = c->point[i].mean;
    }
    for (int i = 0; i < c->needs && c->need[i].per_layer <= c->point[plans - 1].extra; i++) {
        nx[i] = c->need[i].per_layer;
        ny[i] = c->need[i].worst;
        needs++;
    }
    for (int i = 0; i < c->budgets && c->budget[i].per_layer <= c->point[plans - 1].extra; i++) {
        bx[i] = c->budget[i].per_layer;
        by[i] = c->budget[i].worst;
        budgets++;
    }
    s[count++] = (chart_series){plans, x, worst, CHART_HOT, marks_of(c), NULL};
    s[count++] = (chart_series){plans, x, mean, CHART_GOOD, marks_of(c), NULL};
    if (budgets > 1) s[count++] = (chart_series){budgets, bx, by, CHART_COLD, 1, NULL};
    if (needs > 1) s[count++] = (chart_series){needs, nx, ny, CHART_BEST, 1, NULL};
    if (at < plans) s[count++] = (chart_series){1, x + at, worst + at, CHART_HOT, 2, label};
    q = cli_lines(id, "Balance against copies", c->headline, "copies per layer", "max/mean over devices",
                  count, s, c->setup.target);
    chart_svg_lines(f, &q, width, w == CLI_NARROW ? 280 : 330);
    free(x);
    free(worst);
    free(mean);
    free(text);
}

static void put_curve_figure(const cli_copies *c, FILE *f)
{
    cli_page_figure(f, "How many copies does balance take?", c->not_monotone);
    cli_page_draw(c, f, draw_curve, "curve", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, marks_of(c) ? 1 : 2, "worst layer, as many copies in every layer"},
                           {CHART_GOOD, marks_of(c) ? 1 : 2, "mean over the layers"},
                           {CHART_BEST, 1, c->needs > 1 ? "worst layer, each layer as many as it needs" : NULL},
                           {CHART_COLD, 1, c->budgets > 1 ? "worst layer, shared out where copies pay" : NULL},
                           {CLI_KEY_MEAN, 0, "target"}));
    if (c->spread) {
        fputs("<p class=\"below\">", f);
        cli_put_html(f, c->spread);
        fputs("</p>", f);
    }
    cli_page_figure_end(f);
}

/* The best plan of every step of memory. */
static void draw_bytes(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_copies *c = data;
    size_t n = (size_t)c->points;
    double *x = cli_alloc(n, sizeof *x), *worst = cli_alloc(n, sizeof *worst);
    const char **label = cli_alloc(n, sizeof *label);
    chart_series s[1];
    chart_lines q;
    int steps = 0;
    for (int32_t i = 0; i < c->points; i++) {
        int begun = i > 0 && !(c->device_bytes[i] > c->device_bytes[i - 1]);
        if (!begun) steps++;
        if (begun && c->point[i].worst >= worst[steps - 1]) continue;
        x[steps - 1] = c->device_bytes[i] * 1e-9;
        worst[steps - 1] = c->point[i].worst;
        free((void *)(uintptr_t)label[steps - 1]);
        label[steps - 1] = cli_format("%d", c->point[i].extra);
    }
    s[0] = (chart_series){steps, x, worst, CHART_HOT, 1, steps <= 24 ? label : NULL};
    q = cli_lines(id, "Balance against memory", c->headline, "GB more on the fullest device",
                  "max/mean of the worst layer", 1, s, c->setup.target);
    chart_svg_lines(f, &q, width, w == CLI_NARROW ? 260 : 300);
    cli_free_labels(label, steps);
    free(x);
    free(worst);
}

static void put_bytes_figure(const cli_copies *c, FILE *f)
{
    cli_page_figure(
        f, "What does a gigabyte buy?",
        "With as many copies in every layer, memory comes in steps of one more expert per "
        "layer on a device. Each point is the best plan of its step, with its number of "
        "copies.");
    cli_page_draw(c, f, draw_bytes, "bytes", cli_full_width);
    cli_page_figure_end(f);
}

static void put_table(const cli_copies *c, FILE *f)
{
    cli_page_figure(f, "The numbers", "");
    cli_table(f, "All plans as a table",
              "copies per layer|worst layer|mean|bytes, all devices|fullest device|equal slots");
    for (int32_t i = 0; i < c->points; i++) {
        const moe_ep_copies_point *p = &c->point[i];
        fprintf(f, "<tr%s><th>%d<td>%.4f<td>%.4f<td>%s<td>%s<td>%s\n",
                i == c->fewest ? " class=\"pick\"" : "", p->extra, p->worst, p->mean,
                cli_bytes(p->bytes), cli_bytes(c->device_bytes[i]),
                (c->E + p->extra) % c->D == 0 ? "yes" : "no");
    }
    cli_table_end(f, 1);
    cli_page_figure_end(f);
}

void cli_copies_html(const void *data, FILE *f)
{
    const cli_copies *c = data;
    cli_page_head head = {
        "Copies of experts", c->names, c->headline, "", c->state, c->badge, c->reason};
    char *note =
        cli_format("%s \xc2\xb7 %d MoE layers \xc2\xb7 %d experts on %d devices \xc2\xb7 %s "
                   "\xc2\xb7 %s per expert and layer (%s)",
                   c->names, c->L, c->E, c->D, moe_ep_place_policy_str(c->policy),
                   cli_bytes(c->expert_bytes), c->setup.model.name);
    cli_page_begin(f, &head);
    put_tiles(c, f);
    cli_page_note(f, note);
    put_curve_figure(c, f);
    put_bytes_figure(c, f);
    put_table(c, f);
    cli_page_assumed(f, c->setup.assumed);
    cli_page_end(f, "max/mean is the load of the busiest device over the mean. An expert's load is "
                    "shared equally by its copies, never two of them on one device.");
    free(note);
}
