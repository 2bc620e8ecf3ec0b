/* bench/bench_dispatch.c - histogram, deduplicated counts and permutation against the memory they must touch.
 * SPDX-License-Identifier: MIT
 *
 * usage: bench_dispatch [--quick]
 * Every time is the median of interleaved runs: the function, then its yardstick, again and again.  Inputs rotate
 * over a pool larger than the caches, except in the rows that say "in cache".  Yardsticks: reading an array once
 * (stream), and a memcpy that reads and writes exactly the bytes a permutation has to: ids once, two maps. */
#define _GNU_SOURCE
#include "bench.h"
#include "moe_ep.h"

enum { E = 256, K = 8, T = 16384, N = T * K, POOL = 24, BIG = 1 << 22, MAPS = 1 << 24, RUNS = 41 };

typedef enum routing { UNIFORM, SKEWED, HALF_HOT } routing;
static const char *const routing_name[] = {"uniform", "skewed", "half the ids on one expert"};

typedef struct state {
    int32_t *ids[POOL], *row_to_flat, *flat_to_row;
    int64_t *offsets, *loads, *per_rank, n;
    int32_t experts, ranks, pool;
    int turn, repeat; /* repeat: lists that each thread takes, so that starting it does not count */
    int in_cache;     /* permutations: lists and maps stay in the caches */
} state;

static void fill(int32_t *ids, int64_t n, int32_t experts, routing how, moe_ep_rng *rng)
{
    int64_t i;
    for (i = 0; i < n; i++) {
        uint64_t a = moe_ep_rng_below(rng, (uint64_t)experts);
        if (how == SKEWED) a = a * moe_ep_rng_below(rng, (uint64_t)experts) / (uint64_t)experts;
        if (how == HALF_HOT && moe_ep_rng_below(rng, 2) == 0) a = 3;
        ids[i] = (int32_t)a;
    }
}

/* Tokens as a router gives them: no expert twice. */
static void fill_tokens(int32_t *ids, int64_t tokens, moe_ep_rng *rng)
{
    int64_t t;
    int k, j;
    for (t = 0; t < tokens; t++, ids += K)
        for (k = 0; k < K; k++)
            do {
                ids[k] = (int32_t)moe_ep_rng_below(rng, E);
                for (j = 0; ids[j] != ids[k];) j++;
            } while (j < k);
}

static void stop_unless(moe_ep_status status)
{
    if (status == MOE_EP_OK) return;
    fprintf(stderr, "bench_dispatch: %s\n", moe_ep_status_str(status));
    exit(1);
}

static void histogram(void *p, int part, int parts)
{
    state *s = (state *)p;
    int64_t from = s->n * part / parts, count = s->n * (part + 1) / parts - from;
    int64_t *loads = s->loads + (int64_t)part * s->experts;
    stop_unless(moe_ep_expert_loads(s->ids[s->turn % s->pool] + from, count, s->experts, loads, NULL, NULL));
    bench_keep(loads);
}

/* Each thread counts its share of the tokens into arrays of its own. */
static void layout(void *p, int part, int parts)
{
    state *s = (state *)p;
    int64_t T1 = s->n / K, from = T1 * part / parts, count = T1 * (part + 1) / parts - from;
    moe_ep_layout wanted;
    int i;
    memset(&wanted, 0, sizeof wanted);
    wanted.tokens_per_rank = s->per_rank + 256 * part;
    wanted.tokens_per_expert = s->loads + (int64_t)part * s->experts;
    for (i = 0; i < s->repeat; i++)
        stop_unless(moe_ep_deepep_layout(s->ids[(s->turn + i) % s->pool] + from * K, count, K, s->experts, s->ranks, 8,
                                         NULL, &wanted, NULL));
    bench_keep(s->per_rank);
}

/* List and maps of the i-th piece of work of a thread.  From memory: each is the next one of a long row of them.  In
 * cache: a few lists by turns, always the same maps. */
static int64_t place(const state *s, int i, int part, int parts, const int32_t **ids)
{
    const int64_t lists = BIG / s->n, turn = s->turn + (int64_t)i * parts + part;
    if (s->in_cache) {
        *ids = s->ids[turn % s->pool];
        return part * (MAPS / 2);
    }
    *ids = s->ids[turn / lists % s->pool] + turn % lists * s->n;
    return turn % (MAPS / s->n) * s->n;
}

/* Each thread sorts lists of its own, as two ranks or two layers of one process would. */
static void permute(void *p, int part, int parts)
{
    state *s = (state *)p;
    const int32_t *ids;
    int64_t at;
    int i;
    for (i = 0; i < s->repeat; i++) {
        at = place(s, i, part, parts, &ids);
        stop_unless(moe_ep_permute(ids, s->n, s->experts, s->offsets + part * 4097, s->row_to_flat + at,
                                   s->flat_to_row + at, NULL));
    }
    bench_keep(s->row_to_flat);
}

static void copy(void *p, int part, int parts)
{
    state *s = (state *)p;
    const int32_t *from;
    int64_t at;
    int i;
    for (i = 0; i < s->repeat; i++) {
        at = place(s, i, part, parts, &from);
        memcpy(s->row_to_flat + at, from, (size_t)s->n * sizeof(int32_t));
        memcpy(s->flat_to_row + at, from, (size_t)s->n * sizeof(int32_t));
        memcpy(s->offsets + part * 4097, s->loads, (size_t)s->experts * sizeof(int64_t));
        bench_keep(s->row_to_flat);
        bench_keep(s->flat_to_row);
    }
}

/* Medians of a and b, run by turns. */
static void pair(state *s, bench_function a, int threads, bench_function b, void *b_argument, int b_threads, int runs,
                 double *a_seconds, double *b_seconds)
{
    double x[RUNS], y[RUNS];
    int i;
    for (i = 0; i < runs; i++) {
        s->turn += s->repeat * threads;
        x[i] = bench_run(a, s, threads);
        s->turn += s->repeat * threads;
        y[i] = bench_run(b, b_argument, b_threads);
    }
    *a_seconds = bench_median(x, runs);
    *b_seconds = bench_median(y, runs);
}

static void histograms(state *s, bench_stream *stream, int runs)
{
    double own, read, bytes = 4.0 * BIG, bandwidth;
    int threads;
    s->n = BIG;
    s->experts = E;
    for (threads = 1; threads <= 2; threads++) {
        pair(s, histogram, threads, bench_read_part, stream, threads, runs, &own, &read);
        bandwidth = 8.0 * (double)stream->words / read;
        printf("histogram of %d ids, E %d, %d thread%s: %.3f ns/id, %.1f GB/s = %.0f %% of stream %.1f GB/s (aim 50)\n",
               BIG, E, threads, threads > 1 ? "s" : " ", 1e9 * own / BIG, bytes / own * 1e-9,
               100 * bytes / own / bandwidth, bandwidth * 1e-9);
    }
}

static void layouts(state *s, bench_stream *stream, int runs)
{
    static const int32_t ranks[] = {8, 32, 64, 256};
    double own, read;
    size_t i;
    int threads;
    s->n = N;
    s->experts = E;
    s->repeat = 8;
    for (threads = 1; threads <= 2; threads++)
        for (i = 0; i < sizeof ranks / sizeof *ranks; i++) {
            s->ranks = ranks[i];
            pair(s, layout, threads, bench_read_part, stream, 1, runs, &own, &read);
            printf("loads + deduplicated tokens per rank, %d x top-%d, %3d ranks, %d thread%s: %.3f ns/assignment "
                   "(aim 1)\n", T, K, (int)ranks[i], threads, threads > 1 ? "s" : " ", 1e9 * own / N / s->repeat);
        }
    s->repeat = 1;
}

static void permutations(state *s, int runs, const char *name)
{
    double own, memory;
    int threads;
    s->n = N;
    s->experts = E;
    for (s->in_cache = 0; s->in_cache <= 1; s->in_cache++)
        for (threads = 1; threads <= 2; threads++) {
            s->repeat = 8;
            pair(s, permute, threads, copy, s, threads, runs, &own, &memory);
            own /= s->repeat;
            memory /= s->repeat;
            printf("permutation of %d %s, %s, %d thread%s: %.1f us, %.2f ns each, %.2f x memcpy of its bytes (%.1f us; "
                   "aim 6)\n", N, s->in_cache ? "in cache" : "from memory", name, threads,
                   threads > 1 ? "s, a list each" : " ", 1e6 * own, 1e9 * own / N, own / memory, 1e6 * memory);
        }
    s->repeat = 1;
    s->in_cache = 0;
}

/* Cost per assignment must not grow with their number nor, much, with E. */
static void growth(state *s, int runs, moe_ep_rng *rng)
{
    static const int32_t experts[] = {8, 64, 256, 1024, 4096};
    double hist, sort;
    size_t i;
    int64_t n;
    printf("%10s %6s %12s %12s\n", "n", "E", "ns/id loads", "ns permute");
    for (n = (int64_t)1 << 14; n <= BIG; n *= 4) {
        s->n = n;
        s->experts = E;
        pair(s, histogram, 1, permute, s, 1, runs, &hist, &sort);
        printf("%10lld %6d %12.3f %12.2f\n", (long long)n, E, 1e9 * hist / (double)n, 1e9 * sort / (double)n);
    }
    s->n = (int64_t)1 << 20;
    for (i = 0; i < sizeof experts / sizeof *experts; i++) {
        int p;
        for (p = 0; p < s->pool; p++) fill(s->ids[p], BIG, experts[i], UNIFORM, rng);
        s->experts = experts[i];
        pair(s, histogram, 1, permute, s, 1, runs, &hist, &sort);
        printf("%10lld %6d %12.3f %12.2f\n", (long long)s->n, (int)experts[i], 1e9 * hist / (double)s->n,
               1e9 * sort / (double)s->n);
    }
}

int main(int argc, char **argv)
{
    static state s;
    const int quick = argc > 1 && strcmp(argv[1], "--quick") == 0, runs = quick ? 9 : RUNS;
    bench_stream stream;
    bench_load load = bench_load_now();
    moe_ep_rng rng = moe_ep_rng_seed(1);
    int i, how;
    s.pool = quick ? 4 : POOL;
    s.repeat = 1;
    for (i = 0; i < s.pool; i++) {
        s.ids[i] = (int32_t *)bench_alloc(sizeof(int32_t) * BIG);
        fill(s.ids[i], BIG, E, UNIFORM, &rng);
    }
    s.row_to_flat = (int32_t *)bench_alloc(sizeof(int32_t) * MAPS);
    s.flat_to_row = (int32_t *)bench_alloc(sizeof(int32_t) * MAPS);
    s.offsets = (int64_t *)bench_alloc(sizeof(int64_t) * 2 * 4097);
    s.loads = (int64_t *)bench_alloc(sizeof(int64_t) * 2 * 4097);
    s.per_rank = (int64_t *)bench_alloc(sizeof(int64_t) * 2 * 256);
    stream.words = (size_t)(quick ? 64 : 256) * 1024 * 1024 / 8;
    stream.data = (const uint64_t *)bench_alloc(stream.words * 8);
    printf("%s, %s, medians of %d\n", bench_cpu(), __VERSION__, runs);
    histograms(&s, &stream, runs);
    for (i = 0; i < s.pool; i++) fill_tokens(s.ids[i], T, &rng);
    layouts(&s, &stream, runs);
    for (how = UNIFORM; how <= HALF_HOT; how++) {
        for (i = 0; i < s.pool; i++) fill(s.ids[i], BIG, E, (routing)how, &rng);
        permutations(&s, runs, routing_name[how]);
    }
    for (i = 0; i < s.pool; i++) fill(s.ids[i], BIG, E, UNIFORM, &rng);
    growth(&s, runs < 9 ? runs : 9, &rng);
    printf("other processes used %.1f %% of the machine meanwhile\n", 100 * bench_others(&load));
    return 0;
}
