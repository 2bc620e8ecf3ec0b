/* tests/fuzz/fuzz_readers.c - the readers of the tool: .npy, CSV, JSON, JSON lines, YAML, safetensors, maps
 * SPDX-License-Identifier: MIT
 *
 * The tool's own objects run inside this process.  The linker sends their malloc, exit and messages here
 * (-Wl,--wrap, see fuzz.sh): leaving becomes a longjmp, what was not freed by then is freed here, and a
 * message must be printable whatever the file held. */
#include <fcntl.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fuzz.h"

#include "cli_map.h"
#include "cli_read.h"

#include <jansson.h>
#include <stb_ds.h>

static jmp_buf readers_left;
static int readers_inside;

/* ---- memory and files of the tool ----------------------------------------------------------------------- */

enum { READERS_BLOCKS = 1 << 16, READERS_FILES = 16 };
static void *readers_block[READERS_BLOCKS];
static FILE *readers_file[READERS_FILES];

void *__real_malloc(size_t);
void *__real_realloc(void *, size_t);
void __real_free(void *);
FILE *__real_fopen(const char *, const char *);
int __real_fclose(FILE *);
ssize_t __real_getline(char **, size_t *, FILE *);
void __real_exit(int) __attribute__((noreturn));

static int readers_count;

static void readers_keep(void *p)
{
    if (!p || !readers_inside) return;
    if (readers_count == READERS_BLOCKS) fz_fail("more than %d blocks of memory", READERS_BLOCKS);
    readers_block[readers_count++] = p;
}

static void readers_drop(const void *p)
{
    int i;
    for (i = readers_count - 1; i >= 0 && p; i--)
        if (readers_block[i] == p) {
            readers_block[i] = readers_block[--readers_count];
            return;
        }
}

void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
    void *p = n > (size_t)1 << 28 ? NULL : __real_malloc(n ? n : 1); /* as on a machine with 256 MB */
    readers_keep(p);
    return p;
}
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    void *p = size && n > ((size_t)1 << 28) / size ? NULL : __wrap_malloc(n * size);
    if (p) memset(p, 0, n * size);
    return p;
}
void __wrap_free(void *p);
void __wrap_free(void *p)
{
    readers_drop(p);
    __real_free(p);
}
void *__wrap_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n)
{
    void *q;
    if (n > (size_t)1 << 28) return NULL;
    readers_drop(p);
    q = __real_realloc(p, n ? n : 1);
    readers_keep(q ? q : p);
    return q;
}
char *__wrap_strdup(const char *s);
char *__wrap_strdup(const char *s)
{
    char *copy = (char *)__wrap_malloc(strlen(s) + 1);
    return copy ? strcpy(copy, s) : NULL;
}
int __wrap_vasprintf(char **text, const char *format, va_list args);
int __wrap_vasprintf(char **text, const char *format, va_list args)
{
    va_list again;
    int n;
    va_copy(again, args);
    n = vsnprintf(NULL, 0, format, again);
    va_end(again);
    *text = (char *)__wrap_malloc((size_t)n + 1);
    return *text ? vsnprintf(*text, (size_t)n + 1, format, args) : -1;
}
ssize_t __wrap_getline(char **line, size_t *size, FILE *f);
ssize_t __wrap_getline(char **line, size_t *size, FILE *f)
{
    char *before = *line;
    ssize_t n = __real_getline(line, size, f);
    if (*line != before) {
        readers_drop(before);
        readers_keep(*line);
    }
    return n;
}
FILE *__wrap_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode)
{
    FILE *f = __real_fopen(path, mode);
    int i;
    for (i = 0; i < READERS_FILES && readers_file[i]; i++) {}
    if (i == READERS_FILES) fz_fail("more than %d files are open", READERS_FILES);
    readers_file[i] = f;
    return f;
}
int __wrap_fclose(FILE *f);
int __wrap_fclose(FILE *f)
{
    int i;
    for (i = 0; i < READERS_FILES; i++)
        if (readers_file[i] == f) readers_file[i] = NULL;
    return __real_fclose(f);
}
char *__wrap_cli_keep(char *text);
char *__wrap_cli_keep(char *text) { return text; } /* the tool frees it at exit; here after the case */

/* ---- leaving --------------------------------------------------------------------------------------------- */

void __wrap_exit(int code) __attribute__((noreturn));
void __wrap_exit(int code)
{
    if (!readers_inside) __real_exit(code);
    longjmp(readers_left, 1 + code);
}
void __wrap_cli_die(int code, const char *format, ...) __attribute__((noreturn));
void __wrap_cli_die(int code, const char *format, ...)
{
    char text[4096];
    size_t i;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (i = 0; text[i]; i++)
        if (((unsigned char)text[i] < 32 && text[i] != '\n') || text[i] == 127)
            fz_fail("the message has a control character, %d at %zu", text[i], i);
    if (code != CLI_USAGE && !strstr(text, "memory")) fz_fail("exit code %d: %s", code, text);
    longjmp(readers_left, 1 + code);
}

/* ---- files ----------------------------------------------------------------------------------------------- */

static char *readers_text;
static size_t readers_bytes, readers_room;

static void put(const void *p, size_t n)
{
    if (readers_bytes + n > readers_room) {
        readers_room = 2 * (readers_bytes + n) + 4096;
        readers_text = (char *)realloc(readers_text, readers_room);
        if (!readers_text) abort();
    }
    memcpy(readers_text + readers_bytes, p, n);
    readers_bytes += n;
}

__attribute__((format(printf, 1, 2))) static void print(const char *format, ...)
{
    char line[400];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    put(line, strlen(line));
}

static const char *number(void)
{
    static char text[8][40];
    static int turn;
    static const char *const odd[] = {"-1", "1e400", "-0", "1e-400", "nan", "inf", "9223372036854775808", "0x10", "",
                                      "2147483648", "null", "1.5", "\"7\"", "true", "[1]", "65537", " 3 ", "1e18"};
    char *t = text[turn++ % 8];
    if (fz_chance(.02)) return odd[fz_int(0, (int)(sizeof odd / sizeof odd[0]) - 1)];
    snprintf(t, 40, "%d", fz_int(0, fz_chance(.9) ? 15 : 40000));
    return t;
}

static void make_npy(void)
{
    static const char *const types[] = {"<i4", "<i8", "<u2", "|u1", "<f4", "<f8", ">i4", "<f2", "|b1", "|i1", "<u8",
                                        ">f8", "<c8", "|O", "<i3", "=i4", "<U4", ""};
    char header[300];
    int dims = fz_int(0, fz_chance(.9) ? 3 : 9), i, n, version = fz_chance(.95) ? fz_int(1, 2) : fz_int(0, 255);
    int64_t count = 1;
    const char *type = types[fz_chance(.8) ? fz_int(0, 9) : fz_int(0, 17)];
    n = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': %s, 'shape': (", type,
                 fz_chance(.95) ? "False" : "True");
    for (i = 0; i < dims; i++) {
        int d = fz_int(0, 6);
        if (fz_chance(.02)) n += snprintf(header + n, sizeof header - (size_t)n, "%lld, ", (long long)fz_bad_i64());
        else n += snprintf(header + n, sizeof header - (size_t)n, "%d, ", d);
        count *= d;
    }
    n += snprintf(header + n, sizeof header - (size_t)n, "), }\n");
    put("\x93NUMPY", 6);
    put(&version, 1);
    i = 0;
    put(&i, 1);
    if (fz_chance(.02)) n = fz_int(0, 65535);
    put(&n, version == 1 ? 2 : 4);
    put(header, n < (int)sizeof header ? (size_t)n : sizeof header);
    for (i = 0; i < count + fz_int(-1, 1) * fz_chance(.05); i++) {
        int64_t v = fz_chance(.01) ? fz_bad_i64() : fz_int(-1, 7);
        double d = fz_chance(.02) ? fz_bad_double() : (double)fz_int(0, 99);
        float f = (float)d;
        int size = type[0] && type[1] && type[2] >= '1' && type[2] <= '8' ? type[2] - '0' : 4;
        if (type[0] && type[1] == 'f') put(size == 8 ? (void *)&d : (void *)&f, (size_t)size < 4 ? 4 : (size_t)size);
        else put(&v, (size_t)size);
    }
}

static void make_csv(void)
{
    static const char *const names[] = {"layer", "step", "expert", "tokens", "0", "1", "2", "3", "expert_4", "label",
                                        "trace", "load", "count", "\"layer\"", "", "e1", "slot", "device"};
    static const char *const ends[] = {"\n", "\n", "\n", "\r\n", "\r", "", "\n\n", "\n#x\n"};
    char separator = ",;\t "[fz_chance(.8) ? 0 : fz_int(0, 3)];
    int columns = fz_int(1, 7), lines = fz_int(0, 12), i, j, shape = fz_int(0, 2);
    if (shape == 0) print("layer,expert,tokens"), columns = 3, separator = ',';
    else if (shape == 1)
        for (print("layer"), j = 0; j < columns; j++) print("%c%d", separator, j);
    else
        for (j = 0; j < columns; j++) print("%s%.*s", names[fz_int(0, 17)], j + 1 < columns, &separator);
    print("%s", ends[fz_int(0, 7)]);
    for (i = 0; i < lines; i++) {
        for (j = 0; j < columns + (shape == 1); j++) {
            if (j == 0 && shape < 2 && fz_chance(.9)) print("%d", shape == 1 ? i : i / 4);
            else if (j == 1 && shape == 0 && fz_chance(.9)) print("%d", i % 4);
            else print("%s", number());
            if (j + 1 < columns + (shape == 1)) put(&separator, 1);
        }
        print("%s", ends[fz_chance(.95) ? 0 : fz_int(0, 7)]);
    }
}

/* A JSON value with the keys the readers look for, a few levels deep. */
static void make_value(int depth)
{
    static const char *const keys[] = {"layers", "experts", "num_experts", "top_k", "layer", "step", "topk_ids", "ids",
                                       "physical_to_logical_map", "logical_count", "data", "counts", "loads", "token",
                                       "0", "1", "tokens", "meta_info", "shape", "dtype", "data_offsets", "F32",
                                       "moe_layers", "device_list", "layer_list", "moe_layer_count", "device_expert"};
    int n = fz_int(0, 4), i, kind = depth <= 0 ? 2 : fz_int(0, 2);
    if (kind == 2) print("%s", number());
    else {
        print("%c", kind ? '[' : '{');
        for (i = 0; i < n; i++) {
            if (!kind) print("\"%s\": ", keys[fz_int(0, (int)(sizeof keys / sizeof keys[0]) - 1)]);
            make_value(depth - 1);
            if (i + 1 < n) print(", ");
        }
        print("%c", kind ? ']' : '}');
    }
}

static void make_matrix(void)
{
    int steps = fz_int(1, 2), layers = fz_int(1, 3), experts = fz_int(1, 6), i, j, k, three = fz_int(0, 1);
    static const char *const heads[] = {"", "{\"logical_count\": ", "{\"physical_to_logical_map\": ", "{\"loads\": ",
                                        "{\"counts\": "};
    int head = fz_int(0, 4);
    print("%s[", heads[head]);
    for (i = 0; i < (three ? steps : 1); i++) {
        if (three) print("%s[", i ? "," : "");
        for (j = 0; j < layers; j++) {
            print("%s[", j ? "," : "");
            for (k = 0; k < experts + fz_int(0, 1) * fz_chance(.02); k++) print("%s%s", k ? "," : "", number());
            print("]");
        }
        if (three) print("]");
    }
    print("]%s\n", head ? "}" : "");
}

static void make_lines(void)
{
    int lines = fz_int(0, 8), k = fz_int(1, 3), i, j;
    for (i = 0; i < lines; i++) {
        print("{\"layer\": %d, \"%s\": %d, \"%s\": [", i % 2, fz_chance(.9) ? "token" : "step", i / 2,
              fz_chance(.9) ? "ids" : fz_chance(.5) ? "topk_ids" : "loads");
        for (j = 0; j < k; j++) print("%s%s", j ? "," : "", number());
        print("]}\n");
    }
}

static void make_yaml(void)
{
    int layers = fz_int(0, 3), experts = fz_int(1, 5), i, j;
    print("%s", fz_chance(.9) ? "initial_global_assignments:\n" : "moe:\n  x: 1\n");
    for (i = 0; i < layers; i++) {
        print("  %s: [", fz_chance(.9) ? (i == 0 ? "0" : i == 1 ? "1" : "2") : number());
        for (j = 0; j < experts; j++) print("%s%s", j ? ", " : "", number());
        print("]\n");
    }
    if (fz_chance(.7)) print("num_slots: %s\nlayer_updates_per_iter: 0\n", number());
}

static void make_tensors(void)
{
    uint64_t length;
    size_t at;
    put("\0\0\0\0\0\0\0\0", 8);
    at = readers_bytes;
    if (fz_chance(.3)) make_value(3);
    else
        print("{\"0_%s\":{\"dtype\":\"%s\",\"shape\":[%s,%s],\"data_offsets\":[0,%s]}}", number(),
              fz_chance(.8) ? "I32" : "F32", number(), number(), number());
    length = fz_chance(.95) ? readers_bytes - at : fz_u64() >> fz_int(0, 63);
    memcpy(readers_text, &length, 8);
    for (at = 0; at < (size_t)fz_int(0, 60); at++) put(&length, 1);
}

/* Turns a few bytes, cuts the end off, or adds to it. */
static void damage(void)
{
    int n = fz_chance(.6) ? 0 : fz_int(1, 4);
    while (n-- > 0 && readers_bytes > 0) readers_text[fz_u64() % readers_bytes] = (char)fz_bits(1);
    if (fz_chance(.1) && readers_bytes > 0) readers_bytes = fz_u64() % readers_bytes;
    if (fz_chance(.02) && readers_bytes > 0) put("\n{}[],:\"0", 9);
}

static const char *const readers_name[] = {"t.npy", "t.csv", "t.json", "t.jsonl", "t.yaml", "t.safetensors", "t"};

/* The folder with links of every ending to one file in memory; made once. */
static const char *readers_path(int which)
{
    static char folder[64], path[7][128];
    static int fd = -1;
    char target[64];
    int i;
    if (fd < 0) {
        const char *base = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%.40s/fuzz.XXXXXX", base ? base : "/tmp");
        json_set_alloc_funcs(__wrap_malloc, __wrap_free);
        json_object_seed(1);
        fd = memfd_create("fuzz", 0);
        if (fd < 0 || !mkdtemp(folder)) abort();
        snprintf(target, sizeof target, "/proc/%d/fd/%d", (int)getpid(), fd);
        for (i = 0; i < 7; i++) {
            snprintf(path[i], sizeof path[i], "%s/%s", folder, readers_name[i]);
            if (symlink(target, path[i]) != 0) abort();
        }
    }
    if (ftruncate(fd, 0) != 0 || pwrite(fd, readers_text, readers_bytes, 0) != (ssize_t)readers_bytes) abort();
    return path[which];
}

/* What a recording that was accepted must be. */
static void check_trace(const cli_trace *t)
{
    int64_t n = (int64_t)t->layers * t->experts, i;
    int32_t s;
    if (t->layers < 1 || t->experts < 1 || t->steps < 1 || t->tokens < 0 || t->kept < 0) fz_fail("a size of a trace");
    for (i = 0; i < n; i++) {
        double sum = 0.0;
        for (s = 0; s < t->steps; s++) {
            double v = t->step_loads[s * n + i];
            if (!(v >= 0.0) || isinf(v)) fz_fail("a load of %g", v);
            sum += v;
        }
        if (fabs(sum - t->loads[i]) > 1e-9 * sum) fz_fail("loads do not sum up");
    }
    for (i = 0; t->ids && i < t->kept * t->layers * t->top_k; i++)
        if (t->ids[i] < -1 || t->ids[i] >= t->experts) fz_fail("id %d of %d", t->ids[i], t->experts);
}

static void readers_case(void)
{
    static void (*const make[])(void) = {make_npy, make_csv, make_matrix, make_lines, make_yaml, make_tensors};
    cli_read_options o;
    cli_trace *volatile list = NULL;
    const char *path;
    int format = fz_int(0, 5), i;
    readers_bytes = 0;
    readers_count = 0;
    memset(&o, 0, sizeof o);
    if (fz_chance(.1)) o.experts = fz_int(0, 20);
    o.layers_first = fz_chance(.2);
    o.as_counts = fz_chance(.2);
    if (fz_size > 64) put(fz_data + 8, fz_size - 8); /* a file as the engine made it */
    else if (format == 2 && fz_int(0, 1)) make_value(4);
    else make[format]();
    damage();
    path = readers_path(fz_chance(.95) ? format : 6);
    fz_where = path + strlen(path) - 4;
    readers_inside = 1;
    if (setjmp(readers_left) == 0) {
        cli_trace *l = NULL;
        if (fz_chance(.75)) {
            cli_read(&l, path, &o);
            list = l;
            for (i = 0; i < (int)arrlen(list); i++) check_trace(&list[i]);
            cli_traces_free(list);
        } else {
            (void)cli_map_is(path);
            (void)cli_map_read(path);
        }
    }
    while (readers_count > 0) __real_free(readers_block[--readers_count]);
    for (i = 0; i < READERS_FILES; i++)
        if (readers_file[i]) __real_fclose(readers_file[i]), readers_file[i] = NULL;
    readers_inside = 0;
}

FUZZ_TARGET(readers)
