/* cli_report.h - the main job: recordings in, every number of the report out
 * SPDX-License-Identifier: MIT */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "cli_base.h"
#include "cli_read.h"
#include "cli_setup.h"

/* Loads of a recording, cut into steps. */
typedef struct cli_window {
    int32_t steps;
    double *loads;             /* (steps, L, E) rows                                              */
    double *tokens;            /* (steps) that they stand for                                     */
    double *recorded;          /* (steps) tokens behind them: what luck there is in them           */
} cli_window;

/* max/mean over devices of the sum of the judged steps that are not looked at one by one; before 0 = there are none. */
typedef struct cli_behind {
    double before, after;      /* today, with a plan                                              */
    int shifted;               /* 1: there the plan keeps less than half of what it brings before */
} cli_behind;

typedef struct cli_layer_row {
    int32_t number;            /* as in the file                                                  */
    double expert_imbalance;   /* max/mean over experts                                           */
    double chance;             /* 95th percentile of the same under uniform routing               */
    double before, one_copy, copies; /* max/mean over devices                                     */
    double bound;              /* with the slots of the plan with copies                          */
    int32_t hot_device, hot_expert, dead;
} cli_layer_row;

typedef struct cli_shift_row {
    const char *name;
    double correlation, lowest; /* of expert loads with the first recording: mean and worst layer  */
    int32_t lowest_layer;
    double overlap;             /* share of the hottest experts that are the same                  */
    char *hottest;              /* numbers of the hottest experts in the layer that differs most    */
    double today, planned, own; /* max/mean: today's placement, the plan made on the first, on itself */
    double own_gain;            /* share of a step that the plan on itself saves                   */
} cli_shift_row;

typedef struct cli_strategy {
    char *name;
    int32_t slots;
    double imbalance, step_s, tokens_per_s;
    int kind;                   /* chart_kind                                                      */
} cli_strategy;

typedef struct cli_what_if {
    char *name;
    double before_s, after_s, gain, imbalance_before, imbalance_after;
    moe_ep_verdict verdict;
} cli_what_if;

/* One line of the way from the loads to the verdict. */
typedef struct cli_line {
    char *name, *value, *meaning;
} cli_line;

/* What to do now: a sentence and the command that does it. */
typedef struct cli_next {
    char *what, *command;
} cli_next;

/* One step of the bottleneck layer under one placement. */
typedef struct cli_timeline {
    int64_t *traffic;           /* (D, D) rows from source to destination device                   */
    moe_ep_device_time *device; /* (D)                                                             */
    moe_ep_time_result time;
} cli_timeline;

enum { CLI_SWEEP = 24 };

typedef struct cli_report {
    const cli_setup *setup;
    cli_trace *trace;
    int traces;
    int32_t L, E, K;
    int64_t tokens;             /* per step of the first recording, and where steps are cut or scaled */
    double batch;               /* tokens of a judged step, the mean: what times and rates are for */
    int prefill_sized;          /* 1: tokens is a guess, the size of a prefill step                */
    int one_step;               /* 1: the first recording says nothing of steps and is taken as one */
    int rescaled;               /* 1: recorded steps too large for one step, scaled or cut to tokens */
    char *left_out;             /* layers without load                                             */
    char *input_line;           /* what was read, in words                                         */
    char *judged_on;            /* "c, python"; how the judged steps came about                    */
    int equals;                 /* recordings that are the first one again, behind the others in trace */
    char *equal;                /* says which they are; NULL = none                                */
    int self_judged;            /* 1: only one window: judged on what it was planned on            */
    int sums;                   /* 1: judged on sums over many steps, not on one of few tokens     */
    cli_window plan, judge;

    moe_ep_diagnosis one, copies; /* best placement with E slots, with P slots                     */
    const moe_ep_diagnosis *chosen;
    int32_t slots;
    int recommend;              /* 1: the chosen plan is worth it (provisional when self_judged)   */
    moe_ep_placement today, plan_one, plan_copies;
    void *memory[3];            /* of these placements                                             */
    double expert_bytes, copy_bytes; /* one expert in one layer; all extra copies on one device    */

    int shown;                  /* recording that the pictures show                                */
    double *shown_loads;        /* (L, E) mean over its judged steps                               */
    int64_t shown_tokens;       /* tokens behind them                                              */
    double *plan_loads;         /* (L, E) mean over the planned steps                              */
    double *today_devices, *one_devices, *copies_devices; /* (L, D) of shown_loads                 */
    moe_ep_regime regime;       /* what holds up the busiest device of the hot layer today          */
    cli_layer_row *layer;       /* (L)                                                             */
    int32_t hot;                /* row of the bottleneck layer                                     */
    int32_t *worst;             /* (L) rows from the worst layer on                                */
    moe_ep_chance_result chance;
    cli_timeline now, then;     /* today and with the chosen plan                                  */
    int counted_traffic;        /* 1: traffic from ids, 0: expected from the loads                  */

    cli_shift_row *shift;       /* (traces), the first is the plan's own                           */
    int32_t shift_layer;        /* row of the layer in which the recordings differ most            */
    cli_strategy *strategy;     /* stb_ds                                                          */
    cli_what_if *what_if;       /* stb_ds                                                          */
    moe_ep_copies_point *curve; /* (curve_points)                                                  */
    int32_t curve_points, fewest_copies, copies_step; /* step: of the search for the fewest, 1 = exact */

    int sweep;                  /* batch sizes                                                     */
    double sweep_tokens[CLI_SWEEP], sweep_chance[CLI_SWEEP], sweep_own[CLI_SWEEP]; /* max/mean - 1; own 0 = none */
    int ep_sizes;
    int32_t ep_size[16], ep_experts[16];

    char *headline, *verdict, *reason; /* sentences                                                */
    const char *badge;          /* the verdict in one or two words                                 */
    cli_line *line;             /* stb_ds                                                          */
    char **hint;                /* stb_ds, sentences                                               */
    cli_next *next;             /* stb_ds: what to do now                                          */
} cli_report;

/* Reads nothing, prints nothing: traces and setup in, report out.  Faults of the setup end the program. */
void cli_report_make(cli_report *r, cli_trace *traces, int count, char *left_out, cli_setup *setup);

/* Today's placement in words: "contiguous blocks", "round robin", "as the map says". */
const char *cli_today(const cli_report *r);
/* " of NAME", the recording that the pictures show; empty when there is only one. */
const char *cli_shown_name(const cli_report *r);

/* Fills now and then. */
void cli_report_proof(cli_report *r);
/* Share of the devices' time between the barriers in which they wait. */
double cli_timeline_wait(const cli_timeline *t, int32_t devices);

/* Frees what a report holds, without its traces and its setup. */
void cli_report_free(cli_report *r);

/* Only the first part: shapes, windows, today's placement. */
void cli_report_settle(cli_report *r, cli_trace *traces, int count, char *left_out, cli_setup *setup);

/* 1: the steps of this recording are taken as they were recorded. */
int cli_report_as_recorded(const cli_report *r, const cli_trace *t);
/* batch, rounded. */
int64_t cli_report_batch(const cli_report *r);
/* How many times as many tokens a second a strategy makes as today's; 1 where the judged steps hold none. */
double cli_against_today(const cli_report *r, ptrdiff_t strategy);
/* " of 4,096 tokens per device", behind "a step" where one is large; else empty. */
const char *cli_large_step(const cli_report *r);
/* Steps of one recording: those of the report, or with `tokens` above 0 others of so many. */
cli_window cli_report_window(const cli_report *r, const cli_trace *t, int64_t tokens);
void cli_window_free(cli_window *w);
/* Slots dealt evenly, nodes of neighbours. */
moe_ep_shape cli_shape(int32_t devices, int32_t slots, int32_t nodes);
/* An empty placement; *mem is its memory, to be freed. */
moe_ep_placement cli_report_placement(const cli_report *r, const moe_ep_shape *shape, void **mem);
/* How a layer of the model is priced on the machine. */
moe_ep_layer_desc cli_report_layer(const cli_report *r, int64_t tokens, int32_t devices, int32_t nodes);

/* Tokens that steps are scaled to which hold so many on average: 0 = they stay as recorded; steps of more than one can
 * hold are taken as sums over many and made prefill-sized. */
double cli_scaled_tokens(double recorded, int32_t devices);
/* The kernels of its all-to-all, "normal" or "low-latency". */
const char *cli_report_kernels(const cli_report *r);

/* Judged steps that a verdict needs: fewer where the recordings are sums over many steps. */
int32_t cli_report_min_steps(const cli_report *r);
/* 1: of two judged plans the one with copies is the answer. */
int cli_report_copies_pay(const moe_ep_diagnosis *without, const moe_ep_diagnosis *with);
/* What the verdict was decided by. */
moe_ep_diagnose_desc cli_report_thresholds(const cli_report *r);
/* Why the verdict is what it is, without capital and full stop; malloc'd. */
char *cli_reason(const moe_ep_diagnose_desc *d, const moe_ep_diagnosis *o);
/* "chance up to 1.10"; "chance not known" for 0; malloc'd. */
char *cli_chance_words(const char *words, double chance, int decimals);
/* What chance gives; NaN, null in JSON, where it is not known. */
double cli_chance_number(const moe_ep_diagnosis *d);
/* 1: judged on its own loads, which are no more uneven than chance makes them: a saving on them is no evidence. */
int cli_only_chance(const moe_ep_diagnosis *d);
/* The gain that chance gives, one standard deviation; null in JSON where it is not known. */
double cli_gain_sd_number(const moe_ep_diagnosis *d);
/* 1: the hot device of a diagnosis is the busiest of its layer in more than half of the steps. */
int cli_stays_hot(double hot_share);
/* "Device 3 is the bottleneck: in layer 2 it carries 1.61 times its share", or where no device stays the busiest what
 * the busiest has; layer: its number; malloc'd. */
char *cli_bottleneck(const moe_ep_diagnosis *d, int32_t layer);
/* "within the first step", "after 12 steps"; malloc'd. */
char *cli_after_steps(double steps);

/* Why the best plan need not lead where it is judged. */
extern const char cli_other_loads[];

/* Fills the sentences: headline, verdict, reason, lines, hints. */
void cli_report_words(cli_report *r);

/* all: the pictures that the short text leaves out, too. */
void cli_report_text(const cli_report *r, FILE *f, int width, int ascii, int color, int all);
void cli_report_html(const cli_report *r, FILE *f);
void cli_report_json(const cli_report *r, FILE *f);
void cli_report_csv(const cli_report *r, FILE *f); /* a line per layer */
void cli_report_svg(const cli_report *r, FILE *f); /* the devices before and after */

/* Why the recordings that are left are fewer than were given, for the end of a reason: " X has ..." or "". */
const char *cli_report_alone(const cli_report *r);

/* What a plan does for the steps that are not looked at one by one. */
cli_behind cli_report_behind(const cli_report *r, const moe_ep_placement *plan);
/* No recommendation where it does not hold for them. */
void cli_report_doubt_behind(const cli_report *r, const moe_ep_placement *plan, moe_ep_diagnosis *d);
/* Says what is known of them. */
void cli_report_note_behind(const cli_report *r, const moe_ep_placement *plan, cli_setup *s);

/* Names of the presets for --help, one per line with source. */
void cli_presets(FILE *f);

#endif
