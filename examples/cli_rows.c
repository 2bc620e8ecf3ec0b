/* cli_rows.c - rows of loads, in any order, to recordings; only the first steps are kept one by one
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_rows.h"

#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

typedef struct row_key {
    int64_t step, layer;
} row_key;

/* A row that was seen; its loads while its step is one of those that are kept. */
typedef struct seen_row {
    row_key key;
    int64_t line;
    double *loads;
} seen_row;

typedef struct layer_sum {
    int64_t key;
    double *value; /* (experts), the sum over all steps */
} layer_sum;

typedef struct step_rows {
    int64_t key;
    int64_t value; /* rows of this step so far */
} step_rows;

/* Everything of one label. */
typedef struct recording {
    char *label;
    int64_t experts;
    seen_row *row;    /* stb_ds hash map                    */
    layer_sum *sum;   /* stb_ds hash map                    */
    step_rows *steps; /* stb_ds hash map                    */
    int64_t *kept;    /* stb_ds, sorted: the first steps    */
} recording;

struct cli_rows {
    const char *path;
    const cli_read_options *options;
    int adds;
    recording *list; /* stb_ds, in the order of the file */
    ptrdiff_t last;  /* the one used last                */
    int any;         /* a row came, whatever its label   */
};

/* ---- sorted sets ----------------------------------------------------------------------------------------- */

int cli_same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

int64_t cli_index_of(const int64_t *set, int64_t v)
{
    ptrdiff_t low = 0, high = arrlen(set);
    while (low < high) {
        ptrdiff_t mid = low + (high - low) / 2;
        if (set[mid] < v)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

int64_t cli_add_sorted(int64_t **set, int64_t v)
{
    int64_t at = cli_index_of(*set, v);
    if (at == arrlen(*set) || (*set)[at] != v) arrins(*set, (size_t)at, v);
    return at;
}

/* ---- adding ------------------------------------------------------------------------------------------------ */

cli_rows *cli_rows_new(const char *path, const cli_read_options *o, int adds)
{
    cli_rows *r = cli_alloc(1, sizeof *r);
    r->path = path;
    r->options = o;
    r->adds = adds;
    return r;
}

/* NULL when --only leaves the label out. */
static recording *recording_of(cli_rows *r, const char *label)
{
    recording fresh;
    if (r->last < arrlen(r->list) && cli_same(r->list[r->last].label, label)) return &r->list[r->last];
    for (r->last = 0; r->last < arrlen(r->list); r->last++)
        if (cli_same(r->list[r->last].label, label)) return &r->list[r->last];
    if (r->options->only && !strstr(label, r->options->only)) return NULL;
    memset(&fresh, 0, sizeof fresh);
    fresh.label = cli_strdup(label);
    fresh.experts = -1;
    arrput(r->list, fresh);
    return &arrlast(r->list);
}

static void forget_step(recording *q, int64_t step)
{
    for (ptrdiff_t i = 0; i < hmlen(q->sum); i++) {
        row_key key = {step, q->sum[i].key};
        ptrdiff_t at = hmgeti(q->row, key);
        if (at < 0) continue;
        free(q->row[at].loads);
        q->row[at].loads = NULL;
    }
}

/* Whether a step is among the first CLI_KEPT_STEPS; makes room for it. */
static int keep_step(recording *q, int64_t step)
{
    int64_t at = cli_index_of(q->kept, step);
    if (at < arrlen(q->kept) && q->kept[at] == step) return 1;
    if (at >= CLI_KEPT_STEPS) return 0;
    if (arrlen(q->kept) == CLI_KEPT_STEPS) forget_step(q, arrpop(q->kept));
    arrins(q->kept, (size_t)at, step);
    return 1;
}

static double *sum_of(recording *q, int64_t layer)
{
    ptrdiff_t at = hmgeti(q->sum, layer);
    if (at < 0) {
        layer_sum fresh = {layer, cli_alloc((size_t)q->experts, sizeof(double))};
        hmputs(q->sum, fresh);
        return fresh.value;
    }
    return q->sum[at].value;
}

/* The entry of a row; leaves when it was given before. */
static seen_row *row_of(cli_rows *r, recording *q, row_key key, int64_t line)
{
    ptrdiff_t at = hmgeti(q->row, key);
    if (at < 0) {
        seen_row fresh = {key, line, NULL};
        step_rows count = {key.step, 1};
        ptrdiff_t step = hmgeti(q->steps, key.step);
        if (keep_step(q, key.step)) fresh.loads = cli_alloc((size_t)q->experts, sizeof(double));
        hmputs(q->row, fresh);
        if (step < 0)
            hmputs(q->steps, count);
        else
            q->steps[step].value++;
        return hmgetp(q->row, key);
    }
    if (!r->adds || q->row[at].line == line)
        cli_die(CLI_USAGE, r->adds ? "%s: step %lld, layer %lld was already given"
                                   : "%s:%lld: layer %lld%s%s was already given on line %lld",
                r->path, (long long)(r->adds ? key.step : line), (long long)key.layer, *q->label ? " of " : "",
                q->label, (long long)q->row[at].line);
    q->row[at].line = line;
    return &q->row[at];
}

void cli_rows_add(cli_rows *r, const cli_row *row)
{
    recording *q = recording_of(r, row->label ? row->label : "");
    row_key key = {row->step, row->layer};
    seen_row *seen;
    double *sum;
    r->any = 1;
    if (!q) return;
    if (row->layer < 0 || row->layer > INT32_MAX)
        cli_die(CLI_USAGE, "%s: layer %lld is no layer number", r->path, (long long)row->layer);
    if (q->experts < 0) q->experts = row->n;
    if (row->n != q->experts)
        cli_die(CLI_USAGE, "%s:%lld: %lld loads where the rows before have %lld", r->path, (long long)row->line,
                (long long)row->n, (long long)q->experts);
    sum = sum_of(q, key.layer);
    seen = row_of(r, q, key, row->line);
    for (int64_t e = 0; e < row->n; e++) sum[e] += row->loads[e];
    for (int64_t e = 0; e < row->n && seen->loads; e++) seen->loads[e] += row->loads[e];
}

int64_t cli_rows_count(cli_rows *r, const char *label, int64_t step)
{
    recording *q = recording_of(r, label);
    ptrdiff_t at = q ? hmgeti(q->steps, step) : -1;
    return at < 0 ? 0 : q->steps[at].value;
}

/* ---- to recordings ----------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The numbers of the layers in order, stb_ds. */
static int64_t *layers_of(const recording *q)
{
    int64_t *layers = NULL;
    for (ptrdiff_t i = 0; i < hmlen(q->sum); i++) arrput(layers, q->sum[i].key);
    qsort(layers, (size_t)arrlen(layers), sizeof *layers, ascending);
    return layers;
}

/* Leaves with the first row that is not there. */
static void name_missing(const cli_rows *r, recording *q, const int64_t *layers)
{
    int64_t *steps = NULL;
    for (ptrdiff_t i = 0; i < hmlen(q->steps); i++) arrput(steps, q->steps[i].key);
    qsort(steps, (size_t)arrlen(steps), sizeof *steps, ascending);
    for (ptrdiff_t l = 0; l < arrlen(layers); l++)
        for (ptrdiff_t s = 0; s < arrlen(steps); s++) {
            row_key key = {steps[s], layers[l]};
            int64_t step = steps[s];
            if (hmgeti(q->row, key) >= 0) continue;
            arrfree(steps);
            cli_die(CLI_USAGE, "%s: step %lld has no row for layer %lld", r->path, (long long)step,
                    (long long)layers[l]);
        }
    arrfree(steps);
}

static void to_trace(cli_trace **list, cli_rows *r, recording *q)
{
    int64_t *layers = layers_of(q), E = q->experts, L = arrlen(layers);
    cli_trace t = cli_new_trace(r->path, *q->label ? cli_printable(q->label) : cli_short_name(r->path),
                                hmlen(q->steps), L, E);
    if (hmlen(q->row) != hmlen(q->steps) * L) name_missing(r, q, layers);
    for (int64_t l = 0; l < L; l++) {
        t.layer[l] = (int32_t)layers[l];
        memcpy(t.loads + l * E, sum_of(q, layers[l]), (size_t)E * sizeof *t.loads);
        for (int64_t s = 0; s < t.kept_steps; s++) {
            row_key key = {q->kept[s], layers[l]};
            seen_row *seen = hmgetp(q->row, key);
            memcpy(t.step_loads + (s * L + l) * E, seen->loads, (size_t)E * sizeof *t.step_loads);
            free(seen->loads);
            seen->loads = NULL;
        }
    }
    arrfree(layers);
    cli_append(list, t, r->options);
}

static void free_recording(recording *q)
{
    for (ptrdiff_t i = 0; i < hmlen(q->sum); i++) free(q->sum[i].value);
    hmfree(q->sum);
    hmfree(q->row);
    hmfree(q->steps);
    arrfree(q->kept);
    free(q->label);
}

void cli_rows_end(cli_rows *r, cli_trace **list)
{
    if (!r->any) cli_die(CLI_USAGE, "%s: holds no loads", r->path);
    if (arrlen(r->list) == 0)
        cli_die(CLI_USAGE, "%s: no recording has a label with \"%s\"", r->path, r->options->only);
    for (ptrdiff_t i = 0; i < arrlen(r->list); i++) {
        to_trace(list, r, &r->list[i]);
        free_recording(&r->list[i]);
    }
    arrfree(r->list);
    free(r);
}
