/* cli_diagnose.h - moe-ep diagnose: every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_DIAGNOSE_H
#define CLI_DIAGNOSE_H

#include "chart.h"
#include "cli_report.h"

/* One condition of the verdict. */
typedef struct cli_check_line {
    char *name, *found, *wanted;
    int state; /* 1 met, 0 not met, -1 not asked or not known */
} cli_check_line;

/* One judged recording. */
typedef struct cli_judged {
    const char *name;
    int32_t first, steps; /* in the list of judged steps */
    moe_ep_diagnosis d;
} cli_judged;

typedef struct cli_diagnose {
    cli_report r;              /* shapes, windows, today's placement */
    cli_setup setup;
    moe_ep_diagnose_desc desc; /* thresholds and costs; loads and shape are filled in */
    moe_ep_layer_desc layer;
    const char *current;       /* file with the placement that runs, NULL = contiguous or round robin */
    const char *policy;        /* name, NULL = best */
    int window_judged;         /* 0: there is nothing to judge on */

    moe_ep_placement plan;
    moe_ep_diagnosis d;        /* of the plan that is the answer */
    moe_ep_diagnosis other;    /* of the other one, without copies where d has them or the other way round */
    int32_t slots, other_slots; /* of these; other_slots 0 = only one was judged */
    int slots_given;           /* --slots was there: only what it asks for is judged */
    cli_judged *judged;        /* stb_ds */
    int32_t steps;
    double *step_before, *step_after;     /* (steps) max/mean, all layers together */
    double *device_before, *device_after; /* (D) rows of the bottleneck layer, mean over the judged steps */
    cli_check_line *check;     /* stb_ds */
    char *headline, *reason, *beside; /* beside: what the other plan gives, "" = there is none */
    const char *badge, *state;
    int min_steps_given;
} cli_diagnose;

void cli_diagnose_text(const void *data, FILE *f, const chart_text *t);
void cli_diagnose_json(const void *data, FILE *f);
void cli_diagnose_html(const void *data, FILE *f);

#endif
