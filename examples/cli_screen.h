/* cli_screen.h - width, characters and colours of the text; sentences in lines
 * SPDX-License-Identifier: MIT */
#ifndef CLI_SCREEN_H
#define CLI_SCREEN_H

#include "chart.h"
#include "cli_base.h"

/* What --width, --ascii and --color say; 0 and "auto" = look at the terminal. */
typedef struct cli_screen {
    const char *color;
    int width, ascii;
} cli_screen;

int cli_screen_width(const cli_screen *s);
int cli_screen_color(const cli_screen *s);
int cli_screen_ascii(const cli_screen *s);
chart_text cli_screen_chart(const cli_screen *s); /* the three together */

/* Columns that a text takes on the screen. */
int cli_columns(const char *s);
/* Text in lines of at most `width` columns, the first after `used` of them, the others indented. */
void cli_put_wrapped(FILE *f, const char *text, int width, int indent, int used);
/* A blank line and a heading. */
void cli_put_title(FILE *f, const chart_text *t, const char *text);
/* The sentences about what was taken for granted, one per line of `assumed` (may be NULL). */
void cli_put_assumed(FILE *f, const chart_text *t, const char *assumed);

#endif
