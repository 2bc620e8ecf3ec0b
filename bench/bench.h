/* bench/bench.h - clock, medians, stream bandwidth, two threads: what every benchmark needs.
 * SPDX-License-Identifier: MIT
 *
 * Machines are shared and noisy: the two sides of a ratio are timed alternately in one process and their
 * medians are compared; the share of the machine that others used meanwhile is printed beside. */
#ifndef BENCH_H
#define BENCH_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Sorts v in place. */
static inline double bench_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, bench_compare);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static inline void *bench_alloc(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 64) != 0) {
        fprintf(stderr, "bench: out of memory\n");
        exit(1);
    }
    memset(p, 1, bytes); /* touch every page */
    return p;
}

/* Keeps the compiler from dropping a computation. */
static inline void bench_keep(const void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }

typedef void (*bench_function)(void *argument, int part, int parts);

/* Threads that stay: creating and joining one takes 20 to 50 us, up to a tenth of what is timed here.  An idle
 * one looks for work all the time, after a while ten thousand times a second. */
typedef struct bench_helper {
    pthread_t id;
    bench_function function;
    void *argument;
    int part, parts;
    unsigned wanted, done; /* pieces of work so far */
    char apart[64];        /* no cache line in common with the next one */
} bench_helper;

enum { BENCH_THREADS = 16 };

static inline unsigned bench_count(const unsigned *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

static inline void bench_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("pause");
#else
    __asm__ volatile("" : : : "memory");
#endif
}

static void *bench_help(void *p)
{
    bench_helper *h = (bench_helper *)p;
    const struct timespec nap = {0, 100000};
    for (;;) {
        int turns;
        for (turns = 0; bench_count(&h->wanted) == h->done; turns++)
            if (turns < 100000) bench_pause();
            else nanosleep(&nap, NULL);
        h->function(h->argument, h->part, h->parts);
        __atomic_store_n(&h->done, h->done + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

/* function(argument, 0..threads-1, threads), part 0 on this thread; back when all are done. */
static inline void bench_together(bench_function function, void *argument, int threads)
{
    static bench_helper helper[BENCH_THREADS];
    int i;
    if (threads > BENCH_THREADS) exit(1);
    for (i = 0; i < threads - 1; i++) {
        if (helper[i].wanted == 0 && pthread_create(&helper[i].id, NULL, bench_help, &helper[i]) != 0) exit(1);
        helper[i].function = function;
        helper[i].argument = argument;
        helper[i].part = i + 1;
        helper[i].parts = threads;
        __atomic_store_n(&helper[i].wanted, helper[i].wanted + 1, __ATOMIC_RELEASE);
    }
    function(argument, 0, threads);
    for (i = 0; i < threads - 1; i++)
        while (bench_count(&helper[i].done) != helper[i].wanted) bench_pause();
}

static void bench_nothing(void *argument, int part, int parts)
{
    (void)argument;
    (void)part;
    (void)parts;
}

/* Seconds that all parts take together. */
static inline double bench_run(bench_function function, void *argument, int threads)
{
    double start;
    bench_together(bench_nothing, NULL, threads); /* nobody is asleep */
    start = bench_now();
    bench_together(function, argument, threads);
    return bench_now() - start;
}

/* ---- reading memory once: the limit of everything that touches each byte one time ---------------------- */

typedef struct bench_stream {
    const uint64_t *data;
    size_t words;
} bench_stream;

static void bench_read_part(void *argument, int part, int parts)
{
    const bench_stream *s = (const bench_stream *)argument;
    size_t from = s->words / (size_t)parts * (size_t)part, n = s->words / (size_t)parts, i;
    const uint64_t *p = s->data + from;
    uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (i = 0; i + 32 <= n; i += 32) { /* wide enough for the compiler to use vectors */
        int k;
        for (k = 0; k < 4; k++) {
            a ^= p[i + 8 * (size_t)k];
            b ^= p[i + 8 * (size_t)k + 1];
            c ^= p[i + 8 * (size_t)k + 2];
            d ^= p[i + 8 * (size_t)k + 3];
            e ^= p[i + 8 * (size_t)k + 4];
            f ^= p[i + 8 * (size_t)k + 5];
            g ^= p[i + 8 * (size_t)k + 6];
            h ^= p[i + 8 * (size_t)k + 7];
        }
    }
    a ^= b ^ c ^ d ^ e ^ f ^ g ^ h;
    bench_keep(&a);
    __asm__ volatile("" : : "r"(a));
}

/* Share of all cores that other processes used between two calls, Linux only: bench_others(&state) starts, the
 * next call tells; -1 when unknown. */
typedef struct bench_load {
    double total, idle, own;
} bench_load;

static inline bench_load bench_load_now(void)
{
    bench_load l = {0, 0, 0};
    FILE *f = fopen("/proc/stat", "r");
    double v[8] = {0};
    int i;
    if (f) {
        if (fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", v, v + 1, v + 2, v + 3, v + 4, v + 5, v + 6, v + 7) == 8) {
            for (i = 0; i < 8; i++) l.total += v[i] / 100.0;
            l.idle = (v[3] + v[4]) / 100.0;
        }
        fclose(f);
    }
    l.own = (double)clock() / CLOCKS_PER_SEC;
    return l;
}

static inline double bench_others(const bench_load *since)
{
    bench_load now = bench_load_now();
    double total = now.total - since->total, busy;
    if (!(total > 0.0)) return -1.0;
    busy = total - (now.idle - since->idle) - (now.own - since->own);
    return busy < 0.0 ? 0.0 : busy / total;
}

static inline const char *bench_cpu(void)
{
    static char name[128] = "unknown CPU";
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
            snprintf(name, sizeof name, "%.100s", strchr(line, ':') + 2);
            name[strcspn(name, "\n")] = '\0';
            break;
        }
    }
    if (f) fclose(f);
    return name;
}

#endif
