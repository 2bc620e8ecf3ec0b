/* cli_rebalance_out.c - the answer of moe-ep rebalance as text, JSON and page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_rebalance.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_LAYERS = 10, MOST_MOVES = 12, MOST_PAGE_MOVES = 200 };

static const chart_kind plan_kind[CLI_PLANS] = {CHART_HOT, CHART_BEST, CHART_GOOD, CHART_PLAIN};

static const char *text_of(char *at, size_t bytes, double v)
{
    if (v > 0.0)
        (void)snprintf(at, bytes, "%.3f", v);
    else
        (void)snprintf(at, bytes, "lost");
    return at;
}

/* ---- text ---------------------------------------------------------------------------------------------- */

static void put_plans(const cli_rebalance *r, FILE *f, const chart_text *t)
{
    cli_put_title(f, t, "Against a full replan");
    fputs("                            max/mean             moves  share of   bytes    between  "
          "rounds\n"
          "                            worst layer  all               slots              nodes\n",
          f);
    for (int i = 0; i < CLI_PLANS; i++) {
        const cli_change *c = &r->change[i];
        char worst[24], overall[24];
        fprintf(f, "  %-24s  %11s  %6s  %7s  %6.1f %%  %8s  %6s  %6s\n", c->name,
                text_of(worst, sizeof worst, c->worst),
                text_of(overall, sizeof overall, c->overall), cli_count((double)c->moves.moves),
                100.0 * c->share, cli_bytes(c->moves.bytes), cli_count((double)c->moves.cross_node),
                cli_count((double)c->moves.rounds));
    }
}

static void put_frontier(const cli_rebalance *r, FILE *f, const chart_text *t)
{
    double today = r->change[CLI_TODAY].worst;
    cli_bar_list b;
    if (r->points == 0) return;
    memset(&b, 0, sizeof b);
    cli_bar(&b, today - 1.0, CHART_HOT, cli_strdup("today"), cli_format("%.3f", today));
    for (int i = 0; i < r->points; i++)
        cli_bar(&b, r->point_worst[i] - 1.0, r->point_worst[i] <= r->target ? CHART_BEST : CHART_PLAIN,
                cli_format("%s move%s", cli_count((double)r->point_moves[i]), r->point_moves[i] == 1 ? "" : "s"),
                cli_format("%.3f, %.1f %% of the slots", r->point_worst[i], 100.0 * r->point_share[i]));
    cli_bars_text(&b, f, t, "How balanced for how many moves (max/mean of the worst layer, bars from 1)");
}

static void put_layers(const cli_rebalance *r, FILE *f, const chart_text *t)
{
    int shown = r->trace->layers < MOST_LAYERS ? r->trace->layers : MOST_LAYERS;
    cli_put_title(f, t,
                  r->trace->layers > shown ? "The worst layers (max/mean)"
                                           : "Layer by layer (max/mean)");
    fputs("  layer    today    after    bound  moves  busiest device after\n", f);
    for (int i = 0; i < shown; i++) {
        int32_t l = r->worst[i];
        const moe_ep_plan_result *a = &r->after[l];
        if (!(a->total > 0.0)) {
            fprintf(f, "  %5d   no load\n", r->trace->layer[l]);
            continue;
        }
        fprintf(f, "  %5d  ", r->trace->layer[l]);
        if (r->before)
            fprintf(f, "%7.3f", r->before[l].imbalance);
        else
            fputs("   lost", f);
        fprintf(f, "  %7.3f  %7.3f  %5d  %d\n", a->imbalance, a->lower_bound / a->mean,
                r->layer_arrivals[l], a->busiest_device);
    }
}

static void put_moves(const cli_rebalance *r, FILE *f, const chart_text *t)
{
    int64_t n = r->change[CLI_REBALANCED].moves.moves, shown = n < MOST_MOVES ? n : MOST_MOVES;
    if (n == 0) return;
    cli_put_title(f, t, "First moves (all with --moves-out)");
    fputs("  round  layer  expert  from device/slot  to device/slot\n", f);
    for (int64_t i = 0; i < shown; i++) {
        const moe_ep_move *m = &r->move[i];
        char from[40];
        if (m->from_device < 0)
            (void)snprintf(from, sizeof from, "disk");
        else
            (void)snprintf(from, sizeof from, "%d/%d", m->from_device, m->from_slot);
        fprintf(f, "  %5d  %5d  %6d  %16s  %d/%d\n", m->round, r->trace->layer[m->layer], m->expert,
                from, m->to_device, m->to_slot);
    }
}

void cli_rebalance_text(const void *data, FILE *f, const chart_text *t)
{
    const cli_rebalance *r = data;
    fputs(t->color ? "\033[1m" : "", f);
    cli_put_wrapped(f, r->headline, t->width, 0, 0);
    fprintf(f, "%s  %s%s%s: ", t->color ? "\033[0m" : "",
            chart_ansi(t, r->state[0] == 'y' ? CHART_BEST : CHART_HOT), r->badge,
            chart_ansi_end(t));
    cli_put_wrapped(f, r->reason, t->width, 2, cli_columns(r->badge) + 4);
    put_plans(r, f, t);
    put_frontier(r, f, t);
    put_layers(r, f, t);
    put_moves(r, f, t);
    cli_put_assumed(f, t, r->setup.assumed);
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */

static json_t *change(const cli_change *c)
{
    json_t *o = json_object();
    json_object_set_new(o, "imbalance_worst", c->worst > 0.0 ? json_real(c->worst) : json_null());
    json_object_set_new(o, "imbalance", c->overall > 0.0 ? json_real(c->overall) : json_null());
    json_object_set_new(o, "moves", json_integer(c->moves.moves));
    cli_json_numbers(o, "share", c->share, "bytes", c->moves.bytes, NULL);
    cli_json_counts(o, "rounds", (int64_t)c->moves.rounds, "cross_node", (int64_t)c->moves.cross_node,
                    "lost", (int64_t)c->moves.lost, "slot_changes", (int64_t)c->moves.slot_changes, "staging",
                    (int64_t)c->moves.staging, NULL);
    return o;
}

static json_t *layers(const cli_rebalance *r)
{
    json_t *list = json_array();
    for (int32_t l = 0; l < r->trace->layers; l++) {
        const moe_ep_plan_result *a = &r->after[l];
        json_t *o = json_object();
        json_object_set_new(o, "layer", json_integer(r->trace->layer[l]));
        json_object_set_new(o, "before",
                            r->before ? json_real(r->before[l].imbalance) : json_null());
        json_object_set_new(o, "after", json_real(a->imbalance));
        json_object_set_new(o, "bound",
                            a->mean > 0.0 ? json_real(a->lower_bound / a->mean) : json_null());
        json_object_set_new(o, "moves", json_integer(r->layer_arrivals[l]));
        json_array_append_new(list, o);
    }
    return list;
}

void cli_rebalance_json(const void *data, FILE *f)
{
    static const char *const name[CLI_PLANS] = {"today", "rebalanced", "relabelled", "replan"};
    const cli_rebalance *r = data;
    json_t *root = json_object(), *list = json_array();
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", r->headline, "verdict", r->badge,
                   "reason", r->reason, NULL);
    json_object_set_new(root, "target", r->target > 0.0 ? json_real(r->target) : json_null());
    json_object_set_new(root, "setup",
                        json_pack("{s:i,s:i,s:i,s:i,s:i,s:s,s:s}", "layers", (int)r->trace->layers,
                                  "experts", (int)r->trace->experts, "devices",
                                  (int)r->today.num_devices, "slots", (int)r->today.num_slots,
                                  "nodes", (int)r->today.num_nodes, "model", r->setup.model.name,
                                  "machine", r->setup.machine.name));
    cli_json_numbers(root, "expert_bytes", r->expert_bytes, "seconds", r->seconds, NULL);
    for (int i = 0; i < CLI_PLANS; i++) json_object_set_new(root, name[i], change(&r->change[i]));
    json_object_set_new(root, "layers", layers(r));
    for (int i = 0; i < r->points; i++)
        json_array_append_new(list,
                              json_pack("{s:I,s:f,s:f,s:f}", "moves", (json_int_t)r->point_moves[i],
                                        "share", r->point_share[i], "imbalance_worst",
                                        r->point_worst[i], "imbalance", r->point_overall[i]));
    json_object_set_new(root, "frontier", list);
    cli_json_assumed(root, r->setup.assumed);
    cli_json_write(root, f);
}

/* ---- page ------------------------------------------------------------------------------------------------- */

static void put_tiles(const cli_rebalance *r, FILE *f)
{
    const cli_change *a = &r->change[CLI_TODAY], *b = &r->change[CLI_REBALANCED];
    char before[24], after[24];
    fputs("<dl class=\"tiles\">\n", f);
    cli_tile(f, "Worst layer, max/mean", cli_strdup(text_of(before, sizeof before, a->worst)),
             cli_strdup(text_of(after, sizeof after, b->worst)),
             a->worst > 0.0 ? cli_format("all layers together %.3f before, %.3f after", a->overall, b->overall)
                            : cli_strdup("before: an expert stands on no device that works"));
    cli_tile(f, "Moves", cli_strdup(cli_count((double)b->moves.moves)), NULL,
             cli_format("%.1f %% of the slots; a full replan moves %.1f %%", 100.0 * b->share,
                        100.0 * r->change[CLI_REPLANNED].share));
    cli_tile(f, "Weights on the wire", cli_strdup(cli_bytes(b->moves.bytes)), NULL,
             cli_format("%s per expert and layer; %s moves between nodes", cli_bytes(r->expert_bytes),
                        cli_count((double)b->moves.cross_node)));
    cli_tile(f, "Rounds", cli_strdup(cli_count((double)b->moves.rounds)), NULL,
             r->seconds > 0.0
                 ? cli_format("%s at the speed of the links of %s", cli_seconds(r->seconds), r->setup.machine.name)
                 : cli_strdup("in a round a device sends and receives at most once"));
    fputs("</dl>\n", f);
}

static void draw_frontier(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    static const char *const name[CLI_PLANS] = {"today", "this plan", "", "full replan"};
    const cli_rebalance *r = data;
    double x[CLI_PLANS + 1], y[CLI_PLANS + 1], fx[CLI_FRONTIER + 1], fy[CLI_FRONTIER + 1];
    chart_series s[CLI_PLANS + 1];
    chart_lines c;
    char *text =
        cli_format("Rebalancing brings max/mean of the worst layer from %.3f to %.3f with "
                   "%.1f %% of the slots; a full replan moves %.1f %%.",
                   r->change[CLI_TODAY].worst, r->change[CLI_REBALANCED].worst,
                   100.0 * r->change[CLI_REBALANCED].share, 100.0 * r->change[CLI_REPLANNED].share);
    fx[0] = 0.0;
    fy[0] = r->change[CLI_TODAY].worst;
    for (int i = 0; i < r->points; i++) {
        fx[i + 1] = 100.0 * r->point_share[i];
        fy[i + 1] = r->point_worst[i];
    }
    s[0] = (chart_series){r->points + 1, fx, fy, CHART_BEST, 1, NULL};
    for (int i = 0; i < CLI_PLANS; i++) {
        x[i] = 100.0 * r->change[i].share;
        y[i] = r->change[i].worst;
        s[i + 1] = (chart_series){1, &x[i], &y[i], plan_kind[i], 2, &name[i]};
    }
    c = cli_lines(id, "Balance against the share of slots that receive another expert", text,
                  "slots that receive another expert, %", "max/mean of the worst layer", CLI_PLANS + 1, s, r->target);
    chart_svg_lines(f, &c, width, w == CLI_NARROW ? 280 : 340);
    free(text);
}

static void put_frontier_figure(const cli_rebalance *r, FILE *f)
{
    if (!r->before) return;
    cli_page_figure(f, "How balanced for how many moves?",
                    "The line is what this command reaches with more and more moves. A full replan "
                    "buys the last hundredths by moving nearly everything; renaming its devices to "
                    "fit saves part of that.");
    cli_page_draw(r, f, draw_frontier, "frontier", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 1, "today"}, {CHART_BEST, 1, "rebalanced"},
                           {CHART_GOOD, 1, "full replan, devices renamed to fit"},
                           {CHART_PLAIN, 1, "full replan"},
                           {CLI_KEY_MEAN, 0, r->target > 0.0 ? "target" : NULL}));
    cli_page_figure_end(f);
}

static void draw_layers(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_rebalance *r = data;
    int32_t L = r->trace->layers;
    double *value = cli_alloc((size_t)L * 2, sizeof *value);
    const char **label = cli_alloc((size_t)L, sizeof *label);
    for (int32_t l = 0; l < L; l++) {
        value[l] = r->before ? r->before[l].imbalance : r->after[l].imbalance;
        value[L + l] = r->after[l].imbalance;
        label[l] = cli_format("%d", r->trace->layer[l]);
    }
    cli_points_pair(f, width, w == CLI_NARROW ? 250 : 270, id,
                    "Imbalance over devices in each layer, before and after", r->headline, "layer",
                    "max/mean over devices", L, value, label, r->target > 0.0 ? r->target : 1.0);
    cli_free_labels(label, L);
    free(value);
}

static void put_layers_figure(const cli_rebalance *r, FILE *f)
{
    cli_page_figure(f, "Does it work in every layer?",
                    r->target > 0.0 ? "Busiest device over the mean device, layer by layer. The "
                                      "dashed line is the target."
                                    : "Busiest device over the mean device, layer by layer. The "
                                      "dashed line is perfect balance.");
    cli_page_draw(r, f, draw_layers, "layers", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 1, r->before ? "today" : "today: experts are lost"},
                           {CHART_BEST, 1, "rebalanced"}));
    cli_table(f, "All layers as a table", "layer|today|after|bound|moves|busiest device after");
    for (int32_t i = 0; i < r->trace->layers; i++) {
        int32_t l = r->worst[i];
        const moe_ep_plan_result *a = &r->after[l];
        char before[24];
        fprintf(f, "<tr><th>%d<td>%s<td>%.3f<td>%.3f<td>%d<td>%d\n", r->trace->layer[l],
                text_of(before, sizeof before, r->before ? r->before[l].imbalance : 0.0),
                a->imbalance, a->mean > 0.0 ? a->lower_bound / a->mean : 1.0, r->layer_arrivals[l],
                a->busiest_device);
    }
    cli_table_end(f, 1);
    cli_page_figure_end(f);
}

static void put_traffic_half(const cli_rebalance *r, FILE *f, const int32_t *count, cli_bars *b,
                             const char *id)
{
    int32_t D = r->today.num_devices;
    double *value = cli_alloc((size_t)D, sizeof *value);
    for (int32_t d = 0; d < D; d++) value[d] = count[d];
    b->n = D;
    b->value = value;
    b->x_title = "device";
    b->y_title = "experts";
    b->marked = -1;
    fprintf(f, "<div><h4><span>%s</span></h4>", b->title);
    cli_page_draw(b, f, cli_draw_bars, id, cli_half_width);
    fputs("</div>", f);
    free(value);
}

static void put_traffic_figure(const cli_rebalance *r, FILE *f)
{
    cli_bars in, out;
    memset(&in, 0, sizeof in);
    memset(&out, 0, sizeof out);
    in.title = "Experts that arrive on each device";
    in.kind = CHART_BEST;
    out.title = "Experts that each device sends";
    out.kind = CHART_GOOD;
    cli_page_figure(f, "Which devices are busy moving?",
                    "Arrivals and sendings over all layers. The rounds of each layer end before those of the next "
                    "begin, so that the schedule needs at least as many as the tallest bar.");
    fputs("<div class=\"two\">", f);
    put_traffic_half(r, f, r->arrivals, &in, "in");
    put_traffic_half(r, f, r->departures, &out, "out");
    fputs("</div>", f);
    cli_page_figure_end(f);
}

static void put_plan_table(const cli_rebalance *r, FILE *f)
{
    cli_page_figure(f, "Against a full replan",
                    "A move is an expert arriving on a device that did not hold it; its weights "
                    "travel. A change of slot on one device does not count.");
    cli_table(f, NULL, "placement|worst layer|all layers|moves|share of slots|bytes|between nodes|rounds");
    for (int i = 0; i < CLI_PLANS; i++) {
        const cli_change *c = &r->change[i];
        char worst[24], overall[24];
        fprintf(f, "<tr%s><th>%s<td>%s<td>%s<td>%s<td>%.1f %%<td>%s<td>%s<td>%s\n",
                i == CLI_REBALANCED ? " class=\"pick\"" : "", c->name,
                text_of(worst, sizeof worst, c->worst),
                text_of(overall, sizeof overall, c->overall), cli_count((double)c->moves.moves),
                100.0 * c->share, cli_bytes(c->moves.bytes), cli_count((double)c->moves.cross_node),
                cli_count((double)c->moves.rounds));
    }
    cli_table_end(f, 0);
    cli_page_figure_end(f);
}

static void put_move_table(const cli_rebalance *r, FILE *f)
{
    int64_t n = r->change[CLI_REBALANCED].moves.moves;
    char *summary;
    char *text = cli_format("Experts of one round can travel at the same time, one layer after the other. Arrivals "
                            "wait in memory of their own, at most %s on a device, until the last round of their "
                            "layer, and only then go to their slots.",
                            cli_bytes((double)r->change[CLI_REBALANCED].moves.staging * r->expert_bytes));
    cli_page_figure(f, "The moves", text);
    free(text);
    summary = n > MOST_PAGE_MOVES ? cli_format("The first %d of %s moves; --moves-out writes all", MOST_PAGE_MOVES,
                                               cli_count((double)n))
                                  : cli_strdup("All moves");
    cli_table(f, summary, "round|layer|expert|from device|slot|to device|slot");
    free(summary);
    for (int64_t i = 0; i < n && i < MOST_PAGE_MOVES; i++) {
        const moe_ep_move *m = &r->move[i];
        fprintf(f, "<tr><th>%d<td>%d<td>%d", m->round, r->trace->layer[m->layer], m->expert);
        if (m->from_device < 0)
            fputs("<td>disk<td>", f);
        else
            fprintf(f, "<td>%d<td>%d", m->from_device, m->from_slot);
        fprintf(f, "<td>%d<td>%d\n", m->to_device, m->to_slot);
    }
    cli_table_end(f, 1);
    cli_page_figure_end(f);
}

void cli_rebalance_html(const void *data, FILE *f)
{
    const cli_rebalance *r = data;
    cli_page_head head = {"Expert rebalance", r->names, r->headline, "",
                          r->state,           r->badge, r->reason};
    char *note =
        cli_format("%s \xc2\xb7 %d layers \xc2\xb7 %d experts in %d slots on %d devices, "
                   "%d node%s \xc2\xb7 %s",
                   r->names, r->trace->layers, r->trace->experts, r->today.num_slots,
                   r->today.num_devices, r->today.num_nodes, r->today.num_nodes == 1 ? "" : "s",
                   r->current ? r->current : "contiguous blocks today");
    cli_page_begin(f, &head);
    put_tiles(r, f);
    cli_page_note(f, note);
    put_frontier_figure(r, f);
    put_layers_figure(r, f);
    if (r->change[CLI_REBALANCED].moves.moves > 0) put_traffic_figure(r, f);
    put_plan_table(r, f);
    if (r->change[CLI_REBALANCED].moves.moves > 0) put_move_table(r, f);
    cli_page_assumed(f, r->setup.assumed);
    cli_page_end(f, "max/mean is the load of the busiest device over the mean. An expert's load is "
                    "shared equally by its copies. Times are computed, never measured.");
    free(note);
}
