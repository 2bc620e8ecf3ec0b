/* How many tokens are dropped? - a capacity factor against a hot expert, and what inference pays instead
 * SPDX-License-Identifier: MIT */
#include "lab.h"

enum { T = 128, K = 1, E = 8 };

int main(void)
{
    static const int64_t loads[E] = {84, 7, 7, 6, 6, 6, 6, 6};
    static const double factor[8] = {0.5, 1.0, 1.25, 1.5, 2.0, 4.0, 5.25, 8.0};
    moe_ep_capacity_desc c;
    int32_t ids[T * K];
    uint8_t keep[T * K];

    lab_need(moe_ep_ids_from_counts(loads, E, T, K, 1, ids, &err));
    memset(&c, 0, sizeof c);
    c.rule = MOE_EP_CAPACITY_MEGATRON; /* ceil(T K / E * factor) */
    c.num_tokens = T, c.top_k = K, c.num_experts = E;

    printf("128 rows, 8 experts, loads 84 7 7 6 6 6 6 6 (mean 16)\n\n");
    printf("factor  capacity  dropped                            buffer rows  step  unused buffer\n");
    for (int i = 0; i < 8; i++) {
        moe_ep_drop_policy policy;
        moe_ep_drop_result lost;
        int64_t capacity;
        c.factor = factor[i];
        capacity = moe_ep_capacity(&c, &err);
        policy = moe_ep_drop_switch(capacity);
        lab_need(moe_ep_drop(&policy, ids, NULL, T, K, E, keep, NULL, NULL, NULL, &lost, NULL, &err));
        if (lost.dropped != moe_ep_dropped_tokens(loads, E, capacity, &err)) return 1; /* two ways to count */
        printf("%6.2f %9lld %8lld |", factor[i], (long long)capacity, (long long)lost.dropped);
        lab_bar((double)lost.dropped, -1.0, 84.0, 22);
        printf("| %11lld %5lld %12.0f %%\n", (long long)(capacity * E), (long long)(capacity < 84 ? capacity : 84),
               100.0 - 100.0 * (double)lost.kept / (double)(capacity * E));
    }
    printf("\nNothing is dropped from factor %.2f on: every expert then has room for what the hottest gets.\n",
           lab_number(moe_ep_smallest_capacity_factor(loads, E, (int64_t)T * K, &err)));
    printf("Inference drops nothing and keeps no such buffers; it pays with the step: 84 rows for a mean of 16.\n\n");

    printf("The capacity hangs on what is counted.  64 tokens, 2 rows each (some choose expert 0 twice), factor 1:\n");
    c.factor = 1.0;
    c.num_tokens = 64, c.top_k = 2; /* the same 128 rows */
    printf("  ceil(T K / E) = %2lld rows (Megatron-LM)\n", (long long)moe_ep_capacity(&c, &err));
    c.rule = MOE_EP_CAPACITY_DEEPSPEED_TOP1;
    printf("  ceil(T / E)   = %2lld rows (top-1 formula): %lld dropped instead of %lld\n",
           (long long)moe_ep_capacity(&c, &err),
           (long long)moe_ep_dropped_tokens(loads, E, moe_ep_capacity(&c, &err), &err),
           (long long)moe_ep_dropped_tokens(loads, E, 16, &err));
    return 0;
}
