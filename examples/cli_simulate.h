/* cli_simulate.h - moe-ep simulate: every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_SIMULATE_H
#define CLI_SIMULATE_H

#include "chart.h"
#include "cli_base.h"
#include "cli_read.h"
#include "cli_setup.h"

enum { CLI_BINS = 72 };

/* What a cluster file says about one instance. */
typedef struct cli_cluster {
    const char *path;
    char *model_name, *hardware;
    int32_t instances;
    int32_t devices, tp, dp, ep; /* devices = tp dp: dp instances serve together */
} cli_cluster;

typedef struct cli_request {
    double arrival_s, first_s, done_s; /* first_s: end of the step that made the first token */
    int32_t input, output;
    int32_t filled, made;              /* prompt tokens read, output tokens made             */
    int64_t line;
} cli_request;

typedef struct cli_step_row {
    double start_s, length_s, attention_s, dispatch_s, compute_s, combine_s;
    double imbalance, memory_bytes;
    int64_t prompt, decode, max_rows; /* max_rows: busiest device, mean over the drawn layers */
    int32_t batch, waiting, busiest;
} cli_step_row;

typedef struct cli_simulate {
    cli_cluster cluster;
    cli_setup setup;              /* model and machine of the instance                     */
    moe_ep_model part;            /* the model with experts cut over devices / ep devices  */
    const char *policy;           /* NULL = not said                                       */
    moe_ep_workload workload;
    const cli_trace *popularity;  /* of a recorded policy                                  */
    int32_t layers, max_batch, max_tokens; /* limits: 0 = not said */
    int32_t requests, input, output;
    double rate;                  /* requests per second, 0 = all at once                   */
    double reserve_bytes;
    const char *trace;            /* file with requests, NULL = made from the options       */

    cli_request *request;         /* stb_ds, by arrival */
    cli_step_row *row;            /* stb_ds             */
    moe_ep_memory_result memory;
    double kv_capacity;           /* cache tokens of the instance */
    double end_s, prompt_per_s, decode_per_s, ttft_s, ttft95_s, tpot_s, tpot95_s, peak_bytes;
    double imbalance;             /* mean over the steps, weighted by time */
    int bins;                     /* over time */
    double bin_s[CLI_BINS], bin_decode[CLI_BINS], bin_prompt[CLI_BINS], bin_batch[CLI_BINS],
        bin_imbalance[CLI_BINS];
    char *headline, *reason;
} cli_simulate;

void cli_simulate_log(const cli_simulate *s, const cli_step_row *row, int64_t number, FILE *f);
void cli_simulate_csv(const cli_simulate *s, FILE *f);
void cli_simulate_text(const void *data, FILE *f, const chart_text *t);
void cli_simulate_json(const void *data, FILE *f);
void cli_simulate_html(const void *data, FILE *f);

#endif
