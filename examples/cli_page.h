/* cli_page.h - the frame of an HTML page: head with the verdict, tiles, figures, foot
 * SPDX-License-Identifier: MIT */
#ifndef CLI_PAGE_H
#define CLI_PAGE_H

#include "chart.h"
#include "cli_base.h"

typedef struct cli_page_head {
    const char *title;    /* kind of page                                  */
    const char *subject;  /* what it is about, for the title of the window */
    const char *headline, *lead;
    const char *state;    /* colour of the badge: "yes", "no", "open"      */
    const char *badge, *reason;
} cli_page_head;

/* Begins a block that scrolls sideways, also by keyboard; ends with </div>. */
#define CLI_PAGE_SCROLL "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"table\">"

/* In this order: begin, tiles between <dl class="tiles"> and </dl>, note, figures, end. */
void cli_page_begin(FILE *f, const cli_page_head *head);
/* after may be NULL; name, before and after may hold markup, the note is plain text. */
void cli_page_tile(FILE *f, const char *name, const char *before, const char *after, const char *note);
void cli_page_note(FILE *f, const char *text);
void cli_page_end(FILE *f, const char *explanation);

/* A sentence; options in it are set as code, so that no line breaks inside one. */
void cli_put_prose(FILE *f, const char *text);
/* Lines of a text as a list. */
void cli_page_list(FILE *f, const char *text);

void cli_page_figure(FILE *f, const char *question, const char *answer);
void cli_page_figure_end(FILE *f);

/* A legend: swatches (style 0), marks (1) or lines (2) of a kind, or one of these; what has no text is left out. */
enum { CLI_KEY_MEAN = -1, CLI_KEY_BAND = -2, CLI_KEY_END = -3 };
typedef struct cli_key {
    int kind, style;
    const char *text;
} cli_key;
#define CLI_KEYS(...) ((const cli_key[]){__VA_ARGS__, {CLI_KEY_END, 0, NULL}})
void cli_legend(FILE *f, const cli_key *key);

/* Every figure is drawn three times, for a wide page, a tablet or paper, and a phone; CSS shows one of them,
 * so that text keeps its size. */
typedef enum cli_width { CLI_WIDE = 0, CLI_MEDIUM, CLI_NARROW, CLI_WIDTHS } cli_width;
extern const char *const cli_width_name[CLI_WIDTHS];
extern const double cli_full_width[CLI_WIDTHS], cli_half_width[CLI_WIDTHS], cli_third_width[CLI_WIDTHS];

typedef void (*cli_draw)(const void *data, FILE *f, cli_width w, double width, const char *id);
void cli_page_draw(const void *data, FILE *f, cli_draw draw, const char *id, const double *width);

/* A picture by itself, of 1000 x 560, up to its panels; ends with </svg>. */
void cli_svg_begin(FILE *f, const char *headline, const char *description, const char *caption);
/* A panel of 952 x 190 in it at this height; ends with </svg>. */
void cli_svg_panel(FILE *f, double y, const char *title);

/* What stands at n bars; owns the texts, which cli_format or cli_strdup made. */
typedef struct cli_marks {
    int n;
    const char **label, **value, **tip;
    chart_kind *kind;
} cli_marks;
cli_marks cli_marks_new(int n);
void cli_marks_free(cli_marks *m);
/* Frees n such texts and the list of them. */
void cli_free_labels(const char **label, int n);

/* With more bars than this only the busiest carries its figure. */
enum { MOST_LABELLED = 16 };

/* Bars numbered from 0 with their mean: devices. */
typedef struct cli_bars {
    int n;
    const double *value;
    const char *title, *x_title, *y_title;
    chart_kind kind;
    int marked;    /* the only one of that kind, the others are plain; -1 = all alike */
    int over_mean; /* 1: figures are multiples of the mean                           */
    double top;    /* of the axis, 0 = from the values                               */
} cli_bars;

/* Rows on n devices with max/mean as figures; of the kind CHART_HOT only the busiest device is marked. */
cli_bars cli_device_bars(const double *v, int n, const char *title, chart_kind kind, double top);

void cli_draw_bars(const void *data, FILE *f, cli_width w, double width, const char *id); /* data: cli_bars */

#endif
