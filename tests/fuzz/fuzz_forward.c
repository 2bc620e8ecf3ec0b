/* tests/fuzz/fuzz_forward.c - sections 9 and 10: the expert forward against plain loops, and over ranks
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

#define ROUND 1e-6 /* of a sum of a few dozen float32, relative to the sum of absolute values */

static double activation(const moe_ep_activation *a, double g, double u) { return moe_ep_activate(a, g, u); }
static float bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Small functions of the section: conversions, int8 rows. */
static void forward_parts(void)
{
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    int rows = fz_int(0, 4), cols = fz_grow(fz_int(1, 20), 200);
    moe_ep_dtype type = (moe_ep_dtype)(fz_chance(.05) ? fz_bad_i32() : fz_int(0, 1));
    float *w = fz_in(4 * (size_t)(rows * cols));
    int8_t *q = fz_out((size_t)(rows * cols));
    float *scale = fz_out(4 * (size_t)rows);
    for (int i = 0; i < rows * cols; i++) w[i] = fz_chance(.002) ? fz_bad_float() : (float)(fz_unit() - 0.5);
    fz_seal();
    fz_where = "quantize_rows";
    s = moe_ep_quantize_rows(w, type, rows, cols, fz_chance(.9) ? 0 : cols, q, scale, &e);
    fz_error(s, &e);
    fz_untouched(s);
    for (int i = 0; s == 0 && type == 0 && i < rows * cols; i++) {
        double back = (double)q[i] * (double)scale[i / cols];
        if (q[i] == -128 || fz_wild(scale[i / cols])) fz_fail("%d with a scale of %g", q[i], scale[i / cols]);
        if (!fz_extreme && fabs(back - w[i]) > 0.501 * scale[i / cols]) fz_fail("%g became %g", w[i], back);
    }
    fz_where = "conversions";
    for (int i = 0; i < 8; i++) {
        uint16_t h = (uint16_t)fz_bits(2), b = (uint16_t)fz_bits(2);
        float x = moe_ep_f32_from_f16(h), y = moe_ep_f32_from_bf16(b), any = bits((uint32_t)fz_bits(4));
        if (!isnan(x) && moe_ep_f16_from_f32(x) != h) fz_fail("f16 %04x -> %g -> %04x", h, x, moe_ep_f16_from_f32(x));
        if (!isnan(y) && moe_ep_bf16_from_f32(y) != b)
            fz_fail("bf16 %04x -> %g -> %04x", b, y, moe_ep_bf16_from_f32(y));
        if (isnan(any) != isnan(moe_ep_f32_from_bf16(moe_ep_bf16_from_f32(any)))) fz_fail("NaN or not: %g", any);
        if (isnan(any) != isnan(moe_ep_f32_from_f16(moe_ep_f16_from_f32(any)))) fz_fail("NaN or not: %g", any);
    }
    fz_release();
}

static void forward_case(void)
{
    if (fz_seldom(16)) {
        forward_parts();
        return;
    }
    int E = fz_int(1, 8), K = fz_int(1, E < 4 ? E : 4), H = fz_grow(fz_int(1, 9), 80), I = fz_grow(fz_int(1, 9), 80);
    int64_t T = fz_grow(fz_int(0, 12), 40);
    if (fz_seldom(4) && T > 2) T = T % 3; /* the check by plain loops takes most of the time */
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    moe_ep_weights w;
    memset(&w, 0, sizeof w);
    w.num_experts = E;
    w.hidden = H;
    w.inter = I;
    w.activation.kind = fz_int(0, 6);
    w.layout = w.activation.kind <= 2 ? fz_int(0, 3) : 0;
    int fused = w.layout != 0;
    int gated = w.activation.kind <= 2;
    float *g = fz_in(4 * E * I * H * 2), *u = fz_in(4 * E * I * H), *d = fz_in(4 * E * I * H),
          *b1 = fz_in(4 * E * I * 2), *b2 = fz_in(4 * E * I), *b3 = fz_in(4 * E * H);
    for (int i = 0; i < E * I * H * 2; i++) g[i] = fz_unit() - .5;
    for (int i = 0; i < E * I * H; i++) {
        u[i] = fz_unit() - .5;
        d[i] = fz_unit() - .5;
    }
    for (int i = 0; i < E * I * 2; i++) b1[i] = fz_unit() - .5;
    for (int i = 0; i < E * I; i++) b2[i] = fz_unit() - .5;
    for (int i = 0; i < E * H; i++) b3[i] = fz_unit() - .5;
    w.gate = g;
    w.up = gated && !fused ? u : NULL;
    w.down = d;
    if (fz_chance(.5)) w.gate_bias = b1;
    if (fz_chance(.5) && w.up) w.up_bias = b2;
    if (fz_chance(.5)) w.down_bias = b3;
    if (gated && fz_seldom(16)) w.activation = moe_ep_activation_gpt_oss();
    if (fz_chance(.3)) w.activation.alpha = 1.702f;
    if (fz_chance(.3)) w.activation.limit = .3f;
    if (fz_chance(.3) && gated) w.activation.up_offset = 1;
    if (fz_chance(.05)) w.activation.limit = fz_bad_float();
    if (fz_chance(.05)) w.activation.kind = fz_bad_i32();
    moe_ep_forward_desc f;
    memset(&f, 0, sizeof f);
    f.experts = &w;
    f.top_k = K;
    int nn = f.num_null = fz_chance(.2) ? fz_int(1, 2) : 0;
    int32_t *ids = fz_in(4 * T * K);
    float *cw = fz_in(4 * T * K);
    for (int i = 0; i < T * K; i++) {
        ids[i] = fz_chance(.1) ? -1 : fz_int(0, E + nn - 1);
        cw[i] = fz_chance(.003) ? fz_bad_float() : fz_unit();
        if (fz_chance(.002)) ids[i] = fz_bad_i32();
    }
    f.ids = ids;
    f.choice_weights = fz_chance(.8) ? cw : NULL;
    f.weight_on_input = fz_chance(.3);
    moe_ep_weights sh = w;
    if (fz_chance(.3)) {
        sh.num_experts = fz_int(1, E);
        f.shared = &sh;
    }
    float *sg = fz_in(4 * H);
    for (int i = 0; i < H; i++) sg[i] = fz_unit() - .5;
    if (f.shared && fz_chance(.5)) f.shared_gate = sg;
    float *x = fz_in(4 * T * H);
    for (int i = 0; i < T * H; i++) x[i] = fz_chance(.001) ? fz_bad_float() : fz_unit() * 2 - 1;
    float *y = fz_out(4 * T * H);
    fz_seal();
    fz_where = "forward";
    s = moe_ep_forward(&f, x, T, y, fz_scratch(), &e);
    fz_scratch_done();
    fz_error(s, &e);
    if (s == MOE_EP_ERR_OVERFLOW && strcmp(e.arg, "y") == 0) { /* y is written; the first that is no number is named */
        if (!fz_extreme || e.index < 0 || e.index >= T * H || isfinite(y[e.index]))
            fz_fail("overflow at %lld", (long long)e.index);
        for (int64_t i = 0; i < e.index; i++)
            if (!isfinite(y[i]))
                fz_fail("y[%lld] is %g before the one named, %lld", (long long)i, y[i], (long long)e.index);
    } else
        fz_untouched(s);
    for (int64_t i = 0; s == 0 && i < T * H; i++)
        if (!isfinite(y[i]) || (!fz_extreme && fz_wild(y[i]))) fz_fail("y %g of kind %d", y[i], w.activation.kind);
    if (s == 0 && !fz_extreme)
        for (int t = 0; t < T; t++)
            for (int h = 0; h < H; h++) {
                double v = 0, slack = 1e-6; /* slack: what float32 may add up to on the way here */
                for (int k = 0; k < K + (f.shared ? sh.num_experts : 0); k++) {
                    int id;
                    double wt = 1, win = 1;
                    const moe_ep_weights *W = &w;
                    if (k < K) {
                        id = ids[t * K + k];
                        if (id < 0) continue;
                        wt = f.choice_weights ? cw[t * K + k] : 1;
                        if (id >= E) {
                            v += wt * x[t * H + h];
                            slack += ROUND * fabs(wt * x[t * H + h]);
                            continue;
                        }
                        if (f.weight_on_input) {
                            win = wt;
                            wt = 1;
                        }
                    } else {
                        id = k - K;
                        W = &sh;
                        if (f.shared_gate) {
                            double z = 0;
                            for (int j = 0; j < H; j++) z += sg[j] * x[t * H + j];
                            wt = 1 / (1 + exp(-z));
                        }
                    }
                    double o = W->down_bias ? b3[id * H + h] : 0, off = ROUND * fabs(o);
                    for (int i = 0; i < I; i++) {
                        double a = 0, b = 0, da = 0, db = 0; /* sums, and of absolute values: they cancel */
                        int gr, ur;
                        if (!fused) {
                            gr = i;
                            ur = i;
                        } else if (w.layout == 1) {
                            gr = i;
                            ur = I + i;
                        } else if (w.layout == 2) {
                            gr = I + i;
                            ur = i;
                        } else {
                            gr = 2 * i;
                            ur = 2 * i + 1;
                        }
                        int R = fused ? 2 * I : I;
                        for (int j = 0; j < H; j++) {
                            double xx = x[t * H + j] * win;
                            double one = g[((size_t)id * R + gr) * H + j] * xx, two = 0;
                            if (gated)
                                two = (fused ? g[((size_t)id * R + ur) * H + j] : u[((size_t)id * I + i) * H + j]) * xx;
                            a += one;
                            b += two;
                            da += fabs(one);
                            db += fabs(two);
                        }
                        if (W->gate_bias) {
                            a += b1[id * R + gr];
                            da += fabs(b1[id * R + gr]);
                            if (fused) b += b1[id * R + ur];
                            if (fused) db += fabs(b1[id * R + ur]);
                        }
                        if (W->up_bias) b += b2[id * I + i];
                        if (W->up_bias) db += fabs(b2[id * I + i]);
                        double act = activation(&w.activation, a, b), most = 0;
                        for (int c = 0; c < 4; c++) {
                            double to = activation(&w.activation, a + (c & 1 ? da : -da) * ROUND,
                                                   b + (c & 2 ? db : -db) * ROUND);
                            most = fmax(most, fabs(to - act));
                        }
                        o += d[((size_t)id * H + h) * I + i] * act;
                        off += fabs(d[((size_t)id * H + h) * I + i]) * (most + ROUND * fabs(act));
                    }
                    v += wt * o;
                    slack += fabs(wt) * (off + ROUND * fabs(o));
                }
                if (fabs(v - y[t * H + h]) > slack)
                    fz_fail("y %g want %g +- %g kind %d layout %d H %d I %d limit %g on input %d shared %d null %d",
                            y[t * H + h], v, slack, w.activation.kind, w.layout, H, I, w.activation.limit,
                            f.weight_on_input, f.shared != NULL, f.num_null);
            }
    if (!moe_ep_forward_unit(&f)) fz_fail("no unit");
    if (s == 0 && fz_seldom(4) && T > 0) { /* rows grouped by expert: one group of all tokens */
        int64_t *start = fz_in(16);
        int32_t *expert = fz_in(4);
        float *ry = fz_out(4 * T * H);
        start[0] = 0;
        start[1] = T;
        *expert = fz_chance(.05) ? fz_bad_i32() : fz_int(0, E - 1);
        fz_where = "experts";
        s = moe_ep_experts(&f, x, start, 1, expert, ry, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        if (s == 0 && !fz_extreme)
            for (int i = 0; i < T * H; i++)
                if (fz_wild(ry[i])) fz_fail("row value %g", ry[i]);
        s = MOE_EP_OK;
    }
    if (s == 0) {
        fz_where = "forward_ranks";
        moe_ep_shape sp;
        memset(&sp, 0, sizeof sp);
        sp.num_devices = fz_int(1, 4);
        sp.num_slots = E + fz_int(0, 4);
        size_t pb = moe_ep_placement_bytes(1, E, &sp);
        unsigned char *m = fz_work(pb);
        moe_ep_placement P;
        moe_ep_placement_init(&P, 1, E, &sp, m, pb, &e);
        for (int i = 0; i < P.num_slots; i++)
            P.slot_expert[i] = i < E ? i : fz_chance(.5) ? -1 : fz_int(0, E - 1);
        for (int i = P.num_slots - 1; i > 0; i--) {
            int j = fz_int(0, i);
            int t = P.slot_expert[i];
            P.slot_expert[i] = P.slot_expert[j];
            P.slot_expert[j] = t;
        }
        moe_ep_placement_index(&P, &e);
        float *y2 = fz_out(4 * T * H);
        moe_ep_ranks_result rr;
        int64_t tpr[4];
        int64_t left = T;
        for (int i = 0; i < sp.num_devices; i++) {
            tpr[i] = i == sp.num_devices - 1 ? left : fz_int(0, (int)left);
            left -= tpr[i];
        }
        if (fz_chance(.03)) tpr[0] = fz_bad_i64();
        float *yy = (float *)(void *)fz_outputs[0].memory;
        s = moe_ep_forward_ranks(&f, &P, 0, fz_chance(.5) ? tpr : NULL, NULL, x, T, y2, &rr, fz_scratch(),
                                 &e);
        fz_scratch_done();
        fz_error(s, &e);
        if (s == 0 && memcmp(yy, y2, 4 * T * H)) fz_fail("ranks differ from forward");
        if (s == 0) {
            int64_t a = 0, b = 0, c = 0;
            for (int i = 0; i < T * K; i++) {
                if (ids[i] < 0) b++;
                else if (ids[i] >= E) c++;
                else a++;
            }
            if (rr.rows != a || rr.skipped != b || rr.identity != c) fz_fail("counts");
        } else if (s != MOE_EP_ERR_SIZE && s != MOE_EP_ERR_SCRATCH && s != MOE_EP_ERR_NEGATIVE && !fz_extreme)
            fz_fail("ranks status %d %s %s", s, e.arg, e.what);
    }
}

FUZZ_TARGET(forward)
