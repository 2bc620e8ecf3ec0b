/* tests/test_place.c - section 5: placements, planners, bounds, checks.
 * SPDX-License-Identifier: MIT
 *
 * usage: test_place [eplb vector files]; recorded loads are read from the folder in MOE_EP_TRACES. */
#include "place.h"
#include "vec.h"

static void check_loads(const double *got, const double *want, int n)
{
    int i;
    for (i = 0; i < n; i++) CHECK_NEAR(got[i], want[i], 1e-6, 1e-9);
}

static const double demo[8] = {1000, 800, 600, 500, 300, 200, 100, 50};
static const double hot[8] = {960, 92, 92, 92, 91, 91, 91, 91};
static const double flashlb[8] = {600, 560, 120, 120, 20, 10, 10, 10};

/* ---- an independent EPLB: the published rules, spelled out naively ------------------------------------------- */

static void naive_replicate(const float *w, int n, int P, int *phy, int *rank, int *cnt)
{
    int i, p;
    for (i = 0; i < n; i++) {
        phy[i] = i;
        rank[i] = 0;
        cnt[i] = 1;
    }
    for (p = n; p < P; p++) {
        int best = 0;
        for (i = 1; i < n; i++) {
            volatile float a = w[i] / (float)cnt[i], b = w[best] / (float)cnt[best];
            if (a > b) best = i;
        }
        phy[p] = best;
        rank[p] = cnt[best]++;
    }
}

/* phy2log (P), phyrank (P), logcnt (E) of one layer. */
static void naive_eplb(const double *load, int E, int P, int groups, int nodes, int devices, int *phy2log,
                       int *phyrank, int *logcnt)
{
    int size, each, n, i, g;
    float *w = (float *)t_alloc(sizeof(float) * (size_t)(P + E)), *part = (float *)t_alloc(sizeof(float) * (size_t)P);
    int *pack = (int *)t_alloc(sizeof(int) * (size_t)P), *rank = (int *)t_alloc(sizeof(int) * (size_t)P);
    int *order = (int *)t_alloc(sizeof(int) * (size_t)E), *phy = (int *)t_alloc(sizeof(int) * (size_t)P);
    int *prank = (int *)t_alloc(sizeof(int) * (size_t)P), *cnt = (int *)t_alloc(sizeof(int) * (size_t)E);
    if (groups % nodes != 0) groups = nodes = 1;
    size = E / groups;
    each = groups / nodes;
    for (g = 0; g < groups; g++) w[g] = naive_sum(load + g * size, size);
    naive_pack(w, groups, nodes, pack, rank);
    for (i = 0; i < E; i++) order[(pack[i / size] * each + rank[i / size]) * size + i % size] = i;
    for (n = 0; n < nodes; n++) {
        int ne = E / nodes, np = P / nodes, nd = devices / nodes;
        for (i = 0; i < ne; i++) w[i] = (float)load[order[n * ne + i]];
        naive_replicate(w, ne, np, phy, prank, cnt);
        for (i = 0; i < np; i++) part[i] = w[phy[i]] / (float)cnt[phy[i]];
        naive_pack(part, np, nd, pack, rank);
        for (i = 0; i < np; i++) {
            int slot = n * np + pack[i] * (np / nd) + rank[i];
            phy2log[slot] = order[n * ne + phy[i]];
            phyrank[slot] = prank[i];
        }
        for (i = 0; i < ne; i++) logcnt[order[n * ne + i]] = cnt[i];
    }
    free(w);
    free(part);
    free(pack);
    free(rank);
    free(order);
    free(phy);
    free(prank);
    free(cnt);
}

/* Compares a whole plan with the naive one, layer by layer. */
static void check_against_naive(const moe_ep_placement *p, const double *loads, int groups, int nodes)
{
    int E = p->num_experts, P = p->num_slots, l, i, wrong = 0;
    int *phy = (int *)t_alloc(sizeof(int) * (size_t)P), *rank = (int *)t_alloc(sizeof(int) * (size_t)P);
    int *cnt = (int *)t_alloc(sizeof(int) * (size_t)E);
    for (l = 0; l < p->num_layers; l++) {
        const int32_t *start = p->replica_start + (int64_t)l * (E + 1), *slot = p->replica_slot + (int64_t)l * P;
        naive_eplb(loads + (int64_t)l * E, E, P, groups, nodes, p->num_devices, phy, rank, cnt);
        for (i = 0; i < P; i++) {
            wrong += p->slot_expert[(int64_t)l * P + i] != phy[i];
            wrong += slot[start[phy[i]] + rank[i]] != i;
        }
        for (i = 0; i < E; i++) wrong += start[i + 1] - start[i] != cnt[i];
    }
    CHECK_I64(wrong, 0);
    free(phy);
    free(rank);
    free(cnt);
}

/* ---- placements ------------------------------------------------------------------------------------------ */

TEST(layout_and_index)
{
    moe_ep_shape s = shape_of(3, 6, 0);
    moe_ep_placement p = placement_new(1, 4, &s), q;
    const int32_t slots[6] = {3, 0, 3, 1, 2, -1}, start[5] = {0, 1, 2, 3, 5}, replica[6] = {1, 3, 4, 0, 2, -1};
    const double loads[4] = {4, 2, 1, 6};
    double device[3], node[2];
    moe_ep_check_result check;
    moe_ep_error err;
    int i;
    for (i = 0; i < 6; i++) CHECK_I64(p.slot_expert[i], -1);
    memcpy(p.slot_expert, slots, sizeof slots);
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    for (i = 0; i < 5; i++) CHECK_I64(p.replica_start[i], start[i]);
    for (i = 0; i < 6; i++) CHECK_I64(p.replica_slot[i], replica[i]);
    CHECK_I64(moe_ep_device_loads(&p, loads, device, &err), MOE_EP_OK);
    CHECK_NEAR(device[0], 7, 0, 0);
    CHECK_NEAR(device[1], 5, 0, 0);
    CHECK_NEAR(device[2], 1, 0, 0);
    CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, &check, &err), MOE_EP_OK);
    CHECK_I64(check.slots_used, 5);
    CHECK_I64(check.slots_empty, 1);
    CHECK_I64(check.single_copies, 3);
    p.device_inactive[1] = 1; /* expert 1 lived there only */
    CHECK_I64(moe_ep_validate(&p, 0, &check, &err), MOE_EP_ERR_LOST_EXPERT);
    CHECK_I64(err.index, 1);
    device[0] = -7;
    CHECK_I64(moe_ep_device_loads(&p, loads, device, &err), MOE_EP_ERR_LOST_EXPERT);
    CHECK_I64(err.index, 1);
    CHECK_NEAR(device[0], -7, 0, 0);
    placement_free(&p);
    s = shape_of(4, 6, 2);
    p = placement_new(2, 3, &s);
    CHECK_I64(p.slot_start[1], 2);
    CHECK_I64(p.slot_start[2], 4);
    CHECK_I64(p.slot_start[3], 5);
    CHECK_I64(p.slot_start[4], 6);
    CHECK_I64(p.device_node[1], 0);
    CHECK_I64(p.device_node[2], 1);
    for (i = 0; i < 3; i++) p.slot_expert[i] = p.slot_expert[6 + i] = i;
    p.slot_expert[9] = 1;
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    q = placement_new(2, 3, &s);
    CHECK_I64(moe_ep_placement_copy(&p, &q, &err), MOE_EP_OK);
    CHECK(memcmp(p.slot_expert, q.slot_expert, sizeof(int32_t) * 12) == 0);
    CHECK_I64(moe_ep_max_replicas(&q, &err), 2);
    {
        const double two[6] = {1, 2, 4, 1, 2, 4};
        double nodes[4];
        CHECK_I64(moe_ep_node_loads(&q, two, nodes, &err), MOE_EP_OK);
        CHECK_NEAR(nodes[0], 7, 0, 0);
        CHECK_NEAR(nodes[1], 0, 0, 0);
        CHECK_NEAR(nodes[2], 7, 0, 0);
        (void)node;
    }
    placement_free(&p);
    placement_free(&q);
}

/* ---- the labs' numbers ------------------------------------------------------------------------------------ */

TEST(demo_popularity)
{
    moe_ep_place_desc d = desc_of(1, 8, shape_of(4, 0, 0), demo);
    moe_ep_placement p;
    double device[4];
    const double rr[4] = {1300, 1000, 700, 550}, cont[4] = {1800, 1100, 500, 150}, lpt[4] = {1050, 900, 800, 800};
    moe_ep_plan_result r = plan_one(moe_ep_place_round_robin, &d, &p, device);
    check_loads(device, rr, 4);
    CHECK_NEAR(r.max_before, 1800, 0, 0);
    placement_free(&p);
    r = plan_one(moe_ep_place_contiguous, &d, &p, device);
    check_loads(device, cont, 4);
    CHECK_I64(r.policy, MOE_EP_PLACE_CONTIGUOUS);
    placement_free(&p);
    r = plan_one(moe_ep_place_lpt, &d, &p, device);
    check_loads(device, lpt, 4);
    CHECK_NEAR(r.max, 1050, 1e-12, 0);
    CHECK_NEAR(r.lower_bound, 1050, 1e-12, 0);
    CHECK_NEAR(r.gap, 0, 0, 1e-12);
    CHECK_I64(r.bound, MOE_EP_BOUND_SLOTS);
    CHECK_NEAR(r.mean, 887.5, 0, 0);
    CHECK_NEAR(r.max_before / r.max, 1.7142857142857142, 1e-12, 0);
    placement_free(&p);
}

TEST(lpt_without_slots)
{
    int32_t device[8], i;
    const int32_t want[8] = {0, 1, 2, 3, 3, 2, 1, 2};
    int32_t counts[8], where[10];
    double load[4] = {0, 0, 0, 0};
    const double one_copy[4] = {480, 480, 275, 365}, two_copies[4] = {900, 900, 900, 850};
    moe_ep_error err;
    CHECK_I64(moe_ep_lpt(demo, 8, 4, device, NULL, &err), MOE_EP_OK);
    for (i = 0; i < 8; i++) CHECK_I64(device[i], want[i]);
    /* the hot vector: 2.6275 -> 2.40 by LPT, 1.2 with one copy of the hottest */
    CHECK_I64(moe_ep_lpt(hot, 8, 4, device, NULL, &err), MOE_EP_OK);
    for (i = 0; i < 8; i++) load[device[i]] += hot[i];
    CHECK_NEAR(load[0] / 400, 2.40, 1e-12, 0);
    CHECK_I64(moe_ep_replicate(hot, 8, 9, 0, counts, NULL, &err), MOE_EP_OK);
    CHECK_I64(counts[0], 2);
    CHECK_I64(moe_ep_lpt_replicas(hot, 8, counts, 4, where, NULL, &err), MOE_EP_OK);
    memset(load, 0, sizeof load);
    for (i = 0; i < 9; i++) load[where[i]] += i < 2 ? 480 : hot[i - 1];
    check_loads(load, one_copy, 4);
    CHECK_NEAR(load[0] / 400, 1.2, 1e-12, 0);
    /* two copies of the two hottest of the demo */
    for (i = 0; i < 8; i++) counts[i] = i < 2 ? 2 : 1;
    CHECK_I64(moe_ep_lpt_replicas(demo, 8, counts, 4, where, NULL, &err), MOE_EP_OK);
    memset(load, 0, sizeof load);
    for (i = 0; i < 10; i++) load[where[i]] += i < 4 ? demo[i / 2] / 2 : demo[i - 2];
    check_loads(load, two_copies, 4);
}

TEST(devices_to_placement)
{
    const int32_t device[8] = {0, 1, 2, 2, 1, 2, 3, 3}, slots[4] = {1, 2, 3, 2};
    const int32_t full[8] = {0, 0, 2, 2, 1, 2, 3, 3};
    const double seed_loads[4] = {1000, 1100, 1300, 150};
    moe_ep_shape s = shape_of(4, 0, 0);
    moe_ep_placement p;
    moe_ep_error err;
    double load[4];
    int32_t e, copies[8] = {2, 1, 1, 1, 1, 1, 1, 1};
    const int32_t two[9] = {0, 1, 1, 2, 2, 2, 3, 3, 3};
    s.slots_per_device = slots;
    p = placement_new(1, 8, &s);
    CHECK_I64(moe_ep_devices_placement(device, NULL, &p, &err), MOE_EP_OK);
    for (e = 0; e < 8; e++) CHECK_I64(p.slot_device[p.replica_slot[p.replica_start[e]]], device[e]);
    CHECK_I64(moe_ep_device_loads(&p, demo, load, &err), MOE_EP_OK);
    check_loads(load, seed_loads, 4);
    CHECK_I64(moe_ep_devices_placement(full, NULL, &p, &err), MOE_EP_ERR_SLOTS);
    CHECK_I64(err.index, 1);
    CHECK_I64(p.slot_device[p.replica_slot[p.replica_start[1]]], 1); /* untouched */
    placement_free(&p);
    s = shape_of(4, 32, 0);
    p = placement_new(1, 8, &s);
    CHECK_I64(moe_ep_devices_placement(two, copies, &p, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_max_replicas(&p, &err), 2);
    CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, &err), MOE_EP_OK);
    placement_free(&p);
}

/* ---- EPLB -------------------------------------------------------------------------------------------------------
 */

TEST(eplb_readme)
{
    const double loads[24] = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86,
                              20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};
    const int32_t phy[32] = {5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1,
                             7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1};
    const int32_t log2phy[24] = {12, -1, 15, 13, 11, -1, 6, -1, 7, 5,  0,  2,
                                 1,  -1, 3,  -1, 4,  -1, 9, -1, 8, 10, 14, -1};
    const int32_t cnt[12] = {1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1};
    moe_ep_place_desc d = desc_of(2, 12, shape_of(8, 16, 2), loads);
    moe_ep_placement p = placement_new(2, 12, &d.shape), q = placement_new(2, 12, &d.shape);
    moe_ep_plan_result r[2];
    moe_ep_error err;
    int32_t got_phy[32], got_log[48], got_cnt[24], i;
    d.num_groups = 4;
    CHECK_I64(moe_ep_place_eplb(&d, &p, r, NULL, &err), MOE_EP_OK);
    CHECK_I64(r[0].policy, MOE_EP_PLACE_EPLB_HIERARCHICAL);
    CHECK_STR(r[0].reason, "hierarchical: the groups divide over the nodes");
    CHECK_NEAR(r[0].imbalance, 1.208132, 1e-6, 0);
    CHECK_NEAR(r[1].imbalance, 1.242215, 1e-6, 0);
    CHECK_I64(moe_ep_max_replicas(&p, &err), 2);
    CHECK_I64(moe_ep_eplb_arrays(&p, 2, got_phy, got_log, got_cnt, &err), MOE_EP_OK);
    for (i = 0; i < 32; i++) CHECK_I64(got_phy[i], phy[i]);
    for (i = 0; i < 24; i++) CHECK_I64(got_log[i], log2phy[i]);
    for (i = 0; i < 12; i++) CHECK_I64(got_cnt[i], cnt[i]);
    /* and back */
    CHECK_I64(moe_ep_placement_from_eplb(got_phy, got_log, 2, got_cnt, &q, &err), MOE_EP_OK);
    CHECK(memcmp(p.replica_slot, q.replica_slot, sizeof(int32_t) * 32) == 0);
    CHECK(memcmp(p.slot_expert, q.slot_expert, sizeof(int32_t) * 32) == 0);
    got_cnt[3]++;
    CHECK_I64(moe_ep_placement_from_eplb(got_phy, got_log, 2, got_cnt, &q, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "logcnt");
    CHECK_I64(err.index, 3);
    got_log[0] = 13;
    CHECK_I64(moe_ep_placement_from_eplb(got_phy, got_log, 2, NULL, &q, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "log2phy");
    CHECK_I64(moe_ep_eplb_arrays(&p, 1, NULL, got_log, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, 2, 0, 0);
    placement_free(&p);
    placement_free(&q);
}

/* Vector files of kind eplb. */
TEST(eplb_vectors)
{
    int f, c;
    for (f = 0; vec_path("tests/vectors/eplb.vec", f); f++) {
        vec_file v = vec_read(vec_path("tests/vectors/eplb.vec", f));
        if (strcmp(v.kind, "eplb") != 0) {
            vec_free(&v);
            continue;
        }
        for (c = 0; c < v.count; c++) {
            const vec_case *k = &v.cases[c];
            const vec_field *w = vec_get(k, "weight"), *phy = vec_find(k, "phy2log"), *log = vec_find(k, "log2phy");
            const vec_field *cnt = vec_find(k, "logcnt"), *gpu = vec_find(k, "gpu_load");
            int32_t L = (int32_t)w->dim[0], E = (int32_t)w->dim[1], P = (int32_t)vec_int(k, "num_replicas"), X;
            int32_t D = (int32_t)vec_int(k, "num_gpus");
            moe_ep_place_desc d = desc_of(L, E, shape_of(D, P, (int32_t)vec_int(k, "num_nodes")), w->f);
            moe_ep_placement p = placement_new(L, E, &d.shape);
            moe_ep_error err;
            int32_t *a, *b, *n;
            double *load;
            int64_t i;
            d.num_groups = (int32_t)vec_int(k, "num_groups");
            CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_OK);
            X = (int32_t)moe_ep_max_replicas(&p, &err);
            if (log) X = (int32_t)log->dim[2];
            a = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)L * (size_t)P);
            b = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)L * (size_t)E * (size_t)X);
            n = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)L * (size_t)E);
            load = (double *)t_alloc(sizeof(double) * (size_t)L * (size_t)D);
            CHECK_I64(moe_ep_eplb_arrays(&p, X, a, b, n, &err), MOE_EP_OK);
            CHECK_I64(moe_ep_device_loads(&p, w->f, load, &err), MOE_EP_OK);
            for (i = 0; phy && i < phy->count; i++) CHECK_I64(a[i], phy->i[i]);
            for (i = 0; log && i < log->count; i++) CHECK_I64(b[i], log->i[i]);
            for (i = 0; cnt && i < cnt->count; i++) CHECK_I64(n[i], cnt->i[i]);
            for (i = 0; gpu && i < gpu->count; i++) CHECK_NEAR(load[i], gpu->f[i], 1e-6, 1e-9);
            free(a);
            free(b);
            free(n);
            free(load);
            placement_free(&p);
            STOP_IF_FAILED("case %s", k->name);
        }
        vec_free(&v);
    }
}

TEST(eplb_demo_slots)
{
    static const int32_t phy8[8] = {0, 7, 1, 6, 2, 5, 3, 4}, phy12[12] = {3, 4, 7, 1, 0, 6, 1, 2, 5, 0, 0, 2};
    static const int32_t phy16[16] = {4, 0, 5, 2, 1, 0, 3, 6, 1, 3, 0, 7, 1, 0, 2, 2};
    static const int32_t phy20[20] = {0, 0, 1, 0, 7, 1, 1, 0, 3, 4, 2, 2, 2, 3, 4, 5, 0, 1, 3, 6};
    const int32_t *phy[4] = {phy8, phy12, phy16, phy20};
    const double load[4][4] = {{1050, 900, 800, 800},
                               {850, 833.3333333, 900, 966.6666667},
                               {950, 866.6666667, 816.6666667, 916.6666667},
                               {850, 916.6666667, 916.6666667, 866.6666667}};
    int c, i;
    for (c = 0; c < 4; c++) {
        moe_ep_place_desc d = desc_of(1, 8, shape_of(4, 8 + 4 * c, 1), demo);
        moe_ep_placement p;
        double device[4];
        (void)plan_one(moe_ep_place_eplb, &d, &p, device);
        for (i = 0; i < 8 + 4 * c; i++) CHECK_I64(p.slot_expert[i], phy[c][i]);
        check_loads(device, load[c], 4);
        placement_free(&p);
    }
}

TEST(eplb_modes)
{
    const double trap[8] = {1000, 1, 1, 1, 1, 1, 1, 1};
    moe_ep_place_desc d = desc_of(1, 8, shape_of(4, 12, 2), trap);
    moe_ep_placement p;
    moe_ep_error err;
    moe_ep_plan_result r;
    d.num_groups = 2;
    r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    CHECK_I64(r.policy, MOE_EP_PLACE_EPLB_HIERARCHICAL);
    CHECK_NEAR(r.max, 667.6666667, 1e-6, 0);
    placement_free(&p);
    d.eplb_mode = MOE_EP_EPLB_GLOBAL;
    r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    CHECK_I64(r.policy, MOE_EP_PLACE_EPLB_GLOBAL);
    CHECK_STR(r.reason, "global: asked for");
    CHECK_NEAR(r.max, 401.0, 1e-9, 0);
    placement_free(&p);
    d.eplb_mode = MOE_EP_EPLB_AUTO;
    d.num_groups = 1;
    r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    CHECK_STR(r.reason, "global: the groups do not divide over the nodes");
    placement_free(&p);
    d.num_groups = 0;
    r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    CHECK_I64(r.policy, MOE_EP_PLACE_EPLB_GLOBAL);
    CHECK_STR(r.reason, "global: no groups were given");
    d.eplb_mode = MOE_EP_EPLB_HIERARCHICAL;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "desc.num_groups");
    d.eplb_mode = MOE_EP_EPLB_AUTO;
    d.num_groups = 6; /* three for each node, but not equally many experts in each */
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "desc.num_groups");
    placement_free(&p);
}

/* The global plan knows neither groups nor nodes: where eplb.py falls back to it, they need not divide anything.  Slots
 * as eplb.py gives them for both shapes. */
TEST(eplb_falls_back_whatever_the_groups)
{
    const double w[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    const int32_t slots[12] = {7, 0, 6, 1, 5, 2, 4, 8, 9, 8, 9, 3};
    static const int32_t shapes[3][2] = {{3, 2}, {5, 4}, {5, 2}}; /* groups, nodes */
    int c, i;
    for (c = 0; c < 6; c++) {
        moe_ep_place_desc d = desc_of(1, 10, shape_of(6, 12, shapes[c % 3][1]), w);
        moe_ep_placement p;
        d.num_groups = shapes[c % 3][0];
        d.eplb_mode = c < 3 ? MOE_EP_EPLB_AUTO : MOE_EP_EPLB_GLOBAL;
        CHECK_I64(plan_one(moe_ep_place_eplb, &d, &p, NULL).policy, MOE_EP_PLACE_EPLB_GLOBAL);
        for (i = 0; i < 12; i++) CHECK_I64(p.slot_expert[i], slots[i]);
        placement_free(&p);
    }
}

/* Random loads of several characters, with ties and zeros and values that float32 cannot hold. */
static void random_loads(uint64_t *s, double *w, int64_t n)
{
    int kind = (int)t_below(s, 7);
    int64_t i;
    for (i = 0; i < n; i++) {
        if (kind == 0) w[i] = (double)t_below(s, 1000);
        else if (kind == 1) w[i] = (double)(128 * t_below(s, 20));
        else if (kind == 2) w[i] = t_below(s, 3) ? 0.0 : (double)t_below(s, 5);
        else if (kind == 3) w[i] = 1e6 / (double)(1 + t_below(s, n));
        else if (kind == 4) w[i] = (double)(16777216 + t_below(s, 64));
        else if (kind == 5) w[i] = exp(4.0 * t_unit(s)) / 3.0;
        else w[i] = i == n / 2 ? 1e5 : 1.0;
    }
    if (t_below(s, 10) == 0) memset(w, 0, sizeof(double) * (size_t)n);
}

TEST(eplb_against_naive)
{
    uint64_t s = t_seed;
    int n;
    for (n = 0; n < 600; n++) {
        int nodes = 1 + (int)t_below(&s, 4), D = nodes * (1 + (int)t_below(&s, 5));
        int groups = (1 + (int)t_below(&s, 3)) * (t_below(&s, 4) ? nodes : 1),
            E = groups * (1 + (int)t_below(&s, 12));
        int hier = groups % nodes == 0, unit = D, P, L = 1 + (int)t_below(&s, 3);
        double *w = (double *)t_alloc(sizeof(double) * (size_t)(L * E));
        moe_ep_place_desc d;
        moe_ep_placement p;
        P = (E + unit - 1) / unit * unit + unit * (int)t_below(&s, 4);
        if (hier && P / nodes < E / nodes) P += unit;
        random_loads(&s, w, (int64_t)L * E);
        d = desc_of(L, E, shape_of(D, P, nodes), w);
        d.num_groups = groups;
        p = placement_new(L, E, &d.shape);
        CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        check_against_naive(&p, w, groups, nodes);
        CHECK_I64(moe_ep_validate(&p, 0, NULL, NULL), MOE_EP_OK);
        placement_free(&p);
        free(w);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Nodes in any order: what the plan gives the i-th device of a node in order goes to its i-th device here.  Nodes of
 * unlike sizes have no hierarchical plan. */
TEST(eplb_on_nodes_in_any_order)
{
    const double loads[12] = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
    const int32_t turn[8] = {0, 1, 0, 1, 0, 1, 0, 1}, odd[8] = {0, 0, 0, 0, 0, 1, 1, 1};
    const int32_t want[16] = {5, 6, 10, 9, 5, 7, 10, 2, 8, 4, 0, 1, 3, 4, 11, 1};
    uint64_t s = t_seed;
    int n, i, l, k, mixed = 0, lower = 0;
    moe_ep_place_desc d = desc_of(1, 12, shape_of(8, 16, 2), loads);
    moe_ep_placement p, q;
    moe_ep_plan_result r;
    moe_ep_error err;
    d.num_groups = 4;
    d.shape.node_of_device = turn;
    r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    CHECK_I64(r.policy, MOE_EP_PLACE_EPLB_HIERARCHICAL);
    for (i = 0; i < 16; i++) CHECK_I64(p.slot_expert[i], want[i]);
    placement_free(&p);
    d.shape.node_of_device = odd;
    r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    CHECK_I64(r.policy, MOE_EP_PLACE_EPLB_GLOBAL);
    CHECK_STR(r.reason, "global: the nodes have unlike numbers of devices");
    d.shape.node_of_device = NULL;
    d.num_groups = 1;
    r = plan_one(moe_ep_place_eplb, &d, &q, NULL);
    CHECK(memcmp(p.slot_expert, q.slot_expert, 16 * sizeof(int32_t)) == 0);
    d.shape.node_of_device = odd;
    d.num_groups = 5 * 2; /* does not divide the experts, which the global plan does not ask */
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_OK);
    d.num_groups = 4;
    d.eplb_mode = MOE_EP_EPLB_HIERARCHICAL;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "desc.shape.node_of_device");
    CHECK(err.index == -1 && err.value >= 2 && err.value <= 2);
    placement_free(&p);
    placement_free(&q);
    for (n = 0; n < 300; n++) {
        int nodes = 1 + (int)t_below(&s, 4), each = 1 + (int)t_below(&s, 4), D = nodes * each, L = 1 + n % 2;
        int E = nodes * (1 + (int)t_below(&s, 3)) * (1 + (int)t_below(&s, 4));
        int S = (E + D - 1) / D + (int)t_below(&s, 3);
        int32_t node[16], device[16], seen[4] = {0};
        double w[2 * 48];
        moe_ep_plan_result a[2], b[2];
        random_loads(&s, w, L * E);
        for (i = 0; i < D; i++) node[i] = i / each;
        for (i = D - 1; i > 0; i--) {
            int j = (int)t_below(&s, i + 1);
            int32_t keep = node[i];
            node[i] = node[j];
            node[j] = keep;
        }
        for (i = 0; i < D; i++) device[node[i] * each + seen[node[i]]++] = i;
        d = desc_of(L, E, shape_of(D, D * S, nodes), w);
        d.num_groups = nodes;
        q = placement_new(L, E, &d.shape);
        CHECK_I64(moe_ep_place_eplb(&d, &q, a, NULL, NULL), MOE_EP_OK);
        d.shape.node_of_device = node;
        p = placement_new(L, E, &d.shape);
        CHECK_I64(moe_ep_place_eplb(&d, &p, b, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, 0, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            CHECK_I64(b[l].policy, MOE_EP_PLACE_EPLB_HIERARCHICAL);
            CHECK_NEAR(b[l].max, a[l].max, 0, 0);
            CHECK_NEAR(b[l].node_imbalance, a[l].node_imbalance, 1e-12, 0);
            for (i = 0; i < D; i++) {
                mixed += device[i] != i;
                for (k = 0; k < S; k++)
                    CHECK_I64(p.slot_expert[(l * D + device[i]) * S + k], q.slot_expert[(l * D + i) * S + k]);
            }
            for (i = 0; i < E; i++) /* copies in the order in which they were made */
                for (k = q.replica_start[l * (E + 1) + i]; k < q.replica_start[l * (E + 1) + i + 1]; k++) {
                    int32_t slot = q.replica_slot[l * D * S + k];
                    CHECK_I64(p.replica_slot[l * D * S + k], device[slot / S] * S + slot % S);
                }
        }
        d.max_refinements = 1; /* best_placement: never above it without doubles, doubled where that is allowed */
        d.allow_duplicates = 1;
        CHECK_I64(moe_ep_best_placement(&d, &p, b, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            CHECK(b[l].max <= a[l].max * (1 + 1e-9));
            lower += b[l].max < a[l].max;
        }
        if (D > nodes && nodes > 1) {
            node[0] = (node[0] + 1) % nodes; /* one node has one more: its hierarchical plan is not looked at */
            memcpy(p.device_node, node, sizeof(int32_t) * (size_t)D);
            CHECK_I64(moe_ep_best_placement(&d, &p, b, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_validate(&p, 0, NULL, NULL), MOE_EP_OK);
        }
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(mixed > 200 && lower > 50);
}

/* ---- TensorRT-LLM -------------------------------------------------------------------------------------------------
 */

TEST(trtllm_vectors)
{
    static const double a[4] = {1, 2, 3, 4}, b[4] = {0, 0, 0, 0}, c[4] = {1, 4, 2, 1}, e[5] = {10, 5, 2, 15, 8},
                        f[3] = {0, 10, 0};
    static const int32_t ca[4] = {1, 1, 1, 1}, cb[4] = {2, 2, 1, 1}, cc[4] = {1, 4, 2, 1}, ce[5] = {2, 1, 1, 3, 2},
                         cf[3] = {1, 2, 1};
    const double *load[5] = {a, b, c, e, f};
    const int32_t *count[5] = {ca, cb, cc, ce, cf}, experts[5] = {4, 4, 4, 5, 3}, slots[5] = {4, 6, 8, 9, 4};
    int i, j;
    for (i = 0; i < 5; i++) {
        moe_ep_place_desc d = desc_of(1, experts[i], shape_of(1, slots[i], 1), load[i]);
        moe_ep_placement p;
        moe_ep_plan_result r = plan_one(moe_ep_place_trtllm, &d, &p, NULL);
        CHECK_I64(r.policy, MOE_EP_PLACE_TRTLLM);
        for (j = 0; j < experts[i]; j++) CHECK_I64(p.replica_start[j + 1] - p.replica_start[j], count[i][j]);
        placement_free(&p);
    }
    { /* a tie: the larger id is copied first, where EPLB copies the lowest */
        static const double tie[2] = {5, 5};
        moe_ep_place_desc d = desc_of(1, 2, shape_of(1, 3, 1), tie);
        moe_ep_placement p;
        (void)plan_one(moe_ep_place_trtllm, &d, &p, NULL);
        CHECK_I64(p.replica_start[1], 1);
        placement_free(&p);
        (void)plan_one(moe_ep_place_eplb, &d, &p, NULL);
        CHECK_I64(p.replica_start[1], 2);
        placement_free(&p);
    }
    { /* the placement tests: largest difference between ranks */
        static const double w[5][6] = {
            {1, 1, 1, 1}, {1, 3, 2, 1}, {10, 5, 2, 15, 8}, {1, 100, 10}, {2, 3, 4, 5, 6, 7}};
        static const int32_t ne[5] = {4, 4, 5, 3, 6}, ranks[5] = {2, 2, 3, 2, 2}, each[5] = {2, 3, 3, 2, 3};
        static const double diff[5] = {0.001, 0.01, 2.0, 9.0, 1.0};
        for (i = 0; i < 5; i++) {
            moe_ep_place_desc d = desc_of(1, ne[i], shape_of(ranks[i], ranks[i] * each[i], 1), w[i]);
            moe_ep_placement p;
            double device[3], low, high;
            (void)plan_one(moe_ep_place_trtllm, &d, &p, device);
            low = high = device[0];
            for (j = 1; j < ranks[i]; j++) {
                if (device[j] < low) low = device[j];
                if (device[j] > high) high = device[j];
            }
            CHECK(high - low <= diff[i] + 1e-9);
            placement_free(&p);
        }
    }
}

/* The picture at the top of the section, and what its functions say of it. */
TEST(header_picture)
{
    const int32_t want[6] = {3, 0, 3, 1, 2, -1}, log2phy[8] = {1, -1, 3, -1, 4, -1, 0, 2}, logcnt[4] = {1, 1, 1, 2};
    const int32_t phy[4] = {0, 1, 0, 1}, order[4] = {2, 0, 1, 3}, before[4] = {0, 1, 2, 3}, after[4] = {3, 2, 1, 0};
    const double w[4] = {4, 2, 1, 6};
    moe_ep_shape shape = shape_of(3, 6, 2), two = shape_of(2, 4, 1);
    moe_ep_placement p = placement_new(1, 4, &shape), q = placement_new(1, 4, &shape), r = placement_new(1, 2, &two);
    moe_ep_placement a = placement_new(1, 4, &two), b = placement_new(1, 4, &two);
    moe_ep_check_result check;
    moe_ep_plan_result result;
    int32_t got[8];
    double node[2];
    int i;
    memcpy(p.slot_expert, want, sizeof want);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_copy(&p, &q, NULL), MOE_EP_OK);
    CHECK(memcmp(q.slot_expert, want, sizeof want) == 0);
    CHECK_I64(moe_ep_max_replicas(&p, NULL), 2);
    CHECK_I64(moe_ep_eplb_arrays(&p, 2, got, NULL, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(got, want, sizeof want) == 0);
    CHECK_I64(moe_ep_eplb_arrays(&p, 2, NULL, got, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(got, log2phy, sizeof log2phy) == 0);
    CHECK_I64(moe_ep_eplb_arrays(&p, 2, NULL, NULL, got, NULL), MOE_EP_OK);
    CHECK(memcmp(got, logcnt, sizeof logcnt) == 0);
    CHECK_I64(moe_ep_placement_from_eplb(phy, order, 2, NULL, &r, NULL), MOE_EP_OK);
    CHECK(r.replica_slot[0] == 2 && r.replica_slot[1] == 0);
    CHECK_I64(moe_ep_node_loads(&p, w, node, NULL), MOE_EP_OK);
    CHECK_NEAR(node[0], 12, 1e-12, 0);
    CHECK_NEAR(node[1], 1, 1e-12, 0);
    CHECK_I64(moe_ep_evaluate(&p, w, 1, &result, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(result.max, 7, 1e-12, 0);
    CHECK_NEAR(result.imbalance, 21.0 / 13.0, 1e-12, 0);
    CHECK_I64(moe_ep_validate(&p, 0, &check, NULL), MOE_EP_OK);
    CHECK(check.slots_used == 5 && check.slots_empty == 1 && check.duplicates == 0 && check.single_copies == 3);
    memcpy(a.slot_expert, before, sizeof before);
    memcpy(b.slot_expert, after, sizeof after);
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_relabel(&a, &b, 0, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 4; i++) CHECK_I64(b.slot_expert[i], before[i]);
    placement_free(&p);
    placement_free(&q);
    placement_free(&r);
    placement_free(&a);
    placement_free(&b);
}

/* What float32 leaves undecided is decided as upstream decides it: the sums of groups in PyTorch's order of addition,
 * TensorRT-LLM's loads rounded to float32 before they are divided. */
TEST(float32_as_upstream)
{
    static const char *above = "4501234501230123010101010101010134012340012340120123012345012345"; /* 2^24 and this */
    static const int32_t trtllm[6] = {1, 0, 3, 2, 0, 3};
    const double near[4] = {16777219, 16777217, 16777216, 16777216};
    double w[64] = {0};
    moe_ep_shape shape = shape_of(2, 64, 2);
    moe_ep_place_desc d = desc_of(1, 64, shape, w);
    moe_ep_placement p;
    int i;
    for (i = 0; i < 64; i++) w[i] = 16777216.0 + (above[i] - '0');
    d.num_groups = 4;
    (void)plan_one(moe_ep_place_eplb, &d, &p, NULL);
    for (i = 0; i < 32; i++) CHECK(p.slot_expert[i] / 16 == 0 || p.slot_expert[i] / 16 == 3); /* one by one: 0 and 1 */
    placement_free(&p);
    d = desc_of(1, 4, shape_of(2, 6, 1), near);
    (void)plan_one(moe_ep_place_trtllm, &d, &p, NULL);
    for (i = 0; i < 6; i++) CHECK_I64(p.slot_expert[i], trtllm[i]);
    placement_free(&p);
}

/* ---- replica counts and bounds
 * ---------------------------------------------------------------------------------------- */

/* Smallest possible heaviest replica over all counts, by trying them all. */
static double brute_heaviest(const double *w, int E, int spare)
{
    double best = 1e300;
    int c;
    if (E == 1) return w[0] / (spare + 1);
    for (c = 0; c <= spare; c++) {
        double rest = brute_heaviest(w + 1, E - 1, spare - c), mine = w[0] / (c + 1);
        if (mine > rest) rest = mine;
        if (rest < best) best = rest;
    }
    return best;
}

TEST(replicate_is_optimal)
{
    uint64_t s = t_seed;
    int n, e;
    for (n = 0; n < 300; n++) {
        int E = 1 + (int)t_below(&s, 6), spare = (int)t_below(&s, 7);
        double w[6], worst = 0;
        int32_t counts[6], sum = 0;
        random_loads(&s, w, E);
        CHECK_I64(moe_ep_replicate(w, E, E + spare, 0, counts, NULL, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++) {
            sum += counts[e];
            if (w[e] / counts[e] > worst) worst = w[e] / counts[e];
        }
        CHECK_I64(sum, E + spare);
        CHECK_NEAR(worst, brute_heaviest(w, E, spare), 1e-12, 0);
        CHECK_I64(moe_ep_replicate(w, E, E + spare, 2, counts, NULL, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++) CHECK(counts[e] <= 2);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(replicate_against_naive)
{
    uint64_t s = t_seed;
    int n, e;
    for (n = 0; n < 600; n++) {
        int E = 1 + (int)t_below(&s, n % 10 ? 30 : 200), P = E + (int)t_below(&s, 8 * E),
            most = t_below(&s, 2) ? 0 : 1 + (int)t_below(&s, 12);
        double w[200];
        int32_t got[200], want[200];
        random_loads(&s, w, E);
        if (t_below(&s, 8) == 0)
            for (e = 0; e < E; e++) w[e] *= 1e-308;
        CHECK_I64(moe_ep_replicate(w, E, P, most, got, NULL, NULL), MOE_EP_OK);
        naive_counts(w, E, P, most ? most : INT32_MAX, want);
        for (e = 0; e < E; e++) CHECK_I64(got[e], want[e]);
        STOP_IF_FAILED("case %d", n);
    }
    for (n = 0; n < 3000; n++) { /* tenths and thirds: shares that differ from a level by rounding only */
        int E = 2 + (int)t_below(&s, 9), P = 2 * E + (int)t_below(&s, 12 * E), parts = n % 2 ? 3 : 9;
        double w[10];
        int32_t got[10], want[10];
        for (e = 0; e < E; e++) w[e] = (double)(1 + t_below(&s, parts)) * (n % 2 ? 1 / 3.0 : 0.1);
        CHECK_I64(moe_ep_replicate(w, E, P, 0, got, NULL, NULL), MOE_EP_OK);
        naive_counts(w, E, P, INT32_MAX, want);
        for (e = 0; e < E; e++) CHECK_I64(got[e], want[e]);
        STOP_IF_FAILED("fraction %d", n);
    }
}

/* The optimum over all slot tables (duplicates and empty slots allowed, equal shares), devices being alike. */
typedef struct brute {
    const double *w;
    int E, D, S, P, cell[16];
    double best;
} brute;

static void brute_judge(brute *b)
{
    int count[8] = {0}, i, d;
    double worst = 0;
    for (i = 0; i < b->P; i++)
        if (b->cell[i] >= 0) count[b->cell[i]]++;
    for (i = 0; i < b->E; i++)
        if (count[i] == 0) return;
    for (d = 0; d < b->D; d++) {
        double sum = 0;
        for (i = 0; i < b->S; i++)
            if (b->cell[d * b->S + i] >= 0) sum += b->w[b->cell[d * b->S + i]] / count[b->cell[d * b->S + i]];
        if (sum > worst) worst = sum;
    }
    if (worst < b->best) b->best = worst;
}

/* Slots of a device in non-decreasing order, devices in non-decreasing order of their first slot. */
static void brute_fill(brute *b, int at)
{
    int e, low = -1;
    if (at == b->P) {
        brute_judge(b);
        return;
    }
    if (at % b->S > 0) low = b->cell[at - 1];
    else if (at > 0) low = b->cell[at - b->S];
    for (e = low; e < b->E; e++) {
        b->cell[at] = e;
        brute_fill(b, at + 1);
    }
}

static double brute_optimum(const double *w, int E, int D, int S)
{
    brute b;
    memset(&b, 0, sizeof b);
    b.w = w;
    b.E = E;
    b.D = D;
    b.S = S;
    b.P = D * S;
    b.best = 1e300;
    brute_fill(&b, 0);
    return b.best;
}

TEST(bound_below_optimum)
{
    uint64_t s = t_seed;
    int n, sharp = 0;
    for (n = 0; n < 400; n++) {
        int D = 1 + (int)t_below(&s, 3), S = 1 + (int)t_below(&s, D == 3 ? 2 : 3),
            E = 1 + (int)t_below(&s, D * S < 5 ? D * S : 5);
        moe_ep_shape shape = shape_of(D, D * S, 1);
        moe_ep_bound_result r;
        double w[8], best;
        random_loads(&s, w, E);
        CHECK_I64(moe_ep_lower_bound(w, E, &shape, &r, NULL, NULL), MOE_EP_OK);
        best = brute_optimum(w, E, D, S);
        CHECK(r.value <= best * (1 + 1e-9));
        sharp += r.value >= best * (1 - 1e-9);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(sharp > 200); /* a bound of zero would pass the rest */
    {
        moe_ep_shape shape = shape_of(4, 8, 0);
        moe_ep_bound_result r;
        double little[8];
        int i;
        CHECK_I64(moe_ep_lower_bound(demo, 8, &shape, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.value, 1050, 1e-12, 0);
        CHECK_I64(r.bound, MOE_EP_BOUND_SLOTS);
        CHECK_NEAR(r.mean, 887.5, 0, 0);
        CHECK_NEAR(r.replica, 1000, 0, 0);
        for (i = 0; i < 8; i++) little[i] = demo[i] / 3550 * 1.001e-280; /* the least that proves something */
        CHECK_I64(moe_ep_lower_bound(little, 8, &shape, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.value, 1050 / 3550.0 * 1.001e-280, 1e-12, 0);
        CHECK_I64(r.bound, MOE_EP_BOUND_SLOTS);
        for (i = 0; i < 8; i++) little[i] = i ? 0 : 1e-280;
        CHECK_I64(moe_ep_lower_bound(little, 8, &shape, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.value, 1e-280, 1e-12, 0);
        for (i = 0; i < 8; i++) little[i] = demo[i] / 3550 * 0.999e-280;
        CHECK_I64(moe_ep_lower_bound(little, 8, &shape, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.value + r.mean + r.replica + r.slots, 0, 0, 0);
        CHECK_I64(r.bound, MOE_EP_BOUND_MEAN);
        shape = shape_of(8, 16, 0);
        CHECK_I64(moe_ep_lower_bound(flashlb, 8, &shape, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.mean, 181.25, 0, 0);
        CHECK(r.value <= 196.6666666667);
        CHECK_I64(moe_ep_lower_bound(flashlb, 9, &shape, NULL, NULL, NULL), MOE_EP_ERR_NULL);
    }
}

/* ---- best placement
 * --------------------------------------------------------------------------------------------------- */

TEST(best_seed_numbers)
{
    moe_ep_place_desc d = desc_of(1, 8, shape_of(8, 16, 0), flashlb);
    moe_ep_placement p;
    moe_ep_plan_result r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    CHECK_NEAR(r.max, 232, 1e-9, 0);
    CHECK_I64(r.duplicates, 1);
    placement_free(&p);
    r = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r.max, 196.66666666666666, 1e-9, 0);
    CHECK_I64(r.duplicates, 0);
    CHECK_I64(r.policy, MOE_EP_PLACE_BEST);
    placement_free(&p);
    d = desc_of(1, 8, shape_of(4, 8, 0), demo);
    r = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r.max, 1050, 1e-9, 0);
    CHECK_NEAR(r.gap, 0, 0, 1e-9);
    placement_free(&p);
    { /* one extra copy on the demo buys nothing: 8 experts, a fifth of 12 slots free, still one copy each but one */
        const int32_t budget[1] = {9}, more[1] = {10};
        d = desc_of(1, 8, shape_of(4, 12, 0), demo);
        d.layer_slots = budget;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK(r.slots_used <= 9);
        CHECK_NEAR(r.max, 1000, 1e-9, 0);
        placement_free(&p);
        d.layer_slots = more;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK(r.max <= 900 + 1e-9);
        placement_free(&p);
    }
}

/* 1,000 small cases: within 0.5 % of the optimum, the bound below it, and at most EPLB unless EPLB doubles an expert.
 */
TEST(best_against_optimum)
{
    uint64_t s = t_seed;
    int n, better = 0;
    for (n = 0; n < 1000; n++) {
        int D = 2 + (int)t_below(&s, 3), S = 1 + (int)t_below(&s, 3), E = 2 + (int)t_below(&s, D * S - 1), i;
        int32_t cap[8];
        double w[12], best;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r, e;
        if (E > 7) E = 7;
        random_loads(&s, w, E);
        d = desc_of(1, E, shape_of(D, D * S, 1), w);
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_place_eplb(&d, &p, &e, NULL, NULL), MOE_EP_OK);
        CHECK(e.duplicates > 0 || r.max <= e.max * (1 + 1e-6));
        better += r.max < e.max * (1 - 1e-6);
        for (i = 0; i < D; i++) cap[i] = S;
        best = search_optimum(w, E, D, cap, NULL, NULL, NULL, r.max);
        CHECK(r.max <= best * 1.005 + 1e-9);
        CHECK(r.lower_bound <= best * (1 + 1e-9) + 1e-9);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(better > 100);
}

/* Every plan of a layer within limits, also with several copies on a device. */
typedef struct limited {
    const double *w;
    const int32_t *cap;
    int E, D, most, slots, copies[5][4], fill[4];
    double best;
} limited;

static void limited_try(limited *x, int e, int d, int left)
{
    int i, k;
    if (d == x->D) { /* the copies of e are placed */
        for (i = k = 0; i < x->D; i++) k += x->copies[e][i];
        if (k == 0) return;
        if (e + 1 < x->E) {
            limited_try(x, e + 1, 0, x->most);
            return;
        }
        {
            double worst = 0;
            for (d = 0; d < x->D; d++) {
                double load = 0;
                for (e = 0; e < x->E; e++) {
                    for (i = k = 0; i < x->D; i++) k += x->copies[e][i];
                    load += x->w[e] * x->copies[e][d] / k;
                }
                if (load > worst) worst = load;
            }
            if (worst < x->best) x->best = worst;
        }
        return;
    }
    for (k = 0; k <= left && k <= x->slots && x->fill[d] + k <= x->cap[d]; k++) {
        x->copies[e][d] = k;
        x->fill[d] += k;
        x->slots -= k;
        limited_try(x, e, d + 1, left - k);
        x->fill[d] -= k;
        x->slots += k;
    }
    x->copies[e][d] = 0;
}

/* The bound of a plan knows layer_slots and max_replicas, and stays below the best plan within them. */
TEST(bound_of_a_limited_plan)
{
    const double w[8] = {10, 10, 10, 10, 100, 10, 10, 10}, three[3] = {4, 4, 4}, full[4] = {10, 1, 1, 1};
    const int32_t budget[2] = {4, 5};
    moe_ep_place_desc d = desc_of(2, 4, shape_of(4, 8, 0), w);
    moe_ep_placement p = placement_new(2, 4, &d.shape);
    moe_ep_plan_result r[2];
    uint64_t s = t_seed;
    int n, i, sharp = 0, one_copy = 0;
    d.layer_slots = budget;
    CHECK_I64(moe_ep_best_placement(&d, &p, r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r[0].lower_bound, 10, 1e-12, 0);
    CHECK_NEAR(r[1].lower_bound, 50, 1e-12, 0);
    CHECK(r[1].bound == MOE_EP_BOUND_REPLICA && r[1].gap < 1e-12);
    d.max_replicas = 1;
    d.layer_slots = NULL;
    CHECK_I64(moe_ep_best_placement(&d, &p, r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r[1].lower_bound, 100, 1e-12, 0);
    CHECK(r[1].gap < 1e-12);
    d.layer_slots = budget;
    CHECK_I64(moe_ep_place_eplb(&d, &p, r, NULL, NULL), MOE_EP_OK); /* knows no such limits */
    CHECK_NEAR(r[1].lower_bound, 32.5, 1e-12, 0);
    placement_free(&p);
    d = desc_of(1, 3, shape_of(2, 4, 0), three);
    d.max_replicas = 1; /* the fourth slot stays empty: two of the three share a device */
    r[0] = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r[0].lower_bound, 8, 1e-12, 0);
    CHECK(r[0].bound == MOE_EP_BOUND_SLOTS && r[0].gap < 1e-12);
    placement_free(&p);
    d = desc_of(1, 4, shape_of(2, 4, 0), full);
    r[0] = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r[0].lower_bound, 11, 1e-12, 0); /* every slot is filled, also beside the heaviest */
    placement_free(&p);
    d = desc_of(1, 4, shape_of(2, 6, 0), full);
    d.layer_slots = budget;
    r[0] = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r[0].lower_bound, 10, 1e-12, 0); /* 10 | 1 1 1 fits: 3 slots a device, of which two stay empty */
    placement_free(&p);
    for (n = 0; n < 600; n++) {
        int D = 1 + (int)t_below(&s, 3), E, slots = 0;
        int32_t cap[3], given[1];
        double load[5];
        limited x;
        for (i = 0; i < D; i++) slots += cap[i] = 1 + (int32_t)t_below(&s, 3);
        E = 1 + (int)t_below(&s, slots < 5 ? slots : 5);
        if (slots > 7) continue;
        for (i = 0; i < E; i++) load[i] = t_below(&s, 6) == 0 ? 0 : (double)(1 + t_below(&s, t_below(&s, 2) ? 9 : 99));
        d = desc_of(1, E, shape_of(D, 0, 1), load);
        d.shape.slots_per_device = cap;
        given[0] = E + (int32_t)t_below(&s, slots - E + 1);
        if (t_below(&s, 3)) d.layer_slots = given;
        d.max_replicas = (int32_t)t_below(&s, 4);
        d.max_refinements = -(int32_t)t_below(&s, 2); /* a bound above the optimum shows where the plan is not it */
        memset(&x, 0, sizeof x);
        x.w = load;
        x.cap = cap;
        x.E = E;
        x.D = D;
        x.slots = d.layer_slots ? given[0] : slots;
        x.most = d.max_replicas ? d.max_replicas : slots;
        x.best = 1e300;
        limited_try(&x, 0, 0, x.most);
        r[0] = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK(r[0].lower_bound <= x.best * (1 + 1e-9));
        CHECK(r[0].max >= x.best * (1 - 1e-9));
        if (d.max_replicas == 1 && r[0].bound == MOE_EP_BOUND_SLOTS) one_copy++;
        sharp += r[0].lower_bound >= x.best * (1 - 1e-9);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %d at the optimum, %d by counting slots with one copy each\n", sharp, one_copy);
    CHECK(sharp > 300 && one_copy > 3);
}

/* Small layers whose optimum was found by trying every plan: copies other than the greedy ones are needed. */
TEST(best_of_uneven_slots)
{
    static const struct { int32_t E, D, slots[4]; double load[3], optimum; } row[] = {
        {3, 4, {2, 2, 1, 4}, {7, 7, 7}, 35.0 / 6.0}, {3, 3, {1, 4, 1, 0}, {282, 98, 273}, 273.0}};
    size_t i;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        moe_ep_shape shape;
        moe_ep_placement p;
        moe_ep_place_desc d;
        moe_ep_plan_result r;
        memset(&shape, 0, sizeof shape);
        shape.num_devices = row[i].D;
        shape.slots_per_device = row[i].slots;
        d = desc_of(1, row[i].E, shape, row[i].load);
        p = placement_new(1, row[i].E, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.max, row[i].optimum, 1e-12, 0);
        placement_free(&p);
    }
}

/* Uneven slots, speeds, dead devices and pins, all at once. */
TEST(best_general_shapes)
{
    uint64_t s = t_seed;
    int n;
    for (n = 0; n < 1000; n++) {
        int D = 2 + (int)t_below(&s, 3), E, i, slots = 0, active = 0;
        int32_t cap[8], pin[12], room[8];
        uint8_t down[8];
        double w[12], speed[8], best;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r;
        int use_speed = (int)t_below(&s, 2), use_pin = (int)t_below(&s, 2);
        for (i = 0; i < D; i++) {
            cap[i] = (int32_t)t_below(&s, 4);
            speed[i] = use_speed ? 0.5 + t_unit(&s) : 1.0;
            down[i] = (uint8_t)(t_below(&s, 5) == 0);
        }
        cap[0] = 1 + cap[0];
        down[0] = 0;
        for (i = 0; i < D; i++) {
            slots += cap[i];
            active += down[i] ? 0 : cap[i];
            room[i] = down[i] ? 0 : cap[i];
        }
        E = 1 + (int)t_below(&s, active < 7 ? active : 7);
        random_loads(&s, w, E);
        for (i = 0; i < E; i++) {
            pin[i] = use_pin && t_below(&s, 3) == 0 ? (int32_t)t_below(&s, D) : -1;
            if (pin[i] >= 0 && room[pin[i]]-- <= 0) pin[i] = -1;
        }
        d = desc_of(1, E, shape_of(D, 0, 1), w);
        d.shape.slots_per_device = cap;
        d.shape.speed = use_speed ? speed : NULL;
        d.shape.inactive = down;
        d.pinned = use_pin ? pin : NULL;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < p.num_slots; i++) CHECK(p.slot_expert[i] < 0 || !down[p.slot_device[i]]);
        for (i = 0; i < E; i++) {
            int k, found = pin[i] < 0 || !use_pin;
            for (k = p.replica_start[i]; k < p.replica_start[i + 1]; k++)
                found |= p.slot_device[p.replica_slot[k]] == pin[i];
            CHECK(found);
        }
        best = search_optimum(w, E, D, cap, speed, down, use_pin ? pin : NULL, r.max);
        CHECK(r.max <= best * 1.005 + 1e-9);
        CHECK(r.lower_bound <= best * (1 + 1e-9) + 1e-9);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Every planner on awkward inputs: zeros, one hot, ties, P = E, D = 1, D = P. */
TEST(fuzzed_plans_are_valid)
{
    static const planner all[6] = {moe_ep_place_round_robin, moe_ep_place_contiguous, moe_ep_place_lpt,
                                   moe_ep_place_eplb,        moe_ep_place_trtllm,     moe_ep_best_placement};
    uint64_t s = t_seed;
    int n, f;
    for (n = 0; n < (t_slow() > 1 ? 100 : 400); n++) {
        int D = n % 5 == 0 ? 1 : 1 + (int)t_below(&s, 12), S = 1 + (int)t_below(&s, 6), P = D * S,
            L = 1 + (int)t_below(&s, 3);
        int E = n % 3 == 0 ? P : 1 + (int)t_below(&s, P), N = 1;
        double *w = (double *)t_alloc(sizeof(double) * (size_t)(L * E));
        double *device = (double *)t_alloc(sizeof(double) * (size_t)(L * D));
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r[3];
        moe_ep_error err;
        for (f = 2; f <= 3; f++)
            if (D % f == 0) N = f;
        random_loads(&s, w, (int64_t)L * E);
        d = desc_of(L, E, shape_of(D, P, N), w);
        p = placement_new(L, E, &d.shape);
        for (f = 0; f < 6; f++) {
            int l, i;
            moe_ep_status status = all[f](&d, &p, r, NULL, &err);
            CHECK_I64(status, MOE_EP_OK);
            CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_OK);
            CHECK_I64(moe_ep_device_loads(&p, w, device, &err), MOE_EP_OK);
            for (l = 0; l < L; l++) {
                double total = 0, worst = 0;
                for (i = 0; i < E; i++) total += w[l * E + i];
                CHECK_NEAR(r[l].total, total, 1e-12, 0);
                for (i = 0, total = 0; i < D; i++) {
                    total += device[l * D + i];
                    if (device[l * D + i] > worst) worst = device[l * D + i];
                }
                CHECK_NEAR(total, r[l].total, 1e-9, 0);
                CHECK_NEAR(worst, r[l].max, 1e-12, 0);
                CHECK(r[l].lower_bound <= r[l].max);
                CHECK(r[l].imbalance >= 1 - 1e-9);
                CHECK(r[l].reason != NULL);
            }
        }
        placement_free(&p);
        free(w);
        free(device);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(window_and_evaluate)
{
    const double steps[4] = {1, 5, 3, 5}, swing[4] = {100, 0, 0, 100}, later[4] = {1, 1, 1, -1};
    const double hot[6] = {100, 0, 100, 0, 1, 2}, tied[4] = {2, 1, 1, 2};
    moe_ep_place_desc d = desc_of(1, 2, shape_of(2, 2, 0), swing);
    moe_ep_placement p;
    moe_ep_plan_result r;
    moe_ep_error err;
    double out[2];
    int i;
    CHECK_I64(moe_ep_window_loads(steps, 2, 1, 2, 1.0, out, &err), MOE_EP_OK);
    CHECK_NEAR(out[0], 3, 1e-12, 0);
    CHECK_NEAR(out[1], 5, 1e-12, 0);
    for (i = -275; i <= 275; i += 50) { /* squares of the ends fit into no double: 3 +- 1 and 5, times a power of ten */
        const double unit = pow(10, i), far[4] = {2 * unit, 5 * unit, 4 * unit, 5 * unit};
        CHECK_I64(moe_ep_window_loads(far, 2, 1, 2, 2.0, out, &err), MOE_EP_OK);
        CHECK_NEAR(out[0], 5 * unit, 1e-12, 0);
        CHECK_NEAR(out[1], 5 * unit, 1e-12, 0);
    }
    d.num_steps = 2;
    p = placement_new(1, 2, &d.shape);
    d.loads = later; /* each step is looked at */
    CHECK_I64(moe_ep_best_placement(&d, &p, &r, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 3);
    d.loads = swing;
    CHECK_I64(moe_ep_best_placement(&d, &p, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.imbalance, 1, 1e-12, 0); /* the mean of both steps is even */
    CHECK_I64(moe_ep_evaluate(&p, swing, 2, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.imbalance, 2, 1e-12, 0); /* but each step waits for one device */
    CHECK_NEAR(r.max, 200, 1e-12, 0);
    placement_free(&p);
    d.loads = swing;
    p = placement_new(1, 2, &d.shape);
    p.slot_expert[0] = 0;
    p.slot_expert[1] = 1;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_evaluate(&p, hot, 3, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.max, 202, 1e-12, 0);
    CHECK(r.busiest_device == 0 && r.bound == MOE_EP_BOUND_REPLICA); /* not those of the last step */
    CHECK_I64(moe_ep_evaluate(&p, hot + 4, 1, &r, NULL, &err), MOE_EP_OK);
    CHECK(r.busiest_device == 1);
    CHECK_I64(moe_ep_evaluate(&p, tied, 2, &r, NULL, &err), MOE_EP_OK);
    CHECK(r.busiest_device == 0 && r.max >= 4); /* 3 each */
    placement_free(&p);
    p = placement_new(1, 1, &d.shape);
    p.slot_expert[1] = 0;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.device_inactive[0] = 1; /* not the busiest, even where nobody has work */
    CHECK_I64(moe_ep_evaluate(&p, hot + 1, 1, &r, NULL, &err), MOE_EP_OK);
    CHECK(r.busiest_device == 1 && r.max <= 0);
    placement_free(&p);
}

/* ---- changes
 * ---------------------------------------------------------------------------------------------------------------- */

/* What the slots of layer l hold once its arrivals are there: stays and copies within a device first, then arrivals.
 * memory (P): contents before, and after; arrived (D,E). */
static void settle_layer(const moe_ep_placement *from, const moe_ep_placement *to, int l, int32_t *memory,
                         const char *arrived)
{
    int E = from->num_experts, P = from->num_slots, i, j;
    int32_t *old = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)P);
    memcpy(old, memory, sizeof(int32_t) * (size_t)P);
    for (i = 0; i < P; i++) {
        int32_t e = to->slot_expert[l * P + i], d = to->slot_device[i];
        memory[i] = -1;
        for (j = from->slot_start[d]; e >= 0 && j < from->slot_start[d + 1]; j++)
            if (old[j] == e) memory[i] = e;
        if (e >= 0 && arrived[d * E + e]) memory[i] = e;
        CHECK_I64(memory[i], e);
    }
    free(old);
}

/* Carries out a move list round by round, arrivals staged until their layer's last one, and checks the schedule. */
static void check_moves(const moe_ep_placement *from, const moe_ep_placement *to)
{
    int D = from->num_devices, E = from->num_experts, L = from->num_layers, P = from->num_slots, l, i;
    moe_ep_moves_result r, again;
    moe_ep_error err;
    moe_ep_move *m;
    char *arrived = (char *)t_alloc((size_t)L * (size_t)D * (size_t)E), *settled = (char *)t_alloc((size_t)L);
    int32_t *memory = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(L * P));
    int64_t k, round, staged = 0;
    CHECK_I64(moe_ep_plan_moves(from, to, 10.0, NULL, 0, &r, NULL, &err), MOE_EP_OK);
    m = (moe_ep_move *)t_alloc(sizeof *m * (size_t)(r.moves + 1));
    if (r.moves > 0)
        CHECK_I64(moe_ep_plan_moves(from, to, 10.0, m, r.moves - 1, &again, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_plan_moves(from, to, 10.0, m, r.moves, &again, NULL, &err), MOE_EP_OK);
    CHECK(memcmp(&r, &again, sizeof r) == 0);
    CHECK_NEAR(r.bytes, 10.0 * (double)r.moves, 0, 0);
    for (i = 0; i < L * P; i++) {
        int32_t d = from->slot_device[i % P];
        memory[i] = from->device_inactive[d] && !to->device_inactive[d] ? -1 : from->slot_expert[i];
    }
    for (round = 0; round < r.rounds; round++) {
        uint64_t sends[4] = {0}, gets[4] = {0};
        int layer = -1, last = 1;
        for (k = 0; k < r.moves; k++) {
            const moe_ep_move *x = &m[k];
            int64_t waiting = 0;
            if (k > 0) CHECK(m[k - 1].layer <= x->layer);
            CHECK(x->round >= 0 && x->round < r.rounds);
            if (layer >= 0 && x->layer == layer && x->round > round) last = 0;
            if (x->round != round) continue;
            if (layer < 0) { /* the moves before are of the layers before, or of this one in another round */
                layer = x->layer;
                CHECK(!settled[layer]);
                for (i = 0; i < k; i++)
                    if (m[i].layer == layer && m[i].round > round) last = 0;
            }
            CHECK_I64(x->layer, layer);
            CHECK(!(gets[x->to_device / 64] >> x->to_device % 64 & 1));
            gets[x->to_device / 64] |= (uint64_t)1 << x->to_device % 64;
            CHECK_I64(to->slot_device[x->to_slot], x->to_device);
            if (x->from_device >= 0) {
                CHECK(!(sends[x->from_device / 64] >> x->from_device % 64 & 1));
                sends[x->from_device / 64] |= (uint64_t)1 << x->from_device % 64;
                CHECK_I64(memory[layer * P + x->from_slot], x->expert);
                CHECK_I64(from->slot_device[x->from_slot], x->from_device);
                CHECK(!from->device_inactive[x->from_device]);
            }
            CHECK(!arrived[(layer * D + x->to_device) * E + x->expert]);
            arrived[(layer * D + x->to_device) * E + x->expert] = 1;
            for (i = 0; i < E; i++) waiting += arrived[(layer * D + x->to_device) * E + i];
            if (waiting > staged) staged = waiting;
        }
        CHECK(layer >= 0);
        if (layer < 0 || !last) continue;
        settle_layer(from, to, layer, memory + layer * P, arrived + layer * D * E);
        settled[layer] = 1;
    }
    for (l = 0; l < L; l++)
        if (!settled[l]) settle_layer(from, to, l, memory + l * P, arrived + l * D * E);
    CHECK_I64(r.staging, staged);
    CHECK(memcmp(memory, to->slot_expert, sizeof(int32_t) * (size_t)(L * P)) == 0);
    free(m);
    free(arrived);
    free(settled);
    free(memory);
}

static int64_t count_moves(const moe_ep_placement *from, const moe_ep_placement *to)
{
    moe_ep_moves_result r;
    CHECK_I64(moe_ep_plan_moves(from, to, 0, NULL, 0, &r, NULL, NULL), MOE_EP_OK);
    return r.moves;
}

TEST(moves_example)
{
    moe_ep_shape s = shape_of(2, 4, 0);
    moe_ep_placement a = placement_new(1, 4, &s), b = placement_new(1, 4, &s);
    const int32_t x[4] = {0, 1, 2, 3}, y[4] = {0, 2, 1, 3};
    moe_ep_move m[2];
    moe_ep_moves_result r;
    memcpy(a.slot_expert, x, sizeof x);
    memcpy(b.slot_expert, y, sizeof y);
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&a, &b, 3, m, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.moves, 2);
    CHECK_I64(r.rounds, 1);
    CHECK_I64(r.unchanged, 2);
    CHECK_NEAR(r.bytes, 6, 0, 0);
    CHECK_I64(m[0].expert, 2);
    CHECK_I64(m[0].from_slot, 2);
    CHECK_I64(m[0].to_slot, 1);
    CHECK_I64(m[1].from_device, 0);
    CHECK_I64(r.staging, 1);
    placement_free(&a);
    placement_free(&b);
    a = placement_new(2, 4, &s);
    b = placement_new(2, 4, &s);
    memcpy(a.slot_expert, x, sizeof x);
    memcpy(a.slot_expert + 4, x, sizeof x);
    memcpy(b.slot_expert, y, sizeof y);
    memcpy(b.slot_expert + 4, y, sizeof y);
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&a, &b, 3, NULL, 0, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 4 && r.rounds == 2 && r.staging == 1 && r.max_in == 2 && r.max_out == 2);
    placement_free(&a);
    placement_free(&b);
}

/* A slot is written when its layer's sends are done, and no holder sends two more than another that could. */
TEST(moves_one_layer_after_the_other)
{
    const int32_t x[4] = {0, 1, 1, 1}, y[4] = {1, 0, 0, 1};
    const int32_t held[6] = {0, 0, 1, 1, 1, 1}, wanted[6] = {0, 0, 0, 1, 0, 1};
    moe_ep_shape s = shape_of(4, 4, 0);
    moe_ep_placement a = placement_new(1, 2, &s), b = placement_new(1, 2, &s);
    moe_ep_move m[4];
    moe_ep_moves_result r;
    memcpy(a.slot_expert, x, sizeof x);
    memcpy(b.slot_expert, y, sizeof y);
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&a, &b, 0, m, 4, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 3 && r.rounds == 2 && r.staging == 1); /* 0 sends twice: its slot 0 waits for that */
    check_moves(&a, &b);
    placement_free(&a);
    placement_free(&b);
    s = shape_of(6, 6, 0);
    a = placement_new(1, 2, &s);
    b = placement_new(1, 2, &s);
    memcpy(a.slot_expert, held, sizeof held);
    memcpy(b.slot_expert, wanted, sizeof wanted);
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&a, &b, 0, m, 4, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 2 && r.rounds == 1 && r.max_out == 1);
    CHECK(m[0].from_device == 1 && m[0].to_device == 2 && m[1].from_device == 0 && m[1].to_device == 4);
    check_moves(&a, &b);
    placement_free(&a);
    placement_free(&b);
}

/* A device that was away holds nothing when it is back; one that stays away gets nothing that it is said to have. */
TEST(moves_to_a_replaced_device)
{
    moe_ep_shape s = shape_of(2, 6, 0);
    moe_ep_placement a = placement_new(1, 4, &s), b = placement_new(1, 4, &s);
    const int32_t x[6] = {0, 1, -1, 2, 3, -1};
    moe_ep_move m[4];
    moe_ep_moves_result r;
    memcpy(a.slot_expert, x, sizeof x);
    memcpy(b.slot_expert, x, sizeof x);
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    a.device_inactive[1] = 1;
    CHECK_I64(moe_ep_plan_moves(&a, &b, 1, m, 4, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 2 && r.lost == 2 && r.unchanged == 4 && r.slot_changes == 0 && r.bytes >= 2 && r.rounds == 2);
    CHECK(m[0].from_device == -1 && m[0].to_slot == 3 && m[1].from_slot == -1 && m[1].to_slot == 4);
    check_moves(&a, &b);
    b.slot_expert[5] = 2; /* twice on the device: one transfer */
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&a, &b, 1, NULL, 0, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 2 && r.slot_changes == 1 && r.unchanged == 3);
    check_moves(&a, &b);
    b.slot_expert[5] = -1;
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    b.device_inactive[1] = 1;
    CHECK_I64(moe_ep_plan_moves(&a, &b, 1, NULL, 0, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 0 && r.unchanged == 6);
    a.device_inactive[1] = 0;
    CHECK_I64(moe_ep_plan_moves(&a, &b, 1, NULL, 0, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 0 && r.unchanged == 6);
    placement_free(&a);
    placement_free(&b);
}

/* From busy senders to the least busy, the first of them on ties, until nothing changes. */
TEST(moves_spread_over_senders)
{
    const int32_t held[9] = {0, 2, -1, 0, 1, 3, 1, -1, -1};
    moe_ep_shape s = shape_of(10, 10, 0);
    moe_ep_placement a = placement_new(1, 2, &s), b = placement_new(1, 2, &s);
    moe_ep_move m[5];
    moe_ep_moves_result r;
    int i;
    for (i = 0; i < 10; i++) a.slot_expert[i] = b.slot_expert[i] = i < 3 ? 0 : 1;
    b.slot_expert[3] = b.slot_expert[6] = b.slot_expert[9] = 0; /* by turns all from device 0 */
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&a, &b, 0, m, 5, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 3 && r.rounds == 1);
    CHECK(m[0].from_device == 1 && m[1].from_device == 2 && m[2].from_device == 0);
    placement_free(&a);
    placement_free(&b);
    s = shape_of(8, 24, 0); /* expert 0 to device 4: only when 1 has gone from device 1 to 2 has device 1 two fewer */
    a = placement_new(1, 4, &s);
    b = placement_new(1, 4, &s);
    for (i = 0; i < 24; i++) a.slot_expert[i] = b.slot_expert[i] = i < 9 ? held[i] : -1;
    b.slot_expert[9] = b.slot_expert[18] = 2;
    b.slot_expert[12] = 0;
    b.slot_expert[15] = 1;
    b.slot_expert[21] = 3;
    CHECK_I64(moe_ep_placement_index(&a, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&a, &b, 0, m, 5, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.moves == 5 && r.rounds == 2 && r.max_out == 2);
    CHECK(m[1].expert == 0 && m[1].from_device == 1 && m[2].expert == 1 && m[2].from_device == 2);
    placement_free(&a);
    placement_free(&b);
}

TEST(rebalance_random)
{
    uint64_t s = t_seed;
    int n, i, improved = 0;
    for (n = 0; n < (t_slow() > 1 ? 300 : 1500); n++) {
        int D = 2 + (int)t_below(&s, 7), S = 1 + (int)t_below(&s, 5), P = D * S, L = 1 + (int)t_below(&s, 3);
        int E = 1 + (int)t_below(&s, P), kill = -1;
        double *a = (double *)t_alloc(sizeof(double) * (size_t)(L * E)),
               *b = (double *)t_alloc(sizeof(double) * (size_t)(L * E));
        moe_ep_place_desc d;
        moe_ep_placement p, q;
        moe_ep_plan_result r[3];
        moe_ep_rebalance_desc x;
        moe_ep_error err;
        int64_t moves = 0;
        random_loads(&s, a, (int64_t)L * E);
        random_loads(&s, b, (int64_t)L * E);
        d = desc_of(L, E, shape_of(D, P, 1 + (int)t_below(&s, D)), a);
        p = placement_new(L, E, &d.shape);
        q = placement_new(L, E, &d.shape);
        CHECK_I64((t_below(&s, 2) ? moe_ep_best_placement : moe_ep_place_lpt)(&d, &p, NULL, NULL, &err), MOE_EP_OK);
        if (P - S >= E && t_below(&s, 3) == 0) p.device_inactive[kill = (int)t_below(&s, D)] = 1;
        memset(&x, 0, sizeof x);
        x.current = &p;
        x.loads = b;
        x.target = t_below(&s, 2) ? 1.05 : 0;
        if (kill < 0 && t_below(&s, 2)) {
            x.max_moves = t_below(&s, 2) ? t_below(&s, 6) + 1 : 0; /* a limit per link alone, over layers, too */
            x.max_layer_moves = (int32_t)t_below(&s, 4);
            x.max_device_moves = (int32_t)t_below(&s, 4);
            x.max_link_moves = (int32_t)t_below(&s, 3);
        }
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, &err), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, &err), MOE_EP_OK);
        check_moves(&p, &q);
        for (i = 0; i < L; i++) {
            if (kill < 0) CHECK(r[i].max <= r[i].max_before * (1 + 1e-9));
            improved += r[i].max < 0.99 * r[i].max_before;
            moves += r[i].moves;
            if (x.max_layer_moves) CHECK(r[i].moves <= x.max_layer_moves);
        }
        CHECK_I64(moves, count_moves(&p, &q));
        if (x.max_moves) CHECK(moves <= x.max_moves);
        if (x.max_device_moves || x.max_link_moves) {
            moe_ep_moves_result m;
            moe_ep_move list[128];
            int link[8][8], j;
            memset(link, 0, sizeof link);
            CHECK_I64(moe_ep_plan_moves(&p, &q, 0, list, 128, &m, NULL, &err), MOE_EP_OK);
            if (x.max_device_moves) CHECK(m.max_in <= x.max_device_moves);
            for (j = 0; j < m.moves; j++)
                if (++link[list[j].from_device][list[j].to_device] > x.max_link_moves && x.max_link_moves)
                    CHECK(!"link");
        }
        if (kill >= 0)
            for (i = 0; i < L * P; i++) CHECK(q.slot_expert[i] < 0 || q.slot_device[i % P] != kill);
        placement_free(&p);
        placement_free(&q);
        free(a);
        free(b);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(improved > 50);
}

/* An expert that has grown too heavy for any device gets its copies before the others fill the light devices; six spare
 * slots in all. */
TEST(rebalance_heavy_expert_first)
{
    const double heavy[4] = {1.15, 1.5, 2.2, 3.7};
    uint64_t s = t_seed;
    int n, i, reached = 0;
    for (n = 0; n < 200; n++) {
        int D = 8 + 2 * (n % 5), S = 6, P = D * S, E = P - 6;
        double *w = (double *)t_alloc(sizeof(double) * (size_t)E), total = 0;
        moe_ep_place_desc d;
        moe_ep_placement p, q;
        moe_ep_plan_result r, best;
        moe_ep_rebalance_desc x;
        for (i = 0; i < E; i++) w[i] = 100 + (double)t_below(&s, 400);
        d = desc_of(1, E, shape_of(D, P, 1), w);
        p = placement_new(1, E, &d.shape);
        q = placement_new(1, E, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        for (i = 1; i < E; i++) total += w[i];
        w[0] = heavy[n % 4] * total / (D - heavy[n % 4]); /* so many times the mean with it */
        CHECK_I64(moe_ep_best_placement(&d, &q, &best, NULL, NULL), MOE_EP_OK);
        memset(&x, 0, sizeof x);
        x.current = &p;
        x.loads = w;
        x.target = 1.08;
        CHECK(best.imbalance < 1.08);
        CHECK_I64(moe_ep_rebalance(&x, &q, &r, NULL, NULL), MOE_EP_OK);
        reached += r.imbalance <= 1.08 * (1 + 1e-9);
        CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        CHECK(r.imbalance <= (n % 4 < 3 ? 1.08 : 1.15) * (1 + 1e-9)); /* four copies or more take most of the spare */
        check_moves(&p, &q);
        placement_free(&p);
        placement_free(&q);
        free(w);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(reached >= 185);
}

/* EPLB's placements, which may put an expert twice on a device, under other loads: never busier than before. */
TEST(rebalance_never_worse)
{
    const int32_t five[6] = {1, 1, 1, 1, 1, 0}, eight[8] = {0, 3, 0, 1, 0, 2, 3, 3};
    const double two_loads[2] = {169, 985}, four_loads[4] = {684, 87, 295, 801};
    uint64_t s = t_seed;
    int n, i, l, kept = 0, doubled = 0;
    moe_ep_rebalance_desc x;
    moe_ep_plan_result r[2];
    moe_ep_shape shape = shape_of(3, 6, 1);
    moe_ep_placement p = placement_new(1, 2, &shape), q = placement_new(1, 2, &shape);
    memset(&x, 0, sizeof x);
    memcpy(p.slot_expert, five, sizeof five);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    x.current = &p;
    x.loads = two_loads;
    x.target = 1.1;
    CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r[0].max, 394, 1e-12, 0);
    CHECK_NEAR(r[0].max_before, 394, 1e-12, 0);
    CHECK_I64(r[0].moves, 0);
    CHECK(memcmp(q.slot_expert, five, sizeof five) == 0);
    placement_free(&p);
    placement_free(&q);
    shape = shape_of(4, 8, 1);
    p = placement_new(1, 4, &shape);
    memcpy(p.slot_expert, eight, sizeof eight);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    x.loads = four_loads;
    x.target = 0;
    x.max_moves = 2;
    CHECK_I64(moe_ep_rebalance(&x, &p, r, NULL, NULL), MOE_EP_OK); /* in place */
    CHECK(r[0].max <= r[0].max_before && r[0].moves <= 2);
    placement_free(&p);
    for (n = 0; n < 2000; n++) {
        int D = 2 + (int)t_below(&s, 5), S = 1 + (int)t_below(&s, 4), E = 1 + (int)t_below(&s, D * S), same = 0;
        double a[2 * 24], b[2 * 24], before[2 * 6], after[2 * 6];
        int64_t moves = 0;
        moe_ep_place_desc d;
        moe_ep_check_result c;
        random_loads(&s, a, 2 * E);
        random_loads(&s, b, 2 * E);
        d = desc_of(2, E, shape_of(D, D * S, 1), a);
        p = placement_new(2, E, &d.shape);
        q = placement_new(2, E, &d.shape);
        CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, 0, &c, NULL), MOE_EP_OK);
        doubled += c.duplicates > 0;
        memset(&x, 0, sizeof x);
        x.current = &p;
        x.loads = b;
        x.target = t_below(&s, 2) ? 1.0 + (double)t_below(&s, 30) / 100 : 0;
        x.max_moves = t_below(&s, 4);
        x.max_layer_moves = (int32_t)t_below(&s, 3);
        x.max_device_moves = (int32_t)t_below(&s, 3);
        x.max_link_moves = (int32_t)t_below(&s, 3);
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_device_loads(&p, b, before, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_device_loads(&q, b, after, NULL), MOE_EP_OK);
        for (l = 0; l < 2; l++) {
            double was = 0, now = 0, total = 0;
            for (i = 0; i < D; i++) {
                was = before[l * D + i] > was ? before[l * D + i] : was;
                now = after[l * D + i] > now ? after[l * D + i] : now;
                total += before[l * D + i];
            }
            same = memcmp(p.slot_expert + l * D * S, q.slot_expert + l * D * S, sizeof(int32_t) * (size_t)(D * S)) == 0;
            CHECK(now <= was);
            if (was <= total / D * x.target * (1 - 1e-9)) CHECK(same); /* it met the target */
            CHECK_NEAR(r[l].max_before, was, 1e-12, 0);
            CHECK_NEAR(r[l].max, now, 1e-12, 0);
            moves += r[l].moves;
            kept += same;
        }
        CHECK_I64(moves, count_moves(&p, &q));
        if (x.max_moves > 0) CHECK(moves <= x.max_moves);
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(doubled > 100 && kept > 100 && kept < 3900);
}

/* Best of all renamings by trying them, against the assignment. */
static int best_overlap(const int *overlap, int D, int row, int used)
{
    int j, best = -1000;
    if (row == D) return 0;
    for (j = 0; j < D; j++)
        if (!(used >> j & 1)) {
            int v = overlap[row * D + j] + best_overlap(overlap, D, row + 1, used | 1 << j);
            if (v > best) best = v;
        }
    return best;
}

TEST(relabel)
{
    uint64_t s = t_seed;
    int n, i, j, t;
    for (n = 0; n < 200; n++) {
        int D = 2 + (int)t_below(&s, 4), S = 1 + (int)t_below(&s, 4), P = D * S, E = 1 + (int)t_below(&s, P);
        double *a = (double *)t_alloc(sizeof(double) * (size_t)E), *b = (double *)t_alloc(sizeof(double) * (size_t)E);
        double before[8], after[8];
        int overlap[64], kept = 0, want;
        moe_ep_place_desc d;
        moe_ep_placement p, q;
        random_loads(&s, a, E);
        random_loads(&s, b, E);
        d = desc_of(1, E, shape_of(D, P, 1), a);
        p = placement_new(1, E, &d.shape);
        q = placement_new(1, E, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        d.loads = b;
        CHECK_I64(moe_ep_best_placement(&d, &q, NULL, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < D; i++)
            for (j = 0; j < D; j++)
                for (overlap[i * D + j] = 0, t = 0; t < S * S; t++)
                    overlap[i * D + j] += p.slot_expert[i * S + t / S] >= 0 &&
                                          p.slot_expert[i * S + t / S] == q.slot_expert[j * S + t % S];
        want = best_overlap(overlap, D, 0, 0);
        CHECK_I64(moe_ep_device_loads(&q, b, before, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_relabel(&p, &q, 0, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_device_loads(&q, b, after, NULL), MOE_EP_OK);
        for (i = 0; i < P; i++) kept += q.slot_expert[i] >= 0 && q.slot_expert[i] == p.slot_expert[i];
        CHECK_I64(kept, want); /* staying experts stay in their slots */
        for (i = 0; i < D; i++) { /* the loads are only permuted */
            for (j = 0; j < D; j++)
                if (fabs(before[j] - after[i]) <= 1e-9 * (1 + after[i])) break;
            CHECK(j < D);
            if (j < D) before[j] = -1;
        }
        check_moves(&p, &q);
        placement_free(&p);
        placement_free(&q);
        free(a);
        free(b);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(copies_curve)
{
    moe_ep_copies_desc c;
    moe_ep_copies_point point[40];
    moe_ep_error err;
    int32_t fewest = 99;
    int i;
    memset(&c, 0, sizeof c);
    c.place = desc_of(1, 8, shape_of(8, 0, 0), hot);
    c.policy = MOE_EP_PLACE_EPLB_GLOBAL;
    c.max_extra = 32;
    c.target = 1.05;
    c.expert_bytes = 100;
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_OK);
    CHECK_I64(point[1].extra, 8);
    CHECK_NEAR(point[1].worst, 1.0667, 0, 5e-5);
    CHECK_NEAR(point[2].worst, 1.1002, 0, 5e-5); /* more copies, worse */
    CHECK_NEAR(point[4].worst, 1.0337, 0, 5e-5);
    CHECK_NEAR(point[4].bytes, 3200, 0, 0);
    CHECK(fewest == 24 || fewest == 32);
    c.place.shape.num_devices = 3; /* 8 experts: 9, 12, 15 slots */
    c.max_extra = 8;
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_OK);
    for (i = 0; i < 3; i++) CHECK_I64(point[i].extra, 1 + 3 * i);
    c.place.shape.num_devices = 8;
    c.policy = MOE_EP_PLACE_BEST;
    c.max_extra = 12;
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_OK);
    for (i = 0; i <= 12; i++) CHECK_I64(point[i].extra, i);
    CHECK_NEAR(point[0].worst, 4.8, 1e-9, 0);
    CHECK(fewest > 0 && point[fewest].worst <= 1.05);
    for (i = 0; i < fewest; i++) CHECK(point[i].worst > 1.05);
    c.target = 1.0;
    c.max_extra = 2;
    CHECK_I64(moe_ep_min_copies(&c, NULL, &fewest, NULL, &err), MOE_EP_OK);
    CHECK_I64(fewest, -1);
}

TEST(budgets)
{
    /* layer 0 is even, layer 1 has a hot expert: all extra slots go there, and not more than help */
    const double w[8] = {10, 10, 10, 10, 100, 10, 10, 10};
    moe_ep_place_desc d = desc_of(2, 4, shape_of(4, 12, 0), w);
    int32_t slots[2];
    moe_ep_error err;
    CHECK_I64(moe_ep_replica_budgets(&d, 2, slots, NULL, &err), MOE_EP_OK);
    CHECK_I64(slots[0], 4);
    CHECK_I64(slots[1], 6);
    CHECK_I64(moe_ep_replica_budgets(&d, 1, slots, NULL, &err), MOE_EP_OK); /* 100 becomes 50 with one more */
    CHECK(slots[0] == 4 && slots[1] == 5);
    CHECK_I64(moe_ep_replica_budgets(&d, 100, slots, NULL, &err), MOE_EP_OK);
    CHECK_I64(slots[0], 4);
    CHECK_I64(slots[1], 12); /* 35 with 7; the mean of 32.5 only with copies of the others too */
    CHECK_I64(moe_ep_replica_budgets(&d, 0, slots, NULL, &err), MOE_EP_OK);
    CHECK(slots[0] == 4 && slots[1] == 4);
}

/* Several totals at once give what each gives alone. */
TEST(budget_rows)
{
    const double w[8] = {10, 10, 10, 10, 100, 10, 10, 10};
    const int64_t two[2] = {0, 2}, bad[3] = {1, -2, 3};
    uint64_t s = t_seed;
    moe_ep_place_desc d = desc_of(2, 4, shape_of(4, 12, 0), w);
    int32_t rows[4], untouched[4] = {-7, -7, -7, -7};
    moe_ep_error err;
    int n, k, l;
    CHECK_I64(moe_ep_replica_budget_row(&d, two, 2, rows, NULL, &err), MOE_EP_OK);
    CHECK(rows[0] == 4 && rows[1] == 4 && rows[2] == 4 && rows[3] == 6);
    CHECK_I64(moe_ep_replica_budget_row(&d, NULL, 2, untouched, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "extra_slots");
    CHECK_I64(moe_ep_replica_budget_row(&d, two, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "layer_slots");
    CHECK_I64(moe_ep_replica_budget_row(&d, two, 0, untouched, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_budgets");
    CHECK_I64(moe_ep_replica_budget_row(&d, bad, 3, untouched, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    for (k = 0; k < 4; k++) CHECK_I64(untouched[k], -7);
    for (n = 0; n < 40; n++) {
        int D = 2 + (int)t_below(&s, 4), E = D + (int)t_below(&s, 6), P = E + (int)t_below(&s, 9), L = 1 + n % 3;
        double loads[3 * 10];
        int64_t extra[5];
        int32_t got[5 * 3], alone[3];
        random_loads(&s, loads, (int64_t)L * E);
        d = desc_of(L, E, shape_of(D, P, 1), loads);
        for (k = 0; k < 5; k++) extra[k] = (int64_t)t_below(&s, 4 * L + 1);
        CHECK_I64(moe_ep_replica_budget_row(&d, extra, 5, got, NULL, &err), MOE_EP_OK);
        for (k = 0; k < 5; k++) {
            CHECK_I64(moe_ep_replica_budgets(&d, extra[k], alone, NULL, &err), MOE_EP_OK);
            for (l = 0; l < L; l++) CHECK_I64(got[k * L + l], alone[l]);
        }
        STOP_IF_FAILED("case %d", n);
    }
}

/* ---- options of best placement
 * --------------------------------------------------------------------------------------------- */

TEST(soft_nodes)
{
    const double trap[8] = {1000, 1, 1, 1, 1, 1, 1, 1};
    moe_ep_place_desc d = desc_of(1, 8, shape_of(4, 12, 2), trap);
    moe_ep_placement p;
    moe_ep_plan_result r;
    double node[2];
    d.num_groups = 2;
    d.node_soft = 1;
    r = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r.off_node, 0, 0, 0); /* strict: the hot expert stays on its node */
    CHECK(r.max > 499);
    CHECK_I64(moe_ep_node_loads(&p, trap, node, NULL), MOE_EP_OK);
    CHECK_NEAR(node[0], 1003, 1e-9, 0);
    placement_free(&p);
    d.max_off_node = 0.6;
    r = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK(r.off_node > 0 && r.off_node <= 0.6);
    CHECK(r.max < 350);
    placement_free(&p);
    {
        const int32_t home[8] = {0, 0, 0, 0, 0, 0, 0, 1}, bad[8] = {0, 0, 0, 0, 0, 0, 0, 2};
        moe_ep_error err;
        d.home_node = home;
        p = placement_new(1, 8, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_INFEASIBLE);
        CHECK_I64(err.index, 0);
        CHECK_NEAR(err.value, -1, 0, 0);
        d.home_node = bad;
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
        CHECK_I64(err.index, 7);
        d.home_node = NULL;
        d.num_groups = 3;
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
        placement_free(&p);
    }
}

/* Load off its home node, counted from the placement. */
static double off_home(const moe_ep_placement *p, const double *w, const int32_t *home)
{
    double off = 0;
    int e, i, n;
    for (e = 0; e < p->num_experts; e++) {
        n = p->replica_start[e + 1] - p->replica_start[e];
        for (i = p->replica_start[e]; i < p->replica_start[e + 1]; i++)
            if (p->device_node[p->slot_device[p->replica_slot[i]]] != home[e]) off += w[e] / n;
    }
    return off;
}

/* Speeds far apart put a layer at home above twice D times the mean: it stays at home all the same. */
TEST(soft_nodes_on_slow_devices)
{
    const double ten[4] = {10, 10, 10, 10};
    const int32_t home[4] = {0, 0, 1, 1};
    double tenth[2] = {1, 0.1}, w[40], speed[8], total;
    uint64_t s = t_seed;
    int n, i, far = 0;
    moe_ep_place_desc d = desc_of(1, 4, shape_of(2, 8, 2), ten);
    moe_ep_placement p;
    moe_ep_plan_result r;
    d.node_soft = 1;
    d.home_node = home;
    d.shape.speed = tenth;
    r = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r.off_node, 0, 0, 0);
    CHECK_NEAR(r.max, 200, 1e-12, 0);
    placement_free(&p);
    for (n = 0; n < 200; n++) {
        int N = 2 + (int)t_below(&s, 2), D = N * (1 + (int)t_below(&s, 2)), S = 2 + (int)t_below(&s, 3);
        int E = N * (1 + (int)t_below(&s, D / N * S));
        int32_t at[40];
        for (i = 0; i < D; i++) speed[i] = exp(6 * t_unit(&s) - 6);
        for (i = 0, total = 0; i < E; i++) {
            at[i] = i * N / E;
            total += w[i] = exp(3 * t_unit(&s));
        }
        d = desc_of(1, E, shape_of(D, D * S, N), w);
        d.shape.speed = speed;
        d.node_soft = 1;
        d.home_node = at;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_NEAR(r.off_node, 0, 0, 0);
        CHECK_NEAR(off_home(&p, w, at), 0, 0, 0);
        far += r.imbalance > 2 * D;
        placement_free(&p);
        d.max_off_node = 0.1;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK(off_home(&p, w, at) <= 0.1 * total * (1 + 1e-9));
        CHECK_NEAR(r.off_node * total, off_home(&p, w, at), 1e-9, 1e-9);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(far > 10);
}

/* max_refinements holds for soft nodes, too; partners are swapped on top. */
TEST(soft_nodes_with_few_changes)
{
    double w[64] = {0};
    int64_t pairs[64 * 64];
    uint64_t s = t_seed;
    int i, most, on_top = 0, before = 0;
    moe_ep_place_desc d = desc_of(1, 64, shape_of(8, 72, 2), w);
    moe_ep_placement p;
    moe_ep_plan_result r;
    for (i = 0; i < 64; i++) w[i] = exp(2 * t_unit(&s));
    for (i = 0; i < 64 * 64; i++) pairs[i] = t_below(&s, 100);
    d.node_soft = 1;
    d.num_groups = 4;
    d.max_off_node = 0.1;
    for (most = 6; most >= -1; most--) {
        d.max_refinements = most;
        d.coactivation = NULL;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        placement_free(&p);
        if (most > 0) CHECK_I64(r.refinements, most);
        else CHECK(most < 0 ? r.refinements == 0 : r.refinements > 6);
        before = r.refinements;
        d.coactivation = pairs;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        placement_free(&p);
        on_top += r.refinements > before;
    }
    CHECK_I64(on_top, 8);
}

TEST(soft_nodes_random)
{
    uint64_t s = t_seed;
    int n, used = 0;
    for (n = 0; n < 200; n++) {
        int N = 2 + (int)t_below(&s, 2), D = N * (1 + (int)t_below(&s, 3)), S = 2 + (int)t_below(&s, 4), P = D * S, i;
        int E = N * (1 + (int)t_below(&s, P / N));
        double w[96], total = 0;
        int32_t home[96];
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result strict, soft;
        random_loads(&s, w, E);
        for (i = 0; i < E; i++) {
            home[i] = i * N / E;
            total += w[i];
        }
        d = desc_of(1, E, shape_of(D, P, N), w);
        d.node_soft = 1;
        d.home_node = home;
        strict = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_NEAR(off_home(&p, w, home), 0, 0, 0);
        placement_free(&p);
        d.max_off_node = 0.2;
        soft = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        CHECK(off_home(&p, w, home) <= 0.2 * total * (1 + 1e-9));
        CHECK_NEAR(soft.off_node * total, off_home(&p, w, home), 1e-9, 1e-9);
        CHECK(soft.max <= strict.max * 1.02 + 1e-9);
        used += soft.max < strict.max * 0.95;
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(used > 20);
}

/* Sum over devices of the pairs that meet there, weighed by the chance that both replicas are chosen. */
static double togetherness(const moe_ep_placement *p, const int64_t *pairs)
{
    int E = p->num_experts, d, i, j;
    double sum = 0;
    for (d = 0; d < p->num_devices; d++)
        for (i = p->slot_start[d]; i < p->slot_start[d + 1]; i++)
            for (j = i + 1; j < p->slot_start[d + 1]; j++) {
                int a = p->slot_expert[i], b = p->slot_expert[j];
                if (a < 0 || b < 0) continue;
                sum += (double)pairs[a * E + b] / (p->replica_start[a + 1] - p->replica_start[a]) /
                       (p->replica_start[b + 1] - p->replica_start[b]);
            }
    return sum;
}

TEST(partners)
{
    uint64_t s = t_seed;
    int n, better = 0;
    for (n = 0; n < 60; n++) {
        enum { E = 16 };
        double w[E];
        int64_t pairs[E * E];
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result plain, together;
        double before;
        int i, j;
        for (i = 0; i < E; i++) w[i] = 100 + (double)t_below(&s, 4);
        for (i = 0; i < E; i++)
            for (j = 0; j <= i; j++)
                pairs[i * E + j] = pairs[j * E + i] = t_below(&s, 4) ? t_below(&s, 5) : t_below(&s, 100);
        d = desc_of(1, E, shape_of(4, 20, 1), w);
        plain = plan_one(moe_ep_best_placement, &d, &p, NULL);
        before = togetherness(&p, pairs);
        placement_free(&p);
        d.coactivation = pairs;
        d.coactivation_slack = 0.02;
        together = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        CHECK(together.max <= plain.max * (1 + 0.02 + 1e-9));
        CHECK(togetherness(&p, pairs) >= before);
        better += togetherness(&p, pairs) > 1.2 * before;
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(better > 30);
}

/* EPLB in every mode that applies.  Lowest maximum of its plans that double no expert, 1e300 without one; the global
 * plan's own beside it. */
static double eplb_without_doubles(moe_ep_place_desc d, moe_ep_placement *p, double *global)
{
    double low = 1e300;
    int mode;
    *global = 1e300;
    for (mode = 0; mode < 2; mode++) {
        moe_ep_plan_result e;
        d.eplb_mode = mode ? MOE_EP_EPLB_HIERARCHICAL : MOE_EP_EPLB_GLOBAL;
        if (moe_ep_place_eplb(&d, p, &e, NULL, NULL) != MOE_EP_OK || e.duplicates > 0) continue;
        if (mode == 0) *global = e.max;
        if (e.max < low) low = e.max;
    }
    return low;
}

/* 5,000 small cases and some large ones: never above EPLB's global plan without doubles up to 512 slots; never above
 * any such plan but for the last 0.015 % over the bound.  How often a plan with doubles is lower is counted. */
TEST(best_never_above_eplb)
{
    uint64_t s = t_seed;
    const int small = t_slow() > 1 ? 1000 : 5000;
    int n, compared = 0, lower = 0;
    for (n = 5000 - small; n < 5000 + small / 125; n++) {
        int large = n >= 5000, N = 1 + (int)t_below(&s, 3), D = N * (1 + (int)t_below(&s, large ? 24 : 3)),
            S = 1 + (int)t_below(&s, large ? 40 : 4), E = 1 + (int)t_below(&s, D * S), groups;
        double *w = (double *)t_alloc(sizeof(double) * (size_t)E), eplb, global;
        moe_ep_place_desc d;
        moe_ep_placement p, q;
        moe_ep_plan_result r, e;
        random_loads(&s, w, E);
        for (groups = 1 + (int)t_below(&s, 8); E % groups; groups--) {}
        d = desc_of(1, E, shape_of(D, D * S, N), w);
        d.num_groups = groups;
        d.max_refinements = t_below(&s, 4) ? 0 : (int)t_below(&s, 3) - 1;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        q = placement_new(1, E, &d.shape);
        eplb = eplb_without_doubles(d, &q, &global);
        if (D * S <= 512) CHECK(r.max <= global * (1 + 1e-9));
        CHECK(r.max <= (eplb > r.lower_bound * 1.00015 ? eplb : r.lower_bound * 1.00015) * (1 + 1e-9));
        compared += eplb < 1e300;
        d.eplb_mode = MOE_EP_EPLB_GLOBAL;
        CHECK_I64(moe_ep_place_eplb(&d, &q, &e, NULL, NULL), MOE_EP_OK);
        lower += d.max_refinements == 0 && e.max < r.max * (1 - 1e-9);
        placement_free(&p);
        placement_free(&q);
        free(w);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(compared > small / 5 * 2);
    CHECK(lower < small / 100);
    printf("    %d plans of EPLB without doubles, none lower; %d with doubles lower\n", compared, lower);
}

TEST(allow_duplicates_never_above_eplb)
{
    uint64_t s = t_seed;
    int n;
    for (n = 0; n < 1000; n++) {
        int D = 1 + (int)t_below(&s, 4), S = 1 + (int)t_below(&s, 4), E = 1 + (int)t_below(&s, D * S);
        double w[16];
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r, e;
        random_loads(&s, w, E);
        d = desc_of(1, E, shape_of(D, D * S, 1), w);
        d.allow_duplicates = 1;
        d.max_refinements = (int)t_below(&s, 2); /* 1: hardly any search, so that the fallback is used */
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_I64(moe_ep_place_eplb(&d, &p, &e, NULL, NULL), MOE_EP_OK);
        CHECK(r.max <= e.max * (1 + 1e-9));
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(layer_budgets_are_kept)
{
    uint64_t s = t_seed;
    int n, l;
    for (n = 0; n < (t_slow() > 1 ? 10 : 100); n++) {
        int D = 2 + (int)t_below(&s, 5), S = 2 + (int)t_below(&s, 4), P = D * S, E = 1 + (int)t_below(&s, P), d;
        int32_t slots[4];
        double w[4 * 36];
        int64_t extra = t_below(&s, 4 * (P - E) + 1), sum = 0;
        moe_ep_place_desc x;
        moe_ep_placement p;
        moe_ep_plan_result r[4];
        random_loads(&s, w, 4 * E);
        x = desc_of(4, E, shape_of(D, P, 1), w);
        CHECK_I64(moe_ep_replica_budgets(&x, extra, slots, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < 4; l++) {
            CHECK(slots[l] >= E && slots[l] <= P);
            sum += slots[l] - E;
        }
        CHECK(sum <= extra);
        x.layer_slots = slots;
        p = placement_new(4, E, &x.shape);
        CHECK_I64(moe_ep_best_placement(&x, &p, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < 4; l++) {
            CHECK(r[l].slots_used <= slots[l]);
            for (d = 0; d < D; d++) { /* as even over the devices as the number allows */
                int i, used = 0;
                for (i = d * S; i < d * S + S; i++) used += p.slot_expert[l * P + i] >= 0;
                CHECK(used <= (slots[l] + D - 1) / D);
            }
        }
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

static double planned_sum(moe_ep_place_desc d, const int32_t *slots)
{
    moe_ep_placement p = placement_new(d.num_layers, d.num_experts, &d.shape);
    moe_ep_plan_result *r = (moe_ep_plan_result *)t_alloc(sizeof *r * (size_t)d.num_layers);
    double sum = 0;
    int l;
    d.layer_slots = slots;
    CHECK_I64(moe_ep_best_placement(&d, &p, r, NULL, NULL), MOE_EP_OK);
    for (l = 0; l < d.num_layers; l++) sum += r[l].max;
    placement_free(&p);
    free(r);
    return sum;
}

/* As planned by best_placement: never more than 0.02 % above the same total shared out evenly, often below it. */
TEST(budgets_never_worse_than_even)
{
    uint64_t s = t_seed;
    const int cases = t_slow() > 1 ? 10 : 150;
    int n, l, below = 0;
    for (n = 0; n < cases; n++) {
        int D = 2 + (int)t_below(&s, 8), S = 2 + (int)t_below(&s, 5), P = D * S, E = 1 + (int)t_below(&s, P), L = 5;
        int32_t slots[5], even[5], pin[5 * 60];
        double w[5 * 60], speed[10], a, b;
        int64_t extra = t_below(&s, L * (P - E) + 2);
        moe_ep_place_desc x;
        random_loads(&s, w, L * E);
        for (l = 0; l < D; l++) speed[l] = 0.5 + t_unit(&s);
        for (l = 0; l < L * E; l++) pin[l] = E < S && t_below(&s, 3) == 0 ? (int32_t)t_below(&s, D) : -1;
        x = desc_of(L, E, shape_of(D, P, 1), w);
        if (n % 3 == 0) x.shape.speed = speed;
        if (n % 4 == 0) x.pinned = pin;
        if (n % 5 == 0) x.max_replicas = 2;
        CHECK_I64(moe_ep_replica_budgets(&x, extra, slots, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            int64_t share = extra / L + (l < extra % L);
            even[l] = E + (int32_t)(share < P - E ? share : P - E);
        }
        a = planned_sum(x, slots);
        b = planned_sum(x, even);
        CHECK(a <= b * (1 + 2.1e-4));
        below += a < b * 0.999;
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(below > cases / 5);
}

/* Pins that crowd a device count against the budget of the layer. */
TEST(budgets_with_pins)
{
    const double w4[4] = {9, 7, 5, 3};
    const int32_t at0[4] = {0, 0, 0, 0}, four[1] = {4};
    uint64_t s = t_seed;
    int n, l, e, i;
    moe_ep_shape shape = shape_of(2, 8, 1);
    moe_ep_place_desc x = desc_of(1, 4, shape, w4);
    moe_ep_placement p = placement_new(1, 4, &shape);
    moe_ep_plan_result r[3];
    x.layer_slots = four;
    x.pinned = at0;
    CHECK_I64(moe_ep_best_placement(&x, &p, r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r[0].slots_used, 4);
    CHECK_NEAR(r[0].max, 24, 1e-12, 0);
    placement_free(&p);
    for (n = 0; n < (t_slow() > 1 ? 100 : 500); n++) {
        int D = 2 + (int)t_below(&s, 5), S = 1 + (int)t_below(&s, 5), P = D * S, E = 1 + (int)t_below(&s, P - S + 1);
        int32_t slots[3], pin[3 * 30], room[6];
        double w[3 * 30];
        uint8_t down[6] = {0};
        random_loads(&s, w, 3 * E);
        shape = shape_of(D, P, 1);
        if (E <= P - S && t_below(&s, 2)) down[t_below(&s, D)] = 1;
        shape.inactive = down;
        x = desc_of(3, E, shape, w);
        for (l = 0; l < 3; l++) {
            int active = 0;
            for (i = 0; i < D; i++) active += room[i] = down[i] ? 0 : S;
            slots[l] = E + (int32_t)t_below(&s, active - E + 1);
            for (e = 0; e < E; e++) { /* mostly low devices, so that they are crowded */
                i = (int)t_below(&s, 1 + t_below(&s, D));
                pin[l * E + e] = room[i] > 0 && t_below(&s, 4) ? (room[i]--, i) : -1;
            }
        }
        x.layer_slots = slots;
        x.pinned = pin;
        p = placement_new(3, E, &shape);
        CHECK_I64(moe_ep_best_placement(&x, &p, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < 3; l++) {
            CHECK(r[l].slots_used <= slots[l]);
            for (e = 0; e < E; e++) {
                int there = pin[l * E + e] < 0;
                for (i = 0; i < P; i++)
                    there |= p.slot_expert[l * P + i] == e && p.slot_device[i] == pin[l * E + e];
                CHECK(there);
            }
        }
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* ---- quality -------------------------------------------------------------------------------------------------
 * Searches have no right answer to compare with, but their quality over many fixed cases is steady.  The limits below
 * lie a few percent above what the search reaches (the mean over all cases of the gap to a bound that was counted or
 * tried out here), so that a search that lost one of its means is found out. */

/* Could a layer stay at the level?  All numbers of copies tried: no copy above the level, those above half of it on
 * devices of their own. */
static int counts_reach(const double *w, int E, int D, int spare, int big, double level)
{
    int c;
    if (E == 0) return big <= D;
    for (c = 0; c <= spare; c++) {
        double unit = w[0] / (c + 1);
        if (unit > level * (1 + 1e-9)) continue;
        if (counts_reach(w + 1, E - 1, D, spare - c, big + (unit > 0.5 * level ? c + 1 : 0), level)) return 1;
    }
    return 0;
}

/* The bound by counting is what trying all numbers of copies gives, or a little less where one copy would have to be
 * split for that. */
TEST(bound_by_counting)
{
    uint64_t s = 20240607u;
    int n, e, i, same = 0, counted = 0;
    double sum = 0;
    for (n = 0; n < 1500; n++) {
        int D = 2 + (int)t_below(&s, 4), E = 1 + (int)t_below(&s, 6), P = E + 1 + (int)t_below(&s, 6);
        double w[6], low, high, middle, total = 0;
        moe_ep_shape shape = shape_of(D, P, 1);
        moe_ep_bound_result r;
        for (e = 0; e < E; e++) total += w[e] = n % 3 ? exp(3.0 * t_unit(&s)) : (double)(1 + t_below(&s, 12));
        CHECK_I64(moe_ep_lower_bound(w, E, &shape, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.mean, total / D, 1e-12, 0);
        CHECK_NEAR(r.replica, brute_heaviest(w, E, P - E), 1e-12, 0);
        low = r.mean > r.replica ? r.mean : r.replica;
        CHECK(r.value >= low && (r.bound == MOE_EP_BOUND_SLOTS || r.value <= low));
        for (i = 0, high = 2 * total, middle = low; i < 40; i++) {
            if (counts_reach(w, E, D, P - E, 0, middle)) high = middle;
            else low = middle;
            middle = 0.5 * (low + high);
        }
        CHECK(r.slots <= high * (1 + 1e-6));
        counted += r.bound == MOE_EP_BOUND_SLOTS;
        same += r.value >= high * (1 - 1e-6);
        sum += high / r.value - 1;
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %d bounds by counting, %d as sharp as can be, %.6f below on average\n", counted, same, sum / n);
    CHECK(counted >= 145 && same >= 1480 && sum / n < 0.00102);
}

/* Loads of D devices that can be dealt out without any rest: E = D * S experts whose best plan is known. */
static void dealt_loads(uint64_t *s, double *w, int D, int S, const double *speed)
{
    int d, i;
    for (d = 0; d < D; d++) {
        double left = 1000.0 * (speed ? speed[d] : 1.0);
        for (i = 0; i < S; i++) {
            double part = i == S - 1 ? left : left / (S - i) * (0.3 + 1.4 * t_unit(s));
            w[d * S + i] = part;
            left -= part;
        }
    }
    for (i = D * S - 1; i > 0; i--) {
        int j = (int)t_below(s, i + 1);
        double keep = w[i];
        w[i] = w[j];
        w[j] = keep;
    }
}

/* Layers too large for trying everything: max over mean, which nothing gets below 1. */
TEST(quality_of_larger_layers)
{
    static const char *const kind[6] = {"one copy each", "spare slots", "speeds", "pins", "two copies at most",
                                        "budgets"};
    static const double most_gap[6] = {0.00170, 0.00068, 0.00165, 0.00094, 0.00092, 0.00126};
    static const double most_steps[6] = {257, 78, 328, 109, 344, 197};
    const int cases = t_slow() > 1 ? 6 : 60; /* what is compared is the mean of 60 */
    double gap[6] = {0}, steps[6] = {0};
    int n, k, i;
    for (k = 0; k < 6; k++) {
        uint64_t s = 20240607u;
        for (n = 0; n < cases; n++) {
            int D = 9 + (int)t_below(&s, 12), S = 3 + (int)t_below(&s, 4), E = D * S, P = k == 0 ? E : E + D;
            double w[20 * 6], speed[20], total = 0, fast = 0;
            int32_t pin[20 * 6], slots[1];
            moe_ep_place_desc d;
            moe_ep_placement p;
            moe_ep_plan_result r;
            for (i = 0; i < D; i++) fast += speed[i] = k == 2 ? 0.5 + t_unit(&s) : 1.0;
            dealt_loads(&s, w, D, S, speed);
            if (k != 0) w[0] += 1500.0 * t_unit(&s);
            for (i = 0; i < E; i++) total += w[i];
            for (i = 0; i < E; i++) pin[i] = i % 5 == 0 ? i / 5 % D : -1;
            d = desc_of(1, E, shape_of(D, P, 1), w);
            if (k == 2) d.shape.speed = speed;
            if (k == 3) d.pinned = pin;
            if (k == 4) d.max_replicas = 2;
            if (k == 5) d.layer_slots = slots;
            slots[0] = E + D / 2;
            r = plan_one(moe_ep_best_placement, &d, &p, NULL);
            CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
            CHECK_NEAR(busiest(&p, 0, w), r.max, 1e-12, 0);
            CHECK_NEAR(r.mean, total / fast, 1e-12, 0);
            gap[k] += (r.max / r.lower_bound - 1) / cases;
            steps[k] += (double)r.refinements / cases;
            placement_free(&p);
            STOP_IF_FAILED("case %d", 100 * k + n);
        }
        printf("    %s: %.6f above the bound after %.1f changes\n", kind[k], gap[k], steps[k]);
        if (cases == 60) CHECK(gap[k] <= most_gap[k] && steps[k] <= most_steps[k]);
    }
}

/* From a plan to the next: how even, with how many moves. */
TEST(quality_of_rebalance)
{
    static const char *const kind[6] = {"as even as it gets", "to 1.05", "speeds", "10 moves", "links",
                                        "a device lost"};
    static const double most_gap[6] = {0.00404, 0.0400, 0.1535, 0.0155, 0.00473, 0.0408};
    static const double most_moves[6] = {25.5, 3.85, 4.75, 9.7, 23.8, 6.35};
    static const double most_steps[6] = {24.1, 6.65, 6.1, 11.4, 22.5, 7.3};
    const int cases = t_slow() > 1 ? 6 : 60;
    int n, k, i;
    for (k = 0; k < 6; k++) {
        uint64_t s = 20240607u;
        double gap = 0, moves = 0, steps = 0;
        for (n = 0; n < cases; n++) {
            int D = 6 + (int)t_below(&s, 14), S = 4 + (int)t_below(&s, 4), E = D * S - D - (int)t_below(&s, D);
            double a[20 * 8], b[20 * 8], speed[20];
            moe_ep_place_desc d;
            moe_ep_placement p, q;
            moe_ep_plan_result r;
            moe_ep_rebalance_desc x;
            for (i = 0; i < D; i++) speed[i] = k == 2 ? 0.5 + t_unit(&s) : 1.0;
            for (i = 0; i < E; i++) {
                a[i] = 1e4 * exp(1.5 * t_unit(&s));
                b[i] = a[i] * exp(1.2 * t_unit(&s));
            }
            d = desc_of(1, E, shape_of(D, D * S, 1 + D % 2), a);
            if (k == 2) d.shape.speed = speed;
            (void)plan_one(moe_ep_best_placement, &d, &p, NULL);
            q = placement_new(1, E, &d.shape);
            if (k == 5) p.device_inactive[n % D] = 1;
            memset(&x, 0, sizeof x);
            x.current = &p;
            x.loads = b;
            x.target = k == 1 || k == 2 || k == 5 ? 1.05 : 0;
            x.max_moves = k == 3 ? 10 : 0;
            x.max_link_moves = k == 4;
            CHECK_I64(moe_ep_rebalance(&x, &q, &r, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
            CHECK_NEAR(busiest(&q, 0, b), r.max, 1e-12, 0);
            if (k == 3) CHECK(r.moves <= 10);
            check_moves(&p, &q);
            gap += (r.imbalance - 1) / cases;
            moves += (double)r.moves / cases;
            steps += (double)r.refinements / cases;
            placement_free(&p);
            placement_free(&q);
            STOP_IF_FAILED("case %d", 100 * k + n);
        }
        printf("    %s: %.6f above the mean with %.2f moves, %.2f changes\n", kind[k], gap, moves, steps);
        if (cases == 60) CHECK(gap <= most_gap[k] && moves <= most_moves[k] && steps <= most_steps[k]);
    }
}

/* 60 experts on 8 devices as vLLM has them, whether each device has room for 8 or not. */
TEST(contiguous_as_in_vllm)
{
    int slots, i;
    double w[60];
    for (i = 0; i < 60; i++) w[i] = 1;
    for (slots = 60; slots <= 64; slots += 4) {
        moe_ep_place_desc d = desc_of(1, 60, shape_of(8, slots, 1), w);
        moe_ep_placement p;
        moe_ep_plan_result r = plan_one(moe_ep_place_contiguous, &d, &p, NULL);
        CHECK_STR(r.reason, "blocks of neighbours, one expert more on the first E mod D active devices");
        for (i = 0; i < 60; i++)
            CHECK_I64(p.slot_device[p.replica_slot[p.replica_start[i]]], i < 32 ? i / 8 : 4 + (i - 32) / 7);
        placement_free(&p);
    }
}

/* Blocks by their definition, on devices of any number of slots of which some are down. */
TEST(contiguous_by_definition)
{
    uint64_t s = 20240607u;
    int n, d, e, linear = 0;
    for (n = 0; n < 400; n++) {
        int D = 1 + (int)t_below(&s, 6), room = 0, active = 0, E, fits = 1, number = 0, count[6] = {0}, last = 0;
        int32_t slots[6];
        uint8_t down[6];
        int even[6] = {0}, vllm[6], owner[30];
        double w[30], load[6] = {0}, speed[6], worst = 0;
        moe_ep_shape shape = shape_of(D, 0, 1);
        moe_ep_place_desc desc;
        moe_ep_placement p;
        moe_ep_plan_result r;
        for (d = 0; d < D; d++) {
            slots[d] = n % 3 ? 4 : (int32_t)t_below(&s, 6);
            down[d] = (uint8_t)(d > 0 && t_below(&s, 4) == 0);
            speed[d] = 0.5 + t_unit(&s);
            if (d == 0) slots[d]++;
            room += down[d] ? 0 : slots[d];
            active += !down[d];
        }
        E = 1 + (int)t_below(&s, room);
        for (e = 0; e < E; e++) w[e] = (double)t_below(&s, 100);
        shape.slots_per_device = slots;
        shape.inactive = down;
        shape.speed = speed;
        desc = desc_of(1, E, shape, w);
        r = plan_one(moe_ep_place_contiguous, &desc, &p, NULL);
        for (e = 0; e < E; e++) {
            d = p.slot_device[p.replica_slot[p.replica_start[e]]];
            CHECK(!down[d] && d >= last && p.replica_start[e + 1] == e + 1);
            load[last = d] += w[e];
            count[d]++;
        }
        for (d = 0; d < D; d++) { /* number: of the active devices before d, which is vLLM's rank */
            int start = number * (E / active) + (number < E % active ? number : E % active);
            int local = E / active + (number < E % active);
            if (down[d]) continue;
            vllm[d] = local;
            fits &= local <= slots[d];
            for (e = start; e < start + local; e++) owner[e] = d;
            number++;
        }
        for (e = 0; e < E; e++) { /* as even as slots allow: always one more for the smallest block with room */
            int to = -1;
            for (d = 0; d < D; d++)
                if (!down[d] && even[d] < slots[d] && (to < 0 || even[d] < even[to])) to = d;
            even[to]++;
        }
        for (d = 0; d < D; d++) {
            if (down[d]) continue;
            if (fits) CHECK_I64(count[d], vllm[d]);
            CHECK_I64(count[d], even[d]);
            if (load[d] / speed[d] > worst) worst = load[d] / speed[d];
        }
        for (e = 0; fits && e < E; e++) CHECK_I64(p.slot_device[p.replica_slot[p.replica_start[e]]], owner[e]);
        CHECK_STR(r.reason, fits ? "blocks of neighbours, one expert more on the first E mod D active devices"
                                 : "blocks of neighbours, as even as the slots of the devices allow");
        CHECK_NEAR(r.max, worst, 1e-12, 0);
        CHECK_NEAR(r.max_before, worst, 1e-12, 0);
        linear += fits;
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(linear > 100 && linear < 390);
}

/* What load off its home node and partners on one device cost. */
TEST(quality_of_soft_nodes_and_partners)
{
    uint64_t s = 20240607u;
    double even = 0, off = 0, near = 0, busy = 0, steps = 0;
    int n, i, j;
    for (n = 0; n < 60; n++) {
        int N = 2 + n % 2, D = N * (2 + (int)t_below(&s, 3)), S = 3 + (int)t_below(&s, 3);
        int E = N * (D * S / N - 1 - (int)t_below(&s, D / N)), L = 2;
        double w[2 * 60], total[2] = {0, 0}, away = 0;
        int32_t home[2 * 60];
        int64_t pairs[60 * 60];
        moe_ep_place_desc d = desc_of(L, E, shape_of(D, D * S, N), w);
        moe_ep_placement p;
        moe_ep_plan_result r[2];
        for (i = 0; i < L * E; i++) {
            home[i] = i % E * N / E;
            w[i] = exp(2.0 * t_unit(&s)) * (home[i] == 0 ? 1.5 : 1.0);
            total[i / E] += w[i];
        }
        d.node_soft = 1;
        d.home_node = home;
        d.max_off_node = 0.08;
        p = placement_new(L, E, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < L; i++) {
            CHECK_NEAR(busiest(&p, i, w + i * E), r[i].max, 1e-12, 0);
            away += r[i].off_node * total[i];
            even += (r[i].imbalance - 1) / (60 * L);
            steps += r[i].refinements / (60.0 * L);
        }
        CHECK(away <= 0.08 * (total[0] + total[1]) * (1 + 1e-9));
        off += away / (total[0] + total[1]) / 60;
        placement_free(&p);
        d = desc_of(1, E, shape_of(D, D * S, N), w);
        for (i = 0; i < E; i++)
            for (j = 0; j <= i; j++) pairs[i * E + j] = pairs[j * E + i] = t_below(&s, 4) ? 1 : t_below(&s, 100);
        r[0] = plan_one(moe_ep_best_placement, &d, &p, NULL);
        near -= togetherness(&p, pairs);
        placement_free(&p);
        d.coactivation = pairs;
        d.coactivation_slack = 0.05;
        r[1] = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK(r[1].max <= r[0].max * 1.05 * (1 + 1e-9));
        busy += r[1].max / r[0].max / 60;
        near += togetherness(&p, pairs);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %.5f above the mean with %.5f off home after %.1f changes; %.1f tokens more together, %.5f busier\n",
           even, off, steps, near / 60, busy - 1);
    CHECK(even <= 0.1415 && off <= 0.064 && steps <= 6.1 && near / 60 >= 880 && busy <= 1.0423);
}

/* Small layers against the best there is: a search through all of it finds it, but for the last 0.015 %. */
TEST(quality_of_small_layers)
{
    uint64_t s = 20240607u;
    int n, i, exact = 0;
    double sum = 0;
    for (n = 0; n < 1000; n++) {
        int D = 2 + (int)t_below(&s, 3), S = 1 + (int)t_below(&s, 3), E = 2 + (int)t_below(&s, D * S - 1);
        int32_t cap[8];
        double w[12], speed[8], best;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r;
        if (E > 7) E = 7;
        for (i = 0; i < E; i++) w[i] = n % 2 ? exp(3.0 * t_unit(&s)) : (double)(1 + t_below(&s, 9));
        for (i = 0; i < D; i++) cap[i] = S;
        for (i = 0; i < D; i++) speed[i] = n % 4 == 3 ? 0.5 + t_unit(&s) : 1.0;
        d = desc_of(1, E, shape_of(D, D * S, 1), w);
        d.shape.speed = speed;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        best = search_optimum(w, E, D, cap, speed, NULL, NULL, r.max);
        exact += r.max <= best * (1 + 1e-8);
        sum += r.max / best - 1;
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %d of %d the best there is, %.8f above it on average\n", exact, n, sum / n);
    CHECK(exact >= 995 && sum / n < 1e-5);
}

/* Devices without room, without work, with less room than others: what the planners go around. */
TEST(devices_of_all_kinds)
{
    static const double even[8] = {8, 7, 6, 5, 4, 3, 2, 1};
    static const double twice[12] = {8, 7, 6, 5, 4, 3, 8, 7, 6, 5, 4, 3};
    const int32_t three_one[2] = {3, 1}, robin[4] = {0, 2, 3, 1}, budget[2] = {7, 7}, uneven[4] = {3, 1, 3, 1};
    const int32_t holes[4] = {3, 0, 4, 3}, home[4] = {0, 0, 1, 1};
    moe_ep_shape shape = shape_of(2, 0, 1);
    moe_ep_place_desc d;
    moe_ep_placement p, q;
    moe_ep_plan_result r, plain, two[2];
    double w[60], speed[3] = {1, 0.9, 1e-6};
    uint64_t s = 20240607u;
    int e, i, n;
    shape.slots_per_device = three_one; /* the last device fills first: round robin begins again at the first */
    d = desc_of(1, 4, shape, even);
    (void)plan_one(moe_ep_place_round_robin, &d, &p, NULL);
    CHECK(memcmp(p.slot_expert, robin, sizeof robin) == 0);
    placement_free(&p);
    shape = shape_of(4, 0, 1); /* a device without slots takes no odd copy */
    shape.slots_per_device = holes;
    d = desc_of(2, 6, shape, twice);
    d.layer_slots = budget; /* of 10: 2 0 2 2, and one more, which layer 1 would give to the device without slots */
    p = placement_new(2, 6, &d.shape);
    CHECK_I64(moe_ep_best_placement(&d, &p, two, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 2; i++) CHECK(two[i].slots_used <= 7 && two[i].max <= 11.5); /* 8 3 | 7 4 | 6 5, 33 in all */
    placement_free(&p);
    for (e = 0; e < 25; e++) w[e] = e < 3 ? 100 : 0.001; /* three experts on two devices that count: 200 at best */
    d = desc_of(1, 25, shape_of(3, 75, 1), w);
    d.shape.speed = speed;
    d.max_replicas = 1;
    r = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_NEAR(r.max, 200, 1e-3, 0);
    placement_free(&p);
    for (n = 0; n < 20; n++) { /* nothing goes to a device a million times slower; kicks meet it empty */
        for (e = 0; e < 30; e++) w[e] = 1 + (double)t_below(&s, 100);
        d = desc_of(1, 30, shape_of(3, 60, 1), w);
        d.shape.speed = speed;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        for (i = 40; i < 60; i++) CHECK_I64(p.slot_expert[i], -1);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    shape = shape_of(4, 0, 2); /* nodes of 3 + 1 slots: two experts at home have no use for four copies */
    shape.slots_per_device = uneven;
    d = desc_of(1, 4, shape, even);
    d.node_soft = 1;
    d.home_node = home;
    r = plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(off_home(&p, even, home), 0, 0, 0);
    CHECK_NEAR(r.max, 8, 1e-12, 0); /* 8 | 7, or 8 and half of 7 in two ways that are worse */
    placement_free(&p);
    d.max_replicas = 1;
    (void)plan_one(moe_ep_best_placement, &d, &p, NULL);
    CHECK_I64(moe_ep_max_replicas(&p, NULL), 1);
    placement_free(&p);
    for (n = 0; n < 60; n++) { /* groups or nodes that do not divide: EPLB is asked for its global plan alone */
        int N = 1 + n % 3, D = 3 + n % 4, P = D * (2 + n % 2), E = 5 + n % (P - 5);
        for (e = 0; e < E; e++) w[e] = 1 + (double)t_below(&s, 50);
        d = desc_of(1, E, shape_of(D, P, N), w);
        d.allow_duplicates = 1;
        plain = plan_one(moe_ep_best_placement, &d, &p, NULL);
        d.num_groups = 1 + n % 7;
        r = plan_one(moe_ep_best_placement, &d, &q, NULL);
        CHECK(r.max <= plain.max);
        if (E % d.num_groups != 0 || d.num_groups % N != 0 || D % N != 0)
            CHECK(memcmp(p.slot_expert, q.slot_expert, sizeof(int32_t) * (size_t)P) == 0);
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Memory asked for grows by the layer as what it holds: the placement once, and what each layer is judged by. */
TEST(scratch_of_many_layers)
{
    static const double w[200 * 8] = {1};
    double need[2][2], block[2];
    int k;
    for (k = 0; k < 2; k++) {
        moe_ep_copies_desc c;
        moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
        moe_ep_error err;
        int32_t slots[200];
        memset(&c, 0, sizeof c);
        c.place = desc_of(100 * (k + 1), 8, shape_of(4, 4000, 1), w);
        block[k] = (double)moe_ep_placement_bytes(c.place.num_layers, 8, &c.place.shape);
        CHECK_I64(moe_ep_replica_budgets(&c.place, 4, slots, &none, &err), MOE_EP_ERR_SCRATCH);
        need[k][0] = err.value;
        c.max_extra = 3992;
        c.step = 3992;
        CHECK_I64(moe_ep_min_copies(&c, NULL, slots, &none, &err), MOE_EP_ERR_SCRATCH);
        need[k][1] = err.value;
    }
    for (k = 0; k < 2; k++) {
        CHECK(need[1][k] - need[0][k] >= block[1] - block[0]);
        CHECK(need[1][k] - need[0][k] <= 1.05 * (block[1] - block[0]));
    }
}

/* Changes that the search of rebalance turns down: nothing to gain on many devices, links used up. */
TEST(rebalance_where_little_helps)
{
    const int32_t lost[12] = {0, 1, -1, 2, 3, -1, 4, 5, -1, -1, -1, -1};
    double w[24] = {100, 1, 50, 1, 1, 1};
    moe_ep_shape shape = shape_of(24, 24, 1);
    moe_ep_placement p = placement_new(1, 24, &shape), q = placement_new(1, 24, &shape);
    moe_ep_rebalance_desc x;
    moe_ep_plan_result r;
    moe_ep_moves_result m;
    moe_ep_move list[16];
    int i, link[4][4] = {{0}};
    for (i = 0; i < 24; i++) p.slot_expert[i] = i;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    memset(&x, 0, sizeof x);
    x.current = &p;
    x.loads = w;
    CHECK_I64(moe_ep_rebalance(&x, &q, &r, NULL, NULL), MOE_EP_OK); /* one expert each: every swap is a renaming */
    CHECK(r.moves == 0 && memcmp(p.slot_expert, q.slot_expert, sizeof(int32_t) * 24) == 0);
    placement_free(&p);
    placement_free(&q);
    shape = shape_of(4, 12, 1);
    p = placement_new(1, 6, &shape);
    q = placement_new(1, 6, &shape);
    memcpy(p.slot_expert, lost, sizeof lost);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.device_inactive[0] = 1; /* 100 and 1 are gone: no link carries them, so that 100 comes to several devices */
    x.max_link_moves = 1;
    CHECK_I64(moe_ep_rebalance(&x, &q, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
    CHECK(r.max >= 154.0 / 3 && r.max <= 60);
    CHECK_I64(moe_ep_plan_moves(&p, &q, 0, list, 16, &m, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < m.moves; i++)
        if (list[i].from_device >= 0) CHECK(++link[list[i].from_device][list[i].to_device] <= 1);
    CHECK(m.lost >= 3);
    placement_free(&p);
    placement_free(&q);
}

/* ---- bad input
 * ------------------------------------------------------------------------------------------------------------------
 */

/* One device a thousand times slower than the others can hold a layer far above 2 D times its mean: max_moves binds
 * there too. */
TEST(few_moves_on_a_slow_device)
{
    const double loads[4] = {900, 800, 700, 600}, speed[2] = {1, 1e-3};
    moe_ep_shape shape = shape_of(2, 8, 1);
    moe_ep_placement p, q;
    moe_ep_rebalance_desc x;
    moe_ep_plan_result r;
    moe_ep_error err;
    int32_t e;
    shape.speed = speed;
    p = placement_new(1, 4, &shape);
    q = placement_new(1, 4, &shape);
    for (e = 0; e < 8; e++) p.slot_expert[e] = e < 4 ? -1 : e - 4; /* all on the slow one */
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    memset(&x, 0, sizeof x);
    x.current = &p;
    x.loads = loads;
    for (x.max_moves = 1; x.max_moves <= 4; x.max_moves++) {
        CHECK_I64(moe_ep_rebalance(&x, &q, &r, NULL, &err), MOE_EP_OK);
        CHECK(r.moves <= x.max_moves);
    }
    placement_free(&p);
    placement_free(&q);
}

/* Where speeds differ by orders, a copy on a slow device does harm: never busier than one copy each,
 * dealt by weight. */
TEST(best_beside_lpt_on_uneven_speeds)
{
    uint64_t s = t_seed;
    int i, e, d;
    for (i = 0; i < 300; i++) {
        double loads[12], speed[12];
        moe_ep_shape shape = shape_of(9 + (int32_t)t_below(&s, 4), 36, 1);
        moe_ep_place_desc desc;
        moe_ep_placement p;
        moe_ep_plan_result best, lpt;
        moe_ep_error err;
        for (e = 0; e < 12; e++) loads[e] = 1.0 + (double)t_below(&s, 1000);
        for (d = 0; d < 12; d++) speed[d] = pow(10.0, (double)t_below(&s, 13) - 6.0);
        shape.speed = speed;
        desc = desc_of(1, 12, shape, loads);
        p = placement_new(1, 12, &shape);
        CHECK_I64(moe_ep_place_lpt(&desc, &p, &lpt, NULL, &err), MOE_EP_OK);
        CHECK_I64(moe_ep_best_placement(&desc, &p, &best, NULL, &err), MOE_EP_OK);
        CHECK(best.max <= lpt.max * 1.002);
        placement_free(&p);
    }
}

/* Every planner refuses the same things, and leaves out and result alone. */
TEST(planner_errors)
{
    static const planner all[6] = {moe_ep_place_round_robin, moe_ep_place_contiguous, moe_ep_place_lpt,
                                   moe_ep_place_eplb,        moe_ep_place_trtllm,     moe_ep_best_placement};
    const double nan_load[4] = {1, 2, NAN, 3}, negative[4] = {1, -2, 1, 1}, infinite[4] = {1, 2, 3, INFINITY},
                 fine[4] = {1, 2, 3, 4};
    const double huge[4] = {1e308, 1e308, 1e308, 1};
    int f, c;
    for (f = 0; f < 6; f++) {
        moe_ep_place_desc good = desc_of(1, 4, shape_of(2, 4, 1), fine), d;
        moe_ep_placement p = placement_new(1, 4, &good.shape);
        int32_t before[4];
        moe_ep_plan_result r, keep;
        moe_ep_error err;
        CHECK_I64(all[f](&good, &p, NULL, NULL, &err), MOE_EP_OK);
        memcpy(before, p.slot_expert, sizeof before);
        memset(&r, 0x5a, sizeof r);
        keep = r;
        for (c = 0; c < 14; c++) {
            moe_ep_status want = MOE_EP_ERR_SIZE;
            int64_t index = -1;
            uint8_t down[2] = {0, 1};
            d = good;
            if (c == 0) { d.loads = nan_load; want = MOE_EP_ERR_NAN; index = 2; }
            if (c == 1) { d.loads = negative; want = MOE_EP_ERR_NEGATIVE; index = 1; }
            if (c == 2) { d.loads = infinite; want = MOE_EP_ERR_NAN; index = 3; }
            if (c == 3) { d.loads = huge; want = MOE_EP_ERR_OVERFLOW; index = 0; }
            if (c == 4) d.num_layers = 0;
            if (c == 5) d.num_experts = -4;
            if (c == 6) d.num_experts = 3;
            if (c == 7) d.shape.num_devices = 0;
            if (c == 8) d.shape.num_devices = 4;
            if (c == 9) d.shape.num_slots = 6;
            if (c == 10) { d.shape.inactive = down; want = MOE_EP_ERR_SLOTS; }
            if (c == 11) { d.risk_z = -1; want = MOE_EP_ERR_RANGE; }
            if (c == 12) d.num_steps = -2;
            if (c == 13) { d.risk_z = NAN; want = MOE_EP_ERR_RANGE; }
            err.arg = NULL;
            CHECK_I64(all[f](&d, &p, &r, NULL, &err), want);
            CHECK_I64(err.status, want);
            CHECK(err.arg != NULL && err.arg[0] != '\0');
            if (index >= 0) CHECK_I64(err.index, index);
            CHECK(memcmp(before, p.slot_expert, sizeof before) == 0);
            CHECK(memcmp(&r, &keep, sizeof r) == 0);
            STOP_IF_FAILED("case %d", f * 100 + c);
        }
        CHECK_I64(all[f](NULL, &p, &r, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_STR(err.arg, "desc");
        CHECK_I64(all[f](&good, NULL, &r, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_STR(err.arg, "out");
        d = good;
        d.loads = NULL;
        CHECK_I64(all[f](&d, &p, NULL, NULL, &err), f < 2 ? MOE_EP_OK : MOE_EP_ERR_NULL);
        { /* scratch: one byte too few, then enough, then growing */
            moe_ep_scratch s = moe_ep_scratch_fixed(NULL, 0), grow;
            void *buf;
            size_t need;
            CHECK_I64(all[f](&good, &p, &r, &s, &err), MOE_EP_ERR_SCRATCH);
            need = s.need;
            CHECK(need > 0);
            buf = t_alloc(need);
            s = moe_ep_scratch_fixed(buf, need - 1);
            CHECK_I64(all[f](&good, &p, &r, &s, &err), MOE_EP_ERR_SCRATCH);
            CHECK_NEAR(err.value, (double)need, 0, 0);
            s = moe_ep_scratch_fixed(buf, need);
            CHECK_I64(all[f](&good, &p, &r, &s, &err), MOE_EP_OK);
            memset(&grow, 0, sizeof grow);
            CHECK_I64(all[f](&good, &p, &r, &grow, &err), MOE_EP_OK);
            moe_ep_scratch_free(&grow);
            free(buf);
        }
        placement_free(&p);
    }
}

TEST(limits_of_eplb)
{
    const double w[4] = {1, 2, 3, 4}, big[4] = {1, 2, 3e39, 4}, speed[2] = {1, 2};
    const uint8_t down[2] = {0, 1};
    moe_ep_place_desc d = desc_of(1, 4, shape_of(2, 5, 1), w);
    moe_ep_placement p = placement_new(1, 4, &d.shape);
    moe_ep_error err;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG); /* 5 slots on 2 devices */
    CHECK_I64(moe_ep_place_trtllm(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_OK);
    placement_free(&p);
    d.shape.num_slots = 8;
    p = placement_new(1, 4, &d.shape);
    d.loads = big;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 2);
    d.loads = w;
    d.shape.speed = speed;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "desc.shape.speed");
    d.shape.speed = NULL;
    d.shape.inactive = down;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "desc.shape.inactive");
    d.shape.inactive = NULL;
    d.eplb_mode = (moe_ep_eplb_mode)7;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    d.eplb_mode = MOE_EP_EPLB_AUTO;
    d.num_groups = -1;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    placement_free(&p);
}

TEST(best_option_errors)
{
    const double w[4] = {1, 2, 3, 4};
    const int32_t pin_out[4] = {-1, 5, -1, -1}, pin_full[4] = {0, 0, 0, -1}, pin_fine[4] = {-1, 1, -1, -1},
                  few[1] = {3}, many[1] = {9};
    int64_t pairs[16] = {0};
    moe_ep_place_desc good = desc_of(1, 4, shape_of(4, 8, 2), w), d = good;
    moe_ep_placement p = placement_new(1, 4, &d.shape);
    moe_ep_error err;
    d.pinned = pin_out;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    d.pinned = pin_full;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_INFEASIBLE);
    CHECK_I64(err.index, 2);
    d = good;
    d.layer_slots = few;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_SLOTS);
    d.layer_slots = many;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_SLOTS);
    d = good;
    d.max_replicas = -1;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    d = good;
    d.coactivation = pairs;
    pairs[5] = -1;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 5);
    pairs[5] = 0;
    d.coactivation_slack = NAN;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    d = good;
    d.node_soft = 1;
    d.num_groups = 2;
    d.max_off_node = 1.5;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    d.max_off_node = 0.5;
    d.pinned = pin_fine;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    d = good;
    d.max_replicas = 1;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_max_replicas(&p, &err), 1);
    placement_free(&p);
}

TEST(shape_errors)
{
    moe_ep_shape s = shape_of(2, 4, 1);
    const int32_t slots[2] = {1, 2}, minus[2] = {1, -2}, nodes[2] = {0, 3};
    const double zero_speed[2] = {1, 0};
    const double odd_speeds[5][2] = {{1, 1e-7}, {1, 2e6}, {1, 1e-320}, {1, HUGE_VAL}, {1, NAN}}, ends[2] = {1e-6, 1e6};
    int i;
    unsigned char mem[4096];
    moe_ep_placement p, keep;
    moe_ep_error err;
    size_t need = moe_ep_placement_bytes(1, 4, &s);
    memset(&p, 0x5a, sizeof p);
    keep = p;
    CHECK(need > 0 && need <= sizeof mem);
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, mem, need - 1, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, (double)need, 0, 0);
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, NULL, need, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_placement_init(NULL, 1, 4, &s, mem, need, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, NULL, mem, need, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_placement_init(&p, 0, 4, &s, mem, need, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_placement_init(&p, 1, 0, &s, mem, need, &err), MOE_EP_ERR_SIZE);
    s.slots_per_device = slots;
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, mem, sizeof mem, &err), MOE_EP_ERR_CONFIG);
    s.num_slots = 0;
    s.slots_per_device = minus;
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, mem, sizeof mem, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(err.index, 1);
    s.slots_per_device = slots;
    s.node_of_device = nodes;
    s.num_nodes = 2;
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, mem, sizeof mem, &err), MOE_EP_ERR_RANGE);
    s.node_of_device = NULL;
    s.speed = zero_speed;
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, mem, sizeof mem, &err), MOE_EP_ERR_RANGE);
    for (i = 0; i < 5; i++) {
        s.speed = odd_speeds[i];
        CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, mem, sizeof mem, &err), MOE_EP_ERR_RANGE);
        CHECK_STR(err.arg, "shape.speed");
        CHECK_I64(err.index, 1);
    }
    s.speed = ends; /* the ends are allowed */
    CHECK(moe_ep_placement_bytes(1, 4, &s) > 0);
    s.speed = NULL;
    s.num_nodes = 3;
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &s, mem, sizeof mem, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "shape.num_nodes");
    CHECK(memcmp(&p, &keep, sizeof p) == 0);
    CHECK_I64(moe_ep_placement_bytes(INT32_MAX, INT32_MAX / 2, &s), 0);
    CHECK_I64(moe_ep_placement_bytes(1, 4, NULL), 0);
    s = shape_of(0, 4, 1);
    CHECK_I64(moe_ep_placement_bytes(1, 4, &s), 0);
    CHECK_I64(moe_ep_placement_index(NULL, &err), MOE_EP_ERR_NULL);
    memset(&p, 0, sizeof p);
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_max_replicas(&p, &err), MOE_EP_ERR_NULL);
}

TEST(broken_placements)
{
    moe_ep_shape s = shape_of(2, 4, 1);
    moe_ep_placement p = placement_new(1, 3, &s);
    const int32_t slots[4] = {0, 1, 2, 0}, twice[4] = {0, 0, 1, 2};
    moe_ep_check_result c;
    moe_ep_error err;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_LOST_EXPERT); /* all slots empty */
    memcpy(p.slot_expert, slots, sizeof slots);
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT); /* not indexed */
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_validate(&p, 0, &c, &err), MOE_EP_OK);
    p.replica_slot[0] = 3;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT); /* names slot 3 twice */
    p.replica_slot[0] = 1;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT); /* wrong expert there */
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    p.slot_device[2] = 0;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT);
    p.slot_device[2] = 1;
    p.slot_expert[1] = 3;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_ERR_EXPERT_ID);
    memcpy(p.slot_expert, twice, sizeof twice);
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_validate(&p, 0, &c, &err), MOE_EP_OK);
    CHECK_I64(c.duplicates, 1);
    CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, &c, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(moe_ep_validate(&p, 64, &c, &err), MOE_EP_ERR_RANGE);
    placement_free(&p);
}

TEST(other_errors)
{
    const double w[4] = {1, 2, 3, 4}, bad[4] = {1, NAN, 1, 1};
    moe_ep_shape s = shape_of(2, 4, 1), s2 = shape_of(2, 6, 1);
    moe_ep_placement p = placement_new(1, 4, &s), q = placement_new(1, 4, &s2);
    moe_ep_place_desc d = desc_of(1, 4, s, w);
    moe_ep_rebalance_desc x;
    moe_ep_copies_desc c;
    moe_ep_moves_result m;
    moe_ep_plan_result r;
    moe_ep_bound_result b;
    moe_ep_error err;
    int32_t counts[4], device[4], fewest = 7, i;
    double out[4] = {7, 7, 7, 7};
    CHECK_I64(moe_ep_place_lpt(&d, &p, NULL, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_lpt(NULL, 4, 2, device, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_lpt(w, 0, 2, device, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_lpt(w, 4, 0, device, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_lpt(bad, 4, 2, device, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_lpt(w, 4, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    for (i = 0; i < 4; i++) counts[i] = 3;
    CHECK_I64(moe_ep_lpt_replicas(w, 4, counts, 2, device, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_lpt_replicas(w, 4, NULL, 2, device, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_replicate(w, 4, 3, 0, counts, NULL, &err), MOE_EP_ERR_SLOTS);
    CHECK_I64(moe_ep_replicate(w, 4, 5, -1, counts, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_replicate(bad, 4, 5, 0, counts, NULL, &err), MOE_EP_ERR_NAN);
    for (i = 0; i < 4; i++) CHECK_I64(counts[i], 3);
    CHECK_I64(moe_ep_device_loads(&p, bad, out, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_device_loads(&p, NULL, out, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_device_loads(&p, w, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_node_loads(&p, bad, out, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_window_loads(w, 0, 1, 4, 0, out, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_window_loads(w, 1, 1, 4, -1, out, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_window_loads(bad, 1, 1, 4, 0, out, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_window_loads(w, INT32_MAX, INT32_MAX, INT32_MAX, 0, out, &err), MOE_EP_ERR_OVERFLOW);
    for (i = 0; i < 4; i++) CHECK_NEAR(out[i], 7, 0, 0);
    CHECK_I64(moe_ep_evaluate(&p, bad, 1, &r, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_evaluate(&p, w, -1, &r, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_evaluate(&p, w, 1, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_lower_bound(bad, 4, &s, &b, NULL, &err), MOE_EP_ERR_NAN);
    s2 = shape_of(2, 3, 1);
    CHECK_I64(moe_ep_lower_bound(w, 4, &s2, &b, NULL, &err), MOE_EP_ERR_SLOTS);
    CHECK_I64(moe_ep_placement_copy(&p, &q, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_plan_moves(&p, &q, 0, NULL, 0, &m, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_plan_moves(&p, &p, -1, NULL, 0, &m, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_plan_moves(&p, NULL, 0, NULL, 0, &m, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_relabel(&p, &q, 0, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_relabel(&p, &p, 64, NULL, &err), MOE_EP_ERR_RANGE);
    memset(&x, 0, sizeof x);
    CHECK_I64(moe_ep_rebalance(NULL, &p, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rebalance(&x, &p, NULL, NULL, &err), MOE_EP_ERR_NULL);
    x.current = &p;
    CHECK_I64(moe_ep_rebalance(&x, &p, NULL, NULL, &err), MOE_EP_ERR_NULL);
    x.loads = bad;
    CHECK_I64(moe_ep_rebalance(&x, &p, NULL, NULL, &err), MOE_EP_ERR_NAN);
    x.loads = w;
    CHECK_I64(moe_ep_rebalance(&x, &q, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    x.max_moves = -1;
    CHECK_I64(moe_ep_rebalance(&x, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    x.max_moves = 0;
    x.target = NAN;
    CHECK_I64(moe_ep_rebalance(&x, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    x.target = 0;
    p.device_inactive[1] = 1;
    CHECK_I64(moe_ep_rebalance(&x, &p, NULL, NULL, &err), MOE_EP_ERR_SLOTS);
    p.device_inactive[1] = 0;
    CHECK_I64(moe_ep_rebalance(&x, &p, NULL, NULL, &err), MOE_EP_OK); /* in place */
    memset(&c, 0, sizeof c);
    CHECK_I64(moe_ep_min_copies(&c, NULL, &fewest, NULL, &err), MOE_EP_ERR_SIZE);
    c.place = d;
    CHECK_I64(moe_ep_min_copies(&c, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    c.max_extra = -1;
    CHECK_I64(moe_ep_min_copies(&c, NULL, &fewest, NULL, &err), MOE_EP_ERR_RANGE);
    c.max_extra = INT32_MAX;
    CHECK_I64(moe_ep_min_copies(&c, NULL, &fewest, NULL, &err), MOE_EP_ERR_OVERFLOW);
    c.max_extra = 2;
    c.policy = MOE_EP_PLACE_LPT;
    CHECK_I64(moe_ep_min_copies(&c, NULL, &fewest, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(fewest, 7);
    CHECK_I64(moe_ep_replica_budgets(&d, -1, counts, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_replica_budgets(&d, 1, NULL, NULL, &err), MOE_EP_ERR_NULL);
    d.shape.num_slots = 3;
    CHECK_I64(moe_ep_replica_budgets(&d, 1, counts, NULL, &err), MOE_EP_ERR_SLOTS);
    CHECK_I64(moe_ep_placement_from_eplb(NULL, NULL, 0, NULL, &p, &err), MOE_EP_ERR_NULL);
    device[0] = 9;
    CHECK_I64(moe_ep_placement_from_eplb(device, NULL, 0, NULL, &p, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_STR(moe_ep_place_policy_str((moe_ep_place_policy)99), "unknown policy");
    CHECK_STR(moe_ep_place_policy_str(MOE_EP_PLACE_EPLB_GLOBAL), "EPLB, global");
    CHECK_STR(moe_ep_bound_str((moe_ep_bound)99), "unknown bound");
    placement_free(&p);
    placement_free(&q);
}

/* ---- every argument that is refused, one by one ---------------------------------------------------------------- */

#define REFUSED(call, status_, arg_)                                                                \
    do {                                                                                            \
        memset(&err, 0, sizeof err);                                                                \
        CHECK_I64(call, status_);                                                                   \
        CHECK_STR(err.arg, arg_);                                                                   \
    } while (0)

TEST(names_of_everything)
{
    static const char *const policy[9] = {"given placement", "round robin", "contiguous blocks", "LPT with slots",
                                          "EPLB, global", "EPLB, hierarchical", "TensorRT-LLM balancer",
                                          "best placement", "incremental rebalance"};
    static const char *const bound[3] = {"the mean", "the heaviest replica", "counting slots"};
    int i;
    for (i = 0; i < 9; i++) CHECK_STR(moe_ep_place_policy_str((moe_ep_place_policy)i), policy[i]);
    for (i = 0; i < 3; i++) CHECK_STR(moe_ep_bound_str((moe_ep_bound)i), bound[i]);
}

TEST(refused_shapes)
{
    const int32_t slots[2] = {1, 2}, none[2] = {0, 0}, below[2] = {0, -1}, nodes[2] = {1, 0};
    moe_ep_shape s = shape_of(2, 4, 1), bad;
    moe_ep_placement p;
    moe_ep_error err;
    unsigned char *mem = (unsigned char *)t_alloc(4096);
    size_t need = moe_ep_placement_bytes(1, 4, &s);
#define SHAPE(change, status, arg)                                                                  \
    bad = s;                                                                                        \
    change;                                                                                         \
    REFUSED(moe_ep_placement_init(&p, 1, 4, &bad, mem, 4096, &err), status, arg)
    SHAPE(bad.num_slots = -1, MOE_EP_ERR_SIZE, "shape.num_slots");
    SHAPE(bad.num_nodes = -1, MOE_EP_ERR_SIZE, "shape.num_nodes");
    SHAPE(bad.node_of_device = below, MOE_EP_ERR_RANGE, "shape.node_of_device");
    SHAPE((bad.slots_per_device = none, bad.num_slots = 0), MOE_EP_ERR_SIZE, "shape.num_slots");
    SHAPE(bad.num_slots = (1 << 30) + 1, MOE_EP_ERR_SIZE, "shape.num_slots");
#undef SHAPE
    REFUSED(moe_ep_placement_init(&p, 1, INT32_MAX, &s, mem, 4096, &err), MOE_EP_ERR_SIZE, "E");
    CHECK_I64(moe_ep_placement_bytes(INT32_MAX, INT32_MAX / 2, &s), 0);
    REFUSED(moe_ep_placement_init(&p, INT32_MAX, INT32_MAX / 2, &s, mem, 4096, &err), MOE_EP_ERR_OVERFLOW, "L");
    REFUSED(moe_ep_placement_init(&p, 1, 4, &s, mem + 4, need, &err), MOE_EP_ERR_CONFIG, "mem");
    CHECK_NEAR(err.value, 4, 0, 0);
    bad = s;
    bad.slots_per_device = slots;
    bad.num_slots = 3; /* their sum: allowed */
    bad.num_nodes = 2;
    bad.node_of_device = nodes;
    CHECK_I64(moe_ep_placement_init(&p, 1, 3, &bad, mem, 4096, &err), MOE_EP_OK);
    CHECK(p.device_node[0] == 1 && p.device_node[1] == 0 && p.slot_start[1] == 1 && p.slot_start[2] == 3);
    free(mem);
}

/* A placement whose fields were changed by hand, each in turn. */
TEST(refused_placements)
{
    const int32_t slots[8] = {0, 1, 2, 0, 0, 1, 2, 1};
    const double w[6] = {1, 2, 3, 1, 2, 3};
    moe_ep_shape s = shape_of(2, 4, 2), uneven = shape_of(2, 0, 2);
    const int32_t lop[2] = {1, 3};
    moe_ep_placement p = placement_new(2, 3, &s), q, other;
    double out[4];
    moe_ep_error err;
    moe_ep_moves_result m;
    moe_ep_rebalance_desc x;
    int i, k;
    memset(&x, 0, sizeof x);
    x.loads = w;
    memcpy(p.slot_expert, slots, sizeof slots);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    for (i = 0; i < 8; i++) { /* pointers */
        q = p;
        if (i == 0) q.slot_start = NULL;
        if (i == 1) q.slot_device = NULL;
        if (i == 2) q.device_node = NULL;
        if (i == 3) q.slot_expert = NULL;
        if (i == 4) q.replica_start = NULL;
        if (i == 5) q.replica_slot = NULL;
        if (i == 6) q.device_speed = NULL;
        if (i == 7) q.device_inactive = NULL;
        REFUSED(moe_ep_placement_index(&q, &err), MOE_EP_ERR_NULL, "p");
        REFUSED(moe_ep_placement_copy(&q, &p, &err), MOE_EP_ERR_NULL, "src");
        REFUSED(moe_ep_placement_copy(&p, &q, &err), MOE_EP_ERR_NULL, "dst");
        REFUSED(moe_ep_validate(&q, 0, NULL, &err), MOE_EP_ERR_NULL, "p");
        REFUSED(moe_ep_device_loads(&q, w, out, &err), MOE_EP_ERR_NULL, "p");
        REFUSED(moe_ep_node_loads(&q, w, out, &err), MOE_EP_ERR_NULL, "p");
        REFUSED(moe_ep_max_replicas(&q, &err), MOE_EP_ERR_NULL, "p");
        REFUSED(moe_ep_eplb_arrays(&q, 3, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL, "p");
        REFUSED(moe_ep_placement_from_eplb(slots, NULL, 0, NULL, &q, &err), MOE_EP_ERR_NULL, "out");
        REFUSED(moe_ep_devices_placement(slots, NULL, &q, &err), MOE_EP_ERR_NULL, "out");
        REFUSED(moe_ep_plan_moves(&q, &p, 0, NULL, 0, &m, NULL, &err), MOE_EP_ERR_NULL, "from");
        REFUSED(moe_ep_relabel(&p, &q, 0, NULL, &err), MOE_EP_ERR_NULL, "plan");
    }
    for (i = 0; i < 5; i++) { /* sizes */
        int32_t *field[5];
        q = p;
        field[0] = &q.num_layers, field[1] = &q.num_experts, field[2] = &q.num_devices, field[3] = &q.num_nodes;
        field[4] = &q.num_slots;
        *field[i] += 1;
        REFUSED(moe_ep_placement_copy(&p, &q, &err), MOE_EP_ERR_SIZE, "dst");
        *field[i] = 0;
        REFUSED(moe_ep_placement_index(&q, &err), MOE_EP_ERR_SIZE, "p");
    }
    uneven.slots_per_device = lop;
    other = placement_new(2, 3, &uneven);
    REFUSED(moe_ep_placement_copy(&p, &other, &err), MOE_EP_ERR_SIZE, "dst");
    placement_free(&other);
    other = placement_new(2, 3, &s);
    CHECK_I64(moe_ep_placement_copy(&p, &other, NULL), MOE_EP_OK);
    REFUSED(moe_ep_node_loads(&p, w, NULL, &err), MOE_EP_ERR_NULL, "node_loads");
#define BROKEN(field, value, status, arg)                                                           \
    k = field;                                                                                      \
    field = value;                                                                                  \
    REFUSED(moe_ep_validate(&p, 0, NULL, &err), status, arg);                                       \
    REFUSED(moe_ep_device_loads(&p, w, out, &err), status, arg);                                    \
    x.current = &p;                                                                                 \
    REFUSED(moe_ep_rebalance(&x, &other, NULL, NULL, &err), status, arg);                           \
    REFUSED(moe_ep_plan_moves(&other, &p, 0, NULL, 0, &m, NULL, &err), status, arg);                \
    REFUSED(moe_ep_eplb_arrays(&p, 8, NULL, NULL, NULL, &err), status, arg);                        \
    field = k
#define BROKEN_DEVICES(field, value, arg) BROKEN(field, value, MOE_EP_ERR_PLACEMENT, arg)
    k = p.slot_start[0];
    p.slot_start[0] = 1;
    REFUSED(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT, "p.slot_start");
    p.slot_start[0] = k;
    p.slot_start[2] = 3;
    REFUSED(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT, "p.slot_start");
    p.slot_start[2] = 4;
    p.slot_start[1] = -1;
    REFUSED(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT, "p.slot_start");
    p.slot_start[1] = 2;
    BROKEN_DEVICES(p.device_node[1], -1, "p.device_node");
    BROKEN_DEVICES(p.device_node[1], 2, "p.device_node");
    BROKEN_DEVICES(p.slot_device[1], 1, "p.slot_device");
    p.device_speed[1] = 0;
    REFUSED(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT, "p.device_speed");
    p.device_speed[1] = 1;
    BROKEN(p.slot_expert[6], -2, MOE_EP_ERR_EXPERT_ID, "p.slot_expert");
    BROKEN_DEVICES(p.replica_start[4], 1, "p.replica_start");
    BROKEN_DEVICES(p.replica_start[7], 3, "p.replica_start");
    BROKEN_DEVICES(p.replica_start[5], -1, "p.replica_start");
    BROKEN_DEVICES(p.replica_start[5], 9, "p.replica_start");
    BROKEN_DEVICES(p.replica_slot[5], -1, "p.replica_slot");
    BROKEN_DEVICES(p.replica_slot[5], 4, "p.replica_slot");
    BROKEN_DEVICES(p.replica_slot[5], 0, "p.replica_slot");
#undef BROKEN
#undef BROKEN_DEVICES
    p.slot_expert[6] = -2;
    REFUSED(moe_ep_placement_index(&p, &err), MOE_EP_ERR_EXPERT_ID, "p.slot_expert");
    p.slot_expert[6] = 2;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, NULL), MOE_EP_OK);
    placement_free(&p);
    placement_free(&other);
}

/* An expert without an active copy matters where it has load; a layer behind it is looked at all the same. */
TEST(lost_experts)
{
    const int32_t slots[8] = {0, 1, 0, 2, 0, 1, 0, 2};
    double w[6] = {4, 0, 2, 4, 1, 2}, out[4];
    moe_ep_shape s = shape_of(2, 4, 1);
    moe_ep_placement p = placement_new(2, 3, &s), q = placement_new(2, 3, &s);
    moe_ep_plan_result r[2];
    moe_ep_rebalance_desc x;
    moe_ep_error err;
    memcpy(p.slot_expert, slots, sizeof slots);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.device_inactive[0] = 1; /* expert 1 is gone */
    REFUSED(moe_ep_device_loads(&p, w, out, &err), MOE_EP_ERR_LOST_EXPERT, "p");
    CHECK_I64(err.index, 4);
    w[4] = 0;
    CHECK_I64(moe_ep_device_loads(&p, w, out, &err), MOE_EP_OK);
    CHECK(!(out[0] > 0) && !(out[2] > 0));
    CHECK_NEAR(out[1], 6, 0, 0);
    CHECK_I64(moe_ep_node_loads(&p, w, out, &err), MOE_EP_OK);
    CHECK_NEAR(out[0], 6, 0, 0);
    CHECK_NEAR(out[1], 6, 0, 0);
    REFUSED(moe_ep_evaluate(&p, w, 1, r, NULL, &err), MOE_EP_ERR_SLOTS, "p");
    p.replica_slot[5] = 5;
    REFUSED(moe_ep_device_loads(&p, w, out, &err), MOE_EP_ERR_PLACEMENT, "p.replica_slot");
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    placement_free(&p);
    placement_free(&q);
    { /* back from nowhere: no link carries it */
        const int32_t one[6] = {0, 1, 2, -1, 3, -1};
        const double even[4] = {1, 1, 1, 1};
        int32_t e, found = 0;
        s = shape_of(3, 6, 1);
        p = placement_new(1, 4, &s);
        q = placement_new(1, 4, &s);
        memcpy(p.slot_expert, one, sizeof one);
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        p.device_inactive[0] = 1;
        memset(&x, 0, sizeof x);
        x.current = &p;
        x.loads = even;
        x.max_link_moves = 1;
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, &err), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&q, 0, NULL, NULL), MOE_EP_OK);
        for (e = 2; e < 6; e++) found += q.slot_expert[e] == 0 || q.slot_expert[e] == 1;
        CHECK_I64(found, 2);
        CHECK_I64(r[0].moves, 2);
        placement_free(&p);
        placement_free(&q);
    }
}

TEST(refused_loads_and_counts)
{
    const double w[4] = {1, 2, 3, 4}, most[2] = {0.4e280, 0.4e280}, over[2] = {0.6e280, 0.6e280};
    const double steps[2] = {0, 0.9e280};
    const double apart[2] = {0, 1e150};
    const int32_t big[2] = {(1 << 30) - 1, 2}, two[4] = {2, 0, 1, 1}, minus[4] = {0, -1, 0, 0}, far[4] = {0, 1, 2, 0};
    const uint8_t dead[2] = {1, 0};
    const double speed[2] = {1, 2};
    moe_ep_shape s = shape_of(2, 4, 1), bad = shape_of(0, 4, 1), half = shape_of(2, 8, 1);
    moe_ep_placement p = placement_new(1, 4, &s);
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_bound_result b;
    moe_ep_plan_result r;
    moe_ep_place_desc d;
    moe_ep_error err;
    double out[4];
    int32_t counts[4], device[8];
    CHECK_I64(moe_ep_replicate(most, 2, 3, 0, counts, NULL, &err), MOE_EP_OK);
    REFUSED(moe_ep_replicate(over, 2, 3, 0, counts, NULL, &err), MOE_EP_ERR_OVERFLOW, "loads");
    REFUSED(moe_ep_replicate(NULL, 4, 5, 0, counts, NULL, &err), MOE_EP_ERR_NULL, "loads");
    REFUSED(moe_ep_replicate(w, 4, 5, 0, NULL, NULL, &err), MOE_EP_ERR_NULL, "counts");
    REFUSED(moe_ep_replicate(w, 0, 5, 0, counts, NULL, &err), MOE_EP_ERR_SIZE, "E");
    REFUSED(moe_ep_replicate(w, 4, 5, 0, counts, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
    REFUSED(moe_ep_window_loads(NULL, 1, 1, 4, 0, out, &err), MOE_EP_ERR_NULL, "loads");
    REFUSED(moe_ep_window_loads(w, 1, 1, 4, 0, NULL, &err), MOE_EP_ERR_NULL, "out");
    REFUSED(moe_ep_window_loads(w, 1, 0, 4, 0, out, &err), MOE_EP_ERR_SIZE, "L");
    REFUSED(moe_ep_window_loads(w, 1, 1, 0, 0, out, &err), MOE_EP_ERR_SIZE, "E");
    REFUSED(moe_ep_window_loads(w, 1, 1, 4, NAN, out, &err), MOE_EP_ERR_RANGE, "z");
    REFUSED(moe_ep_window_loads(steps, 2, 1, 1, 1e100, out, &err), MOE_EP_ERR_OVERFLOW, "loads");
    d = desc_of(1, 1, shape_of(1, 1, 1), steps);
    d.num_steps = 2;
    {
        moe_ep_placement one = placement_new(1, 1, &d.shape);
        d.risk_z = 1e100;
        REFUSED(moe_ep_place_lpt(&d, &one, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW, "loads");
        d.loads = apart;
        d.risk_z = 1e131; /* 5e280: a number, but above 1e280 */
        REFUSED(moe_ep_place_lpt(&d, &one, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW, "loads");
        d.loads = steps;
        d.risk_z = 0;
        CHECK_I64(moe_ep_place_lpt(&d, &one, &r, NULL, &err), MOE_EP_OK);
        CHECK_NEAR(r.max, 0.45e280, 1e-12, 0);
        placement_free(&one);
    }
    REFUSED(moe_ep_lower_bound(NULL, 4, &s, &b, NULL, &err), MOE_EP_ERR_NULL, "loads");
    REFUSED(moe_ep_lower_bound(w, 4, NULL, &b, NULL, &err), MOE_EP_ERR_NULL, "shape");
    REFUSED(moe_ep_lower_bound(w, 4, &s, NULL, NULL, &err), MOE_EP_ERR_NULL, "out");
    REFUSED(moe_ep_lower_bound(w, 0, &s, &b, NULL, &err), MOE_EP_ERR_SIZE, "E");
    REFUSED(moe_ep_lower_bound(w, INT32_MAX, &s, &b, NULL, &err), MOE_EP_ERR_SIZE, "E");
    REFUSED(moe_ep_lower_bound(w, 4, &bad, &b, NULL, &err), MOE_EP_ERR_SIZE, "shape.num_devices");
    REFUSED(moe_ep_lower_bound(w, 4, &s, &b, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
    half.inactive = dead;
    half.speed = speed;
    CHECK_I64(moe_ep_lower_bound(w, 4, &half, &b, NULL, &err), MOE_EP_OK); /* all 10 on the device of speed 2 */
    CHECK_NEAR(b.value, 5, 1e-12, 0);
    if (t_subnormals()) { /* levels with next to no numbers between them */
        const double tiny[2] = {3 * 4.9406564584124654e-324, 4.9406564584124654e-324};
        bad = shape_of(2, 3, 1);
        CHECK_I64(moe_ep_lower_bound(tiny, 2, &bad, &b, NULL, &err), MOE_EP_OK);
        CHECK_NEAR(b.value + b.mean + b.replica + b.slots, 0, 0, 0);
    }
    REFUSED(moe_ep_lpt(w, INT32_MAX, 2, device, NULL, &err), MOE_EP_ERR_SIZE, "E");
    { /* the largest number of experts, 2^30 - 1, reaches the next check, one more does not */
        const int32_t none_of_it = 0, limit = INT32_MAX / 2;
        moe_ep_placement q;
        double mem[8];
        bad = shape_of(0, 3, 1);
        REFUSED(moe_ep_lpt_replicas(w, limit, &none_of_it, 2, device, NULL, &err), MOE_EP_ERR_RANGE, "counts");
        REFUSED(moe_ep_lpt_replicas(w, limit + 1, &none_of_it, 2, device, NULL, &err), MOE_EP_ERR_SIZE, "E");
        REFUSED(moe_ep_lower_bound(w, limit, &bad, &b, NULL, &err), MOE_EP_ERR_SIZE, "shape.num_devices");
        REFUSED(moe_ep_lower_bound(w, limit + 1, &bad, &b, NULL, &err), MOE_EP_ERR_SIZE, "E");
        REFUSED(moe_ep_placement_init(&q, 1, limit, &bad, mem, sizeof mem, &err), MOE_EP_ERR_SIZE, "shape.num_devices");
        REFUSED(moe_ep_placement_init(&q, 1, limit + 1, &bad, mem, sizeof mem, &err), MOE_EP_ERR_SIZE, "E");
    }
    REFUSED(moe_ep_lpt(w, 4, 2, device, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
    REFUSED(moe_ep_lpt_replicas(w, 4, two, 2, device, NULL, &err), MOE_EP_ERR_RANGE, "counts");
    CHECK_I64(err.index, 1);
    REFUSED(moe_ep_lpt_replicas(w, 2, big, INT32_MAX, device, NULL, &err), MOE_EP_ERR_OVERFLOW, "counts");
    CHECK_I64(err.index, 1);
    REFUSED(moe_ep_devices_placement(NULL, NULL, &p, &err), MOE_EP_ERR_NULL, "device_of_replica");
    REFUSED(moe_ep_devices_placement(minus, NULL, &p, &err), MOE_EP_ERR_DEVICE_ID, "device_of_replica");
    REFUSED(moe_ep_devices_placement(far, NULL, &p, &err), MOE_EP_ERR_DEVICE_ID, "device_of_replica");
    CHECK_I64(err.index, 2);
    REFUSED(moe_ep_devices_placement(far, two, &p, &err), MOE_EP_ERR_RANGE, "counts");
    d = desc_of(1, 4, s, w);
    CHECK_I64(moe_ep_place_lpt(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
    REFUSED(moe_ep_evaluate(NULL, w, 1, &r, NULL, &err), MOE_EP_ERR_NULL, "p");
    REFUSED(moe_ep_evaluate(&p, w, 1, &r, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
    memset(out, 0, sizeof out);
    CHECK_I64(moe_ep_evaluate(&p, out, 1, &r, NULL, &err), MOE_EP_OK); /* no load: all even */
    CHECK_NEAR(r.imbalance, 1, 0, 0);
    CHECK_NEAR(r.node_imbalance, 1, 0, 0);
    CHECK_NEAR(r.gap, 0, 0, 0);
    placement_free(&p);
}

/* out that was laid out for something else, in every way; and shapes that leave devices out. */
TEST(planners_and_their_output)
{
    const double w[6] = {1, 2, 3, 4, 5, 6};
    const int32_t lop[3] = {1, 3, 2}, want[6] = {-1, -1, -1, -1, -1, -1};
    const uint8_t dead[3] = {0, 1, 0};
    moe_ep_place_desc d = desc_of(1, 5, shape_of(3, 6, 1), w);
    moe_ep_placement p = placement_new(1, 5, &d.shape), q;
    moe_ep_error err;
    int i;
    for (i = 0; i < 5; i++) {
        int32_t *field[5];
        q = p;
        field[0] = &q.num_layers, field[1] = &q.num_experts, field[2] = &q.num_devices, field[3] = &q.num_nodes;
        field[4] = &q.num_slots;
        *field[i] += 1;
        REFUSED(moe_ep_place_round_robin(&d, &q, NULL, NULL, &err), MOE_EP_ERR_SIZE, "out");
        CHECK(memcmp(p.slot_expert, want, sizeof want) == 0);
    }
    memset(&q, 0, sizeof q);
    REFUSED(moe_ep_place_lpt(&d, &q, NULL, NULL, &err), MOE_EP_ERR_NULL, "out");
    REFUSED(moe_ep_place_lpt(&d, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL, "out");
    REFUSED(moe_ep_place_lpt(NULL, &p, NULL, NULL, &err), MOE_EP_ERR_NULL, "desc");
    d.shape.slots_per_device = lop;
    d.shape.num_slots = 0;
    REFUSED(moe_ep_place_lpt(&d, &p, NULL, NULL, &err), MOE_EP_ERR_SIZE, "out");
    placement_free(&p);
    { /* slots 1 3 2: five experts round robin, and blocks of 2 2 1 that do not fit */
        const int32_t robin[6] = {0, 1, 3, -1, 2, 4}, blocks[6] = {0, 1, 2, -1, 3, 4};
        p = placement_new(1, 5, &d.shape);
        CHECK_I64(moe_ep_place_round_robin(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(p.slot_expert, robin, sizeof robin) == 0);
        CHECK_I64(moe_ep_place_contiguous(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(p.slot_expert, blocks, sizeof blocks) == 0);
        placement_free(&p);
    }
    d = desc_of(1, 4, shape_of(3, 6, 1), w);
    d.shape.inactive = dead;
    p = placement_new(1, 4, &d.shape);
    CHECK_I64(moe_ep_place_round_robin(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
    {
        const int32_t robin[6] = {0, 2, -1, -1, 1, 3};
        CHECK(memcmp(p.slot_expert, robin, sizeof robin) == 0);
    }
    placement_free(&p);
    d = desc_of(1, 6, shape_of(3, 6, 2), w);
    d.num_groups = 2;
    p = placement_new(1, 6, &d.shape);
    REFUSED(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_CONFIG, "desc.shape.num_nodes");
    placement_free(&p);
    {
        const double huge[6] = {1, 4e38, 1, 1, 1, 1};
        d = desc_of(1, 6, shape_of(3, 6, 1), huge);
        p = placement_new(1, 6, &d.shape);
        REFUSED(moe_ep_place_trtllm(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE, "loads");
        CHECK_I64(err.index, 1);
        placement_free(&p);
    }
}

/* PyTorch's float32 sum of n numbers, strands of blocks of 16 spelled out; n / lanes / 4 below 2^16. */
static float cascade_sum(const double *x, int n)
{
    float part[4][8] = {{0}}, sum = 0;
    int lanes = n < 8 ? 1 : 8, rows = n / lanes, deep = rows / 4, i, k, lane;
    for (k = 0; k < 4; k++)
        for (lane = 0; lane < lanes; lane++) {
            float a[4] = {0, 0, 0, 0};
            for (i = 0; i < deep; i++) {
                a[0] = a[0] + (float)x[(4 * i + k) * lanes + lane];
                if ((i + 1) % 16 == 0) a[1] = a[1] + a[0], a[0] = 0;
                if ((i + 1) % 256 == 0) a[2] = a[2] + a[1], a[1] = 0;
                if ((i + 1) % 4096 == 0) a[3] = a[3] + a[2], a[2] = 0;
            }
            part[k][lane] = ((a[0] + a[1]) + a[2]) + a[3];
        }
    for (i = 4 * deep; i < rows; i++)
        for (lane = 0; lane < lanes; lane++) part[0][lane] = part[0][lane] + (float)x[i * lanes + lane];
    for (i = rows * lanes; i < n; i++) sum = sum + (float)x[i];
    for (i = 0; i < lanes; i++) sum = sum + (((part[0][i] + part[1][i]) + part[2][i]) + part[3][i]);
    return sum;
}

/* Groups of the same loads in another order differ by the rounding of their sums only, which decides their nodes. */
TEST(sums_of_large_groups)
{
    static const int sizes[7] = {5, 7, 600, 2100, 9000, 33000, 132000};
    uint64_t s = t_seed;
    int k, g, i;
    for (k = 0; k < 7; k++) {
        int n = sizes[k], E = 4 * n, pack[4], rank[4];
        double *w = (double *)t_alloc(sizeof(double) * (size_t)E);
        float sum[4];
        moe_ep_place_desc d;
        moe_ep_placement p;
        for (i = 0; i < n; i++) w[i] = 1000 * t_unit(&s);
        for (g = 1; g < 4; g++) {
            memcpy(w + g * n, w, sizeof(double) * (size_t)n);
            for (i = n - 1; i > 0; i--) {
                int j = (int)t_below(&s, i + 1);
                double keep = w[g * n + i];
                w[g * n + i] = w[g * n + j];
                w[g * n + j] = keep;
            }
        }
        for (g = 0; g < 4; g++) sum[g] = cascade_sum(w + g * n, n);
        naive_pack(sum, 4, 2, pack, rank);
        d = desc_of(1, E, shape_of(2 * n, E, 2), w);
        d.num_groups = 4;
        (void)plan_one(moe_ep_place_eplb, &d, &p, NULL);
        for (g = 0; g < 4; g++) /* the first expert of each group stands for it */
            CHECK_I64(p.device_node[p.slot_device[p.replica_slot[p.replica_start[g * n]]]], pack[g]);
        placement_free(&p);
        free(w);
        STOP_IF_FAILED("group of %d", n);
    }
}

TEST(refused_eplb_maps)
{
    const int32_t map[4] = {0, 1, 0, -1}, cnt[2] = {2, 1}, few[2] = {1, 1};
    const int32_t wild[4] = {0, 1, -2, 0}, high[4] = {0, 1, 2, 0};
    const int32_t fine[4] = {2, 0, 1, -1}, same[4] = {2, 2, 1, -1}, one[4] = {2, -1, 1, -1}, none[4] = {2, -3, 1, -1};
    const int32_t beyond[4] = {2, 4, 1, -1}, other[4] = {2, 1, 1, -1};
    moe_ep_shape s = shape_of(2, 4, 1);
    moe_ep_placement p = placement_new(1, 2, &s);
    int32_t phy[4], log[4], got[2];
    moe_ep_error err;
    CHECK_I64(moe_ep_placement_from_eplb(map, fine, 2, cnt, &p, &err), MOE_EP_OK);
    CHECK(p.replica_slot[0] == 2 && p.replica_slot[1] == 0 && p.replica_slot[2] == 1);
    REFUSED(moe_ep_placement_from_eplb(wild, NULL, 0, NULL, &p, &err), MOE_EP_ERR_EXPERT_ID, "phy2log");
    REFUSED(moe_ep_placement_from_eplb(high, NULL, 0, NULL, &p, &err), MOE_EP_ERR_EXPERT_ID, "phy2log");
    REFUSED(moe_ep_placement_from_eplb(map, fine, 0, NULL, &p, &err), MOE_EP_ERR_SIZE, "X");
    REFUSED(moe_ep_placement_from_eplb(map, NULL, 0, few, &p, &err), MOE_EP_ERR_PLACEMENT, "logcnt");
    REFUSED(moe_ep_placement_from_eplb(map, same, 2, cnt, &p, &err), MOE_EP_ERR_PLACEMENT, "log2phy");
    CHECK_STR(err.what, "names a slot twice");
    REFUSED(moe_ep_placement_from_eplb(map, one, 2, cnt, &p, &err), MOE_EP_ERR_PLACEMENT, "log2phy");
    CHECK_STR(err.what, "does not list every replica");
    REFUSED(moe_ep_placement_from_eplb(map, none, 2, NULL, &p, &err), MOE_EP_ERR_PLACEMENT, "log2phy");
    REFUSED(moe_ep_placement_from_eplb(map, beyond, 2, NULL, &p, &err), MOE_EP_ERR_PLACEMENT, "log2phy");
    REFUSED(moe_ep_placement_from_eplb(map, other, 2, NULL, &p, &err), MOE_EP_ERR_PLACEMENT, "log2phy");
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_eplb_arrays(&p, 2, phy, log, got, &err), MOE_EP_OK); /* untouched by all that */
    CHECK(memcmp(phy, map, sizeof map) == 0 && memcmp(log, fine, sizeof fine) == 0);
    CHECK(memcmp(got, cnt, sizeof cnt) == 0);
    REFUSED(moe_ep_eplb_arrays(&p, 1, phy, log, got, &err), MOE_EP_ERR_SIZE, "X");
    CHECK_I64(moe_ep_placement_from_eplb(map, NULL, 0, NULL, &p, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_from_eplb(map, NULL, 0, cnt, &p, &err), MOE_EP_OK);
    CHECK(p.replica_slot[0] == 0 && p.replica_slot[1] == 2);
    placement_free(&p);
}

/* Experts that change their slot on a device need no transfer; renaming keeps to what the flags and devices allow. */
TEST(moves_and_names)
{
    const int32_t a[8] = {0, 1, 2, 3, 4, 5, 6, 7}, b[8] = {1, 0, 3, 2, 4, -1, 7, 6}, c[8] = {2, 3, 0, 1, 6, 7, 4, 5};
    const int32_t nodes_kept[8] = {0, 1, 2, 3, 4, 5, 6, 7}, swapped[8] = {1, 0, 3, 2, 5, 4, 7, 6};
    const int32_t far[8] = {4, 5, 6, 7, 0, 1, 2, 3};
    moe_ep_shape s = shape_of(4, 8, 2);
    moe_ep_placement p = placement_new(1, 8, &s), q = placement_new(1, 8, &s);
    static const int32_t twice[4] = {2, 2, 0, 1}, first_kept[8] = {2, 3, 0, 1, 4, 5, 6, 7};
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0), tight;
    moe_ep_moves_result m;
    moe_ep_move move[8];
    moe_ep_error err;
    void *buf;
    int i;
    memcpy(p.slot_expert, a, sizeof a);
    memcpy(q.slot_expert, b, sizeof b);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&q, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&p, &q, 5, NULL, 0, &m, NULL, &err), MOE_EP_OK);
    CHECK(m.moves == 0 && m.slot_changes == 6 && m.unchanged == 1 && m.rounds == 0 && m.lost == 0);
    REFUSED(moe_ep_plan_moves(&p, &q, NAN, NULL, 0, &m, NULL, &err), MOE_EP_ERR_RANGE, "expert_bytes");
    REFUSED(moe_ep_plan_moves(&p, &q, 0, NULL, -1, &m, NULL, &err), MOE_EP_ERR_SIZE, "capacity");
    REFUSED(moe_ep_plan_moves(&p, &q, 0, NULL, 0, NULL, NULL, &err), MOE_EP_ERR_NULL, "out");
    REFUSED(moe_ep_plan_moves(&p, &q, 0, NULL, 0, &m, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
    memcpy(q.slot_expert, twice, sizeof twice); /* expert 2 twice on device 0: sent once */
    CHECK_I64(moe_ep_placement_index(&q, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&p, &q, 5, NULL, 0, &m, NULL, &err), MOE_EP_OK);
    CHECK(m.moves == 3 && m.slot_changes == 3 && m.max_in == 2 && m.max_out == 2 && m.rounds == 2);
    CHECK_NEAR(m.bytes, 15, 0, 0);
    memcpy(q.slot_expert, c, sizeof c);
    CHECK_I64(moe_ep_placement_index(&q, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&p, &q, 0, move, 8, NULL, NULL, &err), MOE_EP_OK); /* the moves alone */
    for (i = 0; i < 8; i++) CHECK(move[i].round >= 0 && move[i].round < 2 && move[i].from_device == (i / 2 ^ 1));
    check_moves(&p, &q);
    REFUSED(moe_ep_plan_moves(&p, &q, 0, move, 7, &m, NULL, &err), MOE_EP_ERR_SIZE, "capacity");
    CHECK_NEAR(err.value, 8, 0, 0);
    (void)moe_ep_plan_moves(&p, &q, 0, NULL, 0, &m, &none, &err);
    buf = t_alloc(none.need);
    tight = moe_ep_scratch_fixed(buf, none.need); /* enough to count, not to schedule */
    CHECK_I64(moe_ep_plan_moves(&p, &q, 0, NULL, 0, &m, &tight, &err), MOE_EP_OK);
    REFUSED(moe_ep_plan_moves(&p, &q, 0, move, 8, &m, &tight, &err), MOE_EP_ERR_SCRATCH, "scratch");
    free(buf);
    REFUSED(moe_ep_relabel(&p, &q, 0, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
#define RELABELLED(contents, flags, wanted)                                                         \
    memcpy(q.slot_expert, contents, sizeof a);                                                      \
    CHECK_I64(moe_ep_placement_index(&q, NULL), MOE_EP_OK);                                         \
    CHECK_I64(moe_ep_relabel(&p, &q, flags, NULL, &err), MOE_EP_OK);                                \
    CHECK(memcmp(q.slot_expert, wanted, sizeof a) == 0)
    RELABELLED(swapped, MOE_EP_RELABEL_SLOTS_ONLY, a);  /* devices keep theirs, slots stay */
    RELABELLED(c, MOE_EP_RELABEL_SLOTS_ONLY, c);
    RELABELLED(c, MOE_EP_RELABEL_KEEP_NODES, nodes_kept);
    RELABELLED(far, MOE_EP_RELABEL_KEEP_NODES, far);    /* across nodes: not allowed */
    RELABELLED(far, 0, a);
    q.device_speed[0] = 2; /* no other device is like it */
    RELABELLED(c, MOE_EP_RELABEL_KEEP_NODES, first_kept);
    q.device_speed[0] = 1;
    q.device_speed[1] = 2;
    RELABELLED(c, MOE_EP_RELABEL_KEEP_NODES, first_kept);
    q.device_speed[1] = 1;
    q.device_inactive[0] = 1;
    RELABELLED(c, MOE_EP_RELABEL_KEEP_NODES, first_kept);
    q.device_inactive[0] = 0;
    p.device_inactive[0] = p.device_inactive[1] = 1; /* lost today: nothing can be kept there */
    RELABELLED(c, MOE_EP_RELABEL_KEEP_NODES, first_kept);
#undef RELABELLED
    placement_free(&p);
    placement_free(&q);
}

TEST(refused_copies_and_budgets)
{
    const double w[8] = {100, 10, 10, 10, 10, 10, 10, 10};
    const uint8_t dead[4] = {1, 1, 1, 1}, last[4] = {0, 0, 0, 1};
    const int32_t layer[1] = {4};
    const int64_t extra[1] = {1};
    moe_ep_place_desc d = desc_of(1, 4, shape_of(4, 8, 1), w), bad;
    moe_ep_copies_desc c, good;
    moe_ep_copies_point curve[5];
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_error err;
    int32_t fewest = 7, slots[2];
    memset(&good, 0, sizeof good);
    good.place = d;
    good.max_extra = 4;
    REFUSED(moe_ep_min_copies(NULL, NULL, &fewest, NULL, &err), MOE_EP_ERR_NULL, "desc");
    REFUSED(moe_ep_min_copies(&good, NULL, &fewest, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
#define COPIES(change, status, arg)                                                                 \
    c = good;                                                                                       \
    change;                                                                                         \
    REFUSED(moe_ep_min_copies(&c, curve, &fewest, NULL, &err), status, arg)
    COPIES(c.place.num_experts = 0, MOE_EP_ERR_SIZE, "desc.place.num_experts");
    COPIES(c.step = -1, MOE_EP_ERR_RANGE, "desc.step");
    COPIES(c.target = NAN, MOE_EP_ERR_RANGE, "desc.target");
    COPIES(c.target = -1, MOE_EP_ERR_RANGE, "desc.target");
    COPIES(c.expert_bytes = NAN, MOE_EP_ERR_RANGE, "desc.expert_bytes");
    COPIES(c.expert_bytes = -1, MOE_EP_ERR_RANGE, "desc.expert_bytes");
    COPIES(c.place.layer_slots = layer, MOE_EP_ERR_CONFIG, "desc.place.layer_slots");
    COPIES(c.place.shape.num_devices = 0, MOE_EP_ERR_SIZE, "shape.num_devices");
    COPIES(c.place.shape.inactive = dead, MOE_EP_ERR_SLOTS, "desc.place.shape");
    COPIES(c.place.risk_z = -1, MOE_EP_ERR_RANGE, "desc.risk_z");
    COPIES(c.place.max_replicas = -1, MOE_EP_ERR_RANGE, "desc.max_replicas"); /* the planner says so */
    COPIES(c.place.loads = NULL, MOE_EP_ERR_NULL, "desc.loads");
#undef COPIES
    CHECK_I64(fewest, 7);
    c = good; /* three devices are up: 4 experts, then 5 .. 8 slots on them */
    c.place.shape.inactive = last;
    c.target = 1.4;
    c.expert_bytes = 2;
    CHECK_I64(moe_ep_min_copies(&c, curve, NULL, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(curve[0].worst, 100 / (130.0 / 3), 1e-12, 0);
    CHECK_NEAR(curve[1].worst, 60 / (130.0 / 3), 1e-12, 0);
    CHECK_NEAR(curve[4].bytes, 8, 0, 0);
    CHECK_I64(moe_ep_min_copies(&c, NULL, &fewest, NULL, &err), MOE_EP_OK);
    CHECK_I64(fewest, 1 + !(curve[1].worst <= 1.4) * (curve[2].worst <= 1.4 ? 1 : 2));
    c = good; /* EPLB: steps of as many slots as devices; the first layer is the worse one */
    c.place.num_layers = 2;
    c.place.loads = w;
    c.policy = MOE_EP_PLACE_EPLB_GLOBAL;
    c.target = 4;
    CHECK_I64(moe_ep_min_copies(&c, curve, &fewest, NULL, &err), MOE_EP_OK);
    CHECK(curve[0].extra == 0 && curve[1].extra == 4);
    CHECK_NEAR(curve[0].worst, 100 / 32.5, 1e-12, 0);
    CHECK_NEAR(curve[0].mean, (100 / 32.5 + 1) / 2, 1e-12, 0);
    CHECK_NEAR(curve[0].max_sum, 110, 1e-12, 0);
    CHECK_I64(fewest, 0);
    c.step = 8; /* beyond max_extra: one point */
    c.target = 0;
    CHECK_I64(moe_ep_min_copies(&c, curve + 1, &fewest, NULL, &err), MOE_EP_OK);
    CHECK_I64(fewest, -1);
    CHECK(curve[1].extra == 0 && !(curve[1].worst > curve[0].worst) && !(curve[1].worst < curve[0].worst));
    REFUSED(moe_ep_replica_budget_row(NULL, extra, 1, slots, NULL, &err), MOE_EP_ERR_NULL, "desc");
    REFUSED(moe_ep_replica_budgets(&d, 1, slots, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
#define BUDGET(change, status, arg)                                                                 \
    bad = d;                                                                                        \
    change;                                                                                         \
    REFUSED(moe_ep_replica_budgets(&bad, 1, slots, NULL, &err), status, arg)
    BUDGET(bad.num_layers = 0, MOE_EP_ERR_SIZE, "desc.num_layers");
    BUDGET(bad.num_experts = 0, MOE_EP_ERR_SIZE, "desc.num_experts");
    BUDGET(bad.layer_slots = layer, MOE_EP_ERR_CONFIG, "desc.layer_slots");
    BUDGET(bad.shape.num_devices = 0, MOE_EP_ERR_SIZE, "shape.num_devices");
    BUDGET(bad.loads = NULL, MOE_EP_ERR_NULL, "desc.loads");
    BUDGET(bad.max_replicas = -1, MOE_EP_ERR_RANGE, "desc.max_replicas");
    BUDGET((bad.num_steps = 2, bad.risk_z = -1), MOE_EP_ERR_RANGE, "desc.risk_z");
    BUDGET((bad.num_steps = 2, bad.risk_z = 1e308), MOE_EP_ERR_OVERFLOW, "loads");
#undef BUDGET
    bad = d; /* two steps merged into 55 10 10 10; the fourth device is down */
    bad.num_steps = 2;
    bad.shape.inactive = last;
    CHECK_I64(moe_ep_replica_budgets(&bad, 1, slots, NULL, &err), MOE_EP_OK);
    CHECK_I64(slots[0], 5);
}

/* 256 experts on 144 devices, DeepSeek's decoding: 32 copies fill two slots everywhere. */
TEST(copies_on_devices_that_do_not_divide)
{
    double w[256];
    moe_ep_copies_desc c;
    moe_ep_copies_point point[3];
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_plan_result r;
    moe_ep_error err;
    moe_ep_scratch scratch = moe_ep_scratch_fixed(NULL, 0);
    void *memory;
    int32_t fewest = 7;
    int i;
    for (i = 0; i < 256; i++) w[i] = 1 + i % 7;
    memset(&c, 0, sizeof c);
    c.place = desc_of(1, 256, shape_of(144, 0, 0), w);
    c.policy = MOE_EP_PLACE_EPLB_GLOBAL;
    c.max_extra = 32;
    d = desc_of(1, 256, shape_of(144, 288, 0), w);
    d.eplb_mode = MOE_EP_EPLB_GLOBAL;
    r = plan_one(moe_ep_place_eplb, &d, &p, NULL);
    placement_free(&p);
    c.target = r.imbalance;
    for (c.step = 0; c.step <= 64; c.step += 32) { /* with one point the step does not matter */
        memset(point, 0, sizeof point);
        CHECK_I64(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_OK);
        CHECK(point[0].extra == 32 && fewest == 32);
        CHECK_NEAR(point[0].worst, r.imbalance, 0, 0);
        CHECK_I64(point[1].extra, c.step == 32 ? -1 : 0); /* 32 / 32 + 1 points, of which there is one */
    }
    c.step = 32;
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, &scratch, &err), MOE_EP_ERR_SCRATCH);
    memory = t_alloc((size_t)err.value);
    memset(memory, 0x7f, (size_t)err.value);
    scratch = moe_ep_scratch_fixed(memory, (size_t)err.value);
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, &scratch, &err), MOE_EP_OK);
    CHECK(point[1].extra == -1 && point[1].worst + point[1].mean + point[1].max_sum + point[1].bytes <= 0);
    free(memory);
    c.max_extra = 31;
    REFUSED(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_ERR_RANGE, "desc.max_extra");
    CHECK_NEAR(err.value, 32, 0, 0);
    c.max_extra = 32 + 145;
    c.step = 145;
    REFUSED(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_ERR_CONFIG, "desc.step");
    c.max_extra = 32 + 144;
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_OK);
    CHECK(point[0].extra == 32 && point[1].extra == -1);
    c.step = 144;
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, NULL, &err), MOE_EP_OK);
    CHECK(point[0].extra == 32 && point[1].extra == 176 && fewest == 32);
}

/* What best_placement and rebalance refuse, and options that meet. */
TEST(refused_options)
{
    const double w[6] = {9, 8, 7, 6, 5, 4}, huge[6] = {4e38, 1, 1, 1, 1, 1};
    const int32_t low[6] = {-1, -2, -1, -1, -1, -1}, high[6] = {-1, 4, -1, -1, -1, -1};
    const int32_t down[6] = {-1, 3, -1, -1, -1, -1};
    const int32_t layer[1] = {6}, minus[6] = {0, 0, 0, -1, 1, 1}, beyond[6] = {0, 0, 0, 2, 1, 1};
    const int32_t fine[6] = {0, 0, 0, 1, 1, 1}, full[6] = {0, 0, 0, 0, 0, 0};
    const int32_t odd[1] = {7}, stay[6] = {0, 1, 2, 3, -1, -1}, few[1] = {5}, twelve[1] = {12}, many[1] = {13};
    const uint8_t dead[4] = {0, 0, 0, 1}, first[4] = {1, 0, 0, 0};
    int64_t pairs[36] = {0};
    moe_ep_place_desc d = desc_of(1, 6, shape_of(4, 12, 2), w), bad;
    moe_ep_placement p = placement_new(1, 6, &d.shape), q = placement_new(1, 6, &d.shape);
    moe_ep_rebalance_desc x, y;
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_plan_result r;
    moe_ep_error err;
    int i;
#define BEST(change, status, arg)                                                                   \
    bad = d;                                                                                        \
    change;                                                                                         \
    REFUSED(moe_ep_best_placement(&bad, &p, NULL, NULL, &err), status, arg)
    BEST(bad.pinned = low, MOE_EP_ERR_DEVICE_ID, "desc.pinned");
    BEST(bad.pinned = high, MOE_EP_ERR_DEVICE_ID, "desc.pinned");
    BEST((bad.pinned = down, bad.shape.inactive = dead), MOE_EP_ERR_INFEASIBLE, "desc.pinned");
    d.coactivation = pairs;
    BEST(bad.coactivation_slack = NAN, MOE_EP_ERR_RANGE, "desc.coactivation_slack");
    BEST(bad.coactivation_slack = -1, MOE_EP_ERR_RANGE, "desc.coactivation_slack");
    d.coactivation = NULL;
    d.node_soft = 1;
    d.home_node = fine;
    BEST(bad.max_off_node = NAN, MOE_EP_ERR_RANGE, "desc.max_off_node");
    BEST(bad.max_off_node = -0.1, MOE_EP_ERR_RANGE, "desc.max_off_node");
    BEST(bad.max_off_node = 1.1, MOE_EP_ERR_RANGE, "desc.max_off_node");
    BEST(bad.layer_slots = layer, MOE_EP_ERR_CONFIG, "desc.node_soft");
    BEST(bad.home_node = minus, MOE_EP_ERR_RANGE, "desc.home_node");
    BEST(bad.home_node = beyond, MOE_EP_ERR_RANGE, "desc.home_node");
    BEST((bad.home_node = NULL, bad.num_groups = 0), MOE_EP_ERR_CONFIG, "desc.num_groups");
    BEST((bad.home_node = NULL, bad.num_groups = 4), MOE_EP_ERR_CONFIG, "desc.num_groups");
    BEST((bad.home_node = NULL, bad.num_groups = 3), MOE_EP_ERR_CONFIG, "desc.num_groups");
    BEST((bad.home_node = full, bad.shape.num_slots = 8, bad.shape.num_slots = 12, bad.shape.inactive = dead),
         MOE_EP_OK, "");
    CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 36; i++) pairs[i] = i % 7;
    BEST((bad.coactivation = pairs, bad.coactivation_slack = 0.5), MOE_EP_OK, ""); /* partners stay on their node */
    for (i = 0; i < 12; i++)
        if (p.slot_expert[i] >= 0) CHECK_I64(p.device_node[p.slot_device[i]], fine[p.slot_expert[i]]);
#undef BEST
    d.node_soft = 0;
    d.home_node = NULL;
    bad = d; /* fewer slots than there are, on three devices */
    bad.shape.inactive = dead;
    bad.layer_slots = layer;
    CHECK_I64(moe_ep_best_placement(&bad, &p, &r, NULL, &err), MOE_EP_OK);
    CHECK_I64(r.slots_used, 6);
    CHECK_NEAR(r.max, 13, 0, 0); /* 9 4 | 8 5 | 7 6 */
    bad.shape.inactive = first;
    bad.layer_slots = odd; /* the odd copy belongs to the first device that is up */
    CHECK_I64(moe_ep_best_placement(&bad, &p, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.max, 13, 0, 0);
    CHECK(r.slots_used <= 7 && p.slot_expert[0] < 0 && p.slot_expert[8] < 0 && p.slot_expert[11] < 0);
    bad = d; /* partners that are pinned stay where they are */
    bad.pinned = stay;
    bad.coactivation = pairs;
    bad.coactivation_slack = 2;
    CHECK_I64(moe_ep_best_placement(&bad, &p, &r, NULL, &err), MOE_EP_OK);
    CHECK(r.max <= 39.0 / 4 * 3);
    for (i = 0; i < 6; i++) {
        int k, found = stay[i] < 0;
        for (k = p.replica_start[i]; k < p.replica_start[i + 1]; k++)
            found |= p.slot_device[p.replica_slot[k]] == stay[i];
        CHECK(found);
    }
    bad = d;
    bad.loads = huge; /* beyond float32, and so beyond EPLB */
    CHECK_I64(moe_ep_best_placement(&bad, &p, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.max, 1e38, 1e-3, 0);
    CHECK_I64(moe_ep_place_lpt(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
    memset(&x, 0, sizeof x);
    x.current = &p;
    x.loads = w;
#define REBALANCE(change, status, arg)                                                              \
    y = x;                                                                                          \
    change;                                                                                         \
    REFUSED(moe_ep_rebalance(&y, &q, NULL, NULL, &err), status, arg)
    REBALANCE(y.target = -1, MOE_EP_ERR_RANGE, "desc.target");
    REBALANCE(y.max_moves = -1, MOE_EP_ERR_RANGE, "desc.max_moves");
    REBALANCE(y.max_layer_moves = -1, MOE_EP_ERR_RANGE, "desc.max_layer_moves");
    REBALANCE(y.max_device_moves = -1, MOE_EP_ERR_RANGE, "desc.max_device_moves");
    REBALANCE(y.max_link_moves = -1, MOE_EP_ERR_RANGE, "desc.max_link_moves");
    REBALANCE(y.max_replicas = -1, MOE_EP_ERR_RANGE, "desc.max_replicas");
    REBALANCE(y.layer_slots = few, MOE_EP_ERR_SLOTS, "desc.layer_slots");
    CHECK(err.index == 0 && err.value == 5);
    REBALANCE(y.layer_slots = many, MOE_EP_ERR_SLOTS, "desc.layer_slots");
    REBALANCE(y.layer_slots = layer, MOE_EP_OK, "");
    REBALANCE(y.layer_slots = twelve, MOE_EP_OK, "");
#undef REBALANCE
    REFUSED(moe_ep_rebalance(&x, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL, "out");
    REFUSED(moe_ep_rebalance(&x, &q, NULL, &none, &err), MOE_EP_ERR_SCRATCH, "scratch");
    placement_free(&p);
    placement_free(&q);
}
TEST(sizes_beyond_what_planners_count)
{
    const double loads[9] = {5, 4, 3, 2, 1, 1, 1, 1, 1};
    unsigned char memory[1 << 17];
    moe_ep_scratch scratch = moe_ep_scratch_fixed(memory, sizeof memory);
    moe_ep_copies_desc c;
    moe_ep_copies_point point[3];
    moe_ep_place_desc d = desc_of(1, 4, shape_of(2, 4, 1), loads);
    moe_ep_placement p;
    moe_ep_error err;
    int32_t counts[1], fewest;
    p = placement_new(1, 4, &d.shape);
    d.num_groups = 1000000000; /* best_placement looks at groups only where they divide the experts */
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, &scratch, &err), MOE_EP_OK);
    placement_free(&p);
    REFUSED(moe_ep_replicate(loads, (1 << 30) + 1, INT32_MAX, 0, counts, NULL, &err), MOE_EP_ERR_SIZE, "E");
    CHECK_NEAR(err.value, (1 << 30) + 1, 0, 0);
    memset(&c, 0, sizeof c);
    c.place = desc_of(1, 1, shape_of(INT32_MAX / 2 + 1, 0, 0), loads);
    c.max_extra = 1;
    REFUSED(moe_ep_min_copies(&c, NULL, &fewest, NULL, &err), MOE_EP_ERR_OVERFLOW, "desc.max_extra");
    c.place = desc_of(1, 9, shape_of(8, 0, 0), loads);
    c.policy = MOE_EP_PLACE_EPLB_GLOBAL;
    c.max_extra = 11;
    c.step = 5; /* beyond the range that is left: one point of three */
    memset(memory, 0xa5, sizeof memory);
    CHECK_I64(moe_ep_min_copies(&c, point, &fewest, &scratch, &err), MOE_EP_OK);
    CHECK(point[0].extra == 7 && point[1].extra == -1 && point[2].extra == -1);
    CHECK(point[2].worst + point[2].mean + point[2].max_sum + point[2].bytes <= 0);
}

#undef REFUSED

/* A device dies: the expert that lived only there is named, and put back by rebalance. */
TEST(dead_rank)
{
    const int32_t assign[8] = {0, 1, 0, 2, 1, 3, 2, 3}, alone[4] = {0, 1, 2, 3};
    const double w[4] = {10, 20, 30, 40};
    moe_ep_shape s = shape_of(4, 8, 1);
    moe_ep_placement p = placement_new(1, 4, &s), q = placement_new(1, 4, &s);
    moe_ep_check_result c;
    moe_ep_rebalance_desc x;
    moe_ep_plan_result r;
    moe_ep_error err;
    memcpy(p.slot_expert, assign, sizeof assign);
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    p.device_inactive[2] = 1; /* replicas left: 2 1 2 1 */
    CHECK_I64(moe_ep_validate(&p, 0, &c, &err), MOE_EP_OK);
    CHECK_I64(c.single_copies, 2);
    CHECK_I64(c.on_inactive, 2);
    placement_free(&p);
    s = shape_of(4, 4, 1);
    p = placement_new(1, 4, &s);
    memcpy(p.slot_expert, alone, sizeof alone);
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    p.device_inactive[2] = 1;
    CHECK_I64(moe_ep_validate(&p, 0, &c, &err), MOE_EP_ERR_LOST_EXPERT);
    CHECK_I64(err.index, 2);
    memset(&x, 0, sizeof x);
    x.current = &p;
    x.loads = w;
    CHECK_I64(moe_ep_rebalance(&x, &p, &r, NULL, &err), MOE_EP_ERR_SLOTS); /* three slots for four experts */
    placement_free(&p);
    placement_free(&q);
    s = shape_of(4, 8, 1);
    p = placement_new(1, 4, &s);
    for (int i = 0; i < 4; i++) p.slot_expert[2 * i] = i;
    CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
    p.device_inactive[2] = 1;
    x.current = &p;
    x.target = 10;
    CHECK_I64(moe_ep_rebalance(&x, &p, &r, NULL, &err), MOE_EP_OK);
    CHECK_I64(r.moves, 1);
    CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, &c, &err), MOE_EP_OK);
    CHECK_I64(c.on_inactive, 0);
    placement_free(&p);
}

/* ---- recorded loads
 * ------------------------------------------------------------------------------------------------ */

/* All numbers of a file after the first '['. */
static double *read_numbers(const char *path, int64_t *count)
{
    FILE *fp = fopen(path, "rb");
    char *text, *p, *e;
    long size;
    double *v;
    *count = 0;
    if (!fp) return NULL;
    fseek(fp, 0, SEEK_END);
    size = ftell(fp);
    rewind(fp);
    text = (char *)t_alloc((size_t)size + 1);
    v = (double *)t_alloc(sizeof(double) * ((size_t)size / 2 + 1));
    if (fread(text, 1, (size_t)size, fp) != (size_t)size) size = 0;
    fclose(fp);
    for (p = strchr(text, '['); p && *p;) {
        double x = strtod(p, &e);
        if (e == p) {
            p++;
            continue;
        }
        v[(*count)++] = x;
        p = e;
    }
    free(text);
    return v;
}

static const char *const recordings[4] = {"decode_in1000out1000", "decode_in2000out100", "prefill_in1024",
                                          "prefill_in4096"};

/* 61 layers x 256 experts; NULL when there is no such recording. */
static double *read_recording(const char *name)
{
    char path[1000];
    int64_t n = 0;
    double *v;
    if (!getenv("MOE_EP_TRACES")) return NULL;
    snprintf(path, sizeof path, "%.800s/deepseek_v3/%.100s.json", getenv("MOE_EP_TRACES"), name);
    v = read_numbers(path, &n);
    if (v && n != 61 * 256) {
        free(v);
        return NULL;
    }
    return v;
}

static double mean_balance(const moe_ep_plan_result *r, double *worst)
{
    double sum = 0;
    int l;
    *worst = 2;
    for (l = 3; l < 61; l++) {
        sum += 1 / r[l].imbalance / 58;
        if (1 / r[l].imbalance < *worst) *worst = 1 / r[l].imbalance;
    }
    return sum;
}

TEST(recorded_eplb)
{
    int f, seen = 0;
    for (f = 0; f < 4; f++) {
        double *w = read_recording(recordings[f]), worst, mean;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r[61];
        int hier;
        if (!w) continue;
        seen++;
        d = desc_of(61, 256, shape_of(32, 288, 4), w);
        p = placement_new(61, 256, &d.shape);
        for (hier = 0; hier < 2; hier++) {
            d.eplb_mode = hier ? MOE_EP_EPLB_HIERARCHICAL : MOE_EP_EPLB_GLOBAL;
            d.num_groups = 8;
            CHECK_I64(moe_ep_place_eplb(&d, &p, r, NULL, NULL), MOE_EP_OK);
            check_against_naive(&p, w, hier ? 8 : 1, hier ? 4 : 1);
            CHECK_NEAR(r[0].imbalance, 1, 0, 0); /* dense layer: no load */
            mean = mean_balance(r, &worst);
            if (f == 0) {
                CHECK_NEAR(mean, hier ? 0.7816 : 0.9930, 0, 6e-5);
                CHECK_NEAR(worst, hier ? 0.5162 : 0.9890, 0, 6e-5);
            }
            CHECK(hier ? mean > 0.75 : mean > 0.99);
        }
        if (f == 0) {
            int l, duplicates = 0;
            CHECK_I64(moe_ep_place_contiguous(&d, &p, r, NULL, NULL), MOE_EP_OK);
            mean = mean_balance(r, &worst);
            CHECK_NEAR(mean, 0.404, 0, 6e-4);
            CHECK_NEAR(worst, 0.118, 0, 6e-4);
            d.eplb_mode = MOE_EP_EPLB_GLOBAL;
            CHECK_I64(moe_ep_place_eplb(&d, &p, r, NULL, NULL), MOE_EP_OK);
            for (l = 3; l < 61; l++) duplicates += r[l].duplicates;
            CHECK_I64(duplicates, 23);
        }
        placement_free(&p);
        free(w);
    }
    if (!seen) SKIP("MOE_EP_TRACES is not set");
}

TEST(recorded_best)
{
    int f, seen = 0;
    for (f = 0; f < 4; f++) {
        double *w = read_recording(recordings[f]), worst, mean;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r[61];
        moe_ep_check_result c;
        if (!w) continue;
        seen++;
        d = desc_of(61, 256, shape_of(32, 288, 4), w);
        p = placement_new(61, 256, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, &c, NULL), MOE_EP_OK);
        CHECK_I64(c.duplicates, 0);
        mean = mean_balance(r, &worst);
        CHECK(mean > 0.9998);
        CHECK(worst > 0.9998);
        placement_free(&p);
        free(w);
    }
    if (!seen) SKIP("MOE_EP_TRACES is not set");
}

TEST(recorded_soft_nodes)
{
    int f, l, seen = 0;
    for (f = 0; f < 2; f++) {
        double *w = read_recording(recordings[3 * f]), worst, off = 0, total = 0;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r[61];
        if (!w) continue;
        seen++;
        d = desc_of(61, 256, shape_of(32, 288, 4), w);
        d.num_groups = 8;
        d.node_soft = 1;
        d.max_off_node = 0.1;
        p = placement_new(61, 256, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        CHECK(mean_balance(r, &worst) >= 0.97);
        for (l = 0; l < 61; l++) {
            off += r[l].off_node * r[l].total;
            total += r[l].total;
        }
        CHECK(off <= 0.1 * total);
        placement_free(&p);
        free(w);
    }
    if (!seen) SKIP("MOE_EP_TRACES is not set");
}

TEST(recorded_rebalance)
{
    int f, seen = 0;
    for (f = 0; f < 3; f++) {
        double *a = read_recording(recordings[f]), *b = read_recording(recordings[f + 1]), worst;
        moe_ep_place_desc d;
        moe_ep_placement p, q;
        moe_ep_plan_result r[61];
        moe_ep_rebalance_desc x;
        if (!a || !b) continue;
        seen++;
        d = desc_of(61, 256, shape_of(32, 288, 4), a);
        p = placement_new(61, 256, &d.shape);
        q = placement_new(61, 256, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        memset(&x, 0, sizeof x);
        x.current = &p;
        x.loads = b;
        x.target = 1 / 0.98;
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        (void)mean_balance(r, &worst);
        CHECK(worst >= 0.98 * (1 - 1e-9));
        CHECK(count_moves(&p, &q) <= 0.09 * 58 * 288);
        check_moves(&p, &q);
        placement_free(&p);
        placement_free(&q);
        free(a);
        free(b);
    }
    if (!seen) SKIP("MOE_EP_TRACES is not set");
}

/* ---- memory: what is asked for, what is written, what is kept -------------------------------------- */

static size_t lines_of(int64_t count, size_t elem) { return ((size_t)count * elem + 63u) / 64u * 64u; }

/* The eight arrays of a placement stand one behind the other, each on cache lines of its own, with nothing between. */
TEST(layout_without_waste)
{
    int L, E, D, P, i, j, tried = 0;
    for (L = 1; L <= 3; L += 2)
        for (E = 1; E <= 33; E += 2)
            for (D = 1; D <= 65; D += D < 17 ? 1 : 16)
                for (P = E; P <= E + 17; P += 5) {
                    moe_ep_shape shape = shape_of(D, P, 1);
                    moe_ep_placement p;
                    moe_ep_error err;
                    size_t bytes = moe_ep_placement_bytes(L, E, &shape), size[8], sum = 0;
                    unsigned char *memory = (unsigned char *)t_alloc(bytes + 64), *at[8];
                    memset(memory, 0x7f, bytes + 64);
                    CHECK_I64(moe_ep_placement_init(&p, L, E, &shape, memory, bytes, &err), MOE_EP_OK);
                    at[0] = (unsigned char *)p.slot_start, size[0] = lines_of(D + 1, 4);
                    at[1] = (unsigned char *)p.slot_device, size[1] = lines_of(P, 4);
                    at[2] = (unsigned char *)p.device_node, size[2] = lines_of(D, 4);
                    at[3] = (unsigned char *)p.slot_expert, size[3] = lines_of((int64_t)L * P, 4);
                    at[4] = (unsigned char *)p.replica_start, size[4] = lines_of((int64_t)L * (E + 1), 4);
                    at[5] = (unsigned char *)p.replica_slot, size[5] = lines_of((int64_t)L * P, 4);
                    at[6] = (unsigned char *)p.device_speed, size[6] = lines_of(D, 8);
                    at[7] = p.device_inactive, size[7] = lines_of(D, 1);
                    for (i = 0; i < 8; i++) {
                        sum += size[i];
                        CHECK(at[i] >= memory && at[i] + size[i] <= memory + bytes);
                        for (j = 0; j < i; j++) CHECK(at[i] + size[i] <= at[j] || at[j] + size[j] <= at[i]);
                    }
                    CHECK_I64(bytes, sum);
                    for (i = 0; i < L * P; i++) CHECK(p.slot_expert[i] == -1 && p.replica_slot[i] == -1);
                    for (i = 0; i < L * (E + 1); i++) CHECK_I64(p.replica_start[i], 0);
                    for (i = 0; i < P; i++) {
                        j = p.slot_device[i];
                        CHECK(p.slot_start[j] <= i && i < p.slot_start[j + 1]);
                    }
                    for (i = 0; i < D; i++) {
                        CHECK(p.device_node[i] == 0 && p.device_inactive[i] == 0);
                        CHECK_NEAR(p.device_speed[i], 1, 0, 0);
                    }
                    for (i = 0; i < 64; i++) CHECK_I64(memory[bytes + (size_t)i], 0x7f);
                    free(memory);
                    tried++;
                    STOP_IF_FAILED("case %d", tried);
                }
    CHECK(tried > 1000);
}

enum { EXPERTS = 32, DEVICES = 16, SLOTS = 48, LAYERS = 3, CALLS = 27 }; /* arrays fill their cache lines */

typedef struct digest {
    uint64_t value;
} digest;

static void digest_add(digest *h, const void *data, size_t n)
{
    const unsigned char *c = (const unsigned char *)data;
    size_t i;
    for (i = 0; i < n; i++) h->value = (h->value ^ c[i]) * 1099511628211u;
}

static void digest_placement(digest *h, const moe_ep_placement *p)
{
    size_t L = (size_t)p->num_layers, P = (size_t)p->num_slots, E = (size_t)p->num_experts, D = (size_t)p->num_devices;
    digest_add(h, p->slot_expert, L * P * 4);
    digest_add(h, p->replica_start, L * (E + 1) * 4);
    digest_add(h, p->replica_slot, L * P * 4);
    digest_add(h, p->device_speed, D * 8);
    digest_add(h, p->device_inactive, D);
}

static void digest_result(digest *h, const moe_ep_plan_result *r, int n)
{
    int i;
    for (i = 0; i < n; i++) {
        digest_add(h, &r[i].total, 8);
        digest_add(h, &r[i].mean, 8);
        digest_add(h, &r[i].max_before, 8);
        digest_add(h, &r[i].max, 8);
        digest_add(h, &r[i].lower_bound, 8);
        digest_add(h, &r[i].gap, 8);
        digest_add(h, &r[i].imbalance, 8);
        digest_add(h, &r[i].node_imbalance, 8);
        digest_add(h, &r[i].off_node, 8);
        digest_add(h, &r[i].slots_used, 4);
        digest_add(h, &r[i].duplicates, 4);
        digest_add(h, &r[i].max_replicas, 4);
        digest_add(h, &r[i].refinements, 4);
        digest_add(h, &r[i].moves, 4);
        digest_add(h, &r[i].busiest_device, 4);
    }
}

/* A placement in memory that begins full of `rubbish`. */
static moe_ep_placement placement_in_rubbish(int32_t L, int32_t E, const moe_ep_shape *shape, int rubbish)
{
    moe_ep_placement p;
    size_t bytes = moe_ep_placement_bytes(L, E, shape);
    void *memory = t_alloc(bytes);
    memset(memory, rubbish, bytes);
    CHECK_I64(moe_ep_placement_init(&p, L, E, shape, memory, bytes, NULL), MOE_EP_OK);
    return p;
}

static void rubbish_free(moe_ep_placement *p) { free(p->device_speed); }

/* One call of every function with scratch.  The output placements hold another plan before. */
static moe_ep_status one_call(int which, moe_ep_scratch *scratch, int rubbish, digest *h)
{
    static double w[2 * LAYERS * EXPERTS], speed[DEVICES];
    static int32_t pin[LAYERS * EXPERTS], home[LAYERS * EXPERTS], budget[LAYERS], list[LAYERS * SLOTS], counts[EXPERTS];
    static int64_t pairs[LAYERS * EXPERTS * EXPERTS];
    moe_ep_place_desc d = desc_of(LAYERS, EXPERTS, shape_of(DEVICES, SLOTS, 2), w);
    moe_ep_plan_result r[LAYERS];
    moe_ep_placement p, q;
    moe_ep_status status = MOE_EP_OK;
    uint64_t s = 77;
    int i;
    moe_ep_error err;
    memset(r, 0, sizeof r);
    memset(list, 0, sizeof list);
    for (i = 0; i < 2 * LAYERS * EXPERTS; i++) w[i] = exp(2.5 * t_unit(&s));
    for (i = 0; i < LAYERS * EXPERTS; i++) {
        pin[i] = i % 3 ? -1 : i * 5 % DEVICES;
        home[i] = i / (EXPERTS / 2) % 2;
    }
    for (i = 0; i < LAYERS * EXPERTS * EXPERTS; i++) pairs[i] = t_below(&s, 100);
    for (i = 0; i < DEVICES; i++) speed[i] = 1 + i % 3;
    for (i = 0; i < LAYERS; i++) budget[i] = EXPERTS + 5 * i;
    for (i = 0; i < EXPERTS; i++) counts[i] = 1 + i % 3;
    p = placement_in_rubbish(LAYERS, EXPERTS, &d.shape, rubbish);
    q = placement_in_rubbish(LAYERS, EXPERTS, &d.shape, rubbish);
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_place_lpt(&d, &q, NULL, NULL, &err), MOE_EP_OK);
    d.max_refinements = 40;
    switch (which) {
    case 0: status = moe_ep_place_round_robin(&d, &p, r, scratch, &err); break;
    case 1: status = moe_ep_place_contiguous(&d, &p, r, scratch, &err); break;
    case 2: d.num_steps = 2, d.risk_z = 0.5; break;
    case 3: d.eplb_mode = MOE_EP_EPLB_GLOBAL; break;
    case 4: d.num_groups = 8; break;
    case 5: d.num_groups = 32; break;
    case 6: status = moe_ep_place_trtllm(&d, &p, r, scratch, &err); break;
    case 7: break;
    case 8: d.pinned = pin; break;
    case 9: d.shape.speed = speed; break;
    case 10: d.coactivation = pairs, d.coactivation_slack = 0.1; break;
    case 11: d.node_soft = 1, d.num_groups = 8, d.max_off_node = 0.1; break;
    case 12: d.node_soft = 1, d.home_node = home, d.max_off_node = 0.2; break;
    case 13: d.layer_slots = budget, d.max_replicas = 2; break;
    case 14: d.num_steps = 2, d.risk_z = 1, d.max_refinements = 0; break;
    case 15: status = moe_ep_lpt(w, EXPERTS, DEVICES, list, scratch, &err); break;
    case 16: status = moe_ep_lpt_replicas(w, EXPERTS, counts, DEVICES, list, scratch, &err); break;
    case 17: status = moe_ep_replicate(w, EXPERTS, SLOTS, 3, list, scratch, &err); break;
    case 18: {
        moe_ep_bound_result b;
        memset(&b, 0, sizeof b);
        d.shape.num_slots = EXPERTS;
        status = moe_ep_lower_bound(w, EXPERTS, &d.shape, &b, scratch, &err);
        digest_add(h, &b.value, 8);
        break;
    }
    case 19: status = moe_ep_evaluate(&p, w, 2, r, scratch, &err); break;
    case 20: case 21: {
        moe_ep_copies_desc c;
        moe_ep_copies_point points[5];
        memset(&c, 0, sizeof c);
        memset(points, 0, sizeof points);
        c.place = d;
        c.policy = which == 20 ? MOE_EP_PLACE_BEST : MOE_EP_PLACE_EPLB_GLOBAL;
        c.max_extra = 64;
        c.step = 16;
        c.expert_bytes = 7;
        status = moe_ep_min_copies(&c, points, NULL, scratch, &err);
        for (i = 0; i < 5; i++) {
            digest_add(h, &points[i].extra, 4);
            digest_add(h, &points[i].worst, 8);
            digest_add(h, &points[i].mean, 8);
            digest_add(h, &points[i].max_sum, 8);
            digest_add(h, &points[i].bytes, 8);
        }
        break;
    }
    case 22: case 23: {
        static const int64_t totals[4] = {0, 3, 8, 40};
        d.max_refinements = 3;
        d.num_steps = which == 22 ? 0 : 2;
        d.num_experts = 16;
        d.shape = shape_of(16, 24, 2);
        status = which == 22 ? moe_ep_replica_budgets(&d, 7, list, scratch, &err)
                             : moe_ep_replica_budget_row(&d, totals, 4, list, scratch, &err);
        break;
    }
    case 24: {
        moe_ep_rebalance_desc b;
        memset(&b, 0, sizeof b);
        b.current = &q;
        b.loads = w + LAYERS * EXPERTS;
        b.max_link_moves = 1;
        b.max_moves = 20;
        status = moe_ep_rebalance(&b, &p, r, scratch, &err);
        break;
    }
    case 25: {
        moe_ep_move moves[LAYERS * SLOTS];
        moe_ep_moves_result m;
        memset(moves, 0, sizeof moves);
        memset(&m, 0, sizeof m);
        status = moe_ep_plan_moves(&q, &p, 1, moves, LAYERS * SLOTS, &m, scratch, &err);
        for (i = 0; i < m.moves; i++) digest_add(h, &moves[i].round, 4);
        digest_add(h, &m.rounds, 8);
        break;
    }
    case 26: status = moe_ep_relabel(&q, &p, 0, scratch, &err); break;
    }
    if (which == 2) status = moe_ep_place_lpt(&d, &p, r, scratch, &err);
    if (which >= 3 && which <= 5) status = moe_ep_place_eplb(&d, &p, r, scratch, &err);
    if (which >= 7 && which <= 14) status = moe_ep_best_placement(&d, &p, r, scratch, &err);
    digest_placement(h, &p);
    digest_result(h, r, LAYERS);
    digest_add(h, list, sizeof list);
    rubbish_free(&p);
    rubbish_free(&q);
    return status;
}

/* With exactly the bytes asked for, and whatever stood in them and in the outputs before, every function gives the
 * same and writes nothing behind; with one byte less it refuses. */
TEST(scratch_of_exact_size)
{
    static const int rubbish[3] = {0x7f, 0xff, 0};
    int which, k;
    for (which = 0; which < CALLS; which++) {
        digest first = {0};
        for (k = 0; k < 3; k++) {
            digest h = {0};
            moe_ep_scratch s = moe_ep_scratch_fixed(NULL, 0);
            unsigned char *raw = NULL, *at = NULL;
            size_t need = 0, i;
            moe_ep_status status = MOE_EP_ERR_SCRATCH;
            int round;
            for (round = 0; status == MOE_EP_ERR_SCRATCH && round < 3; round++) { /* plan_moves opens twice */
                if (round > 0) CHECK(s.need > need);
                free(raw);
                need = s.need;
                raw = (unsigned char *)t_alloc(need + 256);
                memset(raw, rubbish[k], need + 256);
                at = raw + ((64 - ((uintptr_t)raw & 63)) & 63) + 1; /* the arena then ends where the bytes end */
                memset(at + need, 0x5a, 64);
                s = moe_ep_scratch_fixed(at, need);
                h.value = 0;
                status = one_call(which, &s, rubbish[k], &h);
            }
            CHECK_I64(status, MOE_EP_OK);
            CHECK_I64(s.need, need);
            for (i = 0; i < 64; i++) CHECK_I64(at[need + i], 0x5a);
            if (k == 0) first = h;
            CHECK(h.value == first.value);
            free(raw);
            STOP_IF_FAILED("call %d", which);
        }
    }
}

/* ---- one step at a time ---------------------------------------------------------------------------- */

/* Times of the two devices of a layer. */
static void two_times(const moe_ep_placement *p, const double *w, const double *speed, double *time)
{
    int d;
    CHECK_I64(moe_ep_device_loads(p, w, time, NULL), MOE_EP_OK);
    for (d = 0; speed && d < 2; d++) time[d] /= speed[d];
}

/* The lowest maximum that one exchange between both devices, or one expert into a free slot, can give; 1e300: none is
 * allowed.  m: the busier device.  pairs: two for two instead. */
static double best_exchange(const moe_ep_placement *p, const double *w, const int32_t *pin, const double *speed, int m,
                            int pairs)
{
    double load[2], best = 1e300, of[2][64];
    int32_t cell[2][64], n[2] = {0, 0}, free_cells[2], i, j, k, q, d, s;
    CHECK_I64(moe_ep_device_loads(p, w, load, NULL), MOE_EP_OK);
    for (d = 0; d < 2; d++) {
        for (s = p->slot_start[d]; s < p->slot_start[d + 1]; s++) {
            int32_t e = p->slot_expert[s];
            if (e < 0) continue;
            cell[d][n[d]] = e;
            of[d][n[d]++] = w[e] / (p->replica_start[e + 1] - p->replica_start[e]);
        }
        free_cells[d] = p->slot_start[d + 1] - p->slot_start[d] - n[d];
    }
    for (i = 0; i < n[m]; i++) {
        int32_t e = cell[m][i];
        if (on_device(p, 1 - m, e) || (pin && pin[e] == m)) continue;
        for (j = free_cells[1 - m] > 0 && !pairs ? -1 : 0; j < n[1 - m]; j++) {
            double delta = of[m][i] - (j < 0 ? 0 : of[1 - m][j]), now[2], worst;
            if (j >= 0 && (on_device(p, m, cell[1 - m][j]) || (pin && pin[cell[1 - m][j]] == 1 - m))) continue;
            for (k = pairs ? i + 1 : n[m]; k < n[m] + !pairs; k++)
                for (q = pairs ? j + 1 : n[1 - m]; q < n[1 - m] + !pairs; q++) {
                    double both = delta + (pairs ? of[m][k] - of[1 - m][q] : 0);
                    now[m] = (load[m] - both) / (speed ? speed[m] : 1);
                    now[1 - m] = (load[1 - m] + both) / (speed ? speed[1 - m] : 1);
                    worst = now[0] > now[1] ? now[0] : now[1];
                    if (worst < best) best = worst;
                }
        }
    }
    return best;
}

/* On two devices the first refinement is the best exchange there is: one expert for one, and where none of those
 * helps, two for two (devices of at most 16 experts). */
TEST(first_refinement_is_the_best)
{
    uint64_t s = t_seed;
    int n, i, single = 0, twos = 0, kind_of[4] = {0};
    for (n = 0; n < 1600; n++) {
        int kind = n % 4, S = 2 + (int)t_below(&s, n % 3 ? 4 : 15), E, P = 2 * S, m;
        double w[32], speed[2] = {1, 1}, time[2], before, single_best, goal, want;
        int32_t pin[32];
        moe_ep_place_desc d;
        moe_ep_placement p, q;
        moe_ep_plan_result r;
        E = kind == 0 || n % 5 ? P : P - 1 - (int)t_below(&s, S - 1);
        for (i = 0; i < 32; i++) pin[i] = -1;
        for (i = 0; i < E; i++) w[i] = n % 3 ? floor(1 + 40 * t_unit(&s)) : 10 + 3 * (double)t_below(&s, 2);
        if (n % 3 == 0)
            for (i = 0; i < E; i++) w[i] += t_below(&s, 3) == 0 ? 5 : 0;
        if (kind == 1) speed[0] = 1 + 2 * t_unit(&s), speed[1] = 0.5 + t_unit(&s);
        if (kind == 2)
            for (i = 0; i < E; i += 3) pin[i] = (int32_t)t_below(&s, i / 3 < S ? 2 : 1);
        if (kind == 2)
            for (i = 0, m = 0; i < E; i++) /* no more than fit */
                if (pin[i] >= 0 && ++m > S) pin[i] = -1;
        d = desc_of(1, E, shape_of(2, P, 1), w);
        if (kind == 1) d.shape.speed = speed;
        if (kind == 2) d.pinned = pin;
        d.max_replicas = kind == 3 ? 2 : 1; /* 1: spare slots stay empty; also keeps EPLB's plan out */
        d.max_refinements = -1;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        CHECK_I64(r.refinements, 0);
        two_times(&p, w, d.shape.speed, time);
        m = time[1] > time[0];
        before = time[m];
        goal = r.mean * (1 + 1e-3);
        single_best = best_exchange(&p, w, d.pinned, d.shape.speed, m, 0);
        d.max_refinements = 1;
        r = plan_one(moe_ep_best_placement, &d, &q, NULL);
        if (before > goal) {
            want = single_best;
            if (!(single_best < before * (1 - 1e-9)) && kind == 0 && E == P)
                want = best_exchange(&p, w, NULL, NULL, m, 1);
            if (want < before * (1 - 1e-9)) {
                CHECK_NEAR(r.max, want, 1e-9, 0);
                CHECK(r.refinements == (single_best < before * (1 - 1e-9) ? 1 : 2));
                single += r.refinements == 1;
                twos += r.refinements == 2;
                kind_of[kind]++;
            } else {
                CHECK(r.max <= before * (1 + 1e-12));
            }
        }
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %d single, %d double; %d %d %d %d by kind\n", single, twos, kind_of[0], kind_of[1], kind_of[2],
           kind_of[3]);
    CHECK(single >= 100 && twos >= 5);
}

/* Devices of 16 experts each, where only two for two levels the loads. */
TEST(two_for_two_on_full_devices)
{
    uint64_t s = t_seed;
    int n, i, seen = 0;
    for (n = 0; n < 400; n++) {
        double w[32], time[2], before;
        moe_ep_place_desc d;
        moe_ep_placement p, q;
        moe_ep_plan_result r;
        int m;
        for (i = 0; i < 32; i++) w[i] = (double)(t_below(&s, 3) == 0 ? 15 : 10 + 3 * t_below(&s, 2));
        d = desc_of(1, 32, shape_of(2, 32, 1), w);
        d.max_refinements = -1;
        d.max_replicas = 1;
        (void)plan_one(moe_ep_best_placement, &d, &p, time);
        m = time[1] > time[0];
        before = time[m];
        d.max_refinements = 1;
        r = plan_one(moe_ep_best_placement, &d, &q, NULL);
        if (before > r.mean * 1.001 && !(best_exchange(&p, w, NULL, NULL, m, 0) < before - 1e-6)) {
            double want = best_exchange(&p, w, NULL, NULL, m, 1);
            CHECK_NEAR(r.max, want < before ? want : before, 1e-12, 0);
            seen += want < before;
        }
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %d of %d needed two for two\n", seen, n);
    CHECK(seen >= 10);
}

/* ---- the slots of a layer with a budget ------------------------------------------------------------ */

/* A layer of E single experts and a budget of E slots fills every device's share exactly: floor(E/D) each, and one
 * more for E mod D devices in a row that begins where l*(E mod D) mod D says.  Room beyond is never touched. */
TEST(shares_rotate_over_the_layers)
{
    uint64_t s = t_seed;
    int n, i, l;
    for (n = 0; n < 200; n++) {
        int D = 2 + (int)t_below(&s, 16), q = 1 + (int)t_below(&s, 2), odd = (int)t_below(&s, D);
        int E = q * D + odd, L = 5;
        double w[5 * 64];
        int32_t slots[5], e;
        moe_ep_shape shape = shape_of(D, (q + 2) * D, 1);
        moe_ep_place_desc d;
        moe_ep_placement p;
        for (i = 0; i < L * E; i++) w[i] = 1 + 9 * t_unit(&s);
        for (l = 0; l < L; l++) slots[l] = E;
        d = desc_of(L, E, shape, w);
        d.layer_slots = slots;
        d.max_refinements = n % 2 ? 20 : -1;
        p = placement_in_rubbish(L, E, &shape, n % 4 < 2 ? 0x7f : 0);
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++)
            for (i = 0; i < D; i++) {
                int used = 0, place = (i - l * odd % D + D) % D;
                for (e = p.slot_start[i]; e < p.slot_start[i + 1]; e++) used += p.slot_expert[l * p.num_slots + e] >= 0;
                CHECK_I64(used, q + (place < odd));
            }
        rubbish_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Rebalanced with the budgets it was planned with, no layer grows beyond them and no device beyond its share; without
 * them layers grow. */
TEST(rebalance_keeps_budgets)
{
    const double one_hot[4] = {10, 10, 10, 100};
    const int32_t singles[8] = {0, -1, 1, -1, 2, -1, 3, -1}, five[1] = {5};
    const int cases = t_slow() > 1 ? 60 : 300;
    uint64_t s = t_seed;
    int n, i, l, e, grown = 0, changed = 0, above = 0, over = 0;
    moe_ep_rebalance_desc x;
    moe_ep_plan_result r[4], best[4];
    moe_ep_shape shape = shape_of(4, 8, 1);
    moe_ep_placement p = placement_new(1, 4, &shape), q = placement_new(1, 4, &shape);
    memcpy(p.slot_expert, singles, sizeof singles);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    memset(&x, 0, sizeof x);
    x.current = &p;
    x.loads = one_hot;
    for (n = 0; n < 3; n++) {
        x.layer_slots = n == 1 ? five : NULL;
        x.max_replicas = n == 2 ? 2 : 0;
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r[0].max, n == 0 ? 35 : 50, 1e-12, 0);
        CHECK_NEAR(r[0].lower_bound, n == 0 ? 32.5 : 50, 1e-9, 0);
        CHECK_I64(r[0].slots_used, n == 0 ? 8 : 5);
    }
    placement_free(&p);
    placement_free(&q);
    for (n = 0; n < cases; n++) {
        int D = 2 + (int)t_below(&s, 6), S = 2 + (int)t_below(&s, 3), P = D * S, L = 4;
        int dead = n % 3 == 2 && D > 2, E = 1 + (int)t_below(&s, P - dead * S), next = 0, alive = (D - dead) * S;
        double a[4 * 40], b[4 * 40], speed[7];
        int32_t slots[4], few[4], held[4];
        moe_ep_place_desc d;
        for (l = 0; l < L; l++) slots[l] = E + (int32_t)t_below(&s, alive - E + 1);
        for (i = 0; i < L * E; i++) {
            a[i] = exp(2 * t_unit(&s));
            b[i] = exp(2 * t_unit(&s));
        }
        for (i = 0; i < D; i++) speed[i] = n % 4 == 3 ? 0.5 + t_unit(&s) : 1;
        shape = shape_of(D, P, 1);
        shape.speed = speed;
        d = desc_of(L, E, shape, a);
        d.layer_slots = slots;
        d.max_replicas = n % 5 == 4 ? 2 : 0;
        p = placement_new(L, E, &shape);
        q = placement_new(L, E, &shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, r, NULL, NULL), MOE_EP_OK);
        if (dead) p.device_inactive[D - 1] = 1;
        memset(&x, 0, sizeof x);
        x.current = &p;
        x.loads = b;
        x.max_moves = n % 2 ? 3 : 0;
        x.max_replicas = d.max_replicas;
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) grown += r[l].slots_used > slots[l];
        x.layer_slots = slots;
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        d.loads = b;
        d.shape.inactive = p.device_inactive;
        for (l = 0; l < L; l++) {
            int want[7], used, room = D - dead;
            for (i = 0; i < D; i++) want[i] = i < room ? slots[l] / room : 0;
            for (i = slots[l] % room; i > 0 && slots[l] < alive; i--, next = (next + 1) % room) want[next]++;
            if (slots[l] >= alive)
                for (i = 0; i < room; i++) want[i] = S;
            CHECK(r[l].slots_used <= slots[l]);
            CHECK(d.max_replicas == 0 || r[l].max_replicas <= 2);
            for (i = 0; i < D; i++) {
                int before = 0;
                for (used = 0, e = i * S; e < i * S + S; e++) {
                    used += q.slot_expert[l * P + e] >= 0;
                    before += p.slot_expert[l * P + e] >= 0;
                }
                if (i < room) CHECK(used <= (before > want[i] ? before : want[i]));
                else CHECK_I64(used, 0);
            }
            changed += r[l].refinements > 0;
        }
        CHECK_I64(moe_ep_best_placement(&d, &q, best, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            CHECK(r[l].lower_bound <= best[l].max * (1 + 1e-9));
            above += r[l].max > best[l].max * 1.05;
        }
        for (l = 0; l < L; l++) { /* who fills more than the budget keeps that, as if it were the budget */
            for (e = 0, held[l] = 0; e < (D - dead) * S; e++) held[l] += p.slot_expert[l * P + e] >= 0;
            few[l] = E;
            if (held[l] < E) held[l] = E;
        }
        x.layer_slots = few;
        CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
        x.layer_slots = held;
        CHECK_I64(moe_ep_rebalance(&x, &p, best, NULL, NULL), MOE_EP_OK); /* in place */
        for (l = 0; l < L; l++)
            if (held[l] > E) {
                CHECK(memcmp(p.slot_expert + l * P, q.slot_expert + l * P, sizeof(int32_t) * (size_t)P) == 0);
                CHECK(r[l].slots_used <= held[l] && r[l].moves == best[l].moves);
                over++;
            }
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %d layers would have grown, %d changed, %d end 5 %% above the best plan\n", grown, changed, above);
    CHECK(grown > cases / 2 && changed > cases && over > cases);
}

/* Layers with other budgets, and dead devices: each layer begins behind the device that took the last odd slot. */
TEST(odd_slots_go_round_over_all_layers)
{
    const double ten[16] = {10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10};
    const int32_t example[4] = {5, 4, 6, 4}, has[4][4] = {{2, 1, 1, 1}, {1, 1, 1, 1}, {1, 2, 2, 1}, {1, 1, 1, 1}};
    uint64_t s = t_seed;
    int n, i, l, e, odd = 0;
    moe_ep_shape shape = shape_of(4, 8, 1);
    moe_ep_place_desc d = desc_of(4, 4, shape, ten);
    moe_ep_placement p = placement_new(4, 4, &shape);
    d.layer_slots = example;
    d.max_refinements = -1;
    CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
    for (l = 0; l < 4; l++)
        for (i = 0; i < 4; i++)
            CHECK_I64((p.slot_expert[l * 8 + 2 * i] >= 0) + (p.slot_expert[l * 8 + 2 * i + 1] >= 0), has[l][i]);
    placement_free(&p);
    for (n = 0; n < 200; n++) {
        int D = 3 + (int)t_below(&s, 10), live = D - (n % 3 == 0), dead = (int)t_below(&s, D), next = 0, full = 1;
        int E = live + (int)t_below(&s, live), L = 7, total[13] = {0}, least = 1 << 30, most = 0;
        double w[7 * 26];
        int32_t slots[7];
        uint8_t down[13] = {0};
        down[dead] = live < D;
        for (i = 0; i < L * E; i++) w[i] = 1 + 3 * t_unit(&s);
        for (l = 0; l < L; l++) slots[l] = E + (int32_t)t_below(&s, 4 * live - E);
        shape = shape_of(D, 4 * D, 1);
        shape.inactive = down;
        d = desc_of(L, E, shape, w);
        d.layer_slots = slots;
        d.max_refinements = -1;
        p = placement_in_rubbish(L, E, &shape, 0x7f);
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            int want[13], used, all = 0;
            for (i = 0; i < D; i++) want[i] = down[i] ? 0 : slots[l] / live;
            for (i = slots[l] % live; i > 0; next = (next + 1) % D)
                if (!down[next]) want[next]++, i--;
            for (e = 0; e < 4 * D; e++) all += p.slot_expert[l * 4 * D + e] >= 0;
            full &= all == slots[l];
            for (i = 0; i < D; i++) {
                for (used = 0, e = 4 * i; e < 4 * i + 4; e++) used += p.slot_expert[l * 4 * D + e] >= 0;
                CHECK(used <= want[i] && (all < slots[l] || used == want[i]));
                total[i] += used - slots[l] / live;
            }
        }
        for (i = 0; i < D; i++) {
            if (down[i]) continue;
            if (total[i] < least) least = total[i];
            if (total[i] > most) most = total[i];
        }
        CHECK(!full || most - least <= 1);
        odd += full && most > least;
        rubbish_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(odd > 100);
}

/* Pins above a device's share: the device takes them all, and another gives a slot for each, those with most to give
 * first (lowest index on ties).  Dead devices take no part. */
TEST(shares_with_pins_above_them)
{
    uint64_t s = t_seed;
    int n, i, j;
    for (n = 0; n < 400; n++) {
        int D = 3 + (int)t_below(&s, 4), q = 1 + (int)t_below(&s, 2), E = q * D, to = (int)t_below(&s, D);
        int over, used[8];
        double w[64];
        int32_t slots = E, pin[64], e, share[8], held[8] = {0};
        moe_ep_shape shape = shape_of(D, (q + 3) * D, 1);
        moe_ep_place_desc d;
        moe_ep_placement p;
        over = 1 + (int)t_below(&s, 2);
        for (i = 0; i < E; i++) {
            w[i] = 1 + 9 * t_unit(&s);
            pin[i] = i < q + over ? to : -1;
        }
        if (n % 2) { /* the pinned ones last */
            for (i = 0; i < E; i++) pin[i] = E - 1 - i < q + over ? to : -1;
        }
        for (i = 0; i < D; i++) share[i] = q;
        for (i = 0; i < E; i++)
            if (pin[i] >= 0) held[pin[i]]++;
        share[to] = held[to];
        for (i = 0; i < over; i++) {
            int32_t give = 0;
            for (j = 1; j < D; j++)
                if (share[j] - held[j] > share[give] - held[give]) give = j;
            share[give]--;
        }
        d = desc_of(1, E, shape, w);
        d.layer_slots = &slots;
        d.pinned = pin;
        d.max_refinements = n % 4 < 2 ? 20 : -1;
        p = placement_in_rubbish(1, E, &shape, 0x7f);
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < D; i++) {
            for (used[i] = 0, e = p.slot_start[i]; e < p.slot_start[i + 1]; e++) used[i] += p.slot_expert[e] >= 0;
            CHECK_I64(used[i], share[i]);
        }
        for (i = 0; i < E; i++)
            if (pin[i] >= 0) CHECK(on_device(&p, to, i));
        rubbish_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Speeds that are all 1 are no speeds: every planner gives what it gives without; others are refused by those that
 * know none. */
TEST(speeds_of_one)
{
    uint64_t s = t_seed;
    static const planner all[6] = {moe_ep_place_round_robin, moe_ep_place_contiguous, moe_ep_place_lpt,
                                   moe_ep_place_eplb, moe_ep_place_trtllm, moe_ep_best_placement};
    int n, i, k;
    for (n = 0; n < 30; n++) {
        double w[12], speed[4] = {1, 1, 1, 1};
        moe_ep_place_desc d, with;
        for (i = 0; i < 12; i++) w[i] = (double)(1 + t_below(&s, 50));
        d = with = desc_of(1, 12, shape_of(4, 16, 1), w);
        with.shape.speed = speed;
        for (k = 0; k < 6; k++) {
            moe_ep_placement p, q;
            moe_ep_error err;
            moe_ep_plan_result a = plan_one(all[k], &d, &p, NULL), b = plan_one(all[k], &with, &q, NULL);
            CHECK_NEAR(a.max, b.max, 1e-12, 0);
            CHECK(memcmp(p.slot_expert, q.slot_expert, 16 * 4) == 0);
            if (k == 3 || k == 4) {
                speed[i = (int)t_below(&s, 4)] = n % 2 ? 1.5 : 0.75;
                CHECK_I64(all[k](&with, &q, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
                CHECK_I64(err.index, i);
                speed[i] = 1;
            }
            placement_free(&p);
            placement_free(&q);
        }
    }
}

/* An assignment replaces all that the placement held before. */
TEST(devices_into_a_used_placement)
{
    uint64_t s = t_seed;
    int n, i;
    for (n = 0; n < 50; n++) {
        int D = 2 + (int)t_below(&s, 4), E = 3 + (int)t_below(&s, 6), L = 1 + n % 2;
        moe_ep_shape shape = shape_of(D, D * (E + n % 3), 1);
        moe_ep_placement p = placement_new(L, E, &shape), q = placement_new(L, E, &shape);
        int32_t device[18];
        for (i = 0; i < L * p.num_slots; i++) p.slot_expert[i] = (int32_t)t_below(&s, E + 1) - 1;
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        for (i = 0; i < L * E; i++) device[i] = (int32_t)t_below(&s, D);
        CHECK_I64(moe_ep_devices_placement(device, NULL, &p, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_devices_placement(device, NULL, &q, NULL), MOE_EP_OK);
        CHECK(memcmp(p.slot_expert, q.slot_expert, sizeof(int32_t) * (size_t)(L * p.num_slots)) == 0);
        CHECK(memcmp(p.replica_slot, q.replica_slot, sizeof(int32_t) * (size_t)(L * p.num_slots)) == 0);
        for (i = 0; i < L * E; i++) {
            int32_t at = p.replica_slot[i / E * p.num_slots + p.replica_start[i / E * (E + 1) + i % E]];
            CHECK_I64(p.replica_start[i / E * (E + 1) + i % E + 1] - p.replica_start[i / E * (E + 1) + i % E], 1);
            CHECK_I64(p.slot_device[at], device[i]);
        }
        placement_free(&p);
        placement_free(&q);
    }
}

/* ---- rebalance against every placement there is ---------------------------------------------------- */

typedef struct every {
    int E, D, S, num_sets, limit; /* limit: arrivals per device, 0 = any */
    const double *w, *speed;
    const uint8_t *down;
    int set[32], was[3]; /* experts as bits */
    double best[16];     /* lowest maximum with at most so many moves */
} every;

static int bits_of(int x)
{
    int n = 0;
    for (; x; x &= x - 1) n++;
    return n;
}

static void every_placement(every *v)
{
    int a[3], d, e, k;
    for (k = 0; k < 16; k++) v->best[k] = 1e300;
    for (v->num_sets = 0, k = 0; k < 1 << v->E; k++)
        if (bits_of(k) <= v->S) v->set[v->num_sets++] = k;
    for (a[0] = 0; a[0] < (v->down[0] ? 1 : v->num_sets); a[0]++)
        for (a[1] = 0; a[1] < (v->down[1] ? 1 : v->num_sets); a[1]++)
            for (a[2] = 0; a[2] < (v->down[2] ? 1 : v->num_sets); a[2]++) {
                double worst = 0, share[5];
                int moves = 0, ok = 1;
                if ((v->set[a[0]] | v->set[a[1]] | v->set[a[2]]) != (1 << v->E) - 1) continue;
                for (d = 0; d < 3; d++) {
                    int come = bits_of(v->set[a[d]] & ~v->was[d]);
                    moves += come;
                    if (v->limit > 0 && come > v->limit) ok = 0;
                }
                if (!ok) continue;
                for (e = 0; e < v->E; e++)
                    share[e] = v->w[e] / ((v->set[a[0]] >> e & 1) + (v->set[a[1]] >> e & 1) + (v->set[a[2]] >> e & 1));
                for (d = 0; d < 3; d++) {
                    double load = 0;
                    for (e = 0; e < v->E; e++)
                        if (v->set[a[d]] >> e & 1) load += share[e];
                    if (load / v->speed[d] > worst) worst = load / v->speed[d];
                }
                for (k = moves; k < 16; k++)
                    if (worst < v->best[k]) v->best[k] = worst;
            }
}

/* Three devices of two slots: rebalance is compared with all placements.  It never claims what none of them has, and
 * on average it stays close to the best with as many moves as it may make (kind 0: no limit, 1: a target, 2: max_moves,
 * 3: arrivals per device, 4: speeds, 5: a dead device). */
TEST(rebalance_beside_every_placement)
{
    uint64_t s = 20240607u;
    static const int least_exact[6] = {343, 450, 350, 310, 159, 297};
    static const double most_gap[6] = {0.02225, 0.00447, 0.02310, 0.02635, 0.05610, 0.00915};
    static const double most_extra[6] = {-0.136, 0.010, -0.132, -0.274, -0.460, 0.035};
    double gap[6] = {0}, extra[6] = {0};
    int n, i, d, exact[6] = {0}, tried[6] = {0};
    for (n = 0; n < 3000; n++) {
        int kind = n % 6, E = 3 + (int)t_below(&s, 3), k, moves = 0, least;
        double w[5], speed[3] = {1, 1, 1}, level, mean = 0, fast = 0, want;
        uint8_t down[3] = {0, 0, 0};
        moe_ep_shape shape = shape_of(3, 6, 1);
        moe_ep_placement p = placement_new(1, E, &shape), q = placement_new(1, E, &shape);
        moe_ep_rebalance_desc b;
        moe_ep_plan_result r;
        moe_ep_error err;
        every v;
        memset(&v, 0, sizeof v);
        memset(&b, 0, sizeof b);
        memset(&r, 0, sizeof r);
        if (kind == 5 && E > 4) {
            placement_free(&p);
            placement_free(&q);
            continue;
        }
        for (i = 0; i < E; i++) w[i] = n % 4 == 0 ? (double)(1 + t_below(&s, 9)) : exp(2.5 * t_unit(&s));
        if (kind == 4)
            for (d = 0; d < 3; d++) speed[d] = 0.5 + 1.5 * t_unit(&s);
        for (k = 0; k < 6;) { /* a full placement without doubles that has every expert */
            int all = 0;
            for (d = 0; d < 3; d++) {
                int32_t one = (int32_t)t_below(&s, E), two = (int32_t)t_below(&s, E - 1);
                p.slot_expert[2 * d] = one;
                p.slot_expert[2 * d + 1] = two + (two >= one);
                v.was[d] = 1 << one | 1 << (two + (two >= one));
                all |= v.was[d];
            }
            if (all == (1 << E) - 1) break;
        }
        if (kind == 5) down[t_below(&s, 3)] = 1;
        for (d = 0; d < 3; d++) {
            p.device_speed[d] = speed[d];
            p.device_inactive[d] = down[d];
            if (!down[d]) fast += speed[d];
        }
        for (i = 0; i < E; i++) mean += w[i];
        mean /= fast;
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        b.current = &p;
        b.loads = w;
        if (kind == 1) b.target = 1.05 + 0.3 * t_unit(&s);
        if (kind == 2) b.max_moves = 1 + n / 6 % 3;
        if (kind == 3) b.max_device_moves = v.limit = 1;
        CHECK_I64(moe_ep_rebalance(&b, &q, &r, NULL, &err), MOE_EP_OK);
        v.E = E, v.D = 3, v.S = 2, v.w = w, v.speed = speed, v.down = down;
        every_placement(&v);
        for (d = 0; d < 3; d++)
            for (i = 0; i < 2; i++) {
                int32_t e = q.slot_expert[2 * d + i];
                moves += e >= 0 && !(v.was[d] >> e & 1);
            }
        CHECK_I64(r.moves, moves);
        CHECK(r.max >= v.best[moves] * (1 - 1e-9));
        if (kind == 2) CHECK(moves <= b.max_moves);
        least = kind == 2 ? (int)b.max_moves : 15;
        want = v.best[least];
        level = mean * (b.target > 1 ? b.target : 1);
        if (want < level) want = level;
        for (k = 0; v.best[k] > want * (1 + 1e-12); k++) {} /* fewest moves that reach it */
        tried[kind]++;
        exact[kind] += r.max <= want * (1 + 1e-9);
        gap[kind] += (r.max > want ? r.max / want : 1) - 1;
        extra[kind] += moves - k;
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
    for (i = 0; i < 6; i++)
        printf("    kind %d: %d of %d as good as any, %.5f above, %.4f moves more\n", i, exact[i], tried[i],
               gap[i] / tried[i], extra[i] / tried[i]);
    for (i = 0; i < 6; i++)
        CHECK(exact[i] >= least_exact[i] && gap[i] / tried[i] <= most_gap[i] && extra[i] / tried[i] <= most_extra[i]);
}

/* Speeds far apart: an expert with copies on slow devices can be better off alone on a fast one.  Any slots, any start,
 * beside every placement there is. */
TEST(lone_copies_beside_every_placement)
{
    static const double most_gap[3] = {0.0103, 0.0210, 0.0257};
    static const int least_exact[3] = {455, 388, 380};
    double gap[3] = {0};
    int n, i, exact[3] = {0};
    uint64_t s = 20240607u;
    for (n = 0; n < 1500; n++) {
        int kind = n % 3, D = 2 + (int)t_below(&s, 2), P = 0, E;
        int32_t slots[3];
        double w[6], speed[3], best;
        moe_ep_shape shape = shape_of(D, 0, 1);
        moe_ep_placement p, q;
        moe_ep_rebalance_desc b;
        moe_ep_plan_result r;
        for (i = 0; i < D; i++) {
            P += slots[i] = 1 + (int32_t)t_below(&s, 3);
            speed[i] = kind == 0 ? 1 : kind == 1 ? (double)(1 + t_below(&s, 3)) : exp(4 * t_unit(&s) - 2);
        }
        E = 1 + (int)t_below(&s, P < 6 ? P : 6);
        for (i = 0; i < E; i++) w[i] = n % 2 ? exp(4 * t_unit(&s)) : (double)t_below(&s, 13);
        shape.slots_per_device = slots;
        shape.speed = speed;
        p = placement_new(1, E, &shape);
        q = placement_new(1, E, &shape);
        scatter(&p, &s);
        memset(&b, 0, sizeof b);
        b.current = &p;
        b.loads = w;
        CHECK_I64(moe_ep_rebalance(&b, &q, &r, NULL, NULL), MOE_EP_OK);
        best = search_optimum(w, E, D, slots, speed, NULL, NULL, r.max);
        exact[kind] += r.max <= best * (1 + 2e-9);
        gap[kind] += best > 0 ? r.max / best - 1 : 0;
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
    for (i = 0; i < 3; i++) printf("    %d of 500 as good as any, %.5f above\n", exact[i], gap[i] / 500);
    for (i = 0; i < 3; i++) CHECK(exact[i] >= least_exact[i] && gap[i] / 500 <= most_gap[i]);
}

/* One expert of load 12 on devices of speeds 1 and 3: the fast one alone has 4, both together 6 on the slow one. */
TEST(alone_on_the_fast_device)
{
    static const double load = 12, speed[2] = {1, 3}, loads[2] = {12, 12};
    int layers;
    for (layers = 1; layers <= 2; layers++) {
        moe_ep_shape shape = shape_of(2, 2, 1);
        moe_ep_placement p, q;
        moe_ep_rebalance_desc b;
        moe_ep_plan_result r[2];
        shape.speed = speed;
        p = placement_new(layers, 1, &shape);
        q = placement_new(layers, 1, &shape);
        memset(p.slot_expert, 0, sizeof(int32_t) * 2 * (size_t)layers);
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        memset(&b, 0, sizeof b);
        b.current = &p;
        b.loads = layers == 1 ? &load : loads;
        b.max_link_moves = layers - 1; /* the same where layers share a limit */
        CHECK_I64(moe_ep_rebalance(&b, &q, r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r[layers - 1].max_before, 6, 1e-12, 0);
        CHECK_NEAR(r[layers - 1].max, 4, 1e-12, 0);
        CHECK_I64(r[layers - 1].moves, 0);
        CHECK_I64(q.slot_expert[2 * layers - 2], -1);
        CHECK_I64(q.slot_expert[2 * layers - 1], 0);
        placement_free(&p);
        placement_free(&q);
    }
}

/* ---- how far the first changes come ---------------------------------------------------------------- */

/* After 1, 4 and 16 changes the busiest device is this far above the bound on average, by option: a search that takes
 * other than the best change is further away. */
TEST(quality_of_the_first_changes)
{
    static const char *const kind[6] = {"one copy each", "spare slots", "speeds", "pins", "two copies at most",
                                        "empty slots"};
    static const int steps[3] = {1, 4, 16};
    static const double most[6][3] = {{0.003567, 0.001348, 0.000273},
                                      {0.006264, 0.002242, 0.000442},
                                      {0.080785, 0.015999, 0.001636},
                                      {0.016349, 0.005283, 0.001101},
                                      {0.006190, 0.002216, 0.000422},
                                      {0.028910, 0.008744, 0.000569}};
    int n, k, i, j;
    for (k = 0; k < 6; k++) {
        uint64_t s = 20240607u;
        double gap[3] = {0};
        for (n = 0; n < 100; n++) {
            int D = 5 + (int)t_below(&s, 5), S = 6 + (int)t_below(&s, 2), P = D * S, E = k == 0 ? P : P - D;
            double w[9 * 7], speed[9];
            int32_t pin[9 * 7];
            moe_ep_place_desc d;
            if (k == 5) E = P - 1 - (int)t_below(&s, D);
            for (i = 0; i < D; i++) speed[i] = k == 2 ? 0.5 + t_unit(&s) : 1.0;
            for (i = 0; i < E; i++) w[i] = exp((k == 0 || k == 5 ? 1.5 : 3.0) * t_unit(&s));
            for (i = 0; i < E; i++) pin[i] = i % 4 == 0 && i / 4 < P - D ? i / 4 % D : -1;
            d = desc_of(1, E, shape_of(D, P, 1), w);
            if (k == 2) d.shape.speed = speed;
            if (k == 3) d.pinned = pin;
            d.max_replicas = k == 4 ? 2 : k == 5 ? 1 : k == 1 ? D : 0; /* a limit keeps EPLB's start away */
            for (j = 0; j < 3; j++) {
                moe_ep_placement p;
                moe_ep_plan_result r;
                d.max_refinements = steps[j];
                r = plan_one(moe_ep_best_placement, &d, &p, NULL);
                CHECK(r.refinements <= steps[j] + 1); /* two for two counts as two */
                gap[j] += (r.max / r.lower_bound - 1) / 100;
                placement_free(&p);
            }
            STOP_IF_FAILED("case %d", 1000 * k + n);
        }
        printf("    %s: %.6f %.6f %.6f above the bound\n", kind[k], gap[0], gap[1], gap[2]);
        for (j = 0; j < 3; j++) CHECK(gap[j] <= most[k][j]);
    }
}

/* The same for moves of a rebalance: all at once, by layer, by device and by link; also after a device was lost. */
TEST(quality_of_the_first_moves)
{
    static const char *const kind[6] = {"moves", "moves of a layer", "arrivals", "links", "speeds", "device lost"};
    static const double most[6][3] = {{0.09366, 0.04062, 0.02781},
                                      {0.07366, 0.02973, 0.01858},
                                      {0.03135, 0.01691, 0.01464},
                                      {0.01670, 0.01456, 0.01455},
                                      {0.07697, 0.08220, 0.09981},
                                      {0.01836, 0.04714, 0.07795}};
    static const double most_moves[6][3] = {{0.43, 1.78, 3.00},
                                      {0.93, 3.52, 5.65},
                                      {4.31, 7.40, 8.39},
                                      {7.91, 8.53, 8.60},
                                      {3.50, 2.31, 1.34},
                                      {5.01, 2.88, 2.17}};
    int n, k, i, j, l;
    for (k = 0; k < 6; k++) {
        uint64_t s = 20240607u;
        double gap[3] = {0}, moves[3] = {0};
        for (n = 0; n < 100; n++) {
            int D = 3 + (int)t_below(&s, 6), S = 3 + (int)t_below(&s, 3), L = k == 0 ? 2 : 1;
            int E = D * S - D - (int)t_below(&s, D);
            double a[2 * 8 * 5], b[2 * 8 * 5], speed[8];
            moe_ep_place_desc d;
            moe_ep_placement p, q;
            moe_ep_plan_result r[2];
            for (i = 0; i < D; i++) speed[i] = k == 4 ? 0.5 + t_unit(&s) : 1.0;
            for (i = 0; i < L * E; i++) {
                a[i] = exp(1.5 * t_unit(&s));
                b[i] = a[i] * exp(1.5 * t_unit(&s));
            }
            d = desc_of(L, E, shape_of(D, D * S, 1), a);
            d.max_replicas = D;
            d.max_refinements = -1;
            if (k == 4) d.shape.speed = speed;
            p = placement_new(L, E, &d.shape);
            q = placement_new(L, E, &d.shape);
            CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
            if (k == 5) p.device_inactive[n % D] = (uint8_t)(E <= (D - 1) * S);
            for (j = 0; j < 3; j++) {
                moe_ep_rebalance_desc x;
                int come = 0;
                memset(&x, 0, sizeof x);
                x.current = &p;
                x.loads = b;
                if (k == 0) x.max_moves = 1 + 3 * j;
                if (k == 1) x.max_layer_moves = 1 + 3 * j;
                if (k == 2) x.max_device_moves = 1 + j;
                if (k == 3) x.max_link_moves = 1 + j;
                if (k >= 4) x.target = 1.02 + 0.05 * j;
                CHECK_I64(moe_ep_rebalance(&x, &q, r, NULL, NULL), MOE_EP_OK);
                for (l = 0; l < L; l++) {
                    gap[j] += (r[l].imbalance - 1) / (100 * L);
                    moves[j] += r[l].moves / (100.0 * L);
                    come += r[l].moves;
                }
                if (k < 2) CHECK(come <= 1 + 3 * j);
            }
            placement_free(&p);
            placement_free(&q);
            STOP_IF_FAILED("case %d", 1000 * k + n);
        }
        printf("    %s: %.5f %.5f %.5f above the mean, %.3f %.3f %.3f moves\n", kind[k], gap[0], gap[1], gap[2],
               moves[0], moves[1], moves[2]);
        for (j = 0; j < 3; j++) CHECK(gap[j] <= most[k][j] && moves[j] <= most_moves[k][j]);
    }
}

/* How much load leaves its home node, and how even that makes the devices, for several shares allowed. */
TEST(quality_of_soft_nodes_by_share)
{
    static const double allowed[5] = {0, 0.02, 0.06, 0.15, 1};
    static const double most[5] = {0.3141, 0.3048, 0.2413, 0.1447, 0.0379},
                        most_off[5] = {1e-9, 0.0023, 0.0286, 0.0884, 0.2434};
    int n, i, j;
    for (j = 0; j < 5; j++) {
        uint64_t s = 20240607u;
        double even = 0, off = 0;
        for (n = 0; n < 50; n++) {
            int N = 2 + n % 2, D = N * (1 + (int)t_below(&s, 3)), S = 3 + (int)t_below(&s, 3);
            int E = N * (D * S / N - 1 - (int)t_below(&s, D / N + 1));
            double w[60], speed[9];
            int32_t home[60];
            moe_ep_place_desc d = desc_of(1, E, shape_of(D, D * S, N), w);
            moe_ep_placement p;
            moe_ep_plan_result r;
            for (i = 0; i < D; i++) speed[i] = 0.7 + 0.6 * t_unit(&s);
            for (i = 0; i < E; i++) {
                home[i] = i % N;
                w[i] = exp(2.0 * t_unit(&s)) * (home[i] == 0 ? 1.4 : 1.0);
            }
            d.node_soft = 1;
            d.home_node = home;
            d.max_off_node = allowed[j];
            if (n % 5 == 4) d.shape.speed = speed;
            r = plan_one(moe_ep_best_placement, &d, &p, NULL);
            CHECK(r.off_node <= allowed[j] + 1e-9);
            even += (r.imbalance - 1) / 50;
            off += r.off_node / 50;
            placement_free(&p);
            STOP_IF_FAILED("case %d", n);
        }
        printf("    %.2f allowed: %.5f off home, %.5f above the mean\n", allowed[j], off, even);
        CHECK(even <= most[j] && off <= most_off[j]);
    }
}

/* ---- nothing is kept ------------------------------------------------------------------------------- */

#if defined(__has_feature)
#  if __has_feature(memory_sanitizer)
#    define OWN_ALLOCATOR 1 /* the C library's figures say nothing of the sanitizer's */
#  endif
#endif
#if !defined(OWN_ALLOCATOR) && defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
#  include <malloc.h>
#  define BYTES_IN_USE() ((int64_t)mallinfo2().uordblks + (int64_t)mallinfo2().hblkhd)
#else
#  define BYTES_IN_USE() ((int64_t)0)
#endif

/* Without a scratch every function gives its memory back.  The C library keeps a few freed blocks of every size at
 * hand and counts them as in use: the first rounds fill its lists. */
TEST(no_memory_is_kept)
{
    int which, k;
    for (which = 0; which < CALLS; which++) {
        int64_t before = 0;
        for (k = 0; k < 12; k++) {
            digest h = {0};
            if (k == 10) before = BYTES_IN_USE();
            CHECK_I64(one_call(which, NULL, 0, &h), MOE_EP_OK);
        }
        CHECK_I64(BYTES_IN_USE(), before);
        STOP_IF_FAILED("call %d", which);
    }
}

/* The errors that show only once the memory is there. */
TEST(no_memory_is_kept_by_errors)
{
    double w[2 * 8], far[8] = {9e279, 0, 1, 1, 1, 1, 1, 1};
    int32_t home[8] = {0, 0, 0, 0, 0, 0, 0, 0}, pin[8] = {7, 7, 7, 7, 7, 7, 7, 7}, slots[1], device[8];
    int i, k;
    for (i = 0; i < 8; i++) w[i] = 1 + i, w[8 + i] = far[i], device[i] = i % 4;
    for (k = 0; k < 12; k++) {
        int64_t at_first = BYTES_IN_USE();
        moe_ep_place_desc d = desc_of(1, 8, shape_of(4, 12, 2), w);
        moe_ep_placement p = placement_new(1, 8, &d.shape), q = placement_new(1, 8, &d.shape);
        moe_ep_copies_desc c;
        moe_ep_move moves[12];
        moe_ep_error err;
        d.num_steps = 2;
        d.risk_z = 1e300; /* mean + z * sigma is infinite */
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW);
        CHECK_I64(moe_ep_place_lpt(&d, &p, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW);
        CHECK_I64(moe_ep_replica_budgets(&d, 2, slots, NULL, &err), MOE_EP_ERR_OVERFLOW);
        d.risk_z = 10; /* a layer above 1e280 */
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW);
        d = desc_of(1, 8, shape_of(4, 12, 2), w);
        d.node_soft = 1;
        d.home_node = home; /* 8 experts at home where 6 slots are */
        CHECK_I64(moe_ep_best_placement(&d, &p, NULL, NULL, &err), MOE_EP_ERR_INFEASIBLE);
        d = desc_of(1, 8, shape_of(4, 12, 2), w);
        memset(&c, 0, sizeof c);
        c.place = d;
        c.policy = MOE_EP_PLACE_EPLB_GLOBAL;
        c.max_extra = 4;
        c.step = 1; /* 9 slots on 4 devices */
        CHECK_I64(moe_ep_min_copies(&c, NULL, slots, NULL, &err), MOE_EP_ERR_CONFIG);
        d.pinned = pin;
        CHECK_I64(moe_ep_replica_budgets(&d, 2, slots, NULL, &err), MOE_EP_ERR_DEVICE_ID);
        CHECK_I64(moe_ep_devices_placement(device, NULL, &p, &err), MOE_EP_OK);
        for (i = 0; i < 8; i++) device[i] = 3 - i % 4;
        CHECK_I64(moe_ep_devices_placement(device, NULL, &q, &err), MOE_EP_OK);
        for (i = 0; i < 8; i++) device[i] = i % 4;
        CHECK_I64(moe_ep_plan_moves(&p, &q, 1, moves, 2, NULL, NULL, &err), MOE_EP_ERR_SIZE);
        CHECK_I64(moe_ep_plan_moves(&p, &q, 1, moves, 12, NULL, NULL, &err), MOE_EP_OK);
        placement_free(&p);
        placement_free(&q);
        if (k >= 10) CHECK_I64(BYTES_IN_USE(), at_first);
    }
}

/* ---- dealing, renaming, moving: plain versions ----------------------------------------------------- */

/* Experts from heavy to light (lowest index on ties), copy by copy, each onto the device that is done first with it,
 * of those with room that do not hold the expert yet. */
static void naive_deal(const double *w, const int32_t *counts, int E, int D, const int32_t *cap, const double *speed,
                       int distinct, int32_t *device)
{
    double load[32] = {0};
    int fill[32] = {0}, at[128], done[128] = {0}, i, c, d, e, k;
    for (e = 0, k = 0; e < E; e++) {
        at[e] = k;
        k += counts[e];
    }
    for (i = 0; i < E; i++) {
        int top = -1;
        for (e = 0; e < E; e++)
            if (!done[e] && (top < 0 || w[e] / counts[e] > w[top] / counts[top])) top = e;
        done[top] = 1;
        for (c = 0; c < counts[top]; c++) {
            int best = -1;
            double unit = w[top] / counts[top];
            for (d = 0; d < D; d++) {
                int twice = 0;
                for (k = 0; k < c; k++) twice |= device[at[top] + k] == d;
                if (fill[d] >= cap[d] || (distinct && twice)) continue;
                if (best < 0 || (load[d] + unit) / speed[d] < (load[best] + unit) / speed[best]) best = d;
            }
            device[at[top] + c] = best;
            load[best] += unit;
            fill[best]++;
        }
    }
}

/* Loads and speeds whose sums and quotients are exact, so that ties are ties. */
TEST(deals_against_naive)
{
    uint64_t s = t_seed;
    int n, i;
    for (n = 0; n < 300; n++) {
        int D = 1 + (int)t_below(&s, 16), S = 1 + (int)t_below(&s, 6), E, active = 0;
        double w[128], speed[32];
        int32_t cap[32], ones[128], counts[128], got[2048], want[2048], any[32];
        uint8_t down[32];
        moe_ep_shape shape;
        moe_ep_place_desc d;
        moe_ep_placement p;
        for (i = 0; i < D; i++) {
            cap[i] = n % 2 ? S : (int32_t)t_below(&s, S + 1);
            speed[i] = n % 3 == 2 ? (double)(1 << t_below(&s, 3)) : 1;
            down[i] = n % 5 == 4 && t_below(&s, 4) == 0;
            any[i] = 1 << 20;
            if (!down[i]) active += cap[i];
        }
        if (active == 0) continue;
        E = 1 + (int)t_below(&s, active);
        for (i = 0; i < E; i++) {
            w[i] = (double)(48 * (1 + t_below(&s, n % 4 == 3 ? 5 : 1000)));
            ones[i] = 1;
            counts[i] = 1 + (int32_t)t_below(&s, D < 4 ? D : 4);
        }
        shape = shape_of(D, 0, 1);
        shape.slots_per_device = cap;
        if (n % 3 == 2) shape.speed = speed;
        shape.inactive = down;
        d = desc_of(1, E, shape, w);
        (void)plan_one(moe_ep_place_lpt, &d, &p, NULL);
        for (i = 0; i < D; i++)
            if (down[i]) cap[i] = 0;
        naive_deal(w, ones, E, D, cap, speed, 1, want);
        for (i = 0; i < E; i++) CHECK_I64(p.slot_device[p.replica_slot[p.replica_start[i]]], want[i]);
        placement_free(&p);
        for (i = 0; i < D; i++) speed[i] = 1;
        CHECK_I64(moe_ep_lpt(w, E, D, got, NULL, NULL), MOE_EP_OK);
        naive_deal(w, ones, E, D, any, speed, 1, want);
        for (i = 0; i < E; i++) CHECK_I64(got[i], want[i]);
        CHECK_I64(moe_ep_lpt_replicas(w, E, counts, D, got, NULL, NULL), MOE_EP_OK);
        naive_deal(w, counts, E, D, any, speed, 1, want);
        for (i = 0, active = 0; i < E; i++) active += counts[i];
        for (i = 0; i < active; i++) CHECK_I64(got[i], want[i]);
        STOP_IF_FAILED("case %d", n);
    }
}

/* May the contents of devices i and j be exchanged? */
static int alike(const moe_ep_placement *now, const moe_ep_placement *p, int i, int j, int flags)
{
    if (i == j) return 1;
    if ((flags & MOE_EP_RELABEL_SLOTS_ONLY) ||
        ((flags & MOE_EP_RELABEL_KEEP_NODES) && p->device_node[i] != p->device_node[j]))
        return 0;
    return p->slot_start[i + 1] - p->slot_start[i] == p->slot_start[j + 1] - p->slot_start[j] &&
           !(fabs(p->device_speed[i] - p->device_speed[j]) > 0) && !now->device_inactive[i] &&
           !p->device_inactive[i] && !p->device_inactive[j];
}

/* Most experts that stay, over all renamings that are allowed. */
static int most_staying(const moe_ep_placement *now, const moe_ep_placement *p, int flags, int row, int used)
{
    int j, s, t, best = -1000;
    if (row == p->num_devices) return 0;
    for (j = 0; j < p->num_devices; j++) {
        int same = 0, rest;
        if (used >> j & 1 || !alike(now, p, row, j, flags)) continue;
        for (s = now->slot_start[row]; s < now->slot_start[row + 1]; s++)
            for (t = p->slot_start[j]; t < p->slot_start[j + 1]; t++)
                same += now->slot_expert[s] >= 0 && now->slot_expert[s] == p->slot_expert[t];
        rest = most_staying(now, p, flags, row + 1, used | 1 << j);
        if (same + rest > best) best = same + rest;
    }
    return best;
}

/* Devices of several sizes, speeds, nodes and states: only like goes to like, and no allowed renaming keeps more. */
TEST(relabel_of_unlike_devices)
{
    uint64_t s = t_seed;
    int n, i, j, k;
    for (n = 0; n < 500; n++) {
        int D = 2 + (int)t_below(&s, 4), E = 6, flags = n % 4, kept = 0, want;
        int32_t slots[5], node[5];
        double speed[5];
        uint8_t down[5];
        int32_t before[5 * 4];
        moe_ep_shape shape = shape_of(D, 0, 2);
        moe_ep_placement p, q;
        moe_ep_error err;
        for (i = 0; i < D; i++) {
            slots[i] = 2 + (n % 3 == 0 ? (int32_t)t_below(&s, 2) : 0);
            node[i] = (int32_t)t_below(&s, 2);
            speed[i] = n % 5 == 1 ? 1 + (double)t_below(&s, 2) : 1;
            down[i] = n % 7 == 2 && t_below(&s, 3) == 0;
        }
        shape.slots_per_device = slots;
        shape.node_of_device = node;
        shape.speed = speed;
        shape.inactive = down;
        p = placement_new(1, E, &shape);
        q = placement_new(1, E, &shape);
        for (i = 0; i < D; i++) /* different experts on a device, some slots empty */
            for (k = 0; k < 2; k++) {
                moe_ep_placement *x = k ? &q : &p;
                int first = x->slot_start[i];
                for (j = first; j < x->slot_start[i + 1]; j++) {
                    int32_t e = (int32_t)t_below(&s, E + 1) - 1;
                    int t;
                    for (t = first; t < j; t++)
                        if (x->slot_expert[t] == e) e = -1;
                    x->slot_expert[j] = e;
                }
            }
        if (n % 7 == 4) p.device_inactive[0] = 1;
        CHECK_I64(moe_ep_placement_index(&p, &err), MOE_EP_OK);
        CHECK_I64(moe_ep_placement_index(&q, &err), MOE_EP_OK);
        want = most_staying(&p, &q, flags, 0, 0);
        for (i = 0; i < q.num_slots; i++) before[i] = q.slot_expert[i];
        CHECK_I64(moe_ep_relabel(&p, &q, flags, NULL, &err), MOE_EP_OK);
        for (i = 0; i < q.num_slots; i++) kept += q.slot_expert[i] >= 0 && q.slot_expert[i] == p.slot_expert[i];
        CHECK_I64(kept, want);
        for (i = 0, k = 0; i < D; i++) { /* the contents of a like device, each once */
            for (j = 0; j < D; j++) {
                int a, b, same = 0, full = 0;
                if (k >> j & 1 || !alike(&p, &q, i, j, flags)) continue;
                for (a = q.slot_start[j]; a < q.slot_start[j + 1]; a++) {
                    full += before[a] >= 0;
                    for (b = q.slot_start[i]; b < q.slot_start[i + 1]; b++)
                        same += before[a] >= 0 && before[a] == q.slot_expert[b];
                }
                for (b = q.slot_start[i]; b < q.slot_start[i + 1]; b++) full -= q.slot_expert[b] >= 0;
                for (a = q.slot_start[j], b = 0; a < q.slot_start[j + 1]; a++) b += before[a] >= 0;
                if (full == 0 && same == b) break;
            }
            CHECK(j < D);
            k |= 1 << (j < D ? j : 0);
        }
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
}

/* The link of every move with the senders that max_link_moves knows: holders by turns, on the receiver's node when
 * there are any. */
static int turn_of(const moe_ep_placement *p, const moe_ep_move *x)
{
    int holder[64], n = 0, pass, j;
    for (pass = 0; pass < 2 && n == 0; pass++)
        for (j = 0; j < p->num_slots; j++) {
            int d = p->slot_device[j];
            if (p->slot_expert[x->layer * p->num_slots + j] != x->expert || p->device_inactive[d]) continue;
            if (pass == 1 || p->device_node[d] == p->device_node[x->to_device]) holder[n++] = d;
        }
    return n > 0 ? holder[(x->to_device + x->expert) % n] : -1;
}

/* Senders: no link above the fullest with senders by turns, and none sends two more in a layer than another holder near
 * by whose link has room.  A layer is judged by the links as they were when it was its turn. */
static void check_senders(const moe_ep_placement *p, const moe_ep_move *m, int64_t n)
{
    int D = p->num_devices, most = 0, d, j;
    int *link = (int *)t_alloc(sizeof(int) * (size_t)(D * D)), *sends = (int *)t_alloc(sizeof(int) * (size_t)D);
    int64_t i, first, end;
    for (i = 0; i < n; i++)
        if ((d = turn_of(p, &m[i])) >= 0 && ++link[d * D + m[i].to_device] > most) most = link[d * D + m[i].to_device];
    for (first = 0; first < n; first = end) {
        memset(sends, 0, sizeof(int) * (size_t)D);
        for (end = first; end < n && m[end].layer == m[first].layer; end++) {
            if (m[end].from_device < 0) continue;
            sends[m[end].from_device]++;
            link[turn_of(p, &m[end]) * D + m[end].to_device]--;
            link[m[end].from_device * D + m[end].to_device]++;
        }
        for (i = first; i < end; i++) {
            const moe_ep_move *x = &m[i];
            if (x->from_device < 0) continue;
            CHECK(link[x->from_device * D + x->to_device] <= most);
            for (j = 0; j < p->num_slots; j++) {
                d = p->slot_device[j];
                if (p->slot_expert[x->layer * p->num_slots + j] != x->expert || p->device_inactive[d]) continue;
                if (p->device_node[x->from_device] == p->device_node[x->to_device] &&
                    p->device_node[d] != p->device_node[x->to_device])
                    continue;
                CHECK(sends[d] + 2 > sends[x->from_device] || link[d * D + x->to_device] >= most);
            }
        }
    }
    free(link);
    free(sends);
}

/* All counts of a change of placement, counted again, and senders on the receiver's node where there is one. */
TEST(moves_counted_again)
{
    uint64_t s = t_seed;
    int n, i, j, l, d;
    for (n = 0; n < 400; n++) {
        int D = 1 + (int)t_below(&s, 6), S = 1 + (int)t_below(&s, 3), E = 2 + (int)t_below(&s, 6), L = 1 + n % 3, N;
        int64_t in[6] = {0}, out[6] = {0};
        moe_ep_moves_result want, got;
        moe_ep_move m[54];
        moe_ep_shape shape = shape_of(D, D * S, N = 1 + (int)t_below(&s, D));
        moe_ep_placement p = placement_new(L, E, &shape), q = placement_new(L, E, &shape);
        memset(&want, 0, sizeof want);
        for (i = 0; i < L * p.num_slots; i++) {
            p.slot_expert[i] = (int32_t)t_below(&s, E + 1) - 1;
            q.slot_expert[i] = t_below(&s, 3) ? (int32_t)t_below(&s, E + 1) - 1 : p.slot_expert[i];
        }
        for (i = 0; i < D; i++) p.device_inactive[i] = (uint8_t)(t_below(&s, 5) == 0);
        for (i = 0; i < D; i++) q.device_inactive[i] = (uint8_t)(t_below(&s, 5) == 0);
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_placement_index(&q, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_plan_moves(&p, &q, 0.5, m, 54, &got, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            int64_t layer_in[6] = {0}, layer_out[6] = {0}, most = 0; /* Koenig: the moves of the busiest */
            for (i = 0; i < p.num_slots; i++) {
                const int32_t *old = p.slot_expert + l * p.num_slots, *now = q.slot_expert + l * p.num_slots;
                int has = 0, holders = 0, near_by = 0, empty;
                const moe_ep_move *x = &m[want.moves];
                d = i / S;
                empty = p.device_inactive[d] > q.device_inactive[d];
                want.unchanged += (empty ? -1 : old[i]) == now[i];
                if (now[i] < 0 || (!empty && old[i] == now[i])) continue;
                for (j = 0; j < p.num_slots; j++) {
                    has |= j / S == d && ((!empty && old[j] == now[i]) || (j < i && now[j] == now[i]));
                    if (old[j] != now[i] || p.device_inactive[j / S]) continue;
                    holders++;
                    near_by += p.device_node[j / S] == p.device_node[d];
                }
                want.slot_changes += has;
                if (has) continue;
                want.moves++;
                layer_in[d]++;
                CHECK(x->layer == l && x->expert == now[i] && x->to_slot == i && x->to_device == d);
                CHECK(x->round >= want.rounds);
                if (holders == 0) {
                    want.lost++;
                    CHECK(x->from_slot == -1 && x->from_device == -1);
                    continue;
                }
                CHECK(x->from_device >= 0 && x->from_slot / S == x->from_device && old[x->from_slot] == now[i]);
                if (x->from_device < 0) continue;
                layer_out[x->from_device]++;
                CHECK(!p.device_inactive[x->from_device]);
                CHECK((p.device_node[x->from_device] == p.device_node[d]) == (near_by > 0));
                want.cross_node += near_by == 0;
            }
            for (d = 0; d < D; d++) {
                in[d] += layer_in[d];
                out[d] += layer_out[d];
                if (layer_in[d] > want.staging) want.staging = layer_in[d];
                if (layer_in[d] > most) most = layer_in[d];
                if (layer_out[d] > most) most = layer_out[d];
            }
            want.rounds += most;
            for (i = 0; i < want.moves; i++) CHECK(m[i].round < want.rounds);
        }
        for (d = 0; d < D; d++) {
            if (in[d] > want.max_in) want.max_in = in[d];
            if (out[d] > want.max_out) want.max_out = out[d];
        }
        CHECK_I64(got.moves, want.moves);
        CHECK_I64(got.slot_changes, want.slot_changes);
        CHECK_I64(got.cross_node, want.cross_node);
        CHECK_I64(got.lost, want.lost);
        CHECK_I64(got.unchanged, want.unchanged);
        CHECK_I64(got.max_in, want.max_in);
        CHECK_I64(got.max_out, want.max_out);
        CHECK_I64(got.rounds, want.rounds);
        CHECK_I64(got.staging, want.staging);
        CHECK_NEAR(got.bytes, 0.5 * (double)want.moves, 0, 0);
        check_senders(&p, m, got.moves);
        check_moves(&p, &q);
        placement_free(&p);
        placement_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Partners: at the end no exchange of two experts that pins, nodes and the limit allow brings more together. */
TEST(partners_end_where_no_swap_helps)
{
    uint64_t s = t_seed;
    int n, i, j, a, b;
    for (n = 0; n < 300; n++) {
        int D = 2 + n % 3, S = 2 + (int)t_below(&s, 3), P = D * S, E = P - (int)t_below(&s, S);
        double w[16], speed[4], load[4], limit = 0;
        int64_t pairs[16 * 16];
        int32_t pin[16];
        moe_ep_place_desc d;
        moe_ep_placement p;
        for (i = 0; i < E; i++) {
            w[i] = 10 + (double)t_below(&s, 5);
            pin[i] = n % 3 == 1 && i < D ? i : -1;
            for (j = 0; j <= i; j++) pairs[i * E + j] = pairs[j * E + i] = t_below(&s, 50);
        }
        for (i = 0; i < D; i++) speed[i] = n % 5 == 2 ? 1 + 0.25 * (double)t_below(&s, 3) : 1;
        d = desc_of(1, E, shape_of(D, P, 1), w);
        d.max_replicas = D; /* without EPLB's plan */
        d.max_refinements = -1;
        d.shape.speed = speed;
        if (n % 3 == 1) d.pinned = pin;
        limit = plan_one(moe_ep_best_placement, &d, &p, NULL).max;
        placement_free(&p);
        d.coactivation = pairs;
        d.coactivation_slack = 0.05 * (n % 4);
        limit *= 1 + d.coactivation_slack;
        (void)plan_one(moe_ep_best_placement, &d, &p, load);
        for (a = 0; a < P; a++)
            for (b = 0; b < P; b++) {
                int c = a / S, g = b / S, e = p.slot_expert[a], f = p.slot_expert[b];
                double delta, gain = 0;
                if (c >= g || e < 0 || f < 0) continue;
                if (d.pinned && (pin[e] == c || pin[f] == g)) continue;
                for (i = 0, j = 0; i < P; i++)
                    j |= (i / S == g && p.slot_expert[i] == e) || (i / S == c && p.slot_expert[i] == f);
                if (j) continue;
                delta = w[e] / (p.replica_start[e + 1] - p.replica_start[e]) -
                        w[f] / (p.replica_start[f + 1] - p.replica_start[f]);
                if ((load[c] - delta) / speed[c] > limit * (1 - 1e-9)) continue;
                if ((load[g] + delta) / speed[g] > limit * (1 - 1e-9)) continue;
                for (i = 0; i < P; i++) {
                    int x = p.slot_expert[i];
                    double of_e, of_f;
                    if (x < 0 || i == a || i == b) continue;
                    of_e = (double)pairs[e * E + x] / (p.replica_start[e + 1] - p.replica_start[e]);
                    of_f = (double)pairs[f * E + x] / (p.replica_start[f + 1] - p.replica_start[f]);
                    if (i / S == g) gain += (of_e - of_f) / (p.replica_start[x + 1] - p.replica_start[x]);
                    if (i / S == c) gain += (of_f - of_e) / (p.replica_start[x + 1] - p.replica_start[x]);
                }
                CHECK(gain <= 1e-6);
            }
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Tokens that find two experts on one device if they pick copies at random, counted from both sides. */
static double together(const moe_ep_placement *p, const int32_t *slot, const int64_t *pairs)
{
    double sum = 0;
    int d, i, j, E = p->num_experts;
    for (d = 0; d < p->num_devices; d++)
        for (i = p->slot_start[d]; i < p->slot_start[d + 1]; i++)
            for (j = p->slot_start[d]; j < p->slot_start[d + 1]; j++)
                if (i != j && slot[i] >= 0 && slot[j] >= 0)
                    sum += (double)pairs[slot[i] * E + slot[j]] /
                           (double)((p->replica_start[slot[i] + 1] - p->replica_start[slot[i]]) *
                                    (p->replica_start[slot[j] + 1] - p->replica_start[slot[j]]));
    return sum;
}

/* Counts that differ by the side they are looked at from: their mean counts, so that it makes no difference to turn
 * them round or to add up both sides; the sum only grows, and ends where no exchange adds to it. */
TEST(partners_of_counts_by_side)
{
    uint64_t s = t_seed;
    int n, i, j, a, b, round, better = 0;
    for (n = 0; n < 300; n++) {
        int D = 2 + n % 3, S = 2 + (int)t_below(&s, 3), P = D * S, E = P - (int)t_below(&s, S), changes;
        double w[16], load[4], limit, start, end;
        int64_t pairs[3][16 * 16]; /* as they are, turned round, both added up */
        moe_ep_place_desc d;
        moe_ep_placement p, before;
        int32_t slot[16];
        for (i = 0; i < E; i++) w[i] = 10 + (double)t_below(&s, 5);
        for (i = 0; i < E * E; i++) pairs[1][i % E * E + i / E] = pairs[0][i] = t_below(&s, 50);
        for (i = 0; i < E * E; i++) pairs[2][i] = pairs[0][i] + pairs[1][i];
        d = desc_of(1, E, shape_of(D, P, 1), w);
        d.max_replicas = D; /* without EPLB's plan */
        d.max_refinements = -1;
        d.coactivation_slack = 0.05 * (n % 4);
        limit = plan_one(moe_ep_best_placement, &d, &before, NULL).max * (1 + d.coactivation_slack);
        d.coactivation = pairs[0];
        changes = plan_one(moe_ep_best_placement, &d, &p, load).refinements;
        start = together(&before, before.slot_expert, pairs[0]);
        end = together(&p, p.slot_expert, pairs[0]);
        CHECK(changes == 0 ? !(end > start) && !(end < start) : end > start);
        CHECK(changes < 8 * D * (D - 1) / 2); /* it ends by itself */
        better += changes > 0;
        for (round = 1; round < 3; round++) {
            moe_ep_placement q;
            d.coactivation = pairs[round];
            (void)plan_one(moe_ep_best_placement, &d, &q, NULL);
            CHECK(memcmp(p.slot_expert, q.slot_expert, sizeof(int32_t) * (size_t)P) == 0);
            placement_free(&q);
        }
        for (a = 0; a < P; a++)
            for (b = a / S * S + S; b < P; b++) {
                int e = p.slot_expert[a], f = p.slot_expert[b], twice = 0;
                double delta;
                if (e < 0 || f < 0) continue;
                for (j = 0; j < P; j++)
                    twice |= (j / S == b / S && p.slot_expert[j] == e) || (j / S == a / S && p.slot_expert[j] == f);
                delta = w[e] / (p.replica_start[e + 1] - p.replica_start[e]) -
                        w[f] / (p.replica_start[f + 1] - p.replica_start[f]);
                if (twice || load[a / S] - delta > limit * (1 - 1e-9) || load[b / S] + delta > limit * (1 - 1e-9))
                    continue;
                memcpy(slot, p.slot_expert, sizeof(int32_t) * (size_t)P);
                slot[a] = f;
                slot[b] = e;
                CHECK(together(&p, slot, pairs[0]) <= end + 1e-6);
            }
        placement_free(&p);
        placement_free(&before);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(better > 200);
}

/* ---- the edges of what is accepted ----------------------------------------------------------------- */

TEST(largest_sizes_and_loads)
{
    const int32_t most = INT32_MAX / 2;
    int32_t one[2] = {INT32_MAX / 2, 0}, counts[2], map[2] = {0, 0};
    double w[2] = {1e280, 0}, half[2] = {5e279, 5e279}, out[2];
    moe_ep_shape shape = shape_of(1, most, 1);
    moe_ep_error err;
    const int fits = sizeof(size_t) > 4; /* gigabytes are more than a 32-bit machine can name */
    CHECK((moe_ep_placement_bytes(1, 1, &shape) > 0) == fits);
    shape.num_slots++;
    CHECK_I64(moe_ep_placement_bytes(1, 1, &shape), 0);
    shape = shape_of(1, 1, 1);
    CHECK((moe_ep_placement_bytes(1, most, &shape) > 0) == fits);
    CHECK_I64(moe_ep_placement_bytes(1, most + 1, &shape), 0);
    shape = shape_of(2, 0, 1);
    shape.slots_per_device = one;
    CHECK((moe_ep_placement_bytes(1, 1, &shape) > 0) == fits);
    one[1] = 1;
    CHECK_I64(moe_ep_placement_bytes(1, 1, &shape), 0);
    one[0] = one[1] = 0; /* no slot at all */
    CHECK_I64(moe_ep_placement_bytes(1, 1, &shape), 0);
    CHECK_I64(moe_ep_replicate(w, 2, 2, 0, counts, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_replicate(half, 2, 2, 0, counts, NULL, &err), MOE_EP_OK);
    w[0] = nextafter(1e280, 2e280);
    CHECK_I64(moe_ep_replicate(w, 2, 2, 0, counts, NULL, &err), MOE_EP_ERR_OVERFLOW);
    half[1] = nextafter(half[1], 1e280);
    half[0] = nextafter(half[0], 1e280);
    CHECK_I64(moe_ep_replicate(half, 2, 2, 0, counts, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_window_loads(half, 1, 1, 2, 0, out, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_window_loads(half, 1, 2, 1, 0, out, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_lpt(half, 1, 1, map, NULL, &err), MOE_EP_OK);
    shape = shape_of(1, 2, 1);
    { /* speeds at both ends, and beyond */
        static const double fine[2] = {1e-6, 1e6}, wrong[2] = {0.999e-6, 1.001e6};
        moe_ep_bound_result b;
        double load[2] = {1, 2};
        int i;
        for (i = 0; i < 2; i++) {
            shape.speed = &fine[i];
            CHECK_I64(moe_ep_lower_bound(load, 2, &shape, &b, NULL, &err), MOE_EP_OK);
            CHECK_NEAR(b.value, 3 / fine[i], 1e-12, 0);
            shape.speed = &wrong[i];
            CHECK_I64(moe_ep_lower_bound(load, 2, &shape, &b, NULL, &err), MOE_EP_ERR_RANGE);
        }
    }
}

/* A copy that lowers its layer by less than 0.02 % is not bought; one that lowers it by more is. */
TEST(small_falls_are_not_bought)
{
    static const double small[4] = {0.1, 0.35, 0.45, 3}, scale[3] = {1, 1e-4, 1e7};
    int i, j, k;
    for (i = 0; i < 4; i++)
        for (k = 0; k < 3; k++) {
            double w[2 * 3];
            int32_t slots[2];
            moe_ep_place_desc d = desc_of(2, 3, shape_of(2, 4, 1), w);
            for (j = 0; j < 6; j++) w[j] = (j % 3 < 2 ? 1000 : small[i]) * scale[k]; /* a copy halves the small one */
            CHECK_I64(moe_ep_replica_budgets(&d, 2, slots, NULL, NULL), MOE_EP_OK);
            for (j = 0; j < 2; j++) CHECK_I64(slots[j], small[i] > 0.4 ? 4 : 3);
        }
}

/* Two layers: the split of the copies beside all splits, by what best_placement reaches with each number. */
TEST(budgets_beside_every_split)
{
    uint64_t s = 20240607u;
    int n, c, l, same = 0, tried = 0;
    double above = 0;
    for (n = 0; n < 120; n++) {
        int E = 3 + (int)t_below(&s, 2), D = 3, P = 9, most = P - E, total = 1 + (int)t_below(&s, most);
        double w[2 * 4], curve[2][8], best = 1e300, got;
        int32_t slots[2], one[1];
        moe_ep_place_desc d = desc_of(2, E, shape_of(D, P, 1), w), single;
        for (c = 0; c < 2 * E; c++) w[c] = exp(3.0 * t_unit(&s)) * (c < E ? 1 : 2);
        CHECK_I64(moe_ep_replica_budgets(&d, total, slots, NULL, NULL), MOE_EP_OK);
        CHECK(slots[0] >= E && slots[1] >= E && slots[0] + slots[1] <= 2 * E + total);
        for (l = 0; l < 2; l++)
            for (c = 0; c <= most; c++) {
                moe_ep_placement p;
                single = desc_of(1, E, d.shape, w + l * E);
                single.layer_slots = one;
                one[0] = E + c;
                curve[l][c] = plan_one(moe_ep_best_placement, &single, &p, NULL).max;
                placement_free(&p);
            }
        for (c = 0; c <= total; c++)
            for (l = 0; c + l <= total; l++)
                if (curve[0][c] + curve[1][l] < best) best = curve[0][c] + curve[1][l];
        got = curve[0][slots[0] - E] + curve[1][slots[1] - E];
        CHECK(got >= best * (1 - 1e-12));
        tried++;
        same += got <= best * (1 + 2.1e-4);
        above += got / best - 1;
        STOP_IF_FAILED("case %d", n);
    }
    printf("    %d of %d the best split, %.5f above it\n", same, tried, above / tried);
    CHECK(same >= 115 && above / tried <= 0.0005);
}

/* What stands behind the arrays of the devices is nobody's device. */
TEST(no_device_behind_the_last)
{
    static const planner all[3] = {moe_ep_place_round_robin, moe_ep_place_contiguous, moe_ep_place_lpt};
    int D, k, e;
    for (D = 2; D <= 13; D++)
        for (k = 0; k < 3; k++) {
            double w[64], room[2048] = {0};
            moe_ep_shape shape = shape_of(D, 3 * D, 1);
            moe_ep_place_desc d = desc_of(1, 2 * D + 1, shape, w);
            moe_ep_placement p = placement_in_rubbish(1, 2 * D + 1, &shape, 0x7f);
            moe_ep_scratch s = moe_ep_scratch_fixed(room, sizeof room);
            for (e = 0; e < 2 * D + 1; e++) w[e] = 1 + e % 3;
            memset(p.device_inactive + D, 0, (size_t)(64 - D)); /* looks alive, with room: slot_start goes on high */
            CHECK_I64(all[k](&d, &p, NULL, &s, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
            for (e = 0; k == 0 && e < 2 * D + 1; e++)
                CHECK_I64(p.slot_device[p.replica_slot[p.replica_start[e]]], e % D);
            rubbish_free(&p);
        }
}

/* ---- what is left ------------------------------------------------------------------------------------ */

/* Eight devices, where an expert may need every one of them. */
TEST(experts_on_all_of_eight_devices)
{
    uint64_t s = 20240607u;
    int n, i, wide = 0;
    for (n = 0; n < 60; n++) {
        int32_t cap[8];
        double w[2], best;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r;
        for (i = 0; i < 8; i++) cap[i] = 1 + (t_below(&s, 3) == 0);
        w[0] = 1000;
        w[1] = n % 3 ? 1 + 200 * t_unit(&s) : 1000 * t_unit(&s);
        cap[n % 8] = 2;
        d = desc_of(1, 2, shape_of(8, 0, 1), w);
        d.shape.slots_per_device = cap;
        r = plan_one(moe_ep_best_placement, &d, &p, NULL);
        best = search_optimum(w, 2, 8, cap, NULL, NULL, NULL, r.max);
        CHECK(r.max <= best * (1 + 2e-4)); /* the last 0.015 % over the bound are left */
        wide += p.replica_start[1] >= 7;
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(wide > 10);
}

/* One wrong number in any layer is found by everything that reads a placement, and by its place. */
TEST(wrong_maps_in_any_layer)
{
    double w[3 * 4] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, out[9];
    int l, k, which;
    for (l = 0; l < 3; l++)
        for (k = 0; k < 4; k++) {
            moe_ep_shape shape = shape_of(3, 6, 1);
            moe_ep_placement p = placement_new(3, 4, &shape), q = placement_new(3, 4, &shape);
            moe_ep_place_desc d = desc_of(3, 4, shape, w);
            moe_ep_status want = k == 0 ? MOE_EP_ERR_EXPERT_ID : MOE_EP_ERR_PLACEMENT;
            int32_t index = 0;
            CHECK_I64(moe_ep_place_trtllm(&d, &p, NULL, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_placement_copy(&p, &q, NULL), MOE_EP_OK);
            if (k == 0) p.slot_expert[index = 6 * l + 5] = 4; /* no expert */
            if (k == 1) p.replica_slot[index = 6 * l + p.replica_start[5 * l + 3]] = -1;
            if (k == 2) p.replica_slot[index = 6 * l + p.replica_start[5 * l + 3]] = 6;
            if (k == 3) p.replica_start[index = 5 * l + 4]--;
            for (which = 0; which < 9; which++) {
                moe_ep_plan_result r[3];
                moe_ep_rebalance_desc x;
                moe_ep_moves_result m;
                int32_t phy[18];
                moe_ep_error err;
                moe_ep_status got = MOE_EP_OK;
                memset(&x, 0, sizeof x);
                memset(&err, 0, sizeof err);
                x.current = &p;
                x.loads = w;
                if (which == 0) got = moe_ep_validate(&p, 0, NULL, &err);
                if (which == 1) got = moe_ep_device_loads(&p, w, out, &err);
                if (which == 2) got = moe_ep_node_loads(&p, w, out, &err);
                if (which == 3) got = moe_ep_evaluate(&p, w, 1, r, NULL, &err);
                if (which == 4) got = moe_ep_eplb_arrays(&p, 0, phy, NULL, NULL, &err);
                if (which == 5) got = moe_ep_plan_moves(&p, &q, 0, NULL, 0, &m, NULL, &err);
                if (which == 6) got = moe_ep_plan_moves(&q, &p, 0, NULL, 0, &m, NULL, &err);
                if (which == 7) got = moe_ep_relabel(&q, &p, 0, NULL, &err);
                if (which == 8) got = moe_ep_rebalance(&x, &q, r, NULL, &err);
                CHECK_I64(got, want);
                CHECK_I64(err.index, index);
            }
            placement_free(&p);
            placement_free(&q);
        }
}

/* Where two arguments give the same bound the simpler one is named. */
TEST(simplest_bound_first)
{
    const double even[4] = {5, 5, 5, 5}, one_hot[4] = {6, 2, 2, 2}, crowded[3] = {4, 4, 4};
    moe_ep_shape shape = shape_of(4, 4, 1);
    moe_ep_bound_result r;
    CHECK_I64(moe_ep_lower_bound(even, 4, &shape, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.bound == MOE_EP_BOUND_MEAN && r.mean >= r.replica && r.slots >= r.mean);
    CHECK_I64(moe_ep_lower_bound(one_hot, 4, &shape, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.bound == MOE_EP_BOUND_REPLICA && r.slots >= r.replica);
    CHECK_NEAR(r.value, 6, 0, 0);
    shape = shape_of(2, 4, 1);
    CHECK_I64(moe_ep_lower_bound(crowded, 3, &shape, &r, NULL, NULL), MOE_EP_OK); /* 4 + 2 on both */
    CHECK(r.bound == MOE_EP_BOUND_MEAN);
    CHECK_NEAR(r.value, 6, 1e-12, 0);
}

/* A copy has everything of its model, in every layer. */
TEST(copies_are_whole)
{
    uint64_t s = 20240607u;
    int n, i, k;
    for (n = 0; n < 30; n++) {
        int L = 1 + n % 3, D = 1 + (int)t_below(&s, 70), P = 2 * D + (int)t_below(&s, D), E = 1 + (int)t_below(&s, P);
        moe_ep_shape shape = shape_of(D, P, 1 + (int)t_below(&s, D));
        moe_ep_placement p = placement_in_rubbish(L, E, &shape, 0), q = placement_in_rubbish(L, E, &shape, 0x7f);
        for (i = 0; i < L * P; i++) p.slot_expert[i] = (int32_t)t_below(&s, E + 1) - 1;
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        for (i = 0; i < L * P; i += 3) p.replica_slot[i] ^= 1; /* whatever it says */
        for (i = 0; i < D; i++) {
            p.device_inactive[i] = (uint8_t)t_below(&s, 2);
            p.device_speed[i] = 1 + t_unit(&s);
            p.device_node[i] = (int32_t)t_below(&s, p.num_nodes);
        }
        for (k = 0; k < 2; k++) { /* onto itself as well */
            moe_ep_placement *to = k ? &p : &q;
            CHECK_I64(moe_ep_placement_copy(&p, to, NULL), MOE_EP_OK);
            CHECK(memcmp(p.slot_expert, q.slot_expert, sizeof(int32_t) * (size_t)(L * P)) == 0);
            CHECK(memcmp(p.replica_slot, q.replica_slot, sizeof(int32_t) * (size_t)(L * P)) == 0);
            CHECK(memcmp(p.replica_start, q.replica_start, sizeof(int32_t) * (size_t)(L * (E + 1))) == 0);
            CHECK(memcmp(p.slot_start, q.slot_start, sizeof(int32_t) * (size_t)(D + 1)) == 0);
            CHECK(memcmp(p.slot_device, q.slot_device, sizeof(int32_t) * (size_t)P) == 0);
            CHECK(memcmp(p.device_node, q.device_node, sizeof(int32_t) * (size_t)D) == 0);
            CHECK(memcmp(p.device_speed, q.device_speed, sizeof(double) * (size_t)D) == 0);
            CHECK(memcmp(p.device_inactive, q.device_inactive, (size_t)D) == 0);
        }
        rubbish_free(&p);
        rubbish_free(&q);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(planners_say_what_ran)
{
    static const struct { planner f; moe_ep_place_policy policy; const char *reason; } row[6] = {
        {moe_ep_place_round_robin, MOE_EP_PLACE_ROUND_ROBIN, "expert e on active device e mod D, full devices skipped"},
        {moe_ep_place_contiguous, MOE_EP_PLACE_CONTIGUOUS,
         "blocks of neighbours, one expert more on the first E mod D active devices"},
        {moe_ep_place_lpt, MOE_EP_PLACE_LPT, "heaviest expert first, lightest device with a free slot"},
        {moe_ep_place_eplb, MOE_EP_PLACE_EPLB_HIERARCHICAL,
         "hierarchical: one node holds all groups, which is global but for slots and copies of equal loads"},
        {moe_ep_place_trtllm, MOE_EP_PLACE_TRTLLM,
         "replicas by load, larger id first on ties; heaviest replica first onto the lightest rank with a slot"},
        {moe_ep_best_placement, MOE_EP_PLACE_BEST,
         "replicas by load, heaviest first onto the lightest device, then swaps"}};
    double w[3 * 8] = {8, 7, 6, 5, 4, 3, 2, 1, 1, 2, 3, 4, 5, 6, 7, 8, 5, 5, 5, 5, 1, 1, 1, 1}, device[12];
    int k, l, d, i;
    for (k = 0; k < 6; k++) {
        moe_ep_place_desc x = desc_of(3, 8, shape_of(4, 8, 1), w);
        moe_ep_placement p = placement_new(3, 8, &x.shape);
        moe_ep_plan_result r[3], seen[3];
        memset(r, 0x7f, sizeof r);
        CHECK_I64(row[k].f(&x, &p, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_device_loads(&p, w, device, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_evaluate(&p, w, 1, seen, NULL, NULL), MOE_EP_OK);
        for (l = 0; l < 3; l++) {
            double most = 0, total = 0, blocks = 0;
            int busiest_device = 0;
            for (d = 0; d < 4; d++) {
                double block = w[8 * l + 2 * d] + w[8 * l + 2 * d + 1];
                total += device[4 * l + d];
                if (device[4 * l + d] > most) most = device[4 * l + d], busiest_device = d;
                if (block > blocks) blocks = block;
            }
            for (i = 0; i < 2; i++) {
                const moe_ep_plan_result *q = i ? &seen[l] : &r[l];
                CHECK_I64(q->policy, i ? MOE_EP_PLACE_GIVEN : row[k].policy);
                CHECK_STR(q->reason, i ? "judged, not planned" : row[k].reason);
                CHECK_NEAR(q->total, total, 1e-12, 0);
                CHECK_NEAR(q->mean, total / 4, 1e-12, 0);
                CHECK_NEAR(q->max, most, 1e-12, 0);
                CHECK_NEAR(q->max_before, blocks, 1e-12, 0);
                CHECK_NEAR(q->imbalance, most / (total / 4), 1e-12, 0);
                CHECK_NEAR(q->gap, q->max / q->lower_bound - 1, 1e-12, 1e-15);
                CHECK_NEAR(q->node_imbalance, 1, 1e-12, 0);
                CHECK_NEAR(q->off_node, 0, 0, 0);
                CHECK_I64(q->busiest_device, busiest_device);
                CHECK_I64(q->slots_used, 8);
                CHECK_I64(q->duplicates, 0);
                CHECK_I64(q->max_replicas, 1);
                CHECK_I64(q->moves, 0);
                if (i || k < 5) CHECK_I64(q->refinements, 0);
            }
        }
        placement_free(&p);
    }
}

/* Loads in another unit (a power of two, which changes no digit) give the same plans. */
TEST(units_change_nothing)
{
    static const planner all[6] = {moe_ep_place_round_robin, moe_ep_place_contiguous, moe_ep_place_lpt,
                                   moe_ep_place_eplb, moe_ep_place_trtllm, moe_ep_best_placement};
    static const double unit[3] = {1, 8.673617379884035e-19 /* 2^-60 */, 1073741824.0 /* 2^30 */};
    uint64_t s = 20240607u;
    int n, i, k, u;
    for (n = 0; n < (t_slow() > 1 ? 10 : 40); n++) {
        int N = 1 + n % 2, D = N * (2 + (int)t_below(&s, 4)), S = 2 + (int)t_below(&s, 3), P = D * S, E = 2 * N;
        double w[2 * 40], x[2 * 40], speed[10];
        moe_ep_placement first[10], p;
        int32_t list[3][80], counts[3][80], slots[3][2];
        int results;
        while (E + 2 * N <= P && E < 36 && t_below(&s, 9)) E += 2 * N;
        for (i = 0; i < 2 * E; i++) w[i] = exp(3 * t_unit(&s));
        for (i = 0; i < D; i++) speed[i] = 0.5 + t_unit(&s);
        for (u = 0; u < 3; u++) {
            moe_ep_place_desc d = desc_of(2, E, shape_of(D, P, N), x);
            moe_ep_rebalance_desc b;
            moe_ep_bound_result bound, plain_bound;
            for (i = 0; i < 2 * E; i++) x[i] = w[i] * unit[u];
            d.num_groups = 2 * N;
            for (k = 0, results = 0; k < 9; k++) {
                p = placement_new(2, E, &d.shape);
                d.shape.speed = k == 6 || k == 8 ? speed : NULL;
                d.node_soft = k == 7;
                d.max_off_node = 0.2;
                CHECK_I64(all[k < 6 ? k : k < 8 ? 5 : 2](&d, &p, NULL, NULL, NULL), MOE_EP_OK);
                if (u == 0) {
                    first[results++] = p;
                    continue;
                }
                CHECK(memcmp(p.slot_expert, first[results++].slot_expert, sizeof(int32_t) * (size_t)(2 * P)) == 0);
                placement_free(&p);
            }
            d = desc_of(2, E, shape_of(D, P, N), x);
            p = placement_new(2, E, &d.shape);
            memset(&b, 0, sizeof b);
            b.current = &first[0]; /* round robin, to be put right */
            b.loads = x;
            b.target = 1.02;
            CHECK_I64(moe_ep_rebalance(&b, &p, NULL, NULL, NULL), MOE_EP_OK);
            if (u == 0) first[9] = p;
            else CHECK(memcmp(p.slot_expert, first[9].slot_expert, sizeof(int32_t) * (size_t)(2 * P)) == 0);
            if (u > 0) placement_free(&p);
            CHECK_I64(moe_ep_lpt(x, E, D, list[u], NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_replicate(x, E, P, D, counts[u], NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_lpt_replicas(x, E, counts[u], D, list[u] + E, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_replica_budgets(&d, 3, slots[u], NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(list[u], list[0], sizeof(int32_t) * (size_t)E) == 0);
            CHECK(memcmp(counts[u], counts[0], sizeof(int32_t) * (size_t)E) == 0);
            for (i = 0, k = 0; i < E; i++) k += counts[u][i];
            CHECK(memcmp(list[u] + E, list[0] + E, sizeof(int32_t) * (size_t)k) == 0);
            CHECK(memcmp(slots[u], slots[0], sizeof slots[0]) == 0);
            CHECK_I64(moe_ep_lower_bound(x, E, &d.shape, &bound, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_lower_bound(w, E, &d.shape, &plain_bound, NULL, NULL), MOE_EP_OK);
            CHECK_NEAR(bound.value, plain_bound.value * unit[u], 0, 0);
        }
        for (k = 0; k < 10; k++) placement_free(&first[k]);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Everything that is said about a placement under several steps of loads, added up again. */
TEST(evaluate_told_plainly)
{
    uint64_t s = 20240607u;
    int n, i, e, l, t, d;
    for (n = 0; n < 200; n++) {
        int D = 1 + (int)t_below(&s, 5), N = 1 + (int)t_below(&s, D), E = 1 + (int)t_below(&s, 6), L = 1 + n % 3;
        int S = 1 + E / D + (int)t_below(&s, 3), P = D * S, steps = 1 + (int)t_below(&s, 3), active = 0;
        double w[3 * 3 * 6], speed[5], device[3 * 5], node[3 * 5];
        int32_t node_of[5];
        uint8_t down[5] = {0};
        moe_ep_shape shape = shape_of(D, P, N);
        moe_ep_place_desc linear;
        moe_ep_placement p, blocks;
        moe_ep_plan_result r[3], line[3];
        for (i = 0; i < steps * L * E; i++) w[i] = t_below(&s, 5) ? (double)t_below(&s, 100) : 0;
        for (d = 0; d < D; d++) {
            speed[d] = n % 2 ? 0.5 + t_unit(&s) : 1;
            node_of[d] = (int32_t)t_below(&s, N);
            down[d] = n % 4 == 1 && d > 0 && t_below(&s, 3) == 0;
        }
        for (d = 0; d < D; d++) active += down[d] ? 0 : S;
        for (d = D - 1; active < E; d--)
            if (down[d]) down[d] = 0, active += S;
        shape.speed = speed;
        shape.node_of_device = node_of;
        shape.inactive = down;
        p = placement_new(L, E, &shape);
        blocks = placement_new(L, E, &shape);
        for (i = 0; i < L * P; i++) p.slot_expert[i] = (int32_t)t_below(&s, E + 1) - 1;
        for (l = 0; l < L; l++)
            for (e = 0, d = 0; e < E; e++) { /* everybody is somewhere alive */
                while (down[d % P / S]) d++;
                p.slot_expert[l * P + d++ % P] = e;
            }
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        memset(r, 0x7f, sizeof r);
        CHECK_I64(moe_ep_evaluate(&p, w, n % 5 == 0 && steps == 1 ? 0 : steps, r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_device_loads(&p, w, device, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_node_loads(&p, w, node, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            double total = 0, mean = 0, max = 0, before = 0, low = 0, uneven = 0, fast = 0, spent[5] = {0}, by[3] = {0};
            int used = 0, twice = 0, most = 0, busy = -1, bound = MOE_EP_BOUND_MEAN;
            for (d = 0; d < D; d++) fast += down[d] ? 0 : speed[d];
            for (t = 0; t < steps; t++) {
                const double *x = w + (t * L + l) * E;
                double load[5] = {0}, of_node[5] = {0}, node_fast[5] = {0}, sum = 0, top = 0, top_node = 0;
                moe_ep_bound_result b;
                for (e = 0; e < E; e++) {
                    int alive = 0;
                    sum += x[e];
                    for (i = 0; i < P; i++) alive += p.slot_expert[l * P + i] == e && !down[i / S];
                    for (i = 0; i < P; i++)
                        if (p.slot_expert[l * P + i] == e && !down[i / S]) load[i / S] += x[e] / alive;
                }
                for (d = 0; d < D; d++) {
                    if (t == 0) CHECK_NEAR(device[l * D + d], load[d], 1e-12, 1e-12);
                    if (down[d]) continue;
                    of_node[node_of[d]] += load[d];
                    node_fast[node_of[d]] += speed[d];
                    if (load[d] / speed[d] > top) top = load[d] / speed[d];
                    spent[d] += load[d] / speed[d];
                }
                for (d = 0; d < N; d++) {
                    if (t == 0) CHECK_NEAR(node[l * N + d], of_node[d], 1e-12, 1e-12);
                    if (node_fast[d] > 0 && of_node[d] / node_fast[d] > top_node) top_node = of_node[d] / node_fast[d];
                }
                linear = desc_of(L, E, shape, w + t * L * E);
                CHECK_I64(moe_ep_place_contiguous(&linear, &blocks, line, NULL, NULL), MOE_EP_OK);
                CHECK_I64(moe_ep_lower_bound(x, E, &shape, &b, NULL, NULL), MOE_EP_OK);
                total += sum;
                mean += sum / fast;
                max += top;
                before += line[l].max;
                low += b.value < top ? b.value : top;
                by[b.bound] += b.value < top ? b.value : top;
                uneven += top_node; /* weighed by load */
            }
            for (d = D - 1; d >= 0; d--) /* the first of the devices that worked longest */
                if (!down[d] && (busy < 0 || spent[d] >= spent[busy])) busy = d;
            for (i = 2; i >= 0; i--)
                if (by[i] >= by[bound]) bound = i;
            for (e = 0; e < E; e++) {
                int copies = 0, on[5] = {0};
                for (i = 0; i < P; i++) {
                    if (p.slot_expert[l * P + i] != e) continue;
                    twice += on[i / S]++ > 0;
                    copies++;
                }
                used += copies;
                if (copies > most) most = copies;
            }
            CHECK_NEAR(r[l].total, total, 1e-12, 0);
            CHECK_NEAR(r[l].mean, mean, 1e-12, 0);
            CHECK_NEAR(r[l].max, max, 1e-12, 0);
            CHECK_NEAR(r[l].max_before, before, 1e-12, 0);
            CHECK_NEAR(r[l].lower_bound, low, 1e-12, 0);
            CHECK_NEAR(r[l].gap, low > 0 ? max / low - 1 : 0, 1e-9, 1e-12);
            CHECK_NEAR(r[l].imbalance, mean > 0 ? max / mean : 1, 1e-9, 0);
            CHECK_NEAR(r[l].node_imbalance, mean > 0 ? uneven / mean : 1, 1e-9, 0);
            CHECK_I64(r[l].slots_used, used);
            CHECK_I64(r[l].duplicates, twice);
            CHECK_I64(r[l].max_replicas, most);
            CHECK_I64(r[l].busiest_device, busy);
            CHECK_I64(r[l].bound, bound);
            CHECK(r[l].policy == MOE_EP_PLACE_GIVEN && r[l].moves == 0 && r[l].refinements == 0);
        }
        placement_free(&p);
        placement_free(&blocks);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Where the only expert is on every device already nothing wants a copy, though there is room for one. */
TEST(rebalance_with_nothing_to_copy)
{
    const double w[1] = {12}, speed[2] = {1, 3};
    moe_ep_shape shape = shape_of(2, 4, 1);
    moe_ep_placement p, q;
    moe_ep_rebalance_desc x;
    moe_ep_plan_result r;
    moe_ep_scratch scratch;
    static double memory[4096];
    shape.speed = speed;
    p = placement_new(1, 1, &shape);
    q = placement_new(1, 1, &shape);
    p.slot_expert[0] = p.slot_expert[2] = 0;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    memset(&x, 0, sizeof x);
    x.current = &p;
    x.loads = w;
    memset(memory, 0x7f, sizeof memory);
    scratch = moe_ep_scratch_fixed(memory, sizeof memory);
    CHECK_I64(moe_ep_rebalance(&x, &q, &r, &scratch, NULL), MOE_EP_OK);
    CHECK_NEAR(r.max_before, 6, 0, 0);
    CHECK(r.max <= 6 && r.moves == 0);
    CHECK_I64(moe_ep_validate(&q, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
    placement_free(&p);
    placement_free(&q);
}

/* One step is no step: the loads stand as they are, and no memory is asked for to merge them. */
TEST(one_step_needs_no_memory)
{
    static const planner all[6] = {moe_ep_place_round_robin, moe_ep_place_contiguous, moe_ep_place_lpt,
                                   moe_ep_place_eplb, moe_ep_place_trtllm, moe_ep_best_placement};
    double w[2 * 16 * 2], need[3];
    int k, i;
    for (i = 0; i < 64; i++) w[i] = 1 + i % 7;
    for (k = 0; k < 6; k++) {
        moe_ep_place_desc d = desc_of(2, 16, shape_of(4, 20, 1), w);
        moe_ep_placement p = placement_new(2, 16, &d.shape);
        moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
        moe_ep_error err;
        d.risk_z = 2;
        for (i = 0; i < 3; i++) {
            d.num_steps = i;
            CHECK_I64(all[k](&d, &p, NULL, &none, &err), MOE_EP_ERR_SCRATCH);
            need[i] = err.value;
        }
        CHECK_NEAR(need[0], need[1], 0, 0);
        CHECK_NEAR(need[2] - need[1], (double)lines_of(2 * 16, sizeof(double)), 0, 0);
        placement_free(&p);
    }
}

/* A double in any layer is named by its slot and expert. */
TEST(doubles_in_any_layer)
{
    int l, i;
    for (l = 0; l < 4; l++) {
        moe_ep_shape shape = shape_of(2, 6, 1);
        moe_ep_placement p = placement_new(4, 4, &shape);
        moe_ep_check_result c;
        moe_ep_error err;
        for (i = 0; i < 24; i++) p.slot_expert[i] = i % 6 < 4 ? i % 6 : i % 6 - 4; /* 0 1 2 | 3 0 1 */
        p.slot_expert[6 * l + 4] = 3;
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, &c, &err), MOE_EP_ERR_PLACEMENT);
        CHECK_I64(err.index, 6 * l + 4);
        CHECK_NEAR(err.value, 3, 0, 0);
        CHECK_I64(moe_ep_validate(&p, 0, &c, &err), MOE_EP_OK);
        CHECK(c.duplicates == 1 && c.slots_used == 24 && c.slots_empty == 0);
        CHECK_I64(c.single_copies, 8); /* 2 and 3 in three layers, 0 and 2 in this one */
        placement_free(&p);
    }
}

/* ---- layers whose optimum is known because they were made from it ---------------------------------------------- */

typedef struct perfect {
    int32_t kind, D, E, slots[8], pin[24], most;
    uint8_t down[8];
    double w[24], speed[8];
    int level, room[8], cells[8], home[24]; /* while it is made: load and cells still free, a device of each expert */
} perfect;

enum {
    PERFECT_LONE,       /* one copy of each                            */
    PERFECT_ROOM,       /* more slots than the plan needs              */
    PERFECT_SPEEDS,     /* of three kinds                              */
    PERFECT_ALIKE,      /* light experts, many of the same load        */
    PERFECT_PINS,       /* and more slots                              */
    PERFECT_IDLE,       /* experts without load, and more slots        */
    PERFECT_DOWN,       /* heavy experts, and a fast device is down    */
    PERFECT_FEW_COPIES, /* at most three                               */
    PERFECT_KINDS
};

/* Fills `n` cells of a device with whole numbers that sum to `rest`, as unlike as `spread` says. */
static void perfect_cells(uint64_t *s, int n, int rest, int spread, int *piece)
{
    int i;
    for (i = 0; i < n; i++) {
        int left = n - i - 1, usual = rest / (left + 1), low = usual - spread, high = usual + spread;
        if (low < 1) low = 1;
        if (high > rest - left) high = rest - left;
        if (low > high) low = high;
        piece[i] = left == 0 ? rest : low + (int)t_below(s, high - low + 1);
        rest -= piece[i];
    }
}

/* An expert with the same whole number on several devices, where so many have room for one. */
static void perfect_copies(perfect *c, uint64_t *s)
{
    int copies = 2 + (int)t_below(s, c->kind == PERFECT_FEW_COPIES ? 2 : c->D - 1), fits = 0, d, n = 0;
    int unit = 1 + (int)t_below(s, c->level / 2);
    uint32_t on = 0;
    if (c->kind == PERFECT_DOWN && c->D > 3) {
        copies = 4 + (int)t_below(s, c->D - 3);
        unit += c->level / 4;
    }
    for (d = 0; d < c->D; d++) fits += c->room[d] - unit >= c->cells[d] - 1 && c->cells[d] > 1;
    if (fits < copies || c->E == 24) return;
    while (n < copies) {
        d = (int)t_below(s, c->D);
        if ((on >> d & 1u) || c->room[d] - unit < c->cells[d] - 1 || c->cells[d] < 2) continue;
        on |= 1u << d;
        c->room[d] -= unit;
        c->cells[d]--;
        c->home[c->E] = d;
        n++;
    }
    c->w[c->E++] = unit * copies;
}

/* What the experts are called is drawn by lot. */
static void perfect_shuffle(perfect *c, uint64_t *s)
{
    int e;
    for (e = c->E - 1; e > 0; e--) {
        int other = (int)t_below(s, e + 1), home = c->home[e];
        double w = c->w[e];
        c->w[e] = c->w[other];
        c->w[other] = w;
        c->home[e] = c->home[other];
        c->home[other] = home;
    }
}

/* One device is down, which was the fastest; the one that it stands before is the last now. */
static void perfect_down(perfect *c, uint64_t *s)
{
    int d = (int)t_below(s, c->D + 1);
    c->slots[c->D] = c->slots[d];
    c->speed[c->D] = c->speed[d];
    c->slots[d] = 2 + (int32_t)t_below(s, 3);
    c->speed[d] = 4.0;
    c->down[d] = 1;
    c->D++;
}

/* Devices are filled first, each to exactly level * speed, and then the experts get their numbers by lot: no plan can
 * be below the mean, and one plan reaches it.  0 = more than 24 experts. */
static int perfect_case(perfect *c, int number)
{
    uint64_t s = (uint64_t)number;
    int kind = number % PERFECT_KINDS, d, e, i, copied, spread, usual, extra;
    memset(c, 0, sizeof *c);
    c->kind = kind;
    c->D = 3 + (int)t_below(&s, 6);
    c->level = 4 * (int)(kind == PERFECT_ALIKE ? 3 + t_below(&s, 8) : 12 + t_below(&s, 40));
    spread = 1 + (int)t_below(&s, kind == PERFECT_ALIKE ? 3 : c->level / 2);
    usual = 3 + (int)t_below(&s, 4);
    for (d = 0; d < c->D; d++) {
        c->speed[d] = kind == PERFECT_DOWN && d % 2 ? 1.5 : 1.0;
        if (kind == PERFECT_SPEEDS) c->speed[d] = 0.5 * (double)(2 + t_below(&s, 3));
        c->room[d] = (int)(c->level * c->speed[d]);
        c->cells[d] = usual + (kind == PERFECT_IDLE || kind == PERFECT_DOWN ? (int)t_below(&s, 2) : 0);
        c->slots[d] = c->cells[d];
    }
    copied = kind == PERFECT_LONE ? 0 : (int)t_below(&s, c->D + 1);
    for (i = 0; i < copied; i++) perfect_copies(c, &s);
    for (d = 0; d < c->D; d++) {
        int piece[8] = {0}, idle = kind == PERFECT_IDLE && c->cells[d] > 3 ? (int)t_below(&s, 3) : 0;
        perfect_cells(&s, c->cells[d] - idle, c->room[d], spread, piece);
        for (i = 0; i < c->cells[d]; i++, c->E++) {
            if (c->E == 24) return 0;
            c->w[c->E] = piece[i];
            c->home[c->E] = d;
        }
    }
    if (kind == PERFECT_FEW_COPIES) c->most = 3;
    extra = kind == PERFECT_ROOM || kind == PERFECT_PINS || kind == PERFECT_IDLE ? (int)t_below(&s, 3) : 0;
    for (d = 0; d < c->D; d++) c->slots[d] += extra > 0 && (extra == 2 || d % 2 == 0); /* not needed by the plan */
    perfect_shuffle(c, &s);
    for (e = 0; e < c->E; e++) c->pin[e] = kind == PERFECT_PINS && t_below(&s, 6) == 0 ? c->home[e] : -1;
    if (kind == PERFECT_DOWN && c->D < 8) perfect_down(c, &s);
    return 1;
}

static moe_ep_plan_result perfect_plan(const perfect *c, moe_ep_placement *p)
{
    moe_ep_place_desc d = desc_of(1, c->E, shape_of(c->D, 0, 1), c->w);
    d.shape.slots_per_device = c->slots;
    if (c->kind == PERFECT_SPEEDS || c->kind == PERFECT_DOWN) d.shape.speed = c->speed;
    d.shape.inactive = c->down;
    if (c->kind == PERFECT_PINS) d.pinned = c->pin;
    d.max_replicas = c->most;
    return plan_one(moe_ep_best_placement, &d, p, NULL);
}

/* Swaps, changes and kicks leave the devices of each of these layers uneven: only the search through all plans comes to
 * the even one, and within its nodes only as long as it passes over all that it may pass over. */
TEST(made_even_and_found_even)
{
    static const int32_t numbers[] = {
        58, 79, 82, 138, 151, 167, 215, 217, 247, 274, 298, 362, 373, 455, 471, 477, 542, 562, 745, 771,
        808, 833, 834, 844, 894, 940, 949, 994, 1073, 1077, 1106, 1158, 1199, 1207, 1228, 1250, 1260,
        1302, 1337, 1367, 1379, 1403, 1412, 1413, 1415, 1433, 1481, 1509, 1513, 1594, 1627, 1633, 1673,
        1711, 1769, 1786, 1813, 1819, 1836, 1840, 1846, 1853, 1897, 1912, 1913, 1939, 1982, 1984, 2011,
        2015, 2040, 2062, 2075, 2468, 2470, 2566, 2620, 2796, 2891, 2899, 2907, 2949, 3011, 3024, 3091,
        3102, 3236, 3394, 3421, 3486, 3496, 3570, 3664, 3668, 3694, 3700, 3720, 3756, 3758, 3784, 3821,
        4077, 4152, 4605, 5057, 6008, 6816, 8477, 8671, 10499, 11364, 12036, 13165, 15035, 15564, 16212,
        17721, 19170, 19180, 23010, 24458, 24670, 26086, 27298, 28052, 30668, 33164, 41058, 41074,
        93297, 93594, 99159, 99406, 99685, 99723, 99850, 99937, 99944, 99988};
    int n, i, kinds[PERFECT_KINDS] = {0};
    for (n = 0; n < (int)(sizeof numbers / sizeof numbers[0]); n++) {
        perfect c;
        moe_ep_placement p;
        moe_ep_plan_result r;
        double load = 0, speed = 0;
        CHECK(perfect_case(&c, numbers[n]));
        for (i = 0; i < c.E; i++) load += c.w[i];
        for (i = 0; i < c.D; i++) speed += c.down[i] ? 0 : c.speed[i];
        CHECK_NEAR(load / speed, c.level, 1e-12, 0);
        r = perfect_plan(&c, &p);
        CHECK_I64(moe_ep_validate(&p, MOE_EP_CHECK_NO_DUPLICATES, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.max, c.level, 1e-9, 0);
        CHECK_NEAR(busiest(&p, 0, c.w), c.level, 1e-9, 0);
        for (i = 0; i < c.E; i++) {
            CHECK(c.most == 0 || p.replica_start[i + 1] - p.replica_start[i] <= c.most);
            CHECK(c.pin[i] < 0 || on_device(&p, c.pin[i], i));
        }
        kinds[c.kind]++;
        placement_free(&p);
        STOP_IF_FAILED("case %d", numbers[n]);
    }
    for (i = 0; i < PERFECT_KINDS; i++) CHECK(kinds[i] >= 14);
}

TEST(places_of_errors)
{
    const double even[2] = {1, 1};
    const int32_t devices[4] = {0, 1, 1, 1};
    int32_t layer_slots[1], l;
    int64_t memory[2][256];
    moe_ep_placement p, q;
    moe_ep_shape shape;
    moe_ep_place_desc d;
    moe_ep_rebalance_desc r;
    moe_ep_moves_result moves;
    moe_ep_plan_result result;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = 2;
    d.shape.num_devices = 2;
    d.shape.num_slots = 4;
    d.loads = even;
    CHECK_I64(moe_ep_replica_budgets(&d, -1, layer_slots, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, -1);
    CHECK_NEAR(err.value, -1, 0, 0);
    /* two layers, two devices of one slot each: the second layer's second copy finds device 1 full */
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 2;
    CHECK_I64(moe_ep_placement_init(&p, 2, 2, &shape, memory[0], sizeof memory[0], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_devices_placement(devices, NULL, &p, &err), MOE_EP_ERR_SLOTS);
    CHECK_I64(err.index, 3);
    /* every limit by its name */
    CHECK_I64(moe_ep_placement_init(&p, 1, 2, &shape, memory[0], sizeof memory[0], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_init(&q, 1, 2, &shape, memory[1], sizeof memory[1], NULL), MOE_EP_OK);
    p.slot_expert[0] = 0, p.slot_expert[1] = 1;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    for (l = 0; l < 4; l++) {
        static const char *const name[4] = {"desc.max_moves", "desc.max_layer_moves", "desc.max_device_moves",
                                            "desc.max_link_moves"};
        memset(&r, 0, sizeof r);
        r.current = &p;
        r.loads = even;
        r.max_moves = l == 0 ? -3 : 0;
        r.max_layer_moves = l == 1 ? -3 : 0;
        r.max_device_moves = l == 2 ? -3 : 0;
        r.max_link_moves = l == 3 ? -3 : 0;
        CHECK_I64(moe_ep_rebalance(&r, &q, NULL, NULL, &err), MOE_EP_ERR_RANGE);
        CHECK_STR(err.arg, name[l]);
        CHECK_NEAR(err.value, -3, 0, 0);
        CHECK_I64(err.index, -1);
    }
    CHECK_I64(moe_ep_evaluate(&p, even, -1, &result, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_steps");
    /* empty slots that stay empty are unchanged, too */
    shape.num_slots = 4;
    CHECK_I64(moe_ep_placement_init(&q, 1, 2, &shape, memory[1], sizeof memory[1], NULL), MOE_EP_OK);
    q.slot_expert[0] = 0, q.slot_expert[2] = 1;
    CHECK_I64(moe_ep_placement_index(&q, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_moves(&q, &q, 0, NULL, 0, &moves, NULL, &err), MOE_EP_OK);
    CHECK_I64(moves.unchanged, 4);
}

TEST(device_loads_that_add_up_to_too_much)
{
    const double loads[4] = {1, 1, 1e281, 1};
    double device[4];
    int64_t memory[256];
    moe_ep_placement p;
    moe_ep_shape shape;
    moe_ep_error err;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 2;
    CHECK_I64(moe_ep_placement_init(&p, 2, 2, &shape, memory, sizeof memory, NULL), MOE_EP_OK);
    p.slot_expert[0] = p.slot_expert[2] = 0, p.slot_expert[1] = p.slot_expert[3] = 1;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_device_loads(&p, loads, device, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(err.index, 2);
}

/* Whatever is wrong with an expert, it is named by its place among all layers. */
TEST(places_of_errors_in_later_layers)
{
    double loads[16], two[8] = {1e38, 2e38, 1, 1, 3e38, 2.5e38, 1, 1};
    int32_t pinned[8], slots[4], device[8], counts[8], i, phy[8], log2phy[16], logcnt[8];
    moe_ep_placement p = placement_new(2, 4, (moe_ep_shape[1]){shape_of(2, 4, 0)}), wide, one;
    moe_ep_place_desc d;
    moe_ep_error err;
    for (i = 0; i < 16; i++) loads[i] = 1 + i % 5;
    d = desc_of(2, 4, shape_of(2, 6, 0), loads);
    wide = placement_new(2, 4, &d.shape);
    d.pinned = pinned;
    for (i = 0; i < 8; i++) pinned[i] = -1;
    pinned[6] = 9; /* no such device */
    CHECK_I64(moe_ep_best_placement(&d, &wide, NULL, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 6);
    CHECK_I64(moe_ep_replica_budgets(&d, 1, slots, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 6);
    CHECK_NEAR(err.value, 9, 0, 0);
    for (i = 4; i < 8; i++) pinned[i] = 0; /* three slots */
    CHECK_I64(moe_ep_best_placement(&d, &wide, NULL, NULL, &err), MOE_EP_ERR_INFEASIBLE);
    CHECK_I64(err.index, 7);
    CHECK_I64(moe_ep_replica_budgets(&d, 1, slots, NULL, &err), MOE_EP_ERR_INFEASIBLE);
    CHECK_I64(err.index, 7);
    CHECK_I64(moe_ep_replica_budgets(&d, 1, slots, NULL, NULL), MOE_EP_ERR_INFEASIBLE);
    d.max_replicas = -1;
    CHECK_I64(moe_ep_replica_budgets(&d, 1, slots, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, -1);
    d.max_replicas = 0;
    d.pinned = NULL;
    d.num_steps = 2; /* each fits, the mean and so many deviations do not */
    d.risk_z = 1;
    for (i = 0; i < 16; i++) loads[i] = 1;
    loads[14] = 1e151;
    CHECK_I64(moe_ep_replica_budgets(&d, 1, slots, NULL, &err), MOE_EP_OK);
    d.risk_z = 1e130; /* above 1e280 */
    CHECK_I64(moe_ep_replica_budgets(&d, 1, slots, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(err.index, 4);
    d.risk_z = 1e300;
    CHECK_I64(moe_ep_best_placement(&d, &wide, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(err.index, 6);
    /* float32 holds each step, not what they come to */
    d = desc_of(1, 4, shape_of(2, 4, 0), two);
    d.num_steps = 2;
    one = placement_new(1, 4, &d.shape);
    one.slot_expert[0] = 77;
    CHECK_I64(moe_ep_place_trtllm(&d, &one, NULL, NULL, &err), MOE_EP_OK);
    one.slot_expert[0] = 77;
    d.risk_z = 10;
    CHECK_I64(moe_ep_place_eplb(&d, &one, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "loads");
    CHECK_I64(err.index, 0);
    CHECK_NEAR(err.value, 12e38, 1e-9, 0);
    CHECK_I64(moe_ep_place_trtllm(&d, &one, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(one.slot_expert[0], 77);
    CHECK_I64(moe_ep_best_placement(&d, &one, NULL, NULL, &err), MOE_EP_OK); /* in double */
    d.node_soft = 1;
    CHECK_I64(moe_ep_best_placement(&d, &one, NULL, NULL, &err), MOE_EP_ERR_RANGE); /* homes are EPLB's */
    d = desc_of(2, 4, shape_of(2, 4, 0), loads);
    for (i = 0; i < 8; i++) loads[i] = 1;
    loads[5] = 4e38;
    CHECK_I64(moe_ep_place_eplb(&d, &p, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 5);
    /* nodes that have fewer slots than experts at home */
    d = desc_of(1, 4, shape_of(2, 4, 2), loads + 8);
    for (i = 0; i < 4; i++) device[i] = 1;
    d.node_soft = 1;
    d.home_node = device;
    d.shape.num_slots = 6;
    placement_free(&one);
    one = placement_new(1, 4, &d.shape);
    CHECK_I64(moe_ep_best_placement(&d, &one, NULL, NULL, &err), MOE_EP_ERR_INFEASIBLE);
    CHECK_I64(err.index, 1);
    CHECK_NEAR(err.value, -1, 0, 0);
    /* assignments, maps and what evaluation finds in them */
    for (i = 0; i < 8; i++) device[i] = i / 2 % 2, counts[i] = i != 6;
    CHECK_I64(moe_ep_devices_placement(device, counts, &p, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 6);
    CHECK_I64(moe_ep_devices_placement(device, NULL, &p, &err), MOE_EP_OK);
    p.replica_start[5 + 2] = 0; /* falls */
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 7);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.replica_start[9] = 3;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 9);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.replica_start[5] = 1;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 5);
    CHECK_NEAR(err.value, 1, 0, 0);
    p.slot_expert[4 + 3] = -1; /* expert 3 of layer 1 */
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_LOST_EXPERT);
    CHECK_I64(err.index, 7);
    loads[5] = 1;
    {
        double each[4];
        CHECK_I64(moe_ep_device_loads(&p, loads, each, &err), MOE_EP_ERR_LOST_EXPERT);
        CHECK_I64(err.index, 7);
    }
    for (i = 0; i < 8; i++) phy[i] = i % 4, logcnt[i] = 1, log2phy[2 * i] = i % 4, log2phy[2 * i + 1] = -1;
    CHECK_I64(moe_ep_placement_from_eplb(phy, log2phy, 2, logcnt, &p, &err), MOE_EP_OK);
    log2phy[2 * 6] = -1;
    CHECK_I64(moe_ep_placement_from_eplb(phy, log2phy, 2, logcnt, &p, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "log2phy");
    CHECK_I64(err.index, 12);
    {
        int32_t wide3[24];
        for (i = 0; i < 24; i++) wide3[i] = i % 3 ? -1 : i / 3 % 4;
        CHECK_I64(moe_ep_placement_from_eplb(phy, wide3, 3, logcnt, &p, &err), MOE_EP_OK);
        wide3[18] = -1, wide3[19] = wide3[20] = 2; /* the slot of expert 2 of layer 1, twice behind a gap */
        CHECK_I64(moe_ep_placement_from_eplb(phy, wide3, 3, logcnt, &p, &err), MOE_EP_ERR_PLACEMENT);
        CHECK_I64(err.index, 20);
        CHECK_NEAR(err.value, 2, 0, 0);
    }
    /* devices that do not have all slots */
    p.slot_start[2] = 3;
    CHECK_I64(moe_ep_validate(&p, 0, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 2);
    CHECK_NEAR(err.value, 3, 0, 0);
    placement_free(&p);
    placement_free(&wide);
    placement_free(&one);
}

/* Pins that pin nothing, and no groups on one node, are as if they were not given. */
TEST(nothing_pinned_is_no_pin)
{
    uint64_t s = t_seed + 63;
    for (int round = 0; round < 60; round++) {
        int32_t E = 4 + (int32_t)t_below(&s, 12), D = 2 + (int32_t)t_below(&s, 3), free_all[16], i;
        double loads[16];
        moe_ep_place_desc d = desc_of(1, E, shape_of(D, D * ((E + D - 1) / D + (int32_t)t_below(&s, 2)), 0), loads);
        moe_ep_placement a = placement_new(1, E, &d.shape), b = placement_new(1, E, &d.shape);
        moe_ep_plan_result ra, rb;
        for (i = 0; i < E; i++) loads[i] = (double)t_below(&s, 100), free_all[i] = -1;
        CHECK_I64(moe_ep_best_placement(&d, &a, &ra, NULL, NULL), MOE_EP_OK);
        d.pinned = free_all;
        CHECK_I64(moe_ep_best_placement(&d, &b, &rb, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(a.slot_expert, b.slot_expert, sizeof *a.slot_expert * (size_t)a.num_slots) == 0);
        CHECK_STR(ra.reason, rb.reason);
        d.node_soft = 1;
        d.num_groups = 1;
        CHECK_I64(moe_ep_best_placement(&d, &a, &ra, NULL, NULL), MOE_EP_OK);
        d.num_groups = 0;
        CHECK_I64(moe_ep_best_placement(&d, &b, &rb, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(a.slot_expert, b.slot_expert, sizeof *a.slot_expert * (size_t)a.num_slots) == 0);
        d.num_groups = -1;
        CHECK_I64(moe_ep_best_placement(&d, &b, &rb, NULL, NULL), MOE_EP_ERR_CONFIG);
        d.num_groups = 0;
        free_all[E - 1] = 0;
        CHECK_I64(moe_ep_best_placement(&d, &b, &rb, NULL, NULL), MOE_EP_ERR_CONFIG);
        placement_free(&a);
        placement_free(&b);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Pins of one layer leave the others as they are planned without. */
TEST(pins_of_one_layer)
{
    uint64_t s = t_seed + 64;
    for (int round = 0; round < 60; round++) {
        int32_t E = 4 + (int32_t)t_below(&s, 12), D = 2 + (int32_t)t_below(&s, 3), pinned[32], i;
        double loads[32];
        moe_ep_place_desc d = desc_of(2, E, shape_of(D, D * ((E + D - 1) / D + (int32_t)t_below(&s, 3)), 0), loads);
        moe_ep_placement a = placement_new(2, E, &d.shape), b = placement_new(2, E, &d.shape);
        moe_ep_plan_result ra[2], rb[2];
        for (i = 0; i < 2 * E; i++) loads[i] = (double)t_below(&s, 12) * (double)t_below(&s, 12), pinned[i] = -1;
        pinned[t_below(&s, (uint64_t)E)] = (int32_t)t_below(&s, (uint64_t)D);
        CHECK_I64(moe_ep_best_placement(&d, &a, ra, NULL, NULL), MOE_EP_OK);
        d.pinned = pinned;
        CHECK_I64(moe_ep_best_placement(&d, &b, rb, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(a.slot_expert + a.num_slots, b.slot_expert + a.num_slots,
                     sizeof *a.slot_expert * (size_t)a.num_slots) == 0);
        CHECK_STR(ra[1].reason, rb[1].reason);
        placement_free(&a);
        placement_free(&b);
        STOP_IF_FAILED("round %d", round);
    }
}

/* A layer that keeps more copies than its budget is held to the bound of what it keeps. */
TEST(bound_of_a_layer_above_its_budget)
{
    static const int32_t slots[12] = {0, 1, 2, 3, -1, -1, 0, 1, 2, 3, 1, 2};
    static const double loads[8] = {12, 2, 2, 2, 12, 2, 2, 2};
    static const int32_t budget[2] = {4, 4};
    const moe_ep_shape shape = shape_of(2, 6, 0);
    moe_ep_placement now = placement_new(2, 4, &shape), out = placement_new(2, 4, &shape);
    moe_ep_rebalance_desc d;
    moe_ep_plan_result r[2];
    memcpy(now.slot_expert, slots, sizeof slots);
    CHECK_I64(moe_ep_placement_index(&now, NULL), MOE_EP_OK);
    memset(&d, 0, sizeof d);
    d.current = &now;
    d.loads = loads;
    d.target = 2;
    d.layer_slots = budget;
    CHECK_I64(moe_ep_rebalance(&d, &out, r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r[0].slots_used, 4);
    CHECK_NEAR(r[0].lower_bound, 12, 1e-12, 0); /* no copies: the heaviest expert */
    CHECK_I64(r[1].slots_used, 6);
    CHECK_NEAR(r[1].lower_bound, 9, 1e-12, 0); /* the mean, which copies of the heaviest reach */
    CHECK_NEAR(r[1].max, 14, 1e-12, 0);
    placement_free(&now);
    placement_free(&out);
}

/* An expert twice on a device of the plan is one that stays, not two. */
TEST(relabel_counts_doubles_once)
{
    uint64_t s = t_seed;
    const int32_t hold[6] = {0, 1, 2, 3, 4, 5}, wish[6] = {0, 0, 0, 1, 2, 7}, want[6] = {7, 1, 2, 0, 0, 0};
    moe_ep_shape shape = shape_of(2, 6, 1);
    moe_ep_placement now = placement_new(1, 8, &shape), plan = placement_new(1, 8, &shape);
    int n, i, j, k;
    memcpy(now.slot_expert, hold, sizeof hold);
    memcpy(plan.slot_expert, wish, sizeof wish);
    CHECK_I64(moe_ep_placement_index(&now, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_placement_index(&plan, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_relabel(&now, &plan, 0, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 6; i++) CHECK_I64(plan.slot_expert[i], want[i]);
    placement_free(&now);
    placement_free(&plan);
    shape = shape_of(3, 9, 1);
    for (n = 0; n < 300; n++) { /* against all six ways of naming three devices */
        static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
        int most = -1, kept = 0, got[2];
        now = placement_new(1, 5, &shape);
        plan = placement_new(1, 5, &shape);
        for (i = 0; i < 9; i++) {
            now.slot_expert[i] = (int32_t)t_below(&s, 5);
            plan.slot_expert[i] = (int32_t)t_below(&s, 6) - 1;
        }
        CHECK_I64(moe_ep_placement_index(&now, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_placement_index(&plan, NULL), MOE_EP_OK);
        for (k = 0; k < 7; k++) { /* the last time round: as relabel has it */
            kept = 0;
            if (k == 6) CHECK_I64(moe_ep_relabel(&now, &plan, 0, NULL, NULL), MOE_EP_OK);
            for (i = 0; i < 15; i++) {
                got[0] = got[1] = 0;
                for (j = 0; j < 3; j++) {
                    got[0] |= now.slot_expert[i / 5 * 3 + j] == i % 5;
                    got[1] |= plan.slot_expert[(k < 6 ? orders[k][i / 5] : i / 5) * 3 + j] == i % 5;
                }
                kept += got[0] && got[1];
            }
            if (k < 6 && kept > most) most = kept;
        }
        CHECK_I64(kept, most);
        placement_free(&now);
        placement_free(&plan);
        STOP_IF_FAILED("case %d", n);
    }
}

/* As many devices as make the arrays of relabel end where blocks of memory end: contents handed round come back. */
TEST(relabel_turns_a_ring_back)
{
    int D, d, i;
    for (D = 7; D <= 63; D += 8) {
        moe_ep_shape shape = shape_of(D, 2 * D, 1);
        moe_ep_placement now = placement_new(1, 2 * D, &shape), plan = placement_new(1, 2 * D, &shape);
        moe_ep_scratch scratch = moe_ep_scratch_fixed(NULL, 0);
        void *memory;
        for (d = 0; d < D; d++)
            for (i = 0; i < 2; i++) {
                now.slot_expert[2 * d + i] = 2 * d + i;
                plan.slot_expert[2 * ((d + 3) % D) + 1 - i] = 2 * d + i;
            }
        CHECK_I64(moe_ep_placement_index(&now, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_placement_index(&plan, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_relabel(&now, &plan, 0, &scratch, NULL), MOE_EP_ERR_SCRATCH);
        memory = t_alloc(scratch.need); /* no byte more than it wants */
        scratch = moe_ep_scratch_fixed(memory, scratch.need);
        CHECK_I64(moe_ep_relabel(&now, &plan, 0, &scratch, NULL), MOE_EP_OK);
        CHECK(memcmp(now.slot_expert, plan.slot_expert, sizeof(int32_t) * (size_t)(2 * D)) == 0);
        free(memory);
        placement_free(&now);
        placement_free(&plan);
    }
}

/* Loads that differ only far behind the point, in an order that insertion takes long for. */
TEST(loads_that_are_nearly_equal)
{
    uint64_t s = t_seed;
    enum { MANY = 128 };
    double w[MANY];
    int32_t got[MANY], want[MANY], cap[5], ones[MANY];
    double speed[5];
    int n, e;
    for (n = 0; n < 40; n++) {
        for (e = 0; e < MANY; e++) {
            w[e] = 1 + (n % 2 ? (double)e : floor(60 * t_unit(&s))) * 0x1p-40;
            if (n > 30 && e % 2) w[e] += (double)t_below(&s, 9);
            ones[e] = 1;
        }
        for (e = 0; e < 5; e++) {
            cap[e] = MANY;
            speed[e] = 1;
        }
        CHECK_I64(moe_ep_lpt(w, MANY, 5, got, NULL, NULL), MOE_EP_OK);
        naive_deal(w, ones, MANY, 5, cap, speed, 0, want);
        for (e = 0; e < MANY; e++) CHECK_I64(got[e], want[e]);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Slots of inactive devices are planned with, too: for all but the first, memory for the active ones is too little. */
TEST(budgets_beside_many_dead_slots)
{
    const double loads[4] = {100, 10, 10, 10};
    const uint8_t down[2] = {0, 1};
    int32_t slots[2] = {6, 6}, budget;
    int n;
    for (n = 0; n < 4; n++, slots[1] *= 20) {
        moe_ep_shape shape = shape_of(2, 0, 1);
        moe_ep_place_desc d;
        moe_ep_error err;
        shape.slots_per_device = slots;
        shape.inactive = down;
        d = desc_of(1, 4, shape, loads);
        CHECK_I64(moe_ep_replica_budgets(&d, 2, &budget, NULL, &err), MOE_EP_OK);
        CHECK(budget >= 4 && budget <= 6);
    }
}

T_MAIN
