/* tests/test_balance.c - section 3: imbalance metrics and chance.  SPDX-License-Identifier: MIT */
#include <time.h>

#include "t.h"
#include "vec.h"
#include "moe_ep.h"

/* Working memory full of infinities, also before it: what is read before it is written, or beside it, shows. */
static moe_ep_scratch dirty_scratch(void)
{
    static double memory[128];
    size_t i;
    for (i = 0; i < sizeof memory / sizeof memory[0]; i++) memory[i] = INFINITY;
    return moe_ep_scratch_fixed(memory + 1, sizeof memory - sizeof memory[0]);
}

static moe_ep_balance_result balance(const int64_t *loads, int32_t n)
{
    moe_ep_scratch scratch = dirty_scratch();
    moe_ep_balance_result r;
    CHECK_I64(moe_ep_balance(loads, n, &r, &scratch, NULL), MOE_EP_OK);
    return r;
}

TEST(imbalance_examples)
{
    static const int64_t hot[] = {960, 92, 92, 92, 91, 91, 91, 91}, zero[] = {0, 0}, one[] = {7}, bad[] = {3, -1};
    static const double real[] = {1.5, 0.5}, nan_[] = {1, NAN}, inf_[] = {INFINITY, 1}, big[] = {1e308, 1e308};
    moe_ep_error err;
    CHECK_NEAR(moe_ep_imbalance(hot, 8, NULL), 4.8, 1e-15, 0);
    CHECK_NEAR(moe_ep_imbalance(zero, 2, &err), 1, 0, 0);
    CHECK_NEAR(moe_ep_imbalance(one, 1, NULL), 1, 0, 0);
    CHECK_NEAR(moe_ep_imbalance_d(real, 2, NULL), 1.5, 0, 0);
    CHECK_NEAR(moe_ep_imbalance(bad, 2, &err), MOE_EP_ERR_NEGATIVE, 0, 0);
    CHECK_I64(err.index, 1);
    CHECK_NEAR(moe_ep_imbalance(NULL, 2, &err), MOE_EP_ERR_NULL, 0, 0);
    CHECK_STR(err.arg, "loads");
    CHECK_NEAR(moe_ep_imbalance(one, 0, &err), MOE_EP_ERR_SIZE, 0, 0);
    CHECK_NEAR(moe_ep_imbalance_d(nan_, 2, &err), MOE_EP_ERR_NAN, 0, 0);
    CHECK_I64(err.index, 1);
    CHECK_NEAR(moe_ep_imbalance_d(inf_, 2, &err), MOE_EP_ERR_NAN, 0, 0);
    CHECK_NEAR(moe_ep_imbalance_d(big, 2, &err), MOE_EP_ERR_OVERFLOW, 0, 0);
    {
        static const int64_t huge[] = {INT64_MAX, 1};
        double to[1];
        static const int64_t three[] = {3};
        CHECK_NEAR(moe_ep_imbalance(huge, 2, &err), MOE_EP_ERR_OVERFLOW, 0, 0);
        CHECK_I64(moe_ep_loads_to_double(three, 1, to, NULL), MOE_EP_OK);
        CHECK_NEAR(to[0], 3, 0, 0);
        CHECK_I64(moe_ep_loads_to_double(NULL, 1, to, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_loads_to_double(three, -1, to, &err), MOE_EP_ERR_SIZE);
    }
}

/* Figures of tests/vectors/seed/metric_definitions.json. */
TEST(metric_definitions)
{
    static const struct {
        int64_t loads[8];
        int32_t n;
        double max_over_mean, balancedness, cv, gini, jain, entropy_norm, max_over_min, aux;
    } row[] = {
        {
            {
                1000, 800, 600, 500, 300, 200, 100, 50}, 8, 2.253521127, 0.44375, 0.720240432, 0.406690141,
                    0.658437827, 0.865938393, 20, 1.51874628},
        {
            {
                1800, 1100, 500, 150}, 4, 2.028169014, 0.493055556, 0.706334869, 0.39084507, 0.667151932,
                    0.80586677, 12, 1.498908947},
        {
            {
                1000, 1100, 900, 550}, 4, 1.23943662, 0.806818182, 0.233565126, 0.123239437, 0.948269375,
                    0.978687255, 2, 1.054552668},
        {
            {
                960, 92, 92, 92, 91, 91, 91, 91}, 8, 4.8, 0.208333333, 1.436266862, 0.4759375, 0.326491966,
                    0.697961371, 10.549450549, 3.0628625},
        {{3171, 2863, 5280, 6724, 3906, 2757, 2758, 5309}, 8, 1.6416015625, 1 / 1.6416015625, -1, -1, -1, -1, -1, -1},
        {{6034, 12004, 6663, 8067}, 4, 1.46533203125, 1 / 1.46533203125, -1, -1, -1, -1, -1, -1},
    };
    size_t i;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        moe_ep_balance_result r = balance(row[i].loads, row[i].n);
        CHECK_NEAR(r.imbalance, row[i].max_over_mean, 2e-9, 0);
        CHECK_NEAR(r.balancedness, row[i].balancedness, 2e-9, 0);
        CHECK_NEAR(r.maxvio, row[i].max_over_mean - 1, 2e-8, 0);
        if (row[i].cv < 0) continue;
        CHECK_NEAR(r.cv_population, row[i].cv, 2e-9, 0);
        CHECK_NEAR(r.gini, row[i].gini, 0, 1e-9);
        CHECK_NEAR(r.jain, row[i].jain, 2e-9, 0);
        CHECK_NEAR(r.entropy_norm, row[i].entropy_norm, 2e-9, 0);
        CHECK_NEAR(r.max_over_min, row[i].max_over_min, 2e-9, 0);
        CHECK_NEAR(r.hhi * row[i].n, row[i].aux, 2e-9, 0);
    }
}

TEST(balance_edges)
{
    static const int64_t zero[4] = {0, 0, 0, 0}, one[1] = {5}, seed[4] = {100, 28, 0, 0};
    static const double tiny[3] = {5e-324, 0, 0}, wide[2] = {1e300, 1e-300};
    moe_ep_balance_result r = balance(zero, 4), d;
    int64_t buffer[64];
    moe_ep_scratch s;
    moe_ep_error err;
    CHECK_I64(r.zero_load, 1);
    CHECK_NEAR(r.imbalance, 1, 0, 0);
    CHECK_NEAR(r.balancedness, 1, 0, 0);
    CHECK_NEAR(r.efficiency, 1, 0, 0);
    CHECK_NEAR(r.sglang_utilization, 1, 0, 0);
    CHECK_NEAR(r.entropy_norm, 1, 0, 0);
    CHECK_NEAR(r.gini + r.cv_population + r.cv_sample + r.maxvio + r.minvio + r.kl_from_uniform_nats, 0, 0, 0);
    CHECK_NEAR(r.idle_fraction, 1, 0, 0);
    CHECK_NEAR(r.effective_experts, 4, 0, 0);
    CHECK_NEAR(r.jain, 1, 0, 0);
    CHECK_NEAR(r.hhi, 0.25, 0, 0);
    CHECK_NEAR(r.entropy_nats, log(4.0), 1e-15, 0);
    CHECK_NEAR(r.perplexity, 4, 0, 0);
    CHECK_NEAR(r.p50 + r.p95 + r.p99 + r.max + r.min + r.max_over_min + r.max_minus_mean + r.step_time, 0, 0, 0);
    CHECK_NEAR(r.step_inflation, 1, 0, 0);
    r = balance(one, 1);
    CHECK_I64(r.zero_load, 0);
    CHECK_NEAR(r.imbalance, 1, 0, 0);
    CHECK_NEAR(r.entropy_norm, 1, 0, 0);
    CHECK_NEAR(r.cv_sample, 0, 0, 0);
    CHECK_NEAR(r.gini, 0, 0, 0);
    CHECK_NEAR(r.p99, 5, 0, 0);
    r = balance(seed, 4);
    CHECK_NEAR(r.imbalance, 3.125, 0, 0);
    CHECK_NEAR(r.gini, 0.640625, 1e-15, 0);
    CHECK_NEAR(r.effective_experts, 1.519, 0, 5e-4);
    CHECK_NEAR(r.idle_fraction, 0.5, 0, 0);
    CHECK_NEAR(r.max_over_min, 0, 0, 0);
    {
        double apart[2] = {1, 5e-324}; /* the ratio is beyond a double */
        CHECK_I64(moe_ep_balance_d(apart, 2, &r, NULL, NULL), MOE_EP_OK);
        if (t_subnormals()) CHECK(isfinite(r.max_over_min) && r.max_over_min > 1e308);
    }
    CHECK_I64(moe_ep_balance_d(tiny, 3, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.imbalance >= 1 && r.imbalance <= 3 && r.cv_population >= 0 && r.entropy_norm >= 0);
    CHECK_I64(moe_ep_balance_d(wide, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r.imbalance, 2, 1e-12, 0);
    CHECK_NEAR(r.cv_population, 1, 1e-12, 0);
    memset(&d, 0x11, sizeof d);
    r = d;
    CHECK_I64(moe_ep_balance(seed, 0, &d, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_balance(NULL, 4, &d, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_balance(seed, 4, NULL, NULL, &err), MOE_EP_ERR_NULL);
    s = moe_ep_scratch_fixed(buffer, 0);
    CHECK_I64(moe_ep_balance(seed, 4, &d, &s, &err), MOE_EP_ERR_SCRATCH);
    s = moe_ep_scratch_fixed(buffer, s.need - 1);
    CHECK_I64(moe_ep_balance(seed, 4, &d, &s, &err), MOE_EP_ERR_SCRATCH);
    CHECK(memcmp(&d, &r, sizeof d) == 0);
    s = moe_ep_scratch_fixed(buffer, s.need);
    CHECK_I64(moe_ep_balance(seed, 4, &d, &s, &err), MOE_EP_OK);
}

/* Invariances and a second way to every metric on random vectors. */
TEST(balance_random)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < (t_slow() > 1 ? 20000 : 100000); round++) {
        int32_t n = (int32_t)(1 + t_below(&s, round % 8 ? 12 : 40)), i, j;
        int64_t loads[40], scaled[40], mixed[40];
        double real[40], gini = 0, sum = 0, square = 0, max = 0, above = 0;
        moe_ep_balance_result r, q;
        for (i = 0; i < n; i++) {
            loads[i] = t_below(&s, 3) ? t_below(&s, 1 + t_below(&s, 1000)) : 0;
            scaled[i] = loads[i] * 7;
            mixed[i] = loads[i];
            real[i] = (double)loads[i];
        }
        for (i = n - 1; i > 0; i--) {
            int64_t other = t_below(&s, i + 1), t = mixed[other];
            mixed[other] = mixed[i];
            mixed[i] = t;
        }
        r = balance(loads, n);
        for (i = 0; i < n; i++) {
            sum += real[i];
            square += real[i] * real[i];
            if (real[i] > max) max = real[i];
            for (j = 0; j < n; j++) gini += fabs(real[i] - real[j]);
        }
        for (i = 0; i < n; i++) above += real[i] > sum / n ? real[i] - sum / n : 0;
        if (sum > 0) {
            CHECK_NEAR(r.gini, gini / (2.0 * n * sum), 1e-12, 1e-13);
            CHECK_NEAR(r.hhi, square / (sum * sum), 1e-12, 0);
            CHECK_NEAR(r.std, sqrt(fabs(square / n - sum / n * (sum / n))), 1e-6, 1e-6);
            CHECK_NEAR(r.imbalance, max * n / sum, 1e-14, 0);
            CHECK(r.imbalance >= 1 && r.imbalance <= n * (1 + 1e-15));
            CHECK(r.effective_experts <= r.active * (1 + 1e-12) && r.perplexity <= r.active * (1 + 1e-12));
            CHECK(r.jain >= 1.0 / n - 1e-12 && r.jain <= 1 + 1e-12);
            CHECK_NEAR(r.efficiency * r.imbalance, 1, 1e-14, 0);
            CHECK_NEAR(r.entropy_nats + r.kl_from_uniform_nats, log(n), 1e-12, 1e-12);
            CHECK_NEAR(r.entropy_norm, n > 1 ? r.entropy_nats / log(n) : 1, 1e-14, 0);
        }
        q = balance(mixed, n);
        CHECK_NEAR(q.gini, r.gini, 1e-12, 1e-14);
        CHECK_NEAR(q.entropy_nats, r.entropy_nats, 1e-12, 1e-12);
        CHECK_NEAR(q.imbalance, r.imbalance, 0, 0);
        CHECK_NEAR(q.p95, r.p95, 0, 0);
        q = balance(scaled, n);
        CHECK_NEAR(q.cv_sample, r.cv_sample, 1e-12, 0);
        CHECK_NEAR(q.jain, r.jain, 1e-12, 0);
        CHECK_I64(moe_ep_balance_d(real, n, &q, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(&q, &r, sizeof q) == 0);
        CHECK_NEAR(q.gini, r.gini, 1e-12, 1e-14);
        CHECK_NEAR(q.imbalance, r.imbalance, 1e-14, 0);
        CHECK_I64(r.argmax, q.argmax);
        for (i = 0; i < r.argmax; i++) CHECK(real[i] < max);
        for (i = 0; i < n; i++) CHECK(i < r.argmin ? real[i] > r.min : real[i] >= r.min);
        CHECK_NEAR(real[r.argmin], r.min, 0, 0);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(convert_families)
{
    moe_ep_error err;
    double x;
    CHECK_NEAR(moe_ep_convert(0.4, MOE_EP_FAMILY_BALANCEDNESS, MOE_EP_FAMILY_IMBALANCE, 4, NULL), 2.5, 1e-15, 0);
    CHECK_NEAR(moe_ep_convert(0.4, MOE_EP_FAMILY_BALANCEDNESS, MOE_EP_FAMILY_EXCESS, 4, NULL), 1.5, 1e-15, 0);
    for (x = 1; x < 9; x += 0.37) {
        double excess = moe_ep_convert(x, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_EXCESS, 0, NULL);
        double eff = moe_ep_convert(excess, MOE_EP_FAMILY_EXCESS, MOE_EP_FAMILY_BALANCEDNESS, 9, NULL);
        CHECK_NEAR(moe_ep_convert(eff, MOE_EP_FAMILY_BALANCEDNESS, MOE_EP_FAMILY_IMBALANCE, 9, NULL), x, 1e-14, 0);
    }
    CHECK_NEAR(moe_ep_convert(4, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_EXCESS, 4, &err), 3, 0, 0); /* all on one */
    CHECK_NEAR(moe_ep_convert(1, MOE_EP_FAMILY_BALANCEDNESS, MOE_EP_FAMILY_IMBALANCE, 1, &err), 1, 0, 0);
    CHECK_NEAR(moe_ep_convert(2, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_EXCESS, 1, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_NEAR(moe_ep_convert(0.9, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_EXCESS, 0, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_NEAR(moe_ep_convert(5, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_EXCESS, 4, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_NEAR(moe_ep_convert(0, MOE_EP_FAMILY_BALANCEDNESS, MOE_EP_FAMILY_EXCESS, 0, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_NEAR(moe_ep_convert(NAN, MOE_EP_FAMILY_EXCESS, MOE_EP_FAMILY_EXCESS, 0, &err), MOE_EP_ERR_NAN, 0, 0);
    CHECK_NEAR(moe_ep_convert(1, (moe_ep_balance_family)7, MOE_EP_FAMILY_EXCESS, 0, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_STR(err.arg, "from");
    CHECK_NEAR(moe_ep_convert(1, MOE_EP_FAMILY_EXCESS, (moe_ep_balance_family)7, 0, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_STR(err.arg, "to");
    CHECK_NEAR(moe_ep_convert(1, MOE_EP_FAMILY_EXCESS, MOE_EP_FAMILY_EXCESS, -1, &err), MOE_EP_ERR_SIZE, 0, 0);
}

TEST(layers_and_steps)
{
    static const double swing[] = {100, 0, 0, 100}, log_[] = {100, 0, 0, 0, 100, 0, 0, 0}, part[] = {3, 1, 0, 0},
                        dense[] = {0, 0, 60, 20}, vast[] = {1e300, 0, 2, 1};
    static const int64_t whole[] = {100, 0, 0, 0, 100, 0, 0, 0};
    double ratio[2], none[4] = {0, 0, 0, 0}, bad[4] = {0, 0, -1, 0}, tiny[4];
    int i;
    moe_ep_layers_result r, q;
    moe_ep_steps_result st;
    moe_ep_error err;
    moe_ep_scratch s = moe_ep_scratch_fixed(ratio, 8);
    CHECK_I64(moe_ep_balance_layers_d(swing, 2, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r.mean_balancedness, 0.5, 0, 0);
    CHECK_NEAR(r.imbalance_of_sum, 1, 0, 0);
    CHECK_NEAR(r.p99, 2, 0, 0);
    CHECK_I64(moe_ep_balance_layers_d(log_, 2, 4, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r.avg_sum, 50, 0, 0);
    CHECK_NEAR(r.max_sum, 200, 0, 0);
    CHECK_NEAR(r.balancedness, 0.25, 0, 0);
    CHECK_NEAR(r.balancedness_wrong_axis, 1, 0, 0);
    CHECK_I64(r.worst_layer, 0);
    CHECK_I64(moe_ep_balance_layers(whole, 2, 4, &q, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(&q, &r, sizeof q) == 0);
    CHECK_I64(moe_ep_layer_imbalances(part, 2, 2, ratio, NULL), MOE_EP_OK);
    CHECK_NEAR(ratio[0], 1.5, 0, 0);
    CHECK_NEAR(ratio[1], 1, 0, 0);
    CHECK_I64(moe_ep_balance_layers_d(part, 2, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.loaded_layers, 1);
    CHECK_NEAR(r.mean_imbalance, 1.5, 0, 0);
    CHECK_NEAR(r.mean_of_layer_ratios, (1 / 1.5) / 2, 1e-15, 0);
    CHECK_I64(moe_ep_balance_layers_d(dense, 2, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r.mean_balancedness, 2.0 / 3, 1e-15, 0);
    CHECK_NEAR(r.mean_of_layer_ratios, 1.0 / 3, 1e-15, 0);
    CHECK_NEAR(r.sglang_balancedness, (1 + 40.00001 / 60.00001) / 2, 2e-7, 0);
    CHECK_I64(moe_ep_balance_layers_d(vast, 2, 2, &r, NULL, NULL), MOE_EP_OK); /* beyond float32 */
    CHECK_NEAR(r.sglang_balancedness, (0.5 + 0.75) / 2, 2e-6, 0);
    CHECK_I64(moe_ep_balance_layers_d(none, 2, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.worst_layer, -1);
    CHECK_NEAR(r.imbalance * r.balancedness * r.mean_imbalance * r.p50, 1, 0, 0);
    CHECK_I64(moe_ep_balance_steps(swing, 2, 1, 2, &st, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(st.imbalance, 2, 0, 0);
    CHECK_NEAR(st.imbalance_of_sum, 1, 0, 0);
    CHECK_NEAR(st.max_rows, 100, 0, 0);
    CHECK_NEAR(st.mean_rows, 50, 0, 0);
    CHECK_I64(st.worst_step, 0);
    CHECK_I64(moe_ep_balance_steps(part, 2, 1, 2, &st, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(st.worst_imbalance, 1.5, 0, 0);
    CHECK_I64(moe_ep_balance_steps(none, 1, 2, 2, &st, NULL, NULL), MOE_EP_OK);
    CHECK_I64(st.worst_step, -1);
    CHECK_NEAR(st.imbalance, 1, 0, 0);
    for (i = 0; i < 4; i++) tiny[i] = swing[i] * 1e-306; /* a ratio does not know how large the loads are */
    CHECK_I64(moe_ep_balance_steps(tiny, 2, 1, 2, &st, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(st.imbalance, 2, 1e-12, 0);
    CHECK_NEAR(st.imbalance_of_sum, 1, 1e-12, 0);
    CHECK_I64(moe_ep_balance_steps(tiny, 1, 1, 4, &st, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(st.imbalance_of_sum, 2, 1e-12, 0);
    CHECK_I64(moe_ep_balance_layers_d(bad, 2, 2, &r, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_balance_layers_d(bad, 0, 2, &r, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "L");
    CHECK_I64(moe_ep_balance_layers_d(bad, 2, 0, &r, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_balance_layers_d(NULL, 2, 2, &r, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_balance_layers_d(swing, 2, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_balance_layers_d(swing, 2, 2, &r, &s, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(moe_ep_layer_imbalances(swing, 2, 2, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_balance_steps(swing, 0, 1, 2, &st, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_balance_steps(swing, INT32_MAX, INT32_MAX, INT32_MAX, &st, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_balance_steps(bad, 2, 1, 2, &st, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(moe_ep_balance_steps(swing, 2, 1, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_balance_steps(swing, 2, 1, 2, &st, &s, &err), MOE_EP_ERR_SCRATCH);
}

TEST(hot_dead_coverage)
{
    static const double loads[] = {10, 60, 20, 30}, some[] = {5, 0, 1, 0}, three[] = {1, 3, 4}, zero[] = {0, 0};
    int32_t list[8], count = 0;
    double curve[4];
    moe_ep_error err;
    uint64_t s = t_seed + 5;
    int round;
    CHECK_I64(moe_ep_hot_list(loads, 4, 1, list, &count, NULL), MOE_EP_OK);
    CHECK_I64(count, 1);
    CHECK_I64(list[0], 1);
    CHECK_I64(moe_ep_dead_list(some, 4, list, &count, NULL), MOE_EP_OK);
    CHECK_I64(count, 2);
    CHECK_I64(list[0], 1);
    CHECK_I64(list[1], 3);
    CHECK_I64(moe_ep_coverage(three, 3, curve, NULL), MOE_EP_OK);
    CHECK_NEAR(curve[0], 0.5, 0, 0);
    CHECK_NEAR(curve[1], 0.875, 0, 0);
    CHECK_NEAR(curve[2], 1, 0, 0);
    CHECK_I64(moe_ep_experts_for_share(three, 3, 0.8, NULL, NULL), 2);
    CHECK_I64(moe_ep_experts_for_share(three, 3, 0, NULL, NULL), 0);
    CHECK_I64(moe_ep_experts_for_share(three, 3, 1, NULL, NULL), 3);
    CHECK_I64(moe_ep_experts_for_share(zero, 2, 1, NULL, NULL), 0);
    CHECK_NEAR(moe_ep_top_share(three, 3, 2, NULL, NULL), 0.875, 0, 0);
    CHECK_NEAR(moe_ep_top_share(three, 3, 0, NULL, NULL), 0, 0, 0);
    CHECK_NEAR(moe_ep_top_share(zero, 2, 1, NULL, NULL), 1, 0, 0);
    CHECK_I64(moe_ep_hot_list(zero, 2, 0, list, &count, NULL), MOE_EP_OK);
    CHECK_I64(count, 0);
    for (round = 0; round < 1000; round++) {
        double v[50];
        int32_t hot[50], n = (int32_t)(1 + t_below(&s, 50)), i, found = 0;
        for (i = 0; i < n; i++) v[i] = (double)t_below(&s, 12);
        CHECK_I64(moe_ep_hot_list(v, n, 0, hot, &count, NULL), MOE_EP_OK);
        for (i = 0; i < n; i++) found += v[i] > 0;
        CHECK_I64(count, found);
        for (i = 1; i < count; i++) CHECK(v[hot[i - 1]] > v[hot[i]] || (v[hot[i - 1]] == v[hot[i]] &&
                                          hot[i - 1] < hot[i]));
        STOP_IF_FAILED("round %d", round);
    }
    count = 77;
    CHECK_I64(moe_ep_hot_list(loads, 4, -1, list, &count, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_hot_list(loads, 4, NAN, list, &count, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_hot_list(NULL, 4, 1, list, &count, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_hot_list(loads, 4, 1, NULL, &count, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_dead_list(loads, 0, list, &count, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_dead_list(loads, 4, list, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_coverage(loads, 4, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_experts_for_share(loads, 4, 1.5, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_experts_for_share(loads, 4, NAN, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_experts_for_share(NULL, 4, 0.5, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_NEAR(moe_ep_top_share(loads, 4, 5, NULL, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_I64(count, 77);
}

TEST(similarity)
{
    static const double a[] = {
        3, 1, 0, 0}, b[] = {0, 0, 1, 3}, twice[] = {6, 2, 0, 0}, zero[] = {0, 0, 0, 0}, even[] = {2, 2, 2, 2};
    moe_ep_similarity_result r;
    moe_ep_error err;
    CHECK_I64(moe_ep_similarity(a, b, 4, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r.l1, 2, 0, 0);
    CHECK_NEAR(r.total_variation, 1, 0, 0);
    CHECK_I64(r.overlap, 0);
    CHECK_NEAR(r.cosine, 0, 0, 0);
    CHECK(r.correlation < -0.5);
    CHECK_I64(moe_ep_similarity(a, twice, 4, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r.l1, 0, 0, 1e-15);
    CHECK_NEAR(r.correlation, 1, 1e-14, 0);
    CHECK_NEAR(r.cosine, 1, 1e-14, 0);
    CHECK_I64(r.overlap, 2);
    CHECK_I64(moe_ep_similarity(even, zero, 4, 0, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.top, 1);
    CHECK_NEAR(r.correlation, 1, 0, 0);
    CHECK_NEAR(r.cosine, 0, 0, 0);
    CHECK_I64(moe_ep_similarity(even, a, 4, 0, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(r.correlation, 0, 0, 0);
    CHECK_I64(moe_ep_similarity(even, a, 4, 5, &r, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_similarity(NULL, a, 4, 1, &r, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "a");
    CHECK_I64(moe_ep_similarity(a, NULL, 4, 1, &r, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "b");
    CHECK_I64(moe_ep_similarity(a, b, 4, 1, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_similarity(a, b, 0, 1, &r, NULL, &err), MOE_EP_ERR_SIZE);
}

/* ---- chance ---- */

typedef struct sample {
    double mean, se, sd, p05, p95;
} sample;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* max/mean of D contiguous groups of experts (D = E: of experts) over `trials` simulated batches. */
static sample simulate(uint64_t *s, int64_t T, int32_t K, int32_t E, int32_t D, int repeats, int trials)
{
    double *v = (double *)t_alloc(sizeof *v * (size_t)trials), sum = 0, square = 0;
    int32_t *load = (int32_t *)t_alloc(sizeof *load * (size_t)D),
        *deck = (int32_t *)t_alloc(sizeof *deck * (size_t)E), e;
    sample r;
    int i;
    for (e = 0; e < E; e++) deck[e] = e;
    for (i = 0; i < trials; i++) {
        int32_t max = 0, k;
        int64_t t;
        memset(load, 0, sizeof *load * (size_t)D);
        for (t = 0; t < T; t++)
            for (k = 0; k < K; k++) {
                int32_t from = repeats ? 0 : k, at = from + (int32_t)t_below(s, E - from), x = deck[at], g;
                deck[at] = deck[k];
                deck[k] = x;
                g = (int32_t)((int64_t)x * D / E);
                if (++load[g] > max) max = load[g];
            }
        v[i] = (double)max * D / ((double)T * K);
        sum += v[i];
        square += v[i] * v[i];
    }
    qsort(v, (size_t)trials, sizeof *v, by_value);
    r.mean = sum / trials;
    r.sd = sqrt(fabs(square / trials - r.mean * r.mean));
    r.se = r.sd / sqrt(trials);
    r.p05 = v[(int)(0.05 * (trials - 1))];
    r.p95 = v[(int)(0.95 * (trials - 1))];
    free(v);
    free(load);
    free(deck);
    return r;
}

static double worst_miss; /* largest relative error left after three standard errors of the simulation */

static void check_chance(const moe_ep_chance_result *c, const sample *m, double row, int64_t trials)
{
    /* few trials may see no rare case at all: the predicted spread then bounds the simulation's error */
    double se = m->se > c->sd / sqrt((double)trials) ? m->se : c->sd / sqrt((double)trials);
    double miss = fabs(c->max_over_mean / m->mean - 1) - 3 * se / m->mean;
    if (miss > worst_miss) worst_miss = miss;
    CHECK_NEAR(c->max_over_mean, m->mean, 0.01, 4 * se);
    if (trials >= 1000) CHECK_NEAR(c->sd, m->sd, 0.1, 0.02 * row + 4 * se);
    CHECK_NEAR(c->p05, m->p05, 0.01, 1.01 * row + 4 * se); /* the simulation may sit on the next whole row */
    CHECK_NEAR(c->p95, m->p95, 0.01, 1.01 * row + 8 * se);
}

/* ---- every figure once more from its definition ---- */

T_EXACT_MATH /* equal ratios are looked for */

/* A matrix (rows, n) of small loads, many of them 0, some rows without any, in memory of just that size. */
static double *small_loads(uint64_t *s, int32_t rows, int32_t n, double unit)
{
    double *loads = (double *)t_alloc(sizeof *loads * (size_t)rows * (size_t)n);
    int32_t l, i;
    for (l = 0; l < rows; l++) {
        const int64_t most = t_below(s, 5) ? 1 + t_below(s, 9) : 1;
        for (i = 0; i < n; i++) loads[l * n + i] = unit * (double)t_below(s, most);
    }
    return loads;
}

/* Sum and maximum of n loads. */
static double plain_sum(const double *loads, int32_t n)
{
    double sum = 0;
    while (n-- > 0) sum += *loads++;
    return sum;
}

static double plain_max(const double *loads, int32_t n)
{
    double max = 0;
    for (; n-- > 0; loads++) max = *loads > max ? *loads : max;
    return max;
}

/* Value at the share q of the way from the least to the greatest of n > 0 values, which it sorts. */
static double plain_percentile(double *v, int32_t n, double q)
{
    int32_t i = 0;
    qsort(v, (size_t)n, sizeof *v, by_value);
    if (n == 1) return v[0];
    while (i + 2 < n && (double)(i + 1) <= q * (n - 1)) i++;
    return v[i] + (v[i + 1] - v[i]) * (q * (n - 1) - i);
}

/* Sizes of the rows are powers of two: means are exact, equal ratios are equal. */
TEST(layers_by_definition)
{
    uint64_t s = t_seed + 20;
    int round;
    for (round = 0; round < 3000; round++) {
        const int32_t L = (int32_t)(1 + t_below(&s, round % 4 ? 6 : 40)), n = (int32_t)1 << t_below(&s, 4);
        const double unit = round % 3 ? 1 : 0.0009765625;
        double *loads = small_loads(&s, L, n, unit), ratio[40], each[40], columns[8], tops[8];
        double imbalance = 0, balancedness = 0, sums = 0, maxima = 0, worst = 1, served = L;
        int64_t whole[40 * 8];
        int32_t l, i, loaded = 0, at = -1;
        moe_ep_scratch scratch = dirty_scratch();
        moe_ep_layers_result r, q;
        for (i = 0; i < L * n; i++) whole[i] = (int64_t)loads[i];
        for (l = 0; l < L; l++) {
            const double mean = plain_sum(loads + l * n, n) / n, max = plain_max(loads + l * n, n);
            sums += mean;
            maxima += max;
            each[l] = mean > 0 ? max / mean : 1;
            if (!(mean > 0)) continue;
            if (at < 0 || each[l] > worst) worst = each[l], at = l;
            ratio[loaded++] = each[l];
            imbalance += each[l];
            balancedness += mean / max;
            served += ((float)mean + 1e-5f) / ((float)max + 1e-5f) - 1; /* a row without load is 1 */
        }
        for (i = 0; i < n; i++)
            for (columns[i] = tops[i] = 0, l = 0; l < L; l++) {
                columns[i] += loads[l * n + i];
                tops[i] = loads[l * n + i] > tops[i] ? loads[l * n + i] : tops[i];
            }
        CHECK_I64(moe_ep_balance_layers_d(loads, L, n, &r, &scratch, NULL), MOE_EP_OK);
        CHECK(r.num_layers == L && r.loaded_layers == loaded && r.worst_layer == at);
        CHECK_NEAR(r.worst_imbalance, worst, 0, 0);
        CHECK_NEAR(r.mean_imbalance, loaded ? imbalance / loaded : 1, 1e-14, 0);
        CHECK_NEAR(r.p50, loaded ? plain_percentile(ratio, loaded, 0.50) : 1, 1e-13, 0);
        CHECK_NEAR(r.p90, loaded ? plain_percentile(ratio, loaded, 0.90) : 1, 1e-13, 0);
        CHECK_NEAR(r.p95, loaded ? plain_percentile(ratio, loaded, 0.95) : 1, 1e-13, 0);
        CHECK_NEAR(r.p99, loaded ? plain_percentile(ratio, loaded, 0.99) : 1, 1e-13, 0);
        CHECK_NEAR(r.mean_balancedness, loaded ? balancedness / loaded : 1, 1e-14, 0);
        CHECK_NEAR(r.mean_of_layer_ratios, balancedness / L, 1e-14, 0);
        CHECK_NEAR(r.sglang_balancedness, served / L, 2e-7, 0);
        CHECK_NEAR(r.avg_sum, sums, 1e-14, 0);
        CHECK_NEAR(r.max_sum, maxima, 0, 0);
        CHECK_NEAR(r.balancedness, loaded ? sums / maxima : 1, 1e-14, 0);
        CHECK_NEAR(r.imbalance, loaded ? maxima / sums : 1, 1e-14, 0);
        CHECK_NEAR(r.imbalance_of_sum, loaded ? plain_max(columns, n) * n / plain_sum(columns, n) : 1, 1e-14, 0);
        CHECK_NEAR(r.balancedness_wrong_axis, loaded ? plain_sum(columns, n) / L / plain_sum(tops, n) : 1, 1e-14, 0);
        CHECK_I64(moe_ep_balance_layers(whole, L, n, &q, NULL, NULL), MOE_EP_OK);
        if (round % 3) CHECK(memcmp(&q, &r, sizeof q) == 0);
        CHECK_I64(moe_ep_layer_imbalances(loads, L, n, ratio, NULL), MOE_EP_OK);
        for (l = 0; l < L; l++) CHECK_NEAR(ratio[l], each[l], 0, 0);
        free(loads);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(run_of_steps_by_definition)
{
    uint64_t s = t_seed + 21;
    int round;
    for (round = 0; round < 3000; round++) {
        const int32_t S = (int32_t)(1 + t_below(&s, 5)), L = (int32_t)(1 + t_below(&s, 4)),
                      n = (int32_t)1 << t_below(&s, 4);
        double *loads = small_loads(&s, S * L, n, round % 3 ? 1 : 0.0009765625), added[8];
        double all_max = 0, all_mean = 0, all_added = 0, worst = 1;
        int32_t t, l, i, at = -1;
        moe_ep_scratch scratch = dirty_scratch();
        moe_ep_steps_result r;
        for (t = 0; t < S; t++) {
            double max = 0, mean = 0;
            for (l = 0; l < L; l++) {
                max += plain_max(loads + (t * L + l) * n, n);
                mean += plain_sum(loads + (t * L + l) * n, n) / n;
            }
            if (mean > 0 && (at < 0 || max / mean > worst)) worst = max / mean, at = t;
            all_max += max;
            all_mean += mean;
        }
        for (l = 0; l < L; l++) {
            for (i = 0; i < n; i++)
                for (added[i] = 0, t = 0; t < S; t++) added[i] += loads[(t * L + l) * n + i];
            all_added += plain_max(added, n);
        }
        CHECK_I64(moe_ep_balance_steps(loads, S, L, n, &r, &scratch, NULL), MOE_EP_OK);
        CHECK_NEAR(r.max_rows, all_max / S, 1e-14, 0);
        CHECK_NEAR(r.mean_rows, all_mean / S, 1e-14, 0);
        CHECK_NEAR(r.imbalance, all_mean > 0 ? all_max / all_mean : 1, 1e-14, 0);
        CHECK_NEAR(r.imbalance_of_sum, all_mean > 0 ? all_added / all_mean : 1, 1e-14, 0);
        CHECK_I64(r.worst_step, at);
        CHECK_NEAR(r.worst_imbalance, worst, 0, 0);
        free(loads);
        STOP_IF_FAILED("round %d", round);
    }
}

/* The next index behind `before` from heavy to light, the lower index first; -1 as before: the heaviest. */
static int32_t plain_next(const double *v, int32_t n, int32_t before)
{
    int32_t i, best = -1;
    for (i = 0; i < n; i++) {
        if (before >= 0 && !(v[i] < v[before] || (v[i] <= v[before] && i > before))) continue;
        if (best < 0 || v[i] > v[best]) best = i;
    }
    return best;
}

/* Hot, dead, and how much the heaviest carry, on exact means and shares. */
TEST(hot_and_dead_by_definition)
{
    static const double times[7] = {0, 0.25, 0.5, 1, 1.5, 2, 4};
    uint64_t s = t_seed + 22;
    int round;
    for (round = 0; round < 3000; round++) {
        const int32_t n = (int32_t)1 << t_below(&s, 6);
        const double factor = times[t_below(&s, 7)];
        double *v = small_loads(&s, 1, n, round % 3 ? 1 : 0.0009765625), sum = plain_sum(v, n), so_far = 0;
        double *curve = (double *)t_alloc(sizeof *v * (size_t)n);
        int32_t *hot = (int32_t *)t_alloc(sizeof *hot * (size_t)n);
        int32_t *dead = (int32_t *)t_alloc(sizeof *dead * (size_t)n);
        int32_t count = -1, none = -1, i, at = -1, found = 0;
        moe_ep_scratch scratch;
        CHECK_I64(moe_ep_hot_list(v, n, factor, hot, &count, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_dead_list(v, n, dead, &none, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_coverage(v, n, curve, NULL), MOE_EP_OK);
        for (i = 0; i < n; i++) {
            if (v[i] > 0) continue;
            CHECK(found < none && dead[found] == i);
            found++;
        }
        CHECK_I64(none, found);
        CHECK_NEAR(moe_ep_top_share(v, n, 0, NULL, NULL), 0, 0, 0);
        for (i = 0, found = 0; i < n; i++) {
            at = plain_next(v, n, at);
            if (v[at] * n > factor * sum) {
                CHECK(i < count && hot[i] == at);
                found++;
            }
            so_far += v[at];
            CHECK_NEAR(curve[i], sum > 0 ? so_far / sum : 1, 0, 0);
            scratch = dirty_scratch();
            CHECK_NEAR(moe_ep_top_share(v, n, i + 1, &scratch, NULL), curve[i], 0, 0);
        }
        CHECK_I64(count, found);
        for (i = 0; i <= 16; i++) {
            int32_t fewest = 0;
            for (at = -1, so_far = 0; so_far < i / 16.0 * sum; fewest++) {
                at = plain_next(v, n, at);
                so_far += v[at];
            }
            scratch = dirty_scratch();
            CHECK_I64(moe_ep_experts_for_share(v, n, i / 16.0, &scratch, NULL), fewest);
        }
        free(v);
        free(curve);
        free(hot);
        free(dead);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Pearson from whole sums; loads without spread, whatever their value, have none. */
TEST(similarity_by_definition)
{
    uint64_t s = t_seed + 23;
    int round;
    for (round = 0; round < 3000; round++) {
        const int32_t n = (int32_t)(1 + t_below(&s, 20));
        int32_t top = (int32_t)t_below(&s, n + 1), wide, i, j, x, y, overlap = 0;
        const double unit = round % 3 ? 1 : 0.0009765625;
        double *a = small_loads(&s, 1, n, unit), *b = small_loads(&s, 1, n, unit);
        double sa, sb, aa = 0, bb = 0, ab = 0, l1 = 0, va, vb;
        moe_ep_scratch scratch = dirty_scratch();
        moe_ep_similarity_result r;
        if (round % 8 == 0) { /* flat ones: a tenth ten times is less than 1 */
            const double flat = 0.1 * unit * (double)(1 + t_below(&s, 50));
            for (i = 0; i < n; i++) *(round % 16 ? a + i : b + i) = flat;
        }
        sa = plain_sum(a, n);
        sb = plain_sum(b, n);
        for (i = 0; i < n; i++) {
            aa += a[i] * a[i];
            bb += b[i] * b[i];
            ab += a[i] * b[i];
            l1 += fabs((sa > 0 ? a[i] / sa : 1.0 / n) - (sb > 0 ? b[i] / sb : 1.0 / n));
        }
        wide = top > 0 ? top : n < 8 ? 1 : n / 8;
        for (i = 0, x = -1; i < wide; i++)
            for (x = plain_next(a, n, x), j = 0, y = -1; j < wide; j++) {
                y = plain_next(b, n, y);
                overlap += x == y;
            }
        CHECK_I64(moe_ep_similarity(a, b, n, top, &r, &scratch, NULL), MOE_EP_OK);
        CHECK(r.top == wide && r.overlap == overlap);
        CHECK_NEAR(r.l1, l1, 1e-13, 1e-15);
        CHECK_NEAR(r.total_variation, l1 / 2, 1e-13, 1e-15);
        CHECK_NEAR(r.cosine, sa > 0 && sb > 0 ? ab / sqrt(aa * bb) : sa > 0 || sb > 0 ? 0 : 1, 1e-13, 0);
        va = (n * aa - sa * sa) / (unit * unit); /* whole numbers, but for the flat ones */
        vb = (n * bb - sb * sb) / (unit * unit);
        if (va > 0.5 && vb > 0.5) CHECK_NEAR(r.correlation, (n * ab - sa * sb) / (unit * unit) / sqrt(va * vb), 1e-12,
                                               1e-14);
        else CHECK_NEAR(r.correlation, l1 > 1e-9 ? 0 : 1, 0, 0);
        free(a);
        free(b);
        STOP_IF_FAILED("round %d", round);
    }
}

/* What a call says it needs holds at least its working arrays, so that none of them can lie behind the end. */
TEST(scratch_holds_the_arrays)
{
    enum { N = 128, L = 64, ALIGN = 64 }; /* every array ends where the next may begin */
    static double loads[L * N];
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_balance_result b;
    moe_ep_layers_result l;
    moe_ep_steps_result t;
    moe_ep_similarity_result s;
    CHECK_I64(moe_ep_balance_d(loads, N, &b, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= N * 8 && none.need <= N * 8 + ALIGN);
    CHECK_I64(moe_ep_balance_layers_d(loads, L, N, &l, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= (L + 2 * N) * 8 && none.need <= (L + 2 * N) * 8 + ALIGN);
    CHECK_I64(moe_ep_balance_steps(loads, 1, L, N, &t, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= N * 8 && none.need <= N * 8 + ALIGN);
    CHECK_I64(moe_ep_similarity(loads, loads, N, 0, &s, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= 2 * N * 4 && none.need <= 2 * N * 4 + ALIGN);
    CHECK_I64(moe_ep_experts_for_share(loads, N, 0.5, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK(none.need >= N * 8 && none.need <= N * 8 + ALIGN);
}

/* Every size, pointer and share that no other test gets wrong; outputs stay as they were. */
TEST(balance_bad_arguments)
{
    const double a[4] = {1.0, 2.0, 3.0, 4.0}, zero[4] = {0.0, 0.0, 0.0, 0.0}, flat[4] = {1.0, 1.0, 1.0, 1.0};
    const int64_t whole[2] = {3, 4};
    double out[4] = {-9.0, -9.0, -9.0, -9.0};
    int32_t list[4] = {-9, -9, -9, -9}, count = -9;
    moe_ep_similarity_result r;
    moe_ep_steps_result steps;
    moe_ep_chance_result c;
    moe_ep_error err;
    CHECK_I64(moe_ep_loads_to_double(NULL, 0, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_loads_to_double(NULL, 2, out, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_loads_to_double(whole, 2, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "to");
    CHECK_NEAR(moe_ep_convert(5.0, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_EXCESS, 4, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_NEAR(moe_ep_convert(5.0, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_IMBALANCE, 0, &err), 5.0, 0, 0);
    CHECK_NEAR(moe_ep_convert(1e-320, MOE_EP_FAMILY_BALANCEDNESS, MOE_EP_FAMILY_EXCESS, 0, &err), MOE_EP_ERR_RANGE, 0,
               0);
    CHECK_I64(moe_ep_layer_imbalances(a, 0, 2, out, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_balance_steps(a, 1, 0, 2, &steps, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "L");
    CHECK_I64(moe_ep_balance_steps(a, 1, 2, 0, &steps, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "n");
    CHECK_I64(moe_ep_hot_list(a, 4, 1.0, list, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "count");
    CHECK_I64(moe_ep_dead_list(a, 4, NULL, &count, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "list");
    CHECK_I64(moe_ep_coverage(a, 0, out, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_experts_for_share(a, 0, 0.5, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_experts_for_share(a, 4, 1.5, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_experts_for_share(a, 4, -0.5, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_NEAR(moe_ep_top_share(a, 4, -1, NULL, &err), MOE_EP_ERR_RANGE, 0, 0);
    CHECK_NEAR(moe_ep_top_share(a, 0, 1, NULL, &err), MOE_EP_ERR_SIZE, 0, 0);
    CHECK_I64(moe_ep_similarity(a, zero, 4, -1, &r, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_similarity(a, zero, 4, 5, &r, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "top");
    CHECK_I64(moe_ep_chance_with_replacement(10, 0, 4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_chance_devices(10, 5, 4, 2, &c, &err), MOE_EP_ERR_TOP_K);
    CHECK_I64(moe_ep_chance_devices(10, 2, 4, 0, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_chance_devices(10, 2, 4, 5, &c, &err), MOE_EP_ERR_SIZE);
    CHECK(count == -9 && list[0] == -9 && out[0] < -8.0 && out[3] < -8.0);
    CHECK_I64(moe_ep_similarity(a, zero, 4, 0, &r, NULL, &err), MOE_EP_OK); /* nothing is compared as if even */
    CHECK_NEAR(r.cosine, 0.0, 0, 0);
    CHECK_I64(r.top, 1);
    CHECK_I64(moe_ep_similarity(zero, a, 4, 2, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.cosine, 0.0, 0, 0);
    CHECK_I64(moe_ep_similarity(zero, zero, 4, 4, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.cosine, 1.0, 0, 0);
    CHECK_I64(r.overlap, 4);
    CHECK_I64(moe_ep_similarity(flat, a, 4, 1, &r, NULL, &err), MOE_EP_OK); /* no spread, no correlation */
    CHECK_NEAR(r.correlation, 0.0, 0, 0);
    CHECK_I64(moe_ep_similarity(a, flat, 4, 1, &r, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(r.correlation, 0.0, 0, 0);
}

TEST(steps_of_every_kind)
{
    /* no load, ratio 1.5, ratio 2, ratio 1.5 again, no load, ratio 2 again */
    const double loads[12] = {0.0, 0.0, 3.0, 1.0, 0.0, 8.0, 2.0, 6.0, 0.0, 0.0, 5.0, 0.0};
    moe_ep_steps_result r;
    CHECK_I64(moe_ep_balance_steps(loads, 6, 1, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.worst_step, 2);
    CHECK_NEAR(r.worst_imbalance, 2.0, 0, 0);
    CHECK_NEAR(r.max_rows, (0 + 3 + 8 + 6 + 0 + 5) / 6.0, 1e-15, 0);
    CHECK_NEAR(r.mean_rows, (0 + 2 + 4 + 4 + 0 + 2.5) / 6.0, 1e-15, 0);
    CHECK_NEAR(r.imbalance, 22.0 / 12.5, 1e-15, 0);
    CHECK_NEAR(r.imbalance_of_sum, 15.0 / 12.5, 1e-15, 0);
    CHECK_I64(moe_ep_balance_steps(loads, 1, 1, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.worst_step, -1);
    CHECK_NEAR(r.worst_imbalance, 1.0, 0, 0);
}

/* One byte less than needed is an error, and what is needed is enough. */
TEST(curves_in_little_memory)
{
    const double a[17] = {5, 1, 9, 2, 2, 7, 0, 3, 4, 6, 8, 1, 1, 0, 2, 5, 9};
    double b[17];
    char memory[4096];
    moe_ep_similarity_result r;
    moe_ep_scratch s;
    moe_ep_error err;
    int i;
    for (i = 0; i < 17; i++) b[i] = a[16 - i];
    memset(&r, 7, sizeof r);
    s = moe_ep_scratch_fixed(memory, sizeof memory);
    CHECK_I64(moe_ep_experts_for_share(a, 17, 0.5, &s, &err), 4); /* 9+9+8+7 = 33 of 65 */
    s = moe_ep_scratch_fixed(memory, s.need - 1);
    CHECK_I64(moe_ep_experts_for_share(a, 17, 0.5, &s, &err), MOE_EP_ERR_SCRATCH);
    s = moe_ep_scratch_fixed(memory, sizeof memory);
    CHECK_NEAR(moe_ep_top_share(a, 17, 4, &s, &err), 33.0 / 65.0, 1e-15, 0);
    s = moe_ep_scratch_fixed(memory, s.need - 1);
    CHECK_NEAR(moe_ep_top_share(a, 17, 4, &s, &err), MOE_EP_ERR_SCRATCH, 0, 0);
    s = moe_ep_scratch_fixed(memory, 1);
    CHECK_I64(moe_ep_similarity(a, b, 17, 0, &r, &s, &err), MOE_EP_ERR_SCRATCH);
    s = moe_ep_scratch_fixed(memory, s.need - 1);
    CHECK_I64(moe_ep_similarity(a, b, 17, 0, &r, &s, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(r.top, 0x07070707);
    s = moe_ep_scratch_fixed(memory, s.need);
    CHECK_I64(moe_ep_similarity(a, b, 17, 0, &r, &s, &err), MOE_EP_OK);
    CHECK_I64(r.top, 2); /* 17 / 8 */
    CHECK_I64(r.overlap, 0); /* experts 2 and 16 against 0 and 14 */
}

/* Devices of 100 and 101 experts where one kind's law is taken row by row and the other's in steps. */
TEST(chance_devices_between_two_grids)
{
    uint64_t s = t_seed + 14;
    int64_t T;
    for (T = 1440; T <= 1452; T += 4) {
        moe_ep_chance_result c;
        const sample m = simulate(&s, T, 1, 1005, 10, 0, 800);
        CHECK_I64(moe_ep_chance_devices(T, 1, 1005, 10, &c, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean, m.mean, 0.005, 4 * m.se);
        CHECK_NEAR(c.sd, m.sd, 0, 4 * m.sd / sqrt(1600));
        CHECK(c.p05 >= 1.0 && c.p05 < c.max_over_mean && c.max_over_mean < c.p95);
    }
}

/* Loads d, d + c, d + 2c, ..: linear between neighbours means linear in the rank. */
TEST(percentiles_of_even_steps)
{
    uint64_t s = t_seed + 15;
    int32_t n, i;
    for (n = 1; n < 60; n++) {
        double v[60] = {0.0}, first = (double)t_below(&s, 50), step = 0.25 * (double)(1 + t_below(&s, 9));
        moe_ep_balance_result r;
        for (i = 0; i < n; i++) v[i] = first + step * i;
        for (i = 0; i < n; i++) { /* in any order */
            const int32_t j = (int32_t)t_below(&s, n);
            const double kept = v[i];
            v[i] = v[j];
            v[j] = kept;
        }
        for (i = 0, first = v[0]; i < n; i++) first = v[i] < first ? v[i] : first;
        for (i = 0, step = first; i < n; i++) step = v[i] > step ? v[i] : step;
        CHECK_I64(moe_ep_balance_d(v, n, &r, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR(r.p50, first + 0.50 * (step - first), 1e-13, 0);
        CHECK_NEAR(r.p95, first + 0.95 * (step - first), 1e-13, 0);
        CHECK_NEAR(r.p99, first + 0.99 * (step - first), 1e-13, 0);
        STOP_IF_FAILED("n %d", n);
    }
}

/* The load of one expert is binomial, its percentiles are the lowest loads that reach them. */
TEST(chance_of_one_expert)
{
    int32_t E, K;
    int64_t T, m;
    for (E = 2; E < 40; E += 3)
        for (K = 1, T = 1; T < 200; T += 7, K = 1 + K % (E - 1)) {
            const double p = (double)K / E, mean = (double)T * p;
            double weight = pow(1.0 - p, (double)T), cdf = 0.0;
            int64_t low = -1, high = -1;
            int close = 0;
            moe_ep_chance_result c;
            for (m = 0; m <= T && high < 0; m++) {
                cdf += weight;
                close |= fabs(cdf - 0.05) < 1e-7 || fabs(cdf - 0.95) < 1e-7;
                if (low < 0 && cdf >= 0.05) low = m;
                if (cdf >= 0.95) high = m;
                weight *= (double)(T - m) / (double)(m + 1) * p / (1.0 - p);
            }
            if (close) continue;
            CHECK_I64(moe_ep_chance(T, K, E, &c, NULL), MOE_EP_OK);
            CHECK_NEAR(c.one_p05 * mean, low, 0, 1e-9);
            CHECK_NEAR(c.one_p95 * mean, high, 0, 1e-9);
            CHECK_NEAR(c.one_sd * mean, sqrt(mean * (1.0 - p)), 1e-12, 0);
            CHECK_NEAR(c.gauss_bound, 1.0 + c.one_sd * sqrt(2.0 * log(E)), 1e-13, 0);
            STOP_IF_FAILED("T %d", (int)T);
        }
}

/* Large loads are normal: 1.645 standard deviations to each side, in steps as in whole rows. */
TEST(chance_of_one_large_load)
{
    int64_t T;
    for (T = 4096; T < ((int64_t)1 << 40); T *= 8) {
        moe_ep_chance_result c;
        CHECK_I64(moe_ep_chance(T, 8, 64, &c, NULL), MOE_EP_OK);
        CHECK_NEAR((1.0 - c.one_p05) / c.one_sd, 1.644854, 0.01, 0);
        CHECK_NEAR((c.one_p95 - 1.0) / c.one_sd, 1.644854, 0.01, 0);
        CHECK_NEAR(c.one_sd, sqrt(7.0 / 8.0 / ((double)T / 8.0)), 1e-12, 0);
    }
}

/* Loads below 1 are loads; the first may be the only one; nothing is compared as if it were even. */
TEST(small_and_single_loads)
{
    const double small[6] = {0.25, 0.75, 0.0, 0.0, 0.01, 0.01}, first[3] = {5.0, 0.0, 0.0};
    const double a[4] = {1.0, 2.0, 3.0, 4.0}, zero[4] = {0.0, 0.0, 0.0, 0.0};
    double ratio[3];
    moe_ep_similarity_result s;
    moe_ep_layers_result r;
    CHECK_I64(moe_ep_balance_layers_d(small, 3, 2, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.loaded_layers, 2);
    CHECK_I64(r.worst_layer, 0);
    CHECK_NEAR(r.worst_imbalance, 1.5, 1e-15, 0);
    CHECK_I64(moe_ep_layer_imbalances(small, 3, 2, ratio, NULL), MOE_EP_OK);
    CHECK_NEAR(ratio[0], 1.5, 1e-15, 0);
    CHECK_NEAR(ratio[1], 1.0, 0, 0);
    CHECK_NEAR(ratio[2], 1.0, 0, 0);
    CHECK_I64(moe_ep_experts_for_share(first, 3, 0.5, NULL, NULL), 1);
    CHECK_NEAR(moe_ep_top_share(first, 3, 1, NULL, NULL), 1.0, 0, 0);
    CHECK_I64(moe_ep_similarity(a, zero, 4, 0, &s, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(s.l1, 0.15 + 0.05 + 0.05 + 0.15, 1e-14, 0);
    CHECK_I64(moe_ep_similarity(zero, a, 4, 0, &s, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(s.l1, 0.15 + 0.05 + 0.05 + 0.15, 1e-14, 0);
    CHECK_NEAR(s.total_variation, 0.2, 1e-14, 0);
    {
        char none[1];
        moe_ep_scratch scratch = moe_ep_scratch_fixed(none, 0); /* a ratio a layer, a sum and a maximum a column */
        CHECK_I64(moe_ep_balance_layers_d(small, 3, 2, &r, &scratch, NULL), MOE_EP_ERR_SCRATCH);
        CHECK(scratch.need >= (3 + 2 + 2) * sizeof(double));
    }
}

TEST(success_clears_the_error)
{
    const int64_t whole[4] = {1, 2, 3, 4};
    const double real[4] = {1.0, 2.0, 3.0, 4.0};
    double out[4];
    int32_t list[4], count;
    moe_ep_balance_result b;
    moe_ep_layers_result l;
    moe_ep_steps_result t;
    moe_ep_similarity_result s;
    moe_ep_chance_result c;
    moe_ep_error err;
    CLEARS(moe_ep_imbalance(whole, 4, &err));
    CLEARS(moe_ep_imbalance_d(real, 4, &err));
    CLEARS(moe_ep_loads_to_double(whole, 4, out, &err));
    CLEARS(moe_ep_balance(whole, 4, &b, NULL, &err));
    CLEARS(moe_ep_balance_d(real, 4, &b, NULL, &err));
    CLEARS(moe_ep_convert(1.5, MOE_EP_FAMILY_IMBALANCE, MOE_EP_FAMILY_EXCESS, 4, &err));
    CLEARS(moe_ep_balance_layers(whole, 2, 2, &l, NULL, &err));
    CLEARS(moe_ep_balance_layers_d(real, 2, 2, &l, NULL, &err));
    CLEARS(moe_ep_layer_imbalances(real, 2, 2, out, &err));
    CLEARS(moe_ep_balance_steps(real, 2, 1, 2, &t, NULL, &err));
    CLEARS(moe_ep_hot_list(real, 4, 1.0, list, &count, &err));
    CLEARS(moe_ep_dead_list(real, 4, list, &count, &err));
    CLEARS(moe_ep_coverage(real, 4, out, &err));
    CLEARS(moe_ep_experts_for_share(real, 4, 0.5, NULL, &err));
    CLEARS(moe_ep_top_share(real, 4, 2, NULL, &err));
    CLEARS(moe_ep_similarity(real, real, 4, 0, &s, NULL, &err));
    CLEARS(moe_ep_chance(4, 1, 4, &c, &err));
    CLEARS(moe_ep_chance_with_replacement(4, 1, 4, &c, &err));
    CLEARS(moe_ep_chance_devices(4, 1, 4, 2, &c, &err));
}

/* The chance that each of E boxes gets low..high of T <= 40 balls: T! / E^T times the coefficient of x^T in
 * (sum of x^k / k!, k = low..high)^E. */
static double balls_in_boxes(int32_t T, int32_t E, int32_t low, int32_t high)
{
    double p[41] = {1.0}, chance; /* p[t]: of t balls put into e boxes one by one */
    int32_t e, k, t;
    for (e = 1; e <= E; e++) {
        double q[41] = {0.0};
        for (t = 0; t <= T; t++) {
            double term = 1.0;
            for (k = 0; k <= high && k <= t; k++) {
                if (k >= low) q[t] += p[t - k] * term;
                term *= 1.0 / (double)(k + 1);
            }
        }
        memcpy(p, q, sizeof p);
    }
    for (chance = p[T], t = 1; t <= T; t++) chance *= (double)t / E;
    return chance;
}

/* A law of the maximum, cdf[m] = P(max <= m) for m = 0..most, against a result; mean is that of one load. */
static void check_law(const moe_ep_chance_result *c, const double *cdf, int32_t most, double mean, double off)
{
    double sum = 0.0, squares = 0.0, before = 0.0;
    int32_t m, p05 = -1, p95 = -1, close = 0;
    for (m = 0; m <= most; m++) {
        sum += (cdf[m] - before) * m;
        squares += (cdf[m] - before) * m * m;
        before = cdf[m];
        close |= fabs(cdf[m] - 0.05) < off || fabs(cdf[m] - 0.95) < off;
        if (p05 < 0 && cdf[m] >= 0.05) p05 = m;
        if (p95 < 0 && cdf[m] >= 0.95) p95 = m;
    }
    CHECK_NEAR(c->mean_load, mean, 1e-14, 0);
    CHECK_NEAR(c->max_over_mean, sum / mean, off, 0);
    CHECK_NEAR(c->sd, sqrt(fabs(squares - sum * sum)) / mean, off, sqrt(off) / mean);
    if (close) return;
    CHECK_NEAR(c->p05, p05 / mean, 1e-12, 0);
    CHECK_NEAR(c->p95, p95 / mean, 1e-12, 0);
}

/* One choice a token, or all but one: the choices, or the ones left out, are balls thrown into boxes.  One choice of E
 * experts on D devices is one of D, T tokens with K choices that may repeat are T * K tokens with one. */
TEST(chance_of_any_number_of_experts)
{
    static const int32_t experts[] = {2, 3, 6, 7, 11, 13, 14, 15, 23, 31};
    size_t i;
    int32_t T;
    for (i = 0; i < sizeof experts / sizeof *experts; i++)
        for (T = 4; T <= 40; T += 6) {
            const int32_t E = experts[i];
            const double mean = (double)T / E, miss = pow(1.0 - 1.0 / E, T);
            double one[41], but_one[41];
            moe_ep_chance_result c;
            int32_t m;
            for (m = 0; m <= T; m++) {
                one[m] = balls_in_boxes(T, E, 0, m);
                but_one[m] = balls_in_boxes(T, E, T - m, T);
            }
            CHECK_I64(moe_ep_chance(T, 1, E, &c, NULL), MOE_EP_OK);
            check_law(&c, one, T, mean, 1e-5);
            CHECK_NEAR(c.distinct, E * (1.0 - miss), 1e-12, 0);
            CHECK_NEAR(c.tokens, mean, 1e-12, 0);
            CHECK_I64(moe_ep_chance_devices(T, 1, 5 * E, E, &c, NULL), MOE_EP_OK);
            check_law(&c, one, T, mean, 1e-5);
            CHECK_NEAR(c.distinct, 5.0 * (1.0 - pow(1.0 - 0.2 / E, T)), 1e-12, 0);
            CHECK_NEAR(c.tokens, mean, 1e-12, 0);
            CHECK_I64(moe_ep_chance_with_replacement(T / 2, 2, E, &c, NULL), MOE_EP_OK);
            check_law(&c, one, T, mean, 1e-5);
            CHECK_NEAR(c.distinct, E * (1.0 - miss), 1e-12, 0);
            CHECK_NEAR(c.tokens, T / 2 * (1.0 - pow(1.0 - 1.0 / E, 2)), 1e-12, 0);
            CHECK_I64(moe_ep_chance(T, E - 1, E, &c, NULL), MOE_EP_OK);
            check_law(&c, but_one, T, T - mean, 1e-5);
            CHECK_NEAR(c.tokens, T - mean, 1e-12, 0);
            STOP_IF_FAILED("E %d", (int)E);
        }
}

static int bits_of(uint32_t x)
{
    int bits = 0;
    for (; x; x &= x - 1) bits++;
    return bits;
}

/* Two and three tokens: all sets of experts that the second and the third can choose beside the first's. */
TEST(chance_of_few_tokens)
{
    int32_t E, K;
    for (E = 2; E < 9; E++)
        for (K = 1; K < E; K++) {
            const uint32_t first = (1u << K) - 1u, end = 1u << E;
            double seen[4] = {0, 0, 0, 0}, cdf[4] = {0, 0, 0, 0}, two[3] = {0, 0, 1}, sets = 0;
            moe_ep_chance_result c;
            uint32_t x, y;
            int32_t m;
            for (x = 0; x < end; x++) {
                if (bits_of(x) != K) continue;
                sets += 1;
                two[1] += !(first & x);
                for (y = 0; y < end; y++)
                    if (bits_of(y) == K) seen[first & x & y ? 3 : (first & x) | (first & y) | (x & y) ? 2 : 1] += 1;
            }
            for (m = 1; m <= 3; m++) cdf[m] = cdf[m - 1] + seen[m] / (sets * sets);
            two[1] /= sets;
            CHECK_I64(moe_ep_chance(2, K, E, &c, NULL), MOE_EP_OK);
            check_law(&c, two, 2, 2.0 * K / E, 1e-12);
            CHECK_I64(moe_ep_chance(3, K, E, &c, NULL), MOE_EP_OK);
            check_law(&c, cdf, 3, 3.0 * K / E, 1e-12);
            STOP_IF_FAILED("E %d", (int)E);
        }
}

/* Three tokens and very many experts: the second shares i experts with the first, the third misses these i. */
TEST(chance_of_three_tokens_among_many)
{
    static const int32_t shape[][2] = {{1000, 10}, {1000, 300}, {1000, 334}, {1000, 500}, {1000, 700}, {4096, 8},
                                       {4096, 1365}, {4096, 2048}, {4096, 3000}, {20000, 10000}, {20000, 600}};
    size_t k;
    for (k = 0; k < sizeof shape / sizeof shape[0]; k++) {
        const double E = shape[k][0], K = shape[k][1];
        const double all = lgamma(E + 1) - lgamma(K + 1) - lgamma(E - K + 1); /* of the number of sets */
        double i, cdf[4] = {0, 0, 0, 1};
        moe_ep_chance_result c;
        for (i = 2 * K > E ? 2 * K - E : 0; i <= K && i <= E - K; i += 1) {
            const double share = lgamma(K + 1) - lgamma(i + 1) - lgamma(K - i + 1) + lgamma(E - K + 1) -
                                 lgamma(K - i + 1) - lgamma(E - 2 * K + i + 1) - all;
            const double miss = lgamma(E - i + 1) - lgamma(K + 1) - lgamma(E - i - K + 1) - all;
            cdf[2] += exp(share + miss);
        }
        if (3 * K <= E) /* all three apart */
            cdf[1] = exp(2 * lgamma(E - K + 1) - lgamma(E - 2 * K + 1) - lgamma(E + 1) + lgamma(E - 2 * K + 1) -
                         lgamma(E - 3 * K + 1) - lgamma(E + 1) + lgamma(E - K + 1));
        CHECK_I64(moe_ep_chance(3, shape[k][1], shape[k][0], &c, NULL), MOE_EP_OK);
        check_law(&c, cdf, 3, 3 * K / E, 1e-9);
        STOP_IF_FAILED("row %d", (int)k);
    }
}

/* Large loads are normal: the maximum over devices of any sizes, simulated with the covariances of the real loads. */
TEST(chance_of_many_tokens)
{
    static const int32_t shape[][4] = {{100000, 8, 256, 24}, {1000000, 8, 256, 32}, {300000, 2, 60, 7},
                                       {1000000, 6, 64, 64}, {50000, 20, 30, 4},    {200000, 50, 64, 64},
                                       {1000000, 4, 100, 48}, {100000, 1, 11, 2},   {40000, 5, 12, 3},
                                       {8040, 1, 1005, 10},   {20000, 2, 3006, 12}, {3000, 1, 3, 2},
                                       {100000, 2, 1001, 3},  {9000, 3, 5, 3},      {40000, 1, 7, 6}};
    enum { DRAWS = 32000 };
    static double v[DRAWS];
    uint64_t s = t_seed + 24;
    size_t k;
    for (k = 0; k < sizeof shape / sizeof shape[0]; k += t_slow() > 1 ? 5 : 1) {
        const int32_t D = shape[k][3];
        const double T = shape[k][0], K = shape[k][1], E = shape[k][2], mean = T * K / D;
        const double unit = sqrt(T * K / E * (E - K) / (E - 1)), sd = unit * sqrt(E / D * (1 - 1.0 / D));
        double sum = 0, squares = 0, spread;
        moe_ep_chance_result c;
        int i;
        for (i = 0; i < DRAWS; i++) {
            double z[64], size[64], all = 0, most = 0;
            int32_t d;
            for (d = 0; d < D; d++) { /* experts d*E/D .. (d+1)*E/D */
                size[d] = floor((d + 1) * E / D) - floor(d * E / D);
                z[d] = unit * sqrt(size[d]) * sqrt(-2 * log(1 - t_unit(&s))) * cos(6.283185307179586 * t_unit(&s));
                all += z[d];
            }
            for (d = 0; d < D; d++) { /* what all are off their sum is taken off again */
                const double load = (T * K - all) * size[d] / E + z[d];
                most = load > most ? load : most;
            }
            v[i] = most;
            sum += most - mean;
            squares += (most - mean) * (most - mean);
        }
        qsort(v, DRAWS, sizeof *v, by_value);
        sum /= DRAWS;
        spread = sqrt(squares / DRAWS - sum * sum);
        CHECK_I64(moe_ep_chance_devices(shape[k][0], shape[k][1], shape[k][2], D, &c, NULL), MOE_EP_OK);
        CHECK_NEAR((c.max_over_mean - 1) * mean, sum, 0, 0.03 * sd);
        CHECK_NEAR(c.sd * mean, spread, 0, 0.03 * sd);
        CHECK_NEAR(c.p05 * mean, v[DRAWS / 20], 0, 0.04 * sd);
        CHECK_NEAR(c.p95 * mean, v[DRAWS - DRAWS / 20], 0, 0.06 * sd);
        STOP_IF_FAILED("row %d", (int)k);
    }
}

/* One device's rows are the sum of T draws of its experts among K: their percentiles, give or take a row. */
TEST(chance_of_one_device)
{
    int32_t E, K, D, T;
    for (E = 4; E <= 16; E += 4)
        for (D = 2; D <= 4; D += 2)
            for (K = 1; K < E; K++)
                for (T = 1; T <= 12; T++) {
                    const int32_t size = E / D, most = K < size ? K : size;
                    const double mean = (double)T * K / D;
                    double one[17] = {0}, law[200] = {1}, cdf = 0;
                    int32_t k, t, m, p05 = -1, p95 = -1;
                    moe_ep_chance_result c;
                    for (k = 0; k <= most; k++) /* C(size,k) C(E-size,K-k) / C(E,K) */
                        if (K - k <= E - size)
                            one[k] = exp(lgamma(size + 1) - lgamma(k + 1) - lgamma(size - k + 1) +
                                         lgamma(E - size + 1) - lgamma(K - k + 1) - lgamma(E - size - K + k + 1) +
                                         lgamma(K + 1) + lgamma(E - K + 1) - lgamma(E + 1));
                    for (t = 0; t < T; t++)
                        for (m = T * most; m >= 0; m--) {
                            double sum = 0;
                            for (k = 0; k <= most && k <= m; k++) sum += one[k] * law[m - k];
                            law[m] = sum;
                        }
                    for (m = 0; m <= T * most; m++) {
                        cdf += law[m];
                        if (p05 < 0 && cdf > 0.05) p05 = m;
                        if (p95 < 0 && cdf > 0.95) p95 = m;
                    }
                    CHECK_I64(moe_ep_chance_devices(T, K, E, D, &c, NULL), MOE_EP_OK);
                    CHECK_NEAR(c.one_p05 * mean, p05, 0, 1 + 1e-9);
                    CHECK_NEAR(c.one_p95 * mean, p95, 0, 1 + 1e-9);
                    STOP_IF_FAILED("T %d", (int)T);
                }
}

/* Two experts, one choice: the larger of h and T - h, h binomial; in whole rows up to a standard deviation of 12. */
TEST(chance_of_two_experts)
{
    static const int64_t tokens[] = {100, 199, 288, 289, 400, 1000, 3001, 20000};
    size_t k;
    for (k = 0; k < sizeof tokens / sizeof tokens[0]; k++) {
        const int64_t T = tokens[k];
        const double mean = (double)T / 2;
        double sum = 0, squares = 0, cdf = 0;
        int64_t h, p05 = -1, p95 = -1;
        moe_ep_chance_result c;
        for (h = (T + 1) / 2; h <= T; h++) {
            const double both = 2 * h == T ? 1 : 2;
            const double weight = both * exp(lgamma((double)T + 1) - lgamma((double)h + 1) -
                                             lgamma((double)(T - h) + 1) - (double)T * log(2));
            sum += weight * ((double)h - mean);
            squares += weight * ((double)h - mean) * ((double)h - mean);
            cdf += weight;
            if (p05 < 0 && cdf >= 0.05) p05 = h;
            if (p95 < 0 && cdf >= 0.95) p95 = h;
        }
        CHECK_I64(moe_ep_chance(T, 1, 2, &c, NULL), MOE_EP_OK);
        CHECK_NEAR((c.max_over_mean - 1) * mean, sum, 4e-3, 0);
        CHECK_NEAR(c.sd * mean, sqrt(squares - sum * sum), 4e-3, 0);
        CHECK_NEAR(c.p05 * mean, p05, 0, T <= 288 ? 1e-9 : 1);
        CHECK_NEAR(c.p95 * mean, p95, 0, T <= 288 ? 1e-9 : 1);
        STOP_IF_FAILED("T %d", (int)T);
    }
}

/* Experts of device d where E are dealt to D in contiguous blocks. */
static int32_t block(int32_t E, int32_t D, int32_t d)
{
    return (int32_t)((int64_t)(d + 1) * E / D - (int64_t)d * E / D);
}

/* The chance that no device gets more than `most` of T <= 40 balls thrown at E boxes, block(E, D, d) of them device
 * d's; with `least`, that none gets fewer than T * block - most. */
static double balls_on_devices(int32_t T, int32_t E, int32_t D, int32_t most, int least)
{
    double p[41] = {1.0}, chance; /* p[t]: of t balls on the first devices, times E^t / t! */
    int32_t d, k, t;
    for (d = 0; d < D; d++) {
        const int32_t low = least ? T * block(E, D, d) - most : 0, high = least ? T : most;
        double q[41] = {0.0};
        for (t = 0; t <= T; t++) {
            double term = 1.0;
            for (k = 0; k <= high && k <= t; k++) {
                if (k >= low) q[t] += p[t - k] * term;
                term *= (double)block(E, D, d) / (double)(k + 1);
            }
        }
        memcpy(p, q, sizeof p);
    }
    for (chance = p[T], t = 1; t <= T; t++) chance *= (double)t / E;
    return chance;
}

/* One choice a token, or all but one, on devices that own unequal numbers of experts: the very law. */
TEST(chance_devices_of_one_choice)
{
    static const int32_t shape[][2] = {{3, 2}, {5, 2}, {7, 2}, {41, 2}, {4, 3}, {5, 3}, {8, 3}, {7, 4}, {100, 3},
                                       {9, 5}, {23, 7}, {13, 12}, {60, 7}, {31, 16}, {40, 33}};
    size_t i;
    int32_t T;
    for (i = 0; i < sizeof shape / sizeof *shape; i += t_slow() > 1 ? 4 : 1)
        for (T = 1; T <= 40; T += T < 5 ? 1 : 7) {
            const int32_t E = shape[i][0], D = shape[i][1], size = (E + D - 1) / D;
            const double mean = (double)T / D;
            double one[41], but_one[40 * 34 + 1];
            moe_ep_chance_result c;
            int32_t m;
            for (m = 0; m <= T; m++) one[m] = balls_on_devices(T, E, D, m, 0);
            CHECK_I64(moe_ep_chance_devices(T, 1, E, D, &c, NULL), MOE_EP_OK);
            check_law(&c, one, T, mean, 1e-5);
            if (E > 2 && T * size <= 40 * 34) {
                for (m = 0; m <= T * size; m++) but_one[m] = balls_on_devices(T, E, D, m, 1);
                CHECK_I64(moe_ep_chance_devices(T, E - 1, E, D, &c, NULL), MOE_EP_OK);
                check_law(&c, but_one, T * size, (double)T * (E - 1) / D, 1e-5);
            }
            STOP_IF_FAILED("row %d", (int)i);
        }
}

/* One token: of all sets of K experts, how many does the device that owns most of them own? */
TEST(chance_devices_of_one_token)
{
    int32_t E, K, D;
    for (E = 3; E <= 11; E++)
        for (K = 1; K < E; K++)
            for (D = 2; D < E; D++) {
                double cdf[12] = {0}, sets = 0;
                moe_ep_chance_result c;
                uint32_t x;
                int32_t m, d, first;
                for (x = 0; x < 1u << E; x++) {
                    int32_t most = 0;
                    if (bits_of(x) != K) continue;
                    for (d = first = 0; d < D; first += block(E, D, d++)) {
                        const int32_t own = bits_of(x >> first & ((1u << block(E, D, d)) - 1u));
                        most = own > most ? own : most;
                    }
                    sets += 1;
                    for (m = most; m <= K; m++) cdf[m] += 1;
                }
                for (m = 0; m <= K; m++) cdf[m] /= sets;
                CHECK_I64(moe_ep_chance_devices(1, K, E, D, &c, NULL), MOE_EP_OK);
                check_law(&c, cdf, K, (double)K / D, 1e-6);
                STOP_IF_FAILED("E %d", (int)E);
            }
}

/* The law of the busiest of D <= 3 devices after T tokens, row by row: cdf[m] = P(max <= m), m = 0..T*K. */
static void walk_devices(int32_t T, int32_t K, int32_t E, int32_t D, double *cdf)
{
    const int32_t most = T * K, side = most + 1, a = block(E, D, 0), b = D > 2 ? block(E, D, 1) : 0;
    double *law = (double *)t_alloc(sizeof *law * (size_t)side * (size_t)side); /* rows of devices 0 and 1 */
    double all = lgamma(E + 1) - lgamma(K + 1) - lgamma(E - K + 1);
    int32_t t, i, j, x, y, m;
    for (i = 0; i < side * side; i++) law[i] = i == 0;
    for (t = 0; t < T; t++)
        for (x = most; x >= 0; x--)
            for (y = most; y >= 0; y--) {
                double sum = 0;
                for (i = 0; i <= a && i <= K && i <= x; i++)
                    for (j = 0; j <= b && i + j <= K && j <= y; j++)
                        if (K - i - j <= E - a - b && law[(x - i) * side + y - j] > 0)
                            sum += law[(x - i) * side + y - j] *
                                   exp(lgamma(a + 1) - lgamma(i + 1) - lgamma(a - i + 1) + lgamma(b + 1) -
                                       lgamma(j + 1) - lgamma(b - j + 1) + lgamma(E - a - b + 1) -
                                       lgamma(K - i - j + 1) - lgamma(E - a - b - K + i + j + 1) - all);
                law[x * side + y] = sum;
            }
    for (m = 0; m <= most; m++) cdf[m] = 0;
    for (x = 0; x <= most; x++)
        for (y = 0; x + y <= most; y++) {
            i = x > y ? x : y;
            for (m = i > most - x - y ? i : most - x - y; m <= most; m++) cdf[m] += law[x * side + y];
        }
    free(law);
}

/* Two and three devices, any K: the mean within 1 %, the spread within 5 %, percentiles within a row. */
TEST(chance_of_two_and_three_devices)
{
    static const int32_t shape[][3] = {{3, 2, 2}, {5, 2, 2}, {7, 3, 2}, {9, 8, 2}, {9, 6, 2}, {21, 8, 2}, {101, 4, 2},
                                       {5, 2, 3}, {7, 2, 3}, {8, 3, 3}, {8, 5, 3}, {10, 4, 3}, {100, 3, 3},
                                       {8, 2, 2}, {12, 4, 3}};
    size_t k;
    for (k = 0; k < sizeof shape / sizeof shape[0]; k += t_slow() > 1 ? 4 : 1) {
        const int32_t E = shape[k][0], K = shape[k][1], D = shape[k][2], last = D == 2 ? 40 : 8;
        int32_t T;
        for (T = 2; T <= last; T += D == 2 && T > 4 ? 12 : 2) {
            const double mean = (double)T * K / D;
            double *cdf = (double *)t_alloc(sizeof *cdf * (size_t)(T * K + 1)), sum = 0, squares = 0, before = 0;
            moe_ep_chance_result c;
            int32_t m, p05 = -1, p95 = -1;
            walk_devices(T, K, E, D, cdf);
            for (m = 0; m <= T * K; m++) {
                sum += (m - mean) * (cdf[m] - before);
                squares += (m - mean) * (m - mean) * (cdf[m] - before);
                before = cdf[m];
                if (p05 < 0 && cdf[m] >= 0.05) p05 = m;
                if (p95 < 0 && cdf[m] >= 0.95) p95 = m;
            }
            free(cdf);
            CHECK_I64(moe_ep_chance_devices(T, K, E, D, &c, NULL), MOE_EP_OK);
            CHECK_NEAR(c.max_over_mean * mean, mean + sum, 0.01, 0);
            CHECK_NEAR(c.sd * mean, sqrt(squares - sum * sum), 0.05, 0);
            CHECK_NEAR(c.p05 * mean, p05, 0, 1 + 1e-9);
            CHECK_NEAR(c.p95 * mean, p95, 0, 1 + 1e-9);
            if (t_failed_here) printf("    E %d K %d D %d\n", E, K, D);
            STOP_IF_FAILED("T %d", (int)T);
        }
    }
}

/* One choice of an odd number of experts on two devices: the larger of h and T - h, h binomial, on both sides of the
 * standard deviation from which on loads are looked at in steps. */
TEST(chance_of_two_unequal_devices)
{
    static const int32_t experts[] = {3, 5, 9, 33, 101, 1001};
    static const int64_t tokens[] = {50,  144, 215, 216, 217, 239, 240, 241,  259,
                                     260, 280, 288, 289, 400, 600, 2500, 30000};
    size_t i, k;
    for (k = 0; k < sizeof tokens / sizeof tokens[0]; k++)
        for (i = 0; i < sizeof experts / sizeof experts[0]; i++) {
            const int64_t T = tokens[k];
            const double mean = (double)T / 2, p = (double)(experts[i] / 2) / experts[i];
            double sum = 0, squares = 0, cdf = 0;
            int64_t m, p05 = -1, p95 = -1;
            moe_ep_chance_result c;
            for (m = (T + 1) / 2; m <= T; m++) {
                const double ways = lgamma((double)T + 1) - lgamma((double)m + 1) - lgamma((double)(T - m) + 1);
                double weight = exp(ways + (double)m * log(p) + (double)(T - m) * log(1 - p));
                if (2 * m > T) weight += exp(ways + (double)m * log(1 - p) + (double)(T - m) * log(p));
                sum += weight * ((double)m - mean);
                squares += weight * ((double)m - mean) * ((double)m - mean);
                cdf += weight;
                if (p05 < 0 && cdf >= 0.05) p05 = m;
                if (p95 < 0 && cdf >= 0.95) p95 = m;
            }
            CHECK_I64(moe_ep_chance_devices(T, 1, experts[i], 2, &c, NULL), MOE_EP_OK);
            CHECK_NEAR((c.max_over_mean - 1) * mean, sum, 4e-3, 0);
            CHECK_NEAR(c.sd * mean, sqrt(squares - sum * sum), 5e-3, 0);
            CHECK_NEAR(c.p05 * mean, p05, 0, (double)T * (1 - p) <= 144 ? 1e-9 : 1);
            CHECK_NEAR(c.p95 * mean, p95, 0, (double)T * (1 - p) <= 144 ? 1e-9 : 1);
            if (t_failed_here) printf("    %d experts\n", experts[i]);
            STOP_IF_FAILED("T %d", (int)T);
        }
}

/* What is above the mean falls as 1/sqrt(T) as far as tokens can be counted. */
TEST(chance_of_countless_tokens)
{
    static const int32_t choices[3] = {1, 8, 255};
    moe_ep_chance_result c, d;
    double T;
    int k;
    for (k = 0; k < 3; k++) {
        CHECK_I64(moe_ep_chance(20000000000, choices[k], 256, &c, NULL), MOE_EP_OK);
        for (T = 2e11; T * choices[k] < 9e18; T *= 10) {
            CHECK_I64(moe_ep_chance((int64_t)T, choices[k], 256, &d, NULL), MOE_EP_OK);
            CHECK_NEAR((d.max_over_mean - 1) * sqrt(T / 2e10), c.max_over_mean - 1, 1e-3, 0);
            CHECK_NEAR(d.sd * sqrt(T / 2e10), c.sd, 1e-3, 0);
            CHECK_NEAR((d.p95 - 1) * sqrt(T / 2e10), c.p95 - 1, 1e-3, 0);
            STOP_IF_FAILED("%g tokens", T);
        }
    }
}

/* Of 24 devices with 10 or 11 of 256 experts one of the 16 large ones is the busiest once there are tokens enough:
 * their loads are normal, equally correlated. */
TEST(chance_devices_of_countless_tokens)
{
    enum { DRAWS = 40000 };
    static const int32_t choices[3] = {1, 8, 255};
    static double v[DRAWS];
    uint64_t s = t_seed + 26;
    double sum = 0, squares = 0, spread;
    int i, k;
    for (i = 0; i < DRAWS; i++) { /* sqrt(11) z - 11/16 of what all together are off, in sd of one expert's load */
        double most = -1e9, all = sqrt(80) * sqrt(-2 * log(1 - t_unit(&s))) * cos(6.283185307179586 * t_unit(&s));
        int d;
        for (d = 0; d < 16; d++) {
            const double z = sqrt(11) * sqrt(-2 * log(1 - t_unit(&s))) * cos(6.283185307179586 * t_unit(&s));
            all += z;
            most = z > most ? z : most;
        }
        v[i] = most - all * 11 / 256;
        sum += v[i];
        squares += v[i] * v[i];
    }
    qsort(v, DRAWS, sizeof *v, by_value);
    sum /= DRAWS;
    spread = sqrt(squares / DRAWS - sum * sum);
    for (k = 0; k < 3; k++) {
        const double K = choices[k], large = 11.0 * 24 / 256;
        double T;
        for (T = 1e9; T < 9.2e18 / K; T *= 10) { /* up to the largest T * K there is */
            const double unit = sqrt(T * K / 256 * (256 - K) / 255) / (T * K / 24); /* of mean loads */
            moe_ep_chance_result c;
            CHECK_I64(moe_ep_chance_devices((int64_t)T, choices[k], 256, 24, &c, NULL), MOE_EP_OK);
            if (unit > 1e-12) CHECK_NEAR((c.max_over_mean - large) / unit, sum, 0, 0.03 * spread);
            CHECK_NEAR(c.sd / unit, spread, 0.02, 0);
            if (unit > 1e-12) CHECK_NEAR((c.p05 - large) / unit, v[DRAWS / 20], 0, 0.06 * spread);
            if (unit > 1e-12) CHECK_NEAR((c.p95 - large) / unit, v[DRAWS - DRAWS / 20], 0, 0.08 * spread);
            STOP_IF_FAILED("%g tokens", T);
        }
    }
}

/* One expert, one device, or every expert a token's: nothing is left to chance. */
TEST(chance_without_choice)
{
    static const int64_t tokens[5] = {1, 2, 5, 300, 1000000};
    int i, k;
    for (i = 0; i < 5; i++)
        for (k = 0; k < 4; k++) {
            const int64_t T = tokens[i];
            moe_ep_chance_result c;
            moe_ep_status st = k == 0   ? moe_ep_chance(T, 1, 1, &c, NULL)
                               : k == 1 ? moe_ep_chance_with_replacement(T, 3, 1, &c, NULL)
                               : k == 2 ? moe_ep_chance_devices(T, 3, 8, 1, &c, NULL)
                                        : moe_ep_chance_devices(T, 7, 7, 3, &c, NULL);
            CHECK_I64(st, MOE_EP_OK);
            CHECK_NEAR(c.mean_load, k == 0 ? (double)T : k == 3 ? (double)T * 7 / 3 : 3 * (double)T, 1e-14, 0);
            CHECK_NEAR(c.max_over_mean, 1, 0, 0);
            CHECK_NEAR(c.gauss_bound, 1, 0, 0);
            CHECK(c.p05 >= 1 && c.p05 <= 1 && c.p95 >= 1 && c.p95 <= 1);
            CHECK(c.one_p05 >= 1 && c.one_p05 <= 1 && c.one_p95 >= 1 && c.one_p95 <= 1);
            CHECK_NEAR(c.sd, 0, 0, 0);
            CHECK_NEAR(c.one_sd, 0, 0, 0);
            CHECK_NEAR(c.tokens, (double)T, 1e-14, 0);
            CHECK_NEAR(c.distinct, k < 2 ? 1 : k == 2 ? 8 * (1 - pow(0.625, (double)T)) : 7.0 / 3, 1e-13, 0);
        }
}

TEST(chance_of_no_tokens)
{
    moe_ep_chance_result c;
    moe_ep_error err;
    CHECK_I64(moe_ep_chance_with_replacement(0, 1, 4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "T");
    CHECK_I64(moe_ep_chance_with_replacement(1, 1, 0, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "E");
    CHECK_I64(moe_ep_chance_with_replacement(3, 0, 4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "K");
    CHECK_I64(moe_ep_chance_devices(0, 1, 4, 2, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "T");
}

TEST(chance_monte_carlo)
{
    static const int64_t tokens[] = {1, 2, 3, 4, 5, 8, 16, 64, 512, 4096};
    static const int32_t experts[] = {2, 3, 4, 5, 8, 16, 64, 256, 4096};
    static const int32_t choices[] = {1, 2, 3, 4, 8, 32, -1}; /* -1: E-1 */
    uint64_t s = t_seed + 9;
    size_t i, j, k;
    int cases = 0;
    worst_miss = 0;
    for (i = 0; i < sizeof experts / sizeof experts[0]; i++)
        for (j = 0; j < sizeof choices / sizeof choices[0]; j++)
            for (k = 0; k < sizeof tokens / sizeof tokens[0]; k++) {
                int32_t E = experts[i], K = choices[j] > 0 ? choices[j] : E - 1;
                int64_t T = tokens[k], trials = 500000 / (T * K + E);
                moe_ep_chance_result c;
                sample m;
                if (K > E || (choices[j] < 0 && E > 300) || trials < 60) continue;
                if (t_slow() > 1 && (i + j + k) % 10) continue;
                trials = trials > 8000 ? 8000 : trials;
                m = simulate(&s, T, K, E, E, 0, (int)trials);
                CHECK_I64(moe_ep_chance(T, K, E, &c, NULL), MOE_EP_OK);
                check_chance(&c, &m, (double)E / (double)(T * K), trials);
                cases++;
                if (t_failed_here) {
                    printf("    E=%d K=%d T=%d: got %.4f sd %.4f %.4f..%.4f, "
                           "simulated %.4f+-%.4f sd %.4f %.4f..%.4f\n",
                           E, K, (int)T,
                           c.max_over_mean, c.sd, c.p05, c.p95, m.mean, m.se, m.sd, m.p05, m.p95);
                    return;
                }
            }
    printf("    %d cases, largest error beyond 3 standard errors %.2f %%\n", cases, 100 * worst_miss);
}

/* 5 of 8 experts, drawn from the 56 sets there are; counts of 16 bits side by side.  The law is off by 5e-4 at most. */
TEST(chance_close_to_a_long_simulation)
{
    static const struct { int T, trials; double off; } row[] = {{64, 400000, 8e-4}, {1000, 200000, 1.5e-4}};
    uint64_t low[56], high[56], s = 7;
    int sets = 0, m, e, i, t, q;
    if (t_slow() > 1) SKIP("half a billion draws take long here");
    for (m = 0; m < 256; m++) {
        int bits = 0;
        uint64_t a = 0, b = 0;
        for (e = 0; e < 8; e++) bits += m >> e & 1;
        if (bits != 5) continue;
        for (e = 0; e < 4; e++) {
            a |= (uint64_t)(m >> e & 1) << 16 * e;
            b |= (uint64_t)(m >> (e + 4) & 1) << 16 * e;
        }
        low[sets] = a;
        high[sets++] = b;
    }
    CHECK_I64(sets, 56);
    for (q = 0; q < 2; q++) {
        double sum = 0;
        moe_ep_chance_result c;
        for (i = 0; i < row[q].trials; i++) {
            uint64_t a = 0, b = 0;
            int most = 0;
            for (t = 0; t < row[q].T; t++) {
                int k = (int)((t_u64(&s) >> 32) * 56 >> 32);
                a += low[k];
                b += high[k];
            }
            for (e = 0; e < 4; e++) {
                int x = (int)(a >> 16 * e & 0xffff), y = (int)(b >> 16 * e & 0xffff);
                most = x > most ? x : most;
                most = y > most ? y : most;
            }
            sum += most / (row[q].T * 5 / 8.0);
        }
        CHECK_I64(moe_ep_chance(row[q].T, 5, 8, &c, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean, sum / row[q].trials, 0, row[q].off);
    }
}

/* D that does not divide E: simulated means of 20,000 draws, contiguous blocks, expert e on device e * D / E. */
TEST(chance_devices_of_uneven_blocks)
{
    static const struct { int64_t T; int32_t K, E, D; double mean, off; } row[] = {
        {27, 11, 13, 12, 1.845, 0.01}, {70, 5, 7, 6, 1.714, 0.01},  {34, 6, 7, 5, 1.472, 0.01},
        {64, 2, 10, 4, 1.303, 0.01},   {16, 8, 256, 24, 1.918, 0.01}, {1000, 8, 256, 24, 1.129, 0.01},
        {512, 8, 60, 7, 1.091, 0.01},  {5, 2, 9, 2, 1.246, 0.01},   {1, 3, 7, 3, 1.683, 0.01},
        {200, 2, 9, 2, 1.112, 0.01},   {100, 1, 5, 3, 1.306, 0.01}, {4096, 8, 256, 100, 1.308, 0.01},
        {3, 4, 100, 33, 5.532, 0.01}, {64, 60, 61, 8, 1.056, 0.01}};
    size_t i;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        moe_ep_chance_result r;
        CHECK_I64(moe_ep_chance_devices(row[i].T, row[i].K, row[i].E, row[i].D, &r, NULL), MOE_EP_OK);
        CHECK_NEAR(r.max_over_mean, row[i].mean, row[i].off, 0);
        CHECK(r.p05 >= 1.0 && r.p05 <= r.max_over_mean && r.max_over_mean <= r.p95);
        STOP_IF_FAILED("row %d", (int)i);
    }
}

TEST(chance_devices_monte_carlo)
{
    static const int32_t shape[][3] = {
        {8, 2, 2}, {8, 2, 4}, {64, 6, 8}, {256, 8, 4}, {256, 8, 8}, {256, 8, 64}, {60, 4, 6}, {16, 12, 4},
        {7, 2, 2}, {8, 2, 3}, {7, 5, 4}, {11, 9, 5}, {60, 8, 7}, {100, 8, 3}, {256, 8, 24}, {100, 2, 64}, {61, 60, 8}};
    static const int64_t tokens[] = {1, 2, 4, 16, 64, 512};
    uint64_t s = t_seed + 10;
    size_t i, k;
    worst_miss = 0;
    for (i = 0; i < sizeof shape / sizeof shape[0]; i++)
        for (k = 0; k < sizeof tokens / sizeof tokens[0]; k++) {
            int32_t E = shape[i][0], K = shape[i][1], D = shape[i][2];
            int64_t trials = 1500000 / (tokens[k] * K + E);
            moe_ep_chance_result c;
            sample m;
            if (t_slow() > 1 && (i + k) % 8) continue;
            trials = trials > 8000 ? 8000 : trials;
            m = simulate(&s, tokens[k], K, E, D, 0, (int)trials);
            CHECK_I64(moe_ep_chance_devices(tokens[k], K, E, D, &c, NULL), MOE_EP_OK);
            check_chance(&c, &m, (double)D / (double)(tokens[k] * K), trials);
            if (trials >= 4000) CHECK_NEAR(c.sd, m.sd, 0.05, 0.02 * D / (double)(tokens[k] * K) + 4 * m.se);
            if (t_failed_here) {
                printf("    E=%d K=%d D=%d T=%d: got %.4f sd %.4f, simulated %.4f+-%.4f sd %.4f\n", E, K, D,
                       (int)tokens[k],
                       c.max_over_mean, c.sd, m.mean, m.se, m.sd);
                return;
            }
        }
    printf("    largest error beyond 3 standard errors %.2f %%\n", 100 * worst_miss);
}

/* ---- groups: M of G are drawn, K experts inside them ---- */

/* One token, by partial shuffles; adds its rows to the devices, expert e on device of_expert[e]. */
static void grouped_token(uint64_t *s, int32_t E, int32_t K, int32_t G, int32_t M, const int32_t *of_expert,
                          int64_t *rows)
{
    int32_t group[32], pool[256], i, e, n = 0;
    for (i = 0; i < G; i++) group[i] = i;
    for (i = 0; i < M; i++) {
        const int32_t j = i + (int32_t)t_below(s, G - i), swap = group[i];
        group[i] = group[j];
        group[j] = swap;
        for (e = 0; e < E / G; e++) pool[n++] = group[i] * (E / G) + e;
    }
    for (i = 0; i < K; i++) {
        const int32_t j = i + (int32_t)t_below(s, n - i), swap = pool[i];
        pool[i] = pool[j];
        pool[j] = swap;
        rows[of_expert[pool[i]]]++;
    }
}

/* Contiguous blocks: the first E mod D devices have one expert more. */
static void devices_of(int32_t E, int32_t D, int32_t *of_expert)
{
    int32_t d, e = 0, left;
    for (d = 0; d < D; d++)
        for (left = E / D + (d < E % D); left > 0; left--) of_expert[e++] = d;
}

/* What device d has of so many rows when every expert has as many. */
static double even_rows(double rows, int32_t E, int32_t D, int32_t d)
{
    return rows / E * (E / D + (d < E % D));
}

TEST(chance_grouped_monte_carlo)
{
    /* mean: largest relative error of max_over_mean from 16 tokens on; twice that with 4 */
    static const struct { int32_t K, E, D, G, M; double mean; } row[] = {
        {8, 256, 8, 8, 4, 0.01},  {6, 160, 8, 8, 3, 0.01},  {8, 256, 32, 8, 4, 0.013}, {8, 256, 64, 8, 4, 0.013},
        {8, 256, 4, 8, 4, 0.01},  {8, 256, 3, 8, 4, 0.01},  {8, 256, 12, 8, 4, 0.013}, {8, 256, 256, 8, 4, 0.01},
        {8, 64, 8, 16, 2, 0.01},  {8, 96, 6, 12, 2, 0.01},  {16, 64, 16, 4, 2, 0.01},  {8, 256, 8, 8, 1, 0.01},
        {8, 256, 32, 8, 1, 0.03}, {32, 256, 64, 4, 1, 0.013}, {60, 120, 8, 4, 3, 0.016}, {16, 32, 16, 4, 2, 0.03}};
    static const int64_t tokens[] = {4, 16, 64, 512};
    uint64_t s = t_seed + 30;
    size_t i, k;
    for (i = 0; i < sizeof row / sizeof row[0]; i++)
        for (k = 0; k < sizeof tokens / sizeof tokens[0]; k++) {
            const int32_t K = row[i].K, E = row[i].E, D = row[i].D;
            const int64_t T = tokens[k];
            const double mean = (double)(T * K) / D;
            int32_t of_expert[256], trials = (int32_t)(1200000 / (T * (K + row[i].M * E / row[i].G) + D)), r, d;
            double sum = 0, squares = 0, one = 0, se, sd;
            int above = 0, below = 0;
            moe_ep_chance_result c;
            if (t_slow() > 1 && (i + k) % 4) continue;
            if (t_slow() > 1) trials /= 4;
            trials = trials > 3000 ? 3000 : trials < 200 ? 200 : trials;
            devices_of(E, D, of_expert);
            CHECK_I64(moe_ep_chance_grouped(T, K, E, D, row[i].G, row[i].M, &c, NULL), MOE_EP_OK);
            for (r = 0; r < trials; r++) {
                int64_t rows[256] = {0}, most = 0, t;
                for (t = 0; t < T; t++) grouped_token(&s, E, K, row[i].G, row[i].M, of_expert, rows);
                for (d = 0; d < D; d++) {
                    const double even = even_rows((double)(T * K), E, D, d);
                    one += ((double)rows[d] - even) * ((double)rows[d] - even);
                    most = rows[d] > most ? rows[d] : most;
                }
                sum += (double)most / mean;
                squares += (double)most / mean * (double)most / mean;
                above += (double)most / mean > c.p95 + 1.5 * fmax(1, c.one_sd * c.one_sd * mean) / mean;
                below += (double)most / mean < c.p05 - 1.5 * fmax(1, c.one_sd * c.one_sd * mean) / mean;
            }
            sum /= trials;
            sd = sqrt(fmax(squares / trials - sum * sum, 0));
            se = sd / sqrt(trials);
            CHECK_NEAR(c.max_over_mean, sum, row[i].mean * (T < 16 ? 3 : 1), 4 * se);
            CHECK_NEAR(c.one_sd, sqrt(one / trials / D) / mean,
                       0.01 + 5 / sqrt(2.0 * trials * (D > 16 ? 16 : D - 1)), 0);
            if (T >= 16) CHECK_NEAR(c.sd, sd, (T < 64 ? 0.2 : 0.1) + 4 / sqrt(2.0 * trials), 0);
            CHECK(c.p05 >= 1 && c.p05 <= c.max_over_mean && c.max_over_mean <= c.p95);
            CHECK(above <= 0.05 * trials + 4 * sqrt(0.05 * trials)); /* a bundle beyond them there is no more */
            CHECK(below <= 0.05 * trials + 4 * sqrt(0.05 * trials));
            if (t_failed_here)
                printf("    T=%d K=%d E=%d D=%d, %d of %d groups: got %.4f sd %.4f %.3f..%.3f, simulated %.4f+-%.4f sd "
                       "%.4f\n", (int)T, K, E, D, row[i].M, row[i].G, c.max_over_mean, c.sd, c.p05, c.p95, sum, se, sd);
            STOP_IF_FAILED("row %d", (int)i);
        }
}

/* What one token does, over every choice of groups and of experts inside them, whatever devices cut the groups. */
TEST(chance_grouped_one_token_by_enumeration)
{
    static const int32_t shape[][3] = {{2, 6, 1}, {3, 4, 2}, {4, 3, 2}, {4, 3, 3}, {6, 2, 1}, {6, 2, 3}, {12, 1, 5},
                                       {3, 4, 1}, {2, 5, 1}, {5, 2, 4}};
    size_t i;
    int32_t K, D;
    for (i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        const int32_t G = shape[i][0], size = shape[i][1], M = shape[i][2], E = G * size;
        for (K = 1; K <= M * size; K++)
            for (D = 1; D <= E; D++) {
                int32_t of_expert[12], m, e, d;
                double square = 0, reached = 0, ways = 0;
                moe_ep_chance_result c;
                devices_of(E, D, of_expert);
                for (m = 0; m < 1 << E; m++) {
                    int32_t rows[12] = {0}, groups = 0, used = 0, n = 0;
                    double alike = 1; /* draws of groups that hold these experts */
                    for (e = 0; e < E; e++)
                        if (m >> e & 1) n++, groups |= 1 << e / size, rows[of_expert[e]]++;
                    for (e = 0; e < G; e++) used += groups >> e & 1;
                    if (n != K || used > M) continue;
                    for (e = 0; e < M - used; e++) alike *= (double)(G - used - e) / (e + 1);
                    for (d = 0; d < D; d++) {
                        const double even = even_rows(K, E, D, d);
                        square += alike * (rows[d] - even) * (rows[d] - even);
                        reached += alike * (rows[d] > 0);
                    }
                    ways += alike;
                }
                CHECK_I64(moe_ep_chance_grouped(9, K, E, D, G, M, &c, NULL), MOE_EP_OK);
                if (E % D == 0 || K > 1) { /* K = 1: moe_ep_chance_devices, of a device of E/D experts */
                    CHECK_NEAR(c.one_sd, sqrt(9 * square / ways / D) / (9.0 * K / D), 1e-12, 1e-12);
                    CHECK_NEAR(c.tokens, 9 * reached / ways / D, 1e-12, 0);
                }
                CHECK_NEAR(c.distinct, (double)E / (D < E ? D : 1) * (1 - pow(1 - (double)K / E, 9)), 1e-12, 0);
                CHECK(c.max_over_mean >= 1 && c.p05 >= 1 && c.p05 <= c.p95 && c.one_p05 <= c.one_p95 && c.sd >= 0);
                CHECK(c.max_over_mean <= (double)D / K * (K < (E + D - 1) / D ? K : (E + D - 1) / D) * (1 + 1e-12));
            }
        STOP_IF_FAILED("shape %d", (int)i);
    }
}

/* One of 4 groups of 16 devices for all 32 choices: the groups' tokens are normal with a fixed sum, and so are the rows
 * of a group's devices, dealt from its tokens. */
TEST(chance_grouped_of_countless_tokens)
{
    enum { DRAWS = 20000, G = 4, EACH = 16, K = 32 };
    static double v[DRAWS];
    uint64_t s = t_seed + 31;
    /* per token: of a group's tokens, of a device's rows of one of them (4 of 64 experts) */
    const double tokens = sqrt(1.0 / G), rows = sqrt(K * (1.0 / 16) * (15.0 / 16) * 32 / 63 * 16 / 15 / G);
    double sum = 0, squares = 0, spread;
    moe_ep_chance_result c;
    int i, g, d;
    for (i = 0; i < DRAWS; i++) {
        double of_group[G], all = 0, most = -1e9;
        for (g = 0; g < G; g++) {
            of_group[g] = tokens * sqrt(-2 * log(1 - t_unit(&s))) * cos(6.283185307179586 * t_unit(&s));
            all += of_group[g] / G;
        }
        for (g = 0; g < G; g++) {
            double z[EACH], mean = 0, largest = -1e9;
            for (d = 0; d < EACH; d++) {
                z[d] = rows * sqrt(-2 * log(1 - t_unit(&s))) * cos(6.283185307179586 * t_unit(&s));
                mean += z[d] / EACH;
                largest = fmax(largest, z[d]);
            }
            most = fmax(most, (of_group[g] - all) * K / EACH + largest - mean);
        }
        v[i] = most / (K / 64.0);
        sum += v[i] / DRAWS;
        squares += v[i] * v[i] / DRAWS;
    }
    qsort(v, DRAWS, sizeof *v, by_value);
    spread = sqrt(squares - sum * sum);
    CHECK_I64(moe_ep_chance_grouped(10000000000, K, 256, 64, G, 1, &c, NULL), MOE_EP_OK);
    CHECK_NEAR((c.max_over_mean - 1) * 1e5, sum, 0.01, 0);
    CHECK_NEAR(c.sd * 1e5, spread, 0.02, 0);
    CHECK_NEAR((c.p05 - 1) * 1e5, v[DRAWS / 20], 0, 0.1 * spread);
    CHECK_NEAR((c.p95 - 1) * 1e5, v[DRAWS - DRAWS / 20], 0, 0.1 * spread);
}

static void check_mix(const moe_ep_chance_result *c, double w, const moe_ep_chance_result *a,
                      const moe_ep_chance_result *b)
{
    CHECK_NEAR(c->max_over_mean, w * a->max_over_mean + (1 - w) * b->max_over_mean, 1e-9, 0);
    CHECK_NEAR(c->sd, w * a->sd + (1 - w) * b->sd, 1e-9, 0);
    CHECK_NEAR(c->p05, w * a->p05 + (1 - w) * b->p05, 1e-9, 0);
    CHECK_NEAR(c->p95, w * a->p95 + (1 - w) * b->p95, 1e-9, 0);
    CHECK_NEAR(c->one_p05, w * a->one_p05 + (1 - w) * b->one_p05, 1e-9, 1e-9);
    CHECK_NEAR(c->one_p95, w * a->one_p95 + (1 - w) * b->one_p95, 1e-9, 0);
}

/* What the header says of it, where devices have nothing in common but the sum: bundles of rows with the variance of
 * one_sd, between two whole numbers of them as 1 / bundles lies; less than independent rows vary, between these and
 * distinct experts. */
TEST(chance_grouped_in_bundles)
{
    static const int32_t row[][5] = {{8, 256, 8, 8, 4}, {6, 160, 8, 8, 3}, {8, 256, 4, 8, 4}, {5, 60, 3, 6, 2},
                                     {48, 64, 2, 8, 7}, {60, 120, 4, 4, 3}, {40, 64, 8, 8, 7}, {12, 16, 2, 8, 7}};
    static const int64_t tokens[] = {1, 2, 3, 7, 20, 333};
    int bundled = 0, distinct = 0;
    size_t i, k;
    for (i = 0; i < sizeof row / sizeof row[0]; i++)
        for (k = 0; k < sizeof tokens / sizeof tokens[0]; k++) {
            const int32_t K = row[i][0], E = row[i][1], D = row[i][2];
            const double T = (double)tokens[k], mean = (double)K / D, flat = (E - K) / (E - 1.0);
            const double most = (K < (E + D - 1) / D ? K : (E + D - 1) / D) / mean;
            moe_ep_chance_result c, a, b;
            double over;
            CHECK_I64(moe_ep_chance_grouped(tokens[k], K, E, D, row[i][3], row[i][4], &c, NULL), MOE_EP_OK);
            over = c.one_sd * c.one_sd * T * mean * D / (D - 1);
            if (over > 1) {
                const double n = T * K / over, low = floor(n);
                CHECK_I64(moe_ep_chance_devices((int64_t)low, 1, E, D, &a, NULL), MOE_EP_OK);
                CHECK_I64(moe_ep_chance_devices((int64_t)low + 1, 1, E, D, &b, NULL), MOE_EP_OK);
                if (a.p95 < most && b.p95 < most)
                    check_mix(&c, (1 / n - 1 / (low + 1)) / (1 / low - 1 / (low + 1)), &a, &b);
                bundled++;
            } else {
                CHECK(over > flat);
                CHECK_I64(moe_ep_chance_devices(tokens[k], K, E, D, &a, NULL), MOE_EP_OK);
                CHECK_I64(moe_ep_chance_devices(tokens[k] * K, 1, E, D, &b, NULL), MOE_EP_OK);
                if (a.p95 < most && b.p95 < most) check_mix(&c, (1 - over) / (1 - flat), &a, &b);
                distinct++;
            }
            STOP_IF_FAILED("row %d", (int)i);
        }
    printf("    %d in bundles, %d below independent rows\n", bundled, distinct);
    CHECK(bundled > 5 && distinct > 5);
}

/* Where the law is known: nothing is limited, one choice, or one group of all choices on a device of its own. */
TEST(chance_grouped_closed_forms)
{
    moe_ep_chance_result c, r;
    moe_ep_error err;
    int64_t T;
    int32_t i;
    CHECK_I64(moe_ep_chance_grouped(64, 8, 256, 8, 8, 4, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(c.max_over_mean, 1.25, 0, 0.006);
    CHECK_NEAR(c.p95, 1.43, 0, 0.006);
    CHECK_NEAR(c.tokens, 64 * 3.63 / 8, 0.002, 0);
    CHECK_NEAR(c.mean_load, 64, 0, 0);
    CHECK_NEAR(c.gauss_bound, 1 + c.one_sd * sqrt(2 * log(8)), 1e-14, 0);
    CHECK_I64(moe_ep_chance_devices(64, 8, 256, 8, &r, NULL), MOE_EP_OK);
    CHECK_NEAR(r.max_over_mean, 1.18, 0, 0.005);
    CHECK_NEAR(r.p95, 1.30, 0, 0.005);
    for (T = 1; T <= 1000000000000; T *= 100) {
        static const int32_t unlimited[4][2] = {{0, 0}, {1, 1}, {8, 0}, {8, 9}};
        CHECK_I64(moe_ep_chance_devices(T, 6, 160, 12, &r, NULL), MOE_EP_OK);
        for (i = 0; i < 4; i++) {
            CHECK_I64(moe_ep_chance_grouped(T, 6, 160, 12, unlimited[i][0], unlimited[i][1], &c, NULL), MOE_EP_OK);
            CHECK(memcmp(&c, &r, sizeof c) == 0);
        }
        CHECK_I64(moe_ep_chance_grouped(T, 1, 160, 12, 8, 3, &c, NULL), MOE_EP_OK); /* any expert alike */
        CHECK_I64(moe_ep_chance_devices(T, 1, 160, 12, &r, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean, r.max_over_mean, 0, 0);
        CHECK_NEAR(c.one_sd, r.one_sd, 0, 0);
        CHECK_I64(moe_ep_chance_grouped(T, 5, 160, 1, 8, 3, &c, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean + c.p05 + c.p95 + c.sd + c.one_sd, 3, 0, 0);
        CHECK_I64(moe_ep_chance_grouped(T, 6, 160, 8, 8, 1, &c, NULL), MOE_EP_OK); /* T bundles of 6 rows */
        CHECK_I64(moe_ep_chance(T, 1, 8, &r, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean - 1, r.max_over_mean - 1, 1e-6, 1e-12);
        CHECK_NEAR(c.sd, r.sd, 1e-6, 1e-12);
        CHECK_NEAR(c.p05, r.p05, 1e-9, 0);
        CHECK_NEAR(c.p95, r.p95, 1e-9, 0);
        CHECK_NEAR(c.one_sd, r.one_sd, 1e-12, 0);
        STOP_IF_FAILED("T %.0f", (double)T);
    }
    CHECK_I64(moe_ep_chance_grouped(1, 32, 256, 64, 4, 1, &c, NULL), MOE_EP_OK); /* 4 rows at most */
    CHECK_NEAR(c.p95, 8, 0, 0);
    CHECK_I64(moe_ep_chance_grouped(1, 16, 32, 16, 4, 2, &c, NULL), MOE_EP_OK); /* takes both experts of a device */
    CHECK_NEAR(c.max_over_mean + c.p95, 4, 0, 0);
    CHECK_I64(moe_ep_chance_grouped(1, 2, 64, 4, 8, 1, &c, NULL), MOE_EP_OK); /* both choices */
    CHECK_NEAR(c.p95, 4, 0, 0);
    for (T = 1000000; T <= 1000000000000000; T *= 10) { /* as 1/sqrt(T) in the end, in groups of devices as well */
        CHECK_I64(moe_ep_chance_grouped(T, 8, 256, 32, 8, 1, &c, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_chance_grouped(100 * T, 8, 256, 32, 8, 1, &r, NULL), MOE_EP_OK);
        CHECK_NEAR((c.max_over_mean - 1) / (r.max_over_mean - 1), 10, 0.01, 0);
        CHECK_NEAR((c.p95 - 1) / (r.p95 - 1), 10, 0.01, 0);
        CHECK_NEAR(c.sd / r.sd, 10, 0.01, 0);
    }
    CHECK_I64(moe_ep_chance_grouped(0, 8, 256, 8, 8, 4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "T");
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 257, 8, 4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "D");
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 0, 8, 4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "D");
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 8, 7, 4, &c, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "num_groups");
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 8, -8, 4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 8, 8, -4, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "top_groups");
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 8, 64, 1, &c, &err), MOE_EP_ERR_TOP_K);
    CHECK_STR(err.arg, "top_groups");
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 8, 8, 4, NULL, &err), MOE_EP_ERR_NULL);
    memset(&err, 1, sizeof err);
    CHECK_I64(moe_ep_chance_grouped(1, 8, 256, 8, 8, 4, &c, &err), MOE_EP_OK);
    CHECK_I64(err.status, MOE_EP_OK);
}

TEST(chance_closed_forms)
{
    moe_ep_chance_result c, r;
    moe_ep_error err;
    sample m;
    uint64_t s = t_seed + 11;
    int64_t T;
    CHECK_I64(moe_ep_chance(7, 5, 5, &c, NULL), MOE_EP_OK); /* every expert gets every token */
    CHECK_NEAR(c.max_over_mean, 1, 0, 0);
    CHECK_NEAR(c.sd, 0, 0, 0);
    CHECK_NEAR(c.distinct, 5, 0, 0);
    CHECK_I64(moe_ep_chance(1, 8, 256, &c, NULL), MOE_EP_OK); /* one token: 8 experts with one row each */
    CHECK_NEAR(c.max_over_mean, 32, 1e-9, 0);
    CHECK_I64(moe_ep_chance(2, 2, 8, &c, NULL), MOE_EP_OK); /* apart with C(6,2)/C(8,2) = 15/28 */
    CHECK_NEAR(c.max_over_mean, (2 - 15.0 / 28) * 2, 1e-12, 0);
    for (T = 1; T < 60; T++) { /* two experts: a folded binomial */
        double want = 0, ways = pow(0.5, (double)T);
        int64_t h;
        for (h = 0; h <= T; h++) {
            want += ways * (double)(h > T - h ? h : T - h);
            ways *= (double)(T - h) / (double)(h + 1);
        }
        CHECK_I64(moe_ep_chance(T, 1, 2, &c, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean, want / ((double)T / 2), 1e-6, 0);
    }
    CHECK_I64(moe_ep_chance(64, 2, 64, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(c.max_over_mean, 2.96, 0, 0.005);
    CHECK_NEAR(c.gauss_bound, 3.01, 0, 0.005);
    CHECK_NEAR(c.mean_load, 2, 0, 0);
    CHECK_NEAR(c.one_sd, sqrt(64 * (2.0 / 64) * (62.0 / 64)) / 2, 1e-12, 0);
    CHECK_I64(moe_ep_chance_devices(16, 8, 256, 8, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(c.gauss_bound, 1 + sqrt(16 * (7.0 / 8) * (248.0 / 255) * 2 * log(8)) / 16, 1e-14, 0);
    CHECK_NEAR(c.max_over_mean * 16, 21.8, 0.01, 0);
    CHECK_I64(moe_ep_chance_devices(3, 1, 3, 2, &c, NULL), MOE_EP_OK); /* 3, 2, 2, 3 rows: 8, 12, 6, 1 of 27 */
    CHECK_NEAR(c.max_over_mean * 1.5, 7.0 / 3, 1e-9, 0);
    CHECK_NEAR(c.sd * 1.5, sqrt(2) / 3, 1e-9, 0);
    CHECK_NEAR(c.gauss_bound, 1 + sqrt(1.5 / 2 * 2 * log(2)) / 1.5, 1e-14, 0); /* of a device of 1.5 experts */
    CHECK_I64(moe_ep_chance_devices(4096, 8, 256, 32, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(c.one_sd * c.mean_load, 31.06, 0.001, 0);
    CHECK_NEAR(c.max_over_mean - 1, 0.0627, 0.03, 0);
    CHECK_NEAR(c.tokens, 4096 * moe_ep_expected_groups(8, 256, 32, NULL) / 32, 1e-12, 0);
    CHECK_I64(moe_ep_chance_devices(10, 2, 8, 1, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(c.max_over_mean, 1, 0, 0);
    CHECK_NEAR(c.gauss_bound, 1, 0, 0);
    CHECK_I64(moe_ep_chance(16, 8, 8, &c, NULL), MOE_EP_OK); /* K = E: nothing is left to chance */
    CHECK_NEAR(c.gauss_bound, 1, 0, 0);
    CHECK_I64(moe_ep_chance_with_replacement(64, 2, 64, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(c.max_over_mean, 2.98, 0.002, 0);
    CHECK_I64(moe_ep_chance_with_replacement(100, 2, 8, &c, NULL), MOE_EP_OK);
    m = simulate(&s, 100, 2, 8, 8, 1, 20000);
    CHECK_NEAR(c.max_over_mean, m.mean, 0.003, 4 * m.se);
    CHECK_I64(moe_ep_chance_with_replacement(5, 9, 4, &r, NULL), MOE_EP_OK); /* K > E is fine here */
    for (T = 1; T <= 100000000; T *= 10) { /* (max/mean - 1) falls, in the end as 1/sqrt(T), over all of the range */
        CHECK_I64(moe_ep_chance(T, 8, 256, &c, NULL), MOE_EP_OK);
        if (T > 1) CHECK(c.max_over_mean < r.max_over_mean && c.max_over_mean > 1);
        if (T >= 100000) CHECK_NEAR((r.max_over_mean - 1) / (c.max_over_mean - 1), sqrt(10), 0.02, 0);
        CHECK(c.p05 <= c.max_over_mean && c.max_over_mean <= c.p95);
        r = c;
    }
    CHECK_I64(moe_ep_chance(0, 1, 2, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "T");
    CHECK_I64(moe_ep_chance(1, 0, 2, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_chance(1, 1, 0, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_chance(1, 3, 2, &c, &err), MOE_EP_ERR_TOP_K);
    CHECK_I64(moe_ep_chance(INT64_MAX, 2, 4, &c, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_chance(1, 1, 2, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_chance_devices(1, 1, 2, 3, &c, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "D");
    CHECK_I64(moe_ep_chance_devices(1, 1, 2, 1, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_chance_with_replacement(INT64_MAX, 2, 4, &c, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_chance_with_replacement(1, 1, 4, NULL, &err), MOE_EP_ERR_NULL);
}

TEST(chance_is_finite_everywhere)
{
    uint64_t s = t_seed + 12;
    int round;
    for (round = 0; round < (t_slow() > 1 ? 300 : 2000); round++) {
        int32_t E = (int32_t)(1 + t_below(&s, t_below(&s, 2) ? 20 : 4096)), K = (int32_t)(1 + t_below(&s, E)),
            D = (int32_t)(1 + t_below(&s, E));
        int64_t T = 1 + t_below(&s, (int64_t)1 << t_below(&s, 40));
        moe_ep_chance_result c;
        CHECK_I64(moe_ep_chance(T, K, E, &c, NULL), MOE_EP_OK);
        CHECK(c.max_over_mean >= 1 && c.max_over_mean <= E && c.sd >= 0 && c.sd < E);
        CHECK(c.max_over_mean <= (double)E / K * (1 + 1e-9)); /* distinct choices */
        CHECK(c.p05 <= c.p95 && c.p05 >= 1 - 1e-9 && c.p95 <= (double)E / K * (1 + 1e-9));
        CHECK(c.one_p05 <= c.one_p95 && c.one_p05 >= 0 && c.distinct > 0 && c.distinct <= E);
        CHECK_I64(moe_ep_chance_devices(T, K, E, D, &c, NULL), MOE_EP_OK);
        CHECK(c.max_over_mean >= 1 && c.max_over_mean <= D && c.sd >= 0 && c.p05 <= c.p95 &&
              c.tokens <= (double)T * (1 + 1e-12));
        {
            const int32_t G = (int32_t)(1 + t_below(&s, 12)), size = (E + G - 1) / G;
            const int32_t least = (K + size - 1) / size, M = least + (int32_t)t_below(&s, G - least + 1);
            CHECK_I64(moe_ep_chance_grouped(T, K, G * size, D, G, M, &c, NULL), MOE_EP_OK);
            CHECK(c.max_over_mean >= 1 && c.max_over_mean <= D * (1 + 1e-12) && c.sd >= 0 && c.sd < D);
            CHECK(c.p05 >= 1 && c.p05 <= c.p95 && c.p95 <= D * (1 + 1e-12) && c.one_sd >= 0 && c.gauss_bound >= 1);
            CHECK(c.tokens > 0 && c.tokens <= (double)T * (1 + 1e-12) && c.one_p05 >= 0 && c.one_p05 <= c.one_p95);
        }
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(chance_speed)
{
    struct timespec a, b;
    moe_ep_chance_result c;
    double each;
    int i;
    if (t_slow()) SKIP("this build or machine is slow on purpose");
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (i = 0; i < 200; i++) moe_ep_chance(100000 + i, 8, 256, &c, NULL);
    clock_gettime(CLOCK_MONOTONIC, &b);
    each = ((double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec)) / 200;
    printf("    %.1f us per call\n", each * 1e6);
    CHECK(each < 2e-3); /* a loose guard; the bench measures */
}

/* ---- tables and vectors ---- */

TEST(uniform_batch_sweep_table)
{
    FILE *fp = fopen("tests/vectors/seed/uniform_batch_sweep.csv", "r");
    char line[300];
    int rows = 0;
    CHECK(fp != NULL); /* as the other vectors, part of the repository */
    if (!fp) return;
    while (fgets(line, sizeof line, fp)) {
        int E, K, T;
        double mean, se, approx, bound, distinct, formula;
        moe_ep_chance_result c;
        if (sscanf(line, "%d,%d,%d,%lf,%lf,%lf,%lf,%lf,%lf", &E, &K, &T, &mean, &se, &approx, &bound, &distinct,
            &formula) != 9) continue;
        CHECK_I64(moe_ep_chance(T, K, E, &c, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean, mean, 0.005, 4 * se);
        CHECK_NEAR(c.distinct, formula, 0, 5.1e-5);
        rows++;
    }
    fclose(fp);
    CHECK(rows >= 44);
}

TEST(busiest_rank_table)
{
    FILE *fp = fopen("tests/vectors/seed/busiest_rank_dsv3.csv", "r");
    char line[300];
    int rows = 0;
    CHECK(fp != NULL); /* as the other vectors, part of the repository */
    if (!fp) return;
    while (fgets(line, sizeof line, fp)) {
        int T, D;
        double distinct, want;
        moe_ep_chance_result c;
        if (sscanf(line, "%d,%d,%lf,%lf", &T, &D, &distinct, &want) != 4) continue;
        CHECK_I64(moe_ep_chance_devices(T, 8, 256, D, &c, NULL), MOE_EP_OK);
        CHECK_NEAR(c.max_over_mean * c.mean_load, want, 0.005, 4 * c.sd * c.mean_load / sqrt(3000) + 5e-4);
        CHECK(c.distinct <= distinct + 1e-3); /* the busiest rank's is no less than the average rank's */
        rows++;
    }
    fclose(fp);
    CHECK(rows >= 35);
}

static void check_metrics(const vec_case *x)
{
    const vec_field *f = vec_get(x, "loads");
    moe_ep_balance_result r, q;
    int i, known = 0;
    CHECK_I64(moe_ep_balance_d(f->f, (int32_t)f->count, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_balance(f->i, (int32_t)f->count, &q, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < f->count; i++)
        if (f->f[i] != (double)f->i[i]) q = r; /* real loads: nothing to compare */
    CHECK(memcmp(&r, &q, sizeof r) == 0);
    {
        const struct { const char *name; double value, tolerance; } metric[] = {
            {
                "n", r.n, 0}, {
                    "sum", r.sum, 0}, {
                        "mean", r.mean, 0}, {"max", r.max, 0}, {"min", r.min, 0}, {"argmax", r.argmax, 0},
            {"argmin", r.argmin, 0}, {"imbalance", r.imbalance, 0}, {"balancedness", r.balancedness, 0},
            {"sglang_utilization", r.sglang_utilization, 3e-7}, {"maxvio", r.maxvio, 0}, {"minvio", r.minvio, 0},
            {
                "std", r.std, 0}, {
                    "cv_population", r.cv_population, 0}, {
                        "cv_sample", r.cv_sample, 0}, {"cv2_sample", r.cv2_sample, 0},
            {"entropy_nats", r.entropy_nats, 0}, {"entropy_norm", r.entropy_norm, 0}, {"perplexity", r.perplexity, 0},
            {
                "kl_from_uniform_nats", r.kl_from_uniform_nats, 0}, {
                    "gini", r.gini, 0}, {"jain", r.jain, 0}, {"hhi", r.hhi, 0},
            {
                "effective_experts_inverse_simpson", r.effective_experts, 0}, {
                    "effective_experts", r.effective_experts, 0},
            {
                "idle_fraction", r.idle_fraction, 0}, {
                    "max_minus_mean", r.max_minus_mean, 0}, {"max_over_min", r.max_over_min, 0},
            {"step_time", r.step_time, 0}, {"efficiency", r.efficiency, 0}, {"step_inflation", r.step_inflation, 0},
            {"p50", r.p50, 0}, {"p95", r.p95, 0}, {"p99", r.p99, 0}, {"active", r.active, 0}};
        int k, m;
        for (k = 0; k < x->fields; k++) {
            if (strncmp(x->field[k].key, "metrics.", 8) != 0) continue;
            for (m = 0; m < (int)(sizeof metric / sizeof metric[0]); m++)
                if (strcmp(x->field[k].key + 8, metric[m].name) == 0) {
                    CHECK_NEAR(metric[m].value, x->field[k].f[0], 1e-12 + metric[m].tolerance, 2e-13);
                    if (t_failed_here) printf("    metric %s\n", metric[m].name);
                    known++;
                    break;
                }
            if (m == (int)(sizeof metric / sizeof metric[0])) printf("    unknown metric %s\n", x->field[k].key);
            CHECK(m < (int)(sizeof metric / sizeof metric[0]));
        }
    }
    CHECK(known > 0);
}

static void check_layered(const vec_case *x)
{
    const vec_field *f = vec_get(x, "loads"), *g;
    moe_ep_layers_result r;
    CHECK_I64(moe_ep_balance_layers_d(f->f, (int32_t)f->dim[0], (int32_t)f->dim[1], &r, NULL, NULL), MOE_EP_OK);
    CHECK(vec_find(x, "balancedness") != NULL);
    if ((g = vec_find(x, "avg_sum"))) CHECK_NEAR(r.avg_sum, g->f[0], 1e-12, 0);
    if ((g = vec_find(x, "max_sum"))) CHECK_NEAR(r.max_sum, g->f[0], 1e-12, 0);
    if ((g = vec_find(x, "balancedness")) && r.max_sum > 0) CHECK_NEAR(r.balancedness, g->f[0], 1e-6, 0);
    if ((g = vec_find(x, "old_axis_bug")) && r.max_sum > 0) CHECK_NEAR(r.balancedness_wrong_axis, g->f[0], 1e-6, 0);
    if ((g = vec_find(x, "mean_of_layer_ratios")) && r.max_sum > 0) CHECK_NEAR(r.mean_of_layer_ratios, g->f[0],
                                                                               1e-6, 0);
}

static void check_expected(const vec_case *x)
{
    moe_ep_chance_result c;
    int64_t T = vec_int(x, "T");
    int32_t K = (int32_t)vec_int(x, "K"), E = (int32_t)vec_int(x, "E");
    double row = (double)E / ((double)T * K);
    CHECK_I64(moe_ep_chance(T, K, E, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(c.mean_load, vec_float(x, "mean_load"), 1e-12, 0);
    CHECK_NEAR(c.distinct, vec_float(x, "distinct_exact"), 1e-12, 0);
    CHECK_NEAR(c.gauss_bound, vec_float(x, "gauss_bound"), 1e-14, 0);
    CHECK_NEAR(c.distinct, vec_float(x, "distinct_mean"), 0.02, 0.05); /* a simulation's mean */
    CHECK_NEAR(c.max_over_mean, vec_float(x, "imbalance_mean"), 0.01, 5 * c.sd / sqrt(100));
    CHECK_NEAR(c.p05, vec_float(x, "imbalance_p05"), 0.02, 1.01 * row);
    CHECK_NEAR(c.p95, vec_float(x, "imbalance_p95"), 0.04, 1.01 * row);
}

/* Operations that stand in metrics files and are tested with the router and the loads. */
static int is_of_others(const char *op)
{
    static const char *const known[] = {"aux_losses", "bias_update", "quantile_balancing", "coactivation_transition"};
    size_t i;
    for (i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(op, known[i]) == 0) return 1;
    return strstr(op, "sinkhorn") != NULL || vec_is_bias_trace(op);
}

/* The rule must be able to fail. */
TEST(vectors_unknown_metric)
{
    CHECK(!is_of_others("a_metric_nobody_knows"));
    CHECK(!is_of_others(""));
    CHECK(is_of_others("aux_losses"));
    CHECK(is_of_others("bias_update_trace") && is_of_others("loss_free_bias_loop") && is_of_others("bias_60_steps"));
    CHECK(!is_of_others("bias") && !is_of_others("trace"));
}

TEST(vectors_balance)
{
    static const char *bundled[] = {"tests/vectors/metrics.vec", "tests/vectors/seed_and_literals.vec",
                                    "tests/vectors/own/metrics.vec"};
    const int named = t_argv && t_argv[0];
    int f, c, checked = 0, others = 0;
    for (f = 0; named || f < 3; f++) {
        const char *path = vec_path(bundled[f < 3 ? f : 0], named ? f : 0);
        vec_file v;
        if (!path) break;
        v = vec_read(path);
        for (c = 0; c < v.count; c++) {
            const vec_case *x = &v.cases[c];
            const char *op = vec_text(x, "op");
            checked++;
            if (strcmp(op, "load_metrics") == 0) check_metrics(x);
            else if (strcmp(op, "layered_balancedness") == 0) check_layered(x);
            else if (strcmp(op, "uniform_expected_imbalance") == 0) check_expected(x);
            else if (vec_find(x, "rank_loads")) {
                const vec_field *l = vec_get(x, "rank_loads");
                moe_ep_layers_result r;
                CHECK_I64(moe_ep_balance_layers(l->i, (int32_t)l->dim[0], (int32_t)l->dim[1], &r, NULL, NULL),
                          MOE_EP_OK);
                CHECK_NEAR(r.balancedness, vec_float(x, "balancedness"), 1e-12, 0);
                if (vec_find(x, "avg")) CHECK_NEAR(r.avg_sum, vec_float(x, "avg"), 1e-12, 0);
                if (vec_find(x, "max")) CHECK_NEAR(r.max_sum, vec_float(x, "max"), 1e-12, 0);
            } else if (vec_find(x, "loads") && vec_find(x, "imbalance")) {
                const vec_field *l = vec_get(x, "loads");
                CHECK_NEAR(moe_ep_imbalance(l->i, (int32_t)l->count, NULL), vec_float(x, "imbalance"), 1e-14, 0);
            } else {
                checked--;
                others++;
                if (strcmp(v.kind, "metrics") == 0) CHECK(is_of_others(op));
                if (t_failed_here) printf("    not checked: op %s\n", op);
            }
            STOP_IF_FAILED("case %s", x->name);
        }
        vec_free(&v);
    }
    printf("    %d vector cases, %d of other sections\n", checked, others);
    if (checked == 0) SKIP("no balance cases in these vectors");
}

/* Equal loads whose rounded mean is above, or below, each of them: nothing is hot, nothing below 1. */
TEST(equal_real_loads_are_even)
{
    uint64_t s = t_seed + 41;
    for (int round = 0; round < 400; round++) {
        const int32_t n = 2 + (int32_t)t_below(&s, 60);
        double v[62], ratio[2], value = round < 2 ? round ? 0.7 : 0.1 : t_unit(&s);
        int32_t hot[62], count = 7;
        moe_ep_balance_result b;
        moe_ep_layers_result l;
        moe_ep_steps_result q;
        for (int32_t i = 0; i < n; i++) v[i] = value;
        CHECK_I64(moe_ep_hot_list(v, n, 1, hot, &count, NULL), MOE_EP_OK);
        CHECK_I64(count, 0);
        CHECK(moe_ep_imbalance_d(v, n, NULL) >= 1);
        CHECK_I64(moe_ep_balance_d(v, n, &b, NULL, NULL), MOE_EP_OK);
        CHECK(b.imbalance >= 1 && b.balancedness <= 1 && b.maxvio >= 0 && b.max_minus_mean >= 0 && b.efficiency <= 1);
        CHECK_I64(moe_ep_balance_layers_d(v, 1, n, &l, NULL, NULL), MOE_EP_OK);
        CHECK(l.imbalance >= 1 && l.worst_imbalance >= 1 && l.balancedness <= 1 && l.mean_balancedness <= 1 &&
              l.imbalance_of_sum >= 1);
        CHECK_I64(moe_ep_layer_imbalances(v, 1, n, ratio, NULL), MOE_EP_OK);
        CHECK(ratio[0] >= 1);
        CHECK_I64(moe_ep_balance_steps(v, 1, 1, n, &q, NULL, NULL), MOE_EP_OK);
        CHECK(q.imbalance >= 1 && q.imbalance_of_sum >= 1 && q.worst_imbalance >= 1);
        v[n - 1] *= 1 + 1e-9; /* this is more */
        CHECK_I64(moe_ep_hot_list(v, n, 1, hot, &count, NULL), MOE_EP_OK);
        CHECK_I64(count, value > 0);
        STOP_IF_FAILED("round %d", round);
    }
    {
        const double most[2] = {1e308, 1};
        int32_t hot[2], count;
        CHECK_I64(moe_ep_hot_list(most, 2, 1, hot, &count, NULL), MOE_EP_OK);
        CHECK_I64(count, 1);
        CHECK_I64(moe_ep_hot_list(most, 2, 1.5, hot, &count, NULL), MOE_EP_OK);
        CHECK_I64(count, 1);
        CHECK_I64(moe_ep_hot_list(most, 2, 2.5, hot, &count, NULL), MOE_EP_OK);
        CHECK_I64(count, 0);
    }
}

T_MAIN
