/* How much memory does expert parallelism save, and what does it send? - Phi-tiny-MoE and Qwen3-30B-A3B
 * SPDX-License-Identifier: MIT */
#include "lab.h"

static void table(const moe_ep_model *model, int32_t widest)
{
    moe_ep_params_result n;
    double one = 0.0;
    lab_need(moe_ep_params(model, &n, &err));
    printf("%s: %d MoE layers x %d experts of 3 x %d x %d\n", model->name, model->num_moe_layers, model->num_experts,
           model->hidden, model->inter);
    printf("  %.4f M weights per expert, %.2f M per layer, %.3f B in all experts; model %.3f B, active %.3f B\n",
           (double)n.expert / 1e6, (double)n.layer / 1e6, (double)n.routed / 1e9, (double)n.total / 1e9,
           (double)n.active / 1e9);
    printf("  EP  experts/GPU  weights/GPU, one layer  expert memory/GPU, all layers, bf16\n");
    for (int32_t D = 1; D <= widest; D *= 2) {
        moe_ep_memory_desc d;
        moe_ep_memory_result m;
        memset(&d, 0, sizeof d);
        d.model = model, d.num_devices = D;
        lab_need(moe_ep_memory(&d, &m, &err));
        one = D == 1 ? m.routed_bytes : one;
        printf("  %2d %12d %20.2f M  %9.2f GB |", D, m.slots, (double)(n.expert * m.slots) / 1e6, m.routed_bytes / 1e9);
        lab_bar(m.routed_bytes, -1.0, one, 32);
        printf("|\n");
    }
    printf("\n");
}

int main(void)
{
    moe_ep_model phi = moe_ep_model_phi_tiny_moe(), qwen = moe_ep_model_qwen3_30b_a3b(), demo;
    moe_ep_memory_desc d;
    moe_ep_memory_result whole, half;
    moe_ep_comm_desc c;
    moe_ep_comm_result bytes;

    table(&phi, 8);
    printf("  (The lab's README says 55 M, 880 M and 28 B: ten times too much, and more than the model has.)\n\n");
    table(&qwen, 8);

    memset(&demo, 0, sizeof demo);
    demo.num_moe_layers = 1, demo.num_experts = 8, demo.top_k = 2, demo.hidden = 4096, demo.inter = 16384;
    memset(&d, 0, sizeof d);
    d.model = &demo, d.num_devices = 1;
    lab_need(moe_ep_memory(&d, &whole, &err));
    d.num_devices = 2;
    lab_need(moe_ep_memory(&d, &half, &err));
    printf("The router is not shared out: 8 experts of 3 x 4096 x 16384, one layer, 16-bit: %.2f MiB\n"
           "on 1 GPU, %.2f MiB on each of 2 (experts halve, the router's %.0f bytes stay): %.5fx.\n\n",
           (whole.routed_bytes + whole.router_bytes) / 1048576.0, (half.routed_bytes + half.router_bytes) / 1048576.0,
           half.router_bytes, (whole.routed_bytes + whole.router_bytes) / (half.routed_bytes + half.router_bytes));

    printf("EP against TP, bytes a GPU sends per MoE layer and token of its own, bf16 (ring all-reduce: 2 (D-1)/D of\n"
           "all tokens; EP: a row to each other GPU that has one of the token's experts, and back)\n\n");
    printf("model            top-k  GPUs  GPUs a token reaches   EP, kB   TP, kB\n");
    for (int i = 0; i < 8; i++) {
        const moe_ep_model *m = i < 4 ? &phi : &qwen;
        memset(&c, 0, sizeof c);
        c.tokens = 1.0, c.num_experts = m->num_experts, c.top_k = m->top_k, c.hidden = m->hidden;
        c.num_devices = 2 << i % 4;
        if (c.num_experts % c.num_devices) continue;
        c.mode = MOE_EP_A2A_RANK_DEDUP;
        lab_need(moe_ep_comm_bytes(&c, &bytes, &err));
        printf("%-16s %5d %5d %21.2f %8.1f %8.1f\n", m->name, m->top_k, c.num_devices,
               lab_number(moe_ep_expected_groups(c.top_k, c.num_experts, c.num_devices, &err)),
               (bytes.dispatch_intra_bytes + bytes.combine_intra_bytes) / 1e3, bytes.tp_allreduce_bytes / 1e3);
    }
    return 0;
}
