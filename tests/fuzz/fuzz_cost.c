/* tests/fuzz/fuzz_cost.c - section 8: bytes, seconds and memory of a layer
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "fuzz_models.h"

static void fz_finite1(const char *n, double x)
{
    if (fz_wild(x)) fz_fail("%s = %g", n, x);
}

/* Tables, attention, calibration: what takes longer or is asked for less often. */
static void cost_more(const moe_ep_model *m, const moe_ep_machine *h)
{
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    int R = fz_int(1, 5), A = fz_int(1, 4), n = fz_int(1, 6);
    double *rows = fz_in(8 * R), *active = fz_in(8 * A), *us = fz_in(8 * R * A), x, y;
    moe_ep_time_table table = {R, A, rows, active, us};
    moe_ep_a2a_tables wires;
    for (int i = 0; i < R; i++) rows[i] = fz_chance(.05) ? fz_bad_double() : 8.0 * (1 << i);
    for (int i = 0; i < A; i++) active[i] = fz_chance(.05) ? fz_bad_double() : 1.0 + 3.0 * i;
    for (int i = 0; i < R * A; i++) us[i] = fz_chance(.03) ? fz_bad_double() : 1.0 + 100.0 * fz_unit();
    if (fz_chance(.05)) table.num_rows = fz_bad_i32() % R;
    fz_seal();
    fz_where = "table";
    x = moe_ep_table_us(&table, fz_chance(.2) ? fz_bad_double() : fz_int(0, 400),
                        fz_chance(.2) ? fz_bad_double() : fz_int(0, 16), &e);
    fz_finite1("table_us", x);
    if (x < 0 && x != (double)e.status) fz_fail("%g, status %d", x, e.status);
    x = moe_ep_table_expert_us(&table, 0, fz_int(0, 9), fz_int(0, 99), 0, NULL, 0);
    fz_finite1("table_expert_us", x);
    memset(&wires, 0, sizeof wires);
    wires.intra[0].num = wires.inter[1].num = R;
    wires.intra[0].bytes = wires.inter[1].bytes = rows;
    wires.intra[0].us = wires.inter[1].us = us;
    x = moe_ep_table_a2a_us(&wires, fz_chance(.1) ? fz_bad_i32() : fz_int(0, 1), 0, fz_unit() * 1e3, fz_unit() * 1e3,
                            fz_chance(.1) ? fz_bad_double() : 1.0, 0.0);
    fz_finite1("table_a2a_us", x);
    fz_where = "attention";
    x = moe_ep_attention_time(m, h, fz_chance(.2) ? fz_bad_double() : fz_int(0, 900),
                              fz_chance(.2) ? fz_bad_double() : 4096, &e);
    fz_finite1("attention_time", x);
    fz_where = "link_time_rows";
    x = moe_ep_link_time_rows(&h->ll_combine, fz_chance(.2) ? fz_bad_double() : 1e6, 1e5,
                              fz_chance(.2) ? fz_bad_double() : 9, fz_chance(.2) ? fz_bad_double() : 3, &e);
    fz_finite1("link_time_rows", x);
    y = moe_ep_link_time(&h->ll_combine, 1e6, 1e5, &e);
    if (y >= 0 && !(moe_ep_link_time_rows(&h->ll_combine, 1e6, 1e5, 0, 0, &e) <= y * (1 + 1e-12))) fz_fail("%g", y);
    if (!moe_ep_regime_str((moe_ep_regime)fz_int(-1, 9))) fz_fail("no name");
    if (fz_more() % 64) return;
    fz_where = "calibrate";
    {
        moe_ep_expert_row *er = fz_in(sizeof *er * n);
        moe_ep_link_row *lr = fz_in(sizeof *lr * n);
        moe_ep_calibrate_desc d;
        moe_ep_machine *out;
        moe_ep_calibrate_result *r;
        double *ee, *le;
        memset(er, 0, sizeof *er * n);
        memset(lr, 0, sizeof *lr * n);
        memset(&d, 0, sizeof d);
        for (int i = 0; i < n; i++) {
            er[i].num_slots = fz_chance(.05) ? fz_bad_i32() : fz_int(1, 9);
            if (er[i].num_slots > 1000) er[i].num_slots = 1000;
            er[i].rows_per_slot = fz_chance(.05) ? fz_bad_double() : fz_int(1, 999);
            er[i].spread = fz_chance(.1) ? fz_bad_double() : 0;
            er[i].product = fz_int(0, 2);
            er[i].seconds = fz_chance(.05) ? fz_bad_double() : 1e-5 * (1 + fz_unit());
            lr[i].phase = (moe_ep_phase)(fz_chance(.03) ? fz_bad_i32() : fz_int(0, 3));
            lr[i].intra_bytes = fz_chance(.05) ? fz_bad_double() : 1e6 * fz_unit();
            lr[i].inter_bytes = fz_chance(.05) ? fz_bad_double() : 1e6 * fz_unit();
            lr[i].rows = fz_int(0, 99);
            lr[i].peers = fz_int(0, 9);
            lr[i].seconds = fz_chance(.05) ? fz_bad_double() : 1e-5 * (1 + fz_unit());
        }
        d.start = h;
        d.model = m;
        d.experts = fz_chance(.8) ? er : NULL;
        d.num_experts = d.experts ? n : 0;
        d.links = fz_chance(.8) ? lr : NULL;
        d.num_links = d.links ? n : 0;
        d.keep_tile = fz_int(0, 1);
        fz_seal();
        out = fz_out(sizeof *out);
        r = fz_out(sizeof *r);
        ee = fz_out(8 * n);
        le = fz_out(8 * n);
        s = moe_ep_calibrate(&d, out, r, d.experts ? ee : NULL, d.links ? le : NULL, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) {
            if (d.experts) fz_finite("expert errors", ee, n);
            if (d.links) fz_finite("link errors", le, n);
            fz_finite("fit", &r->experts.before, 4);
            for (int i = 0; i < 4; i++) fz_finite("link fit", &r->link[i].before, 4);
        }
        fz_release();
    }
}

static void cost_case(void)
{
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    moe_ep_model m = any_model();
    moe_ep_machine h = any_machine();
    if (fz_seldom(8)) {
        cost_more(&m, &h);
        return;
    }
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
        int D = fz_grow(fz_int(1, 5), 20), N = fz_int(1, 3);
        int64_t *r = fz_in(8 * (D < 5 ? 25 : D * D)), *nr = fz_in(8 * (D < 5 ? 15 : D * N));
        for (int i = 0; i < (D < 5 ? 25 : D * D); i++) r[i] = fz_chance(.04) ? fz_bad_i64() : fz_int(0, 9);
        for (int i = 0; i < (D < 5 ? 15 : D * N); i++) nr[i] = fz_chance(.04) ? fz_bad_i64() : fz_int(0, 9);
        int32_t *nd = fz_in(4 * (D < 5 ? 5 : D));
        for (int i = 0; i < (D < 5 ? 5 : D); i++) nd[i] = fz_chance(.05) ? fz_bad_i32() : i * N / (D < 5 ? 5 : D);
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
        if (x >= 0)
            for (int i = 0; i < D; i++) fz_finite("device", (const double *)&dv[i], (int)(sizeof *dv / 8));
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
            if (r->busiest_rows < r->rows_mean * (1 - 1e-6))
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
            fz_finite1("bal_total", r->balanced_total_s);
            if (r->balanced_total_s > r->total_s * (1 + 1e-9))
                fz_fail("balanced %g > total %g", r->balanced_total_s, r->total_s);
            if (r->total_s < 0) fz_fail("neg");
            for (int i = 0; i < D; i++) fz_finite("device", &dv[i].dispatch_s, 5);
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
        memset(&d, 0, sizeof d);
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
    fz_where = "ep_vs_tp";
    {
        moe_ep_ep_vs_tp_desc d;
        moe_ep_ep_vs_tp_result *r = fz_out(sizeof *r);
        memset(&d, 0, sizeof d);
        d.model = &m;
        d.machine = &h;
        d.num_devices = fz_chance(.1) ? fz_bad_i32() : fz_int(1, 40);
        d.num_nodes = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 4);
        d.num_slots = fz_chance(.1) ? fz_bad_i32() : fz_chance(.5) ? 0 : fz_int(1, 300);
        d.tokens = fz_chance(.1) ? fz_bad_double() : fz_int(1, 4096);
        d.imbalance = fz_chance(.1) ? fz_bad_double() : fz_chance(.5) ? 0 : 1 + fz_unit();
        d.high_throughput = fz_int(0, 1);
        d.mode = (moe_ep_a2a_mode)fz_int(-1, 5);
        d.dispatch_wire = (moe_ep_wire)fz_int(-1, 5);
        d.combine_wire = (moe_ep_wire)fz_int(-1, 5);
        d.dispatch_extra = fz_chance(.1) ? fz_bad_i32() : 0;
        d.capacity = fz_chance(.2) ? fz_bad_double() : fz_int(0, 64);
        s = moe_ep_ep_vs_tp(&d, r, &e);
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0) fz_finite("ep_vs_tp", (double *)r, (int)(sizeof *r / sizeof(double)));
        fz_release();
    }
}

FUZZ_TARGET(cost)
