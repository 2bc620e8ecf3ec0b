/* tests/fuzz/fuzz_balance.c - section 3: measures of balance
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

static void balance_case(void)
{
    int n = fz_grow(fz_int(1, 12), 400);
    double *x = (double *)fz_in(8 * (size_t)n), *z;
    int64_t *y = (int64_t *)fz_in(8 * (size_t)n);
    int q = fz_int(0, 4);
    for (int i = 0; i < n; i++) {
        x[i] = q == 0   ? (fz_chance(.3) ? fz_bad_double() : fz_unit())
               : q == 1 ? (fz_chance(.5) ? 0 : fz_note(fz_unit() * 1e308))
               : q == 2 ? (fz_chance(.5) ? 0 : fz_note(5e-324 * fz_int(0, 9)))
               : q == 3 ? 0
                        : fz_int(0, 99);
        y[i] = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 9);
        if (fz_grows && n > 12 && (y[i] < 0 || y[i] > 9)) y[i] = i; /* or every large case is refused */
    }
    fz_seal();
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    moe_ep_balance_result *b = fz_out(sizeof *b);
    fz_where = "balance_d";
    s = moe_ep_balance_d(x, n, b, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0) {
        fz_finite("bal", &b->sum, (int)((sizeof *b - offsetof(moe_ep_balance_result, sum)) / 8));
        if (b->argmax < 0 || b->argmax >= n || b->argmin < 0 || b->argmin >= n) fz_fail("argmax %d", b->argmax);
        if (x[b->argmax] < b->max || x[b->argmin] > b->min || b->max < b->p99 || b->p99 < b->p95 ||
            b->p95 < b->p50 || b->p50 < b->min)
            fz_fail("order of max %g p99 %g p95 %g p50 %g min %g", b->max, b->p99, b->p95, b->p50, b->min);
        if (b->effective_experts > n * (1 + 1e-9) || b->idle_fraction < 0 || b->idle_fraction > 1)
            fz_fail("effective %g idle %g", b->effective_experts, b->idle_fraction);
        if (b->balancedness < 0 || b->balancedness > 1 + 1e-12) fz_fail("balancedness %g", b->balancedness);
        if (!fz_extreme && fabs(b->imbalance - moe_ep_imbalance_d(x, n, NULL)) > 1e-12 * b->imbalance)
            fz_fail("imbalance %g, alone %g", b->imbalance, moe_ep_imbalance_d(x, n, NULL));
        if (!fz_extreme && (b->imbalance < 1 - 1e-12 || b->imbalance > n + 1e-9))
            fz_fail("imbalance %g n %d", b->imbalance, n);
        if (!fz_extreme && (b->gini < -1e-12 || b->gini > 1)) fz_fail("gini %g", b->gini);
        if (!fz_extreme && (b->jain < 1. / n - 1e-9 || b->jain > 1 + 1e-9)) fz_fail("jain %g", b->jain);
        if (!fz_extreme && (b->entropy_norm < -1e-12 || b->entropy_norm > 1 + 1e-12))
            fz_fail("entn %g", b->entropy_norm);
    }
    fz_release();
    b = fz_out(sizeof *b);
    fz_where = "balance";
    s = moe_ep_balance(y, n, b, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0) fz_finite("bal", &b->sum, (int)((sizeof *b - offsetof(moe_ep_balance_result, sum)) / 8));
    fz_release();
    fz_where = "imbalance";
    double v = moe_ep_imbalance(y, n, &e);
    if (fz_wild(v) || (v < 0 && v != e.status)) fz_fail("%g", v);
    v = moe_ep_imbalance_d(x, n, &e);
    if (fz_wild(v)) fz_fail("d %g", v);
    fz_where = "eff";
    v = moe_ep_efficiency_d(x, n, &e);
    if (fz_wild(v) || v > 1 + 1e-9) fz_fail("d %g", v);
    v = moe_ep_efficiency(y, n, &e);
    if (fz_wild(v) || v > 1 + 1e-9) fz_fail("%g", v);
    fz_where = "convert";
    double cv = fz_bad_double();
    int f1 = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 2), f2 = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 2);
    v = moe_ep_convert(cv, f1, f2, fz_bad_i32(), &e);
    if (fz_wild(v)) fz_fail("%g from %g %d %d", v, cv, f1, f2);
    if (v >= 0 && f1 == f2 && fabs(v - cv) > 1e-12 * fabs(cv)) fz_fail("%g is %g of its own family", cv, v);
    fz_where = "layers";
    int L = fz_int(1, n);
    int m = n / L;
    moe_ep_layers_result *lr = fz_out(sizeof *lr);
    s = moe_ep_balance_layers_d(x, L, m, lr, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0) {
        fz_finite("lay", &lr->worst_imbalance,
                  (int)((sizeof *lr - offsetof(moe_ep_layers_result, worst_imbalance)) / 8));
        if (lr->loaded_layers < 0 || lr->loaded_layers > L || lr->worst_layer < -1 || lr->worst_layer >= L)
            fz_fail("loaded %d worst %d of %d", lr->loaded_layers, lr->worst_layer, L);
        if (lr->worst_imbalance < lr->p99 * (1 - 1e-12) || lr->p99 < lr->p50)
            fz_fail("worst %g p99 %g p50 %g", lr->worst_imbalance, lr->p99, lr->p50);
        if (lr->balancedness > 1 + 1e-9 || lr->mean_balancedness > 1 + 1e-9)
            fz_fail("balancedness %g, mean %g", lr->balancedness, lr->mean_balancedness);
    }
    fz_release();
    lr = fz_out(sizeof *lr);
    if (fz_grows) {
        s = moe_ep_balance_layers(y, L, m, lr, fz_scratch(), &e);
        fz_error(s, &e);
        fz_untouched(s);
        fz_scratch_done();
        if (s == 0)
            fz_finite("lay", &lr->worst_imbalance,
                      (int)((sizeof *lr - offsetof(moe_ep_layers_result, worst_imbalance)) / 8));
        double *as = fz_out(8 * (size_t)n);
        s = moe_ep_loads_to_double(y, n, as, &e);
        for (int i = 0; i < n; i++)
            if (s || as[i] != (double)y[i]) fz_fail("to_double");
    }
    fz_release();
    double *im = fz_out(8 * L);
    s = moe_ep_layer_imbalances(x, L, m, im, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) fz_finite("li", im, L);
    fz_release();
    moe_ep_steps_result *sr = fz_out(sizeof *sr);
    fz_where = "steps";
    s = moe_ep_balance_steps(x, L, 1, m, sr, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0) {
        fz_finite("st", &sr->max_rows, 4);
        fz_finite("worst", &sr->worst_imbalance, 1);
        if (sr->mean_rows > sr->max_rows * (1 + 1e-12)) fz_fail("mean %g > max %g", sr->mean_rows, sr->max_rows);
    }
    fz_release();
    fz_where = "hot";
    int32_t *li = fz_out(4 * n), *ct = fz_out(4);
    s = moe_ep_hot_list(x, n, fz_chance(.3) ? fz_bad_double() : fz_unit() * 2, li, ct, &e);
    fz_error(s, &e);
    fz_untouched(s);
    for (int i = 0; s == 0 && i < *ct; i++)
        if (li[i] < 0 || li[i] >= n || (i > 0 && x[li[i]] > x[li[i - 1]])) fz_fail("place %d: %d", i, li[i]);
    fz_release();
    li = fz_out(4 * n);
    ct = fz_out(4);
    s = moe_ep_dead_list(x, n, li, ct, &e);
    fz_error(s, &e);
    fz_untouched(s);
    for (int i = 0; s == 0 && i < *ct; i++)
        if (li[i] < 0 || li[i] >= n || x[li[i]] > 0.0 || (i > 0 && li[i] <= li[i - 1])) fz_fail("dead %d", li[i]);
    fz_release();
    fz_where = "coverage";
    double *cu = fz_out(8 * n);
    s = moe_ep_coverage(x, n, cu, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        fz_finite("cov", cu, n);
        if (cu[n - 1] != 1) fz_fail("end %g", cu[n - 1]);
        for (int i = 0; i < n; i++)
            if (cu[i] < 0 || cu[i] > 1 || (i > 0 && cu[i] < cu[i - 1])) fz_fail("share %d is %g", i, cu[i]);
    }
    fz_release();
    fz_where = "share";
    double sh = fz_chance(.3) ? fz_bad_double() : fz_unit();
    int64_t k = moe_ep_experts_for_share(x, n, sh, fz_scratch(), &e);
    fz_scratch_done();
    if (k > n) fz_fail("k");
    v = moe_ep_top_share(x, n, fz_chance(.2) ? fz_bad_i32() : fz_int(0, n), fz_scratch(), &e);
    fz_scratch_done();
    if (fz_wild(v) || v > 1 + 1e-12) fz_fail("top %g", v);
    fz_where = "similarity";
    z = (double *)fz_in(8 * (size_t)n);
    for (int i = 0; i < n; i++) z[i] = fz_chance(.1) ? fz_bad_double() : fz_unit();
    moe_ep_similarity_result *si = fz_out(sizeof *si);
    s = moe_ep_similarity(x, z, n, fz_chance(.3) ? fz_bad_i32() : 0, si, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0) {
        fz_finite("sim", &si->correlation, 4);
        if (fabs(si->correlation) > 1 + 1e-9 || si->cosine < -1e-12 || si->cosine > 1 + 1e-9 || si->l1 < 0 ||
            si->l1 > 2 + 1e-9 || si->overlap < 0 || si->overlap > si->top)
            fz_fail("correlation %g cosine %g l1 %g overlap %d", si->correlation, si->cosine, si->l1, si->overlap);
    }
    fz_release();
    if (fz_grows && fz_more() % 8) return; /* what follows takes most of the time */
    fz_where = "chance";
    moe_ep_chance_result *cr = fz_out(sizeof *cr);
    int64_t T = fz_chance(.3) ? fz_bad_i64() : fz_int(1, 3000);
    int E = fz_chance(.3) ? fz_bad_i32() : fz_int(1, 300),
        K = fz_chance(.3) ? fz_bad_i32() : fz_int(1, E > 0 ? (E < 40 ? E : 40) : 1),
        D = fz_chance(.3) ? fz_bad_i32() : fz_int(1, E > 0 && E < 300 ? E : 1);
    s = moe_ep_chance(T, K, E, cr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        fz_finite("c", (double *)cr, (int)(sizeof *cr / 8));
        if (cr->max_over_mean < 1 - 1e-9)
            fz_fail("max %g T %lld K %d E %d", cr->max_over_mean, (long long)T, K, E);
        if (cr->p05 > cr->p95) fz_fail("p");
    }
    fz_release();
    cr = fz_out(sizeof *cr);
    fz_where = "chance_wr";
    s = moe_ep_chance_with_replacement(T, K, E, cr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) fz_finite("c", (double *)cr, (int)(sizeof *cr / 8));
    fz_release();
    cr = fz_out(sizeof *cr);
    fz_where = "chance_dev";
    s = moe_ep_chance_devices(T, K, E, D, cr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        fz_finite("c", (double *)cr, (int)(sizeof *cr / 8));
        if (cr->max_over_mean < 1 - 1e-9)
            fz_fail("max %g T %lld K %d E %d D %d", cr->max_over_mean, (long long)T, K, E, D);
    }
    fz_release();
    cr = fz_out(sizeof *cr);
    fz_where = "chance_grouped";
    int G = fz_chance(.2) ? fz_bad_i32() : fz_int(1, 12), M = fz_chance(.2) ? fz_bad_i32() : fz_int(1, G > 0 ? G : 1);
    if (fz_chance(.7) && G > 0 && E > 0) E -= E % G;
    s = moe_ep_chance_grouped(T, K, E, D, G, M, cr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        fz_finite("c", (double *)cr, (int)(sizeof *cr / 8));
        if (cr->max_over_mean < 1 - 1e-9 || cr->p05 > cr->p95)
            fz_fail("max %g T %lld K %d E %d D %d, %d of %d", cr->max_over_mean, (long long)T, K, E, D, M, G);
    }
    fz_release();
}

FUZZ_TARGET(balance)
