/* tests/test_diagnose.c - section 11: verdicts, reasons, figures against a plain recomputation.
 * SPDX-License-Identifier: MIT */
#include "placement.h"

static const double hot[8] = {960, 92, 92, 92, 91, 91, 91, 91};

/* A desc for one layer of E experts on D devices with P slots, 0 = one each; a step in either window. */
static moe_ep_diagnose_desc desc_of(int32_t E, int32_t D, int32_t P, const double *plan, const double *judge)
{
    moe_ep_diagnose_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = E;
    d.shape.num_devices = D;
    d.shape.num_slots = P;
    d.plan_loads = plan;
    d.plan_steps = 1;
    d.judge_loads = judge;
    d.judge_steps = 1;
    return d;
}

/* 8 experts on 4 devices, 12 slots, both windows `hot`. */
static moe_ep_diagnose_desc hot_desc(void) { return desc_of(8, 4, 12, hot, hot); }

TEST(worked_example)
{
    moe_ep_diagnose_desc d = hot_desc();
    moe_ep_diagnosis o;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.verdict, MOE_EP_RECOMMEND);
    CHECK_I64(o.reason, MOE_EP_REASON_PAYS);
    CHECK_NEAR(o.before_rows, 1052, 0, 1e-9);
    CHECK_NEAR(o.mean_rows, 400, 0, 1e-9);
    CHECK_NEAR(o.imbalance_before, 2.63, 1e-12, 0);
    CHECK(o.imbalance_after < 1.1);
    CHECK_I64(o.hot_device, 0);
    CHECK_I64(o.hot_layer, 0);
    CHECK_NEAR(o.hot_share, 1.0, 0, 0);
    CHECK_NEAR(o.hot_imbalance, 2.63, 1e-12, 0);
    CHECK_NEAR(o.hot_own, 2.63, 1e-12, 0); /* always the maximum */
    CHECK_I64(o.layers_loaded, 1);
    CHECK(o.bound_rows >= o.mean_rows && o.bound_rows <= o.after_rows + 1e-9);
    CHECK_NEAR(o.gain, 1 - o.after_rows / 1052, 1e-12, 0);
    CHECK_NEAR(o.break_even_steps, 0, 0, 0);
    CHECK(strstr(o.text, "1052 rows") != NULL);
    CHECK(strstr(o.text, "1 judged step,") != NULL);
    CHECK_I64(o.policy, MOE_EP_PLACE_BEST);
    CHECK_NEAR(o.chance_imbalance, 1.10, 0, 0.005);
    CHECK_NEAR(o.gain_sd, 0.0134, 0, 0.00005);
    {
        double many[20 * 8];
        int i;
        for (i = 0; i < 20 * 8; i++) many[i] = hot[i % 8];
        d.judge_loads = many;
        d.judge_steps = 20;
        CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
        CHECK_NEAR(o.chance_imbalance, 1.06, 0, 0.005);
    }
}

TEST(names_and_thresholds)
{
    moe_ep_diagnose_desc d;
    memset(&d, 0, sizeof d);
    moe_ep_diagnose_thresholds(&d);
    CHECK_NEAR(d.min_gain, 0.05, 0, 0);
    CHECK_NEAR(d.min_improved, 0.8, 0, 0);
    CHECK_NEAR(d.target_imbalance, 1.05, 0, 0);
    CHECK_I64(d.min_steps, 2);
    CHECK_NEAR(d.min_sigmas, 1.645, 0, 0);
    moe_ep_diagnose_thresholds(NULL);
    CHECK_STR(moe_ep_verdict_str(MOE_EP_RECOMMEND), "recommend");
    CHECK_STR(moe_ep_verdict_str(MOE_EP_NOT_NOW), "not now");
    CHECK_STR(moe_ep_verdict_str(MOE_EP_INSUFFICIENT_EVIDENCE), "insufficient evidence");
    CHECK_STR(moe_ep_verdict_str((moe_ep_verdict)77), "unknown verdict");
}

TEST(every_reason)
{
    moe_ep_diagnose_desc d = hot_desc();
    moe_ep_diagnosis o;
    double zero[8] = {0}, flat[16], swing[32], four[8] = {600, 300, 200, 100, 100, 100, 100, 100};
    int i;

    d.judge_loads = NULL;
    d.judge_steps = 0;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.verdict, MOE_EP_INSUFFICIENT_EVIDENCE);
    CHECK_I64(o.reason, MOE_EP_REASON_NO_JUDGE_WINDOW);
    CHECK_NEAR(o.before_rows, 1052, 0, 1e-9); /* figures of window A all the same */

    d = hot_desc();
    d.judge_loads = zero;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.verdict, MOE_EP_INSUFFICIENT_EVIDENCE);
    CHECK_I64(o.reason, MOE_EP_REASON_NO_LOAD);
    CHECK_NEAR(o.imbalance_before, 1, 0, 0);
    CHECK_NEAR(o.speedup, 1, 0, 0);
    d.plan_loads = zero;
    d.judge_loads = hot;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_NO_LOAD);

    d = hot_desc();
    d.min_steps = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_FEW_STEPS);
    CHECK_I64(o.verdict, MOE_EP_INSUFFICIENT_EVIDENCE);
    CHECK(strstr(o.text, "fewer than the 2") != NULL);

    d = hot_desc();
    for (i = 0; i < 16; i++) flat[i] = 200 + (i % 2);
    d.plan_loads = d.judge_loads = flat;
    d.target_imbalance = 1.05;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.verdict, MOE_EP_NOT_NOW);
    CHECK_I64(o.reason, MOE_EP_REASON_BALANCED);

    d = hot_desc(); /* planned on one hot expert, judged on a load of two tokens */
    {
        double few[8] = {2, 0, 1, 0, 0, 0, 0, 1};
        d.judge_loads = few;
        d.top_k = 2;
        d.min_gain = 0.9;
        CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
        CHECK_I64(o.verdict, MOE_EP_NOT_NOW);
        CHECK_I64(o.reason, MOE_EP_REASON_CHANCE);
        CHECK(o.chance_imbalance >= o.imbalance_before);
    }

    d = hot_desc();
    d.plan_loads = d.judge_loads = four;
    d.min_gain = 0.7;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_SMALL_GAIN);
    CHECK(o.gain > 0.0 && o.gain < 0.7);

    d = hot_desc(); /* four judged steps, the hot expert sits elsewhere in two of them */
    for (i = 0; i < 32; i++) swing[i] = hot[i % 8];
    for (i = 0; i < 2; i++) {
        swing[8 * i] = 600;
        swing[8 * i + 1] = 92;
        swing[8 * i + 6] = 300;
        swing[8 * i + 7] = 300;
    }
    d.judge_loads = swing;
    d.judge_steps = 4;
    d.min_improved = 1.0;
    d.policy = MOE_EP_PLACE_LPT; /* no copies: experts 6 and 7 may meet */
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.steps, 4);
    CHECK(o.improved <= 1.0);
    CHECK_I64(o.policy, MOE_EP_PLACE_LPT);

    d = hot_desc();
    d.move_Bps = 1.0;
    d.expert_bytes = 1.0;
    d.horizon_steps = 10.0;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK(o.moves > 0 && o.move_s > 0.0);
    CHECK_NEAR(o.break_even_steps, -1, 0, 0); /* no seconds, so nothing to weigh the moves against */
    CHECK_I64(o.verdict, MOE_EP_RECOMMEND);
}

/* One row of the load of so many tokens of 2 distinct of 16 experts, expert 0 `times` as likely as the others. */
static void skewed_step(uint64_t *state, int32_t tokens, double times, double *loads)
{
    int32_t t, e, first;
    for (e = 0; e < 16; e++) loads[e] = 0;
    for (t = 0; t < tokens; t++)
        for (first = -1;;) {
            e = (int32_t)(t_unit(state) * (15 + times) - times + 1);
            e = e < 0 ? 0 : e > 15 ? 15 : e;
            if (e == first) continue;
            loads[e]++;
            if (first >= 0) break;
            first = e;
        }
}

/* What is said to be chance: the mean of many layers' and steps' maxima strays less than one of them. */
TEST(chance_of_many_layers_and_steps)
{
    enum { L = 8, S = 20, E = 16, D = 4, T = 64 };
    static double a[S * L * E], b[S * L * E];
    uint64_t state = t_seed + 60;
    moe_ep_chance_result c;
    moe_ep_diagnose_desc d = desc_of(E, D, E + D, a, b);
    moe_ep_diagnosis o;
    int round, i, above = 0;
    CHECK_I64(moe_ep_chance_devices(T, 2, E, D, &c, NULL), MOE_EP_OK);
    d.num_layers = L;
    d.plan_steps = d.judge_steps = S;
    d.top_k = 2;
    d.min_gain = 0.05;
    for (round = 0; round < 40; round++) { /* even routing: one in twenty above the threshold */
        for (i = 0; i < S * L; i++) {
            if (round == 0) skewed_step(&state, T, 1, a + i * E);
            skewed_step(&state, T, 1, b + i * E);
        }
        CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
        CHECK_NEAR(o.chance_imbalance, c.max_over_mean + 1.645 * c.sd / sqrt(S * L), 1e-12, 0);
        above += o.imbalance_before > o.chance_imbalance;
        if (o.imbalance_before > o.chance_imbalance) continue;
        CHECK_I64(o.reason, MOE_EP_REASON_CHANCE);
        CHECK(strstr(o.text, o.gain > 0 ? "help, the plan saves only " : "help, a plan does not") != NULL);
    }
    CHECK(above <= 8);
    for (i = 0; i < S * L; i++) { /* an expert that is a little too popular, always the same: below one step's p95 */
        skewed_step(&state, T, 2, a + i * E);
        skewed_step(&state, T, 2, b + i * E);
    }
    d.min_gain = 0.5;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK(o.imbalance_before < c.p95 && o.imbalance_before > o.chance_imbalance && o.gain > 0 && o.improved > 0.5);
    CHECK_I64(o.reason, MOE_EP_REASON_SMALL_GAIN);
    CHECK_I64(o.verdict, MOE_EP_NOT_NOW);
    d.num_layers = d.plan_steps = d.judge_steps = 1; /* one maximum */
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, c.p95, 1e-12, 0);
}

/* Routing by groups, and where nothing is known of chance. */
TEST(chance_of_other_routing)
{
    static double loads[64];
    moe_ep_chance_result c;
    moe_ep_diagnose_desc d = desc_of(64, 8, 64, loads, loads);
    moe_ep_diagnosis o;
    int32_t e;
    for (e = 0; e < 64; e++) loads[e] = e < 8 ? 6.5 : 4; /* 276 rows, 69 tokens; device 0 has 1.51 times its share */
    d.top_k = 4;
    d.min_gain = 0.9;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(moe_ep_chance_devices(69, 4, 64, 8, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, c.p95, 1e-12, 0);
    CHECK_I64(o.reason, MOE_EP_REASON_SMALL_GAIN);
    d.top_groups = 2;
    d.router_groups = 8;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(moe_ep_chance_grouped(69, 4, 64, 8, 8, 2, &c, NULL), MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, c.p95, 1e-12, 0);
    CHECK_I64(o.reason, MOE_EP_REASON_CHANCE);
    d.router_groups = 0;
    d.num_groups = 8;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, c.p95, 1e-12, 0);
    d.top_groups = d.num_groups = 0; /* more devices than experts */
    d.shape.num_devices = d.shape.num_slots = 80;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, 0, 0, 0);
    CHECK_I64(o.reason, MOE_EP_REASON_SMALL_GAIN);
    d.shape.num_devices = 8;
    d.shape.num_slots = 64;
    for (e = 0; e < 64; e++) loads[e] = e == 0; /* a row, a quarter of a token */
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, 0, 0, 0);
    CHECK_I64(o.reason, MOE_EP_REASON_SMALL_GAIN);
}

/* The plan helps in half of the steps only. */
TEST(unreliable)
{
    double a[4] = {100, 100, 10, 10}, b[16];
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis o;
    int s;
    for (s = 0; s < 4; s++) { /* even steps like A, odd steps hot on the pair the plan joins */
        b[4 * s + 0] = 100;
        b[4 * s + 1] = s % 2 ? 10 : 100;
        b[4 * s + 2] = 10;
        b[4 * s + 3] = s % 2 ? 100 : 10;
    }
    d = desc_of(4, 2, 4, a, b);
    d.judge_steps = 4;
    d.min_improved = 0.8;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    /* before: 200 and 110; the plan has {0,2|3} and {1,3|2}: 110 in even steps, 110 or 200 in odd ones */
    CHECK_NEAR(o.before_rows, (200 + 110 + 200 + 110) / 4.0, 0, 1e-9);
    CHECK_NEAR(o.improved, 0.5, 0, 0);
    CHECK_I64(o.reason, MOE_EP_REASON_UNRELIABLE);
    CHECK_I64(o.verdict, MOE_EP_NOT_NOW);
    CHECK(strstr(o.text, "50.0 %") != NULL);
}

/* What is asked for is enough: a gain of just the least one, a step count of just the least, every step improved. */
TEST(just_what_is_asked_for)
{
    static const double loads[4] = {100, 100, 0, 0}, even[4] = {7, 7, 7, 7}, thousand[4] = {500, 500, 0, 0};
    static const double one[4] = {1, 1, 0, 0};
    moe_ep_chance_result chance;
    moe_ep_diagnose_desc d = desc_of(4, 2, 4, loads, loads);
    moe_ep_diagnosis o;
    d.min_gain = 0.5; /* 200 rows become 100 */
    d.min_improved = 1;
    d.min_steps = 1;
    d.top_k = 4;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.gain, 0.5, 0, 0);
    CHECK_I64(o.reason, MOE_EP_REASON_PAYS);
    CHECK(strstr(o.text, "a step goes from 200.0 rows to 100.0 rows (50.0 % less), ") == o.text);
    d.judge_loads = thousand;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK(strstr(o.text, "a step goes from 1000 rows to 500.0 rows (50.0 % less), ") == o.text);
    d.judge_loads = one; /* a token of two choices */
    d.top_k = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(moe_ep_chance_devices(1, 2, 4, 2, &chance, NULL), MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, chance.p95, 1e-12, 0);
    CHECK(chance.p95 > 1.5);
    d.judge_loads = loads;
    d.target_imbalance = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_BALANCED);
    d.target_imbalance = 1;
    d.judge_loads = even;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_BALANCED);
}

/* Every expert twice under even loads: nothing is uneven, but the copies' weights are read. */
TEST(copies_that_cost_more_than_they_even_out)
{
    static const double even[16] = {8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8};
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    moe_ep_layer_desc cost;
    moe_ep_diagnose_desc d = desc_of(8, 4, 8, even, even);
    moe_ep_diagnosis o;
    moe_ep_shape shape;
    void *mem;
    size_t bytes;
    moe_ep_placement twice;
    int32_t s;
    memset(&cost, 0, sizeof cost);
    memset(&shape, 0, sizeof shape);
    m.num_experts = 8, m.top_k = 1, m.num_groups = m.top_groups = 0;
    m.num_moe_layers = m.num_layers = 1;
    c.gemm.mem_eff = c.gemm.flop_eff = 1; /* all time is reading weights: half the slots, half the time */
    c.gemm.t0_s = 0;
    c.gemm.p = 0;
    cost.model = &m;
    cost.machine = &c;
    shape.num_devices = 4;
    shape.num_slots = 16;
    bytes = moe_ep_placement_bytes(1, 8, &shape);
    mem = t_alloc(bytes);
    CHECK(moe_ep_placement_init(&twice, 1, 8, &shape, mem, bytes, NULL) == MOE_EP_OK);
    for (s = 0; s < 16; s++) twice.slot_expert[s] = s % 8;
    CHECK(moe_ep_placement_index(&twice, NULL) == MOE_EP_OK);
    d.current = &twice;
    d.cost = &cost;
    moe_ep_diagnose_thresholds(&d);
    d.judge_steps = d.plan_steps = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.imbalance_before, 1, 0, 0);
    CHECK_NEAR(o.balanced_s, o.before_s, 1e-12, 0);
    CHECK(o.after_s < 0.95 * o.before_s);
    CHECK_I64(o.reason, MOE_EP_REASON_PAYS);
    d.min_gain = o.gain + 1e-3; /* more than it saves is asked for: then even is good enough */
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_BALANCED);
    free(mem);
}

/* What a call says it needs holds at least its working arrays, so that none of them can lie behind the end. */
TEST(scratch_holds_the_arrays)
{
    enum { L = 16, E = 64, D = 16, P = 128, S = 8, ALIGN = 64 }; /* every array ends where the next may begin */
    static double loads[S * L * E];
    moe_ep_diagnose_desc d = desc_of(E, D, P, loads, loads);
    const size_t own = sizeof(double) * (3 * L * D + 2 * L + E + D + 2 * P + 2 * S);
    int with;
    d.judge_steps = S;
    for (with = 0; with < 2; with++) {
        moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
        moe_ep_placement now;
        moe_ep_diagnosis o;
        size_t bytes, plans;
        void *mem;
        d.num_layers = L;
        bytes = moe_ep_placement_bytes(L, E, &d.shape);
        plans = (bytes + ALIGN - 1) / ALIGN * ALIGN * (with ? 1 : 2); /* the plan, and what stands for today's */
        mem = t_alloc(bytes);
        CHECK(moe_ep_placement_init(&now, L, E, &d.shape, mem, bytes, NULL) == MOE_EP_OK);
        if (with) {
            moe_ep_place_desc pd;
            memset(&pd, 0, sizeof pd);
            pd.num_layers = L;
            pd.num_experts = E;
            pd.shape = d.shape;
            CHECK(moe_ep_place_round_robin(&pd, &now, NULL, NULL, NULL) == MOE_EP_OK);
            d.current = &now;
        }
        CHECK_I64(moe_ep_diagnose(&d, NULL, &o, &none, NULL), MOE_EP_ERR_SCRATCH);
        CHECK(none.need >= plans + own && none.need <= plans + own + ALIGN);
        free(mem);
    }
}

/* What uneven load costs, network included: the same whatever plan is judged, and nothing where load is even. */
TEST(balance_is_of_today_whatever_the_planner)
{
    enum { E = 256, D = 32 };
    static const moe_ep_place_policy policy[] = {MOE_EP_PLACE_CONTIGUOUS, MOE_EP_PLACE_ROUND_ROBIN, MOE_EP_PLACE_LPT,
                                                 MOE_EP_PLACE_BEST};
    moe_ep_model model = moe_ep_model_deepseek_v3();
    moe_ep_machine machine = moe_ep_machine_h800();
    moe_ep_layer_desc cost;
    moe_ep_time_result level;
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis o;
    static double loads[2 * E];
    int64_t rows[E];
    double balanced[4];
    int i, slots;
    for (i = 0; i < 2 * E; i++) /* device 0 has three times its share */
        loads[i] = i % E < 8 ? 192 : i % E == E - 1 ? 28 : 60;
    for (i = 0; i < E; i++) rows[i] = 64;
    memset(&cost, 0, sizeof cost);
    cost.model = &model;
    cost.machine = &machine;
    cost.dispatch_wire = MOE_EP_WIRE_FP8;
    for (slots = E; slots <= 288; slots += 32) {
        d = desc_of(E, D, slots, loads, loads);
        d.plan_steps = d.judge_steps = 2;
        d.top_k = 8;
        d.cost = &cost;
        for (i = 0; i < 4; i++) {
            d.policy = policy[i];
            CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
            balanced[i] = o.balanced_s;
            CHECK_NEAR(o.balanced_s, balanced[0], 0, 0);
            CHECK(o.balanced_s <= o.after_s && o.balanced_s < 0.6 * o.before_s);
        }
    }
    d = desc_of(E, D, E, loads, loads);
    d.top_k = 8;
    d.cost = &cost;
    d.policy = MOE_EP_PLACE_CONTIGUOUS;
    cost.num_devices = D;
    CHECK(moe_ep_layer_time(&cost, rows, &level, NULL, NULL) == MOE_EP_OK);
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.balanced_s, level.total_s, 0.005, 0); /* the step with even rows, but for tiles */
    for (i = 0; i < E; i++) loads[i] = 64;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.balanced_s, o.before_s, 1e-12, 0);
    CHECK_NEAR(o.balanced_s, level.total_s, 1e-12, 0);
}

/* [100,0] then [0,100]: each step is as uneven as can be, the sum looks perfect. */
TEST(maximum_per_step_then_mean)
{
    double w[4] = {100, 0, 0, 100};
    moe_ep_diagnose_desc d = desc_of(2, 2, 2, w, w);
    moe_ep_diagnosis o;
    d.plan_steps = d.judge_steps = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.imbalance_before, 2.0, 1e-12, 0);
    CHECK_NEAR(o.before_rows, 100.0, 1e-12, 0);
    CHECK_NEAR(o.hot_share, 0.5, 1e-12, 0);
    CHECK_NEAR(o.hot_imbalance, 2.0, 1e-12, 0);
    CHECK_NEAR(o.hot_own, 1.0, 1e-12, 0); /* the hot device has what the other one has */
    CHECK_I64(o.verdict, MOE_EP_NOT_NOW);
}

/* Seconds: in decode the weights of the active experts are the cost, and no plan helps; in large batches it does. */
TEST(seconds_and_regimes)
{
    enum { E = 256, D = 32 };
    moe_ep_model model = moe_ep_model_deepseek_v3();
    moe_ep_machine machine = moe_ep_machine_h100();
    moe_ep_layer_desc cost;
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis small, large;
    static double a[E], few[E], many[E];
    uint64_t state = t_seed;
    int e;
    for (e = 0; e < E; e++) {
        double popularity = 1.0 / (1.0 + (double)((e * 37) % E));
        a[e] = floor(1e6 * popularity);
        few[e] = (double)(t_below(&state, 3));
        many[e] = floor(1e5 * popularity);
    }
    memset(&cost, 0, sizeof cost);
    model.num_moe_layers = model.num_layers = 1; /* all that the model has */
    cost.model = &model;
    cost.machine = &machine;
    d = desc_of(E, D, 288, a, few);
    d.top_k = 8;
    d.cost = &cost;
    d.min_gain = 0.05;
    d.move_Bps = 50e9;
    CHECK(moe_ep_diagnose(&d, NULL, &small, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(small.verdict, MOE_EP_NOT_NOW);
    d.judge_loads = many;
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(large.verdict, MOE_EP_RECOMMEND);
    CHECK(large.before_s > 0.0 && large.after_s < large.before_s);
    CHECK_NEAR(large.gain, 1 - large.after_s / large.before_s, 1e-12, 0);
    CHECK_NEAR(large.speedup, large.before_s / large.after_s, 1e-12, 0);
    CHECK_NEAR(large.move_bytes, (double)large.moves * 44040192.0, 1e-12, 0); /* one DeepSeek-V3 expert in fp8 */
    CHECK_NEAR(large.break_even_steps, large.move_s / (large.before_s - large.after_s), 1e-12, 0);
    CHECK(large.balanced_s <= large.after_s * (1 + 1e-12));
    CHECK(strstr(large.text, " ms") != NULL && strstr(large.text, "repaid after") != NULL);
    d.horizon_steps = large.break_even_steps * 0.5;
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(large.reason, MOE_EP_REASON_BREAK_EVEN);
    CHECK_I64(large.verdict, MOE_EP_NOT_NOW);
    d.move_Bps *= large.break_even_steps / 0.9; /* repaid in the first step, which never comes */
    d.horizon_steps = 0.4;
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(large.break_even_steps, 0.9, 1e-9, 0);
    CHECK_I64(large.reason, MOE_EP_REASON_BREAK_EVEN);
    CHECK(strstr(large.text, " experts is repaid after 1 steps, but the plan will serve only 0") != NULL);
    d.horizon_steps = 5; /* now it comes */
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(large.reason, MOE_EP_REASON_PAYS);
    d.horizon_steps = large.break_even_steps; /* just repaid */
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(large.reason, MOE_EP_REASON_PAYS);
    d.move_Bps = 0; /* nothing to be repaid */
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(large.reason, MOE_EP_REASON_PAYS);
    CHECK_NEAR(large.break_even_steps, 0, 0, 0);
    d.other_s = 1e6; /* a step of days hides any gain of a layer */
    d.horizon_steps = 0;
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(large.reason, MOE_EP_REASON_SMALL_GAIN);
    CHECK(large.before_s > 1.0);
    d.other_s = 1e10; /* more milliseconds than are written out */
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK(strstr(large.text, "a step goes from 1e13 ms to 1e13 ms (0.0 % less)") != NULL);
}

/* A recording of a few of a model's layers says of it what a recording of all of them says. */
TEST(some_layers_of_a_model)
{
    enum { E = 256, D = 32, L = 6 };
    moe_ep_model model = moe_ep_model_deepseek_v3();
    moe_ep_machine machine = moe_ep_machine_h100();
    moe_ep_layer_desc cost;
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis all, one, two, none;
    static double loads[L * E];
    int e, l;
    for (l = 0; l < L; l++)
        for (e = 0; e < E; e++) loads[l * E + e] = floor(1e5 / (1.0 + (double)((e * 37) % E)));
    memset(&cost, 0, sizeof cost);
    model.num_moe_layers = model.num_layers = L;
    cost.model = &model;
    cost.machine = &machine;
    d = desc_of(E, D, 288, loads, loads);
    d.num_layers = L;
    d.top_k = 8;
    d.cost = &cost;
    d.other_s = 0.4;
    d.pause_s = 4;
    d.move_Bps = 50e9;
    CHECK(moe_ep_diagnose(&d, NULL, &all, NULL, NULL) == MOE_EP_OK);
    CHECK(strncmp(all.text, "a step goes from ", 17) == 0);
    d.num_layers = 1;
    CHECK(moe_ep_diagnose(&d, NULL, &one, NULL, NULL) == MOE_EP_OK);
    CHECK(strncmp(one.text, "1 of a step's 6 layers goes from ", 33) == 0);
    d.num_layers = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &two, NULL, NULL) == MOE_EP_OK);
    CHECK(strncmp(two.text, "2 of a step's 6 layers go from ", 31) == 0);
    d.cost = NULL; /* of how many is not known */
    CHECK(moe_ep_diagnose(&d, NULL, &none, NULL, NULL) == MOE_EP_OK);
    CHECK(strncmp(none.text, "a step goes from ", 17) == 0);
    CHECK(none.move_s >= 4);
    CHECK(all.gain > 0.1 && all.gain < 0.6 && all.break_even_steps > 5);
    CHECK_NEAR(one.gain, all.gain, 1e-12, 0);
    CHECK_NEAR(two.gain, all.gain, 1e-12, 0);
    CHECK_NEAR(one.break_even_steps, all.break_even_steps, 1e-12, 0);
    CHECK_NEAR(two.break_even_steps, all.break_even_steps, 1e-12, 0);
    CHECK_NEAR(6 * one.before_s, all.before_s, 1e-12, 0);
    CHECK_NEAR(3 * two.after_s, all.after_s, 1e-12, 0);
    CHECK_NEAR(6 * one.balanced_s, all.balanced_s, 1e-12, 0);
    CHECK_NEAR(6 * one.move_s, all.move_s, 1e-12, 0);
    CHECK_I64(6 * one.moves, all.moves);
    CHECK_I64(one.verdict, all.verdict);
    d.cost = &cost;
    model.num_moe_layers = model.num_layers = 58; /* the worked number */
    d.num_layers = 1;
    d.other_s = 0;
    CHECK(moe_ep_diagnose(&d, NULL, &none, NULL, NULL) == MOE_EP_OK);
    d.other_s = 0.0058;
    CHECK(moe_ep_diagnose(&d, NULL, &one, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(one.before_s - none.before_s, 1e-4, 1e-9, 0);
    model.num_moe_layers = model.num_layers = 1;
    d.num_layers = 2; /* more than it has: all of them are a step */
    CHECK(moe_ep_diagnose(&d, NULL, &two, NULL, NULL) == MOE_EP_OK);
    CHECK(strncmp(two.text, "a step goes from ", 17) == 0);
    CHECK_NEAR(two.before_s, 2 * none.before_s + 0.0058, 1e-12, 0);
}

/* Sum over layers of the busiest device under a placement, straight from slot_expert. */
static double plain_max_rows(const moe_ep_placement *p, const double *loads, int32_t L, int32_t E)
{
    double total = 0.0;
    int32_t l, dev, s, e;
    for (l = 0; l < L; l++) {
        const int32_t *slot = p->slot_expert + (int64_t)l * p->num_slots;
        double worst = 0.0;
        for (dev = 0; dev < p->num_devices; dev++) {
            double load = 0.0;
            for (s = p->slot_start[dev]; s < p->slot_start[dev + 1]; s++) {
                int32_t copies = 0, q;
                e = slot[s];
                if (e < 0) continue;
                for (q = 0; q < p->num_slots; q++) copies += slot[q] == e;
                load += loads[(int64_t)l * E + e] / copies;
            }
            if (load > worst) worst = load;
        }
        total += worst;
    }
    return total;
}

TEST(random_cases_against_recomputation)
{
    uint64_t state = t_seed;
    int round;
    for (round = 0; round < (t_slow() > 1 ? 60 : 150); round++) {
        int32_t D = 1 + (int32_t)t_below(&state, 6), E = D + (int32_t)t_below(&state, 20),
                L = 1 + (int32_t)t_below(&state, 3);
        int32_t P = E + (int32_t)t_below(&state, 2 * D + 1), SA = 1 + (int32_t)t_below(&state, 3);
        int32_t SB = 1 + (int32_t)t_below(&state, 4), s, i;
        int64_t per = (int64_t)L * E;
        double *a = (double *)t_alloc(sizeof(double) * (size_t)(per * SA)),
               *b = (double *)t_alloc(sizeof(double) * (size_t)(per * SB));
        double before = 0, after = 0, mean = 0;
        moe_ep_diagnose_desc d;
        moe_ep_diagnosis o, again;
        moe_ep_placement plan, now;
        moe_ep_error err;
        size_t bytes;
        void *mem, *mem2;
        int32_t improved = 0;
        int64_t moves = 0;
        memset(&d, 0, sizeof d);
        d.num_layers = L;
        d.num_experts = E;
        d.shape.num_devices = D;
        d.shape.num_slots = P;
        for (i = 0; i < per * SA; i++) a[i] = (double)t_below(&state, 1000);
        for (i = 0; i < per * SB; i++) b[i] = (double)t_below(&state, 1000) + 1;
        d.plan_loads = a;
        d.plan_steps = SA;
        d.judge_loads = b;
        d.judge_steps = SB;
        bytes = moe_ep_placement_bytes(L, E, &d.shape);
        mem = t_alloc(bytes);
        mem2 = t_alloc(bytes);
        CHECK(moe_ep_placement_init(&plan, L, E, &d.shape, mem, bytes, NULL) == MOE_EP_OK);
        CHECK(moe_ep_placement_init(&now, L, E, &d.shape, mem2, bytes, NULL) == MOE_EP_OK);
        { /* today: LPT for other loads, so that current is neither bare nor the plan */
            moe_ep_place_desc pd;
            memset(&pd, 0, sizeof pd);
            pd.num_layers = L;
            pd.num_experts = E;
            pd.shape = d.shape;
            pd.loads = b;
            CHECK(moe_ep_place_lpt(&pd, &now, NULL, NULL, NULL) == MOE_EP_OK);
        }
        d.current = &now;
        CHECK(moe_ep_diagnose(&d, &plan, &o, NULL, &err) == MOE_EP_OK);
        STOP_IF_FAILED("round %d", round);
        CHECK(moe_ep_validate(&plan, 0, NULL, NULL) == MOE_EP_OK);
        for (s = 0; s < SB; s++) {
            double x = plain_max_rows(&now, b + s * per, L, E), y = plain_max_rows(&plan, b + s * per, L, E);
            before += x / SB;
            after += y / SB;
            if (y < x) improved++;
            for (i = 0; i < per; i++) mean += b[s * per + i] / D / SB;
        }
        for (i = 0; i < (int32_t)L * P; i++) {
            int32_t l = i / P, slot = i % P, dev = plan.slot_device[slot], e = plan.slot_expert[i], q, held = e < 0;
            for (q = 0; q < P; q++) {
                if (now.slot_device[q] == dev && now.slot_expert[l * P + q] == e) held = 1;
                if (q < slot && plan.slot_device[q] == dev && plan.slot_expert[l * P + q] == e) held = 1;
            }
            moves += !held;
        }
        CHECK_NEAR(o.before_rows, before, 1e-9, 1e-9);
        CHECK_NEAR(o.after_rows, after, 1e-9, 1e-9);
        CHECK_NEAR(o.mean_rows, mean, 1e-9, 1e-9);
        CHECK_NEAR(o.improved, (double)improved / SB, 1e-12, 0);
        CHECK_I64(o.moves, moves);
        CHECK(o.bound_rows <= after * (1 + 1e-9));
        CHECK(o.bound_rows >= mean * (1 - 1e-9));
        CHECK_I64(o.verdict, o.gain > 0.0 ? MOE_EP_RECOMMEND : MOE_EP_NOT_NOW);
        CHECK(moe_ep_diagnose(&d, NULL, &again, NULL, NULL) == MOE_EP_OK);
        CHECK(memcmp(&o.before_rows, &again.before_rows, sizeof o.before_rows) == 0);
        CHECK_STR(again.text, o.text);
        free(a);
        free(b);
        free(mem);
        free(mem2);
        STOP_IF_FAILED("round %d", round);
    }
}

static void check_error(moe_ep_diagnose_desc d, moe_ep_status want, const char *arg, int line)
{
    moe_ep_diagnosis o, before;
    moe_ep_error err;
    memset(&o, 0x5a, sizeof o);
    memset(&before, 0x5a, sizeof before);
    CHECK_I64(moe_ep_diagnose(&d, NULL, &o, NULL, &err), want);
    CHECK_I64(err.status, want);
    if (arg) CHECK_STR(err.arg, arg);
    if (arg && strncmp(arg, "desc.", 5) == 0) /* the sixth load is the bad one everywhere; the rest are no lists */
        CHECK_I64(err.index, strstr(arg, "_loads") && want != MOE_EP_ERR_NULL ? 5 : -1);
    CHECK(err.index >= -1);
    CHECK(memcmp(&o, &before, sizeof o) == 0);
    if (t_failed_here) printf("    called from line %d\n", line);
}

/* ---- every figure of any shape, recomputed in the plainest way ------------------------------------------------ */

typedef struct world {
    int32_t L, E, D, SA, SB;
    double a[3 * 3 * 16], b[4 * 3 * 16], speed[6];
    uint8_t inactive[6], past[6];
    double past_speed[6];
    int32_t slots[6];
    int64_t traffic[36];
    moe_ep_model model;
    moe_ep_machine machine;
    moe_ep_layer_desc cost;
    moe_ep_diagnose_desc d;
    moe_ep_placement now, plan;
    void *now_mem, *plan_mem;
    int contiguous; /* now is what NULL stands for */
} world;

static void world_loads(uint64_t *state, double *loads, int32_t steps, int32_t L, int32_t E)
{
    int32_t s, l, e;
    for (s = 0; s < steps; s++) {
        int idle = t_below(state, 5) == 0;
        for (l = 0; l < L; l++) {
            int zero = idle || t_below(state, 4) == 0, even = t_below(state, 6) == 0;
            for (e = 0; e < E; e++)
                loads[(s * L + l) * E + e] = zero ? 0 : even ? 24 : (double)t_below(state, 400) * 0.5;
        }
    }
}

static void world_placement(world *w, moe_ep_placement *p, void **mem)
{
    size_t bytes = moe_ep_placement_bytes(w->L, w->E, &w->d.shape);
    *mem = t_alloc(bytes);
    CHECK(moe_ep_placement_init(p, w->L, w->E, &w->d.shape, *mem, bytes, NULL) == MOE_EP_OK);
}

static void world_cost(world *w, uint64_t *state)
{
    w->model = moe_ep_model_deepseek_v3();
    w->model.num_experts = w->E;
    w->model.top_k = 1;
    w->model.num_groups = w->model.top_groups = 0;
    w->model.num_moe_layers = 1 + (int32_t)t_below(state, 5);
    w->model.ungated = (int32_t)t_below(state, 2);
    if (t_below(state, 2)) w->model.weight_bytes = 0;
    w->machine = moe_ep_machine_h100();
    if (t_below(state, 2)) w->machine.devices_per_node = 1 + (int32_t)t_below(state, 4);
    memset(&w->cost, 0, sizeof w->cost);
    w->cost.model = &w->model;
    w->cost.machine = &w->machine;
    if (t_below(state, 2)) { /* of another plan: not looked at */
        w->cost.tokens = 1 + t_below(state, 5000);
        w->cost.traffic = w->cost.node_traffic = w->traffic;
    }
    w->d.cost = &w->cost;
    w->d.other_s = t_below(state, 2) ? 1e-4 : 0;
}

static void world_thresholds(moe_ep_diagnose_desc *d, uint64_t *state)
{
    static const double target[5] = {0, 1, 1.05, 1.3, 4}, gain[4] = {0, 0.02, 0.1, 0.6}, improved[3] = {0, 0.5, 1},
                        horizon[5] = {0, 1e-5, 3, 40, 1e7},
                        bytes[3] = {0, 0.5, 1e7}, Bps[3] = {0, 1e8, 1e13}, pause[3] = {0, 0, 0.25},
                        sigmas[6] = {0, 0, 0, 0, 1.645, 1e308};
    d->target_imbalance = target[t_below(state, 5)];
    d->min_gain = gain[t_below(state, 4)];
    d->min_improved = improved[t_below(state, 3)];
    d->min_steps = (int32_t)t_below(state, 5);
    d->min_sigmas = sigmas[t_below(state, 6)];
    d->horizon_steps = horizon[t_below(state, 5)];
    d->move_Bps = Bps[t_below(state, 3)];
    d->pause_s = pause[t_below(state, 3)];
    d->expert_bytes = bytes[t_below(state, 3)];
}

/* Today's devices: others may be away, and faster or slower, than those of the plan. */
static void world_past(world *w, moe_ep_shape *shape, uint64_t *state)
{
    int32_t i, room = 0;
    for (i = 0; i < w->D; i++) {
        w->past[i] = t_below(state, 3) == 0;
        w->past_speed[i] = 0.5 * (double)(1 + t_below(state, 4));
        if (!w->past[i]) room += w->now.slot_start[i + 1] - w->now.slot_start[i];
    }
    if (t_below(state, 2)) shape->speed = w->past_speed;
    if (room >= w->E) shape->inactive = w->past;
}

static void world_make(world *w, uint64_t *state)
{
    static const moe_ep_place_policy policies[4] = {MOE_EP_PLACE_GIVEN, MOE_EP_PLACE_BEST, MOE_EP_PLACE_LPT,
                                                    MOE_EP_PLACE_ROUND_ROBIN};
    int32_t i, active = 0;
    memset(w, 0, sizeof *w);
    w->L = 1 + (int32_t)t_below(state, 3);
    w->E = 1 + (int32_t)t_below(state, 16);
    w->D = 1 + (int32_t)t_below(state, 6);
    w->SA = 1 + (int32_t)t_below(state, 3);
    w->SB = (int32_t)t_below(state, 5);
    world_loads(state, w->a, w->SA, w->L, w->E);
    world_loads(state, w->b, w->SB, w->L, w->E);
    world_thresholds(&w->d, state);
    w->d.num_layers = w->L;
    w->d.num_experts = w->E;
    w->d.top_k = (int32_t)t_below(state, 3) % (w->E + 1);
    w->d.plan_loads = w->a;
    w->d.plan_steps = w->SA;
    w->d.judge_loads = w->SB > 0 ? w->b : NULL;
    w->d.judge_steps = w->SB;
    w->d.policy = policies[t_below(state, 4)];
    if (t_below(state, 3) == 0) { /* groups of `each` experts, so many that they hold top_k */
        const int32_t each = 1 + (int32_t)t_below(state, (uint64_t)w->E), K = w->d.top_k > 0 ? w->d.top_k : 1;
        if (w->E % each == 0) {
            w->d.num_groups = t_below(state, 2) ? w->E / each : 0;
            w->d.router_groups = w->d.num_groups && t_below(state, 2) ? 0 : w->E / each;
            w->d.top_groups = (K + each - 1) / each + (int32_t)t_below(state, 3);
        }
    }
    w->d.shape.num_devices = w->D;
    for (i = 0; i < w->D; i++) {
        w->inactive[i] = t_below(state, 4) == 0;
        w->speed[i] = 0.5 * (double)(1 + t_below(state, 4));
        active += !w->inactive[i];
    }
    if (active == 0) w->inactive[0] = 0, active = 1;
    for (i = 0; i < w->D; i++) w->slots[i] = (w->E + active - 1) / active + (int32_t)t_below(state, 3);
    if (t_below(state, 2)) w->d.shape.inactive = w->inactive;
    if (t_below(state, 2)) w->d.shape.speed = w->speed;
    if (t_below(state, 2)) w->d.shape.slots_per_device = w->slots;
    else if (!w->d.shape.inactive) w->d.shape.num_slots = w->E + (int32_t)t_below(state, 3);
    else w->d.shape.num_slots = w->D * ((w->E + active - 1) / active);
    if (t_below(state, 3) == 0) world_cost(w, state);
    else if (t_below(state, 4) == 0) /* less than a row in all */
        for (i = 0; i < 4 * 3 * 16; i++) {
            if (i < 3 * 3 * 16) w->a[i] /= 4096;
            w->b[i] /= 4096;
        }
    world_placement(w, &w->now, &w->now_mem);
    world_placement(w, &w->plan, &w->plan_mem);
    {
        moe_ep_place_desc pd;
        memset(&pd, 0, sizeof pd);
        pd.num_layers = w->L;
        pd.num_experts = w->E;
        pd.shape = w->d.shape;
        w->contiguous = t_below(state, 2) == 0;
        if (!w->contiguous && t_below(state, 2)) world_past(w, &pd.shape, state);
        if (w->contiguous) CHECK(moe_ep_place_contiguous(&pd, &w->now, NULL, NULL, NULL) == MOE_EP_OK);
        else CHECK(moe_ep_place_round_robin(&pd, &w->now, NULL, NULL, NULL) == MOE_EP_OK);
        if (!w->contiguous) w->d.current = &w->now;
    }
}

/* What a diagnosis holds, from the two placements alone. */
typedef struct plain {
    int32_t steps, layers_loaded, hot_device, hot_layer;
    double share, ratio, own, mean, before, after, bound, before_s, after_s, balanced_s, improved, total, total_a;
    double took[2][4], ties; /* seconds or rows of each judged step, today's and the plan's */
    int64_t moves, most;
} plain;

/* Standard error of 1 - after/before over n parts that scatter about it, times the 95 % point of Student's t over the
 * normal one. */
static double plain_scatter(const double *before, const double *after, int n)
{
    static const double t95[17] = {0, 0, 6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796,
                                   1.782, 1.771, 1.761, 1.753};
    double b = 0, a = 0, squares = 0;
    int i;
    if (n < 2) return 0;
    for (i = 0; i < n; i++) b += before[i], a += after[i];
    for (i = 0; i < n; i++) squares += pow(after[i] - before[i] * a / b, 2);
    return sqrt(squares / (n - 1) * n) / b * t95[n] / 1.645;
}

/* Work of each device in one layer, load / speed; returns the largest, -1 on inactive devices. */
static double plain_layer(const moe_ep_placement *p, int32_t l, const double *loads, double *work)
{
    const int32_t *slot = p->slot_expert + (int64_t)l * p->num_slots;
    double worst = 0;
    int32_t dev, s, q;
    for (dev = 0; dev < p->num_devices; dev++) {
        work[dev] = p->device_inactive[dev] ? -1 : 0;
        if (p->device_inactive[dev]) continue;
        for (s = p->slot_start[dev]; s < p->slot_start[dev + 1]; s++) {
            int32_t copies = 0;
            if (slot[s] < 0) continue;
            for (q = 0; q < p->num_slots; q++)
                copies += slot[q] == slot[s] && !p->device_inactive[p->slot_device[q]];
            work[dev] += loads[slot[s]] / copies;
        }
        work[dev] /= p->device_speed[dev];
        if (work[dev] > worst) worst = work[dev];
    }
    return worst;
}

/* Seconds of one layer; *balanced gets them with an even share of the rows. */
static double plain_seconds(world *w, const moe_ep_placement *p, int32_t l, const double *loads, double *balanced)
{
    moe_ep_split_desc even;
    moe_ep_layer_desc cost = w->cost;
    moe_ep_time_result t;
    int64_t counts[16], rows[6 * 18];
    int32_t e;
    memset(&even, 0, sizeof even);
    for (e = 0; e < w->E; e++) counts[e] = (int64_t)floor(loads[e] + 0.5);
    cost.placement = p;
    cost.tokens = 0;
    cost.traffic = cost.node_traffic = NULL;
    CHECK(moe_ep_split(&even, p, l, counts, rows, NULL, NULL) == MOE_EP_OK);
    CHECK(moe_ep_layer_time(&cost, rows, &t, NULL, NULL) == MOE_EP_OK);
    *balanced = t.balanced_total_s;
    return t.total_s;
}

static void plain_moves(world *w, plain *o)
{
    int64_t in[6] = {0, 0, 0, 0, 0, 0};
    int32_t l, s, q, dev, P = w->plan.num_slots;
    for (l = 0; l < w->L; l++)
        for (s = 0; s < P; s++) {
            int32_t e = w->plan.slot_expert[l * P + s], held = e < 0;
            dev = w->plan.slot_device[s];
            for (q = 0; q < w->now.num_slots && !(w->now.device_inactive[dev] && !w->plan.device_inactive[dev]); q++)
                held |= w->now.slot_device[q] == dev && w->now.slot_expert[l * w->now.num_slots + q] == e;
            for (q = 0; q < s; q++) held |= w->plan.slot_device[q] == dev && w->plan.slot_expert[l * P + q] == e;
            in[dev] += !held;
        }
    for (dev = 0; dev < w->D; dev++) {
        o->moves += in[dev];
        if (in[dev] > o->most) o->most = in[dev];
    }
}

static void plain_diagnosis(world *w, plain *o)
{
    const double *window = w->SB > 0 ? w->b : w->a;
    int32_t steps = w->SB > 0 ? w->SB : w->SA, s, l, i, loaded[3] = {0, 0, 0};
    double pile[3][6], has[3][6], means[3] = {0, 0, 0}, ratio[3] = {0, 0, 0}, top[3][6], work[6], worst = -1;
    memset(o, 0, sizeof *o);
    memset(pile, 0, sizeof pile);
    memset(has, 0, sizeof has);
    memset(top, 0, sizeof top);
    for (i = 0; i < w->SA * w->L * w->E; i++) o->total_a += w->a[i];
    for (s = 0; s < steps; s++) {
        double sum = 0, rows[2] = {0, 0}, seconds[2] = {0, 0}, balanced;
        for (i = 0; i < w->L * w->E; i++) sum += window[s * w->L * w->E + i];
        o->total += sum;
        if (!(sum > 0)) continue;
        o->steps++;
        for (l = 0; l < w->L; l++) {
            const double *loads = window + (s * w->L + l) * w->E;
            moe_ep_bound_result bound;
            double max, mean = 0, speed = 0;
            int32_t at = -1;
            for (i = 0; i < w->E; i++) mean += loads[i];
            if (!(mean > 0)) continue;
            for (i = 0; i < w->D; i++) speed += w->now.device_inactive[i] ? 0 : w->now.device_speed[i];
            mean /= speed;
            rows[1] += plain_layer(&w->plan, l, loads, work);
            rows[0] += max = plain_layer(&w->now, l, loads, work);
            means[l] += mean;
            for (i = 0; i < w->D; i++) {
                has[l][i] += work[i] > 0 ? work[i] : 0; /* below 0 = it takes no part */
                if (work[i] > mean) pile[l][i] += work[i] - mean;
                if (at < 0 && work[i] >= max) at = i;
            }
            top[l][at] += 1;
            loaded[l]++;
            ratio[l] += max / mean;
            o->mean += mean;
            CHECK(moe_ep_lower_bound(loads, w->E, &w->d.shape, &bound, NULL, NULL) == MOE_EP_OK);
            o->bound += bound.value;
            if (!w->d.cost) continue;
            seconds[1] += plain_seconds(w, &w->plan, l, loads, &balanced);
            seconds[0] += plain_seconds(w, &w->now, l, loads, &balanced);
            o->balanced_s += balanced;
        }
        o->took[0][o->steps - 1] = w->d.cost ? seconds[0] : rows[0];
        o->took[1][o->steps - 1] = w->d.cost ? seconds[1] : rows[1];
        o->ties += w->d.cost ? seconds[0] == seconds[1] : rows[0] == rows[1];
        o->before += rows[0];
        o->after += rows[1];
        o->before_s += seconds[0];
        o->after_s += seconds[1];
        o->improved += w->d.cost ? seconds[1] < seconds[0] : rows[1] < rows[0];
    }
    for (l = 0; l < w->L; l++) o->layers_loaded += loaded[l] > 0;
    for (l = 0; l < w->L; l++)
        for (i = 0; i < w->D && loaded[l]; i++)
            if (!w->now.device_inactive[i] && pile[l][i] > worst + 1e-9)
                worst = pile[l][i], o->hot_layer = l, o->hot_device = i;
    if (loaded[o->hot_layer]) {
        o->share = top[o->hot_layer][o->hot_device] / loaded[o->hot_layer];
        o->ratio = ratio[o->hot_layer] / loaded[o->hot_layer];
        o->own = has[o->hot_layer][o->hot_device] / means[o->hot_layer];
    }
    plain_moves(w, o);
}

static double half_up(double v, int decimals)
{
    double unit = pow(10, decimals);
    return floor(v * unit + 0.5) / unit;
}

static int number(char *to, double v, int decimals) { return sprintf(to, "%.*f", decimals, half_up(v, decimals)); }

/* "a step goes from .. to .. (.. % less)" */
static int change_text(char *to, const moe_ep_diagnose_desc *d, const moe_ep_diagnosis *o)
{
    char *at = to;
    int which, of = d->cost && o->layers_loaded ? d->cost->model->num_moe_layers : 0;
    for (which = 0; which < 2; which++) {
        double rows = which ? o->after_rows : o->before_rows, s = which ? o->after_s : o->before_s;
        if (which == 0 && o->layers_loaded < of)
            at += sprintf(at, "%d of a step's %d layers %s from ", o->layers_loaded, of,
                          o->layers_loaded == 1 ? "goes" : "go");
        else
            at += sprintf(at, which ? " to " : "a step goes from ");
        if (o->before_s > 0) at += number(at, s * 1e3, 3), at += sprintf(at, " ms");
        else at += number(at, rows, rows < 1000 ? 1 : 0), at += sprintf(at, " rows");
    }
    at += sprintf(at, " (");
    at += number(at, fabs(o->gain) * 100, 1);
    at += sprintf(at, " %% %s)", o->gain < 0 ? "more" : "less");
    return (int)(at - to);
}

/* The sentence of a diagnosis, by printf. */
static void sentence(char *at, const moe_ep_diagnose_desc *d, const moe_ep_diagnosis *o)
{
    char part[4][100];
    change_text(part[0], d, o);
    part[1][0] = part[2][0] = '\0';
    switch (o->reason) {
    case MOE_EP_REASON_NO_LOAD: strcpy(at, "a window holds no tokens, so nothing can be said"); break;
    case MOE_EP_REASON_NO_JUDGE_WINDOW:
        sprintf(at, "there is no second window: a plan must be judged on loads it was not made from; on its own "
                "window %s", part[0]);
        break;
    case MOE_EP_REASON_FEW_STEPS:
        sprintf(at, "%d judged %s fewer than the %d asked for; on them %s", o->steps,
                o->steps == 1 ? "step is" : "steps are", d->min_steps, part[0]);
        break;
    case MOE_EP_REASON_BALANCED:
        number(part[1], o->imbalance_before, 3);
        number(part[2], d->target_imbalance, 3);
        sprintf(at, "the busiest device has %s times the mean, within the %s that is good enough", part[1], part[2]);
        break;
    case MOE_EP_REASON_CHANCE:
        number(part[1], o->imbalance_before, 2);
        number(part[2], o->chance_imbalance, 2);
        sprintf(at, "the busiest device has %s times the mean, no more than the %s that even routing of so few tokens "
                "gives by chance; larger batches help, ", part[1], part[2]);
        number(part[3], o->gain * 100, 1);
        sprintf(at + strlen(at), o->gain > 0 ? "the plan saves only %s %%" : "a plan does not", part[3]);
        break;
    case MOE_EP_REASON_SMALL_GAIN:
        number(part[1], d->min_gain * 100, 1);
        sprintf(at, "the plan saves too little: %s, wanted at least %s %%", part[0], part[1]);
        break;
    case MOE_EP_REASON_UNRELIABLE:
        number(part[1], o->improved * 100, 1);
        number(part[2], o->improved_wanted * 100, 1);
        sprintf(at, "the plan helps in only %s %% of the steps, wanted %s %%: the load shifts faster than the plan",
                part[1], part[2]);
        break;
    case MOE_EP_REASON_NOISE:
        if (d->min_sigmas > 1e9) { /* of so large a number the first digits */
            sprintf(at, "%s, but in so few steps chance moves that by ", part[0]);
            break;
        }
        number(part[1], d->min_sigmas * o->gain_sd * 100, 1);
        sprintf(at, "%s, but in so few steps chance moves that by %s %%; more of them would tell", part[0], part[1]);
        break;
    case MOE_EP_REASON_BREAK_EVEN:
        number(part[1], o->break_even_steps, 0);
        number(part[2], d->horizon_steps, 0);
        sprintf(at, "moving %lld experts is repaid after %s steps, but the plan will serve only %s",
                (long long)o->moves, part[1], part[2]);
        break;
    case MOE_EP_REASON_PAYS:
        number(part[1], o->improved * 100, 1);
        sprintf(at, "%s, faster in %s %% of %d judged %s, moving %lld experts", part[0], part[1], o->steps,
                o->steps == 1 ? "step" : "steps", (long long)o->moves);
        if (o->break_even_steps > 0) {
            number(part[2], o->break_even_steps, o->break_even_steps < 10 ? 1 : 0);
            sprintf(at + strlen(at), ", repaid after %s steps", part[2]);
        }
        break;
    }
}

/* The first reason that applies, in the order of the enum's comments. */
static moe_ep_verdict_reason reason_of(const moe_ep_diagnose_desc *d, const plain *p, const moe_ep_diagnosis *o)
{
    if (!(p->total_a > 0) || !(p->total > 0)) return MOE_EP_REASON_NO_LOAD;
    if (!d->judge_loads) return MOE_EP_REASON_NO_JUDGE_WINDOW;
    if (p->steps < d->min_steps) return MOE_EP_REASON_FEW_STEPS;
    if (d->target_imbalance > 0 && o->imbalance_before <= d->target_imbalance &&
        !(o->balanced_s > 0 && o->after_s < (1 - d->min_gain) * o->balanced_s))
        return MOE_EP_REASON_BALANCED;
    if (o->gain <= 0 || o->gain < d->min_gain)
        return o->imbalance_before <= o->chance_imbalance ? MOE_EP_REASON_CHANCE : MOE_EP_REASON_SMALL_GAIN;
    if (o->improved < o->improved_wanted) return MOE_EP_REASON_UNRELIABLE;
    if (o->gain_sd > 0 && o->gain / o->gain_sd < d->min_sigmas) return MOE_EP_REASON_NOISE;
    if (d->horizon_steps > 0 && o->break_even_steps > d->horizon_steps) return MOE_EP_REASON_BREAK_EVEN;
    return MOE_EP_REASON_PAYS;
}

static void check_figures(world *w, const moe_ep_diagnosis *o)
{
    const moe_ep_diagnose_desc *d = &w->d;
    double steps, bytes, saved, other = d->other_s, pause = d->pause_s;
    int i;
    char text[400];
    plain p;
    plain_diagnosis(w, &p);
    if (d->cost && p.layers_loaded > 0 && p.layers_loaded < w->model.num_moe_layers) {
        other *= (double)p.layers_loaded / w->model.num_moe_layers;
        pause *= (double)p.layers_loaded / w->model.num_moe_layers;
    }
    steps = p.steps > 0 ? p.steps : 1;
    CHECK_I64(o->policy, d->policy == MOE_EP_PLACE_GIVEN ? MOE_EP_PLACE_BEST : d->policy);
    CHECK_I64(o->steps, p.steps);
    CHECK_I64(o->layers_loaded, p.layers_loaded);
    CHECK_NEAR(o->mean_rows, p.mean / steps, 1e-12, 0);
    CHECK_NEAR(o->before_rows, p.before / steps, 1e-12, 0);
    CHECK_NEAR(o->after_rows, p.after / steps, 1e-12, 0);
    CHECK_NEAR(o->bound_rows, p.bound / steps, 1e-12, 0);
    CHECK_NEAR(o->imbalance_before, p.steps ? p.before / p.mean : 1, 1e-12, 0);
    CHECK_NEAR(o->imbalance_after, p.steps ? p.after / p.mean : 1, 1e-12, 0);
    CHECK_NEAR(o->imbalance_bound, p.steps ? p.bound / p.mean : 1, 1e-12, 0);
    CHECK_I64(o->hot_layer, p.hot_layer);
    CHECK_I64(o->hot_device, p.hot_device);
    CHECK_NEAR(o->hot_share, p.share, 1e-12, 0);
    CHECK_NEAR(o->hot_imbalance, p.ratio, 1e-12, 0);
    CHECK_NEAR(o->hot_own, p.own, 1e-12, 0);
    CHECK_NEAR(o->improved, p.improved / steps, 1e-12, 0);
    CHECK_NEAR(o->before_s, d->cost && p.steps ? p.before_s / steps + other : 0, 1e-12, 0);
    CHECK_NEAR(o->after_s, d->cost && p.steps ? p.after_s / steps + other : 0, 1e-12, 0);
    CHECK_NEAR(o->balanced_s, d->cost && p.steps ? p.balanced_s / steps + other : 0, 1e-12, 0);
    if (d->cost && p.steps) {
        CHECK_NEAR(o->gain, 1 - o->after_s / o->before_s, 0, 1e-12);
        CHECK_NEAR(o->speedup, o->before_s / o->after_s, 1e-12, 0);
    } else {
        CHECK_NEAR(o->gain, p.steps ? 1 - p.after / p.before : 0, 0, 1e-12);
        CHECK_NEAR(o->speedup, p.steps ? p.before / p.after : 1, 1e-12, 0);
    }
    bytes = d->expert_bytes > 0 || !d->cost
                ? d->expert_bytes
                : (w->model.ungated ? 2.0 : 3.0) * w->model.hidden * w->model.inter *
                      (w->model.weight_bytes > 0 ? w->model.weight_bytes : 2);
    CHECK_I64(o->moves, p.moves);
    CHECK_NEAR(o->move_bytes, bytes * (double)p.moves, 1e-12, 0);
    CHECK_NEAR(o->move_s,
               p.moves ? pause + (d->move_Bps > 0 ? (double)p.most * bytes / d->move_Bps : 0) : 0, 1e-12, 0);
    saved = o->before_s - o->after_s;
    CHECK_NEAR(o->break_even_steps, !(o->move_s > 0) || !p.steps ? 0 : saved > 0 ? o->move_s / saved : -1, 1e-9, 0);
    {
        moe_ep_chance_result chance;
        int32_t K = d->top_k > 0 ? d->top_k : 1, G = d->router_groups ? d->router_groups : d->num_groups;
        const double passes = steps * p.layers_loaded;
        int64_t tokens = p.steps ? (int64_t)(p.total / passes / K + 0.5) : 0;
        double want = p.steps ? 0 : 1, sd = 0, each = 0; /* not known */
        int32_t D = w->D;
        for (i = 0; i < w->D; i++) D -= w->now.device_inactive[i];
        if (tokens > 0 && D <= w->E) {
            if (d->top_groups)
                CHECK_I64(moe_ep_chance_grouped(tokens, K, w->E, D, G, d->top_groups, &chance, NULL), MOE_EP_OK);
            else CHECK_I64(moe_ep_chance_devices(tokens, K, w->E, D, &chance, NULL), MOE_EP_OK);
            want = chance.p95;
            sd = sqrt(2 * chance.sd * chance.sd / passes); /* of the difference of two means */
            each = p.mean / p.before;                      /* the share of all rows that max/mean 1 is */
            if (d->cost) { /* at most in proportion */
                const double above = p.before / p.mean - 1, uneven = 1 - o->balanced_s / o->before_s;
                each = above > 0 && uneven > 0 ? fmin(each, uneven / above) : 0;
            }
            if (passes > 1) want = fmin(want, chance.max_over_mean + 1.645 * chance.sd / sqrt(passes));
        }
        CHECK_NEAR(o->chance_imbalance, want, 1e-12, 0);
        for (i = 0; d->cost && i < p.steps; i++) p.took[0][i] += other, p.took[1][i] += other;
        CHECK_NEAR(o->gain_sd, fmax(sd * each, plain_scatter(p.took[0], p.took[1], p.steps)), 1e-6, 1e-9);
        want = d->min_improved;
        if (sd * each > 0) { /* the normal deviates of the steps of a steady gain are above 0 in a share of them */
            const double share = 1 - 0.5 * erfc(o->gain / (sd * each * sqrt(steps)) / sqrt(2));
            want = fmin(want, fmax(0, share - 1.645 * sqrt(share * (1 - share) / steps) - p.ties / 2 / steps));
        }
        CHECK_NEAR(o->improved_wanted, p.steps ? want : 0, 1e-6, 1e-9);
    }
    CHECK_I64(o->reason, reason_of(d, &p, o));
    CHECK_I64(o->verdict, o->reason == MOE_EP_REASON_PAYS         ? MOE_EP_RECOMMEND
                          : o->reason <= MOE_EP_REASON_FEW_STEPS || o->reason == MOE_EP_REASON_NOISE
                              ? MOE_EP_INSUFFICIENT_EVIDENCE
                              : MOE_EP_NOT_NOW);
    sentence(text, d, o);
    if (o->reason == MOE_EP_REASON_NOISE && d->min_sigmas > 1e9) CHECK(strncmp(o->text, text, strlen(text)) == 0);
    else CHECK_STR(o->text, text);
}

TEST(every_figure_recomputed)
{
    uint64_t state = t_seed + 5;
    int round, seen[10] = {0}, repaid = 0;
    for (round = 0; round < (t_slow() > 1 ? 2000 : 3500); round++) {
        moe_ep_diagnosis o;
        moe_ep_error err;
        world w;
        world_make(&w, &state);
        memset(&err, 1, sizeof err);
        CHECK_I64(moe_ep_diagnose(&w.d, &w.plan, &o, NULL, &err), MOE_EP_OK);
        CHECK_I64(err.status, MOE_EP_OK);
        CHECK(moe_ep_validate(&w.plan, 0, NULL, NULL) == MOE_EP_OK);
        check_figures(&w, &o);
        seen[o.reason]++;
        repaid += o.reason == MOE_EP_REASON_PAYS && o.break_even_steps > 0;
        free(w.now_mem);
        free(w.plan_mem);
        STOP_IF_FAILED("round %d", round);
    }
    for (round = 0; round < 10; round++) CHECK(seen[round] > 0);
    CHECK(repaid > 0);
}

/* Tokens of two different experts each; expert 0 is taken first with probability hot. */
static void drawn_step(uint64_t *state, double *loads, int32_t E, int tokens, double hot)
{
    int t;
    memset(loads, 0, sizeof *loads * (size_t)E);
    for (t = 0; t < tokens; t++) {
        const uint64_t a = t_unit(state) < hot ? 0 : t_below(state, (uint64_t)E), b = t_below(state, (uint64_t)E - 1);
        loads[a] += 1;
        loads[b + (b >= a)] += 1;
    }
}

/* Two steps of 64 tokens over 8 devices: of uniform routing a plan made on two others is recommended about once in
 * twenty, without min_sigmas much more often; an expert with many rows is found nearly always. */
TEST(chance_is_not_recommended)
{
    enum { E = 64, TIMES = 240 };
    static double a[2 * E], b[2 * E];
    uint64_t state = t_seed + 91;
    int asked, i, s, found[3] = {0, 0, 0}, noise[3] = {0, 0, 0};
    for (asked = 0; asked < 3; asked++) /* uniform; uniform and not asked; an expert of every second token */
        for (i = 0; i < TIMES; i++) {
            moe_ep_diagnose_desc d;
            moe_ep_diagnosis o;
            for (s = 0; s < 2; s++) {
                drawn_step(&state, a + s * E, E, 64, asked == 2 ? 0.5 : 0);
                drawn_step(&state, b + s * E, E, 64, asked == 2 ? 0.5 : 0);
            }
            d = desc_of(E, 8, asked == 2 ? 72 : 0, a, b);
            d.plan_steps = d.judge_steps = 2;
            d.top_k = 2;
            moe_ep_diagnose_thresholds(&d);
            if (asked == 1) d.min_sigmas = 0;
            CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
            found[asked] += o.verdict == MOE_EP_RECOMMEND;
            noise[asked] += o.reason == MOE_EP_REASON_NOISE;
            if (o.reason == MOE_EP_REASON_NOISE) {
                CHECK_I64(o.verdict, MOE_EP_INSUFFICIENT_EVIDENCE);
                CHECK(o.gain > 0 && o.gain < 1.645 * o.gain_sd);
            }
        }
    CHECK(found[0] < TIMES * 9 / 100);
    CHECK(noise[0] > TIMES / 20);
    CHECK(found[1] > TIMES * 11 / 100);
    CHECK_I64(noise[1], 0);
    CHECK(found[2] > TIMES * 80 / 100);
}

/* Experts whose popularity wanders: each step keeps 0.9 of the logarithm of the one before. */
static void wander(uint64_t *state, double *loads, int32_t E, int32_t steps)
{
    double x[16], sum[16];
    int32_t s, e;
    int t, k;
    for (s = 0; s < steps; s++) {
        for (e = 0; e < E; e++) {
            double normal = -6;
            for (k = 0; k < 12; k++) normal += t_unit(state);
            x[e] = s == 0 ? 0.6 * normal : 0.9 * x[e] + 0.6 * sqrt(1 - 0.81) * normal;
            sum[e] = exp(x[e]) + (e > 0 ? sum[e - 1] : 0);
            loads[s * E + e] = 0;
        }
        for (t = 0; t < 100; t++) {
            const double at = t_unit(state) * sum[E - 1];
            for (e = 0; e < E - 1 && at >= sum[e]; e++) {}
            loads[s * E + e] += 1;
        }
    }
}

/* The scatter of blocks of steps that follow each other, from the steps judged one by one. */
TEST(blocks_of_steps)
{
    enum { E = 16, D = 4, MOST = 250 };
    static const int steps[] = {2, 3, 7, 8, 9, 20, 63, 64, 80, 81, 100, 120, 250},
                     blocks[] = {2, 3, 7, 8, 8, 8, 8, 8, 8, 9, 10, 10, 15};
    static double a[8 * E], b[MOST * E];
    moe_ep_model model = moe_ep_model_deepseek_v3();
    moe_ep_machine machine = moe_ep_machine_h100();
    moe_ep_layer_desc cost;
    uint64_t state = t_seed + 92;
    size_t i, n = sizeof steps / sizeof steps[0];
    memset(&cost, 0, sizeof cost);
    cost.model = &model;
    cost.machine = &machine;
    model.num_experts = E;
    model.top_k = model.num_moe_layers = 1;
    model.num_groups = model.top_groups = 0;
    for (i = 0; i < 2 * n; i++) { /* in rows, then in seconds */
        const int S = steps[i % n], B = blocks[i % n];
        double before[16] = {0}, after[16] = {0}, tie = 0, share, one;
        moe_ep_diagnose_desc d;
        moe_ep_diagnosis o, each;
        moe_ep_chance_result chance;
        int s;
        wander(&state, a, E, 8);
        wander(&state, b, E, S);
        d = desc_of(E, D, 0, a, b);
        d.plan_steps = 8;
        d.min_improved = 1;
        d.judge_steps = 1;
        if (i >= n) d.cost = &cost, d.other_s = 1e-2;
        for (s = 0; s < S; s++) {
            d.judge_loads = b + s * E;
            CHECK(moe_ep_diagnose(&d, NULL, &each, NULL, NULL) == MOE_EP_OK);
            before[s * B / S] += i < n ? each.before_rows : each.before_s;
            after[s * B / S] += i < n ? each.after_rows : each.after_s;
            tie += i < n ? each.before_rows == each.after_rows : each.before_s == each.after_s;
        }
        d.judge_loads = b;
        d.judge_steps = S;
        CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
        CHECK(moe_ep_chance_devices(100, 1, E, D, &chance, NULL) == MOE_EP_OK);
        one = sqrt(2) * chance.sd / o.imbalance_before;
        if (i >= n)
            one *= fmin(1, (1 - o.balanced_s / o.before_s) / (o.imbalance_before - 1) * o.imbalance_before);
        CHECK_NEAR(o.gain_sd, fmax(one / sqrt(S), plain_scatter(before, after, B)), 2e-3, 0);
        share = 1 - 0.5 * erfc(o.gain / one / sqrt(2));
        share += -1.645 * sqrt(share * (1 - share) / S) - tie / 2 / S;
        CHECK_NEAR(o.improved_wanted, fmax(0, share), 1e-6, 1e-9);
        STOP_IF_FAILED("case %d", (int)i);
    }
}

/* Neither of two plans that were made on other recordings of the same kind is better.  Their difference is called more
 * than chance about once in twenty; taking each token for itself, it would be once in four. */
TEST(steps_that_follow_each_other)
{
    enum { E = 16, D = 4, S = 100, TIMES = 300 };
    static double a[S * E], b[S * E];
    uint64_t state = t_seed + 93;
    int i, called = 0, by_tokens = 0;
    for (i = 0; i < TIMES; i++) {
        moe_ep_diagnose_desc d = desc_of(E, D, 0, a, b);
        moe_ep_place_desc pd;
        moe_ep_placement now;
        moe_ep_chance_result chance;
        moe_ep_diagnosis o;
        const size_t bytes = moe_ep_placement_bytes(1, E, &d.shape);
        void *mem = t_alloc(bytes);
        memset(&pd, 0, sizeof pd);
        pd.num_layers = 1;
        pd.num_experts = E;
        pd.shape = d.shape;
        pd.loads = a;
        pd.num_steps = 10;
        CHECK(moe_ep_placement_init(&now, 1, E, &d.shape, mem, bytes, NULL) == MOE_EP_OK);
        wander(&state, a, E, 10);
        CHECK(moe_ep_best_placement(&pd, &now, NULL, NULL, NULL) == MOE_EP_OK);
        wander(&state, a, E, 10);
        wander(&state, b, E, S);
        d.current = &now;
        d.plan_steps = 10;
        d.judge_steps = S;
        d.min_sigmas = 1.645;
        CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
        CHECK(moe_ep_chance_devices(100, 1, E, D, &chance, NULL) == MOE_EP_OK);
        called += o.reason == MOE_EP_REASON_PAYS;
        by_tokens += o.gain > 1.645 * sqrt(2) * chance.sd / sqrt(S) / o.imbalance_before;
        free(mem);
    }
    CHECK(called < TIMES * 15 / 100);
    CHECK(by_tokens > TIMES * 20 / 100);
}

/* Steps of 32 tokens, three of whose experts on one device are taken twice as often as the others: parting them saves
 * rows in the mean, and by chance half of the single steps do not get faster.  That is no load that shifts; large steps
 * with these experts in every fourth one alone are. */
TEST(steady_gain_of_small_steps)
{
    enum { E = 32, D = 8, S = 400, TOKENS = 32 };
    static double a[E], b[S * E];
    uint64_t state = t_seed + 94;
    int shifts, s, t, e;
    for (shifts = 0; shifts < 2; shifts++) {
        moe_ep_diagnose_desc d = desc_of(E, D, 0, a, b);
        moe_ep_diagnosis o;
        for (e = 0; e < E; e++) a[e] = e < 3 ? 200 : 100;
        for (s = 0; s < S; s++)
            for (e = 0; e < E; e++) b[s * E + e] = 0;
        for (s = 0; s < S; s++)
            for (t = 0; t < TOKENS * (shifts ? 100 : 1); t++) { /* the first three stand for two each */
                uint64_t at = t_below(&state, E + 3);
                if (shifts && s % 4 != 0) at = t_below(&state, E);
                b[s * E + (int)(at < E ? at : at - E)] += 1;
            }
        moe_ep_diagnose_thresholds(&d);
        d.judge_steps = S;
        d.min_gain = 0.03;
        CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
        CHECK_I64(o.reason, shifts ? MOE_EP_REASON_UNRELIABLE : MOE_EP_REASON_PAYS);
        CHECK(o.gain > 0.03 && o.improved < 0.75);
        if (shifts) CHECK_NEAR(o.improved_wanted, 0.8, 0, 0);
        else CHECK(o.improved_wanted < o.improved);
    }
}

/* NULL for current stands for moe_ep_place_contiguous on the shape of the plan, also where a device has too few slots
 * for as many as the others: ten experts on devices of 3 3 2 2 slots are blocks of 3 3 2 2. */
TEST(before_is_contiguous)
{
    static const double loads[10] = {1, 1, 8, 2, 2, 4, 4, 4, 1, 1};
    static const int32_t slots[4] = {1, 3, 2, 4};
    moe_ep_diagnose_desc d;
    moe_ep_place_desc pd;
    moe_ep_placement p;
    moe_ep_plan_result r;
    moe_ep_diagnosis o;
    int uneven;
    for (uneven = 0; uneven < 2; uneven++) {
        size_t bytes;
        void *mem;
        d = desc_of(10, 4, 0, loads, loads);
        if (uneven) d.shape.slots_per_device = slots;
        memset(&pd, 0, sizeof pd);
        pd.num_layers = 1;
        pd.num_experts = 10;
        pd.shape = d.shape;
        pd.loads = loads;
        bytes = moe_ep_placement_bytes(1, 10, &d.shape);
        mem = t_alloc(bytes);
        CHECK(moe_ep_placement_init(&p, 1, 10, &d.shape, mem, bytes, NULL) == MOE_EP_OK);
        CHECK(moe_ep_place_contiguous(&pd, &p, &r, NULL, NULL) == MOE_EP_OK);
        CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
        /* 1 1 8 | 2 2 4 | 4 4 | 1 1 and 1 | 1 8 2 | 2 4 | 4 4 1 1 */
        CHECK_NEAR(r.max, uneven ? 11 : 10, 0, 0);
        CHECK_NEAR(r.max_before, r.max, 0, 0);
        CHECK_NEAR(o.before_rows, r.max, 0, 0);
        CHECK_I64(o.hot_device, uneven ? 1 : 0);
        free(mem);
    }
}

/* Each policy is the planner of that name. */
TEST(every_policy)
{
    typedef moe_ep_status (*planner)(const moe_ep_place_desc *, moe_ep_placement *, moe_ep_plan_result *,
                                     moe_ep_scratch *, moe_ep_error *);
    static const struct {
        moe_ep_place_policy policy;
        planner run;
        moe_ep_eplb_mode mode;
    } all[] = {{MOE_EP_PLACE_BEST, moe_ep_best_placement, MOE_EP_EPLB_AUTO},
               {MOE_EP_PLACE_ROUND_ROBIN, moe_ep_place_round_robin, MOE_EP_EPLB_AUTO},
               {MOE_EP_PLACE_CONTIGUOUS, moe_ep_place_contiguous, MOE_EP_EPLB_AUTO},
               {MOE_EP_PLACE_LPT, moe_ep_place_lpt, MOE_EP_EPLB_AUTO},
               {MOE_EP_PLACE_TRTLLM, moe_ep_place_trtllm, MOE_EP_EPLB_AUTO},
               {MOE_EP_PLACE_EPLB_GLOBAL, moe_ep_place_eplb, MOE_EP_EPLB_GLOBAL},
               {MOE_EP_PLACE_EPLB_HIERARCHICAL, moe_ep_place_eplb, MOE_EP_EPLB_HIERARCHICAL}};
    enum { L = 2, E = 12, P = 16, S = 3 };
    static const uint8_t five[8] = {1, 1, 1, 1, 1, 0, 0, 0};
    double loads[S * L * E];
    uint64_t state = t_seed;
    moe_ep_diagnose_desc d;
    moe_ep_place_desc pd;
    moe_ep_placement want, got;
    moe_ep_diagnosis o, small;
    void *mem[2], *buf;
    size_t i, bytes;
    for (i = 0; i < S * L * E; i++) loads[i] = (double)t_below(&state, 100);
    memset(&d, 0, sizeof d);
    d.num_layers = L;
    d.num_experts = E;
    d.num_groups = 4;
    d.shape.num_devices = 8;
    d.shape.num_nodes = 2;
    d.shape.num_slots = P;
    d.plan_loads = loads;
    d.plan_steps = S;
    memset(&pd, 0, sizeof pd);
    pd.num_layers = L;
    pd.num_experts = E;
    pd.num_groups = 4;
    pd.shape = d.shape;
    pd.loads = loads;
    pd.num_steps = S;
    bytes = moe_ep_placement_bytes(L, E, &d.shape);
    for (i = 0; i < 2; i++) {
        mem[i] = t_alloc(bytes);
        CHECK(moe_ep_placement_init(i ? &got : &want, L, E, &d.shape, mem[i], bytes, NULL) == MOE_EP_OK);
    }
    for (i = 0; i < sizeof all / sizeof all[0]; i++) {
        moe_ep_scratch scratch = moe_ep_scratch_fixed(NULL, 0);
        int tries;
        d.policy = all[i].policy;
        pd.eplb_mode = all[i].mode;
        CHECK(all[i].run(&pd, &want, NULL, NULL, NULL) == MOE_EP_OK);
        CHECK(moe_ep_diagnose(&d, &got, &o, NULL, NULL) == MOE_EP_OK);
        CHECK_I64(o.policy, all[i].policy);
        CHECK(memcmp(got.slot_expert, want.slot_expert, sizeof(int32_t) * L * P) == 0);
        CHECK(memcmp(got.replica_slot, want.replica_slot, sizeof(int32_t) * L * P) == 0);
        buf = NULL;
        for (tries = 0; tries < 6; tries++) { /* the same from a buffer that grows as scratch.need says */
            moe_ep_status st = moe_ep_diagnose(&d, NULL, &small, &scratch, NULL);
            size_t need = scratch.need;
            if (st != MOE_EP_ERR_SCRATCH) {
                CHECK_I64(st, MOE_EP_OK);
                break;
            }
            CHECK(need > scratch.bytes);
            free(buf);
            buf = t_alloc(need);
            scratch = moe_ep_scratch_fixed(buf, need);
        }
        CHECK(tries > 0 && tries < 4);
        CHECK_STR(small.text, o.text);
        { /* what a success says it needed is enough, and one byte less is not */
            size_t need = scratch.need;
            CHECK(need <= scratch.bytes);
            scratch = moe_ep_scratch_fixed(buf, need);
            CHECK(moe_ep_diagnose(&d, NULL, &small, &scratch, NULL) == MOE_EP_OK);
            scratch = moe_ep_scratch_fixed(buf, need - 1);
            CHECK_I64(moe_ep_diagnose(&d, NULL, &small, &scratch, NULL), MOE_EP_ERR_SCRATCH);
        }
        free(buf);
        STOP_IF_FAILED("policy %d", (int)i);
    }
    d.num_groups = pd.num_groups = 3; /* no whole groups a node: the hierarchical one says so, any other way would do */
    d.policy = MOE_EP_PLACE_EPLB_HIERARCHICAL;
    pd.eplb_mode = MOE_EP_EPLB_HIERARCHICAL;
    CHECK(moe_ep_place_eplb(&pd, &want, NULL, NULL, NULL) != MOE_EP_OK);
    CHECK_I64(moe_ep_diagnose(&d, NULL, &o, NULL, NULL), moe_ep_place_eplb(&pd, &want, NULL, NULL, NULL));
    d.num_groups = pd.num_groups = 4;
    { /* the incremental one begins with what runs today */
        moe_ep_rebalance_desc change;
        memset(&change, 0, sizeof change);
        pd.num_steps = d.plan_steps = 1;
        CHECK(moe_ep_place_round_robin(&pd, &want, NULL, NULL, NULL) == MOE_EP_OK);
        change.current = d.current = &want;
        change.loads = loads;
        change.target = d.target_imbalance = 1.2;
        d.policy = MOE_EP_PLACE_REBALANCE;
        CHECK(moe_ep_diagnose(&d, &got, &o, NULL, NULL) == MOE_EP_OK);
        CHECK(o.moves > 0 && o.imbalance_after < o.imbalance_before);
        for (d.plan_steps = 2; d.plan_steps <= S; d.plan_steps++)
            check_error(d, MOE_EP_ERR_CONFIG, "desc.plan_steps", __LINE__);
        d.plan_steps = 1;
        d.shape.inactive = five; /* the bound is that of the shape, which has too few slots left */
        check_error(d, MOE_EP_ERR_SLOTS, "shape", __LINE__);
        CHECK(moe_ep_rebalance(&change, &want, NULL, NULL, NULL) == MOE_EP_OK); /* in place: current is done with */
        CHECK(memcmp(got.slot_expert, want.slot_expert, sizeof(int32_t) * L * P) == 0);
    }
    free(mem[0]);
    free(mem[1]);
}

/* Loads whose shares a double no longer holds exactly are none; the least that counts is judged like any other. */
TEST(loads_next_to_nothing)
{
    static const double speed[2] = {1e6, 1e-6};
    double one[2] = {1, 1}, below[8], least[8], two[4];
    moe_ep_model model = moe_ep_model_deepseek_v3();
    moe_ep_machine machine = moe_ep_machine_h100();
    moe_ep_layer_desc cost;
    moe_ep_diagnose_desc d = hot_desc();
    moe_ep_diagnosis o;
    int i;
    for (i = 0; i < 8; i++) {
        below[i] = (double)(i + 1) / 36 * 0.999e-280;
        least[i] = (double)(i + 1) / 36 * 1.001e-280;
    }
    d.judge_loads = below;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_NO_LOAD);
    CHECK_I64(o.steps, 0);
    CHECK_NEAR(o.before_rows, 0, 0, 0);
    d.plan_loads = below;
    d.judge_loads = least;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.reason, MOE_EP_REASON_NO_LOAD);
    d.plan_loads = hot;
    for (i = 0; i < 8; i++) below[i] = i ? 0 : 1e-280; /* just enough */
    d.judge_loads = below;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.steps, 1);
    d.judge_loads = least;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.steps, 1);
    CHECK_I64(o.layers_loaded, 1);
    CHECK_I64(o.hot_device, 3);
    CHECK_NEAR(o.hot_share, 1, 0, 0);
    CHECK_NEAR(o.mean_rows, 1.001e-280 / 4, 1e-12, 0);
    CHECK_NEAR(o.imbalance_before, 4 * 15 / 36.0, 1e-12, 0); /* 7 + 8 of 36 on the last of four */
    CHECK(o.bound_rows <= o.after_rows * (1 + 1e-9));
    CHECK_NEAR(o.chance_imbalance, 0, 0, 0); /* of less than half a token nothing is known */

    two[0] = two[1] = 0.999e-280 / 2; /* of two layers one is left out, also from the mean */
    two[2] = 3e-280;
    two[3] = 0;
    d = desc_of(2, 2, 0, two, two);
    d.num_layers = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.layers_loaded, 1);
    CHECK_I64(o.hot_layer, 1);
    CHECK_NEAR(o.mean_rows, 1.5e-280, 1e-12, 0);
    CHECK_NEAR(o.imbalance_before, 2, 1e-12, 0);

    memset(&cost, 0, sizeof cost); /* no whole row: nothing to gain, whatever the speeds */
    model.num_experts = 2;
    model.top_k = 1;
    model.num_groups = model.top_groups = 1;
    cost.model = &model;
    cost.machine = &machine;
    d = desc_of(2, 2, 0, one, two + 2);
    d.shape.speed = speed;
    d.cost = &cost;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(o.steps, 1);
    CHECK_NEAR(o.before_rows, 3e-286, 1e-12, 0);
    CHECK_NEAR(o.imbalance_before, 1e-6 * (1e6 + 1e-6), 1e-12, 0);
    CHECK_NEAR(o.before_s, o.balanced_s, 1e-12, 0); /* what a layer takes without rows */
    CHECK_NEAR(o.gain, 0, 0, 0);
    memset(&machine, 0, sizeof machine); /* infinitely fast: no seconds, the gain is that of the rows */
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.before_s + o.after_s + o.balanced_s, 0, 0, 0);
    CHECK_NEAR(o.gain, 1 - o.after_rows / o.before_rows, 1e-12, 0);
}

/* The other end: as many rows as a double counts, costs that a double does not hold. */
TEST(huge_figures)
{
    enum { E = 1200 };
    static double many[E], split[8];
    moe_ep_model model = moe_ep_model_deepseek_v3();
    moe_ep_machine machine = moe_ep_machine_h100();
    moe_ep_layer_desc cost;
    moe_ep_diagnose_desc d = hot_desc();
    moe_ep_diagnosis o;
    moe_ep_error err;
    int e;
    for (e = 0; e < 8; e++) split[e] = 1e14 * (e < 2 ? 9 : 1);
    d.plan_loads = d.judge_loads = split;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK(strstr(o.text, "a step goes from 1800000000000000 rows to ") == o.text);
    for (e = 0; e < 8; e++) split[e] *= 9.99;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK(strstr(o.text, "a step goes from 1.7982e16 rows to ") == o.text);

    memset(&cost, 0, sizeof cost);
    cost.model = &model;
    cost.machine = &machine;
    d = hot_desc();
    d.cost = &cost;
    d.shape.num_slots = 0;
    d.policy = MOE_EP_PLACE_LPT;
    d.expert_bytes = 1e308;
    model.num_experts = 8;
    model.num_groups = model.top_groups = 0;
    d.move_Bps = 1e-3;
    d.horizon_steps = 100;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK(o.moves > 1);
    CHECK_NEAR(o.move_bytes, 1.7976931348623157e308, 0, 0);
    CHECK_NEAR(o.move_s, 1.7976931348623157e308, 0, 0);
    CHECK(o.before_s > o.after_s);
    CHECK_NEAR(o.break_even_steps, -1, 0, 0); /* steps that no double counts: never */
    CHECK_I64(o.reason, MOE_EP_REASON_BREAK_EVEN);
    CHECK(strstr(o.text, " experts is never repaid, but the plan will serve only 100") != NULL);

    memcpy(split, hot, sizeof split);
    for (e = 0; e < 9 * 8; e++) many[e] = hot[e % 8];
    d.judge_loads = many;
    d.judge_steps = 9;
    model.num_moe_layers = 1;
    d.other_s = 1.7e308; /* a block of two such steps is more than a double holds: no scatter is known */
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK(o.gain_sd >= 0 && o.gain_sd < 1e-300 && o.before_s > 1e307);

    for (e = 0; e < E; e++) many[e] = 9e15;
    d = desc_of(E, 4, 0, many, many);
    d.policy = MOE_EP_PLACE_CONTIGUOUS;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK); /* 1.08e19 rows: beyond int64 */
    CHECK_NEAR(o.mean_rows, 2.7e18, 1e-12, 0);
    CHECK(o.chance_imbalance >= 1 && o.chance_imbalance < 1.000001);
    d.cost = &cost;
    model.num_experts = E;
    CHECK_I64(moe_ep_diagnose(&d, NULL, &o, NULL, &err), MOE_EP_ERR_OVERFLOW); /* whole rows are int64 */
}

TEST(bad_input)
{
    moe_ep_diagnose_desc d = hot_desc();
    moe_ep_diagnosis o;
    moe_ep_error err;
    double bad[8];
    moe_ep_layer_desc cost;
    moe_ep_model model = moe_ep_model_deepseek_v3();
    moe_ep_machine machine = moe_ep_machine_h100();
    CHECK_I64(moe_ep_diagnose(NULL, NULL, &o, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "desc");
    CHECK_I64(moe_ep_diagnose(&d, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "out");
    memset(&d, 0, sizeof d);
    check_error(d, MOE_EP_ERR_SIZE, NULL, __LINE__);
#define BAD(change, status, arg)                                                                    \
    d = hot_desc();                                                                                 \
    change;                                                                                         \
    check_error(d, status, arg, __LINE__)
    BAD(d.num_layers = 0, MOE_EP_ERR_SIZE, "desc.num_layers");
    BAD(d.num_layers = -3, MOE_EP_ERR_SIZE, "desc.num_layers");
    BAD(d.num_experts = 0, MOE_EP_ERR_SIZE, "desc.num_experts");
    BAD(d.top_k = -1, MOE_EP_ERR_TOP_K, "desc.top_k");
    BAD(d.top_k = 9, MOE_EP_ERR_TOP_K, "desc.top_k");
    BAD(d.plan_steps = 0, MOE_EP_ERR_SIZE, "desc.plan_steps");
    BAD(d.plan_loads = NULL, MOE_EP_ERR_NULL, "desc.plan_loads");
    BAD(d.judge_steps = 0, MOE_EP_ERR_SIZE, "desc.judge_steps");
    BAD(d.judge_steps = -1, MOE_EP_ERR_SIZE, "desc.judge_steps");
    BAD(d.judge_loads = NULL, MOE_EP_ERR_SIZE, "desc.judge_steps");
    BAD((d.judge_loads = NULL, d.judge_steps = -1), MOE_EP_ERR_SIZE, "desc.judge_steps");
    BAD((d.num_layers = d.num_experts = INT32_MAX, d.plan_steps = 3), MOE_EP_ERR_OVERFLOW, "desc.plan_steps");
    BAD(d.num_layers = d.num_experts = INT32_MAX, MOE_EP_ERR_OVERFLOW, "desc.plan_steps");
    BAD((d.num_layers = d.num_experts = 1 << 29, d.judge_steps = 32), MOE_EP_ERR_OVERFLOW, "desc.judge_steps");
    BAD((d.num_layers = d.num_experts = 1 << 29, d.judge_steps = 4), MOE_EP_ERR_OVERFLOW, "desc.judge_steps");
    BAD(d.shape.num_devices = 0, MOE_EP_ERR_SIZE, "desc.shape.num_devices");
    BAD(d.shape.num_slots = 7, MOE_EP_ERR_SLOTS, NULL);
    BAD(d.policy = (moe_ep_place_policy)99, MOE_EP_ERR_RANGE, "desc.policy");
    BAD(d.policy = MOE_EP_PLACE_REBALANCE, MOE_EP_ERR_CONFIG, "desc.policy");
    BAD(d.shape.num_nodes = 9, MOE_EP_ERR_RANGE, "shape.num_nodes");
    BAD(d.min_gain = 1.0, MOE_EP_ERR_RANGE, "desc.min_gain");
    BAD(d.min_gain = -0.1, MOE_EP_ERR_NEGATIVE, "desc.min_gain");
    BAD(d.min_sigmas = -1, MOE_EP_ERR_NEGATIVE, "desc.min_sigmas");
    BAD(d.min_sigmas = (double)NAN, MOE_EP_ERR_NAN, "desc.min_sigmas");
    BAD(d.min_improved = 1.5, MOE_EP_ERR_RANGE, "desc.min_improved");
    BAD(d.other_s = NAN, MOE_EP_ERR_NAN, "desc.other_s");
    BAD(d.move_Bps = INFINITY, MOE_EP_ERR_NAN, "desc.move_Bps");
    BAD(d.min_steps = -1, MOE_EP_ERR_NEGATIVE, "desc.min_steps");
    BAD(d.top_groups = -1, MOE_EP_ERR_CONFIG, "desc.top_groups");
    BAD((d.top_groups = 1, d.router_groups = 3), MOE_EP_ERR_CONFIG, "desc.top_groups");
    BAD((d.top_groups = 1, d.num_groups = -1), MOE_EP_ERR_CONFIG, "desc.top_groups");
    BAD((d.top_k = 3, d.top_groups = 1, d.router_groups = 4), MOE_EP_ERR_CONFIG, "desc.top_groups");
    memcpy(bad, hot, sizeof bad);
    bad[5] = NAN;
    BAD(d.judge_loads = bad, MOE_EP_ERR_NAN, "desc.judge_loads");
    bad[5] = -1;
    BAD(d.plan_loads = bad, MOE_EP_ERR_NEGATIVE, "desc.plan_loads");
    bad[5] = 1e16;
    BAD(d.plan_loads = bad, MOE_EP_ERR_OVERFLOW, "desc.plan_loads");
    memset(&cost, 0, sizeof cost);
    BAD(d.cost = &cost, MOE_EP_ERR_NULL, "desc.cost.model");
    cost.model = &model;
    BAD(d.cost = &cost, MOE_EP_ERR_NULL, "desc.cost.machine");
    cost.machine = &machine;
    model.hidden = 0;
    BAD(d.cost = &cost, MOE_EP_ERR_SIZE, NULL);
    { /* what runs today must be a placement of the same experts on the same devices */
        moe_ep_placement now, other;
        void *mem = t_alloc(moe_ep_placement_bytes(1, 8, &d.shape));
        size_t bytes = moe_ep_placement_bytes(1, 8, &d.shape);
        CHECK(moe_ep_placement_init(&now, 1, 8, &d.shape, mem, bytes, NULL) == MOE_EP_OK);
        BAD(d.current = &now, MOE_EP_ERR_LOST_EXPERT, "p"); /* every slot is empty */
        other = now;
        other.num_layers = 2;
        BAD(d.current = &other, MOE_EP_ERR_SIZE, "desc.current");
        other = now;
        other.num_experts = 7;
        BAD(d.current = &other, MOE_EP_ERR_SIZE, "desc.current");
        other = now;
        other.num_devices = 3;
        BAD(d.current = &other, MOE_EP_ERR_SIZE, "desc.current");
        d = hot_desc();
        other = now;
        other.num_slots = 11;
        CHECK_I64(moe_ep_diagnose(&d, &other, &o, NULL, &err), MOE_EP_ERR_SIZE); /* the plan does not fit in there */
        CHECK_STR(err.arg, "dst");
        free(mem);
    }
#undef BAD
}

/* Each load of each window is looked at. */
TEST(every_bad_load)
{
    static const double wrong[3] = {NAN, -1, 1e16};
    static const moe_ep_status want[3] = {MOE_EP_ERR_NAN, MOE_EP_ERR_NEGATIVE, MOE_EP_ERR_OVERFLOW};
    double bad[8];
    int at, kind;
    for (at = 0; at < 8; at++)
        for (kind = 0; kind < 6; kind++) {
            moe_ep_diagnose_desc d = kind < 3 ? desc_of(8, 4, 12, bad, hot) : desc_of(8, 4, 12, hot, bad);
            moe_ep_diagnosis o;
            moe_ep_error err;
            memcpy(bad, hot, sizeof bad);
            bad[at] = wrong[kind % 3];
            CHECK_I64(moe_ep_diagnose(&d, NULL, &o, NULL, &err), want[kind % 3]);
            CHECK_STR(err.arg, kind < 3 ? "desc.plan_loads" : "desc.judge_loads");
            CHECK_I64(err.index, at);
        }
}

TEST(scratch)
{
    moe_ep_diagnose_desc d = hot_desc();
    moe_ep_diagnosis o, reference, untouched;
    moe_ep_scratch s, grow;
    void *buf = NULL;
    size_t bytes = 0;
    int tries = 0;
    moe_ep_status st;
    CHECK(moe_ep_diagnose(&d, NULL, &reference, NULL, NULL) == MOE_EP_OK);
    memset(&o, 0x33, sizeof o);
    memset(&untouched, 0x33, sizeof untouched);
    do { /* a fixed buffer is grown by the caller as scratch.need says */
        s = moe_ep_scratch_fixed(buf, bytes);
        st = moe_ep_diagnose(&d, NULL, &o, &s, NULL);
        if (st == MOE_EP_OK) break;
        CHECK_I64(st, MOE_EP_ERR_SCRATCH);
        CHECK(memcmp(&o, &untouched, sizeof o) == 0);
        CHECK(s.need > bytes);
        if (s.need <= bytes) break;
        free(buf);
        bytes = s.need;
        buf = t_alloc(bytes);
    } while (++tries < 20);
    CHECK_I64(st, MOE_EP_OK);
    CHECK_STR(o.text, reference.text);
    CHECK(tries >= 1 && tries < 10);
    free(buf);
    memset(&grow, 0, sizeof grow);
    CHECK(moe_ep_diagnose(&d, NULL, &o, &grow, NULL) == MOE_EP_OK);
    CHECK(moe_ep_diagnose(&d, NULL, &o, &grow, NULL) == MOE_EP_OK);
    CHECK_STR(o.text, reference.text);
    moe_ep_scratch_free(&grow);
}

/* router_groups is asked before num_groups, which the planner has. */
TEST(chance_under_groups_of_the_router)
{
    double loads[4 * 32];
    moe_ep_chance_result eight, four;
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis o;
    int i;
    for (i = 0; i < 4 * 32; i++) loads[i] = 16;
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = 32;
    d.top_k = 4;
    d.shape.num_devices = 8;
    d.shape.num_slots = 32;
    d.plan_loads = d.judge_loads = loads;
    d.plan_steps = d.judge_steps = 4;
    d.num_groups = 4;
    d.router_groups = 8;
    d.top_groups = 2;
    CHECK_I64(moe_ep_chance_grouped(128, 4, 32, 8, 8, 2, &eight, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_chance_grouped(128, 4, 32, 8, 4, 2, &four, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_diagnose(&d, NULL, &o, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, fmin(eight.p95, eight.max_over_mean + 1.645 * eight.sd / 2), 1e-9, 0);
    d.router_groups = 0;
    CHECK_I64(moe_ep_diagnose(&d, NULL, &o, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(o.chance_imbalance, fmin(four.p95, four.max_over_mean + 1.645 * four.sd / 2), 1e-9, 0);
}

/* Groups of the router are for the chance baseline alone: EPLB's plan goes by num_groups. */
TEST(router_groups_do_not_place)
{
    uint64_t s = t_seed + 71;
    int differ = 0;
    for (int round = 0; round < 20; round++) {
        double loads[16];
        moe_ep_diagnose_desc d;
        moe_ep_place_desc pd;
        moe_ep_placement plan, same;
        moe_ep_diagnosis o;
        for (int i = 0; i < 16; i++) loads[i] = (double)t_below(&s, 100);
        memset(&d, 0, sizeof d);
        memset(&pd, 0, sizeof pd);
        d.num_layers = pd.num_layers = 1;
        d.num_experts = pd.num_experts = 16;
        d.shape.num_devices = 4;
        d.shape.num_slots = 20;
        d.shape.num_nodes = 2;
        pd.shape = d.shape;
        pd.loads = d.plan_loads = loads;
        d.plan_steps = 1;
        d.router_groups = 8;
        d.top_groups = 2;
        d.top_k = 2;
        d.policy = MOE_EP_PLACE_EPLB_GLOBAL;
        plan = placement_new(1, 16, &d.shape);
        same = placement_new(1, 16, &d.shape);
        for (int groups = 0; groups <= 4; groups += 4) {
            d.policy = groups ? MOE_EP_PLACE_EPLB_HIERARCHICAL : MOE_EP_PLACE_EPLB_GLOBAL;
            d.num_groups = pd.num_groups = groups;
            pd.eplb_mode = groups ? MOE_EP_EPLB_HIERARCHICAL : MOE_EP_EPLB_GLOBAL;
            CHECK_I64(moe_ep_diagnose(&d, &plan, &o, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_place_eplb(&pd, &same, NULL, NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(plan.slot_expert, same.slot_expert, 20 * sizeof *same.slot_expert) == 0);
            d.policy = MOE_EP_PLACE_BEST; /* looks at both of EPLB's plans */
            CHECK_I64(moe_ep_diagnose(&d, &plan, &o, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_best_placement(&pd, &same, NULL, NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(plan.slot_expert, same.slot_expert, 20 * sizeof *same.slot_expert) == 0);
        }
        pd.num_groups = 0, pd.eplb_mode = MOE_EP_EPLB_GLOBAL;
        CHECK_I64(moe_ep_place_eplb(&pd, &plan, NULL, NULL, NULL), MOE_EP_OK);
        pd.num_groups = 4, pd.eplb_mode = MOE_EP_EPLB_HIERARCHICAL;
        CHECK_I64(moe_ep_place_eplb(&pd, &same, NULL, NULL, NULL), MOE_EP_OK);
        differ += memcmp(plan.slot_expert, same.slot_expert, 20 * sizeof *same.slot_expert) != 0;
        placement_free(&plan);
        placement_free(&same);
        STOP_IF_FAILED("round %d", round);
    }
    CHECK(differ > 10);
}

T_MAIN
