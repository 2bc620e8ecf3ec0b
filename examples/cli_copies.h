/* cli_copies.h - moe-ep copies: every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_COPIES_H
#define CLI_COPIES_H

#include "chart.h"
#include "cli_base.h"
#include "cli_read.h"
#include "cli_setup.h"

enum { CLI_BUDGETS = 16, CLI_NEEDS = 14 };

/* Copies shared out over the layers where they pay. */
typedef struct cli_budget {
    int64_t extra;          /* slots beyond one per expert, all layers together */
    double per_layer;       /* on average                                       */
    double worst, mean;     /* max/mean of the worst layer, averaged over layers */
    int32_t least, most;    /* extra slots of a layer                            */
    double device_bytes;    /* extra weights on the fullest device               */
} cli_budget;

/* Each layer gets the fewest copies with which it reaches a balance. */
typedef struct cli_need {
    double worst;           /* max/mean of the worst layer then                 */
    int64_t extra;          /* copies, all layers together                      */
    double per_layer;       /* on average                                       */
    int32_t least, most;    /* of a layer                                       */
    double bytes;           /* over all devices                                 */
} cli_need;

typedef struct cli_copies {
    cli_setup setup;
    moe_ep_place_policy policy;
    int32_t max_extra, step;
    int32_t first;             /* copies of the first plan: eplb needs as many slots on every device */
    int32_t L, E, D;
    const cli_trace *trace;
    char *names, *left_out;
    double *loads;             /* (L,E)                                            */
    double expert_bytes;
    int32_t points;
    moe_ep_copies_point *point;
    double *device_bytes;      /* (points) on the fullest device                   */
    int32_t fewest;            /* index of the first point that reaches the target, -1 = none */
    int32_t fewest_equal;      /* the same among those with equal slots on all devices        */
    int32_t best;              /* index of the least worst layer                   */
    int32_t rises, rise_at;    /* how often the worst layer gets clearly worse; where most */
    int budgets;
    cli_budget budget[CLI_BUDGETS];
    int fewest_budget;         /* index, -1 = none */
    double *layer_worst;       /* (points, L) max/mean of every layer in every plan */
    int needs;
    cli_need need[CLI_NEEDS];
    cli_need target_need;      /* for the target; extra -1 = some layer never reaches it */
    char *headline, *reason, *not_monotone, *spread;
    const char *badge, *state;
} cli_copies;

void cli_copies_text(const void *data, FILE *f, const chart_text *t);
void cli_copies_json(const void *data, FILE *f);
void cli_copies_html(const void *data, FILE *f);

#endif
