/* cli_read.h - recorded routing in every format the tool reads, as one plain struct
 * SPDX-License-Identifier: MIT */
#ifndef CLI_READ_H
#define CLI_READ_H

#include "cli_base.h"

enum { CLI_KEPT_STEPS = 512 }; /* the first ones; of the others the sum is kept */

/* One recording: loads per layer and expert, and the ids themselves where the file has them. */
typedef struct cli_trace {
    char *name;         /* short and unique in one run                                          */
    char *path;
    int32_t layers, experts, top_k; /* top_k 0 = the file does not say                           */
    int64_t tokens;     /* recorded tokens, 0 = the file does not say                           */
    int64_t skipped;    /* choices that were -1                                                 */
    int32_t steps;      /* windows recorded one after the other, >= 1; those without loads left out */
    int64_t idle;       /* steps without loads that were left out                               */
    int32_t kept_steps; /* of them whose loads are kept one by one: all, up to CLI_KEPT_STEPS   */
    double *step_loads; /* (kept_steps, layers, experts)                                        */
    double *loads;      /* (layers, experts), the sum over all steps                            */
    int32_t *layer;     /* (layers) number of the layer in the file                             */
    int32_t *ids;       /* (kept, layers, top_k) or NULL                                        */
    int64_t kept;       /* tokens whose ids are kept: all, up to a limit of memory               */
    int64_t *step_tokens; /* (kept_steps) where a recording of ids says its steps, else NULL     */
    int inferred;       /* 1: experts was taken from the largest id                             */
    int32_t unnumbered; /* layers of a file that does not number them (.npy, a JSON list); else 0 */
    char *note;         /* what was taken for granted in reading it, a sentence; NULL = nothing  */
} cli_trace;

typedef struct cli_read_options {
    int32_t experts;   /* 0 = from the file                                                     */
    int layers_first;  /* ids are (layers, tokens, choices)                                     */
    int as_counts;     /* an integer .npy holds counts, not ids                                 */
    const char *only;  /* keep recordings whose label contains this, NULL = all                 */
} cli_read_options;

/* Reads one file; appends one trace per recording in it (a CSV may hold several).  *list is an stb_ds
 * array.  Any fault ends the program with exit code 2 and a message that names the place. */
void cli_read(cli_trace **list, const char *path, const cli_read_options *options);

/* Tokens of a step as recorded, on average; 0 = the recording does not say what a step is. */
int64_t cli_recorded_step(const cli_trace *t, int32_t top_k);

/* The first kept token of every step as recorded and, behind them, the end of the last; steps of no token are left out.
 * Without recorded steps all tokens are one.  stb_ds. */
int64_t *cli_step_starts(const cli_trace *t);

/* How many steps of a recording were left out because they hold no tokens: a sentence; "" = none. */
const char *cli_idle_steps(const cli_trace *t);

/* How many tokens are counted of how many and why, where not all ids are kept: a sentence; "" = all are. */
const char *cli_kept_ids(const cli_trace *t);

/* Frees an stb_ds array of recordings. */
void cli_traces_free(cli_trace *list);

/* Makes a list fit together: one number of experts, the same layers; with drop, layers without load are left out.
 * Returns the numbers of the layers left out as text ("0-2"), empty when none. */
char *cli_read_align(cli_trace *list, int count, int drop);

#endif
