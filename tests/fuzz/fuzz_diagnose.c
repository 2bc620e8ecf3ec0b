/* tests/fuzz/fuzz_diagnose.c - section 11: verdicts
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "fuzz_models.h"

static void diagnose_case(void)
{
    int L = fz_int(1, 2), E = fz_grow(fz_int(1, 8), 40), D = fz_grow(fz_int(1, 4), E < 4 ? 4 : E < 12 ? E : 12);
    int SA = fz_int(1, 3), SB = fz_int(0, 3);
    double *a = fz_in(8 * L * E * SA), *b = fz_in(8 * L * E * SB), unused;
    int q = fz_int(0, 3);
    for (int i = 0; i < L * E * 4; i++) {
        *(i < L * E * SA ? &a[i] : &unused) = q == 0 ? 0 : q == 1 && fz_chance(.02) ? fz_bad_double() : fz_int(0, 300);
        *(i < L * E * SB ? &b[i] : &unused) = q == 2 ? 0 : q == 1 && fz_chance(.02) ? fz_bad_double() : fz_int(0, 300);
    }
    moe_ep_diagnose_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = L;
    d.num_experts = E;
    d.top_k = fz_chance(.1) ? fz_bad_i32() : fz_int(0, E);
    d.shape.num_devices = D;
    d.shape.num_slots = fz_chance(.5) ? 0 : E + fz_int(0, 4);
    d.policy = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 8);
    d.plan_loads = a;
    d.plan_steps = fz_chance(.05) ? 0 : SA;
    d.judge_loads = fz_chance(.8) ? b : NULL;
    d.judge_steps = SB;
    if (fz_calm) {
        if (SB == 0) d.judge_loads = NULL;
        if (d.top_k < 1 || d.top_k > E) d.top_k = 1;
        d.plan_steps = SA;
    }
    moe_ep_model m = any_model();
    m.num_experts = E;
    if (m.top_k > E) m.top_k = 1;
    moe_ep_machine h = any_machine();
    moe_ep_layer_desc c;
    memset(&c, 0, sizeof c);
    c.model = &m;
    c.machine = &h;
    c.overlap = fz_int(0, 1);
    if (fz_chance(.5)) d.cost = &c;
    if (fz_chance(.3)) moe_ep_diagnose_thresholds(&d);
    d.other_s = fz_chance(.1) ? fz_bad_double() : 0;
    d.expert_bytes = fz_chance(.2) ? fz_bad_double() : 1e6;
    d.move_Bps = fz_chance(.2) ? fz_bad_double() : 1e10;
    d.pause_s = fz_chance(.2) ? fz_bad_double() : 0;
    d.horizon_steps = fz_chance(.2) ? fz_bad_double() : 1000;
    if (fz_chance(.2)) d.min_gain = fz_bad_double();
    if (fz_chance(.1)) d.min_improved = fz_bad_double();
    if (fz_chance(.1)) d.target_imbalance = fz_bad_double();
    if (fz_chance(.1)) d.min_sigmas = fz_bad_double();
    if (fz_chance(.1)) d.min_steps = fz_bad_i32();
    if (fz_calm && d.min_gain >= 1.0) d.min_gain = 0.05;
    if (fz_calm && d.min_improved > 1.0) d.min_improved = 0.8;
    moe_ep_error e = fz_stale;
    moe_ep_shape shape = d.shape;
    moe_ep_placement plan, *want = NULL;
    unsigned char *memory = NULL;
    size_t bytes = 0;
    if (fz_grows && fz_more() % 2 && (bytes = moe_ep_placement_bytes(L, E, &shape)) > 0) {
        memory = fz_work(bytes);
        fz_where = "placement_init";
        if (moe_ep_placement_init(&plan, L, E, &shape, memory, bytes, &e) == MOE_EP_OK) want = &plan;
    }
    if (fz_more() % 4 == 1) {
        d.top_groups = fz_chance(.2) ? fz_bad_i32() : fz_int(0, 4);
        d.router_groups = fz_chance(.2) ? fz_bad_i32() : fz_int(0, E);
    }
    fz_seal();
    moe_ep_diagnosis *o = fz_out(sizeof *o);
    fz_where = "diagnose";
    moe_ep_status s;
    s = moe_ep_diagnose(&d, want, o, fz_scratch(), &e);
    fz_scratch_done();
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        double v[] = {o->hot_share,        o->hot_imbalance,
                      o->mean_rows,        o->before_rows,
                      o->after_rows,       o->bound_rows,
                      o->imbalance_before, o->imbalance_after,
                      o->imbalance_bound,  o->chance_imbalance,
                      o->before_s,         o->after_s,
                      o->balanced_s,       o->gain,
                      o->speedup,          o->improved,
                      o->move_bytes,       o->move_s,
                      o->break_even_steps, o->hot_own,
                      o->gain_sd,          o->improved_wanted};
        moe_ep_check_result valid;
        if (want && o->verdict != MOE_EP_INSUFFICIENT_EVIDENCE && moe_ep_validate(want, 0, &valid, &e) != MOE_EP_OK)
            fz_fail("the plan is not valid: %s", moe_ep_status_str(e.status));
        if (o->hot_share < 0 || o->hot_share > 1 + 1e-9 || o->improved < 0 || o->improved > 1 + 1e-9)
            fz_fail("hot_share %g improved %g", o->hot_share, o->improved);
        if (o->hot_device < -1 || o->hot_device >= D || o->hot_layer < -1 || o->hot_layer >= L || o->moves < 0)
            fz_fail("hot device %d layer %d", o->hot_device, o->hot_layer);
        if (!moe_ep_verdict_str(o->verdict)) fz_fail("no name");
        for (int i = 0; i < 20; i++)
            if (fz_wild(v[i])) fz_fail("field %d = %g q %d", i, v[i], q);
        if (o->bound_rows > o->after_rows * (1 + 1e-9))
            fz_fail("bound %g > after %g", o->bound_rows, o->after_rows);
        if (!memchr(o->text, 0, 320)) fz_fail("text");
        if (o->imbalance_before < 1 - 1e-9 || o->imbalance_bound < 1 - 1e-9)
            fz_fail("imb %g %g", o->imbalance_before, o->imbalance_bound);
    }
    fz_release();
}

FUZZ_TARGET(diagnose)
