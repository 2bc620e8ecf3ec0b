/* bench/peers/forward_versions.c - builds of moe_ep.h against each other: the expert layer, by turns in one process.
 * SPDX-License-Identifier: MIT
 *
 *   mkdir old && git show COMMIT:moe_ep.h >old/moe_ep.h     (any other version, or a change that is on trial)
 *   for d in old .; do printf '#define MOE_EP_IMPLEMENTATION\n#include <moe_ep.h>\n' |
 *     cc -O2 -shared -fPIC -I$d -x c - -o $d/version.so -lm; done
 *   cc -O2 -I. -Iexamples -Ibench bench/peers/forward_versions.c -o forward_versions -ldl -lm -lpthread
 *   chrt -f 1 ./forward_versions SHAPE TYPE TOKENS ROUNDS old/version.so ./version.so
 * SHAPE qwen, phi, deepseek or mixtral (sizes as in bench_forward, but 16 and 4 experts of the last two); TYPE f32,
 * bf16, f16 or int8; MOE_EP_ISA=2 for AVX2.  Before each call 160 MB are read, so that every version finds its
 * weights in memory, and the result is compared with the first version's, bit by bit.  Medians over the rounds: GB/s
 * of the weights; how many times as fast as the first version (each round a ratio); share of the reading; and where
 * the time goes: outside of the two expert stages, and threads waiting at the end of a stage. */
#define _GNU_SOURCE
#define MOE_EP_STATIC /* what the machine has; the layers come from the libraries */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "moe_ep.h"
#include "threads.h"
#include "roofline.h"

enum { THREADS = 2, MOST_VERSIONS = 8, MOST_ROUNDS = 5000, READ_BYTES = 160000000 };

typedef struct shape {
    const char *name;
    int experts, top_k, hidden, inter;
} shape;
static const shape shapes[] = {{"qwen", 128, 8, 2048, 768}, {"phi", 16, 2, 4096, 448}, {"deepseek", 16, 8, 7168, 2048},
                               {"mixtral", 4, 2, 4096, 14336}};
static const char *const types[] = {"f32", "bf16", "f16", "int8"};
static const size_t type_bytes[] = {4, 2, 2, 1};

typedef moe_ep_status (*forward_function)(const moe_ep_forward_desc *, const float *, int64_t, float *,
                                          moe_ep_scratch *, moe_ep_error *);
typedef struct version {
    const char *path;
    forward_function forward;
    moe_ep_scratch scratch;
    float *y;
    double seconds[MOST_ROUNDS], outside[MOST_ROUNDS], waiting[MOST_ROUNDS];
} version;

static void stop(const char *what, const char *name)
{
    fprintf(stderr, "forward_versions: %s %s\n", what, name);
    exit(2);
}

/* ---- threads that say when each of them had nothing more to do -------------------------------------------- */

typedef struct watch {
    threads_pool *pool;
    moe_ep_task task;
    void *context;
    double last[64];      /* when each thread finished its last task, one cache line apart */
    double inside, waiting;
} watch;
static __thread int my_place = -1;
static int places;

static void watched_task(void *context, int64_t index)
{
    watch *w = (watch *)context;
    w->task(w->context, index);
    if (my_place < 0) my_place = __sync_fetch_and_add(&places, 1) % THREADS;
    w->last[8 * my_place] = bench_now();
}

static void watched_run(void *user, int64_t count, moe_ep_task task, void *context)
{
    watch *w = (watch *)user;
    double begin = bench_now(), end;
    int i;
    w->task = task;
    w->context = context;
    for (i = 0; i < THREADS; i++) w->last[8 * i] = begin;
    threads_run(w->pool, count, watched_task, w);
    end = bench_now();
    w->inside += end - begin;
    for (i = 0; i < THREADS; i++) w->waiting += (end - w->last[8 * i]) / THREADS;
}

/* ---- a layer ------------------------------------------------------------------------------------------------ */

static uint64_t state = 88172645463325252u;
static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void *random_weights(int64_t n, int type)
{
    unsigned char *w = (unsigned char *)bench_alloc((size_t)n * type_bytes[type]);
    int64_t i;
    for (i = 0; i < n; i++) {
        uint64_t r = draw();
        if (type == MOE_EP_F32) ((float *)w)[i] = ((float)(r & 0xffff) - 32768.0f) * 1e-6f;
        else if (type == MOE_EP_I8) w[i] = (unsigned char)r;
        else ((uint16_t *)w)[i] = (uint16_t)((type == MOE_EP_BF16 ? 0x3c00 : 0x1c00) | (r & 0x80ff));
    }
    return w;
}

/* Chooses for every token; returns the number of experts that were chosen. */
static int route(const shape *s, int64_t tokens, int32_t *ids, float *weights)
{
    char *used = (char *)calloc((size_t)s->experts, 1);
    int active = 0;
    int64_t t;
    int k, i;
    for (t = 0; t < tokens; t++)
        for (k = 0; k < s->top_k; k++) {
            int32_t e;
            do {
                e = (int32_t)(draw() % (uint64_t)s->experts);
                for (i = 0; i < k && ids[t * s->top_k + i] != e; i++) {}
            } while (i < k);
            ids[t * s->top_k + k] = e;
            weights[t * s->top_k + k] = 1.0f / (float)s->top_k;
            active += !used[e];
            used[e] = 1;
        }
    free(used);
    return active;
}

static void print_version(version *v, const version *first, const double *read, const double *bytes, int rounds)
{
    static double rate[MOST_ROUNDS], ratio[MOST_ROUNDS], share[MOST_ROUNDS];
    int r;
    for (r = 0; r < rounds; r++) {
        rate[r] = bytes[r] * 1e-9 / v->seconds[r];
        ratio[r] = first->seconds[r] / v->seconds[r];
        share[r] = 100.0 * rate[r] / read[r];
        v->outside[r] *= 100.0 / v->seconds[r];
        v->waiting[r] *= 100.0 / v->seconds[r];
    }
    printf("  %-24s %6.1f GB/s  %5.3fx  %3.0f %% of the reading; outside the stages %.1f %%, waiting %.1f %%\n",
           v->path, bench_median(rate, rounds), bench_median(ratio, rounds), bench_median(share, rounds),
           bench_median(v->outside, rounds), bench_median(v->waiting, rounds));
}

int main(int argc, char **argv)
{
    static version versions[MOST_VERSIONS];
    static double read[MOST_ROUNDS], bytes[MOST_ROUNDS];
    const shape *s = NULL;
    int type = -1, count = argc - 5, rounds, v, r, i;
    const char *isa = getenv("MOE_EP_ISA");
    int64_t tokens, n, widest;
    moe_ep_weights w;
    moe_ep_forward_desc d;
    watch threads;
    void *big;
    float *x, *scale, *weights;
    int32_t *ids;
    if (count < 1 || count > MOST_VERSIONS) stop("usage:", "SHAPE TYPE TOKENS ROUNDS LIBRARY...");
    for (i = 0; i < 4; i++) {
        if (strcmp(argv[1], shapes[i].name) == 0) s = &shapes[i];
        if (strcmp(argv[2], types[i]) == 0) type = i;
    }
    if (!s) stop("no such shape:", argv[1]);
    if (type < 0) stop("no such type:", argv[2]);
    tokens = atoi(argv[3]);
    rounds = atoi(argv[4]);
    if (tokens < 1 || tokens > 65536) stop("tokens 1 to 65536:", argv[3]);
    if (rounds < 1 || rounds > MOST_ROUNDS) stop("rounds 1 to 5000:", argv[4]);

    memset(&w, 0, sizeof w);
    memset(&d, 0, sizeof d);
    memset(&threads, 0, sizeof threads);
    n = (int64_t)s->experts * s->hidden * s->inter;
    widest = s->hidden > s->inter ? s->hidden : s->inter;
    w.num_experts = s->experts, w.hidden = s->hidden, w.inter = s->inter, w.dtype = (moe_ep_dtype)type;
    w.gate = random_weights(n, type), w.up = random_weights(n, type), w.down = random_weights(n, type);
    scale = (float *)bench_alloc(sizeof *scale * (size_t)(s->experts * widest));
    for (i = 0; i < s->experts * widest; i++) scale[i] = 1e-3f;
    if (type == MOE_EP_I8) w.gate_scale = w.up_scale = w.down_scale = scale;
    x = (float *)bench_alloc(sizeof *x * (size_t)(tokens * s->hidden));
    for (n = 0; n < tokens * s->hidden; n++) x[n] = (float)(draw() % 1000) / 1000.0f - 0.5f;
    ids = (int32_t *)bench_alloc(sizeof *ids * (size_t)(tokens * s->top_k));
    weights = (float *)bench_alloc(sizeof *weights * (size_t)(tokens * s->top_k));
    big = bench_alloc(READ_BYTES);
    threads.pool = threads_start(THREADS);
    d.experts = &w, d.top_k = s->top_k, d.ids = ids, d.choice_weights = weights, d.products = MOE_EP_PRODUCTS_BF16;
    d.isa_max = isa ? (moe_ep_isa)atoi(isa) : MOE_EP_ISA_AUTO;
    d.parallel_for = watched_run, d.parallel_user = &threads;
    for (v = 0; v < count; v++) {
        void *library = dlopen(argv[5 + v], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
        versions[v].path = argv[5 + v];
        if (!library) stop("cannot load:", dlerror());
        *(void **)&versions[v].forward = dlsym(library, "moe_ep_forward");
        if (!versions[v].forward) stop("moe_ep_forward is not in", argv[5 + v]);
        versions[v].y = (float *)bench_alloc(sizeof(float) * (size_t)(tokens * s->hidden));
    }

    for (r = -1; r < rounds; r++) { /* the first round is for warming up */
        int active = route(s, tokens, ids, weights);
        for (i = 0; i < count; i++) {
            version *now = &versions[v = (i + r + count) % count];
            double rate = limits_read_GBps(threads.pool, big, READ_BYTES), begin;
            moe_ep_error err;
            threads.inside = threads.waiting = 0.0;
            begin = bench_now();
            if (now->forward(&d, x, tokens, now->y, &now->scratch, &err) != MOE_EP_OK) stop(now->path, err.what);
            begin = bench_now() - begin;
            if (r < 0) continue;
            now->seconds[r] = begin;
            now->outside[r] = begin - threads.inside;
            now->waiting[r] = threads.waiting;
            bytes[r] = 3.0 * active * s->hidden * s->inter * (double)type_bytes[type];
            if (i == 0) read[r] = rate;
        }
        for (v = 1; v < count; v++)
            if (memcmp(versions[0].y, versions[v].y, sizeof(float) * (size_t)(tokens * s->hidden)) != 0)
                stop("another result than the first:", versions[v].path);
    }
    printf("%s %s, %d tokens, reading %.1f GB/s\n", s->name, types[type], (int)tokens, bench_median(read, rounds));
    for (v = 0; v < count; v++) print_version(&versions[v], &versions[0], read, bytes, rounds);
    return 0;
}
