/* tests/test_forward.c - section 9: the expert layer against a naive float64 layer, one token at a time.
 * SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"
#include "examples/threads.h"

#include <sys/mman.h>
#include <unistd.h>
#ifdef _OPENMP
#  include <omp.h>
#endif

/* ---- a random layer: float64 truth beside the bytes the library reads ---- */

typedef struct set {
    moe_ep_weights w;
    double *gate, *up, *down;    /* (E,I,H) (E,I,H) (E,H,I) as the stored bytes say */
    double *gate_b, *up_b, *down_b;
    void *mem_gate, *mem_up, *mem_down;
    float *bias_gate, *bias_up, *bias_down;
    float *scale_gate, *scale_up, *scale_down; /* int8 */
    const void **table[3];
} set;

/* Independent of the library's conversions: through powers of two. */
static double bf16_value(uint16_t v)
{
    int e = (v >> 7) & 255, m = v & 127;
    double x = e ? ldexp(1.0 + m / 128.0, e - 127) : ldexp(m / 128.0, -126);
    return v & 0x8000 ? -x : x;
}
static double f16_value(uint16_t v)
{
    int e = (v >> 10) & 31, m = v & 1023;
    double x = e ? ldexp(1.0 + m / 1024.0, e - 15) : ldexp(m / 1024.0, -14);
    return v & 0x8000 ? -x : x;
}

static size_t elem_of(moe_ep_dtype d) { return d == MOE_EP_F32 ? 4 : d == MOE_EP_I8 ? 1 : 2; }

/* Stores value as element i of mem and returns what was stored; int8 in steps of scale. */
static double put(void *mem, int64_t i, moe_ep_dtype dtype, double value, float scale)
{
    if (dtype == MOE_EP_I8) {
        double q = rint(value / (double)scale);
        q = q > 127.0 ? 127.0 : q < -127.0 ? -127.0 : q;
        ((int8_t *)mem)[i] = (int8_t)q;
        return q * (double)scale;
    }
    if (dtype == MOE_EP_F32) {
        ((float *)mem)[i] = (float)value;
        return (double)(float)value;
    }
    uint16_t raw = dtype == MOE_EP_BF16 ? moe_ep_bf16_from_f32((float)value) : moe_ep_f16_from_f32((float)value);
    ((uint16_t *)mem)[i] = raw;
    return dtype == MOE_EP_BF16 ? bf16_value(raw) : f16_value(raw);
}

/* Asked once: on a virtual machine the answer takes microseconds. */
static int best_isa(void)
{
    static int best = -1;
    if (best < 0) best = (int)moe_ep_isa_best();
    return best;
}

static int gated(moe_ep_activation_kind k) { return k <= MOE_EP_ACT_GEGLU_ERF; }

static double draw(uint64_t *s) { return 2.0 * t_unit(s) - 1.0; }

/* bias: 0 none, 1 all; strided: rows and experts with gaps; tables: one pointer per expert. */
static set make_set(int E, int H, int I, moe_ep_dtype dtype, moe_ep_gate_layout layout, moe_ep_activation act, int bias,
                    int strided, int tables, uint64_t *s)
{
    set r;
    memset(&r, 0, sizeof r);
    int fused = layout != MOE_EP_GATE_SEPARATE, two = gated(act.kind), rows = fused ? 2 * I : I;
    int64_t gs = H + (strided ? 5 : 0), ds = I + (strided ? 3 : 0), us = H + (strided ? 2 : 0);
    int64_t ge = rows * gs + (strided ? 7 : 0), ue = I * us + (strided ? 1 : 0), de = H * ds + (strided ? 9 : 0);
    double scale = 1.0 / sqrt((double)H), dscale = 1.0 / sqrt((double)I);
    r.w.num_experts = E;
    r.w.hidden = H;
    r.w.inter = I;
    r.w.dtype = dtype;
    r.w.layout = layout;
    r.w.activation = act;
    if (strided) {
        r.w.gate_row_stride = gs, r.w.gate_expert_stride = ge;
        r.w.up_row_stride = us, r.w.up_expert_stride = ue;
        r.w.down_row_stride = ds, r.w.down_expert_stride = de;
    }
    r.gate = t_alloc(sizeof(double) * (size_t)(E * I * H));
    r.up = t_alloc(sizeof(double) * (size_t)(E * I * H));
    r.down = t_alloc(sizeof(double) * (size_t)(E * I * H));
    r.gate_b = t_alloc(sizeof(double) * (size_t)(E * I));
    r.up_b = t_alloc(sizeof(double) * (size_t)(E * I));
    r.down_b = t_alloc(sizeof(double) * (size_t)(E * H));
    /* exact sizes: the sanitizer sees a read behind the last element */
    size_t eb = elem_of(dtype);
    r.mem_gate = t_alloc(eb * (size_t)((E - 1) * ge + (rows - 1) * gs + H));
    r.mem_up = t_alloc(eb * (size_t)((E - 1) * ue + (I - 1) * us + H));
    r.mem_down = t_alloc(eb * (size_t)((E - 1) * de + (H - 1) * ds + I));
    r.bias_gate = t_alloc(sizeof(float) * (size_t)(E * rows));
    r.bias_up = t_alloc(sizeof(float) * (size_t)(E * I));
    r.bias_down = t_alloc(sizeof(float) * (size_t)(E * H));
    r.scale_gate = t_alloc(sizeof(float) * (size_t)(E * rows));
    r.scale_up = t_alloc(sizeof(float) * (size_t)(E * I));
    r.scale_down = t_alloc(sizeof(float) * (size_t)(E * H));
    for (int i = 0; i < E * rows; i++) r.scale_gate[i] = (float)(2.0 * scale / 127.0 * (0.5 + t_unit(s)));
    for (int i = 0; i < E * I; i++) r.scale_up[i] = (float)(2.0 * scale / 127.0 * (0.5 + t_unit(s)));
    for (int i = 0; i < E * H; i++) r.scale_down[i] = (float)(dscale / 127.0 * (0.5 + t_unit(s)));
    for (int e = 0; e < E; e++) {
        for (int i = 0; i < I; i++) {
            int grow = layout == MOE_EP_GATE_UP_FIRST ? I + i : layout == MOE_EP_GATE_INTERLEAVED ? 2 * i : i;
            int urow = layout == MOE_EP_GATE_FIRST ? I + i : layout == MOE_EP_GATE_INTERLEAVED ? 2 * i + 1 : i;
            for (int h = 0; h < H; h++) {
                int64_t at = ((int64_t)e * I + i) * H + h;
                double v = 2.0 * scale * draw(s), u = 2.0 * scale * draw(s);
                r.gate[at] = put(r.mem_gate, e * ge + grow * gs + h, dtype, v, r.scale_gate[e * rows + grow]);
                if (two && fused)
                    r.up[at] = put(r.mem_gate, e * ge + urow * gs + h, dtype, u, r.scale_gate[e * rows + urow]);
                if (two && !fused) r.up[at] = put(r.mem_up, e * ue + i * us + h, dtype, u, r.scale_up[e * I + i]);
                r.down[((int64_t)e * H + h) * I + i] =
                    put(r.mem_down, e * de + h * ds + i, dtype, dscale * draw(s), r.scale_down[e * H + h]);
            }
            if (!bias) continue;
            r.bias_gate[e * rows + grow] = (float)(0.3 * draw(s));
            r.gate_b[e * I + i] = (double)r.bias_gate[e * rows + grow];
            if (two) {
                float *b = fused ? &r.bias_gate[e * rows + urow] : &r.bias_up[e * I + i];
                *b = (float)(0.3 * draw(s));
                r.up_b[e * I + i] = (double)*b;
            }
        }
        for (int h = 0; bias && h < H; h++) {
            r.bias_down[e * H + h] = (float)(0.3 * draw(s));
            r.down_b[e * H + h] = (double)r.bias_down[e * H + h];
        }
    }
    r.w.gate = r.mem_gate;
    r.w.down = r.mem_down;
    if (two && !fused) r.w.up = r.mem_up;
    if (bias) {
        r.w.gate_bias = r.bias_gate;
        if (two && !fused) r.w.up_bias = r.bias_up;
        r.w.down_bias = r.bias_down;
    }
    if (dtype == MOE_EP_I8) {
        r.w.gate_scale = r.scale_gate;
        if (two && !fused) r.w.up_scale = r.scale_up;
        r.w.down_scale = r.scale_down;
    }
    if (tables) {
        for (int k = 0; k < 3; k++) r.table[k] = t_alloc(sizeof(void *) * (size_t)E);
        for (int e = 0; e < E; e++) {
            r.table[0][e] = (char *)r.mem_gate + (size_t)(e * ge) * eb;
            r.table[1][e] = (char *)r.mem_up + (size_t)(e * ue) * eb;
            r.table[2][e] = (char *)r.mem_down + (size_t)(e * de) * eb;
        }
        r.w.gate = r.w.up = r.w.down = NULL;
        r.w.gate_of = r.table[0];
        if (two && !fused) r.w.up_of = r.table[1];
        r.w.down_of = r.table[2];
    }
    return r;
}

static void free_set(set *r)
{
    void *all[] = {r->gate, r->up, r->down, r->gate_b, r->up_b, r->down_b, r->mem_gate, r->mem_up, r->mem_down,
                   r->bias_gate, r->bias_up, r->bias_down, r->scale_gate, r->scale_up, r->scale_down,
                   (void *)r->table[0], (void *)r->table[1], (void *)r->table[2]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    memset(r, 0, sizeof *r);
}

/* ---- the naive layer ---- */

static double naive_act(const moe_ep_activation *a, double g, double u)
{
    double lim = (double)a->limit, alpha = a->alpha != 0.0f ? (double)a->alpha : 1.0, s = 0.0;
    if (lim > 0.0) {
        if (g > lim) g = lim;
        if (u > lim) u = lim;
        if (u < -lim) u = -lim;
    }
    switch (a->kind) {
    case MOE_EP_ACT_SWIGLU: case MOE_EP_ACT_SILU: s = g / (1.0 + exp(-alpha * g)); break;
    case MOE_EP_ACT_GEGLU_TANH: case MOE_EP_ACT_GELU_TANH:
        s = sqrt(2.0 / 3.14159265358979323846) * (g + 0.044715 * g * g * g);
        s = s < -1.0 ? g * exp(2.0 * s) / (1.0 + exp(2.0 * s)) : 0.5 * g * (1.0 + tanh(s)); /* 1 + tanh cancels */
        break;
    case MOE_EP_ACT_GEGLU_ERF: case MOE_EP_ACT_GELU_ERF:
        s = 0.5 * g * (g < -1.0 ? erfc(-g / sqrt(2.0)) : 1.0 + erf(g / sqrt(2.0)));
        break;
    case MOE_EP_ACT_RELU2: s = g > 0.0 ? g * g : 0.0; break;
    }
    return gated(a->kind) ? s * (u + (double)a->up_offset) : s;
}

/* Sum of the sizes of what was added into any one output, the largest so far: rounding does no more than its share. */
static double naive_size;

/* out (H) += scale * expert_e(in) */
static void naive_expert(const set *r, int e, const double *in, double scale, double *out)
{
    int H = r->w.hidden, I = r->w.inter;
    double *h = t_alloc(sizeof(double) * (size_t)I);
    for (int i = 0; i < I; i++) {
        double g = r->gate_b[e * I + i], u = r->up_b[e * I + i];
        for (int k = 0; k < H; k++) {
            g += in[k] * r->gate[((int64_t)e * I + i) * H + k];
            u += in[k] * r->up[((int64_t)e * I + i) * H + k];
        }
        h[i] = naive_act(&r->w.activation, g, u);
    }
    for (int k = 0; k < H; k++) {
        double y = r->down_b[e * H + k], size = fabs(y);
        for (int i = 0; i < I; i++) y += h[i] * r->down[((int64_t)e * H + k) * I + i];
        for (int i = 0; i < I; i++) size += fabs(h[i] * r->down[((int64_t)e * H + k) * I + i]);
        if (fabs(scale) * size > naive_size) naive_size = fabs(scale) * size;
        out[k] += scale * y;
    }
    free(h);
}

/* The whole layer in float64: ids (T,K), weights (T,K) or NULL. */
static void naive_layer(const set *r, const set *shared, const float *shared_gate, const int32_t *ids,
                        const float *weights, int K, int on_input, const float *x, int64_t T, double *y)
{
    int H = r->w.hidden, E = r->w.num_experts;
    double *in = t_alloc(sizeof(double) * (size_t)H), *scaled = t_alloc(sizeof(double) * (size_t)H);
    for (int64_t t = 0; t < T; t++) {
        double *out = y + t * H, gate = 1.0;
        for (int h = 0; h < H; h++) in[h] = (double)x[t * H + h], out[h] = 0.0;
        for (int k = 0; k < K; k++) {
            double w = weights ? (double)weights[t * K + k] : 1.0;
            int e = ids[t * K + k];
            if (e < 0) continue;
            if (e >= E) {
                for (int h = 0; h < H; h++) out[h] += w * in[h];
            } else if (on_input) {
                for (int h = 0; h < H; h++) scaled[h] = w * in[h];
                naive_expert(r, e, scaled, 1.0, out);
            } else {
                naive_expert(r, e, in, w, out);
            }
        }
        if (!shared) continue;
        if (shared_gate) {
            double s = 0.0;
            for (int h = 0; h < H; h++) s += in[h] * (double)shared_gate[h];
            gate = 1.0 / (1.0 + exp(-s));
        }
        for (int e = 0; e < shared->w.num_experts; e++) naive_expert(shared, e, in, gate, out);
    }
    free(in);
    free(scaled);
}

static float *random_x(int64_t n, uint64_t *s)
{
    float *x = t_alloc(sizeof(float) * (size_t)(n > 0 ? n : 1));
    for (int64_t i = 0; i < n; i++) x[i] = (float)draw(s);
    return x;
}

/* Distinct ids per token, some -1. */
static void random_ids(int32_t *ids, float *w, int64_t T, int K, int E, int holes, uint64_t *s)
{
    int *all = t_alloc(sizeof(int) * (size_t)E);
    for (int64_t t = 0; t < T; t++) {
        for (int e = 0; e < E; e++) all[e] = e;
        for (int k = 0; k < K; k++) {
            int j = k + (int)t_below(s, E - k), e = all[j];
            all[j] = all[k];
            all[k] = e;
            ids[t * K + k] = holes && t_below(s, 7) == 0 ? -1 : e;
            w[t * K + k] = (float)(0.05 + t_unit(s));
        }
    }
    free(all);
}

/* max |y - want| / max |want| */
static double error_of(const float *y, const double *want, int64_t n)
{
    double top = 0.0, diff = 0.0;
    for (int64_t i = 0; i < n; i++) {
        if (fabs(want[i]) > top) top = fabs(want[i]);
        if (!(fabs((double)y[i] - want[i]) <= diff)) diff = fabs((double)y[i] - want[i]);
    }
    return top > 0.0 ? diff / top : diff;
}

static moe_ep_activation act_of(int i)
{
    moe_ep_activation a;
    memset(&a, 0, sizeof a);
    if (i == 7) return moe_ep_activation_gpt_oss();
    if (i == 8) { /* limits that random data reach on both sides */
        a.alpha = 1.3f, a.limit = 0.4f, a.up_offset = 0.25f;
        return a;
    }
    if (i == 9) { /* silu the other way round */
        a.alpha = -0.8f;
        return a;
    }
    a.kind = (moe_ep_activation_kind)i;
    return a;
}

static void swap_task_order(void *user, int64_t count, moe_ep_task task, void *context)
{
    int64_t step = 7; /* coprime walk: another order of the tasks */
    (void)user;
    while (count % step == 0) step++;
    for (int64_t i = 0, at = count / 2; i < count; i++, at = (at + step) % count) task(context, at);
}

/* The same bits in another order of the tasks, and for one token alone. */
static void same_bits(moe_ep_forward_desc d, const float *x, int64_t T, const float *y, float *again, uint64_t *s)
{
    int H = d.experts->hidden, K = d.top_k;
    d.parallel_for = swap_task_order;
    CHECK_I64(moe_ep_forward(&d, x, T, again, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(y, again, sizeof(float) * (size_t)(T * H)) == 0);
    if (T > 1) {
        int64_t t = t_below(s, T);
        d.ids += t * K;
        d.choice_weights += t * K;
        CHECK_I64(moe_ep_forward(&d, x + t * H, 1, again, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(y + t * H, again, sizeof(float) * (size_t)H) == 0);
    }
}

static double worst_bf16; /* of all cases with bf16 products: error / max |y|, outputs of 256 values and more */

/* bf16 products: within 1e-2 of the largest output; where there are few outputs, of what went into the largest. */
static void check_bf16(moe_ep_forward_desc d, const float *x, int64_t T, const double *want, double size, uint64_t *s)
{
    int64_t n = T * d.experts->hidden;
    float *y = t_alloc(sizeof(float) * (size_t)(n + 1)), *again = t_alloc(sizeof(float) * (size_t)(n + 1));
    for (int p = 1; p <= 2; p++) {
        double top = 0.0, e;
        d.products = (moe_ep_products)p;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
        for (int64_t i = 0; i < n; i++) top = fabs(want[i]) > top ? fabs(want[i]) : top;
        e = error_of(y, want, n);
        if (n < 256) e *= size > top ? top / size : 1.0;
        else if (e > worst_bf16) worst_bf16 = e;
        if (!(e <= 1e-2))
            printf("    bf16 products %d isa %d H %d I %d T %d: error %g\n", p, (int)d.isa_max, d.experts->hidden,
                   d.experts->inter, (int)T, e);
        CHECK(e <= 1e-2);
        same_bits(d, x, T, y, again, s);
    }
    free(y), free(again);
}

/* One random case under every instruction set, checked; returns the largest error of fp32 products. */
static double run_case(const set *r, const set *shared, const float *sg, int num_null, int K, int on_input, int64_t T,
                       uint64_t *s)
{
    int H = r->w.hidden, E = r->w.num_experts;
    float *x = random_x(T * H, s), *y = t_alloc(sizeof(float) * (size_t)(T * H + 1)), *again;
    int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(T * K + 1));
    float *w = t_alloc(sizeof(float) * (size_t)(T * K + 1));
    double *want = t_alloc(sizeof(double) * (size_t)(T * H + 1)), worst = 0.0;
    moe_ep_forward_desc d;
    moe_ep_error err;
    again = t_alloc(sizeof(float) * (size_t)(T * H + 1));
    random_ids(ids, w, T, K, E + num_null, T > 1, s);
    naive_size = 0.0;
    naive_layer(r, shared, sg, ids, w, K, on_input, x, T, want);
    memset(&d, 0, sizeof d);
    d.experts = &r->w;
    d.top_k = K;
    d.num_null = num_null;
    d.ids = ids;
    d.choice_weights = w;
    d.weight_on_input = on_input;
    d.shared = shared ? &shared->w : NULL;
    d.shared_gate = sg;
    for (int isa = 1; isa <= best_isa(); isa++) {
        d.isa_max = (moe_ep_isa)isa;
        d.parallel_for = NULL;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, &err), MOE_EP_OK);
        double e = error_of(y, want, T * H);
        if (e > worst) worst = e;
        if (!(e <= 1e-5))
            printf("    isa %d E %d H %d I %d K %d T %d dtype %d layout %d act %d: error %g\n",
                   isa, E, H, r->w.inter, K, (int)T, (int)r->w.dtype, (int)r->w.layout, (int)r->w.activation.kind, e);
        same_bits(d, x, T, y, again, s);
        if (r->w.dtype == MOE_EP_BF16 || (shared && shared->w.dtype == MOE_EP_BF16))
            check_bf16(d, x, T, want, naive_size, s);
    }
    free(x), free(y), free(again), free(ids), free(w), free(want);
    return worst;
}

static uint32_t bits_of(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

/* Everything an error says but its words; without an error "", -1 and 0. */
static void error_is(const moe_ep_error *err, const char *arg, int64_t index, double value)
{
    CHECK_STR(err->arg, arg);
    CHECK_I64(err->index, index);
    CHECK_NEAR(err->value, value, 0, 0);
}

TEST(worked_numbers)
{
    float gate = 1.0f, up = 2.0f, down = 3.0f, x = 1.0f, y = 0.0f, w = 0.5f, rx[2] = {1.0f, 1.0f}, ry[2];
    int32_t id = 0, groups[2] = {0, 0};
    int64_t start[3] = {0, 1, 2};
    moe_ep_weights e;
    moe_ep_forward_desc d;
    moe_ep_activation silu, oss = moe_ep_activation_gpt_oss();
    memset(&silu, 0, sizeof silu);
    CHECK_NEAR(moe_ep_activate(&silu, 1.0, 2.0), 1.462117, 0, 5e-7);
    CHECK_NEAR(moe_ep_activate(&oss, 1.0, 2.0), 2.537387, 0, 5e-7);
    CHECK_NEAR(moe_ep_activate(NULL, 1.0, 2.0), 0.0, 0, 0);
    memset(&e, 0, sizeof e);
    e.num_experts = e.hidden = e.inter = 1;
    e.gate = &gate, e.up = &up, e.down = &down;
    memset(&d, 0, sizeof d);
    d.experts = &e;
    d.top_k = 1;
    d.ids = &id;
    d.choice_weights = &w;
    CHECK_I64(moe_ep_forward(&d, &x, 1, &y, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(y, 2.193176, 0, 5e-7);
    CHECK_I64(moe_ep_experts(&d, rx, start, 2, groups, ry, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(ry[0], 4.386351, 0, 1e-6);
    CHECK_NEAR(ry[1], 4.386351, 0, 1e-6);
    d.num_null = -1, d.shared_gate = &x, d.top_k = -1, d.ids = NULL; /* what moe_ep_experts does not read */
    CHECK_I64(moe_ep_experts(&d, rx, start, 2, groups, ry, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(ry[1], 4.386351, 0, 1e-6);
    CHECK_I64(moe_ep_bf16_from_f32(1.00390625f), 0x3f80);
    CHECK_I64(moe_ep_f16_from_f32(65520.0f), 0x7c00);
    CHECK_NEAR(moe_ep_f32_from_f16(0x3c00), 1.0, 0, 0);
}

TEST(activations_in_double_equal_their_formulas)
{
    static const float alphas[] = {0.0f, 1.0f, 1.702f, -0.7f, 0.5f}, limits[] = {0.0f, 0.5f, 7.0f};
    uint64_t s = t_seed + 32;
    for (int kind = -1; kind <= 7; kind++) {
        for (int i = 0; i < 15 * 32; i++) {
            moe_ep_activation a;
            double g = 9.0 * draw(&s), u = 9.0 * draw(&s);
            if (i % 8 == 7) g *= 2.0;
            memset(&a, 0, sizeof a);
            a.kind = (moe_ep_activation_kind)kind;
            a.alpha = alphas[i % 5], a.limit = limits[i / 5 % 3], a.up_offset = i % 4 == 0 ? 1.0f : 0.0f;
            CHECK_NEAR(moe_ep_activate(&a, g, u), kind < 0 || kind > 6 ? 0.0 : naive_act(&a, g, u), 1e-12, 1e-15);
        }
    }
}

TEST(conversions_round_trip_and_round_to_even)
{
    uint64_t s = t_seed;
    for (int v = 0; v < 65536; v++) {
        float f = moe_ep_f32_from_f16((uint16_t)v), b = moe_ep_f32_from_bf16((uint16_t)v);
        if (((v >> 10) & 31) == 31 && (v & 1023))
            CHECK(t_is_nan((double)f) && (moe_ep_f16_from_f32(f) & 0x7fff) > 0x7c00);
        else {
            if (((v >> 10) & 31) != 31) CHECK_NEAR(f, f16_value((uint16_t)v), 0, 0);
            CHECK_I64(moe_ep_f16_from_f32(f), v);
        }
        if ((v & 0x7fff) > 0x7f80) CHECK(t_is_nan((double)b) && (moe_ep_bf16_from_f32(b) & 0x7fff) > 0x7f80);
        else CHECK_I64(moe_ep_bf16_from_f32(b), v);
    }
    for (int i = 0; i < 20000; i++) { /* nearest: no neighbour is closer, ties go to even */
        float f = (float)ldexp(draw(&s), (int)t_below(&s, 36) - 24);
        uint16_t h = moe_ep_f16_from_f32(f), b = moe_ep_bf16_from_f32(f);
        double dh = fabs((double)f - f16_value(h)), db = fabs((double)f - bf16_value(b));
        CHECK(dh <= fabs((double)f - f16_value((uint16_t)(h ^ 1))));
        CHECK(db <= fabs((double)f - bf16_value((uint16_t)(b ^ 1))));
    }
    for (int v = 0; v < 0x7bff; v++) { /* halfway between neighbours of the half format */
        float mid = (float)((f16_value((uint16_t)v) + f16_value((uint16_t)(v + 1))) / 2.0);
        CHECK_I64(moe_ep_f16_from_f32(mid), v & 1 ? v + 1 : v);
    }
    CHECK_I64(moe_ep_f16_from_f32(65519.0f), 0x7bff);
    CHECK_I64(moe_ep_f16_from_f32(-1e30f), 0xfc00);
    CHECK_I64(moe_ep_bf16_from_f32(3.4e38f), 0x7f80);
}

TEST(int8_rows_keep_their_largest_value_and_round_to_the_nearest_step)
{
    uint64_t s = t_seed + 30;
    float w[3] = {127.0f, -63.5f, 2.25f}, scale = 0.0f, zero[4] = {0, 0, 0, 0};
    int8_t q[4] = {9, 9, 9, 9};
    moe_ep_error err;
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, 1, 3, 0, q, &scale, NULL), MOE_EP_OK);
    CHECK(q[0] == 127 && q[1] == -64 && q[2] == 2 && q[3] == 9);
    CHECK_NEAR(scale, 1.0, 0, 0);
    CHECK_I64(moe_ep_quantize_rows(zero, MOE_EP_F32, 1, 4, 0, q, &scale, NULL), MOE_EP_OK);
    CHECK(q[0] == 0 && q[3] == 0);
    CHECK_NEAR(scale, 0.0, 0, 0);
    CHECK_I64(moe_ep_quantize_rows(NULL, MOE_EP_F32, 0, 4, 0, NULL, NULL, NULL), MOE_EP_OK);
    for (int dtype = 0; dtype < 3; dtype++) {
        uint16_t mem[2 * 40 * 2];
        int8_t out[5 * 7];
        float scales[5];
        double truth[5 * 9];
        for (int i = 0; i < 5 * 9; i++) truth[i] = put(mem, i, (moe_ep_dtype)dtype, draw(&s), 0.0f);
        CHECK_I64(moe_ep_quantize_rows(mem, (moe_ep_dtype)dtype, 5, 7, 9, out, scales, NULL), MOE_EP_OK);
        for (int r = 0; r < 5; r++) {
            double top = 0.0;
            for (int c = 0; c < 7; c++) {
                double v = truth[r * 9 + c];
                top = fabs(v) > top ? fabs(v) : top;
                CHECK_NEAR(out[r * 7 + c] * (double)scales[r], v, 0, 0.5000001 * (double)scales[r]);
            }
            CHECK_NEAR(scales[r], top / 127.0, 1e-6, 0);
        }
    }
    for (int i = 0; i < 4; i++) { /* rows of one number: it is the largest */
        static const float numbers[4] = {0.75f, -3.5f, 0.0f, -127.0f};
        static const int sign[4] = {1, -1, 0, -1};
        int8_t one[4] = {9, 9, 9, 9};
        float scales[4] = {9, 9, 9, 9};
        CHECK_I64(moe_ep_quantize_rows(numbers, MOE_EP_F32, i, 1, 0, one, scales, &err), MOE_EP_OK);
        for (int k = 0; k < 4; k++) {
            CHECK_I64(one[k], k < i ? sign[k] * 127 : 9);
            CHECK_NEAR(scales[k], k < i ? fabs((double)numbers[k]) / 127.0 : 9.0, 1e-7, 0);
        }
    }
    /* a scale so small that it has few digits: what lies beyond 127 steps is cut there */
    float tiny[4] = {0.0f, 0.0f, 0.0f, 0.0f}, least = ldexpf(1.0f, -149);
    tiny[0] = 190.0f * least, tiny[1] = -190.0f * least, tiny[2] = least, tiny[3] = -3.0f * least;
    CHECK_I64(moe_ep_quantize_rows(tiny, MOE_EP_F32, 1, 4, 0, q, &scale, NULL), MOE_EP_OK);
    if (t_subnormals()) {
        CHECK(q[0] == 127 && q[1] == -127 && q[2] == 1 && q[3] == -3);
        CHECK_NEAR(scale, least, 0, 0);
    }
    /* ties go to the even step, on both sides of zero */
    float ties[9] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 3.75f, -3.25f};
    int8_t even[9];
    static const int8_t want_even[9] = {127, 0, 2, 2, 0, -2, -2, 4, -3};
    CHECK_I64(moe_ep_quantize_rows(ties, MOE_EP_F32, 1, 9, 0, even, &scale, NULL), MOE_EP_OK);
    for (int i = 0; i < 9; i++) CHECK_I64(even[i], want_even[i]);
    float bad[4] = {1.0f, 2.0f, (float)INFINITY, 1.0f};
    memset(q, 5, sizeof q);
    scale = 77.0f;
    CHECK_I64(moe_ep_quantize_rows(bad, MOE_EP_F32, 2, 2, 0, q, &scale, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 2);
    for (int i = 0; i < 6; i++) { /* 2 rows of 2 in rows of 3: the gap is not looked at */
        float gap[6] = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
        int8_t kept[4] = {5, 5, 5, 5};
        float scales[2];
        gap[i] = (float)NAN;
        CHECK_I64(moe_ep_quantize_rows(gap, MOE_EP_F32, 2, 2, 3, kept, scales, &err),
                  i % 3 == 2 ? MOE_EP_OK : MOE_EP_ERR_NAN);
        CHECK_STR(err.arg, i % 3 == 2 ? "" : "w");
        CHECK_I64(err.index, i % 3 == 2 ? -1 : i);
        if (i % 3 != 2) CHECK(kept[0] == 5 && kept[3] == 5 && t_is_nan(err.value));
    }
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_I8, 1, 3, 0, q, &scale, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_quantize_rows(w, (moe_ep_dtype)-1, 1, 3, 0, q, &scale, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, INT64_MAX / 9, 3, 0, q, &scale, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, INT64_MAX / 2, 3, 0, q, &scale, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, -1, 3, 0, q, &scale, &err), MOE_EP_ERR_SIZE);
    error_is(&err, "rows", -1, -1.0);
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, 1, 0, 0, q, &scale, &err), MOE_EP_ERR_SIZE);
    error_is(&err, "cols", -1, 0.0);
    /* nothing to do, in as many cells as there may be, and in one more */
    CHECK_I64(moe_ep_quantize_rows(NULL, MOE_EP_F32, 0, INT64_MAX, 0, NULL, NULL, &err), MOE_EP_OK);
    error_is(&err, "", -1, 0.0);
    CHECK_I64(moe_ep_quantize_rows(NULL, MOE_EP_F32, 1, INT64_MAX / 8, 0, q, &scale, &err), MOE_EP_ERR_NULL);
    error_is(&err, "w", -1, 0.0);
    CHECK_I64(moe_ep_quantize_rows(NULL, MOE_EP_F32, 1, INT64_MAX / 8 + 1, 0, q, &scale, &err), MOE_EP_ERR_OVERFLOW);
    error_is(&err, "rows", -1, 1.0);
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, 1, 3, 2, q, &scale, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, INT64_MAX / 4, 3, 0, q, &scale, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_quantize_rows(NULL, MOE_EP_F32, 1, 3, 0, q, &scale, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "w");
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, 1, 3, 0, NULL, &scale, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "q");
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, 1, 3, 0, q, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "scale");
    CHECK(q[0] == 5 && q[3] == 5 && bits_of(scale) == bits_of(77.0f));
}

TEST(a_layer_in_int8_stays_within_two_hundredths)
{
    uint64_t s = t_seed + 31;
    enum { E = 4, H = 200, I = 150, T = 16, K = 2 };
    set r = make_set(E, H, I, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
    int8_t *q = t_alloc(3 * E * H * I);
    float *scale = t_alloc(sizeof(float) * E * (2 * I + H)), *x = random_x(T * H, &s), y[T * H], w[T * K];
    double *want = t_alloc(sizeof(double) * T * H);
    int32_t ids[T * K];
    moe_ep_weights small = r.w;
    moe_ep_forward_desc d;
    CHECK_I64(moe_ep_quantize_rows(r.w.gate, MOE_EP_F32, E * I, H, 0, q, scale, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_quantize_rows(r.w.up, MOE_EP_F32, E * I, H, 0, q + E * H * I, scale + E * I, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_quantize_rows(r.w.down, MOE_EP_F32, E * H, I, 0, q + 2 * E * H * I, scale + 2 * E * I, NULL),
              MOE_EP_OK);
    small.dtype = MOE_EP_I8;
    small.gate = q, small.up = q + E * H * I, small.down = q + 2 * E * H * I;
    small.gate_scale = scale, small.up_scale = scale + E * I, small.down_scale = scale + 2 * E * I;
    random_ids(ids, w, T, K, E, 0, &s);
    naive_layer(&r, NULL, NULL, ids, w, K, 0, x, T, want);
    memset(&d, 0, sizeof d);
    d.experts = &small, d.top_k = K, d.ids = ids, d.choice_weights = w;
    CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
    double e = error_of(y, want, T * H);
    printf("    int8: %.1e of max |y|\n", e);
    CHECK(e <= 2e-2 && e > 1e-5);
    free(q), free(scale), free(x), free(want);
    free_set(&r);
}

TEST(bf16_products_keep_large_values_finite)
{
    uint16_t one = 0x3f80;
    float x = 3.4e38f, y = 0.0f;
    int32_t id = 0;
    moe_ep_weights e;
    moe_ep_forward_desc d;
    memset(&e, 0, sizeof e);
    memset(&d, 0, sizeof d);
    e.num_experts = e.hidden = e.inter = 1, e.dtype = MOE_EP_BF16, e.activation.kind = MOE_EP_ACT_SILU;
    e.gate = &one, e.down = &one;
    d.experts = &e, d.top_k = 1, d.ids = &id, d.products = MOE_EP_PRODUCTS_BF16;
    for (int i = 0; i < 2 * 2 * (best_isa() + 1); i++) { /* the sign goes through the rounding of x */
        d.isa_max = (moe_ep_isa)(i / 4);
        d.products = i & 2 ? MOE_EP_PRODUCTS_BF16_VECTOR : MOE_EP_PRODUCTS_BF16;
        x = i & 1 ? -3.4e38f : 3.4e38f;
        one = i & 1 ? 0xbf80 : 0x3f80;
        y = 0.0f;
        CHECK_I64(moe_ep_forward(&d, &x, 1, &y, NULL, NULL), MOE_EP_OK);
        CHECK_NEAR((double)y * 1e-38, i & 1 ? -3.4 : 3.4, 0, 0.034); /* down turns it once more */
    }
    d.isa_max = MOE_EP_ISA_PORTABLE;
    CHECK_STR(moe_ep_forward_unit(NULL), "none");
    e.dtype = MOE_EP_F32;
    CHECK_STR(moe_ep_forward_unit(&d), "portable");
    d.isa_max = MOE_EP_ISA_AUTO;
    printf("    this machine, fp32: %s\n", moe_ep_forward_unit(&d));
    e.dtype = MOE_EP_BF16;
    printf("    this machine, bf16: %s\n", moe_ep_forward_unit(&d));
    d.experts = NULL;
    CHECK_STR(moe_ep_forward_unit(&d), "none");
}

TEST(what_overflows_inside_is_seen_outside)
{
    /* 3e38 * 3 is infinite between the stages, and infinity times 0 is no number: neither comes back as finite */
    uint16_t three = 0x4040, zero = 0;
    float x = 3e38f, y;
    int32_t id = 0;
    moe_ep_weights e;
    moe_ep_forward_desc d;
    moe_ep_error err;
    memset(&e, 0, sizeof e);
    memset(&d, 0, sizeof d);
    e.num_experts = e.hidden = e.inter = 1, e.dtype = MOE_EP_BF16;
    e.gate = &three, e.up = &three, e.down = &three;
    d.experts = &e, d.top_k = 1, d.ids = &id;
    for (int products = 0; products <= 2; products++) {
        for (int isa = 1; isa <= best_isa(); isa++) {
            d.products = (moe_ep_products)products;
            d.isa_max = (moe_ep_isa)isa;
            e.up = &three, y = 0.0f;
            CHECK_I64(moe_ep_forward(&d, &x, 1, &y, NULL, &err), MOE_EP_ERR_OVERFLOW);
            CHECK((bits_of(y) & 0x7fffffffu) == 0x7f800000u); /* infinite */
            CHECK_STR(err.arg, "y");
            CHECK_I64(err.index, 0);
            CHECK(err.value > 1e308);
            e.up = &zero, y = 0.0f;
            CHECK_I64(moe_ep_forward(&d, &x, 1, &y, NULL, NULL), MOE_EP_ERR_OVERFLOW);
            CHECK(t_is_nan((double)y));
        }
    }
}

/* Identity experts give weight * token: the values of y are known one by one, and so is the first that overflows. */
TEST(the_first_value_that_overflows_is_named_and_all_of_y_is_written)
{
    enum { H = 300, T = 9 };
    static float x[T * H], y[T * H];
    float one = 1.0f, weights[T], gate[H], down[H];
    int32_t ids[T];
    moe_ep_weights e;
    moe_ep_forward_desc d;
    moe_ep_error err;
    uint64_t s = t_seed + 23;
    memset(&e, 0, sizeof e);
    memset(&d, 0, sizeof d);
    for (int i = 0; i < H; i++) gate[i] = down[i] = one;
    e.num_experts = e.inter = 1, e.hidden = H, e.activation.kind = MOE_EP_ACT_SILU;
    e.gate = gate, e.down = down;
    d.experts = &e, d.top_k = 1, d.num_null = 1, d.ids = ids, d.choice_weights = weights;
    for (int i = 0; i < T; i++) ids[i] = 1, weights[i] = 2.0f;
    for (int isa = 1; isa <= best_isa(); isa++) {
        d.isa_max = (moe_ep_isa)isa;
        for (int round = 0; round < 40; round++) {
            int64_t first = -1;
            for (int i = 0; i < T * H; i++) x[i] = draw(&s);
            for (int i = 0; i < round; i++) x[t_below(&s, T * H)] = (i & 1) ? 3.0e38f : -3.0e38f;
            if (round == 1) memset(x, 0, sizeof x), x[T * H - 1] = 3.0e38f;
            if (round == 2) x[0] = -3.0e38f;
            if (round == 3) x[255] = 1.71e38f, x[256] = 3.0e38f; /* 3.42e38 is out as well */
            if (round == 4) x[255] = 1.70e38f, x[256] = 3.0e38f; /* 3.40e38 is still a float */
            for (int i = T * H - 1; i >= 0; i--)
                if (x[i] > 1.7014118e38f || x[i] < -1.7014118e38f) first = i;
            memset(y, 0x5a, sizeof y);
            CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, &err), first < 0 ? MOE_EP_OK : MOE_EP_ERR_OVERFLOW);
            if (first >= 0) CHECK_I64(err.index, first);
            for (int i = 0; i < T * H; i++) CHECK(bits_of(y[i]) == bits_of(2.0f * x[i]));
            STOP_IF_FAILED("round %d", round);
        }
    }
}

TEST(every_activation_layout_and_type_equals_the_naive_layer)
{
    uint64_t s = t_seed + 1;
    double worst = 0.0;
    for (int act = 0; act < 10; act++) {
        moe_ep_activation a = act_of(act);
        for (int layout = 0; layout < (gated(a.kind) ? 4 : 1); layout++) {
            for (int dtype = 0; dtype < 4; dtype++) {
                int E = 1 + (int)t_below(&s, 6), H = 1 + (int)t_below(&s, 90), I = 1 + (int)t_below(&s, 90);
                int64_t T = 1 + t_below(&s, 20);
                set r = make_set(E, H, I, (moe_ep_dtype)dtype, (moe_ep_gate_layout)layout, a, (int)t_below(&s, 2),
                                 (int)t_below(&s, 2), (int)t_below(&s, 2), &s);
                double e = run_case(&r, NULL, NULL, 0, 1 + (int)t_below(&s, E), 0, T, &s);
                if (e > worst) worst = e;
                CHECK(e <= 1e-5);
                free_set(&r);
                STOP_IF_FAILED("activation %d", act);
            }
        }
    }
    CHECK(worst > 0.0); /* float against double: an error of exactly 0 would mean nothing was compared */
}

/* Columns of all places in a block, with limits that most of them reach. */
TEST(activations_reach_every_column)
{
    uint64_t s = t_seed + 42;
    for (int act = 0; act < 20; act++) {
        moe_ep_activation a = act_of(act % 10);
        if (act >= 10) a.limit = 0.05f;
        set r = make_set(1, 3, 67, MOE_EP_F32, MOE_EP_GATE_SEPARATE, a, act & 1, 0, 0, &s);
        CHECK(run_case(&r, NULL, NULL, 0, 1, 0, 3, &s) <= 1e-5);
        free_set(&r);
        STOP_IF_FAILED("activation %d", act);
    }
}

TEST(tails_of_every_length)
{
    uint64_t s = t_seed + 2;
    for (int n = 1; n <= 70; n++) {
        for (int dtype = 0; dtype < 4; dtype++) {
            set r = make_set(2, n, 71 - n, (moe_ep_dtype)dtype, (moe_ep_gate_layout)(n % 4), act_of(0), 1, n & 1, 0,
                             &s);
            CHECK(run_case(&r, NULL, NULL, 0, 1 + (n & 1), 0, 1 + n % 9, &s) <= 1e-5);
            free_set(&r);
            STOP_IF_FAILED("n %d", n);
        }
    }
}

TEST(inner_dimension_longer_than_a_block)
{
    uint64_t s = t_seed + 3;
    static const int sizes[][2] = {{1024, 40}, {1025, 33}, {2100, 20}, {40, 1024}, {33, 1055}, {20, 2049}, {4097, 18}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int dtype = 0; dtype < 4; dtype++) {
            set r = make_set(2, sizes[i][0], sizes[i][1], (moe_ep_dtype)dtype, MOE_EP_GATE_SEPARATE, act_of(0),
                             0, 0, 0, &s);
            CHECK(run_case(&r, NULL, NULL, 0, 1, 0, 5, &s) <= 1e-5);
            free_set(&r);
            STOP_IF_FAILED("case %d", (int)i);
        }
    }
}

/* All widths of a tile (1 to 6 tokens and their pieces) with a second block of the inner dimension behind the first. */
TEST(tiles_of_every_width_past_a_block)
{
    uint64_t s = t_seed + 33;
    static const int tokens[] = {1, 2, 3, 4, 5, 6, 7, 9, 11}; /* 7 = 3 + 4, 9 = 4 + 5, 11 = 5 + 6 */
    for (int i = 0; i < 9; i++) {
        for (int dtype = 0; dtype < 4; dtype++) {
            int wide = 1025 + (int)t_below(&s, 40), small = 1 + (int)t_below(&s, 9), down = (i + dtype) & 1;
            set r = make_set(1, down ? small : wide, down ? wide : small, (moe_ep_dtype)dtype, MOE_EP_GATE_SEPARATE,
                             act_of(0), 0, 0, 0, &s);
            CHECK(run_case(&r, &r, NULL, 0, 1, 0, tokens[i], &s) <= 1e-5); /* shared: all tokens, none left out */
            free_set(&r);
            STOP_IF_FAILED("tokens %d", tokens[i]);
        }
    }
}

/* Few tokens go along the rows of weights, some past every tile, many in turns of six: the bits are the same, past a
 * block of the inner dimension and with rows that end anywhere.  Under Valgrind two turns have to do in place of three:
 * 97 tokens are one more than a turn takes. */
TEST(a_token_alone_has_the_bits_it_has_among_many)
{
    uint64_t s = t_seed + 51;
    static const int sizes[][2] = {{1100, 37}, {37, 1100}, {2081, 5}, {5, 1547}};
    static const int tokens[] = {2, 3, 6, 7, 12, 13, 18, 19, 64, 97, 200};
    const int most = t_slow() > 1 ? 97 : 200;
    for (int i = 0; i < 16; i++) {
        if (t_slow() > 1 && (i + i / 4) % 4) continue;
        int H = sizes[i % 4][0], T = most, n = T * H;
        set r = make_set(1, H, sizes[i % 4][1], (moe_ep_dtype)(i / 4), MOE_EP_GATE_SEPARATE, act_of(0), 1, i & 1, 0,
                         &s);
        float *x = random_x(n, &s), *alone = t_alloc(sizeof(float) * (size_t)n);
        float *y = t_alloc(sizeof(float) * (size_t)n);
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)T);
        moe_ep_forward_desc d;
        memset(&d, 0, sizeof d);
        memset(ids, 0, sizeof(int32_t) * (size_t)T);
        d.experts = &r.w, d.top_k = 1, d.ids = ids;
        for (int c = 0; c < 3 * best_isa(); c++) {
            d.isa_max = (moe_ep_isa)(1 + c / 3);
            d.products = (moe_ep_products)(c % 3);
            if (c % 3 > 0 && r.w.dtype != MOE_EP_BF16) continue;
            for (int t = 0; t < T; t++)
                CHECK_I64(moe_ep_forward(&d, x + t * H, 1, alone + t * H, NULL, NULL), MOE_EP_OK);
            for (size_t k = 0; k < sizeof tokens / sizeof tokens[0] && tokens[k] <= most; k++) {
                CHECK_I64(moe_ep_forward(&d, x, tokens[k], y, NULL, NULL), MOE_EP_OK);
                CHECK(memcmp(y, alone, sizeof(float) * (size_t)(tokens[k] * H)) == 0);
            }
        }
        free(x), free(alone), free(y), free(ids);
        free_set(&r);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Results of a million floats and more are written past the caches where the matrix unit made them, in more than one
 * turn of 256 tokens: a token alone has the same bits.  The second set has rows that do not end at a cache line, the
 * third a bias that is added behind. */
TEST(many_results_have_the_bits_of_few)
{
    uint64_t s = t_seed + 52;
    for (int i = 0; i < 3; i++) {
        int H = i == 1 ? 4099 : 4112, T = 260, n = T * H;
        set r = make_set(1, H, 3, MOE_EP_BF16, MOE_EP_GATE_SEPARATE, act_of(0), i == 2, 0, 0, &s);
        float *x = random_x(n, &s), *y = t_alloc(sizeof(float) * (size_t)n);
        float *alone = t_alloc(sizeof(float) * (size_t)H);
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)T);
        moe_ep_forward_desc d;
        memset(&d, 0, sizeof d);
        memset(ids, 0, sizeof(int32_t) * (size_t)T);
        d.experts = &r.w, d.top_k = 1, d.ids = ids, d.products = MOE_EP_PRODUCTS_BF16;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
        for (int t = 0; t < T; t += 37) {
            CHECK_I64(moe_ep_forward(&d, x + t * H, 1, alone, NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(alone, y + t * H, sizeof(float) * (size_t)H) == 0);
        }
        free(x), free(y), free(alone), free(ids);
        free_set(&r);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Numbers of columns of which only some sixteens are whole, with more tokens than one turn of the matrix unit
 * takes alone, and experts without a gate. */
TEST(odd_columns_of_many_tokens)
{
    static const int sizes[][2] = {{31, 40}, {95, 31}, {33, 95}, {127, 16}};
    uint64_t s = t_seed + 54;
    for (int i = 0; i < 16; i += t_slow() > 1 ? 3 : 1) {
        int H = sizes[i % 4][0], I = sizes[i % 4][1];
        set r = make_set(2, H, I, MOE_EP_BF16, MOE_EP_GATE_SEPARATE, act_of(i / 4 * 2), i & 1, 0, 0, &s);
        CHECK(run_case(&r, &r, NULL, 0, 1, 0, 140, &s) <= 1e-5);
        free_set(&r);
        STOP_IF_FAILED("case %d", i);
    }
}

/* More results than wait for their sum at a time, so that they come in several ranges of columns: a token alone, whose
 * results all fit, has the same bits, or through BLAS the same numbers.  The weight of shared experts is found once. */
TEST(results_in_ranges_of_columns)
{
    enum { H = 1040, T = 2100, K = 2, E = 3 };
    uint64_t s = t_seed + 55;
    for (int i = 0; i < 4; i++) {
        set r = make_set(E, H, 1, i == 1 ? MOE_EP_BF16 : MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 1, 0, 0, &s);
        set sh = make_set(1, H, 2, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
        float *x = random_x(T * H, &s), *y = t_alloc(sizeof(float) * T * H), *gate = random_x(H, &s), alone[H];
        float *w = t_alloc(sizeof(float) * T * K);
        int32_t *ids = t_alloc(sizeof(int32_t) * T * K);
        moe_ep_scratch scratch;
        moe_ep_forward_desc d;
        memset(&scratch, 0, sizeof scratch);
        memset(&d, 0, sizeof d);
        random_ids(ids, w, T, K, E + 1, 1, &s);
        d.experts = &r.w, d.top_k = K, d.ids = ids, d.choice_weights = w, d.num_null = 1;
        d.products = i == 1 ? MOE_EP_PRODUCTS_BF16 : MOE_EP_PRODUCTS_F32;
        if (i == 2) d.shared = &sh.w, d.shared_gate = gate;
        if (i == 3) d.blas_min_rows = 1;
        CHECK_I64(moe_ep_forward(&d, x, T, y, &scratch, NULL), MOE_EP_OK);
        /* results of 512 columns, or 1024 with AMX, and not of 1040; rows of tokens, or with AMX and BLAS of choices */
        CHECK((double)scratch.need < 4.0 * T * (K * (i == 1 ? 1024 : 512) + (i == 2 ? H : 0) + K * 128 +
                                                (i % 2 ? K : 1) * (H + 128)));
        for (int t = 0; t < T; t += 61) {
            d.ids = ids + t * K, d.choice_weights = w + t * K;
            CHECK_I64(moe_ep_forward(&d, x + t * H, 1, alone, &scratch, NULL), MOE_EP_OK);
            if (i < 3) CHECK(memcmp(alone, y + t * H, sizeof alone) == 0);
            for (int h = 0; h < H; h++) CHECK(fabs((double)alone[h] - (double)y[t * H + h]) <= 1e-4);
        }
        moe_ep_scratch_free(&scratch);
        free(x), free(y), free(gate), free(w), free(ids);
        free_set(&r), free_set(&sh);
        STOP_IF_FAILED("case %d", i);
    }
}

/* The stack of a task, each by a thread whose stack was filled before: the header promises less than 64 KiB, 96 with
 * AMX. */
typedef struct deep {
    moe_ep_task task;
    void *context;
    int64_t index;
} deep;
enum { DEEP_ROOM = 1 << 18 };
typedef struct deepest {
    unsigned char *room;
    int bytes, failed;
} deepest;

static void *go_deep(void *user)
{
    const deep *one = user;
    one->task(one->context, one->index);
    return user;
}

static void each_goes_deep(void *user, int64_t count, moe_ep_task task, void *context)
{
    deepest *all = user;
    for (int64_t i = 0; i < count; i++) {
        deep one = {task, context, i};
        pthread_attr_t attr;
        pthread_t thread;
        int free_bytes = 0;
        memset(all->room, 0xa5, DEEP_ROOM);
        pthread_attr_init(&attr);
        if (pthread_attr_setstack(&attr, all->room, DEEP_ROOM) || pthread_create(&thread, &attr, go_deep, &one) ||
            pthread_join(thread, NULL))
            all->failed = 1;
        pthread_attr_destroy(&attr);
        while (free_bytes < DEEP_ROOM && all->room[free_bytes] == 0xa5) free_bytes++;
        if (DEEP_ROOM - free_bytes > all->bytes) all->bytes = DEEP_ROOM - free_bytes;
    }
}

static void goes_nowhere(void *context, int64_t index)
{
    (void)context;
    (void)index;
}

TEST(a_task_takes_no_more_stack_than_the_header_says)
{
    uint64_t s = t_seed + 53;
    deepest all = {NULL, 0, 0};
    void *room = NULL;
    int optimised = 0, none;
#if defined(__OPTIMIZE__)
    optimised = t_slow() == 0;
#endif
    if (!optimised) SKIP("an optimised build is meant");
    CHECK(posix_memalign(&room, 4096, DEEP_ROOM) == 0);
    all.room = room;
    each_goes_deep(&all, 1, goes_nowhere, NULL); /* a thread and what libraries keep for each of them */
    none = all.bytes;
    for (int i = -1; i < 6; i++) { /* once before: what is linked when it is first called does not count */
        int H = 600, T = i < 3 ? 300 : 5;
        set r = make_set(2, H, 700, i % 3 ? MOE_EP_BF16 : MOE_EP_F32, MOE_EP_GATE_FIRST, act_of(0), 1, 0, 0, &s);
        float *x = random_x((int64_t)T * H, &s), *y = t_alloc(sizeof(float) * (size_t)(T * H));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)T);
        moe_ep_forward_desc d;
        memset(&d, 0, sizeof d);
        memset(ids, 0, sizeof(int32_t) * (size_t)T);
        d.experts = &r.w, d.top_k = 1, d.ids = ids;
        d.products = i % 3 == 2 ? MOE_EP_PRODUCTS_BF16 : MOE_EP_PRODUCTS_F32; /* -1 % 3 is -1 */
        d.parallel_for = each_goes_deep, d.parallel_user = &all;
        all.bytes = 0;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
        CHECK(!all.failed && all.bytes > 0);
        if (i >= 0) CHECK(all.bytes - none < (strcmp(moe_ep_forward_unit(&d), "amx-bf16") == 0 ? 96 : 64) * 1024);
        free(x), free(y), free(ids);
        free_set(&r);
        STOP_IF_FAILED("%d bytes", all.bytes - none);
    }
    free(room);
}

/* Weights of one diagonal make every rounding to bf16 visible: y = bf16(bf16(x)^2). */
TEST(activations_round_to_the_nearest_bf16)
{
    enum { N = 400 };
    uint64_t s = t_seed + 52;
    uint16_t *w = t_alloc(sizeof(uint16_t) * N * N);
    float *x = t_alloc(sizeof(float) * N), *y = t_alloc(sizeof(float) * N);
    int32_t id = 0;
    moe_ep_weights e;
    moe_ep_forward_desc d;
    memset(w, 0, sizeof(uint16_t) * N * N);
    memset(&e, 0, sizeof e);
    memset(&d, 0, sizeof d);
    for (int i = 0; i < N; i++) w[i * N + i] = 0x3f80;
    e.num_experts = 1, e.hidden = e.inter = N, e.dtype = MOE_EP_BF16, e.gate = e.down = w;
    e.activation.kind = MOE_EP_ACT_RELU2;
    d.experts = &e, d.top_k = 1, d.ids = &id;
    d.products = MOE_EP_PRODUCTS_BF16;
    if (strstr(moe_ep_forward_unit(&d), "bf16") == NULL) {
        free(w), free(x), free(y);
        SKIP("no unit here multiplies bf16: activations stay fp32");
    }
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N; i++) { /* halves of a step of bf16 and their neighbours among them */
            uint32_t low = round & 1 ? (uint32_t)t_below(&s, 65536) : 0x8000u + (uint32_t)t_below(&s, 3) - 1u;
            uint32_t u = ((uint32_t)(90 + t_below(&s, 80)) << 23) | ((uint32_t)t_below(&s, 128) << 16) | low;
            memcpy(&x[i], &u, 4);
        }
        for (int p = 1; p <= 2; p++) {
            d.products = (moe_ep_products)p;
            if (strstr(moe_ep_forward_unit(&d), "bf16") == NULL) continue; /* activations stay fp32 */
            CHECK_I64(moe_ep_forward(&d, x, 1, y, NULL, NULL), MOE_EP_OK);
            for (int i = 0; i < N; i++) {
                float v = (float)bf16_value(moe_ep_bf16_from_f32(x[i]));
                CHECK_NEAR((double)y[i], bf16_value(moe_ep_bf16_from_f32(v * v)), 0, 0);
            }
        }
    }
    free(w), free(x), free(y);
}

/* Arrays large enough for all threads: the first of several bad values is named, with threads or without. */
TEST(the_first_bad_value_of_a_large_input_is_named)
{
    enum { T = 300, H = 1000 };
    uint64_t s = t_seed + 53;
    set r = make_set(1, H, 3, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
    float *x = random_x(T * H, &s), *y = t_alloc(sizeof(float) * T * H);
    int32_t ids[T] = {0};
    moe_ep_forward_desc d;
    moe_ep_error err;
    threads_pool *pool = threads_start(3);
    memset(&d, 0, sizeof d);
    d.experts = &r.w, d.top_k = 1, d.ids = ids;
    CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, &err), MOE_EP_OK);
    for (int i = 0; i < 40; i++) {
        int64_t a = i == 0 ? 0 : i < 3 ? T * H - i : t_below(&s, T * H), b = i < 3 ? a : t_below(&s, T * H);
        float at_a = x[a], at_b = x[b];
        uint32_t bad = i % 3 == 0 ? 0x7f800000u : i % 3 == 1 ? 0xff800000u : 0x7fc00001u;
        memcpy(&x[a], &bad, 4);
        memcpy(&x[b], &bad, 4);
        d.parallel_for = i & 1 ? threads_run : NULL;
        d.parallel_user = pool;
        y[0] = 5.0f;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, &err), MOE_EP_ERR_NAN);
        CHECK_STR(err.arg, "x");
        CHECK_I64(err.index, a < b ? a : b);
        CHECK(y[0] == 5.0f);
        x[a] = at_a, x[b] = at_b;
    }
    threads_stop(pool);
    free(x), free(y);
    free_set(&r);
}

TEST(many_tokens_on_few_experts)
{
    uint64_t s = t_seed + 4;
    static const int tokens[] = {1, 2, 5, 6, 7, 12, 13, 23, 95, 96, 97, 193, 300};
    for (size_t i = 0; i < 4 * sizeof tokens / sizeof tokens[0]; i++) {
        if (t_slow() > 1 && tokens[i / 4] > 97) break;
        set r = make_set(3, 48, 37, (moe_ep_dtype)(i % 4), MOE_EP_GATE_FIRST, act_of(0), 1, 0, 0, &s);
        CHECK(run_case(&r, NULL, NULL, 0, 3, 0, tokens[i / 4], &s) <= 1e-5); /* K = E */
        CHECK(run_case(&r, NULL, NULL, 0, 1, 0, tokens[i / 4], &s) <= 1e-5); /* K = 1 */
        free_set(&r);
    }
}

TEST(more_tokens_than_one_pass_takes)
{
    uint64_t s = t_seed + 5;
    int64_t T = 4096 + 777;
    set r = make_set(4, 9, 7, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 1, 0, 0, &s);
    set sh = make_set(1, 9, 5, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
    CHECK(run_case(&r, &sh, NULL, 1, 2, 0, T, &s) <= 1e-5);
    free_set(&r);
    free_set(&sh);
}

TEST(shared_experts_identity_experts_and_weight_on_input)
{
    uint64_t s = t_seed + 6;
    for (int i = 0; i < 48; i++) {
        int H = 1 + (int)t_below(&s, 60), E = 2 + (int)t_below(&s, 4), null = (int)t_below(&s, 3);
        set r = make_set(E, H, 1 + (int)t_below(&s, 60), (moe_ep_dtype)(i % 4), MOE_EP_GATE_SEPARATE, act_of(i % 8),
                         i & 1, 0, 0, &s);
        set sh = make_set(1 + (int)t_below(&s, 3), H, 1 + (int)t_below(&s, 60), (moe_ep_dtype)((i / 3) % 4),
                          MOE_EP_GATE_SEPARATE, act_of((i / 2) % 8), 0, 0, 0, &s);
        float *sg = random_x(H, &s);
        CHECK(run_case(&r, i % 4 ? &sh : NULL, i % 4 > 1 ? sg : NULL, null, 1 + (int)t_below(&s, E + null), i & 1,
                       1 + t_below(&s, 12), &s) <= 1e-5);
        free(sg);
        free_set(&r);
        free_set(&sh);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(swiglu_has_silu_on_the_gate_only)
{
    /* w2 (silu(w1 x) * (w3 x)): a second SiLU around w3 x would give 3 * 0.731 * 1.762 instead */
    double want = 3.0 * (1.0 / (1.0 + exp(-1.0))) * 2.0;
    float gate = 1.0f, up = 2.0f, down = 3.0f, x = 1.0f, y;
    int32_t id = 0;
    moe_ep_weights e;
    moe_ep_forward_desc d;
    memset(&e, 0, sizeof e);
    memset(&d, 0, sizeof d);
    e.num_experts = e.hidden = e.inter = 1;
    e.gate = &gate, e.up = &up, e.down = &down;
    d.experts = &e, d.top_k = 1, d.ids = &id;
    CHECK_I64(moe_ep_forward(&d, &x, 1, &y, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(y, want, 1e-6, 0);
}

TEST(a_router_in_front)
{
    uint64_t s = t_seed + 7;
    for (int i = 0; i < 24; i++) {
        int E = 2 + (int)t_below(&s, 12), H = 3 + (int)t_below(&s, 40), K = 1 + (int)t_below(&s, E < 4 ? E : 4);
        int64_t T = 1 + t_below(&s, 40);
        int null = i % 3 == 2 && E > K ? 1 : 0;
        set r = make_set(E - null, H, 1 + (int)t_below(&s, 30), MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0),
                         0, 0, 0, &s);
        moe_ep_router router = i % 3 == 0   ? moe_ep_router_mixtral(E, K)
                               : i % 3 == 1 ? moe_ep_router_llama4(E, K)
                                            : moe_ep_router_longcat(E, K, null);
        float *gate = random_x((int64_t)E * H, &s), *x = random_x(T * H, &s);
        float *logits = t_alloc(sizeof(float) * (size_t)(T * E));
        float *w = t_alloc(sizeof(float) * (size_t)(T * K)), *y = t_alloc(sizeof(float) * (size_t)(T * H));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(T * K));
        double *want = t_alloc(sizeof(double) * (size_t)(T * H));
        moe_ep_forward_desc d;
        CHECK_I64(moe_ep_gate(x, T, H, gate, NULL, E, logits, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_route(&router, logits, T, NULL, ids, w, NULL), MOE_EP_OK);
        naive_layer(&r, NULL, NULL, ids, w, K, i % 3 == 1, x, T, want);
        memset(&d, 0, sizeof d);
        d.experts = &r.w, d.router = &router, d.gate = gate, d.num_null = null;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
        CHECK(error_of(y, want, T * H) <= 1e-5);
        free(gate), free(x), free(logits), free(w), free(y), free(ids), free(want);
        free_set(&r);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Routers with one row per token: tables and keys move along from pass to pass, and so do the places of errors. */
TEST(a_router_with_rows_of_its_own_over_two_passes)
{
    enum { E = 4, K = 2, H = 3, I = 2, T = 4096 + 60 };
    uint64_t s = t_seed + 34;
    set r = make_set(E, H, I, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
    float *x = random_x(T * H, &s), *gate = random_x(E * H, &s), *keys = random_x(T * E, &s);
    float *logits = t_alloc(sizeof(float) * T * E), *w = t_alloc(sizeof(float) * T * K);
    float *one = t_alloc(sizeof(float) * T * H), *two = t_alloc(sizeof(float) * T * H);
    int32_t *table = t_alloc(sizeof(int32_t) * T * K), *ids = t_alloc(sizeof(int32_t) * T * K);
    moe_ep_forward_desc routed, given;
    moe_ep_error err;
    for (int i = 0; i < T * K; i++) table[i] = (int32_t)((i / K * 3 + i % K) % E);
    for (int select = 0; select < 2; select++) {
        moe_ep_router router = moe_ep_router_mixtral(E, K);
        router.select = select ? MOE_EP_SELECT_KEYS : MOE_EP_SELECT_TABLE;
        router.keys = select ? keys : NULL;
        router.table = select ? NULL : table;
        router.table_rows = select ? 0 : T;
        router.logits_stride = 0;
        memset(&routed, 0, sizeof routed);
        routed.experts = &r.w;
        given = routed;
        routed.router = &router, routed.gate = gate;
        CHECK_I64(moe_ep_gate(x, T, H, gate, NULL, E, logits, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_route(&router, logits, T, NULL, ids, w, NULL), MOE_EP_OK);
        given.top_k = K, given.ids = ids, given.choice_weights = w;
        router.logits_stride = 5 * E; /* of logits that the caller has: these are the layer's own, packed */
        CHECK_I64(moe_ep_forward(&routed, x, T, one, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_forward(&given, x, T, two, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(one, two, sizeof(float) * T * H) == 0);
        memset(one, 0x55, sizeof(float) * T * H);
        memcpy(two, one, sizeof(float) * T * H);
        if (select) {
            keys[4100 * E + 1] = (float)NAN;
            CHECK_I64(moe_ep_forward(&routed, x, T, one, NULL, &err), MOE_EP_ERR_NAN);
            CHECK_STR(err.arg, "keys");
            CHECK_I64(err.index, 4100 * E + 1);
            CHECK_I64(moe_ep_forward(&routed, x, T, one, NULL, NULL), MOE_EP_ERR_NAN);
            keys[4096 * E] = (float)NAN; /* the first of the second pass */
            CHECK_I64(moe_ep_forward(&routed, x, T, one, NULL, &err), MOE_EP_ERR_NAN);
            CHECK_I64(err.index, 4096 * E);
        } else {
            table[4150 * K + 1] = E;
            CHECK_I64(moe_ep_forward(&routed, x, T, one, NULL, &err), MOE_EP_ERR_EXPERT_ID);
            CHECK_STR(err.arg, "table");
            CHECK_I64(err.index, 4150 * K + 1);
            table[4096 * K] = -2;
            CHECK_I64(moe_ep_forward(&routed, x, T, one, NULL, &err), MOE_EP_ERR_EXPERT_ID);
            CHECK_I64(err.index, 4096 * K);
            router.table_rows = 4097; /* runs out in the second pass */
            CHECK_I64(moe_ep_forward(&routed, x, T, one, NULL, &err), MOE_EP_ERR_SIZE);
            CHECK_STR(err.arg, "table_rows");
            CHECK_I64(err.index, -1);
        }
        CHECK(memcmp(one, two, sizeof(float) * T * H) == 0); /* nothing of the first pass was written */
    }
    free(x), free(gate), free(keys), free(logits), free(w), free(one), free(two), free(table), free(ids);
    free_set(&r);
}

TEST(weight_on_input_without_weights_is_weight_one)
{
    uint64_t s = t_seed + 35;
    set r = make_set(3, 7, 5, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
    float x[28], y[28], z[28];
    int32_t ids[8] = {0, 1, 2, -1, 1, 0, 2, 1};
    moe_ep_forward_desc d;
    memset(&d, 0, sizeof d);
    for (int i = 0; i < 28; i++) x[i] = (float)draw(&s);
    d.experts = &r.w, d.top_k = 2, d.ids = ids;
    CHECK_I64(moe_ep_forward(&d, x, 4, y, NULL, NULL), MOE_EP_OK);
    d.weight_on_input = 1;
    CHECK_I64(moe_ep_forward(&d, x, 4, z, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(y, z, sizeof y) == 0);
    free_set(&r);
}

/* Sizes that only a counterfeit description has; nothing behind the pointers is read before they are refused. */
TEST(sizes_that_do_not_fit_are_refused_before_anything_is_read)
{
    float cell[64] = {0}, y[4096];
    float *x = t_alloc(sizeof(float) * 4096);
    int32_t id = 0;
    moe_ep_weights e, sh;
    moe_ep_forward_desc d;
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_error err;
    moe_ep_router router = moe_ep_router_mixtral(1, 1);
    memset(x, 0, sizeof(float) * 4096);
    memset(&e, 0, sizeof e);
    memset(&d, 0, sizeof d);
    e.num_experts = e.hidden = e.inter = 1;
    e.gate = e.up = e.down = cell;
    d.experts = &e, d.top_k = 1, d.ids = &id;
    /* many choices: a pass takes fewer tokens, down to one */
    d.router = &router, d.gate = cell, d.top_k = 0;
    for (int more = 0; more < 2; more++) {
        router.top_k = (1 << (29 + more)) + 1;
        router.num_null = d.num_null = router.top_k;
        router.num_experts = d.num_null + 1;
        none.need = 0;
        if (sizeof(size_t) < 8) {
            CHECK_I64(moe_ep_forward(&d, x, 2, y, &none, &err), MOE_EP_ERR_OVERFLOW);
            continue;
        }
        CHECK_I64(moe_ep_forward(&d, x, 2, y, &none, &err), MOE_EP_ERR_SCRATCH);
        CHECK((double)none.need > (double)router.top_k && (double)none.need < 512.0 * router.top_k);
    }
    router.top_k = 1 << 28; /* times an inner size of 2^31 - 1 for each choice */
    router.num_null = d.num_null = router.top_k;
    router.num_experts = d.num_null + 1;
    e.inter = INT32_MAX;
    CHECK_I64(moe_ep_forward(&d, x, 2, y, &none, &err), MOE_EP_ERR_OVERFLOW);
    error_is(&err, "num_tokens", -1, 2.0 * router.top_k);
    e.inter = 1;
    d.router = NULL, d.gate = NULL, d.top_k = 1, d.num_null = 0;
    /* 4096 tokens on 2^29 shared experts as wide as can be; and a number that fits, but not with a margin */
    sh = e;
    sh.inter = INT32_MAX;
    d.shared = &sh;
    sh.num_experts = 1 << 29;
    int32_t ids[4096] = {0};
    d.ids = ids;
    CHECK_I64(moe_ep_forward(&d, x, 4096, y, NULL, &err), MOE_EP_ERR_OVERFLOW);
    sh.num_experts = 1 << 20;
    CHECK_I64(moe_ep_forward(&d, x, 256, y, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "num_tokens");
    d.shared = NULL;
    /* tokens times choices beyond 2^57 with tokens that exist: 2^26 of one number each, never written */
    int64_t T = ((int64_t)1 << 26) + 1024;
    float *wide = mmap(NULL, sizeof(float) * 2 * (size_t)T, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(wide != MAP_FAILED);
    d.num_null = INT32_MAX - 1;
    d.top_k = INT32_MAX;
    CHECK_I64(moe_ep_forward(&d, wide, T, wide + T, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "num_tokens");
    munmap(wide, sizeof(float) * 2 * (size_t)T);
    free(x);
}

/* Every activation, type of weights and of products; the oracle is finite here, some 1e30 for ReLU^2. */
TEST(large_finite_inputs_give_no_nan)
{
    uint64_t s = t_seed + 8;
    for (int i = 0; i < 10 * 4 * 3; i++) {
        int act = i % 10, dtype = i / 10 % 4, products = i / 40;
        set r = make_set(2, 20, 20, (moe_ep_dtype)dtype, MOE_EP_GATE_SEPARATE, act_of(act), 0, 0, 0, &s);
        float x[4 * 20], y[4 * 20];
        double want[4 * 20];
        int32_t ids[4] = {0, 1, 0, 1};
        moe_ep_forward_desc d;
        memset(&d, 0, sizeof d);
        d.experts = &r.w, d.top_k = 1, d.ids = ids, d.products = (moe_ep_products)products;
        for (int k = 0; k < 80; k++) x[k] = (float)(draw(&s) * (act == 6 ? 1e15 : 1e14));
        naive_layer(&r, NULL, NULL, ids, NULL, 1, 0, x, 4, want);
        for (int isa = 1; isa <= best_isa(); isa++) {
            d.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_forward(&d, x, 4, y, NULL, NULL), MOE_EP_OK);
            for (int k = 0; k < 80; k++) /* the second is false for NaN and infinity */
                CHECK(fabs(want[k]) < 1e38 && y[k] - y[k] < 1.0f);
        }
        free_set(&r);
    }
}

/* The bias of the gate is the router's logit_bias: logits of float64 with the bias in them choose the same experts. */
TEST(a_gate_with_bias)
{
    enum { E = 9, K = 3, H = 31, T = 50 };
    uint64_t s = t_seed + 37;
    set r = make_set(E, H, 12, MOE_EP_F32, MOE_EP_GATE_SEPARATE, moe_ep_activation_gpt_oss(), 1, 0, 0, &s);
    float *gate = random_x(E * H, &s), *x = random_x(T * H, &s), bias[E], w[T * K], y[T * H];
    double *want = t_alloc(sizeof(double) * T * H);
    int32_t ids[T * K];
    moe_ep_router router = moe_ep_router_gpt_oss(E, K);
    moe_ep_forward_desc d;
    for (int e = 0; e < E; e++) bias[e] = 4.0f * (float)draw(&s);
    for (int t = 0; t < T; t++) {
        double logit[E], sum = 0.0;
        for (int e = 0; e < E; e++) {
            logit[e] = (double)bias[e];
            for (int h = 0; h < H; h++) logit[e] += (double)x[t * H + h] * (double)gate[e * H + h];
        }
        for (int k = 0; k < K; k++) {
            int best = 0;
            for (int e = 1; e < E; e++) best = logit[e] > logit[best] ? e : best;
            ids[t * K + k] = best;
            sum += exp(logit[best]);
            w[t * K + k] = (float)exp(logit[best]);
            logit[best] = -1e300;
        }
        for (int k = 0; k < K; k++) w[t * K + k] = (float)((double)w[t * K + k] / sum);
    }
    naive_layer(&r, NULL, NULL, ids, w, K, 0, x, T, want);
    memset(&d, 0, sizeof d);
    router.logit_bias = bias;
    d.experts = &r.w, d.router = &router, d.gate = gate;
    CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
    CHECK(error_of(y, want, T * H) <= 1e-5);
    router.logit_bias = NULL; /* the bias matters */
    CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
    CHECK(error_of(y, want, T * H) > 1e-2);
    free(gate), free(x), free(want);
    free_set(&r);
}

TEST(all_tokens_on_one_expert_of_many)
{
    uint64_t s = t_seed + 38;
    for (int dtype = 0; dtype < 4; dtype++) {
        for (int64_t T = 1; T <= 130; T += T < 8 ? 1 : 61) {
            set r = make_set(5, 33, 18, (moe_ep_dtype)dtype, MOE_EP_GATE_FIRST, act_of(0), 1, 0, 0, &s);
            float *x = random_x(T * 33, &s), y[136 * 33];
            double *want = t_alloc(sizeof(double) * (size_t)(T * 33));
            int32_t ids[136];
            moe_ep_forward_desc d;
            for (int i = 0; i < T; i++) ids[i] = 3;
            naive_layer(&r, NULL, NULL, ids, NULL, 1, 0, x, T, want);
            memset(&d, 0, sizeof d);
            d.experts = &r.w, d.top_k = 1, d.ids = ids;
            for (int isa = 1; isa <= best_isa(); isa++) {
                d.isa_max = (moe_ep_isa)isa;
                CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
                CHECK(error_of(y, want, T * 33) <= 1e-5);
            }
            free(x), free(want);
            free_set(&r);
        }
    }
}

/* ---- weights in a file that is mapped for reading, its last element at the end of the last page ---- */

typedef struct edge {
    unsigned char *map;
    size_t bytes;
} edge;

static const void *at_the_edge(edge *e, const void *from, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    FILE *file = tmpfile();
    size_t room = (bytes + page - 1) / page * page, i;
    e->bytes = room + page;
    for (i = 0; i < room - bytes; i++) fputc(0x7f, file);
    CHECK(fwrite(from, 1, bytes, file) == bytes && fflush(file) == 0);
    e->map = mmap(NULL, e->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* the page behind stays forbidden */
    CHECK(mmap(e->map, room, PROT_READ, MAP_SHARED | MAP_FIXED, fileno(file), 0) == (void *)e->map);
    fclose(file);
    return e->map + room - bytes;
}

TEST(weights_are_read_where_they_lie_and_never_beyond_their_end)
{
    uint64_t s = t_seed + 39;
    for (int i = 0; i < 60; i++) {
        int dtype = i % 4, layout = i / 4 % 4, E = 1 + (int)t_below(&s, 3), big = i % 5 == 0;
        int H = 1 + (int)t_below(&s, big ? 1100 : 80), I = 1 + (int)t_below(&s, 40), rows = layout ? 2 * I : I;
        size_t eb = elem_of((moe_ep_dtype)dtype);
        set r = make_set(E, H, I, (moe_ep_dtype)dtype, (moe_ep_gate_layout)layout, act_of(0), 1, 0, 0, &s);
        edge e[3];
        r.w.gate = at_the_edge(&e[0], r.mem_gate, eb * (size_t)(E * rows * H));
        r.w.up = layout ? NULL : at_the_edge(&e[1], r.mem_up, eb * (size_t)(E * I * H));
        r.w.down = at_the_edge(&e[2], r.mem_down, eb * (size_t)(E * H * I));
        CHECK(run_case(&r, &r, NULL, 0, 1, i & 1, 1 + t_below(&s, i % 3 ? 8 : 40), &s) <= 1e-5);
        for (int k = 0; k < 3; k++)
            if (k != 1 || !layout) munmap(e[k].map, e[k].bytes);
        free_set(&r);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Nothing is kept of the weights: T (H + K I) floats of activations, results of the choices until they are summed up,
 * and tables of a few bytes an expert. */
TEST(memory_is_that_of_the_activations)
{
    enum { E = 128, H = 2048, I = 768, K = 8, MOST = 2000 };
    static const int64_t tokens[] = {1, 16, 300, MOST};
    float cell = 0.0f, *x = t_alloc(sizeof(float) * MOST * H), *y = t_alloc(sizeof(float) * MOST * H);
    int32_t *ids = t_alloc(sizeof(int32_t) * MOST * K);
    memset(x, 0, sizeof(float) * MOST * H);
    memset(ids, 0, sizeof(int32_t) * MOST * K);
    for (int i = 0; i < 48; i++) {
        int64_t T = tokens[i / 12];
        int amx = i / 4 % 3 == 1; /* where it is there, a bf16 copy of the rows of each expert */
        double rows = (double)(T * K), results = 4 * rows * H, most = amx ? 67e6 : 16.8e6, weights, need;
        moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
        moe_ep_weights w;
        moe_ep_forward_desc d;
        memset(&w, 0, sizeof w);
        memset(&d, 0, sizeof d);
        w.num_experts = E, w.hidden = H, w.inter = I, w.dtype = (moe_ep_dtype)(i % 4);
        w.gate = w.up = w.down = &cell; /* never read: there is no memory to begin with */
        if (w.dtype == MOE_EP_I8) w.gate_scale = w.up_scale = w.down_scale = &cell;
        d.experts = &w, d.top_k = K, d.ids = ids, d.products = (moe_ep_products)(i / 4 % 3);
        CHECK_I64(moe_ep_forward(&d, x, T, y, &none, NULL), MOE_EP_ERR_SCRATCH);
        if (most < rows * (amx ? 4096 : 2048)) most = rows * (amx ? 4096 : 2048);
        if (results > most) results = most;
        weights = 3.0 * E * H * I * (double)elem_of(w.dtype);
        need = 4.0 * (double)T * (H + K * I) + results + (amx ? 2 * rows * H : 0.0);
        CHECK((double)none.need < need + 0.01 * weights + 0.05 * need); /* the rows are padded */
        if (w.dtype == MOE_EP_F32) { /* a router's choices, weights and logits on top, each in whole 64 bytes */
            moe_ep_scratch more = moe_ep_scratch_fixed(NULL, 0);
            moe_ep_router router = moe_ep_router_mixtral(E, K);
            moe_ep_forward_desc routed = d;
            routed.ids = NULL, routed.router = &router, routed.gate = &cell;
            CHECK_I64(moe_ep_forward(&routed, x, T, y, &more, NULL), MOE_EP_ERR_SCRATCH);
            CHECK_I64(more.need - none.need, 4 * T * (2 * K + (T == 1 ? 2 * K : 0) + E));
        }
    }
    free(x), free(y), free(ids);
}

/* A layer whose work is worth dividing, and its answer by one thread. */
typedef struct divided {
    set r, sh;
    float *x, *one, *many, *w;
    int32_t *ids;
    int64_t tokens, bytes; /* of an answer */
    int of; /* the products of `one`, -1: not yet computed */
    moe_ep_forward_desc d;
} divided;

static divided make_divided(moe_ep_dtype dtype, uint64_t *s)
{
    divided v;
    memset(&v, 0, sizeof v);
    v.r = make_set(7, 130, 90, dtype, MOE_EP_GATE_FIRST, act_of(0), 1, 0, 0, s);
    v.sh = make_set(2, 130, 40, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, s);
    v.tokens = 150, v.of = -1;
    v.bytes = v.tokens * 130 * (int64_t)sizeof(float);
    v.x = random_x(v.tokens * 130, s);
    v.one = t_alloc((size_t)v.bytes);
    v.many = t_alloc((size_t)v.bytes);
    v.w = t_alloc(sizeof(float) * (size_t)(v.tokens * 3));
    v.ids = t_alloc(sizeof(int32_t) * (size_t)(v.tokens * 3));
    random_ids(v.ids, v.w, v.tokens, 3, 7, 1, s);
    v.d.top_k = 3, v.d.ids = v.ids, v.d.choice_weights = v.w;
    return v;
}

/* Three times with the threads given, against one thread alone. */
static void divide(divided *v, moe_ep_products products, moe_ep_parallel_for by, void *user)
{
    v->d.experts = &v->r.w, v->d.shared = &v->sh.w, v->d.products = products;
    v->d.parallel_for = NULL;
    if (v->of != (int)products) CHECK_I64(moe_ep_forward(&v->d, v->x, v->tokens, v->one, NULL, NULL), MOE_EP_OK);
    v->of = (int)products;
    v->d.parallel_for = by;
    v->d.parallel_user = user;
    for (int again = 0; again < (t_slow() > 1 ? 1 : 3); again++) {
        memset(v->many, 0, (size_t)v->bytes);
        CHECK_I64(moe_ep_forward(&v->d, v->x, v->tokens, v->many, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(v->one, v->many, (size_t)v->bytes) == 0);
    }
}

static void free_divided(divided *v)
{
    free(v->x), free(v->one), free(v->many), free(v->w), free(v->ids);
    free_set(&v->r);
    free_set(&v->sh);
}

TEST(one_two_three_and_eight_threads_give_the_same_bits)
{
    static const int counts[] = {1, 2, 3, 8};
    uint64_t s = t_seed + 20;
    for (int dtype = 0; dtype < 4; dtype++) {
        divided v = make_divided((moe_ep_dtype)dtype, &s);
        for (int i = 0; i < (dtype == MOE_EP_BF16 ? 12 : 4); i++) {
            if (t_slow() > 1 && i % 2 == 0) continue; /* one thread, three threads */
            threads_pool *pool = threads_start(counts[i % 4]);
            divide(&v, (moe_ep_products)(i / 4), threads_run, pool);
            threads_stop(pool);
        }
        free_divided(&v);
    }
}

#ifdef _OPENMP
/* Each of as many tasks as there are threads waits until all have begun: each has a thread of its own. */
typedef struct gathering {
    int begun, wanted;
} gathering;
static void gather(void *context, int64_t index)
{
    gathering *g = context;
    (void)index;
    __sync_fetch_and_add(&g->begun, 1);
    for (long i = 0; i < 20000000 && __atomic_load_n(&g->begun, __ATOMIC_ACQUIRE) < g->wanted; i++) sched_yield();
    if (__atomic_load_n(&g->begun, __ATOMIC_ACQUIRE) < g->wanted) g->wanted = -1;
}
TEST(openmp_threads_give_the_bits_of_one)
{
    uint64_t s = t_seed + 36;
    gathering all = {0, omp_get_max_threads()};
    for (int dtype = 0; dtype < 4; dtype++) {
        divided v = make_divided((moe_ep_dtype)dtype, &s);
        divide(&v, MOE_EP_PRODUCTS_F32, threads_openmp, NULL);
        free_divided(&v);
    }
    threads_openmp(NULL, all.wanted, gather, &all);
    CHECK_I64(all.wanted, omp_get_max_threads());
    printf("    openmp: %d threads\n", all.begun);
}
#endif

TEST(blas_for_experts_with_many_rows)
{
    uint64_t s = t_seed + 21;
    for (int i = 0; i < 40; i++) {
        moe_ep_activation a = act_of(i % 8);
        moe_ep_gate_layout layout = gated(a.kind) ? (moe_ep_gate_layout)(i / 8 % 4) : MOE_EP_GATE_SEPARATE;
        int E = 1 + (int)t_below(&s, 4), H = 1 + (int)t_below(&s, 300), I = 1 + (int)t_below(&s, 300);
        int K = 1 + (int)t_below(&s, E);
        int64_t T = 1 + t_below(&s, 30);
        set r = make_set(E, H, I, MOE_EP_F32, layout, a, i & 1, i & 2, 0, &s);
        set sh = make_set(2, H, 40, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
        float *x = random_x(T * H, &s), *y = t_alloc(sizeof(float) * (size_t)(T * H));
        float *w = t_alloc(sizeof(float) * (size_t)(T * K));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(T * K));
        double *want = t_alloc(sizeof(double) * (size_t)(T * H));
        moe_ep_forward_desc d;
        random_ids(ids, w, T, K, E, 1, &s);
        naive_layer(&r, &sh, NULL, ids, w, K, i % 5 == 4, x, T, want);
        memset(&d, 0, sizeof d);
        d.experts = &r.w, d.shared = &sh.w, d.top_k = K, d.ids = ids, d.choice_weights = w;
        d.weight_on_input = i % 5 == 4;
        for (int rows = 1; rows <= 16; rows *= t_slow() > 1 ? 16 : 4) { /* some experts on BLAS, some not */
            d.blas_min_rows = rows;
            CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
            CHECK(error_of(y, want, T * H) <= 1e-5);
        }
        free(x), free(y), free(w), free(ids), free(want);
        free_set(&r);
        free_set(&sh);
        STOP_IF_FAILED("case %d", i);
    }
}

/* OpenBLAS takes distances between rows as int and no bf16: such weights go through the library's own loops. */
TEST(weights_that_blas_cannot_take_give_the_bits_of_the_loops)
{
    uint64_t s = t_seed + 22;
    int32_t ids[5] = {0, 0, 0, 0, 0};
    float x[5], want[5], y[5];
    for (int which = 0; which < 5; which++) {
        set r = make_set(1, 1, 1, which == 4 ? MOE_EP_BF16 : MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 1, 0, 0, &s);
        moe_ep_forward_desc d;
        memset(&d, 0, sizeof d);
        d.experts = &r.w, d.top_k = 1, d.ids = ids;
        for (int i = 0; i < 5; i++) x[i] = draw(&s);
        CHECK_I64(moe_ep_forward(&d, x, 5, want, NULL, NULL), MOE_EP_OK);
        if (which == 1) r.w.gate_row_stride = (int64_t)INT32_MAX / 2 + 1; /* one row each: nothing lies there */
        if (which == 2) r.w.up_row_stride = (int64_t)INT32_MAX + 1;
        if (which == 3) r.w.down_row_stride = (int64_t)INT32_MAX + 1;
        d.blas_min_rows = 1;
        memset(y, 0x5a, sizeof y);
        CHECK_I64(moe_ep_forward(&d, x, 5, y, NULL, NULL), MOE_EP_OK);
        if (which > 0) CHECK(memcmp(y, want, sizeof y) == 0);
        for (int i = 0; i < 5; i++) CHECK_NEAR(y[i], want[i], 1e-5, 1e-6);
        free_set(&r);
    }
}

/* ---- scratch ---- */

typedef struct counter {
    int allocs, live;
} counter;
static void *count_alloc(void *user, size_t bytes)
{
    ((counter *)user)->allocs++;
    ((counter *)user)->live++;
    return malloc(bytes);
}
static void count_free(void *user, void *p, size_t bytes)
{
    (void)bytes;
    ((counter *)user)->live--;
    free(p);
}

TEST(memory_grows_once_and_a_fixed_buffer_is_enough_to_the_byte)
{
    uint64_t s = t_seed + 9;
    set r = make_set(4, 33, 18, MOE_EP_BF16, MOE_EP_GATE_SEPARATE, act_of(0), 1, 0, 0, &s);
    set sh = make_set(2, 33, 50, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
    float *x = random_x(10 * 33, &s), y[10 * 33], y2[10 * 33], before[10 * 33], w[20];
    int32_t ids[20];
    counter c = {0, 0};
    moe_ep_scratch scratch, fixed;
    moe_ep_forward_desc d;
    moe_ep_error err;
    random_ids(ids, w, 10, 2, 4, 1, &s);
    memset(&d, 0, sizeof d);
    d.experts = &r.w, d.shared = &sh.w, d.top_k = 2, d.ids = ids, d.choice_weights = w;
    memset(&scratch, 0, sizeof scratch);
    scratch.alloc.alloc_fn = count_alloc, scratch.alloc.free_fn = count_free, scratch.alloc.user = &c;
    for (int i = 0; i < 5; i++) CHECK_I64(moe_ep_forward(&d, x, 10 - i, y, &scratch, &err), MOE_EP_OK);
    CHECK_I64(c.allocs, 1);
    CHECK_I64(moe_ep_forward(&d, x, 10, y, &scratch, &err), MOE_EP_OK);
    CHECK_I64(c.allocs, 1);
    size_t need = scratch.need;
    moe_ep_scratch_free(&scratch);
    CHECK_I64(c.live, 0);
    char *buf = malloc(need);
    memset(y2, 0x55, sizeof y2);
    memcpy(before, y2, sizeof y2);
    fixed = moe_ep_scratch_fixed(buf, need - 1);
    CHECK_I64(moe_ep_forward(&d, x, 10, y2, &fixed, &err), MOE_EP_ERR_SCRATCH);
    CHECK(memcmp(y2, before, sizeof y2) == 0);
    CHECK_I64((int64_t)fixed.need, (int64_t)need);
    fixed = moe_ep_scratch_fixed(buf, need);
    CHECK_I64(moe_ep_forward(&d, x, 10, y2, &fixed, &err), MOE_EP_OK);
    CHECK(memcmp(y, y2, sizeof y) == 0);
    free(buf), free(x);
    free_set(&r), free_set(&sh);
}

/* The bytes that are asked for, the last of them before a page that nobody may touch, with NaN in all of them. */
static void in_exactly_its_memory(moe_ep_forward_desc d, const float *x, int64_t T)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), cells = (size_t)T * (size_t)d.experts->hidden;
    float *want = t_alloc(sizeof(float) * cells), *y = t_alloc(sizeof(float) * cells);
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0), fixed;
    CHECK_I64(moe_ep_forward(&d, x, T, want, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward(&d, x, T, y, &none, NULL), MOE_EP_ERR_SCRATCH);
    size_t room = (none.need + 127 + page - 1) / page * page;
    unsigned char *map = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) abort();
    mprotect(map + room, page, PROT_NONE);
    memset(map, 0xff, room);
    /* 64 bytes are for the alignment: here 63 of them are left out in front, and the last is in the closed page */
    fixed = moe_ep_scratch_fixed(map + room + 1 - none.need, none.need);
    CHECK_I64(moe_ep_forward(&d, x, T, y, &fixed, NULL), MOE_EP_OK);
    CHECK(memcmp(y, want, sizeof(float) * cells) == 0);
    munmap(map, room + page);
    free(want), free(y);
}

/* Every part of a layer in turn is what needs the most memory: routed experts, one shared expert or more, the logits
 * of many experts. */
TEST(a_layer_stays_within_the_bytes_it_asks_for)
{
    uint64_t s = t_seed + 71;
    for (int i = 0; i < 96; i++) {
        int shared = i % 4, wide = i / 4 % 2, E = i / 8 % 2 ? 40 : 3, H = 20, T = 1 + (int)t_below(&s, 20), K = 2;
        set r = make_set(E, H, wide ? 9 : 200, (moe_ep_dtype)(i / 16 % 2), MOE_EP_GATE_FIRST, act_of(0), 0, 0, 0, &s);
        set sh = make_set(shared ? shared : 1, H, wide ? 300 : 7, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0,
                          &s);
        float *x = random_x(T * H, &s), *gate = random_x((E + 1) * H, &s);
        float *w = t_alloc(sizeof(float) * (size_t)(T * K));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(T * K));
        moe_ep_router router = moe_ep_router_mixtral(E + 1, K);
        moe_ep_forward_desc d;
        memset(&d, 0, sizeof d);
        random_ids(ids, w, T, K, E + 1, 1, &s);
        d.experts = &r.w, d.shared = shared ? &sh.w : NULL, d.num_null = 1;
        d.weight_on_input = i / 48, d.products = (moe_ep_products)(i / 16 % 3);
        d.top_k = K, d.ids = ids, d.choice_weights = w;
        in_exactly_its_memory(d, x, T);
        router.num_null = 1;
        d.router = &router, d.gate = gate, d.top_k = 0, d.ids = NULL, d.choice_weights = NULL;
        in_exactly_its_memory(d, x, T);
        free(x), free(gate), free(w), free(ids);
        free_set(&r), free_set(&sh);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Through the rank functions, which do not look at rows: some tokens of NaN or infinity, and every other token has the
 * bits of a layer in which they are 0.  All units, types and kinds of products, few rows and many for an expert. */
TEST(a_token_that_is_not_finite_leaves_the_others_their_bits)
{
    static const float rubbish[3] = {(float)NAN, (float)INFINITY, -(float)INFINITY};
    uint64_t s = t_seed + 72;
    for (int i = 0; i < 96; i++) {
        int E = i % 5 ? 4 : 1, H = 1 + (int)t_below(&s, 70), I = 1 + (int)t_below(&s, 70), K = i % 5 ? 2 : 1;
        int T = 1 + (int)t_below(&s, i & 16 ? 60 : 9), first = -1;
        moe_ep_activation act = act_of(i % 7);
        set r = make_set(E, H, I, (moe_ep_dtype)(i % 4), MOE_EP_GATE_SEPARATE, act, i & 1, 0, 0, &s);
        set sh = make_set(2, H, 5, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
        float *x = random_x(T * H, &s), *want = random_x(T * H, &s), *y = random_x(T * H, &s);
        float *w = t_alloc(sizeof(float) * (size_t)(T * K));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(T * K)), start[2] = {0, E};
        char *bad = t_alloc((size_t)T);
        moe_ep_forward_desc d;
        moe_ep_rank_desc rd;
        moe_ep_rank rank;
        moe_ep_batch b;
        moe_ep_error err;
        memset(&d, 0, sizeof d);
        random_ids(ids, w, T, K, E + 1, 1, &s);
        d.experts = &r.w, d.shared = i & 8 ? &sh.w : NULL, d.num_null = 1;
        d.weight_on_input = i / 3 % 2, d.products = (moe_ep_products)(i / 4 % 3), d.isa_max = (moe_ep_isa)(i / 24);
        d.top_k = K, d.ids = ids, d.choice_weights = w;
        for (int t = 0; t < T; t++) {
            int seen = d.shared != NULL;
            for (int k = 0; k < K; k++) seen |= ids[t * K + k] >= 0;
            bad[t] = (char)(t_below(&s, 4) == 0);
            for (int h = 0; bad[t] && h < H; h++) x[t * H + h] = 0.0f;
            if (bad[t] && seen && first < 0) first = t;
        }
        CHECK_I64(moe_ep_forward(&d, x, T, want, NULL, NULL), MOE_EP_OK);
        for (int t = 0; t < T; t++) {
            for (int h = 0; bad[t] && h < H; h++) x[t * H + h] = 1.0f;
            if (bad[t]) x[t * H + H / 2] = rubbish[i % 3];
            for (int h = 0; bad[t] && i % 2 && h < H; h++) x[t * H + h] = rubbish[(i + h) % 3];
        }
        memset(&rd, 0, sizeof rd);
        memset(&b, 0, sizeof b);
        rd.num_ranks = 1, rd.slot_start = start, rd.top_k = K, rd.hidden = H, rd.layer = &d;
        b.num_tokens = T, b.slot_ids = ids, b.weights = w, b.x = x, b.y = y;
        CHECK_I64(moe_ep_rank_init(&rank, &rd, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, &err), first < 0 ? MOE_EP_OK : MOE_EP_ERR_NAN);
        CHECK_STR(err.arg, first < 0 ? "" : "x");
        CHECK_I64(err.index, first < 0 ? -1 : (int64_t)first * H + (i % 2 ? 0 : H / 2));
        for (int t = 0; t < T; t++)
            CHECK(bad[t] || memcmp(y + t * H, want + t * H, sizeof(float) * (size_t)H) == 0);
        moe_ep_rank_free(&rank);
        free(x), free(want), free(y), free(w), free(ids), free(bad);
        free_set(&r), free_set(&sh);
        STOP_IF_FAILED("case %d", i);
    }
}

/* ---- bad input: every case changes one thing of a good call ---- */

typedef struct good {
    set r, sh;
    float x[4 * 6], y[4 * 6], w[8], gate[5 * 6], sgate[6];
    int32_t ids[8];
    moe_ep_router router;
    moe_ep_forward_desc d;
} good;

static void good_init(good *g)
{
    uint64_t s = 5;
    memset(g, 0, sizeof *g);
    g->r = make_set(5, 6, 7, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 1, 0, 0, &s);
    g->sh = make_set(1, 6, 3, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
    for (int i = 0; i < 24; i++) g->x[i] = (float)draw(&s);
    for (int i = 0; i < 30; i++) g->gate[i] = (float)draw(&s);
    for (int i = 0; i < 8; i++) g->ids[i] = i % 5, g->w[i] = 0.5f;
    g->router = moe_ep_router_mixtral(5, 2);
    g->d.experts = &g->r.w, g->d.shared = &g->sh.w, g->d.shared_gate = g->sgate;
    g->d.top_k = 2, g->d.ids = g->ids, g->d.choice_weights = g->w;
}

static void expect(good *g, int64_t T, moe_ep_status want, const char *arg, int64_t index, int line)
{
    moe_ep_error err;
    float before[24];
    for (int i = 0; i < 24; i++) g->y[i] = 1234.5f + (float)i;
    memcpy(before, g->y, sizeof before);
    moe_ep_status got = moe_ep_forward(&g->d, g->x, T, g->y, NULL, &err);
    if (got != want || err.status != want || strcmp(err.arg, arg) != 0 || err.index != index)
        printf("    line %d: got %d (%s[%lld]), want %d (%s[%lld])\n", line, (int)got, err.arg, (long long)err.index,
               (int)want, arg, (long long)index);
    CHECK_I64(got, want);
    CHECK_I64(err.status, want);
    CHECK_STR(err.arg, arg);
    CHECK_I64(err.index, index);
    CHECK(memcmp(before, g->y, sizeof before) == 0);
    free_set(&g->r);
    free_set(&g->sh);
    good_init(g);
}
#define BAD(change, T, status, arg, index) do { change; expect(&g, T, status, arg, index, __LINE__); } while (0)

TEST(bad_input_is_named_and_y_stays)
{
    good g;
    float nan = (float)NAN, inf = (float)INFINITY;
    good_init(&g);
    CHECK_I64(moe_ep_forward(&g.d, g.x, 4, g.y, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward(&g.d, NULL, 0, NULL, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward(NULL, g.x, 4, g.y, NULL, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_forward(&g.d, g.x, 4, NULL, NULL, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_forward(&g.d, NULL, 4, g.y, NULL, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_forward(&g.d, g.x, 2, g.x + 6, NULL, NULL), MOE_EP_ERR_CONFIG); /* overlap */
    BAD(g.d.experts = NULL, 4, MOE_EP_ERR_NULL, "experts", -1);
    BAD(g.r.w.hidden = 0, 4, MOE_EP_ERR_SIZE, "experts", -1);
    BAD(g.r.w.inter = -1, 4, MOE_EP_ERR_SIZE, "experts", -1);
    BAD(g.r.w.num_experts = 0, 4, MOE_EP_ERR_SIZE, "experts", -1);
    BAD(g.r.w.dtype = (moe_ep_dtype)4, 4, MOE_EP_ERR_RANGE, "dtype", -1);
    BAD(g.r.w.dtype = (moe_ep_dtype)-1, 4, MOE_EP_ERR_RANGE, "dtype", -1);
    BAD(g.r.w.layout = (moe_ep_gate_layout)4, 4, MOE_EP_ERR_RANGE, "layout", -1);
    BAD(g.r.w.activation.kind = (moe_ep_activation_kind)-1, 4, MOE_EP_ERR_RANGE, "activation.kind", -1);
    BAD(g.r.w.activation.limit = inf, 4, MOE_EP_ERR_NAN, "activation.limit", -1);
    BAD(g.r.w.activation.up_offset = nan, 4, MOE_EP_ERR_NAN, "activation.up_offset", -1);
    BAD(g.d.isa_max = (moe_ep_isa)-1, 4, MOE_EP_ERR_RANGE, "isa_max", -1);
    BAD(g.d.products = (moe_ep_products)-1, 4, MOE_EP_ERR_RANGE, "products", -1);
    BAD(g.d.num_null = INT32_MAX, 4, MOE_EP_ERR_SIZE, "num_null", -1);
    BAD(g.sh.w.down = NULL, 4, MOE_EP_ERR_NULL, "down", -1);
    BAD((g.d.router = &g.router, g.d.gate = g.gate, g.router.num_null = 1), 4,
        MOE_EP_ERR_SIZE, "router.num_null", -1);
    BAD((g.d.router = &g.router, g.d.gate = g.gate, g.router.top_k = 0), 4, MOE_EP_ERR_SIZE, "top_k", -1);
    BAD((void)0, INT64_MAX / 64 / 6 + 1, MOE_EP_ERR_OVERFLOW, "num_tokens", -1);
    /* 5 experts of 7 rows: rows * stride, that * experts, and a product that leaves no room */
    BAD(g.r.w.gate_row_stride = INT64_MAX / 3, 4, MOE_EP_ERR_OVERFLOW, "gate", -1);
    BAD(g.r.w.gate_row_stride = INT64_MAX / 16, 4, MOE_EP_ERR_OVERFLOW, "gate", -1);
    BAD(g.r.w.gate_row_stride = INT64_MAX / 7 / 5 / 4, 4, MOE_EP_ERR_OVERFLOW, "gate", -1);
    BAD(g.r.w.gate_expert_stride = INT64_MAX / 3, 4, MOE_EP_ERR_SIZE, "gate", -1);
    BAD(g.r.w.gate_expert_stride = INT64_MAX / 20, 4, MOE_EP_ERR_SIZE, "gate", -1);
    { /* a plain activation and a fused layout have nothing beside gate and down */
        const void *table[5] = {g.r.mem_gate, g.r.mem_gate, g.r.mem_gate, g.r.mem_gate, g.r.mem_gate};
        BAD((g.r.w.layout = MOE_EP_GATE_FIRST, g.r.w.up = NULL, g.r.w.up_bias = NULL, g.r.w.up_of = table), 4,
            MOE_EP_ERR_CONFIG, "up", -1);
        BAD((g.r.w.layout = MOE_EP_GATE_FIRST, g.r.w.up = NULL), 4, MOE_EP_ERR_CONFIG, "up", -1); /* up_bias */
        BAD((g.r.w.layout = MOE_EP_GATE_FIRST, g.r.w.up = NULL, g.r.w.up_bias = NULL, g.r.w.up_scale = g.w), 4,
            MOE_EP_ERR_CONFIG, "up", -1);
    }
    BAD(g.r.w.gate_scale = g.w, 4, MOE_EP_ERR_CONFIG, "gate_scale", -1);
    BAD(g.r.w.up_scale = g.w, 4, MOE_EP_ERR_CONFIG, "gate_scale", -1);
    BAD(g.r.w.layout = (moe_ep_gate_layout)-1, 4, MOE_EP_ERR_RANGE, "layout", -1);
    BAD(g.r.w.layout = MOE_EP_GATE_FIRST, 4, MOE_EP_ERR_CONFIG, "up", -1);
    BAD(g.r.w.activation.kind = (moe_ep_activation_kind)7, 4, MOE_EP_ERR_RANGE, "activation.kind", -1);
    BAD(g.r.w.activation.kind = MOE_EP_ACT_RELU2, 4, MOE_EP_ERR_CONFIG, "up", -1);
    BAD((g.r.w.activation.kind = MOE_EP_ACT_RELU2, g.r.w.layout = MOE_EP_GATE_FIRST), 4, MOE_EP_ERR_CONFIG,
        "layout", -1);
    BAD(g.r.w.activation.alpha = nan, 4, MOE_EP_ERR_NAN, "activation.alpha", -1);
    BAD(g.r.w.activation.limit = -1.0f, 4, MOE_EP_ERR_RANGE, "activation.limit", -1);
    BAD(g.r.w.gate = NULL, 4, MOE_EP_ERR_NULL, "gate", -1);
    BAD(g.r.w.up = NULL, 4, MOE_EP_ERR_NULL, "up", -1);
    BAD(g.r.w.down = NULL, 4, MOE_EP_ERR_NULL, "down", -1);
    BAD(g.r.w.gate_row_stride = 5, 4, MOE_EP_ERR_SIZE, "gate", -1);
    BAD(g.r.w.down_row_stride = -7, 4, MOE_EP_ERR_SIZE, "down", -1);
    BAD(g.r.w.up_expert_stride = -1, 4, MOE_EP_ERR_SIZE, "up", -1);
    BAD(g.r.w.gate_row_stride = INT64_MAX / 8, 4, MOE_EP_ERR_OVERFLOW, "gate", -1);
    {
        const void *table[5] = {g.r.mem_gate, g.r.mem_gate, NULL, g.r.mem_gate, g.r.mem_gate};
        BAD(g.r.w.gate_of = table, 4, MOE_EP_ERR_NULL, "gate", 2);
    }
    BAD(g.r.w.down_scale = g.w, 4, MOE_EP_ERR_CONFIG, "gate_scale", -1);
    BAD((g.r.w.dtype = MOE_EP_I8, g.r.w.up_scale = g.w, g.r.w.down_scale = g.w), 4, MOE_EP_ERR_NULL, "gate_scale", -1);
    BAD((g.r.w.dtype = MOE_EP_I8, g.r.w.gate_scale = g.w, g.r.w.down_scale = g.w), 4, MOE_EP_ERR_NULL, "up_scale", -1);
    BAD((g.r.w.dtype = MOE_EP_I8, g.r.w.gate_scale = g.w, g.r.w.up_scale = g.w), 4, MOE_EP_ERR_NULL, "down_scale", -1);
    BAD(g.d.products = (moe_ep_products)3, 4, MOE_EP_ERR_RANGE, "products", -1);
    BAD(g.d.isa_max = (moe_ep_isa)9, 4, MOE_EP_ERR_RANGE, "isa_max", -1);
    BAD(g.d.blas_min_rows = -1, 4, MOE_EP_ERR_RANGE, "blas_min_rows", -1);
    BAD(g.d.num_null = -1, 4, MOE_EP_ERR_SIZE, "num_null", -1);
    BAD(g.sh.w.hidden = 5, 4, MOE_EP_ERR_SIZE, "shared.hidden", -1);
    BAD(g.d.shared = NULL, 4, MOE_EP_ERR_CONFIG, "shared_gate", -1);
    BAD(g.sgate[3] = inf, 4, MOE_EP_ERR_NAN, "shared_gate", 3);
    BAD((void)0, -1, MOE_EP_ERR_SIZE, "num_tokens", -1);
    BAD((void)0, INT64_MAX / 4, MOE_EP_ERR_OVERFLOW, "num_tokens", -1);
    BAD(g.x[7] = nan, 4, MOE_EP_ERR_NAN, "x", 7);
    BAD(g.d.top_k = 0, 4, MOE_EP_ERR_SIZE, "top_k", -1);
    BAD(g.d.top_k = 6, 4, MOE_EP_ERR_TOP_K, "top_k", -1);
    BAD(g.d.ids = NULL, 4, MOE_EP_ERR_NULL, "ids", -1);
    BAD(g.ids[6] = 5, 4, MOE_EP_ERR_EXPERT_ID, "ids", 6);
    BAD(g.ids[2] = -2, 4, MOE_EP_ERR_EXPERT_ID, "ids", 2);
    BAD(g.ids[0] = 5, 1, MOE_EP_ERR_EXPERT_ID, "ids", 0);
    BAD(g.ids[7] = -2, 4, MOE_EP_ERR_EXPERT_ID, "ids", 7);
    BAD(g.w[0] = nan, 1, MOE_EP_ERR_NAN, "choice_weights", 0);
    BAD((g.d.router = &g.router, g.d.gate = g.gate, g.d.top_k = 1), 4, MOE_EP_ERR_CONFIG, "top_k", -1);
    g.d.ids = NULL; /* no token reads none */
    CHECK_I64(moe_ep_forward(&g.d, NULL, 0, NULL, NULL, NULL), MOE_EP_OK);
    g.d.ids = g.ids;
    BAD(g.w[5] = inf, 4, MOE_EP_ERR_NAN, "choice_weights", 5);
    BAD(g.d.router = &g.router, 4, MOE_EP_ERR_NULL, "gate", -1);
    BAD((g.d.router = &g.router, g.d.gate = g.gate, g.d.top_k = 3), 4, MOE_EP_ERR_CONFIG, "top_k", -1);
    BAD((g.d.router = &g.router, g.d.gate = g.gate, g.router.num_experts = 4), 4, MOE_EP_ERR_SIZE,
        "router.num_experts", -1);
    BAD((g.d.router = &g.router, g.d.gate = g.gate, g.gate[7] = nan), 4, MOE_EP_ERR_NAN, "logits", 1);
    BAD((g.d.router = &g.router, g.d.gate = g.gate, g.x[0] = 3e38f, g.gate[12] = 2.0f), 4, MOE_EP_ERR_NAN, "logits", 2);
    BAD((g.ids[2] = g.ids[3] = -1, g.x[7] = nan), 4, MOE_EP_ERR_NAN, "x", 7);
    BAD(g.r.w.gate_expert_stride = 5, 4, MOE_EP_ERR_SIZE, "gate", -1);
    free_set(&g.r);
    free_set(&g.sh);
}

/* Padded tokens: ids -1, weights and x whatever lay there. */
TEST(what_stands_beside_masked_choices_is_not_looked_at)
{
    static const int32_t ids[8] = {0, 1, -1, -1, 2, -1, -1, 5}; /* 5: identity */
    static const float rubbish[3] = {(float)NAN, (float)INFINITY, -(float)INFINITY};
    uint64_t s = 6;
    for (int i = 0; i < 12; i++) {
        good g;
        float clean[24], want[24];
        moe_ep_error err;
        good_init(&g);
        free_set(&g.r);
        g.r = make_set(5, 6, 7, i & 1 ? MOE_EP_BF16 : MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 1, 0, 0, &s);
        g.d.experts = &g.r.w, g.d.shared = NULL, g.d.shared_gate = NULL, g.d.num_null = 1;
        g.d.weight_on_input = i >> 1 & 1, g.d.products = (moe_ep_products)(i / 4);
        memcpy(g.ids, ids, sizeof ids);
        CHECK_I64(moe_ep_forward(&g.d, g.x, 4, want, NULL, NULL), MOE_EP_OK);
        memcpy(clean, g.x, sizeof clean);
        for (int k = 0; k < 8; k++)
            if (ids[k] < 0) g.w[k] = rubbish[(i + k) % 3];
        for (int h = 0; h < 6; h++) g.x[6 + h] = rubbish[(i + h) % 3];
        CHECK_I64(moe_ep_forward(&g.d, g.x, 4, g.y, NULL, &err), MOE_EP_OK);
        CHECK(memcmp(want, g.y, sizeof want) == 0);
        for (int h = 6; h < 12; h++) CHECK(g.y[h] == 0.0f);
        { /* nor is a fifth token where there are four, which would have a choice */
            float more[30];
            int32_t names[10];
            memcpy(more, g.x, sizeof g.x);
            memcpy(names, ids, sizeof ids);
            for (int h = 24; h < 30; h++) more[h] = rubbish[h % 3];
            names[8] = names[9] = 0;
            g.d.ids = names;
            CHECK_I64(moe_ep_forward(&g.d, more, 4, g.y, NULL, &err), MOE_EP_OK);
            CHECK(memcmp(want, g.y, sizeof want) == 0);
            g.d.ids = g.ids;
        }
        for (int t = 3; t >= 0; t--) { /* a token with a choice is looked at, identity or not, whatever stands before */
            if (t == 1) continue;
            g.x[6 * t + (i + t) % 6] = rubbish[i % 3];
            CHECK_I64(moe_ep_forward(&g.d, g.x, 4, g.y, NULL, &err), MOE_EP_ERR_NAN);
            CHECK_STR(err.arg, "x");
            CHECK_I64(err.index, 6 * t + (i + t) % 6);
        }
        for (int k = 0; k < 8; k++) { /* and so is the weight of every choice that is one */
            if (ids[k] < 0) continue;
            float w = g.w[k];
            g.w[k] = rubbish[i % 3];
            CHECK_I64(moe_ep_forward(&g.d, clean, 4, g.y, NULL, &err), MOE_EP_ERR_NAN);
            CHECK_STR(err.arg, "choice_weights");
            CHECK_I64(err.index, k);
            g.w[k] = w;
        }
        memcpy(g.x, clean, sizeof clean);
        g.x[7] = rubbish[i % 3];
        g.d.shared = &g.sh.w; /* shared experts see every token, and so does a router */
        CHECK_I64(moe_ep_forward(&g.d, g.x, 4, g.y, NULL, &err), MOE_EP_ERR_NAN);
        CHECK_I64(err.index, 7);
        g.d.shared = NULL, g.d.num_null = 0;
        g.d.router = &g.router, g.d.gate = g.gate;
        CHECK_I64(moe_ep_forward(&g.d, g.x, 4, g.y, NULL, &err), MOE_EP_ERR_NAN);
        CHECK_STR(err.arg, "x");
        CHECK_I64(err.index, 7);
        free_set(&g.r);
        free_set(&g.sh);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(errors_name_the_value_and_success_leaves_none)
{
    static const int32_t sizes[] = {1, 0, -3};
    float x[6] = {1, 2, 3, 4, 5, 6}, y[6];
    int64_t start[2] = {0, 1};
    moe_ep_error err;
    good g;
    good_init(&g);
    for (int i = 1; i < 27; i++) { /* the first of three sizes that is below 1 */
        int32_t n[3] = {sizes[i % 3], sizes[i / 3 % 3], sizes[i / 9]};
        moe_ep_weights w = g.r.w;
        moe_ep_forward_desc d = g.d;
        w.num_experts = n[0], w.hidden = n[1], w.inter = n[2];
        d.experts = &w;
        CHECK_I64(moe_ep_forward(&d, x, 1, y, NULL, &err), MOE_EP_ERR_SIZE);
        error_is(&err, "experts", -1, n[0] < 1 ? n[0] : n[1] < 1 ? n[1] : n[2]);
    }
    CHECK_I64(moe_ep_forward(&g.d, x, -7, y, NULL, &err), MOE_EP_ERR_SIZE);
    error_is(&err, "num_tokens", -1, -7.0);
    g.d.top_k = 0;
    CHECK_I64(moe_ep_forward(&g.d, x, 1, y, NULL, &err), MOE_EP_ERR_SIZE);
    error_is(&err, "top_k", -1, 0.0);
    g.d.top_k = 2;
    CHECK_I64(moe_ep_forward(&g.d, x, 1, y, NULL, &err), MOE_EP_OK);
    error_is(&err, "", -1, 0.0);
    g.d.top_k = 0;
    CHECK_I64(moe_ep_forward(&g.d, x, 1, y, NULL, &err), MOE_EP_ERR_SIZE);
    g.d.top_k = 2;
    CHECK_I64(moe_ep_experts(&g.d, x, start, 1, NULL, y, NULL, &err), MOE_EP_OK);
    error_is(&err, "", -1, 0.0);
    free_set(&g.r);
    free_set(&g.sh);
}

/* The largest number that fits and the next one.  No token comes along, so that nothing is read or written. */
TEST(sizes_at_the_end_of_their_ranges)
{
    const int64_t most = INT64_MAX / 8 / 35 * 35; /* 5 experts of 7 rows; it is INT64_MAX / 8 itself */
    const void *table[5];
    float cell = 0.0f;
    moe_ep_error err;
    good g;
    good_init(&g);
    CHECK_I64(most, INT64_MAX / 8);
    for (int over = 0; over < 2; over++) {
        moe_ep_weights w = g.r.w;
        moe_ep_forward_desc d = g.d;
        d.experts = &w;
        w.gate_row_stride = most / 35 + over;
        CHECK_I64(moe_ep_forward(&d, NULL, 0, NULL, NULL, &err), over ? MOE_EP_ERR_OVERFLOW : MOE_EP_OK);
        w = g.r.w;
        w.gate_expert_stride = most / 5 + over;
        CHECK_I64(moe_ep_forward(&d, NULL, 0, NULL, NULL, &err), over ? MOE_EP_ERR_SIZE : MOE_EP_OK);
        w = g.r.w;
        d.num_null = INT32_MAX - 5 + over;
        CHECK_I64(moe_ep_forward(&d, NULL, 0, NULL, NULL, &err), over ? MOE_EP_ERR_SIZE : MOE_EP_OK);
        error_is(&err, over ? "num_null" : "", -1, over ? INT32_MAX - 4.0 : 0.0);
    }
    for (int bad = 0; bad < 5; bad++) { /* each pointer of a table */
        for (int e = 0; e < 5; e++) table[e] = e == bad ? NULL : g.r.mem_gate;
        g.r.w.gate_of = table;
        CHECK_I64(moe_ep_forward(&g.d, NULL, 0, NULL, NULL, &err), MOE_EP_ERR_NULL);
        error_is(&err, "gate", bad, 0.0);
    }
    g.r.w.gate_of = NULL;
    moe_ep_weights one;
    memset(&one, 0, sizeof one);
    one.num_experts = one.hidden = one.inter = 1;
    one.gate = one.up = one.down = &cell;
    g.d.experts = &one, g.d.shared = NULL, g.d.shared_gate = NULL;
    CHECK_I64(moe_ep_forward(&g.d, NULL, INT64_MAX / 64, &cell, NULL, &err), MOE_EP_ERR_NULL);
    error_is(&err, "x", -1, 0.0);
    CHECK_I64(moe_ep_forward(&g.d, NULL, INT64_MAX / 64 + 1, &cell, NULL, &err), MOE_EP_ERR_OVERFLOW);
    free_set(&g.r);
    free_set(&g.sh);
}

TEST(input_and_output_may_touch_but_not_overlap)
{
    enum { N = 4 * 6 };
    static float both[3 * N];
    moe_ep_error err;
    good g;
    good_init(&g);
    for (int at = -N - 1; at <= N + 1; at++) { /* y begins `at` floats behind x */
        memcpy(both + N, g.x, sizeof g.x);
        if (N + at < 0 || at > N) continue;
        CHECK_I64(moe_ep_forward(&g.d, both + N, 4, both + N + at, NULL, &err),
                  at == N || at == -N ? MOE_EP_OK : MOE_EP_ERR_CONFIG);
        error_is(&err, at == N || at == -N ? "" : "y", -1, 0.0);
    }
    free_set(&g.r);
    free_set(&g.sh);
}

/* Bytes that moe_ep_experts wants for rows of one group: nothing is read before it says so. */
static double wanted(moe_ep_forward_desc *d, int64_t rows)
{
    static float none[2];
    const int64_t start[2] = {0, rows};
    float *x = t_alloc(sizeof(float) * (size_t)(rows * d->experts->hidden));
    moe_ep_scratch tiny = moe_ep_scratch_fixed(NULL, 0);
    CHECK_I64(moe_ep_experts(d, x, start, 1, NULL, none, &tiny, NULL), MOE_EP_ERR_SCRATCH);
    free(x);
    return (double)tiny.need;
}

/* Rows of activations are filled up to 32 floats, and with 32 more where neighbours would lie a multiple of 2 KB apart,
 * which shares few sets of a cache. */
TEST(a_row_of_activations_takes_what_its_padding_says)
{
    static const int widths[] = {1, 31, 32, 33, 64, 65, 480, 511, 512, 513, 1024, 1025, 1500};
    float cell = 0.0f;
    for (int i = 0; i < 13 * 13; i++) {
        int n[2] = {widths[i % 13], widths[i / 13]}, floats = 0;
        moe_ep_weights w;
        moe_ep_forward_desc d;
        memset(&w, 0, sizeof w);
        memset(&d, 0, sizeof d);
        w.num_experts = 1, w.hidden = n[0], w.inter = n[1];
        w.gate = w.up = w.down = &cell;
        d.experts = &w, d.isa_max = MOE_EP_ISA_PORTABLE;
        for (int k = 0; k < 2; k++)
            for (int full = 0; full < n[k] || full % 512 == 0; full += 32) floats += 32;
        CHECK_NEAR(wanted(&d, 48) - wanted(&d, 16), 32.0 * 4.0 * floats, 0, 0);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Runs the tasks one by one and looks which rows of the answer each has written. */
typedef struct watch {
    const float *y;
    float before[84 * 6];
    int64_t start[8], written[64];
    int tasks;
} watch;

static void watch_tasks(void *user, int64_t count, moe_ep_task task, void *context)
{
    watch *v = user;
    for (int64_t i = 0; i < count; i++) {
        int group = -1;
        memcpy(v->before, v->y, sizeof v->before);
        task(context, i);
        for (int g = 0; g < 7; g++)
            if (memcmp(v->y + v->start[g] * 6, v->before + v->start[g] * 6,
                       sizeof(float) * (size_t)((v->start[g + 1] - v->start[g]) * 6)) != 0) group = g;
        if (group >= 0 && v->tasks < 64) v->written[v->tasks++] = v->start[group + 1] - v->start[group];
    }
}

TEST(tasks_of_larger_groups_come_first)
{
    static const int sizes[7] = {3, 0, 17, 5, 17, 1, 41};
    static const int32_t experts[7] = {0, 1, 2, 3, 4, 0, 1};
    uint64_t s = t_seed + 41;
    float x[84 * 6], y[84 * 6];
    watch v;
    good g;
    good_init(&g);
    memset(&v, 0, sizeof v);
    memset(y, 0, sizeof y);
    for (int i = 0; i < 84 * 6; i++) x[i] = (float)draw(&s);
    for (int i = 0; i < 7; i++) v.start[i + 1] = v.start[i] + sizes[i];
    v.y = y;
    g.d.parallel_for = watch_tasks, g.d.parallel_user = &v;
    CHECK_I64(moe_ep_experts(&g.d, x, v.start, 7, experts, y, NULL, NULL), MOE_EP_OK);
    CHECK_I64(v.tasks, 6);
    for (int i = 1; i < v.tasks; i++) CHECK(v.written[i] <= v.written[i - 1]);
    CHECK_I64(v.written[0], 41);
    free_set(&g.r);
    free_set(&g.sh);
}

static void most_tasks(void *user, int64_t count, moe_ep_task task, void *context)
{
    int64_t *most = (int64_t *)user;
    if (count > *most) *most = count;
    for (int64_t i = 0; i < count; i++) task(context, i);
}

/* A shared expert or a dense layer is one group: its columns still are tasks for many threads. */
TEST(one_expert_alone_has_many_tasks)
{
    enum { H = 16, I = 1408, MOST = 128 }; /* H has no part in how many tasks there are */
    float *w = (float *)t_alloc(sizeof *w * H * I), *x = (float *)t_alloc(sizeof *x * MOST * H);
    float *y = (float *)t_alloc(sizeof *y * MOST * H), weight[MOST];
    int32_t ids[MOST];
    moe_ep_weights experts;
    moe_ep_forward_desc d;
    uint64_t s = t_seed + 61;
    memset(&experts, 0, sizeof experts);
    memset(&d, 0, sizeof d);
    for (int i = 0; i < H * I; i++) w[i] = (float)draw(&s) * 0.01f;
    for (int i = 0; i < MOST * H; i++) x[i] = (float)draw(&s);
    for (int i = 0; i < MOST; i++) ids[i] = 0, weight[i] = 1;
    experts.num_experts = 1, experts.hidden = H, experts.inter = I;
    experts.gate = experts.up = experts.down = w;
    d.experts = &experts, d.top_k = 1, d.ids = ids, d.choice_weights = weight;
    d.parallel_for = most_tasks;
    for (int tokens = 13; tokens <= MOST; tokens += t_slow() > 1 ? 92 : 23) {
        int64_t most = 0;
        d.parallel_user = &most;
        CHECK_I64(moe_ep_forward(&d, x, tokens, y, NULL, NULL), MOE_EP_OK);
        CHECK(most >= 8);
    }
    free(w);
    free(x);
    free(y);
}

/* The distance to the next row does not matter where there is none. */
TEST(a_single_row_may_have_any_stride)
{
    static const int shifts[] = {20, 50, 55, 56, 57, 58};
    const uint16_t one = moe_ep_bf16_from_f32(1.0f);
    const float x[20] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const int32_t ids[20] = {0};
    for (int i = 0; i < 12; i++) {
        moe_ep_weights w;
        moe_ep_forward_desc d;
        float y[20];
        memset(&w, 0, sizeof w);
        memset(&d, 0, sizeof d);
        w.num_experts = w.hidden = w.inter = 1;
        w.dtype = MOE_EP_BF16;
        w.activation.kind = MOE_EP_ACT_RELU2;
        w.gate = w.down = &one;
        w.gate_row_stride = w.down_row_stride = (int64_t)1 << shifts[i % 6];
        d.experts = &w, d.top_k = 1, d.ids = ids;
        CHECK_I64(moe_ep_forward(&d, x, i < 6 ? 1 : 20, y, NULL, NULL), MOE_EP_OK);
        for (int t = 0; t < (i < 6 ? 1 : 20); t++) CHECK_NEAR((double)y[t], 1.0, 1e-6, 0.0);
    }
}

/* With few tokens a task has 1024 rows of weights, or as many, down to 64, as are 1 MB; half of them are up rows. */
static int64_t tasks_of_few(int64_t width, int64_t row_bytes, int halves)
{
    int64_t rows = 1024;
    while (rows > 64 && rows * row_bytes > 1 << 20) rows /= 2;
    rows /= halves;
    return (width + rows - 1) / rows;
}

TEST(few_tokens_meet_up_to_a_thousand_rows_a_task)
{
    static const int cases[][2] = {{4096, 8}, {4097, 8}, {8, 4096}, {3, 4097}, {1300, 300}, {600, 1300}, {512, 512},
                                   {513, 513}, {2300, 150}, {150, 2300}, {5000, 70}, {1024, 1024}}; /* H, I */
    uint64_t s = t_seed + 63;
    for (int i = t_slow() > 1; i < 24; i += t_slow() > 1 ? 5 : 1) { /* slow: each type of weights once */
        int H = cases[i / 2][0], I = cases[i / 2][1], T = 1 + i % 6;
        moe_ep_dtype dtype = (moe_ep_dtype)((i + i / 4) % 4);
        int64_t most = 1, up, down;
        set r = make_set(1, H, I, dtype, (moe_ep_gate_layout)(i * 3 % 4), act_of(0), 1, 0, 0, &s);
        float *x = random_x(T * H, &s), *y = t_alloc(sizeof(float) * (size_t)(T * H));
        double *want = t_alloc(sizeof(double) * (size_t)(T * H));
        int32_t ids[6] = {0};
        moe_ep_forward_desc d;
        memset(&d, 0, sizeof d);
        d.experts = &r.w, d.top_k = 1, d.ids = ids, d.parallel_for = most_tasks, d.parallel_user = &most;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
        up = tasks_of_few(I, (int64_t)elem_of(dtype) * H * (r.w.layout == MOE_EP_GATE_INTERLEAVED ? 2 : 1), 2);
        down = tasks_of_few(H, (int64_t)elem_of(dtype) * I, 1);
        CHECK_I64(most, up > down ? up : down);
        naive_layer(&r, NULL, NULL, ids, NULL, 1, 0, x, T, want);
        CHECK(error_of(y, want, T * H) <= 1e-5);
        free(x), free(y), free(want);
        free_set(&r);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Up to four small panels of 32 columns are put together for speed, and more of them only while a stage has 32
 * tasks. */
TEST(stages_keep_tasks_for_many_threads)
{
    static const int cases[][3] = {{1, 128, 14}, {3, 512, 14}, {31, 40, 13}, {41, 128, 14}, {70, 128, 13},
                                   {1, 4200, 14}, {1, 4200, 100}, {3, 2000, 97}, {1, 1000, 200}}; /* E, I, T each */
    uint64_t s = t_seed + 62;
    for (int i = 0; i < 9; i++) {
        int E = cases[i][0], H = 7, I = cases[i][1], T = E * cases[i][2];
        int64_t most = 1, panels = E * (int64_t)((I + 31) / 32), tasks = (panels + 3) / 4;
        set r = make_set(E, H, I, MOE_EP_F32, MOE_EP_GATE_SEPARATE, act_of(0), 0, 0, 0, &s);
        float *x = random_x(T * H, &s), *y = t_alloc(sizeof(float) * (size_t)(T * H));
        double *want = t_alloc(sizeof(double) * (size_t)(T * H));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)T);
        moe_ep_forward_desc d;
        for (int t = 0; t < T; t++) ids[t] = t % E;
        memset(&d, 0, sizeof d);
        d.experts = &r.w, d.top_k = 1, d.ids = ids, d.parallel_for = most_tasks, d.parallel_user = &most;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, NULL), MOE_EP_OK);
        CHECK(most >= (tasks < 32 ? tasks : 32) && most < panels);
        naive_layer(&r, NULL, NULL, ids, NULL, 1, 0, x, T, want);
        CHECK(error_of(y, want, T * H) <= 1e-5);
        free(x), free(y), free(want), free(ids);
        free_set(&r);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(experts_alone_checks_its_groups)
{
    good g;
    float ry[24], before[24];
    int64_t start[4] = {0, 1, 1, 4}, bad_first[4] = {1, 1, 1, 4}, falls[4] = {0, 3, 2, 4};
    int32_t experts[3] = {4, 0, 4}, wrong[3] = {4, 5, 4};
    moe_ep_error err;
    good_init(&g);
    memset(ry, 0x33, sizeof ry);
    memcpy(before, ry, sizeof ry);
    CHECK_I64(moe_ep_experts(NULL, g.x, start, 3, experts, ry, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_experts(&g.d, NULL, start, 3, experts, ry, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_experts(&g.d, g.x, NULL, 3, experts, ry, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_experts(&g.d, g.x, start, 0, experts, ry, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_experts(&g.d, g.x, start, 6, NULL, ry, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_experts(&g.d, g.x, bad_first, 3, experts, ry, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 0);
    CHECK_I64(moe_ep_experts(&g.d, g.x, falls, 3, experts, ry, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_experts(&g.d, g.x, start, 3, wrong, ry, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 1);
    wrong[1] = 0, wrong[2] = -1;
    CHECK_I64(moe_ep_experts(&g.d, g.x, start, 3, wrong, ry, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 2);
    g.d.isa_max = (moe_ep_isa)9;
    CHECK_I64(moe_ep_experts(&g.d, g.x, start, 3, experts, ry, NULL, &err), MOE_EP_ERR_RANGE);
    g.d.isa_max = MOE_EP_ISA_AUTO;
    int64_t nothing[3] = {0, 0, 0}, all[7] = {0, 1, 1, 2, 3, 4, 4};
    CHECK_I64(moe_ep_experts(&g.d, g.x, all, 6, NULL, ry, NULL, &err), MOE_EP_ERR_SIZE);
    error_is(&err, "num_groups", -1, 6.0);
    CHECK_I64(moe_ep_experts(&g.d, g.x, nothing, 2, NULL, ry, NULL, &err), MOE_EP_OK); /* no rows: nothing to do */
    float infinite[24];
    memcpy(infinite, g.x, sizeof infinite);
    infinite[13] = -(float)INFINITY;
    CHECK_I64(moe_ep_experts(&g.d, infinite, start, 3, experts, ry, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_STR(err.arg, "rx");
    CHECK_I64(err.index, 13);
    CHECK(memcmp(before, ry, sizeof ry) == 0);
    CHECK_I64(moe_ep_experts(&g.d, g.x, start, 3, experts, ry, NULL, &err), MOE_EP_OK);
    for (int row = 0; row < 4; row++) { /* both groups use expert 4 */
        double in[6], want[6] = {0};
        for (int h = 0; h < 6; h++) in[h] = (double)g.x[row * 6 + h];
        naive_expert(&g.r, 4, in, 1.0, want);
        CHECK(error_of(ry + row * 6, want, 6) <= 1e-5);
    }
    CHECK_I64(moe_ep_experts(&g.d, g.x, all, 5, NULL, ry, NULL, &err), MOE_EP_OK); /* group g has expert g */
    for (int e = 0, row = 0; e < 5; e++) {
        for (; row < all[e + 1]; row++) {
            double in[6], want[6] = {0};
            for (int h = 0; h < 6; h++) in[h] = (double)g.x[row * 6 + h];
            naive_expert(&g.r, e, in, 1.0, want);
            CHECK(error_of(ry + row * 6, want, 6) <= 1e-5);
        }
    }
    free_set(&g.r);
    free_set(&g.sh);
}

TEST(instruction_sets_have_names)
{
    moe_ep_isa best = moe_ep_isa_best();
    CHECK(best >= MOE_EP_ISA_PORTABLE && best <= MOE_EP_ISA_NEON);
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_AUTO), "auto");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_PORTABLE), "portable");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_AVX2), "avx2");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_AVX512), "avx512");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_NEON), "neon");
    moe_ep_weights w;
    moe_ep_forward_desc d;
    memset(&w, 0, sizeof w);
    memset(&d, 0, sizeof d);
    d.experts = &w; /* the unit of each set, and never a better one than the machine has */
    for (int isa = 1; isa <= 4; isa++) { /* one of another processor is no limit */
        const char *want = moe_ep_isa_name(isa < (int)best ? (moe_ep_isa)isa : best);
        if (best == MOE_EP_ISA_NEON && isa > 1) want = "neon";
        d.isa_max = (moe_ep_isa)isa;
        w.dtype = MOE_EP_F16;
        CHECK_STR(moe_ep_forward_unit(&d), want);
        w.dtype = MOE_EP_F32; /* AVX2 without half floats is enough for the others */
        if (best != MOE_EP_ISA_PORTABLE) CHECK_STR(moe_ep_forward_unit(&d), want);
        else if (isa == 1) CHECK_STR(moe_ep_forward_unit(&d), "portable");
        else CHECK(strcmp(moe_ep_forward_unit(&d), "portable") == 0 || strcmp(moe_ep_forward_unit(&d), "avx2") == 0);
    }
    printf("    this machine: %s; largest error with bf16 products so far %.1e of max |y|\n", moe_ep_isa_name(best),
           worst_bf16);
}

#ifdef MOE_EPI_FW_EMULATE_AMX
TEST(the_matrix_unit_is_used_and_can_be_refused)
{
    uint64_t s = t_seed + 40;
    set r = make_set(2, 70, 50, MOE_EP_BF16, MOE_EP_GATE_INTERLEAVED, act_of(0), 1, 1, 0, &s);
    float *x = random_x(40 * 70, &s), a[40 * 70], b[40 * 70], w[40];
    int32_t ids[40];
    moe_ep_forward_desc d;
    long before = products_done;
    random_ids(ids, w, 40, 1, 2, 0, &s);
    memset(&d, 0, sizeof d);
    d.experts = &r.w, d.top_k = 1, d.ids = ids, d.choice_weights = w, d.products = MOE_EP_PRODUCTS_BF16;
    CHECK_STR(moe_ep_forward_unit(&d), "amx-bf16");
    CHECK_I64(moe_ep_forward(&d, x, 40, a, NULL, NULL), MOE_EP_OK);
    CHECK(products_done > before);
    before = products_done;
    refuse = 1;
    CHECK_I64(moe_ep_forward(&d, x, 40, a, NULL, NULL), MOE_EP_OK);
    d.products = MOE_EP_PRODUCTS_BF16_VECTOR;
    CHECK_I64(moe_ep_forward(&d, x, 40, b, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(a, b, sizeof a) == 0);
    refuse = 0;
    CHECK_I64(moe_ep_forward(&d, x, 40, b, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(a, b, sizeof a) == 0);
    CHECK_I64(products_done, before);
    free(x);
    free_set(&r);
}
#endif

TEST(errors_show_the_number_that_is_wrong)
{
    enum { T = 5000 };
    static const int32_t table[4500];
    static float x[T], y[T];
    const float gate[2] = {0.1f, 0.2f}, ones[2] = {1, 1};
    float w[4] = {1, 2, NAN, 4}, scale[2];
    int8_t q[4];
    int64_t rows;
    moe_ep_weights weights;
    moe_ep_forward_desc d;
    moe_ep_router r = moe_ep_router_hash(2, 1);
    moe_ep_error err;
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, 2, 2, 0, q, scale, &err), MOE_EP_ERR_NAN);
    CHECK_I64(err.index, 2);
    CHECK_NAN(err.value);
    w[2] = -INFINITY;
    CHECK_I64(moe_ep_quantize_rows(w, MOE_EP_F32, 2, 2, 0, q, scale, &err), MOE_EP_ERR_NAN);
    CHECK(err.value < -1e300);
    /* more tokens than are taken at a time: the table is as long as the caller says, not what is left of it */
    memset(&weights, 0, sizeof weights);
    memset(&d, 0, sizeof d);
    weights.num_experts = 2;
    weights.hidden = weights.inter = 1;
    weights.gate = weights.up = weights.down = ones;
    r.table = table;
    d.experts = &weights;
    d.router = &r;
    d.gate = gate;
    for (rows = 4500; rows >= 500; rows = rows == 4500 ? 4096 : rows == 4096 ? 500 : 0) {
        r.table_rows = rows;
        y[0] = 7;
        CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, &err), MOE_EP_ERR_SIZE);
        CHECK(strstr(err.arg, "table_rows") != NULL);
        CHECK_NEAR(err.value, (double)rows, 0, 0);
        CHECK_NEAR(y[0], 7, 0, 0);
    }
    r.table_rows = 0;
    CHECK_I64(moe_ep_forward(&d, x, T, y, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "table_rows");
    CHECK_I64(err.index, -1);
    CHECK_NEAR(err.value, 0, 0, 0);
}

/* One neuron: what is left of a gate far below zero counts by itself, not beside a larger output. */
TEST(gates_far_below_zero)
{
    static const float far[] = {-0.5f, -1.0f, -2.0f, -3.0f, -4.0f, -5.0f, -6.0f, -20.0f, -30.0f, -50.0f};
    for (int i = 0; i < 10 * 7; i++) {
        float one = 1.0f, x = far[i / 7], y = 0.0f;
        int32_t id = 0;
        moe_ep_weights w;
        moe_ep_forward_desc d;
        memset(&w, 0, sizeof w), memset(&d, 0, sizeof d);
        w.num_experts = w.hidden = w.inter = 1;
        w.activation.kind = (moe_ep_activation_kind)(i % 7);
        w.activation.up_offset = x * -1.0f + 1.0f; /* u + offset = 1 */
        w.gate = w.down = &one;
        if (gated(w.activation.kind)) w.up = &one;
        d.experts = &w, d.top_k = 1, d.ids = &id;
        for (int isa = 1; isa <= best_isa(); isa++) {
            double want = naive_act(&w.activation, (double)x, (double)x);
            d.isa_max = (moe_ep_isa)isa;
            CHECK_I64(moe_ep_forward(&d, &x, 1, &y, NULL, NULL), MOE_EP_OK);
            if (fabs(want) < 1e-37) CHECK(fabsf(y) < 1e-36f);
            else CHECK_NEAR(y, want, 3e-5, 0);
            CHECK_NEAR(moe_ep_activate(&w.activation, (double)x, (double)x), want, 1e-12, 0);
        }
    }
}

/* Rows with a gap behind each, experts one behind the other: the expert strides follow from those of the rows. */
TEST(row_strides_alone)
{
    uint64_t s = t_seed + 77;
    enum { E = 3, H = 5, I = 4, GAP = 3 };
    static float gate[E * I * 2 * (H + GAP)], up[E * I * (H + GAP)], down[E * H * (I + GAP)];
    static float wide[3][E * I * 2 * (H + GAP) + E * H * (I + GAP)];
    for (int layout = 0; layout < 4; layout++) {
        float x[6 * H], y[6 * H], again[6 * H], cw[12];
        int32_t ids[12];
        int rows = layout == 0 ? I : 2 * I;
        moe_ep_weights w;
        moe_ep_forward_desc d;
        memset(&w, 0, sizeof w), memset(&d, 0, sizeof d);
        for (int i = 0; i < E * rows * H; i++) gate[i] = (float)draw(&s);
        for (int i = 0; i < E * I * H; i++) up[i] = (float)draw(&s), down[i] = (float)draw(&s);
        for (int i = 0; i < 6 * H; i++) x[i] = (float)draw(&s);
        for (int i = 0; i < 12; i++) ids[i] = (i + i / 2) % E, cw[i] = (float)draw(&s);
        for (int i = 0; i < E * rows * (H + GAP); i++)
            wide[0][i] = i % (H + GAP) < H ? gate[i / (H + GAP) * H + i % (H + GAP)] : 1e9f;
        for (int i = 0; i < E * I * (H + GAP); i++)
            wide[1][i] = i % (H + GAP) < H ? up[i / (H + GAP) * H + i % (H + GAP)] : 1e9f;
        for (int i = 0; i < E * H * (I + GAP); i++)
            wide[2][i] = i % (I + GAP) < I ? down[i / (I + GAP) * I + i % (I + GAP)] : 1e9f;
        w.num_experts = E, w.hidden = H, w.inter = I, w.layout = (moe_ep_gate_layout)layout;
        w.gate = gate, w.up = layout == 0 ? up : NULL, w.down = down;
        d.experts = &w, d.top_k = 2, d.ids = ids, d.choice_weights = cw;
        CHECK_I64(moe_ep_forward(&d, x, 6, y, NULL, NULL), MOE_EP_OK);
        w.gate = wide[0], w.up = layout == 0 ? wide[1] : NULL, w.down = wide[2];
        w.gate_row_stride = H + GAP, w.up_row_stride = layout == 0 ? H + GAP : 0, w.down_row_stride = I + GAP;
        CHECK_I64(moe_ep_forward(&d, x, 6, again, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(y, again, sizeof y) == 0);
    }
}

/* The largest floats stay the largest bf16 where activations are rounded, and do not become infinite. */
TEST(largest_floats_through_bf16_products)
{
    enum { H = 70 };
    static uint16_t gate[H], up[H], down[H];
    static float x[H], y[H];
    static const uint32_t bits[] = {0x7f7f7fffu, 0x7f7f8000u, 0x7f7f8001u, 0x7f7fffffu};
    float cw = 1.0f;
    int32_t id = 0;
    moe_ep_weights w;
    moe_ep_forward_desc d;
    memset(&w, 0, sizeof w), memset(&d, 0, sizeof d);
    for (int h = 0; h < H; h++) {
        gate[h] = moe_ep_bf16_from_f32(ldexpf(1.0f, -126));
        up[h] = moe_ep_bf16_from_f32(h % 2 ? -ldexpf(1.0f, -126) : 0.0f);
        down[h] = moe_ep_bf16_from_f32(ldexpf(1.0f, -9));
    }
    w.num_experts = 1, w.hidden = H, w.inter = 1, w.dtype = MOE_EP_BF16;
    w.gate = gate, w.up = up, w.down = down;
    d.experts = &w, d.top_k = 1, d.ids = &id, d.choice_weights = &cw;
    for (int i = 0; i < 8; i++) {
        float one;
        memcpy(&one, &bits[i / 2], sizeof one);
        for (int h = 0; h < H; h++) x[h] = i % 2 ? -one : one;
        for (int p = 0; p <= 2; p++)
            for (int isa = 1; isa <= best_isa(); isa++) {
                double v = (i % 2 ? -1.0 : 1.0) * ldexp(1.0, 128 - 126) * (1.0 - 0x1p-8), want;
                d.products = (moe_ep_products)p, d.isa_max = (moe_ep_isa)isa;
                want = H * v / (1.0 + exp(-H * v)) * (-H / 2 * v) / 512.0;
                CHECK_I64(moe_ep_forward(&d, x, 1, y, NULL, NULL), MOE_EP_OK);
                CHECK_NEAR(y[0], want, 2e-2, 1e-6);
                CHECK_NEAR(y[H - 1], want, 2e-2, 1e-6);
            }
    }
}

/* moe_ep_experts writes what leaves the range of float and says so, as the layer does. */
TEST(experts_that_overflow)
{
    float big = 3e38f, small = 1.0f, rx[3] = {1.0f, 2.0f, 3e38f}, ry[3];
    int64_t start[3] = {0, 2, 3};
    moe_ep_weights w;
    moe_ep_forward_desc d;
    moe_ep_error err;
    memset(&w, 0, sizeof w), memset(&d, 0, sizeof d);
    w.num_experts = 2, w.hidden = w.inter = 1, w.activation.kind = MOE_EP_ACT_RELU2;
    const void *gates[2], *downs[2];
    gates[0] = downs[0] = downs[1] = &small, gates[1] = &big;
    w.gate_of = gates, w.down_of = downs;
    d.experts = &w;
    CHECK_I64(moe_ep_experts(&d, rx, start, 2, NULL, ry, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK(strcmp(err.arg, "ry") == 0 && err.index == 2);
    CHECK_NEAR(ry[0], 1.0, 1e-6, 0);
    CHECK_NEAR(ry[1], 4.0, 1e-6, 0);
    CHECK(bits_of(ry[2]) == 0x7f800000u);
    CHECK_I64(moe_ep_experts(&d, rx, start, 1, NULL, ry, NULL, &err), MOE_EP_OK);
}

/* The sum over the choices of a token under the portable kernels: rounded after each product, in choice order. */
TEST(portable_sums_over_choices)
{
    uint64_t s = t_seed + 78;
    good g;
    int differ = 0;
    good_init(&g);
    g.d.shared = NULL, g.d.shared_gate = NULL, g.d.isa_max = MOE_EP_ISA_PORTABLE;
    for (int i = 0; i < 8; i++) g.w[i] = (float)(0.1 + fabs(draw(&s)));
    CHECK_I64(moe_ep_forward(&g.d, g.x, 4, g.y, NULL, NULL), MOE_EP_OK);
    for (int t = 0; t < 4; t++) {
        float rx[12], ry[12];
        int32_t of[2] = {g.ids[t * 2], g.ids[t * 2 + 1]};
        int64_t start[3] = {0, 1, 2};
        memcpy(rx, g.x + t * 6, sizeof rx / 2), memcpy(rx + 6, g.x + t * 6, sizeof rx / 2);
        CHECK_I64(moe_ep_experts(&g.d, rx, start, 2, of, ry, NULL, NULL), MOE_EP_OK);
        for (int h = 0; h < 6; h++) {
            volatile float a = g.w[t * 2] * ry[h], b = g.w[t * 2 + 1] * ry[6 + h], sum = a + b;
#if defined(__clang__) && defined(__FMA__) /* joins products and sums where it may, those of this test, too */
            CHECK_NEAR(g.y[t * 6 + h], sum, 1e-5, 1e-6);
#else
            CHECK(bits_of(g.y[t * 6 + h]) == bits_of(sum));
#endif
            differ += bits_of((float)((double)a + (double)g.w[t * 2 + 1] * (double)ry[6 + h])) != bits_of(sum);
        }
    }
    CHECK(differ > 0); /* a fused product would have been seen */
    free_set(&g.r);
    free_set(&g.sh);
}

/* Whatever the router itself may use, the layer's limit holds for it, and nothing changes. */
TEST(router_under_the_limit_of_the_layer)
{
    good g;
    float first[24];
    good_init(&g);
    g.d.router = &g.router, g.d.gate = g.gate, g.d.ids = NULL, g.d.choice_weights = NULL, g.d.top_k = 0;
    for (int isa = 0; isa <= best_isa(); isa++)
        for (int own = 0; own <= best_isa(); own++) {
            g.d.isa_max = (moe_ep_isa)isa, g.router.isa_max = (moe_ep_isa)own;
            CHECK_I64(moe_ep_forward(&g.d, g.x, 4, g.y, NULL, NULL), MOE_EP_OK);
            if (own == 0) memcpy(first, g.y, sizeof first);
            CHECK(memcmp(first, g.y, sizeof first) == 0);
        }
    free_set(&g.r);
    free_set(&g.sh);
}

T_MAIN
