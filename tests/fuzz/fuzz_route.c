/* tests/fuzz/fuzz_route.c - section 1: routers with sane and hostile fields, batch routers, losses
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

/* Choices of one token by plain top-k of the scores: largest first, lowest index first among equals. */
static void check_top_k(const float *score, const int32_t *id, int E, int K)
{
    for (int k = 1; k < K; k++)
        if (score[id[k]] > score[id[k - 1]] || (!(score[id[k]] < score[id[k - 1]]) && id[k] < id[k - 1]))
            fz_fail("choice %d: %g of expert %d after %g of %d", k, score[id[k]], id[k], score[id[k - 1]], id[k - 1]);
    for (int x = 0; x < E; x++) {
        int chosen = 0;
        for (int k = 0; k < K; k++) chosen |= id[k] == x;
        if (!chosen && (score[x] > score[id[K - 1]] || (!(score[x] < score[id[K - 1]]) && x < id[K - 1])))
            fz_fail("expert %d with %g was left out, %d with %g was taken", x, score[x], id[K - 1], score[id[K - 1]]);
    }
}

static void per_token(void)
{
    fz_where = "route";
    int E = fz_grow(fz_int(1, 20), 520), K = fz_int(1, fz_chance(.9) ? E : E + 3), odd = 0;
    int64_t T = fz_grow(fz_int(0, 12), 70);
    if (E > 20 && fz_more() % 2) E = E / 16 * 16; /* what the quickest kernels take */
    if (E > 20 && K > 14 && fz_more() % 8) K = 1 + K % 14;
    if (E > 200 && T > 16) T = 16 + T % 4;
    moe_ep_router c;
    moe_ep_error e = fz_stale;
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
    if (c.topk_group > 0 && K % c.topk_group == 0 && fz_seldom(4)) c.group_top_k = K / c.topk_group;
    if (fz_seldom(40)) c.group_top_k = fz_bad_i32();
    int tb;
    int32_t *tab = fz_ids((int64_t)7 * K, E, fz_chance(.1), &tb);
    c.table = fz_chance(.9) ? tab : NULL;
    c.table_rows = 7;
    float *keys = fz_in(sizeof(float) * T * E);
    for (int i = 0; i < T * E; i++) keys[i] = fz_chance(.02) ? fz_bad_float() : (float)fz_unit();
    c.keys = fz_chance(.9) ? keys : NULL;
    float *sb = fz_in(E * 4), *lb = fz_in(E * 4), *pe = fz_in(E * 4);
    for (int i = 0; i < E; i++) {
        sb[i] = fz_chance(.01) ? fz_bad_float() : (float)(fz_unit() - .5);
        lb[i] = fz_chance(.01) ? fz_bad_float() : (float)(fz_unit() - .5);
        pe[i] = fz_chance(.01) ? fz_bad_float() : (float)fz_unit();
    }
    if (fz_chance(.4)) c.select_bias = sb;
    if (fz_chance(.3)) c.logit_bias = lb;
    if (fz_chance(.2)) c.per_expert_scale = pe;
    float *L = fz_in(sizeof(float) * T * E);
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
    int32_t *tid = fz_in(4 * (size_t)(T > 12 ? T : 12));
    for (int i = 0; i < (T > 12 ? T : 12); i++) tid[i] = fz_chance(.02) ? fz_bad_i32() : fz_int(0, 6);
    const int32_t *rows = fz_chance(.5) ? tid : NULL;
    fz_seal();
    s = moe_ep_route(&c, L, T, rows, ids, w, &e);
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
    int routed = s == 0;
    if (s == 0 && T > 0) { /* every instruction set: the same bits */
        int32_t *i2 = fz_out(4 * T * K);
        float *w2 = w ? fz_out(4 * T * K) : NULL;
        fz_where = "route with isa_max";
        c.isa_max = (moe_ep_isa)(fz_chance(2) ? MOE_EP_ISA_PORTABLE + (int)(fz_grows ? fz_more() % 2 : 0) : 0);
        s = moe_ep_route(&c, L, T, rows, i2, w2, &e);
        if ((s || memcmp(ids, i2, 4 * T * K) || (w && memcmp(w, w2, 4 * T * K))) &&
            (FZ_STRICT || !(c.logit_softcap > 0.0f)))
            fz_fail("status %d, or other bits with %s: E %d K %d T %d score %d select %d", s,
                    moe_ep_isa_name(c.isa_max), E, K, (int)T, c.score, c.select);
    }
    fz_where = "router_check";
    if (routed && (moe_ep_router_check(&c, &e) != MOE_EP_OK || e.status != MOE_EP_OK)) fz_fail("status %d", e.status);
    fz_where = "scores";
    for (int i = 0; i < T * E; i++) odd |= !(L[i] > -1e30f && L[i] < INFINITY); /* masked: last, whatever the score */
    odd |= c.logit_bias != NULL;
    float *so = fz_in(4 * T * E);
    memset(so, 0xa5, 4 * (size_t)T * (size_t)E);
    s = moe_ep_scores(&c, L, T, so, &e);
    fz_error(s, &e);
    if (s == 0)
        for (int i = 0; i < T * E; i++) {
            if (fz_wild(so[i])) fz_fail("score %g kind %d", so[i], c.score);
            if (c.score != MOE_EP_SCORE_LOGIT && so[i] < 0) fz_fail("score %g kind %d", so[i], c.score);
            if ((c.score == MOE_EP_SCORE_SOFTMAX || c.score == MOE_EP_SCORE_SIGMOID) && so[i] > 1)
                fz_fail("score %g kind %d above 1", so[i], c.score);
        }
    else
        for (int i = 0; i < T * E * 4; i++)
            if (((unsigned char *)so)[i] != 0xa5) fz_fail("scores were touched although: %s", moe_ep_status_str(s));
    if (s == 0 && routed && !odd && c.select == MOE_EP_SELECT_TOPK && !c.select_on_logit && c.n_group < 2 &&
        !c.select_bias && (FZ_STRICT || !(c.logit_softcap > 0.0f)))
        for (int t = 0; t < T; t++) check_top_k(so + (size_t)t * E, ids + (size_t)t * K, E, K);
    fz_release();
}

static void per_batch(void)
{
    int E = fz_grow(fz_int(1, 9), 70);
    int64_t T = fz_grow(fz_int(1, 20), 90);
    float *L = fz_in(4 * T * E);
    int q = fz_int(0, 2);
    for (int i = 0; i < T * E; i++)
        L[i] = q == 0                        ? (float)fz_int(-1, 1)
               : fz_chance(q == 1 ? .02 : 0) ? fz_bad_float()
                                             : (float)(fz_unit() * 8 - 4);
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    fz_seal();
    {
        fz_where = "expert_choice";
        int64_t C = fz_chance(.1) ? fz_bad_i64() : fz_int(1, (int)T);
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
    if (!fz_seldom(2)) { /* up to 10,000 rounds: the longest call of the section */
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
        float *x = fz_in(4 * T2_ * E);
        for (int i = 0; i < T2_ * E; i++)
            x[i] = q == 0                     ? fz_int(0, 1)
                   : q == 1 && fz_chance(.01) ? fz_bad_float()
                                              : (float)(fz_unit() * pow(10, fz_int(-6, 6)));
        int32_t *o = fz_out(4 * T2_);
        s = moe_ep_auction(x, T2_, E, o, fz_scratch(), &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) {
            int cnt[80] = {0};
            for (int t = 0; t < T2_; t++) {
                if (o[t] < 0 || o[t] >= E) fz_fail("range");
                else cnt[o[t]]++;
            }
            for (int i = 0; i < E; i++)
                if (cnt[i] != T2_ / E) fz_fail("unbalanced");
        }
        fz_scratch_done();
        fz_release();
    }
    {
        fz_where = "quantile";
        int K = fz_int(1, E);
        float b[80];
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
        int64_t ld[80];
        float b[80], b0[80];
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
    if (fz_seldom(4)) {
        int H = fz_int(1, 40), most = T < 8 ? (int)T : 8;
        float *x = fz_in(4 * (size_t)(most * H)), *w = fz_in(4 * (size_t)(E * H)), *bias = fz_in(4 * (size_t)E);
        float *l = fz_out(4 * (size_t)(most * E));
        for (int i = 0; i < most * H; i++) x[i] = (float)(fz_unit() - .5);
        for (int i = 0; i < E * H; i++) w[i] = (float)(fz_unit() - .5);
        for (int i = 0; i < E; i++) bias[i] = (float)fz_unit();
        fz_seal();
        fz_where = "gate";
        s = moe_ep_gate(x, most, H, w, bias, E, l, &e);
        fz_error(s, &e);
        for (int i = 0; s == 0 && i < most * E; i++) {
            double v = bias[i % E];
            for (int h = 0; h < H; h++) v += (double)x[i / E * H + h] * (double)w[i % E * H + h];
            if (fabs(v - l[i]) > 1e-4) fz_fail("logit %g, want %g, H %d", l[i], v, H);
        }
        fz_release();
    }
    {
        fz_where = "jitter";
        float b[10];
        for (int i = 0; i < 10; i++) b[i] = fz_chance(.02) ? fz_bad_float() : (float)fz_unit();
        moe_ep_rng g = moe_ep_rng_seed(fz_state);
        s = moe_ep_jitter(b, fz_chance(.1) ? -1 : 10, fz_chance(.3) ? fz_bad_float() : .1f,
                          fz_chance(.1) ? NULL : &g, &e);
        fz_error(s, &e);
        fz_where = "dropout";
        s = fz_grows ? moe_ep_dropout(b, 10, fz_seldom(4) ? fz_bad_float() : .1f, &g, &e) : MOE_EP_OK;
        if (fz_grows) fz_error(s, &e);
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
        if (fz_seldom(4)) {
            moe_ep_top2 list[] = {moe_ep_top2_gshard(E), moe_ep_top2_gshard_new(E), moe_ep_top2_deepspeed(E),
                                  moe_ep_top2_nllb(E)};
            c = list[fz_more() % 4];
        }
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
                if (fz_wild(w[t]) || w[t] < 0 || w[t] > 1) fz_fail("w %g", w[t]);
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
        float *P = fz_in(4 * T * E);
        for (int i = 0; i < T * E; i++) P[i] = fz_chance(.005) ? fz_bad_float() : (float)fz_unit();
        d.scores = P;
        int bad;
        int32_t *ids = fz_ids(T * K, E, fz_chance(.1), &bad);
        d.ids = fz_chance(.9) ? ids : NULL;
        d.normalize_scores = fz_int(0, 1);
        d.num_sequences = fz_chance(.2) ? fz_bad_i64() : fz_int(0, 3);
        d.interleaved = fz_int(0, 1);
        int64_t gl[80];
        for (int i = 0; i < E; i++) gl[i] = fz_chance(.05) ? fz_bad_i64() : fz_int(0, 40);
        d.global_loads = fz_chance(.9) ? gl : NULL;
        int32_t dv[80];
        d.num_devices = fz_int(0, 4);
        for (int i = 0; i < E; i++)
            dv[i] = fz_chance(.03) ? fz_bad_i32() : fz_int(0, d.num_devices > 0 ? d.num_devices - 1 : 0);
        d.device_of_expert = dv;
        d.devices_per_token = fz_chance(.2) ? fz_bad_i32() : 0;
        d.coefficient = fz_chance(.2) ? fz_bad_double() : 0;
        double x = moe_ep_aux_loss(&d, fz_scratch(), &e);
        if (fz_wild(x)) fz_fail("loss %g kind %d coef %g", x, d.kind, d.coefficient);
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
        if (s == 0 && wr->max_abs > 0) fz_fail("P is %g from itself", wr->max_abs);
        fz_release();
    }
}

static void route_case(void)
{
    if (fz_int(0, 1)) per_token();
    else per_batch();
}

FUZZ_TARGET(route)
