/* cli_json_in.c - SGLang's logical_count, plain JSON, JSON lines
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_rows.h"
#include "cli_stream.h"

#include <jansson.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

/* A row of numbers, stb_ds; leaves at the first that is no load. */
static double *load_list(const char *path, int64_t line, json_t *array, const char *where)
{
    double *loads = NULL;
    json_t *item;
    size_t i;
    if (!json_is_array(array)) cli_die(CLI_USAGE, "%s: %s is not a list of numbers", path, where);
    json_array_foreach(array, i, item)
    {
        if (!json_is_number(item) || !cli_is_load(json_number_value(item))) {
            char *place = line > 0 ? cli_format("%s:%lld: %s[%zu]", path, (long long)line, where, i)
                                   : cli_format("%s: %s[%zu]", path, where, i);
            if (!json_is_number(item)) cli_die(CLI_USAGE, "%s is not a number: %s", place, cli_json_shown(item));
            cli_check_load(json_number_value(item), place);
        }
        arrput(loads, json_number_value(item));
    }
    return loads;
}

/* ---- one value of any size: [L][E], [steps][L][E] or [E] ------------------------------------------------- */

typedef struct matrix {
    cli_stream *s;
    cli_rows *rows;
    const char *where; /* the key, for messages       */
    int depth;         /* of the rows, 0 = not known  */
} matrix;

/* A row that stands in the file after `opened`; at[] are the places in the lists around it. */
static void matrix_row(matrix *m, int opened, const int64_t *at, int depth)
{
    char *place = depth == 1   ? cli_strdup(m->where)
                  : depth == 2 ? cli_format("%s[%lld]", m->where, (long long)at[1])
                               : cli_format("%s[%lld][%lld]", m->where, (long long)at[1], (long long)at[2]);
    json_t *list;
    double *loads;
    cli_row row = {NULL, 0, 0, 1, NULL, 0, NULL, 0, 0};
    if (m->depth == 0) m->depth = depth;
    if (depth != m->depth)
        cli_die(CLI_USAGE, m->depth == 3 ? "%s: %s is not a list of layers" : "%s: %s is not a list of numbers",
                m->s->path, place);
    list = cli_stream_value(m->s, opened);
    loads = load_list(m->s->path, 0, list, place);
    row.layer = depth == 1 ? 0 : at[depth - 1];
    row.step = depth == 3 ? at[1] : 0;
    row.loads = loads;
    row.n = arrlen(loads);
    cli_rows_add(m->rows, &row);
    arrfree(loads);
    json_decref(list);
    free(place);
}

static void walk_matrix(matrix *m, int64_t *at, int depth)
{
    int first = 1;
    if (cli_stream_peek(m->s) != '[') {
        if (depth == 1) cli_die(CLI_USAGE, "%s: %s is not a filled list", m->s->path, m->where);
        matrix_row(m, 0, at, depth); /* says what it should be */
        return;
    }
    cli_stream_take(m->s, '[');
    if (cli_stream_peek(m->s) != '[' || depth == 3) {
        if (depth == 1 && cli_stream_peek(m->s) == ']')
            cli_die(CLI_USAGE, "%s: %s is not a filled list", m->s->path, m->where);
        matrix_row(m, '[', at, depth);
        return;
    }
    for (at[depth] = 0; cli_stream_more(m->s, ']', &first); at[depth]++) walk_matrix(m, at, depth + 1);
}

static void read_matrix(cli_stream *s, const char *where, cli_rows *rows)
{
    matrix m = {s, rows, where, 0};
    int64_t at[4] = {0, 0, 0, 0};
    walk_matrix(&m, at, 1);
}

/* {"0": [...], "1": [...]}: layers by number. */
static void read_layers(cli_stream *s, cli_rows *rows)
{
    int first = 1;
    cli_stream_rewind(s);
    cli_stream_take(s, '{');
    while (cli_stream_more(s, '}', &first)) {
        char *key = cli_stream_key(s);
        json_t *list;
        double *loads;
        cli_row row = {NULL, 0, 0, 1, NULL, 0, NULL, 0, 0};
        if (!cli_parse_i64(key, &row.layer) || row.layer < 0)
            cli_die(CLI_USAGE, "%s: neither \"logical_count\" nor layer numbers as keys (found \"%s\")", s->path,
                    cli_printable(key));
        list = cli_stream_value(s, 0);
        loads = load_list(s->path, 0, list, key);
        row.loads = loads;
        row.n = arrlen(loads);
        cli_rows_add(rows, &row);
        arrfree(loads);
        json_decref(list);
        free(key);
    }
    cli_stream_done(s);
}

void cli_read_json(cli_trace **list, const char *path, const cli_read_options *o)
{
    static const char *const key[] = {"logical_count", "counts"};
    cli_stream *s = cli_alloc(1, sizeof *s);
    cli_rows *rows = cli_rows_new(path, o, CLI_ROWS_EQUAL);
    FILE *f = cli_open_input(path);
    ptrdiff_t at = arrlen(*list);
    int found = 0, numbered = 0;
    cli_stream_open(s, path, f, -1);
    if (cli_stream_peek(s) == '[') {
        read_matrix(s, "list", rows);
        cli_stream_done(s);
    } else if (cli_stream_peek(s) == '{') {
        for (size_t i = 0; i < sizeof key / sizeof key[0] && !found; i++) {
            if (!cli_stream_find(s, key[i])) continue;
            found = 1;
            read_matrix(s, key[i], rows);
            cli_stream_rest(s, key[i]);
        }
        numbered = !found;
        if (numbered) read_layers(s, rows);
    } else {
        cli_die(CLI_USAGE, "%s:%lld:%lld: '[' or '{' expected", path, (long long)s->line, (long long)s->column);
    }
    cli_stream_close(s);
    free(s);
    (void)fclose(f);
    cli_rows_end(rows, list);
    for (; !numbered && at < arrlen(*list); at++) (*list)[at].unnumbered = (*list)[at].layers;
}

/* ---- JSON lines: {"step": 0, "layer": 3, "ids": [[1, 5], ...]} or "counts": [...] ------------------------ */

typedef struct line_reader {
    const char *path;
    const cli_read_options *options;
    cli_rows *rows;
    int64_t line, top_k;
    int32_t *ids;  /* stb_ds, of the line */
    double *loads; /* stb_ds, of the line */
    int any_ids, any_counts;
} line_reader;

static int64_t line_integer(const line_reader *r, json_t *object, const char *key)
{
    json_t *v = json_object_get(object, key);
    if (!v) return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        cli_die(CLI_USAGE, "%s:%lld: \"%s\" is not a whole number from 0: %s", r->path, (long long)r->line, key,
                cli_json_shown(v));
    return json_integer_value(v);
}

static json_t *ids_of(json_t *object)
{
    json_t *ids = json_object_get(object, "ids");
    return ids ? ids : json_object_get(object, "topk_ids");
}

/* One choice into the ids and the loads of the line. */
static void take_id(line_reader *r, json_t *item, size_t token, size_t choice)
{
    json_int_t v = json_is_integer(item) ? json_integer_value(item) : -2;
    int32_t experts = r->options->experts;
    if (v < -1 || v >= MAX_EXPERTS)
        cli_die(CLI_USAGE, "%s:%lld: ids[%zu][%zu] is no expert id: %s (0 to %d, or -1 for none)", r->path,
                (long long)r->line, token, choice, cli_json_shown(item), MAX_EXPERTS - 1);
    if (experts > 0 && v >= experts)
        cli_die(CLI_USAGE, "%s:%lld: expert id %lld, but there are %d experts", r->path, (long long)r->line,
                (long long)v, experts);
    arrput(r->ids, (int32_t)v);
    while (arrlen(r->loads) <= v) arrput(r->loads, 0.0);
    if (v >= 0) r->loads[v] += 1.0;
}

static void take_ids(line_reader *r, json_t *list)
{
    json_t *token, *item;
    size_t t, k;
    if (!json_is_array(list)) cli_die(CLI_USAGE, "%s:%lld: \"ids\" is not a list", r->path, (long long)r->line);
    json_array_foreach(list, t, token)
    {
        if (!json_is_array(token))
            cli_die(CLI_USAGE, "%s:%lld: ids[%zu] is not a list of choices", r->path, (long long)r->line, t);
        if (r->top_k == 0) r->top_k = (int64_t)json_array_size(token);
        if (r->top_k == 0 || json_array_size(token) != (size_t)r->top_k)
            cli_die(CLI_USAGE, "%s:%lld: ids[%zu] has %zu choices where others have %lld", r->path,
                    (long long)r->line, t, json_array_size(token), (long long)r->top_k);
        json_array_foreach(token, k, item) take_id(r, item, t, k);
    }
}

static void take_line(line_reader *r, json_t *object)
{
    json_t *ids = ids_of(object), *counts = json_object_get(object, "counts");
    cli_row row = {NULL, line_integer(r, object, "step"), line_integer(r, object, "layer"), r->line, NULL, 0, NULL, 0,
                   0};
    if (!ids && !counts)
        cli_die(CLI_USAGE, "%s:%lld: neither \"ids\" nor \"counts\"", r->path, (long long)r->line);
    if (ids && counts)
        cli_die(CLI_USAGE, "%s:%lld: both \"ids\" and \"counts\": one of them", r->path, (long long)r->line);
    if (json_object_get(object, "ids") && json_object_get(object, "topk_ids"))
        cli_die(CLI_USAGE, "%s:%lld: both \"ids\" and \"topk_ids\": one of them", r->path, (long long)r->line);
    if (ids ? r->any_counts : r->any_ids)
        cli_die(CLI_USAGE, "%s: some lines hold ids and others counts", r->path);
    if (!r->rows) r->rows = cli_rows_new(r->path, r->options, ids ? CLI_ROWS_GROW : CLI_ROWS_EQUAL);
    arrsetlen(r->ids, 0);
    arrsetlen(r->loads, 0);
    if (ids) {
        r->any_ids = 1;
        if (json_object_get(object, "step")) cli_rows_stepped(r->rows);
        take_ids(r, ids);
        row.ids = r->ids;
        row.top_k = r->top_k;
        row.tokens = r->top_k > 0 ? arrlen(r->ids) / r->top_k : 0;
    } else {
        r->any_counts = 1;
        arrfree(r->loads);
        r->loads = load_list(r->path, r->line, counts, "counts");
    }
    row.loads = r->loads;
    row.n = arrlen(r->loads);
    cli_rows_add(r->rows, &row);
}

/* The next line that is not blank; NULL = the end. */
static json_t *next_line(FILE *f, char **text, size_t *room, const char *path, int64_t *line)
{
    json_t *object = NULL;
    ssize_t n;
    while (!object && (n = cli_getline(text, room, f, path)) >= 0)
        object = cli_json_line(path, ++*line, *text, (size_t)n);
    return object;
}

/* Reads again for the first line whose step has another number of tokens elsewhere, and leaves. */
static void name_uneven(const line_reader *r, FILE *f, char **text, size_t *room)
{
    struct { int64_t key, value; } *tokens = NULL; /* stb_ds, per step */
    json_t *object;
    int64_t line = 0;
    rewind(f);
    while ((object = next_line(f, text, room, r->path, &line))) {
        json_t *step = json_object_get(object, "step");
        int64_t s = step ? json_integer_value(step) : 0, n = (int64_t)json_array_size(ids_of(object));
        ptrdiff_t at = hmgeti(tokens, s);
        if (at >= 0 && tokens[at].value != n)
            cli_die(CLI_USAGE, "%s:%lld: %lld tokens where another layer of step %lld has %lld", r->path,
                    (long long)line, (long long)n, (long long)s, (long long)tokens[at].value);
        if (at < 0) hmput(tokens, s, n);
        json_decref(object);
    }
    hmfree(tokens);
}

void cli_read_json_lines(cli_trace **list, const char *path, FILE *f, const cli_read_options *o)
{
    char *text = NULL;
    size_t room = 0;
    line_reader r;
    json_t *object;
    memset(&r, 0, sizeof r);
    r.path = path;
    r.options = o;
    while ((object = next_line(f, &text, &room, path, &r.line))) {
        take_line(&r, object);
        json_decref(object);
    }
    if (!r.rows) r.rows = cli_rows_new(path, o, CLI_ROWS_EQUAL);
    if (!cli_rows_even(r.rows)) name_uneven(&r, f, &text, &room);
    free(text);
    arrfree(r.ids);
    arrfree(r.loads);
    cli_rows_end(r.rows, list);
}
