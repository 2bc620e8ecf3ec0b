/* cli_rows.h - what the readers of the different formats share
 * SPDX-License-Identifier: MIT */
#ifndef CLI_ROWS_H
#define CLI_ROWS_H

#include "cli_read.h"

enum { MAX_EXPERTS = 65536 };

/* Loads of one layer in one step, as a line or a list of the file gave them. */
typedef struct cli_load_row {
    char *label;     /* recording this row belongs to, "" = the only one */
    int64_t step, layer, line;
    double *loads;   /* stb_ds array */
} cli_load_row;


/* Rows -> one trace per label.  Every (step, layer) of a label must be there exactly once.  Frees the rows. */
void cli_rows_to_traces(cli_trace **list, const char *path, cli_load_row *rows, const cli_read_options *o);

/* Parts of a trace: an empty one, the sum over its steps, into the list when it fits --experts. */
cli_trace cli_new_trace(const char *path, char *name, int64_t steps, int64_t layers, int64_t experts);
void cli_add_steps(cli_trace *t);
void cli_append(cli_trace **list, cli_trace t, const cli_read_options *o);

/* File name without folder and ending. */
char *cli_short_name(const char *path);
/* Leaves unless the load is finite, not negative and countable; where names the place. */
void cli_check_load(double v, const char *where);
int cli_same(const char *a, const char *b);

/* A sorted stb_ds array of different numbers: insert, and find. */
int64_t cli_add_sorted(int64_t **set, int64_t v);
int64_t cli_index_of(const int64_t *set, int64_t v);

/* The readers of text formats. */
void cli_read_csv(cli_trace **list, const char *path, FILE *f, const cli_read_options *o);
void cli_read_json(cli_trace **list, const char *path, FILE *f, const cli_read_options *o);
void cli_read_json_lines(cli_trace **list, const char *path, FILE *f, const cli_read_options *o);

/* TensorRT-LLM's statistics: a folder with meta_info.json and rankN.safetensors, or one such file. */
int cli_is_statistics(const char *path);
void cli_read_statistics(cli_trace **list, const char *path, const cli_read_options *o);

#endif
