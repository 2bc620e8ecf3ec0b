/* cli_sweep_out.c - the answer of moe-ep sweep as text, JSON and page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_sweep.h"

#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

/* Indices of the configurations of the asked batch, for every shape the overlap that is fastest; stb_ds. */
static int *shapes_of(const cli_sweep *s)
{
    int *list = NULL;
    for (int i = 0; i < (int)arrlen(s->config); i++) {
        const cli_config *c = &s->config[i], *last;
        if (c->tokens != s->tokens[0]) continue;
        last = arrlen(list) > 0 ? &s->config[arrlast(list)] : NULL;
        if (last && last->ep == c->ep && !last->fits && !c->fits)
            continue; /* the least redundant one says it */
        if (!last || last->ep != c->ep || last->redundant != c->redundant ||
            last->policy != c->policy)
            arrput(list, i);
        else if (c->fits && c->step.tokens_per_s_device > last->step.tokens_per_s_device)
            list[arrlen(list) - 1] = i;
    }
    return list;
}

static int is_best_shape(const cli_sweep *s, const cli_config *c)
{
    return s->best >= 0 && s->config[s->best].ep == c->ep &&
           s->config[s->best].redundant == c->redundant &&
           s->config[s->best].policy == c->policy;
}

/* Why a configuration does not fit. */
static char *misfit(const cli_sweep *s, const cli_config *c)
{
    if (c->limit == MOE_EP_LIMIT_PLACEMENT)
        return cli_format("cannot be planned by %s: %s", cli_policy_str(c->policy), cli_sweep_no_plan(s, c));
    if (!c->memory.fits)
        return cli_format("does not fit: %s of weights and buffers",
                          cli_bytes(c->memory.total_bytes));
    return cli_format("does not fit: cache for %s of %s tokens",
                      cli_count((double)c->memory.kv_tokens), cli_count(c->batch_kv_tokens));
}

/* ---- text ---------------------------------------------------------------------------------------------- */

static void put_shapes(const cli_sweep *s, FILE *f, const chart_text *t)
{
    int *list = shapes_of(s);
    char *title = cli_format("Tokens/s per device at %s tokens per device, fastest overlap each "
                             "(predicted, not measured)",
                             cli_count((double)s->tokens[0]));
    cli_bar_list b;
    memset(&b, 0, sizeof b);
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        const cli_config *c = &s->config[list[i]];
        int best = is_best_shape(s, c);
        cli_bar(&b, c->step.tokens_per_s_device, best ? CHART_BEST : CHART_PLAIN,
                arrlen(s->policy) > 1
                    ? cli_format("EP %-4d +%-4d %-11s", c->ep, c->redundant, cli_policy_str(c->policy))
                    : cli_format("EP %-4d +%-4d", c->ep, c->redundant),
                c->fits ? cli_format("%6s  %8s/token  max/mean %.2f  %-14s  %s%s",
                                     cli_count(c->step.tokens_per_s_device), cli_seconds(c->step.tpot_s), c->imbalance,
                                     moe_ep_limit_str(c->limit), cli_overlap_str(c->overlap), best ? " <-" : "")
                        : misfit(s, c));
    }
    cli_bars_text(&b, f, t, title);
    free(title);
    arrfree(list);
}

static void put_front(const cli_sweep *s, FILE *f, const chart_text *t)
{
    int several = arrlen(s->policy) > 1;
    cli_put_title(f, t, "Pareto front: nothing else is faster per token and per device");
    fprintf(f, "  per token  tokens/s   tokens per    EP  redundant  %soverlap     limited by       max/mean  memory\n"
               "             per device device\n",
            several ? "placed by    " : "");
    for (ptrdiff_t i = 0; i < arrlen(s->front); i++) {
        const cli_config *c = &s->config[s->front[i]];
        fprintf(f, "  %9s  %10s %10s  %4d  %9d  ", cli_seconds(c->step.tpot_s), cli_count(c->step.tokens_per_s_device),
                cli_count((double)c->tokens), c->ep, c->redundant);
        if (several) fprintf(f, "%-11s  ", cli_policy_str(c->policy));
        fprintf(f, "%-10s  %-15s  %8.2f  %s%s\n", cli_overlap_str(c->overlap), moe_ep_limit_str(c->limit),
                c->imbalance, cli_bytes(c->memory.total_bytes), s->front[i] == s->best ? "  <-" : "");
    }
}

/* The stages of a configuration. */
static void list_parts(const cli_config *c, cli_bar_list *b)
{
    static const char *const label[5] = {"attention and the rest", "dispatch", "experts", "combine", "shared expert"};
    static const chart_kind kind[5] = {CHART_PLAIN, CHART_GOOD, CHART_HOT, CHART_GOOD, CHART_PLAIN};
    double value[5] = {c->attention_s, c->step.dispatch_s, c->step.compute_s, c->step.combine_s, c->step.shared_s};
    memset(b, 0, sizeof *b);
    for (int i = 0; i < 5; i++) cli_bar(b, value[i], kind[i], cli_strdup(label[i]), cli_strdup(cli_seconds(value[i])));
}

static void put_parts(const cli_sweep *s, FILE *f, const chart_text *t)
{
    cli_bar_list b;
    if (s->best < 0) return;
    list_parts(&s->config[s->best], &b);
    for (int i = 0; i < b.n; i++) b.kind[i] = CHART_PLAIN;
    cli_bars_text(&b, f, t, "Parts of that step, before overlap");
}

void cli_sweep_text(const void *data, FILE *f, const chart_text *t)
{
    const cli_sweep *s = data;
    cli_put_headline(f, t, s->headline, s->reason);
    put_shapes(s, f, t);
    put_front(s, f, t);
    put_parts(s, f, t);
    cli_put_assumed(f, t, s->setup.assumed);
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */

static json_t *config(const cli_config *c)
{
    json_t *o = json_object();
    cli_json_counts(o, "ep", (int64_t)c->ep, "redundant", (int64_t)c->redundant, NULL);
    json_object_set_new(o, "policy", json_string(cli_policy_str(c->policy)));
    json_object_set_new(o, "tokens_per_device", json_integer(c->tokens));
    json_object_set_new(o, "overlap", json_string(cli_overlap_str(c->overlap)));
    json_object_set_new(o, "fits", json_boolean(c->fits));
    json_object_set_new(o, "limit", json_string(moe_ep_limit_str(c->limit)));
    json_object_set_new(o, "memory_bytes", json_real(c->memory.total_bytes));
    cli_json_counts(o, "kv_tokens", (int64_t)c->memory.kv_tokens, "slots_per_device", (int64_t)c->memory.slots,
                    NULL);
    if (!c->fits) return o;
    cli_json_numbers(o, "imbalance", c->imbalance, "batch_kv_tokens", c->batch_kv_tokens,
                     "step_s", c->step.step_s, "tpot_s", c->step.tpot_s,
                     "tokens_per_s_device", c->step.tokens_per_s_device,
                     "tokens_per_s_node", c->step.tokens_per_s_node, "attention_s", c->attention_s,
                     "dispatch_s", c->step.dispatch_s, "compute_s", c->step.compute_s,
                     "combine_s", c->step.combine_s, "shared_s", c->step.shared_s,
                     "balanced_s", c->step.balanced_s, "balanced_step_s", c->step.balanced_step_s, NULL);
    json_object_set_new(o, "pareto", json_boolean(c->pareto));
    return o;
}

/* EP sizes as a list. */
static json_t *sizes(const int32_t *list)
{
    json_t *o = json_array();
    for (ptrdiff_t i = 0; i < arrlen(list); i++) json_array_append_new(o, json_integer(list[i]));
    return o;
}

void cli_sweep_json(const void *data, FILE *f)
{
    const cli_sweep *s = data;
    json_t *root = json_object(), *all = json_array(), *front = json_array(), *untried = sizes(s->uneven);
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", s->headline, "reason", s->reason,
                   "model", s->setup.model.name, "machine", s->setup.machine.name, NULL);
    json_object_set_new(root, "devices", json_integer(s->devices));
    json_object_set_new(root, "ep_tried", sizes(s->ep));
    for (ptrdiff_t i = 0; i < arrlen(s->close); i++) json_array_append_new(untried, json_integer(s->close[i]));
    json_object_set_new(root, "ep_untried", untried);
    json_object_set_new(root, "best", s->best < 0 ? json_null() : config(&s->config[s->best]));
    for (ptrdiff_t i = 0; i < arrlen(s->front); i++)
        json_array_append_new(front, json_integer(s->front[i]));
    for (ptrdiff_t i = 0; i < arrlen(s->config); i++)
        json_array_append_new(all, config(&s->config[i]));
    json_object_set_new(root, "front", front);
    json_object_set_new(root, "configurations", all);
    cli_json_assumed(root, s->setup.assumed);
    cli_json_write(root, f);
}

/* ---- page ------------------------------------------------------------------------------------------------- */

static void put_tiles(const cli_sweep *s, FILE *f)
{
    const cli_config *c;
    char *a, *note;
    if (s->best < 0) return;
    c = &s->config[s->best];
    fputs("<dl class=\"tiles\">\n", f);
    a = cli_format("%d<small> + %d</small>", c->ep, c->redundant);
    note = cli_format("devices share the experts; %d slots each, %d cop%s of the model",
                      c->memory.slots, s->devices / c->ep, s->devices / c->ep == 1 ? "y" : "ies");
    cli_page_tile(f, "EP size, redundant experts", a, NULL, note);
    free(a), free(note);
    cli_tile(f, "Time per token", cli_strdup(cli_seconds(c->step.tpot_s)), NULL,
             cli_format("predicted, %s tokens per device", cli_count((double)c->tokens)));
    a = cli_strdup(cli_count(c->step.tokens_per_s_device));
    note = cli_format("tokens/s; %s on all %d devices",
                      cli_count(c->step.tokens_per_s_device * s->devices), s->devices);
    cli_page_tile(f, "Throughput per device", a, NULL, note);
    free(a), free(note);
    a = cli_strdup(cli_bytes(c->memory.total_bytes));
    note = cli_format("of %s; room for %s cache tokens", cli_bytes(s->setup.machine.memory_bytes),
                      cli_count((double)c->memory.kv_tokens));
    cli_page_tile(f, "Memory per device", a, NULL, note);
    free(a), free(note);
    fputs("</dl>\n", f);
}

static void draw_front(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_sweep *s = data;
    size_t n = (size_t)arrlen(s->config), m = (size_t)arrlen(s->front);
    double *x = cli_alloc(n, sizeof *x), *y = cli_alloc(n, sizeof *y),
           *fx = cli_alloc(m, sizeof *fx), *fy = cli_alloc(m, sizeof *fy), bx[1], by[1];
    const char **label = cli_alloc(m, sizeof *label), *mine[1] = {NULL};
    chart_series q[3];
    chart_lines c;
    int count = 0, series = 2;
    for (size_t i = 0; i < n; i++) {
        if (!s->config[i].fits) continue;
        x[count] = 1e3 * s->config[i].step.tpot_s;
        y[count++] = s->config[i].step.tokens_per_s_device;
    }
    for (size_t i = 0; i < m; i++) {
        const cli_config *p = &s->config[s->front[i]];
        fx[i] = 1e3 * p->step.tpot_s;
        fy[i] = p->step.tokens_per_s_device;
        label[i] = w != CLI_NARROW && m <= 12 && s->front[i] != s->best
                       ? cli_format("EP %d+%d, %d", p->ep, p->redundant, (int)p->tokens)
                       : cli_strdup("");
    }
    q[0] = (chart_series){count, x, y, CHART_PLAIN, 2, NULL};
    q[1] = (chart_series){(int)m, fx, fy, CHART_BEST, 1, label};
    if (s->best >= 0) {
        const cli_config *p = &s->config[s->best];
        bx[0] = 1e3 * p->step.tpot_s;
        by[0] = p->step.tokens_per_s_device;
        mine[0] = cli_format("EP %d+%d, %d tokens", p->ep, p->redundant, (int)p->tokens);
        q[series++] = (chart_series){1, bx, by, CHART_HOT, 2, mine};
    }
    c = cli_lines(id, "Throughput per device against time per token", s->headline,
                  "milliseconds per output token", "tokens per second and device", series, q, 0.0);
    chart_svg_lines(f, &c, width, w == CLI_NARROW ? 300 : 380);
    for (size_t i = 0; i < m; i++) free((void *)(uintptr_t)label[i]);
    free((void *)(uintptr_t)mine[0]);
    free(label);
    free(x);
    free(y);
    free(fx);
    free(fy);
}

static void put_front_figure(const cli_sweep *s, FILE *f)
{
    cli_page_figure(
        f, "What is there to choose from?",
        "Every configuration that fits in memory. On the line nothing else is both faster "
        "per token and cheaper per token; labels are EP size + redundant experts, tokens "
        "per device.");
    cli_page_draw(s, f, draw_front, "front", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_PLAIN, 1, "fits in memory"}, {CHART_BEST, 1, "Pareto front"},
                           {CHART_HOT, 1, s->best >= 0 ? "the answer" : NULL}));
    cli_page_figure_end(f);
}

static void draw_shapes(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_sweep *s = data;
    int *list = shapes_of(s);
    cli_bar_list b;
    memset(&b, 0, sizeof b);
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        const cli_config *q = &s->config[list[i]];
        if (!q->fits) continue;
        cli_bar(&b, q->step.tokens_per_s_device, is_best_shape(s, q) ? CHART_BEST : CHART_PLAIN,
                cli_format("EP %d, %d redundant%s%s", q->ep, q->redundant, arrlen(s->policy) > 1 ? ", " : "",
                           arrlen(s->policy) > 1 ? cli_policy_str(q->policy) : ""),
                cli_format(w == CLI_NARROW ? "%s, %s" : "%s tokens/s, %s per token, %s",
                           cli_count(q->step.tokens_per_s_device), cli_seconds(q->step.tpot_s),
                           moe_ep_limit_str(q->limit)));
    }
    cli_bars_page(&b, f, width, id, "Throughput per device by EP size and redundant experts", s->headline);
    arrfree(list);
}

static void put_shapes_figure(const cli_sweep *s, FILE *f)
{
    int *list = shapes_of(s);
    char *text =
        cli_format("Tokens per second and device at %s tokens per device, with the overlap "
                   "that is fastest for each, and what limits it.",
                   cli_count((double)s->tokens[0]));
    cli_page_figure(f, "Which EP size, how many redundant experts?", text);
    cli_page_draw(s, f, draw_shapes, "shapes", cli_full_width);
    fputs("<ul class=\"plain\">", f);
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        const cli_config *c = &s->config[list[i]];
        char *why;
        if (c->fits) continue;
        why = misfit(s, c);
        fprintf(f, "<li>EP %d %s.", c->ep, why);
        free(why);
    }
    fputs("</ul>", f);
    cli_page_figure_end(f);
    free(text);
    arrfree(list);
}

static void draw_parts(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    cli_bar_list b;
    (void)w;
    list_parts(data, &b);
    cli_bars_page(&b, f, width, id, "Parts of the step before overlap", "Time of each stage, summed over the layers.");
}

static void put_parts_figure(const cli_sweep *s, FILE *f)
{
    const cli_config *c;
    char *text;
    if (s->best < 0) return;
    c = &s->config[s->best];
    text = cli_format("The stages of the recommended configuration, summed over the layers, before "
                      "overlap. With perfect balance the experts would take %s, and the whole step, dispatch and "
                      "combine included, %s instead of %s.",
                      cli_seconds(c->step.balanced_s), cli_seconds(c->step.balanced_step_s),
                      cli_seconds(c->step.step_s));
    cli_page_figure(f, "Where does the time go?", text);
    cli_page_draw(c, f, draw_parts, "parts", cli_full_width);
    cli_page_figure_end(f);
    free(text);
}

static void put_row(const cli_sweep *s, FILE *f, int at)
{
    const cli_config *c = &s->config[at];
    fprintf(f, "<tr%s><th>%d<td>%d", at == s->best ? " class=\"pick\"" : "", c->ep, c->redundant);
    if (arrlen(s->policy) > 1) fprintf(f, "<td>%s", cli_policy_str(c->policy));
    fprintf(f, "<td>%d<td>%s<td>%s<td>%s<td>%s", (int)c->tokens, cli_overlap_str(c->overlap),
            c->fits ? cli_seconds(c->step.tpot_s) : "-", c->fits ? cli_count(c->step.tokens_per_s_device) : "-",
            moe_ep_limit_str(c->limit));
    if (c->fits) fprintf(f, "<td>%.2f", c->imbalance);
    else fputs("<td>-", f);
    fprintf(f, "<td>%s\n", cli_bytes(c->memory.total_bytes));
}

static void put_tables(const cli_sweep *s, FILE *f)
{
    char *columns = cli_format("EP|redundant|%stokens per device|overlap|per token|tokens/s per device|limited by|"
                               "max/mean|memory",
                               arrlen(s->policy) > 1 ? "placed by|" : "");
    cli_page_figure(f, "The Pareto front", "");
    cli_table(f, NULL, columns);
    for (ptrdiff_t i = 0; i < arrlen(s->front); i++) put_row(s, f, s->front[i]);
    cli_table_end(f, 0);
    cli_table(f, "All configurations", columns);
    for (int i = 0; i < (int)arrlen(s->config); i++) put_row(s, f, i);
    cli_table_end(f, 1);
    cli_page_figure_end(f);
    free(columns);
}

void cli_sweep_html(const void *data, FILE *f)
{
    const cli_sweep *s = data;
    cli_page_head head = {"Expert-parallel configuration sweep",
                          s->setup.model.name,
                          s->headline,
                          "",
                          s->state,
                          s->badge,
                          s->reason};
    char *note =
        cli_format("%s on %d devices of %s \xc2\xb7 %d layers \xc2\xb7 %d experts, top-%d "
                   "\xc2\xb7 %s tokens per device \xc2\xb7 context %s",
                   s->setup.model.name, s->devices, s->setup.machine.name,
                   s->setup.model.num_moe_layers, s->setup.model.num_experts, s->setup.model.top_k,
                   cli_count((double)s->tokens[0]), cli_count(s->context));
    cli_page_begin(f, &head);
    put_tiles(s, f);
    cli_page_note(f, note);
    if (arrlen(s->front) > 0) put_front_figure(s, f);
    put_shapes_figure(s, f);
    put_parts_figure(s, f);
    put_tables(s, f);
    cli_page_assumed(f, s->setup.assumed);
    cli_page_end(f,
                 "Times are computed with a roofline for the expert matrices and a "
                 "latency-bandwidth model for dispatch and combine, with constants fitted to "
                 "published tables; never measured. EP 32 + 64 means 32 devices and 64 redundant "
                 "experts per layer.");
    free(note);
}
