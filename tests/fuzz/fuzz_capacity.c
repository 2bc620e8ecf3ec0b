/* tests/fuzz/fuzz_capacity.c - section 4: capacity rules, drops, rerouting
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

static void capacity_case(void)
{
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    moe_ep_capacity_desc d;
    memset(&d, 0, sizeof d);
    fz_where = "capacity";
    d.rule = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 11);
    d.num_tokens = fz_chance(.3) ? fz_bad_i64() : fz_int(1, 500) % 500;
    d.top_k = fz_chance(.2) ? fz_bad_i32() : fz_int(1, 8);
    d.num_experts = fz_chance(.2) ? fz_bad_i32() : fz_int(1, 64);
    d.factor = fz_chance(.3) ? fz_bad_double() : fz_unit() * 3;
    d.min_capacity = fz_chance(.2) ? fz_bad_i64() : 0;
    d.multiple = fz_chance(.3) ? fz_bad_i64() : 0;
    d.world = fz_chance(.2) ? fz_bad_i32() : 0;
    d.max_load = fz_chance(.3) ? fz_bad_i64() : 0;
    d.basis_tokens = fz_int(0, 1);
    d.rounding = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 2);
    d.in_float32 = fz_int(0, 1);
    if (!moe_ep_capacity_rule_name(0) || moe_ep_capacity_rule_name(-1)) fz_fail("names");
    int64_t c = moe_ep_capacity(&d, &e);
    if (c < 0 && c != e.status) fz_fail("st %lld", (long long)c);
    if (c >= 0 && e.status) fz_fail("st2");
    int E = fz_grow(fz_int(1, 6), 60), K = fz_int(1, 4);
    int64_t T = fz_grow(fz_int(0, 12), 60);
    int bad;
    int32_t *ids = fz_ids(T * K, E, fz_chance(.1), &bad);
    float *w = fz_in(4 * T * K);
    for (int i = 0; i < T * K; i++)
        w[i] = fz_chance(.02) ? fz_bad_float() : fz_chance(.3) ? .5f : (float)fz_unit();
    moe_ep_drop_policy P;
    memset(&P, 0, sizeof P);
    P.capacity = fz_chance(.1) ? fz_bad_i64() : fz_int(1, 6) % 6;
    int64_t *caps = fz_in(8 * E);
    for (int i = 0; i < E; i++) caps[i] = fz_chance(.03) ? fz_bad_i64() : fz_int(0, 5);
    if (fz_chance(.2)) P.capacities = caps;
    P.order = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 4);
    P.norm = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 2);
    P.eps_mode = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 2);
    P.eps = fz_chance(.1) ? fz_bad_float() : 1e-9f;
    P.keep_weights = fz_int(0, 1);
    P.slots_by_token = fz_int(0, 1);
    P.norm_skip_k1 = fz_int(0, 1);
    P.capacity_given = P.slots_by_token; /* no draw of its own: findings.h keeps its cases */
    P.group_tokens = fz_chance(.3) ? fz_bad_i64() : fz_chance(.5) ? fz_int(0, 5) : 0;
    float *pr = fz_in(4 * (T < 12 ? 12 : T));
    for (int i = 0; i < (T < 12 ? 12 : T); i++) pr[i] = fz_chance(.02) ? fz_bad_float() : (float)fz_unit();
    if (fz_chance(.3)) P.priority = pr;
    moe_ep_rng g = moe_ep_rng_seed(fz_state);
    if (fz_seldom(4)) { /* a preset instead */
        int64_t C = P.capacity;
        moe_ep_drop_policy list[] = {moe_ep_drop_switch(C),
                                     moe_ep_drop_hf_switch(C),
                                     moe_ep_drop_gshard_legacy(C),
                                     moe_ep_drop_gshard(C),
                                     moe_ep_drop_deepspeed_top1(C),
                                     moe_ep_drop_deepspeed_top2(C),
                                     moe_ep_drop_deepspeed_position(C),
                                     moe_ep_drop_deepspeed_probs(C),
                                     moe_ep_drop_megatron_probs(C),
                                     moe_ep_drop_megatron_position(C),
                                     moe_ep_drop_tutel(C, 1),
                                     moe_ep_drop_nllb(C, 1, 1),
                                     moe_ep_drop_flaxformer(C, 1),
                                     moe_ep_drop_megablocks(C),
                                     moe_ep_drop_maxtext(C),
                                     moe_ep_drop_hunyuan(C)};
        P = list[fz_more() % (sizeof list / sizeof *list)];
    }
    if (fz_chance(.8)) P.rng = &g;
    fz_seal();
    uint8_t *keep = fz_out(T * K);
    int64_t *sl = fz_out(8 * T * K), *po = fz_out(8 * T * K);
    float *wa = fz_out(4 * T * K);
    moe_ep_drop_result *r = fz_out(sizeof *r);
    fz_where = "drop";
    moe_ep_rng g0 = g;
    s = moe_ep_drop(&P, ids, fz_chance(.9) ? w : NULL, T, K, E, keep, sl, po, wa, r, fz_scratch(), &e);
    fz_scratch_done();
    fz_error(s, &e);
    fz_untouched(s);
    if (s < 0 && memcmp(&g, &g0, sizeof g)) fz_fail("rng advanced on error %d", s);
    if (s == 0) {
        if (r->kept + r->dropped != r->assignments || r->assignments + r->skipped != T * K)
            fz_fail("conservation");
        int64_t k = 0;
        int64_t G = P.group_tokens > 0 ? P.group_tokens : T;
        for (int64_t g1 = 0; g1 < T; g1 += (G > 0 ? G : 1)) {
            int64_t ng = g1 + G < T ? G : T - g1;
            if (G > T) ng = T;
            for (int x = 0; x < E; x++) {
                int64_t cap = P.capacities ? caps[x] : P.capacity;
                int64_t have = 0, load = 0;
                uint8_t used[64] = {0};
                for (int64_t i = g1 * K; i < (g1 + ng) * K; i++)
                    if (ids[i] == x) {
                        load++;
                        if (keep[i]) {
                            have++;
                            if (sl[i] < 0 || sl[i] >= cap) fz_fail("slot range");
                            else if (sl[i] < 64) {
                                if (used[sl[i]]) fz_fail("slot twice");
                                used[sl[i]] = 1;
                            }
                        } else if (sl[i] != -1) fz_fail("slot of dropped");
                    }
                if (have != (load < cap ? load : cap))
                    fz_fail("kept %lld of load %lld cap %lld", (long long)have, (long long)load,
                            (long long)cap);
            }
            if (G > T) break;
        }
        for (int i = 0; i < T * K; i++) {
            k += keep[i];
            if (fz_wild(wa[i])) fz_fail("w %g norm %d eps %g mode %d", wa[i], P.norm, P.eps, P.eps_mode);
        }
        if (k != r->kept) fz_fail("kept cnt");
        if (fz_wild(r->weight_kept)) fz_fail("wk");
        fz_where = "pad";
        int64_t C = fz_chance(.1) ? fz_bad_i64() : fz_int(1, 5) % 5;
        if (T > 0) {
            uint8_t *mp = fz_work(T * E);
            int64_t ad;
            s = moe_ep_pad_to_capacity(ids, keep, T, K, E, C, mp, &ad, &e);
        }
        fz_where = "dropcounts";
        int D = fz_int(1, 3);
        int64_t pe[60], pd[3];
        s = moe_ep_drop_counts(ids, keep, T * K, E, NULL, D, pe, pd, &e);
        if (s == 0) {
            int64_t a = 0, b2 = 0;
            for (int i = 0; i < E; i++) a += pe[i];
            for (int i = 0; i < D; i++) b2 += pd[i];
            if (a != r->dropped || b2 != a) fz_fail("counts");
        }
    }
    fz_release();
    fz_where = "reroute";
    int R = fz_int(K, K + 2);
    int bad2;
    int32_t *cd = fz_ids(T * R, E, fz_chance(.05), &bad2);
    uint8_t *kp = fz_in(T * K);
    for (int i = 0; i < T * K; i++) kp[i] = fz_chance(.5);
    float *cw = fz_in(4 * T * R);
    for (int i = 0; i < T * R; i++) cw[i] = (float)fz_unit();
    int32_t *oi = fz_out(4 * T * K);
    float *ow = fz_out(4 * T * K);
    int64_t *rr = fz_out(8);
    s = moe_ep_reroute(cd, fz_chance(.8) ? cw : NULL, kp, T, K, R, E,
                       fz_chance(.1) ? fz_bad_i64() : fz_int(1, 5) % 5, oi, ow, rr, fz_scratch(), &e);
    fz_scratch_done();
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0)
        for (int i = 0; i < T * K; i++)
            if (oi[i] < -1 || oi[i] >= E) fz_fail("id");
    int64_t *l = fz_in(8 * E);
    for (int i = 0; i < E; i++) l[i] = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 99);
    fz_where = "dropped";
    int64_t dt = moe_ep_dropped_tokens(l, E, fz_bad_i64(), &e);
    if (dt < 0 && dt != e.status) fz_fail("st");
    double v = moe_ep_smallest_capacity_factor(l, E, fz_bad_i64(), &e);
    if (fz_wild(v)) fz_fail("scf %g", v);
    fz_release();
}

FUZZ_TARGET(capacity)
