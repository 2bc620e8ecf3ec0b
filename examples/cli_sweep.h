/* cli_sweep.h - moe-ep sweep: every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_SWEEP_H
#define CLI_SWEEP_H

#include "chart.h"
#include "cli_base.h"
#include "cli_read.h"
#include "cli_setup.h"

enum { CLI_SWEEP_SIZES = 16 }; /* most EP sizes without a list of them */

/* One configuration, as the library tries it. */
typedef moe_ep_sweep_point cli_config;

typedef struct cli_sweep {
    cli_setup setup;
    int32_t devices, layers, context;
    int32_t *ep, *redundant; /* stb_ds; redundant NULL = the fewest that give all devices equally
                                many slots, and 1, 2 and 4 more slots on each                */
    int32_t *uneven, *close; /* stb_ds, divide the devices and are not tried: no part of a node
                                and no whole nodes; between others                           */
    int ep_given;            /* --ep was there                                               */
    int64_t *tokens;         /* stb_ds, the first is the one that was asked about            */
    moe_ep_overlap *overlap; /* stb_ds, NULL = the library's choice                          */
    moe_ep_place_policy *policy; /* stb_ds, NULL = best                                      */
    double attention_us;     /* per layer, < 0 = from the model's weights and cache          */
    double reserve_bytes, tpot_s;
    int32_t drafts;          /* per sequence and step                                        */
    double accepted;         /* of these and its own                                         */
    double sigma, drift, walk;
    int64_t age;             /* steps since the plan was made                                */
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
/* Why the policy of a configuration has no plan for it. */
const char *cli_sweep_no_plan(const cli_sweep *s, const cli_config *c);

void cli_sweep_text(const void *data, FILE *f, const chart_text *t);
void cli_sweep_json(const void *data, FILE *f);
void cli_sweep_html(const void *data, FILE *f);

#endif
