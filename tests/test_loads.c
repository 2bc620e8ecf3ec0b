/* tests/test_loads.c - section 2: counts, windows, co-activation.  SPDX-License-Identifier: MIT */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* memfd_create */
#endif
#include "t.h"
#include "vec.h"
#include "moe_ep.h"
#include "t_repeat.h"

#define LEN(x) ((int64_t)(sizeof(x) / sizeof((x)[0])))

static void check_i64s(const int64_t *got, const int64_t *want, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) CHECK_I64(got[i], want[i]);
}

/* The brute-force count that every fast path is compared with. */
static int64_t naive_loads(const int32_t *ids, int64_t n, int32_t E, int64_t *loads)
{
    int64_t i, skipped = 0;
    memset(loads, 0, sizeof *loads * (size_t)E);
    for (i = 0; i < n; i++) {
        if (ids[i] == -1) skipped++;
        else loads[ids[i]]++;
    }
    return skipped;
}

static int32_t *random_ids(uint64_t *s, int64_t n, int32_t E, int percent_none)
{
    int32_t *ids = (int32_t *)t_alloc(sizeof *ids * (size_t)(n + 1));
    int64_t i;
    int skew = (int)t_below(s, 3);
    for (i = 0; i < n; i++) {
        if (t_below(s, 100) < percent_none) ids[i] = -1;
        else if (skew == 0) ids[i] = (int32_t)t_below(s, E);
        else if (skew == 1) ids[i] = (int32_t)t_below(s, 1 + t_below(s, E));
        else ids[i] = t_below(s, 10) < 8 ? 0 : (int32_t)t_below(s, E);
    }
    return ids;
}

TEST(expert_loads_example)
{
    static const int32_t ids[] = {1, 1, 0, 1, 2, 2}, three[] = {1, 3, 1}, more[] = {3, -1};
    static const int64_t want[] = {1, 3, 2, 0}, added[] = {1, 3, 2, 1};
    int64_t loads[4] = {9, 9, 9, 9}, skipped = 7;
    moe_ep_error err;
    CHECK_I64(moe_ep_expert_loads(ids, 6, 4, loads, &skipped, &err), MOE_EP_OK);
    check_i64s(loads, want, 4);
    CHECK_I64(skipped, 0);
    CHECK_I64(err.status, MOE_EP_OK);
    CHECK_I64(moe_ep_expert_loads_add(more, 2, 4, loads, &skipped, NULL), MOE_EP_OK);
    check_i64s(loads, added, 4);
    CHECK_I64(skipped, 1);
    /* three tokens, four experts */
    (void)three;
    {
        static const int32_t first[] = {3, 1, 3};
        static const int64_t count[] = {0, 1, 0, 2};
        CHECK_I64(moe_ep_expert_loads(first, 3, 4, loads, NULL, NULL), MOE_EP_OK);
        check_i64s(loads, count, 4);
    }
}

TEST(expert_loads_random)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < 3000; round++) {
        int32_t E = (int32_t)(1 + t_below(&s, round % 50 == 0 ? 9000 : 40));
        int64_t n = t_below(&s, round % 20 == 0 ? 40000 : 300), i, sum = 0;
        int32_t *ids = random_ids(&s, n, E, (int)t_below(&s, 101));
        int64_t *got = (int64_t *)t_alloc(sizeof *got * (size_t)E),
            *want = (int64_t *)t_alloc(sizeof *want * (size_t)E);
        int64_t skipped = -5, none = naive_loads(ids, n, E, want), half = n / 2, twice = 0;
        CHECK_I64(moe_ep_expert_loads(ids, n, E, got, &skipped, NULL), MOE_EP_OK);
        CHECK_I64(skipped, none);
        CHECK(memcmp(got, want, sizeof *got * (size_t)E) == 0);
        for (i = 0; i < E; i++) sum += got[i];
        CHECK_I64(sum + skipped, n);
        CHECK_I64(moe_ep_expert_loads(ids, half, E, got, &twice, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_expert_loads_add(ids + half, n - half, E, got, &twice, NULL), MOE_EP_OK);
        CHECK(memcmp(got, want, sizeof *got * (size_t)E) == 0);
        CHECK_I64(twice, none);
        if (n > 0) { /* one bad id anywhere stops the call with its position */
            moe_ep_error err;
            int64_t at = t_below(&s, n);
            static const int32_t evil[] = {-2, INT32_MIN, INT32_MAX, 0};
            int32_t bad = evil[t_below(&s, 4)];
            if (bad == 0) bad = E;
            ids[at] = bad;
            memset(got, 0x5a, sizeof *got * (size_t)E);
            memcpy(want, got, sizeof *got * (size_t)E);
            skipped = 77;
            CHECK_I64(moe_ep_expert_loads(ids, n, E, got, &skipped, &err), MOE_EP_ERR_EXPERT_ID);
            CHECK_I64(err.index, at);
            CHECK_NEAR(err.value, bad, 0, 0);
            CHECK_STR(err.arg, "ids");
            CHECK(memcmp(got, want, sizeof *got * (size_t)E) == 0);
            CHECK_I64(skipped, 77);
        }
        free(ids);
        free(got);
        free(want);
        STOP_IF_FAILED("round %d", round);
    }
}

/* A bad id is found wherever it stands: each place of chunks, blocks and the rest behind them. */
TEST(expert_loads_bad_id_everywhere)
{
    enum { N = 2250, E = 3 };
    static int32_t ids[N];
    static const int32_t evil[] = {E, -2};
    int64_t loads[E], n, at;
    moe_ep_error err;
    for (at = 0; at < N; at++) ids[at] = (int32_t)(at % E);
    for (n = N; n > N - 140; n -= 69)
        for (at = 0; at < n; at++) {
            const int32_t kept = ids[at];
            ids[at] = evil[at % 2];
            loads[0] = -9;
            CHECK_I64(moe_ep_expert_loads(ids, n, E, loads, NULL, &err), MOE_EP_ERR_EXPERT_ID);
            CHECK_I64(err.index, at);
            CHECK_I64(loads[0], -9);
            ids[at] = kept;
            STOP_IF_FAILED("position %d", (int)at);
        }
}

TEST(expert_loads_errors)
{
    int64_t loads[2] = {5, 6}, huge[2] = {INT64_MAX - 1, 0}, negative[2] = {0, -1};
    int32_t ids[3] = {0, 0, 0};
    moe_ep_error err;
    CHECK_I64(moe_ep_expert_loads(NULL, 3, 2, loads, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "ids");
    CHECK_I64(moe_ep_expert_loads(ids, 3, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "loads");
    CHECK_I64(moe_ep_expert_loads(ids, 3, 0, loads, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "E");
    CHECK_I64(moe_ep_expert_loads(ids, -1, 2, loads, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "n");
    CHECK_I64(moe_ep_expert_loads_add(ids, 3, 2, huge, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(err.index, 0);
    CHECK_I64(huge[0], INT64_MAX - 1);
    CHECK_I64(moe_ep_expert_loads_add(ids, 3, 2, negative, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
    CHECK_I64(loads[0], 5);
    CHECK_I64(moe_ep_expert_loads(NULL, 0, 2, loads, NULL, NULL), MOE_EP_OK); /* no ids: no load */
    CHECK_I64(loads[0] + loads[1], 0);
}

TEST(layer_loads_layouts)
{
    static const int32_t ids[] = {0, 1, 0, 2};
    static const int64_t want[] = {2, 0, 0, 0, 1, 1};
    int64_t loads[6], skipped = 0;
    uint64_t s = t_seed + 1;
    int round;
    moe_ep_ids view = moe_ep_ids_tlk(ids, 2, 2, 1, 3);
    CHECK_I64(moe_ep_layer_loads(&view, loads, &skipped, NULL), MOE_EP_OK);
    check_i64s(loads, want, 6);
    for (round = 0; round < 500; round++) {
        int32_t L = (int32_t)(1 + t_below(&s, 5)), K = (int32_t)(1 + t_below(&s,
                                                                 4)), E = (int32_t)(K + t_below(&s, 20)), l;
        int64_t T = t_below(&s, 40), gap = t_below(&s, 3), stride = (int64_t)L * K + gap, t, none = 0;
        int32_t *tlk = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(T * stride + 1));
        int32_t *ltk = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(T * L * K + 1)), k;
        int64_t *got = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)(L * E)),
            *ref = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)(L * E));
        moe_ep_error err;
        for (t = 0; t < T * stride; t++) tlk[t] = 1000000; /* padding between tokens is never read */
        for (t = 0; t < T; t++)
            for (l = 0; l < L; l++)
                for (k = 0; k < K; k++) {
                    int32_t id = (int32_t)t_below(&s, E + 1) - 1;
                    tlk[t * stride + l * K + k] = ltk[((int64_t)l * T + t) * K + k] = id;
                    if (id >= 0) ref[l * E + id]++;
                    else none++;
                }
        view = moe_ep_ids_tlk(tlk, T, L, K, E);
        view.token_stride = stride;
        CHECK_I64(moe_ep_layer_loads(&view, got, &skipped, NULL), MOE_EP_OK);
        check_i64s(got, ref, (int64_t)L * E);
        CHECK_I64(skipped, none);
        memset(got, 1, sizeof(int64_t) * (size_t)(L * E));
        view = moe_ep_ids_ltk(ltk, T, L, K, E);
        CHECK_I64(moe_ep_layer_loads(&view, got, &skipped, NULL), MOE_EP_OK);
        check_i64s(got, ref, (int64_t)L * E);
        CHECK_I64(skipped, none);
        if (T > 0) {
            int64_t at = t_below(&s, T * L * K), before = got[0];
            ltk[at] = E + 3;
            CHECK_I64(moe_ep_layer_loads(&view, got, NULL, &err), MOE_EP_ERR_EXPERT_ID);
            CHECK_I64(err.index, at);
            CHECK_I64(got[0], before);
        }
        free(tlk);
        free(ltk);
        free(got);
        free(ref);
        STOP_IF_FAILED("round %d", round);
    }
}

/* A bad id at every place of every layout is named by its offset. */
TEST(layer_loads_bad_id_everywhere)
{
    enum { T = 3, L = 2, K = 2, E = 4, GAP = 1 };
    int32_t ids[T * (L * K + GAP)], t, l, k;
    int64_t loads[L * E];
    moe_ep_error err;
    int layout;
    for (layout = 0; layout < 3; layout++)
        for (t = 0; t < T; t++)
            for (l = 0; l < L; l++)
                for (k = 0; k < K; k++) {
                    const int64_t at = layout == 0 ? (t * L + l) * K + k : layout == 1 ? t * (L * K + GAP) + l * K + k :
                        (l * T + t) * K + k;
                    moe_ep_ids v = layout == 2 ? moe_ep_ids_ltk(ids, T, L, K, E) : moe_ep_ids_tlk(ids, T, L, K, E);
                    if (layout == 1) v.token_stride = L * K + GAP;
                    memset(ids, 0, sizeof ids);
                    memset(loads, 7, sizeof loads);
                    ids[at] = k ? E : -2;
                    CHECK_I64(moe_ep_layer_loads(&v, loads, NULL, &err), MOE_EP_ERR_EXPERT_ID);
                    CHECK_I64(err.index, at);
                    CHECK_I64(loads[0], 0x0707070707070707);
                }
}

TEST(layer_loads_errors)
{
    int32_t ids[4] = {0, 0, 0, 0};
    int64_t loads[8];
    moe_ep_error err;
    moe_ep_ids v = moe_ep_ids_tlk(ids, 2, 1, 2, 2), w;
    CHECK_I64(moe_ep_layer_loads(NULL, loads, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_layer_loads(&v, NULL, NULL, &err), MOE_EP_ERR_NULL);
    w = v; w.ids = NULL;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "view.ids");
    w = v; w.num_layers = 0;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "view.num_layers");
    w = v; w.top_k = 0;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "view.top_k");
    w = v; w.num_experts = 0;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "view.num_experts");
    w = v; w.num_experts = -1;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_SIZE);
    w = v; w.num_tokens = -1;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_SIZE);
    w = v; w.token_stride = -1;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_SIZE);
    w = v; w.num_tokens = INT64_MAX / 2; w.token_stride = 1000;
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_OVERFLOW);
    memset(&w, 0, sizeof w);
    CHECK_I64(moe_ep_layer_loads(&w, loads, NULL, &err), MOE_EP_ERR_SIZE);
}

TEST(ranks_and_devices)
{
    static const int32_t ids[] = {0, 1, 1, 1};
    static const int64_t want[] = {1, 1, 0, 2}, lab[] = {10, 1, 1, 1, 10, 1, 1, 1}, device[] = {20, 2, 2, 2};
    static const int64_t tokens4[] = {10, 0, 1, 1};
    int32_t active[2], wrong[4] = {0, 0, 9, 0};
    int64_t got[8], skipped = 0, t, T;
    moe_ep_error err;
    int32_t D;
    CHECK_I64(moe_ep_rank_loads(ids, 4, 1, 2, NULL, 2, got, &skipped, NULL), MOE_EP_OK);
    check_i64s(got, want, 4);
    CHECK_I64(moe_ep_rank_of_token(6, 10, 4, NULL), 2);
    for (T = 1; T < 30; T++)
        for (D = 1; D < 12; D++) {
            int64_t size[12] = {0}, last = 0;
            for (t = 0; t < T; t++) {
                int64_t r = moe_ep_rank_of_token(t, T, D, NULL);
                CHECK(r >= last && r < D);
                last = r;
                size[r]++;
            }
            for (t = 0; t < D; t++) CHECK_I64(size[t], T / D + (t < T % D));
        }
    CHECK_I64(moe_ep_rank_of_token(5, INT64_MAX, 1, NULL), 0);
    CHECK_I64(moe_ep_rank_of_token(INT64_MAX - 1, INT64_MAX, 1, NULL), 0);
    CHECK_I64(moe_ep_rank_of_token(INT64_MAX - 1, INT64_MAX, 2, NULL), 1);
    CHECK_I64(moe_ep_rank_of_token(INT64_MAX - 1, INT64_MAX, INT32_MAX, NULL), INT32_MAX - 1);
    CHECK_I64(moe_ep_rank_of_token(10, 10, 4, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_rank_of_token(0, 0, 4, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_rank_loads(ids, 4, 1, 2, wrong, 2, got, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_rank_loads(ids, 4, 1, 2, NULL, 0, got, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_rank_loads(ids, INT64_MAX / 2, 4, 2, NULL, 2, got, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_loads_by_device(lab, 8, NULL, 4, got, NULL), MOE_EP_OK);
    check_i64s(got, device, 4);
    CHECK_I64(moe_ep_loads_by_device(lab, 4, wrong, 2, got, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_STR(err.arg, "device_of_expert");
    CHECK_I64(moe_ep_loads_by_device(NULL, 4, NULL, 2, got, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_loads_by_device(lab, 4, NULL, 2, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_active_by_device(tokens4, 4, NULL, 2, active, NULL), MOE_EP_OK);
    CHECK_I64(active[0], 2);
    CHECK_I64(active[1], 1);
    CHECK_I64(moe_ep_active_by_device(tokens4, 4, NULL, 2, NULL, &err), MOE_EP_ERR_NULL);
    {
        static const int64_t hot[] = {100, 28, 0, 0}, bad[] = {1, -1};
        CHECK_I64(moe_ep_active_experts(hot, 4, NULL), 2);
        CHECK_I64(moe_ep_active_experts(bad, 2, &err), MOE_EP_ERR_NEGATIVE);
        CHECK_I64(moe_ep_active_experts(hot, 0, &err), MOE_EP_ERR_SIZE);
    }
}

TEST(expectations)
{
    static const double fan_out[] = {1.99, 3.63, 5.34, 6.60};
    moe_ep_error err;
    int i;
    CHECK_NEAR(moe_ep_expected_distinct(8, 2, 64, NULL), 14.3552, 0, 5e-5);
    CHECK_NEAR(moe_ep_expected_distinct(1, 8, 256, NULL), 8, 1e-12, 0);
    CHECK_NEAR(moe_ep_expected_distinct(5, 4, 4, NULL), 4, 0, 0);
    CHECK_NEAR(moe_ep_expected_distinct(1000000000, 1, 4096, NULL), 4096, 1e-12, 0);
    CHECK_NEAR(moe_ep_expected_distinct(0, 1, 4, &err), MOE_EP_ERR_SIZE, 0, 0);
    CHECK_NEAR(moe_ep_expected_distinct(1, 5, 4, &err), MOE_EP_ERR_TOP_K, 0, 0);
    CHECK_STR(err.arg, "K");
    for (i = 0; i < 4; i++) CHECK_NEAR(moe_ep_expected_groups(8, 128, 2 << i, NULL), fan_out[i], 0, 0.005);
    CHECK_NEAR(moe_ep_expected_groups(3, 6, 6, NULL), 3, 1e-12, 0);
    CHECK_NEAR(moe_ep_expected_groups(2, 6, 1, NULL), 1, 1e-12, 0);
    CHECK_NEAR(moe_ep_expected_groups(100, 4096, 2, NULL), 2, 1e-9, 0);
    CHECK_NEAR(moe_ep_expected_groups(2, 6, 7, &err), MOE_EP_ERR_SIZE, 0, 0);
    /* hit probability of EP 8 with replacement would be 0.656 */
    CHECK_NEAR(moe_ep_expected_groups(8, 128, 8, NULL) / 8, 0.667, 0, 5e-4);
}

TEST(coactivation_and_transitions)
{
    static const int32_t pair[] = {0, 1, 0, 2}, twice[] = {1, 1, -1, 0}, from[] = {0, 1}, to[] = {1, 1};
    static const int64_t want[] = {0, 1, 1, 1, 0, 0, 1, 0, 0}, next[] = {0, 1, 0, 1}, counts[] = {0, 2, 1, 3};
    int64_t co[9], skipped = 0, sum = 0;
    double share[4] = {0}, lift[4];
    moe_ep_error err;
    uint64_t s = t_seed + 2;
    int i, round;
    CHECK_I64(moe_ep_coactivation(pair, 2, 2, 3, co, &skipped, NULL), MOE_EP_OK);
    check_i64s(co, want, 9);
    CHECK_I64(moe_ep_coactivation(twice, 1, 4, 2, co, &skipped, NULL), MOE_EP_OK);
    CHECK_I64(skipped, 1);
    CHECK_I64(co[1], 1);
    CHECK_I64(co[2], 1);
    CHECK_I64(co[3], 0);
    CHECK_I64(moe_ep_transitions(from, to, 2, 1, 2, co, NULL), MOE_EP_OK);
    check_i64s(co, next, 4);
    CHECK_I64(moe_ep_transition_shares(counts, 2, share, NULL), MOE_EP_OK);
    CHECK_NEAR(share[2], 0.25, 0, 0);
    CHECK_NEAR(share[1], 1, 0, 0);
    {
        static const int64_t together[] = {0, 10, 10, 0}, loads[] = {20, 10}, zero[] = {0, 10};
        CHECK_I64(moe_ep_lift(together, loads, 40, 2, lift, NULL), MOE_EP_OK);
        CHECK_NEAR(lift[1], 2, 0, 0);
        CHECK_I64(moe_ep_lift(together, zero, 40, 2, lift, NULL), MOE_EP_OK);
        CHECK_NEAR(lift[1], 0, 0, 0);
        CHECK_I64(moe_ep_lift(together, loads, -1, 2, lift, &err), MOE_EP_ERR_SIZE);
        CHECK_I64(moe_ep_lift(NULL, loads, 1, 2, lift, &err), MOE_EP_ERR_NULL);
    }
    { /* every set of K of E experts once: what uniform draws of distinct experts give */
        enum { E = 8 };
        static int32_t sets[70 * 4];
        int32_t K, e;
        for (K = 2; K <= 4; K++) {
            int64_t all[E * E], load[E];
            double of_pair[E * E];
            int32_t m, n = 0, T = 0;
            for (m = 0; m < 1 << E; m++) {
                int32_t bits = 0;
                for (e = 0; e < E; e++) bits += m >> e & 1;
                if (bits != K) continue;
                for (e = 0; e < E; e++)
                    if (m >> e & 1) sets[n++] = e;
                T++;
            }
            CHECK_I64(moe_ep_expert_loads(sets, n, E, load, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_coactivation(sets, T, K, E, all, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_lift(all, load, T, E, of_pair, NULL), MOE_EP_OK);
            for (e = 1; e < E; e++) CHECK_NEAR(of_pair[e], E * (K - 1.0) / (K * (E - 1.0)), 1e-14, 0);
            if (K == 2) CHECK_NEAR(of_pair[1], 0.571, 0, 5e-4);
        }
    }
    for (round = 0; round < 200; round++) {
        enum { E = 7, K = 3, T = 11 };
        int32_t a[T * K], b[T * K], t, k, j;
        int64_t tr[E * E], pairs[E * E], brute[E * E], brute_tr[E * E];
        memset(brute, 0, sizeof brute);
        memset(brute_tr, 0, sizeof brute_tr);
        for (t = 0; t < T; t++) {
            int32_t x = (int32_t)t_below(&s, E), e, f;
            for (k = 0; k < K; k++) {
                a[t * K + k] = (x + k * 2) % E; /* distinct */
                b[t * K + k] = (int32_t)t_below(&s, E);
            }
            for (e = 0; e < E; e++)
                for (f = 0; f < E; f++) {
                    int has_e = 0, has_f = 0;
                    for (k = 0; k < K; k++) { has_e |= a[t * K + k] == e; has_f |= a[t * K + k] == f; }
                    brute[e * E + f] += e != f && has_e && has_f;
                }
            for (k = 0; k < K; k++)
                for (j = 0; j < K; j++) brute_tr[a[t * K + k] * E + b[t * K + j]]++;
        }
        CHECK_I64(moe_ep_coactivation(a, T, K, E, pairs, NULL, NULL), MOE_EP_OK);
        check_i64s(pairs, brute, E * E);
        CHECK_I64(moe_ep_transitions(a, b, T, K, E, tr, NULL), MOE_EP_OK);
        check_i64s(tr, brute_tr, E * E);
        for (sum = 0, i = 0; i < E * E; i++) sum += pairs[i];
        CHECK_I64(sum, T * K * (K - 1));
        STOP_IF_FAILED("round %d", round);
    }
    memset(co, 0x33, sizeof co);
    {
        int32_t bad[] = {0, 5};
        int64_t before = co[0];
        CHECK_I64(moe_ep_coactivation(bad, 1, 2, 3, co, NULL, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, 1);
        CHECK_I64(moe_ep_transitions(bad, from, 1, 2, 3, co, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_STR(err.arg, "ids_from");
        CHECK_I64(moe_ep_transitions(from, bad, 1, 2, 3, co, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_STR(err.arg, "ids_to");
        CHECK_I64(co[0], before);
        CHECK_I64(moe_ep_coactivation(bad, 1, 2, 0, co, NULL, &err), MOE_EP_ERR_SIZE);
        CHECK_I64(moe_ep_coactivation(bad, 1, 2, INT32_MAX, co, NULL, &err), MOE_EP_ERR_OVERFLOW);
        CHECK_I64(moe_ep_coactivation(bad, 1, 0, 3, co, NULL, &err), MOE_EP_ERR_SIZE);
        CHECK_I64(moe_ep_coactivation(NULL, 1, 2, 3, co, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_coactivation(pair, 2, 2, 3, NULL, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_transition_shares(NULL, 2, share, &err), MOE_EP_ERR_NULL);
        co[3] = -1;
        co[0] = co[1] = co[2] = 0;
        CHECK_I64(moe_ep_transition_shares(co, 2, share, &err), MOE_EP_ERR_NEGATIVE);
        CHECK_I64(err.index, 3);
    }
}

/* ---- windows ---- */

static moe_ep_window new_window(const char *label, int32_t L, int32_t E, int32_t ring, double keep)
{
    moe_ep_window w;
    size_t bytes = moe_ep_window_bytes(L, E, ring);
    CHECK_I64(moe_ep_window_init(&w, label, L, E, ring, keep, t_alloc(bytes), bytes, NULL), MOE_EP_OK);
    return w;
}

TEST(window_examples)
{
    static const int64_t steps[3][2] = {{4, 0}, {0, 2}, {1, 1}};
    int64_t recent[2];
    double variance[2];
    moe_ep_window w = new_window("decode", 1, 2, 2, 0.5), a, b;
    CHECK_STR(w.label, "decode");
    CHECK_I64(moe_ep_window_bytes(1, 8, 0), 256);
    CHECK(w.steps == 0 && w.sum[0] == 0 && w.sum[1] == 0);
    CHECK_I64(moe_ep_window_add(&w, steps[0], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_clear(&w, NULL), MOE_EP_OK);
    CHECK(w.steps == 0 && w.sum[0] == 0 && w.sum[1] == 0 && w.ring[0] == 0 && w.num_experts == 2);
    CHECK_I64(moe_ep_window_add(&w, steps[0], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w, steps[1], NULL), MOE_EP_OK);
    CHECK_I64(w.sum[0], 4);
    CHECK_I64(w.sum[1], 2);
    CHECK_NEAR(w.mean[0], 2, 1e-15, 0);
    CHECK_NEAR(w.ema[0], 2, 0, 0);
    CHECK_NEAR(w.ema[1], 1, 0, 0);
    CHECK_I64(moe_ep_window_variance(&w, variance, NULL), MOE_EP_OK);
    CHECK_NEAR(variance[0], 8, 1e-15, 0);
    CHECK_NEAR(variance[1], 2, 1e-15, 0);
    CHECK_I64(moe_ep_window_add(&w, steps[2], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_recent(&w, 2, recent, NULL), MOE_EP_OK);
    CHECK_I64(recent[0], 1);
    CHECK_I64(recent[1], 3);
    CHECK_I64(moe_ep_window_step(&w, 0)[1], 1);
    CHECK_I64(moe_ep_window_step(&w, 1)[0], 0);
    CHECK_I64(moe_ep_window_step(&w, 1)[1], 2);
    CHECK(moe_ep_window_step(&w, 2) == NULL);
    CHECK(moe_ep_window_step(&w, -1) == NULL);
    CHECK(moe_ep_window_step(NULL, 0) == NULL);
    CHECK_I64(moe_ep_window_clear(&w, NULL), MOE_EP_OK);
    CHECK_I64(w.steps, 0);
    CHECK_I64(w.sum[0], 0);
    free(w.sum);
    a = new_window(NULL, 1, 1, 4, 0);
    b = new_window(NULL, 1, 1, 4, 0);
    {
        static const int64_t four = 4, zero = 0, two = 2;
        moe_ep_window_add(&a, &four, NULL);
        moe_ep_window_add(&b, &zero, NULL);
        moe_ep_window_add(&b, &two, NULL);
        CHECK_I64(moe_ep_window_append(&a, &b, NULL), MOE_EP_OK);
        CHECK_I64(a.sum[0], 6);
        CHECK_I64(a.steps, 3);
        CHECK_I64(moe_ep_window_variance(&a, variance, NULL), MOE_EP_OK);
        CHECK_NEAR(variance[0], 4, 1e-14, 0);
    }
    free(a.sum);
    free(b.sum);
}

/* Loads that never change have no variance at all, also after two ranks were merged. */
TEST(constant_loads_do_not_vary)
{
    static const int64_t step[2] = {0, 5};
    moe_ep_window a = new_window("", 1, 2, 4, 0), b = new_window("", 1, 2, 4, 0);
    double variance[2] = {-1, -1};
    int i;
    for (i = 0; i < 3; i++) {
        CHECK_I64(moe_ep_window_add(&a, step, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_window_add(&b, step, NULL), MOE_EP_OK);
    }
    CHECK_I64(moe_ep_window_merge_ranks(&a, &b, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_variance(&a, variance, NULL), MOE_EP_OK);
    CHECK(variance[0] == 0.0 && variance[1] == 0.0);
    free(a.sum);
    free(b.sum);
}

/* Window statistics against the plain list of steps, for plain adding, merging ranks and appending. */
TEST(window_random)
{
    uint64_t s = t_seed + 3;
    int round;
    for (round = 0; round < 300; round++) {
        int32_t L = (int32_t)(1 + t_below(&s, 2)), E = (int32_t)(1 + t_below(&s, 4)), ring = (int32_t)t_below(&s, 6);
        int64_t cells = (int64_t)L * E, na = t_below(&s, 8), nb = t_below(&s, 8), i, k, back;
        double keep = t_unit(&s), variance[8];
        int64_t a[8][8], b[8][8];
        moe_ep_window wa = new_window("a", L, E, ring, keep), wb = new_window("b", L, E, ring, keep);
        moe_ep_window ra = new_window("ra", L, E, ring, keep), rb = new_window("rb", L, E, ring, keep);
        for (i = 0; i < 8; i++)
            for (k = 0; k < cells; k++) { a[i][k] = t_below(&s, 50); b[i][k] = t_below(&s, 50); }
        for (i = 0; i < na; i++) {
            moe_ep_window_add(&wa, a[i], NULL);
            moe_ep_window_add(&ra, a[i], NULL);
            moe_ep_window_add(&rb, b[i], NULL);
        }
        for (i = 0; i < nb; i++) moe_ep_window_add(&wb, b[i], NULL);
        CHECK_I64(moe_ep_window_append(&wa, &wb, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_window_merge_ranks(&ra, &rb, NULL), MOE_EP_OK);
        CHECK_I64(wa.steps, na + nb);
        CHECK_I64(moe_ep_window_variance(&wa, variance, NULL), MOE_EP_OK);
        for (k = 0; k < cells; k++) {
            double sum = 0, square = 0, n = (double)(na + nb), mean, ema = 0, both = 0;
            for (i = 0; i < na + nb; i++) sum += (double)(i < na ? a[i][k] : b[i - na][k]);
            mean = n > 0 ? sum / n : 0;
            for (i = 0; i < na + nb; i++) {
                double d = (double)(i < na ? a[i][k] : b[i - na][k]) - mean;
                square += d * d;
            }
            CHECK_NEAR(wa.sum[k], sum, 0, 0);
            CHECK_NEAR(wa.mean[k], mean, 1e-12, 1e-12);
            CHECK_NEAR(variance[k], n > 1 ? square / (n - 1) : 0, 1e-10, 1e-9);
            for (back = 0; back < ring && back < na + nb; back++) {
                i = na + nb - 1 - back;
                CHECK_I64(moe_ep_window_step(&wa, back)[k], i < na ? a[i][k] : b[i - na][k]);
            }
            for (i = 0; i < na; i++) {
                double both_i = (double)(a[i][k] + b[i][k]);
                ema = i == 0 ? both_i : keep * ema + (1 - keep) * both_i;
                both += both_i;
            }
            CHECK_NEAR(ra.sum[k], both, 0, 0);
            CHECK_NEAR(ra.ema[k], ema, 1e-12, 1e-12);
        }
        CHECK_I64(ra.has_variance, na <= ring);
        if (ra.has_variance) {
            CHECK_I64(moe_ep_window_variance(&ra, variance, NULL), MOE_EP_OK);
            for (k = 0; k < cells; k++) {
                double mean = 0, square = 0;
                for (i = 0; i < na; i++) mean += (double)(a[i][k] + b[i][k]) / (double)na;
                for (i = 0; i < na; i++) square += pow((double)(a[i][k] + b[i][k]) - mean, 2);
                CHECK_NEAR(variance[k], na > 1 ? square / (double)(na - 1) : 0, 1e-10, 1e-9);
            }
        } else {
            CHECK_I64(moe_ep_window_variance(&ra, variance, NULL), MOE_EP_ERR_UNSUPPORTED);
        }
        free(wa.sum);
        free(wb.sum);
        free(ra.sum);
        free(rb.sum);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(window_errors)
{
    moe_ep_window w, other;
    moe_ep_error err;
    int64_t loads[2] = {1, -1}, mem[64], out[2];
    size_t bytes = moe_ep_window_bytes(1, 2, 0);
    double variance[2];
    CHECK_I64(moe_ep_window_bytes(0, 2, 0), 0);
    CHECK_I64(moe_ep_window_bytes(1, 2, -1), 0);
    CHECK_I64(moe_ep_window_bytes(1, 0, 0), 0);
    CHECK_I64(moe_ep_window_bytes(1, 0, 4), 0);
    CHECK_I64(moe_ep_window_bytes(2, -1, 4), 0);
    CHECK_I64(moe_ep_window_bytes(INT32_MAX, INT32_MAX, INT32_MAX), 0);
    CHECK(bytes > 0 && bytes <= sizeof mem);
    CHECK_I64(moe_ep_window_init(NULL, "", 1, 2, 0, 0, mem, bytes, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_init(&w, "", 0, 2, 0, 0, mem, bytes, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "L");
    CHECK_I64(moe_ep_window_init(&w, "", 1, 0, 0, 0, mem, bytes, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "E");
    CHECK_I64(moe_ep_window_init(&w, "", -4, 2, 3, 0, mem, bytes, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, -4.0, 0, 0);
    CHECK_I64(moe_ep_window_init(&w, "", 1, -5, 3, 0, mem, bytes, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, -5.0, 0, 0);
    CHECK_I64(moe_ep_window_init(&w, "", 1, 1, -6, 0, mem, bytes, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, -6.0, 0, 0);
    CHECK_I64(moe_ep_window_init(&w, "", 1, 2, 0, 1.5, mem, bytes, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_window_init(&w, "", 1, 2, 0, NAN, mem, bytes, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_window_init(&w, "", 1, 2, 0, 0, NULL, bytes, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_init(&w, "", 1, 2, 0, 0, mem, bytes - 1, &err), MOE_EP_ERR_SCRATCH);
    CHECK_NEAR(err.value, (double)bytes, 0, 0);
    CHECK_I64(moe_ep_window_init(&w, "", 1, 2, 0, 0, (char *)mem + 4, bytes, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_window_init(&w, "", 1, 2, 0, 0, mem, bytes, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w, loads, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
    CHECK_I64(w.steps, 0);
    loads[1] = INT64_MAX;
    CHECK_I64(moe_ep_window_add(&w, loads, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w, loads, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(w.sum[0], 1);
    CHECK_I64(moe_ep_window_add(NULL, loads, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_add(&w, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_recent(&w, 1, out, &err), MOE_EP_ERR_RANGE); /* no ring */
    CHECK_I64(moe_ep_window_recent(&w, -1, out, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_window_recent(&w, 0, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_variance(&w, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_merge_ranks(&w, NULL, &err), MOE_EP_ERR_NULL);
    memset(&other, 0, sizeof other);
    CHECK_I64(moe_ep_window_add(&other, loads, &err), MOE_EP_ERR_SIZE); /* zeroed: not initialised */
    CHECK_I64(moe_ep_window_variance(&other, variance, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_window_clear(&other, &err), MOE_EP_ERR_SIZE);
    other = new_window("", 1, 2, 3, 0);
    CHECK_I64(moe_ep_window_append(&w, &other, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "src.ring_steps");
    free(other.sum);
    other = new_window("", 1, 2, 0, 0.25);
    CHECK_I64(moe_ep_window_merge_ranks(&w, &other, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "src.ema_keep");
    free(other.sum);
    other = new_window("", 1, 2, 0, 0);
    CHECK_I64(moe_ep_window_merge_ranks(&w, &other, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "src.steps");
    free(other.sum);
}

/* ---- 2^31 assignments and more ---- */

/* Rows of 512 choices that overlap: 2^22 + 3 tokens are 2^31 + 1536 assignments over a few million ids. */
TEST(layer_loads_of_overlapping_rows)
{
    enum { K = 512, E = 8 };
    const int64_t T = ((int64_t)1 << (t_slow() > 1 ? 17 : 22)) + 3, n = T + K - 1; /* more than 2^31 ids, or a part */
    int32_t *ids = (int32_t *)t_alloc(sizeof *ids * (size_t)n);
    int64_t loads[E], want[E] = {0}, skipped = -1, none = 0, i, uses;
    moe_ep_ids view = moe_ep_ids_tlk(ids, T, 1, K, E);
    uint64_t s = t_seed;
    moe_ep_error err;
    for (i = 0; i < n; i++) {
        ids[i] = (int32_t)t_below(&s, E + 1) - 1;
        uses = i < K ? i + 1 : K; /* rows that reach this id */
        if (n - i < uses) uses = n - i;
        if (ids[i] < 0) none += uses;
        else want[ids[i]] += uses;
    }
    view.token_stride = 1;
    CHECK_I64(moe_ep_layer_loads(&view, loads, &skipped, NULL), MOE_EP_OK);
    check_i64s(loads, want, E);
    CHECK_I64(skipped, none);
    ids[n - 1] = E;
    CHECK_I64(moe_ep_layer_loads(&view, loads, &skipped, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, n - 1);
    free(ids);
}

/* One expert takes more than 2^32 over many calls: the sums are 64 bits wide. */
TEST(loads_beyond_32_bits)
{
    enum { N = 1 << 20 };
    int32_t *ids = (int32_t *)t_alloc(sizeof *ids * N);
    int64_t loads[3] = {0, 0, 0}, skipped = 0, i;
    const int64_t before = ((int64_t)1 << 32) - N;
    for (i = 0; i < N; i++) ids[i] = i % 16 ? 1 : -1;
    loads[1] = before;
    skipped = before;
    for (i = 0; i < 20; i++) CHECK_I64(moe_ep_expert_loads_add(ids, N, 3, loads, &skipped, NULL), MOE_EP_OK);
    CHECK_I64(loads[1], before + 20 * (int64_t)(N - N / 16));
    CHECK_I64(skipped, before + 20 * (int64_t)(N / 16));
    free(ids);
}

/* Bad sizes and missing pointers one by one, each with its own status; outputs stay as they were. */
TEST(every_other_bad_argument)
{
    int32_t ids[4] = {0, 1, 1, -1}, rank[2] = {1, 0}, outside[2] = {-1, 0}, active[2] = {-9, -9};
    int64_t loads[4] = {-9, -9, -9, -9}, good[2] = {10, 2}, huge[2] = {INT64_MAX, 1}, bad[4] = {1, -1, 0, 0}, sk = -9;
    double share[4] = {-9.0, -9.0, -9.0, -9.0};
    moe_ep_ids v = moe_ep_ids_tlk(ids, 2, 1, 2, 2);
    moe_ep_error err;
    CHECK_I64(moe_ep_expert_loads(ids, -1, 2, loads, &sk, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_loads_add(ids, 4, 0, loads, &sk, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_loads_add(ids, -1, 2, loads, &sk, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_loads_add(NULL, 4, 2, loads, &sk, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_expert_loads_add(ids, 4, 2, NULL, &sk, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_expert_loads_add(NULL, 0, 2, good, NULL, &err), MOE_EP_OK); /* no ids, nothing to read */
    CHECK(good[0] == 10 && good[1] == 2);
    v.layer_stride = -1;
    v.token_stride = 0;
    CHECK_I64(moe_ep_layer_loads(&v, loads, &sk, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "view.layer_stride");
    CHECK_NEAR(err.value, -1.0, 0, 0);
    v.layer_stride = 0;
    v.ids = NULL;
    CHECK_I64(moe_ep_layer_loads(&v, loads, &sk, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_of_token(-1, 4, 2, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_rank_of_token(1, 4, 0, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_rank_loads(ids, 2, 2, 0, NULL, 2, loads, &sk, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_rank_loads(ids, -1, 2, 2, NULL, 2, loads, &sk, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_rank_loads(ids, 2, 2, 2, NULL, 2, NULL, &sk, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_loads(ids, 2, 2, 2, outside, 2, loads, &sk, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(moe_ep_loads_by_device(huge, 2, NULL, 1, loads, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_loads_by_device(good, 2, NULL, 0, loads, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_active_by_device(good, 2, NULL, 0, active, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(moe_ep_expected_distinct(1, 0, 4, &err), MOE_EP_ERR_SIZE, 0, 0);
    CHECK_NEAR(moe_ep_expected_distinct(1, 1, 0, &err), MOE_EP_ERR_SIZE, 0, 0);
    CHECK_NEAR(moe_ep_expected_groups(5, 4, 2, &err), MOE_EP_ERR_TOP_K, 0, 0);
    CHECK_NEAR(moe_ep_expected_groups(2, 4, 0, &err), MOE_EP_ERR_SIZE, 0, 0);
    CHECK_I64(moe_ep_transitions(ids, ids, 2, 2, 0, loads, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_transitions(ids, ids, 2, 2, 1, loads, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_STR(err.arg, "ids_from");
    CHECK_I64(moe_ep_transitions(ids, ids, 2, 2, 2, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_transition_shares(bad, 0, share, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_transition_shares(bad + 2, 1, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_lift(bad, good, 4, 0, share, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_lift(bad, good, 4, 2, share, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_STR(err.arg, "co");
    CHECK_I64(moe_ep_lift(good, bad, 4, 1, NULL, &err), MOE_EP_ERR_NULL);
    CHECK(loads[0] == -9 && loads[3] == -9 && sk == -9 && active[0] == -9 && share[0] < -8.0);
    CHECK_I64(moe_ep_rank_loads(ids, 2, 2, 2, rank, 2, loads, NULL, &err), MOE_EP_OK); /* skipped may be NULL */
    CHECK(loads[0] == 0 && loads[1] == 1 && loads[2] == 1 && loads[3] == 1);
    CHECK_I64(moe_ep_active_by_device(good, 2, rank, 2, active, &err), MOE_EP_OK);
    CHECK(active[0] == 1 && active[1] == 1);
    v.ids = ids;
    CHECK_I64(moe_ep_layer_loads(&v, loads, NULL, &err), MOE_EP_OK);
    CHECK(loads[0] == 1 && loads[1] == 2);
}

TEST(windows_of_other_shapes)
{
    moe_ep_window w = new_window("", 2, 2, 0, 0), x = new_window("", 1, 2, 0, 0), y = new_window("", 2, 1, 0, 0);
    moe_ep_error err;
    int64_t mem[64];
    moe_ep_window n;
    CHECK_I64(moe_ep_window_merge_ranks(&w, &x, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "src.num_layers");
    CHECK_I64(moe_ep_window_merge_ranks(&w, &y, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "src.num_experts");
    CHECK_I64(moe_ep_window_append(NULL, &x, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_init(&n, "", 1, 2, -1, 0, mem, sizeof mem, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "ring_steps");
    CHECK_I64(moe_ep_window_init(&n, "", 1, 2, 0, -0.5, mem, sizeof mem, &err), MOE_EP_ERR_RANGE);
    free(w.sum);
    w = new_window("", 1, 2, 0, 0);
    w.steps = INT64_MAX;
    x.steps = 1;
    CHECK_I64(moe_ep_window_append(&w, &x, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "src.steps");
    CHECK_I64(w.sum[0], 0);
    w.m2 = NULL;
    CHECK_I64(moe_ep_window_clear(&w, &err), MOE_EP_ERR_NULL);
    free(w.sum);
    free(x.sum);
    free(y.sum);
}

/* Sizes whose products do not fit, arrays that may be NULL because nothing is in them, windows with a pointer lost. */
TEST(sizes_at_the_ends)
{
    static const int64_t far = INT64_MAX / 3;
    const int32_t some[4] = {0, -1, -1, 1}, next[4] = {1, 1, -1, 0};
    int64_t loads[4] = {-9, -9, -9, -9}, counts[4], skipped = 5;
    double share[4];
    moe_ep_error err;
    moe_ep_ids v;
    int i;
    v = moe_ep_ids_ltk(some, 0, 1, 2, 2);
    CHECK_I64(v.layer_stride, 0);
    CHECK_I64(moe_ep_ids_ltk(some, 2, 1, 0, 2).layer_stride, 0);
    CHECK_I64(moe_ep_ids_ltk(some, INT64_MAX, 1, 2, 2).layer_stride, 0);
    CHECK_I64(moe_ep_ids_ltk(some, 1, 3, 2, 2).layer_stride, 2);
    CHECK_I64(moe_ep_ids_ltk(some, 4, 3, 1, 2).layer_stride, 4);
    CHECK_I64(moe_ep_ids_ltk(some, 4, 3, 2, 2).token_stride, 2);
    for (i = 0; i < 5; i++) {
        v = moe_ep_ids_tlk(some, 2, 2, 2, 2);
        if (i == 0) v.num_tokens = far, v.token_stride = 4;              /* T * stride */
        if (i == 1) v.layer_stride = INT64_MAX;                          /* L * stride */
        if (i == 2) v.token_stride = far;                                /* fits, but its sum with others may not */
        if (i == 3) v.layer_stride = far;
        if (i == 4) v.num_tokens = INT64_MAX / 5, v.token_stride = 1, v.num_layers = v.top_k = 3; /* T * L * K */
        CHECK_I64(moe_ep_layer_loads(&v, loads, &skipped, &err), MOE_EP_ERR_OVERFLOW);
        CHECK_STR(err.arg, "view");
    }
    CHECK_I64(moe_ep_coactivation(some, 2, 2, INT32_MAX, loads, &skipped, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_transitions(some, next, 2, 0, 2, loads, &err), MOE_EP_ERR_SIZE);
    CHECK(loads[0] == -9 && loads[3] == -9 && skipped == 5);
    CHECK_I64(moe_ep_window_bytes(INT32_MAX, INT32_MAX, 0), 0);
    v = moe_ep_ids_tlk(NULL, 0, 1, 2, 2);
    CHECK_I64(moe_ep_layer_loads(&v, loads, NULL, &err), MOE_EP_OK);
    CHECK(loads[0] == 0 && loads[1] == 0 && loads[2] == -9);
    CHECK_I64(moe_ep_rank_loads(NULL, 0, 2, 2, NULL, 2, loads, NULL, &err), MOE_EP_OK);
    CHECK(loads[0] == 0 && loads[3] == 0);
    CHECK_I64(moe_ep_expert_loads_add(some, 4, 1, loads, &skipped, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_expert_loads_add(some, 4, 2, loads, NULL, &err), MOE_EP_OK);
    CHECK(loads[0] == 1 && loads[1] == 1 && skipped == 5);
    CHECK_I64(moe_ep_transitions(some, next, 2, 2, 2, counts, &err), MOE_EP_OK); /* -1 leads nowhere */
    CHECK(counts[0] == 0 && counts[1] == 2 && counts[2] == 1 && counts[3] == 0);
    counts[2] = 0;
    CHECK_I64(moe_ep_transition_shares(counts, 2, share, &err), MOE_EP_OK);
    CHECK_NEAR(share[1], 1.0, 0, 0);
    CHECK_NEAR(share[2] + share[3], 0.0, 0, 0); /* a row without counts */
}

TEST(windows_with_something_lost)
{
    moe_ep_window w = new_window("", 1, 2, 2, 0), x;
    const int64_t step[2] = {3, 1};
    moe_ep_error err;
    int i;
    for (i = 0; i < 9; i++) {
        const int size = i < 4;
        x = w;
        if (i == 0) x.num_layers = 0;
        if (i == 1) x.num_experts = 0;
        if (i == 2) x.ring_steps = -1;
        if (i == 3) x.steps = -1;
        if (i == 4) x.sum = NULL;
        if (i == 5) x.ema = NULL;
        if (i == 6) x.mean = NULL;
        if (i == 7) x.m2 = NULL;
        if (i == 8) x.ring = NULL;
        CHECK_I64(moe_ep_window_add(&x, step, &err), size ? MOE_EP_ERR_SIZE : MOE_EP_ERR_NULL);
    }
    CHECK_I64(w.sum[0], 0);
    x = w;
    x.ring_steps = 1; /* even the ring of one step */
    x.ring = NULL;
    CHECK_I64(moe_ep_window_add(&x, step, &err), MOE_EP_ERR_NULL);
    x = new_window("", 1, 2, 2, 0);
    CHECK_I64(moe_ep_window_add(&w, step, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&x, step, NULL), MOE_EP_OK);
    x.has_variance = 0; /* as after a merge of ranks whose steps were not kept */
    CHECK_I64(moe_ep_window_append(&w, &x, &err), MOE_EP_OK);
    CHECK_I64(w.has_variance, 0);
    CHECK_I64(w.steps, 2);
    CHECK_I64(moe_ep_window_append(&w, &x, &err), MOE_EP_OK); /* and it stays lost */
    CHECK_I64(w.has_variance, 0);
    CHECK_I64(w.sum[0], 9);
    free(w.sum);
    free(x.sum);
}

enum { PROP_CASES = 100000 };

/* What holds whatever the ids are: nothing lost, no order of ids, experts, ranks or layers matters. */
TEST(properties_of_many_loads)
{
    uint64_t s = t_seed + 31;
    int round, none = 0, alone = 0, all = 0, first = 0, unrouted = 0, same = 0;
    for (round = 0; round < PROP_CASES; round++) {
        const int kind = (int)t_below(&s, 8);
        const int32_t E = kind == 0 ? 1 : 1 + (int32_t)t_below(&s, 24), D = 1 + (int32_t)t_below(&s, 4);
        const int32_t K = kind == 1 ? E : kind == 2 ? 1 : 1 + (int32_t)t_below(&s, E < 6 ? E : 6);
        const int64_t T = kind == 3 ? 0 : t_below(&s, 12), n = T * K;
        int32_t ids[12 * 24], renamed[12 * 24], to = 1 + (int32_t)t_below(&s, E), i;
        int64_t loads[24], other[24], ranks[4 * 24], layers[24], devices[4], skipped = -1, more = -1, sum = 0, e;
        moe_ep_ids v;
        for (i = 0; i < n; i++) {
            ids[i] = kind == 4 ? -1 : kind == 5 ? E - 1 : (int32_t)t_below(&s, E + 1) - 1;
            renamed[n - 1 - i] = ids[i] < 0 ? -1 : (ids[i] + to) % E; /* the other way round, experts turned */
        }
        CHECK_I64(moe_ep_expert_loads(ids, n, E, loads, &skipped, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++) sum += loads[e];
        CHECK_I64(sum + skipped, n);
        if (kind == 4) CHECK_I64(skipped, n);
        if (kind == 5) CHECK_I64(loads[E - 1], n);
        CHECK_I64(moe_ep_expert_loads(renamed, n, E, other, &more, NULL), MOE_EP_OK);
        CHECK_I64(more, skipped);
        for (e = 0; e < E; e++) CHECK(other[(e + to) % E] == loads[e]);
        CHECK_I64(moe_ep_rank_loads(ids, T, K, E, NULL, D, ranks, &more, NULL), MOE_EP_OK);
        CHECK_I64(more, skipped);
        memset(other, 0, sizeof other);
        for (e = 0; e < D * E; e++) other[e % E] += ranks[e];
        CHECK(memcmp(other, loads, sizeof *loads * (size_t)E) == 0); /* the ranks share them out */
        v = moe_ep_ids_tlk(ids, T, K, 1, E); /* each choice as a layer of its own */
        if (K == 1 || E * K <= 24) {
            CHECK_I64(moe_ep_layer_loads(&v, layers, &more, NULL), MOE_EP_OK);
            CHECK_I64(more, skipped);
            memset(other, 0, sizeof other);
            for (e = 0; e < K * E; e++) other[e % E] += layers[e];
            CHECK(memcmp(other, loads, sizeof *loads * (size_t)E) == 0);
        }
        CHECK_I64(moe_ep_loads_by_device(loads, E, NULL, D, devices, NULL), MOE_EP_OK);
        for (e = 0; e < D; e++) sum -= devices[e];
        CHECK_I64(sum, 0);
        none += T == 0, alone += E == 1, all += K == E && E > 1, first += K == 1;
        unrouted += kind == 4 && n > 0, same += kind == 5 && n > 0;
        STOP_IF_FAILED("case %d", round);
    }
    CHECK_I64(round, 100000);
    CHECK(none > 10000 && alone > 10000 && all > 10000 && first > 10000 && unrouted > 10000 && same > 10000);
}

/* Blocks, chunks and rests of the histogram, and a bad id in each of them; few enough for an emulator. */
TEST(histogram_pieces)
{
    enum { N = 5000, E = 70 };
    static int32_t ids[N];
    int64_t loads[E], want[E], skipped, n, i;
    uint64_t s = t_seed + 91;
    moe_ep_error err;
    for (i = 0; i < N; i++) ids[i] = (int32_t)t_below(&s, E + 1) - 1;
    for (n = 560; n <= N; n += 331) {
        const int64_t none = naive_loads(ids, n, E, want), at = t_below(&s, n);
        const int32_t kept = ids[at];
        CHECK_I64(moe_ep_expert_loads(ids, n, E, loads, &skipped, NULL), MOE_EP_OK);
        CHECK_I64(skipped, none);
        check_i64s(loads, want, E);
        ids[at] = n % 2 ? E : -2;
        CHECK_I64(moe_ep_expert_loads(ids, n, E, loads, &skipped, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, at);
        ids[at] = kept;
    }
    ids[0] = E; /* the first block of a long list, and the rest of a short one */
    CHECK_I64(moe_ep_expert_loads(ids, N, E, loads, &skipped, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 0);
    ids[0] = 0;
    ids[561] = ids[562] = E;
    CHECK_I64(moe_ep_expert_loads(ids, 564, E, loads, &skipped, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 561);
}

TEST(lift_and_recent_with_bad_arguments)
{
    const int64_t co[4] = {0, 1, 1, 0}, bad[2] = {1, -1};
    double lift[4] = {-9.0, -9.0, -9.0, -9.0}, other[4];
    int64_t loads[2] = {-9, -9};
    moe_ep_window w;
    moe_ep_error err;
    memset(&w, 0, sizeof w);
    CHECK_I64(moe_ep_lift(co, bad, 4, 2, lift, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_STR(err.arg, "loads");
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_lift(co, NULL, 4, 2, lift, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_lift(co, co + 1, 0, 2, other, &err), MOE_EP_OK); /* no tokens, no lift */
    CHECK_NEAR(other[0] + other[1] + other[2] + other[3], 0.0, 0.0, 0.0);
    CHECK_I64(moe_ep_expert_loads(NULL, 1, 2, loads, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_expert_loads_add(NULL, 1, 2, loads, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_window_recent(NULL, 0, loads, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "w");
    CHECK_I64(moe_ep_window_recent(&w, 0, loads, &err), MOE_EP_ERR_SIZE);
    CHECK(lift[0] < -8.0 && lift[3] < -8.0 && loads[0] == -9 && loads[1] == -9);
}

/* Transitions with gaps, by definition; and a window that took steps in two parts against one that took them all. */
TEST(transitions_with_gaps)
{
    enum { E = 5, K = 3, T = 9 };
    uint64_t s = t_seed + 92;
    int round;
    for (round = 0; round < 300; round++) {
        int32_t from[T * K], to[T * K], t, i, j;
        int64_t got[E * E], want[E * E], co[E * E], pairs[E * E], skipped = -1, none = 0;
        memset(want, 0, sizeof want);
        memset(pairs, 0, sizeof pairs);
        for (i = 0; i < T * K; i++) {
            from[i] = (int32_t)t_below(&s, E + 2) - 2;
            to[i] = (int32_t)t_below(&s, E + 2) - 2;
            if (from[i] < 0) from[i] = -1;
            if (to[i] < 0) to[i] = -1;
            none += from[i] < 0;
        }
        for (t = 0; t < T; t++)
            for (i = 0; i < K; i++)
                for (j = 0; j < K; j++)
                    if (from[t * K + i] >= 0 && to[t * K + j] >= 0) want[from[t * K + i] * E + to[t * K + j]]++;
        for (t = 0; t < T; t++)
            for (i = 0; i < E; i++)
                for (j = 0; j < E; j++) {
                    int32_t a = 0, b = 0, k;
                    for (k = 0; k < K; k++) {
                        a |= from[t * K + k] == i;
                        b |= from[t * K + k] == j;
                    }
                    pairs[i * E + j] += i != j && a && b;
                }
        CHECK_I64(moe_ep_transitions(from, to, T, K, E, got, NULL), MOE_EP_OK);
        check_i64s(got, want, E * E);
        CHECK_I64(moe_ep_coactivation(from, T, K, E, co, &skipped, NULL), MOE_EP_OK);
        check_i64s(co, pairs, E * E);
        CHECK_I64(skipped, none);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(windows_in_two_parts)
{
    uint64_t s = t_seed + 93;
    int round;
    for (round = 0; round < 400; round++) {
        const int32_t ring = (int32_t)t_below(&s, 6);
        const double keep = t_below(&s, 4) ? t_unit(&s) : (double)t_below(&s, 2);
        const int first = (int)t_below(&s, 7), second = (int)t_below(&s, 7);
        moe_ep_window all = new_window("", 2, 3, ring, keep), a = new_window("", 2, 3, ring, keep),
                      b = new_window("", 2, 3, ring, keep);
        double va[6], vb[6], old[6], weight = 1.0;
        int i, n, back;
        for (n = 0; n < first + second; n++) {
            int64_t loads[6];
            for (i = 0; i < 6; i++) loads[i] = t_below(&s, 100);
            CHECK_I64(moe_ep_window_add(&all, loads, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_window_add(n < first ? &a : &b, loads, NULL), MOE_EP_OK);
        }
        for (n = 0; n < second; n++) weight *= keep; /* what the later steps leave of the old average */
        memcpy(old, a.ema, sizeof old);
        CHECK_I64(moe_ep_window_append(&a, &b, NULL), MOE_EP_OK);
        CHECK_I64(a.steps, all.steps);
        check_i64s(a.sum, all.sum, 6);
        CHECK_I64(moe_ep_window_variance(&a, va, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_window_variance(&all, vb, NULL), MOE_EP_OK);
        for (i = 0; i < 6; i++) {
            CHECK_NEAR(a.mean[i], all.mean[i], 1e-12, 1e-12);
            CHECK_NEAR(va[i], vb[i], 1e-10, 1e-10);
            CHECK_NEAR(a.ema[i], first == 0 ? b.ema[i] : weight * old[i] + (1.0 - weight) * b.ema[i], 1e-12, 1e-12);
        }
        for (back = 0; back < 6; back++) { /* what is still kept of the later part, and of the earlier behind it */
            const int64_t *x = moe_ep_window_step(&a, back), *y = moe_ep_window_step(&all, back);
            CHECK((x == NULL) == (y == NULL));
            if (x && y) check_i64s(x, y, 6);
        }
        free(all.sum);
        free(a.sum);
        free(b.sum);
        STOP_IF_FAILED("round %d", round);
    }
}

/* ---- the last value that still goes ---- */

TEST(sums_that_just_fit)
{
    const int32_t three[3] = {0, 0, -1};
    const int64_t steps[2] = {INT64_MAX - 7, 3};
    int64_t full[2] = {INT64_MAX - 3, 5}, out[2], spread[3] = {INT64_MAX - 4, 4, 0}, sk = 0;
    moe_ep_window w = new_window("", 1, 2, 0, 1.0), x = new_window("", 1, 2, 0, 1.0);
    moe_ep_error err;
    CHECK_I64(moe_ep_expert_loads_add(three, 3, 2, full, &sk, &err), MOE_EP_OK);
    CHECK(full[0] == INT64_MAX - 1 && full[1] == 5 && sk == 1);
    CHECK_I64(moe_ep_expert_loads_add(three, 2, 2, full, &sk, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_loads_by_device(spread, 3, NULL, 1, out, &err), MOE_EP_OK);
    CHECK_I64(out[0], INT64_MAX);
    spread[2] = 1;
    CHECK_I64(moe_ep_loads_by_device(spread, 3, NULL, 1, out, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_window_add(&w, steps, &err), MOE_EP_OK);
    x.sum[0] = 7; /* exactly the room that is left */
    CHECK_I64(moe_ep_window_append(&w, &x, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w, x.sum, &err), MOE_EP_OK);
    CHECK_I64(w.sum[0], INT64_MAX);
    CHECK_NEAR(w.ema[0], (double)steps[0], 0, 0); /* keep 1: the first step stays */
    x.sum[0] = 1;
    CHECK_I64(moe_ep_window_append(&w, &x, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "src");
    x.sum[0] = 0;
    w.steps = INT64_MAX - 1;
    x.steps = 1;
    CHECK_I64(moe_ep_window_append(&w, &x, &err), MOE_EP_OK);
    CHECK_I64(w.steps, INT64_MAX);
    free(w.sum);
    free(x.sum);
}

/* One token, or one layer, whose stride is the largest that may be named. */
TEST(strides_that_just_fit)
{
    const int32_t ids[2] = {1, 0};
    int64_t loads[2];
    moe_ep_error err;
    int which, more;
    for (which = 0; which < 2; which++)
        for (more = 0; more < 2; more++) {
            moe_ep_ids v = moe_ep_ids_tlk(ids, 1, 1, 2, 2);
            if (which) v.token_stride = INT64_MAX / 4 + more;
            else v.layer_stride = INT64_MAX / 4 + more;
            loads[0] = loads[1] = -9;
            CHECK_I64(moe_ep_layer_loads(&v, loads, NULL, &err), more ? MOE_EP_ERR_OVERFLOW : MOE_EP_OK);
            CHECK(loads[0] == (more ? -9 : 1) && loads[1] == (more ? -9 : 1));
        }
}

/* One token without a pointer is refused everywhere, no token never is; one expert is enough. */
TEST(one_token_or_none_of_one_expert)
{
    const int32_t id[1] = {0};
    int64_t out[1] = {-9}, sk = -9;
    moe_ep_ids v = moe_ep_ids_tlk(NULL, 1, 1, 1, 1);
    moe_ep_error err;
    CHECK_I64(moe_ep_layer_loads(&v, out, &sk, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_loads(NULL, 1, 1, 1, NULL, 1, out, &sk, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_coactivation(NULL, 1, 1, 1, out, &sk, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_transitions(NULL, id, 1, 1, 1, out, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "ids_from");
    CHECK_I64(moe_ep_transitions(id, NULL, 1, 1, 1, out, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "ids_to");
    CHECK(out[0] == -9 && sk == -9);
    CHECK_I64(moe_ep_expert_loads(NULL, 0, 1, out, &sk, &err), MOE_EP_OK);
    CHECK(out[0] == 0 && sk == 0);
    out[0] = sk = -9;
    CHECK_I64(moe_ep_coactivation(NULL, 0, 1, 1, out, &sk, &err), MOE_EP_OK);
    CHECK(out[0] == 0 && sk == 0);
    out[0] = -9;
    CHECK_I64(moe_ep_transitions(NULL, NULL, 0, 1, 1, out, &err), MOE_EP_OK);
    CHECK_I64(out[0], 0);
    out[0] = 4;
    CHECK_I64(moe_ep_expert_loads_add(NULL, 0, 1, out, &sk, &err), MOE_EP_OK);
    CHECK(out[0] == 4 && sk == 0);
    CHECK_I64(moe_ep_transitions(id, id, 1, 1, 1, out, &err), MOE_EP_OK);
    CHECK_I64(out[0], 1);
    CHECK_I64(moe_ep_active_experts(out, 1, &err), 1);
    CHECK_NEAR(moe_ep_expected_distinct(1, 1, 1, &err), 1.0, 0, 0);
    CHECK_NEAR(moe_ep_expected_groups(1, 1, 1, &err), 1.0, 0, 0);
}

/* What stands behind an array is not looked at, and what stands behind a result stays. */
TEST(neighbours_of_the_arrays)
{
    const int32_t ids[5] = {0, 1, 1, -1, 7}, to[5] = {1, 0, 0, 1, 7}, rank[3] = {0, 1, 9}, device[3] = {1, 0, 9};
    const int64_t counts[3] = {3, 5, -1}, co[5] = {0, 2, 2, 0, -1};
    int64_t out[5], sk = 0;
    int32_t active[3];
    double x[5];
    moe_ep_window w = new_window("", 1, 2, 0, 0.5);
    moe_ep_ids v = moe_ep_ids_tlk(ids, 2, 1, 2, 2);
    int round;
    for (round = 0; round < 12; round++) {
        moe_ep_status s = MOE_EP_OK;
        int cells = round == 4 || round == 5 || round == 11 ? 4 : 2, i;
        for (i = 0; i < 5; i++) {
            out[i] = i < 2 ? 1 : -77;
            x[i] = -77.0;
            if (i < 3) active[i] = -77;
        }
        if (round == 0) s = moe_ep_expert_loads(ids, 4, 2, out, &sk, NULL);
        if (round == 1) s = moe_ep_expert_loads_add(ids, 4, 2, out, &sk, NULL);
        if (round == 2) s = moe_ep_layer_loads(&v, out, &sk, NULL);
        if (round == 3) s = moe_ep_loads_by_device(counts, 2, device, 2, out, NULL);
        if (round == 4) s = moe_ep_coactivation(ids, 2, 2, 2, out, &sk, NULL);
        if (round == 5) s = moe_ep_transitions(ids, to, 2, 2, 2, out, NULL);
        if (round == 6) s = moe_ep_active_by_device(counts, 2, device, 2, active, NULL);
        if (round == 7) s = moe_ep_transition_shares(co, 2, x, NULL);
        if (round == 8) s = moe_ep_lift(co, counts, 8, 2, x, NULL);
        if (round == 9) s = moe_ep_window_add(&w, counts, NULL);
        if (round == 10) s = moe_ep_window_variance(&w, x, NULL);
        if (round == 11) s = moe_ep_rank_loads(ids, 2, 2, 2, rank, 2, out, &sk, NULL);
        CHECK_I64(s, MOE_EP_OK);
        for (i = cells; i < 5; i++) CHECK_I64(out[i], i < 2 ? 1 : -77);
        CHECK(x[4] < -76.0 && x[4] > -78.0 && active[2] == -77);
        STOP_IF_FAILED("call %d", round);
    }
    CHECK_I64(moe_ep_active_experts(counts, 2, NULL), 2);
    {
        const int32_t beyond[2] = {0, 2}; /* the number of devices is not one of them */
        moe_ep_error err;
        CHECK_I64(moe_ep_loads_by_device(counts, 2, beyond, 2, out, &err), MOE_EP_ERR_DEVICE_ID);
        CHECK_I64(err.index, 1);
        CHECK_I64(moe_ep_active_by_device(counts, 2, beyond, 2, active, &err), MOE_EP_ERR_DEVICE_ID);
        CHECK_I64(moe_ep_rank_loads(ids, 2, 2, 2, beyond, 2, out, &sk, &err), MOE_EP_ERR_DEVICE_ID);
        CHECK_STR(err.arg, "source_rank");
    }
    free(w.sum);
}

/* Far behind the first piece that is counted at once: every id, and which one is bad. */
TEST(bad_ids_of_later_pieces)
{
    enum { N = 450000, E = 5 };
    static int32_t ids[N];
    static const int64_t where[] = {196607, 196608, 196609, 262144, 393215, 393216, N - 1};
    int64_t loads[E], want[E], skipped, i;
    moe_ep_error err;
    for (i = 0; i < N; i++) ids[i] = (int32_t)(i * 7 % 11 % (E + 1)) - 1;
    CHECK_I64(moe_ep_expert_loads(ids, N, E, loads, &skipped, &err), MOE_EP_OK);
    CHECK_I64(skipped, naive_loads(ids, N, E, want));
    check_i64s(loads, want, E);
    for (i = 0; i < 7; i++) {
        const int32_t kept = ids[where[i]];
        ids[where[i]] = i % 2 ? E : -2;
        CHECK_I64(moe_ep_expert_loads(ids, N, E, loads, &skipped, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, where[i]);
        ids[where[i]] = kept;
    }
    check_i64s(loads, want, E);
    for (i = 4095; i < 4099; i++) { /* as many experts as are counted on the stack, and one more */
        static int64_t many[4099], expected[4099];
        int64_t at, none;
        for (at = 0; at < N; at++) ids[at] = (int32_t)(at * 31 % (i + 1)) - 1;
        none = naive_loads(ids, N, (int32_t)i, expected);
        CHECK_I64(moe_ep_expert_loads(ids, N, (int32_t)i, many, &skipped, &err), MOE_EP_OK);
        CHECK_I64(skipped, none);
        check_i64s(many, expected, (int32_t)i);
    }
}

/* How many of G groups of E/G experts K distinct experts touch, over all choices there are. */
static double groups_counted(int K, int E, int G)
{
    double touched = 0.0, sets = 0.0;
    uint32_t set;
    int g, e;
    for (set = 0; set < 1u << E; set++) {
        int chosen = 0;
        for (e = 0; e < E; e++) chosen += (int)(set >> e & 1u);
        if (chosen != K) continue;
        sets += 1.0;
        for (g = 0; g < G; g++) touched += (set >> (g * (E / G)) & ((1u << (E / G)) - 1u)) != 0;
    }
    return touched / sets;
}

/* Chance that none of K of E experts is one of `size`, a whole number. */
static double chance_of_none(int K, int E, int size)
{
    double none = 1.0;
    int i;
    for (i = 0; i < K; i++) none *= fmax((double)(E - size - i) / (double)(E - i), 0.0);
    return none;
}

/* Groups that are whole: by counting.  Groups of size and a fraction: the binomial coefficients by the gamma function
 * when K is at most the size, else between the sizes below and above, by the powers of the two chances. */
TEST(expected_groups_counted)
{
    int E, K, G;
    for (E = 1; E <= 12; E++)
        for (K = 1; K <= E; K++)
            for (G = 1; G <= E; G++) {
                const double got = moe_ep_expected_groups(K, E, G, NULL), size = (double)E / G;
                const int whole = E / G;
                if (E % G == 0) {
                    CHECK_NEAR(got, groups_counted(K, E, G), 1e-12, 0);
                } else if (K + size > E) {
                    CHECK_NEAR(got, G, 0, 0);
                } else if (K <= size) {
                    CHECK_NEAR(got, G * (1.0 - exp(lgamma(E - size + 1) - lgamma(E - size - K + 1) - lgamma(E + 1) +
                                                   lgamma(E - K + 1))), 1e-9, 0);
                } else {
                    CHECK_NEAR(got, G * (1.0 - pow(chance_of_none(K, E, whole), 1.0 - (size - whole)) *
                                         pow(chance_of_none(K, E, whole + 1), size - whole)), 1e-12, 0);
                }
                if (t_failed_here) printf("    K %d, E %d, G %d\n", K, E, G);
                STOP_IF_FAILED("E %d", E);
            }
    for (K = 1; K < 40; K += 6) /* tokens one after another: each leaves 1 - K/E of the rest untouched */
        for (G = 1; G < 60; G += 7) {
            double left = 1.0;
            for (E = 0; E < G; E++) left *= 1.0 - K / 40.0;
            CHECK_NEAR(moe_ep_expected_distinct(G, K, 40, NULL), 40.0 * (1.0 - left), 1e-12, 0);
        }
}

/* The five arrays of a window lie in its memory one behind the other, each with all its cells. */
TEST(arrays_of_a_window)
{
    uint64_t s = t_seed + 94;
    int round;
    for (round = 0; round < 60; round++) {
        const int32_t L = 1 + (int32_t)t_below(&s, 4), E = 1 + (int32_t)t_below(&s, 9), ring = (int32_t)t_below(&s, 4);
        const size_t cells = (size_t)L * (size_t)E, need = moe_ep_window_bytes(L, E, ring);
        const size_t each = (8 * cells + 63) / 64 * 64, kept = (8 * cells * (size_t)ring + 63) / 64 * 64;
        unsigned char *mem = (unsigned char *)t_alloc(need + 64);
        moe_ep_window w;
        size_t i;
        CHECK_I64(need, 4 * each + kept);
        memset(mem, 0x5a, need + 64);
        memset(&w, 0x5a, sizeof w);
        CHECK_I64(moe_ep_window_init(&w, "name", L, E, ring, 0.25, mem, need, NULL), MOE_EP_OK);
        CHECK((unsigned char *)w.sum == mem);
        CHECK(ring ? (unsigned char *)w.ring == mem + each : w.ring == NULL);
        CHECK((unsigned char *)w.ema == mem + each + kept);
        CHECK((unsigned char *)w.mean == mem + 2 * each + kept);
        CHECK((unsigned char *)w.m2 == mem + 3 * each + kept);
        CHECK(w.num_layers == L && w.num_experts == E && w.ring_steps == ring && w.steps == 0 && w.has_variance == 1);
        CHECK_STR(w.label, "name");
        CHECK_NEAR(w.ema_keep, 0.25, 0, 0);
        for (i = 0; i < cells; i++) {
            CHECK(w.sum[i] == 0 && !(fabs(w.ema[i]) + fabs(w.mean[i]) + fabs(w.m2[i]) > 0.0));
        }
        for (i = 0; i < cells * (size_t)ring; i++) CHECK_I64(w.ring[i], 0);
        for (i = need; i < need + 64; i++) CHECK_I64(mem[i], 0x5a);
        memset(mem, 0x33, need);
        w.has_variance = 0;
        CHECK_I64(moe_ep_window_clear(&w, NULL), MOE_EP_OK);
        for (i = 0; i < cells; i++) {
            CHECK(w.sum[i] == 0 && !(fabs(w.ema[i]) + fabs(w.mean[i]) + fabs(w.m2[i]) > 0.0));
        }
        for (i = 0; i < cells * (size_t)ring; i++) CHECK_I64(w.ring[i], 0);
        CHECK_I64(w.has_variance, 1);
        free(mem);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Nothing behind nothing is nothing. */
TEST(empty_windows_together)
{
    moe_ep_window w = new_window("", 1, 2, 2, 0.5), x = new_window("", 1, 2, 2, 0.5);
    const int64_t step[2] = {3, 1};
    double variance[2] = {-9.0, -9.0};
    CHECK_I64(moe_ep_window_append(&w, &x, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_merge_ranks(&w, &x, NULL), MOE_EP_OK);
    CHECK(w.steps == 0 && w.has_variance == 1 && w.mean[0] >= 0.0 && w.mean[0] <= 0.0 && w.m2[1] <= 0.0);
    CHECK_I64(moe_ep_window_variance(&w, variance, NULL), MOE_EP_OK);
    CHECK(variance[0] >= 0.0 && variance[0] <= 0.0);
    CHECK_I64(moe_ep_window_add(&w, step, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_append(&w, &x, NULL), MOE_EP_OK); /* and behind one step it changes nothing */
    CHECK(w.steps == 1 && w.sum[0] == 3 && w.ring[0] == 3 && w.ring[2] == 0);
    CHECK_NEAR(w.mean[0] + w.ema[1], 4.0, 0, 0);
    variance[1] = -9.0;
    CHECK_I64(moe_ep_window_variance(&w, variance, NULL), MOE_EP_OK);
    CHECK(variance[1] >= 0.0 && variance[1] <= 0.0);
    free(w.sum);
    free(x.sum);
}

TEST(success_clears_the_error)
{
    const int32_t ids[2] = {0, 1};
    const int64_t ones[4] = {1, 1, 1, 1};
    int64_t out[8], mem[64], mem2[64];
    int32_t active[2];
    double x[4];
    moe_ep_ids v = moe_ep_ids_tlk(ids, 1, 1, 2, 2);
    moe_ep_window w, b;
    moe_ep_error err;
    CLEARS(moe_ep_expert_loads(ids, 2, 2, out, NULL, &err));
    CLEARS(moe_ep_expert_loads_add(ids, 2, 2, out, NULL, &err));
    CLEARS(moe_ep_layer_loads(&v, out, NULL, &err));
    CLEARS(moe_ep_rank_of_token(0, 2, 2, &err));
    CLEARS(moe_ep_rank_loads(ids, 1, 2, 2, NULL, 2, out, NULL, &err));
    CLEARS(moe_ep_loads_by_device(ones, 2, NULL, 2, out, &err));
    CLEARS(moe_ep_active_experts(ones, 2, &err));
    CLEARS(moe_ep_active_by_device(ones, 2, NULL, 2, active, &err));
    CLEARS(moe_ep_expected_distinct(2, 1, 2, &err));
    CLEARS(moe_ep_expected_groups(1, 2, 2, &err));
    CLEARS(moe_ep_coactivation(ids, 1, 2, 2, out, NULL, &err));
    CLEARS(moe_ep_transitions(ids, ids, 1, 2, 2, out, &err));
    CLEARS(moe_ep_transition_shares(ones, 2, x, &err));
    CLEARS(moe_ep_lift(ones, ones, 1, 2, x, &err));
    CLEARS(moe_ep_window_init(&w, "", 1, 2, 2, 0.5, mem, sizeof mem, &err));
    CLEARS(moe_ep_window_init(&b, "", 1, 2, 2, 0.5, mem2, sizeof mem2, &err));
    CLEARS(moe_ep_window_add(&w, ones, &err));
    CLEARS(moe_ep_window_add(&b, ones, &err));
    CLEARS(moe_ep_window_recent(&w, 1, out, &err));
    CLEARS(moe_ep_window_variance(&w, x, &err));
    CLEARS(moe_ep_window_merge_ranks(&w, &b, &err));
    CLEARS(moe_ep_window_append(&w, &b, &err));
    CLEARS(moe_ep_window_clear(&w, &err));
}

#if CAN_REPEAT
TEST(expert_loads_of_more_than_2_to_the_31)
{
#if SIZE_MAX <= 0xffffffffu
    SKIP("needs more than 32 bits of addresses");
#else
    const int64_t n = ((int64_t)1 << 31) + ((int64_t)1 << 21), piece = (int64_t)1 << 21;
    const size_t bytes = (size_t)n * sizeof(int32_t), part = (size_t)piece * sizeof(int32_t);
    int fd = memfd_create("ids", 0);
    int32_t *ids = (int32_t *)repeated(bytes, part, fd);
    int64_t loads[64], some[64], skipped = -1, none = -1, i;
    uint64_t s = t_seed;
    moe_ep_error err;
    if (ids) {
        for (i = 0; i < piece; i++) ids[i] = (int32_t)t_below(&s, 65) - 1;
        CHECK_I64(moe_ep_expert_loads(ids, piece, 64, some, &none, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_expert_loads(ids, n, 64, loads, &skipped, NULL), MOE_EP_OK);
        for (i = 0; i < 64; i++) CHECK_I64(loads[i], some[i] * (n / piece));
        CHECK_I64(skipped, none * (n / piece));
        ids[7] = -2;
        CHECK_I64(moe_ep_expert_loads(ids + piece - 7, n - piece, 64, loads, NULL, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, 14);
        munmap(ids, bytes);
    }
    close(fd);
    if (!ids) SKIP("8 GiB of addresses cannot be mapped here");
#endif
}
#endif

/* ---- vectors ---- */

TEST(vectors_loads)
{
    int f, checked = 0;
    long before;
    const char *path;
    static const char *bundled[] = {"tests/vectors/metrics.vec", "tests/vectors/seed_and_literals.vec"};
    for (f = 0; f < 64; f++) {
        vec_file v;
        int c;
        path = vec_path(bundled[f < 2 ? f : 0], t_argv && t_argv[0] ? f : 0);
        if (!(t_argv && t_argv[0]) && f >= 2) break;
        if (!path) break;
        v = vec_read(path);
        for (c = 0; c < v.count; c++) {
            const vec_case *x = &v.cases[c];
            const int counted = checked;
            before = t_checks;
            if (strcmp(vec_text(x, "op"), "coactivation_transition") == 0) {
                int32_t E = (int32_t)vec_int(x, "E"), K = (int32_t)vec_int(x, "K");
                const vec_field *f0 = vec_get(x, "ids_layer0"), *f1 = vec_get(x, "ids_layer1");
                int32_t *a = vec_i32(f0), *b = vec_i32(f1);
                int64_t T = f0->count / K, *m = (int64_t *)t_alloc(sizeof *m * (size_t)E * (size_t)E);
                CHECK_I64(moe_ep_coactivation(a, T, K, E, m, NULL, NULL), MOE_EP_OK);
                check_i64s(m, vec_get(x, "coactivation")->i, (int64_t)E * E);
                CHECK_I64(moe_ep_transitions(a, b, T, K, E, m, NULL), MOE_EP_OK);
                check_i64s(m, vec_get(x, "transition")->i, (int64_t)E * E);
                free(a);
                free(b);
                free(m);
                checked++;
            } else if (vec_find(x, "ids") && vec_find(x, "loads") && vec_find(x, "E")) {
                const vec_field *ids = vec_get(x, "ids");
                int32_t *p = vec_i32(ids), E = (int32_t)vec_int(x, "E");
                int64_t *loads = (int64_t *)t_alloc(sizeof *loads * (size_t)E);
                CHECK_I64(moe_ep_expert_loads(p, ids->count, E, loads, NULL, NULL), MOE_EP_OK);
                check_i64s(loads, vec_get(x, "loads")->i, E);
                free(p);
                free(loads);
                checked++;
            } else if (strcmp(vec_text(x, "op"), "uniform_expected_imbalance") == 0) {
                CHECK_NEAR(moe_ep_expected_distinct(vec_int(x, "T"), (int32_t)vec_int(x, "K"),
                           (int32_t)vec_int(x, "E"), NULL),
                           vec_float(x, "distinct_exact"), 1e-12, 0);
                checked++;
            }
            CHECK(checked == counted || t_checks > before); /* a case that counts was compared */
            STOP_IF_FAILED("case %s", x->name);
        }
        vec_free(&v);
    }
    printf("    %d vector cases\n", checked);
    if (checked == 0) SKIP("no load cases in these vectors");
}

TEST(seed_worked_example)
{
    static const int32_t ids[] = {3, 7, 1, 12, 3, 9, 7, 15}, ep4[] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    static const int64_t want[] = {0, 1, 0, 2, 0, 0, 0, 2, 0, 1, 0, 0, 1, 0, 0, 1}, devices[] = {3, 2, 1, 2};
    int64_t loads[16], device[4];
    CHECK_I64(moe_ep_expert_loads(ids, LEN(ids), 16, loads, NULL, NULL), MOE_EP_OK);
    check_i64s(loads, want, 16);
    CHECK_I64(moe_ep_loads_by_device(loads, 16, ep4, 4, device, NULL), MOE_EP_OK);
    check_i64s(device, devices, 4);
}

/* Rows of tokens side by side in a layer, layers apart: the index counts from view.ids. */
TEST(bad_id_of_layers_that_lie_apart)
{
    const int32_t ids[16] = {0, 1, 0, 1, 9, 9, 9, 9, 0, 7, 0, 1};
    int64_t loads[4];
    moe_ep_ids v;
    moe_ep_error err;
    memset(&v, 0, sizeof v);
    v.ids = ids;
    v.num_tokens = 4;
    v.num_layers = 2;
    v.top_k = 1;
    v.num_experts = 2;
    v.token_stride = 1;
    v.layer_stride = 8;
    CHECK_I64(moe_ep_layer_loads(&v, loads, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 9);
    CHECK_NEAR(err.value, 7, 0, 0);
}

TEST(lift_of_loads_whose_product_is_above_2_to_the_63)
{
    const int64_t together[4] = {0, 1000000000, 1000000000, 0};
    const int64_t loads[2] = {INT64_C(4000000000), INT64_C(4000000000)};
    double lift[4];
    CHECK_I64(moe_ep_lift(together, loads, INT64_C(8000000000), 2, lift, NULL), MOE_EP_OK);
    CHECK_NEAR(lift[1], 0.5, 1e-12, 0); /* 1e9 * 8e9 / (4e9 * 4e9) */
    CHECK_NEAR(lift[2], 0.5, 1e-12, 0);
}

/* Steps merged rank by rank were not kept apart: what is appended later does not bring their variance back. */
TEST(append_does_not_bring_a_variance_back)
{
    const int64_t four = 4, none = 0;
    int64_t memory[3][512];
    moe_ep_window w[3];
    double variance;
    int i;
    for (i = 0; i < 3; i++)
        CHECK_I64(moe_ep_window_init(&w[i], NULL, 1, 1, 0, 0, memory[i], sizeof memory[i], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w[0], &four, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w[0], &none, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w[1], &none, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w[1], &four, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_add(&w[2], &four, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_merge_ranks(&w[0], &w[1], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_variance(&w[0], &variance, NULL), MOE_EP_ERR_UNSUPPORTED);
    CHECK_I64(moe_ep_window_append(&w[0], &w[2], NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_window_variance(&w[0], &variance, NULL), MOE_EP_ERR_UNSUPPORTED);
}

/* Room is wanted for all n ids, whichever expert they are of. */
TEST(adding_wants_room_for_all_ids)
{
    const int32_t ids[2] = {1, 1};
    int64_t loads[2] = {INT64_MAX - 1, 0}, negative[2] = {3, -1};
    moe_ep_error err;
    CHECK_I64(moe_ep_expert_loads_add(ids, 2, 2, loads, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(err.index, 0);
    CHECK(loads[0] == INT64_MAX - 1 && loads[1] == 0);
    loads[0]--;
    CHECK_I64(moe_ep_expert_loads_add(ids, 2, 2, loads, NULL, &err), MOE_EP_OK);
    CHECK_I64(loads[1], 2);
    CHECK_I64(moe_ep_expert_loads_add(ids, 2, 2, negative, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
}

TEST(skipped_has_room_or_is_refused)
{
    const int32_t ids[3] = {0, -1, -1};
    int64_t loads[1] = {0}, skipped = INT64_MAX - 2;
    moe_ep_error err;
    CHECK_I64(moe_ep_expert_loads_add(ids, 3, 1, loads, &skipped, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "skipped");
    CHECK_NEAR(err.value, 9223372036854775805.0, 0, 0);
    CHECK_I64(skipped, INT64_MAX - 2);
    CHECK_I64(loads[0], 0);
    skipped = INT64_MAX - 3;
    CHECK_I64(moe_ep_expert_loads_add(ids, 3, 1, loads, &skipped, &err), MOE_EP_OK);
    CHECK_I64(skipped, INT64_MAX - 1);
    CHECK_I64(loads[0], 1);
}

T_MAIN
