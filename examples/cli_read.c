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

enum { MAX_LAYERS = 65536, MAX_KEPT_IDS = 1 << 26, MOST_CHOICES = 32 };

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

int cli_is_load(double v)
{
    return !(v < 0.0) && !(v > 9e15) && !(v > 0.0 && v < 1e-200) && !isnan(v);
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
    t.name = cli_clean(name);
    t.steps = (int32_t)steps;
    t.layers = (int32_t)layers;
    t.experts = (int32_t)experts;
    t.kept_steps = steps < CLI_KEPT_STEPS ? (int32_t)steps : CLI_KEPT_STEPS;
    t.step_loads = cli_alloc((size_t)(t.kept_steps * layers * experts), sizeof *t.step_loads);
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
        free(list[i].step_tokens);
        free(list[i].note);
    }
    arrfree(list);
}

int64_t cli_recorded_step(const cli_trace *t, int32_t top_k)
{
    double rows = 0.0;
    int64_t tokens;
    if (!t->step_tokens && (t->ids || t->steps < 2)) return 0;
    for (size_t i = 0; i < (size_t)t->layers * (size_t)t->experts; i++) rows += t->loads[i];
    tokens = t->step_tokens ? (t->tokens + t->steps / 2) / t->steps
                            : (int64_t)(rows / t->steps / t->layers / top_k + 0.5);
    return tokens < 1 ? 1 : tokens;
}

int64_t *cli_step_starts(const cli_trace *t)
{
    int64_t *start = NULL, at = 0;
    arrput(start, at);
    for (int32_t s = 0; at < t->kept; s++) {
        int64_t tokens = t->step_tokens ? t->step_tokens[s] : t->kept;
        at += tokens;
        if (tokens > 0) arrput(start, at);
    }
    return start;
}

/* Whether the ids of all kept steps are kept, too. */
static int kept_whole(const cli_trace *t)
{
    int64_t tokens = 0;
    for (int32_t s = 0; t->step_tokens && s < t->kept_steps; s++) tokens += t->step_tokens[s];
    return tokens == t->kept;
}

const char *cli_idle_steps(const cli_trace *t)
{
    if (t->idle == 0) return "";
    return cli_keep(cli_format("%s: %s of %s steps hold no tokens and are left out.", t->name,
                               cli_count((double)t->idle), cli_count((double)t->idle + t->steps)));
}

const char *cli_kept_ids(const cli_trace *t)
{
    const char *counted;
    if (!t->ids || t->kept >= t->tokens) return "";
    counted = cli_keep(cli_format("The first %s of %s tokens are counted", cli_count((double)t->kept),
                                  cli_count((double)t->tokens)));
    if (t->kept_steps < t->steps && kept_whole(t))
        return cli_keep(cli_format("%s, those of the first %d of %s steps: of the others the ids are not kept.",
                                   counted, t->kept_steps, cli_count(t->steps)));
    return cli_keep(cli_format("%s: the ids of the others are not kept, %s at most are.", counted,
                               cli_count(MAX_KEPT_IDS)));
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
                int above = buf[i] > 0;
                free(buf);
                cli_die(CLI_USAGE, "%s: %s = %s is no expert id (0.. or -1 for none)%s", path, place, value,
                        above ? "; for counts say --counts" : "");
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

/* Whether ids may be counts: of the first rows, those that name an expert, and those that name one twice.  A row of one
 * id alone, as layers without experts have it, is left out. */
typedef struct ids_test {
    int64_t rows, twice;
} ids_test;

static void test_ids(ids_test *test, const int32_t *ids, int64_t top_k)
{
    int twice = 0;
    if (test->rows >= 4096 || !cli_choices_differ(ids, top_k)) return;
    for (int64_t i = 1; i < top_k; i++)
        for (int64_t j = 0; j < i && !twice; j++) twice = ids[i] >= 0 && ids[i] == ids[j];
    test->rows++;
    test->twice += twice;
}

/* What speaks against ids, about a trace of them; NULL = nothing does. */
static char *say_doubt(const cli_trace *t, const ids_test *test)
{
    if (test->twice * 10 > test->rows)
        return cli_format("%s of the first %s rows name an expert twice, as no token does",
                          cli_count((double)test->twice), cli_count((double)test->rows));
    if (t->top_k > MOST_CHOICES) return cli_format("no router known takes so many experts");
    if (t->inferred && t->top_k > 0 && t->experts > 1024 && t->experts > t->tokens * t->top_k)
        return cli_format("a layer holds no more than %s ids", cli_count((double)t->tokens * t->top_k));
    return NULL;
}

/* Leaves when the ids are counts, else notes that they may be. */
static void doubt_ids(cli_trace *t, const cli_npy *a, const ids_test *test)
{
    char *doubt = say_doubt(t, test);
    if (!doubt) return;
    if (t->top_k > MOST_CHOICES && test->twice * 10 > test->rows)
        cli_die(CLI_USAGE, "%s: shape %s would mean top-%d, but %s: for counts say --counts", a->path, a->shape_text,
                t->top_k, cli_keep(doubt));
    t->note = cli_format("%s is read as ids, top-%d of %d experts, but %s: if these are counts, --counts says so.",
                         t->name, t->top_k, t->experts, doubt);
    free(doubt);
}

/* Where ids [first, first + n) of the file go: kept tokens into the trace; in which layers some token took two
 * different experts. */
static void keep_ids(cli_trace *t, const int32_t *ids, int64_t first, int64_t n, int layers_first, char *differ,
                     ids_test *test)
{
    int64_t K = t->top_k, row = first / K;
    for (int64_t i = 0; i < n; i += K, row++) {
        int64_t token = layers_first ? row % t->tokens : row / t->layers;
        int64_t layer = layers_first ? row / t->tokens : row % t->layers;
        if (!differ[layer]) differ[layer] = (char)cli_choices_differ(ids + i, K);
        test_ids(test, ids + i, K);
        if (token < t->kept)
            memcpy(t->ids + (token * t->layers + layer) * K, ids + i, (size_t)K * sizeof *ids);
    }
}

/* Servers write an array over all layers and leave that of a layer without experts as it was, one id top_k times: such
 * a layer has no loads.  Of top-1 it cannot be told. */
static void clear_alike(cli_trace *t, const char *differ)
{
    int64_t L = t->layers, E = t->experts, K = t->top_k, with = 0;
    for (int64_t l = 0; l < L; l++) {
        with += differ[l] || K < 2;
        if (differ[l] || K < 2) continue;
        memset(t->step_loads + l * E, 0, (size_t)E * sizeof *t->step_loads);
        for (int64_t i = 0; i < t->kept * K; i++) t->ids[(i / K * L + l) * K + i % K] = -1;
    }
    if (with == 0) cli_refuse_alike(t->path, K);
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
    char *differ = cli_alloc((size_t)t->layers, 1);
    ids_test test = {0, 0};
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
            free(differ);
            free(counts);
            free(buf);
            cli_die(CLI_USAGE, "%s: %s = %s, but there are %d experts (0..%d)%s", a->path,
                    id_place(a, done + err.index), value, t->experts, t->experts - 1,
                    K == t->experts || K > MOST_CHOICES ? "; for counts say --counts" : "");
        }
        t->skipped += skipped;
        for (int64_t i = 0; i < layers * t->experts; i++)
            t->step_loads[first * t->experts + i] += (double)counts[i];
        keep_ids(t, buf, done, part, layers_first, differ, &test);
        done += part;
        cli_progress("reading", (double)(a->count + done), 2.0 * (double)a->count);
    }
    clear_alike(t, differ);
    free(differ);
    free(counts);
    free(buf);
    doubt_ids(t, a, &test);
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
    t.unnumbered = t.layers;
    t.inferred = o->experts == 0;
    t.tokens = s.tokens;
    t.top_k = (int32_t)s.top_k;
    t.kept = MAX_KEPT_IDS / (s.layers * s.top_k);
    if (t.kept > s.tokens) t.kept = s.tokens;
    t.ids = cli_alloc((size_t)(t.kept * s.layers * s.top_k), sizeof *t.ids);
    count_ids(a, &t, o->layers_first);
    memcpy(t.loads, t.step_loads, (size_t)t.layers * (size_t)t.experts * sizeof *t.loads);
    cli_append(list, t, o);
}

/* Whether rows of numbers look like the weights of a token's choices: fractions that sum to 1. */
typedef struct weights_test {
    int64_t rows;
    int no, fractions;
} weights_test;

static void test_weights(weights_test *w, const double *row, int64_t choices)
{
    double sum = 0.0;
    w->rows++;
    if (w->no) return;
    for (int64_t j = 0; j < choices; j++) {
        if (!(row[j] >= 0.0 && row[j] <= 1.0)) w->no = 1;
        if (row[j] > 0.0 && row[j] < 1.0) w->fractions = 1;
        sum += row[j];
    }
    if (fabs(sum - 1.0) > 0.01) w->no = 1;
}

/* Row r of the file, r counted over steps and layers, into the trace; kept: the steps before it that hold loads.
 * Returns its load. */
static double add_counts(cli_trace *t, int64_t r, int64_t kept, const double *row)
{
    int64_t E = t->experts, step = r / t->layers, layer = r % t->layers;
    double load = 0.0;
    for (int64_t e = 0; e < E; e++) {
        if (!cli_is_load(row[e])) {
            char *where = cli_format("%s: counts[%lld, %lld, %lld]", t->path, (long long)step, (long long)layer,
                                     (long long)e);
            cli_check_load(row[e], where);
            free(where);
        }
        t->loads[layer * E + e] += row[e];
        load += row[e];
    }
    if (kept < t->kept_steps) memcpy(t->step_loads + (kept * t->layers + layer) * E, row, (size_t)E * sizeof *row);
    return load;
}

static void read_npy_counts(cli_trace **list, const char *path, cli_npy *a,
                            const cli_read_options *o)
{
    int64_t E, L, S, some, kept = 0;
    weights_test w = {0, 0, 0};
    double *row, load = 0.0;
    cli_trace t;
    if (a->ndim < 1 || a->ndim > 3)
        cli_die(CLI_USAGE,
                "%s: shape %s; counts are (experts), (layers, experts) or (steps, layers, experts)",
                path, a->shape_text);
    E = a->shape[a->ndim - 1];
    L = a->ndim >= 2 ? a->shape[a->ndim - 2] : 1;
    S = a->ndim == 3 ? a->shape[0] : 1;
    t = cli_new_trace(path, cli_short_name(path), S, L, E);
    t.unnumbered = t.layers;
    some = 65536 / E > 0 ? 65536 / E : 1;
    row = cli_alloc((size_t)(some * E), sizeof *row);
    for (int64_t r = 0; r < S * L; r++) {
        if (r % some == 0) cli_npy_read_double(a, row, (S * L - r < some ? S * L - r : some) * E);
        test_weights(&w, row + r % some * E, E);
        load += add_counts(&t, r, kept, row + r % some * E);
        if ((r + 1) % L != 0) continue;
        kept += load > 0.0; /* an empty step gives its place to the next */
        load = 0.0;
    }
    free(row);
    if (kept > 0) {
        t.idle = S - kept;
        t.steps = (int32_t)kept;
        if (kept < t.kept_steps) t.kept_steps = t.steps;
    }
    if (!o->as_counts && a->ndim == 3 && E <= 32 && w.rows >= 16 && !w.no && w.fractions)
        cli_die(CLI_USAGE,
                "%s: every row of shape %s sums to 1: these are routing weights, which say nothing of loads; "
                "give the ids and --weights with this file, or --counts if they are shares of the load",
                path, a->shape_text);
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
        cli_read_json(list, path, options);
    } else {
        cli_read_csv(list, path, f, options);
    }
    (void)fclose(f);
}

/* ---- making recordings comparable ---------------------------------------------------------------------- */

/* Rows of `had` numbers as rows of `has`, zeros behind; frees what it is given. */
static double *wider(double *rows, int64_t n, int32_t had, int32_t has)
{
    double *wide = cli_alloc((size_t)(n * has), sizeof *wide);
    for (int64_t r = 0; r < n; r++) memcpy(wide + r * has, rows + r * had, (size_t)had * sizeof *wide);
    free(rows);
    return wide;
}

static void widen(cli_trace *t, int32_t experts)
{
    if (t->experts == experts) return;
    t->step_loads = wider(t->step_loads, (int64_t)t->kept_steps * t->layers, t->experts, experts);
    t->loads = wider(t->loads, t->layers, t->experts, experts);
    t->experts = experts;
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
    for (size_t s = 0; s < (size_t)t->kept_steps; s++)
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
    memmove(t->loads + (size_t)l * E, t->loads + ((size_t)l + 1) * E, (L - (size_t)l - 1) * E * sizeof *t->loads);
    t->layers--;
}

static void put_range(FILE *f, int32_t from, int32_t to, int first)
{
    fprintf(f, first ? "%d" : ", %d", from);
    if (to > from) fprintf(f, to == from + 1 ? ", %d" : "-%d", to);
}

char *cli_read_align(cli_trace *list, int count, int drop)
{
    int32_t experts = 0, from = -2, to = -2;
    cli_text text;
    int first = 1;
    cli_text_open(&text);
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
            if (to >= 0) put_range(text.stream, from, to, first), first = 0;
            from = list[0].layer[l];
        }
        to = list[0].layer[l];
        for (int i = 0; i < count; i++) drop_layer(&list[i], l);
    }
    if (to >= 0) put_range(text.stream, from, to, first);
    cli_text_end(&text);
    if (list[0].layers == 0) cli_die(CLI_USAGE, "%s: every load is zero", list[0].path);
    return text.text;
}
