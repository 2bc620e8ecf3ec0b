/* tests/t.h - the test harness: TEST(name) { CHECK(...); }, then T_MAIN at the end of the file.
 * SPDX-License-Identifier: MIT
 *
 * usage of a test program: test_x [--list] [--filter TEXT] [--seed N] [other arguments in t_argv]
 *   --only A,B | --skip A,B   the tests of exactly these names | all but these
 *   --stop                    ends at the first check that fails, exit status 1
 * The last line printed is "N passed, N failed" (", N skipped" when some were).  A test that checked
 * nothing has failed: a check must prove that it ran. */
#ifndef T_H
#define T_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*t_function)(void);
typedef struct t_entry {
    const char *name;
    t_function function;
} t_entry;

static t_entry t_entries[512];
static int t_count, t_failed_here, t_skipped_here, t_stop;
static long t_checks;
static uint64_t t_seed = 20240607u;
static char **t_argv; /* arguments that are not the harness's own, NULL-terminated */

static void t_register(const char *name, t_function function)
{
    if (t_count == (int)(sizeof t_entries / sizeof t_entries[0])) {
        fprintf(stderr, "t.h: too many tests\n");
        exit(2);
    }
    t_entries[t_count].name = name;
    t_entries[t_count].function = function;
    t_count++;
}

/* Registration before main by a constructor: gcc and clang know it (tcc 0.9.27 does not run it). */
#define TEST(name)                                                                                  \
    static void t_test_##name(void);                                                                \
    __attribute__((constructor)) static void t_reg_##name(void) { t_register(#name, t_test_##name); } \
    static void t_test_##name(void)

static void t_fail(const char *file, int line, const char *text)
{
    if (++t_failed_here <= 20) printf("    %s:%d: %s\n", file, line, text);
    if (t_stop) {
        fflush(stdout);
        exit(1);
    }
}

/* Is name one of the names in list, "a,b,c"? */
static int t_listed(const char *list, const char *name)
{
    size_t n = strlen(name);
    while (list && *list) {
        size_t k = strcspn(list, ",");
        if (k == n && strncmp(list, name, n) == 0) return 1;
        list += k + (list[k] == ',');
    }
    return 0;
}

#define CHECK(c)                                                                                    \
    do {                                                                                            \
        t_checks++;                                                                                 \
        if (!(c)) t_fail(__FILE__, __LINE__, "CHECK(" #c ")");                                      \
    } while (0)

#define CHECK_I64(got, want)                                                                        \
    do {                                                                                            \
        long long t_g = (long long)(got), t_w = (long long)(want);                                  \
        t_checks++;                                                                                 \
        if (t_g != t_w) {                                                                           \
            char t_b[400];                                                                          \
            snprintf(t_b, sizeof t_b, "%.150s is %lld, want %lld (%.100s)", #got, t_g, t_w, #want); \
            t_fail(__FILE__, __LINE__, t_b);                                                        \
        }                                                                                           \
    } while (0)

/* |got - want| <= rel * |want| + abs; NaN never passes. */
#define CHECK_NEAR(got, want, rel, abs_)                                                            \
    do {                                                                                            \
        double t_g = (double)(got), t_w = (double)(want);                                           \
        t_checks++;                                                                                 \
        if (!(fabs(t_g - t_w) <= (rel)*fabs(t_w) + (abs_))) {                                       \
            char t_b[400];                                                                          \
            snprintf(t_b, sizeof t_b, "%.150s is %.17g, want %.17g", #got, t_g, t_w);               \
            t_fail(__FILE__, __LINE__, t_b);                                                        \
        }                                                                                           \
    } while (0)

#define CHECK_STR(got, want)                                                                        \
    do {                                                                                            \
        const char *t_g = (got), *t_w = (want);                                                     \
        t_checks++;                                                                                 \
        if (!t_g || strcmp(t_g, t_w) != 0) {                                                        \
            char t_b[600];                                                                          \
            snprintf(t_b, sizeof t_b, "%.100s is \"%.200s\", want \"%.200s\"", #got, t_g ? t_g : "(null)", t_w); \
            t_fail(__FILE__, __LINE__, t_b);                                                        \
        }                                                                                           \
    } while (0)

/* A call of the library that succeeds says so in `moe_ep_error err`, whatever stood there before. */
#define CLEARS(call)                                                                                \
    do {                                                                                            \
        memset(&err, 1, sizeof err);                                                                \
        CHECK((double)(call) >= 0.0);                                                               \
        CHECK_I64(err.status, MOE_EP_OK);                                                           \
    } while (0)

/* Inside a loop over cases: stop this test when something failed, saying where it stood. */
#define STOP_IF_FAILED(format, value)                                                               \
    do {                                                                                            \
        if (t_failed_here) {                                                                        \
            printf("    at " format " (seed %llu)\n", value, (unsigned long long)t_seed);           \
            return;                                                                                 \
        }                                                                                           \
    } while (0)

/* By its bits: with -ffast-math v != v is never true. */
#define CHECK_NAN(value) CHECK(t_is_nan(value))
static inline int t_is_nan(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (bits & 0x7fffffffffffffffu) > 0x7ff0000000000000u;
}

#define SKIP(reason)                                                                                \
    do {                                                                                            \
        printf("    skipped: %s\n", reason);                                                        \
        t_skipped_here = 1;                                                                         \
        return;                                                                                     \
    } while (0)

/* A small generator for test data, independent of the library's own (splitmix64). */
static inline uint64_t t_u64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline int64_t t_below(uint64_t *state, int64_t n) { return n <= 0 ? 0 : (int64_t)(t_u64(state) % (uint64_t)n); }
/* How slow this build or machine is, by MOE_EP_SLOW: 1 under a sanitizer, where what measures time skips; 2 under
 * Valgrind or an emulator, which take a hundred times as long, and for what comes after a run of all cases: clang's
 * sanitizers, other C libraries.  Fewer cases of a kind then; what takes half a billion draws or 2^31 ids is left
 * out, and means of so many cases are not compared. */
static inline int t_slow(void)
{
    const char *slow = getenv("MOE_EP_SLOW");
    return slow ? atoi(slow) : 0;
}
static inline double t_unit(uint64_t *state) { return (double)(t_u64(state) >> 11) / 9007199254740992.0; }

/* False in a program linked with -ffast-math, whose start-up code makes the CPU take subnormal numbers for 0. */
static inline int t_subnormals(void)
{
    volatile double smallest = 2.2250738585072014e-308;
    smallest *= 0.5;
    return smallest > 0;
}

/* At file scope: what follows is computed as written, whatever -ffast-math says. */
#if defined(__FAST_MATH__) && defined(__clang__)
#  define T_EXACT_MATH _Pragma("float_control(precise, on)")
#elif defined(__FAST_MATH__) && defined(__GNUC__)
#  define T_EXACT_MATH _Pragma("GCC optimize(\"no-fast-math\")")
#else
#  define T_EXACT_MATH
#endif

static inline void *t_alloc(size_t bytes)
{
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) {
        fprintf(stderr, "t.h: out of memory\n");
        exit(2);
    }
    return p;
}

static int t_main(int argc, char **argv)
{
    const char *filter = NULL, *only = NULL, *skip = NULL;
    int i, passed = 0, failed = 0, skipped = 0, kept = 0, list = 0;
    t_argv = (char **)t_alloc(sizeof(char *) * (size_t)(argc + 1));
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) list = 1;
        else if (strcmp(argv[i], "--filter") == 0 && i + 1 < argc) filter = argv[++i];
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) only = argv[++i];
        else if (strcmp(argv[i], "--skip") == 0 && i + 1 < argc) skip = argv[++i];
        else if (strcmp(argv[i], "--stop") == 0) t_stop = 1;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) t_seed = strtoull(argv[++i], NULL, 10);
        else t_argv[kept++] = argv[i];
    }
    for (i = 0; i < t_count; i++) {
        if (list) {
            printf("%s\n", t_entries[i].name);
            continue;
        }
        if (filter && !strstr(t_entries[i].name, filter)) continue;
        if ((only && !t_listed(only, t_entries[i].name)) || t_listed(skip, t_entries[i].name)) continue;
        t_failed_here = t_skipped_here = 0;
        t_checks = 0;
        t_entries[i].function();
        fflush(stdout);
        if (t_skipped_here) {
            skipped++;
            printf("  skip %s\n", t_entries[i].name);
        } else if (t_failed_here || t_checks == 0) {
            failed++;
            printf("  FAIL %s (%d of %ld checks%s)\n", t_entries[i].name, t_failed_here, t_checks,
                   t_checks == 0 ? ": nothing was checked" : "");
        } else {
            passed++;
            printf("  ok   %s (%ld checks)\n", t_entries[i].name, t_checks);
        }
    }
    free(t_argv);
    if (list) return 0;
    if (skipped) printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    else printf("%d passed, %d failed\n", passed, failed);
    return failed || passed + skipped == 0 ? 1 : 0;
}

#define T_MAIN                                                                                      \
    int main(int argc, char **argv) { return t_main(argc, argv); }

#endif
