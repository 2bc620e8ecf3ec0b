/* cli_diagnose_out.c - the answer of moe-ep diagnose as text, JSON and page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_diagnose.h"

#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_STEPS = 96 };

static const char *state_word(int state)
{
    return state > 0 ? "met" : state == 0 ? "not met" : "-";
}

/* ---- text ---------------------------------------------------------------------------------------------- */

static void put_checks(const cli_diagnose *g, FILE *f, const chart_text *t)
{
    cli_put_title(f, t, "What was asked and what was found");
    for (ptrdiff_t i = 0; i < arrlen(g->check); i++) {
        const cli_check_line *c = &g->check[i];
        fprintf(f, "  %-29s %12s   wanted %-32s %s\n", c->name, c->found, c->wanted,
                state_word(c->state));
    }
}

static void put_figures(const cli_diagnose *g, FILE *f, const chart_text *t)
{
    const moe_ep_diagnosis *d = &g->d;
    char *chance = cli_chance_words("chance up to", d->chance_imbalance, 3);
    cli_put_title(f, t, "Figures");
    if (cli_stays_hot(d->hot_share))
        fprintf(f,
                "  bottleneck        device %d in layer %d: %.2f times its share, the busiest in %.0f %% of the "
                "steps\n",
                d->hot_device, g->r.trace[0].layer[d->hot_layer], d->hot_own, 100.0 * d->hot_share);
    else
        fprintf(f,
                "  bottleneck        no device stays the busiest: that of layer %d has %.2f times the mean on "
                "average\n",
                g->r.trace[0].layer[d->hot_layer], d->hot_imbalance);
    fprintf(
        f,
        "  max/mean          %.3f -> %.3f over all layers; proven bound %.3f, %s\n",
        d->imbalance_before, d->imbalance_after, d->imbalance_bound, chance);
    free(chance);
    fprintf(
        f, "  rows              %s -> %s of the busiest devices, summed over layers; balanced %s\n",
        cli_count(d->before_rows), cli_count(d->after_rows), cli_count(d->mean_rows));
    fprintf(f, "  step, predicted   %s -> %s; balanced %s\n", cli_seconds(d->before_s),
            cli_seconds(d->after_s), cli_seconds(d->balanced_s));
    fprintf(f, "  switching         %s experts, %s, %s\n", cli_count((double)d->moves),
            cli_bytes(d->move_bytes), cli_seconds(d->move_s));
}

static void put_windows(const cli_diagnose *g, FILE *f, const chart_text *t)
{
    cli_bar_list b;
    memset(&b, 0, sizeof b);
    for (ptrdiff_t i = 0; i < arrlen(g->judged); i++) {
        const cli_judged *q = &g->judged[i];
        cli_bar(&b, q->d.before_s, CHART_HOT,
                cli_format("%.20s, %d step%s", q->name, q->steps, q->steps == 1 ? "" : "s"),
                cli_format("%8s  max/mean %.3f", cli_seconds(q->d.before_s), q->d.imbalance_before));
        cli_bar(&b, q->d.after_s, CHART_BEST, cli_strdup("  with the plan"),
                cli_format("%8s  max/mean %.3f  %+.1f %%", cli_seconds(q->d.after_s), q->d.imbalance_after,
                           fabs(q->d.gain) < 5e-4 ? 0.0 : -100.0 * q->d.gain));
    }
    if (b.n > 0) cli_bars_text(&b, f, t, "Step time on each judged recording (predicted, not measured)");
}

void cli_diagnose_text(const void *data, FILE *f, const chart_text *t)
{
    const cli_diagnose *g = data;
    cli_put_headline(f, t, g->headline, g->reason);
    if (*g->beside) {
        fputs("  ", f);
        cli_put_wrapped(f, g->beside, t->width, 2, 2);
    }
    put_checks(g, f, t);
    put_figures(g, f, t);
    put_windows(g, f, t);
    cli_put_assumed(f, t, g->setup.assumed);
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */

static json_t *diagnosis(const cli_diagnose *g, const moe_ep_diagnosis *d)
{
    char *why = cli_reason(&g->desc, d);
    json_t *o = json_object();
    cli_json_words(o, "verdict", moe_ep_verdict_str(d->verdict), "reason", why, NULL);
    free(why);
    cli_json_counts(o, "steps", (int64_t)d->steps, "layers_loaded", (int64_t)d->layers_loaded, NULL);
    cli_json_numbers(o, "imbalance_before", d->imbalance_before, "imbalance_after", d->imbalance_after,
                     "imbalance_bound", d->imbalance_bound, "imbalance_chance", cli_chance_number(d),
                     "rows_before", d->before_rows, "rows_after", d->after_rows, "rows_bound", d->bound_rows,
                     "rows_balanced", d->mean_rows, "before_s", d->before_s, "after_s", d->after_s,
                     "balanced_s", d->balanced_s, "gain", d->gain, "gain_sd", cli_gain_sd_number(d),
                     "speedup", d->speedup, "improved", d->improved,
                     "improved_wanted", d->improved_wanted, NULL);
    json_object_set_new(o, "moves", json_integer(d->moves));
    cli_json_numbers(o, "move_bytes", d->move_bytes, "move_s", d->move_s,
                     "break_even_steps", d->break_even_steps, NULL);
    return o;
}

static json_t *setup(const cli_diagnose *g)
{
    const cli_setup *s = &g->setup;
    json_t *o = json_object();
    cli_json_counts(o, "devices", (int64_t)s->devices, "slots", (int64_t)s->slots, "nodes", (int64_t)s->nodes,
                    "layers", (int64_t)g->r.L, "experts", (int64_t)g->r.E, "top_k", (int64_t)g->r.K,
                    "tokens_per_step", cli_report_batch(&g->r), NULL);
    cli_json_words(o, "model", s->model.name, "machine", s->machine.name,
                   "kernels", cli_report_kernels(&g->r), "policy", moe_ep_place_policy_str(g->d.policy), NULL);
    cli_json_numbers(o, "target", g->desc.target_imbalance, "min_gain", g->desc.min_gain,
                     "min_improved", g->desc.min_improved, "min_sigmas", g->desc.min_sigmas, NULL);
    json_object_set_new(o, "min_steps", json_integer(g->desc.min_steps));
    json_object_set_new(o, "horizon_steps", cli_json_number(g->desc.horizon_steps));
    json_object_set_new(o, "layers_left_out", json_string(g->r.left_out));
    return o;
}

void cli_diagnose_json(const void *data, FILE *f)
{
    const cli_diagnose *g = data;
    json_t *root = diagnosis(g, &g->d), *list = json_array(), *steps = json_array(),
           *other = g->other_slots > 0 ? diagnosis(g, &g->other) : json_null();
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", g->headline, NULL);
    json_object_set_new(root, "slots", json_integer(g->slots));
    if (g->other_slots > 0) json_object_set_new(other, "slots", json_integer(g->other_slots));
    json_object_set_new(root, "other", other);
    json_object_set_new(root, "equal_recordings", cli_json_names(g->r.trace + g->r.traces, g->r.equals));
    json_object_set_new(root, "setup", setup(g));
    json_object_set_new(root, "bottleneck",
                        json_pack("{s:i,s:i,s:o,s:o,s:o}", "device", (int)g->d.hot_device, "layer",
                                  (int)g->r.trace[0].layer[g->d.hot_layer], "imbalance",
                                  cli_json_number(g->d.hot_imbalance), "share_of_steps",
                                  cli_json_number(g->d.hot_share), "times_its_share",
                                  cli_json_number(g->d.hot_own)));
    for (ptrdiff_t i = 0; i < arrlen(g->judged); i++) {
        json_t *o = diagnosis(g, &g->judged[i].d);
        json_object_set_new(o, "name", json_string(g->judged[i].name));
        json_array_append_new(list, o);
    }
    json_object_set_new(root, "windows", list);
    for (int32_t s = 0; s < g->steps; s++)
        json_array_append_new(steps, json_pack("{s:o,s:o}", "before", cli_json_number(g->step_before[s]),
                                               "after", cli_json_number(g->step_after[s])));
    json_object_set_new(root, "step_imbalance", steps);
    cli_json_assumed(root, g->setup.assumed);
    cli_json_write(root, f);
}

/* ---- page ------------------------------------------------------------------------------------------------- */

static void put_tiles(const cli_diagnose *g, FILE *f)
{
    const moe_ep_diagnosis *d = &g->d;
    fputs("<dl class=\"tiles\">\n", f);
    cli_tile(f, "Imbalance over devices", cli_format("%.2f", d->imbalance_before),
             cli_format("%.2f", d->imbalance_after),
             cli_format("busiest over mean device, all layers; %.2f is the proven limit here", d->imbalance_bound));
    cli_tile(f, "Step time, predicted", cli_strdup(cli_seconds(d->before_s)), cli_strdup(cli_seconds(d->after_s)),
             cli_format("%.1f %% %s; at best %.1f %% less", fabs(100.0 * d->gain), d->gain < 0.0 ? "more" : "less",
                        d->before_s > 0.0 ? 100.0 * (1.0 - fmin(d->balanced_s, d->after_s) / d->before_s) : 0.0));
    cli_tile(f, "Steps that get faster",
             g->window_judged ? cli_format("%.0f<small> %%</small>", 100.0 * d->improved) : cli_strdup("unknown"), NULL,
             g->window_judged ? cli_format("of %d judged step%s", d->steps, d->steps == 1 ? "" : "s")
                              : cli_strdup("nothing was judged"));
    cli_tile(f, "Repaid after",
             d->break_even_steps < 0.0
                 ? cli_strdup("never")
                 : cli_format("%s<small> step%s</small>", cli_count(ceil(d->break_even_steps)),
                              d->break_even_steps > 0.0 && d->break_even_steps <= 1.0 ? "" : "s"),
             NULL,
             cli_format("%s experts, %s, %s of moving", cli_count((double)d->moves), cli_bytes(d->move_bytes),
                        cli_seconds(d->move_s)));
    fputs("</dl>\n", f);
}

static void put_check_table(const cli_diagnose *g, FILE *f)
{
    cli_page_figure(f, "What was asked and what was found",
                    "The first condition that is not met is the reason of the verdict.");
    cli_table(f, NULL, "condition|found|wanted|");
    for (ptrdiff_t i = 0; i < arrlen(g->check); i++) {
        const cli_check_line *c = &g->check[i];
        fprintf(f, "<tr><th>%s<td>%s<td>%s<td class=\"%s\">%s\n", c->name, c->found, c->wanted,
                c->state > 0    ? "yes"
                : c->state == 0 ? "open"
                                : "no",
                state_word(c->state));
    }
    cli_table_end(f, 0);
    cli_page_figure_end(f);
}

/* Steps in at most MOST_STEPS groups of neighbours; the mean of each. */
static int group_steps(const double *v, int32_t n, double *out)
{
    int groups = n < MOST_STEPS ? (int)n : MOST_STEPS;
    for (int k = 0; k < groups; k++) {
        int32_t from = (int32_t)((int64_t)n * k / groups),
                to = (int32_t)((int64_t)n * (k + 1) / groups);
        out[k] = 0.0;
        for (int32_t s = from; s < to; s++) out[k] += v[s] / (to - from);
    }
    return groups;
}

static void draw_steps(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_diagnose *g = data;
    double value[2 * MOST_STEPS];
    int n = group_steps(g->step_before, g->steps, value);
    const char **label = cli_alloc((size_t)n, sizeof *label);
    (void)group_steps(g->step_after, g->steps, value + n);
    for (int k = 0; k < n; k++) label[k] = cli_format("%d", (int)((int64_t)g->steps * k / n));
    cli_points_pair(f, width, w == CLI_NARROW ? 250 : 270, id,
                    "Imbalance over devices in each judged step, today and with the plan", g->reason, "judged step",
                    "max/mean over devices, all layers together", n, value, label, g->desc.target_imbalance);
    cli_free_labels(label, n);
}

static void put_steps_figure(const cli_diagnose *g, FILE *f)
{
    char *text, *parts = cli_strdup("");
    if (g->steps == 0) return;
    for (ptrdiff_t i = 0; i < arrlen(g->judged); i++) {
        char *more = cli_format("%s%s%s from step %d", parts, i > 0 ? ", " : "", g->judged[i].name,
                                g->judged[i].first);
        free(parts);
        parts = more;
    }
    text = cli_format("One column per judged step%s: %s. The dashed line is good enough.",
                      g->steps > MOST_STEPS ? " (neighbours joined)" : "", parts);
    cli_page_figure(f, "Does it help in every step?", text);
    cli_page_draw(g, f, draw_steps, "steps", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 1, "today"}, {CHART_BEST, 1, "with the plan"},
                           {CLI_KEY_MEAN, 0, "good enough"}));
    cli_page_figure_end(f);
    free(text);
    free(parts);
}

static void put_device_half(const cli_diagnose *g, FILE *f, const double *v, const char *title,
                            chart_kind kind, double top, const char *id)
{
    int32_t D = g->setup.devices, at = 0;
    double total = 0.0;
    cli_bars b = cli_device_bars(v, D, title, kind, top);
    for (int32_t d = 0; d < D; d++) {
        total += v[d];
        at = v[d] > v[at] ? d : at;
    }
    fprintf(f, "<div><h4><span>%s</span> <b>max/mean %.2f</b></h4>", title,
            total > 0.0 ? v[at] * D / total : 1.0);
    cli_page_draw(&b, f, cli_draw_bars, id, cli_half_width);
    fputs("</div>", f);
}

static void put_devices_figure(const cli_diagnose *g, FILE *f)
{
    double top = 0.0;
    char *text =
        cli_format("Rows on each device in layer %d, where the most piles up; mean over "
                   "the %s steps. Figures are multiples of the mean.",
                   g->r.trace[0].layer[g->d.hot_layer], g->window_judged ? "judged" : "planned");
    for (int32_t d = 0; d < g->setup.devices; d++) {
        top = fmax(top, g->device_before[d]);
        top = fmax(top, g->device_after[d]);
    }
    cli_page_figure(f, "Which device does everybody wait for?", text);
    fputs("<div class=\"two\">", f);
    put_device_half(g, f, g->device_before, "Today", CHART_HOT, top, "dev-today");
    put_device_half(g, f, g->device_after, "With the plan", CHART_BEST, top, "dev-plan");
    fputs("</div>", f);
    cli_page_figure_end(f);
    free(text);
}

static void draw_break_even(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_diagnose *g = data;
    double gain = g->d.before_s - g->d.after_s, even = g->d.break_even_steps,
           last = fmax(20.0 * even, fmax(100.0, g->desc.horizon_steps));
    double first = fmin(1.0, 0.5 * even); /* the lines begin before they cross */
    double x[2] = {first, last}, saved[2] = {1e3 * gain * first, 1e3 * gain * last},
           cost[2] = {1e3 * g->d.move_s, 1e3 * g->d.move_s};
    double at_x[1] = {even}, at_y[1] = {1e3 * g->d.move_s};
    char *mark = cli_format("%s step%s", cli_count(ceil(even)), even > 1.0 ? "s" : "");
    const char *label[1] = {mark};
    chart_series s[3] = {{2, x, cost, CHART_HOT, 0, NULL},
                         {2, x, saved, CHART_BEST, 0, NULL},
                         {1, at_x, at_y, CHART_GOOD, 2, label}};
    chart_lines c;
    c = (chart_lines){.id = id, .title = "Time saved against time spent on moving", .description = g->reason,
                      .x_title = "steps served with the plan", .y_title = "milliseconds", .n = 3, .series = s};
    chart_svg_lines(f, &c, width, w == CLI_NARROW ? 260 : 300);
    free(mark);
}

static void put_break_even_figure(const cli_diagnose *g, FILE *f)
{
    if (!(g->d.break_even_steps > 0.0)) return;
    cli_page_figure(f, "When is moving repaid?",
                    "Moving costs once, the plan saves in every step. Where the lines cross the "
                    "change has paid for itself.");
    cli_page_draw(g, f, draw_break_even, "even", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 2, "spent on moving"}, {CHART_BEST, 2, "saved by the plan"},
                           {CHART_GOOD, 1, "break-even"}));
    cli_page_figure_end(f);
}

static void put_window_table(const cli_diagnose *g, FILE *f)
{
    if (arrlen(g->judged) == 0) return;
    cli_page_figure(f, "Each judged recording by itself",
                    "The plan is the same in every row; only what it is judged on differs.");
    cli_table(f, NULL,
              "recording|steps|max/mean today|plan|bound|step today|plan|saved|faster in|verdict");
    for (ptrdiff_t i = 0; i < arrlen(g->judged); i++) {
        const moe_ep_diagnosis *d = &g->judged[i].d;
        fputs("<tr><th>", f);
        cli_put_html(f, g->judged[i].name);
        fprintf(f, "<td>%d<td>%.3f<td>%.3f<td>%.3f<td>%s<td>%s<td>%.1f %%<td>%.0f %%<td>%s\n",
                d->steps, d->imbalance_before, d->imbalance_after, d->imbalance_bound,
                cli_seconds(d->before_s), cli_seconds(d->after_s), 100.0 * d->gain,
                100.0 * d->improved, moe_ep_verdict_str(d->verdict));
    }
    cli_table_end(f, 0);
    cli_page_figure_end(f);
}

void cli_diagnose_html(const void *data, FILE *f)
{
    const cli_diagnose *g = data;
    cli_page_head head = {"Diagnosis of the expert placement",
                          g->r.trace[0].name,
                          g->headline,
                          "",
                          g->state,
                          g->badge,
                          NULL};
    char *reason = cli_format("%s %s", g->reason, g->beside);
    char *note =
        cli_format("planned on %s, judged on %s \xc2\xb7 %d MoE layers \xc2\xb7 %d experts, "
                   "top-%d \xc2\xb7 %d devices, %d slots \xc2\xb7 %s tokens per step \xc2\xb7 "
                   "%s on %s",
                   g->r.trace[0].name, g->window_judged ? g->r.judged_on : "nothing", g->r.L,
                   g->r.E, g->r.K, g->setup.devices, g->slots, cli_count((double)cli_report_batch(&g->r)),
                   g->setup.model.name, g->setup.machine.name);
    head.reason = reason;
    cli_page_begin(f, &head);
    put_tiles(g, f);
    cli_page_note(f, note);
    put_check_table(g, f);
    put_steps_figure(g, f);
    put_devices_figure(g, f);
    put_break_even_figure(g, f);
    put_window_table(g, f);
    cli_page_assumed(f, g->setup.assumed);
    cli_page_end(f, "A row is one (token, expert) assignment. max/mean is the load of the busiest "
                    "device over the mean. Times are computed with a roofline for the expert "
                    "matrices and a latency-bandwidth model for dispatch and combine, never "
                    "measured.");
    free(note);
    free(reason);
}
