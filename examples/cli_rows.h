/* cli_rows.h - what the readers of the different formats share
 * SPDX-License-Identifier: MIT */
#ifndef CLI_ROWS_H
#define CLI_ROWS_H

#include "cli_read.h"

enum { MAX_EXPERTS = 65536 };

/* Rows of loads as a file gives them, in any order; what is held of them does not grow with the number of steps,
 * but for a few bytes per row. */
typedef struct cli_rows cli_rows;

/* Loads of one layer in one step. */
typedef struct cli_row {
    const char *label; /* recording this row belongs to, NULL = the only one */
    int64_t step, layer, line;
    const double *loads;
    int64_t n;
} cli_row;

/* adds: several rows of one step and layer are added, as long as their line (the number of the file) differs. */
cli_rows *cli_rows_new(const char *path, const cli_read_options *o, int adds);
void cli_rows_add(cli_rows *r, const cli_row *row);
/* How many rows of this label and step there are so far. */
int64_t cli_rows_count(cli_rows *r, const char *label, int64_t step);
/* One trace per label; every step must have the same layers.  Frees the rows. */
void cli_rows_end(cli_rows *r, cli_trace **list);

/* Parts of a trace: an empty one, into the list when it fits --experts. */
cli_trace cli_new_trace(const char *path, char *name, int64_t steps, int64_t layers, int64_t experts);
void cli_append(cli_trace **list, cli_trace t, const cli_read_options *o);

/* File name without folder and ending. */
char *cli_short_name(const char *path);
/* Leaves unless the load is finite, not negative and countable; where names the place. */
void cli_check_load(double v, const char *where);
/* The same without words: 1 = it is one. */
int cli_is_load(double v);
int cli_same(const char *a, const char *b);

/* A sorted stb_ds array of different numbers: insert, and find (where it stands or would stand). */
int64_t cli_add_sorted(int64_t **set, int64_t v);
int64_t cli_index_of(const int64_t *set, int64_t v);

/* The readers of text formats. */
void cli_read_csv(cli_trace **list, const char *path, FILE *f, const cli_read_options *o);
void cli_read_json(cli_trace **list, const char *path, const cli_read_options *o);
void cli_read_json_lines(cli_trace **list, const char *path, FILE *f, const cli_read_options *o);

/* TensorRT-LLM's statistics: a folder with meta_info.json and rankN.safetensors, or one such file. */
int cli_is_statistics(const char *path);
void cli_read_statistics(cli_trace **list, const char *path, const cli_read_options *o);

#endif
