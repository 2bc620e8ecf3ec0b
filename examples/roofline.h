/* examples/roofline.h - what this machine can do at most: bytes read from memory, products of each vector unit.
 * SPDX-License-Identifier: MIT
 *
 * Include after moe_ep.h and threads.h.  All figures are for the threads of the pool together (NULL = this thread). */
#ifndef ROOFLINE_H
#define ROOFLINE_H

#include <stdint.h>
#include <string.h>
#include <time.h>

static double limits_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void limits_run(threads_pool *pool, int64_t count, moe_ep_task task, void *context)
{
    int64_t i;
    if (pool) threads_run(pool, count, task, context);
    else for (i = 0; i < count; i++) task(context, i);
}

/* ---- reading ---- */

enum { LIMITS_PIECES = 64 };
typedef struct limits_data {
    const uint64_t *words;
    size_t count;
    int avx2; /* asked for once: the question itself takes long in a virtual machine */
} limits_data;

/* Four streams at a time: memory gives more to several than to one. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
__attribute__((target("avx2"))) static void limits_read_avx2(const uint64_t *p, size_t quarter)
{
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    size_t i;
#define LIMITS_AT(k, v) \
    v = _mm256_xor_si256(v, _mm256_loadu_si256((const __m256i *)(const void *)(p + (k) * quarter + i)))
    for (i = 0; i + 4 <= quarter; i += 4) LIMITS_AT(0, a), LIMITS_AT(1, b), LIMITS_AT(2, c), LIMITS_AT(3, d);
#undef LIMITS_AT
    a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
    __asm__ volatile("" : : "x"(a));
}
#endif

static void limits_read_task(void *context, int64_t index)
{
    const limits_data *d = (const limits_data *)context;
    size_t n = d->count / LIMITS_PIECES / 16 * 16, i, k;
    const uint64_t *p = d->words + n * (size_t)index;
    uint64_t sum[4] = {0};
#if defined(__x86_64__) && defined(__GNUC__)
    if (d->avx2) {
        limits_read_avx2(p, n / 4);
        return;
    }
#endif
    for (i = 0; i < n / 4; i++)
        for (k = 0; k < 4; k++) sum[k] ^= p[k * (n / 4) + i];
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    __asm__ volatile("" : : "r"(sum[0]));
}

static void limits_nothing(void *context, int64_t index) { (void)context, (void)index; }

/* GB/s (1e9) of one pass over data, which should be larger than the caches; the threads are awake before it begins. */
static double limits_read_GBps(threads_pool *pool, const void *data, size_t bytes)
{
    limits_data d;
    double start;
    d.words = (const uint64_t *)data;
    d.count = bytes / 8;
    d.avx2 = moe_ep_isa_best() == MOE_EP_ISA_AVX2 || moe_ep_isa_best() == MOE_EP_ISA_AVX512;
    limits_run(pool, LIMITS_PIECES, limits_nothing, NULL);
    start = limits_now();
    limits_run(pool, LIMITS_PIECES, limits_read_task, &d);
    return (double)bytes * 1e-9 / (limits_now() - start);
}

/* ---- multiplying: independent chains in registers, one operand from a load as in a kernel ---- */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
enum { LIMITS_ROUNDS = 100000 };
#define LIMITS_12(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define LIMITS_24(F) LIMITS_12(F) F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23)
static float limits_factor[16] = {0.999f, 0.999f, 0.999f, 0.999f, 0.999f, 0.999f, 0.999f, 0.999f,
                                  0.999f, 0.999f, 0.999f, 0.999f, 0.999f, 0.999f, 0.999f, 0.999f};

#define LIMITS_CHAINS(NAME, TARGET, LIST, TYPE, FIRST, STEP, ADD, STORE)                                            \
    __attribute__((target(TARGET))) static void NAME(void *context, int64_t index)                                  \
    {                                                                                                               \
        TYPE a[24], sum = FIRST(0.001f);                                                                            \
        float out[16];                                                                                              \
        int i;                                                                                                      \
        (void)context, (void)index;                                                                                 \
        LIST(LIMITS_BEGIN_##NAME)                                                                                   \
        for (i = 0; i < LIMITS_ROUNDS; i++) {                                                                       \
            __asm__ volatile("" : : : "memory");                                                                    \
            STEP                                                                                                    \
        }                                                                                                           \
        LIST(LIMITS_END_##NAME)                                                                                     \
        STORE(out, sum);                                                                                            \
        __asm__ volatile("" : : "r"(out) : "memory");                                                               \
    }
#define LIMITS_BEGIN_limits_fma_256(k) a[k] = _mm256_set1_ps((float)(k));
#define LIMITS_END_limits_fma_256(k) sum = _mm256_add_ps(sum, a[k]);
#define LIMITS_FMA_256(k) a[k] = _mm256_fmadd_ps(a[k], m, sum);
LIMITS_CHAINS(limits_fma_256, "avx2,fma", LIMITS_12, __m256, _mm256_set1_ps,
              { __m256 m = _mm256_loadu_ps(limits_factor); LIMITS_12(LIMITS_FMA_256) }, _mm256_add_ps, _mm256_storeu_ps)
#define LIMITS_BEGIN_limits_fma_512(k) a[k] = _mm512_set1_ps((float)(k));
#define LIMITS_END_limits_fma_512(k) sum = _mm512_add_ps(sum, a[k]);
#define LIMITS_FMA_512(k) a[k] = _mm512_fmadd_ps(a[k], m, sum);
LIMITS_CHAINS(limits_fma_512, "avx512f", LIMITS_24, __m512, _mm512_set1_ps,
              { __m512 m = _mm512_loadu_ps(limits_factor); LIMITS_24(LIMITS_FMA_512) }, _mm512_add_ps, _mm512_storeu_ps)
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define LIMITS_BF16 1
#define LIMITS_BEGIN_limits_bf16_512(k) a[k] = _mm512_set1_ps((float)(k));
#define LIMITS_END_limits_bf16_512(k) sum = _mm512_add_ps(sum, a[k]);
#define LIMITS_DP(k) a[k] = _mm512_dpbf16_ps(a[k], m, m);
LIMITS_CHAINS(limits_bf16_512, "avx512f,avx512bf16", LIMITS_24, __m512, _mm512_set1_ps,
              { __m512bh m = (__m512bh)_mm512_loadu_ps(limits_factor); LIMITS_24(LIMITS_DP) }, _mm512_add_ps,
              _mm512_storeu_ps)
/* Six tiles of sums, as the layer has them. */
static void limits_amx(void *context, int64_t index)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape;
    int i;
    (void)context, (void)index;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
    for (i = 0; i < LIMITS_ROUNDS / 100; i++)
        __asm__ volatile("tdpbf16ps %%tmm7, %%tmm6, %%tmm0\n\ttdpbf16ps %%tmm7, %%tmm6, %%tmm1\n\t"
                         "tdpbf16ps %%tmm7, %%tmm6, %%tmm2\n\ttdpbf16ps %%tmm7, %%tmm6, %%tmm3\n\t"
                         "tdpbf16ps %%tmm7, %%tmm6, %%tmm4\n\ttdpbf16ps %%tmm7, %%tmm6, %%tmm5" : : : "memory");
    __asm__ volatile("tilerelease");
}
#endif
#endif

/* GFLOP/s of a unit by its name (moe_ep_forward_unit), of one short reading; 0 = not known. */
static double limits_peak_once(threads_pool *pool, const char *unit)
{
    moe_ep_task task = NULL;
    double flops = 0.0, t;
    int64_t count = 4 * (pool ? pool->threads : 1);
#if defined(__x86_64__) && defined(__GNUC__)
    if (strcmp(unit, "avx2") == 0) task = limits_fma_256, flops = 12.0 * 16.0 * LIMITS_ROUNDS;
    if (strcmp(unit, "avx512") == 0) task = limits_fma_512, flops = 24.0 * 32.0 * LIMITS_ROUNDS;
#ifdef LIMITS_BF16
    if (strcmp(unit, "avx512-bf16") == 0) task = limits_bf16_512, flops = 24.0 * 64.0 * LIMITS_ROUNDS;
    if (strcmp(unit, "amx-bf16") == 0) task = limits_amx, flops = 6.0 * 16384.0 * (LIMITS_ROUNDS / 100);
#endif
#else
    (void)unit;
#endif
    if (!task) return 0.0;
    t = limits_now();
    limits_run(pool, count, task, NULL);
    return (double)count * flops * 1e-9 / (limits_now() - t);
}

/* The best of fifteen of them. */
static double limits_peak_GFLOPs(threads_pool *pool, const char *unit)
{
    double best = 0.0;
    int i;
    for (i = 0; i < 15; i++) {
        double now = limits_peak_once(pool, unit);
        if (now > best) best = now; /* the limit is the best one */
    }
    return best;
}

#endif
