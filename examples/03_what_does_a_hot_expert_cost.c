/* What does a hot expert cost? - 60 % of the rows on one of 8 experts, same total work
 * SPDX-License-Identifier: MIT */
#include "lab.h"

enum { E = 8, ROWS = 1600 };

/* One line of the second table: how hot can an expert get when every token takes K experts? */
static void how_hot(const char *name, int32_t K, int32_t with_replacement)
{
    static int32_t ids[ROWS];
    int64_t loads[E];
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_HOT_EXPERT;
    w.seed = 1;
    w.num_experts = E;
    w.top_k = K;
    w.share = 0.6;
    w.with_replacement = with_replacement;
    lab_need(moe_ep_simulate(&w, 0, 0, ROWS / K, ids, NULL, &err));
    lab_need(moe_ep_expert_loads(ids, ROWS, E, loads, NULL, &err));
    printf("%-26s %8lld %7.1f %% %10.2f %10.2f\n", name, (long long)loads[0], 100.0 * (double)loads[0] / ROWS,
           lab_number(moe_ep_imbalance(loads, E, &err)), with_replacement ? (double)E : (double)E / K);
}

int main(void)
{
    static const int64_t even[E] = {200, 200, 200, 200, 200, 200, 200, 200};
    static const int64_t hot[E] = {960, 92, 92, 92, 91, 91, 91, 91};
    int64_t device[E];

    printf("1600 rows, 8 experts, expert e on device e %% D.  Expert 0 has 960 rows: %.1f times its share.\n\n",
           lab_number(moe_ep_imbalance(hot, E, &err)));
    printf("devices   step, even   step, hot   slower   device efficiency\n");
    for (int32_t D = 1; D <= 8; D *= 2) {
        double fast = lab_number((double)moe_ep_step_time(even, E, NULL, D, &err));
        double slow = lab_number((double)moe_ep_step_time(hot, E, NULL, D, &err));
        lab_need(moe_ep_loads_by_device(hot, E, NULL, D, device, &err));
        printf("%7d %12.0f %11.0f %7.2fx %16.1f %%\n", D, fast, slow, slow / fast,
               100.0 * lab_number(moe_ep_efficiency(device, D, &err)));
    }

    printf("\nrows on each of 4 devices (! is the mean, 400; the space behind a bar is waiting):\n");
    lab_need(moe_ep_loads_by_device(hot, E, NULL, 4, device, &err));
    for (int d = 0; d < 4; d++) {
        printf("device %d |", d);
        lab_bar((double)device[d], 400.0, 1051.0, 48);
        printf("| %4lld rows, idle %4.1f %%\n", (long long)device[d], 100.0 * (1.0 - (double)device[d] / 1051.0));
    }

    printf("\nCan 60 %% happen?  Not if a token takes K different experts: one then gets at most 1/K of the rows.\n\n");
    printf("routing                    hot rows    share  imbalance  limit E/K\n");
    how_hot("top-1", 1, 0);
    how_hot("top-2, repeats allowed", 2, 1);
    how_hot("top-2, different experts", 2, 0);
    return 0;
}
