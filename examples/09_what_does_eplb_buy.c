/* What does EPLB buy? - eight experts on four GPUs, before and after, and what the slots cost
 * SPDX-License-Identifier: MIT
 *
 * Loads and layouts of the EPLB demonstration in the Dynamo workshop's wide-EP notebook. */
#include "lab.h"

enum { E = 8, D = 4 };
static const double load[E] = {1000, 800, 600, 500, 300, 200, 100, 50}; /* tokens per expert */

static void bars(const char *title, const double *gpu)
{
    printf("%s\n", title);
    for (int d = 0; d < D; d++) {
        printf("  GPU %d |", d);
        lab_bar(gpu[d], 887.5, 1800.0, 54);
        printf("| %4.0f tokens %s\n", gpu[d], gpu[d] > 1500 ? "red" : gpu[d] > 1000 ? "orange" : "green");
    }
    printf("\n");
}

static void line(const char *name, int slots, const double *gpu, double bound)
{
    moe_ep_balance_result b;
    lab_need(moe_ep_balance_d(gpu, D, &b, NULL, &err));
    printf("%-38s %5d %9.1f %9.3f %10.1f %% %7.2fx", name, slots, b.max, b.imbalance, 100.0 * b.efficiency,
           1800.0 / b.max);
    if (bound > 0.0) printf(" %9.1f", bound);
    printf("\n");
}

/* One planner with a number of slots: its line of the table. */
static void planner(const char *name, int slots, moe_ep_status (*plan)(const moe_ep_place_desc *, moe_ep_placement *,
                    moe_ep_plan_result *, moe_ep_scratch *, moe_ep_error *))
{
    double gpu[D];
    moe_ep_place_desc desc;
    moe_ep_plan_result result;
    moe_ep_placement placement;
    void *mem;
    memset(&desc, 0, sizeof desc);
    desc.num_layers = 1, desc.num_experts = E, desc.loads = load;
    desc.shape.num_devices = D, desc.shape.num_slots = slots;
    placement = lab_placement(1, E, &desc.shape, &mem);
    lab_need(plan(&desc, &placement, &result, NULL, &err));
    lab_need(moe_ep_device_loads(&placement, load, gpu, &err));
    line(name, slots, gpu, result.lower_bound);
    free(mem);
}

int main(void)
{
    static const double blocks[D] = {1800, 1100, 500, 150};  /* [0,1] [2,3] [4,5] [6,7]   */
    static const double layout[D] = {1000, 1100, 900, 550};  /* [0] [1,4] [2,5,6] [3,7]   */
    int32_t device_of[E];
    double gpu[D] = {0};

    bars("Before: two neighbours per GPU (! is the mean, 887.5)", blocks);
    bars("The notebook's layout [0] [1,4] [2,5,6] [3,7]: announced as \"all balanced\" and \"1.8x\"", layout);
    lab_need(moe_ep_lpt(load, E, D, device_of, NULL, &err));
    for (int e = 0; e < E; e++) gpu[device_of[e]] += load[e];
    bars("Heaviest expert first onto the lightest GPU: the 1.8x", gpu);

    printf("plan                                   slots   busiest  max/mean  efficiency  speed-up     bound\n");
    line("two neighbours per GPU", 8, blocks, -1.0);
    line("the notebook's layout (1, 2, 3, 2)", 8, layout, -1.0);
    line("heaviest first, any number per GPU", 8, gpu, -1.0);
    planner("heaviest first, 2 slots per GPU", 8, moe_ep_place_lpt);
    planner("EPLB", 8, moe_ep_place_eplb);
    planner("EPLB", 12, moe_ep_place_eplb);
    planner("EPLB", 16, moe_ep_place_eplb);
    planner("EPLB", 20, moe_ep_place_eplb);
    planner("moe_ep_best_placement", 12, moe_ep_best_placement);
    planner("moe_ep_best_placement", 16, moe_ep_best_placement);
    printf("\nThe notebook's layout gives 1800/1100 = 1.64x.  EPLB needs the same number of slots on every GPU, so it\n"
           "cannot have made that layout.  No plan without copies gets below 1000, the load of expert 0; none at all\n"
           "gets below 887.5.  A better plan needs fewer copies: 12 slots do more than EPLB's 20.\n");
    return 0;
}
