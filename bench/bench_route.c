/* bench/bench_route.c - routing, histogram and permutation against the speed of reading their input.
 * SPDX-License-Identifier: MIT
 *
 * usage: bench_route [--quick]
 * Every line is: what, threads, milliseconds (median), GB/s of its input, and that as a share of the stream
 * bandwidth measured in the same run, the two timed alternately.  Inputs rotate over a pool larger than the
 * caches, so that each call reads memory.
 *
 * With MOE_EP_PYTHON=python3 that has torch, bench/peers/router_peer.py runs the same two routers on the same logits,
 * by turns with ours, and the ratio of the medians is printed. */
#define _GNU_SOURCE
#include "bench.h"
#include "moe_ep.h"
#include <sys/wait.h>
#include <unistd.h>

enum { E = 256, K = 8, T = 16384, ROUNDS = 25, POOL = 24, PEER_ROUNDS = 11 };

typedef struct job {
    const char *name;
    double bytes;    /* input read once */
    double least;    /* share of the stream bandwidth to reach */
    double items;    /* tokens or assignments, for ns per item */
    bench_function run;
} job;

typedef struct state {
    float *logits[POOL];
    int32_t *ids[POOL];
    moe_ep_router router;
    int32_t *out_ids;
    float *out_weights;
    int64_t *offsets;
    int32_t *row_to_flat, *flat_to_row;
    int turn;
} state;

static void split(int64_t n, int part, int parts, int64_t *from, int64_t *count)
{
    *from = n * part / parts;
    *count = n * (part + 1) / parts - *from;
}

static void route(void *p, int part, int parts)
{
    state *s = (state *)p;
    int64_t from, count;
    split(T, part, parts, &from, &count);
    if (moe_ep_route(&s->router, s->logits[s->turn % POOL] + from * E, count, NULL, s->out_ids + from * K,
                     s->out_weights + from * K, NULL) != MOE_EP_OK)
        exit(1);
}

static void histogram(void *p, int part, int parts)
{
    state *s = (state *)p;
    int64_t from, count, loads[E];
    split((int64_t)T * E, part, parts, &from, &count); /* as many ids as there are logits: 16 MiB */
    if (moe_ep_expert_loads(s->ids[s->turn % POOL] + from, count, E, loads, NULL, NULL) != MOE_EP_OK) exit(1);
    bench_keep(loads);
}

static void permute(void *p, int part, int parts)
{
    state *s = (state *)p;
    (void)parts;
    if (part > 0) return; /* one sort, one thread */
    if (moe_ep_permute(s->ids[s->turn % POOL], (int64_t)T * K, E, s->offsets, s->row_to_flat, s->flat_to_row,
                       NULL) != MOE_EP_OK)
        exit(1);
}

static void copy(void *p, int part, int parts)
{
    state *s = (state *)p; /* the bytes a permutation must touch: ids in, two maps out */
    (void)parts;
    if (part > 0) return;
    memcpy(s->row_to_flat, s->ids[s->turn % POOL], (size_t)T * K * 4);
    memcpy(s->flat_to_row, s->ids[s->turn % POOL] + (size_t)T * K, (size_t)T * K * 4 / 2);
    bench_keep(s->row_to_flat);
}

/* A process that calls the routers in torch on s->logits[0] when asked, a line each way. */
typedef struct peer {
    pid_t id;
    FILE *ask, *answer;
    char path[32];
} peer;

static int peer_start(peer *p, const state *s, const float *bias, int threads)
{
    const char *python = getenv("MOE_EP_PYTHON");
    char number[4][16];
    int to[2], from[2], file, good;
    FILE *f;
    memset(p, 0, sizeof *p);
    strcpy(p->path, "/tmp/moe_ep_route_XXXXXX");
    if ((file = mkstemp(p->path)) < 0) return 0;
    f = fdopen(file, "wb");
    good = f && fwrite(s->logits[0], sizeof(float), (size_t)T * E, f) == (size_t)T * E &&
           fwrite(bias, sizeof(float), E, f) == E;
    if (f && fclose(f) != 0) good = 0;
    snprintf(number[0], sizeof number[0], "%d", T);
    snprintf(number[1], sizeof number[1], "%d", E);
    snprintf(number[2], sizeof number[2], "%d", K);
    snprintf(number[3], sizeof number[3], "%d", threads);
    if (!good || pipe(to) != 0 || pipe(from) != 0 || (p->id = fork()) < 0) return 0;
    if (p->id == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        close(to[1]);
        close(from[0]);
        execlp(python, python, "bench/peers/router_peer.py", p->path, number[0], number[1], number[2], number[3],
               (char *)NULL);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    p->ask = fdopen(to[1], "w");
    p->answer = fdopen(from[0], "r");
    return p->ask && p->answer;
}

/* Seconds of one call of router 0 or 1; negative = it does not answer. */
static double peer_call(peer *p, int router)
{
    double ms;
    if (fprintf(p->ask, "%d\n", router) < 0 || fflush(p->ask) != 0 || fscanf(p->answer, "%lf", &ms) != 1) return -1.0;
    return 1e-3 * ms;
}

static void peer_stop(peer *p)
{
    if (p->ask) fclose(p->ask);
    if (p->answer) fclose(p->answer);
    if (p->id > 0) waitpid(p->id, NULL, 0);
    remove(p->path);
}

/* Waits until the other side's threads, which look for work in a loop at first, have gone to sleep. */
static void settle(void)
{
    const struct timespec while_they_spin = {0, 20000000};
    nanosleep(&while_they_spin, NULL);
}

static void against_torch(state *s, const float *bias, int threads)
{
    const char *name[2] = {"softmax top-8 of 256", "DeepSeek-V3 grouped sigmoid"};
    double torch[2][PEER_ROUNDS], ours[2][PEER_ROUNDS], x, y;
    peer p;
    int i, j, good;
    if (!getenv("MOE_EP_PYTHON")) return;
    good = peer_start(&p, s, bias, threads) && peer_call(&p, 0) > 0.0 && peer_call(&p, 1) > 0.0; /* warm */
    for (i = 0; i < PEER_ROUNDS && good; i++)
        for (j = 0; j < 2 && good; j++) {
            s->router = j ? moe_ep_router_deepseek_v3(E, K) : moe_ep_router_qwen2(E, K);
            if (j) s->router.select_bias = bias;
            s->turn = POOL; /* the logits that torch has */
            settle();
            good = (torch[j][i] = peer_call(&p, j)) > 0.0;
            settle();
            ours[j][i] = bench_run(route, s, threads);
        }
    peer_stop(&p);
    for (j = 0; j < 2 && good; j++) {
        x = bench_median(torch[j], PEER_ROUNDS);
        y = bench_median(ours[j], PEER_ROUNDS);
        printf("%-34s %d thread%s torch %8.3f ms, ours %7.3f ms: %.1f x (aim 25)\n", name[j], threads,
               threads > 1 ? "s" : " ", 1e3 * x, 1e3 * y, x / y);
    }
    if (!good)
        printf("torch: did not run (MOE_EP_PYTHON must name a python3 that has torch, started in the repository)\n");
}

static void measure(state *s, const job *j, int threads, bench_stream *stream)
{
    double a[ROUNDS], b[ROUNDS], time, read;
    int i;
    for (i = 0; i < ROUNDS; i++) {
        s->turn++;
        a[i] = bench_run(j->run, s, threads);
        b[i] = bench_run(bench_read_part, stream, threads);
    }
    time = bench_median(a, ROUNDS);
    read = (double)stream->words * 8 / bench_median(b, ROUNDS);
    printf(
        "%-34s %d thread%s %8.3f ms %7.2f ns/item %7.2f GB/s  %5.1f %% of stream %6.2f GB/s  (aim %.0f %%)\n",
        j->name, threads, threads > 1 ? "s" : " ", 1e3 * time, 1e9 * time / j->items, j->bytes / time * 1e-9,
        100 * j->bytes / time / read, read * 1e-9, 100 * j->least);
}

int main(int argc, char **argv)
{
    static state s;
    bench_stream stream;
    uint64_t seed = 1;
    int threads, i, quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    int64_t n;
    bench_load load = bench_load_now();
    moe_ep_rng rng = moe_ep_rng_seed(seed);
    job jobs[3] = {{"softmax top-8 of 256", (double)T * E * 4, 0.40, T, route},
                   {"DeepSeek-V3 grouped sigmoid", (double)T * E * 4, 0.25, T, route},
                   {"histogram of 4,194,304 int32 ids", (double)T * E * 4, 0.50, (double)T * E, histogram}};
    float bias[E];
    for (i = 0; i < POOL; i++) {
        s.logits[i] = (float *)bench_alloc(sizeof(float) * (size_t)T * E);
        s.ids[i] = (int32_t *)bench_alloc(sizeof(int32_t) * (size_t)T * E);
        for (n = 0; n < (int64_t)T * E; n++) {
            s.logits[i][n] = (float)(moe_ep_rng_f64(&rng) + moe_ep_rng_f64(&rng) + moe_ep_rng_f64(&rng) - 1.5) * 2.0f;
            s.ids[i][n] = (int32_t)moe_ep_rng_below(&rng, E);
        }
        if (quick && i == 3) break;
    }
    for (; i < POOL; i++) {
        if (!s.logits[i]) {
            s.logits[i] = s.logits[i % 4];
            s.ids[i] = s.ids[i % 4];
        }
    }
    for (i = 0; i < E; i++) bias[i] = (float)(moe_ep_rng_f64(&rng) * 0.1);
    s.out_ids = (int32_t *)bench_alloc(sizeof(int32_t) * T * K);
    s.out_weights = (float *)bench_alloc(sizeof(float) * T * K);
    s.offsets = (int64_t *)bench_alloc(sizeof(int64_t) * (E + 1));
    s.row_to_flat = (int32_t *)bench_alloc(sizeof(int32_t) * T * K);
    s.flat_to_row = (int32_t *)bench_alloc(sizeof(int32_t) * T * K);
    stream.words = (size_t)(quick ? 128 : 512) * 1024 * 1024 / 8;
    stream.data = (const uint64_t *)bench_alloc(stream.words * 8);

    printf("%s, %s, T %d, E %d, K %d, medians of %d\n", bench_cpu(), __VERSION__, T, E, K, ROUNDS);
    for (threads = 1; threads <= 2; threads++) {
        s.router = moe_ep_router_qwen2(E, K);
        measure(&s, &jobs[0], threads, &stream);
        s.router = moe_ep_router_deepseek_v3(E, K);
        s.router.select_bias = bias;
        measure(&s, &jobs[1], threads, &stream);
        measure(&s, &jobs[2], threads, &stream);
        against_torch(&s, bias, threads);
    }
    {
        double a[ROUNDS], b[ROUNDS], x, y;
        for (i = 0; i < ROUNDS; i++) {
            s.turn++;
            a[i] = bench_run(permute, &s, 1);
            s.turn += 2;
            b[i] = bench_run(copy, &s, 1);
        }
        x = bench_median(a, ROUNDS);
        y = bench_median(b, ROUNDS);
        printf("permutation of %d assignments: %.3f ms, %.2f ns each, %.2f x a memcpy of the bytes it touches "
               "(aim 6)\n",
               T * K, 1e3 * x, 1e9 * x / (T * K), x / y);
    }
    printf("other processes used %.1f %% of the machine meanwhile\n", 100 * bench_others(&load));
    return 0;
}
