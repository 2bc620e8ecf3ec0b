/* cli_statistics.c - TensorRT-LLM's expert statistics: a folder with meta_info.json and rankN.safetensors
 * SPDX-License-Identifier: MIT
 *
 * A .safetensors file is eight bytes with the length of a JSON header, little endian, the header, and the data.  Here
 * a tensor "120_3" holds the counts of iteration 120, layer 3, one per expert. */
#define _GNU_SOURCE
#include "cli_rows.h"
#include "cli_stream.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { CHUNK = 4096 };
static const int64_t MOST_COUNT = INT64_C(1) << 50;

typedef struct statistics {
    const char *path;        /* as named on the command line */
    cli_rows *rows;
    double *row;             /* (experts), of one tensor     */
    int64_t experts, top_k;  /* 0 = not said                 */
    int64_t ranks, tensors;
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
        cli_die(CLI_USAGE, "%s: \"%s\" is not a whole number from 1 to %d: %s", path, key, MAX_EXPERTS,
                cli_json_shown(v));
    return json_integer_value(v);
}

static void read_meta(statistics *s, const char *folder)
{
    char *path = join(folder, "meta_info.json");
    json_error_t e;
    FILE *f = cli_open_input(path);
    json_t *root = json_loadf(f, JSON_REJECT_DUPLICATES, &e);
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
    char *first = bar ? cli_format("%.*s", (int)(bar - key), key) : NULL;
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

static int64_t little_endian(const unsigned char *p, int size)
{
    uint64_t v = 0;
    for (int i = size; i-- > 0;) v = v << 8 | p[i];
    return size == 4 ? (int64_t)(int32_t)(uint32_t)v : (int64_t)v;
}

/* The counts of one tensor. */
static void read_counts(const char *path, const char *key, FILE *f, int size, statistics *s)
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
            s->row[done + i] = (double)v;
        }
        done += part;
    }
}

/* The stream stands before the header; *start and *data are where the tensors begin, and their bytes. */
static void open_header(const char *path, FILE *f, cli_stream *header, int64_t *start, int64_t *data)
{
    unsigned char length[8];
    int64_t n, total;
    if (fseeko(f, 0, SEEK_END) != 0) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    total = (int64_t)ftello(f);
    rewind(f);
    if (fread(length, 1, 8, f) != 8) cli_die(CLI_USAGE, "%s: is truncated inside the header", path);
    n = little_endian(length, 8);
    if (n < 2 || n > total - 8)
        cli_die(CLI_USAGE, "%s: does not begin like a .safetensors file, or is truncated", path);
    cli_stream_open(header, path, f, n);
    *start = 8 + n;
    *data = total - *start;
}

static void read_tensor(statistics *s, const char *path, const char *key, json_t *value, FILE *f, int64_t start,
                        int64_t data)
{
    cli_row row = {NULL, 0, 0, s->ranks, NULL, 0, NULL, 0, 0};
    int64_t at;
    int size;
    parse_key(path, key, &row.step, &row.layer);
    at = tensor_place(path, key, value, data, s, &size);
    if (!s->row) s->row = cli_alloc((size_t)s->experts, sizeof *s->row);
    if (fseeko(f, (off_t)(start + at), SEEK_SET) != 0) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    read_counts(path, key, f, size, s);
    row.loads = s->row;
    row.n = s->experts;
    cli_rows_add(s->rows, &row);
    s->tensors++;
}

/* The header and the tensors side by side: neither is held in memory. */
static void read_rank(statistics *s, const char *path)
{
    FILE *f = cli_open_input(path), *tensors = cli_open_input(path);
    cli_stream *header = cli_alloc(1, sizeof *header);
    int64_t start, data;
    int first = 1;
    s->ranks++;
    open_header(path, f, header, &start, &data);
    cli_stream_take(header, '{');
    while (cli_stream_more(header, '}', &first)) {
        char *key = cli_stream_key(header);
        json_t *value = cli_stream_value(header, 0);
        if (strcmp(key, "__metadata__") != 0) read_tensor(s, path, key, value, tensors, start, data);
        json_decref(value);
        free(key);
    }
    cli_stream_done(header);
    cli_stream_close(header);
    free(header);
    (void)fclose(tensors);
    (void)fclose(f);
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
    if (n < 0) cli_die(cli_errno_code(), "%s: %s", s->path, strerror(errno));
    read_meta(s, s->path);
    for (int i = 0; i < n; i++) {
        char *path = join(s->path, name[i]->d_name);
        read_rank(s, path);
        free(path);
        free(name[i]);
        cli_progress("reading", i + 1.0, n);
    }
    free(name);
}

/* One file of the folder says as much about the model as the folder does. */
static void read_single(statistics *s)
{
    char *copy = cli_strdup(s->path), *folder = dirname(copy), *meta = join(folder, "meta_info.json");
    struct stat info;
    if (stat(meta, &info) == 0 && S_ISREG(info.st_mode)) read_meta(s, folder);
    free(meta);
    free(copy);
    read_rank(s, s->path);
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
    cli_read_options plain = *o;
    struct stat info;
    char *name = folder_name(path);
    memset(&s, 0, sizeof s);
    plain.only = NULL; /* the recordings of this format have no labels */
    s.path = path;
    s.rows = cli_rows_new(path, &plain, CLI_ROWS_ADD);
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        read_folder(&s);
    else
        read_single(&s);
    if (s.tensors == 0) cli_die(CLI_USAGE, "%s: holds no loads (no rankN.safetensors with counts)", path);
    cli_rows_end(s.rows, list);
    free(arrlast(*list).name);
    arrlast(*list).name = name;
    arrlast(*list).top_k = (int32_t)s.top_k;
    free(s.row);
}
