/* tests/fuzz/fuzz_balance.c - section 3: measures of balance
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

static void balance_case(void)
{
    int n = fz_int(1, 12);
    double x[12];
    int64_t y[12];
    int q = fz_int(0, 4);
    for (int i = 0; i < n; i++) {
        x[i] = q == 0   ? (fz_chance(.3) ? fz_bad_double() : fz_unit())
               : q == 1 ? (fz_chance(.5) ? 0 : fz_note(fz_unit() * 1e308))
               : q == 2 ? (fz_chance(.5) ? 0 : fz_note(5e-324 * fz_int(0, 9)))
               : q == 3 ? 0
                        : fz_int(0, 99);
        y[i] = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 9);
    }
    moe_ep_error e;
    moe_ep_status s;
    moe_ep_balance_result *b = fz_out(sizeof *b);
    fz_where = "balance_d";
    s = moe_ep_balance_d(x, n, b, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0) {
        fz_finite("bal", &b->sum, (int)((sizeof *b - offsetof(moe_ep_balance_result, sum)) / 8));
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
    fz_where = "layers";
    int L = fz_int(1, n);
    int m = n / L;
    moe_ep_layers_result *lr = fz_out(sizeof *lr);
    s = moe_ep_balance_layers_d(x, L, m, lr, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0)
        fz_finite("lay", &lr->worst_imbalance,
                  (int)((sizeof *lr - offsetof(moe_ep_layers_result, worst_imbalance)) / 8));
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
    }
    fz_release();
    fz_where = "hot";
    int32_t *li = fz_out(4 * n), *ct = fz_out(4);
    s = moe_ep_hot_list(x, n, fz_chance(.3) ? fz_bad_double() : fz_unit() * 2, li, ct, &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_release();
    li = fz_out(4 * n);
    ct = fz_out(4);
    s = moe_ep_dead_list(x, n, li, ct, &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_release();
    fz_where = "coverage";
    double *cu = fz_out(8 * n);
    s = moe_ep_coverage(x, n, cu, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        fz_finite("cov", cu, n);
        if (cu[n - 1] != 1) fz_fail("end %g", cu[n - 1]);
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
    double z[12];
    for (int i = 0; i < n; i++) z[i] = fz_chance(.1) ? fz_bad_double() : fz_unit();
    moe_ep_similarity_result *si = fz_out(sizeof *si);
    s = moe_ep_similarity(x, z, n, fz_chance(.3) ? fz_bad_i32() : 0, si, fz_scratch(), &e);
    fz_error(s, &e);
    fz_untouched(s);
    fz_scratch_done();
    if (s == 0) fz_finite("sim", &si->correlation, 4);
    fz_release();
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
        fz_finite("c", (double *)cr, 9);
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
    if (s == 0) fz_finite("c", (double *)cr, 9);
    fz_release();
    cr = fz_out(sizeof *cr);
    fz_where = "chance_dev";
    s = moe_ep_chance_devices(T, K, E, D, cr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        fz_finite("c", (double *)cr, 9);
        if (cr->max_over_mean < 1 - 1e-9)
            fz_fail("max %g T %lld K %d E %d D %d", cr->max_over_mean, (long long)T, K, E, D);
    }
    fz_release();
}

FUZZ_TARGET(balance)
