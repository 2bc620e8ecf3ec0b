/* lab.h - what the numbered examples share: a readable stop, bars, memory for a placement
 * SPDX-License-Identifier: MIT */
#ifndef LAB_H
#define LAB_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "moe_ep.h"

/* The detail of the last call, for lab_need. */
static moe_ep_error err;

/* Stops the example when a call failed.  The examples feed the library constants, so this never fires;
 * with your own data it names the argument, the element and the value that was wrong. */
static inline void lab_need(moe_ep_status status)
{
    char text[256];
    if (status == MOE_EP_OK) return;
    moe_ep_error_text(&err, text, sizeof text);
    fprintf(stderr, "%s\n", text);
    exit(1);
}

/* The same for a function that returns a number; gives the number back. */
static inline double lab_number(double value)
{
    if (value < 0.0) lab_need(err.status);
    return value;
}

/* A bar of value/top of `cells` columns, padded to them; '!' marks a level (negative: no mark). */
static inline void lab_bar(double value, double mark, double top, int cells)
{
    int full = (int)(value / top * cells + 0.5), at = mark < 0.0 ? -1 : (int)(mark / top * cells + 0.5);
    for (int i = 0; i < cells; i++) putchar(i == at ? '!' : i < full ? '#' : ' ');
}

static inline void *lab_alloc(size_t bytes)
{
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (memory) return memory;
    fprintf(stderr, "out of memory\n");
    exit(1);
}

/* An empty placement of L layers and E experts on a shape; free(mem) gives it back. */
static inline moe_ep_placement lab_placement(int32_t L, int32_t E, const moe_ep_shape *shape, void **mem)
{
    moe_ep_placement placement;
    size_t bytes = moe_ep_placement_bytes(L, E, shape);
    *mem = lab_alloc(bytes);
    lab_need(moe_ep_placement_init(&placement, L, E, shape, *mem, bytes, &err));
    return placement;
}

/* One layer of E experts in contiguous blocks on D devices. */
static inline moe_ep_placement lab_blocks(int32_t E, int32_t D, void **mem)
{
    moe_ep_place_desc desc;
    moe_ep_placement placement;
    memset(&desc, 0, sizeof desc);
    desc.num_layers = 1, desc.num_experts = E, desc.shape.num_devices = D;
    placement = lab_placement(1, E, &desc.shape, mem);
    lab_need(moe_ep_place_contiguous(&desc, &placement, NULL, NULL, &err));
    return placement;
}

#endif
