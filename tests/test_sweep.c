/* tests/test_sweep.c - section 12: the planner over EP sizes, copies, batches, overlaps and policies.
 * SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"

static int64_t steps_seen, total_seen;

static void watch(void *user, int64_t done, int64_t total)
{
    CHECK(user == &steps_seen);
    CHECK_I64(done, steps_seen + 1);
    steps_seen = done;
    total_seen = total;
}

static moe_ep_sweep_desc v3_on(const moe_ep_model *m, const moe_ep_machine *c, const int64_t *tokens, int32_t n)
{
    moe_ep_sweep_desc d;
    memset(&d, 0, sizeof d);
    d.model = m;
    d.machine = c;
    d.num_devices = 64;
    d.tokens = tokens;
    d.num_tokens = n;
    d.reserve_bytes = 8e9;
    return d;
}

/* Which EP size and how many redundant experts for DeepSeek-V3 on 8 nodes of H200, decode at 64 tokens per device? */
TEST(the_question)
{
    static moe_ep_sweep_point p[400];
    static const int64_t tokens[5] = {64, 16, 32, 128, 256};
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 1);
    moe_ep_sweep_result r;
    int64_t i, j, n, fastest = -1;
    CHECK_I64(moe_ep_sweep_count(&d, NULL), 75);
    d.num_tokens = 5;
    d.progress = watch;
    d.user = &steps_seen;
    steps_seen = 0;
    n = moe_ep_sweep_count(&d, NULL);
    CHECK_I64(n, 375);
    CHECK_I64(moe_ep_sweep(&d, p, 400, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.points, n);
    CHECK_I64(steps_seen, 25);
    CHECK_I64(total_seen, 25);
    for (i = 0; i < n; i++) {
        CHECK(p[i].fits || p[i].limit == MOE_EP_LIMIT_MEMORY);
        if (p[i].ep <= 4) CHECK(!p[i].fits && !(p[i].step.tpot_s > 0));
        if (p[i].fits) CHECK(p[i].step.tpot_s > 0 && p[i].imbalance >= 1);
        if (p[i].fits && p[i].tokens == 64 &&
            (fastest < 0 || p[i].step.tokens_per_s_device > p[fastest].step.tokens_per_s_device))
            fastest = i;
        for (j = 0; p[i].pareto && j < n; j++) /* nothing beats what is on the front */
            if (p[j].fits)
                CHECK(!(p[j].step.tpot_s < p[i].step.tpot_s &&
                        p[j].step.tokens_per_s_device > p[i].step.tokens_per_s_device));
    }
    CHECK(r.best >= 0 && fastest >= 0);
    if (r.best < 0 || fastest < 0) return;
    CHECK(p[fastest].ep == 32 && p[fastest].redundant == 32);
    CHECK(p[r.best].ep == 64 && p[r.best].redundant == 64 && p[r.best].tokens == 64);
    CHECK(p[r.best].step.tokens_per_s_device >= 0.99 * p[fastest].step.tokens_per_s_device);
    CHECK(p[r.best].limit == MOE_EP_LIMIT_NETWORK);
    printf("    EP %d + %d: %.1f ms, %.0f tokens/s per device\n", p[r.best].ep, p[r.best].redundant,
           1e3 * p[r.best].step.tpot_s, p[r.best].step.tokens_per_s_device);
    d.max_tpot_s = 1e-3;
    steps_seen = 0;
    CHECK_I64(moe_ep_sweep(&d, p, 400, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.best, -1);
    CHECK(r.fit > 0 && r.pareto > 0);
}

/* Every point is what moe_ep_step, moe_ep_memory and the planner say when they are asked one by one. */
TEST(points_are_the_library_step_by_step)
{
    static const int64_t tokens[1] = {32};
    static const int32_t ep[1] = {8}, redundant[1] = {8};
    static const moe_ep_overlap overlap[1] = {MOE_EP_OVERLAP_TWO_EXPOSED};
    static const moe_ep_place_policy policy[1] = {MOE_EP_PLACE_LPT};
    moe_ep_model m = moe_ep_model_qwen3_30b_a3b();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 1);
    moe_ep_sweep_point p[1];
    moe_ep_sweep_result r;
    moe_ep_workload w;
    moe_ep_place_desc place;
    moe_ep_placement plan;
    moe_ep_split_desc even;
    moe_ep_step_desc s;
    moe_ep_step_result step;
    double loads[256], mem[4000], attention = 90e-6, half = 70e-6;
    uint64_t weight[128];
    int64_t rows[128], slot[2 * 136];
    int32_t ids[32 * 8 * 8], l, e;
    size_t bytes;
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_ZIPF;
    w.alpha = 0.8;
    w.seed = 5;
    w.num_experts = 128;
    w.top_k = 8;
    d.num_devices = 8;
    d.ep = ep;
    d.num_ep = 1;
    d.redundant = redundant;
    d.num_redundant = 1;
    d.overlaps = overlap;
    d.num_overlaps = 1;
    d.policies = policy;
    d.num_policies = 1;
    d.num_layers = 2;
    d.workload = &w;
    d.attention_s = &attention;
    d.attention_half_s = &half;
    d.other_s = 1e-3;
    d.tokens_per_pass = 1.7;
    d.microbatch_s = 5e-6;
    d.context = 1000;
    CHECK_I64(moe_ep_sweep(&d, p, 1, &r, NULL, NULL), MOE_EP_OK);
    CHECK(p[0].fits && r.best == 0 && r.fit == 1 && r.pareto == 1);
    for (l = 0; l < 2; l++) {
        CHECK(moe_ep_popularity(&w, l, 0, 32, weight, NULL) == MOE_EP_OK);
        for (e = 0; e < 128; e++) loads[l * 128 + e] = (double)weight[e];
    }
    memset(&place, 0, sizeof place);
    place.num_layers = 2;
    place.num_experts = 128;
    place.loads = loads;
    place.shape.num_devices = 8;
    place.shape.num_slots = 136;
    place.shape.num_nodes = 1;
    bytes = moe_ep_placement_bytes(2, 128, &place.shape);
    CHECK(bytes <= sizeof mem);
    CHECK(moe_ep_placement_init(&plan, 2, 128, &place.shape, mem, bytes, NULL) == MOE_EP_OK);
    CHECK(moe_ep_place_lpt(&place, &plan, NULL, NULL, NULL) == MOE_EP_OK);
    memset(&even, 0, sizeof even);
    for (l = 0; l < 2; l++) {
        CHECK(moe_ep_simulate(&w, l, 1, 256, ids, NULL, NULL) == MOE_EP_OK);
        CHECK(moe_ep_expert_loads(ids, 256 * 8, 128, rows, NULL, NULL) == MOE_EP_OK);
        CHECK(moe_ep_split(&even, &plan, l, rows, slot + l * 136, NULL, NULL) == MOE_EP_OK);
    }
    memset(&s, 0, sizeof s);
    s.layer.model = &m;
    s.layer.machine = &c;
    s.layer.placement = &plan;
    s.layer.tokens = 32;
    s.layer.dispatch_wire = MOE_EP_WIRE_BF16;
    s.layer.overlap = MOE_EP_OVERLAP_TWO_EXPOSED;
    s.layer.attention_s = attention;
    s.layer.attention_half_s = half;
    s.layer.microbatch_s = 5e-6;
    s.num_layers = 2;
    s.tokens_per_pass = 1.7;
    s.other_s = 1e-3 + 2.0 * 151936 * 2048 / (3.35e12 * 0.88); /* the output matrix, read once */
    CHECK(moe_ep_step(&s, slot, &step, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(p[0].step.tpot_s, step.tpot_s, 1e-12, 0);
    CHECK_NEAR(p[0].step.tokens_per_s_device, step.tokens_per_s_device, 1e-12, 0);
    CHECK_NEAR(p[0].batch_kv_tokens, 32000, 1e-12, 0);
    CHECK_I64(p[0].memory.slots, 17);
}

static int64_t best_of(moe_ep_sweep_desc *d, moe_ep_sweep_point *p, int64_t cap)
{
    moe_ep_sweep_result r;
    moe_ep_error err;
    CHECK_I64(moe_ep_sweep(d, p, cap, &r, NULL, &err), MOE_EP_OK);
    CHECK_I64(err.status, MOE_EP_OK); /* a plan that failed on the way is told by its point, not by the error */
    CHECK_STR(err.arg, "");
    CHECK_I64(err.index, -1);
    return r.best;
}

TEST(limits_are_named)
{
    static moe_ep_sweep_point p[400];
    static const int64_t small_batch[1] = {4}, large[1] = {8192};
    static const int32_t ep[1] = {8}, odd[1] = {5};
    static const moe_ep_place_policy eplb[3] = {MOE_EP_PLACE_EPLB_GLOBAL, MOE_EP_PLACE_EPLB_HIERARCHICAL,
                                                MOE_EP_PLACE_TRTLLM};
    static const moe_ep_overlap none[1] = {MOE_EP_OVERLAP_NONE};
    double attention = 1.0;
    moe_ep_model m = moe_ep_model_deepseek_v3(), q = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c = moe_ep_machine_h200(), slow = c, fast = c;
    moe_ep_sweep_desc d = v3_on(&m, &c, small_batch, 1);
    int64_t b;
    d.num_devices = 8;
    d.ep = ep;
    d.num_ep = 1;
    d.overlaps = none;
    d.num_overlaps = 1;
    b = best_of(&d, p, 400);
    CHECK(b >= 0 && p[b].limit == MOE_EP_LIMIT_WEIGHTS);
    d.attention_s = &attention;
    b = best_of(&d, p, 400);
    CHECK(b >= 0 && p[b].limit == MOE_EP_LIMIT_ATTENTION);
    d.attention_s = NULL;
    slow.ll_dispatch.intra_Bps = slow.ll_combine.intra_Bps = 1e8;
    d.machine = &slow;
    b = best_of(&d, p, 400);
    CHECK(b >= 0 && p[b].limit == MOE_EP_LIMIT_NETWORK);
    d.machine = &c;
    d.tokens = large;
    d.context = 1;
    d.memory_bytes = 1e15; /* the buffers of 8192 tokens are large */
    fast.normal_dispatch.intra_Bps = fast.normal_combine.intra_Bps = 1e13;
    d.machine = &fast;
    b = best_of(&d, p, 400);
    CHECK(b >= 0 && p[b].limit == MOE_EP_LIMIT_FLOPS);
    d.memory_bytes = 1e9;
    CHECK_I64(best_of(&d, p, 400), -1);
    CHECK(p[0].limit == MOE_EP_LIMIT_MEMORY && !p[0].fits);
    d.memory_bytes = 1e15;
    d.context = 1e12; /* the cache of the batch does not fit */
    CHECK_I64(best_of(&d, p, 400), -1);
    d.context = 16;
    d.redundant = odd;
    d.num_redundant = 1;
    d.policies = eplb;
    d.num_policies = 3;
    CHECK_I64(best_of(&d, p, 400), -1);
    CHECK(p[0].limit == MOE_EP_LIMIT_PLACEMENT && !p[0].fits);
    d.model = &q; /* 8 experts, bf16, no dense layers */
    d.redundant = NULL;
    CHECK(best_of(&d, p, 400) >= 0);
    CHECK_STR(moe_ep_limit_str(MOE_EP_LIMIT_MEMORY), "memory");
    CHECK_STR(moe_ep_limit_str(MOE_EP_LIMIT_ATTENTION), "attention");
    CHECK_STR(moe_ep_limit_str(MOE_EP_LIMIT_NETWORK), "network");
    CHECK_STR(moe_ep_limit_str(MOE_EP_LIMIT_WEIGHTS), "expert weights");
    CHECK_STR(moe_ep_limit_str(MOE_EP_LIMIT_FLOPS), "expert FLOPs");
    CHECK_STR(moe_ep_limit_str(MOE_EP_LIMIT_PLACEMENT), "placement");
    CHECK_STR(moe_ep_limit_str((moe_ep_limit)99), "unknown");
}

/* EP sizes that are tried without a list, and what a node makes with them. */
TEST(sizes_that_exist)
{
    static moe_ep_sweep_point p[64];
    static const int64_t tokens[1] = {64};
    static const int32_t zero[1] = {0}, rack[12] = {1, 2, 3, 4, 6, 8, 9, 12, 18, 24, 36, 72};
    static const int32_t three[5] = {1, 2, 4, 8, 24};
    static const moe_ep_overlap none[1] = {MOE_EP_OVERLAP_NONE};
    static const moe_ep_place_policy policy[1] = {MOE_EP_PLACE_CONTIGUOUS};
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_gb200(), h = moe_ep_machine_h200();
    moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 1);
    moe_ep_sweep_result r;
    int i;
    d.num_devices = 72;
    d.num_layers = 1;
    d.overlaps = none;
    d.policies = policy;
    d.num_overlaps = d.num_policies = d.num_redundant = 1;
    CHECK_I64(moe_ep_sweep_count(&d, NULL), 44);
    d.redundant = zero;
    CHECK_I64(moe_ep_sweep_count(&d, NULL), 12);
    CHECK_I64(moe_ep_sweep(&d, p, 64, &r, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 12; i++) CHECK_I64(p[i].ep, rack[i]);
    CHECK(p[10].fits && p[10].step.tokens_per_s_device > 1.3 * p[5].step.tokens_per_s_device); /* 36, not 8 */
    d.machine = &h;
    d.num_devices = 24; /* three nodes: no 3, 6 and 12 */
    CHECK_I64(moe_ep_sweep_count(&d, NULL), 5);
    m = moe_ep_model_qwen3_30b_a3b();
    CHECK_I64(moe_ep_sweep(&d, p, 64, &r, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 5; i++) {
        CHECK_I64(p[i].ep, three[i]);
        CHECK(p[i].fits); /* four groups of two make as much on a node as each of the eight does eight times */
        CHECK_NEAR(p[i].step.tokens_per_s_node, 8 * p[i].step.tokens_per_s_device, 1e-12, 0);
    }
    h.devices_per_node = 0; /* all on one: any divisor, and a node is all of them */
    CHECK_I64(moe_ep_sweep_count(&d, NULL), 8);
    CHECK_I64(moe_ep_sweep(&d, p, 64, &r, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(p[2].step.tokens_per_s_node, 24 * p[2].step.tokens_per_s_device, 1e-12, 0);
    d.num_devices = 4; /* less than a node */
    h.devices_per_node = 8;
    CHECK_I64(moe_ep_sweep(&d, p, 64, &r, NULL, NULL), MOE_EP_OK);
    CHECK(p[0].fits && r.points == 3);
    CHECK_NEAR(p[0].step.tokens_per_s_node, 4 * p[0].step.tokens_per_s_device, 1e-12, 0);
}

TEST(policies_and_recordings)
{
    static moe_ep_sweep_point p[200];
    static const int64_t tokens[2] = {128, 600};
    static const int32_t ep[2] = {4, 16};
    static const moe_ep_place_policy all[7] = {
        MOE_EP_PLACE_ROUND_ROBIN, MOE_EP_PLACE_CONTIGUOUS,        MOE_EP_PLACE_LPT, MOE_EP_PLACE_EPLB_GLOBAL,
        MOE_EP_PLACE_TRTLLM,      MOE_EP_PLACE_EPLB_HIERARCHICAL, MOE_EP_PLACE_BEST};
    static const moe_ep_overlap none[1] = {MOE_EP_OVERLAP_NONE};
    double hot[2 * 64], even[2 * 64];
    moe_ep_model m = moe_ep_model_olmoe_1b_7b();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 2);
    moe_ep_sweep_result r;
    int64_t n, i;
    int e;
    for (e = 0; e < 128; e++) {
        hot[e] = e % 64 < 8 ? 10.0 : 1.0; /* neighbours are hot together */
        even[e] = 1.0;
    }
    d.num_devices = 16;
    d.context = 256;
    d.ep = ep;
    d.num_ep = 2;
    d.policies = all;
    d.num_policies = 7;
    d.overlaps = none;
    d.num_overlaps = 1;
    d.num_layers = 2;
    d.plan_loads = hot;
    n = moe_ep_sweep_count(&d, NULL);
    CHECK_I64(n, 2 * 4 * 7 * 2);
    CHECK_I64(moe_ep_sweep(&d, p, 200, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.points, n);
    for (i = 0; i < n; i++) {
        if (p[i].policy == MOE_EP_PLACE_CONTIGUOUS && p[i].ep == 16) CHECK(p[i].imbalance > 2);
        if (p[i].policy == MOE_EP_PLACE_BEST && p[i].redundant > 0) CHECK(p[i].imbalance < 1.3);
    }
    d.serve_loads = even; /* planned for hot experts that did not come */
    CHECK_I64(moe_ep_sweep(&d, p, 200, &r, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < n; i++)
        if (p[i].policy == MOE_EP_PLACE_CONTIGUOUS) CHECK(p[i].imbalance < 1.4);
    d.split = MOE_EP_SPLIT_EXACT;
    CHECK_I64(moe_ep_sweep(&d, p, 200, &r, NULL, NULL), MOE_EP_OK);
}

TEST(attention_example)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    moe_ep_error err;
    CHECK_NEAR(1e6 * moe_ep_attention_time(&m, &c, 64, 4096, NULL), 163.4, 1e-3, 0);
    m.attention_params = 0; /* the kernel alone: 689.6 us on H20, 155.2 on H800 were measured */
    c = moe_ep_machine_h20();
    CHECK_NEAR(1e6 * moe_ep_attention_time(&m, &c, 64, 4096, NULL), 689.6, 0.12, 0);
    c = moe_ep_machine_h800();
    CHECK_NEAR(1e6 * moe_ep_attention_time(&m, &c, 64, 4096, NULL), 155.2, 0.25, 0);
    m.attention_flops = 0; /* the cache alone */
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 64, 4096, NULL), 64 * 4096 * 1152. / (0.88 * 3.35e12), 1e-9, 0);
    m = moe_ep_model_deepseek_v3();
    c = moe_ep_machine_h200();
    CHECK(moe_ep_attention_time(&m, &c, 1e5, 0, NULL) > 1e-2); /* bound by FLOPs */
    CHECK(moe_ep_attention_time(NULL, &c, 1, 1, &err) < 0 && err.status == MOE_EP_ERR_NULL);
    CHECK(moe_ep_attention_time(&m, NULL, 1, 1, &err) < 0 && err.status == MOE_EP_ERR_NULL);
    CHECK(moe_ep_attention_time(&m, &c, -1, 1, &err) < 0 && err.status == MOE_EP_ERR_NEGATIVE);
    CHECK(moe_ep_attention_time(&m, &c, 1, NAN, &err) < 0 && err.status == MOE_EP_ERR_NAN);
    CHECK(moe_ep_attention_time(&m, &c, 1e308, 1e308, &err) < 0 && err.status == MOE_EP_ERR_OVERFLOW);
    c.memory_Bps = c.flops[MOE_EP_MATH_FP8] = c.flops[MOE_EP_MATH_BF16] = 0;
    CHECK(!(moe_ep_attention_time(&m, &c, 64, 4096, NULL) > 0));
}

/* Tokens that attend to a part of their context: DeepSeek-V3.2's chosen 2048, gpt-oss's last 128 in half the layers. */
TEST(attention_to_a_part)
{
    moe_ep_model m, v3 = moe_ep_model_deepseek_v3(), oss = moe_ep_model_gpt_oss_120b(), dense = oss;
    moe_ep_machine c = moe_ep_machine_h200();
    double Bps = 0.88 * 4.8e12, weights, whole, near, choose = 8 * 65536 * 132. / Bps;
    CHECK(moe_ep_model_by_name("deepseek-v3.2", &m, NULL) == MOE_EP_OK);
    CHECK_NEAR(1e6 * moe_ep_attention_time(&v3, &c, 8, 65536, NULL), 282.4, 0, 0.05);
    CHECK_NEAR(1e6 * moe_ep_attention_time(&m, &c, 8, 65536, NULL), 71.4, 0, 0.05);
    weights = (double)m.attention_params / Bps;
    CHECK_NEAR(1e6 * weights, 47.6, 0, 0.05);
    CHECK_NEAR(1e6 * choose, 16.4, 0, 0.05);
    near = 8 * 2048 * 278528. / (0.62 * 989e12);
    CHECK_NEAR(1e6 * near, 7.4, 0, 0.05);
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 8, 65536, NULL), weights + choose + near, 1e-12, 0);
    m.attention_params = v3.attention_params; /* a context that is no longer is attended to as ever, and searched */
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 8, 2048, NULL) - moe_ep_attention_time(&v3, &c, 8, 2048, NULL),
               choose / 32, 1e-9, 0);
    m.window_layers = 1000; /* all */
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 8, 2048, NULL) - moe_ep_attention_time(&v3, &c, 8, 2048, NULL),
               choose / 32, 1e-9, 0);
    m.window_layers = 0; /* none */
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 8, 65536, NULL), moe_ep_attention_time(&v3, &c, 8, 65536, NULL), 1e-12, 0);
    dense.attention_window = 0;
    whole = moe_ep_attention_time(&dense, &c, 16, 32768, NULL) - moe_ep_attention_time(&dense, &c, 16, 0, NULL);
    near = moe_ep_attention_time(&dense, &c, 16, 128, NULL) - moe_ep_attention_time(&dense, &c, 16, 0, NULL);
    CHECK_NEAR(moe_ep_attention_time(&oss, &c, 16, 32768, NULL) - moe_ep_attention_time(&oss, &c, 16, 0, NULL),
               (whole + near) / 2, 1e-9, 0);
    CHECK_NEAR(moe_ep_attention_time(&oss, &c, 16, 100, NULL), moe_ep_attention_time(&dense, &c, 16, 100, NULL), 1e-12,
               0);
}

/* Experts of 4 bits beside layers of 16 or 8: these take as long as in a model that has only them. */
TEST(attention_beside_experts_of_four_bits)
{
    static const char *const four[2] = {"nvidia/Qwen3-235B-A22B-FP4", "qwen3-235b-a22b-NVFP4"};
    moe_ep_machine c = moe_ep_machine_b200();
    moe_ep_model m, plain = moe_ep_model_qwen3_235b_a22b();
    double seconds;
    int i;
    for (i = 0; i < 2; i++) {
        CHECK(moe_ep_model_by_name(four[i], &m, NULL) == MOE_EP_OK && m.math == MOE_EP_MATH_FP4);
        seconds = moe_ep_attention_time(&m, &c, 1024, 0, NULL);
        CHECK_NEAR(seconds, moe_ep_attention_time(&plain, &c, 1024, 0, NULL), 1e-12, 0);
        CHECK_NEAR(1e6 * seconds, 104.7, 1e-3, 0);
    }
    m.other_weight_bytes = 1; /* FP8 beside FP4 */
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 1024, 0, NULL), seconds / 2, 1e-12, 0);
    m.math = MOE_EP_MATH_FP8;
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 1024, 0, NULL), seconds / 2, 1e-12, 0);
    m.other_weight_bytes = 0; /* 2 */
    CHECK_NEAR(moe_ep_attention_time(&m, &c, 1024, 0, NULL), seconds, 1e-12, 0);
}

/* Whole: what is wrong, where, and how much it is. */
static void names(const moe_ep_error *err, const char *arg, int64_t index, double value)
{
    CHECK_STR(err->arg, arg);
    CHECK_I64(err->index, index);
    if (value < 0 || value >= 0) CHECK_NEAR(err->value, value, 0, 0);
    else CHECK(!(err->value < 0 || err->value >= 0));
}

TEST(sweep_errors)
{
    static moe_ep_sweep_point p[400];
    moe_ep_overlap bad_overlap[2] = {(moe_ep_overlap)99, (moe_ep_overlap)98};
    static const moe_ep_place_policy given[1] = {MOE_EP_PLACE_GIVEN};
    int64_t tokens[2] = {64, 16};
    int32_t ep[2] = {8, 16}, redundant[2] = {0, 8};
    double attention[2] = {1e-4, NAN}, loads[8] = {0};
    moe_ep_model m = moe_ep_model_qwen3_30b_a3b();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 2);
    moe_ep_sweep_result r;
    moe_ep_workload w;
    moe_ep_error err;
    CHECK(moe_ep_sweep_count(NULL, NULL) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_sweep(NULL, p, 400, &r, NULL, NULL) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_sweep(&d, NULL, 400, &r, NULL, NULL) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_sweep(&d, p, 400, NULL, NULL, NULL) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_sweep(&d, p, 5, &r, NULL, &err) == MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "capacity");
#define WITH(change, restore, status, name, index_, value_)                                                            \
    change;                                                                                                            \
    CHECK_I64(moe_ep_sweep_count(&d, &err), status);                                                                   \
    names(&err, name, index_, value_);                                                                                 \
    restore
    WITH(d.model = NULL, d.model = &m, MOE_EP_ERR_NULL, "model", -1, 0);
    WITH(d.machine = NULL, d.machine = &c, MOE_EP_ERR_NULL, "machine", -1, 0);
    WITH(c.devices_per_node = -1, c.devices_per_node = 8, MOE_EP_ERR_SIZE, "machine.devices_per_node", -1, -1);
    WITH(c.memory_bytes = -1, c.memory_bytes = 8e10, MOE_EP_ERR_NEGATIVE, "machine.memory_bytes", -1, -1);
    WITH(d.num_devices = 0, d.num_devices = 64, MOE_EP_ERR_SIZE, "num_devices", -1, 0);
    WITH(d.num_tokens = 0, d.num_tokens = 2, MOE_EP_ERR_SIZE, "num_tokens", -1, 0);
    WITH(d.tokens = NULL, d.tokens = tokens, MOE_EP_ERR_NULL, "tokens", -1, 0);
    WITH(tokens[1] = 0, tokens[1] = 16, MOE_EP_ERR_SIZE, "tokens", 1, 0);
    WITH(d.num_layers = -1, d.num_layers = 0, MOE_EP_ERR_SIZE, "num_layers", -1, -1);
    WITH(d.throughput_from = -1, d.throughput_from = 0, MOE_EP_ERR_SIZE, "throughput_from", -1, -1);
    WITH(d.serve_step = -1, d.serve_step = 0, MOE_EP_ERR_SIZE, "serve_step", -1, -1);
    WITH(d.context = -1, d.context = 0, MOE_EP_ERR_NEGATIVE, "context", -1, -1);
    WITH(d.other_s = NAN, d.other_s = 0, MOE_EP_ERR_NAN, "other_s", -1, NAN);
    WITH(d.rows_per_sequence = -1, d.rows_per_sequence = 0, MOE_EP_ERR_SIZE, "rows_per_sequence", -1, -1);
    WITH(d.tokens_per_pass = -1, d.tokens_per_pass = 0, MOE_EP_ERR_NEGATIVE, "tokens_per_pass", -1, -1);
    WITH(d.microbatch_s = -1, d.microbatch_s = 0, MOE_EP_ERR_NEGATIVE, "microbatch_s", -1, -1);
    WITH(d.memory_bytes = -1, d.memory_bytes = 0, MOE_EP_ERR_NEGATIVE, "memory_bytes", -1, -1);
    WITH(d.reserve_bytes = -1, d.reserve_bytes = 0, MOE_EP_ERR_NEGATIVE, "reserve_bytes", -1, -1);
    WITH(d.max_tpot_s = -1, d.max_tpot_s = 0, MOE_EP_ERR_NEGATIVE, "max_tpot_s", -1, -1);
    WITH(d.split = MOE_EP_SPLIT_LOCAL_FIRST, d.split = MOE_EP_SPLIT_EVEN, MOE_EP_ERR_CONFIG, "split", -1, 0);
    WITH((d.plan_loads = loads, d.num_layers = 999), (d.plan_loads = NULL, d.num_layers = 0), MOE_EP_ERR_SIZE,
         "num_layers", -1, 999);
    d.ep = ep;
    WITH(d.num_ep = 0, d.num_ep = 2, MOE_EP_ERR_SIZE, "num_ep", -1, 0);
    WITH(ep[1] = 65, ep[1] = 16, MOE_EP_ERR_SIZE, "ep", 1, 65);
    WITH(ep[1] = 0, ep[1] = 16, MOE_EP_ERR_SIZE, "ep", 1, 0);
    d.redundant = redundant;
    WITH(d.num_redundant = -1, d.num_redundant = 2, MOE_EP_ERR_SIZE, "num_redundant", -1, -1);
    WITH(redundant[1] = -1, redundant[1] = 8, MOE_EP_ERR_SLOTS, "redundant", 1, -1);
    WITH((d.overlaps = bad_overlap, d.num_overlaps = 0), d.num_overlaps = 1, MOE_EP_ERR_SIZE, "num_overlaps", -1, 0);
    WITH((void)0, (void)0, MOE_EP_ERR_RANGE, "overlaps", 0, 99);
    bad_overlap[0] = MOE_EP_OVERLAP_NONE;
    WITH(d.num_overlaps = 2, d.overlaps = NULL, MOE_EP_ERR_RANGE, "overlaps", 1, 98);
    WITH((d.policies = given, d.num_policies = 0), d.num_policies = 1, MOE_EP_ERR_SIZE, "num_policies", -1, 0);
    WITH((void)0, d.policies = NULL, MOE_EP_ERR_RANGE, "policies", 0, MOE_EP_PLACE_GIVEN);
    WITH(d.attention_s = attention, d.attention_s = NULL, MOE_EP_ERR_NAN, "attention_s", 1, NAN);
    WITH(d.attention_half_s = attention, d.attention_half_s = NULL, MOE_EP_ERR_NAN, "attention_half_s", 1, NAN);
    memset(&w, 0, sizeof w);
    WITH(d.workload = &w, d.workload = NULL, MOE_EP_ERR_CONFIG, "workload", -1, 0);
#undef WITH
    w.num_experts = 128; /* a workload without a popularity, found out on the way */
    w.top_k = 8;
    w.kind = MOE_EP_LOAD_TARGET;
    w.target = 0.5;
    d.workload = &w;
    CHECK_I64(moe_ep_sweep(&d, p, 400, &r, NULL, &err), MOE_EP_ERR_CONFIG);
    d.workload = NULL;
    tokens[1] = INT32_MAX; /* more than a block of any size could hold, and more than can be counted */
    {
        static double block[64];
        moe_ep_scratch fixed = moe_ep_scratch_fixed(block, sizeof block);
        CHECK_I64(moe_ep_sweep(&d, p, 400, &r, &fixed, &err), MOE_EP_ERR_SCRATCH);
        CHECK(err.value > 1e12);
    }
    d.redundant = NULL;
    m.num_experts = 1 << 30; /* more than a workload can have */
    CHECK_I64(moe_ep_sweep_count(&d, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "model.num_experts");
    m.num_experts = m.top_k = d.num_devices = ep[1] = 1 << 20;
    CHECK_I64(moe_ep_sweep(&d, p, 400, &r, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "tokens");
    tokens[1] = 1;
    m.num_moe_layers = d.num_layers = INT32_MAX;
    m.num_layers = 0;
    {
        static int64_t many[1 << 13];
        int i;
        for (i = 0; i < 1 << 13; i++) many[i] = 1;
        d.tokens = many;
        d.num_tokens = 1 << 13;
        d.redundant = redundant;
        d.num_ep = 1;
        CHECK_I64(moe_ep_sweep_count(&d, &err), 2 * 3 * (1 << 13));
        CHECK_I64(moe_ep_sweep(&d, (moe_ep_sweep_point *)(void *)many, 2 * 3 * (1 << 13), &r, NULL, &err),
                  MOE_EP_ERR_OVERFLOW);
        CHECK_STR(err.arg, "num_layers");
    }
}

/* A fixed block is enough when it is as large as what is asked for, step by step; nothing is allocated then. */
TEST(sweep_in_a_fixed_block)
{
    static moe_ep_sweep_point a[100], b[100];
    static unsigned char block[1 << 22];
    static const int64_t tokens[1] = {16};
    static const int32_t ep[2] = {4, 8};
    moe_ep_model m = moe_ep_model_olmoe_1b_7b();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 1);
    moe_ep_sweep_result r, q;
    moe_ep_scratch scratch;
    moe_ep_error err;
    size_t bytes;
    int tries, split;
    d.num_devices = 8;
    d.ep = ep;
    d.num_ep = 2;
    for (split = (int)MOE_EP_SPLIT_EVEN; split <= (int)MOE_EP_SPLIT_EXACT; split++) {
        if (split == (int)MOE_EP_SPLIT_LOCAL_FIRST) continue; /* asks for a device */
        d.split = (moe_ep_split_policy)split;
        bytes = 64;
        CHECK_I64(moe_ep_sweep(&d, a, 100, &r, NULL, &err), MOE_EP_OK);
        for (tries = 0; tries < 60; tries++) {
            scratch = moe_ep_scratch_fixed(block, bytes);
            if (moe_ep_sweep(&d, b, 100, &q, &scratch, &err) == MOE_EP_OK) break;
            CHECK_I64(err.status, MOE_EP_ERR_SCRATCH);
            CHECK(err.value > (double)bytes && err.value <= (double)sizeof block);
            bytes = (size_t)err.value;
        }
        CHECK(tries > 0 && tries < 60);
        CHECK(r.best == q.best && r.points == q.points);
        CHECK(memcmp(a, b, sizeof a[0] * (size_t)r.points) == 0);
        for (tries = 0; tries < 64; tries += 13) { /* wherever it begins, whatever stands in it; nothing behind it */
            memset(block, 0x80 + tries, sizeof block);
            scratch = moe_ep_scratch_fixed(block + tries, bytes);
            CHECK_I64(moe_ep_sweep(&d, b, 100, &q, &scratch, &err), MOE_EP_OK);
            CHECK(r.best == q.best && r.points == q.points && memcmp(a, b, sizeof a[0] * (size_t)r.points) == 0);
            CHECK(block[tries + bytes] == 0x80 + tries && (tries == 0 || block[tries - 1] == 0x80 + tries));
            STOP_IF_FAILED("shift %d", tries);
        }
        memset(&scratch, 0, sizeof scratch); /* a growing one says at once what a fixed one must have */
        CHECK_I64(moe_ep_sweep(&d, b, 100, &q, &scratch, &err), MOE_EP_OK);
        CHECK(scratch.bytes > 0);
        CHECK_I64((int64_t)scratch.need, (int64_t)bytes);
        moe_ep_scratch_free(&scratch);
        STOP_IF_FAILED("split %d", split);
    }
}

/* ---- a whole sweep once more: plain loops over what the library says when it is asked one thing at a time -------- */

T_EXACT_MATH /* ties as the library sees them */

enum { MOST_POINTS = 4096 };

typedef struct drawn_sweep {
    moe_ep_sweep_desc d;
    moe_ep_model m;
    moe_ep_machine c;
    moe_ep_workload w;
    int64_t tokens[3];
    int32_t ep[3], redundant[3];
    moe_ep_overlap overlaps[3];
    moe_ep_place_policy policies[2];
    double plan[4 * 16], serve[4 * 16], attention[3], half[3];
} drawn_sweep;

static double drawn_size(uint64_t *s, double size) { return t_below(s, 3) ? size * (0.2 + t_unit(s)) : 0; }

static void draw_sweep(uint64_t *s, drawn_sweep *x)
{
    static const int32_t devices[6] = {1, 2, 4, 6, 8, 12};
    moe_ep_sweep_desc *d = &x->d;
    int i;
    memset(x, 0, sizeof *x);
    x->m = moe_ep_model_deepseek_v3();
    x->m.num_experts = 4 * (1 + (int32_t)t_below(s, 4));
    x->m.top_k = 1 + (int32_t)t_below(s, 3);
    x->m.num_groups = (int32_t)t_below(s, 2) * 4;
    x->m.top_groups = 0;
    x->m.hidden = 128 + 128 * (int32_t)t_below(s, 8);
    x->m.inter = 256;
    x->m.num_moe_layers = 1 + (int32_t)t_below(s, 12);
    x->m.num_layers = t_below(s, 2) ? x->m.num_moe_layers + (int32_t)t_below(s, 3) : 0;
    x->m.num_shared = (int32_t)t_below(s, 2);
    x->m.dense_inter = 512;
    x->m.vocab = (int32_t)t_below(s, 3) * 1000;
    x->m.attention_params = t_below(s, 3) * 100000;
    x->m.kv_elems = (int32_t)t_below(s, 3) * 50;
    x->m.attention_flops = t_below(s, 3) * 500;
    x->m.math = (moe_ep_math)t_below(s, 3);
    x->m.attention_window = (int32_t)t_below(s, 3) * 20;
    x->m.window_layers = (int32_t)t_below(s, 15);
    x->m.index_flops = t_below(s, 2) * 300;
    x->m.index_bytes = x->m.index_flops > 0 ? 1 + drawn_size(s, 10) : 0;
    x->m.weight_bytes = drawn_size(s, 2);
    x->m.other_weight_bytes = drawn_size(s, 2);
    x->m.shared_weight_bytes = drawn_size(s, 2);
    x->m.embedding_weight_bytes = drawn_size(s, 3);
    x->m.kv_bytes = drawn_size(s, 2);
    x->c = moe_ep_machine_h100();
    x->c.devices_per_node = (int32_t)t_below(s, 5);
    x->c.memory_bytes = t_below(s, 4) ? 1e6 * exp(6 * t_unit(s)) : 0;
    x->c.memory_Bps = drawn_size(s, 1e11);
    x->c.flops[0] = drawn_size(s, 1e13);
    x->c.flops[1] = drawn_size(s, 1e13);
    x->c.flops[2] = drawn_size(s, 3e13);
    x->c.gemm.mem_eff = drawn_size(s, 0.8);
    x->c.gemm.flop_eff = drawn_size(s, 0.8);
    x->c.gemm.t0_s = drawn_size(s, 3e-6);
    x->c.ll_dispatch.alpha_s = x->c.ll_combine.alpha_s = drawn_size(s, 1e-5);
    d->model = &x->m;
    d->machine = &x->c;
    d->num_devices = devices[t_below(s, 6)];
    d->tokens = x->tokens;
    d->num_tokens = 1 + (int32_t)t_below(s, 3);
    for (i = 0; i < 3; i++) x->tokens[i] = 1 + t_below(s, t_below(s, 2) ? 20 : 90);
    for (i = 0; i < 3; i++) {
        int32_t most = d->num_devices < x->m.num_experts ? d->num_devices : x->m.num_experts;
        x->ep[i] = 1 + (int32_t)t_below(s, most);
        x->redundant[i] = (int32_t)t_below(s, 9);
        x->overlaps[i] = (moe_ep_overlap)t_below(s, 5);
        x->attention[i] = drawn_size(s, 1e-4) + 1e-9;
        x->half[i] = drawn_size(s, 1e-4) + 1e-9;
    }
    for (i = 0; i < 2; i++) x->policies[i] = (moe_ep_place_policy)(1 + t_below(s, 7));
    if (t_below(s, 2)) d->ep = x->ep, d->num_ep = 1 + (int32_t)t_below(s, 3);
    if (t_below(s, 2)) d->redundant = x->redundant, d->num_redundant = 1 + (int32_t)t_below(s, 3);
    if (t_below(s, 2)) d->overlaps = x->overlaps, d->num_overlaps = 1 + (int32_t)t_below(s, 3);
    if (t_below(s, 2)) d->policies = x->policies, d->num_policies = 1 + (int32_t)t_below(s, 2);
    d->split = (moe_ep_split_policy)t_below(s, 4);
    d->num_layers = (int32_t)t_below(s, 4);
    if (d->num_layers > x->m.num_moe_layers) d->num_layers = x->m.num_moe_layers;
    if (t_below(s, 2)) {
        x->w.kind = t_below(s, 2) ? MOE_EP_LOAD_ZIPF : MOE_EP_LOAD_POWER_LAW; /* whose weights depend on the tokens */
        x->w.seed = t_u64(s);
        x->w.num_experts = x->m.num_experts;
        x->w.top_k = x->m.top_k;
        x->w.alpha = 1.2;
        x->w.drift = drawn_size(s, 0.3);
        x->w.walk = drawn_size(s, 0.1);
        d->workload = &x->w;
    }
    for (i = 0; i < 4 * 16; i++) x->plan[i] = 0.1 + t_unit(s), x->serve[i] = 0.1 + t_unit(s);
    if (d->num_layers > 0 && t_below(s, 2)) d->plan_loads = x->plan;
    if (d->num_layers > 0 && t_below(s, 2)) d->serve_loads = x->serve;
    d->context = drawn_size(s, 100);
    if (t_below(s, 2)) d->attention_s = x->attention;
    if (t_below(s, 2)) d->attention_half_s = x->half;
    d->other_s = drawn_size(s, 1e-4);
    d->tokens_per_pass = drawn_size(s, 2);
    d->rows_per_sequence = (int32_t)t_below(s, 3);
    d->microbatch_s = drawn_size(s, 1e-5);
    d->memory_bytes = drawn_size(s, 1e8);
    d->reserve_bytes = drawn_size(s, 1e6);
    d->max_tpot_s = drawn_size(s, 1e-3);
    d->throughput_from = t_below(s, 3) * 10;
    d->serve_step = t_below(s, 4);
}

static double or_else(double v, double instead) { return v > 0 ? v : instead; }

/* Seconds for bytes of memory or for FLOPs, whichever takes longer. */
static double roof_of(const drawn_sweep *x, moe_ep_math math, double bytes, double flops)
{
    double Bps = x->c.memory_Bps * or_else(x->c.gemm.mem_eff, 1), rate;
    rate = x->c.flops[math] * or_else(x->c.gemm.flop_eff, 1);
    return fmax(Bps > 0 ? bytes / Bps : 0, rate > 0 ? flops / rate : 0);
}

/* All but the experts, of so many bytes a weight: in bf16 from two on; four bits are of experts. */
static double roof_with(const drawn_sweep *x, double each, double bytes, double flops)
{
    moe_ep_math math = x->m.math == MOE_EP_MATH_FP4 ? MOE_EP_MATH_FP8 : x->m.math;
    return roof_of(x, each < 2 ? math : MOE_EP_MATH_BF16, bytes, flops);
}

static double roof(const drawn_sweep *x, double bytes, double flops)
{
    return roof_with(x, or_else(x->m.other_weight_bytes, 2), bytes, flops);
}

/* Projections, then the kernel. */
static double attention_of(const drawn_sweep *x, double tokens, double rows, double context)
{
    double w = (double)x->m.attention_params, pairs = tokens * context, kernel = 0;
    double elem = x->m.kv_elems * or_else(x->m.kv_bytes, 2), flops = (double)x->m.attention_flops;
    int32_t l, layers = x->m.num_layers > 0 ? x->m.num_layers : x->m.num_moe_layers;
    for (l = 0; l < layers; l++) { /* the mean of layers, of which the first have a window */
        double read = pairs / rows, near = pairs, choose = 0;
        if (x->m.attention_window > 0 && l < x->m.window_layers) {
            near = tokens * fmin(context, x->m.attention_window);
            choose = roof_of(x, MOE_EP_MATH_FP8, read * x->m.index_bytes, pairs * (double)x->m.index_flops);
            read = x->m.index_flops > 0 ? fmin(read, near) : near / rows;
        }
        kernel += (choose + roof_of(x, MOE_EP_MATH_BF16, read * elem, near * flops)) / layers;
    }
    return roof(x, w * or_else(x->m.other_weight_bytes, 2), 2 * tokens * w) + kernel;
}

/* Attention of one layer over so many tokens, given or computed. */
static double attention_by_hand(const drawn_sweep *x, int i, int half)
{
    double tokens = (half ? 0.5 : 1) * (double)x->tokens[i];
    if (half && x->d.attention_half_s) return x->half[i];
    if (x->d.attention_s) return (half ? 0.5 : 1) * x->attention[i];
    return attention_of(x, tokens, or_else((double)x->d.rows_per_sequence, 1), or_else(x->d.context, 4096));
}

static int32_t sweep_layers(const drawn_sweep *x)
{
    int32_t n = x->d.num_layers > 0 ? x->d.num_layers : 8;
    return n < x->m.num_moe_layers ? n : x->m.num_moe_layers;
}

/* Loads that a plan is made on, or tokens drawn by: recorded ones do not drift. */
static moe_ep_workload source_of(const drawn_sweep *x, const double *loads, int32_t l)
{
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_LOGNORMAL;
    w.seed = 1;
    w.num_experts = x->m.num_experts;
    w.top_k = x->m.top_k;
    w.sigma = 1.1;
    w.drift = 0.1;
    if (x->d.workload) w = x->w;
    if (!loads) return w;
    w.kind = MOE_EP_LOAD_RECORDED;
    w.drift = w.walk = 0;
    w.popularity = loads + l * x->m.num_experts;
    return w;
}

static moe_ep_status placed(const drawn_sweep *x, const moe_ep_sweep_point *c, double *mem, moe_ep_placement *p)
{
    static double loads[8 * 16];
    moe_ep_place_desc d;
    uint64_t weight[16];
    int32_t l, e, L = sweep_layers(x), E = x->m.num_experts;
    for (l = 0; l < L; l++) {
        moe_ep_workload w = source_of(x, x->d.plan_loads, l);
        CHECK(moe_ep_popularity(&w, l, 0, x->tokens[0], weight, NULL) == MOE_EP_OK);
        for (e = 0; e < E; e++) loads[l * E + e] = (double)weight[e];
    }
    memset(&d, 0, sizeof d);
    d.num_layers = L;
    d.num_experts = E;
    d.loads = loads;
    d.num_groups = x->m.num_groups;
    d.shape.num_devices = c->ep;
    d.shape.num_slots = E + c->redundant;
    d.shape.num_nodes = x->c.devices_per_node > 0 ? (int32_t)ceil((double)c->ep / x->c.devices_per_node) : 1;
    if (moe_ep_placement_init(p, L, E, &d.shape, mem, 20000 * sizeof *mem, NULL) != MOE_EP_OK) return MOE_EP_ERR_SIZE;
    switch (c->policy) {
    case MOE_EP_PLACE_ROUND_ROBIN: return moe_ep_place_round_robin(&d, p, NULL, NULL, NULL);
    case MOE_EP_PLACE_CONTIGUOUS: return moe_ep_place_contiguous(&d, p, NULL, NULL, NULL);
    case MOE_EP_PLACE_LPT: return moe_ep_place_lpt(&d, p, NULL, NULL, NULL);
    case MOE_EP_PLACE_TRTLLM: return moe_ep_place_trtllm(&d, p, NULL, NULL, NULL);
    case MOE_EP_PLACE_EPLB_GLOBAL: d.eplb_mode = MOE_EP_EPLB_GLOBAL; break;
    case MOE_EP_PLACE_EPLB_HIERARCHICAL: d.eplb_mode = MOE_EP_EPLB_HIERARCHICAL; break;
    default: return moe_ep_best_placement(&d, p, NULL, NULL, NULL);
    }
    return moe_ep_place_eplb(&d, p, NULL, NULL, NULL);
}

/* Step, imbalance and limit of a configuration that fits, batch number i. */
static void timed(const drawn_sweep *x, moe_ep_sweep_point *c, int i, const moe_ep_placement *p)
{
    static int32_t ids[90 * 12 * 3];
    static int64_t slot[8 * 32];
    moe_ep_step_desc s;
    moe_ep_time_result t;
    moe_ep_device_time dev[12];
    moe_ep_split_desc split;
    double most = 0, mean = 0, dense, weights, head, embedding, network;
    int32_t l, r, k, L = sweep_layers(x), E = x->m.num_experts;
    memset(&split, 0, sizeof split);
    split.policy = x->d.split;
    for (l = 0; l < L; l++) {
        moe_ep_workload w = source_of(x, x->d.serve_loads ? x->d.serve_loads : x->d.plan_loads, l);
        int64_t count[16], top = 0, *at = slot + l * p->num_slots;
        CHECK(moe_ep_simulate(&w, l, x->d.serve_step > 0 ? x->d.serve_step : 1, c->tokens * c->ep, ids, NULL, NULL) ==
              MOE_EP_OK);
        CHECK(moe_ep_expert_loads(ids, c->tokens * c->ep * x->m.top_k, E, count, NULL, NULL) == MOE_EP_OK);
        CHECK(moe_ep_split(&split, p, l, count, at, NULL, NULL) == MOE_EP_OK);
        for (r = 0; r < c->ep; r++) {
            int64_t rows = 0;
            for (k = p->slot_start[r]; k < p->slot_start[r + 1]; k++) rows += at[k];
            top = rows > top ? rows : top;
        }
        most += (double)top;
        mean += (double)(c->tokens * x->m.top_k);
    }
    c->imbalance = most / mean;
    memset(&s, 0, sizeof s);
    s.layer.model = &x->m;
    s.layer.machine = &x->c;
    s.layer.placement = p;
    s.layer.tokens = c->tokens;
    s.layer.high_throughput = c->tokens >= or_else((double)x->d.throughput_from, 512);
    s.layer.mode = MOE_EP_A2A_PAIR;
    if (s.layer.high_throughput) s.layer.mode = p->num_nodes > 1 ? MOE_EP_A2A_NODE_DEDUP : MOE_EP_A2A_RANK_DEDUP;
    s.layer.dispatch_wire = x->m.math == MOE_EP_MATH_BF16 ? MOE_EP_WIRE_BF16 : MOE_EP_WIRE_FP8;
    s.layer.combine_wire = MOE_EP_WIRE_BF16;
    s.layer.overlap = c->overlap;
    s.layer.attention_s = attention_by_hand(x, i, 0);
    s.layer.attention_half_s = attention_by_hand(x, i, 1);
    s.layer.microbatch_s = x->d.microbatch_s;
    s.num_layers = L;
    s.tokens_per_pass = x->d.tokens_per_pass;
    s.rows_per_sequence = x->d.rows_per_sequence;
    dense = or_else(x->m.num_layers, x->m.num_moe_layers) - x->m.num_moe_layers;
    weights = dense * 3 * x->m.hidden * x->m.dense_inter, head = (double)x->m.vocab * x->m.hidden;
    s.other_s = x->d.other_s + dense * s.layer.attention_s +
                roof(x, weights * or_else(x->m.other_weight_bytes, 2), 2 * weights * (double)c->tokens);
    embedding = or_else(x->m.embedding_weight_bytes, or_else(x->m.other_weight_bytes, 2));
    s.other_s += roof_with(x, embedding, head * embedding, 2 * head * (double)c->tokens);
    CHECK(moe_ep_step(&s, slot, &c->step, NULL, NULL) == MOE_EP_OK);
    k = x->c.devices_per_node > 0 ? x->c.devices_per_node : x->d.num_devices; /* of a node, whatever the EP */
    c->step.tokens_per_s_node = c->step.tokens_per_s_device * (k < x->d.num_devices ? k : x->d.num_devices);
    CHECK(moe_ep_layer_time(&s.layer, slot, &t, dev, NULL) == MOE_EP_OK);
    c->attention_s = s.layer.attention_s * x->m.num_moe_layers + s.other_s;
    network = c->step.dispatch_s + c->step.combine_s;
    c->limit = dev[t.slowest_device].flop_s > dev[t.slowest_device].memory_s ? MOE_EP_LIMIT_FLOPS
                                                                             : MOE_EP_LIMIT_WEIGHTS;
    if (network > c->step.compute_s) c->limit = MOE_EP_LIMIT_NETWORK;
    if (c->attention_s > network && c->attention_s > c->step.compute_s) c->limit = MOE_EP_LIMIT_ATTENTION;
}

/* Does it fit into memory, and can it be planned? */
static void weighed(const drawn_sweep *x, moe_ep_sweep_point *c, moe_ep_status plan)
{
    moe_ep_memory_desc d;
    double budget = or_else(x->d.memory_bytes, x->c.memory_bytes);
    memset(&d, 0, sizeof d);
    d.model = &x->m;
    d.num_devices = c->ep;
    d.num_slots = x->m.num_experts + c->redundant;
    d.reserve_bytes = x->d.reserve_bytes;
    d.memory_bytes = budget;
    if (c->ep > 1 && c->tokens < or_else((double)x->d.throughput_from, 512))
        d.buffer_bytes = moe_ep_ll_buffer_bytes((int32_t)c->tokens, x->m.hidden, d.num_slots, 1, NULL);
    CHECK(moe_ep_memory(&d, &c->memory, NULL) == MOE_EP_OK);
    c->batch_kv_tokens = (double)c->tokens / or_else((double)x->d.rows_per_sequence, 1) * or_else(x->d.context, 4096);
    c->fits = 1;
    if (budget > 0)
        c->fits = c->memory.fits && (x->m.kv_elems == 0 || c->batch_kv_tokens <= (double)c->memory.kv_tokens);
    c->limit = MOE_EP_LIMIT_MEMORY;
    if (c->fits && plan != MOE_EP_OK) c->fits = 0, c->limit = MOE_EP_LIMIT_PLACEMENT;
}

/* Is a group an equal part of a node, or whole nodes?  On one node there is nothing to divide. */
static int lies_evenly(const drawn_sweep *x, int32_t ep)
{
    int32_t per = x->c.devices_per_node > 0 ? x->c.devices_per_node : x->d.num_devices, part;
    for (part = 1; part <= per; part++)
        if (ep * part == per) return 1;
    return ep % per == 0 || x->d.num_devices <= per;
}

/* EP sizes and redundant experts as the description says; *n of them. */
static void shapes_by_hand(const drawn_sweep *x, int32_t (*shape)[2], int32_t *n)
{
    int32_t ep, i, k, E = x->m.num_experts;
    *n = 0;
    for (i = 0, ep = 1; x->d.ep ? i < x->d.num_ep : ep <= x->d.num_devices && ep <= E; i++, ep++) {
        int32_t D = x->d.ep ? x->ep[i] : ep, redundant = 0;
        if (!x->d.ep && (x->d.num_devices % ep != 0 || !lies_evenly(x, ep))) continue;
        if (x->d.redundant) {
            for (k = 0; k < x->d.num_redundant; k++) shape[*n][0] = D, shape[(*n)++][1] = x->redundant[k];
            continue;
        }
        while ((E + redundant) % D != 0) redundant++; /* the fewest that give equal slots */
        for (k = 0; k <= 4; k++) /* and 1, 2, 4 more on every device, as long as there are no more than experts */
            if (k == 0 || (k != 3 && D > 1 && redundant + k * D <= E))
                shape[*n][0] = D, shape[(*n)++][1] = redundant + k * D;
    }
}

/* The front by its definition, and the answer. */
static void answer_by_hand(const drawn_sweep *x, moe_ep_sweep_point *p, int64_t n, moe_ep_sweep_result *r)
{
    double top = 0;
    int64_t i, j;
    memset(r, 0, sizeof *r);
    r->points = n;
    r->best = -1;
    for (i = 0; i < n; i++) {
        p[i].pareto = p[i].fits;
        for (j = 0; j < n; j++) {
            double slower = p[i].step.tpot_s - p[j].step.tpot_s;
            double more = p[j].step.tokens_per_s_device - p[i].step.tokens_per_s_device;
            if (p[j].fits && j != i && slower >= 0 && more >= 0 && (slower > 0 || more > 0 || j < i)) p[i].pareto = 0;
        }
        r->fit += p[i].fits;
        r->pareto += p[i].pareto;
    }
    for (j = 0; j < 2; j++)
        for (i = 0; i < n; i++) {
            const moe_ep_sweep_point *b = r->best < 0 ? NULL : &p[r->best];
            if (!p[i].fits || p[i].tokens != x->tokens[0]) continue;
            if (x->d.max_tpot_s > 0 && p[i].step.tpot_s > x->d.max_tpot_s) continue;
            if (j == 0) top = fmax(top, p[i].step.tokens_per_s_device);
            if (j == 0 || p[i].step.tokens_per_s_device < 0.99 * top) continue;
            if (!b || p[i].memory.slots < b->memory.slots ||
                (p[i].memory.slots == b->memory.slots && p[i].redundant < b->redundant))
                r->best = i;
        }
}

#define SAME(field) CHECK_NEAR(got[m].field, want[m].field, 1e-11, 0)

TEST(sweeps_by_hand)
{
    static const moe_ep_overlap usual[3] = {MOE_EP_OVERLAP_NONE, MOE_EP_OVERLAP_SHARED, MOE_EP_OVERLAP_TWO_EXPOSED};
    static moe_ep_sweep_point got[MOST_POINTS], want[MOST_POINTS];
    static double mem[20000];
    uint64_t s = t_seed + 5;
    int round, rounds = t_slow() ? 20 : 60, seen[6] = {0}, fitted = 0;
    for (round = 0; round < rounds; round++) {
        static drawn_sweep x;
        int32_t shape[64][2], shapes, i, j, k, h;
        moe_ep_sweep_result r, q;
        moe_ep_error err;
        int64_t n = 0, m;
        draw_sweep(&s, &x);
        shapes_by_hand(&x, shape, &shapes);
        for (h = 0; h < shapes; h++)
            for (k = 0; k < (x.d.policies ? x.d.num_policies : 1); k++) {
                moe_ep_sweep_point c;
                moe_ep_placement p;
                moe_ep_status plan;
                memset(&c, 0, sizeof c);
                c.ep = shape[h][0];
                c.redundant = shape[h][1];
                c.policy = x.d.policies ? x.policies[k] : MOE_EP_PLACE_BEST;
                plan = placed(&x, &c, mem, &p);
                for (i = 0; i < x.d.num_tokens; i++) {
                    c.tokens = x.tokens[i];
                    for (j = 0; j < (x.d.overlaps ? x.d.num_overlaps : 3); j++) {
                        memset(&c.step, 0, sizeof c.step);
                        c.imbalance = c.attention_s = 0;
                        c.overlap = x.d.overlaps ? x.overlaps[j] : usual[j];
                        weighed(&x, &c, plan);
                        if (c.fits) timed(&x, &c, i, &p);
                        if (n < MOST_POINTS) want[n] = c;
                        n++;
                    }
                }
            }
        CHECK(n <= MOST_POINTS);
        answer_by_hand(&x, want, n, &q);
        CHECK_I64(moe_ep_sweep_count(&x.d, NULL), n);
        memset(got, 0x5a, sizeof got);
        CHECK_I64(moe_ep_sweep(&x.d, got, n, &r, NULL, &err), MOE_EP_OK);
        for (m = 0; m < n; m++) {
            CHECK(got[m].ep == want[m].ep && got[m].redundant == want[m].redundant);
            CHECK(got[m].policy == want[m].policy && got[m].overlap == want[m].overlap);
            CHECK_I64(got[m].tokens, want[m].tokens);
            CHECK_I64(got[m].fits, want[m].fits);
            CHECK_I64(got[m].limit, want[m].limit);
            CHECK(memcmp(&got[m].memory, &want[m].memory, sizeof got[m].memory) == 0);
            CHECK_NEAR(got[m].batch_kv_tokens, want[m].batch_kv_tokens, 1e-12, 0);
            SAME(step.tpot_s);
            SAME(step.step_s);
            SAME(step.tokens_per_s_device);
            SAME(step.tokens_per_s_node);
            SAME(step.compute_s);
            SAME(step.dispatch_s);
            SAME(step.combine_s);
            SAME(attention_s);
            SAME(imbalance);
            CHECK_I64(got[m].pareto, want[m].pareto);
            if (got[m].limit < 6) seen[got[m].limit]++;
            fitted += got[m].fits;
            if (t_failed_here) printf("    point %d\n", (int)m);
            STOP_IF_FAILED("round %d", round);
        }
        CHECK(((unsigned char *)&got[n])[0] == 0x5a); /* nothing behind the last */
        CHECK(r.points == q.points && r.fit == q.fit && r.pareto == q.pareto);
        CHECK_I64(r.best, q.best);
        STOP_IF_FAILED("round %d", round);
    }
    CHECK(fitted > rounds);
    for (round = 0; round < 6 && rounds >= 60; round++) CHECK(seen[round] > 0); /* each limit was met */
}

TEST(sweeps_that_fail_on_the_way)
{
    static moe_ep_sweep_point p[4];
    static const int64_t few[1] = {4}, many[1] = {1 << 16};
    static const int32_t ep[1] = {2}, spare[1] = {4400};
    static const moe_ep_overlap none[1] = {MOE_EP_OVERLAP_NONE};
    static const moe_ep_place_policy policy[1] = {MOE_EP_PLACE_CONTIGUOUS};
    double huge[1] = {1e308}, plan[8], serve[8] = {1, 0, 0, 0, 0, 0, 0, 0};
    moe_ep_model m = moe_ep_model_mixtral_8x7b(), wide = m;
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_sweep_desc d = v3_on(&m, &c, few, 1), good;
    moe_ep_sweep_result r;
    moe_ep_workload w;
    moe_ep_scratch scratch;
    moe_ep_error err;
    int i;
    for (i = 0; i < 8; i++) plan[i] = 1 + i;
    d.num_devices = 2;
    d.ep = ep;
    d.num_ep = 1;
    d.overlaps = none;
    d.num_overlaps = 1;
    d.policies = policy;
    d.num_policies = 1;
    d.num_layers = 1;
    d.memory_bytes = 1e12;
    good = d;
    CHECK_I64(moe_ep_sweep(&d, p, 4, &r, NULL, &err), MOE_EP_OK);
    CHECK(r.fit == r.points && r.best >= 0);
#define STOPS(change, status, name)                                                                                    \
    do {                                                                                                               \
        change;                                                                                                        \
        CHECK_I64(moe_ep_sweep(&d, p, 4, &r, NULL, &err), status);                                                     \
        CHECK_STR(err.arg, name);                                                                                      \
        d = good;                                                                                                      \
    } while (0)
    STOPS(d.split = (moe_ep_split_policy)99, MOE_EP_ERR_RANGE, "desc.policy");
    STOPS(d.attention_s = huge, MOE_EP_ERR_OVERFLOW, "attention_s");
    STOPS(d.memory_bytes = 1e300, MOE_EP_ERR_OVERFLOW, "memory_bytes");
    STOPS((d.plan_loads = plan, d.serve_loads = serve), MOE_EP_ERR_INFEASIBLE, "popularity"); /* one for two choices */
    STOPS((d.plan_loads = serve, d.serve_loads = plan), MOE_EP_ERR_INFEASIBLE, "popularity");
    wide.hidden = INT32_MAX; /* a buffer beyond 2^62 bytes */
    wide.num_experts = 260;
    STOPS((d.model = &wide, d.tokens = many, d.redundant = spare, d.num_redundant = 1, d.throughput_from = INT64_MAX),
          MOE_EP_ERR_OVERFLOW, "num_slots");
#undef STOPS
    memset(&w, 0, sizeof w);
    w.num_experts = 8;
    w.top_k = 2;
    w.kind = MOE_EP_LOAD_BALANCED; /* has no popularity to plan on */
    d.workload = &w;
    memset(&scratch, 0, sizeof scratch);
    CHECK_I64(moe_ep_sweep(&d, p, 4, &r, &scratch, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "kind");
    CHECK(scratch.need > 0 && scratch.need <= scratch.bytes);
    moe_ep_scratch_free(&scratch);
}

TEST(lists_up_to_their_limits)
{
    static const int64_t tokens[1] = {4};
    int64_t t[1] = {INT32_MAX};
    int32_t ep[1] = {8}, spare[1] = {INT32_MAX / 2 - 8};
    moe_ep_place_policy policy[1] = {MOE_EP_PLACE_BEST};
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 1);
    moe_ep_workload w;
    moe_ep_error err;
    memset(&w, 0, sizeof w);
    w.num_experts = 8;
    w.top_k = 2;
#define LIMIT(given, change, status, name, index_, value_)                                                             \
    do {                                                                                                               \
        d = v3_on(&m, &c, tokens, 1);                                                                                  \
        given;                                                                                                         \
        CHECK(moe_ep_sweep_count(&d, &err) > 0);                                                                       \
        change;                                                                                                        \
        CHECK_I64(moe_ep_sweep_count(&d, &err), status);                                                               \
        names(&err, name, index_, value_);                                                                             \
    } while (0)
    LIMIT(d.tokens = t, t[0]++, MOE_EP_ERR_SIZE, "tokens", 0, 2147483648.0);
    LIMIT((d.ep = ep, d.num_ep = 1), ep[0] = 9, MOE_EP_ERR_SIZE, "ep", 0, 9);
    LIMIT((d.ep = ep, d.num_ep = 1, ep[0] = 8), d.num_devices = 7, MOE_EP_ERR_SIZE, "ep", 0, 8);
    LIMIT((d.redundant = spare, d.num_redundant = 1), spare[0]++, MOE_EP_ERR_SLOTS, "redundant", 0, INT32_MAX / 2 - 7);
    LIMIT((d.policies = policy, d.num_policies = 1), policy[0] = MOE_EP_PLACE_REBALANCE,
          MOE_EP_ERR_RANGE, "policies", 0, MOE_EP_PLACE_REBALANCE);
    LIMIT((d.policies = policy, policy[0] = MOE_EP_PLACE_ROUND_ROBIN, d.num_policies = 1),
          policy[0] = MOE_EP_PLACE_GIVEN, MOE_EP_ERR_RANGE, "policies", 0, MOE_EP_PLACE_GIVEN);
    LIMIT(d.workload = &w, w.top_k = 3, MOE_EP_ERR_CONFIG, "workload", -1, 8);
    LIMIT((d.workload = &w, w.top_k = 2), w.num_experts = 9, MOE_EP_ERR_CONFIG, "workload", -1, 9);
    LIMIT((d.plan_loads = NULL, d.num_layers = 33), (d.plan_loads = &c.memory_bytes),
          MOE_EP_ERR_SIZE, "num_layers", -1, 33);
    LIMIT((d.serve_loads = &c.memory_bytes, d.num_layers = 32), d.num_layers = 33,
          MOE_EP_ERR_SIZE, "num_layers", -1, 33);
#undef LIMIT
    m.num_experts = 1 << 20;
    d = v3_on(&m, &c, tokens, 1);
    d.num_devices = 1;
    CHECK_I64(moe_ep_sweep_count(&d, &err), 3);
    m.num_experts++;
    CHECK_I64(moe_ep_sweep_count(&d, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "model.num_experts");
}

TEST(attention_by_hand_alone)
{
    uint64_t s = t_seed + 6;
    int round;
    for (round = 0; round < 1000; round++) {
        static drawn_sweep x;
        double tokens, context;
        draw_sweep(&s, &x);
        tokens = drawn_size(&s, 100);
        context = drawn_size(&s, 100);
        CHECK_NEAR(moe_ep_attention_time(&x.m, &x.c, tokens, context, NULL), attention_of(&x, tokens, 1, context),
                   1e-12, 0);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Nothing takes time but attention, which does not grow: twice the tokens in the same time are better, copies not. */
TEST(front_of_equal_times)
{
    static moe_ep_sweep_point p[4];
    static const int64_t tokens[2] = {4, 8};
    static const int32_t ep[1] = {1};
    static const moe_ep_overlap twice[2] = {MOE_EP_OVERLAP_NONE, MOE_EP_OVERLAP_NONE};
    double attention[2] = {1e-3, 1e-3};
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c;
    moe_ep_sweep_desc d;
    moe_ep_sweep_result r;
    int i;
    memset(&c, 0, sizeof c);
    d = v3_on(&m, &c, tokens, 2);
    d.num_devices = 1;
    d.ep = ep;
    d.num_ep = 1;
    d.overlaps = twice;
    d.num_overlaps = 2;
    d.attention_s = attention;
    CHECK_I64(moe_ep_sweep(&d, p, 4, &r, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < 4; i++) {
        CHECK_NEAR(p[i].step.tpot_s, 32e-3, 1e-12, 0);
        CHECK_I64(p[i].pareto, i == 2);
    }
    CHECK(r.fit == 4 && r.pareto == 1 && r.best == 0);
}

/* All points take the same time: the answer has the fewest slots per device, then the fewest redundant experts, and is
 * the first of those. */
TEST(the_answer_among_equal_times)
{
    static moe_ep_sweep_point p[100];
    static const int64_t tokens[1] = {4};
    static const moe_ep_overlap none[1] = {MOE_EP_OVERLAP_NONE};
    double attention[1] = {1e-3};
    uint64_t s = t_seed + 9;
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c;
    memset(&c, 0, sizeof c);
    for (int round = 0; round < 60; round++) {
        int32_t ep[3], redundant[4], best = -1, slots = 0, spare = 0;
        moe_ep_sweep_desc d = v3_on(&m, &c, tokens, 1);
        moe_ep_sweep_result r;
        d.num_ep = 1 + (int32_t)t_below(&s, 3);
        d.num_redundant = 1 + (int32_t)t_below(&s, 4);
        for (int i = 0; i < d.num_ep; i++) ep[i] = 1 + (int32_t)t_below(&s, 8);
        for (int i = 0; i < d.num_redundant; i++) redundant[i] = (int32_t)t_below(&s, 9);
        d.num_devices = 8, d.num_layers = 1;
        d.ep = ep, d.redundant = redundant;
        d.overlaps = none, d.num_overlaps = 1;
        d.attention_s = attention;
        CHECK_I64(moe_ep_sweep(&d, p, 100, &r, NULL, NULL), MOE_EP_OK);
        CHECK_I64(r.fit, d.num_ep * d.num_redundant);
        for (int i = 0; i < d.num_ep * d.num_redundant; i++) {
            int32_t e = ep[i / d.num_redundant], more = redundant[i % d.num_redundant], has = (8 + more + e - 1) / e;
            CHECK_I64(p[i].memory.slots, has);
            if (best < 0 || has < slots || (has == slots && more < spare)) best = i, slots = has, spare = more;
        }
        CHECK_I64(r.best, best);
        STOP_IF_FAILED("round %d", round);
    }
}

T_MAIN
