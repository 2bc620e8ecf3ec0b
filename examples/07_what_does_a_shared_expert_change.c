/* What does a shared expert change? - every token also visits expert S while the router is hot
 * SPDX-License-Identifier: MIT */
#include "lab.h"

enum { E = 8, D = 4, T = 800 };

static void line(const char *name, const int64_t *shared_rows)
{
    static const int64_t hot[E] = {960, 92, 92, 92, 91, 91, 91, 91}; /* 60 %: some tokens go to expert 0 twice */
    int64_t device[D];
    moe_ep_balance_result b;
    lab_need(moe_ep_loads_by_device(hot, E, NULL, D, device, &err));
    for (int d = 0; d < D; d++) device[d] += shared_rows[d];
    lab_need(moe_ep_balance(device, D, &b, NULL, &err));
    printf("%-34s %5lld %5lld %5lld %5lld %7.0f %8.0f %8.3f %8.1f %%  |", name, (long long)device[0],
           (long long)device[1], (long long)device[2], (long long)device[3], b.mean, b.step_time, b.imbalance,
           100.0 * b.efficiency);
    lab_bar(b.step_time, b.mean, 1900.0, 19);
    printf("|\n");
}

int main(void)
{
    static const int64_t none[D] = {0, 0, 0, 0}, everywhere[D] = {T / D, T / D, T / D, T / D};
    static const int64_t on_hot[D] = {T, 0, 0, 0}, on_cool[D] = {0, 0, 0, T};

    printf("800 tokens, 2 rows each, 60 %% of them on expert 0 (so some twice), experts on device e mod 4\n\n");
    printf("where the shared expert lives       rows on device 0..3     mean     step max/mean efficiency  "
           "step (! is the mean)\n");
    line("no shared expert", none);
    line("a copy on every device", everywhere);
    line("one copy, on the hot device", on_hot);
    line("one copy, on the coolest device", on_cool);
    printf("\nThe routed rows are as uneven as before.  A copy everywhere adds the same work to all devices, so the\n"
           "ratio looks better while the step grows by 200 rows; in the wrong place the shared expert makes the hot\n"
           "device hotter; on the coolest it fills time that was waiting: 800 rows more, no row longer.\n");
    return 0;
}
