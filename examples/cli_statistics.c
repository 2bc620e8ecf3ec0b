/* cli_statistics.c - TensorRT-LLM's expert statistics: a folder with meta_info.json and rankN.safetensors
 * SPDX-License-Identifier: MIT
 *
 * A .safetensors file is eight bytes with the length of a JSON header, little endian, the header, and the data.  Here
 * a tensor "120_3" holds the counts of iteration 120, layer 3, one per expert. */
#define _GNU_SOURCE
#include "cli_rows.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_HEADER = 1 << 28, CHUNK = 4096 };
static const int64_t MOST_COUNT = INT64_C(1) << 50;

typedef struct counts_row {
    int64_t step, layer;
    double *count; /* stb_ds */
} counts_row;

typedef struct statistics {
    const char *path;        /* as named on the command line */
    counts_row *row;         /* stb_ds                        */
    int64_t *steps, *layers; /* stb_ds, sorted          */
    int64_t experts, top_k;  /* 0 = not said            */
    int ranks;
} statistics;

static char *join(const char *folder, const char *name)
{
    return cli_format("%s/%s", folder, name);
}

int cli_is_statistics(const char *path)
{
    struct stat info;
    char *meta;
    int yes;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) return 0;
    meta = join(path, "meta_info.json");
    yes = stat(meta, &info) == 0 && S_ISREG(info.st_mode);
    free(meta);
    return yes;
}

static int64_t meta_number(const char *path, json_t *root, const char *key)
{
    json_t *v = json_object_get(root, key);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > MAX_EXPERTS)
        cli_die(CLI_USAGE, "%s: \"%s\" is not a whole number from 1 to %d", path, key, MAX_EXPERTS);
    return json_integer_value(v);
}

static void read_meta(statistics *s)
{
    char *path = join(s->path, "meta_info.json");
    json_error_t e;
    FILE *f = cli_open_input(path);
    json_t *root = json_loadf(f, 0, &e);
    (void)fclose(f);
    if (!root) cli_die(CLI_USAGE, "%s:%d:%d: %s", path, e.line, e.column, cli_printable(e.text));
    s->experts = meta_number(path, root, "num_experts");
    s->top_k = meta_number(path, root, "num_experts_per_token");
    json_decref(root);
    free(path);
}

/* "120_3" -> iteration and layer. */
static void parse_key(const char *path, const char *key, int64_t *step, int64_t *layer)
{
    const char *bar = strchr(key, '_');
    char *first = bar ? strndup(key, (size_t)(bar - key)) : NULL;
    if (!first || !cli_parse_i64(first, step) || !cli_parse_i64(bar + 1, layer) || *step < 0 || *layer < 0 ||
        *layer > INT32_MAX)
        cli_die(CLI_USAGE, "%s: tensor \"%s\" is not named ITERATION_LAYER, as TensorRT-LLM's statistics are", path,
                cli_printable(key));
    free(first);
}

/* Element type and place of one tensor in the data; the shape must be (experts). */
static int64_t tensor_place(const char *path, const char *key, json_t *value, int64_t data, statistics *s, int *size)
{
    json_t *shape = json_object_get(value, "shape"), *offsets = json_object_get(value, "data_offsets");
    const char *type = json_string_value(json_object_get(value, "dtype"));
    int64_t n = json_integer_value(json_array_get(shape, 0)), from, to;
    *size = type && strcmp(type, "I64") == 0 ? 8 : type && strcmp(type, "I32") == 0 ? 4 : 0;
    if (*size == 0)
        cli_die(CLI_USAGE, "%s: tensor \"%s\" is of type %s; counts are I64 or I32", path, cli_printable(key),
                type ? cli_printable(type) : "?");
    if (json_array_size(shape) == 2)
        cli_die(CLI_USAGE,
                "%s: holds the ids of every token; the counts are in the file of the same name without _raw", path);
    if (json_array_size(shape) != 1 || n < 1 || n > MAX_EXPERTS)
        cli_die(CLI_USAGE, "%s: tensor \"%s\" is not one row of counts", path, cli_printable(key));
    if (s->experts == 0) s->experts = n;
    if (n != s->experts)
        cli_die(CLI_USAGE, "%s: tensor \"%s\" has %lld counts where there are %lld experts", path, cli_printable(key),
                (long long)n, (long long)s->experts);
    from = json_integer_value(json_array_get(offsets, 0));
    to = json_integer_value(json_array_get(offsets, 1));
    if (json_array_size(offsets) != 2 || from < 0 || from % *size != 0 || to > data || to - from != n * *size)
        cli_die(CLI_USAGE, "%s: tensor \"%s\" lies outside the file or between two numbers", path,
                cli_printable(key));
    return from;
}

static counts_row *row_of(statistics *s, int64_t step, int64_t layer)
{
    counts_row row = {step, layer, NULL};
    for (ptrdiff_t i = arrlen(s->row); i-- > 0;)
        if (s->row[i].step == step && s->row[i].layer == layer) return &s->row[i];
    for (int64_t e = 0; e < s->experts; e++) arrput(row.count, 0.0);
    arrput(s->row, row);
    (void)cli_add_sorted(&s->steps, step);
    (void)cli_add_sorted(&s->layers, layer);
    return &arrlast(s->row);
}

static int64_t little_endian(const unsigned char *p, int size)
{
    uint64_t v = 0;
    for (int i = size; i-- > 0;) v = v << 8 | p[i];
    return size == 4 ? (int64_t)(int32_t)(uint32_t)v : (int64_t)v;
}

/* The counts of one tensor, added to those of the other ranks. */
static void add_counts(const char *path, const char *key, FILE *f, int size, statistics *s, counts_row *row)
{
    unsigned char buf[CHUNK];
    for (int64_t done = 0; done < s->experts;) {
        int64_t part = s->experts - done < CHUNK / size ? s->experts - done : CHUNK / size;
        if (fread(buf, (size_t)size, (size_t)part, f) != (size_t)part) cli_die(CLI_USAGE, "%s: is truncated", path);
        for (int64_t i = 0; i < part; i++) {
            int64_t v = little_endian(buf + i * size, size);
            if (v < 0 || v > MOST_COUNT)
                cli_die(CLI_USAGE, "%s: tensor \"%s\"[%lld]: %lld is no count", path, cli_printable(key),
                        (long long)(done + i), (long long)v);
            row->count[done + i] += (double)v;
        }
        done += part;
    }
}

static json_t *read_header(const char *path, FILE *f, int64_t *start, int64_t *data)
{
    unsigned char length[8];
    int64_t n, total;
    char *text;
    json_error_t e;
    json_t *root;
    if (fseeko(f, 0, SEEK_END) != 0) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    total = (int64_t)ftello(f);
    rewind(f);
    if (fread(length, 1, 8, f) != 8) cli_die(CLI_USAGE, "%s: is truncated inside the header", path);
    n = little_endian(length, 8);
    if (n < 2 || n > MAX_HEADER || n > total - 8)
        cli_die(CLI_USAGE, "%s: does not begin like a .safetensors file, or is truncated", path);
    text = cli_alloc((size_t)n, 1);
    if (fread(text, 1, (size_t)n, f) != (size_t)n) cli_die(CLI_USAGE, "%s: is truncated inside the header", path);
    root = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &e);
    if (!json_is_object(root))
        cli_die(CLI_USAGE, "%s: the header is no JSON object: %s", path, cli_printable(e.text));
    free(text);
    *start = 8 + n;
    *data = total - *start;
    return root;
}

static void read_rank(statistics *s, const char *path)
{
    FILE *f = cli_open_input(path);
    int64_t start, data;
    json_t *root = read_header(path, f, &start, &data), *value;
    const char *key;
    json_object_foreach(root, key, value)
    {
        int64_t step = 0, layer = 0, at;
        int size;
        if (strcmp(key, "__metadata__") == 0) continue;
        parse_key(path, key, &step, &layer);
        at = tensor_place(path, key, value, data, s, &size);
        if (fseeko(f, (off_t)(start + at), SEEK_SET) != 0) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
        add_counts(path, key, f, size, s, row_of(s, step, layer));
    }
    json_decref(root);
    (void)fclose(f);
    s->ranks++;
}

static int is_rank(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return strncmp(d->d_name, "rank", 4) == 0 && n > 16 && strcmp(d->d_name + n - 12, ".safetensors") == 0 &&
           !strstr(d->d_name, "_raw.");
}

static void read_folder(statistics *s)
{
    struct dirent **name;
    int n = scandir(s->path, &name, is_rank, alphasort);
    if (n < 0) cli_die(CLI_USAGE, "%s: %s", s->path, strerror(errno));
    read_meta(s);
    for (int i = 0; i < n; i++) {
        char *path = join(s->path, name[i]->d_name);
        read_rank(s, path);
        free(path);
        free(name[i]);
        cli_progress("reading", i + 1.0, n);
    }
    free(name);
}

static char *folder_name(const char *path)
{
    char *copy = cli_strdup(path), *name;
    size_t n = strlen(copy);
    while (n > 1 && copy[n - 1] == '/') copy[--n] = '\0';
    name = cli_printable(basename(copy));
    free(copy);
    return name;
}

void cli_read_statistics(cli_trace **list, const char *path, const cli_read_options *o)
{
    statistics s;
    cli_trace t;
    int64_t rows;
    struct stat info;
    memset(&s, 0, sizeof s);
    s.path = path;
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        read_folder(&s);
    else
        read_rank(&s, path);
    if (arrlen(s.row) == 0) cli_die(CLI_USAGE, "%s: holds no loads (no rankN.safetensors with counts)", path);
    rows = arrlen(s.steps) * arrlen(s.layers);
    if (arrlen(s.row) != rows)
        cli_die(CLI_USAGE, "%s: %lld iterations of %lld layers, but %lld rows of counts: some are missing", path,
                (long long)arrlen(s.steps), (long long)arrlen(s.layers), (long long)arrlen(s.row));
    t = cli_new_trace(path, folder_name(path), arrlen(s.steps), arrlen(s.layers), s.experts);
    t.top_k = (int32_t)s.top_k;
    for (ptrdiff_t i = 0; i < arrlen(s.row); i++) {
        int64_t at = cli_index_of(s.steps, s.row[i].step) * arrlen(s.layers) + cli_index_of(s.layers, s.row[i].layer);
        memcpy(t.step_loads + at * s.experts, s.row[i].count, (size_t)s.experts * sizeof *t.step_loads);
        arrfree(s.row[i].count);
    }
    for (ptrdiff_t l = 0; l < arrlen(s.layers); l++) t.layer[l] = (int32_t)s.layers[l];
    cli_add_steps(&t);
    cli_append(list, t, o);
    arrfree(s.row);
    arrfree(s.steps);
    arrfree(s.layers);
}
