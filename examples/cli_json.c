/* cli_json.c - the report as one JSON object
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_report.h"

#include <errno.h>
#include <jansson.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static json_t *vector(const double *v, int32_t n)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) json_array_append_new(list, cli_json_number(v[i]));
    return list;
}

static json_t *matrix(const double *v, int32_t rows, int32_t columns)
{
    json_t *list = json_array();
    for (int32_t r = 0; r < rows; r++)
        json_array_append_new(list, vector(v + (size_t)r * (size_t)columns, columns));
    return list;
}

/* Takes over the text. */
static json_t *json_text(char *text)
{
    json_t *o = json_string(text);
    free(text);
    return o;
}

static json_t *diagnosis(const cli_report *r, const moe_ep_diagnosis *d, int32_t slots)
{
    moe_ep_diagnose_desc limits = cli_report_thresholds(r);
    json_t *o = json_object();
    json_object_set_new(o, "slots", json_integer(slots));
    json_object_set_new(o, "verdict", json_string(moe_ep_verdict_str(d->verdict)));
    json_object_set_new(o, "reason", json_text(cli_reason(&limits, d)));
    json_object_set_new(o, "steps", json_integer(d->steps));
    json_object_set_new(o, "imbalance_before", cli_json_number(d->imbalance_before));
    json_object_set_new(o, "imbalance_after", cli_json_number(d->imbalance_after));
    json_object_set_new(o, "imbalance_bound", cli_json_number(d->imbalance_bound));
    json_object_set_new(o, "imbalance_chance", cli_json_number(cli_chance_number(d)));
    json_object_set_new(o, "rows_before", cli_json_number(d->before_rows));
    json_object_set_new(o, "rows_after", cli_json_number(d->after_rows));
    json_object_set_new(o, "rows_balanced", cli_json_number(d->mean_rows));
    json_object_set_new(o, "before_s", cli_json_number(d->before_s));
    json_object_set_new(o, "after_s", cli_json_number(d->after_s));
    json_object_set_new(o, "balanced_s", cli_json_number(d->balanced_s));
    json_object_set_new(o, "gain", cli_json_number(d->gain));
    json_object_set_new(o, "gain_sd", cli_json_number(cli_gain_sd_number(d)));
    json_object_set_new(o, "improved", cli_json_number(d->improved));
    json_object_set_new(o, "moves", json_integer(d->moves));
    json_object_set_new(o, "move_bytes", cli_json_number(d->move_bytes));
    json_object_set_new(o, "move_s", cli_json_number(d->move_s));
    json_object_set_new(o, "break_even_steps", cli_json_number(d->break_even_steps));
    return o;
}

static json_t *inputs(const cli_report *r)
{
    json_t *list = json_array();
    for (int i = 0; i < r->traces; i++) {
        const cli_trace *t = &r->trace[i];
        const cli_shift_row *s = &r->shift[i];
        json_t *o = json_object();
        cli_json_words(o, "name", t->name, "path", t->path, "role", i == 0 ? "planned on" : "judged on", NULL);
        cli_json_counts(o, "tokens", (int64_t)t->tokens, "skipped", (int64_t)t->skipped, NULL);
        json_object_set_new(o, "has_ids", json_boolean(t->ids != NULL));
        cli_json_counts(o, "steps", (int64_t)t->steps, "steps_left_out", t->idle, NULL);
        json_object_set_new(o, "steps_as_recorded", json_boolean(cli_report_as_recorded(r, t)));
        cli_json_numbers(o, "correlation", s->correlation, "correlation_lowest", s->lowest, NULL);
        cli_json_counts(o, "correlation_lowest_layer", (int64_t)s->lowest_layer, NULL);
        cli_json_numbers(o, "same_hottest", s->overlap, "imbalance_today", s->today, "imbalance_planned", s->planned,
                         "imbalance_own_plan", s->own, "gain_own_plan", s->own_gain, NULL);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *layers(const cli_report *r)
{
    json_t *list = json_array();
    for (int32_t l = 0; l < r->L; l++) {
        const cli_layer_row *row = &r->layer[l];
        json_t *o = json_object();
        cli_json_counts(o, "layer", (int64_t)row->number, NULL);
        cli_json_numbers(o, "expert_imbalance", row->expert_imbalance, "expert_imbalance_chance_p95", row->chance,
                         "imbalance_today", row->before, "imbalance_no_copies", row->one_copy, "imbalance_copies",
                         row->copies, "imbalance_bound", row->bound, NULL);
        cli_json_counts(o, "busiest_device", (int64_t)row->hot_device, "hottest_expert", (int64_t)row->hot_expert,
                        "unused_experts", (int64_t)row->dead, NULL);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *lists(const cli_report *r)
{
    json_t *o = json_object(), *list = json_array();
    for (ptrdiff_t i = 0; i < arrlen(r->strategy); i++) {
        const cli_strategy *s = &r->strategy[i];
        json_array_append_new(list, json_pack("{s:s,s:i,s:o,s:o,s:o}", "name", s->name, "slots",
                                              (int)s->slots, "imbalance", cli_json_number(s->imbalance),
                                              "step_s", cli_json_number(s->step_s), "tokens_per_s",
                                              cli_json_number(s->tokens_per_s)));
    }
    json_object_set_new(o, "strategies", list);
    list = json_array();
    for (ptrdiff_t i = 0; i < arrlen(r->what_if); i++) {
        const cli_what_if *w = &r->what_if[i];
        json_array_append_new(list, json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:s}", "case", w->name,
                                              "imbalance_before", cli_json_number(w->imbalance_before),
                                              "imbalance_after", cli_json_number(w->imbalance_after),
                                              "before_s", cli_json_number(w->before_s), "after_s",
                                              cli_json_number(w->after_s), "gain", cli_json_number(w->gain),
                                              "verdict", moe_ep_verdict_str(w->verdict)));
    }
    json_object_set_new(o, "what_if", list);
    list = json_array();
    for (int32_t i = 0; i < r->curve_points; i++)
        json_array_append_new(list, json_pack("{s:i,s:o,s:o,s:o}", "copies", (int)r->curve[i].extra,
                                              "worst", cli_json_number(r->curve[i].worst), "mean",
                                              cli_json_number(r->curve[i].mean), "bytes",
                                              cli_json_number(r->curve[i].bytes)));
    json_object_set_new(o, "copies", list);
    list = json_array();
    for (int i = 0; i < r->sweep; i++)
        json_array_append_new(
            list, json_pack("{s:o,s:o,s:o}", "tokens", cli_json_number(r->sweep_tokens[i]), "chance",
                            cli_json_number(r->sweep_chance[i] + 1.0), "recorded",
                            r->sweep_own[i] > 0.0 ? cli_json_number(r->sweep_own[i] + 1.0) : json_null()));
    json_object_set_new(o, "batch_sweep", list);
    list = json_array();
    for (ptrdiff_t i = 0; i < arrlen(r->hint); i++)
        json_array_append_new(list, json_string(r->hint[i]));
    json_object_set_new(o, "hints", list);
    return o;
}

/* One step of the bottleneck layer. */
static json_t *timeline(const cli_report *r, const cli_timeline *t)
{
    int32_t D = r->setup->devices;
    json_t *o = json_object(), *rows = json_array();
    for (int32_t s = 0; s < D; s++) {
        json_t *row = json_array();
        for (int32_t d = 0; d < D; d++)
            json_array_append_new(row, json_integer(t->traffic[(size_t)s * (size_t)D + (size_t)d]));
        json_array_append_new(rows, row);
    }
    json_object_set_new(o, "dispatch_s", cli_json_number(t->time.dispatch_s));
    json_object_set_new(o, "compute_s", cli_json_number(t->time.compute_s));
    json_object_set_new(o, "combine_s", cli_json_number(t->time.combine_s));
    json_object_set_new(o, "slowest_device", json_integer(t->time.slowest_device));
    json_object_set_new(o, "waiting", cli_json_number(cli_timeline_wait(t, D)));
    json_object_set_new(o, "traffic", rows);
    return o;
}

void cli_report_json(const cli_report *r, FILE *f)
{
    const cli_setup *s = r->setup;
    const moe_ep_diagnosis *d = r->chosen;
    moe_ep_diagnose_desc limits = cli_report_thresholds(r);
    json_t *root = json_object(), *more = lists(r);
    json_object_set_new(root, "moe_ep", json_string(moe_ep_version()));
    json_object_set_new(root, "headline", json_string(r->headline));
    json_object_set_new(root, "verdict", json_string(moe_ep_verdict_str(d->verdict)));
    json_object_set_new(root, "provisional", json_boolean(r->self_judged));
    json_object_set_new(root, "recommend", json_boolean(r->recommend));
    json_object_set_new(root, "reason", json_text(cli_reason(&limits, d)));
    json_object_set_new(root, "bottleneck",
                        json_pack("{s:i,s:i,s:o,s:o,s:o}", "device", (int)d->hot_device, "layer",
                                  (int)r->layer[r->hot].number, "imbalance",
                                  cli_json_number(d->hot_imbalance), "share_of_steps",
                                  cli_json_number(d->hot_share), "times_its_share", cli_json_number(d->hot_own)));
    json_object_set_new(root, "regime", json_string(moe_ep_regime_str(r->regime)));
    json_object_set_new(root, "efficiency", cli_json_number(1.0 / d->imbalance_before));
    json_object_set_new(root, "setup",
                        json_pack("{s:i,s:i,s:i,s:i,s:i,s:i,s:I,s:s,s:s,s:s,s:s}", "devices",
                                  (int)s->devices, "slots", (int)r->slots, "nodes", (int)s->nodes,
                                  "layers", (int)r->L, "experts", (int)r->E, "top_k", (int)r->K,
                                  "tokens_per_step", (json_int_t)cli_report_batch(r), "model", s->model.name,
                                  "machine", s->machine.name, "kernels", cli_report_kernels(r),
                                  "layers_left_out", r->left_out));
    json_object_set_new(root, "no_copies", diagnosis(r, &r->one, r->E));
    json_object_set_new(root, "copies", diagnosis(r, &r->copies, r->slots));
    json_object_set_new(root, "chosen", json_string(d == &r->one ? "no_copies" : "copies"));
    json_object_set_new(root, "copies_needed",
                        r->fewest_copies < 0 ? json_null() : json_integer(r->fewest_copies));
    json_object_set_new(root, "inputs", inputs(r));
    json_object_set_new(root, "equal_recordings", cli_json_names(r->trace + r->traces, r->equals));
    json_object_set_new(root, "shown_recording", json_string(r->trace[r->shown].name));
    json_object_set_new(root, "layers", layers(r));
    json_object_set_new(root, "expert_loads", matrix(r->shown_loads, r->L, r->E));
    json_object_set_new(root, "device_loads_today", matrix(r->today_devices, r->L, s->devices));
    json_object_set_new(root, "device_loads_no_copies", matrix(r->one_devices, r->L, s->devices));
    json_object_set_new(root, "device_loads_copies", matrix(r->copies_devices, r->L, s->devices));
    json_object_set_new(root, "traffic_counted", json_boolean(r->counted_traffic));
    json_object_set_new(root, "hot_layer_today", timeline(r, &r->now));
    json_object_set_new(root, "hot_layer_planned", timeline(r, &r->then));
    json_object_set_new(root, "curves", more);
    cli_json_assumed(root, s->assumed);
    if (json_dumpf(root, f, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) != 0)
        cli_die(CLI_INTERNAL, "cannot write the JSON report: %s", strerror(errno));
    fputc('\n', f);
    json_decref(root);
}
