/* cli_simulate_out.c - the answer of moe-ep simulate as log, CSV, text, JSON and page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_simulate.h"

#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_STEPS = 6 };

/* ---- steps ---------------------------------------------------------------------------------------------- */

void cli_simulate_log(const cli_simulate *s, const cli_step_row *r, int64_t number, FILE *f)
{
    (void)s;
    fprintf(f,
            "step=%-5lld batch=%-3d prompt_t=%.0f tok/s decode_t=%.0f tok/s npu_mem=%.1f GB "
            "time=%.2f ms max/mean=%.2f hot=%d\n",
            (long long)number, r->batch, (double)r->prompt / r->length_s,
            (double)r->decode / r->length_s, 1e-9 * r->memory_bytes, 1e3 * r->length_s,
            r->imbalance, r->busiest);
}

void cli_simulate_csv(const cli_simulate *s, FILE *f)
{
    fputs("step,start_s,length_s,batch,waiting,prompt_tokens,decode_tokens,attention_s,dispatch_s,"
          "experts_s,combine_s,max_rows,imbalance,busiest_device,memory_bytes\n",
          f);
    for (ptrdiff_t i = 0; i < arrlen(s->row); i++) {
        const cli_step_row *r = &s->row[i];
        fprintf(f, "%td,%.9f,%.9f,%d,%d,%lld,%lld,%.9f,%.9f,%.9f,%.9f,%lld,%.6f,%d,%.0f\n", i + 1,
                r->start_s, r->length_s, r->batch, r->waiting, (long long)r->prompt,
                (long long)r->decode, r->attention_s, r->dispatch_s, r->compute_s, r->combine_s,
                (long long)r->max_rows, r->imbalance, r->busiest, r->memory_bytes);
    }
}

typedef struct parts {
    double value[4];
} parts;
static const char *const part_name[4] = {"attention", "dispatch", "experts", "combine"};

static parts parts_of(const cli_simulate *s)
{
    parts p;
    memset(&p, 0, sizeof p);
    for (ptrdiff_t i = 0; i < arrlen(s->row); i++) {
        p.value[0] += s->row[i].attention_s;
        p.value[1] += s->row[i].dispatch_s;
        p.value[2] += s->row[i].compute_s;
        p.value[3] += s->row[i].combine_s;
    }
    return p;
}

/* ---- text ---------------------------------------------------------------------------------------------- */

static void put_line(const cli_simulate *s, FILE *f, const chart_text *t, const char *name,
                     const double *v, const char *unit)
{
    double top = 0.0;
    for (int b = 0; b < s->bins; b++) top = v[b] > top ? v[b] : top;
    fprintf(f, "  %-12s ", name);
    chart_text_spark(f, t, s->bins, v);
    fprintf(f, "  up to %s %s\n", cli_count(top), unit);
}

static void put_time(const cli_simulate *s, FILE *f, const chart_text *t)
{
    char *title = cli_format("Over %s", cli_seconds(s->end_s));
    cli_put_title(f, t, title);
    put_line(s, f, t, "prompt", s->bin_prompt, "tokens/s");
    put_line(s, f, t, "decode", s->bin_decode, "tokens/s");
    put_line(s, f, t, "batch", s->bin_batch, "requests");
    free(title);
}

static void list_parts(const parts *p, cli_bar_list *b)
{
    static const chart_kind kind[4] = {CHART_PLAIN, CHART_GOOD, CHART_HOT, CHART_GOOD};
    memset(b, 0, sizeof *b);
    for (int i = 0; i < 4; i++)
        cli_bar(b, p->value[i], kind[i], cli_strdup(part_name[i]), cli_strdup(cli_seconds(p->value[i])));
}

static void put_parts(const cli_simulate *s, FILE *f, const chart_text *t)
{
    parts p = parts_of(s);
    cli_bar_list b;
    list_parts(&p, &b);
    for (int i = 0; i < b.n; i++) b.kind[i] = CHART_PLAIN;
    cli_bars_text(&b, f, t, "Where the time goes");
}

static void put_steps(const cli_simulate *s, FILE *f, const chart_text *t)
{
    ptrdiff_t n = arrlen(s->row);
    cli_put_title(f, t, "First and last steps (all with --log or --csv)");
    for (ptrdiff_t i = 0; i < n; i++) {
        if (i >= SHOWN_STEPS && i < n - SHOWN_STEPS / 2) continue;
        fputs("  ", f);
        cli_simulate_log(s, &s->row[i], i + 1, f);
    }
}

void cli_simulate_text(const void *data, FILE *f, const chart_text *t)
{
    const cli_simulate *s = data;
    cli_put_headline(f, t, s->headline, s->reason);
    put_time(s, f, t);
    put_parts(s, f, t);
    put_steps(s, f, t);
    cli_put_assumed(f, t, s->setup.assumed);
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */

void cli_simulate_json(const void *data, FILE *f)
{
    const cli_simulate *s = data;
    parts p = parts_of(s);
    json_t *root = json_object(), *spent = json_object();
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", s->headline, "model", s->setup.model.name,
                   "machine", s->setup.machine.name, "policy", s->policy, NULL);
    cli_json_counts(root, "tp", (int64_t)s->cluster.tp, "dp", (int64_t)s->cluster.dp, "ep", (int64_t)s->cluster.ep,
                    "requests", (int64_t)arrlen(s->request), "steps", (int64_t)arrlen(s->row), NULL);
    cli_json_numbers(root, "seconds", s->end_s, "prompt_tokens_per_s", s->prompt_per_s,
                     "decode_tokens_per_s", s->decode_per_s, "ttft_s", s->ttft_s, "ttft_p95_s", s->ttft95_s,
                     "tpot_s", s->tpot_s, "tpot_p95_s", s->tpot95_s, "imbalance", s->imbalance,
                     "expert_bytes_per_device", s->memory.routed_bytes, "memory_bytes", s->memory.total_bytes,
                     "peak_bytes", s->peak_bytes, "cache_tokens", s->kv_capacity, NULL);
    for (int i = 0; i < 4; i++) json_object_set_new(spent, part_name[i], json_real(p.value[i]));
    json_object_set_new(root, "spent_s", spent);
    cli_json_assumed(root, s->setup.assumed);
    cli_json_write(root, f);
}

/* ---- page ------------------------------------------------------------------------------------------------- */

static void put_tiles(const cli_simulate *s, FILE *f)
{
    char *a = cli_strdup(cli_count(s->decode_per_s)), *note;
    fputs("<dl class=\"tiles\">\n", f);
    note = cli_format("tokens/s out, and %s read", cli_count(s->prompt_per_s));
    cli_page_tile(f, "Throughput", a, NULL, note);
    free(a), free(note);
    a = cli_strdup(cli_seconds(s->ttft_s));
    note = cli_format("on average; 19 of 20 requests within %s", cli_seconds(s->ttft95_s));
    cli_page_tile(f, "First token", a, NULL, note);
    free(a), free(note);
    a = cli_strdup(s->tpot_s > 0.0 ? cli_seconds(s->tpot_s) : "none");
    note = s->tpot_s > 0.0 ? cli_format("on average; 19 of 20 requests within %s", cli_seconds(s->tpot95_s))
                           : cli_strdup("every request makes a single token");
    cli_page_tile(f, "Time per further token", a, NULL, note);
    free(a), free(note);
    a = cli_strdup(cli_bytes(s->peak_bytes));
    note = cli_format("at most, of %s on each device; experts take %s",
                      cli_bytes(s->setup.machine.memory_bytes), cli_bytes(s->memory.routed_bytes));
    cli_page_tile(f, "Memory", a, NULL, note);
    free(a), free(note);
    fputs("</dl>\n", f);
}

typedef struct view {
    const cli_simulate *s;
    const double *first, *second;
    const char *title, *y_title;
    double line;
} view;

static void draw_time(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const view *v = data;
    chart_series q[2] = {{v->s->bins, v->s->bin_s, v->first, CHART_HOT, 0, NULL},
                         {v->s->bins, v->s->bin_s, v->second, CHART_BEST, 0, NULL}};
    chart_lines c;
    c = cli_lines(id, v->title, v->s->headline, "seconds", v->y_title,
                  v->second ? 2 : 1, q, v->line);
    chart_svg_lines(f, &c, width, w == CLI_NARROW ? 240 : 260);
}

static void put_time_figures(const cli_simulate *s, FILE *f)
{
    view tokens = {s,
                   s->bin_prompt,
                   s->bin_decode,
                   "Tokens per second over time",
                   "tokens per second",
                   0.0},
         batch = {s, s->bin_batch, NULL, "Requests in a step over time", "requests", 0.0},
         balance = {s, s->bin_imbalance, NULL, "Imbalance over time", "max/mean over devices", 1.0};
    cli_page_figure(f, "How fast is it, when?",
                    "Prompts fill the steps first; then one token of every "
                    "request comes out of each.");
    cli_page_draw(&tokens, f, draw_time, "tokens", cli_full_width);
    cli_legend(f, CLI_KEYS({CHART_HOT, 2, "prompt tokens read"}, {CHART_BEST, 2, "further tokens made"}));
    cli_page_figure_end(f);
    fputs("<div class=\"two\">", f);
    cli_page_figure(f, "How full are the steps?", "Requests in a step.");
    cli_page_draw(&batch, f, draw_time, "batch", cli_half_width);
    cli_page_figure_end(f);
    cli_page_figure(
        f, "How uneven are the devices?",
        "Rows of the busiest over the mean device; the fewer tokens in a step, the more.");
    cli_page_draw(&balance, f, draw_time, "balance", cli_half_width);
    cli_page_figure_end(f);
    fputs("</div>", f);
}

static void draw_parts(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    cli_bar_list b;
    (void)w;
    list_parts(data, &b);
    cli_bars_page(&b, f, width, id, "Time by stage", "Seconds of each stage, summed over the steps.");
}

void cli_simulate_html(const void *data, FILE *f)
{
    const cli_simulate *s = data;
    parts p = parts_of(s);
    const char *path = cli_keep(cli_printable(s->cluster.path));
    cli_page_head head = {"Simulation of a cluster file",
                          path,
                          s->headline,
                          "",
                          "yes",
                          "Predicted",
                          s->reason};
    char *note = cli_format("%s \xc2\xb7 %s on %d x %s \xc2\xb7 TP %d, EP %d \xc2\xb7 routing %s",
                            path, s->setup.model.name, s->cluster.devices,
                            s->setup.machine.name, s->cluster.tp, s->cluster.ep, s->policy);
    cli_page_begin(f, &head);
    put_tiles(s, f);
    cli_page_note(f, note);
    if (s->bins > 1) put_time_figures(s, f); /* a single step is no line */
    cli_page_figure(f, "Where does the time go?", "Every stage, summed over all steps.");
    cli_page_draw(&p, f, draw_parts, "parts", cli_full_width);
    cli_page_figure_end(f);
    cli_page_assumed(f, s->setup.assumed);
    cli_page_end(
        f, "Times are computed with a roofline for the matrices and a latency-bandwidth model "
           "for the links, with the memory and link figures of the cluster file; never "
           "measured.");
    free(note);
}
