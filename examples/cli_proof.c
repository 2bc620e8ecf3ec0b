/* cli_proof.c - one step of the bottleneck layer: who sends to whom, and what each device does when
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_report.h"

#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

/* Ids of one step of the recording that is shown, (T, K) of the bottleneck layer; NULL = it has none. */
static int32_t *step_ids(const cli_report *r, int64_t *T)
{
    const cli_trace *t = &r->trace[r->shown];
    size_t K = (size_t)t->top_k;
    int64_t first;
    int32_t *ids;
    if (!t->ids || t->kept < 1) return NULL;
    if (cli_report_as_recorded(r, t)) {
        int64_t *start = cli_step_starts(t);
        first = start[arrlen(start) - 2];
        *T = arrlast(start) - first;
        arrfree(start);
    } else {
        *T = r->tokens < t->kept ? r->tokens : t->kept;
        first = (t->kept / *T - 1) * *T;
    }
    ids = cli_alloc((size_t)*T * K, sizeof *ids);
    for (int64_t i = 0; i < *T; i++)
        memcpy(ids + (size_t)i * K, t->ids + ((size_t)(first + i) * (size_t)r->L + (size_t)r->hot) * K,
               K * sizeof *ids);
    return ids;
}

static int64_t *rows_per_slot(const cli_report *r, const moe_ep_placement *p, const int64_t *counts)
{
    int64_t *rows = cli_alloc((size_t)p->num_slots, sizeof *rows);
    moe_ep_split_desc even;
    moe_ep_error err;
    memset(&even, 0, sizeof even);
    cli_check(moe_ep_split(&even, p, r->hot, counts, rows, NULL, &err), &err, "split");
    return rows;
}

/* Rows between devices, counted from the ids of one step. */
static void count_traffic(const cli_report *r, const moe_ep_placement *p, const int32_t *ids, int64_t T,
                          int64_t *traffic)
{
    int32_t K = r->trace[r->shown].top_k, *slots = cli_alloc((size_t)T * (size_t)K, sizeof *slots);
    int64_t *counts = cli_alloc((size_t)r->E, sizeof *counts), *rows;
    moe_ep_layer_desc layer = cli_report_layer(r, cli_report_batch(r), r->setup->devices, r->setup->nodes);
    moe_ep_count_mode mode = layer.mode == MOE_EP_A2A_PAIR ? MOE_EP_COUNT_PAIRS : MOE_EP_COUNT_RANKS;
    moe_ep_error err;
    cli_check(moe_ep_expert_loads(ids, T * K, r->E, counts, NULL, &err), &err, "loads");
    rows = rows_per_slot(r, p, counts);
    cli_check(moe_ep_assign_slots(p, r->hot, ids, T * K, rows, slots, NULL, &err), &err, "slots");
    cli_check(moe_ep_traffic(p, slots, T, K, NULL, mode, traffic, NULL, &err), &err, "traffic");
    free(rows);
    free(counts);
    free(slots);
}

/* Without ids: every device sends as much as every other. */
static void expect_traffic(const moe_ep_placement *p, const double *devices, int64_t *traffic)
{
    size_t D = (size_t)p->num_devices;
    for (size_t s = 0; s < D; s++)
        for (size_t d = 0; d < D; d++) traffic[s * D + d] = (int64_t)(devices[d] / (double)D + 0.5);
}

static void make_timeline(const cli_report *r, const moe_ep_placement *p, const double *devices, cli_timeline *out)
{
    size_t D = (size_t)p->num_devices;
    int64_t *counts = cli_alloc((size_t)r->E, sizeof *counts), *rows, T = 0;
    int32_t *ids = step_ids(r, &T);
    moe_ep_layer_desc layer = cli_report_layer(r, cli_report_batch(r), r->setup->devices, r->setup->nodes);
    moe_ep_error err;
    out->traffic = cli_alloc(D * D, sizeof *out->traffic);
    out->device = cli_alloc(D, sizeof *out->device);
    for (int32_t e = 0; e < r->E; e++)
        counts[e] = (int64_t)(r->shown_loads[(size_t)r->hot * (size_t)r->E + (size_t)e] + 0.5);
    rows = rows_per_slot(r, p, counts);
    layer.placement = p;
    cli_check(moe_ep_layer_time(&layer, rows, &out->time, out->device, &err), &err, "layer time");
    if (ids)
        count_traffic(r, p, ids, T, out->traffic);
    else
        expect_traffic(p, devices, out->traffic);
    free(ids);
    free(rows);
    free(counts);
}

void cli_report_proof(cli_report *r)
{
    size_t at = (size_t)r->hot * (size_t)r->setup->devices;
    int one = r->chosen == &r->one;
    make_timeline(r, &r->today, r->today_devices + at, &r->now);
    make_timeline(r, one ? &r->plan_one : &r->plan_copies, (one ? r->one_devices : r->copies_devices) + at, &r->then);
    r->counted_traffic = r->trace[r->shown].ids != NULL;
}

double cli_timeline_wait(const cli_timeline *t, int32_t devices)
{
    double work = 0.0, all = (t->time.dispatch_s + t->time.compute_s + t->time.combine_s) * devices;
    for (int32_t d = 0; d < devices; d++)
        work += t->device[d].dispatch_s + t->device[d].compute_s + t->device[d].combine_s;
    return all > 0.0 ? 1.0 - work / all : 0.0;
}
