/* tests/test_cost.c - section 8: published measurements, closed forms, brute force, error paths.
 * SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"

static double us(double seconds) { return seconds * 1e6; }

/* Expected all-to-all seconds of a uniform exchange over one link. */
static double phase_us(moe_ep_comm_desc c, moe_ep_link link, int combine)
{
    moe_ep_comm_result r;
    if (moe_ep_comm_bytes(&c, &r, NULL) != MOE_EP_OK) return -1.0;
    return us(combine ? moe_ep_link_time(&link, r.combine_intra_bytes, r.combine_inter_bytes, NULL)
                      : moe_ep_link_time(&link, r.dispatch_intra_bytes, r.dispatch_inter_bytes, NULL));
}

static moe_ep_comm_desc exchange(double tokens, int32_t D, moe_ep_a2a_mode mode, moe_ep_wire out)
{
    moe_ep_comm_desc c;
    memset(&c, 0, sizeof c);
    c.tokens = tokens;
    c.num_experts = 256;
    c.top_k = 8;
    c.hidden = 7168;
    c.num_devices = D;
    c.num_nodes = (D + 7) / 8;
    c.mode = mode;
    c.dispatch_wire = out;
    return c;
}

static moe_ep_link link_of(double alpha, double intra, double inter)
{
    moe_ep_link l;
    memset(&l, 0, sizeof l);
    l.alpha_s = alpha;
    l.intra_Bps = intra;
    l.inter_Bps = inter;
    return l;
}

/* |ours / published - 1| within what the design states, plus half a per cent of rounding. */
#define PUBLISHED(what, ours, published, stated)                                                    \
    do {                                                                                            \
        double p_o = (ours), p_p = (published);                                                     \
        printf("    %-44s %10.2f %10.2f  %+6.1f %%\n", what, p_p, p_o, (p_o / p_p - 1.0) * 100.0);  \
        CHECK(fabs(p_o / p_p - 1.0) <= (stated) + 0.005);                                           \
    } while (0)

TEST(step_time_of_the_labs)
{
    int64_t demo[8] = {1000, 800, 600, 500, 300, 200, 100, 50}, hot[8] = {960, 92, 92, 92, 91, 91, 91, 91};
    int32_t pairs[8] = {0, 0, 1, 1, 2, 2, 3, 3}, seed[8] = {0, 1, 2, 3, 1, 2, 2, 3};
    int64_t naive[4] = {1800, 1100, 500, 150};
    double naive_d[4] = {1800, 1100, 500, 150}, huge[2] = {1.7e308, 1.7e308};
    CHECK_I64(moe_ep_step_time(demo, 8, pairs, 4, NULL), 1800);
    CHECK_I64(moe_ep_step_time(demo, 8, seed, 4, NULL), 1100);
    CHECK_I64(moe_ep_step_time(demo, 8, NULL, 4, NULL), 1300);
    CHECK_I64(moe_ep_step_time(hot, 8, NULL, 8, NULL), 960);
    CHECK_NEAR((double)moe_ep_step_time(hot, 8, NULL, 4, NULL) / 400.0, 2.6275, 1e-12, 0);
    CHECK_NEAR((double)moe_ep_step_time(hot, 8, NULL, 2, NULL) / 800.0, 1.5425, 1e-12, 0);
    CHECK_NEAR(moe_ep_efficiency(naive, 4, NULL), 0.493056, 0, 1e-6);
    CHECK_NEAR(moe_ep_efficiency_d(naive_d, 4, NULL), 3550.0 / 7200.0, 1e-14, 0);
    CHECK_NEAR(moe_ep_efficiency_d(huge, 2, NULL), 1.0, 1e-14, 0);
}

TEST(step_time_against_brute_force)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < 300; round++) {
        int32_t E = 1 + (int32_t)t_below(&s, 700), D = 1 + (int32_t)t_below(&s, 700), e, d;
        int64_t loads[700], sum[700], sum0[700], most = 0, most0 = 0, total;
        int32_t map[700];
        memset(sum, 0, sizeof sum);
        memset(sum0, 0, sizeof sum0);
        for (e = 0; e < E; e++) {
            loads[e] = t_below(&s, 1000);
            map[e] = (int32_t)t_below(&s, D);
            sum[map[e]] += loads[e];
            sum0[e % D] += loads[e];
        }
        for (d = 0; d < D; d++) {
            if (sum[d] > most) most = sum[d];
            if (sum0[d] > most0) most0 = sum0[d];
        }
        CHECK_I64(moe_ep_step_time(loads, E, map, D, NULL), most);
        CHECK_I64(moe_ep_step_time(loads, E, NULL, D, NULL), most0);
        for (total = 0, e = 0; e < E; e++) total += loads[e];
        if (most > 0) CHECK_NEAR(moe_ep_efficiency(sum, D, NULL) * (double)most * D, (double)total, 1e-12, 0);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(step_time_errors)
{
    int64_t loads[3] = {1, -2, 3}, fine[2] = {INT64_MAX, 1};
    int32_t map[3] = {0, 2, 1};
    double bad[2] = {1.0, -1.0};
    moe_ep_error err;
    CHECK_I64(moe_ep_step_time(NULL, 3, NULL, 1, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_step_time(loads, 0, NULL, 1, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_step_time(loads, 3, NULL, 0, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "D");
    CHECK_I64(moe_ep_step_time(loads, 3, NULL, 2, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
    loads[1] = 2;
    CHECK_I64(moe_ep_step_time(loads, 3, map, 2, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_step_time(fine, 2, NULL, 1, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_efficiency(fine, 2, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_efficiency(NULL, 2, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_efficiency(fine, 0, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_efficiency_d(bad, 2, &err), MOE_EP_ERR_NEGATIVE);
    bad[1] = NAN;
    CHECK_I64(moe_ep_efficiency_d(bad, 2, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 1);
}

TEST(presets_have_names_and_sources)
{
    moe_ep_model m;
    moe_ep_machine c;
    moe_ep_error err;
    int32_t i;
    for (i = 0; moe_ep_model_preset_name(i); i++) {
        CHECK(moe_ep_model_by_name(moe_ep_model_preset_name(i), &m, NULL) == MOE_EP_OK);
        CHECK_STR(m.name, moe_ep_model_preset_name(i));
        CHECK(strlen(m.source) > 10);
        printf("    %-18s %s\n", m.name, m.source);
    }
    CHECK_I64(i, 15);
    for (i = 0; moe_ep_machine_preset_name(i); i++) {
        CHECK(moe_ep_machine_by_name(moe_ep_machine_preset_name(i), &c, NULL) == MOE_EP_OK);
        CHECK_STR(c.name, moe_ep_machine_preset_name(i));
        CHECK(strlen(c.source) > 10);
        printf("    %-18s %s\n", c.name, c.source);
        /* products alone: none has the terms of a whole kernel; those of B200 have tiles of 128 rows, others of 64 */
        CHECK_I64(c.gemm.tile, strstr(c.name, "b200") ? 128 : 64);
        CHECK(!(c.gemm.expert_s > 0) && !(c.gemm.row_byte_s > 0) && !(c.gemm.t0_p > 0));
        CHECK(!(c.gemm.other_byte_s > 0) && c.gemm.other_reached == 0);
        CHECK_NEAR(c.gemm.p, strcmp(c.name, "h20") == 0 ? 6 : 2, 0, 0);
    }
    CHECK_I64(i, 7);
    CHECK_STR(moe_ep_model_preset_name(0), "deepseek-v3");
    CHECK_STR(moe_ep_machine_preset_name(0), "h100");
    CHECK(!moe_ep_model_preset_name(-1) && !moe_ep_machine_preset_name(-1));
    CHECK(moe_ep_model_by_name("DeepSeek_V3", &m, NULL) == MOE_EP_OK && m.num_experts == 256 && m.top_k == 8);
    CHECK(moe_ep_model_by_name("Qwen/Qwen3-30B-A3B-Instruct-2507", &m, NULL) == MOE_EP_OK && m.num_experts == 128);
    CHECK(moe_ep_model_by_name("deepseek-ai/DeepSeek-V2-Lite", &m, NULL) == MOE_EP_OK && m.num_experts == 64);
    CHECK(moe_ep_machine_by_name("H200 SXM", &c, NULL) == MOE_EP_OK && c.memory_bytes > 140e9);
    CHECK(moe_ep_model_by_name("nothing", &m, &err) == MOE_EP_ERR_CONFIG);
    CHECK(moe_ep_machine_by_name("h2000", &c, &err) == MOE_EP_ERR_CONFIG);
    CHECK(moe_ep_model_by_name("deepseek-v32", &m, &err) == MOE_EP_ERR_CONFIG);
    CHECK(moe_ep_model_by_name("deepseek-v3.2", &m, NULL) == MOE_EP_OK && m.num_experts == 256);
    CHECK_STR(m.name, "deepseek-v3.2");
    CHECK(moe_ep_model_by_name("DeepSeek V3-2", &m, NULL) == MOE_EP_OK && m.attention_window == 2048);
    CHECK(moe_ep_model_by_name("mixtral8x7b", &m, NULL) == MOE_EP_OK && m.num_experts == 8);
    CHECK(moe_ep_model_by_name("DeepSeekV2Lite", &m, NULL) == MOE_EP_OK && m.num_experts == 64);
    CHECK(moe_ep_model_by_name("deepseek-ai/DeepSeek-V3.2-Exp", &m, NULL) == MOE_EP_OK && m.attention_window == 2048);
    CHECK(moe_ep_model_by_name("DeepSeek-V3.1-Terminus", &m, NULL) == MOE_EP_OK && m.attention_window == 0);
    CHECK_STR(err.arg, "name");
    CHECK(moe_ep_model_by_name(NULL, &m, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_machine_by_name("", &c, &err) == MOE_EP_ERR_CONFIG);
    CHECK(moe_ep_machine_by_name("h100", NULL, &err) == MOE_EP_ERR_NULL);
}

TEST(parameters_of_published_models)
{
    static const struct { const char *name; double total, active, within;
    } row[] = {{"deepseek-v3", 671.0e9, 37e9, 0.012},      {"deepseek-v2", 236e9, 21e9, 0.02},
               {"deepseek-v2-lite", 15.7e9, 2.4e9, 0.06},  {"kimi-k2", 1026e9, 32e9, 0.03},
               {"qwen3-235b-a22b", 235e9, 22e9, 0.02},     {"qwen3-30b-a3b", 30.5e9, 3.3e9, 0.10},
               {"qwen1.5-moe-a2.7b", 14.3e9, 2.7e9, 0.14}, {"mixtral-8x7b", 46.7e9, 12.9e9, 0.02},
               {"mixtral-8x22b", 141e9, 39e9, 0.02},       {"gpt-oss-120b", 116.8e9, 5.1e9, 0.02},
               {"gpt-oss-20b", 20.9e9, 3.6e9, 0.02},       {"olmoe-1b-7b", 6.9e9, 1.3e9, 0.10},
               {"phi-tiny-moe", 3.76e9, 1.1e9, 0.06}};
    moe_ep_params_result p;
    moe_ep_model m;
    size_t i;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        CHECK(moe_ep_model_by_name(row[i].name, &m, NULL) == MOE_EP_OK);
        CHECK(moe_ep_params(&m, &p, NULL) == MOE_EP_OK);
        printf("    %-18s %7.1f B of %7.1f B, active %5.2f B of %5.2f B\n", row[i].name, (double)p.total * 1e-9,
               row[i].total * 1e-9, (double)p.active * 1e-9, row[i].active * 1e-9);
        CHECK_NEAR(p.total, row[i].total, 0.01, 0);
        CHECK_NEAR(p.active, row[i].active, row[i].within, 0);
        CHECK_I64(p.total, p.routed + p.shared + p.router + p.dense + p.attention + p.embedding);
    }
    m = moe_ep_model_deepseek_v3();
    moe_ep_params(&m, &p, NULL);
    CHECK_I64(p.expert, 44040192);
    CHECK_I64(p.routed, 653908770816);
    CHECK_I64(p.total, 671025397760);
    m = moe_ep_model_phi_tiny_moe(); /* ten times less than its demo's text says */
    moe_ep_params(&m, &p, NULL);
    CHECK_I64(p.expert, 5505024);
    CHECK_I64(p.layer, 88080384);
    CHECK_I64(p.routed, 2818572288);
    m.top_k = 17;
    CHECK(moe_ep_params(&m, &p, NULL) == MOE_EP_ERR_TOP_K);
    m.top_k = 2;
    m.inter = m.hidden = m.num_experts = m.num_moe_layers = INT32_MAX;
    m.num_layers = 0;
    CHECK(moe_ep_params(&m, &p, NULL) == MOE_EP_ERR_OVERFLOW);
    memset(&m, 0, sizeof m);
    CHECK(moe_ep_params(&m, &p, NULL) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_params(NULL, &p, NULL) == MOE_EP_ERR_NULL);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* InferSim's grouped GEMM tables (DeepGEMM FP8): slots x rows, us of up + down. */
TEST(gemm_anchors)
{
    static const struct { int32_t H, I, slots, rows, tile, h20; double measured;
    } row[] = {{7168, 2048, 32, 4, 64, 0, 325.3 + 176.0},   {7168, 2048, 32, 32, 64, 0, 325.4 + 176.0},
               {7168, 2048, 32, 128, 64, 0, 411.6 + 214.1}, {7168, 2048, 8, 16, 64, 0, 92.1 + 52.7},
               {7168, 2048, 8, 128, 64, 0, 120.4 + 63.4},   {7168, 2048, 8, 512, 64, 0, 223.3 + 107.1},
               {7168, 2048, 2, 64, 64, 0, 34.2 + 17.6},     {7168, 2048, 2, 256, 64, 0, 50.6 + 21.6},
               {7168, 2048, 2, 512, 64, 0, 90.9 + 51.7},    {4096, 1536, 128, 2, 64, 1, 828.5 + 445.6},
               {4096, 1536, 128, 32, 64, 1, 828.9 + 446.5}, {4096, 1536, 128, 64, 128, 1, 1471 + 663.8}};
    double error[12];
    int64_t rows[128];
    int i, j;
    for (i = 0; i < 12; i++) {
        moe_ep_model m = moe_ep_model_deepseek_v3();
        moe_ep_machine c = row[i].h20 ? moe_ep_machine_h20() : moe_ep_machine_h800();
        double ours;
        m.hidden = row[i].H;
        m.inter = row[i].I;
        c.gemm.tile = row[i].tile;
        for (j = 0; j < row[i].slots; j++) rows[j] = row[i].rows;
        ours = us(moe_ep_expert_time(&m, &c, rows, row[i].slots, NULL, NULL));
        error[i] = fabs(ours / row[i].measured - 1.0);
        printf("    %3d slots x %3d rows: measured %7.1f, model %7.1f, %+5.1f %%\n", row[i].slots, row[i].rows,
               row[i].measured, ours, (ours / row[i].measured - 1.0) * 100.0);
        if (i == 4) CHECK_NEAR(ours, 169.8, 0, 0.1);
    }
    qsort(error, 12, sizeof error[0], by_value);
    printf("    median %.1f %%, largest %.1f %%\n", (error[5] + error[6]) * 50.0, error[11] * 100.0);
    CHECK((error[5] + error[6]) * 0.5 <= 0.06);
    CHECK(error[11] <= 0.27);
}

/* SGLang's decode kernel on H100, EP4: 45 + 15.7 us per active expert (the whole kernel: t0 is theirs). */
TEST(kernel_anchors)
{
    static const struct {
        int32_t active;
        double measured;
    } row[] = {{8, 180.6}, {16, 294.8}, {32, 546.4}, {64, 1050.8}};
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h100();
    int64_t rows[64];
    int i, j;
    c.gemm.t0_s = 22.5e-6;
    c.gemm.mem_eff = 0.837;
    c.gemm.p = 0.0;
    for (i = 0; i < 4; i++) {
        for (j = 0; j < 64; j++) rows[j] = j < row[i].active ? 1 : 0;
        PUBLISHED("decode kernel, active experts", us(moe_ep_expert_time(&m, &c, rows, 64, NULL, NULL)),
                  row[i].measured, 0.06);
    }
}

TEST(textbook_roofline)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c;
    moe_ep_device_time t;
    uint64_t s = t_seed;
    int round;
    memset(&c, 0, sizeof c);
    c.memory_Bps = 3.35e12;
    c.flops[MOE_EP_MATH_FP8] = 1979e12;
    m.in_bytes = m.out_bytes = 1e-300; /* textbook: weights only */
    for (round = 0; round < 100; round++) {
        int64_t rows[16], sum = 0;
        double active = 0, up, down;
        int i;
        for (i = 0; i < 16; i++) {
            rows[i] = t_below(&s, 3) ? t_below(&s, 2000) : 0;
            sum += rows[i];
            active += rows[i] > 0;
        }
        up = fmax(active * 7168 * 4096 / 3.35e12, 2.0 * 7168 * 4096 * (double)sum / 1979e12);
        down = fmax(active * 7168 * 2048 / 3.35e12, 2.0 * 7168 * 2048 * (double)sum / 1979e12);
        CHECK_NEAR(moe_ep_expert_time(&m, &c, rows, 16, &t, NULL), up + down, 1e-12, 0);
        CHECK_I64(t.rows, sum);
        CHECK_I64(t.active, (int)active);
        CHECK(t.regime == (sum == 0                 ? MOE_EP_REGIME_IDLE
                           : t.memory_s >= t.flop_s ? MOE_EP_REGIME_WEIGHTS
                                                    : MOE_EP_REGIME_FLOPS));
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(group_gemm_work)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_gemm_work w;
    int64_t rows[3] = {128, 0, 3};
    CHECK(moe_ep_group_gemm(&m, rows, 2, 0, &w, NULL) == MOE_EP_OK);
    CHECK_NEAR(w.flops, 6.0 * 128 * 7168 * 2048, 1e-15, 0);
    CHECK_NEAR(w.flops, 1.12743e10, 1e-5, 0);
    CHECK_NEAR(w.weight_bytes, 44040192.0, 0, 0);
    CHECK_NEAR(w.intensity, 256.0, 1e-12, 0);
    CHECK(moe_ep_group_gemm(&m, rows, 3, 48, &w, NULL) == MOE_EP_OK);
    CHECK_I64(w.padded_rows, 144 + 48);
    CHECK(moe_ep_group_gemm(&m, rows, 3, 100, &w, NULL) == MOE_EP_OK);
    CHECK_I64(w.padded_rows, 200 + 100);
    CHECK(moe_ep_group_gemm(&m, rows, 3, 64, &w, NULL) == MOE_EP_OK);
    CHECK_I64(w.padded_rows, 192);
    CHECK_I64(w.rows, 131);
    CHECK_I64(w.active, 2);
    rows[1] = -1;
    CHECK(moe_ep_group_gemm(&m, rows, 3, 64, &w, NULL) == MOE_EP_ERR_NEGATIVE);
    CHECK(moe_ep_group_gemm(&m, NULL, 3, 64, &w, NULL) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_group_gemm(&m, rows, 3, -1, &w, NULL) == MOE_EP_ERR_SIZE);
}

TEST(wire_rows)
{
    moe_ep_error err;
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_BF16, 7168, 0, NULL), 14336);
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_FP32, 7168, 0, NULL), 28672);
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_FP8, 7168, 0, NULL), 7392);
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_MXFP8, 7168, 0, NULL), 7392);
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_NVFP4, 7168, 0, NULL), 4032);
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_FP8, 7168, 16, NULL), 7408);
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_FP8, 0, 0, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_row_bytes(MOE_EP_WIRE_FP8, 8, -1, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(moe_ep_row_bytes((moe_ep_wire)9, 8, 0, &err), MOE_EP_ERR_RANGE);
}

/* Rows 1 and 2: T 32, 9 experts, (1 + 2) bytes, 7 K, two micro-batches, 61 layers. */
TEST(isca_bound)
{
    static const struct { double Bps, batch_us, tpot_ms; } row[] = {{50e9, 120.96, 14.76}, {900e9, 6.72, 0.82}};
    int i;
    for (i = 0; i < 2; i++) {
        moe_ep_stages s;
        double layer;
        memset(&s, 0, sizeof s); /* their 7 K is 7000 */
        s.dispatch_s = moe_ep_comm_time(32.0 * 9 * 7000 * 1, 0.0, row[i].Bps, NULL);
        s.combine_s = moe_ep_comm_time(32.0 * 9 * 7000 * 2, 0.0, row[i].Bps, NULL);
        layer = moe_ep_compose(MOE_EP_OVERLAP_TWO_HIDDEN, &s, NULL, 0.0, NULL);
        CHECK_NEAR(us(s.dispatch_s + s.combine_s), row[i].batch_us, 1e-4, 0);
        CHECK_NEAR(us(layer), 2 * row[i].batch_us, 1e-4, 0);
        CHECK_NEAR(layer * 61 * 1e3, row[i].tpot_ms, 5e-4, 0);
    }
}

/* Rows 3 to 7: one pair of constants, DeepEP V1 and NCCL EP. */
TEST(low_latency_tables)
{
    static const int32_t ep[] = {8, 16, 32, 64, 128, 256};
    static const double dispatch[] = {77, 118, 155, 173, 192, 194}, combine[] = {114, 195, 273, 314, 369, 360};
    static const double stated_d[] = {0.03, 0.01, 0.01, 0.02, 0.03, 0.02},
                        stated_c[] = {0.04, 0.02, 0.02, 0.03, 0.12, 0.07};
    static const double nccl_d[] = {191, 274, 301}, nccl_c[] = {201, 294, 335}, stated_n[] = {0.05, 0.09, 0.09};
    moe_ep_link l = moe_ep_machine_h800().ll_dispatch, nvlink = link_of(38e-6, 360e9, 48e9);
    moe_ep_comm_desc c;
    int i;
    for (i = 0; i < 6; i++) {
        c = exchange(128, ep[i], MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8);
        PUBLISHED("3 DeepEP low-latency dispatch", phase_us(c, l, 0), dispatch[i], stated_d[i]);
        PUBLISHED("4 DeepEP low-latency combine", phase_us(c, l, 1), combine[i], stated_c[i]);
    }
    for (i = 0; i < 3; i++) {
        c = exchange(128, ep[i + 1], MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16);
        PUBLISHED("5 NCCL EP dispatch", phase_us(c, l, 0), nccl_d[i], 0.02);
        PUBLISHED("6 NCCL EP combine", phase_us(c, l, 1), nccl_c[i], stated_n[i]);
    }
    c = exchange(128, 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16);
    PUBLISHED("7 NCCL EP8 dispatch", phase_us(c, nvlink, 0), 65, 0.135);
    PUBLISHED("7 NCCL EP8 combine", phase_us(c, nvlink, 1), 79, 0.07);
    c = exchange(128, 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8);
    CHECK_NEAR(us(moe_ep_logical_time(&c, 0, 98e9, NULL)), 77.2, 0, 0.1);
    CHECK_NEAR(moe_ep_logical_Bps(&c, 0, moe_ep_logical_time(&c, 0, 98e9, NULL), NULL), 98e9, 1e-12, 0);
    c.tokens *= 1e-9; /* on average: less than a byte is no error */
    CHECK_NEAR(us(moe_ep_logical_time(&c, 0, 98e9, NULL)), 77.2e-9, 0, 0.1e-9);
    CHECK_NEAR(moe_ep_logical_Bps(&c, 0, 77.2e-15, NULL), 98e9, 1e-3, 0);
    c = exchange(128, 16, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8);
    {
        moe_ep_comm_result r;
        CHECK(moe_ep_comm_bytes(&c, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.inter_rows, 512, 1e-12, 0);
        CHECK_NEAR(r.dispatch_inter_bytes, 3784704, 1e-12, 0);
        CHECK_NEAR(us(moe_ep_link_time(&l, 3311616, 3784704, NULL)), 116.848, 1e-5, 0);
    }
}

/* Rows 8 to 11: DeepEP normal kernels; the test's groups are the nodes, at most 4 of them. */
TEST(normal_tables)
{
    static const struct { int32_t ep; double dispatch, combine, out_Bps, back_Bps, stated_d, stated_c; } row[] = {
        {8, 1048, 1968, 153e9, 158e9, 0.08, 0.05}, {16, 1403, 2722, 43e9, 43e9, 0.15, 0.15},
        {32, 1887, 3723, 58e9, 57e9, 0.012, 0.03}, {64, 2154, 4262, 51e9, 50e9, 0.015, 0.01}};
    moe_ep_link l = link_of(0.0, 145e9, 44e9);
    int i;
    for (i = 0; i < 4; i++) {
        moe_ep_comm_desc c = exchange(4096, row[i].ep, MOE_EP_A2A_NODE_DEDUP, MOE_EP_WIRE_FP8);
        c.num_groups = c.num_nodes;
        c.top_groups = 4;
        PUBLISHED(i ? "9 DeepEP normal dispatch" : "8 DeepEP normal dispatch, one node", phase_us(c, l, 0),
                  row[i].dispatch, row[i].stated_d);
        PUBLISHED(i ? "10 DeepEP normal combine" : "8 DeepEP normal combine, one node", phase_us(c, l, 1),
                  row[i].combine, row[i].stated_c);
        CHECK_NEAR(us(moe_ep_logical_time(&c, 0, row[i].out_Bps, NULL)), row[i].dispatch, 0.012, 0);
        CHECK_NEAR(us(moe_ep_logical_time(&c, 1, row[i].back_Bps, NULL)), row[i].combine, 0.012, 0);
    }
    { /* row 11: 61 GB/s logical at 8 x 4 is the same NIC limit once the local copy is taken out */
        moe_ep_comm_desc c = exchange(8192, 32, MOE_EP_A2A_NODE_DEDUP, MOE_EP_WIRE_FP8);
        moe_ep_comm_result r;
        double t = moe_ep_logical_time(&c, 0, 61e9, NULL);
        CHECK(moe_ep_comm_bytes(&c, &r, NULL) == MOE_EP_OK);
        PUBLISHED("11 DeepEP V2, physical GB/s per NIC", r.dispatch_inter_bytes / t * 1e-9, 45.8, 0.005);
    }
}

/* Row 12: all_to_all_single on padded buffers; row 13 is what this model does not reproduce. */
TEST(padded_and_implementation_bound)
{
    static const int32_t ep[] = {8, 16, 32, 64, 128};
    static const double padded[] = {700, 3214, 4226, 5418, 4972}, stated[] = {0.03, 0.12, 0.01, 0.09, 0.065},
                        ibgda[] = {0, 622, 428, 317, 308};
    moe_ep_link l = link_of(13e-6, 300e9, 43e9), ll = moe_ep_machine_h800().ll_dispatch;
    int i;
    for (i = 0; i < 5; i++) {
        moe_ep_comm_desc c = exchange(128, ep[i], MOE_EP_A2A_PADDED, MOE_EP_WIRE_FP8);
        c.capacity = 128;
        PUBLISHED("12 pplx all_to_all_single", phase_us(c, l, 0), padded[i], stated[i]);
        c.mode = MOE_EP_A2A_PAIR;
        if (i > 0) CHECK(phase_us(c, ll, 0) < 0.65 * ibgda[i]);
    }
}

/* Rows 14 and 15: one-sided NVLink on GB200, EP 8, 2048 tokens. */
TEST(one_sided_formats)
{
    static const moe_ep_wire wire[] = {MOE_EP_WIRE_BF16, MOE_EP_WIRE_MXFP8, MOE_EP_WIRE_NVFP4};
    static const double published[] = {311.8, 172.2, 101.7}; /* us */
    moe_ep_link l = moe_ep_machine_gb200().ll_dispatch, c15 = moe_ep_machine_gb200().ll_combine;
    double t[3], best = 1e9;
    int32_t ep;
    int i;
    for (ep = 8; ep <= 64; ep *= 2) { /* the blog's figure does not print the EP size: the nearest one */
        double worst = 0.0;
        for (i = 0; i < 3; i++) {
            moe_ep_comm_desc c = exchange(2048, ep, MOE_EP_A2A_RANK_DEDUP, wire[i]);
            c.num_nodes = 1;
            t[i] = phase_us(c, l, 0);
            worst = fmax(worst, fabs(t[i] / published[i] - 1.0));
        }
        printf("    EP%-3d %.1f %.1f %.1f us, speed-up %.2f %.2f\n", ep, t[0], t[1], t[2], t[0] / t[1], t[0] / t[2]);
        if (worst < best) best = worst;
        if (ep == 32) {
            PUBLISHED("15 MXFP8 speed-up", t[0] / t[1], 1.81, 0.03);
            PUBLISHED("15 NVFP4 speed-up", t[0] / t[2], 3.06, 0.035);
        }
    }
    CHECK(best <= 0.03);
    CHECK_NEAR(us(moe_ep_link_time(&c15, 0.0, 0.0, NULL)), 31.5, 1e-9, 0); /* alpha takes part in the norm */
    CHECK_NEAR(us(moe_ep_link_time(&c15, 31.5e-6 * 635e9, 0.0, NULL)), 31.5 * pow(2.0, 1.0 / 1.5), 1e-9, 0);
}

/* Rows 17, 18, 23: two micro-batches, communication exposed. */
TEST(profiles)
{
    moe_ep_link l = moe_ep_machine_h800().ll_dispatch;
    moe_ep_stages s;
    double step;
    memset(&s, 0, sizeof s);
    s.compute_s = 72e-6;
    s.shared_s = 24e-6;
    s.dispatch_s = phase_us(exchange(64, 128, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8), l, 0) * 1e-6;
    s.combine_s = phase_us(exchange(64, 128, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8), l, 1) * 1e-6;
    CHECK_NEAR(us(s.dispatch_s), 112, 0, 0.6);
    CHECK_NEAR(us(s.combine_s), 181, 0, 0.6);
    step = 61 * moe_ep_compose(MOE_EP_OVERLAP_TWO_EXPOSED, &s, NULL, 0.0, NULL) + 5e-3;
    PUBLISHED("17 DeepSeek profile, decode EP128 (ms)", step * 1e3, 55.1, 0.047);
    s.compute_s = 145e-6;
    s.dispatch_s = phase_us(exchange(128, 72, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8), l, 0) * 1e-6;
    s.combine_s = phase_us(exchange(128, 72, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8), l, 1) * 1e-6;
    CHECK_NEAR(us(s.dispatch_s), 178, 0.01, 0);
    CHECK_NEAR(us(s.combine_s), 310, 0.01, 0);
    step = 61 * moe_ep_compose(MOE_EP_OVERLAP_TWO_EXPOSED, &s, NULL, 0.0, NULL) + 5e-3;
    PUBLISHED("18 SGLang EP72 decode (ms)", step * 1e3, 91.9, 0.074);
    memset(&s, 0, sizeof s);
    s.dispatch_s = 112e-6;
    s.compute_s = 72e-6;
    s.combine_s = 181e-6;
    s.shared_s = 24e-6;
    CHECK_NEAR(us(moe_ep_compose(MOE_EP_OVERLAP_TWO_EXPOSED, &s, NULL, 0.0, NULL)), 778, 1e-12, 0);
}

TEST(preset_examples)
{
    CHECK_I64(moe_ep_model_deepseek_v3().num_experts, 256);
    CHECK_NEAR(moe_ep_machine_h20().memory_Bps, 4e12, 0, 0);
}

TEST(composition)
{
    moe_ep_stages a = {10, 2, 3, 4, 5}, b = {1, 20, 30, 40, 50};
    moe_ep_error err;
    CHECK_NEAR(moe_ep_compose(MOE_EP_OVERLAP_NONE, &a, NULL, 9, NULL), 24, 0, 0);
    CHECK_NEAR(moe_ep_compose(MOE_EP_OVERLAP_SHARED, &a, NULL, 9, NULL), 22, 0, 0);
    CHECK_NEAR(moe_ep_compose(MOE_EP_OVERLAP_TWO_EXPOSED, &a, &b, 1, NULL), 14 + 140 + 1, 0, 0);
    CHECK_NEAR(moe_ep_compose(MOE_EP_OVERLAP_TWO_HIDDEN, &a, &b, 1, NULL), 18 + 81 + 1, 0, 0);
    CHECK_NEAR(moe_ep_compose(MOE_EP_OVERLAP_TWO_STAGGERED, &a, &b, 1, NULL), 10 + 8 + 40 + 80 + 1, 0, 0);
    CHECK_I64(moe_ep_compose(MOE_EP_OVERLAP_NONE, NULL, NULL, 0, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_compose((moe_ep_overlap)7, &a, NULL, 0, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_compose(MOE_EP_OVERLAP_NONE, &a, NULL, NAN, &err), MOE_EP_ERR_NAN);
    b.shared_s = -1;
    CHECK_I64(moe_ep_compose(MOE_EP_OVERLAP_NONE, &a, &b, 0, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_STR(err.arg, "shared_s");
}

/* The matrix form against a token-by-token count, every mode, uneven nodes. */
TEST(matrix_against_tokens)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < 1000; round++) {
        int32_t D = 1 + (int32_t)t_below(&s, 12), N = 1 + (int32_t)t_below(&s, D < 4 ? D : 4), node[12],
                first[5], size[5];
        int64_t rows[144], node_rows[48];
        double oi[12], ii[12], oo[12], io[12], most = 0.0, got;
        moe_ep_a2a_device dev[12];
        moe_ep_a2a_desc d;
        moe_ep_placement p;
        int64_t counted[48], rank_rows[144];
        int32_t slots[160], source[40], device[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
        int dedup = (int)t_below(&s, 2), t, T = (int)t_below(&s, 40);
        int32_t r, x;
        memset(rows, 0, sizeof rows);
        memset(node_rows, 0, sizeof node_rows);
        memset(oi, 0, sizeof oi);
        memset(ii, 0, sizeof ii);
        memset(oo, 0, sizeof oo);
        memset(io, 0, sizeof io);
        memset(size, 0, sizeof size);
        for (r = 0; r < D; r++) node[r] = r < N ? r : (int32_t)t_below(&s, N);
        for (r = 1; r < D; r++) /* ascending */
            for (x = r; x > 0 && node[x] < node[x - 1]; x--) {
                int32_t swap = node[x];
                node[x] = node[x - 1];
                node[x - 1] = swap;
            }
        for (r = D - 1; r >= 0; r--) {
            first[node[r]] = r;
            size[node[r]]++;
        }
        for (t = 0; t < T; t++) {
            int32_t src = (int32_t)t_below(&s, D);
            int hit[12] = {0}, near[4] = {0}, k;
            source[t] = src;
            for (k = 0; k < 4; k++) {
                x = (int32_t)t_below(&s, D);
                slots[4 * t + k] = x;
                if (dedup && hit[x]) continue;
                hit[x] = 1;
                rows[src * D + x]++;
                if (!near[node[x]]) node_rows[src * N + node[x]]++;
                if (!dedup) {
                    if (x != src && node[x] == node[src]) oi[src]++, ii[x]++;
                    if (node[x] != node[src]) oo[src]++, io[x]++;
                } else {
                    int32_t land =
                        node[x] == node[src] ? src : first[node[x]] + (src - first[node[src]]) % size[node[x]];
                    if (node[x] != node[src] && !near[node[x]]) oo[src]++, io[land]++;
                    if (land != x) oi[land]++, ii[x]++;
                }
                near[node[x]] = 1;
            }
        }
        memset(&p, 0, sizeof p); /* one slot on every device: both functions count what was counted here */
        p.num_devices = p.num_slots = D;
        p.num_nodes = N;
        p.slot_device = device;
        p.device_node = node;
        CHECK(moe_ep_node_traffic(&p, slots, T, 4, source, counted, NULL) == MOE_EP_OK);
        CHECK(memcmp(counted, node_rows, sizeof(int64_t) * (size_t)(D * N)) == 0);
        CHECK(moe_ep_traffic(&p, slots, T, 4, source, dedup ? MOE_EP_COUNT_NODES : MOE_EP_COUNT_PAIRS, rank_rows, NULL,
                             NULL) == MOE_EP_OK);
        CHECK(memcmp(rank_rows, rows, sizeof(int64_t) * (size_t)(D * D)) == 0);
        memset(&d, 0, sizeof d);
        d.num_devices = D;
        d.num_nodes = N;
        d.node_of_device = node;
        d.mode = dedup ? MOE_EP_A2A_NODE_DEDUP : MOE_EP_A2A_PAIR;
        d.rows = rows;
        d.node_rows = node_rows;
        d.row_bytes = 3.0;
        d.link = link_of(1.0, 2.0, 0.5);
        d.reverse = (int32_t)t_below(&s, 2);
        got = moe_ep_a2a_time(&d, dev, NULL);
        for (r = 0; r < D; r++) {
            double near_s = fmax(oi[r], ii[r]) * 3 / 2, far_s = fmax(oo[r], io[r]) * 3 / 0.5;
            most = fmax(most, D > 1 ? 1.0 + fmax(near_s, far_s) : 0.0);
            CHECK_NEAR(d.reverse ? dev[r].in_intra : dev[r].out_intra, oi[r] * 3, 0, 0);
            CHECK_NEAR(d.reverse ? dev[r].out_intra : dev[r].in_intra, ii[r] * 3, 0, 0);
            CHECK_NEAR(d.reverse ? dev[r].in_inter : dev[r].out_inter, oo[r] * 3, 0, 0);
            CHECK_NEAR(d.reverse ? dev[r].out_inter : dev[r].in_inter, io[r] * 3, 0, 0);
        }
        CHECK_NEAR(got, most, 1e-14, 0);
        STOP_IF_FAILED("round %d", round);
    }
    {
        int64_t rows[4] = {5, 3, 1, 7};
        moe_ep_a2a_desc d;
        memset(&d, 0, sizeof d);
        d.num_devices = 2;
        d.rows = rows;
        d.row_bytes = 1000;
        d.link = link_of(0, 1e6, 0);
        CHECK_NEAR(moe_ep_a2a_time(&d, NULL, NULL), 3e-3, 1e-14, 0);
    }
}

/* ---- expectations ----------------------------------------------------------------------------------- */

/* K distinct of E, in M of G groups, by partial shuffle. */
static void draw(uint64_t *s, int32_t E, int32_t K, int32_t G, int32_t M, int32_t *ids)
{
    int32_t pool[512], groups[64], i, n = 0;
    for (i = 0; i < G; i++) groups[i] = i;
    for (i = 0; i < M; i++) {
        int32_t j = i + (int32_t)t_below(s, G - i), swap = groups[i], e;
        groups[i] = groups[j];
        groups[j] = swap;
        for (e = 0; e < E / G; e++) pool[n++] = groups[i] * (E / G) + e;
    }
    for (i = 0; i < K; i++) {
        int32_t j = i + (int32_t)t_below(s, n - i), swap = pool[i];
        pool[i] = pool[j];
        pool[j] = swap;
        ids[i] = pool[i];
    }
}

/* The device of expert e of E in contiguous blocks on D of them: the first E mod D have one more. */
static int32_t block_of(int32_t e, int32_t E, int32_t D)
{
    int32_t d = 0, end = E / D + (E % D > 0);
    while (e >= end) {
        d++;
        end += E / D + (d < E % D);
    }
    return d;
}

TEST(distinct_devices_against_monte_carlo)
{
    static const int32_t shape[][6] = {{256, 8, 1, 1, 32, 4}, {256, 8, 8, 4, 16, 8}, {256, 8, 8, 4, 64, 4},
                                       {256, 8, 8, 4, 48, 3}, {60, 4, 1, 1, 7, 2},   {160, 6, 8, 3, 12, 5},
                                       {128, 8, 1, 1, 2, 1}};
    uint64_t s = t_seed;
    size_t i;
    for (i = 0; i < sizeof shape / sizeof shape[0]; i += t_slow() > 1 ? 3 : 1) {
        moe_ep_expect_desc d;
        moe_ep_expect_result r;
        double devices = 0, nodes = 0;
        int n;
        const int trials = 40000;
        memset(&d, 0, sizeof d);
        d.tokens = 1;
        d.num_experts = shape[i][0];
        d.top_k = shape[i][1];
        d.num_groups = shape[i][2];
        d.top_groups = shape[i][3];
        d.num_devices = shape[i][4];
        d.num_nodes = shape[i][5];
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        for (n = 0; n < trials; n++) {
            int32_t ids[8], k, b;
            unsigned char dev[64] = {0}, node[64] = {0};
            draw(&s, shape[i][0], shape[i][1], shape[i][2], shape[i][3], ids);
            for (k = 0; k < shape[i][1]; k++) {
                const int32_t D = shape[i][4], N = shape[i][5];
                b = block_of(ids[k], shape[i][0], D);
                dev[b] = 1;
                node[D % N == 0 ? b / (D / N) : block_of(ids[k], shape[i][0], N)] = 1;
            }
            for (b = 0; b < 64; b++) devices += dev[b], nodes += node[b];
        }
        CHECK_NEAR(r.distinct_devices, devices / trials, 0.01, 0);
        CHECK_NEAR(r.distinct_nodes, nodes / trials, 0.01, 0);
        STOP_IF_FAILED("shape %d", (int)i);
    }
    { /* exact values: 128 experts, 8 chosen */
        static const double want[][2] = {{2, 1.99}, {4, 3.63}, {8, 5.34}, {16, 6.60}};
        for (i = 0; i < 4; i++) {
            moe_ep_expect_desc d;
            moe_ep_expect_result r;
            memset(&d, 0, sizeof d);
            d.tokens = 1;
            d.num_experts = 128;
            d.top_k = 8;
            d.num_devices = (int32_t)want[i][0];
            CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
            CHECK_NEAR(r.distinct_devices, want[i][1], 0, 0.006);
        }
    }
}

TEST(batch_expectations_against_monte_carlo)
{
    static const int64_t tokens[] = {1, 4, 32, 128, 512, 4096};
    static const int trials[] = {20000, 20000, 6000, 2000, 600, 100};
    uint64_t s = t_seed;
    int32_t D;
    int i;
    for (i = 0; i < 6; i++)
        for (D = 2; D <= 32; D *= 4) {
            moe_ep_expect_desc d;
            moe_ep_expect_result r;
            double active = 0, dedup = 0, rows2 = 0, most = 0, most_active = 0, mean;
            int n;
            if (t_slow() > 1 && D != 8) continue;
            memset(&d, 0, sizeof d);
            d.tokens = tokens[i];
            d.num_experts = 256;
            d.top_k = 8;
            d.num_devices = D;
            CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
            for (n = 0; n < trials[i]; n++) {
                int32_t rows[32] = {0}, seen[32] = {0}, act[32] = {0}, b, k, big = 0, biga = 0;
                unsigned char used[256] = {0};
                int64_t t;
                for (t = 0; t < tokens[i]; t++) {
                    int32_t ids[8];
                    unsigned char hit[32] = {0};
                    for (k = 0; k < 8; k++) { /* rejection: independent of the library and of the shuffle above */
                        int32_t e, j;
                    again:
                        e = (int32_t)t_below(&s, 256);
                        for (j = 0; j < k; j++)
                            if (ids[j] == e) goto again;
                        ids[k] = e;
                        b = e * D / 256;
                        rows[b]++;
                        if (!hit[b]) seen[b]++;
                        hit[b] = 1;
                        if (!used[e]) act[b]++;
                        used[e] = 1;
                    }
                }
                mean = (double)tokens[i] * 8 / D;
                for (b = 0; b < D; b++) {
                    active += act[b];
                    dedup += seen[b];
                    rows2 += (rows[b] - mean) * (rows[b] - mean);
                    if (rows[b] > big) big = rows[b];
                    if (act[b] > biga) biga = act[b];
                }
                most += big;
                most_active += biga;
            }
            CHECK_NEAR(r.active_device, active / trials[i] / D, 0.01, 0);
            CHECK_NEAR(r.active_total, active / trials[i], 0.01, 0);
            CHECK_NEAR(r.device_tokens, dedup / trials[i] / D, 0.01, 0);
            CHECK_NEAR(r.rows_sd, sqrt(rows2 / trials[i] / D), 0.01 + 4 / sqrt(2.0 * trials[i] * (D - 1)), 0);
            CHECK_NEAR(r.busiest_rows, most / trials[i], tokens[i] < 4 ? 0.04 : 0.01, 0);
            CHECK_NEAR(r.busiest_active, most_active / trials[i], tokens[i] < 4 ? 0.04 : 0.01, 0);
            STOP_IF_FAILED("T %d", (int)tokens[i]);
        }
    {
        moe_ep_expect_desc d;
        moe_ep_expect_result r;
        moe_ep_error err;
        memset(&d, 0, sizeof d);
        d.tokens = 4096;
        d.num_experts = 256;
        d.top_k = 8;
        d.num_devices = 32;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.rows_sd, 31.06, 0, 0.01);
        CHECK_NEAR(r.excess, 0.064, 0, 0.0005);
        CHECK_NEAR(r.distinct_devices, 7.27, 0, 0.01);
        d.num_groups = 8;
        d.top_groups = 4;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.rows_sd, 34.10, 0, 0.01);
        CHECK_NEAR(r.excess, 0.070, 0, 0.0005);
        CHECK_NEAR(r.distinct_devices, 6.60, 0, 0.01);
        d.num_groups = d.top_groups = 0;
        d.tokens = 4;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.busiest_active, 3.18, 0.03, 0); /* published for batch 4 on 32 chips */
        d.tokens = 32;
        d.num_devices = 2;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.active_device, 81.7, 0, 0.1); /* a simulator says 128 */
        d.top_k = 257;
        CHECK(moe_ep_expect(&d, &r, &err) == MOE_EP_ERR_TOP_K);
        d.top_k = 8;
        d.num_groups = 7;
        CHECK(moe_ep_expect(&d, &r, &err) == MOE_EP_ERR_CONFIG);
        d.num_groups = 256;
        d.top_groups = 4;
        CHECK(moe_ep_expect(&d, &r, &err) == MOE_EP_ERR_TOP_K);
        d.num_groups = 0;
        d.tokens = -1;
        CHECK(moe_ep_expect(&d, &r, &err) == MOE_EP_ERR_NEGATIVE);
        CHECK(moe_ep_expect(NULL, &r, &err) == MOE_EP_ERR_NULL);
    }
}

/* Busiest device when D does not divide E, and batches of group-limited routing, by drawing them. */
TEST(uneven_blocks_and_groups_against_monte_carlo)
{
    static const struct {
        int32_t E, K, G, M, D;
        int64_t T;
        int trials;
        double error; /* of the two busiest_ fields */
    } shape[] = {{60, 4, 1, 1, 7, 8, 8000, 0.01},     {60, 4, 1, 1, 32, 128, 1000, 0.01},
                 {8, 2, 1, 1, 3, 16, 8000, 0.01},     {8, 2, 1, 1, 7, 512, 500, 0.01},
                 {16, 1, 1, 1, 7, 2048, 200, 0.01},   {160, 6, 1, 1, 64, 128, 500, 0.01},
                 {12, 3, 1, 1, 16, 64, 2000, 0.01},   {60, 4, 1, 1, 7, 6000, 60, 0.01},
                 {16, 1, 1, 1, 2, 4, 30000, 0.10},
                 {32, 4, 1, 1, 16, 2, 20000, 0.04},   {256, 8, 8, 4, 32, 16, 3000, 0.03},
                 {160, 6, 8, 3, 12, 64, 1000, 0.015}, {64, 8, 4, 2, 5, 4, 8000, 0.04},
                 {256, 8, 8, 4, 8, 4, 8000, 0.03},    {256, 8, 8, 1, 8, 16, 3000, 0.05},
                 {64, 8, 8, 2, 4, 32, 2000, 0.015},   {64, 4, 8, 2, 64, 8, 4000, 0.02},
                 {64, 8, 8, 4, 2, 6, 20000, 0.006},   {256, 8, 8, 4, 2, 8, 20000, 0.006},
                 {56, 6, 8, 4, 9, 6, 8000, 0.015}};
    uint64_t s = t_seed;
    size_t i;
    for (i = 0; i < sizeof shape / sizeof shape[0]; i += t_slow() > 1 ? 4 : 1) {
        int32_t E = shape[i].E, K = shape[i].K, D = shape[i].D, b, k;
        double active = 0, arrived = 0, most = 0, most_active = 0, off = 0, n = shape[i].trials;
        moe_ep_expect_desc d;
        moe_ep_expect_result r;
        int trial;
        memset(&d, 0, sizeof d);
        d.tokens = shape[i].T;
        d.num_experts = E;
        d.top_k = K;
        d.num_groups = shape[i].G;
        d.top_groups = shape[i].M;
        d.num_devices = D;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        for (trial = 0; trial < shape[i].trials; trial++) {
            int32_t rows[64] = {0}, act[64] = {0}, ids[8], big = 0, biga = 0;
            unsigned char used[256] = {0};
            int64_t t;
            for (t = 0; t < shape[i].T; t++) {
                unsigned char hit[64] = {0};
                draw(&s, E, K, shape[i].G, shape[i].M, ids);
                for (k = 0; k < K; k++) {
                    b = block_of(ids[k], E, D);
                    rows[b]++;
                    arrived += !hit[b];
                    hit[b] = 1;
                    act[b] += !used[ids[k]];
                    used[ids[k]] = 1;
                }
            }
            for (b = 0; b < D; b++) {
                const double even = (double)shape[i].T * K * (E * (b + 1) / D - E * b / D) / E;
                off += (rows[b] - even) * (rows[b] - even) / D;
                active += act[b];
                big = rows[b] > big ? rows[b] : big;
                biga = act[b] > biga ? act[b] : biga;
            }
            most += big;
            most_active += biga;
        }
        CHECK_NEAR(r.active_total, active / n, 0.01, 0);
        CHECK_NEAR(r.active_device, active / n / D, 0.01, 0);
        CHECK_NEAR(r.device_tokens, arrived / n / D, 0.01, 0);
        CHECK_NEAR(r.rows_mean, (double)shape[i].T * K / D, 1e-12, 0);
        CHECK_NEAR(r.busiest_rows, most / n, shape[i].error, 0);
        CHECK_NEAR(r.busiest_active, most_active / n, shape[i].error, 0);
        CHECK_NEAR(r.excess, r.busiest_rows / r.rows_mean - 1, 1e-12, 1e-12);
        if (shape[i].G > 1) CHECK_NEAR(r.rows_sd, sqrt(off / n), 0.03 + 5 / sqrt(2 * n * (D > 8 ? 8 : D - 1)), 0);
        STOP_IF_FAILED("shape %d", (int)i);
    }
    { /* every token takes all 8 experts: 3 of them on a device of 3 */
        moe_ep_expect_desc d;
        moe_ep_expect_result r;
        memset(&d, 0, sizeof d);
        d.tokens = 5;
        d.num_experts = d.top_k = 8;
        d.num_devices = 3;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.busiest_rows, 15, 1e-12, 0);
        CHECK_NEAR(r.busiest_active, 3, 1e-12, 0);
        d.tokens = 50; /* 50 tokens in a million places: two in one place with a chance of 0.12 % */
        d.num_experts = d.num_devices = 1000000;
        d.top_k = 1;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.busiest_rows, 1.0012, 0.01, 0);
        CHECK_NEAR(r.busiest_active, 1, 1e-9, 0);
    }
    { /* one choice is uniform whatever the groups; no tokens; more devices than experts are as many as have one */
        moe_ep_expect_desc d;
        moe_ep_expect_result r, flat;
        moe_ep_chance_result c;
        memset(&d, 0, sizeof d);
        d.tokens = 40;
        d.num_experts = 24;
        d.top_k = 1;
        d.num_devices = 7;
        CHECK(moe_ep_expect(&d, &flat, NULL) == MOE_EP_OK);
        d.num_groups = 4;
        d.top_groups = 2;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.busiest_rows, flat.busiest_rows, 0, 0);
        CHECK_NEAR(r.busiest_active, flat.busiest_active, 0, 0);
        CHECK_NEAR(r.rows_sd, flat.rows_sd, 0, 0);
        d.top_k = 3;
        CHECK_I64(moe_ep_chance_grouped(40, 3, 24, 7, 4, 2, &c, NULL), MOE_EP_OK);
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.busiest_rows, c.max_over_mean * 120 / 7, 1e-12, 0);
        CHECK_NEAR(r.excess, c.max_over_mean - 1, 1e-12, 0);
        CHECK_NEAR(r.rows_sd, c.one_sd * 120 / 7, 1e-12, 0);
        d.num_devices = 60;
        CHECK_I64(moe_ep_chance_grouped(40, 3, 24, 24, 4, 2, &c, NULL), MOE_EP_OK);
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.busiest_rows, c.max_over_mean * 5, 1e-12, 0);
        CHECK_NEAR(r.rows_sd, sqrt(40 * 0.125 * 0.875 * 24 / 60), 1e-12, 0);
        CHECK_NEAR(r.excess, r.busiest_rows / 2 - 1, 1e-12, 0);
        CHECK_NEAR(r.busiest_active, 1, 0, 0);
        d.num_devices = 1; /* has every row, whatever the shape */
        for (d.num_experts = 20; d.num_experts < 200; d.num_experts += 4)
            for (d.top_k = 3; d.top_k < 10; d.top_k++) {
                CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
                CHECK_NEAR(r.busiest_rows, 40 * d.top_k, 0, 0);
                CHECK_NEAR(r.rows_sd + r.excess, 0, 0, 0);
                CHECK_NEAR(r.busiest_active, r.active_total, 1e-9, 0);
            }
        d.tokens = 0;
        d.num_devices = 7;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.busiest_rows + r.busiest_active + r.rows_sd + r.excess, 0, 0, 0);
    }
}

/* ---- layer and step --------------------------------------------------------------------------------- */

static moe_ep_layer_desc v3_layer(const moe_ep_model *m, const moe_ep_machine *c, int32_t D)
{
    moe_ep_layer_desc d;
    memset(&d, 0, sizeof d);
    d.model = m;
    d.machine = c;
    d.num_devices = D;
    d.dispatch_wire = MOE_EP_WIRE_FP8;
    return d;
}

TEST(layer_time_of_a_profile)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_layer_desc d = v3_layer(&m, &c, 128);
    moe_ep_time_result r, half;
    moe_ep_device_time dev[128];
    int64_t rows[256];
    int i;
    for (i = 0; i < 256; i++) rows[i] = 256;
    CHECK(moe_ep_layer_time(&d, rows, &r, dev, NULL) == MOE_EP_OK); /* 256 x 256 rows = 64 tokens x 8 x 128 */
    CHECK_NEAR(us(r.dispatch_s), 111.9, 0, 0.1);
    CHECK_NEAR(us(r.compute_s), 71.05, 0, 0.01);
    CHECK_NEAR(us(r.combine_s), 181.4, 0, 0.1);
    CHECK(r.regime == MOE_EP_REGIME_NETWORK && dev[5].regime == MOE_EP_REGIME_NETWORK);
    CHECK_NEAR(r.serial_s, r.dispatch_s + r.compute_s + r.combine_s + r.shared_s, 1e-14, 0);
    CHECK_NEAR(r.no_barrier_s, r.serial_s, 1e-14, 0);
    CHECK_NEAR(r.balanced_s, r.compute_s, 1e-12, 0);
    CHECK_I64(r.max_rows, 512);
    CHECK_I64(r.max_active, 2);
    d.overlap = MOE_EP_OVERLAP_TWO_HIDDEN; /* each half loads all weights: more than half of the time */
    CHECK(moe_ep_layer_time(&d, rows, &half, NULL, NULL) == MOE_EP_OK);
    CHECK(half.total_s > 2 * (38e-6 + 38e-6));
    CHECK_NEAR(half.compute_s, r.compute_s, 1e-14, 0); /* stages printed are those of the whole batch */
}

TEST(halves_cost_as_much_as_the_whole_when_weights_bind)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_layer_desc d = v3_layer(&m, &c, 4);
    moe_ep_time_result r, two;
    int64_t rows[256];
    int i;
    m.num_shared = 0;
    c.ll_dispatch = c.ll_combine = link_of(0, 0, 0);
    for (i = 0; i < 256; i++) rows[i] = 4;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK(r.regime == MOE_EP_REGIME_WEIGHTS);
    d.overlap = MOE_EP_OVERLAP_TWO_EXPOSED;
    CHECK(moe_ep_layer_time(&d, rows, &two, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(two.total_s, 2 * r.compute_s, 0.01, 0);
    for (i = 0; i < 256; i++) rows[i] = 1; /* a single row lives in one half only */
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK(moe_ep_layer_time(&d, rows, &two, NULL, NULL) == MOE_EP_OK);
    CHECK(two.total_s < 1.2 * r.compute_s);
    d.attention_s = 1e-3;
    CHECK(moe_ep_layer_time(&d, rows, &two, NULL, NULL) == MOE_EP_ERR_CONFIG);
    d.attention_half_s = 0.7e-3;
    CHECK(moe_ep_layer_time(&d, rows, &two, NULL, NULL) == MOE_EP_OK);
}

/* The short way for half a batch gives what the general way gives, which hooks without members take. */
TEST(halves_either_way)
{
    uint64_t s = t_seed + 9;
    int round;
    for (round = 0; round < 400; round++) {
        moe_ep_model m = moe_ep_model_deepseek_v3();
        moe_ep_machine c = round % 2 ? moe_ep_machine_h800() : moe_ep_machine_gb200();
        moe_ep_layer_desc d = v3_layer(&m, &c, 1 + (int32_t)t_below(&s, 40));
        moe_ep_cost_hooks none;
        moe_ep_time_result one, two;
        int64_t rows[256];
        int i, zero = (int)t_below(&s, 4) == 0;
        c.ll_dispatch.row_s = 1e-9 * (double)t_below(&s, 3);
        c.ll_combine.peer_s = 1e-8 * (double)t_below(&s, 3);
        c.ll_combine.alpha_p = round % 2 ? 0.7 : 0.0;
        c.ll_combine.row_byte_s = 1e-9 * (double)t_below(&s, 2);
        c.ll_combine.crowd_s = 1e-13 * (double)t_below(&s, 2);
        c.ll_dispatch.pair_Bps = 1e10 * (double)t_below(&s, 2);
        c.ll_dispatch.short_s = 1e-5 * (double)t_below(&s, 2);
        c.ll_dispatch.short_Bps = 1e9 * (double)t_below(&s, 2);
        c.gemm.expert_s = 1e-7 * (double)t_below(&s, 3);
        c.gemm.tile = (int32_t)t_below(&s, 70);
        for (i = 0; i < 256; i++) rows[i] = zero && round % 8 ? 0 : t_below(&s, 300);
        d.mode = (moe_ep_a2a_mode)t_below(&s, 5);
        d.capacity = 20;
        d.num_nodes = 1;
        d.high_throughput = (int32_t)t_below(&s, 2);
        d.overlap = (moe_ep_overlap)(2 + t_below(&s, 3));
        d.attention_s = 100e-6;
        d.attention_half_s = 60e-6;
        memset(&none, 0, sizeof none);
        none.size = sizeof none;
        CHECK(moe_ep_layer_time(&d, rows, &one, NULL, NULL) == MOE_EP_OK);
        d.hooks = &none;
        CHECK(moe_ep_layer_time(&d, rows, &two, NULL, NULL) == MOE_EP_OK);
        CHECK(memcmp(&one, &two, sizeof one) == 0);
    }
}

/* Row 23: at 2 x 16 tokens two micro-batches lose, at 2 x 128 they gain; the turn is between 64 and 128. */
TEST(two_batches_pay_only_when_large)
{
    static const int tokens[] = {32, 64, 128, 256};
    double gain[4];
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    int i, j;
    for (i = 0; i < 4; i++) {
        moe_ep_layer_desc d = v3_layer(&m, &c, 72);
        moe_ep_time_result one, two;
        int64_t rows[288];
        d.num_slots = 288;
        d.tokens = tokens[i];
        for (j = 0; j < 288; j++) rows[j] = (int64_t)tokens[i] * 72 * 8 / 288;
        d.attention_s = 150e-6 + 1.5e-6 * tokens[i];
        d.attention_half_s = 150e-6 + 0.75e-6 * tokens[i];
        d.microbatch_s = 60e-6;
        CHECK(moe_ep_layer_time(&d, rows, &one, NULL, NULL) == MOE_EP_OK);
        d.overlap = MOE_EP_OVERLAP_TWO_EXPOSED;
        CHECK(moe_ep_layer_time(&d, rows, &two, NULL, NULL) == MOE_EP_OK);
        gain[i] = one.total_s / two.total_s;
        printf("    23 tokens %3d: one batch %6.1f us, two %6.1f us, gain %.2f\n", tokens[i], us(one.total_s),
               us(two.total_s), gain[i]);
    }
    CHECK(gain[0] < 1.0 && gain[3] > 1.0);
    CHECK(gain[0] < gain[1] && gain[1] < gain[2] && gain[2] < gain[3]);
}

static double table_us(void *user, int32_t device, int32_t active, int64_t rows, int64_t padded,
                       const int64_t *slot_rows, int32_t n)
{
    (void)padded;
    if (slot_rows) CHECK(n == 2);
    return *(double *)user + 10.0 * active + (double)rows + device;
}

static double wire_us(void *user, int32_t phase, int32_t device, double oi, double oo, double ii, double io)
{
    (void)user;
    (void)device;
    return phase ? oi + oo : ii + io;
}

TEST(hooks_replace_the_formulas)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c;
    moe_ep_layer_desc d;
    moe_ep_cost_hooks h;
    moe_ep_time_result r;
    moe_ep_error err;
    int64_t rows[8] = {1, 0, 3, 4, 0, 0, 7, 8};
    double base = 100.0;
    memset(&c, 0, sizeof c);
    d = v3_layer(&m, &c, 4);
    memset(&h, 0, sizeof h);
    h.size = sizeof h;
    h.user = &base;
    h.expert_us = table_us;
    d.hooks = &h;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(us(r.compute_s), 100 + 20 + 15 + 3, 1e-12, 0);
    CHECK_NEAR(us(r.dispatch_s), 0.0, 0, 0);
    h.a2a_us = wire_us;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK(r.dispatch_s > 0.0);
    base = -1000.0;
    memset(&r, 0x5a, sizeof r);
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, &err) == MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "hooks.expert_us");
    CHECK(((unsigned char *)&r)[0] == 0x5a);
    h.size = 3;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, &err) == MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "hooks.size");
}

TEST(layer_with_counted_traffic)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_layer_desc d = v3_layer(&m, &c, 4);
    moe_ep_time_result r;
    int64_t rows[8] = {10, 10, 20, 20, 5, 5, 30, 30},
            traffic[16] = {5, 10, 2, 15, 5, 10, 2, 15, 5, 10, 3, 15, 5, 10, 3, 15};
    moe_ep_a2a_desc a;
    d.traffic = traffic;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    memset(&a, 0, sizeof a);
    a.num_devices = 4;
    a.rows = traffic;
    a.row_bytes = (double)moe_ep_row_bytes(MOE_EP_WIRE_FP8, 4096, 0, NULL);
    a.link = c.ll_dispatch;
    CHECK_NEAR(r.dispatch_s, moe_ep_a2a_time(&a, NULL, NULL), 1e-14, 0);
    a.row_bytes = 8192;
    a.link = c.ll_combine;
    a.reverse = 1;
    CHECK_NEAR(r.combine_s, moe_ep_a2a_time(&a, NULL, NULL), 1e-14, 0);
    CHECK_I64(r.busiest_device, 3);
    CHECK_I64(r.max_rows, 60);
    CHECK(r.no_barrier_s <= r.serial_s);
}

/* Every sum of a step against its layers one by one. */
TEST(a_step_is_the_sum_of_its_layers)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    enum { L = 5, E = 256 };
    int64_t rows[L * E];
    uint64_t s = t_seed + 77;
    int overlap, l, i;
    m.num_moe_layers = L;
    for (i = 0; i < L * E; i++) rows[i] = t_below(&s, 40 * (1 + i / E));
    for (overlap = 0; overlap < 3; overlap++) {
        moe_ep_step_desc d;
        moe_ep_step_result r;
        moe_ep_time_result t, sum;
        double layer[L];
        memset(&d, 0, sizeof d);
        memset(&sum, 0, sizeof sum);
        d.layer = v3_layer(&m, &c, 32);
        d.layer.overlap = (moe_ep_overlap)overlap;
        d.layer.tokens = 128;
        d.num_layers = L;
        CHECK(moe_ep_step(&d, rows, &r, layer, NULL) == MOE_EP_OK);
        for (l = 0; l < L; l++) {
            CHECK(moe_ep_layer_time(&d.layer, rows + l * E, &t, NULL, NULL) == MOE_EP_OK);
            CHECK_NEAR(layer[l], t.total_s, 1e-12, 0);
            sum.total_s += t.total_s;
            sum.serial_s += t.serial_s;
            sum.no_barrier_s += t.no_barrier_s;
            sum.dispatch_s += t.dispatch_s;
            sum.compute_s += t.compute_s;
            sum.combine_s += t.combine_s;
            sum.shared_s += t.shared_s;
            sum.balanced_s += t.balanced_s;
            sum.balanced_total_s += t.balanced_total_s;
            sum.max_rows += t.max_rows;
        }
        CHECK(sum.shared_s > 0 && sum.balanced_s > 0 && sum.no_barrier_s > 0);
        CHECK_NEAR(r.step_s, sum.total_s, 1e-12, 0);
        CHECK_NEAR(r.serial_s, sum.serial_s, 1e-12, 0);
        CHECK_NEAR(r.no_barrier_s, sum.no_barrier_s, 1e-12, 0);
        CHECK_NEAR(r.dispatch_s, sum.dispatch_s, 1e-12, 0);
        CHECK_NEAR(r.compute_s, sum.compute_s, 1e-12, 0);
        CHECK_NEAR(r.combine_s, sum.combine_s, 1e-12, 0);
        CHECK_NEAR(r.shared_s, sum.shared_s, 1e-12, 0);
        CHECK_NEAR(r.balanced_s, sum.balanced_s, 1e-12, 0);
        CHECK_NEAR(r.balanced_step_s, sum.balanced_total_s, 1e-12, 0);
        CHECK_I64(r.max_rows, sum.max_rows);
    }
}

TEST(step_sums_layers)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c;
    moe_ep_step_desc d;
    moe_ep_step_result r;
    moe_ep_error err;
    double layer[2];
    int64_t rows[16];
    int i;
    memset(&c, 0, sizeof c);
    memset(&d, 0, sizeof d);
    c.flops[MOE_EP_MATH_BF16] = 6.0 * 4096 * 14336 * 1e6; /* one row = 1 us */
    d.layer = v3_layer(&m, &c, 8);
    d.num_layers = 2;
    for (i = 0; i < 16; i++) rows[i] = i < 8 ? 100 : 0;
    rows[9] = 300;
    m.num_moe_layers = 2;
    m.num_layers = 2;
    CHECK(moe_ep_step(&d, rows, &r, layer, NULL) == MOE_EP_OK);
    CHECK_NEAR(us(r.step_s), 400, 1e-12, 0);
    CHECK_NEAR(us(layer[0]), 100, 1e-12, 0);
    CHECK_NEAR(us(layer[1]), 300, 1e-12, 0);
    CHECK_I64(r.slowest_layer, 1);
    CHECK_I64(r.max_rows, 400);
    m.num_moe_layers = m.num_layers = 32;
    d.other_s = 1e-3;
    d.tokens_per_pass = 2.0;
    d.layer.tokens = 50;
    CHECK(moe_ep_step(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(us(r.step_s), 400 * 16 + 1000, 1e-12, 0);
    CHECK_NEAR(r.tpot_s, r.step_s / 2, 1e-14, 0);
    CHECK_NEAR(r.tokens_per_s_device, 50 / r.tpot_s, 1e-12, 0);
    CHECK_NEAR(r.tokens_per_s_node, 8 * r.tokens_per_s_device, 1e-12, 0);
    {   /* dense layers without rows, before and between: the same step */
        moe_ep_step_result sparse;
        int64_t dump[32] = {0};
        double each[4];
        memcpy(dump + 8, rows, 8 * sizeof *rows);
        memcpy(dump + 24, rows + 8, 8 * sizeof *rows);
        d.num_layers = 4;
        CHECK(moe_ep_step(&d, dump, &sparse, each, NULL) == MOE_EP_OK);
        CHECK_I64(sparse.slowest_layer, 3);
        CHECK(us(each[0]) < 1e-9 && us(each[2]) < 1e-9);
        CHECK_NEAR(us(each[1]), 100, 1e-12, 0);
        CHECK_NEAR(us(each[3]), 300, 1e-12, 0);
        CHECK_NEAR(sparse.step_s, r.step_s, 0, 0);
        CHECK_NEAR(sparse.compute_s, r.compute_s, 0, 0);
        CHECK_NEAR(sparse.tokens_per_s_device, r.tokens_per_s_device, 0, 0);
        CHECK_I64(sparse.max_rows, r.max_rows);
        d.layer.tokens = 0; /* those of the two loaded layers, ceil(800 / 2 / 8) and ceil(300 / 2 / 8), not of four */
        CHECK(moe_ep_step(&d, dump, &sparse, NULL, NULL) == MOE_EP_OK);
        CHECK_NEAR(sparse.tokens_per_s_device, 0.5 * (50 + 19) / sparse.tpot_s, 1e-12, 0);
        memset(dump, 0, sizeof dump); /* nothing at all: 32 empty layers */
        c.ll_dispatch.alpha_s = 1e-5;
        d.layer.tokens = 50;
        CHECK(moe_ep_step(&d, dump, &sparse, each, NULL) == MOE_EP_OK);
        CHECK_NEAR(us(sparse.step_s), 32 * 10 + 1000, 1e-12, 0);
        CHECK_NEAR(us(each[3]), 10, 1e-12, 0);
        CHECK_I64(sparse.slowest_layer, 0);
        dump[31] = -1; /* looked at all the same */
        dump[0] = 8;
        CHECK(moe_ep_step(&d, dump, &sparse, each, &err) == MOE_EP_ERR_NEGATIVE);
        c.ll_dispatch.alpha_s = 0;
        d.num_layers = 2;
    }
    m.num_moe_layers = m.num_layers = 2;
    d.other_s = 0;
    d.tokens_per_pass = 1.85;
    d.layer.tokens = 128;
    d.rows_per_sequence = 2;
    CHECK(moe_ep_step(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.tokens_per_s_device, 64 * 1.85 / 400e-6, 1e-12, 0);
    rows[12] = -1;
    layer[0] = 7;
    CHECK(moe_ep_step(&d, rows, &r, layer, &err) == MOE_EP_ERR_NEGATIVE);
    CHECK_NEAR(layer[0], 7, 0, 0);
    d.num_layers = 0;
    CHECK(moe_ep_step(&d, rows, &r, layer, &err) == MOE_EP_ERR_SIZE);
}

TEST(layer_errors)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_layer_desc d = v3_layer(&m, &c, 4), z = d;
    moe_ep_time_result r;
    moe_ep_error err;
    int64_t rows[8] = {1, 2, 3, 4, 5, 6, 7, 8}, traffic[16] = {0};
    int32_t start[3] = {0, 5, 3};
    moe_ep_placement p;
#define EXPECT(status, name)                                                                        \
    do {                                                                                            \
        memset(&r, 0x5a, sizeof r);                                                                 \
        CHECK_I64(moe_ep_layer_time(&d, rows, &r, NULL, &err), status);                             \
        CHECK_STR(err.arg, name);                                                                   \
        CHECK(((unsigned char *)&r)[3] == 0x5a);                                                    \
        d = z;                                                                                      \
    } while (0)
    CHECK_I64(moe_ep_layer_time(NULL, rows, &r, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_layer_time(&d, NULL, &r, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_layer_time(&d, rows, NULL, NULL, &err), MOE_EP_ERR_NULL);
    d.model = NULL;
    EXPECT(MOE_EP_ERR_NULL, "model");
    d.machine = NULL;
    EXPECT(MOE_EP_ERR_NULL, "machine");
    d.num_devices = 0;
    EXPECT(MOE_EP_ERR_SIZE, "num_devices");
    d.tokens = -1;
    EXPECT(MOE_EP_ERR_NEGATIVE, "tokens");
    d.mode = (moe_ep_a2a_mode)17;
    EXPECT(MOE_EP_ERR_RANGE, "mode");
    d.overlap = (moe_ep_overlap)17;
    EXPECT(MOE_EP_ERR_RANGE, "overlap");
    d.combine_wire = (moe_ep_wire)17;
    EXPECT(MOE_EP_ERR_RANGE, "combine_wire");
    d.attention_s = NAN;
    EXPECT(MOE_EP_ERR_NAN, "attention_s");
    d.mode = MOE_EP_A2A_NODE_DEDUP;
    d.traffic = traffic;
    EXPECT(MOE_EP_ERR_NULL, "node_traffic");
    traffic[2] = -4;
    d.traffic = traffic;
    EXPECT(MOE_EP_ERR_NEGATIVE, "traffic");
    c.gemm.p = 0.5;
    EXPECT(MOE_EP_ERR_RANGE, "machine.gemm.p");
    c = moe_ep_machine_h800();
    c.memory_Bps = INFINITY;
    EXPECT(MOE_EP_ERR_NAN, "machine.memory_Bps");
    c = moe_ep_machine_h800();
    memset(&p, 0, sizeof p);
    p.num_devices = 2;
    p.num_slots = 8;
    d.placement = &p;
    EXPECT(MOE_EP_ERR_NULL, "placement.slot_start");
    p.slot_start = start;
    d.placement = &p;
    EXPECT(MOE_EP_ERR_PLACEMENT, "placement.slot_start");
    rows[6] = -7;
    EXPECT(MOE_EP_ERR_NEGATIVE, "slot_rows");
    CHECK_I64(err.index, 6);
    rows[6] = INT64_MAX / 2;
    EXPECT(MOE_EP_ERR_OVERFLOW, "slot_rows");
#undef EXPECT
}

TEST(link_and_comm_errors)
{
    moe_ep_link l = link_of(1, 1, 1);
    moe_ep_comm_desc c = exchange(4, 16, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8);
    moe_ep_comm_result r;
    moe_ep_error err;
    CHECK_NEAR(us(moe_ep_comm_time(262144, 20e-6, 16e9, NULL)), 36.384, 1e-12, 0);
    CHECK_NEAR(moe_ep_comm_time(262144, 20e-6, 0, NULL), 20e-6, 1e-14, 0);
    CHECK_I64(moe_ep_comm_time(-1, 0, 0, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(moe_ep_comm_time(NAN, 0, 0, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_link_time(NULL, 0, 0, &err), MOE_EP_ERR_NULL);
    l.p = 0.3;
    CHECK_I64(moe_ep_link_time(&l, 0, 0, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_logical_time(&c, 0, 0.0, &err), MOE_EP_ERR_RANGE);
    c.num_nodes = 3;
    CHECK(moe_ep_comm_bytes(&c, &r, &err) == MOE_EP_ERR_SIZE);
    c.num_nodes = 2;
    c.tokens = -1;
    CHECK(moe_ep_comm_bytes(&c, &r, &err) == MOE_EP_ERR_NEGATIVE);
    c.tokens = 1;
    c.top_k = 300;
    CHECK(moe_ep_comm_bytes(&c, &r, &err) == MOE_EP_ERR_TOP_K);
    CHECK(moe_ep_comm_bytes(NULL, &r, &err) == MOE_EP_ERR_NULL);
    c = exchange(32, 4, MOE_EP_A2A_ALLGATHER, MOE_EP_WIRE_BF16);
    c.num_nodes = 1;
    CHECK(moe_ep_comm_bytes(&c, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.intra_rows, 32 * 3, 1e-12, 0);                      /* every other device's tokens */
    CHECK_NEAR(r.tp_allreduce_bytes, 2 * 0.75 * 128 * 14336, 1e-12, 0);
}

/* Tokens of an all-gather one by one: token t of a source goes to the devices that want more than t of its tokens, once
 * to a node, to the device of the source's place there, which forwards it. */
TEST(all_gathers_token_by_token)
{
    uint64_t s = t_seed + 70;
    int round;
    for (round = 0; round < 300; round++) {
        int32_t D = 1 + (int32_t)t_below(&s, 12), N = 1 + (int32_t)t_below(&s, D < 4 ? D : 4), node[12];
        int32_t first[5], size[5];
        int64_t rows[144];
        double near_out[12] = {0}, near_in[12] = {0}, far_out[12] = {0}, far_in[12] = {0};
        int whole = (int)t_below(&s, 2); /* every device wants every token */
        moe_ep_a2a_device dev[12];
        moe_ep_a2a_desc d;
        int32_t r, x, n, t, most = 0, land;
        for (r = 0; r < D; r++) node[r] = (int32_t)((int64_t)r * N / D);
        if (D > 2 && N == 2) node[1] = 0, node[D - 1] = 1, node[D / 2] = (int32_t)t_below(&s, 2);
        for (n = 0; n < N; n++) first[n] = D, size[n] = 0;
        for (r = 1; r < D; r++)
            if (node[r] < node[r - 1]) node[r] = node[r - 1];
        for (r = D - 1; r >= 0; r--) first[node[r]] = r, size[node[r]]++;
        for (r = 0; r < D; r++)
            for (t = (int32_t)t_below(&s, 9), x = 0; x < D; x++)
                rows[r * D + x] = whole ? t : (int64_t)t_below(&s, t + 1), most = t > most ? t : most;
        for (r = 0; r < D; r++)
            for (t = 0; t < most; t++)
                for (n = 0; n < N; n++) {
                    int wanted = 0;
                    if (size[n] == 0) continue;
                    land = first[n] + (r - first[node[r]]) % size[n];
                    for (x = first[n]; x < first[n] + size[n]; x++) {
                        if (t >= rows[r * D + x]) continue;
                        wanted = 1;
                        if (x != land) near_out[land]++, near_in[x]++;
                    }
                    if (wanted && n != node[r]) far_out[r]++, far_in[land]++;
                }
        memset(&d, 0, sizeof d);
        d.num_devices = D;
        d.num_nodes = N;
        d.node_of_device = node;
        d.mode = MOE_EP_A2A_ALLGATHER;
        d.rows = rows;
        d.row_bytes = 3.0;
        CHECK(moe_ep_a2a_time(&d, dev, NULL) >= 0);
        for (r = 0; r < D; r++) {
            CHECK_NEAR(dev[r].out_intra, 3 * near_out[r], 0, 0);
            CHECK_NEAR(dev[r].in_intra, 3 * near_in[r], 0, 0);
            CHECK_NEAR(dev[r].out_inter, 3 * far_out[r], 0, 0);
            CHECK_NEAR(dev[r].in_inter, 3 * far_in[r], 0, 0);
        }
        STOP_IF_FAILED("round %d", round);
    }
}

/* NCCL gathers 2 GB on 256 H100 at more than 200 GB/s of bus bandwidth (8 cards of 400 Gb/s a node); a row from each
 * device to each device of other nodes would take eight times as long there.  Counted and expected are the same. */
TEST(all_gather_crosses_once_per_node)
{
    moe_ep_machine h = moe_ep_machine_h100();
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_comm_desc c = exchange(128, 16, MOE_EP_A2A_ALLGATHER, MOE_EP_WIRE_BF16);
    moe_ep_comm_result r;
    moe_ep_layer_desc d = v3_layer(&m, &h, 16);
    moe_ep_time_result expected, counted;
    int64_t rows[256], traffic[256];
    double seconds;
    int i;
    c.num_nodes = 2;
    CHECK(moe_ep_comm_bytes(&c, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.inter_rows, 128, 0, 0);
    CHECK_NEAR(r.intra_rows, 1792, 0, 0);
    CHECK_NEAR(r.logical_rows, 128 * 16, 0, 0);
    c.tokens = 585;
    c.num_devices = 256;
    c.num_nodes = 32;
    CHECK(moe_ep_comm_bytes(&c, &r, NULL) == MOE_EP_OK);
    seconds = moe_ep_link_time(&h.normal_dispatch, r.dispatch_intra_bytes, r.dispatch_inter_bytes, NULL);
    CHECK(585 * 14336.0 * 255 / seconds > 200e9 && 585 * 14336.0 * 255 / seconds < 8 * 50e9);
    d.mode = MOE_EP_A2A_ALLGATHER;
    d.tokens = 100;
    for (i = 0; i < 256; i++) rows[i] = 50, traffic[i] = 100;
    CHECK(moe_ep_layer_time(&d, rows, &expected, NULL, NULL) == MOE_EP_OK);
    d.traffic = traffic;
    CHECK(moe_ep_layer_time(&d, rows, &counted, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(counted.dispatch_s, expected.dispatch_s, 1e-12, 0);
    CHECK_NEAR(counted.combine_s, expected.combine_s, 1e-12, 0);
}

/* ---- memory, configuration, payback -------------------------------------------------------------- */

TEST(memory_of_published_cases)
{
    moe_ep_model m = moe_ep_model_qwen3_30b_a3b();
    moe_ep_memory_desc d;
    moe_ep_memory_result one, two;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.num_devices = 1;
    CHECK(moe_ep_memory(&d, &one, NULL) == MOE_EP_OK);
    d.num_devices = 2;
    d.memory_bytes = 96e9;
    CHECK(moe_ep_memory(&d, &two, NULL) == MOE_EP_OK);
    PUBLISHED("memory saved per GPU, Qwen3-30B at EP2 (GB)", (one.routed_bytes - two.routed_bytes) * 1e-9,
              28.99, 0.0005);
    CHECK_NEAR(one.routed_bytes, 57.98e9, 1e-3, 0);
    CHECK(two.fits && !one.fits && two.kv_tokens > 0);
    m = moe_ep_model_deepseek_v3(); /* one redundant expert per rank */
    d.num_devices = 32;
    d.num_slots = 288;
    CHECK(moe_ep_memory(&d, &two, NULL) == MOE_EP_OK);
    CHECK_I64(two.slots, 9);
    PUBLISHED("redundant expert, DeepSeek-V3 (GB)", two.redundant_bytes * 1e-9, 2.554, 0.0005);
    d.num_slots = 288;
    d.num_devices = 72;
    CHECK(moe_ep_memory(&d, &two, NULL) == MOE_EP_OK);
    CHECK_I64(two.slots * 58, 232); /* experts per GPU, all layers of an NVL72 */
    d.num_slots = 255;
    CHECK(moe_ep_memory(&d, &two, &err) == MOE_EP_ERR_SLOTS);
    d.num_slots = 0;
    d.reserve_bytes = NAN;
    CHECK(moe_ep_memory(&d, &two, &err) == MOE_EP_ERR_NAN);
    d.reserve_bytes = 0;
    d.num_devices = 0;
    CHECK(moe_ep_memory(&d, &two, &err) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_memory(NULL, &two, &err) == MOE_EP_ERR_NULL);
    memset(&m, 0, sizeof m); /* the lab's demo: 8 experts of 4096 x 16384 on 2 devices, fp16 */
    m.num_moe_layers = 1;
    m.num_experts = 8;
    m.top_k = 2;
    m.hidden = 4096;
    m.inter = 16384;
    d.num_devices = 2;
    d.num_slots = 0;
    CHECK(moe_ep_memory(&d, &two, NULL) == MOE_EP_OK);
    {
        moe_ep_params_result p;
        CHECK(moe_ep_params(&m, &p, NULL) == MOE_EP_OK);
        CHECK_I64(p.layer + p.router, 1610645504);
        CHECK_I64(p.layer / 2 + p.router, 805339136);
        CHECK_NEAR(two.routed_bytes + two.router_bytes, 805339136.0 * 2, 0, 0);
    }
}

/* DeepSeek-V3 with --tp-size 8 on 8 H200: eight devices cut every expert, routed and shared, as SGLang, vLLM (without
 * --enable-expert-parallel) and TensorRT-LLM do.  An expert of 3 x 7168 x 2048, 58 layers, 1 byte a weight. */
TEST(experts_that_devices_cut)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_memory_desc d;
    moe_ep_memory_result whole, cut, odd;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.num_devices = 8;
    d.tensor_parallel = 8;
    d.memory_bytes = 141e9;
    CHECK(moe_ep_memory(&d, &whole, NULL) == MOE_EP_OK);
    d.num_devices = 1;
    CHECK(moe_ep_memory(&d, &cut, NULL) == MOE_EP_OK && !cut.fits); /* a copy of all experts on each */
    d.expert_tensor_parallel = 8;
    d.shared_tensor_parallel = 8;
    CHECK(moe_ep_memory(&d, &cut, NULL) == MOE_EP_OK && cut.fits && whole.fits);
    CHECK_I64(cut.slots, 256);
    CHECK_NEAR(cut.routed_bytes, 81738596352.0, 0, 0);
    CHECK_NEAR(cut.routed_bytes, whole.routed_bytes, 0, 0);
    CHECK_NEAR(cut.shared_bytes, 319291392.0, 0, 0);
    CHECK_NEAR(cut.shared_bytes, whole.shared_bytes / 8, 0, 0);
    CHECK_NEAR(cut.other_bytes, whole.other_bytes, 0, 0);
    CHECK_NEAR(cut.total_bytes, 84202971136.0, 0, 0);
    d.num_devices = 2; /* two groups of four, one redundant expert in each group: 129 slots of a quarter */
    d.num_slots = 258;
    d.expert_tensor_parallel = 4;
    CHECK(moe_ep_memory(&d, &cut, NULL) == MOE_EP_OK);
    CHECK_NEAR(cut.routed_bytes, 129.0 * 58 * 3 * 7168 * 512, 0, 0);
    CHECK_NEAR(cut.redundant_bytes, 58.0 * 3 * 7168 * 512, 0, 0);
    d.expert_tensor_parallel = 3; /* 683, 683 and 682 columns */
    CHECK(moe_ep_memory(&d, &odd, NULL) == MOE_EP_OK);
    CHECK_NEAR(odd.routed_bytes, 129.0 * 58 * 3 * 7168 * 683, 1e-15, 0);
}

TEST(low_latency_buffer)
{
    moe_ep_error err;
    CHECK_I64(moe_ep_ll_buffer_bytes(128, 7168, 288, 0, NULL), 2116291072);
    CHECK_I64(moe_ep_ll_buffer_bytes(128, 7168, 288, 1, NULL), 4LL * 288 * 128 * 14560 + 2560);
    CHECK_I64(moe_ep_ll_buffer_bytes(0, 7168, 288, 0, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_ll_buffer_bytes(INT32_MAX, INT32_MAX, INT32_MAX, 0, &err), MOE_EP_ERR_OVERFLOW);
}

TEST(experts_per_device)
{
    static const int32_t D[] = {8, 16, 32, 64}, want[] = {32, 16, 8, 4};
    int32_t lo, hi, n, i;
    for (i = 0; i < 4; i++) {
        CHECK(moe_ep_experts_per_device(256, D[i], &lo, &hi, &n, NULL) == MOE_EP_OK);
        CHECK(lo == want[i] && hi == want[i] && n == D[i]);
    }
    CHECK(moe_ep_experts_per_device(256, 72, &lo, &hi, &n, NULL) == MOE_EP_OK);
    CHECK(lo == 3 && hi == 4 && n == 40);
    CHECK(moe_ep_experts_per_device(0, 72, &lo, &hi, &n, NULL) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_experts_per_device(8, 2, NULL, &hi, &n, NULL) == MOE_EP_ERR_NULL);
}

static int has(const moe_ep_reason *r, int32_t n, const char *text, double have, double need)
{
    int32_t i;
    for (i = 0; i < n; i++)
        if (strstr(r[i].text, text) && fabs(r[i].have - have) < 1e-9 && fabs(r[i].need - need) < 1e-9) return 1;
    return 0;
}

TEST(config_reasons)
{
    moe_ep_config c;
    moe_ep_reason r[16];
    moe_ep_error err;
    int32_t n, need;
    moe_ep_model m = moe_ep_model_deepseek_v3();
    memset(&c, 0, sizeof c);
    c.num_experts = 256;
    c.top_k = 8;
    c.ep = 3;
    c.equal_slots = 1;
    CHECK(moe_ep_check_config(&c, r, 16, &n, &need, NULL) == MOE_EP_OK);
    CHECK_I64(need, 2);
    CHECK(n == 1 && has(r, n, "redundant slots needed", 0, 2));
    c.num_redundant = 3;
    CHECK(moe_ep_check_config(&c, r, 16, &n, &need, NULL) == MOE_EP_OK);
    CHECK(has(r, n, "redundant slots needed", 3, 5));
    c.num_redundant = 2;
    CHECK(moe_ep_check_config(&c, r, 16, &n, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(n, 0);
    c.num_redundant = 0;
    c.equal_slots = 0;
    c.must_divide = 1;
    c.tp = 2;
    CHECK(moe_ep_check_config(&c, r, 16, &n, NULL, NULL) == MOE_EP_OK);
    CHECK(n == 3 && has(r, n, "ep to divide", 1, 0) && has(r, n, "at most tp * dp", 3, 2) &&
          has(r, n, "unequal numbers of slots", 85, 86));
    CHECK(moe_ep_check_config(&c, r, 1, &n, NULL, NULL) == MOE_EP_OK && n == 3);
    c.ep = 300;
    c.top_k = 500;
    CHECK(moe_ep_check_config(&c, r, 16, &n, NULL, NULL) == MOE_EP_OK);
    CHECK(has(r, n, "more devices than slots", 300, 256) && has(r, n, "more experts than there are", 500, 256));
    memset(&c, 0, sizeof c);
    c.model = &m;
    c.ep = 8;
    c.num_nodes = 3;
    c.memory_bytes = 80e9;
    CHECK(moe_ep_check_config(&c, r, 16, &n, NULL, NULL) == MOE_EP_OK);
    CHECK(n == 3 && r[n - 1].severity == MOE_EP_WRONG && strstr(r[n - 1].text, "do not fit"));
    CHECK(moe_ep_check_config(&c, NULL, 3, &n, NULL, &err) == MOE_EP_ERR_NULL);
    c.ep = 0;
    CHECK(moe_ep_check_config(&c, r, 16, &n, NULL, &err) == MOE_EP_ERR_SIZE);
    CHECK(moe_ep_check_config(NULL, r, 16, &n, NULL, &err) == MOE_EP_ERR_NULL);
}

/* Reasons that are more than notes, and the first of them. */
static int32_t refused(const moe_ep_config *c, moe_ep_reason *first)
{
    moe_ep_reason r[16];
    int32_t n = 0, i, more = 0;
    CHECK(moe_ep_check_config(c, r, 16, &n, NULL, NULL) == MOE_EP_OK);
    for (i = n - 1; i >= 0; i--)
        if (r[i].severity != MOE_EP_NOTE) *first = r[i], more++;
    return more;
}

/* What servers are started with; truth from their source. */
TEST(configurations_of_servers)
{
    moe_ep_model v3 = moe_ep_model_deepseek_v3(), qwen;
    moe_ep_config c;
    moe_ep_reason r;
    memset(&c, 0, sizeof c); /* all of them with --tp-size 8 on 8 H200: each expert is cut over 8 */
    memset(&r, 0, sizeof r);
    c.model = &v3;
    c.ep = 1;
    c.tp = 8;
    c.memory_bytes = 141e9;
    CHECK_I64(refused(&c, &r), 0);
    c.memory_bytes = 84202971136.0; /* of weights, as in experts_that_devices_cut */
    CHECK_I64(refused(&c, &r), 0);
    c.memory_bytes -= 1;
    CHECK_I64(refused(&c, &r), 1);
    CHECK(strstr(r.text, "do not fit") && fabs(r.need - 84202971136.0) < 0.5);
    c.memory_bytes = 141e9; /* a copy of the experts on every device */
    c.expert_tp = 1;
    CHECK_I64(refused(&c, &r), 1);
    CHECK(strstr(r.text, "do not fit") && fabs(r.need - 658608185344.0) < 0.5);
    c.tp = 1, c.dp = 8; /* vLLM --data-parallel-size 8 without --enable-expert-parallel: cut over all 8, too */
    CHECK_I64(refused(&c, &r), 1);
    c.expert_tp = 0;
    CHECK_I64(refused(&c, &r), 0);
    c.tp = 0, c.dp = 0; /* the same with the devices alone */
    CHECK_I64(refused(&c, &r), 1);
    c.num_devices = 8;
    CHECK_I64(refused(&c, &r), 0);
    c.ep = 4, c.tp = 8, c.expert_tp = 3; /* 12 of 8 devices */
    CHECK_I64(refused(&c, &r), 2);
    CHECK(strstr(r.text, "ep * expert_tp") && r.have > 11.5 && r.have < 12.5 && r.need > 7.5 && r.need < 8.5);
    c.ep = 16, c.tp = 16, c.dp = 16, c.num_devices = 16, c.expert_tp = 0; /* SGLang's flags as they stand */
    CHECK_I64(refused(&c, &r), 1);
    CHECK(strstr(r.text, "not the devices there are") && r.have > 255.5 && r.have < 256.5 && r.need < 16.5);
    c.tp = 1; /* --tp 16 --dp 16 --enable-dp-attention */
    CHECK_I64(refused(&c, &r), 0);
    c.dp = 0, c.tp = 32; /* more than there are */
    CHECK_I64(refused(&c, &r), 1);
    c.tp = 3;
    CHECK_I64(refused(&c, &r), 1);
    CHECK(strstr(r.text, "not the devices there are") && r.have > 14.5 && r.have < 15.5 && r.need > 15.5);
    memset(&c, 0, sizeof c); /* 2048 columns over 3, over 32: 64 are no block of 128 */
    c.model = &v3;
    c.ep = 1;
    c.tp = 3;
    CHECK_I64(refused(&c, &r), 1);
    CHECK(r.severity == MOE_EP_WRONG && strstr(r.text, "its columns") && r.have > 2047.5 && r.need < 3.5);
    c.tp = 32;
    CHECK_I64(refused(&c, &r), 1);
    CHECK(r.severity == MOE_EP_WARNING && strstr(r.text, "blocks of 128") && r.have > 63.5 && r.have < 64.5);
    c.tp = 16;
    CHECK_I64(refused(&c, &r), 0);
    v3.weight_bytes = 0.5625; /* NVFP4 has blocks of 16 */
    c.tp = 32;
    CHECK_I64(refused(&c, &r), 0);
    qwen = moe_ep_model_qwen3_235b_a22b(); /* vLLM issue 17569: "output_size ... = 192 is not divisible by ... 128" */
    qwen.math = MOE_EP_MATH_FP8;
    qwen.weight_bytes = 1;
    c.model = &qwen;
    c.tp = 8;
    CHECK_I64(refused(&c, &r), 1);
    CHECK(strstr(r.text, "blocks of 128") && r.have > 191.5 && r.have < 192.5 && r.need > 127.5);
    c.ep = 8;
    CHECK_I64(refused(&c, &r), 0);
    c.ep = 1;
    c.tp = c.dp = INT32_MAX; /* more than are counted: of 1536 columns nobody has one */
    CHECK_I64(refused(&c, &r), 1);
    CHECK(strstr(r.text, "its columns") && r.need > 2147483646.5 && r.need < 2147483647.5);
}

static moe_ep_payback_desc from_12_to_10_ms(void)
{
    moe_ep_payback_desc d;
    memset(&d, 0, sizeof d);
    d.before_s = 12e-3;
    d.after_s = 10e-3;
    return d;
}

TEST(payback_verdict)
{
    moe_ep_payback_desc d;
    moe_ep_payback_result r;
    moe_ep_error err;
    double before;
    d = from_12_to_10_ms();
    d.time_error = 0.05;
    CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK && r.payoff == MOE_EP_PAYOFF_YES);
    CHECK_NEAR(r.ratio_low, 1.0857142857, 1e-9, 0);
    CHECK_NEAR(r.ratio_high, 1.3263157895, 1e-9, 0);
    d.need_ratio = 1.15;
    CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK && r.payoff == MOE_EP_PAYOFF_UNSURE);
    d.time_error = 0;
    CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK && r.payoff == MOE_EP_PAYOFF_YES);
    CHECK(r.ratio_low >= r.ratio && r.ratio_high <= r.ratio);
    d.need_ratio = 1.3;
    CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK && r.payoff == MOE_EP_PAYOFF_NO);
    for (before = 8e-3; before < 14e-3; before += 1e-4) { /* any two times within the error agree with a sure verdict */
        double a, b;
        d.before_s = before;
        d.time_error = 0.07;
        d.need_ratio = 1.15;
        CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK);
        for (a = -1; a <= 1; a++)
            for (b = -1; b <= 1; b++) {
                double true_ratio = before * (1 + 0.0699 * a) / (10e-3 * (1 + 0.0699 * b));
                if (r.payoff != MOE_EP_PAYOFF_UNSURE)
                    CHECK((true_ratio > 1.15 ? MOE_EP_PAYOFF_YES : MOE_EP_PAYOFF_NO) == r.payoff);
            }
    }
    d.time_error = 1;
    CHECK(moe_ep_payback(&d, &r, &err) == MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "time_error");
    d.time_error = -1;
    CHECK(moe_ep_payback(&d, &r, &err) == MOE_EP_ERR_NEGATIVE);
    d.time_error = 0;
    d.need_ratio = NAN;
    CHECK(moe_ep_payback(&d, &r, &err) == MOE_EP_ERR_NAN);
    CHECK_STR(err.arg, "need_ratio");
}

TEST(payback_in_steps)
{
    moe_ep_payback_desc d;
    moe_ep_payback_result r;
    moe_ep_error err;
    d = from_12_to_10_ms();
    d.moved_slots = 100;
    d.expert_bytes = 44040192;
    d.link_Bps = 50e9;
    CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.cost_s, 88.1e-3, 1e-3, 0);
    CHECK_NEAR(r.steps, 44.04, 1e-4, 0);
    CHECK(r.pays);
    d.before_s = 9e-3;
    CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK);
    CHECK(!r.pays && r.gain_s < 0 && fabs(r.steps) < 1e-300);
    d.after_s = 0;
    CHECK(moe_ep_payback(&d, &r, &err) == MOE_EP_ERR_RANGE);
    d.after_s = NAN;
    CHECK(moe_ep_payback(&d, &r, &err) == MOE_EP_ERR_NAN);
    d.after_s = 1;
    d.moved_slots = -1;
    CHECK(moe_ep_payback(&d, &r, &err) == MOE_EP_ERR_NEGATIVE);
    CHECK(moe_ep_payback(NULL, &r, &err) == MOE_EP_ERR_NULL);
}

TEST(balance_can_gain_nothing_on_one_device)
{
    moe_ep_model m = moe_ep_model_gpt_oss_20b(), v = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_gb200(), h = moe_ep_machine_h800();
    moe_ep_layer_desc d = v3_layer(&m, &c, 1);
    moe_ep_time_result r;
    int64_t rows[64];
    uint64_t s = t_seed;
    int i, n;
    for (i = 0; i < 32; i++) rows[i] = i == 0 ? 1000 : 100;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.balanced_s, r.compute_s, 0, 0);
    v.num_experts = 64;
    d = v3_layer(&v, &h, 1);
    d.num_slots = 64;
    for (i = 0; i < 64; i++) rows[i] = 2 * i + 1;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.balanced_s, r.compute_s, 0, 0);
    for (i = 0; i < 64; i++) rows[i] = 96; /* level already: nothing to gain on 4 devices either */
    d = v3_layer(&v, &h, 4);
    d.num_slots = 64;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.balanced_s, r.compute_s, 1e-12, 0);
    for (n = 0; n < 500; n++) {
        d = v3_layer(&v, &h, 1 + (int32_t)t_below(&s, 16));
        d.num_slots = 64;
        for (i = 0; i < 64; i++) rows[i] = t_below(&s, 3) ? (int64_t)t_below(&s, 400) : 0;
        CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
        CHECK(r.balanced_s > 0.0 && r.balanced_s <= r.compute_s);
        STOP_IF_FAILED("case %d", n);
    }
}

/* balanced_total_s is the layer with even rows, whatever the rows are; of one device, and of even rows, the layer. */
TEST(what_balance_can_gain_of_a_layer)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_layer_desc d = v3_layer(&m, &c, 32);
    moe_ep_time_result hot, even;
    int64_t rows[256], level[256], traffic[16] = {0, 40, 40, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    int64_t nodes[8] = {40, 80, 0, 0, 0, 0, 0, 0};
    uint64_t s = t_seed;
    int i, overlap, mode;
    for (i = 0; i < 256; i++) rows[i] = i < 8 ? 192 : 60, level[i] = 64;
    rows[255] -= 32; /* 256 x 64 in all: device 0 has three times its share */
    d.tokens = 64;
    d.overlap = MOE_EP_OVERLAP_NONE;
    d.dispatch_wire = MOE_EP_WIRE_FP8;
    CHECK(moe_ep_layer_time(&d, rows, &hot, NULL, NULL) == MOE_EP_OK);
    CHECK(moe_ep_layer_time(&d, level, &even, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(us(hot.total_s), 828.9, 0, 0.06); /* 215.4 + 195.2 + 382.1, of which even rows leave little: */
    CHECK_NEAR(us(even.total_s), 436.4, 0, 0.06);
    CHECK_NEAR(us(hot.balanced_total_s), 437.1, 0, 0.06); /* tiles of 60 and of 192 rows */
    CHECK_NEAR(us(hot.compute_s - hot.balanced_s), 44.2, 0, 0.06); /* compute alone is a ninth of the gain */
    for (overlap = 0; overlap < 5; overlap++)
        for (mode = 0; mode < 5; mode++) {
            d.overlap = (moe_ep_overlap)overlap;
            d.mode = (moe_ep_a2a_mode)mode;
            d.capacity = 10;
            CHECK(moe_ep_layer_time(&d, rows, &hot, NULL, NULL) == MOE_EP_OK);
            CHECK(moe_ep_layer_time(&d, level, &even, NULL, NULL) == MOE_EP_OK);
            CHECK_NEAR(even.balanced_total_s, even.total_s, 1e-12, 0);
            CHECK_NEAR(hot.balanced_total_s, even.total_s, 0.005, 0);
            CHECK(hot.balanced_total_s <= hot.total_s);
        }
    d.num_devices = 1;
    CHECK(moe_ep_layer_time(&d, rows, &hot, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(hot.balanced_total_s, hot.total_s, 0, 0);
    d = v3_layer(&m, &c, 4); /* counted rows: one of four devices sends 120, the mean sends 30 and receives 30 */
    d.num_nodes = 2;
    for (mode = 0; mode < 2; mode++) {
        double intra, inter;
        d.mode = mode ? MOE_EP_A2A_NODE_DEDUP : MOE_EP_A2A_PAIR;
        d.traffic = traffic;
        d.node_traffic = nodes;
        intra = mode ? 20 : 10; /* 40 inside node 0, and 40 on the one that lands there for both, or none */
        inter = 20;             /* 80 between the nodes */
        CHECK(moe_ep_layer_time(&d, level, &hot, NULL, NULL) == MOE_EP_OK);
        CHECK_NEAR(hot.balanced_total_s - hot.compute_s - hot.shared_s,
                   moe_ep_link_time_rows(&c.ll_dispatch, intra * 7392, inter * 7392, intra + inter,
                                         mode ? 4 : 256, NULL) +
                       moe_ep_link_time_rows(&c.ll_combine, intra * 14336, inter * 14336, intra + inter,
                                             mode ? 4 : 256, NULL),
                   1e-9, 0);
        CHECK(hot.balanced_total_s < hot.total_s);
    }
    m.num_experts = 64;
    for (i = 0; i < 400; i++) { /* never more than without balance */
        int e;
        d = v3_layer(&m, &c, 1 + (int32_t)t_below(&s, 16));
        d.num_slots = 64;
        d.overlap = (moe_ep_overlap)t_below(&s, 5);
        for (e = 0; e < 64; e++) rows[e] = t_below(&s, 3) ? (int64_t)t_below(&s, 400) : 0;
        CHECK(moe_ep_layer_time(&d, rows, &hot, NULL, NULL) == MOE_EP_OK);
        CHECK(hot.balanced_total_s > 0.0 && hot.balanced_total_s <= hot.total_s);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Where a placement has one node, the machine says how many there are, unless num_nodes does. */
TEST(nodes_of_a_placement_on_one_node)
{
    static char memory[8192];
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    moe_ep_layer_desc d = v3_layer(&m, &c, 32);
    moe_ep_time_result plain, placed;
    moe_ep_placement p;
    moe_ep_shape shape;
    moe_ep_error err;
    int64_t rows[256], traffic[32 * 32], node_traffic[32 * 4];
    int i;
    for (i = 0; i < 256; i++) rows[i] = 64;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 32;
    shape.num_slots = 256;
    CHECK(moe_ep_placement_init(&p, 1, 256, &shape, memory, sizeof memory, NULL) == MOE_EP_OK && p.num_nodes == 1);
    for (i = 0; i < 3; i++) {
        d.num_nodes = i;
        d.placement = NULL;
        CHECK(moe_ep_layer_time(&d, rows, &plain, NULL, NULL) == MOE_EP_OK);
        d.placement = &p;
        CHECK(moe_ep_layer_time(&d, rows, &placed, NULL, NULL) == MOE_EP_OK);
        CHECK_NEAR(placed.total_s, plain.total_s, 1e-12, 0);
    }
    d.num_nodes = 4;
    CHECK(moe_ep_layer_time(&d, rows, &plain, NULL, NULL) == MOE_EP_OK);
    d.num_nodes = 0;
    CHECK(moe_ep_layer_time(&d, rows, &placed, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(placed.total_s, plain.total_s, 1e-12, 0);
    d.num_nodes = 1;
    CHECK(moe_ep_layer_time(&d, rows, &placed, NULL, NULL) == MOE_EP_OK);
    CHECK(placed.dispatch_s < 0.9 * plain.dispatch_s);
    c.devices_per_node = 0; /* no nodes: all devices in reach of each other */
    d.num_nodes = 0;
    CHECK(moe_ep_layer_time(&d, rows, &plain, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(placed.total_s, plain.total_s, 1e-12, 0);
    c.devices_per_node = 8;
    for (i = 0; i < 32 * 32; i++) traffic[i] = 16;
    for (i = 0; i < 32 * 4; i++) node_traffic[i] = 60;
    d.traffic = traffic;
    d.node_traffic = node_traffic;
    d.mode = MOE_EP_A2A_NODE_DEDUP;
    placed.total_s = -7;
    CHECK(moe_ep_layer_time(&d, rows, &placed, NULL, &err) == MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "num_nodes");
    CHECK_NEAR(err.value, 4, 0, 0);
    CHECK_NEAR(placed.total_s, -7, 0, 0);
    c.devices_per_node = 32; /* the machine has one, too */
    CHECK(moe_ep_layer_time(&d, rows, &placed, NULL, NULL) == MOE_EP_OK);
    c.devices_per_node = 8;
    d.num_nodes = 4;
    CHECK(moe_ep_layer_time(&d, rows, &placed, NULL, NULL) == MOE_EP_OK);
    shape.num_nodes = 4; /* the placement says it */
    CHECK(moe_ep_placement_init(&p, 1, 256, &shape, memory, sizeof memory, NULL) == MOE_EP_OK && p.num_nodes == 4);
    d.num_nodes = 0;
    CHECK(moe_ep_layer_time(&d, rows, &plain, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(placed.total_s, plain.total_s, 1e-12, 0);
    d.num_nodes = 4;
    d.placement = NULL;
    CHECK(moe_ep_layer_time(&d, rows, &plain, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(placed.total_s, plain.total_s, 1e-12, 0);
}

TEST(slots_of_a_placement)
{
    static char memory[8192];
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    moe_ep_layer_desc d = v3_layer(&m, &c, 8);
    moe_ep_time_result r, plain;
    moe_ep_placement p;
    moe_ep_shape shape;
    moe_ep_error err;
    int64_t rows[256] = {0};
    d.num_slots = 255;
    r.total_s = -7;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, &err) == MOE_EP_ERR_SLOTS);
    CHECK_STR(err.arg, "num_slots");
    CHECK_NEAR(err.value, 255, 0, 0);
    CHECK_NEAR(r.total_s, -7, 0, 0);
    d.num_slots = 256;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, &err) == MOE_EP_OK);
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 8;
    CHECK(moe_ep_placement_init(&p, 1, 128, &shape, memory, sizeof memory, NULL) == MOE_EP_OK);
    d.placement = &p; /* of another model */
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, &err) == MOE_EP_ERR_SLOTS);
    CHECK_STR(err.arg, "placement.num_slots");
    m.num_experts = m.top_k = shape.num_devices = d.num_devices = 1; /* the least there is: one expert in one slot */
    m.num_groups = m.top_groups = d.num_slots = 0;
    rows[0] = 5000;
    CHECK(moe_ep_placement_init(&p, 1, 1, &shape, memory, sizeof memory, NULL) == MOE_EP_OK && p.num_slots == 1);
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK(r.compute_s > 0 && r.max_rows == 5000);
    d.placement = NULL;
    CHECK(moe_ep_layer_time(&d, rows, &plain, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.total_s, plain.total_s, 0, 0);
}

/* A kernel that is given all tokens: rows of the other devices cost their activation bytes. */
TEST(rows_of_other_devices)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine none = moe_ep_machine_h100(), c;
    moe_ep_layer_desc d = v3_layer(&m, &c, 4);
    moe_ep_time_result r, plain, mild;
    double bytes = 7168 + 4 * 2048 + 2048 + 2 * 7168, a, b;
    int64_t rows[256], slot[8] = {10, 0, 30, 0, 0, 0, 0, 0};
    int i;
    none.gemm.p = 0; /* sums that can be taken apart */
    c = none;
    c.gemm.other_byte_s = 1e-12;
    a = moe_ep_expert_time(&m, &none, slot, 8, NULL, NULL);
    b = moe_ep_expert_time(&m, &c, slot, 8, NULL, NULL);
    CHECK_NEAR(b - a, (40.0 * 256 / 8 - 40) * bytes * 1e-12, 1e-9, 0);
    c.gemm.other_reached = 1; /* 7 others for each of 40 tokens at most */
    CHECK_NEAR(moe_ep_expert_time(&m, &c, slot, 8, NULL, NULL) - a, 280 * bytes * 1e-12, 1e-9, 0);
    m.top_k = 0;
    CHECK_NEAR(moe_ep_expert_time(&m, &c, slot, 8, NULL, NULL), a, 1e-12, 0);
    m.top_k = 8;
    for (i = 0; i < 256; i++) rows[i] = i < 64 ? 20 : 4; /* 1280 rows on device 0, 256 on the others, 2048 in all */
    c = none;
    CHECK(moe_ep_layer_time(&d, rows, &plain, NULL, NULL) == MOE_EP_OK);
    c.gemm.other_byte_s = 1e-9;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_I64(r.slowest_device, 1); /* has most rows of others */
    CHECK_I64(plain.slowest_device, 0);
    CHECK_NEAR(r.compute_s, moe_ep_expert_time(&m, &none, rows + 64, 64, NULL, NULL) + 1792 * bytes * 1e-9, 1e-9, 0);
    CHECK_NEAR(r.shared_s, plain.shared_s, 1e-12, 0);
    c.gemm.other_reached = 1;
    m.top_k = 2; /* as many others as own rows: min(768, 1280) on device 0, 256 on the others */
    CHECK(moe_ep_layer_time(&d, rows, &mild, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(mild.compute_s, moe_ep_expert_time(&m, &none, rows, 64, NULL, NULL) + 768 * bytes * 1e-9, 1e-9, 0);
    m.top_k = 8;
    c.gemm.other_reached = 0;
    d.overlap = MOE_EP_OVERLAP_TWO_EXPOSED;
    CHECK(moe_ep_layer_time(&d, rows, &mild, NULL, NULL) == MOE_EP_OK);
    for (i = 0; i < 256; i++) rows[i] /= 2;
    a = moe_ep_expert_time(&m, &none, rows + 64, 64, NULL, NULL) + 896 * bytes * 1e-9;
    CHECK(mild.total_s > 2 * a && mild.total_s < 2.2 * a); /* half the rows of others in each half */
    for (i = 0; i < 256; i++) rows[i] = 8;
    d.overlap = MOE_EP_OVERLAP_NONE;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.balanced_s, r.compute_s, 1e-12, 0);
}

/* A machine whose seconds are its bytes: both sides in closed form. */
TEST(ep_against_tp_in_closed_form)
{
    moe_ep_model m;
    moe_ep_machine c;
    moe_ep_ep_vs_tp_desc d;
    moe_ep_ep_vs_tp_result r, skewed;
    int i;
    memset(&m, 0, sizeof m);
    memset(&c, 0, sizeof c);
    memset(&d, 0, sizeof d);
    m.num_moe_layers = 1;
    m.num_experts = 16;
    m.top_k = 2;
    m.hidden = 100;
    m.inter = 40;
    c.memory_Bps = 1e6;
    c.flops[MOE_EP_MATH_BF16] = 1e9;
    c.ll_dispatch.intra_Bps = c.ll_combine.intra_Bps = 1e6;
    c.normal_dispatch.alpha_s = 1;
    d.model = &m;
    d.machine = &c;
    d.num_devices = 4;
    d.tokens = 6;
    for (i = 0; i < 2; i++) {
        double K = 2, E = 16, H = 100, T = 24, matrices = m.ungated ? 2 : 3, up = m.ungated ? 1 : 2;
        double active = E * (1 - pow(1 - K / E, T)), I = 40, rows = 12, near, flops;
        CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.ep_weight_bytes, 4 * matrices * H * I * 2, 1e-12, 0);
        CHECK_NEAR(r.tp_weight_bytes, r.ep_weight_bytes, 1e-12, 0);
        CHECK_NEAR(r.tp_sent_bytes, 2 * 3 * 6 * H * 2, 1e-12, 0); /* 2 (D-1)/D of all tokens */
        CHECK_NEAR(r.ep_sent_bytes, 2 * rows * 0.75 * H * 2, 1e-12, 0);
        CHECK_NEAR(r.tp_comm_s, r.tp_sent_bytes / 1e6, 1e-12, 0);
        CHECK_NEAR(r.ep_comm_s, r.ep_sent_bytes / 1e6, 1e-12, 0);
        near = active / 4 * matrices * H * I * 2 + rows * 2 * (H + up * I + I + H);
        CHECK_NEAR(r.ep_compute_s, near / 1e6, 1e-12, 0);
        near = active * matrices * H * 10 * 2 + 4 * rows * 2 * (H + up * 10 + 10 + H);
        CHECK_NEAR(r.tp_compute_s, near / 1e6, 1e-12, 0);
        CHECK_NEAR(r.ep_s, r.ep_compute_s + r.ep_comm_s, 1e-12, 0);
        CHECK_NEAR(r.tp_s, r.tp_compute_s + r.tp_comm_s, 1e-12, 0);
        CHECK_NEAR(r.speedup, r.tp_s / r.ep_s, 1e-12, 0);
        d.imbalance = 2.5;
        CHECK(moe_ep_ep_vs_tp(&d, &skewed, NULL) == MOE_EP_OK);
        CHECK_NEAR(skewed.ep_compute_s - r.ep_compute_s, 1.5 * rows * 2 * (H + up * I + I + H) / 1e6, 1e-9, 0);
        CHECK_NEAR(skewed.ep_comm_s, 2.5 * r.ep_comm_s, 1e-12, 0); /* a row per choice: as many more arrive */
        CHECK_NEAR(skewed.ep_sent_bytes, r.ep_sent_bytes, 1e-12, 0);
        CHECK_NEAR(skewed.tp_s, r.tp_s, 1e-12, 0);
        d.mode = MOE_EP_A2A_RANK_DEDUP; /* 4 slots of 2.5 * 2 / 16; even ones reach 1 - C(12,2) / C(16,2) = 0.45 */
        CHECK(moe_ep_ep_vs_tp(&d, &skewed, NULL) == MOE_EP_OK);
        near = 1 - pow(1 - 0.3125, 4 * log(0.55) / (4 * log(1 - 0.125)));
        CHECK_NEAR(skewed.ep_comm_s, 2 * 6 * 3 * near * H * 2 / 1e6, 1e-12, 0);
        d.mode = MOE_EP_A2A_PAIR;
        d.imbalance = 0;
        c.memory_Bps = 0; /* products only, in tiles of 16: rows of an active expert are rounded up */
        c.gemm.tile = 16;
        CHECK(moe_ep_ep_vs_tp(&d, &skewed, NULL) == MOE_EP_OK);
        flops = 2 * matrices * H * I * active / 4 * 16;
        CHECK_NEAR(skewed.ep_compute_s, flops / 1e9, 1e-12, 0);
        CHECK_NEAR(skewed.tp_compute_s, flops / 1e9, 1e-12, 0);
        c.memory_Bps = 1e6;
        c.gemm.tile = 0;
        m.ungated = 1;
    }
    d.high_throughput = 1;
    CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.ep_comm_s, 1, 1e-12, 0); /* the normal links: 1 s and infinitely fast */
    CHECK_NEAR(r.tp_comm_s, 1, 1e-12, 0);
    d.high_throughput = 0;
    d.num_slots = 18; /* 5 on the fullest device */
    CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.ep_weight_bytes, 5 * 2 * 100 * 40 * 2, 1e-12, 0);
    d.num_slots = 0;
    c.devices_per_node = 2;
    c.ll_dispatch.inter_Bps = 1e3; /* two nodes: half of the slots are far */
    CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.ep_comm_s, 12 * 0.5 * 200 / 1e3 + 12 * 0.25 * 200 / 1e6, 1e-12, 0);
    d.num_nodes = 1;
    CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.ep_comm_s, r.ep_sent_bytes / 1e6, 1e-12, 0);
    m.inter = 41; /* slices of 11 columns */
    CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.tp_weight_bytes, 16 * 2 * 100 * 11 * 2, 1e-12, 0);
    c.ll_dispatch.peer_s = 1; /* experts in PAIR and PADDED, devices in the others */
    for (i = MOE_EP_A2A_PAIR; i <= MOE_EP_A2A_ALLGATHER; i++) {
        double peers = i == MOE_EP_A2A_PAIR || i == MOE_EP_A2A_PADDED ? 16 : 4;
        d.mode = (moe_ep_a2a_mode)i;
        d.capacity = 1;
        CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(floor(r.ep_comm_s), peers, 1e-12, 0);
    }
    m.top_k = 16; /* every expert is active */
    d.num_devices = 1;
    CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR(r.speedup, 1, 1e-12, 0);
    CHECK(!(r.ep_comm_s > 0.0) && !(r.tp_comm_s > 0.0));
    CHECK_NEAR(r.ep_compute_s, (16 * 2 * 100 * 41 * 2 + 96 * 2 * (100 + 41 + 41 + 100)) / 1e6, 1e-12, 0);
}

/* An imbalance of 1 is none: the same bits as where none is given. */
TEST(ep_against_tp_when_even)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_ep_vs_tp_desc d;
    moe_ep_ep_vs_tp_result none, even;
    for (int i = 0; i < 5 * 6; i++) {
        memset(&d, 0, sizeof d);
        memset(&none, 0, sizeof none);
        memset(&even, 0, sizeof even);
        d.model = &m;
        d.machine = &c;
        d.num_devices = 1 << (i / 5 + 1);
        d.tokens = 100;
        d.mode = (moe_ep_a2a_mode)(i % 5);
        d.capacity = 1;
        CHECK(moe_ep_ep_vs_tp(&d, &none, NULL) == MOE_EP_OK);
        d.imbalance = 1;
        CHECK(moe_ep_ep_vs_tp(&d, &even, NULL) == MOE_EP_OK);
        CHECK(memcmp(&none, &even, sizeof none) == 0);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(ep_against_tp_example_and_errors)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    moe_ep_ep_vs_tp_desc d, good;
    moe_ep_ep_vs_tp_result r;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.machine = &c;
    d.num_devices = 8;
    d.tokens = 64;
    d.dispatch_wire = MOE_EP_WIRE_FP8;
    CHECK(moe_ep_ep_vs_tp(&d, &r, &err) == MOE_EP_OK);
    CHECK_NEAR(r.ep_sent_bytes, 9734144, 0, 0.5);
    CHECK_NEAR(r.tp_sent_bytes, 12845056, 0, 0.5);
    CHECK_NEAR(1e6 * r.ep_s, 471.1, 0, 0.05);
    CHECK_NEAR(1e6 * r.tp_s, 500.3, 0, 0.05);
    CHECK_NEAR(r.speedup, 1.062, 0, 5e-4);
    d.mode = MOE_EP_A2A_PADDED; /* bytes follow the capacity, whatever the tokens */
    d.capacity = 64;
    CHECK(moe_ep_ep_vs_tp(&d, &r, &err) == MOE_EP_OK);
    {
        double bytes = r.ep_sent_bytes;
        d.capacity = 128;
        CHECK(moe_ep_ep_vs_tp(&d, &r, &err) == MOE_EP_OK);
        CHECK(bytes > 0);
        CHECK_NEAR(r.ep_sent_bytes, 2 * bytes, 1e-12, 0);
    }
    d.mode = MOE_EP_A2A_PAIR;
    d.capacity = 0;
    d.imbalance = 3;
    CHECK(moe_ep_ep_vs_tp(&d, &r, &err) == MOE_EP_OK);
    CHECK_NEAR(1e6 * r.ep_s, 556.0, 0, 0.05);
    CHECK_NEAR(r.speedup, 0.8999, 0, 5e-5);
    good = d;
    memset(&r, 0x5a, sizeof r);
#define WRONG(change, code, name)                                                                  \
    do {                                                                                           \
        moe_ep_ep_vs_tp_result kept = r;                                                           \
        change;                                                                                    \
        CHECK(moe_ep_ep_vs_tp(&d, &r, &err) == (code) && err.status == (code));                    \
        CHECK_STR(err.arg, name);                                                                  \
        CHECK(memcmp(&kept, &r, sizeof r) == 0);                                                   \
        d = good;                                                                                  \
        m = moe_ep_model_deepseek_v3();                                                            \
        c = moe_ep_machine_h200();                                                                 \
    } while (0)
    WRONG(d.model = NULL, MOE_EP_ERR_NULL, "model");
    WRONG(d.machine = NULL, MOE_EP_ERR_NULL, "machine");
    WRONG(m.hidden = 0, MOE_EP_ERR_SIZE, "model.hidden");
    WRONG(c.gemm.other_byte_s = -1, MOE_EP_ERR_NEGATIVE, "machine.gemm.other_byte_s");
    WRONG(c.devices_per_node = -1, MOE_EP_ERR_SIZE, "machine.devices_per_node");
    WRONG(c.ll_dispatch.alpha_s = NAN, MOE_EP_ERR_NAN, "link.alpha_s");
    WRONG(c.ll_combine.alpha_s = -1, MOE_EP_ERR_NEGATIVE, "link.alpha_s");
    WRONG((d.high_throughput = 1, c.normal_dispatch.alpha_s = NAN), MOE_EP_ERR_NAN, "link.alpha_s");
    WRONG((d.high_throughput = 1, c.normal_combine.alpha_s = NAN), MOE_EP_ERR_NAN, "link.alpha_s");
    WRONG(d.num_devices = 0, MOE_EP_ERR_SIZE, "num_devices");
    WRONG(d.num_nodes = -1, MOE_EP_ERR_SIZE, "num_nodes");
    WRONG(d.num_nodes = 3, MOE_EP_ERR_SIZE, "num_devices");
    WRONG(d.num_slots = -1, MOE_EP_ERR_SIZE, "num_slots");
    WRONG(d.num_slots = 255, MOE_EP_ERR_SLOTS, "num_slots");
    WRONG(d.tokens = 0, MOE_EP_ERR_RANGE, "tokens");
    WRONG(d.tokens = -1, MOE_EP_ERR_NEGATIVE, "tokens");
    WRONG(d.tokens = NAN, MOE_EP_ERR_NAN, "tokens");
    WRONG(d.imbalance = NAN, MOE_EP_ERR_NAN, "imbalance");
    WRONG(d.imbalance = 0.5, MOE_EP_ERR_RANGE, "imbalance");
    WRONG(d.imbalance = 8.5, MOE_EP_ERR_RANGE, "imbalance");
    WRONG(d.mode = (moe_ep_a2a_mode)9, MOE_EP_ERR_RANGE, "mode");
    WRONG(d.dispatch_wire = (moe_ep_wire)9, MOE_EP_ERR_RANGE, "dispatch_wire");
    WRONG((m.weight_bytes = 1e300, c.memory_Bps = 0), MOE_EP_ERR_OVERFLOW, "model.weight_bytes");
    WRONG((d.tokens = 1e290, c.memory_Bps = 1e-30), MOE_EP_ERR_OVERFLOW, "machine");
#undef WRONG
    CHECK(moe_ep_ep_vs_tp(NULL, &r, &err) == MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "desc");
    CHECK(moe_ep_ep_vs_tp(&d, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "out");
}

/* Hooks that fail at their n-th call: whoever asked stops with CONFIG and writes nothing. */
typedef struct failing {
    int calls, at;
} failing;

static double failing_us(failing *f)
{
    return f->calls++ == f->at ? (f->at % 2 ? NAN : -1.0) : 10.0;
}

static double failing_expert(void *user, int32_t device, int32_t active, int64_t rows, int64_t padded,
                             const int64_t *slot_rows, int32_t n)
{
    (void)device, (void)active, (void)rows, (void)padded, (void)slot_rows, (void)n;
    return failing_us((failing *)user);
}

static double failing_a2a(void *user, int32_t phase, int32_t device, double a, double b, double c, double d)
{
    (void)phase, (void)device, (void)a, (void)b, (void)c, (void)d;
    return failing_us((failing *)user);
}

TEST(hooks_that_fail_at_every_call)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    moe_ep_layer_desc d = v3_layer(&m, &c, 2);
    moe_ep_step_desc s;
    moe_ep_time_result r;
    moe_ep_step_result step;
    moe_ep_device_time devices[2];
    moe_ep_cost_hooks hooks;
    moe_ep_error err;
    failing f;
    int64_t rows[512];
    double layer_s[2];
    int i, two, asked, want;
    for (i = 0; i < 512; i++) rows[i] = 3 + i % 5;
    memset(&hooks, 0, sizeof hooks);
    hooks.size = sizeof hooks;
    hooks.user = &f;
    hooks.expert_us = failing_expert;
    hooks.a2a_us = failing_a2a;
    d.hooks = &hooks;
    for (two = 0; two < 2; two++)
        for (asked = 0; asked < 2; asked++) {
            d.overlap = two ? MOE_EP_OVERLAP_TWO_HIDDEN : MOE_EP_OVERLAP_NONE;
            want = 6 * (1 + 2 * two + asked); /* experts, dispatch, combine of 2 devices; halves; devices again */
            for (i = 0; i <= want; i++) {
                f.calls = 0, f.at = i;
                r.total_s = devices[0].compute_s = -7;
                CHECK(moe_ep_layer_time(&d, rows, &r, asked ? devices : NULL, &err) ==
                      (i < want ? MOE_EP_ERR_CONFIG : MOE_EP_OK));
                CHECK_I64(f.calls, i < want ? i + 1 : want);
                if (i < want) CHECK_I64(err.index, i / 3 % 2); /* the device asked about */
                CHECK((r.total_s < 0) == (i < want));
                /* the 3 last answers are the second device's, asked again */
                CHECK((devices[0].compute_s < 0) == (i < want - 3 || !asked));
            }
        }
    memset(&s, 0, sizeof s);
    s.layer = d;
    s.num_layers = 2;
    for (two = 0; two < 2; two++, memset(rows, 0, sizeof rows)) { /* the same where nothing is loaded */
        f.calls = 0, f.at = -1;
        CHECK(moe_ep_step(&s, rows, &step, layer_s, &err) == MOE_EP_OK);
        want = f.calls;
        CHECK(want >= 36); /* two layers, whole and in halves */
        for (i = 0; i < want; i++) {
            f.calls = 0, f.at = i;
            step.step_s = -7, layer_s[0] = -7;
            CHECK(moe_ep_step(&s, rows, &step, layer_s, &err) == MOE_EP_ERR_CONFIG);
            CHECK(step.step_s < 0);
            CHECK((layer_s[0] < 0) == (i < want / 4 * 3)); /* both layers, then the first one again */
        }
    }
}

/* A hook that refuses what it answered before: nothing is reported but the error, and what was written is right. */
TEST(hooks_that_refuse_when_asked_again)
{
    enum { D = 9, L = 5 };
    moe_ep_device_time devices[D];
    double layer_s[L];
    int64_t rows[D * L];
    moe_ep_model m;
    moe_ep_machine c;
    moe_ep_layer_desc d;
    moe_ep_step_desc s;
    moe_ep_time_result r;
    moe_ep_step_result step;
    moe_ep_cost_hooks hooks;
    moe_ep_error err;
    failing f;
    int i, k;
    memset(&m, 0, sizeof m);
    memset(&c, 0, sizeof c);
    m.num_moe_layers = m.num_experts = m.top_k = m.hidden = m.inter = 1;
    memset(&hooks, 0, sizeof hooks);
    hooks.size = sizeof hooks;
    hooks.user = &f;
    hooks.expert_us = failing_expert; /* 10 us for every device */
    d = v3_layer(&m, &c, 1);
    d.dispatch_wire = MOE_EP_WIRE_BF16;
    d.hooks = &hooks;
    memset(&s, 0, sizeof s);
    s.layer = d;
    s.layer.num_devices = 1;
    s.num_layers = L;
    d.num_devices = D;
    for (i = 0; i < D * L; i++) rows[i] = i + 1; /* a layer without rows is not asked for */
    for (i = 0; i <= 2 * D; i++) { /* 2 D: never */
        for (k = 0; k < D; k++) devices[k].compute_s = -7;
        r.total_s = -7;
        f.calls = 0, f.at = i;
        CHECK_I64(moe_ep_layer_time(&d, rows, &r, devices, &err), i < 2 * D ? MOE_EP_ERR_CONFIG : MOE_EP_OK);
        CHECK((r.total_s < 0) == (i < 2 * D));
        for (k = 0; k < D; k++) CHECK_NEAR(devices[k].compute_s, k < i - D ? 1e-5 : -7, 1e-12, 0);
    }
    for (i = 0; i <= 2 * L; i++) {
        for (k = 0; k < L; k++) layer_s[k] = -7;
        step.step_s = -7;
        f.calls = 0, f.at = i;
        CHECK_I64(moe_ep_step(&s, rows, &step, layer_s, &err), i < 2 * L ? MOE_EP_ERR_CONFIG : MOE_EP_OK);
        CHECK((step.step_s < 0) == (i < 2 * L));
        for (k = 0; k < L; k++) CHECK_NEAR(layer_s[k], k < i - L ? 1e-5 : -7, 1e-12, 0);
    }
}

/* A hook that spoils the caller's rows while they are used: said as the rows of a second look would be. */
typedef struct spoiling {
    int calls, at;
    int64_t *rows;
} spoiling;

static double spoiling_expert(void *user, int32_t device, int32_t active, int64_t rows, int64_t padded,
                              const int64_t *slot_rows, int32_t n)
{
    spoiling *f = (spoiling *)user;
    (void)device, (void)active, (void)rows, (void)padded, (void)slot_rows, (void)n;
    if (f->calls++ == f->at) f->rows[1] = -1;
    return 10.0;
}

TEST(rows_spoiled_by_a_hook)
{
    int64_t rows[3] = {1, 1, 1};
    double layer_s[3] = {-7, -7, -7};
    moe_ep_model m;
    moe_ep_machine c;
    moe_ep_step_desc s;
    moe_ep_step_result step;
    moe_ep_cost_hooks hooks;
    moe_ep_error err;
    spoiling spoil = {0, 3, NULL}; /* three layers, then the first one again */
    memset(&m, 0, sizeof m);
    memset(&c, 0, sizeof c);
    m.num_moe_layers = m.num_experts = m.top_k = m.hidden = m.inter = 1;
    memset(&hooks, 0, sizeof hooks);
    hooks.size = sizeof hooks;
    hooks.user = &spoil;
    hooks.expert_us = spoiling_expert;
    spoil.rows = rows;
    memset(&s, 0, sizeof s);
    s.layer = v3_layer(&m, &c, 1);
    s.layer.dispatch_wire = MOE_EP_WIRE_BF16;
    s.layer.hooks = &hooks;
    s.num_layers = 3;
    step.step_s = -7;
    CHECK_I64(moe_ep_step(&s, rows, &step, layer_s, &err), MOE_EP_ERR_NEGATIVE);
    CHECK(step.step_s < 0 && layer_s[0] > 0 && layer_s[1] < 0);
}

/* Counts beyond a number, one weight at a time: each of the sums alone can be too much. */
TEST(counts_beyond_a_number)
{
    moe_ep_model base, m;
    moe_ep_params_result r;
    moe_ep_error err;
    const int32_t huge = INT32_MAX;
    int32_t device[2] = {0, 2};
    int64_t loads[2] = {1, 1};
    int i;
    memset(&base, 0, sizeof base);
    base.num_moe_layers = base.num_experts = base.top_k = base.hidden = base.inter = 1;
    for (i = 0; i < 9; i++) {
        m = base;
        if (i == 0) m.hidden = huge, m.inter = huge;                                  /* one expert: 3 * 2^62 */
        if (i == 1) m.hidden = m.num_experts = huge, m.top_k = 1;                     /* a layer fits, .. */
        if (i == 1) m.inter = 2;
        if (i == 2) m.hidden = m.num_moe_layers = huge, m.inter = 2, m.num_layers = huge;
        if (i == 3) m.hidden = m.inter = 1 << 29;                                     /* routed: 3 * 2^58 > 2^60 / 2 */
        if (i == 3) m.num_experts = 2, m.top_k = 1;
        if (i == 4) m.num_shared = 1 << 15, m.shared_inter = 1 << 30, m.hidden = 1 << 14;
        if (i == 5) m.hidden = 1 << 30, m.num_experts = 1 << 30, m.ungated = 1, m.inter = 1; /* router 2^60 */
        if (i == 6) m.num_layers = 2, m.dense_inter = 1 << 30, m.hidden = 1 << 30;
        if (i == 7) m.attention_params = INT64_MAX / 4;
        if (i == 8) m.hidden = m.vocab = 1 << 30;
        memset(&r, 0x5a, sizeof r);
        CHECK(moe_ep_params(&m, &r, &err) == MOE_EP_ERR_OVERFLOW);
        CHECK_STR(err.arg, "model");
        CHECK_I64(r.expert, 0x5a5a5a5a5a5a5a5a);
        STOP_IF_FAILED("case %d", i);
    }
    CHECK(moe_ep_params(&base, &r, NULL) == MOE_EP_OK && r.expert == 3);
    CHECK_I64(moe_ep_ll_buffer_bytes(huge, huge, huge, 0, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_ll_buffer_bytes(1 << 20, 1 << 12, 1 << 28, 0, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_ll_buffer_bytes(1 << 21, 1 << 10, 1 << 28, 0, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_step_time(loads, 2, device, 2, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    device[1] = -1;
    CHECK_I64(moe_ep_step_time(loads, 2, device, 2, &err), MOE_EP_ERR_DEVICE_ID);
    device[1] = 1;
    CHECK_I64(moe_ep_step_time(loads, 2, device, 2, &err), 1);
}

TEST(results_beyond_a_number)
{
    moe_ep_model m = moe_ep_model_mixtral_8x7b(), v = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_layer_desc d = v3_layer(&v, &c, 4);
    moe_ep_step_desc step;
    moe_ep_step_result sr;
    moe_ep_time_result r;
    moe_ep_device_time dev[4];
    moe_ep_comm_desc x = exchange(1e308, 16, MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16);
    moe_ep_comm_result xr;
    moe_ep_memory_desc md;
    moe_ep_memory_result mr;
    moe_ep_payback_desc pd;
    moe_ep_payback_result pr;
    moe_ep_a2a_desc a;
    moe_ep_a2a_device ad[2];
    moe_ep_gemm_work gw;
    moe_ep_stages st;
    moe_ep_link l = link_of(0, 1e-300, 1);
    moe_ep_error err;
    int64_t rows[256], four[4] = {5, 3, 1, 7};
    double layer[1] = {7};
    int i;
    for (i = 0; i < 256; i++) rows[i] = 8;
#define OVER(call, name)                                                                            \
    do {                                                                                            \
        CHECK_NEAR((double)(call), MOE_EP_ERR_OVERFLOW, 0, 0);                                      \
        CHECK_STR(err.arg, name);                                                                   \
    } while (0)
    d.tokens = INT64_MAX;
    memset(&r, 0x5a, sizeof r);
    memset(dev, 0x5a, sizeof dev);
    OVER(moe_ep_layer_time(&d, rows, &r, dev, &err), "tokens");
    d.tokens = INT64_MAX / 8;
    CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK && r.shared_s > 0.0);
    d.tokens = 16;
    memset(&r, 0x5a, sizeof r);
    c.memory_Bps = 1e-308;
    OVER(moe_ep_layer_time(&d, rows, &r, dev, &err), "machine");
    OVER(moe_ep_expert_time(&v, &c, rows, 8, dev, &err), "machine");
    c = moe_ep_machine_h800();
    d.attention_s = 1.7e308;
    c.gemm.t0_s = 8e307;
    OVER(moe_ep_layer_time(&d, rows, &r, dev, &err), "attention_s");
    CHECK(((unsigned char *)&r)[3] == 0x5a && ((unsigned char *)dev)[3] == 0x5a);
    c = moe_ep_machine_h800();
    d.attention_s = 0;
    memset(&step, 0, sizeof step);
    step.layer = d;
    step.num_layers = 1;
    step.layer.attention_s = 1e307;
    OVER(moe_ep_step(&step, rows, &sr, layer, &err), "other_s");
    step.layer.attention_s = 0;
    step.tokens_per_pass = 5e-324;
    OVER(moe_ep_step(&step, rows, &sr, layer, &err), "tokens_per_pass");
    CHECK_NEAR(layer[0], 7, 0, 0);
    memset(&md, 0, sizeof md);
    md.model = &m;
    md.num_devices = 8;
    md.memory_bytes = 1e300;
    memset(&mr, 0x5a, sizeof mr);
    OVER(moe_ep_memory(&md, &mr, &err), "memory_bytes");
    CHECK(((unsigned char *)&mr)[3] == 0x5a);
    md.memory_bytes = 1e18;
    CHECK(moe_ep_memory(&md, &mr, &err) == MOE_EP_OK && mr.kv_tokens > 0);
    m.weight_bytes = 1e308;
    OVER(moe_ep_memory(&md, &mr, &err), "model");
    OVER(moe_ep_group_gemm(&m, rows, 8, 64, &gw, &err), "model");
    OVER(moe_ep_comm_time(1e308, 0, 1e-300, &err), "bytes");
    OVER(moe_ep_link_time(&l, 1e100, 0, &err), "link");
    l.intra_Bps = 1e-200;
    OVER(moe_ep_link_time(&l, 1e200, 0, &err), "link");
    memset(&xr, 0x5a, sizeof xr);
    OVER(moe_ep_comm_bytes(&x, &xr, &err), "tokens");
    CHECK(((unsigned char *)&xr)[3] == 0x5a);
    x.tokens = 4;
    OVER(moe_ep_logical_time(&x, 0, 5e-324, &err), "bytes_per_s");
    OVER(moe_ep_logical_Bps(&x, 1, 5e-324, &err), "time_s");
    x.mode = MOE_EP_A2A_PADDED;
    x.capacity = 1e308;
    OVER(moe_ep_comm_bytes(&x, &xr, &err), "capacity");
    memset(&a, 0, sizeof a);
    a.num_devices = 2;
    a.rows = four;
    a.row_bytes = 1e308;
    a.link = link_of(0, 1, 1);
    memset(ad, 0x5a, sizeof ad);
    OVER(moe_ep_a2a_time(&a, ad, &err), "row_bytes");
    a.row_bytes = 1000;
    a.link.intra_Bps = 1e-306;
    OVER(moe_ep_a2a_time(&a, ad, &err), "link");
    CHECK(((unsigned char *)ad)[3] == 0x5a);
    memset(&st, 0, sizeof st);
    st.dispatch_s = st.compute_s = 1e308;
    OVER(moe_ep_compose(MOE_EP_OVERLAP_NONE, &st, NULL, 0, &err), "first");
    memset(&pd, 0, sizeof pd);
    pd.before_s = 1e300;
    pd.after_s = 5e-324;
    OVER(moe_ep_payback(&pd, &pr, &err), "after_s");
    pd.before_s = pd.after_s = 1;
    pd.moved_slots = 1;
    pd.expert_bytes = 1e308;
    pd.link_Bps = 0.5;
    OVER(moe_ep_payback(&pd, &pr, &err), "link_Bps");
#undef OVER
}

/* Chance that K of n distinct experts miss b given ones. */
static double misses(int n, int b, int K)
{
    double p = 1;
    int i;
    if (n - b < K) return 0;
    for (i = 0; i < K; i++) p *= (double)(n - b - i) / (n - i);
    return p;
}

/* Every choice of groups and every device and node, one by one. */
static void check_blocks(int G, int size, int M, int K, int D, int N)
{
    int drawn, ways = 0, i, e;
    double sum = 0, nodes = 0;
    moe_ep_expect_desc d;
    moe_ep_expect_result r;
    memset(&d, 0, sizeof d);
    d.tokens = 1;
    d.num_experts = G * size;
    d.top_k = K;
    d.num_devices = D;
    d.num_nodes = N;
    d.num_groups = G;
    d.top_groups = M;
    CHECK_I64(moe_ep_expect(&d, &r, NULL), MOE_EP_OK);
    for (drawn = 0; drawn < 1 << G; drawn++) {
        for (i = e = 0; i < G; i++) e += drawn >> i & 1;
        if (e != M) continue;
        ways++;
        for (i = 0; i < D; i++) {
            int inside = 0;
            for (e = 0; e < G * size; e++) inside += block_of(e, G * size, D) == i && drawn >> (e / size) & 1;
            sum += 1 - misses(M * size, inside, K);
        }
        for (i = 0; i < (N > 1 ? N : 1); i++) { /* 0 = one node */
            int inside = 0;
            for (e = 0; e < G * size; e++)
                inside += (N < 2 ? 0 : D % N ? block_of(e, G * size, N) : block_of(e, G * size, D) / (D / N)) == i &&
                          drawn >> (e / size) & 1;
            nodes += 1 - misses(M * size, inside, K);
        }
    }
    CHECK_NEAR(r.distinct_devices, sum / ways, 1e-11, 1e-11);
    CHECK_NEAR(r.distinct_nodes, nodes / ways, 1e-11, 1e-11);
}

TEST(blocks_and_groups_one_by_one)
{
    uint64_t s = t_seed + 40;
    int round, G, size, M, K, D;
    for (round = 0; round < 2000 && !t_failed_here; round++) {
        G = 1 + (int)t_below(&s, 7), size = 1 + (int)t_below(&s, 7), M = 1 + (int)t_below(&s, (uint64_t)G);
        K = 1 + (int)t_below(&s, (uint64_t)(M * size)), D = 1 + (int)t_below(&s, (uint64_t)(2 * G * size));
        check_blocks(G, size, M, K, D, (int)t_below(&s, (uint64_t)D + 1));
    }
    for (G = 2; G <= 7; G++) /* devices with parts of two groups and whole ones between them */
        for (size = 1; size <= 7; size += 1 + (t_slow() > 1))
            for (M = 1; M < G; M++)
                for (K = 1; K <= 2 && K <= M * size; K++)
                    for (D = 2; D <= G && !t_failed_here; D++) check_blocks(G, size, M, K, D, D % 2 ? 1 : D / 2);
}

/* As many devices as there can be, and as many groups, are counted at once; beyond that they are refused. */
TEST(huge_numbers_of_devices_and_groups)
{
    moe_ep_expect_desc d;
    moe_ep_expect_result r;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.tokens = 1;
    d.num_experts = 1 << 20;
    d.top_k = 8;
    d.num_devices = INT32_MAX;
    d.num_nodes = 1 << 30;
    d.num_groups = 1024;
    d.top_groups = 512;
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_OK);
    CHECK_NEAR(r.distinct_devices, 8, 1e-9, 0);
    CHECK_NEAR(r.distinct_nodes, 8, 1e-9, 0);
    d.num_devices = 1000;
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_ERR_SIZE); /* more nodes than devices */
    CHECK_STR(err.arg, "num_nodes");
    CHECK_NEAR(err.value, 1 << 30, 0, 0);
    d.num_nodes = 1000;
    d.top_k = 1 << 18;
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_OK);
    CHECK(r.distinct_devices > 740 && r.distinct_devices < 780); /* a device has parts of two or three groups */
    d.num_groups = 2048; /* C(2048, 512) is beyond a double */
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "num_groups");
    d.top_groups = 0;
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_OK);
    d.num_experts = 1 << 21;
    d.num_groups = 8;
    d.top_groups = 4;
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_ERR_CONFIG);
    d.top_groups = d.num_groups = 0;
    d.num_experts = d.num_devices = d.top_k = INT32_MAX;
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_OK);
    CHECK_NEAR(r.distinct_devices, 2147483647.0, 1e-9, 0);
    d.num_devices = d.num_nodes = 1;
    CHECK_I64(moe_ep_expect(&d, &r, &err), MOE_EP_OK);
    CHECK_NEAR(r.distinct_devices, 1, 1e-12, 0);
}

T_EXACT_MATH /* ties and thresholds as the library sees them */

/* ---- everything once more by hand: as the header's comments say it, one device and one slot at a time ---------- */

static double either(double v, double instead) { return v > 0 ? v : instead; }
static double over(double amount, double per_second) { return per_second > 0 ? amount / per_second : 0; }

/* (a^p + b^p)^(1/p); p = 0: the larger one, or for latencies the sum. */
static double norm_of(double a, double b, double p) { return p > 0 ? pow(pow(a, p) + pow(b, p), 1 / p) : fmax(a, b); }
static double sum_of(double a, double b, double p) { return p > 0 ? norm_of(a, b, p) : a + b; }

static double link_by_hand(const moe_ep_link *l, double intra, double inter, double rows, double row_bytes,
                           double peers)
{
    double share = (intra + inter) / fmax(peers - 1, 1), moved, s;
    double more = rows * l->row_s + peers * l->peer_s + row_bytes * l->row_byte_s;
    moved = norm_of(over(inter, l->inter_Bps) + inter * peers * l->crowd_s, over(intra, l->intra_Bps), l->p) +
            over(share, l->pair_Bps);
    s = l->alpha_in_norm ? norm_of(l->alpha_s + more, moved, l->p) : sum_of(l->alpha_s + more, moved, l->alpha_p);
    return l->short_s > 0 ? fmin(s, l->short_s + more + over(share, l->short_Bps)) : s;
}

/* Seconds of both products for experts of inner width I in so many slots; batch: rows of all devices, 0 = shared
 * experts; *memory and *flop if one of the two were all. */
static double experts_by_hand(const moe_ep_model *m, const moe_ep_machine *c, double I, double slots, double active,
                              double rows, double padded, double batch, double *memory, double *flop)
{
    double K = fmax(m->top_k, 1), tokens = batch / K, limit = c->gemm.small_tokens < 0 ? slots : c->gemm.small_tokens;
    double slower = 1, later = 1;
    int sees_all = !c->gemm.other_reached && (c->gemm.other_byte_s > 0 || c->gemm.other_multiplied);
    double H = m->hidden, U = m->ungated ? I : 2 * I, weight = either(m->weight_bytes, 2);
    double in = either(m->in_bytes, 2), out = either(m->out_bytes, 2), others = fmax(batch - rows, 0);
    double Bps = c->memory_Bps * either(c->gemm.mem_eff, 1), rate = c->flops[m->math] * either(c->gemm.flop_eff, 1);
    double up_bytes = H * in + U * out, down_bytes = I * in + H * out, mem[2], mul[2];
    if (c->gemm.other_reached) others = fmin(others, rows * fmax(m->top_k - 1, 0));
    if (c->gemm.other_multiplied) padded += others;
    if (!sees_all) tokens = fmin(tokens, rows); /* at most one here for every row */
    if (batch > 0 && c->gemm.small_tokens != 0 && tokens < limit + 0.5) /* the kernel of small batches */
        slower = either(c->gemm.small_byte, 1), later = either(c->gemm.small_t0, 1);
    mem[0] = slower * over(active * H * U * weight + rows * up_bytes, Bps);
    mem[1] = slower * over(active * I * H * weight + rows * down_bytes, Bps);
    mul[0] = over(2 * H * U * padded, rate);
    mul[1] = over(2 * I * H * padded, rate);
    *memory = rows > 0 ? mem[0] + mem[1] : 0;
    *flop = rows > 0 ? mul[0] + mul[1] : 0;
    if (!(rows > 0)) return 0;
    return sum_of(2 * (later * c->gemm.t0_s + active * c->gemm.expert_s),
                  norm_of(mem[0], mul[0], c->gemm.p) + norm_of(mem[1], mul[1], c->gemm.p) +
                      (up_bytes + down_bytes) * (rows * c->gemm.row_byte_s + others * c->gemm.other_byte_s),
                  c->gemm.t0_p);
}

static int64_t padded_by_hand(int64_t rows, int32_t tile)
{
    while (tile > 1 && rows % tile != 0) rows++;
    return rows;
}

static double row_bytes_by_hand(moe_ep_wire wire, double H, double extra)
{
    switch (wire) {
    case MOE_EP_WIRE_BF16: return 2 * H + extra;
    case MOE_EP_WIRE_FP32: return 4 * H + extra;
    case MOE_EP_WIRE_FP8: return H + 4 * ceil(H / 128) + extra;
    case MOE_EP_WIRE_MXFP8: return H + ceil(H / 32) + extra;
    case MOE_EP_WIRE_NVFP4: return ceil(H / 2) + ceil(H / 16) + extra;
    }
    return -1;
}

/* Rows a device sends of its T tokens, inside and between nodes, and as libraries count them. */
static void sent_by_hand(const moe_ep_model *m, moe_ep_a2a_mode mode, double D, double N, double T, double capacity,
                         double *intra, double *inter, double *logical)
{
    moe_ep_expect_desc d;
    moe_ep_expect_result r;
    memset(&d, 0, sizeof d);
    d.tokens = 1;
    d.num_experts = m->num_experts;
    d.top_k = m->top_k;
    d.num_groups = m->num_groups;
    d.top_groups = m->top_groups;
    d.num_devices = (int32_t)D;
    d.num_nodes = (int32_t)N;
    CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK); /* devices and nodes that a token reaches: counted above */
    *logical = T * (mode == MOE_EP_A2A_PAIR         ? m->top_k
                    : mode == MOE_EP_A2A_RANK_DEDUP ? r.distinct_devices
                    : mode == MOE_EP_A2A_NODE_DEDUP ? (N > 1 ? r.distinct_nodes : r.distinct_devices)
                                                    : D);
    if (mode == MOE_EP_A2A_PADDED) *logical = m->num_experts * capacity;
    *intra = *logical * (D / N - 1) / D;
    *inter = *logical * (N - 1) / N;
    if (mode == MOE_EP_A2A_ALLGATHER) *inter = T * (N - 1), *intra = T * (D - N); /* of the other D - 1 in all */
    if (mode != MOE_EP_A2A_NODE_DEDUP) return;
    *inter = T * r.distinct_nodes * (N - 1) / N;
    *intra = T * r.distinct_devices * (D / N - 1) / (D / N); /* forwarded inside the node by one of its devices */
}

static double compose_by_hand(moe_ep_overlap overlap, const moe_ep_stages *s)
{
    double network = s->dispatch_s + s->combine_s, experts = s->compute_s + s->shared_s;
    switch (overlap) {
    case MOE_EP_OVERLAP_NONE: return s->attention_s + network + experts;
    case MOE_EP_OVERLAP_SHARED:
        return s->attention_s + fmax(s->dispatch_s, s->shared_s) + s->compute_s + s->combine_s;
    case MOE_EP_OVERLAP_TWO_EXPOSED: return fmax(s->attention_s, experts + network);
    case MOE_EP_OVERLAP_TWO_HIDDEN: return fmax(s->attention_s + experts, network);
    case MOE_EP_OVERLAP_TWO_STAGGERED:
        return fmax(s->attention_s, s->combine_s) + fmax(experts, s->dispatch_s);
    }
    return -1;
}

/* Hooks whose answer depends on everything they are told. */
static double telling_expert(void *user, int32_t device, int32_t active, int64_t rows, int64_t padded,
                             const int64_t *slot_rows, int32_t n)
{
    double us = *(double *)user + 3 * active + 0.1 * (double)rows + 0.01 * (double)padded + 0.5 * device + 0.25 * n;
    int32_t i;
    for (i = 0; slot_rows && i < n; i++) us += 0.001 * (i + 1) * (double)slot_rows[i];
    return us;
}

static double telling_a2a(void *user, int32_t phase, int32_t device, double oi, double oo, double ii, double io)
{
    return *(double *)user + (phase ? 7 : 5) * 1e-4 * oi + 3e-4 * oo + 2e-4 * ii + 1e-4 * io + 0.3 * device;
}

/* A layer on D devices, slots start[r] .. start[r+1]-1 on device r, N nodes. */
typedef struct hand_layer {
    const moe_ep_layer_desc *d;
    int32_t D, N, P, start[9];
    const int32_t *node_of;
    double tokens;
    const int64_t *slot_rows;
} hand_layer;

static int32_t node_by_hand(const hand_layer *y, int32_t r) { return y->node_of ? y->node_of[r] : r * y->N / y->D; }

/* Chance that a token has a row on one of the devices of `node` (-1 = any node), or on device r alone (not -1). */
static double hit_by_hand(const hand_layer *y, int32_t node, int32_t r, double total)
{
    const moe_ep_model *m = y->d->model;
    double K = m->top_k, blocks = r >= 0 ? y->D : y->N, even, want, miss = 1, fullest = 0, sum = 0, hit;
    moe_ep_expect_desc d;
    moe_ep_expect_result x;
    int32_t i;
    memset(&d, 0, sizeof d);
    d.num_experts = m->num_experts;
    d.top_k = m->top_k;
    d.num_groups = m->num_groups;
    d.top_groups = m->top_groups;
    d.num_devices = y->D;
    d.num_nodes = y->N;
    CHECK(moe_ep_expect(&d, &x, NULL) == MOE_EP_OK);
    for (i = 0; i < y->P; i++) {
        int32_t on = 0;
        double share = fmin(1, K * (double)y->slot_rows[i] / total);
        if (i < y->start[0] || i >= y->start[y->D]) continue;
        while (i >= y->start[on + 1]) on++;
        if (r >= 0 ? on != r : node_by_hand(y, on) != node) continue;
        miss *= 1 - share;
        if (r < 0) continue;
        sum += share;
        fullest = fmax(fullest, share);
    }
    for (i = 0; r < 0 && i < y->D; i++) {
        if (node_by_hand(y, i) != node) continue;
        hit = hit_by_hand(y, -1, i, total);
        sum += hit;
        fullest = fmax(fullest, hit);
    }
    want = 1 - (r >= 0 ? x.distinct_devices : x.distinct_nodes) / blocks; /* missed where rows are even */
    even = pow(1 - K / y->P, y->P / blocks);
    want = want > 1e-12 ? log(want) : -700;
    even = even > 1e-12 ? log(even) : -700 * y->P / blocks;
    hit = 1 - pow(miss, want / even);
    return fmin(1, fmin(sum, fmax(fullest, hit)));
}

/* Every source's tokens, device by device: the share of them that a token lands on in a foreign node is 1 / devices. */
static void hits_by_hand(const hand_layer *y, int32_t r, double total, double *v)
{
    double T = y->tokens, hit[8], size[8], landed;
    int32_t s, q, node, mine = node_by_hand(y, r);
    memset(size, 0, sizeof size);
    for (q = 0; q < y->D; q++) hit[q] = hit_by_hand(y, -1, q, total), size[node_by_hand(y, q)] += 1;
    v[0] = v[1] = v[2] = v[3] = 0;
    if (y->d->mode == MOE_EP_A2A_RANK_DEDUP) {
        for (q = 0; q < y->D; q++) {
            int far = node_by_hand(y, q) != mine;
            if (q == r) continue;
            v[far] += T * hit[q];
            v[2 + far] += T * hit[r];
        }
        return;
    }
    for (node = 0; node < y->N; node++)
        if (node != mine && size[node] > 0) v[1] += T * hit_by_hand(y, node, -1, total);
    for (s = 0; s < y->D; s++) /* each source's tokens for this node land, then are handed to its other devices */
        for (q = 0; q < y->D; q++) {
            if (node_by_hand(y, q) != mine) continue;
            landed = node_by_hand(y, s) != mine ? T / size[mine] : s == q ? T : 0;
            if (q == r && node_by_hand(y, s) != mine) v[3] += landed * hit_by_hand(y, mine, -1, total);
            if (q != r) v[2] += landed * hit[r];
            if (q != r) v[0] += (node_by_hand(y, s) != mine ? T / size[mine] : s == r ? T : 0) * hit[q];
        }
}

/* What a device sends and receives in rows, {out intra, out inter, in intra, in inter}. */
static void volume_by_hand(const hand_layer *y, int32_t r, double device_rows, double total, double *v)
{
    const moe_ep_layer_desc *d = y->d;
    double logical, load = 1;
    if (d->traffic) {
        moe_ep_a2a_device dev[8];
        moe_ep_a2a_desc a;
        memset(&a, 0, sizeof a);
        a.num_devices = y->D;
        a.num_nodes = y->N;
        a.node_of_device = y->node_of;
        a.mode = d->mode;
        a.rows = d->traffic;
        a.node_rows = d->node_traffic;
        a.row_bytes = 1;
        CHECK(moe_ep_a2a_time(&a, dev, NULL) >= 0); /* counted token by token above */
        v[0] = dev[r].out_intra, v[1] = dev[r].out_inter, v[2] = dev[r].in_intra, v[3] = dev[r].in_inter;
        return;
    }
    if (total > 0 && (d->mode == MOE_EP_A2A_RANK_DEDUP || d->mode == MOE_EP_A2A_NODE_DEDUP)) {
        hits_by_hand(y, r, total, v);
        return;
    }
    sent_by_hand(d->model, d->mode, y->D, y->N, y->tokens, d->capacity, &v[0], &v[1], &logical);
    if (total > 0 && d->mode != MOE_EP_A2A_PADDED && d->mode != MOE_EP_A2A_ALLGATHER)
        load = device_rows * y->D / total;
    v[2] = v[0] * load;
    v[3] = v[1] * load;
}

static double wire_by_hand(const hand_layer *y, int combine, int32_t r, const double *v)
{
    const moe_ep_layer_desc *d = y->d;
    const moe_ep_machine *c = d->machine;
    double peers = d->mode == MOE_EP_A2A_PAIR || d->mode == MOE_EP_A2A_PADDED ? y->P : y->D;
    double row = combine ? row_bytes_by_hand(d->combine_wire, d->model->hidden, d->combine_extra)
                         : row_bytes_by_hand(d->dispatch_wire, d->model->hidden, d->dispatch_extra);
    const moe_ep_link *l = d->high_throughput ? (combine ? &c->normal_combine : &c->normal_dispatch)
                                              : (combine ? &c->ll_combine : &c->ll_dispatch);
    if (d->hooks && d->hooks->a2a_us) /* the combine takes the same rows back */
        return 1e-6 * (combine ? telling_a2a(d->hooks->user, 1, r, v[2] * row, v[3] * row, v[0] * row, v[1] * row)
                               : telling_a2a(d->hooks->user, 0, r, v[0] * row, v[1] * row, v[2] * row, v[3] * row));
    return link_by_hand(l, fmax(v[0], v[2]) * row, fmax(v[1], v[3]) * row, fmax(v[0] + v[1], v[2] + v[3]), row, peers);
}

/* half: 0 = the whole batch, 1 and 2 = its halves; slots with an odd row give it to the halves in turn.
 * *even: the stages of devices that all have the mean. */
static void part_by_hand(const hand_layer *y, const int64_t *slot_rows, int half, moe_ep_stages *stages,
                         moe_ep_stages *even, moe_ep_device_time *dev)
{
    const moe_ep_layer_desc *d = y->d;
    double share = half ? 0.5 : 1, shared_rows, total = 0, v[4], mean[4] = {0}, memory, flop, rows = 0, padded = 0;
    double active = 0, compute = 0, dispatch = 0, combine = 0;
    int odd = 0;
    int32_t r, s, k;
    memset(stages, 0, sizeof *stages);
    memset(dev, 0, 8 * sizeof *dev);
    for (s = 0; s < y->start[y->D]; s++) total += (double)slot_rows[s];
    for (s = y->start[y->D]; s < y->P; s++) total += (double)slot_rows[s];
    for (r = 0; r < y->D; r++) {
        moe_ep_device_time *t = &dev[r];
        double whole = 0;
        for (s = y->start[r]; s < y->start[r + 1]; s++) {
            int64_t n = slot_rows[s];
            whole += (double)n;
            if (half) n = n / 2 + (n % 2 && odd++ % 2 == half - 1);
            t->rows += n;
            t->padded_rows += padded_by_hand(n, d->machine->gemm.tile);
            t->active += n > 0;
        }
        t->compute_s = experts_by_hand(d->model, d->machine, d->model->inter, y->start[r + 1] - y->start[r], t->active,
                                       (double)t->rows, (double)t->padded_rows, total * share, &t->memory_s,
                                       &t->flop_s);
        if (d->hooks && d->hooks->expert_us)
            t->compute_s = 1e-6 * telling_expert(d->hooks->user, r, t->active, t->rows, t->padded_rows,
                                                 half ? NULL : slot_rows + y->start[r],
                                                 y->start[r + 1] - y->start[r]);
        if (y->D > 1) {
            volume_by_hand(y, r, whole, total, v);
            for (k = 0; k < 4; k++) v[k] *= share, mean[k] += v[k] / y->D;
            t->dispatch_s = wire_by_hand(y, 0, r, v);
            t->combine_s = wire_by_hand(y, 1, r, v);
        }
        rows += (double)t->rows / y->D, padded += (double)t->padded_rows / y->D, active += (double)t->active / y->D;
        compute += t->compute_s / y->D, dispatch += t->dispatch_s / y->D, combine += t->combine_s / y->D;
        t->regime = t->rows == 0                                ? MOE_EP_REGIME_IDLE
                    : t->dispatch_s + t->combine_s > t->compute_s ? MOE_EP_REGIME_NETWORK
                    : t->flop_s > t->memory_s                     ? MOE_EP_REGIME_FLOPS
                                                                  : MOE_EP_REGIME_WEIGHTS;
        stages->dispatch_s = fmax(stages->dispatch_s, t->dispatch_s);
        stages->compute_s = fmax(stages->compute_s, t->compute_s);
        stages->combine_s = fmax(stages->combine_s, t->combine_s);
    }
    shared_rows = ceil(y->tokens * share);
    if (d->model->num_shared > 0) {
        moe_ep_model shared = *d->model;
        shared.weight_bytes = either(shared.shared_weight_bytes, shared.weight_bytes);
        stages->shared_s = experts_by_hand(
            &shared, d->machine, (double)shared.num_shared * either(shared.shared_inter, shared.inter), 1, 1,
            shared_rows, (double)padded_by_hand((int64_t)shared_rows, d->machine->gemm.tile), 0, &memory, &flop);
    }
    stages->attention_s = half ? d->attention_half_s : d->attention_s;
    *even = *stages;
    if (y->D == 1) return;
    if (!d->hooks || !d->hooks->expert_us) /* a hook speaks of one device: the mean of what it says */
        compute = experts_by_hand(d->model, d->machine, d->model->inter, (double)y->start[y->D] / y->D, active, rows,
                                  padded, total * share, &memory, &flop);
    if (!d->hooks || !d->hooks->a2a_us) {
        dispatch = wire_by_hand(y, 0, 0, mean);
        combine = wire_by_hand(y, 1, 0, mean);
    }
    even->compute_s = fmin(compute, stages->compute_s);
    even->dispatch_s = fmin(dispatch, stages->dispatch_s);
    even->combine_s = fmin(combine, stages->combine_s);
}

/* Devices, nodes, slots and tokens of a description. */
static void shape_by_hand(const moe_ep_layer_desc *d, const int64_t *slot_rows, hand_layer *y)
{
    const moe_ep_placement *p = d->placement;
    int32_t near = d->machine->devices_per_node, r;
    double total = 0;
    memset(y, 0, sizeof *y);
    y->d = d;
    y->slot_rows = slot_rows;
    y->D = p ? p->num_devices : d->num_devices;
    y->P = p ? p->num_slots : d->num_slots > 0 ? d->num_slots : d->model->num_experts;
    y->N = d->num_nodes > 0 ? d->num_nodes : near > 0 ? (int32_t)ceil((double)y->D / near) : 1;
    if (p && p->device_node && p->num_nodes > 1) y->N = p->num_nodes, y->node_of = p->device_node;
    for (r = 0; r < y->D; r++) y->start[r + 1] = y->start[r] + y->P / y->D + (r < y->P % y->D);
    for (r = 0; p && r <= y->D; r++) y->start[r] = p->slot_start[r];
    for (r = 0; r < y->P; r++) total += (double)slot_rows[r];
    y->tokens = d->tokens > 0 ? (double)d->tokens : ceil(total / (d->model->top_k * y->D));
}

static void layer_by_hand(const moe_ep_layer_desc *d, const int64_t *slot_rows, moe_ep_time_result *r,
                          moe_ep_device_time *dev)
{
    moe_ep_device_time half_dev[8];
    moe_ep_stages whole, half, even;
    hand_layer y;
    double own = 0;
    int32_t i, k;
    shape_by_hand(d, slot_rows, &y);
    part_by_hand(&y, slot_rows, 0, &whole, &even, dev);
    memset(r, 0, sizeof *r);
    r->balanced_s = even.compute_s;
    r->balanced_total_s = compose_by_hand(d->overlap, &even);
    r->serial_s = compose_by_hand(MOE_EP_OVERLAP_NONE, &whole);
    r->total_s = compose_by_hand(d->overlap, &whole);
    if (d->overlap >= MOE_EP_OVERLAP_TWO_EXPOSED) {
        r->total_s = r->balanced_total_s = d->microbatch_s;
        for (k = 1; k <= 2; k++) {
            part_by_hand(&y, slot_rows, k, &half, &even, half_dev);
            r->total_s += compose_by_hand(d->overlap, &half);
            r->balanced_total_s += compose_by_hand(d->overlap, &even);
        }
    }
    r->dispatch_s = whole.dispatch_s;
    r->compute_s = whole.compute_s;
    r->combine_s = whole.combine_s;
    r->shared_s = whole.shared_s;
    for (i = 0; i < y.D; i++) {
        own = fmax(own, dev[i].dispatch_s + dev[i].compute_s + dev[i].combine_s);
        if (dev[i].compute_s > dev[r->slowest_device].compute_s) r->slowest_device = i;
        if (dev[i].rows > dev[r->busiest_device].rows) r->busiest_device = i;
        if (dev[i].active > r->max_active) r->max_active = dev[i].active;
        r->mean_compute_s += dev[i].compute_s / y.D;
    }
    r->max_rows = dev[r->busiest_device].rows;
    r->no_barrier_s = whole.attention_s + whole.shared_s + own;
    i = r->slowest_device;
    r->regime = dev[i].rows == 0                                        ? MOE_EP_REGIME_IDLE
                : whole.dispatch_s + whole.combine_s > whole.compute_s ? MOE_EP_REGIME_NETWORK
                : dev[i].flop_s > dev[i].memory_s                       ? MOE_EP_REGIME_FLOPS
                                                                        : MOE_EP_REGIME_WEIGHTS;
}

static double drawn(uint64_t *s, double size) { return t_below(s, 4) ? size * (0.2 + t_unit(s)) : 0; }

static double one_of(uint64_t *s, const double *list, int64_t n) { return list[t_below(s, n)]; }

static moe_ep_link drawn_link(uint64_t *s)
{
    static const double p[] = {0, 1, 1.5, 2, 6}, q[] = {0, 0.5, 1, 2};
    moe_ep_link l;
    memset(&l, 0, sizeof l);
    l.alpha_s = drawn(s, 1e-5);
    l.intra_Bps = drawn(s, 2e9);
    l.inter_Bps = drawn(s, 1e9);
    l.p = one_of(s, p, 5);
    l.alpha_in_norm = (int32_t)t_below(s, 3) == 0;
    l.row_s = drawn(s, 1e-7);
    l.peer_s = drawn(s, 1e-6);
    l.alpha_p = one_of(s, q, 4);
    l.row_byte_s = drawn(s, 1e-8);
    l.pair_Bps = drawn(s, 1e9);
    l.crowd_s = drawn(s, 1e-10);
    if (t_below(s, 3) == 0) l.short_s = drawn(s, 1e-5);
    l.short_Bps = drawn(s, 1e9);
    return l;
}

/* A model and a machine on which every term weighs something. */
static void drawn_world(uint64_t *s, moe_ep_model *m, moe_ep_machine *c)
{
    static const double p[] = {0, 1, 1.5, 2, 6}, q[] = {0, 0.5, 1, 2};
    memset(m, 0, sizeof *m);
    memset(c, 0, sizeof *c);
    m->num_moe_layers = 1 + (int32_t)t_below(s, 6);
    m->num_layers = t_below(s, 2) ? m->num_moe_layers + (int32_t)t_below(s, 3) : 0;
    m->num_experts = 4 * (1 + (int32_t)t_below(s, 5));
    m->top_k = 1 + (int32_t)t_below(s, 4);
    m->num_groups = (int32_t)t_below(s, 2) * 4;
    m->top_groups = m->num_groups && m->num_experts > 8 ? 2 + (int32_t)t_below(s, 3) : 0;
    m->num_shared = (int32_t)t_below(s, 3);
    m->hidden = 1 + (int32_t)t_below(s, 300);
    m->inter = 1 + (int32_t)t_below(s, 50);
    m->shared_inter = (int32_t)t_below(s, 2) * 33;
    m->dense_inter = (int32_t)t_below(s, 3) * 40;
    m->ungated = (int32_t)t_below(s, 2);
    m->vocab = (int32_t)t_below(s, 2) * 1000;
    m->tied = (int32_t)t_below(s, 2);
    m->attention_params = (int64_t)t_below(s, 2) * 7000;
    m->kv_elems = (int32_t)t_below(s, 2) * 20;
    m->math = (moe_ep_math)t_below(s, 3);
    m->weight_bytes = drawn(s, 1);
    m->other_weight_bytes = drawn(s, 1);
    m->shared_weight_bytes = drawn(s, 1);
    m->embedding_weight_bytes = drawn(s, 1);
    m->in_bytes = drawn(s, 1);
    m->out_bytes = drawn(s, 1);
    m->kv_bytes = drawn(s, 1);
    c->devices_per_node = (int32_t)t_below(s, 5);
    c->memory_Bps = drawn(s, 5e9);
    c->flops[0] = drawn(s, 4e11);
    c->flops[1] = drawn(s, 6e11);
    c->flops[2] = drawn(s, 8e11);
    c->gemm.t0_s = drawn(s, 5e-6);
    c->gemm.mem_eff = drawn(s, 0.8);
    c->gemm.flop_eff = drawn(s, 0.8);
    c->gemm.p = one_of(s, p, 5);
    c->gemm.tile = t_below(s, 2) ? 1 << t_below(s, 6) : (int32_t)t_below(s, 50);
    c->gemm.expert_s = drawn(s, 1e-6);
    c->gemm.row_byte_s = drawn(s, 1e-10);
    c->gemm.t0_p = one_of(s, q, 4);
    c->gemm.other_byte_s = t_below(s, 2) ? drawn(s, 1e-10) : 0;
    c->gemm.other_reached = (int32_t)t_below(s, 2);
    c->gemm.other_multiplied = t_below(s, 4) == 0;
    c->gemm.small_tokens = t_below(s, 2) ? (int32_t)t_below(s, 60) - 10 : 0; /* below 0: the slots */
    c->gemm.small_byte = drawn(s, 1.5);
    c->gemm.small_t0 = drawn(s, 1.5);
    c->ll_dispatch = drawn_link(s);
    c->ll_combine = drawn_link(s);
    c->normal_dispatch = drawn_link(s);
    c->normal_combine = drawn_link(s);
}

/* How rows travel, in any of the descriptions that say so. */
#define DRAWN_EXCHANGE(s, d)                                                                                           \
    do {                                                                                                               \
        (d)->mode = (moe_ep_a2a_mode)t_below(s, 5);                                                                    \
        (d)->dispatch_wire = (moe_ep_wire)t_below(s, 5);                                                               \
        (d)->combine_wire = (moe_ep_wire)t_below(s, 5);                                                                \
        (d)->dispatch_extra = (int32_t)t_below(s, 20);                                                                 \
        (d)->combine_extra = (int32_t)t_below(s, 20);                                                                  \
        (d)->capacity = drawn(s, 10);                                                                                  \
    } while (0)

/* Two results in one field; sums of both in all fields of a layer that a step adds up. */
#define SAME(field) CHECK_NEAR(got.field, want.field, 1e-11, 0)
#define SAME_STAGES()                                                                                                  \
    do {                                                                                                               \
        SAME(serial_s);                                                                                                \
        SAME(no_barrier_s);                                                                                            \
        SAME(dispatch_s);                                                                                              \
        SAME(compute_s);                                                                                               \
        SAME(combine_s);                                                                                               \
        SAME(shared_s);                                                                                                \
        SAME(balanced_s);                                                                                              \
    } while (0)

static int64_t drawn_rows(uint64_t *s)
{
    static const int64_t most[] = {1, 2, 3, 40, 200};
    return t_below(s, most[t_below(s, 5)]);
}

TEST(experts_and_links_by_hand)
{
    uint64_t s = t_seed + 61;
    int round;
    for (round = 0; round < 4000; round++) {
        moe_ep_model m;
        moe_ep_machine c;
        moe_ep_device_time t;
        moe_ep_gemm_work w;
        int64_t slot[12], sum = 0, padded = 0;
        int32_t n = (int32_t)t_below(&s, 13), i, active = 0;
        double memory, flop, seconds, intra, inter, rows, peers, matrices;
        drawn_world(&s, &m, &c);
        for (i = 0; i < n; i++) {
            slot[i] = drawn_rows(&s);
            sum += slot[i];
            padded += padded_by_hand(slot[i], c.gemm.tile);
            active += slot[i] > 0;
        }
        seconds = experts_by_hand(&m, &c, m.inter, n, active, (double)sum, (double)padded,
                                  n ? (double)sum * m.num_experts / n : 0, &memory, &flop);
        memset(&t, 0x5a, sizeof t);
        CHECK_NEAR(moe_ep_expert_time(&m, &c, slot, n, &t, NULL), seconds, 1e-12, 0);
        CHECK_NEAR(t.compute_s, seconds, 1e-12, 0);
        CHECK_NEAR(t.memory_s, memory, 1e-12, 0);
        CHECK_NEAR(t.flop_s, flop, 1e-12, 0);
        CHECK_NEAR(t.dispatch_s + t.combine_s, 0, 0, 0);
        CHECK(t.rows == sum && t.padded_rows == padded && t.active == active);
        CHECK_I64(t.regime, sum == 0 ? MOE_EP_REGIME_IDLE : flop > memory ? MOE_EP_REGIME_FLOPS
                                                                        : MOE_EP_REGIME_WEIGHTS);
        matrices = m.ungated ? 2 : 3;
        CHECK(moe_ep_group_gemm(&m, slot, n, c.gemm.tile, &w, NULL) == MOE_EP_OK);
        CHECK(w.rows == sum && w.padded_rows == padded && w.active == active);
        CHECK_NEAR(w.flops, 2 * matrices * m.hidden * m.inter * (double)sum, 1e-12, 0);
        CHECK_NEAR(w.padded_flops, 2 * matrices * m.hidden * m.inter * (double)padded, 1e-12, 0);
        CHECK_NEAR(w.weight_bytes, active * matrices * m.hidden * m.inter * either(m.weight_bytes, 2), 1e-12, 0);
        CHECK_NEAR(w.activation_bytes,
                   (double)sum * ((m.hidden + m.inter) * either(m.in_bytes, 2) +
                                  (m.inter * (m.ungated ? 1 : 2) + m.hidden) * either(m.out_bytes, 2)),
                   1e-12, 0);
        CHECK_NEAR(w.intensity, over(w.flops, w.weight_bytes), 1e-12, 0);
        intra = drawn(&s, 2e4);
        inter = drawn(&s, 1e4);
        rows = drawn(&s, 100);
        peers = (double)t_below(&s, 6);
        CHECK_NEAR(moe_ep_link_time_rows(&c.ll_dispatch, intra, inter, rows, peers, NULL),
                   link_by_hand(&c.ll_dispatch, intra, inter, rows, over(intra + inter, rows), peers), 1e-12, 0);
        CHECK_NEAR(moe_ep_link_time(&c.ll_combine, intra, inter, NULL),
                   link_by_hand(&c.ll_combine, intra, inter, 0, 0, 0), 1e-12, 0);
        STOP_IF_FAILED("round %d", round);
    }
    { /* squares that a double cannot hold */
        moe_ep_link l = link_of(3e-150, 1, 0);
        l.p = 2;
        l.alpha_in_norm = 1;
        CHECK_NEAR(moe_ep_link_time(&l, 4e-150, 0, NULL), 5e-150, 1e-12, 0);
        l.alpha_s = 3e150;
        CHECK_NEAR(moe_ep_link_time(&l, 4e150, 0, NULL), 5e150, 1e-12, 0);
        l.alpha_s = 3e-200;
        CHECK_NEAR(moe_ep_link_time(&l, 4e-200, 0, NULL), 5e-200, 1e-12, 0);
        l.alpha_s = 3e200;
        CHECK_NEAR(moe_ep_link_time(&l, 4e200, 0, NULL), 5e200, 1e-12, 0);
    }
}

TEST(exchanges_by_hand)
{
    uint64_t s = t_seed + 62;
    int round;
    for (round = 0; round < 3000; round++) {
        moe_ep_model m;
        moe_ep_machine c;
        moe_ep_comm_desc d;
        moe_ep_comm_result r;
        moe_ep_a2a_desc a;
        moe_ep_a2a_device dev[6];
        int64_t rows[36], node_rows[36];
        double intra, inter, logical, out, back, most = 0, rate = 1e9 * (0.5 + t_unit(&s));
        int32_t i;
        drawn_world(&s, &m, &c);
        memset(&d, 0, sizeof d);
        d.num_nodes = (int32_t)t_below(&s, 4);
        d.num_devices = (d.num_nodes > 0 ? d.num_nodes : 1) * (1 + (int32_t)t_below(&s, 4));
        d.tokens = drawn(&s, 100);
        d.num_experts = m.num_experts;
        d.top_k = m.top_k;
        d.hidden = m.hidden;
        d.num_groups = m.num_groups;
        d.top_groups = m.top_groups;
        DRAWN_EXCHANGE(&s, &d);
        sent_by_hand(&m, d.mode, d.num_devices, either(d.num_nodes, 1), d.tokens, d.capacity, &intra, &inter, &logical);
        out = row_bytes_by_hand(d.dispatch_wire, m.hidden, d.dispatch_extra);
        back = row_bytes_by_hand(d.combine_wire, m.hidden, d.combine_extra);
        CHECK(moe_ep_comm_bytes(&d, &r, NULL) == MOE_EP_OK);
        CHECK_NEAR(r.intra_rows, intra, 1e-12, 1e-12);
        CHECK_NEAR(r.inter_rows, inter, 1e-12, 1e-12);
        CHECK_NEAR(r.logical_rows, logical, 1e-12, 1e-12);
        CHECK_NEAR(r.dispatch_row_bytes, out, 0, 0);
        CHECK_NEAR(r.combine_row_bytes, back, 0, 0);
        CHECK_NEAR(r.dispatch_intra_bytes, intra * out, 1e-12, 1e-9);
        CHECK_NEAR(r.dispatch_inter_bytes, inter * out, 1e-12, 1e-9);
        CHECK_NEAR(r.combine_intra_bytes, intra * back, 1e-12, 1e-9);
        CHECK_NEAR(r.combine_inter_bytes, inter * back, 1e-12, 1e-9);
        CHECK_NEAR(r.logical_dispatch_bytes, logical * out, 1e-12, 1e-9);
        CHECK_NEAR(r.logical_combine_bytes, logical * back, 1e-12, 1e-9);
        CHECK_NEAR(r.tp_allreduce_bytes, 2.0 * (d.num_devices - 1) * d.tokens * 2 * m.hidden, 1e-12, 0);
        CHECK_NEAR(moe_ep_logical_time(&d, 0, rate, NULL), logical * out / rate, 1e-12, 1e-20);
        CHECK_NEAR(moe_ep_logical_time(&d, 1, rate, NULL), logical * back / rate, 1e-12, 1e-20);
        CHECK_NEAR(moe_ep_logical_Bps(&d, 0, 1e-3, NULL), logical * out * 1e3, 1e-12, 1e-9);
        CHECK_NEAR(moe_ep_logical_Bps(&d, 1, 1e-3, NULL), logical * back * 1e3, 1e-12, 1e-9);
        memset(&a, 0, sizeof a); /* the time of counted rows; the rows of a device themselves are counted above */
        a.num_devices = 1 + (int32_t)t_below(&s, 6);
        a.num_nodes = (int32_t)t_below(&s, a.num_devices + 1);
        a.mode = d.mode;
        a.rows = rows;
        a.node_rows = node_rows;
        a.row_bytes = out;
        a.link = c.normal_combine;
        a.reverse = (int32_t)t_below(&s, 2);
        a.num_peers = (int32_t)t_below(&s, 4) * 3;
        for (i = 0; i < 36; i++) rows[i] = drawn_rows(&s), node_rows[i] = drawn_rows(&s);
        rate = moe_ep_a2a_time(&a, dev, NULL);
        for (i = 0; i < a.num_devices; i++) {
            double leaves = dev[i].out_intra + dev[i].out_inter, comes = dev[i].in_intra + dev[i].in_inter, want;
            want = link_by_hand(&a.link, fmax(dev[i].out_intra, dev[i].in_intra),
                                fmax(dev[i].out_inter, dev[i].in_inter), fmax(leaves, comes) / out, out,
                                either(a.num_peers, a.num_devices));
            if (a.num_devices == 1) want = 0;
            CHECK_NEAR(dev[i].time_s, want, 1e-12, 0);
            most = fmax(most, want);
        }
        CHECK_NEAR(rate, most, 1e-12, 0);
        CHECK_NEAR(moe_ep_a2a_time(&a, NULL, NULL), most, 1e-12, 0);
        STOP_IF_FAILED("round %d", round);
    }
}

/* A layer of any shape: with a placement or without, with counted traffic, hooks, two batches. */
typedef struct drawn_case {
    moe_ep_model model;
    moe_ep_machine machine;
    moe_ep_layer_desc d;
    moe_ep_placement p;
    moe_ep_cost_hooks hooks;
    double base;
    int32_t start[9], node[8], slots;
    int64_t rows[3 * 32], traffic[3 * 64], node_traffic[3 * 64];
} drawn_case;

static void drawn_layer(uint64_t *s, drawn_case *x)
{
    moe_ep_layer_desc *d = &x->d;
    hand_layer y;
    int32_t i, D = 1 + (int32_t)t_below(s, 8);
    memset(x, 0, sizeof *x);
    drawn_world(s, &x->model, &x->machine);
    d->model = &x->model;
    d->machine = &x->machine;
    d->num_devices = D;
    x->slots = x->model.num_experts + (int32_t)t_below(s, 2) * (int32_t)t_below(s, 12);
    d->num_slots = x->slots > x->model.num_experts ? x->slots : 0;
    d->num_nodes = (int32_t)t_below(s, D < 4 ? D + 1 : 4);
    d->tokens = t_below(s, 2) ? t_below(s, 60) : 0;
    d->high_throughput = (int32_t)t_below(s, 2);
    DRAWN_EXCHANGE(s, d);
    d->overlap = (moe_ep_overlap)t_below(s, 5);
    d->attention_s = drawn(s, 2e-5);
    d->attention_half_s = 1e-6 + drawn(s, 2e-5);
    d->microbatch_s = drawn(s, 1e-6);
    if (t_below(s, 3) == 0) {
        x->p.num_devices = D;
        x->p.num_slots = x->slots;
        x->p.slot_start = x->start;
        for (i = 1; i < D; i++) x->start[i] = x->start[i - 1] + (int32_t)t_below(s, x->slots - x->start[i - 1] + 1);
        x->start[D] = x->slots;
        x->p.num_nodes = t_below(s, 2) ? 1 + (int32_t)t_below(s, D < 3 ? D : 3) : 1;
        for (i = 1; i < D; i++)
            x->node[i] = x->node[i - 1] + (x->node[i - 1] + 1 < x->p.num_nodes && t_below(s, 2));
        x->p.device_node = t_below(s, 3) ? x->node : NULL;
        d->placement = &x->p;
        d->num_devices = d->num_slots = 99; /* not looked at */
    }
    x->base = 2 + 20 * t_unit(s);
    x->hooks.size = sizeof x->hooks;
    x->hooks.user = &x->base;
    x->hooks.expert_us = t_below(s, 2) ? telling_expert : NULL;
    x->hooks.a2a_us = t_below(s, 2) ? telling_a2a : NULL;
    if (t_below(s, 3) == 0) d->hooks = &x->hooks;
    for (i = 0; i < 3 * 32; i++) x->rows[i] = drawn_rows(s);
    if (t_below(s, 8) == 0) memset(x->rows, 0, sizeof x->rows);
    for (i = 0; i < 3 * 64; i++) x->traffic[i] = drawn_rows(s), x->node_traffic[i] = drawn_rows(s);
    if (t_below(s, 3) == 0) {
        d->traffic = x->traffic;
        shape_by_hand(d, x->rows, &y);
        if (d->mode == MOE_EP_A2A_NODE_DEDUP) d->node_traffic = x->node_traffic;
        if (d->placement && y.N > 1 && !y.node_of && d->num_nodes == 0) d->num_nodes = y.N; /* must be said */
    }
}

static void same_devices(const moe_ep_device_time *got, const moe_ep_device_time *want, int32_t D)
{
    int32_t r;
    for (r = 0; r < D; r++) {
        CHECK(got[r].rows == want[r].rows && got[r].padded_rows == want[r].padded_rows);
        CHECK(got[r].active == want[r].active && got[r].regime == want[r].regime);
        CHECK_NEAR(got[r].dispatch_s, want[r].dispatch_s, 1e-11, 0);
        CHECK_NEAR(got[r].compute_s, want[r].compute_s, 1e-11, 0);
        CHECK_NEAR(got[r].combine_s, want[r].combine_s, 1e-11, 0);
        CHECK_NEAR(got[r].memory_s, want[r].memory_s, 1e-11, 0);
        CHECK_NEAR(got[r].flop_s, want[r].flop_s, 1e-11, 0);
    }
}

/* What each device sends and receives of the dispatch, in bytes. */
typedef struct seen_volumes {
    double v[32][4];
} seen_volumes;

static double seeing_a2a(void *user, int32_t phase, int32_t device, double oi, double oo, double ii, double io)
{
    double *v = ((seen_volumes *)user)->v[device];
    if (phase == 0) v[0] = oi, v[1] = oo, v[2] = ii, v[3] = io;
    return 1;
}

static void see_volumes(moe_ep_layer_desc d, const int64_t *slot_rows, seen_volumes *seen)
{
    moe_ep_cost_hooks h;
    moe_ep_time_result r;
    memset(&h, 0, sizeof h);
    memset(seen, 0, sizeof *seen);
    h.size = sizeof h;
    h.user = seen;
    h.a2a_us = seeing_a2a;
    d.hooks = &h;
    CHECK(moe_ep_layer_time(&d, slot_rows, &r, NULL, NULL) == MOE_EP_OK);
}

/* A row per token and device, or node: even rows are what the closed forms say, what is sent arrives, and nothing
 * arrives twice. */
TEST(a_token_arrives_once)
{
    uint64_t s = t_seed + 70;
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    int round, i, k;
    for (round = 0; round < 400; round++) {
        static const int32_t nodes[6] = {1, 2, 4, 8, 3, 5};
        moe_ep_layer_desc d = v3_layer(&m, &c, 16);
        moe_ep_comm_desc even;
        moe_ep_comm_result flow;
        seen_volumes seen;
        int64_t rows[320], T = 512, total = 0, most = 0;
        double sum[4] = {0, 0, 0, 0}, tokens, all;
        int32_t N = nodes[round % 6], P = round % 12 < 6 ? 256 : 320;
        m.num_groups = round % 2 ? 8 : 0;
        m.top_groups = round % 2 ? 4 : 0;
        d.num_nodes = N;
        d.num_slots = P;
        d.mode = round / 12 % 2 ? MOE_EP_A2A_NODE_DEDUP : MOE_EP_A2A_RANK_DEDUP;
        d.dispatch_wire = MOE_EP_WIRE_BF16;
        d.tokens = T;
        if (16 % N == 0) {
            memset(&even, 0, sizeof even);
            even.tokens = (double)T;
            even.num_experts = 256;
            even.top_k = 8;
            even.hidden = m.hidden;
            even.num_devices = 16;
            even.num_nodes = N;
            even.num_groups = m.num_groups;
            even.top_groups = m.top_groups;
            even.mode = d.mode;
            CHECK(moe_ep_comm_bytes(&even, &flow, NULL) == MOE_EP_OK);
            for (i = 0; i < P; i++) rows[i] = 1000;
            see_volumes(d, rows, &seen);
            for (i = 0; i < 16; i++)
                for (k = 0; k < 4; k++)
                    CHECK_NEAR(seen.v[i][k], k % 2 ? flow.dispatch_inter_bytes : flow.dispatch_intra_bytes, 1e-12, 0);
        }
        for (i = 0; i < P; i++) total += rows[i] = t_below(&s, 4) ? t_below(&s, 30) : t_below(&s, 1000);
        if (t_below(&s, 2)) /* a crowded device: nearly every token has rows there */
            for (i = 0; i < P / 16; i++) total += 400, rows[i] += 400;
        see_volumes(d, rows, &seen);
        tokens = (double)T * 2.0 * m.hidden;
        for (i = 0; i < 16; i++) {
            double near = 0, far = 0;
            for (k = 0; k < 4; k++) sum[k] += seen.v[i][k];
            for (k = 0, most = 0; k < P / 16; k++) most += rows[i * (P / 16) + k];
            all = fmin(1, 8.0 * (double)most / (double)total);
            for (k = 0; k < 16; k++) near += k * N / 16 == i * N / 16, far += k * N / 16 != i * N / 16;
            if (d.mode == MOE_EP_A2A_RANK_DEDUP) {
                CHECK(seen.v[i][2] <= tokens * (near - 1) * all * (1 + 1e-12));
                CHECK(seen.v[i][3] <= tokens * far * all * (1 + 1e-12));
            } else {
                CHECK(seen.v[i][2] <= tokens * 16 * (near - 1) / near * all * (1 + 1e-12));
                CHECK(seen.v[i][3] <= tokens * far / near * (1 + 1e-12));
            }
            for (k = 0; k < 4; k++) CHECK(seen.v[i][k] > -1e-9 * tokens);
        }
        CHECK_NEAR(sum[0], sum[2], 1e-12, 0);
        CHECK_NEAR(sum[1], sum[3], 1e-12, 0);
        STOP_IF_FAILED("round %d", round);
    }
    { /* a slot that all tokens choose: every one arrives; a device with one slot: as many as that has rows */
        moe_ep_layer_desc d = v3_layer(&m, &c, 4);
        int64_t rows[256];
        seen_volumes seen, even;
        memset(rows, 0, sizeof rows);
        m.num_groups = m.top_groups = 0;
        rows[0] = rows[1] = rows[2] = rows[3] = rows[4] = rows[5] = rows[6] = 4000, rows[64] = 3000, rows[128] = 1000;
        d.mode = MOE_EP_A2A_RANK_DEDUP;
        d.num_nodes = 1;
        see_volumes(d, rows, &seen);
        CHECK_NEAR(seen.v[0][2], 1000 * 3 * 7392.0, 1e-12, 0);
        CHECK_NEAR(seen.v[1][2], 750 * 3 * 7392.0, 1e-12, 0);
        CHECK_NEAR(seen.v[2][2], 250 * 3 * 7392.0, 1e-12, 0);
        CHECK_NEAR(seen.v[3][2], 0, 0, 0);
        CHECK_NEAR(seen.v[3][0], 2000 * 7392.0, 1e-12, 0);
        memset(rows, 0, sizeof rows); /* no rows: as if they were even */
        d.tokens = 100;
        see_volumes(d, rows, &seen);
        for (i = 0; i < 256; i++) rows[i] = 100;
        see_volumes(d, rows, &even);
        CHECK(seen.v[0][0] > 0);
        for (i = 0; i < 16; i++) CHECK_NEAR(seen.v[i / 4][i % 4], even.v[i / 4][i % 4], 1e-12, 0);
    }
    { /* the worked number */
        moe_ep_layer_desc d = v3_layer(&m, &c, 8);
        moe_ep_time_result r;
        int64_t rows[256];
        m = moe_ep_model_deepseek_v3();
        for (i = 0; i < 256; i++) rows[i] = i < 32 ? 1638 : 351;
        d.tokens = 2048;
        d.high_throughput = 1;
        d.mode = MOE_EP_A2A_RANK_DEDUP;
        CHECK(moe_ep_layer_time(&d, rows, &r, NULL, NULL) == MOE_EP_OK);
        CHECK_I64(r.max_rows, 52416);
        CHECK_NEAR(us(r.dispatch_s), 668.5, 0, 0.05);
        CHECK_NEAR(us(moe_ep_link_time(&c.normal_dispatch, 7 * 2048 * 7392.0, 0, NULL)), 767.3, 0, 0.5);
    }
}

/* Drawn tokens, counted device by device, against what their loads alone tell. */
TEST(estimated_arrivals_against_drawn_tokens)
{
    enum { E = 256, K = 8 };
    static const struct {
        int32_t D, N, T;
        moe_ep_a2a_mode mode;
        moe_ep_workload_kind kind;
        double sigma, share;
    } on[6] = {{32, 4, 512, MOE_EP_A2A_NODE_DEDUP, MOE_EP_LOAD_LOGNORMAL, 0.35, 0},
               {32, 4, 512, MOE_EP_A2A_NODE_DEDUP, MOE_EP_LOAD_LOGNORMAL, 1.1, 0},
               {32, 4, 512, MOE_EP_A2A_NODE_DEDUP, MOE_EP_LOAD_HOT_DEVICE, 0, 0.1},
               {8, 1, 1024, MOE_EP_A2A_RANK_DEDUP, MOE_EP_LOAD_HOT_DEVICE, 0, 0.4},
               {8, 1, 1024, MOE_EP_A2A_RANK_DEDUP, MOE_EP_LOAD_LOGNORMAL, 1.1, 0},
               {16, 2, 512, MOE_EP_A2A_RANK_DEDUP, MOE_EP_LOAD_HOT_DEVICE, 0, 0.2}};
    static int32_t ids[32 * 512 * K];
    int i;
    for (i = 0; i < 6; i += t_slow() > 1 ? 2 : 1) {
        int32_t D = on[i].D, N = on[i].N, T = on[i].T * D, t, k;
        int64_t rows[E] = {0}, traffic[32 * 32] = {0}, node_traffic[32 * 4] = {0};
        moe_ep_model m = moe_ep_model_deepseek_v3();
        moe_ep_machine c = moe_ep_machine_h800();
        moe_ep_layer_desc d = v3_layer(&m, &c, D);
        moe_ep_time_result told, counted;
        moe_ep_workload w;
        m.num_groups = m.top_groups = 0; /* as moe_ep_simulate draws */
        memset(&w, 0, sizeof w);
        w.kind = on[i].kind;
        w.seed = 7;
        w.num_experts = E;
        w.top_k = K;
        w.sigma = on[i].sigma;
        w.num_devices = D;
        w.share = on[i].share;
        CHECK(moe_ep_simulate(&w, 0, 1, T, ids, NULL, NULL) == MOE_EP_OK);
        for (t = 0; t < T; t++) {
            int at[32] = {0}, near[4] = {0};
            for (k = 0; k < K; k++) {
                int32_t e = ids[t * K + k], to = e * D / E, node = to * N / D;
                rows[e]++;
                traffic[t / on[i].T * D + to] += !at[to]++;
                node_traffic[t / on[i].T * N + node] += !near[node]++;
            }
        }
        d.tokens = on[i].T;
        d.num_nodes = N;
        d.high_throughput = 1;
        d.mode = on[i].mode;
        CHECK(moe_ep_layer_time(&d, rows, &told, NULL, NULL) == MOE_EP_OK);
        d.traffic = traffic;
        d.node_traffic = node_traffic;
        CHECK(moe_ep_layer_time(&d, rows, &counted, NULL, NULL) == MOE_EP_OK);
        CHECK_NEAR(told.dispatch_s, counted.dispatch_s, 0.04, 0);
        CHECK_NEAR(told.combine_s, counted.combine_s, 0.04, 0);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(layers_by_hand)
{
    uint64_t s = t_seed + 63;
    int round;
    for (round = 0; round < 6000; round++) {
        static drawn_case x;
        moe_ep_time_result got, want;
        moe_ep_device_time got_dev[8], want_dev[8];
        drawn_layer(&s, &x);
        layer_by_hand(&x.d, x.rows, &want, want_dev);
        CHECK(moe_ep_layer_time(&x.d, x.rows, &got, got_dev, NULL) == MOE_EP_OK);
        SAME_STAGES();
        SAME(total_s);
        SAME(balanced_total_s);
        CHECK(got.balanced_total_s <= got.total_s);
        SAME(mean_compute_s);
        CHECK_I64(got.regime, want.regime);
        CHECK_I64(got.slowest_device, want.slowest_device);
        CHECK_I64(got.busiest_device, want.busiest_device);
        CHECK_I64(got.max_rows, want.max_rows);
        CHECK_I64(got.max_active, want.max_active);
        same_devices(got_dev, want_dev, x.d.placement ? x.p.num_devices : x.d.num_devices);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(steps_by_hand)
{
    uint64_t s = t_seed + 64;
    int round;
    for (round = 0; round < 1500; round++) {
        static drawn_case x;
        moe_ep_step_desc d;
        moe_ep_step_result got, want;
        moe_ep_device_time dev[8];
        hand_layer y;
        double layer[3], tokens = 0, scale;
        int32_t l, i, loaded[3] = {0}, n = 0;
        drawn_layer(&s, &x);
        memset(&d, 0, sizeof d);
        memset(&want, 0, sizeof want);
        d.layer = x.d;
        d.num_layers = 1 + (int32_t)t_below(&s, 3);
        d.other_s = drawn(&s, 1e-5);
        d.tokens_per_pass = drawn(&s, 2);
        d.rows_per_sequence = (int32_t)t_below(&s, 4);
        memset(layer, 0x5a, sizeof layer);
        if (t_below(&s, 2) == 0) memset(x.rows + t_below(&s, 3) * x.slots, 0, (size_t)x.slots * sizeof *x.rows);
        CHECK(moe_ep_step(&d, x.rows, &got, layer, NULL) == MOE_EP_OK);
        for (l = 0; l < d.num_layers; l++) {
            for (i = 0; i < x.slots; i++) loaded[l] |= x.rows[l * x.slots + i] > 0;
            n += loaded[l];
        }
        for (l = 0; n == 0 && l < d.num_layers; l++) loaded[l] = 1; /* all or none */
        n = loaded[0] + loaded[1] + loaded[2];
        scale = (double)x.model.num_moe_layers / n;
        want.slowest_layer = -1;
        for (l = 0; l < d.num_layers; l++) {
            moe_ep_layer_desc one = x.d;
            moe_ep_time_result t;
            shape_by_hand(&one, x.rows + l * x.slots, &y);
            if (one.traffic) one.traffic += l * y.D * y.D;
            if (one.node_traffic) one.node_traffic += l * y.D * y.N;
            layer_by_hand(&one, x.rows + l * x.slots, &t, dev);
            if (!loaded[l]) t.total_s = 0;
            CHECK_NEAR(layer[l], t.total_s, 1e-11, 0);
            if (!loaded[l]) continue;
            want.step_s += t.total_s * scale;
            want.serial_s += t.serial_s * scale;
            want.no_barrier_s += t.no_barrier_s * scale;
            want.dispatch_s += t.dispatch_s * scale;
            want.compute_s += t.compute_s * scale;
            want.combine_s += t.combine_s * scale;
            want.shared_s += t.shared_s * scale;
            want.balanced_s += t.balanced_s * scale;
            want.balanced_step_s += t.balanced_total_s * scale;
            want.max_rows += t.max_rows;
            if (want.slowest_layer < 0 || layer[l] > want.slowest_layer_s)
                want.slowest_layer = l, want.slowest_layer_s = layer[l];
            tokens += y.tokens / n;
        }
        want.step_s += d.other_s, want.serial_s += d.other_s, want.no_barrier_s += d.other_s;
        want.balanced_step_s += d.other_s;
        SAME(step_s);
        SAME(balanced_step_s);
        SAME_STAGES();
        CHECK_I64(got.max_rows, want.max_rows);
        CHECK_I64(got.slowest_layer, want.slowest_layer);
        CHECK_NEAR(got.slowest_layer_s, want.slowest_layer_s, 0, 0);
        CHECK_NEAR(got.tpot_s, got.step_s / either(d.tokens_per_pass, 1), 1e-11, 0);
        if (d.rows_per_sequence > 0) tokens /= d.rows_per_sequence;
        CHECK_NEAR(got.tokens_per_s_device, over(tokens, got.tpot_s), 1e-11, 0);
        CHECK_NEAR(got.tokens_per_s_node, over(tokens, got.tpot_s) * y.D / y.N, 1e-11, 0);
        STOP_IF_FAILED("round %d", round);
    }
}

static double log_of(double chance) { return chance > 1e-12 ? log(chance) : -700; }

/* Chance to reach a block of slots, n[i] of which take share[i] of the tokens each; even rows reach `even` of them. */
static double reached_by_hand(const double *share, const double *n, int kinds, double even, double P, double K,
                              double blocks, double fullest, double sum)
{
    double miss = 1;
    int i;
    for (i = 0; i < kinds; i++) miss *= pow(1 - fmin(1, share[i]), n[i]);
    return fmin(fmin(1, sum), fmax(fullest, 1 - pow(miss, log_of(1 - even) / (P / blocks * log_of(1 - K / P)))));
}

/* Rows into a device with `times` the mean, all other devices alike. */
static void crowded_by_hand(const moe_ep_model *m, moe_ep_a2a_mode mode, double D, double N, double P, double T,
                            double times, double *intra, double *inter)
{
    double K = m->top_k, g = D / N, share[2], n[2], hit, other;
    moe_ep_expect_desc d;
    moe_ep_expect_result x;
    if (mode == MOE_EP_A2A_PAIR) *intra *= times, *inter *= times;
    if (mode != MOE_EP_A2A_RANK_DEDUP && mode != MOE_EP_A2A_NODE_DEDUP) return;
    memset(&d, 0, sizeof d);
    d.num_experts = m->num_experts;
    d.top_k = m->top_k;
    d.num_groups = m->num_groups;
    d.top_groups = m->top_groups;
    d.num_devices = (int32_t)D;
    d.num_nodes = (int32_t)N;
    CHECK(moe_ep_expect(&d, &x, NULL) == MOE_EP_OK);
    share[0] = fmin(1, times * K / P);
    share[1] = (D - times) / (D - 1) * K / P;
    n[0] = P / D;
    n[1] = (g - 1) * P / D;
    hit = reached_by_hand(share, n, 1, x.distinct_devices / D, P, K, D, share[0], share[0] * n[0]);
    other = reached_by_hand(share + 1, n, 1, x.distinct_devices / D, P, K, D, share[1], share[1] * n[0]);
    *intra = hit * T * (mode == MOE_EP_A2A_RANK_DEDUP ? g - 1 : D - N);
    *inter = hit * T * (D - g);
    if (mode == MOE_EP_A2A_NODE_DEDUP)
        *inter = T * (N - 1) * reached_by_hand(share, n, 2, x.distinct_nodes / N, P, K, N, hit, hit + (g - 1) * other);
}

/* The same device in the layer's own words: every mode, one and several nodes, with and without routing groups. */
TEST(ep_against_tp_like_a_layer)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h200();
    int i, k, mode, times;
    for (i = 0; i < 8; i++)
        for (mode = MOE_EP_A2A_PAIR; mode <= MOE_EP_A2A_ALLGATHER; mode++)
            for (times = 1; times <= 16; times *= 2) {
                moe_ep_layer_desc d = v3_layer(&m, &c, i % 2 ? 32 : 16);
                int32_t D = d.num_devices;
                moe_ep_ep_vs_tp_desc e;
                moe_ep_ep_vs_tp_result r;
                moe_ep_time_result t;
                int64_t rows[320];
                m.num_groups = i & 2 ? 8 : 0;
                m.top_groups = i & 2 ? 4 : 0;
                memset(&e, 0, sizeof e);
                e.model = &m;
                e.machine = &c;
                d.num_nodes = e.num_nodes = i & 4 ? 1 : 0;
                d.num_slots = e.num_slots = 320;
                d.tokens = 1024;
                e.tokens = 1024;
                e.num_devices = D;
                e.imbalance = times;
                d.mode = e.mode = (moe_ep_a2a_mode)mode;
                d.high_throughput = e.high_throughput = mode == MOE_EP_A2A_NODE_DEDUP;
                d.capacity = e.capacity = 8;
                e.dispatch_wire = d.dispatch_wire;
                for (k = 0; k < 320; k++) rows[k] = k < 320 / D ? 1000 * times * (D - 1) : 1000 * (D - times);
                CHECK(moe_ep_layer_time(&d, rows, &t, NULL, NULL) == MOE_EP_OK);
                CHECK(moe_ep_ep_vs_tp(&e, &r, NULL) == MOE_EP_OK);
                CHECK_NEAR(r.ep_comm_s, t.dispatch_s + t.combine_s, 1e-11, 0);
                STOP_IF_FAILED("mode %d", mode);
            }
}

TEST(ep_against_tp_by_hand)
{
    uint64_t s = t_seed + 65;
    int round;
    for (round = 0; round < 3000; round++) {
        moe_ep_model m;
        moe_ep_machine c;
        moe_ep_ep_vs_tp_desc d;
        moe_ep_ep_vs_tp_result r;
        const moe_ep_link *link[2];
        double D, N, P, E, K, H, I, T, intra, inter, logical, row, row_back, matrices, active, rows, tile, memory, flop;
        double ep_comm = 0, tp_comm = 0, ep_s, tp_s, peers;
        drawn_world(&s, &m, &c);
        if (!(c.memory_Bps > 0)) c.memory_Bps = 1e9; /* something takes time */
        memset(&d, 0, sizeof d);
        d.model = &m;
        d.machine = &c;
        d.num_nodes = (int32_t)t_below(&s, 3);
        d.num_devices = (1 + (int32_t)t_below(&s, 4)) * (d.num_nodes > 0      ? d.num_nodes
                                                         : c.devices_per_node > 0 ? c.devices_per_node
                                                                                  : 1);
        d.num_slots = t_below(&s, 2) ? m.num_experts + (int32_t)t_below(&s, 9) : 0;
        d.tokens = 1 + 100 * t_unit(&s);
        d.imbalance = t_below(&s, 2) ? 1 + t_unit(&s) * (d.num_devices - 1) : 0;
        d.high_throughput = (int32_t)t_below(&s, 2);
        DRAWN_EXCHANGE(&s, &d);
        D = d.num_devices, E = m.num_experts, P = either(d.num_slots, E), K = m.top_k, H = m.hidden, I = m.inter;
        N = d.num_nodes > 0 ? d.num_nodes : c.devices_per_node > 0 ? ceil(D / c.devices_per_node) : 1;
        T = d.tokens;
        matrices = m.ungated ? 2 : 3;
        tile = c.gemm.tile > 1 ? c.gemm.tile : 1;
        link[0] = d.high_throughput ? &c.normal_dispatch : &c.ll_dispatch;
        link[1] = d.high_throughput ? &c.normal_combine : &c.ll_combine;
        row = row_bytes_by_hand(d.dispatch_wire, H, d.dispatch_extra);
        row_back = row_bytes_by_hand(d.combine_wire, H, d.combine_extra);
        CHECK(moe_ep_ep_vs_tp(&d, &r, NULL) == MOE_EP_OK);
        sent_by_hand(&m, d.mode, D, N, T, d.capacity, &intra, &inter, &logical);
        peers = d.mode == MOE_EP_A2A_PAIR || d.mode == MOE_EP_A2A_PADDED ? P : D;
        CHECK_NEAR(r.ep_sent_bytes, (intra + inter) * (row + row_back), 1e-11, 1e-9);
        if (d.imbalance > 1) crowded_by_hand(&m, d.mode, D, N, P, T, d.imbalance, &intra, &inter);
        rows = intra + inter;
        if (D > 1) /* a byte of a row counts where rows are sent */
            ep_comm = link_by_hand(link[0], intra * row, inter * row, rows, rows > 0 ? row : 0, peers) +
                      link_by_hand(link[1], intra * row_back, inter * row_back, rows, rows > 0 ? row_back : 0, peers);
        sent_by_hand(&m, MOE_EP_A2A_ALLGATHER, D, N, T, 0, &intra, &inter, &logical);
        if (D > 1)
            tp_comm = link_by_hand(link[0], intra * 2 * H, inter * 2 * H, intra + inter, 2 * H, D) +
                      link_by_hand(link[1], intra * 2 * H, inter * 2 * H, intra + inter, 2 * H, D);
        CHECK_NEAR(r.tp_sent_bytes, 2 * (D - 1) * T * 2 * H, 1e-11, 0);
        CHECK_NEAR(r.ep_comm_s, ep_comm, 1e-11, 0);
        CHECK_NEAR(r.tp_comm_s, tp_comm, 1e-11, 0);
        CHECK_NEAR(r.ep_weight_bytes, ceil(P / D) * matrices * H * I * either(m.weight_bytes, 2), 1e-11, 0);
        CHECK_NEAR(r.tp_weight_bytes, E * matrices * H * ceil(I / D) * either(m.weight_bytes, 2), 1e-11, 0);
        active = P * (1 - pow(1 - K / P, T * D)) / D; /* slots with rows, on one device */
        rows = T * K * either(d.imbalance, 1);
        ep_s = experts_by_hand(&m, &c, I, P / D, active, rows,
                               tile > 1 ? active * tile * ceil(rows / (active * tile)) : rows, T * D * K, &memory,
                               &flop);
        active = E * (1 - pow(1 - K / E, T * D));
        rows = T * K * D;
        tp_s = experts_by_hand(&m, &c, ceil(I / D), E, active, rows,
                               tile > 1 ? active * tile * ceil(rows / (active * tile)) : rows, T * D * K, &memory,
                               &flop);
        CHECK_NEAR(r.ep_compute_s, ep_s, 1e-9, 0);
        CHECK_NEAR(r.tp_compute_s, tp_s, 1e-9, 0);
        CHECK_NEAR(r.ep_s, ep_s + ep_comm, 1e-9, 0);
        CHECK_NEAR(r.tp_s, tp_s + tp_comm, 1e-9, 0);
        CHECK_NEAR(r.speedup, r.tp_s / r.ep_s, 1e-11, 0);
        STOP_IF_FAILED("round %d", round);
    }
}

/* SGLang, DeepSeek-V3.2 with 656 bytes of latent cache in FP8 and the indexer's beside it: "#tokens: 975424, KV size:
 * 43.67 GB" (pull request 11309). */
TEST(cache_of_an_indexer)
{
    moe_ep_model m;
    moe_ep_memory_desc d;
    moe_ep_memory_result r;
    CHECK(moe_ep_model_by_name("DeepSeek-V3.2", &m, NULL) == MOE_EP_OK);
    m.kv_elems = 656;
    m.kv_bytes = 1;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.num_devices = 8;
    CHECK(moe_ep_memory(&d, &r, NULL) == MOE_EP_OK);
    d.memory_bytes = r.total_bytes + 43.67 * 1073741824.0;
    CHECK(moe_ep_memory(&d, &r, NULL) == MOE_EP_OK);
    CHECK_NEAR((double)r.kv_tokens, 975424, 2e-4, 0);
    CHECK_NEAR(r.kv_room_bytes / (double)r.kv_tokens, 48068, 1e-6, 0);
}

TEST(parameters_and_memory_by_hand)
{
    uint64_t s = t_seed + 66;
    int round;
    for (round = 0; round < 4000; round++) {
        moe_ep_model m;
        moe_ep_machine c;
        moe_ep_params_result p;
        moe_ep_memory_desc d;
        moe_ep_memory_result r;
        double matrices, H, I, L, E, layers, shared, weight, other, D, P, tp, cache, expert, rest, each;
        drawn_world(&s, &m, &c);
        matrices = m.ungated ? 2 : 3, H = m.hidden, I = m.inter, L = m.num_moe_layers, E = m.num_experts;
        layers = either(m.num_layers, L);
        shared = m.num_shared * either(m.shared_inter, I) * matrices * H * L;
        CHECK(moe_ep_params(&m, &p, NULL) == MOE_EP_OK);
        CHECK_NEAR(p.expert, matrices * H * I, 0, 0);
        CHECK_NEAR(p.layer, E * matrices * H * I, 0, 0);
        CHECK_NEAR(p.routed, L * E * matrices * H * I, 0, 0);
        CHECK_NEAR(p.shared, shared, 0, 0);
        CHECK_NEAR(p.router, H * E * L, 0, 0);
        CHECK_NEAR(p.dense, (layers - L) * 3 * H * m.dense_inter, 0, 0);
        CHECK_NEAR(p.attention, layers * (double)m.attention_params, 0, 0);
        CHECK_NEAR(p.embedding, H * m.vocab * (m.tied ? 1 : 2), 0, 0);
        rest = (double)(p.shared + p.router + p.dense + p.attention);
        CHECK_NEAR(p.total, (double)p.routed + rest + (double)p.embedding, 0, 0);
        CHECK_NEAR(p.active, L * m.top_k * matrices * H * I + rest + H * m.vocab, 0, 0);
        memset(&d, 0, sizeof d);
        d.model = &m;
        d.num_devices = 1 + (int32_t)t_below(&s, 30);
        d.num_slots = t_below(&s, 2) ? m.num_experts + (int32_t)t_below(&s, 40) : 0;
        d.tensor_parallel = (int32_t)t_below(&s, 4);
        d.expert_tensor_parallel = (int32_t)t_below(&s, 2) * (int32_t)t_below(&s, 60);
        d.shared_tensor_parallel = (int32_t)t_below(&s, 4);
        d.buffer_bytes = t_below(&s, 2) * 12345;
        d.reserve_bytes = drawn(&s, 1e5);
        d.memory_bytes = drawn(&s, 2e6);
        weight = either(m.weight_bytes, 2), other = either(m.other_weight_bytes, 2);
        D = d.num_devices, P = either(d.num_slots, E), tp = either(d.tensor_parallel, 1);
        each = either(d.expert_tensor_parallel, 1);
        expert = matrices * H * ceil(I / each) * weight * L; /* in every MoE layer */
        shared = matrices * H * L *
                 ceil(m.num_shared * either(m.shared_inter, I) / either(d.shared_tensor_parallel, 1));
        cache = m.kv_elems * either(m.kv_bytes, 2) * layers;
        if (t_below(&s, 2)) { /* layers that choose what they attend to have more in them; a window changes nothing */
            m.attention_window = (int32_t)t_below(&s, 2) * 100;
            m.window_layers = (int32_t)t_below(&s, 10);
            m.index_bytes = drawn(&s, 100);
            if (m.attention_window > 0) cache += m.index_bytes * fmin(m.window_layers, layers);
        }
        CHECK(moe_ep_memory(&d, &r, NULL) == MOE_EP_OK);
        CHECK_I64(r.slots, ceil(P / D));
        CHECK_NEAR(r.routed_bytes, ceil(P / D) * expert, 1e-12, 0);
        CHECK_NEAR(r.redundant_bytes, (ceil(P / D) - ceil(E / D)) * expert, 1e-12, 0);
        CHECK_NEAR(r.shared_bytes, shared * either(m.shared_weight_bytes, weight), 1e-12, 0);
        CHECK_NEAR(r.router_bytes, H * E * L * other, 1e-12, 0);
        rest = (double)(p.attention + p.dense) * other;
        rest += (double)p.embedding * either(m.embedding_weight_bytes, other);
        CHECK_NEAR(r.other_bytes, rest / tp, 1e-12, 0);
        CHECK_NEAR(r.buffer_bytes, (double)d.buffer_bytes, 0, 0);
        CHECK_NEAR(r.total_bytes,
                   r.routed_bytes + r.shared_bytes + r.router_bytes + r.other_bytes + r.buffer_bytes + d.reserve_bytes,
                   1e-12, 0);
        CHECK_NEAR(r.kv_room_bytes, d.memory_bytes - r.total_bytes, 1e-12, 1e-6);
        CHECK_I64(r.fits, d.memory_bytes > 0 && d.memory_bytes >= r.total_bytes);
        CHECK_I64(r.kv_tokens, r.fits && cache > 0 ? floor(r.kv_room_bytes / cache) : 0);
        STOP_IF_FAILED("round %d", round);
    }
    { /* memory that is just enough */
        moe_ep_model m;
        moe_ep_memory_desc d;
        moe_ep_memory_result r;
        memset(&m, 0, sizeof m);
        memset(&d, 0, sizeof d);
        m.num_moe_layers = m.num_experts = m.top_k = m.hidden = m.inter = m.kv_elems = 1;
        d.model = &m;
        d.num_devices = 1;
        d.memory_bytes = 8; /* three matrices and the router, one weight of two bytes each */
        CHECK(moe_ep_memory(&d, &r, NULL) == MOE_EP_OK);
        CHECK(r.fits == 1 && r.kv_tokens == 0 && !(fabs(r.kv_room_bytes) > 0));
        d.memory_bytes = 7.5;
        CHECK(moe_ep_memory(&d, &r, NULL) == MOE_EP_OK && r.fits == 0);
        d.memory_bytes = 12; /* two cache elements of two bytes */
        CHECK(moe_ep_memory(&d, &r, NULL) == MOE_EP_OK && r.kv_tokens == 2);
    }
}

/* DeepEP's layout: per slot and token of a rank, sent and received, twice; 16 bytes of header in front of a message. */
TEST(low_latency_buffer_by_hand)
{
    uint64_t s = t_seed + 67;
    int round;
    for (round = 0; round < 500; round++) {
        int32_t tokens = 1 + (int32_t)t_below(&s, 500), H = 1 + (int32_t)t_below(&s, 8000);
        int32_t slots = 1 + (int32_t)t_below(&s, 600), scaled = (int32_t)t_below(&s, 2);
        double scales = 4 * ceil(H / 128.0), out = 16 + fmax(2.0 * H, H + scales);
        double back = scaled ? 2.0 * H + scales : 2.0 * H + 16, signals = 128 * ceil(4.0 * (slots + 1) / 128);
        CHECK_NEAR(moe_ep_ll_buffer_bytes(tokens, H, slots, scaled, NULL),
                   2 * (2.0 * slots * tokens * fmax(out, back) + signals), 0, 0);
        STOP_IF_FAILED("round %d", round);
    }
}

typedef struct reasons {
    moe_ep_reason list[16];
    int32_t count;
} reasons;

static void say(reasons *a, int when, moe_ep_severity severity, const char *text, double have, double need)
{
    if (!when) return;
    a->list[a->count].severity = severity;
    a->list[a->count].text = text;
    a->list[a->count].have = have;
    a->list[a->count++].need = need;
}

/* Every reason, in order, with its numbers. */
TEST(configurations_by_hand)
{
    uint64_t s = t_seed + 68;
    int round;
    for (round = 0; round < 20000; round++) {
        moe_ep_model m;
        moe_ep_machine machine;
        moe_ep_config c;
        moe_ep_reason got[16];
        moe_ep_memory_desc d;
        moe_ep_memory_result memory;
        reasons want;
        int32_t E, K, P, span, here, known, cut, nodes, count = -1, needed = -1, cap = (int32_t)t_below(&s, 14), i;
        memset(&c, 0, sizeof c);
        memset(&want, 0, sizeof want);
        drawn_world(&s, &m, &machine);
        if (t_below(&s, 2)) c.model = &m;
        c.num_experts = 1 + (int32_t)t_below(&s, 20);
        c.top_k = 1 + (int32_t)t_below(&s, 22);
        c.ep = 1 + (int32_t)t_below(&s, 12);
        c.tp = (int32_t)t_below(&s, 5);
        c.dp = (int32_t)t_below(&s, 5);
        c.num_redundant = t_below(&s, 2) ? (int32_t)t_below(&s, 60) : 0;
        c.num_nodes = (int32_t)t_below(&s, 5);
        c.equal_slots = (int32_t)t_below(&s, 2);
        c.must_divide = (int32_t)t_below(&s, 2);
        c.memory_bytes = drawn(&s, 1e6);
        c.num_devices = t_below(&s, 2) ? (int32_t)t_below(&s, 17) : 0;
        c.expert_tp = t_below(&s, 2) ? (int32_t)t_below(&s, 4) : 0;
        if (t_below(&s, 4) == 0) m.inter = 64 * (1 + (int32_t)t_below(&s, 20));
        if (t_below(&s, 8) == 0) m.top_k = m.num_experts + 1;
        E = c.model ? m.num_experts : c.num_experts, K = c.model ? m.top_k : c.top_k, P = E + c.num_redundant;
        span = (int32_t)either(c.tp, 1) * (int32_t)either(c.dp, 1), nodes = (int32_t)either(c.num_nodes, 1);
        say(&want, K > E, MOE_EP_WRONG, "cannot choose more experts", K, E);
        here = c.num_devices > 0 && c.dp == 0 ? span * (int32_t)either(c.num_devices / span, 1) : span;
        say(&want, c.num_devices > 0 && here != c.num_devices, MOE_EP_WRONG, "not the devices", here, c.num_devices);
        span = (int32_t)either(c.num_devices, span), known = c.tp + c.dp + c.num_devices > 0;
        say(&want, known && c.ep > span, MOE_EP_WRONG, "at most tp * dp", c.ep, span);
        say(&want, known && c.ep <= span && span % c.ep, MOE_EP_WRONG, "ep must divide tp * dp", c.ep, span);
        say(&want, known && span % c.ep == 0 && c.expert_tp > 0 && span % (c.ep * c.expert_tp), MOE_EP_WRONG,
            "ep * expert_tp must divide", c.ep * c.expert_tp, span);
        cut = (int32_t)either(c.expert_tp, known && span % c.ep == 0 ? span / c.ep : 1);
        say(&want, P < c.ep, MOE_EP_WRONG, "more devices than slots", c.ep, P);
        say(&want, c.must_divide && E % c.ep, MOE_EP_WRONG, "needs ep to divide", E % c.ep, 0);
        say(&want, c.equal_slots && P % c.ep, MOE_EP_WRONG, "redundant slots needed", c.num_redundant,
            c.num_redundant + c.ep - P % c.ep);
        say(&want, !c.equal_slots && P % c.ep && P >= c.ep, MOE_EP_NOTE, "unequal numbers of slots", P / c.ep,
            P / c.ep + 1);
        say(&want, c.num_redundant > E * (c.ep - 1), MOE_EP_WARNING, "more redundant slots than copies",
            c.num_redundant, E * (c.ep - 1));
        say(&want, c.ep % nodes, MOE_EP_WARNING, "nodes with unequal", c.ep, nodes);
        say(&want, c.model && nodes > 1 && m.num_groups > 1 && m.num_groups % nodes, MOE_EP_WARNING, "routing groups",
            m.num_groups, nodes);
        say(&want, c.model && cut > 1 && m.inter % cut, MOE_EP_WRONG, "its columns", m.inter, cut);
        say(&want, c.model && cut > 1 && m.inter % cut == 0 && m.math == MOE_EP_MATH_FP8 && m.weight_bytes >= 1 &&
                       m.inter / cut % 128,
            MOE_EP_WARNING, "blocks of 128", floor(m.inter / (double)cut), 128);
        if (c.model && c.memory_bytes > 0 && K <= E) {
            memset(&d, 0, sizeof d);
            d.model = &m;
            d.num_devices = c.ep;
            d.num_slots = P;
            d.tensor_parallel = c.tp;
            d.expert_tensor_parallel = cut;
            d.shared_tensor_parallel = cut > 1 ? c.tp : 0;
            CHECK(moe_ep_memory(&d, &memory, NULL) == MOE_EP_OK); /* checked by hand above */
            say(&want, memory.total_bytes > c.memory_bytes, MOE_EP_WRONG, "do not fit", c.memory_bytes,
                memory.total_bytes);
        }
        memset(got, 0x5a, sizeof got);
        CHECK(moe_ep_check_config(&c, got, cap, &count, &needed, NULL) == MOE_EP_OK);
        CHECK_I64(count, want.count);
        CHECK_I64(needed, (c.ep - E % c.ep) % c.ep);
        for (i = 0; i < want.count && i < cap; i++) {
            CHECK_I64(got[i].severity, want.list[i].severity);
            CHECK(strstr(got[i].text, want.list[i].text) != NULL);
            CHECK_NEAR(got[i].have, want.list[i].have, 1e-12, 0);
            CHECK_NEAR(got[i].need, want.list[i].need, 1e-12, 0);
            if (t_failed_here) printf("    %d: want %s\n", i, want.list[i].text);
        }
        CHECK(((unsigned char *)&got[i])[0] == 0x5a); /* nothing behind them */
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(payback_by_hand)
{
    uint64_t s = t_seed + 69;
    int round;
    for (round = 0; round < 2000; round++) {
        moe_ep_payback_desc d;
        moe_ep_payback_result r;
        double cost, gain, low, high, need;
        memset(&d, 0, sizeof d);
        d.before_s = drawn(&s, 1e-2);
        d.after_s = 1e-3 + drawn(&s, 1e-2);
        d.moved_slots = t_below(&s, 50);
        d.expert_bytes = drawn(&s, 1e7);
        d.link_Bps = drawn(&s, 1e10);
        d.pause_s = drawn(&s, 1e-2);
        d.time_error = drawn(&s, 0.5);
        d.need_ratio = drawn(&s, 1.5);
        need = either(d.need_ratio, 1);
        CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK);
        gain = d.before_s - d.after_s;
        cost = d.pause_s + over((double)d.moved_slots * d.expert_bytes, d.link_Bps);
        low = d.before_s * (1 - d.time_error) / (d.after_s * (1 + d.time_error));
        high = d.before_s * (1 + d.time_error) / (d.after_s * (1 - d.time_error));
        CHECK_NEAR(r.gain_s, gain, 1e-12, 0);
        CHECK_NEAR(r.ratio, d.before_s / d.after_s, 1e-12, 0);
        CHECK_NEAR(r.cost_s, cost, 1e-12, 0);
        CHECK_I64(r.pays, gain > 0);
        CHECK_NEAR(r.steps, gain > 0 ? cost / gain : 0, 1e-12, 0);
        CHECK_NEAR(r.ratio_low, low, 1e-12, 0);
        CHECK_NEAR(r.ratio_high, high, 1e-12, 0);
        CHECK_I64(r.payoff, low > need ? MOE_EP_PAYOFF_YES : high > need ? MOE_EP_PAYOFF_UNSURE : MOE_EP_PAYOFF_NO);
        STOP_IF_FAILED("round %d", round);
    }
    {
        moe_ep_payback_desc d;
        moe_ep_payback_result r;
        memset(&d, 0, sizeof d);
        d.before_s = d.after_s = 1; /* nothing gained, nothing paid back; as large as needed is not larger */
        d.pause_s = 1;
        CHECK(moe_ep_payback(&d, &r, NULL) == MOE_EP_OK);
        CHECK(!r.pays && r.payoff == MOE_EP_PAYOFF_NO && !(r.steps > 0));
    }
}

/* Chance that a count of the binomial with these moments is at most x: weights by the gamma function. */
static double binomial_at_most(double mean, double var, double most, double x)
{
    double v = fmin(var, mean * 0.9999), odds = (mean - v) / v, n = mean * mean / (mean - v), sum = 0, all = 0, k;
    if (x >= most) return 1;
    for (k = 0; k <= ceil(n) && k <= most; k++) {
        double w = exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(odds) - n * log1p(odds));
        all += w;
        if (k <= x) sum += w;
    }
    return sum / all;
}

static double largest_by_hand(const double *n, const double *mean, const double *var, const double *most)
{
    double sd = sqrt(fmax(var[0], 0)), x, sum = 0, f;
    if (!(mean[0] > 0) || !(sd > 1e-6 * mean[0]) || n[0] + n[1] < 1.5) return mean[0];
    if (sd > 30) { /* normal */
        const int steps = 20000;
        int i;
        for (i = 0; i < steps; i++) {
            x = mean[0] + sd * (-9 + 18 * (i + 0.5) / steps);
            f = pow(0.5 * erfc((mean[0] - x) / sd / sqrt(2)), n[0]);
            if (n[1] > 0) f *= pow(0.5 * erfc((mean[1] - x) / sqrt(var[1]) / sqrt(2)), n[1]);
            sum += (1 - f) * 18 / steps;
        }
        return mean[0] + sd * (sum - 9);
    }
    for (x = 0; x < most[0]; x++) {
        f = pow(binomial_at_most(mean[0], var[0], most[0], x), n[0]);
        if (n[1] > 0) f *= pow(binomial_at_most(mean[1], var[1], most[1], x), n[1]);
        if (x > mean[0] && f > 1 - 1e-13) break;
        sum += 1 - f;
    }
    return fmin(sum, most[0]);
}

/* Moments in closed form; the busiest device as the largest of independent binomials (large counts: normals). */
TEST(expectations_by_hand)
{
    static const int64_t tokens[] = {0, 1, 2, 3, 8, 30, 100, 300, 20000, 1000000};
    uint64_t s = t_seed + 70;
    int round;
    for (round = 0; round < (t_slow() > 1 ? 100 : 250); round++) {
        moe_ep_expect_desc d;
        moe_ep_expect_result r;
        double E, K, D, T, one, two, n[2], rows[3][2], active[3][2], most_rows, most_active, row_var;
        int i;
        memset(&d, 0, sizeof d);
        d.num_experts = 1 + (int32_t)t_below(&s, t_below(&s, 2) ? 40 : 5);
        d.top_k = 1 + (int32_t)t_below(&s, d.num_experts < 8 ? d.num_experts : 8);
        d.num_devices = (int32_t)t_below(&s, 20);
        d.tokens = tokens[t_below(&s, 10)];
        E = d.num_experts, K = d.top_k, D = either(d.num_devices, 1), T = (double)d.tokens;
        CHECK(moe_ep_expect(&d, &r, NULL) == MOE_EP_OK);
        one = pow(1 - K / E, T); /* no row for one expert, for two of them */
        two = E > 1 ? pow((E - K) * (E - K - 1) / (E * (E - 1)), T) : one;
        row_var = E > 1 ? T * K / E * (E - K) / (E - 1) : 0; /* variance less covariance of two experts */
        for (i = 0; i < 2; i++) {
            double larger = fmod(E, D), held = floor(E / D) + (i == 0 && larger > 0);
            n[i] = held < 0.5 ? 0 : i == 0 ? (larger > 0 ? larger : D) : larger > 0 ? D - larger : 0;
            rows[0][i] = T * K * held / E, rows[1][i] = row_var * held, rows[2][i] = T * fmin(held, K);
            active[0][i] = (1 - one) * held, active[1][i] = (one - two) * held, active[2][i] = held;
        }
        most_active = fmax(largest_by_hand(n, active[0], active[1], active[2]), T > 0);
        most_rows = fmax(largest_by_hand(n, rows[0], rows[1], rows[2]), most_active);
        CHECK_NEAR(r.active_total, E * (1 - one), 1e-12, 0);
        CHECK_NEAR(r.active_device, E * (1 - one) / D, 1e-12, 0);
        CHECK_NEAR(r.device_tokens, T * r.distinct_devices / D, 1e-12, 0);
        CHECK_NEAR(r.rows_mean, T * K / D, 1e-12, 0);
        CHECK_NEAR(r.rows_sd, sqrt(row_var * E / D * (1 - 1 / D)), 1e-12, 0);
        CHECK_NEAR(r.busiest_active, most_active, 1e-9, 0);
        CHECK_NEAR(r.busiest_rows, most_rows, 1e-9, 0);
        CHECK_NEAR(r.excess, T > 0 ? r.busiest_rows / r.rows_mean - 1 : 0, 1e-12, 1e-14);
        if (t_failed_here)
            printf("    E %d K %d D %d T %d\n", d.num_experts, d.top_k, d.num_devices, (int)d.tokens);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Each count may be 2^60 - 1 = 9 * 25 * 7 * 11 * 13 * 31 * 41 * 61 * 151 * 331 * 1321, and no more. */
TEST(counts_up_to_a_number)
{
    const int32_t a = 225225, b = 77531, c = 151, d = 437251;
    const int64_t most = INT64_MAX / 8;
    moe_ep_model base, m;
    moe_ep_params_result r;
    int i;
    memset(&base, 0, sizeof base);
    base.num_moe_layers = base.num_experts = base.top_k = base.hidden = base.inter = 1;
    CHECK_I64((int64_t)a * b * c * d, most);
    for (i = 0; i < 10; i++) {
        int more = i % 2;
        m = base;
        if (i / 2 == 0) m.attention_params = most + more;
        if (i / 2 == 1) m.hidden = a / 3, m.inter = b, m.num_experts = c, m.num_moe_layers = d + more;
        if (i / 2 == 2) m.hidden = a / 3, m.shared_inter = b, m.num_shared = c, m.num_moe_layers = d + more;
        if (i / 2 == 3) m.hidden = a / 3, m.dense_inter = b * c, m.num_layers = d + 1 + more;
        if (i / 2 == 4) m.hidden = (1 << 30) - 1, m.vocab = (1 << 30) + 1 + more, m.tied = 1;
        CHECK_I64(moe_ep_params(&m, &r, NULL), more ? MOE_EP_ERR_OVERFLOW : MOE_EP_OK);
        if (!more)
            CHECK_I64(i == 0   ? r.attention
                      : i == 2 ? r.routed
                      : i == 4 ? r.shared
                      : i == 6 ? r.dense
                               : r.embedding,
                      most);
    }
}

TEST(experts_per_device_by_hand)
{
    int32_t E, D, lo, hi, n;
    for (E = 1; E < 30; E++)
        for (D = 1; D < 30; D++) {
            CHECK(moe_ep_experts_per_device(E, D, &lo, &hi, &n, NULL) == MOE_EP_OK);
            CHECK(lo == floor((double)E / D) && hi == ceil((double)E / D)); /* every expert on one device: */
            CHECK_I64(n * hi + (D - n) * lo, E);
            CHECK(n > 0 && n <= D);
        }
}

T_MAIN
