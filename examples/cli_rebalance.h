/* cli_rebalance.h - moe-ep rebalance: every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_REBALANCE_H
#define CLI_REBALANCE_H

#include "chart.h"
#include "cli_base.h"
#include "cli_map.h"
#include "cli_read.h"
#include "cli_setup.h"

enum { CLI_TODAY, CLI_REBALANCED, CLI_RELABELLED, CLI_REPLANNED, CLI_PLANS, CLI_FRONTIER = 12 };

/* One placement, compared with today's. */
typedef struct cli_change {
    const char *name;
    double overall, worst;  /* max/mean: all layers together, the worst layer */
    int32_t worst_layer;    /* row                                            */
    moe_ep_moves_result moves;
    double share;           /* of the slots that receive another expert       */
} cli_change;

typedef struct cli_rebalance {
    cli_setup setup;
    double target;          /* max/mean of every layer                                           */
    int64_t max_moves;      /* 0 = no limit                                                      */
    int32_t layer_moves, device_moves, link_moves;
    int32_t *dead;          /* stb_ds, devices that are gone                                     */
    const char *current;    /* file with the placement that runs, NULL = contiguous              */

    const cli_trace *trace; /* the first input; loads is the sum over all                        */
    char *names;            /* of the inputs                                                     */
    double *loads;          /* (L,E)                                                             */
    cli_map map;            /* when current is given                                             */
    int32_t *rows;          /* (L) rows of the map                                               */
    moe_ep_placement today, plan, relabelled, replan;
    cli_change change[CLI_PLANS];
    moe_ep_plan_result *before, *after; /* (L)                                                   */
    int32_t *full;          /* (L,P) the new map without empty slots, NULL = not asked for              */
    int32_t *worst;         /* (L) rows from the worst layer today on                            */
    moe_ep_move *move;      /* (moves)                                                           */
    int32_t *arrivals, *departures, *layer_arrivals; /* (D), (D), (L)                            */
    int points;             /* how balanced it gets for how many moves                           */
    double point_share[CLI_FRONTIER], point_worst[CLI_FRONTIER], point_overall[CLI_FRONTIER];
    int64_t point_moves[CLI_FRONTIER];
    double expert_bytes, seconds; /* one expert in one layer; all rounds at the speed of the links */
    char *headline, *reason;
    const char *badge, *state;
} cli_rebalance;

void cli_rebalance_text(const void *data, FILE *f, const chart_text *t);
void cli_rebalance_json(const void *data, FILE *f);
void cli_rebalance_html(const void *data, FILE *f);

#endif
