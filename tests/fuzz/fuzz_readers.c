/* tests/fuzz/fuzz_readers.c - the readers of the tool: every format it takes, damaged in every way
 * SPDX-License-Identifier: MIT
 *
 * The tool's own objects run inside this process.  The linker sends their malloc, exit and messages here
 * (readers.link): leaving becomes a longjmp, what was not freed by then is freed here, and a
 * message must be printable whatever the file held.  Each kind of file is counted: read, or refused. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fuzz.h"

#include "cli_map.h"
#include "cli_read.h"
#include "cli_watch.h"

#include <jansson.h>
#include <stb_ds.h>
#include <yaml.h>

int readers_cluster(const char *path); /* simulate_inside.c */
int readers_requests(const char *path);

typedef enum reader {
    NPY,
    CSV,
    COUNTS,
    LINES,
    YAML,
    TENSORS,
    MAP_CSV,
    MAP_JSON,
    FOLDER,
    LOG,
    WATCH_LINES,
    WATCH_CSV,
    CLUSTER,
    REQUESTS,
    READERS
} reader;
static const struct {
    const char *what, *ending;
} readers_kind[READERS] = {{".npy ids and counts", "npy"},
                           {"CSV counts", "csv"},
                           {"JSON counts (SGLang)", "json"},
                           {"JSON lines of ids or counts", "jsonl"},
                           {"TensorRT-LLM YAML map", "yaml"},
                           {"safetensors statistics", "safetensors"},
                           {"CSV map", "csv"},
                           {"SGLang JSON map", "json"},
                           {"TensorRT-LLM statistics folder", ""},
                           {"vLLM log (watch)", "log"},
                           {"growing JSON lines (watch)", "jsonl"},
                           {"growing CSV (watch)", "csv"},
                           {"LLMServingSim cluster", "json"},
                           {"request trace", "jsonl"}};
static unsigned long long readers_read[READERS], readers_refused[READERS], readers_damaged[READERS];

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
/* What glibc makes of getline when it optimises. */
ssize_t __real___getdelim(char **, size_t *, int, FILE *);
ssize_t __wrap___getdelim(char **line, size_t *size, int end, FILE *f);
ssize_t __wrap___getdelim(char **line, size_t *size, int end, FILE *f)
{
    char *before = *line;
    ssize_t n = __real___getdelim(line, size, end, f);
    if (*line != before) {
        readers_drop(before);
        readers_keep(*line);
    }
    return n;
}
ssize_t __wrap_getline(char **line, size_t *size, FILE *f);
ssize_t __wrap_getline(char **line, size_t *size, FILE *f) { return __wrap___getdelim(line, size, '\n', f); }
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
void *__wrap_cli_keep_block(void *block);
void *__wrap_cli_keep_block(void *block) { return block; }
char *__wrap_strndup(const char *s, size_t n);
char *__wrap_strndup(const char *s, size_t n)
{
    size_t length = strnlen(s, n);
    char *copy = (char *)__wrap_malloc(length + 1);
    if (!copy) return NULL;
    memcpy(copy, s, length);
    copy[length] = '\0';
    return copy;
}
int __real_scandir(const char *, struct dirent ***, int (*)(const struct dirent *),
                   int (*)(const struct dirent **, const struct dirent **));
int __wrap_scandir(const char *path, struct dirent ***list, int (*filter)(const struct dirent *),
                   int (*order)(const struct dirent **, const struct dirent **));
int __wrap_scandir(const char *path, struct dirent ***list, int (*filter)(const struct dirent *),
                   int (*order)(const struct dirent **, const struct dirent **))
{
    int n = __real_scandir(path, list, filter, order), i;
    for (i = 0; i < n; i++) readers_keep((*list)[i]);
    if (n >= 0) readers_keep(*list);
    return n;
}

/* libyaml's memory is its own: what is under way when the tool leaves is given back from here. */
static yaml_parser_t *readers_parser;
static yaml_event_t *readers_event;
int __real_yaml_parser_initialize(yaml_parser_t *);
void __real_yaml_parser_delete(yaml_parser_t *);
int __real_yaml_parser_parse(yaml_parser_t *, yaml_event_t *);
int __wrap_yaml_parser_initialize(yaml_parser_t *p);
int __wrap_yaml_parser_initialize(yaml_parser_t *p)
{
    readers_parser = p;
    readers_event = NULL;
    return __real_yaml_parser_initialize(p);
}
void __wrap_yaml_parser_delete(yaml_parser_t *p);
void __wrap_yaml_parser_delete(yaml_parser_t *p)
{
    readers_parser = NULL;
    __real_yaml_parser_delete(p);
}
int __wrap_yaml_parser_parse(yaml_parser_t *p, yaml_event_t *event);
int __wrap_yaml_parser_parse(yaml_parser_t *p, yaml_event_t *event)
{
    readers_event = event;
    return __real_yaml_parser_parse(p, event);
}

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
    cli_clean(text); /* as the one behind it does */
    for (i = 0; text[i]; i++)
        if (((unsigned char)text[i] < 32 && text[i] != '\n') || text[i] == 127)
            fz_fail("the message has a control character, %d at %zu", text[i], i);
    if (code != CLI_USAGE && !strstr(text, "memory")) fz_fail("exit code %d: %s", code, text);
    if (readers_parser) {
        if (readers_event) yaml_event_delete(readers_event);
        __wrap_yaml_parser_delete(readers_parser);
    }
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
    if (!fz_calm && fz_chance(.02)) return odd[fz_int(0, (int)(sizeof odd / sizeof odd[0]) - 1)];
    snprintf(t, 40, "%d", fz_int(0, fz_calm ? 7 : fz_chance(.9) ? 15 : 40000));
    return t;
}

static void make_npy(void)
{
    static const char *const types[] = {"<i4", "<i8", "<u2", "|u1", "<f4", "<f8", ">i4", "<f2", "|b1", "|i1", "<u8",
                                        ">f8", "<c8", "|O", "<i3", "=i4", "<U4", "", "<f1", "<b2"};
    char header[300];
    int dims = fz_int(0, fz_chance(.9) ? 3 : 9), i, n, version = fz_chance(.95) ? fz_int(1, 2) : fz_int(0, 255);
    int64_t count = 1;
    const char *type = types[fz_chance(.8) ? fz_int(0, 9) : fz_int(0, 19)];
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
    int lines = fz_int(0, 8), k = fz_int(1, 3), counts = fz_chance(.3), i, j;
    for (i = 0; i < lines; i++) {
        print("{\"layer\": %d, \"%s\": %d, \"%s\": [", i % 2, fz_chance(.95) ? "step" : "token", i / 2,
              counts ? "counts" : fz_chance(.9) ? "ids" : "topk_ids");
        for (j = 0; j < k; j++) print(counts ? "%s%s" : "%s[%s, %s]", j ? "," : "", number(), number());
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
    if (fz_chance(.5)) print("num_slots: %d\n", experts);
    else if (fz_chance(.3)) print("num_slots: %s\n", number());
    if (fz_chance(.7)) print("layer_updates_per_iter: 0\n");
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

static void make_map_csv(void)
{
    int layers = fz_int(1, 3), slots = fz_int(1, 6), devices = fz_int(1, slots), l, s;
    print("%s\n", fz_chance(.95) ? "layer,device,slot,expert" : "slot,expert,layer,x");
    for (l = 0; l < layers; l++)
        for (s = 0; s < slots; s++)
            if (fz_chance(.99)) print("%d,%d,%d,%s\n", l, s * devices / slots, s, number());
}

static void make_map_json(void)
{
    int layers = fz_int(1, 3), slots = fz_int(1, 6), l, s;
    print("{\"physical_to_logical_map\": [");
    for (l = 0; l < layers; l++) {
        print("%s[", l ? ", " : "");
        for (s = 0; s < slots + fz_chance(.01); s++) print("%s%s", s ? "," : "", number());
        print("]");
    }
    print("]%s}\n", fz_chance(.1) ? ", \"logical_count\": [[1]]" : "");
}

static void make_log(void)
{
    int lines = fz_int(0, 9), i;
    static const char *const noise[] = {
        "INFO 11-21 [core.py:1] ready", "", "WARNING x", "EPLB step", "\x1b[31mINFO", "#"};
    for (i = 0; i < lines; i++)
        if (fz_chance(.3)) print("%s\n", noise[fz_int(0, 5)]);
        else
            print("INFO x EPLB step: %s for model m: avg_tokens=%s.%d, max_tokens=%s, balancedness=%s\n",
                  number(), number(), fz_int(0, 99), number(), number());
}

static void make_watch_lines(void)
{
    int lines = fz_int(0, 9), n = fz_int(1, 6), i, j;
    for (i = 0; i < lines; i++) {
        int ids = fz_chance(.5);
        print("{\"step\": %d, \"layer\": %d, \"%s\": [", i / 2, i % 2, ids ? "ids" : "counts");
        for (j = 0; j < n; j++) print(ids ? "%s[%s, %s]" : "%s%s", j ? "," : "", number(), number());
        print("]}\n");
    }
}

static void make_watch_csv(void)
{
    int lines = fz_int(0, 9), n = fz_int(1, 6), i, j;
    print("step,layer");
    for (j = 0; j < n; j++) print(",%d", j);
    print("\n");
    for (i = 0; i < lines; i++) {
        print("%d,%d", i / 2, i % 2);
        for (j = 0; j < n; j++) print(",%s", number());
        print("\n");
    }
}

static void make_cluster(void)
{
    static const char *const model[] = {"mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "none", "\\u001b"};
    static const char *const machine[] = {"H100", "RTXPRO6000", "h200", "abacus"};
    print("{\"link_bw\": %s, \"link_latency\": %s, \"nodes\": [{\"instances\": [{\"model_name\": \"%s\", ", number(),
          number(), model[fz_chance(.9) ? fz_int(0, 2) : fz_int(3, 4)]);
    print("\"hardware\": \"%s\", \"npu_mem\": {\"mem_size\": %s, \"mem_bw\": %s, \"mem_latency\": 0}, ",
          machine[fz_chance(.9) ? fz_int(0, 2) : 3], number(), number());
    print("\"num_npus\": %s, \"tp_size\": %s, \"ep_size\": %s}]}]}\n", number(), number(), number());
}

static void make_requests(void)
{
    int lines = fz_int(0, 8), i;
    for (i = 0; i < lines; i++)
        print("{\"%s\": %s, \"%s\": %s, \"arrival_time_ns\": %s}\n", fz_chance(.9) ? "input_toks" : "prompt_tokens",
              number(), fz_chance(.9) ? "output_toks" : "x", number(), number());
}

static int readers_experts; /* that the folder's meta_info.json names */

/* TensorRT-LLM's statistics, as they should be. */
static void make_statistics(void)
{
    int layers = fz_int(1, 2), experts = readers_experts, size = fz_chance(.5) ? 4 : 8, i;
    uint64_t length;
    put("\0\0\0\0\0\0\0\0", 8);
    print("{");
    for (i = 0; i < layers; i++)
        print("%s\"%d_%d\":{\"dtype\":\"I%d\",\"shape\":[%d],\"data_offsets\":[%d,%d]}", i ? "," : "",
              fz_chance(.95) ? 0 : 7, i, size * 8, experts, i * experts * size, (i + 1) * experts * size);
    print("}");
    length = readers_bytes - 8;
    memcpy(readers_text, &length, 8);
    for (i = 0; i < layers * experts; i++) {
        int64_t v = fz_chance(.01) ? fz_bad_i64() : fz_int(0, 99);
        put(&v, (size_t)size);
    }
}

/* Turns a few bytes, cuts the end off, or adds to it. */
static int damage(void)
{
    int n = fz_chance(.6) ? 0 : fz_int(1, 4), done;
    if (fz_calm) return 0;
    done = n > 0;
    while (n-- > 0 && readers_bytes > 0) readers_text[fz_u64() % readers_bytes] = (char)fz_bits(1);
    if (fz_chance(.1) && readers_bytes > 0) readers_bytes = fz_u64() % readers_bytes;
    if (fz_chance(.02) && readers_bytes > 0) put("\n{}[],:\"0", 9);
    return done;
}

static void readers_report(void)
{
    int i;
    for (i = 0; i < READERS; i++)
        printf("  reader %s: %llu files, %llu of them damaged, %llu read, %llu refused\n", readers_kind[i].what,
               readers_read[i] + readers_refused[i], readers_damaged[i], readers_read[i], readers_refused[i]);
}

/* ---- files in memory, with a link of every ending to them; made once ----------------------------------- */

static char readers_folder[64];
static int readers_fd = -1, readers_meta = -1;

static void link_to(int fd, const char *name)
{
    char path[160], target[64];
    snprintf(path, sizeof path, "%s/%s", readers_folder, name);
    snprintf(target, sizeof target, "/proc/%d/fd/%d", (int)getpid(), fd);
    if (symlink(target, path) != 0) abort();
}

static void remove_links(void)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'", readers_folder);
    if (system(command) != 0) fprintf(stderr, "%s is left\n", readers_folder);
}

static void make_links(void)
{
    const char *base = getenv("TMPDIR");
    char name[64];
    int i;
    snprintf(readers_folder, sizeof readers_folder, "%.40s/fuzz.XXXXXX", base ? base : "/tmp");
    json_set_alloc_funcs(__wrap_malloc, __wrap_free);
    json_object_seed(1);
    fz_also = readers_report;
    readers_fd = memfd_create("fuzz", 0);
    readers_meta = memfd_create("meta", 0);
    if (readers_fd < 0 || readers_meta < 0 || !mkdtemp(readers_folder)) abort();
    atexit(remove_links);
    for (i = 0; i < READERS; i++) {
        snprintf(name, sizeof name, "t%d.%s", i, readers_kind[i].ending);
        if (i != FOLDER) link_to(readers_fd, name);
    }
    link_to(readers_fd, "t");
    snprintf(name, sizeof name, "%.50s/s", readers_folder);
    if (mkdir(name, 0700) != 0) abort();
    link_to(readers_fd, "s/rank0.safetensors");
    link_to(readers_meta, "s/meta_info.json");
}

static void fill(int fd)
{
    if (ftruncate(fd, 0) != 0 || pwrite(fd, readers_text, readers_bytes, 0) != (ssize_t)readers_bytes) abort();
}

static const char *readers_path(reader kind)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/t%d.%s", readers_folder, (int)kind, readers_kind[kind].ending);
    if (kind == FOLDER) snprintf(path, sizeof path, "%s/s", readers_folder);
    else if (kind < MAP_CSV && fz_chance(.03)) snprintf(path, sizeof path, "%s/t", readers_folder);
    return path;
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

/* What a map that was accepted must be. */
static void check_map(cli_map *m)
{
    int64_t i;
    if (m->layers < 1 || m->slots < 1 || m->devices < 0) fz_fail("a size of a map");
    for (i = 0; i < (int64_t)m->layers * m->slots; i++)
        if (m->expert[i] < -1 || m->expert[i] >= 65536) fz_fail("expert %d of a map", m->expert[i]);
    for (i = 0; m->slot_device && i < m->slots; i++)
        if (m->slot_device[i] < 0 || m->slot_device[i] >= m->devices) fz_fail("device %d of a map", m->slot_device[i]);
    cli_map_free(m);
}

static cli_watch readers_watch;

static void check_watch(void)
{
    const cli_watch *w = &readers_watch;
    ptrdiff_t i, j;
    int32_t e;
    for (i = 0; i < arrlen(w->steps); i++)
        for (j = 0; j < arrlen(w->steps[i].row); j++)
            for (e = 0; e < w->steps[i].row[j].n; e++) {
                double v = w->steps[i].row[j].loads[e];
                if (!(v >= 0.0) || isinf(v)) fz_fail("a load of %g", v);
            }
    for (i = 0; i < w->seen && i < CLI_HISTORY; i++)
        if (!(w->history[i] >= 1.0 - 1e-9) || isinf(w->history[i])) fz_fail("an imbalance of %g", w->history[i]);
}

/* A file that grows, is cut or goes on with anything. */
static void watch(const char *path)
{
    static cli_setup setup;
    cli_watch *w = &readers_watch;
    memset(w, 0, sizeof *w);
    memset(&setup, 0, sizeof setup);
    w->fd = -1;
    w->path = path;
    w->setup = &setup;
    w->devices = fz_int(1, 8);
    w->window = fz_int(1, 5);
    setup.round_robin = fz_int(0, 1);
    (void)cli_watch_read(w);
    if (fz_chance(.3)) {
        if (fz_chance(.2)) readers_bytes /= 2;
        else make_log();
        fill(readers_fd);
        (void)cli_watch_read(w);
    }
    cli_watch_finish(w);
    check_watch();
    if (w->experts <= 64 && fz_chance(.3)) {
        cli_watch_judge(w);
        if (!w->state) fz_fail("no state");
    }
    cli_watch_close(w);
    w->fd = -1;
}

static void read_one(reader kind, const char *path, const cli_read_options *o)
{
    cli_trace *list = NULL;
    cli_map map;
    int i;
    switch (kind) {
    case YAML:
    case MAP_CSV:
    case MAP_JSON:
        (void)cli_map_is(path);
        map = cli_map_read(path);
        check_map(&map);
        return;
    case LOG:
    case WATCH_LINES:
    case WATCH_CSV:
        watch(path);
        return;
    case CLUSTER:
        if (readers_cluster(path) != 0) fz_fail("this is no cluster");
        return;
    case REQUESTS:
        if (readers_requests(path) != 0) fz_fail("these are no requests");
        return;
    default:
        (void)cli_map_is(path);
        cli_read(&list, path, o);
        for (i = 0; i < (int)arrlen(list); i++) check_trace(&list[i]);
        cli_traces_free(list);
    }
}

static void make_file(reader kind)
{
    static void (*const make[READERS])(void) = {make_npy,     make_csv,      make_matrix, make_lines, make_yaml,
                                                make_statistics, make_map_csv, make_map_json, make_statistics, make_log,
                                                make_watch_lines, make_watch_csv, make_cluster, make_requests};
    readers_experts = fz_int(1, 6);
    if (kind == FOLDER) {
        print("{\"num_experts\": ");
        if (fz_chance(.9)) print("%d", readers_experts);
        else print("%s", number());
        print(", \"num_experts_per_token\": %s}", fz_chance(.7) ? "1" : number());
        if (fz_chance(.1)) readers_bytes /= 2;
        fill(readers_meta);
        readers_bytes = 0;
    }
    if (fz_size > 64) put(fz_data + 8, fz_size - 8); /* a file as the engine made it */
    else if (readers_kind[kind].ending[0] == 'j' && fz_chance(.1)) make_value(4);
    else if (kind == TENSORS && fz_chance(.2)) make_tensors();
    else make[kind]();
}

static void readers_case(void)
{
    cli_read_options o;
    const char *path;
    volatile reader kind = (reader)fz_int(0, READERS - 1);
    size_t before;
    int i;
    if (readers_fd < 0) make_links();
    readers_bytes = 0;
    readers_count = 0;
    readers_watch.fd = -1;
    memset(&o, 0, sizeof o);
    if (fz_chance(.1)) o.experts = fz_int(0, 20);
    o.layers_first = fz_chance(.2);
    o.as_counts = fz_chance(.2);
    make_file(kind);
    before = readers_bytes;
    if (damage() || readers_bytes != before) readers_damaged[kind]++;
    fill(readers_fd);
    path = readers_path(kind);
    fz_where = readers_kind[kind].what;
    readers_inside = 1;
    if (setjmp(readers_left) == 0) {
        read_one(kind, path, &o);
        readers_read[kind]++;
    } else
        readers_refused[kind]++;
    while (readers_count > 0) __real_free(readers_block[--readers_count]);
    for (i = 0; i < READERS_FILES; i++)
        if (readers_file[i]) __real_fclose(readers_file[i]), readers_file[i] = NULL;
    if (readers_watch.fd >= 0) close(readers_watch.fd);
    readers_watch.fd = -1;
    readers_inside = 0;
}

FUZZ_TARGET(readers)
