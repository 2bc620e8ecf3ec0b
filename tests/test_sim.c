/* tests/test_sim.c - section 12: the same bytes everywhere, distributions, published imbalance.
 * SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"

/* FNV-1a over ids as little-endian bytes, whatever the machine. */
static uint64_t fnv(const int32_t *ids, int n)
{
    uint64_t h = 0xcbf29ce484222325u;
    int i, shift;
    for (i = 0; i < n; i++)
        for (shift = 0; shift < 32; shift += 8) h = (h ^ (((uint32_t)ids[i] >> shift) & 0xff)) * 0x100000001b3u;
    return h;
}

static moe_ep_workload workload(moe_ep_workload_kind kind)
{
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    w.kind = kind;
    w.seed = 7;
    w.num_experts = 64;
    w.top_k = 6;
    w.num_devices = 8;
    w.hot = 3;
    w.share = 0.4;
    w.alpha = 1.01;
    w.sigma = 1.1;
    w.drift = 0.1;
    w.target = 0.5;
    w.period = 2;
    return w;
}

static double recorded[64];

static void make_recorded(void)
{
    int i;
    for (i = 0; i < 64; i++) recorded[i] = (double)((i * 37) % 64) * 0.125;
}

/* Checksums of ids (100,6), layer 1, step 3; hexadecimal, little-endian int32. */
static const uint64_t golden[13] = {
    0xeb45652e1925cf95u, /* uniform */
    0x942f008a30d0e15fu, /* zipf */
    0xa71e6b82f79294e9u, /* power-law */
    0xafe65d020b25071fu, /* lognormal */
    0xbca99dd338486e19u, /* hot-expert */
    0xd4aa3fb931cf7bdfu, /* hot-device */
    0xa6408a097724cb4bu, /* rotating */
    0xbca99dd338486e19u, /* burst: step 3 of period 2 is the hot one */
    0xbabaa22645060e58u, /* recorded */
    0x5e04c57542ad1e2cu, /* target */
    0x8040e574d45a7765u, /* balanced */
    0xf542e19c237b3be9u, /* round-robin */
    0xb96cc1e564a2cb65u  /* stuck-round-robin */
};

TEST(golden_bytes)
{
    int32_t ids[600];
    int k;
    make_recorded();
    for (k = 0; k < 13; k++) {
        moe_ep_workload w = workload((moe_ep_workload_kind)k);
        uint64_t got;
        w.popularity = recorded;
        CHECK(moe_ep_simulate(&w, 1, 3, 100, ids, NULL, NULL) == MOE_EP_OK);
        got = fnv(ids, 600);
        CHECK(got == golden[k]);
        if (got != golden[k])
            printf("    0x%016llxu, /* %s */\n", (unsigned long long)got,
                   moe_ep_workload_str((moe_ep_workload_kind)k));
    }
    {
        moe_ep_workload w = workload(MOE_EP_LOAD_LOGNORMAL);
        w.walk = 0.03;
        CHECK(moe_ep_simulate(&w, 1, 777, 100, ids, NULL, NULL) == MOE_EP_OK);
        CHECK(fnv(ids, 600) == 0xae422aa9e8b75e99u);
    }
}

TEST(names)
{
    moe_ep_workload_kind k, back;
    moe_ep_error err;
    int i;
    for (i = 0; i < 13; i++) {
        k = (moe_ep_workload_kind)i;
        CHECK(moe_ep_workload_by_name(moe_ep_workload_str(k), &back, NULL) == MOE_EP_OK && back == k);
    }
    CHECK(moe_ep_workload_by_name("rr", &back, NULL) == MOE_EP_OK && back == MOE_EP_LOAD_ROUND_ROBIN);
    CHECK(moe_ep_workload_by_name("rand", &back, NULL) == MOE_EP_OK && back == MOE_EP_LOAD_UNIFORM);
    CHECK(moe_ep_workload_by_name("none", &back, &err) == MOE_EP_ERR_CONFIG);
    CHECK_STR(moe_ep_workload_str((moe_ep_workload_kind)99), "unknown");
}

TEST(every_kind_gives_distinct_ids_in_range)
{
    int32_t ids[6 * 257];
    int k;
    make_recorded();
    recorded[1] = 1e9;
    for (k = 0; k < 13; k++) {
        moe_ep_workload w = workload((moe_ep_workload_kind)k);
        int t, a, b;
        w.popularity = recorded;
        CHECK(moe_ep_simulate(&w, 0, 1, 257, ids, NULL, NULL) == MOE_EP_OK);
        for (t = 0; t < 257; t++)
            for (a = 0; a < 6; a++) {
                CHECK(ids[t * 6 + a] >= 0 && ids[t * 6 + a] < 64);
                for (b = 0; b < a; b++) CHECK(ids[t * 6 + a] != ids[t * 6 + b]);
            }
        STOP_IF_FAILED("kind %d", k);
    }
}

/* First choices follow the weights; pairs follow the Plackett-Luce law. */
TEST(draws_follow_the_weights)
{
    enum { T = 200000 };
    static int32_t ids[2 * T];
    double weight[5] = {8, 4, 2, 1, 1}, pair[5][5];
    int t, a, b;
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    memset(pair, 0, sizeof pair);
    w.kind = MOE_EP_LOAD_RECORDED;
    w.seed = t_seed;
    w.num_experts = 5;
    w.top_k = 2;
    w.popularity = weight;
    CHECK(moe_ep_simulate(&w, 0, 0, T, ids, NULL, NULL) == MOE_EP_OK);
    for (t = 0; t < T; t++) pair[ids[2 * t]][ids[2 * t + 1]]++;
    for (a = 0; a < 5; a++)
        for (b = 0; b < 5; b++) {
            double p = a == b ? 0 : weight[a] / 16 * weight[b] / (16 - weight[a]);
            CHECK(fabs(pair[a][b] / T - p) < 5 * sqrt(p * (1 - p) / T) + 1e-9);
        }
    weight[0] = 1e7; /* nearly every draw repeats: the exact remainder must take over */
    CHECK(moe_ep_simulate(&w, 0, 0, 2000, ids, NULL, NULL) == MOE_EP_OK);
    memset(pair, 0, sizeof pair);
    for (t = 0; t < 2000; t++) pair[0][ids[2 * t + 1]]++;
    CHECK_NEAR(pair[0][1], 1000, 0.1, 0);
    w.with_replacement = 1;
    CHECK(moe_ep_simulate(&w, 0, 0, 2000, ids, NULL, NULL) == MOE_EP_OK);
    for (t = 0, a = 0; t < 2000; t++) a += ids[2 * t] == ids[2 * t + 1];
    CHECK(a > 1990);
}

TEST(integer_powers_are_accurate)
{
    uint64_t got[200];
    moe_ep_workload w = workload(MOE_EP_LOAD_ZIPF);
    double alpha, sum = 0, square = 0;
    int e;
    w.num_experts = 200;
    w.in_order = 1;
    w.drift = 0;
    for (alpha = 0.0; alpha < 3.0; alpha += 0.37) {
        w.alpha = alpha;
        CHECK(moe_ep_popularity(&w, 0, 0, 0, got, NULL) == MOE_EP_OK);
        for (e = 0; e < 200; e++) CHECK_NEAR((double)got[e], 549755813888.0 * pow(e + 1.0, -alpha), 1e-7, 2);
    }
    w = workload(MOE_EP_LOAD_UNIFORM);
    CHECK(moe_ep_popularity(&w, 0, 0, 0, got, NULL) == MOE_EP_OK);
    CHECK(got[0] == 549755813888u && got[63] == 549755813888u);
    w = workload(MOE_EP_LOAD_LOGNORMAL); /* deviates: mean 0, variance 1 */
    w.drift = 0;
    for (e = 0; e < 2000; e++) {
        double mean = 0, x;
        int i;
        CHECK(moe_ep_popularity(&w, e, 0, 0, got, NULL) == MOE_EP_OK);
        for (i = 0; i < 64; i++) mean += log((double)got[i]) / 1.1 / 64;
        for (i = 0; i < 64; i++) {
            x = log((double)got[i]) / 1.1 - mean;
            sum += x;
            square += x * x;
        }
    }
    CHECK_NEAR(square / (2000.0 * 63), 1.0, 0.02, 0);
    w = workload(MOE_EP_LOAD_POWER_LAW); /* median of x^-alpha on [1, X]: closed form of the inverse */
    w.drift = 0;
    w.x_max = 1000;
    w.num_experts = 200;
    w.in_order = 1;
    for (alpha = 0.5; alpha < 2.0; alpha += 0.5) {
        double b = 1 - alpha, want = 0, have = 0, base, top = 0;
        int layer;
        w.alpha = alpha;
        for (layer = 0; layer < 200; layer++) {
            CHECK(moe_ep_popularity(&w, layer, 0, 0, got, NULL) == MOE_EP_OK);
            have += log((double)got[100] / (double)got[199]) / 200;
            top += log((double)got[0] / (double)got[199]) / 200;
        }
        base = fabs(b) < 1e-9 ? 0.5 * log(1000.0) : log((pow(1000, b) - 1) * 0.5 + 1) / b;
        want = base - (fabs(b) < 1e-9 ? log(1000.0) / 201
                                      : log((pow(1000, b) - 1) / 201 + 1) / b); /* less the smallest of 200 */
        CHECK_NEAR(have, want, 0.05, 0.02);
        CHECK(top <= log(1000.0) * 1.0001);
    }
}

/* A random walk: at steps s and t the covariance of the changes is walk^2 min(s, t), between the experts 0. */
TEST(a_walk_adds_up)
{
    enum { E = 512, LAYERS = 24, STEPS = 11 };
    static const int64_t step[STEPS] = {1, 2, 3, 7, 8, 100, 101, 1000, 4095, 4096, 10000};
    static double moved[STEPS][E];
    static uint64_t start[E], got[E], again[E];
    const double walk = 0.01, n = (double)(E - 1) * LAYERS;
    double sum[STEPS][STEPS] = {{0}}, beside = 0;
    moe_ep_workload w = workload(MOE_EP_LOAD_LOGNORMAL);
    int layer, i, j, e;
    w.seed = t_seed;
    w.num_experts = E;
    w.drift = 0;
    w.walk = walk;
    for (layer = 0; layer < LAYERS; layer++) {
        CHECK(moe_ep_popularity(&w, layer, 0, 0, start, NULL) == MOE_EP_OK);
        for (i = 0; i < STEPS; i++) {
            double mean = 0;
            CHECK(moe_ep_popularity(&w, layer, step[i], 0, got, NULL) == MOE_EP_OK);
            for (e = 0; e < E; e++) mean += (moved[i][e] = log((double)got[e] / (double)start[e])) / E;
            for (e = 0; e < E; e++) moved[i][e] -= mean; /* weights have no scale */
        }
        for (i = 0; i < STEPS; i++)
            for (j = 0; j < STEPS; j++)
                for (e = 0; e < E; e++) sum[i][j] += moved[i][e] * moved[j][e] / (walk * walk * n);
        for (e = 0; e < E; e += 2) beside += moved[7][e] * moved[7][e + 1] / (walk * walk * 1000 * n / 2);
    }
    for (i = 0; i < STEPS; i++)
        for (j = 0; j < STEPS; j++) {
            double s = (double)step[i], t = (double)step[j], less = fmin(s, t);
            CHECK_NEAR(sum[i][j], less, 0, 5 * sqrt((s * t + less * less) / n));
            if (i < j) /* what happens between two steps knows nothing of what was before */
                CHECK_NEAR(sum[j][j] - 2 * sum[i][j] + sum[i][i], t - s, 0, 5 * sqrt(2 / n) * (t - s));
        }
    CHECK_NEAR(beside, 0, 0, 5 * sqrt(2 / n));
    CHECK(moe_ep_popularity(&w, 0, 10000, 0, got, NULL) == MOE_EP_OK); /* the same whatever was asked before */
    CHECK(moe_ep_popularity(&w, 0, 3, 0, again, NULL) == MOE_EP_OK);
    CHECK(moe_ep_popularity(&w, 0, 10000, 0, again, NULL) == MOE_EP_OK && memcmp(got, again, sizeof got) == 0);
    w.copy_layers = 1;
    CHECK(moe_ep_popularity(&w, 5, 10000, 0, again, NULL) == MOE_EP_OK && memcmp(got, again, sizeof got) == 0);
    w.copy_layers = 0;
    CHECK(moe_ep_popularity(&w, 5, 10000, 0, again, NULL) == MOE_EP_OK && memcmp(got, again, sizeof got) != 0);
    CHECK(moe_ep_popularity(&w, 0, 0, 0, got, NULL) == MOE_EP_OK);
    w.walk = 0; /* step 0 is the calibration, as for drift, which alone is as far away at every step */
    CHECK(moe_ep_popularity(&w, 0, 0, 0, again, NULL) == MOE_EP_OK && memcmp(got, again, sizeof got) == 0);
    w.drift = 0.1;
    for (i = 0; i < STEPS; i++) {
        double square = 0, mean = 0;
        CHECK(moe_ep_popularity(&w, 0, step[i], 0, again, NULL) == MOE_EP_OK);
        for (e = 0; e < E; e++) mean += (moved[0][e] = log((double)again[e] / (double)got[e])) / E;
        for (e = 0; e < E; e++) square += (moved[0][e] - mean) * (moved[0][e] - mean) / (E - 1);
        CHECK_NEAR(sqrt(square), 0.1, 0, 5 * 0.1 / sqrt(2.0 * E));
    }
}

TEST(kinds_do_what_they_say)
{
    int32_t ids[6 * 1000];
    int64_t dev[8], load[64], tokens;
    moe_ep_workload w;
    uint64_t weights[64];
    double target;
    int i, d, step;
    for (target = 0.2; target <= 1.0; target += 0.1) {
        double mean = 0, most = 0;
        w = workload(MOE_EP_LOAD_TARGET);
        w.target = target;
        CHECK(moe_ep_simulate(&w, 0, 0, 1000, ids, NULL, NULL) == MOE_EP_OK);
        memset(dev, 0, sizeof dev);
        for (i = 0; i < 6000; i++) dev[ids[i] / 8]++;
        for (d = 0; d < 8; d++) {
            mean += (double)dev[d] / 8;
            most = fmax(most, (double)dev[d]);
        }
        CHECK_NEAR(mean / most, target, 0, 0.02);
    }
    w = workload(MOE_EP_LOAD_TARGET); /* blocks of 2, 2, 1 experts: 1.6 T rows fit the first, 1.2 T not the last */
    w.num_experts = 5, w.num_devices = 3, w.top_k = 4, w.target = 4 / 3.0 / 1.6;
    for (tokens = 1000; tokens < (int64_t)1 << 56; tokens *= 7) { /* is found before an id is written */
        moe_ep_error err;
        CHECK_I64(moe_ep_simulate(&w, 0, 0, tokens, ids, NULL, &err), MOE_EP_ERR_INFEASIBLE);
        CHECK_STR(err.arg, "target");
        CHECK_I64(err.index, 2);
    }
    w = workload(MOE_EP_LOAD_BALANCED);
    CHECK(moe_ep_simulate(&w, 0, 0, 960, ids, NULL, NULL) == MOE_EP_OK);
    memset(load, 0, sizeof load);
    for (i = 0; i < 5760; i++) load[ids[i]]++;
    for (i = 0; i < 64; i++) CHECK_I64(load[i], 90);
    for (i = 0; i < 960; i++) CHECK(ids[6 * i] / 8 != ids[6 * i + 1] / 8); /* and spread over devices */
    w = workload(MOE_EP_LOAD_ROUND_ROBIN);
    CHECK(moe_ep_simulate(&w, 0, 0, 100, ids, NULL, NULL) == MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[5] == 5 && ids[6] == 1 && ids[6 * 63] == 63 && ids[6 * 63 + 1] == 0);
    w = workload(MOE_EP_LOAD_STUCK_ROUND_ROBIN);
    CHECK(moe_ep_simulate(&w, 0, 0, 100, ids, NULL, NULL) == MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[6 * 99 + 5] == 5);
    w = workload(MOE_EP_LOAD_ROTATING);
    w.drift = 0;
    for (step = 0; step < 20; step++) {
        int hot = 0;
        CHECK(moe_ep_popularity(&w, 0, step, 0, weights, NULL) == MOE_EP_OK);
        for (i = 0; i < 64; i++)
            if (weights[i] > weights[hot]) hot = i;
        CHECK_I64(hot / 8, (3 + step / 2) % 8);
    }
    w = workload(MOE_EP_LOAD_BURST);
    w.drift = 0;
    CHECK(moe_ep_popularity(&w, 0, 0, 0, weights, NULL) == MOE_EP_OK && weights[3] == weights[4]);
    CHECK(moe_ep_popularity(&w, 0, 1, 0, weights, NULL) == MOE_EP_OK);
    CHECK_NEAR((double)weights[3] / ((double)weights[3] + 63.0 * (double)weights[4]), 0.4, 1e-6, 0);
    w = workload(MOE_EP_LOAD_LOGNORMAL);
    {
        uint64_t other[64];
        w.drift = 0;
        CHECK(moe_ep_popularity(&w, 0, 0, 0, weights, NULL) == MOE_EP_OK);
        CHECK(moe_ep_popularity(&w, 1, 0, 0, other, NULL) == MOE_EP_OK && memcmp(weights, other, sizeof other) != 0);
        CHECK(moe_ep_popularity(&w, 0, 5, 0, other, NULL) == MOE_EP_OK && memcmp(weights, other, sizeof other) == 0);
        w.copy_layers = 1;
        CHECK(moe_ep_popularity(&w, 1, 0, 0, other, NULL) == MOE_EP_OK && memcmp(weights, other, sizeof other) == 0);
    }
    memset(&w, 0, sizeof w);
    w.seed = 1;
    w.num_experts = 8;
    w.top_k = 2;
    CHECK(moe_ep_simulate(&w, 0, 0, 1, ids, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(ids[0], 7);
    CHECK_I64(ids[1], 1);
}

TEST(ids_of_exact_counts)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < 300; round++) {
        int32_t E = 1 + (int32_t)t_below(&s, 30), K = 1 + (int32_t)t_below(&s, E), T = (int32_t)t_below(&s, 40),
                e, t, a, b;
        int64_t counts[30], left = (int64_t)T * K;
        int32_t ids[40 * 30];
        memset(counts, 0, sizeof counts);
        while (left > 0) {
            e = (int32_t)t_below(&s, E);
            if (counts[e] < T) counts[e]++, left--;
        }
        CHECK(moe_ep_ids_from_counts(counts, E, T, K, s, ids, NULL) == MOE_EP_OK);
        for (t = 0; t < T; t++)
            for (a = 0; a < K; a++) {
                counts[ids[t * K + a]]--;
                for (b = 0; b < a; b++) CHECK(ids[t * K + a] != ids[t * K + b]);
            }
        for (e = 0; e < E; e++) CHECK_I64(counts[e], 0);
        STOP_IF_FAILED("round %d", round);
    }
    {
        int64_t counts[3] = {2, 1, 1};
        int32_t ids[4];
        moe_ep_error err;
        CHECK(moe_ep_ids_from_counts(counts, 3, 2, 2, 0, ids, NULL) == MOE_EP_OK);
        CHECK((ids[0] == 0 || ids[1] == 0) && (ids[2] == 0 || ids[3] == 0));
        counts[0] = 3;
        CHECK(moe_ep_ids_from_counts(counts, 3, 2, 2, 0, ids, &err) == MOE_EP_ERR_INFEASIBLE);
        CHECK_I64(err.index, 0);
        counts[0] = 1;
        CHECK(moe_ep_ids_from_counts(counts, 3, 2, 2, 0, ids, &err) == MOE_EP_ERR_INFEASIBLE);
        counts[0] = -1;
        CHECK(moe_ep_ids_from_counts(counts, 3, 2, 2, 0, ids, &err) == MOE_EP_ERR_NEGATIVE);
        CHECK(moe_ep_ids_from_counts(counts, 3, 2, 4, 0, ids, &err) == MOE_EP_ERR_TOP_K);
        CHECK(moe_ep_ids_from_counts(NULL, 3, 2, 2, 0, ids, &err) == MOE_EP_ERR_NULL);
        CHECK(moe_ep_ids_from_counts(counts, 3, INT64_MAX, 2, 0, ids, &err) == MOE_EP_ERR_OVERFLOW);
    }
}

TEST(sources)
{
    int64_t n[7], sum, most = 0;
    moe_ep_error err;
    int d;
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 0, 10, 4, 0, 0, n, NULL) == MOE_EP_OK);
    CHECK(n[0] == 3 && n[1] == 3 && n[2] == 2 && n[3] == 2);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 0, 10, 4, 0, 1, n, NULL) == MOE_EP_OK);
    CHECK(n[0] == 4 && n[1] == 0 && n[2] == 3 && n[3] == 3);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_RAGGED, 5, 1000003, 7, 1.0, 0, n, NULL) == MOE_EP_OK);
    for (d = 0, sum = 0; d < 7; d++) {
        CHECK(n[d] >= 0);
        sum += n[d];
        if (n[d] > most) most = n[d];
    }
    CHECK_I64(sum, 1000003);
    CHECK(most > 1000003 / 7 * 5 / 4);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 0, 10, 1, 0, 0, n, &err) == MOE_EP_ERR_INFEASIBLE);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 0, 10, 4, 0, 4, n, &err) == MOE_EP_ERR_DEVICE_ID);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 0, -1, 4, 0, 0, n, &err) == MOE_EP_ERR_NEGATIVE);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 0, 1, 0, 0, 0, n, &err) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_RAGGED, 0, 1, 4, NAN, 0, n, &err) == MOE_EP_ERR_NAN);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 0, 1, 4, 0, 0, NULL, &err) == MOE_EP_ERR_NULL);
}

TEST(llmservingsim_closed_form)
{
    static const struct { int T, E, K, ep, local, active; double expected;
    } row[] = {{1, 128, 8, 2, 1, 4, 4.0},        {4, 128, 8, 2, 4, 16, 14.5615},
               {16, 128, 8, 2, 16, 64, 41.2113}, {64, 128, 8, 2, 64, 64, 62.9712},
               {8, 8, 2, 4, 4, 2, 1.7998},       {64, 128, 8, 8, 42, 16, 15.7428},
               {256, 256, 8, 32, 57, 8, 7.9976}, {4, 256, 8, 64, 0, 0, 0.477}};
    moe_ep_balanced_result r;
    size_t i;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        CHECK(moe_ep_llmservingsim_balanced(row[i].T, row[i].E, row[i].K, row[i].ep, &r, NULL) == MOE_EP_OK);
        CHECK_I64(r.local_tokens, row[i].local);
        CHECK_I64(r.activated, row[i].active);
        CHECK_NEAR(r.exact_activated, row[i].expected, 0, 5e-4);
    }
    CHECK(moe_ep_llmservingsim_balanced(1, 2, 3, 1, &r, NULL) == MOE_EP_ERR_TOP_K);
    CHECK(moe_ep_llmservingsim_balanced(1, 2, 1, 0, &r, NULL) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_llmservingsim_balanced(1, 2, 1, 1, NULL, NULL) == MOE_EP_ERR_NULL);
    r.activated = 77;
    CHECK(moe_ep_llmservingsim_balanced(INT64_MAX, 8, 8, 1, &r, NULL) == MOE_EP_ERR_OVERFLOW);
    CHECK(moe_ep_llmservingsim_balanced(INT64_MAX, 8, 1, 4, &r, NULL) == MOE_EP_ERR_OVERFLOW);
    CHECK_I64(r.activated, 77);
    CHECK(moe_ep_llmservingsim_balanced(INT64_MAX / 4, 8, 1, 1, &r, NULL) == MOE_EP_OK);
    CHECK(moe_ep_llmservingsim_balanced(1, INT32_MAX, INT32_MAX, 1, &r, NULL) == MOE_EP_OK);
    CHECK_I64(r.activated, INT32_MAX);
}
#include "sim_cases.h"

TEST(imbalance_table_of_blog_4)
{
    double got[12], still;
    int i;
    blog4(80, got, &still);
    for (i = 0; i < 12; i++) {
        double error = got[i] / blog4_published[i] - 1;
        printf("    16 %-20s %8.3f %8.3f %+6.1f %%\n", blog4_name[i], blog4_published[i], got[i], error * 100);
        CHECK(fabs(error) <= 0.20);
    }
    printf("    excess on the loads it was planned from, no drift: %.3f\n", still);
    CHECK_NEAR(still, 0.065, 0.2, 0);
}

/* Does EPLB pay more than 15 %?  Measured: no up to 384 tokens, yes from 512.  The model says no up to 384 and yes from
 * 1536; in between it is late (1.04 at 512, where 1.30 was measured), and at 1024 half of the draws fall on each side:
 * there the answer is "it depends on the loads", not a number. */
TEST(eplb_verdict)
{
    moe_ep_machine c = eplb_machine();
    int i;
    for (i = 0; i < EPLB_POINTS; i++) {
        int tokens = eplb_tokens[i];
        eplb_case g = eplb_gain(&c, tokens, 16);
        printf("    25 %5d tokens: measured %.2f, seconds %.2f, rows %.2f, %3.0f %% of draws above 1.15\n", tokens,
               eplb_measured[i], g.seconds, g.rows, 100 * g.share);
        if (tokens <= 384) CHECK(g.seconds < 1.15);
        if (tokens >= 64 && tokens <= 384) CHECK(g.share <= 0.2);
        if (tokens == 1024) CHECK(g.share > 0.1 && g.share < 0.9);
        if (tokens >= 1536) CHECK(g.seconds > 1.15 && g.share >= 0.8);
        if (tokens >= 2048) CHECK(g.share >= 0.9);
        if (tokens >= 8192) CHECK(g.seconds >= 1.5);
        if (eplb_payoff(g.seconds) == MOE_EP_PAYOFF_YES) CHECK(eplb_measured[i] > 1.15); /* sure is never wrong */
        if (eplb_payoff(g.seconds) == MOE_EP_PAYOFF_NO) CHECK(eplb_measured[i] <= 1.15);
        if (tokens >= 2048) CHECK(eplb_payoff(g.seconds) == MOE_EP_PAYOFF_YES);
        CHECK(fabs(g.seconds / eplb_measured[i] - 1) <= (tokens == 96 || tokens == 4096 ? 0.45 : 0.33));
        CHECK(g.rows > 1.5); /* rows alone would promise a gain everywhere */
    }
}

TEST(simulate_errors)
{
    moe_ep_workload w = workload(MOE_EP_LOAD_LOGNORMAL), z = w;
    moe_ep_error err;
    moe_ep_scratch scratch;
    static unsigned char memory[65536];
    int32_t ids[60];
    double bad[64];
    int i;
    for (i = 0; i < 60; i++) ids[i] = -77;
#define EXPECT(status, name)                                                                        \
    do {                                                                                            \
        CHECK_I64(moe_ep_simulate(&w, 0, 1, 10, ids, NULL, &err), status);                          \
        CHECK_STR(err.arg, name);                                                                   \
        w = z;                                                                                      \
    } while (0)
    CHECK_I64(moe_ep_simulate(NULL, 0, 1, 10, ids, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_simulate(&w, 0, 1, 10, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_simulate(&w, 0, 1, -1, ids, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_simulate(&w, -1, 1, 1, ids, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_simulate(&w, 0, -1, 1, ids, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_simulate(&w, 0, 1, INT64_MAX / 2, ids, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_simulate(&w, 0, 1, 0, ids, NULL, &err), MOE_EP_OK);
    w.kind = (moe_ep_workload_kind)55;
    EXPECT(MOE_EP_ERR_RANGE, "kind");
    w.num_experts = 0;
    EXPECT(MOE_EP_ERR_SIZE, "num_experts");
    w.top_k = 0;
    EXPECT(MOE_EP_ERR_SIZE, "top_k");
    w.top_k = 65;
    EXPECT(MOE_EP_ERR_TOP_K, "top_k");
    w.sigma = -1;
    EXPECT(MOE_EP_ERR_NEGATIVE, "sigma");
    w.drift = NAN;
    EXPECT(MOE_EP_ERR_NAN, "drift");
    w.share = 1.5;
    EXPECT(MOE_EP_ERR_RANGE, "share");
    w.kind = MOE_EP_LOAD_TARGET;
    w.target = 0;
    EXPECT(MOE_EP_ERR_RANGE, "target");
    w.kind = MOE_EP_LOAD_TARGET;
    w.target = 0.13; /* 6 of 8 choices on one device are not enough */
    w.top_k = 40;
    EXPECT(MOE_EP_ERR_INFEASIBLE, "target");
    w.kind = MOE_EP_LOAD_HOT_EXPERT;
    w.hot = 64;
    EXPECT(MOE_EP_ERR_EXPERT_ID, "hot");
    w.kind = MOE_EP_LOAD_HOT_DEVICE;
    w.hot = 8;
    EXPECT(MOE_EP_ERR_DEVICE_ID, "hot");
    w.kind = MOE_EP_LOAD_HOT_EXPERT;
    w.share = 1.0;
    EXPECT(MOE_EP_ERR_INFEASIBLE, "share");
    w.kind = MOE_EP_LOAD_RECORDED;
    EXPECT(MOE_EP_ERR_NULL, "popularity");
    for (i = 0; i < 64; i++) bad[i] = i < 5;
    w.kind = MOE_EP_LOAD_RECORDED;
    w.popularity = bad;
    EXPECT(MOE_EP_ERR_INFEASIBLE, "popularity");
    bad[9] = -1;
    w.kind = MOE_EP_LOAD_RECORDED;
    w.popularity = bad;
    EXPECT(MOE_EP_ERR_NEGATIVE, "popularity");
    bad[9] = INFINITY;
    w.kind = MOE_EP_LOAD_RECORDED;
    w.popularity = bad;
    EXPECT(MOE_EP_ERR_NAN, "popularity");
    CHECK_I64(err.index, 9);
#undef EXPECT
    scratch = moe_ep_scratch_fixed(memory, 8);
    CHECK_I64(moe_ep_simulate(&w, 0, 1, 10, ids, &scratch, &err), MOE_EP_ERR_SCRATCH);
    scratch = moe_ep_scratch_fixed(memory, scratch.need - 1);
    CHECK_I64(moe_ep_simulate(&w, 0, 1, 10, ids, &scratch, &err), MOE_EP_ERR_SCRATCH);
    for (i = 0; i < 60; i++) CHECK_I64(ids[i], -77);
    scratch = moe_ep_scratch_fixed(memory, scratch.need);
    CHECK_I64(moe_ep_simulate(&w, 0, 1, 10, ids, &scratch, &err), MOE_EP_OK);
    {
        uint64_t weights[64];
        w.kind = MOE_EP_LOAD_BALANCED;
        CHECK_I64(moe_ep_popularity(&w, 0, 0, 0, weights, &err), MOE_EP_ERR_CONFIG);
        CHECK_STR(err.arg, "kind");
        CHECK_I64(err.index, -1);
        CHECK_NEAR(err.value, (double)MOE_EP_LOAD_BALANCED, 0, 1e-12);
        CHECK_I64(moe_ep_popularity(&z, 0, 0, 0, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_STR(err.arg, "weights");
        CHECK_I64(err.index, -1);
        CHECK_I64(moe_ep_popularity(&z, 0, 0, -1, weights, &err), MOE_EP_ERR_SIZE);
        CHECK_STR(err.arg, "tokens");
        CHECK_I64(err.index, -1);
        CHECK_NEAR(err.value, -1, 0, 1e-12);
    }
}

/* mean / max cannot be below 1 / D, however little is asked for; no hot device is no device. */
TEST(targets_out_of_reach)
{
    static const double target[4] = {1e-300, 1e-12, 0.1, 0.2};
    moe_ep_workload w;
    moe_ep_error err;
    int32_t ids[64];
    int i, k;
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_TARGET;
    w.num_experts = 8;
    w.top_k = 2;
    w.num_devices = 4;
    for (k = 0; k < 2; k++) {
        w.with_replacement = k;
        memset(ids, 0x5a, sizeof ids);
        for (i = 0; i < 4; i++) {
            w.target = target[i];
            CHECK_I64(moe_ep_simulate(&w, 0, 0, 32, ids, NULL, &err), MOE_EP_ERR_INFEASIBLE);
            CHECK_STR(err.arg, "target");
        }
        w.target = 0.5;
        w.hot = -1;
        CHECK_I64(moe_ep_simulate(&w, 0, 0, 32, ids, NULL, &err), MOE_EP_ERR_DEVICE_ID);
        CHECK_STR(err.arg, "hot");
        for (i = 0; i < 64; i++) CHECK(ids[i] == 0x5a5a5a5a);
        w.hot = 3;
        CHECK_I64(moe_ep_simulate(&w, 0, 0, 32, ids, NULL, &err), MOE_EP_OK);
        for (i = 0; i < 64; i++) CHECK(ids[i] >= 0 && ids[i] < 8);
        w.hot = 0;
    }
}

T_EXACT_MATH /* thresholds as the library sees them */

/* ---- everything once more in doubles: the same generator, the formulas as the header's comments give them -------- */

enum { FOR_WEIGHTS = 1, FOR_DRIFT = 2, FOR_ORDER = 3, FOR_IDS = 4, FOR_SOURCES = 5, FOR_WALK = 6 };

/* The generator of one purpose in one layer and step: each number is mixed into a fresh seed. */
static moe_ep_rng generator(uint64_t seed, uint64_t purpose, uint64_t layer, uint64_t step)
{
    const uint64_t mix[3] = {purpose * 0x9e3779b97f4a7c15u, layer * 0xbf58476d1ce4e5b9u, step * 0x94d049bb133111ebu};
    moe_ep_rng r = moe_ep_rng_seed(seed);
    int i;
    for (i = 0; i < 3; i++) {
        uint64_t next = moe_ep_rng_u64(&r) ^ mix[i];
        r = moe_ep_rng_seed(next);
    }
    return r;
}

/* Marsaglia's polar method. */
static double normal_in_doubles(moe_ep_rng *rng)
{
    double u, v, s;
    do {
        uint64_t bits = moe_ep_rng_u64(rng);
        u = (double)(bits >> 32) / 2147483648.0 - 1;
        v = (double)(bits & 0xffffffffu) / 2147483648.0 - 1;
        s = u * u + v * v;
    } while (s >= 1 || !(s > 0));
    return u * sqrt(-2 * log(s) / s);
}

/* ---- normals to the last bit -------------------------------------------------------------------------------- */

static uint64_t inverse_of_odd(uint64_t a)
{
    uint64_t x = a;
    int i;
    for (i = 0; i < 6; i++) x *= 2 - a * x; /* modulo 2^64; each round doubles the bits that are right */
    return x;
}

static uint64_t undo_shift(uint64_t z, int k)
{
    uint64_t v = z;
    for (; k < 64; k *= 2) v ^= v >> k;
    return v;
}

/* The seed with which moe_ep_rng_u64 begins with `first`: splitmix64's second word alone makes it. */
static uint64_t seed_that_gives(uint64_t first)
{
    uint64_t z = first * inverse_of_odd(9);
    z = (z >> 7 | z << 57) * inverse_of_odd(5);
    z = undo_shift(z, 31) * inverse_of_odd(0x94d049bb133111ebu);
    z = undo_shift(z, 27) * inverse_of_odd(0xbf58476d1ce4e5b9u);
    return undo_shift(z, 30) - 2 * 0x9e3779b97f4a7c15u;
}

/* The workload's seed with which the weights of layer 0 begin with those bits. */
static uint64_t seed_of_weights(uint64_t bits)
{
    return seed_that_gives(seed_that_gives(seed_that_gives(seed_that_gives(bits))) ^
                           FOR_WEIGHTS * 0x9e3779b97f4a7c15u);
}

/* log2 of v / 2^32, 32 digits behind the point: the mantissa's 32 bits squared once for each. */
static int64_t log2_by_squares(uint64_t v)
{
    uint64_t m = v, whole = 31, digit, result = 0;
    for (; !(m >> 63); m *= 2) whole--;
    for (m >>= 32, digit = (uint64_t)1 << 31; digit; digit /= 2) {
        m = m * m / 2147483648u;
        if (m < 4294967296u) continue;
        m /= 2;
        result += digit;
    }
    return (int64_t)(whole * 4294967296u + result);
}

static uint64_t root_below(uint64_t v) /* v < 2^62 */
{
    uint64_t r = (uint64_t)sqrt((double)v);
    while (r * r > v) r--;
    while ((r + 1) * (r + 1) <= v) r++;
    return r;
}

/* Marsaglia's polar method in integers, each step rounded down: u and v have 31 bits behind the point, -2 ln s has
 * 32, its root and the result 28. */
static double normal_in_integers(moe_ep_rng *rng)
{
    const int64_t one = (int64_t)1 << 31, two_ln2 = 5954088944;
    int64_t u, v, log2s, z;
    uint64_t s;
    do {
        uint64_t bits = moe_ep_rng_u64(rng);
        u = (int64_t)(bits / 4294967296u) - one;
        v = (int64_t)(bits % 4294967296u) - one;
        s = (uint64_t)(u * u) + (uint64_t)(v * v);
    } while (s == 0 || s >= (uint64_t)1 << 62);
    log2s = 30 * 2 * one - log2_by_squares(s);
    z = log2s / (2 * one) * two_ln2 + log2s % (2 * one) * (two_ln2 / 16) / (2 * one / 16);
    z = (int64_t)root_below((uint64_t)z << 24);
    return (double)(u * z / (int64_t)root_below(s)) / 268435456.0;
}

/* Two weights whose logarithms are sigma times a normal: the smaller one as a share of 2^39, which the largest is. */
static void check_two_normals(uint64_t seed, double sigma)
{
    moe_ep_rng rng = generator(seed, FOR_WEIGHTS, 0, 0);
    const double a = normal_in_integers(&rng), b = normal_in_integers(&rng);
    const double want = 549755813888.0 * exp(-sigma * fabs(a - b));
    moe_ep_workload w;
    uint64_t got[2];
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_LOGNORMAL;
    w.num_experts = 2;
    w.top_k = 1;
    w.sigma = sigma;
    w.seed = seed;
    CHECK_I64(moe_ep_popularity(&w, 0, 0, 1, got, NULL), MOE_EP_OK);
    CHECK((got[0] < got[1]) == (a < b));
    CHECK_NEAR((double)(a < b ? got[1] : got[0]), 549755813888.0, 0, 0);
    if (want > 1) CHECK_NEAR((double)(a < b ? got[0] : got[1]), want, 4e-9, 1.5);
}

TEST(normals_to_the_last_bit)
{
    /* bits of u and v, each 2^31 above its number: outside the circle by nothing, by a little, its middle, next to it,
     * just inside */
    static const uint64_t edge[][2] = {{0, 2147483648u}, {2147483648u, 0}, {0, 2147483649u}, {0, 2147483647u},
                                       {0, 0}, {2147483648u, 2147483648u}, {2147483649u, 2147483648u},
                                       {2147483647u, 2147483648u}, {2147483648u, 2147483649u},
                                       {2147483649u, 2147483649u}, {1, 2147483648u}, {4294967295u, 2147483648u},
                                       {2147483648u, 1}, {2147483648u, 4294967295u}, {4294967295u, 4294967295u}};
    /* -2 ln s is a square here, whose root nothing rounds: of one normal in half a million */
    static const uint64_t square[] = {172260, 789870, 1208801, 1406939, 1603694, 1727143};
    uint64_t s = t_seed + 12;
    int i;
    for (i = 0; i < (int)(sizeof edge / sizeof edge[0]); i++) {
        const uint64_t bits = edge[i][0] << 32 | edge[i][1], seed = seed_of_weights(bits);
        moe_ep_rng rng = generator(seed, FOR_WEIGHTS, 0, 0);
        CHECK(moe_ep_rng_u64(&rng) == bits);
        check_two_normals(seed, 1);
        STOP_IF_FAILED("edge %d", i);
    }
    for (i = 0; i < (int)(sizeof square / sizeof square[0]); i++) check_two_normals(square[i], 16);
    for (i = 0; i < 20000; i++) {
        check_two_normals(t_u64(&s), i % 2 ? 16 : 0.5);
        STOP_IF_FAILED("case %d", i);
    }
}

static int64_t block_start(int64_t E, int64_t D, int64_t d) { return d * (E / D) + (d < E % D ? d : E % D); }

/* The experts of a device are those that moe_ep_place_contiguous puts there. */
TEST(blocks_are_those_of_place_contiguous)
{
    int32_t E, D, d, e;
    for (E = 1; E <= 40; E += 3)
        for (D = 1; D <= E; D += 2)
            for (d = 0; d < D; d++) {
                uint64_t weight[40];
                double loads[40] = {0};
                moe_ep_workload w;
                moe_ep_place_desc desc;
                moe_ep_placement p;
                size_t bytes;
                void *memory;
                memset(&w, 0, sizeof w);
                w.kind = MOE_EP_LOAD_HOT_DEVICE;
                w.num_experts = E;
                w.top_k = 1;
                w.num_devices = D;
                w.hot = d;
                w.share = 1; /* nobody else has any weight */
                CHECK(moe_ep_popularity(&w, 0, 0, 0, weight, NULL) == MOE_EP_OK);
                memset(&desc, 0, sizeof desc);
                desc.num_layers = 1;
                desc.num_experts = E;
                desc.shape.num_devices = D;
                desc.loads = loads;
                bytes = moe_ep_placement_bytes(1, E, &desc.shape);
                memory = t_alloc(bytes);
                CHECK(moe_ep_placement_init(&p, 1, E, &desc.shape, memory, bytes, NULL) == MOE_EP_OK);
                CHECK(moe_ep_place_contiguous(&desc, &p, NULL, NULL, NULL) == MOE_EP_OK);
                for (e = 0; e < E; e++)
                    CHECK((weight[e] > 0) == (p.slot_device[p.replica_slot[p.replica_start[e]]] == d));
                free(memory);
            }
}

/* A hot set in one device's block is that hot device; the same heat spread over the blocks leaves devices even, and
 * beyond the last expert it goes on at the first. */
TEST(hot_experts_side_by_side_and_spread)
{
    static const int32_t members[4] = {13, 1, 5, 9};
    uint64_t set[16], device[16];
    double rows[4] = {0};
    moe_ep_workload w = workload(MOE_EP_LOAD_HOT_EXPERT);
    int e;
    w.num_experts = 16;
    w.num_devices = 4;
    w.drift = 0;
    w.period = 1;
    w.hot = 8;
    w.hot_experts = 4;
    w.share = 0.75;
    CHECK_I64(moe_ep_popularity(&w, 0, 0, 0, set, NULL), MOE_EP_OK);
    w.kind = MOE_EP_LOAD_HOT_DEVICE;
    w.hot = 2;
    CHECK_I64(moe_ep_popularity(&w, 0, 0, 0, device, NULL), MOE_EP_OK);
    for (e = 0; e < 16; e++) CHECK(set[e] == device[e]);
    w.kind = MOE_EP_LOAD_BURST; /* every step */
    w.hot = 13;
    w.hot_stride = 4;
    CHECK_I64(moe_ep_popularity(&w, 0, 7, 0, set, NULL), MOE_EP_OK);
    for (e = 0; e < 16; e++) {
        int at = e % 4 == 1;
        CHECK_NEAR((double)set[e] / 549755813888.0, at ? 1.0 : 1.0 / 9, 1e-9, 0); /* 3/4 of four, 1/4 of twelve */
        rows[e / 4] += (double)set[e];
    }
    for (e = 0; e < 4; e++) {
        CHECK(set[members[e]] == 549755813888u);
        CHECK_NEAR(rows[e], rows[0], 1e-12, 0);
    }
}

/* Largest over smallest of the power law, aiconfigurator's when not given. */
static double power_law_range(const moe_ep_workload *w, int64_t tokens)
{
    return w->x_max > 0 ? w->x_max : tokens > 1 && tokens > w->num_experts / w->top_k ? 0.8 * (double)tokens : 200;
}

/* The walk of expert e at a step: the next power of two up from the last, then by halves between two ends. */
static double walk_in_doubles(const moe_ep_workload *w, int32_t layer, int32_t e, int64_t step)
{
    int64_t low = 0, high = 1, point;
    double at_low = 0, at_high = 0, length = 1, deviation = 1;
    for (point = 1;;) {
        moe_ep_rng rng = generator(w->seed, FOR_WALK, (uint64_t)layer, (uint64_t)point);
        double z = 0, at;
        int32_t i;
        for (i = 0; i <= e; i++) z = normal_in_doubles(&rng);
        at = deviation * z + (point == high ? at_low : 0.5 * (at_low + at_high));
        if (point == high) at_high = at;
        else if (point < step) low = point, at_low = at;
        else high = point, at_high = at;
        if (point == step) return w->walk * at;
        if (step > high) { /* an increment over as much again */
            low = high, at_low = at_high;
            length = (double)low;
            point = high = 2 * low;
            deviation = sqrt(length);
        } else { /* a bridge: the variance of the middle is a quarter of the length */
            point = low + (high - low) / 2;
            deviation = sqrt((double)(high - low)) / 2;
        }
    }
}

/* Logarithms of the weights, -INFINITY = none; relative to the largest. */
static void logs_in_doubles(const moe_ep_workload *w, int32_t layer, int64_t step, int64_t tokens, double *log_w)
{
    int32_t E = w->num_experts, e, rank[512], D = w->num_devices > 0 ? w->num_devices : 1;
    int64_t period = w->period > 0 ? w->period : 1, n = w->hot_experts > 0 ? w->hot_experts : 1, first = w->hot;
    double X = power_law_range(w, tokens), top = -INFINITY;
    char hot[512] = {0};
    moe_ep_rng rng;
    if (w->copy_layers) layer = 0;
    for (e = 0; e < E; e++) rank[e] = e;
    rng = generator(w->seed, FOR_ORDER, (uint64_t)layer, 0);
    for (e = E - 1; e > 0 && !w->in_order; e--) {
        int32_t i = (int32_t)moe_ep_rng_below(&rng, (uint64_t)e + 1), swap = rank[i];
        rank[i] = rank[e];
        rank[e] = swap;
    }
    if (w->kind == MOE_EP_LOAD_HOT_DEVICE || w->kind == MOE_EP_LOAD_ROTATING) {
        int64_t device = w->kind == MOE_EP_LOAD_ROTATING ? (w->hot + step / period) % D : w->hot;
        first = block_start(E, D, device);
        n = block_start(E, D, device + 1) - first;
        for (e = 0; e < n; e++) hot[first + e] = 1;
    } else
        for (e = 0; e < n; e++) hot[(first + e * (w->hot_stride > 0 ? w->hot_stride : 1)) % E] = 1;
    rng = generator(w->seed, FOR_WEIGHTS, (uint64_t)layer, 0);
    for (e = 0; e < E; e++) {
        switch (w->kind) {
        case MOE_EP_LOAD_ZIPF:
            log_w[e] = -w->alpha * log(rank[e] + 1.0);
            break;
        case MOE_EP_LOAD_POWER_LAW: { /* the inverse of the distribution function */
            double u = (double)(moe_ep_rng_u64(&rng) >> 32) / 4294967296.0, b = 1 - w->alpha;
            log_w[e] = fabs(b) < 1e-9 ? u * log(X) : log((pow(X, b) - 1) * u + 1) / b;
            break;
        }
        case MOE_EP_LOAD_LOGNORMAL:
            log_w[e] = w->sigma * normal_in_doubles(&rng);
            break;
        case MOE_EP_LOAD_RECORDED:
            log_w[e] = log(w->popularity[e]);
            break;
        case MOE_EP_LOAD_BURST:
            if (step % period != period - 1) {
                log_w[e] = 0;
                break;
            } /* fall through */
        case MOE_EP_LOAD_HOT_EXPERT:
        case MOE_EP_LOAD_HOT_DEVICE:
        case MOE_EP_LOAD_ROTATING:
            log_w[e] = log(hot[e] ? w->share / (double)n : (1 - w->share) / (double)(E - n));
            if (n == E) log_w[e] = 0;
            break;
        default:
            log_w[e] = 0;
            break;
        }
    }
    for (e = 1; e < E && w->kind == MOE_EP_LOAD_POWER_LAW && w->in_order; e++) { /* largest first */
        double v = log_w[e];
        int32_t i = e;
        for (; i > 0 && log_w[i - 1] < v; i--) log_w[i] = log_w[i - 1];
        log_w[i] = v;
    }
    for (e = 0; e < E && step > 0 && w->walk > 0; e++) log_w[e] += walk_in_doubles(w, layer, e, step);
    rng = generator(w->seed, FOR_DRIFT, (uint64_t)layer, (uint64_t)step);
    for (e = 0; e < E && step > 0 && w->drift > 0; e++) log_w[e] += w->drift * normal_in_doubles(&rng);
    for (e = 0; e < E; e++) top = fmax(top, log_w[e]);
    for (e = 0; e < E; e++) log_w[e] -= top;
}

static double one_of(uint64_t *s, const double *list, int64_t n) { return list[t_below(s, n)]; }

/* A workload that can be drawn; popularity (512) is filled for RECORDED. */
static moe_ep_workload drawn_workload(uint64_t *s, double *popularity)
{
    static const double alpha[] = {0, 0.3, 0.5, 0.999, 1, 1.01, 1.5, 2, 3}, x_max[] = {0, 0, 1.5, 20, 1000, 1e9};
    static const double sigma[] = {0, 0.1, 1.1, 3}, drift[] = {0, 0.1, 2}, share[] = {0, 0.01, 0.3, 0.5, 0.9, 1};
    static const int32_t most[] = {4, 20, 60, 400};
    moe_ep_workload w;
    int i;
    memset(&w, 0, sizeof w);
    w.kind = (moe_ep_workload_kind)t_below(s, 9);
    w.seed = t_u64(s);
    w.num_experts = 1 + (int32_t)t_below(s, most[t_below(s, 4)]);
    w.top_k = 1 + (int32_t)t_below(s, w.num_experts < 6 ? w.num_experts : 6);
    w.num_devices = (int32_t)t_below(s, w.num_experts < 9 ? w.num_experts + 1 : 10);
    w.alpha = one_of(s, alpha, 9);
    w.x_max = one_of(s, x_max, 6);
    w.sigma = one_of(s, sigma, 4);
    w.drift = one_of(s, drift, 3);
    w.walk = w.num_experts > 60 ? 0 : one_of(s, drift, 3) * 0.1;
    w.share = one_of(s, share, 6);
    w.period = (int32_t)t_below(s, 4);
    w.in_order = (int32_t)t_below(s, 2);
    w.copy_layers = t_below(s, 4) == 0;
    w.with_replacement = t_below(s, 3) == 0;
    w.hot = (int32_t)t_below(s, w.kind == MOE_EP_LOAD_HOT_EXPERT || w.kind == MOE_EP_LOAD_BURST ? w.num_experts
                                : w.num_devices > 0                                             ? w.num_devices
                                                                                                : 1);
    w.hot_experts = (int32_t)t_below(s, w.num_experts < 9 ? w.num_experts + 1 : 10);
    w.hot_stride = (int32_t)t_below(s, w.num_experts / (w.hot_experts > 0 ? w.hot_experts : 1) + 1);
    for (i = 0; i < 512; i++)
        popularity[i] = t_below(s, 5) || i < 6 ? ldexp(1 + t_unit(s), (int)t_below(s, 12) - 6) : 0;
    w.popularity = popularity;
    return w;
}

TEST(popularity_in_doubles)
{
    static const int64_t tokens[] = {0, 1, 2, 7, 60, 5000, 2000000000};
    uint64_t s = t_seed + 3;
    int round;
    for (round = 0; round < 4000; round++) {
        double popularity[512], log_w[512];
        uint64_t got[512];
        moe_ep_workload w = drawn_workload(&s, popularity);
        int64_t T = tokens[t_below(&s, 7)], step = t_below(&s, 4) || w.num_experts > 20 ? t_below(&s, 9)
                                                                                        : t_below(&s, 1 << 20);
        int32_t layer = (int32_t)t_below(&s, 3), e, feasible;
        moe_ep_status status = moe_ep_popularity(&w, layer, step, T, got, NULL);
        if (T > 1000000000) T = 1000000000; /* as far as weights go */
        logs_in_doubles(&w, layer, step, T, log_w);
        for (e = feasible = 0; e < w.num_experts; e++) feasible += log_w[e] > -INFINITY;
        if (w.kind == MOE_EP_LOAD_BURST) /* whatever the step */
            feasible = w.hot_experts == w.num_experts || w.num_experts == 1
                           ? w.num_experts
                           : (w.share > 0) * (w.hot_experts > 0 ? w.hot_experts : 1) +
                                 (w.share < 1) * (w.num_experts - (w.hot_experts > 0 ? w.hot_experts : 1));
        CHECK_I64(status, feasible >= (w.with_replacement ? 1 : w.top_k) ? MOE_EP_OK : MOE_EP_ERR_INFEASIBLE);
        for (e = 0; e < w.num_experts && status == MOE_EP_OK; e++) {
            double want = 549755813888.0 * exp(log_w[e]), b = fabs(1 - w.alpha); /* 2^39 is the largest */
            double slack = 2e-7 + 1e-5 * (w.sigma + w.drift) + 1e-8 * fabs(log_w[e]); /* a normal's 31 bits */
            slack += 1e-5 * w.walk * sqrt((double)step);
            if (w.kind == MOE_EP_LOAD_POWER_LAW && b > 1e-9) /* 1 / b is known to 24 bits, u to 32 */
                slack += 6e-7 / b + 1e-9 / b * pow(power_law_range(&w, T), b);
            if (!(log_w[e] > -INFINITY)) CHECK(got[e] == 0);
            else if (slack < 0.05) CHECK_NEAR((double)got[e], fmax(want, 1), slack, 1.5);
            if (log_w[e] > -INFINITY) CHECK(got[e] >= 1);
        }
        if (t_failed_here)
            printf("    kind %d E %d alpha %g x_max %g sigma %g drift %g walk %g step %d T %d\n", (int)w.kind,
                   w.num_experts, w.alpha, w.x_max, w.sigma, w.drift, w.walk, (int)step, (int)T);
        STOP_IF_FAILED("round %d", round);
    }
}

/* The upper 64 bits of a product, digit by digit. */
static uint64_t product_high(uint64_t a, uint64_t b)
{
    uint64_t digit[8] = {0}, carry;
    int i, j;
    for (i = 0; i < 4; i++)
        for (carry = 0, j = 0; j < 4 || carry; j++) {
            uint64_t v = digit[i + j] + carry + (j < 4 ? (a >> 16 * i & 0xffff) * (b >> 16 * j & 0xffff) : 0);
            digit[i + j] = v & 0xffff;
            carry = v >> 16;
        }
    return digit[4] | digit[5] << 16 | digit[6] << 32 | digit[7] << 48;
}

/* Tokens one number at a time: what is drawn again is drawn again, the 32nd time among those that are left. */
TEST(draws_one_by_one)
{
    uint64_t s = t_seed + 4;
    int round;
    for (round = 0; round < 600; round++) {
        double popularity[512];
        uint64_t weight[512], left, v;
        int32_t ids[40 * 6], *id = ids, e, j, k, t, layer = (int32_t)t_below(&s, 3);
        int64_t step = t_below(&s, 5);
        moe_ep_workload w = drawn_workload(&s, popularity);
        moe_ep_rng rng = generator(w.seed, FOR_IDS, w.copy_layers ? 0 : (uint64_t)layer, (uint64_t)step);
        if (round % 3 == 0) { /* nearly all on one expert */
            w.kind = MOE_EP_LOAD_RECORDED;
            for (e = 0; e < 512; e++) popularity[e] = t_below(&s, 8) ? 1e-9 * (1 + t_unit(&s)) : 0;
            for (e = 0; e < 6; e++) popularity[e] = e == 3 ? 1 : 1e-12;
            w.num_experts = w.num_experts < 6 ? 6 : w.num_experts;
        }
        if (moe_ep_popularity(&w, layer, step, 40, weight, NULL) != MOE_EP_OK) continue;
        CHECK(moe_ep_simulate(&w, layer, step, 40, ids, NULL, NULL) == MOE_EP_OK);
        for (t = 0; t < 40; t++, id += w.top_k)
            for (j = 0; j < w.top_k; j++) {
                int tries, taken = 1;
                for (tries = 0; taken && tries < 32; tries++) {
                    for (left = 0, e = 0; e < w.num_experts; e++) left += weight[e];
                    v = product_high(moe_ep_rng_u64(&rng), left);
                    for (e = 0; v >= weight[e]; e++) v -= weight[e];
                    for (taken = 0, k = 0; k < j && !w.with_replacement; k++) taken |= id[k] == e;
                }
                if (taken) {
                    for (k = 0; k < j; k++) left -= weight[id[k]];
                    v = moe_ep_rng_below(&rng, left);
                    for (e = 0; e < w.num_experts; e++) {
                        for (taken = 0, k = 0; k < j; k++) taken |= id[k] == e;
                        if (!taken && v < weight[e]) break;
                        if (!taken) v -= weight[e];
                    }
                }
                CHECK_I64(id[j], e);
                STOP_IF_FAILED("round %d", round);
            }
    }
}

/* Dealt, not drawn. */
TEST(dealt_tokens_by_hand)
{
    uint64_t s = t_seed + 5;
    int round;
    for (round = 0; round < 1500; round++) {
        moe_ep_workload w;
        int32_t ids[60 * 40], order[60], n = 0, place, t, j;
        int64_t T = t_below(&s, 40), E, D, d;
        memset(&w, 0, sizeof w);
        w.num_experts = 1 + (int32_t)t_below(&s, 60);
        w.with_replacement = (int32_t)t_below(&s, 2);
        w.top_k = 1 + (int32_t)t_below(&s, w.with_replacement ? 60 : w.num_experts);
        w.num_devices = (int32_t)t_below(&s, w.num_experts + 1);
        E = w.num_experts, D = w.num_devices > 0 ? w.num_devices : 1;
        for (place = 0; place < E; place++) /* the first of every block, the second of every block, .. */
            for (d = 0; d < D; d++)
                if (block_start(E, D, d) + place < block_start(E, D, d + 1))
                    order[n++] = (int32_t)block_start(E, D, d) + place;
        CHECK_I64(n, E);
        w.kind = MOE_EP_LOAD_BALANCED;
        CHECK(moe_ep_simulate(&w, 0, 0, T, ids, NULL, NULL) == MOE_EP_OK);
        for (t = 0; t < T * w.top_k; t++) CHECK_I64(ids[t], order[t % E]);
        w.kind = MOE_EP_LOAD_ROUND_ROBIN;
        CHECK(moe_ep_simulate(&w, 0, 0, T, ids, NULL, NULL) == MOE_EP_OK);
        for (t = 0; t < T; t++)
            for (j = 0; j < w.top_k; j++) CHECK_I64(ids[t * w.top_k + j], (t + j) % E);
        w.kind = MOE_EP_LOAD_STUCK_ROUND_ROBIN;
        CHECK(moe_ep_simulate(&w, 0, 0, T, ids, NULL, NULL) == MOE_EP_OK);
        for (t = 0; t < T; t++)
            for (j = 0; j < w.top_k; j++) CHECK_I64(ids[t * w.top_k + j], j % E);
        STOP_IF_FAILED("round %d", round);
    }
}

/* The hot device has its share of all rows, the others the rest, experts of a device as even as can be. */
TEST(targets_by_hand)
{
    uint64_t s = t_seed + 6;
    int round, reached = 0;
    for (round = 0; round < 3000; round++) {
        moe_ep_workload w;
        moe_ep_error err;
        int32_t ids[60 * 40], e;
        int64_t T = t_below(&s, 40), E, D, d, total, hot, most, rest, place = 0, counts[60] = {0}, want[60];
        int feasible = 1;
        double exact;
        memset(&w, 0, sizeof w);
        w.kind = MOE_EP_LOAD_TARGET;
        w.num_experts = 1 + (int32_t)t_below(&s, 60);
        w.top_k = 1 + (int32_t)t_below(&s, w.num_experts);
        w.num_devices = (int32_t)t_below(&s, w.num_experts < 8 ? w.num_experts + 1 : 9);
        w.hot = (int32_t)t_below(&s, 20);
        w.target = t_below(&s, 8) ? 0.05 + 0.95 * t_unit(&s) : 1;
        w.seed = t_u64(&s);
        E = w.num_experts, D = w.num_devices > 0 ? w.num_devices : 1, total = T * w.top_k, hot = w.hot % D;
        exact = (double)total / ((double)D * w.target);
        if (fabs(exact - floor(exact + 0.5)) < 1e-5) exact = floor(exact + 0.5); /* a whole number, rounded or not */
        most = (int64_t)floor(exact + 1e-9);
        if (most < (total + D - 1) / D) most = (total + D - 1) / D;
        if (most > total || D == 1) most = total;
        if (D * w.target < 1 - 1e-6) feasible = 0;
        rest = total - most;
        for (d = 0; d < D; d++) {
            int64_t mine = most, a = block_start(E, D, d), b = block_start(E, D, d + 1), i;
            if (d != hot) mine = rest / (D - 1) + (place++ < rest % (D - 1));
            for (i = a; i < b; i++) {
                want[i] = mine / (b - a) + (i - a < mine % (b - a));
                feasible = feasible && want[i] <= T;
            }
        }
        CHECK_I64(moe_ep_simulate(&w, 0, 0, T, ids, NULL, &err), feasible ? MOE_EP_OK : MOE_EP_ERR_INFEASIBLE);
        for (e = 0; feasible && e < total; e++) counts[ids[e]]++;
        for (e = 0; feasible && e < E; e++) CHECK(llabs(counts[e] - want[e]) <= (exact > floor(exact) ? 0 : 1));
        for (e = 0; feasible && e < total; e++) {
            int32_t i;
            for (i = e - e % w.top_k; i < e; i++) CHECK(ids[i] != ids[e]);
        }
        reached += feasible && total > 0;
        if (t_failed_here)
            printf("    E %d K %d D %d T %d target %.17g hot %d: %g\n", (int)E, w.top_k, (int)D, (int)T, w.target,
                   (int)hot, exact);
        STOP_IF_FAILED("round %d", round);
    }
    CHECK(reached > 500);
}

/* Which workloads there can be: every limit from both sides. */
TEST(limits_of_workloads)
{
    moe_ep_workload w = workload(MOE_EP_LOAD_UNIFORM);
    moe_ep_error err;
    int32_t ids[64];
    int32_t E, D, K, hot;
    uint64_t weights[64], *many = (uint64_t *)t_alloc(sizeof *many * (1 << 20));
    double zero[64] = {0}, one[64] = {0};
    one[5] = 1e-300;
#define ALLOWED(change)                                                                                                \
    do {                                                                                                               \
        w = workload(MOE_EP_LOAD_UNIFORM);                                                                             \
        change;                                                                                                        \
        CHECK_I64(moe_ep_popularity(&w, 0, 0, 1, weights, &err), MOE_EP_OK);                                           \
    } while (0)
#define REFUSED(change, status, name)                                                                                  \
    do {                                                                                                               \
        w = workload(MOE_EP_LOAD_UNIFORM);                                                                             \
        change;                                                                                                        \
        CHECK_I64(moe_ep_popularity(&w, 0, 0, 1, weights, &err), status);                                              \
        CHECK_STR(err.arg, name);                                                                                      \
    } while (0)
    ALLOWED(w.share = 1);
    REFUSED(w.share = nextafter(1, 2), MOE_EP_ERR_RANGE, "share");
    ALLOWED(w.alpha = 64);
    REFUSED(w.alpha = nextafter(64, 65), MOE_EP_ERR_RANGE, "alpha");
    ALLOWED(w.x_max = 1e9);
    ALLOWED(w.x_max = nextafter(1, 2));
    REFUSED(w.x_max = 1, MOE_EP_ERR_RANGE, "x_max");
    REFUSED(w.x_max = nextafter(1e9, 2e9), MOE_EP_ERR_RANGE, "x_max");
    ALLOWED(w.sigma = 16);
    REFUSED(w.sigma = nextafter(16, 17), MOE_EP_ERR_RANGE, "sigma");
    ALLOWED(w.drift = 16);
    REFUSED(w.drift = nextafter(16, 17), MOE_EP_ERR_RANGE, "drift");
    ALLOWED(w.walk = 16);
    REFUSED(w.walk = nextafter(16, 17), MOE_EP_ERR_RANGE, "walk");
    w = workload(MOE_EP_LOAD_LOGNORMAL); /* as far as a walk goes: weights, if far apart ones */
    w.sigma = w.drift = 16;
    w.walk = 16;
    CHECK_I64(moe_ep_popularity(&w, 0, (int64_t)1 << 32, 1, weights, &err), MOE_EP_OK);
    for (E = D = 0; E < 64; E++) D += weights[E] == 549755813888u;
    CHECK_I64(D, 1);
    CHECK_I64(moe_ep_popularity(&w, 0, ((int64_t)1 << 32) - 1, 1, weights, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_popularity(&w, 0, ((int64_t)1 << 32) + 1, 1, weights, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "step");
    w.walk = 0;
    CHECK_I64(moe_ep_popularity(&w, 0, INT64_MAX, 1, weights, &err), MOE_EP_OK);
    ALLOWED(w.target = 1);
    REFUSED(w.target = nextafter(1, 2), MOE_EP_ERR_RANGE, "target");
    ALLOWED(w.num_devices = 64);
    REFUSED(w.num_devices = 65, MOE_EP_ERR_SIZE, "num_devices");
    ALLOWED(w.period = 0);
    REFUSED(w.period = -1, MOE_EP_ERR_SIZE, "period");
    ALLOWED(w.top_k = 64);
    REFUSED(w.top_k = 65, MOE_EP_ERR_TOP_K, "top_k");
    ALLOWED((w.top_k = 65, w.with_replacement = 1));
    REFUSED(w.top_k = 0, MOE_EP_ERR_SIZE, "top_k");
    ALLOWED((w.num_experts = w.num_devices = w.top_k = 1));
    REFUSED(w.num_experts = 0, MOE_EP_ERR_SIZE, "num_experts");
    ALLOWED((w.kind = MOE_EP_LOAD_HOT_EXPERT, w.hot = 63));
    REFUSED((w.kind = MOE_EP_LOAD_HOT_EXPERT, w.hot = 64), MOE_EP_ERR_EXPERT_ID, "hot");
    REFUSED((w.kind = MOE_EP_LOAD_BURST, w.hot = 64), MOE_EP_ERR_EXPERT_ID, "hot");
    ALLOWED((w.kind = MOE_EP_LOAD_HOT_EXPERT, w.hot = 63, w.hot_experts = 64));
    REFUSED((w.kind = MOE_EP_LOAD_HOT_EXPERT, w.hot_experts = 65), MOE_EP_ERR_SIZE, "hot_experts");
    REFUSED((w.kind = MOE_EP_LOAD_BURST, w.hot_experts = 65), MOE_EP_ERR_SIZE, "hot_experts");
    ALLOWED((w.kind = MOE_EP_LOAD_HOT_DEVICE, w.hot_experts = 65, w.hot_stride = 65)); /* not of experts */
    ALLOWED((w.kind = MOE_EP_LOAD_BURST, w.hot_experts = 4, w.hot_stride = 16));
    REFUSED((w.kind = MOE_EP_LOAD_BURST, w.hot_experts = 4, w.hot_stride = 17), MOE_EP_ERR_RANGE, "hot_stride");
    REFUSED((w.kind = MOE_EP_LOAD_HOT_EXPERT, w.hot_experts = 2, w.hot_stride = INT32_MAX), MOE_EP_ERR_RANGE,
            "hot_stride");
    REFUSED(w.hot_experts = -1, MOE_EP_ERR_SIZE, "hot_experts");
    REFUSED(w.hot_stride = -1, MOE_EP_ERR_SIZE, "hot_stride");
    ALLOWED((w.kind = MOE_EP_LOAD_ROTATING, w.hot = 7));
    REFUSED((w.kind = MOE_EP_LOAD_ROTATING, w.hot = 8), MOE_EP_ERR_DEVICE_ID, "hot");
    REFUSED((w.kind = MOE_EP_LOAD_HOT_DEVICE, w.hot = -1), MOE_EP_ERR_DEVICE_ID, "hot");
    ALLOWED((w.kind = MOE_EP_LOAD_RECORDED, w.popularity = one, w.top_k = 1));
    CHECK(weights[5] == 549755813888u && weights[4] == 0);
    ALLOWED((w.kind = MOE_EP_LOAD_RECORDED, w.popularity = one, w.top_k = 6, w.with_replacement = 1));
    REFUSED((w.kind = MOE_EP_LOAD_RECORDED, w.popularity = zero, w.with_replacement = 1), MOE_EP_ERR_INFEASIBLE,
            "popularity");
    REFUSED((w.kind = MOE_EP_LOAD_RECORDED, w.popularity = one, w.top_k = 2), MOE_EP_ERR_INFEASIBLE, "popularity");
#undef ALLOWED
#undef REFUSED
    for (E = 1; E < 9; E++) /* all on one device: its block must hold K experts */
        for (D = 1; D <= E; D++)
            for (hot = 0; hot < D; hot++)
                for (K = 1; K <= E; K++) {
                    int64_t held = block_start(E, D, hot + 1) - block_start(E, D, hot);
                    w.kind = K % 2 ? MOE_EP_LOAD_HOT_DEVICE : MOE_EP_LOAD_ROTATING;
                    w.num_experts = E, w.num_devices = D, w.hot = hot, w.top_k = K, w.share = 1;
                    CHECK_I64(moe_ep_popularity(&w, 0, 0, 1, weights, &err),
                              held >= K ? MOE_EP_OK : MOE_EP_ERR_INFEASIBLE);
                }
    for (K = 0; K < 4; K++) { /* shares so close to all or nothing that the rest has no weight */
        w = workload(K % 2 ? MOE_EP_LOAD_HOT_EXPERT : MOE_EP_LOAD_HOT_DEVICE);
        w.share = K < 2 ? 1 - 1e-10 : 1e-10;
        w.num_experts = 4096, w.num_devices = K < 2 ? 4096 : 2, w.hot = 1;
        w.top_k = K % 2 || K < 2 ? 2 : 2049;
        CHECK_I64(moe_ep_popularity(&w, 0, 0, 0, many, &err), K == 3 ? MOE_EP_OK : MOE_EP_ERR_INFEASIBLE);
    }
    w = workload(MOE_EP_LOAD_UNIFORM);
    w.num_experts = 1 << 20;
    CHECK_I64(moe_ep_popularity(&w, 0, 0, 0, many, &err), MOE_EP_OK);
    w.num_experts++;
    CHECK_I64(moe_ep_popularity(&w, 0, 0, 0, many, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_experts");
    free(many);
    w = workload(MOE_EP_LOAD_UNIFORM);
    w.num_experts = w.num_devices = w.top_k = 1;
    CHECK_I64(moe_ep_simulate(&w, 0, 0, 1, ids, NULL, &err), MOE_EP_OK);
    CHECK_I64(ids[0], 0);
    CHECK_I64(moe_ep_simulate(&w, 0, 0, INT64_MAX / 4 + 1, ids, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "num_tokens");
}

/* Ragged sources: lognormal weights, the largest 2^22 and one more for each, shares of what is left rounded down. */
TEST(ragged_sources_in_doubles)
{
    uint64_t s = t_seed + 7;
    int round, far = 0;
    for (round = 0; round < 2000; round++) {
        static const double spread[] = {0, 0.2, 1, 4, 16};
        int64_t n[9], T = t_below(&s, 2) ? t_below(&s, 1000) : (int64_t)4194306 * 1000, left = T;
        int32_t D = 1 + (int32_t)t_below(&s, t_below(&s, 2) ? 2 : 9), d;
        double wide = one_of(&s, spread, 5), z[9], top = -INFINITY, sum = 0, slack = 1.5;
        uint64_t seed = t_u64(&s);
        moe_ep_rng rng = generator(seed, FOR_SOURCES, 0, 0);
        CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_RAGGED, seed, T, D, wide, 0, n, NULL) == MOE_EP_OK);
        for (d = 0; d < D; d++) {
            z[d] = wide * normal_in_doubles(&rng);
            top = fmax(top, z[d]);
        }
        for (d = 0; d < D; d++) {
            z[d] = floor(4194304 * exp(z[d] - top)) + 1;
            sum += z[d];
        }
        for (d = 0; d < D; d++) { /* a weight off by one moves that many tokens */
            double share = (double)left * z[d] / sum;
            if (!(wide > 0)) CHECK_I64(n[d], left / (D - d)); /* all alike */
            CHECK_NEAR(n[d], share, 0, slack + (double)T / 4194304 * (z[d] > 1.5));
            left -= n[d];
            sum -= z[d];
        }
        CHECK_I64(left, 0);
        if (D == 2 && T > 1000 && (z[0] < 1.5 || z[1] < 1.5)) { /* 2^22 + 1 against 1 */
            CHECK_I64(n[z[0] < 1.5 ? 0 : 1], 1000);
            far++;
        }
        STOP_IF_FAILED("round %d", round);
    }
    CHECK(far > 5);
    for (round = 0; round < 500; round++) { /* even, and with one that has none */
        int64_t n[9], T = t_below(&s, 60), rest;
        int32_t D = 1 + (int32_t)t_below(&s, 9), empty = (int32_t)t_below(&s, D), d, place = 0;
        CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 0, T, D, 0, 0, n, NULL) == MOE_EP_OK);
        for (d = 0; d < D; d++) CHECK_I64(n[d], T / D + (d < T % D));
        if (D == 1 && T > 0) continue;
        CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 0, T, D, 0, empty, n, NULL) == MOE_EP_OK);
        rest = D > 1 ? D - 1 : 1;
        for (d = 0; d < D; d++) CHECK_I64(n[d], d == empty ? 0 : T / rest + (place++ < T % rest));
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(llmservingsim_by_hand)
{
    uint64_t s = t_seed + 8;
    int round;
    for (round = 0; round < 3000; round++) {
        int64_t T = t_below(&s, 300);
        int32_t E = 1 + (int32_t)t_below(&s, 64), K = 1 + (int32_t)t_below(&s, E < 9 ? E : 9);
        int32_t ep = 1 + (int32_t)t_below(&s, 9);
        double pairs = (double)(T * K) / ep, local = (double)T * (1 - pow((ep - 1.0) / ep, K));
        moe_ep_balanced_result r;
        moe_ep_expect_desc d;
        moe_ep_expect_result x;
        memset(&d, 0, sizeof d);
        d.tokens = T;
        d.num_experts = E;
        d.top_k = K;
        d.num_devices = ep;
        CHECK(moe_ep_expect(&d, &x, NULL) == MOE_EP_OK);
        CHECK(moe_ep_llmservingsim_balanced(T, E, K, ep, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.pairs, pairs, 1e-14, 0);
        if (fabs(local - floor(local) - 0.5) > 1e-9) CHECK_I64(r.local_tokens, rint(local)); /* else below */
        CHECK_I64(r.activated, fmin(rint(pairs), floor((double)E / ep))); /* rint: half to even */
        CHECK_NEAR(r.exact_tokens, x.device_tokens, 0, 0);
        CHECK_NEAR(r.exact_activated, x.active_device, 0, 0);
        STOP_IF_FAILED("round %d", round);
    }
    for (round = 1; round < 40; round += 2) { /* halves: T / 2 tokens on each of two devices */
        moe_ep_balanced_result r;
        CHECK(moe_ep_llmservingsim_balanced(round, 8, 1, 2, &r, NULL) == MOE_EP_OK);
        CHECK_I64(r.local_tokens, rint(round * 0.5));
    }
    {
        moe_ep_balanced_result r;
        moe_ep_error err;
        CHECK(moe_ep_llmservingsim_balanced(INT64_MAX / 4 / 3, 8, 3, 2, &r, NULL) == MOE_EP_OK);
        CHECK(moe_ep_llmservingsim_balanced(INT64_MAX / 4 / 3 + 1, 8, 3, 2, &r, &err) == MOE_EP_ERR_OVERFLOW);
        CHECK_STR(err.arg, "T");
        CHECK(moe_ep_llmservingsim_balanced(0, 1, 1, 1, &r, NULL) == MOE_EP_OK);
        CHECK(r.local_tokens == 0 && r.activated == 0);
    }
}

T_MAIN
