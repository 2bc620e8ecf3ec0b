/* cli_place_out.c - the plan of moe-ep place as text, JSON, CSV, picture and page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_map.h"
#include "cli_place.h"

#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static double before_of(const moe_ep_plan_result *a)
{
    return a->max_before / a->mean;
}

static double bound_of(const moe_ep_plan_result *a)
{
    return a->lower_bound / a->mean;
}

/* ---- text ---------------------------------------------------------------------------------------------- */

static void put_layer_lines(const cli_place *r, FILE *f)
{
    const moe_ep_placement *p = &r->p;
    fprintf(f, "%d layers, %d experts in %d slots on %d devices\n%s: %s\n\n", p->num_layers,
            p->num_experts, p->num_slots, p->num_devices, moe_ep_place_policy_str(r->result[0].policy),
            r->result[0].reason);
    fputs(
        "  layer   max/mean before    after    bound  slots used  most copies  same device twice\n",
        f);
    for (int32_t l = 0; l < p->num_layers; l++) {
        const moe_ep_plan_result *a = &r->result[l];
        if (r->idle[l]) {
            fprintf(f, "  %5d   no load: spare slots shared out evenly\n", r->trace->layer[l]);
            continue;
        }
        fprintf(f, "  %5d   %15.3f  %7.3f  %7.3f  %10d  %11d  %17d\n", r->trace->layer[l], before_of(a),
                a->imbalance, bound_of(a), a->slots_used, a->max_replicas, a->duplicates);
    }
}

/* What was written, and how a server takes it. */
static void put_written(const cli_place *r, FILE *f)
{
    const moe_ep_placement *p = &r->p;
    if (arrlen(r->out) > 0) fputc('\n', f);
    for (ptrdiff_t i = 0; i < arrlen(r->out); i++) {
        char *name = cli_printable(r->out[i]);
        char *usage = cli_map_usage(r->out[i], p->num_experts, p->num_slots, p->num_devices);
        fprintf(f, "wrote %s\n", name);
        if (usage) fprintf(f, "  %s\n", usage);
        free(usage);
        free(name);
    }
}

void cli_place_text(const void *data, FILE *f, const chart_text *t)
{
    const cli_place *r = data;
    put_layer_lines(r, f);
    if (r->d.node_soft)
        fprintf(f, "\n%.2f %% of the load is served off its home node; at most %.4g %% was asked for\n",
                100.0 * r->off_home, 100.0 * r->off_node);
    cli_put_assumed(f, t, r->setup.assumed);
    put_written(r, f);
}

/* ---- JSON ---------------------------------------------------------------------------------------------- */

void cli_place_map(const void *data, FILE *f)
{
    const cli_place *r = data;
    cli_map_put_json(f, r->p.num_layers, r->p.num_slots, r->full);
}

static json_t *balance(const cli_place_balance *b)
{
    json_t *o = json_object();
    cli_json_numbers(o, "worst", b->worst, "mean", b->mean, NULL);
    return o;
}

static json_t *numbers(const double *v, int32_t n)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) json_array_append_new(list, cli_json_number(v[i]));
    return list;
}

static json_t *layer(const cli_place *r, int32_t l)
{
    const moe_ep_plan_result *a = &r->result[l];
    size_t at = (size_t)l * (size_t)r->p.num_devices;
    json_t *o = json_object();
    cli_json_counts(o, "layer", (int64_t)r->trace->layer[l], NULL);
    json_object_set_new(o, "loaded", json_boolean(!r->idle[l]));
    cli_json_numbers(o, "mean", a->mean, "before", before_of(a), "after", a->imbalance, "bound", bound_of(a), "nodes",
                     a->node_imbalance, NULL);
    cli_json_counts(o, "slots_used", (int64_t)a->slots_used, "most_copies", (int64_t)a->max_replicas, "duplicates",
                    (int64_t)a->duplicates, "busiest_device", (int64_t)a->busiest_device, NULL);
    json_object_set_new(o, "off_node", r->d.node_soft ? json_real(a->off_node) : json_null());
    json_object_set_new(o, "devices_before", numbers(r->before + at, r->p.num_devices));
    json_object_set_new(o, "devices_after", numbers(r->after + at, r->p.num_devices));
    return o;
}

void cli_place_json(const void *data, FILE *f)
{
    const cli_place *r = data;
    const moe_ep_placement *p = &r->p;
    json_t *root = json_object(), *dead = json_array(), *layers = json_array();
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", r->headline, "verdict", r->badge, "reason",
                   r->reason, NULL);
    json_object_set_new(root, "setup",
                        json_pack("{s:i,s:i,s:i,s:i,s:i,s:s}", "layers", (int)p->num_layers, "experts",
                                  (int)p->num_experts, "devices", (int)p->num_devices, "slots", (int)p->num_slots,
                                  "nodes", (int)p->num_nodes, "policy",
                                  moe_ep_place_policy_str(r->result[0].policy)));
    for (int32_t d = 0; d < p->num_devices; d++)
        if (p->device_inactive[d]) json_array_append_new(dead, json_integer(d));
    json_object_set_new(root, "dead", dead);
    json_object_set_new(root, "speeds", numbers(p->device_speed, p->num_devices));
    json_object_set_new(root, "before", balance(&r->blocks));
    json_object_set_new(root, "after", balance(&r->plan));
    json_object_set_new(root, "bound", balance(&r->bound));
    cli_json_numbers(root, "gap", r->gap, "nodes", r->nodes, NULL);
    json_object_set_new(root, "off_node", r->d.node_soft ? json_real(r->off_home) : json_null());
    cli_json_counts(root, "copies", r->copies, "most_copies", (int64_t)r->most_copies, "duplicates", r->duplicates,
                    NULL);
    for (int32_t l = 0; l < p->num_layers; l++) json_array_append_new(layers, layer(r, l));
    json_object_set_new(root, "layers", layers);
    cli_json_assumed(root, r->setup.assumed);
    cli_json_write(root, f);
}

/* ---- CSV ----------------------------------------------------------------------------------------------- */

void cli_place_csv(const void *data, FILE *f)
{
    const cli_place *r = data;
    fputs("layer,loaded,max_over_mean_before,max_over_mean_after,bound,slots_used,most_copies,same_device_twice,"
          "busiest_device,nodes_max_over_mean,off_node\n", f);
    for (int32_t l = 0; l < r->p.num_layers; l++) {
        const moe_ep_plan_result *a = &r->result[l];
        fprintf(f, "%d,%d,%.6g,%.6g,%.6g,%d,%d,%d,%d,%.6g,", r->trace->layer[l], !r->idle[l], before_of(a),
                a->imbalance, bound_of(a), a->slots_used, a->max_replicas, a->duplicates, a->busiest_device,
                a->node_imbalance);
        if (r->d.node_soft) fprintf(f, "%.6g", a->off_node);
        fputc('\n', f);
    }
}

/* ---- pictures ------------------------------------------------------------------------------------------ */

/* The devices of one layer under one placement. */
typedef struct panel {
    const cli_place *r;
    const double *value; /* (D) */
    chart_kind kind;
    double top;
    const char *title;
    double height;
} panel;

static double largest(const double *v, int32_t n, double top)
{
    for (int32_t i = 0; i < n; i++) top = v[i] > top ? v[i] : top;
    return top;
}

/* Figures are multiples of the mean, of which dead devices are no part. */
static void draw_panel(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const panel *q = data;
    const moe_ep_placement *p = &q->r->p;
    int32_t D = p->num_devices;
    double mean = q->r->result[q->r->shown].mean, most = largest(q->value, D, 0.0);
    cli_marks m = cli_marks_new(D);
    chart_bars c;
    (void)w;
    for (int32_t d = 0; d < D; d++) {
        int hottest = !(q->value[d] < most), shown = D <= MOST_LABELLED || (hottest && q->kind == CHART_HOT);
        m.label[d] = cli_format("%d", d);
        m.value[d] = p->device_inactive[d] ? cli_strdup("dead")
                     : shown               ? cli_format("%.2f", q->value[d] / mean)
                                           : cli_strdup("");
        m.tip[d] = cli_format("device %d: %s", d, p->device_inactive[d] ? "dead" : cli_count(q->value[d]));
        m.kind[d] = q->kind == CHART_HOT && !hottest ? CHART_PLAIN : q->kind;
    }
    c = (chart_bars){.id = id, .title = q->title, .description = q->title, .x_title = "device",
                     .y_title = q->r->speeds ? "load over speed" : "load", .n = D, .value = q->value,
                     .label = m.label, .value_label = m.value, .tip = m.tip, .kind = m.kind, .line = mean,
                     .line_label = "mean", .top = q->top};
    chart_svg_bars(f, &c, width, q->height);
    cli_marks_free(&m);
}

/* Before (0) and after (1) on one scale; the caller frees the title. */
static panel panel_of(const cli_place *r, int after)
{
    size_t at = (size_t)r->shown * (size_t)r->p.num_devices;
    const moe_ep_plan_result *a = &r->result[r->shown];
    panel q;
    q.r = r;
    q.value = (after ? r->after : r->before) + at;
    q.kind = after ? CHART_BEST : CHART_HOT;
    q.top = largest(r->after + at, r->p.num_devices, largest(r->before + at, r->p.num_devices, 0.0));
    q.title = after ? cli_format("With the plan: max/mean %.3f", a->imbalance)
                    : cli_format("Contiguous blocks: max/mean %.3f", before_of(a));
    q.height = 190;
    return q;
}

void cli_place_svg(const void *data, FILE *f)
{
    const cli_place *r = data;
    char *caption = cli_format("Layer %d, the worst before; figures are multiples of the mean",
                               r->trace->layer[r->shown]);
    cli_svg_begin(f, r->headline, r->reason, caption);
    for (int i = 0; i < 2; i++) {
        panel q = panel_of(r, i);
        cli_svg_panel(f, i ? 316 : 72, q.title);
        draw_panel(&q, f, CLI_WIDE, 952, i ? "after" : "before");
        fputs("</svg>\n", f);
        free((void *)(uintptr_t)q.title);
    }
    fputs("</svg>\n", f);
    free(caption);
}

/* ---- page ---------------------------------------------------------------------------------------------- */

static void put_tiles(const cli_place *r, FILE *f)
{
    int32_t L = r->p.num_layers;
    int nodes = r->d.node_soft || r->p.num_nodes > 1; /* takes the place of the mean, so that there are four */
    fputs("<dl class=\"tiles\">\n", f);
    cli_tile(f, L > 1 ? "Worst layer, max/mean" : "Busiest device, max/mean", cli_format("%.3f", r->blocks.worst),
             cli_format("%.3f", r->plan.worst),
             L > 1 && nodes ? cli_format("mean over layers %.3f as contiguous blocks, %.3f with the plan",
                                         r->blocks.mean, r->plan.mean)
                            : cli_strdup("as contiguous blocks, and with the plan"));
    if (L > 1 && !nodes)
        cli_tile(f, "Mean over layers", cli_format("%.3f", r->blocks.mean), cli_format("%.3f", r->plan.mean),
                 cli_format("%d layers with load", r->loaded));
    cli_tile(f, "Proven bound", cli_format("%.3f", r->bound.worst), NULL,
             cli_format("no plan with these slots gets below it; no layer is more than %.2f %% above its own",
                        100.0 * r->gap));
    cli_tile(f, "Copies per layer", cli_format("%.4g", (double)r->copies / L), NULL,
             cli_format("at most %d of one expert; %s twice on a device", r->most_copies,
                        r->duplicates > 0 ? cli_count((double)r->duplicates) : "none"));
    if (r->d.node_soft)
        cli_tile(f, "Off the home node", cli_format("%.2f %%", 100.0 * r->off_home), NULL,
                 cli_format("of the load of all layers; at most %.4g %% was asked for", 100.0 * r->off_node));
    else if (nodes)
        cli_tile(f, "Busiest node, max/mean", cli_format("%.3f", r->nodes), NULL,
                 cli_strdup("in the worst layer, with the plan"));
    fputs("</dl>\n", f);
}

static void put_devices_figure(const cli_place *r, FILE *f)
{
    int halves = r->p.num_devices <= 64;
    char *question = cli_format("What does each device carry in layer %d?", r->trace->layer[r->shown]);
    cli_page_figure(f, question,
                    r->p.num_layers > 1 ? "The layer that is worst as contiguous blocks. Figures are multiples of the "
                                          "mean, which is the dashed line."
                                        : "Figures are multiples of the mean, which is the dashed line.");
    if (halves) fputs("<div class=\"two\">", f);
    for (int i = 0; i < 2; i++) {
        panel q = panel_of(r, i);
        fprintf(f, "<div><h4><span>%s</span></h4>", q.title);
        cli_page_draw(&q, f, draw_panel, i ? "after" : "before", halves ? cli_half_width : cli_full_width);
        fputs("</div>", f);
        free((void *)(uintptr_t)q.title);
    }
    if (halves) fputs("</div>", f);
    cli_page_figure_end(f);
    free(question);
}

static void draw_layers(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    static const chart_kind kind[3] = {CHART_HOT, CHART_COLD, CHART_BEST}; /* the plan over the bound */
    const cli_place *r = data;
    size_t n = 0, L = (size_t)r->loaded;
    double *value = cli_alloc(L * 3, sizeof *value);
    const char **label = cli_alloc(L, sizeof *label);
    chart_points c;
    for (int32_t l = 0; l < r->p.num_layers; l++) {
        if (r->idle[l]) continue;
        value[n] = before_of(&r->result[l]);
        value[L + n] = bound_of(&r->result[l]);
        value[2 * L + n] = r->result[l].imbalance;
        label[n++] = cli_format("%d", r->trace->layer[l]);
    }
    c = (chart_points){.id = id, .title = "Imbalance over devices in each layer: before, after and the bound",
                       .description = r->headline, .x_title = "layer", .y_title = "max/mean over devices",
                       .n = r->loaded, .series = 3, .value = value, .kind = kind, .label = label, .line = 1.0};
    chart_svg_points(f, &c, width, w == CLI_NARROW ? 250 : 270);
    cli_free_labels(label, r->loaded);
    free(value);
}

static void put_layer_table(const cli_place *r, FILE *f)
{
    int folded = r->p.num_layers > 8;
    cli_table(f, folded ? "All layers as a table" : NULL,
              "layer|before|after|bound|slots used|most copies|same device twice|busiest device");
    for (int32_t l = 0; l < r->p.num_layers; l++) {
        const moe_ep_plan_result *a = &r->result[l];
        fprintf(f, "<tr><th>%d", r->trace->layer[l]);
        if (r->idle[l])
            fputs("<td>no load<td><td>", f);
        else
            fprintf(f, "<td>%.3f<td>%.3f<td>%.3f", before_of(a), a->imbalance, bound_of(a));
        fprintf(f, "<td>%d<td>%d<td>%d<td>%d\n", a->slots_used, a->max_replicas, a->duplicates, a->busiest_device);
    }
    cli_table_end(f, folded);
}

static void put_layers_figure(const cli_place *r, FILE *f)
{
    if (r->loaded > 1) {
        cli_page_figure(f, "Does it work in every layer?",
                        "Busiest device over the mean device, layer by layer. The dashed line is perfect balance.");
        cli_page_draw(r, f, draw_layers, "layers", cli_full_width);
        cli_legend(f, CLI_KEYS({CHART_HOT, 1, "contiguous blocks"}, {CHART_BEST, 1, "with the plan"},
                               {CHART_COLD, 1, "bound: no plan gets below"}));
    } else {
        cli_page_figure(f, "The numbers", "");
    }
    put_layer_table(r, f);
    cli_page_figure_end(f);
}

void cli_place_html(const void *data, FILE *f)
{
    const cli_place *r = data;
    cli_page_head head = {"Expert placement", r->names, r->headline, "", r->state, r->badge, r->reason};
    char *assumed = cli_format("%s%s%s", r->setup.assumed ? r->setup.assumed : "", r->setup.assumed ? "\n" : "",
                               "Before the plan: contiguous blocks of experts, without copies.");
    cli_page_begin(f, &head);
    put_tiles(r, f);
    cli_page_note(f, r->subject);
    if (r->loaded > 0) put_devices_figure(r, f);
    put_layers_figure(r, f);
    cli_page_assumed(f, assumed);
    cli_page_end(f, "max/mean is the load of the busiest device over the mean. An expert's load is shared equally by "
                    "its copies.");
    free(assumed);
}
