/* cli_watch.h - moe-ep watch: a growing trace, as it stands now
 * SPDX-License-Identifier: MIT */
#ifndef CLI_WATCH_H
#define CLI_WATCH_H

#include "chart.h"
#include "cli_base.h"
#include "cli_map.h"
#include "cli_setup.h"

#include <sys/types.h>

enum { CLI_HISTORY = 1024 };

/* Loads of one layer in one step; experts beyond n received nothing. */
typedef struct cli_watch_row {
    int32_t layer, n;
    double *loads;
} cli_watch_row;

typedef struct cli_watch_step {
    int64_t step;
    cli_watch_row *row; /* stb_ds */
} cli_watch_step;

typedef enum cli_watch_kind { CLI_WATCH_UNKNOWN, CLI_WATCH_JSON, CLI_WATCH_CSV, CLI_WATCH_LOG } cli_watch_kind;

/* What a log says of one model: of each step of the history, with its index, the mean tokens of a rank and those of the
 * busiest, both summed over layers; 0 = it has no line for that step. */
typedef struct cli_watch_model {
    char *name;
    double mean[CLI_HISTORY], most[CLI_HISTORY];
} cli_watch_model;

typedef struct cli_watch {
    const char *path;
    cli_setup *setup;
    int32_t devices, experts, top_k; /* experts and top_k grow as they are seen                      */
    int window;                      /* steps that the verdict looks at                              */
    const cli_map *map;              /* placement that runs, NULL = contiguous or round robin        */
    int32_t *map_layer;              /* stb_ds, the layers that were seen, and the row of the map of */
    int32_t *map_row;                /* each; NULL = they do not fit, or not yet                     */
    char *map_words;                 /* why not, or what is taken for granted in it; NULL = nothing  */
    int map_news;                    /* 1: that is new                                               */

    /* the file */
    int fd;                 /* -1 = not there now                                                    */
    dev_t device;
    ino_t inode;
    off_t offset;
    char *partial;          /* stb_ds, a last line that is not whole yet                             */
    cli_watch_kind kind;
    int *role;              /* stb_ds, columns of a CSV: -1 ignored, -2 step, -3 layer, else expert  */
    char separator;
    int64_t line, bad;
    char *complaint;        /* about the last line that was not understood                           */
    const char *news;       /* "the file was replaced", NULL = nothing                               */

    /* what was read */
    cli_watch_step now;     /* not complete yet                                                      */
    int begun;
    cli_watch_step *steps;  /* stb_ds, the last `window` complete ones                               */
    int64_t seen, last_step;
    double history[CLI_HISTORY]; /* max/mean of step seen - 1 - i at [(seen - 1 - i) % CLI_HISTORY]  */
    cli_watch_model *model; /* stb_ds, of a log: a step has a line for each (a drafter is one)       */

    /* worked out */
    double *device_rows;    /* (devices) per step, mean over the window, summed over layers          */
    double imbalance, worst; /* mean over the steps shown; of a log weighted with their time         */
    cli_setup cost;         /* setup with what was found out for the shape below: what steps are priced by */
    int32_t cost_layers, cost_experts, cost_k; /* 0 = nothing yet                                    */
    const char *kernels;
    int32_t layers, hot_device, hot_layer;
    double hot_times, hot_own, hot_share, chance;
    int32_t hot_steps; /* the last ones, which these are of */
    moe_ep_verdict verdict;
    const char *state;      /* "recommend", "not now", ...; never NULL after cli_watch_judge         */
    char *reason;
} cli_watch;

/* Reads what has been added since; 1 = something new was understood. */
int cli_watch_read(cli_watch *w);
/* The end of the file has come for good: a last line without a line feed and the step under way count. */
void cli_watch_finish(cli_watch *w);
void cli_watch_close(cli_watch *w);

/* One line of the file. */
void cli_watch_line(cli_watch *w, char *text);
/* A step is complete: into the history and the window. */
void cli_watch_complete(cli_watch *w);

/* The layers of a step against the map, with all that were seen before. */
void cli_watch_match(cli_watch *w, const cli_watch_step *s);

/* Max/mean over the steps shown that a log has of one model, weighted with their time; NULL = of all; 1 without any. */
double cli_watch_of_model(const cli_watch *w, const cli_watch_model *m);

/* Rows per device of one layer, (devices). */
void cli_watch_devices(const cli_watch *w, const cli_watch_row *row, double *out);
/* Figures and verdict of the window. */
void cli_watch_judge(cli_watch *w);

/* The picture in at most `height` lines (0 = no limit), each ended by `eol`; one line; one JSON object. */
void cli_watch_frame(const cli_watch *w, FILE *f, const chart_text *t, int height, const char *eol);
void cli_watch_plain(const cli_watch *w, FILE *f);
void cli_watch_json(const cli_watch *w, FILE *f);

#endif
