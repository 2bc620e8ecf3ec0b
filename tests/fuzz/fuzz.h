/* tests/fuzz/fuzz.h - what the fuzz targets share: cases made of bytes, outputs that are watched, a main.
 * SPDX-License-Identifier: MIT
 *
 * A target is a file fuzz_NAME.c with `static void NAME_case(void)` and FUZZ_TARGET(NAME) at its end.  The
 * case asks fz_int, fz_chance, ... for its sizes and values; they come from the input's bytes and, when
 * those are used up, from a generator seeded by a hash of them: eight bytes are already a whole case.
 * What does not hold is reported by fz_fail, which prints the input and aborts.
 *   FUZZ_ENGINE   the fuzzing engine brings main and calls LLVMFuzzerTestOneInput (libFuzzer, AFL++)
 *   FUZZ_TABLE    no main: tests/test_fuzz.c includes all targets and replays findings.h
 *   neither       fuzz_NAME [--runs N] [--seconds S] [--seed N] | fuzz_NAME FILE...   random inputs, or replay */
#ifndef FUZZ_H
#define FUZZ_H

#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "moe_ep.h"

/* ---- the input ------------------------------------------------------------------------------------- */

static const uint8_t *fz_data;
static size_t fz_size, fz_used;
static uint64_t fz_state;
/* Set when a case holds a finite value so large or so small that results may leave the range of double or
 * float: then they may be infinite, but never NaN. */
static int fz_extreme;
static const char *fz_where = "";
static const char *fz_target = "";

static inline uint64_t fz_mix(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void fz_begin(const uint8_t *data, size_t size)
{
    size_t i;
    fz_data = data;
    fz_size = size;
    fz_used = 0;
    fz_where = "";
    fz_extreme = 0;
    fz_state = UINT64_C(0xcbf29ce484222325) ^ size;
    for (i = 0; i < size; i++) fz_state = (fz_state ^ data[i]) * UINT64_C(0x100000001b3);
}

/* n <= 8 bytes of the input as a number, or of the generator once the input is used up. */
static inline uint64_t fz_bits(size_t n)
{
    uint64_t v = 0;
    if (fz_used >= fz_size || fz_size <= 8) return fz_mix(&fz_state) >> (64 - 8 * n);
    while (n-- > 0) v = v << 8 | (fz_used < fz_size ? fz_data[fz_used++] : 0u);
    return v;
}

static inline uint64_t fz_u64(void) { return fz_bits(8); }
static inline int fz_int(int from, int to) /* both included */
{
    uint64_t range = (uint64_t)((int64_t)to - from) + 1u;
    return (int)(from + (int64_t)(fz_bits(range <= 256 ? 1 : range <= 65536 ? 2 : 4) % range));
}
static inline double fz_unit(void) { return (double)(fz_bits(4)) / 4294967296.0; }
static inline int fz_chance(double p) { return (double)fz_bits(2) / 65536.0 < p; }

/* ---- values that break things ------------------------------------------------------------------------ */

static inline double fz_note(double x)
{
    double a = fabs(x);
    if (isfinite(x) && (a > 1e30 || (a > 0.0 && a < 1e-30))) fz_extreme = 1;
    return x;
}
/* Is this no number to hand to a caller? */
static inline int fz_wild(double x) { return isnan(x) || (isinf(x) && !fz_extreme); }

static inline double fz_bad_double(void)
{
    static const double list[] = {-1.0, 1e308, 5e-324, -0.0, 1e-300, 9.3e18, DBL_MAX, 0.5, 0.0};
    int i = fz_int(0, 11);
    return fz_note(i == 9 ? (double)NAN : i == 10 ? (double)INFINITY : i == 11 ? (double)-INFINITY : list[i]);
}
static inline float fz_bad_float(void)
{
    static const float list[] = {FLT_MAX, -FLT_MAX, 1e-45f, -0.0f, 88.9f, 0.0f};
    int i = fz_int(0, 8);
    if (i == 6) return (float)NAN;
    if (i == 4) fz_extreme = 1; /* exp of it is near the end of float */
    return (float)fz_note(i == 7 ? (double)INFINITY : i == 8 ? (double)-INFINITY : (double)list[i]);
}
static inline int32_t fz_bad_i32(void)
{
    static const int32_t list[] = {0, 1, -1, INT32_MAX, INT32_MIN, 1 << 30, 65537, -2};
    int i = fz_int(0, 9);
    return i < 8 ? list[i] : fz_int(0, 9);
}
static inline int64_t fz_bad_i64(void)
{
    static const int64_t list[] = {0, 1, -1, INT64_MAX, INT64_MIN, (int64_t)1 << 62, (int64_t)1 << 32, INT32_MAX,
                                   INT64_MAX / 2 + 1, INT64_C(3037000500)};
    int i = fz_int(0, 11);
    return i < 10 ? list[i] : fz_int(0, 9);
}

/* n expert ids, some -1; *bad says whether one of them was spoiled (when spoil is asked for). */
static inline int32_t *fz_ids(int64_t n, int E, int bad, int *isbad)
{
    int32_t *x = malloc(n * 4 + 1);
    *isbad = 0;
    for (int64_t i = 0; i < n; i++) x[i] = fz_chance(.1) ? -1 : fz_int(0, E - 1);
    if (bad && n > 0) {
        int64_t j = fz_u64() % n;
        int32_t b[] = {-2, INT32_MIN, E, INT32_MAX};
        x[j] = b[fz_int(0, 3)];
        *isbad = 1;
    }
    return x;
}
/* ---- what a case found ------------------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2), noreturn)) static void fz_fail(const char *format, ...)
{
    va_list args;
    size_t i;
    fflush(stdout);
    fprintf(stderr, "fuzz %s, %s: ", fz_target, fz_where);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n    {\"%s\", \"", fz_target); /* a row of findings.h */
    for (i = 0; i < fz_size; i++) fprintf(stderr, "%02x", fz_data[i]);
    fprintf(stderr, "\"},\n");
    abort();
}

/* Outputs of a call: memory of exactly the size it should need, full of a pattern. */
typedef struct fz_output {
    unsigned char *memory;
    size_t bytes;
} fz_output;
static fz_output fz_outputs[32];
static int fz_output_count;

static inline void *fz_out(size_t bytes)
{
    fz_output *o = &fz_outputs[fz_output_count++];
    o->bytes = bytes;
    o->memory = (unsigned char *)malloc(bytes ? bytes : 1);
    if (!o->memory) abort();
    memset(o->memory, 0xa5, bytes);
    return o->memory;
}

static inline void fz_release(void)
{
    while (fz_output_count > 0) free(fz_outputs[--fz_output_count].memory);
}

/* A call that failed has written to none of the outputs. */
static inline void fz_untouched(moe_ep_status status)
{
    int i;
    size_t j;
    if (status >= 0) return;
    for (i = 0; i < fz_output_count; i++)
        for (j = 0; j < fz_outputs[i].bytes; j++)
            if (fz_outputs[i].memory[j] != 0xa5)
                fz_fail("output %d was touched at byte %zu although: %s", i, j, moe_ep_status_str(status));
}

/* The error record agrees with the status and names an argument. */
static inline void fz_error(moe_ep_status status, const moe_ep_error *err)
{
    char line[300];
    if ((int)status > 0 || (int)status < -17) fz_fail("status %d", (int)status);
    if (err->status != status) fz_fail("status %d, but err.status is %d", (int)status, (int)err->status);
    if (!err->arg || !err->what) fz_fail("err.arg or err.what is NULL");
    if (status < 0 && !*err->arg) fz_fail("err.arg is empty with %s", moe_ep_status_str(status));
    if (status < 0) moe_ep_error_text(err, line, sizeof line);
}

static inline void fz_finite(const char *name, const double *x, int n)
{
    int i;
    for (i = 0; i < n; i++)
        if (fz_wild(x[i])) fz_fail("%s: field %d is %g", name, i, x[i]);
}

/* ---- working memory of every kind --------------------------------------------------------------------- */

enum { FZ_SCRATCH_NULL, FZ_SCRATCH_GROWING, FZ_SCRATCH_ROOM, FZ_SCRATCH_SMALL, FZ_SCRATCH_NONE };
static moe_ep_scratch fz_scratch_state;
static int fz_scratch_kind;
static unsigned char fz_scratch_memory[1 << 22];

static inline moe_ep_scratch *fz_scratch(void)
{
    fz_scratch_kind = fz_int(0, 4);
    if (fz_scratch_kind == FZ_SCRATCH_NULL) return NULL;
    memset(&fz_scratch_state, 0, sizeof fz_scratch_state);
    if (fz_scratch_kind == FZ_SCRATCH_ROOM)
        fz_scratch_state = moe_ep_scratch_fixed(fz_scratch_memory + fz_int(0, 63), sizeof fz_scratch_memory - 64);
    if (fz_scratch_kind == FZ_SCRATCH_SMALL)
        fz_scratch_state = moe_ep_scratch_fixed(fz_scratch_memory + fz_int(0, 63), (size_t)fz_int(0, 300));
    if (fz_scratch_kind == FZ_SCRATCH_NONE) fz_scratch_state = moe_ep_scratch_fixed(NULL, 8u * (size_t)fz_int(0, 1));
    return &fz_scratch_state;
}

static inline void fz_scratch_done(void)
{
    if (fz_scratch_kind == FZ_SCRATCH_GROWING) moe_ep_scratch_free(&fz_scratch_state);
}

/* ---- running ------------------------------------------------------------------------------------------ */

static inline void fz_run(const char *target, void (*one_case)(void), const uint8_t *data, size_t size)
{
    fz_target = target;
    fz_begin(data, size);
    one_case();
    fz_release();
}

static inline double fz_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fz_hang(int signal_number)
{
    (void)signal_number;
    fz_fail("took more than 20 seconds");
}

static inline int fz_replay(const char *target, void (*one_case)(void), int count, char **paths)
{
    int i;
    for (i = 0; i < count; i++) {
        FILE *f = fopen(paths[i], "rb");
        uint8_t *data = (uint8_t *)malloc(1 << 20);
        if (!f || !data) {
            fprintf(stderr, "%s: cannot read it\n", paths[i]);
            return 2;
        }
        fz_run(target, one_case, data, fread(data, 1, 1 << 20, f));
        fclose(f);
        free(data);
    }
    printf("fuzz %-10s %d files replayed\n", target, count);
    return 0;
}

/* Random inputs: most are eight bytes, which is the fastest way to a whole case; some are longer. */
static inline int fz_main(const char *target, void (*one_case)(void), int argc, char **argv)
{
    uint64_t seed = 1, runs = UINT64_MAX, done;
    double seconds = 1e18, start = fz_now();
    int i;
    if (argc > 1 && argv[1][0] != '-') return fz_replay(target, one_case, argc - 1, argv + 1);
    for (i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seed") == 0) seed = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--runs") == 0) runs = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seconds") == 0) seconds = atof(argv[i + 1]);
    }
    if (runs == UINT64_MAX && seconds > 1e17) runs = 10000;
    signal(SIGALRM, fz_hang);
    for (done = 0; done < runs; done++) {
        uint8_t data[8];
        uint64_t state = seed + done * UINT64_C(0xd1342543de82ef95), word = fz_mix(&state);
        if (done % 1024 == 0) {
            if (fz_now() - start > seconds) break;
            alarm(60);
        }
        memcpy(data, &word, sizeof word);
        fz_run(target, one_case, data, sizeof data);
    }
    printf("fuzz %-10s %llu executions, %.0f s, seed %llu\n", target, (unsigned long long)done, fz_now() - start,
           (unsigned long long)seed);
    return 0;
}

#if defined(FUZZ_TABLE)
#define FUZZ_TARGET(name)
#elif defined(FUZZ_ENGINE)
#define FUZZ_TARGET(name)                                                                           \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);                                   \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)                                    \
    {                                                                                               \
        fz_run(#name, name##_case, data, size);                                                     \
        return 0;                                                                                   \
    }
#else
#define FUZZ_TARGET(name)                                                                           \
    int main(int argc, char **argv) { return fz_main(#name, name##_case, argc, argv); }
#endif

#endif
