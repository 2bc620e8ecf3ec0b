/* tests/placement.h - a placement in memory of its own.
 * SPDX-License-Identifier: MIT */
#ifndef PLACEMENT_H
#define PLACEMENT_H

#include "moe_ep.h"
#include "t.h"

/* Free with placement_free. */
static inline moe_ep_placement placement_new(int32_t L, int32_t E, const moe_ep_shape *shape)
{
    moe_ep_placement p;
    size_t bytes = moe_ep_placement_bytes(L, E, shape);
    memset(&p, 0, sizeof p);
    if (bytes == 0 || moe_ep_placement_init(&p, L, E, shape, t_alloc(bytes), bytes, NULL) != MOE_EP_OK) {
        fprintf(stderr, "placement_new failed\n");
        exit(2);
    }
    return p;
}

static inline void placement_free(moe_ep_placement *p) { free(p->device_speed); } /* first in its block */

#endif /* PLACEMENT_H */
