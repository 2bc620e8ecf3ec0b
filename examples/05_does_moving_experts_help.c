/* Does moving experts help, and one more copy? - best placement and replication on two kinds of load
 * SPDX-License-Identifier: MIT */
#include "lab.h"

enum { E = 8, D = 4 };
static const double smooth[E] = {1000, 800, 600, 500, 300, 200, 100, 50}; /* popularity falls off slowly */
static const double hot[E] = {960, 92, 92, 92, 91, 91, 91, 91};           /* one expert has 60 %         */

/* The busiest device when expert e has counts[e] copies, heaviest copy first onto the lightest device. */
static double busiest(const double *loads, const int32_t *counts, double *device)
{
    int32_t device_of[E + D], copy = 0;
    double most = 0.0;
    lab_need(moe_ep_lpt_replicas(loads, E, counts, D, device_of, NULL, &err));
    memset(device, 0, sizeof(double) * D);
    for (int e = 0; e < E; e++)
        for (int c = 0; c < counts[e]; c++) device[device_of[copy++]] += loads[e] / counts[e];
    for (int d = 0; d < D; d++) most = device[d] > most ? device[d] : most;
    return most;
}

static void line(const char *name, const double *device, double first, double mean)
{
    double most = 0.0;
    for (int d = 0; d < D; d++) most = device[d] > most ? device[d] : most;
    printf("%-30s %5.0f %5.0f %5.0f %5.0f %8.3f %8.3fx  |", name, device[0], device[1], device[2], device[3],
           most / mean, first / most);
    lab_bar(most, mean, first, 24);
    printf("|\n");
}

static void study(const char *title, const double *loads)
{
    int32_t once[E], counts[E];
    double device[D], first, total = 0.0;
    moe_ep_place_desc desc;
    moe_ep_plan_result plan;
    moe_ep_placement placement;
    void *mem;
    memset(&desc, 0, sizeof desc);
    desc.num_layers = 1, desc.num_experts = E, desc.shape.num_devices = D, desc.loads = loads;
    placement = lab_placement(1, E, &desc.shape, &mem);
    printf("%-30s   rows on device 0..3  max/mean  speed-up   busiest (! is the mean)\n", title);
    for (int e = 0; e < E; e++) once[e] = 1, total += loads[e];

    lab_need(moe_ep_place_contiguous(&desc, &placement, &plan, NULL, &err));
    lab_need(moe_ep_device_loads(&placement, loads, device, &err));
    first = plan.max;
    line("blocks of two", device, first, total / D);
    lab_need(moe_ep_place_round_robin(&desc, &placement, &plan, NULL, &err));
    lab_need(moe_ep_device_loads(&placement, loads, device, &err));
    line("round robin, e mod D", device, first, total / D);
    busiest(loads, once, device);
    line("heaviest first (LPT)", device, first, total / D);
    for (int extra = 1; extra <= 2; extra++) { /* one more slot each for whoever is hottest per copy */
        lab_need(moe_ep_replicate(loads, E, E + extra, D, counts, NULL, &err));
        busiest(loads, counts, device);
        line(extra == 1 ? "LPT + 1 copy of the hottest" : "LPT + 2 copies", device, first, total / D);
    }
    printf("%-30s %23.1f %8.3f %8.3fx\n\n", "no plan gets below the mean", total / D, 1.0, first / (total / D));
    free(mem);
}

int main(void)
{
    moe_ep_copies_desc more;
    moe_ep_copies_point curve[5];
    study("a slow fall, 3550 rows", smooth);
    study("one hot expert, 1600 rows", hot);
    printf("One copy of the hottest expert gains nothing on the first load (the second expert is heavy too) and\n"
           "nearly everything on the second.  Nor do more copies always help; EPLB, hot load, 8 devices, max/mean:\n ");
    memset(&more, 0, sizeof more);
    more.place.num_layers = 1, more.place.num_experts = E, more.place.loads = hot, more.place.shape.num_devices = 8;
    more.policy = MOE_EP_PLACE_EPLB_GLOBAL, more.max_extra = 32, more.step = 8;
    lab_need(moe_ep_min_copies(&more, curve, NULL, NULL, &err));
    for (int i = 0; i < 5; i++) printf(" %d copies %.3f%s", curve[i].extra, curve[i].worst, i < 4 ? "," : "\n");
    return 0;
}
