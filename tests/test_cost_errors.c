/* tests/test_cost_errors.c - sections 8 and 12: one bad field at a time, each with its own status and name, and the
 * presets one by one.  SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"

/* Sets, calls, looks at status and argument, restores. */
#define BAD(change, restore, call, want, name)                                                                         \
    do {                                                                                                               \
        change;                                                                                                        \
        CHECK_I64((int64_t)(call), (int64_t)(want));                                                                   \
        CHECK_I64(err.status, (int64_t)(want));                                                                        \
        CHECK_STR(err.arg, name);                                                                                      \
        restore;                                                                                                       \
    } while (0)

static moe_ep_error err;

TEST(every_preset_by_its_own_name)
{
    moe_ep_model m[13], found;
    moe_ep_machine c[7], machine;
    int i;
    m[0] = moe_ep_model_deepseek_v3();
    m[1] = moe_ep_model_deepseek_v2();
    m[2] = moe_ep_model_deepseek_v2_lite();
    m[3] = moe_ep_model_kimi_k2();
    m[4] = moe_ep_model_qwen3_235b_a22b();
    m[5] = moe_ep_model_qwen3_30b_a3b();
    m[6] = moe_ep_model_qwen1_5_moe_a2_7b();
    m[7] = moe_ep_model_mixtral_8x7b();
    m[8] = moe_ep_model_mixtral_8x22b();
    m[9] = moe_ep_model_gpt_oss_120b();
    m[10] = moe_ep_model_gpt_oss_20b();
    m[11] = moe_ep_model_olmoe_1b_7b();
    m[12] = moe_ep_model_phi_tiny_moe();
    for (i = 0; i < 13; i++) {
        CHECK(moe_ep_model_by_name(m[i].name, &found, NULL) == MOE_EP_OK);
        CHECK_STR(found.name, m[i].name);
        CHECK(m[i].source != NULL && strlen(m[i].source) > 10);
    }
    c[0] = moe_ep_machine_h100();
    c[1] = moe_ep_machine_h800();
    c[2] = moe_ep_machine_h20();
    c[3] = moe_ep_machine_h200();
    c[4] = moe_ep_machine_b200();
    c[5] = moe_ep_machine_gb200();
    c[6] = moe_ep_machine_rtxpro6000();
    for (i = 0; i < 7; i++) {
        CHECK(moe_ep_machine_by_name(c[i].name, &machine, NULL) == MOE_EP_OK);
        CHECK_STR(machine.name, c[i].name);
        CHECK(c[i].source != NULL && strlen(c[i].source) > 10);
    }
    CHECK(moe_ep_model_by_name(NULL, &found, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_model_by_name("x", NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_model_by_name("no such model", &found, &err) == MOE_EP_ERR_CONFIG);
    CHECK(moe_ep_machine_by_name(NULL, &machine, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_machine_by_name("h100", NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_machine_by_name("abacus", &machine, &err) == MOE_EP_ERR_CONFIG);
    CHECK(moe_ep_model_preset_name(-1) == NULL && moe_ep_machine_preset_name(99) == NULL);
    CHECK_STR(moe_ep_regime_str(MOE_EP_REGIME_IDLE), "idle");
    CHECK_STR(moe_ep_regime_str(MOE_EP_REGIME_WEIGHTS), "weights");
    CHECK_STR(moe_ep_regime_str(MOE_EP_REGIME_FLOPS), "flops");
    CHECK_STR(moe_ep_regime_str(MOE_EP_REGIME_NETWORK), "network");
    CHECK_STR(moe_ep_regime_str((moe_ep_regime)9), "unknown");
}

TEST(models_one_field_at_a_time)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_params_result r;
    moe_ep_gemm_work w;
    int64_t rows[2] = {1, 2};
#define P moe_ep_params(&m, &r, &err)
    BAD(m.hidden = 0, m.hidden = 7168, P, MOE_EP_ERR_SIZE, "model.hidden");
    BAD(m.inter = -1, m.inter = 2048, P, MOE_EP_ERR_SIZE, "model.inter");
    BAD(m.num_moe_layers = 0, m.num_moe_layers = 58, P, MOE_EP_ERR_SIZE, "model.num_moe_layers");
    BAD(m.num_layers = 3, m.num_layers = 61, P, MOE_EP_ERR_SIZE, "model.num_layers");
    BAD(m.num_experts = 0, m.num_experts = 256, P, MOE_EP_ERR_SIZE, "model.num_experts");
    BAD(m.top_k = 0, m.top_k = 8, P, MOE_EP_ERR_SIZE, "model.top_k");
    BAD(m.top_k = 257, m.top_k = 8, P, MOE_EP_ERR_TOP_K, "model.top_k");
    BAD(m.num_shared = -1, m.num_shared = 1, P, MOE_EP_ERR_SIZE, "model.num_shared");
    BAD(m.shared_inter = -1, m.shared_inter = 2048, P, MOE_EP_ERR_SIZE, "model.shared_inter");
    BAD(m.dense_inter = -1, m.dense_inter = 18432, P, MOE_EP_ERR_SIZE, "model.dense_inter");
    BAD(m.vocab = -1, m.vocab = 129280, P, MOE_EP_ERR_SIZE, "model.vocab");
    BAD(m.attention_params = -1, m.attention_params = 1, P, MOE_EP_ERR_SIZE, "model.attention_params");
    BAD(m.kv_elems = -1, m.kv_elems = 576, P, MOE_EP_ERR_SIZE, "model.kv_elems");
    BAD(m.attention_flops = -1, m.attention_flops = 278528, P, MOE_EP_ERR_SIZE, "model.attention_flops");
    BAD(m.attention_window = -1, m.attention_window = 0, P, MOE_EP_ERR_SIZE, "model.attention_window");
    BAD(m.window_layers = -1, m.window_layers = 0, P, MOE_EP_ERR_SIZE, "model.window_layers");
    BAD(m.index_flops = -1, m.index_flops = 0, P, MOE_EP_ERR_SIZE, "model.index_flops");
    BAD(m.index_bytes = NAN, m.index_bytes = 0, P, MOE_EP_ERR_NAN, "model.index_bytes");
    BAD(m.weight_bytes = NAN, m.weight_bytes = 1, P, MOE_EP_ERR_NAN, "model.weight_bytes");
    BAD(m.other_weight_bytes = -1, m.other_weight_bytes = 1, P, MOE_EP_ERR_NEGATIVE, "model.other_weight_bytes");
    BAD(m.shared_weight_bytes = -1, m.shared_weight_bytes = 0, P, MOE_EP_ERR_NEGATIVE, "model.shared_weight_bytes");
    BAD(m.embedding_weight_bytes = NAN, m.embedding_weight_bytes = 2, P, MOE_EP_ERR_NAN,
        "model.embedding_weight_bytes");
    BAD(m.in_bytes = -1, m.in_bytes = 1, P, MOE_EP_ERR_NEGATIVE, "model.in_bytes");
    BAD(m.out_bytes = -1, m.out_bytes = 1, P, MOE_EP_ERR_NEGATIVE, "model.out_bytes");
    BAD(m.kv_bytes = -1, m.kv_bytes = 1, P, MOE_EP_ERR_NEGATIVE, "model.kv_bytes");
    BAD(m.math = (moe_ep_math)7, m.math = MOE_EP_MATH_FP8, P, MOE_EP_ERR_RANGE, "model.math");
    BAD(m.attention_params = INT64_MAX / 2, m.attention_params = 1, P, MOE_EP_ERR_OVERFLOW, "model");
    BAD((m.hidden = INT32_MAX, m.inter = INT32_MAX), (m.hidden = 7168, m.inter = 2048), P, MOE_EP_ERR_OVERFLOW,
        "model");
#undef P
    CHECK(moe_ep_params(NULL, &r, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_params(&m, NULL, &err) == MOE_EP_ERR_NULL);
#define G moe_ep_group_gemm(&m, rows, 2, 0, &w, &err)
    BAD(rows[1] = -1, rows[1] = 2, G, MOE_EP_ERR_NEGATIVE, "rows");
    BAD(rows[1] = INT64_MAX, rows[1] = 2, G, MOE_EP_ERR_OVERFLOW, "rows");
    BAD(m.weight_bytes = 1e308, m.weight_bytes = 1, G, MOE_EP_ERR_OVERFLOW, "model");
#undef G
    BAD((void)0, (void)0, moe_ep_group_gemm(&m, rows, -1, 0, &w, &err), MOE_EP_ERR_SIZE, "n");
    BAD((void)0, (void)0, moe_ep_group_gemm(&m, rows, 2, -1, &w, &err), MOE_EP_ERR_SIZE, "tile");
    BAD((void)0, (void)0, moe_ep_group_gemm(&m, NULL, 2, 0, &w, &err), MOE_EP_ERR_NULL, "rows");
    BAD((void)0, (void)0, moe_ep_group_gemm(&m, rows, 2, 0, NULL, &err), MOE_EP_ERR_NULL, "out");
}

TEST(machines_one_field_at_a_time)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h100();
    int64_t rows[2] = {1, 2};
#define X moe_ep_expert_time(&m, &c, rows, 2, NULL, &err)
    BAD(c.memory_Bps = -1, c.memory_Bps = 1e12, X, MOE_EP_ERR_NEGATIVE, "machine.memory_Bps");
    BAD(c.flops[2] = NAN, c.flops[2] = 0, X, MOE_EP_ERR_NAN, "machine.flops");
    BAD(c.gemm.t0_s = -1, c.gemm.t0_s = 0, X, MOE_EP_ERR_NEGATIVE, "machine.gemm.t0_s");
    BAD(c.gemm.mem_eff = -1, c.gemm.mem_eff = 0, X, MOE_EP_ERR_NEGATIVE, "machine.gemm.mem_eff");
    BAD(c.gemm.flop_eff = -1, c.gemm.flop_eff = 0, X, MOE_EP_ERR_NEGATIVE, "machine.gemm.flop_eff");
    BAD(c.gemm.p = 0.5, c.gemm.p = 2, X, MOE_EP_ERR_RANGE, "machine.gemm.p");
    BAD(c.gemm.p = NAN, c.gemm.p = 2, X, MOE_EP_ERR_NAN, "machine.gemm.p");
    BAD(c.gemm.tile = -1, c.gemm.tile = 0, X, MOE_EP_ERR_SIZE, "machine.gemm.tile");
    BAD(c.gemm.t0_s = 1e308, c.gemm.t0_s = 0, X, MOE_EP_ERR_OVERFLOW, "machine");
    BAD(rows[0] = -1, rows[0] = 1, X, MOE_EP_ERR_NEGATIVE, "slot_rows");
#undef X
    BAD((void)0, (void)0, moe_ep_expert_time(&m, NULL, rows, 2, NULL, &err), MOE_EP_ERR_NULL, "machine");
    BAD((void)0, (void)0, moe_ep_expert_time(&m, &c, NULL, 2, NULL, &err), MOE_EP_ERR_NULL, "slot_rows");
    BAD((void)0, (void)0, moe_ep_expert_time(&m, &c, rows, -1, NULL, &err), MOE_EP_ERR_SIZE, "n");
}

TEST(efficiency_and_rows)
{
    int64_t i[2] = {3, -1};
    double d[2] = {3, -1};
    BAD((void)0, (void)0, moe_ep_efficiency(i, 2, &err), MOE_EP_ERR_NEGATIVE, "device_loads");
    BAD(i[0] = i[1] = INT64_MAX, (void)0, moe_ep_efficiency(i, 2, &err), MOE_EP_ERR_OVERFLOW, "device_loads");
    BAD((void)0, (void)0, moe_ep_efficiency(i, 0, &err), MOE_EP_ERR_SIZE, "D");
    BAD((void)0, (void)0, moe_ep_efficiency(NULL, 2, &err), MOE_EP_ERR_NULL, "device_loads");
    BAD((void)0, (void)0, moe_ep_efficiency_d(d, 2, &err), MOE_EP_ERR_NEGATIVE, "device_loads");
    BAD(d[1] = NAN, (void)0, moe_ep_efficiency_d(d, 2, &err), MOE_EP_ERR_NAN, "device_loads");
    BAD((void)0, (void)0, moe_ep_efficiency_d(d, 0, &err), MOE_EP_ERR_SIZE, "D");
    BAD((void)0, (void)0, moe_ep_efficiency_d(NULL, 2, &err), MOE_EP_ERR_NULL, "device_loads");
    d[0] = d[1] = 0;
    CHECK_NEAR(moe_ep_efficiency_d(d, 2, NULL), 1, 0, 0);
    d[0] = d[1] = 1e308; /* the sum does not fit, the share does */
    CHECK_NEAR(moe_ep_efficiency_d(d, 2, NULL), 1, 1e-12, 0);
}

TEST(exchanges_one_field_at_a_time)
{
    int64_t rows[4] = {1, 2, 3, 4}, node_rows[4] = {1, 1, 1, 1};
    int32_t node[2] = {0, 1};
    moe_ep_a2a_desc a;
    moe_ep_comm_desc c;
    moe_ep_comm_result r;
    memset(&a, 0, sizeof a);
    a.num_devices = 2;
    a.num_nodes = 2;
    a.node_of_device = node;
    a.rows = rows;
    a.node_rows = node_rows;
    a.row_bytes = 10;
    a.link.alpha_s = 1e-6;
    a.link.inter_Bps = 1e9;
#define A moe_ep_a2a_time(&a, NULL, &err)
    BAD(a.num_devices = 0, a.num_devices = 2, A, MOE_EP_ERR_SIZE, "num_devices");
    BAD(a.num_nodes = -1, a.num_nodes = 2, A, MOE_EP_ERR_SIZE, "num_nodes");
    BAD(a.num_peers = -1, a.num_peers = 0, A, MOE_EP_ERR_SIZE, "num_peers");
    BAD(a.mode = (moe_ep_a2a_mode)9, a.mode = MOE_EP_A2A_PAIR, A, MOE_EP_ERR_RANGE, "mode");
    BAD(a.rows = NULL, a.rows = rows, A, MOE_EP_ERR_NULL, "rows");
    BAD(rows[2] = -1, rows[2] = 3, A, MOE_EP_ERR_NEGATIVE, "rows");
    BAD(a.row_bytes = NAN, a.row_bytes = 10, A, MOE_EP_ERR_NAN, "row_bytes");
    BAD(a.row_bytes = 1e300, a.row_bytes = 10, A, MOE_EP_ERR_OVERFLOW, "row_bytes");
    BAD(a.link.intra_Bps = 1e-300, a.link.intra_Bps = 0, A, MOE_EP_ERR_OVERFLOW, "link");
    BAD(a.link.alpha_s = -1, a.link.alpha_s = 1e-6, A, MOE_EP_ERR_NEGATIVE, "link.alpha_s");
    BAD(a.link.intra_Bps = -1, a.link.intra_Bps = 0, A, MOE_EP_ERR_NEGATIVE, "link.intra_Bps");
    BAD(a.link.inter_Bps = -1, a.link.inter_Bps = 1e9, A, MOE_EP_ERR_NEGATIVE, "link.inter_Bps");
    BAD(a.link.alpha_p = -1, a.link.alpha_p = 0, A, MOE_EP_ERR_NEGATIVE, "link.alpha_p");
    BAD(node[1] = 2, node[1] = 1, A, MOE_EP_ERR_DEVICE_ID, "node_of_device");
    CHECK_I64(err.index, 1);
    BAD(node[0] = -1, node[0] = 0, A, MOE_EP_ERR_DEVICE_ID, "node_of_device");
    CHECK_I64(err.index, 0);
    BAD((node[0] = 1, node[1] = 0), (node[0] = 0, node[1] = 1), A, MOE_EP_ERR_CONFIG, "node_of_device");
    CHECK_I64(err.index, 1);
    a.mode = MOE_EP_A2A_NODE_DEDUP;
    BAD(a.node_rows = NULL, a.node_rows = node_rows, A, MOE_EP_ERR_NULL, "node_rows");
    BAD(node_rows[3] = -1, node_rows[3] = 1, A, MOE_EP_ERR_NEGATIVE, "node_rows");
#undef A
    BAD((void)0, (void)0, moe_ep_a2a_time(NULL, NULL, &err), MOE_EP_ERR_NULL, "desc");
    a.mode = MOE_EP_A2A_PAIR;
    a.num_peers = 5;
    a.link.peer_s = 1e-6;
    a.link.row_s = 1e-7; /* 5 peers, 3 rows out and 3 in at most, 30 bytes: 1 + 5 + 0.3 + 0.03 us */
    CHECK_NEAR(1e6 * moe_ep_a2a_time(&a, NULL, NULL), 6.33, 1e-9, 0);
    memset(&c, 0, sizeof c);
    c.tokens = 8;
    c.num_experts = 16;
    c.top_k = 2;
    c.hidden = 64;
    c.num_devices = 4;
#define C moe_ep_comm_bytes(&c, &r, &err)
    BAD(c.tokens = -1, c.tokens = 8, C, MOE_EP_ERR_NEGATIVE, "tokens");
    BAD(c.capacity = NAN, c.capacity = 0, C, MOE_EP_ERR_NAN, "capacity");
    BAD(c.num_experts = 0, c.num_experts = 16, C, MOE_EP_ERR_SIZE, "num_experts");
    BAD(c.top_k = 0, c.top_k = 2, C, MOE_EP_ERR_SIZE, "top_k");
    BAD(c.top_k = 17, c.top_k = 2, C, MOE_EP_ERR_TOP_K, "top_k");
    BAD(c.num_groups = -1, c.num_groups = 0, C, MOE_EP_ERR_SIZE, "num_groups");
    BAD(c.top_groups = -1, c.top_groups = 0, C, MOE_EP_ERR_SIZE, "top_groups");
    BAD(c.num_groups = 3, c.num_groups = 0, C, MOE_EP_ERR_CONFIG, "num_groups");
    BAD((c.num_groups = 16, c.top_groups = 1), (c.num_groups = c.top_groups = 0), C, MOE_EP_ERR_TOP_K, "top_groups");
    BAD(c.num_devices = 0, c.num_devices = 4, C, MOE_EP_ERR_SIZE, "num_devices");
    BAD(c.num_nodes = 3, c.num_nodes = 0, C, MOE_EP_ERR_SIZE, "num_devices");
    BAD(c.num_nodes = -1, c.num_nodes = 0, C, MOE_EP_ERR_SIZE, "num_nodes");
    BAD(c.mode = (moe_ep_a2a_mode)-1, c.mode = MOE_EP_A2A_PAIR, C, MOE_EP_ERR_RANGE, "mode");
    BAD(c.dispatch_wire = (moe_ep_wire)9, c.dispatch_wire = MOE_EP_WIRE_BF16, C, MOE_EP_ERR_RANGE, "dispatch_wire");
    BAD(c.combine_extra = -1, c.combine_extra = 0, C, MOE_EP_ERR_NEGATIVE, "combine_extra");
    BAD(c.dispatch_extra = -1, c.dispatch_extra = 0, C, MOE_EP_ERR_NEGATIVE, "dispatch_extra");
    BAD(c.combine_wire = (moe_ep_wire)9, c.combine_wire = MOE_EP_WIRE_BF16, C, MOE_EP_ERR_RANGE, "combine_wire");
    BAD(c.hidden = 0, c.hidden = 64, C, MOE_EP_ERR_SIZE, "hidden");
    BAD(c.tokens = 1e307, c.tokens = 8, C, MOE_EP_ERR_OVERFLOW, "tokens");
    BAD((c.mode = MOE_EP_A2A_PADDED, c.capacity = 1e306), (c.mode = MOE_EP_A2A_PAIR, c.capacity = 0), C,
        MOE_EP_ERR_OVERFLOW, "capacity");
#undef C
    BAD((void)0, (void)0, moe_ep_comm_bytes(NULL, &r, &err), MOE_EP_ERR_NULL, "desc");
    BAD((void)0, (void)0, moe_ep_comm_bytes(&c, NULL, &err), MOE_EP_ERR_NULL, "out");
    BAD((void)0, (void)0, moe_ep_comm_time(-1, 0, 1, &err), MOE_EP_ERR_NEGATIVE, "bytes");
    BAD((void)0, (void)0, moe_ep_comm_time(1, NAN, 1, &err), MOE_EP_ERR_NAN, "alpha_s");
    BAD((void)0, (void)0, moe_ep_comm_time(1, 0, -1, &err), MOE_EP_ERR_NEGATIVE, "bytes_per_s");
    BAD((void)0, (void)0, moe_ep_comm_time(1e300, 0, 1e-300, &err), MOE_EP_ERR_OVERFLOW, "bytes");
    BAD((void)0, (void)0, moe_ep_logical_time(&c, 0, 0, &err), MOE_EP_ERR_RANGE, "bytes_per_s");
    BAD((void)0, (void)0, moe_ep_logical_time(&c, 0, NAN, &err), MOE_EP_ERR_NAN, "bytes_per_s");
    BAD((void)0, (void)0, moe_ep_logical_time(&c, 0, 1e-320, &err), MOE_EP_ERR_OVERFLOW, "bytes_per_s");
    BAD((void)0, (void)0, moe_ep_logical_Bps(&c, 1, -1, &err), MOE_EP_ERR_NEGATIVE, "time_s");
    BAD((void)0, (void)0, moe_ep_logical_Bps(&c, 1, 1e-320, &err), MOE_EP_ERR_OVERFLOW, "time_s");
    BAD((void)0, (void)0, moe_ep_logical_Bps(NULL, 1, 1, &err), MOE_EP_ERR_NULL, "desc");
}

TEST(expectations_one_field_at_a_time)
{
    moe_ep_expect_desc d;
    moe_ep_expect_result r;
    memset(&d, 0, sizeof d);
    d.tokens = 4;
    d.num_experts = 8;
    d.top_k = 2;
#define X moe_ep_expect(&d, &r, &err)
    BAD(d.tokens = -1, d.tokens = 4, X, MOE_EP_ERR_NEGATIVE, "tokens");
    BAD(d.num_devices = -1, d.num_devices = 0, X, MOE_EP_ERR_SIZE, "num_devices");
    BAD(d.num_nodes = -1, d.num_nodes = 0, X, MOE_EP_ERR_SIZE, "num_nodes");
    BAD(d.top_k = 9, d.top_k = 2, X, MOE_EP_ERR_TOP_K, "top_k");
#undef X
    BAD((void)0, (void)0, moe_ep_expect(NULL, &r, &err), MOE_EP_ERR_NULL, "desc");
    BAD((void)0, (void)0, moe_ep_expect(&d, NULL, &err), MOE_EP_ERR_NULL, "out");
    d.tokens = 0; /* nothing arrives anywhere */
    CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
    CHECK(!(r.active_total > 0) && !(r.rows_mean > 0) && !(r.excess > 0));
    d.top_k = 8; /* everybody takes everything */
    CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK && !(r.active_total > 0));
    d.tokens = 1;
    d.num_devices = 4;
    CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.active_total, 8, 0, 0);
    CHECK_NEAR(r.busiest_rows, 2, 1e-9, 0);
    d.top_k = 7;
    CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
    d.num_experts = d.top_k = 1;
    d.num_devices = 1;
    CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.active_device, 1, 0, 0);
}

TEST(compositions_and_payback)
{
    moe_ep_stages s = {1, 1, 1, 1, 1};
    moe_ep_payback_desc p;
    moe_ep_payback_result r;
#define S moe_ep_compose(MOE_EP_OVERLAP_NONE, &s, NULL, 0, &err)
    BAD(s.attention_s = -1, s.attention_s = 1, S, MOE_EP_ERR_NEGATIVE, "attention_s");
    BAD(s.dispatch_s = NAN, s.dispatch_s = 1, S, MOE_EP_ERR_NAN, "dispatch_s");
    BAD(s.compute_s = -1, s.compute_s = 1, S, MOE_EP_ERR_NEGATIVE, "compute_s");
    BAD(s.combine_s = -1, s.combine_s = 1, S, MOE_EP_ERR_NEGATIVE, "combine_s");
    BAD((s.compute_s = 1e308, s.combine_s = 1e308), (s.compute_s = s.combine_s = 1), S, MOE_EP_ERR_OVERFLOW, "first");
#undef S
    BAD((void)0, (void)0, moe_ep_compose((moe_ep_overlap)-1, &s, NULL, 0, &err), MOE_EP_ERR_RANGE, "overlap");
    BAD((void)0, (void)0, moe_ep_compose((moe_ep_overlap)5, &s, NULL, 0, &err), MOE_EP_ERR_RANGE, "overlap");
    memset(&p, 0, sizeof p);
    p.before_s = p.after_s = 1;
#define Y moe_ep_payback(&p, &r, &err)
    BAD(p.before_s = NAN, p.before_s = 1, Y, MOE_EP_ERR_NAN, "before_s");
    BAD(p.after_s = -1, p.after_s = 1, Y, MOE_EP_ERR_NEGATIVE, "after_s");
    BAD(p.after_s = 0, p.after_s = 1, Y, MOE_EP_ERR_RANGE, "after_s");
    BAD(p.moved_slots = -1, p.moved_slots = 0, Y, MOE_EP_ERR_NEGATIVE, "moved_slots");
    BAD(p.expert_bytes = -1, p.expert_bytes = 0, Y, MOE_EP_ERR_NEGATIVE, "expert_bytes");
    BAD(p.link_Bps = -1, p.link_Bps = 0, Y, MOE_EP_ERR_NEGATIVE, "link_Bps");
    BAD(p.pause_s = -1, p.pause_s = 0, Y, MOE_EP_ERR_NEGATIVE, "pause_s");
    BAD((p.before_s = 1e300, p.after_s = 1e-300), (p.before_s = p.after_s = 1), Y, MOE_EP_ERR_OVERFLOW, "after_s");
    BAD((p.moved_slots = 9, p.expert_bytes = 1e300, p.link_Bps = 1e-300), p.moved_slots = 0, Y, MOE_EP_ERR_OVERFLOW,
        "link_Bps");
#undef Y
    CHECK(moe_ep_payback(NULL, &r, &err) == MOE_EP_ERR_NULL && moe_ep_payback(&p, NULL, &err) == MOE_EP_ERR_NULL);
}

TEST(memory_and_configuration)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_memory_desc d;
    moe_ep_memory_result r;
    moe_ep_config c;
    moe_ep_reason reason[8];
    int32_t count, i, found = 0;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.num_devices = 8;
#define Y moe_ep_memory(&d, &r, &err)
    BAD(d.num_devices = 0, d.num_devices = 8, Y, MOE_EP_ERR_SIZE, "num_devices");
    BAD(d.num_slots = -1, d.num_slots = 0, Y, MOE_EP_ERR_SIZE, "num_slots");
    BAD(d.num_slots = 255, d.num_slots = 0, Y, MOE_EP_ERR_SLOTS, "num_slots");
    BAD(d.tensor_parallel = -1, d.tensor_parallel = 0, Y, MOE_EP_ERR_SIZE, "tensor_parallel");
    BAD(d.expert_tensor_parallel = -1, d.expert_tensor_parallel = 0, Y, MOE_EP_ERR_SIZE, "expert_tensor_parallel");
    BAD(d.shared_tensor_parallel = -1, d.shared_tensor_parallel = 0, Y, MOE_EP_ERR_SIZE, "shared_tensor_parallel");
    BAD(d.buffer_bytes = -1, d.buffer_bytes = 0, Y, MOE_EP_ERR_SIZE, "buffer_bytes");
    BAD(d.reserve_bytes = NAN, d.reserve_bytes = 0, Y, MOE_EP_ERR_NAN, "reserve_bytes");
    BAD(d.memory_bytes = -1, d.memory_bytes = 0, Y, MOE_EP_ERR_NEGATIVE, "memory_bytes");
    BAD(m.kv_bytes = 1e308, m.kv_bytes = 2, Y, MOE_EP_ERR_OVERFLOW, "model.kv_bytes");
    BAD(m.weight_bytes = 1e300, m.weight_bytes = 1, Y, MOE_EP_ERR_OVERFLOW, "model");
    BAD(d.memory_bytes = 1e300, d.memory_bytes = 0, Y, MOE_EP_ERR_OVERFLOW, "memory_bytes");
#undef Y
    CHECK(moe_ep_memory(NULL, &r, &err) == MOE_EP_ERR_NULL && moe_ep_memory(&d, NULL, &err) == MOE_EP_ERR_NULL);
    memset(&c, 0, sizeof c);
    c.num_experts = 8;
    c.top_k = 2;
    c.ep = 4;
#define Z moe_ep_check_config(&c, reason, 8, &count, NULL, &err)
    BAD(c.num_experts = 0, c.num_experts = 8, Z, MOE_EP_ERR_SIZE, "num_experts");
    BAD(c.top_k = 0, c.top_k = 2, Z, MOE_EP_ERR_SIZE, "top_k");
    BAD(c.ep = 0, c.ep = 4, Z, MOE_EP_ERR_SIZE, "ep");
    BAD(c.tp = -1, c.tp = 0, Z, MOE_EP_ERR_SIZE, "tp");
    BAD(c.dp = -1, c.dp = 0, Z, MOE_EP_ERR_SIZE, "dp");
    BAD(c.num_nodes = -1, c.num_nodes = 0, Z, MOE_EP_ERR_SIZE, "num_nodes");
    BAD(c.num_devices = -1, c.num_devices = 0, Z, MOE_EP_ERR_SIZE, "num_devices");
    BAD(c.expert_tp = -1, c.expert_tp = 0, Z, MOE_EP_ERR_SIZE, "expert_tp");
    BAD(c.num_redundant = -1, c.num_redundant = 0, Z, MOE_EP_ERR_SIZE, "num_redundant");
    BAD(c.num_redundant = INT32_MAX, c.num_redundant = 0, Z, MOE_EP_ERR_SIZE, "num_redundant");
    BAD(c.memory_bytes = NAN, c.memory_bytes = 0, Z, MOE_EP_ERR_NAN, "memory_bytes");
#undef Z
    CHECK(moe_ep_check_config(NULL, reason, 8, &count, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_check_config(&c, reason, 8, NULL, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_check_config(&c, NULL, 8, &count, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_check_config(&c, reason, -1, &count, NULL, &err) == MOE_EP_ERR_SIZE);
    c.num_redundant = 100; /* more copies than devices can use, and an odd number of them */
    c.tp = 3;
    c.dp = 2;
    CHECK(moe_ep_check_config(&c, reason, 8, &count, NULL, &err) == MOE_EP_OK);
    for (i = 0; i < count && i < 8; i++)
        found |= strstr(reason[i].text, "more redundant slots") ? 1 : strstr(reason[i].text, "must divide tp") ? 2 : 0;
    CHECK_I64(found, 3);
    {
        int more; /* E (ep - 1) further copies can all stand on other devices, one more cannot */
        for (more = 0; more < 2; more++) {
            c.tp = c.dp = 1;
            c.num_redundant = c.num_experts * (c.ep - 1) + more;
            CHECK(moe_ep_check_config(&c, reason, 8, &count, NULL, &err) == MOE_EP_OK);
            for (found = 0, i = 0; i < count && i < 8; i++)
                found += strstr(reason[i].text, "more redundant slots") != NULL;
            CHECK_I64(found, more);
        }
    }
    CHECK(moe_ep_ll_buffer_bytes(0, 1, 1, 0, &err) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_ll_buffer_bytes(1, 0, 1, 0, &err) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_ll_buffer_bytes(1, 1, 0, 0, &err) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_ll_buffer_bytes(INT32_MAX, INT32_MAX, INT32_MAX, 0, &err) == MOE_EP_ERR_OVERFLOW);
    CHECK(moe_ep_ll_buffer_bytes(1, 7168, 1, 1, &err) > moe_ep_ll_buffer_bytes(1, 7168, 1, 0, &err));
}

TEST(layers_one_field_at_a_time)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_layer_desc d;
    moe_ep_step_desc s;
    moe_ep_time_result r;
    moe_ep_step_result q;
    moe_ep_placement p;
    moe_ep_device_time devices[4];
    moe_ep_cost_hooks hooks;
    int32_t start[5] = {0, 64, 128, 192, 256};
    int64_t rows[512];
    double layer_s[2];
    int i;
    for (i = 0; i < 512; i++) rows[i] = 5;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.machine = &c;
    d.num_devices = 4;
#define L moe_ep_layer_time(&d, rows, &r, NULL, &err)
    BAD(d.num_devices = 0, d.num_devices = 4, L, MOE_EP_ERR_SIZE, "num_devices");
    BAD(d.num_slots = -1, d.num_slots = 0, L, MOE_EP_ERR_SIZE, "num_slots");
    BAD(d.num_nodes = -1, d.num_nodes = 0, L, MOE_EP_ERR_SIZE, "num_nodes");
    BAD(c.devices_per_node = -1, c.devices_per_node = 8, L, MOE_EP_ERR_SIZE, "machine.devices_per_node");
    BAD(c.ll_dispatch.p = 0.5, c.ll_dispatch.p = 0, L, MOE_EP_ERR_RANGE, "link.p");
    BAD(c.ll_combine.p = 0.5, c.ll_combine.p = 0, L, MOE_EP_ERR_RANGE, "link.p");
    d.high_throughput = 1;
    BAD(c.normal_dispatch.p = 0.5, c.normal_dispatch.p = 2, L, MOE_EP_ERR_RANGE, "link.p");
    BAD(c.normal_combine.p = 0.5, c.normal_combine.p = 2, L, MOE_EP_ERR_RANGE, "link.p");
    d.high_throughput = 0;
    BAD(d.mode = (moe_ep_a2a_mode)9, d.mode = MOE_EP_A2A_PAIR, L, MOE_EP_ERR_RANGE, "mode");
    BAD(d.overlap = (moe_ep_overlap)9, d.overlap = MOE_EP_OVERLAP_NONE, L, MOE_EP_ERR_RANGE, "overlap");
    BAD(d.tokens = -1, d.tokens = 0, L, MOE_EP_ERR_NEGATIVE, "tokens");
    BAD(d.tokens = INT64_MAX, d.tokens = 0, L, MOE_EP_ERR_OVERFLOW, "tokens");
    BAD(d.capacity = -1, d.capacity = 0, L, MOE_EP_ERR_NEGATIVE, "capacity");
    BAD(d.attention_s = NAN, d.attention_s = 0, L, MOE_EP_ERR_NAN, "attention_s");
    BAD(d.attention_half_s = -1, d.attention_half_s = 0, L, MOE_EP_ERR_NEGATIVE, "attention_half_s");
    BAD(d.microbatch_s = -1, d.microbatch_s = 0, L, MOE_EP_ERR_NEGATIVE, "microbatch_s");
    BAD(d.dispatch_wire = (moe_ep_wire)9, d.dispatch_wire = MOE_EP_WIRE_BF16, L, MOE_EP_ERR_RANGE, "dispatch_wire");
    BAD(d.combine_wire = (moe_ep_wire)9, d.combine_wire = MOE_EP_WIRE_BF16, L, MOE_EP_ERR_RANGE, "combine_wire");
    BAD(d.combine_extra = -1, d.combine_extra = 0, L, MOE_EP_ERR_NEGATIVE, "combine_extra");
    BAD(d.dispatch_extra = -1, d.dispatch_extra = 0, L, MOE_EP_ERR_NEGATIVE, "dispatch_extra");
    BAD(m.num_groups = 7, m.num_groups = 8, L, MOE_EP_ERR_CONFIG, "num_groups");
    BAD(rows[3] = -1, rows[3] = 5, L, MOE_EP_ERR_NEGATIVE, "slot_rows");
    memset(&hooks, 0, sizeof hooks);
    BAD(d.hooks = &hooks, d.hooks = NULL, L, MOE_EP_ERR_CONFIG, "hooks.size");
    memset(&p, 0, sizeof p);
    p.num_devices = 4;
    p.num_slots = 256;
    p.slot_start = start;
    p.num_nodes = 2; /* without device_node: one node */
    d.placement = &p;
    CHECK(L == MOE_EP_OK);
    BAD(p.num_devices = 0, p.num_devices = 4, L, MOE_EP_ERR_SIZE, "placement.num_devices");
    BAD(p.num_slots = 0, p.num_slots = 256, L, MOE_EP_ERR_SIZE, "placement.num_slots");
    BAD(p.slot_start = NULL, p.slot_start = start, L, MOE_EP_ERR_NULL, "placement.slot_start");
    BAD(start[1] = 200, start[1] = 64, L, MOE_EP_ERR_PLACEMENT, "placement.slot_start");
    BAD(start[4] = 257, start[4] = 256, L, MOE_EP_ERR_PLACEMENT, "placement.slot_start");
    BAD(start[0] = -1, start[0] = 0, L, MOE_EP_ERR_PLACEMENT, "placement.slot_start");
#undef L
    d.placement = NULL;
    BAD((void)0, (void)0, moe_ep_layer_time(NULL, rows, &r, NULL, &err), MOE_EP_ERR_NULL, "desc");
    BAD((void)0, (void)0, moe_ep_layer_time(&d, NULL, &r, NULL, &err), MOE_EP_ERR_NULL, "slot_rows");
    BAD((void)0, (void)0, moe_ep_layer_time(&d, rows, NULL, NULL, &err), MOE_EP_ERR_NULL, "out");
    CHECK(moe_ep_layer_time(&d, rows, &r, devices, NULL) == MOE_EP_OK && devices[3].rows == 320);
    memset(&s, 0, sizeof s);
    s.layer = d;
    s.num_layers = 2;
#define S moe_ep_step(&s, rows, &q, layer_s, &err)
    BAD(s.num_layers = 0, s.num_layers = 2, S, MOE_EP_ERR_SIZE, "num_layers");
    BAD(s.other_s = -1, s.other_s = 0, S, MOE_EP_ERR_NEGATIVE, "other_s");
    BAD(s.rows_per_sequence = -1, s.rows_per_sequence = 0, S, MOE_EP_ERR_SIZE, "rows_per_sequence");
    BAD(s.tokens_per_pass = NAN, s.tokens_per_pass = 0, S, MOE_EP_ERR_NAN, "tokens_per_pass");
    BAD(s.tokens_per_pass = 1e-320, s.tokens_per_pass = 0, S, MOE_EP_ERR_OVERFLOW, "tokens_per_pass");
    BAD(s.other_s = 1.7e308, s.other_s = 0, S, MOE_EP_ERR_OVERFLOW, "other_s");
    BAD(rows[511] = -1, rows[511] = 5, S, MOE_EP_ERR_NEGATIVE, "slot_rows");
#undef S
    BAD((void)0, (void)0, moe_ep_step(NULL, rows, &q, NULL, &err), MOE_EP_ERR_NULL, "desc");
    BAD((void)0, (void)0, moe_ep_step(&s, NULL, &q, NULL, &err), MOE_EP_ERR_NULL, "slot_rows");
    BAD((void)0, (void)0, moe_ep_step(&s, rows, NULL, NULL, &err), MOE_EP_ERR_NULL, "out");
    { /* a machine without any cost: no time, no throughput */
        moe_ep_machine nothing;
        memset(&nothing, 0, sizeof nothing);
        s.layer.machine = &nothing;
        CHECK(moe_ep_step(&s, rows, &q, layer_s, NULL) == MOE_EP_OK);
        CHECK(!(q.tpot_s > 0) && !(q.tokens_per_s_device > 0));
    }
}

/* Two matrices per expert instead of three. */
TEST(ungated_experts)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_gemm_work gated, plain;
    moe_ep_params_result a, b;
    int64_t rows[2] = {100, 0};
    double t = moe_ep_expert_time(&m, &c, rows, 2, NULL, NULL);
    CHECK(moe_ep_group_gemm(&m, rows, 2, 64, &gated, NULL) == MOE_EP_OK);
    CHECK(moe_ep_params(&m, &a, NULL) == MOE_EP_OK);
    m.ungated = 1;
    CHECK(moe_ep_expert_time(&m, &c, rows, 2, NULL, NULL) < t);
    CHECK(moe_ep_group_gemm(&m, rows, 2, 64, &plain, NULL) == MOE_EP_OK);
    CHECK(moe_ep_params(&m, &b, NULL) == MOE_EP_OK);
    CHECK_NEAR(plain.flops / gated.flops, 2.0 / 3.0, 1e-12, 0);
    CHECK_NEAR(plain.weight_bytes / gated.weight_bytes, 2.0 / 3.0, 1e-12, 0);
    CHECK_I64(b.expert * 3, a.expert * 2);
    CHECK(moe_ep_group_gemm(&m, NULL, 0, 0, &plain, NULL) == MOE_EP_OK && !(plain.intensity > 0));
    m.tied = 1;
    CHECK(moe_ep_params(&m, &a, NULL) == MOE_EP_OK && a.embedding * 2 == b.embedding);
}

TEST(workloads_one_field_at_a_time)
{
    moe_ep_workload w;
    uint64_t weight[8];
    int64_t counts[3] = {2, 1, 1}, tokens[4];
    int32_t ids[8];
    memset(&w, 0, sizeof w);
    w.num_experts = 8;
    w.top_k = 2;
#define W moe_ep_popularity(&w, 0, 0, 4, weight, &err)
    BAD(w.num_devices = 9, w.num_devices = 0, W, MOE_EP_ERR_SIZE, "num_devices");
    BAD(w.num_devices = -1, w.num_devices = 0, W, MOE_EP_ERR_SIZE, "num_devices");
    BAD((w.kind = MOE_EP_LOAD_BURST, w.period = -1), (w.kind = MOE_EP_LOAD_UNIFORM, w.period = 0), W, MOE_EP_ERR_SIZE,
        "period");
    BAD((w.kind = MOE_EP_LOAD_POWER_LAW, w.alpha = 1, w.x_max = 0.5), (w.kind = MOE_EP_LOAD_UNIFORM, w.x_max = 0), W,
        MOE_EP_ERR_RANGE, "x_max");
#undef W
    BAD((void)0, (void)0, moe_ep_ids_from_counts(counts, 3, -1, 2, 1, ids, &err), MOE_EP_ERR_SIZE, "num_tokens");
    BAD(counts[0] = 1, counts[0] = 2, moe_ep_ids_from_counts(counts, 3, 2, 2, 1, ids, &err), MOE_EP_ERR_INFEASIBLE,
        "counts");
    BAD(counts[1] = 2, counts[1] = 1, moe_ep_ids_from_counts(counts, 3, 2, 2, 1, ids, &err), MOE_EP_ERR_INFEASIBLE,
        "counts");
    w.kind = MOE_EP_LOAD_HOT_DEVICE; /* the only device is the hot one: everybody alike */
    w.num_devices = 1;
    w.share = 0.5;
    CHECK(moe_ep_popularity(&w, 0, 0, 4, weight, NULL) == MOE_EP_OK && weight[0] == weight[7]);
    BAD((void)0, (void)0, moe_ep_source_tokens((moe_ep_source_kind)9, 1, 4, 4, 0, 0, tokens, &err), MOE_EP_ERR_RANGE,
        "kind");
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 1, 4, 0, 0, 0, tokens, &err) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 1, -4, 4, 0, 0, tokens, &err) < 0);
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 1, 4, 4, 0, 0, NULL, &err) == MOE_EP_ERR_NULL);
    {
        moe_ep_balanced_result b;
        CHECK(moe_ep_llmservingsim_balanced(-1, 8, 2, 2, &b, &err) == MOE_EP_ERR_SIZE);
    }
    {
        moe_ep_workload_kind kind;
        CHECK(moe_ep_workload_by_name("lognormal", &kind, NULL) == MOE_EP_OK && kind == MOE_EP_LOAD_LOGNORMAL);
    }
}

/* Layers with counted traffic, each its own: a step is their sum, the step's traffic (L,D,D) and (L,D,N) in order. */
TEST(a_step_takes_the_traffic_of_each_layer)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_step_desc d;
    moe_ep_step_result step;
    moe_ep_time_result one, sum;
    int64_t rows[16] = {10, 10, 20, 20, 5, 5, 30, 30, 40, 1, 1, 1, 9, 8, 7, 6},
            traffic[32] = {5, 10, 2, 15, 5, 10, 2, 15, 5, 10, 3, 15, 5, 10, 3, 15,
                           0, 99, 0, 0, 1, 2, 3, 4, 4, 3, 2, 1, 900, 0, 0, 0},
            node_traffic[16] = {12, 14, 12, 14, 12, 14, 13, 15, 90, 9, 3, 7, 6, 4, 700, 0};
    int dedup, l;
    memset(&d, 0, sizeof d);
    d.layer.model = &m;
    d.layer.machine = &c;
    d.layer.num_devices = 4;
    d.layer.num_nodes = 2;
    d.num_layers = 2;
    for (dedup = 0; dedup < 2; dedup++) {
        memset(&sum, 0, sizeof sum);
        d.layer.mode = dedup ? MOE_EP_A2A_NODE_DEDUP : MOE_EP_A2A_RANK_DEDUP;
        d.layer.traffic = traffic;
        d.layer.node_traffic = dedup ? node_traffic : NULL;
        CHECK(moe_ep_step(&d, rows, &step, NULL, NULL) == MOE_EP_OK);
        for (l = 0; l < 2; l++) {
            moe_ep_layer_desc layer = d.layer;
            layer.traffic = traffic + 16 * l;
            layer.node_traffic = dedup ? node_traffic + 8 * l : NULL;
            CHECK(moe_ep_layer_time(&layer, rows + 8 * l, &one, NULL, NULL) == MOE_EP_OK);
            sum.dispatch_s += one.dispatch_s;
            sum.combine_s += one.combine_s;
            sum.compute_s += one.compute_s;
        }
        CHECK_NEAR(step.dispatch_s, 16 * sum.dispatch_s, 1e-12, 0); /* 32 layers of the model, 2 given */
        CHECK_NEAR(step.combine_s, 16 * sum.combine_s, 1e-12, 0);
        CHECK_NEAR(step.compute_s, 16 * sum.compute_s, 1e-12, 0);
    }
}

TEST(other_sides_of_the_cost_checks)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b(), v3 = moe_ep_model_deepseek_v3(), bad = m;
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_link link = c.ll_dispatch;
    moe_ep_memory_desc d;
    moe_ep_memory_result one, two;
    moe_ep_config config;
    moe_ep_reason reason[8];
    moe_ep_expect_desc expect;
    moe_ep_expect_result e;
    int64_t loads[3] = {1, 2, 3}, none[2] = {0, 0}, rows[1] = {4};
    int32_t device[3] = {0, 1, 2}, lo, hi, n, count, i, found = 0;
    BAD((void)0, (void)0, moe_ep_step_time(loads, 3, device, 2, &err), MOE_EP_ERR_DEVICE_ID, "device_of_expert");
    CHECK_I64(err.index, 2);
    CHECK_NEAR(moe_ep_efficiency(none, 2, &err), 1.0, 0, 0);
    CHECK(moe_ep_machine_by_name("rtx pro 6000", &c, &err) == MOE_EP_OK);
    CHECK_STR(c.name, "rtxpro6000");
    c = moe_ep_machine_h100();
    bad.math = (moe_ep_math)-1;
    CHECK(moe_ep_expert_time(&bad, &c, rows, 1, NULL, &err) == MOE_EP_ERR_RANGE);
    bad = m;
    bad.hidden = 0;
    CHECK(moe_ep_expert_time(&bad, &c, rows, 1, NULL, &err) == MOE_EP_ERR_SIZE);
    CHECK_NEAR(moe_ep_expert_time(&m, &c, NULL, 0, NULL, &err), 0.0, 0, 0);
    BAD((void)0, (void)0, moe_ep_link_time(&link, -1, 0, &err), MOE_EP_ERR_NEGATIVE, "intra_bytes");
    BAD((void)0, (void)0, moe_ep_link_time(&link, 0, NAN, &err), MOE_EP_ERR_NAN, "inter_bytes");
    BAD((void)0, (void)0, moe_ep_experts_per_device(8, 0, &lo, &hi, &n, &err), MOE_EP_ERR_SIZE, "D");
    BAD((void)0, (void)0, moe_ep_experts_per_device(8, 2, &lo, NULL, &n, &err), MOE_EP_ERR_NULL, "ceil_out");
    BAD((void)0, (void)0, moe_ep_experts_per_device(8, 2, &lo, &hi, NULL, &err), MOE_EP_ERR_NULL, "with_ceil");
    memset(&d, 0, sizeof d); /* attention and embeddings over two devices, the rest as before */
    d.model = &v3;
    d.num_devices = 8;
    CHECK(moe_ep_memory(&d, &one, NULL) == MOE_EP_OK);
    d.tensor_parallel = 2;
    CHECK(moe_ep_memory(&d, &two, NULL) == MOE_EP_OK);
    CHECK_NEAR(two.other_bytes, one.other_bytes / 2, 1e-14, 0);
    CHECK_NEAR(one.total_bytes - two.total_bytes, one.other_bytes / 2, 1e-9, 0);
    memset(&config, 0, sizeof config); /* a server that needs ep to divide: 3 of 256 leaves one */
    config.model = &v3;
    config.ep = 3;
    config.must_divide = 1;
    config.num_nodes = 3; /* and 8 routing groups over 3 nodes */
    config.memory_bytes = 80e9;
    CHECK(moe_ep_check_config(&config, reason, 8, &count, NULL, NULL) == MOE_EP_OK);
    CHECK(count <= 8);
    for (i = 0; i < count && i < 8; i++)
        found |= strstr(reason[i].text, "ep to divide") && reason[i].have > 0.5 && reason[i].have < 1.5 ? 1
                 : strstr(reason[i].text, "routing groups")                                            ? 2
                 : strstr(reason[i].text, "do not fit") && reason[i].need > 2e11                         ? 4
                                                                                                        : 0;
    CHECK_I64(found, 7);
    config.ep = 256; /* fits, divides, groups by node */
    config.num_nodes = 4;
    CHECK(moe_ep_check_config(&config, NULL, 0, &count, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(count, 0);
    v3.top_k = 257; /* said once, memory is not asked about it */
    CHECK(moe_ep_check_config(&config, reason, 8, &count, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(count, 1);
    CHECK(strstr(reason[0].text, "more experts than there are") != NULL);
    v3.top_k = 8;
    v3.hidden = 0;
    CHECK(moe_ep_check_config(&config, reason, 8, &count, NULL, &err) == MOE_EP_ERR_SIZE);
    memset(&config, 0, sizeof config);
    config.num_experts = 8;
    config.top_k = 2;
    config.ep = 4;
    config.dp = 2; /* tp not given is 1 */
    CHECK(moe_ep_check_config(&config, reason, 8, &count, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(count, 1);
    CHECK_NEAR(reason[0].need, 2, 0, 0);
    memset(&expect, 0, sizeof expect); /* nobody comes */
    expect.num_experts = expect.top_k = 4;
    expect.num_devices = 3;
    CHECK(moe_ep_expect(&expect, &e, NULL) == MOE_EP_OK);
    CHECK_NEAR(e.busiest_rows + e.busiest_active + e.active_total + e.excess, 0, 0, 0);
}

TEST(other_sides_of_the_workload_checks)
{
    moe_ep_workload w;
    moe_ep_workload_kind kind;
    int64_t counts[2] = {1, 1}, tokens[3];
    int32_t ids[8], copy[8];
    uint64_t weight[8];
    CHECK_STR(moe_ep_workload_str((moe_ep_workload_kind)-1), "unknown");
    BAD((void)0, (void)0, moe_ep_workload_by_name(NULL, &kind, &err), MOE_EP_ERR_NULL, "name");
    BAD((void)0, (void)0, moe_ep_workload_by_name("zipf", NULL, &err), MOE_EP_ERR_NULL, "kind");
    BAD((void)0, (void)0, moe_ep_ids_from_counts(NULL, 2, 1, 2, 1, ids, &err), MOE_EP_ERR_NULL, "counts");
    BAD((void)0, (void)0, moe_ep_ids_from_counts(counts, 2, 1, 2, 1, NULL, &err), MOE_EP_ERR_NULL, "ids");
    BAD((void)0, (void)0, moe_ep_ids_from_counts(counts, 0, 1, 2, 1, ids, &err), MOE_EP_ERR_SIZE, "E");
    BAD((void)0, (void)0, moe_ep_ids_from_counts(counts, 2, 1, 0, 1, ids, &err), MOE_EP_ERR_SIZE, "K");
    BAD((void)0, (void)0, moe_ep_source_tokens((moe_ep_source_kind)-1, 1, 4, 3, 0, 0, tokens, &err), MOE_EP_ERR_RANGE,
        "kind");
    BAD((void)0, (void)0, moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 1, 4, 3, 0, -1, tokens, &err),
        MOE_EP_ERR_DEVICE_ID, "empty");
    BAD((void)0, (void)0, moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 1, 4, 3, 0, 3, tokens, &err),
        MOE_EP_ERR_DEVICE_ID, "empty");
    BAD((void)0, (void)0, moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 1, 4, 1, 0, 0, tokens, &err),
        MOE_EP_ERR_INFEASIBLE, "D");
    CHECK(moe_ep_source_tokens(MOE_EP_SOURCE_EMPTY, 1, 0, 1, 0, 0, tokens, NULL) == MOE_EP_OK && tokens[0] == 0);
    memset(&w, 0, sizeof w);
    w.num_experts = 8;
    w.top_k = 2;
    w.seed = 7;
    w.num_devices = 4;
#define W moe_ep_simulate(&w, 0, 0, 4, ids, NULL, &err)
    BAD(w.kind = (moe_ep_workload_kind)-1, w.kind = MOE_EP_LOAD_UNIFORM, W, MOE_EP_ERR_RANGE, "kind");
    BAD(w.num_experts = (1 << 20) + 1, w.num_experts = 8, W, MOE_EP_ERR_SIZE, "num_experts");
    BAD((w.kind = MOE_EP_LOAD_HOT_EXPERT, w.hot = -1), (w.kind = MOE_EP_LOAD_UNIFORM, w.hot = 0), W,
        MOE_EP_ERR_EXPERT_ID, "hot");
    BAD(w.alpha = 65, w.alpha = 0, W, MOE_EP_ERR_RANGE, "alpha");
    BAD(w.x_max = 2e9, w.x_max = 0, W, MOE_EP_ERR_RANGE, "x_max");
    BAD(w.target = 1.5, w.target = 0, W, MOE_EP_ERR_RANGE, "target");
#undef W
    w.kind = MOE_EP_LOAD_HOT_EXPERT; /* everything to one expert is possible when ids may come again */
    w.share = 1.0;
    w.hot = 3;
    w.with_replacement = 1;
    CHECK(moe_ep_simulate(&w, 0, 0, 4, ids, NULL, NULL) == MOE_EP_OK && ids[0] == 3 && ids[7] == 3);
    w.top_k = 16;
    CHECK(moe_ep_popularity(&w, 0, 0, 4, weight, NULL) == MOE_EP_OK && weight[3] > 0 && weight[2] == 0);
    w.kind = MOE_EP_LOAD_HOT_DEVICE; /* two experts are enough for two choices */
    w.with_replacement = 0;
    w.top_k = 2;
    CHECK(moe_ep_simulate(&w, 0, 0, 4, ids, NULL, NULL) == MOE_EP_OK);
    CHECK(ids[0] + ids[1] == 13 && ids[6] + ids[7] == 13); /* device 3 of 4 holds 6 and 7 */
    w.kind = MOE_EP_LOAD_UNIFORM; /* one layer's routing in all */
    w.share = 0;
    CHECK(moe_ep_simulate(&w, 0, 0, 4, ids, NULL, NULL) == MOE_EP_OK);
    CHECK(moe_ep_simulate(&w, 5, 0, 4, copy, NULL, NULL) == MOE_EP_OK && memcmp(ids, copy, sizeof ids) != 0);
    w.copy_layers = 1;
    CHECK(moe_ep_simulate(&w, 5, 0, 4, copy, NULL, NULL) == MOE_EP_OK && memcmp(ids, copy, sizeof ids) == 0);
}

/* More bytes a row than a double counts: nothing where the link asks nothing for them. */
TEST(rows_of_too_many_bytes)
{
    moe_ep_link l;
    memset(&l, 0, sizeof l);
    l.alpha_s = 2e-6;
    l.intra_Bps = 1e300;
    CHECK_NEAR(moe_ep_link_time_rows(&l, 1e300, 0, 1e-300, 8, NULL), moe_ep_link_time(&l, 1e300, 0, NULL), 1e-12, 0);
    CHECK_NEAR(moe_ep_link_time_rows(&l, 1e300, 0, 1, 8, NULL), moe_ep_link_time(&l, 1e300, 0, NULL), 1e-12, 0);
}

/* Times of a table that are further apart than a double can divide. */
TEST(tables_of_absurd_times)
{
    static const double rows[2] = {1, 100}, active[1] = {1}, us[2] = {1e-200, 1e200}, falling[2] = {1e200, 1e-196};
    moe_ep_time_table t;
    moe_ep_link_row row;
    moe_ep_calibrate_desc d;
    moe_ep_calibrate_result r;
    moe_ep_machine c = moe_ep_machine_h100(), out;
    memset(&t, 0, sizeof t);
    t.num_rows = 2;
    t.num_active = 1;
    t.rows = rows;
    t.active = active;
    t.us = us;
    CHECK_NEAR(moe_ep_table_us(&t, 10, 1, NULL), 1.0, 1e-9, 0);
    t.us = falling;
    CHECK_NEAR(moe_ep_table_us(&t, 10, 1, NULL), 1e2, 1e-9, 0);
    CHECK_NEAR(moe_ep_table_us(&t, pow(10.0, 0.5), 1, NULL), 1e101, 1e-9, 0); /* a quarter of the way */
    CHECK_NEAR(moe_ep_table_us(&t, 100, 1, NULL), 1e-196, 1e-9, 0);
    memset(&row, 0, sizeof row);
    memset(&d, 0, sizeof d);
    row.phase = (moe_ep_phase)-1;
    row.seconds = 1e-5;
    d.start = &c;
    d.links = &row;
    d.num_links = 1;
    CHECK(moe_ep_calibrate(&d, &out, &r, NULL, NULL, NULL, &err) == MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "links");
}

/* The published config.json of every model: layers, those in front without experts, experts, chosen, groups, chosen
 * groups, shared experts, hidden, inner, inner of a shared expert, inner of the dense layers, vocabulary; heads, query
 * rank (0 = none), and rank, rope part of the latent cache (0 = none) or heads and size of keys and values. */
typedef struct published_model {
    const char *name;
    int32_t layers, dense, experts, top_k, groups, top_groups, shared, hidden, inter, shared_inter, dense_inter, vocab;
    int64_t heads, q_rank, latent, rope, kv_heads, head;
    moe_ep_math math;
    double weight, other, in;
} published_model;

static const published_model published[15] = {
    /* DeepSeek-V3: heads of 128 + 64 for queries, 128 for values; one byte per weight and activation */
    {"deepseek-v3", 61, 3, 256, 8, 8, 4, 1, 7168, 2048, 2048, 18432, 129280, 128, 1536, 512, 64, 0, 128,
     MOE_EP_MATH_FP8, 1, 1, 1},
    {"deepseek-r1", 61, 3, 256, 8, 8, 4, 1, 7168, 2048, 2048, 18432, 129280, 128, 1536, 512, 64, 0, 128,
     MOE_EP_MATH_FP8, 1, 1, 1},
    {"deepseek-v3.2", 61, 3, 256, 8, 8, 4, 1, 7168, 2048, 2048, 18432, 129280, 128, 1536, 512, 64, 0, 128,
     MOE_EP_MATH_FP8, 1, 1, 1},
    {"deepseek-v2", 60, 1, 160, 6, 8, 3, 2, 5120, 1536, 1536, 12288, 102400, 128, 1536, 512, 64, 0, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    {"deepseek-v2-lite", 27, 1, 64, 6, 1, 1, 2, 2048, 1408, 1408, 10944, 102400, 16, 0, 512, 64, 0, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    {"kimi-k2", 61, 1, 384, 8, 1, 1, 1, 7168, 2048, 2048, 18432, 163840, 64, 1536, 512, 64, 0, 128,
     MOE_EP_MATH_FP8, 1, 1, 1},
    {"qwen3-235b-a22b", 94, 0, 128, 8, 1, 1, 0, 4096, 1536, 0, 0, 151936, 64, 0, 0, 0, 4, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    {"qwen3-30b-a3b", 48, 0, 128, 8, 1, 1, 0, 2048, 768, 0, 0, 151936, 32, 0, 0, 0, 4, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    {"qwen1.5-moe-a2.7b", 24, 0, 60, 4, 1, 1, 1, 2048, 1408, 5632, 0, 151936, 16, 0, 0, 0, 16, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    {"mixtral-8x7b", 32, 0, 8, 2, 1, 1, 0, 4096, 14336, 0, 0, 32000, 32, 0, 0, 0, 8, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    {"mixtral-8x22b", 56, 0, 8, 2, 1, 1, 0, 6144, 16384, 0, 0, 32768, 48, 0, 0, 0, 8, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    /* MXFP4: 4 bits and an 8-bit scale per 32 */
    {"gpt-oss-120b", 36, 0, 128, 4, 1, 1, 0, 2880, 2880, 0, 0, 201088, 64, 0, 0, 0, 8, 64,
     MOE_EP_MATH_BF16, 4.25 / 8, 2, 2},
    {"gpt-oss-20b", 24, 0, 32, 4, 1, 1, 0, 2880, 2880, 0, 0, 201088, 64, 0, 0, 0, 8, 64,
     MOE_EP_MATH_BF16, 4.25 / 8, 2, 2},
    {"olmoe-1b-7b", 16, 0, 64, 8, 1, 1, 0, 2048, 1024, 0, 0, 50304, 16, 0, 0, 0, 16, 128,
     MOE_EP_MATH_BF16, 2, 2, 2},
    {"phi-tiny-moe", 32, 0, 16, 2, 1, 1, 0, 4096, 448, 0, 0, 32064, 16, 0, 0, 0, 4, 128,
     MOE_EP_MATH_BF16, 2, 2, 2}};

/* Weights of the projections: latent attention (DeepSeek-V2) or grouped queries. */
static int64_t attention_of(const published_model *p)
{
    int64_t H = p->hidden, nope = 128, query = p->heads * (nope + p->rope);
    if (p->latent > 0)
        return (p->q_rank > 0 ? H * p->q_rank + p->q_rank * query : H * query) + H * (p->latent + p->rope) +
               p->latent * p->heads * (nope + p->head) + p->heads * p->head * H;
    return 2 * H * p->heads * p->head + 2 * H * p->kv_heads * p->head;
}

/* What attends to a part of the context: an indexer of 64 heads of 128 in every layer (index_topk 2048; queries from
 * the rank of 1536, one key and 64 weights from the hidden state), or a sliding window of 128 in every second layer. */
static void is_windowed(const moe_ep_model *m, const published_model *p)
{
    int sparse = strcmp(p->name, "deepseek-v3.2") == 0, slides = strncmp(p->name, "gpt-oss", 7) == 0;
    CHECK_I64(m->attention_window, sparse ? 2048 : slides ? 128 : 0);
    CHECK_I64(m->window_layers, sparse ? p->layers : slides ? p->layers / 2 : 0);
    CHECK_I64(m->index_flops, sparse ? 2 * 64 * 128 : 0);
    CHECK_NEAR(m->index_bytes, sparse ? 128 + 4 : 0, 0, 0); /* FP8 and a scale */
    CHECK_I64(m->attention_params,
              attention_of(p) + (sparse ? p->q_rank * 64 * 128 + (int64_t)p->hidden * (128 + 64) : 0));
}

static void is_published(const moe_ep_model *m, const published_model *p)
{
    CHECK_STR(m->name, p->name);
    CHECK_I64(m->num_layers, p->layers);
    CHECK_I64(m->num_moe_layers, p->layers - p->dense);
    CHECK_I64(m->num_experts, p->experts);
    CHECK_I64(m->top_k, p->top_k);
    CHECK_I64(m->num_groups, p->groups);
    CHECK_I64(m->top_groups, p->top_groups);
    CHECK_I64(m->num_shared, p->shared);
    CHECK_I64(m->hidden, p->hidden);
    CHECK_I64(m->inter, p->inter);
    CHECK_I64(m->shared_inter, p->shared_inter);
    CHECK_I64(m->dense_inter, p->dense_inter);
    CHECK_I64(m->ungated, 0);
    CHECK_I64(m->vocab, p->vocab);
    CHECK_I64(m->tied, 0);
    is_windowed(m, p);
    CHECK_I64(m->kv_elems, p->latent > 0 ? p->latent + p->rope : 2 * p->kv_heads * p->head);
    CHECK_I64(m->attention_flops, p->heads * (p->latent > 0 ? 2 * (2 * p->latent + p->rope) : 4 * p->head));
    CHECK_I64(m->math, p->math);
    CHECK_NEAR(m->weight_bytes, p->weight, 0, 0);
    CHECK_NEAR(m->other_weight_bytes, p->other, 0, 0);
    CHECK_NEAR(m->in_bytes, p->in, 0, 0);
    CHECK_NEAR(m->out_bytes, 2, 0, 0);
    CHECK_NEAR(m->kv_bytes, 2, 0, 0);
    CHECK_NEAR(m->shared_weight_bytes, 0, 0, 0);
    CHECK_NEAR(m->embedding_weight_bytes, 2, 0, 0); /* bf16 in the FP8 checkpoints, too */
    CHECK(strstr(m->source, "20") != NULL); /* the year it was published */
}

TEST(every_field_of_every_model)
{
    moe_ep_model m;
    int i;
    for (i = 0; i < 15; i++) {
        CHECK_STR(moe_ep_model_preset_name(i), published[i].name);
        CHECK(moe_ep_model_by_name(published[i].name, &m, NULL) == MOE_EP_OK);
        is_published(&m, &published[i]);
        STOP_IF_FAILED("%s", published[i].name);
    }
    CHECK(moe_ep_model_preset_name(15) == NULL);
    m = moe_ep_model_deepseek_v3(), is_published(&m, &published[0]);
    m = moe_ep_model_deepseek_v2(), is_published(&m, &published[3]);
    m = moe_ep_model_deepseek_v2_lite(), is_published(&m, &published[4]);
    m = moe_ep_model_kimi_k2(), is_published(&m, &published[5]);
    m = moe_ep_model_qwen3_235b_a22b(), is_published(&m, &published[6]);
    m = moe_ep_model_qwen3_30b_a3b(), is_published(&m, &published[7]);
    m = moe_ep_model_qwen1_5_moe_a2_7b(), is_published(&m, &published[8]);
    m = moe_ep_model_mixtral_8x7b(), is_published(&m, &published[9]);
    m = moe_ep_model_mixtral_8x22b(), is_published(&m, &published[10]);
    m = moe_ep_model_gpt_oss_120b(), is_published(&m, &published[11]);
    m = moe_ep_model_gpt_oss_20b(), is_published(&m, &published[12]);
    m = moe_ep_model_olmoe_1b_7b(), is_published(&m, &published[13]);
    m = moe_ep_model_phi_tiny_moe(), is_published(&m, &published[14]);
}

/* Data sheets and fits, in the units they are quoted in: devices in reach of the fast links; MiB that nvidia-smi prints
 * ("NVIDIA H800 ... 3MiB / 81559MiB"); TB/s; TFLOP/s in bf16, fp8, fp4; launch us, shares of bandwidth and peak,
 * exponent, tile of the products; then us, GB/s inside and between nodes, exponent, whether the latency is in the norm:
 * low-latency out and back, normal out and back. */
static const struct published_machine {
    const char *name;
    int32_t near;
    double MiB, TBps, tflops[3], gemm[4];
    int32_t tile;
    double link[4][5];
} machines[7] = {
    /* aiconfigurator h100_sxm; InferSim's H800 products; aiconfigurator's DeepEP tables */
    {"h100", 8, 81559, 3.35, {989, 1979, 989}, {10, 0.88, 0.62, 2}, 64,
     {{22, 250, 48, 0, 0}, {22, 250, 48, 0, 0}, {36, 290, 46, 2, 0}, {54, 290, 46, 2, 0}}},
    /* InferSim's H800 products; DeepEP's published tables: 160 GB/s NVLink, 48 of a 50 GB/s NIC */
    {"h800", 8, 81559, 3.35, {989, 1979, 989}, {10, 0.88, 0.62, 2}, 64,
     {{38, 160, 48, 0, 0}, {38, 160, 48, 0, 0}, {36, 145, 44, 0, 0}, {54, 145, 44, 0, 0}}},
    /* InferSim's hardware file and H20 products; links of H100 */
    {"h20", 8, 97871, 4.0, {148, 296, 148}, {8, 0.80, 0.80, 6}, 64,
     {{22, 250, 48, 0, 0}, {22, 250, 48, 0, 0}, {36, 290, 46, 2, 0}, {54, 290, 46, 2, 0}}},
    /* aiconfigurator h200_sxm: H100 with more memory at 4.8 TB/s */
    {"h200", 8, 143771, 4.8, {989, 1979, 989}, {10, 0.88, 0.62, 2}, 64,
     {{22, 250, 48, 0, 0}, {22, 250, 48, 0, 0}, {36, 290, 46, 2, 0}, {54, 290, 46, 2, 0}}},
    /* Blackwell's data sheet: 7.7 TB/s in an HGX B200, 8 in a GB200; aiconfigurator's NVLink tables, 400 Gb/s NIC */
    {"b200", 8, 183359, 7.7, {2250, 4500, 9000}, {10, 0.88, 0.62, 2}, 128,
     {{12, 460, 48, 0, 0}, {12, 460, 48, 0, 0}, {36, 460, 46, 2, 0}, {54, 460, 46, 2, 0}}},
    /* aiconfigurator gb200; TensorRT-LLM blog 18, one-sided: the same kernels for small and large batches */
    {"gb200", 72, 189471, 8.0, {2500, 5000, 10000}, {10, 0.88, 0.62, 2}, 128,
     {{17, 695, 48, 0, 0}, {31.5, 635, 48, 1.5, 1}, {17, 695, 48, 0, 0}, {31.5, 635, 48, 1.5, 1}}},
    /* LLMServingSim's cluster file: 1597 GB/s, one link of 16 GB/s and 20000 ns */
    {"rtxpro6000", 8, 97887, 1.597, {500, 1000, 2000}, {10, 0.88, 0.62, 2}, 64,
     {{20, 16, 16, 0, 0}, {20, 16, 16, 0, 0}, {20, 16, 16, 0, 0}, {20, 16, 16, 0, 0}}}};

static void is_machine(const moe_ep_machine *c, int i)
{
    const moe_ep_link *link[4];
    int k;
    link[0] = &c->ll_dispatch, link[1] = &c->ll_combine, link[2] = &c->normal_dispatch, link[3] = &c->normal_combine;
    CHECK_STR(c->name, machines[i].name);
    CHECK_I64(c->devices_per_node, machines[i].near);
    CHECK_NEAR(c->memory_bytes, machines[i].MiB * 1024 * 1024, 1e-15, 0);
    CHECK_NEAR(c->memory_Bps, machines[i].TBps * 1e12, 1e-15, 0);
    for (k = 0; k < 3; k++) CHECK_NEAR(c->flops[k], machines[i].tflops[k] * 1e12, 1e-15, 0);
    CHECK_NEAR(c->gemm.t0_s, machines[i].gemm[0] * 1e-6, 1e-15, 0);
    CHECK_NEAR(c->gemm.mem_eff, machines[i].gemm[1], 0, 0);
    CHECK_NEAR(c->gemm.flop_eff, machines[i].gemm[2], 0, 0);
    CHECK_NEAR(c->gemm.p, machines[i].gemm[3], 0, 0);
    CHECK_I64(c->gemm.tile, machines[i].tile);
    /* products alone, by latency and bandwidth alone: none has the terms of a whole kernel */
    CHECK_NEAR(c->gemm.expert_s + c->gemm.row_byte_s + c->gemm.t0_p + c->gemm.other_byte_s, 0, 0, 0);
    CHECK_I64(c->gemm.other_reached, 0);
    CHECK(c->gemm.other_multiplied == 0 && c->gemm.small_tokens == 0);
    CHECK_NEAR(c->gemm.small_byte + c->gemm.small_t0, 0, 0, 0);
    for (k = 0; k < 4; k++) {
        const double *want = machines[i].link[k];
        CHECK_NEAR(link[k]->alpha_s, want[0] * 1e-6, 1e-15, 0);
        CHECK_NEAR(link[k]->intra_Bps, want[1] * 1e9, 1e-15, 0);
        CHECK_NEAR(link[k]->inter_Bps, want[2] * 1e9, 1e-15, 0);
        CHECK_NEAR(link[k]->p, want[3], 0, 0);
        CHECK_I64(link[k]->alpha_in_norm, want[4]);
        CHECK_NEAR(link[k]->row_s + link[k]->peer_s + link[k]->alpha_p + link[k]->row_byte_s, 0, 0, 0);
        CHECK_NEAR(link[k]->pair_Bps + link[k]->crowd_s + link[k]->short_s + link[k]->short_Bps, 0, 0, 0);
    }
    CHECK(strstr(c->source, "fit") || strstr(c->source, "cluster file")); /* says where the numbers are from */
}

TEST(every_field_of_every_machine)
{
    moe_ep_machine c;
    int i;
    for (i = 0; i < 7; i++) {
        CHECK_STR(moe_ep_machine_preset_name(i), machines[i].name);
        CHECK(moe_ep_machine_by_name(machines[i].name, &c, NULL) == MOE_EP_OK);
        is_machine(&c, i);
        STOP_IF_FAILED("%s", machines[i].name);
    }
    CHECK(moe_ep_machine_preset_name(7) == NULL);
    c = moe_ep_machine_h100(), is_machine(&c, 0);
    c = moe_ep_machine_h800(), is_machine(&c, 1);
    c = moe_ep_machine_h20(), is_machine(&c, 2);
    c = moe_ep_machine_h200(), is_machine(&c, 3);
    c = moe_ep_machine_b200(), is_machine(&c, 4);
    c = moe_ep_machine_gb200(), is_machine(&c, 5);
    c = moe_ep_machine_rtxpro6000(), is_machine(&c, 6);
}

/* Which preset a name means: whatever the case and separators, the longest one that it begins with. */
TEST(names_of_presets)
{
    static const struct { const char *said, *meant; } model[] = {
        {"DeepSeek V3", "deepseek-v3"}, {"deepseek_v3", "deepseek-v3"}, {"deepseekv3", "deepseek-v3"},
        {"DEEPSEEK.V3", "deepseek-v3"}, {"--deepseek--v3--", "deepseek-v3"}, {"deepseek-v3-0324", "deepseek-v3"},
        {"deepseek-v3.1", "deepseek-v3"}, {"deepseek-v3x", "deepseek-v3"}, {"deepseek-v30", NULL},
        {"deepseek-v39", NULL}, {"deepseek-v31", NULL}, {"deepseek-v", NULL}, {"deepseek", NULL}, {"v3", NULL},
        {"my-deepseek-v3", NULL}, {"deepseek-ai/DeepSeek-R1", "deepseek-r1"}, {"a/b/DeepSeek-V2", "deepseek-v2"},
        {"deepseek-v3/", NULL}, {"deepseek-v3/x", NULL}, {"deepseek-v2-li", "deepseek-v2"},
        {"DeepSeek-V2-Lite-Chat", "deepseek-v2-lite"}, {"QWEN3-235B-A22B-FP8", "qwen3-235b-a22b"},
        {"qwen3 30b a3b", "qwen3-30b-a3b"}, {"Qwen15-MoE-A27B", "qwen1.5-moe-a2.7b"},
        {"mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"}, {"mixtral-8x22b", "mixtral-8x22b"},
        {"mixtral-8x2", NULL}, {"GPT-OSS-20B", "gpt-oss-20b"}, {"gpt-oss-120b", "gpt-oss-120b"},
        {"Phi-tiny-MoE-instruct", "phi-tiny-moe"}, {"kimi-k2", "kimi-k2"}, {"kimi-k2-0905", "kimi-k2"},
        {"kimi-k25", NULL}, {"OLMoE-1B-7B-0924", "olmoe-1b-7b"}, {"", NULL}, {"-", NULL}, {"/", NULL}};
    static const struct { const char *said, *meant; } machine[] = {
        {"NVIDIA/H100", "h100"}, {"H100 80GB HBM3", "h100"}, {"h1000", NULL}, {"h10", NULL}, {"H20-3e", "h20"},
        {"h200", "h200"}, {"h2001", NULL}, {"GB200 NVL72", "gb200"}, {"b200", "b200"}, {"B.2.0.0", "b200"},
        {"RTX PRO 6000", "rtxpro6000"}, {"rtx-pro-60000", NULL}, {"a100", NULL}};
    size_t i;
    for (i = 0; i < sizeof model / sizeof model[0]; i++) {
        moe_ep_model m;
        m.name = NULL;
        CHECK_I64(moe_ep_model_by_name(model[i].said, &m, &err), model[i].meant ? MOE_EP_OK : MOE_EP_ERR_CONFIG);
        if (model[i].meant) CHECK_STR(m.name, model[i].meant);
        else CHECK(m.name == NULL);
        STOP_IF_FAILED("%s", model[i].said);
    }
    for (i = 0; i < sizeof machine / sizeof machine[0]; i++) {
        moe_ep_machine c;
        c.name = NULL;
        CHECK_I64(moe_ep_machine_by_name(machine[i].said, &c, &err), machine[i].meant ? MOE_EP_OK : MOE_EP_ERR_CONFIG);
        if (machine[i].meant) CHECK_STR(c.name, machine[i].meant);
        else CHECK(c.name == NULL);
        STOP_IF_FAILED("%s", machine[i].said);
    }
}

/* What a checkpoint's name says of its numbers.  Kimi-K2.5 and K2.6 ship routed experts of 4 bits with a bf16 scale for
 * each 32; self_attn, shared_experts, layer 0 and lm_head are in the ignore list of their config.json.  NVIDIA's
 * hf_quant_config.json of DeepSeek-V3-0324-NVFP4 leaves out self_attn, mlp.gate, embed_tokens and lm_head. */
TEST(formats_in_names)
{
    static const struct {
        const char *said;
        moe_ep_math math;
        double weight, other, in, shared;
    } name[] = {{"deepseek-v3", MOE_EP_MATH_FP8, 1, 1, 1, 0},
                {"unsloth/DeepSeek-V3-0324-BF16", MOE_EP_MATH_BF16, 2, 2, 2, 0},
                {"Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", MOE_EP_MATH_FP8, 1, 1, 1, 0},
                {"qwen3-30b-a3b_w8a8", MOE_EP_MATH_FP8, 1, 1, 1, 0},
                {"Qwen3-30B-A3B-GPTQ-Int8", MOE_EP_MATH_FP8, 1, 1, 1, 0},
                {"Qwen3-30B-A3B-GPTQ-Int4", MOE_EP_MATH_BF16, (4 + (16 + 4) / 128.) / 8, 2, 2, 0},
                {"TheBloke/Mixtral-8x7B-v0.1-AWQ", MOE_EP_MATH_BF16, (4 + 20 / 128.) / 8, 2, 2, 0},
                {"RedHatAI/Qwen3-30B-A3B-quantized.w4a16", MOE_EP_MATH_BF16, (4 + 16 / 128.) / 8, 2, 2, 0},
                {"nvidia/DeepSeek-R1-FP4", MOE_EP_MATH_FP4, 4.5 / 8, 2, 4.5 / 8, 0},
                {"nvidia/DeepSeek-V3-0324-NVFP4", MOE_EP_MATH_FP4, 4.5 / 8, 2, 4.5 / 8, 0},
                {"nvidia/DeepSeek-R1-FP4-v2", MOE_EP_MATH_FP4, 4.5 / 8, 1, 4.5 / 8, 0},
                {"DeepSeek-R1-0528-NVFP4-v2", MOE_EP_MATH_FP4, 4.5 / 8, 1, 4.5 / 8, 0},
                {"deepseek-v3-nvfp4-v2", MOE_EP_MATH_FP4, 4.5 / 8, 2, 4.5 / 8, 0},
                {"deepseek-r1-mxfp4", MOE_EP_MATH_BF16, 4.25 / 8, 1, 2, 0},
                {"moonshotai/Kimi-K2-Thinking", MOE_EP_MATH_BF16, 4.5 / 8, 2, 2, 2},
                {"moonshotai/Kimi-K2.5", MOE_EP_MATH_BF16, 4.5 / 8, 2, 2, 2},
                {"kimi_k2.6", MOE_EP_MATH_BF16, 4.5 / 8, 2, 2, 2},
                {"moonshotai/Kimi-K2.7-Code", MOE_EP_MATH_BF16, 4.5 / 8, 2, 2, 2},
                {"nvidia/Kimi-K2.5-NVFP4", MOE_EP_MATH_FP4, 4.5 / 8, 2, 4.5 / 8, 2},
                {"unsloth/Kimi-K2-Thinking-BF16", MOE_EP_MATH_BF16, 2, 2, 2, 0},
                {"moonshotai/Kimi-K2-Instruct-0905", MOE_EP_MATH_FP8, 1, 1, 1, 0},
                {"Qwen3-30B-A3B-Thinking-2507", MOE_EP_MATH_BF16, 2, 2, 2, 0},
                {"qwen3-30b-a3b-5", MOE_EP_MATH_BF16, 2, 2, 2, 0},
                {"fp8/qwen3-30b-a3b", MOE_EP_MATH_BF16, 2, 2, 2, 0},
                {"qwen3-30b-a3b-fp8x", MOE_EP_MATH_BF16, 2, 2, 2, 0},
                {"qwen3-30b-a3b-xfp8-fp", MOE_EP_MATH_BF16, 2, 2, 2, 0}};
    moe_ep_model m;
    size_t i;
    for (i = 0; i < sizeof name / sizeof name[0]; i++) {
        CHECK_I64(moe_ep_model_by_name(name[i].said, &m, &err), MOE_EP_OK);
        CHECK_I64(m.math, name[i].math);
        CHECK_NEAR(m.weight_bytes, name[i].weight, 0, 0);
        CHECK_NEAR(m.other_weight_bytes, name[i].other, 0, 0);
        CHECK_NEAR(m.in_bytes, name[i].in, 0, 0);
        CHECK_NEAR(m.shared_weight_bytes, name[i].shared, 0, 0);
        CHECK_NEAR(m.embedding_weight_bytes, 2, 0, 0);
        STOP_IF_FAILED("%s", name[i].said);
    }
    m.name = NULL;
    CHECK_I64(moe_ep_model_by_name("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", &m, &err), MOE_EP_ERR_CONFIG);
    CHECK(strstr(err.what, "distilled") != NULL && m.name == NULL);
    CHECK_I64(moe_ep_model_by_name("deepseek-r1-distilled", &m, &err), MOE_EP_OK);
}

/* 61 layers of attention, 3 dense ones, two embeddings of 129280 x 7168; Kimi-K2.5's 60 shared experts of 3 x 7168 x
 * 2048 in bf16, of 4.5 bits where no more is said. */
TEST(memory_of_checkpoints)
{
    moe_ep_memory_desc d;
    moe_ep_memory_result r;
    moe_ep_model m = moe_ep_model_deepseek_v3();
    memset(&d, 0, sizeof d);
    d.model = &m, d.num_devices = 8;
    CHECK(moe_ep_memory(&d, &r, &err) == MOE_EP_OK);
    CHECK_NEAR(r.other_bytes, 16309223424., 0, 0);
    CHECK_NEAR(r.other_bytes - 3706716160., 61 * 187105280. + 3 * 3 * 7168. * 18432, 0, 0);
    m.embedding_weight_bytes = 0; /* as the rest, 1 */
    CHECK(moe_ep_memory(&d, &r, &err) == MOE_EP_OK);
    CHECK_NEAR(r.other_bytes, 16309223424. - 3706716160. / 2, 0, 0);
    CHECK(moe_ep_model_by_name("moonshotai/Kimi-K2.5", &m, &err) == MOE_EP_OK);
    CHECK(moe_ep_memory(&d, &r, &err) == MOE_EP_OK);
    CHECK_NEAR(r.shared_bytes, 2 * 60 * 44040192., 0, 0);
    CHECK_NEAR(r.routed_bytes, 48 * 60 * 44040192. * 4.5 / 8, 0, 0);
    m.shared_weight_bytes = 0;
    CHECK(moe_ep_memory(&d, &r, &err) == MOE_EP_OK);
    CHECK_NEAR(r.shared_bytes, 60 * 44040192. * 4.5 / 8, 0, 0);
}

/* The constants that the presets leave at 0, and counts beyond a number. */
TEST(further_fields_one_at_a_time)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h100();
    moe_ep_link l = c.ll_dispatch;
    moe_ep_gemm_work w;
    moe_ep_params_result r;
    int64_t rows[2] = {1, 2};
#define X moe_ep_expert_time(&m, &c, rows, 2, NULL, &err)
    BAD(c.gemm.expert_s = -1, c.gemm.expert_s = 0, X, MOE_EP_ERR_NEGATIVE, "machine.gemm.expert_s");
    BAD(c.gemm.row_byte_s = NAN, c.gemm.row_byte_s = 0, X, MOE_EP_ERR_NAN, "machine.gemm.row_byte_s");
    BAD(c.gemm.other_byte_s = -1, c.gemm.other_byte_s = 0, X, MOE_EP_ERR_NEGATIVE, "machine.gemm.other_byte_s");
    BAD(c.gemm.small_byte = -1, c.gemm.small_byte = 0, X, MOE_EP_ERR_NEGATIVE, "machine.gemm.small_byte");
    BAD(c.gemm.small_t0 = NAN, c.gemm.small_t0 = 0, X, MOE_EP_ERR_NAN, "machine.gemm.small_t0");
    BAD(c.gemm.t0_p = 0.2, c.gemm.t0_p = 0.25, X, MOE_EP_ERR_RANGE, "machine.gemm.t0_p");
    BAD(c.gemm.t0_p = -1, c.gemm.t0_p = 0.25, X, MOE_EP_ERR_NEGATIVE, "machine.gemm.t0_p");
    BAD(c.gemm.p = 0.99, c.gemm.p = 1, X, MOE_EP_ERR_RANGE, "machine.gemm.p");
    CHECK(X > 0);
#undef X
    BAD(m.hidden = 0, m.hidden = 7168, moe_ep_group_gemm(&m, rows, 2, 0, &w, &err), MOE_EP_ERR_SIZE, "model.hidden");
#define X moe_ep_link_time_rows(&l, 1, 1, 1, 1, &err)
    BAD(l.row_s = -1, l.row_s = 0, X, MOE_EP_ERR_NEGATIVE, "link.row_s");
    BAD(l.peer_s = NAN, l.peer_s = 0, X, MOE_EP_ERR_NAN, "link.peer_s");
    BAD(l.alpha_p = 0.2, l.alpha_p = 0.25, X, MOE_EP_ERR_RANGE, "link.alpha_p");
    BAD(l.row_byte_s = -1, l.row_byte_s = 0, X, MOE_EP_ERR_NEGATIVE, "link.row_byte_s");
    BAD(l.pair_Bps = -1, l.pair_Bps = 0, X, MOE_EP_ERR_NEGATIVE, "link.pair_Bps");
    BAD(l.crowd_s = INFINITY, l.crowd_s = 0, X, MOE_EP_ERR_NAN, "link.crowd_s");
    BAD(l.short_s = -1, l.short_s = 0, X, MOE_EP_ERR_NEGATIVE, "link.short_s");
    BAD(l.short_Bps = -1, l.short_Bps = 0, X, MOE_EP_ERR_NEGATIVE, "link.short_Bps");
    BAD(l.p = 0.99, l.p = 1, X, MOE_EP_ERR_RANGE, "link.p");
    CHECK(X > 0);
#undef X
    BAD((void)0, (void)0, moe_ep_link_time_rows(&l, 1, 1, -1, 1, &err), MOE_EP_ERR_NEGATIVE, "rows");
    BAD((void)0, (void)0, moe_ep_link_time_rows(&l, 1, 1, 1, NAN, &err), MOE_EP_ERR_NAN, "peers");
    BAD((void)0, (void)0, moe_ep_link_time_rows(NULL, 1, 1, 1, 1, &err), MOE_EP_ERR_NULL, "link");
    memset(&m, 0, sizeof m);
    m.num_moe_layers = m.num_experts = m.top_k = m.hidden = m.inter = 1;
#define X moe_ep_params(&m, &r, &err)
    BAD((m.hidden = m.num_shared = m.shared_inter = INT32_MAX), (m.hidden = 1, m.num_shared = 0), X,
        MOE_EP_ERR_OVERFLOW, "model"); /* 2^31 * 2^62 */
    BAD((m.num_shared = m.num_moe_layers = m.shared_inter = INT32_MAX), (m.num_shared = 0, m.num_moe_layers = 1), X,
        MOE_EP_ERR_OVERFLOW, "model"); /* 2^62 * 2^31 */
    BAD((m.attention_params = INT64_MAX / 4, m.num_layers = 8), (m.attention_params = 0, m.num_layers = 0), X,
        MOE_EP_ERR_OVERFLOW, "model");
    BAD((m.ungated = 1, m.hidden = m.inter = 1 << 30, m.num_experts = 8), m.num_experts = 1, X, MOE_EP_ERR_OVERFLOW,
        "model"); /* an expert of 2^61 */
    BAD(m.num_moe_layers = 8, (m.num_moe_layers = m.hidden = m.inter = 1), X, MOE_EP_ERR_OVERFLOW, "model");
    BAD((m.hidden = m.dense_inter = INT32_MAX, m.num_layers = 9), (m.hidden = 1, m.dense_inter = 0), X,
        MOE_EP_ERR_OVERFLOW, "model");
    BAD(m.hidden = m.vocab = INT32_MAX, m.hidden = 1, X, MOE_EP_ERR_OVERFLOW, "model");
    CHECK(X == MOE_EP_OK);
    CHECK_I64(r.embedding, 2 * (int64_t)INT32_MAX);
#undef X
}

/* What an earlier call left in err is gone after one that succeeds. */
TEST(success_clears_the_error)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b(), found;
    moe_ep_machine c = moe_ep_machine_h100(), machine;
    moe_ep_workload w;
    moe_ep_workload_kind kind;
    moe_ep_params_result p;
    moe_ep_gemm_work work;
    moe_ep_payback_desc pay;
    moe_ep_payback_result paid;
    moe_ep_balanced_result even;
    moe_ep_stages stages = {1, 1, 1, 1, 1};
    int64_t rows[8] = {1, 2, 3, 4, 5, 6, 7, 8}, tokens[2], counts[2] = {2, 2};
    double loads[2] = {1, 2};
    uint64_t weight[8];
    int32_t ids[16], lo, hi, n;
    memset(&w, 0, sizeof w);
    w.num_experts = 8;
    w.top_k = 2;
    memset(&pay, 0, sizeof pay);
    pay.after_s = 1;
    CLEARS(moe_ep_model_by_name("kimi-k2", &found, &err));
    CLEARS(moe_ep_machine_by_name("h20", &machine, &err));
    CLEARS(moe_ep_params(&m, &p, &err));
    CLEARS(moe_ep_step_time(rows, 8, NULL, 2, &err));
    CLEARS(moe_ep_efficiency(rows, 8, &err));
    CLEARS(moe_ep_efficiency_d(loads, 2, &err));
    CLEARS(moe_ep_expert_time(&m, &c, rows, 8, NULL, &err));
    CLEARS(moe_ep_group_gemm(&m, rows, 8, 0, &work, &err));
    CLEARS(moe_ep_row_bytes(MOE_EP_WIRE_BF16, 8, 0, &err));
    CLEARS(moe_ep_comm_time(1, 1, 1, &err));
    CLEARS(moe_ep_link_time(&c.ll_combine, 1, 1, &err));
    CLEARS(moe_ep_compose(MOE_EP_OVERLAP_NONE, &stages, NULL, 0, &err));
    CLEARS(moe_ep_ll_buffer_bytes(1, 1, 1, 0, &err));
    CLEARS(moe_ep_experts_per_device(8, 2, &lo, &hi, &n, &err));
    CLEARS(moe_ep_payback(&pay, &paid, &err));
    CLEARS(moe_ep_workload_by_name("zipf", &kind, &err));
    CLEARS(moe_ep_popularity(&w, 0, 0, 0, weight, &err));
    CLEARS(moe_ep_simulate(&w, 0, 0, 8, ids, NULL, &err));
    CLEARS(moe_ep_ids_from_counts(counts, 2, 2, 2, 1, ids, &err));
    CLEARS(moe_ep_source_tokens(MOE_EP_SOURCE_EVEN, 1, 4, 2, 0, 0, tokens, &err));
    CLEARS(moe_ep_llmservingsim_balanced(4, 8, 2, 2, &even, &err));
    CLEARS(moe_ep_attention_time(&m, &c, 1, 1, &err));
}

/* Errors in the arrays of all layers of a step name the place among all layers. */
TEST(places_in_a_step)
{
    moe_ep_model model = moe_ep_model_mixtral_8x7b();
    moe_ep_machine h100 = moe_ep_machine_h100();
    int64_t rows[3 * 8], traffic[3 * 16], nodes[3 * 8];
    moe_ep_step_desc d;
    moe_ep_step_result r;
    memset(&d, 0, sizeof d);
    d.layer.model = &model;
    d.layer.machine = &h100;
    d.layer.num_devices = 4;
    d.layer.num_nodes = 2;
    d.layer.mode = MOE_EP_A2A_NODE_DEDUP;
    d.num_layers = 3;
    for (int i = 0; i < 24; i++) rows[i] = nodes[i] = 1;
    for (int i = 0; i < 48; i++) traffic[i] = 1;
    d.layer.traffic = traffic;
    d.layer.node_traffic = nodes;
    CHECK_I64(moe_ep_step(&d, rows, &r, NULL, &err), MOE_EP_OK);
    for (int layer = 0; layer < 3; layer++) {
        rows[layer * 8 + 5] = -1;
        CHECK_I64(moe_ep_step(&d, rows, &r, NULL, &err), MOE_EP_ERR_NEGATIVE);
        CHECK_STR(err.arg, "slot_rows");
        CHECK_I64(err.index, layer * 8 + 5);
        rows[layer * 8 + 5] = INT64_MAX / 8;
        CHECK_I64(moe_ep_step(&d, rows, &r, NULL, &err), MOE_EP_ERR_OVERFLOW);
        CHECK_I64(err.index, layer * 8 + 5);
        rows[layer * 8 + 5] = 1;
        traffic[layer * 16 + 9] = -1;
        CHECK_I64(moe_ep_step(&d, rows, &r, NULL, &err), MOE_EP_ERR_NEGATIVE);
        CHECK_STR(err.arg, "traffic");
        CHECK_I64(err.index, layer * 16 + 9);
        traffic[layer * 16 + 9] = 1;
        nodes[layer * 8 + 3] = -1;
        CHECK_I64(moe_ep_step(&d, rows, &r, NULL, &err), MOE_EP_ERR_NEGATIVE);
        CHECK_STR(err.arg, "node_traffic");
        CHECK_I64(err.index, layer * 8 + 3);
        nodes[layer * 8 + 3] = 1;
    }
    rows[20] = -1;
    CHECK_I64(moe_ep_step(&d, rows, &r, NULL, NULL), MOE_EP_ERR_NEGATIVE); /* nobody asks where */
    rows[20] = 1;
    h100.flops[2] = -1; /* the same of every layer */
    CHECK_I64(moe_ep_step(&d, rows, &r, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_STR(err.arg, "machine.flops");
    CHECK_I64(err.index, 2);
    h100 = moe_ep_machine_h100();
    d.layer.num_nodes = 5; /* on four devices */
    CHECK_I64(moe_ep_layer_time(&d.layer, rows, &(moe_ep_time_result){0}, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_nodes");
    CHECK_NEAR(err.value, 5, 0, 0);
    d.layer.num_nodes = 4;
    d.layer.traffic = d.layer.node_traffic = NULL;
    CHECK_I64(moe_ep_layer_time(&d.layer, rows, &(moe_ep_time_result){0}, NULL, &err), MOE_EP_OK);
}

/* Reasons are written once everything has worked. */
TEST(reasons_or_an_error)
{
    moe_ep_model v3 = moe_ep_model_deepseek_v3();
    moe_ep_config config;
    moe_ep_reason reason[8], before[8];
    int32_t count = 77, needed = 78;
    memset(&config, 0, sizeof config);
    memset(reason, 0x5a, sizeof reason);
    memcpy(before, reason, sizeof before);
    v3.hidden = 0;
    config.model = &v3;
    config.ep = 3; /* would be a reason */
    config.must_divide = 1;
    config.memory_bytes = 80e9;
    CHECK_I64(moe_ep_check_config(&config, reason, 8, &count, &needed, &err), MOE_EP_ERR_SIZE);
    CHECK(memcmp(reason, before, sizeof reason) == 0);
    CHECK_I64(count, 77);
    CHECK_I64(needed, 78);
    v3.hidden = 7168;
    CHECK_I64(moe_ep_check_config(&config, reason, 1, &count, &needed, &err), MOE_EP_OK);
    CHECK(count > 1 && memcmp(&reason[1], &before[1], sizeof before[1]) == 0); /* counted, but no room */
}

/* The slots of a placement begin at 0 and end at P. */
TEST(slots_that_no_device_has)
{
    moe_ep_model model = moe_ep_model_mixtral_8x7b();
    moe_ep_machine h100 = moe_ep_machine_h100();
    static int64_t memory[512];
    const int64_t rows[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    moe_ep_layer_desc d;
    moe_ep_time_result t;
    moe_ep_placement p;
    moe_ep_shape shape;
    memset(&shape, 0, sizeof shape);
    memset(&d, 0, sizeof d);
    shape.num_devices = 2;
    CHECK_I64(moe_ep_placement_init(&p, 1, 8, &shape, memory, sizeof memory, NULL), MOE_EP_OK);
    d.model = &model;
    d.machine = &h100;
    d.placement = &p;
    CHECK_I64(moe_ep_layer_time(&d, rows, &t, NULL, &err), MOE_EP_OK);
    for (int at = 0; at < 3; at++)
        for (int32_t value = -1; value <= 9; value++) {
            int32_t was = p.slot_start[at];
            int fine = at == 1 ? value >= 0 && value <= 8 : value == was;
            p.slot_start[at] = value;
            CHECK_I64(moe_ep_layer_time(&d, rows, &t, NULL, &err), fine ? MOE_EP_OK : MOE_EP_ERR_PLACEMENT);
            if (!fine) {
                CHECK_STR(err.arg, "placement.slot_start");
                CHECK_I64(err.index, at == 1 && value > 8 ? 1 : at);
                CHECK_NEAR(err.value, value, 0, 0);
            }
            p.slot_start[at] = was;
        }
}

T_MAIN
