/* What does an expert compute, and who computes it? - four tokens, 16 experts, two each, four GPUs
 * SPDX-License-Identifier: MIT
 *
 * Choices and weights of the expert-parallel demonstration's worked example; sizes are 1/64 of its model. */
#include "lab.h"

enum { T = 4, K = 2, E = 16, H = 64, I = 7, D = 4 };
static const int32_t ids[T * K] = {3, 7, 1, 12, 3, 9, 7, 15};
static const float weight[T * K] = {0.6f, 0.4f, 0.7f, 0.3f, 0.5f, 0.5f, 0.8f, 0.2f};
static float w1[E * I * H], w3[E * I * H], w2[E * H * I], x[T * H], y[T * H];

static double silu(double g) { return g / (1.0 + exp(-g)); }

/* The definition, token by token: sum over the choices of weight * w2 (SiLU(w1 x) * (w3 x)).  With `both` SiLU is
 * put on w3 x as well.  Gives the largest difference to y as a share of the largest output. */
static double difference(int both)
{
    double worst = 0.0, top = 0.0;
    for (int t = 0; t < T; t++) {
        double sum[H] = {0};
        for (int c = t * K; c < (t + 1) * K; c++)
            for (int i = 0; i < I; i++) {
                const float *g_row = w1 + (ids[c] * I + i) * H, *u_row = w3 + (ids[c] * I + i) * H;
                double g = 0.0, u = 0.0;
                for (int h = 0; h < H; h++) {
                    g += (double)g_row[h] * (double)x[t * H + h];
                    u += (double)u_row[h] * (double)x[t * H + h];
                }
                for (int h = 0; h < H; h++)
                    sum[h] += (double)weight[c] * silu(g) * (both ? silu(u) : u) * (double)w2[(ids[c] * H + h) * I + i];
            }
        for (int h = 0; h < H; h++) {
            worst = fmax(worst, fabs(sum[h] - (double)y[t * H + h])), top = fmax(top, fabs((double)y[t * H + h]));
        }
    }
    return worst / top;
}

static void fill(float *p, int n, moe_ep_rng *rng)
{
    for (int i = 0; i < n; i++) p[i] = (float)moe_ep_rng_f64(rng) - 0.5f;
}

int main(void)
{
    moe_ep_rng rng = moe_ep_rng_seed(3);
    moe_ep_weights experts;
    moe_ep_forward_desc layer;
    int64_t loads[E], gpu[D], tokens[D];
    int32_t gpu_of[E];
    moe_ep_layout layout;

    fill(w1, E * I * H, &rng), fill(w3, E * I * H, &rng), fill(w2, E * H * I, &rng), fill(x, T * H, &rng);
    for (int e = 0; e < E; e++) gpu_of[e] = e / (E / D);
    lab_need(moe_ep_expert_loads(ids, T * K, E, loads, NULL, &err));
    lab_need(moe_ep_loads_by_device(loads, E, gpu_of, D, gpu, &err));
    memset(&layout, 0, sizeof layout);
    layout.tokens_per_rank = tokens;
    lab_need(moe_ep_deepep_layout(ids, T, K, E, D, 0, gpu_of, &layout, &err));
    printf("tokens 0: 0.6 e3 + 0.4 e7, 1: 0.7 e1 + 0.3 e12, 2: 0.5 e3 + 0.5 e9, 3: 0.8 e7 + 0.2 e15\n\n");
    for (int d = 0; d < D; d++) {
        printf("GPU %d, experts %2d..%-2d |", d, 4 * d, 4 * d + 3);
        lab_bar((double)gpu[d], 2.0, 4.0, 24);
        printf("| %lld rows of %lld tokens\n", (long long)gpu[d], (long long)tokens[d]);
    }
    printf("imbalance %.1f over the experts, %.1f over the GPUs\n\n", lab_number(moe_ep_imbalance(loads, E, &err)),
           lab_number(moe_ep_imbalance(gpu, D, &err)));

    memset(&experts, 0, sizeof experts);
    memset(&layer, 0, sizeof layer);
    experts.num_experts = E, experts.hidden = H, experts.inter = I;
    experts.gate = w1, experts.up = w3, experts.down = w2;
    layer.experts = &experts, layer.top_k = K, layer.ids = ids, layer.choice_weights = weight;
    lab_need(moe_ep_forward(&layer, x, T, y, NULL, &err));
    printf("w2(SiLU(w1 x) * (w3 x)), the definition:           %s\n",
           difference(0) < 1e-5 ? "equal to 5 digits" : "DIFFERENT");
    printf("w2(SiLU(w1 x) * SiLU(w3 x)), as the README has it: off by %.0f %%\n", 100.0 * difference(1));
    return 0;
}
