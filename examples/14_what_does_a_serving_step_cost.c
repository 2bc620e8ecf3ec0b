/* What does a serving step cost? - Qwen3-30B-A3B on two GPUs, EP 1 and 2, by a simulator's cluster file */
/* needs: jansson */
/* SPDX-License-Identifier: MIT; times are of the MoE layers only, by our cost model with the file's hardware */
#include "lab_cluster.h"

enum { MAX_T = 900, MAX_K = 8, MAX_L = 48, MAX_E = 128 };
static lab_cluster c;
static int32_t ids[MAX_T * MAX_K];
static int64_t rows[MAX_L * MAX_E], traffic[MAX_L * 4];

/* Routes T tokens through all layers; least and most rows of a layer's busiest GPU. */
static void route(const moe_ep_workload *w, const moe_ep_placement *p, int64_t T, int64_t *least, int64_t *most)
{
    int32_t D = p->num_devices, E = p->num_experts;
    *least = INT64_MAX, *most = 0;
    for (int32_t l = 0; l < c.model.num_moe_layers; l++) {
        int64_t gpu[2] = {0, 0}, busiest;
        lab_need(moe_ep_simulate(w, l, 0, T, ids, NULL, &err));
        lab_need(moe_ep_expert_loads(ids, T * w->top_k, E, rows + l * E, NULL, &err));
        lab_need(moe_ep_device_rows(p, rows + l * E, gpu, &err));
        lab_need(moe_ep_traffic(p, ids, T, w->top_k, NULL, MOE_EP_COUNT_RANKS, traffic + l * D * D, NULL, &err));
        busiest = gpu[1] > gpu[0] ? gpu[1] : gpu[0];
        *least = busiest < *least ? busiest : *least, *most = busiest > *most ? busiest : *most;
    }
}

/* One log line.  At EP 1 tensor parallelism cuts every expert in two and an all-reduce joins the halves. */
static void step(int number, const char *policy, moe_ep_workload_kind kind, int32_t copy, int32_t ep, int64_t T)
{
    moe_ep_model part = c.model;
    moe_ep_workload w;
    moe_ep_step_desc d;
    moe_ep_step_result r;
    moe_ep_placement p;
    void *mem;
    int64_t least, most;
    double link_ms, half_bytes = (double)T * part.hidden; /* half of T rows of bf16: one of two hops */
    memset(&w, 0, sizeof w), memset(&d, 0, sizeof d);
    p = lab_blocks(part.num_experts, ep, &mem);
    w.kind = kind, w.seed = 42, w.num_experts = part.num_experts, w.top_k = part.top_k;
    w.num_devices = ep, w.copy_layers = copy;
    route(&w, &p, T, &least, &most);
    part.inter /= ep == 1 ? 2 : 1;
    d.layer.model = &part, d.layer.machine = &c.machine, d.layer.placement = &p, d.num_layers = part.num_moe_layers;
    d.layer.mode = MOE_EP_A2A_RANK_DEDUP, d.layer.tokens = (T + ep - 1) / ep, d.layer.traffic = traffic;
    lab_need(moe_ep_step(&d, rows, &r, NULL, &err));
    link_ms = 1e3 * (r.dispatch_s + r.combine_s);
    if (ep == 1) link_ms = 2e3 * d.num_layers * moe_ep_link_time(&c.machine.ll_dispatch, half_bytes, 0.0, &err);
    printf("%sstep=%-2d ep=%d %-8s batch=%-3lld busiest_rows=%4lld..%-4lld ", ep == 1 ? "\n" : "", number, ep, policy,
           (long long)T, (long long)least, (long long)most);
    printf("experts=%5.2f ms link=%6.2f ms %6.0f tok/s\n", 1e3 * r.compute_s, link_ms,
           (double)T / (r.compute_s + 1e-3 * link_ms));
    free(mem);
}

int main(void)
{
    static const int64_t batch[3] = {900, 64, 4};
    moe_ep_memory_result fit;
    moe_ep_memory_desc m;
    c = lab_read_cluster("examples/data/cluster/single_node_moe_single_instance.json");
    printf("%s on %d x %s: %d experts, %d per GPU, top-%d, %d layers\n", c.model.name, c.ep, c.machine.name,
           c.model.num_experts, c.model.num_experts / c.ep, c.model.top_k, c.model.num_moe_layers);
    memset(&m, 0, sizeof m);
    m.model = &c.model, m.tensor_parallel = c.tp, m.memory_bytes = c.machine.memory_bytes;
    for (m.num_devices = 1; m.num_devices <= c.ep; m.num_devices++) {
        lab_need(moe_ep_memory(&m, &fit, &err));
        printf("ep=%d experts=%.2f GB%s npu_mem=%.1f GB of %.0f\n", m.num_devices, fit.routed_bytes / 1e9,
               m.num_devices == 1 ? " (half of it when tp=2 cuts every expert in two)" : "", 1e-9 * fit.total_bytes,
               1e-9 * c.machine.memory_bytes);
    }
    for (int i = 0; i < 3; i++) {
        step(5 * i + 1, "any", MOE_EP_LOAD_UNIFORM, 0, 1, batch[i]);
        step(5 * i + 2, "BALANCED", MOE_EP_LOAD_BALANCED, 0, 2, batch[i]);
        step(5 * i + 3, "RR", MOE_EP_LOAD_ROUND_ROBIN, 0, 2, batch[i]);
        step(5 * i + 4, "RAND", MOE_EP_LOAD_UNIFORM, 0, 2, batch[i]);
        step(5 * i + 5, "COPY", MOE_EP_LOAD_UNIFORM, 1, 2, batch[i]);
    }
    return 0;
}
