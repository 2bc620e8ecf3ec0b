/* cli_answer.c - parts that every answer has, as text, JSON and page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"

#include <errno.h>
#include <math.h>
#include <stb_ds.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- bars ------------------------------------------------------------------------------------------------ */

void cli_bar(cli_bar_list *b, double value, chart_kind kind, char *label, char *tail)
{
    arrput(b->value, value);
    arrput(b->kind, kind);
    arrput(b->label, label);
    arrput(b->tail, tail);
    b->n++;
}

static void free_bars(cli_bar_list *b)
{
    for (int i = 0; i < b->n; i++) {
        free(b->label[i]);
        free(b->tail[i]);
    }
    arrfree(b->value);
    arrfree(b->kind);
    arrfree(b->label);
    arrfree(b->tail);
    b->n = 0;
}

void cli_bars_text(cli_bar_list *b, FILE *f, const chart_text *t, const char *title)
{
    cli_put_title(f, t, title);
    chart_text_bars(f, t, b->n, (const char *const *)b->label, b->value, (const char *const *)b->tail, b->kind);
    free_bars(b);
}

void cli_bars_page(cli_bar_list *b, FILE *f, double width, const char *id, const char *title, const char *description)
{
    chart_hbars c;
    c = (chart_hbars){.id = id, .title = title, .description = description, .n = b->n, .value = b->value,
                      .label = (const char *const *)b->label, .value_label = (const char *const *)b->tail,
                      .kind = b->kind};
    if (b->n > 0) chart_svg_hbars(f, &c, width);
    free_bars(b);
}

/* ---- text ------------------------------------------------------------------------------------------------ */

void cli_put_headline(FILE *f, const chart_text *t, const char *headline, const char *reason)
{
    fputs(t->color ? "\033[1m" : "", f);
    cli_put_wrapped(f, headline, t->width, 0, 0);
    fprintf(f, "%s  ", t->color ? "\033[0m" : "");
    cli_put_wrapped(f, reason, t->width, 2, 2);
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */

json_t *cli_json_number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *next_number(va_list *list)
{
    return cli_json_number(va_arg(*list, double));
}

static json_t *next_count(va_list *list)
{
    return json_integer(va_arg(*list, int64_t));
}

/* A name that is no text in UTF-8 is none in JSON: what can be said of it is. */
static json_t *word_of(const char *word)
{
    json_t *text = json_string(word);
    char *clean = text || !word ? NULL : cli_printable(word);
    if (clean) text = json_string(clean);
    free(clean);
    return text;
}

static json_t *next_word(va_list *list)
{
    return word_of(va_arg(*list, const char *));
}

json_t *cli_json_names(const cli_trace *t, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, word_of(t[i].name));
    return list;
}

/* The rest of the list, which ends with NULL, into the object. */
static void put_fields(json_t *o, json_t *(*next)(va_list *list), va_list *list)
{
    const char *name;
    while ((name = va_arg(*list, const char *))) json_object_set_new(o, name, next(list));
}

#define JSON_FIELDS(function, next)                                                              \
    void function(json_t *o, ...)                                                                \
    {                                                                                            \
        va_list list;                                                                            \
        va_start(list, o);                                                                       \
        put_fields(o, next, &list);                                                              \
        va_end(list);                                                                            \
    }
JSON_FIELDS(cli_json_numbers, next_number)
JSON_FIELDS(cli_json_counts, next_count)
JSON_FIELDS(cli_json_words, next_word)
#undef JSON_FIELDS

void cli_json_assumed(json_t *o, const char *assumed)
{
    cli_json_words(o, "assumed", assumed ? assumed : "", NULL);
}

void cli_json_write(json_t *root, FILE *f)
{
    if (json_dumpf(root, f, JSON_INDENT(1) | JSON_REAL_PRECISION(12)) != 0)
        cli_die(CLI_INTERNAL, "cannot write the JSON answer: %s", strerror(errno));
    fputc('\n', f);
    json_decref(root);
}

/* ---- page ------------------------------------------------------------------------------------------------ */

void cli_tile(FILE *f, const char *name, char *before, char *after, char *note)
{
    cli_page_tile(f, name, before, after, note);
    free(before);
    free(after);
    free(note);
}

void cli_table(FILE *f, const char *summary, const char *columns)
{
    if (summary) fprintf(f, "<details><summary>%s</summary>", summary);
    fputs(CLI_PAGE_SCROLL "<table class=\"figures\"><thead><tr><th>", f);
    for (; *columns; columns++) {
        if (*columns == '|')
            fputs("<th>", f);
        else
            fputc(*columns, f);
    }
    fputs("</thead><tbody>", f);
}

void cli_table_end(FILE *f, int folded)
{
    fputs("</tbody></table></div>", f);
    if (folded) fputs("</details>", f);
}

void cli_page_assumed(FILE *f, const char *assumed)
{
    cli_page_figure(f, "What was taken for granted", "");
    cli_page_list(f, assumed ? assumed : "Nothing.");
    cli_page_figure_end(f);
}

chart_lines cli_lines(const char *id, const char *title, const char *description, const char *x_title,
                      const char *y_title, int n, const chart_series *series, double line)
{
    chart_lines c;
    c = (chart_lines){.id = id, .title = title, .description = description, .x_title = x_title,
                      .y_title = y_title, .n = n, .series = series, .linear_x = 1, .linear_y = 1, .line = line};
    return c;
}

void cli_points_pair(FILE *f, double width, double height, const char *id, const char *title, const char *description,
                     const char *x_title, const char *y_title, int n, const double *value, const char *const *label,
                     double line)
{
    static const chart_kind kind[2] = {CHART_HOT, CHART_BEST};
    chart_points c;
    c = (chart_points){.id = id, .title = title, .description = description, .x_title = x_title,
                       .y_title = y_title, .n = n, .series = 2, .value = value, .kind = kind, .label = label,
                       .line = line};
    chart_svg_points(f, &c, width, height);
}
