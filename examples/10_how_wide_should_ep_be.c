/* How wide should expert parallelism be? - experts per GPU, reuse of weights, throughput on GB200
 * SPDX-License-Identifier: MIT
 *
 * DeepSeek-V3, decode, 128 tokens per GPU.  Times are predictions of a fitted model, MoE layers only. */
#include "lab.h"

enum { E = 256, K = 8, T = 128, MAX_D = 72 };
static int32_t ids[MAX_D * T * K];
static moe_ep_model model;
static moe_ep_machine machine;

/* Tokens per second and GPU with loads that fall off as rank^-0.4; EPLB when there are spare slots. */
static double throughput(int32_t D, int32_t P)
{
    moe_ep_workload w;
    moe_ep_place_desc place;
    moe_ep_split_desc split;
    moe_ep_step_desc desc;
    moe_ep_step_result step;
    int64_t loads[E], slot_rows[2 * E];
    double real[E];
    void *mem;
    moe_ep_placement p;
    memset(&w, 0, sizeof w);
    memset(&place, 0, sizeof place);
    memset(&split, 0, sizeof split);
    memset(&desc, 0, sizeof desc);
    w.kind = MOE_EP_LOAD_ZIPF, w.seed = 7, w.num_experts = E, w.top_k = K, w.alpha = 0.4;
    lab_need(moe_ep_simulate(&w, 0, 0, D * T, ids, NULL, &err));
    lab_need(moe_ep_expert_loads(ids, (int64_t)D * T * K, E, loads, NULL, &err));
    lab_need(moe_ep_loads_to_double(loads, E, real, &err));
    place.num_layers = 1, place.num_experts = E, place.loads = real;
    place.shape.num_devices = D, place.shape.num_slots = P;
    p = lab_placement(1, E, &place.shape, &mem);
    lab_need((P > E ? moe_ep_place_eplb : moe_ep_place_contiguous)(&place, &p, NULL, NULL, &err));
    lab_need(moe_ep_split(&split, &p, 0, loads, slot_rows, NULL, &err));
    desc.layer.model = &model, desc.layer.machine = &machine, desc.layer.placement = &p, desc.layer.tokens = T;
    desc.layer.dispatch_wire = MOE_EP_WIRE_FP8;
    desc.num_layers = 1;
    lab_need(moe_ep_step(&desc, slot_rows, &step, NULL, &err));
    free(mem);
    return step.tokens_per_s_device;
}

int main(void)
{
    static const int32_t gpus[5] = {8, 16, 32, 64, 72};
    static const char *const name[4] = {"EP 8", "EP 32, wide", "EP 32, 32 copies, EPLB", "EP 72, 32 copies, EPLB"};
    static const int32_t d[4] = {8, 32, 32, 72}, p[4] = {256, 256, 288, 288};
    double first = 0.0;
    model = moe_ep_model_deepseek_v3(), machine = moe_ep_machine_gb200();

    printf("%s, decode, a batch of %d tokens on each GPU\n\n"
           "GPUs  experts per GPU and layer              rows per   FLOP per      weights read per GPU and layer\n"
           "                                             expert     weight byte\n", model.name, T);
    for (int i = 0; i < 5; i++) {
        int32_t low, high, with_high;
        int64_t rows = (int64_t)gpus[i] * T * K / E;
        moe_ep_gemm_work work;
        lab_need(moe_ep_experts_per_device(E, gpus[i], &low, &high, &with_high, &err));
        lab_need(moe_ep_group_gemm(&model, &rows, 1, 0, &work, &err));
        printf("%4d  %2d%s |", gpus[i], low, high > low ? "..4" : "   ");
        lab_bar(high, -1.0, 32.0, 24);
        printf("| %-6s %5lld %12.0f %14.0f MB, %5.1f us\n", high >= 20 ? "red" : high >= 10 ? "orange" : "green",
               (long long)rows, work.intensity, high * work.weight_bytes / 1e6,
               high * work.weight_bytes / machine.memory_Bps * 1e6);
    }
    printf("\n256 experts do not fill 72 GPUs: 32 copies make 288 slots, 4 on each GPU and %d in all 58 layers.\n\n",
           model.num_moe_layers * 288 / 72);
    printf("predicted tokens/s per GPU, %s, %d tokens on each, MoE layers only\n", machine.name, T);
    for (int i = 0; i < 4; i++) {
        double rate = throughput(d[i], p[i]);
        first = i ? first : rate;
        printf("  %-24s |", name[i]);
        lab_bar(rate, -1.0, 4.0 * first, 40);
        printf("| %7.0f  %.2fx\n", rate, rate / first);
    }
    return 0;
}
