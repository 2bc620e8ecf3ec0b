/* cli_watch_read.c - following a file that grows, is truncated or replaced; its lines to steps
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_rows.h"
#include "cli_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 1 << 16, MOST_EXPERTS = 65536, MOST_LINE = 1 << 26 };
enum { COLUMN_IGNORED = -1, COLUMN_STEP = -2, COLUMN_LAYER = -3 };
enum { FROM_THE_END = 1 << 26 }; /* of a longer file only so many bytes are read */
enum { MOST_MODELS = 16 };      /* of a log                                      */
enum { MAGIC = 6 };              /* bytes that an .npy file begins with          */

/* ---- steps -------------------------------------------------------------------------------------------- */

static void free_step(cli_watch_step *s)
{
    for (ptrdiff_t i = 0; i < arrlen(s->row); i++) free(s->row[i].loads);
    arrfree(s->row);
}

void cli_watch_complete(cli_watch *w)
{
    double *devices = cli_alloc((size_t)w->devices, sizeof *devices), most = 0.0, rows = 0.0;
    cli_watch_match(w, &w->now);
    for (ptrdiff_t i = 0; i < arrlen(w->now.row); i++) {
        double top = 0.0;
        cli_watch_devices(w, &w->now.row[i], devices);
        for (int32_t d = 0; d < w->devices; d++) {
            rows += devices[d];
            top = devices[d] > top ? devices[d] : top;
        }
        most += top;
    }
    free(devices);
    w->begun = 0;
    if (!(rows > 0.0)) { /* an idle step tells nothing */
        free_step(&w->now);
        w->now.row = NULL;
        return;
    }
    w->history[w->seen++ % CLI_HISTORY] = most * w->devices / rows;
    w->last_step = w->now.step;
    arrput(w->steps, w->now);
    w->now.row = NULL;
    if (arrlen(w->steps) <= w->window) return;
    free_step(&w->steps[0]);
    arrdel(w->steps, 0);
}

/* Takes over the loads. */
static void add_row(cli_watch *w, int64_t step, int has_step, int32_t layer, int32_t n, double *loads)
{
    cli_watch_row row = {layer, n, loads};
    int again = 0;
    for (ptrdiff_t i = 0; i < arrlen(w->now.row); i++) again |= w->now.row[i].layer == layer;
    if (w->begun && ((has_step && step != w->now.step) || again)) cli_watch_complete(w);
    if (!w->begun) {
        w->now.step = has_step ? step : w->seen;
        w->begun = 1;
    }
    if (n > w->experts) w->experts = w->kind == CLI_WATCH_JSON && n > 4 && n % 4 ? n + 4 - n % 4 : n;
    arrput(w->now.row, row); /* of ids the last experts may not have been chosen yet */
}

static void complain(cli_watch *w, const char *what)
{
    w->bad++;
    free(w->complaint);
    w->complaint = cli_clean(cli_format("line %lld: %s", (long long)w->line, what));
}

/* ---- JSON lines --------------------------------------------------------------------------------------- */

/* Counts of the ids in `list`, [token][choice]; NULL when it is something else. */
static double *count_ids(cli_watch *w, json_t *list, int32_t *n)
{
    double *loads = NULL;
    json_t *token, *item;
    size_t t, k;
    int32_t top_k = w->top_k;
    int fine = json_is_array(list), differ = 0;
    json_array_foreach(list, t, token)
    {
        json_int_t first = -2;
        top_k = (int32_t)json_array_size(token);
        fine &= json_is_array(token);
        differ |= top_k < 2;
        json_array_foreach(token, k, item)
        {
            json_int_t e = json_is_integer(item) ? json_integer_value(item) : -2;
            if (k == 0) first = e;
            differ |= e != first;
            if (e < -1 || e >= MOST_EXPERTS) fine = 0;
            if (!fine || e < 0) continue;
            while (arrlen(loads) <= e) arrput(loads, 0.0);
            loads[e] += 1.0;
        }
    }
    if (!fine) {
        arrfree(loads);
        return NULL;
    }
    if (w->setup->top_k > 0 && top_k > 0 && top_k != w->setup->top_k)
        cli_die(CLI_USAGE, "%s:%lld: has ids of top-%d, --topk says %d", w->path, (long long)w->line, top_k,
                w->setup->top_k);
    w->top_k = top_k;
    *n = (int32_t)arrlen(loads);
    double *copy = cli_alloc((size_t)*n, sizeof *copy);
    if (*n > 0 && differ) memcpy(copy, loads, (size_t)*n * sizeof *copy); /* else a layer without experts */
    arrfree(loads);
    return copy;
}

static double *copy_counts(json_t *list, int32_t *n)
{
    double *loads;
    json_t *item;
    size_t i;
    if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > MOST_EXPERTS) return NULL;
    *n = (int32_t)json_array_size(list);
    loads = cli_alloc((size_t)*n, sizeof *loads);
    json_array_foreach(list, i, item)
    {
        loads[i] = json_is_number(item) ? json_number_value(item) : -1.0;
        if (loads[i] >= 0.0 && loads[i] <= 9e15) continue;
        free(loads);
        return NULL;
    }
    return loads;
}

static void json_line(cli_watch *w, const char *text)
{
    json_error_t e;
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &e), *ids, *step, *layer;
    double *loads = NULL;
    int32_t n = 0;
    if (!o) {
        complain(w, e.text);
        return;
    }
    ids = json_object_get(o, "ids");
    if (!ids) ids = json_object_get(o, "topk_ids");
    step = json_object_get(o, "step");
    layer = json_object_get(o, "layer");
    if ((step && !json_is_integer(step)) || (layer && !json_is_integer(layer)) || json_integer_value(layer) < 0 ||
        json_integer_value(layer) > INT32_MAX) {
        complain(w, "\"step\" or \"layer\" is no whole number");
    } else if (ids && json_object_get(o, "counts")) {
        complain(w, "both \"ids\" and \"counts\"");
    } else {
        loads = ids ? count_ids(w, ids, &n) : copy_counts(json_object_get(o, "counts"), &n);
        if (loads)
            add_row(w, json_integer_value(step), step != NULL, (int32_t)json_integer_value(layer), n, loads);
        else
            complain(w, "neither \"ids\": [[...]] nor \"counts\": [...]");
    }
    json_decref(o);
}

/* ---- CSV ---------------------------------------------------------------------------------------------- */

static char **split(const cli_watch *w, char *line)
{
    char **fields = NULL, stop[2] = {w->separator, '\0'};
    for (char *at = line; at;) {
        char *end, *next = strpbrk(at, stop);
        if (next) *next++ = '\0';
        at += strspn(at, " \t\"");
        end = at + strlen(at);
        while (end > at && strchr(" \t\"\r", end[-1])) *--end = '\0';
        arrput(fields, at);
        at = next;
    }
    return fields;
}

static void csv_header(cli_watch *w, char *line)
{
    char **fields;
    int experts = 0;
    w->separator = strchr(line, ',') ? ',' : strchr(line, ';') ? ';' : '\t';
    fields = split(w, line);
    arrsetlen(w->role, 0);
    for (ptrdiff_t i = 0; i < arrlen(fields); i++) {
        const char *name = fields[i];
        int64_t v;
        int role = strcasecmp(name, "step") == 0 || strcasecmp(name, "iteration") == 0 ? COLUMN_STEP
                   : strcasecmp(name, "layer") == 0                                    ? COLUMN_LAYER
                   : cli_parse_i64(name, &v) && v >= 0 && v < MOST_EXPERTS             ? (int)v
                                                                                       : COLUMN_IGNORED;
        experts += role >= 0;
        arrput(w->role, role);
    }
    arrfree(fields);
    if (experts == 0)
        cli_die(CLI_USAGE,
                "%s: the first line is no header with columns step, layer, 0, 1, ...; moe-ep watch reads "
                "that, JSON lines and vLLM's log",
                w->path);
}

static void csv_line(cli_watch *w, char *line)
{
    char **fields = split(w, line);
    double *loads = NULL;
    int64_t step = 0, layer = 0, v;
    int32_t n = 0;
    int fine = arrlen(fields) == arrlen(w->role), has_step = 0;
    for (ptrdiff_t i = 0; i < arrlen(w->role); i++) n = w->role[i] >= n ? w->role[i] + 1 : n;
    loads = cli_alloc((size_t)n, sizeof *loads);
    for (ptrdiff_t i = 0; fine && i < arrlen(fields); i++) {
        double x;
        if (w->role[i] == COLUMN_IGNORED) continue;
        if (w->role[i] >= 0) {
            fine = cli_parse_double(fields[i], &x) && x >= 0.0 && x <= 9e15;
            if (fine) loads[w->role[i]] = x;
            continue;
        }
        fine = cli_parse_i64(fields[i], &v) && v >= 0;
        if (w->role[i] == COLUMN_STEP)
            step = v, has_step = 1;
        else
            layer = v;
    }
    if (fine && layer <= INT32_MAX) {
        add_row(w, step, has_step, (int32_t)layer, n, loads);
    } else {
        complain(w,
                 arrlen(fields) == arrlen(w->role) ? "a field is no load" : "not as many fields as the header has");
        free(loads);
    }
    arrfree(fields);
}

/* ---- vLLM's log ----------------------------------------------------------------------------------------- */

static int log_number(const char *line, const char *key, double *out)
{
    const char *at = strstr(line, key);
    char *end;
    if (!at) return 0;
    at += strlen(key);
    *out = strtod(at, &end);
    return end > at && isfinite(*out);
}

/* The model that the line names, "" where it names none; more than MOST_MODELS are one. */
static cli_watch_model *model_of(cli_watch *w, const char *line)
{
    const char *from = strstr(line, " for model "), *to = from ? strstr(from, ": avg_tokens=") : NULL;
    ptrdiff_t at = 0, length = to ? to - from - 11 : 0;
    char *name = cli_format("%.*s", (int)(length < 200 ? length : 200), to ? from + 11 : "");
    (void)cli_clean(name);
    while (at < arrlen(w->model) && strcmp(w->model[at].name, name) != 0) at++;
    if (at == arrlen(w->model) && at < MOST_MODELS) {
        cli_watch_model fresh;
        memset(&fresh, 0, sizeof fresh);
        fresh.name = cli_strdup(name);
        arrput(w->model, fresh);
    }
    free(name);
    return &w->model[at < MOST_MODELS ? at : MOST_MODELS - 1];
}

/* "EPLB step: 960 for model NAME: avg_tokens=96.00, max_tokens=132, balancedness=0.7273": both sums over layers.  The
 * lines of one step for several models are one step, and add up: the models run one after the other. */
static int log_line(cli_watch *w, const char *line)
{
    double mean, most, step, all_mean = 0.0, all_most = 0.0;
    cli_watch_model *m;
    size_t at = (size_t)((w->seen + CLI_HISTORY - 1) % CLI_HISTORY);
    int known;
    if (!strstr(line, "EPLB step")) return 0;
    if (!log_number(line, "avg_tokens=", &mean) || !log_number(line, "max_tokens=", &most) || !cli_is_load(mean) ||
        !cli_is_load(most) || most < mean * (1.0 - 1e-9) - 1.0) {
        complain(w, "an EPLB line without avg_tokens and max_tokens");
        return 0;
    }
    if (!(mean > 0.0)) return 0; /* an idle step */
    m = model_of(w, line);
    known = log_number(line, "EPLB step: ", &step) && fabs(step) < 9e15;
    if (w->seen == 0 || !known || (int64_t)step != w->last_step || m->most[at] > 0.0) {
        at = (size_t)(w->seen++ % CLI_HISTORY);
        for (ptrdiff_t i = 0; i < arrlen(w->model); i++) w->model[i].mean[at] = w->model[i].most[at] = 0.0;
        w->last_step = known ? (int64_t)step : w->seen - 1;
    }
    m->mean[at] = mean;
    m->most[at] = most > mean ? most : mean;
    for (ptrdiff_t i = 0; i < arrlen(w->model); i++) {
        all_mean += w->model[i].mean[at];
        all_most += w->model[i].most[at];
    }
    w->history[at] = all_most / all_mean;
    return 1;
}

/* ---- lines ---------------------------------------------------------------------------------------------- */

void cli_watch_line(cli_watch *w, char *text)
{
    w->line++;
    if (w->line == 1 && strncmp(text, "\xef\xbb\xbf", 3) == 0) text += 3;
    text += strspn(text, " \t\r");
    if (*text == '\0' || *text == '#') return;
    if (w->kind == CLI_WATCH_UNKNOWN)
        w->kind = *text == '{'                                                                ? CLI_WATCH_JSON
                  : strstr(text, "EPLB step") || strstr(text, "INFO") || strstr(text, "WARN") ? CLI_WATCH_LOG
                  : cli_has_suffix(w->path, ".log")                                           ? CLI_WATCH_LOG
                                                                                              : CLI_WATCH_CSV;
    if (w->kind == CLI_WATCH_JSON)
        json_line(w, text);
    else if (w->kind == CLI_WATCH_LOG)
        (void)log_line(w, text);
    else if (!w->role)
        csv_header(w, text);
    else
        csv_line(w, text);
}

static void take(cli_watch *w, const char *bytes, ssize_t n)
{
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] != '\n') {
            if (arrlen(w->partial) < MOST_LINE) arrput(w->partial, bytes[i] ? bytes[i] : '?');
            continue;
        }
        arrput(w->partial, '\0');
        cli_watch_line(w, w->partial);
        arrsetlen(w->partial, 0);
    }
}

/* ---- the file --------------------------------------------------------------------------------------------- */

/* From the start of the file, or near its end when it is long; the header of a CSV is read in any case. */
static void open_file(cli_watch *w)
{
    struct stat info;
    char head[MAGIC];
    w->fd = open(w->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (w->fd < 0) return;
    if (fstat(w->fd, &info) != 0 || !S_ISREG(info.st_mode)) cli_die(CLI_USAGE, "%s: is no ordinary file", w->path);
    if (pread(w->fd, head, MAGIC, 0) == MAGIC && memcmp(head, "\x93NUMPY", MAGIC) == 0)
        cli_die(CLI_USAGE, "%s: is .npy, which has no lines to follow; moe-ep report reads it", w->path);
    w->device = info.st_dev;
    w->inode = info.st_ino;
    w->offset = 0;
    w->line = 0;
    w->kind = CLI_WATCH_UNKNOWN;
    arrsetlen(w->partial, 0);
    arrfree(w->role);
    if (info.st_size <= FROM_THE_END) return;
    while (w->line == 0) { /* what kind of file it is */
        char c;
        if (read(w->fd, &c, 1) != 1) break;
        take(w, &c, 1);
    }
    if (lseek(w->fd, info.st_size - FROM_THE_END, SEEK_SET) < 0) return;
    w->offset = info.st_size - FROM_THE_END;
    for (char c = 0; c != '\n' && read(w->fd, &c, 1) == 1;) w->offset++;
    w->news = "the file is long: began 64 MB before its end";
}

static int drain(cli_watch *w)
{
    char buf[CHUNK];
    int64_t before = w->seen + w->begun, bad = w->bad;
    ssize_t n;
    while (w->fd >= 0 && (n = read(w->fd, buf, sizeof buf)) > 0) {
        w->offset += n;
        take(w, buf, n);
    }
    return w->seen + w->begun != before || w->bad != bad;
}

int cli_watch_read(cli_watch *w)
{
    struct stat info;
    int changed;
    if (w->fd < 0) {
        w->news = NULL;
        open_file(w);
        if (w->fd < 0) {
            w->news = errno == ENOENT ? "the file is not there; waiting for it" : strerror(errno);
            return 0;
        }
    }
    changed = drain(w);
    if (stat(w->path, &info) != 0) {
        (void)close(w->fd);
        w->fd = -1;
        w->news = "the file is gone; waiting for a new one";
        return 1;
    }
    if (info.st_dev == w->device && info.st_ino == w->inode && info.st_size >= w->offset) return changed;
    w->news = info.st_ino != w->inode || info.st_dev != w->device ? "the file was replaced: reading the new one"
                                                                  : "the file was cut: reading it from its start";
    (void)close(w->fd);
    open_file(w);
    (void)drain(w);
    return 1;
}

/* How many layers the steps so far have. */
static ptrdiff_t usual_layers(const cli_watch *w)
{
    return arrlen(w->steps) > 0 ? arrlen(w->steps[arrlen(w->steps) - 1].row) : 1;
}

void cli_watch_finish(cli_watch *w)
{
    if (arrlen(w->partial) > 0) {
        int64_t bad = w->bad;
        char *complaint = w->complaint;
        w->complaint = NULL;
        arrput(w->partial, '\0');
        cli_watch_line(w, w->partial);
        w->bad = bad; /* half a line is no fault */
        free(w->complaint);
        w->complaint = complaint;
        arrsetlen(w->partial, 0);
    }
    if (w->begun && arrlen(w->now.row) >= usual_layers(w)) cli_watch_complete(w);
}

void cli_watch_close(cli_watch *w)
{
    if (w->fd >= 0) (void)close(w->fd);
    free_step(&w->now);
    for (ptrdiff_t i = 0; i < arrlen(w->steps); i++) free_step(&w->steps[i]);
    arrfree(w->steps);
    arrfree(w->partial);
    arrfree(w->role);
    free(w->complaint);
    arrfree(w->map_layer);
    free(w->map_row);
    free(w->map_words);
    for (ptrdiff_t i = 0; i < arrlen(w->model); i++) free(w->model[i].name);
    arrfree(w->model);
    free(w->device_rows);
    free(w->reason);
    free(w->cost.assumed);
}
