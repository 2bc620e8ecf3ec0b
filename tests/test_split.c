/* tests/test_split.c - section 6: rows over replicas, rows to slots.
 * SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"

static moe_ep_placement placement_new(int32_t L, int32_t E, const moe_ep_shape *shape)
{
    moe_ep_placement p;
    size_t bytes = moe_ep_placement_bytes(L, E, shape);
    memset(&p, 0, sizeof p);
    if (bytes == 0 || moe_ep_placement_init(&p, L, E, shape, t_alloc(bytes), bytes, NULL) != MOE_EP_OK) {
        fprintf(stderr, "placement_new failed\n");
        exit(2);
    }
    return p;
}

static void placement_free(moe_ep_placement *p) { free(p->device_speed); } /* first in its block */

static moe_ep_split_desc split_of(moe_ep_split_policy policy)
{
    moe_ep_split_desc d;
    memset(&d, 0, sizeof d);
    d.policy = policy;
    return d;
}

/* One layer from a slot table. */
static moe_ep_placement table(int32_t E, int32_t D, int32_t P, int32_t N, const int32_t *slots)
{
    moe_ep_shape s;
    moe_ep_placement p;
    memset(&s, 0, sizeof s);
    s.num_devices = D;
    s.num_slots = P;
    s.num_nodes = N;
    p = placement_new(1, E, &s);
    memcpy(p.slot_expert, slots, sizeof *slots * (size_t)P);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    return p;
}

TEST(even_and_round_robin)
{
    const int32_t slots[6] = {0, 1, 0, 2, 0, -1};
    const int64_t counts[3] = {10, 3, 0}, even[6] = {4, 3, 3, 0, 3, 0}, turned[6] = {3, 3, 4, 0, 3, 0};
    moe_ep_placement p = table(3, 3, 6, 1, slots);
    moe_ep_split_desc d = split_of(MOE_EP_SPLIT_EVEN);
    int64_t rows[6], device[3];
    int i;
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 6; i++) CHECK_I64(rows[i], even[i]);
    CHECK_I64(moe_ep_device_rows(&p, rows, device, NULL), MOE_EP_OK);
    CHECK_I64(device[0], 7);
    CHECK_I64(device[2], 3);
    d.policy = MOE_EP_SPLIT_ROUND_ROBIN;
    d.seed = 1;
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 6; i++) CHECK_I64(rows[i], turned[i]);
    p.device_inactive[0] = 1;
    d.policy = MOE_EP_SPLIT_EVEN;
    rows[0] = -5;
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_ERR_LOST_EXPERT);
    CHECK_I64(rows[0], -5);
    placement_free(&p);
}

TEST(exact_example)
{
    const int32_t slots[4] = {0, -1, 0, 1};
    const double loads[2] = {6, 2};
    const int64_t counts[2] = {6, 2};
    moe_ep_placement p = table(2, 2, 4, 1, slots);
    moe_ep_split_desc d = split_of(MOE_EP_SPLIT_EXACT);
    double share[4], worst = 0;
    int64_t rows[4];
    CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &worst, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(share[0], 4, 1e-12, 0);
    CHECK_NEAR(share[2], 2, 1e-12, 0);
    CHECK_NEAR(share[3], 2, 1e-12, 0);
    CHECK_NEAR(worst, 4, 1e-12, 0);
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    CHECK_I64(rows[0], 4);
    CHECK_I64(rows[2], 2);
    CHECK_I64(rows[3], 2);
    placement_free(&p);
}

/* Least busiest device over all splits into whole rows: is `level` enough?  Maximum flow, one row at a time. */
static int flow_fits(const moe_ep_placement *p, const int64_t *counts, int64_t level)
{
    int E = p->num_experts, D = p->num_devices, e, i, d;
    int64_t flow[8][8], used[8];
    memset(flow, 0, sizeof flow);
    memset(used, 0, sizeof used);
    for (e = 0; e < E; e++) {
        int64_t t;
        for (t = 0; t < counts[e]; t++) {
            int from_e[8], via[8], queue[8], head = 0, tail = 0, found = -1; /* search over devices */
            for (d = 0; d < D; d++) from_e[d] = -1;
            for (i = p->replica_start[e]; i < p->replica_start[e + 1]; i++) {
                d = p->slot_device[p->replica_slot[i]];
                if (from_e[d] >= 0 || p->device_inactive[d]) continue;
                from_e[d] = e;
                via[d] = -1;
                queue[tail++] = d;
            }
            while (head < tail && found < 0) {
                int here = queue[head++], x, j;
                if (used[here] < level) { found = here; break; }
                for (x = 0; x < E; x++) {
                    if (flow[x][here] == 0) continue;
                    for (j = p->replica_start[x]; j < p->replica_start[x + 1]; j++) {
                        int to = p->slot_device[p->replica_slot[j]];
                        if (from_e[to] >= 0 || p->device_inactive[to]) continue;
                        from_e[to] = x;
                        via[to] = here;
                        queue[tail++] = to;
                    }
                }
            }
            if (found < 0) return 0;
            used[found]++;
            for (d = found; d >= 0; d = via[d]) {
                flow[from_e[d]][d]++;
                if (via[d] >= 0) flow[from_e[d]][via[d]]--;
            }
        }
    }
    return 1;
}

static moe_ep_placement random_table(uint64_t *s, int *pE, int *pD)
{
    int E = 1 + (int)t_below(s, 6), D = 1 + (int)t_below(s, 5), S = 1 + (int)t_below(s, 4), P, i;
    int32_t slots[64];
    while (D * S < E) S++;
    P = D * S;
    for (i = 0; i < P; i++) slots[i] = i < E ? i : (int32_t)t_below(s, E + 1) - 1;
    for (i = P - 1; i > 0; i--) {
        int j = (int)t_below(s, i + 1);
        int32_t t = slots[i];
        slots[i] = slots[j];
        slots[j] = t;
    }
    *pE = E;
    *pD = D;
    return table(E, D, P, 1 + (int)t_below(s, D), slots);
}

TEST(sums_and_optimum)
{
    uint64_t s = t_seed;
    int n, policy, e, i, d;
    for (n = 0; n < 1500; n++) {
        int E, D;
        moe_ep_placement p = random_table(&s, &E, &D);
        int64_t counts[8], source[8 * 8], rows[64], device[8], worst_exact = 0, level;
        double loads[8], share[64], worst = 0;
        for (e = 0; e < E; e++) {
            counts[e] = t_below(&s, 4) ? t_below(&s, 40) : 0;
            loads[e] = (double)counts[e];
            for (d = 0; d < D; d++) source[d * E + e] = 0;
            for (i = 0; i < counts[e]; i++) source[t_below(&s, D) * E + e]++;
        }
        for (policy = 0; policy <= MOE_EP_SPLIT_EXACT; policy++) {
            moe_ep_split_desc desc = split_of((moe_ep_split_policy)policy);
            desc.source_counts = source;
            desc.seed = (uint64_t)n;
            CHECK_I64(moe_ep_split(&desc, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
            for (e = 0; e < E; e++) {
                int64_t sum = 0;
                for (i = p.replica_start[e]; i < p.replica_start[e + 1]; i++) {
                    CHECK(rows[p.replica_slot[i]] >= 0);
                    sum += rows[p.replica_slot[i]];
                }
                CHECK_I64(sum, counts[e]);
            }
            for (i = 0; i < p.num_slots; i++)
                if (p.slot_expert[i] < 0) CHECK_I64(rows[i], 0);
        }
        CHECK_I64(moe_ep_device_rows(&p, rows, device, NULL), MOE_EP_OK); /* of the last policy, exact */
        for (d = 0; d < D; d++)
            if (device[d] > worst_exact) worst_exact = device[d];
        for (level = 0; !flow_fits(&p, counts, level); level++) {}
        CHECK_I64(worst_exact, level);
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &worst, NULL, NULL), MOE_EP_OK);
        CHECK(worst <= (double)level + 1e-6);
        CHECK(worst > (double)level - 1.0);
        for (e = 0; e < E; e++) {
            double sum = 0;
            for (i = p.replica_start[e]; i < p.replica_start[e + 1]; i++) sum += share[p.replica_slot[i]];
            CHECK_NEAR(sum, loads[e], 1e-12, 0);
        }
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(assign)
{
    const int32_t slots[3] = {0, 1, 0}, ids[5] = {0, 0, -1, 0, 1}, want[5] = {0, 2, -1, 2, 1};
    const int64_t quota[3] = {1, 1, 2}, bad[3] = {1, 1, 1};
    moe_ep_placement p = table(2, 3, 3, 1, slots);
    int32_t got[5] = {9, 9, 9, 9, 9};
    moe_ep_error err;
    int i;
    CHECK_I64(moe_ep_assign_slots(&p, 0, ids, 5, bad, got, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(err.index, 0);
    CHECK_NEAR(err.value, 3, 0, 0);
    CHECK_I64(got[0], 9);
    CHECK_I64(moe_ep_assign_slots(&p, 0, ids, 5, quota, got, NULL, &err), MOE_EP_OK);
    for (i = 0; i < 5; i++) CHECK_I64(got[i], want[i]);
    placement_free(&p);
}

TEST(assign_random)
{
    uint64_t s = t_seed;
    int n, i, e;
    for (n = 0; n < 400; n++) {
        int E, D, policy = (int)t_below(&s, MOE_EP_SPLIT_EXACT + 1);
        moe_ep_placement p = random_table(&s, &E, &D);
        moe_ep_split_desc d = split_of((moe_ep_split_policy)policy);
        int32_t ids[200], got[200], from[200];
        int64_t counts[8] = {0}, source[64] = {0}, rows[64], seen[64] = {0}, local = 0, plain = 0;
        for (i = 0; i < 200; i++) {
            ids[i] = (int32_t)t_below(&s, E + 1) - 1;
            from[i] = (int32_t)t_below(&s, D);
            if (ids[i] < 0) continue;
            counts[ids[i]]++;
            source[from[i] * E + ids[i]]++;
        }
        d.source_counts = source;
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
        for (e = 0; e < 2; e++) {
            memset(seen, 0, sizeof seen);
            if (e == 0) CHECK_I64(moe_ep_assign_slots(&p, 0, ids, 200, rows, got, NULL, NULL), MOE_EP_OK);
            else CHECK_I64(moe_ep_assign_slots_local(&p, 0, ids, 200, from, rows, got, NULL, NULL), MOE_EP_OK);
            for (i = 0; i < 200; i++) {
                if (ids[i] < 0) {
                    CHECK_I64(got[i], -1);
                    continue;
                }
                CHECK(got[i] >= 0 && got[i] < p.num_slots);
                CHECK_I64(p.slot_expert[got[i]], ids[i]);
                seen[got[i]]++;
                if (p.slot_device[got[i]] == from[i]) *(e ? &local : &plain) += 1;
            }
            for (i = 0; i < p.num_slots; i++) CHECK_I64(seen[i], rows[i]);
        }
        CHECK(local >= plain);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Parity of the token index must not decide the replica, nor may all experts choose alike. */
TEST(hash_bits)
{
    const int32_t slots[8] = {0, 1, 0, 1, 0, 1, 0, 1};
    moe_ep_placement p = table(2, 4, 8, 1, slots);
    int64_t even[8] = {0}, alike = 0, s, key;
    for (key = 0; key < 4000; key++) {
        s = moe_ep_pick_slot(&p, 0, 0, (uint64_t)key, NULL);
        CHECK(s >= 0 && s < 8);
        if (key % 2 == 0) even[s]++;
        alike += p.slot_device[s] == p.slot_device[moe_ep_pick_slot(&p, 0, 1, (uint64_t)key, NULL)];
    }
    for (s = 0; s < 8; s += 2) CHECK(even[s] > 420 && even[s] < 580);
    CHECK(alike > 800 && alike < 1200);
    placement_free(&p);
}

/* Speeds, dead devices and duplicates: sums hold, dead devices get nothing, exact is no worse than any other policy.
 */
TEST(general_placements)
{
    uint64_t s = t_seed;
    int n, e, i, d, policy;
    for (n = 0; n < 400; n++) {
        int E, D;
        moe_ep_placement p = random_table(&s, &E, &D);
        int64_t counts[8], source[64], rows[64];
        double worst[7], share[64], loads[8], level = 0, time;
        for (d = 0; d < D; d++) {
            p.device_speed[d] = 0.5 + t_unit(&s);
            p.device_inactive[d] = (uint8_t)(t_below(&s, 4) == 0);
        }
        for (e = 0; e < E; e++) {
            int alive = 0;
            for (i = p.replica_start[e]; i < p.replica_start[e + 1]; i++)
                alive |= !p.device_inactive[p.slot_device[p.replica_slot[i]]];
            counts[e] = alive ? 100 * t_below(&s, 1000) : 0;
            loads[e] = (double)counts[e];
            for (d = 0; d < D; d++) source[d * E + e] = d == 0 ? counts[e] : 0;
        }
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &level, NULL, NULL), MOE_EP_OK);
        for (policy = 0; policy <= MOE_EP_SPLIT_EXACT; policy++) {
            moe_ep_split_desc desc = split_of((moe_ep_split_policy)policy);
            desc.source_counts = source;
            CHECK_I64(moe_ep_split(&desc, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
            worst[policy] = 0;
            for (d = 0; d < D; d++) {
                double sum = 0;
                for (i = p.slot_start[d]; i < p.slot_start[d + 1]; i++) sum += (double)rows[i];
                if (p.device_inactive[d]) CHECK_NEAR(sum, 0, 0, 0);
                time = sum / p.device_speed[d];
                if (time > worst[policy]) worst[policy] = time;
            }
            for (e = 0; e < E; e++) {
                int64_t sum = 0;
                for (i = p.replica_start[e]; i < p.replica_start[e + 1]; i++) sum += rows[p.replica_slot[i]];
                CHECK_I64(sum, counts[e]);
            }
        }
        for (policy = 0; policy <= MOE_EP_SPLIT_EXACT; policy++) {
            CHECK(worst[MOE_EP_SPLIT_EXACT] <= worst[policy] + 4.0);
            CHECK(worst[policy] >= level - 1e-6 * (level + 1));
        }
        CHECK(worst[MOE_EP_SPLIT_EXACT] <= level + 4.0);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Long chains of experts with two hosts level slowly: the exact split against very many plain passes. */
TEST(exact_on_chains)
{
    uint64_t s = t_seed;
    int n, e, d, raised = 0;
    for (n = 0; n < 40; n++) {
        int D = 12 + (int)t_below(&s, 24), E = 2 * D, P = 4 * D;
        int32_t slots[4 * 36];
        double loads[72], share[4 * 36], exact = 0, slow = 0, one = 0;
        moe_ep_placement p;
        for (d = 0; d < P; d++) slots[d] = -1;
        for (e = 0; e < E; e++) { /* expert e at home on e % D, some also on a neighbour */
            slots[(e % D) * 4 + e / D] = e;
            if (e < D / 3 || t_below(&s, 8)) slots[((e + 1) % D) * 4 + 2 + e / D] = e;
            loads[e] = e < D / 3 ? 300.0 + 50.0 * t_unit(&s) : 100.0 * t_unit(&s); /* a busy third, far to spread */
        }
        p = table(E, D, P, 1, slots);
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &exact, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 20000, share, &slow, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 1, share, &one, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(exact, slow, 1e-6, 0);
        CHECK(exact <= slow * (1 + 1e-10));
        raised += one > exact * 1.001;
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(raised > 10);
}

TEST(local_first)
{
    /* expert 0 on devices 0 and 2, nodes {0,1} and {2,3} */
    const int32_t slots[4] = {0, 1, 0, 2};
    const int64_t counts[3] = {40, 0, 0}, source[12] = {10, 0, 0, 10, 0, 0, 10, 0, 0, 10, 0, 0};
    const int64_t lopsided[12] = {40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    moe_ep_placement p = table(3, 4, 4, 2, slots);
    moe_ep_split_desc d = split_of(MOE_EP_SPLIT_LOCAL_FIRST);
    int64_t rows[4];
    d.source_counts = source;
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    CHECK_I64(rows[0], 20);
    CHECK_I64(rows[2], 20);
    d.source_counts = lopsided;
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    CHECK_I64(rows[0], 40);
    CHECK_I64(rows[2], 0);
    placement_free(&p);
}

TEST(errors)
{
    const int32_t slots[4] = {0, 1, 0, 2}, ids[3] = {0, 1, 5}, fine[2] = {0, 1}, from[2] = {0, 9};
    const int64_t counts[3] = {4, 1, 0}, negative[3] = {4, -1, 0}, many[3] = {INT64_MAX, INT64_MAX, 1};
    const int64_t source[12] = {4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, quota[4] = {1, 1, 0, 0}, stray[4] = {1, 1, 0, 1};
    const double bad[3] = {1, NAN, 1}, minus[3] = {1, -1, 1};
    moe_ep_placement p = table(3, 4, 4, 2, slots);
    moe_ep_split_desc d = split_of(MOE_EP_SPLIT_EXACT);
    moe_ep_error err;
    int64_t rows[4] = {9, 9, 9, 9};
    int32_t got[3] = {9, 9, 9};
    double share[4] = {9, 9, 9, 9};
    int i;
    CHECK_I64(moe_ep_split(NULL, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "desc");
    CHECK_I64(moe_ep_split(&d, NULL, 0, counts, rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_split(&d, &p, 0, NULL, rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_split(&d, &p, 1, counts, rows, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "layer");
    CHECK_I64(moe_ep_split(&d, &p, -1, counts, rows, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_split(&d, &p, 0, negative, rows, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_split(&d, &p, 0, many, rows, NULL, &err), MOE_EP_ERR_OVERFLOW);
    d.max_sweeps = -1;
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_RANGE);
    d = split_of((moe_ep_split_policy)42);
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "desc.policy");
    d = split_of(MOE_EP_SPLIT_LOCAL_FIRST);
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_CONFIG);
    d.source_counts = source; /* expert 1 has a row that starts nowhere */
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(err.index, 1);
    for (i = 0; i < 4; i++) CHECK_I64(rows[i], 9);
    CHECK_I64(moe_ep_split_shares(&p, 0, bad, 0, share, NULL, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_split_shares(&p, 0, minus, 0, share, NULL, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(moe_ep_split_shares(&p, 0, NULL, 0, share, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_split_shares(&p, 0, bad, -1, share, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    for (i = 0; i < 4; i++) CHECK_NEAR(share[i], 9, 0, 0);
    CHECK_I64(moe_ep_device_rows(&p, NULL, rows, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_device_rows(&p, many, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_assign_slots(&p, 0, ids, 3, quota, got, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_assign_slots(&p, 0, ids, -1, quota, got, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_assign_slots(&p, 0, NULL, 2, quota, got, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_assign_slots(&p, 0, fine, 2, NULL, got, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_assign_slots(&p, 0, fine, 2, quota, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_assign_slots(&p, 0, fine, 2, stray, got, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(moe_ep_assign_slots_local(&p, 0, fine, 2, from, quota, got, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_assign_slots_local(&p, 0, fine, 2, NULL, quota, got, NULL, &err), MOE_EP_ERR_NULL);
    for (i = 0; i < 3; i++) CHECK_I64(got[i], 9);
    CHECK_I64(moe_ep_pick_slot(&p, 0, 3, 0, &err), MOE_EP_ERR_EXPERT_ID);
    p.device_inactive[1] = 1;
    CHECK_I64(moe_ep_pick_slot(&p, 0, 1, 0, &err), MOE_EP_ERR_LOST_EXPERT);
    CHECK_STR(moe_ep_split_policy_str(MOE_EP_SPLIT_EXACT), "exact");
    CHECK_STR(moe_ep_split_policy_str((moe_ep_split_policy)99), "unknown policy");
    { /* scratch one byte short */
        moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0), tight;
        void *buf;
        d = split_of(MOE_EP_SPLIT_EXACT);
        p.device_inactive[1] = 0;
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, &none, &err), MOE_EP_ERR_SCRATCH);
        buf = t_alloc(none.need);
        tight = moe_ep_scratch_fixed(buf, none.need - 1);
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, &tight, &err), MOE_EP_ERR_SCRATCH);
        tight = moe_ep_scratch_fixed(buf, none.need);
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, &tight, &err), MOE_EP_OK);
        d.policy = MOE_EP_SPLIT_EVEN; /* needs no memory */
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, &none, &err), MOE_EP_OK);
        free(buf);
    }
    placement_free(&p);
}

T_MAIN
