/* cli_read.c - recordings: which reader, .npy ids and counts, rows to traces, traces made comparable
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_read.h"

#include "cli_npy.h"
#include "cli_rows.h"

#include <ctype.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { MAX_LAYERS = 65536, MAX_KEPT_IDS = 1 << 26 };

/* ---- shared by the readers --------------------------------------------------------------------------- */

char *cli_short_name(const char *path)
{
    char *copy = cli_strdup(path);
    char *name = cli_printable(basename(copy));
    static const char *const tail[] = {".npy", ".csv",      ".jsonl", ".json",  "_u8",
                                       "_i32", "_topk_ids", "_ids",   "_counts"};
    free(copy);
    for (size_t i = 0; i < sizeof tail / sizeof tail[0]; i++) {
        size_t n = strlen(name), m = strlen(tail[i]);
        if (n > m && strcmp(name + n - m, tail[i]) == 0) name[n - m] = '\0';
    }
    return name;
}

void cli_check_load(double v, const char *where)
{
    if (isnan(v) || isinf(v)) cli_die(CLI_USAGE, "%s: a load is not a finite number", where);
    if (v < 0.0) cli_die(CLI_USAGE, "%s: a load is negative (%g)", where, v);
    if (v > 0.0 && v < 1e-200) cli_die(CLI_USAGE, "%s: a load of %g is too small to be a load", where, v);
    if (v > 9e15)
        cli_die(CLI_USAGE, "%s: a load of %g is too large to be counted exactly", where, v);
}

static void check_sizes(const char *path, int64_t steps, int64_t layers, int64_t experts)
{
    if (steps < 1 || layers < 1 || experts < 1) cli_die(CLI_USAGE, "%s: holds no loads", path);
    if (experts > MAX_EXPERTS)
        cli_die(CLI_USAGE, "%s: %s experts; at most %d", path, cli_count((double)experts),
                MAX_EXPERTS);
    if (layers > MAX_LAYERS)
        cli_die(CLI_USAGE, "%s: %s layers; at most %d", path, cli_count((double)layers),
                MAX_LAYERS);
    if (steps > INT32_MAX || steps > INT64_MAX / 8 / layers / experts)
        cli_die(CLI_USAGE, "%s: too many steps", path);
}

cli_trace cli_new_trace(const char *path, char *name, int64_t steps, int64_t layers,
                        int64_t experts)
{
    cli_trace t;
    memset(&t, 0, sizeof t);
    check_sizes(path, steps, layers, experts);
    t.path = cli_strdup(path);
    t.name = name;
    t.steps = (int32_t)steps;
    t.layers = (int32_t)layers;
    t.experts = (int32_t)experts;
    t.step_loads = cli_alloc((size_t)(steps * layers * experts), sizeof *t.step_loads);
    t.loads = cli_alloc((size_t)(layers * experts), sizeof *t.loads);
    t.layer = cli_alloc((size_t)layers, sizeof *t.layer);
    for (int32_t l = 0; l < t.layers; l++) t.layer[l] = l;
    return t;
}

void cli_traces_free(cli_trace *list)
{
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        free(list[i].name);
        free(list[i].path);
        free(list[i].step_loads);
        free(list[i].loads);
        free(list[i].layer);
        free(list[i].ids);
    }
    arrfree(list);
}

void cli_add_steps(cli_trace *t)
{
    size_t n = (size_t)t->layers * (size_t)t->experts;
    memset(t->loads, 0, n * sizeof *t->loads);
    for (int32_t s = 0; s < t->steps; s++)
        for (size_t i = 0; i < n; i++) t->loads[i] += t->step_loads[(size_t)s * n + i];
}

void cli_append(cli_trace **list, cli_trace t, const cli_read_options *o)
{
    if (o->experts > 0 && o->experts != t.experts && !t.inferred)
        cli_die(CLI_USAGE, "%s: has %d experts, --experts says %d", t.path, t.experts, o->experts);
    arrput(*list, t);
}

/* ---- .npy -------------------------------------------------------------------------------------------- */

typedef struct id_shape {
    int64_t tokens, layers, top_k;
} id_shape;

static id_shape npy_id_shape(const cli_npy *a, const cli_read_options *o)
{
    id_shape s = {0, 1, 0};
    if (a->ndim == 2) {
        s.tokens = a->shape[0];
        s.top_k = a->shape[1];
    } else if (a->ndim == 3) {
        s.tokens = a->shape[o->layers_first ? 1 : 0];
        s.layers = a->shape[o->layers_first ? 0 : 1];
        s.top_k = a->shape[2];
    } else {
        cli_die(CLI_USAGE,
                "%s: shape %s; expert ids are (tokens, layers, choices) or (tokens, choices)",
                a->path, a->shape_text);
    }
    if (a->count == 0) cli_die(CLI_USAGE, "%s: shape %s holds no ids", a->path, a->shape_text);
    if (s.top_k > 512 || s.layers > 4096)
        cli_die(CLI_USAGE,
                "%s: shape %s would mean %lld layers of top-%lld; for counts say --counts, for "
                "(layers, tokens, choices) say --layers-first",
                a->path, a->shape_text, (long long)s.layers, (long long)s.top_k);
    return s;
}

/* "ids[12, 3, 5]" for a flat position in the file. */
static const char *id_place(const cli_npy *a, int64_t flat)
{
    int64_t k = a->shape[a->ndim - 1];
    if (a->ndim == 2)
        return cli_keep(cli_format("ids[%lld, %lld]", (long long)(flat / k), (long long)(flat % k)));
    return cli_keep(cli_format("ids[%lld, %lld, %lld]", (long long)(flat / k / a->shape[1]),
                               (long long)(flat / k % a->shape[1]), (long long)(flat % k)));
}

/* The id as the file has it, also where it does not fit into 32 bits. */
static const char *id_value(const cli_npy *a, int64_t flat, int32_t id)
{
    return cli_keep(a->wide_at == flat + 1 ? cli_strdup(a->wide) : cli_format("%d", id));
}

/* Largest id in the file; leaves at the first that can be none. */
static int32_t largest_id(const char *path)
{
    cli_npy a;
    int32_t *buf = cli_alloc(1 << 20, sizeof *buf), top = -1;
    cli_npy_open(&a, path);
    for (int64_t done = 0; done < a.count;) {
        int64_t part = a.count - done < (1 << 20) ? a.count - done : 1 << 20;
        cli_npy_read_i32(&a, buf, part);
        for (int64_t i = 0; i < part; i++) {
            if (buf[i] < -1 || buf[i] >= MAX_EXPERTS) {
                const char *place = id_place(&a, done + i), *value = id_value(&a, done + i, buf[i]);
                free(buf);
                cli_die(CLI_USAGE, "%s: %s = %s is no expert id (0.. or -1 for none)", path, place, value);
            }
            if (buf[i] > top) top = buf[i];
        }
        done += part;
        cli_progress("reading", (double)done, 2.0 * (double)a.count);
    }
    cli_npy_close(&a);
    free(buf);
    if (top < 0) cli_die(CLI_USAGE, "%s: every id is -1", path);
    return top;
}

/* Where ids [first, first + n) of the file go: kept tokens into the trace. */
static void keep_ids(cli_trace *t, const int32_t *ids, int64_t first, int64_t n, int layers_first)
{
    int64_t K = t->top_k, row = first / K;
    for (int64_t i = 0; i < n; i += K, row++) {
        int64_t token = layers_first ? row % t->tokens : row / t->layers;
        int64_t layer = layers_first ? row / t->tokens : row % t->layers;
        if (token < t->kept)
            memcpy(t->ids + (token * t->layers + layer) * K, ids + i, (size_t)K * sizeof *ids);
    }
}

/* The file in pieces of whole tokens (or of one layer, when layers come first) -> counts per layer and the kept ids,
 * without holding the file in memory. */
static void count_ids(cli_npy *a, cli_trace *t, int layers_first)
{
    int64_t K = t->top_k, unit = layers_first ? K : K * t->layers,
            most = (1 << 20) / unit > 0 ? (1 << 20) / unit * unit : unit;
    int64_t per_layer = layers_first ? t->tokens * K : a->count;
    int32_t *buf = cli_alloc((size_t)most, sizeof *buf);
    int64_t *counts = cli_alloc((size_t)t->layers * (size_t)t->experts, sizeof *counts);
    moe_ep_error err;
    for (int64_t done = 0; done < a->count;) {
        int64_t left = per_layer - done % per_layer, part = left < most ? left : most, skipped = 0;
        int64_t layers = layers_first ? 1 : t->layers, first = layers_first ? done / per_layer : 0;
        moe_ep_ids view = moe_ep_ids_tlk(buf, part / unit, (int32_t)layers, t->top_k, t->experts);
        cli_npy_read_i32(a, buf, part);
        if (moe_ep_layer_loads(&view, counts, &skipped, &err) != MOE_EP_OK) {
            const char *value;
            if (err.status != MOE_EP_ERR_EXPERT_ID) cli_check(err.status, &err, a->path);
            value = id_value(a, done + err.index, buf[err.index]);
            free(counts);
            free(buf);
            cli_die(CLI_USAGE, "%s: %s = %s, but there are %d experts (0..%d)", a->path,
                    id_place(a, done + err.index), value, t->experts, t->experts - 1);
        }
        t->skipped += skipped;
        for (int64_t i = 0; i < layers * t->experts; i++)
            t->step_loads[first * t->experts + i] += (double)counts[i];
        keep_ids(t, buf, done, part, layers_first);
        done += part;
        cli_progress("reading", (double)(a->count + done), 2.0 * (double)a->count);
    }
    free(counts);
    free(buf);
}

static void read_npy_ids(cli_trace **list, const char *path, cli_npy *a, const cli_read_options *o)
{
    id_shape s = npy_id_shape(a, o);
    int64_t experts = o->experts;
    cli_trace t;
    if (experts == 0) {
        experts = largest_id(path) + 1;
        if (experts % 4 != 0 && experts > 4)
            experts += 4 - experts % 4; /* the last ones may never be chosen */
    }
    if (s.top_k > experts)
        cli_die(CLI_USAGE, "%s: shape %s means top-%lld of %lld experts; for counts say --counts",
                path, a->shape_text, (long long)s.top_k, (long long)experts);
    t = cli_new_trace(path, cli_short_name(path), 1, s.layers, experts);
    t.inferred = o->experts == 0;
    t.tokens = s.tokens;
    t.top_k = (int32_t)s.top_k;
    t.kept = MAX_KEPT_IDS / (s.layers * s.top_k);
    if (t.kept > s.tokens) t.kept = s.tokens;
    t.ids = cli_alloc((size_t)(t.kept * s.layers * s.top_k), sizeof *t.ids);
    count_ids(a, &t, o->layers_first);
    cli_add_steps(&t);
    cli_append(list, t, o);
}

/* Do all rows of fractions sum to 1, as the weights of a token's choices do? */
static int is_weights(const double *v, int64_t rows, int64_t choices)
{
    int fractions = 0;
    if (choices > 32 || rows < 16) return 0;
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0.0;
        for (int64_t j = 0; j < choices; j++) {
            double x = v[i * choices + j];
            if (!(x >= 0.0 && x <= 1.0)) return 0;
            if (x > 0.0 && x < 1.0) fractions = 1;
            sum += x;
        }
        if (fabs(sum - 1.0) > 0.01) return 0;
    }
    return fractions;
}

static void read_npy_counts(cli_trace **list, const char *path, cli_npy *a,
                            const cli_read_options *o)
{
    int64_t E, L, S;
    cli_trace t;
    if (a->ndim < 1 || a->ndim > 3)
        cli_die(CLI_USAGE,
                "%s: shape %s; counts are (experts), (layers, experts) or (steps, layers, experts)",
                path, a->shape_text);
    E = a->shape[a->ndim - 1];
    L = a->ndim >= 2 ? a->shape[a->ndim - 2] : 1;
    S = a->ndim == 3 ? a->shape[0] : 1;
    t = cli_new_trace(path, cli_short_name(path), S, L, E);
    cli_npy_read_double(a, t.step_loads, a->count);
    for (int64_t i = 0; i < a->count; i++) {
        char *where;
        if (t.step_loads[i] >= 0.0 && t.step_loads[i] <= 9e15) continue;
        where = cli_format("%s: counts[%lld, %lld, %lld]", path, (long long)(i / E / L),
                           (long long)(i / E % L), (long long)(i % E));
        cli_check_load(t.step_loads[i], where);
        free(where);
    }
    if (!o->as_counts && a->ndim == 3 && is_weights(t.step_loads, S * L, E))
        cli_die(CLI_USAGE,
                "%s: every row of shape %s sums to 1: these are routing weights, which say nothing of loads; "
                "give the ids, or --counts if they are shares of the load", path, a->shape_text);
    cli_add_steps(&t);
    cli_append(list, t, o);
}

static void read_npy(cli_trace **list, const char *path, const cli_read_options *o)
{
    cli_npy a;
    cli_npy_open(&a, path);
    if (o->as_counts || a.kind == 'f')
        read_npy_counts(list, path, &a, o);
    else
        read_npy_ids(list, path, &a, o);
    cli_npy_close(&a);
}

/* ---- rows of loads with labels, shared by CSV, JSON objects and JSON lines ------------------------------ */

int cli_same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

int64_t cli_add_sorted(int64_t **set, int64_t v)
{
    ptrdiff_t at = 0;
    while (at < arrlen(*set) && (*set)[at] < v) at++;
    if (at == arrlen(*set) || (*set)[at] != v) arrins(*set, (size_t)at, v);
    return at;
}

int64_t cli_index_of(const int64_t *set, int64_t v)
{
    ptrdiff_t low = 0, high = arrlen(set) - 1;
    while (low < high) {
        ptrdiff_t mid = low + (high - low) / 2;
        if (set[mid] < v)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Rows of one label -> a trace.  Every (step, layer) must be there exactly once. */
static void rows_to_trace(cli_trace **list, const char *path, const cli_load_row *rows,
                          const char *label, const cli_read_options *o)
{
    int64_t *steps = NULL, *layers = NULL, *line_of, experts = -1;
    cli_trace t;
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) {
        if (!cli_same(rows[i].label, label)) continue;
        (void)cli_add_sorted(&steps, rows[i].step);
        (void)cli_add_sorted(&layers, rows[i].layer);
        if (experts < 0) experts = arrlen(rows[i].loads);
        if (arrlen(rows[i].loads) != experts)
            cli_die(CLI_USAGE, "%s:%lld: %td loads where the rows before have %lld", path,
                    (long long)rows[i].line, arrlen(rows[i].loads), (long long)experts);
    }
    t = cli_new_trace(path, *label ? cli_printable(label) : cli_short_name(path), arrlen(steps),
                      arrlen(layers), experts);
    line_of = cli_keep_block(cli_alloc((size_t)arrlen(steps) * (size_t)arrlen(layers), sizeof *line_of));
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) {
        int64_t at;
        if (!cli_same(rows[i].label, label)) continue;
        at = cli_index_of(steps, rows[i].step) * arrlen(layers) +
             cli_index_of(layers, rows[i].layer);
        if (line_of[at] != 0)
            cli_die(CLI_USAGE, "%s:%lld: layer %lld%s%s was already given on line %lld", path,
                    (long long)rows[i].line, (long long)rows[i].layer, *label ? " of " : "", label,
                    (long long)line_of[at]);
        line_of[at] = rows[i].line;
        memcpy(t.step_loads + at * experts, rows[i].loads, (size_t)experts * sizeof *t.step_loads);
    }
    for (ptrdiff_t l = 0; l < arrlen(layers); l++) {
        if (layers[l] < 0 || layers[l] > INT32_MAX)
            cli_die(CLI_USAGE, "%s: layer %lld is no layer number", path, (long long)layers[l]);
        t.layer[l] = (int32_t)layers[l];
        for (ptrdiff_t s = 0; s < arrlen(steps); s++)
            if (line_of[s * arrlen(layers) + l] == 0)
                cli_die(CLI_USAGE, "%s: step %lld has no row for layer %lld", path,
                        (long long)steps[s], (long long)layers[l]);
    }
    cli_add_steps(&t);
    cli_append(list, t, o);
    arrfree(steps);
    arrfree(layers);
}

void cli_rows_to_traces(cli_trace **list, const char *path, cli_load_row *rows,
                        const cli_read_options *o)
{
    int before = (int)arrlen(*list);
    if (arrlen(rows) == 0) cli_die(CLI_USAGE, "%s: holds no loads", path);
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) {
        int seen = 0;
        for (ptrdiff_t j = 0; j < i && !seen; j++) seen = cli_same(rows[j].label, rows[i].label);
        if (!seen && (!o->only || strstr(rows[i].label, o->only)))
            rows_to_trace(list, path, rows, rows[i].label, o);
    }
    if ((int)arrlen(*list) == before)
        cli_die(CLI_USAGE, "%s: no recording has a label with \"%s\"", path,
                o->only ? o->only : "");
    for (ptrdiff_t i = 0; i < arrlen(rows); i++) {
        free(rows[i].label);
        arrfree(rows[i].loads);
    }
    arrfree(rows);
}

/* ---- which reader ------------------------------------------------------------------------------------ */

static int ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcasecmp(s + n - m, tail) == 0;
}

/* Says what a file is that none of the readers takes. */
static void refuse_known(const char *path, const unsigned char *head, size_t n)
{
    if (n == 0) cli_die(CLI_USAGE, "%s: is empty", path);
    if (n >= 4 && memcmp(head, "PK\x03\x04", 4) == 0)
        cli_die(CLI_USAGE,
                "%s: is a zip file (.npz or a PyTorch dump); save one array with numpy.save, or "
                "the counts as JSON (examples/SERVERS.md has the line for SGLang's dump)",
                path);
    if (n >= 2 && head[0] == 0x1f && head[1] == 0x8b)
        cli_die(CLI_USAGE, "%s: is compressed; unpack it with gunzip first", path);
    if (n >= 2 && head[0] == 0x80 && head[1] <= 5)
        cli_die(CLI_USAGE, "%s: looks like a Python pickle; save the array with numpy.save", path);
    if (memmem(head, n, "EPLB step", 9) || memmem(head, n, "INFO ", 5))
        cli_die(CLI_USAGE, "%s: is a server's log: it tells how uneven the ranks are, not which experts are hot; "
                           "moe-ep watch %s --once reads it",
                path, path);
}

void cli_read(cli_trace **list, const char *path, const cli_read_options *options)
{
    unsigned char head[64];
    size_t n, start = 0;
    FILE *f;
    if (cli_is_statistics(path) || ends_with(path, ".safetensors")) {
        cli_read_statistics(list, path, options);
        return;
    }
    f = cli_open_input(path);
    n = fread(head, 1, sizeof head, f);
    if (ferror(f)) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    rewind(f);
    refuse_known(path, head, n);
    while (start < n && isspace(head[start])) start++;
    if ((n >= 6 && memcmp(head, "\x93NUMPY", 6) == 0) || ends_with(path, ".npy")) {
        read_npy(list, path, options);
    } else if (ends_with(path, ".jsonl") || ends_with(path, ".ndjson")) {
        cli_read_json_lines(list, path, f, options);
    } else if (ends_with(path, ".json") ||
               (start < n && (head[start] == '{' || head[start] == '['))) {
        cli_read_json(list, path, f, options);
    } else {
        cli_read_csv(list, path, f, options);
    }
    (void)fclose(f);
}

/* ---- making recordings comparable ---------------------------------------------------------------------- */

static void widen(cli_trace *t, int32_t experts)
{
    int64_t rows = (int64_t)t->steps * t->layers;
    double *wide;
    if (t->experts == experts) return;
    wide = cli_alloc((size_t)(rows * experts), sizeof *wide);
    for (int64_t r = 0; r < rows; r++)
        memcpy(wide + r * experts, t->step_loads + r * t->experts,
               (size_t)t->experts * sizeof *wide);
    free(t->step_loads);
    free(t->loads);
    t->step_loads = wide;
    t->loads = cli_alloc((size_t)t->layers * (size_t)experts, sizeof *t->loads);
    t->experts = experts;
    cli_add_steps(t);
}

static int layer_is_empty(const cli_trace *t, int32_t l)
{
    for (int32_t e = 0; e < t->experts; e++)
        if (t->loads[(size_t)l * (size_t)t->experts + (size_t)e] > 0.0) return 0;
    return 1;
}

/* Takes layer l out of a trace: loads, ids and number. */
static void drop_layer(cli_trace *t, int32_t l)
{
    size_t E = (size_t)t->experts, K = (size_t)t->top_k, L = (size_t)t->layers, at = 0;
    for (size_t s = 0; s < (size_t)t->steps; s++)
        for (size_t i = 0; i < L; i++) {
            if (i == (size_t)l) continue;
            memmove(t->step_loads + at * E, t->step_loads + (s * L + i) * E,
                    E * sizeof *t->step_loads);
            at++;
        }
    at = 0;
    for (int64_t r = 0; t->ids && r < t->kept * (int64_t)L; r++) {
        if (r % (int64_t)L == l) continue;
        memmove(t->ids + at * K, t->ids + (size_t)r * K, K * sizeof *t->ids);
        at++;
    }
    memmove(t->layer + l, t->layer + l + 1, (L - (size_t)l - 1) * sizeof *t->layer);
    t->layers--;
    cli_add_steps(t);
}

static void put_range(FILE *f, int32_t from, int32_t to, int first)
{
    fprintf(f, first ? "%d" : ", %d", from);
    if (to > from) fprintf(f, to == from + 1 ? ", %d" : "-%d", to);
}

char *cli_read_align(cli_trace *list, int count, int drop)
{
    int32_t experts = 0, from = -2, to = -2;
    char *text = NULL;
    size_t length = 0;
    FILE *f = open_memstream(&text, &length);
    int first = 1;
    if (!f) cli_die(CLI_INTERNAL, "out of memory");
    for (int i = 0; i < count; i++)
        if (list[i].experts > experts) experts = list[i].experts;
    for (int i = 0; i < count; i++) {
        if (list[i].inferred) widen(&list[i], experts);
        if (list[i].experts != experts)
            cli_die(CLI_USAGE,
                    "%s (%s) has %d experts, another recording has %d; --only TEXT chooses "
                    "recordings of a CSV",
                    list[i].path, list[i].name, list[i].experts, experts);
        if (list[i].layers != list[0].layers ||
            memcmp(list[i].layer, list[0].layer, (size_t)list[0].layers * sizeof *list[0].layer) !=
                0)
            cli_die(CLI_USAGE, "%s (%s) has other layers than %s (%s): %d and %d", list[i].path,
                    list[i].name, list[0].path, list[0].name, list[i].layers, list[0].layers);
    }
    for (int32_t l = 0; l < list[0].layers && drop;) {
        int empty = 0;
        for (int i = 0; i < count; i++) empty |= layer_is_empty(&list[i], l);
        if (!empty) {
            l++;
            continue;
        }
        if (list[0].layer[l] != to + 1) {
            if (to >= 0) put_range(f, from, to, first), first = 0;
            from = list[0].layer[l];
        }
        to = list[0].layer[l];
        for (int i = 0; i < count; i++) drop_layer(&list[i], l);
    }
    if (to >= 0) put_range(f, from, to, first);
    (void)fclose(f);
    if (list[0].layers == 0) cli_die(CLI_USAGE, "%s: every load is zero", list[0].path);
    return text;
}
