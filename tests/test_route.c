/* tests/test_route.c - section 1: routers, gate, whole-batch routers, losses.
 * SPDX-License-Identifier: MIT
 *
 * usage: test_route [vector files of kind router or metrics]   (default: the bundled ones) */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* memfd_create */
#endif
#include "t.h"
#include "vec.h"

#include "moe_ep.h"
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#  include <sys/mman.h>
#  include <unistd.h>
#  define CAN_MAP 1
#else
#  define CAN_MAP 0
#endif

#ifndef KERNEL_CASES
#define KERNEL_CASES 40000 /* random routers on which all kernels must agree */
#endif

/* ---- vectors ------------------------------------------------------------------------------------------ */

static int says(const char *text, const char *word) { return strstr(text, word) != NULL; }

static float vec_float_or(const vec_case *c, const char *key, float otherwise)
{
    const vec_field *f = vec_find(c, key);
    return f && f->f ? (float)f->f[0] : otherwise;
}

static const vec_field *vec_any(const vec_case *c, const char *const *keys)
{
    int i;
    for (i = 0; keys[i]; i++)
        if (vec_find(c, keys[i])) return vec_find(c, keys[i]);
    return NULL;
}

/* An array under any of the names that the format notes use; NULL when the case has none. */
static float *vec_floats_any(const vec_case *c, const char *const *keys)
{
    const vec_field *f = vec_any(c, keys);
    return f ? vec_f32(f) : NULL;
}

static const char *const names_bias[] = {"bias", "select_bias", "cfg.bias", "cfg.select_bias", NULL};
static const char *const names_logit_bias[] = {"logit_bias", "gate_bias", "cfg.logit_bias", "cfg.gate_bias", NULL};
static const char *const names_expert_scale[] = {"per_expert_scale", "cfg.per_expert_scale", "expert_scale", NULL};
static const char *const names_table[] = {"table", "cfg.table", "hash_table", "tid2eid", "forced_ids", NULL};
static const char *const names_tokens[] = {"token_ids", "input_ids", "tokens", "token_id", NULL};

typedef struct route_case {
    moe_ep_router r;
    float *logits, *bias, *logit_bias, *expert_scale, *got_weights;
    int32_t *table, *tokens, *got_ids;
    int64_t T;
} route_case;

static moe_ep_score score_of(const char *text)
{
    if (says(text, "softplus")) return MOE_EP_SCORE_SQRT_SOFTPLUS;
    if (says(text, "softmax")) return MOE_EP_SCORE_SOFTMAX;
    if (says(text, "sigmoid")) return MOE_EP_SCORE_SIGMOID;
    return MOE_EP_SCORE_LOGIT;
}

static moe_ep_weight weight_of(const char *text)
{
    if (says(text, "softmax")) return MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED;
    if (says(text, "sigmoid")) return MOE_EP_WEIGHT_SIGMOID_OF_LOGIT;
    if (says(text, "one")) return MOE_EP_WEIGHT_ONE;
    return MOE_EP_WEIGHT_SCORE;
}

static void route_case_table(route_case *k, const vec_case *c)
{
    const vec_field *table = vec_any(c, names_table), *tokens = vec_any(c, names_tokens);
    k->r.select = MOE_EP_SELECT_TABLE;
    if (!table) { /* forced routing: the ids are the input, row t of token t */
        table = vec_get(c, "ids");
        tokens = NULL;
    }
    k->table = vec_i32(table);
    k->r.table = k->table;
    k->r.table_rows = table->count / k->r.top_k;
    if (tokens) k->tokens = vec_i32(tokens);
}

static route_case route_case_read(const vec_case *c)
{
    route_case k;
    moe_ep_router *r = &k.r;
    const char *renorm = vec_text(c, "cfg.renorm"), *mode = vec_text(c, "cfg.eps_mode");
    memset(&k, 0, sizeof k);
    k.T = vec_int(c, "T");
    r->num_experts = (int32_t)vec_int(c, "E");
    r->top_k = (int32_t)vec_int(c, "K");
    r->score = score_of(vec_text(c, "cfg.score"));
    r->select_on_logit = says(vec_text(c, "cfg.select_on"), "logit");
    r->weight = weight_of(vec_text(c, "cfg.weight"));
    r->logit_softcap = vec_float_or(c, "cfg.softcap", 0.0f);
    r->n_group = (int32_t)vec_int_or(c, "cfg.n_group", 0);
    r->topk_group = (int32_t)vec_int_or(c, "cfg.topk_group", 0);
    r->group_top_m = (int32_t)vec_int_or(c, "cfg.group_topm", 0);
    r->mask_zero = r->n_group > 0 && says(vec_text(c, "cfg.mask"), "zero");
    r->renorm = says(renorm, "sum") || says(renorm, "norm");
    if (says(renorm, "pnorm")) r->renorm_p = vec_float_or(c, "cfg.renorm_p", 1.0f);
    if (says(mode, "add")) r->eps_mode = MOE_EP_EPS_ADD;
    if (says(mode, "clamp")) r->eps_mode = MOE_EP_EPS_CLAMP;
    r->eps = vec_float_or(c, "cfg.eps", 0.0f);
    r->renorm_skip_k1 = (int32_t)vec_int_or(c, "cfg.renorm_skip_k1", 0);
    r->scale = vec_float_or(c, "cfg.scale", 1.0f);
    r->scale_only_without_renorm = (int32_t)vec_int_or(c, "cfg.scale_only_if_not_renorm", 0);
    r->sparsemixer_jitter = vec_float_or(c, "cfg.jitter_eps", 0.0f);
    r->num_null = (int32_t)vec_int_or(c, "cfg.num_null", 0);
    r->weight_on_input = (int32_t)vec_int_or(c, "cfg.weight_on_input", 0);
    if (says(vec_text(c, "cfg.select"), "sparsemixer")) r->select = MOE_EP_SELECT_SPARSEMIXER;
    if (says(vec_text(c, "cfg.select"), "table") || says(vec_text(c, "cfg.select"), "hash")) route_case_table(&k, c);
    r->select_bias = k.bias = vec_floats_any(c, names_bias);
    r->logit_bias = k.logit_bias = vec_floats_any(c, names_logit_bias);
    r->per_expert_scale = k.expert_scale = vec_floats_any(c, names_expert_scale);
    k.logits = vec_f32(vec_get(c, "logits"));
    k.got_ids = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(k.T * r->top_k));
    k.got_weights = (float *)t_alloc(sizeof(float) * (size_t)(k.T * r->top_k));
    return k;
}

static void route_case_free(route_case *k)
{
    free(k->logits);
    free(k->bias);
    free(k->logit_bias);
    free(k->expert_scale);
    free(k->table);
    free(k->tokens);
    free(k->got_ids);
    free(k->got_weights);
}

static void check_router_case(const vec_case *c)
{
    route_case k = route_case_read(c);
    const vec_field *ids = vec_get(c, "ids"), *weights = vec_find(c, "weights");
    moe_ep_error err;
    double rtol = vec_find(c, "rtol") ? vec_float(c, "rtol") : 1e-5;
    int64_t i = 0;
    int isa;
    for (isa = MOE_EP_ISA_PORTABLE; isa <= MOE_EP_ISA_AVX512 && !t_failed_here; isa++) { /* every path */
        k.r.isa_max = (moe_ep_isa)isa;
        CHECK_I64(moe_ep_route(&k.r, k.logits, k.T, k.tokens, k.got_ids, k.got_weights, &err), MOE_EP_OK);
        for (i = 0; i < ids->count && !t_failed_here; i++) CHECK_I64(k.got_ids[i], ids->i[i]);
        for (i = 0; weights && i < weights->count && !t_failed_here; i++)
            CHECK_NEAR(k.got_weights[i], weights->f[i], rtol, 1e-37);
    }
    if (t_failed_here) printf("    case %s, element %lld\n", c->name, (long long)i - 1);
    route_case_free(&k);
}

TEST(router_vectors)
{
    const char *path;
    int i, n, seen = 0;
    for (i = 0; (path = vec_path("tests/vectors/routers.vec", i)) != NULL; i++) {
        vec_file v = vec_read(path);
        for (n = 0; strcmp(v.kind, "router") == 0 && n < v.count && !t_failed_here; n++, seen++)
            check_router_case(&v.cases[n]);
        vec_free(&v);
    }
    if (seen == 0) SKIP("no file of kind router was named");
}

/* ---- vectors of kind metrics: the operations of section 1 --------------------------------------------- */

static void check_loss(const vec_case *c, const char *key, double got)
{
    if (vec_find(c, key)) CHECK_NEAR(got, vec_float(c, key), 4e-6, 1e-9);
}

static double aux_of(moe_ep_aux_desc d, moe_ep_aux kind)
{
    moe_ep_error err;
    d.kind = kind;
    return moe_ep_aux_loss(&d, NULL, &err);
}

static void check_aux_losses(const vec_case *c)
{
    moe_ep_aux_desc d;
    moe_ep_router soft, sigm;
    int64_t T = vec_int(c, "T");
    int32_t E = (int32_t)vec_int(c, "E"), K = (int32_t)vec_int(c, "K"), *ids = vec_i32(vec_get(c, "ids"));
    float *logits = vec_f32(vec_get(c, "logits"));
    float *scores = (float *)t_alloc(sizeof(float) * (size_t)(T * E));
    soft = moe_ep_router_qwen2(E, K);
    sigm = moe_ep_router_minimax_m2(E, K);
    CHECK_I64(moe_ep_scores(&soft, logits, T, scores, NULL), MOE_EP_OK);
    memset(&d, 0, sizeof d);
    d.num_tokens = T;
    d.num_experts = E;
    d.top_k = K;
    d.scores = scores;
    d.ids = ids;
    check_loss(c, "megatron_aux_coeff1", aux_of(d, MOE_EP_AUX_SWITCH));
    check_loss(c, "megablocks_lb", aux_of(d, MOE_EP_AUX_SWITCH));
    check_loss(c, "deepspeed_topk_l_aux", aux_of(d, MOE_EP_AUX_SWITCH));
    check_loss(c, "hf_mixtral_load_balancing", aux_of(d, MOE_EP_AUX_EVERY_CHOICE));
    check_loss(c, "flaxformer_load_balancing", aux_of(d, MOE_EP_AUX_ANY_CHOICE));
    if (vec_find(c, "first_choice")) { /* ids are listed by expert, not by score */
        moe_ep_aux_desc one = d;
        int32_t *first = vec_i32(vec_get(c, "first_choice"));
        one.ids = first;
        one.top_k = 1;
        check_loss(c, "tutel_gshard_loss", aux_of(one, MOE_EP_AUX_FIRST_CHOICE));
        check_loss(c, "deepspeed_top1_l_aux", aux_of(one, MOE_EP_AUX_FIRST_CHOICE));
        check_loss(c, "deepspeed_top2_l_aux", aux_of(one, MOE_EP_AUX_FIRST_CHOICE));
        free(first);
    }
    check_loss(c, "z_loss_mean", moe_ep_z_loss(logits, T, E, NULL));
    check_loss(c, "flaxformer_z_loss", moe_ep_z_loss(logits, T, E, NULL));
    check_loss(c, "importance_cv2_sample", moe_ep_importance_loss(scores, T, E, NULL, NULL));
    check_loss(c, "router_entropy_mean_nats", moe_ep_router_entropy(scores, T, E, NULL));
    d.num_sequences = vec_int_or(c, "seq_aux_batch", 1);
    d.interleaved = 1; /* Megatron's tokens are (sequence, batch) */
    check_loss(c, "megatron_seq_aux_coeff1", aux_of(d, MOE_EP_AUX_SEQUENCE));
    CHECK_I64(moe_ep_scores(&sigm, logits, T, scores, NULL), MOE_EP_OK);
    d.normalize_scores = 1;
    check_loss(c, "megatron_aux_sigmoid_coeff1", aux_of(d, MOE_EP_AUX_SWITCH));
    free(ids);
    free(logits);
    free(scores);
}

static void check_bias(const vec_case *c, const char *key, int centred)
{
    const vec_field *want = vec_find(c, key), *counts = vec_get(c, "counts");
    float *bias = vec_f32(vec_get(c, "bias"));
    int64_t i;
    if (want) {
        float rate = (float)vec_float(c, "rate");
        CHECK_I64(moe_ep_bias_update(counts->i, (int32_t)counts->count, rate, centred, bias, NULL), MOE_EP_OK);
        for (i = 0; i < want->count; i++) CHECK_NEAR(bias[i], want->f[i], 1e-6, 1e-9);
    }
    free(bias);
}

static int is_zero(const vec_field *f)
{
    int64_t i;
    for (i = 0; i < f->count; i++)
        if (f->f[i] > 0.0 || f->f[i] < 0.0) return 0;
    return 1;
}

/* Row n of a trace with a row per step, whatever its number of rows; NULL where it ends. */
static const double *trace_row(const vec_field *f, int64_t width, int64_t n)
{
    return f && f->count > width && (n + 1) * width <= f->count ? f->f + n * width : NULL;
}

/* Index of the MaxVio after n updates: one for every step, for every so many, or for the steps listed; -1 = none. */
static int64_t vio_index(const vec_field *vio, const vec_field *length, int64_t steps, int64_t n)
{
    int64_t i, every = vio && vio->count > 1 && vio->count < steps ? steps / (vio->count - 1) : 1;
    if (!vio) return -1;
    if (!length || length->count == 1) return n % every == 0 && n / every < vio->count ? n / every : -1;
    for (i = 0; i < length->count && i < vio->count; i++)
        if (length->i[i] == n) return i;
    return -1;
}

/* One row, that of the counts after the last update or before it: sources count at either end of a step. */
static int row_is(const vec_field *f, const double *got, int64_t width, double slack)
{
    int64_t i;
    for (i = 0; i < width; i++)
        if (!(fabs(got[i] - f->f[i]) <= slack * (1.0 + fabs(f->f[i])))) return 0;
    return 1;
}

/* Steps of: route with the bias, count, move the bias.  Row n of a trace is the state after n updates.  Without logits
 * the counts of the case are taken. */
static void check_bias_trace(const vec_case *c)
{
    static const char *const inputs[] = {"logits", "scores", "router_logits", NULL};
    static const char *const rates[] = {"rate", "u", "update_rate", "bias_update_rate", NULL};
    static const char *const lengths[] = {"steps", "num_steps", "n_steps", NULL};
    static const char *const vios[] = {"maxvio", "max_vio", "maxvio_trace", "trace", "maxvio_per_step", NULL};
    static const char *const last[] = {"final_bias", "bias_final", "bias_after", "bias_last", NULL};
    static const char *const first[] = {"bias0", "initial_bias", "bias_init", "bias_before", NULL};
    static const char *const loads[] = {"counts", "loads", "counts_trace", "final_counts", "counts_final", NULL};
    const vec_field *in = vec_any(c, inputs), *vio = vec_any(c, vios), *end = vec_any(c, last);
    const vec_field *start = vec_any(c, first), *bias_rows = vec_find(c, "bias"), *want = vec_any(c, loads);
    const char *score = vec_text(c, vec_find(c, "cfg.score") ? "cfg.score" : "score");
    const int64_t E = in ? in->dim[in->ndim - 1] : want ? want->dim[want->ndim - 1] : 0;
    const int64_t T = in ? in->dim[in->ndim - 2] : 0, K = vec_int_or(c, "K", vec_int_or(c, "k", 1));
    const vec_field *length = vec_any(c, lengths);
    const int64_t steps = length ? length->i[length->count - 1] : vio ? vio->count - 1 : 0;
    const double rate = vec_any(c, rates) ? vec_any(c, rates)->f[0] : 0.001;
    moe_ep_router r;
    float *l, *bias;
    int32_t *ids;
    int64_t *count, n, e, at, compared = 0;
    double *now, *then; /* the counts after n updates, and one update before */
    CHECK(E > 0 && steps > 0 && (in != NULL || (want->ndim == 2 && want->dim[0] >= steps)));
    if (t_failed_here) return;
    if (!start && bias_rows && bias_rows->count == E && (end || is_zero(bias_rows))) start = bias_rows;
    if (!end && bias_rows && bias_rows->count == E && start != bias_rows) end = bias_rows;
    memset(&r, 0, sizeof r);
    r.num_experts = (int32_t)E;
    r.top_k = (int32_t)K;
    r.score = says(score, "softmax") ? MOE_EP_SCORE_SOFTMAX : MOE_EP_SCORE_SIGMOID;
    if (in && !vec_find(c, "logits") && vec_find(c, "scores")) r.score = MOE_EP_SCORE_LOGIT; /* taken as they are */
    l = in ? vec_f32(in) : NULL;
    bias = (float *)t_alloc(sizeof(float) * (size_t)E);
    ids = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(T * K + 1));
    count = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)E);
    now = (double *)t_alloc(sizeof(double) * (size_t)E);
    then = (double *)t_alloc(sizeof(double) * (size_t)E);
    for (e = 0; e < E; e++) bias[e] = start ? (float)start->f[e] : 0.0f;
    r.select_bias = bias;
    for (n = 0; n <= steps && !t_failed_here; n++) {
        const double *w;
        if (in) {
            const int64_t batch = in->ndim == 3 ? n % in->dim[0] : 0; /* a batch for every step, or one for all */
            CHECK_I64(moe_ep_route(&r, l + batch * T * E, T, NULL, ids, NULL, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_expert_loads(ids, T * K, (int32_t)E, count, NULL, NULL), MOE_EP_OK);
        } else if (n < want->dim[0]) {
            for (e = 0; e < E; e++) count[e] = want->i[n * E + e];
        }
        for (e = 0; e < E; e++) then[e] = now[e], now[e] = (double)count[e];
        if ((at = in || n < want->dim[0] ? vio_index(vio, length, steps, n) : -1) >= 0) {
            CHECK_NEAR(moe_ep_imbalance(count, (int32_t)E, NULL) - 1.0, vio->f[at], 1e-6, 1e-6);
            compared++;
        }
        w = in ? trace_row(want, E, n) : NULL;
        for (e = 0; w && e < E; e++, compared++) CHECK_NEAR(count[e], w[e], 0, 0);
        w = trace_row(bias_rows, E, n);
        for (e = 0; w && e < E; e++, compared++) CHECK_NEAR(bias[e], w[e], 1e-6, 1e-9);
        if (n < steps)
            CHECK_I64(moe_ep_bias_update(count, (int32_t)E, (float)rate, 0, bias, NULL), MOE_EP_OK);
        if (t_failed_here) printf("    after %lld updates\n", (long long)n);
    }
    for (e = 0; end && end->count == E && e < E; e++, compared++) CHECK_NEAR(bias[e], end->f[e], 1e-6, 1e-9);
    if (in && want && want->count == E) {
        CHECK(row_is(want, now, E, 0.0) || row_is(want, then, E, 0.0));
        compared++;
    }
    CHECK(compared > 0);
    free(l);
    free(bias);
    free(ids);
    free(count);
    free(now);
    free(then);
}

/* Rows of logits or scores whatever the case calls them. */
static void check_sinkhorn(const vec_case *c)
{
    static const char *const inputs[] = {"logits", "cost", "scores_in", NULL};
    static const char *const outputs[] = {"sinkhorn", "scores", "result", "out", "output", "normalized", NULL};
    static const char *const chosen[] = {"ids", "ids_train", "topk", "top_k_ids", NULL};
    const vec_field *in = vec_any(c, inputs), *out = vec_any(c, outputs), *ids = vec_any(c, chosen);
    float *logits, *scores;
    int64_t i, T, E;
    if (!in || in->ndim != 2) return;
    T = in->dim[0];
    E = in->dim[1];
    logits = vec_f32(in);
    scores = (float *)t_alloc(sizeof(float) * (size_t)(T * E));
    CHECK_I64(moe_ep_sinkhorn(logits, T, (int32_t)E, 0.0, 0, scores, NULL, NULL, NULL), MOE_EP_OK);
    for (i = 0; out && out->count == T * E && i < T * E; i++) CHECK_NEAR(scores[i], out->f[i], 1e-4, 1e-9);
    if (ids && ids->ndim == 2) {
        moe_ep_router r = moe_ep_router_sinkhorn((int32_t)E, (int32_t)ids->dim[1]);
        int32_t *got = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)ids->count);
        r.select = MOE_EP_SELECT_KEYS;
        r.keys = scores;
        CHECK_I64(moe_ep_route(&r, logits, T, NULL, got, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < ids->count; i++) CHECK_I64(got[i], ids->i[i]);
        free(got);
    }
    free(logits);
    free(scores);
}

/* The quantile puts exact ties on the border, and the reference's top-k leaves ties open: ids must agree
 * up to equal keys. */
static void check_ids_with_beta(const vec_field *scores, const float *beta, int32_t K, const vec_field *want)
{
    moe_ep_router r;
    int64_t i, T = scores->dim[0];
    int32_t E = (int32_t)scores->dim[1], *got = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(T * K));
    float *minus = (float *)t_alloc(sizeof(float) * (size_t)E), *l = vec_f32(scores);
    for (i = 0; i < E; i++) minus[i] = -beta[i];
    memset(&r, 0, sizeof r);
    r.num_experts = E;
    r.top_k = K;
    r.select_bias = minus;
    CHECK_I64(moe_ep_route(&r, l, T, NULL, got, NULL, NULL), MOE_EP_OK);
    for (i = 0; want && i < want->count; i++) {
        const float *row = l + i / K * E;
        CHECK_NEAR(row[got[i]] + minus[got[i]], row[want->i[i]] + minus[want->i[i]], 0.0, 0.0);
    }
    free(got);
    free(minus);
    free(l);
}

static void check_quantile(const vec_case *c)
{
    const vec_field *scores = vec_get(c, "scores"), *want = vec_get(c, "beta1");
    int32_t K = (int32_t)vec_int(c, "K"), E = (int32_t)scores->dim[1];
    float *l = vec_f32(scores), *beta = (float *)t_alloc(sizeof(float) * (size_t)E);
    int64_t i;
    check_ids_with_beta(scores, beta, K, vec_find(c, "ids0"));
    CHECK_I64(moe_ep_quantile_update(l, scores->dim[0], E, K, beta, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < want->count; i++) CHECK_NEAR(beta[i], want->f[i], 1e-6, 1e-9);
    check_ids_with_beta(scores, beta, K, vec_find(c, "ids_with_beta1"));
    free(l);
    free(beta);
}

static int check_metrics_case(const vec_case *c)
{
    const char *op = vec_text(c, "op");
    if (strcmp(op, "aux_losses") == 0) check_aux_losses(c);
    else if (strcmp(op, "quantile_balancing") == 0) check_quantile(c);
    else if (says(op, "sinkhorn")) check_sinkhorn(c);
    else if (strcmp(op, "bias_update") == 0) {
        check_bias(c, "megatron", 0);
        check_bias(c, "torchtitan_centred", 1);
    } else if (vec_is_bias_trace(op)) {
        check_bias_trace(c);
    } else {
        return 0;
    }
    if (t_failed_here) printf("    case %s\n", c->name);
    return 1;
}

TEST(loss_bias_sinkhorn_quantile_vectors)
{
    const char *path;
    int i, n, seen = 0;
    for (i = 0; (path = vec_path("tests/vectors/metrics.vec", i)) != NULL; i++) {
        vec_file v = vec_read(path);
        for (n = 0; strcmp(v.kind, "metrics") == 0 && n < v.count && !t_failed_here; n++)
            seen += check_metrics_case(&v.cases[n]);
        vec_free(&v);
    }
    if (seen == 0) SKIP("no file of kind metrics was named");
}

/* ---- an independent router: double scores are not needed, but every step is done the long way ---------- */

typedef struct oracle {
    const moe_ep_router *r;
    const float *logits;
    int masked[8192];
    float x[8192], score[8192], key[8192];
    int usable[8192], closed[8192], order[8192];
} oracle;

static void oracle_scores(oracle *o)
{
    const moe_ep_router *r = o->r;
    float max = -1e30f, sum = 0.0f;
    int e, E = r->num_experts;
    for (e = 0; e < E; e++) {
        o->masked[e] = !(o->logits[e] > -1e30f);
        o->x[e] = o->masked[e] ? 0.0f : o->logits[e];
        if (r->logit_softcap > 0.0f) o->x[e] = r->logit_softcap * tanhf(o->x[e] / r->logit_softcap);
        if (r->logit_bias) o->x[e] += r->logit_bias[e];
        if (!o->masked[e] && o->x[e] > max) max = o->x[e];
    }
    for (e = 0; e < E; e++) sum += o->masked[e] ? 0.0f : expf(o->x[e] - max);
    for (e = 0; e < E; e++) {
        float x = o->x[e], s = x;
        if (r->score == MOE_EP_SCORE_SOFTMAX) s = expf(x - max) / sum;
        if (r->score == MOE_EP_SCORE_SIGMOID) s = 1.0f / (1.0f + expf(-x));
        if (r->score == MOE_EP_SCORE_SQRT_SOFTPLUS) s = sqrtf(log1pf(expf(x)));
        o->score[e] = s;
        o->key[e] = (r->select_on_logit ? x : s) + (r->select_bias ? r->select_bias[e] : 0.0f);
        if (o->masked[e]) o->key[e] = -1e30f;
        o->usable[e] = 1;
        o->closed[e] = 0;
    }
}

static int oracle_before(const float *key, int a, int b) { return key[a] > key[b] || (key[a] == key[b] && a < b); }

/* order[0..n-1] = 0..n-1 by descending key, lowest first on ties; insertion sort. */
static void oracle_sort(const float *key, int *order, int n)
{
    int i, j;
    for (i = 0; i < n; i++) {
        for (j = i; j > 0 && oracle_before(key, i, order[j - 1]); j--) order[j] = order[j - 1];
        order[j] = i;
    }
}

static void oracle_groups(oracle *o)
{
    const moe_ep_router *r = o->r;
    float group[512];
    int g, e, m, size, order[512], within[8192];
    if (r->n_group <= 1) return;
    size = r->num_experts / r->n_group;
    for (g = 0; g < r->n_group; g++) {
        oracle_sort(o->key + g * size, within, size);
        group[g] = 0.0f;
        for (m = 0; m < (r->group_top_m > 0 ? r->group_top_m : 1); m++) group[g] += o->key[g * size + within[m]];
        if (group[g] < -1e29f) group[g] = -1e30f; /* one masked expert or two: -Inf */
    }
    oracle_sort(group, order, r->n_group);
    for (g = 0; r->group_top_k > 0 && g < r->n_group; g++) { /* the best of each group only */
        oracle_sort(o->key + g * size, within, size);
        for (m = r->group_top_k; m < size; m++) o->usable[g * size + within[m]] = 0;
    }
    for (g = r->topk_group; g < r->n_group; g++)
        for (e = order[g] * size; e < (order[g] + 1) * size; e++) {
            if (!r->mask_zero) o->usable[e] = 0;
            else if (!o->masked[e]) o->key[e] = 0.0f;
            o->closed[e] = 1;
        }
}

static void oracle_token(oracle *o, int *ids, double *w)
{
    const moe_ep_router *r = o->r;
    double sum = 0.0, scale = r->scale != 0.0f ? (double)r->scale : 1.0;
    float top = -1e30f;
    int i, j, k = 0, norm = r->renorm && !(r->renorm_skip_k1 && r->top_k == 1);
    oracle_scores(o);
    oracle_groups(o);
    oracle_sort(o->key, o->order, r->num_experts);
    for (i = 0; k < r->top_k; i++)
        if (o->usable[o->order[i]]) ids[k++] = o->order[i];
    for (j = 0; j < k; j++)
        if (!o->masked[ids[j]] && o->x[ids[j]] > top) top = o->x[ids[j]];
    for (j = 0; j < k; j++) {
        double x = (double)o->x[ids[j]];
        w[j] = (double)o->score[ids[j]];
        if (r->weight == MOE_EP_WEIGHT_SIGMOID_OF_LOGIT) w[j] = 1.0 / (1.0 + exp(-x));
        if (r->weight == MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED) w[j] = exp(x - (double)top);
        if (o->masked[ids[j]]) w[j] = 0.0;
        if (r->weight == MOE_EP_WEIGHT_ONE) w[j] = 1.0;
        sum += w[j];
    }
    for (j = 0; j < k; j++) {
        double p = r->renorm_p > 0.0f ? (double)r->renorm_p : 1.0, n = 0.0;
        if (r->weight == MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED && sum > 0.0) w[j] /= sum;
        if (!norm || j > 0) continue;
        for (i = 0; i < k; i++) {
            double v = r->weight == MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED && sum > 0.0 && i > 0 ? w[i] / sum : w[i];
            if (r->mask_zero == 2 && o->closed[ids[i]]) v = 0.0;
            n += p == 1.0 ? v : pow(fabs(v), p);
        }
        n = p == 1.0 ? n : pow(n, 1.0 / p);
        if (r->eps_mode == MOE_EP_EPS_ADD) n += (double)r->eps;
        if (r->eps_mode == MOE_EP_EPS_CLAMP && n < (double)r->eps) n = (double)r->eps;
        scale = r->scale_only_without_renorm ? 1.0 : scale;
        scale = n != 0.0 ? scale / n : 0.0;
    }
    for (j = 0; j < k; j++) w[j] *= scale * (r->per_expert_scale ? (double)r->per_expert_scale[ids[j]] : 1.0);
    for (j = 0; j < k; j++)
        if (r->mask_zero == 2 && o->closed[ids[j]]) w[j] = 0.0;
}

/* ---- random routers against it -------------------------------------------------------------------------- */

typedef struct random_case {
    moe_ep_router r;
    float logits[3 * 96], bias[96], gate_bias[96], scale[96];
    int T;
} random_case;

/* Multiples of 1/4: many exact ties, and different values stay apart in every score. */
static float coarse(uint64_t *s, int range) { return (float)(t_below(s, 8 * range + 1) - 4 * range) / 4.0f; }

/* The same off the origin: no x and -x, whose sigmoids add up to 1 whatever x, a tie that only rounding breaks. */
static float coarse_logit(uint64_t *s, int range) { return coarse(s, range) + 0.0625f; }

static void random_router(uint64_t *s, random_case *c)
{
    static const int32_t groups[] = {0, 0, 1, 2, 4, 8};
    moe_ep_router *r = &c->r;
    int i, size, room;
    memset(c, 0, sizeof *c);
    r->n_group = groups[t_below(s, 6)];
    size = 2 + (int)t_below(s, 11);
    r->num_experts = r->n_group > 1 ? r->n_group * size : 1 + (int32_t)t_below(s, 96);
    r->topk_group = r->n_group > 1 ? 1 + (int32_t)t_below(s, r->n_group) : (int32_t)t_below(s, 2);
    r->group_top_m = r->n_group > 1 ? (int32_t)t_below(s, 3) : 0;
    r->mask_zero = (int32_t)t_below(s, 3);
    room = r->n_group > 1 && !r->mask_zero ? r->topk_group * size : r->num_experts;
    r->top_k = 1 + (int32_t)t_below(s, t_below(s, 3) ? (room < 8 ? room : 8) : room);
    if (!r->mask_zero && t_below(s, 3) == 0) { /* the best of each chosen group */
        r->group_top_k = r->n_group > 1 ? 1 + (int32_t)t_below(s, size) : r->top_k;
        if (r->n_group > 1) r->top_k = r->topk_group * r->group_top_k;
    }
    r->score = (moe_ep_score)t_below(s, 4);
    r->weight = (moe_ep_weight)t_below(s, 4);
    r->select_on_logit = (int32_t)t_below(s, 2);
    r->logit_softcap = t_below(s, 5) == 0 ? 3.0f : 0.0f; /* far from linear */
    r->renorm = (int32_t)t_below(s, 2);
    r->renorm_p = (float)t_below(s, 3);
    r->renorm_skip_k1 = (int32_t)t_below(s, 2);
    r->eps_mode = (moe_ep_eps_mode)t_below(s, 3);
    r->eps = 1e-6f;
    r->scale = (float)t_below(s, 4) / 2.0f;
    r->scale_only_without_renorm = (int32_t)t_below(s, 2);
    for (i = 0; i < r->num_experts; i++) {
        c->bias[i] = coarse(s, 1);
        c->gate_bias[i] = coarse(s, 1);
        c->scale[i] = 0.5f + (float)t_unit(s);
    }
    r->select_bias = t_below(s, 2) ? c->bias : NULL;
    r->logit_bias = t_below(s, 3) == 0 && !(r->logit_softcap > 0.0f) ? c->gate_bias : NULL; /* no near ties */
    r->per_expert_scale = t_below(s, 3) == 0 ? c->scale : NULL;
    c->T = 1 + (int)t_below(s, 3);
    for (i = 0; i < c->T * r->num_experts; i++) {
        c->logits[i] = coarse_logit(s, 4);
        if (t_below(s, 23) == 0) c->logits[i] = -INFINITY;
    }
}

TEST(random_routers_equal_the_long_way)
{
    static oracle o;
    random_case c;
    uint64_t s = t_seed;
    int n, t, j, ids[96];
    int32_t got[3 * 96];
    float w[3 * 96];
    double want[96], worst;
    for (n = 0; n < (t_slow() > 1 ? 3000 : 20000); n++) {
        random_router(&s, &c);
        CHECK_I64(moe_ep_route(&c.r, c.logits, c.T, NULL, got, w, NULL), MOE_EP_OK);
        for (t = 0; t < c.T; t++) {
            o.r = &c.r;
            o.logits = c.logits + t * c.r.num_experts;
            oracle_token(&o, ids, want);
            for (worst = 0.0, j = 0; j < c.r.top_k; j++) worst = fabs(want[j]) > worst ? fabs(want[j]) : worst;
            for (j = 0; j < c.r.top_k && !t_failed_here; j++) {
                CHECK_I64(got[t * c.r.top_k + j], ids[j]);
                /* raw logits as weights may cancel in their sum; then only the larger ones are well defined */
                if (c.r.score != MOE_EP_SCORE_LOGIT || c.r.weight != MOE_EP_WEIGHT_SCORE || !c.r.renorm)
                    CHECK_NEAR(w[t * c.r.top_k + j], want[j], 3e-6, 1e-30 + 1e-9 * worst);
            }
        }
        STOP_IF_FAILED("random case %d", n);
    }
}

/* ---- kernels: the same ids and the same bits from all of them ------------------------------------------- */

typedef struct kernel_case {
    moe_ep_router r;
    int64_t T, stride;
    float *logits, *bias, *gate_bias, *keys;
} kernel_case;

enum { KERNEL_EXPERTS = 4096, KERNEL_VALUES = 2 * KERNEL_EXPERTS + 64 };

/* Values of many kinds: smooth, with ties, rounded to bf16, saturating, all equal, apart by single bits. */
static float kernel_value(uint64_t *s, int kind)
{
    float v = (float)((t_unit(s) + t_unit(s) + t_unit(s) - 1.5) * 4.0);
    uint32_t bits;
    if (kind == 1) v = coarse(s, 3);
    if (kind == 2 || kind == 6) {
        memcpy(&bits, &v, sizeof bits);
        if (kind == 2) bits &= 0xffff0000u;
        else bits = 0x3f800000u + (uint32_t)t_below(s, 40); /* neighbours of 1 */
        memcpy(&v, &bits, sizeof v);
    }
    if (kind == 3) v *= 40.0f;
    if (kind == 4) v = 0.5f;
    if (kind == 5) v *= 1e-6f;
    if (kind == 7) v = t_below(s, 40) == 0 ? v : -30.0f - 80.0f * (float)t_unit(s);
    if (kind == 8) v *= 1e37f;
    return v;
}

static void kernel_case_draw(uint64_t *s, kernel_case *c, int big)
{
    static const int32_t sizes[] = {256, 128, 64, 160, 384, 512, 60, 72, 16, 8};
    moe_ep_router *r = &c->r;
    int64_t i, room;
    int kind = (int)t_below(s, 9), holes = t_below(s, 4) == 0;
    memset(r, 0, sizeof *r);
    r->num_experts = t_below(s, 3) ? sizes[t_below(s, 10)] : 1 + (int32_t)t_below(s, 600);
    if (big) r->num_experts = 1 + (int32_t)t_below(s, KERNEL_EXPERTS);
    if (t_below(s, 3) == 0) {
        r->n_group = 1 + (int32_t)t_below(s, 40);
        r->num_experts = (r->num_experts + r->n_group - 1) / r->n_group * r->n_group;
        if (r->n_group < 9 && t_below(s, 2) && !big) r->num_experts = r->n_group * 16 * (1 + (int32_t)t_below(s, 4));
        if (r->num_experts > KERNEL_EXPERTS) r->num_experts = r->n_group;
        r->topk_group = 1 + (int32_t)t_below(s, r->n_group);
        r->group_top_m = (int32_t)t_below(s, r->num_experts / r->n_group < 3 ? r->num_experts / r->n_group + 1 : 4);
        r->mask_zero = (int32_t)t_below(s, 3);
    }
    room = r->n_group > 1 && !r->mask_zero ? (int64_t)r->num_experts / r->n_group * r->topk_group : r->num_experts;
    r->top_k = 1 + (int32_t)t_below(s, t_below(s, 4) == 0 ? room : room < 10 ? room : 10);
    r->score = (moe_ep_score)t_below(s, 4);
    r->weight = (moe_ep_weight)t_below(s, 3);
    r->select_on_logit = t_below(s, 6) == 0;
    r->logit_softcap = t_below(s, 8) == 0 ? 30.0f : 0.0f;
    r->renorm = (int32_t)t_below(s, 2);
    r->nan_as_masked = t_below(s, 5) == 0;
    r->scale = t_below(s, 2) ? 2.5f : 0.0f;
    r->select_bias = t_below(s, 2) ? c->bias : NULL;
    r->logit_bias = t_below(s, 5) == 0 && kind < 8 ? c->gate_bias : NULL;
    if (t_below(s, 20) == 0) r->select = MOE_EP_SELECT_KEYS;
    r->keys = c->keys;
    c->T = big ? 1 : 1 + t_below(s, 3);
    if (c->T * (r->num_experts + 16) > KERNEL_VALUES) c->T = 1;
    c->stride = r->num_experts + (t_below(s, 4) == 0 ? t_below(s, 16) : 0);
    r->logits_stride = c->stride;
    for (i = 0; i < r->num_experts; i++) {
        c->bias[i] = kind == 4 ? 0.0f : (float)t_unit(s) * (t_below(s, 50) ? 0.1f : 5.0f);
        c->gate_bias[i] = coarse(s, 1);
    }
    for (i = 0; i < c->T * c->stride; i++) {
        c->logits[i] = kernel_value(s, kind);
        if (holes && t_below(s, 5) == 0) c->logits[i] = r->nan_as_masked && t_below(s, 2) ? NAN : -INFINITY;
    }
    for (i = 0; i < c->T * r->num_experts; i++) c->keys[i] = c->logits[i] < 1e30f ? c->logits[i] : 0.0f;
}

static void kernels_agree(uint64_t *s, kernel_case *c, int big, int best)
{
    static int32_t want[3 * KERNEL_EXPERTS], ids[3 * KERNEL_EXPERTS];
    static float want_w[3 * KERNEL_EXPERTS], w[3 * KERNEL_EXPERTS];
    size_t bytes;
    int isa;
    int64_t i, n;
    kernel_case_draw(s, c, big);
    n = c->T * c->r.top_k;
    bytes = (size_t)n * sizeof(float);
    c->r.isa_max = MOE_EP_ISA_PORTABLE;
    CHECK_I64(moe_ep_route(&c->r, c->logits, c->T, NULL, want, want_w, NULL), MOE_EP_OK);
    for (isa = (int)MOE_EP_ISA_AVX2; isa <= best; isa++) {
        c->r.isa_max = (moe_ep_isa)isa;
        CHECK_I64(moe_ep_route(&c->r, c->logits, c->T, NULL, ids, w, NULL), MOE_EP_OK);
        for (i = 0; i < n && !t_failed_here; i++) CHECK_I64(ids[i], want[i]);
        CHECK(memcmp(w, want_w, bytes) == 0);
        if (t_failed_here)
            printf("    isa %d E %d K %d T %d score %d weight %d groups %d,%d,%d bias %d\n", isa,
                   c->r.num_experts, c->r.top_k,
                   (int)c->T, (int)c->r.score, (int)c->r.weight, c->r.n_group, c->r.topk_group, c->r.group_top_m,
                   c->r.select_bias != NULL);
    }
}

TEST(kernels_give_the_same_bits)
{
    kernel_case c;
    uint64_t s = t_seed + 5;
    const int best = (int)moe_ep_isa_best(), cases = t_slow() > 1 && KERNEL_CASES > 2000 ? 2000 : KERNEL_CASES;
    int n;
    c.logits = (float *)t_alloc(sizeof(float) * 3 * KERNEL_VALUES);
    c.keys = (float *)t_alloc(sizeof(float) * 3 * KERNEL_VALUES);
    c.bias = (float *)t_alloc(sizeof(float) * KERNEL_VALUES);
    c.gate_bias = (float *)t_alloc(sizeof(float) * KERNEL_VALUES);
    for (n = 0; n < cases && !t_failed_here; n++) kernels_agree(&s, &c, n % 500 == 0, best);
    if (t_failed_here) printf("    random case %d\n", n - 1);
    free(c.logits);
    free(c.keys);
    free(c.bias);
    free(c.gate_bias);
}

/* The best keys stand in few lanes (experts of one number mod 16), in several groups: a lane hides some of them. */
TEST(best_keys_crowded_in_one_lane)
{
    static float logits[512], bias[512], w[2][16];
    static int32_t ids[2][16];
    const int best = (int)moe_ep_isa_best();
    uint64_t s = t_seed + 13;
    int n, e, isa;
    for (n = 0; n < 4000; n++) {
        int32_t groups = 1 << t_below(&s, 4), size = 16 * (int32_t)(1 + t_below(&s, 4));
        int32_t lane = (int32_t)t_below(&s, 16);
        moe_ep_router r = moe_ep_router_minimax_m2(groups * size, 1 + (int32_t)t_below(&s, size < 14 ? size : 14));
        if (groups > 1) {
            r.n_group = groups;
            r.topk_group = 1 + (int32_t)t_below(&s, groups);
            r.group_top_m = 1 + (int32_t)t_below(&s, 2);
            r.mask_zero = (int32_t)t_below(&s, 3);
        } else if (n % 2) {
            r.score = MOE_EP_SCORE_SOFTMAX;
        }
        if (r.score == MOE_EP_SCORE_SIGMOID && n % 3) r.select_bias = bias;
        for (e = 0; e < r.num_experts; e++) {
            int chosen = e % 16 == lane || (n % 5 == 0 && e % 16 == (lane + 3) % 16);
            logits[e] = (float)(2.0 * t_unit(&s) + (chosen && t_below(&s, 8) ? 2.0 : 0.0));
            bias[e] = 0.1f * (float)t_unit(&s);
        }
        r.isa_max = MOE_EP_ISA_PORTABLE;
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids[0], w[0], NULL), MOE_EP_OK);
        for (isa = (int)MOE_EP_ISA_AVX2; isa <= best; isa++) {
            r.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids[1], w[1], NULL), MOE_EP_OK);
            for (e = 0; e < r.top_k; e++) CHECK_I64(ids[1][e], ids[0][e]);
            CHECK(memcmp(w[0], w[1], (size_t)r.top_k * sizeof(float)) == 0);
        }
        STOP_IF_FAILED("random case %d", n);
    }
}

/* Every kernel finds the first bad value wherever it stands, and leaves the outputs alone. */
TEST(kernels_name_the_bad_logit)
{
    static float logits[7 * 80], w[7 * 4];
    static int32_t ids[7 * 4];
    moe_ep_router r = moe_ep_router_qwen2(70, 4);
    moe_ep_error err;
    int isa, t, e;
    uint64_t s = t_seed + 6;
    for (isa = 1; isa <= (int)moe_ep_isa_best(); isa++) {
        for (t = 0; t < 7 * 70; t++) {
            const float bad[] = {NAN, INFINITY, -NAN};
            r.isa_max = (moe_ep_isa)isa;
            r.logits_stride = t % 2 ? 80 : 70;
            for (e = 0; e < 7 * 80; e++) logits[e] = e % 11 == 0 ? -INFINITY : coarse(&s, 2);
            for (e = 0; e < 28; e++) {
                ids[e] = -7;
                w[e] = 0.25f;
            }
            logits[t / 70 * r.logits_stride + t % 70] = bad[t % 3];
            if (t % 5 == 0 && t < 6 * 70) logits[6 * r.logits_stride + 69] = NAN; /* a later one */
            CHECK_I64(moe_ep_route(&r, logits, 7, NULL, ids, w, &err), MOE_EP_ERR_NAN);
            CHECK_STR(err.arg, "logits");
            CHECK_I64(err.index, t);
            for (e = 0; e < 28 && !t_failed_here; e++) /* rows before it are routed, it and later ones are not */
                CHECK(e / 4 < t / 70 ? ids[e] >= 0 && ids[e] < 70 : ids[e] == -7 && w[e] == 0.25f);
        }
    }
    r.isa_max = (moe_ep_isa)5;
    CHECK_I64(moe_ep_route(&r, logits, 7, NULL, ids, w, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "isa_max");
    r.isa_max = (moe_ep_isa)-1;
    CHECK_I64(moe_ep_route(&r, logits, 7, NULL, ids, w, &err), MOE_EP_ERR_RANGE);
}

/* K and E beyond one block and one list, against a full sort. */
TEST(many_experts_and_large_k)
{
    static oracle o;
    static float logits[8000], w[8000];
    static int32_t got[8000];
    static int ids[8000];
    static double want[8000];
    static float bias[8000];
    static const int shape[][2] = {{4096, 8},   {4096, 4096}, {8000, 700}, {1025, 257},
                                   {1024, 256}, {2048, 1},    {8000, 300}, {1024, 500}, {2000, 500}};
    moe_ep_router r;
    uint64_t s = t_seed;
    int n, e, j;
    for (n = 0; n < 9; n++) {
        r = moe_ep_router_mixtral(shape[n][0], shape[n][1]);
        if (n % 2) r.score = MOE_EP_SCORE_SIGMOID;
        for (e = 0; e < shape[n][0]; e++) logits[e] = coarse_logit(&s, 3);
        for (e = 0; e < shape[n][0]; e++) bias[e] = coarse(&s, 1);
        if (n % 4 == 1) r.select_bias = bias;
        if (n % 4 == 2) r.logit_bias = bias;
        if (n == 6) { /* groups that cross the borders of a block */
            r = moe_ep_router_minimax_m2(8000, 300);
            r.n_group = 8;
            r.topk_group = 3;
            r.group_top_m = 2;
        }
        if (n >= 7) { /* more groups, or more keys of a group, than one list holds */
            r.n_group = n == 7 ? 512 : 2;
            r.topk_group = n == 7 ? 300 : 1;
            r.group_top_m = n == 7 ? 1 : 300;
        }
        o.r = &r;
        o.logits = logits;
        oracle_token(&o, ids, want);
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, got, w, NULL), MOE_EP_OK);
        for (j = 0; j < shape[n][1] && !t_failed_here; j++) {
            CHECK_I64(got[j], ids[j]);
            CHECK_NEAR(w[j], want[j], 2e-5, 1e-30);
        }
        STOP_IF_FAILED("shape %d", n);
    }
}

TEST(route_properties)
{
    float logits[32], moved[32], w[32], w2[32];
    int32_t ids[32], ids2[32];
    uint64_t s = t_seed;
    int n, i, E, K;
    for (n = 0; n < 3000; n++) {
        moe_ep_router r;
        double sum = 0.0;
        E = 1 + (int)t_below(&s, 32);
        K = 1 + (int)t_below(&s, E);
        for (i = 0; i < E; i++) logits[i] = (float)(8.0 * t_unit(&s) - 4.0);
        r = moe_ep_router_mixtral(E, K);
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
        for (i = 0; i < K; i++) sum += (double)w[i];
        CHECK_NEAR(sum, 1.0, 1e-6, 0.0);
        for (i = 1; i < K; i++) CHECK(w[i] <= w[i - 1]);
        for (i = 0; i < E; i++) moved[(i * 7 + 3) % E] = logits[i]; /* a permutation when 7 does not divide E */
        if (E % 7 == 0) continue;
        CHECK_I64(moe_ep_route(&r, moved, 1, NULL, ids2, w2, NULL), MOE_EP_OK);
        for (i = 0; i < K; i++) CHECK_I64(ids2[i], (ids[i] * 7 + 3) % E);
        for (i = 0; i < K; i++) CHECK_NEAR(w2[i], w[i], 1e-5, 0.0);
        for (i = 0; i < E; i++) moved[i] = logits[i] + 8.0f; /* softmax does not see a shift */
        CHECK_I64(moe_ep_route(&r, moved, 1, NULL, ids2, w2, NULL), MOE_EP_OK);
        for (i = 0; i < K; i++) CHECK_NEAR(w2[i], w[i], 1e-5, 0.0);
        STOP_IF_FAILED("case %d", n);
    }
}

/* ---- 10^5 small routers: what must hold whatever the numbers are ----------------------------------------- */

enum { PROP_EXPERTS = 48, PROP_TOKENS = 20, PROP_WIDTH = PROP_EXPERTS + 7 };

typedef struct prop_case {
    moe_ep_router r;
    int32_t T, stride, to[PROP_EXPERTS]; /* to: a permutation of the experts that keeps groups together */
    float logits[PROP_TOKENS * PROP_WIDTH], moved[PROP_TOKENS * PROP_WIDTH];
    float bias[PROP_EXPERTS], moved_bias[PROP_EXPERTS];
    int32_t ids[PROP_TOKENS * PROP_EXPERTS];
    float w[PROP_TOKENS * PROP_EXPERTS];
} prop_case;

static void shuffle(uint64_t *s, int32_t *of, int32_t n)
{
    int32_t i, j, keep;
    for (i = 0; i < n; i++) of[i] = i;
    for (i = n - 1; i > 0; i--) {
        j = (int32_t)t_below(s, i + 1);
        keep = of[i];
        of[i] = of[j];
        of[j] = keep;
    }
}

/* A router of one of the families, with K = 1 and K = E often. */
static void prop_router(uint64_t *s, prop_case *c)
{
    moe_ep_router *r = &c->r;
    int32_t size, room, group, inside[PROP_EXPERTS], groups[PROP_EXPERTS], e;
    memset(c, 0, sizeof *c);
    r->n_group = t_below(s, 3) == 0 ? 2 + (int32_t)t_below(s, 5) : 1;
    size = 1 + (int32_t)t_below(s, PROP_EXPERTS / r->n_group);
    if (t_below(s, 4) == 0) size = r->n_group < 4 ? 16 : size;
    r->num_experts = r->n_group * size;
    r->topk_group = 1 + (int32_t)t_below(s, r->n_group);
    r->group_top_m = 1;
    room = r->n_group > 1 ? r->topk_group * size : r->num_experts;
    r->top_k = t_below(s, 4) ? 1 + (int32_t)t_below(s, room) : t_below(s, 2) ? 1 : room;
    r->score = (moe_ep_score)t_below(s, 4);
    r->weight = (moe_ep_weight)t_below(s, 3);
    if (r->score == MOE_EP_SCORE_LOGIT && r->weight == MOE_EP_WEIGHT_SCORE) r->weight = MOE_EP_WEIGHT_SIGMOID_OF_LOGIT;
    r->renorm = (int32_t)t_below(s, 2);
    r->num_null = (int32_t)t_below(s, r->num_experts + 1);
    c->stride = r->num_experts + (t_below(s, 3) == 0 ? (int32_t)t_below(s, 8) : 0);
    r->logits_stride = c->stride;
    c->T = t_below(s, 40) == 0 ? 0 : t_below(s, 16) == 0 ? PROP_TOKENS : 1 + (int32_t)t_below(s, 2);
    shuffle(s, groups, r->n_group);
    for (group = 0; group < r->n_group; group++) {
        shuffle(s, inside, size);
        for (e = 0; e < size; e++) c->to[group * size + e] = groups[group] * size + inside[e];
    }
}

/* Logits far enough apart to have different scores, in steps of 1/64 so that shifts are exact. */
static void prop_logits(uint64_t *s, prop_case *c)
{
    const int32_t E = c->r.num_experts;
    int32_t order[PROP_EXPERTS], e, t;
    for (t = 0; t < c->T; t++) {
        shuffle(s, order, E);
        for (e = 0; e < E; e++) {
            float v = 0.125f * (float)(order[e] - E / 2) + (float)t_below(s, 5) / 64.0f;
            c->logits[t * c->stride + e] = v;
            c->moved[t * c->stride + c->to[e]] = v;
        }
    }
    if (t_below(s, 3)) return;
    shuffle(s, order, E);
    for (e = 0; e < E; e++) c->moved_bias[c->to[e]] = c->bias[e] = 16.0f * (float)order[e]; /* outweighs the scores */
    c->r.select_bias = c->bias;
}

/* All kernels, and each row alone, give the same ids and the same bits. */
static void prop_kernels(prop_case *c, int best)
{
    static int32_t ids[PROP_TOKENS * PROP_EXPERTS];
    static float w[PROP_TOKENS * PROP_EXPERTS];
    const size_t n = (size_t)(c->T * c->r.top_k) * sizeof(float);
    moe_ep_router r = c->r;
    int isa, t;
    r.isa_max = MOE_EP_ISA_PORTABLE;
    CHECK_I64(moe_ep_route(&r, c->logits, c->T, NULL, c->ids, c->w, NULL), MOE_EP_OK);
    r.num_null = 0; /* null experts are routed like any other */
    for (isa = (int)MOE_EP_ISA_AVX2; isa <= best; isa++) {
        r.isa_max = (moe_ep_isa)isa;
        CHECK_I64(moe_ep_route(&r, c->logits, c->T, NULL, ids, w, NULL), MOE_EP_OK);
        CHECK(memcmp(ids, c->ids, n) == 0 && memcmp(w, c->w, n) == 0);
    }
    r.isa_max = MOE_EP_ISA_AUTO;
    for (t = 0; t < c->T; t++) {
        int32_t at = t * r.top_k;
        CHECK_I64(moe_ep_route(&r, c->logits + t * c->stride, 1, NULL, ids + at, w + at, NULL), MOE_EP_OK);
    }
    CHECK(memcmp(ids, c->ids, n) == 0 && memcmp(w, c->w, n) == 0);
}

/* Every id once and in range, weights not negative, in order where the key is the score, and nothing lost. */
static void prop_conservation(const prop_case *c)
{
    const moe_ep_router *r = &c->r;
    int whole = r->weight == MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED || r->renorm ||
                (r->score == MOE_EP_SCORE_SOFTMAX && r->weight == MOE_EP_WEIGHT_SCORE && r->top_k == r->num_experts);
    int32_t t, j, K = r->top_k;
    for (t = 0; t < c->T; t++) {
        const int32_t *ids = c->ids + t * K;
        const float *w = c->w + t * K;
        uint64_t seen = 0;
        double sum = 0.0;
        int sorted = 1, inside = 1;
        for (j = 0; j < K; j++) {
            inside &= ids[j] >= 0 && ids[j] < r->num_experts && w[j] >= 0.0f && w[j] <= 10.0f;
            if (!inside) break;
            seen |= (uint64_t)1 << ids[j];
            sum += (double)w[j];
            sorted &= j == 0 || w[j] <= w[j - 1];
        }
        CHECK(inside);
        for (j = 0; seen; seen &= seen - 1) j++;
        CHECK_I64(j, K);
        CHECK(sorted || r->select_bias);
        if (whole) CHECK_NEAR(sum, 1.0, 1e-6, 0.0);
        if (K == 1 && whole) CHECK_NEAR(w[0], 1.0, 1e-7, 0.0);
    }
}

/* Renaming the experts renames the ids and nothing else; a softmax does not see what is added to all logits. */
static void prop_invariance(uint64_t *s, prop_case *c)
{
    static int32_t ids[PROP_TOKENS * PROP_EXPERTS];
    static float w[PROP_TOKENS * PROP_EXPERTS];
    moe_ep_router r = c->r;
    int32_t i, n = c->T * r.top_k;
    float by = (float)(t_below(s, 129) - 64);
    if (r.select_bias) r.select_bias = c->moved_bias;
    CHECK_I64(moe_ep_route(&r, c->moved, c->T, NULL, ids, w, NULL), MOE_EP_OK);
    for (i = 0; i < n; i++) CHECK_I64(ids[i], c->to[c->ids[i]]);
    for (i = 0; i < n; i++) CHECK_NEAR(w[i], c->w[i], 2e-6, 0.0);
    if (r.weight == MOE_EP_WEIGHT_SIGMOID_OF_LOGIT) return;
    if (r.score != MOE_EP_SCORE_SOFTMAX && r.score != MOE_EP_SCORE_LOGIT) return;
    r.select_bias = c->r.select_bias;
    for (i = 0; i < c->T * c->stride; i++) c->moved[i] = c->logits[i] + by;
    CHECK_I64(moe_ep_route(&r, c->moved, c->T, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(memcmp(ids, c->ids, (size_t)n * sizeof *ids) == 0 && memcmp(w, c->w, (size_t)n * sizeof *w) == 0);
}

/* Equal logits take the lowest experts with equal weights; where all are masked these weights are 0. */
static void prop_ties(uint64_t *s, prop_case *c)
{
    const int masked = t_below(s, 2) == 0;
    moe_ep_router r = c->r;
    int32_t t, j, K = r.top_k;
    float all = masked ? -INFINITY : (float)(t_below(s, 65) - 32) / 4.0f;
    r.select_bias = NULL;
    r.group_top_m = r.num_experts / r.n_group > 1 ? (int32_t)t_below(s, 3) : 0;
    for (j = 0; j < c->T * c->stride; j++) c->moved[j] = all;
    CHECK_I64(moe_ep_route(&r, c->moved, c->T, NULL, c->ids, c->w, NULL), MOE_EP_OK);
    for (t = 0; t < c->T; t++)
        for (j = 0; j < K; j++) {
            CHECK_I64(c->ids[t * K + j], j);
            CHECK_NEAR(c->w[t * K + j], c->w[0], 0.0, 0.0);
        }
    if (masked && c->T > 0) CHECK_NEAR(c->w[0], 0.0, 0.0, 0.0);
    else if (c->T > 0 && (r.renorm || r.weight == MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED))
        CHECK_NEAR(c->w[0], 1.0 / K, 1e-6, 0.0);
}

TEST(properties_of_many_small_routers)
{
    static prop_case c;
    uint64_t s = t_seed + 11;
    const int best = (int)moe_ep_isa_best(); /* asked once: on a virtual machine that takes microseconds */
    int n, cases = t_slow() ? 4000 : 100000, none = 0, one = 0, all = 0;
    for (n = 0; n < cases; n++) {
        prop_router(&s, &c);
        prop_logits(&s, &c);
        c.ids[0] = -7;
        c.w[0] = -7.0f;
        prop_kernels(&c, best);
        if (c.T == 0) CHECK(c.ids[0] == -7 && c.w[0] < -6.0f);
        prop_conservation(&c);
        prop_invariance(&s, &c);
        prop_ties(&s, &c);
        none += c.T == 0;
        one += c.r.num_experts == 1;
        all += c.r.top_k == c.r.num_experts && c.r.top_k > 1;
        STOP_IF_FAILED("random case %d", n);
    }
    CHECK(none * 100 > cases && one * 500 > cases && all * 50 > cases); /* the corners were there */
}

/* A table without experts: ids -1, weights 0, with every weight and norm. */
TEST(all_ids_minus_one)
{
    static const float logits[15] = {1.0f, 2.0f, 3.0f};
    int32_t table[4] = {-1, -1, -1, -1}, tokens[3] = {0, 1, 0}, ids[6], i, j;
    float w[6];
    for (i = 0; i < 64; i++) {
        moe_ep_router r = moe_ep_router_hash(5, 2);
        r.score = (moe_ep_score)(i % 4);
        r.weight = (moe_ep_weight)(i / 4 % 4);
        r.renorm = i / 16 % 2;
        r.renorm_p = i / 32 ? 2.0f : 0.0f;
        r.num_null = i % 6;
        r.table = table;
        r.table_rows = 2;
        for (j = 0; j < 6; j++) {
            ids[j] = 9;
            w[j] = 9.0f;
        }
        CHECK_I64(moe_ep_route(&r, logits, 3, tokens, ids, w, NULL), MOE_EP_OK);
        for (j = 0; j < 6; j++) CHECK(ids[j] == -1 && w[j] >= 0.0f && w[j] <= 0.0f);
    }
}

/* Sums of logit and bias beyond the floats neither become infinite nor end in NaN. */
TEST(logit_bias_beyond_the_floats)
{
    float logits[4] = {3.4e38f, 1.0f, -3.4e38f, 3.4e38f}, bias[4] = {3.4e38f, 0.5f, -3.4e38f, 3.3e38f}, w[4];
    int32_t ids[4], k;
    int isa, score;
    for (isa = 1; isa <= (int)moe_ep_isa_best(); isa++)
        for (score = 0; score < 4; score++) {
            moe_ep_router r = moe_ep_router_qwen2(4, 4);
            r.isa_max = (moe_ep_isa)isa;
            r.score = (moe_ep_score)score;
            r.logit_bias = bias;
            CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
            CHECK(ids[0] == 0 && ids[1] == 3 && ids[2] == 1 && ids[3] == 2); /* the last counts as masked */
            for (k = 0; k < 4; k++) CHECK(w[k] >= 0.0f && w[k] < INFINITY);
            CHECK_NEAR(w[0], w[1], 0.0, 0.0);
            CHECK_NEAR(w[3], 0.0, 0.0, 0.0);
            if (score == (int)MOE_EP_SCORE_SOFTMAX) CHECK_NEAR(w[0], 0.5, 1e-7, 0.0);
        }
}

/* ---- more than 2^31 elements ------------------------------------------------------------------------------ */

#if CAN_MAP
/* Addresses for more logits than 2^31; only the rows that are written take memory. */
TEST(logits_further_apart_than_2_to_the_31)
{
#if SIZE_MAX <= 0xffffffffu
    SKIP("needs more than 32 bits of addresses");
#else
    static const int64_t strides[2] = {(int64_t)1 << 26, ((int64_t)1 << 27) + 3}; /* sixteen together, one by one */
    const size_t bytes = (size_t)18 * (size_t)(strides[1] + 64) * sizeof(float);
    const int64_t T[2] = {35, 18};
    float few[35 * 32], w[70], want_w[70], *logits;
    int32_t ids[70], want[70];
    moe_ep_error err;
    uint64_t s = t_seed;
    int k, t, e;
    logits = (float *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (logits == (float *)MAP_FAILED) SKIP("10 GB of addresses cannot be mapped here");
    for (k = 0; k < 2; k++) {
        moe_ep_router r = moe_ep_router_qwen3(32, 2);
        for (t = 0; t < T[k]; t++)
            for (e = 0; e < 32; e++) few[t * 32 + e] = logits[t * strides[k] + e] = (float)(8.0 * t_unit(&s));
        CHECK_I64(moe_ep_route(&r, few, T[k], NULL, want, want_w, NULL), MOE_EP_OK);
        r.logits_stride = strides[k];
        CHECK((T[k] - 1) * strides[k] > INT32_MAX);
        CHECK_I64(moe_ep_route(&r, logits, T[k], NULL, ids, w, NULL), MOE_EP_OK);
        CHECK(memcmp(ids, want, (size_t)T[k] * 8) == 0 && memcmp(w, want_w, (size_t)T[k] * 8) == 0);
        logits[(T[k] - 1) * strides[k] + 31] = NAN;
        CHECK_I64(moe_ep_route(&r, logits, T[k], NULL, ids, w, &err), MOE_EP_ERR_NAN);
        CHECK_I64(err.index, (T[k] - 1) * 32 + 31);
    }
    munmap(logits, bytes);
#endif
}

/* T*K = 2^31 + 2^20 ids: all rows but the last are written to the same memory, mapped again and again. */
TEST(ids_beyond_2_to_the_31)
{
#if SIZE_MAX <= 0xffffffffu
    SKIP("needs more than 32 bits of addresses");
#else
    const int32_t K = 1 << 20, T = 2049;
    const size_t row = (size_t)K * sizeof(int32_t), bytes = row * (size_t)T;
    int fd = memfd_create("ids", 0), mapped = 0, t;
    int32_t *ids, *tokens, *table, *last, k;
    moe_ep_router r = moe_ep_router_hash(K, K);
    if (t_slow() || fd < 0 || ftruncate(fd, (off_t)(2 * row)) != 0) SKIP("slow here, or no memory file");
    ids = (int32_t *)mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ids == (int32_t *)MAP_FAILED) SKIP("8 GiB of addresses cannot be mapped here");
    last = ids + (int64_t)(T - 1) * K;
    for (t = 0; t < T; t++)
        mapped += mmap(ids + (int64_t)t * K, row, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd,
                       t == T - 1 ? (off_t)row : 0) != MAP_FAILED;
    table = (int32_t *)t_alloc(2 * row);
    tokens = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)T);
    for (k = 0; k < 2 * K; k++) table[k] = k < K ? k : 2 * K - 1 - k;
    tokens[T - 1] = 1;
    r.table = table;
    r.table_rows = 2;
    if (mapped == T) {
        CHECK_I64(moe_ep_route(&r, NULL, T, tokens, ids, NULL, NULL), MOE_EP_OK);
        for (k = 0; k < K && !t_failed_here; k++) CHECK(ids[k] == k && last[k] == K - 1 - k);
    }
    munmap(ids, bytes);
    close(fd);
    free(table);
    free(tokens);
    if (mapped != T) SKIP("8 GiB of addresses cannot be mapped here");
#endif
}
#endif

TEST(ties_take_the_lowest_index)
{
    float logits[300], w[300];
    int32_t ids[300];
    int32_t i, k;
    for (i = 0; i < 300; i++) logits[i] = 1.5f;
    for (k = 1; k <= 300; k += 23) {
        moe_ep_router r = moe_ep_router_mixtral(300, k);
        int32_t j;
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
        for (j = 0; j < k; j++) CHECK_I64(ids[j], j);
        for (j = 0; j < k; j++) CHECK_NEAR(w[j], 1.0 / k, 1e-5, 0.0);
    }
    for (i = 0; i < 4; i++) logits[i] = 20.0f + (float)i; /* sigmoid is exactly 1 for all of them */
    {
        moe_ep_router r = moe_ep_router_minimax_m2(4, 2), on_logits = moe_ep_router_llama4(4, 2);
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
        CHECK(ids[0] == 0 && ids[1] == 1);
        CHECK_I64(moe_ep_route(&on_logits, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
        CHECK(ids[0] == 3 && ids[1] == 2);
        CHECK_NEAR(w[0], 1.0, 0.0, 0.0);
    }
}

/* -0 and 0 are one number: with every -0 made 0, each kernel gives the same ids and weights, and what a softmax chooses
 * is the K best by insertion. */
TEST(zeros_of_both_signs_are_one_number)
{
    static prop_case c;
    static int32_t ids[PROP_TOKENS * PROP_EXPERTS];
    static float w[PROP_TOKENS * PROP_EXPERTS];
    const int best = (int)moe_ep_isa_best();
    uint64_t s = t_seed + 18;
    int n, isa, plain = 0;
    for (n = 0; n < (t_slow() ? 2000 : 20000); n++) {
        int32_t i, j, t, at, E, K, want[PROP_EXPERTS];
        const int zeros = 2 + (int)t_below(&s, 6), above = t_below(&s, 4) == 0;
        prop_router(&s, &c);
        E = c.r.num_experts, K = c.r.top_k;
        if (n % 2 && c.r.n_group == 1) c.r.score = MOE_EP_SCORE_SOFTMAX;
        for (i = 0; i < c.T * c.stride; i++) { /* mostly the largest: the others lie below, some of them far */
            float v = -0.5f * (float)(1 + t_below(&s, 16)) - (t_below(&s, 8) ? 0.0f : 100.0f);
            if (t_below(&s, zeros) == 0) v = t_below(&s, 2) ? 0.0f : -0.0f;
            else if (above && t_below(&s, 9) == 0) v = 1.0f;
            c.logits[i] = v;
            c.moved[i] = v < 0.0f || v > 0.0f ? v : 0.0f;
        }
        for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= best; isa++) {
            c.r.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_route(&c.r, c.moved, c.T, NULL, ids, w, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_route(&c.r, c.logits, c.T, NULL, c.ids, c.w, NULL), MOE_EP_OK);
            CHECK(memcmp(ids, c.ids, sizeof *ids * (size_t)(c.T * K)) == 0);
            for (i = 0; i < c.T * K; i++) CHECK_NEAR(c.w[i], w[i], 0.0, 0.0);
            if (c.r.n_group > 1 || c.r.score != MOE_EP_SCORE_SOFTMAX) continue;
            for (t = 0; t < c.T && !t_failed_here; t++) {
                const float *of = c.logits + t * c.stride;
                for (j = 0, i = 0; i < E; i++) { /* j = how many are listed; below -100 all scores are 0: not told */
                    if (j == K && !(of[i] > of[want[K - 1]])) continue;
                    for (at = j < K ? j++ : K - 1; at > 0 && of[i] > of[want[at - 1]]; at--) want[at] = want[at - 1];
                    want[at] = i;
                }
                for (j = 0; j < K && of[want[j]] > -50.0f; j++) CHECK_I64(c.ids[t * K + j], want[j]);
                plain++;
            }
        }
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(plain > n / 2);
}

/* Logits that differ by single bits, or by a soft cap of any size, have equal scores: the choice is the K best of
 * moe_ep_scores by insertion, lowest index first among equals, in every kernel. */
TEST(near_ties_are_ties_of_the_scores)
{
    static const float caps[5] = {0.0f, 0.25f, 30.0f, 1e-38f, 1.4e-45f};
    static float logits[5 * 96], scores[5 * 96];
    int32_t ids[5 * 16], want[16], E, K, t, e, j, at;
    uint64_t s = t_seed + 17;
    int n, isa;
    for (n = 0; n < (t_slow() > 1 ? 400 : 4000); n++) {
        moe_ep_router r;
        const float middle = (float)(t_unit(&s) * 8.0), step = t_below(&s, 2) ? 1e-7f : 2e-5f;
        E = 1 + (int32_t)t_below(&s, 96);
        K = 1 + (int32_t)t_below(&s, E < 16 ? E : 16);
        r = moe_ep_router_mixtral(E, K);
        r.logit_softcap = caps[n % 5];
        for (e = 0; e < 5 * E; e++) /* a few high ones bit by bit apart, the others below */
            logits[e] = t_below(&s, 4) ? (float)t_unit(&s) * 4.0f - 8.0f : middle + step * (float)t_below(&s, 3);
        for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++) {
            r.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_scores(&r, logits, 5, scores, NULL), MOE_EP_OK);
            CHECK_I64(moe_ep_route(&r, logits, 5, NULL, ids, NULL, NULL), MOE_EP_OK);
            for (t = 0; t < 5 && !t_failed_here; t++) {
                const float *of = scores + t * E;
                for (e = 0, j = 0; e < E; e++) { /* j = how many are listed */
                    if (j == K && !(of[e] > of[want[K - 1]])) continue;
                    for (at = j < K ? j++ : K - 1; at > 0 && of[e] > of[want[at - 1]]; at--) want[at] = want[at - 1];
                    want[at] = e;
                }
                for (j = 0; j < K && !t_failed_here; j++) CHECK_I64(ids[t * K + j], want[j]);
            }
            STOP_IF_FAILED("case %d", n * 10 + isa);
        }
    }
}

/* -FLT_MAX is masked like -Inf: the same ids and bits, whatever the biases, in every kernel. */
TEST(the_lowest_float_is_masked)
{
    static float lowest[20 * 48], masked[20 * 48], bias[48], w[2][20 * 4];
    int32_t ids[2][20 * 4], e;
    uint64_t s = t_seed + 19;
    int n, isa;
    for (n = 0; n < (t_slow() > 1 ? 500 : 2000); n++) {
        moe_ep_router r = moe_ep_router_mixtral(n % 3 ? 16 * (1 + n % 3) : 4 + (int32_t)t_below(&s, 44), 4);
        const int all = t_below(&s, 4) == 0;
        r.score = (moe_ep_score)t_below(&s, 4);
        r.weight = (moe_ep_weight)t_below(&s, 3);
        r.renorm = (int32_t)t_below(&s, 2);
        r.select_on_logit = (int32_t)t_below(&s, 2);
        if (n % 3 && t_below(&s, 2)) {
            r.n_group = 2;
            r.topk_group = 1;
            r.group_top_m = 2;
        }
        for (e = 0; e < r.num_experts; e++) bias[e] = (float)t_unit(&s) * 2e37f;
        if (t_below(&s, 2)) r.select_bias = bias;
        else if (t_below(&s, 2)) r.logit_bias = bias;
        for (e = 0; e < 20 * r.num_experts; e++) {
            const int out = all || t_below(&s, 3) == 0;
            const float v = t_below(&s, 9) ? (float)t_unit(&s) : -3.39e38f;
            lowest[e] = out ? -3.402823466e+38f : v;
            masked[e] = out ? -INFINITY : v;
        }
        for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++) {
            r.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_route(&r, lowest, 20, NULL, ids[0], w[0], NULL), MOE_EP_OK);
            if (isa == (int)MOE_EP_ISA_PORTABLE)
                CHECK_I64(moe_ep_route(&r, masked, 20, NULL, ids[1], w[1], NULL), MOE_EP_OK);
            CHECK(memcmp(ids[0], ids[1], sizeof ids[0]) == 0);
            CHECK(memcmp(w[0], w[1], sizeof w[0]) == 0);
            STOP_IF_FAILED("case %d", n * 10 + isa);
        }
    }
}

/* Factors beyond what a float weight can hold: it stops at FLT_MAX, in every kernel. */
TEST(weights_stop_at_the_largest_float)
{
    float logits[16 * 16], scale[16], w[16 * 2];
    int32_t ids[16 * 2];
    int isa, n, i;
    for (i = 0; i < 256; i++) logits[i] = (float)(i % 16) * 1e37f;
    for (n = 0; n < 3; n++) { /* by a factor of the expert, by both, by the router's */
        for (i = 0; i < 16; i++) scale[i] = n == 2 ? -1.0f : n == 0 ? -40.0f : -1e30f;
        for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++) {
            moe_ep_router r = moe_ep_router_mixtral(16, 2);
            r.isa_max = (moe_ep_isa)isa;
            r.score = n == 1 ? MOE_EP_SCORE_SIGMOID : MOE_EP_SCORE_LOGIT;
            r.renorm = 0;
            r.scale = n == 0 ? 0.5f : n == 1 ? 1e30f : 3e38f;
            r.per_expert_scale = scale;
            CHECK_I64(moe_ep_route(&r, logits, 16, NULL, ids, w, NULL), MOE_EP_OK);
            for (i = 0; i < 32; i++) CHECK_NEAR(w[i], -(double)3.402823466e+38f, 0.0, 0.0);
        }
    }
}

TEST(masked_experts_and_bad_logits)
{
    float logits[6] = {1.0f, -INFINITY, 2.0f, -INFINITY, -1.0f, -INFINITY}, w[6];
    int32_t ids[6], i;
    moe_ep_error err;
    moe_ep_router r = moe_ep_router_deepseek_v4(6, 6);
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, &err), MOE_EP_OK);
    CHECK(ids[0] == 2 && ids[1] == 0 && ids[2] == 4 && ids[3] == 1 && ids[4] == 3 && ids[5] == 5);
    for (i = 3; i < 6; i++) CHECK_NEAR(w[i], 0.0, 0.0, 0.0);
    CHECK_NEAR((double)w[0] + (double)w[1] + (double)w[2], 1.0, 1e-6, 0.0);
    for (i = 0; i < 6; i++) logits[i] = -INFINITY; /* nobody: weights of 0, not NaN */
    for (i = 0; i < moe_ep_router_count(); i++) {
        int32_t j;
        CHECK_I64(moe_ep_router_by_name(moe_ep_router_name(i), 6, 2, &r, &err), MOE_EP_OK);
        if (r.select == MOE_EP_SELECT_TABLE) continue;
        if (r.n_group > 1) r.n_group = 2, r.topk_group = 1, r.group_top_k = 0;
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, &err), MOE_EP_OK);
        for (j = 0; j < 2; j++) CHECK(ids[j] == j && w[j] >= 0.0f && w[j] <= 0.0f);
        if (t_failed_here) printf("    router %s\n", moe_ep_router_name(i));
    }
    r = moe_ep_router_mixtral(3, 2);
    for (i = 0; i < 6; i++) logits[i] = (float)i;
    logits[4] = i % 2 ? INFINITY : NAN;
    ids[0] = ids[2] = -77;
    CHECK_I64(moe_ep_route(&r, logits, 2, NULL, ids, w, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 4);
    CHECK_STR(err.arg, "logits");
    CHECK(ids[0] == 2 && ids[1] == 1); /* the row before it is routed, the bad one is not */
    CHECK_I64(ids[2], -77);
    r.nan_as_masked = 1;
    CHECK_I64(moe_ep_route(&r, logits, 2, NULL, ids, w, &err), MOE_EP_OK);
    CHECK(ids[2] == 2 && ids[3] == 0);
}

/* A group score with a masked expert in it is -Inf, with one or with two: then the lowest group counts. */
TEST(masked_experts_in_groups)
{
    float logits[6] = {-INFINITY, -INFINITY, 9.0f, -INFINITY, 1.0f, 2.0f}, w[3];
    int32_t ids[3];
    moe_ep_router r = moe_ep_router_minimax_m2(6, 3);
    r.n_group = 3;
    r.topk_group = 2;
    r.group_top_m = 2;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 5 && ids[1] == 4 && ids[2] == 0);
    CHECK_NEAR(w[2], 0.0, 0.0, 0.0);
    r.group_top_m = 1; /* the best one: now group 1 is in */
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 2 && ids[1] == 5 && ids[2] == 4);
}

/* Pangu Pro: one expert of each group whatever the others hold, in the order of the keys, times router_scale. */
TEST(best_of_every_group)
{
    static oracle o;
    static float logits[2048];
    static int ids[2048];
    static double want[2048];
    static int32_t got[2048];
    static float w[2048];
    const float scale[6] = {1.0f, 2.0f, 0.5f, 1.0f, 1.0f, 4.0f};
    float few[6] = {3.0f, 2.9f, 2.8f, 0.0f, 1.0f, 1.0f}, total = 0.0f;
    uint64_t s = t_seed + 20;
    moe_ep_router r = moe_ep_router_pangu_pro(6, 2);
    int i, j, isa;
    r.per_expert_scale = scale;
    few[1] = 3.0f; /* a tie inside a group: its lowest */
    for (i = 0; i < 6; i++) total += expf(few[i]);
    CHECK_I64(moe_ep_route(&r, few, 1, NULL, got, w, NULL), MOE_EP_OK);
    CHECK(got[0] == 0 && got[1] == 4);
    CHECK_NEAR(w[0], expf(3.0f) / total, 1e-6, 0.0);
    CHECK_NEAR(w[1], expf(1.0f) / total, 1e-6, 0.0);
    r = moe_ep_router_pangu_pro(6, 3);
    r.topk_group = 2, r.top_k = 4, r.group_top_k = 2; /* two groups of three, whole */
    CHECK_I64(moe_ep_route(&r, few, 1, NULL, got, w, NULL), MOE_EP_OK);
    CHECK(got[0] == 0 && got[1] == 1 && got[2] == 2 && got[3] == 3);
    for (i = 0; i < 4; i++) few[i] = -INFINITY; /* masked ones of a group come last, and still one of each */
    r = moe_ep_router_pangu_pro(6, 2);
    CHECK_I64(moe_ep_route(&r, few, 1, NULL, got, w, NULL), MOE_EP_OK);
    CHECK(got[0] == 4 && got[1] == 0 && !(w[1] > 0.0f));
    r = moe_ep_router_pangu_pro(6, 1); /* one group is none */
    CHECK_I64(moe_ep_route(&r, few, 1, NULL, got, w, NULL), MOE_EP_OK);
    CHECK_I64(got[0], 4);
    for (i = 0; i < 12; i++) { /* the model's shape, more than one list holds, and more experts than one block */
        r = moe_ep_router_pangu_pro(i < 6 ? 64 : 2048, 8);
        if (i >= 6) {
            r.n_group = 4, r.topk_group = 3, r.group_top_k = i < 9 ? 300 : 5;
            r.top_k = 3 * r.group_top_k;
        }
        for (j = 0; j < r.num_experts; j++) logits[j] = coarse_logit(&s, 3) / (i % 2 ? 16.0f : 1.0f);
        for (j = 0; i % 3 == 2 && j < 3 * r.num_experts / 4; j++) logits[j] = -INFINITY;
        o.r = &r;
        o.logits = logits;
        oracle_token(&o, ids, want);
        for (isa = MOE_EP_ISA_PORTABLE; isa <= MOE_EP_ISA_AVX512; isa++) {
            r.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_route(&r, logits, 1, NULL, got, w, NULL), MOE_EP_OK);
            for (j = 0; j < r.top_k && !t_failed_here; j++) {
                CHECK_I64(got[j], ids[j]);
                CHECK_NEAR(w[j], want[j], 2e-5, 1e-30);
            }
        }
        STOP_IF_FAILED("case %d", i);
    }
}

/* DeepSeek-V2 takes keys and weights from the scores masked with 0; DeepSeek-V3 in transformers only the keys. */
TEST(weights_outside_the_groups)
{
    const float logits[4] = {1.0f, 0.0f, 3.0f, -200.0f}; /* groups 0,1 and 2,3; the last score underflows to 0 */
    float w[3];
    int32_t ids[3];
    moe_ep_router r = moe_ep_router_deepseek_v2(4, 3);
    r.n_group = 2;
    r.topk_group = 1;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 2 && ids[1] == 0 && ids[2] == 1);
    CHECK_NEAR(w[0], 16.0 / (1.0 + exp(-2.0) + exp(-3.0)), 1e-6, 0.0);
    CHECK(!(w[1] > 0.0f) && !(w[2] > 0.0f));
    r.mask_zero = 1;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[1] == 0 && w[1] > 1.0f && w[2] > 0.5f);
    CHECK(moe_ep_router_deepseek_v2_hub(8, 2).mask_zero == 2 && moe_ep_router_deepseek_v3_hf(8, 2).mask_zero == 1);
}

/* The weight of a logit as torch.sigmoid gives it in float32: 1 / (1 + exp(-x)), each step rounded.  Where exp(-x) is
 * infinite the score is 0, and such experts tie. */
TEST(sigmoid_as_torch)
{
    static const struct {
        float x, s;
    } known[] = {{-2.5f, 0x1.36b71p-4f}, {-2.0f, 0x1.e84152p-4f}, {-1.5f, 0x1.759b84p-3f}, {-1.0f, 0x1.136562p-2f},
                 {-0.5f, 0x1.829a06p-2f}, {0.0f, 0x1p-1f}, {0.5f, 0x1.3eb2fep-1f}, {1.0f, 0x1.764d5p-1f},
                 {1.5f, 0x1.a2991ep-1f}, {2.0f, 0x1.c2f7d4p-1f}, {20.0f, 1.0f}, {-89.0f, 0.0f}, {-3e38f, 0.0f}};
    float logits[40], s, w[2];
    int32_t ids[2], i, isa;
    size_t k;
    for (isa = MOE_EP_ISA_PORTABLE; isa <= MOE_EP_ISA_AVX512; isa++) {
        moe_ep_router r = moe_ep_router_minimax_m2(1, 1);
        r.isa_max = (moe_ep_isa)isa;
        r.renorm = 0;
        for (k = 0; k < sizeof known / sizeof *known; k++) {
            CHECK_I64(moe_ep_scores(&r, &known[k].x, 1, &s, NULL), MOE_EP_OK);
            CHECK_NEAR(s, known[k].s, 0.0, 0.0);
            CHECK_I64(moe_ep_route(&r, &known[k].x, 1, NULL, ids, &s, NULL), MOE_EP_OK);
            CHECK_NEAR(s, known[k].s, 0.0, 0.0);
        }
        for (i = 0; i < 40; i++) logits[i] = -120.0f + (float)i * 0.5f; /* the last ones are larger, but all give 0 */
        r.num_experts = 32;
        r.top_k = 2;
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
        CHECK(ids[0] == 0 && ids[1] == 1);
        logits[17] = -88.0f; /* 6e-39, a subnormal number */
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
        if (t_subnormals()) CHECK(ids[0] == 17 && ids[1] == 0);
    }
}

/* Group scores are added in torch's order.  With t = 2^-24, adding 2 t, 2 t, 2 t and t to 1 one by one gives 1 + 8 t;
 * where the fifth key joins the first one first (5 to 7 keys), it is lost, and 1 + 6 t is a tie with group 0. */
TEST(group_scores_in_torchs_order)
{
    const float t = 0x1p-24f;
    int32_t m, i, id;
    for (m = 5; m <= 9; m++) {
        float keys[18];
        moe_ep_router r = moe_ep_router_megatron_post_softmax(2 * m, 1);
        r.select = MOE_EP_SELECT_KEYS;
        r.weight = MOE_EP_WEIGHT_ONE;
        r.keys = keys;
        r.n_group = 2;
        r.topk_group = 1;
        r.group_top_m = m;
        for (i = 0; i < m; i++) keys[i] = i == 0 ? 1.0f : i == 1 ? 6.0f * t : 0.0f;
        for (i = 0; i < m; i++) keys[m + i] = i == 0 ? 1.0f : i < 4 ? 2.0f * t : i == 4 ? t : 0.0f;
        CHECK_I64(moe_ep_route(&r, NULL, 1, NULL, &id, NULL, NULL), MOE_EP_OK);
        CHECK_I64(id, m < 8 ? 0 : m);
    }
}

TEST(largest_weight_as_norm)
{
    const float logits[3] = {1.0f, 3.0f, 2.0f};
    float w[2];
    int32_t ids[2];
    moe_ep_router r = moe_ep_router_dbrx(3, 2, INFINITY);
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 1 && ids[1] == 2);
    CHECK_NEAR(w[0], 1.0, 1e-6, 0.0);
    CHECK_NEAR(w[1], exp(-1.0), 1e-6, 0.0);
    r.renorm_p = -INFINITY;
    CHECK_I64(moe_ep_router_check(&r, NULL), MOE_EP_ERR_NAN);
    r.renorm_p = NAN;
    CHECK_I64(moe_ep_router_check(&r, NULL), MOE_EP_ERR_NAN);
}

TEST(names_of_config_files)
{
    static const char *const same[][2] = {
        {"qwen2_moe", "qwen2"}, {"qwen3_moe", "qwen3"}, {"granitemoe", "granite"}, {"glm4_moe", "glm45"},
        {"lfm2_moe", "lfm2"}, {"ernie4_5_moe", "ernie45"}, {"longcat_flash", "longcat"}, {"hunyuan_v1_moe", "hunyuan"},
        {"switch_transformers", "switch"}, {"Renormalize", "granite"}, {"RenormalizeNaive", "mixtral"},
        {"TopKSigmoid", "llama4"}, {"exaone_moe", "glm45"}};
    moe_ep_router a, b;
    size_t i;
    for (i = 0; i < sizeof same / sizeof *same; i++) {
        CHECK_I64(moe_ep_router_by_name(same[i][0], 64, 4, &a, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_router_by_name(same[i][1], 64, 4, &b, NULL), MOE_EP_OK);
        CHECK(memcmp(&a, &b, sizeof a) == 0);
    }
    a = moe_ep_router_exaone_moe(128, 8);
    CHECK_NEAR(a.scale, 2.5, 0.0, 0.0);
}

TEST(input_dropout)
{
    float x[4000];
    moe_ep_rng rng = moe_ep_rng_seed(t_seed);
    moe_ep_error err;
    int i, gone = 0;
    for (i = 0; i < 4000; i++) x[i] = 3.0f;
    CHECK_I64(moe_ep_dropout(x, 4000, 0.0f, &rng, &err), MOE_EP_OK);
    CHECK(x[0] >= 3.0f && x[3999] <= 3.0f);
    CHECK_I64(moe_ep_dropout(x, 4000, 0.25f, &rng, &err), MOE_EP_OK);
    for (i = 0; i < 4000; i++) {
        gone += !(x[i] > 0.0f);
        CHECK(!(x[i] > 0.0f) || (x[i] >= 4.0f && x[i] <= 4.0f));
    }
    CHECK_NEAR(gone, 1000.0, 0.0, 5.0 * sqrt(4000.0 * 0.25 * 0.75));
    CHECK_I64(moe_ep_dropout(NULL, 0, 0.5f, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_dropout(NULL, 2, 0.5f, &rng, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_dropout(x, 2, 0.5f, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_dropout(x, -2, 0.5f, &rng, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_dropout(x, 2, 1.0f, &rng, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_dropout(x, 2, -0.1f, &rng, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_dropout(x, 2, NAN, &rng, &err), MOE_EP_ERR_NAN);
}

TEST(presets_and_names)
{
    float logits[3] = {1.0f, 3.0f, 2.0f}, w[2];
    int32_t ids[2], i, n = moe_ep_router_count();
    moe_ep_router r = moe_ep_router_mixtral(3, 2);
    moe_ep_error err;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, &err), MOE_EP_OK);
    CHECK(ids[0] == 1 && ids[1] == 2);
    CHECK_NEAR(w[0], 0.731059, 1e-6, 0.0);
    CHECK_NEAR(w[1], 0.268941, 2e-6, 0.0);
    CHECK(n >= 30);
    CHECK_STR(moe_ep_router_name(0), "mixtral");
    CHECK(moe_ep_router_name(n) == NULL && moe_ep_router_name(-1) == NULL && moe_ep_router_source(n) == NULL);
    for (i = 0; i < n; i++) {
        int32_t table[2] = {1, 0};
        static float many[256];
        int32_t out[8];
        CHECK(strlen(moe_ep_router_source(i)) > 3);
        CHECK_I64(moe_ep_router_by_name(moe_ep_router_name(i), 256, 2, &r, &err), MOE_EP_OK);
        r.table = table;
        r.table_rows = 1;
        CHECK_I64(moe_ep_route(&r, many, 1, NULL, out, NULL, &err), MOE_EP_OK);
    }
    r = moe_ep_router_megatron_groups(16, 6, 4, 2);
    CHECK(r.group_top_m == 3 && r.n_group == 4 && r.topk_group == 2);
    CHECK_I64(moe_ep_router_check(&r, &err), MOE_EP_OK);
    r = moe_ep_router_longcat(12, 2, 4);
    CHECK(r.num_null == 4 && moe_ep_router_dbrx(8, 2, 2.0f).renorm_p > 1.5f && !moe_ep_router_dbrx(8, 2, 0.0f).renorm);
    CHECK_I64(moe_ep_router_by_name("DeepSeek-V3", 256, 8, &r, &err), MOE_EP_OK);
    CHECK(r.n_group == 8 && r.scale > 2.4f && r.scale < 2.6f);
    CHECK_I64(moe_ep_router_by_name("GPT OSS", 32, 4, &r, &err), MOE_EP_OK);
    CHECK(r.weight == MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED);
    r.top_k = 55;
    CHECK_I64(moe_ep_router_by_name("nobody", 8, 2, &r, &err), MOE_EP_ERR_RANGE);
    {
        char text[60];
        moe_ep_error_text(&err, text, sizeof text);
        CHECK_STR(text, "name: no router has this name; see moe_ep_router_name (a va"); /* a name has no value */
    }
    CHECK_I64(moe_ep_router_by_name("mixtral", 0, 2, &r, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_router_by_name("mixtral", 8, 0, &r, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_router_by_name("mixtral", 8, 9, &r, &err), MOE_EP_ERR_TOP_K);
    CHECK_I64(moe_ep_router_by_name(NULL, 8, 2, &r, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_router_by_name("mixtral", 8, 2, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(r.top_k, 55);
}

/* phi-3.5-moe: two far apart logits win with weight 1 each; near ones share. */
TEST(sparsemixer_by_hand)
{
    const float other[4] = {0.0f, 9.0f, 0.0f, 0.0f};
    const int32_t table[2] = {3, 1};
    float logits[4] = {3.0f, 1.0f, 2.95f, -2.0f}, w[2];
    int32_t ids[2];
    moe_ep_router r = moe_ep_router_phimoe(4, 2);
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == 2);
    CHECK_NEAR(w[0], 1.0 / (1.0 + exp(-0.05)), 1e-6, 0.0); /* 0.05/3 is within 2 * 0.01 */
    CHECK_NEAR(w[1], 1.0, 1e-6, 0.0);                      /* the first winner no longer counts */
    r.select_bias = other;                                 /* not read */
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == 2);
    r = moe_ep_router_hash(4, 2);
    r.table = table;
    r.table_rows = 1;
    r.select_bias = other;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 3 && ids[1] == 1 && w[0] >= 1.0f && w[0] <= 1.0f);
}

TEST(table_and_keys)
{
    int32_t table[6] = {2, 0, 1, 1, -1, 2}, tokens[3] = {2, 0, 2}, ids[6], i;
    float logits[9] = {0.0f, 1.0f, 2.0f, 0.0f, 1.0f, 2.0f, 0.0f, 1.0f, 2.0f}, w[6];
    float keys[9] = {3.0f, 1.0f, 2.0f, 0.0f, 0.0f, 0.0f, -INFINITY, 1.0f, 2.0f};
    moe_ep_router r = moe_ep_router_deepseek_v4_hash(3, 2);
    moe_ep_error err;
    r.table = table;
    r.table_rows = 3;
    CHECK_I64(moe_ep_route(&r, logits, 3, tokens, ids, w, &err), MOE_EP_OK);
    CHECK(ids[0] == -1 && ids[1] == 2 && ids[2] == 2 && ids[3] == 0);
    CHECK(!(w[0] > 0.0f));
    CHECK_NEAR(w[1], 1.0, 1e-6, 0.0);
    CHECK_I64(moe_ep_route(&r, logits, 3, NULL, ids, w, &err), MOE_EP_OK);
    for (i = 0; i < 6; i++) CHECK_I64(ids[i], table[i]);
    tokens[1] = 3;
    CHECK_I64(moe_ep_route(&r, logits, 3, tokens, ids, w, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    table[3] = 3;
    CHECK_I64(moe_ep_route(&r, logits, 3, NULL, ids, w, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 3);
    r.table_rows = 2;
    CHECK_I64(moe_ep_route(&r, logits, 3, NULL, ids, w, &err), MOE_EP_ERR_SIZE);
    r = moe_ep_router_hash(3, 2); /* weight 1 needs no logits */
    r.table = table;
    r.table_rows = 1;
    CHECK_I64(moe_ep_route(&r, NULL, 1, NULL, ids, w, &err), MOE_EP_OK);
    CHECK(w[0] >= 1.0f && w[1] <= 1.0f);
    r.weight = MOE_EP_WEIGHT_SCORE;
    CHECK_I64(moe_ep_route(&r, NULL, 1, NULL, ids, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_route(&r, NULL, 1, NULL, ids, w, &err), MOE_EP_ERR_NULL);
    r = moe_ep_router_sinkhorn(3, 2);
    r.select = MOE_EP_SELECT_KEYS;
    r.keys = keys;
    CHECK_I64(moe_ep_route(&r, logits, 3, NULL, ids, w, &err), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == 2 && ids[2] == 0 && ids[3] == 1 && ids[4] == 2 && ids[5] == 1);
    CHECK_NEAR(w[0], exp(0.0) / (1.0 + exp(1.0) + exp(2.0)), 1e-6, 0.0);
}

/* ---- error paths ---------------------------------------------------------------------------------------- */

static void expect_route_error(const moe_ep_router *r, moe_ep_status want, const char *arg)
{
    float logits[64], w[64];
    int32_t ids[64], i;
    moe_ep_error err;
    for (i = 0; i < 64; i++) {
        logits[i] = (float)i;
        ids[i] = -99;
        w[i] = -99.0f;
    }
    CHECK_I64(moe_ep_route(r, logits, 2, NULL, ids, w, &err), want);
    CHECK_I64(err.status, want);
    CHECK_STR(err.arg, arg);
    for (i = 0; i < 64; i++) CHECK(ids[i] == -99 && w[i] < -98.0f);
    if (t_failed_here) printf("    expecting an error in %s\n", arg);
}

TEST(route_errors)
{
    static const float not_finite[8] = {0.0f, 0.0f, 0.0f, INFINITY, 0.0f, 0.0f, 0.0f, 0.0f};
    const moe_ep_router good = moe_ep_router_mixtral(8, 2);
    moe_ep_router r;
    float x[16] = {0};
    int32_t ids[4];
    moe_ep_error err;
#define BAD(field, value, status)                                                                   \
    do {                                                                                            \
        r = good;                                                                                   \
        r.field = value;                                                                            \
        expect_route_error(&r, status, #field);                                                     \
    } while (0)
    BAD(num_experts, 0, MOE_EP_ERR_SIZE);
    BAD(num_experts, -3, MOE_EP_ERR_SIZE);
    BAD(top_k, 0, MOE_EP_ERR_SIZE);
    BAD(top_k, 9, MOE_EP_ERR_TOP_K);
    BAD(score, (moe_ep_score)4, MOE_EP_ERR_RANGE);
    BAD(select, (moe_ep_select)7, MOE_EP_ERR_RANGE);
    BAD(weight, (moe_ep_weight)4, MOE_EP_ERR_RANGE);
    BAD(eps_mode, (moe_ep_eps_mode)3, MOE_EP_ERR_RANGE);
    BAD(logits_stride, 7, MOE_EP_ERR_SIZE);
    BAD(logits_stride, -1, MOE_EP_ERR_SIZE);
    BAD(num_null, 9, MOE_EP_ERR_SIZE);
    BAD(logit_softcap, -1.0f, MOE_EP_ERR_RANGE);
    BAD(renorm_p, NAN, MOE_EP_ERR_NAN);
    BAD(eps, -1e-9f, MOE_EP_ERR_RANGE);
    BAD(scale, INFINITY, MOE_EP_ERR_NAN);
    BAD(sparsemixer_jitter, NAN, MOE_EP_ERR_NAN);
    BAD(select_bias, not_finite, MOE_EP_ERR_NAN);
    BAD(logit_bias, not_finite, MOE_EP_ERR_NAN);
    BAD(per_expert_scale, not_finite, MOE_EP_ERR_NAN);
    BAD(n_group, 3, MOE_EP_ERR_CONFIG);
    BAD(n_group, -1, MOE_EP_ERR_SIZE);
    BAD(n_group, 1025, MOE_EP_ERR_SIZE);
#undef BAD
    r = good;
    r.n_group = 4;
    expect_route_error(&r, MOE_EP_ERR_SIZE, "topk_group");
    r.topk_group = 1;
    r.group_top_m = 3;
    expect_route_error(&r, MOE_EP_ERR_SIZE, "group_top_m");
    r.group_top_m = 2;
    r.top_k = 3;
    expect_route_error(&r, MOE_EP_ERR_TOP_K, "top_k");
    r.top_k = 2;
    r.select = MOE_EP_SELECT_SPARSEMIXER;
    expect_route_error(&r, MOE_EP_ERR_CONFIG, "n_group");
    r = good;
    r.group_top_k = -1;
    expect_route_error(&r, MOE_EP_ERR_SIZE, "group_top_k");
    r.group_top_k = 1; /* no groups: it must be K */
    expect_route_error(&r, MOE_EP_ERR_CONFIG, "group_top_k");
    r.n_group = 4;
    r.topk_group = 2;
    CHECK_I64(moe_ep_router_check(&r, NULL), MOE_EP_OK);
    r.mask_zero = 1;
    expect_route_error(&r, MOE_EP_ERR_CONFIG, "mask_zero");
    r.mask_zero = 0;
    r.group_top_k = 2;
    expect_route_error(&r, MOE_EP_ERR_CONFIG, "group_top_k");
    r = good;
    r.select = MOE_EP_SELECT_TABLE;
    expect_route_error(&r, MOE_EP_ERR_NULL, "table");
    r.table = ids;
    expect_route_error(&r, MOE_EP_ERR_SIZE, "table_rows");
    r.select = MOE_EP_SELECT_KEYS;
    expect_route_error(&r, MOE_EP_ERR_NULL, "keys");
    memset(&r, 0, sizeof r);
    expect_route_error(&r, MOE_EP_ERR_SIZE, "num_experts");
    r = good;
    CHECK_I64(moe_ep_route(NULL, x, 2, NULL, ids, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route(&r, NULL, 2, NULL, ids, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route(&r, x, 2, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route(&r, x, -1, NULL, ids, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_route(&r, x, INT64_MAX / 4, NULL, ids, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_route(&r, NULL, 0, NULL, NULL, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_route(&r, x, 2, NULL, ids, NULL, NULL), MOE_EP_OK); /* neither weights nor err */
    r.top_k = 9;
    r.num_experts = 8;
    CHECK_I64(moe_ep_router_check(&r, &err), MOE_EP_ERR_TOP_K);
}

TEST(route_other_bad_arguments)
{
    float scores[4] = {1.0f, 0.0f, 0.0f, 1.0f}, logits[2] = {0.0f, 1.0f}, out[4] = {-9.0f, -9.0f, -9.0f, -9.0f};
    int32_t ids[2] = {0, 1}, low[2] = {-2, 0}, device[2] = {-1, 0}, got[2] = {-9, -9};
    int64_t loads[2] = {1, 1};
    moe_ep_aux_desc d;
    moe_ep_router r = moe_ep_router_mixtral(2, 1);
    moe_ep_error err;
    CHECK_NEAR(moe_ep_router_entropy(scores, 2, 2, &err), 0.0, 0.0, 0.0); /* p of 0 and 1 */
    r.num_experts = 0;
    CHECK_I64(moe_ep_scores(&r, logits, 1, out, &err), MOE_EP_ERR_SIZE);
    r.num_experts = 2;
    CHECK_I64(moe_ep_scores(&r, logits, 0, out, &err), MOE_EP_OK);
    r.n_group = 2;
    r.topk_group = 3;
    CHECK_I64(moe_ep_router_check(&r, &err), MOE_EP_ERR_SIZE);
    r.topk_group = 1;
    r.group_top_m = -1;
    CHECK_I64(moe_ep_router_check(&r, &err), MOE_EP_ERR_SIZE);
    r = moe_ep_router_hash(2, 1);
    r.table = low;
    r.table_rows = 2;
    CHECK_I64(moe_ep_route(&r, NULL, 2, NULL, got, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_gate(logits, 0, 1, logits, NULL, 1, out, &err), MOE_EP_OK);
    CHECK(got[0] == -9 && out[0] < -8.0f);
    memset(&d, 0, sizeof d);
    d.num_tokens = 2;
    d.top_k = 1;
    d.num_experts = 2;
    d.scores = scores;
    d.ids = low;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_EXPERT_ID, 0.0, 0.0);
    d.ids = ids;
    d.kind = MOE_EP_AUX_COMMUNICATION;
    d.num_devices = 2;
    d.device_of_expert = device;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_DEVICE_ID, 0.0, 0.0);
    device[0] = 1;
    d.devices_per_token = -1;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    CHECK_STR(err.arg, "devices_per_token");
    d.devices_per_token = 1;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), 1.0, 1e-12, 0.0);
    d.num_sequences = -1;
    d.kind = MOE_EP_AUX_SEQUENCE;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    d.kind = MOE_EP_AUX_GLOBAL;
    d.global_loads = loads;
    d.ids = NULL;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), 1.0, 1e-12, 0.0);
    loads[0] = loads[1] = 0; /* no load at all: loss 0 */
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), 0.0, 0.0, 0.0);
}

/* ---- gate ----------------------------------------------------------------------------------------------- */

TEST(gate_against_double)
{
    static float x[3 * 133], w[7 * 133], bias[7], got[21];
    uint64_t s = t_seed;
    int H, t, e, h, i;
    moe_ep_error err;
    for (H = 1; H <= 133; H += 11) {
        for (i = 0; i < 3 * H; i++) x[i] = (float)(t_unit(&s) - 0.5);
        for (i = 0; i < 7 * H; i++) w[i] = (float)(t_unit(&s) - 0.5);
        for (i = 0; i < 7; i++) bias[i] = (float)t_unit(&s);
        CHECK_I64(moe_ep_gate(x, 3, H, w, H % 2 ? bias : NULL, 7, got, &err), MOE_EP_OK);
        for (t = 0; t < 3; t++)
            for (e = 0; e < 7; e++) {
                double sum = H % 2 ? (double)bias[e] : 0.0;
                for (h = 0; h < H; h++) sum += (double)x[t * H + h] * (double)w[e * H + h];
                CHECK_NEAR(got[t * 7 + e], sum, 1e-5, 1e-6);
            }
    }
    {
        float a[2] = {1.0f, 2.0f}, b[2] = {3.0f, 4.0f}, c[1] = {0.5f}, out[1] = {-9.0f};
        CHECK_I64(moe_ep_gate(a, 1, 0, b, c, 1, out, &err), MOE_EP_ERR_SIZE);
        CHECK_I64(moe_ep_gate(a, 1, 2, b, c, 0, out, &err), MOE_EP_ERR_SIZE);
        CHECK_I64(moe_ep_gate(a, -1, 2, b, c, 1, out, &err), MOE_EP_ERR_SIZE);
        CHECK_I64(moe_ep_gate(NULL, 1, 2, b, c, 1, out, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_gate(a, 1, 2, NULL, c, 1, out, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_gate(a, 1, 2, b, c, 1, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_gate(a, INT64_MAX / 4, 2, b, c, 1, out, &err), MOE_EP_ERR_OVERFLOW);
        CHECK(out[0] < -8.0f);
        CHECK_I64(moe_ep_gate(a, 1, 2, b, c, 1, out, &err), MOE_EP_OK);
        CHECK_NEAR(out[0], 11.5, 0.0, 0.0);
    }
}

TEST(scores_examples_and_errors)
{
    float logits[2] = {0.0f, 0.0f}, s[2] = {-9.0f, -9.0f}, bad[2] = {0.0f, NAN};
    moe_ep_router r = moe_ep_router_mixtral(2, 1);
    moe_ep_error err;
    CHECK_I64(moe_ep_scores(&r, bad, 1, s, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_scores(NULL, logits, 1, s, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_scores(&r, NULL, 1, s, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_scores(&r, logits, 1, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_scores(&r, logits, -1, s, &err), MOE_EP_ERR_SIZE);
    CHECK(s[0] < -8.0f);
    CHECK_I64(moe_ep_scores(&r, logits, 1, s, &err), MOE_EP_OK);
    CHECK_NEAR(s[0], 0.5, 1e-7, 0.0);
    r.score = MOE_EP_SCORE_SQRT_SOFTPLUS;
    logits[1] = -INFINITY;
    CHECK_I64(moe_ep_scores(&r, logits, 1, s, &err), MOE_EP_OK);
    CHECK_NEAR(s[0], sqrt(log(2.0)), 1e-6, 0.0);
    CHECK_NEAR(s[1], 0.0, 0.0, 0.0);
}

/* ---- expert choice -------------------------------------------------------------------------------------- */

TEST(expert_choice_against_sorting)
{
    static float scores[40 * 9], w[40 * 9];
    static int32_t tokens[40 * 9];
    static float column[40];
    static int order[40];
    int64_t per_token[40], total;
    uint64_t s = t_seed;
    int n, T, E, C, t, e, i;
    for (n = 0; n < 2000; n++) {
        T = 1 + (int)t_below(&s, 40);
        E = 1 + (int)t_below(&s, 9);
        C = 1 + (int)t_below(&s, T);
        for (i = 0; i < T * E; i++) scores[i] = (float)t_below(&s, 12) / 4.0f; /* many ties */
        CHECK_I64(moe_ep_expert_choice(scores, T, E, C, tokens, w, per_token, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++) {
            for (t = 0; t < T; t++) column[t] = scores[t * E + e];
            oracle_sort(column, order, T);
            for (i = 0; i < C; i++) {
                CHECK_I64(tokens[e * C + i], order[i]);
                CHECK(!(w[e * C + i] < column[order[i]]) && !(w[e * C + i] > column[order[i]]));
            }
        }
        for (total = 0, t = 0; t < T; t++) total += per_token[t];
        CHECK_I64(total, (int64_t)C * E);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(expert_choice_example_and_errors)
{
    float scores[4] = {0.9f, 0.2f, 0.6f, 0.8f}, bad[4] = {0.9f, NAN, 0.6f, 0.8f};
    int32_t tokens[4] = {-9, -9, -9, -9};
    moe_ep_error err;
    CHECK_I64(moe_ep_expert_choice(NULL, 2, 2, 1, tokens, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_expert_choice(scores, 2, 2, 1, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_expert_choice(scores, 0, 2, 1, tokens, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_choice(scores, 2, 0, 1, tokens, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_choice(scores, 2, 2, 0, tokens, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_choice(scores, 2, 2, 3, tokens, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_choice(bad, 2, 2, 1, tokens, NULL, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_expert_choice(scores, INT64_MAX / 2, 2, 1, tokens, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(tokens[0], -9);
    CHECK_I64(moe_ep_expert_choice(scores, 2, 2, 1, tokens, NULL, NULL, &err), MOE_EP_OK);
    CHECK(tokens[0] == 0 && tokens[1] == 1);
}

/* ---- top-2 and dice ------------------------------------------------------------------------------------- */

/* How often the second expert is used in n tokens with the same logits. */
static int seconds_used(const moe_ep_top2 *c, const float *logits, int n, int32_t *which)
{
    moe_ep_rng rng = moe_ep_rng_seed(t_seed);
    int32_t ids[2];
    int i, used = 0;
    for (i = 0; i < n; i++) {
        CHECK_I64(moe_ep_route_top2(c, logits, 1, &rng, ids, NULL, NULL), MOE_EP_OK);
        CHECK_I64(ids[0], 0);
        used += ids[1] >= 0;
        if (which && ids[1] >= 0) which[ids[1]]++;
    }
    return used;
}

TEST(top2_policies)
{
    float logits[3] = {2.0f, 1.0f, 0.0f}, w[2], g1, g2, total;
    int32_t ids[2], which[3] = {0, 0, 0}, n = 20000;
    moe_ep_top2 c;
    double p;
    memset(&c, 0, sizeof c);
    c.num_experts = 3;
    c.renorm = 1;
    CHECK_I64(moe_ep_route_top2(&c, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == 1);
    CHECK_NEAR(w[0], 0.731059, 1e-6, 0.0);
    CHECK_NEAR(w[1], 0.268941, 2e-6, 0.0);
    total = expf(2.0f) + expf(1.0f) + 1.0f;
    g1 = expf(2.0f) / total;
    g2 = expf(1.0f) / total; /* 0.2447 */
    c.renorm = 0;
    CHECK_I64(moe_ep_route_top2(&c, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK_NEAR(w[0], g1, 1e-6, 0.0);
    c.second = MOE_EP_SECOND_NONE;
    CHECK_I64(seconds_used(&c, logits, 5, NULL), 0);
    c.second = MOE_EP_SECOND_THRESHOLD;
    c.threshold = 0.24f;
    CHECK_I64(seconds_used(&c, logits, 5, NULL), 5);
    c.threshold = 0.25f;
    CHECK_I64(seconds_used(&c, logits, 5, NULL), 0);
    c = moe_ep_top2_nllb(3);
    CHECK(c.second == MOE_EP_SECOND_ALL && !c.sample_second && !c.renorm);
    c.second = MOE_EP_SECOND_RANDOM;
    c.threshold = 0.5f; /* 2 g2 > U */
    p = 2.0 * (double)g2;
    CHECK_NEAR(seconds_used(&c, logits, n, NULL), n * p, 0.0, 5.0 * sqrt(n * p * (1.0 - p)));
    c = moe_ep_top2_gshard(3);
    p = (double)(g2 / (g1 + g2)) / 0.2; /* above 1: always */
    CHECK(p > 1.0);
    CHECK_I64(seconds_used(&c, logits, 500, NULL), 500);
    c = moe_ep_top2_gshard_new(3);
    logits[1] = logits[2] = -1.0f;
    p = exp(-1.0) / (exp(2.0) + 2.0 * exp(-1.0)) / 0.2;
    CHECK_NEAR(seconds_used(&c, logits, n, NULL), n * p, 0.0, 5.0 * sqrt(n * p * (1.0 - p)));
    c = moe_ep_top2_deepspeed(3); /* Gumbel: the second is drawn by softmax over the rest */
    logits[1] = 1.0f;
    logits[2] = 0.0f;
    CHECK_I64(seconds_used(&c, logits, n, which), n);
    p = exp(1.0) / (exp(1.0) + 1.0);
    CHECK_NEAR(which[1], n * p, 0.0, 5.0 * sqrt(n * p * (1.0 - p)));
}

TEST(top2_errors)
{
    float logits[4] = {1.0f, 2.0f, 3.0f, 4.0f}, w[4];
    int32_t ids[4] = {-9, -9, -9, -9};
    moe_ep_rng rng = moe_ep_rng_seed(3);
    moe_ep_top2 c = moe_ep_top2_nllb(2), bad;
    moe_ep_error err;
    CHECK_I64(moe_ep_route_top2(NULL, logits, 2, &rng, ids, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route_top2(&c, NULL, 2, &rng, ids, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route_top2(&c, logits, 2, &rng, NULL, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route_top2(&c, logits, -2, &rng, ids, w, &err), MOE_EP_ERR_SIZE);
    bad = moe_ep_top2_nllb(1);
    CHECK_I64(moe_ep_route_top2(&bad, logits, 2, &rng, ids, w, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_experts");
    memset(&bad, 0, sizeof bad);
    CHECK_I64(moe_ep_route_top2(&bad, logits, 2, &rng, ids, w, &err), MOE_EP_ERR_SIZE);
    bad = moe_ep_top2_gshard(2);
    CHECK_I64(moe_ep_route_top2(&bad, logits, 2, NULL, ids, w, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "rng");
    bad.threshold = -1.0f;
    CHECK_I64(moe_ep_route_top2(&bad, logits, 2, &rng, ids, w, &err), MOE_EP_ERR_RANGE);
    bad = c;
    bad.second = (moe_ep_second)9;
    CHECK_I64(moe_ep_route_top2(&bad, logits, 2, &rng, ids, w, &err), MOE_EP_ERR_RANGE);
    logits[3] = NAN;
    CHECK_I64(moe_ep_route_top2(&c, logits, 2, &rng, ids, w, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 3);
    CHECK_I64(ids[0], -9);
}

TEST(sampled_top1_and_jitter)
{
    float logits[3] = {0.0f, 1.0f, -INFINITY}, w[1], x[1000];
    int32_t id, count[3] = {0, 0, 0}, n = 20000, i;
    double p = exp(1.0) / (1.0 + exp(1.0)), sum = 0.0;
    moe_ep_rng rng = moe_ep_rng_seed(t_seed);
    moe_ep_error err;
    for (i = 0; i < n; i++) {
        CHECK_I64(moe_ep_route_sample(logits, 1, 3, &rng, &id, w, NULL), MOE_EP_OK);
        count[id]++;
        CHECK_NEAR(w[0], id ? p : 1.0 - p, 1e-5, 0.0);
    }
    CHECK_I64(count[2], 0);
    CHECK_NEAR(count[1], n * p, 0.0, 5.0 * sqrt(n * p * (1.0 - p)));
    logits[1] = -INFINITY;
    CHECK_I64(moe_ep_route_sample(logits, 1, 2, &rng, &id, w, NULL), MOE_EP_OK);
    CHECK(id == 0 && w[0] >= 1.0f);
    id = -9;
    CHECK_I64(moe_ep_route_sample(NULL, 1, 3, &rng, &id, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route_sample(logits, 1, 3, NULL, &id, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route_sample(logits, 1, 3, &rng, NULL, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route_sample(logits, 0, 3, &rng, &id, w, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_route_sample(logits, 1, 0, &rng, &id, w, &err), MOE_EP_ERR_SIZE);
    logits[0] = NAN;
    CHECK_I64(moe_ep_route_sample(logits, 1, 3, &rng, &id, w, &err), MOE_EP_ERR_NAN);
    CHECK_I64(id, -9);
    for (i = 0; i < 1000; i++) x[i] = 3.0f;
    CHECK_I64(moe_ep_jitter(x, 1000, 0.0f, &rng, &err), MOE_EP_OK);
    CHECK(x[0] >= 3.0f && x[999] <= 3.0f);
    CHECK_I64(moe_ep_jitter(x, 1000, 0.01f, &rng, &err), MOE_EP_OK);
    for (i = 0; i < 1000; i++) {
        CHECK(x[i] >= 2.9699f && x[i] <= 3.0301f);
        sum += (double)x[i];
    }
    CHECK_NEAR(sum, 3000.0, 0.0, 5.0 * sqrt(1000.0) * 0.03 / sqrt(3.0));
    CHECK(x[0] > x[1] || x[0] < x[1]);
    CHECK_I64(moe_ep_jitter(NULL, 2, 0.1f, &rng, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_jitter(x, 2, 0.1f, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_jitter(x, -2, 0.1f, &rng, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_jitter(x, 2, 1.1f, &rng, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_jitter(x, 2, -0.1f, &rng, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_jitter(x, 2, NAN, &rng, &err), MOE_EP_ERR_NAN);
}

/* ---- Sinkhorn, auction, quantile ------------------------------------------------------------------------ */

TEST(sinkhorn_marginals)
{
    float logits[30], out[30];
    uint64_t s = t_seed;
    int32_t rounds, i, t, e;
    moe_ep_error err;
    moe_ep_scratch small;
    char memory[4096];
    for (i = 0; i < 30; i++) logits[i] = (float)(4.0 * t_unit(&s) - 2.0);
    CHECK_I64(moe_ep_sinkhorn(logits, 6, 5, 1e-6, 0, out, &rounds, NULL, &err), MOE_EP_OK);
    CHECK(rounds > 1);
    for (t = 0; t < 6; t++) {
        double sum = 0.0;
        for (e = 0; e < 5; e++) sum += (double)out[t * 5 + e];
        CHECK_NEAR(sum, 1.0 / 6.0, 1e-4, 0.0);
    }
    for (e = 0; e < 5; e++) {
        double sum = 0.0;
        for (t = 0; t < 6; t++) sum += (double)out[t * 5 + e];
        CHECK_NEAR(sum, 1.0 / 5.0, 1e-4, 0.0);
    }
    /* scaling rows and columns keeps cross ratios */
    CHECK_NEAR((double)out[0] * (double)out[6] / ((double)out[1] * (double)out[5]),
               exp((double)logits[0] + (double)logits[6] - (double)logits[1] - (double)logits[5]), 1e-4, 0.0);
    for (i = 0; i < 4; i++) logits[i] = 3.0f;
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 0.0, 0, out, NULL, NULL, &err), MOE_EP_OK);
    for (i = 0; i < 4; i++) CHECK_NEAR(out[i], 0.25, 1e-5, 0.0);
    out[0] = -9.0f;
    logits[0] = 9.0f;
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 1e-12, 1, out, NULL, NULL, &err), MOE_EP_ERR_INFEASIBLE);
    CHECK_I64(moe_ep_sinkhorn(NULL, 2, 2, 0.0, 0, out, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 0.0, 0, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sinkhorn(logits, 0, 2, 0.0, 0, out, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 0, 0.0, 0, out, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, -1.0, 0, out, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, NAN, 0, out, NULL, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 0.0, -1, out, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    logits[3] = 90.0f;
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 0.0, 0, out, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 3);
    logits[3] = NAN;
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 0.0, 0, out, NULL, NULL, &err), MOE_EP_ERR_NAN);
    logits[3] = 1.0f;
    small = moe_ep_scratch_fixed(memory, sizeof memory);
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 0.0, 0, out + 8, NULL, &small, &err), MOE_EP_OK);
    small = moe_ep_scratch_fixed(memory, small.need - 1);
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 2, 0.0, 0, out, NULL, &small, &err), MOE_EP_ERR_SCRATCH);
    CHECK(out[0] < -8.0f);
}

/* Best total score over all assignments with exactly room[e] tokens each. */
static double best_assignment(const float *scores, int T, int E, int t, int *room)
{
    double best = -1e30, value;
    int e;
    if (t == T) return 0.0;
    for (e = 0; e < E; e++) {
        if (room[e] == 0) continue;
        room[e]--;
        value = (double)scores[t * E + e] + best_assignment(scores, T, E, t + 1, room);
        room[e]++;
        if (value > best) best = value;
    }
    return best;
}

TEST(auction_is_balanced_and_nearly_optimal)
{
    float scores[64 * 8];
    int32_t out[64];
    uint64_t s = t_seed;
    int n, T, E, t, e, room[8];
    for (n = 0; n < 400; n++) {
        double total = 0.0, min = 1e30, max = -1e30, eps;
        int load[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        E = n < 300 ? 1 + (int)t_below(&s, 3) : 8;
        T = n < 300 ? E * (1 + (int)t_below(&s, 3)) : 64;
        for (t = 0; t < T * E; t++) {
            scores[t] = n % 5 == 0 ? (float)t_below(&s, 3) : (float)t_unit(&s);
            min = (double)scores[t] < min ? (double)scores[t] : min;
            max = (double)scores[t] > max ? (double)scores[t] : max;
        }
        CHECK_I64(moe_ep_auction(scores, T, E, out, NULL, NULL), MOE_EP_OK);
        for (t = 0; t < T; t++) {
            CHECK(out[t] >= 0 && out[t] < E);
            load[out[t]]++;
            total += (double)scores[t * E + out[t]];
        }
        for (e = 0; e < E; e++) CHECK_I64(load[e], T / E);
        for (e = 0; e < E; e++) room[e] = T / E;
        eps = (max - min) / 50.0 > 1e-4 ? (max - min) / 50.0 : 1e-4;
        if (n < 300) CHECK(total >= best_assignment(scores, T, E, 0, room) - T * eps - 1e-5);
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(auction_example_and_errors)
{
    float scores[4] = {3.0f, 1.0f, 2.0f, 1.0f};
    int32_t out[4] = {-9, -9, -9, -9};
    char memory[4096];
    moe_ep_scratch small;
    moe_ep_error err;
    CHECK_I64(moe_ep_auction(NULL, 2, 2, out, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_auction(scores, 2, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_auction(scores, 1, 2, out, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_auction(scores, 0, 2, out, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_auction(scores, 2, 0, out, NULL, &err), MOE_EP_ERR_SIZE);
    scores[2] = INFINITY;
    CHECK_I64(moe_ep_auction(scores, 2, 2, out, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 2);
    scores[2] = 2.0f;
    small = moe_ep_scratch_fixed(memory, 10);
    CHECK_I64(moe_ep_auction(scores, 2, 2, out, &small, &err), MOE_EP_ERR_SCRATCH);
    small = moe_ep_scratch_fixed(memory, small.need - 1);
    CHECK_I64(moe_ep_auction(scores, 2, 2, out, &small, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(out[0], -9);
    small = moe_ep_scratch_fixed(memory, small.need);
    CHECK_I64(moe_ep_auction(scores, 2, 2, out, &small, &err), MOE_EP_OK);
    CHECK(out[0] == 0 && out[1] == 1);
}

TEST(quantile_against_sorting)
{
    float scores[24 * 6], beta[6], want[6], alpha[24], column[24];
    int order[24], n, T, E, K, t, e;
    uint64_t s = t_seed;
    for (n = 0; n < 2000; n++) {
        E = 2 + (int)t_below(&s, 5);
        K = 1 + (int)t_below(&s, E - 1);
        T = 1 + (int)t_below(&s, 24); /* T*K/E is rounded down */
        for (t = 0; t < T * E; t++) scores[t] = coarse(&s, 3);
        for (e = 0; e < E; e++) beta[e] = coarse(&s, 1);
        for (t = 0; t < T; t++) {
            for (e = 0; e < E; e++) column[e] = scores[t * E + e] - beta[e];
            oracle_sort(column, order, E);
            alpha[t] = column[order[K]];
        }
        for (e = 0; e < E; e++) {
            for (t = 0; t < T; t++) column[t] = scores[t * E + e] - alpha[t];
            oracle_sort(column, order, T);
            want[e] = column[order[T * K / E]];
        }
        CHECK_I64(moe_ep_quantile_update(scores, T, E, K, beta, NULL, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++) CHECK_NEAR(beta[e], want[e], 0.0, 0.0);
        STOP_IF_FAILED("case %d", n);
    }
}

/* Six updates as the comment says, then the batch is routed: max/mean. */
static double quantile_balance(moe_ep_router r, const float *logits, int scored)
{
    enum { T = 1024, E = 16, K = 2 };
    static float scores[T * E];
    static int32_t ids[T * K];
    float beta[E] = {0.0f}, minus[E];
    int64_t loads[E] = {0}, most = 0;
    int i, step;
    memcpy(scores, logits, sizeof scores);
    if (scored) CHECK_I64(moe_ep_scores(&r, logits, T, scores, NULL), MOE_EP_OK);
    for (step = 0; step < 6; step++) CHECK_I64(moe_ep_quantile_update(scores, T, E, K, beta, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < E; i++) minus[i] = -beta[i];
    r.select_bias = minus;
    CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < T * K; i++) loads[ids[i]]++;
    for (i = 0; i < E; i++) most = loads[i] > most ? loads[i] : most;
    return (double)most * E / (T * K);
}

TEST(quantile_by_its_recipe)
{
    static float logits[1024 * 16];
    uint64_t s = t_seed;
    const float four[4] = {1.0f, 3.0f, 2.0f, 0.0f}, bias[4] = {0.0f, -2.5f, 0.0f, 0.0f};
    moe_ep_router r = moe_ep_router_megatron_sigmoid(16, 2);
    float w[2];
    int32_t ids[2];
    int i;
    for (i = 0; i < 1024 * 16; i++) /* the last experts are the best liked */
        logits[i] = (float)(4.0 * (t_unit(&s) + t_unit(&s) + t_unit(&s) - 1.5)) + 0.4f * (float)(i % 16);
    CHECK(quantile_balance(moe_ep_router_megatron_quantile(16, 2), logits, 0) < 1.1);
    CHECK(quantile_balance(moe_ep_router_megatron_post_softmax(16, 2), logits, 0) < 1.1);
    CHECK(quantile_balance(r, logits, 1) < 1.3);
    CHECK(quantile_balance(r, logits, 0) > 2.0); /* beta of logits, choice by sigmoids */
    r = moe_ep_router_megatron_quantile(4, 2); /* chosen by 1, 0.5, 2, 0; weights of the sigmoids without the bias */
    r.select_bias = bias;
    CHECK_I64(moe_ep_route(&r, four, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 2 && ids[1] == 0);
    CHECK_NEAR(w[0], 0.880797 / (0.880797 + 0.731059), 1e-6, 0.0);
    CHECK_NEAR(w[1], 0.731059 / (0.880797 + 0.731059), 1e-6, 0.0);
}

TEST(quantile_example_and_errors)
{
    float scores[4] = {3.0f, 1.0f, 2.0f, 0.0f}, beta[2] = {0.0f, 0.0f};
    char memory[1024];
    moe_ep_scratch small = moe_ep_scratch_fixed(memory, 3);
    moe_ep_error err;
    int e, i;
    CHECK_I64(moe_ep_quantile_update(NULL, 2, 2, 1, beta, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_quantile_update(scores, 2, 2, 1, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_quantile_update(scores, 0, 2, 1, beta, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_quantile_update(scores, 2, 2, 0, beta, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_quantile_update(scores, 2, 2, 2, beta, NULL, &err), MOE_EP_ERR_TOP_K);
    CHECK_I64(moe_ep_quantile_update(scores, 2, 2, 1, beta, &small, &err), MOE_EP_ERR_SCRATCH);
    CHECK(!(beta[0] > 0.0f));
    CHECK_I64(moe_ep_quantile_update(scores, 2, 2, 1, beta, NULL, &err), MOE_EP_OK);
    CHECK_NEAR(beta[0], 2.0, 0.0, 0.0);
    CHECK_NEAR(beta[1], 0.0, 0.0, 0.0);
    beta[1] = NAN;
    CHECK_I64(moe_ep_quantile_update(scores, 2, 2, 1, beta, NULL, &err), MOE_EP_ERR_NAN);
    for (e = 0; e < 8; e++) { /* 3e38 less -3e38 is no float: scores at the ends, and betas */
        for (i = 0; i < 4; i++) scores[i] = (e >> i & 1) ? 3e38f : -3e38f;
        beta[0] = e & 4 ? -3e38f : 0.0f, beta[1] = e & 2 ? 3e38f : 0.0f;
        CHECK_I64(moe_ep_quantile_update(scores, 1 + e % 2, 2, 1, beta, NULL, &err), MOE_EP_OK);
        CHECK(isfinite(beta[0]) && isfinite(beta[1]));
    }
}

/* ---- bias update ---------------------------------------------------------------------------------------- */

TEST(bias_update_balances)
{
    float logits[64 * 8], bias[8], w[128], sum;
    int32_t ids[128], i, step;
    int64_t loads[8], worst = 0, first = 0;
    uint64_t s = t_seed;
    moe_ep_router r = moe_ep_router_minimax_m2(8, 2);
    memset(bias, 0, sizeof bias);
    r.select_bias = bias;
    for (i = 0; i < 512; i++) logits[i] = (float)(2.0 * t_unit(&s) + (i % 8 == 3 ? 1.5 : 0.0));
    for (step = 0; step < 200; step++) {
        CHECK_I64(moe_ep_route(&r, logits, 64, NULL, ids, w, NULL), MOE_EP_OK);
        memset(loads, 0, sizeof loads);
        for (i = 0; i < 128; i++) loads[ids[i]]++;
        for (worst = 0, i = 0; i < 8; i++) worst = loads[i] > worst ? loads[i] : worst;
        if (step == 0) first = worst;
        CHECK_I64(moe_ep_bias_update(loads, 8, 0.004f, step % 2, bias, NULL), MOE_EP_OK);
    }
    CHECK(first >= 40);
    CHECK(worst <= 20); /* 16 is perfect */
    memset(bias, 0, sizeof bias);
    CHECK_I64(moe_ep_bias_update(loads, 8, 0.5f, 1, bias, NULL), MOE_EP_OK);
    for (sum = 0.0f, i = 0; i < 8; i++) sum += bias[i];
    CHECK_NEAR(sum, 0.0, 0.0, 1e-6);
}

TEST(bias_update_example_and_errors)
{
    int64_t loads[2] = {3, 1}, huge[2] = {INT64_MAX / 2, 0}, negative[2] = {1, -1}, even[2] = {2, 2};
    float bias[2] = {0.0f, 0.0f}, bad[2] = {0.0f, NAN};
    moe_ep_error err;
    CHECK_I64(moe_ep_bias_update(NULL, 2, 0.5f, 0, bias, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_bias_update(loads, 2, 0.5f, 0, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_bias_update(loads, 0, 0.5f, 0, bias, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_bias_update(loads, 2, NAN, 0, bias, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_bias_update(loads, 2, 0.5f, 0, bad, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_bias_update(negative, 2, 0.5f, 0, bias, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_bias_update(huge, 2, 0.5f, 0, bias, &err), MOE_EP_OK);
    huge[0] = INT64_MAX / 2 + 1;
    bias[0] = bias[1] = 0.0f;
    CHECK_I64(moe_ep_bias_update(huge, 2, 0.5f, 0, bias, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_bias_update(even, 2, 0.5f, 0, bias, &err), MOE_EP_OK);
    CHECK(!(bias[0] > 0.0f) && !(bias[0] < 0.0f));
    CHECK_I64(moe_ep_bias_update(loads, 2, 0.5f, 0, bias, &err), MOE_EP_OK);
    CHECK_NEAR(bias[0], -0.5, 0.0, 0.0);
    CHECK_NEAR(bias[1], 0.5, 0.0, 0.0);
}

/* ---- losses --------------------------------------------------------------------------------------------- */

/* Perfect balance: token t uses experts t, t+1, ..; every score is 1/E. */
TEST(losses_at_balance)
{
    static const double at_balance[8] = {1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 1.0, 1.0};
    float scores[48];
    int32_t ids[24], device[6] = {0, 0, 1, 1, 2, 2}, i, kind;
    int64_t loads[6] = {4, 4, 4, 4, 4, 4};
    moe_ep_aux_desc d;
    memset(&d, 0, sizeof d);
    for (i = 0; i < 48; i++) scores[i] = 1.0f / 6.0f;
    for (i = 0; i < 18; i++) ids[i] = (i / 3 + i % 3 * 2) % 6; /* one expert on each device */
    d.num_tokens = 6;
    d.top_k = 3;
    d.num_experts = 6;
    d.scores = scores;
    d.ids = ids;
    d.global_loads = loads;
    d.device_of_expert = device;
    d.num_devices = 3;
    d.num_sequences = 1;
    for (kind = 0; kind < 8; kind++) CHECK_NEAR(aux_of(d, (moe_ep_aux)kind), at_balance[kind], 1e-6, 0.0);
    d.coefficient = 0.25;
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_SWITCH), 0.25, 1e-6, 0.0);
}

/* All tokens on expert 0, which also has all the probability: the worst case of each loss. */
TEST(losses_at_collapse)
{
    float scores[16];
    int32_t ids[4] = {0, 0, 0, 0}, device[4] = {0, 0, 1, 1}, i;
    int64_t loads[4] = {30, 10, 0, 0};
    moe_ep_aux_desc d;
    memset(&d, 0, sizeof d);
    for (i = 0; i < 16; i++) scores[i] = i % 4 == 0 ? 2.0f : 0.0f;
    d.num_tokens = 4;
    d.top_k = 1;
    d.num_experts = 4;
    d.scores = scores;
    d.ids = ids;
    d.normalize_scores = 1;
    d.num_sequences = 2;
    d.global_loads = loads;
    d.device_of_expert = device;
    d.num_devices = 2;
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_SWITCH), 4.0, 1e-6, 0.0);
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_SEQUENCE), 4.0, 1e-6, 0.0);
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_GLOBAL), 3.0, 1e-6, 0.0);
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_DEVICE), 2.0, 1e-6, 0.0);
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_COMMUNICATION), 2.0, 1e-6, 0.0);
    ids[1] = -1; /* a padded token counts nowhere */
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_SWITCH), 4.0, 1e-6, 0.0);
}

/* Padding behind a batch at balance, or a whole sequence of it, changes no loss; the ids that are left of a token count
 * as before.  Megatron multiplies the scores by its mask and takes the tokens for T that have choices. */
TEST(losses_with_padding)
{
    static const float scores[16] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f,
                                     0.9f, 0.1f, 0.7f, 0.3f, 0.9f, 0.1f, 0.2f, 0.8f};
    static const int32_t ids[8] = {0, 1, 1, 0, -1, -1, -1, -1}, device[2] = {0, 1}, half[4] = {0, -1, -1, 1};
    static const int64_t loads[2] = {5, 5};
    moe_ep_aux_desc d;
    int kind;
    memset(&d, 0, sizeof d);
    d.top_k = 1;
    d.num_experts = 2;
    d.scores = scores;
    d.ids = ids;
    d.global_loads = loads;
    d.device_of_expert = device;
    d.num_devices = 2;
    for (kind = 0; kind < 8; kind++) {
        d.num_tokens = 8;
        d.num_sequences = 0;
        CHECK_NEAR(aux_of(d, (moe_ep_aux)kind), 1.0, 1e-12, 0.0);
        d.num_sequences = 2; /* the second one is empty */
        CHECK_NEAR(aux_of(d, (moe_ep_aux)kind), 1.0, 1e-12, 0.0);
        d.num_sequences = 4;
        d.interleaved = 1; /* each has a token and padding */
        CHECK_NEAR(aux_of(d, (moe_ep_aux)kind), 1.0, 1e-12, 0.0);
        d.interleaved = 0;
        d.num_sequences = 0;
        d.ids = ids + 2;
        d.num_tokens = 2;
        CHECK_NEAR(aux_of(d, (moe_ep_aux)kind), 1.0, 1e-12, 0.0);
        d.num_tokens = 3; /* the example: both experts and a padded token */
        CHECK_NEAR(aux_of(d, (moe_ep_aux)kind), 1.0, 1e-12, 0.0);
        d.ids = ids;
    }
    d.ids = NULL; /* GLOBAL without ids: all tokens count */
    d.num_tokens = 8;
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_GLOBAL), 1.0, 1e-6, 0.0);
    d.ids = half; /* one choice of two is left: two tokens, not one */
    d.num_tokens = d.top_k = 2;
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_EVERY_CHOICE), 1.0, 1e-12, 0.0);
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_FIRST_CHOICE), 0.5, 1e-12, 0.0);
}

/* flaxformer, transformers' Switch 4.x and MaxText multiply inside each group or sequence and take the mean. */
TEST(any_choice_by_sequence)
{
    static const float scores[8] = {0.9f, 0.1f, 0.9f, 0.1f, 0.1f, 0.9f, 0.1f, 0.9f};
    static const int32_t ids[4] = {0, 0, 1, 1};
    moe_ep_aux_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_tokens = 4;
    d.top_k = 1;
    d.num_experts = 2;
    d.scores = scores;
    d.ids = ids;
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_ANY_CHOICE), 1.0, 1e-6, 0.0);
    d.num_sequences = 2;
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_ANY_CHOICE), 1.8, 1e-6, 0.0);
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_EVERY_CHOICE), 1.0, 1e-6, 0.0); /* all tokens together */
    d.interleaved = 1;
    CHECK_NEAR(aux_of(d, MOE_EP_AUX_ANY_CHOICE), 1.0, 1e-6, 0.0);
    d.num_sequences = 3;
    d.kind = MOE_EP_AUX_ANY_CHOICE;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    CHECK_STR(err.arg, "num_sequences");
}

TEST(aux_loss_example_and_errors)
{
    float scores[4] = {0.5f, 0.5f, 0.5f, 0.5f}, bad[4] = {0.5f, NAN, 0.5f, 0.5f};
    float minus[4] = {0.5f, 0.5f, -0.5f, 0.5f}, large[4] = {9.0f, 9.0f, 9.0f, 9.0f};
    int32_t ids[2] = {0, 1}, wrong[2] = {0, 2}, device[2] = {0, 3};
    int64_t loads[2] = {1, -1};
    char memory[4096];
    moe_ep_scratch small = moe_ep_scratch_fixed(memory, sizeof memory);
    moe_ep_aux_desc d, e;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    CHECK_NEAR(moe_ep_aux_loss(NULL, NULL, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    d.num_tokens = 2;
    d.top_k = 1;
    d.num_experts = 2;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
    d.scores = scores;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
    CHECK_STR(err.arg, "ids");
    d.ids = ids;
    CHECK_NEAR(moe_ep_aux_loss(&d, &small, &err), 1.0, 1e-12, 0.0);
    small = moe_ep_scratch_fixed(memory, small.need - 1);
    CHECK_NEAR(moe_ep_aux_loss(&d, &small, &err), MOE_EP_ERR_SCRATCH, 0.0, 0.0);
#define LOSS_ERROR(field, value, want)                                                              \
    do {                                                                                            \
        e = d;                                                                                      \
        e.field = value;                                                                            \
        CHECK_NEAR(moe_ep_aux_loss(&e, NULL, &err), want, 0.0, 0.0);                                \
        CHECK_I64(err.status, want);                                                                \
    } while (0)
    LOSS_ERROR(scores, bad, MOE_EP_ERR_NAN);
    LOSS_ERROR(ids, wrong, MOE_EP_ERR_EXPERT_ID);
    LOSS_ERROR(kind, (moe_ep_aux)8, MOE_EP_ERR_RANGE);
    LOSS_ERROR(coefficient, (double)INFINITY, MOE_EP_ERR_NAN);
    LOSS_ERROR(coefficient, -0.5, MOE_EP_ERR_NEGATIVE);
    LOSS_ERROR(scores, minus, MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 2);
    d.scores = large;
    LOSS_ERROR(coefficient, 1e308, MOE_EP_ERR_OVERFLOW);
    d.scores = scores;
    LOSS_ERROR(top_k, 0, MOE_EP_ERR_SIZE);
    LOSS_ERROR(num_experts, 0, MOE_EP_ERR_SIZE);
    LOSS_ERROR(kind, MOE_EP_AUX_GLOBAL, MOE_EP_ERR_NULL);
    LOSS_ERROR(kind, MOE_EP_AUX_DEVICE, MOE_EP_ERR_SIZE);
    d.num_devices = 2;
    LOSS_ERROR(kind, MOE_EP_AUX_DEVICE, MOE_EP_ERR_NULL);
    d.device_of_expert = device;
    LOSS_ERROR(kind, MOE_EP_AUX_COMMUNICATION, MOE_EP_ERR_DEVICE_ID);
    d.global_loads = loads;
    LOSS_ERROR(kind, MOE_EP_AUX_GLOBAL, MOE_EP_ERR_NEGATIVE);
    d.num_sequences = 3;
    LOSS_ERROR(kind, MOE_EP_AUX_SEQUENCE, MOE_EP_ERR_SIZE);
#undef LOSS_ERROR
}

TEST(other_losses)
{
    float zero[2] = {0.0f, 0.0f}, p[2] = {0.75f, 0.25f}, at[1] = {0.75f}, half[2] = {0.5f, 0.5f};
    float masked[2] = {-INFINITY, -INFINITY}, bad[2] = {0.0f, NAN}, negative[2] = {0.5f, -0.5f};
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_error err;
    CHECK_NEAR(moe_ep_z_loss(zero, 1, 2, &err), 0.480453, 1e-6, 0.0);
    CHECK_NEAR(moe_ep_z_loss(masked, 1, 2, &err), MOE_EP_ERR_NAN, 0.0, 0.0);
    CHECK_NEAR(moe_ep_z_loss(bad, 1, 2, &err), MOE_EP_ERR_NAN, 0.0, 0.0);
    CHECK_NEAR(moe_ep_z_loss(NULL, 1, 2, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
    CHECK_NEAR(moe_ep_z_loss(zero, 0, 2, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    CHECK_NEAR(moe_ep_importance_loss(p, 1, 2, NULL, &err), 0.5, 1e-6, 0.0);
    CHECK_NEAR(moe_ep_importance_loss(p, 1, 2, &none, &err), MOE_EP_ERR_SCRATCH, 0.0, 0.0);
    CHECK_NEAR(moe_ep_importance_loss(p, 1, 1, NULL, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    CHECK_NEAR(moe_ep_importance_loss(bad, 1, 2, NULL, &err), MOE_EP_ERR_NAN, 0.0, 0.0);
    CHECK_NEAR(moe_ep_importance_loss(NULL, 1, 2, NULL, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
    CHECK_NEAR(moe_ep_load_loss(p, at, 1, 2, 1.0, NULL, &err), 0.53716, 1e-4, 0.0);
    CHECK_NEAR(moe_ep_load_loss(p, NULL, 1, 2, 1.0, NULL, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
    CHECK_NEAR(moe_ep_load_loss(p, bad + 1, 1, 2, 1.0, NULL, &err), MOE_EP_ERR_NAN, 0.0, 0.0);
    CHECK_NEAR(moe_ep_load_loss(p, at, 1, 2, 0.0, NULL, &err), MOE_EP_ERR_RANGE, 0.0, 0.0);
    CHECK_NEAR(moe_ep_load_loss(p, at, 1, 2, 5e-324, NULL, &err), MOE_EP_ERR_RANGE, 0.0, 0.0);
    CHECK_NEAR(moe_ep_load_loss(p, at, 1, 2, NAN, NULL, &err), MOE_EP_ERR_NAN, 0.0, 0.0);
    CHECK_NEAR(moe_ep_load_loss(p, at, 1, 0, 1.0, NULL, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    CHECK_NEAR(moe_ep_router_entropy(half, 1, 2, &err), 0.693147, 1e-6, 0.0);
    CHECK_NEAR(moe_ep_router_entropy(negative, 1, 2, &err), MOE_EP_ERR_NEGATIVE, 0.0, 0.0);
    CHECK_NEAR(moe_ep_router_entropy(bad, 1, 2, &err), MOE_EP_ERR_NAN, 0.0, 0.0);
    CHECK_NEAR(moe_ep_router_entropy(NULL, 1, 2, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
}

/* ---- shared experts, comparing weights -------------------------------------------------------------------- */

TEST(shared_experts)
{
    int32_t ids[4] = {2, 0, -1, -1}, out[6] = {-9, -9, -9, -9, -9, -9}, wrong[2] = {2, 4};
    float w[4] = {0.6f, 0.4f, 0.0f, 0.0f}, after[6], bad[2] = {NAN, 0.0f};
    moe_ep_error err;
    const moe_ep_shared_weight sum = MOE_EP_SHARED_SUM_OVER_VALUE, constant = MOE_EP_SHARED_CONSTANT;
    CHECK_I64(moe_ep_append_shared(NULL, w, 2, 2, 4, 1, sum, 2.0f, out, after, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_append_shared(ids, NULL, 2, 2, 4, 1, sum, 2.0f, out, after, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, 1, sum, 2.0f, NULL, after, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, 1, sum, 2.0f, out, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 0, 4, 1, sum, 2.0f, out, after, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 0, 1, sum, 2.0f, out, after, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, -1, sum, 2.0f, out, after, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, INT32_MAX, sum, 2.0f, out, after, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_append_shared(ids, w, -2, 2, 4, 1, sum, 2.0f, out, after, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_append_shared(wrong, w, 1, 2, 4, 1, sum, 2.0f, out, after, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_append_shared(ids, bad, 1, 2, 4, 1, sum, 2.0f, out, after, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, 1, sum, 0.0f, out, after, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, 1, (moe_ep_shared_weight)2, 1.0f, out, after, &err),
              MOE_EP_ERR_RANGE);
    CHECK_I64(out[0], -9);
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, 1, sum, 2.0f, out, after, &err), MOE_EP_OK);
    CHECK(out[0] == 2 && out[1] == 0 && out[2] == 4 && out[3] == -1 && out[5] == -1);
    CHECK_NEAR(after[0], 0.6, 1e-6, 0.0);
    CHECK_NEAR(after[2], 0.5, 1e-6, 0.0);
    CHECK_NEAR(after[5], 0.0, 0.0, 0.0);
    CHECK_I64(moe_ep_append_shared(ids, w, 1, 2, 4, 2, constant, 1.0f, out, after, &err), MOE_EP_OK);
    CHECK(out[2] == 4 && out[3] == 5);
    CHECK_NEAR(after[3], 1.0, 0.0, 0.0);
}

/* Every kernel's search for NaN and +Inf, in every place of rows of odd lengths; -Inf is none. */
TEST(bad_logits_found_by_every_kernel)
{
    float logits[45], keys[45], scores[45], w;
    int32_t id, E, e;
    int isa, kind;
    for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++)
        for (E = 1; E <= 45; E++)
            for (kind = 0; kind < 4; kind++)
                for (e = 0; e < E && !t_failed_here; e++) {
                    moe_ep_router r = moe_ep_router_mixtral(E, 1), k = r;
                    const moe_ep_status want = kind < 2 ? MOE_EP_ERR_NAN : MOE_EP_OK;
                    moe_ep_error err;
                    int32_t i;
                    for (i = 0; i < E; i++) logits[i] = keys[i] = (float)i - 9.0f;
                    logits[e] = kind == 0 ? NAN : kind == 1 ? INFINITY : kind == 2 ? -INFINITY : 3.4e38f;
                    r.isa_max = k.isa_max = (moe_ep_isa)isa;
                    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, &id, &w, &err), want);
                    if (want != MOE_EP_OK) CHECK_I64(err.index, e);
                    CHECK_I64(moe_ep_scores(&r, logits, 1, scores, &err), want);
                    if (want != MOE_EP_OK) CHECK_I64(err.index, e);
                    k.select = MOE_EP_SELECT_KEYS;
                    k.keys = logits;
                    CHECK_I64(moe_ep_route(&k, keys, 1, NULL, &id, &w, &err), want);
                    if (want != MOE_EP_OK) CHECK_STR(err.arg, "keys");
                }
}

/* Numbers that do not fit, scales of 0 and below, and what else no other test gets wrong. */
TEST(route_arguments_at_the_ends)
{
    const float logits[6] = {1.0f, 2.0f, -INFINITY, 3.0f, 1.0f, -INFINITY}, most[2] = {3.4e38f, 0.0f};
    const int64_t loads[2] = {3, 1};
    const int32_t one[1] = {0}, table[2] = {0, 1}, minus[1] = {-1}, below[1] = {-2};
    float bias[2] = {3.4e38f, 0.0f}, w[6], scale[3] = {1.0f, 0.5f, 2.0f}, scores[6], x = 5.0f;
    int32_t ids[6], i;
    int64_t per[2];
    moe_ep_router r = moe_ep_router_mixtral(3, 1), phi = moe_ep_router_phimoe(3, 2);
    moe_ep_rng rng = moe_ep_rng_seed(1);
    moe_ep_aux_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    CHECK_I64(moe_ep_expert_choice(logits, (int64_t)INT32_MAX + 1, 1, 1, ids, w, per, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "T");
    CHECK_I64(moe_ep_bias_update(loads, 2, 3.0e38f, 0, bias, &err), MOE_EP_ERR_OVERFLOW);
    CHECK(err.index == 0 && bias[0] > 3.3e38f && bias[1] >= 0.0f && bias[1] <= 0.0f);
    CHECK_I64(moe_ep_append_shared(one, most, 1, 1, 1, 1, MOE_EP_SHARED_SUM_OVER_VALUE, 0.5f, ids, w, &err),
              MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "weights");
    CHECK_I64(moe_ep_append_shared(one, most, 1, 1, 1, 1, MOE_EP_SHARED_SUM_OVER_VALUE, INFINITY, ids, w, &err),
              MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_append_shared(below, most, 1, 1, 1, 1, MOE_EP_SHARED_SUM_OVER_VALUE, 1.0f, ids, w, &err),
              MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_append_shared(one, most, 1, 1, 1, INT32_MAX, MOE_EP_SHARED_CONSTANT, 1.0f, ids, w, &err),
              MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_append_shared(one, most, 1, 2, 1, INT32_MAX - 1, MOE_EP_SHARED_CONSTANT, 1.0f, ids, w, &err),
              MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_append_shared(one, most, 0, 1, 1, 1, MOE_EP_SHARED_CONSTANT, 1.0f, ids, w, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_append_shared(one, most, 1, 1, 1, 1, MOE_EP_SHARED_SUM_OVER_VALUE, -2.0f, ids, w, &err),
              MOE_EP_OK);
    CHECK_NEAR(w[1], -1.7e38, 1e-6, 0.0);
    CHECK_I64(moe_ep_jitter(&x, 0, 0.5f, &rng, &err), MOE_EP_OK);
    CHECK_NEAR(x, 5.0, 0.0, 0.0);
    r.num_null = 4;
    CHECK_I64(moe_ep_router_check(&r, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_null");
    r.num_null = 0;
    r.select = MOE_EP_SELECT_TABLE;
    r.table = table;
    r.table_rows = 2;
    CHECK_I64(moe_ep_route(&r, logits, 1, minus, ids, w, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "token_ids");
    r.table = minus;
    r.table_rows = 1;
    r.per_expert_scale = scale;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, &err), MOE_EP_OK); /* nobody: no factor either */
    CHECK(ids[0] == -1 && w[0] >= 0.0f && w[0] <= 0.0f);
    r = moe_ep_router_mixtral(3, 1);
    r.logits_stride = 3;
    CHECK_I64(moe_ep_scores(&r, logits, 2, scores, &err), MOE_EP_OK);
    CHECK_NEAR(scores[3] + scores[4], 1.0, 1e-7, 0.0);
    r.score = MOE_EP_SCORE_LOGIT;
    r.nan_as_masked = 1;
    CHECK_I64(moe_ep_scores(&r, logits, 2, scores, &err), MOE_EP_OK);
    CHECK(scores[5] < -3.4e38f && scores[3] > 2.9f);
    for (i = 0; i < 4; i++) { /* sparsemixer: the scale of the router, of the experts, or none */
        float plain[2], scaled[2];
        CHECK_I64(moe_ep_route(&phi, logits, 1, NULL, ids, plain, &err), MOE_EP_OK);
        phi.scale = i == 1 ? -2.0f : i == 2 ? 3.0f : 0.0f;
        phi.per_expert_scale = i == 3 ? scale : NULL;
        CHECK_I64(moe_ep_route(&phi, logits, 1, NULL, ids, scaled, &err), MOE_EP_OK);
        CHECK(ids[0] == 1 && ids[1] == 0);
        CHECK_NEAR(scaled[0], (double)plain[0] * (i == 1 ? -2.0 : i == 2 ? 3.0 : i == 3 ? 0.5 : 1.0), 1e-6, 0.0);
        phi.scale = 0.0f;
        phi.per_expert_scale = NULL;
    }
    r = moe_ep_router_qwen3(3, 1);
    r.scale = -1.5f;
    CHECK_I64(moe_ep_route(&r, logits, 2, NULL, ids, w, &err), MOE_EP_OK);
    CHECK_NEAR(w[0], -1.5, 1e-6, 0.0);
    CHECK_I64(moe_ep_router_sinkhorn(8, 1).score, MOE_EP_SCORE_SIGMOID);
    CHECK_I64(moe_ep_router_sinkhorn(8, 2).score, MOE_EP_SCORE_SOFTMAX);
    CHECK_I64(moe_ep_router_megatron_groups(8, 4, 4, 2).group_top_m, 2);
    CHECK_I64(moe_ep_router_megatron_groups(8, 4, 4, 0).group_top_m, 0);
    {
        moe_ep_top2 t2 = moe_ep_top2_gshard(3);
        t2.logits_stride = 3;
        t2.second = MOE_EP_SECOND_RANDOM;
        t2.threshold = 0.0f; /* then every second expert is used */
        CHECK_I64(moe_ep_route_top2(&t2, logits, 2, &rng, ids, w, &err), MOE_EP_OK);
        CHECK(ids[0] == 1 && ids[1] == 0 && ids[2] == 0 && ids[3] == 1);
    }
    d.num_tokens = INT64_MAX / 2;
    d.top_k = 4;
    d.num_experts = 1;
    d.scores = logits;
    d.ids = one;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_OVERFLOW, 0.0, 0.0);
}

TEST(weights_compare_example_and_errors)
{
    float a[2] = {0.5f, 0.5f}, b[2] = {0.75f, 0.25f}, bad[2] = {0.0f, NAN};
    moe_ep_weights_result r;
    moe_ep_error err;
    memset(&r, 0, sizeof r);
    CHECK_I64(moe_ep_weights_compare(NULL, b, 1, 2, &r, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_weights_compare(a, NULL, 1, 2, &r, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_weights_compare(a, b, 1, 2, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_weights_compare(a, b, 0, 2, &r, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_weights_compare(a, b, 1, 0, &r, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_weights_compare(a, bad, 1, 2, &r, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_weights_compare(a, b, 1, 2, &r, &err), MOE_EP_OK);
    CHECK_NEAR(r.max_abs, 0.25, 1e-7, 0.0);
    CHECK_NEAR(r.max_rel, 1.0, 1e-7, 0.0);
    CHECK_NEAR(r.mean_l1, 0.5, 1e-7, 0.0);
    CHECK_I64(r.max_abs_at, 0);
    CHECK_NEAR(r.mean_sum_a, 1.0, 1e-7, 0.0);
}

/* More rows than one pass of the vector kernels takes at a time, and rests of every length. */
TEST(rows_in_pieces)
{
    enum { T = 37, MOST = 1024 };
    static const int32_t experts[] = {1024, 512, 256, 160, 64};
    static float logits[T * MOST], bias[MOST], w[2][T * 8];
    static int32_t ids[2][T * 8];
    const int best = (int)moe_ep_isa_best();
    uint64_t s = t_seed + 77;
    size_t i;
    int round, isa;
    for (round = 0; round < 40; round++) {
        const int32_t E = experts[round % 5];
        const int64_t rows = round < 10 ? T : 1 + t_below(&s, T);
        moe_ep_router r = moe_ep_router_megatron_sigmoid(E, 8);
        for (i = 0; i < (size_t)(rows * E); i++) logits[i] = (float)(6.0 * t_unit(&s) - 3.0);
        for (i = 0; i < (size_t)E; i++) bias[i] = (float)t_unit(&s) * 0.1f;
        r.select_bias = round % 2 ? bias : NULL;
        r.n_group = round % 3 == 0 ? 4 : 0;
        r.topk_group = 2;
        r.group_top_m = 2;
        r.isa_max = MOE_EP_ISA_PORTABLE;
        CHECK_I64(moe_ep_route(&r, logits, rows, NULL, ids[0], w[0], NULL), MOE_EP_OK);
        for (isa = (int)MOE_EP_ISA_AVX2; isa <= best; isa++) {
            r.isa_max = (moe_ep_isa)isa;
            memset(ids[1], -1, sizeof ids[1]);
            CHECK_I64(moe_ep_route(&r, logits, rows, NULL, ids[1], w[1], NULL), MOE_EP_OK);
            CHECK(memcmp(ids[0], ids[1], sizeof(int32_t) * (size_t)rows * 8) == 0);
            CHECK(memcmp(w[0], w[1], sizeof(float) * (size_t)rows * 8) == 0);
        }
        STOP_IF_FAILED("round %d", round);
    }
}

/* A limit above what the machine has: the best that it has. */
TEST(kernels_that_are_not_here)
{
    enum { E = 48, K = 4, T = 20 };
    float logits[T * E], w[2][T * K];
    int32_t ids[2][T * K], i, isa;
    uint64_t s = t_seed + 78;
    moe_ep_router r = moe_ep_router_mixtral(E, K);
    for (i = 0; i < T * E; i++) logits[i] = (float)(6.0 * t_unit(&s) - 3.0);
    r.isa_max = MOE_EP_ISA_PORTABLE;
    CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids[0], w[0], NULL), MOE_EP_OK);
    for (isa = (int)MOE_EP_ISA_AUTO; isa <= (int)MOE_EP_ISA_AVX512; isa++) {
        r.isa_max = (moe_ep_isa)isa;
        CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids[1], w[1], NULL), MOE_EP_OK);
        CHECK(memcmp(ids[0], ids[1], sizeof ids[0]) == 0);
        CHECK(memcmp(w[0], w[1], sizeof w[0]) == 0);
    }
}

/* Two groups of more experts than one block: the weights are the softmax of the chosen logits wherever they stand. */
TEST(chosen_logits_of_either_block)
{
    enum { E = 2400, K = 3 };
    static float logits[E];
    float w[K];
    int32_t ids[K], first, j;
    uint64_t s = t_seed + 79;
    int round;
    for (round = 0; round < 8; round++) {
        moe_ep_router r = moe_ep_router_mixtral(E, K);
        double sum = 0.0;
        for (j = 0; j < E; j++) logits[j] = (float)t_unit(&s);
        first = round % 2 ? E / 2 + 900 : 10; /* in this group are the best */
        for (j = 0; j < K; j++) logits[first + 3 * j] = 5.0f - (float)j;
        r.weight = MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED;
        r.n_group = round < 4 ? 2 : 0;
        r.topk_group = 1;
        r.isa_max = round % 4 < 2 ? MOE_EP_ISA_PORTABLE : MOE_EP_ISA_AUTO;
        CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
        for (j = 0; j < K; j++) sum += exp(-(double)j);
        for (j = 0; j < K; j++) {
            CHECK_I64(ids[j], first + 3 * j);
            CHECK_NEAR(w[j], exp(-(double)j) / sum, 1e-6, 0.0);
        }
    }
}

/* Norms of any order, and factors of either sign, in every kernel. */
TEST(norms_and_scales_by_hand)
{
    static const float orders[] = {0.0f, 1.0f, 0.5f, 2.0f, 3.0f}, scales[] = {0.0f, 2.0f, -1.5f};
    const float logits[4] = {0.5f, 2.0f, -1.0f, 1.0f};
    float w[2];
    int32_t ids[2];
    int p, f, isa;
    for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++)
        for (p = 0; p < 5; p++)
            for (f = 0; f < 3; f++) {
                const double total = exp(0.5) + exp(2.0) + exp(-1.0) + exp(1.0), a = exp(2.0) / total,
                             b = exp(1.0) / total, q = orders[p] > 0.0f ? (double)orders[p] : 1.0,
                             norm = pow(pow(a, q) + pow(b, q), 1.0 / q), by = f == 0 ? 1.0 : (double)scales[f];
                moe_ep_router r = moe_ep_router_qwen3(4, 2);
                r.renorm = 1;
                r.renorm_p = orders[p];
                r.scale = scales[f];
                r.isa_max = (moe_ep_isa)isa;
                CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
                CHECK(ids[0] == 1 && ids[1] == 3);
                CHECK_NEAR(w[0], a / norm * by, 2e-6, 0.0);
                CHECK_NEAR(w[1], b / norm * by, 2e-6, 0.0);
            }
}

/* All logits 0: no distance can be told, nothing is masked. */
TEST(sparsemixer_without_differences)
{
    const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f}, holes[4] = {-INFINITY, 0.0f, -INFINITY, 0.0f};
    float w[2];
    int32_t ids[2];
    moe_ep_router r = moe_ep_router_phimoe(4, 2);
    CHECK_I64(moe_ep_route(&r, zero, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == 1);
    CHECK_NEAR(w[0], 1.0 / 4.0, 1e-6, 0.0);
    CHECK_NEAR(w[1], 1.0 / 3.0, 1e-6, 0.0);
    CHECK_I64(moe_ep_route(&r, holes, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 1 && ids[1] == 3);
    CHECK_NEAR(w[0], 1.0 / 2.0, 1e-6, 0.0);
    CHECK_NEAR(w[1], 1.0, 1e-6, 0.0);
}

TEST(rows_far_apart_and_ids_alone)
{
    enum { T = 9 };
    float logits[T * 3], keys[T * 3], w[2];
    int32_t table[T * 2], ids[2 * T], one[2], i;
    uint64_t s = t_seed + 80;
    moe_ep_router r = moe_ep_router_mixtral(3, 2);
    moe_ep_error err;
    for (i = 0; i < T * 3; i++) {
        logits[i] = (float)t_unit(&s);
        keys[i] = (float)((i * 7) % 3);
    }
    for (i = 0; i < T * 2; i++) table[i] = (int32_t)t_below(&s, 4) - 1;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    r.logits_stride = ((int64_t)1 << 26) + 1; /* one row: nothing is read behind it */
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, one, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == one[0] && ids[1] == one[1]);
    r = moe_ep_router_hash(3, 2); /* ids from a table need no logits */
    r.table = table;
    r.table_rows = T;
    CHECK_I64(moe_ep_route(&r, NULL, T, NULL, ids, NULL, &err), MOE_EP_OK);
    for (i = 0; i < 2 * T; i++) CHECK_I64(ids[i], table[i]);
    r = moe_ep_router_qwen3(3, 2);
    r.select = MOE_EP_SELECT_KEYS;
    r.keys = keys;
    CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids, NULL, &err), MOE_EP_OK);
    for (i = 0; i < T; i++) CHECK(keys[3 * i + ids[2 * i]] > 1.5f && keys[3 * i + ids[2 * i + 1]] > 0.5f);
    r.num_null = -1;
    CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_null");
}

TEST(names_of_config_files_spelt_otherwise)
{
    static const char *const same[][2] = {
        {"qwen3_vl_moe", "qwen3"}, {"granitemoehybrid", "granite"}, {"step3p5", "step35"}, {"grok", "grok1"},
        {"mimo_v2_flash", "mimo_v2"}, {"PanguProMoE", "pangu_pro"}, {"Default", "qwen2"},
        {"Qwen3-MoE", "qwen3"}, {"DeepSeek V3", "deepseek_v3"}, {"deepseek.v3", "deepseek_v3"},
        {" _-.llama.cpp ", "llama_cpp"}, {"qwen3_omni_moe", "qwen3"}, {"qwen3_5_moe", "qwen3"},
        {"llama4_text", "llama4"}, {"gemma4_text", "gemma4"}, {"deepseek_v32", "deepseek_v3"},
        {"kimi_k25", "kimi_k2"}, {"glm_moe_dsa", "glm45"}, {"afmoe", "mimo_v2"}, {"minimax", "mixtral"}};
    moe_ep_router a, b;
    moe_ep_error err;
    size_t i;
    for (i = 0; i < sizeof same / sizeof *same; i++) {
        memset(&a, 1, sizeof a);
        CHECK_I64(moe_ep_router_by_name(same[i][0], 64, 4, &a, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_router_by_name(same[i][1], 64, 4, &b, NULL), MOE_EP_OK);
        CHECK(memcmp(&a, &b, sizeof a) == 0);
    }
    CHECK_I64(moe_ep_router_by_name("qwen3,moe", 64, 4, &a, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_router_by_name("qwen3[", 64, 4, &a, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_router_by_name("@", 64, 4, &a, &err), MOE_EP_ERR_RANGE);
}

/* The rng's next number is the largest below 1: the crumb that rounding leaves goes to the last expert that may be
 * drawn. */
TEST(sampled_at_the_end)
{
    float logits[40], w[40];
    int32_t ids[2], e, last;
    uint64_t s = t_seed + 81, x;
    moe_ep_rng rng;
    int round;
    for (round = 0; round < 60; round++) {
        const int32_t E = 2 + (int32_t)t_below(&s, 39);
        for (last = -1, e = 0; e < E; e++) {
            logits[e] = t_below(&s, 4) == 0 ? -INFINITY : (float)(3.0 * t_unit(&s));
            if (logits[e] > -1.0f) last = e;
        }
        if (last < 0) logits[last = E - 1] = 1.0f;
        rng = moe_ep_rng_seed((uint64_t)round);
        x = UINT64_MAX * UINT64_C(0x8E38E38E38E38E39); /* undoes * 9, the rotation and * 5 */
        x = (x >> 7) | (x << 57);
        rng.s[1] = x * UINT64_C(0xCCCCCCCCCCCCCCCD);
        CHECK_I64(moe_ep_route_sample(logits, 1, E, &rng, ids, round % 2 ? w : NULL, NULL), MOE_EP_OK);
        CHECK_I64(ids[0], last);
        rng.s[1] = 0; /* and 0 gives the first one */
        CHECK_I64(moe_ep_route_sample(logits, 1, E, &rng, ids, w, NULL), MOE_EP_OK);
        for (e = 0; !(logits[e] > -1.0f); e++) {}
        CHECK_I64(ids[0], e);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(top2_of_nothing)
{
    const float logits[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    int32_t ids[4] = {-9, -9, -9, -9};
    moe_ep_top2 c = moe_ep_top2_nllb(2);
    moe_ep_error err;
    CHECK_I64(moe_ep_route_top2(&c, logits, 0, NULL, ids, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_route_top2(&c, logits, INT64_MAX, NULL, ids, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "T");
    c = moe_ep_top2_deepspeed(2); /* Gumbel noise */
    CHECK_I64(moe_ep_route_top2(&c, logits, 2, NULL, ids, NULL, &err), MOE_EP_ERR_CONFIG);
    c = moe_ep_top2_nllb(2);
    c.second = MOE_EP_SECOND_RANDOM;
    CHECK_I64(moe_ep_route_top2(&c, logits, 2, NULL, ids, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "rng");
    {
        const float even[2] = {1.5f, 1.5f}; /* a second gate of exactly the threshold is not above it */
        int32_t two[2];
        c = moe_ep_top2_nllb(2);
        c.second = MOE_EP_SECOND_THRESHOLD;
        c.threshold = 0.5f;
        CHECK_I64(moe_ep_route_top2(&c, even, 1, NULL, two, NULL, &err), MOE_EP_OK);
        CHECK(two[0] == 0 && two[1] == -1);
        c.threshold = 0.49999f;
        CHECK_I64(moe_ep_route_top2(&c, even, 1, NULL, two, NULL, &err), MOE_EP_OK);
        CHECK(two[0] == 0 && two[1] == 1);
    }
    CHECK_I64(moe_ep_route_sample(logits, INT64_MAX, 2, NULL, ids, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "T");
    CHECK_I64(ids[0], -9);
}

/* A masked logit has no share; rows and columns still get theirs. */
TEST(sinkhorn_with_a_hole)
{
    const float logits[6] = {-INFINITY, 0.5f, 0.0f, 1.0f, 0.0f, 0.25f};
    float out[6];
    int e;
    CHECK_I64(moe_ep_sinkhorn(logits, 2, 3, 1e-6, 0, out, NULL, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(out[0], 0.0, 0.0, 0.0);
    CHECK_NEAR((double)out[1] + (double)out[2], 0.5, 1e-5, 0.0);
    CHECK_NEAR(out[3], 1.0 / 3.0, 1e-5, 0.0);
    for (e = 0; e < 3; e++) CHECK_NEAR((double)out[e] + (double)out[3 + e], 1.0 / 3.0, 1e-5, 0.0);
}

/* The losses by their definitions. */
static double naive_aux(const moe_ep_aux_desc *d)
{
    const int32_t E = d->num_experts, K = d->top_k, D = d->num_devices;
    const int parts = d->kind == MOE_EP_AUX_SEQUENCE || d->kind == MOE_EP_AUX_ANY_CHOICE;
    const int64_t T = d->num_tokens, S = parts && d->num_sequences > 0 ? d->num_sequences : 1;
    double total = 0.0, all = 0.0, counted = 0.0;
    int64_t q, t;
    int32_t e, j, at;
    for (e = 0; d->global_loads && e < E; e++) all += (double)d->global_loads[e];
    for (q = 0; q < S; q++) {
        double P[8] = {0.0}, c[8] = {0.0}, first[8] = {0.0}, any[8] = {0.0}, sent[8] = {0.0};
        double n = 0.0;
        int valid[12] = {0};
        for (t = 0; t < T; t++) {
            for (j = 0; j < K; j++) valid[t] |= d->ids[t * K + j] >= 0;
            valid[t] &= (d->interleaved ? t % S : t / (T / S)) == q;
            n += valid[t];
        }
        if (n < 0.5) continue;
        counted += 1.0;
        for (t = 0; t < T; t++) {
            double sum = 0.0;
            int used[8] = {0}, reached[8] = {0};
            if (!valid[t]) continue;
            for (e = 0; e < E; e++) sum += (double)d->scores[t * E + e];
            for (e = 0; e < E; e++)
                if (!d->normalize_scores || sum > 0.0)
                    P[e] += (double)d->scores[t * E + e] / (d->normalize_scores ? sum : 1.0) / n;
            for (j = 0; j < K; j++) {
                const int32_t id = d->ids[t * K + j];
                if (id < 0) continue;
                c[id] += 1.0;
                if (j == 0) first[id] += 1.0;
                used[id] = 1;
                reached[d->device_of_expert[id]] = 1;
            }
            for (e = 0; e < E; e++) any[e] += used[e];
            for (at = 0; at < D; at++) sent[at] += reached[at];
        }
        for (e = 0; e < E; e++) {
            if (d->kind == MOE_EP_AUX_SWITCH || d->kind == MOE_EP_AUX_SEQUENCE) total += E * P[e] * c[e] / (n * K);
            if (d->kind == MOE_EP_AUX_GLOBAL) total += E * P[e] * (double)d->global_loads[e] / all;
            if (d->kind == MOE_EP_AUX_FIRST_CHOICE) total += E * P[e] * first[e] / n;
            if (d->kind == MOE_EP_AUX_ANY_CHOICE) total += E * P[e] * any[e] / n;
            if (d->kind == MOE_EP_AUX_EVERY_CHOICE) total += E * P[e] * c[e] / n;
        }
        for (at = 0; at < D; at++) {
            double mean = 0.0, share = 0.0, owned = 0.0;
            for (e = 0; e < E; e++)
                if (d->device_of_expert[e] == at) {
                    mean += E * c[e] / (K * n);
                    share += P[e];
                    owned += 1.0;
                }
            if (d->kind == MOE_EP_AUX_DEVICE && owned > 0.0) total += mean / owned * share;
            if (d->kind == MOE_EP_AUX_COMMUNICATION)
                total += D / ((d->devices_per_token > 0 ? d->devices_per_token : K < D ? K : D) * n) * sent[at] * share;
        }
    }
    return counted > 0.0 ? total / counted * (d->coefficient > 0.0 ? d->coefficient : 1.0) : 0.0;
}

TEST(losses_by_definition)
{
    uint64_t s = t_seed + 82;
    int round;
    for (round = 0; round < 3000; round++) {
        const int32_t E = 1 + (int32_t)t_below(&s, 8), K = 1 + (int32_t)t_below(&s, 4);
        const int64_t S = 1 + t_below(&s, 3), T = S * (1 + t_below(&s, 4));
        float scores[12 * 8];
        int32_t ids[12 * 4], device[8], i;
        int64_t loads[8];
        moe_ep_aux_desc d;
        memset(&d, 0, sizeof d);
        d.num_devices = 1 + (int32_t)t_below(&s, 5);
        for (i = 0; i < T * E; i++) scores[i] = t_below(&s, 3) == 0 ? 0.0f : (float)t_unit(&s);
        for (i = 0; i < E; i++) scores[i] = t_below(&s, 4) == 0 ? 0.0f : scores[i];
        for (i = 0; i < T * K; i++) ids[i] = (int32_t)t_below(&s, E + 1) - 1;
        for (i = 0; i < E; i++) {
            device[i] = (int32_t)t_below(&s, d.num_devices);
            loads[i] = 1 + t_below(&s, 50);
        }
        d.kind = (moe_ep_aux)t_below(&s, 8);
        d.num_tokens = T;
        d.top_k = K;
        d.num_experts = E;
        d.scores = scores;
        d.ids = ids;
        d.normalize_scores = (int32_t)t_below(&s, 2);
        d.num_sequences = S == 1 ? 0 : S;
        d.interleaved = (int32_t)t_below(&s, 2);
        d.global_loads = loads;
        d.device_of_expert = device;
        d.devices_per_token = (int32_t)t_below(&s, 3);
        d.coefficient = t_below(&s, 2) ? 0.5 : 0.0;
        CHECK_NEAR(moe_ep_aux_loss(&d, NULL, NULL), naive_aux(&d), 1e-9, 1e-12);
        STOP_IF_FAILED("round %d", round);
    }
    {
        const float score = 1.0f;
        const int64_t huge[2] = {INT64_MAX, 1};
        const float two[2] = {0.5f, 0.5f};
        const int32_t id = 0;
        moe_ep_aux_desc d;
        moe_ep_error err;
        memset(&d, 0, sizeof d);
        d.num_tokens = INT64_MAX / 2;
        d.top_k = 3;
        d.num_experts = 1;
        d.scores = &score;
        d.ids = &id;
        CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_OVERFLOW, 0.0, 0.0);
        CHECK_STR(err.arg, "num_tokens");
        d.num_tokens = d.top_k = 1;
        d.kind = MOE_EP_AUX_SEQUENCE;
        d.num_sequences = -1;
        CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
        CHECK_STR(err.arg, "num_sequences");
        d.kind = MOE_EP_AUX_GLOBAL;
        d.num_experts = 2;
        d.scores = two;
        d.global_loads = huge;
        CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_OVERFLOW, 0.0, 0.0);
        CHECK_I64(err.index, 1);
    }
}

TEST(weights_compared_row_by_row)
{
    const float a[6] = {0.5f, 0.25f, 1.0f, 0.5f, 0.25f, 0.5f}, b[6] = {0.0f, 0.5f, 0.5f, 1.0f, 0.25f, 0.5f};
    moe_ep_weights_result r;
    memset(&r, 0, sizeof r);
    CHECK_I64(moe_ep_weights_compare(a, b, 3, 2, &r, NULL), MOE_EP_OK);
    CHECK_NEAR(r.max_abs, 0.5, 0.0, 0.0);
    CHECK_I64(r.max_abs_at, 0);
    CHECK_NEAR(r.max_rel, 1.0, 0.0, 0.0); /* of row 1; a reference of 0 has no relative error */
    CHECK_NEAR(r.mean_l1, (0.75 + 1.0 + 0.0) / 3.0, 1e-12, 0.0);
    CHECK_NEAR(r.mean_sum_a, (0.75 + 1.5 + 0.75) / 3.0, 1e-12, 0.0);
    CHECK_NEAR(r.mean_sum_b, (0.5 + 1.5 + 0.75) / 3.0, 1e-12, 0.0);
    CHECK_NEAR(r.worst_sum_a, 1.5, 0.0, 0.0);
    CHECK_NEAR(r.worst_sum_b, 0.5, 0.0, 0.0); /* the first of two equally far from 1 */
}

/* The group whose m best keys add up to most, for every m. */
TEST(groups_by_their_m_best)
{
    enum { G = 3, SIZE = 12, E = G * SIZE };
    uint64_t s = t_seed + 83;
    int round, isa;
    for (round = 0; round < 600; round++) {
        const int32_t m = 1 + round % SIZE;
        float logits[E], w[1];
        double sum[G], best = -1e9, second = -1e9;
        int32_t ids[1], g, i, j, want = 0, top = 0;
        for (i = 0; i < E; i++) logits[i] = (float)(t_unit(&s) * (t_below(&s, 6) ? 1.0 : 4.0));
        for (g = 0; g < G; g++) {
            float v[SIZE];
            memcpy(v, logits + g * SIZE, sizeof v);
            for (i = 0; i < SIZE; i++)
                for (j = i + 1; j < SIZE; j++)
                    if (v[j] > v[i]) {
                        const float kept = v[i];
                        v[i] = v[j];
                        v[j] = kept;
                    }
            for (sum[g] = 0.0, i = 0; i < m; i++) sum[g] += (double)v[i];
            if (sum[g] > best) {
                second = best;
                best = sum[g];
                want = g;
            } else if (sum[g] > second) second = sum[g];
        }
        if (best - second < 1e-4) continue;
        for (top = want * SIZE, i = 1; i < SIZE; i++)
            if (logits[want * SIZE + i] > logits[top]) top = want * SIZE + i;
        for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++) {
            moe_ep_router r = moe_ep_router_mixtral(E, 1);
            r.score = MOE_EP_SCORE_LOGIT;
            r.weight = MOE_EP_WEIGHT_SCORE;
            r.n_group = G;
            r.topk_group = 1;
            r.group_top_m = m;
            r.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
            CHECK_I64(ids[0], top);
        }
        STOP_IF_FAILED("m %d", m);
    }
}

/* ---- the presets as their comments say ---- */

typedef struct preset_row {
    const char *name;
    moe_ep_score score;
    moe_ep_weight weight;
    int on_logit, renorm;
    moe_ep_eps_mode eps_mode;
    double eps, scale;
    int groups, open, best, mask, skip_k1, scale_only;
} preset_row;

#define ROW_SOFTMAX MOE_EP_SCORE_SOFTMAX, MOE_EP_WEIGHT_SCORE, 0
#define ROW_SIGMOID MOE_EP_SCORE_SIGMOID, MOE_EP_WEIGHT_SCORE, 0
#define ROW_OF_CHOSEN MOE_EP_SCORE_LOGIT, MOE_EP_WEIGHT_SOFTMAX_OF_SELECTED, 1
#define ROW_OF_LOGIT MOE_EP_SCORE_LOGIT, MOE_EP_WEIGHT_SIGMOID_OF_LOGIT, 1
#define ROW_ROOT MOE_EP_SCORE_SQRT_SOFTPLUS, MOE_EP_WEIGHT_SCORE, 0
#define ROW_PLAIN MOE_EP_EPS_NONE, 0.0
#define ROW_ADD MOE_EP_EPS_ADD, 1e-20
#define ROW_NO_GROUP 0, 0, 0, 0
static const preset_row preset_rows[] = {
    {"mixtral", ROW_SOFTMAX, 1, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"qwen3", ROW_SOFTMAX, 1, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"qwen3_next", ROW_SOFTMAX, 1, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"qwen2", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"olmoe", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"jamba", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"dbrx", ROW_SOFTMAX, 1, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"gpt_oss", ROW_OF_CHOSEN, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"granite", ROW_OF_CHOSEN, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"llama4", ROW_OF_LOGIT, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"phimoe", MOE_EP_SCORE_LOGIT, MOE_EP_WEIGHT_SCORE, 0, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"deepseek_v2", ROW_SOFTMAX, 0, ROW_PLAIN, 16.0, 8, 3, 1, 2, 0, 0},
    {"deepseek_v2_lite", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"deepseek_v2_hub", ROW_SOFTMAX, 1, ROW_ADD, 16.0, 8, 3, 1, 2, 1, 1},
    {"deepseek_v2_vllm", ROW_SOFTMAX, 0, ROW_PLAIN, 16.0, 8, 3, 1, 0, 0, 0},
    {"deepseek_v3", ROW_SIGMOID, 1, ROW_PLAIN, 2.5, 8, 4, 2, 0, 0, 0},
    {"deepseek_v3_hf", ROW_SIGMOID, 1, ROW_ADD, 2.5, 8, 4, 2, 1, 0, 0},
    {"kimi_k2", ROW_SIGMOID, 1, ROW_ADD, 2.827, ROW_NO_GROUP, 0, 0},
    {"kimi_linear", ROW_SIGMOID, 1, ROW_ADD, 2.446, ROW_NO_GROUP, 0, 0},
    {"glm45", ROW_SIGMOID, 1, ROW_ADD, 2.5, ROW_NO_GROUP, 0, 0},
    {"glm4_moe_lite", ROW_SIGMOID, 1, ROW_ADD, 1.8, ROW_NO_GROUP, 0, 0},
    {"bailing_moe_v2", ROW_SIGMOID, 1, ROW_ADD, 2.5, 8, 4, 2, 0, 1, 0},
    {"dots1", ROW_SIGMOID, 1, ROW_ADD, 2.5, ROW_NO_GROUP, 0, 0},
    {"exaone_moe", ROW_SIGMOID, 1, ROW_ADD, 2.5, ROW_NO_GROUP, 0, 0},
    {"mimo_v2", ROW_SIGMOID, 1, ROW_ADD, 0, ROW_NO_GROUP, 0, 0},
    {"solar_open", ROW_SIGMOID, 1, ROW_ADD, 0, ROW_NO_GROUP, 0, 0},
    {"nemotron_h", ROW_SIGMOID, 1, ROW_ADD, 2.5, ROW_NO_GROUP, 0, 0},
    {"minimax_m2", ROW_SIGMOID, 1, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"lfm2", ROW_SIGMOID, 1, MOE_EP_EPS_ADD, 1e-6, 0, ROW_NO_GROUP, 0, 0},
    {"step35", ROW_SIGMOID, 1, ROW_ADD, 3.0, ROW_NO_GROUP, 0, 0},
    {"ernie45", ROW_SOFTMAX, 1, MOE_EP_EPS_CLAMP, 1e-12, 0, ROW_NO_GROUP, 0, 0},
    {"pangu_pro", ROW_SOFTMAX, 0, ROW_PLAIN, 0, 6, 6, 1, 0, 0, 0}, /* a group for each choice */
    {"longcat", ROW_SOFTMAX, 0, ROW_PLAIN, 6.0, ROW_NO_GROUP, 0, 0},
    {"deepseek_v4", ROW_ROOT, 1, ROW_ADD, 0, ROW_NO_GROUP, 0, 0},
    {"deepseek_v4_hash", ROW_ROOT, 1, ROW_ADD, 0, ROW_NO_GROUP, 0, 0},
    {"grok1", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"grok1_vllm", ROW_SOFTMAX, 1, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"grok1_sglang", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"gemma4", ROW_OF_CHOSEN, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"hunyuan", ROW_SOFTMAX, 1, MOE_EP_EPS_CLAMP, 1.0 / (1 << 23), 0, ROW_NO_GROUP, 1, 0},
    {"switch", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"hash", MOE_EP_SCORE_LOGIT, MOE_EP_WEIGHT_ONE, 0, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"megatron_pre_softmax", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"megatron_post_softmax", ROW_OF_CHOSEN, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"megatron_sigmoid", ROW_SIGMOID, 1, ROW_ADD, 0, ROW_NO_GROUP, 1, 0},
    {"megatron_quantile", MOE_EP_SCORE_SIGMOID, MOE_EP_WEIGHT_SCORE, 1, 1, ROW_ADD, 0, ROW_NO_GROUP, 1, 0},
    {"llama_cpp", ROW_SOFTMAX, 1, MOE_EP_EPS_CLAMP, 1.0 / (1 << 14), 0, ROW_NO_GROUP, 0, 0},
    {"llama_cpp_sigmoid", ROW_SIGMOID, 1, MOE_EP_EPS_CLAMP, 1.0 / (1 << 14), 0, ROW_NO_GROUP, 0, 0},
    {"base", ROW_OF_LOGIT, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"megablocks", ROW_SOFTMAX, 1, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0},
    {"sinkhorn", ROW_SOFTMAX, 0, ROW_PLAIN, 0, ROW_NO_GROUP, 0, 0}};

/* Weights of the presets whose sources differ only in the norm, worked out by hand. */
TEST(presets_of_one_model_in_several_servers)
{
    const float logits[4] = {0.0f, 1.0f, 2.0f, -1.0f};
    const double a = exp(30.0 * tanh(2.0 / 30.0)), b = exp(30.0 * tanh(1.0 / 30.0));
    const double all = a + b + 1.0 + exp(30.0 * tanh(-1.0 / 30.0));
    const double plain = exp(2.0) + exp(1.0) + 1.0 + exp(-1.0);
    moe_ep_router r = moe_ep_router_grok1_vllm(4, 2);
    float w[2];
    int32_t ids[2];
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 2 && ids[1] == 1);
    CHECK_NEAR(w[0], a / (a + b), 1e-6, 0.0);
    r = moe_ep_router_grok1_sglang(4, 2);
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK_NEAR(w[0], a / all, 1e-6, 0.0);
    CHECK_NEAR(w[1], b / all, 1e-6, 0.0);
    r = moe_ep_router_deepseek_v2_vllm(4, 2);
    r.n_group = 2;
    r.topk_group = 1;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 2 && ids[1] == 3); /* never outside the open group; mask 2 gives expert 0 with weight 0 */
    CHECK_NEAR(w[0], 16.0 * exp(2.0) / plain, 1e-6, 0.0);
    CHECK_NEAR(w[1], 16.0 * exp(-1.0) / plain, 1e-6, 0.0);
    r = moe_ep_router_nemotron_h(4, 1);
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK_NEAR(w[0], 2.5, 1e-6, 0.0); /* transformers divides a single weight, too */
}

TEST(presets_field_by_field)
{
    const int n = (int)(sizeof preset_rows / sizeof *preset_rows);
    int i;
    moe_ep_top2 c;
    CHECK_I64(moe_ep_router_count(), n);
    for (i = 0; i < n; i++) {
        const preset_row *p = &preset_rows[i];
        const int table = strcmp(p->name, "hash") == 0 || strcmp(p->name, "deepseek_v4_hash") == 0;
        const int phi = strcmp(p->name, "phimoe") == 0, cap = strncmp(p->name, "grok1_", 6) == 0;
        const int norm = strcmp(p->name, "dbrx") == 0 || strcmp(p->name, "megablocks") == 0;
        moe_ep_router r;
        memset(&r, 1, sizeof r);
        CHECK_I64(moe_ep_router_by_name(p->name, 64, 6, &r, NULL), MOE_EP_OK);
        CHECK(r.num_experts == 64 && r.top_k == 6 && r.score == p->score && r.weight == p->weight);
        CHECK_I64(r.select, table ? MOE_EP_SELECT_TABLE : phi ? MOE_EP_SELECT_SPARSEMIXER : MOE_EP_SELECT_TOPK);
        CHECK(r.select_on_logit == p->on_logit && r.renorm == p->renorm && r.eps_mode == p->eps_mode);
        CHECK_NEAR(r.eps, p->eps, 1e-7, 0.0);
        CHECK_NEAR(r.scale, p->scale, 1e-7, 0.0);
        CHECK(r.n_group == p->groups && r.topk_group == p->open && r.group_top_m == p->best);
        CHECK(r.mask_zero == p->mask && r.renorm_skip_k1 == p->skip_k1);
        CHECK_I64(r.scale_only_without_renorm, p->scale_only);
        CHECK_I64(r.group_top_k, strcmp(p->name, "pangu_pro") == 0);
        CHECK_I64(r.weight_on_input, strcmp(p->name, "llama4") == 0);
        CHECK_NEAR(r.logit_softcap, cap ? 30.0 : 0.0, 0.0, 0.0);
        CHECK_NEAR(r.sparsemixer_jitter, phi ? 0.01 : 0.0, 1e-7, 0.0);
        CHECK_NEAR(r.renorm_p, norm ? 1.0 : 0.0, 0.0, 0.0);
        CHECK(r.num_null == 0 && r.nan_as_masked == 0 && r.logits_stride == 0 && r.table_rows == 0);
        CHECK(!r.logit_bias && !r.select_bias && !r.per_expert_scale && !r.table && !r.keys);
        CHECK_I64(r.isa_max, MOE_EP_ISA_AUTO);
        if (t_failed_here) printf("    %s\n", p->name);
    }
    CHECK_I64(moe_ep_router_longcat(64, 6, 5).num_null, 5);
    {
        moe_ep_router one; /* one expert is enough */
        CHECK_I64(moe_ep_router_by_name("qwen3", 1, 1, &one, NULL), MOE_EP_OK);
        CHECK(one.num_experts == 1 && one.top_k == 1);
    }
    c = moe_ep_top2_gshard(8);
    CHECK(c.num_experts == 8 && c.second == MOE_EP_SECOND_RANDOM && c.renorm == 1 && c.eps_mode == MOE_EP_EPS_ADD);
    CHECK_NEAR(c.eps, 1e-9, 1e-6, 0.0);
    CHECK_NEAR(c.threshold, 0.2, 1e-6, 0.0);
    CHECK(c.sample_second == 0 && c.logits_stride == 0);
    c = moe_ep_top2_gshard_new(8);
    CHECK(c.num_experts == 8 && c.second == MOE_EP_SECOND_RANDOM && c.renorm == 0 && c.sample_second == 0);
    CHECK_NEAR(c.threshold, 0.2, 1e-6, 0.0);
    c = moe_ep_top2_deepspeed(8);
    CHECK(c.num_experts == 8 && c.second == MOE_EP_SECOND_ALL && c.renorm == 0 && c.sample_second == 1);
    c = moe_ep_top2_nllb(8);
    CHECK(c.num_experts == 8 && c.second == MOE_EP_SECOND_ALL && c.renorm == 0 && c.sample_second == 0);
}

/* ---- the last value that still goes, and the first that does not ---- */

/* A zero input makes a zero logit, whatever the length; an added bias is the logit then. */
TEST(gate_of_zeros)
{
    static float x[40], w[40];
    const float bias[1] = {0.375f};
    int32_t H, h;
    for (h = 0; h < 40; h++) w[h] = 1.0f + (float)h;
    for (H = 1; H <= 40; H++) {
        float out[1] = {5.0f};
        CHECK_I64(moe_ep_gate(x, 1, H, w, NULL, 1, out, NULL), MOE_EP_OK);
        CHECK(out[0] >= 0.0f && out[0] <= 0.0f);
        CHECK_I64(moe_ep_gate(x, 1, H, w, bias, 1, out, NULL), MOE_EP_OK);
        CHECK_NEAR(out[0], 0.375, 0.0, 0.0);
    }
}

/* A generator whose next number is 0. */
static moe_ep_rng rng_of_zero(void)
{
    moe_ep_rng rng = moe_ep_rng_seed(5);
    rng.s[1] = 0;
    return rng;
}

/* A draw of exactly 0 is below every chance but none. */
TEST(draws_of_zero)
{
    const float masked[2] = {1.0f, -INFINITY}, far_off[3] = {-300.0f, 1.0f, 1.0f}, holes[2] = {-INFINITY, -INFINITY};
    const float none[3] = {-INFINITY, -INFINITY, -INFINITY};
    float x[1] = {3.0f}, w[2];
    int32_t ids[2];
    moe_ep_rng rng = rng_of_zero(), copy = rng;
    moe_ep_top2 c = moe_ep_top2_gshard_new(2);
    CHECK_NEAR(moe_ep_rng_f64(&copy), 0.0, 0.0, 0.0);
    CHECK_I64(moe_ep_dropout(x, 1, 0.0f, &rng, NULL), MOE_EP_OK);
    CHECK_NEAR(x[0], 3.0, 0.0, 0.0); /* rate 0 drops nothing */
    rng = rng_of_zero();
    CHECK_I64(moe_ep_dropout(x, 1, 0.25f, &rng, NULL), MOE_EP_OK);
    CHECK_NEAR(x[0], 0.0, 0.0, 0.0);
    x[0] = 3.0f;
    rng = rng_of_zero();
    CHECK_I64(moe_ep_jitter(x, 1, 1.0f, &rng, NULL), MOE_EP_OK); /* the lower end of 1 - eps .. 1 + eps */
    CHECK_NEAR(x[0], 0.0, 0.0, 0.0);
    rng = rng_of_zero();
    CHECK_I64(moe_ep_route_top2(&c, masked, 1, &rng, ids, w, NULL), MOE_EP_OK); /* a gate of 0 has no chance */
    CHECK(ids[0] == 0 && ids[1] == -1 && w[0] >= 1.0f);
    rng = rng_of_zero();
    CHECK_I64(moe_ep_route_sample(far_off, 1, 3, &rng, ids, w, NULL), MOE_EP_OK); /* nor has exp(-301) */
    CHECK_I64(ids[0], 1);
    CHECK_I64(moe_ep_route_sample(none, 1, 3, &rng, ids, w, NULL), MOE_EP_OK); /* nobody to draw: the first, as ever */
    CHECK(ids[0] == 0 && w[0] >= 0.0f && w[0] <= 0.0f);
    CHECK_I64(moe_ep_route_top2(&c, holes, 1, &rng, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == -1);
}

/* Gumbel noise -log(-log(u)), u = (draw + 1/2) / 2^53, one draw for each expert: which of two wins is told by noise of
 * our own, with logits that put them within a hundredth of each other, on either side. */
TEST(gumbel_noise_by_definition)
{
    uint64_t s = t_seed + 95;
    int round;
    for (round = 0; round < 300; round++) {
        moe_ep_top2 c = moe_ep_top2_deepspeed(3);
        moe_ep_rng rng = moe_ep_rng_seed(t_u64(&s)), copy;
        double noise[3], gap = (round % 2 ? 1.0 : -1.0) * (round < 150 ? 0.01 : 1e-4);
        float logits[3] = {90.0f, 0.0f, 0.0f}, w[2];
        int32_t ids[2];
        int e;
        if (round % 3 == 0) rng.s[2] = rng.s[0] ^ rng.s[1]; /* then the second draw is 0 */
        copy = rng;
        for (e = 0; e < 3; e++) {
            noise[e] = -log(-log(((double)(moe_ep_rng_u64(&copy) >> 11) + 0.5) / 9007199254740992.0));
        }
        logits[2] = (float)(noise[1] - noise[2] + gap); /* third wins by gap */
        if (fabs(noise[1]) + fabs(noise[2]) > 30.0) continue; /* a float holds them to 1e-5 */
        CHECK_I64(moe_ep_route_top2(&c, logits, 1, &rng, ids, w, NULL), MOE_EP_OK);
        CHECK(ids[0] == 0 && ids[1] == (gap > 0.0 ? 2 : 1));
        CHECK(memcmp(&rng, &copy, sizeof rng) == 0); /* three draws, no more */
        STOP_IF_FAILED("round %d", round);
    }
}

/* One group is no group, whatever the other fields of groups say: quick and slow, every kernel. */
TEST(one_group_is_none)
{
    enum { E = 48, T = 5 };
    static float logits[T * E];
    float want_w[T * 20], w[T * 20];
    int32_t want[T * 20], ids[T * 20], i;
    uint64_t s = t_seed + 96;
    int n, isa;
    for (i = 0; i < T * E; i++) logits[i] = (float)t_unit(&s) - 0.5f;
    for (n = 0; n < 8; n++)
        for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++) {
            moe_ep_router r = n & 1 ? moe_ep_router_minimax_m2(E, 20) : moe_ep_router_mixtral(E, 20);
            if (n & 2) r.top_k = 4;
            if (n & 4) r.score = MOE_EP_SCORE_SQRT_SOFTPLUS;
            r.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_route(&r, logits, T, NULL, want, want_w, NULL), MOE_EP_OK);
            r.n_group = 1;
            r.topk_group = 7;
            r.group_top_m = n & 1 ? 0 : 2;
            r.mask_zero = 2;
            CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids, w, NULL), MOE_EP_OK);
            CHECK(memcmp(ids, want, sizeof *ids * (size_t)(T * r.top_k)) == 0);
            CHECK(memcmp(w, want_w, sizeof *w * (size_t)(T * r.top_k)) == 0);
            STOP_IF_FAILED("router %d", n);
        }
}

/* Fields of a router at their limits. */
TEST(router_fields_at_their_limits)
{
    moe_ep_router r, ok = moe_ep_router_mixtral(2048, 4);
    moe_ep_error err;
#define GOES(field, value)                                                                          \
    do {                                                                                            \
        r = ok;                                                                                     \
        r.field = value;                                                                            \
        CHECK_I64(moe_ep_router_check(&r, &err), MOE_EP_OK);                                        \
    } while (0)
#define REFUSED(field, value, status)                                                               \
    do {                                                                                            \
        r = ok;                                                                                     \
        r.field = value;                                                                            \
        CHECK_I64(moe_ep_router_check(&r, &err), status);                                           \
        CHECK_STR(err.arg, #field);                                                                 \
    } while (0)
    GOES(top_k, 2048);
    REFUSED(top_k, 2049, MOE_EP_ERR_TOP_K);
    REFUSED(top_k, 0, MOE_EP_ERR_SIZE);
    REFUSED(num_experts, 0, MOE_EP_ERR_SIZE);
    GOES(num_null, 2048);
    REFUSED(num_null, 2049, MOE_EP_ERR_SIZE);
    REFUSED(num_null, -1, MOE_EP_ERR_SIZE);
    GOES(logits_stride, 2048);
    REFUSED(logits_stride, 2047, MOE_EP_ERR_SIZE);
    REFUSED(logits_stride, 1, MOE_EP_ERR_SIZE);
    REFUSED(logits_stride, -1, MOE_EP_ERR_SIZE);
    GOES(score, (moe_ep_score)3);
    REFUSED(score, (moe_ep_score)4, MOE_EP_ERR_RANGE);
    REFUSED(select, (moe_ep_select)4, MOE_EP_ERR_RANGE);
    GOES(weight, (moe_ep_weight)3);
    REFUSED(weight, (moe_ep_weight)4, MOE_EP_ERR_RANGE);
    GOES(isa_max, MOE_EP_ISA_NEON);
    REFUSED(isa_max, (moe_ep_isa)5, MOE_EP_ERR_RANGE);
    GOES(eps_mode, (moe_ep_eps_mode)2);
    REFUSED(eps_mode, (moe_ep_eps_mode)3, MOE_EP_ERR_RANGE);
    GOES(renorm_p, (float)INFINITY);
    REFUSED(renorm_p, -1.0f, MOE_EP_ERR_RANGE);
    REFUSED(renorm_p, -INFINITY, MOE_EP_ERR_NAN);
    REFUSED(eps, -1.0f, MOE_EP_ERR_RANGE);
    REFUSED(eps, (float)INFINITY, MOE_EP_ERR_NAN);
    REFUSED(logit_softcap, -1.0f, MOE_EP_ERR_RANGE);
    REFUSED(sparsemixer_jitter, -1.0f, MOE_EP_ERR_RANGE);
    GOES(scale, -1.0f);
    REFUSED(scale, (float)INFINITY, MOE_EP_ERR_NAN);
    REFUSED(n_group, -1, MOE_EP_ERR_SIZE);
    REFUSED(n_group, 1025, MOE_EP_ERR_SIZE);
    REFUSED(n_group, 3, MOE_EP_ERR_CONFIG);
    ok.n_group = 1024; /* of two experts each */
    ok.topk_group = 2;
    GOES(top_k, 4);
    REFUSED(top_k, 5, MOE_EP_ERR_TOP_K);
    GOES(topk_group, 1024);
    REFUSED(topk_group, 1025, MOE_EP_ERR_SIZE);
    REFUSED(topk_group, 0, MOE_EP_ERR_SIZE);
    ok.top_k = 2;
    GOES(topk_group, 1);
    GOES(group_top_m, 2);
    REFUSED(group_top_m, 3, MOE_EP_ERR_SIZE);
    REFUSED(group_top_m, -1, MOE_EP_ERR_SIZE);
    ok.mask_zero = 1; /* then experts of closed groups may be taken */
    GOES(top_k, 2048);
#undef GOES
#undef REFUSED
}

/* The numbers of tokens and experts at which products cease to fit, and NULL for one token. */
TEST(sizes_that_just_fit)
{
    const float row[2] = {0.5f, 0.25f}, cancel[2] = {0.5f, -0.25f}, full[1] = {3.40282347e38f}, hot[2] = {88.0f, 0.0f};
    const float hundred[1] = {100.0f};
    const int32_t one[1] = {0}, beyond[2] = {0, 1};
    const int64_t most = INT64_MAX / 16, loads[2] = {3, 1};
    float w[4] = {-9.0f, -9.0f, -9.0f, -9.0f}, bias[2] = {3.40282347e38f, 0.0f};
    int32_t ids[2] = {-9, -9}, rounds;
    moe_ep_router r = moe_ep_router_mixtral(1, 1);
    moe_ep_top2 c = moe_ep_top2_nllb(2);
    moe_ep_rng rng = moe_ep_rng_seed(1);
    moe_ep_aux_desc d;
    moe_ep_error err;
    CHECK_I64(moe_ep_route(&r, NULL, most, NULL, ids, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route(&r, NULL, most + 1, NULL, ids, w, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_route(&r, NULL, 1, NULL, ids, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_route(&r, row, 1, NULL, NULL, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_scores(&r, NULL, most, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_scores(&r, NULL, most + 1, w, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_gate(NULL, most, 1, row, NULL, 1, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_gate(NULL, most, 2, row, NULL, 1, w, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_gate(NULL, most, 1, row, NULL, 2, w, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_expert_choice(NULL, INT32_MAX, 1, 1, ids, w, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_expert_choice(row, 2, 1, 3, ids, w, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_expert_choice(row, 2, 1, 0, ids, w, NULL, &err), MOE_EP_ERR_SIZE);
    c.eps = -1.0f;
    CHECK_I64(moe_ep_route_top2(&c, row, 1, NULL, ids, w, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "eps");
    c = moe_ep_top2_nllb(2);
    c.eps_mode = (moe_ep_eps_mode)3;
    CHECK_I64(moe_ep_route_top2(&c, row, 1, NULL, ids, w, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "eps_mode");
    c = moe_ep_top2_nllb(2);
    c.second = (moe_ep_second)4;
    CHECK_I64(moe_ep_route_top2(&c, row, 1, NULL, ids, w, &err), MOE_EP_ERR_RANGE);
    c.second = MOE_EP_SECOND_ALL;
    c.threshold = (float)INFINITY;
    CHECK_I64(moe_ep_route_top2(&c, row, 1, NULL, ids, w, &err), MOE_EP_ERR_NAN);
    CHECK_STR(err.arg, "threshold");
    c = moe_ep_top2_nllb(2);
    c.logits_stride = 1;
    CHECK_I64(moe_ep_route_top2(&c, row, 1, NULL, ids, w, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "logits_stride");
    CHECK_I64(moe_ep_dropout(w, 1, 1.0f, &rng, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_dropout(NULL, 1, 0.5f, &rng, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_dropout(w, 1, 0.5f, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_jitter(NULL, 1, 0.5f, &rng, &err), MOE_EP_ERR_NULL);
    memset(&d, 0, sizeof d);
    d.top_k = 4;
    d.num_experts = 1;
    d.scores = row;
    d.ids = one;
    d.num_tokens = INT64_MAX / 4; /* choices fit, scores do not */
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_OVERFLOW, 0.0, 0.0);
    CHECK_STR(err.arg, "T");
    d.num_tokens++;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_OVERFLOW, 0.0, 0.0);
    CHECK_STR(err.arg, "num_tokens");
    d.num_tokens = d.top_k = 1;
    d.kind = MOE_EP_AUX_DEVICE;
    d.device_of_expert = one;
    d.num_devices = 1;
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), 0.5, 1e-12, 0.0);
    d.num_experts = 2;
    d.device_of_expert = beyond; /* the number of devices is not one of them */
    CHECK_NEAR(moe_ep_aux_loss(&d, NULL, &err), MOE_EP_ERR_DEVICE_ID, 0.0, 0.0);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_append_shared(one, row, 0, 1, 1, INT32_MAX - 1, MOE_EP_SHARED_CONSTANT, 1.0f, ids, w, &err),
              MOE_EP_OK);
    CHECK_I64(moe_ep_append_shared(one, row, 0, 2, 1, INT32_MAX - 2, MOE_EP_SHARED_CONSTANT, 1.0f, ids, w, &err),
              MOE_EP_OK);
    CHECK_I64(moe_ep_append_shared(one, row, 1, 1, 1, -1, MOE_EP_SHARED_CONSTANT, 1.0f, ids, w, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_sinkhorn(row, 1, 2, -1.0, 0, w, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_sinkhorn(row, 1, 2, 0.0, -1, w, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK(ids[0] == -9 && w[0] < -8.0f && w[3] < -8.0f);
    CHECK_I64(moe_ep_append_shared(one, full, 1, 1, 1, 1, MOE_EP_SHARED_SUM_OVER_VALUE, -1.0f, ids, w, &err),
              MOE_EP_OK);
    CHECK(w[0] >= full[0] && w[1] <= -full[0] && ids[1] == 1);
    CHECK_I64(moe_ep_append_shared(one, hundred, 1, 1, 1, 1, MOE_EP_SHARED_SUM_OVER_VALUE, 2.95e-37f, ids, w, &err),
              MOE_EP_OK); /* 3.39e38 fits, 101 / 2.95e-37 would not */
    CHECK_NEAR(w[1], 100.0 / 2.95e-37, 1e-6, 0.0);
    CHECK_I64(moe_ep_bias_update(loads, 2, 0.0f, 0, bias, &err), MOE_EP_OK); /* no step: the largest float stays */
    CHECK(bias[0] >= full[0] && bias[1] >= 0.0f && bias[1] <= 0.0f);
    CHECK_I64(moe_ep_sinkhorn(hot, 1, 2, 0.0, 0, w, &rounds, NULL, &err), MOE_EP_OK); /* exp(88) is a float */
    CHECK_NEAR(w[0], 0.5, 1e-3, 0.0);
    CHECK_NEAR(moe_ep_router_entropy(full, 1, 1, &err), 0.0, 0.0, 0.0); /* -p log p is negative above 1: no entropy */
    bias[0] = 1.0f;
    CHECK_NEAR(moe_ep_router_entropy(bias, 1, 2, &err), 0.0, 0.0, 0.0);
    CHECK_NEAR(moe_ep_router_entropy(cancel, 1, 2, &err), MOE_EP_ERR_NEGATIVE, 0.0, 0.0);
    CHECK_I64(err.index, 1);
}

/* Rows that are further apart than their logits: scores without what stands between them. */
TEST(scores_of_rows_apart)
{
    const float logits[7] = {0.0f, 0.0f, NAN, 9.0f, NAN, 1.0f, 1.0f}, close[4] = {0.0f, 0.0f, 1.0f, 1.0f};
    float scores[5] = {-9.0f, -9.0f, -9.0f, -9.0f, -9.0f};
    moe_ep_router r = moe_ep_router_mixtral(2, 1);
    moe_ep_error err;
    int i;
    r.logits_stride = 5;
    CHECK_I64(moe_ep_scores(&r, logits, 2, scores, &err), MOE_EP_OK);
    for (i = 0; i < 4; i++) CHECK_NEAR(scores[i], 0.5, 1e-7, 0.0);
    CHECK(scores[4] < -8.0f);
    r.logits_stride = 3;
    CHECK_I64(moe_ep_scores(&r, logits, 2, scores, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 3); /* token 1, expert 1 */
    r.logits_stride = 1;
    CHECK_I64(moe_ep_scores(&r, close, 2, scores, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "logits_stride");
    r.logits_stride = 0;
    r.isa_max = (moe_ep_isa)5;
    CHECK_I64(moe_ep_scores(&r, close, 2, scores, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "isa_max");
    r.isa_max = MOE_EP_ISA_AUTO;
    r.score = (moe_ep_score)4;
    CHECK_I64(moe_ep_scores(&r, close, 2, scores, &err), MOE_EP_ERR_RANGE);
    r.score = MOE_EP_SCORE_SOFTMAX;
    r.logit_softcap = -1.0f;
    CHECK_I64(moe_ep_scores(&r, close, 2, scores, &err), MOE_EP_ERR_RANGE);
    r.logit_softcap = 0.0f;
    r.num_experts = 0;
    CHECK_I64(moe_ep_scores(&r, close, 2, scores, &err), MOE_EP_ERR_SIZE);
    CHECK(scores[0] <= 0.6f && scores[4] < -8.0f);
}

/* More experts than are looked at in one go: the softmax is over all of them, in weights and in scores. */
TEST(softmax_of_very_many)
{
    static const int32_t sizes[] = {1023, 1024, 1025, 1040, 2048, 2400};
    static float logits[2400], scores[2400], bias[2400];
    uint64_t s = t_seed + 99;
    int n, shifted;
    for (n = 0; n < 6; n++)
        for (shifted = 0; shifted < 2; shifted++) {
            const int32_t E = sizes[n];
            double most = -1e30, sum = 0.0, got = 0.0;
            moe_ep_router r = moe_ep_router_qwen2(E, 3);
            float w[3];
            int32_t ids[3], e;
            for (e = 0; e < E; e++) {
                logits[e] = (float)(4.0 * t_unit(&s));
                bias[e] = (float)(t_unit(&s) - 0.5);
            }
            r.logit_bias = shifted ? bias : NULL;
            for (e = 0; e < E; e++) most = fmax(most, (double)logits[e] + (shifted ? (double)bias[e] : 0.0));
            for (e = 0; e < E; e++) sum += exp((double)logits[e] + (shifted ? (double)bias[e] : 0.0) - most);
            CHECK_I64(moe_ep_scores(&r, logits, 1, scores, NULL), MOE_EP_OK);
            for (e = 0; e < E; e++) {
                const double l = (double)logits[e] + (shifted ? (double)bias[e] : 0.0);
                CHECK_NEAR(scores[e], exp(l - most) / sum, 1e-5, 0.0);
                got += (double)scores[e];
            }
            CHECK_NEAR(got, 1.0, 1e-5, 0.0);
            CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
            CHECK_NEAR(w[0], 1.0 / sum, 1e-5, 0.0);
            for (e = 0; e < 3; e++) CHECK_NEAR(w[e], scores[ids[e]], 1e-6, 0.0);
            STOP_IF_FAILED("size %d", n);
        }
}

/* Equal differences: the first one is named. */
TEST(first_of_equal_differences)
{
    const float a[6] = {0.5f, 0.25f, 1.0f, 0.75f, 0.5f, 0.75f}, b[6] = {0.25f, 0.5f, 1.0f, 0.5f, 0.0f, 1.0f};
    moe_ep_weights_result r;
    CHECK_I64(moe_ep_weights_compare(a, b, 2, 2, &r, NULL), MOE_EP_OK);
    CHECK_NEAR(r.max_abs, 0.25, 0.0, 0.0);
    CHECK_I64(r.max_abs_at, 0);
    CHECK_NEAR(r.max_rel, 1.0, 0.0, 0.0);
    CHECK_NEAR(r.worst_sum_a, 1.75, 0.0, 0.0);
    CHECK_NEAR(r.worst_sum_b, 1.5, 0.0, 0.0);
    CHECK_NEAR(r.mean_l1, (0.25 + 0.25 + 0.0 + 0.25) / 2.0, 0.0, 0.0);
    CHECK_I64(moe_ep_weights_compare(b, a, 3, 2, &r, NULL), MOE_EP_OK);
    CHECK_NEAR(r.max_abs, 0.5, 0.0, 0.0);
    CHECK_I64(r.max_abs_at, 4);
    {
        const float even[4] = {0.25f, 0.25f, 0.75f, 0.75f}; /* sums 0.5 and 1.5 are as far from 1 */
        CHECK_I64(moe_ep_weights_compare(even, even, 2, 2, &r, NULL), MOE_EP_OK);
        CHECK_NEAR(r.worst_sum_a, 0.5, 0.0, 0.0);
        CHECK_NEAR(r.worst_sum_b, 0.5, 0.0, 0.0);
        CHECK(r.max_abs_at == 0 && !(r.max_abs + r.max_rel + r.mean_l1 > 0.0));
    }
}

/* The auction as it is described: every token in turn, and whoever it puts out at once, takes the place it likes best
 * and raises the price by how much it likes it better than the next best, plus a fiftieth of the range of the scores.
 * One place for each expert, so that the best place is never one of several alike. */
TEST(auction_step_by_step)
{
    enum { MOST = 12 };
    uint64_t s = t_seed + 97;
    int round;
    for (round = 0; round < 200; round++) {
        const int n = 1 + (int)t_below(&s, MOST);
        const double unit = round % 4 == 0 ? 1e-4 : round % 4 == 1 ? 1e4 : 1.0;
        float scores[MOST * MOST];
        double price[MOST], most = -1e30, least = 1e30, step;
        int holder[MOST], t, e;
        int32_t got[MOST];
        for (t = 0; t < n * n; t++) {
            scores[t] = (float)(unit * (t_unit(&s) - (round % 3 ? 0.0 : 5.0)));
            most = (double)scores[t] > most ? (double)scores[t] : most;
            least = (double)scores[t] < least ? (double)scores[t] : least;
        }
        step = (most - least) / 50.0 > 1e-4 ? (most - least) / 50.0 : 1e-4;
        for (e = 0; e < n; e++) {
            price[e] = 0.0;
            holder[e] = -1;
        }
        for (t = 0; t < n; t++) {
            int who = t;
            while (who >= 0) {
                double best = -1e300, next = -1e300;
                int at = 0, out;
                for (e = 0; e < n; e++) {
                    const double value = (double)scores[who * n + e] - most - price[e];
                    if (value > best) {
                        next = best;
                        best = value;
                        at = e;
                    } else if (value > next) {
                        next = value;
                    }
                }
                price[at] += (n > 1 ? best - next : 0.0) + step;
                out = holder[at];
                holder[at] = who;
                who = out;
            }
        }
        CHECK_I64(moe_ep_auction(scores, n, n, got, NULL, NULL), MOE_EP_OK);
        for (e = 0; e < n; e++) CHECK_I64(got[holder[e]], e);
        STOP_IF_FAILED("round %d", round);
    }
}

/* No score, or no choice: no loss at all, of any kind. */
TEST(losses_of_nothing)
{
    const float zero[8] = {0.0f}, some[8] = {0.5f, 0.5f, 0.25f, 0.75f, 1.0f, 0.0f, 0.0f, 1.0f};
    const int32_t ids[4] = {0, 1, 1, 0}, none[4] = {-1, -1, -1, -1}, device[2] = {0, 1};
    const int64_t loads[2] = {3, 5}, no_loads[2] = {0, 0};
    int kind, which;
    for (kind = 0; kind < 8; kind++)
        for (which = 0; which < 2; which++) {
            moe_ep_aux_desc d;
            double loss;
            memset(&d, 0, sizeof d);
            d.kind = (moe_ep_aux)kind;
            d.num_tokens = 4;
            d.top_k = 1;
            d.num_experts = 2;
            d.scores = which ? some : zero;
            d.ids = which ? none : ids;
            d.global_loads = which ? no_loads : loads;
            d.device_of_expert = device;
            d.num_devices = 2;
            loss = moe_ep_aux_loss(&d, NULL, NULL);
            CHECK(loss >= 0.0 && loss <= 0.0);
            STOP_IF_FAILED("kind %d", kind);
        }
}

/* What stands behind an array is not looked at, and what stands behind a result stays: with every weight and way to
 * select, on every kernel. */
TEST(neighbours_of_the_rows)
{
    const float logits[7] = {0.5f, 0.25f, 2.0f, 1.0f, 3.0f, -1.0f, NAN};
    const float keys[7] = {1.0f, 2.0f, 0.5f, 3.0f, 2.0f, 1.0f, NAN};
    const int32_t table[5] = {0, 1, -1, 2, 99}, tokens[3] = {0, 1, 99};
    int weight, select, isa, i;
    for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++)
        for (select = 0; select < 4; select++)
            for (weight = 0; weight < 4; weight++) {
                moe_ep_router r = moe_ep_router_mixtral(3, 2);
                float w[5] = {-7.0f, -7.0f, -7.0f, -7.0f, -7.0f}, scores[7];
                int32_t ids[5] = {-7, -7, -7, -7, -7};
                r.select = (moe_ep_select)select;
                r.weight = (moe_ep_weight)weight;
                r.isa_max = (moe_ep_isa)isa;
                r.table = table;
                r.table_rows = 2;
                r.keys = keys;
                CHECK_I64(moe_ep_route(&r, logits, 2, tokens, ids, w, NULL), MOE_EP_OK);
                CHECK(ids[4] == -7 && w[4] < -6.0f && w[4] > -8.0f);
                for (i = 0; i < 4; i++) CHECK(ids[i] >= -1 && ids[i] < 3 && w[i] >= 0.0f && w[i] <= 1.0f);
                scores[6] = -7.0f;
                CHECK_I64(moe_ep_scores(&r, logits, 2, scores, NULL), MOE_EP_OK);
                CHECK(scores[6] < -6.0f && scores[5] >= 0.0f);
            }
}

TEST(neighbours_of_the_other_arrays)
{
    const float scores[5] = {3.0f, 1.0f, 2.0f, 0.5f, NAN}, at[3] = {0.5f, 1.0f, NAN};
    const int32_t id[3] = {0, 1, 99};
    const int64_t loads[3] = {3, 1, -1};
    float g[5];
    int32_t k[5];
    int64_t per[3];
    moe_ep_rng rng = moe_ep_rng_seed(4);
    moe_ep_top2 c = moe_ep_top2_nllb(2);
    moe_ep_weights_result compared;
    moe_ep_aux_desc d;
    int call, i;
    memset(&d, 0, sizeof d);
    d.num_tokens = d.num_experts = d.num_devices = 2;
    d.top_k = 1;
    d.scores = scores;
    d.ids = d.device_of_expert = id;
    d.global_loads = loads;
    for (call = 0; call < 12; call++) {
        moe_ep_status st = MOE_EP_OK;
        const int end = call == 0 || call == 2 || call == 4 || call == 8 ? 4 : 2; /* elements of the results */
        for (i = 0; i < 5; i++) {
            g[i] = 0.5f;
            k[i] = -77;
        }
        per[2] = -77;
        if (call == 0) st = moe_ep_gate(scores, 2, 2, scores, at, 2, g, NULL);
        if (call == 1) st = moe_ep_expert_choice(scores, 2, 2, 1, k, g, per, NULL);
        if (call == 2) st = moe_ep_route_top2(&c, scores, 2, NULL, k, g, NULL);
        if (call == 3) st = moe_ep_route_sample(scores, 2, 2, &rng, k, g, NULL);
        if (call == 4) st = moe_ep_sinkhorn(scores, 2, 2, 0.0, 0, g, NULL, NULL, NULL);
        if (call == 5) st = moe_ep_auction(scores, 2, 2, k, NULL, NULL);
        if (call == 6) st = moe_ep_quantile_update(scores, 2, 2, 1, g, NULL, NULL);
        if (call == 7) st = moe_ep_bias_update(loads, 2, 0.1f, 1, g, NULL);
        if (call == 8) st = moe_ep_append_shared(id, scores, 2, 1, 2, 1, MOE_EP_SHARED_CONSTANT, 1.0f, k, g, NULL);
        if (call == 9) st = moe_ep_weights_compare(scores, scores, 2, 2, &compared, NULL);
        if (call == 10) st = moe_ep_jitter(g, 2, 0.5f, &rng, NULL);
        if (call == 11) st = moe_ep_dropout(g, 2, 0.5f, &rng, NULL);
        CHECK_I64(st, MOE_EP_OK);
        for (i = end; i < 5; i++) CHECK(k[i] == -77 && g[i] >= 0.5f && g[i] <= 0.5f);
        CHECK_I64(per[2], -77);
        STOP_IF_FAILED("call %d", call);
    }
    for (i = 0; i < 8; i++) {
        d.kind = (moe_ep_aux)i;
        CHECK(moe_ep_aux_loss(&d, NULL, NULL) > 0.0);
    }
    CHECK(moe_ep_importance_loss(scores, 2, 2, NULL, NULL) > 0.0);
    CHECK(moe_ep_load_loss(scores, at, 2, 2, 1.0, NULL, NULL) > 0.0);
    CHECK(moe_ep_z_loss(scores, 2, 2, NULL) > 0.0);
    CHECK(moe_ep_router_entropy(at, 1, 1, NULL) > 0.0);
}

/* Scratch is asked for by the arrays that are worked in, each rounded up to 64 bytes, and 64 to align the first. */
static size_t arrays_of(size_t a, size_t b, size_t c, size_t d)
{
    return 64 + (a + 63) / 64 * 64 + (b + 63) / 64 * 64 + (c + 63) / 64 * 64 + (d + 63) / 64 * 64;
}

TEST(scratch_is_what_the_arrays_take)
{
    enum { T = 36, E = 18, D = 40 };
    static float scores[T * E], beta[E], out[T * E];
    static int32_t ids[T], device[E];
    static const int64_t loads[E] = {1};
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_aux_desc d;
    memset(&d, 0, sizeof d);
    CHECK_I64(moe_ep_sinkhorn(scores, T, E, 0.0, 0, out, NULL, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, arrays_of(4 * T * E, 8 * T, 8 * E, 8 * E));
    CHECK_I64(moe_ep_auction(scores, T, E, ids, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, arrays_of(16 * T, 8 * T, 0, 0)); /* price and token of each place, tokens without one */
    CHECK_I64(moe_ep_quantile_update(scores, T, E, 1, beta, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, arrays_of(4 * T, 4 * T, 0, 0));
    CHECK_I64(moe_ep_quantile_update(scores, E / 2, E, 2, beta, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, arrays_of(4 * (E / 2), 4 * E, 0, 0));
    CHECK_NEAR(moe_ep_importance_loss(scores, T, E, &none, NULL), MOE_EP_ERR_SCRATCH, 0.0, 0.0);
    CHECK_I64(none.need, arrays_of(8 * E, 0, 0, 0));
    CHECK_NEAR(moe_ep_load_loss(scores, scores, T, E, 1.0, &none, NULL), MOE_EP_ERR_SCRATCH, 0.0, 0.0);
    CHECK_I64(none.need, arrays_of(8 * E, 0, 0, 0));
    d.num_tokens = T;
    d.top_k = 1;
    d.num_experts = E;
    d.scores = scores;
    d.ids = ids;
    d.global_loads = loads;
    d.device_of_expert = device;
    CHECK_NEAR(moe_ep_aux_loss(&d, &none, NULL), MOE_EP_ERR_SCRATCH, 0.0, 0.0);
    CHECK_I64(none.need, arrays_of(8 * E, 8 * E, 3 * 8 * E, 0));
    d.kind = MOE_EP_AUX_DEVICE;
    d.num_devices = D; /* more devices than experts */
    CHECK_NEAR(moe_ep_aux_loss(&d, &none, NULL), MOE_EP_ERR_SCRATCH, 0.0, 0.0);
    CHECK_I64(none.need, arrays_of(8 * E, 8 * D, 3 * 8 * D, 0));
}

TEST(success_clears_the_error)
{
    const float row[2] = {0.25f, 0.75f}, square[4] = {3.0f, 1.0f, 2.0f, 0.0f};
    const int64_t loads[2] = {3, 1};
    const int32_t id[1] = {1};
    float bias[2] = {0.0f, 0.0f}, x[2] = {1.0f, 1.0f}, w[4];
    int32_t ids[4];
    int64_t per[2];
    moe_ep_router r = moe_ep_router_mixtral(2, 1), named;
    moe_ep_top2 top2 = moe_ep_top2_nllb(2);
    moe_ep_rng rng = moe_ep_rng_seed(1);
    moe_ep_weights_result compared;
    moe_ep_aux_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_tokens = d.top_k = 1;
    d.num_experts = 2;
    d.scores = row;
    d.ids = id;
    CLEARS(moe_ep_router_check(&r, &err));
    CLEARS(moe_ep_router_by_name("qwen3", 2, 1, &named, &err));
    CLEARS(moe_ep_route(&r, row, 1, NULL, ids, w, &err));
    CLEARS(moe_ep_scores(&r, row, 1, w, &err));
    CLEARS(moe_ep_gate(row, 1, 2, x, NULL, 1, w, &err));
    CLEARS(moe_ep_expert_choice(row, 1, 2, 1, ids, w, per, &err));
    CLEARS(moe_ep_route_top2(&top2, row, 1, NULL, ids, w, &err));
    CLEARS(moe_ep_route_sample(row, 1, 2, &rng, ids, w, &err));
    CLEARS(moe_ep_jitter(x, 2, 0.1f, &rng, &err));
    CLEARS(moe_ep_dropout(x, 2, 0.1f, &rng, &err));
    CLEARS(moe_ep_sinkhorn(row, 1, 2, 0.0, 0, w, NULL, NULL, &err));
    CLEARS(moe_ep_bias_update(loads, 2, 0.1f, 0, bias, &err));
    CLEARS(moe_ep_aux_loss(&d, NULL, &err));
    CLEARS(moe_ep_z_loss(row, 1, 2, &err));
    CLEARS(moe_ep_append_shared(id, row, 1, 1, 2, 1, MOE_EP_SHARED_CONSTANT, 1.0f, ids, w, &err));
    CLEARS(moe_ep_weights_compare(row, row, 1, 2, &compared, &err));
    CLEARS(moe_ep_auction(row, 2, 1, ids, NULL, &err));
    CLEARS(moe_ep_quantile_update(square, 2, 2, 1, bias, NULL, &err));
    CLEARS(moe_ep_importance_loss(row, 1, 2, NULL, &err));
    CLEARS(moe_ep_load_loss(row, row, 1, 2, 1.0, NULL, &err));
    CLEARS(moe_ep_router_entropy(row, 1, 2, &err));
}

/* eps: added to the norm, a lower bound of it, or not looked at. */
TEST(eps_of_the_norm)
{
    static const moe_ep_eps_mode modes[] = {MOE_EP_EPS_NONE, MOE_EP_EPS_ADD, MOE_EP_EPS_CLAMP};
    static const float eps[] = {0.0f, 0.125f, 5.0f};
    const float logits[4] = {0.5f, 2.0f, -1.0f, 1.0f};
    int m, i, isa;
    for (isa = (int)MOE_EP_ISA_PORTABLE; isa <= (int)MOE_EP_ISA_AVX512; isa++)
        for (m = 0; m < 3; m++)
            for (i = 0; i < 3; i++) {
                const double a = 1.0 / (1.0 + exp(-2.0)), b = 1.0 / (1.0 + exp(-1.0)), e = (double)eps[i];
                const double norm = m == 0 ? a + b : m == 1 ? a + b + e : a + b > e ? a + b : e;
                moe_ep_router r = moe_ep_router_megatron_sigmoid(4, 2);
                float w[2];
                int32_t ids[2];
                r.renorm = 1;
                r.scale = 0.0f;
                r.eps_mode = modes[m];
                r.eps = eps[i];
                r.isa_max = (moe_ep_isa)isa;
                CHECK_I64(moe_ep_route(&r, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
                CHECK(ids[0] == 1 && ids[1] == 3);
                CHECK_NEAR(w[0], a / norm, 2e-6, 0.0);
                CHECK_NEAR(w[1], b / norm, 2e-6, 0.0);
            }
}

/* g2 of logits 1 1 1 is 1/3, of the two chosen 1/2: a threshold between them tells which is looked at. */
TEST(renorm_comes_before_the_threshold)
{
    const float logits[3] = {1, 1, 1};
    int32_t ids[2];
    float w[2];
    moe_ep_top2 c;
    memset(&c, 0, sizeof c);
    c.num_experts = 3;
    c.second = MOE_EP_SECOND_THRESHOLD;
    c.threshold = 0.4f;
    c.renorm = 1;
    CHECK_I64(moe_ep_route_top2(&c, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == 1);
    CHECK_NEAR(w[0], 0.5, 1e-6, 0);
    CHECK_NEAR(w[1], 0.5, 1e-6, 0);
    c.renorm = 0;
    CHECK_I64(moe_ep_route_top2(&c, logits, 1, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == -1);
}

TEST(sparsemixer_takes_scale_and_expert_scale)
{
    const float logits[2] = {2, 0}, each[2] = {3, 5};
    moe_ep_router r = moe_ep_router_phimoe(2, 1);
    int32_t id;
    float w;
    r.scale = 2;
    r.per_expert_scale = each;
    CHECK_I64(moe_ep_route(&r, logits, 1, NULL, &id, &w, NULL), MOE_EP_OK);
    CHECK_I64(id, 0);
    CHECK_NEAR(w, 6, 1e-6, 0); /* 1 * 2 * 3 */
}

/* One number has no place in an array. */
TEST(numbers_that_are_no_array_have_no_index)
{
    const int64_t loads[2] = {3, 1};
    const int32_t one_id = 0;
    const float one = 1;
    float bias[2] = {0, 0}, out_w[2];
    int32_t out[2];
    moe_ep_error err;
    moe_ep_router r = moe_ep_router_mixtral(4, 2);
    CHECK_I64(moe_ep_bias_update(loads, 2, (float)NAN, 0, bias, &err), MOE_EP_ERR_NAN);
    CHECK_STR(err.arg, "rate");
    CHECK_I64(err.index, -1);
    r.scale = (float)NAN;
    CHECK_I64(moe_ep_router_check(&r, &err), MOE_EP_ERR_NAN);
    CHECK_STR(err.arg, "scale");
    CHECK_I64(err.index, -1);
    CHECK_NAN(err.value);
    CHECK_I64(moe_ep_append_shared(&one_id, &one, 1, 1, 2, 1, MOE_EP_SHARED_CONSTANT, (float)NAN, out, out_w, &err),
              MOE_EP_ERR_NAN);
    CHECK_STR(err.arg, "value");
    CHECK_I64(err.index, -1);
}

/* 300,000 equal tokens: a sum of that many terms in float would be off by a thousandth. */
TEST(z_loss_of_many_tokens)
{
    enum { T = 300000, E = 3 };
    float *logits = (float *)calloc((size_t)T * E, sizeof *logits);
    CHECK(logits != NULL);
    if (logits) CHECK_NEAR(moe_ep_z_loss(logits, T, E, NULL), log(3.0) * log(3.0), 1e-9, 0);
    free(logits);
}

/* Norms of high powers of small and of large weights, by logarithms; next to the largest weight the others vanish. */
TEST(high_norms_neither_vanish_nor_overflow)
{
    static const float powers[5] = {50, 200, 1000, 1e6f, 0.01f};
    uint64_t s = t_seed + 17;
    float l[64], w[8];
    int32_t ids[8];
    for (int round = 0; round < 200; round++) {
        int32_t E = 2 + (int32_t)t_below(&s, 63), K = 1 + (int32_t)t_below(&s, (uint64_t)(E < 8 ? E : 8));
        int raw = round % 2;
        moe_ep_router r = moe_ep_router_mixtral(E, K);
        double most = -HUGE_VAL, sum = 0, all = 0, top = -HUGE_VAL, logs[8];
        r.renorm = 1;
        r.renorm_p = powers[round % 5];
        if (raw) r.score = MOE_EP_SCORE_LOGIT, r.weight = MOE_EP_WEIGHT_SCORE;
        else r.score = MOE_EP_SCORE_SOFTMAX, r.weight = MOE_EP_WEIGHT_SCORE;
        for (int e = 0; e < E; e++) l[e] = (float)(raw ? 1e-9 + 300 * t_unit(&s) : 4 * t_unit(&s));
        CHECK_I64(moe_ep_route(&r, l, 1, NULL, ids, w, NULL), MOE_EP_OK);
        for (int e = 0; e < E; e++) top = l[e] > top ? l[e] : top;
        for (int e = 0; e < E; e++) all += exp(l[e] - top);
        for (int j = 0; j < K; j++) logs[j] = raw ? log(l[ids[j]]) : l[ids[j]] - top - log(all);
        for (int j = 0; j < K; j++) most = logs[j] > most ? logs[j] : most;
        for (int j = 0; j < K; j++) sum += exp((double)r.renorm_p * (logs[j] - most));
        for (int j = 0; j < K; j++)
            CHECK_NEAR(w[j], exp(logs[j] - most - log(sum) / (double)r.renorm_p), 2e-5, 1e-30);
        STOP_IF_FAILED("round %d", round);
    }
    {
        const float none[2] = {0, 0};
        moe_ep_router r = moe_ep_router_mixtral(2, 2);
        r.renorm = 1, r.renorm_p = 200, r.score = MOE_EP_SCORE_LOGIT, r.weight = MOE_EP_WEIGHT_SCORE;
        CHECK_I64(moe_ep_route(&r, none, 1, NULL, ids, w, NULL), MOE_EP_OK);
        CHECK_NEAR(w[0] + w[1], 0, 0, 0);
    }
}

/* A weight beside no expert is not part of the sum; errors name the token's first weight. */
TEST(shared_experts_beside_no_expert)
{
    const int32_t ids[4] = {2, -1, 1, 0};
    const float w[4] = {0.6f, 0.4f, 3e38f, 3e38f}, a[2] = {1, 2};
    int32_t out[6];
    float after[6];
    moe_ep_weights_result q;
    moe_ep_error err;
    CHECK_I64(moe_ep_append_shared(ids, w, 1, 2, 4, 1, MOE_EP_SHARED_SUM_OVER_VALUE, 2.0f, out, after, &err),
              MOE_EP_OK);
    CHECK_NEAR(after[2], 0.3, 1e-6, 0);
    CHECK_NEAR(after[1], 0.4, 1e-6, 0); /* stays as it came */
    CHECK_I64(moe_ep_append_shared(ids, w, 2, 2, 4, 1, MOE_EP_SHARED_SUM_OVER_VALUE, 1.0f, out, after, &err),
              MOE_EP_ERR_OVERFLOW);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_append_shared(ids, (const float[2]){3e38f, 3e38f}, 1, 2, 4, 1, MOE_EP_SHARED_SUM_OVER_VALUE, 1.0f,
                                   out, after, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_weights_compare(a, a, 1, 0, &q, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "K");
}

T_MAIN
