/* tests/place.h - what the programs that test section 5 share: placements, and versions of single steps by definition.
 * SPDX-License-Identifier: MIT */
#ifndef PLACE_H
#define PLACE_H

#include "placement.h"

T_EXACT_MATH /* the plain versions below divide as upstream does */

static moe_ep_shape shape_of(int32_t devices, int32_t slots, int32_t nodes)
{
    moe_ep_shape s;
    memset(&s, 0, sizeof s);
    s.num_devices = devices;
    s.num_slots = slots;
    s.num_nodes = nodes;
    return s;
}

static moe_ep_place_desc desc_of(int32_t L, int32_t E, moe_ep_shape shape, const double *loads)
{
    moe_ep_place_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = L;
    d.num_experts = E;
    d.shape = shape;
    d.loads = loads;
    return d;
}

typedef moe_ep_status (*planner)(const moe_ep_place_desc *, moe_ep_placement *, moe_ep_plan_result *,
                                 moe_ep_scratch *, moe_ep_error *);

/* Plans one layer and returns its device loads through `device`. */
static moe_ep_plan_result plan_one(planner f, const moe_ep_place_desc *d, moe_ep_placement *p, double *device)
{
    moe_ep_plan_result r;
    moe_ep_error err;
    memset(&r, 0, sizeof r);
    *p = placement_new(d->num_layers, d->num_experts, &d->shape);
    CHECK_I64(f(d, p, &r, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_validate(p, 0, NULL, &err), MOE_EP_OK);
    if (device) CHECK_I64(moe_ep_device_loads(p, d->loads, device, &err), MOE_EP_OK);
    return r;
}

static double busiest(const moe_ep_placement *p, int l, const double *w)
{
    double *load = (double *)t_alloc(sizeof(double) * (size_t)p->num_devices), worst = 0;
    int e, i, n, E = p->num_experts;
    const int32_t *start = p->replica_start + l * (E + 1);
    for (e = 0; e < E; e++)
        for (i = start[e], n = start[e + 1] - start[e]; i < start[e + 1]; i++)
            load[p->slot_device[p->replica_slot[l * p->num_slots + i]]] += w[e] / n;
    for (i = 0; i < p->num_devices; i++)
        if (load[i] / p->device_speed[i] > worst) worst = load[i] / p->device_speed[i];
    free(load);
    return worst;
}

static int on_device(const moe_ep_placement *p, int32_t d, int32_t e)
{
    int32_t s;
    for (s = p->slot_start[d]; s < p->slot_start[d + 1]; s++)
        if (p->slot_expert[s] == e) return 1;
    return 0;
}

/* Every expert somewhere, and copies of any in three quarters of the other slots, but for doubles. */
static void scatter(moe_ep_placement *p, uint64_t *state)
{
    int32_t l, i, e;
    for (l = 0; l < p->num_layers; l++) {
        int32_t *slot = p->slot_expert + l * p->num_slots;
        for (e = 0; e < p->num_experts; e++) {
            while (slot[i = (int32_t)t_below(state, p->num_slots)] >= 0) {}
            slot[i] = e;
        }
        for (i = 0; i < p->num_slots; i++) {
            int32_t d = p->slot_device[i], k, fits = slot[i] < 0 && t_below(state, 4);
            e = (int32_t)t_below(state, p->num_experts);
            for (k = p->slot_start[d]; k < p->slot_start[d + 1]; k++) fits &= slot[k] != e;
            if (fits) slot[i] = e;
        }
    }
    CHECK_I64(moe_ep_placement_index(p, NULL), MOE_EP_OK);
}

/* ---- the published rules of EPLB, step by step ----------------------------------------------------- */

static void naive_pack(const float *w, int n, int m, int *pack, int *rank)
{
    int k = n / m, i, j;
    float *sum = (float *)t_alloc(sizeof(float) * (size_t)m);
    int *fill = (int *)t_alloc(sizeof(int) * (size_t)m), *done = (int *)t_alloc(sizeof(int) * (size_t)n);
    for (i = 0; i < n; i++) {
        int best = -1, to = -1;
        if (k == 1) {
            pack[i] = i;
            rank[i] = 0;
            continue;
        }
        for (j = 0; j < n; j++)
            if (!done[j] && (best < 0 || w[j] > w[best])) best = j;
        for (j = 0; j < m; j++)
            if (fill[j] < k && (to < 0 || sum[j] < sum[to])) to = j;
        done[best] = 1;
        pack[best] = to;
        rank[best] = fill[to]++;
        sum[to] = sum[to] + w[best];
    }
    free(sum);
    free(fill);
    free(done);
}

/* PyTorch's order on a CPU for rows shorter than 512 (64 below 8): 8 lanes of 4 strands, lanes last. */
static float naive_sum(const double *x, int n)
{
    float part[4][8] = {{0}}, sum = 0;
    int lanes = n < 8 ? 1 : 8, full = n / lanes / 4 * 4, i;
    for (i = 0; i < n / lanes * lanes; i++) part[i / lanes < full ? i / lanes % 4 : 0][i % lanes] += (float)x[i];
    for (i = n / lanes * lanes; i < n; i++) sum += (float)x[i];
    for (i = 0; i < lanes; i++) sum += ((part[0][i] + part[1][i]) + part[2][i]) + part[3][i];
    return sum;
}

/* Counts by definition: one after the other to the largest share. */
static void naive_counts(const double *w, int E, int P, int most, int32_t *counts)
{
    int e, used, top;
    for (e = 0; e < E; e++) counts[e] = 1;
    for (used = E; used < P; used++) {
        for (e = 0, top = -1; e < E; e++)
            if (counts[e] < most && (top < 0 || w[e] / counts[e] > w[top] / counts[top])) top = e;
        if (top < 0) return;
        counts[top]++;
    }
}

/* ---- the optimum by trying everything --------------------------------------------------------------- */

/* Optimum with any devices: every expert on every set of devices, no duplicates. */
typedef struct search {
    const double *w, *speed;
    const int32_t *cap, *pin;
    const uint8_t *down;
    int E, D, order[12], fill[8];
    double load[8], best;
} search;

static int search_most; /* copies of an expert, 0 = any number */

static void search_expert(search *x, int i, int left)
{
    int mask, d, e;
    double worst = 0;
    if (i == x->E) {
        for (d = 0; d < x->D; d++)
            if (x->load[d] / x->speed[d] > worst) worst = x->load[d] / x->speed[d];
        if (worst < x->best) x->best = worst;
        return;
    }
    e = x->order[i];
    for (mask = 1; mask < 1 << x->D; mask++) {
        int n = 0, ok = x->pin == NULL || x->pin[e] < 0 || (mask >> x->pin[e] & 1);
        for (d = 0; d < x->D; d++) n += mask >> d & 1;
        if (n > left - (x->E - 1 - i) || (search_most && n > search_most)) continue;
        for (d = 0; d < x->D && ok; d++)
            if (mask >> d & 1)
                ok = x->fill[d] < x->cap[d] && !(x->down && x->down[d]) &&
                     (x->load[d] + x->w[e] / n) / x->speed[d] < x->best;
        if (!ok) continue;
        for (d = 0; d < x->D; d++)
            if (mask >> d & 1) {
                x->load[d] += x->w[e] / n;
                x->fill[d]++;
            }
        search_expert(x, i + 1, left - n);
        for (d = 0; d < x->D; d++)
            if (mask >> d & 1) {
                x->load[d] -= x->w[e] / n;
                x->fill[d]--;
            }
    }
}

static double search_optimum(const double *w, int E, int D, const int32_t *cap, const double *speed,
                             const uint8_t *down, const int32_t *pin, double known)
{
    static const double ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    search x;
    int i, j, slots = 0;
    memset(&x, 0, sizeof x);
    x.w = w;
    x.speed = speed ? speed : ones;
    x.cap = cap;
    x.pin = pin;
    x.down = down;
    x.E = E;
    x.D = D;
    x.best = known * (1 + 1e-9) + 1e-300;
    for (i = 0; i < E; i++) {
        for (j = i; j > 0 && w[x.order[j - 1]] < w[i]; j--) x.order[j] = x.order[j - 1];
        x.order[j] = i;
    }
    for (i = 0; i < D; i++)
        if (!(down && down[i])) slots += cap[i];
    search_expert(&x, 0, slots);
    return x.best;
}

#endif
