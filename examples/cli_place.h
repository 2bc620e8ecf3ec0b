/* cli_place.h - moe-ep place: the plan and every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_PLACE_H
#define CLI_PLACE_H

#include "chart.h"
#include "cli_base.h"
#include "cli_read.h"
#include "cli_setup.h"

/* max/mean over the layers that have load. */
typedef struct cli_place_balance {
    double worst, mean;
} cli_place_balance;

typedef struct cli_place {
    cli_setup setup;            /* assumed: what the options for dead and unequal devices led to      */
    const cli_trace *trace;
    char *names;
    const char **out;           /* stb_ds, files of the plan                                          */
    cli_out *maps;              /* one per out                                                        */
    double off_node;            /* largest share off the home nodes, -1 = not asked for               */
    int32_t *dead;              /* stb_ds                                                             */
    double *speeds;             /* stb_ds                                                             */
    uint8_t *inactive;          /* (D), NULL = none                                                   */
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_plan_result *result; /* (L)                                                                */
    unsigned char *idle;        /* (L) without load: every expert counts as one                       */
    int32_t *full;              /* (L,P) without empty slots, NULL = not asked for                    */
    double *before, *after;     /* (L,D) load over speed: contiguous blocks, the plan                 */
    cli_place_balance blocks, plan, bound;
    double gap;                 /* largest of all layers: max over bound - 1                          */
    double nodes, off_home;     /* worst max/mean over nodes; share of all load off its home node     */
    int64_t copies, duplicates; /* over all layers                                                    */
    int32_t most_copies, loaded, shown; /* of one expert; layers with load; the worst of them before   */
    char *headline, *reason, *subject;
    const char *badge, *state;
} cli_place;

void cli_place_text(const void *data, FILE *f, const chart_text *t);
void cli_place_map(const void *data, FILE *f); /* the plan as JSON */
void cli_place_json(const void *data, FILE *f);
void cli_place_html(const void *data, FILE *f);
void cli_place_csv(const void *data, FILE *f);
void cli_place_svg(const void *data, FILE *f);

#endif
