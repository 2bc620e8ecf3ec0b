/* tests/fuzz/fuzz_cost.c - section 8: bytes, seconds and memory of a layer
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "fuzz_models.h"

static void fz_finite1(const char *n, double x)
{
    if (fz_wild(x)) fz_fail("%s = %g", n, x);
}

static void cost_case(void)
{
    moe_ep_error e;
    moe_ep_status s;
    moe_ep_model m = any_model();
    moe_ep_machine h = any_machine();
    fz_where = "params";
    moe_ep_params_result *pr = fz_out(sizeof *pr);
    s = moe_ep_params(&m, pr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0 && (pr->total < 0 || pr->active < 0)) fz_fail("neg");
    fz_release();
    fz_where = "expert_time";
    int n = fz_int(0, 8);
    int64_t rows[8];
    for (int i = 0; i < 8; i++) rows[i] = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 300);
    moe_ep_device_time *dt = fz_out(sizeof *dt);
    double x = moe_ep_expert_time(&m, &h, rows, n, dt, &e);
    fz_untouched(x < 0 ? (moe_ep_status)x : 0);
    if (fz_wild(x)) fz_fail("%g", x);
    if (x < 0 && x != e.status) fz_fail("st");
    if (x >= 0) {
        fz_finite("dt", &dt->dispatch_s, 5);
    }
    fz_release();
    fz_where = "group_gemm";
    moe_ep_gemm_work *gw = fz_out(sizeof *gw);
    s = moe_ep_group_gemm(&m, rows, n, fz_chance(.2) ? fz_bad_i32() : 64, gw, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) fz_finite("gw", &gw->flops, 5);
    fz_release();
    fz_where = "comm_bytes";
    moe_ep_comm_desc cd;
    memset(&cd, 0, sizeof cd);
    cd.tokens = fz_chance(.2) ? fz_bad_double() : fz_int(0, 500);
    cd.num_experts = fz_int(1, 64);
    cd.top_k = fz_int(1, 8);
    cd.hidden = 7168;
    cd.num_devices = fz_int(1, 16);
    cd.num_nodes = fz_int(0, 4);
    cd.num_groups = fz_chance(.3) ? fz_int(0, 8) : 0;
    cd.top_groups = fz_chance(.3) ? fz_int(0, 4) : 0;
    cd.mode = fz_int(0, 4);
    cd.dispatch_wire = fz_int(0, 4);
    cd.combine_wire = fz_int(0, 4);
    cd.capacity = fz_int(0, 10);
    if (fz_chance(.4)) mutate(&cd, sizeof cd, NULL, 0, 0);
    moe_ep_comm_result *cr = fz_out(sizeof *cr);
    s = moe_ep_comm_bytes(&cd, cr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        fz_finite("cr", (double *)cr, 10);
        for (int i = 0; i < 10; i++)
            if (((double *)cr)[i] < 0) fz_fail("neg field %d %g", i, ((double *)cr)[i]);
    }
    x = moe_ep_logical_time(&cd, fz_int(0, 1), fz_bad_double(), &e);
    fz_finite1("logical_time", x);
    x = moe_ep_logical_Bps(&cd, fz_int(0, 1), fz_bad_double(), &e);
    fz_finite1("logical_Bps", x);
    fz_release();
    fz_where = "comm_time";
    x = moe_ep_comm_time(fz_bad_double(), fz_bad_double(), fz_bad_double(), &e);
    fz_finite1("ct", x);
    x = moe_ep_link_time(&h.ll_dispatch, fz_chance(.5) ? fz_bad_double() : 1e6,
                         fz_chance(.5) ? fz_bad_double() : 1e6, &e);
    fz_finite1("lt", x);
    int64_t rb = moe_ep_row_bytes(fz_bad_i32() % 6, fz_bad_i32(), fz_bad_i32(), &e);
    (void)rb;
    fz_where = "a2a";
    {
        int D = fz_int(1, 5), N = fz_int(1, 3);
        int64_t r[25], nr[15];
        for (int i = 0; i < 25; i++) r[i] = fz_chance(.04) ? fz_bad_i64() : fz_int(0, 9);
        for (int i = 0; i < 15; i++) nr[i] = fz_chance(.04) ? fz_bad_i64() : fz_int(0, 9);
        int32_t nd[5];
        for (int i = 0; i < 5; i++) nd[i] = fz_chance(.05) ? fz_bad_i32() : i * N / 5;
        moe_ep_a2a_desc a;
        memset(&a, 0, sizeof a);
        a.num_devices = D;
        a.num_nodes = fz_chance(.3) ? 0 : N;
        a.rows = r;
        a.node_rows = nr;
        a.node_of_device = fz_chance(.3) ? nd : NULL;
        a.mode = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 4);
        a.row_bytes = fz_chance(.2) ? fz_bad_double() : 1000;
        a.link = h.ll_dispatch;
        a.reverse = fz_int(0, 1);
        moe_ep_a2a_device *dv = fz_out(sizeof *dv * D);
        x = moe_ep_a2a_time(&a, dv, &e);
        fz_finite1("a2a", x);
        if (x < 0) fz_untouched((moe_ep_status)x);
        fz_release();
    }
    fz_where = "expect";
    {
        moe_ep_expect_desc d;
        memset(&d, 0, sizeof d);
        d.tokens = fz_int(0, 5000);
        d.num_experts = fz_int(1, 64);
        d.top_k = fz_int(1, 8);
        d.num_devices = fz_int(0, 20);
        d.num_nodes = fz_int(0, 4);
        d.num_groups = fz_chance(.3) ? fz_int(0, 8) : 0;
        d.top_groups = fz_chance(.3) ? fz_int(0, 8) : 0;
        if (fz_chance(.4)) mutate(&d, sizeof d, NULL, 0, 0);
        if (d.num_devices > 70000) d.num_devices = 70000; /* these two are walked through */
        if (d.num_nodes > 70000) d.num_nodes = 70000;
        if (d.num_experts > 5000000) d.num_experts = fz_chance(.01) ? 5000000 : 500;
        moe_ep_expect_result *r = fz_out(sizeof *r);
        s = moe_ep_expect(&d, r, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) {
            fz_finite("ex", (double *)r, 10);
            if (r->busiest_rows < r->rows_mean * (1 - 1e-6) && d.num_groups < 2)
                fz_fail("busiest %g < mean %g", r->busiest_rows, r->rows_mean);
            if (r->distinct_devices > (d.num_devices ? d.num_devices : 1) + 1e-9) fz_fail("distinct");
        }
        fz_release();
    }
    fz_where = "compose";
    {
        moe_ep_stages a, b;
        double *q = (double *)&a;
        for (int i = 0; i < 5; i++) q[i] = fz_chance(.1) ? fz_bad_double() : fz_unit();
        q = (double *)&b;
        for (int i = 0; i < 5; i++) q[i] = fz_chance(.1) ? fz_bad_double() : fz_unit();
        x = moe_ep_compose(fz_chance(.1) ? fz_bad_i32() : fz_int(0, 3), &a, fz_chance(.5) ? &b : NULL,
                           fz_chance(.2) ? fz_bad_double() : 0, &e);
        fz_finite1("compose", x);
    }
    fz_where = "layer_time";
    {
        int D = fz_int(1, 4), P = fz_int(D, 8);
        int64_t sr[24], tr[64], nt[64];
        for (int i = 0; i < 24; i++) sr[i] = fz_chance(.02) ? fz_bad_i64() : fz_int(0, 300);
        for (int i = 0; i < 64; i++) {
            tr[i] = fz_chance(.01) ? fz_bad_i64() : fz_int(0, 99);
            nt[i] = fz_chance(.01) ? fz_bad_i64() : fz_int(0, 99);
        }
        moe_ep_layer_desc d;
        memset(&d, 0, sizeof d);
        m.num_experts = m.num_experts > P ? P : m.num_experts;
        if (m.top_k > m.num_experts) m.top_k = 1;
        d.model = &m;
        d.machine = &h;
        d.num_devices = D;
        d.num_slots = P;
        d.num_nodes = fz_int(0, D > 1 ? 2 : 1);
        d.tokens = fz_chance(.2) ? fz_bad_i64() : 0;
        d.high_throughput = fz_int(0, 1);
        d.mode = fz_int(0, 4);
        d.dispatch_wire = fz_int(0, 4);
        d.combine_wire = fz_int(0, 4);
        d.capacity = fz_chance(.2) ? fz_bad_double() : fz_int(0, 9);
        if (fz_chance(.3)) {
            d.traffic = tr;
            if (fz_chance(.7)) d.node_traffic = nt;
        }
        d.overlap = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 3);
        d.attention_s = fz_chance(.1) ? fz_bad_double() : 1e-4;
        d.attention_half_s = fz_chance(.1) ? fz_bad_double() : 6e-5;
        d.microbatch_s = fz_chance(.1) ? fz_bad_double() : 0;
        moe_ep_time_result *r = fz_out(sizeof *r);
        moe_ep_device_time *dv = fz_out(sizeof *dv * D);
        s = moe_ep_layer_time(&d, sr, r, dv, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) {
            fz_finite("tr", &r->total_s, 7);
            fz_finite1("mc", r->mean_compute_s);
            fz_finite1("bal", r->balanced_s);
            if (r->no_barrier_s > r->serial_s * (1 + 1e-9)) {
                fz_fail("no_barrier %g > serial %g", r->no_barrier_s, r->serial_s);
            };
            if (r->balanced_s > r->compute_s * (1 + 1e-9)) {
                fz_fail("balanced %g > compute %g", r->balanced_s, r->compute_s);
            };
            if (r->total_s < 0) fz_fail("neg");
        }
        fz_release();
        fz_where = "step";
        int L = fz_int(1, 2);
        moe_ep_step_desc sd;
        memset(&sd, 0, sizeof sd);
        sd.layer = d;
        sd.layer.traffic = NULL;
        sd.num_layers = L;
        sd.other_s = fz_chance(.1) ? fz_bad_double() : 0;
        sd.tokens_per_pass = fz_chance(.2) ? fz_bad_double() : 0;
        moe_ep_step_result *q = fz_out(sizeof *q);
        double *ls = fz_out(8 * L);
        s = moe_ep_step(&sd, sr, q, ls, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) fz_finite("st", (double *)q, 11);
        fz_release();
    }
    fz_where = "memory";
    {
        moe_ep_memory_desc d;
        memset(&d, 0, sizeof d);
        d.model = &m;
        d.num_devices = fz_int(1, 64);
        d.num_slots = fz_chance(.5) ? 0 : fz_int(1, 512);
        d.memory_bytes = fz_chance(.5) ? 0 : 8e10;
        if (fz_chance(.4)) {
            size_t pp[] = {0};
            mutate(&d, sizeof d, pp, 1, 0);
        }
        moe_ep_memory_result *r = fz_out(sizeof *r);
        s = moe_ep_memory(&d, r, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) {
            fz_finite("mem", &r->routed_bytes, 8);
            if (r->kv_tokens < 0) fz_fail("kv %lld", (long long)r->kv_tokens);
        }
        fz_release();
        (void)moe_ep_ll_buffer_bytes(fz_bad_i32(), fz_bad_i32(), fz_bad_i32(), fz_int(0, 1), &e);
        if (moe_ep_ll_buffer_bytes(fz_bad_i32(), fz_bad_i32(), fz_bad_i32(), fz_int(0, 1), &e) < -17)
            fz_fail("llb");
        int32_t a, b, c;
        s = moe_ep_experts_per_device(fz_bad_i32(), fz_bad_i32(), &a, &b, &c, &e);
        fz_error(s, &e);
    }
    fz_where = "check_config";
    {
        moe_ep_config d;
        memset(&d, 0, sizeof d);
        d.model = fz_chance(.5) ? &m : NULL;
        d.num_experts = fz_int(1, 256);
        d.top_k = fz_int(1, 8);
        d.ep = fz_int(1, 72);
        d.equal_slots = fz_int(0, 1);
        d.num_redundant = fz_int(0, 40);
        if (fz_chance(.5)) {
            size_t pp[] = {0};
            mutate(&d, sizeof d, pp, 1, 0);
        }
        int cap = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 12);
        moe_ep_reason rs[64];
        int32_t c, rn;
        if (cap <= 64) {
            s = moe_ep_check_config(&d, rs, cap, &c, &rn, &e);
            fz_error(s, &e);
            if (s == 0)
                for (int i = 0; i < c && i < cap; i++)
                    if (fz_wild(rs[i].have) || fz_wild(rs[i].need) || !rs[i].text)
                        fz_fail("reason %g %g %s", rs[i].have, rs[i].need, rs[i].text);
        }
    }
    fz_where = "payback";
    {
        moe_ep_payback_desc d;
        d.before_s = fz_chance(.3) ? fz_bad_double() : fz_unit();
        d.after_s = fz_chance(.3) ? fz_bad_double() : fz_unit();
        d.moved_slots = fz_chance(.3) ? fz_bad_i64() : 9;
        d.expert_bytes = fz_chance(.3) ? fz_bad_double() : 1e7;
        d.link_Bps = fz_chance(.3) ? fz_bad_double() : 5e10;
        d.pause_s = fz_chance(.3) ? fz_bad_double() : 0;
        moe_ep_payback_result *r = fz_out(sizeof *r);
        s = moe_ep_payback(&d, r, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) fz_finite("pb", (double *)r, 4);
        fz_release();
    }
}

FUZZ_TARGET(cost)
