/* cli_answer.h - parts that every answer has, as text, JSON and page: headline, bars, fields, tiles, charts, tables
 * SPDX-License-Identifier: MIT */
#ifndef CLI_ANSWER_H
#define CLI_ANSWER_H

#include "cli_page.h"
#include "cli_read.h"
#include "cli_screen.h"

#include <jansson.h>

/* ---- bars that own their texts ---- */

typedef struct cli_bar_list {
    int n;
    double *value; /* all four stb_ds */
    chart_kind *kind;
    char **label, **tail;
} cli_bar_list;

/* Takes label and tail over. */
void cli_bar(cli_bar_list *b, double value, chart_kind kind, char *label, char *tail);
/* Title and bars on the screen; frees the list. */
void cli_bars_text(cli_bar_list *b, FILE *f, const chart_text *t, const char *title);
/* The same on a page; frees the list. */
void cli_bars_page(cli_bar_list *b, FILE *f, double width, const char *id, const char *title, const char *description);

/* ---- text ---- */

/* The headline, bold, and the reason below it. */
void cli_put_headline(FILE *f, const chart_text *t, const char *headline, const char *reason);

/* ---- JSON ---- */

/* A number, or null when it is none. */
json_t *cli_json_number(double v);
/* Fields of one kind: name, value, name, value, ..., NULL.  Numbers are double, counts int64_t, words const char *. */
void cli_json_numbers(json_t *o, ...);
void cli_json_counts(json_t *o, ...);
void cli_json_words(json_t *o, ...);
/* What was taken for granted, one sentence a line, "" = nothing. */
void cli_json_assumed(json_t *o, const char *assumed);
/* The names of n recordings. */
json_t *cli_json_names(const cli_trace *t, int n);
/* Writes the object and frees it. */
void cli_json_write(json_t *root, FILE *f);

/* ---- page ---- */

/* cli_page_tile that takes over what it is given; after and note may be NULL. */
void cli_tile(FILE *f, const char *name, char *before, char *after, char *note);
/* Head of a table, columns separated by '|'; a summary folds it away. */
void cli_table(FILE *f, const char *summary, const char *columns);
void cli_table_end(FILE *f, int folded);
/* The last figure of every page. */
void cli_page_assumed(FILE *f, const char *assumed);
/* A chart with straight axes; line 0 = none. */
chart_lines cli_lines(const char *id, const char *title, const char *description, const char *x_title,
                      const char *y_title, int n, const chart_series *series, double line);
/* Two kinds of points per column, before and after. */
void cli_points_pair(FILE *f, double width, double height, const char *id, const char *title, const char *description,
                     const char *x_title, const char *y_title, int n, const double *value, const char *const *label,
                     double line);

#endif
