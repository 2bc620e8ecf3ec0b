/* cli_sweep.h - moe-ep sweep: every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_SWEEP_H
#define CLI_SWEEP_H

#include "chart.h"
#include "cli_base.h"
#include "cli_read.h"
#include "cli_setup.h"

/* One configuration, as the library tries it. */
typedef moe_ep_sweep_point cli_config;

typedef struct cli_sweep {
    cli_setup setup;
    int32_t devices, layers, context;
    int32_t *ep, *redundant; /* stb_ds; redundant NULL = 0, 1, 2 and 4 more slots per device */
    int64_t *tokens;         /* stb_ds, the first is the one that was asked about            */
    moe_ep_overlap *overlap; /* stb_ds, NULL = the library's choice                          */
    moe_ep_place_policy *policy; /* stb_ds, NULL = best                                      */
    double attention_us;     /* per layer, < 0 = from the model's weights and cache          */
    double reserve_bytes, tpot_s;
    double sigma, drift;
    uint64_t seed;
    int exact;               /* split rows over copies exactly, not evenly                   */
    const cli_trace *plan_on, *serve; /* NULL = lognormal popularity                         */

    cli_config *config;      /* stb_ds */
    int *front;              /* stb_ds, indices from the shortest TPOT on */
    int best;                /* index, -1 = none fits */
    char *headline, *reason;
    const char *badge, *state;
} cli_sweep;

const char *cli_overlap_str(moe_ep_overlap overlap);
const char *cli_policy_str(moe_ep_place_policy policy);

void cli_sweep_text(const void *data, FILE *f, const chart_text *t);
void cli_sweep_json(const void *data, FILE *f);
void cli_sweep_html(const void *data, FILE *f);

#endif
