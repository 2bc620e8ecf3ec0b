/* Why is decode lumpy? - imbalance of a perfect router against the batch size
 * SPDX-License-Identifier: MIT */
#include "lab.h"

enum { K = 2, E = 64, MAX_T = 4096 };
static int32_t ids[MAX_T * K];

/* max/mean of one batch drawn by a router for which all experts are alike. */
static double one_batch(int64_t T, uint64_t seed)
{
    int64_t loads[E];
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    w.seed = seed, w.num_experts = E, w.top_k = K;
    lab_need(moe_ep_simulate(&w, 0, 0, T, ids, NULL, &err));
    lab_need(moe_ep_expert_loads(ids, T * K, E, loads, NULL, &err));
    return lab_number(moe_ep_imbalance(loads, E, &err));
}

int main(void)
{
    moe_ep_chance_result c;
    double before = 0.0;

    printf("64 experts, top-2, every expert equally likely.  max/mean of the expert loads:\n\n");
    printf("batch  experts hit  drawn  expected  5 %%..95 %%     sqrt rule  slope  max/mean - 1, each column x1.19\n");
    for (int64_t T = 4; T <= MAX_T; T *= 2) {
        double rule = 1.0 + sqrt(2.0 * log((double)E) * (1.0 - (double)K / E) / ((double)T * K / E));
        lab_need(moe_ep_chance(T, K, E, &c, &err));
        printf("%5lld %12.1f %6.2f %9.2f  %5.2f..%-5.2f %9.2f ", (long long)T, c.distinct, one_batch(T, 1),
               c.max_over_mean, c.p05, c.p95, rule);
        if (T == 4) printf("%6s  |", "");
        else printf("%6.2f  |", log((c.max_over_mean - 1.0) / before) / log(2.0));
        lab_bar(4.0 * log(c.max_over_mean - 1.0) / log(2.0) + 10.0, -1.0, 24.0, 24);
        printf("|\n");
        before = c.max_over_mean - 1.0;
    }
    lab_need(moe_ep_chance(8, K, E, &c, &err));
    printf("\nBatch 8, top-2: 16 rows reach %.2f of 64 experts on average and the busiest has %.2f times the mean,\n"
           "with a perfect router.  The excess over 1 falls like 1/sqrt(batch), once every expert has a few rows.\n\n",
           c.distinct, c.max_over_mean);

    printf("1600 rows from a perfect top-1 router: is max/mean below 1.3?  That depends on the number of experts.\n\n");
    printf("experts  expected  5 %%..95 %%     share of 2000 batches below 1.3\n");
    for (int32_t n = 8; n <= 128; n *= 2) {
        int below = 0;
        moe_ep_workload w;
        memset(&w, 0, sizeof w);
        w.num_experts = n, w.top_k = 1;
        for (w.seed = 1; w.seed <= 2000; w.seed++) {
            int64_t loads[128];
            lab_need(moe_ep_simulate(&w, 0, 0, 1600, ids, NULL, &err));
            lab_need(moe_ep_expert_loads(ids, 1600, n, loads, NULL, &err));
            below += moe_ep_imbalance(loads, n, &err) < 1.3;
        }
        lab_need(moe_ep_chance(1600, 1, n, &c, &err));
        printf("%7d %9.2f  %5.2f..%-5.2f %6.1f %%\n", n, c.max_over_mean, c.p05, c.p95, below / 20.0);
    }
    return 0;
}
