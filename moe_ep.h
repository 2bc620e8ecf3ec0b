/* moe_ep.h - v0.1.0 - Mixture-of-Experts routing and expert-parallel load-balance maths - MIT
 * SPDX-License-Identifier: MIT
 *
 * Which rank is the bottleneck of my expert-parallel MoE layer, what does it cost, what would
 * fixing it save, and is it worth it?  One C header answers, from the numbers alone:
 *
 *     efficiency = sum(loads) / (devices * max(device load)) = 1 / imbalance
 *
 * WHAT IT IS NOT
 *     No inference engine, no trainer, no CUDA, no MPI, no file format, no threads of its own.
 *     The routers, balancers, cost formulas and the CPU expert forward are here; GPUs, networks and
 *     files are the caller's, reached through hooks (section 10) or through the moe-ep tool.
 *
 * DO THIS
 *     In ONE .c or .cpp file:          In every file that calls it:
 *         #define MOE_EP_IMPLEMENTATION        #include "moe_ep.h"
 *         #include "moe_ep.h"
 *     Link with -lm.  Or put "#define MOE_EP_STATIC" before the include to get a private static copy.
 *
 * CONTENTS (each section uses only the sections above it; bodies stand in the same order)
 *      0 BASICS     version, status, error detail, scratch memory, random numbers
 *      1 ROUTE      logits -> expert ids and weights, every production router
 *      2 LOADS      ids -> counts, windows, co-activation
 *      3 BALANCE    every imbalance metric, and what pure chance would give
 *      4 CAPACITY   capacity by named formula, drops by named policy
 *      5 PLACE      experts and replicas -> slots on devices; bounds, plans, moves
 *      6 SPLIT      tokens over the replicas of an expert
 *      7 DISPATCH   permutations, layouts, traffic, combine
 *      8 COST       step time, communication, memory, configuration check
 *      9 FORWARD    the expert layer on the CPU
 *     10 HOOKS      the same layer over many ranks; where CUDA, MPI, ... plug in
 *     11 DIAGNOSE   is rebalancing worth it?
 *     12 SIMULATE   reproducible workloads
 *
 * SYMBOLS      T tokens, K experts per token (top-k), E experts, L MoE layers, D devices (ranks),
 *              N nodes, P slots (places for an expert's weights; P >= E), H hidden, I intermediate.
 *              Arrays are row-major and their shape is written (T,K).
 * UNITS        stand last in a name: _s seconds, _bytes, _Bps bytes per second.  A "row" is one
 *              (token, expert) assignment.
 * IDS          int32_t; -1 means "no expert" (a masked or padded choice): skipped and counted.
 *              Any other id outside 0..E-1 is an error that names its position.
 * TIES         go to the lowest index, always.
 * ERRORS       A function that can fail returns moe_ep_status (0 = OK, negative = error), or a number
 *              whose negative values are a moe_ep_status.  The last argument, moe_ep_error *err, may be
 *              NULL; otherwise it receives which argument, which element and which value was wrong.
 *              On error no output is touched.  The library never prints, exits, aborts or reads the
 *              environment.
 * ZERO         A zeroed struct is always safe to pass.  A required field left 0 is an error; an optional
 *              one left 0 (or NULL) means the simplest thing, said at the field.
 * MEMORY       Hot paths take no memory at all.  Functions that need some take a moe_ep_scratch:
 *                  NULL                 malloc and free inside the call
 *                  zeroed               grows when needed, kept for the next call, moe_ep_scratch_free
 *                  moe_ep_scratch_fixed caller's buffer, never allocates; too small is an error that
 *                                       leaves the number of bytes wanted in scratch.need
 * THREADS      No writable globals: every function is re-entrant, const inputs may be shared.
 * NUMBERS      Integer results are exact.  Floating-point sums run in a fixed order: the same input
 *              gives the same bits on one build.  NaN or infinity in a load is an error, never a result.
 *
 * COMPILE-TIME OPTIONS (define before the include that has MOE_EP_IMPLEMENTATION)
 *     MOE_EP_STATIC           everything static; implies the implementation
 *     MOE_EP_API              linkage of public functions (default extern)
 *     MOE_EP_USE_BLAS         section 9 calls cblas_sgemm for large fp32 products (link -lopenblas)
 *     MOE_EP_NO_BLAS          never BLAS, whatever else is defined
 *     MOE_EP_CBLAS_HEADER     default <cblas.h>; seen by the implementation only
 *     MOE_EP_NO_MALLOC        no malloc/free: scratch and allocators must be the caller's
 *     MOE_EP_NO_FORWARD       leave out sections 9 and 10
 *     MOE_EP_NO_SIMD          portable C only
 *     MOE_EP_ASSERT(c)        checks of our own mistakes (default: nothing; assert with MOE_EP_DEBUG)
 *
 * Full licence text at the end of this file.
 */
#if defined(MOE_EP_STATIC) && !defined(MOE_EP_IMPLEMENTATION)
#  define MOE_EP_IMPLEMENTATION /* static mode carries its own bodies */
#endif

#ifndef MOE_EP_H
#define MOE_EP_H

#include <stddef.h>
#include <stdint.h>

#ifndef MOE_EP_API
#  if defined(MOE_EP_STATIC) && defined(__GNUC__)
#    define MOE_EP_API static __attribute__((unused))
#  elif defined(MOE_EP_STATIC)
#    define MOE_EP_API static
#  else
#    define MOE_EP_API extern
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==================================================================================================
 * 0 BASICS
 * ================================================================================================== */

#define MOE_EP_VERSION_MAJOR 0
#define MOE_EP_VERSION_MINOR 1
#define MOE_EP_VERSION_PATCH 0
#define MOE_EP_VERSION_STRING "0.1.0"
/* One comparable integer: major * 1000000 + minor * 1000 + patch. */
#define MOE_EP_VERSION                                                                              \
    (MOE_EP_VERSION_MAJOR * 1000000 + MOE_EP_VERSION_MINOR * 1000 + MOE_EP_VERSION_PATCH)

/* Every status with its value and its text.  Codes are never renumbered. */
#define MOE_EP_STATUS_LIST(X)                                                                       \
    X(OK, 0, "ok")                                                                                  \
    X(ERR_NULL, -1, "a required pointer is NULL")                                                   \
    X(ERR_SIZE, -2, "a size is zero, negative or does not fit another one")                         \
    X(ERR_RANGE, -3, "a value lies outside its allowed range")                                      \
    X(ERR_EXPERT_ID, -4, "an expert id is neither -1 nor in 0..E-1")                                \
    X(ERR_DEVICE_ID, -5, "a device id lies outside 0..D-1")                                         \
    X(ERR_TOP_K, -6, "K is larger than the number of experts that can be chosen")                   \
    X(ERR_NAN, -7, "a number is NaN or infinite where a finite one is needed")                      \
    X(ERR_NEGATIVE, -8, "a load or count is negative")                                              \
    X(ERR_OVERFLOW, -9, "a product or sum of sizes does not fit")                                   \
    X(ERR_SCRATCH, -10, "the scratch memory is too small")                                          \
    X(ERR_MEMORY, -11, "out of memory")                                                             \
    X(ERR_SLOTS, -12, "there are fewer slots than experts, or a device has too few")                \
    X(ERR_CONFIG, -13, "the options contradict each other")                                         \
    X(ERR_PLACEMENT, -14, "the placement is not valid")                                             \
    X(ERR_LOST_EXPERT, -15, "an expert has no copy on any active device")                           \
    X(ERR_INFEASIBLE, -16, "no plan satisfies the limits")                                          \
    X(ERR_UNSUPPORTED, -17, "left out of this build, or not available on this machine")

#define MOE_EPI_ENUM(name, value, text) MOE_EP_##name = value,
typedef enum moe_ep_status {
    MOE_EP_STATUS_LIST(MOE_EPI_ENUM)
    MOE_EP_STATUS_FORCE_INT = 0x7fffffff /* keeps room for positive codes of a caller's hooks */
} moe_ep_status;
#undef MOE_EPI_ENUM

/* What went wrong, precisely.  Zeroed on success by every function that is given one. */
typedef struct moe_ep_error {
    moe_ep_status status;
    const char *arg;   /* name of the offending argument or field, never NULL after a call       */
    const char *what;  /* one short clause, a string literal                                      */
    int64_t index;     /* flat index of the offending element, -1 when there is none              */
    double value;      /* the offending value, or the value needed (as `what` says)               */
} moe_ep_error;

/* The version the implementation was compiled from, "0.1.0". */
MOE_EP_API const char *moe_ep_version(void);

/* Text of a status.  Never NULL: an unknown value gives "unknown status".
 * Example: moe_ep_status_str(MOE_EP_ERR_TOP_K) begins with "K is larger". */
MOE_EP_API const char *moe_ep_status_str(moe_ep_status status);

/* Writes "ids[5] = 12: an expert id is neither -1 nor in 0..E-1 (E is 8)" style text.
 * buf (bytes) is always terminated; returns the length the full text needs, like snprintf.
 * err NULL or OK gives "ok". */
MOE_EP_API size_t moe_ep_error_text(const moe_ep_error *err, char *buf, size_t bytes);

/* Memory functions of the caller; zeroed = malloc and free.  Both members or neither. */
typedef struct moe_ep_allocator {
    void *(*alloc_fn)(void *user, size_t bytes); /* 16-byte aligned or better; NULL = out of memory */
    void (*free_fn)(void *user, void *ptr, size_t bytes);
    void *user;
} moe_ep_allocator;

/* Working memory of a call, see MEMORY above.  Contents between calls mean nothing. */
typedef struct moe_ep_scratch {
    void *buf;              /* current memory, NULL = none yet                                   */
    size_t bytes;           /* its size                                                          */
    size_t need;            /* out: bytes the last call wanted, also when it failed              */
    int fixed;              /* not 0: buf is the caller's and never grows                        */
    moe_ep_allocator alloc; /* used when not fixed                                               */
} moe_ep_scratch;

/* A scratch over the caller's own buffer; functions given it never allocate. */
MOE_EP_API moe_ep_scratch moe_ep_scratch_fixed(void *buf, size_t bytes);

/* Gives back what a growing scratch holds; fixed or zeroed: nothing happens.  NULL is allowed. */
MOE_EP_API void moe_ep_scratch_free(moe_ep_scratch *s);

/* Small seeded random generator (xoshiro256**, seeded by splitmix64).  The same seed gives the same
 * numbers on every compiler and platform. */
typedef struct moe_ep_rng {
    uint64_t s[4];
} moe_ep_rng;

/* Starts a generator; any seed, 0 included, is fine. */
MOE_EP_API moe_ep_rng moe_ep_rng_seed(uint64_t seed);
/* 64 uniform bits.  Example: seed 1 gives 0xb3f2af6d0fc710c5 first. */
MOE_EP_API uint64_t moe_ep_rng_u64(moe_ep_rng *rng);
/* Uniform double in [0,1), 53 bits. */
MOE_EP_API double moe_ep_rng_f64(moe_ep_rng *rng);
/* Uniform integer in 0..n-1 without bias; n = 0 gives 0. */
MOE_EP_API uint64_t moe_ep_rng_below(moe_ep_rng *rng, uint64_t n);

/* ==================================================================================================
 * 5 PLACE: where experts and their replicas live
 *
 *      device 0            device 1            device 2
 *      slot 0   slot 1     slot 2   slot 3     slot 4   slot 5      slot_start = 0 2 4 6
 *      expert 3 expert 0   expert 3 expert 1   expert 2 (empty)     slot_expert = 3 0 3 1 2 -1
 *
 *      replica_start = 0 1 2 3 5 (expert 3 has two)   replica_slot = 1 | 3 | 4 | 0 2
 * ================================================================================================== */

/* The devices and the room on them.  Zeroed optional fields: one node, equal speed, all active. */
typedef struct moe_ep_shape {
    int32_t num_devices;             /* D >= 1                                                        */
    int32_t num_slots;               /* P in total, dealt as evenly as possible, the first P mod D
                                        devices one more; 0 = the caller gives slots_per_device, or,
                                        without it, as many as there are experts                      */
    int32_t num_nodes;               /* N; 0 or 1 = one node; device d is on node d*N/D unless given  */
    const int32_t *slots_per_device; /* (D) or NULL; when given num_slots is 0 or their sum           */
    const int32_t *node_of_device;   /* (D) values 0..N-1, or NULL                                    */
    const double *speed;             /* (D) relative speeds > 0, or NULL = all 1                      */
    const uint8_t *inactive;         /* (D) not 0 = dead or drained device, holds nothing; NULL = none */
} moe_ep_shape;

/* A placement of E experts in L layers on one shape: plain arrays in one block of the caller's memory.
 * All layers share the slots; an unused slot holds -1.  Replicas of an expert are listed in replica
 * rank order (the order in which the planner made them; ascending slots for hand-made placements). */
typedef struct moe_ep_placement {
    int32_t num_layers, num_experts, num_devices, num_nodes, num_slots;
    int32_t *slot_start;    /* (D+1) slots of device d are slot_start[d] .. slot_start[d+1]-1          */
    int32_t *slot_device;   /* (P)                                                                    */
    int32_t *device_node;   /* (D)                                                                    */
    int32_t *slot_expert;   /* (L,P) expert in the slot, -1 = empty                                   */
    int32_t *replica_start; /* (L,E+1) replicas of expert e: replica_slot[l*P + replica_start[l*(E+1)+e] ..] */
    int32_t *replica_slot;  /* (L,P) slots grouped by expert; the tail behind the last one is -1      */
} moe_ep_placement;

#ifdef __cplusplus
}
#endif
#endif /* MOE_EP_H */

/* ##################################################################################################
 * IMPLEMENTATION
 * ################################################################################################## */
#if defined(MOE_EP_IMPLEMENTATION) && !defined(MOE_EP_IMPLEMENTATION_DONE)
#define MOE_EP_IMPLEMENTATION_DONE

#include <math.h>
#include <string.h>
#ifndef MOE_EP_NO_MALLOC
#  include <stdlib.h>
#endif
#if defined(MOE_EP_USE_BLAS) && !defined(MOE_EP_NO_BLAS)
#  ifndef MOE_EP_CBLAS_HEADER
#    define MOE_EP_CBLAS_HEADER <cblas.h>
#  endif
#  include MOE_EP_CBLAS_HEADER
#endif
#ifndef MOE_EP_ASSERT
#  ifdef MOE_EP_DEBUG
#    include <assert.h>
#    define MOE_EP_ASSERT(c) assert(c)
#  else
#    define MOE_EP_ASSERT(c) ((void)0)
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==================================================================================================
 * 0 BASICS
 * ================================================================================================== */

MOE_EP_API const char *moe_ep_version(void) { return MOE_EP_VERSION_STRING; }

MOE_EP_API const char *moe_ep_status_str(moe_ep_status status)
{
    const char *text = "unknown status";
#define MOE_EPI_CASE(name, value, string)                                                           \
    if ((int)status == (value)) text = string;
    MOE_EP_STATUS_LIST(MOE_EPI_CASE)
#undef MOE_EPI_CASE
    return text;
}

/* Fills *err (when given) and hands the status back, so that callers can write `return moe_epi_fail(...)`. */
static moe_ep_status moe_epi_fail(moe_ep_error *err, moe_ep_status status, const char *arg,
                                  const char *what, int64_t index, double value)
{
    MOE_EP_ASSERT(status != MOE_EP_OK);
    MOE_EP_ASSERT(arg && what);
    if (err) {
        err->status = status;
        err->arg = arg;
        err->what = what;
        err->index = index;
        err->value = value;
    }
    return status;
}

/* First statement of every public function that takes err: success is the default. */
static void moe_epi_ok(moe_ep_error *err)
{
    if (err) {
        err->status = MOE_EP_OK;
        err->arg = "";
        err->what = "ok";
        err->index = -1;
        err->value = 0.0;
    }
}

static moe_ep_status moe_epi_null(moe_ep_error *err, const char *arg)
{
    return moe_epi_fail(err, MOE_EP_ERR_NULL, arg, "must not be NULL", -1, 0.0);
}

/* Bounded text writer: counts what it would have written, writes what fits. */
typedef struct moe_epi_text {
    char *buf;
    size_t bytes, len;
} moe_epi_text;

static void moe_epi_put(moe_epi_text *t, char c)
{
    if (t->len + 1 < t->bytes) t->buf[t->len] = c;
    t->len++;
}

static void moe_epi_puts(moe_epi_text *t, const char *s)
{
    for (; *s; s++) moe_epi_put(t, *s);
}

static void moe_epi_puti(moe_epi_text *t, int64_t v)
{
    char digits[24];
    int n = 0;
    uint64_t u = v < 0 ? (uint64_t)0 - (uint64_t)v : (uint64_t)v;
    if (v < 0) moe_epi_put(t, '-');
    do {
        digits[n++] = (char)('0' + (int)(u % 10u));
        u /= 10u;
    } while (u > 0);
    while (n > 0) moe_epi_put(t, digits[--n]);
}

/* Six significant digits; no locale, no printf. */
static void moe_epi_putd(moe_epi_text *t, double v)
{
    int exponent = 0, i, digit;
    double scale;
    if (isnan(v)) { moe_epi_puts(t, "NaN"); return; }
    if (v < 0.0) { moe_epi_put(t, '-'); v = -v; }
    if (isinf(v)) { moe_epi_puts(t, "infinity"); return; }
    if (v < 9007199254740992.0 && !(v - floor(v) > 0.0)) { moe_epi_puti(t, (int64_t)v); return; }
    while (v >= 10.0) { v /= 10.0; exponent++; }
    while (v < 1.0) { v *= 10.0; exponent--; }
    scale = 1.0;
    for (i = 0; i < 6; i++) {
        digit = (int)(v / scale);
        if (digit > 9) digit = 9;
        moe_epi_put(t, (char)('0' + digit));
        if (i == 0) moe_epi_put(t, '.');
        v -= (double)digit * scale;
        scale /= 10.0;
    }
    if (exponent != 0) { moe_epi_put(t, 'e'); moe_epi_puti(t, exponent); }
}

MOE_EP_API size_t moe_ep_error_text(const moe_ep_error *err, char *buf, size_t bytes)
{
    moe_epi_text t;
    t.buf = buf;
    t.bytes = buf ? bytes : 0;
    t.len = 0;
    if (!err || err->status == MOE_EP_OK) {
        moe_epi_puts(&t, "ok");
    } else {
        moe_epi_puts(&t, err->arg ? err->arg : "?");
        if (err->index >= 0) {
            moe_epi_put(&t, '[');
            moe_epi_puti(&t, err->index);
            moe_epi_put(&t, ']');
        }
        if (err->status != MOE_EP_ERR_NULL) {
            moe_epi_puts(&t, " = ");
            moe_epi_putd(&t, err->value);
        }
        moe_epi_puts(&t, ": ");
        moe_epi_puts(&t, err->what ? err->what : "?");
        moe_epi_puts(&t, " (");
        moe_epi_puts(&t, moe_ep_status_str(err->status));
        moe_epi_put(&t, ')');
    }
    if (t.bytes > 0) t.buf[t.len < t.bytes ? t.len : t.bytes - 1] = '\0';
    return t.len;
}

/* Product of two non-negative sizes; 0 when it does not fit int64_t. */
static int moe_epi_mul(int64_t a, int64_t b, int64_t *out)
{
    MOE_EP_ASSERT(a >= 0 && b >= 0);
    if (a != 0 && b > INT64_MAX / a) return 0;
    *out = a * b;
    return 1;
}

/* True for a finite number; spelled without isfinite so that -ffast-math of the host cannot fold it away. */
static int moe_epi_finite(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return ((bits >> 52) & 0x7ffu) != 0x7ffu;
}

/* ---- scratch: a function adds up what it needs, opens the arena once, then carves ------------------- */

typedef struct moe_epi_arena {
    unsigned char *base;
    size_t used, bytes;
    moe_ep_scratch local; /* stands in for a NULL scratch, freed on close */
    int is_local;
} moe_epi_arena;

/* Adds count elements of elem bytes, rounded up to 64, to *total; saturates at SIZE_MAX. */
static void moe_epi_need(size_t *total, int64_t count, size_t elem)
{
    size_t bytes;
    MOE_EP_ASSERT(count >= 0);
    if ((uint64_t)count > (uint64_t)(SIZE_MAX / 4u) / elem) { *total = SIZE_MAX; return; }
    bytes = ((size_t)count * elem + 63u) & ~(size_t)63u;
    *total = bytes > SIZE_MAX - *total ? SIZE_MAX : *total + bytes;
}

static void *moe_epi_malloc(const moe_ep_allocator *a, size_t bytes)
{
    if (a->alloc_fn) return a->alloc_fn(a->user, bytes);
#ifdef MOE_EP_NO_MALLOC
    return NULL;
#else
    return malloc(bytes);
#endif
}

static void moe_epi_free(const moe_ep_allocator *a, void *ptr, size_t bytes)
{
    if (!ptr) return;
    if (a->free_fn) {
        a->free_fn(a->user, ptr, bytes);
        return;
    }
#ifndef MOE_EP_NO_MALLOC
    free(ptr);
#endif
}

MOE_EP_API moe_ep_scratch moe_ep_scratch_fixed(void *buf, size_t bytes)
{
    moe_ep_scratch s;
    memset(&s, 0, sizeof s);
    s.buf = buf;
    s.bytes = buf ? bytes : 0;
    s.fixed = 1;
    return s;
}

MOE_EP_API void moe_ep_scratch_free(moe_ep_scratch *s)
{
    if (!s || s->fixed) return;
    moe_epi_free(&s->alloc, s->buf, s->bytes);
    s->buf = NULL;
    s->bytes = 0;
}

/* Opens `total` bytes (as added up by moe_epi_need).  Pair with moe_epi_arena_close. */
static moe_ep_status moe_epi_arena_open(moe_epi_arena *a, moe_ep_scratch *s, size_t total, moe_ep_error *err)
{
    size_t want, shift;
    memset(a, 0, sizeof *a);
    a->is_local = s == NULL;
    if (!s) s = &a->local;
    if (total > SIZE_MAX - 64u)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "scratch", "the sizes need more memory than can be addressed", -1, 0.0);
    want = total == 0 ? 0 : total + 64u; /* room to align the start */
    s->need = want;
    if (s->fixed) {
        if (s->bytes < want)
            return moe_epi_fail(err, MOE_EP_ERR_SCRATCH, "scratch", "bytes needed", -1, (double)want);
    } else if (s->bytes < want) {
        void *grown = NULL;
        if ((s->alloc.alloc_fn == NULL) != (s->alloc.free_fn == NULL))
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "scratch.alloc", "give both alloc_fn and free_fn or neither", -1, 0.0);
        grown = moe_epi_malloc(&s->alloc, want);
        if (!grown) return moe_epi_fail(err, MOE_EP_ERR_MEMORY, "scratch", "bytes that could not be allocated", -1, (double)want);
        moe_epi_free(&s->alloc, s->buf, s->bytes);
        s->buf = grown;
        s->bytes = want;
    }
    if (want > 0) {
        shift = (size_t)((64u - ((uintptr_t)s->buf & 63u)) & 63u);
        a->base = (unsigned char *)s->buf + shift;
        a->bytes = total;
    }
    return MOE_EP_OK;
}

/* Next piece, 64-byte aligned, uninitialised.  Must be taken with the sizes given to moe_epi_need. */
static void *moe_epi_take(moe_epi_arena *a, int64_t count, size_t elem)
{
    void *piece = a->base ? a->base + a->used : NULL;
    moe_epi_need(&a->used, count, elem);
    MOE_EP_ASSERT(a->used <= a->bytes);
    return piece;
}

static void moe_epi_arena_close(moe_epi_arena *a)
{
    if (a->is_local) moe_ep_scratch_free(&a->local);
}

/* ---- random numbers ---------------------------------------------------------------------------------- */

MOE_EP_API moe_ep_rng moe_ep_rng_seed(uint64_t seed)
{
    moe_ep_rng r;
    int i;
    for (i = 0; i < 4; i++) { /* splitmix64, Steele, Lea and Flood 2014 */
        uint64_t z = (seed += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        r.s[i] = z ^ (z >> 31);
    }
    return r;
}

MOE_EP_API uint64_t moe_ep_rng_u64(moe_ep_rng *rng)
{
    /* xoshiro256**, Blackman and Vigna 2018 */
    uint64_t *s = rng->s;
    uint64_t x = s[1] * 5u, result, t = s[1] << 17;
    result = ((x << 7) | (x >> 57)) * 9u;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

MOE_EP_API double moe_ep_rng_f64(moe_ep_rng *rng)
{
    return (double)(moe_ep_rng_u64(rng) >> 11) * (1.0 / 9007199254740992.0);
}

MOE_EP_API uint64_t moe_ep_rng_below(moe_ep_rng *rng, uint64_t n)
{
    uint64_t limit, x;
    if (n == 0) return 0;
    limit = UINT64_MAX - UINT64_MAX % n; /* multiples of n below this: no bias */
    do {
        x = moe_ep_rng_u64(rng);
    } while (x >= limit);
    return x % n;
}

#ifdef __cplusplus
}
#endif
#endif /* MOE_EP_IMPLEMENTATION */

/*
MIT License

Copyright (c) 2026 the moe_ep.h authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
*/
