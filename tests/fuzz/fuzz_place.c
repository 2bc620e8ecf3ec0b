/* tests/fuzz/fuzz_place.c - section 5: planners, rebalancing, moves, maps of other frameworks
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "fuzz_shapes.h"

static void plan_and_change(void)
{
    int E = fz_grow(fz_int(1, 10), 80), L = fz_int(1, 2);
    if (E > 10 && E <= 24 && fz_more() % 8) E += 24; /* up to there the search is exact and takes milliseconds */
    int32_t *spd = fz_in(4 * FZ_DEVICES), *nod = fz_in(4 * FZ_DEVICES);
    double *sp = fz_in(8 * FZ_DEVICES);
    uint8_t *in = fz_in(FZ_DEVICES);
    moe_ep_place_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = L;
    d.num_experts = E;
    make_shape(&d.shape, E, spd, nod, sp, in);
    int steps = fz_chance(.2) ? fz_int(1, 3) : 0;
    double *ld = fz_in(8 * L * E * (steps ? steps : 1)), unused;
    int q = fz_int(0, 5);
    for (int i = 0; i < L * E * 4; i++)
        *(i < L * E * (steps ? steps : 1) ? &ld[i] : &unused) = q == 0                     ? 0
                : q == 1                   ? fz_int(0, 3)
                : q == 2 && fz_chance(.05) ? fz_bad_double()
                : q == 3                   ? fz_note(fz_unit() * 1e-310)
                : q == 4                   ? pow(10, fz_int(0, 6))
                                           : fz_int(0, 1000);
    d.loads = fz_chance(.98) ? ld : NULL;
    d.num_steps = steps;
    d.risk_z = fz_chance(.2) ? (fz_chance(.3) ? fz_bad_double() : .674) : 0;
    d.num_groups = fz_chance(.3) ? fz_int(0, 4) : 0;
    d.eplb_mode = fz_int(0, 2);
    moe_ep_error e = fz_stale;
    moe_ep_status s = 0;
    if (!make_placement(L, E, &d.shape)) return;
    int32_t *lsl = fz_in(4 * L), none, *put;
    for (int i = 0; i < 2; i++)
        *(i < L ? &lsl[i] : &none) = fz_chance(.05) ? fz_bad_i32() : fz_int(E, PL.num_slots > E ? PL.num_slots : E);
    int32_t *pin = fz_in(4 * L * E), *hn = fz_in(4 * L * E);
    for (int i = 0; i < (L * E < 20 ? 20 : L * E); i++) {
        put = i < L * E ? &pin[i] : &none;
        *put = fz_chance(.8) ? -1 : fz_chance(.03) ? fz_bad_i32() : fz_int(0, PL.num_devices - 1);
        if (i >= 20 && fz_more() % 8) *put = -1; /* or no large plan is feasible */
    }
    if (fz_chance(.15)) d.layer_slots = lsl;
    if (fz_chance(.15)) d.pinned = pin;
    if (fz_chance(.15)) d.max_replicas = fz_int(-1, 3);
    if (fz_chance(.2)) d.max_refinements = fz_int(-1, 4);
    if (fz_chance(.15)) {
        d.node_soft = 1;
        d.max_off_node = fz_chance(.1) ? fz_bad_double() : fz_unit();
    }
    for (int i = 0; i < (L * E < 20 ? 20 : L * E); i++)
        *(i < L * E ? &hn[i] : &none) = fz_chance(.02) ? fz_bad_i32() : fz_int(0, PL.num_nodes - 1);
    if (fz_chance(.1)) d.home_node = hn;
    int64_t *co = fz_in(8 * L * E * E);
    for (int i = 0; i < L * E * E; i++) co[i] = fz_chance(.002) ? fz_bad_i64() : fz_int(0, 9);
    if (fz_chance(.15)) {
        d.coactivation = co;
        d.coactivation_slack = fz_chance(.1) ? fz_bad_double() : .1;
    }
    d.allow_duplicates = fz_chance(.2);
    fz_seal();
    moe_ep_plan_result *r = fz_out(sizeof *r * L);
    size_t pb = moe_ep_placement_bytes(L, E, &d.shape);
    unsigned char *save = fz_work(pb), *bb = NULL;
    double plain_max = -1.0; /* of layer 0, planned with nothing but a shape and loads */
    memcpy(save, memory, pb);
    int w = fz_int(0, 5);
    if (w == 5 && fz_grows && fz_more() % 2) w = (int)(fz_more() % 5); /* it takes most of the time */
    static const char *nm[] = {"rr", "contiguous", "lpt", "eplb", "trtllm", "best"};
    fz_where = nm[w];
    moe_ep_scratch *S = fz_scratch();
    switch (w) {
    case 0: s = moe_ep_place_round_robin(&d, &PL, r, S, &e); break;
    case 1: s = moe_ep_place_contiguous(&d, &PL, r, S, &e); break;
    case 2: s = moe_ep_place_lpt(&d, &PL, r, S, &e); break;
    case 3: s = moe_ep_place_eplb(&d, &PL, r, S, &e); break;
    case 4: s = moe_ep_place_trtllm(&d, &PL, r, S, &e); break;
    default: s = moe_ep_best_placement(&d, &PL, r, S, &e);
    }
    if (s == MOE_EP_ERR_SCRATCH && S && fz_scratch_kind == 2)
        fz_fail("scratch too small at 4 MB need %zu", S->need);
    if (s == MOE_EP_ERR_SCRATCH && S) {
        size_t need = S->need;
        fz_scratch_done();
        fz_scratch_kind = 9;
        bb = fz_work(need + 1);
        moe_ep_scratch f = moe_ep_scratch_fixed(bb + 1, need);
        moe_ep_error e2 = fz_stale;
        if (fz_chance(.5)) f = moe_ep_scratch_fixed(bb, need);
        moe_ep_plan_result r2[2];
        moe_ep_status s2 = w == 0   ? moe_ep_place_round_robin(&d, &PL, r2, &f, &e2)
                           : w == 1 ? moe_ep_place_contiguous(&d, &PL, r2, &f, &e2)
                           : w == 2 ? moe_ep_place_lpt(&d, &PL, r2, &f, &e2)
                           : w == 3 ? moe_ep_place_eplb(&d, &PL, r2, &f, &e2)
                           : w == 4 ? moe_ep_place_trtllm(&d, &PL, r2, &f, &e2)
                                    : moe_ep_best_placement(&d, &PL, r2, &f, &e2);
        if (s2 == MOE_EP_ERR_SCRATCH) fz_fail("need %zu given, then %zu", need, f.need);
        if (s2 == 0) memcpy(memory, save, pb);
    } else fz_scratch_done();
    fz_error(s, &e);
    fz_untouched(s);
    if (s < 0 && memcmp(save, memory, pb)) fz_fail("placement touched on %s", moe_ep_status_str(s));
    if (s == 0) {
        moe_ep_check_result c;
        moe_ep_status v = moe_ep_validate(&PL, w == 5 && !d.allow_duplicates ? 1 : 0, &c, &e);
        if (v < 0) fz_fail("invalid %s %s[%lld]", moe_ep_status_str(v), e.arg, (long long)e.index);
        if (c.on_inactive) fz_fail("on inactive");
        for (int l = 0; l < L; l++) {
            if (fz_wild(r[l].gap) || fz_wild(r[l].imbalance) || fz_wild(r[l].max) ||
                fz_wild(r[l].lower_bound) || fz_wild(r[l].node_imbalance) || fz_wild(r[l].off_node))
                fz_fail("nan in result gap %g imb %g max %g nodeimb %g q %d", r[l].gap, r[l].imbalance,
                        r[l].max, r[l].node_imbalance, q);
            fz_finite("plan", &r[l].mean, 1);
            if (r[l].imbalance < 1 - 1e-9 || r[l].duplicates < 0) fz_fail("imbalance %g", r[l].imbalance);
            if (r[l].lower_bound > r[l].max * (1 + 1e-9))
                fz_fail("bound %.17g > max %.17g dups %d", r[l].lower_bound, r[l].max, r[l].duplicates);
            if (d.layer_slots && w == 5 && r[l].slots_used > lsl[l]) {
                fz_fail("layer slots");
            }
            if (d.max_replicas > 0 && w == 5 && r[l].max_replicas > d.max_replicas)
                fz_fail("max_replicas %d", r[l].max_replicas);
        }
        if (d.pinned && w == 5)
            for (int l = 0; l < L; l++)
                for (int x = 0; x < E; x++)
                    if (pin[l * E + x] >= 0) {
                        int ok = 0;
                        for (int i = 0; i < PL.num_slots; i++)
                            ok |= PL.slot_expert[l * PL.num_slots + i] == x &&
                                  PL.slot_device[i] == pin[l * E + x];
                        if (!ok) fz_fail("pin lost");
                    }
        if (!steps && !d.risk_z && w != 0 && w != 1) {
            moe_ep_plan_result ev[2];
            v = moe_ep_evaluate(&PL, ld, 0, ev, NULL, &e);
            if (!fz_extreme && ld && q != 2) { /* what the devices hold is what came in */
                double *dl = fz_out(8 * L * PL.num_devices), in_all = 0, out_all = 0;
                s = moe_ep_device_loads(&PL, ld, dl, &e);
                for (int i = 0; i < L * PL.num_devices; i++) out_all += dl[i];
                for (int i = 0; i < L * E; i++) in_all += ld[i];
                if (s || fabs(in_all - out_all) > 1e-9 * in_all) fz_fail("device loads: %g of %g", out_all, in_all);
            }
            if (!d.shape.inactive && !d.shape.speed) plain_max = r[0].max;
            if (v == 0)
                for (int l = 0; l < L; l++) {
                    if (fabs(ev[l].max - r[l].max) > 1e-9 * (r[l].max + 1e-300))
                        fz_fail("evaluate %g vs plan %g", ev[l].max, r[l].max);
                    if (ev[l].lower_bound > ev[l].max * (1 + 1e-9)) fz_fail("ev bound");
                }
        }
        fz_release();
        if (fz_chance(.5)) {
            moe_ep_rebalance_desc rb;
            memset(&rb, 0, sizeof rb);
            rb.current = &PL;
            double *l2 = fz_in(8 * L * E);
            for (int i = 0; i < L * E; i++) l2[i] = fz_chance(.01) ? fz_bad_double() : fz_int(0, 1000);
            rb.loads = l2;
            rb.target = fz_chance(.2) ? fz_bad_double() : fz_chance(.5) ? 1.1 : 0;
            rb.max_moves = fz_chance(.2) ? fz_bad_i64() : fz_int(0, 5);
            rb.max_layer_moves = fz_chance(.1) ? fz_bad_i32() : 0;
            rb.max_device_moves = fz_chance(.1) ? fz_bad_i32() : 0;
            rb.max_link_moves = fz_chance(.1) ? fz_bad_i32() : 0;
            if (fz_seldom(8)) rb.max_replicas = (int32_t)(fz_more() % 5) - 1;
            int32_t *slots = fz_in(4 * L), spare = PL.num_slots > E ? PL.num_slots - E : 0;
            for (int i = 0; i < L; i++)
                slots[i] = fz_seldom(100) ? E - 1 : E + (int32_t)(fz_more() % ((uint64_t)spare + 1));
            if (fz_seldom(6)) rb.layer_slots = slots;
            if (fz_chance(.3)) PL.device_inactive[fz_int(0, PL.num_devices - 1)] = 1;
            unsigned char *m2 = fz_work(pb);
            moe_ep_placement P2;
            moe_ep_placement_init(&P2, L, E, &d.shape, m2, pb, &e);
            memcpy(P2.device_inactive, PL.device_inactive, PL.num_devices);
            unsigned char *sv = fz_work(pb);
            memcpy(sv, m2, pb);
            moe_ep_plan_result *r2 = fz_out(sizeof *r2 * L);
            fz_where = "rebalance";
            s = moe_ep_rebalance(&rb, &P2, r2, fz_scratch(), &e);
            fz_scratch_done();
            fz_error(s, &e);
            fz_untouched(s);
            if (s < 0 && memcmp(sv, m2, pb)) fz_fail("out touched on %d", s);
            if (s == 0) {
                v = moe_ep_validate(&P2, 0, &c, &e);
                if (v < 0) fz_fail("invalid %s %s", moe_ep_status_str(v), e.arg);
                int64_t mv = 0;
                for (int l = 0; l < L; l++) {
                    mv += r2[l].moves;
                    if (fz_wild(r2[l].max) || fz_wild(r2[l].gap)) fz_fail("nan");
                    if (rb.layer_slots && r2[l].slots_used > slots[l] &&
                        r2[l].slots_used > PL.replica_start[l * (E + 1) + E])
                        fz_fail("%d slots used of %d", r2[l].slots_used, slots[l]);
                    if (r2[l].lower_bound > r2[l].max * (1 + 1e-9))
                        fz_fail("bound %g > %g", r2[l].lower_bound, r2[l].max);
                    if (r2[l].max > r2[l].max_before * (1 + 1e-9) &&
                        !memchr(PL.device_inactive, 1, PL.num_devices)) {
                        fz_fail("worse %g > %g layer %d", r2[l].max, r2[l].max_before, l);
                    }
                }
                if (rb.max_moves > 0 && mv > rb.max_moves && !memchr(PL.device_inactive, 1, PL.num_devices)) {
                    fz_fail("moves %lld limit %lld", (long long)mv, (long long)rb.max_moves);
                }
                fz_where = "plan_moves";
                moe_ep_moves_result mr;
                s = moe_ep_plan_moves(&PL, &P2, fz_chance(.1) ? fz_bad_double() : 1, NULL, 0, &mr,
                                      fz_scratch(), &e);
                fz_scratch_done();
                fz_error(s, &e);
                if (s == 0) {
                    moe_ep_move *m = fz_in(sizeof *m * mr.moves);
                    int64_t nm2 = mr.moves;
                    s = moe_ep_plan_moves(&PL, &P2, 1, m, nm2, &mr, NULL, &e);
                    if (s) fz_fail("second %d", s);
                    else
                        for (int64_t i = 0; i < nm2; i++) {
                            if (m[i].layer < 0 || m[i].layer >= L || m[i].expert < 0 || m[i].expert >= E ||
                                m[i].to_slot < 0 || m[i].to_slot >= PL.num_slots)
                                fz_fail("range");
                            else if (P2.slot_expert[m[i].layer * PL.num_slots + m[i].to_slot] != m[i].expert)
                                fz_fail("to_slot holds other");
                            else if (m[i].from_slot >= 0 &&
                                     PL.slot_expert[m[i].layer * PL.num_slots + m[i].from_slot] !=
                                         m[i].expert)
                                fz_fail("from_slot holds other");
                            for (int64_t j = 0; j < i; j++)
                                if (m[j].round == m[i].round &&
                                    ((m[j].from_device == m[i].from_device && m[i].from_device >= 0) ||
                                     m[j].to_device == m[i].to_device))
                                    fz_fail("round clash");
                            for (int64_t j = 0; j < i; j++)
                                if (m[j].round == m[i].round && m[j].layer != m[i].layer)
                                    fz_fail("two layers in a round");
                        }
                }
                fz_where = "relabel";
                s = moe_ep_relabel(&PL, &P2, fz_chance(.1) ? fz_bad_i32() : fz_int(0, 3), fz_scratch(), &e);
                fz_scratch_done();
                fz_error(s, &e);
                v = moe_ep_validate(&P2, 0, &c, &e);
                if (v < 0) fz_fail("invalid after relabel %d st %d", v, s);
            }
        }
        fz_release();
        if (fz_seldom(8)) {
            double *nl = fz_out(8 * L * PL.num_nodes), *wl = fz_out(8 * L * E);
            unsigned char *m3 = fz_work(pb);
            moe_ep_placement P3;
            moe_ep_error e3 = fz_stale;
            fz_where = "node_loads";
            fz_error(moe_ep_node_loads(&PL, ld, nl, &e3), &e3);
            if (e3.status == 0) fz_finite("node", nl, L * PL.num_nodes);
            fz_where = "window_loads";
            fz_error(
                moe_ep_window_loads(ld, steps ? steps : 1, L, E, fz_chance(.2) ? fz_bad_double() : 1, wl, &e3),
                &e3);
            if (e3.status == 0) fz_finite("window", wl, L * E);
            fz_where = "placement_copy";
            moe_ep_placement_init(&P3, L, E, &d.shape, m3, pb, &e3);
            if (moe_ep_placement_copy(&PL, &P3, &e3) || memcmp(PL.slot_expert, P3.slot_expert, 4 * L * PL.num_slots))
                fz_fail("status %d", e3.status);
            fz_where = "devices_placement";
            int32_t *dr = fz_in(4 * L * E);
            for (int i = 0; i < L * E; i++) dr[i] = fz_chance(.01) ? fz_bad_i32() : fz_int(0, PL.num_devices - 1);
            v = moe_ep_devices_placement(dr, NULL, &P3, &e3);
            fz_error(v, &e3);
            if (v == 0 && moe_ep_validate(&P3, 0, &c, &e3) && e3.status != MOE_EP_ERR_LOST_EXPERT)
                fz_fail("not valid: %s", moe_ep_status_str(e3.status));
            if (!moe_ep_bound_str((moe_ep_bound)fz_int(0, 3)) ||
                !moe_ep_place_policy_str((moe_ep_place_policy)w))
                fz_fail("no name");
            fz_release();
        }
        fz_where = "eplb_arrays";
        fz_release();
        int64_t X = moe_ep_max_replicas(&PL, &e);
        if (X > 0) {
            int P = PL.num_slots;
            int32_t *a = fz_in(4 * L * P), *b = fz_in(4 * L * E * X), *c3 = fz_in(4 * L * E);
            s = moe_ep_eplb_arrays(&PL, X, a, b, c3, &e);
            if (s) fz_fail("st %d", s);
            unsigned char *m2 = fz_work(pb);
            moe_ep_placement P2;
            moe_ep_placement_init(&P2, L, E, &d.shape, m2, pb, &e);
            if (fz_chance(.3)) {
                if (fz_chance(.5)) a[fz_int(0, L * P - 1)] = fz_bad_i32();
                else b[fz_int(0, L * E * X - 1)] = fz_bad_i32();
            }
            s = moe_ep_placement_from_eplb(a, fz_chance(.7) ? b : NULL, X, fz_chance(.7) ? c3 : NULL, &P2,
                                           &e);
            fz_error(s, &e);
        }
    }
    if (fz_chance(.3)) {
        fz_where = "lower_bound";
        moe_ep_bound_result br;
        s = moe_ep_lower_bound(ld, E, &d.shape, &br, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        if (s == 0 && fz_wild(br.value)) fz_fail("%g", br.value);
        if (s == 0 && plain_max >= 0 && br.value > plain_max * (1 + 1e-9))
            fz_fail("bound %.17g above a plan's %.17g", br.value, plain_max);
        fz_where = "min_copies";
        moe_ep_copies_desc c;
        memset(&c, 0, sizeof c);
        c.place = d;
        c.place.shape.num_slots = 0;
        c.place.shape.slots_per_device = NULL;
        c.policy = fz_chance(.05) ? fz_bad_i32() : fz_chance(.5) ? 0 : 4;
        c.max_extra = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 6);
        if (c.max_extra > 100) c.max_extra = 100;
        c.step = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 3);
        c.target = fz_chance(.1) ? fz_bad_double() : 1.2;
        c.expert_bytes = fz_chance(.1) ? fz_bad_double() : 1;
        moe_ep_copies_point pt[128]; /* max_extra 100 at most */
        int32_t fw;
        s = moe_ep_min_copies(&c, pt, &fw, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        fz_where = "budgets";
        int32_t bl[4];
        s = moe_ep_replica_budgets(&d, fz_chance(.2) ? fz_bad_i64() : fz_int(0, 9), bl, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        if (s == 0)
            for (int l = 0; l < L; l++)
                if (bl[l] < E || bl[l] > PL.num_slots) fz_fail("budget %d E %d P %d", bl[l], E, PL.num_slots);
        fz_where = "budget row";
        int64_t extra[2] = {fz_chance(.1) ? fz_bad_i64() : fz_int(0, 9), fz_int(0, 9)};
        int32_t both[4] = {-7, -7, -7, -7};
        s = moe_ep_replica_budget_row(&d, extra, fz_chance(.05) ? fz_bad_i32() % 3 : 2, both, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        for (int l = 0; s == 0 && l < L; l++)
            if (both[L + l] != -7 && (both[L + l] < E || both[L + l] > PL.num_slots))
                fz_fail("budget row %d E %d P %d", both[L + l], E, PL.num_slots);
    }
    fz_release();
}

static void lab_sized(void)
{
    int E = fz_int(1, 10), D = fz_int(1, 5);
    double ld[10];
    int32_t c[10], dv[100];
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    for (int i = 0; i < E; i++) {
        ld[i] = fz_chance(.03) ? fz_bad_double() : fz_int(0, 100);
        c[i] = fz_chance(.03) ? fz_bad_i32() : fz_int(1, D);
    }
    fz_where = "lpt";
    int32_t *o = fz_out(4 * E);
    s = moe_ep_lpt(ld, E, fz_chance(.05) ? fz_bad_i32() % 100 : D, o, fz_scratch(), &e);
    fz_scratch_done();
    fz_end(s, &e);
    int n = 0, ok = 1;
    for (int i = 0; i < E; i++) {
        if (c[i] < 1 || c[i] > D) ok = 0;
        else n += c[i];
    }
    fz_where = "lpt_replicas";
    if (ok) {
        s = moe_ep_lpt_replicas(ld, E, c, D, dv, fz_scratch(), &e);
        fz_error(s, &e);
        if (s == 0) {
            int k = 0;
            for (int i = 0; i < E; i++) {
                for (int a = 0; a < c[i]; a++)
                    for (int b = 0; b < a; b++)
                        if (dv[k + a] == dv[k + b]) fz_fail("dup");
                k += c[i];
            }
        }
        fz_scratch_done();
    } else {
        s = moe_ep_lpt_replicas(ld, E, c, D, dv, fz_scratch(), &e);
        fz_scratch_done();
        if (s == 0) fz_fail("bad counts accepted");
    }
    fz_where = "replicate";
    int P = fz_chance(.1) ? fz_bad_i32() : fz_int(E, E + 9);
    o = fz_out(4 * E);
    if (P < 1000000) {
        s = moe_ep_replicate(ld, E, P, fz_chance(.1) ? fz_bad_i32() : fz_int(0, D), o, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        fz_untouched(s);
    }
}

static void place_case(void)
{
    if (fz_int(0, 5)) plan_and_change();
    else lab_sized();
}

FUZZ_TARGET(place)
