/* tests/fuzz/fuzz.h - what the fuzz targets share: cases made of bytes, memory that is watched, a main.
 * SPDX-License-Identifier: MIT
 *
 * A target is a file fuzz_NAME.c with `static void NAME_case(void)` and FUZZ_TARGET(NAME) at its end.  The
 * case asks fz_int, fz_chance, ... for its sizes and values; they come from the input's bytes and, when
 * those are used up, from a generator seeded by a hash of them: nine bytes are already a whole case.
 * Sizes are heavy-tailed (fz_grow): most cases are tiny, few are large.  An input of eight bytes never grows:
 * such rows of findings.h go on meaning what they meant before there was a tail.
 * Inputs and outputs of a call lie right before a page that may not be touched (fz_in, fz_out; made once, used
 * again and again); under AddressSanitizer they are malloc'd.  Inputs must be the same after the case.
 * What does not hold is reported by fz_fail, which prints the input and aborts.
 *   FUZZ_ENGINE   the fuzzing engine brings main and calls LLVMFuzzerTestOneInput (libFuzzer, AFL++)
 *   FUZZ_TABLE    no main: tests/test_fuzz.c includes all targets and replays findings.h
 *   neither       fuzz_NAME [--runs N] [--seconds S] [--seed N] [--survey 1] | --rows HEX... | FILE...
 *                 random inputs, or replay; --survey 1 goes on after a finding and lists each kind once */
#ifndef FUZZ_H
#define FUZZ_H

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "moe_ep.h"

#if defined(__SANITIZE_ADDRESS__)
#define FZ_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FZ_SANITIZED 1
#endif
#endif
#if defined(FZ_SANITIZED)
void __sanitizer_set_death_callback(void (*callback)(void));
#endif

/* ---- the input ------------------------------------------------------------------------------------- */

static const uint8_t *fz_data;
static size_t fz_size, fz_used;
static uint64_t fz_state, fz_tail;
static int fz_grows; /* sizes of this case may come from the tail */
static int fz_calm;  /* nothing is spoiled in this case: or too few calls would get far */
/* Set when a case holds a finite value beyond 1e30 or below 1e-30.  Results must be finite all the same, or the
 * call refuses (ERR_OVERFLOW); only sums and ratios that rounding or underflow spoils are not compared then. */
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
    fz_tail = ~fz_state;
    fz_grows = size != 8;
    fz_calm = fz_grows && (fz_state >> 40) % 2;
}

/* n <= 8 bytes of the input as a number, or of the generator once the input is used up. */
static inline uint64_t fz_bits(size_t n)
{
    uint64_t v = 0;
    if (fz_used >= fz_size || fz_size <= 9) return fz_mix(&fz_state) >> (64 - 8 * n);
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

/* A number for what inputs of eight bytes do not have. */
static inline uint64_t fz_more(void)
{
    return fz_size > 9 && fz_used < fz_size ? fz_bits(4) : fz_mix(&fz_tail) >> 32;
}
/* A size: mostly as small as it is, one in 16 up to four times as large, one in 128 anything up to most. */
static inline int fz_grow(int n, int most)
{
    uint64_t dice;
    if (!fz_grows || n >= most) return n;
    dice = fz_more() % 128;
    if (dice > 8) return n;
    if (dice > 0) return n + (int)(fz_more() % (uint64_t)(3 * n < most - n ? 3 * n + 1 : most - n + 1));
    return n + (int)((fz_more() % (uint64_t)(most - n + 1)) >> fz_more() % 4);
}
/* Never for an input of eight bytes. */
static inline int fz_seldom(unsigned one_in) { return fz_grows && fz_more() % one_in == 0; }

/* ---- values that break things ------------------------------------------------------------------------ */

static inline double fz_note(double x)
{
    double a = fabs(x);
    if (isfinite(x) && (a > 1e30 || (a > 0.0 && a < 1e-30))) fz_extreme = 1;
    return x;
}
/* Is this no number to hand to a caller? */
#if !defined(FZ_STRICT)
#define FZ_STRICT 1 /* 0: extreme cases may be infinite */
#endif
static inline int fz_wild(double x) { return isnan(x) || (isinf(x) && (FZ_STRICT || !fz_extreme)); }

static inline double fz_bad_double(void)
{
    static const double list[] = {-1.0, 1e308, 5e-324, -0.0, 1e-300, 9.3e18, DBL_MAX, 0.5, 0.0};
    static const double mild[] = {1.0, 3.0, 1e-3, 0.0, 1.5, 1e6, 0.1, 0.5, 0.0, 2.0, 1.0, 64.0};
    int i = fz_int(0, 11);
    if (fz_calm) return mild[i];
    return fz_note(i == 9 ? (double)NAN : i == 10 ? (double)INFINITY : i == 11 ? (double)-INFINITY : list[i]);
}
static inline float fz_bad_float(void)
{
    static const float list[] = {FLT_MAX, -FLT_MAX, 1e-45f, -0.0f, 88.9f, 0.0f};
    static const float mild[] = {1.0f, -1.0f, 1e-4f, 0.0f, 30.0f, 0.5f, 2.0f, 0.25f, -3.0f};
    int i = fz_int(0, 8);
    if (fz_calm) return mild[i];
    if (i == 6) return (float)NAN;
    if (i == 4) fz_extreme = 1; /* exp of it is near the end of float */
    return (float)fz_note(i == 7 ? (double)INFINITY : i == 8 ? (double)-INFINITY : (double)list[i]);
}
static inline int32_t fz_bad_i32(void)
{
    static const int32_t list[] = {0, 1, -1, INT32_MAX, INT32_MIN, 1 << 30, 65537, -2};
    int i = fz_int(0, 9);
    if (fz_calm) return i;
    return i < 8 ? list[i] : fz_int(0, 9);
}
static inline int64_t fz_bad_i64(void)
{
    static const int64_t list[] = {0, 1, -1, INT64_MAX, INT64_MIN, (int64_t)1 << 62, (int64_t)1 << 32, INT32_MAX,
                                   INT64_MAX / 2 + 1, INT64_C(3037000500)};
    int i = fz_int(0, 11);
    if (fz_calm) return 3 * i;
    return i < 10 ? list[i] : fz_int(0, 9);
}

/* ---- memory that is watched --------------------------------------------------------------------------- */

/* Blocks of a case, each at the end of a room of its own with a forbidden page behind it; larger ones and those
 * of a sanitized build come from malloc.  The bytes before a block are looked at when it is given back. */
enum { FZ_ROOM = 1 << 16, FZ_PAGE = 1 << 14, FZ_BLOCKS = 48, FZ_BEFORE = 32 };
typedef struct fz_block {
    unsigned char *memory;
    size_t bytes;
    uint64_t sum; /* inputs: of their bytes when they were sealed */
    int own, changes;
} fz_block;
static fz_block fz_outputs[FZ_BLOCKS], fz_inputs[FZ_BLOCKS];
static int fz_output_count, fz_input_count, fz_sealed;
static unsigned char *fz_rooms;

static inline void fz_make_rooms(void)
{
    int i;
    fz_rooms = (unsigned char *)mmap(NULL, (size_t)2 * FZ_BLOCKS * (FZ_ROOM + FZ_PAGE), PROT_NONE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fz_rooms == MAP_FAILED) abort();
    for (i = 0; i < 2 * FZ_BLOCKS; i++)
        if (mprotect(fz_rooms + (size_t)i * (FZ_ROOM + FZ_PAGE), FZ_ROOM, PROT_READ | PROT_WRITE) != 0) abort();
}

static inline void *fz_take(fz_block *list, int *count, int first, size_t bytes)
{
    fz_block *b = &list[*count];
    if (*count == FZ_BLOCKS) abort();
    b->bytes = bytes;
    b->own = b->changes = 0;
#if !defined(FZ_SANITIZED)
    if (bytes + FZ_BEFORE <= FZ_ROOM) {
        if (!fz_rooms) fz_make_rooms();
        b->own = 1;
        b->memory = fz_rooms + (size_t)(first + *count) * (FZ_ROOM + FZ_PAGE) + FZ_ROOM - bytes;
        memset(b->memory - FZ_BEFORE, 0xa5, FZ_BEFORE);
    }
#endif
    if (!b->own) b->memory = (unsigned char *)malloc(bytes ? bytes : 1);
    if (!b->memory) abort();
    ++*count;
    return b->memory;
}

/* Outputs of a call: memory of exactly the size it should need, full of a pattern. */
static inline void *fz_out(size_t bytes)
{
    void *p = fz_take(fz_outputs, &fz_output_count, 0, bytes);
    memset(p, 0xa5, bytes);
    return p;
}
/* Inputs, to the end of the case. */
static inline void *fz_in(size_t bytes) { return fz_take(fz_inputs, &fz_input_count, FZ_BLOCKS, bytes); }
/* The same for memory that calls change. */
static inline void *fz_work(size_t bytes)
{
    void *p = fz_in(bytes);
    fz_inputs[fz_input_count - 1].changes = 1;
    return p;
}

/* ---- what a case found ------------------------------------------------------------------------------- */

static int fz_survey; /* 1 = go on after a finding */
static sigjmp_buf fz_next;
static char fz_seen[64][160];
static unsigned long long fz_seen_times[64], fz_tally[19];

static void fz_print_row(void)
{
    size_t i;
    fprintf(stderr, "    {\"%s\", \"", fz_target); /* a row of findings.h */
    for (i = 0; i < fz_size; i++) fprintf(stderr, "%02x", fz_data[i]);
    fprintf(stderr, "\"},\n");
}

/* 1 when this kind of finding has been printed before. */
static inline int fz_known(const char *format)
{
    char kind[160];
    int i;
    snprintf(kind, sizeof kind, "%s: %s", fz_where, format);
    for (i = 0; i < 64 && *fz_seen[i]; i++)
        if (strcmp(fz_seen[i], kind) == 0) break;
    if (i == 64) return 1;
    memcpy(fz_seen[i], kind, sizeof kind);
    return fz_seen_times[i]++ > 0;
}

__attribute__((format(printf, 1, 2), noreturn)) static void fz_fail(const char *format, ...)
{
    va_list args;
    if (fz_survey && fz_known(format)) siglongjmp(fz_next, 1);
    fflush(stdout);
    fprintf(stderr, "fuzz %s, %s: ", fz_target, fz_where);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    fz_print_row();
    if (fz_survey) siglongjmp(fz_next, 1);
    abort();
}

static inline uint64_t fz_sum_of(const fz_block *b)
{
    uint64_t sum = b->bytes, word;
    size_t i;
    for (i = 0; i + 8 <= b->bytes; i += 8) {
        memcpy(&word, b->memory + i, 8);
        sum = (sum ^ word) * UINT64_C(0x100000001b3);
    }
    for (; i < b->bytes; i++) sum = (sum ^ b->memory[i]) * UINT64_C(0x100000001b3);
    return sum;
}
/* From here on the inputs taken so far may not change. */
static inline void fz_seal(void)
{
    while (fz_sealed < fz_input_count) {
        if (!fz_inputs[fz_sealed].changes) fz_inputs[fz_sealed].sum = fz_sum_of(&fz_inputs[fz_sealed]);
        fz_sealed++;
    }
}

static inline void fz_give(fz_block *list, int *count)
{
    while (*count > 0) {
        fz_block *b = &list[--*count];
        int i;
        for (i = 1; b->own && i <= FZ_BEFORE; i++)
            if (b->memory[-i] != 0xa5) fz_fail("%d bytes before a block of %zu were written", i, b->bytes);
        if (!b->own) free(b->memory);
    }
}
static inline void fz_release(void) { fz_give(fz_outputs, &fz_output_count); }
static inline void fz_release_all(void)
{
    while (fz_sealed > 0) {
        fz_block *b = &fz_inputs[--fz_sealed];
        if (!b->changes && fz_sum_of(b) != b->sum) fz_fail("input %d has changed", fz_sealed);
    }
    fz_release();
    fz_give(fz_inputs, &fz_input_count);
}

/* n expert ids, some -1; *isbad says whether one of them was spoiled (when bad asks for it). */
static inline int32_t *fz_ids(int64_t n, int E, int bad, int *isbad)
{
    int32_t *x = (int32_t *)fz_in((size_t)n * 4);
    *isbad = 0;
    for (int64_t i = 0; i < n; i++) x[i] = fz_chance(.1) ? -1 : fz_int(0, E - 1);
    if (bad && n > 0 && !fz_calm) {
        int64_t j = (int64_t)(fz_u64() % (uint64_t)n);
        int32_t b[] = {-2, INT32_MIN, E, INT32_MAX};
        x[j] = b[fz_int(0, 3)];
        *isbad = 1;
    }
    return x;
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

/* What no call leaves behind: a call that succeeds must clear it like any other error. */
static const moe_ep_error fz_stale = {(moe_ep_status)-99, NULL, NULL, -99, -99.0};

/* The error record agrees with the status and names an argument; afterwards it is stale again, or that of a failure. */
static inline void fz_error(moe_ep_status status, moe_ep_error *err)
{
    char line[300];
    if ((int)status > 0 || (int)status < -17) fz_fail("status %d", (int)status);
    fz_tally[-(int)status]++;
    if (err->status != status) fz_fail("status %d, but err.status is %d", (int)status, (int)err->status);
    if (!err->arg || !err->what) fz_fail("err.arg or err.what is NULL");
    if (status < 0 && !*err->arg) fz_fail("err.arg is empty with %s", moe_ep_status_str(status));
    if (status < 0) moe_ep_error_text(err, line, sizeof line);
    if (status < 0) return;
    if (*err->arg || strcmp(err->what, "ok") != 0 || err->index != -1 || err->value < 0.0 || err->value > 0.0)
        fz_fail("success, but err says %s, %s", err->arg, err->what);
    *err = fz_stale;
}

/* After a call whose results nobody reads: both, and its outputs are given back. */
static inline void fz_end(moe_ep_status status, moe_ep_error *err)
{
    fz_error(status, err);
    fz_untouched(status);
    fz_release();
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
    if (fz_calm) fz_scratch_kind %= FZ_SCRATCH_SMALL;
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
    if (fz_survey && sigsetjmp(fz_next, 1) != 0) { /* what the case had malloc'd is lost */
        fz_sealed = fz_output_count = fz_input_count = 0;
        return;
    }
    one_case();
    fz_release_all();
}

static inline double fz_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Nothing but the row: the process may be in any state. */
static void fz_caught(int signal_number)
{
    if (fz_survey && signal_number != SIGPROF) fz_fail("signal %d", signal_number);
    fprintf(stderr, "fuzz %s, %s: %s\n", fz_target, fz_where,
            signal_number == SIGPROF ? "took more than 20 seconds of processor time" : "signal");
    fz_print_row();
    signal(signal_number, SIG_DFL);
    if (signal_number == SIGPROF) abort();
    raise(signal_number);
}
static inline void fz_watchdog(void)
{
    struct itimerval limit;
    memset(&limit, 0, sizeof limit);
    limit.it_value.tv_sec = 20;
    setitimer(ITIMER_PROF, &limit, NULL);
}
static inline void fz_catch(void)
{
#if !defined(FZ_SANITIZED)
    struct rlimit two_gigabytes = {(rlim_t)2 << 30, (rlim_t)2 << 30}; /* a wild size is ERR_MEMORY then */
    setrlimit(RLIMIT_AS, &two_gigabytes);
#endif
    signal(SIGPROF, fz_caught);
#if !defined(FZ_SANITIZED)
    signal(SIGSEGV, fz_caught);
    signal(SIGBUS, fz_caught);
    signal(SIGFPE, fz_caught);
#else
    __sanitizer_set_death_callback(fz_print_row);
#endif
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

/* Rows of findings.h: inputs in hex. */
static inline int fz_rows(const char *target, void (*one_case)(void), int count, char **rows)
{
    int i;
    for (i = 0; i < count; i++) {
        uint8_t data[2048];
        size_t n = 0;
        unsigned byte;
        const char *hex;
        for (hex = rows[i]; n < sizeof data && sscanf(hex, "%2x", &byte) == 1; hex += 2) data[n++] = (uint8_t)byte;
        fz_run(target, one_case, data, n);
    }
    printf("fuzz %-10s %d rows replayed\n", target, count);
    return 0;
}

static void (*fz_also)(void); /* more to report at the end */

static inline void fz_report(const char *target, unsigned long long done, double seconds, unsigned long long seed)
{
    unsigned long long calls = 0;
    int i;
    for (i = 0; i < 19; i++) calls += fz_tally[i];
    printf("fuzz %-10s %llu executions, %.0f s (%.1f s of processor time), seed %llu, %llu calls, %.1f %% of them OK\n",
           target, done, seconds, (double)clock() / CLOCKS_PER_SEC, seed, calls,
           calls ? 100.0 * (double)fz_tally[0] / (double)calls : 0.0);
    for (i = 0; i < 64 && *fz_seen[i]; i++) printf("    %llu times %s\n", fz_seen_times[i], fz_seen[i]);
    if (fz_also) fz_also();
}

/* Random inputs of nine bytes, which is the fastest way to a whole case; one in eight has more bytes. */
static inline int fz_main(const char *target, void (*one_case)(void), int argc, char **argv)
{
    uint64_t seed = 1, runs = UINT64_MAX, done;
    double seconds = 1e18, start = fz_now();
    int i;
    fz_catch();
    if (argc > 1 && strcmp(argv[1], "--rows") == 0) return fz_rows(target, one_case, argc - 2, argv + 2);
    if (argc > 1 && argv[1][0] != '-') return fz_replay(target, one_case, argc - 1, argv + 1);
    for (i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seed") == 0) seed = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--runs") == 0) runs = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seconds") == 0) seconds = atof(argv[i + 1]);
        else if (strcmp(argv[i], "--survey") == 0) fz_survey = atoi(argv[i + 1]);
    }
    if (runs == UINT64_MAX && seconds > 1e17) runs = 10000;
    for (done = 0; done < runs; done++) {
        uint8_t data[72];
        uint64_t state = seed + done * UINT64_C(0xd1342543de82ef95), word;
        size_t size = done % 8 ? 9 : 16 + done / 8 % 56, at;
        if (done % 256 == 0) {
            if (fz_now() - start > seconds) break;
            fz_watchdog();
        }
        for (at = 0; at < size; at += 8) {
            word = fz_mix(&state);
            memcpy(data + at, &word, size - at < 8 ? size - at : 8);
        }
        fz_run(target, one_case, data, size);
    }
    fz_report(target, (unsigned long long)done, fz_now() - start, (unsigned long long)seed);
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
