/* Does expert parallelism give the same answer? - one layer of Phi-tiny-MoE on 1, 2, 4 and 8 ranks
 * SPDX-License-Identifier: MIT
 *
 * 16 experts of 3 x 4096 x 448 bf16 weights, its router (a sparse mixer, top-2); random weights, all ranks in this
 * process. */
#include "lab.h"

enum { T = 8, K = 2, E = 16, H = 4096, I = 448, SIZE = E * I * H };
static float x[T * H], gate[E * H], one[T * H], many[T * H], part[T * H], sum[T * H];

static uint16_t w1[SIZE], w3[SIZE], w2[SIZE];

static void random_weights(uint16_t *w, uint32_t seed)
{
    for (int i = 0; i < SIZE; i++) { /* random sign and digits, size 1/128 .. 1/64 */
        seed = seed * 1664525u + 1013904223u;
        w[i] = (uint16_t)(0x3c00u | (seed >> 16 & 0x807fu));
    }
}

/* The layer on D ranks: every planner moves experts, none may change a bit of the output. */
static void on_ranks(const moe_ep_forward_desc *layer, const double *loads, int32_t D, int32_t P)
{
    moe_ep_ranks_result r;
    moe_ep_place_desc d;
    moe_ep_placement p;
    void *mem;
    memset(&d, 0, sizeof d);
    d.num_layers = 1, d.num_experts = E, d.loads = loads, d.shape.num_devices = D, d.shape.num_slots = P;
    p = lab_placement(1, E, &d.shape, &mem);
    lab_need((P > E ? moe_ep_place_eplb : moe_ep_place_contiguous)(&d, &p, NULL, NULL, &err));
    lab_need(moe_ep_forward_ranks(layer, &p, 0, NULL, NULL, x, T, many, &r, NULL, &err));
    printf("%5d %6d  %-16s %6lld %8lld %13lld  %s\n", D, P, P > E ? "EPLB with copies" : "blocks", (long long)r.rows,
           (long long)r.rows_moved, (long long)r.rows_max,
           memcmp(one, many, sizeof one) ? "DIFFERENT" : "the same bits");
    free(mem);
}

int main(void)
{
    moe_ep_router router = moe_ep_router_phimoe(E, K);
    moe_ep_rng rng = moe_ep_rng_seed(3);
    moe_ep_weights w;
    moe_ep_forward_desc layer;
    int32_t ids[T * K], mine[T * K];
    float weight[T * K], logits[T * E], top = 0.0f, off = 0.0f;
    double loads[E] = {0};

    memset(&w, 0, sizeof w);
    memset(&layer, 0, sizeof layer);
    w.num_experts = E, w.hidden = H, w.inter = I, w.dtype = MOE_EP_BF16;
    random_weights(w1, 1), random_weights(w3, 2), random_weights(w2, 3);
    w.gate = w1, w.up = w3, w.down = w2;
    for (int i = 0; i < T * H; i++) x[i] = (float)moe_ep_rng_f64(&rng) - 0.5f;
    for (int i = 0; i < E * H; i++) gate[i] = ((float)moe_ep_rng_f64(&rng) - 0.5f) / 8.0f;
    lab_need(moe_ep_gate(x, T, H, gate, NULL, E, logits, &err));
    lab_need(moe_ep_route(&router, logits, T, NULL, ids, weight, &err));
    layer.experts = &w, layer.top_k = K, layer.ids = ids, layer.choice_weights = weight;
    lab_need(moe_ep_forward(&layer, x, T, one, NULL, &err));
    for (int i = 0; i < T * K; i++) loads[ids[i]]++;

    printf("8 tokens, top-2 of 16 experts (%d x %d), output compared with one device\n\n", H, I);
    printf("ranks  slots  placement          rows  to other  busiest rank  output\n");
    for (int32_t D = 1; D <= 8; D *= 2) {
        on_ranks(&layer, loads, D, E);
        on_ranks(&layer, loads, D, E + D);
    }

    /* All-gather + reduce-scatter: every rank sees every token, computes its own experts and the parts are added. */
    for (int r = 0; r < 4; r++) {
        for (int i = 0; i < T * K; i++) mine[i] = ids[i] / (E / 4) == r ? ids[i] : -1;
        layer.ids = mine;
        lab_need(moe_ep_forward(&layer, x, T, part, NULL, &err));
        for (int i = 0; i < T * H; i++) sum[i] += part[i];
    }
    for (int i = 0; i < T * H; i++) top = fmaxf(top, fabsf(one[i])), off = fmaxf(off, fabsf(sum[i] - one[i]));
    printf("\nAll-gather + reduce-scatter on 4 ranks adds in another order: %s.\n",
           off < 1e-6f * top ? "equal to 6 digits" : "DIFFERENT");
    return 0;
}
