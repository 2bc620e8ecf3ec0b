/* cli_rows.h - what the readers of the different formats share
 * SPDX-License-Identifier: MIT */
#ifndef CLI_ROWS_H
#define CLI_ROWS_H

#include "cli_read.h"

enum { MAX_EXPERTS = 65536 };

/* Rows of loads as a file gives them, in any order.  What is held of them does not grow with the number of steps as
 * long as the steps of a layer ascend, in equal distances; else by some bytes per row.  A step without loads in all
 * layers is none: only how many there are is kept. */
typedef struct cli_rows cli_rows;

typedef enum cli_rows_kind {
    CLI_ROWS_EQUAL, /* rows are of one length, and come once                                              */
    CLI_ROWS_ADD,   /* rows of one step and layer are added when their line (the number of the file) differs */
    CLI_ROWS_GROW   /* shorter rows lack experts that received nothing                                    */
} cli_rows_kind;

/* Loads of one layer in one step. */
typedef struct cli_row {
    const char *label; /* recording this row belongs to, NULL = the only one */
    int64_t step, layer, line;
    const double *loads;
    int64_t n;
    const int32_t *ids; /* (tokens, top_k) behind the loads, or NULL         */
    int64_t tokens, top_k;
} cli_row;

cli_rows *cli_rows_new(const char *path, const cli_read_options *o, cli_rows_kind kind);
void cli_rows_add(cli_rows *r, const cli_row *row);
/* How many of the layers 0, 1, ... of this label and step there are so far. */
int64_t cli_rows_count(cli_rows *r, const char *label, int64_t step);
/* Whether the row of this label, step and layer was added before. */
int cli_rows_has(cli_rows *r, const cli_row *row);
/* Whether every step has as many tokens in all layers. */
int cli_rows_even(cli_rows *r);
/* The file says of its ids which step they belong to. */
void cli_rows_stepped(cli_rows *r);
/* One trace per label; every step must have the same layers.  Frees the rows. */
void cli_rows_end(cli_rows *r, cli_trace **list);
void cli_rows_free(cli_rows *r);

/* Whether two of a token's choices differ: an array that says nothing of a layer, as those of servers do of layers
 * without experts, holds one id top_k times. */
int cli_choices_differ(const int32_t *ids, int64_t top_k);
/* Leaves: no layer has a token whose choices differ. */
void cli_refuse_alike(const char *path, int64_t top_k) __attribute__((noreturn));

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

/* The readers of text formats. */
void cli_read_csv(cli_trace **list, const char *path, FILE *f, const cli_read_options *o);
void cli_read_json(cli_trace **list, const char *path, const cli_read_options *o);
void cli_read_json_lines(cli_trace **list, const char *path, FILE *f, const cli_read_options *o);

/* TensorRT-LLM's statistics: a folder with meta_info.json and rankN.safetensors, or one such file. */
int cli_is_statistics(const char *path);
void cli_read_statistics(cli_trace **list, const char *path, const cli_read_options *o);

#endif
