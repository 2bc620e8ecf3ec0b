/* tests/fuzz/fuzz_sim.c - section 12: seeded workloads
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "fuzz_models.h"

/* A sweep of a few small shapes. */
static void sim_sweep(void)
{
    int64_t tokens[2];
    int32_t ep[2], redundant[2];
    moe_ep_sweep_desc d;
    moe_ep_sweep_point points[64];
    moe_ep_sweep_result *r = fz_out(sizeof *r);
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    moe_ep_model m = any_model();
    moe_ep_machine h = any_machine();
    memset(&d, 0, sizeof d);
    if (m.num_experts > 64) m.num_experts = 64;
    if (m.top_k > 8 || m.top_k > m.num_experts) m.top_k = 1;
    d.model = &m;
    d.machine = &h;
    d.num_devices = 1 << fz_int(0, 3);
    d.tokens = tokens;
    d.num_tokens = fz_int(1, 2);
    tokens[0] = fz_chance(.1) ? fz_bad_i64() : fz_int(1, 40);
    tokens[1] = fz_int(1, 40);
    if (tokens[0] > 100000) tokens[0] = 100000;
    ep[0] = fz_chance(.1) ? fz_bad_i32() : d.num_devices;
    ep[1] = 1;
    redundant[0] = fz_chance(.1) ? fz_bad_i32() : 8 * fz_int(0, 1);
    redundant[1] = 0;
    if (redundant[0] > 64) redundant[0] = 64;
    if (fz_chance(.8)) d.ep = ep, d.num_ep = fz_int(1, 2);
    if (fz_chance(.8)) d.redundant = redundant, d.num_redundant = fz_int(1, 2);
    d.num_layers = fz_int(1, 2);
    d.context = fz_chance(.1) ? fz_bad_double() : 0;
    d.other_s = fz_chance(.1) ? fz_bad_double() : 0;
    d.max_tpot_s = fz_chance(.1) ? fz_bad_double() : 0;
    d.reserve_bytes = fz_chance(.1) ? fz_bad_double() : 0;
    d.throughput_from = fz_chance(.1) ? fz_bad_i64() : 0;
    fz_where = "sweep";
    int64_t n = moe_ep_sweep_count(&d, &e);
    if (n < 0 && n != e.status) fz_fail("count %lld, status %d", (long long)n, e.status);
    s = moe_ep_sweep(&d, points, 64, r, fz_chance(.5) ? NULL : fz_scratch(), &e);
    fz_scratch_done(); /* frees nothing twice */
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        if (r->points != n || r->fit > n || r->pareto > r->fit || r->best >= n || (r->best < 0 && r->best != -1))
            fz_fail("points %lld of %lld, best %lld", (long long)r->points, (long long)n, (long long)r->best);
        for (int64_t i = 0; i < n; i++)
            if (points[i].fits) fz_finite("step", (double *)&points[i].step, 11);
        if (n > 0 && !moe_ep_limit_str(points[0].limit)) fz_fail("no name");
    }
    fz_release();
}

static void sim_case(void)
{
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    if (fz_seldom(256)) {
        sim_sweep();
        return;
    }
    int E = fz_grow(fz_int(1, 16), 200);
    double *pop = fz_in(8 * E);
    for (int i = 0; i < E; i++) pop[i] = fz_chance(.03) ? fz_bad_double() : fz_int(0, 9);
    w.kind = fz_int(0, 12);
    w.seed = fz_u64();
    w.num_experts = E;
    w.top_k = fz_int(1, E);
    w.num_devices = fz_int(0, 4);
    w.hot = fz_int(0, 3);
    w.hot_experts = fz_int(0, 3);
    w.hot_stride = fz_int(0, 3);
    w.share = fz_unit();
    w.alpha = fz_unit() * 2;
    w.x_max = fz_chance(.5) ? 0 : 50;
    w.sigma = fz_unit();
    w.drift = fz_chance(.5) ? 0 : fz_unit();
    w.walk = fz_chance(.5) ? 0 : fz_unit();
    w.target = fz_unit();
    w.period = fz_int(0, 3);
    w.in_order = fz_int(0, 1);
    w.with_replacement = fz_chance(.3);
    w.popularity = pop;
    if (fz_grows && w.top_k > 16) w.top_k = 1 + w.top_k % 16;
    fz_seal();
    if (fz_chance(.4)) {
        int k = fz_int(0, 12);
        switch (k) {
        case 0: w.kind = fz_bad_i32(); break;
        case 1: w.top_k = fz_bad_i32(); break;
        case 2: w.num_devices = fz_bad_i32(); break;
        case 3: w.hot = fz_bad_i32(); break;
        case 4: w.share = fz_bad_double(); break;
        case 5: w.alpha = fz_bad_double(); break;
        case 6: w.x_max = fz_bad_double(); break;
        case 7: w.sigma = fz_bad_double(); break;
        case 8: w.drift = fz_bad_double(); break;
        case 9: w.target = fz_bad_double(); break;
        case 10: w.walk = fz_bad_double(); break;
        case 11: w.hot_experts = fz_bad_i32(); break;
        case 12: w.hot_stride = fz_bad_i32(); break;
        }
    }
    if (fz_chance(.05)) w.period = fz_bad_i32();
    if (w.top_k > 16) w.top_k = 16;
    int64_t T = fz_grow(fz_int(0, 40), 300);
    int K = w.top_k > 0 && w.top_k <= 16 ? w.top_k : 1;
    int32_t *ids = fz_out(4 * T * K);
    moe_ep_error e = fz_stale;
    fz_where = "simulate";
    moe_ep_status s;
    int64_t step = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 5);
    s = moe_ep_simulate(&w, fz_chance(.05) ? fz_bad_i32() : fz_int(0, 3), step, T, ids, fz_scratch(), &e);
    fz_scratch_done();
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0)
        for (int t = 0; t < T; t++)
            for (int k = 0; k < K; k++) {
                int id = ids[t * K + k];
                if (id < 0 || id >= E)
                    fz_fail("id %d of %d kind %d T %d K %d step %lld", id, E, (int)w.kind,
                             (int)T, K, (long long)step);
                else if (!w.with_replacement)
                    for (int j = 0; j < k; j++)
                        if (ids[t * K + j] == id) fz_fail("repeat kind %d", w.kind);
            }
    if (s == 0 && fz_seldom(4)) { /* the same seed, the same ids */
        int32_t *again = fz_out(4 * T * K);
        int32_t layer = 1;
        if (moe_ep_simulate(&w, layer, 2, T, again, NULL, &e) == 0 &&
            (moe_ep_simulate(&w, layer, 2, T, ids, NULL, &e) != 0 || memcmp(again, ids, 4 * T * K)))
            fz_fail("not repeated, kind %d", w.kind);
        moe_ep_workload_kind kind;
        if (moe_ep_workload_by_name(moe_ep_workload_str(w.kind), &kind, &e) != 0 || kind != w.kind) fz_fail("name");
    }
    fz_release();
    fz_where = "popularity";
    uint64_t *wt = fz_out(8 * E);
    s = moe_ep_popularity(&w, 0, step, fz_chance(.2) ? fz_bad_i64() : T, wt, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0)
        for (int i = 0; i < E; i++)
            if (wt[i] >= 1ull << 40) fz_fail("w");
    fz_release();
    fz_where = "ids_from_counts";
    int64_t *c = fz_in(8 * E);
    int64_t left = T * K;
    for (int i = 0; i < E; i++) {
        c[i] = i == E - 1 ? left : left < T ? fz_int(0, (int)left) : fz_int(0, (int)T);
        if (c[i] > left) c[i] = left;
        left -= c[i];
        if (fz_chance(.02)) c[i] = fz_bad_i64();
    }
    ids = fz_out(4 * T * K);
    s = moe_ep_ids_from_counts(c, E, T, K, 1, ids, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        int64_t z[200] = {0};
        for (int i = 0; i < T * K; i++) z[ids[i]]++;
        if (memcmp(z, c, 8 * E)) fz_fail("counts");
    }
    fz_release();
    fz_where = "source";
    int D = fz_chance(.1) ? fz_bad_i32() : fz_int(1, 5);
    if (D < 100) {
        int64_t *o = fz_out(8 * (D > 0 ? D : 1));
        s = moe_ep_source_tokens(fz_chance(.05) ? fz_bad_i32() : fz_int(0, 2), 1,
                                 fz_chance(.2) ? fz_bad_i64() : 100, D, fz_chance(.3) ? fz_bad_double() : 1,
                                 fz_chance(.2) ? fz_bad_i32() : 0, o, &e);
        fz_error(s, &e);
        fz_untouched(s);
        int64_t sum = 0;
        for (int i = 0; s == 0 && i < D; i++) sum += o[i];
        if (s == 0 && o[0] < 0) fz_fail("negative");
        (void)sum;
        fz_release();
    }
    fz_where = "llmss";
    moe_ep_balanced_result *b = fz_out(sizeof *b);
    int rare = fz_chance(.001); /* huge sizes take milliseconds here */
    s = moe_ep_llmservingsim_balanced(fz_chance(.3) ? fz_bad_i64() : 16,
                                      rare ? fz_bad_i32() % 70000 : fz_int(-1, 300),
                                      rare ? fz_bad_i32() % 70000 : fz_int(-1, 9),
                                      rare ? fz_bad_i32() % 70000 : fz_int(-1, 9), b, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0 && (fz_wild(b->pairs) || fz_wild(b->exact_tokens) || fz_wild(b->exact_activated) ||
                   b->local_tokens < 0))
        fz_fail("nan");
}

FUZZ_TARGET(sim)
