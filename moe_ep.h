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

/* A program may have macros named like the symbols above (E, K, N, the I of <complex.h>, the small of
 * <windows.h>): they are set aside here and given back at the end of this half. */
#pragma push_macro("B")
#pragma push_macro("C")
#pragma push_macro("D")
#pragma push_macro("E")
#pragma push_macro("F")
#pragma push_macro("G")
#pragma push_macro("H")
#pragma push_macro("I")
#pragma push_macro("K")
#pragma push_macro("L")
#pragma push_macro("M")
#pragma push_macro("N")
#pragma push_macro("P")
#pragma push_macro("R")
#pragma push_macro("S")
#pragma push_macro("T")
#pragma push_macro("W")
#pragma push_macro("X")
#pragma push_macro("Z")
#pragma push_macro("small")
#pragma push_macro("near")
#pragma push_macro("far")
#undef B
#undef C
#undef D
#undef E
#undef F
#undef G
#undef H
#undef I
#undef K
#undef L
#undef M
#undef N
#undef P
#undef R
#undef S
#undef T
#undef W
#undef X
#undef Z
#undef small
#undef near
#undef far

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

/* What went wrong, precisely.  Every function that is given one fills it, on success too: then status
 * is MOE_EP_OK, arg "", what "ok", index -1 and value 0. */
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

/* Writes one line of text for a person: argument, element, value, what was wrong, status.
 * buf (bytes) is always terminated when bytes > 0; returns the length of the full text without the
 * terminator, like snprintf, so a result >= bytes means that it was cut.  buf NULL only measures.
 * Numbers have six significant digits, whole ones below 2^53 all their digits; no locale is asked.
 * err NULL or OK gives "ok".
 * Example: {MOE_EP_ERR_EXPERT_ID, "ids", "there are 8 experts", 5, 12.0} gives
 *     ids[5] = 12: there are 8 experts (an expert id is neither -1 nor in 0..E-1) */
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

/* Starts a generator; any seed, 0 included, is fine.  O(1). */
MOE_EP_API moe_ep_rng moe_ep_rng_seed(uint64_t seed);
/* 64 uniform bits; a NULL rng gives 0, here and below.
 * Example: seed 1 gives 0xb3f2af6d0fc710c5 first. */
MOE_EP_API uint64_t moe_ep_rng_u64(moe_ep_rng *rng);
/* Uniform double in [0,1), 53 bits.  Example: seed 1 gives 0.70292183315885048 first. */
MOE_EP_API double moe_ep_rng_f64(moe_ep_rng *rng);
/* Uniform integer in 0..n-1 without bias (rejection); n = 0 gives 0.  Takes one draw, rarely more; for
 * n above 2^63 two on average at worst.  Example: seed 1 and n = 6 give 1, 4, 2, 5, 5, 4. */
MOE_EP_API uint64_t moe_ep_rng_below(moe_ep_rng *rng, uint64_t n);

/* ==================================================================================================
 * 1 ROUTE: logits -> expert ids and weights
 *
 *      logits (T,E) --soft-cap, + logit_bias--> l --score--> s --+ select_bias--> key
 *      key --groups--> key --top-k (largest first, lowest index on ties)--> ids (T,K)
 *      ids --weight of the chosen--> w --/ norm--> w --x scale--> w --x per-expert scale--> weights (T,K)
 *
 *      A router is data: one moe_ep_router says which of these steps a model takes.  Presets below fill
 *      it in for every published family; moe_ep_router_by_name finds them by text.
 * ================================================================================================== */

/* Score of an expert, computed over all E experts in float32. */
typedef enum moe_ep_score {
    MOE_EP_SCORE_LOGIT = 0,     /* s = l                                                              */
    MOE_EP_SCORE_SOFTMAX,       /* s = softmax(l)                                                     */
    MOE_EP_SCORE_SIGMOID,       /* s = 1 / (1 + exp(-l))                                              */
    MOE_EP_SCORE_SQRT_SOFTPLUS  /* s = sqrt(log(1 + exp(l)))                                          */
} moe_ep_score;

/* How the K experts of a token are found. */
typedef enum moe_ep_select {
    MOE_EP_SELECT_TOPK = 0,     /* the K largest keys                                                 */
    MOE_EP_SELECT_SPARSEMIXER,  /* repeated argmax with a masked softmax each (Phi-3.5-MoE, eval path) */
    MOE_EP_SELECT_TABLE,        /* table[token id] names them: hash layers, forced routing            */
    MOE_EP_SELECT_KEYS          /* the K largest of keys (T,E) given by the caller, e.g. Sinkhorn      */
} moe_ep_select;

/* Weight of a chosen expert before the norm. */
typedef enum moe_ep_weight {
    MOE_EP_WEIGHT_SCORE = 0,           /* its score, without the selection bias                       */
    MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED, /* softmax over the K chosen logits                            */
    MOE_EP_WEIGHT_SIGMOID_OF_LOGIT,    /* sigmoid of its logit                                        */
    MOE_EP_WEIGHT_ONE                  /* 1                                                           */
} moe_ep_weight;

/* How a norm is kept away from zero. */
typedef enum moe_ep_eps_mode {
    MOE_EP_EPS_NONE = 0, /* w / norm (a norm of 0 gives weights of 0, never NaN)                      */
    MOE_EP_EPS_ADD,      /* w / (norm + eps)                                                          */
    MOE_EP_EPS_CLAMP     /* w / max(norm, eps)                                                        */
} moe_ep_eps_mode;

/* One router.  num_experts and top_k are required; everything else left 0 is the simplest router:
 * top-k of the raw logits, weight = logit, no norm.  Pointers are borrowed for the call. */
typedef struct moe_ep_router {
    int32_t num_experts;          /* E, null experts included                                         */
    int32_t top_k;                /* K, 1..E                                                          */
    moe_ep_score score;
    moe_ep_select select;
    moe_ep_weight weight;         /* not used by SPARSEMIXER, which has its own weights               */
    int32_t select_on_logit;      /* key of the top-k: 0 = the score, 1 = the logit                   */
    float logit_softcap;          /* 0 = off; otherwise l = cap * tanh(l / cap), first of all          */
    const float *logit_bias;      /* (E) or NULL, added to the logits: changes ids and weights        */
    const float *select_bias;     /* (E) or NULL, added to the key only: changes ids, not weights     */
    int32_t n_group, topk_group;  /* E in n_group (at most 1024) equal groups, experts of topk_group of
                                     them may be chosen; n_group 0 or 1 = no groups                   */
    int32_t group_top_m;          /* group score = sum of its m best keys; 0 or 1 = the best one      */
    int32_t mask_zero;            /* experts outside the chosen groups: 0 = never chosen, 1 = their key
                                     becomes 0, which beats negative keys                            */
    int32_t renorm;               /* 1 = divide by the norm of the K weights                          */
    float renorm_p;               /* 0 or 1 = their sum; p = (sum |w|^p)^(1/p)                        */
    int32_t renorm_skip_k1;       /* 1 = no norm when K is 1                                          */
    moe_ep_eps_mode eps_mode;
    float eps;
    float scale;                  /* 0 = 1; factor on every weight (routed_scaling_factor)            */
    int32_t scale_only_without_renorm; /* 1 = no scale on weights that were normalised                */
    const float *per_expert_scale; /* (E) or NULL, last factor on the weight                          */
    float sparsemixer_jitter;     /* SPARSEMIXER: jitter_eps of the model, 0.01 when published        */
    int32_t num_null;             /* the last num_null experts are identity ("zero") experts; routing
                                     treats them like any other, sections 7 and 9 do not              */
    int32_t weight_on_input;      /* 1 = the weight multiplies the expert's input (Llama-4); for the
                                     caller and section 9, routing itself ignores it                  */
    int32_t nan_as_masked;        /* logit NaN or +Inf: 0 = error that names it, 1 = taken as -Inf    */
    int64_t logits_stride;        /* elements from one token's logits to the next; 0 = E              */
    const int32_t *table;         /* TABLE: (table_rows,K) expert ids, -1 allowed                     */
    int64_t table_rows;
    const float *keys;            /* KEYS: (T,E), finite or -Inf                                      */
} moe_ep_router;

/* Which experts does each token use, and with which weights?
 *   logits    (T,E) float32, -Inf = masked expert: chosen last, by lowest index, weight 0; may be NULL
 *             where nothing depends on it (TABLE or KEYS with weight ONE or without weights)
 *   token_ids (T) rows of cfg->table, NULL = token t uses row t; ignored unless select is TABLE
 *   ids       (T,K) out, largest key first, lowest index first among equal keys; TABLE keeps its order
 *   weights   (T,K) out, or NULL
 * T = 0 is allowed.  Errors: NULL; SIZE (T, E, stride, table_rows); TOP_K (K > E or more than the chosen
 * groups hold); CONFIG (groups do not divide E, sparsemixer with groups); RANGE (an enum or option,
 * token_ids); NAN (logits or a bias; index is token*E + expert); EXPERT_ID (table).  Memory: none (14 KB of stack).
 * Time O(T*E), plus O(K) for each change of the list of the best.
 * Source: the implementations named at the presets; ties as in vLLM's CUDA kernels and XLA top_k.
 * Example: logits 1,3,2 with moe_ep_router_mixtral(3,2) give ids 1,2 and weights 0.731059, 0.268941. */
MOE_EP_API moe_ep_status moe_ep_route(const moe_ep_router *cfg, const float *logits, int64_t T,
                                      const int32_t *token_ids, int32_t *ids, float *weights,
                                      moe_ep_error *err);

/* Scores of all experts (T,E), what moe_ep_route selects on before biases and groups.  Uses num_experts,
 * score, logit_softcap, logit_bias, nan_as_masked and logits_stride of cfg; -Inf gives 0 (LOGIT: -FLT_MAX).
 * Example: softmax of 0,0 is 0.5,0.5. */
MOE_EP_API moe_ep_status moe_ep_scores(const moe_ep_router *cfg, const float *logits, int64_t T,
                                       float *scores, moe_ep_error *err);

/* Are the fields of cfg consistent?  The checks of moe_ep_route without logits.  O(E).
 * Example: num_experts 8, top_k 9 gives MOE_EP_ERR_TOP_K. */
MOE_EP_API moe_ep_status moe_ep_router_check(const moe_ep_router *cfg, moe_ep_error *err);

/* The gate in front: logits (T,E) = x (T,H) . w (E,H)^T + bias (E) or NULL.  Float32, sixteen partial
 * sums over H in a fixed order, no BLAS.  A NaN in x or w arrives in logits, where moe_ep_route finds it.
 * O(T*E*H).  Example: x = 1,2 and w = (3,4) with bias 0.5 give 11.5. */
MOE_EP_API moe_ep_status moe_ep_gate(const float *x, int64_t T, int32_t H, const float *w,
                                     const float *bias, int32_t E, float *logits, moe_ep_error *err);

/* ---- presets: E experts, K per token; set biases, tables and other pointers in the result ---------- */

/* softmax, top-k, divided by their sum.  transformers mixtral; vLLM RenormalizeNaive. */
MOE_EP_API moe_ep_router moe_ep_router_mixtral(int32_t E, int32_t K);
/* As Mixtral.  transformers qwen3_moe, qwen3_next (norm_topk_prob = true). */
MOE_EP_API moe_ep_router moe_ep_router_qwen3(int32_t E, int32_t K);
/* softmax, top-k, no norm.  transformers qwen2_moe (norm_topk_prob = false); vLLM Default. */
MOE_EP_API moe_ep_router moe_ep_router_qwen2(int32_t E, int32_t K);
/* As Qwen2.  transformers olmoe. */
MOE_EP_API moe_ep_router moe_ep_router_olmoe(int32_t E, int32_t K);
/* As Qwen2.  transformers jamba. */
MOE_EP_API moe_ep_router moe_ep_router_jamba(int32_t E, int32_t K);
/* softmax, top-k, divided by their p-norm; p = 0: no norm.  transformers dbrx, MegaBlocks. */
MOE_EP_API moe_ep_router moe_ep_router_dbrx(int32_t E, int32_t K, float p);
/* top-k of the logits, softmax of the chosen; set logit_bias.  transformers gpt_oss; vLLM Renormalize. */
MOE_EP_API moe_ep_router moe_ep_router_gpt_oss(int32_t E, int32_t K);
/* As gpt-oss without a bias.  transformers granitemoe. */
MOE_EP_API moe_ep_router moe_ep_router_granite(int32_t E, int32_t K);
/* top-k of the logits, sigmoid of the chosen, on the expert's input.  transformers llama4. */
MOE_EP_API moe_ep_router moe_ep_router_llama4(int32_t E, int32_t K);
/* sparsemixer, jitter 0.01.  transformers phimoe, evaluation path. */
MOE_EP_API moe_ep_router moe_ep_router_phimoe(int32_t E, int32_t K);
/* softmax, 8 groups by their best expert, 3 chosen, x 16.  transformers deepseek_v2. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2(int32_t E, int32_t K);
/* softmax, no groups, x 1.  transformers deepseek_v2, Lite model. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2_lite(int32_t E, int32_t K);
/* As deepseek_v2, but masked with 0, normalised (+1e-20) when K > 1, and then not scaled.  Hub code,
 * norm_topk_prob = true. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2_hub(int32_t E, int32_t K);
/* As deepseek_v2, divided by the sum, then x scale.  vLLM grouped_topk with renormalize. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2_vllm(int32_t E, int32_t K);
/* sigmoid + bias, 8 groups by their two best, 4 chosen, divided by the sum, x 2.5; set select_bias.
 * DeepSeek-V3 inference/model.py. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v3(int32_t E, int32_t K);
/* As deepseek_v3 with mask 0 and + 1e-20.  transformers deepseek_v3. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v3_hf(int32_t E, int32_t K);
/* sigmoid + bias, one group, / (sum + 1e-20), x 2.827; set select_bias.  Kimi-K2 configuration. */
MOE_EP_API moe_ep_router moe_ep_router_kimi_k2(int32_t E, int32_t K);
/* As Kimi-K2, x 2.5.  transformers glm4_moe (355B configuration). */
MOE_EP_API moe_ep_router moe_ep_router_glm45(int32_t E, int32_t K);
/* As Kimi-K2, x 2.5.  transformers dots1. */
MOE_EP_API moe_ep_router moe_ep_router_dots1(int32_t E, int32_t K);
/* As Kimi-K2, x 1; set scale.  MiMo-V2, EXAONE-MoE and Solar-Open route alike (transformers). */
MOE_EP_API moe_ep_router moe_ep_router_mimo_v2(int32_t E, int32_t K);
/* As Kimi-K2, x 2.5, no norm when K is 1.  transformers nemotron_h. */
MOE_EP_API moe_ep_router moe_ep_router_nemotron_h(int32_t E, int32_t K);
/* sigmoid + bias, divided by the sum; set select_bias.  transformers minimax_m2. */
MOE_EP_API moe_ep_router moe_ep_router_minimax_m2(int32_t E, int32_t K);
/* sigmoid + bias, / (sum + 1e-6); set select_bias.  transformers lfm2_moe. */
MOE_EP_API moe_ep_router moe_ep_router_lfm2(int32_t E, int32_t K);
/* sigmoid + bias, / (sum + 1e-20), x 3; set select_bias.  Step-3.5 hub code. */
MOE_EP_API moe_ep_router moe_ep_router_step35(int32_t E, int32_t K);
/* softmax + bias, / max(sum, 1e-12); set select_bias.  transformers ernie4_5_moe. */
MOE_EP_API moe_ep_router moe_ep_router_ernie45(int32_t E, int32_t K);
/* softmax over E experts of which the last Z are identity, + bias, no norm, x 6.  transformers
 * longcat_flash. */
MOE_EP_API moe_ep_router moe_ep_router_longcat(int32_t E, int32_t K, int32_t Z);
/* sqrt(softplus) + bias, / (sum + 1e-20), scale 1; set select_bias and scale.  transformers deepseek_v4. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v4(int32_t E, int32_t K);
/* As deepseek_v4 with ids from a table; set table and table_rows.  transformers deepseek_v4 hash layers. */
MOE_EP_API moe_ep_router moe_ep_router_deepseek_v4_hash(int32_t E, int32_t K);
/* softmax, top-k, no norm.  xai grok-1. */
MOE_EP_API moe_ep_router moe_ep_router_grok1(int32_t E, int32_t K);
/* As grok1 after l = 30 tanh(l/30).  vLLM grok1. */
MOE_EP_API moe_ep_router moe_ep_router_grok1_vllm(int32_t E, int32_t K);
/* top-k of the logits, softmax of the chosen; set per_expert_scale.  mlx-lm gemma4. */
MOE_EP_API moe_ep_router moe_ep_router_gemma4(int32_t E, int32_t K);
/* softmax, / max(sum, 2^-23); drops follow, see section 4.  transformers hunyuan_v1_moe. */
MOE_EP_API moe_ep_router moe_ep_router_hunyuan(int32_t E, int32_t K);
/* softmax, no norm (K is 1 in the paper).  Switch Transformer, Mesh TensorFlow. */
MOE_EP_API moe_ep_router moe_ep_router_switch(int32_t E, int32_t K);
/* ids from a table, weight 1; set table and table_rows.  Roller et al. 2021, lingvo HashGating. */
MOE_EP_API moe_ep_router moe_ep_router_hash(int32_t E, int32_t K);
/* softmax, top-k, no norm; set scale.  Megatron-LM moe-router-pre-softmax. */
MOE_EP_API moe_ep_router moe_ep_router_megatron_pre_softmax(int32_t E, int32_t K);
/* top-k of the logits, softmax of the chosen; set scale.  Megatron-LM default. */
MOE_EP_API moe_ep_router moe_ep_router_megatron_post_softmax(int32_t E, int32_t K);
/* sigmoid + bias, / (sum + 1e-20), no norm when K is 1; set select_bias, scale.  Megatron-LM sigmoid. */
MOE_EP_API moe_ep_router moe_ep_router_megatron_sigmoid(int32_t E, int32_t K);
/* As megatron_sigmoid with groups that are scored by their K / topk_group best; K a multiple of topk_group.
 * Megatron-LM group_limited_topk. */
MOE_EP_API moe_ep_router moe_ep_router_megatron_groups(int32_t E, int32_t K, int32_t n_group,
                                                       int32_t topk_group);
/* softmax, / max(sum, 2^-14): the clamp of every architecture.  llama.cpp build_moe_ffn. */
MOE_EP_API moe_ep_router moe_ep_router_llama_cpp(int32_t E, int32_t K);
/* sigmoid + bias, / max(sum, 2^-14); set select_bias, scale.  llama.cpp build_moe_ffn. */
MOE_EP_API moe_ep_router moe_ep_router_llama_cpp_sigmoid(int32_t E, int32_t K);
/* top-k of the logits, weight sigmoid(l): y = w f(x) + (1 - w) x; training assigns with moe_ep_auction.
 * BASE layer (fairseq), inference path, K = 1. */
MOE_EP_API moe_ep_router moe_ep_router_base(int32_t E, int32_t K);
/* The activation of a Sinkhorn router: sigmoid for K = 1, else softmax; for training set select = KEYS
 * and keys = the output of moe_ep_sinkhorn.  Megatron-LM sinkhorn_load_balancing. */
MOE_EP_API moe_ep_router moe_ep_router_sinkhorn(int32_t E, int32_t K);

/* Number of names, and the i-th name with its source; NULL when i is out of range.
 * Example: the first name is "mixtral". */
MOE_EP_API int32_t moe_ep_router_count(void);
MOE_EP_API const char *moe_ep_router_name(int32_t i);
MOE_EP_API const char *moe_ep_router_source(int32_t i);
/* The preset called `name` ("deepseek_v3"; '-', '_', '.' and case are not told apart); dbrx gets p = 1,
 * longcat no null experts.  Errors: NULL; RANGE (no such name); SIZE; TOP_K.
 * Example: "DeepSeek-V3" with E = 256, K = 8 has n_group 8 and scale 2.5. */
MOE_EP_API moe_ep_status moe_ep_router_by_name(const char *name, int32_t E, int32_t K,
                                               moe_ep_router *cfg, moe_ep_error *err);

/* ---- beside it: routers that look at the whole batch, or roll dice ----------------------------------- */

/* Expert choice: each expert takes its C best tokens (Zhou et al. 2022; flaxformer).
 *   scores (T,E), usually softmax over the experts;  tokens (E,C) out, best first, lowest token on ties;
 *   weights (E,C) out or NULL, the score;  experts_per_token (T) out or NULL.  1 <= C <= T.
 * Memory: none.  O(E*T*log C).  Example: scores 0.9,0.2 | 0.6,0.8 with C = 1 give tokens 0 | 1. */
MOE_EP_API moe_ep_status moe_ep_expert_choice(const float *scores, int64_t T, int32_t E, int64_t C,
                                              int32_t *tokens, float *weights, int64_t *experts_per_token,
                                              moe_ep_error *err);

/* What happens to the second expert of a top-2 router. */
typedef enum moe_ep_second {
    MOE_EP_SECOND_ALL = 0,   /* always used                                                           */
    MOE_EP_SECOND_NONE,      /* never                                                                 */
    MOE_EP_SECOND_THRESHOLD, /* when g2 > threshold                                                   */
    MOE_EP_SECOND_RANDOM     /* with probability g2 / max(threshold, 1e-9); NLLB's 2 g2 > U is 0.5     */
} moe_ep_second;

/* A GShard-like top-2 router.  num_experts >= 2 is required. */
typedef struct moe_ep_top2 {
    int32_t num_experts;
    moe_ep_second second;
    float threshold;         /* in units of g2                                                         */
    int32_t sample_second;   /* 1 = second is the argmax of l + Gumbel noise without the first         */
    int32_t renorm;          /* 1 = g1, g2 divided by their sum before the policy looks at g2          */
    moe_ep_eps_mode eps_mode;
    float eps;
    int64_t logits_stride;   /* 0 = E                                                                  */
} moe_ep_top2;

/* Policy random with threshold 0.2, g / (g1 + g2 + 1e-9) first.  Mesh TensorFlow (legacy), lingvo. */
MOE_EP_API moe_ep_top2 moe_ep_top2_gshard(int32_t E);
/* Raw gates; normalise after the drop (moe_ep_drop_gshard).  Mesh TensorFlow, new. */
MOE_EP_API moe_ep_top2 moe_ep_top2_gshard_new(int32_t E);
/* Second sampled with Gumbel noise, raw gates; normalise after the drop.  DeepSpeed top2gating. */
MOE_EP_API moe_ep_top2 moe_ep_top2_deepspeed(int32_t E);
/* All seconds, raw gates; normalise after the drop.  transformers nllb_moe defaults. */
MOE_EP_API moe_ep_top2 moe_ep_top2_nllb(int32_t E);

/* Top-2 with a policy for the second expert: ids (T,2), weights (T,2) or NULL; a second expert that is
 * not used has id -1 and weight 0.  rng is needed for RANDOM and sample_second, else may be NULL.
 * Gates are softmax(l).  Errors: NULL, SIZE, NAN, CONFIG.  Memory: none.  O(T*E).
 * Example: logits 2,1,0, policy ALL, renorm: ids 0,1, weights 0.731059, 0.268941. */
MOE_EP_API moe_ep_status moe_ep_route_top2(const moe_ep_top2 *cfg, const float *logits, int64_t T,
                                           moe_ep_rng *rng, int32_t *ids, float *weights,
                                           moe_ep_error *err);

/* Top-1 drawn from softmax(l) instead of its argmax (Switch policy "sample"): ids (T), weights (T) or
 * NULL, the probability of the drawn expert.  T >= 1.  Errors: NULL, SIZE, NAN.  Memory: none.  O(T*E).
 * Example: logits 0,-Inf always give id 0, weight 1. */
MOE_EP_API moe_ep_status moe_ep_route_sample(const float *logits, int64_t T, int32_t E, moe_ep_rng *rng,
                                             int32_t *ids, float *weights, moe_ep_error *err);

/* Router jitter: multiplies n values by independent uniform factors in [1-eps, 1+eps), 0 <= eps <= 1, in
 * place (Switch "input_jitter", DBRX, Megatron).  Errors: NULL, SIZE, RANGE, NAN (eps).
 * Example: eps 0 leaves 3 as 3. */
MOE_EP_API moe_ep_status moe_ep_jitter(float *x, int64_t n, float eps, moe_ep_rng *rng, moe_ep_error *err);

/* Sinkhorn scores (T,E) out: exp(l) scaled to rows 1/T and columns 1/E; stops when the mean change of the
 * column factors is at most tol (0 = 1e-4, Megatron's).  max_rounds 0 = 10,000; rounds out or NULL.
 * Give the result to moe_ep_route as cfg.keys.  Errors: NULL, SIZE, NAN, RANGE (a logit above 88),
 * INFEASIBLE (not converged).  Scratch T*E floats, T + 2 E doubles.
 * Example: equal logits (2,2) give 0.25 everywhere. */
MOE_EP_API moe_ep_status moe_ep_sinkhorn(const float *logits, int64_t T, int32_t E, double tol,
                                         int32_t max_rounds, float *scores, int32_t *rounds,
                                         moe_ep_scratch *scratch, moe_ep_error *err);

/* Balanced assignment by auction: every expert gets exactly T/E tokens (BASE layer, Lewis et al. 2021).
 *   scores (T,E) finite, T a multiple of E; expert_of_token (T) out.
 * Tokens bid for places (Bertsekas 1988) with raises of at least eps = max((max-min)/50, 1e-4), fairseq's
 * increment, so that the total score is at most T * eps below the best possible.
 * Errors: NULL, SIZE, NAN.  Scratch 3 numbers per token.  O(E + log T) a bid; some 50 T bids when all tokens
 * want the same experts, a few T otherwise.
 * Example: 2 tokens with scores 3,1 | 2,1 on 2 experts: token 0 -> 0, token 1 -> 1. */
MOE_EP_API moe_ep_status moe_ep_auction(const float *scores, int64_t T, int32_t E,
                                        int32_t *expert_of_token, moe_ep_scratch *scratch,
                                        moe_ep_error *err);

/* Quantile balancing: one update of beta (E) in place, so that the top-k of (score - beta) sends each
 * expert about T*K/E tokens: beta_e = the (T*K/E + 1)-th largest over tokens of score - alpha_t, alpha_t =
 * the (K+1)-th largest of score - beta (Megatron-LM).  K < E; T*K must be a multiple of E.  Route with
 * select_bias = -beta.  Errors: NULL, SIZE, TOP_K, NAN.  Scratch T + max(T,E) floats.  O(T*E) on average.
 * Example: scores 3,1 | 2,0 with K = 1 and beta 0,0 give beta 2,0. */
MOE_EP_API moe_ep_status moe_ep_quantile_update(const float *scores, int64_t T, int32_t E, int32_t K,
                                                float *beta, moe_ep_scratch *scratch, moe_ep_error *err);

/* Loss-free balancing: bias[e] += rate * sign(mean - loads[e]), sign(0) = 0, in place (Wang et al. 2024;
 * DeepSeek-V3 uses rate 0.001).  centred 1: the mean of the step is taken off first (torchtitan), so that
 * sum(bias) stays.  Errors: NULL, SIZE, NAN, NEGATIVE, OVERFLOW.
 * Example: loads 3,1 with rate 0.5 and bias 0,0 give -0.5, 0.5. */
MOE_EP_API moe_ep_status moe_ep_bias_update(const int64_t *loads, int32_t E, float rate, int32_t centred,
                                            float *bias, moe_ep_error *err);

/* Auxiliary losses.  P_e = mean score of expert e, c_e = its assignments, value at balance in brackets. */
typedef enum moe_ep_aux {
    MOE_EP_AUX_SWITCH = 0,   /* E sum P_e c_e/(T K): Switch, Megatron, MegaBlocks, DeepSpeed top-k [1]    */
    MOE_EP_AUX_SEQUENCE,     /* the same inside each sequence, averaged: Megatron seq, DeepSeek-V3 [1]    */
    MOE_EP_AUX_GLOBAL,       /* c from global_loads, P local: Megatron global, Qwen global batch [1]      */
    MOE_EP_AUX_FIRST_CHOICE, /* E sum P_e (first choices of e)/T: DeepSpeed top-1/2, Tutel [1]            */
    MOE_EP_AUX_ANY_CHOICE,   /* E sum P_e (tokens that use e)/T: flaxformer, HF Switch, NLLB, MaxText [K] */
    MOE_EP_AUX_EVERY_CHOICE, /* E sum P_e c_e/T: transformers Mixtral style [K]                           */
    MOE_EP_AUX_DEVICE,       /* sum over devices (mean f of its experts)(sum P), f = E c_e/(K T):
                                DeepSeek-V2 device loss [1]                                               */
    MOE_EP_AUX_COMMUNICATION /* sum over devices (D/(M T) tokens sent to it)(sum P), M = devices_per_token:
                                DeepSeek-V2 communication loss [1 when each token reaches M devices]       */
} moe_ep_aux;

typedef struct moe_ep_aux_desc {
    moe_ep_aux kind;
    int64_t num_tokens;            /* T >= 1                                                              */
    int32_t top_k, num_experts;    /* K, E                                                                */
    const float *scores;           /* (T,E) router probabilities                                          */
    const int32_t *ids;            /* (T,K), -1 skipped; may be NULL for GLOBAL                           */
    int32_t normalize_scores;      /* 1 = each token's scores divided by their sum (sigmoid routers)      */
    int64_t num_sequences;         /* SEQUENCE: 0 = 1; must divide T                                      */
    int32_t interleaved;           /* SEQUENCE: 0 = sequences one after another, 1 = token t belongs to
                                      sequence t % num_sequences (Megatron's (S,B) order)                 */
    const int64_t *global_loads;   /* GLOBAL: (E) assignments of the whole batch                          */
    const int32_t *device_of_expert; /* DEVICE, COMMUNICATION: (E) values 0..num_devices-1                */
    int32_t num_devices;
    int32_t devices_per_token;     /* COMMUNICATION: M, 0 = min(K, D)                                     */
    double coefficient;            /* 0 = 1                                                               */
} moe_ep_aux_desc;

/* The loss of kind desc->kind; negative = a moe_ep_status (NULL, SIZE, RANGE, NAN, EXPERT_ID, DEVICE_ID,
 * NEGATIVE, OVERFLOW, SCRATCH).  Scratch E + 4 max(E,D) doubles.  O(T (E + K^2)).
 * Example: T = 2, K = 1, E = 2, scores all 0.5, ids 0,1: SWITCH gives 1. */
MOE_EP_API double moe_ep_aux_loss(const moe_ep_aux_desc *desc, moe_ep_scratch *scratch, moe_ep_error *err);

/* z-loss: mean over tokens of logsumexp(l)^2 (ST-MoE; Megatron, MegaBlocks, flaxformer); negative = status.
 * Example: logits (1,2) of 0,0 give (ln 2)^2 = 0.480453. */
MOE_EP_API double moe_ep_z_loss(const float *logits, int64_t T, int32_t E, moe_ep_error *err);

/* Importance loss: var/(mean^2 + 1e-10) of sum_t scores, sample variance (Shazeer et al. 2017; Tutel).
 * E >= 2.  Negative = status.  Scratch E doubles.  Example: scores (1,2) of 0.75,0.25 give 0.5. */
MOE_EP_API double moe_ep_importance_loss(const float *scores, int64_t T, int32_t E,
                                         moe_ep_scratch *scratch, moe_ep_error *err);

/* Load loss: the same of sum_t Phi((score - threshold_t) E / noise), the smooth count of tokens that would
 * choose the expert (Shazeer et al. 2017; Tutel).  thresholds (T): the K-th largest noisy score of the
 * token; noise > 0 standard deviation times E.  Negative = status.  Scratch E doubles.
 * Example: scores (1,2) of 0.75,0.25 with threshold 0.75 and noise 1 give 0.53716. */
MOE_EP_API double moe_ep_load_loss(const float *scores, const float *thresholds, int64_t T, int32_t E,
                                   double noise, moe_ep_scratch *scratch, moe_ep_error *err);

/* Mean over tokens of the entropy -sum p ln p of the rows of scores (T,E), nats; negative = status.
 * Example: 0.5,0.5 gives 0.693147. */
MOE_EP_API double moe_ep_router_entropy(const float *scores, int64_t T, int32_t E, moe_ep_error *err);

/* Weight of an appended shared expert. */
typedef enum moe_ep_shared_weight {
    MOE_EP_SHARED_CONSTANT = 0,   /* `value` (vLLM: 1)                                                    */
    MOE_EP_SHARED_SUM_OVER_VALUE  /* sum of the token's routed weights / value (SGLang: value = scale)    */
} moe_ep_shared_weight;

/* Appends S shared experts to every token: out_ids (T,K+S), out_weights (T,K+S); the new columns hold ids
 * E..E+S-1.  Outputs must not overlap inputs.  A token whose ids are all -1 (padding) gets -1, weight 0.
 * Example: ids 2,0, weights 0.6,0.4, E = 4, S = 1, SUM_OVER_VALUE 2: ids 2,0,4, weights 0.6,0.4,0.5. */
MOE_EP_API moe_ep_status moe_ep_append_shared(const int32_t *ids, const float *weights, int64_t T,
                                              int32_t K, int32_t E, int32_t S, moe_ep_shared_weight kind,
                                              float value, int32_t *out_ids, float *out_weights,
                                              moe_ep_error *err);

/* How far are two sets of weights (T,K) apart? */
typedef struct moe_ep_weights_result {
    double max_abs;      /* largest |a - b|                                                               */
    int64_t max_abs_at;  /* flat index of it                                                              */
    double max_rel;      /* largest |a - b| / |b| where b is not 0                                        */
    double mean_l1;      /* mean over tokens of sum_j |a - b|                                             */
    double mean_sum_a, mean_sum_b; /* mean over tokens of the sum of a token's weights: the mass          */
    double worst_sum_a, worst_sum_b; /* the token sum that is farthest from 1                             */
} moe_ep_weights_result;

/* Compares weights a with reference b, for instance before and after a drop or in two precisions.
 * Example: a = 0.5,0.5 and b = 0.75,0.25 (T = 1): max_abs 0.25, max_rel 1, mean_l1 0.5. */
MOE_EP_API moe_ep_status moe_ep_weights_compare(const float *a, const float *b, int64_t T, int32_t K,
                                                moe_ep_weights_result *out, moe_ep_error *err);

/* ==================================================================================================
 * 2 LOADS: ids -> counts, windows, co-activation
 *
 *      ids (T,K)      loads (E)            An assignment is one (token, choice); an expert named twice
 *      1 1            1 3 2 0              by a token is counted twice, -1 is skipped and counted apart,
 *      0 1                                 any other id outside 0..E-1 stops the call before anything
 *      2 2                                 is written.  No ids at all (n = 0) give zero loads.
 * ================================================================================================== */

/* How many assignments does each expert get?  ids (n = T*K in any order) -> loads (E), overwritten.
 * *skipped (may be NULL) = number of -1.  sum(loads) + skipped = n.
 * Errors: ERR_NULL, ERR_SIZE (E < 1 or n < 0), ERR_EXPERT_ID (index = position, value = id).  O(n + E), no memory.
 * Example: ids {1,1, 0,1, 2,2}, E = 4 give {1,3,2,0}. */
MOE_EP_API moe_ep_status moe_ep_expert_loads(const int32_t *ids, int64_t n, int32_t E, int64_t *loads,
                                             int64_t *skipped, moe_ep_error *err);

/* The same, added to what loads (E) and *skipped already hold: accumulates chunks or ranks.
 * Errors: as above, ERR_OVERFLOW when a sum would not fit (index = expert).
 * Example: {1,3,2,0} and ids {3,-1} give {1,3,2,1}, skipped + 1. */
MOE_EP_API moe_ep_status moe_ep_expert_loads_add(const int32_t *ids, int64_t n, int32_t E, int64_t *loads,
                                                 int64_t *skipped, moe_ep_error *err);

/* Ids of several layers as they lie in memory: choice k of token t in layer l is
 * ids[t*token_stride + l*layer_stride + k].  Strides in elements; 0 = packed (T,L,K), that is L*K and K. */
typedef struct moe_ep_ids {
    const int32_t *ids;
    int64_t num_tokens;   /* T >= 0                                                               */
    int32_t num_layers;   /* L >= 1                                                               */
    int32_t top_k;        /* K >= 1                                                               */
    int32_t num_experts;  /* E >= 1                                                               */
    int64_t token_stride; /* 0 = L*K                                                              */
    int64_t layer_stride; /* 0 = K                                                                */
} moe_ep_ids;

/* A packed (T,L,K) array: one token's layers side by side, as servers record them. */
MOE_EP_API moe_ep_ids moe_ep_ids_tlk(const int32_t *ids, int64_t T, int32_t L, int32_t K, int32_t E);
/* A packed (L,T,K) array: one layer's tokens side by side, as a model run writes them. */
MOE_EP_API moe_ep_ids moe_ep_ids_ltk(const int32_t *ids, int64_t T, int32_t L, int32_t K, int32_t E);

/* Counts per layer: view -> loads (L,E), overwritten; *skipped (may be NULL) = number of -1 in all layers.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW (T*L*K, strides), ERR_EXPERT_ID (index = offset from view.ids).
 * O(T*L*K + L*E).  Example: (T,L,K) = (2,2,1), ids {0,1, 0,2}, E = 3 give {2,0,0, 0,1,1}. */
MOE_EP_API moe_ep_status moe_ep_layer_loads(const moe_ep_ids *view, int64_t *loads, int64_t *skipped,
                                            moe_ep_error *err);

/* Which of D ranks does token t start on when T tokens are dealt in contiguous blocks, as equal as possible, the
 * first T mod D ranks one more?  Negative = status (ERR_SIZE, ERR_RANGE).  O(1).
 * Example: T = 10, D = 4: blocks of 3 3 2 2, token 6 is on rank 2. */
MOE_EP_API int64_t moe_ep_rank_of_token(int64_t t, int64_t T, int32_t D, moe_ep_error *err);

/* Counts per rank the tokens start on: ids (T,K), source_rank (T) values 0..D-1 or NULL = blocks as in
 * moe_ep_rank_of_token -> loads (D,E), overwritten.  Their sum over ranks is moe_ep_expert_loads.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_EXPERT_ID, ERR_DEVICE_ID (index = token).  O(T*K + D*E).
 * Example: ids {0,1,1,1}, K = 1, E = 2, D = 2 give {1,1, 0,2}. */
MOE_EP_API moe_ep_status moe_ep_rank_loads(const int32_t *ids, int64_t T, int32_t K, int32_t E,
                                           const int32_t *source_rank, int32_t D, int64_t *loads,
                                           int64_t *skipped, moe_ep_error *err);

/* Experts' loads -> devices' loads: loads (E), device_of_expert (E) or NULL = expert e on device e % D ->
 * device_loads (D), overwritten.  One copy per expert; moe_ep_device_loads does the same for replicas.
 * Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE (index = expert), ERR_DEVICE_ID (index = expert), ERR_OVERFLOW.  O(E + D).
 * Example: {10,1,1,1,10,1,1,1} on 4 devices give {20,2,2,2}. */
MOE_EP_API moe_ep_status moe_ep_loads_by_device(const int64_t *loads, int32_t E, const int32_t *device_of_expert,
                                                int32_t D, int64_t *device_loads, moe_ep_error *err);

/* How many of the n loads are not zero (experts whose weights are read)?  Negative = status.  O(n).
 * Example: {100,28,0,0} gives 2. */
MOE_EP_API int64_t moe_ep_active_experts(const int64_t *loads, int32_t n, moe_ep_error *err);

/* Active experts per device: loads (E), device_of_expert (E) or NULL = e % D -> active (D).  Errors as in
 * moe_ep_loads_by_device.  Example: {10,0,1,1} on 2 devices give {2,1}. */
MOE_EP_API moe_ep_status moe_ep_active_by_device(const int64_t *loads, int32_t E, const int32_t *device_of_expert,
                                                 int32_t D, int32_t *active, moe_ep_error *err);

/* Expected number of distinct experts that T tokens touch when each takes K distinct ones of E at random:
 * E (1 - (1-K/E)^T), exact.  Negative = status (ERR_SIZE, ERR_TOP_K).  O(1).
 * Example: T = 8, K = 2, E = 64 give 14.3552. */
MOE_EP_API double moe_ep_expected_distinct(int64_t T, int32_t K, int32_t E, moe_ep_error *err);

/* Expected number of groups (ranks, nodes) that one token touches when K distinct of E experts are drawn at
 * random and
 * every group holds E/G of them: G (1 - C(E-E/G,K)/C(E,K)), exact when G divides E.  O(min(K, E/G)).
 * Negative = status (ERR_SIZE, ERR_TOP_K).  Example: K = 8, E = 128, G = 16 give 6.60. */
MOE_EP_API double moe_ep_expected_groups(int32_t K, int32_t E, int32_t G, moe_ep_error *err);

/* ---- structure beyond counts --------------------------------------------------------------------- */

/* Which experts are used together?  ids (T,K) -> co (E,E), overwritten: tokens that use both i and j, symmetric, zero
 * diagonal; an expert named twice by a token counts once.  With distinct choices the sum is T*K*(K-1).
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_EXPERT_ID.  O(T*K*K + E*E).
 * Example: ids {0,1, 0,2}, E = 3 give {0,1,1, 1,0,0, 1,0,0}. */
MOE_EP_API moe_ep_status moe_ep_coactivation(const int32_t *ids, int64_t T, int32_t K, int32_t E, int64_t *co,
                                             int64_t *skipped, moe_ep_error *err);

/* Which expert follows which?  ids_from and ids_to (T,K) of two layers -> transitions (E,E), overwritten: [i][j] =
 * (choice i in the first, choice j in the second) of the same token; the sum is T*K*K when nothing is -1.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_EXPERT_ID (arg names the array).  O(T*K*K + E*E).
 * Example: from {0, 1}, to {1, 1}, K = 1, E = 2 give {0,1, 0,1}. */
MOE_EP_API moe_ep_status moe_ep_transitions(const int32_t *ids_from, const int32_t *ids_to, int64_t T, int32_t K,
                                            int32_t E, int64_t *transitions, moe_ep_error *err);

/* Rows of counts (E,E) divided by their sums -> share (E,E); a row without counts becomes zero.
 * Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE.  Example: {0,2, 1,3} gives {0,1, 0.25,0.75}. */
MOE_EP_API moe_ep_status moe_ep_transition_shares(const int64_t *transitions, int32_t E, double *share,
                                                  moe_ep_error *err);

/* How much more often than by chance are two experts used together?  co (E,E), loads (E), T tokens -> lift (E,E)
 * = co*T / (load_i*load_j), 1 = independent; 0 where a load is 0.
 * Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE.  Example: co 10, loads 20 and 10, T = 40: lift 2. */
MOE_EP_API moe_ep_status moe_ep_lift(const int64_t *co, const int64_t *loads, int64_t T, int32_t E, double *lift,
                                     moe_ep_error *err);

/* ---- windows: loads over many steps -------------------------------------------------------------- */

/* Loads of many steps in the caller's memory.  All arrays are (L,E); read them, write only through the functions.
 * Keep one window per phase ("prefill", "decode"): their hot experts differ. */
typedef struct moe_ep_window {
    const char *label;    /* the caller's name for it, may be NULL; not copied                     */
    int32_t num_layers, num_experts;
    int32_t ring_steps;   /* S: the last S steps are kept one by one; 0 = none                     */
    int32_t has_variance; /* 0 after a merge of ranks whose steps were not all kept                */
    double ema_keep;      /* 0..1, share of the old average kept per step                          */
    int64_t steps;        /* steps added so far                                                    */
    int64_t *sum;         /* total over all steps                                                  */
    int64_t *ring;        /* (S,L,E) step i (0 = first) lies at i mod S                            */
    double *ema;          /* ema = keep*ema + (1-keep)*step, first step taken as it is             */
    double *mean;         /* running mean per step (Welford)                                       */
    double *m2;           /* running sum of squared deviations                                     */
} moe_ep_window;

/* Bytes that moe_ep_window_init needs; 0 = invalid sizes.  O(1). */
MOE_EP_API size_t moe_ep_window_bytes(int32_t L, int32_t E, int32_t ring_steps);

/* Starts an empty window in mem (bytes, 8-byte aligned).  label may be NULL.  ema_keep 0 = ema is the last step.
 * Errors: ERR_NULL, ERR_SIZE, ERR_RANGE (ema_keep outside 0..1), ERR_NAN, ERR_SCRATCH (value = bytes needed). */
MOE_EP_API moe_ep_status moe_ep_window_init(moe_ep_window *w, const char *label, int32_t L, int32_t E,
                                            int32_t ring_steps, double ema_keep, void *mem, size_t bytes,
                                            moe_ep_error *err);

/* Forgets all steps; sizes and label stay. */
MOE_EP_API moe_ep_status moe_ep_window_clear(moe_ep_window *w, moe_ep_error *err);

/* Adds one step: loads (L,E).  Errors: ERR_NULL, ERR_NEGATIVE, ERR_OVERFLOW (index = l*E+e).  O(L*E).
 * Example: after the steps {4,0} and {0,2}: sum {4,2}, mean {2,1}; ema with keep 0.5 {2,1}. */
MOE_EP_API moe_ep_status moe_ep_window_add(moe_ep_window *w, const int64_t *loads, moe_ep_error *err);

/* Loads of one kept step, back = 0 the newest .. S-1.  NULL when it is not kept (any more). */
MOE_EP_API const int64_t *moe_ep_window_step(const moe_ep_window *w, int64_t back);

/* Sum of the newest `last` kept steps -> loads (L,E).  Errors: ERR_NULL, ERR_RANGE (last < 0 or more than are kept).
 * O(last*L*E).  Example: steps {4,0},{0,2},{1,1}, last = 2: {1,3}. */
MOE_EP_API moe_ep_status moe_ep_window_recent(const moe_ep_window *w, int32_t last, int64_t *loads,
                                              moe_ep_error *err);

/* Variance per step and expert (divided by steps-1; zero for fewer than two steps) -> variance (L,E).
 * Errors: ERR_NULL, ERR_UNSUPPORTED (has_variance is 0).  Example: {4,0},{0,2}: {8,2}. */
MOE_EP_API moe_ep_status moe_ep_window_variance(const moe_ep_window *w, double *variance, moe_ep_error *err);

/* Adds to dst what another rank counted in the SAME steps: sums, ring, means and averages add up.
 * The variance is computed anew when all steps are still kept, else has_variance becomes 0 (variances of ranks do not
 * add).  Errors: ERR_NULL, ERR_SIZE (other shape, ring, ema_keep or steps; arg names it), ERR_OVERFLOW.  O(S*L*E).
 * Example: ranks with {4,0} and {1,2} in one step give {5,2}. */
MOE_EP_API moe_ep_status moe_ep_window_merge_ranks(moe_ep_window *dst, const moe_ep_window *src,
                                                   moe_ep_error *err);

/* Appends to dst the steps of src, which came AFTER those of dst (another process, another hour).  Mean and
 * variance are
 * those of all steps (Chan, Golub and LeVeque); the ring gets src's kept steps; ema is src's average brought in with
 * the weight of its steps.  Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW.  O(S*L*E).
 * Example: {4} then {0},{2}: sum 6, steps 3, variance 4. */
MOE_EP_API moe_ep_status moe_ep_window_append(moe_ep_window *dst, const moe_ep_window *src, moe_ep_error *err);

/* ==================================================================================================
 * 3 BALANCE: how even are the loads, and what would pure chance give?
 *
 * Three families of one fact, convertible by moe_ep_convert:
 *      imbalance     max/mean         1..n    "step inflation", "peak to average"
 *      excess        max/mean - 1     0..n-1  MaxVio, TensorRT-LLM's imbalance ratio
 *      balancedness  mean/max         1/n..1  parallel efficiency, utilisation
 * Works on experts, slots, devices or nodes alike.  Loads are counts, bytes or seconds, >= 0.
 * No load at all is perfect balance (imbalance 1, zero_load set), and so is n = 1: never NaN.
 * ================================================================================================== */

/* max/mean of loads (n).  Negative = status: ERR_NULL, ERR_SIZE (n < 1), ERR_NEGATIVE (index), ERR_OVERFLOW, ERR_NAN.
 * O(n), no memory.  Example: {960,92,92,92,91,91,91,91} gives 4.8; {0,0} gives 1. */
MOE_EP_API double moe_ep_imbalance(const int64_t *loads, int32_t n, moe_ep_error *err);
MOE_EP_API double moe_ep_imbalance_d(const double *loads, int32_t n, moe_ep_error *err);

/* Counts to doubles, for the functions that take real loads: from (n) -> to (n).  Exact below 2^53.
 * Errors: ERR_NULL, ERR_SIZE.  Example: {3} gives {3.0}. */
MOE_EP_API moe_ep_status moe_ep_loads_to_double(const int64_t *from, int64_t n, double *to, moe_ep_error *err);

/* Every metric of one load vector c with mean m, maximum M, shares p = c/sum. */
typedef struct moe_ep_balance_result {
    int32_t n;
    int32_t zero_load;           /* not 0: the sum is 0; everything below reads as perfect balance       */
    int32_t argmax, argmin;      /* lowest index on ties                                                 */
    int32_t active;              /* loads above 0                                                        */
    double sum, mean, max, min;
    double p50, p95, p99;        /* percentiles of the loads, linear between neighbours (numpy)          */
    double std;                  /* population standard deviation                                        */
    double imbalance;            /* M/m                                                                  */
    double balancedness;         /* m/M                                                                  */
    double sglang_utilization;   /* (m+1e-5)/(M+1e-5) in float32, as SGLang logs it                      */
    double maxvio;               /* M/m - 1 (loss-free balancing)                                        */
    double minvio;               /* 1 - min/m                                                            */
    double cv_population;        /* std/m                                                                */
    double cv_sample;            /* with n-1; 0 for n = 1                                                */
    double cv2_sample;           /* its square: importance and load loss without their epsilon           */
    double entropy_nats;         /* H = -sum p ln p                                                      */
    double entropy_norm;         /* H / ln n; 1 for n = 1                                                */
    double perplexity;           /* exp H                                                                */
    double kl_from_uniform_nats; /* ln n - H                                                             */
    double gini;                 /* sum_i (2i-n-1) c_(i) / (n sum), 0..(n-1)/n                           */
    double jain;                 /* sum^2 / (n sum c^2), 1/n..1                                          */
    double hhi;                  /* sum p^2                                                              */
    double effective_experts;    /* 1 / sum p^2                                                          */
    double idle_fraction;        /* share of loads that are 0                                            */
    double max_minus_mean;       /* what the busiest holds above its fair share                          */
    double max_over_min;         /* 0 when the least load is 0                                           */
    double step_time;            /* M: everyone waits for the busiest, unit of the loads                 */
    double efficiency;           /* sum / (n M), = balancedness                                          */
    double step_inflation;       /* = imbalance                                                          */
} moe_ep_balance_result;

/* loads (n) -> *out.  Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE, ERR_NAN, ERR_OVERFLOW (the sum), ERR_SCRATCH.
 * O(n log n), n doubles of scratch.  Sources: routing literature as named at each field.
 * Example: {100,28,0,0}: imbalance 3.125, gini 0.640625, effective_experts 1.519, idle_fraction 0.5. */
MOE_EP_API moe_ep_status moe_ep_balance(const int64_t *loads, int32_t n, moe_ep_balance_result *out,
                                        moe_ep_scratch *scratch, moe_ep_error *err);
MOE_EP_API moe_ep_status moe_ep_balance_d(const double *loads, int32_t n, moe_ep_balance_result *out,
                                          moe_ep_scratch *scratch, moe_ep_error *err);

typedef enum moe_ep_balance_family {
    MOE_EP_FAMILY_IMBALANCE = 0, /* max/mean                                                             */
    MOE_EP_FAMILY_EXCESS,        /* max/mean - 1: MaxVio                                                 */
    MOE_EP_FAMILY_BALANCEDNESS   /* mean/max: efficiency                                                 */
} moe_ep_balance_family;

/* One family's number as another's.  n > 0 also checks that the value is possible for n loads; 0 = unknown.
 * Negative = status: ERR_RANGE, ERR_NAN.  O(1).
 * Example: efficiency 0.4 is imbalance 2.5 is excess 1.5. */
MOE_EP_API double moe_ep_convert(double value, moe_ep_balance_family from, moe_ep_balance_family to, int32_t n,
                                 moe_ep_error *err);

/* ---- many layers, many steps --------------------------------------------------------------------- */

/* Over the rows of a matrix (L,n); a row is a layer, or a step of one layer.  Rows without load are left out of the
 * means, percentiles and the worst, as they have no balance. */
typedef struct moe_ep_layers_result {
    int32_t num_layers, loaded_layers; /* all rows, rows with load                                       */
    int32_t worst_layer;               /* highest imbalance, lowest index on ties; -1 when none is loaded */
    double worst_imbalance;
    double mean_imbalance;             /* mean over rows of max/mean ("per step maximum, then mean")     */
    double p50, p90, p95, p99;         /* percentiles over rows of max/mean                              */
    double mean_balancedness;          /* mean over loaded rows of mean/max                              */
    double mean_of_layer_ratios;       /* the same, a row without load counted as 0                      */
    double avg_sum, max_sum;           /* sums over rows of mean and of max                              */
    double balancedness;               /* avg_sum/max_sum: vLLM's log_balancedness; 1 without load       */
    double imbalance;                  /* max_sum/avg_sum: what a step of all layers really loses        */
    double imbalance_of_sum;           /* rows added first, then max/mean: hides what alternates         */
    double balancedness_wrong_axis;    /* vLLM before its fix: mean and max over rows, for old logs      */
} moe_ep_layers_result;

/* loads (L,n) -> *out.  Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_NEGATIVE, ERR_NAN (index = flat).
 * O(L*n + L log L), L + 2n doubles of scratch.
 * Example: {100,0, 0,100} as (2,2): mean_balancedness 0.5, imbalance_of_sum 1.
 * Example: {100,0,0,0, 100,0,0,0}: avg_sum 50, max_sum 200, balancedness 0.25, balancedness_wrong_axis 1. */
MOE_EP_API moe_ep_status moe_ep_balance_layers(const int64_t *loads, int32_t L, int32_t n, moe_ep_layers_result *out,
                                               moe_ep_scratch *scratch, moe_ep_error *err);
MOE_EP_API moe_ep_status moe_ep_balance_layers_d(const double *loads, int32_t L, int32_t n,
                                                 moe_ep_layers_result *out, moe_ep_scratch *scratch,
                                                 moe_ep_error *err);

/* max/mean of each row: loads (L,n) -> imbalance (L); 1 for a row without load.  Errors as above.
 * Example: {3,1, 0,0} as (2,2) gives {1.5,1}. */
MOE_EP_API moe_ep_status moe_ep_layer_imbalances(const double *loads, int32_t L, int32_t n, double *imbalance,
                                                 moe_ep_error *err);

/* A run of S steps through L layers: the maximum is taken in each step and layer, then added up. */
typedef struct moe_ep_steps_result {
    double max_rows;         /* mean over steps of the sum over layers of the maximum               */
    double mean_rows;        /* the same of the mean: perfect balance                               */
    double imbalance;        /* max_rows / mean_rows; 1 without load                                */
    double imbalance_of_sum; /* steps added first: what an average hides                            */
    int32_t worst_step;      /* largest ratio of a step, lowest index on ties; -1 without load      */
    double worst_imbalance;
} moe_ep_steps_result;

/* loads (S,L,n) -> *out.  Errors as in moe_ep_balance_layers.  O(S*L*n), n doubles of scratch.
 * Example: {100,0, 0,100} as (2,1,2): imbalance 2, imbalance_of_sum 1. */
MOE_EP_API moe_ep_status moe_ep_balance_steps(const double *loads, int32_t S, int32_t L, int32_t n,
                                              moe_ep_steps_result *out, moe_ep_scratch *scratch,
                                              moe_ep_error *err);

/* ---- who is hot ---------------------------------------------------------------------------------- */

/* Indices of loads (n) above `times` x mean, heaviest first, ties by index -> list (n), *count of them.
 * times >= 0; 0 = all that have any load.  Without load none is hot.
 * Errors: ERR_NULL, ERR_SIZE, ERR_RANGE (times), ERR_NEGATIVE, ERR_NAN.  O(n log n), no memory.
 * Example: {10,60,20,30} with times 1 gives {1} (mean 30). */
MOE_EP_API moe_ep_status moe_ep_hot_list(const double *loads, int32_t n, double times, int32_t *list,
                                         int32_t *count, moe_ep_error *err);

/* Indices of loads (n) that are 0, ascending -> list (n), *count.  Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE, ERR_NAN.
 * Example: {5,0,1,0} gives {1,3}. */
MOE_EP_API moe_ep_status moe_ep_dead_list(const double *loads, int32_t n, int32_t *list, int32_t *count,
                                          moe_ep_error *err);

/* Share of the load that the s heaviest carry, s = 1..n -> curve (n), curve[n-1] = 1; all 1 without load.
 * Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE, ERR_NAN, ERR_OVERFLOW (the sum).  O(n log n), no memory.
 * Example: {1,3,4} gives {0.5,0.875,1}. */
MOE_EP_API moe_ep_status moe_ep_coverage(const double *loads, int32_t n, double *curve, moe_ep_error *err);

/* How few of the n experts carry at least `share` (0..1) of the load?  0 for share 0 or no load.  Negative = status.
 * Example: {1,3,4}, share 0.8: 2. */
MOE_EP_API int64_t moe_ep_experts_for_share(const double *loads, int32_t n, double share, moe_ep_scratch *scratch,
                                            moe_ep_error *err);

/* Share of the load on the s heaviest of n, 0..1; 1 without load.  Negative = status (ERR_RANGE: s outside 0..n).
 * Example: {1,3,4}, s = 2: 0.875. */
MOE_EP_API double moe_ep_top_share(const double *loads, int32_t n, int32_t s, moe_ep_scratch *scratch,
                                   moe_ep_error *err);

/* How alike are two windows: would a plan made on one fit the other? */
typedef struct moe_ep_similarity_result {
    double correlation;     /* Pearson; when one is constant: 1 if the shares are equal, else 0            */
    double cosine;          /* 1 = same direction; 1 when both are zero, 0 when one is                     */
    double l1;              /* sum of |share_a - share_b|, 0..2; without load the shares are all 1/n       */
    double total_variation; /* half of it: share of the load that moved, 0..1                              */
    int32_t top;            /* size of the hot lists compared                                              */
    int32_t overlap;        /* experts in both hot lists                                                   */
} moe_ep_similarity_result;

/* a and b (n) -> *out; top 0 = max(1, n/8).  Errors: ERR_NULL, ERR_SIZE, ERR_RANGE (top), ERR_NEGATIVE, ERR_NAN.
 * O(n log n), 2n int32 of scratch.  Example: {3,1,0,0} and {0,0,1,3}, top 2: l1 2, overlap 0. */
MOE_EP_API moe_ep_status moe_ep_similarity(const double *a, const double *b, int32_t n, int32_t top,
                                           moe_ep_similarity_result *out, moe_ep_scratch *scratch,
                                           moe_ep_error *err);

/* ---- chance: what uniform routing gives ---------------------------------------------------------- */

/* Ratios are multiples of the mean load.  A measured max/mean inside p05..p95 is small-batch arithmetic, not a hot
 * expert. */
typedef struct moe_ep_chance_result {
    double mean_load;        /* T*K/E, or T*K/D                                                        */
    double max_over_mean;    /* expected max/mean                                                      */
    double sd;               /* its standard deviation                                                 */
    double p05, p95;         /* 5th and 95th percentile of max/mean                                    */
    double one_sd;           /* standard deviation of ONE load / mean                                  */
    double one_p05, one_p95; /* percentiles of one load / mean                                         */
    double distinct;         /* expected distinct experts: of all, or per device                       */
    double tokens;           /* expected tokens with at least one expert there: per expert or device   */
} moe_ep_chance_result;

/* What does routing by pure chance look like: every one of T tokens takes K distinct of E experts at random.
 * A model: the E loads are drawn without replacement from equal pools whose size makes variance and correlation
 * exact (the law itself for K = 1, K = E-1 and K = E; T <= 3 is summed exactly); the maximum by inverting the
 * characteristic function of the sum.  Mean within 1 % of Monte Carlo for E 2..4096, any K and T; p05 and p95 may
 * sit one row beside the simulation's where a whole row carries them.
 * Errors: ERR_NULL, ERR_SIZE (T, K or E < 1), ERR_TOP_K, ERR_OVERFLOW (T*K).  Well below 100 us, no memory.
 * Example: T = 64, K = 2, E = 64: 2.93. */
MOE_EP_API moe_ep_status moe_ep_chance(int64_t T, int32_t K, int32_t E, moe_ep_chance_result *out,
                                       moe_ep_error *err);

/* The same when a token may name an expert twice (K independent draws). */
MOE_EP_API moe_ep_status moe_ep_chance_with_replacement(int64_t T, int32_t K, int32_t E, moe_ep_chance_result *out,
                                                        moe_ep_error *err);

/* The same for the rows of D devices owning E/D experts each: below this no placement can go by balancing alone.
 * D need not divide E (E/D is then an average).  Errors: also ERR_SIZE for D < 1 or D > E.
 * Example: T = 16, K = 8, E = 256, D = 8: busiest device 21.8 rows = 1.36 x mean 16. */
MOE_EP_API moe_ep_status moe_ep_chance_devices(int64_t T, int32_t K, int32_t E, int32_t D,
                                               moe_ep_chance_result *out, moe_ep_error *err);

/* ==================================================================================================
 * 4 CAPACITY: how many rows an expert may take, and which are dropped
 *
 *      ids (T,K) --order--> queue of every expert --first C--> kept, slot 0..C-1
 *                                               --the rest-> dropped
 * ================================================================================================== */

/* Whose formula.  G, T = num_tokens, cf = factor; each is rounded exactly as its source rounds. */
typedef enum moe_ep_capacity_rule {
    MOE_EP_CAPACITY_GENERAL = 0,    /* round(basis / E * cf), see basis_tokens, rounding, in_float32       */
    MOE_EP_CAPACITY_MEGATRON,       /* ceil((T*K/E) * cf) in double                                        */
    MOE_EP_CAPACITY_DEEPSPEED_TOP1, /* ceil((T/E) * cf) in float32                                         */
    MOE_EP_CAPACITY_DEEPSPEED_TOPK, /* ceil((T/E) * (cf*K)) in float32; also top-2                          */
    MOE_EP_CAPACITY_TUTEL,          /* K * int(cf * ceil(T/E)); cf = 0: max_load; cf < 0: the smaller of
                                       max_load and K * int(-cf * ceil(T/E))                               */
    MOE_EP_CAPACITY_MEGABLOCKS,     /* int(cf * (K*T*world/E)); 0: max_load                                */
    MOE_EP_CAPACITY_MAXTEXT,        /* int(max(ceil(T*K/E) * cf, cf)), T per sequence; cf <= 0: max_load   */
    MOE_EP_CAPACITY_FLAXFORMER,     /* int(round(cf * T / E)), half to even (T5X)                          */
    MOE_EP_CAPACITY_MESH_TF,        /* min(T, int(T*cf/E)): Switch Transformer                             */
    MOE_EP_CAPACITY_LINGVO,         /* int(T*cf/E), 0 becomes 4, then up to a multiple of 4: GShard        */
    MOE_EP_CAPACITY_NLLB,           /* 2*ceil(T/E); with cf > 0 it is the eval fraction: ceil(cf*T)         */
    MOE_EP_CAPACITY_HUNYUAN         /* max(K, K*T // E), at inference                                      */
} moe_ep_capacity_rule;

typedef enum moe_ep_rounding {
    MOE_EP_ROUND_CEIL = 0,
    MOE_EP_ROUND_FLOOR,
    MOE_EP_ROUND_HALF_EVEN
} moe_ep_rounding;

typedef struct moe_ep_capacity_desc {
    moe_ep_capacity_rule rule;
    int64_t num_tokens;       /* T of one rank, group or sequence, as the source counts; >= 1               */
    int32_t top_k;            /* K >= 1                                                                     */
    int32_t num_experts;      /* E >= 1                                                                     */
    double factor;            /* cf > 0, except where the rule gives 0 or less a meaning                    */
    int64_t min_capacity;     /* lower bound on the result; 0 = none (sources: DeepSpeed 4 or 8, T5X and
                                 Mesh TF 4)                                                                 */
    int64_t multiple;         /* rounded up to a multiple of it, last; 0 or 1 = not (Tutel "alignment",
                                 DeepSpeed: the tensor-parallel size)                                       */
    int32_t world;            /* MEGABLOCKS: expert-parallel size; 0 = 1                                    */
    int64_t max_load;         /* the largest load, for rules that are dropless at some cf; 0 = not known    */
    int32_t basis_tokens;     /* GENERAL: 0 = basis is T*K assignments, 1 = T tokens                        */
    moe_ep_rounding rounding; /* GENERAL                                                                    */
    int32_t in_float32;       /* GENERAL: 1 = computed in float32                                           */
} moe_ep_capacity_desc;

/* Rows one expert may take; negative = a moe_ep_status.  0 = "dropless" by a rule that allows it when
 * max_load is not known.  Errors: NULL, SIZE, RANGE (factor), NAN, NEGATIVE, OVERFLOW.
 * Example: T = 64, K = 2, E = 8, factor 1, MEGATRON: 16.  T = 45, K = 1, E = 2, factor 1.2: MEGATRON 27,
 * DEEPSPEED_TOP1 28. */
MOE_EP_API int64_t moe_ep_capacity(const moe_ep_capacity_desc *desc, moe_ep_error *err);

/* Text of a rule; NULL outside the list.  The first is 0, so a loop can list them.
 * Example: rule 1 is "megatron". */
MOE_EP_API const char *moe_ep_capacity_rule_name(int32_t rule);

/* Assignments beyond the capacity: sum of max(0, loads[e] - capacity); negative = a moe_ep_status.
 * loads (E); capacity >= 0, and 0 drops everything.
 * Example: loads 84,7,7,6,6,6,6,6 with capacity 16 drop 68. */
MOE_EP_API int64_t moe_ep_dropped_tokens(const int64_t *loads, int32_t E, int64_t capacity,
                                         moe_ep_error *err);

/* The smallest capacity factor at which ceil(basis / E * cf) drops nothing: max(loads) * E / basis.
 * basis = T*K or T, as the formula counts; negative = a moe_ep_status.
 * Example: loads 84,7,7,6,6,6,6,6 with basis 128: 5.25. */
MOE_EP_API double moe_ep_smallest_capacity_factor(const int64_t *loads, int32_t E, int64_t basis,
                                                  moe_ep_error *err);

/* Who comes first in the queue of an expert. */
typedef enum moe_ep_drop_order {
    MOE_EP_DROP_TOKEN_MAJOR = 0, /* (token, choice): Switch, DeepSpeed position, MaxText, MegaBlocks        */
    MOE_EP_DROP_CHOICE_MAJOR,    /* all first choices by token, then all second, ...: GShard, Tutel, NLLB,
                                    DeepSpeed top-2, HunYuan, flaxformer                                    */
    MOE_EP_DROP_GATE,            /* largest weight first, then token order: Megatron and DeepSpeed "probs"  */
    MOE_EP_DROP_MAX_GATE,        /* tokens by their largest weight, then choice-major: batch-prioritised    */
    MOE_EP_DROP_RANDOM           /* random (needs rng): DeepSpeed top-1 with use_rts                        */
} moe_ep_drop_order;

/* When the weights of a token are divided by their sum. */
typedef enum moe_ep_drop_norm {
    MOE_EP_NORM_NEVER = 0,
    MOE_EP_NORM_BEFORE, /* over all its choices, before the drop                                            */
    MOE_EP_NORM_AFTER   /* over those that were kept                                                        */
} moe_ep_drop_norm;

/* A drop policy.  capacity (or capacities) is required; the rest left 0: token order, raw weights, dropped
 * weights become 0. */
typedef struct moe_ep_drop_policy {
    int64_t capacity;          /* C >= 1 rows per expert (of each group of tokens)                          */
    const int64_t *capacities; /* (E) rows per expert, >= 0, instead of capacity; or NULL                   */
    moe_ep_drop_order order;
    moe_ep_drop_norm norm;
    moe_ep_eps_mode eps_mode;  /* of the norm                                                               */
    float eps;
    int32_t norm_skip_k1;      /* 1 = no norm when K is 1 (Tutel)                                           */
    int32_t keep_weights;      /* 1 = weights of dropped assignments stay (Tutel, MegaBlocks), 0 = become 0  */
    int32_t slots_by_token;    /* 1 = slots are dealt to the survivors in token order (DeepSpeed), 0 = in
                                  the order of the queue                                                    */
    int64_t group_tokens;      /* tokens of one group or sequence with queues of its own; 0 = all T         */
    const float *priority;     /* (T) MAX_GATE: larger first, instead of the largest weight; or NULL        */
    moe_ep_rng *rng;           /* RANDOM                                                                    */
} moe_ep_drop_policy;

/* What was lost. */
typedef struct moe_ep_drop_result {
    int64_t assignments;    /* ids that are not -1                                                          */
    int64_t skipped;        /* ids that are -1                                                              */
    int64_t kept, dropped;  /* their sum is assignments                                                     */
    int64_t tokens_hit;     /* tokens that lost at least one assignment                                     */
    int64_t tokens_lost;    /* tokens that had assignments and lost them all                                */
    int64_t max_load;       /* largest load of an expert in one group                                       */
    double weight_kept;     /* sum of the kept raw weights / sum of all raw weights; 1 without weights      */
} moe_ep_drop_result;

/* Which assignments survive a capacity?
 *   ids (T,K), -1 skipped;  weights (T,K) finite, or NULL when neither order nor norm needs them
 *   keep (T,K) out or NULL: 1 = kept, 0 = dropped or skipped
 *   slot (T,K) out or NULL: place in the expert's buffer 0..C-1, -1 = dropped or skipped
 *   position (T,K) out or NULL: place in the queue, also beyond C, -1 = skipped
 *   weights_after (T,K) out or NULL; may be weights itself
 *   result out or NULL
 * Errors: NULL, SIZE, EXPERT_ID, NAN, CONFIG (rng or weights missing), NEGATIVE, OVERFLOW.
 * Scratch: E numbers, and T or T*K numbers for the last three orders.  O(T*K), or O(N log N) when sorted.
 * Drops per rank instead of per expert: give the rank of each assignment as ids and D as E.
 * Example: ids 0,0,0,1 (K = 1, E = 2) with C = 2 keep 1,1,0,1 in token order. */
MOE_EP_API moe_ep_status moe_ep_drop(const moe_ep_drop_policy *policy, const int32_t *ids,
                                     const float *weights, int64_t T, int32_t K, int32_t E,
                                     uint8_t *keep, int64_t *slot, int64_t *position,
                                     float *weights_after, moe_ep_drop_result *result,
                                     moe_ep_scratch *scratch, moe_ep_error *err);

/* ---- presets: C rows per expert ----------------------------------------------------------------------- */

/* Token order, raw probability.  Switch Transformer in Mesh TensorFlow. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_switch(int64_t C);
/* As switch.  transformers switch_transformers. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_hf_switch(int64_t C);
/* Choice-major, g / (g1+g2+1e-9) before the drop.  Mesh TensorFlow (legacy), lingvo. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_gshard_legacy(int64_t C);
/* Choice-major, divided by the kept sum.  Mesh TensorFlow, new. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_gshard(int64_t C);
/* Random, raw gates, slots in token order; set rng.  DeepSpeed top1gating, use_rts. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_top1(int64_t C);
/* Choice-major, divided by max(kept sum, 2^-23).  DeepSpeed top2gating. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_top2(int64_t C);
/* Token order, divided by max(kept sum, 2^-23).  DeepSpeed topkgating, policy position. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_position(int64_t C);
/* Largest gates, divided by max(kept sum, 2^-23), slots in token order.  DeepSpeed topkgating, probs. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_probs(int64_t C);
/* Largest gates, raw.  Megatron-LM, policy probs; moe_ep_pad_to_capacity adds its padding. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_megatron_probs(int64_t C);
/* Token order, raw.  Megatron-LM, policy position (there a top-k over equal values: any order). */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_megatron_position(int64_t C);
/* Choice-major, or max gate first when bpr; normalised before when K > 1, never masked.  Tutel. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_tutel(int64_t C, int32_t bpr);
/* Choice-major, or max gate first when bpr; normalised before or after.  transformers nllb_moe. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_nllb(int64_t C, int32_t norm_before, int32_t bpr);
/* Choice-major, or max gate first when bpr; raw.  flaxformer tokens-choose routers. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_flaxformer(int64_t C, int32_t bpr);
/* Token order, weights unchanged.  MegaBlocks binned_gather. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_megablocks(int64_t C);
/* Token order in each sequence, weights masked; set group_tokens to the sequence length.  MaxText. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_maxtext(int64_t C);
/* Choice-major, / max(sum, 2^-23) before the drop.  transformers hunyuan_v1_moe. */
MOE_EP_API moe_ep_drop_policy moe_ep_drop_hunyuan(int64_t C);

/* Fills every expert up to min(C,T) tokens: map (T,E) out, 1 = token t has a row at e.  Kept assignments
 * first, then the lowest tokens that the expert does not have yet, gate 0 (Megatron pad_to_capacity).
 * ids, keep (T,K) as moe_ep_drop gave them; added out or NULL: rows filled in.  Errors: NULL, SIZE,
 * EXPERT_ID, CONFIG (keeps a -1), OVERFLOW.  O(T*(E+K)).
 * Example: T = 2, K = 1, E = 2, ids 0,0 both kept, C = 2: the map is all 1, and 2 rows were added. */
MOE_EP_API moe_ep_status moe_ep_pad_to_capacity(const int32_t *ids, const uint8_t *keep, int64_t T,
                                                int32_t K, int32_t E, int64_t C, uint8_t *map,
                                                int64_t *added, moe_ep_error *err);

/* Sends dropped assignments to the token's next best expert that still has room.
 *   candidates (T,R): the token's experts, best first; the first K are its choices, R >= K (route with
 *   top_k = R);  candidate_weights (T,R) or NULL;  keep (T,K) from moe_ep_drop over the first K columns
 *   ids (T,K) out, -1 where no candidate had room;  weights (T,K) out or NULL;  rerouted out or NULL
 * Order: token-major; an expert is used at most once per token.  Errors: NULL, SIZE, EXPERT_ID, NAN, CONFIG,
 * OVERFLOW.  Scratch E numbers.  O(T*K*K*R) at worst.
 * Example: candidates 0,1 | 0,1 with K = 1, C = 1, keep 1,0 give ids 0,1. */
MOE_EP_API moe_ep_status moe_ep_reroute(const int32_t *candidates, const float *candidate_weights,
                                        const uint8_t *keep, int64_t T, int32_t K, int32_t R, int32_t E,
                                        int64_t C, int32_t *ids, float *weights, int64_t *rerouted,
                                        moe_ep_scratch *scratch, moe_ep_error *err);

/* Drops per expert and per device: per_expert (E), per_device (D) or NULL, from ids, keep (T,K).
 * device_of_expert (E) or NULL = e % D; D is not used when per_device is NULL.  n = T*K.
 * Errors: NULL, SIZE, EXPERT_ID, DEVICE_ID, CONFIG (keeps a -1).
 * Example: ids 0,0,1 keep 1,0,0 on E = 2, D = 1: per expert 1,1, per device 2. */
MOE_EP_API moe_ep_status moe_ep_drop_counts(const int32_t *ids, const uint8_t *keep, int64_t n, int32_t E,
                                            const int32_t *device_of_expert, int32_t D,
                                            int64_t *per_expert, int64_t *per_device, moe_ep_error *err);

/* ==================================================================================================
 * 5 PLACE: where experts and their replicas live
 *
 *      device 0            device 1            device 2
 *      slot 0   slot 1     slot 2   slot 3     slot 4   slot 5      slot_start = 0 2 4 6
 *      expert 3 expert 0   expert 3 expert 1   expert 2 (empty)     slot_expert = 3 0 3 1 2 -1
 *
 *      replica_start = 0 1 2 3 5 (expert 3 has two)   replica_slot = 1 | 3 | 4 | 0 2
 *
 * Planners take a moe_ep_place_desc (what to place, on what, for which loads), write a moe_ep_placement
 * that moe_ep_placement_init has laid out for the same shape, and report one moe_ep_plan_result per layer.
 * A replica carries an equal share of its expert's load; section 6 splits unevenly.
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
 * rank order (the order in which the planner made them; ascending slots for hand-made placements).
 * The arrays may be edited; call moe_ep_placement_index after changing slot_expert. */
typedef struct moe_ep_placement {
    int32_t num_layers, num_experts, num_devices, num_nodes, num_slots;
    int32_t *slot_start;    /* (D+1) slots of device d are slot_start[d] .. slot_start[d+1]-1          */
    int32_t *slot_device;   /* (P)                                                                    */
    int32_t *device_node;   /* (D)                                                                    */
    int32_t *slot_expert;   /* (L,P) expert in the slot, -1 = empty                                   */
    int32_t *replica_start; /* (L,E+1) replicas of expert e: replica_slot[l*P + replica_start[l*(E+1)+e] ..] */
    int32_t *replica_slot;  /* (L,P) slots grouped by expert; the tail behind the last one is -1      */
    double *device_speed;   /* (D) relative speeds, 1 unless the shape gave others                    */
    uint8_t *device_inactive; /* (D) not 0 = dead or drained; may be set later, see moe_ep_rebalance  */
} moe_ep_placement;

/* Bytes one placement needs for these sizes; 0 = the sizes are invalid.  O(D).
 * Example: L = 1, E = 4, D = 2, 6 slots gives a number > 0; D = 0 gives 0. */
MOE_EP_API size_t moe_ep_placement_bytes(int32_t L, int32_t E, const moe_ep_shape *shape);

/* Lays a placement out in mem (bytes >= moe_ep_placement_bytes, 8-byte aligned as from malloc), every slot
 * empty.  mem belongs to the caller and must outlive *p.  Errors: ERR_NULL, ERR_SIZE (a size, a slot
 * count, or bytes too few: value = bytes needed), ERR_RANGE (node, speed), ERR_CONFIG (num_slots differs
 * from the sum of slots_per_device), ERR_OVERFLOW.  O(D + L*P).
 * Example: 6 slots on 4 devices start at 0 2 4 5 6. */
MOE_EP_API moe_ep_status moe_ep_placement_init(moe_ep_placement *p, int32_t L, int32_t E,
                                               const moe_ep_shape *shape, void *mem, size_t bytes,
                                               moe_ep_error *err);

/* Rebuilds replica_start and replica_slot from slot_expert, replicas in ascending slots.
 * Errors: ERR_NULL, ERR_EXPERT_ID (index = l*P + slot); nothing changes then.  O(L*(P + E)).
 * Example: slots 3 0 3 1 2 -1 of 4 experts give starts 0 1 2 3 5 and slots 1 3 4 0 2 -1. */
MOE_EP_API moe_ep_status moe_ep_placement_index(moe_ep_placement *p, moe_ep_error *err);

/* Copies the contents of src into dst, which was laid out with the same sizes.  Errors: ERR_SIZE. */
MOE_EP_API moe_ep_status moe_ep_placement_copy(const moe_ep_placement *src, moe_ep_placement *dst,
                                               moe_ep_error *err);

/* The planners, for the result and for the functions that take one as an option. */
typedef enum moe_ep_place_policy {
    MOE_EP_PLACE_GIVEN = 0, /* made by hand or read from a file */
    MOE_EP_PLACE_ROUND_ROBIN,
    MOE_EP_PLACE_CONTIGUOUS,
    MOE_EP_PLACE_LPT,
    MOE_EP_PLACE_EPLB_GLOBAL,
    MOE_EP_PLACE_EPLB_HIERARCHICAL,
    MOE_EP_PLACE_TRTLLM,
    MOE_EP_PLACE_BEST,
    MOE_EP_PLACE_REBALANCE
} moe_ep_place_policy;

/* Name of a policy in words ("EPLB, global"); never NULL. */
MOE_EP_API const char *moe_ep_place_policy_str(moe_ep_place_policy policy);

typedef enum moe_ep_eplb_mode {
    MOE_EP_EPLB_AUTO = 0,    /* hierarchical when num_groups divides over the nodes, else global */
    MOE_EP_EPLB_GLOBAL,      /* nodes ignored                                                    */
    MOE_EP_EPLB_HIERARCHICAL /* groups packed to nodes first; an error when they do not divide   */
} moe_ep_eplb_mode;

/* What to place.  Fields up to loads are required, the rest is optional. */
typedef struct moe_ep_place_desc {
    int32_t num_layers, num_experts; /* L, E                                                          */
    moe_ep_shape shape;
    const double *loads; /* (L,E), or (num_steps,L,E); any unit, >= 0; rows, tokens, seconds           */

    int32_t num_groups;         /* expert groups of E/num_groups neighbours (eplb, home nodes); 0 = 1  */
    moe_ep_eplb_mode eplb_mode; /* eplb only                                                          */

    int32_t num_steps; /* steps in loads; 0 = 1.  Several: planned on mean + risk_z * sigma over them  */
    double risk_z;     /* 0 = the mean; 0.674 covers 75 % of the steps of a normal load                */

    /* best_placement only */
    const int32_t *layer_slots; /* (L) slots the layer may fill, E..P; NULL = all P                    */
    const int32_t *pinned;      /* (L,E) device that must hold a replica, -1 = free; NULL = all free   */
    int32_t max_replicas;       /* of one expert; 0 = as many as there are active devices             */
    int32_t max_refinements;    /* accepted swaps and moves per layer; 0 = until none helps, -1 = none */
    int32_t node_soft;          /* not 0: keep load on its home node, see max_off_node                 */
    double max_off_node;        /* node_soft: largest share (0..1) of the load (all layers together) that is served
                                   off its home node; 0 = strictly at home                             */
    const int32_t *home_node;   /* (L,E) or NULL = groups packed to nodes as eplb does                 */
    const int64_t *coactivation; /* (L,E,E) tokens that chose both experts, or NULL                    */
    double coactivation_slack;  /* share by which the maximum may grow to put partners together        */
    int32_t allow_duplicates;   /* not 0: take EPLB's global plan where it is lower, even if it puts an expert twice
                                   on a device (the one way to beat every plan without; rare, tiny layers)  */
} moe_ep_place_desc;

typedef enum moe_ep_bound {
    MOE_EP_BOUND_MEAN = 0, /* total load / total speed: nothing can be below the mean                  */
    MOE_EP_BOUND_REPLICA,  /* the heaviest replica that these slots leave, on the fastest device       */
    MOE_EP_BOUND_SLOTS     /* too many heavy replicas, or too many experts, for the slots of a device  */
} moe_ep_bound;

/* Name of a bound in words; never NULL. */
MOE_EP_API const char *moe_ep_bound_str(moe_ep_bound bound);

/* One layer of a plan.  Device loads are load / speed, in the unit of the loads. */
typedef struct moe_ep_plan_result {
    moe_ep_place_policy policy; /* what ran                                                           */
    const char *reason;         /* why, a sentence that lives forever                                 */
    double total;               /* load of the layer                                                  */
    double mean;                /* total / sum of the active speeds                                   */
    double max_before;          /* busiest device under contiguous blocks (rebalance: the placement it began with) */
    double max;                 /* busiest device under this plan                                     */
    double lower_bound;         /* no plan with these slots gets below it (equal shares)              */
    double gap;                 /* max / lower_bound - 1; 0 with zero load                            */
    double imbalance;           /* max / mean; 1 with zero load                                       */
    double node_imbalance;      /* the same over nodes                                                */
    double off_node;            /* share of the load off its home node; 0 unless node_soft            */
    moe_ep_bound bound;         /* which argument gave lower_bound                                    */
    int32_t busiest_device;     /* lowest index on ties                                               */
    int32_t slots_used;         /* replicas in the layer                                              */
    int32_t duplicates;         /* replicas sharing a device with an earlier one of the same expert   */
    int32_t max_replicas;       /* of one expert                                                      */
    int32_t refinements;        /* swaps and moves accepted                                           */
    int32_t moves;              /* rebalance: experts arriving on a device that did not hold them     */
} moe_ep_plan_result;

/* ---- planners: desc -> placement; result (L) or NULL ------------------------------------------------
 * All: out laid out for desc->num_layers, num_experts and shape; loads checked (ERR_NAN, ERR_NEGATIVE with the
 * index); ERR_NULL, ERR_SIZE, ERR_RANGE, ERR_SLOTS (fewer active slots than experts), ERR_CONFIG, ERR_SCRATCH,
 * ERR_MEMORY; on error out and result are untouched.  round_robin and contiguous need no loads (NULL: zero). */

/* Expert e on active device number e mod D, the naive baseline.  O(L*E).
 * Example: loads 1000 800 600 500 300 200 100 50 on 4 devices give 1300 1000 700 550. */
MOE_EP_API moe_ep_status moe_ep_place_round_robin(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                                  moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                                  moe_ep_error *err);

/* Blocks of neighbours: expert e on active device number floor(e*D/E) (vLLM's linear placement).  O(L*E).
 * Example: the loads above give 1800 1100 500 150. */
MOE_EP_API moe_ep_status moe_ep_place_contiguous(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                                 moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                                 moe_ep_error *err);

/* Longest processing time first: experts from heavy to light, each onto the lightest active device with a
 * free slot (Graham 1969, with slots).  One copy per expert; spare slots stay empty.  O(L*E*log(E*D)).
 * Example: the loads above with 8 slots on 4 devices give 1050 900 800 800, which is optimal. */
MOE_EP_API moe_ep_status moe_ep_place_lpt(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                          moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                          moe_ep_error *err);

/* DeepSeek's EPLB (deepseek-ai/EPLB eplb.py, commit d52c72d), bit for bit with a stable sort: float32 loads,
 * ratios and running sums, ties to the lowest index, replicas in creation order.  Modes as in eplb_mode; the
 * result says which ran and why.  Needs equal slots on all devices, no inactive device, no speeds, D divisible by
 * nodes, E by groups (ERR_CONFIG or ERR_SIZE otherwise).  It may put an expert twice on a device (duplicates).
 * O(L*(E + P*log(P*D))).
 * Example: loads 90 132 40 61 104 165 39 4 73 56 183 86, 16 slots, 4 groups, 2 nodes, 8 devices give the slots
 * 5 6 5 7 8 4 3 4 10 9 10 2 0 1 11 1. */
MOE_EP_API moe_ep_status moe_ep_place_eplb(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                           moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                           moe_ep_error *err);

/* TensorRT-LLM's host balancer (moeLoadBalancer.cpp, commit 0d919a4): double arithmetic, the larger expert id
 * first among equal replica candidates, zero total load shared out as P/E each and one more for the first P mod E.
 * Same limits as eplb; nodes ignored.  O(L*P*log(P)).
 * Example: loads 10 5 2 15 8 with 9 slots give 2 1 1 3 2 replicas. */
MOE_EP_API moe_ep_status moe_ep_place_trtllm(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                             moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                             moe_ep_error *err);

/* The plan to use: minimises the busiest device, no expert twice on a device.  Greedy replicas, LPT, then swaps and,
 * where they end above the bound, changes of the number of copies; small layers are searched further (exhaustively up
 * to 8 devices and 24 experts, within some milliseconds a layer).  Any slots per device, speeds, inactive devices,
 * pins, per-layer budgets.  node_soft: every node plans its own experts, then the changes across nodes that cost the
 * least load off home.  coactivation: swaps that bring experts chosen by the same tokens onto one device, as the
 * maximum allows. At most EPLB's maximum wherever EPLB doubles no expert; see allow_duplicates. Also ERR_DEVICE_ID
 * (pin), ERR_INFEASIBLE (pins do not fit, or a node is too small for its own experts), ERR_CONFIG. O(L*(P*log P +
 * swaps*(slots per device + D))). Example: loads 600 560 120 120 20 10 10 10 on 8 devices of 2 slots give 196.67
 * (EPLB: 232). */
MOE_EP_API moe_ep_status moe_ep_best_placement(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                               moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                               moe_ep_error *err);

/* ---- lab-sized: one layer, no placement struct ------------------------------------------------------- */

/* Heaviest expert first onto the lightest device, no slot limit: loads (E) -> device_of_expert (E).
 * O(E*log(E*D)).  Example: loads 1000 800 600 500 300 200 100 50 on 4 devices give 0 1 2 3 3 2 1 2,
 * device loads 1000 900 850 800. */
MOE_EP_API moe_ep_status moe_ep_lpt(const double *loads, int32_t E, int32_t D, int32_t *device_of_expert,
                                    moe_ep_scratch *scratch, moe_ep_error *err);

/* The same for replicas: expert e has counts[e] >= 1 copies of load/counts[e], never two on one device
 * (counts[e] <= D).  device_of_replica (sum of counts) lists the experts in order.
 * Example: loads 960 92 92 92 91 91 91 91, counts 2 1 1 1 1 1 1 1, D = 4: device loads 480 480 275 365. */
MOE_EP_API moe_ep_status moe_ep_lpt_replicas(const double *loads, int32_t E, const int32_t *counts, int32_t D,
                                             int32_t *device_of_replica, moe_ep_scratch *scratch,
                                             moe_ep_error *err);

/* Replica counts (E) for num_slots >= E slots: every expert one, then always one more for the expert with the
 * largest load per copy, lowest index on ties; at most max_replicas each (0 = no limit).  Least possible
 * heaviest replica.  Slots that nobody may use stay unused.  O(E + P*log E).
 * Example: loads 10 5 2 15 8 with 9 slots give 2 1 1 3 2; E + 1 slots copy the hottest expert once. */
MOE_EP_API moe_ep_status moe_ep_replicate(const double *loads, int32_t E, int32_t num_slots, int32_t max_replicas,
                                          int32_t *counts, moe_ep_scratch *scratch, moe_ep_error *err);

/* Writes an assignment into *out (laid out with enough slots): device_of_replica (L, sum of counts) as above, counts
 * (L,E) or NULL = 1 each, then it is (L,E).  Experts fill the slots of their device in order.
 * Errors: ERR_DEVICE_ID, ERR_SLOTS (device full; index = position), ERR_RANGE.  O(L*P).
 * Example: devices 0 1 2 2 1 2 3 3 of 8 experts round-trip through slot_expert and slot_device. */
MOE_EP_API moe_ep_status moe_ep_devices_placement(const int32_t *device_of_replica, const int32_t *counts,
                                                  moe_ep_placement *out, moe_ep_error *err);

/* ---- the arrays of EPLB, vLLM and SGLang -------------------------------------------------------------- */

/* Most replicas any expert has in any layer: the X of log2phy (L,E,X).  Or a negative status. */
MOE_EP_API int64_t moe_ep_max_replicas(const moe_ep_placement *p, moe_ep_error *err);

/* phy2log (L,P) expert per slot, log2phy (L,E,X) slots per expert padded with -1, logcnt (L,E) replicas; each may be
 * NULL.  ERR_SIZE when X is smaller than moe_ep_max_replicas.  O(L*(P + E*X)). */
MOE_EP_API moe_ep_status moe_ep_eplb_arrays(const moe_ep_placement *p, int32_t X, int32_t *phy2log,
                                            int32_t *log2phy, int32_t *logcnt, moe_ep_error *err);

/* The other direction into *out (laid out): phy2log (L,P) required; log2phy (L,E,X) gives the replica order and must
 * agree, NULL = ascending slots (X ignored); logcnt (L,E) must agree, or NULL.
 * Errors: ERR_EXPERT_ID, ERR_PLACEMENT (maps disagree; index into the array that does).  O(L*(P + E*X)). */
MOE_EP_API moe_ep_status moe_ep_placement_from_eplb(const int32_t *phy2log, const int32_t *log2phy, int32_t X,
                                                    const int32_t *logcnt, moe_ep_placement *out,
                                                    moe_ep_error *err);

/* ---- looking at a placement --------------------------------------------------------------------------- */

/* loads (L,E) shared equally over the replicas on active devices -> device_loads (L,D), not divided by speed.
 * Errors: ERR_LOST_EXPERT (loaded expert without an active replica; index = l*E + e), ERR_NAN, ERR_NEGATIVE.
 * O(L*P).  Example: experts 0 1 2 3 with loads 4 2 1 6 in the picture above: 4+3, 2+3, 1 = 7 5 1. */
MOE_EP_API moe_ep_status moe_ep_device_loads(const moe_ep_placement *p, const double *loads, double *device_loads,
                                             moe_ep_error *err);

/* The same summed per node: node_loads (L,N). */
MOE_EP_API moe_ep_status moe_ep_node_loads(const moe_ep_placement *p, const double *loads, double *node_loads,
                                           moe_ep_error *err);

/* Fills result (L) for any placement and any loads (num_steps,L,E), also ones it was not planned for: per layer the
 * sums over the steps, with max the sum of the per-step maxima (a step waits for its busiest device).
 * num_steps 0 = 1.  policy is GIVEN.  O(steps*L*P + bounds). */
MOE_EP_API moe_ep_status moe_ep_evaluate(const moe_ep_placement *p, const double *loads, int32_t num_steps,
                                         moe_ep_plan_result *result, moe_ep_scratch *scratch, moe_ep_error *err);

/* Mean + z * sigma over steps: loads (num_steps,L,E) -> out (L,E).  sigma is the population's.
 * Example: steps 1, 3 with z = 1 give 2 + 1 = 3. */
MOE_EP_API moe_ep_status moe_ep_window_loads(const double *loads, int32_t num_steps, int32_t L, int32_t E, double z,
                                             double *out, moe_ep_error *err);

enum { MOE_EP_CHECK_NO_DUPLICATES = 1 }; /* an expert twice on a device is an error */

/* What moe_ep_validate counted, over all layers. */
typedef struct moe_ep_check_result {
    int64_t slots_used, slots_empty;
    int64_t duplicates;       /* replicas sharing a device with an earlier one of the same expert */
    int64_t on_inactive;      /* replicas on inactive devices                                     */
    int64_t single_copies;    /* (layer, expert) pairs with exactly one active replica            */
} moe_ep_check_result;

/* Is this a placement?  Slots cover the devices, ids in range, both maps agree, every expert has a replica on an
 * active device.  flags: MOE_EP_CHECK_*.  out may be NULL.
 * Errors: ERR_PLACEMENT, ERR_EXPERT_ID, ERR_LOST_EXPERT (index = l*E + e).  O(L*P*replicas). */
MOE_EP_API moe_ep_status moe_ep_validate(const moe_ep_placement *p, int32_t flags, moe_ep_check_result *out,
                                         moe_ep_error *err);

/* A lower bound on the busiest device (load / speed) of any plan with equal shares, and the argument. */
typedef struct moe_ep_bound_result {
    double value;      /* the largest of those below                                                */
    moe_ep_bound bound;
    double mean;       /* total / sum of active speeds                                              */
    double replica;    /* heaviest replica left by the best replica counts, on the fastest device   */
    double slots;      /* counting argument: see moe_ep_lower_bound                                 */
} moe_ep_bound_result;

/* For one layer, loads (E).  Arguments: the mean; the least possible heaviest replica with P slots (greedy counts
 * are optimal for it); counting slots: no device can take more than j replicas above T/(j+1), and with P = E the
 * device of the heaviest expert must fill its other slots too.
 * O(E log E).  Example: loads 1000 800 600 500 300 200 100 50, 4 devices of 2 slots: 1050 (slots), the optimum. */
MOE_EP_API moe_ep_status moe_ep_lower_bound(const double *loads, int32_t E, const moe_ep_shape *shape,
                                            moe_ep_bound_result *out, moe_ep_scratch *scratch, moe_ep_error *err);

/* ---- how many copies ------------------------------------------------------------------------------------ */

typedef struct moe_ep_copies_desc {
    moe_ep_place_desc place;    /* shape: num_devices, nodes, speed, inactive; its slot numbers are ignored */
    moe_ep_place_policy policy; /* MOE_EP_PLACE_BEST, or _EPLB_GLOBAL (num_slots multiples of D); 0 = BEST  */
    int32_t max_extra;          /* most extra slots per layer to try, over all devices together             */
    int32_t step;               /* tried: 0, step, 2*step ..; 0 = 1 (EPLB: D)                               */
    double target;              /* max/mean wanted in the worst layer; 0 = only the curve                   */
    double expert_bytes;        /* weights of one replica in one layer, for the bytes column; 0 = unknown   */
} moe_ep_copies_desc;

typedef struct moe_ep_copies_point {
    int32_t extra;           /* slots beyond E per layer                                             */
    double worst, mean;      /* imbalance (max/mean) of the worst layer and averaged over the layers */
    double max_sum;          /* sum over layers of the busiest device                                */
    double bytes;            /* extra * layers * expert_bytes                                        */
} moe_ep_copies_point;

/* The gain curve over extra copies, and the fewest that reach the target: *fewest, -1 = none of those tried.  The
 * curve is not monotone: more slots can be worse.  points (max_extra/step + 1) and fewest may be NULL.
 * Example: loads 960 92 92 92 91 91 91 91 on 8 devices, EPLB: 8, 16, 32 extra give 1.0667, 1.1002, 1.0337. */
MOE_EP_API moe_ep_status moe_ep_min_copies(const moe_ep_copies_desc *desc, moe_ep_copies_point *points,
                                           int32_t *fewest, moe_ep_scratch *scratch, moe_ep_error *err);

/* Spreads extra_slots over the layers where they lower the bound on the busiest device most: layer_slots (L), each
 * E..desc's P, sum at most L*E + extra_slots (fewer when more would buy nothing).  Greedy on the lower bound, after
 * CRAFT (arXiv 2603.28768).  O((L*E + extra) log). */
MOE_EP_API moe_ep_status moe_ep_replica_budgets(const moe_ep_place_desc *desc, int64_t extra_slots,
                                                int32_t *layer_slots, moe_ep_scratch *scratch, moe_ep_error *err);

/* ---- changing a placement ------------------------------------------------------------------------------- */

typedef struct moe_ep_rebalance_desc {
    const moe_ep_placement *current; /* may have lost devices: set its device_inactive                 */
    const double *loads;             /* (L,E) the loads to plan for                                    */
    double target;         /* stop a layer at max/mean <= target; 0 = as balanced as it gets            */
    int64_t max_moves;     /* over all layers; the target is relaxed for all alike until they suffice; 0 = no limit */
    int32_t max_layer_moves;  /* per layer; 0 = no limit                                                */
    int32_t max_device_moves; /* arrivals per device, all layers together; 0 = no limit                 */
    int32_t max_link_moves;   /* per (source device, destination device) pair; 0 = no limit             */
} moe_ep_rebalance_desc;

/* From the current placement to a better one with few moves: swaps two replicas, or overwrites a spare replica with a
 * copy of a hot expert.  A move is an expert arriving on a device that did not hold it.  Experts whose last
 * active copy is gone are first put back (that costs a move each, whatever the limits).
 * out is laid out like current (it may be current itself).
 * Errors: ERR_PLACEMENT, ERR_SLOTS (too few active slots), ERR_NAN, ERR_NEGATIVE, ERR_RANGE. */
MOE_EP_API moe_ep_status moe_ep_rebalance(const moe_ep_rebalance_desc *desc, moe_ep_placement *out,
                                          moe_ep_plan_result *result, moe_ep_scratch *scratch, moe_ep_error *err);

/* One weight transfer.  All other holders of the expert are in `from`'s replica lists. */
typedef struct moe_ep_move {
    int32_t layer, expert;
    int32_t from_slot;   /* a holder before the change: same node when there is one, least used; -1 = no active
                            holder (load it from disk or host memory)                                       */
    int32_t to_slot;
    int32_t from_device, to_device; /* from_device -1 when from_slot is                                     */
    int32_t round;       /* in one round a device sends at most one and receives at most one                */
} moe_ep_move;

typedef struct moe_ep_moves_result {
    int64_t moves;       /* transfers between devices                                                       */
    int64_t slot_changes;/* experts that only change their slot on a device (a local copy)                  */
    int64_t cross_node;  /* of moves                                                                        */
    int64_t lost;        /* of moves: without an active holder                                              */
    int64_t unchanged;   /* slots that keep their expert                                                    */
    int64_t rounds;      /* in the schedule                                                                 */
    int64_t max_in, max_out; /* of one device                                                               */
    double bytes;        /* moves * expert_bytes                                                            */
} moe_ep_moves_result;

/* The transfers that turn `from` into `to` (same sizes).  moves (capacity) may be NULL to count only; ERR_SIZE with
 * value = number of moves when capacity is too small.  expert_bytes: of one replica in one layer, 0 = unknown.
 * O(L*P + moves*rounds).  Example: two experts swapped between two devices are 2 moves in 1 round. */
MOE_EP_API moe_ep_status moe_ep_plan_moves(const moe_ep_placement *from, const moe_ep_placement *to,
                                           double expert_bytes, moe_ep_move *moves, int64_t capacity,
                                           moe_ep_moves_result *out, moe_ep_scratch *scratch, moe_ep_error *err);

enum {
    MOE_EP_RELABEL_SLOTS_ONLY = 1, /* devices keep their experts; only slots are kept still               */
    MOE_EP_RELABEL_KEEP_NODES = 2  /* device contents are exchanged only inside a node                    */
};

/* Renames the devices of a full replan so that as many experts as possible stay where `current` has them (assignment
 * problem per layer over devices of equal size, speed and state), then keeps every staying expert in its slot.
 * Loads per device are only permuted.  flags: MOE_EP_RELABEL_*.  O(L*D^3). */
MOE_EP_API moe_ep_status moe_ep_relabel(const moe_ep_placement *current, moe_ep_placement *plan, int32_t flags,
                                        moe_ep_scratch *scratch, moe_ep_error *err);

/* ==================================================================================================
 * 6 SPLIT: the tokens of an expert over its replicas
 * ================================================================================================== */

typedef enum moe_ep_split_policy {
    MOE_EP_SPLIT_EVEN = 0,     /* equal parts, the remainder to the first replicas                      */
    MOE_EP_SPLIT_ROUND_ROBIN,  /* equal parts, the remainder from replica (seed + expert) on            */
    MOE_EP_SPLIT_HASH,         /* row i by the high bits of a hash of (seed, expert, i)                 */
    MOE_EP_SPLIT_RANDOM,       /* row i by the generator seeded with seed                               */
    MOE_EP_SPLIT_LOCAL_FIRST,  /* a replica on the row's own device, else its node, else even           */
    MOE_EP_SPLIT_LEAST_LOADED, /* one pass, heavy experts first, each levelled over its devices         */
    MOE_EP_SPLIT_EXACT         /* the least possible busiest device                                     */
} moe_ep_split_policy;

/* Name of a policy in words; never NULL. */
MOE_EP_API const char *moe_ep_split_policy_str(moe_ep_split_policy policy);

typedef struct moe_ep_split_desc {
    moe_ep_split_policy policy;
    uint64_t seed;                 /* round robin, hash, random                                          */
    const int64_t *source_counts;  /* (D,E) rows by the device they start on; local first needs it       */
    int32_t max_sweeps;            /* exact: that many passes over the experts only; 0 = to the optimum   */
} moe_ep_split_desc;

/* counts (E) rows of one layer -> slot_rows (P) rows per slot.  Replicas on inactive devices get none; the rows of an
 * expert are exactly shared out.  Loads are rows / speed.  Zeroed desc: even.
 * exact is the optimum of the linear program of LPLB (placement of copies given, split free): a few passes that level
 * each expert over its devices, then excess is sent along chains of experts until every device is at or below a
 * proven bound; rounded so that no device exceeds the rounded-up optimum (equal speeds). Errors: ERR_NULL, ERR_SIZE,
 * ERR_RANGE (policy, layer), ERR_NEGATIVE, ERR_OVERFLOW, ERR_LOST_EXPERT (rows but no active replica; index =
 * expert), ERR_CONFIG (source_counts missing or not summing to counts).  No memory when policy is even, round robin,
 * hash or random.  O(P), hash and random O(rows), exact O(D*P) at worst. Example: 10 rows over 3 replicas, even: 4
 * 3 3. */
MOE_EP_API moe_ep_status moe_ep_split(const moe_ep_split_desc *desc, const moe_ep_placement *p, int32_t layer,
                                      const int64_t *counts, int64_t *slot_rows, moe_ep_scratch *scratch,
                                      moe_ep_error *err);

/* The exact split in real numbers: loads (E) -> slot_loads (P); *max_load (may be NULL) = busiest device, load /
 * speed. max_sweeps 0 = the optimum to 1e-12; k = what k passes reach.  Example: expert 0 (load 6) on devices 0 and
 * 1, expert 1 (load 2) on device 1 only: 4 | 2 2, busiest 4. */
MOE_EP_API moe_ep_status moe_ep_split_shares(const moe_ep_placement *p, int32_t layer, const double *loads,
                                             int32_t max_sweeps, double *slot_loads, double *max_load,
                                             moe_ep_scratch *scratch, moe_ep_error *err);

/* Slot rows (P) summed per device: device_rows (D).  Errors: ERR_NULL, ERR_NEGATIVE. */
MOE_EP_API moe_ep_status moe_ep_device_rows(const moe_ep_placement *p, const int64_t *slot_rows, int64_t *device_rows,
                                            moe_ep_error *err);

/* Turns logical ids (n) into slot ids (n) so that slot s receives exactly slot_rows[s] (P) of them: rows of an expert
 * fill its replicas in replica order, in the order of ids; -1 stays -1.  Deterministic.
 * Errors: ERR_EXPERT_ID, ERR_CONFIG (an expert's quotas do not sum to its rows; index = expert, value = rows),
 * ERR_NEGATIVE.  O(n + P).
 * Example: ids 0 0 0 1 with two replicas of expert 0 in slots 0, 2 (quotas 1, 2) and expert 1 in slot 1: 0 2 2 1. */
MOE_EP_API moe_ep_status moe_ep_assign_slots(const moe_ep_placement *p, int32_t layer, const int32_t *ids, int64_t n,
                                             const int64_t *slot_rows, int32_t *slot_ids, moe_ep_scratch *scratch,
                                             moe_ep_error *err);

/* The same with the rows' own devices: row i starts on source_device[i] (n) and takes a replica there, else on its
 * node, else any, as far as the quotas reach.  O(n + P). */
MOE_EP_API moe_ep_status moe_ep_assign_slots_local(const moe_ep_placement *p, int32_t layer, const int32_t *ids,
                                                   int64_t n, const int32_t *source_device, const int64_t *slot_rows,
                                                   int32_t *slot_ids, moe_ep_scratch *scratch, moe_ep_error *err);

/* The slot that row `key` of an expert takes without any counts: replica by the high bits of a 64-bit mix of
 * (key, expert), so that 2 or 4 replicas do not fall in step with token parity.  Only active replicas.
 * A slot, or a negative status (ERR_LOST_EXPERT, ERR_EXPERT_ID).  O(replicas). */
MOE_EP_API int64_t moe_ep_pick_slot(const moe_ep_placement *p, int32_t layer, int32_t expert, uint64_t key,
                                    moe_ep_error *err);

/* ==================================================================================================
 * 7 DISPATCH: permutations, layouts, traffic, combine
 *
 *      ids (T,K), flat index t*K+k        rows: one per assignment, grouped by expert, in flat order
 *      t0: 1 3                            row_to_flat  2 | 0 3 4 7 | 5 | 1 6
 *      t1: 0 1        -- permute -->      offsets      0   1         5   6   8
 *      t2: 1 2                            flat_to_row  1 6  0 2  3 5  7 4
 *      t3: 3 1
 *
 * Every contract below is this one stable counting sort, seen differently.  -1 is "no expert" and gets no row
 * unless said otherwise.  Counts fit int64_t, positions int32_t: n <= 2^31 - 1.  n = 0 (a rank without
 * tokens) is allowed everywhere and gives empty groups; pointers to n elements may then be NULL.
 * Outputs must not overlap inputs.
 * ================================================================================================== */

/* Stable counting sort by expert: ids (n) -> offsets (E+1), row_to_flat (n), flat_to_row (n); either map may be NULL.
 * Rows of expert e are offsets[e] .. offsets[e+1]-1; row_to_flat behind the last row is -1, flat_to_row of -1 is -1.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW (n), ERR_EXPERT_ID.  O(n + E), no memory.
 * Example: the picture above. */
MOE_EP_API moe_ep_status moe_ep_permute(const int32_t *ids, int64_t n, int32_t E, int64_t *offsets,
                                        int32_t *row_to_flat, int32_t *flat_to_row, moe_ep_error *err);

/* Group starts when every group of counts (n) is rounded up to a multiple: -> offsets (n+1).  min_units > 0
 * gives also an
 * empty group that many multiples.  Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE, ERR_OVERFLOW.  O(n).
 * Example: {1,4,1,2}, multiple 2, min_units 0: {0,2,6,8,10}. */
MOE_EP_API moe_ep_status moe_ep_padded_offsets(const int64_t *counts, int32_t n, int64_t multiple, int64_t min_units,
                                               int64_t *offsets, moe_ep_error *err);

/* Rows to each device: ids (n), device_of_expert (E) or NULL = e % D -> counts (D).  With deduplication see
 * moe_ep_layout and moe_ep_traffic.  Errors: ERR_NULL, ERR_SIZE, ERR_EXPERT_ID, ERR_DEVICE_ID (index = expert).
 * O(n + E).  Example: ids {3,1,3}, E = 4, devices {0,0,1,1}: {1,2}. */
MOE_EP_API moe_ep_status moe_ep_send_counts(const int32_t *ids, int64_t n, int32_t E, const int32_t *device_of_expert,
                                            int32_t D, int64_t *counts, int64_t *skipped, moe_ep_error *err);

/* x (T,H) -> rows (num_rows,H): row r is token row_to_flat[r] / K; -1 (padding) gives zeros.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_RANGE (index = row).  O(num_rows*H).
 * Example: H = 1, x {10,20}, K = 2, row_to_flat {2,0,3}: {20,10,20}. */
MOE_EP_API moe_ep_status moe_ep_gather(const float *x, int64_t T, int32_t H, int32_t K, const int32_t *row_to_flat,
                                       int64_t num_rows, float *rows, moe_ep_error *err);

/* Back to token order: out (T,H), out[t] = sum over k, in choice order, of weights[t,k] * rows[flat_to_row[t,k]];
 * choices at -1 are left out, a token without any gives zeros.  weights NULL = all 1.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_RANGE (flat_to_row outside -1..num_rows-1; index).  O(T*K*H).
 * Example: H = 1, rows {1,2,4}, flat_to_row {1,2, 0,-1}, weights all 0.5: {3,0.5}. */
MOE_EP_API moe_ep_status moe_ep_combine(const float *rows, int64_t num_rows, const int32_t *flat_to_row,
                                        const float *weights, int64_t T, int32_t K, int32_t H, float *out,
                                        moe_ep_error *err);

/* ---- vLLM ---------------------------------------------------------------------------------------- */

/* moe_align_block_size: rows of every expert padded to whole blocks for a grouped GEMM. */
typedef struct moe_ep_align_desc {
    int32_t num_experts;       /* E                                                                   */
    int32_t block_size;        /* B >= 1                                                              */
    int32_t pad_sorted_ids;    /* not 0: the buffer length is rounded up to whole blocks              */
    int32_t old_buffer;        /* not 0: older vLLM: longer buffer when n < E, unused blocks 0 not -1 */
    const int32_t *expert_map; /* (E) local id or -1, NULL = all local                                */
    int32_t ignore_invalid;    /* with a map; 0: all experts get blocks and the blocks' ids are mapped
                                  (-1 = skip); not 0: other ranks' assignments are left out           */
    int32_t skip_foreign;      /* not 0: ids outside 0..E-1 are skipped, as the kernel does, no error */
} moe_ep_align_desc;

/* Buffer sizes for n assignments: *sorted_len, *num_blocks.  Upper bounds that do not depend on the ids.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW.  Example: n = 12, E = 5, B = 4: 27 and 7. */
MOE_EP_API moe_ep_status moe_ep_align_sizes(const moe_ep_align_desc *desc, int64_t n, int64_t *sorted_len,
                                            int64_t *num_blocks, moe_ep_error *err);

/* ids (n) -> sorted_ids (sorted_len) flat indices by expert, padding = n; block_experts (num_blocks) expert of each
 * block; *padded_rows = rows in use.  Stable order (the kernel itself promises none).
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_EXPERT_ID, ERR_RANGE (map entry outside -1..E-1), ERR_SCRATCH.
 * O(n + E*B).  E+1 int64 of scratch.
 * Example: the picture's ids, B = 2: 2 8 | 0 3 | 4 7 | 5 8 | 1 6, blocks 0 1 1 2 3, padded_rows 10. */
MOE_EP_API moe_ep_status moe_ep_align_block(const moe_ep_align_desc *desc, const int32_t *ids, int64_t n,
                                            int32_t *sorted_ids, int32_t *block_experts, int64_t *padded_rows,
                                            moe_ep_scratch *scratch, moe_ep_error *err);

/* batched_moe_align_block_size: counts (E) tokens per expert, already grouped in rows e*max_tokens + j ->
 * sorted_ids (E * max_tokens rounded up to B, padding E*max_tokens), block_experts (that / B, unused -1),
 * *padded_rows.
 * Errors: ERR_NULL, ERR_SIZE, ERR_NEGATIVE, ERR_RANGE (count > max_tokens), ERR_OVERFLOW.
 * Example: {2,3,0,6,8}, max 8, B = 4: blocks 0 1 3 3 4 4 -1 -1 -1 -1, padded_rows 24. */
MOE_EP_API moe_ep_status moe_ep_align_batched(const int64_t *counts, int32_t E, int32_t max_tokens,
                                              int32_t block_size,
                                              int32_t *sorted_ids, int32_t *block_experts, int64_t *padded_rows,
                                              moe_ep_error *err);

/* moe_permute on one rank: local experts are first_expert .. first_expert+num_local-1, or those with
 * expert_map (E) >= 0 when a map is given.  ids (n) -> offsets (num_local+1); permuted_idx (n) flat index of each
 * row, n for the rows of other ranks; inv_permuted_idx (n) row of each flat index.  Other ranks' rows stand
 * behind, by
 * expert, -1 last.  Errors: ERR_NULL, ERR_SIZE, ERR_RANGE, ERR_OVERFLOW, ERR_EXPERT_ID, ERR_SCRATCH.  O(n + E).
 * Example: the picture's ids, all local: offsets 0 1 5 6 8, permuted_idx 2 0 3 4 7 5 1 6. */
MOE_EP_API moe_ep_status moe_ep_vllm_permute(const int32_t *ids, int64_t n, int32_t E, int32_t first_expert,
                                             int32_t num_local, const int32_t *expert_map, int64_t *offsets,
                                             int32_t *permuted_idx, int32_t *inv_permuted_idx,
                                             moe_ep_scratch *scratch, moe_ep_error *err);

/* ---- SGLang -------------------------------------------------------------------------------------- */

/* deepep_run_moe_deep_preprocess: ids (n) -> sorted_ids (n) expert of each row (unused tail -1), src2dst (n) row of
 * each flat index, seg_indptr (E+1).  -1 entries are dropped: they sort first, rows shift down by their number, so
 * their src2dst is negative.  Without -1 this is run_moe_ep_preprocess.
 * Errors: as moe_ep_permute.  O(n + E).
 * Example: ids 3 -1 0 3 -1 -1 2 0: sorted 0 0 2 3 3, src2dst 3 -3 0 4 -2 -1 2 1. */
MOE_EP_API moe_ep_status moe_ep_sglang_preprocess(const int32_t *ids, int64_t n, int32_t E, int32_t *sorted_ids,
                                                  int32_t *src2dst, int64_t *seg_indptr, moe_ep_error *err);

/* run_moe_ep_preprocess with -1 present: they stay, as rows before those of expert 0; seg_indptr[e+1] counts them, so
 * that seg_indptr[0] = 0 lies before them.  Example: ids 1 -1 0: sorted -1 0 1, src2dst 2 0 1, seg_indptr 0 2 3. */
MOE_EP_API moe_ep_status moe_ep_sglang_preprocess_keep(const int32_t *ids, int64_t n, int32_t E, int32_t *sorted_ids,
                                                       int32_t *src2dst, int64_t *seg_indptr, moe_ep_error *err);

/* ---- Megatron-LM: boolean routing map (T,E), choices forgotten -------------------------------------- */

/* ids (T,K) -> map (T,E) of 0 and 1; -1 sets nothing.  Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_EXPERT_ID. */
MOE_EP_API moe_ep_status moe_ep_routing_map(const int32_t *ids, int64_t T, int32_t K, int32_t E, uint8_t *map,
                                            moe_ep_error *err);

/* permute: map (T,E) -> offsets (E+1), token_of_row (max_rows): expert-major, tokens ascending.  offsets[E] rows are
 * written, the rest of token_of_row is -1.  Errors: ERR_NULL, ERR_SIZE (max_rows too small; value = rows needed),
 * ERR_OVERFLOW.  O(T*E).  Example: the picture: tokens 1 | 0 1 2 3 | 2 | 0 3. */
MOE_EP_API moe_ep_status moe_ep_megatron_permute(const uint8_t *map, int64_t T, int32_t E, int64_t *offsets,
                                                 int32_t *token_of_row, int64_t max_rows, moe_ep_error *err);

/* permute with drop_and_pad: exactly C rows per expert -> token_of_row (E,C): its first C tokens, then, when it has
 * fewer, unrouted ones in token order.  Errors: also ERR_SIZE (C outside 1..T).  O(T*E).
 * Example: column {0,1,0,1}, C = 3: 1 3 0. */
MOE_EP_API moe_ep_status moe_ep_megatron_drop_and_pad(const uint8_t *map, int64_t T, int32_t E, int32_t C,
                                                      int32_t *token_of_row, moe_ep_error *err);

/* pad_routing_map: turns on the first unrouted tokens of each column until its count is a multiple (or the column is
 * full): map (T,E) -> padded (T,E), which may be map itself.  Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW.  O(T*E).
 * Example: column {0,1,0,0}, multiple 2: {1,1,0,0}. */
MOE_EP_API moe_ep_status moe_ep_megatron_pad_map(const uint8_t *map, int64_t T, int32_t E, int32_t multiple,
                                                 uint8_t *padded, moe_ep_error *err);

/* sort_chunks_by_idxs: rows lie in chunks of sizes (n), wanted in the order (n, a permutation) -> row_from
 * (max_rows):
 * source row of each new row, *num_rows.  [rank][expert] to [expert][rank] is order[e*R + r] = r*E + e.
 * Errors: ERR_NULL, ERR_SIZE (max_rows), ERR_NEGATIVE, ERR_RANGE (order), ERR_OVERFLOW.  O(n*n + rows); order
 * is checked
 * by its sum and range only.  Example: sizes 1 2 1, order 2 0 1: 3 0 1 2. */
MOE_EP_API moe_ep_status moe_ep_sort_chunks(const int64_t *sizes, const int32_t *order, int32_t n, int32_t *row_from,
                                            int64_t max_rows, int64_t *num_rows, moe_ep_error *err);

/* ---- torchtitan ---------------------------------------------------------------------------------- */

/* Local reorder: ids (T,K) -> offsets (E+1), row_to_flat (T*K), token_of_row (T*K) = row_to_flat / K; behind the
 * last row -1.  Errors as moe_ep_permute.  Example: the picture: tokens 1 0 1 2 3 2 0 3. */
MOE_EP_API moe_ep_status moe_ep_torchtitan_reorder(const int32_t *ids, int64_t T, int32_t K, int32_t E,
                                                   int64_t *offsets, int32_t *row_to_flat, int32_t *token_of_row,
                                                   moe_ep_error *err);

/* generate_permute_indices: counts (R,e) received rows, rank-major -> row_from (max_len) received row of each
 * expert-major row, -1 = padding; m_sizes (e) multiples of alignment, an empty expert one of them; m_offsets (e)
 * inclusive prefix.  Errors: ERR_NULL, ERR_SIZE (max_len; value = rows needed), ERR_NEGATIVE, ERR_OVERFLOW.
 * O(max_len + R*e).  Example: counts 4 2 1 3 | 1 2 3 4, align 8: 0 1 2 3 10 -1 -1 -1 | 4 5 11 12 ..., m_sizes
 * 8 8 8 8. */
MOE_EP_API moe_ep_status moe_ep_torchtitan_permute_indices(const int64_t *counts, int32_t experts_per_rank,
                                                           int32_t num_ranks, int64_t max_len, int32_t alignment,
                                                           int32_t *row_from, int64_t *m_sizes, int64_t *m_offsets,
                                                           moe_ep_error *err);

/* ---- TensorRT-LLM -------------------------------------------------------------------------------- */

/* Routing permutation: ids (T,K), groups padded to a multiple -> padded_offsets (E+1), expanded_to_permuted (T*K; -1
 * for no expert), permuted_to_expanded and permuted_to_token (max_rows; -1 = padding; either may be NULL).
 * max_rows = T*K + E*(padding-1) always suffices.  Errors: ERR_NULL, ERR_SIZE (max_rows; value = rows needed),
 * ERR_OVERFLOW, ERR_EXPERT_ID, ERR_SCRATCH.  O(T*K + E + max_rows); E+1 int64 of scratch.
 * Example: the picture, padding 2: offsets 0 2 6 8 10, expanded 2 8 0 3 4 6 9 5, tokens 1 -1 0 1 2 3 2 -1 0 3. */
MOE_EP_API moe_ep_status moe_ep_trtllm_permute(const int32_t *ids, int64_t T, int32_t K, int32_t E, int32_t padding,
                                               int64_t *padded_offsets, int32_t *expanded_to_permuted,
                                               int32_t *permuted_to_expanded, int32_t *permuted_to_token,
                                               int64_t max_rows, moe_ep_scratch *scratch, moe_ep_error *err);

/* ---- MegaBlocks ---------------------------------------------------------------------------------- */

/* sort + histogram + bins: ids (n) -> indices (n) flat index of each row, bin_ids (n) its expert, counts (E),
 * bins (E) inclusive prefix, padded_bins (E) the same padded to the block; outputs but bins may be NULL.
 * Behind the last row indices and bin_ids are -1.  Errors as moe_ep_permute.
 * Example: the picture, block 128: bins 1 5 6 8, padded_bins 128 256 384 512. */
MOE_EP_API moe_ep_status moe_ep_megablocks_bins(const int32_t *ids, int64_t n, int32_t E, int32_t block_size,
                                                int32_t *indices, int32_t *bin_ids, int64_t *counts, int64_t *bins,
                                                int64_t *padded_bins, moe_ep_error *err);

/* binned_gather: the first C rows of each bin: offsets (E+1) and row_to_flat of moe_ep_permute -> slot_flat (E,C),
 * -1 = empty.  What lies behind C is dropped.  Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_RANGE (offsets).
 * O(E*C).  Example: the picture, C = 2: 2 -1 | 0 3 | 5 -1 | 1 6. */
MOE_EP_API moe_ep_status moe_ep_binned_rows(const int64_t *offsets, const int32_t *row_to_flat, int32_t E, int32_t C,
                                            int32_t *slot_flat, moe_ep_error *err);

/* ---- DeepEP -------------------------------------------------------------------------------------- */

/* get_dispatch_layout; arrays are the caller's, NULL = not wanted. */
typedef struct moe_ep_layout {
    int64_t *tokens_per_rank;   /* (R) tokens with at least one expert there                           */
    int64_t *tokens_per_node;   /* (N) the same per node, N = ceil(R / ranks_per_node)                 */
    int64_t *tokens_per_expert; /* (E) assignments, not deduplicated                                   */
    uint8_t *is_token_in_rank;  /* (T,R) 0 or 1                                                        */
    int32_t *token_idx_in_rank; /* (T,R) running number among the rank's tokens, -1 = not there        */
} moe_ep_layout;

/* ids (T,K), E experts, device_of_expert (E) or NULL = contiguous, expert e on rank e / (E/R); ranks_per_node 0 = R
 * -> arrays of *layout.  A token counts once per rank and node, however many of its experts live there.
 * Errors: ERR_NULL, ERR_SIZE (R does not divide E and no map), ERR_OVERFLOW, ERR_EXPERT_ID, ERR_DEVICE_ID.
 * O(T*K), with (T,R) arrays O(T*(K+R)), no memory; R <= 65536 (ERR_SIZE).
 * Example: the picture, R = 2: per rank 4 3, per expert 1 4 1 2, 7 sends for 8 assignments. */
MOE_EP_API moe_ep_status moe_ep_deepep_layout(const int32_t *ids, int64_t T, int32_t K, int32_t E, int32_t R,
                                              int32_t ranks_per_node, const int32_t *device_of_expert,
                                              const moe_ep_layout *layout, moe_ep_error *err);

/* ---- traffic over any placement ------------------------------------------------------------------ */

typedef enum moe_ep_count_mode {
    MOE_EP_COUNT_PAIRS = 0, /* every assignment: low-latency kernels, NCCL expert-major               */
    MOE_EP_COUNT_RANKS,     /* a token once per destination rank                                      */
    MOE_EP_COUNT_NODES      /* between nodes once per node, then once per rank inside (DeepEP normal) */
} moe_ep_count_mode;

/* What crosses which link?  slot_ids (T,K) slot of each assignment in placement p (moe_ep_assign_slots), -1 = none;
 * source_rank (T) or NULL = blocks as in moe_ep_rank_of_token ->
 *     rank_rows (D,D) [source][destination] rows the destination receives: assignments for PAIRS, distinct
 *                     (token, rank) for RANKS and NODES; the diagonal stays at home
 *     node_rows (N,N) [source][destination] rows crossing nodes: rank_rows added up for PAIRS and RANKS,
 *                     distinct (token, node) for NODES
 * Either may be NULL.  Times row bytes = bytes.
 * Errors: ERR_NULL, ERR_SIZE, ERR_OVERFLOW, ERR_RANGE (mode; slot id, index = position), ERR_DEVICE_ID (source),
 * ERR_PLACEMENT.  O(T*K + D*D), no memory; D and N <= 65536 (ERR_SIZE).
 * Example: D = 2, one slot each, T = 2, K = 2, slots 0 1, 1 1: PAIRS {1,1, 0,2}, RANKS {1,1, 0,1}. */
MOE_EP_API moe_ep_status moe_ep_traffic(const moe_ep_placement *p, const int32_t *slot_ids, int64_t T, int32_t K,
                                        const int32_t *source_rank, moe_ep_count_mode mode, int64_t *rank_rows,
                                        int64_t *node_rows, moe_ep_error *err);

/* Distinct ranks and nodes of each token: slot_ids (T,K) -> ranks (T), nodes (T); either may be NULL.  Their
 * sums, not T*K,
 * are the dispatch traffic.  Errors as moe_ep_traffic.  Example: as above: ranks {2,1}. */
MOE_EP_API moe_ep_status moe_ep_fan_out(const moe_ep_placement *p, const int32_t *slot_ids, int64_t T, int32_t K,
                                        int32_t *ranks, int32_t *nodes, moe_ep_error *err);

/* ==================================================================================================
 * 8 COST: rows, seconds, bytes and memory
 *
 *      attention | dispatch | experts | combine        each stage waits for the slowest device
 *                  alpha +    t0 +      alpha +
 *                  bytes/Bps  weights,  bytes/Bps
 *                             FLOPs
 *
 * Two step times, both true somewhere.  Rows of the busiest device: right when the batch is large.
 * Seconds: a device that still waits for expert weights pays per *active expert*, not per row, so in
 * decode a perfect balance may gain nothing.  `regime` says which of the two worlds a device is in.
 * Constants are fits to published tables and live in named presets with their source; a zeroed
 * constant means the simplest physics: no latency, an infinitely fast part, full efficiency, no tiles.
 * ================================================================================================== */

/* ---- the labs' units: rows ------------------------------------------------------------------------ */

/* Rows of the busiest device when every expert lives on one device: max over devices of the summed
 * loads of its experts.  loads (E) >= 0.  device_of_expert (E) values 0..D-1, NULL = expert e on
 * device e % D.  Returns the rows, or a negative status: NULL, SIZE (E or D < 1), NEGATIVE, DEVICE_ID,
 * OVERFLOW.  O(E) for the default, O(E * ceil(D / 256)) with a map.  Source: expert load balance lab.
 * Example: loads {1000,800,600,500,300,200,100,50}, map {0,0,1,1,2,2,3,3}, D = 4 gives 1800. */
MOE_EP_API int64_t moe_ep_step_time(const int64_t *loads, int32_t E, const int32_t *device_of_expert,
                                    int32_t D, moe_ep_error *err);

/* Share of the devices' time that is work: sum / (D * max) = 1 / imbalance of the device loads.
 * device_loads (D) >= 0; no load at all gives 1.  Negative = status (NULL, SIZE, NEGATIVE, OVERFLOW;
 * the _d version also NAN).  O(D).  Example: {1800,1100,500,150} gives 3550 / 7200 = 0.493056. */
MOE_EP_API double moe_ep_efficiency(const int64_t *device_loads, int32_t D, moe_ep_error *err);
MOE_EP_API double moe_ep_efficiency_d(const double *device_loads, int32_t D, moe_ep_error *err);

/* ---- what is modelled: a model ---------------------------------------------------------------------- */

/* Number formats of the multiplications. */
typedef enum moe_ep_math {
    MOE_EP_MATH_BF16 = 0,
    MOE_EP_MATH_FP8 = 1,
    MOE_EP_MATH_FP4 = 2,
    MOE_EP_MATH_COUNT = 3
} moe_ep_math;

/* Shapes of a mixture-of-experts model.  Required: num_moe_layers, num_experts, top_k, hidden, inter. */
typedef struct moe_ep_model {
    const char *name;
    const char *source;
    int32_t num_layers;         /* all decoder layers, 0 = num_moe_layers                             */
    int32_t num_moe_layers;
    int32_t num_experts;        /* E, routed experts per MoE layer                                    */
    int32_t top_k;              /* K                                                                  */
    int32_t num_groups;         /* routing groups, 0 or 1 = none                                      */
    int32_t top_groups;         /* groups a token may use, 0 = all                                    */
    int32_t num_shared;         /* shared experts every token visits, in multiples of shared_inter    */
    int32_t hidden;             /* H                                                                  */
    int32_t inter;              /* I of one routed expert                                             */
    int32_t shared_inter;       /* I of one shared expert, 0 = inter                                  */
    int32_t dense_inter;        /* I of the dense layers in front                                     */
    int32_t ungated;            /* 0: gate, up and down (3 matrices); not 0: up and down (2)          */
    int32_t vocab;              /* 0 = leave embeddings out                                           */
    int32_t tied;               /* not 0: input and output embedding are one matrix                   */
    int64_t attention_params;   /* weights of one layer's attention                                   */
    int32_t kv_elems;           /* cache elements per token and layer                                 */
    moe_ep_math math;           /* format of the expert multiplications                               */
    double weight_bytes;        /* per routed expert weight, 0 = 2                                    */
    double other_weight_bytes;  /* per any other weight, 0 = 2                                        */
    double in_bytes;            /* per activation read by an expert product, 0 = 2                    */
    double out_bytes;           /* per activation written, 0 = 2                                      */
    double kv_bytes;            /* per cache element, 0 = 2                                           */
} moe_ep_model;

/* Published shapes; `source` names where they are from. */
MOE_EP_API moe_ep_model moe_ep_model_deepseek_v3(void);
MOE_EP_API moe_ep_model moe_ep_model_deepseek_v2(void);
MOE_EP_API moe_ep_model moe_ep_model_deepseek_v2_lite(void);
MOE_EP_API moe_ep_model moe_ep_model_kimi_k2(void);
MOE_EP_API moe_ep_model moe_ep_model_qwen3_235b_a22b(void);
MOE_EP_API moe_ep_model moe_ep_model_qwen3_30b_a3b(void);
MOE_EP_API moe_ep_model moe_ep_model_qwen1_5_moe_a2_7b(void);
MOE_EP_API moe_ep_model moe_ep_model_mixtral_8x7b(void);
MOE_EP_API moe_ep_model moe_ep_model_mixtral_8x22b(void);
MOE_EP_API moe_ep_model moe_ep_model_gpt_oss_120b(void);
MOE_EP_API moe_ep_model moe_ep_model_gpt_oss_20b(void);
MOE_EP_API moe_ep_model moe_ep_model_olmoe_1b_7b(void);
MOE_EP_API moe_ep_model moe_ep_model_phi_tiny_moe(void);

/* Name of model preset i (0, 1, ...), NULL behind the last.
 * Example: moe_ep_model_preset_name(0) is "deepseek-v3". */
MOE_EP_API const char *moe_ep_model_preset_name(int32_t i);

/* Finds a preset by name: the longest preset name that `name` begins with, whatever the case, '-', '_', '.' and
 * blanks, and whatever stands before the last '/'.  Errors: NULL, CONFIG (no such name).
 * Example: "Qwen/Qwen3-30B-A3B-Instruct-2507" gives E = 128, K = 8. */
MOE_EP_API moe_ep_status moe_ep_model_by_name(const char *name, moe_ep_model *out, moe_ep_error *err);

/* How many weights, in numbers of parameters. */
typedef struct moe_ep_params_result {
    int64_t expert;       /* one routed expert                                                    */
    int64_t layer;        /* all routed experts of one MoE layer                                  */
    int64_t routed;       /* all routed experts of the model                                      */
    int64_t shared;       /* all shared experts                                                   */
    int64_t router;
    int64_t dense;        /* dense layers                                                         */
    int64_t attention;
    int64_t embedding;    /* input and output                                                     */
    int64_t total;
    int64_t active;       /* that one token uses; the input embedding is a look-up, not counted   */
} moe_ep_params_result;

/* Counts a model's weights (norms and biases left out).  Errors: NULL, SIZE, NEGATIVE, TOP_K, OVERFLOW.  O(1).
 * Example: DeepSeek-V3 gives expert 44040192, routed 653908770816, total 671021793280. */
MOE_EP_API moe_ep_status moe_ep_params(const moe_ep_model *model, moe_ep_params_result *out, moe_ep_error *err);

/* ---- what is modelled: a machine ---------------------------------------------------------------------- */

/* Constants of a grouped matrix product: time = t0 + (mem^p + flop^p)^(1/p). */
typedef struct moe_ep_gemm {
    double t0_s;       /* launch and tail of one product                                          */
    double mem_eff;    /* share of the memory bandwidth reached, 0 = 1                            */
    double flop_eff;   /* share of the FLOP/s reached, 0 = 1                                      */
    double p;          /* how the two add up, 0 = the larger one counts (the textbook roofline)   */
    int32_t tile;      /* rows of an expert are padded to a multiple of this, 0 = 1               */
} moe_ep_gemm;

/* Constants of one all-to-all phase: time = alpha + (inter^p + intra^p)^(1/p). */
typedef struct moe_ep_link {
    double alpha_s;       /* latency                                                              */
    double intra_Bps;     /* bytes per second and device inside a node, 0 = infinitely fast       */
    double inter_Bps;     /* bytes per second and device between nodes, 0 = infinitely fast       */
    double p;             /* 0 = the larger one counts                                            */
    int32_t alpha_in_norm; /* not 0: alpha takes part in the p-norm (one-sided combine)           */
} moe_ep_link;

/* One kind of device and its links. */
typedef struct moe_ep_machine {
    const char *name;
    const char *source;
    int32_t devices_per_node;              /* devices in reach of the fast links, 0 = all         */
    double memory_bytes;                   /* of one device                                       */
    double memory_Bps;                     /* 0 = infinitely fast                                 */
    double flops[MOE_EP_MATH_COUNT];      /* dense peak FLOP/s by math, 0 = infinitely fast      */
    moe_ep_gemm gemm;
    moe_ep_link ll_dispatch, ll_combine;         /* low-latency kernels (decode)                  */
    moe_ep_link normal_dispatch, normal_combine; /* high-throughput kernels (prefill)             */
} moe_ep_machine;

/* Fitted machines; `source` names the tables. */
MOE_EP_API moe_ep_machine moe_ep_machine_h100(void);
MOE_EP_API moe_ep_machine moe_ep_machine_h800(void);
MOE_EP_API moe_ep_machine moe_ep_machine_h20(void);
MOE_EP_API moe_ep_machine moe_ep_machine_h200(void);
MOE_EP_API moe_ep_machine moe_ep_machine_b200(void);
MOE_EP_API moe_ep_machine moe_ep_machine_gb200(void);
MOE_EP_API moe_ep_machine moe_ep_machine_rtxpro6000(void);

/* Like the two functions for models.  Example: moe_ep_machine_preset_name(0) is "h100". */
MOE_EP_API const char *moe_ep_machine_preset_name(int32_t i);
MOE_EP_API moe_ep_status moe_ep_machine_by_name(const char *name, moe_ep_machine *out, moe_ep_error *err);

/* ---- expert compute ------------------------------------------------------------------------------- */

/* What holds a device up. */
typedef enum moe_ep_regime {
    MOE_EP_REGIME_IDLE = 0,    /* no rows                                                          */
    MOE_EP_REGIME_WEIGHTS = 1, /* reading memory, mostly weights: time follows active experts       */
    MOE_EP_REGIME_FLOPS = 2,   /* multiplying (padding included): time follows rows                */
    MOE_EP_REGIME_NETWORK = 3  /* dispatch + combine take longer than the experts                  */
} moe_ep_regime;

/* "idle", "weights", "flops", "network"; anything else "unknown". */
MOE_EP_API const char *moe_ep_regime_str(moe_ep_regime regime);

/* One device in one layer. */
typedef struct moe_ep_device_time {
    int64_t rows;         /* token rows its experts process                                       */
    int64_t padded_rows;  /* with every active slot rounded up to the tile                        */
    int32_t active;       /* slots with at least one row                                          */
    moe_ep_regime regime;
    double dispatch_s, compute_s, combine_s;
    double memory_s;      /* part of compute_s if memory were all (both products)                 */
    double flop_s;        /* part of compute_s if FLOPs were all                                  */
} moe_ep_device_time;

/* Seconds one device's routed experts take for slot_rows (n) rows per slot, n = 0 allowed.  Weight bytes
 * of active slots only, activations, FLOPs of padded rows, two products (up, down).  No rows at all takes
 * 0 s.  out may be NULL; its dispatch and combine are 0.  Negative = status: NULL, SIZE, NEGATIVE, RANGE
 * (a constant outside its range), NAN, OVERFLOW.  O(n).  Source: roofline with active experts and tiles, fitted
 * to InferSim's grouped GEMM tables: median error 4 % on H800, 9 % on H20.
 * Example: DeepSeek-V3 on H800, 8 slots of 128 rows: 171.2 us (measured 120.4 + 63.4). */
MOE_EP_API double moe_ep_expert_time(const moe_ep_model *model, const moe_ep_machine *machine,
                                     const int64_t *slot_rows, int32_t n, moe_ep_device_time *out, moe_ep_error *err);

/* Work of the expert products of one layer, without any machine. */
typedef struct moe_ep_gemm_work {
    double flops;            /* 2 * matrices * rows * H * I                                         */
    double padded_flops;     /* the same for rows rounded up to the tile                            */
    double weight_bytes;     /* of active experts                                                   */
    double activation_bytes; /* rows in and out of both products                                    */
    double intensity;        /* flops / weight_bytes, 0 without rows                                */
    int64_t rows, padded_rows;
    int32_t active;
} moe_ep_gemm_work;

/* FLOPs, bytes and intensity of grouped products with rows (n) per expert; tile 0 = 1.  Errors: NULL, SIZE,
 * NEGATIVE, OVERFLOW.  O(n).  Source: wide-EP notebook (6 * m * H * I FLOPs, 3 * H * I * b bytes).
 * Example: H = 7168, I = 2048, 1 byte, rows {128,0}: flops 1.12743e10, weight bytes 44040192, intensity 256. */
MOE_EP_API moe_ep_status moe_ep_group_gemm(const moe_ep_model *model, const int64_t *rows, int32_t n, int32_t tile,
                                           moe_ep_gemm_work *out, moe_ep_error *err);

/* ---- all-to-all ----------------------------------------------------------------------------------- */

/* What crosses the wire. */
typedef enum moe_ep_a2a_mode {
    MOE_EP_A2A_PAIR = 0,       /* a row per (token, expert): DeepEP low latency, NCCL EP, pplx         */
    MOE_EP_A2A_RANK_DEDUP = 1, /* a row per (token, device): TensorRT-LLM one-sided                    */
    MOE_EP_A2A_NODE_DEDUP = 2, /* a row per (token, node), forwarded per device: DeepEP normal         */
    MOE_EP_A2A_PADDED = 3,     /* capacity rows per expert and source, used or not                     */
    MOE_EP_A2A_ALLGATHER = 4   /* every token to every device: all-gather + reduce-scatter             */
} moe_ep_a2a_mode;

/* Format of a row on the wire. */
typedef enum moe_ep_wire {
    MOE_EP_WIRE_BF16 = 0,  /* 2 H                                                                  */
    MOE_EP_WIRE_FP32 = 1,  /* 4 H                                                                  */
    MOE_EP_WIRE_FP8 = 2,   /* H + a 4-byte scale per 128                                           */
    MOE_EP_WIRE_MXFP8 = 3, /* H + a 1-byte scale per 32                                            */
    MOE_EP_WIRE_NVFP4 = 4  /* H / 2 + a 1-byte scale per 16                                        */
} moe_ep_wire;

/* Bytes of one row: payload, scales, extra_bytes (a header, or 8 per choice when ids and weights travel
 * along).  Negative = status: SIZE (hidden < 1), RANGE (wire), NEGATIVE (extra).  Source: DeepEP, TensorRT-LLM.
 * Example: hidden 7168: bf16 14336, fp8 7392, mxfp8 7392, nvfp4 4032. */
MOE_EP_API int64_t moe_ep_row_bytes(moe_ep_wire wire, int32_t hidden, int32_t extra_bytes, moe_ep_error *err);

/* One token-to-expert exchange under uniform routing. */
typedef struct moe_ep_comm_desc {
    double tokens;             /* per device (source)                                              */
    int32_t num_experts, top_k, hidden;
    int32_t num_devices;       /* D                                                                */
    int32_t num_nodes;         /* N, 0 = 1; D must be a multiple of it                             */
    int32_t num_groups;        /* routing groups, 0 or 1 = none                                    */
    int32_t top_groups;        /* groups a token may use, 0 = all                                  */
    moe_ep_a2a_mode mode;
    moe_ep_wire dispatch_wire, combine_wire;
    int32_t dispatch_extra, combine_extra; /* bytes added to each row                              */
    double capacity;           /* PADDED: rows per expert and source device                        */
} moe_ep_comm_desc;

/* Per device; what leaves equals what arrives.  Rows that stay on the device are free. */
typedef struct moe_ep_comm_result {
    double intra_rows, inter_rows;
    double dispatch_intra_bytes, dispatch_inter_bytes;
    double combine_intra_bytes, combine_inter_bytes;
    double logical_rows;            /* rows as libraries print bandwidth: local share included     */
    double logical_dispatch_bytes, logical_combine_bytes;
    double tp_allreduce_bytes;      /* what a ring all-reduce of the layer's output would move instead,
                                       with the same tokens per device on every device: 2 (D-1)/D bf16 */
    int64_t dispatch_row_bytes, combine_row_bytes;
} moe_ep_comm_result;

/* Bytes one device sends per phase, expected under uniform or group-limited routing, in closed form.
 * Errors: NULL, SIZE (also D not a multiple of N), TOP_K, NEGATIVE, NAN, RANGE (mode, wire), CONFIG (groups).
 * O(K), with groups O(D * groups).  Source: DeepEP layouts; D (1 - C(E-E/D,K)/C(E,K)) distinct devices.
 * Example: 128 tokens, E = 256, K = 8, H = 7168, D = 16, N = 2, PAIR, fp8: 512 rows, 3784704 bytes between nodes. */
MOE_EP_API moe_ep_status moe_ep_comm_bytes(const moe_ep_comm_desc *desc, moe_ep_comm_result *out, moe_ep_error *err);

/* Latency and bandwidth: alpha_s + bytes / bytes_per_s; bytes_per_s 0 = infinitely fast.  Negative = status.
 * Example: 262144 bytes at 16e9 B/s and 20e-6 s give 36.384 us. */
MOE_EP_API double moe_ep_comm_time(double bytes, double alpha_s, double bytes_per_s, moe_ep_error *err);

/* Seconds of one phase for bytes per device inside and between nodes, by the constants of a link.
 * Negative = status (NULL, NEGATIVE, NAN, RANGE).
 * Example: alpha 38 us, 160e9 and 48e9 B/s: 3311616 and 3784704 bytes give 116.848 us. */
MOE_EP_API double moe_ep_link_time(const moe_ep_link *link, double intra_bytes, double inter_bytes, moe_ep_error *err);

/* Turns a bandwidth as libraries print it ("logical": local share counted, one copy per node, device or
 * expert depending on the mode) into seconds, and back.  combine 0 = dispatch.  Negative = status.
 * Example: DeepEP low latency, 128 tokens, K = 8, fp8 rows, 98e9 B/s: 77.2 us. */
MOE_EP_API double moe_ep_logical_time(const moe_ep_comm_desc *desc, int32_t combine, double bytes_per_s, moe_ep_error *err);
MOE_EP_API double moe_ep_logical_Bps(const moe_ep_comm_desc *desc, int32_t combine, double time_s, moe_ep_error *err);

/* One phase from counted rows. */
typedef struct moe_ep_a2a_desc {
    int32_t num_devices;
    int32_t num_nodes;              /* 0 = 1                                                        */
    const int32_t *node_of_device;  /* (D) ascending, NULL = device d on node d * N / D             */
    moe_ep_a2a_mode mode;           /* NODE_DEDUP needs node_rows; the others only say how `rows`
                                       was counted                                                  */
    const int64_t *rows;            /* (D,D) from source device to destination device               */
    const int64_t *node_rows;       /* (D,N) distinct tokens from source device to node, NODE_DEDUP */
    double row_bytes;
    moe_ep_link link;
    int32_t reverse;                /* not 0: the same rows travel back (combine)                   */
} moe_ep_a2a_desc;

/* Bytes and time of one device in a phase. */
typedef struct moe_ep_a2a_device {
    double out_intra, in_intra, out_inter, in_inter; /* bytes                                       */
    double time_s;
} moe_ep_a2a_device;

/* Seconds of one all-to-all phase: max over devices of max(in, out) on each kind of link.  NODE_DEDUP: a row
 * goes to the device of the same place in the destination node, which forwards it.  devices (D) or NULL.
 * Negative = status: NULL, SIZE, NEGATIVE, NAN, RANGE, DEVICE_ID (node out of range), CONFIG (nodes not ascending).
 * O(D^2).  One device takes 0 s.  Source: alpha-beta with measured constants; DeepEP's maintainers on max(in, out).
 * Example: D = 2, one node, rows {5,3,1,7}, 1000 bytes, alpha 0, 1e6 B/s: 3 ms. */
MOE_EP_API double moe_ep_a2a_time(const moe_ep_a2a_desc *desc, moe_ep_a2a_device *devices, moe_ep_error *err);

/* ---- expectations under uniform routing --------------------------------------------------------------- */

typedef struct moe_ep_expect_desc {
    int64_t tokens;           /* T, all devices together                                          */
    int32_t num_experts, top_k;
    int32_t num_devices;      /* 0 = 1; experts in contiguous blocks, as even as possible         */
    int32_t num_nodes;        /* 0 = 1                                                            */
    int32_t num_groups;       /* routing groups in contiguous blocks, 0 or 1 = none; must divide E */
    int32_t top_groups;       /* 0 = all; groups drawn uniformly, then K experts inside them      */
} moe_ep_expect_desc;

typedef struct moe_ep_expect_result {
    double distinct_devices;  /* devices one token reaches                                        */
    double distinct_nodes;    /* nodes one token reaches                                          */
    double device_tokens;     /* distinct tokens arriving at a device                             */
    double active_total;      /* experts with at least one row                                    */
    double active_device;     /* the same on one device (mean over devices)                       */
    double rows_mean;         /* rows on a device                                                 */
    double rows_sd;           /* its standard deviation (without groups; 0 with groups)           */
    double busiest_rows;      /* expected rows of the fullest device (without groups)             */
    double busiest_active;    /* expected active experts of the device with most of them          */
    double excess;            /* busiest_rows / rows_mean - 1: no balancer gets below it          */
} moe_ep_expect_result;

/* What chance alone gives when every expert is equally likely, without drawing a token.  Errors: NULL, SIZE,
 * TOP_K, NEGATIVE, CONFIG (groups).  O(E + D * groups).  All but the two busiest_ fields are exact; those treat the
 * devices as independent: within 2 % (3 % below 8 tokens) of simulation.
 * Example: T = 4096, K = 8, E = 256, D = 32: 6.7 devices per token, sd 31.06 rows, excess 0.063. */
MOE_EP_API moe_ep_status moe_ep_expect(const moe_ep_expect_desc *desc, moe_ep_expect_result *out, moe_ep_error *err);

/* ---- a layer, a step ---------------------------------------------------------------------------------- */

/* Stage times of one layer (of one micro-batch). */
typedef struct moe_ep_stages {
    double attention_s, dispatch_s, compute_s, combine_s, shared_s;
} moe_ep_stages;

/* How the stages of a layer are laid out in time. */
typedef enum moe_ep_overlap {
    MOE_EP_OVERLAP_NONE = 0,       /* attention + dispatch + experts + combine + shared              */
    MOE_EP_OVERLAP_SHARED = 1,     /* shared experts run during dispatch                             */
    MOE_EP_OVERLAP_TWO_EXPOSED = 2, /* two micro-batches; attention hides the other's MoE stages     */
    MOE_EP_OVERLAP_TWO_HIDDEN = 3  /* two micro-batches; communication runs under all compute        */
} moe_ep_overlap;

/* Seconds of one layer from its stages.  NONE and SHARED: `first` is the whole batch, second is ignored.
 * TWO_*: first and second are the two micro-batches, each measured at its own size (second NULL = like first);
 * per micro-batch max(attention, rest) or max(compute, communication), plus microbatch_s once.
 * Negative = status (NULL, NEGATIVE, NAN, RANGE).  Source: InferSim (exposed), ISCA 2025 bound (hidden).
 * Example: {0, 112, 72, 181, 24} us exposed twice: 778 us per layer. */
MOE_EP_API double moe_ep_compose(moe_ep_overlap overlap, const moe_ep_stages *first, const moe_ep_stages *second,
                                 double microbatch_s, moe_ep_error *err);

/* A caller's own tables instead of the formulas; a NULL member keeps the built-in one.  Times in
 * microseconds; a negative or NaN result stops with CONFIG.  Called on the calling thread, nothing is kept.
 * For a half batch (TWO_*) slot_rows is NULL, the counts beside it hold. */
typedef struct moe_ep_cost_hooks {
    size_t size; /* sizeof(moe_ep_cost_hooks) */
    void *user;
    double (*expert_us)(void *user, int32_t device, int32_t active, int64_t rows, int64_t padded_rows,
                        const int64_t *slot_rows, int32_t num_slots);
    double (*a2a_us)(void *user, int32_t phase /* 0 dispatch, 1 combine */, int32_t device, double out_intra_bytes,
                     double out_inter_bytes, double in_intra_bytes, double in_inter_bytes);
} moe_ep_cost_hooks;

/* One MoE layer on D devices.  Required: model, machine, and placement or num_devices. */
typedef struct moe_ep_layer_desc {
    const moe_ep_model *model;
    const moe_ep_machine *machine;
    const moe_ep_placement *placement; /* gives devices, nodes, slots; NULL = the next three              */
    int32_t num_devices;
    int32_t num_slots;         /* P, dealt evenly, the first P mod D devices one more; 0 = E              */
    int32_t num_nodes;         /* 0 = ceil(D / machine.devices_per_node)                                  */
    int64_t tokens;            /* source tokens per device, 0 = ceil(sum of rows / (K D))                 */
    int32_t high_throughput;   /* 0 = the machine's low-latency links, not 0 = its normal ones            */
    moe_ep_a2a_mode mode;
    moe_ep_wire dispatch_wire, combine_wire;
    int32_t dispatch_extra, combine_extra; /* bytes added to each row                                     */
    double capacity;           /* PADDED: rows per expert and source device                               */
    const int64_t *traffic;    /* (D,D) rows, NULL = expected under uniform sources, arrivals in
                                  proportion to the device's rows                                         */
    const int64_t *node_traffic; /* (D,N) distinct tokens, with traffic in mode NODE_DEDUP                */
    moe_ep_overlap overlap;
    double attention_s;        /* the caller's attention and the rest of the layer                        */
    double attention_half_s;   /* the same at half the batch; needed for TWO_* when attention_s > 0       */
    double microbatch_s;       /* cost of handling two micro-batches                                      */
    const moe_ep_cost_hooks *hooks; /* NULL = built-in formulas                                           */
} moe_ep_layer_desc;

typedef struct moe_ep_time_result {
    double total_s;           /* with the overlap asked for                                            */
    double serial_s;          /* all stages with barriers                                              */
    double no_barrier_s;      /* bound: max over devices of its own stages, <= serial_s                */
    double dispatch_s, compute_s, combine_s, shared_s; /* slowest device each, whole batch             */
    moe_ep_regime regime;       /* of the device with the longest compute_s, NETWORK when the wire wins  */
    int32_t slowest_device;   /* longest compute_s, lowest index on a tie                              */
    int32_t busiest_device;   /* most rows                                                             */
    int64_t max_rows;         /* the labs' step time of this layer                                     */
    int32_t max_active;
    double mean_compute_s;    /* mean over devices                                                     */
    double balanced_s;        /* compute_s if every device had its fair share of rows: what balance can
                                 still gain, at most                                                   */
} moe_ep_time_result;

/* Seconds of one MoE layer for slot_rows (P) rows per slot.  devices (D) or NULL.  Nothing is allocated.  TWO_*
 * re-evaluates every stage at half the rows, never halves a time.  Errors: NULL, SIZE, NEGATIVE, NAN, RANGE, OVERFLOW,
 * PLACEMENT, CONFIG (hooks, attention_half_s missing, nodes).  O(P + D), with traffic O(P + D^2).
 * Example: DeepSeek-V3 on 128 H800, 64 tokens each, 256 rows per expert, fp8 out and bf16 back: dispatch 111.9,
 * experts 70.3, combine 181.4 us. */
MOE_EP_API moe_ep_status moe_ep_layer_time(const moe_ep_layer_desc *desc, const int64_t *slot_rows,
                                           moe_ep_time_result *out, moe_ep_device_time *devices, moe_ep_error *err);

typedef struct moe_ep_step_desc {
    moe_ep_layer_desc layer;        /* as above; its traffic is of layer 0 when given              */
    int32_t num_layers;             /* layers in slot_rows and traffic, required                   */
    double other_s;                 /* per step: dense layers, sampling, launch                    */
    double tokens_per_pass;         /* accepted per sequence and step (speculation), 0 = 1         */
} moe_ep_step_desc;

typedef struct moe_ep_step_result {
    double step_s;                  /* all MoE layers of the model and other_s                     */
    double tpot_s;                  /* time per output token: step_s / tokens_per_pass             */
    double tokens_per_s_device;     /* throughput of one device                                    */
    double tokens_per_s_node;
    double serial_s, no_barrier_s;  /* the same sums without overlap, without barriers             */
    double dispatch_s, compute_s, combine_s, shared_s; /* summed over the layers                    */
    double balanced_s;              /* summed fair-share compute                                    */
    int32_t slowest_layer;
    double slowest_layer_s;
    int64_t max_rows;               /* summed over the layers: the labs' step time                  */
} moe_ep_step_result;

/* Seconds of a whole step from the rows of every layer: slot_rows (L,P), traffic (L,D,D) when given.  When fewer
 * layers are given than the model has, the sum is scaled by num_moe_layers / L.  layer_s (L) or NULL.  Errors as
 * moe_ep_layer_time.  O(L P).  Example: two layers with 100 and 300 us give 400 us, not 2 * 100. */
MOE_EP_API moe_ep_status moe_ep_step(const moe_ep_step_desc *desc, const int64_t *slot_rows, moe_ep_step_result *out,
                                     double *layer_s, moe_ep_error *err);

/* ---- memory and configuration ---------------------------------------------------------------------- */

typedef struct moe_ep_memory_desc {
    const moe_ep_model *model;
    int32_t num_devices;      /* D of expert parallelism                                              */
    int32_t num_slots;        /* P over all devices, 0 = E; the fullest device is priced              */
    int32_t tensor_parallel;  /* devices that share attention, dense and embedding weights, 0 = 1     */
    int64_t buffer_bytes;     /* communication buffers, e.g. moe_ep_ll_buffer_bytes                   */
    double reserve_bytes;     /* activations, runtime, fragmentation                                  */
    double memory_bytes;      /* of the device, 0 = not checked                                       */
} moe_ep_memory_desc;

typedef struct moe_ep_memory_result {
    int32_t slots;            /* of the fullest device                                                */
    double routed_bytes;      /* slots priced, all MoE layers                                         */
    double redundant_bytes;   /* part of it above E / D rounded up                                    */
    double shared_bytes, router_bytes; /* replicated on every device                                  */
    double other_bytes;       /* attention, dense layers, embeddings over tensor_parallel             */
    double buffer_bytes;
    double total_bytes;       /* everything above and the reserve                                     */
    double kv_room_bytes;     /* memory_bytes - total_bytes, negative when it does not fit            */
    int64_t kv_tokens;        /* cache tokens that fit in there, 0 when unknown                       */
    int32_t fits;
} moe_ep_memory_result;

/* Memory of the fullest device.  Errors: NULL, SIZE, SLOTS (P < E), NEGATIVE, NAN, OVERFLOW.  O(1).
 * Example: Qwen3-30B-A3B in bf16 on 1 and on 2 devices: routed 57.98 and 28.99 GB. */
MOE_EP_API moe_ep_status moe_ep_memory(const moe_ep_memory_desc *desc, moe_ep_memory_result *out, moe_ep_error *err);

/* Bytes of DeepEP's low-latency buffer: max_tokens per device, slots over all devices.  combine_scales 0: combine rows
 * are 2 H + 16 bytes (first releases); not 0: 2 H + 4 per 128 (later ones).  Negative = status: SIZE, OVERFLOW.
 * Source: DeepEP V1 layout.  Example: 128 tokens, hidden 7168, 288 slots, 0: 2116291072. */
MOE_EP_API int64_t moe_ep_ll_buffer_bytes(int32_t max_tokens, int32_t hidden, int32_t num_slots, int32_t combine_scales,
                                          moe_ep_error *err);

/* Experts per device: floor, ceil and how many devices hold the larger number.  Errors: NULL, SIZE.
 * Example: 256 experts on 72 devices: 3, 4, 40. */
MOE_EP_API moe_ep_status moe_ep_experts_per_device(int32_t E, int32_t D, int32_t *floor_out, int32_t *ceil_out,
                                                   int32_t *with_ceil, moe_ep_error *err);

typedef struct moe_ep_config {
    const moe_ep_model *model;     /* or NULL: the next two                                       */
    int32_t num_experts, top_k;
    int32_t ep;                    /* devices that share the experts                              */
    int32_t tp, dp;                /* 0 = 1                                                       */
    int32_t num_redundant;         /* slots beyond E                                              */
    int32_t num_nodes;             /* 0 = 1                                                       */
    int32_t equal_slots;           /* not 0: the server needs the same slots on every device      */
    int32_t must_divide;           /* not 0: the server needs ep to divide E                      */
    double memory_bytes;           /* of one device, 0 = not checked (needs model)                */
} moe_ep_config;

typedef enum moe_ep_severity { MOE_EP_NOTE = 0, MOE_EP_WARNING = 1, MOE_EP_WRONG = 2 } moe_ep_severity;

typedef struct moe_ep_reason {
    moe_ep_severity severity;
    const char *text;   /* literal; `have` and `need` are the numbers it speaks of */
    double have, need;
} moe_ep_reason;

/* Says what is wrong with a configuration, and what would be right; never fails on a bad configuration, only on
 * bad arguments (NULL, SIZE).  reasons (cap) filled in order, *count = how many there are (may exceed cap).
 * *redundant_needed = smallest number of redundant slots that makes equal slots per device; may be NULL.
 * Example: E = 256, ep = 3, equal_slots: "redundant slots needed ..." have 0, need 2. */
MOE_EP_API moe_ep_status moe_ep_check_config(const moe_ep_config *config, moe_ep_reason *reasons, int32_t cap,
                                             int32_t *count, int32_t *redundant_needed, moe_ep_error *err);

/* ---- is a rebalance worth its price ---------------------------------------------------------------- */

typedef struct moe_ep_payback_desc {
    double before_s, after_s;   /* step times, on loads the plan was not made from               */
    int64_t moved_slots;        /* experts copied                                                */
    double expert_bytes;
    double link_Bps;            /* what the copies share, 0 = infinitely fast                    */
    double pause_s;             /* serving stands still                                          */
} moe_ep_payback_desc;

typedef struct moe_ep_payback_result {
    double gain_s;              /* per step, may be negative                                     */
    double ratio;               /* before / after                                                */
    double cost_s;
    double steps;               /* until the cost is repaid; 0 when nothing is ever repaid       */
    int32_t pays;               /* not 0: gain_s > 0                                             */
} moe_ep_payback_result;

/* Break-even steps of a rebalance.  Errors: NULL, NEGATIVE, NAN, RANGE (after_s <= 0).  O(1).
 * Example: 12 ms to 10 ms, 100 slots of 44040192 bytes at 50e9 B/s: cost 88.1 ms, 44.04 steps. */
MOE_EP_API moe_ep_status moe_ep_payback(const moe_ep_payback_desc *desc, moe_ep_payback_result *out, moe_ep_error *err);

/* ==================================================================================================
 * 9 FORWARD: the expert layer on the CPU
 *
 *      x (T,H) -- gate --> logits (T,E) -- route --> ids, weights (T,K) -- permute --> rows by expert
 *        rows -- gate and up (I,H), activation, down (H,I) --> one output row per (token, expert)
 *        y[t] = sum over k = 0..K-1 of weight[t,k] * row(t,k), then the shared experts
 *
 * Weights are used where they lie, row-major as PyTorch stores them; nothing is repacked or copied.
 * An output row depends on its token and its expert only, never on the other tokens in the batch, and
 * the sum over k runs in choice order: the bits of y are the same for any number of threads, any
 * batching and any placement over ranks (section 10).  They may differ between instruction sets, and
 * where BLAS takes part.
 * ================================================================================================== */
#ifndef MOE_EP_NO_FORWARD

/* Element type of a weight array.  Activations are float in and out; sums are float. */
typedef enum moe_ep_dtype {
    MOE_EP_F32 = 0,
    MOE_EP_BF16 = 1, /* the upper half of a float, uint16_t */
    MOE_EP_F16 = 2   /* IEEE half, uint16_t                 */
} moe_ep_dtype;

/* What stands between the first and the second product.  g and u are the outputs of the gate and the
 * up projection; a plain activation has one projection only, stored as `gate`. */
typedef enum moe_ep_activation_kind {
    MOE_EP_ACT_SWIGLU = 0,      /* silu(g) * u, silu(g) = g * sigmoid(alpha * g); SiLU on the gate only  */
    MOE_EP_ACT_GEGLU_TANH = 1,  /* gelu(g) * u, tanh form: g/2 * (1 + tanh(sqrt(2/pi)(g + 0.044715 g^3))) */
    MOE_EP_ACT_GEGLU_ERF = 2,   /* gelu(g) * u, exact form: g/2 * (1 + erf(g / sqrt(2)))                 */
    MOE_EP_ACT_SILU = 3,        /* plain: silu(g)                                                        */
    MOE_EP_ACT_GELU_TANH = 4,   /* plain                                                                 */
    MOE_EP_ACT_GELU_ERF = 5,    /* plain                                                                 */
    MOE_EP_ACT_RELU2 = 6        /* plain: max(g, 0)^2                                                    */
} moe_ep_activation_kind;

typedef struct moe_ep_activation {
    moe_ep_activation_kind kind;
    float alpha;     /* factor inside the sigmoid of silu; 0 = 1                                        */
    float limit;     /* g is cut at +limit, u at -limit and +limit, before anything else; 0 = no limit  */
    float up_offset; /* u + up_offset takes the place of u (gated kinds); 0 = nothing added             */
} moe_ep_activation;

/* gpt-oss (OpenAI, 2025, model.py `swiglu`): g * sigmoid(1.702 g) * (u + 1) with limit 7. */
MOE_EP_API moe_ep_activation moe_ep_activation_gpt_oss(void);

/* The activation of one pair in double, for checks and tables; u is ignored by the plain kinds.
 * A kind that does not exist gives 0.
 * Example: SwiGLU of g = 1, u = 2 is 1.462117; gpt-oss of g = 1, u = 2 is 2.537387. */
MOE_EP_API double moe_ep_activate(const moe_ep_activation *activation, double g, double u);

/* How the gate and the up projection of one expert lie in memory. */
typedef enum moe_ep_gate_layout {
    MOE_EP_GATE_SEPARATE = 0,    /* two arrays: gate (E,I,H), up (E,I,H); or one (E,I,H) for plain kinds */
    MOE_EP_GATE_FIRST = 1,       /* gate holds (E,2I,H): I gate rows, then I up rows                     */
    MOE_EP_GATE_UP_FIRST = 2,    /* gate holds (E,2I,H): I up rows, then I gate rows                     */
    MOE_EP_GATE_INTERLEAVED = 3  /* gate holds (E,2I,H): rows 0,2,4.. gate, rows 1,3,5.. up              */
} moe_ep_gate_layout;

/* The weights of a set of experts over the caller's arrays, as a checkpoint holds them:
 * gate = w1 = gate_proj.weight (I,H), up = w3 = up_proj.weight (I,H), down = w2 = down_proj.weight (H,I).
 * Either one array with a stride from expert to expert, or a table with one pointer per expert. */
typedef struct moe_ep_weights {
    int32_t num_experts; /* experts held here, >= 1                                                     */
    int32_t hidden;      /* H >= 1                                                                      */
    int32_t inter;       /* I >= 1                                                                      */
    moe_ep_dtype dtype;  /* of gate, up and down                                                        */
    moe_ep_gate_layout layout;
    moe_ep_activation activation;
    const void *gate;    /* expert 0                                                                    */
    const void *up;      /* expert 0; NULL for fused layouts and plain activations                      */
    const void *down;    /* expert 0                                                                    */
    const void *const *gate_of; /* (num_experts) pointer of each expert, in place of `gate`; or NULL    */
    const void *const *up_of;
    const void *const *down_of;
    int64_t gate_row_stride, gate_expert_stride; /* in elements; 0 = packed                             */
    int64_t up_row_stride, up_expert_stride;     /* 0 = packed                                          */
    int64_t down_row_stride, down_expert_stride; /* 0 = packed                                          */
    const float *gate_bias; /* (E,I), for fused layouts (E,2I) in the order of the rows; NULL = none    */
    const float *up_bias;   /* (E,I); NULL = none, and always for fused layouts and plain activations   */
    const float *down_bias; /* (E,H); NULL = none                                                       */
} moe_ep_weights;

/* Instruction sets of the expert kernels. */
typedef enum moe_ep_isa {
    MOE_EP_ISA_AUTO = 0,     /* the best this build and this machine have */
    MOE_EP_ISA_PORTABLE = 1, /* plain C                                   */
    MOE_EP_ISA_AVX2 = 2,     /* AVX2 + FMA + F16C                         */
    MOE_EP_ISA_AVX512 = 3    /* AVX-512 F, BW, VL, DQ                     */
} moe_ep_isa;

/* The best instruction set here; never AUTO.  Asks the CPU each time, costs about a microsecond. */
MOE_EP_API moe_ep_isa moe_ep_isa_best(void);
/* "portable", "avx2", "avx512", "auto".  Never NULL. */
MOE_EP_API const char *moe_ep_isa_name(moe_ep_isa isa);

/* Threads are the caller's: parallel_for must call task(context, i) once for every i in 0..count-1, in
 * any order and from any threads, and return when all are done. Low i are the bigger items.  */
typedef void (*moe_ep_task)(void *context, int64_t index);
typedef void (*moe_ep_parallel_for)(void *user, int64_t count, moe_ep_task task, void *context);

/* One MoE layer.  Required: experts, and either (router and gate) or (ids, choice_weights and top_k). */
typedef struct moe_ep_forward_desc {
    const moe_ep_weights *experts; /* the E routed experts                                              */
    int32_t top_k;                 /* K; with a router 0 or the router's                                */
    int32_t num_null;              /* ids E .. E+num_null-1 are identity experts: they return the token;
                                      a router counts them among its experts                            */
    const moe_ep_router *router;   /* section 1; NULL = ids and choice_weights are given                */
    const float *gate;             /* (E+num_null, H) router weight; a gate bias is router.logit_bias   */
    const int32_t *ids;            /* (T,K), -1 = no expert; read when router is NULL                   */
    const float *choice_weights;   /* (T,K); read when router is NULL; NULL = all 1                     */
    int weight_on_input;           /* not 0: the weight multiplies the token going in, not the row
                                      coming out (Llama-4); identity experts return weight * token too.
                                      With a router, its own weight_on_input switches this on as well   */
    const moe_ep_weights *shared;  /* experts every token visits, each added with weight 1; NULL = none */
    const float *shared_gate;      /* (H) sigmoid(x . shared_gate) is the weight of the shared experts
                                      (Qwen2-MoE); NULL = 1                                             */
    moe_ep_parallel_for parallel_for; /* NULL = everything on this thread                               */
    void *parallel_user;
    moe_ep_isa isa_max;            /* not better than this; AUTO = the best                             */
    int32_t blas_min_rows;         /* with MOE_EP_USE_BLAS: an fp32 expert with at least this many rows
                                      goes to cblas_sgemm; 0 = never                                    */
} moe_ep_forward_desc;

/* What does this MoE layer answer?  x (T,H) and y (T,H) float, packed; y must not overlap x.
 * T = 0 is allowed and does nothing.
 * Errors: NULL, ERR_SIZE (sizes that do not fit each other, strides shorter than a row), ERR_RANGE
 * (enum values), ERR_TOP_K, ERR_EXPERT_ID (index is the flat position), ERR_NAN (x, weights of the
 * choices), ERR_CONFIG, ERR_OVERFLOW, ERR_SCRATCH.  Non-finite expert weights are not looked for.
 * Memory: activations only: about 4 T (H + K (H + I)) bytes for T up to 4096 and no more beyond (the
 * tokens are taken 4096 at a time); scratch.need has the number.  Stack: below 64 KiB per task.
 * Cost: 6 T K H I flops for gated experts; reads the weights of the active experts once per 4096 tokens.
 * Accuracy: with fp32 sums, within 1e-5 of max |y| of the exact result on data of ordinary scale.
 * Example: H = I = 1, one expert with gate 1, up 2, down 3, x = 1, weight 0.5: y = 0.5 * 3 * silu(1) * 2
 * = 2.193176. */
MOE_EP_API moe_ep_status moe_ep_forward(const moe_ep_forward_desc *desc, const float *x, int64_t num_tokens,
                                        float *y, moe_ep_scratch *scratch, moe_ep_error *err);

/* The middle of the layer alone: rows already grouped by expert, one output row for each input row.
 * Group g has rows row_start[g] .. row_start[g+1]-1 of rx and ry (both (rows,H) float, packed, not
 * overlapping) and uses expert expert_of_group[g] of desc->experts (NULL = expert g; two groups may use
 * the same one: replicas).  Of desc only experts, parallel_for, isa_max and blas_min_rows are read.
 * Errors as moe_ep_forward; row_start must begin at 0 and never fall.
 * Example: two groups of one row each, H = I = 1, gate 1, up 2, down 3 for both: each row 1 gives
 * 6 * silu(1) = 4.386351. */
MOE_EP_API moe_ep_status moe_ep_experts(const moe_ep_forward_desc *desc, const float *rx,
                                        const int64_t *row_start, int32_t num_groups,
                                        const int32_t *expert_of_group, float *ry, moe_ep_scratch *scratch,
                                        moe_ep_error *err);

/* Conversions, round to nearest even; NaN stays NaN. Example: 1.00390625f -> bf16 0x3f80 (a tie, to even). */
MOE_EP_API uint16_t moe_ep_bf16_from_f32(float value);
MOE_EP_API float moe_ep_f32_from_bf16(uint16_t value);
/* Example: 65520.0f -> f16 0x7c00 (infinity), 0x3c00 -> 1.0f. */
MOE_EP_API uint16_t moe_ep_f16_from_f32(float value);
MOE_EP_API float moe_ep_f32_from_f16(uint16_t value);

#endif /* MOE_EP_NO_FORWARD */

/* ==================================================================================================
 * 10 HOOKS: the same layer over many ranks; where CUDA, MPI, NCCL, DeepEP ... plug in
 *
 *      ids of slots (T,K) -- counts --> plan -- dispatch --> rx, rows grouped by local slot
 *        rx -- experts --> ry -- combine --> y (T,H), sums in choice order
 *
 * Every stage may be the caller's.  x, rx, ry and y of a stage whose hook is set are never read or
 * written by the library, so they may be device pointers; the arrays of a plan are always host memory.
 * A stage without a hook runs on the CPU in float; dispatch, combine and counts without a hook exist for
 * one rank only (moe_ep_forward_ranks brings them for D ranks inside one process).
 * ================================================================================================== */
#ifndef MOE_EP_NO_FORWARD

/* Who sends what to whom in one call on one rank.  Host memory of the library, read-only, valid until
 * the next call on the same rank and batch. */
typedef struct moe_ep_plan {
    int32_t rank, nranks;
    int32_t nslots;            /* expert slots on this rank                                             */
    int32_t top_k;             /* K                                                                     */
    int32_t batch;             /* 0 or 1: which micro-batch; index handles and buffers by it            */
    int64_t ntokens;           /* T of this rank                                                        */
    const int32_t *topk_ids;   /* (T,K) global slot; -1 = none; >= P = identity expert (stays here)      */
    const float *topk_weights; /* (T,K)                                                                 */
    int64_t nsend, nrecv;      /* rows out, rows in                                                     */
    const int64_t *send_rows;  /* (nranks)   rows for each rank                                         */
    const int64_t *send_start; /* (nranks+1) where they begin in the send order                         */
    const int64_t *send_token; /* (nsend) local token of each outgoing row: by rank, slot, token        */
    const float *send_weight;  /* (nsend) router weight of that row                                     */
    const int64_t *choice_row; /* (T,K) outgoing row of each choice, -1 = none: combine reads along it  */
    const int64_t *recv_rows;  /* (nranks)                                                              */
    const int64_t *recv_start; /* (nranks+1)                                                            */
    const int64_t *recv_row;   /* (nrecv) row of rx where arriving row i belongs                        */
    const int64_t *slot_rows;  /* (nslots)                                                              */
    const int64_t *slot_start; /* (nslots+1): rx is grouped by local slot, inside it by source rank, then
                                  in the order of the source: reproducible                              */
    void *call;                /* the caller's pointer of this call                                     */
    int32_t weight_on_input;   /* not 0: rows go out already multiplied by send_weight                  */
} moe_ep_plan;

/* Stages, as the wait hook sees them. */
enum { MOE_EP_STAGE_DISPATCH = 1, MOE_EP_STAGE_EXPERTS = 2, MOE_EP_STAGE_COMBINE = 3 };

/* The caller's stages.  Copied by moe_ep_rank_init; `user` must outlive the rank.
 * A hook returns 0 or a code; the first non-zero stops the layer, no further hook but free_fn is called,
 * and the code comes back unchanged (use positive ones: the library's are negative).  A collective that
 * failed on one rank leaves its peers waiting: the backend must tell them (MPI_Abort, NCCL async error).
 * Hooks are called on the thread that called the library, `stream` is passed through untouched, and may
 * enqueue and return.  Without wait the results must be usable in stream order when a hook returns; with
 * it dispatch, experts and combine need only have started, and wait(stage) comes before the first use. */
typedef struct moe_ep_hooks {
    size_t size; /* sizeof(moe_ep_hooks)                                                               */
    void *user;
    /* send and recv are (nranks, per_rank): rows for every slot of every rank out, rows for every local
       slot from every rank in (an all-to-all of per_rank int64 per pair). */
    int (*counts)(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream);
    int (*dispatch)(void *user, const moe_ep_plan *plan, const void *x, void *rx, size_t row_bytes,
                    void *stream);
    int (*experts)(void *user, const moe_ep_plan *plan, const void *rx, void *ry, void *stream);
    int (*combine)(void *user, const moe_ep_plan *plan, const void *ry, void *y, size_t row_bytes,
                   void *stream);
    int (*wait)(void *user, const moe_ep_plan *plan, int stage, void *stream);
    void *(*alloc_fn)(void *user, size_t bytes); /* memory of rx and ry; both or neither; NULL = malloc */
    void (*free_fn)(void *user, void *ptr);
} moe_ep_hooks;

/* What a rank is.  Required: num_ranks, slot_start, top_k, hidden; hooks or layer. */
typedef struct moe_ep_rank_desc {
    int32_t rank, num_ranks;
    const int32_t *slot_start;  /* (num_ranks+1) slots of rank r are slot_start[r] .. slot_start[r+1]-1, as
                                   in moe_ep_placement; copied                                          */
    int32_t top_k;              /* K                                                                    */
    int32_t hidden;             /* H                                                                    */
    int32_t elem_bytes;         /* bytes of one element of x, rx, ry, y; 0 = 4 (float)                  */
    const moe_ep_hooks *hooks;  /* NULL = none                                                          */
    const moe_ep_forward_desc *layer; /* CPU stages: experts (see slot_expert), num_null, shared,
                                   shared_gate, weight_on_input, threads; ids, router and gate are not
                                   read.  Kept by pointer.  Needed where a hook is missing              */
    const int32_t *slot_expert; /* (slots of this rank) index into layer->experts, -1 = empty slot;
                                   NULL = local slot number; copied                                     */
    moe_ep_allocator alloc;     /* host memory of plans and CPU stages; zeroed = malloc and free        */
} moe_ep_rank_desc;

/* One micro-batch. */
typedef struct moe_ep_batch {
    int64_t num_tokens;       /* T of this rank, 0 is fine                                              */
    const int32_t *slot_ids;  /* (T,K) global slots, see moe_ep_assign_slots; -1 = none; P ..
                                 P+num_null-1 = identity                                                */
    const float *weights;     /* (T,K); NULL = all 1                                                    */
    const void *x;            /* (T,H)                                                                  */
    void *y;                  /* (T,H), must not overlap x                                              */
    void *call;               /* handed to the hooks in plan->call                                      */
    int no_plan;              /* not 0: slot_ids are not read, no counts are exchanged, the arrays of the
                                 plan are NULL and its sizes 0; rx and ry have max_rows of
                                 moe_ep_rank_reserve.  For backends that keep routing on the device;
                                 needs dispatch, experts and combine hooks                              */
} moe_ep_batch;

/* The state of one rank: opaque, zero it or hand it to moe_ep_rank_init; free with moe_ep_rank_free. */
typedef struct moe_ep_rank {
    struct moe_epi_rank *state;
} moe_ep_rank;

/* Starts a rank.  Errors: NULL, ERR_SIZE, ERR_RANGE, ERR_TOP_K (K > P + identity experts), ERR_CONFIG
 * (hooks.size wrong, one of alloc and free, a stage without hook and without layer, missing counts,
 * dispatch or combine with more than one rank), ERR_MEMORY. */
MOE_EP_API moe_ep_status moe_ep_rank_init(moe_ep_rank *rank, const moe_ep_rank_desc *desc,
                                          moe_ep_error *err);

/* Gives everything back; NULL and a zeroed rank are fine. */
MOE_EP_API void moe_ep_rank_free(moe_ep_rank *rank);

/* Takes all memory now for batches of at most max_tokens tokens that bring at most max_rows rows to this
 * rank, so that later calls within these sizes allocate nothing.  Both micro-batches are served. */
MOE_EP_API moe_ep_status moe_ep_rank_reserve(moe_ep_rank *rank, int64_t max_tokens, int64_t max_rows,
                                             moe_ep_error *err);

/* The layer on this rank: counts, dispatch, wait D, experts, wait E, combine, wait C.
 * Returns 0, a negative moe_ep_status, or the code of the hook that failed, unchanged.
 * Errors: NULL, ERR_SIZE, ERR_EXPERT_ID (slot id, flat index), ERR_NAN (weight), ERR_NEGATIVE (a count
 * received), ERR_OVERFLOW, ERR_MEMORY.  Cost: O(T K + rows + P) on the host. */
MOE_EP_API moe_ep_status moe_ep_rank_forward(moe_ep_rank *rank, const moe_ep_batch *batch, void *stream,
                                             moe_ep_error *err);

/* Two micro-batches in flight: counts and dispatch of both, then wait D, experts, wait E, combine of the
 * first, the same of the second, then wait C of both.  batches (2).  Returns as moe_ep_rank_forward. */
MOE_EP_API moe_ep_status moe_ep_rank_forward2(moe_ep_rank *rank, const moe_ep_batch *batches, void *stream,
                                              moe_ep_error *err);

/* The stages one by one, for callers with an order of their own.  Call them in this order for each batch
 * (0 or 1); finish waits for the combine.  plan reads *b at once, which need not outlive the call; x and y
 * must live until finish.  moe_ep_rank_plan_of gives the plan from then on (NULL before). */
MOE_EP_API moe_ep_status moe_ep_rank_plan(moe_ep_rank *rank, int32_t batch, const moe_ep_batch *b,
                                          void *stream, moe_ep_error *err);
MOE_EP_API moe_ep_status moe_ep_rank_dispatch(moe_ep_rank *rank, int32_t batch, void *stream,
                                              moe_ep_error *err);
MOE_EP_API moe_ep_status moe_ep_rank_experts(moe_ep_rank *rank, int32_t batch, void *stream,
                                             moe_ep_error *err);
MOE_EP_API moe_ep_status moe_ep_rank_combine(moe_ep_rank *rank, int32_t batch, void *stream,
                                             moe_ep_error *err);
MOE_EP_API moe_ep_status moe_ep_rank_finish(moe_ep_rank *rank, int32_t batch, void *stream,
                                            moe_ep_error *err);
MOE_EP_API const moe_ep_plan *moe_ep_rank_plan_of(const moe_ep_rank *rank, int32_t batch);

/* ---- the host side of an adapter: what a dispatch and a combine hook over send and receive buffers need */

/* rows (nsend, row_bytes) in send order <- x (T, row_bytes); float rows times send_weight when
 * plan->weight_on_input.  Errors: NULL, ERR_SIZE (row_bytes 0, or not whole floats there). */
MOE_EP_API moe_ep_status moe_ep_plan_pack(const moe_ep_plan *plan, const void *x, void *rows,
                                          size_t row_bytes, moe_ep_error *err);
/* rx grouped by slot <- rows (nrecv, row_bytes) in the order of arrival: by source rank, slot, token. */
MOE_EP_API moe_ep_status moe_ep_plan_place(const moe_ep_plan *plan, const void *rows, void *rx,
                                           size_t row_bytes, moe_ep_error *err);
/* rows (nrecv, row_bytes) in the order of arrival <- ry grouped by slot: ready to go back. */
MOE_EP_API moe_ep_status moe_ep_plan_unplace(const moe_ep_plan *plan, const void *ry, void *rows,
                                             size_t row_bytes, moe_ep_error *err);
/* y (T,H) <- rows (nsend,H) float that came back, in send order: weighted sum in choice order, identity
 * experts from x (T,H) with ids >= first_null, then the shared experts of layer (NULL = none).
 * Example: one token, two choices with weights 0.5 and 0.25 and rows 2 and 4: y = 2. */
MOE_EP_API moe_ep_status moe_ep_plan_sum(const moe_ep_plan *plan, const moe_ep_forward_desc *layer,
                                         int32_t first_null, int32_t hidden, const float *x,
                                         const float *rows, float *y, moe_ep_scratch *scratch,
                                         moe_ep_error *err);

/* What the in-process ranks did: traffic to compare with a prediction. */
typedef struct moe_ep_ranks_result {
    int64_t rows;       /* rows sent to experts, over all ranks                                        */
    int64_t rows_moved; /* of these, rows whose expert slot is on another rank than the token           */
    int64_t skipped;    /* choices with id -1                                                          */
    int64_t identity;   /* choices of identity experts                                                 */
    int64_t rows_max;   /* rows of the busiest rank                                                    */
} moe_ep_ranks_result;

/* The layer on the D ranks of a placement, all inside this process and on this thread, through the same
 * plans and hooks as a real machine.  Token t lives on the rank given by tokens_per_rank (D), consecutive
 * tokens together (NULL = as even as possible, the first T mod D ranks one more).
 * slot_ids (T,K) says which copy serves each choice, as moe_ep_assign_slots gives it (identity experts:
 * P .. P+num_null-1); NULL = the replicas of an expert take turns in token order.  With slot_ids the
 * routing must be in desc (ids, no router) and name the same experts.
 * y equals moe_ep_forward bit for bit under every placement (BLAS off).
 * Errors as moe_ep_forward and moe_ep_rank_forward, ERR_PLACEMENT (a slot of another expert than the id
 * says), ERR_LOST_EXPERT (an expert with tokens and no slot).  result may be NULL.  scratch may be NULL or
 * growing; a fixed one is ERR_CONFIG (the ranks keep memory of their own, from scratch.alloc).
 * Example: 4 tokens, ids 3 7 | 1 12 | 3 9 | 7 15 of 16 experts on 4 contiguous ranks, one token on each:
 * 8 rows, 5 moved, the busiest rank has 3. */
MOE_EP_API moe_ep_status moe_ep_forward_ranks(const moe_ep_forward_desc *desc, const moe_ep_placement *p,
                                              int32_t layer, const int64_t *tokens_per_rank,
                                              const int32_t *slot_ids, const float *x, int64_t num_tokens,
                                              float *y, moe_ep_ranks_result *result,
                                              moe_ep_scratch *scratch, moe_ep_error *err);

#endif /* MOE_EP_NO_FORWARD */

/* ==================================================================================================
 * 11 DIAGNOSE: which rank is the bottleneck, what does it cost, would a new plan pay?
 *
 * A plan is made from one window of steps (A) and judged on another one it has not seen (B), step by
 * step: the maximum over devices is taken first, then summed over layers and steps, because a step
 * waits for its own busiest device.  Summing the steps first hides it: loads [100,0] then [0,100]
 * are 0.5 balanced in each step and look perfect in the sum.
 * ================================================================================================== */

typedef enum moe_ep_verdict {
    MOE_EP_INSUFFICIENT_EVIDENCE = 0, /* nothing was judged: no second window, or it is empty     */
    MOE_EP_NOT_NOW = 1,
    MOE_EP_RECOMMEND = 2
} moe_ep_verdict;

/* Why the verdict is what it is; the first that applies, in this order. */
typedef enum moe_ep_verdict_reason {
    MOE_EP_REASON_NO_JUDGE_WINDOW = 0, /* no window that the plan was not computed from            */
    MOE_EP_REASON_NO_LOAD,             /* a window holds no tokens at all                          */
    MOE_EP_REASON_FEW_STEPS,           /* fewer judged steps than asked for                        */
    MOE_EP_REASON_BALANCED,            /* already as balanced as asked for                         */
    MOE_EP_REASON_CHANCE,              /* no worse than uniform routing of so few tokens would be  */
    MOE_EP_REASON_SMALL_GAIN,          /* the plan saves less than asked for                       */
    MOE_EP_REASON_UNRELIABLE,          /* it helps in too few of the judged steps                  */
    MOE_EP_REASON_BREAK_EVEN,          /* moving the weights costs more than is saved in time      */
    MOE_EP_REASON_PAYS
} moe_ep_verdict_reason;

/* What to judge, with which plan, at which cost.  Loads are rows (token, expert) per step. */
typedef struct moe_ep_diagnose_desc {
    int32_t num_layers;              /* L >= 1                                                     */
    int32_t num_experts;             /* E >= 1                                                     */
    int32_t top_k;                   /* K, for the chance baseline and the token counts; 0 = 1     */
    int32_t num_groups;              /* groups of the router, for the hierarchical EPLB policy     */
    moe_ep_shape shape;              /* devices and slots of the plan                              */
    moe_ep_place_policy policy;      /* planner; 0 = MOE_EP_PLACE_BEST                             */
    const moe_ep_placement *current; /* what runs today; NULL = contiguous, one copy per expert    */
    const double *plan_loads;        /* (SA,L,E) window A, required                                */
    int32_t plan_steps;              /* SA >= 1                                                    */
    const double *judge_loads;       /* (SB,L,E) window B; NULL = only describe, no verdict        */
    int32_t judge_steps;             /* SB                                                         */

    /* How a layer is priced (section 8): model, machine, wire, overlap; its placement, traffic and
     * tokens are filled in here.  NULL = no seconds, gains are in rows of the busiest device. */
    const moe_ep_layer_desc *cost;
    double other_s;                  /* rest of a step that no plan changes, >= 0                  */

    /* Cost of switching.  All zero = moving is free. */
    double expert_bytes;             /* one expert's weights in one layer; 0 = from cost->model     */
    double move_Bps;                 /* link speed for moving weights, per device; 0 = free         */
    double pause_s;                  /* serving stops for so long per rebalance                     */
    double horizon_steps;            /* steps the new plan will serve; 0 = no limit                 */

    /* What counts as worth it; see moe_ep_diagnose_thresholds.  0 = any improvement counts. */
    double target_imbalance;         /* max/mean that is good enough, e.g. 1.05                     */
    double min_gain;                 /* least share of the step saved, e.g. 0.05                    */
    double min_improved;             /* least share of judged steps that get faster, e.g. 0.8       */
    int32_t min_steps;               /* least number of judged steps                                */
} moe_ep_diagnose_desc;

/* All figures are of window B when there is one, else of window A.  *_rows are sums over layers of the
 * busiest device's rows (divided by its speed), averaged over the steps; *_s a step in seconds, 0 without cost. */
typedef struct moe_ep_diagnosis {
    moe_ep_verdict verdict;
    moe_ep_verdict_reason reason;
    char text[320];                /* the reason in one sentence with its numbers                  */
    moe_ep_place_policy policy;    /* planner that ran                                              */
    int32_t steps;                 /* steps judged                                                  */
    int32_t layers_loaded;         /* layers with any load; the others are left out everywhere      */

    int32_t hot_device, hot_layer; /* where the most rows above the mean pile up: the bottleneck    */
    double hot_share;              /* share of steps in which that device is that layer's maximum   */
    double hot_imbalance;          /* mean over steps of that layer's max/mean                      */

    double mean_rows;              /* perfect balance: sum over layers of the mean over devices     */
    double before_rows, after_rows;
    double bound_rows;             /* proven: no plan in these slots gets below it, even one made for
                                      each judged step                                              */
    double imbalance_before, imbalance_after, imbalance_bound; /* the above over mean_rows, >= 1    */
    double chance_imbalance;       /* what uniform routing of as many tokens would give, p95        */

    double before_s, after_s;      /* a step, other_s included                                      */
    double balanced_s;             /* the same if every device had its fair share of rows           */
    double gain;                   /* 1 - after/before, in seconds if known, else in rows           */
    double speedup;                /* before/after                                                  */
    double improved;               /* share of steps in which the plan is faster                    */

    int64_t moves;                 /* slots that receive an expert their device does not hold       */
    double move_bytes;
    double move_s;                 /* busiest device's share of move_bytes / move_Bps + pause_s     */
    double break_even_steps;       /* move_s / seconds saved per step; 0 = free; -1 = never, or unknown
                                      without cost                                                  */
} moe_ep_diagnosis;

/* Sets the thresholds of a desc to published practice: at least 2 judged steps, 80 % of them improved,
 * 5 % less work on the busiest device (vllm-ascend RFC 16795), max/mean 1.05 good enough.
 * Example: min_gain becomes 0.05. */
MOE_EP_API void moe_ep_diagnose_thresholds(moe_ep_diagnose_desc *desc);

/* Is a new placement worth it?  Plans on window A (sum of its steps), judges current and new placement
 * on every step of window B (equal split over replicas), and weighs the gain against moving.
 * plan receives the new placement when it is not NULL: a placement initialised for L, E and the shape.
 * Zero-load layers and steps are left out; they never give NaN.
 * Errors: ERR_NULL, ERR_SIZE, ERR_NAN, ERR_NEGATIVE, ERR_RANGE, ERR_SLOTS, ERR_PLACEMENT, ERR_OVERFLOW, and those
 * of the planner and of moe_ep_layer_time.  O(SB L (P + E log E)) beside the planner.  With a fixed scratch that is
 * too small scratch->need may grow once more on the next try, when the planner says what it needs.
 * Source: vllm-ascend RFC 16795 for verdicts and thresholds; the break-even rule is step_gain * steps >= cost.
 * Example: E=8, D=4, 60 % of 1600 rows on expert 0 in both windows, 12 slots: before 1052 rows for a mean of
 * 400 (imbalance 2.63), verdict MOE_EP_RECOMMEND. */
MOE_EP_API moe_ep_status moe_ep_diagnose(const moe_ep_diagnose_desc *desc, moe_ep_placement *plan,
                                         moe_ep_diagnosis *out, moe_ep_scratch *scratch, moe_ep_error *err);

/* Name of a verdict: "recommend", "not now", "insufficient evidence".  Never NULL. */
MOE_EP_API const char *moe_ep_verdict_str(moe_ep_verdict verdict);

/* ==================================================================================================
 * 12 SIMULATE: seeded workloads
 *
 *      popularity (E) --draw K distinct per token--> ids (T,K) --> loads, placement, time
 *
 * The same seed gives the same bytes on every compiler and platform, at any optimisation and with
 * -ffast-math: powers, logarithms and normal deviates are computed in integers, tokens are drawn from
 * integer cumulative weights.
 * ================================================================================================== */

typedef enum moe_ep_workload_kind {
    MOE_EP_LOAD_UNIFORM = 0,     /* every expert alike                                                */
    MOE_EP_LOAD_ZIPF = 1,        /* weight rank^-alpha                                                */
    MOE_EP_LOAD_POWER_LAW = 2,   /* weights drawn from a density x^-alpha on [1, x_max]               */
    MOE_EP_LOAD_LOGNORMAL = 3,   /* weights exp(sigma * normal)                                       */
    MOE_EP_LOAD_HOT_EXPERT = 4,  /* expert `hot` holds `share` of the weight                          */
    MOE_EP_LOAD_HOT_DEVICE = 5,  /* the experts of device `hot` together hold `share`                 */
    MOE_EP_LOAD_ROTATING = 6,    /* the hot device moves on by one every `period` steps               */
    MOE_EP_LOAD_BURST = 7,       /* uniform, but HOT_EXPERT in the last step of every `period`        */
    MOE_EP_LOAD_RECORDED = 8,    /* weights = popularity (E)                                          */
    MOE_EP_LOAD_TARGET = 9,      /* device loads with mean / max = target, exact counts               */
    MOE_EP_LOAD_BALANCED = 10,   /* dealt out: experts and devices as even as can be                  */
    MOE_EP_LOAD_ROUND_ROBIN = 11, /* token t takes experts (t .. t+K-1) mod E                         */
    MOE_EP_LOAD_STUCK_ROUND_ROBIN = 12 /* a published simulator's fault: every token takes 0..K-1     */
} moe_ep_workload_kind;

/* "uniform", "zipf", ..., "unknown". */
MOE_EP_API const char *moe_ep_workload_str(moe_ep_workload_kind kind);
/* Finds a kind by the name above; "rand" is uniform, "rr" round-robin.  Errors: NULL, CONFIG. */
MOE_EP_API moe_ep_status moe_ep_workload_by_name(const char *name, moe_ep_workload_kind *kind, moe_ep_error *err);

/* A source of routed tokens.  Required: num_experts, top_k, and the parameters of the kind. */
typedef struct moe_ep_workload {
    moe_ep_workload_kind kind;
    uint64_t seed;
    int32_t num_experts, top_k;
    int32_t num_devices;      /* for kinds that speak of devices: contiguous blocks; 0 = 1              */
    int32_t hot;              /* hot expert or device                                                   */
    double share;             /* of the weight, 0..1                                                    */
    double alpha;             /* ZIPF >= 0, POWER_LAW >= 0                                              */
    double x_max;             /* POWER_LAW > 1, 0 = 0.8 * tokens as aiconfigurator does                 */
    double sigma;             /* LOGNORMAL >= 0                                                         */
    double drift;             /* each step > 0 multiplies every weight by exp(drift * normal) of its own;
                                 step 0 is the undisturbed popularity (the calibration)                 */
    double target;            /* TARGET: mean / max of the device loads, 0 < target <= 1                */
    int32_t period;           /* ROTATING, BURST: steps, 0 = 1                                          */
    int32_t in_order;         /* ZIPF, POWER_LAW: not 0 = expert 0 hottest; 0 = shuffled by the seed    */
    int32_t with_replacement; /* not 0: a token may draw an expert twice                                */
    int32_t copy_layers;      /* not 0: every layer repeats layer 0                                     */
    const double *popularity; /* (E) >= 0, RECORDED; loads of any scale                                 */
} moe_ep_workload;

/* The integer weights tokens are drawn by, in one layer at one step: weights (E), each < 2^40, the largest about
 * 2^39; 0 = never chosen.  tokens is used by POWER_LAW with x_max 0 only.  TARGET, BALANCED and the round robins have
 * no popularity: CONFIG.  Errors: NULL, SIZE, TOP_K, RANGE, NAN, NEGATIVE, CONFIG, INFEASIBLE (fewer experts with weight
 * than K).  O(E).  Example: UNIFORM gives 549755813888 for each expert. */
MOE_EP_API moe_ep_status moe_ep_popularity(const moe_ep_workload *w, int32_t layer, int64_t step, int64_t tokens,
                                           uint64_t *weights, moe_ep_error *err);

/* Draws ids (T,K) of one layer at one step.  K distinct experts by sequential draws in proportion to the weights of
 * those not yet taken (the Plackett-Luce distribution, the same as taking the K largest of log weight + Gumbel noise);
 * hence a hot expert's share of all rows can be at most 1 / K.  with_replacement draws each independently.
 * T = 0 is allowed.  scratch O(E).  Errors as moe_ep_popularity and OVERFLOW, SCRATCH, MEMORY; TARGET: INFEASIBLE when no
 * counts reach it.  About 15 ns per id.
 * Example: seed 1, uniform, E = 8, K = 2, layer 0, step 0: the first token takes experts 3 and 4. */
MOE_EP_API moe_ep_status moe_ep_simulate(const moe_ep_workload *w, int32_t layer, int64_t step, int64_t num_tokens,
                                         int32_t *ids, moe_ep_scratch *scratch, moe_ep_error *err);

/* Lays out exact counts (E) as ids (T,K) without repeats in a token: sum of counts = T K and each count <= T (else
 * INFEASIBLE).  seed shuffles tokens.  Errors: NULL, SIZE, TOP_K, NEGATIVE, OVERFLOW, INFEASIBLE.  O(T K).
 * Example: counts {2,1,1}, T = 2, K = 2: both tokens hold expert 0. */
MOE_EP_API moe_ep_status moe_ep_ids_from_counts(const int64_t *counts, int32_t E, int64_t num_tokens, int32_t K,
                                                uint64_t seed, int32_t *ids, moe_ep_error *err);

typedef enum moe_ep_source_kind {
    MOE_EP_SOURCE_EVEN = 0,   /* the first T mod D devices one more                                  */
    MOE_EP_SOURCE_RAGGED = 1, /* lognormal shares exp(spread * normal) by seed                       */
    MOE_EP_SOURCE_EMPTY = 2   /* device `empty` has none, the others share evenly                    */
} moe_ep_source_kind;

/* How many of T tokens start on each device: tokens (D), sum = T.  spread >= 0 for RAGGED, empty 0..D-1 for EMPTY.
 * Errors: NULL, SIZE, NEGATIVE, NAN, RANGE, DEVICE_ID, INFEASIBLE (EMPTY with one device and tokens).  O(D^2) RAGGED.
 * Example: EVEN, T = 10, D = 4: {3,3,2,2}. */
MOE_EP_API moe_ep_status moe_ep_source_tokens(moe_ep_source_kind kind, uint64_t seed, int64_t T, int32_t D, double spread,
                                              int32_t empty, int64_t *tokens, moe_ep_error *err);

typedef struct moe_ep_balanced_result {
    double pairs;             /* T K / ep                                                              */
    int64_t local_tokens;     /* round(T (1 - ((ep-1)/ep)^K)), half to even, as documented             */
    int64_t activated;        /* min(round(pairs), E / ep): an upper bound, not an expectation         */
    double exact_tokens;      /* expected distinct tokens per device, drawn without replacement        */
    double exact_activated;   /* expected active experts per device                                    */
} moe_ep_balanced_result;

/* LLMServingSim's BALANCED routing as its documents state it, beside the exact expectation (the closed form activates
 * too many experts at small T and draws with replacement).  Errors: NULL, SIZE, TOP_K.
 * Example: T = 16, E = 128, K = 8, ep = 2: local 16, activated 64; exact 41.21. */
MOE_EP_API moe_ep_status moe_ep_llmservingsim_balanced(int64_t T, int32_t E, int32_t K, int32_t ep,
                                                       moe_ep_balanced_result *out, moe_ep_error *err);

/* The caller's macros again. */
#pragma pop_macro("B")
#pragma pop_macro("C")
#pragma pop_macro("D")
#pragma pop_macro("E")
#pragma pop_macro("F")
#pragma pop_macro("G")
#pragma pop_macro("H")
#pragma pop_macro("I")
#pragma pop_macro("K")
#pragma pop_macro("L")
#pragma pop_macro("M")
#pragma pop_macro("N")
#pragma pop_macro("P")
#pragma pop_macro("R")
#pragma pop_macro("S")
#pragma pop_macro("T")
#pragma pop_macro("W")
#pragma pop_macro("X")
#pragma pop_macro("Z")
#pragma pop_macro("small")
#pragma pop_macro("near")
#pragma pop_macro("far")
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

/* A program may have macros named like the symbols above (E, K, N, the I of <complex.h>, the small of
 * <windows.h>): they are set aside here and given back at the end of this half. */
#pragma push_macro("B")
#pragma push_macro("C")
#pragma push_macro("D")
#pragma push_macro("E")
#pragma push_macro("F")
#pragma push_macro("G")
#pragma push_macro("H")
#pragma push_macro("I")
#pragma push_macro("K")
#pragma push_macro("L")
#pragma push_macro("M")
#pragma push_macro("N")
#pragma push_macro("P")
#pragma push_macro("R")
#pragma push_macro("S")
#pragma push_macro("T")
#pragma push_macro("W")
#pragma push_macro("X")
#pragma push_macro("Z")
#pragma push_macro("small")
#pragma push_macro("near")
#pragma push_macro("far")
#undef B
#undef C
#undef D
#undef E
#undef F
#undef G
#undef H
#undef I
#undef K
#undef L
#undef M
#undef N
#undef P
#undef R
#undef S
#undef T
#undef W
#undef X
#undef Z
#undef small
#undef near
#undef far

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

/* Fills *err (when given) and hands the status back: callers write `return moe_epi_fail(...)`. */
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

/* True for a finite number; not isfinite(), which the host's -ffast-math may fold away. */
static int moe_epi_finite(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return ((bits >> 52) & 0x7ffu) != 0x7ffu;
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

/* v > 0 as digits * 10^(exponent - 5) with 100000 <= digits <= 999999, rounded to nearest. */
static int32_t moe_epi_six_digits(double v, int *exponent)
{
    int32_t digits;
    int e = 0;
    while (v >= 1e6) { v /= 10.0; e++; }
    while (v < 1e5) { v *= 10.0; e--; }
    digits = (int32_t)(v + 0.5);
    if (digits > 999999) { digits /= 10; e++; }
    *exponent = e + 5;
    return digits;
}

/* Six significant digits without trailing zeros, in the manner of printf's %g; whole numbers below
 * 2^53 in full.  No locale, no printf. */
static void moe_epi_putd(moe_epi_text *t, double v)
{
    char d[6];
    int exponent, point, shown = 6, i;
    int32_t digits;
    if (!moe_epi_finite(v)) {
        moe_epi_puts(t, v > 0.0 ? "infinity" : v < 0.0 ? "-infinity" : "NaN");
        return;
    }
    if (v < 0.0) { moe_epi_put(t, '-'); v = -v; }
    if (v < 9007199254740992.0 && !(v - floor(v) > 0.0)) { moe_epi_puti(t, (int64_t)v); return; }
    digits = moe_epi_six_digits(v, &exponent);
    for (i = 5; i >= 0; i--, digits /= 10) d[i] = (char)('0' + digits % 10);
    point = exponent >= -5 && exponent < 6 ? exponent : 0; /* the point stands behind digit `point` */
    while (shown > 1 && shown > point + 1 && d[shown - 1] == '0') shown--;
    if (point < 0) moe_epi_puts(t, "0.");
    for (i = point + 1; i < 0; i++) moe_epi_put(t, '0');
    for (i = 0; i < shown; i++) {
        if (i > 0 && i == point + 1) moe_epi_put(t, '.');
        moe_epi_put(t, d[i]);
    }
    if (point != exponent) { moe_epi_put(t, 'e'); moe_epi_puti(t, exponent); }
}

/* A NULL has no value; nor has a product that did not fit, when nothing was filled in. */
static int moe_epi_has_value(const moe_ep_error *err)
{
    if (err->status == MOE_EP_ERR_NULL) return 0;
    return err->status != MOE_EP_ERR_OVERFLOW || err->value > 0.0 || err->value < 0.0;
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
        if (moe_epi_has_value(err)) {
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

/* ---- scratch: a function adds up what it needs, opens the arena once, then carves -------------- */

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

/* Makes a growing scratch hold at least `want` bytes; what it held before is kept when that fails. */
static moe_ep_status moe_epi_grow(moe_ep_scratch *s, size_t want, moe_ep_error *err)
{
    void *grown;
    if (s->buf && s->bytes >= want) return MOE_EP_OK;
    grown = moe_epi_malloc(&s->alloc, want);
    if (!grown)
        return moe_epi_fail(err, MOE_EP_ERR_MEMORY, "scratch", "bytes that could not be allocated", -1,
                            (double)want);
    moe_epi_free(&s->alloc, s->buf, s->bytes);
    s->buf = grown;
    s->bytes = want;
    return MOE_EP_OK;
}

/* Opens `total` bytes (as added up by moe_epi_need).  Pair with moe_epi_arena_close. */
static moe_ep_status moe_epi_arena_open(moe_epi_arena *a, moe_ep_scratch *s, size_t total,
                                        moe_ep_error *err)
{
    size_t want;
    memset(a, 0, sizeof *a);
    a->is_local = s == NULL;
    if (!s) s = &a->local;
    if (total > SIZE_MAX - 64u)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "scratch",
                            "the sizes need more memory than can be addressed", -1, 0.0);
    if (!s->fixed && (s->alloc.alloc_fn == NULL) != (s->alloc.free_fn == NULL))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "scratch.alloc",
                            "give both alloc_fn and free_fn or neither", -1, 0.0);
    want = total == 0 ? 0 : total + 64u; /* room to align the start */
    s->need = want;
    if (want == 0) return MOE_EP_OK;
    if (s->fixed) {
        if (!s->buf || s->bytes < want)
            return moe_epi_fail(err, MOE_EP_ERR_SCRATCH, "scratch", "bytes needed", -1, (double)want);
    } else {
        moe_ep_status status = moe_epi_grow(s, want, err);
        if (status != MOE_EP_OK) return status;
    }
    a->base = (unsigned char *)s->buf + ((64u - ((uintptr_t)s->buf & 63u)) & 63u);
    a->bytes = total;
    return MOE_EP_OK;
}

/* Next piece, 64-byte aligned, uninitialised.  Take pieces with the sizes given to moe_epi_need. */
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

/* ---- random numbers ----------------------------------------------------------------------------- */

MOE_EP_API moe_ep_rng moe_ep_rng_seed(uint64_t seed)
{
    moe_ep_rng r;
    int i;
    memset(&r, 0, sizeof r);
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
    uint64_t *s, x, t, result;
    if (!rng) return 0;
    s = rng->s;
    x = s[1] * 5u;
    t = s[1] << 17;
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
    if (!rng || n == 0) return 0;
    limit = UINT64_MAX - UINT64_MAX % n; /* multiples of n below this: no bias */
    do {
        x = moe_ep_rng_u64(rng);
    } while (x >= limit);
    return x % n;
}

/* ==================================================================================================
 * 1 ROUTE
 * ================================================================================================== */

#define MOE_EPI_ROUTE_BLOCK 1024  /* experts looked at together; a whole token for most models           */
#define MOE_EPI_ROUTE_LIST 256    /* best candidates found in one scan; larger K takes several scans     */
#define MOE_EPI_ROUTE_GROUPS 1024 /* most groups of a group-limited router                               */
#define MOE_EPI_LANES 16          /* partial sums over experts or hidden elements, added in a tree       */
#define MOE_EPI_LOWEST (-3.402823466e+38f) /* stands for -Inf, which -ffast-math may not compare         */

/* 0 = finite, 1 = -Inf, 2 = +Inf or NaN; looks at the bits, which -ffast-math of the host cannot fold. */
static int moe_epi_float_kind(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    if ((bits & 0x7f800000u) != 0x7f800000u) return 0;
    return bits == 0xff800000u ? 1 : 2;
}

/* exp(x) for x <= 0 within 2 ulp, subnormal results included: Cody-Waite reduction and a polynomial of
 * degree 6 (coefficients of the Cephes library).  Written without branches so that it vectorises. */
static float moe_epi_exp(float x)
{
    float y = x < -104.0f ? -104.0f : x, f, r, p, half_scale, rest_scale;
    int32_t n = (int32_t)(y * 1.44269504f - 0.5f), half = n / 2;
    uint32_t bits = (uint32_t)(half + 127) << 23, rest = (uint32_t)(n - half + 127) << 23;
    f = (float)n;
    r = (y - f * 0.693359375f) + f * 2.12194440e-4f;
    p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    memcpy(&half_scale, &bits, sizeof half_scale);
    memcpy(&rest_scale, &rest, sizeof rest_scale);
    return p * half_scale * rest_scale;
}

/* Both branches keep the exponent at or below zero: nothing overflows, and the upper one rounds
 * 1 + exp(-x) to float, so that logits above about 17 all give exactly 1. */
static float moe_epi_sigmoid(float x)
{
    float e = moe_epi_exp(x < 0.0f ? x : -x);
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* volatile here and in the soft-cap: one scalar call each.  With -ffast-math a compiler may mix vector and
 * scalar versions of a libm function in one loop, and equal logits would no longer tie. */
static float moe_epi_sqrt_softplus(float x)
{
    volatile float e = moe_epi_exp(x < 0.0f ? x : -x);
    return sqrtf((x > 0.0f ? x : 0.0f) + log1pf(e));
}

/* One token on its way through the router.  x and key hold the block of experts that starts at x_at and
 * key_at (-1 = none yet): with E up to the block size nothing is computed twice.
 *
 * Elementwise loops run over whole lanes; the rest of the last ones holds masked experts.  So a compiler
 * has no leftover elements to treat in another way, and equal logits have equal keys at every position even
 * where -ffast-math of the host lets vector code round differently from scalar code. */
typedef struct moe_epi_token {
    const moe_ep_router *r;
    const float *logits; /* (E) of this token */
    const float *keys;   /* (E) of this token, select KEYS only */
    int32_t x_at, key_at;
    int32_t exp_at; /* block whose exp(l - max) stand in key, on their way to a softmax */
    float max, sum; /* softmax: largest logit, sum of exp(l - max) */
    float x[MOE_EPI_ROUTE_BLOCK], key[MOE_EPI_ROUTE_BLOCK];
    float group_score[MOE_EPI_ROUTE_GROUPS];
    uint8_t group_open[MOE_EPI_ROUTE_GROUPS];
} moe_epi_token;

/* A raw logit, MOE_EPI_LOWEST when it is masked. */
static float moe_epi_route_unmasked(float raw) { return moe_epi_float_kind(raw) == 0 ? raw : MOE_EPI_LOWEST; }

static float moe_epi_route_softcap(float x, float cap)
{
    volatile float u = x / cap;
    return x > MOE_EPI_LOWEST ? cap * tanhf(u) : x;
}

static float moe_epi_route_shift(float x, float bias) { return x > MOE_EPI_LOWEST ? x + bias : x; }

/* The logit of an expert after soft-cap and bias; MOE_EPI_LOWEST when it is masked. */
static float moe_epi_route_logit(const moe_ep_router *r, float raw, int32_t e)
{
    float x = moe_epi_route_unmasked(raw);
    if (r->logit_softcap > 0.0f) x = moe_epi_route_softcap(x, r->logit_softcap);
    return r->logit_bias ? moe_epi_route_shift(x, r->logit_bias[e]) : x;
}

static int32_t moe_epi_route_block_size(const moe_epi_token *t, int32_t e0)
{
    int32_t left = t->r->num_experts - e0;
    return left < MOE_EPI_ROUTE_BLOCK ? left : MOE_EPI_ROUTE_BLOCK;
}

static void moe_epi_route_fill_x(moe_epi_token *t, int32_t e0)
{
    const moe_ep_router *r = t->r;
    int32_t i, n = moe_epi_route_block_size(t, e0);
    int j;
    if (t->x_at == e0) return;
    for (i = 0; i < n; i++) t->x[i] = moe_epi_route_unmasked(t->logits[e0 + i]);
    for (; i % MOE_EPI_LANES != 0; i++) t->x[i] = MOE_EPI_LOWEST;
    for (i = 0; r->logit_softcap > 0.0f && i < n; i += MOE_EPI_LANES)
        for (j = 0; j < MOE_EPI_LANES; j++) t->x[i + j] = moe_epi_route_softcap(t->x[i + j], r->logit_softcap);
    for (i = 0; r->logit_bias && i < n; i++) t->x[i] = moe_epi_route_shift(t->x[i], r->logit_bias[e0 + i]);
    t->x_at = e0;
    t->key_at = t->exp_at = -1;
}

static float moe_epi_lanes_sum(const float *lane)
{
    float s[MOE_EPI_LANES];
    int i, width;
    memcpy(s, lane, sizeof s);
    for (width = MOE_EPI_LANES / 2; width > 0; width /= 2)
        for (i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
}

/* Largest of x (n) and start. */
static float moe_epi_route_max(const float *x, int32_t n, float start)
{
    float lane[MOE_EPI_LANES];
    int32_t i;
    int j;
    for (j = 0; j < MOE_EPI_LANES; j++) lane[j] = start;
    for (i = 0; i < n; i += MOE_EPI_LANES)
        for (j = 0; j < MOE_EPI_LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (j = 0; j < MOE_EPI_LANES; j++) start = lane[j] > start ? lane[j] : start;
    return start;
}

static float moe_epi_route_exp(float x, float max) { return x > MOE_EPI_LOWEST ? moe_epi_exp(x - max) : 0.0f; }

/* out = exp(x - max), 0 where masked; adds them to the partial sums. */
static void moe_epi_route_exps(const float *x, int32_t n, float max, float *out, float *lane)
{
    int32_t i;
    int j;
    for (i = 0; i < n; i += MOE_EPI_LANES) {
        for (j = 0; j < MOE_EPI_LANES; j++) out[i + j] = moe_epi_route_exp(x[i + j], max);
        for (j = 0; j < MOE_EPI_LANES; j++) lane[j] += out[i + j];
    }
}

/* Largest logit and sum of exp(l - largest) over the token's experts that are not masked. */
static void moe_epi_route_softmax(moe_epi_token *t)
{
    float lane[MOE_EPI_LANES];
    int32_t e0, E = t->r->num_experts;
    t->max = MOE_EPI_LOWEST;
    for (e0 = 0; e0 < E; e0 += MOE_EPI_ROUTE_BLOCK) {
        moe_epi_route_fill_x(t, e0);
        t->max = moe_epi_route_max(t->x, moe_epi_route_block_size(t, e0), t->max);
    }
    memset(lane, 0, sizeof lane);
    for (e0 = 0; e0 < E; e0 += MOE_EPI_ROUTE_BLOCK) {
        moe_epi_route_fill_x(t, e0);
        moe_epi_route_exps(t->x, moe_epi_route_block_size(t, e0), t->max, t->key, lane);
        t->exp_at = e0;
    }
    t->sum = moe_epi_lanes_sum(lane);
}

/* Score of a logit that is not masked. */
static float moe_epi_route_score(const moe_epi_token *t, float x)
{
    switch (t->r->score) {
    case MOE_EP_SCORE_SOFTMAX: return moe_epi_exp(x - t->max) / t->sum;
    case MOE_EP_SCORE_SIGMOID: return moe_epi_sigmoid(x);
    case MOE_EP_SCORE_SQRT_SOFTPLUS: return moe_epi_sqrt_softplus(x);
    case MOE_EP_SCORE_LOGIT: break;
    }
    return x;
}

/* Keys of the block before biases; what stands at masked experts does not matter. */
static void moe_epi_route_block_scores(moe_epi_token *t, int32_t e0, int32_t n)
{
    const moe_ep_router *r = t->r;
    float unused[MOE_EPI_LANES], sum = t->sum > 0.0f ? t->sum : 1.0f;
    int32_t i;
    int j;
    if (r->select_on_logit || r->score == MOE_EP_SCORE_LOGIT) {
        memcpy(t->key, t->x, sizeof t->x[0] * (size_t)n);
    } else if (r->score == MOE_EP_SCORE_SOFTMAX) {
        memset(unused, 0, sizeof unused);
        if (t->exp_at != e0) moe_epi_route_exps(t->x, n, t->max, t->key, unused);
        for (i = 0; i < n; i += MOE_EPI_LANES)
            for (j = 0; j < MOE_EPI_LANES; j++) t->key[i + j] /= sum;
    } else if (r->score == MOE_EP_SCORE_SIGMOID) {
        for (i = 0; i < n; i += MOE_EPI_LANES)
            for (j = 0; j < MOE_EPI_LANES; j++) t->key[i + j] = moe_epi_sigmoid(t->x[i + j]);
    } else {
        for (i = 0; i < n; i += MOE_EPI_LANES)
            for (j = 0; j < MOE_EPI_LANES; j++) t->key[i + j] = moe_epi_sqrt_softplus(t->x[i + j]);
    }
}

static void moe_epi_route_fill_key(moe_epi_token *t, int32_t e0)
{
    const moe_ep_router *r = t->r;
    int32_t i, n = moe_epi_route_block_size(t, e0);
    if (t->key_at == e0) return;
    if (t->keys) {
        for (i = 0; i < n; i++)
            t->key[i] = moe_epi_float_kind(t->keys[e0 + i]) ? MOE_EPI_LOWEST : t->keys[e0 + i];
    } else {
        moe_epi_route_fill_x(t, e0);
        moe_epi_route_block_scores(t, e0, n);
        for (i = 0; i < n; i++) t->key[i] = t->x[i] > MOE_EPI_LOWEST ? t->key[i] : MOE_EPI_LOWEST;
    }
    for (i = 0; r->select_bias && i < n; i++) t->key[i] = moe_epi_route_shift(t->key[i], r->select_bias[e0 + i]);
    t->key_at = e0;
    t->exp_at = -1;
}

static float moe_epi_route_key(moe_epi_token *t, int32_t e)
{
    int32_t e0 = e - e % MOE_EPI_ROUTE_BLOCK;
    moe_epi_route_fill_key(t, e0);
    return t->key[e - e0];
}

/* ---- the best few of a sequence, largest first, lowest index first among equals ----------------------- */

typedef struct moe_epi_best {
    int32_t want, have;
    int32_t after_id; /* only candidates behind (after_key, after_id) count; -1 = all do */
    float after_key;
    float key[MOE_EPI_ROUTE_LIST];
    int32_t id[MOE_EPI_ROUTE_LIST];
} moe_epi_best;

static void moe_epi_best_start(moe_epi_best *b, int32_t want)
{
    b->want = want < MOE_EPI_ROUTE_LIST ? want : MOE_EPI_ROUTE_LIST;
    b->have = 0;
    b->after_id = -1;
    b->after_key = 0.0f;
}

/* Starts the next scan behind the last candidate of this one. */
static void moe_epi_best_next(moe_epi_best *b, int32_t want)
{
    MOE_EP_ASSERT(b->have > 0);
    b->after_id = b->id[b->have - 1];
    b->after_key = b->key[b->have - 1];
    b->want = want < MOE_EPI_ROUTE_LIST ? want : MOE_EPI_ROUTE_LIST;
    b->have = 0;
}

/* Candidates must come in ascending order of id. */
static void moe_epi_best_offer(moe_epi_best *b, float key, int32_t id)
{
    int32_t at;
    if (b->have == b->want && !(key > b->key[b->want - 1])) return;
    if (b->after_id >= 0 && (key > b->after_key || (!(key < b->after_key) && id <= b->after_id))) return;
    at = b->have < b->want ? b->have++ : b->want - 1;
    for (; at > 0 && key > b->key[at - 1]; at--) {
        b->key[at] = b->key[at - 1];
        b->id[at] = b->id[at - 1];
    }
    b->key[at] = key;
    b->id[at] = id;
}

/* Sum of the m best keys of group g. */
static float moe_epi_route_group_score(moe_epi_token *t, int32_t g, int32_t size, int32_t m, moe_epi_best *b)
{
    float total = 0.0f;
    int32_t e, i, done;
    for (done = 0; done < m; done += b->have) {
        if (done == 0) moe_epi_best_start(b, m);
        else moe_epi_best_next(b, m - done);
        for (e = g * size; e < (g + 1) * size; e++) moe_epi_best_offer(b, moe_epi_route_key(t, e), e);
        for (i = 0; i < b->have; i++) total += b->key[i];
        if (!(b->key[b->have - 1] > MOE_EPI_LOWEST)) return MOE_EPI_LOWEST; /* a masked one: -Inf */
    }
    return total;
}

static void moe_epi_route_open_groups(moe_epi_token *t)
{
    const moe_ep_router *r = t->r;
    moe_epi_best b;
    int32_t g, i, done, size = r->num_experts / r->n_group, m = r->group_top_m > 0 ? r->group_top_m : 1;
    for (g = 0; g < r->n_group; g++) {
        t->group_score[g] = moe_epi_route_group_score(t, g, size, m, &b);
        t->group_open[g] = 0;
    }
    for (done = 0; done < r->topk_group; done += b.have) {
        if (done == 0) moe_epi_best_start(&b, r->topk_group);
        else moe_epi_best_next(&b, r->topk_group - done);
        for (g = 0; g < r->n_group; g++) moe_epi_best_offer(&b, t->group_score[g], g);
        for (i = 0; i < b.have; i++) t->group_open[b.id[i]] = 1;
    }
}

/* Offers every expert that may be chosen. */
static void moe_epi_route_scan(moe_epi_token *t, moe_epi_best *b)
{
    const moe_ep_router *r = t->r;
    int32_t e, e0, i, n, g, size;
    if (r->n_group <= 1) {
        for (e0 = 0; e0 < r->num_experts; e0 += MOE_EPI_ROUTE_BLOCK) {
            moe_epi_route_fill_key(t, e0);
            n = moe_epi_route_block_size(t, e0);
            for (i = 0; i < n; i++)
                if (b->have < b->want || t->key[i] > b->key[b->want - 1]) moe_epi_best_offer(b, t->key[i], e0 + i);
        }
        return;
    }
    size = r->num_experts / r->n_group;
    for (g = 0; g < r->n_group; g++) {
        if (!t->group_open[g] && !r->mask_zero) continue;
        for (e = g * size; e < (g + 1) * size; e++) {
            float key = moe_epi_route_key(t, e);
            moe_epi_best_offer(b, t->group_open[g] || !(key > MOE_EPI_LOWEST) ? key : 0.0f, e);
        }
    }
}

static void moe_epi_route_topk(moe_epi_token *t, int32_t *ids)
{
    moe_epi_best b;
    int32_t done, i, K = t->r->top_k;
    if (t->r->n_group > 1) moe_epi_route_open_groups(t);
    for (done = 0; done < K; done += b.have) {
        if (done == 0) moe_epi_best_start(&b, K);
        else moe_epi_best_next(&b, K - done);
        moe_epi_route_scan(t, &b);
        for (i = 0; i < b.have; i++) ids[done + i] = b.id[i];
    }
}

/* ---- weights of the chosen ---------------------------------------------------------------------------- */

static float moe_epi_route_chosen_logit(const moe_epi_token *t, int32_t e)
{
    return e < 0 ? MOE_EPI_LOWEST : moe_epi_route_logit(t->r, t->logits[e], e);
}

static void moe_epi_route_softmax_chosen(const moe_epi_token *t, const int32_t *ids, float *w)
{
    int32_t j, K = t->r->top_k;
    float max = MOE_EPI_LOWEST, x;
    double sum = 0.0;
    for (j = 0; j < K; j++) {
        x = moe_epi_route_chosen_logit(t, ids[j]);
        max = x > max ? x : max;
    }
    for (j = 0; j < K; j++) {
        x = moe_epi_route_chosen_logit(t, ids[j]);
        w[j] = x > MOE_EPI_LOWEST ? moe_epi_exp(x - max) : 0.0f;
        sum += (double)w[j];
    }
    for (j = 0; j < K; j++) w[j] = sum > 0.0 ? (float)((double)w[j] / sum) : 0.0f;
}

/* What the weights w (K) are divided by, before eps; p = 1 is their sum. */
static double moe_epi_route_norm(const float *w, int32_t K, float p)
{
    double norm = 0.0, q = (double)p;
    int32_t j;
    int plain = !(p > 0.0f) || !(p < 1.0f || p > 1.0f);
    for (j = 0; j < K; j++) norm += plain ? (double)w[j] : pow(fabs((double)w[j]), q);
    return plain ? norm : pow(norm, 1.0 / q);
}

static double moe_epi_with_eps(double norm, moe_ep_eps_mode mode, float eps)
{
    if (mode == MOE_EP_EPS_ADD) return norm + (double)eps;
    if (mode == MOE_EP_EPS_CLAMP) return norm > (double)eps ? norm : (double)eps;
    return norm;
}

/* w / norm; a norm of 0 gives 0.  Negative norms (raw logits as weights) divide like any other. */
static void moe_epi_divide(float *w, int32_t K, double norm)
{
    int32_t j;
    int usable = norm > 0.0 || norm < 0.0;
    for (j = 0; j < K; j++) w[j] = usable ? (float)((double)w[j] / norm) : 0.0f;
}

static void moe_epi_route_weights(const moe_epi_token *t, const int32_t *ids, float *w)
{
    const moe_ep_router *r = t->r;
    int32_t j, K = r->top_k;
    int normed = r->renorm && !(r->renorm_skip_k1 && K == 1);
    float scale = r->scale > 0.0f || r->scale < 0.0f ? r->scale : 1.0f;
    if (r->weight == MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED) {
        moe_epi_route_softmax_chosen(t, ids, w);
    } else if (r->weight == MOE_EP_WEIGHT_ONE) {
        for (j = 0; j < K; j++) w[j] = ids[j] < 0 ? 0.0f : 1.0f;
    } else {
        for (j = 0; j < K; j++) {
            float x = moe_epi_route_chosen_logit(t, ids[j]);
            if (!(x > MOE_EPI_LOWEST)) w[j] = 0.0f;
            else w[j] = r->weight == MOE_EP_WEIGHT_SCORE ? moe_epi_route_score(t, x) : moe_epi_sigmoid(x);
        }
    }
    if (normed)
        moe_epi_divide(w, K, moe_epi_with_eps(moe_epi_route_norm(w, K, r->renorm_p), r->eps_mode, r->eps));
    if (!(normed && r->scale_only_without_renorm))
        for (j = 0; j < K; j++) w[j] *= scale;
    if (r->per_expert_scale)
        for (j = 0; j < K; j++)
            if (ids[j] >= 0) w[j] *= r->per_expert_scale[ids[j]];
}

/* Is e among the first n ids? */
static int moe_epi_route_taken(const int32_t *ids, int32_t n, int32_t e)
{
    int32_t j;
    for (j = 0; j < n; j++)
        if (ids[j] == e) return 1;
    return 0;
}

/* Sparsemixer, evaluation path of Phi-3.5-MoE: the winner of each round and its share in a softmax over
 * the experts that come within 2 * jitter of it, relative to max(|l|, winner). */
static void moe_epi_route_sparsemixer(const moe_epi_token *t, int32_t *ids, float *w)
{
    const moe_ep_router *r = t->r;
    int32_t e, j, E = r->num_experts, winner;
    for (j = 0; j < r->top_k; j++) {
        float max = MOE_EPI_LOWEST, sum = 0.0f, x, f;
        winner = -1;
        for (e = 0; e < E; e++) {
            x = moe_epi_route_logit(r, t->logits[e], e);
            if ((winner >= 0 && !(x > max)) || moe_epi_route_taken(ids, j, e)) continue;
            max = x;
            winner = e;
        }
        for (e = 0; e < E && w && max > MOE_EPI_LOWEST; e++) {
            x = moe_epi_route_logit(r, t->logits[e], e);
            f = fabsf(x) > max ? fabsf(x) : max;
            if (!(x > MOE_EPI_LOWEST) || (f > 0.0f && (max - x) / f > 2.0f * r->sparsemixer_jitter)) continue;
            if (!moe_epi_route_taken(ids, j, e)) sum += moe_epi_exp(x - max);
        }
        ids[j] = winner;
        if (w) w[j] = sum > 0.0f ? 1.0f / sum : 0.0f;
    }
}

/* Scale factors of a sparsemixer router, which has no norm. */
static void moe_epi_route_scale(const moe_ep_router *r, const int32_t *ids, float *w)
{
    float scale = r->scale > 0.0f || r->scale < 0.0f ? r->scale : 1.0f;
    int32_t j;
    for (j = 0; j < r->top_k; j++) w[j] *= r->per_expert_scale ? scale * r->per_expert_scale[ids[j]] : scale;
}

/* One token, everything checked before: the unit a faster kernel replaces. */
static void moe_epi_route_token(moe_epi_token *t, const int32_t *row, int32_t *ids, float *w)
{
    const moe_ep_router *r = t->r;
    int reads_scores = !t->keys && !r->select_on_logit && r->select == MOE_EP_SELECT_TOPK;
    t->x_at = t->key_at = t->exp_at = -1;
    if (r->select == MOE_EP_SELECT_SPARSEMIXER) {
        moe_epi_route_sparsemixer(t, ids, w);
        if (w) moe_epi_route_scale(r, ids, w);
        return;
    }
    if (r->score == MOE_EP_SCORE_SOFTMAX && (reads_scores || (w && r->weight == MOE_EP_WEIGHT_SCORE)))
        moe_epi_route_softmax(t);
    if (row) memcpy(ids, row, sizeof *ids * (size_t)r->top_k);
    else moe_epi_route_topk(t, ids);
    if (w) moe_epi_route_weights(t, ids, w);
}

/* ---- checks ------------------------------------------------------------------------------------------- */

static moe_ep_status moe_epi_check_floats(const float *v, int64_t n, const char *arg, moe_ep_error *err)
{
    int64_t i;
    for (i = 0; v && i < n; i++)
        if (moe_epi_float_kind(v[i]) != 0)
            return moe_epi_fail(err, MOE_EP_ERR_NAN, arg, "must be finite", i, (double)v[i]);
    return MOE_EP_OK;
}

/* A scalar option: finite and not negative. */
static moe_ep_status moe_epi_check_option(float v, const char *arg, moe_ep_error *err)
{
    if (moe_epi_float_kind(v) != 0)
        return moe_epi_fail(err, MOE_EP_ERR_NAN, arg, "must be finite", -1, (double)v);
    if (v < 0.0f) return moe_epi_fail(err, MOE_EP_ERR_RANGE, arg, "must not be negative", -1, (double)v);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_check_enum(int v, int last, const char *arg, moe_ep_error *err)
{
    if (v < 0 || v > last)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, arg, "is not one of the named values", -1, (double)v);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_router_check_groups(const moe_ep_router *r, moe_ep_error *err)
{
    int64_t size;
    if (r->n_group < 0 || r->n_group > MOE_EPI_ROUTE_GROUPS)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n_group", "must be 0..1024", -1, (double)r->n_group);
    if (r->n_group <= 1) return MOE_EP_OK;
    if (r->num_experts % r->n_group != 0)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "n_group", "must divide num_experts", -1,
                            (double)r->n_group);
    size = r->num_experts / r->n_group;
    if (r->topk_group < 1 || r->topk_group > r->n_group)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "topk_group", "must be 1..n_group", -1,
                            (double)r->topk_group);
    if (r->group_top_m < 0 || r->group_top_m > size)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "group_top_m", "must be at most the experts of a group", -1,
                            (double)r->group_top_m);
    if (!r->mask_zero && (int64_t)r->top_k > size * r->topk_group)
        return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "top_k", "more than the chosen groups hold", -1,
                            (double)r->top_k);
    if (r->select == MOE_EP_SELECT_SPARSEMIXER)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "n_group", "sparsemixer has no groups", -1,
                            (double)r->n_group);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_router_check_sizes(const moe_ep_router *r, moe_ep_error *err)
{
    moe_ep_status s;
    if (r->num_experts < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_experts", "must be at least 1", -1,
                            (double)r->num_experts);
    if (r->top_k < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "top_k", "must be at least 1", -1, (double)r->top_k);
    if (r->top_k > r->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "top_k", "must not exceed num_experts", -1,
                            (double)r->top_k);
    if (r->num_null < 0 || r->num_null > r->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_null", "must be 0..num_experts", -1,
                            (double)r->num_null);
    if (r->logits_stride < 0 || (r->logits_stride > 0 && r->logits_stride < r->num_experts))
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "logits_stride", "must be 0 or at least num_experts", -1,
                            (double)r->logits_stride);
    if ((s = moe_epi_check_enum((int)r->score, 3, "score", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_enum((int)r->select, 3, "select", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_enum((int)r->weight, 3, "weight", err)) != MOE_EP_OK) return s;
    return moe_epi_check_enum((int)r->eps_mode, 2, "eps_mode", err);
}

MOE_EP_API moe_ep_status moe_ep_router_check(const moe_ep_router *cfg, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t E;
    moe_epi_ok(err);
    if (!cfg) return moe_epi_null(err, "cfg");
    if ((s = moe_epi_router_check_sizes(cfg, err)) != MOE_EP_OK) return s;
    if (cfg->select != MOE_EP_SELECT_TABLE && (s = moe_epi_router_check_groups(cfg, err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_option(cfg->logit_softcap, "logit_softcap", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_option(cfg->renorm_p, "renorm_p", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_option(cfg->eps, "eps", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_option(cfg->sparsemixer_jitter, "sparsemixer_jitter", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_floats(&cfg->scale, 1, "scale", err)) != MOE_EP_OK) return s;
    E = cfg->num_experts;
    if ((s = moe_epi_check_floats(cfg->logit_bias, E, "logit_bias", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_floats(cfg->select_bias, E, "select_bias", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_floats(cfg->per_expert_scale, E, "per_expert_scale", err)) != MOE_EP_OK) return s;
    if (cfg->select == MOE_EP_SELECT_TABLE) {
        if (!cfg->table) return moe_epi_null(err, "table");
        if (cfg->table_rows < 1)
            return moe_epi_fail(err, MOE_EP_ERR_SIZE, "table_rows", "must be at least 1", -1,
                                (double)cfg->table_rows);
    }
    if (cfg->select == MOE_EP_SELECT_KEYS && !cfg->keys) return moe_epi_null(err, "keys");
    return MOE_EP_OK;
}

/* First value of n that is NaN or +Inf, -1 if none.  The loop has no exit so that it vectorises. */
static int64_t moe_epi_first_bad(const float *v, int64_t n)
{
    uint32_t bad = 0, bits;
    int64_t i;
    for (i = 0; i < n; i++) {
        memcpy(&bits, &v[i], sizeof bits);
        bad |= (uint32_t)((bits & 0x7f800000u) == 0x7f800000u) & (uint32_t)(bits != 0xff800000u);
    }
    for (i = 0; bad && i < n; i++)
        if (moe_epi_float_kind(v[i]) == 2) return i;
    return -1;
}

static moe_ep_status moe_epi_route_check_rows(const float *v, int64_t T, int64_t E, int64_t stride, const char *arg,
                                        moe_ep_error *err)
{
    int64_t t, bad;
    for (t = 0; t < T; t++) {
        bad = moe_epi_first_bad(v + t * stride, E);
        if (bad >= 0)
            return moe_epi_fail(err, MOE_EP_ERR_NAN, arg, "is NaN or +Inf (index is token*E + expert)",
                                t * E + bad, (double)v[t * stride + bad]);
    }
    return MOE_EP_OK;
}

/* T >= 0 rows of `width` elements that are `stride` apart must be addressable. */
static moe_ep_status moe_epi_check_tokens(int64_t T, int64_t width, int64_t stride, moe_ep_error *err)
{
    int64_t total;
    if (T < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "must not be negative", -1, (double)T);
    if (!moe_epi_mul(T, stride > width ? stride : width, &total) || total > INT64_MAX / 16)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "T", "T times the row length does not fit", -1,
                            (double)T);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_check_table(const moe_ep_router *r, int64_t T, const int32_t *token_ids,
                                         moe_ep_error *err)
{
    int64_t t, row, i;
    int32_t j;
    if (!token_ids && T > r->table_rows)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "table_rows", "fewer than T, and no token_ids", -1,
                            (double)r->table_rows);
    for (t = 0; t < T; t++) {
        row = token_ids ? token_ids[t] : t;
        if (row < 0 || row >= r->table_rows)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "token_ids", "must be 0..table_rows-1", t, (double)row);
        for (j = 0; j < r->top_k; j++) {
            i = row * r->top_k + j;
            if (r->table[i] < -1 || r->table[i] >= r->num_experts)
                return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "table", "must be -1 or 0..E-1", i,
                                    (double)r->table[i]);
        }
    }
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_route_check(const moe_ep_router *r, const float *logits, int64_t T,
                                         const int32_t *token_ids, const int32_t *ids, int weighs,
                                         moe_ep_error *err)
{
    moe_ep_status s = moe_ep_router_check(r, err);
    int64_t E, stride;
    int needs_logits;
    if (s != MOE_EP_OK) return s;
    E = r->num_experts;
    stride = r->logits_stride > 0 ? r->logits_stride : E;
    needs_logits = (weighs && r->weight != MOE_EP_WEIGHT_ONE) || r->select == MOE_EP_SELECT_TOPK ||
                   r->select == MOE_EP_SELECT_SPARSEMIXER;
    if ((s = moe_epi_check_tokens(T, E, stride, err)) != MOE_EP_OK) return s;
    if (T == 0) return MOE_EP_OK;
    if (!logits && needs_logits) return moe_epi_null(err, "logits");
    if (!ids) return moe_epi_null(err, "ids");
    if (r->select == MOE_EP_SELECT_TABLE && (s = moe_epi_check_table(r, T, token_ids, err)) != MOE_EP_OK) return s;
    if (logits && needs_logits && !r->nan_as_masked &&
        (s = moe_epi_route_check_rows(logits, T, E, stride, "logits", err)) != MOE_EP_OK)
        return s;
    if (r->select == MOE_EP_SELECT_KEYS) return moe_epi_route_check_rows(r->keys, T, E, E, "keys", err);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_route(const moe_ep_router *cfg, const float *logits, int64_t T,
                                      const int32_t *token_ids, int32_t *ids, float *weights,
                                      moe_ep_error *err)
{
    moe_epi_token token;
    moe_ep_status s = moe_epi_route_check(cfg, logits, T, token_ids, ids, weights != NULL, err);
    int64_t t, stride, K;
    if (s != MOE_EP_OK || T == 0) return s;
    stride = cfg->logits_stride > 0 ? cfg->logits_stride : cfg->num_experts;
    K = cfg->top_k;
    token.r = cfg;
    token.max = token.sum = 0.0f;
    for (t = 0; t < T; t++) {
        const int32_t *row = NULL;
        token.logits = logits ? logits + t * stride : NULL;
        token.keys = cfg->select == MOE_EP_SELECT_KEYS ? cfg->keys + t * cfg->num_experts : NULL;
        if (cfg->select == MOE_EP_SELECT_TABLE) row = cfg->table + (token_ids ? token_ids[t] : t) * K;
        moe_epi_route_token(&token, row, ids + t * K, weights ? weights + t * K : NULL);
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_scores(const moe_ep_router *cfg, const float *logits, int64_t T,
                                       float *scores, moe_ep_error *err)
{
    moe_epi_token token;
    moe_ep_router plain;
    moe_ep_status s;
    int64_t t, stride, E;
    int32_t e;
    moe_epi_ok(err);
    if (!cfg) return moe_epi_null(err, "cfg");
    memset(&plain, 0, sizeof plain); /* only the fields that scores depend on */
    plain.num_experts = cfg->num_experts;
    plain.top_k = 1;
    plain.score = cfg->score;
    plain.logit_softcap = cfg->logit_softcap;
    plain.logit_bias = cfg->logit_bias;
    plain.nan_as_masked = cfg->nan_as_masked;
    plain.logits_stride = cfg->logits_stride;
    if ((s = moe_ep_router_check(&plain, err)) != MOE_EP_OK) return s;
    E = plain.num_experts;
    stride = plain.logits_stride > 0 ? plain.logits_stride : E;
    if ((s = moe_epi_check_tokens(T, E, stride, err)) != MOE_EP_OK || T == 0) return s;
    if (!logits) return moe_epi_null(err, "logits");
    if (!scores) return moe_epi_null(err, "scores");
    if (!plain.nan_as_masked && (s = moe_epi_route_check_rows(logits, T, E, stride, "logits", err)) != MOE_EP_OK)
        return s;
    token.r = &plain;
    token.keys = NULL;
    for (t = 0; t < T; t++) {
        token.logits = logits + t * stride;
        token.x_at = token.key_at = token.exp_at = -1;
        if (plain.score == MOE_EP_SCORE_SOFTMAX) moe_epi_route_softmax(&token);
        for (e = 0; e < plain.num_experts; e++) {
            float x = moe_epi_route_logit(&plain, token.logits[e], e);
            if (x > MOE_EPI_LOWEST) scores[t * E + e] = moe_epi_route_score(&token, x);
            else scores[t * E + e] = plain.score == MOE_EP_SCORE_LOGIT ? MOE_EPI_LOWEST : 0.0f;
        }
    }
    return MOE_EP_OK;
}

static float moe_epi_dot(const float *a, const float *b, int32_t n)
{
    float lane[MOE_EPI_LANES];
    int32_t i = 0;
    int j;
    memset(lane, 0, sizeof lane);
    for (; i + MOE_EPI_LANES <= n; i += MOE_EPI_LANES)
        for (j = 0; j < MOE_EPI_LANES; j++) lane[j] += a[i + j] * b[i + j];
    for (j = 0; i + j < n; j++) lane[j] += a[i + j] * b[i + j];
    return moe_epi_lanes_sum(lane);
}

MOE_EP_API moe_ep_status moe_ep_gate(const float *x, int64_t T, int32_t H, const float *w,
                                     const float *bias, int32_t E, float *logits, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t t;
    int32_t e;
    moe_epi_ok(err);
    if (H < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "H", "must be at least 1", -1, (double)H);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if ((s = moe_epi_check_tokens(T, E, H, err)) != MOE_EP_OK || T == 0) return s;
    if (!x) return moe_epi_null(err, "x");
    if (!w) return moe_epi_null(err, "w");
    if (!logits) return moe_epi_null(err, "logits");
    for (t = 0; t < T; t++)
        for (e = 0; e < E; e++)
            logits[t * E + e] = moe_epi_dot(x + t * H, w + (int64_t)e * H, H) + (bias ? bias[e] : 0.0f);
    return MOE_EP_OK;
}

/* ---- presets ------------------------------------------------------------------------------------------ */

static moe_ep_router moe_epi_router(int32_t E, int32_t K, moe_ep_score score, moe_ep_weight weight)
{
    moe_ep_router r;
    memset(&r, 0, sizeof r);
    r.num_experts = E;
    r.top_k = K;
    r.score = score;
    r.weight = weight;
    return r;
}

static moe_ep_router moe_epi_router_normed(moe_ep_router r, moe_ep_eps_mode mode, float eps, float scale)
{
    r.renorm = 1;
    r.eps_mode = mode;
    r.eps = eps;
    r.scale = scale;
    return r;
}

static moe_ep_router moe_epi_router_grouped(moe_ep_router r, int32_t n, int32_t chosen, int32_t top_m)
{
    r.n_group = n;
    r.topk_group = chosen;
    r.group_top_m = top_m;
    return r;
}

static moe_ep_router moe_epi_router_softmax(int32_t E, int32_t K)
{
    return moe_epi_router(E, K, MOE_EP_SCORE_SOFTMAX, MOE_EP_WEIGHT_SCORE);
}

static moe_ep_router moe_epi_router_of_logits(int32_t E, int32_t K, moe_ep_weight weight)
{
    moe_ep_router r = moe_epi_router(E, K, MOE_EP_SCORE_LOGIT, weight);
    r.select_on_logit = 1;
    return r;
}

/* sigmoid scores divided by their sum */
static moe_ep_router moe_epi_router_sigmoid(int32_t E, int32_t K, moe_ep_eps_mode mode, float eps, float scale)
{
    return moe_epi_router_normed(moe_epi_router(E, K, MOE_EP_SCORE_SIGMOID, MOE_EP_WEIGHT_SCORE), mode, eps,
                                 scale);
}

MOE_EP_API moe_ep_router moe_ep_router_mixtral(int32_t E, int32_t K)
{
    return moe_epi_router_normed(moe_epi_router_softmax(E, K), MOE_EP_EPS_NONE, 0.0f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_qwen3(int32_t E, int32_t K) { return moe_ep_router_mixtral(E, K); }
MOE_EP_API moe_ep_router moe_ep_router_qwen2(int32_t E, int32_t K) { return moe_epi_router_softmax(E, K); }
MOE_EP_API moe_ep_router moe_ep_router_olmoe(int32_t E, int32_t K) { return moe_epi_router_softmax(E, K); }
MOE_EP_API moe_ep_router moe_ep_router_jamba(int32_t E, int32_t K) { return moe_epi_router_softmax(E, K); }
MOE_EP_API moe_ep_router moe_ep_router_grok1(int32_t E, int32_t K) { return moe_epi_router_softmax(E, K); }
MOE_EP_API moe_ep_router moe_ep_router_switch(int32_t E, int32_t K) { return moe_epi_router_softmax(E, K); }

MOE_EP_API moe_ep_router moe_ep_router_dbrx(int32_t E, int32_t K, float p)
{
    moe_ep_router r = moe_epi_router_softmax(E, K);
    r.renorm = p > 0.0f;
    r.renorm_p = p;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_gpt_oss(int32_t E, int32_t K)
{
    return moe_epi_router_of_logits(E, K, MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED);
}

MOE_EP_API moe_ep_router moe_ep_router_granite(int32_t E, int32_t K) { return moe_ep_router_gpt_oss(E, K); }
MOE_EP_API moe_ep_router moe_ep_router_gemma4(int32_t E, int32_t K) { return moe_ep_router_gpt_oss(E, K); }

MOE_EP_API moe_ep_router moe_ep_router_llama4(int32_t E, int32_t K)
{
    moe_ep_router r = moe_epi_router_of_logits(E, K, MOE_EP_WEIGHT_SIGMOID_OF_LOGIT);
    r.weight_on_input = 1;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_phimoe(int32_t E, int32_t K)
{
    moe_ep_router r = moe_epi_router(E, K, MOE_EP_SCORE_LOGIT, MOE_EP_WEIGHT_SCORE);
    r.select = MOE_EP_SELECT_SPARSEMIXER;
    r.sparsemixer_jitter = 0.01f;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2(int32_t E, int32_t K)
{
    moe_ep_router r = moe_epi_router_grouped(moe_epi_router_softmax(E, K), 8, 3, 1);
    r.mask_zero = 1;
    r.scale = 16.0f;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2_lite(int32_t E, int32_t K)
{
    return moe_epi_router_softmax(E, K);
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2_hub(int32_t E, int32_t K)
{
    moe_ep_router r = moe_epi_router_normed(moe_ep_router_deepseek_v2(E, K), MOE_EP_EPS_ADD, 1e-20f, 16.0f);
    r.renorm_skip_k1 = 1;
    r.scale_only_without_renorm = 1;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v2_vllm(int32_t E, int32_t K)
{
    moe_ep_router r = moe_epi_router_normed(moe_ep_router_deepseek_v2(E, K), MOE_EP_EPS_NONE, 0.0f, 16.0f);
    r.mask_zero = 0;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v3(int32_t E, int32_t K)
{
    return moe_epi_router_grouped(moe_epi_router_sigmoid(E, K, MOE_EP_EPS_NONE, 0.0f, 2.5f), 8, 4, 2);
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v3_hf(int32_t E, int32_t K)
{
    moe_ep_router r = moe_ep_router_deepseek_v3(E, K);
    r.eps_mode = MOE_EP_EPS_ADD;
    r.eps = 1e-20f;
    r.mask_zero = 1;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_kimi_k2(int32_t E, int32_t K)
{
    return moe_epi_router_sigmoid(E, K, MOE_EP_EPS_ADD, 1e-20f, 2.827f);
}

MOE_EP_API moe_ep_router moe_ep_router_glm45(int32_t E, int32_t K)
{
    return moe_epi_router_sigmoid(E, K, MOE_EP_EPS_ADD, 1e-20f, 2.5f);
}

MOE_EP_API moe_ep_router moe_ep_router_dots1(int32_t E, int32_t K) { return moe_ep_router_glm45(E, K); }

MOE_EP_API moe_ep_router moe_ep_router_mimo_v2(int32_t E, int32_t K)
{
    return moe_epi_router_sigmoid(E, K, MOE_EP_EPS_ADD, 1e-20f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_nemotron_h(int32_t E, int32_t K)
{
    moe_ep_router r = moe_ep_router_glm45(E, K);
    r.renorm_skip_k1 = 1;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_minimax_m2(int32_t E, int32_t K)
{
    return moe_epi_router_sigmoid(E, K, MOE_EP_EPS_NONE, 0.0f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_lfm2(int32_t E, int32_t K)
{
    return moe_epi_router_sigmoid(E, K, MOE_EP_EPS_ADD, 1e-6f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_step35(int32_t E, int32_t K)
{
    return moe_epi_router_sigmoid(E, K, MOE_EP_EPS_ADD, 1e-20f, 3.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_ernie45(int32_t E, int32_t K)
{
    return moe_epi_router_normed(moe_epi_router_softmax(E, K), MOE_EP_EPS_CLAMP, 1e-12f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_longcat(int32_t E, int32_t K, int32_t Z)
{
    moe_ep_router r = moe_epi_router_softmax(E, K);
    r.num_null = Z;
    r.scale = 6.0f;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v4(int32_t E, int32_t K)
{
    return moe_epi_router_normed(moe_epi_router(E, K, MOE_EP_SCORE_SQRT_SOFTPLUS, MOE_EP_WEIGHT_SCORE),
                                 MOE_EP_EPS_ADD, 1e-20f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_deepseek_v4_hash(int32_t E, int32_t K)
{
    moe_ep_router r = moe_ep_router_deepseek_v4(E, K);
    r.select = MOE_EP_SELECT_TABLE;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_grok1_vllm(int32_t E, int32_t K)
{
    moe_ep_router r = moe_ep_router_grok1(E, K);
    r.logit_softcap = 30.0f;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_hunyuan(int32_t E, int32_t K)
{
    return moe_epi_router_normed(moe_epi_router_softmax(E, K), MOE_EP_EPS_CLAMP, 1.1920929e-7f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_hash(int32_t E, int32_t K)
{
    moe_ep_router r = moe_epi_router(E, K, MOE_EP_SCORE_LOGIT, MOE_EP_WEIGHT_ONE);
    r.select = MOE_EP_SELECT_TABLE;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_megatron_pre_softmax(int32_t E, int32_t K)
{
    return moe_epi_router_softmax(E, K);
}

MOE_EP_API moe_ep_router moe_ep_router_megatron_post_softmax(int32_t E, int32_t K)
{
    return moe_ep_router_gpt_oss(E, K);
}

MOE_EP_API moe_ep_router moe_ep_router_megatron_sigmoid(int32_t E, int32_t K)
{
    moe_ep_router r = moe_epi_router_sigmoid(E, K, MOE_EP_EPS_ADD, 1e-20f, 0.0f);
    r.renorm_skip_k1 = 1;
    return r;
}

MOE_EP_API moe_ep_router moe_ep_router_megatron_groups(int32_t E, int32_t K, int32_t n_group,
                                                       int32_t topk_group)
{
    return moe_epi_router_grouped(moe_ep_router_megatron_sigmoid(E, K), n_group, topk_group,
                                  topk_group > 0 ? K / topk_group : 0);
}

MOE_EP_API moe_ep_router moe_ep_router_llama_cpp_sigmoid(int32_t E, int32_t K)
{
    return moe_epi_router_sigmoid(E, K, MOE_EP_EPS_CLAMP, 6.103515625e-5f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_base(int32_t E, int32_t K)
{
    return moe_epi_router_of_logits(E, K, MOE_EP_WEIGHT_SIGMOID_OF_LOGIT);
}

MOE_EP_API moe_ep_router moe_ep_router_llama_cpp(int32_t E, int32_t K)
{
    return moe_epi_router_normed(moe_epi_router_softmax(E, K), MOE_EP_EPS_CLAMP, 6.103515625e-5f, 0.0f);
}

MOE_EP_API moe_ep_router moe_ep_router_sinkhorn(int32_t E, int32_t K)
{
    if (K == 1) return moe_epi_router(E, K, MOE_EP_SCORE_SIGMOID, MOE_EP_WEIGHT_SCORE);
    return moe_epi_router_softmax(E, K);
}

/* Presets whose third argument a name cannot carry. */
static moe_ep_router moe_epi_router_dbrx1(int32_t E, int32_t K) { return moe_ep_router_dbrx(E, K, 1.0f); }
static moe_ep_router moe_epi_router_longcat0(int32_t E, int32_t K) { return moe_ep_router_longcat(E, K, 0); }

/* name, function, source: the one list behind count, name, source and by_name */
#define MOE_EPI_ROUTERS(X)                                                                          \
    X("mixtral", moe_ep_router_mixtral, "transformers mixtral")                                     \
    X("qwen3", moe_ep_router_qwen3, "transformers qwen3_moe")                                       \
    X("qwen3_next", moe_ep_router_qwen3, "transformers qwen3_next")                                 \
    X("qwen2", moe_ep_router_qwen2, "transformers qwen2_moe")                                       \
    X("olmoe", moe_ep_router_olmoe, "transformers olmoe")                                           \
    X("jamba", moe_ep_router_jamba, "transformers jamba")                                           \
    X("dbrx", moe_epi_router_dbrx1, "transformers dbrx, p = 1")                                     \
    X("gpt_oss", moe_ep_router_gpt_oss, "transformers gpt_oss")                                     \
    X("granite", moe_ep_router_granite, "transformers granitemoe")                                  \
    X("llama4", moe_ep_router_llama4, "transformers llama4")                                        \
    X("phimoe", moe_ep_router_phimoe, "transformers phimoe")                                        \
    X("deepseek_v2", moe_ep_router_deepseek_v2, "transformers deepseek_v2")                         \
    X("deepseek_v2_lite", moe_ep_router_deepseek_v2_lite, "transformers deepseek_v2")               \
    X("deepseek_v2_hub", moe_ep_router_deepseek_v2_hub, "DeepSeek-V2 hub code")                     \
    X("deepseek_v2_vllm", moe_ep_router_deepseek_v2_vllm, "vLLM grouped_topk")                      \
    X("deepseek_v3", moe_ep_router_deepseek_v3, "DeepSeek-V3 inference/model.py")                   \
    X("deepseek_v3_hf", moe_ep_router_deepseek_v3_hf, "transformers deepseek_v3")                   \
    X("kimi_k2", moe_ep_router_kimi_k2, "Kimi-K2 configuration")                                    \
    X("glm45", moe_ep_router_glm45, "transformers glm4_moe")                                        \
    X("dots1", moe_ep_router_dots1, "transformers dots1")                                           \
    X("mimo_v2", moe_ep_router_mimo_v2, "transformers mimo_v2")                                     \
    X("exaone_moe", moe_ep_router_mimo_v2, "transformers exaone_moe")                               \
    X("solar_open", moe_ep_router_mimo_v2, "transformers solar_open")                               \
    X("nemotron_h", moe_ep_router_nemotron_h, "transformers nemotron_h")                            \
    X("minimax_m2", moe_ep_router_minimax_m2, "transformers minimax_m2")                            \
    X("lfm2", moe_ep_router_lfm2, "transformers lfm2_moe")                                          \
    X("step35", moe_ep_router_step35, "Step-3.5 hub code")                                          \
    X("ernie45", moe_ep_router_ernie45, "transformers ernie4_5_moe")                                \
    X("longcat", moe_epi_router_longcat0, "transformers longcat_flash, no null experts")            \
    X("deepseek_v4", moe_ep_router_deepseek_v4, "transformers deepseek_v4")                         \
    X("deepseek_v4_hash", moe_ep_router_deepseek_v4_hash, "transformers deepseek_v4 hash layers")   \
    X("grok1", moe_ep_router_grok1, "xai grok-1")                                                   \
    X("grok1_vllm", moe_ep_router_grok1_vllm, "vLLM grok1")                                         \
    X("gemma4", moe_ep_router_gemma4, "mlx-lm gemma4")                                              \
    X("hunyuan", moe_ep_router_hunyuan, "transformers hunyuan_v1_moe")                              \
    X("switch", moe_ep_router_switch, "Mesh TensorFlow, Switch Transformer")                        \
    X("hash", moe_ep_router_hash, "Roller et al. 2021, lingvo HashGating")                          \
    X("megatron_pre_softmax", moe_ep_router_megatron_pre_softmax, "Megatron-LM")                    \
    X("megatron_post_softmax", moe_ep_router_megatron_post_softmax, "Megatron-LM")                  \
    X("megatron_sigmoid", moe_ep_router_megatron_sigmoid, "Megatron-LM")                            \
    X("llama_cpp", moe_ep_router_llama_cpp, "llama.cpp build_moe_ffn")                              \
    X("llama_cpp_sigmoid", moe_ep_router_llama_cpp_sigmoid, "llama.cpp build_moe_ffn")              \
    X("base", moe_ep_router_base, "fairseq BASE layer, inference")                                  \
    X("megablocks", moe_epi_router_dbrx1, "MegaBlocks LearnedRouter, p = 1")                        \
    X("sinkhorn", moe_ep_router_sinkhorn, "Megatron-LM sinkhorn_load_balancing")

MOE_EP_API int32_t moe_ep_router_count(void)
{
    int32_t n = 0;
#define MOE_EPI_COUNT(name, make, source) n++;
    MOE_EPI_ROUTERS(MOE_EPI_COUNT)
#undef MOE_EPI_COUNT
    return n;
}

MOE_EP_API const char *moe_ep_router_name(int32_t i)
{
    const char *found = NULL;
    int32_t n = 0;
#define MOE_EPI_NAME(name, make, source)                                                            \
    if (n++ == i) found = name;
    MOE_EPI_ROUTERS(MOE_EPI_NAME)
#undef MOE_EPI_NAME
    return found;
}

MOE_EP_API const char *moe_ep_router_source(int32_t i)
{
    const char *found = NULL;
    int32_t n = 0;
#define MOE_EPI_SOURCE(name, make, source)                                                          \
    if (n++ == i) found = source;
    MOE_EPI_ROUTERS(MOE_EPI_SOURCE)
#undef MOE_EPI_SOURCE
    return found;
}

static int moe_epi_name_skips(char c) { return c == '-' || c == '_' || c == '.' || c == ' '; }
static int moe_epi_name_lower(char c) { return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c; }

static int moe_epi_same_name(const char *a, const char *b)
{
    for (;;) {
        while (moe_epi_name_skips(*a)) a++;
        while (moe_epi_name_skips(*b)) b++;
        if (moe_epi_name_lower(*a) != moe_epi_name_lower(*b)) return 0;
        if (*a == '\0') return 1;
        a++;
        b++;
    }
}

MOE_EP_API moe_ep_status moe_ep_router_by_name(const char *name, int32_t E, int32_t K,
                                               moe_ep_router *cfg, moe_ep_error *err)
{
    int found = 0;
    moe_ep_router r;
    moe_epi_ok(err);
    if (!name) return moe_epi_null(err, "name");
    if (!cfg) return moe_epi_null(err, "cfg");
    memset(&r, 0, sizeof r);
#define MOE_EPI_BY_NAME(text, make, source)                                                         \
    if (moe_epi_same_name(name, text)) { r = make(E, K); found = 1; }
    MOE_EPI_ROUTERS(MOE_EPI_BY_NAME)
#undef MOE_EPI_BY_NAME
    if (!found)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "name", "no router has this name; see moe_ep_router_name", -1, 0.0);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if (K > E) return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "K", "must not exceed E", -1, (double)K);
    *cfg = r;
    return MOE_EP_OK;
}
#undef MOE_EPI_ROUTERS

/* ---- whole-batch routers ------------------------------------------------------------------------------ */

/* Is token a a better candidate of expert e than token b?  Larger score, then lower token. */
static int moe_epi_choice_better(const float *scores, int64_t E, int64_t e, int32_t a, int32_t b)
{
    float x = scores[a * E + e], y = scores[b * E + e];
    if (x > y) return 1;
    if (x < y) return 0;
    return a < b;
}

/* Restores the heap (worst token at the root) below `at`. */
static void moe_epi_choice_sift(const float *scores, int64_t E, int64_t e, int32_t *heap, int64_t n, int64_t at)
{
    int64_t child;
    int32_t moved = heap[at];
    while ((child = 2 * at + 1) < n) {
        if (child + 1 < n && moe_epi_choice_better(scores, E, e, heap[child], heap[child + 1])) child++;
        if (!moe_epi_choice_better(scores, E, e, moved, heap[child])) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/* The C best tokens of expert e, best first, found and sorted inside the output itself. */
static void moe_epi_choice_of_expert(const float *scores, int64_t T, int64_t E, int64_t e, int64_t C,
                                     int32_t *heap)
{
    int64_t i;
    for (i = 0; i < C; i++) heap[i] = (int32_t)i;
    for (i = C / 2 - 1; i >= 0; i--) moe_epi_choice_sift(scores, E, e, heap, C, i);
    for (i = C; i < T; i++) {
        if (!moe_epi_choice_better(scores, E, e, (int32_t)i, heap[0])) continue;
        heap[0] = (int32_t)i;
        moe_epi_choice_sift(scores, E, e, heap, C, 0);
    }
    for (i = C - 1; i > 0; i--) {
        int32_t worst = heap[0];
        heap[0] = heap[i];
        heap[i] = worst;
        moe_epi_choice_sift(scores, E, e, heap, i, 0);
    }
}

/* Shared checks of functions over a dense (T,E) array; T = 0 is an error unless allowed. */
static moe_ep_status moe_epi_check_dense(const float *v, int64_t T, int32_t E, const char *arg,
                                         moe_ep_error *err)
{
    moe_ep_status s;
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (T < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "must be at least 1", -1, (double)T);
    if ((s = moe_epi_check_tokens(T, E, E, err)) != MOE_EP_OK) return s;
    return v ? MOE_EP_OK : moe_epi_null(err, arg);
}

static moe_ep_status moe_epi_check_finite(const float *v, int64_t T, int32_t E, const char *arg,
                                          moe_ep_error *err)
{
    moe_ep_status s = moe_epi_check_dense(v, T, E, arg, err);
    return s != MOE_EP_OK ? s : moe_epi_check_floats(v, T * E, arg, err);
}

MOE_EP_API moe_ep_status moe_ep_expert_choice(const float *scores, int64_t T, int32_t E, int64_t C,
                                              int32_t *tokens, float *weights, int64_t *experts_per_token,
                                              moe_ep_error *err)
{
    moe_ep_status s;
    int64_t e, i, total;
    moe_epi_ok(err);
    if ((s = moe_epi_check_finite(scores, T, E, "scores", err)) != MOE_EP_OK) return s;
    if (!tokens) return moe_epi_null(err, "tokens");
    if (T > INT32_MAX)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "T", "token numbers must fit int32_t", -1, (double)T);
    if (C < 1 || C > T) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "C", "must be 1..T", -1, (double)C);
    total = C * E;
    for (e = 0; e < E; e++) moe_epi_choice_of_expert(scores, T, E, e, C, tokens + e * C);
    for (i = 0; weights && i < total; i++) weights[i] = scores[tokens[i] * (int64_t)E + i / C];
    if (experts_per_token) {
        memset(experts_per_token, 0, sizeof *experts_per_token * (size_t)T);
        for (i = 0; i < total; i++) experts_per_token[tokens[i]]++;
    }
    return MOE_EP_OK;
}

static moe_ep_top2 moe_epi_top2(int32_t E)
{
    moe_ep_top2 c;
    memset(&c, 0, sizeof c);
    c.num_experts = E;
    return c;
}

MOE_EP_API moe_ep_top2 moe_ep_top2_gshard(int32_t E)
{
    moe_ep_top2 c = moe_ep_top2_gshard_new(E);
    c.renorm = 1;
    c.eps_mode = MOE_EP_EPS_ADD;
    c.eps = 1e-9f;
    return c;
}

MOE_EP_API moe_ep_top2 moe_ep_top2_gshard_new(int32_t E)
{
    moe_ep_top2 c = moe_epi_top2(E);
    c.second = MOE_EP_SECOND_RANDOM;
    c.threshold = 0.2f;
    return c;
}

MOE_EP_API moe_ep_top2 moe_ep_top2_deepspeed(int32_t E)
{
    moe_ep_top2 c = moe_epi_top2(E);
    c.sample_second = 1;
    return c;
}

MOE_EP_API moe_ep_top2 moe_ep_top2_nllb(int32_t E) { return moe_epi_top2(E); }

/* Uniform in (0,1): safe under a logarithm. */
static double moe_epi_open_uniform(moe_ep_rng *rng)
{
    return ((double)(moe_ep_rng_u64(rng) >> 11) + 0.5) * (1.0 / 9007199254740992.0);
}

static moe_ep_status moe_epi_top2_check(const moe_ep_top2 *c, const float *logits, int64_t T,
                                        const moe_ep_rng *rng, const int32_t *ids, moe_ep_router *r,
                                        moe_ep_error *err)
{
    moe_ep_status s;
    moe_epi_ok(err);
    if (!c) return moe_epi_null(err, "cfg");
    memset(r, 0, sizeof *r);
    r->num_experts = c->num_experts;
    r->top_k = 2;
    r->score = MOE_EP_SCORE_SOFTMAX;
    r->eps_mode = c->eps_mode;
    r->eps = c->eps;
    r->logits_stride = c->logits_stride;
    if ((s = moe_ep_router_check(r, err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_enum((int)c->second, 3, "second", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_option(c->threshold, "threshold", err)) != MOE_EP_OK) return s;
    if (r->logits_stride == 0) r->logits_stride = r->num_experts;
    if ((s = moe_epi_check_tokens(T, r->num_experts, r->logits_stride, err)) != MOE_EP_OK || T == 0) return s;
    if (!logits) return moe_epi_null(err, "logits");
    if (!ids) return moe_epi_null(err, "ids");
    if (!rng && (c->sample_second || c->second == MOE_EP_SECOND_RANDOM))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "rng", "the policy needs a generator", -1, 0.0);
    return moe_epi_route_check_rows(logits, T, r->num_experts, r->logits_stride, "logits", err);
}

/* argmax of the token's logits (plus Gumbel noise when rng is given) without expert `not_this`. */
static int32_t moe_epi_top2_argmax(const moe_epi_token *t, int32_t not_this, moe_ep_rng *rng)
{
    int32_t e, best = -1;
    double best_value = 0.0, value;
    for (e = 0; e < t->r->num_experts; e++) {
        double noise = rng ? -log(-log(moe_epi_open_uniform(rng))) : 0.0;
        if (e == not_this) continue;
        value = (double)moe_epi_route_logit(t->r, t->logits[e], e) + noise;
        if (best >= 0 && !(value > best_value)) continue;
        best = e;
        best_value = value;
    }
    return best;
}

static int moe_epi_top2_uses_second(const moe_ep_top2 *c, float g2, moe_ep_rng *rng)
{
    double floor_at;
    if (c->second == MOE_EP_SECOND_ALL) return 1;
    if (c->second == MOE_EP_SECOND_NONE) return 0;
    if (c->second == MOE_EP_SECOND_THRESHOLD) return g2 > c->threshold;
    floor_at = (double)c->threshold > 1e-9 ? (double)c->threshold : 1e-9;
    return moe_ep_rng_f64(rng) < (double)g2 / floor_at;
}

MOE_EP_API moe_ep_status moe_ep_route_top2(const moe_ep_top2 *cfg, const float *logits, int64_t T,
                                           moe_ep_rng *rng, int32_t *ids, float *weights,
                                           moe_ep_error *err)
{
    moe_epi_token token;
    moe_ep_router r;
    moe_ep_status s = moe_epi_top2_check(cfg, logits, T, rng, ids, &r, err);
    int64_t t;
    if (s != MOE_EP_OK || T == 0) return s;
    token.r = &r;
    token.keys = NULL;
    for (t = 0; t < T; t++) {
        float g[2];
        int32_t *id = ids + 2 * t;
        token.logits = logits + t * r.logits_stride;
        token.x_at = token.key_at = token.exp_at = -1;
        moe_epi_route_softmax(&token);
        id[0] = moe_epi_top2_argmax(&token, -1, NULL);
        id[1] = moe_epi_top2_argmax(&token, id[0], cfg->sample_second ? rng : NULL);
        moe_epi_route_weights(&token, id, g);
        if (cfg->renorm)
            moe_epi_divide(g, 2, moe_epi_with_eps((double)g[0] + (double)g[1], cfg->eps_mode, cfg->eps));
        if (!moe_epi_top2_uses_second(cfg, g[1], rng)) {
            id[1] = -1;
            g[1] = 0.0f;
        }
        if (weights) memcpy(weights + 2 * t, g, sizeof g);
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_route_sample(const float *logits, int64_t T, int32_t E, moe_ep_rng *rng,
                                             int32_t *ids, float *weights, moe_ep_error *err)
{
    moe_epi_token token;
    moe_ep_router r = moe_epi_router_softmax(E, 1);
    moe_ep_status s;
    int64_t t;
    moe_epi_ok(err);
    if ((s = moe_epi_check_dense(logits, T, E, "logits", err)) != MOE_EP_OK) return s;
    if (!rng) return moe_epi_null(err, "rng");
    if (!ids) return moe_epi_null(err, "ids");
    if ((s = moe_epi_route_check_rows(logits, T, E, E, "logits", err)) != MOE_EP_OK) return s;
    token.r = &r;
    token.keys = NULL;
    for (t = 0; t < T; t++) {
        double left;
        int32_t e, drawn = 0;
        token.logits = logits + t * E;
        token.x_at = token.key_at = token.exp_at = -1;
        moe_epi_route_softmax(&token);
        left = moe_ep_rng_f64(rng) * (double)token.sum;
        for (e = 0; e < E; e++) {
            float x = moe_epi_route_logit(&r, token.logits[e], e);
            if (!(x > MOE_EPI_LOWEST)) continue;
            drawn = e; /* the last one stands when rounding leaves a crumb */
            left -= (double)moe_epi_exp(x - token.max);
            if (left < 0.0) break;
        }
        ids[t] = drawn;
        if (weights) moe_epi_route_weights(&token, ids + t, weights + t);
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_jitter(float *x, int64_t n, float eps, moe_ep_rng *rng, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t i;
    moe_epi_ok(err);
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must not be negative", -1, (double)n);
    if ((s = moe_epi_check_option(eps, "eps", err)) != MOE_EP_OK) return s;
    if (eps > 1.0f) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "eps", "must be 0..1", -1, (double)eps);
    if (n == 0) return MOE_EP_OK;
    if (!x) return moe_epi_null(err, "x");
    if (!rng) return moe_epi_null(err, "rng");
    for (i = 0; i < n; i++)
        x[i] *= (float)(1.0 + (double)eps * (2.0 * moe_ep_rng_f64(rng) - 1.0));
    return MOE_EP_OK;
}

/* ---- Sinkhorn ----------------------------------------------------------------------------------------- */

/* One round: row factors from column factors, then column factors from row factors.  Returns the mean
 * change of the column factors.  eps 1e-8 keeps empty rows and columns finite. */
static double moe_epi_sinkhorn_round(const float *cost, int64_t T, int64_t E, double *row, double *col,
                                     double *next)
{
    double sum, change = 0.0;
    int64_t t, e;
    for (e = 0; e < E; e++) next[e] = 0.0;
    for (t = 0; t < T; t++) {
        sum = 0.0;
        for (e = 0; e < E; e++) sum += col[e] * (double)cost[t * E + e];
        row[t] = 1.0 / (double)T / (sum + 1e-8);
        for (e = 0; e < E; e++) next[e] += row[t] * (double)cost[t * E + e];
    }
    for (e = 0; e < E; e++) {
        next[e] = 1.0 / (double)E / (next[e] + 1e-8);
        change += fabs(next[e] - col[e]);
        col[e] = next[e];
    }
    return change / (double)E;
}

static moe_ep_status moe_epi_sinkhorn_check(const float *logits, int64_t T, int32_t E, double tol,
                                            int32_t max_rounds, const float *scores, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t i;
    if ((s = moe_epi_check_dense(logits, T, E, "logits", err)) != MOE_EP_OK) return s;
    if (!scores) return moe_epi_null(err, "scores");
    if (!moe_epi_finite(tol)) return moe_epi_fail(err, MOE_EP_ERR_NAN, "tol", "must be finite", -1, tol);
    if (tol < 0.0) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "tol", "must not be negative", -1, tol);
    if (max_rounds < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "max_rounds", "must not be negative", -1, (double)max_rounds);
    if ((s = moe_epi_route_check_rows(logits, T, E, E, "logits", err)) != MOE_EP_OK) return s;
    for (i = 0; i < T * E; i++)
        if (logits[i] > 88.0f)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "logits", "exp would overflow above 88", i,
                                (double)logits[i]);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_sinkhorn(const float *logits, int64_t T, int32_t E, double tol,
                                         int32_t max_rounds, float *scores, int32_t *rounds,
                                         moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_status s;
    size_t need = 0;
    float *cost;
    double *row, *col, *next, stop = tol > 0.0 ? tol : 1e-4;
    int32_t n, most = max_rounds > 0 ? max_rounds : 10000;
    int64_t i;
    int settled = 0;
    moe_epi_ok(err);
    if ((s = moe_epi_sinkhorn_check(logits, T, E, tol, max_rounds, scores, err)) != MOE_EP_OK) return s;
    moe_epi_need(&need, T * E, sizeof *cost);
    moe_epi_need(&need, T, sizeof *row);
    moe_epi_need(&need, E, sizeof *col);
    moe_epi_need(&need, E, sizeof *next);
    if ((s = moe_epi_arena_open(&arena, scratch, need, err)) != MOE_EP_OK) return s;
    cost = (float *)moe_epi_take(&arena, T * E, sizeof *cost);
    row = (double *)moe_epi_take(&arena, T, sizeof *row);
    col = (double *)moe_epi_take(&arena, E, sizeof *col);
    next = (double *)moe_epi_take(&arena, E, sizeof *next);
    for (i = 0; i < T * E; i++) cost[i] = moe_epi_float_kind(logits[i]) ? 0.0f : expf(logits[i]);
    for (i = 0; i < E; i++) col[i] = 1.0;
    for (n = 0; n < most && !settled; n++) settled = moe_epi_sinkhorn_round(cost, T, E, row, col, next) <= stop;
    if (settled) {
        for (i = 0; i < T * E; i++) scores[i] = (float)(col[i % E] * (double)cost[i] * row[i / E]);
        if (rounds) *rounds = n;
    } else {
        s = moe_epi_fail(err, MOE_EP_ERR_INFEASIBLE, "max_rounds", "not converged after this many", -1,
                         (double)most);
    }
    moe_epi_arena_close(&arena);
    return s;
}

/* ---- balanced assignment by auction ------------------------------------------------------------------- */

/* A place at an expert: what its holder paid, and the holder (-1 = free, price 0).  The places of expert e
 * are a heap with the cheapest at the root. */
typedef struct moe_epi_place_held {
    double price;
    int64_t token;
} moe_epi_place_held;

typedef struct moe_epi_auction {
    const float *scores;
    int64_t T, E, places; /* places of one expert                                                         */
    double max, eps;      /* largest score, smallest raise of a bid                                       */
    moe_epi_place_held *held; /* (E,places)                                                               */
    int64_t *waiting;     /* (T) stack of tokens without a place                                          */
} moe_epi_auction;

static void moe_epi_auction_sift(moe_epi_place_held *heap, int64_t n)
{
    int64_t at = 0, child;
    moe_epi_place_held moved = heap[0];
    while ((child = 2 * at + 1) < n) {
        if (child + 1 < n && heap[child + 1].price < heap[child].price) child++;
        if (!(heap[child].price < moved.price)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/* Price of the second cheapest place of an expert, who has more than one. */
static double moe_epi_auction_second(const moe_epi_place_held *heap, int64_t n)
{
    return n > 2 && heap[2].price < heap[1].price ? heap[2].price : heap[1].price;
}

/* Token t takes its best place, raising the price to what makes its second best place as good, plus eps.
 * Returns the token that had the place, -1 = it was free. */
static int64_t moe_epi_auction_bid(moe_epi_auction *a, int64_t t)
{
    const double none = -1e300;
    double best = none, second = none, worth, value;
    int64_t e, chosen = 0, evicted;
    moe_epi_place_held *taken;
    for (e = 0; e < a->E; e++) {
        const moe_epi_place_held *heap = a->held + e * a->places;
        worth = (double)a->scores[t * a->E + e] - a->max; /* small numbers: prices must not drown in them */
        value = worth - heap[0].price;
        if (value > best) {
            second = best;
            best = value;
            chosen = e;
        } else if (value > second) {
            second = value;
        }
        value = a->places > 1 ? worth - moe_epi_auction_second(heap, a->places) : none;
        second = value > second ? value : second;
    }
    taken = a->held + chosen * a->places;
    evicted = taken->token;
    taken->price += (second > none ? best - second : 0.0) + a->eps;
    taken->token = t;
    moe_epi_auction_sift(taken, a->places);
    return evicted;
}

static void moe_epi_auction_run(moe_epi_auction *a)
{
    double min = (double)a->scores[0], v;
    int64_t i, n = a->T, evicted;
    a->max = min;
    for (i = 0; i < a->T * a->E; i++) {
        v = (double)a->scores[i];
        a->max = v > a->max ? v : a->max;
        min = v < min ? v : min;
    }
    a->eps = (a->max - min) / 50.0;
    if (a->eps < 1e-4) a->eps = 1e-4;
    for (i = 0; i < a->T; i++) {
        a->held[i].price = 0.0;
        a->held[i].token = -1;
        a->waiting[i] = a->T - 1 - i; /* token 0 on top */
    }
    while (n > 0) {
        evicted = moe_epi_auction_bid(a, a->waiting[n - 1]);
        if (evicted < 0) n--;
        else a->waiting[n - 1] = evicted;
    }
}

MOE_EP_API moe_ep_status moe_ep_auction(const float *scores, int64_t T, int32_t E,
                                        int32_t *expert_of_token, moe_ep_scratch *scratch,
                                        moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_epi_auction a;
    moe_ep_status s;
    size_t need = 0;
    int64_t i;
    moe_epi_ok(err);
    if ((s = moe_epi_check_finite(scores, T, E, "scores", err)) != MOE_EP_OK) return s;
    if (!expert_of_token) return moe_epi_null(err, "expert_of_token");
    if (T % E != 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "must be a multiple of E", -1, (double)T);
    memset(&a, 0, sizeof a);
    a.scores = scores;
    a.T = T;
    a.E = E;
    a.places = T / E;
    moe_epi_need(&need, T, sizeof *a.held);
    moe_epi_need(&need, T, sizeof *a.waiting);
    if ((s = moe_epi_arena_open(&arena, scratch, need, err)) != MOE_EP_OK) return s;
    a.held = (moe_epi_place_held *)moe_epi_take(&arena, T, sizeof *a.held);
    a.waiting = (int64_t *)moe_epi_take(&arena, T, sizeof *a.waiting);
    moe_epi_auction_run(&a);
    for (i = 0; i < T; i++) expert_of_token[a.held[i].token] = (int32_t)(i / a.places);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- quantile balancing and bias ---------------------------------------------------------------------- */

/* The value that would stand at index `rank` (0 = largest) of v sorted in descending order; reorders v. */
static float moe_epi_nth_largest(float *v, int64_t n, int64_t rank)
{
    int64_t lo = 0, hi = n - 1, i, j;
    while (lo < hi) { /* Hoare's selection */
        float pivot = v[lo + (hi - lo) / 2];
        i = lo;
        j = hi;
        while (i <= j) {
            while (v[i] > pivot) i++;
            while (v[j] < pivot) j--;
            if (i <= j) {
                float moved = v[i];
                v[i++] = v[j];
                v[j--] = moved;
            }
        }
        if (rank <= j) hi = j;
        else if (rank >= i) lo = i;
        else break;
    }
    return v[rank];
}

MOE_EP_API moe_ep_status moe_ep_quantile_update(const float *scores, int64_t T, int32_t E, int32_t K,
                                                float *beta, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_status s;
    size_t need = 0;
    float *alpha, *work;
    int64_t t, e, n, share;
    moe_epi_ok(err);
    if ((s = moe_epi_check_finite(scores, T, E, "scores", err)) != MOE_EP_OK) return s;
    if (!beta) return moe_epi_null(err, "beta");
    if ((s = moe_epi_check_floats(beta, E, "beta", err)) != MOE_EP_OK) return s;
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if (K >= E) return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "K", "must be less than E", -1, (double)K);
    if ((T * K) % E != 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "T*K must be a multiple of E", -1, (double)T);
    n = T > E ? T : E;
    moe_epi_need(&need, T, sizeof *alpha);
    moe_epi_need(&need, n, sizeof *work);
    if ((s = moe_epi_arena_open(&arena, scratch, need, err)) != MOE_EP_OK) return s;
    alpha = (float *)moe_epi_take(&arena, T, sizeof *alpha);
    work = (float *)moe_epi_take(&arena, n, sizeof *work);
    share = T * K / E;
    for (t = 0; t < T; t++) { /* what an expert must beat to be among the token's K best */
        for (e = 0; e < E; e++) work[e] = scores[t * E + e] - beta[e];
        alpha[t] = moe_epi_nth_largest(work, E, K);
    }
    for (e = 0; e < E; e++) {
        for (t = 0; t < T; t++) work[t] = scores[t * E + e] - alpha[t];
        beta[e] = moe_epi_nth_largest(work, T, share);
    }
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* Sum of n loads that must not be negative. */
static moe_ep_status moe_epi_sum_loads(const int64_t *loads, int64_t n, const char *arg, int64_t *sum,
                                       moe_ep_error *err)
{
    int64_t i, total = 0;
    for (i = 0; i < n; i++) {
        if (loads[i] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "must not be negative", i, (double)loads[i]);
        if (loads[i] > INT64_MAX - total)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg, "their sum does not fit", i, (double)loads[i]);
        total += loads[i];
    }
    *sum = total;
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_bias_update(const int64_t *loads, int32_t E, float rate, int32_t centred,
                                            float *bias, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t e, sum, scaled, signs = 0;
    float mean;
    moe_epi_ok(err);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (!loads) return moe_epi_null(err, "loads");
    if (!bias) return moe_epi_null(err, "bias");
    if ((s = moe_epi_check_floats(&rate, 1, "rate", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_floats(bias, E, "bias", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_sum_loads(loads, E, "loads", &sum, err)) != MOE_EP_OK) return s;
    for (e = 0; e < E; e++) {
        if (!moe_epi_mul(loads[e], E, &scaled))
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "loads", "times E does not fit", e, (double)loads[e]);
        signs += (sum > scaled) - (sum < scaled);
    }
    mean = centred ? rate * ((float)signs / (float)E) : 0.0f;
    for (e = 0; e < E; e++) { /* sign(mean - load) without a division */
        scaled = loads[e] * E;
        bias[e] += rate * (float)((sum > scaled) - (sum < scaled)) - mean;
    }
    return MOE_EP_OK;
}

/* ---- auxiliary losses --------------------------------------------------------------------------------- */

/* A loss is a double whose negative values are a status. */
static double moe_epi_loss_status(moe_ep_status s) { return (double)(int)s; }

static moe_ep_status moe_epi_aux_check_ids(const moe_ep_aux_desc *d, moe_ep_error *err)
{
    int64_t i, n;
    if (!moe_epi_mul(d->num_tokens, d->top_k, &n))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_tokens", "T*K does not fit", -1, (double)d->num_tokens);
    if (!d->ids) return d->kind == MOE_EP_AUX_GLOBAL ? MOE_EP_OK : moe_epi_null(err, "ids");
    for (i = 0; i < n; i++)
        if (d->ids[i] < -1 || d->ids[i] >= d->num_experts)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "ids", "must be -1 or 0..E-1", i, (double)d->ids[i]);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_aux_check_devices(const moe_ep_aux_desc *d, moe_ep_error *err)
{
    int64_t e;
    if (d->num_devices < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_devices", "must be at least 1", -1, (double)d->num_devices);
    if (!d->device_of_expert) return moe_epi_null(err, "device_of_expert");
    for (e = 0; e < d->num_experts; e++)
        if (d->device_of_expert[e] < 0 || d->device_of_expert[e] >= d->num_devices)
            return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, "device_of_expert", "must be 0..num_devices-1", e,
                                (double)d->device_of_expert[e]);
    if (d->devices_per_token < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "devices_per_token", "must not be negative", -1,
                            (double)d->devices_per_token);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_aux_check(const moe_ep_aux_desc *d, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t sum;
    if (!d) return moe_epi_null(err, "desc");
    if ((s = moe_epi_check_enum((int)d->kind, 7, "kind", err)) != MOE_EP_OK) return s;
    if (d->top_k < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "top_k", "must be at least 1", -1, (double)d->top_k);
    if ((s = moe_epi_check_finite(d->scores, d->num_tokens, d->num_experts, "scores", err)) != MOE_EP_OK) return s;
    if (!moe_epi_finite(d->coefficient))
        return moe_epi_fail(err, MOE_EP_ERR_NAN, "coefficient", "must be finite", -1, d->coefficient);
    if ((s = moe_epi_aux_check_ids(d, err)) != MOE_EP_OK) return s;
    if (d->kind == MOE_EP_AUX_SEQUENCE &&
        (d->num_sequences < 0 || (d->num_sequences > 0 && d->num_tokens % d->num_sequences != 0)))
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_sequences", "must divide num_tokens", -1,
                            (double)d->num_sequences);
    if (d->kind == MOE_EP_AUX_GLOBAL) {
        if (!d->global_loads) return moe_epi_null(err, "global_loads");
        return moe_epi_sum_loads(d->global_loads, d->num_experts, "global_loads", &sum, err);
    }
    if (d->kind == MOE_EP_AUX_DEVICE || d->kind == MOE_EP_AUX_COMMUNICATION)
        return moe_epi_aux_check_devices(d, err);
    return MOE_EP_OK;
}

/* Adds token t's scores to prob (E). */
static void moe_epi_aux_add_scores(const moe_ep_aux_desc *d, int64_t t, double *prob)
{
    const float *row = d->scores + t * d->num_experts;
    double sum = 0.0, factor = 1.0;
    int32_t e;
    if (d->normalize_scores) {
        for (e = 0; e < d->num_experts; e++) sum += (double)row[e];
        factor = sum > 0.0 || sum < 0.0 ? 1.0 / sum : 0.0;
    }
    for (e = 0; e < d->num_experts; e++) prob[e] += (double)row[e] * factor;
}

/* Adds token t's choices to count: of experts, or of devices for COMMUNICATION, as the kind counts. */
static void moe_epi_aux_add_choices(const moe_ep_aux_desc *d, int64_t t, double *count)
{
    const int32_t *id = d->ids + t * d->top_k;
    int32_t j, i, K = d->kind == MOE_EP_AUX_FIRST_CHOICE ? 1 : d->top_k, at, other;
    int once = d->kind == MOE_EP_AUX_ANY_CHOICE || d->kind == MOE_EP_AUX_COMMUNICATION, seen;
    for (j = 0; j < K; j++) {
        if (id[j] < 0) continue;
        at = d->kind == MOE_EP_AUX_COMMUNICATION ? d->device_of_expert[id[j]] : id[j];
        seen = 0;
        for (i = 0; once && i < j; i++) {
            if (id[i] < 0) continue;
            other = d->kind == MOE_EP_AUX_COMMUNICATION ? d->device_of_expert[id[i]] : id[i];
            seen |= other == at;
        }
        if (!seen) count[at] += 1.0;
    }
}

/* E * sum over experts of mean score times count / basis, over `tokens` tokens. */
static double moe_epi_aux_dot(const moe_ep_aux_desc *d, const double *prob, const double *count,
                              double tokens, double basis)
{
    double total = 0.0;
    int32_t e;
    for (e = 0; e < d->num_experts; e++) total += prob[e] / tokens * (count[e] / basis);
    return total * (double)d->num_experts;
}

static double moe_epi_aux_sequences(const moe_ep_aux_desc *d, double *prob, double *count)
{
    int64_t n = d->num_sequences > 0 ? d->num_sequences : 1, length = d->num_tokens / n, q, i, t;
    double total = 0.0;
    for (q = 0; q < n; q++) {
        memset(prob, 0, sizeof *prob * (size_t)d->num_experts);
        memset(count, 0, sizeof *count * (size_t)d->num_experts);
        for (i = 0; i < length; i++) {
            t = d->interleaved ? i * n + q : q * length + i;
            moe_epi_aux_add_scores(d, t, prob);
            moe_epi_aux_add_choices(d, t, count);
        }
        total += moe_epi_aux_dot(d, prob, count, (double)length, (double)length * (double)d->top_k);
    }
    return total / (double)n;
}

/* DeepSeek-V2 device and communication losses; device (3,D): sum of P, sum of f or tokens, experts. */
static double moe_epi_aux_devices(const moe_ep_aux_desc *d, const double *prob, const double *count,
                                  double *device)
{
    int32_t e, q, D = d->num_devices, M = d->devices_per_token;
    double *p = device, *f = device + D, *n = device + 2 * (int64_t)D, T = (double)d->num_tokens, total = 0.0;
    memset(device, 0, sizeof *device * 3u * (size_t)D);
    if (M == 0) M = d->top_k < D ? d->top_k : D;
    for (e = 0; e < d->num_experts; e++) {
        q = d->device_of_expert[e];
        p[q] += prob[e] / T;
        n[q] += 1.0;
        if (d->kind == MOE_EP_AUX_DEVICE)
            f[q] += (double)d->num_experts * count[e] / ((double)d->top_k * T);
    }
    for (q = 0; q < D; q++) {
        if (d->kind == MOE_EP_AUX_COMMUNICATION) total += (double)D / ((double)M * T) * count[q] * p[q];
        else if (n[q] > 0.0) total += f[q] / n[q] * p[q];
    }
    return total;
}

static double moe_epi_aux_value(const moe_ep_aux_desc *d, double *prob, double *count, double *device)
{
    double T = (double)d->num_tokens, basis = T;
    int64_t t, e;
    if (d->kind == MOE_EP_AUX_SEQUENCE) return moe_epi_aux_sequences(d, prob, count);
    for (t = 0; t < d->num_tokens; t++) {
        moe_epi_aux_add_scores(d, t, prob);
        if (d->kind != MOE_EP_AUX_GLOBAL) moe_epi_aux_add_choices(d, t, count);
    }
    if (d->kind == MOE_EP_AUX_DEVICE || d->kind == MOE_EP_AUX_COMMUNICATION)
        return moe_epi_aux_devices(d, prob, count, device);
    if (d->kind == MOE_EP_AUX_SWITCH) basis = T * (double)d->top_k;
    if (d->kind == MOE_EP_AUX_GLOBAL) {
        basis = 0.0;
        for (e = 0; e < d->num_experts; e++) {
            count[e] = (double)d->global_loads[e];
            basis += count[e];
        }
        if (!(basis > 0.0)) basis = 1.0; /* no load at all: loss 0 */
    }
    return moe_epi_aux_dot(d, prob, count, T, basis);
}

MOE_EP_API double moe_ep_aux_loss(const moe_ep_aux_desc *desc, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_status s;
    size_t need = 0;
    double *prob, *count, *device, value, factor;
    int64_t counts;
    moe_epi_ok(err);
    if ((s = moe_epi_aux_check(desc, err)) != MOE_EP_OK) return moe_epi_loss_status(s);
    counts = desc->num_devices > desc->num_experts ? desc->num_devices : desc->num_experts;
    moe_epi_need(&need, desc->num_experts, sizeof *prob);
    moe_epi_need(&need, counts, sizeof *count);
    moe_epi_need(&need, 3 * counts, sizeof *device);
    if ((s = moe_epi_arena_open(&arena, scratch, need, err)) != MOE_EP_OK) return moe_epi_loss_status(s);
    prob = (double *)moe_epi_take(&arena, desc->num_experts, sizeof *prob);
    count = (double *)moe_epi_take(&arena, counts, sizeof *count);
    device = (double *)moe_epi_take(&arena, 3 * counts, sizeof *device);
    memset(prob, 0, sizeof *prob * (size_t)desc->num_experts);
    memset(count, 0, sizeof *count * (size_t)counts);
    factor = desc->coefficient > 0.0 || desc->coefficient < 0.0 ? desc->coefficient : 1.0;
    value = factor * moe_epi_aux_value(desc, prob, count, device);
    moe_epi_arena_close(&arena);
    return value;
}

MOE_EP_API double moe_ep_z_loss(const float *logits, int64_t T, int32_t E, moe_ep_error *err)
{
    moe_ep_status s;
    double total = 0.0, sum, lse;
    int64_t t, e;
    moe_epi_ok(err);
    if ((s = moe_epi_check_dense(logits, T, E, "logits", err)) != MOE_EP_OK) return moe_epi_loss_status(s);
    if ((s = moe_epi_route_check_rows(logits, T, E, E, "logits", err)) != MOE_EP_OK) return moe_epi_loss_status(s);
    for (t = 0; t < T; t++) {
        const float *row = logits + t * E;
        float max = MOE_EPI_LOWEST;
        for (e = 0; e < E; e++)
            if (!moe_epi_float_kind(row[e]) && row[e] > max) max = row[e];
        sum = 0.0;
        for (e = 0; e < E; e++)
            if (!moe_epi_float_kind(row[e])) sum += exp((double)row[e] - (double)max);
        if (!(sum > 0.0))
            return moe_epi_loss_status(moe_epi_fail(err, MOE_EP_ERR_NAN, "logits",
                                                    "every expert of a token is masked (index is the token)", t, 0.0));
        lse = (double)max + log(sum);
        total += lse * lse;
    }
    return total / (double)T;
}

/* Sample variance over (mean^2 + 1e-10). */
static double moe_epi_cv2(const double *v, int64_t n)
{
    double mean = 0.0, var = 0.0;
    int64_t i;
    for (i = 0; i < n; i++) mean += v[i];
    mean /= (double)n;
    for (i = 0; i < n; i++) var += (v[i] - mean) * (v[i] - mean);
    return var / (double)(n - 1) / (mean * mean + 1e-10);
}

/* Phi of the standard normal distribution. */
static double moe_epi_normal_cdf(double z) { return 0.5 * erfc(-z * 0.70710678118654752440); }

/* thresholds NULL: sum of scores; otherwise of the chance that score + noise beats the token's threshold. */
static double moe_epi_cv2_loss(const float *scores, const float *thresholds, int64_t T, int32_t E, double sigma,
                               moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_status s;
    size_t need = 0;
    double *sum, value;
    int64_t i;
    moe_epi_need(&need, E, sizeof *sum);
    if ((s = moe_epi_arena_open(&arena, scratch, need, err)) != MOE_EP_OK) return moe_epi_loss_status(s);
    sum = (double *)moe_epi_take(&arena, E, sizeof *sum);
    memset(sum, 0, sizeof *sum * (size_t)E);
    for (i = 0; i < T * E; i++) {
        value = (double)scores[i];
        if (thresholds) value = moe_epi_normal_cdf((value - (double)thresholds[i / E]) / sigma);
        sum[i % E] += value;
    }
    value = moe_epi_cv2(sum, E);
    moe_epi_arena_close(&arena);
    return value;
}

static moe_ep_status moe_epi_cv2_check(const float *scores, int64_t T, int32_t E, moe_ep_error *err)
{
    moe_epi_ok(err);
    if (E < 2) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "a variance needs at least 2", -1, (double)E);
    return moe_epi_check_finite(scores, T, E, "scores", err);
}

MOE_EP_API double moe_ep_importance_loss(const float *scores, int64_t T, int32_t E,
                                         moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status s = moe_epi_cv2_check(scores, T, E, err);
    if (s != MOE_EP_OK) return moe_epi_loss_status(s);
    return moe_epi_cv2_loss(scores, NULL, T, E, 1.0, scratch, err);
}

MOE_EP_API double moe_ep_load_loss(const float *scores, const float *thresholds, int64_t T, int32_t E,
                                   double noise, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status s = moe_epi_cv2_check(scores, T, E, err);
    if (s != MOE_EP_OK) return moe_epi_loss_status(s);
    if (!thresholds) return moe_epi_loss_status(moe_epi_null(err, "thresholds"));
    if ((s = moe_epi_check_floats(thresholds, T, "thresholds", err)) != MOE_EP_OK) return moe_epi_loss_status(s);
    if (!moe_epi_finite(noise))
        return moe_epi_loss_status(moe_epi_fail(err, MOE_EP_ERR_NAN, "noise", "must be finite", -1, noise));
    if (!(noise > 0.0))
        return moe_epi_loss_status(moe_epi_fail(err, MOE_EP_ERR_RANGE, "noise", "must be positive", -1, noise));
    return moe_epi_cv2_loss(scores, thresholds, T, E, noise / (double)E, scratch, err);
}

MOE_EP_API double moe_ep_router_entropy(const float *scores, int64_t T, int32_t E, moe_ep_error *err)
{
    moe_ep_status s;
    double total = 0.0, p;
    int64_t i;
    moe_epi_ok(err);
    if ((s = moe_epi_check_finite(scores, T, E, "scores", err)) != MOE_EP_OK) return moe_epi_loss_status(s);
    for (i = 0; i < T * E; i++) {
        p = (double)scores[i];
        if (p < 0.0)
            return moe_epi_loss_status(
                moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "scores", "probabilities must not be negative", i, p));
        if (p > 0.0) total -= p * log(p);
    }
    return total > 0.0 ? total / (double)T : 0.0;
}

/* ---- shared experts, comparing weights ---------------------------------------------------------------- */

static moe_ep_status moe_epi_shared_check(const int32_t *ids, const float *weights, int64_t T, int32_t K,
                                          int32_t E, int32_t S, float value, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t i;
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (S < 0 || S > INT32_MAX - E || S > INT32_MAX - K)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "S", "must not be negative, and E+S must fit", -1, (double)S);
    if ((s = moe_epi_check_tokens(T, (int64_t)K + S, K, err)) != MOE_EP_OK || T == 0) return s;
    if (!ids) return moe_epi_null(err, "ids");
    if (!weights) return moe_epi_null(err, "weights");
    if ((s = moe_epi_check_floats(&value, 1, "value", err)) != MOE_EP_OK) return s;
    for (i = 0; i < T * K; i++)
        if (ids[i] < -1 || ids[i] >= E)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "ids", "must be -1 or 0..E-1", i, (double)ids[i]);
    return moe_epi_check_floats(weights, T * K, "weights", err);
}

MOE_EP_API moe_ep_status moe_ep_append_shared(const int32_t *ids, const float *weights, int64_t T,
                                              int32_t K, int32_t E, int32_t S, moe_ep_shared_weight kind,
                                              float value, int32_t *out_ids, float *out_weights,
                                              moe_ep_error *err)
{
    moe_ep_status s;
    int64_t t, j, width = (int64_t)K + S;
    moe_epi_ok(err);
    if ((s = moe_epi_shared_check(ids, weights, T, K, E, S, value, err)) != MOE_EP_OK || T == 0) return s;
    if ((s = moe_epi_check_enum((int)kind, 1, "kind", err)) != MOE_EP_OK) return s;
    if (!out_ids) return moe_epi_null(err, "out_ids");
    if (!out_weights) return moe_epi_null(err, "out_weights");
    if (kind == MOE_EP_SHARED_SUM_OVER_VALUE && !(value > 0.0f || value < 0.0f))
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "value", "must not be 0", -1, (double)value);
    for (t = 0; t < T; t++) {
        double sum = 0.0;
        int used = 0;
        for (j = 0; j < K; j++) {
            out_ids[t * width + j] = ids[t * K + j];
            out_weights[t * width + j] = weights[t * K + j];
            sum += (double)weights[t * K + j];
            used |= ids[t * K + j] >= 0;
        }
        for (j = 0; j < S; j++) {
            float w = kind == MOE_EP_SHARED_CONSTANT ? value : (float)(sum / (double)value);
            out_ids[t * width + K + j] = used ? E + (int32_t)j : -1;
            out_weights[t * width + K + j] = used ? w : 0.0f;
        }
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_weights_compare(const float *a, const float *b, int64_t T, int32_t K,
                                                moe_ep_weights_result *out, moe_ep_error *err)
{
    moe_ep_weights_result r;
    moe_ep_status s;
    int64_t t, i;
    moe_epi_ok(err);
    if ((s = moe_epi_check_finite(a, T, K, "a", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_finite(b, T, K, "b", err)) != MOE_EP_OK) return s;
    if (!out) return moe_epi_null(err, "out");
    memset(&r, 0, sizeof r);
    r.worst_sum_a = r.worst_sum_b = 1.0;
    for (t = 0; t < T; t++) {
        double sum_a = 0.0, sum_b = 0.0;
        for (i = t * K; i < (t + 1) * K; i++) {
            double x = (double)a[i], y = (double)b[i], off = fabs(x - y);
            sum_a += x;
            sum_b += y;
            r.mean_l1 += off;
            if (off > r.max_abs) {
                r.max_abs = off;
                r.max_abs_at = i;
            }
            if (fabs(y) > 0.0 && off / fabs(y) > r.max_rel) r.max_rel = off / fabs(y);
        }
        r.mean_sum_a += sum_a;
        r.mean_sum_b += sum_b;
        if (fabs(sum_a - 1.0) > fabs(r.worst_sum_a - 1.0)) r.worst_sum_a = sum_a;
        if (fabs(sum_b - 1.0) > fabs(r.worst_sum_b - 1.0)) r.worst_sum_b = sum_b;
    }
    r.mean_l1 /= (double)T;
    r.mean_sum_a /= (double)T;
    r.mean_sum_b /= (double)T;
    *out = r;
    return MOE_EP_OK;
}

#undef MOE_EPI_ROUTE_BLOCK
#undef MOE_EPI_ROUTE_LIST
#undef MOE_EPI_ROUTE_GROUPS
#undef MOE_EPI_LANES
#undef MOE_EPI_LOWEST

/* ==================================================================================================
 * 2 LOADS
 * ================================================================================================== */

/* Sub-histograms live on the stack up to this many experts: four of them break the dependence between
 * equal neighbours, which is what limits a single histogram on skewed routing. */
#define MOE_EPI_HIST_EXPERTS 4096
#define MOE_EPI_HIST_WAYS 4
#define MOE_EPI_HIST_BLOCK 4096 /* ids checked, then counted, while they are in the first-level cache */

/* Room of an id: -1 becomes 0, expert e becomes e+1, anything else is larger than E. */
static uint32_t moe_epi_ld_id_key(int32_t id) { return (uint32_t)id + 1u; }

/* Position of the first id that is neither -1 nor in 0..E-1; -1 when there is none. */
static int64_t moe_epi_ld_bad_id(const int32_t *ids, int64_t n, int32_t E)
{
    const uint32_t limit = (uint32_t)E;
    int64_t start, i, end;
    for (start = 0; start < n; start = end) {
        uint32_t outside = 0; /* top bit set by an id below -1 or above E-1, without a branch */
        end = n - start > MOE_EPI_HIST_BLOCK ? start + MOE_EPI_HIST_BLOCK : n;
        for (i = start; i + 4 <= end; i += 4) {
            const uint32_t a = moe_epi_ld_id_key(ids[i]), b = moe_epi_ld_id_key(ids[i + 1]);
            const uint32_t c = moe_epi_ld_id_key(ids[i + 2]), d = moe_epi_ld_id_key(ids[i + 3]);
            outside |= (a | (limit - a)) | (b | (limit - b)) | (c | (limit - c)) | (d | (limit - d));
        }
        for (; i < end; i++) outside |= moe_epi_ld_id_key(ids[i]) | (limit - moe_epi_ld_id_key(ids[i]));
        if (outside >> 31) {
            for (i = start; moe_epi_ld_id_key(ids[i]) <= limit; i++) {}
            return i;
        }
    }
    return -1;
}

static moe_ep_status moe_epi_ld_fail_id(moe_ep_error *err, const char *arg, int64_t index, int32_t id)
{
    return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, arg, "not an expert of this layer", index, (double)id);
}

/* Ids (n) with E experts are usable: sizes, pointers, values. */
static moe_ep_status moe_epi_ld_check_ids(const int32_t *ids, int64_t n, int32_t E, const char *arg,
                                          moe_ep_error *err)
{
    int64_t bad;
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must not be negative", -1, (double)n);
    if (n > 0 && !ids) return moe_epi_null(err, arg);
    bad = moe_epi_ld_bad_id(ids, n, E);
    if (bad >= 0) return moe_epi_ld_fail_id(err, arg, bad, ids[bad]);
    return MOE_EP_OK;
}

/* T*K tokens and choices: sizes and the product. */
static moe_ep_status moe_epi_ld_check_tk(int64_t T, int32_t K, int64_t *n, moe_ep_error *err)
{
    if (T < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "must not be negative", -1, (double)T);
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if (!moe_epi_mul(T, K, n))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "T", "T*K does not fit", -1, (double)T);
    return MOE_EP_OK;
}

/* An (E,E) matrix: its number of cells. */
static moe_ep_status moe_epi_ld_check_square(int32_t E, int64_t *cells, moe_ep_error *err)
{
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (!moe_epi_mul(E, E, cells) || (uint64_t)*cells > (uint64_t)(SIZE_MAX / sizeof(int64_t)))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "E", "E*E does not fit", -1, (double)E);
    return MOE_EP_OK;
}

/* Device ids (n) lie in 0..D-1. */
static moe_ep_status moe_epi_ld_check_devices(const int32_t *device, int64_t n, int32_t D, const char *arg,
                                           moe_ep_error *err)
{
    int64_t i;
    for (i = 0; i < n; i++)
        if (device[i] < 0 || device[i] >= D)
            return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, arg, "not a device of this shape", i, (double)device[i]);
    return MOE_EP_OK;
}

/* Adds checked ids to loads; returns the number of -1. */
static int64_t moe_epi_ld_tally(const int32_t *ids, int64_t n, int64_t *loads)
{
    int64_t i, skipped = 0;
    for (i = 0; i < n; i++) {
        if (ids[i] >= 0) loads[ids[i]]++;
        else skipped++;
    }
    return skipped;
}

/* One block into the sub-histograms h (MOE_EPI_HIST_WAYS, stride). */
static void moe_epi_ld_hist_block(const int32_t *ids, int64_t n, uint32_t *h, size_t stride)
{
    uint32_t *h1 = h + stride, *h2 = h1 + stride, *h3 = h2 + stride;
    int64_t i;
    for (i = 0; i + 4 <= n; i += 4) {
        h[moe_epi_ld_id_key(ids[i])]++;
        h1[moe_epi_ld_id_key(ids[i + 1])]++;
        h2[moe_epi_ld_id_key(ids[i + 2])]++;
        h3[moe_epi_ld_id_key(ids[i + 3])]++;
    }
    for (; i < n; i++) h[moe_epi_ld_id_key(ids[i])]++;
}

/* Counts in one pass over unchecked ids; loads is written only when all were good.
 * Each way counts at most n/4 + 3 ids, so n < 2^33 keeps 32-bit counters safe. */
static moe_ep_status moe_epi_ld_hist(const int32_t *ids, int64_t n, int32_t E, int64_t *loads, int64_t *skipped,
                                  const char *arg, moe_ep_error *err)
{
    uint32_t h[MOE_EPI_HIST_WAYS * (MOE_EPI_HIST_EXPERTS + 1)];
    const size_t stride = (size_t)E + 1u;
    int64_t start, bad, end;
    int32_t e;
    MOE_EP_ASSERT(E <= MOE_EPI_HIST_EXPERTS);
    MOE_EP_ASSERT(n < ((int64_t)1 << 33));
    memset(h, 0, MOE_EPI_HIST_WAYS * stride * sizeof h[0]);
    for (start = 0; start < n; start = end) {
        end = n - start > MOE_EPI_HIST_BLOCK ? start + MOE_EPI_HIST_BLOCK : n;
        bad = moe_epi_ld_bad_id(ids + start, end - start, E);
        if (bad >= 0) return moe_epi_ld_fail_id(err, arg, start + bad, ids[start + bad]);
        moe_epi_ld_hist_block(ids + start, end - start, h, stride);
    }
    *skipped = (int64_t)h[0] + h[stride] + h[2u * stride] + h[3u * stride];
    for (e = 0; e < E; e++) {
        size_t key = (size_t)e + 1u;
        loads[e] = (int64_t)h[key] + h[key + stride] + h[key + 2u * stride] + h[key + 3u * stride];
    }
    return MOE_EP_OK;
}

/* Checked arguments but unchecked ids -> loads (E) overwritten, *skipped. */
static moe_ep_status moe_epi_ld_count(const int32_t *ids, int64_t n, int32_t E, int64_t *loads, int64_t *skipped,
                                   const char *arg, moe_ep_error *err)
{
    int64_t bad;
    if (E <= MOE_EPI_HIST_EXPERTS && n >= 4 * (int64_t)E && n < ((int64_t)1 << 33))
        return moe_epi_ld_hist(ids, n, E, loads, skipped, arg, err);
    bad = moe_epi_ld_bad_id(ids, n, E);
    if (bad >= 0) return moe_epi_ld_fail_id(err, arg, bad, ids[bad]);
    memset(loads, 0, (size_t)E * sizeof *loads);
    *skipped = moe_epi_ld_tally(ids, n, loads);
    return MOE_EP_OK;
}

#undef MOE_EPI_HIST_EXPERTS
#undef MOE_EPI_HIST_WAYS
#undef MOE_EPI_HIST_BLOCK

MOE_EP_API moe_ep_status moe_ep_expert_loads(const int32_t *ids, int64_t n, int32_t E, int64_t *loads,
                                             int64_t *skipped, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t none = 0;
    moe_epi_ok(err);
    status = moe_epi_ld_check_ids(NULL, 0, E, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must not be negative", -1, (double)n);
    if (n > 0 && !ids) return moe_epi_null(err, "ids");
    if (!loads) return moe_epi_null(err, "loads");
    status = moe_epi_ld_count(ids, n, E, loads, &none, "ids", err);
    if (status == MOE_EP_OK && skipped) *skipped = none;
    return status;
}

MOE_EP_API moe_ep_status moe_ep_expert_loads_add(const int32_t *ids, int64_t n, int32_t E, int64_t *loads,
                                                 int64_t *skipped, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t none;
    int32_t e;
    moe_epi_ok(err);
    status = moe_epi_ld_check_ids(ids, n, E, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (!loads) return moe_epi_null(err, "loads");
    for (e = 0; e < E; e++) {
        if (loads[e] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "loads", "must not be negative", e, (double)loads[e]);
        if (loads[e] > INT64_MAX - n)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "loads", "has no room for n more", e, (double)loads[e]);
    }
    none = moe_epi_ld_tally(ids, n, loads);
    if (skipped) *skipped += none;
    return MOE_EP_OK;
}

/* ---- layers ---------------------------------------------------------------------------------------- */

static moe_ep_ids moe_epi_ld_ids(const int32_t *ids, int64_t T, int32_t L, int32_t K, int32_t E)
{
    moe_ep_ids view;
    memset(&view, 0, sizeof view);
    view.ids = ids;
    view.num_tokens = T;
    view.num_layers = L;
    view.top_k = K;
    view.num_experts = E;
    return view;
}

MOE_EP_API moe_ep_ids moe_ep_ids_tlk(const int32_t *ids, int64_t T, int32_t L, int32_t K, int32_t E)
{
    return moe_epi_ld_ids(ids, T, L, K, E);
}

MOE_EP_API moe_ep_ids moe_ep_ids_ltk(const int32_t *ids, int64_t T, int32_t L, int32_t K, int32_t E)
{
    moe_ep_ids view = moe_epi_ld_ids(ids, T, L, K, E);
    view.token_stride = K;
    if (T < 1 || K < 1 || !moe_epi_mul(T, K, &view.layer_stride)) view.layer_stride = 0;
    return view;
}

/* Strides with the defaults filled in; every offset they can make fits int64_t afterwards. */
static moe_ep_status moe_epi_ld_strides(const moe_ep_ids *v, int64_t *token_stride, int64_t *layer_stride,
                                     moe_ep_error *err)
{
    int64_t packed, far_token, far_layer;
    if (v->num_tokens < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "view.num_tokens", "must not be negative", -1,
                            (double)v->num_tokens);
    if (v->num_layers < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "view.num_layers", "must be at least 1", -1, (double)v->num_layers);
    if (v->top_k < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "view.top_k", "must be at least 1", -1, (double)v->top_k);
    if (v->num_experts < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "view.num_experts", "must be at least 1", -1,
                            (double)v->num_experts);
    if (v->token_stride < 0 || v->layer_stride < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, v->token_stride < 0 ? "view.token_stride" : "view.layer_stride",
                            "must not be negative", -1,
                            (double)(v->token_stride < 0 ? v->token_stride : v->layer_stride));
    packed = (int64_t)v->num_layers * v->top_k;
    *token_stride = v->token_stride > 0 ? v->token_stride : packed;
    *layer_stride = v->layer_stride > 0 ? v->layer_stride : v->top_k;
    if (!moe_epi_mul(v->num_tokens, *token_stride, &far_token) || !moe_epi_mul(v->num_layers, *layer_stride,
        &far_layer) ||
        far_token > INT64_MAX / 4 || far_layer > INT64_MAX / 4 || !moe_epi_mul(v->num_tokens, packed, &far_token))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "view", "tokens times layers times top_k does not fit", -1,
                            (double)v->num_tokens);
    return MOE_EP_OK;
}

/* Counts one layer whose tokens lie behind each other, or token by token; ids are checked. */
static int64_t moe_epi_ld_layer_tally(const moe_ep_ids *v, int32_t l, int64_t token_stride, int64_t layer_stride,
                                   int64_t *loads)
{
    const int32_t *row = v->ids + (int64_t)l * layer_stride;
    int64_t t, skipped = 0;
    for (t = 0; t < v->num_tokens; t++, row += token_stride) skipped += moe_epi_ld_tally(row, v->top_k, loads);
    return skipped;
}

/* Offset of the first bad id in memory order of (layer, token), or -1. */
static int64_t moe_epi_ld_view_bad(const moe_ep_ids *v, int64_t token_stride, int64_t layer_stride)
{
    int64_t t, bad, row;
    int32_t l;
    if (token_stride == (int64_t)v->num_layers * v->top_k && layer_stride == v->top_k)
        return moe_epi_ld_bad_id(v->ids, v->num_tokens * token_stride, v->num_experts);
    for (l = 0; l < v->num_layers; l++) {
        row = (int64_t)l * layer_stride;
        if (token_stride == v->top_k) {
            bad = moe_epi_ld_bad_id(v->ids + row, v->num_tokens * v->top_k, v->num_experts);
            if (bad >= 0) return row + bad;
            continue;
        }
        for (t = 0; t < v->num_tokens; t++, row += token_stride) {
            bad = moe_epi_ld_bad_id(v->ids + row, v->top_k, v->num_experts);
            if (bad >= 0) return row + bad;
        }
    }
    return -1;
}

MOE_EP_API moe_ep_status moe_ep_layer_loads(const moe_ep_ids *view, int64_t *loads, int64_t *skipped,
                                            moe_ep_error *err)
{
    int64_t token_stride = 0, layer_stride = 0, bad, none = 0, here;
    moe_ep_status status;
    int32_t l;
    moe_epi_ok(err);
    if (!view) return moe_epi_null(err, "view");
    status = moe_epi_ld_strides(view, &token_stride, &layer_stride, err);
    if (status != MOE_EP_OK) return status;
    if (!view->ids && view->num_tokens > 0) return moe_epi_null(err, "view.ids");
    if (!loads) return moe_epi_null(err, "loads");
    bad = moe_epi_ld_view_bad(view, token_stride, layer_stride);
    if (bad >= 0) return moe_epi_ld_fail_id(err, "view.ids", bad, view->ids[bad]);
    for (l = 0; l < view->num_layers; l++) {
        int64_t *row = loads + (int64_t)l * view->num_experts;
        if (token_stride == view->top_k) {
            here = 0;
            (void)moe_epi_ld_count(view->ids ? view->ids + (int64_t)l * layer_stride : NULL,
                                view->num_tokens * view->top_k, view->num_experts, row, &here, "view.ids", err);
        } else {
            memset(row, 0, (size_t)view->num_experts * sizeof *row);
            here = moe_epi_ld_layer_tally(view, l, token_stride, layer_stride, row);
        }
        none += here;
    }
    if (skipped) *skipped = none;
    return MOE_EP_OK;
}

/* ---- ranks and devices ----------------------------------------------------------------------------- */

/* Blocks of T/D tokens, the first T%D one longer. */
static int32_t moe_epi_ld_block_rank(int64_t t, int64_t T, int32_t D)
{
    int64_t size = T / D, longer = T % D, split = longer * (size + 1);
    return (int32_t)(t < split ? t / (size + 1) : longer + (t - split) / size);
}

MOE_EP_API int64_t moe_ep_rank_of_token(int64_t t, int64_t T, int32_t D, moe_ep_error *err)
{
    moe_epi_ok(err);
    if (T < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "must be at least 1", -1, (double)T);
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "must be at least 1", -1, (double)D);
    if (t < 0 || t >= T) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "t", "not one of the T tokens", -1, (double)t);
    return moe_epi_ld_block_rank(t, T, D);
}

MOE_EP_API moe_ep_status moe_ep_rank_loads(const int32_t *ids, int64_t T, int32_t K, int32_t E,
                                           const int32_t *source_rank, int32_t D, int64_t *loads,
                                           int64_t *skipped, moe_ep_error *err)
{
    int64_t n = 0, cells, t, none = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status != MOE_EP_OK) return status;
    status = moe_epi_ld_check_ids(ids, n, E, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "must be at least 1", -1, (double)D);
    if (!loads) return moe_epi_null(err, "loads");
    if (source_rank) {
        status = moe_epi_ld_check_devices(source_rank, T, D, "source_rank", err);
        if (status != MOE_EP_OK) return status;
    }
    cells = (int64_t)D * E;
    memset(loads, 0, (size_t)cells * sizeof *loads);
    for (t = 0; t < T; t++) {
        int32_t rank = source_rank ? source_rank[t] : moe_epi_ld_block_rank(t, T, D);
        none += moe_epi_ld_tally(ids + t * K, K, loads + (int64_t)rank * E);
    }
    if (skipped) *skipped = none;
    return MOE_EP_OK;
}

/* Counts (n) are there and not negative and their sum fits; *sum may be NULL. */
static moe_ep_status moe_epi_ld_check_counts(const int64_t *counts, int64_t n, const char *arg, int64_t *sum,
                                          moe_ep_error *err)
{
    int64_t i, total = 0;
    if (!counts) return moe_epi_null(err, arg);
    for (i = 0; i < n; i++) {
        if (counts[i] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "must not be negative", i, (double)counts[i]);
        if (counts[i] > INT64_MAX - total)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg, "the sum does not fit", i, (double)counts[i]);
        total += counts[i];
    }
    if (sum) *sum = total;
    return MOE_EP_OK;
}

/* The common checks of an (E) vector that is spread over D devices. */
static moe_ep_status moe_epi_ld_check_spread(const int64_t *loads, int32_t E, const int32_t *device_of_expert,
                                             int32_t D,
                                          moe_ep_error *err)
{
    moe_ep_status status;
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "must be at least 1", -1, (double)D);
    status = moe_epi_ld_check_counts(loads, E, "loads", NULL, err);
    if (status != MOE_EP_OK || !device_of_expert) return status;
    return moe_epi_ld_check_devices(device_of_expert, E, D, "device_of_expert", err);
}

MOE_EP_API moe_ep_status moe_ep_loads_by_device(const int64_t *loads, int32_t E, const int32_t *device_of_expert,
                                                int32_t D, int64_t *device_loads, moe_ep_error *err)
{
    moe_ep_status status;
    int32_t e;
    moe_epi_ok(err);
    status = moe_epi_ld_check_spread(loads, E, device_of_expert, D, err);
    if (status != MOE_EP_OK) return status;
    if (!device_loads) return moe_epi_null(err, "device_loads");
    memset(device_loads, 0, (size_t)D * sizeof *device_loads);
    for (e = 0; e < E; e++) device_loads[device_of_expert ? device_of_expert[e] : e % D] += loads[e];
    return MOE_EP_OK;
}

MOE_EP_API int64_t moe_ep_active_experts(const int64_t *loads, int32_t n, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t active = 0;
    int32_t i;
    moe_epi_ok(err);
    status = moe_epi_ld_check_spread(loads, n, NULL, 1, err);
    if (status != MOE_EP_OK) return status;
    for (i = 0; i < n; i++) active += loads[i] > 0;
    return active;
}

MOE_EP_API moe_ep_status moe_ep_active_by_device(const int64_t *loads, int32_t E, const int32_t *device_of_expert,
                                                 int32_t D, int32_t *active, moe_ep_error *err)
{
    moe_ep_status status;
    int32_t e;
    moe_epi_ok(err);
    status = moe_epi_ld_check_spread(loads, E, device_of_expert, D, err);
    if (status != MOE_EP_OK) return status;
    if (!active) return moe_epi_null(err, "active");
    memset(active, 0, (size_t)D * sizeof *active);
    for (e = 0; e < E; e++) active[device_of_expert ? device_of_expert[e] : e % D] += loads[e] > 0;
    return MOE_EP_OK;
}

/* ---- expectations ---------------------------------------------------------------------------------- */

/* T tokens choosing K distinct of E experts. */
static moe_ep_status moe_epi_ld_check_uniform(int64_t T, int32_t K, int32_t E, moe_ep_error *err)
{
    int64_t n;
    if (T < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "must be at least 1", -1, (double)T);
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (K > E) return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "K", "more choices than experts", -1, (double)K);
    return moe_epi_ld_check_tk(T, K, &n, err);
}

/* 1 - (1-q)^T without cancellation, q in 0..1. */
static double moe_epi_ld_any(double q, double T) { return q < 1.0 ? -expm1(T * log1p(-q)) : 1.0; }

/* Chance that one token choosing K distinct of E reaches a group of `size` experts (size may be fractional). */
static double moe_epi_ld_reach(double K, double E, double size)
{
    double miss = 1.0, i;
    /* C(E-size,K)/C(E,K) with the shorter of its two products */
    if (K + size > E) return 1.0;
    if (K <= size) {
        for (i = 0.0; i < K; i += 1.0) miss *= (E - size - i) / (E - i);
    } else {
        for (i = 0.0; i + 1.0 <= size; i += 1.0) miss *= (E - K - i) / (E - i);
        miss *= pow((E - K - i) / (E - i), size - i); /* the fraction of an expert that is left */
    }
    return 1.0 - miss;
}

MOE_EP_API double moe_ep_expected_distinct(int64_t T, int32_t K, int32_t E, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_ld_check_uniform(T, K, E, err);
    if (status != MOE_EP_OK) return (double)status;
    return (double)E * moe_epi_ld_any((double)K / (double)E, (double)T);
}

MOE_EP_API double moe_ep_expected_groups(int32_t K, int32_t E, int32_t G, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_ld_check_uniform(1, K, E, err);
    if (status != MOE_EP_OK) return (double)status;
    if (G < 1 || G > E)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "G", "must lie in 1..E", -1, (double)G);
    return (double)G * moe_epi_ld_reach((double)K, (double)E, (double)E / (double)G);
}

/* ---- co-activation and transitions ----------------------------------------------------------------- */

/* Choice k of this token already named its expert. */
static int moe_epi_ld_repeats(const int32_t *choices, int32_t k)
{
    int32_t j;
    for (j = 0; j < k; j++)
        if (choices[j] == choices[k]) return 1;
    return 0;
}

static void moe_epi_ld_coactivate(const int32_t *choices, int32_t K, int32_t E, int64_t *co)
{
    int32_t i, j;
    for (i = 0; i < K; i++) {
        if (choices[i] < 0 || moe_epi_ld_repeats(choices, i)) continue;
        for (j = 0; j < K; j++)
            if (choices[j] >= 0 && choices[j] != choices[i] && !moe_epi_ld_repeats(choices, j))
                co[(int64_t)choices[i] * E + choices[j]]++;
    }
}

MOE_EP_API moe_ep_status moe_ep_coactivation(const int32_t *ids, int64_t T, int32_t K, int32_t E, int64_t *co,
                                             int64_t *skipped, moe_ep_error *err)
{
    int64_t n = 0, cells = 0, t, i, none = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_square(E, &cells, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_ids(ids, n, E, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (!co) return moe_epi_null(err, "co");
    memset(co, 0, (size_t)cells * sizeof *co);
    for (t = 0; t < T; t++) moe_epi_ld_coactivate(ids + t * K, K, E, co);
    for (i = 0; i < n; i++) none += ids[i] < 0;
    if (skipped) *skipped = none;
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_transitions(const int32_t *ids_from, const int32_t *ids_to, int64_t T, int32_t K,
                                            int32_t E, int64_t *transitions, moe_ep_error *err)
{
    int64_t n = 0, cells = 0, t;
    moe_ep_status status;
    int32_t i, j;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_square(E, &cells, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_ids(ids_from, n, E, "ids_from", err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_ids(ids_to, n, E, "ids_to", err);
    if (status != MOE_EP_OK) return status;
    if (!transitions) return moe_epi_null(err, "transitions");
    memset(transitions, 0, (size_t)cells * sizeof *transitions);
    for (t = 0; t < T; t++)
        for (i = 0; i < K; i++) {
            int32_t from = ids_from[t * K + i];
            if (from >= 0) {
                for (j = 0; j < K; j++)
                    if (ids_to[t * K + j] >= 0) transitions[(int64_t)from * E + ids_to[t * K + j]]++;
            }
        }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_transition_shares(const int64_t *transitions, int32_t E, double *share,
                                                  moe_ep_error *err)
{
    int64_t cells = 0, i;
    moe_ep_status status;
    int32_t from, to;
    moe_epi_ok(err);
    status = moe_epi_ld_check_square(E, &cells, err);
    if (status != MOE_EP_OK) return status;
    if (!transitions) return moe_epi_null(err, "transitions");
    if (!share) return moe_epi_null(err, "share");
    for (i = 0; i < cells; i++)
        if (transitions[i] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "transitions", "must not be negative", i,
                                (double)transitions[i]);
    for (from = 0; from < E; from++) {
        const int64_t *row = transitions + (int64_t)from * E;
        double sum = 0.0;
        for (to = 0; to < E; to++) sum += (double)row[to];
        for (to = 0; to < E; to++) share[(int64_t)from * E + to] = sum > 0.0 ? (double)row[to] / sum : 0.0;
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_lift(const int64_t *co, const int64_t *loads, int64_t T, int32_t E, double *lift,
                                     moe_ep_error *err)
{
    int64_t cells = 0, i;
    moe_ep_status status;
    int32_t a, b;
    moe_epi_ok(err);
    if (T < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "T", "must not be negative", -1, (double)T);
    status = moe_epi_ld_check_square(E, &cells, err);
    if (status != MOE_EP_OK) return status;
    if (!co) return moe_epi_null(err, "co");
    for (i = 0; i < cells; i++)
        if (co[i] < 0) return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "co", "must not be negative", i, (double)co[i]);
    status = moe_epi_ld_check_counts(loads, E, "loads", NULL, err);
    if (status != MOE_EP_OK) return status;
    if (!lift) return moe_epi_null(err, "lift");
    for (a = 0; a < E; a++)
        for (b = 0; b < E; b++) {
            double pairs = (double)loads[a] * (double)loads[b];
            int64_t cell = (int64_t)a * E + b;
            lift[cell] = pairs > 0.0 ? (double)co[cell] * (double)T / pairs : 0.0;
        }
    return MOE_EP_OK;
}

/* ---- windows --------------------------------------------------------------------------------------- */

/* Cells (L,E) of one step and bytes of a whole window; 0 when the sizes are impossible. */
static size_t moe_epi_ld_window_size(int32_t L, int32_t E, int32_t ring_steps, int64_t *cells)
{
    int64_t ring;
    size_t total = 0;
    if (L < 1 || E < 1 || ring_steps < 0) return 0;
    *cells = (int64_t)L * E;
    if (!moe_epi_mul(*cells, ring_steps, &ring)) return 0;
    moe_epi_need(&total, *cells, sizeof(int64_t)); /* sum  */
    moe_epi_need(&total, ring, sizeof(int64_t));   /* ring */
    moe_epi_need(&total, *cells, sizeof(double));  /* ema  */
    moe_epi_need(&total, *cells, sizeof(double));  /* mean */
    moe_epi_need(&total, *cells, sizeof(double));  /* m2   */
    return total == SIZE_MAX ? 0 : total;
}

MOE_EP_API size_t moe_ep_window_bytes(int32_t L, int32_t E, int32_t ring_steps)
{
    int64_t cells = 0;
    return moe_epi_ld_window_size(L, E, ring_steps, &cells);
}

static int64_t moe_epi_ld_window_cells(const moe_ep_window *w) { return (int64_t)w->num_layers * w->num_experts; }

/* Steps that can still be looked at one by one. */
static int64_t moe_epi_ld_window_kept(const moe_ep_window *w)
{
    return w->steps < w->ring_steps ? w->steps : w->ring_steps;
}

/* A window that was initialised and not tampered with. */
static moe_ep_status moe_epi_ld_check_window(const moe_ep_window *w, const char *arg, moe_ep_error *err)
{
    if (!w) return moe_epi_null(err, arg);
    if (w->num_layers < 1 || w->num_experts < 1 || w->ring_steps < 0 || w->steps < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "was not initialised", -1, (double)w->num_layers);
    if (!w->sum || !w->ema || !w->mean || !w->m2 || (w->ring_steps > 0 && !w->ring)) return moe_epi_null(err, arg);
    return MOE_EP_OK;
}

static void moe_epi_ld_window_forget(moe_ep_window *w)
{
    const size_t cells = (size_t)moe_epi_ld_window_cells(w);
    w->steps = 0;
    w->has_variance = 1;
    memset(w->sum, 0, cells * sizeof *w->sum);
    memset(w->ema, 0, cells * sizeof *w->ema);
    memset(w->mean, 0, cells * sizeof *w->mean);
    memset(w->m2, 0, cells * sizeof *w->m2);
    if (w->ring) memset(w->ring, 0, cells * (size_t)w->ring_steps * sizeof *w->ring);
}

MOE_EP_API moe_ep_status moe_ep_window_init(moe_ep_window *w, const char *label, int32_t L, int32_t E,
                                            int32_t ring_steps, double ema_keep, void *mem, size_t bytes,
                                            moe_ep_error *err)
{
    int64_t cells = 0;
    size_t need, used = 0;
    unsigned char *base = (unsigned char *)mem;
    moe_epi_ok(err);
    if (!w) return moe_epi_null(err, "w");
    need = moe_epi_ld_window_size(L, E, ring_steps, &cells);
    if (need == 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, L < 1 ? "L" : E < 1 ? "E" : "ring_steps",
                            "no window can have this size",
                            -1, (double)(L < 1 ? L : E < 1 ? E : ring_steps));
    if (!moe_epi_finite(ema_keep))
        return moe_epi_fail(err, MOE_EP_ERR_NAN, "ema_keep", "must be finite", -1, ema_keep);
    if (ema_keep < 0.0 || ema_keep > 1.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "ema_keep", "must lie in 0..1", -1, ema_keep);
    if (!mem) return moe_epi_null(err, "mem");
    if (bytes < need) return moe_epi_fail(err, MOE_EP_ERR_SCRATCH, "mem", "bytes needed", -1, (double)need);
    if (((uintptr_t)mem & 7u) != 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "mem", "must be aligned to 8 bytes", -1,
                            (double)((uintptr_t)mem & 7u));
    memset(w, 0, sizeof *w);
    w->label = label;
    w->num_layers = L;
    w->num_experts = E;
    w->ring_steps = ring_steps;
    w->ema_keep = ema_keep;
    w->sum = (int64_t *)(void *)base;
    moe_epi_need(&used, cells, sizeof(int64_t));
    w->ring = ring_steps > 0 ? (int64_t *)(void *)(base + used) : NULL;
    moe_epi_need(&used, cells * ring_steps, sizeof(int64_t));
    w->ema = (double *)(void *)(base + used);
    moe_epi_need(&used, cells, sizeof(double));
    w->mean = (double *)(void *)(base + used);
    moe_epi_need(&used, cells, sizeof(double));
    w->m2 = (double *)(void *)(base + used);
    moe_epi_ld_window_forget(w);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_window_clear(moe_ep_window *w, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_ld_check_window(w, "w", err);
    if (status == MOE_EP_OK) moe_epi_ld_window_forget(w);
    return status;
}

/* Room for `more` on top of the sums. */
static moe_ep_status moe_epi_ld_check_room(const int64_t *sum, const int64_t *more, int64_t cells, const char *arg,
                                        moe_ep_error *err)
{
    int64_t i;
    for (i = 0; i < cells; i++) {
        if (more[i] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "must not be negative", i, (double)more[i]);
        if (more[i] > INT64_MAX - sum[i])
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg, "the window's sum would not fit", i, (double)more[i]);
    }
    return MOE_EP_OK;
}

/* One more value of a running mean and squared deviation (Welford 1962); count includes it. */
static void moe_epi_ld_welford(double *mean, double *m2, double value, double count)
{
    double delta = value - *mean;
    *mean += delta / count;
    *m2 += delta * (value - *mean);
}

MOE_EP_API moe_ep_status moe_ep_window_add(moe_ep_window *w, const int64_t *loads, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t cells, i;
    double keep;
    moe_epi_ok(err);
    status = moe_epi_ld_check_window(w, "w", err);
    if (status != MOE_EP_OK) return status;
    if (!loads) return moe_epi_null(err, "loads");
    cells = moe_epi_ld_window_cells(w);
    status = moe_epi_ld_check_room(w->sum, loads, cells, "loads", err);
    if (status != MOE_EP_OK) return status;
    keep = w->steps == 0 ? 0.0 : w->ema_keep;
    if (w->ring) memcpy(w->ring + (w->steps % w->ring_steps) * cells, loads, (size_t)cells * sizeof *loads);
    w->steps++;
    for (i = 0; i < cells; i++) {
        double load = (double)loads[i];
        w->sum[i] += loads[i];
        w->ema[i] = keep * w->ema[i] + (1.0 - keep) * load;
        moe_epi_ld_welford(&w->mean[i], &w->m2[i], load, (double)w->steps);
    }
    return MOE_EP_OK;
}

MOE_EP_API const int64_t *moe_ep_window_step(const moe_ep_window *w, int64_t back)
{
    if (moe_epi_ld_check_window(w, "w", NULL) != MOE_EP_OK) return NULL;
    if (back < 0 || back >= moe_epi_ld_window_kept(w)) return NULL;
    return w->ring + ((w->steps - 1 - back) % w->ring_steps) * moe_epi_ld_window_cells(w);
}

MOE_EP_API moe_ep_status moe_ep_window_recent(const moe_ep_window *w, int32_t last, int64_t *loads, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t cells, i;
    int32_t back;
    moe_epi_ok(err);
    status = moe_epi_ld_check_window(w, "w", err);
    if (status != MOE_EP_OK) return status;
    if (last < 0 || last > moe_epi_ld_window_kept(w))
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "last", "so many steps are not kept", -1, (double)last);
    if (!loads) return moe_epi_null(err, "loads");
    cells = moe_epi_ld_window_cells(w);
    memset(loads, 0, (size_t)cells * sizeof *loads);
    for (back = 0; back < last; back++) {
        const int64_t *step = moe_ep_window_step(w, back);
        for (i = 0; i < cells; i++) loads[i] += step[i];
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_window_variance(const moe_ep_window *w, double *variance, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t cells, i;
    moe_epi_ok(err);
    status = moe_epi_ld_check_window(w, "w", err);
    if (status != MOE_EP_OK) return status;
    if (!variance) return moe_epi_null(err, "variance");
    if (!w->has_variance)
        return moe_epi_fail(err, MOE_EP_ERR_UNSUPPORTED, "w", "ranks were merged after steps had left the ring",
                            -1, 0.0);
    cells = moe_epi_ld_window_cells(w);
    for (i = 0; i < cells; i++) variance[i] = w->steps > 1 ? w->m2[i] / (double)(w->steps - 1) : 0.0;
    return MOE_EP_OK;
}

/* Both windows are good, have one shape, and src's sums fit on top of dst's. */
static moe_ep_status moe_epi_ld_check_pair(const moe_ep_window *dst, const moe_ep_window *src, moe_ep_error *err)
{
    moe_ep_status status = moe_epi_ld_check_window(dst, "dst", err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_window(src, "src", err);
    if (status != MOE_EP_OK) return status;
    if (dst->num_layers != src->num_layers)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "src.num_layers", "differs from dst", -1, (double)src->num_layers);
    if (dst->num_experts != src->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "src.num_experts", "differs from dst", -1,
                            (double)src->num_experts);
    if (dst->ring_steps != src->ring_steps)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "src.ring_steps", "differs from dst", -1, (double)src->ring_steps);
    if (fabs(dst->ema_keep - src->ema_keep) > 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "src.ema_keep", "differs from dst", -1, src->ema_keep);
    return moe_epi_ld_check_room(dst->sum, src->sum, moe_epi_ld_window_cells(dst), "src", err);
}

/* Deviations of all steps, which must still be in the ring, from scratch. */
static void moe_epi_ld_window_deviations(moe_ep_window *w)
{
    const int64_t cells = moe_epi_ld_window_cells(w);
    int64_t i, back;
    memset(w->m2, 0, (size_t)cells * sizeof *w->m2);
    for (back = w->steps - 1; back >= 0; back--) {
        const int64_t *step = moe_ep_window_step(w, back);
        for (i = 0; i < cells; i++) w->m2[i] += ((double)step[i] - w->mean[i]) * ((double)step[i] - w->mean[i]);
    }
}

MOE_EP_API moe_ep_status moe_ep_window_merge_ranks(moe_ep_window *dst, const moe_ep_window *src, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t cells, i;
    moe_epi_ok(err);
    status = moe_epi_ld_check_pair(dst, src, err);
    if (status != MOE_EP_OK) return status;
    if (dst->steps != src->steps)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "src.steps", "differs from dst", -1, (double)src->steps);
    cells = moe_epi_ld_window_cells(dst);
    for (i = 0; i < cells; i++) {
        dst->sum[i] += src->sum[i];
        dst->ema[i] += src->ema[i];
        dst->mean[i] += src->mean[i];
    }
    for (i = 0; i < cells * dst->ring_steps; i++) dst->ring[i] += src->ring[i];
    dst->has_variance = dst->steps <= dst->ring_steps;
    if (dst->has_variance) moe_epi_ld_window_deviations(dst);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_window_append(moe_ep_window *dst, const moe_ep_window *src, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t cells, i, back, steps;
    double na, nb, keep;
    moe_epi_ok(err);
    status = moe_epi_ld_check_pair(dst, src, err);
    if (status != MOE_EP_OK) return status;
    if (src->steps > INT64_MAX - dst->steps)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "src.steps", "too many steps", -1, (double)src->steps);
    if (src->steps == 0) return MOE_EP_OK;
    cells = moe_epi_ld_window_cells(dst);
    steps = dst->steps + src->steps;
    for (back = moe_epi_ld_window_kept(src) - 1; back >= 0; back--)
        memcpy(dst->ring + ((steps - 1 - back) % dst->ring_steps) * cells, moe_ep_window_step(src, back),
               (size_t)cells * sizeof *dst->ring);
    na = (double)dst->steps;
    nb = (double)src->steps;
    keep = dst->steps == 0 ? 0.0 : pow(dst->ema_keep, nb);
    for (i = 0; i < cells; i++) {
        double delta = src->mean[i] - dst->mean[i];
        dst->sum[i] += src->sum[i];
        dst->mean[i] += delta * (nb / (na + nb));
        dst->m2[i] += src->m2[i] + delta * delta * (na * nb / (na + nb));
        dst->ema[i] = keep * dst->ema[i] + (1.0 - keep) * src->ema[i];
    }
    dst->steps = steps;
    dst->has_variance = dst->has_variance && src->has_variance;
    return MOE_EP_OK;
}

/* ==================================================================================================
 * 3 BALANCE
 * ================================================================================================== */

/* Loads of either type, one of the two pointers is set. */
typedef struct moe_epi_bl_loads {
    const int64_t *count;
    const double *real;
} moe_epi_bl_loads;

static moe_epi_bl_loads moe_epi_bl_counts(const int64_t *count)
{
    moe_epi_bl_loads v;
    v.count = count;
    v.real = NULL;
    return v;
}

static moe_epi_bl_loads moe_epi_bl_reals(const double *real)
{
    moe_epi_bl_loads v;
    v.count = NULL;
    v.real = real;
    return v;
}

static double moe_epi_bl_at(const moe_epi_bl_loads *v,
                            int64_t i) { return v->count ? (double)v->count[i] : v->real[i]; }

/* The vector from element i on. */
static moe_epi_bl_loads moe_epi_bl_from(const moe_epi_bl_loads *v, int64_t i)
{
    moe_epi_bl_loads w;
    w.count = v->count ? v->count + i : NULL;
    w.real = v->real ? v->real + i : NULL;
    return w;
}

/* Loads (n) are there, finite, not negative, and their sum is finite. */
static moe_ep_status moe_epi_bl_check(const moe_epi_bl_loads *v, int64_t n, const char *arg, moe_ep_error *err)
{
    double sum = 0.0, load;
    int64_t i;
    if (v->count) return moe_epi_ld_check_counts(v->count, n, arg, NULL, err);
    if (!v->real) return moe_epi_null(err, arg);
    for (i = 0; i < n; i++) {
        load = v->real[i];
        if (!moe_epi_finite(load)) return moe_epi_fail(err, MOE_EP_ERR_NAN, arg, "must be finite", i, load);
        if (load < 0.0) return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "must not be negative", i, load);
        sum += load;
        if (!moe_epi_finite(sum)) return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg, "the sum does not fit", i, load);
    }
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_bl_check_n(const moe_epi_bl_loads *v, int32_t n, const char *arg, moe_ep_error *err)
{
    if (n < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must be at least 1", -1, (double)n);
    return moe_epi_bl_check(v, n, arg, err);
}

/* A (L,n) matrix of loads. */
static moe_ep_status moe_epi_bl_check_matrix(const moe_epi_bl_loads *v, int32_t L, int32_t n, moe_ep_error *err)
{
    if (L < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "L", "must be at least 1", -1, (double)L);
    if (n < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must be at least 1", -1, (double)n);
    return moe_epi_bl_check(v, (int64_t)L * n, "loads", err);
}

/* Sum and maximum of one checked vector. */
typedef struct moe_epi_bl_extent {
    double sum, max;
} moe_epi_bl_extent;

static moe_epi_bl_extent moe_epi_bl_measure(const moe_epi_bl_loads *v, int64_t n)
{
    moe_epi_bl_extent x;
    int64_t i, whole = 0;
    x.sum = x.max = 0.0;
    for (i = 0; i < n; i++) {
        double load = moe_epi_bl_at(v, i);
        if (v->count) whole += v->count[i];
        else x.sum += load;
        if (load > x.max) x.max = load;
    }
    if (v->count) x.sum = (double)whole;
    return x;
}

/* max/mean; 1 when the mean is zero. */
static double moe_epi_bl_ratio(double max, double mean) { return mean > 0.0 ? max / mean : 1.0; }

static double moe_epi_bl_imbalance(const moe_epi_bl_loads *v, int32_t n, moe_ep_error *err)
{
    moe_epi_bl_extent x;
    moe_ep_status status = moe_epi_bl_check_n(v, n, "loads", err);
    if (status != MOE_EP_OK) return (double)status;
    x = moe_epi_bl_measure(v, n);
    return moe_epi_bl_ratio(x.max, x.sum / (double)n);
}

MOE_EP_API double moe_ep_imbalance(const int64_t *loads, int32_t n, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_counts(loads);
    moe_epi_ok(err);
    return moe_epi_bl_imbalance(&v, n, err);
}

MOE_EP_API double moe_ep_imbalance_d(const double *loads, int32_t n, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_epi_ok(err);
    return moe_epi_bl_imbalance(&v, n, err);
}

MOE_EP_API moe_ep_status moe_ep_loads_to_double(const int64_t *from, int64_t n, double *to, moe_ep_error *err)
{
    int64_t i;
    moe_epi_ok(err);
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must not be negative", -1, (double)n);
    if (n > 0 && !from) return moe_epi_null(err, "from");
    if (n > 0 && !to) return moe_epi_null(err, "to");
    for (i = 0; i < n; i++) to[i] = (double)from[i];
    return MOE_EP_OK;
}

/* ---- sorting: heaps, so that no memory and no bad case is needed ------------------------------------- */

/* Restores the heap (largest on top) below `top`. */
static void moe_epi_bl_sift(double *v, int64_t top, int64_t n)
{
    const double moved = v[top];
    int64_t child;
    while ((child = 2 * top + 1) < n) {
        if (child + 1 < n && v[child + 1] > v[child]) child++;
        if (v[child] <= moved) break;
        v[top] = v[child];
        top = child;
    }
    v[top] = moved;
}

/* Ascending, in place. */
static void moe_epi_bl_sort(double *v, int64_t n)
{
    int64_t i;
    double last;
    for (i = n / 2; i > 0; i--) moe_epi_bl_sift(v, i - 1, n);
    for (i = n - 1; i > 0; i--) {
        last = v[i];
        v[i] = v[0];
        v[0] = last;
        moe_epi_bl_sift(v, 0, i);
    }
}

/* Index a stands behind index b in a hot list: lighter, or as heavy and higher. */
static int moe_epi_bl_behind(const double *loads, int32_t a, int32_t b)
{
    if (loads[a] < loads[b]) return 1;
    return !(loads[a] > loads[b]) && a > b;
}

static void moe_epi_bl_sift_list(const double *loads, int32_t *list, int64_t top, int64_t n)
{
    const int32_t moved = list[top];
    int64_t child;
    while ((child = 2 * top + 1) < n) {
        if (child + 1 < n && moe_epi_bl_behind(loads, list[child + 1], list[child])) child++;
        if (!moe_epi_bl_behind(loads, list[child], moved)) break;
        list[top] = list[child];
        top = child;
    }
    list[top] = moved;
}

/* Indices by load, heaviest first, ties by index. */
static void moe_epi_bl_sort_list(const double *loads, int32_t *list, int64_t n)
{
    int64_t i;
    int32_t last;
    for (i = n / 2; i > 0; i--) moe_epi_bl_sift_list(loads, list, i - 1, n);
    for (i = n - 1; i > 0; i--) {
        last = list[i];
        list[i] = list[0];
        list[0] = last;
        moe_epi_bl_sift_list(loads, list, 0, i);
    }
}

/* Percentile q (0..1) of ascending values, linear between neighbours as in numpy. */
static double moe_epi_bl_percentile(const double *v, int64_t n, double q)
{
    double at = q * (double)(n - 1);
    int64_t below = (int64_t)at;
    if (below >= n - 1) return v[n - 1];
    return v[below] + (at - (double)below) * (v[below + 1] - v[below]);
}

/* ---- one vector --------------------------------------------------------------------------------------- */

/* Everything that looks at single loads, in their order. */
static void moe_epi_bl_scan(const moe_epi_bl_loads *v, moe_ep_balance_result *r)
{
    int32_t i;
    r->max = r->min = moe_epi_bl_at(v, 0);
    for (i = 0; i < r->n; i++) {
        double load = moe_epi_bl_at(v, i);
        if (load > r->max) { r->max = load; r->argmax = i; }
        if (load < r->min) { r->min = load; r->argmin = i; }
        r->active += load > 0.0;
    }
    r->sum = moe_epi_bl_measure(v, r->n).sum;
    r->mean = r->sum / (double)r->n;
    r->zero_load = !(r->mean > 0.0);
    r->idle_fraction = (double)(r->n - r->active) / (double)r->n;
}

/* Squares and logarithms of the shares.  Loads are divided by the maximum first: no square overflows. */
static void moe_epi_bl_moments(const moe_epi_bl_loads *v, moe_ep_balance_result *r)
{
    const double n = (double)r->n, unit = r->mean / r->max;
    double deviations = 0.0, squares = 0.0, entropy = 0.0;
    int32_t i;
    for (i = 0; i < r->n; i++) {
        double load = moe_epi_bl_at(v, i), share = load / r->sum, delta = load / r->max - unit;
        deviations += delta * delta;
        squares += share * share;
        if (share > 0.0) entropy -= share * log(share);
    }
    r->std = r->max * sqrt(deviations / n);
    r->cv_population = sqrt(deviations / n) / unit;
    r->cv2_sample = r->n > 1 ? deviations / (n - 1.0) / (unit * unit) : 0.0;
    r->cv_sample = sqrt(r->cv2_sample);
    r->hhi = squares;
    r->effective_experts = 1.0 / squares;
    r->jain = 1.0 / (n * squares);
    r->entropy_nats = entropy > 0.0 ? entropy : 0.0;
    r->entropy_norm = r->n > 1 ? r->entropy_nats / log(n) : 1.0;
    r->perplexity = exp(r->entropy_nats);
    r->kl_from_uniform_nats = log(n) > r->entropy_nats ? log(n) - r->entropy_nats : 0.0;
}

/* Perfect balance, for a vector without any load. */
static void moe_epi_bl_moments_zero(moe_ep_balance_result *r)
{
    const double n = (double)r->n;
    r->hhi = 1.0 / n;
    r->effective_experts = n;
    r->jain = 1.0;
    r->entropy_nats = log(n);
    r->entropy_norm = 1.0;
    r->perplexity = n;
}

/* What needs the loads ascending. */
static void moe_epi_bl_ranked(const double *sorted, moe_ep_balance_result *r)
{
    const double n = (double)r->n;
    double weighted = 0.0;
    int32_t i;
    r->p50 = moe_epi_bl_percentile(sorted, r->n, 0.50);
    r->p95 = moe_epi_bl_percentile(sorted, r->n, 0.95);
    r->p99 = moe_epi_bl_percentile(sorted, r->n, 0.99);
    if (r->zero_load) return;
    for (i = 0; i < r->n; i++) weighted += (2.0 * ((double)i + 1.0) - n - 1.0) * (sorted[i] / r->sum);
    r->gini = weighted > 0.0 ? weighted / n : 0.0;
}

static void moe_epi_bl_ratios(moe_ep_balance_result *r)
{
    const float mean = (float)r->mean + 1e-5f, max = (float)r->max + 1e-5f;
    r->imbalance = r->zero_load ? 1.0 : r->max / r->mean;
    r->balancedness = r->zero_load ? 1.0 : r->mean / r->max;
    r->sglang_utilization = moe_epi_finite((double)max) ? (double)(mean / max) : r->balancedness;
    r->maxvio = r->imbalance - 1.0;
    r->minvio = r->zero_load ? 0.0 : 1.0 - r->min / r->mean;
    r->max_minus_mean = r->max - r->mean;
    r->max_over_min = r->min > 0.0 ? r->max / r->min : 0.0;
    r->step_time = r->max;
    r->efficiency = r->balancedness;
    r->step_inflation = r->imbalance;
}

static moe_ep_status moe_epi_bl_balance(const moe_epi_bl_loads *v, int32_t n, moe_ep_balance_result *out,
                                        moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status status = moe_epi_bl_check_n(v, n, "loads", err);
    moe_epi_arena arena;
    double *sorted;
    size_t total = 0;
    int32_t i;
    if (status != MOE_EP_OK) return status;
    if (!out) return moe_epi_null(err, "out");
    moe_epi_need(&total, n, sizeof *sorted);
    status = moe_epi_arena_open(&arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    sorted = (double *)moe_epi_take(&arena, n, sizeof *sorted);
    for (i = 0; i < n; i++) sorted[i] = moe_epi_bl_at(v, i);
    moe_epi_bl_sort(sorted, n);
    memset(out, 0, sizeof *out);
    out->n = n;
    moe_epi_bl_scan(v, out);
    if (out->zero_load) moe_epi_bl_moments_zero(out);
    else moe_epi_bl_moments(v, out);
    moe_epi_bl_ranked(sorted, out);
    moe_epi_bl_ratios(out);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_balance(const int64_t *loads, int32_t n, moe_ep_balance_result *out,
                                        moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_counts(loads);
    moe_epi_ok(err);
    return moe_epi_bl_balance(&v, n, out, scratch, err);
}

MOE_EP_API moe_ep_status moe_ep_balance_d(const double *loads, int32_t n, moe_ep_balance_result *out,
                                          moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_epi_ok(err);
    return moe_epi_bl_balance(&v, n, out, scratch, err);
}

MOE_EP_API double moe_ep_convert(double value, moe_ep_balance_family from, moe_ep_balance_family to, int32_t n,
                                 moe_ep_error *err)
{
    double imbalance;
    moe_epi_ok(err);
    if (!moe_epi_finite(value)) return moe_epi_fail(err, MOE_EP_ERR_NAN, "value", "must be finite", -1, value);
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must not be negative", -1, (double)n);
    if (from == MOE_EP_FAMILY_IMBALANCE) imbalance = value;
    else if (from == MOE_EP_FAMILY_EXCESS) imbalance = value + 1.0;
    else if (from == MOE_EP_FAMILY_BALANCEDNESS) imbalance = value > 0.0 ? 1.0 / value : 0.0;
    else return moe_epi_fail(err, MOE_EP_ERR_RANGE, "from", "not a family", -1, (double)(int)from);
    /* a few roundings below 1 or above n are still 1 and n */
    if (imbalance < 1.0 - 1e-9 || !moe_epi_finite(imbalance) || (n > 0 && imbalance > (double)n * (1.0 + 1e-9)))
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "value", "no loads can have this balance", -1, value);
    if (to == from) return value;
    if (to == MOE_EP_FAMILY_IMBALANCE) return imbalance;
    if (to == MOE_EP_FAMILY_EXCESS) return imbalance > 1.0 ? imbalance - 1.0 : 0.0;
    if (to == MOE_EP_FAMILY_BALANCEDNESS) return 1.0 / imbalance;
    return moe_epi_fail(err, MOE_EP_ERR_RANGE, "to", "not a family", -1, (double)(int)to);
}

/* ---- layers and steps --------------------------------------------------------------------------------- */

/* Sums over the rows; ratios (L) receives max/mean of the loaded ones, in row order. */
static void moe_epi_bl_rows(const moe_epi_bl_loads *v, int32_t n, moe_ep_layers_result *r, double *ratios)
{
    double balancedness = 0.0, imbalance = 0.0;
    int32_t l;
    for (l = 0; l < r->num_layers; l++) {
        const moe_epi_bl_loads row = moe_epi_bl_from(v, (int64_t)l * n);
        const moe_epi_bl_extent x = moe_epi_bl_measure(&row, n);
        const double mean = x.sum / (double)n;
        r->avg_sum += mean;
        r->max_sum += x.max;
        if (!(mean > 0.0)) continue;
        ratios[r->loaded_layers] = x.max / mean;
        if (r->worst_layer < 0 || ratios[r->loaded_layers] > r->worst_imbalance) {
            r->worst_layer = l;
            r->worst_imbalance = ratios[r->loaded_layers];
        }
        imbalance += ratios[r->loaded_layers++];
        balancedness += mean / x.max;
    }
    r->mean_of_layer_ratios = balancedness / (double)r->num_layers;
    if (r->loaded_layers > 0) {
        r->mean_imbalance = imbalance / (double)r->loaded_layers;
        r->mean_balancedness = balancedness / (double)r->loaded_layers;
    }
}

/* Sums and maxima down the columns (n each). */
static void moe_epi_bl_columns(const moe_epi_bl_loads *v, int32_t n, moe_ep_layers_result *r, double *sums,
                               double *maxima)
{
    double mean_sum = 0.0, max_sum = 0.0, most = 0.0;
    int32_t l, i;
    for (i = 0; i < n; i++) sums[i] = maxima[i] = 0.0;
    for (l = 0; l < r->num_layers; l++)
        for (i = 0; i < n; i++) {
            double load = moe_epi_bl_at(v, (int64_t)l * n + i);
            sums[i] += load;
            if (load > maxima[i]) maxima[i] = load;
        }
    for (i = 0; i < n; i++) {
        mean_sum += sums[i];
        max_sum += maxima[i];
        if (sums[i] > most) most = sums[i];
    }
    r->imbalance_of_sum = moe_epi_bl_ratio(most, mean_sum / (double)n);
    r->balancedness_wrong_axis = max_sum > 0.0 ? mean_sum / (double)r->num_layers / max_sum : 1.0;
}

static moe_ep_status moe_epi_bl_layers(const moe_epi_bl_loads *v, int32_t L, int32_t n, moe_ep_layers_result *out,
                                       moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status status = moe_epi_bl_check_matrix(v, L, n, err);
    moe_epi_arena arena;
    double *ratios, *sums, *maxima;
    size_t total = 0;
    if (status != MOE_EP_OK) return status;
    if (!out) return moe_epi_null(err, "out");
    moe_epi_need(&total, L, sizeof(double));
    moe_epi_need(&total, n, sizeof(double));
    moe_epi_need(&total, n, sizeof(double));
    status = moe_epi_arena_open(&arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    ratios = (double *)moe_epi_take(&arena, L, sizeof(double));
    sums = (double *)moe_epi_take(&arena, n, sizeof(double));
    maxima = (double *)moe_epi_take(&arena, n, sizeof(double));
    memset(out, 0, sizeof *out);
    out->num_layers = L;
    out->worst_layer = -1;
    out->worst_imbalance = out->mean_imbalance = out->mean_balancedness = 1.0;
    out->p50 = out->p90 = out->p95 = out->p99 = 1.0;
    moe_epi_bl_rows(v, n, out, ratios);
    moe_epi_bl_columns(v, n, out, sums, maxima);
    out->imbalance = moe_epi_bl_ratio(out->max_sum, out->avg_sum);
    out->balancedness = out->max_sum > 0.0 ? out->avg_sum / out->max_sum : 1.0;
    if (out->loaded_layers > 0) {
        moe_epi_bl_sort(ratios, out->loaded_layers);
        out->p50 = moe_epi_bl_percentile(ratios, out->loaded_layers, 0.50);
        out->p90 = moe_epi_bl_percentile(ratios, out->loaded_layers, 0.90);
        out->p95 = moe_epi_bl_percentile(ratios, out->loaded_layers, 0.95);
        out->p99 = moe_epi_bl_percentile(ratios, out->loaded_layers, 0.99);
    }
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_balance_layers(const int64_t *loads, int32_t L, int32_t n, moe_ep_layers_result *out,
                                               moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_counts(loads);
    moe_epi_ok(err);
    return moe_epi_bl_layers(&v, L, n, out, scratch, err);
}

MOE_EP_API moe_ep_status moe_ep_balance_layers_d(const double *loads, int32_t L, int32_t n, moe_ep_layers_result *out,
                                                 moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_epi_ok(err);
    return moe_epi_bl_layers(&v, L, n, out, scratch, err);
}

MOE_EP_API moe_ep_status moe_ep_layer_imbalances(const double *loads, int32_t L, int32_t n, double *imbalance,
                                                 moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_ep_status status;
    int32_t l;
    moe_epi_ok(err);
    status = moe_epi_bl_check_matrix(&v, L, n, err);
    if (status != MOE_EP_OK) return status;
    if (!imbalance) return moe_epi_null(err, "imbalance");
    for (l = 0; l < L; l++) {
        const moe_epi_bl_loads row = moe_epi_bl_from(&v, (int64_t)l * n);
        const moe_epi_bl_extent x = moe_epi_bl_measure(&row, n);
        imbalance[l] = moe_epi_bl_ratio(x.max, x.sum / (double)n);
    }
    return MOE_EP_OK;
}

/* Sum over layers of the maximum and of the mean in one step (L,n). */
static moe_epi_bl_extent moe_epi_bl_step(const moe_epi_bl_loads *step, int32_t L, int32_t n)
{
    moe_epi_bl_extent all;
    int32_t l;
    all.sum = all.max = 0.0;
    for (l = 0; l < L; l++) {
        const moe_epi_bl_loads row = moe_epi_bl_from(step, (int64_t)l * n);
        const moe_epi_bl_extent x = moe_epi_bl_measure(&row, n);
        all.sum += x.sum / (double)n;
        all.max += x.max;
    }
    return all;
}

MOE_EP_API moe_ep_status moe_ep_balance_steps(const double *loads, int32_t S, int32_t L, int32_t n,
                                              moe_ep_steps_result *out, moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_epi_arena arena;
    moe_ep_status status;
    double *sums, most, added = 0.0;
    int64_t cells, i;
    size_t total = 0;
    int32_t s, l;
    moe_epi_ok(err);
    if (S < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "S", "must be at least 1", -1, (double)S);
    if (L < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "L", "must be at least 1", -1, (double)L);
    if (n < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must be at least 1", -1, (double)n);
    if (!moe_epi_mul((int64_t)S * L, n, &cells))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "S", "S*L*n does not fit", -1, (double)S);
    status = moe_epi_bl_check(&v, cells, "loads", err);
    if (status != MOE_EP_OK) return status;
    if (!out) return moe_epi_null(err, "out");
    moe_epi_need(&total, n, sizeof *sums);
    status = moe_epi_arena_open(&arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    sums = (double *)moe_epi_take(&arena, n, sizeof *sums);
    memset(out, 0, sizeof *out);
    out->worst_step = -1;
    out->worst_imbalance = 1.0;
    for (s = 0; s < S; s++) {
        const moe_epi_bl_loads step = moe_epi_bl_from(&v, (int64_t)s * L * n);
        const moe_epi_bl_extent x = moe_epi_bl_step(&step, L, n);
        const double ratio = moe_epi_bl_ratio(x.max, x.sum);
        out->max_rows += x.max;
        out->mean_rows += x.sum;
        if (x.sum > 0.0 && (out->worst_step < 0 || ratio > out->worst_imbalance)) {
            out->worst_step = s;
            out->worst_imbalance = ratio;
        }
    }
    for (l = 0; l < L; l++) {
        memset(sums, 0, (size_t)n * sizeof *sums);
        for (s = 0; s < S; s++)
            for (i = 0; i < n; i++) sums[i] += loads[((int64_t)s * L + l) * n + i];
        for (most = 0.0, i = 0; i < n; i++) most = sums[i] > most ? sums[i] : most;
        added += most;
    }
    out->imbalance_of_sum = moe_epi_bl_ratio(added, out->mean_rows);
    out->imbalance = moe_epi_bl_ratio(out->max_rows, out->mean_rows);
    out->max_rows /= (double)S;
    out->mean_rows /= (double)S;
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- who is hot --------------------------------------------------------------------------------------- */

MOE_EP_API moe_ep_status moe_ep_hot_list(const double *loads, int32_t n, double times, int32_t *list, int32_t *count,
                                         moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_ep_status status;
    double threshold;
    int32_t i, found = 0;
    moe_epi_ok(err);
    status = moe_epi_bl_check_n(&v, n, "loads", err);
    if (status != MOE_EP_OK) return status;
    if (!moe_epi_finite(times)) return moe_epi_fail(err, MOE_EP_ERR_NAN, "times", "must be finite", -1, times);
    if (times < 0.0) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "times", "must not be negative", -1, times);
    if (!list) return moe_epi_null(err, "list");
    if (!count) return moe_epi_null(err, "count");
    threshold = times * (moe_epi_bl_measure(&v, n).sum / (double)n);
    for (i = 0; i < n; i++)
        if (loads[i] > threshold) list[found++] = i;
    moe_epi_bl_sort_list(loads, list, found);
    *count = found;
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_dead_list(const double *loads, int32_t n, int32_t *list, int32_t *count,
                                          moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_ep_status status;
    int32_t i, found = 0;
    moe_epi_ok(err);
    status = moe_epi_bl_check_n(&v, n, "loads", err);
    if (status != MOE_EP_OK) return status;
    if (!list) return moe_epi_null(err, "list");
    if (!count) return moe_epi_null(err, "count");
    for (i = 0; i < n; i++)
        if (!(loads[i] > 0.0)) list[found++] = i;
    *count = found;
    return MOE_EP_OK;
}

/* Checked loads (n) -> cumulated shares, heaviest first. */
static void moe_epi_bl_cumulate(const double *loads, int32_t n, double *curve)
{
    double sum = 0.0, so_far = 0.0, swap;
    int32_t i;
    memcpy(curve, loads, (size_t)n * sizeof *curve);
    moe_epi_bl_sort(curve, n);
    for (i = 0; i < n / 2; i++) {
        swap = curve[i];
        curve[i] = curve[n - 1 - i];
        curve[n - 1 - i] = swap;
    }
    for (i = 0; i < n; i++) sum += curve[i]; /* same order as below: the last share is exactly 1 */
    for (i = 0; i < n; i++) {
        so_far += curve[i];
        curve[i] = sum > 0.0 ? so_far / sum : 1.0;
    }
}

MOE_EP_API moe_ep_status moe_ep_coverage(const double *loads, int32_t n, double *curve, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_bl_check_n(&v, n, "loads", err);
    if (status != MOE_EP_OK) return status;
    if (!curve) return moe_epi_null(err, "curve");
    moe_epi_bl_cumulate(loads, n, curve);
    return MOE_EP_OK;
}

/* Opens n doubles and fills them with the curve; the caller closes the arena. */
static moe_ep_status moe_epi_bl_curve(const double *loads, int32_t n, double **curve, moe_epi_arena *arena,
                                      moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_epi_bl_loads v = moe_epi_bl_reals(loads);
    moe_ep_status status = moe_epi_bl_check_n(&v, n, "loads", err);
    size_t total = 0;
    if (status != MOE_EP_OK) return status;
    moe_epi_need(&total, n, sizeof **curve);
    status = moe_epi_arena_open(arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    *curve = (double *)moe_epi_take(arena, n, sizeof **curve);
    moe_epi_bl_cumulate(loads, n, *curve);
    return MOE_EP_OK;
}

MOE_EP_API int64_t moe_ep_experts_for_share(const double *loads, int32_t n, double share, moe_ep_scratch *scratch,
                                            moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_status status;
    double *curve = NULL;
    int64_t needed = 0;
    int32_t i;
    int any = 0;
    moe_epi_ok(err);
    if (!moe_epi_finite(share)) return moe_epi_fail(err, MOE_EP_ERR_NAN, "share", "must be finite", -1, share);
    if (share < 0.0 || share > 1.0) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "share", "must lie in 0..1", -1,
                                                        share);
    status = moe_epi_bl_curve(loads, n, &curve, &arena, scratch, err);
    if (status != MOE_EP_OK) return status;
    for (i = 0; i < n; i++) any = any || loads[i] > 0.0;
    if (share > 0.0 && any)
        for (needed = 1; needed < n && curve[needed - 1] < share; needed++) {}
    moe_epi_arena_close(&arena);
    return needed;
}

MOE_EP_API double moe_ep_top_share(const double *loads, int32_t n, int32_t s, moe_ep_scratch *scratch,
                                   moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_status status;
    double *curve = NULL, share;
    moe_epi_ok(err);
    if (s < 0 || (n > 0 && s > n)) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "s", "must lie in 0..n", -1, (double)s);
    status = moe_epi_bl_curve(loads, n, &curve, &arena, scratch, err);
    if (status != MOE_EP_OK) return (double)status;
    share = s > 0 ? curve[s - 1] : 0.0;
    moe_epi_arena_close(&arena);
    return share;
}

/* Means, spreads and distances of two checked vectors. */
static void moe_epi_bl_compare(const double *a, const double *b, int32_t n, moe_ep_similarity_result *r)
{
    const moe_epi_bl_loads va = moe_epi_bl_reals(a), vb = moe_epi_bl_reals(b);
    const moe_epi_bl_extent xa = moe_epi_bl_measure(&va, n), xb = moe_epi_bl_measure(&vb, n);
    const double even = 1.0 / (double)n;
    double aa = 0.0, bb = 0.0, ab = 0.0, da = 0.0, db = 0.0, dab = 0.0, l1 = 0.0;
    int32_t i;
    for (i = 0; i < n; i++) {
        double pa = xa.sum > 0.0 ? a[i] / xa.sum : even, pb = xb.sum > 0.0 ? b[i] / xb.sum : even;
        aa += pa * pa;
        bb += pb * pb;
        ab += pa * pb;
        da += (pa - even) * (pa - even);
        db += (pb - even) * (pb - even);
        dab += (pa - even) * (pb - even);
        l1 += fabs(pa - pb);
    }
    r->l1 = l1;
    r->total_variation = 0.5 * l1;
    if (xa.sum > 0.0 && xb.sum > 0.0) r->cosine = ab / sqrt(aa * bb);
    else r->cosine = xa.sum > 0.0 || xb.sum > 0.0 ? 0.0 : 1.0;
    /* a spread at the level of rounding is none */
    if (da > 1e-30 && db > 1e-30) r->correlation = dab / sqrt(da * db);
    else r->correlation = l1 > 1e-12 ? 0.0 : 1.0;
}

MOE_EP_API moe_ep_status moe_ep_similarity(const double *a, const double *b, int32_t n, int32_t top,
                                           moe_ep_similarity_result *out, moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_epi_bl_loads va = moe_epi_bl_reals(a), vb = moe_epi_bl_reals(b);
    moe_epi_arena arena;
    moe_ep_status status;
    int32_t *hot_a, *hot_b, i, j;
    size_t total = 0;
    moe_epi_ok(err);
    status = moe_epi_bl_check_n(&va, n, "a", err);
    if (status == MOE_EP_OK) status = moe_epi_bl_check_n(&vb, n, "b", err);
    if (status != MOE_EP_OK) return status;
    if (top < 0 || top > n) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "top", "must lie in 0..n", -1, (double)top);
    if (!out) return moe_epi_null(err, "out");
    moe_epi_need(&total, n, sizeof *hot_a);
    moe_epi_need(&total, n, sizeof *hot_b);
    status = moe_epi_arena_open(&arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    hot_a = (int32_t *)moe_epi_take(&arena, n, sizeof *hot_a);
    hot_b = (int32_t *)moe_epi_take(&arena, n, sizeof *hot_b);
    for (i = 0; i < n; i++) hot_a[i] = hot_b[i] = i;
    moe_epi_bl_sort_list(a, hot_a, n);
    moe_epi_bl_sort_list(b, hot_b, n);
    memset(out, 0, sizeof *out);
    out->top = top > 0 ? top : n / 8 > 0 ? n / 8 : 1;
    for (i = 0; i < out->top; i++)
        for (j = 0; j < out->top; j++) out->overlap += hot_a[i] == hot_b[j];
    moe_epi_bl_compare(a, b, n, out);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- chance -------------------------------------------------------------------------------------------
 *
 * Every load is a binomial draw from a pool of `pool` tickets, the loads of all groups conditioned on their
 * sum N = T*K: a multivariate hypergeometric law with M = groups*pool tickets.  With
 *     M = (T K (E-1) - (E-K)) / (K-1)
 * its variance and correlations are exactly those of T tokens choosing K distinct of E experts; it is the
 * very law for K = 1 (M infinite: multinomial), K = E (M = N) and T = 1 (one ticket per expert).
 *     P(max <= m) = P(sum = N, all <= m) / P(sum = N)
 * Both by inverting the characteristic function phi_m(t)^groups of the sum on a small set of points, where
 * phi_m grows with m one term at a time.  Above a standard deviation of MOE_EPI_BL_SMOOTH the loads are
 * looked at in steps of sd/MOE_EPI_BL_SMOOTH rows, which changes nothing that 1 % could see. */

#define MOE_EPI_BL_SMOOTH 12.0
#define MOE_EPI_BL_CELLS 400
#define MOE_EPI_BL_NODES 160

/* Weights of one load at first, first+step, ... */
typedef struct moe_epi_bl_grid {
    double first, step, sd;
    int32_t cells;
    double weight[MOE_EPI_BL_CELLS];
} moe_epi_bl_grid;

/* ln Gamma(x), x > 0: Stirling's series above 10, the recurrence below. */
static double moe_epi_bl_lgamma(double x)
{
    double shift = 1.0, z;
    while (x < 10.0) {
        shift *= x;
        x += 1.0;
    }
    z = 1.0 / (x * x);
    z = (1.0 / 12.0 - z * (1.0 / 360.0 - z * (1.0 / 1260.0 - z / 1680.0))) / x;
    return (x - 0.5) * log(x) - x + 0.91893853320467274178 + z - log(shift);
}

/* Ratio of the weights of load+1 and load.  pool 0 = infinite. */
static double moe_epi_bl_growth(double load, double mean, double pool)
{
    if (pool > 0.0) return pool > load ? (pool - load) / (load + 1.0) * (mean / (pool - mean)) : 0.0;
    return mean / (load + 1.0);
}

/* Every whole load around the mean, weights relative to that of the mean. */
static void moe_epi_bl_grid_whole(double mean, double pool, double most, moe_epi_bl_grid *g)
{
    const double centre = floor(mean);
    double load = centre, weight = 1.0;
    int32_t below = 0, i;
    while (load > 0.0 && below < MOE_EPI_BL_CELLS / 2 && weight > 1e-19) {
        load -= 1.0;
        weight /= moe_epi_bl_growth(load, mean, pool);
        below++;
    }
    g->first = load;
    g->step = 1.0;
    for (i = 0; i < MOE_EPI_BL_CELLS && load <= most; i++, load += 1.0) {
        g->weight[i] = weight;
        weight *= moe_epi_bl_growth(load, mean, pool);
        if (load > mean && weight < 1e-19) { i++; break; }
    }
    g->cells = i;
}

/* Logarithm of an unnormalised weight at a real load. */
static double moe_epi_bl_log_weight(double load, double mean, double pool)
{
    const double sd = sqrt(pool > 0.0 ? mean * (1.0 - mean / pool) : mean);
    if (sd > 3000.0) return -0.5 * (load - mean) / sd * ((load - mean) / sd); /* skewness is long gone */
    if (!(pool > 0.0)) return load * log(mean) - moe_epi_bl_lgamma(load + 1.0);
    return load * log(mean / (pool - mean)) - moe_epi_bl_lgamma(load + 1.0) - moe_epi_bl_lgamma(pool - load + 1.0);
}

/* Steps of sd/SMOOTH through the mean. */
static void moe_epi_bl_grid_smooth(double mean, double pool, double most, moe_epi_bl_grid *g)
{
    const double centre = moe_epi_bl_log_weight(mean, mean, pool);
    int32_t k;
    g->step = g->sd / MOE_EPI_BL_SMOOTH;
    g->cells = 0;
    for (k = -108; k <= 108; k++) {
        const double load = mean + (double)k * g->step;
        if (load < 0.0 || load > most) continue;
        if (g->cells == 0) g->first = load;
        g->weight[g->cells++] = exp(moe_epi_bl_log_weight(load, mean, pool) - centre);
    }
}

/* Law of one load with this mean out of pool tickets (0 = infinitely many), at most `most`. */
static void moe_epi_bl_make_grid(double mean, double pool, double most, moe_epi_bl_grid *g)
{
    double sum = 0.0;
    int32_t i;
    g->sd = sqrt(pool > 0.0 ? mean * (1.0 - mean / pool) : mean);
    if (g->sd > MOE_EPI_BL_SMOOTH) moe_epi_bl_grid_smooth(mean, pool, most, g);
    else moe_epi_bl_grid_whole(mean, pool, most, g);
    MOE_EP_ASSERT(g->cells > 0);
    for (i = 0; i < g->cells; i++) sum += g->weight[i];
    for (i = 0; i < g->cells; i++) g->weight[i] /= sum;
}

/* Points on the circle at which phi_m is kept. */
typedef struct moe_epi_bl_nodes {
    int32_t count;
    double share[MOE_EPI_BL_NODES];                                     /* weight in the inversion            */
    double re[MOE_EPI_BL_NODES], im[MOE_EPI_BL_NODES];                  /* phi_m so far                       */
    double turn_re[MOE_EPI_BL_NODES], turn_im[MOE_EPI_BL_NODES];        /* e^{it}                             */
    double here_re[MOE_EPI_BL_NODES], here_im[MOE_EPI_BL_NODES];        /* e^{itk} at the cell to be added    */
    double back_re[MOE_EPI_BL_NODES], back_im[MOE_EPI_BL_NODES];        /* e^{-it target}                     */
} moe_epi_bl_nodes;

/* sd of the sum in cells; target = wanted sum in cells, counted from `start` cells each. */
static void moe_epi_bl_make_nodes(double sum_sd, double groups, double target, double start, moe_epi_bl_nodes *q)
{
    const double two_pi = 6.283185307179586476925;
    double period = 2.0 * ceil(4.5 * sum_sd + 4.0), widest = groups < 4.0 ? two_pi : 8.0 / sum_sd;
    int32_t i;
    q->count = 0;
    for (i = 0; i < MOE_EPI_BL_NODES; i++) {
        const double t = two_pi * (double)i / period;
        if (2.0 * (double)i > period || t > widest) break;
        q->share[i] = i == 0 || !(2.0 * (double)i < period) ? 1.0 : 2.0;
        q->re[i] = q->im[i] = 0.0;
        q->turn_re[i] = cos(t);
        q->turn_im[i] = sin(t);
        q->here_re[i] = cos(t * start);
        q->here_im[i] = sin(t * start);
        q->back_re[i] = cos(t * target);
        q->back_im[i] = -sin(t * target);
        q->count++;
    }
}

/* Adds one cell's weight to every phi and moves on to the next cell. */
static void moe_epi_bl_extend(moe_epi_bl_nodes *q, double weight)
{
    int32_t i;
    for (i = 0; i < q->count; i++) {
        const double re = q->here_re[i], im = q->here_im[i];
        q->re[i] += weight * re;
        q->im[i] += weight * im;
        q->here_re[i] = re * q->turn_re[i] - im * q->turn_im[i];
        q->here_im[i] = re * q->turn_im[i] + im * q->turn_re[i];
    }
}

/* Sum over the points of phi^groups e^{-it target}: the joint weight up to a constant. */
static double moe_epi_bl_invert(const moe_epi_bl_nodes *q, int32_t groups)
{
    double total = 0.0;
    int32_t i, power;
    for (i = 0; i < q->count; i++) {
        double re = q->re[i], im = q->im[i], out_re = q->back_re[i], out_im = q->back_im[i], old;
        for (power = groups; power > 0; power >>= 1) {
            if (power & 1) {
                old = out_re;
                out_re = old * re - out_im * im;
                out_im = old * im + out_im * re;
            }
            old = re;
            re = old * old - im * im;
            im = 2.0 * old * im;
        }
        total += q->share[i] * out_re;
    }
    return total;
}

/* Distribution of the maximum: cdf over the cells of g, and its moments and percentiles in loads. */
static void moe_epi_bl_max_law(const moe_epi_bl_grid *g, double mean, int32_t groups, double *cdf)
{
    moe_epi_bl_nodes nodes;
    const double start = (g->first - mean) / g->step; /* cells counted from the mean: the target is 0 */
    double best = 0.0;
    int32_t i;
    moe_epi_bl_make_nodes(g->sd / g->step * sqrt((double)groups), (double)groups, 0.0, start, &nodes);
    for (i = 0; i < g->cells; i++) {
        moe_epi_bl_extend(&nodes, g->weight[i]);
        cdf[i] = g->first + ((double)i + 1e-9) * g->step < mean ? 0.0 : moe_epi_bl_invert(&nodes, groups);
    }
    for (i = 0; i < g->cells; i++) { /* rounding may go below zero or back */
        if (cdf[i] > best) best = cdf[i];
        cdf[i] = best;
    }
    for (i = 0; i < g->cells; i++) cdf[i] /= best;
}

/* Load at which a cdf over the cells reaches q: the lowest whole load, or between two steps of a smooth grid. */
static double moe_epi_bl_quantile(const moe_epi_bl_grid *g, const double *cdf, double q)
{
    double below = 0.0;
    int32_t i;
    for (i = 0; i + 1 < g->cells && cdf[i] < q; i++) below = cdf[i];
    if (g->sd <= MOE_EPI_BL_SMOOTH) return g->first + (double)i;
    return g->first + ((double)i - 0.5 + (cdf[i] > below ? (q - below) / (cdf[i] - below) : 0.5)) * g->step;
}

/* The grid of `whole` - load. */
static void moe_epi_bl_reverse(moe_epi_bl_grid *g, double whole)
{
    int32_t i;
    g->first = whole - (g->first + (double)(g->cells - 1) * g->step);
    for (i = 0; i < g->cells / 2; i++) {
        const double weight = g->weight[i];
        g->weight[i] = g->weight[g->cells - 1 - i];
        g->weight[g->cells - 1 - i] = weight;
    }
}

/* Expectation, spread and percentiles of the maximum from its cdf over the cells. */
static void moe_epi_bl_max_result(const moe_epi_bl_grid *g, const double *cdf, double mean, moe_ep_chance_result *out)
{
    double sum = 0.0, squares = 0.0, before = 0.0;
    int32_t i;
    for (i = 0; i < g->cells; i++) {
        const double ratio = (g->first + (double)i * g->step) / mean;
        sum += ratio * (cdf[i] - before);
        squares += ratio * ratio * (cdf[i] - before);
        before = cdf[i];
    }
    out->max_over_mean = sum > 1.0 ? sum : 1.0;
    out->sd = squares > sum * sum ? sqrt(squares - sum * sum) : 0.0;
    out->p05 = moe_epi_bl_quantile(g, cdf, 0.05) / mean;
    out->p95 = moe_epi_bl_quantile(g, cdf, 0.95) / mean;
}

/* T tokens choosing K of E, loads of `groups` equal sets of `size` experts. */
typedef struct moe_epi_bl_draw {
    double T, K, E, size;
    int32_t groups;
} moe_epi_bl_draw;

/* Tickets of one group, 0 = infinitely many (K = 1). */
static double moe_epi_bl_tickets(const moe_epi_bl_draw *w, double K)
{
    if (!(K > 1.0)) return 0.0;
    return (w->T * K * (w->E - 1.0) - (w->E - K)) / (K - 1.0) / (double)w->groups;
}

static void moe_epi_bl_chance_max(const moe_epi_bl_draw *w, double mean, moe_ep_chance_result *out)
{
    moe_epi_bl_grid grid;
    double cdf[MOE_EPI_BL_CELLS];
    const double left_out = w->E - w->K; /* experts a token does NOT choose: the smaller set is the better model */
    if (w->K > left_out && !(w->size > floor(w->size))) {
        moe_epi_bl_make_grid(w->T * w->size - mean, moe_epi_bl_tickets(w, left_out),
                             w->T * (left_out < w->size ? left_out : w->size), &grid);
        moe_epi_bl_reverse(&grid, w->T * w->size);
    } else {
        moe_epi_bl_make_grid(mean, moe_epi_bl_tickets(w, w->K), w->T * (w->K < w->size ? w->K : ceil(w->size)),
                             &grid);
    }
    moe_epi_bl_max_law(&grid, mean, w->groups, cdf);
    moe_epi_bl_max_result(&grid, cdf, mean, out);
}

/* Three tokens or fewer, one expert per group: the maximum is at most 3 and its law a short sum.
 * cdf[m-1] = P(max <= m). */
static void moe_epi_bl_chance_few(const moe_epi_bl_draw *w, double mean, moe_ep_chance_result *out)
{
    moe_epi_bl_grid grid;
    double cdf[3], apart = 1.0, empty = 1.0, common = 0.0, shared = 1.0, i;
    /* shared = P(two tokens share i experts), walked from its largest term; see the loop */
    const double E = w->E, K = w->K, least = 2.0 * K > E ? 2.0 * K - E : 0.0;
    for (i = 0.0; i < K; i += 1.0) { /* P(second token apart), P(third apart from both) */
        apart *= 2.0 * K > E ? 0.0 : (E - K - i) / (E - i);
        empty *= 3.0 * K > E ? 0.0 : (E - 2.0 * K - i) / (E - i);
    }
    grid.first = grid.step = 1.0;
    grid.sd = 0.0;
    grid.cells = (int32_t)w->T;
    cdf[0] = cdf[1] = cdf[2] = 1.0;
    if (w->T > 1.0) cdf[0] = apart;
    if (w->T > 2.0) {
        double weights = 0.0, missed = 0.0, miss = 1.0;
        cdf[0] = apart * empty;
        for (i = 0.0; i < least; i += 1.0) miss *= (E - K - i) / (E - i); /* third token misses all i shared */
        for (i = least; i <= K; i += 1.0) {
            weights += shared;
            missed += shared * miss;
            shared *= (K - i) * (K - i) / ((i + 1.0) * (E - 2.0 * K + i + 1.0));
            miss *= E - K - i > 0.0 ? (E - K - i) / (E - i) : 0.0;
            if (weights > 1e200) { weights *= 1e-200; missed *= 1e-200; shared *= 1e-200; }
        }
        common = 1.0 - missed / weights;
        cdf[1] = 1.0 - common;
    }
    moe_epi_bl_max_result(&grid, cdf, mean, out);
}

/* One load: its exact variance in a binomial. */
static void moe_epi_bl_chance_one(const moe_epi_bl_draw *w, double mean, moe_ep_chance_result *out)
{
    moe_epi_bl_grid grid;
    double cdf[MOE_EPI_BL_CELLS], so_far = 0.0;
    const double variance = mean * (1.0 - 1.0 / (double)w->groups) * (w->E - w->K) / (w->E - 1.0);
    int32_t i;
    moe_epi_bl_make_grid(mean, mean / (1.0 - variance / mean), w->T * (w->K < w->size ? w->K : ceil(w->size)), &grid);
    for (i = 0; i < grid.cells; i++) cdf[i] = so_far += grid.weight[i];
    out->one_sd = sqrt(variance) / mean;
    out->one_p05 = moe_epi_bl_quantile(&grid, cdf, 0.05) / mean;
    out->one_p95 = moe_epi_bl_quantile(&grid, cdf, 0.95) / mean;
}

#undef MOE_EPI_BL_SMOOTH
#undef MOE_EPI_BL_CELLS
#undef MOE_EPI_BL_NODES

/* groups equal sets of E/groups experts; checked arguments. */
static void moe_epi_bl_chance(double T, double K, double E, int32_t groups, moe_ep_chance_result *out)
{
    const double mean = T * K / (double)groups;
    moe_epi_bl_draw draw;
    draw.T = T;
    draw.K = K;
    draw.E = E;
    draw.size = E / (double)groups;
    draw.groups = groups;
    memset(out, 0, sizeof *out);
    out->mean_load = mean;
    out->tokens = T * moe_epi_ld_reach(K, E, draw.size);
    out->distinct = (groups < E ? draw.size : E) * moe_epi_ld_any(K / E, T);
    out->max_over_mean = out->p05 = out->p95 = out->one_p05 = out->one_p95 = 1.0;
    if (groups == 1 || K >= E) return;
    moe_epi_bl_chance_one(&draw, mean, out);
    if (T < 3.5 && !(draw.size > 1.0)) moe_epi_bl_chance_few(&draw, mean, out);
    else moe_epi_bl_chance_max(&draw, mean, out);
}

MOE_EP_API moe_ep_status moe_ep_chance(int64_t T, int32_t K, int32_t E, moe_ep_chance_result *out, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_ld_check_uniform(T, K, E, err);
    if (status != MOE_EP_OK) return status;
    if (!out) return moe_epi_null(err, "out");
    moe_epi_bl_chance((double)T, (double)K, (double)E, E, out);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_chance_with_replacement(int64_t T, int32_t K, int32_t E, moe_ep_chance_result *out,
                                                        moe_ep_error *err)
{
    moe_ep_status status;
    int64_t n;
    moe_epi_ok(err);
    status = moe_epi_ld_check_uniform(T, 1, E, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status != MOE_EP_OK) return status;
    if (!out) return moe_epi_null(err, "out");
    moe_epi_bl_chance((double)T * (double)K, 1.0, (double)E, E, out);
    out->tokens = (double)T * moe_epi_ld_any(1.0 / (double)E, (double)K);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_chance_devices(int64_t T, int32_t K, int32_t E, int32_t D, moe_ep_chance_result *out,
                                               moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_ld_check_uniform(T, K, E, err);
    if (status != MOE_EP_OK) return status;
    if (D < 1 || D > E) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "must lie in 1..E", -1, (double)D);
    if (!out) return moe_epi_null(err, "out");
    moe_epi_bl_chance((double)T, (double)K, (double)E, D, out);
    return MOE_EP_OK;
}

/* ==================================================================================================
 * 4 CAPACITY
 * ================================================================================================== */

/* Products and quotients rounded to their type one at a time.  The formulas differ in exactly these
 * roundings, so operands and results pass through volatile: -ffast-math of the host may not merge them. */
static double moe_epi_times(double a, double b)
{
    volatile double x = a, y = b, r = x * y;
    return r;
}

static double moe_epi_over(double a, double b)
{
    volatile double x = a, y = b, r = x / y;
    return r;
}

static float moe_epi_times_f(float a, float b)
{
    volatile float x = a, y = b, r = x * y;
    return r;
}

static float moe_epi_round_f(double a)
{
    volatile float r = (float)a;
    return r;
}

static double moe_epi_round(double v, moe_ep_rounding how)
{
    double below = floor(v), rest = v - below;
    if (how == MOE_EP_ROUND_CEIL) return ceil(v);
    if (how == MOE_EP_ROUND_FLOOR) return below;
    if (rest > 0.5) return below + 1.0;
    if (rest < 0.5) return below;
    return 2.0 * floor(below / 2.0) < below ? below + 1.0 : below;
}

static double moe_epi_ceil_div(int64_t a, int64_t b) { return (double)(a / b + (a % b > 0)); }

static double moe_epi_smaller(double a, double b) { return a < b ? a : b; }

static double moe_epi_capacity_general(const moe_ep_capacity_desc *d, double T, double N)
{
    double basis = d->basis_tokens ? T : N, E = (double)d->num_experts;
    if (!d->in_float32) return moe_epi_round(moe_epi_times(moe_epi_over(basis, E), d->factor), d->rounding);
    return moe_epi_round((double)moe_epi_times_f(moe_epi_round_f(moe_epi_over(basis, E)), moe_epi_round_f(d->factor)),
                         d->rounding);
}

static double moe_epi_capacity_tutel(const moe_ep_capacity_desc *d)
{
    double share = moe_epi_ceil_div(d->num_tokens, d->num_experts), load = (double)d->max_load;
    double rows = (double)d->top_k * floor(moe_epi_times(fabs(d->factor), share));
    if (d->factor > 0.0) return rows;
    return d->factor < 0.0 && (d->max_load == 0 || rows < load) ? rows : load;
}

static double moe_epi_capacity_lingvo(double T, double E, double factor)
{
    double rows = floor(moe_epi_over(moe_epi_times(T, factor), E));
    if (rows < 1.0) rows = 4.0;
    return 4.0 * ceil(rows / 4.0);
}

/* The formula of the rule, before min_capacity and multiple. */
static double moe_epi_capacity_formula(const moe_ep_capacity_desc *d, int64_t assignments)
{
    double T = (double)d->num_tokens, E = (double)d->num_experts, K = (double)d->top_k;
    double N = (double)assignments, f = d->factor, rows;
    switch (d->rule) {
    case MOE_EP_CAPACITY_GENERAL: return moe_epi_capacity_general(d, T, N);
    case MOE_EP_CAPACITY_MEGATRON: return ceil(moe_epi_times(moe_epi_over(N, E), f));
    case MOE_EP_CAPACITY_DEEPSPEED_TOP1:
        return ceil((double)moe_epi_times_f(moe_epi_round_f(moe_epi_over(T, E)), moe_epi_round_f(f)));
    case MOE_EP_CAPACITY_DEEPSPEED_TOPK:
        return ceil((double)moe_epi_times_f(moe_epi_round_f(moe_epi_over(T, E)), moe_epi_round_f(moe_epi_times(f, K))));
    case MOE_EP_CAPACITY_TUTEL: return moe_epi_capacity_tutel(d);
    case MOE_EP_CAPACITY_MEGABLOCKS:
        rows = floor(moe_epi_times(f, moe_epi_over(moe_epi_times(N, d->world > 0 ? (double)d->world : 1.0), E)));
        return rows > 0.0 ? rows : (double)d->max_load;
    case MOE_EP_CAPACITY_MAXTEXT:
        if (!(f > 0.0)) return (double)d->max_load;
        rows = moe_epi_times(moe_epi_ceil_div(assignments, d->num_experts), f);
        return floor(rows > f ? rows : f);
    case MOE_EP_CAPACITY_FLAXFORMER:
        return moe_epi_round(moe_epi_over(moe_epi_times(f, T), E), MOE_EP_ROUND_HALF_EVEN);
    case MOE_EP_CAPACITY_MESH_TF: return moe_epi_smaller(T, floor(moe_epi_over(moe_epi_times(T, f), E)));
    case MOE_EP_CAPACITY_LINGVO: return moe_epi_capacity_lingvo(T, E, f);
    case MOE_EP_CAPACITY_NLLB:
        return f > 0.0 ? ceil(moe_epi_times(f, T)) : 2.0 * moe_epi_ceil_div(d->num_tokens, d->num_experts);
    case MOE_EP_CAPACITY_HUNYUAN: break;
    }
    rows = (double)(assignments / d->num_experts);
    return rows > K ? rows : K;
}

/* cf may be 0 or negative only where the rule gives that a meaning. */
static int moe_epi_capacity_factor_ok(const moe_ep_capacity_desc *d)
{
    switch (d->rule) {
    case MOE_EP_CAPACITY_TUTEL:
    case MOE_EP_CAPACITY_MAXTEXT:
    case MOE_EP_CAPACITY_HUNYUAN: return 1;
    case MOE_EP_CAPACITY_MEGABLOCKS:
    case MOE_EP_CAPACITY_NLLB: return !(d->factor < 0.0);
    case MOE_EP_CAPACITY_GENERAL:
    case MOE_EP_CAPACITY_MEGATRON:
    case MOE_EP_CAPACITY_DEEPSPEED_TOP1:
    case MOE_EP_CAPACITY_DEEPSPEED_TOPK:
    case MOE_EP_CAPACITY_FLAXFORMER:
    case MOE_EP_CAPACITY_MESH_TF:
    case MOE_EP_CAPACITY_LINGVO: break;
    }
    return d->factor > 0.0;
}

static moe_ep_status moe_epi_capacity_check(const moe_ep_capacity_desc *d, moe_ep_error *err)
{
    moe_ep_status s;
    if (!d) return moe_epi_null(err, "desc");
    if ((s = moe_epi_check_enum((int)d->rule, 11, "rule", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_enum((int)d->rounding, 2, "rounding", err)) != MOE_EP_OK) return s;
    if (d->num_tokens < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_tokens", "must be at least 1", -1, (double)d->num_tokens);
    if (d->top_k < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "top_k", "must be at least 1", -1, (double)d->top_k);
    if (d->num_experts < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_experts", "must be at least 1", -1, (double)d->num_experts);
    if (!moe_epi_finite(d->factor))
        return moe_epi_fail(err, MOE_EP_ERR_NAN, "factor", "must be finite", -1, d->factor);
    if (!moe_epi_capacity_factor_ok(d))
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "factor", "must be positive for this rule", -1, d->factor);
    if (d->min_capacity < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "min_capacity", "must not be negative", -1,
                            (double)d->min_capacity);
    if (d->multiple < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "multiple", "must not be negative", -1, (double)d->multiple);
    if (d->world < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "world", "must not be negative", -1, (double)d->world);
    if (d->max_load < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "max_load", "must not be negative", -1, (double)d->max_load);
    return MOE_EP_OK;
}

MOE_EP_API int64_t moe_ep_capacity(const moe_ep_capacity_desc *desc, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t assignments, rows;
    double value;
    moe_epi_ok(err);
    if ((s = moe_epi_capacity_check(desc, err)) != MOE_EP_OK) return s;
    if (!moe_epi_mul(desc->num_tokens, desc->top_k, &assignments))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_tokens", "T*K does not fit", -1,
                                     (double)desc->num_tokens);
    value = moe_epi_capacity_formula(desc, assignments);
    if (!(value < 9.0e18))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "factor", "the capacity does not fit", -1, value);
    rows = (int64_t)value;
    if (rows < desc->min_capacity) rows = desc->min_capacity;
    if (desc->multiple > 1 && rows % desc->multiple != 0) {
        if (rows > INT64_MAX - desc->multiple)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "multiple", "the capacity does not fit", -1,
                                         (double)desc->multiple);
        rows += desc->multiple - rows % desc->multiple;
    }
    return rows;
}

MOE_EP_API const char *moe_ep_capacity_rule_name(int32_t rule)
{
    switch (rule) {
    case MOE_EP_CAPACITY_GENERAL: return "general";
    case MOE_EP_CAPACITY_MEGATRON: return "megatron";
    case MOE_EP_CAPACITY_DEEPSPEED_TOP1: return "deepspeed_top1";
    case MOE_EP_CAPACITY_DEEPSPEED_TOPK: return "deepspeed_topk";
    case MOE_EP_CAPACITY_TUTEL: return "tutel";
    case MOE_EP_CAPACITY_MEGABLOCKS: return "megablocks";
    case MOE_EP_CAPACITY_MAXTEXT: return "maxtext";
    case MOE_EP_CAPACITY_FLAXFORMER: return "flaxformer";
    case MOE_EP_CAPACITY_MESH_TF: return "mesh_tf";
    case MOE_EP_CAPACITY_LINGVO: return "lingvo";
    case MOE_EP_CAPACITY_NLLB: return "nllb";
    case MOE_EP_CAPACITY_HUNYUAN: return "hunyuan";
    default: return NULL;
    }
}

static moe_ep_status moe_epi_check_loads(const int64_t *loads, int32_t E, int64_t *sum, moe_ep_error *err)
{
    moe_epi_ok(err);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (!loads) return moe_epi_null(err, "loads");
    return moe_epi_sum_loads(loads, E, "loads", sum, err);
}

MOE_EP_API int64_t moe_ep_dropped_tokens(const int64_t *loads, int32_t E, int64_t capacity,
                                         moe_ep_error *err)
{
    int64_t sum, dropped = 0;
    int32_t e;
    moe_ep_status s = moe_epi_check_loads(loads, E, &sum, err);
    if (s != MOE_EP_OK) return s;
    if (capacity < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "capacity", "must not be negative", -1,
                                     (double)capacity);
    for (e = 0; e < E; e++) dropped += loads[e] > capacity ? loads[e] - capacity : 0;
    return dropped;
}

MOE_EP_API double moe_ep_smallest_capacity_factor(const int64_t *loads, int32_t E, int64_t basis,
                                                  moe_ep_error *err)
{
    int64_t sum, most = 0;
    int32_t e;
    moe_ep_status s = moe_epi_check_loads(loads, E, &sum, err);
    if (s != MOE_EP_OK) return moe_epi_loss_status(s);
    if (basis < 1)
        return moe_epi_loss_status(
            moe_epi_fail(err, MOE_EP_ERR_SIZE, "basis", "must be at least 1", -1, (double)basis));
    for (e = 0; e < E; e++) most = loads[e] > most ? loads[e] : most;
    return (double)most * (double)E / (double)basis;
}

/* ---- the best of an array: a heap with the worst at the root, then unwound ----------------------------- */

/* Larger value first, then lower index. */
static int moe_epi_top_better(const float *value, int64_t a, int64_t b)
{
    if (value[a] > value[b]) return 1;
    if (value[a] < value[b]) return 0;
    return a < b;
}

static void moe_epi_top_sift(const float *value, int64_t *heap, int64_t n, int64_t at)
{
    int64_t child, moved = heap[at];
    while ((child = 2 * at + 1) < n) {
        if (child + 1 < n && moe_epi_top_better(value, heap[child], heap[child + 1])) child++;
        if (!moe_epi_top_better(value, moved, heap[child])) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/* heap[0..keep-1] = indices of the `keep` largest of value (n), largest first; keep = n sorts them all. */
static void moe_epi_top_floats(const float *value, int64_t n, int64_t keep, int64_t *heap)
{
    int64_t i, worst;
    for (i = 0; i < keep; i++) heap[i] = i;
    for (i = keep / 2 - 1; i >= 0; i--) moe_epi_top_sift(value, heap, keep, i);
    for (i = keep; i < n; i++) {
        if (!moe_epi_top_better(value, i, heap[0])) continue;
        heap[0] = i;
        moe_epi_top_sift(value, heap, keep, 0);
    }
    for (i = keep - 1; i > 0; i--) {
        worst = heap[0];
        heap[0] = heap[i];
        heap[i] = worst;
        moe_epi_top_sift(value, heap, i, 0);
    }
}

/* ---- dropping ----------------------------------------------------------------------------------------- */

/* One call of moe_ep_drop: its arguments and working memory. */
typedef struct moe_epi_dropping {
    const moe_ep_drop_policy *p;
    const int32_t *ids;
    const float *weights;
    int64_t K;
    uint8_t *keep;             /* (T,K) the caller's, or scratch                                          */
    int64_t *slot, *position;  /* (T,K) or NULL                                                           */
    int64_t *count;            /* (E) length of the queues of the present group                           */
    float *rank_key;           /* sorted orders: keys and order of tokens or assignments of a group       */
    int64_t *rank;
    moe_ep_drop_result r;
} moe_epi_dropping;

static int64_t moe_epi_drop_limit(const moe_ep_drop_policy *p, int32_t e)
{
    return p->capacities ? p->capacities[e] : p->capacity;
}

/* Assignment i joins the queue of its expert. */
static void moe_epi_drop_admit(moe_epi_dropping *d, int64_t i)
{
    int32_t e = d->ids[i];
    int64_t place = -1;
    d->keep[i] = 0;
    if (e >= 0) {
        place = d->count[e]++;
        d->keep[i] = place < moe_epi_drop_limit(d->p, e);
        if (d->count[e] > d->r.max_load) d->r.max_load = d->count[e];
    }
    if (d->position) d->position[i] = place;
    if (d->slot) d->slot[i] = d->keep[i] ? place : -1;
}

/* Keys of the sorted orders: of the group's assignments, or of its tokens for MAX_GATE. */
static int64_t moe_epi_drop_keys(moe_epi_dropping *d, int64_t t0, int64_t tokens)
{
    int64_t i, j, n = tokens * d->K;
    if (d->p->order != MOE_EP_DROP_MAX_GATE) {
        for (i = 0; i < n; i++)
            d->rank_key[i] = d->p->order == MOE_EP_DROP_RANDOM ? (float)moe_ep_rng_f64(d->p->rng)
                                                              : d->weights[t0 * d->K + i];
        return n;
    }
    for (i = 0; i < tokens; i++) {
        const float *w = d->p->priority ? NULL : d->weights + (t0 + i) * d->K;
        d->rank_key[i] = w ? w[0] : d->p->priority[t0 + i];
        for (j = 1; w && j < d->K; j++)
            if (w[j] > d->rank_key[i]) d->rank_key[i] = w[j];
    }
    return tokens;
}

/* Decides the group of tokens t0 .. t0+tokens-1. */
static void moe_epi_drop_group(moe_epi_dropping *d, int64_t t0, int64_t tokens)
{
    int64_t i, j, n, K = d->K, first = t0 * K;
    moe_ep_drop_order order = d->p->order;
    if (order == MOE_EP_DROP_TOKEN_MAJOR) {
        for (i = 0; i < tokens * K; i++) moe_epi_drop_admit(d, first + i);
        return;
    }
    if (order == MOE_EP_DROP_CHOICE_MAJOR) {
        for (j = 0; j < K; j++)
            for (i = 0; i < tokens; i++) moe_epi_drop_admit(d, first + i * K + j);
        return;
    }
    n = moe_epi_drop_keys(d, t0, tokens);
    moe_epi_top_floats(d->rank_key, n, n, d->rank);
    if (order == MOE_EP_DROP_MAX_GATE) {
        for (j = 0; j < K; j++)
            for (i = 0; i < tokens; i++) moe_epi_drop_admit(d, first + d->rank[i] * K + j);
    } else {
        for (i = 0; i < n; i++) moe_epi_drop_admit(d, first + d->rank[i]);
    }
}

/* Slots dealt again to the survivors, in token order. */
static void moe_epi_drop_slots_by_token(moe_epi_dropping *d, int64_t t0, int64_t tokens, int32_t E)
{
    int64_t i;
    memset(d->count, 0, sizeof *d->count * (size_t)E);
    for (i = t0 * d->K; i < (t0 + tokens) * d->K; i++)
        if (d->keep[i]) d->slot[i] = d->count[d->ids[i]]++;
}

/* Weights of one token after the drop; reads w completely before it writes. */
static void moe_epi_drop_weights(const moe_epi_dropping *d, int64_t t, float *after)
{
    const moe_ep_drop_policy *p = d->p;
    const int32_t *id = d->ids + t * d->K;
    const uint8_t *keep = d->keep + t * d->K;
    const float *w = d->weights + t * d->K;
    double norm = 0.0;
    int64_t j;
    int normed = p->norm != MOE_EP_NORM_NEVER && !(p->norm_skip_k1 && d->K == 1), usable;
    for (j = 0; normed && j < d->K; j++)
        if (id[j] >= 0 && (keep[j] || p->norm == MOE_EP_NORM_BEFORE)) norm += (double)w[j];
    norm = moe_epi_with_eps(norm, p->eps_mode, p->eps);
    usable = norm > 0.0 || norm < 0.0;
    for (j = 0; j < d->K; j++) {
        if (id[j] < 0 || !(keep[j] || p->keep_weights)) after[t * d->K + j] = 0.0f;
        else if (!normed) after[t * d->K + j] = w[j];
        else after[t * d->K + j] = usable ? (float)((double)w[j] / norm) : 0.0f;
    }
}

static void moe_epi_drop_count_token(moe_epi_dropping *d, int64_t t, double *mass, double *kept_mass)
{
    int64_t i, used = 0, kept = 0;
    for (i = t * d->K; i < (t + 1) * d->K; i++) {
        if (d->ids[i] < 0) continue;
        used++;
        kept += d->keep[i];
        if (!d->weights) continue;
        *mass += (double)d->weights[i];
        if (d->keep[i]) *kept_mass += (double)d->weights[i];
    }
    d->r.assignments += used;
    d->r.skipped += d->K - used;
    d->r.kept += kept;
    d->r.tokens_hit += kept < used;
    d->r.tokens_lost += kept == 0 && used > 0;
}

static moe_ep_status moe_epi_drop_check_policy(const moe_ep_drop_policy *p, int32_t E, moe_ep_error *err)
{
    moe_ep_status s;
    int32_t e;
    if (!p) return moe_epi_null(err, "policy");
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (!p->capacities && p->capacity < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "capacity", "must be at least 1 (INT64_MAX = no limit)", -1,
                            (double)p->capacity);
    for (e = 0; p->capacities && e < E; e++)
        if (p->capacities[e] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "capacities", "must not be negative", e,
                                (double)p->capacities[e]);
    if ((s = moe_epi_check_enum((int)p->order, 4, "order", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_enum((int)p->norm, 2, "norm", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_enum((int)p->eps_mode, 2, "eps_mode", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_option(p->eps, "eps", err)) != MOE_EP_OK) return s;
    if (p->keep_weights && p->norm == MOE_EP_NORM_AFTER)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "keep_weights", "contradicts a norm after the drop", -1, 1.0);
    if (p->group_tokens < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "group_tokens", "must not be negative", -1, (double)p->group_tokens);
    if (p->order == MOE_EP_DROP_RANDOM && !p->rng)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "rng", "the random order needs a generator", -1, 0.0);
    return MOE_EP_OK;
}

/* ids (n) must be -1 or in 0..E-1. */
static moe_ep_status moe_epi_capacity_check_ids(const int32_t *ids, int64_t n, int32_t E, const char *arg,
                                                moe_ep_error *err)
{
    int64_t i;
    for (i = 0; i < n; i++)
        if (ids[i] < -1 || ids[i] >= E)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, arg, "must be -1 or 0..E-1", i, (double)ids[i]);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_drop_check(const moe_ep_drop_policy *p, const int32_t *ids, const float *weights,
                                        int64_t T, int32_t K, int32_t E, const float *weights_after,
                                        moe_ep_error *err)
{
    moe_ep_status s;
    int needs_weights;
    if ((s = moe_epi_drop_check_policy(p, E, err)) != MOE_EP_OK) return s;
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if ((s = moe_epi_check_tokens(T, K, K, err)) != MOE_EP_OK || T == 0) return s;
    if (!ids) return moe_epi_null(err, "ids");
    needs_weights = weights_after || p->order == MOE_EP_DROP_GATE ||
                    (p->order == MOE_EP_DROP_MAX_GATE && !p->priority);
    if (needs_weights && !weights) return moe_epi_null(err, "weights");
    if ((s = moe_epi_capacity_check_ids(ids, T * K, E, "ids", err)) != MOE_EP_OK) return s;
    if ((s = moe_epi_check_floats(weights, T * K, "weights", err)) != MOE_EP_OK) return s;
    if (p->order != MOE_EP_DROP_MAX_GATE) return MOE_EP_OK;
    return moe_epi_check_floats(p->priority, T, "priority", err);
}

static moe_ep_status moe_epi_drop_open(moe_epi_dropping *d, int64_t T, int32_t E, moe_epi_arena *arena,
                                       moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status s;
    size_t need = 0;
    int64_t group = d->p->group_tokens > 0 && d->p->group_tokens < T ? d->p->group_tokens : T, ranked = 0;
    if (d->p->order == MOE_EP_DROP_MAX_GATE) ranked = group;
    if (d->p->order == MOE_EP_DROP_GATE || d->p->order == MOE_EP_DROP_RANDOM) ranked = group * d->K;
    moe_epi_need(&need, E, sizeof *d->count);
    moe_epi_need(&need, d->keep ? 0 : T * d->K, 1);
    moe_epi_need(&need, ranked, sizeof *d->rank_key);
    moe_epi_need(&need, ranked, sizeof *d->rank);
    if ((s = moe_epi_arena_open(arena, scratch, need, err)) != MOE_EP_OK) return s;
    d->count = (int64_t *)moe_epi_take(arena, E, sizeof *d->count);
    if (!d->keep) d->keep = (uint8_t *)moe_epi_take(arena, T * d->K, 1);
    d->rank_key = (float *)moe_epi_take(arena, ranked, sizeof *d->rank_key);
    d->rank = (int64_t *)moe_epi_take(arena, ranked, sizeof *d->rank);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_drop(const moe_ep_drop_policy *policy, const int32_t *ids,
                                     const float *weights, int64_t T, int32_t K, int32_t E,
                                     uint8_t *keep, int64_t *slot, int64_t *position,
                                     float *weights_after, moe_ep_drop_result *result,
                                     moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_epi_dropping d;
    moe_ep_status s;
    int64_t t, group, tokens;
    double mass = 0.0, kept_mass = 0.0;
    moe_epi_ok(err);
    if ((s = moe_epi_drop_check(policy, ids, weights, T, K, E, weights_after, err)) != MOE_EP_OK) return s;
    memset(&d, 0, sizeof d);
    d.p = policy;
    d.ids = ids;
    d.weights = weights;
    d.K = K;
    d.keep = keep;
    d.slot = slot;
    d.position = position;
    if (T > 0 && (s = moe_epi_drop_open(&d, T, E, &arena, scratch, err)) != MOE_EP_OK) return s;
    group = policy->group_tokens > 0 ? policy->group_tokens : T;
    for (t = 0; t < T; t += tokens) {
        tokens = group < T - t ? group : T - t;
        memset(d.count, 0, sizeof *d.count * (size_t)E);
        moe_epi_drop_group(&d, t, tokens);
        if (slot && policy->slots_by_token) moe_epi_drop_slots_by_token(&d, t, tokens, E);
    }
    for (t = 0; t < T; t++) moe_epi_drop_count_token(&d, t, &mass, &kept_mass);
    for (t = 0; weights_after && t < T; t++) moe_epi_drop_weights(&d, t, weights_after);
    d.r.dropped = d.r.assignments - d.r.kept;
    d.r.weight_kept = mass > 0.0 || mass < 0.0 ? kept_mass / mass : 1.0;
    if (result) *result = d.r;
    if (T > 0) moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- presets ------------------------------------------------------------------------------------------ */

static moe_ep_drop_policy moe_epi_drop_policy(int64_t C, moe_ep_drop_order order, moe_ep_drop_norm norm)
{
    moe_ep_drop_policy p;
    memset(&p, 0, sizeof p);
    p.capacity = C;
    p.order = order;
    p.norm = norm;
    return p;
}

/* Divided by at least the smallest step above 1 in float32, as torch.finfo(float32).eps. */
static moe_ep_drop_policy moe_epi_drop_clamped(moe_ep_drop_policy p)
{
    p.eps_mode = MOE_EP_EPS_CLAMP;
    p.eps = 1.1920929e-7f;
    return p;
}

static moe_ep_drop_order moe_epi_drop_bpr(int32_t bpr)
{
    return bpr ? MOE_EP_DROP_MAX_GATE : MOE_EP_DROP_CHOICE_MAJOR;
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_switch(int64_t C)
{
    return moe_epi_drop_policy(C, MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_NEVER);
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_hf_switch(int64_t C) { return moe_ep_drop_switch(C); }
MOE_EP_API moe_ep_drop_policy moe_ep_drop_maxtext(int64_t C) { return moe_ep_drop_switch(C); }
MOE_EP_API moe_ep_drop_policy moe_ep_drop_megatron_position(int64_t C) { return moe_ep_drop_switch(C); }

MOE_EP_API moe_ep_drop_policy moe_ep_drop_gshard_legacy(int64_t C)
{
    moe_ep_drop_policy p = moe_epi_drop_policy(C, MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_BEFORE);
    p.eps_mode = MOE_EP_EPS_ADD;
    p.eps = 1e-9f;
    return p;
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_gshard(int64_t C)
{
    return moe_epi_drop_policy(C, MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_AFTER);
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_top1(int64_t C)
{
    moe_ep_drop_policy p = moe_epi_drop_policy(C, MOE_EP_DROP_RANDOM, MOE_EP_NORM_NEVER);
    p.slots_by_token = 1;
    return p;
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_top2(int64_t C)
{
    return moe_epi_drop_clamped(moe_ep_drop_gshard(C));
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_position(int64_t C)
{
    return moe_epi_drop_clamped(moe_epi_drop_policy(C, MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_AFTER));
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_deepspeed_probs(int64_t C)
{
    moe_ep_drop_policy p = moe_epi_drop_clamped(moe_epi_drop_policy(C, MOE_EP_DROP_GATE, MOE_EP_NORM_AFTER));
    p.slots_by_token = 1;
    return p;
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_megatron_probs(int64_t C)
{
    return moe_epi_drop_policy(C, MOE_EP_DROP_GATE, MOE_EP_NORM_NEVER);
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_tutel(int64_t C, int32_t bpr)
{
    moe_ep_drop_policy p = moe_epi_drop_clamped(moe_epi_drop_policy(C, moe_epi_drop_bpr(bpr), MOE_EP_NORM_BEFORE));
    p.norm_skip_k1 = 1;
    p.keep_weights = 1;
    return p;
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_nllb(int64_t C, int32_t norm_before, int32_t bpr)
{
    moe_ep_drop_norm norm = norm_before ? MOE_EP_NORM_BEFORE : MOE_EP_NORM_AFTER;
    return moe_epi_drop_clamped(moe_epi_drop_policy(C, moe_epi_drop_bpr(bpr), norm));
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_flaxformer(int64_t C, int32_t bpr)
{
    return moe_epi_drop_policy(C, moe_epi_drop_bpr(bpr), MOE_EP_NORM_NEVER);
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_megablocks(int64_t C)
{
    moe_ep_drop_policy p = moe_ep_drop_switch(C);
    p.keep_weights = 1;
    return p;
}

MOE_EP_API moe_ep_drop_policy moe_ep_drop_hunyuan(int64_t C)
{
    return moe_epi_drop_clamped(moe_epi_drop_policy(C, MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_BEFORE));
}

/* ---- after the drop ----------------------------------------------------------------------------------- */

/* Checks shared by functions over ids and keep of n assignments. */
static moe_ep_status moe_epi_kept_check(const int32_t *ids, const uint8_t *keep, int64_t n, int32_t E,
                                        const char *arg, moe_ep_error *err)
{
    int64_t i;
    moe_ep_status s;
    if (!ids) return moe_epi_null(err, arg);
    if (!keep) return moe_epi_null(err, "keep");
    if ((s = moe_epi_capacity_check_ids(ids, n, E, arg, err)) != MOE_EP_OK) return s;
    for (i = 0; i < n; i++)
        if (keep[i] && ids[i] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "keep", "keeps an assignment without an expert", i, 1.0);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_pad_check(const int32_t *ids, const uint8_t *keep, int64_t T, int32_t K, int32_t E,
                                       int64_t C, moe_ep_error *err)
{
    moe_ep_status s;
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (C < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "C", "must be at least 1", -1, (double)C);
    if ((s = moe_epi_check_tokens(T, K > E ? K : E, 0, err)) != MOE_EP_OK || T == 0) return s;
    return moe_epi_kept_check(ids, keep, T * K, E, "ids", err);
}

MOE_EP_API moe_ep_status moe_ep_pad_to_capacity(const int32_t *ids, const uint8_t *keep, int64_t T,
                                                int32_t K, int32_t E, int64_t C, uint8_t *map,
                                                int64_t *added, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t i, t, rows, filled = 0, target = C < T ? C : T;
    int32_t e;
    moe_epi_ok(err);
    if ((s = moe_epi_pad_check(ids, keep, T, K, E, C, err)) != MOE_EP_OK) return s;
    if (T > 0 && !map) return moe_epi_null(err, "map");
    if (T > 0) memset(map, 0, (size_t)(T * E));
    for (i = 0; i < T * K; i++)
        if (keep[i]) map[i / K * E + ids[i]] = 1;
    for (e = 0; e < E; e++) {
        for (rows = 0, t = 0; t < T; t++) rows += map[t * E + e];
        for (t = 0; t < T && rows < target; t++) {
            if (map[t * E + e]) continue;
            map[t * E + e] = 1;
            rows++;
            filled++;
        }
    }
    if (added) *added = filled;
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_reroute_check(const int32_t *candidates, const float *candidate_weights,
                                           const uint8_t *keep, int64_t T, int32_t K, int32_t R, int32_t E,
                                           int64_t C, const float *weights, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t i;
    if (K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "K", "must be at least 1", -1, (double)K);
    if (R < K) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "R", "must be at least K", -1, (double)R);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (C < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "C", "must be at least 1", -1, (double)C);
    if ((s = moe_epi_check_tokens(T, R, R, err)) != MOE_EP_OK || T == 0) return s;
    if (!candidates) return moe_epi_null(err, "candidates");
    if (!keep) return moe_epi_null(err, "keep");
    if (weights && !candidate_weights) return moe_epi_null(err, "candidate_weights");
    if ((s = moe_epi_capacity_check_ids(candidates, T * R, E, "candidates", err)) != MOE_EP_OK) return s;
    for (i = 0; i < T * K; i++)
        if (keep[i] && candidates[i / K * R + i % K] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "keep", "keeps an assignment without an expert", i, 1.0);
    return moe_epi_check_floats(candidate_weights, T * R, "candidate_weights", err);
}

/* Column of the best candidate with room that the token (present choices in ids) does not use; -1 = none. */
static int32_t moe_epi_reroute_find(const int32_t *row, int32_t K, int32_t R, const int32_t *ids,
                                    const int64_t *count, int64_t C)
{
    int32_t r;
    for (r = K; r < R; r++)
        if (row[r] >= 0 && count[row[r]] < C && !moe_epi_route_taken(ids, K, row[r])) return r;
    return -1;
}

MOE_EP_API moe_ep_status moe_ep_reroute(const int32_t *candidates, const float *candidate_weights,
                                        const uint8_t *keep, int64_t T, int32_t K, int32_t R, int32_t E,
                                        int64_t C, int32_t *ids, float *weights, int64_t *rerouted,
                                        moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_status s;
    size_t need = 0;
    int64_t *count, t, i, moved = 0;
    int32_t j, column;
    moe_epi_ok(err);
    if ((s = moe_epi_reroute_check(candidates, candidate_weights, keep, T, K, R, E, C, weights, err)) != MOE_EP_OK)
        return s;
    if (T > 0 && !ids) return moe_epi_null(err, "ids");
    moe_epi_need(&need, E, sizeof *count);
    if ((s = moe_epi_arena_open(&arena, scratch, need, err)) != MOE_EP_OK) return s;
    count = (int64_t *)moe_epi_take(&arena, E, sizeof *count);
    memset(count, 0, sizeof *count * (size_t)E);
    for (i = 0; i < T * K; i++) {
        int32_t e = candidates[i / K * R + i % K];
        ids[i] = keep[i] ? e : -1;
        if (keep[i]) count[e]++;
        if (weights) weights[i] = keep[i] ? candidate_weights[i / K * R + i % K] : 0.0f;
    }
    for (t = 0; t < T; t++) {
        const int32_t *row = candidates + t * R;
        for (j = 0; j < K; j++) {
            if (keep[t * K + j] || row[j] < 0) continue;
            column = moe_epi_reroute_find(row, K, R, ids + t * K, count, C);
            if (column < 0) continue;
            ids[t * K + j] = row[column];
            count[row[column]]++;
            moved++;
            if (weights) weights[t * K + j] = candidate_weights[t * R + column];
        }
    }
    if (rerouted) *rerouted = moved;
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_drop_counts(const int32_t *ids, const uint8_t *keep, int64_t n, int32_t E,
                                            const int32_t *device_of_expert, int32_t D,
                                            int64_t *per_expert, int64_t *per_device, moe_ep_error *err)
{
    moe_ep_status s;
    int64_t i;
    int32_t e;
    moe_epi_ok(err);
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must not be negative", -1, (double)n);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (per_device && D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "must be at least 1", -1, (double)D);
    if (!per_expert) return moe_epi_null(err, "per_expert");
    if (n > 0 && (s = moe_epi_kept_check(ids, keep, n, E, "ids", err)) != MOE_EP_OK) return s;
    for (e = 0; per_device && device_of_expert && e < E; e++)
        if (device_of_expert[e] < 0 || device_of_expert[e] >= D)
            return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, "device_of_expert", "must be 0..D-1", e,
                                (double)device_of_expert[e]);
    memset(per_expert, 0, sizeof *per_expert * (size_t)E);
    for (i = 0; i < n; i++)
        if (ids[i] >= 0 && !keep[i]) per_expert[ids[i]]++;
    if (!per_device) return MOE_EP_OK;
    memset(per_device, 0, sizeof *per_device * (size_t)D);
    for (e = 0; e < E; e++) per_device[device_of_expert ? device_of_expert[e] : e % D] += per_expert[e];
    return MOE_EP_OK;
}

/* ==================================================================================================
 * 5 PLACE: placements, baseline planners, EPLB, bounds, checks
 * ================================================================================================== */

MOE_EP_API const char *moe_ep_place_policy_str(moe_ep_place_policy policy)
{
    switch (policy) {
    case MOE_EP_PLACE_GIVEN: return "given placement";
    case MOE_EP_PLACE_ROUND_ROBIN: return "round robin";
    case MOE_EP_PLACE_CONTIGUOUS: return "contiguous blocks";
    case MOE_EP_PLACE_LPT: return "LPT with slots";
    case MOE_EP_PLACE_EPLB_GLOBAL: return "EPLB, global";
    case MOE_EP_PLACE_EPLB_HIERARCHICAL: return "EPLB, hierarchical";
    case MOE_EP_PLACE_TRTLLM: return "TensorRT-LLM balancer";
    case MOE_EP_PLACE_BEST: return "best placement";
    case MOE_EP_PLACE_REBALANCE: return "incremental rebalance";
    }
    return "unknown policy";
}

MOE_EP_API const char *moe_ep_bound_str(moe_ep_bound bound)
{
    switch (bound) {
    case MOE_EP_BOUND_MEAN: return "the mean";
    case MOE_EP_BOUND_REPLICA: return "the heaviest replica";
    case MOE_EP_BOUND_SLOTS: return "counting slots";
    }
    return "unknown bound";
}

/* ---- items: heaps and sorting ------------------------------------------------------------------------ */

typedef struct moe_epi_item {
    double key;
    int32_t id, aux;
} moe_epi_item;

/* The order of everything here: larger key first, lowest id on ties. */
static int moe_epi_above(const moe_epi_item *a, const moe_epi_item *b)
{
    return a->key > b->key || (!(a->key < b->key) && a->id < b->id);
}

static void moe_epi_sift(moe_epi_item *heap, int32_t n, int32_t i)
{
    moe_epi_item moving = heap[i];
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && moe_epi_above(&heap[child + 1], &heap[child])) child++;
        if (!moe_epi_above(&heap[child], &moving)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void moe_epi_heapify(moe_epi_item *heap, int32_t n)
{
    int32_t i;
    for (i = n / 2 - 1; i >= 0; i--) moe_epi_sift(heap, n, i);
}

static void moe_epi_heap_push(moe_epi_item *heap, int32_t *n, moe_epi_item item)
{
    int32_t i = (*n)++;
    while (i > 0 && moe_epi_above(&item, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = item;
}

static moe_epi_item moe_epi_heap_pop(moe_epi_item *heap, int32_t *n)
{
    moe_epi_item top = heap[0];
    heap[0] = heap[--(*n)];
    if (*n > 1) moe_epi_sift(heap, *n, 0);
    return top;
}

/* Merge sort, runs of 16 by insertion; spare holds n items too. */
static void moe_epi_sort(moe_epi_item *items, moe_epi_item *spare, int32_t n)
{
    moe_epi_item *from = items, *to = spare;
    int32_t run = 16, start, i, j;
    for (start = 0; start < n; start += run) {
        int32_t stop = start + run < n ? start + run : n;
        for (i = start + 1; i < stop; i++) {
            moe_epi_item moving = items[i];
            for (j = i; j > start && moe_epi_above(&moving, &items[j - 1]); j--) items[j] = items[j - 1];
            items[j] = moving;
        }
    }
    for (; run < n; run = run > n / 2 ? n : run * 2) {
        moe_epi_item *swap = from;
        for (start = 0; start < n; start += 2 * run) {
            int32_t middle = n - start < run ? n : start + run, stop = n - middle < run ? n : middle + run;
            int32_t a = start, b = middle, k;
            for (k = start; k < stop; k++) {
                if (b >= stop || (a < middle && !moe_epi_above(&from[b], &from[a]))) to[k] = from[a++];
                else to[k] = from[b++];
            }
            if (n - start <= 2 * run) break; /* start + 2*run may not fit an int32_t */
        }
        from = to;
        to = swap;
    }
    if (from != items) memcpy(items, from, (size_t)n * sizeof *items);
}

/* ---- shapes and placements ----------------------------------------------------------------------------- */

/* Checks a shape for E experts and counts its slots; P < E is allowed here (planners refuse it). */
static moe_ep_status moe_epi_shape_check(const moe_ep_shape *s, int32_t E, int32_t *num_slots, moe_ep_error *err)
{
    int64_t sum = 0;
    int32_t d, nodes;
    if (s->num_devices < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "shape.num_devices", "must be at least 1", -1, s->num_devices);
    if (s->num_slots < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "shape.num_slots", "must not be negative", -1, s->num_slots);
    if (s->num_nodes < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "shape.num_nodes", "must not be negative", -1, s->num_nodes);
    nodes = s->num_nodes > 0 ? s->num_nodes : 1;
    for (d = 0; d < s->num_devices; d++) {
        if (s->slots_per_device) {
            if (s->slots_per_device[d] < 0)
                return moe_epi_fail(err, MOE_EP_ERR_SIZE, "shape.slots_per_device", "must not be negative", d,
                                    s->slots_per_device[d]);
            sum += s->slots_per_device[d];
        }
        if (s->node_of_device && (s->node_of_device[d] < 0 || s->node_of_device[d] >= nodes))
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "shape.node_of_device", "must lie in 0..num_nodes-1", d,
                                s->node_of_device[d]);
        if (s->speed && (!moe_epi_finite(s->speed[d]) || !(s->speed[d] > 0.0)))
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "shape.speed", "must be positive and finite", d, s->speed[d]);
    }
    if (!s->slots_per_device) sum = s->num_slots > 0 ? s->num_slots : E;
    else if (s->num_slots > 0 && s->num_slots != sum)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "shape.num_slots", "differs from the sum of slots_per_device", -1,
                            s->num_slots);
    if (sum < 1 || sum > INT32_MAX / 2)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "shape.num_slots", "must lie in 1..2^30", -1, (double)sum);
    *num_slots = (int32_t)sum;
    return MOE_EP_OK;
}

static int32_t moe_epi_device_slots(const moe_ep_shape *s, int32_t num_slots, int32_t d)
{
    if (s->slots_per_device) return s->slots_per_device[d];
    return num_slots / s->num_devices + (d < num_slots % s->num_devices ? 1 : 0);
}

/* Carves a placement; with base NULL only *used is computed (SIZE_MAX = too large). */
static void moe_epi_placement_carve(moe_ep_placement *p, unsigned char *base, size_t *used)
{
    int64_t D = p->num_devices, P = p->num_slots, L = p->num_layers, E = p->num_experts, cells, starts;
    size_t at[8];
    *used = 0;
    if (!moe_epi_mul(L, P, &cells) || !moe_epi_mul(L, E + 1, &starts)) { *used = SIZE_MAX; return; }
    at[0] = *used; moe_epi_need(used, D, sizeof(double));
    at[1] = *used; moe_epi_need(used, D + 1, sizeof(int32_t));
    at[2] = *used; moe_epi_need(used, P, sizeof(int32_t));
    at[3] = *used; moe_epi_need(used, D, sizeof(int32_t));
    at[4] = *used; moe_epi_need(used, cells, sizeof(int32_t));
    at[5] = *used; moe_epi_need(used, starts, sizeof(int32_t));
    at[6] = *used; moe_epi_need(used, cells, sizeof(int32_t));
    at[7] = *used; moe_epi_need(used, D, sizeof(uint8_t));
    if (!base || *used == SIZE_MAX) return;
    p->device_speed = (double *)(void *)(base + at[0]);
    p->slot_start = (int32_t *)(void *)(base + at[1]);
    p->slot_device = (int32_t *)(void *)(base + at[2]);
    p->device_node = (int32_t *)(void *)(base + at[3]);
    p->slot_expert = (int32_t *)(void *)(base + at[4]);
    p->replica_start = (int32_t *)(void *)(base + at[5]);
    p->replica_slot = (int32_t *)(void *)(base + at[6]);
    p->device_inactive = base + at[7];
}

/* Fills the sizes of *p and *bytes from the shape. */
static moe_ep_status moe_epi_placement_sizes(moe_ep_placement *p, int32_t L, int32_t E, const moe_ep_shape *shape,
                                             size_t *bytes, moe_ep_error *err)
{
    int32_t slots = 0;
    moe_ep_status status;
    memset(p, 0, sizeof *p);
    if (!shape) return moe_epi_null(err, "shape");
    if (L < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "L", "must be at least 1", -1, L);
    if (E < 1 || E > INT32_MAX / 2) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must lie in 1..2^30", -1, E);
    status = moe_epi_shape_check(shape, E, &slots, err);
    if (status != MOE_EP_OK) return status;
    p->num_layers = L;
    p->num_experts = E;
    p->num_devices = shape->num_devices;
    p->num_nodes = shape->num_nodes > 0 ? shape->num_nodes : 1;
    p->num_slots = slots;
    moe_epi_placement_carve(p, NULL, bytes);
    if (*bytes == SIZE_MAX)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "L", "L*P does not fit", -1, L);
    return MOE_EP_OK;
}

MOE_EP_API size_t moe_ep_placement_bytes(int32_t L, int32_t E, const moe_ep_shape *shape)
{
    moe_ep_placement p;
    size_t bytes = 0;
    return moe_epi_placement_sizes(&p, L, E, shape, &bytes, NULL) == MOE_EP_OK ? bytes : 0;
}

/* Empties every slot of every layer. */
static void moe_epi_placement_clear(moe_ep_placement *p)
{
    int64_t i, cells = (int64_t)p->num_layers * p->num_slots, starts = (int64_t)p->num_layers * (p->num_experts + 1);
    for (i = 0; i < cells; i++) p->slot_expert[i] = p->replica_slot[i] = -1;
    for (i = 0; i < starts; i++) p->replica_start[i] = 0;
}

/* Writes what a shape says about the devices: speeds and which are down. */
static void moe_epi_placement_stamp(moe_ep_placement *p, const moe_ep_shape *shape)
{
    int32_t d;
    for (d = 0; d < p->num_devices; d++) {
        p->device_speed[d] = shape->speed ? shape->speed[d] : 1.0;
        p->device_inactive[d] = shape->inactive ? (uint8_t)(shape->inactive[d] != 0) : (uint8_t)0;
    }
}

MOE_EP_API moe_ep_status moe_ep_placement_init(moe_ep_placement *p, int32_t L, int32_t E,
                                               const moe_ep_shape *shape, void *mem, size_t bytes,
                                               moe_ep_error *err)
{
    moe_ep_placement made;
    size_t need = 0;
    int32_t d, s, at = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!p) return moe_epi_null(err, "p");
    status = moe_epi_placement_sizes(&made, L, E, shape, &need, err);
    if (status != MOE_EP_OK) return status;
    if (!mem) return moe_epi_null(err, "mem");
    if (((uintptr_t)mem & (sizeof(double) - 1u)) != 0)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "mem", "must be 8-byte aligned", -1, 0.0);
    if (bytes < need) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "bytes", "bytes needed", -1, (double)need);
    moe_epi_placement_carve(&made, (unsigned char *)mem, &need);
    for (d = 0; d < made.num_devices; d++) {
        int32_t count = moe_epi_device_slots(shape, made.num_slots, d);
        made.slot_start[d] = at;
        for (s = 0; s < count; s++) made.slot_device[at + s] = d;
        at += count;
        made.device_node[d] = shape->node_of_device
                                  ? shape->node_of_device[d]
                                  : (int32_t)((int64_t)d * made.num_nodes / made.num_devices);
    }
    made.slot_start[made.num_devices] = at;
    MOE_EP_ASSERT(at == made.num_slots);
    moe_epi_placement_stamp(&made, shape);
    moe_epi_placement_clear(&made);
    *p = made;
    return MOE_EP_OK;
}

/* The pointers and sizes of a placement that came from a caller. */
static moe_ep_status moe_epi_placement_check(const moe_ep_placement *p, const char *arg, moe_ep_error *err)
{
    if (!p) return moe_epi_null(err, arg);
    if (!p->slot_start || !p->slot_device || !p->device_node || !p->slot_expert || !p->replica_start ||
        !p->replica_slot || !p->device_speed || !p->device_inactive)
        return moe_epi_fail(err, MOE_EP_ERR_NULL, arg, "was not laid out by moe_ep_placement_init", -1, 0.0);
    if (p->num_layers < 1 || p->num_experts < 1 || p->num_devices < 1 || p->num_nodes < 1 || p->num_slots < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "has a size below 1", -1, 0.0);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_same_sizes(const moe_ep_placement *a, const moe_ep_placement *b, const char *arg,
                                        moe_ep_error *err)
{
    if (a->num_layers != b->num_layers || a->num_experts != b->num_experts || a->num_devices != b->num_devices ||
        a->num_slots != b->num_slots || a->num_nodes != b->num_nodes)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "has other sizes", -1, b->num_slots);
    if (memcmp(a->slot_start, b->slot_start, sizeof(int32_t) * (size_t)(a->num_devices + 1)) != 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "has other slots per device", -1, b->num_slots);
    return MOE_EP_OK;
}

/* Counting sort of one layer's slots by expert.  Ids were checked. */
static void moe_epi_index_layer(moe_ep_placement *p, int32_t l)
{
    int32_t E = p->num_experts, P = p->num_slots, s, e;
    int32_t *expert = p->slot_expert + (int64_t)l * P, *slot = p->replica_slot + (int64_t)l * P;
    int32_t *start = p->replica_start + (int64_t)l * (E + 1);
    for (e = 0; e <= E; e++) start[e] = 0;
    for (s = 0; s < P; s++)
        if (expert[s] >= 0) start[expert[s] + 1]++;
    for (e = 0; e < E; e++) start[e + 1] += start[e];
    for (s = 0; s < P; s++)
        if (expert[s] >= 0) slot[start[expert[s]]++] = s;
    for (e = E; e > 0; e--) start[e] = start[e - 1]; /* the cursors ended where the next expert begins */
    start[0] = 0;
    for (s = start[E]; s < P; s++) slot[s] = -1;
}

MOE_EP_API moe_ep_status moe_ep_placement_index(moe_ep_placement *p, moe_ep_error *err)
{
    int64_t i, cells;
    int32_t l;
    moe_ep_status status;
    moe_epi_ok(err);
    status = moe_epi_placement_check(p, "p", err);
    if (status != MOE_EP_OK) return status;
    cells = (int64_t)p->num_layers * p->num_slots;
    for (i = 0; i < cells; i++)
        if (p->slot_expert[i] < -1 || p->slot_expert[i] >= p->num_experts)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "p.slot_expert", "is not an expert", i, p->slot_expert[i]);
    for (l = 0; l < p->num_layers; l++) moe_epi_index_layer(p, l);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_placement_copy(const moe_ep_placement *src, moe_ep_placement *dst, moe_ep_error *err)
{
    size_t cells, starts, D;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_placement_check(src, "src", err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_placement_check(dst, "dst", err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_same_sizes(src, dst, "dst", err)) != MOE_EP_OK) return status;
    cells = (size_t)src->num_layers * (size_t)src->num_slots;
    starts = (size_t)src->num_layers * (size_t)(src->num_experts + 1);
    D = (size_t)src->num_devices;
    memmove(dst->slot_expert, src->slot_expert, cells * sizeof(int32_t));
    memmove(dst->replica_slot, src->replica_slot, cells * sizeof(int32_t));
    memmove(dst->replica_start, src->replica_start, starts * sizeof(int32_t));
    memmove(dst->device_node, src->device_node, D * sizeof(int32_t));
    memmove(dst->device_speed, src->device_speed, D * sizeof(double));
    memmove(dst->device_inactive, src->device_inactive, D);
    return MOE_EP_OK;
}

/* ---- validate ------------------------------------------------------------------------------------------ */

/* Slots of device d that hold expert e before slot `before`. */
static int32_t moe_epi_held(const moe_ep_placement *p, const int32_t *slot_expert, int32_t d, int32_t e,
                            int32_t before)
{
    int32_t s, n = 0;
    for (s = p->slot_start[d]; s < before; s++) n += slot_expert[s] == e;
    return n;
}

static moe_ep_status moe_epi_validate_devices(const moe_ep_placement *p, moe_ep_error *err)
{
    int32_t d, s;
    if (p->slot_start[0] != 0 || p->slot_start[p->num_devices] != p->num_slots)
        return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.slot_start", "does not cover the slots", 0,
                            p->slot_start[0]);
    for (d = 0; d < p->num_devices; d++) {
        if (p->slot_start[d + 1] < p->slot_start[d])
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.slot_start", "must not decrease", d + 1,
                                p->slot_start[d + 1]);
        if (p->device_node[d] < 0 || p->device_node[d] >= p->num_nodes)
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.device_node", "must lie in 0..num_nodes-1", d,
                                p->device_node[d]);
        if (!moe_epi_finite(p->device_speed[d]) || !(p->device_speed[d] > 0.0))
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.device_speed", "must be positive and finite", d,
                                p->device_speed[d]);
    }
    for (d = 0; d < p->num_devices; d++) /* only now is every slot_start known to be in range */
        for (s = p->slot_start[d]; s < p->slot_start[d + 1]; s++)
            if (p->slot_device[s] != d)
                return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.slot_device", "disagrees with slot_start", s,
                                    p->slot_device[s]);
    return MOE_EP_OK;
}

/* Both maps of one layer say the same, and everything is in range. */
static moe_ep_status moe_epi_validate_maps(const moe_ep_placement *p, int32_t l, moe_ep_error *err)
{
    int32_t E = p->num_experts, P = p->num_slots, s, e, i, used = 0;
    int64_t cell = (int64_t)l * P, first = (int64_t)l * (E + 1);
    const int32_t *start = p->replica_start + first, *slot = p->replica_slot + cell;
    for (s = 0; s < P; s++) {
        if (p->slot_expert[cell + s] < -1 || p->slot_expert[cell + s] >= E)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "p.slot_expert", "is not an expert", cell + s,
                                p->slot_expert[cell + s]);
        used += p->slot_expert[cell + s] >= 0;
    }
    if (start[0] != 0 || start[E] != used)
        return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.replica_start",
                            "does not count the used slots (moe_ep_placement_index not called?)", first + E,
                            start[E]);
    for (e = 0; e < E; e++) {
        if (start[e + 1] < start[e] || start[e + 1] > used)
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.replica_start", "must not decrease", first + e + 1,
                                start[e + 1]);
        for (i = start[e]; i < start[e + 1]; i++) {
            int32_t j;
            if (slot[i] < 0 || slot[i] >= P || p->slot_expert[cell + slot[i]] != e)
                return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.replica_slot", "disagrees with slot_expert",
                                    cell + i, slot[i]);
            for (j = start[e]; j < i; j++)
                if (slot[j] == slot[i])
                    return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.replica_slot", "names a slot twice", cell + i,
                                        slot[i]);
        }
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_validate(const moe_ep_placement *p, int32_t flags, moe_ep_check_result *out,
                                         moe_ep_error *err)
{
    moe_ep_check_result r;
    moe_ep_status status;
    int32_t l, e, i;
    moe_epi_ok(err);
    memset(&r, 0, sizeof r);
    if ((status = moe_epi_placement_check(p, "p", err)) != MOE_EP_OK) return status;
    if ((flags & ~MOE_EP_CHECK_NO_DUPLICATES) != 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "flags", "has an unknown bit", -1, flags);
    if ((status = moe_epi_validate_devices(p, err)) != MOE_EP_OK) return status;
    for (l = 0; l < p->num_layers; l++) {
        const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
        const int32_t *slot = p->replica_slot + (int64_t)l * p->num_slots;
        const int32_t *expert = p->slot_expert + (int64_t)l * p->num_slots;
        if ((status = moe_epi_validate_maps(p, l, err)) != MOE_EP_OK) return status;
        r.slots_used += start[p->num_experts];
        for (e = 0; e < p->num_experts; e++) {
            int32_t active = 0;
            for (i = start[e]; i < start[e + 1]; i++) {
                int32_t d = p->slot_device[slot[i]];
                if (p->device_inactive[d]) r.on_inactive++;
                else active++;
                if (moe_epi_held(p, expert, d, e, slot[i]) == 0) continue;
                r.duplicates++;
                if (flags & MOE_EP_CHECK_NO_DUPLICATES)
                    return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.slot_expert", "an expert is twice on a device",
                                        (int64_t)l * p->num_slots + slot[i], e);
            }
            if (active == 0)
                return moe_epi_fail(err, MOE_EP_ERR_LOST_EXPERT, "p", "has no copy on an active device",
                                    (int64_t)l * p->num_experts + e, e);
            r.single_copies += active == 1;
        }
    }
    r.slots_empty = (int64_t)p->num_layers * p->num_slots - r.slots_used;
    if (out) *out = r;
    return MOE_EP_OK;
}

/* ---- loads of devices ------------------------------------------------------------------------------------ */

/* Are these n loads plainly fine: finite, not negative, a finite sum?  In four strands, for speed; 0 =
 * look closer. */
static int moe_epi_loads_fine(const double *loads, int32_t n)
{
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    uint64_t bits, bad = 0;
    int32_t i, k;
    for (i = 0; i + 4 <= n; i += 4)
        for (k = 0; k < 4; k++) {
            memcpy(&bits, &loads[i + k], sizeof bits);
            bad |= (uint64_t)(bits >= 0x7ff0000000000000u); /* infinite, NaN or a sign */
            sum[k] += loads[i + k];
        }
    for (; i < n; i++) {
        memcpy(&bits, &loads[i], sizeof bits);
        bad |= (uint64_t)(bits >= 0x7ff0000000000000u);
        sum[0] += loads[i];
    }
    return !bad && moe_epi_finite((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static moe_ep_status moe_epi_loads_check(const double *loads, int64_t rows, int32_t E, moe_ep_error *err)
{
    int64_t r, e;
    for (r = 0; r < rows; r++) {
        double sum = 0.0;
        if (moe_epi_loads_fine(loads + r * E, E)) continue;
        for (e = 0; e < E; e++) {
            double w = loads[r * E + e];
            if (!moe_epi_finite(w)) return moe_epi_fail(err, MOE_EP_ERR_NAN, "loads", "must be finite", r * E + e, w);
            if (w < 0.0) return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "loads", "must not be negative", r * E + e, w);
            sum += w;
        }
        if (!moe_epi_finite(sum))
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "loads", "the sum of a layer is infinite", r * E, sum);
    }
    return MOE_EP_OK;
}

/* Active replicas of expert e in layer l. */
static int32_t moe_epi_active_replicas(const moe_ep_placement *p, int32_t l, int32_t e)
{
    const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
    const int32_t *slot = p->replica_slot + (int64_t)l * p->num_slots;
    int32_t i, n = 0;
    for (i = start[e]; i < start[e + 1]; i++) n += !p->device_inactive[p->slot_device[slot[i]]];
    return n;
}

/* Equal shares of one layer's loads (E) added up per device (D). */
static void moe_epi_layer_device_loads(const moe_ep_placement *p, int32_t l, const double *loads, double *device)
{
    const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
    const int32_t *slot = p->replica_slot + (int64_t)l * p->num_slots;
    int32_t e, i, d;
    for (d = 0; d < p->num_devices; d++) device[d] = 0.0;
    for (e = 0; e < p->num_experts; e++) {
        int32_t n = moe_epi_active_replicas(p, l, e);
        for (i = start[e]; i < start[e + 1]; i++) {
            d = p->slot_device[slot[i]];
            if (!p->device_inactive[d]) device[d] += loads[e] / n;
        }
    }
}

/* Checks shared by the functions that look at a placement with loads (steps,L,E). */
static moe_ep_status moe_epi_view_check(const moe_ep_placement *p, const double *loads, int32_t steps,
                                        moe_ep_error *err)
{
    int32_t l, e, t;
    moe_ep_status status = moe_ep_validate(p, 0, NULL, err);
    if (status != MOE_EP_OK && status != MOE_EP_ERR_LOST_EXPERT) return status;
    moe_epi_ok(err); /* a lost expert matters only when it has load */
    if (!loads) return moe_epi_null(err, "loads");
    status = moe_epi_loads_check(loads, (int64_t)steps * p->num_layers, p->num_experts, err);
    if (status != MOE_EP_OK) return status;
    for (l = 0; l < p->num_layers; l++) {
        if ((status = moe_epi_validate_maps(p, l, err)) != MOE_EP_OK) return status;
        for (e = 0; e < p->num_experts; e++) {
            if (moe_epi_active_replicas(p, l, e) > 0) continue;
            for (t = 0; t < steps; t++) {
                int64_t i = ((int64_t)t * p->num_layers + l) * p->num_experts + e;
                if (loads[i] > 0.0)
                    return moe_epi_fail(err, MOE_EP_ERR_LOST_EXPERT, "p",
                                        "a loaded expert has no copy on an active device",
                                        (int64_t)l * p->num_experts + e, loads[i]);
            }
        }
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_device_loads(const moe_ep_placement *p, const double *loads, double *device_loads,
                                             moe_ep_error *err)
{
    int32_t l;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_placement_check(p, "p", err)) != MOE_EP_OK) return status;
    if (!device_loads) return moe_epi_null(err, "device_loads");
    if ((status = moe_epi_view_check(p, loads, 1, err)) != MOE_EP_OK) return status;
    for (l = 0; l < p->num_layers; l++)
        moe_epi_layer_device_loads(p, l, loads + (int64_t)l * p->num_experts,
                                   device_loads + (int64_t)l * p->num_devices);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_node_loads(const moe_ep_placement *p, const double *loads, double *node_loads,
                                           moe_ep_error *err)
{
    int32_t l, e, i, d;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_placement_check(p, "p", err)) != MOE_EP_OK) return status;
    if (!node_loads) return moe_epi_null(err, "node_loads");
    if ((status = moe_epi_view_check(p, loads, 1, err)) != MOE_EP_OK) return status;
    for (l = 0; l < p->num_layers; l++) {
        const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
        const int32_t *slot = p->replica_slot + (int64_t)l * p->num_slots;
        double *node = node_loads + (int64_t)l * p->num_nodes;
        for (i = 0; i < p->num_nodes; i++) node[i] = 0.0;
        for (e = 0; e < p->num_experts; e++) {
            int32_t n = moe_epi_active_replicas(p, l, e);
            for (i = start[e]; i < start[e + 1]; i++) {
                d = p->slot_device[slot[i]];
                if (!p->device_inactive[d]) node[p->device_node[d]] += loads[(int64_t)l * p->num_experts + e] / n;
            }
        }
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_window_loads(const double *loads, int32_t num_steps, int32_t L, int32_t E, double z,
                                             double *out, moe_ep_error *err)
{
    int64_t cells, all, i, t;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!loads) return moe_epi_null(err, "loads");
    if (!out) return moe_epi_null(err, "out");
    if (num_steps < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_steps", "must be at least 1", -1, num_steps);
    if (L < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "L", "must be at least 1", -1, L);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, E);
    if (!moe_epi_finite(z) || z < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "z", "must be finite and not negative", -1, z);
    cells = (int64_t)L * E;
    if (!moe_epi_mul(cells, num_steps, &all))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_steps", "num_steps*L*E does not fit", -1, num_steps);
    if ((status = moe_epi_loads_check(loads, (int64_t)num_steps * L, E, err)) != MOE_EP_OK) return status;
    for (i = 0; i < cells; i++) {
        double mean = 0.0, square = 0.0;
        for (t = 0; t < num_steps; t++) mean += loads[t * cells + i] / num_steps;
        for (t = 0; t < num_steps; t++) {
            double off = loads[t * cells + i] - mean;
            square += off * off / num_steps;
        }
        out[i] = mean + z * sqrt(square);
    }
    return MOE_EP_OK;
}

/* ---- replica counts and the lower bound -------------------------------------------------------------------- */

/* Greedy counts (moe_ep_replicate).  heap holds E items.  Returns the slots used. */
static int32_t moe_epi_replicate(const double *loads, int32_t E, int32_t num_slots, int32_t max_replicas,
                                 int32_t *counts, moe_epi_item *heap)
{
    int32_t e, n = E, used = E;
    for (e = 0; e < E; e++) {
        counts[e] = 1;
        heap[e].key = loads[e];
        heap[e].id = e;
        heap[e].aux = 0;
    }
    if (used < num_slots) moe_epi_heapify(heap, n);
    while (used < num_slots && n > 0) {
        e = heap[0].id;
        if (counts[e] >= max_replicas) {
            (void)moe_epi_heap_pop(heap, &n);
            continue;
        }
        counts[e]++;
        used++;
        heap[0].key = loads[e] / counts[e];
        moe_epi_sift(heap, n, 0);
    }
    return used;
}

MOE_EP_API moe_ep_status moe_ep_replicate(const double *loads, int32_t E, int32_t num_slots, int32_t max_replicas,
                                          int32_t *counts, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    size_t total = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!loads) return moe_epi_null(err, "loads");
    if (!counts) return moe_epi_null(err, "counts");
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, E);
    if (num_slots < E) return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "num_slots", "is less than E", -1, num_slots);
    if (max_replicas < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "max_replicas", "must not be negative", -1, max_replicas);
    if ((status = moe_epi_loads_check(loads, 1, E, err)) != MOE_EP_OK) return status;
    moe_epi_need(&total, E, sizeof(moe_epi_item));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    (void)moe_epi_replicate(loads, E, num_slots, max_replicas > 0 ? max_replicas : INT32_MAX, counts,
                            (moe_epi_item *)moe_epi_take(&arena, E, sizeof(moe_epi_item)));
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* What a bound needs to know of the devices. */
typedef struct moe_epi_room {
    int32_t devices, slots; /* active */
    int32_t least_slots;    /* of an active device that has any */
    double speed_sum, speed_max;
} moe_epi_room;

static void moe_epi_room_add(moe_epi_room *r, int32_t slots, double speed)
{
    r->speed_sum += speed;
    if (slots == 0) return;
    r->devices++;
    r->slots += slots;
    if (slots < r->least_slots) r->least_slots = slots;
    if (speed > r->speed_max) r->speed_max = speed;
}

static moe_epi_room moe_epi_room_of(const moe_ep_placement *p)
{
    moe_epi_room r;
    int32_t d;
    memset(&r, 0, sizeof r);
    r.least_slots = INT32_MAX;
    for (d = 0; d < p->num_devices; d++)
        if (!p->device_inactive[d]) moe_epi_room_add(&r, p->slot_start[d + 1] - p->slot_start[d], p->device_speed[d]);
    return r;
}

static moe_epi_room moe_epi_room_of_shape(const moe_ep_shape *shape, int32_t slots)
{
    moe_epi_room r;
    int32_t d;
    memset(&r, 0, sizeof r);
    r.least_slots = INT32_MAX;
    for (d = 0; d < shape->num_devices; d++) {
        int32_t own = moe_epi_device_slots(shape, slots, d);
        if (shape->inactive && shape->inactive[d]) continue;
        moe_epi_room_add(&r, own, shape->speed ? shape->speed[d] : 1.0);
    }
    return r;
}

/* One copy each (as many experts as slots): pigeonhole over the sorted loads, and the full device of the heaviest. */
static double moe_epi_bound_single(const moe_epi_item *sorted, int32_t E, const moe_epi_room *room)
{
    double best = 0.0, sum;
    int32_t j, i;
    for (j = 1; (int64_t)j * room->devices + 1 <= E; j++) { /* j*D + 1 experts: some device has j + 1 of them */
        sum = 0.0;
        for (i = 0; i <= j; i++) sum += sorted[j * room->devices - i].key;
        if (sum > best) best = sum;
    }
    sum = sorted[0].key;
    for (i = 1; i < room->least_slots && i < E; i++) sum += sorted[E - i].key;
    if (sum > best) best = sum;
    return best / room->speed_max;
}

/* Could every device stay at or below `level` (work at the fastest speed)?  0 = counting proves that it cannot.
 * An expert of load w needs ceil(w/level) copies.  Copies above level/2 are big: no two fit on a device, so at most D
 * of them.  Making all copies of an expert small takes ceil(2w/level) copies, which costs a or a-1 slots more and
 * takes a big ones away (a = ceil(w/level)).  The slots are spent on the best ratio first, the last one
 * in fractions. */
static int moe_epi_level_possible(const moe_epi_item *sorted, int32_t E, const moe_epi_room *room, double level)
{
    double spare = (double)(room->slots - E), excess = -(double)room->devices;
    int32_t e, heavy, cheap;
    for (heavy = 0; heavy < E && sorted[heavy].key > 0.5 * level; heavy++) {
        double need = ceil(sorted[heavy].key / level);
        if (need < 1.0) need = 1.0;
        spare -= need - 1.0;
        if (spare < 0.0) return 0;
        if (ceil(2.0 * sorted[heavy].key / level) > need) excess += need;
    }
    for (cheap = 1; cheap >= 0; cheap--) { /* first those that cost a-1, few copies first; then those that cost a */
        for (e = heavy - 1; e >= 0 && excess > 0.0; e--) {
            double need = ceil(sorted[e].key / level), cost = ceil(2.0 * sorted[e].key / level) - need;
            double part = excess < need ? excess / need : 1.0;
            if (cost < 0.5 || (cost < need - 0.5) != (cheap == 1)) continue;
            spare -= part * cost;
            excess -= part * need;
            if (spare < -1e-9) return 0;
        }
    }
    return excess <= 1e-9;
}

/* loads (E) of one layer -> bound.  Scratch: items 2*E, counts E. */
static void moe_epi_bound(const double *loads, int32_t E, const moe_epi_room *room, int32_t max_replicas,
                          moe_epi_item *items, int32_t *counts, moe_ep_bound_result *out)
{
    double total = 0.0, top = 0.0, low, high;
    int32_t e, i;
    memset(out, 0, sizeof *out);
    for (e = 0; e < E; e++) total += loads[e];
    out->mean = total / room->speed_sum;
    (void)moe_epi_replicate(loads, E, room->slots, max_replicas, counts, items);
    for (e = 0; e < E; e++) {
        if (loads[e] / counts[e] > top) top = loads[e] / counts[e];
        items[e].key = loads[e];
        items[e].id = e;
        items[e].aux = 0;
    }
    out->replica = top / room->speed_max;
    moe_epi_sort(items, items + E, E);
    if (room->slots == E) {
        out->slots = moe_epi_bound_single(items, E, room);
    } else if (total > 0.0) {
        low = out->mean > out->replica ? out->mean : out->replica;
        low *= room->speed_max;
        high = 2.0 * low; /* bisection: low is proven, high is not */
        if (moe_epi_level_possible(items, E, room, low * (1.0 - 1e-12))) high = low;
        for (i = 0; i < 40 && high > low * (1.0 + 1e-9); i++) {
            double middle = 0.5 * (low + high);
            if (moe_epi_level_possible(items, E, room, middle)) high = middle;
            else low = middle;
        }
        out->slots = low / room->speed_max;
    }
    out->value = out->mean;
    if (out->replica > out->value) { out->value = out->replica; out->bound = MOE_EP_BOUND_REPLICA; }
    if (out->slots > out->value * (1.0 + 1e-12)) { out->value = out->slots; out->bound = MOE_EP_BOUND_SLOTS; }
}

/* Scratch of moe_epi_bound and of the result. */
typedef struct moe_epi_bound_work {
    moe_epi_item *items;
    int32_t *counts;
    double *device, *node;
} moe_epi_bound_work;

static void moe_epi_bound_need(size_t *total, int32_t E, int32_t D, int32_t N)
{
    moe_epi_need(total, 2 * (int64_t)E, sizeof(moe_epi_item));
    moe_epi_need(total, E, sizeof(int32_t));
    moe_epi_need(total, D, sizeof(double));
    moe_epi_need(total, 2 * (int64_t)N, sizeof(double));
}

static void moe_epi_bound_take(moe_epi_arena *a, moe_epi_bound_work *w, int32_t E, int32_t D, int32_t N)
{
    w->items = (moe_epi_item *)moe_epi_take(a, 2 * (int64_t)E, sizeof(moe_epi_item));
    w->counts = (int32_t *)moe_epi_take(a, E, sizeof(int32_t));
    w->device = (double *)moe_epi_take(a, D, sizeof(double));
    w->node = (double *)moe_epi_take(a, 2 * (int64_t)N, sizeof(double));
}

MOE_EP_API moe_ep_status moe_ep_lower_bound(const double *loads, int32_t E, const moe_ep_shape *shape,
                                            moe_ep_bound_result *out, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_bound_work work;
    moe_epi_arena arena;
    moe_epi_room room;
    size_t total = 0;
    int32_t slots = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!loads) return moe_epi_null(err, "loads");
    if (!shape) return moe_epi_null(err, "shape");
    if (!out) return moe_epi_null(err, "out");
    if (E < 1 || E > INT32_MAX / 2) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must lie in 1..2^30", -1, E);
    if ((status = moe_epi_shape_check(shape, E, &slots, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_loads_check(loads, 1, E, err)) != MOE_EP_OK) return status;
    room = moe_epi_room_of_shape(shape, slots);
    if (room.slots < E)
        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "shape", "fewer active slots than experts", -1, room.slots);
    moe_epi_bound_need(&total, E, 1, 1);
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    moe_epi_bound_take(&arena, &work, E, 1, 1);
    moe_epi_bound(loads, E, &room, INT32_MAX, work.items, work.counts, out);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}
/* ---- planners: what they share ----------------------------------------------------------------------------- */

/* A layer's plan set aside while others are tried. */
typedef struct moe_epi_snap {
    int32_t *cell, *fill, *count; /* (P), (D), (E) */
    double value;                 /* busiest device */
} moe_epi_snap;

/* A planner's inputs after checking. */
typedef struct moe_epi_plan {
    const moe_ep_place_desc *desc;
    moe_ep_placement *out;
    const double *loads; /* (L,E) merged over the steps */
    moe_epi_room room;
    moe_epi_bound_work work;
    moe_epi_arena arena;
    moe_ep_rebalance_desc no_limits; /* best_placement only: zeroed */
    int32_t *hosts;                  /* (D)                         */
    struct moe_epi_gain *gains;      /* (P)                         */
    moe_epi_snap snap;
    int32_t *home;                   /* (L,E) with node_soft        */
} moe_epi_plan;

static moe_ep_status moe_epi_desc_loads(const moe_ep_place_desc *d, int need_loads, moe_ep_error *err)
{
    if (d->num_steps < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_steps", "must not be negative", -1, d->num_steps);
    if (!moe_epi_finite(d->risk_z) || d->risk_z < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.risk_z", "must be finite and not negative", -1, d->risk_z);
    if (!d->loads) return need_loads ? moe_epi_null(err, "desc.loads") : MOE_EP_OK;
    return moe_epi_loads_check(d->loads, (int64_t)(d->num_steps > 1 ? d->num_steps : 1) * d->num_layers,
                               d->num_experts, err);
}

/* desc and out fit each other and hold what every planner needs. */
static moe_ep_status moe_epi_desc_check(const moe_ep_place_desc *d, const moe_ep_placement *out, int need_loads,
                                        moe_ep_error *err)
{
    int32_t slots = 0, active = 0, i, at = 0;
    moe_ep_status status;
    if (!d) return moe_epi_null(err, "desc");
    if ((status = moe_epi_placement_check(out, "out", err)) != MOE_EP_OK) return status;
    if (d->num_layers < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_layers", "must be at least 1", -1, d->num_layers);
    if (d->num_experts < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_experts", "must be at least 1", -1, d->num_experts);
    if ((status = moe_epi_shape_check(&d->shape, d->num_experts, &slots, err)) != MOE_EP_OK) return status;
    if (out->num_layers != d->num_layers || out->num_experts != d->num_experts || out->num_slots != slots ||
        out->num_devices != d->shape.num_devices ||
        out->num_nodes != (d->shape.num_nodes > 0 ? d->shape.num_nodes : 1))
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "out", "was laid out for other sizes than desc", -1,
                            out->num_slots);
    for (i = 0; i < out->num_devices; i++) {
        int32_t own = moe_epi_device_slots(&d->shape, slots, i);
        if (out->slot_start[i] != at)
            return moe_epi_fail(err, MOE_EP_ERR_SIZE, "out", "was laid out with other slots per device", i, own);
        at += own;
        if (!d->shape.inactive || !d->shape.inactive[i]) active += own;
    }
    if (active < d->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "desc.shape", "fewer active slots than experts", -1, active);
    return moe_epi_desc_loads(d, need_loads, err);
}

/* Checks, opens the scratch (extra bytes for the planner itself come on top) and merges the steps. */
static moe_ep_status moe_epi_plan_open(moe_epi_plan *plan, const moe_ep_place_desc *desc, moe_ep_placement *out,
                                       int need_loads, size_t extra, moe_ep_scratch *scratch, moe_ep_error *err)
{
    int64_t cells;
    size_t total = extra;
    double *merged;
    int32_t E, D, N;
    moe_ep_status status = moe_epi_desc_check(desc, out, need_loads, err);
    memset(plan, 0, sizeof *plan);
    if (status != MOE_EP_OK) return status;
    E = desc->num_experts;
    D = out->num_devices;
    N = out->num_nodes;
    cells = desc->loads && desc->num_steps <= 1 ? 0 : (int64_t)desc->num_layers * E;
    moe_epi_need(&total, cells, sizeof(double));
    moe_epi_bound_need(&total, E, D, N);
    if ((status = moe_epi_arena_open(&plan->arena, scratch, total, err)) != MOE_EP_OK) return status;
    plan->desc = desc;
    plan->out = out;
    plan->loads = desc->loads;
    merged = (double *)moe_epi_take(&plan->arena, cells, sizeof(double));
    if (cells > 0) {
        memset(merged, 0, (size_t)cells * sizeof(double));
        plan->loads = merged;
        if (desc->loads)
            status =
                moe_ep_window_loads(desc->loads, desc->num_steps, desc->num_layers, E, desc->risk_z, merged, err);
    }
    if (status == MOE_EP_OK && cells > 0)
        status = moe_epi_loads_check(plan->loads, desc->num_layers, E, err); /* z may have made a sum infinite */
    if (status != MOE_EP_OK) {
        moe_epi_arena_close(&plan->arena);
        return status;
    }
    moe_epi_bound_take(&plan->arena, &plan->work, E, D, N);
    return MOE_EP_OK;
}

/* Nothing can fail any more: out takes the speeds and the state of the devices. */
static void moe_epi_plan_begin(moe_epi_plan *plan)
{
    moe_epi_placement_stamp(plan->out, &plan->desc->shape);
    plan->room = moe_epi_room_of(plan->out);
}

/* Busiest device of contiguous blocks over the active devices, the plan of no plan. */
static double moe_epi_contiguous_max(const moe_ep_placement *p, const double *loads)
{
    int32_t d, number = 0, active = 0;
    int64_t e = 0, E = p->num_experts;
    double worst = 0.0;
    for (d = 0; d < p->num_devices; d++) active += !p->device_inactive[d];
    for (d = 0; d < p->num_devices; d++) {
        double sum = 0.0;
        if (p->device_inactive[d]) continue;
        for (; e < E && e * active / E == number; e++) sum += loads[e];
        if (sum / p->device_speed[d] > worst) worst = sum / p->device_speed[d];
        number++;
    }
    return worst;
}

static double moe_epi_node_imbalance(const moe_ep_placement *p, const double *device, double *node)
{
    int32_t d, n;
    double worst = 0.0, total = 0.0, speed = 0.0;
    double *load = node, *fast = node + p->num_nodes;
    for (n = 0; n < p->num_nodes; n++) load[n] = fast[n] = 0.0;
    for (d = 0; d < p->num_devices; d++) {
        if (p->device_inactive[d]) continue;
        load[p->device_node[d]] += device[d];
        fast[p->device_node[d]] += p->device_speed[d];
        total += device[d];
        speed += p->device_speed[d];
    }
    for (n = 0; n < p->num_nodes; n++)
        if (fast[n] > 0.0 && load[n] / fast[n] > worst) worst = load[n] / fast[n];
    return total > 0.0 ? worst * speed / total : 1.0;
}

/* Counts replicas, duplicates and the widest expert of layer l. */
static void moe_epi_result_counts(const moe_ep_placement *p, int32_t l, moe_ep_plan_result *r)
{
    const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
    const int32_t *slot = p->replica_slot + (int64_t)l * p->num_slots;
    int32_t e, i, j;
    r->slots_used = start[p->num_experts];
    for (e = 0; e < p->num_experts; e++) {
        if (start[e + 1] - start[e] > r->max_replicas) r->max_replicas = start[e + 1] - start[e];
        for (i = start[e] + 1; i < start[e + 1]; i++) {
            for (j = start[e]; j < i; j++)
                if (p->slot_device[slot[i]] == p->slot_device[slot[j]]) break;
            r->duplicates += j < i;
        }
    }
}

/* Fills everything that follows from placement and loads; keeps policy, reason, off_node, refinements, moves. */
static void moe_epi_result(const moe_ep_placement *p, int32_t l, const double *loads, const moe_epi_room *room,
                           int32_t max_replicas, const moe_epi_bound_work *work, moe_ep_plan_result *r)
{
    moe_ep_bound_result bound;
    int32_t d, e;
    moe_epi_layer_device_loads(p, l, loads, work->device);
    r->total = 0.0;
    for (e = 0; e < p->num_experts; e++) r->total += loads[e];
    r->mean = r->total / room->speed_sum;
    r->max = 0.0;
    r->busiest_device = -1;
    for (d = 0; d < p->num_devices; d++) {
        double time = work->device[d] / p->device_speed[d];
        if (p->device_inactive[d] || (r->busiest_device >= 0 && !(time > r->max))) continue;
        r->max = time;
        r->busiest_device = d;
    }
    r->max_before = moe_epi_contiguous_max(p, loads);
    moe_epi_bound(loads, p->num_experts, room, max_replicas, work->items, work->counts, &bound);
    r->lower_bound = bound.value < r->max ? bound.value : r->max; /* equal up to the rounding of sums */
    r->bound = bound.bound;
    r->gap = r->lower_bound > 0.0 ? r->max / r->lower_bound - 1.0 : 0.0;
    r->imbalance = r->mean > 0.0 ? r->max / r->mean : 1.0;
    r->node_imbalance = moe_epi_node_imbalance(p, work->device, work->node);
    moe_epi_result_counts(p, l, r);
}

/* Result of a fresh plan of layer l. */
static void moe_epi_plan_result(moe_epi_plan *plan, int32_t l, moe_ep_place_policy policy, const char *reason,
                                moe_ep_plan_result *result)
{
    if (!result) return;
    memset(&result[l], 0, sizeof result[l]);
    result[l].policy = policy;
    result[l].reason = reason;
    moe_epi_result(plan->out, l, plan->loads + (int64_t)l * plan->desc->num_experts, &plan->room, INT32_MAX,
                   &plan->work, &result[l]);
}

MOE_EP_API moe_ep_status moe_ep_evaluate(const moe_ep_placement *p, const double *loads, int32_t num_steps,
                                         moe_ep_plan_result *result, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_bound_work work;
    moe_epi_arena arena;
    moe_epi_room room;
    size_t total = 0;
    int32_t l, t, steps = num_steps > 0 ? num_steps : 1;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_placement_check(p, "p", err)) != MOE_EP_OK) return status;
    if (num_steps < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_steps", "must not be negative", -1, num_steps);
    if (!result) return moe_epi_null(err, "result");
    if ((status = moe_epi_view_check(p, loads, steps, err)) != MOE_EP_OK) return status;
    room = moe_epi_room_of(p);
    if (room.slots < p->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "p", "fewer active slots than experts", -1, room.slots);
    moe_epi_bound_need(&total, p->num_experts, p->num_devices, p->num_nodes);
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    moe_epi_bound_take(&arena, &work, p->num_experts, p->num_devices, p->num_nodes);
    for (l = 0; l < p->num_layers; l++) {
        moe_ep_plan_result sum, one;
        memset(&sum, 0, sizeof sum);
        for (t = 0; t < steps; t++) {
            memset(&one, 0, sizeof one);
            moe_epi_result(p, l, loads + ((int64_t)t * p->num_layers + l) * p->num_experts, &room, INT32_MAX, &work,
                           &one);
            one.total += sum.total;
            one.mean += sum.mean;
            one.node_imbalance =
                one.node_imbalance * (one.mean - sum.mean) + sum.node_imbalance; /* weighed by load */
            one.max_before += sum.max_before;
            one.max += sum.max;
            one.lower_bound += sum.lower_bound;
            sum = one;
        }
        sum.gap = sum.lower_bound > 0.0 ? sum.max / sum.lower_bound - 1.0 : 0.0;
        sum.imbalance = sum.mean > 0.0 ? sum.max / sum.mean : 1.0;
        sum.node_imbalance = sum.mean > 0.0 ? sum.node_imbalance / sum.mean : 1.0;
        sum.reason = "judged, not planned";
        result[l] = sum;
    }
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- baselines ------------------------------------------------------------------------------------------------ */

static void moe_epi_put_first(moe_ep_placement *p, int32_t l, int32_t d, int32_t *fill, int32_t e)
{
    MOE_EP_ASSERT(fill[d] < p->slot_start[d + 1] - p->slot_start[d]);
    p->slot_expert[(int64_t)l * p->num_slots + p->slot_start[d] + fill[d]] = e;
    fill[d]++;
}

static int moe_epi_has_room(const moe_ep_placement *p, int32_t d, const int32_t *fill)
{
    return !p->device_inactive[d] && fill[d] < p->slot_start[d + 1] - p->slot_start[d];
}

static void moe_epi_round_robin_layer(moe_ep_placement *p, int32_t l, int32_t *fill)
{
    int32_t d = 0, e;
    for (e = 0; e < p->num_experts; e++) {
        while (!moe_epi_has_room(p, d, fill)) d = d + 1 < p->num_devices ? d + 1 : 0;
        moe_epi_put_first(p, l, d, fill, e);
        d = d + 1 < p->num_devices ? d + 1 : 0;
    }
}

/* Experts of each device (in fill, then zeroed by the caller): floor(e*D/E) when that fits the slots (returns 1),
 * else blocks as even as the slots allow. */
static int moe_epi_block_sizes(const moe_ep_placement *p, int32_t *size)
{
    int32_t d, number = 0, active = 0, fits = 1, experts = p->num_experts, room = 0;
    int64_t e = 0, E = p->num_experts;
    for (d = 0; d < p->num_devices; d++) active += !p->device_inactive[d];
    for (d = 0; d < p->num_devices; d++) {
        size[d] = 0;
        if (p->device_inactive[d]) continue;
        for (; e < E && e * active / E == number; e++) size[d]++;
        if (size[d] > p->slot_start[d + 1] - p->slot_start[d]) fits = 0;
        room += p->slot_start[d + 1] - p->slot_start[d];
        number++;
    }
    if (fits) return 1;
    for (d = 0; d < p->num_devices; d++) {
        int32_t own = p->slot_start[d + 1] - p->slot_start[d], take;
        if (p->device_inactive[d]) continue;
        room -= own; /* slots behind this device */
        take = (experts + active - 1) / active;
        if (take < experts - room) take = experts - room;
        if (take > own) take = own;
        size[d] = take;
        experts -= take;
        active--;
    }
    return 0;
}

static int moe_epi_contiguous_layer(moe_ep_placement *p, int32_t l, int32_t *fill, int32_t *size)
{
    int32_t d, i, e = 0, fits = moe_epi_block_sizes(p, size);
    for (d = 0; d < p->num_devices; d++)
        for (i = 0; i < size[d]; i++) moe_epi_put_first(p, l, d, fill, e++);
    MOE_EP_ASSERT(e == p->num_experts);
    return fits;
}

/* Scratch of the dealers: experts as items, devices as a heap, loads and fill of devices. */
typedef struct moe_epi_deal {
    moe_epi_item *items, *spare, *heap, *held; /* E, E, D, D */
    double *load;                              /* D */
    int32_t *fill, *cap;                       /* D */
    int32_t *counts;                           /* E */
} moe_epi_deal;

static void moe_epi_deal_need(size_t *total, int32_t E, int32_t D)
{
    moe_epi_need(total, E, sizeof(moe_epi_item));
    moe_epi_need(total, E, sizeof(moe_epi_item));
    moe_epi_need(total, D, sizeof(moe_epi_item));
    moe_epi_need(total, D, sizeof(moe_epi_item));
    moe_epi_need(total, D, sizeof(double));
    moe_epi_need(total, D, sizeof(int32_t));
    moe_epi_need(total, D, sizeof(int32_t));
    moe_epi_need(total, E, sizeof(int32_t));
}

static void moe_epi_deal_take(moe_epi_arena *a, moe_epi_deal *w, int32_t E, int32_t D)
{
    w->items = (moe_epi_item *)moe_epi_take(a, E, sizeof(moe_epi_item));
    w->spare = (moe_epi_item *)moe_epi_take(a, E, sizeof(moe_epi_item));
    w->heap = (moe_epi_item *)moe_epi_take(a, D, sizeof(moe_epi_item));
    w->held = (moe_epi_item *)moe_epi_take(a, D, sizeof(moe_epi_item));
    w->load = (double *)moe_epi_take(a, D, sizeof(double));
    w->fill = (int32_t *)moe_epi_take(a, D, sizeof(int32_t));
    w->cap = (int32_t *)moe_epi_take(a, D, sizeof(int32_t));
    w->counts = (int32_t *)moe_epi_take(a, E, sizeof(int32_t));
}

/* Sorts the experts of one layer by load per copy into w->items. */
static void moe_epi_deal_order(moe_epi_deal *w, const double *loads, int32_t E)
{
    int32_t e;
    for (e = 0; e < E; e++) {
        w->items[e].key = loads[e] / w->counts[e];
        w->items[e].id = e;
        w->items[e].aux = w->counts[e];
    }
    moe_epi_sort(w->items, w->spare, E);
}

/* Next device for a copy of `unit`: the lightest on the heap; with speeds the one that would finish first.
 * Takes it off the heap. */
static moe_epi_item moe_epi_deal_pick(moe_epi_item *heap, int32_t *n, double unit, const double *speed)
{
    int32_t i, best = 0;
    moe_epi_item found;
    if (!speed) return moe_epi_heap_pop(heap, n);
    for (i = 1; i < *n; i++) {
        double a = (unit - heap[i].key) / speed[heap[i].id], b = (unit - heap[best].key) / speed[heap[best].id];
        if (a < b || (!(a > b) && heap[i].id < heap[best].id)) best = i;
    }
    found = heap[best];
    heap[best] = heap[--(*n)]; /* with speeds the heap is a plain list */
    return found;
}

/* Places the aux copies of every item on different devices with room, lightest first.  speed NULL = all equal; avoid
 * (E) names a device that has the expert already, or is NULL.  emit(user, item, d) is called for each copy.  Returns
 * how many copies found no device. */
typedef void (*moe_epi_emit)(void *user, const moe_epi_item *item, int32_t d);

static int32_t moe_epi_deal_run(moe_epi_deal *w, int32_t E, int32_t D, const double *speed, const int32_t *avoid,
                                moe_epi_emit emit, void *user)
{
    int32_t i, d, n = 0, c, held, left_out = 0;
    for (d = 0; d < D; d++) {
        if (w->fill[d] >= w->cap[d]) continue;
        w->heap[n].key = -w->load[d];
        w->heap[n].id = d;
        w->heap[n].aux = 0;
        n++;
    }
    if (!speed) moe_epi_heapify(w->heap, n);
    for (i = 0; i < E; i++) {
        held = 0;
        for (c = 0; c < w->items[i].aux && n > 0; c++) {
            moe_epi_item device = moe_epi_deal_pick(w->heap, &n, w->items[i].key, speed);
            if (avoid && avoid[w->items[i].id] == device.id) {
                w->held[held++] = device;
                c--;
                continue;
            }
            emit(user, &w->items[i], device.id);
            w->load[device.id] += w->items[i].key;
            device.key = -w->load[device.id];
            if (++w->fill[device.id] < w->cap[device.id]) w->held[held++] = device;
        }
        left_out += w->items[i].aux - c;
        while (held > 0) {
            held--;
            if (speed) w->heap[n++] = w->held[held];
            else moe_epi_heap_push(w->heap, &n, w->held[held]);
        }
    }
    return left_out;
}

typedef struct moe_epi_slot_writer {
    moe_ep_placement *p;
    int32_t layer;
    int32_t *fill;
} moe_epi_slot_writer;

static void moe_epi_emit_slot(void *user, const moe_epi_item *item, int32_t d)
{
    moe_epi_slot_writer *w = (moe_epi_slot_writer *)user;
    w->p->slot_expert[(int64_t)w->layer * w->p->num_slots + w->p->slot_start[d] + w->fill[d]] = item->id;
}

static void moe_epi_deal_caps(moe_epi_deal *w, const moe_ep_placement *p)
{
    int32_t d;
    for (d = 0; d < p->num_devices; d++)
        w->cap[d] = p->device_inactive[d] ? 0 : p->slot_start[d + 1] - p->slot_start[d];
}

/* Devices empty, capacity as the slots say. */
static void moe_epi_deal_reset(moe_epi_deal *w, const moe_ep_placement *p)
{
    int32_t d;
    moe_epi_deal_caps(w, p);
    for (d = 0; d < p->num_devices; d++) {
        w->load[d] = 0.0;
        w->fill[d] = 0;
    }
}

typedef enum moe_epi_baseline { MOE_EPI_ROUND_ROBIN, MOE_EPI_CONTIGUOUS, MOE_EPI_LPT } moe_epi_baseline;

static moe_ep_status moe_epi_baseline_place(moe_epi_baseline kind, const moe_ep_place_desc *desc,
                                            moe_ep_placement *out, moe_ep_plan_result *result,
                                            moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_plan plan;
    moe_epi_deal deal;
    size_t extra = 0;
    int32_t l, e;
    moe_ep_status status;
    moe_epi_ok(err);
    if (desc && out && out->num_devices > 0 && desc->num_experts > 0)
        moe_epi_deal_need(&extra, desc->num_experts, out->num_devices);
    status = moe_epi_plan_open(&plan, desc, out, kind == MOE_EPI_LPT, extra, scratch, err);
    if (status != MOE_EP_OK) return status;
    moe_epi_deal_take(&plan.arena, &deal, desc->num_experts, out->num_devices);
    moe_epi_plan_begin(&plan);
    moe_epi_placement_clear(out);
    for (l = 0; l < desc->num_layers; l++) {
        moe_ep_place_policy policy = MOE_EP_PLACE_LPT;
        const char *reason = "heaviest expert first, lightest device with a free slot";
        moe_epi_deal_reset(&deal, out);
        if (kind == MOE_EPI_ROUND_ROBIN) {
            policy = MOE_EP_PLACE_ROUND_ROBIN;
            reason = "expert e on active device e mod D, full devices skipped";
            moe_epi_round_robin_layer(out, l, deal.fill);
        } else if (kind == MOE_EPI_CONTIGUOUS) {
            policy = MOE_EP_PLACE_CONTIGUOUS;
            reason = moe_epi_contiguous_layer(out, l, deal.fill, deal.cap)
                         ? "blocks of neighbours, expert e on active device floor(e*D/E)"
                         : "blocks of neighbours, as even as the slots of the devices allow";
        } else {
            moe_epi_slot_writer writer;
            writer.p = out;
            writer.layer = l;
            writer.fill = deal.fill;
            for (e = 0; e < desc->num_experts; e++) deal.counts[e] = 1;
            moe_epi_deal_order(&deal, plan.loads + (int64_t)l * desc->num_experts, desc->num_experts);
            (void)moe_epi_deal_run(&deal, desc->num_experts, out->num_devices, desc->shape.speed, NULL,
                                   moe_epi_emit_slot, &writer);
        }
        moe_epi_index_layer(out, l);
        moe_epi_plan_result(&plan, l, policy, reason, result);
    }
    moe_epi_arena_close(&plan.arena);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_place_round_robin(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                                  moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                                  moe_ep_error *err)
{
    return moe_epi_baseline_place(MOE_EPI_ROUND_ROBIN, desc, out, result, scratch, err);
}

MOE_EP_API moe_ep_status moe_ep_place_contiguous(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                                 moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                                 moe_ep_error *err)
{
    return moe_epi_baseline_place(MOE_EPI_CONTIGUOUS, desc, out, result, scratch, err);
}

MOE_EP_API moe_ep_status moe_ep_place_lpt(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                          moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                          moe_ep_error *err)
{
    return moe_epi_baseline_place(MOE_EPI_LPT, desc, out, result, scratch, err);
}

/* ---- lab-sized ------------------------------------------------------------------------------- */

typedef struct moe_epi_list_writer {
    int32_t *device; /* (sum of counts) */
    int32_t *next;   /* (E) where the next copy of an expert goes */
} moe_epi_list_writer;

static void moe_epi_emit_list(void *user, const moe_epi_item *item, int32_t d)
{
    moe_epi_list_writer *w = (moe_epi_list_writer *)user;
    w->device[w->next[item->id]++] = d;
}

static moe_ep_status moe_epi_lpt(const double *loads, int32_t E, const int32_t *counts, int32_t D, int32_t *device,
                                 const char *output, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_epi_deal deal;
    moe_epi_list_writer writer;
    size_t total = 0;
    int64_t at = 0;
    int32_t e, d;
    moe_ep_status status;
    if (!loads) return moe_epi_null(err, "loads");
    if (!device) return moe_epi_null(err, output);
    if (E < 1 || E > INT32_MAX / 2) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must lie in 1..2^30", -1, E);
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "must be at least 1", -1, D);
    for (e = 0; counts && e < E; e++) {
        if (counts[e] < 1 || counts[e] > D)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "counts", "must lie in 1..D", e, counts[e]);
        at += counts[e];
        if (at > INT32_MAX / 2)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "counts", "the sum is above 2^30", e, (double)at);
    }
    if ((status = moe_epi_loads_check(loads, 1, E, err)) != MOE_EP_OK) return status;
    moe_epi_deal_need(&total, E, D);
    moe_epi_need(&total, E, sizeof(int32_t));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    moe_epi_deal_take(&arena, &deal, E, D);
    writer.device = device;
    writer.next = (int32_t *)moe_epi_take(&arena, E, sizeof(int32_t));
    at = 0;
    for (e = 0; e < E; e++) {
        deal.counts[e] = counts ? counts[e] : 1;
        writer.next[e] = (int32_t)at;
        at += deal.counts[e];
    }
    for (d = 0; d < D; d++) {
        deal.load[d] = 0.0;
        deal.fill[d] = 0;
        deal.cap[d] = INT32_MAX;
    }
    moe_epi_deal_order(&deal, loads, E);
    (void)moe_epi_deal_run(&deal, E, D, NULL, NULL, moe_epi_emit_list, &writer);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_lpt(const double *loads, int32_t E, int32_t D, int32_t *device_of_expert,
                                    moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_ok(err);
    return moe_epi_lpt(loads, E, NULL, D, device_of_expert, "device_of_expert", scratch, err);
}

MOE_EP_API moe_ep_status moe_ep_lpt_replicas(const double *loads, int32_t E, const int32_t *counts, int32_t D,
                                             int32_t *device_of_replica, moe_ep_scratch *scratch,
                                             moe_ep_error *err)
{
    moe_epi_ok(err);
    if (!counts) return moe_epi_null(err, "counts");
    return moe_epi_lpt(loads, E, counts, D, device_of_replica, "device_of_replica", scratch, err);
}

/* One pass over the assignment: counts the experts per device (slot_expert untouched) or writes them. */
static moe_ep_status moe_epi_devices_pass(const int32_t *device_of_replica, const int32_t *counts,
                                          moe_ep_placement *out, int write, moe_ep_error *err)
{
    int32_t l, e, c, E = out->num_experts, D = out->num_devices;
    int64_t at = 0;
    for (l = 0; l < out->num_layers; l++) {
        int32_t *row = out->slot_expert + (int64_t)l * out->num_slots;
        for (e = 0; e < E; e++) {
            int32_t copies = counts ? counts[(int64_t)l * E + e] : 1;
            if (copies < 1)
                return moe_epi_fail(err, MOE_EP_ERR_RANGE, "counts", "must be at least 1", (int64_t)l * E + e,
                                    copies);
            for (c = 0; c < copies; c++, at++) {
                int32_t d = device_of_replica[at], s;
                if (d < 0 || d >= D)
                    return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, "device_of_replica", "is not a device", at, d);
                if (!write) continue;
                for (s = out->slot_start[d]; row[s] >= 0; s++) {}
                row[s] = e;
            }
        }
    }
    return MOE_EP_OK;
}

/* Is there room for every copy?  Counts per device and layer in quadratic time of D, without memory. */
static moe_ep_status moe_epi_devices_room(const int32_t *device_of_replica, const int32_t *counts,
                                          const moe_ep_placement *out, moe_ep_error *err)
{
    int32_t l, e, d, c, E = out->num_experts;
    int64_t first = 0, at = 0;
    for (l = 0; l < out->num_layers; l++) {
        for (d = 0; d < out->num_devices; d++) {
            int32_t left = out->slot_start[d + 1] - out->slot_start[d];
            at = first;
            for (e = 0; e < E; e++)
                for (c = counts ? counts[(int64_t)l * E + e] : 1; c > 0; c--, at++)
                    if (device_of_replica[at] == d && left-- == 0)
                        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "device_of_replica",
                                            "the device has no free slot left", at, d);
        }
        first = at;
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_devices_placement(const int32_t *device_of_replica, const int32_t *counts,
                                                  moe_ep_placement *out, moe_ep_error *err)
{
    int32_t l;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!device_of_replica) return moe_epi_null(err, "device_of_replica");
    if ((status = moe_epi_placement_check(out, "out", err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_devices_pass(device_of_replica, counts, out, 0, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_devices_room(device_of_replica, counts, out, err)) != MOE_EP_OK) return status;
    moe_epi_placement_clear(out);
    (void)moe_epi_devices_pass(device_of_replica, counts, out, 1, err);
    for (l = 0; l < out->num_layers; l++) moe_epi_index_layer(out, l);
    return MOE_EP_OK;
}

/* ---- EPLB ------------------------------------------------------------------------------------ */

/* A float >= 0 and an index as one integer that orders by float, then by index (IEEE bits of non-negative floats
 * order like the floats). */
static uint64_t moe_epi_float_key(float value, uint32_t low)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint64_t)bits << 32 | low;
}

/* Ascending sort of keys whose low halves are already ascending: radix on the high halves; insertion when short. */
static void moe_epi_sort_keys(uint64_t *keys, uint64_t *spare, int32_t n)
{
    uint32_t count[4][256];
    uint64_t *from = keys, *to = spare;
    int32_t i, j;
    int digit;
    if (n <= 40) {
        for (i = 1; i < n; i++) {
            uint64_t moving = keys[i];
            for (j = i; j > 0 && keys[j - 1] > moving; j--) keys[j] = keys[j - 1];
            keys[j] = moving;
        }
        return;
    }
    memset(count, 0, sizeof count);
    for (i = 0; i < n; i++)
        for (digit = 0; digit < 4; digit++) count[digit][(keys[i] >> (32 + 8 * digit)) & 255u]++;
    for (digit = 0; digit < 4; digit++) {
        int shift = 32 + 8 * digit;
        uint32_t sum = 0, *c = count[digit];
        uint64_t *swap = from;
        if (c[(from[0] >> shift) & 255u] == (uint32_t)n) continue; /* all alike */
        for (i = 0; i < 256; i++) {
            uint32_t here = c[i];
            c[i] = sum;
            sum += here;
        }
        for (i = 0; i < n; i++) to[c[(from[i] >> shift) & 255u]++] = from[i];
        from = to;
        to = swap;
    }
    if (from != keys) memcpy(keys, from, (size_t)n * sizeof *keys);
}

/* Working arrays of one layer; sizes: E experts, P slots, G >= groups and devices. */
typedef struct moe_epi_eplb {
    float *weight;                       /* E: loads in the order of the packed groups           */
    float *slot_weight;                  /* P                                                    */
    float *sum;                          /* G                                                    */
    uint64_t *keys, *spare, *tree;       /* P, P, 4*G                                            */
    int32_t *order;                      /* E: mlog2log                                          */
    int32_t *phy, *phy_rank, *count;     /* P, P, E: replicas in creation order                  */
    int32_t *pack, *rank, *fill;         /* P, P, G                                              */
} moe_epi_eplb;

static void moe_epi_eplb_need(size_t *total, int32_t E, int32_t P, int32_t G)
{
    int i;
    moe_epi_need(total, E, sizeof(float));
    moe_epi_need(total, P, sizeof(float));
    moe_epi_need(total, G, sizeof(float));
    moe_epi_need(total, P, sizeof(uint64_t)); /* P >= E */
    moe_epi_need(total, P, sizeof(uint64_t));
    moe_epi_need(total, 4 * (int64_t)G, sizeof(uint64_t));
    for (i = 0; i < 2; i++) moe_epi_need(total, E, sizeof(int32_t));
    for (i = 0; i < 4; i++) moe_epi_need(total, P, sizeof(int32_t));
    moe_epi_need(total, G, sizeof(int32_t));
}

static void moe_epi_eplb_take(moe_epi_arena *a, moe_epi_eplb *w, int32_t E, int32_t P, int32_t G)
{
    w->weight = (float *)moe_epi_take(a, E, sizeof(float));
    w->slot_weight = (float *)moe_epi_take(a, P, sizeof(float));
    w->sum = (float *)moe_epi_take(a, G, sizeof(float));
    w->keys = (uint64_t *)moe_epi_take(a, P, sizeof(uint64_t));
    w->spare = (uint64_t *)moe_epi_take(a, P, sizeof(uint64_t));
    w->tree = (uint64_t *)moe_epi_take(a, 4 * (int64_t)G, sizeof(uint64_t));
    w->order = (int32_t *)moe_epi_take(a, E, sizeof(int32_t));
    w->count = (int32_t *)moe_epi_take(a, E, sizeof(int32_t));
    w->phy = (int32_t *)moe_epi_take(a, P, sizeof(int32_t));
    w->phy_rank = (int32_t *)moe_epi_take(a, P, sizeof(int32_t));
    w->pack = (int32_t *)moe_epi_take(a, P, sizeof(int32_t));
    w->rank = (int32_t *)moe_epi_take(a, P, sizeof(int32_t));
    w->fill = (int32_t *)moe_epi_take(a, G, sizeof(int32_t));
}

/* EPLB balanced_packing: n items into m packs of n/m each -> w->pack, w->rank. */
static void moe_epi_eplb_pack(moe_epi_eplb *w, const float *weight, int32_t n, int32_t m)
{
    int32_t each = n / m, i, leaves = 1, node;
    if (each == 1) {
        for (i = 0; i < n; i++) {
            w->pack[i] = i;
            w->rank[i] = 0;
        }
        return;
    }
    for (i = 0; i < n; i++) /* bits inverted: heaviest first, lowest index first */
        w->keys[i] = moe_epi_float_key(weight[i], (uint32_t)i) ^ 0xffffffff00000000u;
    moe_epi_sort_keys(w->keys, w->spare, n);
    while (leaves < m) leaves *= 2;
    for (i = 0; i < leaves; i++) /* a tree of minima over (sum, pack) */
        w->tree[leaves + i] = i < m ? (uint64_t)i : UINT64_MAX;
    for (node = leaves - 1; node > 0; node--)
        w->tree[node] = w->tree[2 * node] < w->tree[2 * node + 1] ? w->tree[2 * node] : w->tree[2 * node + 1];
    for (i = 0; i < m; i++) {
        w->sum[i] = 0.0f;
        w->fill[i] = 0;
    }
    for (i = 0; i < n; i++) {
        int32_t item = (int32_t)(w->keys[i] & 0xffffffffu), lightest = (int32_t)(w->tree[1] & 0xffffffffu);
        w->pack[item] = lightest;
        w->rank[item] = w->fill[lightest]++;
        w->sum[lightest] += weight[item];
        node = leaves + lightest;
        w->tree[node] =
            w->fill[lightest] < each ? moe_epi_float_key(w->sum[lightest], (uint32_t)lightest) : UINT64_MAX;
        for (node /= 2; node > 0; node /= 2)
            w->tree[node] = w->tree[2 * node] < w->tree[2 * node + 1] ? w->tree[2 * node] : w->tree[2 * node + 1];
    }
}

static void moe_epi_sift_keys(uint64_t *heap, int32_t n, int32_t i)
{
    uint64_t moving = heap[i];
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= moving) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

/* EPLB replicate_experts: n experts on P slots -> w->phy, w->phy_rank, w->count. */
static void moe_epi_eplb_replicate(moe_epi_eplb *w, const float *weight, int32_t n, int32_t P, int32_t *count)
{
    int32_t i;
    for (i = 0; i < n; i++) { /* index inverted: the lowest wins ties in a heap of maxima */
        w->keys[i] = moe_epi_float_key(weight[i], ~(uint32_t)i);
        w->phy[i] = i;
        w->phy_rank[i] = 0;
        count[i] = 1;
    }
    if (P > n)
        for (i = n / 2 - 1; i >= 0; i--) moe_epi_sift_keys(w->keys, n, i);
    for (i = n; i < P; i++) {
        int32_t e = (int32_t)~(uint32_t)(w->keys[0] & 0xffffffffu);
        w->phy[i] = e;
        w->phy_rank[i] = count[e]++;
        w->keys[0] = moe_epi_float_key(weight[e] / (float)count[e], ~(uint32_t)e);
        moe_epi_sift_keys(w->keys, n, 0);
    }
}

/* Step 1: groups to nodes.  w->order lists the experts node after node. */
static void moe_epi_eplb_groups(moe_epi_eplb *w, const double *loads, int32_t E, int32_t groups, int32_t nodes)
{
    int32_t size = E / groups, each = groups / nodes, g, i;
    for (g = 0; g < groups; g++) {
        float sum = 0.0f;
        for (i = 0; i < size; i++) sum += (float)loads[g * size + i];
        w->slot_weight[g] = sum; /* groups <= E <= P */
    }
    moe_epi_eplb_pack(w, w->slot_weight, groups, nodes);
    for (g = 0; g < groups; g++)
        for (i = 0; i < size; i++) w->order[(w->pack[g] * each + w->rank[g]) * size + i] = g * size + i;
}

static void moe_epi_eplb_layer(moe_ep_placement *p, int32_t l, const double *loads, int32_t groups, int32_t nodes,
                               moe_epi_eplb *w)
{
    int32_t E = p->num_experts, P = p->num_slots, D = p->num_devices;
    int32_t node_experts = E / nodes, node_slots = P / nodes, node_devices = D / nodes, each = P / D, n, i, e;
    int32_t *expert = p->slot_expert + (int64_t)l * P, *slot = p->replica_slot + (int64_t)l * P;
    int32_t *start = p->replica_start + (int64_t)l * (E + 1);
    moe_epi_eplb_groups(w, loads, E, groups, nodes);
    for (i = 0; i < E; i++) w->weight[i] = (float)loads[w->order[i]] + 0.0f; /* turns -0 into 0 */
    for (n = 0; n < nodes; n++) {
        const float *weight = w->weight + n * node_experts;
        const int32_t *order = w->order + n * node_experts;
        int32_t *count = w->count + n * node_experts, *seen = slot + n * node_slots;
        moe_epi_eplb_replicate(w, weight, node_experts, node_slots, count);
        for (i = 0; i < node_slots; i++) w->slot_weight[i] = weight[w->phy[i]] / (float)count[w->phy[i]];
        moe_epi_eplb_pack(w, w->slot_weight, node_slots, node_devices);
        for (i = 0; i < node_slots; i++) {
            int32_t s = n * node_slots + w->pack[i] * each + w->rank[i];
            expert[s] = order[w->phy[i]];
            seen[w->pack[i] * each + w->rank[i]] = w->phy_rank[i]; /* replica rank per slot, for the moment */
        }
    }
    start[0] = 0;
    for (i = 0; i < E; i++) start[w->order[i] + 1] = w->count[i];
    for (e = 0; e < E; e++) start[e + 1] += start[e];
    memcpy(w->pack, slot, (size_t)P * sizeof *slot);
    for (i = 0; i < P; i++) slot[start[expert[i]] + w->pack[i]] = i;
}

/* What eplb and trtllm cannot do is refused, with the reason. */
static moe_ep_status moe_epi_equal_slots(const moe_ep_place_desc *desc, const moe_ep_placement *out,
                                         moe_ep_error *err)
{
    int32_t d, each = out->num_slots / out->num_devices;
    for (d = 0; d < out->num_devices; d++) {
        if (out->slot_start[d + 1] - out->slot_start[d] != each)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.shape", "this planner needs equal slots on all devices",
                                d, out->slot_start[d + 1] - out->slot_start[d]);
        if (desc->shape.inactive && desc->shape.inactive[d])
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.shape.inactive", "this planner needs all devices", d,
                                1.0);
        if (desc->shape.speed && (desc->shape.speed[d] < 1.0 || desc->shape.speed[d] > 1.0))
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.shape.speed", "this planner knows no speeds", d,
                                desc->shape.speed[d]);
    }
    return MOE_EP_OK;
}

/* Which mode runs, and why. */
static moe_ep_status moe_epi_eplb_choose(const moe_ep_place_desc *desc, const moe_ep_placement *out,
                                         int *hierarchical, const char **reason, moe_ep_error *err)
{
    int32_t groups = desc->num_groups > 0 ? desc->num_groups : 1, nodes = out->num_nodes;
    int divide = groups % nodes == 0;
    if (desc->num_groups < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_groups", "must not be negative", -1, desc->num_groups);
    if (desc->num_experts % groups != 0)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.num_groups", "does not divide the experts", -1, groups);
    if (out->num_devices % nodes != 0)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.shape.num_nodes", "does not divide the devices", -1, nodes);
    if (desc->eplb_mode != MOE_EP_EPLB_AUTO && desc->eplb_mode != MOE_EP_EPLB_GLOBAL &&
        desc->eplb_mode != MOE_EP_EPLB_HIERARCHICAL)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.eplb_mode", "is not a mode", -1, (double)desc->eplb_mode);
    if (desc->eplb_mode == MOE_EP_EPLB_HIERARCHICAL && !divide)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.num_groups",
                            "hierarchical was asked for, but the groups do not "
                            "divide over the nodes",
                            -1, groups);
    *hierarchical = divide && desc->eplb_mode != MOE_EP_EPLB_GLOBAL;
    if (desc->eplb_mode == MOE_EP_EPLB_GLOBAL) *reason = "global: asked for";
    else if (desc->eplb_mode == MOE_EP_EPLB_HIERARCHICAL) *reason = "hierarchical: asked for";
    else if (divide && nodes == 1)
        *reason = "hierarchical: one node holds all groups, which is global up to the order of slots";
    else if (divide) *reason = "hierarchical: the groups divide over the nodes";
    else *reason = "global: the groups do not divide over the nodes";
    return MOE_EP_OK;
}

/* float32 turns loads above 3.4e38 into infinity. */
static moe_ep_status moe_epi_float_loads(const moe_ep_place_desc *desc, moe_ep_error *err)
{
    int64_t i, n = (int64_t)desc->num_layers * desc->num_experts * (desc->num_steps > 1 ? desc->num_steps : 1);
    for (i = 0; i < n; i++)
        if (desc->loads[i] > 3.0e38)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "loads", "does not fit float32", i, desc->loads[i]);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_place_eplb(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                           moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                           moe_ep_error *err)
{
    moe_epi_plan plan;
    moe_epi_eplb work;
    size_t extra = 0;
    const char *reason = "";
    int hierarchical = 0;
    int32_t l, groups, nodes, G;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_desc_check(desc, out, 1, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_equal_slots(desc, out, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_eplb_choose(desc, out, &hierarchical, &reason, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_float_loads(desc, err)) != MOE_EP_OK) return status;
    groups = hierarchical && desc->num_groups > 0 ? desc->num_groups : 1;
    nodes = hierarchical ? out->num_nodes : 1;
    G = groups > out->num_devices ? groups : out->num_devices;
    moe_epi_eplb_need(&extra, desc->num_experts, out->num_slots, G);
    status = moe_epi_plan_open(&plan, desc, out, 1, extra, scratch, err);
    if (status != MOE_EP_OK) return status;
    moe_epi_eplb_take(&plan.arena, &work, desc->num_experts, out->num_slots, G);
    moe_epi_plan_begin(&plan);
    for (l = 0; l < desc->num_layers; l++) {
        moe_epi_eplb_layer(out, l, plan.loads + (int64_t)l * desc->num_experts, groups, nodes, &work);
        moe_epi_plan_result(&plan, l, hierarchical ? MOE_EP_PLACE_EPLB_HIERARCHICAL : MOE_EP_PLACE_EPLB_GLOBAL,
                            reason, result);
    }
    moe_epi_arena_close(&plan.arena);
    return MOE_EP_OK;
}

/* ---- TensorRT-LLM
 * ---------------------------------------------------------------------------------------------------- */

/* Counts by its rules: heap of (load per copy, larger id first); zero load is shared out. */
static void moe_epi_trtllm_counts(const double *loads, int32_t E, int32_t P, int32_t *counts, moe_epi_item *heap)
{
    double total = 0.0;
    int32_t e, used;
    for (e = 0; e < E; e++) total += loads[e];
    for (e = 0; e < E; e++) {
        counts[e] = total > 0.0 ? 1 : P / E + (e < P % E ? 1 : 0);
        heap[e].key = loads[e];
        heap[e].id = -e; /* moe_epi_above prefers the lower id: the larger expert */
        heap[e].aux = e;
    }
    if (!(total > 0.0)) return;
    moe_epi_heapify(heap, E);
    for (used = E; used < P; used++) {
        e = heap[0].aux;
        counts[e]++;
        heap[0].key = loads[e] / counts[e];
        moe_epi_sift(heap, E, 0);
    }
}

static void moe_epi_trtllm_layer(moe_ep_placement *p, int32_t l, const double *loads, moe_epi_deal *w)
{
    int32_t i, c, d, n = p->num_devices, *expert = p->slot_expert + (int64_t)l * p->num_slots;
    moe_epi_trtllm_counts(loads, p->num_experts, p->num_slots, w->counts, w->items);
    moe_epi_deal_order(w, loads, p->num_experts);
    moe_epi_deal_reset(w, p);
    for (d = 0; d < n; d++) {
        w->heap[d].key = 0.0;
        w->heap[d].id = d;
    }
    for (i = 0; i < p->num_experts; i++) {
        for (c = 0; c < w->items[i].aux; c++) { /* unlike the dealer of best_placement: copies may meet on a device */
            d = w->heap[0].id;
            expert[p->slot_start[d] + w->fill[d]] = w->items[i].id;
            w->load[d] += w->items[i].key;
            w->heap[0].key = -w->load[d];
            if (++w->fill[d] < w->cap[d]) moe_epi_sift(w->heap, n, 0);
            else (void)moe_epi_heap_pop(w->heap, &n);
        }
    }
    moe_epi_index_layer(p, l);
}

MOE_EP_API moe_ep_status moe_ep_place_trtllm(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                             moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                             moe_ep_error *err)
{
    moe_epi_plan plan;
    moe_epi_deal deal;
    size_t extra = 0;
    int32_t l;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_desc_check(desc, out, 1, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_equal_slots(desc, out, err)) != MOE_EP_OK) return status;
    moe_epi_deal_need(&extra, desc->num_experts, out->num_devices);
    status = moe_epi_plan_open(&plan, desc, out, 1, extra, scratch, err);
    if (status != MOE_EP_OK) return status;
    moe_epi_deal_take(&plan.arena, &deal, desc->num_experts, out->num_devices);
    moe_epi_plan_begin(&plan);
    for (l = 0; l < desc->num_layers; l++) {
        moe_epi_trtllm_layer(out, l, plan.loads + (int64_t)l * desc->num_experts, &deal);
        moe_epi_plan_result(&plan, l, MOE_EP_PLACE_TRTLLM,
                            "replicas by load, larger id first on ties; heaviest replica "
                            "first onto the lightest rank with a slot",
                            result);
    }
    moe_epi_arena_close(&plan.arena);
    return MOE_EP_OK;
}

/* ---- EPLB's arrays
 * ------------------------------------------------------------------------------------------------------ */

MOE_EP_API int64_t moe_ep_max_replicas(const moe_ep_placement *p, moe_ep_error *err)
{
    int32_t l, e, most = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_placement_check(p, "p", err)) != MOE_EP_OK) return status;
    for (l = 0; l < p->num_layers; l++) {
        const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
        for (e = 0; e < p->num_experts; e++)
            if (start[e + 1] - start[e] > most) most = start[e + 1] - start[e];
    }
    return most;
}

MOE_EP_API moe_ep_status moe_ep_eplb_arrays(const moe_ep_placement *p, int32_t X, int32_t *phy2log,
                                            int32_t *log2phy, int32_t *logcnt, moe_ep_error *err)
{
    int64_t most, i, cells;
    int32_t l, e, r;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((most = moe_ep_max_replicas(p, err)) < 0) return (moe_ep_status)most;
    if ((status = moe_epi_validate_devices(p, err)) != MOE_EP_OK) return status;
    for (l = 0; l < p->num_layers; l++)
        if ((status = moe_epi_validate_maps(p, l, err)) != MOE_EP_OK) return status;
    if (log2phy && X < most)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "X", "is less than the most replicas of an expert", -1,
                            (double)most);
    cells = (int64_t)p->num_layers * p->num_slots;
    for (i = 0; phy2log && i < cells; i++) phy2log[i] = p->slot_expert[i];
    for (l = 0; l < p->num_layers; l++) {
        const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
        const int32_t *slot = p->replica_slot + (int64_t)l * p->num_slots;
        for (e = 0; e < p->num_experts; e++) {
            int64_t row = (int64_t)l * p->num_experts + e;
            int32_t n = start[e + 1] - start[e];
            if (logcnt) logcnt[row] = n;
            for (r = 0; log2phy && r < X; r++) log2phy[row * X + r] = r < n ? slot[start[e] + r] : -1;
        }
    }
    return MOE_EP_OK;
}

/* log2phy and logcnt of one expert agree with phy2log. */
static moe_ep_status moe_epi_from_eplb_check(const int32_t *phy2log, const int32_t *log2phy, int32_t X,
                                             const int32_t *logcnt, const moe_ep_placement *out, int64_t row,
                                             moe_ep_error *err)
{
    int32_t P = out->num_slots, e = (int32_t)(row % out->num_experts), s, r, i, n = 0, listed = 0;
    const int32_t *layer = phy2log + row / out->num_experts * P;
    for (s = 0; s < P; s++) n += layer[s] == e;
    if (logcnt && logcnt[row] != n)
        return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "logcnt", "disagrees with phy2log", row, logcnt[row]);
    for (r = 0; log2phy && r < X; r++) {
        s = log2phy[row * X + r];
        if (s == -1) continue;
        if (s < 0 || s >= P || layer[s] != e)
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "log2phy", "disagrees with phy2log", row * X + r, s);
        for (i = 0; i < r; i++)
            if (log2phy[row * X + i] == s)
                return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "log2phy", "names a slot twice", row * X + r, s);
        listed++;
    }
    if (log2phy && listed != n)
        return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "log2phy", "does not list every replica", row * X, listed);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_placement_from_eplb(const int32_t *phy2log, const int32_t *log2phy, int32_t X,
                                                    const int32_t *logcnt, moe_ep_placement *out,
                                                    moe_ep_error *err)
{
    int64_t i, cells, row, rows;
    int32_t l, r;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!phy2log) return moe_epi_null(err, "phy2log");
    if ((status = moe_epi_placement_check(out, "out", err)) != MOE_EP_OK) return status;
    if (log2phy && X < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "X", "must be at least 1", -1, X);
    cells = (int64_t)out->num_layers * out->num_slots;
    rows = (int64_t)out->num_layers * out->num_experts;
    for (i = 0; i < cells; i++)
        if (phy2log[i] < -1 || phy2log[i] >= out->num_experts)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "phy2log", "is not an expert", i, phy2log[i]);
    for (row = 0; (log2phy || logcnt) && row < rows; row++) {
        status = moe_epi_from_eplb_check(phy2log, log2phy, X, logcnt, out, row, err);
        if (status != MOE_EP_OK) return status;
    }
    memcpy(out->slot_expert, phy2log, (size_t)cells * sizeof *phy2log);
    for (l = 0; l < out->num_layers; l++) moe_epi_index_layer(out, l);
    for (row = 0; log2phy && row < rows; row++) { /* their replica order instead of ascending slots */
        int64_t layer = row / out->num_experts;
        int32_t *to = out->replica_slot + layer * out->num_slots +
                      out->replica_start[layer * (out->num_experts + 1) + row % out->num_experts];
        for (r = 0; r < X; r++)
            if (log2phy[row * X + r] >= 0) *to++ = log2phy[row * X + r];
    }
    return MOE_EP_OK;
}
/* ---- best placement: one layer as a state that swaps and moves change --------------------------------------- */

/* Cells are the slots of a layer, each device's filled cells first and sorted by load per copy, heaviest first;
 * copies of one weight stand in no particular order. */
typedef struct moe_epi_state {
    const int32_t *slot_start; /* (D+1)                                             */
    const double *speed;       /* (D) or NULL = all 1                               */
    const int32_t *pin;        /* (E) device an expert must stay on, -1; or NULL    */
    const double *w;           /* (E) loads                                         */
    int32_t E, D;
    int64_t words;             /* of a row of holds                                 */
    double *unit;              /* (E) load per copy                                 */
    int32_t *count;            /* (E) copies                                        */
    double *load;              /* (D)                                               */
    int32_t *fill, *cap;       /* (D) cells in use, cells allowed                   */
    int32_t *cell;             /* (P) expert                                        */
    double *cell_unit;         /* (P) its load per copy                             */
    uint64_t *holds;           /* (E, words) one bit per device that holds expert e */
    int32_t *order;            /* (D) devices with room for anything, busiest first */
    int32_t num_order;
    int32_t max_count;         /* copies of one expert                              */
} moe_epi_state;

static void moe_epi_state_need(size_t *total, int32_t E, int32_t P, int32_t D)
{
    int64_t words = ((int64_t)D + 63) / 64, bits = 0;
    if (!moe_epi_mul(words, E, &bits)) { *total = SIZE_MAX; return; }
    moe_epi_need(total, E, sizeof(double));
    moe_epi_need(total, P, sizeof(double));
    moe_epi_need(total, P, sizeof(int32_t));
    moe_epi_need(total, bits, sizeof(uint64_t));
    moe_epi_need(total, D, sizeof(int32_t));
}

/* An expert of the busiest device that might get another copy. */
typedef struct moe_epi_gain {
    int32_t e;
    double unit; /* load per copy with one copy more          */
    double gain; /* fall of the penalty over its present hosts */
} moe_epi_gain;

/* All that best_placement takes for itself. */
static void moe_epi_best_need(size_t *total, int32_t E, int32_t P, int32_t D)
{
    moe_epi_deal_need(total, E, D);
    moe_epi_state_need(total, E, P, D);
    moe_epi_need(total, D, sizeof(int32_t));
    moe_epi_need(total, P, sizeof(moe_epi_gain));
    moe_epi_need(total, P, sizeof(int32_t));
    moe_epi_need(total, D, sizeof(int32_t));
    moe_epi_need(total, E, sizeof(int32_t));
}

/* Takes its own arrays; count, load, fill and cap are those of the dealer. */
static void moe_epi_state_take(moe_epi_arena *a, moe_epi_state *s, const moe_ep_placement *p, moe_epi_deal *deal)
{
    memset(s, 0, sizeof *s);
    s->slot_start = p->slot_start;
    s->E = p->num_experts;
    s->D = p->num_devices;
    s->words = ((int64_t)s->D + 63) / 64;
    s->unit = (double *)moe_epi_take(a, s->E, sizeof(double));
    s->cell_unit = (double *)moe_epi_take(a, p->num_slots, sizeof(double));
    s->cell = (int32_t *)moe_epi_take(a, p->num_slots, sizeof(int32_t));
    s->holds = (uint64_t *)moe_epi_take(a, s->words * s->E, sizeof(uint64_t));
    s->order = (int32_t *)moe_epi_take(a, s->D, sizeof(int32_t));
    s->count = deal->counts;
    s->load = deal->load;
    s->fill = deal->fill;
    s->cap = deal->cap;
}

static void moe_epi_state_speeds(moe_epi_state *s, const moe_ep_placement *p)
{
    int32_t d;
    s->speed = NULL;
    for (d = 0; d < s->D; d++)
        if (p->device_speed[d] < 1.0 || p->device_speed[d] > 1.0) s->speed = p->device_speed;
}

static int moe_epi_holds(const moe_epi_state *s, int32_t d, int32_t e)
{
    return (int)(s->holds[e * s->words + (d >> 6)] >> (d & 63) & 1u);
}

static void moe_epi_flip(moe_epi_state *s, int32_t d, int32_t e)
{
    s->holds[e * s->words + (d >> 6)] ^= (uint64_t)1 << (d & 63);
}

/* Number of the lowest bit of a word that is not 0. */
static int32_t moe_epi_low_bit(uint64_t word)
{
#if defined(__GNUC__)
    return (int32_t)__builtin_ctzll(word);
#else
    int32_t n = 0;
    for (; !(word & 1u); word >>= 1) n++;
    return n;
#endif
}

/* Devices that hold e, ascending, into list; returns how many. */
static int32_t moe_epi_hosts(const moe_epi_state *s, int32_t e, int32_t *list)
{
    int64_t k;
    int32_t n = 0;
    for (k = 0; k < s->words; k++) {
        uint64_t word = s->holds[e * s->words + k];
        for (; word; word &= word - 1u) list[n++] = (int32_t)(64 * k) + moe_epi_low_bit(word);
    }
    return n;
}

static double moe_epi_time(const moe_epi_state *s, int32_t d)
{
    return s->speed ? s->load[d] / s->speed[d] : s->load[d];
}

/* Puts expert e into the sorted cells of d. */
static void moe_epi_insert(moe_epi_state *s, int32_t d, int32_t e)
{
    int32_t i = s->slot_start[d] + s->fill[d]++, first = s->slot_start[d];
    double unit = s->unit[e];
    for (; i > first && s->cell_unit[i - 1] < unit; i--) {
        s->cell[i] = s->cell[i - 1];
        s->cell_unit[i] = s->cell_unit[i - 1];
    }
    s->cell[i] = e;
    s->cell_unit[i] = unit;
    s->load[d] += unit;
    moe_epi_flip(s, d, e);
}

static void moe_epi_remove(moe_epi_state *s, int32_t d, int32_t at)
{
    int32_t i = at, last = s->slot_start[d] + --s->fill[d];
    s->load[d] -= s->cell_unit[at];
    moe_epi_flip(s, d, s->cell[at]);
    for (; i < last; i++) {
        s->cell[i] = s->cell[i + 1];
        s->cell_unit[i] = s->cell_unit[i + 1];
    }
}

/* Sums a device's cells again, so that rounding does not pile up over many swaps. */
static void moe_epi_resum(moe_epi_state *s, int32_t d)
{
    int32_t i;
    double sum = 0.0;
    for (i = s->slot_start[d]; i < s->slot_start[d] + s->fill[d]; i++) sum += s->cell_unit[i];
    s->load[d] = sum;
}

static void moe_epi_emit_state(void *user, const moe_epi_item *item, int32_t d)
{
    moe_epi_state *s = (moe_epi_state *)user;
    int32_t at = s->slot_start[d] + s->fill[d]; /* dealt heaviest first: already sorted */
    s->cell[at] = item->id;
    s->cell_unit[at] = item->key;
    moe_epi_flip(s, d, item->id);
}

/* Moves device d to its place in the order after its load changed. */
static void moe_epi_reorder(moe_epi_state *s, int32_t at)
{
    int32_t d = s->order[at];
    double time = moe_epi_time(s, d);
    for (; at > 0 && moe_epi_time(s, s->order[at - 1]) < time; at--) s->order[at] = s->order[at - 1];
    for (; at + 1 < s->num_order && moe_epi_time(s, s->order[at + 1]) > time; at++) s->order[at] = s->order[at + 1];
    s->order[at] = d;
}

/* The order after a few loads changed: insertion, nearly linear. */
static void moe_epi_reorder_all(moe_epi_state *s)
{
    int32_t i, j;
    for (i = 1; i < s->num_order; i++) {
        int32_t d = s->order[i];
        double time = moe_epi_time(s, d);
        for (j = i; j > 0 && moe_epi_time(s, s->order[j - 1]) < time; j--) s->order[j] = s->order[j - 1];
        s->order[j] = d;
    }
}

static void moe_epi_order(moe_epi_state *s, moe_epi_item *items, moe_epi_item *spare)
{
    int32_t d, n = 0;
    for (d = 0; d < s->D; d++) {
        if (s->cap[d] == 0) continue;
        items[n].key = moe_epi_time(s, d);
        items[n].id = d;
        n++;
    }
    moe_epi_sort(items, spare, n);
    for (d = 0; d < n; d++) s->order[d] = items[d].id;
    s->num_order = n;
}

/* A swap of cell a (on the busiest device) with cell b elsewhere, b < 0: a goes into a free cell of device g. */
typedef struct moe_epi_swap {
    double value; /* the busier of the two afterwards */
    int32_t a, b, g, at; /* at: g's place in the order */
} moe_epi_swap;

static void moe_epi_swap_try(const moe_epi_state *s, int32_t m, int32_t g, int32_t a, int32_t b, double delta,
                             moe_epi_swap *best)
{
    double here = s->load[m] - delta, there = s->load[g] + delta;
    if (!(delta > 0.0)) return;
    if (s->speed) { here /= s->speed[m]; there /= s->speed[g]; }
    if (there > here) here = there;
    if (!(here < best->value)) return;
    best->value = here;
    best->a = a;
    best->b = b;
    best->g = g;
}

/* Best exchange between the busiest device m and g.  Both cell lists are sorted, so that the partner nearest to the
 * ideal difference moves down as a does. */
static void moe_epi_swap_search(const moe_epi_state *s, int32_t m, int32_t g, moe_epi_swap *best)
{
    int32_t a, b, i, a_end = s->slot_start[m] + s->fill[m], b_first = s->slot_start[g], b_end = b_first + s->fill[g];
    int free_cell = s->fill[g] < s->cap[g];
    double ideal = 0.5 * (s->load[m] - s->load[g]);
    if (s->speed)
        ideal = (s->load[m] * s->speed[g] - s->load[g] * s->speed[m]) / (s->speed[m] + s->speed[g]);
    b = b_first;
    for (a = s->slot_start[m]; a < a_end; a++) {
        double want = s->cell_unit[a] - ideal;
        int32_t e = s->cell[a];
        while (b < b_end && s->cell_unit[b] >= want) b++;
        if (moe_epi_holds(s, g, e) || (s->pin && s->pin[e] == m)) continue;
        for (i = b - 1; i >= b_first; i--) { /* smaller differences */
            if (moe_epi_holds(s, m, s->cell[i]) || (s->pin && s->pin[s->cell[i]] == g)) continue;
            moe_epi_swap_try(s, m, g, a, i, s->cell_unit[a] - s->cell_unit[i], best);
            break;
        }
        for (i = b; i < b_end; i++) { /* larger differences */
            if (moe_epi_holds(s, m, s->cell[i]) || (s->pin && s->pin[s->cell[i]] == g)) continue;
            moe_epi_swap_try(s, m, g, a, i, s->cell_unit[a] - s->cell_unit[i], best);
            break;
        }
        if (free_cell) moe_epi_swap_try(s, m, g, a, -1, s->cell_unit[a], best);
    }
}

static void moe_epi_swap_apply(moe_epi_state *s, int32_t m, const moe_epi_swap *x)
{
    int32_t a = s->cell[x->a], b = x->b < 0 ? -1 : s->cell[x->b];
    moe_epi_remove(s, m, x->a);
    if (b >= 0) moe_epi_remove(s, x->g, x->b);
    moe_epi_insert(s, x->g, a);
    if (b >= 0) moe_epi_insert(s, m, b);
    moe_epi_resum(s, m);
    moe_epi_resum(s, x->g);
}

#define MOE_EPI_PARTNERS 6 /* lightest devices looked at before the best swap found so far is taken */

/* Swaps from the busiest device until it is at or below goal or nothing lowers it.  Returns the swaps made. */
static int32_t moe_epi_refine(moe_epi_state *s, double goal, int32_t limit)
{
    int32_t done = 0;
    while (done < limit && s->num_order > 1) {
        moe_epi_swap best;
        int32_t m = s->order[0], k, seen = 0;
        double now = moe_epi_time(s, m), good;
        if (now <= goal) break;
        good = goal + 0.1 * (now - goal);
        memset(&best, 0, sizeof best);
        best.value = now * (1.0 - 1e-12);
        best.g = -1;
        for (k = s->num_order - 1; k > 0; k--) {
            int32_t g = s->order[k];
            double before = best.value;
            if (!(moe_epi_time(s, g) < now)) break;
            moe_epi_swap_search(s, m, g, &best);
            if (best.value < before) best.at = k;
            if (best.value <= good || (++seen >= MOE_EPI_PARTNERS && best.g >= 0)) break;
        }
        if (best.g < 0) break;
        moe_epi_swap_apply(s, m, &best);
        moe_epi_reorder(s, best.at);
        for (k = 0; s->order[k] != m; k++) {} /* at most one place further down */
        moe_epi_reorder(s, k);
        done++;
    }
    return done;
}
#undef MOE_EPI_PARTNERS

/* Sorts the cells of all devices and adds up loads from the current units. */
static void moe_epi_state_resort(moe_epi_state *s)
{
    int32_t d, i, j;
    for (d = 0; d < s->D; d++) {
        int32_t first = s->slot_start[d], end = first + s->fill[d];
        for (i = first; i < end; i++) {
            int32_t e = s->cell[i];
            double unit = s->unit[e];
            for (j = i; j > first && s->cell_unit[j - 1] < unit; j--) {
                s->cell[j] = s->cell[j - 1];
                s->cell_unit[j] = s->cell_unit[j - 1];
            }
            s->cell[j] = e;
            s->cell_unit[j] = unit;
        }
        moe_epi_resum(s, d);
    }
}

/* Counts copies again after the dealer left some out. */
static void moe_epi_state_recount(moe_epi_state *s)
{
    int32_t d, e, i;
    for (e = 0; e < s->E; e++) s->count[e] = 0;
    for (d = 0; d < s->D; d++)
        for (i = s->slot_start[d]; i < s->slot_start[d] + s->fill[d]; i++) s->count[s->cell[i]]++;
    for (e = 0; e < s->E; e++) s->unit[e] = s->w[e] / s->count[e];
}

/* Deals the counted copies onto empty devices, pinned ones first. */
static void moe_epi_state_deal(moe_epi_state *s, moe_epi_deal *deal)
{
    int32_t e, d, left_out;
    memset(s->holds, 0, (size_t)(s->words * s->E) * sizeof *s->holds);
    for (d = 0; d < s->D; d++) {
        s->load[d] = 0.0;
        s->fill[d] = 0;
    }
    for (e = 0; e < s->E; e++) s->unit[e] = s->w[e] / s->count[e];
    for (e = 0; s->pin && e < s->E; e++)
        if (s->pin[e] >= 0) moe_epi_insert(s, s->pin[e], e);
    moe_epi_deal_order(deal, s->w, s->E);
    for (e = 0; s->pin && e < s->E; e++)
        if (s->pin[deal->items[e].id] >= 0) deal->items[e].aux--;
    left_out = moe_epi_deal_run(deal, s->E, s->D, s->speed, s->pin, moe_epi_emit_state, s);
    if (left_out > 0) moe_epi_state_recount(s);
    if (left_out > 0 || s->pin) moe_epi_state_resort(s);
}

static void moe_epi_state_write(const moe_epi_state *s, moe_ep_placement *p, int32_t l)
{
    int32_t d, i, *expert = p->slot_expert + (int64_t)l * p->num_slots;
    for (i = 0; i < p->num_slots; i++) expert[i] = -1;
    for (d = 0; d < s->D; d++)
        for (i = s->slot_start[d]; i < s->slot_start[d] + s->fill[d]; i++) expert[i] = s->cell[i];
    moe_epi_index_layer(p, l);
}

#define MOE_EPI_EVENNESS 0.02    /* weight of evenness below the level against what is above it */
#define MOE_EPI_SWAP_PARTNERS 8  /* lightest devices with which swaps are tried                   */

/* ---- changes of copies: what rebalance, node_soft and the search of best_placement share ----- */

/* What a change costs, what it may cost, and what it has cost so far in this layer. */
typedef struct moe_epi_budget {
    const moe_ep_rebalance_desc *desc; /* limits; zeroed = none                                */
    const moe_ep_placement *from;
    const uint64_t *held;   /* (E, words) who held what at the start of the layer; NULL = a fresh plan */
    int64_t *arrivals;      /* (D) over all layers; NULL in a fresh plan                       */
    int32_t *links;         /* (D,D) over all layers, NULL = no limit                          */
    const int32_t *home;    /* (E) home nodes, NULL = nodes do not matter                      */
    const int32_t *node;    /* (D)                                                             */
    double off, max_off;    /* load off its home node, and the most that is allowed            */
    int32_t *hosts;         /* (D) list                                                        */
    moe_epi_gain *gains;    /* (P) list                                                        */
    int32_t layer, moves;   /* of this layer                                                   */
    int32_t max_moves;      /* of a layer, 0 = no limit                                        */
    double level;           /* load / speed above which a device is too busy                   */
} moe_epi_budget;

static int moe_epi_was_held(const moe_epi_state *s, const moe_epi_budget *b, int32_t d, int32_t e)
{
    if (!b->held) return 1;
    return (int)(b->held[e * s->words + (d >> 6)] >> (d & 63) & 1u);
}

/* The device that sends expert e to `to`: an active holder in p, on the same node when there is one, spread by the
 * numbers so that every caller picks the same.  Writes the slot; -1 = nobody has it. */
static int32_t moe_epi_source(const moe_ep_placement *p, int32_t l, int32_t e, int32_t to, int32_t *from_slot)
{
    const int32_t *start = p->replica_start + (int64_t)l * (p->num_experts + 1);
    const int32_t *slot = p->replica_slot + (int64_t)l * p->num_slots;
    int32_t i, near_by = 0, all = 0, turn;
    *from_slot = -1;
    for (i = start[e]; i < start[e + 1]; i++) {
        int32_t d = p->slot_device[slot[i]];
        if (p->device_inactive[d]) continue;
        all++;
        near_by += p->device_node[d] == p->device_node[to];
    }
    if (all == 0) return -1;
    turn = (int32_t)(((int64_t)to + e) % (near_by > 0 ? near_by : all));
    for (i = start[e]; i < start[e + 1]; i++) {
        int32_t d = p->slot_device[slot[i]];
        if (p->device_inactive[d] || (near_by > 0 && p->device_node[d] != p->device_node[to])) continue;
        if (turn-- > 0) continue;
        *from_slot = slot[i];
        return d;
    }
    return -1;
}

/* Moves that e arriving on d costs (0 when it was there before); -1 = over a limit. */
static int32_t moe_epi_arrival_cost(const moe_epi_state *s, const moe_epi_budget *b, int32_t d, int32_t e)
{
    int32_t slot, source;
    if (moe_epi_was_held(s, b, d, e)) return 0;
    if (b->desc->max_device_moves > 0 && b->arrivals[d] >= b->desc->max_device_moves) return -1;
    if (b->links) {
        source = moe_epi_source(b->from, b->layer, e, d, &slot);
        if (source >= 0 && b->links[(int64_t)source * s->D + d] >= b->desc->max_link_moves) return -1;
    }
    return 1;
}

/* Load of e off its home node with `change` copies more, of which off_change are off. */
static double moe_epi_off_load(const moe_epi_state *s, const moe_epi_budget *b, int32_t e, int32_t change,
                               int32_t off_change)
{
    int32_t d, off = off_change, n;
    if (!b->home) return 0.0;
    n = moe_epi_hosts(s, e, b->hosts);
    for (d = 0; d < n; d++) off += b->node[b->hosts[d]] != b->home[e];
    return s->count[e] + change > 0 ? s->w[e] * off / (s->count[e] + change) : 0.0;
}

static int32_t moe_epi_is_off(const moe_epi_budget *b, int32_t d, int32_t e)
{
    return b->home && b->node[d] != b->home[e];
}

/* Books e arriving on (sign 1) or leaving (sign -1) device d. */
static void moe_epi_book(const moe_epi_state *s, moe_epi_budget *b, int32_t d, int32_t e, int32_t sign)
{
    int32_t slot, source;
    if (moe_epi_was_held(s, b, d, e)) return;
    b->moves += sign;
    b->arrivals[d] += sign;
    if (!b->links) return;
    source = moe_epi_source(b->from, b->layer, e, d, &slot);
    if (source >= 0) b->links[(int64_t)source * s->D + d] += sign;
}

/* A change around the busiest device. */
typedef enum moe_epi_change_kind {
    MOE_EPI_SWAP,  /* cell a of the busiest device with cell b of another; b < 0: into a free cell */
    MOE_EPI_COPY,  /* a copy of expert a over cell b of a replicated expert; b < 0: into a free cell */
    MOE_EPI_DROP   /* a replicated expert leaves the busiest device                                */
} moe_epi_change_kind;

typedef struct moe_epi_change {
    moe_epi_change_kind kind;
    int32_t a, b, g;
    double gain; /* decrease of the penalty per cost     */
    double off;  /* change of the load off its home node */
} moe_epi_change;

/* Penalty of a device: squares above the level, and a little for any unevenness. */
static double moe_epi_penalty(const moe_epi_budget *b, double time)
{
    double over = time - b->level;
    return (over > 0.0 ? over * over : 0.0) + MOE_EPI_EVENNESS * time * time;
}

static double moe_epi_time_with(const moe_epi_state *s, int32_t d, double more)
{
    return s->speed ? (s->load[d] + more) / s->speed[d] : s->load[d] + more;
}

static void moe_epi_change_offer(const moe_epi_state *s, const moe_epi_budget *b, moe_epi_change *best,
                                 const moe_epi_change *offer, int32_t moves)
{
    double cost = moves > 0 ? moves : 0.5, gain; /* a change without a transfer is welcome, not free */
    if (!(offer->gain > 0.0)) return;
    if (b->max_moves > 0 && moves > 0 && b->moves + moves > b->max_moves) return;
    if (b->home) {
        if (offer->off > 0.0 && b->off + offer->off > b->max_off) return;
        cost = 0.05 + (offer->off > 0.0 ? offer->off / (b->level + 1e-300) : 0.0) ;
    }
    (void)s;
    gain = offer->gain / cost;
    if (!(gain > best->gain)) return;
    *best = *offer;
    best->gain = gain;
}

/* Swaps of the busiest device m with the lightest others. */
static void moe_epi_offer_swaps(const moe_epi_state *s, moe_epi_budget *b, int32_t m, double limit,
                                moe_epi_change *best)
{
    int32_t k, seen = 0;
    for (k = s->num_order - 1; k > 0 && seen < MOE_EPI_SWAP_PARTNERS; k--) {
        moe_epi_swap swap;
        moe_epi_change c;
        int32_t g = s->order[k], moves, back = 0, e, x = -1;
        double delta;
        memset(&swap, 0, sizeof swap);
        swap.value = limit;
        swap.g = -1;
        moe_epi_swap_search(s, m, g, &swap);
        if (swap.g < 0) continue;
        memset(&c, 0, sizeof c);
        c.kind = MOE_EPI_SWAP;
        c.a = swap.a;
        c.b = swap.b;
        c.g = g;
        e = s->cell[swap.a];
        delta = s->unit[e];
        moves = moe_epi_arrival_cost(s, b, g, e);
        if (swap.b >= 0) {
            x = s->cell[swap.b];
            delta -= s->unit[x];
            back = moe_epi_arrival_cost(s, b, m, x);
        }
        if (moves < 0 || back < 0) continue;
        seen++;
        moves += back - !moe_epi_was_held(s, b, m, e);
        if (x >= 0) moves -= !moe_epi_was_held(s, b, g, x);
        if (b->home) {
            c.off = s->unit[e] * (moe_epi_is_off(b, g, e) - moe_epi_is_off(b, m, e));
            if (x >= 0) c.off += s->unit[x] * (moe_epi_is_off(b, m, x) - moe_epi_is_off(b, g, x));
        }
        c.gain = moe_epi_penalty(b, moe_epi_time(s, m)) - moe_epi_penalty(b, moe_epi_time_with(s, m, -delta)) +
                 moe_epi_penalty(b, moe_epi_time(s, g)) - moe_epi_penalty(b, moe_epi_time_with(s, g, delta));
        moe_epi_change_offer(s, b, best, &c, moves);
    }
}

/* Rise of the penalty when x leaves device g and its other hosts take over; negative = one of them
 * would reach limit. */
static double moe_epi_leave_price(const moe_epi_state *s, const moe_epi_budget *b, int32_t x, int32_t g, double limit)
{
    int32_t i, n = moe_epi_hosts(s, x, b->hosts);
    double more = s->w[x] / (s->count[x] - 1) - s->unit[x], price = 0.0;
    for (i = 0; i < n; i++) {
        int32_t d = b->hosts[i];
        double after = moe_epi_time_with(s, d, more);
        if (d == g) continue;
        if (!(after < limit)) return -1.0;
        price += moe_epi_penalty(b, after) - moe_epi_penalty(b, moe_epi_time(s, d));
    }
    return price;
}

/* What one more copy of each expert of m would take off its hosts. */
static int32_t moe_epi_copy_gains(const moe_epi_state *s, moe_epi_budget *b, int32_t m)
{
    int32_t a, i, n = 0, hosts;
    for (a = s->slot_start[m]; a < s->slot_start[m] + s->fill[m]; a++) {
        moe_epi_gain *y = &b->gains[n];
        y->e = s->cell[a];
        if (s->count[y->e] >= s->max_count || !(s->unit[y->e] > 0.0)) continue;
        y->unit = s->w[y->e] / (s->count[y->e] + 1);
        y->gain = 0.0;
        hosts = moe_epi_hosts(s, y->e, b->hosts);
        for (i = 0; i < hosts; i++) {
            int32_t d = b->hosts[i];
            y->gain += moe_epi_penalty(b, moe_epi_time(s, d)) -
                       moe_epi_penalty(b, moe_epi_time_with(s, d, y->unit - s->unit[y->e]));
        }
        n++;
    }
    return n;
}

/* Copies of the experts in b->gains onto cell `cell` of g (an expert with other copies), or a free one.  Gains add up
 * as if no device held both experts, which then is a little better than said. */
static void moe_epi_offer_cell(const moe_epi_state *s, moe_epi_budget *b, int32_t n, int32_t g, int32_t cell,
                               double limit, moe_epi_change *best)
{
    int32_t i, x = cell < 0 ? -1 : s->cell[cell], refund = 0;
    double base = moe_epi_penalty(b, moe_epi_time(s, g)), freed = 0.0, off = 0.0;
    if (x >= 0) {
        double price = moe_epi_leave_price(s, b, x, g, limit);
        if (price < 0.0) return;
        base -= price;
        freed = s->unit[x];
        refund = !moe_epi_was_held(s, b, g, x);
        if (b->home) off = moe_epi_off_load(s, b, x, -1, -moe_epi_is_off(b, g, x)) - moe_epi_off_load(s, b, x, 0, 0);
    }
    for (i = 0; i < n; i++) {
        const moe_epi_gain *y = &b->gains[i];
        moe_epi_change c;
        double after = moe_epi_time_with(s, g, y->unit - freed);
        int32_t moves;
        if (!(after < limit) || moe_epi_holds(s, g, y->e)) continue;
        c.gain = y->gain + base - moe_epi_penalty(b, after);
        if (!(c.gain > best->gain * 0.05) || (moves = moe_epi_arrival_cost(s, b, g, y->e)) < 0) continue;
        c.kind = MOE_EPI_COPY;
        c.a = y->e;
        c.b = cell;
        c.g = g;
        c.off = off;
        if (b->home)
            c.off += moe_epi_off_load(s, b, y->e, 1, moe_epi_is_off(b, g, y->e)) - moe_epi_off_load(s, b, y->e, 0, 0);
        moe_epi_change_offer(s, b, best, &c, moves - refund);
    }
}

static void moe_epi_offer_copies(const moe_epi_state *s, moe_epi_budget *b, int32_t m, double limit,
                                 moe_epi_change *best)
{
    int32_t k, i, n = moe_epi_copy_gains(s, b, m);
    for (k = s->num_order - 1; n > 0 && k > 0; k--) {
        int32_t g = s->order[k], first = s->slot_start[g];
        if (s->fill[g] < s->cap[g]) moe_epi_offer_cell(s, b, n, g, -1, limit, best);
        for (i = first; i < first + s->fill[g]; i++) {
            int32_t x = s->cell[i];
            if (s->count[x] < 2 || moe_epi_holds(s, m, x) || (s->pin && s->pin[x] == g)) continue;
            moe_epi_offer_cell(s, b, n, g, i, limit, best);
        }
    }
}

static void moe_epi_offer_drops(const moe_epi_state *s, moe_epi_budget *b, int32_t m, double limit,
                                moe_epi_change *best)
{
    int32_t a;
    for (a = s->slot_start[m]; a < s->slot_start[m] + s->fill[m]; a++) {
        moe_epi_change c;
        int32_t e = s->cell[a];
        double price;
        if (s->count[e] < 2 || (s->pin && s->pin[e] == m)) continue;
        price = moe_epi_leave_price(s, b, e, m, limit);
        if (price < 0.0) continue;
        memset(&c, 0, sizeof c);
        c.kind = MOE_EPI_DROP;
        c.a = a;
        c.g = m;
        c.gain =
            moe_epi_penalty(b, moe_epi_time(s, m)) - moe_epi_penalty(b, moe_epi_time_with(s, m, -s->unit[e])) - price;
        if (b->home)
            c.off = moe_epi_off_load(s, b, e, -1, -moe_epi_is_off(b, m, e)) - moe_epi_off_load(s, b, e, 0, 0);
        moe_epi_change_offer(s, b, best, &c, -!moe_epi_was_held(s, b, m, e));
    }
}

/* Gives e another number of copies: every holder's cell and load follow. */
static void moe_epi_set_count(moe_epi_state *s, int32_t e, int32_t count, int32_t *hosts)
{
    int32_t k, n = moe_epi_hosts(s, e, hosts);
    s->count[e] = count;
    s->unit[e] = s->w[e] / (count > 0 ? count : 1);
    for (k = 0; k < n; k++) {
        int32_t d = hosts[k], i = s->slot_start[d];
        while (s->cell[i] != e) i++;
        moe_epi_remove(s, d, i);
        moe_epi_insert(s, d, e);
        moe_epi_resum(s, d);
    }
}

static void moe_epi_change_apply(moe_epi_state *s, moe_epi_budget *b, int32_t m, const moe_epi_change *c)
{
    b->off += c->off;
    if (c->kind == MOE_EPI_SWAP) {
        moe_epi_swap swap;
        memset(&swap, 0, sizeof swap);
        swap.a = c->a;
        swap.b = c->b;
        swap.g = c->g;
        moe_epi_book(s, b, m, s->cell[c->a], -1);
        moe_epi_book(s, b, c->g, s->cell[c->a], 1);
        if (c->b >= 0) {
            moe_epi_book(s, b, c->g, s->cell[c->b], -1);
            moe_epi_book(s, b, m, s->cell[c->b], 1);
        }
        moe_epi_swap_apply(s, m, &swap);
    } else if (c->kind == MOE_EPI_COPY) {
        if (c->b >= 0) {
            int32_t x = s->cell[c->b];
            moe_epi_book(s, b, c->g, x, -1);
            moe_epi_remove(s, c->g, c->b);
            moe_epi_set_count(s, x, s->count[x] - 1, b->hosts);
        }
        moe_epi_book(s, b, c->g, c->a, 1);
        moe_epi_insert(s, c->g, c->a);
        moe_epi_set_count(s, c->a, s->count[c->a] + 1, b->hosts);
    } else {
        int32_t e = s->cell[c->a];
        moe_epi_book(s, b, m, e, -1);
        moe_epi_remove(s, m, c->a);
        moe_epi_set_count(s, e, s->count[e] - 1, b->hosts);
    }
}

/* ---- rebalance: few moves from a placement that exists
 * ------------------------------------------------------------- */

/* The current layer as a state: duplicates and copies on inactive devices are let go. */
static void moe_epi_state_load(moe_epi_state *s, const moe_ep_placement *p, int32_t l, uint64_t *held)
{
    const int32_t *expert = p->slot_expert + (int64_t)l * p->num_slots;
    int32_t d, e, i;
    memset(s->holds, 0, (size_t)(s->words * s->E) * sizeof *s->holds);
    for (e = 0; e < s->E; e++) s->count[e] = 0;
    for (d = 0; d < s->D; d++) {
        s->fill[d] = 0;
        s->load[d] = 0.0;
        s->cap[d] = p->device_inactive[d] ? 0 : p->slot_start[d + 1] - p->slot_start[d];
        for (i = p->slot_start[d]; s->cap[d] > 0 && i < p->slot_start[d + 1]; i++) {
            if (expert[i] < 0 || moe_epi_holds(s, d, expert[i])) continue;
            s->cell[s->slot_start[d] + s->fill[d]++] = expert[i];
            moe_epi_flip(s, d, expert[i]);
            s->count[expert[i]]++;
        }
    }
    memcpy(held, s->holds, (size_t)(s->words * s->E) * sizeof *held);
    for (e = 0; e < s->E; e++) s->unit[e] = s->w[e] / (s->count[e] > 0 ? s->count[e] : 1);
    moe_epi_state_resort(s);
}

/* Cell of the cheapest expert on d that has other copies; -1 = none. */
static int32_t moe_epi_spare_cell(const moe_epi_state *s, int32_t d)
{
    int32_t i;
    for (i = s->slot_start[d] + s->fill[d] - 1; i >= s->slot_start[d]; i--)
        if (s->count[s->cell[i]] > 1) return i;
    return -1;
}

/* Experts that lost their last copy come back, heaviest first onto the lightest device with a free or spare cell. */
static void moe_epi_state_revive(moe_epi_state *s, moe_epi_budget *b, moe_epi_deal *deal)
{
    int32_t e, n = 0, i, d, cell;
    for (e = 0; e < s->E; e++) {
        if (s->count[e] > 0) continue;
        deal->items[n].key = s->w[e];
        deal->items[n].id = e;
        n++;
    }
    moe_epi_sort(deal->items, deal->spare, n);
    for (i = 0; i < n; i++) {
        int32_t to = -1;
        e = deal->items[i].id;
        for (d = 0; d < s->D; d++) {
            if (s->fill[d] >= s->cap[d] && moe_epi_spare_cell(s, d) < 0) continue;
            if (to < 0 || moe_epi_time(s, d) < moe_epi_time(s, to)) to = d;
        }
        if (s->fill[to] >= s->cap[to]) {
            int32_t x;
            cell = moe_epi_spare_cell(s, to);
            x = s->cell[cell];
            moe_epi_remove(s, to, cell);
            moe_epi_set_count(s, x, s->count[x] - 1, b->hosts);
        }
        s->count[e] = 1;
        moe_epi_insert(s, to, e);
        moe_epi_book(s, b, to, e, 1);
    }
}

/* Changes around the busiest device while it is above level and the best of them helps; at most `most`. */
static int32_t moe_epi_change_run(moe_epi_state *s, moe_epi_budget *b, double level, int32_t most)
{
    int32_t done = 0;
    b->level = level;
    while (done < most && s->num_order > 0) {
        moe_epi_change best;
        int32_t m = s->order[0];
        double limit = moe_epi_time(s, m) * (1.0 - 1e-9);
        if (!(limit > b->level)) break;
        memset(&best, 0, sizeof best);
        moe_epi_offer_copies(s, b, m, limit, &best);
        moe_epi_offer_swaps(s, b, m, limit, &best);
        moe_epi_offer_drops(s, b, m, limit, &best);
        if (!(best.gain > 0.0)) break;
        moe_epi_change_apply(s, b, m, &best);
        moe_epi_reorder_all(s);
        done++;
    }
    return done;
}

/* One layer down to target (max/mean) or as far as the limits allow.  Returns the changes made. */
static int32_t moe_epi_rebalance_layer(moe_epi_state *s, moe_epi_budget *b, moe_epi_deal *deal, double mean,
                                       double target)
{
    moe_epi_state_revive(s, b, deal);
    moe_epi_order(s, deal->heap, deal->held);
    return moe_epi_change_run(s, b, mean * target, 4 * s->slot_start[s->D] + 16);
}

/* Kept experts stay in their slots; newcomers fill the free ones in order. */
static void moe_epi_keep_slots(const moe_epi_state *s, const int32_t *before, int32_t *after)
{
    int32_t d, i, j;
    for (d = 0; d < s->D; d++) {
        int32_t first = s->slot_start[d], end = s->slot_start[d + 1], next = first;
        int32_t used = first + s->fill[d];
        for (i = first; i < end; i++) {
            int keep = 0;
            for (j = first; before[i] >= 0 && j < used && !keep; j++) keep = s->cell[j] == before[i];
            for (j = first; keep && j < i; j++)
                if (after[j] == before[i]) keep = 0; /* a duplicate was let go */
            after[i] = keep ? before[i] : -1;
        }
        for (j = first; j < used; j++) {
            for (i = first; i < end && after[i] != s->cell[j]; i++) {}
            if (i < end) continue;
            while (after[next] >= 0) next++;
            after[next] = s->cell[j];
        }
    }
}

static moe_ep_status moe_epi_rebalance_check(const moe_ep_rebalance_desc *desc, const moe_ep_placement *out,
                                             moe_ep_error *err)
{
    const moe_ep_placement *p;
    moe_ep_status status;
    int32_t d, l, active = 0;
    if (!desc) return moe_epi_null(err, "desc");
    p = desc->current;
    if ((status = moe_epi_placement_check(p, "desc.current", err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_placement_check(out, "out", err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_same_sizes(p, out, "out", err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_validate_devices(p, err)) != MOE_EP_OK) return status;
    for (l = 0; l < p->num_layers; l++)
        if ((status = moe_epi_validate_maps(p, l, err)) != MOE_EP_OK) return status;
    if (!desc->loads) return moe_epi_null(err, "desc.loads");
    if ((status = moe_epi_loads_check(desc->loads, p->num_layers, p->num_experts, err)) != MOE_EP_OK) return status;
    for (d = 0; d < p->num_devices; d++)
        if (!p->device_inactive[d]) active += p->slot_start[d + 1] - p->slot_start[d];
    if (active < p->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "desc.current", "fewer active slots than experts", -1, active);
    if (!moe_epi_finite(desc->target) || desc->target < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.target", "must be finite and not negative", -1,
                            desc->target);
    if (desc->max_moves < 0 || desc->max_layer_moves < 0 || desc->max_device_moves < 0 || desc->max_link_moves < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.max_moves", "limits must not be negative", -1, 0.0);
    return MOE_EP_OK;
}

/* All layers for one target.  write: into out and result; else only counted.  Returns the moves. */
static int64_t moe_epi_rebalance_pass(moe_epi_state *s, moe_epi_budget *b, moe_epi_deal *deal, uint64_t *held,
                                      int32_t *after, double target, int write, moe_ep_placement *out,
                                      moe_ep_plan_result *result, const moe_epi_room *room)
{
    const moe_ep_placement *p = b->from;
    int32_t l, e, d;
    int64_t moves = 0;
    for (d = 0; d < s->D; d++) b->arrivals[d] = 0;
    if (b->links) memset(b->links, 0, sizeof(int32_t) * (size_t)s->D * (size_t)s->D);
    for (l = 0; l < p->num_layers; l++) {
        double mean = 0.0;
        int32_t changes;
        s->w = b->desc->loads + (int64_t)l * s->E;
        for (e = 0; e < s->E; e++) mean += s->w[e];
        mean /= room->speed_sum;
        b->layer = l;
        b->moves = 0;
        moe_epi_state_load(s, p, l, held);
        changes = moe_epi_rebalance_layer(s, b, deal, mean, target);
        moves += b->moves;
        if (!write) continue;
        moe_epi_keep_slots(s, p->slot_expert + (int64_t)l * p->num_slots, after);
        memcpy(out->slot_expert + (int64_t)l * p->num_slots, after, sizeof *after * (size_t)p->num_slots);
        if (!result) continue;
        result[l].refinements = changes;
        result[l].moves = b->moves;
    }
    return moves;
}

#define MOE_EPI_RELAX_STEPS 12 /* halvings of the target between 1 and as it is now */

/* The lowest target whose moves fit max_moves. */
static double moe_epi_relax(moe_epi_state *s, moe_epi_budget *b, moe_epi_deal *deal, uint64_t *held, int32_t *after,
                            double target, const moe_epi_room *room)
{
    double low = target, high = 2.0 * (double)room->devices;
    int i;
    if (b->desc->max_moves == 0 ||
        moe_epi_rebalance_pass(s, b, deal, held, after, target, 0, NULL, NULL, room) <= b->desc->max_moves)
        return target;
    for (i = 0; i < MOE_EPI_RELAX_STEPS; i++) {
        double middle = 1.0 + sqrt((low - 1.0 + 1e-4) * (high - 1.0 + 1e-4)) - 1e-4; /* imbalance spans decades */
        if (moe_epi_rebalance_pass(s, b, deal, held, after, middle, 0, NULL, NULL, room) <= b->desc->max_moves)
            high = middle;
        else low = middle;
    }
    return high;
}
#undef MOE_EPI_RELAX_STEPS

/* The result of a layer after the changes; keeps what was counted meanwhile. */
static void moe_epi_rebalance_result(const moe_ep_placement *out, int32_t l, const moe_ep_rebalance_desc *desc,
                                     int relaxed, const moe_epi_room *room, const moe_epi_bound_work *work,
                                     moe_ep_plan_result *r)
{
    double before = r->max_before;
    r->duplicates = r->max_replicas = 0;
    moe_epi_result(out, l, desc->loads + (int64_t)l * out->num_experts, room, INT32_MAX, work, r);
    r->max_before = before;
    r->policy = MOE_EP_PLACE_REBALANCE;
    r->reason = relaxed && desc->max_moves > 0
                    ? "few moves; the target was relaxed for all layers alike until max_moves sufficed"
                    : "few moves from the current placement";
}

MOE_EP_API moe_ep_status moe_ep_rebalance(const moe_ep_rebalance_desc *desc, moe_ep_placement *out,
                                          moe_ep_plan_result *result, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_epi_deal deal;
    moe_epi_state state;
    moe_epi_budget budget;
    moe_epi_bound_work work;
    moe_epi_room room;
    size_t total = 0;
    uint64_t *held;
    int32_t *after, l, E, P, D;
    const moe_ep_placement *p;
    double target;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_rebalance_check(desc, out, err)) != MOE_EP_OK) return status;
    p = desc->current;
    E = p->num_experts;
    P = p->num_slots;
    D = p->num_devices;
    moe_epi_deal_need(&total, E, D);
    moe_epi_state_need(&total, E, P, D);
    moe_epi_bound_need(&total, E, D, p->num_nodes);
    moe_epi_need(&total, ((int64_t)D + 63) / 64 * E, sizeof(uint64_t));
    moe_epi_need(&total, P, sizeof(int32_t));
    moe_epi_need(&total, D, sizeof(int64_t));
    moe_epi_need(&total, D, sizeof(int32_t));
    moe_epi_need(&total, P, sizeof(moe_epi_gain));
    moe_epi_need(&total, desc->max_link_moves > 0 ? (int64_t)D * D : 0, sizeof(int32_t));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    moe_epi_deal_take(&arena, &deal, E, D);
    moe_epi_state_take(&arena, &state, p, &deal);
    moe_epi_state_speeds(&state, p);
    moe_epi_bound_take(&arena, &work, E, D, p->num_nodes);
    held = (uint64_t *)moe_epi_take(&arena, ((int64_t)D + 63) / 64 * E, sizeof(uint64_t));
    after = (int32_t *)moe_epi_take(&arena, P, sizeof(int32_t));
    memset(&budget, 0, sizeof budget);
    budget.desc = desc;
    budget.max_moves = desc->max_layer_moves;
    state.max_count = D;
    budget.from = p;
    budget.held = held;
    budget.arrivals = (int64_t *)moe_epi_take(&arena, D, sizeof(int64_t));
    budget.hosts = (int32_t *)moe_epi_take(&arena, D, sizeof(int32_t));
    budget.gains = (moe_epi_gain *)moe_epi_take(&arena, P, sizeof(moe_epi_gain));
    if (desc->max_link_moves > 0) budget.links = (int32_t *)moe_epi_take(&arena, (int64_t)D * D, sizeof(int32_t));
    room = moe_epi_room_of(p);
    target = moe_epi_relax(&state, &budget, &deal, held, after, desc->target > 1.0 ? desc->target : 1.0, &room);
    for (l = 0; result && l < p->num_layers; l++) memset(&result[l], 0, sizeof result[l]);
    for (l = 0; result && l < p->num_layers; l++) { /* before out, which may be current, changes */
        moe_epi_result(p, l, desc->loads + (int64_t)l * E, &room, INT32_MAX, &work, &result[l]);
        result[l].max_before = result[l].max;
    }
    (void)moe_epi_rebalance_pass(&state, &budget, &deal, held, after, target, 1, out, result, &room);
    memmove(out->device_node, p->device_node, sizeof(int32_t) * (size_t)D);
    memmove(out->device_speed, p->device_speed, sizeof(double) * (size_t)D);
    memmove(out->device_inactive, p->device_inactive, (size_t)D);
    for (l = 0; l < p->num_layers; l++) {
        moe_epi_index_layer(out, l);
        if (result)
            moe_epi_rebalance_result(out, l, desc, target > desc->target && target > 1.0, &room, &work, &result[l]);
    }
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}
#undef MOE_EPI_EVENNESS
#undef MOE_EPI_SWAP_PARTNERS
/* ---- moves between two placements --------------------------------------------------------------------------- */

static moe_ep_status moe_epi_pair_check(const moe_ep_placement *from, const moe_ep_placement *to,
                                        const char *from_arg, const char *to_arg, moe_ep_error *err)
{
    const moe_ep_placement *both[2];
    int i;
    int32_t l;
    moe_ep_status status;
    both[0] = from;
    both[1] = to;
    if ((status = moe_epi_placement_check(from, from_arg, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_placement_check(to, to_arg, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_same_sizes(from, to, to_arg, err)) != MOE_EP_OK) return status;
    for (i = 0; i < 2; i++) {
        if ((status = moe_epi_validate_devices(both[i], err)) != MOE_EP_OK) return status;
        for (l = 0; l < from->num_layers; l++)
            if ((status = moe_epi_validate_maps(both[i], l, err)) != MOE_EP_OK) return status;
    }
    return MOE_EP_OK;
}

/* Is slot s of layer l in `to` filled by an expert that its device lacked in `from`?  Several copies on one device
 * need one transfer: the first such slot. */
static int moe_epi_is_arrival(const moe_ep_placement *from, const moe_ep_placement *to, int32_t l, int32_t s)
{
    const int32_t *old = from->slot_expert + (int64_t)l * from->num_slots;
    const int32_t *now = to->slot_expert + (int64_t)l * to->num_slots;
    int32_t d = to->slot_device[s], i, e = now[s];
    if (e < 0 || old[s] == e) return 0;
    for (i = from->slot_start[d]; i < from->slot_start[d + 1]; i++)
        if (old[i] == e || (i < s && now[i] == e)) return 0;
    return 1;
}


static moe_ep_move moe_epi_make_move(const moe_ep_placement *from, int32_t l, int32_t e, int32_t s, int32_t d)
{
    moe_ep_move m;
    m.layer = l;
    m.expert = e;
    m.to_slot = s;
    m.to_device = d;
    m.from_device = moe_epi_source(from, l, e, d, &m.from_slot);
    m.round = 0;
    return m;
}

/* Frees round a at the receiver of moves[first] by exchanging rounds a and b along the chain of moves that begins
 * there. Tables (D, rounds) name the move of a device in a round, -1 = none. */
static void moe_epi_exchange(moe_ep_move *moves, int64_t first, int32_t a, int32_t b, int32_t rounds, int64_t *sends,
                             int64_t *receives)
{
    int64_t chain = first, *near_by = receives + (int64_t)moves[first].to_device * rounds;
    int at_receiver = 1;
    near_by[b] = chain;
    near_by[a] = -1;
    while (chain >= 0) { /* chain goes from round a to b; its other end follows */
        moe_ep_move *m = &moves[chain];
        int64_t *far, next;
        int32_t swap;
        m->round = b;
        if (at_receiver && m->from_device < 0) break; /* loaded from the host: nobody sends */
        far = at_receiver ? sends + (int64_t)m->from_device * rounds : receives + (int64_t)m->to_device * rounds;
        next = far[b];
        far[b] = chain;
        far[a] = next;
        chain = next;
        swap = a;
        a = b;
        b = swap;
        at_receiver = !at_receiver;
    }
}

/* Rounds by edge colouring of a bipartite graph: never more than the largest number of transfers of a device
 * (Koenig 1916). */
static void moe_epi_colour(moe_ep_move *moves, int64_t n, int32_t D, int32_t rounds, int64_t *sends,
                           int64_t *receives)
{
    int64_t i, cells = (int64_t)D * rounds;
    for (i = 0; i < cells; i++) sends[i] = receives[i] = -1;
    for (i = 0; i < n; i++) {
        moe_ep_move *m = &moves[i];
        int64_t *from, *to = receives + (int64_t)m->to_device * rounds;
        int32_t a = 0, b = 0;
        while (to[b] >= 0) b++;
        if (m->from_device < 0) {
            m->round = b;
            to[b] = i;
            continue;
        }
        from = sends + (int64_t)m->from_device * rounds;
        while (from[a] >= 0) a++;
        if (to[a] >= 0) moe_epi_exchange(moves, to[a], a, b, rounds, sends, receives);
        m->round = a;
        from[a] = i;
        to[a] = i;
    }
}

/* First pass: counts, and the moves when there is room for them. */
static void moe_epi_collect_moves(const moe_ep_placement *from, const moe_ep_placement *to, moe_ep_move *moves,
                                  int64_t *in, int64_t *out, moe_ep_moves_result *r)
{
    int32_t l, s, D = from->num_devices, P = from->num_slots;
    memset(r, 0, sizeof *r);
    memset(in, 0, sizeof *in * (size_t)D);
    memset(out, 0, sizeof *out * (size_t)D);
    for (l = 0; l < from->num_layers; l++) {
        const int32_t *old = from->slot_expert + (int64_t)l * P, *now = to->slot_expert + (int64_t)l * P;
        for (s = 0; s < P; s++) {
            moe_ep_move m;
            r->unchanged += old[s] == now[s];
            if (now[s] < 0 || old[s] == now[s]) continue;
            if (!moe_epi_is_arrival(from, to, l, s)) {
                r->slot_changes++;
                continue;
            }
            m = moe_epi_make_move(from, l, now[s], s, to->slot_device[s]);
            if (moves) moves[r->moves] = m;
            r->moves++;
            in[m.to_device]++;
            if (in[m.to_device] > r->max_in) r->max_in = in[m.to_device];
            if (m.from_device < 0) {
                r->lost++;
                continue;
            }
            out[m.from_device]++;
            if (out[m.from_device] > r->max_out) r->max_out = out[m.from_device];
            r->cross_node += from->device_node[m.from_device] != from->device_node[m.to_device];
        }
    }
    r->rounds = r->max_in > r->max_out ? r->max_in : r->max_out;
}

MOE_EP_API moe_ep_status moe_ep_plan_moves(const moe_ep_placement *from, const moe_ep_placement *to,
                                           double expert_bytes, moe_ep_move *moves, int64_t capacity,
                                           moe_ep_moves_result *out, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_moves_result r;
    int64_t *in, *sent, cells = 0;
    size_t total = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_pair_check(from, to, "from", "to", err)) != MOE_EP_OK) return status;
    if (!moe_epi_finite(expert_bytes) || expert_bytes < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "expert_bytes", "must be finite and not negative", -1,
                            expert_bytes);
    if (capacity < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "capacity", "must not be negative", -1, (double)capacity);
    if (!moves && !out) return moe_epi_null(err, "out");
    moe_epi_need(&total, from->num_devices, sizeof(int64_t));
    moe_epi_need(&total, from->num_devices, sizeof(int64_t));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    in = (int64_t *)moe_epi_take(&arena, from->num_devices, sizeof(int64_t));
    sent = (int64_t *)moe_epi_take(&arena, from->num_devices, sizeof(int64_t));
    moe_epi_collect_moves(from, to, NULL, in, sent, &r);
    r.bytes = (double)r.moves * expert_bytes;
    if (moves) {
        if (capacity < r.moves)
            status = moe_epi_fail(err, MOE_EP_ERR_SIZE, "capacity", "moves needed", -1, (double)r.moves);
        else if (r.rounds > INT32_MAX || !moe_epi_mul(from->num_devices, r.rounds, &cells))
            status = moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "moves", "too many for a schedule", -1, (double)r.moves);
        else {
            moe_epi_need(&total, cells, sizeof(int64_t));
            moe_epi_need(&total, cells, sizeof(int64_t));
            moe_epi_arena_close(&arena);
            if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
            in = (int64_t *)moe_epi_take(&arena, from->num_devices, sizeof(int64_t));
            sent = (int64_t *)moe_epi_take(&arena, from->num_devices, sizeof(int64_t));
            moe_epi_collect_moves(from, to, moves, in, sent, &r);
            r.bytes = (double)r.moves * expert_bytes;
            {
                int64_t *sends = (int64_t *)moe_epi_take(&arena, cells, sizeof(int64_t));
                int64_t *receives = (int64_t *)moe_epi_take(&arena, cells, sizeof(int64_t));
                moe_epi_colour(moves, r.moves, from->num_devices, (int32_t)r.rounds, sends, receives);
            }
        }
    }
    moe_epi_arena_close(&arena);
    if (status == MOE_EP_OK && out) *out = r;
    return status;
}

/* ---- relabel: the device names of a full replan ---------------------------------------------------------------- */

typedef struct moe_epi_relabel {
    int32_t *overlap;     /* (D,D) experts that old device i and new device j share       */
    int32_t *match;       /* (D) new contents for old device i                            */
    int32_t *used_row;    /* (D+1) assignment: row of a column                            */
    int32_t *way;         /* (D+1)                                                        */
    double *u, *v, *least;/* (D+1) potentials                                             */
    uint8_t *done;        /* (D+1)                                                        */
    int32_t *cell;        /* (P) contents before renaming                                 */
    int32_t *seen;        /* (E) device an expert was marked for                          */
} moe_epi_relabel;

static int moe_epi_may_rename(const moe_ep_placement *now, const moe_ep_placement *plan, int32_t i, int32_t j,
                              int32_t flags)
{
    if (i == j) return 1;
    if (flags & MOE_EP_RELABEL_SLOTS_ONLY) return 0;
    if ((flags & MOE_EP_RELABEL_KEEP_NODES) && plan->device_node[i] != plan->device_node[j]) return 0;
    if (now->device_inactive[i] || plan->device_inactive[i] != plan->device_inactive[j]) return 0;
    if (plan->device_speed[i] < plan->device_speed[j] || plan->device_speed[i] > plan->device_speed[j]) return 0;
    return plan->slot_start[i + 1] - plan->slot_start[i] == plan->slot_start[j + 1] - plan->slot_start[j];
}

static void moe_epi_overlap(const moe_ep_placement *now, const moe_ep_placement *plan, int32_t l, moe_epi_relabel *w)
{
    const int32_t *old = now->slot_expert + (int64_t)l * now->num_slots,
                  *fresh = plan->slot_expert + (int64_t)l * plan->num_slots;
    int32_t D = now->num_devices, i, j, s, e;
    for (e = 0; e < now->num_experts; e++) w->seen[e] = -1;
    for (i = 0; i < D; i++) {
        for (s = now->slot_start[i]; s < now->slot_start[i + 1]; s++)
            if (old[s] >= 0) w->seen[old[s]] = i;
        for (j = 0; j < D; j++) {
            int32_t same = 0;
            for (s = plan->slot_start[j]; s < plan->slot_start[j + 1]; s++)
                same += fresh[s] >= 0 && w->seen[fresh[s]] == i;
            w->overlap[(int64_t)i * D + j] = same;
        }
    }
}

/* Assignment of least cost by shortest augmenting paths (Kuhn-Munkres with potentials); the cost of keeping nothing
 * is 0, forbidden pairs cost more than everything else together. */
static void moe_epi_assignment(const moe_ep_placement *now, const moe_ep_placement *plan, int32_t flags,
                               moe_epi_relabel *w)
{
    int32_t D = now->num_devices, i, j;
    double forbidden = 4.0 * (double)now->num_slots + 4.0;
    for (j = 0; j <= D; j++) {
        w->used_row[j] = 0;
        w->u[j] = w->v[j] = 0.0;
    }
    for (i = 1; i <= D; i++) {
        int32_t column = 0;
        w->used_row[0] = i;
        for (j = 0; j <= D; j++) {
            w->least[j] = HUGE_VAL;
            w->done[j] = 0;
        }
        do {
            int32_t row = w->used_row[column], next = 0;
            double step = HUGE_VAL;
            w->done[column] = 1;
            for (j = 1; j <= D; j++) {
                double cost;
                if (w->done[j]) continue;
                cost = moe_epi_may_rename(now, plan, row - 1, j - 1, flags)
                           ? -(double)w->overlap[(int64_t)(row - 1) * D + j - 1]
                           : forbidden;
                cost -= w->u[row] + w->v[j];
                if (cost < w->least[j]) {
                    w->least[j] = cost;
                    w->way[j] = column;
                }
                if (w->least[j] < step) {
                    step = w->least[j];
                    next = j;
                }
            }
            for (j = 0; j <= D; j++) {
                if (w->done[j]) {
                    w->u[w->used_row[j]] += step;
                    w->v[j] -= step;
                } else {
                    w->least[j] -= step;
                }
            }
            column = next;
        } while (w->used_row[column] != 0);
        while (column != 0) {
            w->used_row[column] = w->used_row[w->way[column]];
            column = w->way[column];
        }
    }
    for (j = 1; j <= D; j++) w->match[w->used_row[j] - 1] = j - 1;
}

/* Writes the contents of plan device match[i] to device i, staying experts in their old slots. */
static void moe_epi_rename(const moe_ep_placement *now, moe_ep_placement *plan, int32_t l, moe_epi_relabel *w)
{
    const int32_t *old = now->slot_expert + (int64_t)l * now->num_slots;
    int32_t *fresh = plan->slot_expert + (int64_t)l * plan->num_slots, i, s, t;
    memcpy(w->cell, fresh, sizeof *fresh * (size_t)plan->num_slots);
    for (i = 0; i < plan->num_devices; i++) {
        int32_t first = plan->slot_start[i], end = plan->slot_start[i + 1], from = plan->slot_start[w->match[i]],
                next = first;
        int32_t *cell = w->cell + from, n = plan->slot_start[w->match[i] + 1] - from;
        for (s = first; s < end; s++) {
            fresh[s] = -1;
            for (t = 0; t < n && old[s] >= 0; t++) {
                if (cell[t] != old[s]) continue;
                fresh[s] = cell[t];
                cell[t] = -1;
                break;
            }
        }
        for (t = 0; t < n; t++) {
            if (cell[t] < 0) continue;
            while (fresh[next] >= 0) next++;
            fresh[next] = cell[t];
        }
    }
    moe_epi_index_layer(plan, l);
}

MOE_EP_API moe_ep_status moe_ep_relabel(const moe_ep_placement *current, moe_ep_placement *plan, int32_t flags,
                                        moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_epi_relabel w;
    size_t total = 0;
    int64_t D, pairs = 0;
    int32_t l, i;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_pair_check(current, plan, "current", "plan", err)) != MOE_EP_OK) return status;
    if ((flags & ~(MOE_EP_RELABEL_SLOTS_ONLY | MOE_EP_RELABEL_KEEP_NODES)) != 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "flags", "has an unknown bit", -1, flags);
    D = current->num_devices;
    if (!moe_epi_mul(D, D, &pairs))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "D", "D*D does not fit", -1, (double)D);
    moe_epi_need(&total, pairs, sizeof(int32_t));
    moe_epi_need(&total, D, sizeof(int32_t));
    for (i = 0; i < 2; i++) moe_epi_need(&total, D + 1, sizeof(int32_t));
    for (i = 0; i < 3; i++) moe_epi_need(&total, D + 1, sizeof(double));
    moe_epi_need(&total, D + 1, sizeof(uint8_t));
    moe_epi_need(&total, plan->num_slots, sizeof(int32_t));
    moe_epi_need(&total, plan->num_experts, sizeof(int32_t));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    w.overlap = (int32_t *)moe_epi_take(&arena, pairs, sizeof(int32_t));
    w.match = (int32_t *)moe_epi_take(&arena, D, sizeof(int32_t));
    w.used_row = (int32_t *)moe_epi_take(&arena, D + 1, sizeof(int32_t));
    w.way = (int32_t *)moe_epi_take(&arena, D + 1, sizeof(int32_t));
    w.u = (double *)moe_epi_take(&arena, D + 1, sizeof(double));
    w.v = (double *)moe_epi_take(&arena, D + 1, sizeof(double));
    w.least = (double *)moe_epi_take(&arena, D + 1, sizeof(double));
    w.done = (uint8_t *)moe_epi_take(&arena, D + 1, sizeof(uint8_t));
    w.cell = (int32_t *)moe_epi_take(&arena, plan->num_slots, sizeof(int32_t));
    w.seen = (int32_t *)moe_epi_take(&arena, plan->num_experts, sizeof(int32_t));
    for (l = 0; l < plan->num_layers; l++) {
        if (flags & MOE_EP_RELABEL_SLOTS_ONLY) {
            for (i = 0; i < plan->num_devices; i++) w.match[i] = i;
        } else {
            moe_epi_overlap(current, plan, l, &w);
            moe_epi_assignment(current, plan, flags, &w);
        }
        moe_epi_rename(current, plan, l, &w);
    }
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- how many copies ------------------------------------------------------------------------- */

static moe_ep_status moe_epi_copies_check(const moe_ep_copies_desc *desc, const moe_ep_copies_point *points,
                                          const int32_t *fewest, int32_t *active, moe_ep_error *err)
{
    int32_t d;
    moe_ep_status status;
    moe_ep_shape shape;
    int32_t slots = 0;
    if (!desc) return moe_epi_null(err, "desc");
    if (!points && !fewest) return moe_epi_null(err, "points");
    if (desc->place.num_layers < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.place.num_layers", "must be at least 1", -1,
                            desc->place.num_layers);
    if (desc->place.num_experts < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.place.num_experts", "must be at least 1", -1,
                            desc->place.num_experts);
    if (desc->policy != MOE_EP_PLACE_GIVEN && desc->policy != MOE_EP_PLACE_BEST &&
        desc->policy != MOE_EP_PLACE_EPLB_GLOBAL)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.policy", "best or EPLB global", -1, (double)desc->policy);
    if (desc->max_extra < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.max_extra", "must not be negative", -1, desc->max_extra);
    if (desc->step < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.step", "must not be negative", -1, desc->step);
    if (!moe_epi_finite(desc->target) || desc->target < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.target", "must be finite and not negative", -1,
                            desc->target);
    if (!moe_epi_finite(desc->expert_bytes) || desc->expert_bytes < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.expert_bytes", "must be finite and not negative", -1,
                            desc->expert_bytes);
    if (desc->place.layer_slots)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.place.layer_slots", "the copies are what is asked for", -1,
                            0.0);
    shape = desc->place.shape;
    shape.num_slots = 0;
    shape.slots_per_device = NULL;
    if ((status = moe_epi_shape_check(&shape, desc->place.num_experts, &slots, err)) != MOE_EP_OK) return status;
    if (desc->max_extra > INT32_MAX / 2 - desc->place.num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc.max_extra", "too many slots", -1, desc->max_extra);
    *active = 0;
    for (d = 0; d < shape.num_devices; d++) *active += !shape.inactive || !shape.inactive[d];
    if (*active == 0)
        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "desc.place.shape", "no device is active", -1, 0.0);
    return moe_epi_desc_loads(&desc->place, 1, err);
}

/* Memory of a planner for the largest number of slots. */
static size_t moe_epi_planner_bytes(const moe_ep_place_desc *d, int32_t P)
{
    size_t deal = 64, total = 0;
    int32_t D = d->shape.num_devices, E = d->num_experts, N = d->shape.num_nodes > 0 ? d->shape.num_nodes : 1;
    int32_t G = d->num_groups > D ? d->num_groups : D;
    moe_epi_best_need(&deal, E, P, D);
    moe_epi_eplb_need(&total, E, P, G);
    total = deal > SIZE_MAX - total ? SIZE_MAX : total + deal; /* node_soft needs both */
    moe_epi_need(&total, (int64_t)d->num_layers * E, sizeof(int32_t));
    moe_epi_need(&total, (int64_t)d->num_layers * E, sizeof(double));
    moe_epi_bound_need(&total, E, D, N);
    return total > SIZE_MAX - 128 ? SIZE_MAX : total + 128;
}

/* One point of the curve from the results of its plan. */
static moe_ep_copies_point moe_epi_copies_sum(const moe_ep_plan_result *r, const moe_ep_copies_desc *desc,
                                              int32_t extra)
{
    moe_ep_copies_point point;
    int32_t l, L = desc->place.num_layers;
    memset(&point, 0, sizeof point);
    point.extra = extra;
    point.bytes = (double)extra * L * desc->expert_bytes;
    for (l = 0; l < L; l++) {
        if (r[l].imbalance > point.worst) point.worst = r[l].imbalance;
        point.mean += r[l].imbalance / L;
        point.max_sum += r[l].max;
    }
    return point;
}

MOE_EP_API moe_ep_status moe_ep_min_copies(const moe_ep_copies_desc *desc, moe_ep_copies_point *points,
                                           int32_t *fewest, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_ep_place_desc place;
    moe_ep_plan_result *result;
    size_t total = 0, planner, block;
    int32_t *slots, extra, active = 0, d, n = 0, found = -1, step;
    unsigned char *memory, *buffer;
    moe_ep_copies_point *made;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_copies_check(desc, points, fewest, &active, err)) != MOE_EP_OK) return status;
    place = desc->place;
    step = desc->step > 0 ? desc->step : desc->policy == MOE_EP_PLACE_EPLB_GLOBAL ? active : 1;
    place.shape.slots_per_device = NULL;
    place.shape.num_slots = place.num_experts + desc->max_extra + place.shape.num_devices;
    planner = moe_epi_planner_bytes(&place, place.shape.num_slots);
    block = moe_ep_placement_bytes(place.num_layers, place.num_experts, &place.shape);
    if (planner == SIZE_MAX || block == 0)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc.max_extra", "too many slots", -1, desc->max_extra);
    moe_epi_need(&total, place.shape.num_devices, sizeof(int32_t));
    moe_epi_need(&total, place.num_layers, sizeof(moe_ep_plan_result));
    moe_epi_need(&total, desc->max_extra / step + 1, sizeof(moe_ep_copies_point));
    moe_epi_need(&total, 1, planner);
    moe_epi_need(&total, 1, block);
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    slots = (int32_t *)moe_epi_take(&arena, place.shape.num_devices, sizeof(int32_t));
    result = (moe_ep_plan_result *)moe_epi_take(&arena, place.num_layers, sizeof(moe_ep_plan_result));
    made = (moe_ep_copies_point *)moe_epi_take(&arena, desc->max_extra / step + 1, sizeof(moe_ep_copies_point));
    buffer = (unsigned char *)moe_epi_take(&arena, 1, planner);
    memory = (unsigned char *)moe_epi_take(&arena, 1, block);
    place.shape.slots_per_device = slots;
    place.shape.num_slots = 0;
    place.eplb_mode = MOE_EP_EPLB_GLOBAL;
    for (extra = 0; status == MOE_EP_OK && extra <= desc->max_extra; extra += step) {
        moe_ep_placement p;
        moe_ep_scratch inner = moe_ep_scratch_fixed(buffer, planner);
        int32_t number = 0, all = place.num_experts + extra;
        for (d = 0; d < place.shape.num_devices; d++) {
            int down = place.shape.inactive && place.shape.inactive[d];
            slots[d] = down ? 0 : all / active + (number < all % active ? 1 : 0);
            number += !down;
        }
        status = moe_ep_placement_init(&p, place.num_layers, place.num_experts, &place.shape, memory, block, err);
        if (status == MOE_EP_OK)
            status = desc->policy == MOE_EP_PLACE_EPLB_GLOBAL
                         ? moe_ep_place_eplb(&place, &p, result, &inner, err)
                         : moe_ep_best_placement(&place, &p, result, &inner, err);
        if (status != MOE_EP_OK) break;
        made[n] = moe_epi_copies_sum(result, desc, extra);
        if (found < 0 && desc->target > 0.0 && made[n].worst <= desc->target) found = extra;
        n++;
        if (extra > desc->max_extra - step) break;
    }
    if (status == MOE_EP_OK) {
        if (points) memcpy(points, made, sizeof *made * (size_t)n);
        if (fewest) *fewest = found;
    }
    moe_epi_arena_close(&arena);
    return status;
}

/* ---- budgets per layer
 * ---------------------------------------------------------------------------------------------- */

/* curve[c]: the bound on the busiest device with c extra copies, the greedy ones. */
static void moe_epi_budget_curve(const double *w, int32_t E, const moe_epi_room *room, int32_t width, int32_t *counts,
                                 moe_epi_item *heap, double *curve)
{
    double mean = 0.0;
    int32_t e, c;
    for (e = 0; e < E; e++) {
        mean += w[e] / room->speed_sum;
        counts[e] = 1;
        heap[e].key = w[e];
        heap[e].id = e;
        heap[e].aux = 0;
    }
    moe_epi_heapify(heap, E);
    for (c = 0; c < width; c++) {
        curve[c] = heap[0].key / room->speed_max > mean ? heap[0].key / room->speed_max : mean;
        e = heap[0].id;
        if (counts[e] >= room->devices) continue; /* the hottest is everywhere already: the curve stays */
        heap[0].key = w[e] / ++counts[e];
        moe_epi_sift(heap, E, 0);
    }
}

/* Best next purchase of a layer: from `have` copies to the number with the steepest fall of the bound. */
static moe_epi_item moe_epi_budget_offer(const double *curve, int32_t have, int32_t most, int32_t layer, int32_t *to)
{
    moe_epi_item item;
    int32_t c;
    item.key = 0.0;
    item.id = layer;
    item.aux = 0;
    *to = have;
    for (c = have + 1; c <= most; c++) {
        double slope = (curve[have] - curve[c]) / (c - have);
        if (!(slope > item.key)) continue;
        item.key = slope;
        *to = c;
    }
    return item;
}

MOE_EP_API moe_ep_status moe_ep_replica_budgets(const moe_ep_place_desc *desc, int64_t extra_slots,
                                                int32_t *layer_slots, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_arena arena;
    size_t total = 0;
    moe_epi_room room;
    double *curves, *merged;
    int32_t *to, *have, *counts, slots = 0, l, c, width, L, E;
    moe_epi_item *heap, *layers;
    int64_t cells;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if (!layer_slots) return moe_epi_null(err, "layer_slots");
    L = desc->num_layers;
    E = desc->num_experts;
    if (L < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_layers", "must be at least 1", -1, L);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_experts", "must be at least 1", -1, E);
    if (extra_slots < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "extra_slots", "must not be negative", -1, (double)extra_slots);
    if ((status = moe_epi_shape_check(&desc->shape, E, &slots, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_desc_loads(desc, 1, err)) != MOE_EP_OK) return status;
    room = moe_epi_room_of_shape(&desc->shape, slots);
    if (room.slots < E)
        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "desc.shape", "fewer active slots than experts", -1, room.slots);
    width = room.slots - E + 1;
    if (!moe_epi_mul(L, width, &cells))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc.num_layers", "L*P does not fit", -1, L);
    moe_epi_need(&total, cells, sizeof(double));
    moe_epi_need(&total, desc->num_steps > 1 ? (int64_t)L * E : 0, sizeof(double));
    moe_epi_need(&total, L, sizeof(int32_t));
    moe_epi_need(&total, L, sizeof(int32_t));
    moe_epi_need(&total, E, sizeof(int32_t));
    moe_epi_need(&total, E, sizeof(moe_epi_item));
    moe_epi_need(&total, L, sizeof(moe_epi_item));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    curves = (double *)moe_epi_take(&arena, cells, sizeof(double));
    merged = (double *)moe_epi_take(&arena, desc->num_steps > 1 ? (int64_t)L * E : 0, sizeof(double));
    to = (int32_t *)moe_epi_take(&arena, L, sizeof(int32_t));
    have = (int32_t *)moe_epi_take(&arena, L, sizeof(int32_t));
    counts = (int32_t *)moe_epi_take(&arena, E, sizeof(int32_t));
    heap = (moe_epi_item *)moe_epi_take(&arena, E, sizeof(moe_epi_item));
    layers = (moe_epi_item *)moe_epi_take(&arena, L, sizeof(moe_epi_item));
    if (desc->num_steps > 1)
        (void)moe_ep_window_loads(desc->loads, desc->num_steps, L, E, desc->risk_z, merged, NULL);
    for (l = 0; l < L; l++) {
        double *curve = curves + (int64_t)l * width;
        moe_epi_budget_curve((desc->num_steps > 1 ? merged : desc->loads) + (int64_t)l * E, E, &room, width, counts,
                             heap, curve);
        have[l] = 0;
        layers[l] = moe_epi_budget_offer(curve, 0, width - 1, l, &to[l]);
    }
    moe_epi_heapify(layers, L);
    while (layers[0].key > 0.0 && extra_slots > 0) {
        l = layers[0].id;
        c = to[l] - have[l] <= extra_slots ? to[l] : have[l] + (int32_t)extra_slots;
        extra_slots -= c - have[l];
        have[l] = c;
        layers[0] = moe_epi_budget_offer(curves + (int64_t)l * width, c, width - 1, l, &to[l]);
        moe_epi_sift(layers, L, 0);
    }
    for (l = 0; l < L; l++) layer_slots[l] = E + have[l];
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}
/* ---- best placement: search beyond swaps ---------------------------------------------------------------------- */

#define MOE_EPI_EXACT_DEVICES 8
#define MOE_EPI_EXACT_EXPERTS 24
#define MOE_EPI_EXACT_NODES 200000 /* of the search tree: a few milliseconds at most */

/* Branch and bound for the smallest layers: expert after expert, every set of devices. */
typedef struct moe_epi_exact {
    const moe_epi_state *s;
    int32_t order[MOE_EPI_EXACT_EXPERTS]; /* heaviest first          */
    uint32_t set[MOE_EPI_EXACT_EXPERTS], best_set[MOE_EPI_EXACT_EXPERTS];
    double load[MOE_EPI_EXACT_DEVICES], rest[MOE_EPI_EXACT_EXPERTS + 1]; /* rest[i]: load of order[i..] */
    int32_t fill[MOE_EPI_EXACT_DEVICES];
    double best, enough; /* busiest device so far; stop at enough */
    int32_t slots_left, nodes;
    int found;
} moe_epi_exact;

static double moe_epi_exact_speed(const moe_epi_exact *x, int32_t d) { return x->s->speed ? x->s->speed[d] : 1.0; }

/* Could the loads of order[i..] still fit below the best? */
static int moe_epi_exact_hopeless(const moe_epi_exact *x, int32_t i)
{
    double space = 0.0;
    int32_t d;
    for (d = 0; d < x->s->D; d++)
        if (x->fill[d] < x->s->cap[d]) space += x->best * moe_epi_exact_speed(x, d) - x->load[d];
    return space < x->rest[i];
}

static void moe_epi_exact_expert(moe_epi_exact *x, int32_t i);

/* Chooses `copies` more devices for order[i] among sorted[from..]. */
static void moe_epi_exact_devices(moe_epi_exact *x, int32_t i, const int32_t *sorted, int32_t n, int32_t from,
                                  int32_t copies, double unit)
{
    int32_t k, e = x->order[i], pin = x->s->pin ? x->s->pin[e] : -1;
    if (x->nodes++ > MOE_EPI_EXACT_NODES || x->best <= x->enough) return;
    if (copies == 0) {
        if (pin < 0 || (x->set[i] >> pin & 1u)) moe_epi_exact_expert(x, i + 1);
        return;
    }
    for (k = from; k + copies <= n; k++) {
        int32_t d = sorted[k], last = k > from ? sorted[k - 1] : -1;
        if (x->fill[d] >= x->s->cap[d] || (x->load[d] + unit) / moe_epi_exact_speed(x, d) >= x->best) continue;
        if (last >= 0 && !x->s->pin && !x->s->speed && x->fill[d] == x->fill[last] &&
            x->s->cap[d] == x->s->cap[last] && !(x->load[d] > x->load[last]))
            continue; /* the same device under another name, just tried */
        x->load[d] += unit;
        x->fill[d]++;
        x->set[i] |= 1u << d;
        moe_epi_exact_devices(x, i, sorted, n, k + 1, copies - 1, unit);
        x->set[i] &= ~(1u << d);
        x->fill[d]--;
        x->load[d] -= unit;
    }
}

/* Every number of copies for order[i], the usual number first. */
static void moe_epi_exact_expert(moe_epi_exact *x, int32_t i)
{
    int32_t sorted[MOE_EPI_EXACT_DEVICES], n = 0, d, k, e, most, usual, step;
    double now = 0.0;
    if (i == x->s->E) {
        for (d = 0; d < x->s->D; d++)
            if (x->load[d] / moe_epi_exact_speed(x, d) > now) now = x->load[d] / moe_epi_exact_speed(x, d);
        if (now >= x->best) return;
        x->best = now * (1.0 - 1e-9);
        x->found = 1;
        memcpy(x->best_set, x->set, sizeof x->set);
        return;
    }
    if (moe_epi_exact_hopeless(x, i)) return;
    for (d = 0; d < x->s->D; d++) {
        if (x->fill[d] >= x->s->cap[d]) continue;
        for (k = n++; k > 0 && x->load[sorted[k - 1]] > x->load[d]; k--) sorted[k] = sorted[k - 1];
        sorted[k] = d;
    }
    e = x->order[i];
    most = x->slots_left - (x->s->E - 1 - i);
    if (most > n) most = n;
    if (most > x->s->max_count) most = x->s->max_count;
    usual = x->s->count[e] < most ? x->s->count[e] : most;
    for (step = 0; step < 2 * MOE_EPI_EXACT_DEVICES; step++) { /* usual, +1, -1, +2, -2 .. */
        int32_t copies = step % 2 ? usual + (step + 1) / 2 : usual - step / 2;
        if (copies < 1 || copies > most) continue;
        x->slots_left -= copies;
        x->set[i] = 0;
        moe_epi_exact_devices(x, i, sorted, n, 0, copies, x->s->w[e] / copies);
        x->slots_left += copies;
    }
}

/* Searches for a placement below `now`; writes it into the state.  Only for small layers.
 * *proven: nothing is lower. */
static int moe_epi_exact_search(moe_epi_state *s, double now, double enough, int *proven)
{
    moe_epi_exact x;
    int32_t i, k, d, slots = 0;
    *proven = 0;
    if (s->D > MOE_EPI_EXACT_DEVICES || s->E > MOE_EPI_EXACT_EXPERTS) return 0;
    memset(&x, 0, sizeof x);
    x.s = s;
    x.best = now * (1.0 - 1e-9);
    x.enough = enough;
    for (i = 0; i < s->E; i++) {
        for (k = i; k > 0 && s->w[x.order[k - 1]] < s->w[i]; k--) x.order[k] = x.order[k - 1];
        x.order[k] = i;
    }
    for (i = s->E - 1; i >= 0; i--) x.rest[i] = x.rest[i + 1] + s->w[x.order[i]];
    for (d = 0; d < s->D; d++) slots += s->cap[d];
    x.slots_left = slots;
    moe_epi_exact_expert(&x, 0);
    *proven = x.nodes <= MOE_EPI_EXACT_NODES;
    if (!x.found) return 0;
    memset(s->holds, 0, (size_t)(s->words * s->E) * sizeof *s->holds);
    for (d = 0; d < s->D; d++) {
        s->fill[d] = 0;
        s->load[d] = 0.0;
    }
    for (i = 0; i < s->E; i++) {
        int32_t e = x.order[i];
        for (d = 0, s->count[e] = 0; d < s->D; d++) s->count[e] += (int32_t)(x.best_set[i] >> d & 1u);
        s->unit[e] = s->w[e] / s->count[e];
        for (d = 0; d < s->D; d++)
            if (x.best_set[i] >> d & 1u) moe_epi_insert(s, d, e);
    }
    return 1;
}
#undef MOE_EPI_EXACT_DEVICES
#undef MOE_EPI_EXACT_EXPERTS
#undef MOE_EPI_EXACT_NODES

/* Cells each device may fill in layer l: all, or its share of layer_slots[l]; what does not divide rotates from layer
 * to layer.  Never fewer than its pinned experts. */
static void moe_epi_caps(const moe_ep_place_desc *desc, const moe_ep_placement *p, int32_t l,
                         const moe_epi_room *room, moe_epi_deal *deal)
{
    int32_t d, i, left, given = desc->layer_slots ? desc->layer_slots[l] : room->slots;
    moe_epi_deal_reset(deal, p);
    if (given < room->slots) {
        left = given;
        for (d = 0; d < p->num_devices; d++) {
            deal->cap[d] = (int32_t)((int64_t)deal->cap[d] * given / room->slots);
            left -= deal->cap[d];
        }
        for (i = 0, d = (int32_t)((int64_t)l * left % p->num_devices); left > 0;
             i++, d = d + 1 < p->num_devices ? d + 1 : 0) {
            if (p->device_inactive[d] || deal->cap[d] >= p->slot_start[d + 1] - p->slot_start[d]) continue;
            deal->cap[d]++;
            left--;
        }
    }
    for (i = 0; desc->pinned && i < p->num_experts; i++) {
        d = desc->pinned[(int64_t)l * p->num_experts + i];
        if (d >= 0) deal->fill[d]++;
    }
    for (d = 0; d < p->num_devices; d++) {
        if (deal->fill[d] > deal->cap[d]) deal->cap[d] = deal->fill[d];
        deal->fill[d] = 0;
    }
}

/* What best_placement checks on top of every planner. */
static moe_ep_status moe_epi_best_check(const moe_ep_place_desc *desc, const moe_ep_placement *out, moe_ep_error *err)
{
    int32_t l, e, E = desc->num_experts, active = 0;
    for (e = 0; e < out->num_devices; e++)
        if (!desc->shape.inactive || !desc->shape.inactive[e]) active += out->slot_start[e + 1] - out->slot_start[e];
    if (desc->max_replicas < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.max_replicas", "must not be negative", -1,
                            desc->max_replicas);
    for (l = 0; desc->layer_slots && l < desc->num_layers; l++)
        if (desc->layer_slots[l] < E || desc->layer_slots[l] > active)
            return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "desc.layer_slots", "must lie between E and the active slots",
                                l, desc->layer_slots[l]);
    for (l = 0; desc->pinned && l < desc->num_layers; l++) {
        const int32_t *pin = desc->pinned + (int64_t)l * E;
        int32_t d, other;
        for (e = 0; e < E; e++) {
            int32_t same = 0;
            d = pin[e];
            if (d == -1) continue;
            if (d < 0 || d >= out->num_devices)
                return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, "desc.pinned", "is not a device", (int64_t)l * E + e,
                                    d);
            for (other = 0; other <= e; other++) same += pin[other] == d;
            if ((desc->shape.inactive && desc->shape.inactive[d]) ||
                same > out->slot_start[d + 1] - out->slot_start[d])
                return moe_epi_fail(err, MOE_EP_ERR_INFEASIBLE, "desc.pinned", "the device has no slot for it",
                                    (int64_t)l * E + e, d);
        }
    }
    return MOE_EP_OK;
}

/* Largest load per copy over the fastest device, and the mean: the quick bounds. */
static double moe_epi_quick_bound(const moe_epi_state *s, const moe_epi_room *room)
{
    double total = 0.0, top = 0.0;
    int32_t e;
    for (e = 0; e < s->E; e++) {
        total += s->w[e];
        if (s->unit[e] > top) top = s->unit[e];
    }
    top /= room->speed_max;
    total /= room->speed_sum;
    return top > total ? top : total;
}

/* ---- best placement: other starts and kicks -------------------------------------------------- */

static void moe_epi_snap_save(const moe_epi_state *s, moe_epi_snap *snap)
{
    memcpy(snap->cell, s->cell, sizeof *s->cell * (size_t)s->slot_start[s->D]);
    memcpy(snap->fill, s->fill, sizeof *s->fill * (size_t)s->D);
    memcpy(snap->count, s->count, sizeof *s->count * (size_t)s->E);
    snap->value = moe_epi_time(s, s->order[0]);
}

static void moe_epi_snap_restore(moe_epi_state *s, moe_epi_deal *deal, const moe_epi_snap *snap)
{
    int32_t d, e, i;
    memcpy(s->cell, snap->cell, sizeof *s->cell * (size_t)s->slot_start[s->D]);
    memcpy(s->fill, snap->fill, sizeof *s->fill * (size_t)s->D);
    memcpy(s->count, snap->count, sizeof *s->count * (size_t)s->E);
    memset(s->holds, 0, (size_t)(s->words * s->E) * sizeof *s->holds);
    for (e = 0; e < s->E; e++) s->unit[e] = s->w[e] / s->count[e];
    for (d = 0; d < s->D; d++)
        for (i = s->slot_start[d]; i < s->slot_start[d] + s->fill[d]; i++) moe_epi_flip(s, d, s->cell[i]);
    moe_epi_state_resort(s);
    moe_epi_order(s, deal->heap, deal->held);
}

/* Copies by a divisor rule: always one more for the expert with the largest load / (copies + shift).  Shift 0 makes
 * the heaviest copy lightest; larger shifts give copies in proportion to load, which packs better at times. */
static void moe_epi_divisor_counts(moe_epi_state *s, moe_epi_item *heap, int32_t slots, double shift)
{
    int32_t e, n = s->E, used = s->E;
    for (e = 0; e < s->E; e++) {
        s->count[e] = 1;
        heap[e].key = s->w[e] / (1.0 + shift);
        heap[e].id = e;
    }
    moe_epi_heapify(heap, n);
    while (used < slots && n > 0) {
        e = heap[0].id;
        if (s->count[e] >= s->max_count) {
            (void)moe_epi_heap_pop(heap, &n);
            continue;
        }
        s->count[e]++;
        used++;
        heap[0].key = s->w[e] / (s->count[e] + shift);
        moe_epi_sift(heap, n, 0);
    }
}

/* A random change of a busy device: a copy of one of its experts elsewhere, or a swap. */
static void moe_epi_kick(moe_epi_state *s, moe_epi_budget *b, moe_ep_rng *rng)
{
    moe_epi_change c;
    int32_t tries;
    for (tries = 0; tries < 8; tries++) {
        int32_t busy = s->num_order < 4 ? s->num_order : s->num_order / 4;
        int32_t m = s->order[moe_ep_rng_below(rng, (uint64_t)busy)];
        int32_t g = s->order[moe_ep_rng_below(rng, (uint64_t)s->num_order)], e, x;
        if (g == m || s->fill[m] == 0 || s->fill[g] == 0) continue;
        memset(&c, 0, sizeof c);
        c.a = s->slot_start[m] + (int32_t)moe_ep_rng_below(rng, (uint64_t)s->fill[m]);
        c.b = s->slot_start[g] + (int32_t)moe_ep_rng_below(rng, (uint64_t)s->fill[g]);
        c.g = g;
        e = s->cell[c.a];
        x = s->cell[c.b];
        if (moe_epi_holds(s, g, e) || (s->pin && (s->pin[e] == m || s->pin[x] == g))) continue;
        if (s->count[x] > 1 && s->count[e] < s->max_count && moe_ep_rng_below(rng, 2) == 0) {
            c.kind = MOE_EPI_COPY;
            c.a = e;
        } else {
            if (moe_epi_holds(s, m, x)) continue;
            c.kind = MOE_EPI_SWAP;
        }
        moe_epi_change_apply(s, b, m, &c);
        return;
    }
}

#define MOE_EPI_CLOSE 5e-5        /* stop this near to the bound                                       */
#define MOE_EPI_SEARCH_WORK 40000 /* kicks times cells; keeps a layer to some milliseconds             */
#define MOE_EPI_SEARCH_IDLE 80    /* kicks in a row that did not help                                  */

/* Other numbers of copies, then kicks of the best so far. */
static int32_t moe_epi_search(moe_epi_plan *plan, moe_epi_state *s, moe_epi_budget *b, moe_epi_deal *deal,
                              int32_t slots, double goal, int32_t limit)
{
    static const double shifts[5] = {0.5, 1.0, 0.25, -0.25, -0.5};
    moe_ep_rng rng = moe_ep_rng_seed(1);
    int32_t i, k, done = 0, idle = 0, rounds = MOE_EPI_SEARCH_WORK / (s->slot_start[s->D] + 16) + 8;
    moe_epi_snap_save(s, &plan->snap);
    for (i = 0; i < 5 && plan->snap.value > goal && done < limit; i++) {
        moe_epi_divisor_counts(s, deal->items, slots, shifts[i]);
        moe_epi_state_deal(s, deal);
        moe_epi_order(s, deal->heap, deal->held);
        done += moe_epi_refine(s, goal, limit - done);
        done += moe_epi_change_run(s, b, goal, limit - done);
        if (moe_epi_time(s, s->order[0]) < plan->snap.value) moe_epi_snap_save(s, &plan->snap);
    }
    for (i = 0; i < rounds && idle < MOE_EPI_SEARCH_IDLE && plan->snap.value > goal && done < limit; i++) {
        moe_epi_snap_restore(s, deal, &plan->snap);
        for (k = 0; k <= i % 3; k++) {
            moe_epi_kick(s, b, &rng);
            moe_epi_order(s, deal->heap, deal->held);
        }
        done += moe_epi_change_run(s, b, goal, limit - done);
        idle++;
        if (!(moe_epi_time(s, s->order[0]) < plan->snap.value)) continue;
        moe_epi_snap_save(s, &plan->snap);
        idle = 0;
    }
    moe_epi_snap_restore(s, deal, &plan->snap);
    return done;
}

/* Swaps first; where they end above the bound, changes of copies too; the smallest layers are searched. */
static int32_t moe_epi_improve(moe_epi_plan *plan, moe_epi_state *s, moe_epi_deal *deal, int32_t slots, int32_t limit)
{
    moe_epi_budget budget;
    moe_ep_bound_result bound;
    double goal = moe_epi_quick_bound(s, &plan->room) * (1.0 + MOE_EPI_CLOSE);
    int32_t done = moe_epi_refine(s, goal, limit);
    int proven = 0;
    if (s->num_order == 0 || moe_epi_time(s, s->order[0]) <= goal * 1.0005) return done;
    memset(&budget, 0, sizeof budget);
    budget.desc = &plan->no_limits;
    budget.hosts = plan->hosts;
    budget.gains = plan->gains;
    done += moe_epi_change_run(s, &budget, goal, limit - done);
    if (moe_epi_time(s, s->order[0]) <= goal) return done;
    moe_epi_bound(s->w, s->E, &plan->room, s->max_count, plan->work.items, plan->work.counts, &bound);
    if (bound.value > goal) goal = bound.value;
    if (moe_epi_time(s, s->order[0]) > goal && limit - done > 0)
        done += moe_epi_exact_search(s, moe_epi_time(s, s->order[0]), goal, &proven);
    moe_epi_order(s, deal->heap, deal->held);
    if (!proven && moe_epi_time(s, s->order[0]) > goal * 1.002 && limit - done > 0)
        done += moe_epi_search(plan, s, &budget, deal, slots, goal, limit - done);
    return done;
}
#undef MOE_EPI_CLOSE
#undef MOE_EPI_SEARCH_WORK
#undef MOE_EPI_SEARCH_IDLE

/* Pieces of the arena, in the order of moe_epi_best_need. */
static void moe_epi_best_take(moe_epi_plan *plan, moe_epi_state *s, moe_epi_deal *deal)
{
    const moe_ep_placement *p = plan->out;
    moe_epi_deal_take(&plan->arena, deal, p->num_experts, p->num_devices);
    moe_epi_state_take(&plan->arena, s, p, deal);
    plan->hosts = (int32_t *)moe_epi_take(&plan->arena, p->num_devices, sizeof(int32_t));
    plan->gains = (moe_epi_gain *)moe_epi_take(&plan->arena, p->num_slots, sizeof(moe_epi_gain));
    plan->snap.cell = (int32_t *)moe_epi_take(&plan->arena, p->num_slots, sizeof(int32_t));
    plan->snap.fill = (int32_t *)moe_epi_take(&plan->arena, p->num_devices, sizeof(int32_t));
    plan->snap.count = (int32_t *)moe_epi_take(&plan->arena, p->num_experts, sizeof(int32_t));
}

/* Room, copies and the even start of one layer. */
static int32_t moe_epi_best_open(moe_epi_plan *plan, int32_t l, moe_epi_state *s, moe_epi_deal *deal)
{
    const moe_ep_place_desc *desc = plan->desc;
    int32_t d, hosts = 0, slots = 0;
    moe_epi_caps(desc, plan->out, l, &plan->room, deal);
    for (d = 0; d < s->D; d++) {
        hosts += deal->cap[d] > 0;
        slots += deal->cap[d];
    }
    if (desc->max_replicas > 0 && desc->max_replicas < hosts) hosts = desc->max_replicas;
    s->max_count = hosts;
    s->w = plan->loads + (int64_t)l * s->E;
    s->pin = desc->pinned ? desc->pinned + (int64_t)l * s->E : NULL;
    return slots;
}

static int32_t moe_epi_best_layer(moe_epi_plan *plan, int32_t l, moe_epi_state *s, moe_epi_deal *deal)
{
    int32_t limit = plan->desc->max_refinements > 0 ? plan->desc->max_refinements : INT32_MAX;
    int32_t slots = moe_epi_best_open(plan, l, s, deal);
    (void)moe_epi_replicate(s->w, s->E, slots, s->max_count, s->count, deal->items);
    moe_epi_state_deal(s, deal);
    if (plan->desc->max_refinements < 0) return 0;
    moe_epi_order(s, deal->heap, deal->held);
    return moe_epi_improve(plan, s, deal, slots, limit);
}

/* ---- partners: co-activation as the second objective
 * --------------------------------------------------------------- */

typedef struct moe_epi_partners {
    const int64_t *pairs; /* (E,E) tokens that chose both         */
    const int32_t *node;  /* (D), or NULL when swaps may cross it */
    double limit;         /* busiest device allowed               */
} moe_epi_partners;

/* Tokens that find e beside the experts of device d (apart from cell `apart`), if each picks replicas at random. */
static double moe_epi_company(const moe_epi_state *s, const moe_epi_partners *w, int32_t e, int32_t d, int32_t apart)
{
    double sum = 0.0;
    int32_t i;
    for (i = s->slot_start[d]; i < s->slot_start[d] + s->fill[d]; i++)
        if (i != apart) sum += (double)w->pairs[(int64_t)e * s->E + s->cell[i]] / s->count[s->cell[i]];
    return sum / s->count[e];
}

/* Is the swap of cell i of c with cell j of d allowed, and what does it gain? */
static double moe_epi_partner_gain(const moe_epi_state *s, const moe_epi_partners *w, int32_t c, int32_t i, int32_t d,
                                   int32_t j)
{
    int32_t e = s->cell[i], f = s->cell[j];
    double delta = s->cell_unit[i] - s->cell_unit[j];
    if (moe_epi_holds(s, d, e) || moe_epi_holds(s, c, f)) return 0.0;
    if (s->pin && (s->pin[e] == c || s->pin[f] == d)) return 0.0;
    if (moe_epi_time_with(s, c, -delta) > w->limit || moe_epi_time_with(s, d, delta) > w->limit) return 0.0;
    return moe_epi_company(s, w, e, d, j) + moe_epi_company(s, w, f, c, i) - moe_epi_company(s, w, e, c, i) -
           moe_epi_company(s, w, f, d, j);
}

/* Best swap between devices c and d; returns 1 when one was made. */
static int moe_epi_partner_swap(moe_epi_state *s, const moe_epi_partners *w, int32_t c, int32_t d)
{
    moe_epi_swap swap;
    double best = 1e-9;
    int32_t i, j;
    if (w->node && w->node[c] != w->node[d]) return 0;
    memset(&swap, 0, sizeof swap);
    swap.g = -1;
    for (i = s->slot_start[c]; i < s->slot_start[c] + s->fill[c]; i++)
        for (j = s->slot_start[d]; j < s->slot_start[d] + s->fill[d]; j++) {
            double gain = moe_epi_partner_gain(s, w, c, i, d, j);
            if (!(gain > best)) continue;
            best = gain;
            swap.a = i;
            swap.b = j;
            swap.g = d;
        }
    if (swap.g < 0) return 0;
    moe_epi_swap_apply(s, c, &swap);
    return 1;
}

#define MOE_EPI_PARTNER_SWEEPS 8

/* Swaps that bring experts of the same tokens together without making any device busier than allowed. */
static int32_t moe_epi_partner_run(const moe_epi_plan *plan, int32_t l, moe_epi_state *s)
{
    moe_epi_partners w;
    int32_t c, d, sweep, done = 0, before = -1;
    w.pairs = plan->desc->coactivation + (int64_t)l * s->E * s->E;
    w.node = plan->desc->node_soft ? plan->out->device_node : NULL;
    w.limit = 0.0;
    for (d = 0; d < s->D; d++)
        if (s->cap[d] > 0 && moe_epi_time(s, d) > w.limit) w.limit = moe_epi_time(s, d);
    w.limit *= 1.0 + plan->desc->coactivation_slack;
    for (sweep = 0; sweep < MOE_EPI_PARTNER_SWEEPS && done > before; sweep++) {
        before = done;
        for (c = 0; c < s->D; c++)
            for (d = c + 1; d < s->D; d++) done += moe_epi_partner_swap(s, &w, c, d);
    }
    return done;
}
#undef MOE_EPI_PARTNER_SWEEPS

static moe_ep_status moe_epi_partner_check(const moe_ep_place_desc *desc, moe_ep_error *err)
{
    int64_t i, cells, row = (int64_t)desc->num_experts * desc->num_experts;
    if (!desc->coactivation) return MOE_EP_OK;
    if (!moe_epi_finite(desc->coactivation_slack) || desc->coactivation_slack < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.coactivation_slack", "must be finite and not negative", -1,
                            desc->coactivation_slack);
    if (!moe_epi_mul(row, desc->num_layers, &cells))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc.coactivation", "L*E*E does not fit", -1, 0.0);
    for (i = 0; i < cells; i++)
        if (desc->coactivation[i] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "desc.coactivation", "must not be negative", i,
                                (double)desc->coactivation[i]);
    return MOE_EP_OK;
}

/* ---- best placement with soft nodes
 * ------------------------------------------------------------------------------------- */

/* Home nodes of all layers into plan->home; every node must have room for its own experts. */
static moe_ep_status moe_epi_homes(moe_epi_plan *plan, moe_epi_eplb *work, moe_ep_error *err)
{
    const moe_ep_place_desc *desc = plan->desc;
    const moe_ep_placement *p = plan->out;
    int32_t l, e, d, n, E = desc->num_experts, groups = desc->num_groups;
    for (l = 0; l < desc->num_layers; l++) {
        int32_t *home = plan->home + (int64_t)l * E;
        if (desc->home_node) {
            memcpy(home, desc->home_node + (int64_t)l * E, sizeof *home * (size_t)E);
        } else {
            moe_epi_eplb_groups(work, plan->loads + (int64_t)l * E, E, groups, p->num_nodes);
            for (e = 0; e < E; e++) home[work->order[e]] = e / (E / p->num_nodes);
        }
        for (n = 0; n < p->num_nodes; n++) {
            int32_t room = 0;
            for (d = 0; d < p->num_devices; d++)
                if (p->device_node[d] == n && !(desc->shape.inactive && desc->shape.inactive[d]))
                    room += p->slot_start[d + 1] - p->slot_start[d];
            for (e = 0; e < E; e++) room -= home[e] == n;
            if (room < 0)
                return moe_epi_fail(err, MOE_EP_ERR_INFEASIBLE, "desc.node_soft",
                                    "a node has fewer slots than experts at home "
                                    "(index = node)",
                                    n, room);
        }
    }
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_soft_check(const moe_ep_place_desc *desc, const moe_ep_placement *out, moe_ep_error *err)
{
    int64_t i, cells = (int64_t)desc->num_layers * desc->num_experts;
    int32_t groups = desc->num_groups;
    if (!desc->node_soft) return MOE_EP_OK;
    if (!moe_epi_finite(desc->max_off_node) || desc->max_off_node < 0.0 || desc->max_off_node > 1.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.max_off_node", "must lie in 0..1", -1, desc->max_off_node);
    if (desc->pinned || desc->layer_slots)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.node_soft", "does not go with pins or layer_slots", -1,
                            1.0);
    for (i = 0; desc->home_node && i < cells; i++)
        if (desc->home_node[i] < 0 || desc->home_node[i] >= out->num_nodes)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.home_node", "must lie in 0..num_nodes-1", i,
                                desc->home_node[i]);
    if (desc->home_node) return MOE_EP_OK;
    if (groups < 1 || desc->num_experts % groups != 0 || groups % out->num_nodes != 0)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.num_groups",
                            "groups that divide over the nodes, or home_node, are "
                            "needed for node_soft",
                            -1, groups);
    return moe_epi_float_loads(desc, err);
}

/* Every node plans its own experts on its own devices. */
static void moe_epi_soft_start(moe_epi_plan *plan, const int32_t *home, moe_epi_state *s, moe_epi_deal *deal)
{
    const moe_ep_placement *p = plan->out;
    int32_t n, d, e, count, left_out = 0;
    memset(s->holds, 0, (size_t)(s->words * s->E) * sizeof *s->holds);
    for (d = 0; d < s->D; d++) {
        s->load[d] = 0.0;
        s->fill[d] = 0;
    }
    for (n = 0; n < p->num_nodes; n++) {
        int32_t slots = 0, hosts = 0, heap = 0, best;
        for (d = 0; d < s->D; d++) {
            s->cap[d] =
                p->device_node[d] == n && !p->device_inactive[d] ? s->slot_start[d + 1] - s->slot_start[d] : 0;
            slots += s->cap[d];
            hosts += s->cap[d] > 0;
        }
        if (hosts > s->max_count) hosts = s->max_count;
        for (e = 0; e < s->E; e++) {
            if (home[e] != n) continue;
            s->count[e] = 1;
            deal->spare[heap].key = s->w[e];
            deal->spare[heap].id = e;
            deal->spare[heap].aux = 0;
            heap++;
        }
        count = heap;
        moe_epi_heapify(deal->spare, heap);
        for (best = count; best < slots && heap > 0;) {
            e = deal->spare[0].id;
            if (s->count[e] >= hosts) {
                (void)moe_epi_heap_pop(deal->spare, &heap);
                continue;
            }
            deal->spare[0].key = s->w[e] / ++s->count[e];
            moe_epi_sift(deal->spare, heap, 0);
            best++;
        }
        for (e = 0, count = 0; e < s->E; e++) {
            if (home[e] != n) continue;
            s->unit[e] = s->w[e] / s->count[e];
            deal->items[count].key = s->unit[e];
            deal->items[count].id = e;
            deal->items[count].aux = s->count[e];
            count++;
        }
        moe_epi_sort(deal->items, deal->spare, count);
        for (d = 0; d < s->D; d++) /* other nodes' devices look full */
            if (s->cap[d] == 0) s->cap[d] = s->fill[d];
        left_out += moe_epi_deal_run(deal, count, s->D, s->speed, NULL, moe_epi_emit_state, s);
    }
    moe_epi_deal_caps(deal, p);
    if (left_out > 0) {
        moe_epi_state_recount(s);
        moe_epi_state_resort(s);
    }
}

/* One layer with as little load off its home node as reaches max/mean <= target.  Returns the changes; *off. */
static int32_t moe_epi_soft_layer(moe_epi_plan *plan, int32_t l, moe_epi_state *s, moe_epi_deal *deal, double target,
                                  double *off)
{
    moe_epi_budget budget;
    int32_t done, most = 4 * s->slot_start[s->D] + 16, e;
    const int32_t *home = plan->home + (int64_t)l * s->E;
    double mean = 0.0, goal;
    (void)moe_epi_best_open(plan, l, s, deal);
    for (e = 0; e < s->E; e++) mean += s->w[e];
    mean /= plan->room.speed_sum;
    moe_epi_soft_start(plan, home, s, deal);
    moe_epi_order(s, deal->heap, deal->held);
    memset(&budget, 0, sizeof budget);
    budget.desc = &plan->no_limits;
    budget.hosts = plan->hosts;
    budget.gains = plan->gains;
    budget.home = home;
    budget.node = plan->out->device_node;
    goal = mean * 1.0005;
    done = moe_epi_change_run(s, &budget, mean * target > goal ? mean * target : goal,
                              most); /* free changes inside nodes */
    budget.max_off = HUGE_VAL;
    done += moe_epi_change_run(s, &budget, mean * target, most);
    budget.max_off = budget.off;
    done += moe_epi_change_run(s, &budget, goal, most);
    *off = 0.0;
    for (e = 0; e < s->E; e++) *off += moe_epi_off_load(s, &budget, e, 0, 0);
    return done;
}

/* Load off its home node over all layers for one target. */
static double moe_epi_soft_off(moe_epi_plan *plan, moe_epi_state *s, moe_epi_deal *deal, double target)
{
    double sum = 0.0, off;
    int32_t l;
    for (l = 0; l < plan->desc->num_layers; l++) {
        (void)moe_epi_soft_layer(plan, l, s, deal, target, &off);
        sum += off;
    }
    return sum;
}

#define MOE_EPI_SOFT_STEPS 8

/* The lowest target whose load off home nodes fits max_off_node. */
static double moe_epi_soft_target(moe_epi_plan *plan, moe_epi_state *s, moe_epi_deal *deal)
{
    double low = 1.0005, high = 2.0 * (double)plan->room.devices, allowed = 0.0;
    int64_t i, cells = (int64_t)plan->desc->num_layers * s->E;
    int step;
    for (i = 0; i < cells; i++) allowed += plan->loads[i] * plan->desc->max_off_node;
    if (!(allowed > 0.0)) return high;
    if (moe_epi_soft_off(plan, s, deal, low) <= allowed) return low;
    for (step = 0; step < MOE_EPI_SOFT_STEPS; step++) {
        double middle = 1.0 + sqrt((low - 1.0) * (high - 1.0)); /* imbalance spans decades */
        if (step == 0) middle = 1.03;
        else if (step == 1) middle = high > 1.03 ? 1.5 : 1.01;
        if (moe_epi_soft_off(plan, s, deal, middle) <= allowed) high = middle;
        else low = middle;
    }
    return high;
}
#undef MOE_EPI_SOFT_STEPS

/* ---- best placement: the planner
 * ------------------------------------------------------------------------------------ */

/* allow_duplicates, where EPLB can plan at all. */
static int moe_epi_doubles_apply(const moe_ep_place_desc *desc, const moe_ep_placement *out)
{
    return desc->allow_duplicates && !desc->node_soft && !desc->pinned && !desc->layer_slots && !desc->coactivation &&
           desc->max_replicas == 0 && moe_epi_equal_slots(desc, out, NULL) == MOE_EP_OK &&
           moe_epi_float_loads(desc, NULL) == MOE_EP_OK;
}

/* Writes EPLB's global plan of layer l when it is lower than the state. */
static int moe_epi_double_layer(moe_epi_plan *plan, int32_t l, const moe_epi_state *s, moe_epi_eplb *work)
{
    double worst = 0.0, mine = 0.0;
    int32_t d;
    moe_epi_eplb_layer(plan->out, l, s->w, 1, 1, work);
    moe_epi_layer_device_loads(plan->out, l, s->w, plan->work.device);
    for (d = 0; d < s->D; d++) {
        if (plan->work.device[d] > worst) worst = plan->work.device[d];
        if (s->load[d] > mine) mine = s->load[d];
    }
    return worst < mine * (1.0 - 1e-9);
}

MOE_EP_API moe_ep_status moe_ep_best_placement(const moe_ep_place_desc *desc, moe_ep_placement *out,
                                               moe_ep_plan_result *result, moe_ep_scratch *scratch,
                                               moe_ep_error *err)
{
    moe_epi_plan plan;
    moe_epi_deal deal;
    moe_epi_state state;
    moe_epi_eplb groups;
    size_t extra = 0;
    int32_t l, E, D, P, changes, G;
    int doubles;
    double target = 0.0, off = 0.0;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_desc_check(desc, out, 1, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_best_check(desc, out, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_soft_check(desc, out, err)) != MOE_EP_OK) return status;
    if ((status = moe_epi_partner_check(desc, err)) != MOE_EP_OK) return status;
    doubles = moe_epi_doubles_apply(desc, out);
    E = desc->num_experts;
    D = out->num_devices;
    P = out->num_slots;
    G = desc->num_groups > D ? desc->num_groups : D;
    moe_epi_best_need(&extra, E, P, D);
    moe_epi_need(&extra, desc->node_soft ? (int64_t)desc->num_layers * E : 0, sizeof(int32_t));
    if (desc->node_soft || doubles) moe_epi_eplb_need(&extra, E, P, G);
    status = moe_epi_plan_open(&plan, desc, out, 1, extra, scratch, err);
    if (status != MOE_EP_OK) return status;
    moe_epi_best_take(&plan, &state, &deal);
    plan.home =
        (int32_t *)moe_epi_take(&plan.arena, desc->node_soft ? (int64_t)desc->num_layers * E : 0, sizeof(int32_t));
    memset(&groups, 0, sizeof groups);
    if (desc->node_soft || doubles) moe_epi_eplb_take(&plan.arena, &groups, E, P, G);
    if (desc->node_soft) {
        status = moe_epi_homes(&plan, &groups, err);
        if (status != MOE_EP_OK) {
            moe_epi_arena_close(&plan.arena);
            return status;
        }
    }
    moe_epi_plan_begin(&plan);
    moe_epi_state_speeds(&state, out);
    if (desc->node_soft) target = moe_epi_soft_target(&plan, &state, &deal);
    for (l = 0; l < desc->num_layers; l++) {
        const char *reason = desc->node_soft
                                 ? "each node plans its own experts, then the cheapest changes across nodes"
                                 : "replicas by load, heaviest first onto the lightest device, then swaps";
        changes = desc->node_soft ? moe_epi_soft_layer(&plan, l, &state, &deal, target, &off)
                                  : moe_epi_best_layer(&plan, l, &state, &deal);
        if (desc->coactivation) changes += moe_epi_partner_run(&plan, l, &state);
        if (doubles && moe_epi_double_layer(&plan, l, &state, &groups))
            reason = "EPLB's plan, which may double an expert on a device, is lower than any found without that";
        else
            moe_epi_state_write(&state, out, l);
        moe_epi_plan_result(&plan, l, MOE_EP_PLACE_BEST, reason, result);
        if (!result) continue;
        result[l].refinements = changes;
        result[l].off_node = result[l].total > 0.0 ? off / result[l].total : 0.0;
    }
    moe_epi_arena_close(&plan.arena);
    return MOE_EP_OK;
}
/* ==================================================================================================
 * 6 SPLIT
 * ================================================================================================== */

MOE_EP_API const char *moe_ep_split_policy_str(moe_ep_split_policy policy)
{
    switch (policy) {
    case MOE_EP_SPLIT_EVEN: return "even";
    case MOE_EP_SPLIT_ROUND_ROBIN: return "round robin";
    case MOE_EP_SPLIT_HASH: return "hash";
    case MOE_EP_SPLIT_RANDOM: return "random";
    case MOE_EP_SPLIT_LOCAL_FIRST: return "local first";
    case MOE_EP_SPLIT_LEAST_LOADED: return "least loaded";
    case MOE_EP_SPLIT_EXACT: return "exact";
    }
    return "unknown policy";
}

/* One layer of a placement as the splitters see it. */
typedef struct moe_epi_split_view {
    const moe_ep_placement *p;
    const int32_t *start, *slot, *expert; /* (E+1), (P), (P) */
    int all_active;                       /* no device is down */
} moe_epi_split_view;

static moe_ep_status moe_epi_split_open(moe_epi_split_view *v, const moe_ep_placement *p, int32_t layer,
                                        moe_ep_error *err)
{
    int32_t d;
    moe_ep_status status = moe_epi_placement_check(p, "p", err);
    if (status != MOE_EP_OK) return status;
    if (layer < 0 || layer >= p->num_layers)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "layer", "must lie in 0..L-1", -1, layer);
    v->p = p;
    v->start = p->replica_start + (int64_t)layer * (p->num_experts + 1);
    v->slot = p->replica_slot + (int64_t)layer * p->num_slots;
    v->expert = p->slot_expert + (int64_t)layer * p->num_slots;
    v->all_active = 1;
    for (d = 0; d < p->num_devices; d++) v->all_active &= !p->device_inactive[d];
    return MOE_EP_OK;
}

static int moe_epi_slot_active(const moe_epi_split_view *v, int32_t s)
{
    return !v->p->device_inactive[v->p->slot_device[s]];
}

static int32_t moe_epi_split_active(const moe_epi_split_view *v, int32_t e)
{
    int32_t i, n = 0;
    if (v->all_active) return v->start[e + 1] - v->start[e];
    for (i = v->start[e]; i < v->start[e + 1]; i++) n += moe_epi_slot_active(v, v->slot[i]);
    return n;
}

/* The slot of active replica number `number` of expert e. */
static int32_t moe_epi_active_slot(const moe_epi_split_view *v, int32_t e, int32_t number)
{
    int32_t i;
    if (v->all_active) return v->start[e] + number < v->start[e + 1] ? v->slot[v->start[e] + number] : -1;
    for (i = v->start[e]; i < v->start[e + 1]; i++)
        if (moe_epi_slot_active(v, v->slot[i]) && number-- == 0) return v->slot[i];
    return -1;
}

/* Counts of a layer: not negative, the sum fits, every expert with rows can be reached. */
static moe_ep_status moe_epi_split_counts(const moe_epi_split_view *v, const int64_t *counts, moe_ep_error *err)
{
    int64_t total = 0;
    int32_t e;
    for (e = 0; e < v->p->num_experts; e++) {
        if (counts[e] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "counts", "must not be negative", e, (double)counts[e]);
        if (counts[e] > ((int64_t)1 << 53) - total)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "counts", "the sum is above 2^53", e, (double)counts[e]);
        total += counts[e];
        if (counts[e] > 0 && moe_epi_split_active(v, e) == 0)
            return moe_epi_fail(err, MOE_EP_ERR_LOST_EXPERT, "p",
                                "an expert with rows has no copy on an active device", e, (double)counts[e]);
    }
    return MOE_EP_OK;
}

/* rows over the active replicas of e; the remainder goes to replica `first` and those after it. */
static void moe_epi_split_even(const moe_epi_split_view *v, int32_t e, int64_t rows, uint64_t first,
                               int64_t *slot_rows)
{
    int32_t n = moe_epi_split_active(v, e), i, k = 0;
    if (n == 0) return;
    for (i = v->start[e]; i < v->start[e + 1]; i++) {
        int64_t turn;
        if (!moe_epi_slot_active(v, v->slot[i])) continue;
        turn = ((int64_t)k++ - (int64_t)(first % (uint64_t)n) + n) % n;
        slot_rows[v->slot[i]] += rows / n + (turn < rows % n ? 1 : 0);
    }
}

static int32_t moe_epi_hash_replica(uint64_t key, int32_t expert, int32_t n)
{
    uint64_t z = key + 0x9e3779b97f4a7c15u * ((uint64_t)(uint32_t)expert + 1u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u; /* splitmix64's finish */
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (int32_t)(((z >> 32) * (uint64_t)(uint32_t)n) >> 32);
}

MOE_EP_API int64_t moe_ep_pick_slot(const moe_ep_placement *p, int32_t layer, int32_t expert, uint64_t key,
                                    moe_ep_error *err)
{
    moe_epi_split_view v;
    int32_t n;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_split_open(&v, p, layer, err)) != MOE_EP_OK) return status;
    if (expert < 0 || expert >= p->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "expert", "is not an expert", -1, expert);
    n = moe_epi_split_active(&v, expert);
    if (n == 0)
        return moe_epi_fail(err, MOE_EP_ERR_LOST_EXPERT, "p", "has no copy on an active device", expert, expert);
    return moe_epi_active_slot(&v, expert, moe_epi_hash_replica(key, expert, n));
}

/* Local first: the rows that start on device `from` stay there, else on its node, else go anywhere. */
static void moe_epi_split_local(const moe_epi_split_view *v, int32_t e, int32_t from, int64_t rows,
                                int64_t *slot_rows)
{
    int32_t level, i, k, n = 0, best = 3;
    for (i = v->start[e]; i < v->start[e + 1]; i++) {
        int32_t d = v->p->slot_device[v->slot[i]];
        if (v->p->device_inactive[d]) continue;
        level = d == from ? 0 : v->p->device_node[d] == v->p->device_node[from] ? 1 : 2;
        if (level < best) { best = level; n = 0; }
        n += level == best;
    }
    for (i = v->start[e], k = 0; n > 0 && i < v->start[e + 1]; i++) {
        int32_t d = v->p->slot_device[v->slot[i]], turn;
        if (v->p->device_inactive[d]) continue;
        level = d == from ? 0 : v->p->device_node[d] == v->p->device_node[from] ? 1 : 2;
        if (level != best) continue;
        turn = (k++ + from) % n; /* sources differ in who gets the remainder */
        slot_rows[v->slot[i]] += rows / n + (turn < rows % n ? 1 : 0);
    }
}

static moe_ep_status moe_epi_split_sources(const moe_epi_split_view *v, const int64_t *source, const int64_t *counts,
                                           moe_ep_error *err)
{
    int32_t e, d, E = v->p->num_experts;
    if (!source)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.source_counts", "local first needs the rows per source", -1,
                            0.0);
    for (e = 0; e < E; e++) {
        int64_t left = counts[e];
        for (d = 0; d < v->p->num_devices; d++) {
            int64_t rows = source[(int64_t)d * E + e];
            if (rows < 0)
                return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "desc.source_counts", "must not be negative",
                                    (int64_t)d * E + e, (double)rows);
            if (rows > left)
                return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.source_counts", "does not sum to counts",
                                    (int64_t)d * E + e, (double)rows);
            left -= rows;
        }
        if (left != 0)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.source_counts", "does not sum to counts", e,
                                (double)left);
    }
    return MOE_EP_OK;
}

/* ---- water-filling: shares in real numbers ------------------------------------------------------------------ */

/* One expert on several devices: its hosts are edges[first..first+n). */
typedef struct moe_epi_edge {
    int32_t device, slot;
    double share;
} moe_epi_edge;

typedef struct moe_epi_free_expert {
    int32_t first, n; /* in edges */
    double load;
} moe_epi_free_expert;

typedef struct moe_epi_water {
    const double *speed;       /* (D) or NULL = all 1                           */
    double *level;             /* (D) load / speed of the devices               */
    double *order_level;       /* (D) working space of the bound                */
    moe_epi_edge *edges;       /* (P) hosts of the experts that can be split    */
    moe_epi_free_expert *free_experts; /* (E) heavy ones first                  */
    moe_epi_item *items;       /* (E), spare (E)                                */
    moe_epi_item *spare;
    int32_t *host_start;       /* (D+1) edges by device                         */
    int32_t *host_edge;        /* (P)                                           */
    int32_t *owner;            /* (P) free expert of an edge                    */
    int32_t *from_edge;        /* (D) search tree: edge that gives              */
    int32_t *to_edge;          /* (D) and the edge that takes                   */
    int32_t *queue;            /* (D)                                           */
    int32_t num_free, D;
} moe_epi_water;

static void moe_epi_water_need(size_t *total, int32_t E, int32_t P, int32_t D)
{
    int i;
    for (i = 0; i < 2; i++) moe_epi_need(total, D, sizeof(double));
    moe_epi_need(total, P, sizeof(moe_epi_edge));
    moe_epi_need(total, E, sizeof(moe_epi_free_expert));
    for (i = 0; i < 2; i++) moe_epi_need(total, E, sizeof(moe_epi_item));
    for (i = 0; i < 2; i++) moe_epi_need(total, P, sizeof(int32_t));
    for (i = 0; i < 4; i++) moe_epi_need(total, (int64_t)D + 1, sizeof(int32_t));
}

static void moe_epi_water_take(moe_epi_arena *a, moe_epi_water *w, int32_t E, int32_t P, int32_t D)
{
    w->D = D;
    w->level = (double *)moe_epi_take(a, D, sizeof(double));
    w->order_level = (double *)moe_epi_take(a, D, sizeof(double));
    w->edges = (moe_epi_edge *)moe_epi_take(a, P, sizeof(moe_epi_edge));
    w->free_experts = (moe_epi_free_expert *)moe_epi_take(a, E, sizeof(moe_epi_free_expert));
    w->items = (moe_epi_item *)moe_epi_take(a, E, sizeof(moe_epi_item));
    w->spare = (moe_epi_item *)moe_epi_take(a, E, sizeof(moe_epi_item));
    w->host_edge = (int32_t *)moe_epi_take(a, P, sizeof(int32_t));
    w->owner = (int32_t *)moe_epi_take(a, P, sizeof(int32_t));
    w->host_start = (int32_t *)moe_epi_take(a, (int64_t)D + 1, sizeof(int32_t));
    w->from_edge = (int32_t *)moe_epi_take(a, (int64_t)D + 1, sizeof(int32_t));
    w->to_edge = (int32_t *)moe_epi_take(a, (int64_t)D + 1, sizeof(int32_t));
    w->queue = (int32_t *)moe_epi_take(a, (int64_t)D + 1, sizeof(int32_t));
}

static double moe_epi_water_speed(const moe_epi_water *w, int32_t d) { return w->speed ? w->speed[d] : 1.0; }

/* Hosts of expert e as edges from `at` on (copies on one device count once, the first slot stands for them). */
static int32_t moe_epi_water_hosts(moe_epi_water *w, const moe_epi_split_view *v, int32_t e, int32_t at)
{
    int32_t i, j, first = at;
    for (i = v->start[e]; i < v->start[e + 1]; i++) {
        int32_t d = v->p->slot_device[v->slot[i]];
        if (v->p->device_inactive[d]) continue;
        for (j = first; j < at && w->edges[j].device != d; j++) {}
        if (j < at) continue;
        w->edges[at].device = d;
        w->edges[at].slot = v->slot[i];
        w->edges[at].share = 0.0;
        at++;
    }
    return at;
}

/* Collects the experts with several active devices, heaviest first, and loads the devices with everything that has no
 * choice. */
static void moe_epi_water_open(moe_epi_water *w, const moe_epi_split_view *v, const double *loads)
{
    int32_t e, i, d, at = 0, n = 0;
    w->speed = NULL;
    for (d = 0; d < w->D; d++) {
        w->level[d] = 0.0;
        if (v->p->device_speed[d] < 1.0 || v->p->device_speed[d] > 1.0) w->speed = v->p->device_speed;
    }
    for (e = 0; e < v->p->num_experts; e++) {
        int32_t first = at;
        if (!(loads[e] > 0.0)) continue;
        if (v->start[e + 1] - v->start[e] == 1) { /* the usual case, known to be active */
            d = v->p->slot_device[v->slot[v->start[e]]];
            w->level[d] += w->speed ? loads[e] / w->speed[d] : loads[e];
            continue;
        }
        at = moe_epi_water_hosts(w, v, e, at);
        if (at - first == 1) {
            d = w->edges[first].device;
            w->level[d] += loads[e] / moe_epi_water_speed(w, d);
            at = first;
        } else if (at > first) {
            w->items[n].key = loads[e];
            w->items[n].id = first;
            w->items[n].aux = at - first;
            n++;
        }
    }
    moe_epi_sort(w->items, w->spare, n);
    for (i = 0; i < n; i++) {
        w->free_experts[i].first = w->items[i].id;
        w->free_experts[i].n = w->items[i].aux;
        w->free_experts[i].load = w->items[i].key;
    }
    w->num_free = n;
}

/* The usual expert with two hosts, equal speeds: level them as far as its load reaches. */
static double moe_epi_water_pour_two(moe_epi_water *w, const moe_epi_free_expert *x)
{
    moe_epi_edge *a = w->edges + x->first, *b = a + 1;
    double below = w->level[a->device] - a->share, other = w->level[b->device] - b->share;
    double share = 0.5 * (x->load + other - below), moved;
    if (share < 0.0) share = 0.0;
    if (share > x->load) share = x->load;
    moved = share - a->share;
    a->share = share;
    b->share = x->load - share;
    w->level[a->device] = below + share;
    w->level[b->device] = other + b->share;
    return moved < 0.0 ? -moved : moved;
}

/* Takes one expert's shares off its hosts and pours its load in again so that the lowest hosts end level.  Hosts stay
 * sorted by level between sweeps, so that insertion is nearly free.
 * Returns the largest change of a device's level. */
static double moe_epi_water_pour(moe_epi_water *w, const moe_epi_free_expert *x)
{
    moe_epi_edge *host = w->edges + x->first;
    double level, sum = x->load, width = 0.0, change = 0.0;
    int32_t i, j, m;
    if (x->n == 2 && !w->speed) return moe_epi_water_pour_two(w, x);
    for (i = 0; i < x->n; i++) w->level[host[i].device] -= host[i].share / moe_epi_water_speed(w, host[i].device);
    for (i = 1; i < x->n; i++) {
        moe_epi_edge moving = host[i];
        double key = w->level[moving.device];
        for (j = i; j > 0 && w->level[host[j - 1].device] > key; j--) host[j] = host[j - 1];
        host[j] = moving;
    }
    level = 0.0;
    for (m = 0; m < x->n; m++) {
        double speed = moe_epi_water_speed(w, host[m].device);
        if (m > 0 && !(w->level[host[m].device] < level)) break;
        sum += w->level[host[m].device] * speed;
        width += speed;
        level = sum / width;
    }
    for (i = 0; i < x->n; i++) {
        double speed = moe_epi_water_speed(w, host[i].device);
        double share = i < m ? (level - w->level[host[i].device]) * speed : 0.0, moved;
        if (share < 0.0) share = 0.0;
        moved = (share - host[i].share) / speed;
        if (moved < 0.0) moved = -moved;
        if (moved > change) change = moved;
        host[i].share = share;
        w->level[host[i].device] += share / speed;
    }
    return change;
}

/* Sweeps over the experts, until nothing moves or max_sweeps; 1 sweep is the one-pass policy. */
static void moe_epi_water_run(moe_epi_water *w, int32_t max_sweeps)
{
    int32_t sweep, i;
    for (sweep = 0; sweep < max_sweeps; sweep++) {
        double change = 0.0;
        for (i = 0; i < w->num_free; i++) {
            double c = moe_epi_water_pour(w, &w->free_experts[i]);
            if (c > change) change = c;
        }
        if (!(change > 0.0)) break;
    }
}

static double moe_epi_water_max(const moe_epi_water *w)
{
    int32_t d;
    double worst = 0.0;
    for (d = 0; d < w->D; d++)
        if (w->level[d] > worst) worst = w->level[d];
    return worst;
}

/* Edges by device, and the owner of each. */
static void moe_epi_water_index(moe_epi_water *w)
{
    int32_t i, j, d;
    for (d = 0; d <= w->D; d++) w->host_start[d] = 0;
    for (i = 0; i < w->num_free; i++)
        for (j = w->free_experts[i].first; j < w->free_experts[i].first + w->free_experts[i].n; j++) {
            w->host_start[w->edges[j].device + 1]++;
            w->owner[j] = i;
        }
    for (d = 0; d < w->D; d++) w->host_start[d + 1] += w->host_start[d];
    for (i = 0; i < w->num_free; i++)
        for (j = w->free_experts[i].first; j < w->free_experts[i].first + w->free_experts[i].n; j++)
            w->host_edge[w->host_start[w->edges[j].device]++] = j;
    for (d = w->D; d > 0; d--) w->host_start[d] = w->host_start[d - 1];
    w->host_start[0] = 0;
}

/* A lower bound on the busiest device: for the k highest devices, what cannot leave them over their speeds.  With the
 * devices in order of level this is near the optimum after a few sweeps. */
static double moe_epi_water_bound(moe_epi_water *w)
{
    double best = 0.0, load = 0.0, speed = 0.0;
    int32_t i, j, k, *order = w->queue, *place = w->to_edge;
    for (i = 0; i < w->D; i++) {
        for (j = i; j > 0 && w->level[order[j - 1]] < w->level[i]; j--) order[j] = order[j - 1];
        order[j] = i;
        w->order_level[i] = w->level[i] * moe_epi_water_speed(w, i);
    }
    for (k = 0; k < w->D; k++) place[order[k]] = k;
    for (i = 0; i < w->num_free; i++) { /* order_level becomes: load that is confined once its last host is in */
        const moe_epi_free_expert *x = &w->free_experts[i];
        int32_t last = 0;
        for (j = x->first; j < x->first + x->n; j++) {
            w->order_level[w->edges[j].device] -= w->edges[j].share;
            if (place[w->edges[j].device] > last) last = place[w->edges[j].device];
        }
        w->order_level[order[last]] += x->load;
    }
    for (k = 0; k < w->D; k++) {
        load += w->order_level[order[k]];
        speed += moe_epi_water_speed(w, order[k]);
        if (load > best * speed) best = load / speed;
    }
    return best;
}

/* Shortest chain of experts from device `full` to one below `target`; returns that device, -1 = there is none.  The
 * devices seen are queue[0..*seen). */
static int32_t moe_epi_water_path(moe_epi_water *w, int32_t full, double target, double tiny, int32_t *seen)
{
    int32_t head = 0, tail = 0, i, j, d;
    for (d = 0; d < w->D; d++) w->to_edge[d] = -1;
    w->queue[tail++] = full;
    *seen = 1;
    while (head < tail) {
        int32_t here = w->queue[head++];
        for (i = w->host_start[here]; i < w->host_start[here + 1]; i++) {
            int32_t give = w->host_edge[i];
            const moe_epi_free_expert *x = &w->free_experts[w->owner[give]];
            if (!(w->edges[give].share > tiny)) continue;
            for (j = x->first; j < x->first + x->n; j++) {
                d = w->edges[j].device;
                if (d == full || w->to_edge[d] >= 0) continue;
                w->to_edge[d] = j;
                w->from_edge[d] = give;
                if (w->level[d] < target - tiny) return d;
                w->queue[tail++] = d;
                *seen = tail;
            }
        }
    }
    return -1;
}

/* Sends as much as possible from `full` along the chain that ends at d. */
static void moe_epi_water_send(moe_epi_water *w, int32_t full, int32_t d, double target)
{
    double amount = (w->level[full] - target) * moe_epi_water_speed(w, full);
    double room = (target - w->level[d]) * moe_epi_water_speed(w, d);
    int32_t at = d;
    if (room < amount) amount = room;
    for (at = d; at != full; at = w->edges[w->from_edge[at]].device)
        if (w->edges[w->from_edge[at]].share < amount) amount = w->edges[w->from_edge[at]].share;
    for (at = d; at != full; at = w->edges[w->from_edge[at]].device) {
        w->edges[w->to_edge[at]].share += amount;
        w->edges[w->from_edge[at]].share -= amount;
    }
    w->level[full] -= amount / moe_epi_water_speed(w, full);
    w->level[d] += amount / moe_epi_water_speed(w, d);
}

/* The least busiest device: from a bound upwards, excess is sent along chains of experts; where no chain leads out,
 * the devices seen cannot be relieved and their mean is a higher bound (Dinkelbach's step).  Ends with all devices at
 * or below a proven bound. */
static void moe_epi_water_finish(moe_epi_water *w)
{
    double target, tiny;
    int32_t d, k, seen;
    moe_epi_water_index(w);
    target = moe_epi_water_bound(w);
    tiny = 1e-12 * moe_epi_water_max(w);
    for (d = 0; d < w->D; d++) {
        while (w->level[d] > target + tiny) {
            int32_t to = moe_epi_water_path(w, d, target, tiny, &seen);
            if (to >= 0) {
                moe_epi_water_send(w, d, to, target);
            } else {
                double load = 0.0, speed = 0.0;
                for (k = 0; k < seen; k++) {
                    load += w->level[w->queue[k]] * moe_epi_water_speed(w, w->queue[k]);
                    speed += moe_epi_water_speed(w, w->queue[k]);
                }
                if (!(load / speed > target)) break; /* equal up to rounding */
                target = load / speed;
            }
        }
    }
}

#define MOE_EPI_SWEEPS 3 /* before the exact finish; more only make it start nearer */

static void moe_epi_water_solve(moe_epi_water *w, int32_t max_sweeps)
{
    moe_epi_water_run(w, max_sweeps > 0 ? max_sweeps : MOE_EPI_SWEEPS);
    if (max_sweeps == 0) moe_epi_water_finish(w);
}
#undef MOE_EPI_SWEEPS

MOE_EP_API moe_ep_status moe_ep_split_shares(const moe_ep_placement *p, int32_t layer, const double *loads,
                                             int32_t max_sweeps, double *slot_loads, double *max_load,
                                             moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_split_view v;
    moe_epi_water w;
    moe_epi_arena arena;
    size_t total = 0;
    int32_t e, i, j;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_split_open(&v, p, layer, err)) != MOE_EP_OK) return status;
    if (!loads) return moe_epi_null(err, "loads");
    if (!slot_loads) return moe_epi_null(err, "slot_loads");
    if (max_sweeps < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "max_sweeps", "must not be negative", -1, max_sweeps);
    if ((status = moe_epi_loads_check(loads, 1, p->num_experts, err)) != MOE_EP_OK) return status;
    for (e = 0; e < p->num_experts; e++)
        if (loads[e] > 0.0 && moe_epi_split_active(&v, e) == 0)
            return moe_epi_fail(err, MOE_EP_ERR_LOST_EXPERT, "p", "a loaded expert has no copy on an active device",
                                e, loads[e]);
    moe_epi_water_need(&total, p->num_experts, p->num_slots, p->num_devices);
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    moe_epi_water_take(&arena, &w, p->num_experts, p->num_slots, p->num_devices);
    moe_epi_water_open(&w, &v, loads);
    moe_epi_water_solve(&w, max_sweeps);
    for (i = 0; i < p->num_slots; i++) slot_loads[i] = 0.0;
    for (e = 0; e < p->num_experts; e++) { /* experts without a choice; the others are overwritten below */
        int32_t s = loads[e] > 0.0 ? moe_epi_active_slot(&v, e, 0) : -1;
        if (s >= 0) slot_loads[s] = loads[e];
    }
    for (i = 0; i < w.num_free; i++)
        for (j = w.free_experts[i].first; j < w.free_experts[i].first + w.free_experts[i].n; j++)
            slot_loads[w.edges[j].slot] = w.edges[j].share;
    if (max_load) *max_load = moe_epi_water_max(&w);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- whole rows -------------------------------------------------------------------------------------------- */

typedef struct moe_epi_rounding {
    int64_t *device_rows; /* (D)                                          */
    int64_t *device_cap;  /* (D) rows that keep the device at the optimum */
    int64_t *edge_rows;   /* (P) rows of an edge                          */
} moe_epi_rounding;

/* Shares rounded down; what is left goes row by row to the host with the most room below the cap. */
static void moe_epi_round_shares(const moe_epi_water *w, const moe_epi_split_view *v, const int64_t *counts,
                                 moe_epi_rounding *r)
{
    int32_t e, i, j, k;
    for (i = 0; i < w->num_free; i++) {
        const moe_epi_edge *host = w->edges + w->free_experts[i].first;
        int64_t *rows = r->edge_rows + w->free_experts[i].first, left;
        int32_t n = w->free_experts[i].n;
        e = v->expert[host[0].slot];
        left = counts[e];
        for (j = 0; j < n; j++) {
            rows[j] = (int64_t)host[j].share; /* >= 0: rounds down */
            if (rows[j] > left) rows[j] = left;
            left -= rows[j];
            r->device_rows[host[j].device] += rows[j];
        }
        for (; left > 0; left--) {
            for (j = 1, k = 0; j < n; j++)
                if (r->device_cap[host[j].device] - r->device_rows[host[j].device] >
                    r->device_cap[host[k].device] - r->device_rows[host[k].device]) k = j;
            rows[k]++;
            r->device_rows[host[k].device]++;
        }
    }
}

/* Passes one row of an overfull device along a shortest chain of experts to a device with room.
 * 0 = there is none. */
static int moe_epi_round_push(moe_epi_water *w, int32_t overfull, moe_epi_rounding *r)
{
    int32_t head = 0, tail = 0, d, i, j;
    for (d = 0; d < w->D; d++) w->to_edge[d] = -1;
    w->queue[tail++] = overfull;
    while (head < tail) {
        int32_t here = w->queue[head++];
        for (i = w->host_start[here]; i < w->host_start[here + 1]; i++) {
            int32_t give = w->host_edge[i];
            const moe_epi_free_expert *x = &w->free_experts[w->owner[give]];
            if (r->edge_rows[give] == 0) continue;
            for (j = x->first; j < x->first + x->n; j++) {
                d = w->edges[j].device;
                if (d == overfull || w->to_edge[d] >= 0) continue;
                w->to_edge[d] = j;
                w->from_edge[d] = give;
                if (r->device_rows[d] < r->device_cap[d]) {
                    r->device_rows[d]++;
                    r->device_rows[overfull]--;
                    for (; d != overfull; d = w->edges[give].device) {
                        give = w->from_edge[d];
                        r->edge_rows[w->to_edge[d]]++;
                        r->edge_rows[give]--;
                    }
                    return 1;
                }
                w->queue[tail++] = d;
            }
        }
    }
    return 0;
}

/* Caps at the rounded-up optimum; by the integrality of flows whole rows reach it when all speeds are equal.  With
 * speeds a device that cannot be relieved keeps its row. */
static void moe_epi_round_caps(const moe_epi_water *w, moe_epi_rounding *r)
{
    int32_t d;
    double worst = moe_epi_water_max(w);
    for (d = 0; d < w->D; d++) {
        double rows = worst * moe_epi_water_speed(w, d);
        rows = ceil(rows - 1e-9 * (rows + 1.0));
        r->device_cap[d] = (int64_t)rows;
        r->device_rows[d] = 0;
    }
}

/* Least loaded and exact. */
static moe_ep_status moe_epi_split_water(const moe_ep_split_desc *desc, const moe_epi_split_view *v,
                                         const int64_t *counts, int64_t *slot_rows, moe_ep_scratch *scratch,
                                         moe_ep_error *err)
{
    const moe_ep_placement *p = v->p;
    moe_epi_water w;
    moe_epi_rounding r;
    moe_epi_arena arena;
    size_t total = 0;
    double *loads;
    int32_t e, i, j, exact = desc->policy == MOE_EP_SPLIT_EXACT;
    moe_ep_status status;
    moe_epi_water_need(&total, p->num_experts, p->num_slots, p->num_devices);
    for (i = 0; i < 2; i++) moe_epi_need(&total, p->num_devices, sizeof(int64_t));
    moe_epi_need(&total, p->num_slots, sizeof(int64_t));
    moe_epi_need(&total, p->num_experts, sizeof(double));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    moe_epi_water_take(&arena, &w, p->num_experts, p->num_slots, p->num_devices);
    r.device_rows = (int64_t *)moe_epi_take(&arena, p->num_devices, sizeof(int64_t));
    r.device_cap = (int64_t *)moe_epi_take(&arena, p->num_devices, sizeof(int64_t));
    r.edge_rows = (int64_t *)moe_epi_take(&arena, p->num_slots, sizeof(int64_t));
    loads = (double *)moe_epi_take(&arena, p->num_experts, sizeof(double));
    for (e = 0; e < p->num_experts; e++) loads[e] = (double)counts[e];
    moe_epi_water_open(&w, v, loads);
    moe_epi_water_solve(&w, exact ? desc->max_sweeps : 1);
    moe_epi_round_caps(&w, &r);
    for (i = 0; i < p->num_slots; i++) slot_rows[i] = 0;
    for (e = 0; e < p->num_experts; e++) { /* all rows on the first active replica; free experts are rewritten */
        int32_t s = counts[e] > 0 ? moe_epi_active_slot(v, e, 0) : -1;
        if (s >= 0) slot_rows[s] = counts[e];
    }
    for (i = 0; i < w.num_free; i++)
        for (j = 0; j < w.free_experts[i].n; j++) slot_rows[w.edges[w.free_experts[i].first + j].slot] = 0;
    for (i = 0; i < p->num_slots; i++) r.device_rows[p->slot_device[i]] += slot_rows[i];
    moe_epi_round_shares(&w, v, counts, &r);
    if (exact && desc->max_sweeps > 0) moe_epi_water_index(&w);
    for (i = 0; exact && i < w.D; i++)
        while (r.device_rows[i] > r.device_cap[i] && moe_epi_round_push(&w, i, &r)) {}
    for (i = 0; i < w.num_free; i++)
        for (j = w.free_experts[i].first; j < w.free_experts[i].first + w.free_experts[i].n; j++)
            slot_rows[w.edges[j].slot] = r.edge_rows[j];
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* The policies that decide expert by expert. */
static void moe_epi_split_simple(const moe_ep_split_desc *desc, const moe_epi_split_view *v, const int64_t *counts,
                                 int64_t *slot_rows)
{
    moe_ep_rng rng = moe_ep_rng_seed(desc->seed);
    int32_t e, d, n, E = v->p->num_experts;
    int64_t i;
    for (i = 0; i < v->p->num_slots; i++) slot_rows[i] = 0;
    for (e = 0; e < E; e++) {
        if (counts[e] == 0) continue;
        n = moe_epi_split_active(v, e);
        if (desc->policy == MOE_EP_SPLIT_EVEN) {
            moe_epi_split_even(v, e, counts[e], 0, slot_rows);
        } else if (desc->policy == MOE_EP_SPLIT_ROUND_ROBIN) {
            moe_epi_split_even(v, e, counts[e], desc->seed % (uint64_t)n + (uint64_t)(uint32_t)e, slot_rows);
        } else if (desc->policy == MOE_EP_SPLIT_LOCAL_FIRST) {
            for (d = 0; d < v->p->num_devices; d++)
                moe_epi_split_local(v, e, d, desc->source_counts[(int64_t)d * E + e], slot_rows);
        } else {
            for (i = 0; i < counts[e]; i++) {
                int32_t replica = desc->policy == MOE_EP_SPLIT_HASH
                                      ? moe_epi_hash_replica(desc->seed + (uint64_t)i, e, n)
                                      : (int32_t)moe_ep_rng_below(&rng, (uint64_t)n);
                slot_rows[moe_epi_active_slot(v, e, replica)]++;
            }
        }
    }
}

MOE_EP_API moe_ep_status moe_ep_split(const moe_ep_split_desc *desc, const moe_ep_placement *p, int32_t layer,
                                      const int64_t *counts, int64_t *slot_rows, moe_ep_scratch *scratch,
                                      moe_ep_error *err)
{
    moe_epi_split_view v;
    moe_ep_status status;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if ((status = moe_epi_split_open(&v, p, layer, err)) != MOE_EP_OK) return status;
    if (!counts) return moe_epi_null(err, "counts");
    if (!slot_rows) return moe_epi_null(err, "slot_rows");
    if ((int)desc->policy < (int)MOE_EP_SPLIT_EVEN || (int)desc->policy > (int)MOE_EP_SPLIT_EXACT)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.policy", "is not a policy", -1, (double)desc->policy);
    if (desc->max_sweeps < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.max_sweeps", "must not be negative", -1, desc->max_sweeps);
    if ((status = moe_epi_split_counts(&v, counts, err)) != MOE_EP_OK) return status;
    if (desc->policy == MOE_EP_SPLIT_LEAST_LOADED || desc->policy == MOE_EP_SPLIT_EXACT)
        return moe_epi_split_water(desc, &v, counts, slot_rows, scratch, err);
    if (desc->policy == MOE_EP_SPLIT_LOCAL_FIRST) {
        status = moe_epi_split_sources(&v, desc->source_counts, counts, err);
        if (status != MOE_EP_OK) return status;
    }
    moe_epi_split_simple(desc, &v, counts, slot_rows);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_device_rows(const moe_ep_placement *p, const int64_t *slot_rows, int64_t *device_rows,
                                            moe_ep_error *err)
{
    int32_t s, d;
    int64_t total = 0;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_placement_check(p, "p", err)) != MOE_EP_OK) return status;
    if (!slot_rows) return moe_epi_null(err, "slot_rows");
    if (!device_rows) return moe_epi_null(err, "device_rows");
    for (s = 0; s < p->num_slots; s++) {
        if (slot_rows[s] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "slot_rows", "must not be negative", s,
                                (double)slot_rows[s]);
        if (slot_rows[s] > INT64_MAX - total)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "slot_rows", "the sum does not fit", s,
                                (double)slot_rows[s]);
        total += slot_rows[s];
    }
    for (d = 0; d < p->num_devices; d++) {
        device_rows[d] = 0;
        for (s = p->slot_start[d]; s < p->slot_start[d + 1]; s++) device_rows[d] += slot_rows[s];
    }
    return MOE_EP_OK;
}

/* ---- rows to slots --------------------------------------------------------------------------- */

typedef struct moe_epi_assign {
    int64_t *left;   /* (P) quota still open  */
    int64_t *rows;   /* (E) rows per expert   */
    int32_t *cursor; /* (E) replica in use    */
} moe_epi_assign;

/* Checks ids and quotas and fills the working arrays. */
static moe_ep_status moe_epi_assign_check(const moe_epi_split_view *v, const int32_t *ids, int64_t n,
                                          const int64_t *slot_rows, moe_epi_assign *w, moe_ep_error *err)
{
    int32_t e, s, i, E = v->p->num_experts;
    int64_t t;
    for (e = 0; e < E; e++) {
        w->rows[e] = 0;
        w->cursor[e] = v->start[e];
    }
    for (t = 0; t < n; t++) {
        if (ids[t] < -1 || ids[t] >= E)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "ids", "is not an expert", t, ids[t]);
        if (ids[t] >= 0) w->rows[ids[t]]++;
    }
    for (s = 0; s < v->p->num_slots; s++) {
        if (slot_rows[s] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "slot_rows", "must not be negative", s,
                                (double)slot_rows[s]);
        if (slot_rows[s] > n || (slot_rows[s] > 0 && v->expert[s] < 0))
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "slot_rows", "is a quota nobody can fill", s,
                                (double)slot_rows[s]);
        w->left[s] = slot_rows[s];
    }
    for (e = 0; e < E; e++) {
        int64_t open = w->rows[e];
        for (i = v->start[e]; i < v->start[e + 1]; i++) open -= slot_rows[v->slot[i]];
        if (open != 0)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "slot_rows", "does not sum to the rows of the expert", e,
                                (double)w->rows[e]);
    }
    return MOE_EP_OK;
}

/* Any replica with an open quota, in replica order. */
static int32_t moe_epi_assign_next(const moe_epi_split_view *v, moe_epi_assign *w, int32_t e)
{
    while (w->left[v->slot[w->cursor[e]]] == 0) w->cursor[e]++;
    w->left[v->slot[w->cursor[e]]]--;
    return v->slot[w->cursor[e]];
}

/* A replica on the device, or at least on the node, with an open quota; -1 = none. */
static int32_t moe_epi_assign_near(const moe_epi_split_view *v, moe_epi_assign *w, int32_t e, int32_t from,
                                   int whole_node)
{
    int32_t i;
    for (i = v->start[e]; i < v->start[e + 1]; i++) {
        int32_t s = v->slot[i], d = v->p->slot_device[s];
        if (w->left[s] == 0) continue;
        if (whole_node ? v->p->device_node[d] != v->p->device_node[from] : d != from) continue;
        w->left[s]--;
        return s;
    }
    return -1;
}

/* Device first for all rows, then node, then the rest: a near row never loses its place to a far one. */
static void moe_epi_assign_local(const moe_epi_split_view *v, moe_epi_assign *w, const int32_t *ids, int64_t n,
                                 const int32_t *source, int32_t *slot_ids)
{
    int64_t t;
    int level;
    for (t = 0; t < n; t++) slot_ids[t] = -1;
    for (level = 0; level < 3; level++)
        for (t = 0; t < n; t++) {
            if (ids[t] < 0 || slot_ids[t] >= 0) continue;
            slot_ids[t] = level < 2 ? moe_epi_assign_near(v, w, ids[t], source[t], level)
                                    : moe_epi_assign_next(v, w, ids[t]);
        }
}

static moe_ep_status moe_epi_assign_slots(const moe_ep_placement *p, int32_t layer, const int32_t *ids, int64_t n,
                                          const int32_t *source, int local, const int64_t *slot_rows,
                                          int32_t *slot_ids, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_split_view v;
    moe_epi_assign w;
    moe_epi_arena arena;
    size_t total = 0;
    int64_t t;
    moe_ep_status status;
    moe_epi_ok(err);
    if ((status = moe_epi_split_open(&v, p, layer, err)) != MOE_EP_OK) return status;
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must not be negative", -1, (double)n);
    if (n > 0 && !ids) return moe_epi_null(err, "ids");
    if (n > 0 && local && !source) return moe_epi_null(err, "source_device");
    if (!slot_rows) return moe_epi_null(err, "slot_rows");
    if (n > 0 && !slot_ids) return moe_epi_null(err, "slot_ids");
    for (t = 0; local && t < n; t++)
        if (source[t] < 0 || source[t] >= p->num_devices)
            return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, "source_device", "is not a device", t, source[t]);
    moe_epi_need(&total, p->num_slots, sizeof(int64_t));
    moe_epi_need(&total, p->num_experts, sizeof(int64_t));
    moe_epi_need(&total, p->num_experts, sizeof(int32_t));
    if ((status = moe_epi_arena_open(&arena, scratch, total, err)) != MOE_EP_OK) return status;
    w.left = (int64_t *)moe_epi_take(&arena, p->num_slots, sizeof(int64_t));
    w.rows = (int64_t *)moe_epi_take(&arena, p->num_experts, sizeof(int64_t));
    w.cursor = (int32_t *)moe_epi_take(&arena, p->num_experts, sizeof(int32_t));
    status = moe_epi_assign_check(&v, ids, n, slot_rows, &w, err);
    if (status == MOE_EP_OK && local) moe_epi_assign_local(&v, &w, ids, n, source, slot_ids);
    if (status == MOE_EP_OK && !local)
        for (t = 0; t < n; t++) slot_ids[t] = ids[t] < 0 ? -1 : moe_epi_assign_next(&v, &w, ids[t]);
    moe_epi_arena_close(&arena);
    return status;
}

MOE_EP_API moe_ep_status moe_ep_assign_slots(const moe_ep_placement *p, int32_t layer, const int32_t *ids, int64_t n,
                                             const int64_t *slot_rows, int32_t *slot_ids, moe_ep_scratch *scratch,
                                             moe_ep_error *err)
{
    return moe_epi_assign_slots(p, layer, ids, n, NULL, 0, slot_rows, slot_ids, scratch, err);
}

MOE_EP_API moe_ep_status moe_ep_assign_slots_local(const moe_ep_placement *p, int32_t layer, const int32_t *ids,
                                                   int64_t n, const int32_t *source_device, const int64_t *slot_rows,
                                                   int32_t *slot_ids, moe_ep_scratch *scratch, moe_ep_error *err)
{
    return moe_epi_assign_slots(p, layer, ids, n, source_device, 1, slot_rows, slot_ids, scratch, err);
}
/* ==================================================================================================
 * 7 DISPATCH
 * ================================================================================================== */

/* ---- the counting sort under everything ------------------------------------------------------------- */

/* Positions are int32_t, so that n may be 2^31 at most. */
static moe_ep_status moe_epi_dp_check_n(int64_t n, int64_t most, const char *arg, moe_ep_error *err)
{
    if (n < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "must not be negative", -1, (double)n);
    if (n > most) return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg, "positions do not fit int32_t", -1, (double)n);
    return MOE_EP_OK;
}

/* Sizes and pointers of ids (n) over E experts; the values are checked by whoever reads them first. */
static moe_ep_status moe_epi_dp_check(const int32_t *ids, int64_t n, int32_t E, moe_ep_error *err)
{
    moe_ep_status status = moe_epi_dp_check_n(n, (int64_t)1 << 31, "n", err);
    if (status != MOE_EP_OK) return status;
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (n > 0 && !ids) return moe_epi_null(err, "ids");
    return MOE_EP_OK;
}

/* Counts (E) become starts; returns their sum. */
static int64_t moe_epi_dp_starts(int64_t *counts, int32_t E)
{
    int64_t sum = 0, count;
    int32_t e;
    for (e = 0; e < E; e++) {
        count = counts[e];
        counts[e] = sum;
        sum += count;
    }
    return sum;
}

/* Gives every assignment the next row of its expert; cursor (E) moves from starts to ends.  Either map may be
 * NULL. */
static void moe_epi_dp_place(const int32_t *ids, int64_t n, int64_t *cursor, int32_t *row_to_flat,
                             int32_t *flat_to_row)
{
    int64_t i, row;
    if (row_to_flat && flat_to_row) { /* the common case without its branches */
        for (i = 0; i < n; i++) {
            if (ids[i] < 0) {
                flat_to_row[i] = -1;
                continue;
            }
            row = cursor[ids[i]]++;
            row_to_flat[row] = (int32_t)i;
            flat_to_row[i] = (int32_t)row;
        }
        return;
    }
    for (i = 0; i < n; i++) {
        row = ids[i] >= 0 ? cursor[ids[i]]++ : -1;
        if (row_to_flat && row >= 0) row_to_flat[row] = (int32_t)i;
        if (flat_to_row) flat_to_row[i] = (int32_t)row;
    }
}

/* Ends (E) back to offsets (E+1); only for groups without padding, where an end is the next start. */
static void moe_epi_dp_offsets(int64_t *ends, int32_t E)
{
    memmove(ends + 1, ends, (size_t)E * sizeof *ends);
    ends[0] = 0;
}

static void moe_epi_dp_fill(int32_t *p, int64_t begin, int64_t end, int32_t value)
{
    int64_t i;
    for (i = begin; i < end; i++) p[i] = value;
}

/* v rounded up to a multiple; 0 when that does not fit. */
static int moe_epi_dp_round_up(int64_t v, int64_t multiple, int64_t *out)
{
    int64_t rest = v % multiple;
    if (rest > 0 && v > INT64_MAX - (multiple - rest)) return 0;
    *out = rest > 0 ? v + (multiple - rest) : v;
    return 1;
}

MOE_EP_API moe_ep_status moe_ep_permute(const int32_t *ids, int64_t n, int32_t E, int64_t *offsets,
                                        int32_t *row_to_flat, int32_t *flat_to_row, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t skipped = 0, rows;
    moe_epi_ok(err);
    status = moe_epi_dp_check(ids, n, E, err);
    if (status != MOE_EP_OK) return status;
    if (!offsets) return moe_epi_null(err, "offsets");
    status = moe_epi_ld_count(ids, n, E, offsets, &skipped, "ids", err);
    if (status != MOE_EP_OK) return status;
    rows = moe_epi_dp_starts(offsets, E);
    moe_epi_dp_place(ids, n, offsets, row_to_flat, flat_to_row);
    moe_epi_dp_offsets(offsets, E);
    if (row_to_flat) moe_epi_dp_fill(row_to_flat, rows, n, -1);
    return MOE_EP_OK;
}

/* Starts of padded groups; the last one is the total.  counts and offsets may be the same array. */
static int moe_epi_dp_pad(const int64_t *counts, int32_t n, int64_t multiple, int64_t least, int64_t *total,
                          int64_t *offsets)
{
    int64_t sum = 0, padded;
    int32_t i;
    for (i = 0; i < n; i++) {
        if (!moe_epi_dp_round_up(counts[i] > least ? counts[i] : least, multiple, &padded)) return 0;
        if (padded > INT64_MAX - sum) return 0;
        if (offsets) offsets[i] = sum;
        sum += padded;
    }
    if (offsets) offsets[n] = sum;
    *total = sum;
    return 1;
}

MOE_EP_API moe_ep_status moe_ep_padded_offsets(const int64_t *counts, int32_t n, int64_t multiple, int64_t min_units,
                                               int64_t *offsets, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t least, total = 0;
    moe_epi_ok(err);
    if (n < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must be at least 1", -1, (double)n);
    if (multiple < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "multiple", "must be at least 1", -1,
                                          (double)multiple);
    if (min_units < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "min_units", "must not be negative", -1, (double)min_units);
    status = moe_epi_ld_check_counts(counts, n, "counts", NULL, err);
    if (status != MOE_EP_OK) return status;
    if (!offsets) return moe_epi_null(err, "offsets");
    if (!moe_epi_mul(multiple, min_units, &least) || !moe_epi_dp_pad(counts, n, multiple, least, &total, NULL))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "multiple", "the padded sum does not fit", -1,
                            (double)multiple);
    (void)moe_epi_dp_pad(counts, n, multiple, least, &total, offsets);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_send_counts(const int32_t *ids, int64_t n, int32_t E, const int32_t *device_of_expert,
                                            int32_t D, int64_t *counts, int64_t *skipped, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t i, none = 0;
    moe_epi_ok(err);
    status = moe_epi_ld_check_ids(ids, n, E, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "must be at least 1", -1, (double)D);
    if (!counts) return moe_epi_null(err, "counts");
    if (device_of_expert) {
        status = moe_epi_ld_check_devices(device_of_expert, E, D, "device_of_expert", err);
        if (status != MOE_EP_OK) return status;
    }
    memset(counts, 0, (size_t)D * sizeof *counts);
    for (i = 0; i < n; i++) {
        if (ids[i] >= 0) counts[device_of_expert ? device_of_expert[ids[i]] : ids[i] % D]++;
        else none++;
    }
    if (skipped) *skipped = none;
    return MOE_EP_OK;
}

/* ---- rows out and back ------------------------------------------------------------------------------ */

/* A (rows,H) array of floats can be addressed. */
static moe_ep_status moe_epi_dp_check_rows(int64_t rows, int32_t H, const char *arg, moe_ep_error *err)
{
    int64_t cells;
    if (rows < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "must not be negative", -1, (double)rows);
    if (H < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "H", "must be at least 1", -1, (double)H);
    if (!moe_epi_mul(rows, H, &cells) || (uint64_t)cells > (uint64_t)(SIZE_MAX / sizeof(float)))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg, "rows times H does not fit", -1, (double)rows);
    return MOE_EP_OK;
}

/* Indices (n) lie in -1..limit-1. */
static moe_ep_status moe_epi_dp_check_index(const int32_t *index, int64_t n, int64_t limit, const char *arg,
                                            moe_ep_error *err)
{
    int64_t i;
    for (i = 0; i < n; i++)
        if (index[i] < -1 || index[i] >= limit)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, arg, "points outside the rows", i, (double)index[i]);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_gather(const float *x, int64_t T, int32_t H, int32_t K, const int32_t *row_to_flat,
                                       int64_t num_rows, float *rows, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t n = 0, r;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_rows(T, H, "T", err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_rows(num_rows, H, "num_rows", err);
    if (status != MOE_EP_OK || num_rows == 0) return status;
    if (!row_to_flat) return moe_epi_null(err, "row_to_flat");
    if (!rows) return moe_epi_null(err, "rows");
    status = moe_epi_dp_check_index(row_to_flat, num_rows, n, "row_to_flat", err);
    if (status != MOE_EP_OK) return status;
    if (!x && T > 0) return moe_epi_null(err, "x");
    for (r = 0; r < num_rows; r++) {
        float *row = rows + r * H;
        if (row_to_flat[r] >= 0) memcpy(row, x + (int64_t)(row_to_flat[r] / K) * H, (size_t)H * sizeof *row);
        else memset(row, 0, (size_t)H * sizeof *row);
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_combine(const float *rows, int64_t num_rows, const int32_t *flat_to_row,
                                        const float *weights, int64_t T, int32_t K, int32_t H, float *out,
                                        moe_ep_error *err)
{
    moe_ep_status status;
    int64_t n = 0, t, h;
    int32_t k;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_rows(T, H, "T", err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_rows(num_rows, H, "num_rows", err);
    if (status != MOE_EP_OK || T == 0) return status;
    if (!flat_to_row) return moe_epi_null(err, "flat_to_row");
    if (!out) return moe_epi_null(err, "out");
    if (!rows && num_rows > 0) return moe_epi_null(err, "rows");
    status = moe_epi_dp_check_index(flat_to_row, n, num_rows, "flat_to_row", err);
    if (status != MOE_EP_OK) return status;
    memset(out, 0, (size_t)T * (size_t)H * sizeof *out);
    for (t = 0; t < T; t++)
        for (k = 0; k < K; k++) {
            const int64_t flat = t * K + k;
            const float weight = weights ? weights[flat] : 1.0f;
            const float *row;
            if (flat_to_row[flat] < 0) continue;
            row = rows + (int64_t)flat_to_row[flat] * H;
            for (h = 0; h < H; h++) out[t * H + h] += weight * row[h];
        }
    return MOE_EP_OK;
}

/* ---- vLLM ------------------------------------------------------------------------------------------- */

static moe_ep_status moe_epi_dp_check_align(const moe_ep_align_desc *desc, int64_t n, moe_ep_error *err)
{
    int32_t e;
    if (!desc) return moe_epi_null(err, "desc");
    if (desc->num_experts < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_experts", "must be at least 1", -1,
                            (double)desc->num_experts);
    if (desc->block_size < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.block_size", "must be at least 1", -1,
                            (double)desc->block_size);
    if (desc->expert_map)
        for (e = 0; e < desc->num_experts; e++)
            if (desc->expert_map[e] < -1 || desc->expert_map[e] >= desc->num_experts)
                return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.expert_map", "must be -1 or a local expert", e,
                                    (double)desc->expert_map[e]);
    return moe_epi_dp_check_n(n, INT32_MAX, "n", err);
}

/* Buffer lengths of checked arguments; 0 when they do not fit. */
static int moe_epi_dp_align_len(const moe_ep_align_desc *desc, int64_t n, int64_t *sorted_len, int64_t *num_blocks)
{
    const int64_t block = desc->block_size;
    int64_t bound = n + (int64_t)desc->num_experts * (block - 1), few, rounded;
    if (!moe_epi_dp_round_up(bound, block, &rounded)) return 0;
    if (desc->pad_sorted_ids) bound = rounded;
    few = n * block; /* every assignment alone in its block */
    if (!desc->old_buffer && n < desc->num_experts && few < bound) bound = few;
    *sorted_len = bound;
    *num_blocks = bound / block + (bound % block > 0);
    return 1;
}

MOE_EP_API moe_ep_status moe_ep_align_sizes(const moe_ep_align_desc *desc, int64_t n, int64_t *sorted_len,
                                            int64_t *num_blocks, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t len = 0, blocks = 0;
    moe_epi_ok(err);
    status = moe_epi_dp_check_align(desc, n, err);
    if (status != MOE_EP_OK) return status;
    if (!sorted_len) return moe_epi_null(err, "sorted_len");
    if (!num_blocks) return moe_epi_null(err, "num_blocks");
    if (!moe_epi_dp_align_len(desc, n, &len, &blocks))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc", "the padded length does not fit", -1, (double)n);
    *sorted_len = len;
    *num_blocks = blocks;
    return MOE_EP_OK;
}

/* Group of an id: the expert, or its local number when other ranks' experts are left out; -1 = no row. */
static int32_t moe_epi_dp_align_key(const moe_ep_align_desc *desc, int32_t id)
{
    if (id < 0 || id >= desc->num_experts) return -1;
    return desc->expert_map && desc->ignore_invalid ? desc->expert_map[id] : id;
}

/* counts (E+1) of the groups -> blocks' experts and sorted ids; returns the rows in use. */
static int64_t moe_epi_dp_align_write(const moe_ep_align_desc *desc, const int32_t *ids, int64_t n, int64_t *counts,
                                      int64_t sorted_len, int64_t num_blocks, int32_t *sorted_ids,
                                      int32_t *block_experts)
{
    const int mapped = desc->expert_map && !desc->ignore_invalid;
    int64_t i, total = 0, block, last;
    int32_t e, key;
    (void)moe_epi_dp_pad(counts, desc->num_experts, desc->block_size, 0, &total, counts);
    moe_epi_dp_fill(sorted_ids, 0, sorted_len, (int32_t)n);
    moe_epi_dp_fill(block_experts, 0, num_blocks, desc->old_buffer ? 0 : -1);
    for (e = 0; e < desc->num_experts; e++) {
        last = counts[e + 1] / desc->block_size;
        for (block = counts[e] / desc->block_size; block < last; block++)
            block_experts[block] = mapped ? desc->expert_map[e] : e;
    }
    for (i = 0; i < n; i++) {
        key = moe_epi_dp_align_key(desc, ids[i]);
        if (key >= 0) sorted_ids[counts[key]++] = (int32_t)i;
    }
    return total;
}

MOE_EP_API moe_ep_status moe_ep_align_block(const moe_ep_align_desc *desc, const int32_t *ids, int64_t n,
                                            int32_t *sorted_ids, int32_t *block_experts, int64_t *padded_rows,
                                            moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_arena arena;
    int64_t sorted_len = 0, num_blocks = 0, i, *counts;
    size_t total = 0;
    int32_t key;
    moe_epi_ok(err);
    status = moe_epi_dp_check_align(desc, n, err);
    if (status != MOE_EP_OK) return status;
    if (n > 0 && !ids) return moe_epi_null(err, "ids");
    if (!desc->skip_foreign) status = moe_epi_ld_check_ids(ids, n, desc->num_experts, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (!moe_epi_dp_align_len(desc, n, &sorted_len, &num_blocks) || sorted_len > INT32_MAX)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc", "the padded length does not fit int32_t", -1,
                            (double)n);
    if (!sorted_ids && sorted_len > 0) return moe_epi_null(err, "sorted_ids");
    if (!block_experts && num_blocks > 0) return moe_epi_null(err, "block_experts");
    if (!padded_rows) return moe_epi_null(err, "padded_rows");
    moe_epi_need(&total, (int64_t)desc->num_experts + 1, sizeof *counts);
    status = moe_epi_arena_open(&arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    counts = (int64_t *)moe_epi_take(&arena, (int64_t)desc->num_experts + 1, sizeof *counts);
    memset(counts, 0, ((size_t)desc->num_experts + 1u) * sizeof *counts);
    for (i = 0; i < n; i++) {
        key = moe_epi_dp_align_key(desc, ids[i]);
        if (key >= 0) counts[key]++;
    }
    *padded_rows = moe_epi_dp_align_write(desc, ids, n, counts, sorted_len, num_blocks, sorted_ids, block_experts);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_align_batched(const int64_t *counts, int32_t E, int32_t max_tokens,
                                              int32_t block_size,
                                              int32_t *sorted_ids, int32_t *block_experts, int64_t *padded_rows,
                                              moe_ep_error *err)
{
    moe_ep_status status;
    int64_t room = 0, len = 0, row = 0, i;
    int32_t e, filler;
    moe_epi_ok(err);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (max_tokens < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "max_tokens", "must be at least 1", -1,
                                            (double)max_tokens);
    if (block_size < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "block_size", "must be at least 1", -1,
                                            (double)block_size);
    status = moe_epi_ld_check_counts(counts, E, "counts", NULL, err);
    if (status != MOE_EP_OK) return status;
    for (e = 0; e < E; e++)
        if (counts[e] > max_tokens)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "counts", "more than max_tokens", e, (double)counts[e]);
    if (!moe_epi_dp_round_up(max_tokens, block_size, &room) || !moe_epi_mul(room, E, &len) || len > INT32_MAX)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "E", "positions do not fit int32_t", -1, (double)E);
    if (!sorted_ids) return moe_epi_null(err, "sorted_ids");
    if (!block_experts) return moe_epi_null(err, "block_experts");
    if (!padded_rows) return moe_epi_null(err, "padded_rows");
    filler = (int32_t)((int64_t)E * max_tokens);
    moe_epi_dp_fill(sorted_ids, 0, len, filler);
    moe_epi_dp_fill(block_experts, 0, len / block_size, -1);
    for (e = 0; e < E; e++)
        for (i = 0; i < counts[e]; i++) {
            if (i % block_size == 0) {
                row = i > 0 ? row : row + (block_size - row % block_size) % block_size;
                block_experts[row / block_size] = e;
            }
            sorted_ids[row++] = (int32_t)((int64_t)e * max_tokens + i);
        }
    *padded_rows = row + (block_size - row % block_size) % block_size;
    return MOE_EP_OK;
}

/* Sort key of each expert on one rank: its local number, or behind all local ones in the order of ids. */
static void moe_epi_dp_local_keys(int32_t E, int32_t first_expert, int32_t num_local, const int32_t *expert_map,
                                  int32_t *keys)
{
    int32_t e;
    for (e = 0; e < E; e++) {
        int32_t local = e >= first_expert && e - first_expert < num_local ? e - first_expert : -1;
        if (expert_map) local = expert_map[e];
        keys[e] = local >= 0 ? local : num_local + e;
    }
}

static moe_ep_status moe_epi_dp_check_local(int32_t E, int32_t first_expert, int32_t num_local,
                                            const int32_t *expert_map,
                                            moe_ep_error *err)
{
    int32_t e;
    if (num_local < 1 || num_local > E)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_local", "must lie in 1..E", -1, (double)num_local);
    if (!expert_map && (first_expert < 0 || first_expert > E - num_local))
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "first_expert", "the local experts are not all in 0..E-1", -1,
                            (double)first_expert);
    for (e = 0; expert_map && e < E; e++)
        if (expert_map[e] < -1 || expert_map[e] >= num_local)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "expert_map", "must be -1 or a local expert", e,
                                (double)expert_map[e]);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_vllm_permute(const int32_t *ids, int64_t n, int32_t E, int32_t first_expert,
                                             int32_t num_local, const int32_t *expert_map, int64_t *offsets,
                                             int32_t *permuted_idx, int32_t *inv_permuted_idx,
                                             moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_arena arena;
    int64_t groups, i, row, last, *cursor;
    int32_t *keys;
    size_t total = 0;
    moe_epi_ok(err);
    status = moe_epi_dp_check(ids, n, E, err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_n(n, INT32_MAX, "n", err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_local(E, first_expert, num_local, expert_map, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_ids(ids, n, E, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (!offsets) return moe_epi_null(err, "offsets");
    if (n > 0 && !permuted_idx) return moe_epi_null(err, "permuted_idx");
    if (n > 0 && !inv_permuted_idx) return moe_epi_null(err, "inv_permuted_idx");
    groups = (int64_t)num_local + E + 1; /* local, foreign, none */
    moe_epi_need(&total, E, sizeof *keys);
    moe_epi_need(&total, groups + 1, sizeof *cursor);
    status = moe_epi_arena_open(&arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    keys = (int32_t *)moe_epi_take(&arena, E, sizeof *keys);
    cursor = (int64_t *)moe_epi_take(&arena, groups + 1, sizeof *cursor);
    moe_epi_dp_local_keys(E, first_expert, num_local, expert_map, keys);
    memset(cursor, 0, (size_t)(groups + 1) * sizeof *cursor);
    for (i = 0; i < n; i++) cursor[1 + (ids[i] >= 0 ? keys[ids[i]] : groups - 1)]++;
    for (i = 0; i < groups; i++) cursor[i + 1] += cursor[i]; /* cursor[g] = start of group g */
    memcpy(offsets, cursor, ((size_t)num_local + 1u) * sizeof *offsets);
    last = offsets[num_local];
    moe_epi_dp_fill(permuted_idx, last, n, (int32_t)n);
    for (i = 0; i < n; i++) {
        row = cursor[ids[i] >= 0 ? keys[ids[i]] : groups - 1]++;
        inv_permuted_idx[i] = (int32_t)row;
        if (row < last) permuted_idx[row] = (int32_t)i;
    }
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- SGLang ----------------------------------------------------------------------------------------- */

/* keep: the -1 entries stay as rows in front; else their rows are negative and nothing of them remains. */
static moe_ep_status moe_epi_dp_sglang(const int32_t *ids, int64_t n, int32_t E, int keep, int32_t *sorted_ids,
                                       int32_t *src2dst, int64_t *seg_indptr, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t i, none = 0, shift, next;
    int32_t e;
    status = moe_epi_dp_check(ids, n, E, err);
    if (status != MOE_EP_OK) return status;
    if (n > 0 && !sorted_ids) return moe_epi_null(err, "sorted_ids");
    if (n > 0 && !src2dst) return moe_epi_null(err, "src2dst");
    if (!seg_indptr) return moe_epi_null(err, "seg_indptr");
    status = moe_epi_ld_count(ids, n, E, seg_indptr, &none, "ids", err);
    if (status != MOE_EP_OK) return status;
    (void)moe_epi_dp_starts(seg_indptr, E);
    moe_epi_dp_place(ids, n, seg_indptr, NULL, src2dst);
    moe_epi_dp_offsets(seg_indptr, E);
    shift = keep ? none : 0;
    next = shift - none; /* row of the first -1 */
    for (i = 0; i < n; i++) src2dst[i] = (int32_t)(ids[i] >= 0 ? src2dst[i] + shift : next++);
    moe_epi_dp_fill(sorted_ids, 0, shift, -1);
    for (e = 0; e < E; e++) moe_epi_dp_fill(sorted_ids, seg_indptr[e] + shift, seg_indptr[e + 1] + shift, e);
    moe_epi_dp_fill(sorted_ids, seg_indptr[E] + shift, n, -1);
    for (e = 0; e < E; e++) seg_indptr[e + 1] += shift;
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_sglang_preprocess(const int32_t *ids, int64_t n, int32_t E, int32_t *sorted_ids,
                                                  int32_t *src2dst, int64_t *seg_indptr, moe_ep_error *err)
{
    moe_epi_ok(err);
    return moe_epi_dp_sglang(ids, n, E, 0, sorted_ids, src2dst, seg_indptr, err);
}

MOE_EP_API moe_ep_status moe_ep_sglang_preprocess_keep(const int32_t *ids, int64_t n, int32_t E, int32_t *sorted_ids,
                                                       int32_t *src2dst, int64_t *seg_indptr, moe_ep_error *err)
{
    moe_epi_ok(err);
    return moe_epi_dp_sglang(ids, n, E, 1, sorted_ids, src2dst, seg_indptr, err);
}

/* ---- Megatron-LM ------------------------------------------------------------------------------------ */

/* A (T,E) map: sizes, pointer, T and the number of cells fit. */
static moe_ep_status moe_epi_dp_check_map(const uint8_t *map, int64_t T, int32_t E, moe_ep_error *err)
{
    int64_t cells;
    moe_ep_status status = moe_epi_dp_check_n(T, INT32_MAX, "T", err);
    if (status != MOE_EP_OK) return status;
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (!moe_epi_mul(T, E, &cells) || (uint64_t)cells > (uint64_t)(SIZE_MAX / 2u))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "T", "T*E does not fit", -1, (double)T);
    if (T > 0 && !map) return moe_epi_null(err, "map");
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_routing_map(const int32_t *ids, int64_t T, int32_t K, int32_t E, uint8_t *map,
                                            moe_ep_error *err)
{
    moe_ep_status status;
    int64_t n = 0, i;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_ids(ids, n, E, "ids", err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_map(map, T, E, err);
    if (status != MOE_EP_OK || T == 0) return status;
    memset(map, 0, (size_t)T * (size_t)E);
    for (i = 0; i < n; i++)
        if (ids[i] >= 0) map[i / K * E + ids[i]] = 1;
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_megatron_permute(const uint8_t *map, int64_t T, int32_t E, int64_t *offsets,
                                                 int32_t *token_of_row, int64_t max_rows, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t t, i, ones = 0;
    int32_t e;
    moe_epi_ok(err);
    status = moe_epi_dp_check_map(map, T, E, err);
    if (status != MOE_EP_OK) return status;
    if (!offsets) return moe_epi_null(err, "offsets");
    for (i = 0; i < T * E; i++) ones += map[i] != 0;
    if (max_rows < ones) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "max_rows", "rows needed", -1, (double)ones);
    if (max_rows > 0 && !token_of_row) return moe_epi_null(err, "token_of_row");
    memset(offsets, 0, ((size_t)E + 1u) * sizeof *offsets);
    for (t = 0; t < T; t++)
        for (e = 0; e < E; e++) offsets[e] += map[t * E + e] != 0;
    (void)moe_epi_dp_starts(offsets, E);
    for (t = 0; t < T; t++)
        for (e = 0; e < E; e++)
            if (map[t * E + e]) token_of_row[offsets[e]++] = (int32_t)t;
    moe_epi_dp_offsets(offsets, E);
    moe_epi_dp_fill(token_of_row, ones, max_rows, -1);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_megatron_drop_and_pad(const uint8_t *map, int64_t T, int32_t E, int32_t C,
                                                      int32_t *token_of_row, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t t;
    int32_t e, wanted, filled;
    moe_epi_ok(err);
    status = moe_epi_dp_check_map(map, T, E, err);
    if (status != MOE_EP_OK) return status;
    if (C < 1 || C > T) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "C", "must lie in 1..T", -1, (double)C);
    if (!token_of_row) return moe_epi_null(err, "token_of_row");
    for (e = 0; e < E; e++)
        for (filled = 0, wanted = 1; wanted >= 0; wanted--)
            for (t = 0; t < T && filled < C; t++)
                if ((map[t * E + e] != 0) == wanted) token_of_row[(int64_t)e * C + filled++] = (int32_t)t;
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_megatron_pad_map(const uint8_t *map, int64_t T, int32_t E, int32_t multiple,
                                                 uint8_t *padded, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t t, ones, more;
    int32_t e;
    moe_epi_ok(err);
    status = moe_epi_dp_check_map(map, T, E, err);
    if (status != MOE_EP_OK) return status;
    if (multiple < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "multiple", "must be at least 1", -1,
                                          (double)multiple);
    if (T == 0) return MOE_EP_OK;
    if (!padded) return moe_epi_null(err, "padded");
    if (padded != map) memcpy(padded, map, (size_t)T * (size_t)E);
    for (e = 0; e < E; e++) {
        for (ones = 0, t = 0; t < T; t++) ones += padded[t * E + e] != 0;
        more = (multiple - ones % multiple) % multiple;
        for (t = 0; t < T && more > 0; t++)
            if (!padded[t * E + e]) {
                padded[t * E + e] = 1;
                more--;
            }
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_sort_chunks(const int64_t *sizes, const int32_t *order, int32_t n, int32_t *row_from,
                                            int64_t max_rows, int64_t *num_rows, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t rows = 0, sum = 0, row = 0, start, i;
    int32_t c, before;
    moe_epi_ok(err);
    if (n < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "n", "must be at least 1", -1, (double)n);
    status = moe_epi_ld_check_counts(sizes, n, "sizes", &rows, err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_n(rows, INT32_MAX, "sizes", err);
    if (status != MOE_EP_OK) return status;
    if (!order) return moe_epi_null(err, "order");
    for (c = 0; c < n; c++) {
        if (order[c] < 0 || order[c] >= n)
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "order", "not one of the chunks", c, (double)order[c]);
        sum += order[c];
    }
    if (sum != (int64_t)n * (n - 1) / 2)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "order", "is not a permutation of the chunks", -1, (double)sum);
    if (max_rows < rows) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "max_rows", "rows needed", -1, (double)rows);
    if (rows > 0 && !row_from) return moe_epi_null(err, "row_from");
    if (!num_rows) return moe_epi_null(err, "num_rows");
    for (c = 0; c < n; c++) {
        for (start = 0, before = 0; before < order[c]; before++) start += sizes[before];
        for (i = 0; i < sizes[order[c]] && row < rows; i++) row_from[row++] = (int32_t)(start + i);
    }
    *num_rows = row;
    return MOE_EP_OK;
}

/* ---- torchtitan ------------------------------------------------------------------------------------- */

MOE_EP_API moe_ep_status moe_ep_torchtitan_reorder(const int32_t *ids, int64_t T, int32_t K, int32_t E,
                                                   int64_t *offsets, int32_t *row_to_flat, int32_t *token_of_row,
                                                   moe_ep_error *err)
{
    moe_ep_status status;
    int64_t n = 0, i;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status != MOE_EP_OK) return status;
    if (n > 0 && !row_to_flat) return moe_epi_null(err, "row_to_flat");
    if (n > 0 && !token_of_row) return moe_epi_null(err, "token_of_row");
    status = moe_ep_permute(ids, n, E, offsets, row_to_flat, NULL, err);
    if (status != MOE_EP_OK) return status;
    for (i = 0; i < n; i++) token_of_row[i] = row_to_flat[i] >= 0 ? row_to_flat[i] / K : -1;
    return MOE_EP_OK;
}

/* Rows of local expert e from all ranks. */
static int64_t moe_epi_dp_received(const int64_t *counts, int32_t experts_per_rank, int32_t num_ranks, int32_t e)
{
    int64_t sum = 0;
    int32_t r;
    for (r = 0; r < num_ranks; r++) sum += counts[(int64_t)r * experts_per_rank + e];
    return sum;
}

MOE_EP_API moe_ep_status moe_ep_torchtitan_permute_indices(const int64_t *counts, int32_t experts_per_rank,
                                                           int32_t num_ranks, int64_t max_len, int32_t alignment,
                                                           int32_t *row_from, int64_t *m_sizes, int64_t *m_offsets,
                                                           moe_ep_error *err)
{
    moe_ep_status status;
    int64_t chunk, i, received = 0, needed = 0, padded = 0, from = 0;
    int32_t e, r;
    moe_epi_ok(err);
    if (experts_per_rank < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "experts_per_rank", "must be at least 1", -1,
                            (double)experts_per_rank);
    if (num_ranks < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_ranks", "must be at least 1", -1,
                                           (double)num_ranks);
    if (alignment < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "alignment", "must be at least 1", -1,
                                           (double)alignment);
    status = moe_epi_ld_check_counts(counts, (int64_t)experts_per_rank * num_ranks, "counts", &received, err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_n(received, INT32_MAX, "counts", err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_n(max_len, INT32_MAX, "max_len", err);
    if (status != MOE_EP_OK) return status;
    for (e = 0; e < experts_per_rank; e++) {
        chunk = moe_epi_dp_received(counts, experts_per_rank, num_ranks, e);
        (void)moe_epi_dp_round_up(chunk > 1 ? chunk : 1, alignment, &padded);
        needed += padded;
    }
    if (max_len < needed) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "max_len", "rows needed", -1, (double)needed);
    if (!row_from) return moe_epi_null(err, "row_from");
    if (!m_sizes) return moe_epi_null(err, "m_sizes");
    if (!m_offsets) return moe_epi_null(err, "m_offsets");
    moe_epi_dp_fill(row_from, 0, max_len, -1);
    for (needed = 0, e = 0; e < experts_per_rank; e++) {
        chunk = moe_epi_dp_received(counts, experts_per_rank, num_ranks, e);
        (void)moe_epi_dp_round_up(chunk > 1 ? chunk : 1, alignment, &m_sizes[e]);
        m_offsets[e] = needed; /* cursor while the rows are dealt */
        needed += m_sizes[e];
    }
    for (r = 0; r < num_ranks; r++)
        for (e = 0; e < experts_per_rank; e++)
            for (i = counts[(int64_t)r * experts_per_rank + e]; i > 0; i--) row_from[m_offsets[e]++] = (int32_t)from++;
    for (needed = 0, e = 0; e < experts_per_rank; e++) m_offsets[e] = needed += m_sizes[e];
    return MOE_EP_OK;
}

/* ---- TensorRT-LLM ----------------------------------------------------------------------------------- */

MOE_EP_API moe_ep_status moe_ep_trtllm_permute(const int32_t *ids, int64_t T, int32_t K, int32_t E, int32_t padding,
                                               int64_t *padded_offsets, int32_t *expanded_to_permuted,
                                               int32_t *permuted_to_expanded, int32_t *permuted_to_token,
                                               int64_t max_rows, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_arena arena;
    int64_t n = 0, i, none = 0, rows = 0, *cursor;
    size_t total = 0;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check(ids, n, E, err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_n(max_rows, INT32_MAX, "max_rows", err);
    if (status != MOE_EP_OK) return status;
    if (padding < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "padding", "must be at least 1", -1, (double)padding);
    if (!padded_offsets) return moe_epi_null(err, "padded_offsets");
    if (n > 0 && !expanded_to_permuted) return moe_epi_null(err, "expanded_to_permuted");
    moe_epi_need(&total, (int64_t)E + 1, sizeof *cursor);
    status = moe_epi_arena_open(&arena, scratch, total, err);
    if (status != MOE_EP_OK) return status;
    cursor = (int64_t *)moe_epi_take(&arena, (int64_t)E + 1, sizeof *cursor);
    status = moe_epi_ld_count(ids, n, E, cursor, &none, "ids", err);
    if (status == MOE_EP_OK) {
        (void)moe_epi_dp_pad(cursor, E, padding, 0, &rows, cursor);
        if (rows > max_rows) status = moe_epi_fail(err, MOE_EP_ERR_SIZE, "max_rows", "rows needed", -1, (double)rows);
    }
    if (status == MOE_EP_OK) {
        memcpy(padded_offsets, cursor, ((size_t)E + 1u) * sizeof *cursor);
        moe_epi_dp_place(ids, n, cursor, NULL, expanded_to_permuted);
        if (permuted_to_expanded) moe_epi_dp_fill(permuted_to_expanded, 0, max_rows, -1);
        if (permuted_to_token) moe_epi_dp_fill(permuted_to_token, 0, max_rows, -1);
        for (i = 0; i < n; i++) {
            if (expanded_to_permuted[i] < 0) continue;
            if (permuted_to_expanded) permuted_to_expanded[expanded_to_permuted[i]] = (int32_t)i;
            if (permuted_to_token) permuted_to_token[expanded_to_permuted[i]] = (int32_t)(i / K);
        }
    }
    moe_epi_arena_close(&arena);
    return status;
}

/* ---- MegaBlocks ------------------------------------------------------------------------------------- */

MOE_EP_API moe_ep_status moe_ep_megablocks_bins(const int32_t *ids, int64_t n, int32_t E, int32_t block_size,
                                                int32_t *indices, int32_t *bin_ids, int64_t *counts, int64_t *bins,
                                                int64_t *padded_bins, moe_ep_error *err)
{
    moe_ep_status status;
    int64_t none = 0, rows, start, sum = 0, padded = 0;
    int32_t e;
    moe_epi_ok(err);
    status = moe_epi_dp_check(ids, n, E, err);
    if (status != MOE_EP_OK) return status;
    if (block_size < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "block_size", "must be at least 1", -1,
                                            (double)block_size);
    if (!bins) return moe_epi_null(err, "bins");
    status = moe_epi_ld_count(ids, n, E, bins, &none, "ids", err);
    if (status != MOE_EP_OK) return status;
    if (counts) memcpy(counts, bins, (size_t)E * sizeof *bins);
    rows = moe_epi_dp_starts(bins, E);
    moe_epi_dp_place(ids, n, bins, indices, NULL); /* starts become inclusive ends, which are the bins */
    if (indices) moe_epi_dp_fill(indices, rows, n, -1);
    for (start = 0, e = 0; e < E; start = bins[e], e++) {
        if (bin_ids) moe_epi_dp_fill(bin_ids, start, bins[e], e);
        (void)moe_epi_dp_round_up(bins[e] - start, block_size, &padded);
        sum += padded;
        if (padded_bins) padded_bins[e] = sum;
    }
    if (bin_ids) moe_epi_dp_fill(bin_ids, rows, n, -1);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_binned_rows(const int64_t *offsets, const int32_t *row_to_flat, int32_t E, int32_t C,
                                            int32_t *slot_flat, moe_ep_error *err)
{
    int32_t e, c;
    moe_epi_ok(err);
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, (double)E);
    if (C < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "C", "must be at least 1", -1, (double)C);
    if (!offsets) return moe_epi_null(err, "offsets");
    for (e = 0; e < E; e++)
        if (offsets[e] < 0 || offsets[e + 1] < offsets[e])
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "offsets", "must not fall", e, (double)offsets[e]);
    if (offsets[E] > offsets[0] && !row_to_flat) return moe_epi_null(err, "row_to_flat");
    if (!slot_flat) return moe_epi_null(err, "slot_flat");
    for (e = 0; e < E; e++)
        for (c = 0; c < C; c++)
            slot_flat[(int64_t)e * C + c] = c < offsets[e + 1] - offsets[e] ? row_to_flat[offsets[e] + c] : -1;
    return MOE_EP_OK;
}

/* ---- distinct places of a token --------------------------------------------------------------------- */

#define MOE_EPI_DP_PLACES 65536 /* most ranks or nodes; the marks then take 8 KiB of stack */

/* One bit per rank or node; all clear between tokens. */
typedef struct moe_epi_dp_marks {
    uint64_t word[MOE_EPI_DP_PLACES / 64];
} moe_epi_dp_marks;

/* Marks a place; 1 when it was not marked yet, without a branch. */
static int64_t moe_epi_dp_mark(moe_epi_dp_marks *m, int32_t place)
{
    uint64_t *word = &m->word[place >> 6], old = *word, bit = (uint64_t)1 << (place & 63);
    *word = old | bit;
    return (int64_t)((~old & bit) >> (place & 63));
}

static void moe_epi_dp_unmark(moe_epi_dp_marks *m, int32_t place) { m->word[place >> 6] = 0; }

static moe_ep_status moe_epi_dp_check_places(int32_t R, const char *arg, moe_ep_error *err)
{
    if (R < 1 || R > MOE_EPI_DP_PLACES)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "must lie in 1..65536", -1, (double)R);
    return MOE_EP_OK;
}

#undef MOE_EPI_DP_PLACES

/* ---- DeepEP ----------------------------------------------------------------------------------------- */

#define MOE_EPI_DP_TABLE 4096

/* What the layout loops share. */
typedef struct moe_epi_dp_owner {
    const int32_t *device_of_expert; /* NULL = blocks */
    int32_t experts_per_rank, ranks_per_node, R;
} moe_epi_dp_owner;

static int32_t moe_epi_dp_rank_of(const moe_epi_dp_owner *o, int32_t e)
{
    return o->device_of_expert ? o->device_of_expert[e] : e / o->experts_per_rank;
}

/* Tokens per rank (or, per_node, per node), each token once. */
static void moe_epi_dp_count_places(const int32_t *ids, int64_t T, int32_t K, const moe_epi_dp_owner *o, int per_node,
                                    int64_t *tokens)
{
    moe_epi_dp_marks marks;
    int64_t t;
    int32_t k, place;
    memset(&marks, 0, sizeof marks);
    for (t = 0; t < T; t++, ids += K) {
        for (k = 0; k < K; k++) {
            if (ids[k] < 0) continue;
            place = moe_epi_dp_rank_of(o, ids[k]);
            if (per_node) place /= o->ranks_per_node;
            tokens[place] += moe_epi_dp_mark(&marks, place);
        }
        for (k = 0; k < K; k++) {
            if (ids[k] < 0) continue;
            place = moe_epi_dp_rank_of(o, ids[k]);
            moe_epi_dp_unmark(&marks, per_node ? place / o->ranks_per_node : place);
        }
    }
}

/* The rank counts alone for at most 64 ranks: the marks are one register. */
static void moe_epi_dp_count_few(const int32_t *ids, int64_t T, int32_t K, const moe_epi_dp_owner *o, int64_t *tokens)
{
    int64_t t;
    int32_t k;
    for (t = 0; t < T; t++, ids += K) {
        uint64_t seen = 0;
        for (k = 0; k < K; k++) {
            int32_t rank;
            if (ids[k] < 0) continue;
            rank = moe_epi_dp_rank_of(o, ids[k]);
            tokens[rank] += (int64_t)((~seen >> rank) & 1u);
            seen |= (uint64_t)1 << rank;
        }
    }
}

/* The (T,R) arrays. */
static void moe_epi_dp_fill_ranks(const int32_t *ids, int64_t T, int32_t K, const moe_epi_dp_owner *o,
                                  const moe_ep_layout *out)
{
    int64_t t, cells = T * o->R;
    int32_t k, r, next;
    if (out->is_token_in_rank) memset(out->is_token_in_rank, 0, (size_t)cells);
    if (out->token_idx_in_rank) moe_epi_dp_fill(out->token_idx_in_rank, 0, cells, -1);
    for (t = 0; t < T; t++)
        for (k = 0; k < K; k++) {
            if (ids[t * K + k] < 0) continue;
            r = moe_epi_dp_rank_of(o, ids[t * K + k]);
            if (out->is_token_in_rank) out->is_token_in_rank[t * o->R + r] = 1;
            if (out->token_idx_in_rank) out->token_idx_in_rank[t * o->R + r] = 0;
        }
    if (!out->token_idx_in_rank) return;
    for (r = 0; r < o->R; r++)
        for (next = 0, t = 0; t < T; t++)
            if (out->token_idx_in_rank[t * o->R + r] == 0) out->token_idx_in_rank[t * o->R + r] = next++;
}

MOE_EP_API moe_ep_status moe_ep_deepep_layout(const int32_t *ids, int64_t T, int32_t K, int32_t E, int32_t R,
                                              int32_t ranks_per_node, const int32_t *device_of_expert,
                                              const moe_ep_layout *layout, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_dp_owner owner;
    int32_t table[MOE_EPI_DP_TABLE], nodes, e; /* a look-up is several times faster than the division */
    int64_t n = 0, cells, none = 0;
    moe_epi_ok(err);
    status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_ids(ids, n, E, "ids", err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_places(R, "R", err);
    if (status != MOE_EP_OK) return status;
    if (ranks_per_node < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "ranks_per_node", "must not be negative", -1,
                            (double)ranks_per_node);
    if (!device_of_expert && E % R != 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "R", "does not divide E, and there is no map", -1, (double)R);
    if (device_of_expert) status = moe_epi_ld_check_devices(device_of_expert, E, R, "device_of_expert", err);
    if (status != MOE_EP_OK) return status;
    if (!layout) return moe_epi_null(err, "layout");
    if (T > INT32_MAX || !moe_epi_mul(T, R, &cells) || (uint64_t)cells > (uint64_t)(SIZE_MAX / sizeof(int32_t)))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "T", "T*R does not fit", -1, (double)T);
    owner.device_of_expert = device_of_expert;
    owner.experts_per_rank = device_of_expert ? 1 : E / R;
    owner.ranks_per_node = ranks_per_node > 0 ? ranks_per_node : R;
    owner.R = R;
    if (!device_of_expert && E <= MOE_EPI_DP_TABLE) {
        for (e = 0; e < E; e++) table[e] = e / owner.experts_per_rank;
        owner.device_of_expert = table;
    }
    nodes = R / owner.ranks_per_node + (R % owner.ranks_per_node > 0);
    if (layout->tokens_per_rank) {
        memset(layout->tokens_per_rank, 0, (size_t)R * sizeof(int64_t));
        if (R <= 64) moe_epi_dp_count_few(ids, T, K, &owner, layout->tokens_per_rank);
        else moe_epi_dp_count_places(ids, T, K, &owner, 0, layout->tokens_per_rank);
    }
    if (layout->tokens_per_node) {
        memset(layout->tokens_per_node, 0, (size_t)nodes * sizeof(int64_t));
        moe_epi_dp_count_places(ids, T, K, &owner, 1, layout->tokens_per_node);
    }
    if (layout->tokens_per_expert) (void)moe_epi_ld_count(ids, n, E, layout->tokens_per_expert, &none, "ids", err);
    if (layout->is_token_in_rank || layout->token_idx_in_rank) moe_epi_dp_fill_ranks(ids, T, K, &owner, layout);
    return MOE_EP_OK;
}

#undef MOE_EPI_DP_TABLE

/* ---- traffic ---------------------------------------------------------------------------------------- */

/* The placement's device side and the slots of T*K assignments are sound. */
static moe_ep_status moe_epi_dp_check_slots(const moe_ep_placement *p, const int32_t *slot_ids, int64_t T, int32_t K,
                                            moe_ep_error *err)
{
    moe_ep_status status;
    int64_t n = 0;
    int32_t s, d;
    if (!p) return moe_epi_null(err, "p");
    status = moe_epi_dp_check_places(p->num_devices, "p.num_devices", err);
    if (status == MOE_EP_OK) status = moe_epi_dp_check_places(p->num_nodes, "p.num_nodes", err);
    if (status == MOE_EP_OK) status = moe_epi_ld_check_tk(T, K, &n, err);
    if (status != MOE_EP_OK) return status;
    if (!p->slot_device || !p->device_node) return moe_epi_null(err, "p");
    for (s = 0; s < p->num_slots; s++)
        if (p->slot_device[s] < 0 || p->slot_device[s] >= p->num_devices)
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.slot_device", "not a device", s,
                                (double)p->slot_device[s]);
    for (d = 0; d < p->num_devices; d++)
        if (p->device_node[d] < 0 || p->device_node[d] >= p->num_nodes)
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p.device_node", "not a node", d,
                                (double)p->device_node[d]);
    if (n > 0 && !slot_ids) return moe_epi_null(err, "slot_ids");
    return moe_epi_dp_check_index(slot_ids, n, p->num_slots, "slot_ids", err);
}

/* Marks the device (or node) of every choice; rows[place] grows once per place, or per choice when pairs. */
static void moe_epi_dp_token_rows(const moe_ep_placement *p, const int32_t *slots, int32_t K, int per_node, int pairs,
                                  moe_epi_dp_marks *marks, int64_t *rows)
{
    int32_t k, place;
    for (k = 0; k < K; k++) {
        if (slots[k] < 0) continue;
        place = p->slot_device[slots[k]];
        if (per_node) place = p->device_node[place];
        rows[place] += pairs ? 1 : moe_epi_dp_mark(marks, place);
    }
    for (k = 0; k < K; k++) {
        if (slots[k] < 0) continue;
        place = p->slot_device[slots[k]];
        moe_epi_dp_unmark(marks, per_node ? p->device_node[place] : place);
    }
}

/* node_rows of one token when they follow from its ranks: one per distinct rank. */
static void moe_epi_dp_token_rank_nodes(const moe_ep_placement *p, const int32_t *slots, int32_t K,
                                        moe_epi_dp_marks *marks, int64_t *rows)
{
    int32_t k, device;
    for (k = 0; k < K; k++) {
        if (slots[k] < 0) continue;
        device = p->slot_device[slots[k]];
        rows[p->device_node[device]] += moe_epi_dp_mark(marks, device);
    }
    for (k = 0; k < K; k++)
        if (slots[k] >= 0) moe_epi_dp_unmark(marks, p->slot_device[slots[k]]);
}

MOE_EP_API moe_ep_status moe_ep_traffic(const moe_ep_placement *p, const int32_t *slot_ids, int64_t T, int32_t K,
                                        const int32_t *source_rank, moe_ep_count_mode mode, int64_t *rank_rows,
                                        int64_t *node_rows, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_dp_marks marks;
    int64_t t;
    const int pairs = mode == MOE_EP_COUNT_PAIRS;
    moe_epi_ok(err);
    status = moe_epi_dp_check_slots(p, slot_ids, T, K, err);
    if (status != MOE_EP_OK) return status;
    if (mode != MOE_EP_COUNT_PAIRS && mode != MOE_EP_COUNT_RANKS && mode != MOE_EP_COUNT_NODES)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "mode", "not a counting mode", -1, (double)(int)mode);
    if (source_rank) status = moe_epi_ld_check_devices(source_rank, T, p->num_devices, "source_rank", err);
    if (status != MOE_EP_OK) return status;
    if (!rank_rows && !node_rows) return moe_epi_null(err, "rank_rows");
    memset(&marks, 0, sizeof marks);
    if (rank_rows) memset(rank_rows, 0, (size_t)p->num_devices * (size_t)p->num_devices * sizeof *rank_rows);
    if (node_rows) memset(node_rows, 0, (size_t)p->num_nodes * (size_t)p->num_nodes * sizeof *node_rows);
    for (t = 0; t < T; t++) {
        const int32_t *slots = slot_ids + t * K;
        const int32_t source = source_rank ? source_rank[t] : moe_epi_ld_block_rank(t, T, p->num_devices);
        if (rank_rows)
            moe_epi_dp_token_rows(p, slots, K, 0, pairs, &marks, rank_rows + (int64_t)source * p->num_devices);
        if (node_rows) {
            int64_t *row = node_rows + (int64_t)p->device_node[source] * p->num_nodes;
            if (mode == MOE_EP_COUNT_RANKS) moe_epi_dp_token_rank_nodes(p, slots, K, &marks, row);
            else moe_epi_dp_token_rows(p, slots, K, 1, pairs, &marks, row);
        }
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_fan_out(const moe_ep_placement *p, const int32_t *slot_ids, int64_t T, int32_t K,
                                        int32_t *ranks, int32_t *nodes, moe_ep_error *err)
{
    moe_ep_status status;
    moe_epi_dp_marks marks;
    int64_t t;
    int32_t k, device, node;
    moe_epi_ok(err);
    status = moe_epi_dp_check_slots(p, slot_ids, T, K, err);
    if (status != MOE_EP_OK || T == 0) return status;
    if (!ranks && !nodes) return moe_epi_null(err, "ranks");
    memset(&marks, 0, sizeof marks);
    for (t = 0; t < T; t++) {
        const int32_t *slots = slot_ids + t * K;
        int64_t on_ranks = 0, on_nodes = 0;
        for (k = 0; k < K; k++)
            if (slots[k] >= 0) on_ranks += moe_epi_dp_mark(&marks, p->slot_device[slots[k]]);
        for (k = 0; k < K; k++)
            if (slots[k] >= 0) moe_epi_dp_unmark(&marks, p->slot_device[slots[k]]);
        for (k = 0; k < K; k++) {
            if (slots[k] < 0) continue;
            device = p->slot_device[slots[k]];
            on_nodes += moe_epi_dp_mark(&marks, p->device_node[device]);
        }
        for (k = 0; k < K; k++) {
            if (slots[k] < 0) continue;
            node = p->device_node[p->slot_device[slots[k]]];
            moe_epi_dp_unmark(&marks, node);
        }
        if (ranks) ranks[t] = (int32_t)on_ranks;
        if (nodes) nodes[t] = (int32_t)on_nodes;
    }
    return MOE_EP_OK;
}

/* ==================================================================================================
 * 8 COST
 * ================================================================================================== */

/* ---- rows ----------------------------------------------------------------------------------------- */

enum { MOE_EPI_DEVICE_CHUNK = 256 }; /* devices summed per pass, on the stack */

/* Largest sum of loads over devices first .. first+count-1; negative = overflow. */
static int64_t moe_epi_chunk_max(const int64_t *loads, int32_t E, const int32_t *map, int32_t D, int32_t first,
                                 int32_t count)
{
    int64_t sum[MOE_EPI_DEVICE_CHUNK];
    int64_t most = 0;
    int32_t e, d;
    for (d = 0; d < count; d++) sum[d] = 0;
    for (e = 0; e < E; e++) {
        d = (map ? map[e] : e % D) - first;
        if (d < 0 || d >= count) continue;
        if (loads[e] > INT64_MAX - sum[d]) return -1;
        sum[d] += loads[e];
        if (sum[d] > most) most = sum[d];
    }
    return most;
}

MOE_EP_API int64_t moe_ep_step_time(const int64_t *loads, int32_t E, const int32_t *device_of_expert,
                                    int32_t D, moe_ep_error *err)
{
    int64_t most = 0, part;
    int32_t e, first;
    moe_epi_ok(err);
    if (!loads) return moe_epi_null(err, "loads");
    if (E < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "E", "at least one expert is needed", -1, (double)E);
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "at least one device is needed", -1, (double)D);
    for (e = 0; e < E; e++) {
        if (loads[e] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "loads", "a load must not be negative", e, (double)loads[e]);
        if (device_of_expert && (device_of_expert[e] < 0 || device_of_expert[e] >= D))
            return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, "device_of_expert", "not in 0..D-1", e,
                                (double)device_of_expert[e]);
    }
    for (first = 0; first < D; first += MOE_EPI_DEVICE_CHUNK) {
        int32_t count = D - first < MOE_EPI_DEVICE_CHUNK ? D - first : MOE_EPI_DEVICE_CHUNK;
        if (!device_of_expert && first >= E) break; /* experts e % D reach no further device */
        part = moe_epi_chunk_max(loads, E, device_of_expert, D, first, count);
        if (part < 0) return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "loads", "a device's sum does not fit", -1, 0.0);
        if (part > most) most = part;
        if (D - first <= MOE_EPI_DEVICE_CHUNK) break;
    }
    return most;
}

MOE_EP_API double moe_ep_efficiency(const int64_t *device_loads, int32_t D, moe_ep_error *err)
{
    int64_t sum = 0, most = 0;
    int32_t d;
    moe_epi_ok(err);
    if (!device_loads) return moe_epi_null(err, "device_loads");
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "at least one device is needed", -1, (double)D);
    for (d = 0; d < D; d++) {
        if (device_loads[d] < 0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "device_loads", "a load must not be negative", d,
                                (double)device_loads[d]);
        if (device_loads[d] > INT64_MAX - sum)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "device_loads", "the sum does not fit", d, 0.0);
        sum += device_loads[d];
        if (device_loads[d] > most) most = device_loads[d];
    }
    return most > 0 ? (double)sum / ((double)most * (double)D) : 1.0;
}

MOE_EP_API double moe_ep_efficiency_d(const double *device_loads, int32_t D, moe_ep_error *err)
{
    double mean = 0.0, most = 0.0;
    int32_t d;
    moe_epi_ok(err);
    if (!device_loads) return moe_epi_null(err, "device_loads");
    if (D < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "D", "at least one device is needed", -1, (double)D);
    for (d = 0; d < D; d++) {
        if (!moe_epi_finite(device_loads[d]))
            return moe_epi_fail(err, MOE_EP_ERR_NAN, "device_loads", "not a finite number", d, device_loads[d]);
        if (device_loads[d] < 0.0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "device_loads", "a load must not be negative", d,
                                device_loads[d]);
        if (device_loads[d] > most) most = device_loads[d];
    }
    if (!(most > 0.0)) return 1.0;
    for (d = 0; d < D; d++) mean += device_loads[d] / most / (double)D; /* by parts: the sum may not fit */
    return mean < 1.0 ? mean : 1.0;
}

/* ---- presets -------------------------------------------------------------------------------------- */

enum { MOE_EPI_V3, MOE_EPI_R1, MOE_EPI_V2, MOE_EPI_V2L, MOE_EPI_K2, MOE_EPI_Q235, MOE_EPI_Q30, MOE_EPI_Q15,
       MOE_EPI_M7, MOE_EPI_M22, MOE_EPI_O120, MOE_EPI_O20, MOE_EPI_OLMOE, MOE_EPI_PHI, MOE_EPI_MODELS };

/* Order of the fields as in moe_ep_model; the attention counts are sums of the projections named in the
 * published configurations. */
static const moe_ep_model moe_epi_models[MOE_EPI_MODELS] = {
    {"deepseek-v3", "DeepSeek-V3 technical report (2024), config.json; FP8 experts",
     61, 58, 256, 8, 8, 4, 1, 7168, 2048, 2048, 18432, 0, 129280, 0, 187105280, 576, MOE_EP_MATH_FP8, 1, 1, 1, 2, 2},
    {"deepseek-r1", "DeepSeek-R1 (2025), same shapes as DeepSeek-V3; FP8 experts",
     61, 58, 256, 8, 8, 4, 1, 7168, 2048, 2048, 18432, 0, 129280, 0, 187105280, 576, MOE_EP_MATH_FP8, 1, 1, 1, 2, 2},
    {"deepseek-v2", "DeepSeek-V2 technical report (2024), config.json; bf16",
     60, 59, 160, 6, 8, 3, 2, 5120, 1536, 1536, 12288, 0, 102400, 0, 149225472, 576, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"deepseek-v2-lite", "DeepSeek-V2-Lite (2024), config.json; bf16",
     27, 26, 64, 6, 1, 1, 2, 2048, 1408, 1408, 10944, 0, 102400, 0, 13762560, 576, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"kimi-k2", "Kimi-K2 (Moonshot AI, 2025), config.json; FP8 experts",
     61, 60, 384, 8, 1, 1, 1, 7168, 2048, 2048, 18432, 0, 163840, 0, 101122048, 576, MOE_EP_MATH_FP8, 1, 1, 1, 2, 2},
    {"qwen3-235b-a22b", "Qwen3-235B-A22B (2025), config.json; bf16",
     94, 94, 128, 8, 1, 1, 0, 4096, 1536, 0, 0, 0, 151936, 0, 71303168, 1024, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"qwen3-30b-a3b", "Qwen3-30B-A3B (2025), config.json; bf16",
     48, 48, 128, 8, 1, 1, 0, 2048, 768, 0, 0, 0, 151936, 0, 18874368, 1024, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"qwen1.5-moe-a2.7b", "Qwen1.5-MoE-A2.7B (2024), config.json; bf16",
     24, 24, 60, 4, 1, 1, 1, 2048, 1408, 5632, 0, 0, 151936, 0, 16777216, 4096, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"mixtral-8x7b", "Mixtral of Experts (2024), config.json; bf16",
     32, 32, 8, 2, 1, 1, 0, 4096, 14336, 0, 0, 0, 32000, 0, 41943040, 2048, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"mixtral-8x22b", "Mixtral-8x22B (2024), config.json; bf16",
     56, 56, 8, 2, 1, 1, 0, 6144, 16384, 0, 0, 0, 32768, 0, 88080384, 2048, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"gpt-oss-120b", "gpt-oss model card (2025), config.json; MXFP4 experts (4.25 bits), bf16 products",
     36, 36, 128, 4, 1, 1, 0, 2880, 2880, 0, 0, 0, 201088, 0, 26542080, 1024, MOE_EP_MATH_BF16, 0.53125, 2, 2, 2, 2},
    {"gpt-oss-20b", "gpt-oss model card (2025), config.json; MXFP4 experts (4.25 bits), bf16 products",
     24, 24, 32, 4, 1, 1, 0, 2880, 2880, 0, 0, 0, 201088, 0, 26542080, 1024, MOE_EP_MATH_BF16, 0.53125, 2, 2, 2, 2},
    {"olmoe-1b-7b", "OLMoE (2024), config.json; bf16",
     16, 16, 64, 8, 1, 1, 0, 2048, 1024, 0, 0, 0, 50304, 0, 16777216, 4096, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2},
    {"phi-tiny-moe", "Phi-tiny-MoE (Microsoft, 2025), config.json; bf16",
     32, 32, 16, 2, 1, 1, 0, 4096, 448, 0, 0, 0, 32064, 0, 20971520, 1024, MOE_EP_MATH_BF16, 2, 2, 2, 2, 2}
};

enum { MOE_EPI_H100, MOE_EPI_H800, MOE_EPI_H20, MOE_EPI_H200, MOE_EPI_B200, MOE_EPI_GB200, MOE_EPI_RTX,
       MOE_EPI_MACHINES };

/* name, source, devices per node, memory, memory/s, FLOP/s {bf16, fp8, fp4}, GEMM {t0, mem, flop, p, tile},
 * links {alpha, intra, inter, p, alpha_in_norm}: low-latency dispatch, combine, normal dispatch, combine. */
static const moe_ep_machine moe_epi_machines[MOE_EPI_MACHINES] = {
    {"h100", "H100 SXM: aiconfigurator h100_sxm; GEMM fit on InferSim's H800 table; links fit on aiconfigurator's DeepEP tables",
     8, 80e9, 3.35e12, {989e12, 1979e12, 0}, {10e-6, 0.88, 0.64, 2, 64},
     {22e-6, 250e9, 48e9, 0, 0}, {22e-6, 250e9, 48e9, 0, 0}, {36e-6, 290e9, 46e9, 2, 0}, {54e-6, 290e9, 46e9, 2, 0}},
    {"h800", "H800: InferSim hardware and grouped GEMM tables (142 points, median 4 %); links fit on DeepEP's published tables",
     8, 80e9, 3.35e12, {989e12, 1979e12, 0}, {10e-6, 0.88, 0.64, 2, 64},
     {38e-6, 160e9, 48e9, 0, 0}, {38e-6, 160e9, 48e9, 0, 0}, {36e-6, 145e9, 44e9, 0, 0}, {54e-6, 145e9, 44e9, 0, 0}},
    {"h20", "H20: InferSim hardware and grouped GEMM tables (852 points, median 9 %); links as fitted for H100",
     8, 96e9, 4.0e12, {148e12, 296e12, 0}, {8e-6, 0.80, 0.80, 6, 64},
     {22e-6, 250e9, 48e9, 0, 0}, {22e-6, 250e9, 48e9, 0, 0}, {36e-6, 290e9, 46e9, 2, 0}, {54e-6, 290e9, 46e9, 2, 0}},
    {"h200", "H200 SXM: aiconfigurator h200_sxm; GEMM and links as fitted for H800 and H100",
     8, 141e9, 4.8e12, {989e12, 1979e12, 0}, {10e-6, 0.88, 0.64, 2, 64},
     {22e-6, 250e9, 48e9, 0, 0}, {22e-6, 250e9, 48e9, 0, 0}, {36e-6, 290e9, 46e9, 2, 0}, {54e-6, 290e9, 46e9, 2, 0}},
    {"b200", "B200: vendor figures; GEMM constants of H800 (not fitted); NVLink fit on aiconfigurator tables, 400 Gb/s NIC",
     8, 180e9, 8.0e12, {2250e12, 4500e12, 9000e12}, {10e-6, 0.88, 0.64, 2, 128},
     {12e-6, 460e9, 48e9, 0, 0}, {12e-6, 460e9, 48e9, 0, 0}, {36e-6, 460e9, 46e9, 2, 0}, {54e-6, 460e9, 46e9, 2, 0}},
    {"gb200", "GB200 NVL72: aiconfigurator gb200; GEMM constants of H800 (not fitted); links fit on TensorRT-LLM blog 18, one-sided",
     72, 186e9, 8.0e12, {2500e12, 5000e12, 10000e12}, {10e-6, 0.88, 0.64, 2, 128},
     {17e-6, 695e9, 48e9, 0, 0}, {31.5e-6, 635e9, 48e9, 1.5, 1}, {17e-6, 695e9, 48e9, 0, 0}, {31.5e-6, 635e9, 48e9, 1.5, 1}},
    {"rtxpro6000", "RTX PRO 6000: LLMServingSim's cluster file (96 GB, 1597 GB/s, link 16 GB/s and 20000 ns); vendor FLOP/s",
     8, 96e9, 1597e9, {500e12, 1000e12, 2000e12}, {10e-6, 0.88, 0.64, 2, 64},
     {20e-6, 16e9, 16e9, 0, 0}, {20e-6, 16e9, 16e9, 0, 0}, {20e-6, 16e9, 16e9, 0, 0}, {20e-6, 16e9, 16e9, 0, 0}}
};

MOE_EP_API moe_ep_model moe_ep_model_deepseek_v3(void) { return moe_epi_models[MOE_EPI_V3]; }
MOE_EP_API moe_ep_model moe_ep_model_deepseek_v2(void) { return moe_epi_models[MOE_EPI_V2]; }
MOE_EP_API moe_ep_model moe_ep_model_deepseek_v2_lite(void) { return moe_epi_models[MOE_EPI_V2L]; }
MOE_EP_API moe_ep_model moe_ep_model_kimi_k2(void) { return moe_epi_models[MOE_EPI_K2]; }
MOE_EP_API moe_ep_model moe_ep_model_qwen3_235b_a22b(void) { return moe_epi_models[MOE_EPI_Q235]; }
MOE_EP_API moe_ep_model moe_ep_model_qwen3_30b_a3b(void) { return moe_epi_models[MOE_EPI_Q30]; }
MOE_EP_API moe_ep_model moe_ep_model_qwen1_5_moe_a2_7b(void) { return moe_epi_models[MOE_EPI_Q15]; }
MOE_EP_API moe_ep_model moe_ep_model_mixtral_8x7b(void) { return moe_epi_models[MOE_EPI_M7]; }
MOE_EP_API moe_ep_model moe_ep_model_mixtral_8x22b(void) { return moe_epi_models[MOE_EPI_M22]; }
MOE_EP_API moe_ep_model moe_ep_model_gpt_oss_120b(void) { return moe_epi_models[MOE_EPI_O120]; }
MOE_EP_API moe_ep_model moe_ep_model_gpt_oss_20b(void) { return moe_epi_models[MOE_EPI_O20]; }
MOE_EP_API moe_ep_model moe_ep_model_olmoe_1b_7b(void) { return moe_epi_models[MOE_EPI_OLMOE]; }
MOE_EP_API moe_ep_model moe_ep_model_phi_tiny_moe(void) { return moe_epi_models[MOE_EPI_PHI]; }

MOE_EP_API moe_ep_machine moe_ep_machine_h100(void) { return moe_epi_machines[MOE_EPI_H100]; }
MOE_EP_API moe_ep_machine moe_ep_machine_h800(void) { return moe_epi_machines[MOE_EPI_H800]; }
MOE_EP_API moe_ep_machine moe_ep_machine_h20(void) { return moe_epi_machines[MOE_EPI_H20]; }
MOE_EP_API moe_ep_machine moe_ep_machine_h200(void) { return moe_epi_machines[MOE_EPI_H200]; }
MOE_EP_API moe_ep_machine moe_ep_machine_b200(void) { return moe_epi_machines[MOE_EPI_B200]; }
MOE_EP_API moe_ep_machine moe_ep_machine_gb200(void) { return moe_epi_machines[MOE_EPI_GB200]; }
MOE_EP_API moe_ep_machine moe_ep_machine_rtxpro6000(void) { return moe_epi_machines[MOE_EPI_RTX]; }

MOE_EP_API const char *moe_ep_model_preset_name(int32_t i)
{
    return i >= 0 && i < MOE_EPI_MODELS ? moe_epi_models[i].name : NULL;
}

MOE_EP_API const char *moe_ep_machine_preset_name(int32_t i)
{
    return i >= 0 && i < MOE_EPI_MACHINES ? moe_epi_machines[i].name : NULL;
}

static int moe_epi_name_skip(char c) { return c == '-' || c == '_' || c == '.' || c == ' '; }
static char moe_epi_lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c; }

/* Letters of `key` that begin `name`, separators aside; 0 = it does not begin with it. */
static int32_t moe_epi_name_match(const char *key, const char *name)
{
    int32_t matched = 0;
    for (;;) {
        while (moe_epi_name_skip(*key)) key++;
        while (moe_epi_name_skip(*name)) name++;
        if (*key == '\0') return matched;
        if (moe_epi_lower(*key) != moe_epi_lower(*name)) return 0;
        matched++;
        key++;
        name++;
    }
}

/* Index of the preset whose name is the longest beginning of `name`; -1 = none. */
static int32_t moe_epi_name_find(const char *name, const char *(*name_of)(int32_t))
{
    const char *slash = strrchr(name, '/');
    int32_t i, length, best = -1, longest = 0;
    if (slash) name = slash + 1;
    for (i = 0; name_of(i) != NULL; i++) {
        length = moe_epi_name_match(name_of(i), name);
        if (length > longest) {
            longest = length;
            best = i;
        }
    }
    return best;
}

MOE_EP_API moe_ep_status moe_ep_model_by_name(const char *name, moe_ep_model *out, moe_ep_error *err)
{
    int32_t i;
    moe_epi_ok(err);
    if (!name) return moe_epi_null(err, "name");
    if (!out) return moe_epi_null(err, "out");
    i = moe_epi_name_find(name, moe_ep_model_preset_name);
    if (i < 0) return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "name", "no model preset has this name", -1, 0.0);
    *out = moe_epi_models[i];
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_machine_by_name(const char *name, moe_ep_machine *out, moe_ep_error *err)
{
    int32_t i;
    moe_epi_ok(err);
    if (!name) return moe_epi_null(err, "name");
    if (!out) return moe_epi_null(err, "out");
    i = moe_epi_name_find(name, moe_ep_machine_preset_name);
    if (i < 0) return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "name", "no machine preset has this name", -1, 0.0);
    *out = moe_epi_machines[i];
    return MOE_EP_OK;
}

/* ---- checks shared by the section -------------------------------------------------------------------- */

static moe_ep_status moe_epi_amount(double v, const char *arg, moe_ep_error *err)
{
    if (!moe_epi_finite(v)) return moe_epi_fail(err, MOE_EP_ERR_NAN, arg, "not a finite number", -1, v);
    if (v < 0.0) return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "must not be negative", -1, v);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_at_least(int64_t v, int64_t least, const char *arg, moe_ep_error *err)
{
    if (v < least) return moe_epi_fail(err, MOE_EP_ERR_SIZE, arg, "too small", -1, (double)v);
    return MOE_EP_OK;
}

#define MOE_EPI_TRY(call)                                                                           \
    do {                                                                                            \
        moe_ep_status moe_epi_s_ = (call);                                                          \
        if (moe_epi_s_ != MOE_EP_OK) return moe_epi_s_;                                             \
    } while (0)

/* What the expert products need of a model. */
static moe_ep_status moe_epi_check_shape(const moe_ep_model *m, moe_ep_error *err)
{
    if (!m) return moe_epi_null(err, "model");
    MOE_EPI_TRY(moe_epi_at_least(m->hidden, 1, "model.hidden", err));
    MOE_EPI_TRY(moe_epi_at_least(m->inter, 1, "model.inter", err));
    MOE_EPI_TRY(moe_epi_amount(m->weight_bytes, "model.weight_bytes", err));
    MOE_EPI_TRY(moe_epi_amount(m->in_bytes, "model.in_bytes", err));
    MOE_EPI_TRY(moe_epi_amount(m->out_bytes, "model.out_bytes", err));
    if ((int)m->math < 0 || (int)m->math >= (int)MOE_EP_MATH_COUNT)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "model.math", "no such number format", -1, (double)(int)m->math);
    return MOE_EP_OK;
}

/* The whole model. */
static moe_ep_status moe_epi_check_model(const moe_ep_model *m, moe_ep_error *err)
{
    MOE_EPI_TRY(moe_epi_check_shape(m, err));
    MOE_EPI_TRY(moe_epi_at_least(m->num_moe_layers, 1, "model.num_moe_layers", err));
    MOE_EPI_TRY(moe_epi_at_least(m->num_experts, 1, "model.num_experts", err));
    MOE_EPI_TRY(moe_epi_at_least(m->top_k, 1, "model.top_k", err));
    if (m->top_k > m->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "model.top_k", "larger than num_experts", -1, (double)m->top_k);
    if (m->num_layers != 0) MOE_EPI_TRY(moe_epi_at_least(m->num_layers, m->num_moe_layers, "model.num_layers", err));
    MOE_EPI_TRY(moe_epi_at_least(m->num_shared, 0, "model.num_shared", err));
    MOE_EPI_TRY(moe_epi_at_least(m->shared_inter, 0, "model.shared_inter", err));
    MOE_EPI_TRY(moe_epi_at_least(m->dense_inter, 0, "model.dense_inter", err));
    MOE_EPI_TRY(moe_epi_at_least(m->vocab, 0, "model.vocab", err));
    MOE_EPI_TRY(moe_epi_at_least(m->attention_params, 0, "model.attention_params", err));
    MOE_EPI_TRY(moe_epi_at_least(m->kv_elems, 0, "model.kv_elems", err));
    MOE_EPI_TRY(moe_epi_amount(m->other_weight_bytes, "model.other_weight_bytes", err));
    return moe_epi_amount(m->kv_bytes, "model.kv_bytes", err);
}

/* A p-norm exponent: 0 (maximum) or at least 1. */
static moe_ep_status moe_epi_check_p(double p, const char *arg, moe_ep_error *err)
{
    MOE_EPI_TRY(moe_epi_amount(p, arg, err));
    if (p > 0.0 && p < 1.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, arg, "must be 0 (the maximum) or at least 1", -1, p);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_check_link(const moe_ep_link *l, moe_ep_error *err)
{
    MOE_EPI_TRY(moe_epi_amount(l->alpha_s, "link.alpha_s", err));
    MOE_EPI_TRY(moe_epi_amount(l->intra_Bps, "link.intra_Bps", err));
    MOE_EPI_TRY(moe_epi_amount(l->inter_Bps, "link.inter_Bps", err));
    return moe_epi_check_p(l->p, "link.p", err);
}

/* What the expert products need of a machine. */
static moe_ep_status moe_epi_check_gemm(const moe_ep_machine *m, moe_ep_error *err)
{
    int i;
    if (!m) return moe_epi_null(err, "machine");
    MOE_EPI_TRY(moe_epi_amount(m->memory_Bps, "machine.memory_Bps", err));
    for (i = 0; i < (int)MOE_EP_MATH_COUNT; i++) MOE_EPI_TRY(moe_epi_amount(m->flops[i], "machine.flops", err));
    MOE_EPI_TRY(moe_epi_amount(m->gemm.t0_s, "machine.gemm.t0_s", err));
    MOE_EPI_TRY(moe_epi_amount(m->gemm.mem_eff, "machine.gemm.mem_eff", err));
    MOE_EPI_TRY(moe_epi_amount(m->gemm.flop_eff, "machine.gemm.flop_eff", err));
    MOE_EPI_TRY(moe_epi_at_least(m->gemm.tile, 0, "machine.gemm.tile", err));
    return moe_epi_check_p(m->gemm.p, "machine.gemm.p", err);
}

static double moe_epi_or(double v, double instead) { return v > 0.0 ? v : instead; }
static double moe_epi_larger(double a, double b) { return a > b ? a : b; }

/* (a^p + b^p)^(1/p); p = 0 gives the larger one.  The common exponents avoid pow. */
static double moe_epi_pnorm(double a, double b, double p)
{
    double hi = a > b ? a : b, lo = a > b ? b : a, r;
    if (!(p > 0.0) || !(lo > 0.0)) return hi;
    if (!(p > 1.0)) return hi + lo;
    r = lo / hi;
    if (p > 1.999999 && p < 2.000001) return hi * sqrt(1.0 + r * r);
    return hi * pow(1.0 + pow(r, p), 1.0 / p);
}

/* ---- parameters ----------------------------------------------------------------------------------- */

/* a * b * c into *sum, failing on overflow. */
static int moe_epi_mul_add(int64_t a, int64_t b, int64_t c, int64_t *sum)
{
    int64_t ab, abc;
    if (!moe_epi_mul(a, b, &ab) || !moe_epi_mul(ab, c, &abc) || abc > INT64_MAX - *sum) return 0;
    *sum += abc;
    return 1;
}

static int32_t moe_epi_layers(const moe_ep_model *m) { return m->num_layers > 0 ? m->num_layers : m->num_moe_layers; }
static int32_t moe_epi_shared_inter(const moe_ep_model *m) { return m->shared_inter > 0 ? m->shared_inter : m->inter; }

MOE_EP_API moe_ep_status moe_ep_params(const moe_ep_model *model, moe_ep_params_result *out, moe_ep_error *err)
{
    moe_ep_params_result r;
    int64_t matrices, H, used = 0;
    int fits = 1;
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_check_model(model, err));
    if (!out) return moe_epi_null(err, "out");
    memset(&r, 0, sizeof r);
    matrices = model->ungated ? 2 : 3;
    H = model->hidden;
    fits &= moe_epi_mul_add(matrices, H, model->inter, &r.expert);
    fits &= fits && moe_epi_mul_add(r.expert, model->num_experts, 1, &r.layer);
    fits &= fits && moe_epi_mul_add(r.layer, model->num_moe_layers, 1, &r.routed);
    fits &= moe_epi_mul_add(matrices * H, (int64_t)model->num_shared * moe_epi_shared_inter(model), model->num_moe_layers,
                            &r.shared);
    fits &= moe_epi_mul_add(H, model->num_experts, model->num_moe_layers, &r.router);
    fits &= moe_epi_mul_add(3 * H, model->dense_inter, moe_epi_layers(model) - model->num_moe_layers, &r.dense);
    fits &= moe_epi_mul_add(model->attention_params, moe_epi_layers(model), 1, &r.attention);
    fits &= moe_epi_mul_add(H, model->vocab, model->tied ? 1 : 2, &r.embedding);
    fits &= fits && moe_epi_mul_add(r.expert, model->top_k, model->num_moe_layers, &used);
    if (!fits || r.attention > INT64_MAX / 8 || r.routed > INT64_MAX / 8 || r.shared > INT64_MAX / 8 ||
        r.router > INT64_MAX / 8 || r.dense > INT64_MAX / 8 || r.embedding > INT64_MAX / 8)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "model", "the parameter count does not fit", -1, 0.0);
    r.total = r.routed + r.shared + r.router + r.dense + r.attention + r.embedding;
    r.active = used + r.shared + r.router + r.dense + r.attention + H * model->vocab;
    *out = r;
    return MOE_EP_OK;
}

/* ---- expert compute ----------------------------------------------------------------------------------- */

MOE_EP_API const char *moe_ep_regime_str(moe_ep_regime regime)
{
    switch (regime) {
    case MOE_EP_REGIME_IDLE: return "idle";
    case MOE_EP_REGIME_WEIGHTS: return "weights";
    case MOE_EP_REGIME_FLOPS: return "flops";
    case MOE_EP_REGIME_NETWORK: return "network";
    }
    return "unknown";
}

/* Rows of one device's slots, added up. */
typedef struct moe_epi_work {
    int64_t rows, padded;
    int32_t active;
} moe_epi_work;

static int64_t moe_epi_pad(int64_t rows, int32_t tile)
{
    if (tile <= 1) return rows;
    if ((tile & (tile - 1)) == 0) return (rows + tile - 1) & ~(int64_t)(tile - 1);
    return (rows + tile - 1) / tile * tile;
}

static void moe_epi_work_add(moe_epi_work *w, int64_t rows, int32_t tile)
{
    w->active += rows > 0;
    w->rows += rows;
    w->padded += moe_epi_pad(rows, tile);
}

/* Rows >= 0 whose padded sum fits with room to spare. */
static moe_ep_status moe_epi_check_rows(const int64_t *rows, int64_t n, const char *arg, int64_t *sum, moe_ep_error *err)
{
    int64_t i, total = 0;
    for (i = 0; i < n; i++) {
        if (rows[i] < 0) return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "rows must not be negative", i, (double)rows[i]);
        if (rows[i] > INT64_MAX / 8 - total) return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg, "the sum does not fit", i, 0.0);
        total += rows[i];
    }
    *sum = total;
    return MOE_EP_OK;
}

/* Seconds of one product, K x N weights per expert; adds the two parts to *mem_s and *flop_s. */
static double moe_epi_gemm_time(const moe_ep_model *m, const moe_ep_machine *c, const moe_epi_work *w, double K, double N,
                                double *mem_s, double *flop_s)
{
    double bytes, flops, mem = 0.0, flop = 0.0, peak = c->flops[m->math];
    bytes = (double)w->active * K * N * moe_epi_or(m->weight_bytes, 2.0) +
            (double)w->rows * (K * moe_epi_or(m->in_bytes, 2.0) + N * moe_epi_or(m->out_bytes, 2.0));
    flops = 2.0 * K * N * (double)w->padded;
    if (c->memory_Bps > 0.0) mem = bytes / (c->memory_Bps * moe_epi_or(c->gemm.mem_eff, 1.0));
    if (peak > 0.0) flop = flops / (peak * moe_epi_or(c->gemm.flop_eff, 1.0));
    *mem_s += mem;
    *flop_s += flop;
    return c->gemm.t0_s + moe_epi_pnorm(mem, flop, c->gemm.p);
}

/* Both products of experts of inner width I. */
static double moe_epi_experts_time(const moe_ep_model *m, const moe_ep_machine *c, const moe_epi_work *w, double I,
                                   double *mem_s, double *flop_s)
{
    double H = (double)m->hidden;
    *mem_s = *flop_s = 0.0;
    if (w->rows == 0) return 0.0;
    return moe_epi_gemm_time(m, c, w, H, m->ungated ? I : 2.0 * I, mem_s, flop_s) +
           moe_epi_gemm_time(m, c, w, I, H, mem_s, flop_s);
}

static void moe_epi_device_fill(moe_ep_device_time *t, const moe_epi_work *w, double seconds, double mem_s, double flop_s)
{
    memset(t, 0, sizeof *t);
    t->rows = w->rows;
    t->padded_rows = w->padded;
    t->active = w->active;
    t->compute_s = seconds;
    t->memory_s = mem_s;
    t->flop_s = flop_s;
    t->regime = w->rows == 0 ? MOE_EP_REGIME_IDLE : mem_s >= flop_s ? MOE_EP_REGIME_WEIGHTS : MOE_EP_REGIME_FLOPS;
}

MOE_EP_API double moe_ep_expert_time(const moe_ep_model *model, const moe_ep_machine *machine,
                                     const int64_t *slot_rows, int32_t n, moe_ep_device_time *out, moe_ep_error *err)
{
    moe_epi_work w;
    double seconds, mem_s, flop_s;
    int64_t sum;
    int32_t i;
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_check_shape(model, err));
    MOE_EPI_TRY(moe_epi_check_gemm(machine, err));
    MOE_EPI_TRY(moe_epi_at_least(n, 0, "n", err));
    if (!slot_rows && n > 0) return moe_epi_null(err, "slot_rows");
    MOE_EPI_TRY(moe_epi_check_rows(slot_rows, n, "slot_rows", &sum, err));
    memset(&w, 0, sizeof w);
    for (i = 0; i < n; i++) moe_epi_work_add(&w, slot_rows[i], machine->gemm.tile);
    seconds = moe_epi_experts_time(model, machine, &w, (double)model->inter, &mem_s, &flop_s);
    if (out) moe_epi_device_fill(out, &w, seconds, mem_s, flop_s);
    return seconds;
}

MOE_EP_API moe_ep_status moe_ep_group_gemm(const moe_ep_model *model, const int64_t *rows, int32_t n, int32_t tile,
                                           moe_ep_gemm_work *out, moe_ep_error *err)
{
    moe_epi_work w;
    double per_row, H, I;
    int64_t sum;
    int32_t i;
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_check_shape(model, err));
    if (!out) return moe_epi_null(err, "out");
    MOE_EPI_TRY(moe_epi_at_least(n, 0, "n", err));
    MOE_EPI_TRY(moe_epi_at_least(tile, 0, "tile", err));
    if (!rows && n > 0) return moe_epi_null(err, "rows");
    MOE_EPI_TRY(moe_epi_check_rows(rows, n, "rows", &sum, err));
    memset(&w, 0, sizeof w);
    for (i = 0; i < n; i++) moe_epi_work_add(&w, rows[i], tile);
    H = (double)model->hidden;
    I = (double)model->inter;
    per_row = (model->ungated ? 2.0 : 3.0) * H * I;
    memset(out, 0, sizeof *out);
    out->rows = w.rows;
    out->padded_rows = w.padded;
    out->active = w.active;
    out->flops = 2.0 * per_row * (double)w.rows;
    out->padded_flops = 2.0 * per_row * (double)w.padded;
    out->weight_bytes = per_row * moe_epi_or(model->weight_bytes, 2.0) * (double)w.active;
    out->activation_bytes = (double)w.rows * ((H + I) * moe_epi_or(model->in_bytes, 2.0) +
                                              (H + (model->ungated ? I : 2.0 * I)) * moe_epi_or(model->out_bytes, 2.0));
    out->intensity = out->weight_bytes > 0.0 ? out->flops / out->weight_bytes : 0.0;
    return MOE_EP_OK;
}

/* ---- expectations ------------------------------------------------------------------------------------ */

/* Chance that K distinct experts out of n miss all of b given ones: C(n-b,K) / C(n,K). */
static double moe_epi_miss(int64_t n, int64_t b, int32_t K)
{
    double p = 1.0;
    int32_t i;
    if (b <= 0) return 1.0;
    if (n - b < K) return 0.0;
    for (i = 0; i < K; i++) p *= (double)(n - b - i) / (double)(n - i);
    return p;
}

static double moe_epi_choose(int32_t n, int32_t k)
{
    double c = 1.0;
    int32_t i;
    if (k < 0 || k > n) return 0.0;
    for (i = 0; i < k; i++) c *= (double)(n - i) / (double)(i + 1);
    return c;
}

/* Routing as the expectations see it: M of G equal groups are drawn, then K experts inside them. */
typedef struct moe_epi_routing {
    int32_t E, K, G, M;
} moe_epi_routing;

/* Chance that a token has no expert in first .. last-1.  With groups the block is cut into whole groups and
 * at most two partial ones; the sum runs over which of them were drawn. */
static double moe_epi_block_miss(const moe_epi_routing *q, int32_t first, int32_t last)
{
    int32_t size, g0, g1, whole, a, b, j, part[2] = {0, 0}, rest;
    double miss = 0.0;
    if (q->M >= q->G) return moe_epi_miss(q->E, last - first, q->K);
    size = q->E / q->G;
    g0 = first / size;
    g1 = last / size;
    if (g0 == g1) {
        part[0] = last - first;
        whole = 0;
    } else {
        whole = g1 - g0 - (first % size != 0);
        part[0] = first % size != 0 ? size - first % size : 0;
        part[1] = last % size;
    }
    rest = q->G - whole - (part[0] > 0) - (part[1] > 0);
    for (a = 0; a <= (part[0] > 0); a++)
        for (b = 0; b <= (part[1] > 0); b++)
            for (j = 0; j <= whole && a + b + j <= q->M; j++)
                miss += moe_epi_choose(whole, j) * moe_epi_choose(rest, q->M - a - b - j) *
                        moe_epi_miss((int64_t)q->M * size, (int64_t)a * part[0] + (int64_t)b * part[1] + (int64_t)j * size, q->K);
    return miss / moe_epi_choose(q->G, q->M);
}

static int32_t moe_epi_block_start(int32_t E, int32_t blocks, int32_t i)
{
    return (int32_t)((int64_t)E * i / blocks);
}

/* Expected blocks a token reaches when E experts lie in `blocks` contiguous, equal-as-can-be blocks. */
static double moe_epi_distinct(const moe_epi_routing *q, int32_t blocks)
{
    double distinct = 0.0;
    int32_t i, per = q->E / blocks, uneven = q->E % blocks;
    if (q->M >= q->G) /* only two block sizes occur, so the position does not matter */
        return (double)(blocks - uneven) * (1.0 - moe_epi_miss(q->E, per, q->K)) +
               (double)uneven * (1.0 - moe_epi_miss(q->E, (int64_t)per + 1, q->K));
    for (i = 0; i < blocks; i++)
        distinct += 1.0 - moe_epi_block_miss(q, moe_epi_block_start(q->E, blocks, i), moe_epi_block_start(q->E, blocks, i + 1));
    return distinct;
}

/* E, K and the routing groups; groups must divide E and hold K experts. */
static moe_ep_status moe_epi_check_routing(int32_t E, int32_t K, int32_t groups, int32_t top_groups, moe_epi_routing *q,
                                           moe_ep_error *err)
{
    MOE_EPI_TRY(moe_epi_at_least(E, 1, "num_experts", err));
    MOE_EPI_TRY(moe_epi_at_least(K, 1, "top_k", err));
    if (K > E) return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "top_k", "larger than num_experts", -1, (double)K);
    MOE_EPI_TRY(moe_epi_at_least(groups, 0, "num_groups", err));
    MOE_EPI_TRY(moe_epi_at_least(top_groups, 0, "top_groups", err));
    q->E = E;
    q->K = K;
    q->G = groups > 1 ? groups : 1;
    q->M = top_groups > 0 && top_groups < q->G ? top_groups : q->G;
    if (E % q->G != 0)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "num_groups", "must divide num_experts", -1, (double)groups);
    if ((int64_t)q->M * (E / q->G) < K)
        return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "top_groups", "the groups hold fewer than K experts", -1, (double)top_groups);
    return MOE_EP_OK;
}

/* Expected maximum of n independent standard normals: integral of 1 - Phi^n, cut at +-9. */
static double moe_epi_normal_max(int32_t n)
{
    const int32_t steps = 900;
    double sum = 0.0, x;
    int32_t i;
    for (i = 0; i < steps; i++) {
        x = -9.0 + 18.0 * ((double)i + 0.5) / (double)steps;
        sum += pow(0.5 * erfc(-x * 0.70710678118654752), (double)n);
    }
    return 9.0 - sum * 18.0 / (double)steps;
}

/* Expected maximum of n independent counts with this mean and variance, none above `most`: binomial of matching
 * moments while the counts are small, normal beyond. */
static double moe_epi_count_max(double mean, double var, int32_t n, double most)
{
    double sd = sqrt(moe_epi_larger(var, 0.0)), trials, odds, w, x, low, below = 0.0, total = 0.0, result;
    if (!(mean > 0.0) || !(sd > 1e-6 * mean)) return mean;
    if (n == 1) return mean;
    if (sd > 30.0) {
        result = mean + sd * moe_epi_normal_max(n);
        return result < most ? result : most;
    }
    if (var > mean * 0.9999) var = mean * 0.9999; /* nearly Poisson */
    odds = (mean - var) / var;                    /* p / (1 - p) with p = 1 - var / mean */
    trials = mean * mean / (mean - var);
    low = floor(mean);
    for (w = 1.0; low > 0.0 && w > 1e-18; low -= 1.0) w *= low / ((trials - low + 1.0) * odds);
    result = low;
    for (x = low, sd = w; w > 0.0 && (x <= mean || w > 1e-18); x += 1.0) {
        total += w;
        if (x >= trials || x >= most) break;
        w *= (trials - x) * odds / (x + 1.0);
    }
    for (x = low, w = sd; below < total * (1.0 - 1e-15) && x < most; x += 1.0) {
        below += w;
        result += 1.0 - pow(below < total ? below / total : 1.0, (double)n);
        if (x >= trials) break;
        w *= (trials - x) * odds / (x + 1.0);
    }
    return result < most ? result : most;
}

/* Variances of a device's rows and active experts, raised for the devices' negative correlation (their sum is
 * fixed or nearly so): var - cov, which for equally correlated normals makes the expected maximum exact. */
static void moe_epi_expect_busiest(const moe_ep_expect_desc *d, moe_ep_expect_result *r, int32_t D)
{
    double E = (double)d->num_experts, K = (double)d->top_k, T = (double)d->tokens, B = E / (double)D;
    double one, two, var, cov = 0.0;
    var = d->num_experts > 1 ? T * K / (double)D * (E - K) / (E - 1.0) : 0.0;
    r->rows_sd = sqrt(var * (1.0 - 1.0 / (double)D));
    r->busiest_rows = moe_epi_count_max(r->rows_mean, var, D, T * (B + 1.0 < K ? B + 1.0 : K));
    one = d->top_k < d->num_experts ? exp(T * log1p(-K / E)) : T > 0.0 ? 0.0 : 1.0;
    two = d->top_k + 1 < d->num_experts ? exp(T * (log1p(-K / E) + log1p(-K / (E - 1.0)))) : T > 0.0 ? 0.0 : 1.0;
    if (d->num_experts > 1) cov = two - one * one;
    var = B * one * (1.0 - one) - B * cov;
    r->busiest_active = moe_epi_count_max(r->active_device, var, D, ceil(B));
}

MOE_EP_API moe_ep_status moe_ep_expect(const moe_ep_expect_desc *desc, moe_ep_expect_result *out, moe_ep_error *err)
{
    moe_ep_expect_result r;
    moe_epi_routing q;
    double E, T;
    int32_t D;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if (!out) return moe_epi_null(err, "out");
    MOE_EPI_TRY(moe_epi_check_routing(desc->num_experts, desc->top_k, desc->num_groups, desc->top_groups, &q, err));
    if (desc->tokens < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "tokens", "must not be negative", -1, (double)desc->tokens);
    MOE_EPI_TRY(moe_epi_at_least(desc->num_devices, 0, "num_devices", err));
    MOE_EPI_TRY(moe_epi_at_least(desc->num_nodes, 0, "num_nodes", err));
    memset(&r, 0, sizeof r);
    D = desc->num_devices > 0 ? desc->num_devices : 1;
    E = (double)desc->num_experts;
    T = (double)desc->tokens;
    r.distinct_devices = moe_epi_distinct(&q, D);
    r.distinct_nodes = moe_epi_distinct(&q, desc->num_nodes > 0 ? desc->num_nodes : 1);
    r.device_tokens = T * r.distinct_devices / (double)D;
    r.active_total = q.K < q.E ? -E * expm1(T * log1p(-(double)q.K / E)) : desc->tokens > 0 ? E : 0.0;
    r.active_device = r.active_total / (double)D;
    r.rows_mean = T * (double)q.K / (double)D;
    if (q.M >= q.G) {
        moe_epi_expect_busiest(desc, &r, D);
        if (r.rows_mean > 0.0) r.excess = r.busiest_rows / r.rows_mean - 1.0;
    }
    *out = r;
    return MOE_EP_OK;
}

/* ---- all-to-all ----------------------------------------------------------------------------------- */

MOE_EP_API int64_t moe_ep_row_bytes(moe_ep_wire wire, int32_t hidden, int32_t extra_bytes, moe_ep_error *err)
{
    int64_t H = hidden, bytes = 0;
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_at_least(hidden, 1, "hidden", err));
    if (extra_bytes < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "extra_bytes", "must not be negative", -1, (double)extra_bytes);
    switch (wire) {
    case MOE_EP_WIRE_BF16: bytes = 2 * H; break;
    case MOE_EP_WIRE_FP32: bytes = 4 * H; break;
    case MOE_EP_WIRE_FP8: bytes = H + 4 * ((H + 127) / 128); break;
    case MOE_EP_WIRE_MXFP8: bytes = H + (H + 31) / 32; break;
    case MOE_EP_WIRE_NVFP4: bytes = (H + 1) / 2 + (H + 15) / 16; break;
    }
    if (bytes == 0) return moe_epi_fail(err, MOE_EP_ERR_RANGE, "wire", "no such wire format", -1, (double)(int)wire);
    return bytes + extra_bytes;
}

static moe_ep_status moe_epi_check_mode(moe_ep_a2a_mode mode, moe_ep_error *err)
{
    if ((int)mode < 0 || (int)mode > (int)MOE_EP_A2A_ALLGATHER)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "mode", "no such counting mode", -1, (double)(int)mode);
    return MOE_EP_OK;
}

/* Rows one source device sends per token (per device for ALLGATHER's receive side), split by link, expected. */
typedef struct moe_epi_expected {
    double intra, inter, logical;
} moe_epi_expected;

static moe_epi_expected moe_epi_expected_rows(const moe_epi_routing *q, moe_ep_a2a_mode mode, int32_t D, int32_t N,
                                              double tokens, double capacity)
{
    moe_epi_expected x;
    double devices = (double)D, nodes = (double)N, per_node = devices / nodes, reach;
    double intra = (per_node - 1.0) / devices, inter = 1.0 - 1.0 / nodes;
    if (mode == MOE_EP_A2A_NODE_DEDUP) {
        reach = moe_epi_distinct(q, N);
        x.inter = tokens * reach * inter;
        x.logical = N > 1 ? tokens * reach : tokens * moe_epi_distinct(q, D);
        x.intra = tokens * moe_epi_distinct(q, D) * (per_node - 1.0) / per_node;
        return x;
    }
    reach = (double)q->K;
    if (mode == MOE_EP_A2A_RANK_DEDUP) reach = moe_epi_distinct(q, D);
    if (mode == MOE_EP_A2A_ALLGATHER) reach = devices;
    x.logical = tokens * reach;
    if (mode == MOE_EP_A2A_PADDED) x.logical = (double)q->E * capacity;
    x.intra = x.logical * intra;
    x.inter = x.logical * inter;
    return x;
}

static moe_ep_status moe_epi_check_comm(const moe_ep_comm_desc *d, moe_epi_routing *q, int32_t *N, moe_ep_error *err)
{
    if (!d) return moe_epi_null(err, "desc");
    MOE_EPI_TRY(moe_epi_check_routing(d->num_experts, d->top_k, d->num_groups, d->top_groups, q, err));
    MOE_EPI_TRY(moe_epi_amount(d->tokens, "tokens", err));
    MOE_EPI_TRY(moe_epi_amount(d->capacity, "capacity", err));
    MOE_EPI_TRY(moe_epi_at_least(d->num_devices, 1, "num_devices", err));
    MOE_EPI_TRY(moe_epi_at_least(d->num_nodes, 0, "num_nodes", err));
    MOE_EPI_TRY(moe_epi_check_mode(d->mode, err));
    *N = d->num_nodes > 0 ? d->num_nodes : 1;
    if (d->num_devices % *N != 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_devices", "must be a multiple of num_nodes", -1, (double)d->num_devices);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_comm_bytes(const moe_ep_comm_desc *desc, moe_ep_comm_result *out, moe_ep_error *err)
{
    moe_ep_comm_result r;
    moe_epi_routing q;
    moe_epi_expected x;
    int32_t N = 1;
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_check_comm(desc, &q, &N, err));
    if (!out) return moe_epi_null(err, "out");
    memset(&r, 0, sizeof r);
    r.dispatch_row_bytes = moe_ep_row_bytes(desc->dispatch_wire, desc->hidden, desc->dispatch_extra, err);
    if (r.dispatch_row_bytes < 0) return (moe_ep_status)r.dispatch_row_bytes;
    r.combine_row_bytes = moe_ep_row_bytes(desc->combine_wire, desc->hidden, desc->combine_extra, err);
    if (r.combine_row_bytes < 0) return (moe_ep_status)r.combine_row_bytes;
    x = moe_epi_expected_rows(&q, desc->mode, desc->num_devices, N, desc->tokens, desc->capacity);
    r.intra_rows = x.intra;
    r.inter_rows = x.inter;
    r.logical_rows = x.logical;
    r.dispatch_intra_bytes = x.intra * (double)r.dispatch_row_bytes;
    r.dispatch_inter_bytes = x.inter * (double)r.dispatch_row_bytes;
    r.combine_intra_bytes = x.intra * (double)r.combine_row_bytes;
    r.combine_inter_bytes = x.inter * (double)r.combine_row_bytes;
    r.logical_dispatch_bytes = x.logical * (double)r.dispatch_row_bytes;
    r.logical_combine_bytes = x.logical * (double)r.combine_row_bytes;
    r.tp_allreduce_bytes = 2.0 * (double)(desc->num_devices - 1) / (double)desc->num_devices * desc->tokens *
                           (double)desc->num_devices * 2.0 * (double)desc->hidden;
    *out = r;
    return MOE_EP_OK;
}

MOE_EP_API double moe_ep_comm_time(double bytes, double alpha_s, double bytes_per_s, moe_ep_error *err)
{
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_amount(bytes, "bytes", err));
    MOE_EPI_TRY(moe_epi_amount(alpha_s, "alpha_s", err));
    MOE_EPI_TRY(moe_epi_amount(bytes_per_s, "bytes_per_s", err));
    return alpha_s + (bytes_per_s > 0.0 ? bytes / bytes_per_s : 0.0);
}

static double moe_epi_link_seconds(const moe_ep_link *l, double intra_bytes, double inter_bytes)
{
    double intra = l->intra_Bps > 0.0 ? intra_bytes / l->intra_Bps : 0.0;
    double inter = l->inter_Bps > 0.0 ? inter_bytes / l->inter_Bps : 0.0;
    double moved = moe_epi_pnorm(inter, intra, l->p);
    return l->alpha_in_norm ? moe_epi_pnorm(l->alpha_s, moved, l->p) : l->alpha_s + moved;
}

MOE_EP_API double moe_ep_link_time(const moe_ep_link *link, double intra_bytes, double inter_bytes, moe_ep_error *err)
{
    moe_epi_ok(err);
    if (!link) return moe_epi_null(err, "link");
    MOE_EPI_TRY(moe_epi_check_link(link, err));
    MOE_EPI_TRY(moe_epi_amount(intra_bytes, "intra_bytes", err));
    MOE_EPI_TRY(moe_epi_amount(inter_bytes, "inter_bytes", err));
    return moe_epi_link_seconds(link, intra_bytes, inter_bytes);
}

/* Logical bytes of a phase, negative = status. */
static double moe_epi_logical(const moe_ep_comm_desc *desc, int32_t combine, double v, const char *arg, moe_ep_error *err)
{
    moe_ep_comm_result r;
    MOE_EPI_TRY(moe_ep_comm_bytes(desc, &r, err));
    MOE_EPI_TRY(moe_epi_amount(v, arg, err));
    if (!(v > 0.0)) return moe_epi_fail(err, MOE_EP_ERR_RANGE, arg, "must be positive", -1, v);
    return combine ? r.logical_combine_bytes : r.logical_dispatch_bytes;
}

MOE_EP_API double moe_ep_logical_time(const moe_ep_comm_desc *desc, int32_t combine, double bytes_per_s, moe_ep_error *err)
{
    double bytes;
    moe_epi_ok(err);
    bytes = moe_epi_logical(desc, combine, bytes_per_s, "bytes_per_s", err);
    return bytes < 0.0 ? bytes : bytes / bytes_per_s;
}

MOE_EP_API double moe_ep_logical_Bps(const moe_ep_comm_desc *desc, int32_t combine, double time_s, moe_ep_error *err)
{
    double bytes;
    moe_epi_ok(err);
    bytes = moe_epi_logical(desc, combine, time_s, "time_s", err);
    return bytes < 0.0 ? bytes : bytes / time_s;
}

/* Devices, nodes and counted rows (or none) of an exchange. */
typedef struct moe_epi_net {
    int32_t D, N;
    const int32_t *node_of; /* NULL = d * N / D */
    moe_ep_a2a_mode mode;
    const int64_t *rows, *node_rows;
} moe_epi_net;

typedef struct moe_epi_volume {
    double out_intra, in_intra, out_inter, in_inter; /* rows */
} moe_epi_volume;

static int32_t moe_epi_node(const moe_epi_net *n, int32_t d)
{
    return n->node_of ? n->node_of[d] : (int32_t)((int64_t)d * n->N / n->D);
}

static moe_ep_status moe_epi_check_net(const moe_epi_net *n, const char *rows_arg, const char *node_rows_arg, moe_ep_error *err)
{
    int64_t sum, cells;
    int32_t d;
    for (d = 0; n->node_of && d < n->D; d++) {
        if (n->node_of[d] < 0 || n->node_of[d] >= n->N)
            return moe_epi_fail(err, MOE_EP_ERR_DEVICE_ID, "node_of_device", "not in 0..N-1", d, (double)n->node_of[d]);
        if (d > 0 && n->node_of[d] < n->node_of[d - 1])
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "node_of_device", "devices of a node must be neighbours, nodes ascending", d,
                                (double)n->node_of[d]);
    }
    cells = (int64_t)n->D * n->D;
    if (n->rows) MOE_EPI_TRY(moe_epi_check_rows(n->rows, cells, rows_arg, &sum, err));
    if (n->rows && n->mode == MOE_EP_A2A_NODE_DEDUP) {
        if (!n->node_rows) return moe_epi_null(err, node_rows_arg);
        MOE_EPI_TRY(moe_epi_check_rows(n->node_rows, (int64_t)n->D * n->N, node_rows_arg, &sum, err));
    }
    return MOE_EP_OK;
}

/* Every row travels from its source straight to its device. */
static moe_epi_volume moe_epi_volume_direct(const moe_epi_net *n, int32_t r)
{
    moe_epi_volume v;
    int64_t out_near = 0, out_far = 0, in_near = 0, in_far = 0, there, back;
    int32_t s, mine = moe_epi_node(n, r);
    for (s = 0; s < n->D; s++) {
        if (s == r) continue;
        there = n->rows[(int64_t)r * n->D + s];
        back = n->rows[(int64_t)s * n->D + r];
        if (moe_epi_node(n, s) == mine) {
            out_near += there;
            in_near += back;
        } else {
            out_far += there;
            in_far += back;
        }
    }
    v.out_intra = (double)out_near;
    v.in_intra = (double)in_near;
    v.out_inter = (double)out_far;
    v.in_inter = (double)in_far;
    return v;
}

/* One copy per node crosses, lands on the device of the source's place in that node, and is forwarded. */
static moe_epi_volume moe_epi_volume_forwarded(const moe_epi_net *n, int32_t r)
{
    moe_epi_volume v;
    int64_t out_near = 0, out_far = 0, in_near = 0, in_far = 0;
    int32_t mine = moe_epi_node(n, r), first = r, last = r + 1, s, d, place = 0, node = -1, other, landing;
    while (first > 0 && moe_epi_node(n, first - 1) == mine) first--;
    while (last < n->D && moe_epi_node(n, last) == mine) last++;
    for (other = 0; other < n->N; other++)
        if (other != mine) out_far += n->node_rows[(int64_t)r * n->N + other];
    for (s = 0; s < n->D; s++, place++) {
        if (moe_epi_node(n, s) != node) {
            node = moe_epi_node(n, s);
            place = 0;
        }
        landing = node == mine ? s : first + place % (last - first);
        if (landing != r) {
            in_near += n->rows[(int64_t)s * n->D + r];
            continue;
        }
        if (node != mine) in_far += n->node_rows[(int64_t)s * n->N + mine];
        for (d = first; d < last; d++)
            if (d != r) out_near += n->rows[(int64_t)s * n->D + d];
    }
    v.out_intra = (double)out_near;
    v.in_intra = (double)in_near;
    v.out_inter = (double)out_far;
    v.in_inter = (double)in_far;
    return v;
}

static moe_epi_volume moe_epi_volume_counted(const moe_epi_net *n, int32_t r)
{
    return n->mode == MOE_EP_A2A_NODE_DEDUP ? moe_epi_volume_forwarded(n, r) : moe_epi_volume_direct(n, r);
}

static moe_epi_volume moe_epi_volume_back(moe_epi_volume v)
{
    moe_epi_volume b;
    b.out_intra = v.in_intra;
    b.in_intra = v.out_intra;
    b.out_inter = v.in_inter;
    b.in_inter = v.out_inter;
    return b;
}

static double moe_epi_volume_time(const moe_ep_link *l, const moe_epi_volume *v, double row_bytes)
{
    return moe_epi_link_seconds(l, moe_epi_larger(v->out_intra, v->in_intra) * row_bytes,
                                moe_epi_larger(v->out_inter, v->in_inter) * row_bytes);
}

MOE_EP_API double moe_ep_a2a_time(const moe_ep_a2a_desc *desc, moe_ep_a2a_device *devices, moe_ep_error *err)
{
    moe_epi_net net;
    moe_epi_volume v;
    double slowest = 0.0, seconds;
    int32_t r;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    MOE_EPI_TRY(moe_epi_at_least(desc->num_devices, 1, "num_devices", err));
    MOE_EPI_TRY(moe_epi_at_least(desc->num_nodes, 0, "num_nodes", err));
    MOE_EPI_TRY(moe_epi_check_mode(desc->mode, err));
    if (!desc->rows) return moe_epi_null(err, "rows");
    MOE_EPI_TRY(moe_epi_amount(desc->row_bytes, "row_bytes", err));
    MOE_EPI_TRY(moe_epi_check_link(&desc->link, err));
    net.D = desc->num_devices;
    net.N = desc->num_nodes > 0 ? desc->num_nodes : 1;
    net.node_of = desc->node_of_device;
    net.mode = desc->mode;
    net.rows = desc->rows;
    net.node_rows = desc->node_rows;
    MOE_EPI_TRY(moe_epi_check_net(&net, "rows", "node_rows", err));
    for (r = 0; r < net.D; r++) {
        v = moe_epi_volume_counted(&net, r);
        if (desc->reverse) v = moe_epi_volume_back(v);
        seconds = net.D > 1 ? moe_epi_volume_time(&desc->link, &v, desc->row_bytes) : 0.0;
        if (seconds > slowest) slowest = seconds;
        if (!devices) continue;
        devices[r].out_intra = v.out_intra * desc->row_bytes;
        devices[r].in_intra = v.in_intra * desc->row_bytes;
        devices[r].out_inter = v.out_inter * desc->row_bytes;
        devices[r].in_inter = v.in_inter * desc->row_bytes;
        devices[r].time_s = seconds;
    }
    return slowest;
}

/* ---- a layer, a step ------------------------------------------------------------------------------- */

static moe_ep_status moe_epi_check_stages(const moe_ep_stages *s, moe_ep_error *err)
{
    MOE_EPI_TRY(moe_epi_amount(s->attention_s, "attention_s", err));
    MOE_EPI_TRY(moe_epi_amount(s->dispatch_s, "dispatch_s", err));
    MOE_EPI_TRY(moe_epi_amount(s->compute_s, "compute_s", err));
    MOE_EPI_TRY(moe_epi_amount(s->combine_s, "combine_s", err));
    return moe_epi_amount(s->shared_s, "shared_s", err);
}

/* One micro-batch's share of a layer when another one runs beside it. */
static double moe_epi_compose_half(moe_ep_overlap overlap, const moe_ep_stages *s)
{
    if (overlap == MOE_EP_OVERLAP_TWO_EXPOSED)
        return moe_epi_larger(s->attention_s, s->compute_s + s->shared_s + s->dispatch_s + s->combine_s);
    return moe_epi_larger(s->attention_s + s->compute_s + s->shared_s, s->dispatch_s + s->combine_s);
}

static double moe_epi_compose(moe_ep_overlap overlap, const moe_ep_stages *a, const moe_ep_stages *b, double microbatch_s)
{
    if (overlap == MOE_EP_OVERLAP_NONE) return a->attention_s + a->dispatch_s + a->compute_s + a->combine_s + a->shared_s;
    if (overlap == MOE_EP_OVERLAP_SHARED)
        return a->attention_s + moe_epi_larger(a->dispatch_s, a->shared_s) + a->compute_s + a->combine_s;
    return moe_epi_compose_half(overlap, a) + moe_epi_compose_half(overlap, b) + microbatch_s;
}

static moe_ep_status moe_epi_check_overlap(moe_ep_overlap overlap, moe_ep_error *err)
{
    if ((int)overlap < 0 || (int)overlap > (int)MOE_EP_OVERLAP_TWO_HIDDEN)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "overlap", "no such overlap", -1, (double)(int)overlap);
    return MOE_EP_OK;
}

static int moe_epi_two_batches(moe_ep_overlap overlap)
{
    return overlap == MOE_EP_OVERLAP_TWO_EXPOSED || overlap == MOE_EP_OVERLAP_TWO_HIDDEN;
}

MOE_EP_API double moe_ep_compose(moe_ep_overlap overlap, const moe_ep_stages *first, const moe_ep_stages *second,
                                 double microbatch_s, moe_ep_error *err)
{
    moe_epi_ok(err);
    if (!first) return moe_epi_null(err, "first");
    MOE_EPI_TRY(moe_epi_check_overlap(overlap, err));
    MOE_EPI_TRY(moe_epi_check_stages(first, err));
    if (second) MOE_EPI_TRY(moe_epi_check_stages(second, err));
    MOE_EPI_TRY(moe_epi_amount(microbatch_s, "microbatch_s", err));
    return moe_epi_compose(overlap, first, second ? second : first, microbatch_s);
}

/* A checked layer, ready to be evaluated for the whole batch or one of its halves. */
typedef struct moe_epi_layer {
    const moe_ep_layer_desc *d;
    const moe_ep_model *model;
    const moe_ep_machine *machine;
    const int32_t *slot_start; /* NULL = dealt evenly */
    const int64_t *slot_rows;
    moe_epi_net net;
    int32_t P;
    int64_t total;             /* rows */
    double tokens;             /* per device */
    moe_epi_expected expected; /* per device, when no traffic is given */
    double dispatch_row, combine_row;
    const moe_ep_link *dispatch_link, *combine_link;
} moe_epi_layer;

typedef enum moe_epi_part { MOE_EPI_WHOLE = 0, MOE_EPI_FIRST_HALF = 1, MOE_EPI_SECOND_HALF = 2 } moe_epi_part;

/* Largest stages over the devices. */
typedef struct moe_epi_layer_sum {
    moe_ep_stages stages;
    double longest_own, sum_compute;
    int32_t slowest, busiest, max_active, sum_active;
    int64_t max_rows;
    moe_ep_regime regime;
} moe_epi_layer_sum;

static int32_t moe_epi_slot_begin(const moe_epi_layer *y, int32_t device)
{
    int32_t D = y->net.D, each = y->P / D, more = y->P % D;
    if (y->slot_start) return y->slot_start[device];
    return device * each + (device < more ? device : more);
}

/* Devices, nodes and slots from the placement or from the plain numbers. */
static moe_ep_status moe_epi_layer_shape(const moe_ep_layer_desc *d, moe_epi_layer *y, moe_ep_error *err)
{
    const moe_ep_placement *p = d->placement;
    int32_t r;
    if (p) {
        MOE_EPI_TRY(moe_epi_at_least(p->num_devices, 1, "placement.num_devices", err));
        MOE_EPI_TRY(moe_epi_at_least(p->num_slots, 1, "placement.num_slots", err));
        if (!p->slot_start) return moe_epi_null(err, "placement.slot_start");
        for (r = 0; r < p->num_devices; r++)
            if (p->slot_start[r + 1] < p->slot_start[r] || p->slot_start[r + 1] > p->num_slots || p->slot_start[r] < 0)
                return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "placement.slot_start", "must ascend to num_slots", r,
                                    (double)p->slot_start[r + 1]);
        y->slot_start = p->slot_start;
        y->net.D = p->num_devices;
        y->net.N = p->num_nodes > 1 && p->device_node ? p->num_nodes : 1;
        y->net.node_of = y->net.N > 1 ? p->device_node : NULL;
        y->P = p->num_slots;
        return MOE_EP_OK;
    }
    MOE_EPI_TRY(moe_epi_at_least(d->num_devices, 1, "num_devices", err));
    MOE_EPI_TRY(moe_epi_at_least(d->num_slots, 0, "num_slots", err));
    MOE_EPI_TRY(moe_epi_at_least(d->num_nodes, 0, "num_nodes", err));
    y->net.D = d->num_devices;
    y->net.N = d->num_nodes;
    if (d->num_nodes == 0) {
        int32_t near = d->machine->devices_per_node > 0 ? d->machine->devices_per_node : d->num_devices;
        y->net.N = (d->num_devices - 1) / near + 1;
    }
    y->P = d->num_slots > 0 ? d->num_slots : d->model->num_experts;
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_layer_check(const moe_ep_layer_desc *d, moe_ep_error *err)
{
    const moe_ep_machine *m = d->machine;
    MOE_EPI_TRY(moe_epi_check_model(d->model, err));
    MOE_EPI_TRY(moe_epi_check_gemm(m, err));
    MOE_EPI_TRY(moe_epi_at_least(m->devices_per_node, 0, "machine.devices_per_node", err));
    MOE_EPI_TRY(moe_epi_check_link(d->high_throughput ? &m->normal_dispatch : &m->ll_dispatch, err));
    MOE_EPI_TRY(moe_epi_check_link(d->high_throughput ? &m->normal_combine : &m->ll_combine, err));
    MOE_EPI_TRY(moe_epi_check_mode(d->mode, err));
    MOE_EPI_TRY(moe_epi_check_overlap(d->overlap, err));
    if (d->tokens < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "tokens", "must not be negative", -1, (double)d->tokens);
    MOE_EPI_TRY(moe_epi_amount(d->capacity, "capacity", err));
    MOE_EPI_TRY(moe_epi_amount(d->attention_s, "attention_s", err));
    MOE_EPI_TRY(moe_epi_amount(d->attention_half_s, "attention_half_s", err));
    MOE_EPI_TRY(moe_epi_amount(d->microbatch_s, "microbatch_s", err));
    if (moe_epi_two_batches(d->overlap) && d->attention_s > 0.0 && !(d->attention_half_s > 0.0))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "attention_half_s", "two micro-batches need attention at half the batch", -1,
                            d->attention_half_s);
    if (d->hooks && d->hooks->size != sizeof(moe_ep_cost_hooks))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "hooks.size", "must be sizeof(moe_ep_cost_hooks)", -1, (double)d->hooks->size);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_layer_open(const moe_ep_layer_desc *d, const int64_t *slot_rows, moe_epi_layer *y, moe_ep_error *err)
{
    moe_epi_routing q;
    int64_t bytes;
    memset(y, 0, sizeof *y);
    MOE_EPI_TRY(moe_epi_layer_check(d, err));
    MOE_EPI_TRY(moe_epi_layer_shape(d, y, err));
    y->d = d;
    y->model = d->model;
    y->machine = d->machine;
    y->slot_rows = slot_rows;
    y->net.mode = d->mode;
    y->net.rows = d->traffic;
    y->net.node_rows = d->node_traffic;
    MOE_EPI_TRY(moe_epi_check_rows(slot_rows, y->P, "slot_rows", &y->total, err));
    MOE_EPI_TRY(moe_epi_check_net(&y->net, "traffic", "node_traffic", err));
    bytes = moe_ep_row_bytes(d->dispatch_wire, d->model->hidden, d->dispatch_extra, err);
    if (bytes < 0) return (moe_ep_status)bytes;
    y->dispatch_row = (double)bytes;
    bytes = moe_ep_row_bytes(d->combine_wire, d->model->hidden, d->combine_extra, err);
    if (bytes < 0) return (moe_ep_status)bytes;
    y->combine_row = (double)bytes;
    y->tokens = d->tokens > 0 ? (double)d->tokens
                              : ceil((double)y->total / ((double)d->model->top_k * (double)y->net.D));
    MOE_EPI_TRY(moe_epi_check_routing(d->model->num_experts, d->model->top_k, d->model->num_groups, d->model->top_groups, &q, err));
    if (!d->traffic)
        y->expected = moe_epi_expected_rows(&q, d->mode, y->net.D, y->net.N, y->tokens, d->capacity);
    y->dispatch_link = d->high_throughput ? &d->machine->normal_dispatch : &d->machine->ll_dispatch;
    y->combine_link = d->high_throughput ? &d->machine->normal_combine : &d->machine->ll_combine;
    return MOE_EP_OK;
}

/* Rows of a slot in this part of the batch; *odd deals the left-over rows of odd slots to the halves in turn. */
static int64_t moe_epi_part_rows(int64_t rows, moe_epi_part part, int *odd)
{
    int64_t half = rows / 2;
    if (part == MOE_EPI_WHOLE) return rows;
    if (rows % 2 == 0) return half;
    *odd = !*odd;
    return half + (*odd == (part == MOE_EPI_FIRST_HALF));
}

/* What a device sends and receives.  Without counted traffic the sources are even, and what arrives is in
 * proportion to the device's rows, except where a mode moves the same bytes whatever the routing. */
static moe_epi_volume moe_epi_layer_volume(const moe_epi_layer *y, int32_t r, int64_t whole_rows, double share)
{
    moe_epi_volume v;
    double load = 1.0;
    if (y->net.rows) {
        v = moe_epi_volume_counted(&y->net, r);
    } else {
        if (y->total > 0 && y->net.mode != MOE_EP_A2A_PADDED && y->net.mode != MOE_EP_A2A_ALLGATHER)
            load = (double)whole_rows * (double)y->net.D / (double)y->total;
        v.out_intra = y->expected.intra;
        v.out_inter = y->expected.inter;
        v.in_intra = y->expected.intra * load;
        v.in_inter = y->expected.inter * load;
    }
    v.out_intra *= share;
    v.in_intra *= share;
    v.out_inter *= share;
    v.in_inter *= share;
    return v;
}

static moe_ep_status moe_epi_hook_result(double us, const char *arg, int32_t device, double *seconds, moe_ep_error *err)
{
    if (!moe_epi_finite(us) || us < 0.0)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, arg, "the hook returned no time", device, us);
    *seconds = us * 1e-6;
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_layer_wire(const moe_epi_layer *y, int32_t r, int64_t whole_rows, double share,
                                        moe_ep_device_time *t, moe_ep_error *err)
{
    const moe_ep_cost_hooks *h = y->d->hooks;
    moe_epi_volume v, b;
    if (y->net.D == 1) return MOE_EP_OK;
    v = moe_epi_layer_volume(y, r, whole_rows, share);
    b = moe_epi_volume_back(v);
    if (h && h->a2a_us) {
        double row = y->dispatch_row, back = y->combine_row;
        MOE_EPI_TRY(moe_epi_hook_result(h->a2a_us(h->user, 0, r, v.out_intra * row, v.out_inter * row, v.in_intra * row,
                                                  v.in_inter * row), "hooks.a2a_us", r, &t->dispatch_s, err));
        return moe_epi_hook_result(h->a2a_us(h->user, 1, r, b.out_intra * back, b.out_inter * back, b.in_intra * back,
                                             b.in_inter * back), "hooks.a2a_us", r, &t->combine_s, err);
    }
    t->dispatch_s = moe_epi_volume_time(y->dispatch_link, &v, y->dispatch_row);
    t->combine_s = moe_epi_volume_time(y->combine_link, &b, y->combine_row);
    return MOE_EP_OK;
}

/* One device in one part of the batch. */
static moe_ep_status moe_epi_layer_device(const moe_epi_layer *y, int32_t r, moe_epi_part part, int *odd,
                                          moe_ep_device_time *t, moe_ep_error *err)
{
    const moe_ep_cost_hooks *h = y->d->hooks;
    moe_epi_work w;
    double seconds, mem_s, flop_s;
    int64_t whole = 0;
    int32_t s, begin = moe_epi_slot_begin(y, r), end = moe_epi_slot_begin(y, r + 1);
    memset(&w, 0, sizeof w);
    for (s = begin; s < end; s++) {
        whole += y->slot_rows[s];
        moe_epi_work_add(&w, moe_epi_part_rows(y->slot_rows[s], part, odd), y->machine->gemm.tile);
    }
    seconds = moe_epi_experts_time(y->model, y->machine, &w, (double)y->model->inter, &mem_s, &flop_s);
    moe_epi_device_fill(t, &w, seconds, mem_s, flop_s);
    if (h && h->expert_us)
        MOE_EPI_TRY(moe_epi_hook_result(h->expert_us(h->user, r, w.active, w.rows, w.padded,
                                                     part == MOE_EPI_WHOLE ? y->slot_rows + begin : NULL, end - begin),
                                        "hooks.expert_us", r, &t->compute_s, err));
    MOE_EPI_TRY(moe_epi_layer_wire(y, r, whole, part == MOE_EPI_WHOLE ? 1.0 : 0.5, t, err));
    if (t->rows > 0 && t->dispatch_s + t->combine_s > t->compute_s) t->regime = MOE_EP_REGIME_NETWORK;
    return MOE_EP_OK;
}

/* Shared experts on every device, over its own tokens. */
static double moe_epi_layer_shared(const moe_epi_layer *y, double share)
{
    moe_epi_work w;
    double mem_s, flop_s, rows = ceil(y->tokens * share), width;
    int32_t inter = moe_epi_shared_inter(y->model);
    if (y->model->num_shared == 0) return 0.0;
    width = (double)y->model->num_shared * (double)inter;
    w.rows = (int64_t)rows;
    w.padded = moe_epi_pad(w.rows, y->machine->gemm.tile);
    w.active = 1;
    return moe_epi_experts_time(y->model, y->machine, &w, width, &mem_s, &flop_s);
}

/* All devices in one part of the batch; devices may be NULL. */
static moe_ep_status moe_epi_layer_eval(const moe_epi_layer *y, moe_epi_part part, moe_epi_layer_sum *sum,
                                        moe_ep_device_time *devices, moe_ep_error *err)
{
    moe_ep_device_time t;
    int odd = 0;
    int32_t r;
    memset(sum, 0, sizeof *sum);
    for (r = 0; r < y->net.D; r++) {
        double own;
        MOE_EPI_TRY(moe_epi_layer_device(y, r, part, &odd, &t, err));
        own = t.dispatch_s + t.compute_s + t.combine_s;
        if (own > sum->longest_own) sum->longest_own = own;
        if (t.dispatch_s > sum->stages.dispatch_s) sum->stages.dispatch_s = t.dispatch_s;
        if (t.combine_s > sum->stages.combine_s) sum->stages.combine_s = t.combine_s;
        if (r == 0 || t.compute_s > sum->stages.compute_s) {
            sum->stages.compute_s = t.compute_s;
            sum->slowest = r;
            sum->regime = t.rows == 0 ? MOE_EP_REGIME_IDLE : t.memory_s >= t.flop_s ? MOE_EP_REGIME_WEIGHTS : MOE_EP_REGIME_FLOPS;
        }
        if (t.rows > sum->max_rows) {
            sum->max_rows = t.rows;
            sum->busiest = r;
        }
        if (t.active > sum->max_active) sum->max_active = t.active;
        sum->sum_active += t.active;
        sum->sum_compute += t.compute_s;
        if (devices) devices[r] = t;
    }
    if (sum->regime != MOE_EP_REGIME_IDLE && sum->stages.dispatch_s + sum->stages.combine_s > sum->stages.compute_s)
        sum->regime = MOE_EP_REGIME_NETWORK;
    sum->stages.shared_s = moe_epi_layer_shared(y, part == MOE_EPI_WHOLE ? 1.0 : 0.5);
    sum->stages.attention_s = part == MOE_EPI_WHOLE ? y->d->attention_s : y->d->attention_half_s;
    return MOE_EP_OK;
}

/* Compute of a device with the mean number of active slots, all with the same rows. */
static double moe_epi_layer_balanced(const moe_epi_layer *y, const moe_epi_layer_sum *sum)
{
    moe_epi_work w;
    double mem_s, flop_s;
    int64_t each;
    if (y->total == 0) return 0.0;
    w.active = (sum->sum_active + y->net.D / 2) / y->net.D;
    if (w.active < 1) w.active = 1;
    w.rows = (y->total - 1) / y->net.D + 1;
    each = (w.rows - 1) / w.active + 1;
    w.padded = moe_epi_pad(each, y->machine->gemm.tile) * w.active;
    return moe_epi_experts_time(y->model, y->machine, &w, (double)y->model->inter, &mem_s, &flop_s);
}

static moe_ep_status moe_epi_layer_run(const moe_epi_layer *y, moe_ep_time_result *out, moe_ep_device_time *devices,
                                       moe_ep_error *err)
{
    moe_epi_layer_sum whole, a, b;
    moe_ep_time_result r;
    if (moe_epi_two_batches(y->d->overlap)) {
        MOE_EPI_TRY(moe_epi_layer_eval(y, MOE_EPI_FIRST_HALF, &a, NULL, err));
        MOE_EPI_TRY(moe_epi_layer_eval(y, MOE_EPI_SECOND_HALF, &b, NULL, err));
    }
    MOE_EPI_TRY(moe_epi_layer_eval(y, MOE_EPI_WHOLE, &whole, NULL, err));
    if (devices) MOE_EPI_TRY(moe_epi_layer_eval(y, MOE_EPI_WHOLE, &whole, devices, err));
    memset(&r, 0, sizeof r);
    r.serial_s = moe_epi_compose(MOE_EP_OVERLAP_NONE, &whole.stages, &whole.stages, 0.0);
    r.no_barrier_s = whole.stages.attention_s + whole.stages.shared_s + whole.longest_own;
    r.total_s = moe_epi_two_batches(y->d->overlap)
                    ? moe_epi_compose(y->d->overlap, &a.stages, &b.stages, y->d->microbatch_s)
                    : moe_epi_compose(y->d->overlap, &whole.stages, &whole.stages, 0.0);
    r.dispatch_s = whole.stages.dispatch_s;
    r.compute_s = whole.stages.compute_s;
    r.combine_s = whole.stages.combine_s;
    r.shared_s = whole.stages.shared_s;
    r.regime = whole.regime;
    r.slowest_device = whole.slowest;
    r.busiest_device = whole.busiest;
    r.max_rows = whole.max_rows;
    r.max_active = whole.max_active;
    r.mean_compute_s = whole.sum_compute / (double)y->net.D;
    r.balanced_s = moe_epi_layer_balanced(y, &whole);
    *out = r;
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_layer_time(const moe_ep_layer_desc *desc, const int64_t *slot_rows,
                                           moe_ep_time_result *out, moe_ep_device_time *devices, moe_ep_error *err)
{
    moe_epi_layer y;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if (!slot_rows) return moe_epi_null(err, "slot_rows");
    if (!out) return moe_epi_null(err, "out");
    MOE_EPI_TRY(moe_epi_layer_open(desc, slot_rows, &y, err));
    return moe_epi_layer_run(&y, out, devices, err);
}

/* Layer l of a step: same description, its own rows and traffic. */
static moe_ep_status moe_epi_step_layer(const moe_ep_step_desc *d, const int64_t *slot_rows, int32_t l, moe_epi_layer *y,
                                        moe_ep_layer_desc *layer, moe_ep_error *err)
{
    *layer = d->layer;
    if (l > 0) { /* y holds the shape of the layer before */
        int64_t D = y->net.D;
        if (layer->traffic) layer->traffic += (int64_t)l * D * D;
        if (layer->node_traffic) layer->node_traffic += (int64_t)l * D * y->net.N;
        slot_rows += (int64_t)l * y->P;
    }
    return moe_epi_layer_open(layer, slot_rows, y, err);
}

static void moe_epi_step_add(moe_ep_step_result *r, const moe_ep_time_result *t, int32_t l)
{
    r->step_s += t->total_s;
    r->serial_s += t->serial_s;
    r->no_barrier_s += t->no_barrier_s;
    r->dispatch_s += t->dispatch_s;
    r->compute_s += t->compute_s;
    r->combine_s += t->combine_s;
    r->shared_s += t->shared_s;
    r->balanced_s += t->balanced_s;
    r->max_rows += t->max_rows;
    if (l == 0 || t->total_s > r->slowest_layer_s) {
        r->slowest_layer_s = t->total_s;
        r->slowest_layer = l;
    }
}

MOE_EP_API moe_ep_status moe_ep_step(const moe_ep_step_desc *desc, const int64_t *slot_rows, moe_ep_step_result *out,
                                     double *layer_s, moe_ep_error *err)
{
    moe_ep_step_result r;
    moe_ep_time_result t;
    moe_ep_layer_desc layer;
    moe_epi_layer y;
    double scale, tokens = 0.0;
    int32_t l;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if (!slot_rows) return moe_epi_null(err, "slot_rows");
    if (!out) return moe_epi_null(err, "out");
    MOE_EPI_TRY(moe_epi_at_least(desc->num_layers, 1, "num_layers", err));
    MOE_EPI_TRY(moe_epi_amount(desc->other_s, "other_s", err));
    MOE_EPI_TRY(moe_epi_amount(desc->tokens_per_pass, "tokens_per_pass", err));
    memset(&r, 0, sizeof r);
    memset(&y, 0, sizeof y);
    for (l = 0; l < desc->num_layers; l++) { /* everything is checked before the first output is written */
        MOE_EPI_TRY(moe_epi_step_layer(desc, slot_rows, l, &y, &layer, err));
        MOE_EPI_TRY(moe_epi_layer_run(&y, &t, NULL, err));
        moe_epi_step_add(&r, &t, l);
        tokens += y.tokens / (double)desc->num_layers;
    }
    for (l = 0; layer_s && l < desc->num_layers; l++) {
        MOE_EPI_TRY(moe_epi_step_layer(desc, slot_rows, l, &y, &layer, err));
        MOE_EPI_TRY(moe_epi_layer_run(&y, &t, NULL, err));
        layer_s[l] = t.total_s;
    }
    scale = (double)desc->layer.model->num_moe_layers / (double)desc->num_layers;
    r.step_s = r.step_s * scale + desc->other_s;
    r.serial_s = r.serial_s * scale + desc->other_s;
    r.no_barrier_s = r.no_barrier_s * scale + desc->other_s;
    r.dispatch_s *= scale;
    r.compute_s *= scale;
    r.combine_s *= scale;
    r.shared_s *= scale;
    r.balanced_s *= scale;
    r.tpot_s = r.step_s / moe_epi_or(desc->tokens_per_pass, 1.0);
    r.tokens_per_s_device = r.tpot_s > 0.0 ? tokens / r.tpot_s : 0.0;
    r.tokens_per_s_node = r.tokens_per_s_device * (double)y.net.D / (double)y.net.N;
    *out = r;
    return MOE_EP_OK;
}

/* ---- memory and configuration ------------------------------------------------------------------------- */

MOE_EP_API moe_ep_status moe_ep_memory(const moe_ep_memory_desc *desc, moe_ep_memory_result *out, moe_ep_error *err)
{
    moe_ep_memory_result r;
    moe_ep_params_result p;
    double weight, other, tp, kv;
    int32_t P, fair, layers;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if (!out) return moe_epi_null(err, "out");
    MOE_EPI_TRY(moe_ep_params(desc->model, &p, err));
    MOE_EPI_TRY(moe_epi_at_least(desc->num_devices, 1, "num_devices", err));
    MOE_EPI_TRY(moe_epi_at_least(desc->num_slots, 0, "num_slots", err));
    MOE_EPI_TRY(moe_epi_at_least(desc->tensor_parallel, 0, "tensor_parallel", err));
    MOE_EPI_TRY(moe_epi_at_least(desc->buffer_bytes, 0, "buffer_bytes", err));
    MOE_EPI_TRY(moe_epi_amount(desc->reserve_bytes, "reserve_bytes", err));
    MOE_EPI_TRY(moe_epi_amount(desc->memory_bytes, "memory_bytes", err));
    P = desc->num_slots > 0 ? desc->num_slots : desc->model->num_experts;
    if (P < desc->model->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SLOTS, "num_slots", "fewer slots than experts", -1, (double)P);
    memset(&r, 0, sizeof r);
    weight = moe_epi_or(desc->model->weight_bytes, 2.0);
    other = moe_epi_or(desc->model->other_weight_bytes, 2.0);
    tp = desc->tensor_parallel > 0 ? (double)desc->tensor_parallel : 1.0;
    r.slots = (P - 1) / desc->num_devices + 1;
    fair = (desc->model->num_experts - 1) / desc->num_devices + 1;
    r.routed_bytes = (double)r.slots * (double)p.expert * weight * (double)desc->model->num_moe_layers;
    r.redundant_bytes = (double)(r.slots - fair) * (double)p.expert * weight * (double)desc->model->num_moe_layers;
    r.shared_bytes = (double)p.shared * weight;
    r.router_bytes = (double)p.router * other;
    r.other_bytes = ((double)p.attention + (double)p.dense + (double)p.embedding) * other / tp;
    r.buffer_bytes = (double)desc->buffer_bytes;
    r.total_bytes = r.routed_bytes + r.shared_bytes + r.router_bytes + r.other_bytes + r.buffer_bytes + desc->reserve_bytes;
    r.kv_room_bytes = desc->memory_bytes - r.total_bytes;
    r.fits = desc->memory_bytes > 0.0 && r.kv_room_bytes >= 0.0;
    layers = moe_epi_layers(desc->model);
    kv = (double)desc->model->kv_elems * moe_epi_or(desc->model->kv_bytes, 2.0) * (double)layers;
    if (r.fits && kv > 0.0) r.kv_tokens = (int64_t)(r.kv_room_bytes / kv);
    *out = r;
    return MOE_EP_OK;
}

MOE_EP_API int64_t moe_ep_ll_buffer_bytes(int32_t max_tokens, int32_t hidden, int32_t num_slots, int32_t combine_scales,
                                          moe_ep_error *err)
{
    int64_t H = hidden, scales = 4 * ((H + 127) / 128), message, back, cells, bytes;
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_at_least(max_tokens, 1, "max_tokens", err));
    MOE_EPI_TRY(moe_epi_at_least(hidden, 1, "hidden", err));
    MOE_EPI_TRY(moe_epi_at_least(num_slots, 1, "num_slots", err));
    message = 16 + (2 * H > H + scales ? 2 * H : H + scales);
    back = combine_scales ? 2 * H + scales : 2 * H + 16;
    if (back > message) message = back;
    cells = 4 * (int64_t)max_tokens; /* send and receive, both double-buffered; < 2^33 */
    if (!moe_epi_mul(cells, num_slots, &cells) || !moe_epi_mul(cells, message, &bytes) || bytes > INT64_MAX / 2)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_slots", "the buffer size does not fit", -1, (double)num_slots);
    return bytes + 2 * ((4 * ((int64_t)num_slots + 1) + 127) / 128 * 128); /* signals, one more for the barrier */
}

MOE_EP_API moe_ep_status moe_ep_experts_per_device(int32_t E, int32_t D, int32_t *floor_out, int32_t *ceil_out,
                                                   int32_t *with_ceil, moe_ep_error *err)
{
    moe_epi_ok(err);
    MOE_EPI_TRY(moe_epi_at_least(E, 1, "E", err));
    MOE_EPI_TRY(moe_epi_at_least(D, 1, "D", err));
    if (!floor_out) return moe_epi_null(err, "floor_out");
    if (!ceil_out) return moe_epi_null(err, "ceil_out");
    if (!with_ceil) return moe_epi_null(err, "with_ceil");
    *floor_out = E / D;
    *ceil_out = E / D + (E % D != 0);
    *with_ceil = E % D != 0 ? E % D : D;
    return MOE_EP_OK;
}

/* Appends a reason; counts on when the array is full. */
typedef struct moe_epi_reasons {
    moe_ep_reason *list;
    int32_t cap, count;
} moe_epi_reasons;

static void moe_epi_reason(moe_epi_reasons *a, moe_ep_severity severity, const char *text, double have, double need)
{
    if (a->count < a->cap) {
        a->list[a->count].severity = severity;
        a->list[a->count].text = text;
        a->list[a->count].have = have;
        a->list[a->count].need = need;
    }
    a->count++;
}

static void moe_epi_reasons_slots(const moe_ep_config *c, int32_t E, moe_epi_reasons *a)
{
    int64_t slots = (int64_t)E + c->num_redundant;
    int32_t left = (int32_t)(slots % c->ep);
    if (slots < c->ep)
        moe_epi_reason(a, MOE_EP_WRONG, "more devices than slots: some would hold no expert", (double)c->ep, (double)slots);
    if (c->must_divide && E % c->ep != 0)
        moe_epi_reason(a, MOE_EP_WRONG, "this server needs ep to divide the experts; remainder", (double)(E % c->ep), 0.0);
    if (c->equal_slots && left != 0)
        moe_epi_reason(a, MOE_EP_WRONG, "redundant slots needed so that every device has the same number",
                       (double)c->num_redundant, (double)c->num_redundant + (double)(c->ep - left));
    if (!c->equal_slots && left != 0 && slots >= c->ep)
        moe_epi_reason(a, MOE_EP_NOTE, "devices hold unequal numbers of slots: fewest, most", (double)(slots / c->ep),
                       (double)(slots / c->ep + 1));
    if ((double)c->num_redundant > (double)E * (double)(c->ep - 1))
        moe_epi_reason(a, MOE_EP_WARNING, "more redundant slots than copies on different devices can use",
                       (double)c->num_redundant, (double)E * (double)(c->ep - 1));
}

static moe_ep_status moe_epi_reasons_model(const moe_ep_config *c, int32_t nodes, moe_epi_reasons *a, moe_ep_error *err)
{
    moe_ep_memory_desc m;
    moe_ep_memory_result r;
    const moe_ep_model *model = c->model;
    if (!model) return MOE_EP_OK;
    if (nodes > 1 && model->num_groups > 1 && model->num_groups % nodes != 0)
        moe_epi_reason(a, MOE_EP_WARNING, "the nodes do not divide the routing groups: no placement by node", (double)model->num_groups,
                       (double)nodes);
    if (!(c->memory_bytes > 0.0)) return MOE_EP_OK;
    if (model->top_k > model->num_experts) return MOE_EP_OK; /* said already */
    memset(&m, 0, sizeof m);
    m.model = model;
    m.num_devices = c->ep;
    m.num_slots = model->num_experts + c->num_redundant;
    m.tensor_parallel = c->tp;
    m.memory_bytes = c->memory_bytes;
    MOE_EPI_TRY(moe_ep_memory(&m, &r, err));
    if (!r.fits)
        moe_epi_reason(a, MOE_EP_WRONG, "the weights do not fit into a device's memory: bytes there, bytes needed", c->memory_bytes,
                       r.total_bytes);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_check_config(const moe_ep_config *config, moe_ep_reason *reasons, int32_t cap,
                                             int32_t *count, int32_t *redundant_needed, moe_ep_error *err)
{
    moe_epi_reasons a;
    int32_t E, K, nodes;
    double span;
    moe_epi_ok(err);
    if (!config) return moe_epi_null(err, "config");
    if (!count) return moe_epi_null(err, "count");
    if (!reasons && cap > 0) return moe_epi_null(err, "reasons");
    MOE_EPI_TRY(moe_epi_at_least(cap, 0, "cap", err));
    E = config->model ? config->model->num_experts : config->num_experts;
    K = config->model ? config->model->top_k : config->top_k;
    MOE_EPI_TRY(moe_epi_at_least(E, 1, "num_experts", err));
    MOE_EPI_TRY(moe_epi_at_least(K, 1, "top_k", err));
    MOE_EPI_TRY(moe_epi_at_least(config->ep, 1, "ep", err));
    MOE_EPI_TRY(moe_epi_at_least(config->tp, 0, "tp", err));
    MOE_EPI_TRY(moe_epi_at_least(config->dp, 0, "dp", err));
    MOE_EPI_TRY(moe_epi_at_least(config->num_nodes, 0, "num_nodes", err));
    MOE_EPI_TRY(moe_epi_at_least(config->num_redundant, 0, "num_redundant", err));
    MOE_EPI_TRY(moe_epi_at_least((int64_t)INT32_MAX - E - config->num_redundant, 0, "num_redundant", err));
    MOE_EPI_TRY(moe_epi_amount(config->memory_bytes, "memory_bytes", err));
    a.list = reasons;
    a.cap = cap;
    a.count = 0;
    nodes = config->num_nodes > 0 ? config->num_nodes : 1;
    span = (double)(config->tp > 0 ? config->tp : 1) * (double)(config->dp > 0 ? config->dp : 1);
    if (K > E) moe_epi_reason(&a, MOE_EP_WRONG, "a token cannot choose more experts than there are", (double)K, (double)E);
    if ((config->tp > 0 || config->dp > 0) && (double)config->ep > span)
        moe_epi_reason(&a, MOE_EP_WRONG, "ep spans at most tp * dp devices", (double)config->ep, span);
    else if ((config->tp > 0 || config->dp > 0) && fmod(span, (double)config->ep) > 0.5)
        moe_epi_reason(&a, MOE_EP_WRONG, "ep must divide tp * dp: the groups share the same devices", (double)config->ep, span);
    moe_epi_reasons_slots(config, E, &a);
    if (config->ep % nodes != 0)
        moe_epi_reason(&a, MOE_EP_WARNING, "nodes with unequal numbers of devices", (double)config->ep, (double)nodes);
    MOE_EPI_TRY(moe_epi_reasons_model(config, nodes, &a, err));
    *count = a.count;
    if (redundant_needed) *redundant_needed = (config->ep - E % config->ep) % config->ep;
    return MOE_EP_OK;
}

/* ---- payback -------------------------------------------------------------------------------------- */

MOE_EP_API moe_ep_status moe_ep_payback(const moe_ep_payback_desc *desc, moe_ep_payback_result *out, moe_ep_error *err)
{
    moe_ep_payback_result r;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if (!out) return moe_epi_null(err, "out");
    MOE_EPI_TRY(moe_epi_amount(desc->before_s, "before_s", err));
    MOE_EPI_TRY(moe_epi_amount(desc->after_s, "after_s", err));
    if (desc->moved_slots < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "moved_slots", "must not be negative", -1, (double)desc->moved_slots);
    MOE_EPI_TRY(moe_epi_amount(desc->expert_bytes, "expert_bytes", err));
    MOE_EPI_TRY(moe_epi_amount(desc->link_Bps, "link_Bps", err));
    MOE_EPI_TRY(moe_epi_amount(desc->pause_s, "pause_s", err));
    if (!(desc->after_s > 0.0))
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "after_s", "a step takes time", -1, desc->after_s);
    memset(&r, 0, sizeof r);
    r.gain_s = desc->before_s - desc->after_s;
    r.ratio = desc->before_s / desc->after_s;
    r.cost_s = desc->pause_s;
    if (desc->link_Bps > 0.0) r.cost_s += (double)desc->moved_slots * desc->expert_bytes / desc->link_Bps;
    r.pays = r.gain_s > 0.0;
    if (r.pays) r.steps = r.cost_s / r.gain_s;
    *out = r;
    return MOE_EP_OK;
}

#undef MOE_EPI_TRY

/* ==================================================================================================
 * 9 FORWARD
 *
 * One form of product everywhere: dot products of row-major weight rows with activation rows, in tiles
 * of 4 weight rows by a few tokens held in registers.  The sum over the inner dimension is cut into
 * blocks of MOE_EPI_FW_KBLOCK; inside a block every vector lane sums its own elements in ascending order,
 * the lanes are added by one fixed tree, and the blocks are added in ascending order.  That order does
 * not depend on the shape of the tile, which is why the bits of a row do not depend on its neighbours.
 * ================================================================================================== */
#ifndef MOE_EP_NO_FORWARD

#if !defined(MOE_EP_NO_SIMD) && defined(__x86_64__) && defined(__GNUC__)
#  define MOE_EPI_FW_X86 1
#  ifdef __cplusplus
} /* these headers are C++ in C++ */
#  endif
#  include <cpuid.h>
#  include <immintrin.h>
#  ifdef __cplusplus
extern "C" {
#  endif
#else
#  define MOE_EPI_FW_X86 0
#endif

#if defined(MOE_EP_USE_BLAS) && !defined(MOE_EP_NO_BLAS)
#  define MOE_EPI_FW_BLAS 1
#else
#  define MOE_EPI_FW_BLAS 0
#endif

#define MOE_EPI_FW_KBLOCK 1024     /* inner dimension per pass: 6 tokens and 4 weight rows fit the L1 cache  */
#define MOE_EPI_FW_COLS 32         /* intermediate columns per task; gate and up make 64 weight rows         */
#define MOE_EPI_FW_TOKENS 96       /* tokens per pass over the 64 weight rows: both fit a 1 MB L2 cache      */
#define MOE_EPI_FW_BLAS_COLS 256   /* columns per BLAS task                                                  */
#define MOE_EPI_FW_CHUNK 4096      /* tokens per pass over the weights, bounds the memory                    */
#define MOE_EPI_FW_PAD 32          /* activation rows are padded to this with zeros                          */

/* ---- number formats ------------------------------------------------------------------------------- */

static uint32_t moe_epi_fw_bits(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static float moe_epi_fw_from_bits(uint32_t u)
{
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

MOE_EP_API uint16_t moe_ep_bf16_from_f32(float value)
{
    uint32_t u = moe_epi_fw_bits(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u); /* quiet NaN */
    u += 0x7fffu + ((u >> 16) & 1u);
    return (uint16_t)(u >> 16);
}

MOE_EP_API float moe_ep_f32_from_bf16(uint16_t value) { return moe_epi_fw_from_bits((uint32_t)value << 16); }

MOE_EP_API uint16_t moe_ep_f16_from_f32(float value)
{
    uint32_t u = moe_epi_fw_bits(value), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu, shift, m, half;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (a >= 0x38800000u) {                                   /* normal half */
        a += 0xfffu + ((a >> 13) & 1u);
        return (uint16_t)(sign | ((a - 0x38000000u) >> 13));
    }
    if (a < 0x33000000u) return (uint16_t)sign; /* below half of the smallest subnormal */
    shift = 126u - (a >> 23);
    m = (a & 0x7fffffu) | 0x800000u;
    half = 1u << (shift - 1u);
    m += half - 1u + ((m >> shift) & 1u);
    return (uint16_t)(sign | (m >> shift));
}

MOE_EP_API float moe_ep_f32_from_f16(uint16_t value)
{
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16, e = (value >> 10) & 0x1fu, m = value & 0x3ffu;
    if (e == 31u) return moe_epi_fw_from_bits(sign | 0x7f800000u | (m << 13));
    if (e == 0u) {
        float v = (float)m * (1.0f / 16777216.0f);
        return sign ? -v : v;
    }
    return moe_epi_fw_from_bits(sign | ((e + 112u) << 23) | (m << 13));
}

/* ---- which instruction set ------------------------------------------------------------------------- */

MOE_EP_API moe_ep_isa moe_ep_isa_best(void)
{
#if MOE_EPI_FW_X86
    unsigned a, b, c, d, lo, hi;
    unsigned fma_f16c_osxsave = (1u << 12) | (1u << 29) | (1u << 27);
    unsigned f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & fma_f16c_osxsave) != fma_f16c_osxsave)
        return MOE_EP_ISA_PORTABLE;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    (void)hi;
    if ((lo & 6u) != 6u || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 5)))
        return MOE_EP_ISA_PORTABLE;
    if ((lo & 0xe6u) == 0xe6u && (b & f_dq_bw_vl) == f_dq_bw_vl) return MOE_EP_ISA_AVX512;
    return MOE_EP_ISA_AVX2;
#else
    return MOE_EP_ISA_PORTABLE;
#endif
}

MOE_EP_API const char *moe_ep_isa_name(moe_ep_isa isa)
{
    if (isa == MOE_EP_ISA_PORTABLE) return "portable";
    if (isa == MOE_EP_ISA_AVX2) return "avx2";
    if (isa == MOE_EP_ISA_AVX512) return "avx512";
    return "auto";
}

/* ---- kernels: out[j*ldc + r] (+)= dot(w[r][0..n-1], x[j][0..n-1]), r = 0..3, j = 0..tokens-1 -------- */

typedef void (*moe_epi_fw_tile)(const void *const *w, const float *const *x, int64_t n, float *out,
                             int64_t ldc, int add);

typedef struct moe_epi_fw_kernels {
    moe_epi_fw_tile tile[6]; /* [tokens-1]                                                              */
    int max_tokens;
    int interleave;       /* 0, or the group in which even elements stand before odd ones            */
    void (*exp_n)(float *v, int n); /* v[i] = exp(v[i]), n a multiple of 16; saturates, never NaN     */
} moe_epi_fw_kernels;

/* Portable: sixteen partial sums, weights widened to float first. */
static void moe_epi_fw_dot_rows(const float *w, int64_t w_stride, const float *const *x, int tokens, int64_t n,
                             float *out, int64_t ldc, int add)
{
    int r, j, i;
    int64_t k;
    for (r = 0; r < 4; r++) {
        for (j = 0; j < tokens; j++) {
            const float *a = w + r * w_stride, *b = x[j];
            float s[16], sum;
            for (i = 0; i < 16; i++) s[i] = 0.0f;
            for (k = 0; k + 16 <= n; k += 16)
                for (i = 0; i < 16; i++) s[i] += a[k + i] * b[k + i];
            for (i = 0; k < n; k++, i++) s[i] += a[k] * b[k];
            for (i = 0; i < 8; i++) s[i] += s[i + 8];
            for (i = 0; i < 4; i++) s[i] += s[i + 4];
            sum = (s[0] + s[1]) + (s[2] + s[3]);
            out[j * ldc + r] = add ? out[j * ldc + r] + sum : sum;
        }
    }
}

#define MOE_EPI_FW_PORTABLE(NAME, TYPE, WIDEN, TOKENS)                                                   \
    static void NAME(const void *const *w, const float *const *x, int64_t n, float *out, int64_t ldc, \
                     int add)                                                                         \
    {                                                                                                 \
        float wide[4 * MOE_EPI_FW_KBLOCK];                                                               \
        int r;                                                                                        \
        int64_t k;                                                                                    \
        for (r = 0; r < 4; r++) {                                                                     \
            const TYPE *row = (const TYPE *)w[r];                                                     \
            for (k = 0; k < n; k++) wide[r * MOE_EPI_FW_KBLOCK + k] = WIDEN(row[k]);                     \
        }                                                                                             \
        moe_epi_fw_dot_rows(wide, MOE_EPI_FW_KBLOCK, x, TOKENS, n, out, ldc, add);                          \
    }
#define MOE_EPI_FW_SAME(v) (v)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f32_1, float, MOE_EPI_FW_SAME, 1)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f32_2, float, MOE_EPI_FW_SAME, 2)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f32_3, float, MOE_EPI_FW_SAME, 3)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f32_4, float, MOE_EPI_FW_SAME, 4)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_bf16_1, uint16_t, moe_ep_f32_from_bf16, 1)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_bf16_2, uint16_t, moe_ep_f32_from_bf16, 2)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_bf16_3, uint16_t, moe_ep_f32_from_bf16, 3)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_bf16_4, uint16_t, moe_ep_f32_from_bf16, 4)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f16_1, uint16_t, moe_ep_f32_from_f16, 1)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f16_2, uint16_t, moe_ep_f32_from_f16, 2)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f16_3, uint16_t, moe_ep_f32_from_f16, 3)
MOE_EPI_FW_PORTABLE(moe_epi_fw_c_f16_4, uint16_t, moe_ep_f32_from_f16, 4)
#undef MOE_EPI_FW_PORTABLE
#undef MOE_EPI_FW_SAME

static void moe_epi_fw_c_exp(float *v, int n)
{
    int i;
    for (i = 0; i < n; i++) v[i] = expf(v[i] > 88.0f ? 88.0f : v[i]);
}

#if MOE_EPI_FW_X86
/* Lists of tokens: the arrays of a tile must be named scalars to stay in registers in every compiler. */
#define MOE_EPI_FW_T1(M) M(0)
#define MOE_EPI_FW_T2(M) M(0) M(1)
#define MOE_EPI_FW_T3(M) M(0) M(1) M(2)
#define MOE_EPI_FW_T4(M) M(0) M(1) M(2) M(3)
#define MOE_EPI_FW_T5(M) M(0) M(1) M(2) M(3) M(4)
#define MOE_EPI_FW_T6(M) M(0) M(1) M(2) M(3) M(4) M(5)

/* exp by 2^n * p(r), |r| <= ln(2)/2; polynomial of the Cephes library's expf (Moshier). */
#define MOE_EPI_FW_EXP_LO (-87.0f)
#define MOE_EPI_FW_EXP_HI 88.0f
#define MOE_EPI_FW_EXP_P(FMA, SET, p, r)                                                                 \
    p = SET(1.9875691500e-4f);                                                                        \
    p = FMA(p, r, SET(1.3981999507e-3f));                                                             \
    p = FMA(p, r, SET(8.3334519073e-3f));                                                             \
    p = FMA(p, r, SET(4.1665795894e-2f));                                                             \
    p = FMA(p, r, SET(1.6666665459e-1f));                                                             \
    p = FMA(p, r, SET(5.0000001201e-1f))

/* ---- AVX2 + FMA + F16C: 4 rows x up to 3 tokens, 12 sums ---- */
#define MOE_EPI_FW_Y __attribute__((target("avx2,fma,f16c")))

MOE_EPI_FW_Y static void moe_epi_fw_y_exp(float *v, int n)
{
    int i;
    for (i = 0; i < n; i += 8) {
        __m256 x = _mm256_loadu_ps(v + i), q, r, p;
        x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(MOE_EPI_FW_EXP_LO)), _mm256_set1_ps(MOE_EPI_FW_EXP_HI));
        q = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8);
        r = _mm256_fnmadd_ps(q, _mm256_set1_ps(0.693359375f), x);
        r = _mm256_fnmadd_ps(q, _mm256_set1_ps(-2.12194440e-4f), r);
        MOE_EPI_FW_EXP_P(_mm256_fmadd_ps, _mm256_set1_ps, p, r);
        p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
        p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p),
                                                 _mm256_slli_epi32(_mm256_cvtps_epi32(q), 23)));
        _mm256_storeu_ps(v + i, p);
    }
}

MOE_EPI_FW_Y static void moe_epi_fw_y_store(float *out, __m256 a, __m256 b, __m256 c, __m256 d, int add)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    _mm_storeu_ps(out, add ? _mm_add_ps(_mm_loadu_ps(out), t) : t);
}

#define MOE_EPI_FW_Y_DECL(j)                                                                             \
    const float *x##j = x[j];                                                                         \
    __m256 a##j = zero, b##j = zero, c##j = zero, d##j = zero, v##j;
#define MOE_EPI_FW_Y_LOAD(j) v##j = _mm256_loadu_ps(x##j + at);
#define MOE_EPI_FW_Y_A(j) a##j = _mm256_fmadd_ps(w, v##j, a##j);
#define MOE_EPI_FW_Y_B(j) b##j = _mm256_fmadd_ps(w, v##j, b##j);
#define MOE_EPI_FW_Y_C(j) c##j = _mm256_fmadd_ps(w, v##j, c##j);
#define MOE_EPI_FW_Y_D(j) d##j = _mm256_fmadd_ps(w, v##j, d##j);
#define MOE_EPI_FW_Y_STORE(j) moe_epi_fw_y_store(out + j * ldc, a##j, b##j, c##j, d##j, add);
/* One step of all rows and tokens; WIDEN(p) gives the 8 weights at p. */
#define MOE_EPI_FW_Y_STEP(TN, WIDEN, q0, q1, q2, q3)                                                     \
    TN(MOE_EPI_FW_Y_LOAD)                                                                                \
    w = WIDEN(q0); TN(MOE_EPI_FW_Y_A)                                                                    \
    w = WIDEN(q1); TN(MOE_EPI_FW_Y_B)                                                                    \
    w = WIDEN(q2); TN(MOE_EPI_FW_Y_C)                                                                    \
    w = WIDEN(q3); TN(MOE_EPI_FW_Y_D)
#define MOE_EPI_FW_Y_F32(p) _mm256_loadu_ps(p)
#define MOE_EPI_FW_Y_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define MOE_EPI_FW_Y_RAW(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define MOE_EPI_FW_Y_EVEN(p) _mm256_castsi256_ps(_mm256_slli_epi32(MOE_EPI_FW_Y_RAW(p), 16))
#define MOE_EPI_FW_Y_ODD(p) _mm256_castsi256_ps(_mm256_and_si256(MOE_EPI_FW_Y_RAW(p), high))

#define MOE_EPI_FW_Y_KERNEL(NAME, TN, TYPE, GROUP, STEPS)                                                \
    MOE_EPI_FW_Y static void NAME(const void *const *rows, const float *const *x, int64_t n, float *out, \
                               int64_t ldc, int add)                                                  \
    {                                                                                                 \
        const TYPE *p0 = (const TYPE *)rows[0], *p1 = (const TYPE *)rows[1];                          \
        const TYPE *p2 = (const TYPE *)rows[2], *p3 = (const TYPE *)rows[3];                          \
        const __m256 zero = _mm256_setzero_ps();                                                      \
        const __m256i high = _mm256_set1_epi32((int)0xffff0000u);                                     \
        __m256 w;                                                                                     \
        int64_t k = 0, at;                                                                            \
        TN(MOE_EPI_FW_Y_DECL)                                                                            \
        (void)high;                                                                                   \
        for (; k + (GROUP) <= n; k += (GROUP)) {                                                      \
            STEPS(TN, p0 + k, p1 + k, p2 + k, p3 + k)                                                 \
        }                                                                                             \
        if (k < n) {                                                                                  \
            TYPE tail[4][GROUP];                                                                      \
            size_t bytes = (size_t)(n - k) * sizeof(TYPE);                                            \
            memset(tail, 0, sizeof tail);                                                             \
            memcpy(tail[0], p0 + k, bytes);                                                           \
            memcpy(tail[1], p1 + k, bytes);                                                           \
            memcpy(tail[2], p2 + k, bytes);                                                           \
            memcpy(tail[3], p3 + k, bytes);                                                           \
            STEPS(TN, tail[0], tail[1], tail[2], tail[3])                                             \
        }                                                                                             \
        TN(MOE_EPI_FW_Y_STORE)                                                                           \
    }
#define MOE_EPI_FW_Y_STEPS_F32(TN, q0, q1, q2, q3) at = k; MOE_EPI_FW_Y_STEP(TN, MOE_EPI_FW_Y_F32, q0, q1, q2, q3)
#define MOE_EPI_FW_Y_STEPS_F16(TN, q0, q1, q2, q3) at = k; MOE_EPI_FW_Y_STEP(TN, MOE_EPI_FW_Y_F16, q0, q1, q2, q3)
#define MOE_EPI_FW_Y_STEPS_BF16(TN, q0, q1, q2, q3)                                                      \
    at = k; MOE_EPI_FW_Y_STEP(TN, MOE_EPI_FW_Y_EVEN, q0, q1, q2, q3)                                        \
    at = k + 8; MOE_EPI_FW_Y_STEP(TN, MOE_EPI_FW_Y_ODD, q0, q1, q2, q3)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_f32_1, MOE_EPI_FW_T1, float, 8, MOE_EPI_FW_Y_STEPS_F32)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_f32_2, MOE_EPI_FW_T2, float, 8, MOE_EPI_FW_Y_STEPS_F32)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_f32_3, MOE_EPI_FW_T3, float, 8, MOE_EPI_FW_Y_STEPS_F32)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_f16_1, MOE_EPI_FW_T1, uint16_t, 8, MOE_EPI_FW_Y_STEPS_F16)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_f16_2, MOE_EPI_FW_T2, uint16_t, 8, MOE_EPI_FW_Y_STEPS_F16)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_f16_3, MOE_EPI_FW_T3, uint16_t, 8, MOE_EPI_FW_Y_STEPS_F16)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_bf16_1, MOE_EPI_FW_T1, uint16_t, 16, MOE_EPI_FW_Y_STEPS_BF16)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_bf16_2, MOE_EPI_FW_T2, uint16_t, 16, MOE_EPI_FW_Y_STEPS_BF16)
MOE_EPI_FW_Y_KERNEL(moe_epi_fw_y_bf16_3, MOE_EPI_FW_T3, uint16_t, 16, MOE_EPI_FW_Y_STEPS_BF16)

/* ---- AVX-512: 4 rows x up to 6 tokens, 24 sums.  Where gcc's unmasked intrinsics start from an
 * undefined register (a warning in C++), the zero-masked form with a full mask takes their place. ---- */
#define MOE_EPI_FW_Z __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))

MOE_EPI_FW_Z static void moe_epi_fw_z_exp(float *v, int n)
{
    int i;
    for (i = 0; i < n; i += 16) {
        __m512 x = _mm512_loadu_ps(v + i), q, r, p;
        x = _mm512_maskz_max_ps(0xffff, x, _mm512_set1_ps(MOE_EPI_FW_EXP_LO));
        x = _mm512_maskz_min_ps(0xffff, x, _mm512_set1_ps(MOE_EPI_FW_EXP_HI));
        q = _mm512_maskz_roundscale_ps(0xffff, _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
        r = _mm512_fnmadd_ps(q, _mm512_set1_ps(0.693359375f), x);
        r = _mm512_fnmadd_ps(q, _mm512_set1_ps(-2.12194440e-4f), r);
        MOE_EPI_FW_EXP_P(_mm512_fmadd_ps, _mm512_set1_ps, p, r);
        p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
        _mm512_storeu_ps(v + i, _mm512_maskz_scalef_ps(0xffff, p, q));
    }
}

MOE_EPI_FW_Z static __m256 moe_epi_fw_z_fold(__m512 a)
{
    return _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, a, 0), _mm512_maskz_extractf32x8_ps(0xff, a, 1));
}

MOE_EPI_FW_Z static void moe_epi_fw_z_store(float *out, __m512 a, __m512 b, __m512 c, __m512 d, int add)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(moe_epi_fw_z_fold(a), moe_epi_fw_z_fold(b)),
                              _mm256_hadd_ps(moe_epi_fw_z_fold(c), moe_epi_fw_z_fold(d)));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    _mm_storeu_ps(out, add ? _mm_add_ps(_mm_loadu_ps(out), t) : t);
}

#define MOE_EPI_FW_Z_DECL(j)                                                                             \
    const float *x##j = x[j];                                                                         \
    __m512 a##j = zero, b##j = zero, c##j = zero, d##j = zero;
#define MOE_EPI_FW_Z_FMA(j)                                                                              \
    v = _mm512_loadu_ps(x##j + at);                                                                   \
    a##j = _mm512_fmadd_ps(w0, v, a##j);                                                              \
    b##j = _mm512_fmadd_ps(w1, v, b##j);                                                              \
    c##j = _mm512_fmadd_ps(w2, v, c##j);                                                              \
    d##j = _mm512_fmadd_ps(w3, v, d##j);
#define MOE_EPI_FW_Z_STORE(j) moe_epi_fw_z_store(out + j * ldc, a##j, b##j, c##j, d##j, add);
#define MOE_EPI_FW_Z_BEGIN(NAME, TN, TYPE)                                                               \
    MOE_EPI_FW_Z static void NAME(const void *const *rows, const float *const *x, int64_t n, float *out, \
                               int64_t ldc, int add)                                                  \
    {                                                                                                 \
        const TYPE *p0 = (const TYPE *)rows[0], *p1 = (const TYPE *)rows[1];                          \
        const TYPE *p2 = (const TYPE *)rows[2], *p3 = (const TYPE *)rows[3];                          \
        const __m512 zero = _mm512_setzero_ps();                                                      \
        __m512 w0, w1, w2, w3, v;                                                                     \
        int64_t at = 0;                                                                               \
        TN(MOE_EPI_FW_Z_DECL)
#define MOE_EPI_FW_Z_END(TN)                                                                             \
        TN(MOE_EPI_FW_Z_STORE)                                                                           \
    }
/* fp32 and fp16: 16 weights per step, the last step masked. */
#define MOE_EPI_FW_Z_WIDE(NAME, TN, TYPE, LOAD, LOAD_MASKED)                                             \
    MOE_EPI_FW_Z_BEGIN(NAME, TN, TYPE)                                                                   \
        for (; at + 16 <= n; at += 16) {                                                              \
            w0 = LOAD(p0 + at); w1 = LOAD(p1 + at); w2 = LOAD(p2 + at); w3 = LOAD(p3 + at);           \
            TN(MOE_EPI_FW_Z_FMA)                                                                         \
        }                                                                                             \
        if (at < n) {                                                                                 \
            const __mmask16 mask = (__mmask16)((1u << (n - at)) - 1u);                                \
            w0 = LOAD_MASKED(mask, p0 + at); w1 = LOAD_MASKED(mask, p1 + at);                         \
            w2 = LOAD_MASKED(mask, p2 + at); w3 = LOAD_MASKED(mask, p3 + at);                         \
            TN(MOE_EPI_FW_Z_FMA)                                                                         \
        }                                                                                             \
    MOE_EPI_FW_Z_END(TN)
#define MOE_EPI_FW_Z_F32(p) _mm512_loadu_ps(p)
#define MOE_EPI_FW_Z_F32M(m, p) _mm512_maskz_loadu_ps(m, p)
#define MOE_EPI_FW_Z_F16(p) _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define MOE_EPI_FW_Z_F16M(m, p) _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(m, p))
/* bf16: 32 weights per step; even ones need a shift, odd ones a mask; activations lie to suit. */
#define MOE_EPI_FW_Z_EVEN(r) _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, r, 16))
#define MOE_EPI_FW_Z_ODD(r) _mm512_castsi512_ps(_mm512_and_si512(r, high))
#define MOE_EPI_FW_Z_PAIR(TN)                                                                            \
    w0 = MOE_EPI_FW_Z_EVEN(r0); w1 = MOE_EPI_FW_Z_EVEN(r1); w2 = MOE_EPI_FW_Z_EVEN(r2); w3 = MOE_EPI_FW_Z_EVEN(r3); \
    TN(MOE_EPI_FW_Z_FMA)                                                                                 \
    at += 16;                                                                                         \
    w0 = MOE_EPI_FW_Z_ODD(r0); w1 = MOE_EPI_FW_Z_ODD(r1); w2 = MOE_EPI_FW_Z_ODD(r2); w3 = MOE_EPI_FW_Z_ODD(r3);   \
    TN(MOE_EPI_FW_Z_FMA)                                                                                 \
    at += 16;
#define MOE_EPI_FW_Z_BF16(NAME, TN)                                                                      \
    MOE_EPI_FW_Z_BEGIN(NAME, TN, uint16_t)                                                               \
        const __m512i high = _mm512_set1_epi32((int)0xffff0000u);                                     \
        __m512i r0, r1, r2, r3;                                                                       \
        while (at + 32 <= n) {                                                                        \
            r0 = _mm512_loadu_si512(p0 + at); r1 = _mm512_loadu_si512(p1 + at);                       \
            r2 = _mm512_loadu_si512(p2 + at); r3 = _mm512_loadu_si512(p3 + at);                       \
            MOE_EPI_FW_Z_PAIR(TN)                                                                        \
        }                                                                                             \
        if (at < n) {                                                                                 \
            const __mmask32 mask = (__mmask32)((1u << (n - at)) - 1u);                                \
            r0 = _mm512_maskz_loadu_epi16(mask, p0 + at); r1 = _mm512_maskz_loadu_epi16(mask, p1 + at); \
            r2 = _mm512_maskz_loadu_epi16(mask, p2 + at); r3 = _mm512_maskz_loadu_epi16(mask, p3 + at); \
            MOE_EPI_FW_Z_PAIR(TN)                                                                        \
        }                                                                                             \
    MOE_EPI_FW_Z_END(TN)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f32_1, MOE_EPI_FW_T1, float, MOE_EPI_FW_Z_F32, MOE_EPI_FW_Z_F32M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f32_2, MOE_EPI_FW_T2, float, MOE_EPI_FW_Z_F32, MOE_EPI_FW_Z_F32M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f32_3, MOE_EPI_FW_T3, float, MOE_EPI_FW_Z_F32, MOE_EPI_FW_Z_F32M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f32_4, MOE_EPI_FW_T4, float, MOE_EPI_FW_Z_F32, MOE_EPI_FW_Z_F32M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f32_5, MOE_EPI_FW_T5, float, MOE_EPI_FW_Z_F32, MOE_EPI_FW_Z_F32M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f32_6, MOE_EPI_FW_T6, float, MOE_EPI_FW_Z_F32, MOE_EPI_FW_Z_F32M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f16_1, MOE_EPI_FW_T1, uint16_t, MOE_EPI_FW_Z_F16, MOE_EPI_FW_Z_F16M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f16_2, MOE_EPI_FW_T2, uint16_t, MOE_EPI_FW_Z_F16, MOE_EPI_FW_Z_F16M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f16_3, MOE_EPI_FW_T3, uint16_t, MOE_EPI_FW_Z_F16, MOE_EPI_FW_Z_F16M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f16_4, MOE_EPI_FW_T4, uint16_t, MOE_EPI_FW_Z_F16, MOE_EPI_FW_Z_F16M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f16_5, MOE_EPI_FW_T5, uint16_t, MOE_EPI_FW_Z_F16, MOE_EPI_FW_Z_F16M)
MOE_EPI_FW_Z_WIDE(moe_epi_fw_z_f16_6, MOE_EPI_FW_T6, uint16_t, MOE_EPI_FW_Z_F16, MOE_EPI_FW_Z_F16M)
MOE_EPI_FW_Z_BF16(moe_epi_fw_z_bf16_1, MOE_EPI_FW_T1)
MOE_EPI_FW_Z_BF16(moe_epi_fw_z_bf16_2, MOE_EPI_FW_T2)
MOE_EPI_FW_Z_BF16(moe_epi_fw_z_bf16_3, MOE_EPI_FW_T3)
MOE_EPI_FW_Z_BF16(moe_epi_fw_z_bf16_4, MOE_EPI_FW_T4)
MOE_EPI_FW_Z_BF16(moe_epi_fw_z_bf16_5, MOE_EPI_FW_T5)
MOE_EPI_FW_Z_BF16(moe_epi_fw_z_bf16_6, MOE_EPI_FW_T6)
/* kernel macros end here */
#  undef MOE_EPI_FW_T1
#  undef MOE_EPI_FW_T2
#  undef MOE_EPI_FW_T3
#  undef MOE_EPI_FW_T4
#  undef MOE_EPI_FW_T5
#  undef MOE_EPI_FW_T6
#  undef MOE_EPI_FW_EXP_LO
#  undef MOE_EPI_FW_EXP_HI
#  undef MOE_EPI_FW_EXP_P
#  undef MOE_EPI_FW_Y
#  undef MOE_EPI_FW_Y_DECL
#  undef MOE_EPI_FW_Y_LOAD
#  undef MOE_EPI_FW_Y_A
#  undef MOE_EPI_FW_Y_B
#  undef MOE_EPI_FW_Y_C
#  undef MOE_EPI_FW_Y_D
#  undef MOE_EPI_FW_Y_STORE
#  undef MOE_EPI_FW_Y_STEP
#  undef MOE_EPI_FW_Y_F32
#  undef MOE_EPI_FW_Y_F16
#  undef MOE_EPI_FW_Y_RAW
#  undef MOE_EPI_FW_Y_EVEN
#  undef MOE_EPI_FW_Y_ODD
#  undef MOE_EPI_FW_Y_KERNEL
#  undef MOE_EPI_FW_Y_STEPS_F32
#  undef MOE_EPI_FW_Y_STEPS_F16
#  undef MOE_EPI_FW_Y_STEPS_BF16
#  undef MOE_EPI_FW_Z
#  undef MOE_EPI_FW_Z_DECL
#  undef MOE_EPI_FW_Z_FMA
#  undef MOE_EPI_FW_Z_STORE
#  undef MOE_EPI_FW_Z_BEGIN
#  undef MOE_EPI_FW_Z_END
#  undef MOE_EPI_FW_Z_WIDE
#  undef MOE_EPI_FW_Z_F32
#  undef MOE_EPI_FW_Z_F32M
#  undef MOE_EPI_FW_Z_F16
#  undef MOE_EPI_FW_Z_F16M
#  undef MOE_EPI_FW_Z_EVEN
#  undef MOE_EPI_FW_Z_ODD
#  undef MOE_EPI_FW_Z_PAIR
#  undef MOE_EPI_FW_Z_BF16
#endif /* MOE_EPI_FW_X86 */

#define MOE_EPI_FW_C(t) {{moe_epi_fw_c_##t##_1, moe_epi_fw_c_##t##_2, moe_epi_fw_c_##t##_3, moe_epi_fw_c_##t##_4, NULL, NULL}, 4, 0, moe_epi_fw_c_exp}
#define MOE_EPI_FW_CY(t, g) {{moe_epi_fw_y_##t##_1, moe_epi_fw_y_##t##_2, moe_epi_fw_y_##t##_3, NULL, NULL, NULL}, 3, g, moe_epi_fw_y_exp}
#define MOE_EPI_FW_CZ(t, g) {{moe_epi_fw_z_##t##_1, moe_epi_fw_z_##t##_2, moe_epi_fw_z_##t##_3, moe_epi_fw_z_##t##_4, \
                           moe_epi_fw_z_##t##_5, moe_epi_fw_z_##t##_6}, 6, g, moe_epi_fw_z_exp}
static const moe_epi_fw_kernels moe_epi_fw_kernel_table[][3] = {
    {MOE_EPI_FW_C(f32), MOE_EPI_FW_C(bf16), MOE_EPI_FW_C(f16)},
#if MOE_EPI_FW_X86
    {MOE_EPI_FW_CY(f32, 0), MOE_EPI_FW_CY(bf16, 16), MOE_EPI_FW_CY(f16, 0)},
    {MOE_EPI_FW_CZ(f32, 0), MOE_EPI_FW_CZ(bf16, 32), MOE_EPI_FW_CZ(f16, 0)},
#endif
};
#undef MOE_EPI_FW_C
#undef MOE_EPI_FW_CY
#undef MOE_EPI_FW_CZ

static const moe_epi_fw_kernels *moe_epi_fw_kernels_for(moe_ep_isa isa_max, moe_ep_dtype dtype)
{
    const moe_ep_isa here = moe_ep_isa_best();
    int best = (int)here, cap = (int)isa_max;
    if (cap != (int)MOE_EP_ISA_AUTO && cap < best) best = cap;
    return &moe_epi_fw_kernel_table[best - 1][(int)dtype];
}

/* ---- activations ------------------------------------------------------------------------------------ */

MOE_EP_API moe_ep_activation moe_ep_activation_gpt_oss(void)
{
    moe_ep_activation a;
    memset(&a, 0, sizeof a);
    a.kind = MOE_EP_ACT_SWIGLU;
    a.alpha = 1.702f;
    a.limit = 7.0f;
    a.up_offset = 1.0f;
    return a;
}

static int moe_epi_fw_gated(moe_ep_activation_kind kind)
{
    return kind == MOE_EP_ACT_SWIGLU || kind == MOE_EP_ACT_GEGLU_TANH || kind == MOE_EP_ACT_GEGLU_ERF;
}

#define MOE_EPI_FW_GELU_C 0.79788456080286536 /* sqrt(2/pi) */
#define MOE_EPI_FW_GELU_A 0.044715

MOE_EP_API double moe_ep_activate(const moe_ep_activation *activation, double g, double u)
{
    double alpha, limit, s;
    if (!activation) return 0.0;
    alpha = (double)activation->alpha;
    limit = (double)activation->limit;
    if (limit > 0.0) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    if (!(alpha > 0.0) && !(alpha < 0.0)) alpha = 1.0;
    if (activation->kind == MOE_EP_ACT_SWIGLU || activation->kind == MOE_EP_ACT_SILU)
        s = g / (1.0 + exp(-alpha * g));
    else if (activation->kind == MOE_EP_ACT_GEGLU_TANH || activation->kind == MOE_EP_ACT_GELU_TANH)
        s = 0.5 * g * (1.0 + tanh(MOE_EPI_FW_GELU_C * (g + MOE_EPI_FW_GELU_A * g * g * g)));
    else if (activation->kind == MOE_EP_ACT_GEGLU_ERF || activation->kind == MOE_EP_ACT_GELU_ERF)
        s = 0.5 * g * (1.0 + erf(g * 0.70710678118654752));
    else if (activation->kind == MOE_EP_ACT_RELU2)
        s = g > 0.0 ? g * g : 0.0;
    else
        return 0.0;
    return moe_epi_fw_gated(activation->kind) ? s * (u + (double)activation->up_offset) : s;
}

/* One token's block of columns: g, u (MOE_EPI_FW_COLS) -> h; u is not read by plain kinds.  tanh is taken
 * through the same exponential as SiLU: (1 + tanh z) / 2 = 1 / (1 + exp(-2 z)). */
static void moe_epi_fw_activate_block(const moe_ep_activation *a, const moe_epi_fw_kernels *kn, float *g, float *u,
                                   float *h)
{
    float alpha = a->alpha > 0.0f || a->alpha < 0.0f ? a->alpha : 1.0f;
    int i;
    if (a->limit > 0.0f) {
        for (i = 0; i < MOE_EPI_FW_COLS; i++) {
            g[i] = g[i] > a->limit ? a->limit : g[i];
            u[i] = u[i] > a->limit ? a->limit : u[i] < -a->limit ? -a->limit : u[i];
        }
    }
    if (a->kind == MOE_EP_ACT_RELU2) {
        for (i = 0; i < MOE_EPI_FW_COLS; i++) h[i] = g[i] > 0.0f ? g[i] * g[i] : 0.0f;
    } else if (a->kind == MOE_EP_ACT_GEGLU_ERF || a->kind == MOE_EP_ACT_GELU_ERF) {
        for (i = 0; i < MOE_EPI_FW_COLS; i++) h[i] = 0.5f * g[i] * (1.0f + erff(g[i] * 0.70710678f));
    } else {
        if (a->kind == MOE_EP_ACT_SWIGLU || a->kind == MOE_EP_ACT_SILU)
            for (i = 0; i < MOE_EPI_FW_COLS; i++) h[i] = -alpha * g[i];
        else
            for (i = 0; i < MOE_EPI_FW_COLS; i++)
                h[i] = (float)(-2.0 * MOE_EPI_FW_GELU_C) * (g[i] + (float)MOE_EPI_FW_GELU_A * g[i] * g[i] * g[i]);
        kn->exp_n(h, MOE_EPI_FW_COLS);
        for (i = 0; i < MOE_EPI_FW_COLS; i++) h[i] = g[i] / (1.0f + h[i]);
    }
    if (moe_epi_fw_gated(a->kind))
        for (i = 0; i < MOE_EPI_FW_COLS; i++) h[i] *= u[i] + a->up_offset;
}

/* ---- a set of experts over grouped rows --------------------------------------------------------------- */

/* Where the rows of one expert's matrices lie. */
typedef struct moe_epi_fw_matrix {
    const unsigned char *base; /* row 0 */
    int64_t stride;            /* bytes from row to row */
    const float *bias;         /* of row 0, or NULL */
    int64_t bias_stride;       /* elements from row to row */
} moe_epi_fw_matrix;

typedef struct moe_epi_fw_group {
    moe_epi_fw_matrix gate, up, down; /* up.base NULL for plain activations */
    int64_t row0, rows;
    int64_t x_shift;               /* without x_row: activation row = row - x_shift */
    int blas;
} moe_epi_fw_group;

/* Everything a task of the expert stages needs. */
typedef struct moe_epi_fw_run {
    const moe_ep_weights *w;
    const moe_epi_fw_kernels *kernels;
    moe_epi_fw_group *groups; /* by falling number of rows */
    int64_t *first[2];     /* (groups+1) first task of each group, per stage */
    int32_t num_groups;
    const float *x;        /* activation rows, padded and interleaved */
    int64_t x_stride;
    const int32_t *x_row;  /* (rows) row of x; NULL = row - x_shift of the group */
    float *h, *h2;         /* (rows, h_stride) between the stages; h2 for BLAS only */
    int64_t h_stride;
    float *o;              /* (rows, H) */
} moe_epi_fw_run;

static int64_t moe_epi_fw_dtype_bytes(moe_ep_dtype dtype) { return dtype == MOE_EP_F32 ? 4 : 2; }

static int64_t moe_epi_fw_pad(int64_t n) { return (n + MOE_EPI_FW_PAD - 1) / MOE_EPI_FW_PAD * MOE_EPI_FW_PAD; }

static int64_t moe_epi_fw_or(int64_t given, int64_t packed) { return given != 0 ? given : packed; }

static const unsigned char *moe_epi_fw_base(const void *all, const void *const *of, int32_t e, int64_t stride,
                                         int64_t bytes)
{
    return of ? (const unsigned char *)of[e] : (const unsigned char *)all + (int64_t)e * stride * bytes;
}

/* Matrices of expert e of w. */
static void moe_epi_fw_group_init(moe_epi_fw_group *g, const moe_ep_weights *w, int32_t e)
{
    int64_t bytes = moe_epi_fw_dtype_bytes(w->dtype), I = w->inter, H = w->hidden;
    int fused = w->layout != MOE_EP_GATE_SEPARATE;
    int64_t rows = fused ? 2 * I : I, row = moe_epi_fw_or(w->gate_row_stride, H) * bytes;
    memset(g, 0, sizeof *g);
    g->gate.base = moe_epi_fw_base(w->gate, w->gate_of, e,
                                moe_epi_fw_or(w->gate_expert_stride, rows * (row / bytes)), bytes);
    g->gate.stride = row;
    g->gate.bias = w->gate_bias ? w->gate_bias + (int64_t)e * rows : NULL;
    g->gate.bias_stride = 1;
    if (fused) {
        int64_t gate_at = w->layout == MOE_EP_GATE_UP_FIRST ? I : 0;
        int64_t up_at = w->layout == MOE_EP_GATE_FIRST ? I : w->layout == MOE_EP_GATE_UP_FIRST ? 0 : 1;
        g->up = g->gate;
        g->up.base += up_at * row;
        g->gate.base += gate_at * row;
        if (g->gate.bias) {
            g->up.bias += up_at;
            g->gate.bias += gate_at;
        }
        if (w->layout == MOE_EP_GATE_INTERLEAVED) {
            g->gate.stride = g->up.stride = 2 * row;
            g->gate.bias_stride = g->up.bias_stride = 2;
        }
    } else if (moe_epi_fw_gated(w->activation.kind)) {
        int64_t up_row = moe_epi_fw_or(w->up_row_stride, H);
        g->up.base = moe_epi_fw_base(w->up, w->up_of, e, moe_epi_fw_or(w->up_expert_stride, I * up_row), bytes);
        g->up.stride = up_row * bytes;
        g->up.bias = w->up_bias ? w->up_bias + (int64_t)e * I : NULL;
        g->up.bias_stride = 1;
    }
    row = moe_epi_fw_or(w->down_row_stride, I);
    g->down.base = moe_epi_fw_base(w->down, w->down_of, e, moe_epi_fw_or(w->down_expert_stride, H * row), bytes);
    g->down.stride = row * bytes;
    g->down.bias = w->down_bias ? w->down_bias + (int64_t)e * H : NULL;
    g->down.bias_stride = 1;
}

/* c[j*ldc + r] = dot(row r, x[j]) for `rows` (a multiple of 4) row pointers and `tokens` tokens.  Few
 * tokens: weights stream past them row by row.  Many: one block of the inner dimension at a time, so that
 * weights and tokens are read from the caches. */
static void moe_epi_fw_panel(const moe_epi_fw_kernels *kn, const unsigned char *const *row, int rows,
                          const float *const *x, int tokens, int64_t n, int64_t elem, float *c, int64_t ldc)
{
    int pieces = (tokens + kn->max_tokens - 1) / kn->max_tokens, stream = pieces <= 2;
    int outer, r, r_first, r_last, t, i, step;
    int64_t k0, len;
    for (outer = 0; outer < (stream ? rows / 4 : 1); outer++) {
        r_first = stream ? 4 * outer : 0;
        r_last = stream ? r_first + 4 : rows;
        for (k0 = 0; k0 < n; k0 += MOE_EPI_FW_KBLOCK) {
            len = n - k0 < MOE_EPI_FW_KBLOCK ? n - k0 : MOE_EPI_FW_KBLOCK;
            for (t = 0, i = 0; i < pieces; i++, t += step) {
                const float *xs[6];
                int j;
                step = (tokens - t) / (pieces - i);
                for (j = 0; j < step; j++) xs[j] = x[t + j] + k0;
                for (r = r_first; r < r_last; r += 4) {
                    const void *w[4];
                    for (j = 0; j < 4; j++) w[j] = row[r + j] + k0 * elem;
                    kn->tile[step - 1](w, xs, len, c + t * ldc + r, ldc, k0 > 0);
                }
            }
        }
    }
}

/* Rows of a panel.  A tile takes rows i, i+q, i+2q, i+3q of the `rows` = 4q rows, so that consecutive tiles
 * read four long streams: memory likes that 10 to 20 % better than four neighbouring rows at a time. */
typedef struct moe_epi_fw_rows {
    const unsigned char *of[2 * MOE_EPI_FW_COLS]; /* in the order of the tiles */
    int rows, quarter;
} moe_epi_fw_rows;

/* Rows from..from+count-1 of a, then the same of b (NULL = only a); each part is filled up to a multiple of
 * 4 with its last row.  Returns where b begins. */
static int moe_epi_fw_rows_init(moe_epi_fw_rows *p, const moe_epi_fw_matrix *a, const moe_epi_fw_matrix *b,
                                int64_t from, int count)
{
    int half = (count + 3) / 4 * 4, i;
    p->rows = b ? 2 * half : half;
    p->quarter = p->rows / 4;
    for (i = 0; i < p->rows; i++) {
        const moe_epi_fw_matrix *m = i < half ? a : b;
        int r = i < half ? i : i - half;
        p->of[4 * (i % p->quarter) + i / p->quarter] = m->base + (from + (r < count ? r : count - 1)) * m->stride;
    }
    return half;
}

/* Results of rows first..first+count-1 out of a token's line of the panel. */
static void moe_epi_fw_rows_read(const moe_epi_fw_rows *p, const float *line, int first, int count, float *out)
{
    int tile = first % p->quarter, lane = first / p->quarter, i;
    for (i = 0; i < count; i++) {
        out[i] = line[4 * tile + lane];
        if (++tile == p->quarter) tile = 0, lane++;
    }
}

static void moe_epi_fw_add_bias(const moe_epi_fw_matrix *m, int64_t from, int count, float *v)
{
    int i;
    if (!m->bias) return;
    for (i = 0; i < count; i++) v[i] += m->bias[(from + i) * m->bias_stride];
}

/* Position of element i of a block of MOE_EPI_FW_COLS in the order the kernels want. */
static int moe_epi_fw_place_of(int interleave, int i)
{
    int base, in;
    if (interleave == 0) return i;
    base = i / interleave * interleave;
    in = i - base;
    return base + (in & 1 ? interleave / 2 : 0) + in / 2;
}

/* Activation of one token's columns; out gets zeros behind the last column. */
static void moe_epi_fw_emit(const moe_epi_fw_run *run, const moe_epi_fw_group *g, int64_t col, int count, float *gate,
                         float *up, float *out)
{
    float h[MOE_EPI_FW_COLS];
    int i;
    for (i = count; i < MOE_EPI_FW_COLS; i++) gate[i] = up[i] = 0.0f;
    moe_epi_fw_add_bias(&g->gate, col, count, gate);
    moe_epi_fw_add_bias(&g->up, col, count, up);
    moe_epi_fw_activate_block(&run->w->activation, run->kernels, gate, up, h);
    for (i = 0; i < MOE_EPI_FW_COLS; i++)
        out[moe_epi_fw_place_of(run->kernels->interleave, i)] = i < count ? h[i] : 0.0f;
}

static const float *moe_epi_fw_x(const moe_epi_fw_run *run, const moe_epi_fw_group *g, int64_t row)
{
    return run->x + (run->x_row ? (int64_t)run->x_row[row] : row - g->x_shift) * run->x_stride;
}

/* Group of a task, by bisection. */
static int32_t moe_epi_fw_group_of(const int64_t *first, int32_t n, int64_t task)
{
    int32_t lo = 0, hi = n - 1, mid;
    while (lo < hi) {
        mid = lo + (hi - lo + 1) / 2;
        if (first[mid] <= task) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

#if MOE_EPI_FW_BLAS
/* c (rows, cols) = a (rows, n) . m[col ..][0..n-1]^T; every size was checked to fit an int. */
static void moe_epi_fw_gemm(const moe_epi_fw_matrix *m, int64_t col, int64_t cols, const float *a, int64_t lda,
                         int64_t rows, int64_t n, float *c, int64_t ldc)
{
    const float *b = (const float *)(const void *)(m->base + col * m->stride);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)cols, (int)n, 1.0f, a, (int)lda, b,
                (int)(m->stride / 4), 0.0f, c, (int)ldc);
}

static void moe_epi_fw_up_blas(const moe_epi_fw_run *run, const moe_epi_fw_group *g, int64_t block)
{
    int64_t col = block * MOE_EPI_FW_BLAS_COLS, I = run->w->inter, cols = I - col, row, c, hs = run->h_stride;
    int i, count;
    if (cols > MOE_EPI_FW_BLAS_COLS) cols = MOE_EPI_FW_BLAS_COLS;
    moe_epi_fw_gemm(&g->gate, col, cols, moe_epi_fw_x(run, g, g->row0), run->x_stride, g->rows, run->w->hidden,
                 run->h + g->row0 * hs + col, hs);
    if (g->up.base)
        moe_epi_fw_gemm(&g->up, col, cols, moe_epi_fw_x(run, g, g->row0), run->x_stride, g->rows, run->w->hidden,
                     run->h2 + g->row0 * hs + col, hs);
    for (row = g->row0; row < g->row0 + g->rows; row++) {
        for (c = col; c < col + cols; c += MOE_EPI_FW_COLS) {
            float gate[MOE_EPI_FW_COLS], up[MOE_EPI_FW_COLS];
            count = (int)(col + cols - c < MOE_EPI_FW_COLS ? col + cols - c : MOE_EPI_FW_COLS);
            for (i = 0; i < count; i++) {
                gate[i] = run->h[row * hs + c + i];
                up[i] = g->up.base ? run->h2[row * hs + c + i] : 0.0f;
            }
            moe_epi_fw_emit(run, g, c, count, gate, up, run->h + row * hs + c);
        }
    }
}

static void moe_epi_fw_down_blas(const moe_epi_fw_run *run, const moe_epi_fw_group *g, int64_t block)
{
    int64_t col = block * MOE_EPI_FW_BLAS_COLS, H = run->w->hidden, cols = H - col, row;
    if (cols > MOE_EPI_FW_BLAS_COLS) cols = MOE_EPI_FW_BLAS_COLS;
    moe_epi_fw_gemm(&g->down, col, cols, run->h + g->row0 * run->h_stride, run->h_stride, g->rows, run->w->inter,
                 run->o + g->row0 * H + col, H);
    for (row = g->row0; row < g->row0 + g->rows; row++)
        moe_epi_fw_add_bias(&g->down, col, (int)cols, run->o + row * H + col);
}
#endif

/* Task of the first stage: one group, MOE_EPI_FW_COLS intermediate columns, all its rows. */
static void moe_epi_fw_up_task(void *context, int64_t index)
{
    const moe_epi_fw_run *run = (const moe_epi_fw_run *)context;
    int32_t gi = moe_epi_fw_group_of(run->first[0], run->num_groups, index);
    const moe_epi_fw_group *g = &run->groups[gi];
    moe_epi_fw_rows panel;
    float c[MOE_EPI_FW_TOKENS * 2 * MOE_EPI_FW_COLS];
    int64_t col = (index - run->first[0][gi]) * MOE_EPI_FW_COLS, done, elem = moe_epi_fw_dtype_bytes(run->w->dtype);
    int count, half, tokens, j;
#if MOE_EPI_FW_BLAS
    if (g->blas) {
        moe_epi_fw_up_blas(run, g, index - run->first[0][gi]);
        return;
    }
#endif
    count = (int)(run->w->inter - col < MOE_EPI_FW_COLS ? run->w->inter - col : MOE_EPI_FW_COLS);
    half = moe_epi_fw_rows_init(&panel, &g->gate, g->up.base ? &g->up : NULL, col, count);
    for (done = 0; done < g->rows; done += tokens) {
        const float *x[MOE_EPI_FW_TOKENS];
        tokens = (int)(g->rows - done < MOE_EPI_FW_TOKENS ? g->rows - done : MOE_EPI_FW_TOKENS);
        for (j = 0; j < tokens; j++) x[j] = moe_epi_fw_x(run, g, g->row0 + done + j);
        moe_epi_fw_panel(run->kernels, panel.of, panel.rows, x, tokens, run->w->hidden, elem, c, 2 * MOE_EPI_FW_COLS);
        for (j = 0; j < tokens; j++) {
            float gate[MOE_EPI_FW_COLS], up[MOE_EPI_FW_COLS];
            const float *from = c + j * 2 * MOE_EPI_FW_COLS;
            moe_epi_fw_rows_read(&panel, from, 0, count, gate);
            if (g->up.base) moe_epi_fw_rows_read(&panel, from, half, count, up);
            else memset(up, 0, sizeof up);
            moe_epi_fw_emit(run, g, col, count, gate, up,
                         run->h + (g->row0 + done + j) * run->h_stride + col);
        }
    }
}

/* Task of the second stage: one group, 2 MOE_EPI_FW_COLS output columns, all its rows. */
static void moe_epi_fw_down_task(void *context, int64_t index)
{
    const moe_epi_fw_run *run = (const moe_epi_fw_run *)context;
    int32_t gi = moe_epi_fw_group_of(run->first[1], run->num_groups, index);
    const moe_epi_fw_group *g = &run->groups[gi];
    moe_epi_fw_rows panel;
    float c[MOE_EPI_FW_TOKENS * 2 * MOE_EPI_FW_COLS];
    int64_t H = run->w->hidden, col = (index - run->first[1][gi]) * (2 * MOE_EPI_FW_COLS), done;
    int count, tokens, j;
#if MOE_EPI_FW_BLAS
    if (g->blas) {
        moe_epi_fw_down_blas(run, g, index - run->first[1][gi]);
        return;
    }
#endif
    count = (int)(H - col < 2 * MOE_EPI_FW_COLS ? H - col : 2 * MOE_EPI_FW_COLS);
    moe_epi_fw_rows_init(&panel, &g->down, NULL, col, count);
    for (done = 0; done < g->rows; done += tokens) {
        const float *x[MOE_EPI_FW_TOKENS];
        tokens = (int)(g->rows - done < MOE_EPI_FW_TOKENS ? g->rows - done : MOE_EPI_FW_TOKENS);
        for (j = 0; j < tokens; j++) x[j] = run->h + (g->row0 + done + j) * run->h_stride;
        moe_epi_fw_panel(run->kernels, panel.of, panel.rows, x, tokens, run->w->inter, moe_epi_fw_dtype_bytes(run->w->dtype), c,
                      2 * MOE_EPI_FW_COLS);
        for (j = 0; j < tokens; j++) {
            float *out = run->o + (g->row0 + done + j) * H + col;
            moe_epi_fw_rows_read(&panel, c + j * 2 * MOE_EPI_FW_COLS, 0, count, out);
            moe_epi_fw_add_bias(&g->down, col, count, out);
        }
    }
}

static void moe_epi_fw_parallel(const moe_ep_forward_desc *d, int64_t count, moe_ep_task task, void *context)
{
    int64_t i;
    if (count <= 0) return;
    if (d->parallel_for && count > 1) {
        d->parallel_for(d->parallel_user, count, task, context);
        return;
    }
    for (i = 0; i < count; i++) task(context, i);
}

/* Sorts groups by falling rows (ties: lower first row first) and numbers their tasks. */
static void moe_epi_fw_schedule(moe_epi_fw_run *run)
{
    int32_t i, j, n = 0;
    for (i = 0; i < run->num_groups; i++) { /* insertion into the kept front; empty groups drop out */
        moe_epi_fw_group g = run->groups[i];
        if (g.rows == 0) continue;
        for (j = n++; j > 0 && run->groups[j - 1].rows < g.rows; j--) run->groups[j] = run->groups[j - 1];
        run->groups[j] = g;
    }
    run->num_groups = n;
    run->first[0][0] = run->first[1][0] = 0;
    for (i = 0; i < n; i++) {
        int64_t up = run->groups[i].blas ? MOE_EPI_FW_BLAS_COLS : MOE_EPI_FW_COLS;
        int64_t down = run->groups[i].blas ? MOE_EPI_FW_BLAS_COLS : 2 * MOE_EPI_FW_COLS;
        run->first[0][i + 1] = run->first[0][i] + (run->w->inter + up - 1) / up;
        run->first[1][i + 1] = run->first[1][i] + (run->w->hidden + down - 1) / down;
    }
}

/* Both expert stages of a scheduled run. */
static void moe_epi_fw_run_experts(const moe_ep_forward_desc *d, moe_epi_fw_run *run)
{
    moe_epi_fw_parallel(d, run->first[0][run->num_groups], moe_epi_fw_up_task, run);
    moe_epi_fw_parallel(d, run->first[1][run->num_groups], moe_epi_fw_down_task, run);
}

/* ---- rows in -------------------------------------------------------------------------------------------- */

#define MOE_EPI_FW_PACK_ROWS 16

/* Copies activation rows into the padded, interleaved form of the kernels. */
typedef struct moe_epi_fw_pack {
    const float *x;
    int64_t H;
    int64_t rows;
    const int32_t *row_of; /* source row, NULL = the same */
    const float *scale;    /* factor of each row, NULL = none */
    float *out;
    int64_t stride;
    int interleave;
} moe_epi_fw_pack;

static void moe_epi_fw_pack_task(void *context, int64_t index)
{
    const moe_epi_fw_pack *p = (const moe_epi_fw_pack *)context;
    int64_t row = index * MOE_EPI_FW_PACK_ROWS, last = row + MOE_EPI_FW_PACK_ROWS, i, b;
    for (; row < last && row < p->rows; row++) {
        const float *in = p->x + (p->row_of ? (int64_t)p->row_of[row] : row) * p->H;
        float *out = p->out + row * p->stride;
        if (p->interleave == 0) {
            memcpy(out, in, sizeof(float) * (size_t)p->H);
            memset(out + p->H, 0, sizeof(float) * (size_t)(p->stride - p->H));
        } else {
            int half = p->interleave / 2, j;
            for (b = 0; b + p->interleave <= p->H; b += p->interleave) {
                for (j = 0; j < half; j++) {
                    out[b + j] = in[b + 2 * j];
                    out[b + half + j] = in[b + 2 * j + 1];
                }
            }
            memset(out + b, 0, sizeof(float) * (size_t)(p->stride - b));
            for (i = b; i < p->H; i++) out[b + moe_epi_fw_place_of(p->interleave, (int)(i - b))] = in[i];
        }
        if (p->scale)
            for (i = 0; i < p->stride; i++) out[i] *= p->scale[row];
    }
}

/* ---- rows out ------------------------------------------------------------------------------------------- */

/* y[t] = sum over k of weight * row, in choice order, then shared rows; one place for one device and many. */
typedef struct moe_epi_fw_combine {
    const moe_ep_forward_desc *d;
    const float *x;            /* (T,H) for identity experts */
    const int32_t *ids;        /* (T,K); >= first_null: identity */
    const float *weights;      /* (T,K) or NULL = 1 */
    int32_t K, first_null;
    int64_t T, H;
    const int32_t *row32;      /* (T,K) row of o, -1 = none; or */
    const int64_t *row64;
    const float *o;            /* rows */
    const float *shared_o;     /* (S*T, H) or NULL */
    int weight_on_input;
    float *y;
} moe_epi_fw_combine;

static float moe_epi_fw_sigmoid_dot(const float *a, const float *b, int64_t n)
{
    double s = 0.0;
    int64_t i;
    for (i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
    return (float)(1.0 / (1.0 + exp(-s)));
}

/* y += w * row, or y = w * row for the first. */
static void moe_epi_fw_axpy(float *y, const float *row, float w, int64_t n, int first)
{
    int64_t i;
    if (first)
        for (i = 0; i < n; i++) y[i] = w * row[i];
    else
        for (i = 0; i < n; i++) y[i] += w * row[i];
}

static void moe_epi_fw_combine_task(void *context, int64_t index)
{
    const moe_epi_fw_combine *c = (const moe_epi_fw_combine *)context;
    int64_t t = index * MOE_EPI_FW_PACK_ROWS, last = t + MOE_EPI_FW_PACK_ROWS, at, row;
    int32_t k, s, S = c->shared_o ? c->d->shared->num_experts : 0;
    for (; t < last && t < c->T; t++) {
        float *y = c->y + t * c->H;
        int first = 1;
        for (k = 0; k < c->K; k++) {
            float w = c->weights ? c->weights[t * c->K + k] : 1.0f;
            at = t * c->K + k;
            if (c->ids[at] >= c->first_null) {
                moe_epi_fw_axpy(y, c->x + t * c->H, w, c->H, first);
            } else {
                row = c->row32 ? (int64_t)c->row32[at] : c->row64[at];
                if (row < 0) continue;
                moe_epi_fw_axpy(y, c->o + row * c->H, c->weight_on_input ? 1.0f : w, c->H, first);
            }
            first = 0;
        }
        if (S > 0) {
            float w = c->d->shared_gate ? moe_epi_fw_sigmoid_dot(c->x + t * c->H, c->d->shared_gate, c->H) : 1.0f;
            for (s = 0; s < S; s++, first = 0)
                moe_epi_fw_axpy(y, c->shared_o + ((int64_t)s * c->T + t) * c->H, w, c->H, first);
        }
        if (first) memset(y, 0, sizeof(float) * (size_t)c->H);
    }
}

/* ---- checks --------------------------------------------------------------------------------------------- */

/* Index of the first non-finite element, -1 = all finite.  Whole blocks first: exponents compared as integers. */
static int64_t moe_epi_fw_first_nonfinite(const float *v, int64_t n)
{
    int64_t b, i;
    for (b = 0; b < n; b += 256) {
        int64_t end = b + 256 < n ? b + 256 : n;
        uint32_t worst = 0;
        for (i = b; i < end; i++) {
            uint32_t u = moe_epi_fw_bits(v[i]) & 0x7fffffffu;
            worst = u > worst ? u : worst;
        }
        if (worst < 0x7f800000u) continue;
        for (i = b; i < end; i++)
            if ((moe_epi_fw_bits(v[i]) & 0x7f800000u) == 0x7f800000u) return i;
    }
    return -1;
}

static moe_ep_status moe_epi_fw_check_finite(const float *v, int64_t n, const char *name, moe_ep_error *err)
{
    int64_t at = moe_epi_fw_first_nonfinite(v, n);
    if (at < 0) return MOE_EP_OK;
    return moe_epi_fail(err, MOE_EP_ERR_NAN, name, "must be finite", at, (double)v[at]);
}

/* One matrix set: base or table, row stride and expert stride. */
static moe_ep_status moe_epi_fw_check_matrix(const void *base, const void *const *of, int64_t row_stride,
                                          int64_t expert_stride, int64_t rows, int64_t cols, int32_t num,
                                          const char *name, moe_ep_error *err)
{
    int64_t total;
    int32_t e;
    if (!base && !of) return moe_epi_null(err, name);
    for (e = 0; of && e < num; e++)
        if (!of[e]) return moe_epi_fail(err, MOE_EP_ERR_NULL, name, "pointer of this expert must not be NULL", e, 0.0);
    row_stride = moe_epi_fw_or(row_stride, cols);
    if (row_stride < cols)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, name, "row stride shorter than a row", -1, (double)row_stride);
    if (!moe_epi_mul(rows, row_stride, &total) || !moe_epi_mul(total, num, &total) || total > INT64_MAX / 8)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, name, "experts * rows * stride does not fit", -1, (double)rows);
    expert_stride = moe_epi_fw_or(expert_stride, rows * row_stride);
    if (!of && (expert_stride < 0 || !moe_epi_mul(expert_stride, num, &total) || total > INT64_MAX / 8))
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, name, "expert stride out of range", -1, (double)expert_stride);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_fw_check_activation(const moe_ep_activation *a, moe_ep_error *err)
{
    if ((int)a->kind < 0 || (int)a->kind > (int)MOE_EP_ACT_RELU2)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "activation.kind", "no such activation", -1, (double)(int)a->kind);
    if (!moe_epi_finite((double)a->alpha) || !moe_epi_finite((double)a->limit) ||
        !moe_epi_finite((double)a->up_offset))
        return moe_epi_fail(err, MOE_EP_ERR_NAN, "activation", "alpha, limit and up_offset must be finite", -1, 0.0);
    if (a->limit < 0.0f)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "activation.limit", "must not be negative", -1, (double)a->limit);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_fw_check_weights(const moe_ep_weights *w, const char *name, moe_ep_error *err)
{
    moe_ep_status st;
    int gated, fused;
    if (!w) return moe_epi_null(err, name);
    if (w->num_experts < 1 || w->hidden < 1 || w->inter < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, name, "num_experts, hidden and inter must be at least 1", -1,
                            (double)(w->num_experts < 1 ? w->num_experts : w->hidden < 1 ? w->hidden : w->inter));
    if ((int)w->dtype < 0 || (int)w->dtype > (int)MOE_EP_F16)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "dtype", "no such element type", -1, (double)(int)w->dtype);
    if ((int)w->layout < 0 || (int)w->layout > (int)MOE_EP_GATE_INTERLEAVED)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "layout", "no such gate layout", -1, (double)(int)w->layout);
    st = moe_epi_fw_check_activation(&w->activation, err);
    if (st != MOE_EP_OK) return st;
    gated = moe_epi_fw_gated(w->activation.kind);
    fused = w->layout != MOE_EP_GATE_SEPARATE;
    if (fused && !gated)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "layout", "a plain activation has no up projection to fuse", -1,
                            (double)(int)w->layout);
    if ((fused || !gated) && (w->up || w->up_of || w->up_bias))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "up", "must be NULL for this layout and activation", -1, 0.0);
    st = moe_epi_fw_check_matrix(w->gate, w->gate_of, w->gate_row_stride, w->gate_expert_stride,
                              (fused ? 2 : 1) * (int64_t)w->inter, w->hidden, w->num_experts, "gate", err);
    if (st == MOE_EP_OK && gated && !fused)
        st = moe_epi_fw_check_matrix(w->up, w->up_of, w->up_row_stride, w->up_expert_stride, w->inter, w->hidden,
                                  w->num_experts, "up", err);
    if (st == MOE_EP_OK)
        st = moe_epi_fw_check_matrix(w->down, w->down_of, w->down_row_stride, w->down_expert_stride, w->hidden,
                                  w->inter, w->num_experts, "down", err);
    return st;
}

/* Fields of a desc that do not depend on the batch. */
static moe_ep_status moe_epi_fw_check_options(const moe_ep_forward_desc *d, moe_ep_error *err)
{
    moe_ep_status st = moe_epi_fw_check_weights(d->experts, "experts", err);
    if (st != MOE_EP_OK) return st;
    if ((int)d->isa_max < 0 || (int)d->isa_max > (int)MOE_EP_ISA_AVX512)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "isa_max", "no such instruction set", -1, (double)(int)d->isa_max);
    if (d->blas_min_rows < 0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "blas_min_rows", "must not be negative", -1,
                            (double)d->blas_min_rows);
    if (d->num_null < 0 || d->num_null > INT32_MAX - d->experts->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_null", "out of range", -1, (double)d->num_null);
    if (d->shared) {
        st = moe_epi_fw_check_weights(d->shared, "shared", err);
        if (st != MOE_EP_OK) return st;
        if (d->shared->hidden != d->experts->hidden)
            return moe_epi_fail(err, MOE_EP_ERR_SIZE, "shared.hidden", "must equal experts.hidden", -1,
                                (double)d->shared->hidden);
    } else if (d->shared_gate) {
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "shared_gate", "there are no shared experts", -1, 0.0);
    }
    if (d->shared_gate) return moe_epi_fw_check_finite(d->shared_gate, d->experts->hidden, "shared_gate", err);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_fw_check_routing(const moe_ep_forward_desc *d, int64_t T, int32_t *K, moe_ep_error *err)
{
    int32_t E = d->experts->num_experts + d->num_null;
    int64_t n, i;
    *K = d->top_k;
    if (d->router) {
        moe_ep_status st = moe_ep_router_check(d->router, err);
        if (st != MOE_EP_OK) return st;
        if (!d->gate) return moe_epi_null(err, "gate");
        if (d->router->num_experts != E || d->router->num_null != d->num_null)
            return moe_epi_fail(err, MOE_EP_ERR_SIZE, "router.num_experts", "must be experts + num_null", -1,
                                (double)d->router->num_experts);
        if (*K != 0 && *K != d->router->top_k)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "top_k", "differs from the router's", -1, (double)*K);
        *K = d->router->top_k;
    }
    if (*K < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "top_k", "must be at least 1", -1, (double)*K);
    if (*K > E) return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "top_k", "larger than the number of experts", -1, (double)*K);
    if (!moe_epi_mul(T, *K, &n) || n > INT64_MAX / 64)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_tokens", "num_tokens * top_k does not fit", -1, (double)T);
    if (d->router || T == 0) return MOE_EP_OK;
    if (!d->ids) return moe_epi_null(err, "ids");
    for (i = 0; i < n; i++)
        if (d->ids[i] < -1 || d->ids[i] >= E)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "ids", "neither -1 nor in 0..E-1", i, (double)d->ids[i]);
    if (d->choice_weights) return moe_epi_fw_check_finite(d->choice_weights, n, "choice_weights", err);
    return MOE_EP_OK;
}

static int moe_epi_fw_overlap(const void *a, const void *b, int64_t bytes)
{
    uintptr_t p = (uintptr_t)a, q = (uintptr_t)b;
    return p < q ? q - p < (uintptr_t)bytes : p - q < (uintptr_t)bytes;
}

/* x (rows,H) and y (rows,H). */
static moe_ep_status moe_epi_fw_check_xy(const float *x, const float *y, int64_t rows, int32_t H, const char *xname,
                                      const char *yname, moe_ep_error *err)
{
    int64_t n;
    if (rows < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_tokens", "must not be negative", -1, (double)rows);
    if (!moe_epi_mul(rows, H, &n) || n > INT64_MAX / 64)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_tokens", "num_tokens * hidden does not fit", -1, (double)rows);
    if (rows == 0) return MOE_EP_OK;
    if (!x) return moe_epi_null(err, xname);
    if (!y) return moe_epi_null(err, yname);
    if (moe_epi_fw_overlap(x, y, n * 4))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, yname, "must not overlap the input", -1, 0.0);
    return moe_epi_fw_check_finite(x, n, xname, err);
}

/* ---- scratch of one set of experts: sizes and pieces -------------------------------------------------------- */

static int moe_epi_fw_wants_blas(const moe_ep_forward_desc *d, const moe_ep_weights *w)
{
    return MOE_EPI_FW_BLAS && d->blas_min_rows > 0 && w->dtype == MOE_EP_F32 &&
           moe_epi_fw_or(w->gate_row_stride, w->hidden) <= INT32_MAX / 2 &&
           moe_epi_fw_or(w->up_row_stride, w->hidden) <= INT32_MAX &&
           moe_epi_fw_or(w->down_row_stride, w->inter) <= INT32_MAX;
}

static void moe_epi_fw_run_need(size_t *total, const moe_ep_forward_desc *d, const moe_ep_weights *w,
                             int32_t groups, int64_t x_rows, int64_t rows)
{
    int64_t h = 0;
    if (!moe_epi_mul(rows, moe_epi_fw_pad(w->inter), &h) || !moe_epi_mul(x_rows, moe_epi_fw_pad(w->hidden), &x_rows)) {
        *total = SIZE_MAX;
        return;
    }
    moe_epi_need(total, groups, sizeof(moe_epi_fw_group));
    moe_epi_need(total, (int64_t)groups + 1, sizeof(int64_t));
    moe_epi_need(total, (int64_t)groups + 1, sizeof(int64_t));
    moe_epi_need(total, x_rows, sizeof(float));
    moe_epi_need(total, h, sizeof(float));
    moe_epi_need(total, moe_epi_fw_wants_blas(d, w) ? h : 0, sizeof(float));
}

/* Takes the pieces; returns the activation rows to be packed. */
static float *moe_epi_fw_run_take(moe_epi_fw_run *run, moe_epi_arena *a, const moe_ep_forward_desc *d,
                               const moe_ep_weights *w, int32_t groups, int64_t x_rows, int64_t rows)
{
    float *x;
    memset(run, 0, sizeof *run);
    run->w = w;
    run->kernels = moe_epi_fw_kernels_for(d->isa_max, w->dtype);
    run->num_groups = groups;
    run->x_stride = moe_epi_fw_pad(w->hidden);
    run->h_stride = moe_epi_fw_pad(w->inter);
    run->groups = (moe_epi_fw_group *)moe_epi_take(a, groups, sizeof(moe_epi_fw_group));
    run->first[0] = (int64_t *)moe_epi_take(a, (int64_t)groups + 1, sizeof(int64_t));
    run->first[1] = (int64_t *)moe_epi_take(a, (int64_t)groups + 1, sizeof(int64_t));
    x = (float *)moe_epi_take(a, x_rows * run->x_stride, sizeof(float));
    run->x = x;
    run->h = (float *)moe_epi_take(a, rows * run->h_stride, sizeof(float));
    run->h2 = (float *)moe_epi_take(a, moe_epi_fw_wants_blas(d, w) ? rows * run->h_stride : 0, sizeof(float));
    return x;
}

static void moe_epi_fw_pack_rows(const moe_ep_forward_desc *d, const moe_epi_fw_run *run, const float *x,
                              const int32_t *row_of, const float *scale, int64_t rows, float *out)
{
    moe_epi_fw_pack p;
    p.x = x;
    p.H = run->w->hidden;
    p.rows = rows;
    p.row_of = row_of;
    p.scale = scale;
    p.out = out;
    p.stride = run->x_stride;
    p.interleave = run->kernels->interleave;
    moe_epi_fw_parallel(d, (rows + MOE_EPI_FW_PACK_ROWS - 1) / MOE_EPI_FW_PACK_ROWS, moe_epi_fw_pack_task, &p);
}

static void moe_epi_fw_set_group(const moe_ep_forward_desc *d, moe_epi_fw_run *run, int32_t g, int32_t expert,
                              int64_t row0, int64_t rows)
{
    moe_epi_fw_group_init(&run->groups[g], run->w, expert);
    run->groups[g].row0 = row0;
    run->groups[g].rows = rows;
    run->groups[g].blas = moe_epi_fw_wants_blas(d, run->w) && rows >= d->blas_min_rows && rows <= INT32_MAX;
}

/* ---- the experts alone --------------------------------------------------------------------------------------- */

MOE_EP_API moe_ep_status moe_ep_experts(const moe_ep_forward_desc *desc, const float *rx,
                                        const int64_t *row_start, int32_t num_groups,
                                        const int32_t *expert_of_group, float *ry, moe_ep_scratch *scratch,
                                        moe_ep_error *err)
{
    moe_epi_arena arena;
    moe_epi_fw_run run;
    moe_ep_status st;
    size_t total = 0;
    int64_t rows;
    int32_t g;
    float *x;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    st = moe_epi_fw_check_options(desc, err);
    if (st != MOE_EP_OK) return st;
    if (num_groups < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_groups", "must be at least 1", -1, (double)num_groups);
    if (!row_start) return moe_epi_null(err, "row_start");
    if (!expert_of_group && num_groups > desc->experts->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_groups", "more groups than experts", -1, (double)num_groups);
    for (g = 0; g < num_groups; g++) {
        if (row_start[g + 1] < row_start[g] || (g == 0 && row_start[0] != 0))
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "row_start", "must begin at 0 and never fall", g,
                                (double)row_start[g]);
        if (expert_of_group && (expert_of_group[g] < 0 || expert_of_group[g] >= desc->experts->num_experts))
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "expert_of_group", "not in 0..E-1", g,
                                (double)expert_of_group[g]);
    }
    rows = row_start[num_groups];
    st = moe_epi_fw_check_xy(rx, ry, rows, desc->experts->hidden, "rx", "ry", err);
    if (st != MOE_EP_OK || rows == 0) return st;
    moe_epi_fw_run_need(&total, desc, desc->experts, num_groups, rows, rows);
    st = moe_epi_arena_open(&arena, scratch, total, err);
    if (st != MOE_EP_OK) return st;
    x = moe_epi_fw_run_take(&run, &arena, desc, desc->experts, num_groups, rows, rows);
    run.o = ry;
    moe_epi_fw_pack_rows(desc, &run, rx, NULL, NULL, rows, x);
    for (g = 0; g < num_groups; g++)
        moe_epi_fw_set_group(desc, &run, g, expert_of_group ? expert_of_group[g] : g, row_start[g],
                          row_start[g + 1] - row_start[g]);
    moe_epi_fw_schedule(&run);
    moe_epi_fw_run_experts(desc, &run);
    moe_epi_arena_close(&arena);
    return MOE_EP_OK;
}

/* ---- the layer -------------------------------------------------------------------------------------------------- */

/* Memory of moe_ep_forward: routing of all tokens, then one pass of `chunk` tokens at a time. */
typedef struct moe_epi_fw_layer {
    const moe_ep_forward_desc *d;
    const float *x;
    float *y;
    int64_t T, chunk;
    int32_t K, E, groups_all; /* groups_all: experts and identity experts */
    int on_input, own_rows;   /* own_rows: every row has its own activation copy */
    int32_t *ids;             /* (T,K), or the caller's */
    float *weights;
    const int32_t *use_ids;
    const float *use_weights;
    float *logits;            /* (chunk, groups_all) */
    int64_t *offsets;
    int32_t *row_to_flat, *flat_to_row, *x_row;
    float *row_scale, *o, *shared_o;
} moe_epi_fw_layer;

typedef struct moe_epi_fw_gate_work {
    const moe_epi_fw_layer *l;
    int64_t t0, count;
} moe_epi_fw_gate_work;

static void moe_epi_fw_gate_task(void *context, int64_t index)
{
    const moe_epi_fw_gate_work *g = (const moe_epi_fw_gate_work *)context;
    const moe_epi_fw_layer *l = g->l;
    int64_t at = index * MOE_EPI_FW_PACK_ROWS, n = g->count - at;
    int32_t H = l->d->experts->hidden;
    if (n > MOE_EPI_FW_PACK_ROWS) n = MOE_EPI_FW_PACK_ROWS;
    (void)moe_ep_gate(l->x + (g->t0 + at) * H, n, H, l->d->gate, NULL, l->groups_all,
                      l->logits + at * l->groups_all, NULL);
}

/* Router of the tokens from t0 on: per-token tables and keys move along. */
static moe_ep_router moe_epi_fw_router_at(const moe_ep_router *router, int64_t t0)
{
    moe_ep_router r = *router;
    r.logits_stride = 0;
    if (r.keys) r.keys += t0 * r.num_experts;
    if (r.select == MOE_EP_SELECT_TABLE && r.table) {
        r.table += t0 * r.top_k;
        r.table_rows -= t0;
    }
    return r;
}

/* Gate and route of all tokens, before anything is written to y. */
static moe_ep_status moe_epi_fw_route_all(moe_epi_fw_layer *l, moe_ep_error *err)
{
    int64_t t0;
    for (t0 = 0; t0 < l->T; t0 += l->chunk) {
        moe_epi_fw_gate_work work;
        moe_ep_router router = moe_epi_fw_router_at(l->d->router, t0);
        moe_ep_status st;
        work.l = l;
        work.t0 = t0;
        work.count = l->T - t0 < l->chunk ? l->T - t0 : l->chunk;
        moe_epi_fw_parallel(l->d, (work.count + MOE_EPI_FW_PACK_ROWS - 1) / MOE_EPI_FW_PACK_ROWS, moe_epi_fw_gate_task, &work);
        st = moe_ep_route(&router, l->logits, work.count, NULL, l->ids + t0 * l->K, l->weights + t0 * l->K, err);
        if (st != MOE_EP_OK) {
            if (err && err->index >= 0 && strcmp(err->arg, "logits") == 0) err->index += t0 * l->groups_all;
            return st;
        }
    }
    return MOE_EP_OK;
}

static void moe_epi_fw_layer_need(size_t *total, const moe_epi_fw_layer *l)
{
    size_t routed = 0, shared = 0;
    const moe_ep_forward_desc *d = l->d;
    int64_t C = l->chunk, R = C * l->K, H = d->experts->hidden, S = d->shared ? d->shared->num_experts : 0;
    moe_epi_need(total, d->router ? l->T * l->K : 0, sizeof(int32_t));
    moe_epi_need(total, d->router ? l->T * l->K : 0, sizeof(float));
    moe_epi_need(total, d->router ? C * l->groups_all : 0, sizeof(float));
    moe_epi_need(total, (int64_t)l->groups_all + 1, sizeof(int64_t));
    moe_epi_need(total, R, sizeof(int32_t));
    moe_epi_need(total, R, sizeof(int32_t));
    moe_epi_need(total, R, sizeof(int32_t));
    moe_epi_need(total, l->on_input ? R : 0, sizeof(float));
    moe_epi_need(total, R * H, sizeof(float));
    moe_epi_need(total, S * C * H, sizeof(float));
    moe_epi_fw_run_need(&routed, d, d->experts, l->E, l->own_rows ? R : C, R);
    if (S > 0) moe_epi_fw_run_need(&shared, d, d->shared, (int32_t)S, C, S * C);
    if (shared > routed) routed = shared; /* one after the other in the same memory */
    *total = routed > SIZE_MAX - *total ? SIZE_MAX : *total + routed;
}

static void moe_epi_fw_layer_take(moe_epi_fw_layer *l, moe_epi_arena *a)
{
    const moe_ep_forward_desc *d = l->d;
    int64_t C = l->chunk, R = C * l->K, H = d->experts->hidden, S = d->shared ? d->shared->num_experts : 0;
    l->ids = (int32_t *)moe_epi_take(a, d->router ? l->T * l->K : 0, sizeof(int32_t));
    l->weights = (float *)moe_epi_take(a, d->router ? l->T * l->K : 0, sizeof(float));
    l->logits = (float *)moe_epi_take(a, d->router ? C * l->groups_all : 0, sizeof(float));
    l->offsets = (int64_t *)moe_epi_take(a, (int64_t)l->groups_all + 1, sizeof(int64_t));
    l->row_to_flat = (int32_t *)moe_epi_take(a, R, sizeof(int32_t));
    l->flat_to_row = (int32_t *)moe_epi_take(a, R, sizeof(int32_t));
    l->x_row = (int32_t *)moe_epi_take(a, R, sizeof(int32_t));
    l->row_scale = (float *)moe_epi_take(a, l->on_input ? R : 0, sizeof(float));
    l->o = (float *)moe_epi_take(a, R * H, sizeof(float));
    l->shared_o = (float *)moe_epi_take(a, S * C * H, sizeof(float));
    l->use_ids = d->router ? l->ids : d->ids;
    l->use_weights = d->router ? l->weights : d->choice_weights;
}

/* Routed experts of tokens t0 .. t0+n-1 into l->o. */
static moe_ep_status moe_epi_fw_routed(moe_epi_fw_layer *l, int64_t t0, int64_t n, moe_epi_arena arena, moe_ep_error *err)
{
    const moe_ep_forward_desc *d = l->d;
    const float *w = l->use_weights ? l->use_weights + t0 * l->K : NULL;
    const float *x = l->x + t0 * d->experts->hidden;
    int64_t R, i;
    int32_t e;
    moe_epi_fw_run run;
    float *packed = moe_epi_fw_run_take(&run, &arena, d, d->experts, l->E, l->own_rows ? l->chunk * l->K : l->chunk,
                                     l->chunk * l->K);
    moe_ep_status st = moe_ep_permute(l->use_ids + t0 * l->K, n * l->K, l->groups_all, l->offsets, l->row_to_flat,
                                      l->flat_to_row, err);
    if (st != MOE_EP_OK) return st;
    R = l->offsets[l->E]; /* rows of identity experts stand behind and have no work */
    for (i = 0; i < R; i++) {
        l->x_row[i] = l->row_to_flat[i] / l->K;
        if (l->on_input) l->row_scale[i] = w ? w[l->row_to_flat[i]] : 1.0f;
    }
    if (l->own_rows) {
        moe_epi_fw_pack_rows(d, &run, x, l->x_row, l->on_input ? l->row_scale : NULL, R, packed);
    } else {
        moe_epi_fw_pack_rows(d, &run, x, NULL, NULL, n, packed);
        run.x_row = l->x_row;
    }
    run.o = l->o;
    for (e = 0; e < l->E; e++)
        moe_epi_fw_set_group(d, &run, e, e, l->offsets[e], l->offsets[e + 1] - l->offsets[e]);
    moe_epi_fw_schedule(&run);
    moe_epi_fw_run_experts(d, &run);
    return MOE_EP_OK;
}

/* Shared experts of n tokens into out (S*n,H); rows of expert s are s*n .. s*n+n-1.  room >= n. */
static void moe_epi_fw_shared(const moe_ep_forward_desc *d, const float *x, int64_t n, int64_t room, float *out,
                           moe_epi_arena arena)
{
    int32_t s, S = d->shared->num_experts;
    moe_epi_fw_run run;
    float *packed = moe_epi_fw_run_take(&run, &arena, d, d->shared, S, room, S * room);
    moe_epi_fw_pack_rows(d, &run, x, NULL, NULL, n, packed);
    run.o = out;
    for (s = 0; s < S; s++) {
        moe_epi_fw_set_group(d, &run, s, s, (int64_t)s * n, n);
        run.groups[s].x_shift = (int64_t)s * n;
    }
    moe_epi_fw_schedule(&run);
    moe_epi_fw_run_experts(d, &run);
}

static moe_ep_status moe_epi_fw_layer_chunk(moe_epi_fw_layer *l, int64_t t0, int64_t n, const moe_epi_arena *arena,
                                         moe_ep_error *err)
{
    int64_t H = l->d->experts->hidden;
    moe_epi_fw_combine c;
    moe_ep_status st = moe_epi_fw_routed(l, t0, n, *arena, err);
    if (st != MOE_EP_OK) return st;
    if (l->d->shared) moe_epi_fw_shared(l->d, l->x + t0 * H, n, l->chunk, l->shared_o, *arena);
    memset(&c, 0, sizeof c);
    c.d = l->d;
    c.x = l->x + t0 * H;
    c.ids = l->use_ids + t0 * l->K;
    c.weights = l->use_weights ? l->use_weights + t0 * l->K : NULL;
    c.K = l->K;
    c.first_null = l->E;
    c.T = n;
    c.H = H;
    c.row32 = l->flat_to_row;
    c.o = l->o;
    c.shared_o = l->d->shared ? l->shared_o : NULL;
    c.weight_on_input = l->on_input;
    c.y = l->y + t0 * H;
    moe_epi_fw_parallel(l->d, (n + MOE_EPI_FW_PACK_ROWS - 1) / MOE_EPI_FW_PACK_ROWS, moe_epi_fw_combine_task, &c);
    return MOE_EP_OK;
}

/* Chunk length, and whether all products of sizes fit. */
static moe_ep_status moe_epi_fw_layer_sizes(moe_epi_fw_layer *l, moe_ep_error *err)
{
    const moe_ep_forward_desc *d = l->d;
    int64_t S = d->shared ? d->shared->num_experts : 0, widest = d->experts->hidden, rows, n;
    if (d->experts->inter > widest) widest = d->experts->inter;
    if (d->shared && d->shared->inter > widest) widest = d->shared->inter;
    l->chunk = l->T < MOE_EPI_FW_CHUNK ? l->T : MOE_EPI_FW_CHUNK;
    if (l->chunk > (1 << 30) / l->K) l->chunk = (1 << 30) / l->K;
    if (l->chunk < 1) l->chunk = 1;
    rows = l->chunk * (S > l->K ? S : l->K);
    if (!moe_epi_mul(rows, widest + MOE_EPI_FW_PAD, &n) || n > INT64_MAX / 64)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_tokens", "rows * width does not fit", -1, (double)rows);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_forward(const moe_ep_forward_desc *desc, const float *x, int64_t num_tokens,
                                        float *y, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_fw_layer l;
    moe_epi_arena arena;
    moe_ep_status st;
    size_t total = 0;
    int64_t t0;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    memset(&l, 0, sizeof l);
    l.d = desc;
    l.x = x;
    l.y = y;
    l.T = num_tokens;
    st = moe_epi_fw_check_options(desc, err);
    if (st == MOE_EP_OK) st = moe_epi_fw_check_xy(x, y, num_tokens, desc->experts->hidden, "x", "y", err);
    if (st == MOE_EP_OK) st = moe_epi_fw_check_routing(desc, num_tokens, &l.K, err);
    if (st != MOE_EP_OK || num_tokens == 0) return st;
    l.E = desc->experts->num_experts;
    l.groups_all = l.E + desc->num_null;
    l.on_input = desc->weight_on_input || (desc->router && desc->router->weight_on_input);
    l.own_rows = l.on_input || moe_epi_fw_wants_blas(desc, desc->experts);
    st = moe_epi_fw_layer_sizes(&l, err);
    if (st != MOE_EP_OK) return st;
    moe_epi_fw_layer_need(&total, &l);
    st = moe_epi_arena_open(&arena, scratch, total, err);
    if (st != MOE_EP_OK) return st;
    moe_epi_fw_layer_take(&l, &arena);
    if (desc->router) st = moe_epi_fw_route_all(&l, err);
    for (t0 = 0; st == MOE_EP_OK && t0 < num_tokens; t0 += l.chunk)
        st = moe_epi_fw_layer_chunk(&l, t0, num_tokens - t0 < l.chunk ? num_tokens - t0 : l.chunk, &arena, err);
    moe_epi_arena_close(&arena);
    return st;
}

#endif /* MOE_EP_NO_FORWARD */

/* ==================================================================================================
 * 10 HOOKS
 * ================================================================================================== */
#ifndef MOE_EP_NO_FORWARD

/* One micro-batch of a rank. */
typedef struct moe_epi_hk_side {
    moe_ep_plan plan;
    int64_t *send_slots, *recv_slots; /* (nranks, per_rank) */
    moe_ep_scratch out_mem, in_mem;   /* plan arrays known before and after the exchange of counts */
    void *rx, *ry;
    size_t row_room;                  /* bytes of rx, and of ry */
    const void *x;
    void *y;
    int no_plan, ready;
} moe_epi_hk_side;

struct moe_epi_rank {
    moe_ep_hooks hooks;
    const moe_ep_forward_desc *layer;
    moe_ep_allocator alloc;
    int32_t rank, nranks, K, H, nslots, P, per_rank, num_null;
    int64_t max_rows; /* of moe_ep_rank_reserve */
    size_t row_bytes;
    int32_t *slot_start;  /* (nranks+1) */
    int32_t *slot_expert; /* (nslots), empty slots hold 0 */
    uint8_t *slot_empty;  /* (nslots) */
    moe_ep_scratch base;  /* the arrays above */
    moe_ep_scratch compute;
    moe_epi_hk_side side[2];
};

typedef struct moe_epi_rank moe_epi_hk_rank;

/* ---- start and end ---------------------------------------------------------------------------------- */

static moe_ep_status moe_epi_hk_check_hooks(const moe_ep_rank_desc *d, moe_ep_error *err)
{
    moe_ep_hooks none;
    const moe_ep_hooks *h = d->hooks;
    memset(&none, 0, sizeof none);
    if (h && h->size != sizeof *h)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "hooks.size", "must be sizeof(moe_ep_hooks)", -1, (double)h->size);
    if (!h) h = &none;
    if ((h->alloc_fn == NULL) != (h->free_fn == NULL))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "hooks.alloc_fn", "give both alloc_fn and free_fn or neither", -1, 0.0);
    if (d->num_ranks > 1 && !h->counts)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "hooks.counts", "needed with more than one rank", -1, 0.0);
    if (d->num_ranks > 1 && !h->dispatch)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "hooks.dispatch", "needed with more than one rank", -1, 0.0);
    if (d->num_ranks > 1 && !h->combine)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "hooks.combine", "needed with more than one rank", -1, 0.0);
    if (!d->layer && (!h->experts || !h->combine))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "layer", "needed where experts or combine has no hook", -1, 0.0);
    if ((!h->experts || !h->combine) && d->elem_bytes != 0 && d->elem_bytes != 4)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "elem_bytes", "the CPU stages work on float", -1,
                            (double)d->elem_bytes);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_hk_check_slots(const moe_ep_rank_desc *d, moe_ep_error *err)
{
    int32_t r, s, n;
    if (!d->slot_start) return moe_epi_null(err, "slot_start");
    for (r = 0; r < d->num_ranks; r++)
        if (d->slot_start[r + 1] < d->slot_start[r] || (r == 0 && d->slot_start[0] != 0))
            return moe_epi_fail(err, MOE_EP_ERR_RANGE, "slot_start", "must begin at 0 and never fall", r,
                                (double)d->slot_start[r]);
    n = d->slot_start[d->rank + 1] - d->slot_start[d->rank];
    if (!d->layer) return MOE_EP_OK;
    if (!d->slot_expert && n > d->layer->experts->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "slot_start", "more slots here than experts in layer", d->rank, (double)n);
    for (s = 0; d->slot_expert && s < n; s++)
        if (d->slot_expert[s] < -1 || d->slot_expert[s] >= d->layer->experts->num_experts)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "slot_expert", "neither -1 nor in 0..E-1", s,
                                (double)d->slot_expert[s]);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_hk_check(const moe_ep_rank_desc *d, moe_ep_error *err)
{
    moe_ep_status st;
    int64_t choices;
    if (d->num_ranks < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_ranks", "must be at least 1", -1, (double)d->num_ranks);
    if (d->rank < 0 || d->rank >= d->num_ranks)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "rank", "not in 0..num_ranks-1", -1, (double)d->rank);
    if (d->hidden < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "hidden", "must be at least 1", -1, (double)d->hidden);
    if (d->elem_bytes < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "elem_bytes", "must not be negative", -1, (double)d->elem_bytes);
    if ((d->alloc.alloc_fn == NULL) != (d->alloc.free_fn == NULL))
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "alloc", "give both alloc_fn and free_fn or neither", -1, 0.0);
    st = moe_epi_hk_check_hooks(d, err);
    if (st == MOE_EP_OK && d->layer) st = moe_epi_fw_check_options(d->layer, err);
    if (st != MOE_EP_OK) return st;
    if (d->layer && d->layer->experts->hidden != d->hidden)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "hidden", "differs from layer->experts", -1, (double)d->hidden);
    st = moe_epi_hk_check_slots(d, err);
    if (st != MOE_EP_OK) return st;
    choices = (int64_t)d->slot_start[d->num_ranks] + (d->layer ? d->layer->num_null : 0);
    if (d->top_k < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "top_k", "must be at least 1", -1, (double)d->top_k);
    if (d->top_k > choices || choices > INT32_MAX)
        return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "top_k", "larger than the number of slots", -1, (double)d->top_k);
    return MOE_EP_OK;
}

static void moe_epi_hk_init_arrays(moe_epi_hk_rank *k, const moe_ep_rank_desc *d, moe_epi_arena *a)
{
    int32_t s, n;
    k->slot_start = (int32_t *)moe_epi_take(a, (int64_t)d->num_ranks + 1, sizeof(int32_t));
    k->slot_expert = (int32_t *)moe_epi_take(a, k->nslots, sizeof(int32_t));
    k->slot_empty = (uint8_t *)moe_epi_take(a, k->nslots, 1);
    memcpy(k->slot_start, d->slot_start, sizeof(int32_t) * ((size_t)d->num_ranks + 1u));
    for (s = 0; s < d->num_ranks; s++) {
        n = d->slot_start[s + 1] - d->slot_start[s];
        if (n > k->per_rank) k->per_rank = n;
    }
    for (s = 0; s < k->nslots; s++) {
        int32_t e = d->slot_expert ? d->slot_expert[s] : s;
        k->slot_expert[s] = e < 0 ? 0 : e;
        k->slot_empty[s] = (uint8_t)(e < 0);
    }
}

MOE_EP_API moe_ep_status moe_ep_rank_init(moe_ep_rank *rank, const moe_ep_rank_desc *desc, moe_ep_error *err)
{
    moe_epi_hk_rank *k;
    moe_epi_arena a;
    moe_ep_status st;
    size_t total = 0;
    int i;
    moe_epi_ok(err);
    if (!rank) return moe_epi_null(err, "rank");
    if (!desc) return moe_epi_null(err, "desc");
    st = moe_epi_hk_check(desc, err);
    if (st != MOE_EP_OK) return st;
    k = (moe_epi_hk_rank *)moe_epi_malloc(&desc->alloc, sizeof *k);
    if (!k) return moe_epi_fail(err, MOE_EP_ERR_MEMORY, "alloc", "bytes that could not be allocated", -1, (double)sizeof *k);
    memset(k, 0, sizeof *k);
    if (desc->hooks) k->hooks = *desc->hooks;
    k->layer = desc->layer;
    k->alloc = k->base.alloc = k->compute.alloc = desc->alloc;
    for (i = 0; i < 2; i++) k->side[i].out_mem.alloc = k->side[i].in_mem.alloc = desc->alloc;
    k->rank = desc->rank;
    k->nranks = desc->num_ranks;
    k->K = desc->top_k;
    k->H = desc->hidden;
    k->P = desc->slot_start[desc->num_ranks];
    k->nslots = desc->slot_start[desc->rank + 1] - desc->slot_start[desc->rank];
    k->num_null = desc->layer ? desc->layer->num_null : 0;
    k->row_bytes = (size_t)desc->hidden * (size_t)(desc->elem_bytes != 0 ? desc->elem_bytes : 4);
    moe_epi_need(&total, (int64_t)k->nranks + 1, sizeof(int32_t));
    moe_epi_need(&total, k->nslots, sizeof(int32_t));
    moe_epi_need(&total, k->nslots, 1);
    st = moe_epi_arena_open(&a, &k->base, total, err);
    if (st != MOE_EP_OK) {
        moe_epi_free(&desc->alloc, k, sizeof *k);
        return st;
    }
    moe_epi_hk_init_arrays(k, desc, &a);
    rank->state = k;
    return MOE_EP_OK;
}

static void moe_epi_hk_row_free(moe_epi_hk_rank *k, void *ptr, size_t bytes)
{
    if (!ptr) return;
    if (k->hooks.free_fn) k->hooks.free_fn(k->hooks.user, ptr);
    else moe_epi_free(&k->alloc, ptr, bytes);
}

MOE_EP_API void moe_ep_rank_free(moe_ep_rank *rank)
{
    moe_epi_hk_rank *k = rank ? rank->state : NULL;
    moe_ep_allocator alloc;
    int i;
    if (!k) return;
    for (i = 0; i < 2; i++) {
        moe_epi_hk_row_free(k, k->side[i].rx, k->side[i].row_room);
        moe_epi_hk_row_free(k, k->side[i].ry, k->side[i].row_room);
        moe_ep_scratch_free(&k->side[i].out_mem);
        moe_ep_scratch_free(&k->side[i].in_mem);
    }
    moe_ep_scratch_free(&k->compute);
    moe_ep_scratch_free(&k->base);
    alloc = k->alloc;
    moe_epi_free(&alloc, k, sizeof *k);
    rank->state = NULL;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

static void moe_epi_hk_out_need(size_t *total, const moe_epi_hk_rank *k, int64_t n)
{
    int64_t pairs = (int64_t)k->nranks * k->per_rank;
    moe_epi_need(total, pairs, sizeof(int64_t));
    moe_epi_need(total, pairs, sizeof(int64_t));
    moe_epi_need(total, n, sizeof(int32_t));
    moe_epi_need(total, n, sizeof(float));
    moe_epi_need(total, n, sizeof(int64_t));
    moe_epi_need(total, n, sizeof(int64_t));
    moe_epi_need(total, n, sizeof(float));
    moe_epi_need(total, 4 * ((int64_t)k->nranks + 1), sizeof(int64_t));
    moe_epi_need(total, 2 * ((int64_t)k->nslots + 1), sizeof(int64_t));
}

/* Makes room for `rows` rows in rx and ry. */
static moe_ep_status moe_epi_hk_room(moe_epi_hk_rank *k, moe_epi_hk_side *s, int64_t rows, moe_ep_error *err)
{
    size_t bytes;
    void **slot[2];
    int i;
    if ((uint64_t)rows > (uint64_t)(SIZE_MAX / 4u) / k->row_bytes)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "rows", "rows * bytes does not fit", -1, (double)rows);
    bytes = (size_t)rows * k->row_bytes;
    if (bytes <= s->row_room) return MOE_EP_OK;
    slot[0] = &s->rx;
    slot[1] = &s->ry;
    for (i = 0; i < 2; i++) {
        moe_epi_hk_row_free(k, *slot[i], s->row_room);
        *slot[i] = NULL;
    }
    s->row_room = 0;
    for (i = 0; i < 2; i++) {
        *slot[i] = k->hooks.alloc_fn ? k->hooks.alloc_fn(k->hooks.user, bytes) : moe_epi_malloc(&k->alloc, bytes);
        if (*slot[i]) continue;
        moe_epi_hk_row_free(k, s->rx, bytes);
        s->rx = NULL;
        return moe_epi_fail(err, MOE_EP_ERR_MEMORY, i == 0 ? "rx" : "ry", "bytes that could not be allocated", -1,
                            (double)bytes);
    }
    s->row_room = bytes;
    return MOE_EP_OK;
}

/* Bytes the CPU stages want for T tokens out and `rows` rows in. */
static size_t moe_epi_hk_compute_need(const moe_epi_hk_rank *k, int64_t T, int64_t rows)
{
    size_t experts = 0, combine = 0;
    if (!k->layer) return 0;
    if (!k->hooks.experts && k->nslots > 0)
        moe_epi_fw_run_need(&experts, k->layer, k->layer->experts, k->nslots, rows, rows);
    moe_epi_need(&combine, T * k->K, k->row_bytes);
    if (k->layer->shared) {
        moe_epi_need(&combine, T * k->layer->shared->num_experts, k->row_bytes);
        moe_epi_fw_run_need(&combine, k->layer, k->layer->shared, k->layer->shared->num_experts, T,
                            T * k->layer->shared->num_experts);
    }
    if (experts > combine) combine = experts;
    return combine > SIZE_MAX - 64u ? SIZE_MAX : combine + 64u; /* room to align a nested scratch */
}

static moe_ep_status moe_epi_hk_check_tokens(const moe_epi_hk_rank *k, int64_t T, moe_ep_error *err)
{
    int64_t n;
    if (T < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_tokens", "must not be negative", -1, (double)T);
    if (!moe_epi_mul(T, k->K, &n) || n > INT64_MAX / 64 || (uint64_t)n > (uint64_t)(SIZE_MAX / 8u) / k->row_bytes)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "num_tokens", "tokens * top_k * hidden does not fit", -1, (double)T);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_rank_reserve(moe_ep_rank *rank, int64_t max_tokens, int64_t max_rows,
                                             moe_ep_error *err)
{
    moe_epi_hk_rank *k;
    moe_epi_arena a;
    moe_ep_status st;
    int i;
    moe_epi_ok(err);
    if (!rank || !rank->state) return moe_epi_null(err, "rank");
    k = rank->state;
    st = moe_epi_hk_check_tokens(k, max_tokens, err);
    if (st != MOE_EP_OK) return st;
    if (max_rows < 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "max_rows", "must not be negative", -1, (double)max_rows);
    for (i = 0; st == MOE_EP_OK && i < 2; i++) {
        size_t out = 0, in = 0;
        moe_epi_hk_out_need(&out, k, max_tokens * k->K);
        moe_epi_need(&in, max_rows, sizeof(int64_t));
        st = moe_epi_arena_open(&a, &k->side[i].out_mem, out, err);
        if (st == MOE_EP_OK) st = moe_epi_arena_open(&a, &k->side[i].in_mem, in, err);
        if (st == MOE_EP_OK) st = moe_epi_hk_room(k, &k->side[i], max_rows, err);
        k->side[i].ready = 0;
    }
    if (st == MOE_EP_OK)
        st = moe_epi_arena_open(&a, &k->compute, moe_epi_hk_compute_need(k, max_tokens, max_rows), err);
    if (st == MOE_EP_OK) k->max_rows = max_rows;
    return st;
}

/* ---- the plan -------------------------------------------------------------------------------------------- */

static moe_ep_status moe_epi_hk_code(int code, const char *hook, moe_ep_error *err)
{
    if (code == 0) return MOE_EP_OK;
    return moe_epi_fail(err, (moe_ep_status)code, hook, "the hook returned this code", -1, (double)code);
}

static moe_ep_status moe_epi_hk_check_batch(const moe_epi_hk_rank *k, const moe_ep_batch *b, moe_ep_error *err)
{
    moe_ep_status st = moe_epi_hk_check_tokens(k, b->num_tokens, err);
    int64_t i, n = b->num_tokens * k->K;
    if (st != MOE_EP_OK) return st;
    if (b->num_tokens > 0 && !b->x) return moe_epi_null(err, "x");
    if (b->num_tokens > 0 && !b->y) return moe_epi_null(err, "y");
    if (b->no_plan) {
        if (!k->hooks.dispatch || !k->hooks.experts || !k->hooks.combine)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "no_plan", "needs dispatch, experts and combine hooks", -1, 1.0);
        return MOE_EP_OK;
    }
    if (n > 0 && !b->slot_ids) return moe_epi_null(err, "slot_ids");
    for (i = 0; i < n; i++)
        if (b->slot_ids[i] < -1 || b->slot_ids[i] >= k->P + k->num_null)
            return moe_epi_fail(err, MOE_EP_ERR_EXPERT_ID, "slot_ids", "neither -1 nor a slot", i, (double)b->slot_ids[i]);
    if (n > 0 && b->weights) return moe_epi_fw_check_finite(b->weights, n, "weights", err);
    return MOE_EP_OK;
}

static int32_t moe_epi_hk_rank_of_slot(const moe_epi_hk_rank *k, int32_t slot)
{
    int32_t lo = 0, hi = k->nranks - 1, mid;
    while (lo < hi) { /* the last rank that starts at or before the slot; empty ranks share a start */
        mid = lo + (hi - lo + 1) / 2;
        if (k->slot_start[mid] <= slot) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

/* Pieces of the first arena, and what is known without the other ranks. */
static void moe_epi_hk_plan_out(moe_epi_hk_rank *k, moe_epi_hk_side *s, const moe_ep_batch *b, moe_epi_arena *a)
{
    int64_t n = b->num_tokens * k->K, pairs = (int64_t)k->nranks * k->per_rank, i;
    int32_t *ids;
    float *w;
    s->send_slots = (int64_t *)moe_epi_take(a, pairs, sizeof(int64_t));
    s->recv_slots = (int64_t *)moe_epi_take(a, pairs, sizeof(int64_t));
    ids = (int32_t *)moe_epi_take(a, n, sizeof(int32_t));
    w = (float *)moe_epi_take(a, n, sizeof(float));
    s->plan.topk_ids = ids;
    s->plan.topk_weights = w;
    if (pairs > 0) memset(s->send_slots, 0, sizeof(int64_t) * (size_t)pairs);
    if (pairs > 0) memset(s->recv_slots, 0, sizeof(int64_t) * (size_t)pairs);
    for (i = 0; i < n; i++) {
        int32_t slot = ids[i] = b->slot_ids[i], r;
        w[i] = b->weights ? b->weights[i] : 1.0f;
        if (slot < 0 || slot >= k->P) continue;
        r = moe_epi_hk_rank_of_slot(k, slot);
        s->send_slots[(int64_t)r * k->per_rank + slot - k->slot_start[r]]++;
    }
}

/* Order of the outgoing rows: by rank, slot, token, choice.  Returns the room for recv_rows and recv_start. */
static int64_t *moe_epi_hk_plan_send(moe_epi_hk_rank *k, moe_epi_hk_side *s, moe_epi_arena *a)
{
    moe_ep_plan *p = &s->plan;
    int64_t n = p->ntokens * k->K, i, row = 0, count;
    int64_t *choice = (int64_t *)moe_epi_take(a, n, sizeof(int64_t));
    int64_t *token = (int64_t *)moe_epi_take(a, n, sizeof(int64_t));
    float *weight = (float *)moe_epi_take(a, n, sizeof(float));
    int64_t *per_rank = (int64_t *)moe_epi_take(a, 4 * ((int64_t)k->nranks + 1), sizeof(int64_t));
    int64_t *start = per_rank + k->nranks;
    int32_t r, l;
    for (r = 0; r < k->nranks; r++) { /* counts become running positions, see below */
        start[r] = row;
        for (l = 0; l < k->per_rank; l++) {
            count = s->send_slots[(int64_t)r * k->per_rank + l];
            s->send_slots[(int64_t)r * k->per_rank + l] = row;
            row += count;
        }
        per_rank[r] = row - start[r];
    }
    start[k->nranks] = row;
    for (i = 0; i < n; i++) {
        int32_t slot = p->topk_ids[i];
        choice[i] = -1;
        if (slot < 0 || slot >= k->P) continue;
        r = moe_epi_hk_rank_of_slot(k, slot);
        row = s->send_slots[(int64_t)r * k->per_rank + slot - k->slot_start[r]]++;
        choice[i] = row;
        token[row] = i / k->K;
        weight[row] = p->topk_weights[i];
    }
    p->choice_row = choice;
    p->send_token = token;
    p->send_weight = weight;
    p->send_rows = per_rank;
    p->send_start = start;
    p->nsend = start[k->nranks];
    p->recv_rows = start + k->nranks + 1;
    p->recv_start = p->recv_rows + k->nranks;
    return start + k->nranks + 1;
}

/* Totals of what arrives; fails on a negative count or on rows for an empty slot. */
static moe_ep_status moe_epi_hk_check_recv(const moe_epi_hk_rank *k, const moe_epi_hk_side *s, moe_ep_error *err)
{
    int64_t total = 0, i;
    int32_t r, l;
    for (r = 0; r < k->nranks; r++) {
        for (l = 0; l < k->per_rank; l++) {
            int64_t c;
            i = (int64_t)r * k->per_rank + l;
            c = s->recv_slots[i];
            if (c < 0) return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "counts", "negative count received", i, (double)c);
            if (c > 0 && (l >= k->nslots || k->slot_empty[l]))
                return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "counts", "rows for a slot that is empty here", i, (double)c);
            if (c > INT64_MAX / 64 - total)
                return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "counts", "rows received do not fit", i, (double)c);
            total += c;
        }
    }
    return MOE_EP_OK;
}

/* Where the arriving rows belong: by slot, source rank, order of the source. */
static moe_ep_status moe_epi_hk_plan_recv(moe_epi_hk_rank *k, moe_epi_hk_side *s, moe_epi_arena *out, int64_t *rows,
                                          int64_t *start, moe_ep_error *err)
{
    moe_epi_arena a;
    size_t total = 0;
    int64_t *slot_rows = (int64_t *)moe_epi_take(out, 2 * ((int64_t)k->nslots + 1), sizeof(int64_t));
    int64_t *slot_start = slot_rows + k->nslots, *place, at = 0, i, c;
    int32_t r, l;
    moe_ep_status st;
    slot_start[0] = 0;
    for (l = 0; l < k->nslots; l++) {
        slot_rows[l] = 0;
        for (r = 0; r < k->nranks; r++) slot_rows[l] += s->recv_slots[(int64_t)r * k->per_rank + l];
        slot_start[l + 1] = slot_start[l] + slot_rows[l];
    }
    s->plan.nrecv = slot_start[k->nslots];
    moe_epi_need(&total, s->plan.nrecv, sizeof(int64_t));
    st = moe_epi_arena_open(&a, &s->in_mem, total, err);
    if (st != MOE_EP_OK) return st;
    place = (int64_t *)moe_epi_take(&a, s->plan.nrecv, sizeof(int64_t));
    for (l = 0; l < k->nslots; l++) slot_rows[l] = slot_start[l]; /* running position of each slot */
    for (r = 0; r < k->nranks; r++) {
        start[r] = at;
        for (l = 0; l < k->nslots; l++)
            for (c = s->recv_slots[(int64_t)r * k->per_rank + l], i = 0; i < c; i++) place[at++] = slot_rows[l]++;
        rows[r] = at - start[r];
    }
    start[k->nranks] = at;
    for (l = 0; l < k->nslots; l++) slot_rows[l] = slot_start[l + 1] - slot_start[l];
    s->plan.recv_row = place;
    s->plan.slot_rows = slot_rows;
    s->plan.slot_start = slot_start;
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_hk_exchange(moe_epi_hk_rank *k, moe_epi_hk_side *s, void *stream, moe_ep_error *err)
{
    int64_t pairs = (int64_t)k->nranks * k->per_rank;
    moe_ep_status st = MOE_EP_OK;
    if (k->hooks.counts)
        st = moe_epi_hk_code(k->hooks.counts(k->hooks.user, s->send_slots, s->recv_slots, k->per_rank, stream),
                             "hooks.counts", err);
    else if (pairs > 0)
        memcpy(s->recv_slots, s->send_slots, sizeof(int64_t) * (size_t)pairs);
    return st != MOE_EP_OK ? st : moe_epi_hk_check_recv(k, s, err);
}

static moe_ep_status moe_epi_hk_plan_full(moe_epi_hk_rank *k, moe_epi_hk_side *s, const moe_ep_batch *b, void *stream,
                                          moe_ep_error *err)
{
    moe_epi_arena a;
    size_t total = 0;
    moe_ep_status st;
    int64_t *pieces;
    moe_epi_hk_out_need(&total, k, b->num_tokens * k->K);
    st = moe_epi_arena_open(&a, &s->out_mem, total, err);
    if (st != MOE_EP_OK) return st;
    moe_epi_hk_plan_out(k, s, b, &a);
    st = moe_epi_hk_exchange(k, s, stream, err);
    if (st != MOE_EP_OK) return st;
    pieces = moe_epi_hk_plan_send(k, s, &a);
    st = moe_epi_hk_plan_recv(k, s, &a, pieces, pieces + k->nranks, err);
    if (st != MOE_EP_OK) return st;
    return moe_epi_hk_room(k, s, s->plan.nrecv, err);
}

MOE_EP_API moe_ep_status moe_ep_rank_plan(moe_ep_rank *rank, int32_t batch, const moe_ep_batch *b, void *stream,
                                          moe_ep_error *err)
{
    moe_epi_hk_rank *k;
    moe_epi_hk_side *s;
    moe_ep_status st;
    moe_epi_ok(err);
    if (!rank || !rank->state) return moe_epi_null(err, "rank");
    if (!b) return moe_epi_null(err, "batch");
    if (batch != 0 && batch != 1)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "batch", "must be 0 or 1", -1, (double)batch);
    k = rank->state;
    st = moe_epi_hk_check_batch(k, b, err);
    if (st != MOE_EP_OK) return st;
    s = &k->side[batch];
    s->ready = 0;
    memset(&s->plan, 0, sizeof s->plan);
    s->x = b->x;
    s->y = b->y;
    s->no_plan = b->no_plan;
    s->plan.rank = k->rank;
    s->plan.nranks = k->nranks;
    s->plan.nslots = k->nslots;
    s->plan.top_k = k->K;
    s->plan.batch = batch;
    s->plan.ntokens = b->num_tokens;
    s->plan.call = b->call;
    s->plan.weight_on_input = k->layer && k->layer->weight_on_input;
    if (b->no_plan) st = moe_epi_hk_room(k, s, k->max_rows, err);
    else st = moe_epi_hk_plan_full(k, s, b, stream, err);
    s->ready = st == MOE_EP_OK;
    return st;
}

MOE_EP_API const moe_ep_plan *moe_ep_rank_plan_of(const moe_ep_rank *rank, int32_t batch)
{
    if (!rank || !rank->state || batch < 0 || batch > 1 || !rank->state->side[batch].ready) return NULL;
    return &rank->state->side[batch].plan;
}

/* ---- host helpers of adapters ---------------------------------------------------------------------------------- */

/* dst row di <- src row si, both given by maps (NULL = the same). */
static moe_ep_status moe_epi_hk_move(const void *src, const int64_t *from, void *dst, const int64_t *to, int64_t n,
                                     size_t row_bytes, moe_ep_error *err)
{
    int64_t i;
    if (row_bytes == 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "row_bytes", "must not be 0", -1, 0.0);
    if (n > 0 && (!src || !dst)) return moe_epi_null(err, src ? "output" : "input");
    for (i = 0; i < n; i++)
        memcpy((unsigned char *)dst + (size_t)(to ? to[i] : i) * row_bytes,
               (const unsigned char *)src + (size_t)(from ? from[i] : i) * row_bytes, row_bytes);
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_plan_pack(const moe_ep_plan *plan, const void *x, void *rows, size_t row_bytes,
                                          moe_ep_error *err)
{
    moe_ep_status st;
    int64_t i;
    size_t j;
    moe_epi_ok(err);
    if (!plan) return moe_epi_null(err, "plan");
    if (plan->weight_on_input && row_bytes % sizeof(float) != 0)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "row_bytes", "weights multiply float rows only", -1, (double)row_bytes);
    st = moe_epi_hk_move(x, plan->send_token, rows, NULL, plan->nsend, row_bytes, err);
    if (st != MOE_EP_OK || !plan->weight_on_input) return st;
    for (i = 0; i < plan->nsend; i++) {
        float *row = (float *)rows + (size_t)i * (row_bytes / sizeof(float));
        for (j = 0; j < row_bytes / sizeof(float); j++) row[j] *= plan->send_weight[i];
    }
    return MOE_EP_OK;
}

MOE_EP_API moe_ep_status moe_ep_plan_place(const moe_ep_plan *plan, const void *rows, void *rx, size_t row_bytes,
                                           moe_ep_error *err)
{
    moe_epi_ok(err);
    if (!plan) return moe_epi_null(err, "plan");
    return moe_epi_hk_move(rows, NULL, rx, plan->recv_row, plan->nrecv, row_bytes, err);
}

MOE_EP_API moe_ep_status moe_ep_plan_unplace(const moe_ep_plan *plan, const void *ry, void *rows, size_t row_bytes,
                                             moe_ep_error *err)
{
    moe_epi_ok(err);
    if (!plan) return moe_epi_null(err, "plan");
    return moe_epi_hk_move(ry, plan->recv_row, rows, NULL, plan->nrecv, row_bytes, err);
}

MOE_EP_API moe_ep_status moe_ep_plan_sum(const moe_ep_plan *plan, const moe_ep_forward_desc *layer,
                                         int32_t first_null, int32_t hidden, const float *x, const float *rows,
                                         float *y, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_forward_desc plain;
    moe_epi_fw_combine c;
    moe_epi_arena a;
    moe_ep_status st;
    size_t total = 0;
    int64_t T, S;
    moe_epi_ok(err);
    if (!plan) return moe_epi_null(err, "plan");
    T = plan->ntokens;
    if (T == 0) return MOE_EP_OK;
    if (hidden < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "hidden", "must be at least 1", -1, (double)hidden);
    if (!y) return moe_epi_null(err, "y");
    if (!x) return moe_epi_null(err, "x");
    if (plan->nsend > 0 && !rows) return moe_epi_null(err, "rows");
    memset(&plain, 0, sizeof plain);
    S = layer && layer->shared ? layer->shared->num_experts : 0;
    if (S > 0) {
        st = moe_epi_fw_check_options(layer, err);
        if (st != MOE_EP_OK) return st;
        if (layer->shared->hidden != hidden)
            return moe_epi_fail(err, MOE_EP_ERR_SIZE, "hidden", "differs from layer->shared", -1, (double)hidden);
        moe_epi_need(&total, T * S, sizeof(float) * (size_t)hidden);
        moe_epi_fw_run_need(&total, layer, layer->shared, (int32_t)S, T, T * S);
    }
    st = moe_epi_arena_open(&a, scratch, total, err);
    if (st != MOE_EP_OK) return st;
    memset(&c, 0, sizeof c);
    c.d = layer ? layer : &plain;
    c.x = x;
    c.ids = plan->topk_ids;
    c.weights = plan->topk_weights;
    c.K = plan->top_k;
    c.first_null = first_null;
    c.T = T;
    c.H = hidden;
    c.row64 = plan->choice_row;
    c.o = rows;
    c.weight_on_input = plan->weight_on_input;
    c.y = y;
    if (S > 0) {
        float *out = (float *)moe_epi_take(&a, T * S, sizeof(float) * (size_t)hidden);
        moe_epi_fw_shared(layer, x, T, T, out, a);
        c.shared_o = out;
    }
    moe_epi_fw_parallel(c.d, (T + MOE_EPI_FW_PACK_ROWS - 1) / MOE_EPI_FW_PACK_ROWS, moe_epi_fw_combine_task, &c);
    moe_epi_arena_close(&a);
    return MOE_EP_OK;
}

/* ---- the stages ---------------------------------------------------------------------------------------------------- */

static moe_ep_status moe_epi_hk_side_of(moe_ep_rank *rank, int32_t batch, moe_epi_hk_side **side, moe_ep_error *err)
{
    moe_epi_ok(err);
    if (!rank || !rank->state) return moe_epi_null(err, "rank");
    if (batch != 0 && batch != 1)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "batch", "must be 0 or 1", -1, (double)batch);
    *side = &rank->state->side[batch];
    if (!(*side)->ready)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "batch", "has no plan yet", -1, (double)batch);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_hk_wait(moe_epi_hk_rank *k, const moe_epi_hk_side *s, int stage, void *stream,
                                     moe_ep_error *err)
{
    if (!k->hooks.wait) return MOE_EP_OK;
    return moe_epi_hk_code(k->hooks.wait(k->hooks.user, &s->plan, stage, stream), "hooks.wait", err);
}

MOE_EP_API moe_ep_status moe_ep_rank_dispatch(moe_ep_rank *rank, int32_t batch, void *stream, moe_ep_error *err)
{
    moe_epi_hk_side *s;
    moe_epi_hk_rank *k;
    moe_epi_arena a;
    size_t total = 0;
    void *rows;
    moe_ep_status st = moe_epi_hk_side_of(rank, batch, &s, err);
    if (st != MOE_EP_OK) return st;
    k = rank->state;
    if (k->hooks.dispatch)
        return moe_epi_hk_code(k->hooks.dispatch(k->hooks.user, &s->plan, s->x, s->rx, k->row_bytes, stream),
                               "hooks.dispatch", err);
    moe_epi_need(&total, s->plan.nsend, k->row_bytes);
    st = moe_epi_arena_open(&a, &k->compute, total, err);
    if (st != MOE_EP_OK) return st;
    rows = moe_epi_take(&a, s->plan.nsend, k->row_bytes);
    st = moe_ep_plan_pack(&s->plan, s->x, rows, k->row_bytes, err);
    return st != MOE_EP_OK ? st : moe_ep_plan_place(&s->plan, rows, s->rx, k->row_bytes, err);
}

MOE_EP_API moe_ep_status moe_ep_rank_experts(moe_ep_rank *rank, int32_t batch, void *stream, moe_ep_error *err)
{
    moe_epi_hk_side *s;
    moe_epi_hk_rank *k;
    moe_ep_status st = moe_epi_hk_side_of(rank, batch, &s, err);
    if (st != MOE_EP_OK) return st;
    k = rank->state;
    st = moe_epi_hk_wait(k, s, MOE_EP_STAGE_DISPATCH, stream, err);
    if (st != MOE_EP_OK) return st;
    if (k->hooks.experts)
        return moe_epi_hk_code(k->hooks.experts(k->hooks.user, &s->plan, s->rx, s->ry, stream), "hooks.experts", err);
    if (s->plan.nrecv == 0) return MOE_EP_OK;
    return moe_ep_experts(k->layer, (const float *)s->rx, s->plan.slot_start, k->nslots, k->slot_expert,
                          (float *)s->ry, &k->compute, err);
}

/* Combine without a hook: one rank, so the rows that came in are the rows that went out. */
static moe_ep_status moe_epi_hk_combine_here(moe_epi_hk_rank *k, moe_epi_hk_side *s, moe_ep_error *err)
{
    moe_ep_scratch rest;
    moe_epi_arena a;
    moe_ep_status st;
    float *rows;
    st = moe_epi_arena_open(&a, &k->compute, moe_epi_hk_compute_need(k, s->plan.ntokens, 0), err);
    if (st != MOE_EP_OK) return st;
    rows = (float *)moe_epi_take(&a, s->plan.nsend, k->row_bytes);
    st = moe_ep_plan_unplace(&s->plan, s->ry, rows, k->row_bytes, err);
    if (st != MOE_EP_OK || s->plan.ntokens == 0) return st;
    rest = moe_ep_scratch_fixed(a.base ? a.base + a.used : NULL, a.bytes - a.used);
    return moe_ep_plan_sum(&s->plan, k->layer, k->P, k->H, (const float *)s->x, rows, (float *)s->y, &rest, err);
}

MOE_EP_API moe_ep_status moe_ep_rank_combine(moe_ep_rank *rank, int32_t batch, void *stream, moe_ep_error *err)
{
    moe_epi_hk_side *s;
    moe_epi_hk_rank *k;
    moe_ep_status st = moe_epi_hk_side_of(rank, batch, &s, err);
    if (st != MOE_EP_OK) return st;
    k = rank->state;
    st = moe_epi_hk_wait(k, s, MOE_EP_STAGE_EXPERTS, stream, err);
    if (st != MOE_EP_OK) return st;
    if (k->hooks.combine)
        return moe_epi_hk_code(k->hooks.combine(k->hooks.user, &s->plan, s->ry, s->y, k->row_bytes, stream),
                               "hooks.combine", err);
    return moe_epi_hk_combine_here(k, s, err);
}

MOE_EP_API moe_ep_status moe_ep_rank_finish(moe_ep_rank *rank, int32_t batch, void *stream, moe_ep_error *err)
{
    moe_epi_hk_side *s;
    moe_ep_status st = moe_epi_hk_side_of(rank, batch, &s, err);
    if (st != MOE_EP_OK) return st;
    return moe_epi_hk_wait(rank->state, s, MOE_EP_STAGE_COMBINE, stream, err);
}

MOE_EP_API moe_ep_status moe_ep_rank_forward(moe_ep_rank *rank, const moe_ep_batch *batch, void *stream,
                                             moe_ep_error *err)
{
    moe_ep_status st = moe_ep_rank_plan(rank, 0, batch, stream, err);
    if (st == MOE_EP_OK) st = moe_ep_rank_dispatch(rank, 0, stream, err);
    if (st == MOE_EP_OK) st = moe_ep_rank_experts(rank, 0, stream, err);
    if (st == MOE_EP_OK) st = moe_ep_rank_combine(rank, 0, stream, err);
    if (st == MOE_EP_OK) st = moe_ep_rank_finish(rank, 0, stream, err);
    return st;
}

MOE_EP_API moe_ep_status moe_ep_rank_forward2(moe_ep_rank *rank, const moe_ep_batch *batches, void *stream,
                                              moe_ep_error *err)
{
    moe_ep_status st = MOE_EP_OK;
    int32_t b;
    moe_epi_ok(err);
    if (!rank || !rank->state) return moe_epi_null(err, "rank");
    if (!batches) return moe_epi_null(err, "batches");
    for (b = 0; b < 2; b++) { /* both batches must be sound before anything is sent */
        st = moe_epi_hk_check_batch(rank->state, &batches[b], err);
        if (st != MOE_EP_OK) return st;
    }
    for (b = 0; st == MOE_EP_OK && b < 2; b++) {
        st = moe_ep_rank_plan(rank, b, &batches[b], stream, err);
        if (st == MOE_EP_OK) st = moe_ep_rank_dispatch(rank, b, stream, err);
    }
    for (b = 0; st == MOE_EP_OK && b < 2; b++) {
        st = moe_ep_rank_experts(rank, b, stream, err);
        if (st == MOE_EP_OK) st = moe_ep_rank_combine(rank, b, stream, err);
    }
    for (b = 0; st == MOE_EP_OK && b < 2; b++) st = moe_ep_rank_finish(rank, b, stream, err);
    return st;
}

/* ---- D ranks in one process ------------------------------------------------------------------------------------ */

typedef struct moe_epi_hk_world moe_epi_hk_world;

/* One in-process rank, the `user` of its hooks. */
typedef struct moe_epi_hk_member {
    moe_epi_hk_world *world;
    int32_t rank;
    moe_ep_rank handle;
    int64_t token0, tokens;
    moe_ep_scratch memory; /* rows on their way back */
} moe_epi_hk_member;

struct moe_epi_hk_world {
    const moe_ep_forward_desc *d;
    const moe_ep_placement *p;
    int32_t layer, K, per_rank;
    moe_epi_hk_member *members;
    int64_t *board;    /* (D,D,per_rank) rows from rank to slot of rank: what an all-to-all would carry */
    int32_t *slot_ids; /* (T,K) */
    const float *x;
    float *y;
};

static int moe_epi_hk_world_counts(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    const moe_epi_hk_member *m = (const moe_epi_hk_member *)user;
    int64_t D = m->world->p->num_devices, src, l;
    (void)stream;
    (void)send; /* the board holds the same numbers for every rank */
    for (src = 0; src < D; src++)
        for (l = 0; l < per_rank; l++)
            recv[src * per_rank + l] = m->world->board[(src * D + m->rank) * per_rank + l];
    return 0;
}

/* Pushes this rank's rows into the buffers of the others. */
static int moe_epi_hk_world_dispatch(void *user, const moe_ep_plan *plan, const void *x, void *rx, size_t row_bytes,
                                     void *stream)
{
    const moe_epi_hk_member *m = (const moe_epi_hk_member *)user;
    int64_t H = (int64_t)(row_bytes / sizeof(float)), i, j;
    int32_t dst;
    (void)rx;
    (void)stream;
    for (dst = 0; dst < plan->nranks; dst++) {
        const moe_epi_hk_side *peer = &m->world->members[dst].handle.state->side[plan->batch];
        for (i = 0; i < plan->send_rows[dst]; i++) {
            int64_t row = plan->send_start[dst] + i;
            int64_t at = peer->plan.recv_row[peer->plan.recv_start[plan->rank] + i];
            float *out = (float *)peer->rx + at * H;
            memcpy(out, (const float *)x + plan->send_token[row] * H, row_bytes);
            if (plan->weight_on_input)
                for (j = 0; j < H; j++) out[j] *= plan->send_weight[row];
        }
    }
    return 0;
}

/* Pulls the answers back in send order and sums them. */
static int moe_epi_hk_world_combine(void *user, const moe_ep_plan *plan, const void *ry, void *y, size_t row_bytes,
                                    void *stream)
{
    moe_epi_hk_member *m = (moe_epi_hk_member *)user;
    const moe_epi_hk_side *mine = &m->handle.state->side[plan->batch];
    moe_epi_arena a;
    size_t total = 0;
    int64_t H = (int64_t)(row_bytes / sizeof(float)), i;
    int32_t src;
    float *back;
    moe_ep_status st;
    (void)ry;
    (void)stream;
    moe_epi_need(&total, plan->nsend, row_bytes);
    st = moe_epi_arena_open(&a, &m->memory, total, NULL);
    if (st != MOE_EP_OK) return (int)st;
    back = (float *)moe_epi_take(&a, plan->nsend, row_bytes);
    for (src = 0; src < plan->nranks; src++) {
        const moe_epi_hk_side *peer = &m->world->members[src].handle.state->side[plan->batch];
        for (i = 0; i < plan->send_rows[src]; i++) {
            int64_t at = peer->plan.recv_row[peer->plan.recv_start[plan->rank] + i];
            memcpy(back + (plan->send_start[src] + i) * H, (const float *)peer->ry + at * H, row_bytes);
        }
    }
    st = moe_ep_plan_sum(plan, m->world->d, m->world->p->num_slots, (int32_t)H, (const float *)mine->x, back,
                         (float *)y, &m->handle.state->compute, NULL);
    return (int)st;
}

static moe_ep_status moe_epi_hk_check_placement(const moe_ep_forward_desc *d, const moe_ep_placement *p, int32_t layer,
                                                moe_ep_error *err)
{
    int32_t s, E = d->experts->num_experts;
    const int32_t *slot_expert;
    if (!p) return moe_epi_null(err, "p");
    if (!p->slot_start || !p->slot_expert || !p->replica_start || !p->replica_slot)
        return moe_epi_null(err, "p->slot_expert");
    if (layer < 0 || layer >= p->num_layers)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "layer", "not in 0..L-1", -1, (double)layer);
    if (p->num_experts != E)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "p->num_experts", "differs from experts", -1, (double)p->num_experts);
    if (p->num_devices < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "p->num_devices", "must be at least 1", -1, (double)p->num_devices);
    if (p->num_slots < 1 || p->num_slots > INT32_MAX - d->num_null)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "p->num_slots", "out of range", -1, (double)p->num_slots);
    slot_expert = p->slot_expert + (int64_t)layer * p->num_slots;
    for (s = 0; s < p->num_slots; s++)
        if (slot_expert[s] < -1 || slot_expert[s] >= E)
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "p->slot_expert", "neither -1 nor an expert", s,
                                (double)slot_expert[s]);
    return MOE_EP_OK;
}

/* Slots of all choices: the caller's, checked, or the replicas of each expert in turn. */
static moe_ep_status moe_epi_hk_slots(moe_epi_hk_world *w, const int32_t *ids, int64_t n, const int32_t *given,
                                      int64_t *turn, moe_ep_error *err)
{
    const moe_ep_placement *p = w->p;
    const int32_t *start = p->replica_start + (int64_t)w->layer * (p->num_experts + 1);
    const int32_t *replicas = p->replica_slot + (int64_t)w->layer * p->num_slots;
    const int32_t *slot_expert = p->slot_expert + (int64_t)w->layer * p->num_slots;
    int32_t E = p->num_experts, copies, slot;
    int64_t i;
    memset(turn, 0, sizeof(int64_t) * (size_t)E);
    for (i = 0; i < n; i++) {
        int32_t e = ids[i];
        if (e < 0) {
            slot = -1;
        } else if (e >= E) {
            slot = p->num_slots + (e - E);
        } else if (given) {
            slot = given[i];
            if (slot < 0 || slot >= p->num_slots || slot_expert[slot] != e)
                return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "slot_ids", "this slot does not hold the expert of ids",
                                    i, (double)slot);
        } else {
            copies = start[e + 1] - start[e];
            if (copies < 1)
                return moe_epi_fail(err, MOE_EP_ERR_LOST_EXPERT, "p", "an expert with tokens has no slot", e, 0.0);
            slot = replicas[start[e] + (int32_t)(turn[e]++ % copies)];
        }
        if (given && given[i] != slot)
            return moe_epi_fail(err, MOE_EP_ERR_PLACEMENT, "slot_ids", "differs from what ids say", i, (double)given[i]);
        w->slot_ids[i] = slot;
    }
    return MOE_EP_OK;
}

static int32_t moe_epi_hk_device_of_slot(const moe_ep_placement *p, int32_t slot)
{
    int32_t lo = 0, hi = p->num_devices - 1, mid;
    while (lo < hi) {
        mid = lo + (hi - lo + 1) / 2;
        if (p->slot_start[mid] <= slot) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

/* Counts of all pairs of ranks, and the totals of the result. */
static void moe_epi_hk_board(moe_epi_hk_world *w, moe_ep_ranks_result *res)
{
    const moe_ep_placement *p = w->p;
    int64_t D = p->num_devices, i, load;
    int32_t r, dst, src, l;
    memset(w->board, 0, sizeof(int64_t) * (size_t)(D * D * w->per_rank));
    for (r = 0; r < p->num_devices; r++) {
        const moe_epi_hk_member *m = &w->members[r];
        for (i = m->token0 * w->K; i < (m->token0 + m->tokens) * w->K; i++) {
            int32_t slot = w->slot_ids[i];
            if (slot < 0) res->skipped++;
            if (slot >= p->num_slots) res->identity++;
            if (slot < 0 || slot >= p->num_slots) continue;
            dst = moe_epi_hk_device_of_slot(p, slot);
            w->board[((int64_t)r * D + dst) * w->per_rank + slot - p->slot_start[dst]]++;
            res->rows++;
            if (dst != r) res->rows_moved++;
        }
    }
    for (dst = 0; dst < p->num_devices; dst++) {
        for (load = 0, src = 0; src < p->num_devices; src++)
            for (l = 0; l < w->per_rank; l++) load += w->board[((int64_t)src * D + dst) * w->per_rank + l];
        if (load > res->rows_max) res->rows_max = load;
    }
}

static moe_ep_status moe_epi_hk_start_member(moe_epi_hk_world *w, int32_t r, const moe_ep_allocator *alloc,
                                             moe_ep_error *err)
{
    moe_ep_hooks hooks;
    moe_ep_rank_desc rd;
    moe_epi_hk_member *m = &w->members[r];
    memset(&hooks, 0, sizeof hooks);
    hooks.size = sizeof hooks;
    hooks.user = m;
    hooks.counts = moe_epi_hk_world_counts;
    hooks.dispatch = moe_epi_hk_world_dispatch;
    hooks.combine = moe_epi_hk_world_combine;
    memset(&rd, 0, sizeof rd);
    rd.rank = r;
    rd.num_ranks = w->p->num_devices;
    rd.slot_start = w->p->slot_start;
    rd.top_k = w->K;
    rd.hidden = w->d->experts->hidden;
    rd.hooks = &hooks;
    rd.layer = w->d;
    rd.slot_expert = w->p->slot_expert + (int64_t)w->layer * w->p->num_slots + w->p->slot_start[r];
    rd.alloc = *alloc;
    m->memory.alloc = *alloc;
    return moe_ep_rank_init(&m->handle, &rd, err);
}

/* All ranks in step: a stage begins when every rank has finished the one before. */
static moe_ep_status moe_epi_hk_run_world(moe_epi_hk_world *w, const float *weights, const moe_ep_allocator *alloc,
                                          moe_ep_error *err)
{
    typedef moe_ep_status (*stage_fn)(moe_ep_rank *, int32_t, void *, moe_ep_error *);
    static const stage_fn stages[4] = {moe_ep_rank_dispatch, moe_ep_rank_experts, moe_ep_rank_combine,
                                       moe_ep_rank_finish};
    int64_t H = w->d->experts->hidden;
    int32_t r, D = w->p->num_devices;
    int stage;
    moe_ep_status st = MOE_EP_OK;
    for (r = 0; st == MOE_EP_OK && r < D; r++) {
        moe_epi_hk_member *m = &w->members[r];
        moe_ep_batch b;
        memset(&b, 0, sizeof b);
        b.num_tokens = m->tokens;
        b.slot_ids = w->slot_ids + m->token0 * w->K;
        b.weights = weights ? weights + m->token0 * w->K : NULL;
        b.x = w->x + m->token0 * H;
        b.y = w->y + m->token0 * H;
        st = moe_epi_hk_start_member(w, r, alloc, err);
        if (st == MOE_EP_OK) st = moe_ep_rank_plan(&m->handle, 0, &b, NULL, err);
    }
    for (stage = 0; stage < 4; stage++)
        for (r = 0; st == MOE_EP_OK && r < D; r++) st = stages[stage](&w->members[r].handle, 0, NULL, err);
    for (r = 0; r < D; r++) {
        moe_ep_rank_free(&w->members[r].handle);
        moe_ep_scratch_free(&w->members[r].memory);
    }
    return st;
}

/* Tokens of each rank; false when tokens_per_rank does not add up to T. */
static int moe_epi_hk_deal(moe_epi_hk_world *w, const int64_t *tokens_per_rank, int64_t T)
{
    int64_t D = w->p->num_devices, at = 0, n;
    int32_t r;
    for (r = 0; r < w->p->num_devices; r++) {
        n = tokens_per_rank ? tokens_per_rank[r] : T / D + (r < T % D);
        if (n < 0 || n > T - at) return 0;
        w->members[r].world = w;
        w->members[r].rank = r;
        w->members[r].token0 = at;
        w->members[r].tokens = n;
        at += n;
    }
    return at == T;
}

/* Routes all tokens when the desc has a router: ids and weights (T,K). */
static moe_ep_status moe_epi_hk_route(const moe_ep_forward_desc *d, const float *x, int64_t T, int32_t K, int32_t *ids,
                                      float *weights, float *logits, moe_ep_error *err)
{
    moe_epi_fw_layer l;
    memset(&l, 0, sizeof l);
    l.d = d;
    l.x = x;
    l.T = T;
    l.chunk = T < MOE_EPI_FW_CHUNK ? T : MOE_EPI_FW_CHUNK;
    l.K = K;
    l.E = d->experts->num_experts;
    l.groups_all = l.E + d->num_null;
    l.ids = ids;
    l.weights = weights;
    l.logits = logits;
    return moe_epi_fw_route_all(&l, err);
}

/* Everything checked: memory, routing, slots, and the run. */
static moe_ep_status moe_epi_hk_ranks(moe_epi_hk_world *w, int64_t T, const int64_t *tokens_per_rank,
                                      const int32_t *slot_ids, moe_ep_ranks_result *res, moe_ep_scratch *scratch,
                                      moe_ep_error *err)
{
    moe_ep_forward_desc d = *w->d; /* the router's own switch reaches the plans through the desc */
    moe_ep_allocator alloc;
    moe_epi_arena a;
    moe_ep_status st;
    size_t total = 0;
    int64_t D = w->p->num_devices, E = d.experts->num_experts, n = T * w->K, r, pairs;
    int64_t logits = d.router ? (T < MOE_EPI_FW_CHUNK ? T : MOE_EPI_FW_CHUNK) * (E + d.num_null) : 0, *turn;
    int32_t *ids;
    float *weights, *logit;
    for (r = 0; r < D; r++)
        if (w->p->slot_start[r + 1] - w->p->slot_start[r] > w->per_rank)
            w->per_rank = w->p->slot_start[r + 1] - w->p->slot_start[r];
    if (!moe_epi_mul(D * D, w->per_rank, &pairs))
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "p", "devices^2 * slots does not fit", -1, (double)D);
    memset(&alloc, 0, sizeof alloc);
    if (scratch) alloc = scratch->alloc;
    moe_epi_need(&total, D, sizeof(moe_epi_hk_member));
    moe_epi_need(&total, pairs, sizeof(int64_t));
    moe_epi_need(&total, n, sizeof(int32_t));
    moe_epi_need(&total, E, sizeof(int64_t));
    moe_epi_need(&total, d.router ? n : 0, sizeof(int32_t));
    moe_epi_need(&total, d.router ? n : 0, sizeof(float));
    moe_epi_need(&total, logits, sizeof(float));
    st = moe_epi_arena_open(&a, scratch, total, err);
    if (st != MOE_EP_OK) return st;
    w->members = (moe_epi_hk_member *)moe_epi_take(&a, D, sizeof(moe_epi_hk_member));
    memset(w->members, 0, sizeof(moe_epi_hk_member) * (size_t)D);
    w->board = (int64_t *)moe_epi_take(&a, pairs, sizeof(int64_t));
    w->slot_ids = (int32_t *)moe_epi_take(&a, n, sizeof(int32_t));
    turn = (int64_t *)moe_epi_take(&a, E, sizeof(int64_t));
    ids = (int32_t *)moe_epi_take(&a, d.router ? n : 0, sizeof(int32_t));
    weights = (float *)moe_epi_take(&a, d.router ? n : 0, sizeof(float));
    logit = (float *)moe_epi_take(&a, logits, sizeof(float));
    if (!moe_epi_hk_deal(w, tokens_per_rank, T))
        st = moe_epi_fail(err, MOE_EP_ERR_SIZE, "tokens_per_rank", "must be D counts that sum to T", -1, (double)T);
    if (st == MOE_EP_OK && d.router) st = moe_epi_hk_route(w->d, w->x, T, w->K, ids, weights, logit, err);
    if (st == MOE_EP_OK) st = moe_epi_hk_slots(w, d.router ? ids : d.ids, n, slot_ids, turn, err);
    if (st == MOE_EP_OK) {
        if (d.router && d.router->weight_on_input) d.weight_on_input = 1;
        w->d = &d;
        moe_epi_hk_board(w, res);
        st = moe_epi_hk_run_world(w, d.router ? weights : d.choice_weights, &alloc, err);
    }
    moe_epi_arena_close(&a);
    return st;
}

MOE_EP_API moe_ep_status moe_ep_forward_ranks(const moe_ep_forward_desc *desc, const moe_ep_placement *p, int32_t layer,
                                              const int64_t *tokens_per_rank, const int32_t *slot_ids, const float *x,
                                              int64_t num_tokens, float *y, moe_ep_ranks_result *result,
                                              moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_hk_world w;
    moe_ep_ranks_result res;
    moe_ep_status st;
    int32_t K = 0;
    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    memset(&res, 0, sizeof res);
    memset(&w, 0, sizeof w);
    st = moe_epi_fw_check_options(desc, err);
    if (st == MOE_EP_OK) st = moe_epi_fw_check_xy(x, y, num_tokens, desc->experts->hidden, "x", "y", err);
    if (st == MOE_EP_OK) st = moe_epi_fw_check_routing(desc, num_tokens, &K, err);
    if (st == MOE_EP_OK) st = moe_epi_hk_check_placement(desc, p, layer, err);
    if (st != MOE_EP_OK) return st;
    if (slot_ids && desc->router)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "slot_ids", "need ids in desc, not a router", -1, 0.0);
    if (scratch && scratch->fixed)
        return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "scratch", "must be NULL or growing", -1, 0.0);
    w.d = desc;
    w.p = p;
    w.layer = layer;
    w.K = K;
    w.x = x;
    w.y = y;
    if (num_tokens > 0) st = moe_epi_hk_ranks(&w, num_tokens, tokens_per_rank, slot_ids, &res, scratch, err);
    if (st == MOE_EP_OK && result) *result = res;
    return st;
}

#undef MOE_EPI_FW_X86
#undef MOE_EPI_FW_BLAS
#undef MOE_EPI_FW_KBLOCK
#undef MOE_EPI_FW_COLS
#undef MOE_EPI_FW_TOKENS
#undef MOE_EPI_FW_BLAS_COLS
#undef MOE_EPI_FW_CHUNK
#undef MOE_EPI_FW_PAD
#undef MOE_EPI_FW_PACK_ROWS
#undef MOE_EPI_FW_GELU_C
#undef MOE_EPI_FW_GELU_A
#endif /* MOE_EP_NO_FORWARD */

/* ==================================================================================================
 * 11 DIAGNOSE
 * ================================================================================================== */

MOE_EP_API const char *moe_ep_verdict_str(moe_ep_verdict verdict)
{
    if (verdict == MOE_EP_RECOMMEND) return "recommend";
    if (verdict == MOE_EP_NOT_NOW) return "not now";
    if (verdict == MOE_EP_INSUFFICIENT_EVIDENCE) return "insufficient evidence";
    return "unknown verdict";
}

MOE_EP_API void moe_ep_diagnose_thresholds(moe_ep_diagnose_desc *desc)
{
    if (!desc) return;
    desc->target_imbalance = 1.05;
    desc->min_gain = 0.05;
    desc->min_improved = 0.8;
    desc->min_steps = 2;
}

/* What the judging loop gathers, per placement where there are two: [0] current, [1] plan. */
typedef struct moe_epi_judge {
    const moe_ep_diagnose_desc *d;
    const moe_ep_placement *p[2];
    double *device_loads;  /* (L,D) of one step                                      */
    double *pile;          /* (L,D) load above the mean, summed over the steps       */
    double *layer_ratio;   /* (L) max/mean summed over the steps in which it has load */
    int64_t *top_count;    /* (L,D) steps in which the device was the layer's maximum */
    int64_t *layer_steps;  /* (L) steps in which the layer had load                  */
    int64_t *counts;       /* (E) whole rows of one layer                            */
    int64_t *slot_rows[2]; /* (P) of each placement                                  */
    double rows[2], seconds[2], mean, bound, balanced_s;
    double total; /* rows over all steps and layers                         */
    int64_t improved, steps;
} moe_epi_judge;

static moe_ep_status moe_epi_diag_numbers(const moe_ep_diagnose_desc *d, moe_ep_error *err)
{
    const double value[] = {d->other_s,       d->expert_bytes,     d->move_Bps, d->pause_s,
                            d->horizon_steps, d->target_imbalance, d->min_gain, d->min_improved};
    static const char *const name[] = {
        "desc.other_s",       "desc.expert_bytes",     "desc.move_Bps", "desc.pause_s",
        "desc.horizon_steps", "desc.target_imbalance", "desc.min_gain", "desc.min_improved"};
    size_t i;
    for (i = 0; i < sizeof value / sizeof value[0]; i++) {
        if (!moe_epi_finite(value[i]))
            return moe_epi_fail(err, MOE_EP_ERR_NAN, name[i], "must be finite", -1, value[i]);
        if (value[i] < 0.0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, name[i], "must not be negative", -1,
                                value[i]);
    }
    if (d->min_improved > 1.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.min_improved", "is a share, at most 1", -1,
                            d->min_improved);
    if (d->min_gain >= 1.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.min_gain", "is a share below 1", -1,
                            d->min_gain);
    if (d->min_steps < 0)
        return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "desc.min_steps", "must not be negative", -1,
                            (double)d->min_steps);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_diag_window(const double *loads, int64_t n, const char *arg,
                                         moe_ep_error *err)
{
    int64_t i;
    for (i = 0; i < n; i++) {
        if (!moe_epi_finite(loads[i]))
            return moe_epi_fail(err, MOE_EP_ERR_NAN, arg, "loads must be finite", i, loads[i]);
        if (loads[i] < 0.0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "loads must not be negative", i,
                                loads[i]);
        if (loads[i] > 9.0e15)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, arg,
                                "loads above 9e15 are not whole rows any more", i, loads[i]);
    }
    return MOE_EP_OK;
}

/* Every check of moe_ep_diagnose that needs no memory. */
static moe_ep_status moe_epi_diag_check(const moe_ep_diagnose_desc *d, moe_ep_error *err)
{
    int64_t layer, window;
    moe_ep_status st;
    if (d->num_layers < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_layers", "must be at least 1", -1,
                            (double)d->num_layers);
    if (d->num_experts < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.num_experts", "must be at least 1", -1,
                            (double)d->num_experts);
    if (d->top_k < 0 || d->top_k > d->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "desc.top_k", "must be 0..E", -1,
                            (double)d->top_k);
    if (d->plan_steps < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.plan_steps", "must be at least 1", -1,
                            (double)d->plan_steps);
    if (!d->plan_loads) return moe_epi_null(err, "desc.plan_loads");
    if (d->judge_steps < 0 || (d->judge_loads && d->judge_steps < 1) ||
        (!d->judge_loads && d->judge_steps > 0))
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.judge_steps",
                            "must be the number of steps in judge_loads", -1,
                            (double)d->judge_steps);
    layer = (int64_t)d->num_layers * d->num_experts;
    if (!moe_epi_mul(layer, d->plan_steps, &window) || window > INT64_MAX / 8)
        return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc.plan_steps",
                            "steps * L * E does not fit", -1, (double)d->plan_steps);
    st = moe_epi_diag_window(d->plan_loads, window, "desc.plan_loads", err);
    if (st != MOE_EP_OK) return st;
    if (d->judge_loads) {
        if (!moe_epi_mul(layer, d->judge_steps, &window) || window > INT64_MAX / 8)
            return moe_epi_fail(err, MOE_EP_ERR_OVERFLOW, "desc.judge_steps",
                                "steps * L * E does not fit", -1, (double)d->judge_steps);
        st = moe_epi_diag_window(d->judge_loads, window, "desc.judge_loads", err);
        if (st != MOE_EP_OK) return st;
    }
    if (d->current) {
        const moe_ep_placement *c = d->current;
        if (c->num_layers != d->num_layers || c->num_experts != d->num_experts ||
            c->num_devices != d->shape.num_devices)
            return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.current",
                                "must have the layers, experts and devices of the plan", -1,
                                (double)c->num_devices);
        st = moe_ep_validate(c, 0, NULL, err);
        if (st != MOE_EP_OK) return st;
    }
    if (d->cost && (!d->cost->model || !d->cost->machine))
        return moe_epi_null(err, d->cost->model ? "desc.cost.machine" : "desc.cost.model");
    return moe_epi_diag_numbers(d, err);
}

static moe_ep_status moe_epi_diag_plan(const moe_ep_diagnose_desc *d, moe_ep_placement *out,
                                       moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_place_desc place;
    memset(&place, 0, sizeof place);
    place.num_layers = d->num_layers;
    place.num_experts = d->num_experts;
    place.shape = d->shape;
    place.loads = d->plan_loads;
    place.num_steps = d->plan_steps;
    place.num_groups = d->num_groups;
    switch (d->policy) {
    case MOE_EP_PLACE_GIVEN:
    case MOE_EP_PLACE_BEST:
        return moe_ep_best_placement(&place, out, NULL, scratch, err);
    case MOE_EP_PLACE_ROUND_ROBIN:
        return moe_ep_place_round_robin(&place, out, NULL, scratch, err);
    case MOE_EP_PLACE_CONTIGUOUS:
        return moe_ep_place_contiguous(&place, out, NULL, scratch, err);
    case MOE_EP_PLACE_LPT:
        return moe_ep_place_lpt(&place, out, NULL, scratch, err);
    case MOE_EP_PLACE_TRTLLM:
        return moe_ep_place_trtllm(&place, out, NULL, scratch, err);
    case MOE_EP_PLACE_EPLB_GLOBAL:
        place.eplb_mode = MOE_EP_EPLB_GLOBAL;
        return moe_ep_place_eplb(&place, out, NULL, scratch, err);
    case MOE_EP_PLACE_EPLB_HIERARCHICAL:
        place.eplb_mode = MOE_EP_EPLB_HIERARCHICAL;
        return moe_ep_place_eplb(&place, out, NULL, scratch, err);
    case MOE_EP_PLACE_REBALANCE: {
        moe_ep_rebalance_desc change;
        if (!d->current)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.policy",
                                "rebalance needs desc.current", -1, (double)d->policy);
        memset(&change, 0, sizeof change);
        change.current = d->current;
        change.loads = d->plan_loads;
        change.target = d->target_imbalance;
        if (d->plan_steps > 1)
            return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "desc.plan_steps",
                                "rebalance plans on one summed step", -1, (double)d->plan_steps);
        return moe_ep_rebalance(&change, out, NULL, scratch, err);
    }
    }
    return moe_epi_fail(err, MOE_EP_ERR_RANGE, "desc.policy", "no such planner", -1,
                        (double)d->policy);
}

/* Contiguous blocks with one copy each: what a server runs before anybody balanced anything. */
static moe_ep_status moe_epi_diag_contiguous(const moe_ep_diagnose_desc *d, moe_ep_placement *out,
                                             moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_ep_place_desc place;
    memset(&place, 0, sizeof place);
    place.num_layers = d->num_layers;
    place.num_experts = d->num_experts;
    place.shape = d->shape;
    place.shape.slots_per_device = NULL;
    place.shape.num_slots = out->num_slots;
    return moe_ep_place_contiguous(&place, out, NULL, scratch, err);
}

/* Room for a contiguous placement: the same number of slots everywhere, enough for E on the active devices. */
static moe_ep_shape moe_epi_diag_bare_shape(const moe_ep_diagnose_desc *d)
{
    moe_ep_shape shape = d->shape;
    int32_t active = 0, i;
    for (i = 0; i < shape.num_devices; i++) active += !(shape.inactive && shape.inactive[i]);
    shape.slots_per_device = NULL;
    shape.num_slots = active > 0 ? (d->num_experts + active - 1) / active : d->num_experts;
    shape.num_slots = shape.num_slots > INT32_MAX / shape.num_devices
                          ? INT32_MAX
                          : shape.num_slots * shape.num_devices;
    return shape;
}

/* Busiest device of one layer (load / speed) and the mean over active devices. */
static double moe_epi_diag_max(const moe_ep_placement *p, const double *loads, double *mean,
                               int32_t *at)
{
    double max = -1.0, sum = 0.0, speed = 0.0, load;
    int32_t i;
    *at = 0;
    for (i = 0; i < p->num_devices; i++) {
        if (p->device_inactive[i]) continue;
        sum += loads[i];
        speed += p->device_speed[i];
        load = loads[i] / p->device_speed[i];
        if (load > max) {
            max = load;
            *at = i;
        }
    }
    *mean = speed > 0.0 ? sum / speed : 0.0;
    return max > 0.0 ? max : 0.0;
}

/* Where load piles up under the current placement, for naming the bottleneck. */
static void moe_epi_diag_pile(moe_epi_judge *j, int32_t layer, double mean, double max, int32_t at)
{
    const moe_ep_placement *p = j->p[0];
    int64_t row = (int64_t)layer * p->num_devices;
    int32_t i;
    for (i = 0; i < p->num_devices; i++) {
        double load = p->device_inactive[i] ? 0.0 : j->device_loads[row + i] / p->device_speed[i];
        if (load > mean) j->pile[row + i] += load - mean;
    }
    if (mean > 0.0) {
        j->layer_ratio[layer] += max / mean;
        j->layer_steps[layer]++;
        j->top_count[row + at]++;
    }
}

/* Seconds of one layer under placement `which`. */
static moe_ep_status moe_epi_diag_seconds(moe_epi_judge *j, int which, int32_t layer,
                                          const double *loads, moe_ep_time_result *time,
                                          moe_ep_error *err)
{
    moe_ep_layer_desc cost = *j->d->cost;
    moe_ep_split_desc even;
    moe_ep_status st;
    int32_t e;
    memset(&even, 0, sizeof even);
    for (e = 0; e < j->d->num_experts; e++) j->counts[e] = (int64_t)(loads[e] + 0.5);
    st = moe_ep_split(&even, j->p[which], layer, j->counts, j->slot_rows[which], NULL, err);
    if (st != MOE_EP_OK) return st;
    cost.placement = j->p[which];
    cost.traffic = NULL;
    cost.node_traffic = NULL;
    cost.tokens = 0;
    return moe_ep_layer_time(&cost, j->slot_rows[which], time, NULL, err);
}

/* One step of the window under both placements. */
static moe_ep_status moe_epi_diag_step(moe_epi_judge *j, const double *loads,
                                       moe_ep_scratch *scratch, moe_ep_error *err)
{
    const int32_t L = j->d->num_layers, E = j->d->num_experts;
    double step_rows[2] = {0.0, 0.0}, step_s[2] = {0.0, 0.0};
    int which;
    for (which = 0; which < 2; which++) {
        const moe_ep_placement *p = j->p[which];
        int32_t l, at;
        moe_ep_status st = moe_ep_device_loads(p, loads, j->device_loads, err);
        if (st != MOE_EP_OK) return st;
        for (l = 0; l < L; l++) {
            const double *layer_loads = loads + (int64_t)l * E;
            double mean, max = moe_epi_diag_max(p, j->device_loads + (int64_t)l * p->num_devices,
                                                &mean, &at);
            moe_ep_time_result time;
            if (!(max > 0.0)) continue;
            step_rows[which] += max;
            if (j->d->cost) {
                st = moe_epi_diag_seconds(j, which, l, layer_loads, &time, err);
                if (st != MOE_EP_OK) return st;
                step_s[which] += time.total_s;
                if (which == 1) j->balanced_s += time.total_s - time.compute_s + time.balanced_s;
            }
            if (which == 0) {
                moe_ep_bound_result bound;
                moe_epi_diag_pile(j, l, mean, max, at);
                st = moe_ep_lower_bound(layer_loads, E, &j->d->shape, &bound, scratch, err);
                if (st != MOE_EP_OK) return st;
                j->mean += mean;
                j->bound += bound.value;
            }
        }
    }
    for (which = 0; which < 2; which++) {
        j->rows[which] += step_rows[which];
        j->seconds[which] += step_s[which];
    }
    if (j->d->cost ? step_s[1] < step_s[0] : step_rows[1] < step_rows[0]) j->improved++;
    j->steps++;
    return MOE_EP_OK;
}

static void moe_epi_diag_bottleneck(const moe_epi_judge *j, moe_ep_diagnosis *out)
{
    const int32_t L = j->d->num_layers, D = j->p[0]->num_devices;
    double worst = -1.0;
    int64_t i;
    for (i = 0; i < (int64_t)L * D; i++) {
        if (j->pile[i] > worst) {
            worst = j->pile[i];
            out->hot_layer = (int32_t)(i / D);
            out->hot_device = (int32_t)(i % D);
        }
    }
    i = (int64_t)out->hot_layer * D + out->hot_device;
    if (j->layer_steps[out->hot_layer] > 0) {
        out->hot_share = (double)j->top_count[i] / (double)j->layer_steps[out->hot_layer];
        out->hot_imbalance =
            j->layer_ratio[out->hot_layer] / (double)j->layer_steps[out->hot_layer];
    }
    for (i = 0; i < L; i++) out->layers_loaded += j->layer_steps[i] > 0;
}

/* Experts that arrive on a device which does not hold them yet: all, and on the device that receives most. */
static void moe_epi_diag_moves(const moe_ep_placement *now, const moe_ep_placement *plan,
                               int64_t *arrivals, moe_ep_diagnosis *out, double expert_bytes,
                               double move_Bps, double pause_s)
{
    int64_t most = 0;
    int32_t l, i, slot, s;
    memset(arrivals, 0, (size_t)plan->num_devices * sizeof *arrivals);
    for (l = 0; l < plan->num_layers; l++) {
        const int32_t *have = now->slot_expert + (int64_t)l * now->num_slots;
        const int32_t *want = plan->slot_expert + (int64_t)l * plan->num_slots;
        for (i = 0; i < plan->num_devices; i++) {
            for (slot = plan->slot_start[i]; slot < plan->slot_start[i + 1]; slot++) {
                int held = want[slot] < 0;
                for (s = now->slot_start[i]; s < now->slot_start[i + 1] && !held; s++)
                    held = have[s] == want[slot];
                for (s = plan->slot_start[i]; s < slot && !held; s++) held = want[s] == want[slot];
                if (!held) arrivals[i]++;
            }
        }
    }
    for (i = 0; i < plan->num_devices; i++) {
        out->moves += arrivals[i];
        if (arrivals[i] > most) most = arrivals[i];
    }
    out->move_bytes = (double)out->moves * expert_bytes;
    if (out->moves > 0) {
        out->move_s = pause_s;
        if (move_Bps > 0.0) out->move_s += (double)most * expert_bytes / move_Bps;
    }
}

/* ---- the sentence ------------------------------------------------------------------------------------- */

/* Fixed decimals for the sentence. */
static void moe_epi_put_fixed(moe_epi_text *t, double v, int decimals)
{
    double unit = 1.0;
    int64_t whole, scale = 1;
    int i;
    for (i = 0; i < decimals; i++) unit *= 10.0;
    if (v < 0.0) {
        moe_epi_put(t, '-');
        v = -v;
    }
    if (!(v * unit < 9.0e15)) {
        moe_epi_putd(t, v);
        return;
    }
    whole = (int64_t)(v * unit + 0.5);
    for (i = 0; i < decimals; i++) scale *= 10;
    moe_epi_puti(t, whole / scale);
    if (decimals > 0) moe_epi_put(t, '.');
    for (i = 0; i < decimals; i++) {
        scale /= 10;
        moe_epi_put(t, (char)('0' + (int)(whole / scale % 10)));
    }
}

static void moe_epi_put_percent(moe_epi_text *t, double share)
{
    moe_epi_put_fixed(t, share * 100.0, 1);
    moe_epi_puts(t, " %");
}

static void moe_epi_put_step(moe_epi_text *t, const moe_ep_diagnosis *o, double rows,
                             double seconds)
{
    if (o->before_s > 0.0) {
        moe_epi_put_fixed(t, seconds * 1e3, 3);
        moe_epi_puts(t, " ms");
    } else {
        moe_epi_put_fixed(t, rows, rows < 1000.0 ? 1 : 0);
        moe_epi_puts(t, " rows");
    }
}

/* "a step goes from 9.1 ms to 6.2 ms (31.9 % less)" */
static void moe_epi_put_change(moe_epi_text *t, const moe_ep_diagnosis *o)
{
    moe_epi_puts(t, "a step goes from ");
    moe_epi_put_step(t, o, o->before_rows, o->before_s);
    moe_epi_puts(t, " to ");
    moe_epi_put_step(t, o, o->after_rows, o->after_s);
    moe_epi_puts(t, " (");
    moe_epi_put_percent(t, o->gain < 0.0 ? -o->gain : o->gain);
    moe_epi_puts(t, o->gain < 0.0 ? " more)" : " less)");
}

static void moe_epi_put_pays(moe_epi_text *t, const moe_ep_diagnosis *o)
{
    moe_epi_put_change(t, o);
    moe_epi_puts(t, ", faster in ");
    moe_epi_put_percent(t, o->improved);
    moe_epi_puts(t, " of ");
    moe_epi_puti(t, o->steps);
    moe_epi_puts(t, o->steps == 1 ? " judged step, moving " : " judged steps, moving ");
    moe_epi_puti(t, o->moves);
    moe_epi_puts(t, " experts");
    if (o->break_even_steps > 0.0) {
        moe_epi_puts(t, ", repaid after ");
        moe_epi_put_fixed(t, o->break_even_steps, o->break_even_steps < 10.0 ? 1 : 0);
        moe_epi_puts(t, " steps");
    }
}

static void moe_epi_diag_sentence(const moe_ep_diagnose_desc *d, moe_ep_diagnosis *o)
{
    moe_epi_text t;
    t.buf = o->text;
    t.bytes = sizeof o->text;
    t.len = 0;
    switch (o->reason) {
    case MOE_EP_REASON_NO_JUDGE_WINDOW:
        moe_epi_puts(&t, "there is no second window: a plan must be judged on loads it was not "
                         "made from; on its own window ");
        moe_epi_put_change(&t, o);
        break;
    case MOE_EP_REASON_NO_LOAD:
        moe_epi_puts(&t, "a window holds no tokens, so nothing can be said");
        break;
    case MOE_EP_REASON_FEW_STEPS:
        moe_epi_puti(&t, o->steps);
        moe_epi_puts(&t, " judged steps are fewer than the ");
        moe_epi_puti(&t, d->min_steps);
        moe_epi_puts(&t, " asked for; on them ");
        moe_epi_put_change(&t, o);
        break;
    case MOE_EP_REASON_BALANCED:
        moe_epi_puts(&t, "the busiest device has ");
        moe_epi_put_fixed(&t, o->imbalance_before, 3);
        moe_epi_puts(&t, " times the mean, within the ");
        moe_epi_put_fixed(&t, d->target_imbalance, 3);
        moe_epi_puts(&t, " that is good enough");
        break;
    case MOE_EP_REASON_CHANCE:
        moe_epi_puts(&t, "the busiest device has ");
        moe_epi_put_fixed(&t, o->imbalance_before, 2);
        moe_epi_puts(&t, " times the mean, no more than the ");
        moe_epi_put_fixed(&t, o->chance_imbalance, 2);
        moe_epi_puts(&t, " that even routing of so few tokens gives by chance; larger batches "
                         "help, a plan does not");
        break;
    case MOE_EP_REASON_SMALL_GAIN:
        moe_epi_puts(&t, "the plan saves too little: ");
        moe_epi_put_change(&t, o);
        moe_epi_puts(&t, ", wanted at least ");
        moe_epi_put_percent(&t, d->min_gain);
        break;
    case MOE_EP_REASON_UNRELIABLE:
        moe_epi_puts(&t, "the plan helps in only ");
        moe_epi_put_percent(&t, o->improved);
        moe_epi_puts(&t, " of the steps, wanted ");
        moe_epi_put_percent(&t, d->min_improved);
        moe_epi_puts(&t, ": the load shifts faster than the plan");
        break;
    case MOE_EP_REASON_BREAK_EVEN:
        moe_epi_puts(&t, "moving ");
        moe_epi_puti(&t, o->moves);
        moe_epi_puts(&t, " experts is repaid after ");
        moe_epi_put_fixed(&t, o->break_even_steps, 0);
        moe_epi_puts(&t, " steps, but the plan will serve only ");
        moe_epi_put_fixed(&t, d->horizon_steps, 0);
        break;
    case MOE_EP_REASON_PAYS:
        moe_epi_put_pays(&t, o);
        break;
    }
    o->text[t.len < t.bytes ? t.len : t.bytes - 1] = '\0';
}

static void moe_epi_diag_decide(const moe_ep_diagnose_desc *d, double plan_total,
                                double judge_total, moe_ep_diagnosis *o)
{
    o->verdict = MOE_EP_INSUFFICIENT_EVIDENCE;
    if (!(plan_total > 0.0) || !(judge_total > 0.0))
        o->reason = MOE_EP_REASON_NO_LOAD;
    else if (!d->judge_loads)
        o->reason = MOE_EP_REASON_NO_JUDGE_WINDOW;
    else if (o->steps < d->min_steps)
        o->reason = MOE_EP_REASON_FEW_STEPS;
    else {
        o->verdict = MOE_EP_NOT_NOW;
        if (d->target_imbalance > 0.0 && o->imbalance_before <= d->target_imbalance)
            o->reason = MOE_EP_REASON_BALANCED;
        else if (!(o->gain > 0.0) || o->gain < d->min_gain)
            o->reason = o->imbalance_before <= o->chance_imbalance ? MOE_EP_REASON_CHANCE
                                                                   : MOE_EP_REASON_SMALL_GAIN;
        else if (o->improved < d->min_improved)
            o->reason = MOE_EP_REASON_UNRELIABLE;
        else if (d->horizon_steps > 0.0 && o->break_even_steps > d->horizon_steps)
            o->reason = MOE_EP_REASON_BREAK_EVEN;
        else {
            o->reason = MOE_EP_REASON_PAYS;
            o->verdict = MOE_EP_RECOMMEND;
        }
    }
    moe_epi_diag_sentence(d, o);
}

static double moe_epi_diag_total(const double *loads, int64_t n)
{
    double total = 0.0;
    int64_t i;
    for (i = 0; i < n; i++) total += loads[i];
    return total;
}

/* The 95 % point of the busiest device's max/mean when routing is uniform, at the mean number of tokens. */
static double moe_epi_diag_chance(const moe_ep_diagnose_desc *d, const moe_epi_judge *j,
                                  const moe_ep_diagnosis *o)
{
    moe_ep_chance_result chance;
    double passes = (double)o->layers_loaded * (double)j->steps;
    int32_t K = d->top_k > 0 ? d->top_k : 1;
    int64_t tokens = passes > 0.0 ? (int64_t)(j->total / passes / (double)K + 0.5) : 0;
    if (tokens < 1) return 1.0;
    if (moe_ep_chance_devices(tokens, K, d->num_experts, d->shape.num_devices, &chance, NULL) !=
        MOE_EP_OK)
        return 1.0;
    return chance.p95;
}

static void moe_epi_diag_result(const moe_ep_diagnose_desc *d, const moe_epi_judge *j,
                                moe_ep_diagnosis *o)
{
    double steps = (double)j->steps;
    moe_epi_diag_bottleneck(j, o);
    o->steps = (int32_t)j->steps;
    o->mean_rows = j->mean / steps;
    o->before_rows = j->rows[0] / steps;
    o->after_rows = j->rows[1] / steps;
    o->bound_rows = j->bound / steps;
    o->imbalance_before = o->imbalance_after = o->imbalance_bound = 1.0;
    if (j->mean > 0.0) {
        o->imbalance_before = j->rows[0] / j->mean;
        o->imbalance_after = j->rows[1] / j->mean;
        o->imbalance_bound = j->bound / j->mean;
    }
    o->chance_imbalance = moe_epi_diag_chance(d, j, o);
    o->gain = o->before_rows > 0.0 ? 1.0 - o->after_rows / o->before_rows : 0.0;
    o->speedup = o->after_rows > 0.0 ? o->before_rows / o->after_rows : 1.0;
    if (d->cost && j->seconds[0] > 0.0) {
        o->before_s = j->seconds[0] / steps + d->other_s;
        o->after_s = j->seconds[1] / steps + d->other_s;
        o->balanced_s = j->balanced_s / steps + d->other_s;
        o->gain = 1.0 - o->after_s / o->before_s;
        o->speedup = o->before_s / o->after_s;
    }
    o->improved = (double)j->improved / steps;
    if (!(o->move_s > 0.0))
        o->break_even_steps = 0.0;
    else if (o->before_s > o->after_s)
        o->break_even_steps = o->move_s / (o->before_s - o->after_s);
    else
        o->break_even_steps = -1.0;
}

/* Plans, judges and decides with all memory in place. */
static moe_ep_status moe_epi_diag_run(moe_epi_judge *j, moe_ep_placement *bare,
                                      moe_ep_placement *plan, moe_ep_diagnosis *out,
                                      int64_t *arrivals, moe_ep_scratch *scratch, moe_ep_error *err)
{
    const moe_ep_diagnose_desc *d = j->d;
    const double *window = d->judge_loads ? d->judge_loads : d->plan_loads;
    int32_t steps = d->judge_loads ? d->judge_steps : d->plan_steps, s;
    int64_t per_step = (int64_t)d->num_layers * d->num_experts;
    double expert_bytes = d->expert_bytes;
    moe_ep_status st;
    if (!d->current) {
        st = moe_epi_diag_contiguous(d, bare, scratch, err);
        if (st != MOE_EP_OK) return st;
    }
    st = moe_epi_diag_plan(d, plan, scratch, err);
    if (st != MOE_EP_OK) return st;
    j->p[0] = d->current ? d->current : bare;
    j->p[1] = plan;
    for (s = 0; s < steps; s++) {
        double total = moe_epi_diag_total(window + s * per_step, per_step);
        if (!(total > 0.0)) continue;
        j->total += total;
        st = moe_epi_diag_step(j, window + s * per_step, scratch, err);
        if (st != MOE_EP_OK) return st;
    }
    memset(out, 0, sizeof *out);
    out->policy = d->policy == MOE_EP_PLACE_GIVEN ? MOE_EP_PLACE_BEST : d->policy;
    out->imbalance_before = out->imbalance_after = out->imbalance_bound = out->chance_imbalance =
        out->speedup = 1.0;
    if (!(expert_bytes > 0.0) && d->cost) {
        const moe_ep_model *m = d->cost->model;
        expert_bytes = (m->ungated ? 2.0 : 3.0) * (double)m->hidden * (double)m->inter *
                       (m->weight_bytes > 0.0 ? m->weight_bytes : 2.0);
    }
    moe_epi_diag_moves(j->p[0], plan, arrivals, out, expert_bytes, d->move_Bps, d->pause_s);
    if (j->steps > 0) moe_epi_diag_result(d, j, out);
    moe_epi_diag_decide(d, moe_epi_diag_total(d->plan_loads, per_step * d->plan_steps), j->total,
                        out);
    return MOE_EP_OK;
}

/* What an open arena leaves of its buffer, for the functions called from here. */
static moe_ep_scratch moe_epi_scratch_rest(const moe_ep_scratch *scratch, const moe_epi_arena *a)
{
    const moe_ep_scratch *owner = scratch ? scratch : &a->local;
    size_t used = a->base ? (size_t)(a->base - (unsigned char *)owner->buf) + a->used : 0;
    return moe_ep_scratch_fixed(a->base ? a->base + a->used : NULL, owner->bytes - used);
}

/* Sizes of everything one diagnosis keeps, in the order in which it is carved. */
typedef struct moe_epi_diag_sizes {
    moe_ep_shape bare; /* of the contiguous placement when none is given */
    int64_t bare_bytes, own_bytes, cells, now_slots, plan_slots;
} moe_epi_diag_sizes;

static moe_ep_status moe_epi_diag_measure(const moe_ep_diagnose_desc *d, moe_epi_diag_sizes *z,
                                          size_t *total, moe_ep_error *err)
{
    moe_ep_placement none;
    moe_ep_status st;
    z->bare = moe_epi_diag_bare_shape(d);
    z->bare_bytes =
        d->current ? 0 : (int64_t)moe_ep_placement_bytes(d->num_layers, d->num_experts, &z->bare);
    z->own_bytes = (int64_t)moe_ep_placement_bytes(d->num_layers, d->num_experts, &d->shape);
    if (z->own_bytes == 0 ||
        (!d->current && z->bare_bytes == 0)) { /* the layout says what is wrong with the shape */
        st = moe_ep_placement_init(&none, d->num_layers, d->num_experts, &d->shape, &none, 0, err);
        return st != MOE_EP_OK ? st
                               : moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.shape",
                                              "cannot be laid out", -1, 0.0);
    }
    z->cells = (int64_t)d->num_layers * d->shape.num_devices;
    z->now_slots = d->current ? d->current->num_slots : z->bare.num_slots;
    z->plan_slots = z->own_bytes /
                    (int64_t)sizeof(int32_t); /* more than the slots: they lie in there as int32 */
    moe_epi_need(total, z->bare_bytes, 1);
    moe_epi_need(total, z->own_bytes, 1);
    moe_epi_need(total, z->cells, sizeof(double));
    moe_epi_need(total, z->cells, sizeof(double));
    moe_epi_need(total, z->cells, sizeof(int64_t));
    moe_epi_need(total, d->num_layers, sizeof(double));
    moe_epi_need(total, d->num_layers, sizeof(int64_t));
    moe_epi_need(total, d->num_experts, sizeof(int64_t));
    moe_epi_need(total, d->shape.num_devices, sizeof(int64_t));
    moe_epi_need(total, z->now_slots, sizeof(int64_t));
    moe_epi_need(total, z->plan_slots, sizeof(int64_t));
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_diag_carve(const moe_ep_diagnose_desc *d, const moe_epi_diag_sizes *z,
                                        moe_epi_arena *a, moe_epi_judge *j, moe_ep_placement *bare,
                                        moe_ep_placement *own, int64_t **arrivals,
                                        moe_ep_error *err)
{
    void *bare_mem = moe_epi_take(a, z->bare_bytes, 1), *own_mem = moe_epi_take(a, z->own_bytes, 1);
    moe_ep_status st;
    memset(j, 0, sizeof *j);
    memset(bare, 0, sizeof *bare);
    j->d = d;
    j->device_loads = (double *)moe_epi_take(a, z->cells, sizeof(double));
    j->pile = (double *)moe_epi_take(a, z->cells, sizeof(double));
    j->top_count = (int64_t *)moe_epi_take(a, z->cells, sizeof(int64_t));
    j->layer_ratio = (double *)moe_epi_take(a, d->num_layers, sizeof(double));
    j->layer_steps = (int64_t *)moe_epi_take(a, d->num_layers, sizeof(int64_t));
    j->counts = (int64_t *)moe_epi_take(a, d->num_experts, sizeof(int64_t));
    *arrivals = (int64_t *)moe_epi_take(a, d->shape.num_devices, sizeof(int64_t));
    j->slot_rows[0] = (int64_t *)moe_epi_take(a, z->now_slots, sizeof(int64_t));
    j->slot_rows[1] = (int64_t *)moe_epi_take(a, z->plan_slots, sizeof(int64_t));
    memset(j->pile, 0, (size_t)z->cells * sizeof(double));
    memset(j->top_count, 0, (size_t)z->cells * sizeof(int64_t));
    memset(j->layer_ratio, 0, (size_t)d->num_layers * sizeof(double));
    memset(j->layer_steps, 0, (size_t)d->num_layers * sizeof(int64_t));
    st = moe_ep_placement_init(own, d->num_layers, d->num_experts, &d->shape, own_mem,
                               (size_t)z->own_bytes, err);
    if (st == MOE_EP_OK && !d->current)
        st = moe_ep_placement_init(bare, d->num_layers, d->num_experts, &z->bare, bare_mem,
                                   (size_t)z->bare_bytes, err);
    return st;
}

/* One attempt in the memory at hand.  *more = bytes the planner wanted beyond it, 0 = it had enough. */
static moe_ep_status moe_epi_diag_try(const moe_ep_diagnose_desc *d, const moe_epi_diag_sizes *sizes, size_t total,
                                      size_t extra, moe_ep_placement *plan, moe_ep_diagnosis *out,
                                      moe_ep_scratch *scratch, size_t *more, moe_ep_error *err)
{
    moe_epi_judge j;
    moe_epi_arena a;
    moe_ep_placement bare, own;
    moe_ep_diagnosis result;
    moe_ep_scratch rest;
    int64_t *arrivals;
    moe_ep_status st;

    *more = 0;
    st = moe_epi_arena_open(&a, scratch, extra > SIZE_MAX - total ? SIZE_MAX : total + extra, err);
    if (st != MOE_EP_OK) return st;
    memset(&result, 0, sizeof result);
    st = moe_epi_diag_carve(d, sizes, &a, &j, &bare, &own, &arrivals, err);
    rest = moe_epi_scratch_rest(scratch, &a);
    if (st == MOE_EP_OK) st = moe_epi_diag_run(&j, &bare, &own, &result, arrivals, &rest, err);
    if (st == MOE_EP_ERR_SCRATCH) *more = rest.need;
    if (st == MOE_EP_OK && plan) st = moe_ep_placement_copy(&own, plan, err);
    if (st == MOE_EP_OK) *out = result;
    moe_epi_arena_close(&a);
    return st;
}

MOE_EP_API moe_ep_status moe_ep_diagnose(const moe_ep_diagnose_desc *desc, moe_ep_placement *plan,
                                         moe_ep_diagnosis *out, moe_ep_scratch *scratch, moe_ep_error *err)
{
    moe_epi_diag_sizes sizes;
    size_t total = 0, extra = 0, more;
    moe_ep_status st;

    moe_epi_ok(err);
    if (!desc) return moe_epi_null(err, "desc");
    if (!out) return moe_epi_null(err, "out");
    if (desc->shape.num_devices < 1)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "desc.shape.num_devices", "must be at least 1", -1,
                            (double)desc->shape.num_devices);
    st = moe_epi_diag_check(desc, err);
    if (st == MOE_EP_OK) st = moe_epi_diag_measure(desc, &sizes, &total, err);
    if (st != MOE_EP_OK) return st;
    for (;;) { /* the planner's own need shows when it runs: take that much more and start again */
        st = moe_epi_diag_try(desc, &sizes, total, extra, plan, out, scratch, &more, err);
        if (st != MOE_EP_ERR_SCRATCH || more <= extra) return st;
        extra = more;
        if (scratch && scratch->fixed) {
            scratch->need = total + 64u + extra;
            return moe_epi_fail(err, MOE_EP_ERR_SCRATCH, "scratch", "bytes needed", -1, (double)scratch->need);
        }
        moe_epi_ok(err);
    }
}

/* ==================================================================================================
 * 12 SIMULATE
 * ================================================================================================== */

#define MOE_EPI_TRY(call)                                                                           \
    do {                                                                                            \
        moe_ep_status moe_epi_s_ = (call);                                                          \
        if (moe_epi_s_ != MOE_EP_OK) return moe_epi_s_;                                             \
    } while (0)

/* ---- integer arithmetic: numbers in Q32 (value * 2^32), so that no compiler option can change a bit ---- */

#define MOE_EPI_ONE ((int64_t)1 << 32)
#define MOE_EPI_LN2_Q32 ((int64_t)2977044472)   /* ln 2   */
#define MOE_EPI_LOG2E_Q32 ((int64_t)6196328019) /* 1/ln 2 */

/* a * b / 2^32 rounded down, |result| < 2^63. */
static int64_t moe_epi_q_mul(int64_t a, int64_t b)
{
    int negative = (a < 0) != (b < 0);
    uint64_t x = a < 0 ? (uint64_t)0 - (uint64_t)a : (uint64_t)a;
    uint64_t y = b < 0 ? (uint64_t)0 - (uint64_t)b : (uint64_t)b;
    uint64_t xh = x >> 32, xl = x & 0xffffffffu, yh = y >> 32, yl = y & 0xffffffffu;
    uint64_t r = ((xh * yh) << 32) + xh * yl + xl * yh + ((xl * yl) >> 32);
    return negative ? -(int64_t)r : (int64_t)r;
}

/* 2^x for x in Q32, x <= 7.9, as Q32 * 2^8 = Q40 to keep small values; 0 far below. */
static uint64_t moe_epi_q40_exp2(int64_t x)
{
    int64_t whole = x >= 0 ? x >> 32 : -((-x + (MOE_EPI_ONE - 1)) >> 32); /* floor */
    int64_t part = x - whole * MOE_EPI_ONE, y = moe_epi_q_mul(part, MOE_EPI_LN2_Q32), r = MOE_EPI_ONE, n;
    uint64_t v;
    for (n = 14; n >= 1; n--) r = MOE_EPI_ONE + moe_epi_q_mul(y, r) / n; /* e^y by Horner */
    v = (uint64_t)r << 8;
    if (whole >= 0) return v << whole;
    return whole > -63 ? v >> -whole : 0;
}

/* log2(v / 2^32) in Q32, v > 0: the whole part by position of the top bit, the rest by squaring. */
static int64_t moe_epi_q_log2(uint64_t v)
{
    int64_t result;
    int shift = 0, i;
    uint64_t m = v;
    while (m < ((uint64_t)1 << 63)) {
        m <<= 1;
        shift++;
    }
    m >>= 32; /* 2^31 <= m < 2^32: the mantissa */
    result = (int64_t)(31 - shift) * MOE_EPI_ONE;
    for (i = 31; i >= 0; i--) {
        m = (m * m) >> 31;
        if (m >= ((uint64_t)1 << 32)) {
            result += (int64_t)1 << i;
            m >>= 1;
        }
    }
    return result;
}

/* Integer square root, rounded down. */
static uint64_t moe_epi_isqrt(uint64_t v)
{
    uint64_t root = 0, bit = (uint64_t)1 << 62;
    while (bit > v) bit >>= 2;
    for (; bit != 0; bit >>= 2) {
        if (v >= root + bit) {
            v -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return root;
}

/* A standard normal in Q32 by Marsaglia's polar method: u sqrt(-2 ln s) / sqrt(s), s = u^2 + v^2 < 1. */
static int64_t moe_epi_q_normal(moe_ep_rng *rng)
{
    int64_t u, v, z, log2s;
    uint64_t s, bits;
    do {
        bits = moe_ep_rng_u64(rng);
        u = (int64_t)(bits >> 32) - 2147483648LL; /* Q31, -1 <= u < 1 */
        v = (int64_t)(bits & 0xffffffffu) - 2147483648LL;
        s = (uint64_t)(u * u) + (uint64_t)(v * v); /* Q62 */
    } while (s == 0 || s >= ((uint64_t)1 << 62));
    log2s = moe_epi_q_log2(s) - 30 * MOE_EPI_ONE; /* s is Q62, the logarithm took it as Q32 */
    z = moe_epi_q_mul(-log2s, 2 * MOE_EPI_LN2_Q32); /* -2 ln s, < 87 */
    z = (int64_t)moe_epi_isqrt((uint64_t)z << 24);  /* Q28 */
    z = u * z / (int64_t)moe_epi_isqrt(s);          /* Q31 * Q28 / Q31 */
    return z * 16;
}

/* A parameter as Q32; it is 0 <= v < 2^20 by then.  The product with 2^32 is exact, so it cannot be contracted. */
static int64_t moe_epi_q_of(double v) { return (int64_t)(v * 4294967296.0); }

/* A generator of its own for one purpose in one layer and step. */
static moe_ep_rng moe_epi_stream(uint64_t seed, uint64_t purpose, uint64_t layer, uint64_t step)
{
    moe_ep_rng r = moe_ep_rng_seed(seed);
    uint64_t mix = moe_ep_rng_u64(&r) ^ (purpose * 0x9e3779b97f4a7c15u);
    r = moe_ep_rng_seed(mix);
    mix = moe_ep_rng_u64(&r) ^ (layer * 0xbf58476d1ce4e5b9u);
    r = moe_ep_rng_seed(mix);
    mix = moe_ep_rng_u64(&r) ^ (step * 0x94d049bb133111ebu);
    return moe_ep_rng_seed(mix);
}

enum { MOE_EPI_USE_WEIGHTS = 1, MOE_EPI_USE_DRIFT = 2, MOE_EPI_USE_ORDER = 3, MOE_EPI_USE_IDS = 4, MOE_EPI_USE_SOURCE = 5 };

/* ---- names and checks --------------------------------------------------------------------------------- */

enum { MOE_EPI_LOAD_KINDS = 13 };

static const char *const moe_epi_load_names[MOE_EPI_LOAD_KINDS] = {
    "uniform", "zipf", "power-law", "lognormal", "hot-expert", "hot-device", "rotating",
    "burst", "recorded", "target", "balanced", "round-robin", "stuck-round-robin"};

MOE_EP_API const char *moe_ep_workload_str(moe_ep_workload_kind kind)
{
    return (int)kind >= 0 && (int)kind < (int)MOE_EPI_LOAD_KINDS ? moe_epi_load_names[(int)kind] : "unknown";
}

MOE_EP_API moe_ep_status moe_ep_workload_by_name(const char *name, moe_ep_workload_kind *kind, moe_ep_error *err)
{
    int i;
    moe_epi_ok(err);
    if (!name) return moe_epi_null(err, "name");
    if (!kind) return moe_epi_null(err, "kind");
    if (strcmp(name, "rand") == 0) name = moe_epi_load_names[(int)MOE_EP_LOAD_UNIFORM];
    if (strcmp(name, "rr") == 0) name = moe_epi_load_names[(int)MOE_EP_LOAD_ROUND_ROBIN];
    for (i = 0; i < (int)MOE_EPI_LOAD_KINDS; i++) {
        if (strcmp(name, moe_epi_load_names[i]) != 0) continue;
        *kind = (moe_ep_workload_kind)i;
        return MOE_EP_OK;
    }
    return moe_epi_fail(err, MOE_EP_ERR_CONFIG, "name", "no workload has this name", -1, 0.0);
}

/* 0 <= v <= most. */
static moe_ep_status moe_epi_check_parameter(double v, double most, const char *arg, moe_ep_error *err)
{
    if (!moe_epi_finite(v)) return moe_epi_fail(err, MOE_EP_ERR_NAN, arg, "not a finite number", -1, v);
    if (v < 0.0) return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, arg, "must not be negative", -1, v);
    if (v > most) return moe_epi_fail(err, MOE_EP_ERR_RANGE, arg, "too large", -1, v);
    return MOE_EP_OK;
}

static int moe_epi_is_hot(moe_ep_workload_kind k)
{
    return k == MOE_EP_LOAD_HOT_EXPERT || k == MOE_EP_LOAD_HOT_DEVICE || k == MOE_EP_LOAD_ROTATING || k == MOE_EP_LOAD_BURST;
}

static int moe_epi_is_dealt(moe_ep_workload_kind k)
{
    return k == MOE_EP_LOAD_TARGET || k == MOE_EP_LOAD_BALANCED || k == MOE_EP_LOAD_ROUND_ROBIN ||
           k == MOE_EP_LOAD_STUCK_ROUND_ROBIN;
}

static moe_ep_status moe_epi_check_popularity(const moe_ep_workload *w, moe_ep_error *err)
{
    int32_t e, seen = 0;
    if (!w->popularity) return moe_epi_null(err, "popularity");
    for (e = 0; e < w->num_experts; e++) {
        if (!moe_epi_finite(w->popularity[e]))
            return moe_epi_fail(err, MOE_EP_ERR_NAN, "popularity", "not a finite number", e, w->popularity[e]);
        if (w->popularity[e] < 0.0)
            return moe_epi_fail(err, MOE_EP_ERR_NEGATIVE, "popularity", "must not be negative", e, w->popularity[e]);
        seen += w->popularity[e] > 0.0;
    }
    if (seen < (w->with_replacement ? 1 : w->top_k))
        return moe_epi_fail(err, MOE_EP_ERR_INFEASIBLE, "popularity", "fewer than K experts have weight", -1, (double)seen);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_check_hot(const moe_ep_workload *w, int32_t D, moe_ep_error *err)
{
    int by_expert = w->kind == MOE_EP_LOAD_HOT_EXPERT || w->kind == MOE_EP_LOAD_BURST;
    int32_t most = by_expert ? w->num_experts : D, first, hot_experts;
    if (w->hot < 0 || w->hot >= most)
        return moe_epi_fail(err, by_expert ? MOE_EP_ERR_EXPERT_ID : MOE_EP_ERR_DEVICE_ID, "hot", "out of range", -1, (double)w->hot);
    first = (int32_t)((int64_t)w->num_experts * w->hot / D);
    hot_experts = by_expert ? 1 : (int32_t)((int64_t)w->num_experts * (w->hot + 1) / D) - first;
    if (!(w->share < 1.0) && !w->with_replacement && hot_experts < w->top_k)
        return moe_epi_fail(err, MOE_EP_ERR_INFEASIBLE, "share", "fewer than K experts have weight", -1, w->share);
    return MOE_EP_OK;
}

static moe_ep_status moe_epi_check_workload(const moe_ep_workload *w, int32_t layer, int64_t step, moe_ep_error *err)
{
    int32_t D;
    if (!w) return moe_epi_null(err, "w");
    if ((int)w->kind < 0 || (int)w->kind >= (int)MOE_EPI_LOAD_KINDS)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "kind", "no such workload", -1, (double)(int)w->kind);
    if (w->num_experts < 1 || w->num_experts > (1 << 20)) /* weights below 2^40 must add up in 63 bits */
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_experts", "must be in 1..2^20", -1, (double)w->num_experts);
    if (w->top_k < 1) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "top_k", "too small", -1, (double)w->top_k);
    if (w->top_k > w->num_experts && !w->with_replacement)
        return moe_epi_fail(err, MOE_EP_ERR_TOP_K, "top_k", "larger than num_experts", -1, (double)w->top_k);
    if (w->num_devices < 0 || w->num_devices > w->num_experts)
        return moe_epi_fail(err, MOE_EP_ERR_SIZE, "num_devices", "must be in 0..num_experts", -1, (double)w->num_devices);
    if (layer < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "layer", "must not be negative", -1, (double)layer);
    if (step < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "step", "must not be negative", -1, (double)step);
    if (w->period < 0) return moe_epi_fail(err, MOE_EP_ERR_SIZE, "period", "must not be negative", -1, (double)w->period);
    MOE_EPI_TRY(moe_epi_check_parameter(w->share, 1.0, "share", err));
    MOE_EPI_TRY(moe_epi_check_parameter(w->alpha, 64.0, "alpha", err));
    MOE_EPI_TRY(moe_epi_check_parameter(w->x_max, 1e9, "x_max", err));
    MOE_EPI_TRY(moe_epi_check_parameter(w->sigma, 16.0, "sigma", err));
    MOE_EPI_TRY(moe_epi_check_parameter(w->drift, 16.0, "drift", err));
    MOE_EPI_TRY(moe_epi_check_parameter(w->target, 1.0, "target", err));
    if (w->x_max > 0.0 && w->x_max <= 1.0)
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "x_max", "must be larger than 1", -1, w->x_max);
    if (w->kind == MOE_EP_LOAD_TARGET && !(w->target > 0.0))
        return moe_epi_fail(err, MOE_EP_ERR_RANGE, "target", "must be positive", -1, w->target);
    D = w->num_devices > 0 ? w->num_devices : 1;
    if (w->kind == MOE_EP_LOAD_RECORDED) MOE_EPI_TRY(moe_epi_check_popularity(w, err));
    if (moe_epi_is_hot(w->kind)) MOE_EPI_TRY(moe_epi_check_hot(w, D, err));
    return MOE_EP_OK;
}

/* ---- popularity ------------------------------------------------------------------------------------- */

/* The workload's weight as log2, Q32, one expert at a time. */
typedef struct moe_epi_law {
    const moe_ep_workload *w;
    moe_ep_rng rng;
    int64_t log_max; /* POWER_LAW: log2 of the largest over the smallest weight */
    double most;     /* RECORDED: largest popularity */
    int32_t first, last; /* hot experts */
} moe_epi_law;

/* x in [1, x_max] with density x^-alpha: log-uniform at alpha = 1, else ((X^b - 1) u + 1)^(1/b), b = 1 - alpha. */
static int64_t moe_epi_power_law_log2(const moe_epi_law *y, uint64_t bits)
{
    int64_t u = (int64_t)(bits >> 32), b = MOE_EPI_ONE - moe_epi_q_of(y->w->alpha), t, top;
    if (b > -(MOE_EPI_ONE >> 16) && b < (MOE_EPI_ONE >> 16)) return moe_epi_q_mul(u, y->log_max);
    t = moe_epi_q_mul(b, y->log_max); /* log2 of X^b */
    if (t > 0) { /* fall back on the larger end: X ((1 - X^-b) u + X^-b)^(1/b) */
        top = (int64_t)(moe_epi_q40_exp2(-t) >> 8);
        t = moe_epi_q_mul(MOE_EPI_ONE - top, u) + top;
        if (t < 1) t = 1;
        t = moe_epi_q_log2((uint64_t)t);
        return y->log_max + moe_epi_q_mul(t, MOE_EPI_ONE * 65536 / (b >> 16));
    }
    top = (int64_t)(moe_epi_q40_exp2(t) >> 8);
    t = MOE_EPI_ONE - moe_epi_q_mul(MOE_EPI_ONE - top, u);
    if (t < 1) t = 1;
    return moe_epi_q_mul(moe_epi_q_log2((uint64_t)t), MOE_EPI_ONE * 65536 / (b >> 16));
}

/* log2 of expert e's undisturbed weight, `rank` its place in the popularity order. */
static int64_t moe_epi_law_log2(moe_epi_law *y, int32_t e, int32_t rank)
{
    (void)e;
    if (y->w->kind == MOE_EP_LOAD_ZIPF)
        return -moe_epi_q_mul(moe_epi_q_of(y->w->alpha), moe_epi_q_log2((uint64_t)((int64_t)rank + 1) << 32));
    if (y->w->kind == MOE_EP_LOAD_POWER_LAW) return moe_epi_power_law_log2(y, moe_ep_rng_u64(&y->rng));
    if (y->w->kind == MOE_EP_LOAD_LOGNORMAL)
        return moe_epi_q_mul(moe_epi_q_mul(moe_epi_q_of(y->w->sigma), moe_epi_q_normal(&y->rng)), MOE_EPI_LOG2E_Q32);
    return 0;
}
/* The caller's macros again. */
#pragma pop_macro("B")
#pragma pop_macro("C")
#pragma pop_macro("D")
#pragma pop_macro("E")
#pragma pop_macro("F")
#pragma pop_macro("G")
#pragma pop_macro("H")
#pragma pop_macro("I")
#pragma pop_macro("K")
#pragma pop_macro("L")
#pragma pop_macro("M")
#pragma pop_macro("N")
#pragma pop_macro("P")
#pragma pop_macro("R")
#pragma pop_macro("S")
#pragma pop_macro("T")
#pragma pop_macro("W")
#pragma pop_macro("X")
#pragma pop_macro("Z")
#pragma pop_macro("small")
#pragma pop_macro("near")
#pragma pop_macro("far")
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
