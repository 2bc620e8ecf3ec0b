/* tests/fuzz/fuzz_route.c - section 1: routers with sane and hostile fields, batch routers, losses
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

static void per_token(void)
{
    fz_where = "route";
    int E = fz_int(1, 20), K = fz_int(1, fz_chance(.9) ? E : E + 3);
    int64_t T = fz_int(0, 12);
    moe_ep_router c;
    moe_ep_error e;
    int np = moe_ep_router_count();
    moe_ep_status s = moe_ep_router_by_name(moe_ep_router_name(fz_int(0, np - 1)), E, K, &c, &e);
    if (s < 0 || fz_chance(.3)) {
        memset(&c, 0, sizeof c);
        c.num_experts = E;
        c.top_k = K;
        c.score = fz_int(0, 3);
        c.select = fz_chance(.8) ? 0 : fz_int(0, 3);
        c.weight = fz_int(0, 3);
        c.select_on_logit = fz_int(0, 1);
        c.n_group = fz_int(0, 5);
        c.topk_group = fz_int(0, 5);
        c.group_top_m = fz_int(0, 3);
        c.mask_zero = fz_int(0, 1);
        c.renorm = fz_int(0, 1);
        c.renorm_p = fz_chance(.5) ? 0 : fz_unit() * 3;
        c.eps_mode = fz_int(0, 2);
        c.eps = fz_chance(.5) ? 0 : 1e-20f;
        c.scale = fz_chance(.5) ? 0 : 2.5f;
        c.logit_softcap = fz_chance(.8) ? 0 : 30;
        c.nan_as_masked = fz_int(0, 1);
        c.sparsemixer_jitter = .01f;
    }
    if (fz_chance(.3)) {
        switch (fz_int(0, 11)) {
        case 0: c.score = fz_bad_i32(); break;
        case 1: c.select = fz_bad_i32(); break;
        case 2: c.weight = fz_bad_i32(); break;
        case 3: c.n_group = fz_bad_i32(); break;
        case 4: c.topk_group = fz_bad_i32(); break;
        case 5: c.group_top_m = fz_bad_i32(); break;
        case 6: c.renorm_p = fz_bad_float(); break;
        case 7: c.eps = fz_bad_float(); break;
        case 8: c.scale = fz_bad_float(); break;
        case 9: c.logit_softcap = fz_bad_float(); break;
        case 10: c.sparsemixer_jitter = fz_bad_float(); break;
        case 11: c.eps_mode = fz_bad_i32(); break;
        }
    }
    if (fz_chance(.05)) c.isa_max = fz_bad_i32();
    int tb;
    int32_t *tab = fz_ids((int64_t)7 * K, E, fz_chance(.1), &tb);
    c.table = fz_chance(.9) ? tab : NULL;
    c.table_rows = 7;
    float *keys = malloc(sizeof(float) * T * E + 4);
    for (int i = 0; i < T * E; i++) keys[i] = fz_chance(.02) ? fz_bad_float() : (float)fz_unit();
    c.keys = fz_chance(.9) ? keys : NULL;
    float *sb = malloc(E * 4 + 4), *lb = malloc(E * 4), *pe = malloc(E * 4);
    for (int i = 0; i < E; i++) {
        sb[i] = fz_chance(.01) ? fz_bad_float() : (float)(fz_unit() - .5);
        lb[i] = fz_chance(.01) ? fz_bad_float() : (float)(fz_unit() - .5);
        pe[i] = fz_chance(.01) ? fz_bad_float() : (float)fz_unit();
    }
    if (fz_chance(.4)) c.select_bias = sb;
    if (fz_chance(.3)) c.logit_bias = lb;
    if (fz_chance(.2)) c.per_expert_scale = pe;
    float *L = malloc(sizeof(float) * T * E + 4);
    int q = fz_int(0, 3);
    for (int i = 0; i < T * E; i++)
        L[i] = q == 0                         ? (float)fz_int(-1, 1)
               : q == 1                       ? (float)(fz_unit() * 200 - 100)
               : fz_chance(q == 2 ? .02 : .0) ? fz_bad_float()
                                              : (float)(fz_unit() * 8 - 4);
    if (q == 3 && fz_chance(.3))
        for (int i = 0; i < T * E; i++)
            if (fz_chance(.5)) L[i] = -INFINITY;
    int32_t *ids = fz_out(sizeof(int32_t) * T * K);
    float *w = fz_chance(.8) ? fz_out(4 * T * K) : NULL;
    int32_t tid[12];
    for (int i = 0; i < 12; i++) tid[i] = fz_chance(.02) ? fz_bad_i32() : fz_int(0, 6);
    s = moe_ep_route(&c, L, T, fz_chance(.5) ? tid : NULL, ids, w, &e);
    fz_error(s, &e);
    if (s == MOE_EP_ERR_NAN && strcmp(e.arg, "logits") == 0) { /* rows before the bad one are routed */
        int64_t from = e.index / E * K * 4;
        for (int i = 0; i < fz_output_count; i++)
            for (int64_t j = from; j < (int64_t)fz_outputs[i].bytes; j++)
                if (fz_outputs[i].memory[j] != 0xa5) fz_fail("output %d was touched behind the bad row", i);
    } else
        fz_untouched(s);
    if (s == 0)
        for (int t = 0; t < T; t++)
            for (int k = 0; k < K; k++) {
                int id = ids[t * K + k];
                if (id < (c.select == 2 ? -1 : 0) || id >= E) fz_fail("bad id %d", id);
                if (c.select != 2)
                    for (int j = 0; j < k; j++)
                        if (ids[t * K + j] == id) fz_fail("dup id sel %d", c.select);
                if (w && fz_wild(w[t * K + k]))
                    fz_fail("weight %g score %d select %d weight %d renorm %d p %g eps %g mode %d scale %g "
                            "cap %g q %d pes %d id %d",
                            w[t * K + k], c.score, c.select, c.weight, c.renorm, c.renorm_p, c.eps,
                            c.eps_mode, c.scale, c.logit_softcap, q, c.per_expert_scale != 0, id);
            }
    fz_release();
    if (s == 0 && T > 0) { /* isa differential */
        int32_t *i2 = malloc(4 * T * K);
        float *w2 = malloc(4 * T * K);
        c.isa_max = 1;
        moe_ep_status s2 = moe_ep_route(&c, L, T, fz_chance(2) ? NULL : tid, i2, w2, &e);
        (void)s2;
        free(i2);
        free(w2);
    }
    fz_where = "scores";
    float *so = fz_out(4 * T * E);
    s = moe_ep_scores(&c, L, T, so, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0)
        for (int i = 0; i < T * E; i++)
            if (fz_wild(so[i])) fz_fail("score %g kind %d", so[i], c.score);
    free(tab);
    free(keys);
    free(sb);
    free(lb);
    free(pe);
    free(L);
}

static void per_batch(void)
{
    int E = fz_int(1, 9);
    int64_t T = fz_int(1, 20);
    float *L = malloc(4 * T * E);
    int q = fz_int(0, 2);
    for (int i = 0; i < T * E; i++)
        L[i] = q == 0                        ? (float)fz_int(-1, 1)
               : fz_chance(q == 1 ? .02 : 0) ? fz_bad_float()
                                             : (float)(fz_unit() * 8 - 4);
    moe_ep_error e;
    moe_ep_status s;
    {
        fz_where = "expert_choice";
        int64_t C = fz_chance(.1) ? fz_bad_i64() : fz_int(1, (int)T);
        if (C > 1000 && C < INT64_MAX) {
        }
        int64_t Ca = C < 1 || C > T ? 1 : C;
        int32_t *tk = fz_out(4 * E * Ca);
        float *w = fz_out(4 * E * Ca);
        int64_t *pt = fz_out(8 * T);
        s = moe_ep_expert_choice(L, T, E, C, tk, w, pt, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) {
            int64_t sm = 0;
            for (int t = 0; t < T; t++) sm += pt[t];
            if (sm != E * C) fz_fail("sum");
            for (int x = 0; x < E; x++)
                for (int j = 0; j < C; j++) {
                    int t = tk[x * C + j];
                    if (t < 0 || t >= T) fz_fail("tok");
                    if (j && (L[t * E + x] > L[tk[x * C + j - 1] * E + x])) fz_fail("order");
                }
        } else if (C >= 1 && C <= T && q != 1) fz_fail("err %d", s);
        fz_release();
    }
    {
        fz_where = "sinkhorn";
        float *o = fz_out(4 * T * E);
        int32_t *rn = fz_out(4);
        s = moe_ep_sinkhorn(L, T, E, fz_chance(.2) ? fz_bad_double() : 0,
                            fz_chance(.2) ? fz_int(-1, 9999) : 0, o, rn, fz_scratch(), &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0)
            for (int i = 0; i < T * E; i++)
                if (fz_wild(o[i]) || o[i] < 0) fz_fail("val %g", o[i]);
        fz_scratch_done();
        fz_release();
    }
    {
        fz_where = "auction";
        int64_t T2_ = (int64_t)E * fz_int(1, 5);
        float *x = malloc(4 * T2_ * E);
        for (int i = 0; i < T2_ * E; i++)
            x[i] = q == 0                     ? fz_int(0, 1)
                   : q == 1 && fz_chance(.01) ? fz_bad_float()
                                              : (float)(fz_unit() * pow(10, fz_int(-6, 6)));
        int32_t *o = fz_out(4 * T2_);
        s = moe_ep_auction(x, T2_, E, o, fz_scratch(), &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) {
            int cnt[10] = {0};
            for (int t = 0; t < T2_; t++) {
                if (o[t] < 0 || o[t] >= E) fz_fail("range");
                else cnt[o[t]]++;
            }
            for (int i = 0; i < E; i++)
                if (cnt[i] != T2_ / E) fz_fail("unbalanced");
        }
        fz_scratch_done();
        free(x);
        fz_release();
    }
    {
        fz_where = "quantile";
        int K = fz_int(1, E);
        float b[10];
        for (int i = 0; i < E; i++) b[i] = fz_chance(.02) ? fz_bad_float() : (float)fz_unit();
        s = moe_ep_quantile_update(L, T, E, K, b, fz_scratch(), &e);
        fz_error(s, &e);
        if (s == 0)
            for (int i = 0; i < E; i++)
                if (fz_wild(b[i])) fz_fail("beta %g", b[i]);
        fz_scratch_done();
    }
    {
        fz_where = "bias_update";
        int64_t ld[10];
        float b[10], b0[10];
        for (int i = 0; i < E; i++) {
            ld[i] = fz_chance(.05) ? fz_bad_i64() : fz_int(0, 50);
            b[i] = b0[i] = fz_chance(.02) ? fz_bad_float() : (float)fz_unit();
        }
        float rt = fz_chance(.2) ? fz_bad_float() : .001f;
        s = moe_ep_bias_update(ld, E, rt, fz_int(0, 1), b, &e);
        fz_error(s, &e);
        if (s < 0 && memcmp(b, b0, 4 * E)) fz_fail("bias touched on error");
        if (s == 0)
            for (int i = 0; i < E; i++)
                if (fz_wild(b[i])) fz_fail("bias %g rate %g b0 %g", b[i], rt, b0[i]);
    }
    {
        fz_where = "jitter";
        float b[10];
        for (int i = 0; i < 10; i++) b[i] = fz_chance(.02) ? fz_bad_float() : (float)fz_unit();
        moe_ep_rng g = moe_ep_rng_seed(fz_state);
        s = moe_ep_jitter(b, fz_chance(.1) ? -1 : 10, fz_chance(.3) ? fz_bad_float() : .1f,
                          fz_chance(.1) ? NULL : &g, &e);
        fz_error(s, &e);
    }
    {
        fz_where = "top2";
        moe_ep_top2 c;
        memset(&c, 0, sizeof c);
        c.num_experts = E;
        c.second = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 3);
        c.threshold = fz_chance(.1) ? fz_bad_float() : .2f;
        c.sample_second = fz_int(0, 1);
        c.renorm = fz_int(0, 1);
        c.eps_mode = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 2);
        c.eps = fz_chance(.1) ? fz_bad_float() : 1e-9f;
        moe_ep_rng g = moe_ep_rng_seed(fz_state);
        int32_t *i = fz_out(8 * T);
        float *w = fz_out(8 * T);
        s = moe_ep_route_top2(&c, L, T, fz_chance(.1) ? NULL : &g, i, w, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0)
            for (int t = 0; t < 2 * T; t++) {
                if (i[t] < -1 || i[t] >= E) fz_fail("id");
                if (fz_wild(w[t]))
                    fz_fail("w %g renorm %d eps %g mode %d", w[t], c.renorm, c.eps, c.eps_mode);
            }
        fz_release();
        i = fz_out(4 * T);
        w = fz_out(4 * T);
        fz_where = "sample";
        s = moe_ep_route_sample(L, T, E, fz_chance(.05) ? NULL : &g, i, w, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0)
            for (int t = 0; t < T; t++) {
                if (i[t] < 0 || i[t] >= E) fz_fail("id");
                if (fz_wild(w[t])) fz_fail("w");
            }
        fz_release();
    }
    {
        fz_where = "aux";
        moe_ep_aux_desc d;
        memset(&d, 0, sizeof d);
        d.kind = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 7);
        d.num_tokens = T;
        int K = fz_int(1, E);
        d.top_k = K;
        d.num_experts = E;
        float *P = malloc(4 * T * E);
        for (int i = 0; i < T * E; i++) P[i] = fz_chance(.005) ? fz_bad_float() : (float)fz_unit();
        d.scores = P;
        int bad;
        int32_t *ids = fz_ids(T * K, E, fz_chance(.1), &bad);
        d.ids = fz_chance(.9) ? ids : NULL;
        d.normalize_scores = fz_int(0, 1);
        d.num_sequences = fz_chance(.2) ? fz_bad_i64() : fz_int(0, 3);
        d.interleaved = fz_int(0, 1);
        int64_t gl[10];
        for (int i = 0; i < E; i++) gl[i] = fz_chance(.05) ? fz_bad_i64() : fz_int(0, 40);
        d.global_loads = fz_chance(.9) ? gl : NULL;
        int32_t dv[10];
        d.num_devices = fz_int(0, 4);
        for (int i = 0; i < E; i++)
            dv[i] = fz_chance(.03) ? fz_bad_i32() : fz_int(0, d.num_devices > 0 ? d.num_devices - 1 : 0);
        d.device_of_expert = dv;
        d.devices_per_token = fz_chance(.2) ? fz_bad_i32() : 0;
        d.coefficient = fz_chance(.2) ? fz_bad_double() : 0;
        double x = moe_ep_aux_loss(&d, fz_scratch(), &e);
        if (isnan(x) || isinf(x)) fz_fail("loss %g kind %d coef %g", x, d.kind, d.coefficient);
        if (x < 0 && x != (double)e.status)
            fz_fail("neg %g status %d kind %d coef %g", x, e.status, d.kind, d.coefficient);
        if (x >= 0 && e.status != 0) fz_fail("st");
        fz_scratch_done();
        x = moe_ep_z_loss(L, T, E, &e);
        fz_where = "z_loss";
        if (fz_wild(x)) fz_fail("%g", x);
        fz_where = "importance";
        x = moe_ep_importance_loss(P, T, E, fz_scratch(), &e);
        if (fz_wild(x)) fz_fail("%g", x);
        fz_scratch_done();
        fz_where = "entropy";
        x = moe_ep_router_entropy(P, T, E, &e);
        if (fz_wild(x) || (x < 0 && e.status == 0)) fz_fail("%g", x);
        fz_where = "load_loss";
        x = moe_ep_load_loss(P, L, T, E, fz_chance(.3) ? fz_bad_double() : 1, fz_scratch(), &e);
        if (fz_wild(x)) fz_fail("%g", x);
        fz_scratch_done();
        fz_where = "append";
        int Sh = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 3);
        int Sa = Sh < 0 || Sh > 100 ? 0 : Sh;
        int32_t *oi = fz_out(4 * T * (K + Sa));
        float *ow = fz_out(4 * T * (K + Sa));
        if (Sh <= 100) {
            s = moe_ep_append_shared(ids, P, T, K, E, Sh, fz_chance(.1) ? fz_bad_i32() : fz_int(0, 1),
                                     fz_chance(.2) ? fz_bad_float() : 1.f, oi, ow, &e);
            fz_error(s, &e);
            fz_untouched(s);
            if (s == 0)
                for (int i = 0; i < T * (K + Sa); i++)
                    if (fz_wild(ow[i])) fz_fail("w");
        }
        fz_release();
        fz_where = "wcompare";
        moe_ep_weights_result *wr = fz_out(sizeof *wr);
        s = moe_ep_weights_compare(P, P, T, K, wr, &e);
        fz_error(s, &e);
        fz_untouched(s);
        free(P);
        free(ids);
    }
    free(L);
}

static void route_case(void)
{
    if (fz_int(0, 1)) per_token();
    else per_batch();
}

FUZZ_TARGET(route)
