/* tests/digest.h - one number per section that stands for the bits of many results on fixed, seeded inputs.
 * SPDX-License-Identifier: MIT
 * digest_inputs fills the shared, from then on constant inputs; digest_section(s, in) may run in many threads. */
#ifndef TESTS_DIGEST_H
#define TESTS_DIGEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_ep.h"

enum { DIGEST_E = 32, DIGEST_K = 4, DIGEST_T = 64, DIGEST_D = 8, DIGEST_P = 40, DIGEST_L = 3, DIGEST_H = 24,
       DIGEST_I = 16, DIGEST_SECTIONS = 13 };

typedef struct digest_input {
    float logits[DIGEST_T * DIGEST_E], bias[DIGEST_E], x[DIGEST_T * DIGEST_H], weights[DIGEST_T * DIGEST_K];
    float gate[DIGEST_E * DIGEST_I * DIGEST_H], up[DIGEST_E * DIGEST_I * DIGEST_H];
    float down[DIGEST_E * DIGEST_H * DIGEST_I];
    int32_t ids[DIGEST_T * DIGEST_K];
    int64_t counts[DIGEST_E];
    double loads[2 * DIGEST_L * DIGEST_E];
    /* A layer of small whole numbers, every sum of which float holds exactly, by type of its weights. */
    float whole_x[DIGEST_T * DIGEST_H], whole_scale[DIGEST_E * DIGEST_H];
    float whole_f32[2][DIGEST_E * DIGEST_I * DIGEST_H];
    uint16_t whole_bf16[2][DIGEST_E * DIGEST_I * DIGEST_H], whole_f16[2][DIGEST_E * DIGEST_I * DIGEST_H];
    int8_t whole_i8[2][DIGEST_E * DIGEST_I * DIGEST_H];
} digest_input;

static void digest_inputs(digest_input *in)
{
    moe_ep_rng r = moe_ep_rng_seed(20240607);
    int i, k;
    memset(in, 0, sizeof *in);
    for (i = 0; i < DIGEST_T * DIGEST_E; i++) in->logits[i] = (float)((int)moe_ep_rng_below(&r, 8001) - 4000) / 1024.0f;
    for (i = 0; i < DIGEST_E; i++) in->bias[i] = (float)((int)moe_ep_rng_below(&r, 201) - 100) / 512.0f;
    for (i = 0; i < DIGEST_T * DIGEST_H; i++) in->x[i] = (float)((int)moe_ep_rng_below(&r, 2001) - 1000) / 1024.0f;
    for (i = 0; i < DIGEST_E * DIGEST_I * DIGEST_H; i++) {
        in->gate[i] = (float)((int)moe_ep_rng_below(&r, 2001) - 1000) / 4096.0f;
        in->up[i] = (float)((int)moe_ep_rng_below(&r, 2001) - 1000) / 4096.0f;
        in->down[i] = (float)((int)moe_ep_rng_below(&r, 2001) - 1000) / 4096.0f;
    }
    for (i = 0; i < DIGEST_T; i++)
        for (k = 0; k < DIGEST_K; k++) {
            uint64_t a = moe_ep_rng_below(&r, DIGEST_E), b = moe_ep_rng_below(&r, DIGEST_E);
            int32_t first = k == 0 ? (int32_t)(a * b / DIGEST_E) : in->ids[i * DIGEST_K];
            in->ids[i * DIGEST_K + k] = (first + k * (1 + i % 3)) % DIGEST_E;
            in->weights[i * DIGEST_K + k] = (float)(1 + (int)moe_ep_rng_below(&r, 64)) / 128.0f;
        }
    (void)moe_ep_expert_loads(in->ids, DIGEST_T * DIGEST_K, DIGEST_E, in->counts, NULL, NULL);
    for (i = 0; i < 2 * DIGEST_L * DIGEST_E; i++) {
        double v = (double)moe_ep_rng_below(&r, 1000);
        in->loads[i] = v * v / 64.0;
    }
    for (i = 0; i < DIGEST_T * DIGEST_H; i++) in->whole_x[i] = (float)((int)moe_ep_rng_below(&r, 5) - 2);
    for (i = 0; i < DIGEST_E * DIGEST_H; i++) in->whole_scale[i] = 1;
    for (k = 0; k < 2; k++)
        for (i = 0; i < DIGEST_E * DIGEST_I * DIGEST_H; i++) {
            int v = (int)moe_ep_rng_below(&r, 3) - 1;
            in->whole_f32[k][i] = (float)v;
            in->whole_bf16[k][i] = v < 0 ? 0xbf80 : v > 0 ? 0x3f80 : 0;
            in->whole_f16[k][i] = v < 0 ? 0xbc00 : v > 0 ? 0x3c00 : 0;
            in->whole_i8[k][i] = (int8_t)v;
        }
}

typedef struct digest_hash {
    uint64_t h;
} digest_hash;

/* Bytes in the order of their value, so that little- and big-endian machines agree. */
static void digest_u64(digest_hash *d, uint64_t v)
{
    int i;
    for (i = 0; i < 8; i++) d->h = (d->h ^ (v >> (8 * i) & 255u)) * UINT64_C(0x100000001b3);
}
static void digest_i32(digest_hash *d, const int32_t *v, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) digest_u64(d, (uint64_t)(int64_t)v[i]);
}
static void digest_i64(digest_hash *d, const int64_t *v, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) digest_u64(d, (uint64_t)v[i]);
}
static void digest_double(digest_hash *d, const double *v, int64_t n)
{
    int64_t i;
    uint64_t bits;
    for (i = 0; i < n; i++) {
        memcpy(&bits, &v[i], sizeof bits);
        digest_u64(d, bits);
    }
}
static void digest_float(digest_hash *d, const float *v, int64_t n)
{
    int64_t i;
    uint32_t bits;
    for (i = 0; i < n; i++) {
        memcpy(&bits, &v[i], sizeof bits);
        digest_u64(d, bits);
    }
}

static void digest_route(digest_hash *h, const digest_input *in)
{
    int32_t ids[DIGEST_T * DIGEST_K], i;
    float w[DIGEST_T * DIGEST_K], scores[DIGEST_T * DIGEST_E];
    for (i = 0; i < moe_ep_router_count(); i++) {
        moe_ep_router r;
        if (moe_ep_router_by_name(moe_ep_router_name(i), DIGEST_E, DIGEST_K, &r, NULL) != MOE_EP_OK) continue;
        r.select_bias = in->bias;
        memset(w, 0, sizeof w);
        if (moe_ep_route(&r, in->logits, DIGEST_T, NULL, ids, w, NULL) != MOE_EP_OK) continue;
        digest_i32(h, ids, DIGEST_T * DIGEST_K);
        digest_float(h, w, DIGEST_T * DIGEST_K);
    }
    if (moe_ep_sinkhorn(in->logits, DIGEST_T, DIGEST_E, 1e-4, 50, scores, NULL, NULL, NULL) == MOE_EP_OK)
        digest_float(h, scores, DIGEST_T * DIGEST_E);
    if (moe_ep_auction(in->logits, DIGEST_T, DIGEST_E, ids, NULL, NULL) == MOE_EP_OK) digest_i32(h, ids, DIGEST_T);
}

static void digest_loads(digest_hash *h, const digest_input *in)
{
    int64_t counts[DIGEST_E * DIGEST_E], skipped;
    (void)moe_ep_expert_loads(in->ids, DIGEST_T * DIGEST_K, DIGEST_E, counts, &skipped, NULL);
    digest_i64(h, counts, DIGEST_E);
    (void)moe_ep_coactivation(in->ids, DIGEST_T, DIGEST_K, DIGEST_E, counts, &skipped, NULL);
    digest_i64(h, counts, DIGEST_E * DIGEST_E);
    (void)moe_ep_rank_loads(in->ids, DIGEST_T, DIGEST_K, DIGEST_E, NULL, DIGEST_D, counts, &skipped, NULL);
    digest_i64(h, counts, DIGEST_D * DIGEST_E);
    (void)moe_ep_loads_by_device(in->counts, DIGEST_E, NULL, DIGEST_D, counts, NULL);
    digest_i64(h, counts, DIGEST_D);
}

static void digest_balance(digest_hash *h, const digest_input *in)
{
    moe_ep_balance_result b;
    moe_ep_chance_result c;
    double curve[DIGEST_E];
    if (moe_ep_balance_d(in->loads, DIGEST_E, &b, NULL, NULL) == MOE_EP_OK) {
        double v[6] = {b.imbalance, b.gini, b.jain, b.hhi, b.p95, b.std};
        digest_double(h, v, 6);
    }
    if (moe_ep_chance(DIGEST_T, DIGEST_K, DIGEST_E, &c, NULL) == MOE_EP_OK) digest_double(h, &c.max_over_mean, 1);
    if (moe_ep_coverage(in->loads, DIGEST_E, curve, NULL) == MOE_EP_OK) digest_double(h, curve, DIGEST_E);
}

static void digest_capacity(digest_hash *h, const digest_input *in)
{
    uint8_t keep[DIGEST_T * DIGEST_K];
    int64_t slot[DIGEST_T * DIGEST_K], position[DIGEST_T * DIGEST_K];
    float after[DIGEST_T * DIGEST_K];
    int k, i;
    for (k = 0; k < 4; k++) {
        moe_ep_drop_policy p = k == 0 ? moe_ep_drop_switch(9) : k == 1 ? moe_ep_drop_gshard(9)
                             : k == 2 ? moe_ep_drop_megatron_probs(9) : moe_ep_drop_tutel(9, 1);
        if (moe_ep_drop(&p, in->ids, in->weights, DIGEST_T, DIGEST_K, DIGEST_E, keep, slot, position, after, NULL, NULL,
                        NULL) != MOE_EP_OK) continue;
        for (i = 0; i < DIGEST_T * DIGEST_K; i++) digest_u64(h, keep[i]);
        digest_i64(h, slot, DIGEST_T * DIGEST_K);
        digest_i64(h, position, DIGEST_T * DIGEST_K);
        digest_float(h, after, DIGEST_T * DIGEST_K);
    }
}

/* The placement of planner k in memory of its own; NULL when it did not work. */
static void *digest_plan(const digest_input *in, int k, moe_ep_placement *p, moe_ep_plan_result *result)
{
    moe_ep_place_desc d;
    size_t bytes;
    void *memory;
    moe_ep_status s;
    memset(&d, 0, sizeof d);
    d.num_layers = DIGEST_L;
    d.num_experts = DIGEST_E;
    d.loads = in->loads;
    d.shape.num_devices = DIGEST_D;
    d.shape.num_nodes = 2;
    d.shape.num_slots = DIGEST_P;
    bytes = moe_ep_placement_bytes(DIGEST_L, DIGEST_E, &d.shape);
    memory = malloc(bytes);
    if (!memory) return NULL;
    s = moe_ep_placement_init(p, DIGEST_L, DIGEST_E, &d.shape, memory, bytes, NULL);
    s = s != MOE_EP_OK ? s
      : k == 0 ? moe_ep_place_round_robin(&d, p, result, NULL, NULL)
      : k == 1 ? moe_ep_place_lpt(&d, p, result, NULL, NULL)
      : k == 2 ? moe_ep_place_eplb(&d, p, result, NULL, NULL)
      : k == 3 ? moe_ep_place_trtllm(&d, p, result, NULL, NULL) : moe_ep_best_placement(&d, p, result, NULL, NULL);
    if (s == MOE_EP_OK) return memory;
    free(memory);
    return NULL;
}

static void digest_place(digest_hash *h, const digest_input *in)
{
    moe_ep_placement p;
    moe_ep_plan_result r[DIGEST_L];
    int k, l;
    for (k = 0; k < 5; k++) {
        void *memory = digest_plan(in, k, &p, r);
        if (!memory) continue;
        digest_i32(h, p.slot_expert, DIGEST_L * DIGEST_P);
        for (l = 0; l < DIGEST_L; l++) digest_double(h, &r[l].max, 1);
        free(memory);
    }
}

static void digest_split(digest_hash *h, const digest_input *in)
{
    moe_ep_placement p;
    int64_t rows[DIGEST_P];
    int32_t slots[DIGEST_T * DIGEST_K];
    int k;
    void *memory = digest_plan(in, 2, &p, NULL);
    for (k = 0; memory && k <= (int)MOE_EP_SPLIT_EXACT; k++) {
        moe_ep_split_desc d;
        memset(&d, 0, sizeof d);
        d.policy = (moe_ep_split_policy)k;
        d.seed = 7;
        if (moe_ep_split(&d, &p, 1, in->counts, rows, NULL, NULL) != MOE_EP_OK) continue;
        digest_i64(h, rows, DIGEST_P);
        if (moe_ep_assign_slots(&p, 1, in->ids, DIGEST_T * DIGEST_K, rows, slots, NULL, NULL) == MOE_EP_OK)
            digest_i32(h, slots, DIGEST_T * DIGEST_K);
    }
    free(memory);
}

static void digest_dispatch(digest_hash *h, const digest_input *in)
{
    enum { N = DIGEST_T * DIGEST_K };
    int64_t offsets[DIGEST_E + 1], padded;
    int32_t a[N], b[N], sorted[N + DIGEST_E * 16], blocks[N + DIGEST_E];
    float rows[N * DIGEST_H], y[DIGEST_T * DIGEST_H];
    moe_ep_align_desc d;
    (void)moe_ep_permute(in->ids, N, DIGEST_E, offsets, a, b, NULL);
    digest_i64(h, offsets, DIGEST_E + 1);
    digest_i32(h, a, N);
    digest_i32(h, b, N);
    (void)moe_ep_gather(in->x, DIGEST_T, DIGEST_H, DIGEST_K, a, N, rows, NULL);
    (void)moe_ep_combine(rows, N, b, in->weights, DIGEST_T, DIGEST_K, DIGEST_H, y, NULL);
    digest_float(h, y, DIGEST_T * DIGEST_H);
    memset(&d, 0, sizeof d);
    d.num_experts = DIGEST_E;
    d.block_size = 16;
    memset(sorted, 0, sizeof sorted);
    if (moe_ep_align_block(&d, in->ids, N, sorted, blocks, &padded, NULL, NULL) == MOE_EP_OK)
        digest_i32(h, sorted, padded);
}

static void digest_cost(digest_hash *h, const digest_input *in)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine machine = moe_ep_machine_h800();
    moe_ep_layer_desc d;
    moe_ep_time_result r;
    moe_ep_params_result q;
    double v[4];
    m.num_experts = DIGEST_E;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.machine = &machine;
    d.num_devices = DIGEST_D;
    d.tokens = DIGEST_T / DIGEST_D;
    if (moe_ep_layer_time(&d, in->counts, &r, NULL, NULL) == MOE_EP_OK) {
        v[0] = r.dispatch_s;
        v[1] = r.compute_s;
        v[2] = r.combine_s;
        v[3] = r.total_s;
        digest_double(h, v, 4);
    }
    if (moe_ep_params(&m, &q, NULL) == MOE_EP_OK) digest_u64(h, (uint64_t)q.total);
    digest_u64(h, (uint64_t)moe_ep_step_time(in->counts, DIGEST_E, NULL, DIGEST_D, NULL));
}

static moe_ep_weights digest_weights(const digest_input *in)
{
    moe_ep_weights w;
    memset(&w, 0, sizeof w);
    w.num_experts = DIGEST_E;
    w.hidden = DIGEST_H;
    w.inter = DIGEST_I;
    w.gate = in->gate;
    w.up = in->up;
    w.down = in->down;
    return w;
}

/* The layer of section 9: y (DIGEST_T, DIGEST_H). */
static moe_ep_status digest_layer(const digest_input *in, float *y)
{
    moe_ep_weights w = digest_weights(in);
    moe_ep_forward_desc f;
    memset(&f, 0, sizeof f);
    f.experts = &w;
    f.top_k = DIGEST_K;
    f.ids = in->ids;
    f.choice_weights = in->weights;
    return moe_ep_forward(&f, in->x, DIGEST_T, y, NULL, NULL);
}

/* The layer on one rank, through its plan. */
static moe_ep_status digest_rank(const digest_input *in, float *y)
{
    static const int32_t start[2] = {0, DIGEST_E};
    moe_ep_weights w = digest_weights(in);
    moe_ep_forward_desc f;
    moe_ep_rank_desc d;
    moe_ep_rank rank;
    moe_ep_batch b;
    moe_ep_status st;
    memset(&f, 0, sizeof f);
    memset(&d, 0, sizeof d);
    memset(&rank, 0, sizeof rank);
    memset(&b, 0, sizeof b);
    f.experts = &w;
    f.top_k = DIGEST_K;
    d.num_ranks = 1;
    d.slot_start = start;
    d.top_k = DIGEST_K;
    d.hidden = DIGEST_H;
    d.layer = &f;
    b.num_tokens = DIGEST_T;
    b.slot_ids = in->ids;
    b.weights = in->weights;
    b.x = in->x;
    b.y = y;
    st = moe_ep_rank_init(&rank, &d, NULL);
    if (st == MOE_EP_OK) st = moe_ep_rank_forward(&rank, &b, NULL, NULL);
    moe_ep_rank_free(&rank);
    return st;
}

static void digest_forward(digest_hash *h, const digest_input *in)
{
    float y[DIGEST_T * DIGEST_H];
    if (digest_layer(in, y) == MOE_EP_OK) digest_float(h, y, DIGEST_T * DIGEST_H);
    if (digest_rank(in, y) == MOE_EP_OK) digest_float(h, y, DIGEST_T * DIGEST_H);
}

/* The layer of whole numbers on the ranks of a plan with copies: |g| <= 48, so max(g, 0)^2 <= 2304, a row of an expert
 * <= 16 * 2304, and with weights of at most 64 / 128 the sum of 4 is a multiple of 1/128 below 2^17: 24 bits. */
static void digest_ranks(digest_hash *h, const digest_input *in)
{
    static const moe_ep_dtype types[4] = {MOE_EP_F32, MOE_EP_BF16, MOE_EP_F16, MOE_EP_I8};
    const void *gate[4], *down[4];
    moe_ep_placement p;
    moe_ep_weights w;
    moe_ep_forward_desc f;
    moe_ep_ranks_result r;
    float y[DIGEST_T * DIGEST_H];
    int i, t;
    void *memory = digest_plan(in, 2, &p, NULL);
    gate[0] = in->whole_f32[0], down[0] = in->whole_f32[1];
    gate[1] = in->whole_bf16[0], down[1] = in->whole_bf16[1];
    gate[2] = in->whole_f16[0], down[2] = in->whole_f16[1];
    gate[3] = in->whole_i8[0], down[3] = in->whole_i8[1];
    for (i = 0; memory && i < 4; i++) {
        w = digest_weights(in);
        w.dtype = types[i];
        w.activation.kind = MOE_EP_ACT_RELU2;
        w.gate = gate[i];
        w.up = NULL;
        w.down = down[i];
        w.gate_scale = w.down_scale = types[i] == MOE_EP_I8 ? in->whole_scale : NULL;
        memset(&f, 0, sizeof f);
        f.experts = &w;
        f.top_k = DIGEST_K;
        f.ids = in->ids;
        f.choice_weights = in->weights;
        if (moe_ep_forward_ranks(&f, &p, 1, NULL, NULL, in->whole_x, DIGEST_T, y, &r, NULL, NULL) != MOE_EP_OK) exit(1);
        for (t = 0; t < DIGEST_T * DIGEST_H; t++) y[t] += 0.0f; /* the sign of a zero depends on where a sum began */
        digest_float(h, y, DIGEST_T * DIGEST_H);
        digest_i64(h, &r.rows_moved, 1);
        digest_i64(h, &r.rows_max, 1);
    }
    free(memory);
}

static void digest_diagnose(digest_hash *h, const digest_input *in)
{
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis o;
    memset(&d, 0, sizeof d);
    d.num_layers = DIGEST_L;
    d.num_experts = DIGEST_E;
    d.top_k = DIGEST_K;
    d.shape.num_devices = DIGEST_D;
    d.shape.num_slots = DIGEST_P;
    d.plan_loads = in->loads;
    d.plan_steps = 1;
    d.judge_loads = in->loads + DIGEST_L * DIGEST_E;
    d.judge_steps = 1;
    if (moe_ep_diagnose(&d, NULL, &o, NULL, NULL) != MOE_EP_OK) return;
    digest_u64(h, (uint64_t)o.verdict);
    digest_double(h, &o.before_rows, 1);
    digest_double(h, &o.after_rows, 1);
    digest_double(h, &o.bound_rows, 1);
}

static void digest_sim(digest_hash *h, const digest_input *in)
{
    int32_t ids[DIGEST_T * DIGEST_K];
    int k;
    for (k = 0; k <= (int)MOE_EP_LOAD_STUCK_ROUND_ROBIN; k++) {
        moe_ep_workload w;
        memset(&w, 0, sizeof w);
        w.kind = (moe_ep_workload_kind)k;
        w.seed = 42;
        w.num_experts = DIGEST_E;
        w.top_k = DIGEST_K;
        w.num_devices = DIGEST_D;
        w.share = 0.2;
        w.alpha = 1.1;
        w.sigma = 0.8;
        w.drift = 0.1;
        w.walk = 0.05;
        w.target = 0.7;
        w.period = 3;
        w.popularity = in->loads;
        if (moe_ep_simulate(&w, 1, 11, DIGEST_T, ids, NULL, NULL) == MOE_EP_OK) digest_i32(h, ids, DIGEST_T * DIGEST_K);
        else digest_u64(h, 1);
    }
}

static uint64_t digest_section(int section, const digest_input *in)
{
    static void (*const run[DIGEST_SECTIONS])(digest_hash *, const digest_input *) = {
        NULL, digest_route, digest_loads, digest_balance, digest_capacity, digest_place, digest_split, digest_dispatch,
        digest_cost, digest_forward, digest_ranks, digest_diagnose, digest_sim};
    digest_hash h = {UINT64_C(0xcbf29ce484222325)};
    if (run[section]) run[section](&h, in);
    else digest_float(&h, in->logits, DIGEST_T * DIGEST_E); /* section 0: the generator made the inputs */
    return h.h;
}

#endif
