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

TEST(kinds_do_what_they_say)
{
    int32_t ids[6 * 1000];
    int64_t dev[8], load[64];
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
        CHECK_I64(moe_ep_popularity(&z, 0, 0, 0, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_popularity(&z, 0, 0, -1, weights, &err), MOE_EP_ERR_SIZE);
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

T_MAIN
