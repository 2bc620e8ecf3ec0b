/* tests/test_loads_portable.c - section 2 once more, by the portable loops, and routing in such a build.
 * SPDX-License-Identifier: MIT */
#define MOE_EP_STATIC
#define MOE_EP_NO_SIMD
#define MOE_EP_NO_FORWARD
#include "test_loads.c"

/* Whatever kernels are asked for, plain C does the work: scores and the best of them against double. */
TEST(route_without_instruction_sets)
{
    enum { E = 24, K = 3 };
    float logits[E], scores[E], w[K];
    int32_t ids[K], e, j;
    uint64_t s = t_seed;
    int score, isa;
    for (score = 0; score < 4; score++)
        for (isa = (int)MOE_EP_ISA_AUTO; isa <= (int)MOE_EP_ISA_AVX512; isa++) {
            moe_ep_router r = moe_ep_router_mixtral(E, K);
            double sum = 0.0, want[E];
            r.score = (moe_ep_score)score;
            r.isa_max = (moe_ep_isa)isa;
            for (e = 0; e < E; e++) {
                logits[e] = (float)(4.0 * t_unit(&s) - 2.0);
                sum += exp((double)logits[e]);
            }
            for (e = 0; e < E; e++) {
                const double x = (double)logits[e];
                want[e] = score == MOE_EP_SCORE_SOFTMAX ? exp(x) / sum : score == MOE_EP_SCORE_SIGMOID ?
                    1.0 / (1.0 + exp(-x)) : score == MOE_EP_SCORE_SQRT_SOFTPLUS ? sqrt(log1p(exp(x))) : x;
            }
            CHECK_I64(moe_ep_scores(&r, logits, 1, scores, NULL), MOE_EP_OK);
            for (e = 0; e < E; e++) CHECK_NEAR(scores[e], want[e], 1e-5, 1e-6);
            CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
            for (j = 0; j < K; j++)
                for (e = 0; e < E; e++)
                    if (e != ids[0] && e != ids[1] && e != ids[2]) CHECK(logits[ids[j]] >= logits[e]);
        }
    CHECK_I64(moe_ep_isa_best(), MOE_EP_ISA_PORTABLE);
}
