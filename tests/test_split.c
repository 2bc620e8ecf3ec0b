/* tests/test_split.c - section 6: rows over replicas, rows to slots.
 * SPDX-License-Identifier: MIT */
#include "placement.h"

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

/* The rows of each expert's slots are what it has; those of an empty slot are none. */
static void check_sums(const moe_ep_placement *p, const int64_t *rows, const int64_t *counts)
{
    int32_t e, i;
    for (e = 0; e < p->num_experts; e++) {
        int64_t sum = 0;
        for (i = p->replica_start[e]; i < p->replica_start[e + 1]; i++) {
            CHECK(rows[p->replica_slot[i]] >= 0);
            sum += rows[p->replica_slot[i]];
        }
        CHECK_I64(sum, counts[e]);
    }
    for (i = 0; i < p->num_slots; i++)
        if (p->slot_expert[i] < 0) CHECK_I64(rows[i], 0);
}

/* Working memory full of large numbers: what is read before it is written shows. */
static moe_ep_scratch dirty_scratch(void)
{
    static char memory[1 << 14];
    memset(memory, 0x7e, sizeof memory);
    return moe_ep_scratch_fixed(memory, sizeof memory);
}

/* The finish of splitmix64 (Steele, Lea and Flood 2014). */
static uint64_t finish(uint64_t z)
{
    z ^= z >> 30;
    z *= UINT64_C(0xbf58476d1ce4e5b9);
    z ^= z >> 27;
    z *= UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void *copy_of(const void *from, size_t bytes)
{
    void *to = t_alloc(bytes);
    memcpy(to, from, bytes);
    return to;
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
    CHECK_I64(device[1], 3);
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

/* Least busiest device over all splits into shares: the experts that can only go to the devices of a set fill at least
 * that set, and the fullest set is the bound (maximum flow, minimum cut). */
static double best_level(const moe_ep_placement *p, const double *loads)
{
    double best = 0;
    int set, d, e, i;
    for (set = 1; set < 1 << p->num_devices; set++) {
        double load = 0, speed = 0;
        for (d = 0; d < p->num_devices; d++) speed += (set >> d & 1) && !p->device_inactive[d] ? p->device_speed[d] : 0;
        for (e = 0; e < p->num_experts; e++) {
            int inside = 1;
            for (i = p->replica_start[e]; i < p->replica_start[e + 1]; i++) {
                d = p->slot_device[p->replica_slot[i]];
                inside &= (set >> d & 1) || p->device_inactive[d];
            }
            load += inside ? loads[e] : 0;
        }
        if (speed > 0 && load / speed > best) best = load / speed;
    }
    return best;
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
        double loads[8], share[64], small[64], worst = 0, least = 0;
        for (e = 0; e < E; e++) {
            counts[e] = t_below(&s, 4) ? t_below(&s, n % 3 ? 40 : 4) : 0;
            loads[e] = (double)counts[e];
            for (d = 0; d < D; d++) source[d * E + e] = 0;
            for (i = 0; i < counts[e]; i++) source[t_below(&s, D) * E + e]++;
        }
        for (policy = 0; policy <= MOE_EP_SPLIT_EXACT; policy++) {
            moe_ep_split_desc desc = split_of((moe_ep_split_policy)policy);
            moe_ep_scratch scratch = dirty_scratch();
            desc.source_counts = source;
            desc.seed = (uint64_t)n;
            CHECK_I64(moe_ep_split(&desc, &p, 0, counts, rows, &scratch, NULL), MOE_EP_OK);
            check_sums(&p, rows, counts);
        }
        CHECK_I64(moe_ep_device_rows(&p, rows, device, NULL), MOE_EP_OK); /* of the last policy, exact */
        for (d = 0; d < D; d++)
            if (device[d] > worst_exact) worst_exact = device[d];
        for (level = 0; !flow_fits(&p, counts, level); level++) {}
        CHECK_I64(worst_exact, level);
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &worst, NULL, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++) loads[e] /= 1048576; /* fractions of a row are shared out alike */
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, small, &least, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < p.num_slots; i++) CHECK_NEAR(1048576 * small[i], share[i], 0, 0);
        CHECK_NEAR(1048576 * least, worst, 0, 0);
        for (e = 0; e < E; e++) loads[e] *= 1048576;
        CHECK_NEAR(worst, best_level(&p, loads), 1e-11, 0);
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

/* Nothing behind the end of an array is read, or written: every array has just its size (a sanitizer sees it), the
 * working memory is full of large numbers, and the results are the same. */
TEST(arrays_of_just_their_size)
{
    enum { ROWS = 20 };
    uint64_t s = t_seed + 8;
    int n, i, policy;
    for (n = 0; n < 300; n++) {
        int E, D;
        moe_ep_placement p = random_table(&s, &E, &D);
        int64_t plain_counts[8] = {0}, plain_source[64] = {0}, want[64], moved, lost;
        int32_t plain_ids[ROWS], plain_from[ROWS], slot[ROWS];
        const size_t P = (size_t)p.num_slots;
        int64_t *rows = (int64_t *)t_alloc(8 * P), *device = (int64_t *)t_alloc(8 * (size_t)D), *counts, *source;
        int32_t *got = (int32_t *)t_alloc(4 * ROWS), *ids, *from;
        double plain_loads[8], *loads, *share = (double *)t_alloc(8 * P), alone[64], worst = 0, most = 0;
        moe_ep_scratch scratch;
        for (i = 0; i < ROWS; i++) {
            plain_ids[i] = (int32_t)t_below(&s, E);
            plain_from[i] = (int32_t)t_below(&s, D);
            plain_counts[plain_ids[i]]++;
            plain_source[plain_from[i] * E + plain_ids[i]]++;
        }
        for (i = 0; i < E; i++) plain_loads[i] = (double)plain_counts[i];
        ids = (int32_t *)copy_of(plain_ids, sizeof plain_ids);
        from = (int32_t *)copy_of(plain_from, sizeof plain_from);
        counts = (int64_t *)copy_of(plain_counts, 8 * (size_t)E);
        source = (int64_t *)copy_of(plain_source, 8 * (size_t)(E * D));
        loads = (double *)copy_of(plain_loads, 8 * (size_t)E);
        for (policy = 0; policy <= MOE_EP_SPLIT_EXACT; policy++) {
            moe_ep_split_desc d = split_of((moe_ep_split_policy)policy);
            d.source_counts = plain_source;
            CHECK_I64(moe_ep_split(&d, &p, 0, plain_counts, want, NULL, NULL), MOE_EP_OK);
            d.source_counts = source;
            scratch = dirty_scratch();
            CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, &scratch, NULL), MOE_EP_OK);
            CHECK(memcmp(rows, want, 8 * P) == 0);
        }
        CHECK_I64(moe_ep_device_rows(&p, rows, device, NULL), MOE_EP_OK);
        for (i = 0; i < D; i++) most = (double)device[i] > most ? (double)device[i] : most;
        scratch = dirty_scratch();
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &worst, &scratch, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, alone, NULL, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(share, alone, 8 * P) == 0 && worst <= most + 1e-9 && worst > most - 1);
        for (policy = 0; policy < 2; policy++) {
            int64_t seen[64] = {0};
            scratch = dirty_scratch();
            if (policy) CHECK_I64(moe_ep_assign_slots_local(&p, 0, ids, ROWS, from, rows, got, &scratch, NULL),
                                  MOE_EP_OK);
            else CHECK_I64(moe_ep_assign_slots(&p, 0, ids, ROWS, rows, got, &scratch, NULL), MOE_EP_OK);
            for (i = 0; i < ROWS; i++) {
                CHECK(got[i] >= 0 && got[i] < p.num_slots && p.slot_expert[got[i]] == ids[i]);
                seen[got[i]]++;
            }
            CHECK(memcmp(seen, rows, 8 * P) == 0);
        }
        memcpy(slot, got, sizeof slot);
        scratch = dirty_scratch();
        CHECK_I64(moe_ep_reroute_replicas(&p, 0, ROWS, got, ROWS, ids, &moved, &lost, &scratch, NULL), MOE_EP_OK);
        CHECK(memcmp(ids, slot, sizeof slot) == 0 && moved == 0 && lost == 0); /* there is room for all */
        free(rows);
        free(device);
        free(counts);
        free(source);
        free(got);
        free(ids);
        free(from);
        free(loads);
        free(share);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(assign)
{
    const int32_t slots[3] = {0, 1, 0}, ids[5] = {0, 0, -1, 0, 1}, want[5] = {2, 2, -1, 0, 1};
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

/* The slots of n rows by the definition, with every open place of a copy in a list of its own.  from NULL: no row is
 * nearer to one copy than to another; else what is on the row's device goes first, then its node, then the rest. */
static void by_definition(const moe_ep_placement *p, const int32_t *ids, const int32_t *from, int n,
                          const int64_t *rows, int32_t *want)
{
    int64_t left[64];
    int level, i, k;
    memcpy(left, rows, sizeof *rows * (size_t)p->num_slots);
    for (i = 0; i < n; i++) want[i] = -1;
    for (level = from ? 0 : 2; level < 3; level++)
        for (i = 0; i < n; i++) {
            int32_t place[64], open = 0;
            if (ids[i] < 0 || want[i] >= 0) continue;
            for (k = p->replica_start[ids[i]]; k < p->replica_start[ids[i] + 1]; k++) {
                const int32_t slot = p->replica_slot[k], device = p->slot_device[slot];
                int64_t more;
                if (level == 0 && device != from[i]) continue;
                if (level == 1 && p->device_node[device] != p->device_node[from[i]]) continue;
                for (more = 0; more < left[slot]; more++) place[open++] = slot;
            }
            if (open == 0) continue;
            want[i] = place[finish((uint64_t)i + UINT64_C(0x9e3779b97f4a7c15) * ((uint64_t)ids[i] + 1)) %
                            (uint64_t)open];
            left[want[i]]--;
        }
}

static void turn_round(int32_t *list, int n)
{
    int i;
    for (i = 0; i < n / 2; i++) {
        const int32_t keep = list[i];
        list[i] = list[n - 1 - i];
        list[n - 1 - i] = keep;
    }
}

TEST(assign_by_definition)
{
    uint64_t s = t_seed + 9;
    int n, i;
    for (n = 0; n < 500; n++) {
        int E, D;
        moe_ep_placement p = random_table(&s, &E, &D);
        moe_ep_split_desc d = split_of(n % 2 ? MOE_EP_SPLIT_EVEN : MOE_EP_SPLIT_RANDOM);
        int32_t ids[40], from[40], got[40], want[40];
        int64_t counts[8] = {0}, rows[64];
        for (i = 0; i < 40; i++) {
            ids[i] = (int32_t)t_below(&s, E + 1) - 1;
            from[i] = (int32_t)t_below(&s, D);
            if (ids[i] >= 0) counts[ids[i]]++;
        }
        if (n % 3 == 0) /* copies may be listed in any order */
            for (i = 0; i < E; i++) turn_round(p.replica_slot + p.replica_start[i],
                                               p.replica_start[i + 1] - p.replica_start[i]);
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
        by_definition(&p, ids, from, 40, rows, want);
        CHECK_I64(moe_ep_assign_slots_local(&p, 0, ids, 40, from, rows, got, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < 40; i++) CHECK_I64(got[i], want[i]);
        by_definition(&p, ids, NULL, 40, rows, want);
        CHECK_I64(moe_ep_assign_slots(&p, 0, ids, 40, rows, got, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < 40; i++) CHECK_I64(got[i], want[i]);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Each of D ranks (two nodes) has b tokens of the same 16 experts, whose copies are on the devices of `hosts` (bits).
 * How unequally do the rows of the ranks in `far` spread over the copies on `to`, which serve all of them?  Chi-square,
 * by chance about (ranks - 1) * (copies - 1).  how & 1: the tokens lie on the ranks by turns, else in blocks; & 2: the
 * copies are listed from the last to the first; & 4: near rows first. */
static double uneven(int D, unsigned hosts, unsigned far, unsigned to, int b, int how)
{
    enum { X = 16, MOST = 16 };
    static int32_t slots[X * MOST], ids[X * MOST * 16], row_from[X * MOST * 16], from[MOST * 16], got[X * MOST * 16];
    int64_t counts[X], rows[X * MOST], traffic[MOST * MOST], all = 0;
    moe_ep_split_desc even = split_of(MOE_EP_SPLIT_EVEN);
    double squares = 0, mean;
    int i, k, ranks = 0, cells = 0;
    moe_ep_placement p;
    for (i = 0; i < X * D; i++) slots[i] = hosts >> i / X & 1 ? i % X : -1;
    p = table(X, D, X * D, 2, slots);
    for (i = 0; i < X; i++) {
        counts[i] = D * b;
        if (how & 2) turn_round(p.replica_slot + p.replica_start[i], p.replica_start[i + 1] - p.replica_start[i]);
    }
    for (i = 0; i < D * b; i++) {
        from[i] = how & 1 ? i % D : i / b;
        for (k = 0; k < X; k++) {
            ids[i * X + k] = k;
            row_from[i * X + k] = from[i];
        }
    }
    CHECK_I64(moe_ep_split(&even, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    if (how & 4) CHECK_I64(moe_ep_assign_slots_local(&p, 0, ids, X * D * b, row_from, rows, got, NULL, NULL),
                           MOE_EP_OK);
    else CHECK_I64(moe_ep_assign_slots(&p, 0, ids, X * D * b, rows, got, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_traffic(&p, got, D * b, X, from, MOE_EP_COUNT_PAIRS, traffic, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < D; i++) ranks += (int)(far >> i & 1);
    for (i = 0; i < D * D; i++) {
        if (!(far >> i / D & to >> i % D & 1)) continue;
        all += traffic[i];
        squares += (double)(traffic[i] * traffic[i]);
        cells++;
    }
    CHECK_I64(all, X * b * ranks);
    mean = (double)all / cells;
    placement_free(&p);
    return squares / mean - (double)all;
}

/* Ranks in blocks or by turns, copies of which a rank's tokens are a multiple, copies listed from either end: who sends
 * to whom looks like chance, and so it does for the rows that only their node, or nothing near them, serves. */
TEST(copies_keep_no_step)
{
    int b, copies, how, i;
    for (b = 1; b <= 16; b *= 2)
        for (how = 0; how < 4; how++) {
            for (copies = 2; copies <= 16; copies *= 2) {
                unsigned hosts = 0;
                for (i = 0; i < copies; i++) hosts |= 1u << i * (16 / copies);
                CHECK(uneven(16, hosts, 0xffff, hosts, b, how) < 15 * (copies - 1) + 6 * sqrt(30.0 * (copies - 1)));
            }
            CHECK(uneven(8, 0xcc, 0x03, 0x0c, b, how | 4) < 1 + 12);
            CHECK(uneven(8, 0xcc, 0x30, 0xc0, b, how | 4) < 1 + 12);
            CHECK(uneven(8, 0xf0, 0x0f, 0xf0, b, how | 4) < 9 + 26);
            STOP_IF_FAILED("%d tokens a rank", b);
        }
}

/* Many experts of few rows on equal devices: whole rows reach the optimum of the shares rounded up, after any number
 * of sweeps what these reach; least loaded is one sweep rounded down, and what is left. */
TEST(many_experts_to_the_row)
{
    uint64_t s = t_seed + 10;
    int n, e, i, d, sweeps;
    for (n = 0; n < 250; n++) {
        const int D = 2 + (int)t_below(&s, 9), E = D + (int)t_below(&s, 4 * D), P = 8 * D;
        const int64_t few = 1 + t_below(&s, 9);
        int32_t slots[80];
        int64_t counts[50], rows[80], device[10];
        double loads[50], share[80];
        moe_ep_split_desc exact = split_of(MOE_EP_SPLIT_EXACT), least = split_of(MOE_EP_SPLIT_LEAST_LOADED);
        moe_ep_placement p;
        for (i = 0; i < P; i++) slots[i] = i < E ? i : t_below(&s, 3) ? (int32_t)t_below(&s, E) : -1;
        for (i = P - 1; i > 0; i--) {
            const int j = (int)t_below(&s, i + 1);
            const int32_t keep = slots[i];
            slots[i] = slots[j];
            slots[j] = keep;
        }
        p = table(E, D, P, 1, slots);
        for (e = 0; e < E; e++) {
            counts[e] = t_below(&s, 1 + few);
            loads[e] = (double)counts[e];
        }
        for (sweeps = 0; sweeps < 4; sweeps++) {
            double worst = 0;
            int64_t most = 0;
            CHECK_I64(moe_ep_split_shares(&p, 0, loads, sweeps, share, &worst, NULL, NULL), MOE_EP_OK);
            exact.max_sweeps = sweeps;
            CHECK_I64(moe_ep_split(&exact, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
            check_sums(&p, rows, counts);
            CHECK_I64(moe_ep_device_rows(&p, rows, device, NULL), MOE_EP_OK);
            for (d = 0; d < D; d++) most = device[d] > most ? device[d] : most;
            CHECK((double)most < worst + 1 - 1e-6);
            if (sweeps == 0) CHECK((double)most > worst - 1e-6);
            if (sweeps != 1) continue;
            CHECK_I64(moe_ep_split(&least, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
            check_sums(&p, rows, counts);
            for (i = 0; i < P; i++) CHECK((double)rows[i] > share[i] - 1);
        }
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* The worked numbers of the header. */
TEST(assign_examples)
{
    const int32_t slots[4] = {0, 1, 0, -1}, ids[4] = {0, 0, 0, 1}, want[4] = {2, 2, 0, 1}, pair[2] = {0, 0};
    const int32_t two[2] = {0, 0}, from[2] = {0, 1}, pick[4] = {2, 2, 2, 0};
    const int64_t quota[4] = {1, 1, 2, 0}, one[2] = {1, 1};
    moe_ep_placement p = table(2, 2, 4, 1, slots), q = table(1, 2, 2, 1, two);
    int32_t got[4];
    int i;
    CHECK_I64(moe_ep_assign_slots(&p, 0, ids, 4, quota, got, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 4; i++) CHECK_I64(got[i], want[i]);
    CHECK_I64(moe_ep_assign_slots(&q, 0, pair, 2, one, got, NULL, NULL), MOE_EP_OK);
    CHECK(got[0] == 1 && got[1] == 0);
    CHECK_I64(moe_ep_assign_slots_local(&q, 0, pair, 2, from, one, got, NULL, NULL), MOE_EP_OK);
    CHECK(got[0] == 0 && got[1] == 1);
    for (i = 0; i < 4; i++) CHECK_I64(moe_ep_pick_slot(&p, 0, 0, (uint64_t)i, NULL), pick[i]);
    placement_free(&p);
    placement_free(&q);
}

/* Slots with a capacity: who stays, who moves, who is lost, against the definition and against what must be kept. */
static void reroute_case(uint64_t *s, int n)
{
    int E, D, i, e, j;
    moe_ep_placement p = random_table(s, &E, &D);
    int32_t slot[200], got[200];
    int64_t rows[8] = {0}, kept[8] = {0}, copies[8] = {0}, filled[64] = {0}, first[64] = {0}, moved, lost;
    int64_t moved_rows = 0, lost_rows = 0, capacity = t_below(s, 40);
    int dead = n % 3 == 0 && D > 1 ? (int)t_below(s, D) : -1;
    if (dead >= 0) p.device_inactive[dead] = 1;
    for (i = 0; i < p.num_slots; i++)
        if (p.slot_expert[i] >= 0 && p.slot_device[i] != dead) copies[p.slot_expert[i]]++;
    for (i = 0; i < 200; i++) {
        slot[i] = (int32_t)t_below(s, p.num_slots + 1) - 1;
        if (slot[i] >= 0 && p.slot_expert[slot[i]] < 0) slot[i] = -1;
        if (slot[i] >= 0) rows[p.slot_expert[slot[i]]]++;
    }
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, capacity, slot, 200, got, &moved, &lost, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 200; i++) {
        int stays = slot[i] >= 0 && p.slot_device[slot[i]] != dead && first[slot[i]]++ < capacity;
        if (slot[i] < 0 || stays) CHECK_I64(got[i], slot[i]);
        if (slot[i] >= 0 && got[i] < 0) lost_rows++;
        if (got[i] < 0) continue;
        CHECK(got[i] < p.num_slots && p.slot_expert[got[i]] == p.slot_expert[slot[i]] && p.slot_device[got[i]] != dead);
        kept[p.slot_expert[got[i]]]++;
        moved_rows += got[i] != slot[i];
        filled[got[i]]++;
    }
    for (j = 0; j < p.num_slots; j++) CHECK(filled[j] <= capacity);
    for (e = 0; e < E; e++)
        CHECK_I64(kept[e], rows[e] < capacity * copies[e] ? rows[e] : capacity * copies[e]);
    CHECK(moved == moved_rows && lost == lost_rows);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, capacity, slot, 200, slot, NULL, NULL, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(slot, got, sizeof got) == 0);
    placement_free(&p);
}

TEST(reroute_to_replicas)
{
    const int32_t slots[4] = {0, 1, 0, -1}, from[5] = {0, 0, 0, 0, 0}, want[5] = {0, 0, 2, 2, -1};
    const int32_t order[5] = {2, 0, 2, 2, 0}, none[2] = {0, 3}, beyond[2] = {0, 4};
    moe_ep_placement p = table(2, 2, 4, 1, slots);
    int32_t got[5] = {9, 9, 9, 9, 9};
    int64_t moved = 9, lost = 9;
    char memory[64];
    moe_ep_scratch small = moe_ep_scratch_fixed(memory, 4 * sizeof(int64_t) - 1);
    uint64_t s = t_seed;
    moe_ep_error err;
    int i;
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, from, 5, got, &moved, &lost, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 5; i++) CHECK_I64(got[i], want[i]);
    CHECK(moved == 2 && lost == 1);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 1, order, 2, got, &moved, &lost, NULL, NULL), MOE_EP_OK);
    CHECK(got[0] == 2 && got[1] == 0 && moved == 0 && lost == 0);
    /* row 4 keeps the room of slot 0 that row 3 might have taken: those who stay come first */
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, order, 5, got, &moved, &lost, NULL, NULL), MOE_EP_OK);
    CHECK(got[0] == 2 && got[1] == 0 && got[2] == 2 && got[3] == -1 && got[4] == 0 && moved == 0 && lost == 1);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 0, NULL, 0, NULL, &moved, &lost, NULL, NULL), MOE_EP_OK);
    moved = lost = 9;
    CHECK_I64(moe_ep_reroute_replicas(NULL, 0, 2, from, 5, got, &moved, &lost, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute_replicas(&p, 1, 2, from, 5, got, &moved, &lost, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, -1, from, 5, got, &moved, &lost, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "capacity");
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, from, -1, got, &moved, &lost, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, NULL, 5, got, &moved, &lost, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, from, 5, NULL, &moved, &lost, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, none, 2, got, &moved, &lost, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, beyond, 2, got, &moved, &lost, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, from, 5, got, &moved, &lost, &small, &err), MOE_EP_ERR_SCRATCH);
    p.replica_slot[0] = 3;
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 2, from, 5, got, &moved, &lost, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK(got[4] == 0 && moved == 9 && lost == 9);
    placement_free(&p);
    for (i = 0; i < 1000; i++) {
        reroute_case(&s, i);
        STOP_IF_FAILED("case %d", i);
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

/* Seeds beside each other give splits that have nothing to do with each other: as far apart as those of any two. */
TEST(hash_seeds)
{
    const int32_t slots[2] = {0, 0};
    moe_ep_placement p = table(1, 2, 2, 1, slots);
    const int64_t counts[1] = {1000};
    int64_t rows[2], first = 0, before = 0;
    double mean = 0, squares = 0, steps = 0;
    moe_ep_split_desc d;
    int seed, key;
    memset(&d, 0, sizeof d);
    d.policy = MOE_EP_SPLIT_HASH;
    for (seed = 0; seed < 400; seed++) {
        d.seed = (uint64_t)seed;
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
        if (seed == 0) {
            for (key = 0; key < 1000; key++) first += moe_ep_pick_slot(&p, 0, 0, (uint64_t)key, NULL) == 0;
            CHECK_I64(rows[0], first);
        } else {
            steps += (double)((rows[0] - before) * (rows[0] - before)) / 399;
        }
        before = rows[0];
        mean += (double)rows[0] / 400;
        squares += (double)(rows[0] * rows[0]) / 400;
    }
    CHECK_NEAR(mean, 500, 0, 4); /* sd sqrt(250 / 400) = 0.8 */
    CHECK_NEAR(squares - mean * mean, 250, 0, 75);
    CHECK_NEAR(steps, 500, 0, 150);
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
        CHECK_NEAR(level, best_level(&p, loads), 1e-9, 0);
        for (d = 0; d < p.num_slots; d++) CHECK(share[d] >= 0);
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
            check_sums(&p, rows, counts);
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

/* Every function of the section on p; how many refuse it as a broken placement.  Outputs stay as they are then. */
static int refusals(const moe_ep_placement *p)
{
    const int64_t counts[3] = {4, 1, 1}, quota[4] = {2, 1, 2, 1};
    const double loads[3] = {4, 1, 1};
    const int32_t ids[6] = {0, 0, 0, 0, 1, 2}, from[6] = {0, 1, 0, 1, 0, 1};
    const int64_t sources[6] = {4, 1, 1, 0, 0, 0};
    int64_t rows[4] = {-9, -9, -9, -9}, device[2] = {-9, -9};
    int32_t got[6] = {-9, -9, -9, -9, -9, -9};
    double share[4] = {-9, -9, -9, -9};
    int k, refused = 0, picked = 0;
    for (k = MOE_EP_SPLIT_EVEN; k <= MOE_EP_SPLIT_EXACT; k++) {
        moe_ep_split_desc d = split_of((moe_ep_split_policy)k);
        int64_t kept[4];
        d.source_counts = sources;
        memcpy(kept, rows, sizeof kept);
        if (moe_ep_split(&d, p, 0, counts, rows, NULL, NULL) != MOE_EP_ERR_PLACEMENT) continue;
        CHECK(memcmp(kept, rows, sizeof kept) == 0);
        refused++;
    }
    refused += moe_ep_split_shares(p, 0, loads, 0, share, NULL, NULL, NULL) == MOE_EP_ERR_PLACEMENT;
    refused += moe_ep_assign_slots(p, 0, ids, 6, quota, got, NULL, NULL) == MOE_EP_ERR_PLACEMENT;
    refused += moe_ep_assign_slots_local(p, 0, ids, 6, from, quota, got, NULL, NULL) == MOE_EP_ERR_PLACEMENT;
    for (k = 0; k < 3; k++) picked += moe_ep_pick_slot(p, 0, k, 7, NULL) == MOE_EP_ERR_PLACEMENT;
    refused += picked > 0;
    refused += moe_ep_device_rows(p, quota, device, NULL) == MOE_EP_ERR_PLACEMENT;
    return refused;
}

/* A placement edited by hand without care: refused, never read past its arrays. */
TEST(inconsistent_placements)
{
    const int32_t slots[4] = {0, 1, 0, 2}, wild[4] = {-1, 4, INT32_MAX, INT32_MIN};
    moe_ep_placement p = table(3, 2, 4, 1, slots);
    uint64_t s = t_seed;
    int i, k;
    for (i = 0; i < 2; i++) p.slot_start[i] = 2 * i;
    CHECK_I64(refusals(&p), 0);
    for (k = 0; k < 4; k++) {
        for (i = 0; i < 4; i++) { /* replica_start: 0 2 3 4 */
            int32_t keep = p.replica_start[i], device = p.slot_device[i], slot = p.replica_slot[i];
            p.replica_start[i] = i == 3 && wild[k] == 4 ? 5 : wild[k];
            CHECK_I64(refusals(&p), 11);
            p.replica_start[i] = keep;
            p.replica_slot[i] = wild[k];
            CHECK_I64(refusals(&p), 11);
            p.replica_slot[i] = slot;
            p.slot_device[i] = wild[k] == 4 ? 2 : wild[k];
            CHECK_I64(refusals(&p), 11);
            p.slot_device[i] = device;
        }
        for (i = 0; i < 3; i++) {
            int32_t keep = p.slot_start[i];
            p.slot_start[i] = wild[k] == 4 ? 5 : wild[k];
            CHECK_I64(refusals(&p), 1); /* only moe_ep_device_rows reads it */
            p.slot_start[i] = keep;
        }
    }
    p.slot_start[0] = 1; /* slot 0 would be nobody's */
    CHECK_I64(refusals(&p), 1);
    p.slot_start[0] = 0;
    p.replica_slot[1] = p.replica_slot[0]; /* a slot listed twice: its quota would run out */
    CHECK_I64(refusals(&p), 11);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.replica_slot[2] = 2; /* the slot of another expert */
    CHECK_I64(refusals(&p), 11);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    for (i = 0; i < 3; i++) { /* a stale index: not an expert; one copy less; one copy more, seen by the count alone */
        p.slot_expert[i == 2 ? 0 : 1] = i == 0 ? 77 : i == 1 ? -1 : 1;
        CHECK_I64(refusals(&p), 11);
        p.slot_expert[0] = 0;
        p.slot_expert[1] = 1;
    }
    p.slot_expert[2] = -1;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.slot_expert[2] = 0; /* a slot in use that no list has */
    CHECK_I64(refusals(&p), 10); /* a pick reads one list only */
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    p.device_speed[1] = NAN;
    CHECK_I64(refusals(&p), 10);
    p.device_speed[1] = 1;
    for (k = 0; k < 20000; k++) { /* any edits: nothing may be touched out of bounds (seen by a sanitizer) */
        int32_t *array[5];
        array[0] = p.replica_start;
        array[1] = p.replica_slot;
        array[2] = p.slot_device;
        array[3] = p.slot_start;
        array[4] = p.slot_expert;
        for (i = (int)t_below(&s, 4); i >= 0; i--) {
            int which = (int)t_below(&s, 5), at = (int)t_below(&s, which == 3 ? 3 : 4);
            array[which][at] = (int32_t)t_below(&s, 8) - 2;
        }
        (void)refusals(&p);
        memcpy(p.slot_expert, slots, sizeof slots);
        for (i = 0; i < 4; i++) p.slot_device[i] = i / 2;
        for (i = 0; i < 3; i++) p.slot_start[i] = 2 * i;
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    }
    CHECK_I64(refusals(&p), 0);
    placement_free(&p);
}

/* What is said about a broken placement: the array and where in it. */
TEST(broken_placements_are_named)
{
    const int32_t slots[4] = {0, 1, 0, 2}; /* replica_start 0 2 3 4, replica_slot 0 2 1 3 */
    static const struct {
        int array, at, value;
        const char *arg;
        int index;
    } row[] = {{0, 1, 5, "p.replica_start", 0},  {0, 2, 1, "p.replica_start", 1},
               {0, 1, -1, "p.replica_start", 0},  {1, 0, -1, "p.replica_slot", 0},  {1, 1, 4, "p.replica_slot", 1},
               {1, 2, 3, "p.replica_slot", 2},    {1, 1, 0, "p.replica_slot", 0},   {2, 0, -1, "p.slot_device", 0},
               {2, 2, 2, "p.slot_device", 2},     {2, 3, 3, "p.slot_device", 3},    {1, 3, 1, "p.replica_slot", 3},
               {3, 1, -1, "p.replica_start", 3},  {0, 3, 3, "p.replica_start", 3},  {0, 0, 1, "p.replica_start", 3}};
    const int64_t counts[3] = {4, 1, 1}, quota[4] = {2, 1, 2, 1};
    const double loads[3] = {4, 1, 1};
    const int32_t ids[6] = {0, 0, 0, 0, 1, 2};
    size_t k;
    for (k = 0; k < sizeof row / sizeof row[0]; k++) {
        moe_ep_placement p = table(3, 2, 4, 1, slots);
        int32_t *array[4], got[6];
        int64_t rows[4];
        double share[4];
        int call;
        array[0] = p.replica_start;
        array[1] = p.replica_slot;
        array[2] = p.slot_device;
        array[3] = p.slot_expert;
        array[row[k].array][row[k].at] = row[k].value;
        for (call = 0; call < 5; call++) {
            moe_ep_split_desc d = split_of(call ? MOE_EP_SPLIT_EXACT : MOE_EP_SPLIT_EVEN);
            moe_ep_error err;
            CHECK_I64(call < 2    ? moe_ep_split(&d, &p, 0, counts, rows, NULL, &err)
                      : call == 2 ? moe_ep_split_shares(&p, 0, loads, 0, share, NULL, NULL, &err)
                      : call == 3 ? moe_ep_assign_slots(&p, 0, ids, 6, quota, got, NULL, &err)
                                  : moe_ep_reroute_replicas(&p, 0, 9, ids, 6, got, NULL, NULL, NULL, &err),
                      MOE_EP_ERR_PLACEMENT);
            CHECK_STR(err.arg, row[k].arg);
            CHECK_I64(err.index, row[k].index);
        }
        placement_free(&p);
        STOP_IF_FAILED("row %d", (int)k);
    }
}

/* Slot P of a layer would be slot 0 of the next, which holds the very expert: refused all the same. */
TEST(a_slot_of_the_next_layer)
{
    enum { E = 16, P = 16 };
    moe_ep_split_desc even = split_of(MOE_EP_SPLIT_EVEN), exact = split_of(MOE_EP_SPLIT_EXACT);
    int64_t counts[E], rows[P];
    moe_ep_placement p;
    moe_ep_shape shape;
    moe_ep_error err;
    int i;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 4;
    shape.num_slots = P;
    p = placement_new(2, E, &shape);
    for (i = 0; i < P; i++) p.slot_expert[i] = p.slot_expert[P + i] = i;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    for (i = 0; i < E; i++) counts[i] = i;
    CHECK_I64(moe_ep_split(&even, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    p.replica_slot[0] = P;
    CHECK_I64(moe_ep_split(&even, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "p.replica_slot");
    CHECK_I64(moe_ep_split(&exact, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "p.replica_slot");
    placement_free(&p);
}

/* One expert in very many slots, listed in any order: a slot listed twice is seen, wherever it is. */
TEST(slots_listed_twice)
{
    uint64_t s = t_seed;
    int n, k, i;
    for (n = 2; n < 40000; n = n < 12 ? n + 1 : 5 * n) {
        int32_t *slots = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)n);
        int64_t *rows = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)n), counts[1] = {7};
        moe_ep_placement p;
        moe_ep_error err;
        moe_ep_split_desc d = split_of(MOE_EP_SPLIT_EVEN);
        memset(slots, 0, sizeof(int32_t) * (size_t)n);
        p = table(1, n, n, 1, slots);
        for (k = 0; k < 3; k++) {
            for (i = n - 1; i > 0 && k > 0; i--) { /* first ascending, then shuffled */
                int j = (int)t_below(&s, i + 1);
                int32_t keep = p.replica_slot[i];
                p.replica_slot[i] = p.replica_slot[j];
                p.replica_slot[j] = keep;
            }
            CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, &err), MOE_EP_OK);
            i = (int)t_below(&s, n);
            slots[0] = p.replica_slot[i];
            p.replica_slot[i] = p.replica_slot[(i + 1 + (int)t_below(&s, n - 1)) % n];
            CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_PLACEMENT);
            CHECK_STR(err.arg, "p.replica_slot");
            p.replica_slot[i] = slots[0];
        }
        for (k = 0; k < 2; k++) { /* the first slot and the last */
            const int32_t twice = k ? n - 1 : 0;
            for (i = 0; p.replica_slot[i] == twice; i++) {}
            slots[0] = p.replica_slot[i];
            p.replica_slot[i] = twice;
            CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_PLACEMENT);
            p.replica_slot[i] = slots[0];
        }
        placement_free(&p);
        free(slots);
        free(rows);
    }
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

/* The policies that look at one expert only, written down once more from their definitions. */
static void plain_split(const moe_ep_placement *p, const moe_ep_split_desc *d, const int64_t *counts, int64_t *rows)
{
    moe_ep_rng rng = moe_ep_rng_seed(d->seed);
    int E = p->num_experts, D = p->num_devices, e, i, from, k;
    int64_t t;
    memset(rows, 0, sizeof *rows * (size_t)p->num_slots);
    for (e = 0; e < E; e++) {
        int32_t live[64], near[64], n = 0;
        for (i = p->replica_start[e]; i < p->replica_start[e + 1]; i++)
            if (!p->device_inactive[p->slot_device[p->replica_slot[i]]]) live[n++] = p->replica_slot[i];
        if (counts[e] == 0) continue;
        if (d->policy == MOE_EP_SPLIT_EVEN)
            for (t = 0; t < counts[e]; t++) rows[live[t % n]]++;
        if (d->policy == MOE_EP_SPLIT_ROUND_ROBIN)
            for (t = 0; t < counts[e]; t++) rows[live[(t + (int64_t)(d->seed % (uint64_t)n) + e) % n]]++;
        if (d->policy == MOE_EP_SPLIT_HASH)
            for (t = 0; t < counts[e]; t++) rows[moe_ep_pick_slot(p, 0, e, finish(d->seed) + (uint64_t)t, NULL)]++;
        if (d->policy == MOE_EP_SPLIT_RANDOM)
            for (t = 0; t < counts[e]; t++) rows[live[n > 1 ? moe_ep_rng_below(&rng, (uint64_t)n) : 0]]++;
        if (d->policy != MOE_EP_SPLIT_LOCAL_FIRST) continue;
        for (from = 0; from < D; from++) {
            int64_t here = d->source_counts[from * E + e];
            int level, m = 0;
            for (level = 0; level < 3 && m == 0; level++)
                for (i = 0; i < n; i++) {
                    int device = p->slot_device[live[i]];
                    if (level == 2 || device == from ||
                        (level == 1 && p->device_node[device] == p->device_node[from]))
                        near[m++] = live[i];
                }
            for (k = 0; k < m; k++) rows[near[k]] += here / m + ((k + from) % m < here % m);
        }
    }
}

TEST(simple_policies_by_definition)
{
    uint64_t s = t_seed + 3;
    int n, e, i, d, policy;
    for (n = 0; n < 1500; n++) {
        int E, D;
        moe_ep_placement p = random_table(&s, &E, &D);
        int64_t counts[8], source[64], rows[64], want[64];
        for (d = 0; d < D && n % 2; d++) p.device_inactive[d] = (uint8_t)(t_below(&s, 3) == 0);
        for (e = 0; e < E; e++) {
            int alive = 0;
            for (i = p.replica_start[e]; i < p.replica_start[e + 1]; i++)
                alive |= !p.device_inactive[p.slot_device[p.replica_slot[i]]];
            counts[e] = alive ? t_below(&s, 30) : 0;
            for (d = 0; d < D; d++) source[d * E + e] = 0;
            for (i = 0; i < counts[e]; i++) source[t_below(&s, D) * E + e]++;
        }
        for (policy = 0; policy < MOE_EP_SPLIT_LEAST_LOADED; policy++) {
            moe_ep_split_desc desc = split_of((moe_ep_split_policy)policy);
            desc.source_counts = source;
            desc.seed = t_u64(&s);
            CHECK_I64(moe_ep_split(&desc, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
            plain_split(&p, &desc, counts, want);
            for (i = 0; i < p.num_slots; i++) CHECK_I64(rows[i], want[i]);
        }
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* One pass: experts from heavy to light, each as level as its devices allow; the level found by bisection. */
TEST(one_pass_by_definition)
{
    uint64_t s = t_seed + 4;
    int n, e, i, d, k;
    for (n = 0; n < 600; n++) {
        int E, D;
        moe_ep_placement p = random_table(&s, &E, &D);
        double loads[8], share[64], work[8] = {0}, most = 0, worst = 0;
        int done[8] = {0};
        for (d = 0; d < D && n % 2; d++) p.device_speed[d] = 0.5 * (double)(1 + t_below(&s, 4));
        for (e = 0; e < E; e++) loads[e] = (double)(1 + e + 10 * t_below(&s, 100));
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 1, share, &worst, NULL, NULL), MOE_EP_OK);
        for (k = 0; k < 2; k++) /* what has no choice lies there first */
            for (i = 0; i < E; i++) {
                int on[8] = {0}, hosts = 0, best = -1;
                double low = 0, high = 0;
                if (k == 0) best = i;
                for (e = 0; e < E && k == 1; e++)
                    if (!done[e] && (best < 0 || loads[e] > loads[best])) best = e;
                if (best < 0) break;
                e = best;
                for (d = p.replica_start[e]; d < p.replica_start[e + 1]; d++) on[p.slot_device[p.replica_slot[d]]] = 1;
                for (d = 0; d < D; d++) hosts += on[d];
                if (k == 0 && hosts > 1) continue;
                done[e] = 1;
                for (d = 0; d < D; d++)
                    if (on[d] && work[d] / p.device_speed[d] + loads[e] / p.device_speed[d] > high)
                        high = (work[d] + loads[e]) / p.device_speed[d];
                for (d = 0; d < 100; d++) {
                    double middle = 0.5 * (low + high), taken = 0;
                    int j;
                    for (j = 0; j < D; j++)
                        if (on[j] && middle * p.device_speed[j] > work[j])
                            taken += middle * p.device_speed[j] - work[j];
                    if (taken < loads[e]) low = middle;
                    else high = middle;
                }
                for (d = 0; d < D; d++)
                    if (on[d] && high * p.device_speed[d] > work[d]) work[d] = high * p.device_speed[d];
            }
        for (d = 0; d < D; d++) {
            double got = 0;
            for (i = p.slot_start[d]; i < p.slot_start[d + 1]; i++) got += share[i];
            CHECK_NEAR(got, work[d], 1e-9, 1e-9);
            if (work[d] / p.device_speed[d] > most) most = work[d] / p.device_speed[d];
        }
        CHECK_NEAR(worst, most, 1e-9, 0);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* A load far below the rounding of its devices' loads is still shared out, and so is one no double can halve. */
TEST(shares_keep_their_sum)
{
    const int32_t slots[6] = {0, 1, 0, 2, 0, 3}, pair[2] = {0, 0};
    const double loads[4] = {1, 1e20, 1e20, 1e20}, least[1] = {4.9406564584124654e-324};
    const double apart[4] = {1, 1e20, 1e20, 1e20 + 32768};
    moe_ep_placement p = table(4, 3, 6, 1, slots), q = table(1, 2, 2, 1, pair);
    double share[6], worst;
    uint64_t s = t_seed;
    int n, i, e;
    CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &worst, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(share[0] + share[2] + share[4], 1, 0, 0);
    CHECK_NEAR(worst, 1e20, 0, 0);
    for (n = 0; n < 3; n++) { /* the level of the three rounds up, by 16384 times what is to be shared */
        CHECK_I64(moe_ep_split_shares(&p, 0, apart, n, share, &worst, NULL, NULL), MOE_EP_OK);
        CHECK(share[0] >= 0 && share[2] >= 0 && share[4] >= 0);
        CHECK_NEAR(share[0] + share[2] + share[4], 1, 0, 0);
    }
    if (t_subnormals()) {
        CHECK_I64(moe_ep_split_shares(&q, 0, least, 0, share, &worst, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(share[0] + share[1], least[0], 0, 0);
        CHECK(worst > 0);
    }
    placement_free(&p);
    placement_free(&q);
    for (n = 0; n < 300; n++) {
        int E, D;
        double any[8], part[64], sum;
        p = random_table(&s, &E, &D);
        for (e = 0; e < E; e++) any[e] = pow(10, (double)t_below(&s, 40) - 20);
        CHECK_I64(moe_ep_split_shares(&p, 0, any, n % 3, part, NULL, NULL, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++) {
            for (i = p.replica_start[e], sum = 0; i < p.replica_start[e + 1]; i++) {
                CHECK(part[p.replica_slot[i]] >= 0);
                sum += part[p.replica_slot[i]];
            }
            if (n % 3) CHECK_NEAR(sum, any[e], 1e-12, 0);
        }
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Up to 2^53 rows: sums are kept to the row. */
TEST(rows_beyond_doubles)
{
    const int32_t pair[2] = {0, 0};
    const int64_t two[1] = {2000000000001};
    /* shares whose sum has been rounded up: rounded down each, they still are a row more than there are */
    static const struct {
        int E, slots[8];
        double speed[4];
        int64_t counts[3];
    } up[2] = {{3, {1, 2, 1, 2, 0, 1}, {0.27, 1.9766666666666668, 0.74333333333333329},
                {1101690423239615, 172027944185805, 6189859231391392}},
               {2, {-1, 0, -1, 1, 1, 0}, {0.12666666666666668, 2.9266666666666667, 1.7133333333333334},
                {2293224123472736, 6591549794423118}}};
    moe_ep_placement p = table(1, 2, 2, 1, pair);
    moe_ep_split_desc desc = split_of(MOE_EP_SPLIT_EXACT);
    int64_t rows[64];
    uint64_t s = t_seed;
    int n, e, d;
    CHECK_I64(moe_ep_split(&desc, &p, 0, two, rows, NULL, NULL), MOE_EP_OK);
    CHECK_I64(rows[0], 1000000000001);
    CHECK_I64(rows[1], 1000000000000);
    placement_free(&p);
    for (n = 0; n < 2; n++) {
        p = table(up[n].E, 3, 6, 1, up[n].slots);
        memcpy(p.device_speed, up[n].speed, 3 * sizeof(double));
        CHECK_I64(moe_ep_split(&desc, &p, 0, up[n].counts, rows, NULL, NULL), MOE_EP_OK);
        check_sums(&p, rows, up[n].counts);
        placement_free(&p);
    }
    for (n = 0; n < 2000; n++) {
        int E, D;
        int64_t counts[8];
        p = random_table(&s, &E, &D);
        for (d = 0; d < D && n % 4; d++) p.device_speed[d] = 0.3 + t_unit(&s);
        for (e = 0; e < E; e++) counts[e] = ((int64_t)1 << 53) / E - t_below(&s, (int64_t)1 << t_below(&s, 50));
        desc.max_sweeps = n % 2; /* a single pass where it is not the optimum that is asked for */
        desc.policy = n % 8 ? MOE_EP_SPLIT_LEAST_LOADED : MOE_EP_SPLIT_EXACT;
        CHECK_I64(moe_ep_split(&desc, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
        check_sums(&p, rows, counts);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Each bad argument of the functions of this section, one by one; outputs stay as they are. */
TEST(every_bad_argument)
{
    const int32_t slots[4] = {0, 1, 0, 2}, all[4] = {0, 0, 0, 0}, fine[2] = {0, 1}, low[2] = {0, -2}, from[2] = {0, -1};
    const int32_t high[2] = {3, 0};
    const int32_t nowhere[2] = {-1, 0}, beyond[2] = {4, 0};
    const int32_t empty[4] = {0, -1, 0, 1}, far[2] = {-2, 0}, hole[2] = {0, 1}, here[2] = {0, 3};
    const int32_t late[4] = {-1, 0, 1, 0}, begin[2] = {3, 0};
    const int64_t counts[3] = {4, 1, 0}, negative[3] = {4, -1, 0}, many[3] = {INT64_MAX, 1, 1};
    const int64_t below[12] = {5, 0, 0, -1, 1, 0, 0, 0, 0, 0, 0, 0}, above[12] = {4, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    const int64_t quota[4] = {1, 1, 0, 0}, minus[4] = {1, 1, 0, -1}, most[4] = {3, 1, 0, 0}, lost[4] = {1, 1, 0, 0};
    const int64_t sum[3] = {(int64_t)1 << 53, 1, 0};
    const int64_t extra[4] = {1, 1, 0, 1}, huge[4] = {INT64_MAX, 0, 1, 0}, kept[4] = {9, 9, 9, 9};
    const double loads[3] = {4, 1, 0};
    moe_ep_placement p = table(3, 4, 4, 2, slots), one = table(3, 4, 4, 2, all), gap = table(2, 4, 4, 2, empty),
                     bare = table(2, 4, 4, 2, late);
    moe_ep_split_desc even = split_of(MOE_EP_SPLIT_EVEN), exact = split_of(MOE_EP_SPLIT_EXACT),
                      local = split_of(MOE_EP_SPLIT_LOCAL_FIRST), wrong = split_of((moe_ep_split_policy)-1);
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_error err;
    int64_t rows[4] = {9, 9, 9, 9};
    int32_t got[2] = {9, 9};
    double share[4];
#define REFUSED(call, status_, arg_, index_)                                                        \
    do {                                                                                            \
        CHECK_I64(call, status_);                                                                   \
        CHECK_STR(err.arg, arg_);                                                                   \
        CHECK_I64(err.index, index_);                                                               \
        CHECK(memcmp(rows, kept, sizeof rows) == 0 && got[0] == 9 && got[1] == 9);                  \
    } while (0)
    REFUSED(moe_ep_split(&even, &p, 0, negative, rows, NULL, &err), MOE_EP_ERR_NEGATIVE, "counts", 1);
    REFUSED(moe_ep_split(&even, &p, 0, many, rows, NULL, &err), MOE_EP_ERR_OVERFLOW, "counts", 0);
    REFUSED(moe_ep_split(&even, &p, 0, sum, rows, NULL, &err), MOE_EP_ERR_OVERFLOW, "counts", 1);
    REFUSED(moe_ep_split(&exact, &p, 0, sum, rows, NULL, &err), MOE_EP_ERR_OVERFLOW, "counts", 1);
    REFUSED(moe_ep_split(&wrong, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_RANGE, "desc.policy", -1);
    REFUSED(moe_ep_split(&local, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_CONFIG, "desc.source_counts", -1);
    CHECK_NEAR(err.value, 0, 0, 0); /* there are none */
    local.source_counts = below;
    REFUSED(moe_ep_split(&local, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_CONFIG, "desc.source_counts", 0);
    local.source_counts = below + 3;
    REFUSED(moe_ep_split(&local, &one, 0, lost, rows, NULL, &err), MOE_EP_ERR_LOST_EXPERT, "p", 1);
    REFUSED(moe_ep_split(&local, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_NEGATIVE, "desc.source_counts", 0);
    local.source_counts = above;
    REFUSED(moe_ep_split(&local, &p, 0, counts, rows, NULL, &err), MOE_EP_ERR_CONFIG, "desc.source_counts", 1);
    REFUSED(moe_ep_split_shares(&p, 0, loads, 0, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL, "slot_loads", -1);
    REFUSED(moe_ep_split_shares(&p, 0, loads, 0, share, NULL, &none, &err), MOE_EP_ERR_SCRATCH, "scratch", -1);
    REFUSED(moe_ep_device_rows(NULL, quota, rows, &err), MOE_EP_ERR_NULL, "p", -1);
    REFUSED(moe_ep_device_rows(&p, minus, rows, &err), MOE_EP_ERR_NEGATIVE, "slot_rows", 3);
    REFUSED(moe_ep_device_rows(&p, huge, rows, &err), MOE_EP_ERR_OVERFLOW, "slot_rows", 2);
    REFUSED(moe_ep_pick_slot(NULL, 0, 0, 0, &err), MOE_EP_ERR_NULL, "p", -1);
    REFUSED(moe_ep_pick_slot(&p, 0, -1, 0, &err), MOE_EP_ERR_EXPERT_ID, "expert", -1);
    REFUSED(moe_ep_assign_slots(&p, 0, low, 2, quota, got, NULL, &err), MOE_EP_ERR_EXPERT_ID, "ids", 1);
    REFUSED(moe_ep_assign_slots(&p, 0, high, 2, quota, got, NULL, &err), MOE_EP_ERR_EXPERT_ID, "ids", 0);
    REFUSED(moe_ep_assign_slots(&p, 0, fine, 2, minus, got, NULL, &err), MOE_EP_ERR_NEGATIVE, "slot_rows", 3);
    REFUSED(moe_ep_assign_slots(&p, 0, fine, 2, most, got, NULL, &err), MOE_EP_ERR_CONFIG, "slot_rows", 0);
    REFUSED(moe_ep_assign_slots(&gap, 0, fine, 2, extra, got, NULL, &err), MOE_EP_ERR_CONFIG, "slot_rows", 1);
    REFUSED(moe_ep_assign_slots(&p, 0, NULL, 1, quota, got, NULL, &err), MOE_EP_ERR_NULL, "ids", -1);
    REFUSED(moe_ep_assign_slots(&p, 0, fine, 1, quota, NULL, NULL, &err), MOE_EP_ERR_NULL, "slot_ids", -1);
    REFUSED(moe_ep_assign_slots_local(&p, 0, fine, 1, NULL, quota, got, NULL, &err), MOE_EP_ERR_NULL, "source_device",
            -1);
    REFUSED(moe_ep_reroute_replicas(&p, 0, 1, NULL, 1, got, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL, "slot_ids", -1);
    REFUSED(moe_ep_reroute_replicas(&p, 0, 1, fine, 1, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL, "rerouted_ids",
            -1);
    REFUSED(moe_ep_assign_slots(&p, 0, fine, 2, quota, got, &none, &err), MOE_EP_ERR_SCRATCH, "scratch", -1);
    REFUSED(moe_ep_assign_slots_local(&p, 0, fine, 2, from, quota, got, NULL, &err), MOE_EP_ERR_DEVICE_ID,
            "source_device", 1);
    REFUSED(moe_ep_assign_slots_local(&p, 0, fine, 2, nowhere, quota, got, NULL, &err), MOE_EP_ERR_DEVICE_ID,
            "source_device", 0);
    REFUSED(moe_ep_assign_slots_local(&p, 0, fine, 2, beyond, quota, got, NULL, &err), MOE_EP_ERR_DEVICE_ID,
            "source_device", 0);
    REFUSED(moe_ep_reroute_replicas(&p, 0, 1, far, 2, got, NULL, NULL, NULL, &err), MOE_EP_ERR_EXPERT_ID, "slot_ids",
            0);
    REFUSED(moe_ep_reroute_replicas(&gap, 0, 1, hole, 2, got, NULL, NULL, NULL, &err), MOE_EP_ERR_EXPERT_ID,
            "slot_ids", 1);
    REFUSED(moe_ep_reroute_replicas(&bare, 0, 1, begin, 2, got, NULL, NULL, NULL, &err), MOE_EP_ERR_EXPERT_ID,
            "slot_ids", 1);
    one.replica_start[2] = 5; /* the list of expert 1 begins behind the last slot */
    REFUSED(moe_ep_split(&even, &one, 0, counts, rows, NULL, &err), MOE_EP_ERR_PLACEMENT, "p.replica_start", 1);
    REFUSED(moe_ep_split(&exact, &one, 0, counts, rows, NULL, &err), MOE_EP_ERR_PLACEMENT, "p.replica_start", 1);
#undef REFUSED
    CHECK_I64(moe_ep_assign_slots(&p, 0, NULL, 0, rows, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    memset(rows, 0, sizeof rows);
    CHECK_I64(moe_ep_assign_slots(&p, 0, NULL, 0, rows, NULL, NULL, &err), MOE_EP_OK);
#define FINE(call)                                                                                  \
    memset(&err, 0x55, sizeof err);                                                                 \
    CHECK_I64(call, MOE_EP_OK);                                                                     \
    CHECK(err.status == MOE_EP_OK && err.index == -1)
    FINE(moe_ep_assign_slots(&p, 0, NULL, 0, rows, NULL, NULL, &err));
    FINE(moe_ep_assign_slots_local(&p, 0, NULL, 0, NULL, rows, NULL, NULL, &err));
    FINE(moe_ep_split(&even, &p, 0, counts, rows, NULL, &err));
    FINE(moe_ep_split_shares(&p, 0, loads, 0, share, NULL, NULL, &err));
    FINE(moe_ep_device_rows(&p, quota, rows, &err));
    FINE(moe_ep_pick_slot(&p, 0, 0, 0, &err) < 0);
    FINE(moe_ep_reroute_replicas(&p, 0, 1, NULL, 0, NULL, NULL, NULL, NULL, &err));
#undef FINE
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 1, here, 2, got, NULL, NULL, NULL, &err), MOE_EP_OK);
    CHECK(got[0] == 0 && got[1] == 3);
    placement_free(&p);
    placement_free(&one);
    placement_free(&gap);
    placement_free(&bare);
}

/* What a call says it needs holds at least its working arrays, so that none of them can lie behind the end. */
TEST(scratch_holds_the_arrays)
{
    enum { N = 128, ALIGN = 64 }; /* every array ends where the next may begin */
    int32_t slots[N], ids[1] = {0}, to[1];
    int64_t rows[N] = {0}, counts[N] = {0};
    double loads[N] = {0}, share[N];
    moe_ep_split_desc d = split_of(MOE_EP_SPLIT_EXACT);
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_placement p;
    size_t shares;
    int i;
    for (i = 0; i < N; i++) slots[i] = i;
    p = table(N, N, N, 1, slots);
    CHECK_I64(moe_ep_assign_slots(&p, 0, ids, 1, rows, to, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= N * (8 + 8) && none.need <= N * (8 + 8) + ALIGN); /* quotas, rows */
    CHECK_I64(moe_ep_reroute_replicas(&p, 0, 1, ids, 1, to, NULL, NULL, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= N * 8 && none.need <= N * 8 + ALIGN);
    CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, NULL, &none, NULL), MOE_EP_ERR_SCRATCH);
    shares = none.need; /* levels, shares, hosts, experts and their order, the search */
    CHECK(shares >= N * (2 * 8 + 2 * 8 + 24 + 16 + 2 * 16 + 4 * 4));
    CHECK(shares <= N * (2 * 8 + 2 * 8 + 24 + 16 + 2 * 16 + 4 * 4) + ALIGN);
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= shares + N * (2 * 8 + 8) && none.need <= shares + N * (2 * 8 + 8));
    CHECK_I64(moe_ep_device_rows(&p, rows, rows, NULL), MOE_EP_OK);
    placement_free(&p);
}

/* Each layer of a placement of several is split, assigned and picked like that layer alone. */
TEST(layers_one_by_one)
{
    enum { L = 3, E = 5, D = 3, P = 9 };
    uint64_t s = t_seed + 6;
    int n, l, e, i, policy;
    for (n = 0; n < 100; n++) {
        moe_ep_shape shape;
        moe_ep_placement all, one[L];
        memset(&shape, 0, sizeof shape);
        shape.num_devices = D;
        shape.num_slots = P;
        shape.num_nodes = 2;
        all = placement_new(L, E, &shape);
        for (l = 0; l < L; l++) {
            int32_t slots[P];
            for (i = 0; i < P; i++) slots[i] = i < E ? i : (int32_t)t_below(&s, E + 1) - 1;
            for (i = P - 1; i > 0; i--) {
                int j = (int)t_below(&s, i + 1);
                int32_t keep = slots[i];
                slots[i] = slots[j];
                slots[j] = keep;
            }
            memcpy(all.slot_expert + l * P, slots, sizeof slots);
            one[l] = table(E, D, P, 2, slots);
        }
        CHECK_I64(moe_ep_placement_index(&all, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) {
            int64_t counts[E], source[D * E], rows[P], want[P], moved[2], lost[2];
            int32_t ids[40], from[40], got[40], slot[40];
            double loads[E], share[P], alone[P];
            memset(counts, 0, sizeof counts);
            memset(source, 0, sizeof source);
            for (i = 0; i < 40; i++) {
                ids[i] = (int32_t)t_below(&s, E);
                from[i] = (int32_t)t_below(&s, D);
                counts[ids[i]]++;
                source[from[i] * E + ids[i]]++;
            }
            for (policy = 0; policy <= MOE_EP_SPLIT_EXACT; policy++) {
                moe_ep_split_desc d = split_of((moe_ep_split_policy)policy);
                d.source_counts = source;
                d.seed = (uint64_t)n;
                CHECK_I64(moe_ep_split(&d, &all, l, counts, rows, NULL, NULL), MOE_EP_OK);
                CHECK_I64(moe_ep_split(&d, &one[l], 0, counts, want, NULL, NULL), MOE_EP_OK);
                CHECK(memcmp(rows, want, sizeof rows) == 0);
            }
            for (e = 0; e < E; e++) {
                loads[e] = (double)counts[e];
                CHECK_I64(moe_ep_pick_slot(&all, l, e, (uint64_t)n, NULL),
                          moe_ep_pick_slot(&one[l], 0, e, (uint64_t)n, NULL));
            }
            CHECK_I64(moe_ep_split_shares(&all, l, loads, 0, share, NULL, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_split_shares(&one[l], 0, loads, 0, alone, NULL, NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(share, alone, sizeof share) == 0);
            CHECK_I64(moe_ep_assign_slots_local(&all, l, ids, 40, from, rows, got, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_assign_slots_local(&one[l], 0, ids, 40, from, rows, slot, NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(got, slot, sizeof got) == 0);
            CHECK_I64(moe_ep_reroute_replicas(&all, l, 4, slot, 40, got, &moved[0], &lost[0], NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_reroute_replicas(&one[l], 0, 4, slot, 40, ids, &moved[1], &lost[1], NULL, NULL),
                      MOE_EP_OK);
            CHECK(memcmp(got, ids, sizeof got) == 0 && moved[0] == moved[1] && lost[0] == lost[1]);
        }
        for (l = 0; l < L; l++) placement_free(&one[l]);
        placement_free(&all);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Shares of 0, 3.5 and 2.5 rows: the odd row goes to the first of the hosts with most room, not to the busy one. */
TEST(the_odd_row)
{
    const int32_t slots[6] = {0, 1, 0, -1, 0, 2};
    const int64_t counts[3] = {6, 100, 1};
    moe_ep_placement p = table(3, 3, 6, 1, slots);
    moe_ep_split_desc d = split_of(MOE_EP_SPLIT_LEAST_LOADED);
    int64_t rows[6];
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    CHECK(rows[0] == 0 && rows[2] == 4 && rows[4] == 2 && rows[1] == 100 && rows[5] == 1);
    placement_free(&p);
}

TEST(policy_names)
{
    static const char *const name[7] = {"even",        "round robin",  "hash", "random",
                                        "local first", "least loaded", "exact"};
    int i;
    for (i = 0; i < 7; i++) CHECK_STR(moe_ep_split_policy_str((moe_ep_split_policy)i), name[i]);
    CHECK_STR(moe_ep_split_policy_str((moe_ep_split_policy)7), "unknown policy");
}

/* "From replica (seed + expert) on", for any seed: 2^64 mod 3 = 1, so the second of three copies. */
TEST(round_robin_from_a_seed_at_the_end)
{
    const int64_t counts[2] = {0, 1};
    int64_t memory[256], rows[4];
    moe_ep_placement p;
    moe_ep_shape shape;
    moe_ep_split_desc d;
    memset(&shape, 0, sizeof shape);
    memset(&d, 0, sizeof d);
    shape.num_devices = shape.num_slots = 4;
    CHECK_I64(moe_ep_placement_init(&p, 1, 2, &shape, memory, sizeof memory, NULL), MOE_EP_OK);
    p.slot_expert[0] = 0;
    p.slot_expert[1] = p.slot_expert[2] = p.slot_expert[3] = 1;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    d.policy = MOE_EP_SPLIT_ROUND_ROBIN;
    d.seed = UINT64_MAX;
    CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    CHECK(rows[0] == 0 && rows[1] == 0 && rows[2] == 1 && rows[3] == 0);
}

/* loads are (E), those of the layer: what stands behind them is nobody's. */
TEST(shares_read_the_loads_of_one_layer)
{
    const double loads[4] = {6, 2, NAN, NAN};
    double slot[3], most;
    int64_t memory[256];
    moe_ep_placement p;
    moe_ep_shape shape;
    int32_t l;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = shape.num_slots = 3;
    CHECK_I64(moe_ep_placement_init(&p, 2, 2, &shape, memory, sizeof memory, NULL), MOE_EP_OK);
    for (l = 0; l < 6; l++) p.slot_expert[l] = l % 3 == 2;
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    for (l = 0; l < 2; l++) {
        CHECK_I64(moe_ep_split_shares(&p, l, loads, 0, slot, &most, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(slot[0], 3, 1e-12, 0);
        CHECK_NEAR(slot[1], 3, 1e-12, 0);
        CHECK_NEAR(slot[2], 2, 1e-12, 0);
        CHECK_NEAR(most, 3, 1e-12, 0);
    }
}

/* Rows of billions, split to the row: no device above the rounded-up optimum. */
TEST(exact_with_billions_of_rows)
{
    static const int32_t slots[11] = {0, 1, 2, 3, 0, 4, 1, 5, 2, 6, 3};
    static const int32_t each[5] = {4, 2, 2, 2, 1};
    const moe_ep_split_desc d = split_of(MOE_EP_SPLIT_EXACT);
    moe_ep_shape shape;
    moe_ep_placement p;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 5;
    shape.slots_per_device = each;
    p = placement_new(1, 7, &shape);
    memcpy(p.slot_expert, slots, sizeof slots);
    CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
    for (int64_t M = 4000; M <= INT64_C(40000000000); M *= 10) { /* optimum M + 4/5 */
        const int64_t counts[7] = {M / 2 + 1001, M / 2 + 1001, M / 2 + 1001, 2 * M - 2999, M / 2, M / 2, M / 2};
        int64_t rows[11], device[5], sum = 0;
        CHECK_I64(moe_ep_split(&d, &p, 0, counts, rows, NULL, NULL), MOE_EP_OK);
        check_sums(&p, rows, counts);
        CHECK_I64(moe_ep_device_rows(&p, rows, device, NULL), MOE_EP_OK);
        for (int i = 0; i < 5; i++) {
            CHECK(device[i] <= M + 1);
            sum += device[i];
        }
        CHECK_I64(sum, 5 * M + 4);
        STOP_IF_FAILED("M = %lld", (long long)M);
    }
    placement_free(&p);
}

T_MAIN
