/* cli_rows.c - rows of loads, in any order, to recordings; only the first steps are kept one by one
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_rows.h"

#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_IDS = 1 << 26 }; /* that are held of a recording */

/* Steps at an equal distance, and their lines. */
typedef struct run {
    int64_t first, last, stride;
    int64_t line, pace; /* of the first step; lines from one to the next, 0 = they differ */
} run;

/* A step that came after a later one; the value is its line. */
typedef struct late_step {
    int64_t key, value;
} late_step;

/* The steps of a layer that came: runs hold any number of them in order. */
typedef struct step_set {
    run *runs;       /* stb_ds, ascending */
    late_step *late; /* stb_ds hash map   */
    int64_t count;
} step_set;

/* Everything of one layer. */
typedef struct layer_rows {
    int64_t key;
    double *sum;          /* (room), the sum over all steps                          */
    int64_t room, tokens; /* tokens: of all steps                                    */
    uint64_t mark;        /* the same in all layers when their steps have as many    */
    int differ;           /* 1: some token took two different experts                */
    int64_t source;       /* with adds: where the last row came from                 */
    step_set seen, of_source;
} layer_rows;

typedef struct row_key {
    int64_t step, layer;
} row_key;

/* A row of one of the first steps. */
typedef struct kept_row {
    row_key key;
    double *loads; /* (n) */
    int32_t *ids;  /* (tokens, top_k) or NULL */
    int64_t n, tokens;
} kept_row;

/* Everything of one label. */
typedef struct recording {
    char *label;
    int64_t experts, top_k;
    layer_rows *layer; /* stb_ds hash map                                          */
    kept_row *row;     /* stb_ds hash map; rows without loads are not kept         */
    int64_t *kept;     /* stb_ds, sorted: the first steps that hold loads          */
    step_set loaded;   /* all that do                                              */
    late_step *idle;   /* stb_ds hash map: tokens of those that do not, so far     */
    int64_t ids;       /* that are held                                            */
    int64_t skipped;   /* choices that were none                                   */
    int64_t ids_last;  /* of the steps behind this one none are held               */
    int64_t asked_step, asked_count; /* the last answer of cli_rows_count          */
} recording;

struct cli_rows {
    const char *path;
    const cli_read_options *options;
    cli_rows_kind kind;
    recording *list; /* stb_ds, in the order of the file */
    ptrdiff_t last;  /* the one used last                */
    int any;         /* a row came, whatever its label   */
    int stepped;     /* the ids came with their steps    */
};

/* ---- small things ----------------------------------------------------------------------------------------- */

int cli_same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

int cli_choices_differ(const int32_t *ids, int64_t top_k)
{
    for (int64_t k = 1; k < top_k; k++)
        if (ids[k] != ids[0]) return 1;
    return 0;
}

void cli_refuse_alike(const char *path, int64_t top_k)
{
    cli_die(CLI_USAGE, "%s: in every layer each token holds one id %lld times, as where there are no experts: no "
                       "routing was recorded", path, (long long)top_k);
}

/* ---- sets of steps ------------------------------------------------------------------------------------------ */

/* 1 = it is there; *line is where, 0 = not known. */
static int has_step(const step_set *set, int64_t step, int64_t *line)
{
    ptrdiff_t low = 0, high = arrlen(set->runs), at;
    late_step *late = set->late; /* looking up may make an empty map */
    *line = 0;
    while (low < high) {
        ptrdiff_t mid = low + (high - low) / 2;
        if (set->runs[mid].first <= step)
            low = mid + 1;
        else
            high = mid;
    }
    if (low > 0) {
        const run *r = &set->runs[low - 1];
        int64_t back = step - r->first;
        if (step <= r->last && (back == 0 || back % r->stride == 0)) {
            if (back == 0 || r->pace > 0) *line = r->line + (back == 0 ? 0 : back / r->stride * r->pace);
            return 1;
        }
    }
    if (!late) return 0;
    at = hmgeti(late, step);
    if (at >= 0) *line = late[at].value;
    return at >= 0;
}

/* A step that is not there yet. */
static void add_step(step_set *set, int64_t step, int64_t line)
{
    run *r = arrlen(set->runs) > 0 ? &arrlast(set->runs) : NULL;
    run fresh = {step, step, 0, line, 0};
    set->count++;
    if (r && step < r->last) {
        hmput(set->late, step, line);
    } else if (r && (r->stride == 0 || step - r->last == r->stride)) {
        int64_t pace = r->stride == 0 ? line - r->line : r->pace;
        if (r->stride == 0) r->stride = step - r->last;
        r->last = step;
        r->pace = line == r->line + (step - r->first) / r->stride * pace ? pace : 0;
    } else {
        arrput(set->runs, fresh);
    }
}

static void clear_steps(step_set *set)
{
    arrfree(set->runs);
    hmfree(set->late);
    set->count = 0;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* All of them in order, stb_ds. */
static int64_t *steps_of(const step_set *set)
{
    int64_t *list = NULL;
    for (ptrdiff_t i = 0; i < arrlen(set->runs); i++) {
        const run *r = &set->runs[i];
        for (int64_t step = r->first; step < r->last; step += r->stride) arrput(list, step);
        arrput(list, r->last);
    }
    for (ptrdiff_t i = 0; i < hmlen(set->late); i++) arrput(list, set->late[i].key);
    qsort(list, (size_t)arrlen(list), sizeof *list, ascending);
    return list;
}

/* Whether two layers have the same steps. */
static int same_steps(const step_set *a, const step_set *b)
{
    int64_t *x, *y;
    int same = a->count == b->count;
    int plain = !a->late && !b->late && arrlen(a->runs) == arrlen(b->runs);
    if (!same) return 0;
    for (ptrdiff_t i = 0; i < arrlen(a->runs) && plain; i++)
        plain = a->runs[i].first == b->runs[i].first && a->runs[i].last == b->runs[i].last &&
                a->runs[i].stride == b->runs[i].stride;
    if (plain) return 1;
    x = steps_of(a);
    y = steps_of(b);
    same = memcmp(x, y, (size_t)a->count * sizeof *x) == 0;
    arrfree(x);
    arrfree(y);
    return same;
}

/* A number that differs for every pair, for sums that do not depend on the order. */
static uint64_t mixed(int64_t step, int64_t tokens)
{
    uint64_t x = (uint64_t)step * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)tokens * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ x >> 29) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 32;
}

/* ---- adding ------------------------------------------------------------------------------------------------ */

cli_rows *cli_rows_new(const char *path, const cli_read_options *o, cli_rows_kind kind)
{
    cli_rows *r = cli_alloc(1, sizeof *r);
    r->path = path;
    r->options = o;
    r->kind = kind;
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
    fresh.ids_last = INT64_MAX;
    fresh.asked_step = -1;
    arrput(r->list, fresh);
    return &arrlast(r->list);
}

static void drop_ids(recording *q, int64_t step)
{
    for (ptrdiff_t i = 0; i < hmlen(q->layer); i++) {
        row_key key = {step, q->layer[i].key};
        ptrdiff_t at = hmgeti(q->row, key);
        if (at < 0 || !q->row[at].ids) continue;
        q->ids -= q->row[at].tokens * q->top_k;
        free(q->row[at].ids);
        q->row[at].ids = NULL;
    }
}

static void forget_step(recording *q, int64_t step)
{
    drop_ids(q, step);
    for (ptrdiff_t i = 0; i < hmlen(q->layer); i++) {
        row_key key = {step, q->layer[i].key};
        ptrdiff_t at = hmgeti(q->row, key);
        if (at < 0) continue;
        free(q->row[at].loads);
        (void)hmdel(q->row, key);
    }
}

/* Whether a step is among the first CLI_KEPT_STEPS; makes room for it. */
static int keep_step(recording *q, int64_t step)
{
    int64_t at = cli_rank(q->kept, arrlen(q->kept), step);
    if (at < arrlen(q->kept) && q->kept[at] == step) return 1;
    if (at >= CLI_KEPT_STEPS) return 0;
    if (arrlen(q->kept) == CLI_KEPT_STEPS) forget_step(q, arrpop(q->kept));
    arrins(q->kept, (size_t)at, step);
    return 1;
}

static layer_rows *layer_of(recording *q, int64_t layer, int64_t n)
{
    layer_rows *l;
    ptrdiff_t at = hmgeti(q->layer, layer);
    if (at < 0) {
        layer_rows fresh;
        memset(&fresh, 0, sizeof fresh);
        fresh.key = layer;
        hmputs(q->layer, fresh);
        at = hmgeti(q->layer, layer);
    }
    l = &q->layer[at];
    if (n > l->room) {
        double *wide = cli_alloc((size_t)n, sizeof *wide);
        if (l->room > 0) memcpy(wide, l->sum, (size_t)l->room * sizeof *wide);
        free(l->sum);
        l->sum = wide;
        l->room = n;
    }
    return l;
}

/* Leaves when the row was given before. */
static void note_row(const cli_rows *r, const recording *q, layer_rows *l, const cli_row *row)
{
    int64_t line, before;
    int known = has_step(&l->seen, row->step, &line);
    if (r->kind == CLI_ROWS_ADD) {
        if (l->source != row->line) clear_steps(&l->of_source);
        l->source = row->line;
        if (has_step(&l->of_source, row->step, &before))
            cli_die(CLI_USAGE, "%s: step %lld, layer %lld was already given", r->path, (long long)row->step,
                    (long long)row->layer);
        add_step(&l->of_source, row->step, 0);
    } else if (known) {
        cli_die(CLI_USAGE, "%s:%lld: layer %lld%s%s was already given%s", r->path, (long long)row->line,
                (long long)row->layer, *q->label ? " of " : "", q->label,
                line > 0 ? cli_keep(cli_format(" on line %lld", (long long)line))
                         : cli_keep(cli_format(" for step %lld", (long long)row->step)));
    }
    if (!known) add_step(&l->seen, row->step, row->line);
}

/* Ids are dropped from the last step on when there are too many. */
static void limit_ids(recording *q)
{
    for (ptrdiff_t i = arrlen(q->kept); i-- > 0 && q->ids > MOST_IDS;) {
        drop_ids(q, q->kept[i]);
        q->ids_last = q->kept[i] - 1; /* steps count from 0 */
    }
}

static void keep_row(recording *q, const cli_row *row)
{
    row_key key = {row->step, row->layer};
    ptrdiff_t at = hmgeti(q->row, key);
    if (at < 0) {
        kept_row fresh = {key, cli_alloc((size_t)row->n + 1, sizeof(double)), NULL, row->n, row->tokens};
        hmputs(q->row, fresh);
        at = hmgeti(q->row, key);
        if (row->ids && row->tokens > 0 && row->step <= q->ids_last) {
            q->row[at].ids = cli_alloc((size_t)(row->tokens * row->top_k), sizeof *row->ids);
            memcpy(q->row[at].ids, row->ids, (size_t)(row->tokens * row->top_k) * sizeof *row->ids);
            q->ids += row->tokens * row->top_k;
        }
    }
    for (int64_t e = 0; e < row->n; e++) q->row[at].loads[e] += row->loads[e];
    limit_ids(q);
}

/* Whether the row has a load; its step has one from then on. */
static int note_load(recording *q, const cli_row *row)
{
    int64_t e = 0, line;
    int known = has_step(&q->loaded, row->step, &line);
    while (e < row->n && !(row->loads[e] > 0.0)) e++;
    if (e == row->n) {
        if (!known && row->tokens > 0) hmput(q->idle, row->step, row->tokens);
        return 0;
    }
    if (known) return 1;
    add_step(&q->loaded, row->step, 0);
    if (q->idle) (void)hmdel(q->idle, row->step);
    return 1;
}

void cli_rows_add(cli_rows *r, const cli_row *row)
{
    recording *q = recording_of(r, row->label ? row->label : "");
    layer_rows *l;
    r->any = 1;
    if (!q) return;
    if (row->layer < 0 || row->layer > INT32_MAX)
        cli_die(CLI_USAGE, "%s: layer %lld is no layer number", r->path, (long long)row->layer);
    if (q->experts < 0 || (r->kind == CLI_ROWS_GROW && row->n > q->experts)) q->experts = row->n;
    if (row->n != q->experts && r->kind != CLI_ROWS_GROW)
        cli_die(CLI_USAGE, "%s:%lld: %lld loads where the rows before have %lld", r->path, (long long)row->line,
                (long long)row->n, (long long)q->experts);
    q->top_k = row->top_k;
    l = layer_of(q, row->layer, row->n);
    note_row(r, q, l, row);
    for (int64_t e = 0; e < row->n; e++) l->sum[e] += row->loads[e];
    for (int64_t i = 0; row->ids && i < row->tokens * row->top_k; i++) q->skipped += row->ids[i] < 0;
    for (int64_t i = 0; row->ids && i < row->tokens && !l->differ; i++)
        l->differ = cli_choices_differ(row->ids + i * row->top_k, row->top_k);
    l->tokens += row->tokens;
    l->mark += mixed(row->step, row->tokens);
    if (note_load(q, row) && keep_step(q, row->step)) keep_row(q, row);
}

int64_t cli_rows_count(cli_rows *r, const char *label, int64_t step)
{
    recording *q = recording_of(r, label);
    int64_t line;
    if (!q) return 0;
    if (q->asked_step != step) q->asked_count = 0;
    q->asked_step = step;
    for (ptrdiff_t at; (at = hmgeti(q->layer, q->asked_count)) >= 0; q->asked_count++)
        if (!has_step(&q->layer[at].seen, step, &line)) break;
    return q->asked_count;
}

int cli_rows_has(cli_rows *r, const cli_row *row)
{
    recording *q = recording_of(r, row->label ? row->label : "");
    ptrdiff_t at = q ? hmgeti(q->layer, row->layer) : -1;
    int64_t line;
    return at >= 0 && has_step(&q->layer[at].seen, row->step, &line);
}

/* ---- to recordings ----------------------------------------------------------------------------------------- */

/* The numbers of the layers in order, stb_ds. */
static int64_t *layers_of(const recording *q)
{
    int64_t *layers = NULL;
    for (ptrdiff_t i = 0; i < hmlen(q->layer); i++) arrput(layers, q->layer[i].key);
    qsort(layers, (size_t)arrlen(layers), sizeof *layers, ascending);
    return layers;
}

/* Leaves with the first row that is not there. */
static void name_missing(const cli_rows *r, recording *q, const int64_t *layers)
{
    int64_t line;
    for (ptrdiff_t l = 0; l < arrlen(layers); l++) {
        const step_set *has = &hmgetp(q->layer, layers[l])->seen;
        int64_t least = -1;
        for (ptrdiff_t k = 0; k < arrlen(layers); k++) {
            int64_t *steps = steps_of(&hmgetp(q->layer, layers[k])->seen);
            for (ptrdiff_t s = 0; s < arrlen(steps); s++)
                if ((least < 0 || steps[s] < least) && !has_step(has, steps[s], &line)) least = steps[s];
            arrfree(steps);
        }
        if (least >= 0)
            cli_die(CLI_USAGE, "%s: step %lld has no row for layer %lld", r->path, (long long)least,
                    (long long)layers[l]);
    }
}

static void check_steps(const cli_rows *r, recording *q, const int64_t *layers)
{
    const step_set *first = &hmgetp(q->layer, layers[0])->seen;
    for (ptrdiff_t l = 1; l < arrlen(layers); l++)
        if (!same_steps(first, &hmgetp(q->layer, layers[l])->seen)) name_missing(r, q, layers);
}

/* A row of one of the first steps; NULL = it has no loads. */
static const kept_row *row_of(recording *q, int64_t step, int64_t layer)
{
    row_key key = {step, layer};
    ptrdiff_t at = hmgeti(q->row, key);
    return at < 0 ? NULL : &q->row[at];
}

/* Tokens of one of the first steps: as many in all layers. */
static int64_t tokens_of(recording *q, int64_t step, const int64_t *layers)
{
    const kept_row *row = NULL;
    for (ptrdiff_t l = 0; l < arrlen(layers) && !row; l++) row = row_of(q, step, layers[l]);
    return row ? row->tokens : 0;
}

/* Whether the layer has experts: of ids, whether some token took two. */
static int has_experts(const recording *q, const layer_rows *l)
{
    return q->top_k < 2 || l->differ;
}

/* The ids that are held, step after step; -1 where a layer has none. */
static void ids_to_trace(cli_trace *t, recording *q, const int64_t *layers, int stepped)
{
    int64_t K = q->top_k, L = t->layers, first = 0, line;
    t->top_k = (int32_t)K;
    t->skipped = q->skipped;
    t->tokens = hmgetp(q->layer, layers[0])->tokens;
    for (ptrdiff_t i = 0; i < hmlen(q->idle); i++) {
        t->tokens -= q->idle[i].value;
        t->skipped -= q->idle[i].value * L * K;
    }
    if (stepped) t->step_tokens = cli_alloc((size_t)t->kept_steps, sizeof *t->step_tokens);
    for (int64_t s = 0; s < t->kept_steps && stepped; s++) t->step_tokens[s] = tokens_of(q, q->kept[s], layers);
    for (int64_t s = 0; s < t->kept_steps && q->kept[s] <= q->ids_last; s++)
        t->kept += tokens_of(q, q->kept[s], layers);
    if (t->kept == 0) return;
    t->ids = cli_alloc((size_t)(t->kept * L * K), sizeof *t->ids);
    for (int64_t s = 0; s < t->kept_steps && q->kept[s] <= q->ids_last; s++) {
        int64_t tokens = tokens_of(q, q->kept[s], layers);
        for (int64_t l = 0; l < L; l++) {
            const kept_row *row = row_of(q, q->kept[s], layers[l]);
            if (!has_experts(q, hmgetp(q->layer, layers[l]))) row = NULL;
            for (line = 0; line < tokens * K; line++)
                t->ids[((first + line / K) * L + l) * K + line % K] = row ? row->ids[line] : -1;
        }
        first += tokens;
    }
}

static void to_trace(cli_trace **list, cli_rows *r, recording *q, int64_t E)
{
    int64_t *layers = layers_of(q), L = arrlen(layers), all = hmgetp(q->layer, layers[0])->seen.count, with = 0;
    int64_t steps = q->loaded.count > 0 ? q->loaded.count : all;
    cli_trace t;
    check_steps(r, q, layers);
    t = cli_new_trace(r->path, *q->label ? cli_printable(q->label) : cli_short_name(r->path), steps, L, E);
    t.idle = all - steps;
    for (int64_t l = 0; l < L; l++) {
        const layer_rows *from = hmgetp(q->layer, layers[l]);
        t.layer[l] = (int32_t)layers[l];
        with += has_experts(q, from);
        if (!has_experts(q, from)) continue;
        if (from->room > 0) /* a layer whose rows are all empty has none */
            memcpy(t.loads + l * E, from->sum, (size_t)(from->room < E ? from->room : E) * sizeof *t.loads);
        for (int64_t s = 0; s < arrlen(q->kept); s++) {
            const kept_row *row = row_of(q, q->kept[s], layers[l]);
            if (row) memcpy(t.step_loads + (s * L + l) * E, row->loads, (size_t)row->n * sizeof *t.step_loads);
        }
    }
    if (q->top_k > 0 && q->loaded.count == 0) cli_die(CLI_USAGE, "%s: holds no loads", r->path);
    if (with == 0) cli_refuse_alike(r->path, q->top_k);
    if (q->top_k > 0) ids_to_trace(&t, q, layers, r->stepped);
    t.inferred = r->kind == CLI_ROWS_GROW && r->options->experts == 0;
    arrfree(layers);
    cli_append(list, t, r->options);
}

static void free_recording(recording *q)
{
    for (ptrdiff_t i = 0; i < hmlen(q->layer); i++) {
        free(q->layer[i].sum);
        clear_steps(&q->layer[i].seen);
        clear_steps(&q->layer[i].of_source);
    }
    for (ptrdiff_t i = 0; i < hmlen(q->row); i++) {
        free(q->row[i].loads);
        free(q->row[i].ids);
    }
    hmfree(q->layer);
    hmfree(q->row);
    hmfree(q->idle);
    clear_steps(&q->loaded);
    arrfree(q->kept);
    free(q->label);
}

int cli_rows_even(cli_rows *r)
{
    for (ptrdiff_t i = 0; i < arrlen(r->list); i++)
        for (ptrdiff_t l = 1; l < hmlen(r->list[i].layer); l++)
            if (same_steps(&r->list[i].layer[0].seen, &r->list[i].layer[l].seen) &&
                r->list[i].layer[l].mark != r->list[i].layer[0].mark)
                return 0;
    return 1;
}

void cli_rows_stepped(cli_rows *r)
{
    r->stepped = 1;
}

void cli_rows_free(cli_rows *r)
{
    for (ptrdiff_t i = 0; i < arrlen(r->list); i++) free_recording(&r->list[i]);
    arrfree(r->list);
    free(r);
}

/* Experts of a recording of ids: what --experts says, else the largest id, a few more when that is an odd number. */
static int64_t experts_of(const cli_rows *r, const recording *q)
{
    int64_t experts = q->experts;
    if (q->top_k == 0 && r->kind == CLI_ROWS_GROW && r->options->experts > experts) return r->options->experts;
    if (q->top_k == 0) return experts;
    if (r->options->experts > 0) return r->options->experts;
    return experts > 4 && experts % 4 != 0 ? experts + 4 - experts % 4 : experts;
}

void cli_rows_end(cli_rows *r, cli_trace **list)
{
    if (!r->any) cli_die(CLI_USAGE, "%s: holds no loads", r->path);
    if (arrlen(r->list) == 0)
        cli_die(CLI_USAGE, "%s: no recording has a label with \"%s\"", r->path, r->options->only);
    for (ptrdiff_t i = 0; i < arrlen(r->list); i++) to_trace(list, r, &r->list[i], experts_of(r, &r->list[i]));
    cli_rows_free(r);
}
