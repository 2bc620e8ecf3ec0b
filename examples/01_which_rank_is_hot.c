/* Which rank is hot, and what does it cost? - routing histogram, rank loads, imbalance, efficiency
 * SPDX-License-Identifier: MIT */
#include <stdio.h>
#include "moe_ep.h"

int main(void)
{
    /* The two experts that each of 8 tokens chose, out of 8; ranks 0..3 own two experts each. */
    static const int32_t ids[16] = {0, 1, 0, 4, 1, 0, 2, 0, 0, 5, 1, 3, 6, 0, 1, 7};
    static const int32_t rank_of_expert[8] = {0, 0, 1, 1, 2, 2, 3, 3};
    int64_t experts[8], ranks[4];
    moe_ep_balance_result b;

    if (moe_ep_expert_loads(ids, 16, 8, experts, NULL, NULL) != MOE_EP_OK) return 1;
    if (moe_ep_loads_by_device(experts, 8, rank_of_expert, 4, ranks, NULL) != MOE_EP_OK) return 1;
    if (moe_ep_balance(ranks, 4, &b, NULL, NULL) != MOE_EP_OK) return 1;
    for (int r = 0; r < 4; r++)
        printf("rank %d |%-10.*s| %2lld rows\n", r, (int)ranks[r], "##########", (long long)ranks[r]);
    printf("rank %d is hot: imbalance %.2f, so the step takes %.2f times as long as it could\n", b.argmax,
           b.imbalance, b.step_inflation);
    printf("and the ranks work %.0f %% of the time (efficiency = 1 / imbalance)\n", 100.0 * b.efficiency);
    return 0;
}
