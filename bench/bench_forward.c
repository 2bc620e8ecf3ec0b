/* bench/bench_forward.c - how far is the CPU expert layer from the limits of this machine, and from OpenBLAS?
 * SPDX-License-Identifier: MIT
 *
 * usage: bench_forward [--quick] [--threads N] [--shape NAME] [--tokens N] [--isa 1|2|3|4] [--type f32|bf16|f16|int8]
 *                      [--exact|--vector] [--hot] [--peer LIBRARY]... [--repack] [--hogs N] [--seconds S]
 * bound = max(bytes of the active experts / stream bandwidth, flops / peak of the unit used), both limits measured
 * here, in this process, in turn with the layer: medians.  Weights are cold: every repetition routes anew over more
 * weights than the caches hold.  Ours, the per-expert OpenBLAS loop and the peers (bench/peers/ggml_forward.c) are
 * timed in turn; medians.  --exact: bf16 weights with fp32 activations; --vector: no AMX.  --hogs: the same once more
 * with N busy processes beside it. */
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "moe_ep.h"
#include "threads.h"

#include "roofline.h"

/* The one BLAS routine, weak: without BLAS the column stays empty. */
#if defined(__GNUC__)
extern void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                        const float *b, int ldb, float beta, float *c, int ldc) __attribute__((weak));
#endif

typedef struct shape {
    const char *name;
    int experts, top_k, hidden, inter;
} shape;

static const shape shapes[] = {{"qwen3-30b", 128, 8, 2048, 768},
                               {"phi-tiny", 16, 2, 4096, 448},
                               {"mixtral-8x7b", 8, 2, 4096, 14336},
                               {"deepseek-v3/8", 32, 8, 7168, 2048}};

typedef struct options {
    int quick, threads, hot, isa, tokens, hogs, repack, peers;
    moe_ep_products products;
    double seconds;
    const char *shape, *type, *peer[4];
} options;

enum { RUNS = 40, PEERS = 4, READ = 400000000 };

/* One library made from bench/peers/ggml_forward.c. */
typedef struct peer {
    const char *name;
    void *library, *layer;
    void *(*open)(int, int, int, int, int, const void *, const void *, const void *, int, int);
    int (*prepare)(void *, int64_t);
    void (*inputs)(void *, const float *, const int32_t *, const float *);
    int (*run)(void *);
    const float *(*result)(void *);
    void (*close)(void *);
} peer;

/* One layer with random weights, and what the loop over experts needs. */
typedef struct layer {
    const shape *s;
    moe_ep_weights w;
    char *gate, *up, *down;
    float *scale, *x, *y, *g, *u, *rows, *out;
    int32_t *ids;
    float *weights;
    int64_t tokens;
} layer;

static uint64_t state = 1;
static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Random values of small size without a slow conversion: the exponent stays below that of 0.06. */
static void fill(char *mem, int64_t n, moe_ep_dtype dtype)
{
    int64_t i;
    for (i = 0; i < n; i++) {
        uint64_t r = next_random();
        float v = ((float)(r & 0xffff) - 32768.0f) * (0.05f / 32768.0f);
        if (dtype == MOE_EP_F32) ((float *)mem)[i] = v;
        else if (dtype == MOE_EP_I8) ((int8_t *)mem)[i] = (int8_t)((int)(r % 255) - 127);
        else ((uint16_t *)mem)[i] = dtype == MOE_EP_BF16 ? moe_ep_bf16_from_f32(v) : moe_ep_f16_from_f32(v);
    }
}

static int64_t bytes_of(moe_ep_dtype dtype) { return dtype == MOE_EP_F32 ? 4 : dtype == MOE_EP_I8 ? 1 : 2; }

static void layer_open(layer *l, const shape *s, moe_ep_dtype dtype, int64_t max_tokens)
{
    int64_t n = (int64_t)s->experts * s->hidden * s->inter, eb = bytes_of(dtype), i;
    memset(l, 0, sizeof *l);
    l->s = s;
    l->gate = (char *)bench_alloc((size_t)(n * eb));
    l->up = (char *)bench_alloc((size_t)(n * eb));
    l->down = (char *)bench_alloc((size_t)(n * eb));
    fill(l->gate, n, dtype);
    fill(l->up, n, dtype);
    fill(l->down, n, dtype);
    l->w.num_experts = s->experts;
    l->w.hidden = s->hidden;
    l->w.inter = s->inter;
    l->w.dtype = dtype;
    l->w.gate = l->gate;
    l->w.up = l->up;
    l->w.down = l->down;
    if (dtype == MOE_EP_I8) {
        int64_t rows = (int64_t)s->experts * (s->inter > s->hidden ? s->inter : s->hidden);
        l->scale = (float *)bench_alloc(sizeof(float) * (size_t)rows);
        for (i = 0; i < rows; i++) l->scale[i] = 0.05f / 127.0f;
        l->w.gate_scale = l->w.up_scale = l->w.down_scale = l->scale;
    }
    l->x = (float *)bench_alloc(sizeof(float) * (size_t)(max_tokens * s->hidden));
    l->y = (float *)bench_alloc(sizeof(float) * (size_t)(max_tokens * s->hidden));
    l->rows = (float *)bench_alloc(sizeof(float) * (size_t)(max_tokens * s->hidden));
    l->out = (float *)bench_alloc(sizeof(float) * (size_t)(max_tokens * s->hidden));
    l->g = (float *)bench_alloc(sizeof(float) * (size_t)(max_tokens * s->inter));
    l->u = (float *)bench_alloc(sizeof(float) * (size_t)(max_tokens * s->inter));
    l->ids = (int32_t *)bench_alloc(sizeof(int32_t) * (size_t)(max_tokens * s->top_k));
    l->weights = (float *)bench_alloc(sizeof(float) * (size_t)(max_tokens * s->top_k));
    for (i = 0; i < max_tokens * s->hidden; i++) l->x[i] = ((float)(next_random() & 0xffff) - 32768.0f) / 32768.0f;
}

static void layer_close(layer *l)
{
    free(l->gate), free(l->up), free(l->down), free(l->x), free(l->y), free(l->rows), free(l->out);
    free(l->g), free(l->u), free(l->ids), free(l->weights), free(l->scale);
}

/* Random distinct choices; returns the number of experts that have tokens. */
static int route(layer *l, int64_t tokens)
{
    char used[1024] = {0};
    int64_t t;
    int k, j, active = 0;
    l->tokens = tokens;
    for (t = 0; t < tokens; t++) {
        for (k = 0; k < l->s->top_k; k++) {
            int32_t e, again = 1;
            while (again) {
                e = (int32_t)(next_random() % (uint64_t)l->s->experts);
                for (again = 0, j = 0; j < k; j++) again |= l->ids[t * l->s->top_k + j] == e;
                l->ids[t * l->s->top_k + k] = e;
            }
            active += !used[l->ids[t * l->s->top_k + k]];
            used[l->ids[t * l->s->top_k + k]] = 1;
            l->weights[t * l->s->top_k + k] = 1.0f / (float)l->s->top_k;
        }
    }
    return active;
}

/* c (m,n) = a (m,k) . w (n,k)^T */
static void product(const float *a, const char *w, int64_t first, float *c, int m, int n, int k)
{
    cblas_sgemm(101, 111, 112, m, n, k, 1.0f, a, k, (const float *)(const void *)w + first, k, 0.0f, c, n);
}

/* Gather, three products per expert, activation, scatter: what one writes with BLAS at hand. */
static double blas_loop(layer *l)
{
    const shape *s = l->s;
    int64_t per = (int64_t)s->hidden * s->inter, i, t;
    double start = bench_now();
    int e, h, k;
    memset(l->out, 0, sizeof(float) * (size_t)(l->tokens * s->hidden));
    for (e = 0; e < s->experts; e++) {
        int m = 0;
        for (i = 0; i < l->tokens * s->top_k; i++)
            if (l->ids[i] == e)
                memcpy(l->rows + (int64_t)m++ * s->hidden, l->x + i / s->top_k * s->hidden,
                       sizeof(float) * (size_t)s->hidden);
        if (m == 0) continue;
        product(l->rows, l->gate, e * per, l->g, m, s->inter, s->hidden);
        product(l->rows, l->up, e * per, l->u, m, s->inter, s->hidden);
        for (i = 0; i < (int64_t)m * s->inter; i++) {
            float v = -l->g[i] * 1.44269504f; /* cheap exponential, so that it is the products that are timed */
            union { float f; int32_t i; } p;
            float n = (float)(int)(v < 0.0f ? v - 0.5f : v + 0.5f), r = v - n, q = 0.0013333f + r * 0.000154f;
            p.i = ((int32_t)n + 127) << 23;
            q = 1.0f + r * (0.6931472f + r * (0.2402265f + r * (0.0555041f + r * (0.0096181f + r * q))));
            l->g[i] = l->g[i] / (1.0f + p.f * q) * l->u[i];
        }
        product(l->g, l->down, e * per, l->rows, m, s->hidden, s->inter);
        for (m = 0, t = 0; t < l->tokens; t++)
            for (k = 0; k < s->top_k; k++)
                if (l->ids[t * s->top_k + k] == e) {
                    for (h = 0; h < s->hidden; h++)
                        l->out[t * s->hidden + h] += l->weights[t * s->top_k + k] * l->rows[(int64_t)m * s->hidden + h];
                    m++;
                }
    }
    return bench_now() - start;
}

static double ours(layer *l, moe_ep_forward_desc *d, moe_ep_scratch *scratch)
{
    moe_ep_error err;
    double start = bench_now();
    if (moe_ep_forward(d, l->x, l->tokens, l->y, scratch, &err) != MOE_EP_OK) {
        fprintf(stderr, "bench_forward: %s %s\n", err.arg, err.what);
        exit(1);
    }
    return bench_now() - start;
}

/* Largest difference of the two results, over the largest value. */
static double difference(const layer *l, const float *other)
{
    double top = 0.0, diff = 0.0;
    int64_t i;
    for (i = 0; i < l->tokens * l->s->hidden; i++) {
        double a = (double)l->y[i], b = (double)other[i];
        if (b > top || -b > top) top = b > 0 ? b : -b;
        if (a - b > diff || b - a > diff) diff = a > b ? a - b : b - a;
    }
    return top > 0.0 ? diff / top : diff;
}

/* ---- peers ---- */

static void peer_load(peer *p, const char *path)
{
    const char *(*name)(void);
    memset(p, 0, sizeof *p);
    p->library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND); /* two peers export the same names */
    if (!p->library) {
        fprintf(stderr, "bench_forward: %s\n", dlerror());
        exit(2);
    }
    *(void **)&name = dlsym(p->library, "peer_name");
    *(void **)&p->open = dlsym(p->library, "peer_open");
    *(void **)&p->prepare = dlsym(p->library, "peer_prepare");
    *(void **)&p->inputs = dlsym(p->library, "peer_inputs");
    *(void **)&p->run = dlsym(p->library, "peer_run");
    *(void **)&p->result = dlsym(p->library, "peer_result");
    *(void **)&p->close = dlsym(p->library, "peer_close");
    if (!name || !p->open || !p->prepare || !p->inputs || !p->run || !p->result || !p->close) {
        fprintf(stderr, "bench_forward: %s is no peer\n", path);
        exit(2);
    }
    p->name = name();
}

static double peer_time(peer *p, layer *l)
{
    double start;
    p->inputs(p->layer, l->x, l->ids, l->weights);
    start = bench_now();
    if (!p->run(p->layer)) {
        fprintf(stderr, "bench_forward: %s failed\n", p->name);
        exit(1);
    }
    start = bench_now() - start;
    nanosleep(&(struct timespec){0, 30000000}, NULL); /* its threads spin on for a while */
    return start;
}

/* ---- busy neighbours ---- */

static pid_t hog[64];
static void hogs_start(int n)
{
    for (int i = 0; i < n && i < 64; i++) {
        hog[i] = fork();
        if (hog[i] == 0)
            for (;;) __asm__ volatile("");
    }
}
static void hogs_stop(int n)
{
    for (int i = 0; i < n && i < 64; i++)
        if (hog[i] > 0) kill(hog[i], SIGKILL), waitpid(hog[i], NULL, 0);
}

/* ---- measuring ---- */

typedef struct result {
    double ours, blas, peer[PEERS], GBps, bytes, peak;
} result;

/* Reads 400 MB: a third of the weights, or where these are smaller, memory of its own. */
static double stream_GBps(threads_pool *pool, const char *third, size_t size)
{
    static char *other;
    if (size >= (size_t)READ) return limits_read_GBps(pool, third, READ);
    if (!other) {
        other = (char *)bench_alloc(READ);
        memset(other, 1, READ);
    }
    return limits_read_GBps(pool, other, READ);
}

/* Before each of the others, as before ours: the caches hold something else, and the routing is new. */
static void cool(const options *o, layer *l, int64_t tokens, threads_pool *pool, const char *third, size_t size)
{
    if (o->hot) return;
    route(l, tokens);
    stream_GBps(pool, third, size);
}

static result times(const options *o, layer *l, int64_t tokens, moe_ep_forward_desc *d, peer *peers, threads_pool *pool,
                    double *diff)
{
    double mine[RUNS], blas[RUNS], other[PEERS][RUNS], limit[RUNS], peak[RUNS], spent = 0.0;
    int i, k, runs = 0, active, with_blas = cblas_sgemm != NULL && l->w.dtype == MOE_EP_F32;
    double per = 3.0 * l->s->hidden * l->s->inter * (double)bytes_of(l->w.dtype);
    const char *third[] = {l->gate, l->up, l->down};
    size_t size = (size_t)((double)l->s->experts * per / 3.0);
    moe_ep_scratch scratch;
    result r;
    memset(&r, 0, sizeof r);
    memset(&scratch, 0, sizeof scratch);
    active = route(l, tokens);
    ours(l, d, &scratch); /* memory is taken here */
    if (with_blas) {
        blas_loop(l);
        diff[0] = difference(l, l->out);
    }
    for (k = 0; k < o->peers; k++) {
        peer_time(&peers[k], l);
        diff[1 + k] = difference(l, peers[k].result(peers[k].layer));
    }
    for (i = 0; i < RUNS && (i < 3 || spent < o->seconds); i++, runs++) {
        if (!o->hot) active = route(l, tokens);
        peak[i] = limits_peak_once(pool, moe_ep_forward_unit(d));
        limit[i] = stream_GBps(pool, third[i % 3], size);
        mine[i] = ours(l, d, &scratch);
        r.bytes += active * per;
        spent += mine[i];
        if (with_blas) {
            cool(o, l, tokens, pool, third[i % 3], size);
            spent += blas[i] = blas_loop(l);
        }
        for (k = 0; k < o->peers; k++) {
            cool(o, l, tokens, pool, third[i % 3], size);
            spent += other[k][i] = peer_time(&peers[k], l);
        }
    }
    r.bytes /= runs;
    r.GBps = bench_median(limit, runs);
    r.peak = bench_median(peak, runs);
    r.ours = bench_median(mine, runs);
    if (with_blas) r.blas = bench_median(blas, runs);
    for (k = 0; k < o->peers; k++) r.peer[k] = bench_median(other[k], runs);
    moe_ep_scratch_free(&scratch);
    return r;
}

static void measure(const options *o, layer *l, int64_t tokens, peer *peers, threads_pool *pool)
{
    moe_ep_forward_desc d;
    double diff[1 + PEERS] = {0}, bound, flops = 6.0 * l->s->hidden * l->s->inter * (double)tokens * l->s->top_k;
    bench_load since = bench_load_now();
    result r, busy;
    int k;
    memset(&d, 0, sizeof d);
    d.experts = &l->w;
    d.top_k = l->s->top_k;
    d.ids = l->ids;
    d.choice_weights = l->weights;
    d.isa_max = (moe_ep_isa)o->isa;
    d.products = o->products;
    d.parallel_for = pool ? threads_run : NULL;
    d.parallel_user = pool;
    for (k = 0; k < o->peers; k++) peers[k].prepare(peers[k].layer, tokens);
    r = times(o, l, tokens, &d, peers, pool, diff);
    bound = r.bytes * 1e-9 / r.GBps;
    if (r.peak > 0.0 && flops * 1e-9 / r.peak > bound) bound = flops * 1e-9 / r.peak;
    printf("%-14s %-5s %6lld %10.3f %10.3f %6.1f%% %6.1f %8.1f %9.1f", l->s->name, o->type, (long long)tokens,
           1e3 * bound, 1e3 * r.ours, 100.0 * bound / r.ours, r.GBps, r.bytes * 1e-9 / r.ours, flops * 1e-9 / r.ours);
    if (r.blas > 0.0) printf(" %10.3f %6.2fx  %.0e", 1e3 * r.blas, r.blas / r.ours, diff[0]);
    else printf(" %10s %7s  %5s", "-", "-", "-");
    for (k = 0; k < o->peers; k++) printf(" %10.3f %6.2fx  %.0e", 1e3 * r.peer[k], r.peer[k] / r.ours, diff[1 + k]);
    printf(" %5.0f%%\n", 100.0 * bench_others(&since));
    if (o->hogs > 0) {
        hogs_start(o->hogs);
        busy = times(o, l, tokens, &d, peers, pool, diff);
        hogs_stop(o->hogs);
        printf("%-14s %-5s %6lld with %d busy processes: ours %.2fx slower", "", "", (long long)tokens, o->hogs,
               busy.ours / r.ours);
        if (r.blas > 0.0) printf(", BLAS %.2fx", busy.blas / r.blas);
        for (k = 0; k < o->peers; k++) printf(", %s %.2fx", peers[k].name, busy.peer[k] / r.peer[k]);
        printf("\n");
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const int all_tokens[] = {1, 4, 16, 64, 256, 1024};
    static const char *types[] = {"f32", "bf16", "f16", "int8"};
    options o;
    peer peers[PEERS];
    threads_pool *pool;
    size_t i, k;
    int t, a, p;
    memset(&o, 0, sizeof o);
    o.threads = 2;
    o.products = MOE_EP_PRODUCTS_BF16;
    for (a = 1; a < argc; a++) {
        int more = a + 1 < argc;
        if (strcmp(argv[a], "--quick") == 0) o.quick = 1;
        else if (strcmp(argv[a], "--hot") == 0) o.hot = 1;
        else if (strcmp(argv[a], "--exact") == 0) o.products = MOE_EP_PRODUCTS_F32;
        else if (strcmp(argv[a], "--vector") == 0) o.products = MOE_EP_PRODUCTS_BF16_VECTOR;
        else if (strcmp(argv[a], "--repack") == 0) o.repack = 1;
        else if (strcmp(argv[a], "--threads") == 0 && more) o.threads = atoi(argv[++a]);
        else if (strcmp(argv[a], "--hogs") == 0 && more) o.hogs = atoi(argv[++a]);
        else if (strcmp(argv[a], "--seconds") == 0 && more) o.seconds = atof(argv[++a]);
        else if (strcmp(argv[a], "--peer") == 0 && more && o.peers < PEERS) o.peer[o.peers++] = argv[++a];
        else if (strcmp(argv[a], "--shape") == 0 && more) o.shape = argv[++a];
        else if (strcmp(argv[a], "--tokens") == 0 && more) o.tokens = atoi(argv[++a]);
        else if (strcmp(argv[a], "--isa") == 0 && more) o.isa = atoi(argv[++a]);
        else if (strcmp(argv[a], "--type") == 0 && more) o.type = argv[++a];
        else {
            fprintf(stderr, "bench_forward: what is '%s'?\n", argv[a]);
            return 2;
        }
    }
    if (o.threads < 1 || o.threads > 16) o.threads = 2;
    (void)bench_read_part; /* of bench.h: the limits are those of roofline.h */
    if (!(o.seconds > 0.0)) o.seconds = o.quick ? 0.6 : 4.0;
    for (p = 0; p < o.peers; p++) peer_load(&peers[p], o.peer[p]);
    pool = o.threads > 1 ? threads_start(o.threads) : NULL;
    nanosleep(&(struct timespec){0, 50000000}, NULL); /* lets the workers settle on cores of their own */
    printf("%s, %d threads\n%-14s %-5s %6s %10s %10s %7s %6s %8s %9s %10s %7s  %5s", bench_cpu(), o.threads, "shape",
           "type", "tokens", "bound ms", "ours ms", "of it", "read", "GB/s", "GFLOP/s", "BLAS ms", "ratio", "diff");
    for (p = 0; p < o.peers; p++) printf(" %10s %7s  %5s", peers[p].name, "ratio", "diff");
    printf(" %6s\n", "others");
    for (i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        shape s = shapes[i];
        if (o.shape && strcmp(o.shape, s.name) != 0) continue;
        if (o.quick && !o.shape && i > 1) break;
        for (t = 0; t < 4; t++) {
            const char *wanted = o.type;
            moe_ep_forward_desc d;
            double peak;
            layer l;
            int peers_here = o.peers;
            if (wanted && strcmp(wanted, types[t]) != 0) continue;
            if (!wanted && t >= 2) continue; /* fp16 streams as bf16 does: on request */
            layer_open(&l, &s, (moe_ep_dtype)t, 1024);
            memset(&d, 0, sizeof d);
            d.experts = &l.w;
            d.isa_max = (moe_ep_isa)o.isa;
            d.products = o.products;
            peak = limits_peak_GFLOPs(pool, moe_ep_forward_unit(&d));
            printf("unit %s, at most %.0f GFLOP/s\n", moe_ep_forward_unit(&d), peak);
            if (t == 3) o.peers = 0;
            for (p = 0; p < o.peers; p++)
                peers[p].layer = peers[p].open(t, s.experts, s.top_k, s.hidden, s.inter, l.gate, l.up, l.down,
                                               o.threads, o.repack);
            o.type = types[t];
            for (k = 0; k < sizeof all_tokens / sizeof all_tokens[0]; k++) {
                if (o.tokens && o.tokens != all_tokens[k]) continue;
                if (!o.tokens && (k == 1 || (o.quick && k == 5))) continue;
                measure(&o, &l, all_tokens[k], peers, pool);
            }
            for (p = 0; p < o.peers; p++) peers[p].close(peers[p].layer);
            o.peers = peers_here;
            o.type = wanted;
            layer_close(&l);
        }
    }
    threads_stop(pool);
    return 0;
}
