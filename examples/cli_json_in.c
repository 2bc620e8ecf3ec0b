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
            if (!json_is_number(item)) cli_die(CLI_USAGE, "%s is not a number", place);
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
    cli_row row = {NULL, 0, 0, 1, NULL, 0};
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
        cli_row row = {NULL, 0, 0, 1, NULL, 0};
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
    cli_rows *rows = cli_rows_new(path, o, 0);
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
            cli_stream_rest(s);
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

typedef struct id_row {
    int64_t step, layer, line, tokens;
    int32_t *ids; /* stb_ds, (tokens, top_k) */
} id_row;

static int64_t line_integer(const char *path, int64_t line, json_t *object, const char *key)
{
    json_t *v = json_object_get(object, key);
    if (!v) return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        cli_die(CLI_USAGE, "%s:%lld: \"%s\" is not a whole number from 0", path, (long long)line,
                key);
    return json_integer_value(v);
}

static void line_ids(const char *path, json_t *list, id_row *row, int32_t *top_k)
{
    json_t *token, *item;
    size_t t, k;
    if (!json_is_array(list))
        cli_die(CLI_USAGE, "%s:%lld: \"ids\" is not a list", path, (long long)row->line);
    json_array_foreach(list, t, token)
    {
        if (!json_is_array(token))
            cli_die(CLI_USAGE, "%s:%lld: ids[%zu] is not a list of choices", path,
                    (long long)row->line, t);
        if (*top_k == 0) *top_k = (int32_t)json_array_size(token);
        if (*top_k == 0 || json_array_size(token) != (size_t)*top_k)
            cli_die(CLI_USAGE, "%s:%lld: ids[%zu] has %zu choices where others have %d", path,
                    (long long)row->line, t, json_array_size(token), *top_k);
        json_array_foreach(token, k, item)
        {
            json_int_t v = json_is_integer(item) ? json_integer_value(item) : -2;
            if (v < -1 || v >= MAX_EXPERTS)
                cli_die(CLI_USAGE, "%s:%lld: ids[%zu][%zu] is no expert id (0.. or -1 for none)",
                        path, (long long)row->line, t, k);
            arrput(row->ids, (int32_t)v);
        }
        row->tokens++;
    }
}

static void count_id(cli_trace *t, int64_t step, int64_t layer, int32_t expert)
{
    t->loads[layer * t->experts + expert] += 1.0;
    if (step < t->kept_steps) t->step_loads[(step * t->layers + layer) * t->experts + expert] += 1.0;
}

/* Tokens of each step must be the same in every layer; then the steps follow each other.  Frees the rows. */
static void id_rows_to_trace(cli_trace **list, const char *path, id_row *rows, int32_t top_k,
                             const cli_read_options *o)
{
    int64_t *steps = NULL, *layers = NULL, *first, *tokens, total = 0, experts = o->experts;
    cli_trace t;
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) {
        (void)cli_add_sorted(&steps, rows[i].step);
        (void)cli_add_sorted(&layers, rows[i].layer);
        for (ptrdiff_t j = 0; j < arrlen(rows[i].ids) && o->experts == 0; j++)
            if (rows[i].ids[j] >= experts) experts = rows[i].ids[j] + 1;
    }
    if (o->experts == 0 && experts > 4 && experts % 4 != 0) experts += 4 - experts % 4;
    t = cli_new_trace(path, cli_short_name(path), arrlen(steps), arrlen(layers), experts);
    t.inferred = o->experts == 0;
    t.top_k = top_k;
    tokens = cli_alloc((size_t)arrlen(steps), sizeof *tokens);
    first = cli_alloc((size_t)arrlen(steps) + 1, sizeof *first);
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) {
        int64_t s = cli_index_of(steps, rows[i].step);
        if (tokens[s] == 0) tokens[s] = rows[i].tokens;
        if (tokens[s] != rows[i].tokens)
            cli_die(CLI_USAGE, "%s:%lld: %lld tokens where another layer of step %lld has %lld",
                    path, (long long)rows[i].line, (long long)rows[i].tokens,
                    (long long)rows[i].step, (long long)tokens[s]);
    }
    for (ptrdiff_t s = 0; s < arrlen(steps); s++) total = first[s + 1] = total + tokens[s];
    t.tokens = t.kept = total;
    t.ids = cli_alloc((size_t)(total * t.layers * top_k), sizeof *t.ids);
    memset(t.ids, 0xff, (size_t)(total * t.layers * top_k) * sizeof *t.ids); /* -1 */
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) {
        int64_t s = cli_index_of(steps, rows[i].step), l = cli_index_of(layers, rows[i].layer);
        for (ptrdiff_t j = 0; j < arrlen(rows[i].ids); j++) {
            int32_t e = rows[i].ids[j];
            if (e >= experts)
                cli_die(CLI_USAGE, "%s:%lld: expert id %d, but there are %lld experts", path,
                        (long long)rows[i].line, e, (long long)experts);
            t.ids[((first[s] + j / top_k) * t.layers + l) * top_k + j % top_k] = e;
            if (e < 0)
                t.skipped++;
            else
                count_id(&t, s, l, e);
        }
    }
    for (int32_t l = 0; l < t.layers; l++) t.layer[l] = (int32_t)layers[l];
    cli_append(list, t, o);
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) arrfree(rows[i].ids);
    arrfree(rows);
    free(tokens);
    free(first);
    arrfree(steps);
    arrfree(layers);
}

void cli_read_json_lines(cli_trace **list, const char *path, FILE *f, const cli_read_options *o)
{
    char *text = NULL;
    size_t room = 0;
    int64_t line = 0;
    int32_t top_k = 0;
    int64_t counted = 0;
    cli_rows *rows = cli_rows_new(path, o, 0);
    id_row *id_rows = NULL;
    while (getline(&text, &room, f) >= 0) {
        json_error_t e;
        json_t *object, *ids;
        line++;
        if (text[strspn(text, " \t\r\n")] == '\0') continue;
        object = json_loads(text, 0, &e);
        if (!object)
            cli_die(CLI_USAGE, "%s:%lld: %s", path, (long long)line, cli_printable(e.text));
        ids = json_object_get(object, "ids");
        if (!ids) ids = json_object_get(object, "topk_ids");
        if (ids) {
            id_row row = {line_integer(path, line, object, "step"),
                          line_integer(path, line, object, "layer"), line, 0, NULL};
            line_ids(path, ids, &row, &top_k);
            arrput(id_rows, row);
        } else {
            json_t *counts = json_object_get(object, "counts");
            double *loads;
            cli_row row = {NULL, line_integer(path, line, object, "step"),
                           line_integer(path, line, object, "layer"), line, NULL, 0};
            if (!counts)
                cli_die(CLI_USAGE, "%s:%lld: neither \"ids\" nor \"counts\"", path,
                        (long long)line);
            loads = load_list(path, line, counts, "counts");
            row.loads = loads;
            row.n = arrlen(loads);
            cli_rows_add(rows, &row);
            arrfree(loads);
            counted++;
        }
        json_decref(object);
    }
    free(text);
    if (id_rows && counted > 0) cli_die(CLI_USAGE, "%s: some lines hold ids and others counts", path);
    if (id_rows) {
        free(rows);
        id_rows_to_trace(list, path, id_rows, top_k, o);
    } else {
        cli_rows_end(rows, list);
    }
}
