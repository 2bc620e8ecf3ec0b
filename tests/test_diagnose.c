/* tests/test_diagnose.c - section 11: verdicts, reasons, figures against a plain recomputation.
 * SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"

static const double hot[8] = {960, 92, 92, 92, 91, 91, 91, 91};

/* A desc for one layer of 8 experts on 4 devices, 12 slots, both windows `hot`. */
static moe_ep_diagnose_desc hot_desc(void)
{
    moe_ep_diagnose_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = 8;
    d.shape.num_devices = 4;
    d.shape.num_slots = 12;
    d.plan_loads = hot;
    d.plan_steps = 1;
    d.judge_loads = hot;
    d.judge_steps = 1;
    return d;
}

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
    CHECK_I64(o.layers_loaded, 1);
    CHECK(o.bound_rows >= o.mean_rows && o.bound_rows <= o.after_rows + 1e-9);
    CHECK_NEAR(o.gain, 1 - o.after_rows / 1052, 1e-12, 0);
    CHECK_NEAR(o.break_even_steps, 0, 0, 0);
    CHECK(strstr(o.text, "1052 rows") != NULL);
    CHECK(strstr(o.text, "1 judged step,") != NULL);
    CHECK_I64(o.policy, MOE_EP_PLACE_BEST);
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
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = 4;
    d.shape.num_devices = 2;
    d.shape.num_slots = 4;
    d.plan_loads = a;
    d.plan_steps = 1;
    d.judge_loads = b;
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

/* [100,0] then [0,100]: each step is as uneven as can be, the sum looks perfect. */
TEST(maximum_per_step_then_mean)
{
    double w[4] = {100, 0, 0, 100};
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis o;
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = 2;
    d.shape.num_devices = 2;
    d.shape.num_slots = 2;
    d.plan_loads = d.judge_loads = w;
    d.plan_steps = d.judge_steps = 2;
    CHECK(moe_ep_diagnose(&d, NULL, &o, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(o.imbalance_before, 2.0, 1e-12, 0);
    CHECK_NEAR(o.before_rows, 100.0, 1e-12, 0);
    CHECK_NEAR(o.hot_share, 0.5, 1e-12, 0);
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
    cost.model = &model;
    cost.machine = &machine;
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = E;
    d.top_k = 8;
    d.shape.num_devices = D;
    d.shape.num_slots = 288;
    d.plan_loads = a;
    d.plan_steps = 1;
    d.judge_loads = few;
    d.judge_steps = 1;
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
    d.other_s = 1.0; /* a step of a second hides any gain of microseconds */
    d.horizon_steps = 0;
    CHECK(moe_ep_diagnose(&d, NULL, &large, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(large.reason, MOE_EP_REASON_SMALL_GAIN);
    CHECK(large.before_s > 1.0);
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
    for (round = 0; round < 150; round++) {
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
    CHECK(memcmp(&o, &before, sizeof o) == 0);
    if (t_failed_here) printf("    called from line %d\n", line);
}

TEST(bad_input)
{
    moe_ep_diagnose_desc d = hot_desc();
    moe_ep_diagnosis o;
    moe_ep_error err;
    double bad[8];
    moe_ep_layer_desc cost;
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
    BAD(d.top_k = 9, MOE_EP_ERR_TOP_K, "desc.top_k");
    BAD(d.plan_steps = 0, MOE_EP_ERR_SIZE, "desc.plan_steps");
    BAD(d.plan_loads = NULL, MOE_EP_ERR_NULL, "desc.plan_loads");
    BAD(d.judge_steps = 0, MOE_EP_ERR_SIZE, "desc.judge_steps");
    BAD(d.judge_loads = NULL, MOE_EP_ERR_SIZE, "desc.judge_steps");
    BAD(d.shape.num_devices = 0, MOE_EP_ERR_SIZE, "desc.shape.num_devices");
    BAD(d.shape.num_slots = 7, MOE_EP_ERR_SLOTS, NULL);
    BAD(d.policy = (moe_ep_place_policy)99, MOE_EP_ERR_RANGE, "desc.policy");
    BAD(d.policy = MOE_EP_PLACE_REBALANCE, MOE_EP_ERR_CONFIG, "desc.policy");
    BAD(d.min_gain = 1.0, MOE_EP_ERR_RANGE, "desc.min_gain");
    BAD(d.min_gain = -0.1, MOE_EP_ERR_NEGATIVE, "desc.min_gain");
    BAD(d.min_improved = 1.5, MOE_EP_ERR_RANGE, "desc.min_improved");
    BAD(d.other_s = NAN, MOE_EP_ERR_NAN, "desc.other_s");
    BAD(d.move_Bps = INFINITY, MOE_EP_ERR_NAN, "desc.move_Bps");
    BAD(d.min_steps = -1, MOE_EP_ERR_NEGATIVE, "desc.min_steps");
    memcpy(bad, hot, sizeof bad);
    bad[5] = NAN;
    BAD(d.judge_loads = bad, MOE_EP_ERR_NAN, "desc.judge_loads");
    bad[5] = -1;
    BAD(d.plan_loads = bad, MOE_EP_ERR_NEGATIVE, "desc.plan_loads");
    bad[5] = 1e16;
    BAD(d.plan_loads = bad, MOE_EP_ERR_OVERFLOW, "desc.plan_loads");
    memset(&cost, 0, sizeof cost);
    BAD(d.cost = &cost, MOE_EP_ERR_NULL, "desc.cost.model");
#undef BAD
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

T_MAIN
