/* cli_json_in.c - SGLang's logical_count, plain JSON, JSON lines
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_rows.h"

#include <jansson.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static double *load_list(const char *path, int64_t line, json_t *array, const char *where)
{
    double *loads = NULL;
    json_t *item;
    size_t i;
    if (!json_is_array(array)) cli_die(CLI_USAGE, "%s: %s is not a list of numbers", path, where);
    json_array_foreach(array, i, item)
    {
        char *place = line > 0 ? cli_format("%s:%lld: %s[%zu]", path, (long long)line, where, i)
                               : cli_format("%s: %s[%zu]", path, where, i);
        if (!json_is_number(item)) cli_die(CLI_USAGE, "%s is not a number", place);
        cli_check_load(json_number_value(item), place);
        arrput(loads, json_number_value(item));
        free(place);
    }
    return loads;
}

/* [L][E], [steps][L][E] or [E]: a list of lists becomes rows. */
static void json_matrix(const char *path, json_t *value, const char *where, cli_load_row **rows)
{
    json_t *first = json_array_get(value, 0), *item, *inner;
    size_t s, l;
    if (!json_is_array(value) || json_array_size(value) == 0)
        cli_die(CLI_USAGE, "%s: %s is not a filled list", path, where);
    if (json_is_array(json_array_get(first, 0))) {
        json_array_foreach(value, s, item)
        {
            if (!json_is_array(item))
                cli_die(CLI_USAGE, "%s: %s[%zu] is not a list of layers", path, where, s);
            json_array_foreach(item, l, inner)
            {
                char *place = cli_format("%s[%zu][%zu]", where, s, l);
                cli_load_row row = {cli_strdup(""), (int64_t)s, (int64_t)l, 1,
                                    load_list(path, 0, inner, place)};
                arrput(*rows, row);
                free(place);
            }
        }
        return;
    }
    if (json_is_number(first)) {
        cli_load_row row = {cli_strdup(""), 0, 0, 1, load_list(path, 0, value, where)};
        arrput(*rows, row);
        return;
    }
    json_array_foreach(value, l, item)
    {
        char *place = cli_format("%s[%zu]", where, l);
        cli_load_row row = {cli_strdup(""), 0, (int64_t)l, 1, load_list(path, 0, item, place)};
        arrput(*rows, row);
        free(place);
    }
}

/* {"0": [...], "1": [...]}: layers by number. */
static void json_layers(const char *path, json_t *object, cli_load_row **rows)
{
    const char *key;
    json_t *item;
    json_object_foreach(object, key, item)
    {
        int64_t layer;
        cli_load_row row = {NULL, 0, 0, 1, NULL};
        if (!cli_parse_i64(key, &layer) || layer < 0)
            cli_die(CLI_USAGE,
                    "%s: neither \"logical_count\" nor layer numbers as keys (found \"%s\")", path,
                    cli_printable(key));
        row.label = cli_strdup("");
        row.layer = layer;
        row.loads = load_list(path, 0, item, key);
        arrput(*rows, row);
    }
}

void cli_read_json(cli_trace **list, const char *path, FILE *f, const cli_read_options *o)
{
    cli_load_row *rows = NULL;
    json_error_t e;
    json_t *root = json_loadf(f, 0, &e), *counts;
    if (!root) cli_die(CLI_USAGE, "%s:%d:%d: %s", path, e.line, e.column, cli_printable(e.text));
    counts = json_object_get(root, "logical_count");
    if (!counts) counts = json_object_get(root, "counts");
    if (counts)
        json_matrix(path, counts, "logical_count", &rows);
    else if (json_is_array(root))
        json_matrix(path, root, "list", &rows);
    else
        json_layers(path, root, &rows);
    json_decref(root);
    cli_rows_to_traces(list, path, rows, o);
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
                t.step_loads[(s * t.layers + l) * experts + e] += 1.0;
        }
    }
    for (int32_t l = 0; l < t.layers; l++) t.layer[l] = (int32_t)layers[l];
    cli_add_steps(&t);
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
    cli_load_row *rows = NULL;
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
            cli_load_row row = {NULL, line_integer(path, line, object, "step"),
                                line_integer(path, line, object, "layer"), line, NULL};
            if (!counts)
                cli_die(CLI_USAGE, "%s:%lld: neither \"ids\" nor \"counts\"", path,
                        (long long)line);
            row.label = cli_strdup("");
            row.loads = load_list(path, line, counts, "counts");
            arrput(rows, row);
        }
        json_decref(object);
    }
    free(text);
    if (id_rows && rows) cli_die(CLI_USAGE, "%s: some lines hold ids and others counts", path);
    if (id_rows)
        id_rows_to_trace(list, path, id_rows, top_k, o);
    else
        cli_rows_to_traces(list, path, rows, o);
}
