/* tests/fuzz/fuzz_shapes.h - clusters and empty placements of every kind
 * SPDX-License-Identifier: MIT */
#ifndef FUZZ_SHAPES_H
#define FUZZ_SHAPES_H

#include "fuzz.h"

enum { FZ_DEVICES = 24 }; /* room of the arrays below */
static void make_shape(moe_ep_shape *s, int E, int32_t *spd, int32_t *nod, double *sp, uint8_t *in)
{
    memset(s, 0, sizeof *s);
    int D = fz_grow(fz_int(1, 5), FZ_DEVICES);
    s->num_devices = D;
    s->num_nodes = fz_int(0, D);
    int q = fz_int(0, 2);
    if (q == 0) s->num_slots = 0;
    if (q == 1) s->num_slots = E + fz_int(fz_chance(.05) ? -1 : 0, 6);
    if (q == 2) {
        int sum = 0;
        for (int i = 0; i < D; i++) {
            spd[i] = fz_int(0, 4) + (D > 0 && E > 2 * D ? E / D : 0);
            sum += spd[i];
        }
        s->slots_per_device = spd;
        if (fz_chance(.3)) s->num_slots = sum;
    }
    if (fz_chance(.2) && s->num_nodes > 1) {
        for (int i = 0; i < D; i++) nod[i] = fz_int(0, s->num_nodes - 1);
        s->node_of_device = nod;
    }
    if (fz_chance(.2)) {
        for (int i = 0; i < D; i++) sp[i] = fz_chance(.02) ? fz_bad_double() : .25 + fz_unit() * 2;
        s->speed = sp;
    }
    if (fz_chance(.2)) {
        for (int i = 0; i < D; i++) in[i] = fz_chance(.2);
        s->inactive = in;
    }
    if (fz_chance(.03)) s->num_devices = fz_bad_i32() > 5 ? 0 : s->num_devices;
    if (fz_chance(.05)) s->num_nodes = fz_int(-1, 9);
}

static moe_ep_placement PL;
static unsigned char *memory;
static int make_placement(int L, int E, const moe_ep_shape *s)
{
    size_t b = moe_ep_placement_bytes(L, E, s);
    if (!b || b > 1e8) return 0;
    memory = fz_work(b);
    moe_ep_error e = fz_stale;
    fz_where = "placement_init";
    moe_ep_status t = moe_ep_placement_init(&PL, L, E, s, memory, b, &e);
    fz_error(t, &e);
    return t >= 0;
}
#endif
