/* tests/test_published.c - published measurements against the cost formulas, row by row.
 * SPDX-License-Identifier: MIT
 *
 * usage: test_published [--table | --markdown]   prints the table "published case, ours, error" instead of testing,
 * on the terminal or for a README; MARKDOWN=1 in the environment turns the first into the second
 * Every row carries the error it may have; the constants are those of step-time models published with the
 * library and are not refitted per row.  Rows that the model cannot reproduce are listed too, marked "known miss":
 * they must keep failing by about as much as is said, so that the list stays true. */
#include "t.h"
#include "moe_ep.h"

#include "sim_cases.h"

typedef enum row_kind {
    ROW_CHECK,  /* must hold within the error allowed                       */
    ROW_MISS,   /* the model cannot: must stay beyond the error allowed     */
    ROW_INPUT   /* our figure was made from the published one, or loads are
                   not published: shown, not counted as agreement           */
} row_kind;

typedef struct row {
    const char *what, *source, *unit;
    double published, ours, allowed; /* allowed relative error */
    row_kind kind;
} row;

static row rows[160];
static int num_rows;

static void add(const char *what, const char *source, const char *unit, double published, double ours, double allowed)
{
    row *r = &rows[num_rows++];
    r->what = what;
    r->source = source;
    r->unit = unit;
    r->published = published;
    r->ours = ours;
    r->allowed = allowed;
    r->kind = ROW_CHECK;
}

static void miss(const char *what, const char *source, const char *unit, double published, double ours)
{
    add(what, source, unit, published, ours, 0.15);
    rows[num_rows - 1].kind = ROW_MISS;
}

static void add_loose(const char *what, const char *source, const char *unit, double published, double ours)
{
    add(what, source, unit, published, ours, 0.15);
}

static void input(const char *what, const char *source, const char *unit, double published, double ours)
{
    add(what, source, unit, published, ours, 0.0);
    rows[num_rows - 1].kind = ROW_INPUT;
}

static moe_ep_link link_of(double alpha_us, double intra, double inter, double p)
{
    moe_ep_link l;
    memset(&l, 0, sizeof l);
    l.alpha_s = alpha_us * 1e-6;
    l.intra_Bps = intra * 1e9;
    l.inter_Bps = inter * 1e9;
    l.p = p;
    return l;
}

/* One phase in microseconds for DeepSeek-V3's router shape. */
static double phase_us(double tokens, int32_t D, int32_t per_node, moe_ep_a2a_mode mode, moe_ep_wire wire, int groups,
                       double capacity, moe_ep_link link)
{
    moe_ep_comm_desc d;
    moe_ep_comm_result r;
    memset(&d, 0, sizeof d);
    d.tokens = tokens;
    d.num_experts = 256;
    d.top_k = 8;
    d.hidden = 7168;
    d.num_devices = D;
    d.num_nodes = D > per_node ? D / per_node : 1;
    if (groups) { /* as DeepEP's own test: a group per node, at most 4 of them per token */
        d.num_groups = d.num_nodes;
        d.top_groups = d.num_nodes < 4 ? d.num_nodes : 4;
    }
    d.mode = mode;
    d.dispatch_wire = d.combine_wire = wire;
    d.capacity = capacity;
    if (moe_ep_comm_bytes(&d, &r, NULL) != MOE_EP_OK) return -1.0;
    return 1e6 * moe_ep_link_time(&link, r.dispatch_intra_bytes, r.dispatch_inter_bytes, NULL);
}

static void isca(void)
{
    double one = moe_ep_comm_time(32.0 * 9 * 7000 * (1 + 2), 0.0, 50e9, NULL);
    double fast = moe_ep_comm_time(32.0 * 9 * 7000 * (1 + 2), 0.0, 900e9, NULL);
    moe_ep_stages s;
    double layer;
    memset(&s, 0, sizeof s);
    s.dispatch_s = one / 3;
    s.combine_s = one * 2 / 3;
    layer = moe_ep_compose(MOE_EP_OVERLAP_TWO_HIDDEN, &s, NULL, 0.0, NULL);
    add("all-to-all of 32 tokens, 50 GB/s", "DeepSeek-V3 ISCA 2025", "us", 120.96, 1e6 * one, 1e-4);
    add("layer with two micro-batches", "DeepSeek-V3 ISCA 2025", "us", 241.92, 1e6 * layer, 1e-4);
    add("step of 61 layers", "DeepSeek-V3 ISCA 2025", "ms", 14.76, 61e3 * layer, 5e-4);
    add("tokens per second and user", "DeepSeek-V3 ISCA 2025", "1/s", 67, 1 / (61 * layer), 0.02);
    add("all-to-all of 32 tokens, NVL72", "DeepSeek-V3 ISCA 2025", "us", 6.72, 1e6 * fast, 1e-4);
    add("step of 61 layers, NVL72", "DeepSeek-V3 ISCA 2025", "ms", 0.82, 61e3 * 2 * fast, 5e-3);
}

static void deepep_low_latency(void)
{
    static const int32_t D[6] = {8, 16, 32, 64, 128, 256};
    static const double dispatch[6] = {77, 118, 155, 173, 192, 194}, combine[6] = {114, 195, 273, 314, 369, 360};
    static const char *const dn[6] = {"low-latency dispatch EP8",   "low-latency dispatch EP16",
                                      "low-latency dispatch EP32",  "low-latency dispatch EP64",
                                      "low-latency dispatch EP128", "low-latency dispatch EP256"};
    static const char *const cn[6] = {"low-latency combine EP8",   "low-latency combine EP16",
                                      "low-latency combine EP32",  "low-latency combine EP64",
                                      "low-latency combine EP128", "low-latency combine EP256"};
    moe_ep_link l = link_of(38, 160, 48, 0);
    int i;
    for (i = 0; i < 6; i++)
        add(dn[i], "DeepEP docs/legacy.md", "us", dispatch[i],
            phase_us(128, D[i], 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8, 0, 0, l), 0.035);
    for (i = 0; i < 6; i++)
        add(cn[i], "DeepEP docs/legacy.md", "us", combine[i],
            phase_us(128, D[i], 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16, 0, 0, l), 0.125);
}

static void nccl_ep(void)
{
    static const int32_t D[3] = {16, 32, 64};
    static const double dispatch[3] = {191, 274, 301}, combine[3] = {201, 294, 335};
    static const char *const dn[3] = {"NCCL EP dispatch EP16", "NCCL EP dispatch EP32", "NCCL EP dispatch EP64"};
    static const char *const cn[3] = {"NCCL EP combine EP16", "NCCL EP combine EP32", "NCCL EP combine EP64"};
    moe_ep_link l = link_of(38, 160, 48, 0);
    int i;
    for (i = 0; i < 3; i++)
        add(dn[i], "nccl contrib/nccl_ep", "us", dispatch[i],
            phase_us(128, D[i], 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16, 0, 0, l), 0.035);
    for (i = 0; i < 3; i++)
        add(cn[i], "nccl contrib/nccl_ep", "us", combine[i],
            phase_us(128, D[i], 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16, 0, 0, l), 0.10);
    l = link_of(38, 360, 48, 0);
    add("NCCL EP dispatch EP8 (360 GB/s)", "nccl contrib/nccl_ep", "us", 65,
        phase_us(128, 8, 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16, 0, 0, l), 0.15);
    add("NCCL EP combine EP8 (360 GB/s)", "nccl contrib/nccl_ep", "us", 79,
        phase_us(128, 8, 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_BF16, 0, 0, l), 0.08);
}

static void deepep_normal(void)
{
    static const int32_t D[4] = {8, 16, 32, 64};
    static const double dispatch[4] = {1048, 1403, 1887, 2154}, combine[4] = {1968, 2722, 3723, 4262};
    static const double d_err[4] = {0.085, 0.16, 0.035, 0.035}, c_err[4] = {0.06, 0.16, 0.045, 0.035};
    static const char *const dn[4] = {"normal dispatch EP8", "normal dispatch EP16", "normal dispatch EP32",
                                      "normal dispatch EP64"};
    static const char *const cn[4] = {"normal combine EP8", "normal combine EP16", "normal combine EP32",
                                      "normal combine EP64"};
    int i;
    for (i = 0; i < 4; i++)
        add(dn[i], "DeepEP docs/legacy.md", "us", dispatch[i],
            phase_us(4096, D[i], 8, MOE_EP_A2A_NODE_DEDUP, MOE_EP_WIRE_FP8, 1, 0, link_of(0, 145, 44, 0)), d_err[i]);
    for (i = 0; i < 4; i++)
        add(cn[i], "DeepEP docs/legacy.md", "us", combine[i],
            phase_us(4096, D[i], 8, MOE_EP_A2A_NODE_DEDUP, MOE_EP_WIRE_BF16, 1, 0, link_of(0, 145, 44, 0)), c_err[i]);
}

static void pplx(void)
{
    static const int32_t D[5] = {8, 16, 32, 64, 128};
    static const double padded[5] = {700, 3214, 4226, 5418, 4972}, err[5] = {0.04, 0.125, 0.03, 0.095, 0.07};
    static const double ibgda[4] = {622, 428, 317, 308};
    static const char *const pn[5] = {"padded all-to-all EP8", "padded all-to-all EP16", "padded all-to-all EP32",
                                      "padded all-to-all EP64", "padded all-to-all EP128"};
    static const char *const in[4] = {"pplx IBGDA dispatch EP16", "pplx IBGDA dispatch EP32",
                                      "pplx IBGDA dispatch EP64", "pplx IBGDA dispatch EP128"};
    moe_ep_link l = link_of(13, 300, 43, 0);
    int i;
    for (i = 0; i < 5; i++)
        add(pn[i], "pplx-kernels README", "us", padded[i],
            phase_us(128, D[i], 8, MOE_EP_A2A_PADDED, MOE_EP_WIRE_FP8, 0, 128, l), err[i]);
    l = link_of(38, 160, 48, 0);
    for (i = 0; i < 4; i++) /* falls with EP where bytes rise: a limit of that implementation */
        miss(in[i], "pplx-kernels README", "us", ibgda[i],
             phase_us(128, D[i + 1], 8, MOE_EP_A2A_PAIR, MOE_EP_WIRE_FP8, 0, 0, l));
}

static void one_sided(void)
{
    moe_ep_link l = link_of(17, 695, 695, 0);
    double bf16 = phase_us(2048, 32, 72, MOE_EP_A2A_RANK_DEDUP, MOE_EP_WIRE_BF16, 0, 0, l);
    double mxfp8 = phase_us(2048, 32, 72, MOE_EP_A2A_RANK_DEDUP, MOE_EP_WIRE_MXFP8, 0, 0, l);
    double nvfp4 = phase_us(2048, 32, 72, MOE_EP_A2A_RANK_DEDUP, MOE_EP_WIRE_NVFP4, 0, 0, l);
    add("one-sided dispatch, bf16", "TensorRT-LLM blog 18", "us", 311.8, bf16, 0.02);
    add("one-sided dispatch, mxfp8", "TensorRT-LLM blog 18", "us", 172.2, mxfp8, 0.02);
    add("one-sided dispatch, nvfp4", "TensorRT-LLM blog 18", "us", 101.7, nvfp4, 0.03);
    add("speed-up of mxfp8", "TensorRT-LLM blog 18", "x", 1.81, bf16 / mxfp8, 0.03);
    add("speed-up of nvfp4", "TensorRT-LLM blog 18", "x", 3.06, bf16 / nvfp4, 0.03);
}

static double exposed_ms(double gemm_us, double shared_us, double dispatch_us, double combine_us)
{
    moe_ep_stages s;
    memset(&s, 0, sizeof s);
    s.dispatch_s = dispatch_us * 1e-6;
    s.compute_s = gemm_us * 1e-6;
    s.combine_s = combine_us * 1e-6;
    s.shared_s = shared_us * 1e-6;
    return 1e3 * (61 * moe_ep_compose(MOE_EP_OVERLAP_TWO_EXPOSED, &s, NULL, 0.0, NULL) + 5e-3);
}

static void serving_steps(void)
{
    double ours = exposed_ms(72, 24, 112, 181);
    add("decode step EP128", "deepseek-ai/profile-data", "ms", 55.1, ours, 0.05);
    add("the same, tokens/s per GPU", "deepseek-ai/profile-data", "1/s", 18598.0 / 8, 128 / (ours * 1e-3), 0.06);
    input("the same, InferSim's own model", "InferSim README", "1/s", 18598.0 / 8, 2675);
    add("decode step EP72", "SGLang blog 2025-05-05", "ms", 91.9, exposed_ms(145, 24, 178, 310), 0.08);
}

/* Prefill, EP32, 16K tokens per GPU in two micro-batches, 20 of the 132 SMs communicate. */
static void prefill(void)
{
    moe_ep_stages s;
    memset(&s, 0, sizeof s);
    s.attention_s = 4.9e-3 * 132 / 112;
    s.compute_s = 5.3e-3 * 132 / 112;
    s.dispatch_s = 1e-6 * phase_us(8192, 32, 8, MOE_EP_A2A_NODE_DEDUP, MOE_EP_WIRE_FP8, 1, 0, link_of(0, 145, 44, 0));
    s.combine_s = 1e-6 * phase_us(8192, 32, 8, MOE_EP_A2A_NODE_DEDUP, MOE_EP_WIRE_BF16, 1, 0, link_of(0, 145, 44, 0));
    miss("prefill layer EP32, 16K tokens (permute, norms left out)", "deepseek-ai/profile-data", "ms", 34.3,
         1e3 * moe_ep_compose(MOE_EP_OVERLAP_TWO_STAGGERED, &s, NULL, 0.0, NULL));
}

/* Speed-up of a step whose expert part, a share of it, gets from one imbalance to another. */
static double balanced_speedup(double share, double before, double after)
{
    return 1 / (1 - share * (1 - after / before));
}

static void eplb_reports(void)
{
    input("prefill, simulated perfect EPLB over default (loads not published)", "SGLang blog 2025-05-05", "x",
          59337.0 / 50302, balanced_speedup(0.27, 2.564, 1.111));
    input("EPLB prefill: what 58 % of the step at blog 4's imbalance gives", "SGLang blog 2025-05-05", "x", 1.49,
          balanced_speedup(0.58, 2.564, 1.111));
    input("EPLB decode: what the whole step at max/mean 2.8 gives", "SGLang blog 2025-05-05", "x", 2.54,
          balanced_speedup(1.0, 2.82, 1.111));
}

/* One batch over two micro-batches, decode EP72. */
static double two_batches(int tokens)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    moe_ep_layer_desc d;
    moe_ep_time_result one, two;
    int64_t slot[288];
    int j;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.machine = &c;
    d.num_devices = 72;
    d.num_slots = 288;
    d.tokens = tokens;
    d.dispatch_wire = MOE_EP_WIRE_FP8;
    for (j = 0; j < 288; j++) slot[j] = (int64_t)tokens * 72 * 8 / 288;
    d.attention_s = 150e-6 + 1.5e-6 * tokens;
    d.attention_half_s = 150e-6 + 0.75e-6 * tokens;
    d.microbatch_s = 60e-6;
    if (moe_ep_layer_time(&d, slot, &one, NULL, NULL) != MOE_EP_OK) return -1;
    d.overlap = MOE_EP_OVERLAP_TWO_EXPOSED;
    if (moe_ep_layer_time(&d, slot, &two, NULL, NULL) != MOE_EP_OK) return -1;
    return one.total_s / two.total_s;
}

static void overlap_reports(void)
{
    miss("two micro-batches at 32 tokens, EP72 (loses, as published)", "SGLang blog 2025-05-05", "x", 0.73,
         two_batches(32));
    add("two micro-batches at 256 tokens, EP72", "SGLang blog 2025-05-05", "x", 1.255, two_batches(256), 0.15);
}

/* Wide EP on NVL72: FP4 weights of one layer that a GPU reads, and what is left of a step for tokens. */
static void wide_ep(void)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_gemm_work w;
    int64_t rows[32];
    double eight, wide, ms[2];
    int e;
    for (e = 0; e < 32; e++) rows[e] = 1;
    m.weight_bytes = 0.5625; /* 4 bits and a scale of 8 per 16 */
    if (moe_ep_group_gemm(&m, rows, 32, 0, &w, NULL) != MOE_EP_OK) return;
    eight = w.weight_bytes;
    if (moe_ep_group_gemm(&m, rows, 8, 0, &w, NULL) != MOE_EP_OK) return;
    wide = w.weight_bytes;
    add("FP4 expert weights of a layer, EP8", "NVIDIA blog, NVL72", "MB", 793, 1e-6 * eight, 2e-3);
    add("FP4 expert weights of a layer, EP32", "NVIDIA blog, NVL72", "MB", 198, 1e-6 * wide, 2e-3);
    ms[0] = 1e3 * 58 * eight / (8e12 * 0.8);
    ms[1] = 1e3 * 58 * wide / (8e12 * 0.8);
    add("reading them, EP8, at 80 % of 8 TB/s", "NVIDIA blog, NVL72", "ms", 7.2, ms[0], 0.01);
    add("reading them, EP32, at 80 % of 8 TB/s", "NVIDIA blog, NVL72", "ms", 1.8, ms[1], 0.01);
    input("gain of EP32 per GPU, step of 13.9 ms (20 ms: 1.42, 10 ms: 2.9)", "NVIDIA blog, NVL72", "x", 1.8,
          (13.9 - ms[1]) / (13.9 - ms[0]));
}

static void online_service(void)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_memory_desc d;
    moe_ep_memory_result r;
    memset(&d, 0, sizeof d);
    d.model = &m;
    d.num_devices = 32;
    d.num_slots = 32 * 9;
    if (moe_ep_memory(&d, &r, NULL) == MOE_EP_OK)
        add("MoE weights per GPU, prefill EP32, 9 + 1 experts", "open-infra-index day 6", "GB", 25.5,
            1e-9 * (r.routed_bytes + r.shared_bytes), 5e-3);
    d.num_devices = 144;
    d.num_slots = 144 * 2;
    if (moe_ep_memory(&d, &r, NULL) == MOE_EP_OK)
        add("MoE weights per GPU, decode EP144, 2 + 1 experts", "open-infra-index day 6", "GB", 7.7,
            1e-9 * (r.routed_bytes + r.shared_bytes), 8e-3);
}

/* DeepEP's low-latency rows, each from the other five by moe_ep_calibrate, which starts from another machine. */
static void held_out_links(void)
{
    static const int32_t D[6] = {8, 16, 32, 64, 128, 256};
    static const double us[2][6] = {{77, 118, 155, 173, 192, 194}, {114, 195, 273, 314, 369, 360}};
    static char name[12][64];
    moe_ep_machine start = moe_ep_machine_h100(), got;
    moe_ep_comm_desc c[6];
    moe_ep_calibrate_desc d;
    moe_ep_link_row row[5];
    int i, combine, out, n;
    for (i = 0; i < 6; i++) {
        memset(&c[i], 0, sizeof c[i]);
        c[i].tokens = 128;
        c[i].num_experts = 256;
        c[i].top_k = 8;
        c[i].hidden = 7168;
        c[i].num_devices = D[i];
        c[i].num_nodes = D[i] / 8;
        c[i].dispatch_wire = MOE_EP_WIRE_FP8;
    }
    for (combine = 0; combine < 2; combine++)
        for (out = 0; out < 6; out++) {
            moe_ep_comm_result r;
            double t;
            memset(row, 0, sizeof row);
            for (n = i = 0; i < 6; i++) {
                if (i == out) continue;
                row[n].phase = combine ? MOE_EP_PHASE_LL_COMBINE : MOE_EP_PHASE_LL_DISPATCH;
                row[n].comm = &c[i];
                row[n++].seconds = 1e-6 * us[combine][i];
            }
            memset(&d, 0, sizeof d);
            d.start = &start;
            d.links = row;
            d.num_links = n;
            if (moe_ep_calibrate(&d, &got, NULL, NULL, NULL, NULL, NULL) != MOE_EP_OK ||
                moe_ep_comm_bytes(&c[out], &r, NULL) != MOE_EP_OK)
                continue;
            t = combine ? moe_ep_link_time_rows(&got.ll_combine, r.combine_intra_bytes, r.combine_inter_bytes,
                                                r.intra_rows + r.inter_rows, 256, NULL)
                        : moe_ep_link_time_rows(&got.ll_dispatch, r.dispatch_intra_bytes, r.dispatch_inter_bytes,
                                                r.intra_rows + r.inter_rows, 256, NULL);
            (void)snprintf(name[combine * 6 + out], sizeof name[0], "low-latency %s EP%d, calibrated on the other five",
                           combine ? "combine" : "dispatch", D[out]);
            add(name[combine * 6 + out], "DeepEP docs/legacy.md", "us", us[combine][out], 1e6 * t, 0.35);
            if (combine && out == 0) rows[num_rows - 1].kind = ROW_MISS; /* one node from five with several */
        }
}

/* InferSim's H800 anchors, each from the other eight. */
static void held_out_gemm(void)
{
    static const struct {
        int32_t experts, rows;
        double up, down;
    } a[9] = {{32, 4, 325.3, 176.0}, {32, 32, 325.4, 176.0}, {32, 128, 411.6, 214.1},
              {8, 16, 92.1, 52.7},   {8, 128, 120.4, 63.4},  {8, 512, 223.3, 107.1},
              {2, 64, 34.2, 17.6},   {2, 256, 50.6, 21.6},   {2, 512, 90.9, 51.7}};
    static char name[9][64];
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine start = moe_ep_machine_h100(), got;
    int out, i, n;
    for (out = 0; out < 9; out++) {
        moe_ep_expert_row row[16];
        moe_ep_calibrate_desc d;
        int64_t slot[32];
        memset(row, 0, sizeof row);
        for (n = i = 0; i < 9; i++) {
            if (i == out) continue;
            row[n].num_slots = a[i].experts;
            row[n].rows_per_slot = a[i].rows;
            row[n].product = 1;
            row[n + 1] = row[n];
            row[n].seconds = 1e-6 * a[i].up;
            row[n + 1].product = 2;
            row[n + 1].seconds = 1e-6 * a[i].down;
            n += 2;
        }
        memset(&d, 0, sizeof d);
        d.start = &start;
        d.model = &m;
        d.experts = row;
        d.num_experts = n;
        if (moe_ep_calibrate(&d, &got, NULL, NULL, NULL, NULL, NULL) != MOE_EP_OK) continue;
        for (i = 0; i < a[out].experts; i++) slot[i] = a[out].rows;
        (void)snprintf(name[out], sizeof name[0], "H800, %d experts x %d rows, calibrated on the others",
                       a[out].experts, a[out].rows);
        (a[out].rows == 512 ? miss : add_loose)(name[out], "InferSim grouped_gemm", "us", a[out].up + a[out].down,
                                                1e6 * moe_ep_expert_time(&m, &got, slot, a[out].experts, NULL, NULL));
    }
}

/* Mean over draws; the seeds are the library's own. */
static void drawn(void)
{
    static char name[EPLB_POINTS][80];
    moe_ep_machine c = eplb_machine();
    double got[12], still;
    int i;
    blog4(80, got, &still);
    for (i = 0; i < 12; i++) add(blog4_name[i], "TensorRT-LLM blog 4", "", blog4_published[i], got[i], 0.20);
    for (i = 0; i < EPLB_POINTS; i++) {
        double gain = eplb_gain(&c, eplb_tokens[i], 16).seconds;
        (void)snprintf(name[i], sizeof name[i], "EPLB gain, EP32, %d tokens (above 15 %%: %s, %s)", eplb_tokens[i],
                       gain > 1.15 ? "yes" : "no", eplb_payoff(gain) == MOE_EP_PAYOFF_UNSURE ? "unsure" : "sure");
        add(name[i], "aiconfigurator tables, H100", "x", eplb_measured[i], gain,
            eplb_tokens[i] == 96 || eplb_tokens[i] == 4096 ? 0.45 : 0.33);
    }
}

static void sizes(void)
{
    moe_ep_model m = moe_ep_model_deepseek_v3(), q = moe_ep_model_qwen3_30b_a3b(), p = moe_ep_model_phi_tiny_moe();
    moe_ep_params_result r;
    moe_ep_memory_desc d;
    moe_ep_memory_result one, two;
    if (moe_ep_params(&m, &r, NULL) == MOE_EP_OK) {
        add("parameters of DeepSeek-V3", "DeepSeek-V3 report", "1e9", 671, (double)r.total * 1e-9, 1e-3);
        add("of these active", "DeepSeek-V3 report", "1e9", 37, (double)r.active * 1e-9, 0.015);
        add("one expert in fp8", "3 H I", "MB", 44.04, (double)r.expert * 1e-6, 1e-4);
    }
    if (moe_ep_params(&p, &r, NULL) == MOE_EP_OK) {
        add("parameters of Phi-tiny-MoE", "model card", "1e9", 3.76, (double)r.total * 1e-9, 0.01);
        add("one of its experts", "3 H I", "1e6", 5.505, (double)r.expert * 1e-6, 1e-4);
    }
    add("DeepEP low-latency buffer", "DeepEP issue 28", "MB", 2116.291,
        (double)moe_ep_ll_buffer_bytes(128, 7168, 288, 0, NULL) * 1e-6, 1e-6);
    memset(&d, 0, sizeof d);
    d.model = &q;
    d.num_devices = 1;
    if (moe_ep_memory(&d, &one, NULL) == MOE_EP_OK) {
        d.num_devices = 2;
        if (moe_ep_memory(&d, &two, NULL) == MOE_EP_OK)
            add("Qwen3-30B experts saved by EP2", "recomputed, bf16", "GB", 28.99,
                (one.routed_bytes - two.routed_bytes) * 1e-9, 1e-3);
    }
}

/* Grouped GEMM, up + down, of the InferSim tables; the prefill kernel pads to 128 rows, the decode kernels to 64. */
static int gemm_first, gemm_last;
static void gemm(void)
{
    static const struct {
        int h20;
        int32_t experts, tile;
        int64_t rows;
        double up, down;
        const char *what;
    } anchor[] = {{0, 32, 0, 4, 325.3, 176.0, "H800, 32 experts x 4 rows"},
                  {0, 32, 0, 32, 325.4, 176.0, "H800, 32 experts x 32 rows"},
                  {0, 32, 0, 128, 411.6, 214.1, "H800, 32 experts x 128 rows"},
                  {0, 8, 0, 16, 92.1, 52.7, "H800, 8 experts x 16 rows"},
                  {0, 8, 0, 128, 120.4, 63.4, "H800, 8 experts x 128 rows"},
                  {0, 8, 0, 512, 223.3, 107.1, "H800, 8 experts x 512 rows"},
                  {0, 2, 0, 64, 34.2, 17.6, "H800, 2 experts x 64 rows"},
                  {0, 2, 0, 256, 50.6, 21.6, "H800, 2 experts x 256 rows"},
                  {0, 2, 0, 512, 90.9, 51.7, "H800, 2 experts x 512 rows"},
                  {1, 128, 0, 2, 828.5, 445.6, "H20, 128 experts x 2 rows"},
                  {1, 128, 0, 32, 828.9, 446.5, "H20, 128 experts x 32 rows"},
                  {1, 128, 128, 64, 1471.0, 663.8, "H20, 128 experts x 64 rows, prefill"}};
    size_t i;
    gemm_first = num_rows;
    for (i = 0; i < sizeof anchor / sizeof anchor[0]; i++) {
        moe_ep_model m = moe_ep_model_deepseek_v3();
        moe_ep_machine k = anchor[i].h20 ? moe_ep_machine_h20() : moe_ep_machine_h800();
        int64_t slot[128];
        int e;
        if (anchor[i].h20) {
            m.hidden = 4096;
            m.inter = 1536;
        }
        if (anchor[i].tile) k.gemm.tile = anchor[i].tile;
        for (e = 0; e < anchor[i].experts; e++) slot[e] = anchor[i].rows;
        add(anchor[i].what, "InferSim grouped_gemm", "us", anchor[i].up + anchor[i].down,
            1e6 * moe_ep_expert_time(&m, &k, slot, anchor[i].experts, NULL, NULL), 0.27);
    }
    gemm_last = num_rows;
}

static void fill(void)
{
    num_rows = 0;
    isca();
    deepep_low_latency();
    nccl_ep();
    deepep_normal();
    pplx();
    one_sided();
    serving_steps();
    prefill();
    eplb_reports();
    overlap_reports();
    wide_ep();
    online_service();
    sizes();
    gemm();
    held_out_gemm();
    held_out_links();
    drawn();
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

TEST(published_rows)
{
    int i, misses = 0, inputs = 0;
    fill();
    for (i = 0; i < num_rows; i++) {
        double error = rows[i].ours / rows[i].published - 1;
        if (rows[i].kind == ROW_MISS) {
            CHECK(fabs(error) > rows[i].allowed); /* once it fits, it belongs among the others */
            misses++;
        } else if (rows[i].kind == ROW_CHECK) {
            CHECK(fabs(error) <= rows[i].allowed);
        } else {
            inputs++;
        }
        if (t_failed_here) {
            printf("    %s: published %g, ours %g %s, error %+.1f %%, allowed %.1f %%\n", rows[i].what,
                   rows[i].published, rows[i].ours, rows[i].unit, 100 * error, 100 * rows[i].allowed);
            t_failed_here = t_failed_here > 0 ? t_failed_here : 1;
        }
    }
    CHECK(num_rows >= 125);
    CHECK_I64(misses, 9);
    CHECK_I64(inputs, 5);
}

TEST(gemm_anchors_median)
{
    double error[16];
    int i, n = 0;
    fill();
    for (i = gemm_first; i < gemm_last; i++) error[n++] = fabs(rows[i].ours / rows[i].published - 1);
    CHECK_I64(n, 12);
    qsort(error, (size_t)n, sizeof error[0], ascending);
    CHECK(0.5 * (error[5] + error[6]) <= 0.06);
    CHECK(error[11] <= 0.27);
}

static const char *remark(const row *r)
{
    if (r->kind == ROW_MISS) return " (known miss)";
    return r->kind == ROW_INPUT ? " (not a check)" : "";
}

static void print_table(int markdown)
{
    const char *line = markdown ? "| %s | %s | %.6g %s | %.4g | %+.1f %%%s |\n"
                                : "%-68s %-26s %10.6g %-4s %10.4g %+8.1f %%%s\n";
    double error[160];
    int i, n = 0;
    if (markdown)
        printf("| published case | source | published | ours | error |\n|---|---|---|---|---|\n");
    else
        printf("%-68s %-26s %10s %-4s %10s %10s\n", "published case", "source", "published", "", "ours", "error");
    for (i = 0; i < num_rows; i++) {
        double e = rows[i].ours / rows[i].published - 1;
        printf(line, rows[i].what, rows[i].source, rows[i].published, rows[i].unit, rows[i].ours, 100 * e,
               remark(&rows[i]));
        if (rows[i].kind == ROW_CHECK) error[n++] = fabs(e);
    }
    qsort(error, (size_t)n, sizeof error[0], ascending);
    printf("\n%d checks: median error %.1f %%, 90 %% within %.1f %%, largest %.1f %%.\n", n,
           50 * (error[(n - 1) / 2] + error[n / 2]), 100 * error[n * 9 / 10], 100 * error[n - 1]);
}

int main(int argc, char **argv)
{
    const char *wish = getenv("MARKDOWN");
    int markdown = argc > 1 && strcmp(argv[1], "--markdown") == 0;
    if (!markdown && (argc < 2 || strcmp(argv[1], "--table") != 0)) return t_main(argc, argv);
    fill();
    print_table(markdown || (wish && *wish && *wish != '0'));
    return 0;
}
