/* bench/peers/stream_products.c - can this machine read weights and multiply them at once?
 * SPDX-License-Identifier: MIT
 *
 *   cc -O3 -march=native bench/peers/stream_products.c -o stream_products -lpthread && ./stream_products [MB [ROW]]
 * Two threads read MB megabytes of bf16 weights (300), rows of ROW elements (7168), and make 16 vdpbf16ps of every
 * 64 bytes, as 16 tokens an expert need: from registers alone, or as tiles of 4 rows by 6, 5 and 5 tokens in blocks
 * of 1024 elements, 64 rows a panel, as the layer does.  "one row": all tokens share an activation row, so that
 * nothing but weights wants the L1 cache.  By turns with plain reading; the best of nine.  Needs AVX-512-BF16. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PANEL = 64, BLOCK = 1024, TOKENS = 16, RUNS = 9 };
typedef struct way {
    const char *name;
    int kind;        /* 0 read, 1 products from registers, 2 tiles of the layer */
    int fetch;       /* 0 nothing, 1 into L1, 2 into L2, 3 non-temporal */
    int tiles_ahead; /* what is fetched is wanted so many tiles later; 16 = a whole block of the panel */
    int one_row, deep, cached;
    double best;
} way;

static way ways[] = {{"reading, four streams", 0, 0, 0, 0, 0, 0, 1e9},
                     {"16 products from registers, four streams", 1, 0, 0, 0, 0, 0, 1e9},
                     {"tiles, weights in the cache", 2, 0, 1, 0, 0, 1, 1e9},
                     {"tiles, nothing fetched", 2, 0, 1, 0, 0, 0, 1e9},
                     {"tiles, one row, next tile fetched", 2, 1, 1, 1, 0, 0, 1e9},
                     {"tiles, one row, second next tile fetched", 2, 1, 2, 1, 0, 0, 1e9},
                     {"tiles, next tile fetched", 2, 1, 1, 0, 0, 0, 1e9},
                     {"tiles, second next tile fetched", 2, 1, 2, 0, 0, 0, 1e9},
                     {"tiles, second next tile into L2", 2, 2, 2, 0, 0, 0, 1e9},
                     {"tiles, second next tile non-temporal", 2, 3, 2, 0, 0, 0, 1e9},
                     {"tokens outside, next block fetched", 2, 1, 16, 0, 1, 0, 1e9}};

static const char *weights;
static char *activations;
static int64_t rows, width, stride;
static volatile int64_t next_task;
static const way *now_way;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define FETCH(p)                                                          \
    do {                                                                  \
        if (fetch == 1) _mm_prefetch((p), _MM_HINT_T0);                   \
        else if (fetch == 2) _mm_prefetch((p), _MM_HINT_T1);              \
        else if (fetch == 3) _mm_prefetch((p), _MM_HINT_NTA);             \
    } while (0)

static inline __attribute__((always_inline)) void tile(const char *w, const char *x, int64_t xs, int64_t n, int tokens,
                                                       float *out, int add, int fetch, const char *f0, const char *f1)
{
    __m512 a[4][6];
    int64_t k;
    int r, t;
#pragma GCC unroll 4
    for (r = 0; r < 4; r++)
#pragma GCC unroll 6
        for (t = 0; t < tokens; t++) a[r][t] = _mm512_setzero_ps();
#pragma GCC unroll 1
    for (k = 0; k < 2 * n; k += 64) {
        __m512bh q[4];
        FETCH(f0 + k);
        if (f1) FETCH(f1 + k);
#pragma GCC unroll 4
        for (r = 0; r < 4; r++) q[r] = (__m512bh)_mm512_loadu_si512(w + r * 2 * width + k);
#pragma GCC unroll 6
        for (t = 0; t < tokens; t++) {
            __m512bh v = (__m512bh)_mm512_loadu_si512(x + t * xs + k);
#pragma GCC unroll 4
            for (r = 0; r < 4; r++) a[r][t] = _mm512_dpbf16_ps(a[r][t], q[r], v);
        }
    }
#pragma GCC unroll 6
    for (t = 0; t < tokens; t++)
#pragma GCC unroll 4
        for (r = 0; r < 4; r++) {
            float s = _mm512_reduce_add_ps(a[r][t]);
            out[t * PANEL + r] = add ? out[t * PANEL + r] + s : s;
        }
}

#define PIECES(NAME, F)                                                                                               \
    static __attribute__((noinline)) void NAME##0(const char *w, const char *x, int64_t xs, int64_t n, float *o,       \
                                                  int add, const char *f)                                              \
    {                                                                                                                 \
        tile(w, x, xs, n, 6, o, add, F, f, f + 2 * width);                                                            \
    }                                                                                                                 \
    static __attribute__((noinline)) void NAME##1(const char *w, const char *x, int64_t xs, int64_t n, float *o,       \
                                                  int add, const char *f)                                              \
    {                                                                                                                 \
        tile(w, x + 6 * xs, xs, n, 5, o + 6 * PANEL, add, F, f + 4 * width, NULL);                                    \
    }                                                                                                                 \
    static __attribute__((noinline)) void NAME##2(const char *w, const char *x, int64_t xs, int64_t n, float *o,       \
                                                  int add, const char *f)                                              \
    {                                                                                                                 \
        tile(w, x + 11 * xs, xs, n, 5, o + 11 * PANEL, add, F, f + 6 * width, NULL);                                  \
    }
typedef void (*piece)(const char *, const char *, int64_t, int64_t, float *, int, const char *);
PIECES(none, 0)
PIECES(near, 1)
PIECES(far, 2)
PIECES(once, 3)
static const piece pieces[4][3] = {
    {none0, none1, none2}, {near0, near1, near2}, {far0, far1, far2}, {once0, once1, once2}};

/* 64 rows past 16 tokens: tile by tile, or one group of tokens after the other. */
static void panel(const way *y, const char *base, float *out)
{
    int64_t ws = 2 * width, xs = y->one_row ? 0 : stride, k, n;
    int i, p, outer, inner;
    for (k = 0; k < width; k += BLOCK) {
        n = width - k < BLOCK ? width - k : BLOCK;
        for (outer = 0; outer < (y->deep ? 3 : PANEL / 4); outer++)
            for (inner = 0; inner < (y->deep ? PANEL / 4 : 3); inner++) {
                const char *to = base + 2 * k;
                int ahead;
                i = y->deep ? inner : outer;
                p = y->deep ? outer : inner;
                ahead = 4 * (i + y->tiles_ahead);
                if (ahead >= PANEL) {
                    ahead -= PANEL;
                    to = k + BLOCK >= width ? base + PANEL * ws : to + 2 * BLOCK;
                }
                pieces[y->fetch][p](base + 4 * i * ws + 2 * k, activations + 2 * k, xs, n, out + 4 * i, k > 0,
                                    to + ahead * ws);
            }
    }
}

static void read_panel(const char *base, int products)
{
    const int64_t part = PANEL / 4 * 2 * width;
    __m512 a[16];
    __m512i s = _mm512_setzero_si512();
    __m512bh v = (__m512bh)_mm512_loadu_si512(activations);
    int64_t k;
    int r, t;
#pragma GCC unroll 16
    for (t = 0; t < 16; t++) a[t] = _mm512_setzero_ps();
    for (k = 0; k < part; k += 64)
#pragma GCC unroll 4
        for (r = 0; r < 4; r++) {
            __m512i q = _mm512_loadu_si512(base + r * part + k);
            if (!products) {
                s = _mm512_xor_si512(s, q);
                continue;
            }
#pragma GCC unroll 16
            for (t = 0; t < 16; t++) __asm__ volatile("vdpbf16ps %1, %2, %0" : "+v"(a[t]) : "v"(v), "v"(q));
        }
    __asm__ volatile("" : : "v"(s));
}

static void *work(void *argument)
{
    float *out = (float *)aligned_alloc(64, sizeof(float) * TOKENS * PANEL);
    int64_t b, i, tasks = rows / (4 * PANEL);
    memset(out, 0, sizeof(float) * TOKENS * PANEL);
    while ((b = __sync_fetch_and_add(&next_task, 1)) < tasks)
        for (i = 4 * b; i < 4 * b + 4; i++) {
            const char *base = weights + (now_way->cached ? 0 : i) * PANEL * 2 * width;
            if (now_way->kind == 2) panel(now_way, base, out);
            else read_panel(base, now_way->kind);
        }
    free(out);
    return argument;
}

int main(int argc, char **argv)
{
    size_t i, count = sizeof ways / sizeof ways[0], bytes;
    int run;
    width = argc > 2 ? atoi(argv[2]) : 7168;
    rows = (int64_t)(argc > 1 ? atoi(argv[1]) : 300) * 1000000 / (2 * width) / (4 * PANEL) * (4 * PANEL);
    bytes = (size_t)(rows * 2 * width);
    weights = (const char *)mmap(NULL, bytes + (8u << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (weights == MAP_FAILED || rows == 0 || width % 32 != 0) return 1;
    memset((char *)(uintptr_t)weights, 0x3c, bytes + (4u << 20));
    stride = (2 * width + 4095) / 4096 * 4096 + 2048; /* rows take turns with the halves of the L1 cache */
    activations = (char *)aligned_alloc(4096, (size_t)(stride * TOKENS + 4096) / 4096 * 4096);
    memset(activations, 0x3c, (size_t)(stride * TOKENS));
    for (run = 0; run < RUNS; run++)
        for (i = 0; i < count; i++) {
            pthread_t other;
            double t;
            now_way = &ways[i];
            next_task = 0;
            t = seconds();
            if (pthread_create(&other, NULL, work, NULL) != 0) return 1;
            work(NULL);
            pthread_join(other, NULL);
            t = seconds() - t;
            if (t < ways[i].best) ways[i].best = t;
        }
    for (i = 0; i < count; i++)
        printf("%-42s %5.1f GB/s %4.0f %% %6.0f GFLOP/s\n", ways[i].name, (double)bytes * 1e-9 / ways[i].best,
               100.0 * ways[0].best / ways[i].best, ways[i].kind ? 16e-9 * (double)bytes / ways[i].best : 0.0);
    return 0;
}
