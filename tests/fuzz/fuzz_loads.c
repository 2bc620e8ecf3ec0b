/* tests/fuzz/fuzz_loads.c - section 2: counting, windows, expectations
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

static void loads_case(void)
{
    int E = fz_grow(fz_int(1, 9), 70), K = fz_int(1, 5);
    int64_t T = fz_grow(fz_int(0, 9), 60);
    int bad;
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    int32_t *ids = fz_ids(T * K, E, fz_chance(.15), &bad);
    int64_t *ld = fz_out(8 * E);
    int64_t *sk = fz_out(8);
    fz_where = "expert_loads";
    s = moe_ep_expert_loads(ids, T * K, E, ld, sk, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        int64_t c = *sk;
        for (int i = 0; i < E; i++) c += ld[i];
        if (c != T * K) fz_fail("sum");
        if (bad) fz_fail("bad accepted");
        fz_where = "expert_loads_add";
        s = moe_ep_expert_loads_add(ids, T * K, E, ld, sk, &e);
        for (int i = 0; i < E; i++) c += ld[i];
        if (s || c + *sk != 3 * T * K) fz_fail("twice: %lld", (long long)(c + *sk));
        if (moe_ep_active_experts(ld, E, &e) < 0) fz_fail("active");
    } else if (!bad) fz_fail("good refused %d", s);
    else if (e.index < 0 || ids[e.index] != (int32_t)e.value) fz_fail("pos");
    fz_release();
    fz_where = "rank_loads";
    int D = fz_int(1, 5);
    int32_t *src = fz_in(4 * (T < 10 ? 10 : T));
    for (int i = 0; i < (T < 10 ? 10 : T); i++) src[i] = fz_chance(.02) ? fz_bad_i32() : fz_int(0, D - 1);
    ld = fz_out(8 * D * E);
    sk = fz_out(8);
    s = moe_ep_rank_loads(ids, T, K, E, fz_chance(.5) ? src : NULL, D, ld, sk, &e);
    fz_end(s, &e);
    fz_where = "coact";
    ld = fz_out(8 * E * E);
    sk = fz_out(8);
    s = moe_ep_coactivation(ids, T, K, E, ld, sk, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0)
        for (int i = 0; i < E; i++)
            for (int j = 0; j < E; j++) {
                int64_t c = 0;
                for (int t = 0; t < T; t++) {
                    int a = 0, b = 0;
                    for (int k = 0; k < K; k++) {
                        a |= ids[t * K + k] == i;
                        b |= ids[t * K + k] == j;
                    }
                    c += i != j && a && b;
                }
                if (c != ld[i * E + j]) fz_fail("count");
            }
    fz_release();
    fz_where = "transitions";
    ld = fz_out(8 * E * E);
    s = moe_ep_transitions(ids, ids, T, K, E, ld, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        double *sh = fz_out(8 * E * E);
        s = moe_ep_transition_shares(ld, E, sh, &e);
        for (int i = 0; i < E * E; i++)
            if (fz_wild(sh[i])) fz_fail("share");
    }
    fz_release();
    fz_where = "layer_loads";
    int L = fz_int(1, 3);
    moe_ep_ids v = moe_ep_ids_tlk(ids, T / L, L, K, E);
    if (fz_chance(.5)) v = moe_ep_ids_ltk(ids, T / L, L, K, E);
    if (fz_chance(.2)) {
        if (fz_chance(.5)) v.token_stride = fz_bad_i64();
        else v.layer_stride = fz_bad_i64();
        v.num_tokens = 0;
    }
    ld = fz_out(8 * L * E);
    sk = fz_out(8);
    s = moe_ep_layer_loads(&v, ld, sk, &e);
    fz_end(s, &e);
    fz_where = "expected";
    double x = moe_ep_expected_distinct(fz_bad_i64(), fz_bad_i32(), fz_bad_i32(), &e);
    if (fz_wild(x)) fz_fail("distinct %g", x);
    int rare = fz_chance(.001); /* huge sizes take milliseconds here */
    int a1 = rare ? fz_bad_i32() % 70000 : fz_int(-1, 99), a2 = rare ? fz_bad_i32() % 70000 : fz_int(-1, 300),
        a3 = rare ? fz_bad_i32() % 70000 : fz_int(-1, 99);
    x = moe_ep_expected_groups(a1, a2, a3, &e);
    if (fz_wild(x)) fz_fail("groups %g %d %d %d", x, a1, a2, a3);
    {
        int64_t t = fz_bad_i64(), TT = fz_bad_i64();
        int DD = fz_bad_i32();
        int64_t rr = moe_ep_rank_of_token(t, TT, DD, &e);
        if (rr >= 0 && (rr >= DD || t < 0 || t >= TT)) fz_fail("rank");
        if (rr < 0 && t >= 0 && t < TT && DD > 0) fz_fail("refused");
    }
    fz_where = "loads_by_device";
    int64_t *l2 = fz_in(8 * E);
    int neg = 0;
    for (int i = 0; i < E; i++) {
        l2[i] = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 9);
        neg |= l2[i] < 0;
    }
    int32_t *dv = fz_in(4 * E);
    for (int i = 0; i < E; i++) dv[i] = fz_chance(.03) ? fz_bad_i32() : fz_int(0, D - 1);
    int64_t *dl = fz_out(8 * D);
    s = moe_ep_loads_by_device(l2, E, fz_chance(.5) ? dv : NULL, D, dl, &e);
    fz_end(s, &e);
    int32_t *ac = fz_out(4 * D);
    s = moe_ep_active_by_device(l2, E, fz_chance(.5) ? dv : NULL, D, ac, &e);
    fz_end(s, &e);
    {
        int64_t r = moe_ep_step_time(l2, E, fz_chance(.5) ? dv : NULL, D, &e);
        if (r < 0 && e.status != r) fz_fail("step st");
    }
    fz_where = "lift";
    {
        int64_t *co = fz_in(8 * E * E);
        for (int i = 0; i < E * E; i++) co[i] = fz_chance(.05) ? fz_bad_i64() : fz_int(0, 9);
        double *lf = fz_out(8 * E * E);
        int64_t t = fz_chance(.3) ? fz_bad_i64() : 50;
        s = moe_ep_lift(co, l2, t, E, lf, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0)
            for (int i = 0; i < E * E; i++)
                if (fz_wild(lf[i])) fz_fail("lift %g", lf[i]);
        fz_release();
    }
    fz_seal();
    fz_where = "window";
    {
        int ring = fz_int(0, 3), Lw = fz_int(1, 2);
        size_t b = moe_ep_window_bytes(Lw, E, ring);
        char *m = fz_work(b + 8);
        char *m2 = fz_work(b);
        moe_ep_window w, w2;
        double k = fz_chance(.2) ? fz_bad_double() : fz_unit();
        s = moe_ep_window_init(&w, "a", Lw, E, ring, k, m, b, &e);
        fz_error(s, &e);
        if (s == 0) {
            moe_ep_window_init(&w2, "b", Lw, E, ring, k, m2, b, &e);
            int64_t *x = fz_work(8 * Lw * E);
            int n = fz_int(0, 6);
            for (int i = 0; i < n; i++) {
                for (int j = 0; j < Lw * E; j++) x[j] = fz_chance(.02) ? fz_bad_i64() : fz_int(0, 9);
                s = moe_ep_window_add(&w, x, &e);
                fz_error(s, &e);
                if (fz_chance(.7)) {
                    for (int j = 0; j < Lw * E; j++) x[j] = fz_chance(.02) ? fz_bad_i64() : fz_int(0, 9);
                    s = moe_ep_window_add(&w2, x, &e);
                }
            }
            double *vr = fz_out(8 * Lw * E);
            s = moe_ep_window_variance(&w, vr, &e);
            fz_error(s, &e);
            if (s == 0)
                for (int j = 0; j < Lw * E; j++)
                    if (fz_wild(vr[j]) || vr[j] < 0) fz_fail("var %g", vr[j]);
            s = fz_chance(.5) ? moe_ep_window_merge_ranks(&w, fz_chance(.9) ? &w2 : &w, &e)
                              : moe_ep_window_append(&w, fz_chance(.9) ? &w2 : &w, &e);
            fz_error(s, &e);
            s = moe_ep_window_variance(&w, vr, &e);
            if (s == 0)
                for (int j = 0; j < Lw * E; j++)
                    if (fz_wild(vr[j]) || vr[j] < 0) fz_fail("var2 %g", vr[j]);
            for (int q = 0; q < 4; q++) moe_ep_window_step(&w, fz_bad_i64());
            fz_release();
            int64_t *o = fz_out(8 * Lw * E);
            s = moe_ep_window_recent(&w, fz_chance(.3) ? fz_bad_i32() : fz_int(0, 3), o, &e);
            fz_error(s, &e);
            fz_untouched(s);
            s = moe_ep_window_clear(&w, &e);
            if (s || w.steps != 0) fz_fail("clear");
        }
        fz_release();
        (void)moe_ep_window_bytes(fz_bad_i32(), fz_bad_i32(), fz_bad_i32());
    }
}

FUZZ_TARGET(loads)
