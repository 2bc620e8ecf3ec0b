/* tests/test_hooks.c - section 10: plans, hooks and in-process ranks against the layer on one device.
 * SPDX-License-Identifier: MIT */
#include "t.h"
#include "moe_ep.h"
#include "examples/threads.h"

#include <sys/mman.h>
#include <unistd.h>

/* ---- memory of a caller: full of rubbish, with a fence behind it that nobody may have written ---- */

typedef struct counter {
    int allocs, live, fail_at;
    size_t bytes[16]; /* of the first blocks */
} counter;
enum { FENCE = 256 };

static void *count_alloc(void *user, size_t bytes)
{
    counter *c = user;
    if (++c->allocs == c->fail_at || bytes > (size_t)1 << 30) return NULL;
    if (c->allocs <= 16) c->bytes[c->allocs - 1] = bytes;
    c->live++;
    unsigned char *p = malloc(bytes + FENCE);
    if (p) memset(p, 0x5b, bytes + FENCE);
    return p;
}
static void count_free(void *user, void *p, size_t bytes)
{
    const unsigned char *fence = (const unsigned char *)p + bytes;
    for (int i = 0; i < FENCE; i++) CHECK(fence[i] == 0x5b);
    ((counter *)user)->live--;
    memset(p, 0xdd, bytes);
    free(p);
}

/* ---- a small layer ---- */

typedef struct model {
    int E, H, I;
    float *gate, *up, *down, *bias, *sg[4];
    moe_ep_weights w, shared;
} model;

static float draw(uint64_t *s) { return (float)(2.0 * t_unit(s) - 1.0); }

static float *floats(int64_t n, uint64_t *s)
{
    float *v = t_alloc(sizeof(float) * (size_t)(n > 0 ? n : 1));
    for (int64_t i = 0; i < n; i++) v[i] = draw(s);
    return v;
}

static model make_model(int E, int H, int I, uint64_t *s)
{
    model m;
    memset(&m, 0, sizeof m);
    m.E = E, m.H = H, m.I = I;
    m.gate = floats((int64_t)E * I * H, s);
    m.up = floats((int64_t)E * I * H, s);
    m.down = floats((int64_t)E * I * H, s);
    m.bias = floats((int64_t)E * H, s);
    m.w.num_experts = E, m.w.hidden = H, m.w.inter = I;
    m.w.gate = m.gate, m.w.up = m.up, m.w.down = m.down, m.w.down_bias = m.bias;
    m.sg[0] = floats((int64_t)3 * H, s);
    m.sg[1] = floats((int64_t)3 * H, s);
    m.sg[2] = floats((int64_t)3 * H, s);
    m.sg[3] = floats(H, s);
    m.shared.num_experts = 1, m.shared.hidden = H, m.shared.inter = 3;
    m.shared.gate = m.sg[0], m.shared.up = m.sg[1], m.shared.down = m.sg[2];
    return m;
}

static void free_model(model *m)
{
    free(m->gate), free(m->up), free(m->down), free(m->bias);
    for (int i = 0; i < 4; i++) free(m->sg[i]);
}

/* Everything an error says but its words; without an error "", -1 and 0. */
static void error_is(const moe_ep_error *err, const char *arg, int64_t index, double value)
{
    CHECK_STR(err->arg, arg);
    CHECK_I64(err->index, index);
    CHECK_NEAR(err->value, value, 0, 0);
}

static void draw_ids(int32_t *ids, float *w, int64_t T, int K, int E, int holes, uint64_t *s)
{
    for (int64_t t = 0; t < T; t++) {
        for (int k = 0; k < K; k++) {
            int again;
            do {
                ids[t * K + k] = (int32_t)t_below(s, E);
                again = 0;
                for (int j = 0; j < k; j++) again |= ids[t * K + j] == ids[t * K + k];
            } while (again);
            w[t * K + k] = (float)(0.1 + t_unit(s));
        }
    }
    for (int64_t i = 0; holes && i < T * K; i++)
        if (t_below(s, 6) == 0) ids[i] = -1;
}

/* ---- placements by hand: slots dealt evenly, contents by kind ---- */

enum { CONTIGUOUS, ROUND_ROBIN, REPLICATED, GAPS, KINDS };

typedef struct own_placement {
    moe_ep_placement p;
    void *mem;
} own_placement;

static own_placement make_placement(int kind, int E, int D, int P, uint64_t *s)
{
    own_placement o;
    moe_ep_shape shape;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = D;
    shape.num_slots = P;
    size_t bytes = moe_ep_placement_bytes(1, E, &shape);
    o.mem = t_alloc(bytes);
    moe_ep_error err;
    CHECK_I64(moe_ep_placement_init(&o.p, 1, E, &shape, o.mem, bytes, &err), MOE_EP_OK);
    for (int i = 0; i < P; i++) o.p.slot_expert[i] = -1;
    if (kind == ROUND_ROBIN) {
        int next[64];
        for (int d = 0; d < D; d++) next[d] = o.p.slot_start[d];
        for (int e = 0, d = 0; e < E; e++, d = (d + 1) % D) {
            while (next[d] == o.p.slot_start[d + 1]) d = (d + 1) % D;
            o.p.slot_expert[next[d]++] = e;
        }
    } else {
        for (int e = 0; e < E; e++) o.p.slot_expert[e] = e;
        for (int i = E; kind == REPLICATED && i < P; i++) o.p.slot_expert[i] = (int32_t)t_below(s, E);
        for (int i = P - 1; kind != CONTIGUOUS && i > 0; i--) { /* shuffled */
            int j = (int)t_below(s, i + 1);
            int32_t v = o.p.slot_expert[i];
            o.p.slot_expert[i] = o.p.slot_expert[j];
            o.p.slot_expert[j] = v;
        }
    }
    CHECK_I64(moe_ep_placement_index(&o.p, &err), MOE_EP_OK);
    return o;
}

static moe_ep_forward_desc desc_of(const model *m, int K, const int32_t *ids, const float *w)
{
    moe_ep_forward_desc d;
    memset(&d, 0, sizeof d);
    d.experts = &m->w;
    d.top_k = K;
    d.ids = ids;
    d.choice_weights = w;
    return d;
}

TEST(in_process_ranks_give_the_bits_of_one_device_under_every_placement)
{
    uint64_t s = t_seed;
    static const int ranks[] = {1, 2, 3, 4, 8};
    for (int i = 0; i < 5 * KINDS * 6; i++) {
        int D = ranks[i % 5], kind = (i / 5) % KINDS, E = D + 2 + (int)t_below(&s, 9), extra = (int)t_below(&s, 7);
        int P = kind == CONTIGUOUS || kind == ROUND_ROBIN ? E : E + extra, H = 1 + (int)t_below(&s, 40);
        int null = (int)t_below(&s, 4), K = 1 + (int)t_below(&s, 4);
        int64_t T = t_below(&s, 40), rows = 0, none = 0;
        model m = make_model(E, H, 1 + (int)t_below(&s, 40), &s);
        own_placement o = make_placement(kind, E, D, P, &s);
        float *x = floats(T * H, &s), *one = t_alloc(sizeof(float) * (size_t)(T * H + 1));
        float *many = t_alloc(sizeof(float) * (size_t)(T * H + 1)), *w = t_alloc(sizeof(float) * (size_t)(T * K + 1));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(T * K + 1));
        int64_t per_rank[8] = {0};
        moe_ep_ranks_result res;
        moe_ep_error err;
        draw_ids(ids, w, T, K, E + null, 1, &s);
        moe_ep_forward_desc d = desc_of(&m, K, ids, w);
        d.num_null = null;
        if (i & 1) d.shared = &m.shared;
        if (i & 2 && d.shared) d.shared_gate = m.sg[3];
        d.weight_on_input = i % 7 == 3;
        for (int64_t t = 0; t < T; t++) per_rank[t_below(&s, D)]++; /* uneven, some ranks empty */
        CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, &err), MOE_EP_OK);
        memset(&res, 0x77, sizeof res);
        int64_t *live = i % 3 ? per_rank : NULL;
        CLEARS(moe_ep_forward_ranks(&d, &o.p, 0, live, NULL, x, T, many, &res, NULL, &err));
        CHECK(memcmp(one, many, sizeof(float) * (size_t)(T * H)) == 0);
        for (int64_t j = 0; j < T * K; j++) rows += ids[j] >= 0 && ids[j] < E, none += ids[j] < 0;
        CHECK_I64(res.rows, rows);
        CHECK_I64(res.skipped, none);
        CHECK_I64(res.identity, T * K - rows - none);
        CHECK(res.rows_moved <= rows && res.rows_max <= rows && res.rows_max * D >= rows);
        if (D == 1) CHECK_I64(res.rows_moved, 0);
        free(x), free(one), free(many), free(w), free(ids), free(o.mem);
        free_model(&m);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Slots of all choices by a policy of section 6.  Local first has the rows' own devices. */
static moe_ep_status split_by(moe_ep_split_policy policy, const moe_ep_placement *p, const int32_t *ids, int64_t n,
                              int K,
                              const int64_t *tokens, uint64_t seed, int64_t *slot_rows, int32_t *slots)
{
    int E = p->num_experts, D = p->num_devices;
    int64_t *counts = t_alloc(sizeof(int64_t) * (size_t)(E * (D + 1))), *from = counts + E, at = 0;
    int32_t *device = t_alloc(sizeof(int32_t) * (size_t)(n + 1));
    moe_ep_split_desc split;
    moe_ep_status st;
    memset(counts, 0, sizeof(int64_t) * (size_t)(E * (D + 1)));
    for (int d = 0; d < D; d++)
        for (int64_t t = 0; t < tokens[d] * K; t++, at++) {
            device[at] = d;
            if (ids[at] < 0) continue;
            counts[ids[at]]++;
            from[d * E + ids[at]]++;
        }
    CHECK_I64(at, n);
    memset(&split, 0, sizeof split);
    split.policy = policy;
    split.seed = seed;
    split.source_counts = from;
    st = moe_ep_split(&split, p, 0, counts, slot_rows, NULL, NULL);
    if (st == MOE_EP_OK && policy == MOE_EP_SPLIT_LOCAL_FIRST)
        st = moe_ep_assign_slots_local(p, 0, ids, n, device, slot_rows, slots, NULL, NULL);
    else if (st == MOE_EP_OK)
        st = moe_ep_assign_slots(p, 0, ids, n, slot_rows, slots, NULL, NULL);
    free(counts), free(device);
    return st;
}

/* The same weights in another element type: rows of int8 with their scales, or 16-bit numbers. */
static void *retype(model *m, moe_ep_dtype dtype)
{
    int64_t n = (int64_t)m->E * m->I * m->H, rows = (int64_t)m->E * (2 * m->I + m->H);
    const float *from[3] = {m->gate, m->up, m->down};
    const void **to[3] = {&m->w.gate, &m->w.up, &m->w.down};
    uint16_t *raw = t_alloc(sizeof(uint16_t) * (size_t)(3 * n) + sizeof(float) * (size_t)(rows + 1));
    float *scale = (float *)(void *)(raw + 3 * n + (3 * n & 1));
    m->w.dtype = dtype;
    for (int k = 0; k < 3; k++) {
        *to[k] = dtype == MOE_EP_I8 ? (void *)((int8_t *)raw + k * n) : (void *)(raw + k * n);
        for (int64_t i = 0; i < n && dtype != MOE_EP_I8; i++)
            raw[k * n + i] = dtype == MOE_EP_BF16 ? moe_ep_bf16_from_f32(from[k][i]) : moe_ep_f16_from_f32(from[k][i]);
        if (dtype != MOE_EP_I8) continue;
        int64_t r = k < 2 ? (int64_t)m->E * m->I : (int64_t)m->E * m->H;
        CHECK_I64(moe_ep_quantize_rows(from[k], MOE_EP_F32, r, n / r, 0, (int8_t *)raw + k * n, scale, NULL),
                  MOE_EP_OK);
        *(k == 0 ? &m->w.gate_scale : k == 1 ? &m->w.up_scale : &m->w.down_scale) = scale;
        scale += r;
    }
    return raw;
}

TEST(any_number_of_threads_and_ranks_gives_the_same_bits)
{
    static const int threads[] = {1, 2, 3, 8}, ranks[] = {1, 2, 3, 4, 8, 16};
    uint64_t s = t_seed + 60;
    for (int kind = 0; kind < 6; kind++) { /* fp32, bf16, fp16, int8; bf16 with both bf16 units */
        int E = 16, H = 70, I = 45, K = 3;
        int64_t T = 61;
        model m = make_model(E, H, I, &s);
        void *raw = kind == 0 ? NULL : retype(&m, kind < 4 ? (moe_ep_dtype)kind : MOE_EP_BF16);
        float *x = floats(T * H, &s), *one = t_alloc(sizeof(float) * (size_t)(T * H));
        float *many = t_alloc(sizeof(float) * (size_t)(T * H)), *w = t_alloc(sizeof(float) * (size_t)(T * K));
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(T * K));
        draw_ids(ids, w, T, K, E, 1, &s);
        moe_ep_forward_desc d = desc_of(&m, K, ids, w);
        d.shared = &m.shared, d.shared_gate = m.sg[3];
        d.products = kind == 4 ? MOE_EP_PRODUCTS_BF16 : kind == 5 ? MOE_EP_PRODUCTS_BF16_VECTOR : MOE_EP_PRODUCTS_F32;
        CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, NULL), MOE_EP_OK);
        for (int t = 0; t < 4; t++) {
            if (t_slow() > 1 && t % 2 == 0) continue; /* one thread, three threads */
            threads_pool *pool = threads_start(threads[t]);
            d.parallel_for = threads_run, d.parallel_user = pool;
            for (int r = 0; r < 6; r++) {
                own_placement o = make_placement(r & 1 ? REPLICATED : CONTIGUOUS, E, ranks[r], E + (r & 1) * 5, &s);
                memset(many, 0, sizeof(float) * (size_t)(T * H));
                CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, T, many, NULL, NULL, NULL), MOE_EP_OK);
                CHECK(memcmp(one, many, sizeof(float) * (size_t)(T * H)) == 0);
                free(o.mem);
            }
            threads_stop(pool);
        }
        free(x), free(one), free(many), free(w), free(ids), free(raw);
        free_model(&m);
        STOP_IF_FAILED("kind %d", kind);
    }
}

TEST(slots_from_every_split_policy_are_used_and_checked)
{
    uint64_t s = t_seed + 1;
    int64_t moved[7] = {0}, busiest[7] = {0};
    for (int i = 0; i < 70; i++) {
        moe_ep_split_policy policy = (moe_ep_split_policy)(i % 7);
        int E = 6, D = 3, P = 9, K = 2, H = 5;
        int64_t T = 20, tokens[3] = {0}, slot_rows[9], seen[9] = {0}, load[3] = {0}, away = 0;
        int32_t ids[40], slots[40];
        float w[40], one[100], many[100];
        uint64_t same = t_seed + 100 + (uint64_t)(i / 7); /* the same layer, ids and placement for all policies */
        model m = make_model(E, H, 4, &same);
        own_placement o = make_placement(REPLICATED, E, D, P, &same);
        float *x = floats(T * H, &same);
        moe_ep_ranks_result res;
        moe_ep_error err;
        draw_ids(ids, w, T, K, E, 1, &same);
        for (int64_t t = 0; t < T; t++) tokens[t_below(&same, D)]++;
        CHECK_I64(split_by(policy, &o.p, ids, 40, K, tokens, 7 + (uint64_t)i, slot_rows, slots), MOE_EP_OK);
        moe_ep_forward_desc d = desc_of(&m, K, ids, w);
        CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, &err), MOE_EP_OK);
        CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, tokens, slots, x, T, many, &res, NULL, &err), MOE_EP_OK);
        CHECK(memcmp(one, many, sizeof one) == 0);
        for (int j = 0; j < 40; j++)
            if (slots[j] >= 0) seen[slots[j]]++;
        for (int j = 0; j < 9; j++) {
            CHECK_I64(seen[j], slot_rows[j]);
            load[o.p.slot_device[j]] += slot_rows[j];
        }
        int64_t most = load[0] > load[1] ? load[0] : load[1];
        CHECK_I64(res.rows_max, most > load[2] ? most : load[2]); /* what the split promised is what the ranks did */
        for (int dev = 0, j = 0; dev < D; dev++)
            for (int64_t left = tokens[dev] * K; left > 0; left--, j++)
                away += slots[j] >= 0 && o.p.slot_device[slots[j]] != dev;
        CHECK_I64(res.rows_moved, away);
        moved[policy] += res.rows_moved;
        busiest[policy] += res.rows_max;
        int at = 0;
        while (ids[at] < 0) at++;
        memset(many, 0, sizeof many);
        memset(one, 0, sizeof one);
        for (int32_t wrong = -1; wrong <= P; wrong++) { /* every slot of another expert is refused */
            if (wrong >= 0 && wrong < P && o.p.slot_expert[wrong] == ids[at]) continue;
            slots[at] = wrong;
            moe_ep_status st = moe_ep_forward_ranks(&d, &o.p, 0, NULL, slots, x, T, many, NULL, NULL, &err);
            CHECK_I64(st, MOE_EP_ERR_PLACEMENT);
            CHECK_I64(err.index, at);
        }
        CHECK(memcmp(one, many, sizeof one) == 0);
        free(x), free(o.mem);
        free_model(&m);
        STOP_IF_FAILED("case %d", i);
    }
    for (int j = 0; j < 7; j++) {
        CHECK(moved[MOE_EP_SPLIT_LOCAL_FIRST] <= moved[j]); /* what each is for */
        CHECK(busiest[MOE_EP_SPLIT_EXACT] <= busiest[j]);
    }
    CHECK(moved[MOE_EP_SPLIT_LOCAL_FIRST] < moved[MOE_EP_SPLIT_EVEN]);
    CHECK(busiest[MOE_EP_SPLIT_EXACT] < busiest[MOE_EP_SPLIT_EVEN]);
    (void)s;
}

TEST(replicas_of_an_expert_take_turns)
{
    uint64_t s = t_seed + 30;
    model m = make_model(2, 3, 2, &s);
    own_placement o = make_placement(CONTIGUOUS, 2, 4, 4, &s);
    static const int32_t held[4] = {0, 0, 1, 0};
    int32_t ids[12] = {0};
    float *x = floats(36, &s), one[36], many[36];
    moe_ep_forward_desc d = desc_of(&m, 1, ids, NULL);
    moe_ep_ranks_result res;
    memcpy(o.p.slot_expert, held, sizeof held);
    CHECK_I64(moe_ep_placement_index(&o.p, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward(&d, x, 12, one, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 12, many, &res, NULL, NULL), MOE_EP_OK);
    CHECK_I64(res.rows_max, 4); /* 12 rows on 3 copies */
    CHECK(memcmp(one, many, sizeof one) == 0);
    o.p.device_inactive[1] = 1; /* a drained device gets none, its tokens are served by the others */
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 12, many, &res, NULL, NULL), MOE_EP_OK);
    CHECK_I64(res.rows_max, 6); /* the two others, in turns */
    CHECK(memcmp(one, many, sizeof one) == 0);
    o.p.device_inactive[0] = o.p.device_inactive[3] = 1;
    moe_ep_error err;
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 12, many, &res, NULL, &err), MOE_EP_ERR_LOST_EXPERT);
    CHECK_I64(err.index, 0);
    o.p.device_inactive[0] = o.p.device_inactive[3] = 0;
    for (int i = 0; i < 4; i++) { /* no tokens: the counts must say so */
        static const int64_t counts[4][4] = {{0, 0, 0, 0}, {3, 3, 3, 3}, {5, -5, 0, 0}, {0, 0, 0, 1}};
        CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, counts[i], NULL, x, 0, many, &res, NULL, &err),
                  i ? MOE_EP_ERR_SIZE : MOE_EP_OK);
        if (i) CHECK_STR(err.arg, "tokens_per_rank");
    }
    free(x), free(o.mem);
    free_model(&m);
}

/* Each layer has a placement of its own; the copies of an expert take turns in token order; the first T mod D ranks
 * have one token more.  Counted here choice by choice. */
TEST(ranks_follow_the_layer_the_turns_and_the_tokens)
{
    enum { L = 3, E = 5, P = 9, H = 4, K = 2 };
    uint64_t s = t_seed + 33;
    for (int i = 0; i < 40; i++) {
        int D = 1 + i % 4, null = 1 + i % 3;
        int64_t T = t_below(&s, 23), taken = 0;
        model m = make_model(E, H, 3, &s);
        own_placement o;
        moe_ep_shape shape;
        memset(&shape, 0, sizeof shape);
        shape.num_devices = D, shape.num_slots = P;
        size_t bytes = moe_ep_placement_bytes(L, E, &shape);
        o.mem = t_alloc(bytes);
        CHECK_I64(moe_ep_placement_init(&o.p, L, E, &shape, o.mem, bytes, NULL), MOE_EP_OK);
        for (int l = 0; l < L; l++) /* expert e first in slot e + l, then any */
            for (int slot = 0; slot < P; slot++)
                o.p.slot_expert[l * P + slot] = slot >= l && slot < E + l ? slot - l : (int32_t)t_below(&s, E);
        CHECK_I64(moe_ep_placement_index(&o.p, NULL), MOE_EP_OK);
        float *x = floats(T * H, &s), one[23 * H], many[23 * H], w[23 * K];
        int32_t ids[23 * K], slots[23 * K];
        draw_ids(ids, w, T, K, E + null, 1, &s);
        moe_ep_forward_desc d = desc_of(&m, K, ids, w);
        d.num_null = null;
        CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, NULL), MOE_EP_OK);
        for (int l = 0; l < L; l++) {
            int64_t moved = 0, load[4] = {0}, most = 0, even = T / D, spare = T % D;
            int turn[E] = {0};
            moe_ep_ranks_result res;
            moe_ep_error err;
            for (int64_t j = 0; j < T * K; j++) {
                int64_t t = j / K, long_ones = spare * (even + 1);
                int64_t at = t < long_ones ? t / (even + 1) : spare + (t - long_ones) / even;
                int copy[P], copies = 0;
                slots[j] = ids[j] < 0 ? -1 : P + ids[j] - E;
                if (ids[j] < 0 || ids[j] >= E) continue;
                for (int slot = 0; slot < P; slot++)
                    if (o.p.slot_expert[l * P + slot] == ids[j]) copy[copies++] = slot;
                slots[j] = copy[turn[ids[j]]++ % copies];
                moved += o.p.slot_device[slots[j]] != at;
                load[o.p.slot_device[slots[j]]]++;
            }
            for (int r = 0; r < 4; r++) most = load[r] > most ? load[r] : most;
            for (int given = 0; given < 2; given++) {
                counter c = {0, 0, 0, {0}};
                moe_ep_scratch scratch;
                memset(&scratch, 0, sizeof scratch);
                scratch.alloc.alloc_fn = count_alloc, scratch.alloc.free_fn = count_free, scratch.alloc.user = &c;
                memset(many, 0, sizeof many);
                CHECK_I64(moe_ep_forward_ranks(&d, &o.p, l, NULL, given ? slots : NULL, x, T, many, &res, &scratch,
                                               &err), MOE_EP_OK);
                error_is(&err, "", -1, 0.0);
                CHECK(memcmp(one, many, sizeof(float) * (size_t)(T * H)) == 0);
                CHECK_I64(res.rows_moved, moved);
                CHECK_I64(res.rows_max, most);
                moe_ep_scratch_free(&scratch);
                CHECK_I64(c.live, 0);
            }
            for (int64_t j = 0; j < T * K; j++) { /* any other slot for an identity expert, or for none, is refused */
                if (ids[j] >= 0 && ids[j] < E) continue;
                for (int32_t wrong = -1; wrong <= P + null; wrong++) {
                    int32_t right = slots[j];
                    if (wrong == right) continue;
                    slots[j] = wrong;
                    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, l, NULL, slots, x, T, many, NULL, NULL, &err),
                              MOE_EP_ERR_PLACEMENT);
                    error_is(&err, "slot_ids", j, wrong);
                    slots[j] = right;
                }
                if (++taken % 4 == 0) break;
            }
        }
        free(x), free(o.mem);
        free_model(&m);
        STOP_IF_FAILED("case %d", i);
    }
}

/* More tokens than one pass of the router takes, and identity experts among its choices. */
TEST(a_router_with_identity_experts_over_two_passes_of_the_ranks)
{
    enum { E = 3, NULLS = 2, K = 2, H = 2, T = 4096 + 9 };
    uint64_t s = t_seed + 34;
    model m = make_model(E, H, 2, &s);
    own_placement o = make_placement(CONTIGUOUS, E, 2, E, &s);
    float *x = floats(T * H, &s), *gate = floats((E + NULLS) * H, &s);
    float *one = t_alloc(sizeof(float) * T * H), *many = t_alloc(sizeof(float) * T * H);
    moe_ep_router r = moe_ep_router_longcat(E + NULLS, K, NULLS);
    moe_ep_forward_desc d = desc_of(&m, 0, NULL, NULL);
    moe_ep_ranks_result res;
    d.router = &r, d.gate = gate, d.num_null = NULLS;
    CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, T, many, &res, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(one, many, sizeof(float) * T * H) == 0);
    CHECK_I64(res.rows + res.identity, T * K);
    CHECK(res.identity > 0 && res.rows > 0);
    free(x), free(gate), free(one), free(many), free(o.mem);
    free_model(&m);
}

/* From the router to the ranks with identity experts, as moe_ep_router.num_null says it: loads, split and slots without
 * them, then P + id - R. */
TEST(identity_experts_through_loads_split_and_slots)
{
    enum { R = 8, NULLS = 4, K = 3, H = 5, T = 60, P = 10, D = 2 };
    uint64_t s = t_seed + 37;
    model m = make_model(R, H, 4, &s);
    own_placement o = make_placement(REPLICATED, R, D, P, &s);
    float *x = floats(T * H, &s), *logits = floats(T * (R + NULLS), &s), w[T * K], one[T * H], many[T * H];
    int32_t ids[T * K], real[T * K], slots[T * K];
    int64_t loads[R], rows[P], skipped, nulls = 0, total = 0;
    moe_ep_router r = moe_ep_router_longcat(R + NULLS, K, NULLS);
    moe_ep_split_desc even;
    moe_ep_ranks_result res;
    moe_ep_error err;
    memset(&even, 0, sizeof even);
    CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids, w, NULL), MOE_EP_OK);
    for (int i = 0; i < T * K; i++) real[i] = ids[i] < R ? ids[i] : -1, nulls += ids[i] >= R;
    CHECK(nulls > 0 && nulls < T * K);
    CHECK_I64(moe_ep_expert_loads(ids, T * K, R, loads, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK(err.value >= R);
    CHECK_I64(moe_ep_expert_loads(real, T * K, R, loads, &skipped, NULL), MOE_EP_OK);
    CHECK_I64(skipped, nulls);
    CHECK_I64(moe_ep_split(&even, &o.p, 0, loads, rows, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_assign_slots(&o.p, 0, real, T * K, rows, slots, NULL, NULL), MOE_EP_OK);
    for (int i = 0; i < T * K; i++) {
        CHECK((slots[i] < 0) == (ids[i] >= R));
        if (ids[i] >= R) slots[i] = P + ids[i] - R;
        if (ids[i] == 9) CHECK_I64(slots[i], 11);
    }
    moe_ep_forward_desc d = desc_of(&m, K, ids, w);
    d.num_null = NULLS;
    CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, slots, x, T, many, &res, NULL, NULL), MOE_EP_OK);
    CHECK(memcmp(one, many, sizeof one) == 0);
    CHECK_I64(res.identity, nulls);
    for (int i = 0; i < P; i++) total += rows[i];
    CHECK_I64(res.rows, total);
    free(x), free(logits), free(o.mem);
    free_model(&m);
}

/* Wide or narrow rows, inner sizes, shared experts, many devices: what the ranks ask for at the start is enough. */
TEST(memory_of_the_ranks_fits_layers_of_any_shape)
{
    uint64_t s = t_seed + 35;
    for (int i = 0; i < 35; i++) {
        static const int devices[3] = {64, 400, 2}, slots[3] = {1024, 400, 1024};
        int many = i >= 32, D = many ? devices[i - 32] : 1 + i % 3, E = many ? slots[i - 32] : 4;
        int K = many ? 1 : 1 + (i & 1);
        int H = i & 2 ? 100 : 1, I = many ? 1 : i & 4 ? 100 : 1;
        int64_t T = many ? 3 : 40;
        model m = make_model(E, H, I, &s);
        own_placement o = make_placement(CONTIGUOUS, E, D, E, &s);
        float *x = floats(T * H, &s), *one = floats(T * H, &s), *many_y = floats(T * H, &s);
        float *wide = floats(8 * 60 * H, &s);
        int32_t ids[80];
        float w[80];
        counter c = {0, 0, 0, {0}};
        moe_ep_scratch scratch;
        memset(&scratch, 0, sizeof scratch);
        scratch.alloc.alloc_fn = count_alloc, scratch.alloc.free_fn = count_free, scratch.alloc.user = &c;
        draw_ids(ids, w, T, K, E, 0, &s);
        moe_ep_forward_desc d = desc_of(&m, K, ids, w);
        if (i & 8) d.shared = &m.shared;
        if (i & 16) {
            m.shared.num_experts = 8, m.shared.inter = i & 4 ? 60 : 1;
            m.shared.gate = m.shared.up = m.shared.down = wide;
        }
        CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, T, many_y, NULL, &scratch, NULL), MOE_EP_OK);
        CHECK(memcmp(one, many_y, sizeof(float) * (size_t)(T * H)) == 0);
        CHECK_I64(c.allocs, 1);
        moe_ep_scratch_free(&scratch);
        CHECK_I64(c.live, 0);
        free(x), free(one), free(many_y), free(wide), free(o.mem);
        free_model(&m);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Many experts for rows of one number: the logits are most of the memory.  300 tokens, and more than one pass takes. */
TEST(logits_of_many_experts_have_memory_of_their_own)
{
    uint64_t s = t_seed + 36;
    for (int i = 0; i < 4; i++) {
        int E = i & 1 ? 300 : 600, nulls = i & 2 ? 7 : 0;
        int64_t T = i & 1 ? 4100 : 300;
        model m = make_model(E, 1, 1, &s);
        own_placement o = make_placement(CONTIGUOUS, E, 1, E, &s);
        float *x = floats(T, &s), *gate = floats(E + nulls, &s), *one = floats(T, &s), *many = floats(T, &s);
        moe_ep_router r = nulls ? moe_ep_router_longcat(E + nulls, 1, nulls) : moe_ep_router_mixtral(E, 1);
        moe_ep_forward_desc d = desc_of(&m, 0, NULL, NULL);
        counter c = {0, 0, 0, {0}};
        moe_ep_scratch scratch;
        memset(&scratch, 0, sizeof scratch);
        scratch.alloc.alloc_fn = count_alloc, scratch.alloc.free_fn = count_free, scratch.alloc.user = &c;
        d.router = &r, d.gate = gate, d.num_null = nulls;
        CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, T, many, NULL, &scratch, NULL), MOE_EP_OK);
        CHECK(memcmp(one, many, sizeof(float) * (size_t)T) == 0);
        CHECK((double)scratch.need >= 4.0 * (double)((T < 4096 ? T : 4096) * (E + nulls)));
        moe_ep_scratch_free(&scratch);
        free(x), free(gate), free(one), free(many), free(o.mem);
        free_model(&m);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(a_router_in_front_of_the_ranks)
{
    uint64_t s = t_seed + 2;
    for (int i = 0; i < 12; i++) {
        int E = 8, H = 6, K = 2, D = 1 + i % 4;
        int64_t T = 30;
        model m = make_model(E, H, 5, &s);
        own_placement o = make_placement(i % 2 ? REPLICATED : CONTIGUOUS, E, D, i % 2 ? E + 3 : E, &s);
        float *x = floats(T * H, &s), *gate = floats(E * H, &s), one[180], many[180];
        moe_ep_router r = i % 3 ? moe_ep_router_mixtral(E, K) : moe_ep_router_llama4(E, K);
        moe_ep_forward_desc d = desc_of(&m, K, NULL, NULL);
        moe_ep_error err;
        d.router = &r, d.gate = gate;
        CHECK_I64(moe_ep_forward(&d, x, T, one, NULL, &err), MOE_EP_OK);
        CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, T, many, NULL, NULL, &err), MOE_EP_OK);
        CHECK(memcmp(one, many, sizeof one) == 0);
        free(x), free(gate), free(o.mem);
        free_model(&m);
    }
}

TEST(worked_example_of_four_tokens_on_four_ranks)
{
    uint64_t s = t_seed + 3;
    int32_t ids[8] = {3, 7, 1, 12, 3, 9, 7, 15};
    model m = make_model(16, 4, 3, &s);
    own_placement o = make_placement(CONTIGUOUS, 16, 4, 16, &s);
    float *x = floats(16, &s), y[16], w[8] = {0.6f, 0.4f, 0.7f, 0.3f, 0.5f, 0.5f, 0.8f, 0.2f};
    moe_ep_forward_desc d = desc_of(&m, 2, ids, w);
    moe_ep_ranks_result res;
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 4, y, &res, NULL, NULL), MOE_EP_OK);
    CHECK_I64(res.rows, 8);
    CHECK_I64(res.rows_moved, 5);
    CHECK_I64(res.rows_max, 3);
    free(x), free(o.mem);
    free_model(&m);
}

TEST(demo_sizes_on_two_ranks)
{
    /* 8 experts, hidden 128, intermediate 512, top-2, 40 tokens on 2 ranks */
    uint64_t s = t_seed + 4;
    model m = make_model(8, 128, 512, &s);
    own_placement o = make_placement(CONTIGUOUS, 8, 2, 8, &s);
    float *x = floats(40 * 128, &s), *one = t_alloc(40 * 128 * 4), *many = t_alloc(40 * 128 * 4);
    int32_t ids[80];
    float w[80];
    moe_ep_ranks_result res;
    draw_ids(ids, w, 40, 2, 8, 0, &s);
    moe_ep_forward_desc d = desc_of(&m, 2, ids, w);
    CHECK_I64(moe_ep_forward(&d, x, 40, one, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 40, many, &res, NULL, NULL), MOE_EP_OK);
    for (int i = 0; i < 40 * 128; i++) CHECK_NEAR(many[i], one[i], 0, 1e-4);
    CHECK(memcmp(one, many, 40 * 128 * 4) == 0);
    CHECK_I64(res.rows, 80);
    free(x), free(one), free(many), free(o.mem);
    free_model(&m);
}

/* ---- hooks: a loop-back backend of one rank that writes down what is called ---- */

typedef struct recorder {
    char log[400];
    int fail_at, calls, code; /* the call with this number (from 1) returns code */
    int allocs, frees;
    const void *x[2];
    void *rx[2], *ry[2], *y[2], *stream;
    model *m;
    const moe_ep_plan *plan[2];
} recorder;

static int note(recorder *r, const char *what, int batch)
{
    size_t n = strlen(r->log);
    snprintf(r->log + n, sizeof r->log - n, "%s%d ", what, batch);
    return ++r->calls == r->fail_at ? r->code : 0;
}

static int hook_counts(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    recorder *r = user;
    CHECK(stream == r->stream);
    memcpy(recv, send, sizeof(int64_t) * (size_t)per_rank);
    return note(r, "c", 0);
}
static int hook_dispatch(void *user, const moe_ep_plan *p, const void *x, void *rx, size_t row_bytes, void *stream)
{
    recorder *r = user;
    CHECK(stream == r->stream && x == r->x[p->batch]);
    CHECK_I64(row_bytes, (size_t)r->m->H * 4);
    r->rx[p->batch] = rx;
    r->plan[p->batch] = p;
    return note(r, "D", p->batch);
}
static int hook_experts(void *user, const moe_ep_plan *p, const void *rx, void *ry, void *stream)
{
    recorder *r = user;
    CHECK(stream == r->stream && rx == r->rx[p->batch]);
    r->ry[p->batch] = ry;
    return note(r, "E", p->batch);
}
static int hook_combine(void *user, const moe_ep_plan *p, const void *ry, void *y, size_t row_bytes, void *stream)
{
    recorder *r = user;
    CHECK(stream == r->stream && ry == r->ry[p->batch] && y == r->y[p->batch]);
    CHECK_I64(row_bytes, (size_t)r->m->H * 4);
    return note(r, "C", p->batch);
}
static int hook_wait(void *user, const moe_ep_plan *p, int stage, void *stream)
{
    recorder *r = user;
    static const char *names[4] = {"?", "wD", "wE", "wC"};
    CHECK(stream == r->stream);
    return note(r, names[stage], p->batch);
}
/* Memory that must not be touched: addresses of nothing. */
static void *hook_alloc(void *user, size_t bytes)
{
    recorder *r = user;
    CHECK(bytes > 0);
    return (void *)(uintptr_t)(0x1000 + 64 * ++r->allocs);
}
static void hook_free(void *user, void *ptr)
{
    recorder *r = user;
    CHECK(ptr != NULL);
    r->frees++;
}

static moe_ep_hooks all_hooks(recorder *r)
{
    moe_ep_hooks h;
    memset(&h, 0, sizeof h);
    h.size = sizeof h;
    h.user = r;
    h.counts = hook_counts, h.dispatch = hook_dispatch, h.experts = hook_experts, h.combine = hook_combine;
    h.wait = hook_wait, h.alloc_fn = hook_alloc, h.free_fn = hook_free;
    h.adds_shared = 1;
    return h;
}

static const int32_t one_rank_slots[2] = {0, 4};

static moe_ep_rank_desc one_rank(const moe_ep_hooks *h, const moe_ep_forward_desc *layer)
{
    moe_ep_rank_desc d;
    memset(&d, 0, sizeof d);
    d.num_ranks = 1;
    d.slot_start = one_rank_slots;
    d.top_k = 2;
    d.hidden = 6;
    d.hooks = h;
    d.layer = layer;
    return d;
}

/* One rank of four experts, hidden 6, with all that a call takes.  `d` has the layer and no hooks. */
typedef struct rig {
    model m;
    moe_ep_forward_desc layer;
    recorder r;
    moe_ep_hooks hooks; /* all of them, of the recorder */
    moe_ep_rank_desc d;
    moe_ep_rank rank;
    moe_ep_batch b;
    moe_ep_error err;
    float x[36], y[36], w[12];
    int32_t ids[12];
} rig;

static void rig_up(rig *g, uint64_t seed)
{
    memset(g, 0, sizeof *g);
    g->m = make_model(4, 6, 3, &seed);
    g->layer = desc_of(&g->m, 2, NULL, NULL);
    g->r.m = &g->m;
    g->hooks = all_hooks(&g->r);
    g->d = one_rank(NULL, &g->layer);
    for (int i = 0; i < 36; i++) g->x[i] = draw(&seed);
    draw_ids(g->ids, g->w, 6, 2, 4, 0, &seed);
    g->b.num_tokens = 2, g->b.slot_ids = g->ids, g->b.weights = g->w, g->b.x = g->x, g->b.y = g->y;
    g->r.x[0] = g->x, g->r.y[0] = g->y;
}

/* Starts the rank, or says why not; the rank before is given back. */
static moe_ep_status rig_start(rig *g)
{
    moe_ep_rank_free(&g->rank);
    return moe_ep_rank_init(&g->rank, &g->d, &g->err);
}

static void rig_down(rig *g)
{
    moe_ep_rank_free(&g->rank);
    CHECK_I64(g->r.allocs, g->r.frees);
    free_model(&g->m);
}

/* Runs one or two batches with pointers into nowhere: the library may only hand them on. */
static moe_ep_status run_recorded(recorder *r, int two, int64_t T1)
{
    moe_ep_hooks h = all_hooks(r);
    moe_ep_rank_desc d = one_rank(&h, NULL);
    moe_ep_rank rank;
    moe_ep_batch b[2];
    moe_ep_error err;
    int32_t ids[6] = {0, 3, 1, -1, 2, 0};
    moe_ep_status st;
    memset(b, 0, sizeof b);
    for (int i = 0; i < 2; i++) {
        b[i].num_tokens = i ? T1 : 3;
        b[i].slot_ids = ids;
        b[i].x = r->x[i] = (const void *)(uintptr_t)(0x40 + i);
        b[i].y = r->y[i] = (void *)(uintptr_t)(0x80 + i);
    }
    r->stream = (void *)(uintptr_t)0x99;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    memset(&h, 0, sizeof h); /* copied at init: what happens to it now is of no account */
    st = two ? moe_ep_rank_forward2(&rank, b, r->stream, &err) : moe_ep_rank_forward(&rank, b, r->stream, &err);
    CHECK_I64(err.status, st);
    moe_ep_rank_free(&rank);
    CHECK(rank.state == NULL);
    moe_ep_rank_free(&rank);
    CHECK_I64(r->allocs, r->frees);
    return st;
}

TEST(hooks_are_called_in_order_and_foreign_memory_is_left_alone)
{
    model m = {0};
    recorder r;
    m.H = 6;
    memset(&r, 0, sizeof r);
    r.m = &m;
    CHECK_I64(run_recorded(&r, 0, 0), MOE_EP_OK);
    CHECK_STR(r.log, "c0 D0 wD0 E0 wE0 C0 wC0 ");
    CHECK_I64(r.allocs, 2);
    memset(&r, 0, sizeof r);
    r.m = &m;
    CHECK_I64(run_recorded(&r, 1, 2), MOE_EP_OK);
    CHECK_STR(r.log, "c0 D0 c0 D1 wD0 E0 wE0 C0 wD1 E1 wE1 C1 wC0 wC1 ");
    CHECK(r.rx[0] != r.rx[1] && r.ry[0] != r.ry[1]);
    memset(&r, 0, sizeof r);
    r.m = &m;
    CHECK_I64(run_recorded(&r, 1, 0), MOE_EP_OK); /* an empty batch still takes part in every collective */
    CHECK_STR(r.log, "c0 D0 c0 D1 wD0 E0 wE0 C0 wD1 E1 wE1 C1 wC0 wC1 ");
}

TEST(the_code_of_a_failing_hook_comes_back_and_nothing_follows)
{
    static const int codes[] = {1, 17, 4711, -3, 0x7ffffff0, -1000};
    model m = {0};
    m.H = 6;
    for (int two = 0; two < 2; two++) {
        int total = two ? 14 : 7;
        for (int at = 1; at <= total; at++) {
            for (size_t c = 0; c < sizeof codes / sizeof codes[0]; c++) {
                recorder r;
                memset(&r, 0, sizeof r);
                r.m = &m;
                r.fail_at = at;
                r.code = codes[c];
                CHECK_I64(run_recorded(&r, two, 2), codes[c]);
                CHECK_I64(r.calls, at);
            }
        }
    }
}

TEST(a_rank_without_hooks_is_the_layer_on_one_device)
{
    uint64_t s = t_seed + 5;
    model m = make_model(4, 6, 9, &s);
    moe_ep_error err;
    for (int i = 0; i < 20; i++) {
        int64_t T[2] = {t_below(&s, 9), t_below(&s, 9)};
        int32_t ids[2][16];
        float w[2][16], y[2][54], want[54], *x[2];
        moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
        moe_ep_rank_desc d;
        moe_ep_rank rank;
        moe_ep_batch b[2];
        layer.num_null = 1;
        layer.weight_on_input = i % 3 == 1;
        if (i & 1) layer.shared = &m.shared, layer.shared_gate = m.sg[3];
        d = one_rank(NULL, &layer);
        CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
        CHECK(moe_ep_rank_plan_of(&rank, 0) == NULL);
        memset(b, 0, sizeof b);
        for (int k = 0; k < 2; k++) {
            x[k] = floats(T[k] * 6, &s);
            draw_ids(ids[k], w[k], T[k], 2, 5, 1, &s);
            b[k].num_tokens = T[k], b[k].slot_ids = ids[k], b[k].weights = w[k], b[k].x = x[k], b[k].y = y[k];
        }
        CLEARS(moe_ep_rank_forward2(&rank, b, NULL, &err));
        for (int k = 0; k < 2; k++) {
            moe_ep_forward_desc one = layer;
            one.ids = ids[k], one.choice_weights = w[k];
            CHECK_I64(moe_ep_forward(&one, x[k], T[k], want, NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(want, y[k], sizeof(float) * (size_t)(T[k] * 6)) == 0);
            memset(y[k], 0, sizeof y[k]);
            CHECK_I64(moe_ep_rank_forward(&rank, &b[k], NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(want, y[k], sizeof(float) * (size_t)(T[k] * 6)) == 0);
            free(x[k]);
        }
        moe_ep_rank_free(&rank);
        STOP_IF_FAILED("case %d", i);
    }
    free_model(&m);
}

/* Padded tokens, as servers leave them: ids -1, weights and x whatever lay there. */
TEST(what_stands_beside_masked_choices_is_not_looked_at_by_ranks)
{
    uint64_t s = t_seed + 77;
    for (int i = 0; i < 12; i++) {
        enum { T = 6, H = 6, K = 2 };
        rig g;
        own_placement o = make_placement(CONTIGUOUS, 4, 1 + i % 3, 4, &s);
        float want[T * H];
        rig_up(&g, t_seed + (uint64_t)i);
        g.layer.num_null = 1;
        g.ids[3] = 4;
        g.b.num_tokens = T;
        for (int k = 0; k < T * K; k++)
            if (i >> (k / K) & 1) g.ids[k] = -1;
        g.ids[5] = -1;
        g.layer.ids = g.ids, g.layer.choice_weights = g.w;
        CHECK_I64(moe_ep_forward(&g.layer, g.x, T, want, NULL, NULL), MOE_EP_OK);
        for (int k = 0; k < T * K; k++)
            if (g.ids[k] < 0) g.w[k] = (float)NAN;
        for (int t = 0; t < T; t++)
            for (int h = 0; h < H && g.ids[K * t] < 0 && g.ids[K * t + 1] < 0; h++) g.x[H * t + h] = (float)INFINITY;
        CHECK_I64(rig_start(&g), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_OK);
        CHECK(memcmp(want, g.y, sizeof want) == 0);
        for (int k = 0; k < T * K; k++)
            CHECK(moe_ep_rank_plan_of(&g.rank, 0)->topk_weights[k] == (g.ids[k] < 0 ? 0.0f : g.w[k]));
        memset(g.y, 0x77, sizeof g.y);
        CHECK_I64(moe_ep_forward_ranks(&g.layer, &o.p, 0, NULL, NULL, g.x, T, g.y, NULL, NULL, &g.err), MOE_EP_OK);
        CHECK(memcmp(want, g.y, sizeof want) == 0);
        g.w[8] = (float)NAN; /* a choice that is one */
        g.ids[8] = 0;
        CHECK_I64(moe_ep_forward_ranks(&g.layer, &o.p, 0, NULL, NULL, g.x, T, g.y, NULL, NULL, &g.err), MOE_EP_ERR_NAN);
        CHECK_STR(g.err.arg, "choice_weights");
        CHECK_I64(g.err.index, 8);
        CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_ERR_NAN);
        CHECK_STR(g.err.arg, "weights");
        CHECK_I64(g.err.index, 8);
        g.w[8] = 1.0f, g.x[27] = (float)NAN;
        for (int h = 24; h < 27; h++) g.x[h] = 1.0f;
        CHECK_I64(moe_ep_forward_ranks(&g.layer, &o.p, 0, NULL, NULL, g.x, T, g.y, NULL, NULL, &g.err), MOE_EP_ERR_NAN);
        CHECK_STR(g.err.arg, "x");
        CHECK_I64(g.err.index, 27);
        rig_down(&g);
        free(o.mem);
        STOP_IF_FAILED("case %d", i);
    }
}

static moe_ep_status rig_stage(rig *g, int stage)
{
    return stage == 0   ? moe_ep_rank_dispatch(&g->rank, 0, NULL, &g->err)
           : stage == 1 ? moe_ep_rank_experts(&g->rank, 0, NULL, &g->err)
           : stage == 2 ? moe_ep_rank_combine(&g->rank, 0, NULL, &g->err)
                        : moe_ep_rank_finish(&g->rank, 0, NULL, &g->err);
}

/* Stages of one batch, by number, and which of them may come next; with the CPU's and with hooks. */
TEST(a_stage_waits_for_its_turn)
{
    static const char *const want[3] = {"is not dispatched yet", "has no expert results yet", "is not combined yet"};
    for (int hooked = 0; hooked < 2; hooked++) {
        rig g;
        rig_up(&g, 5);
        g.d.elem_bytes = 4;
        g.d.hooks = hooked ? &g.hooks : NULL;
        CHECK_I64(rig_start(&g), MOE_EP_OK);
        for (int stage = 0; stage < 4; stage++) {
            CHECK_I64(rig_stage(&g, stage), MOE_EP_ERR_CONFIG);
            CHECK_STR(g.err.what, "has no plan yet");
        }
        for (int turn = 0; turn < 2; turn++) {
            CHECK_I64(moe_ep_rank_plan(&g.rank, 0, &g.b, NULL, &g.err), MOE_EP_OK);
            for (int done = 0; done < 4; done++) {
                for (int i = 3; i > done; i--) {
                    CHECK_I64(rig_stage(&g, i), MOE_EP_ERR_CONFIG);
                    CHECK_STR(g.err.what, want[done]);
                    error_is(&g.err, "batch", -1, 0.0);
                }
                if (hooked) { /* a stage that failed is not done: it may be called again, the next may not */
                    g.r.calls = 0, g.r.fail_at = 1, g.r.code = 7;
                    CHECK_I64(rig_stage(&g, done), 7);
                    error_is(&g.err, done > 0 ? "hooks.wait" : "hooks.dispatch", -1, 7.0);
                    g.r.fail_at = 0;
                    if (done < 3) CHECK_I64(rig_stage(&g, done + 1), MOE_EP_ERR_CONFIG);
                }
                CHECK_I64(rig_stage(&g, done), MOE_EP_OK);
                error_is(&g.err, "", -1, 0.0);
            }
        }
        /* dispatched again, the results of before are no longer the batch's */
        CHECK_I64(rig_stage(&g, 0), MOE_EP_OK);
        CHECK_I64(rig_stage(&g, 2), MOE_EP_ERR_CONFIG);
        rig_down(&g);
    }
}

/* ---- the plan of one rank among three, against counts by hand ---- */

static int64_t three_send[9], three_recv[9];
static int three_counts(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    (void)user, (void)stream;
    CHECK_I64(per_rank, 3);
    for (int i = 0; i < 9; i++) CHECK_I64(recv[i], 0);
    memcpy(three_send, send, sizeof three_send);
    memcpy(recv, three_recv, sizeof three_recv);
    return 0;
}

TEST(the_plan_says_who_sends_what_to_whom)
{
    /* slots 0 1 | 2 3 4 | 5 on ranks 0 1 2; this is rank 1 */
    static const int32_t start[4] = {0, 2, 5, 6};
    int32_t ids[8] = {5, 2, 0, 4, -1, 5, 2, 6}; /* 6 is an identity expert */
    static const int64_t recv[9] = {2, 0, 1, 2, 0, 1, 0, 3, 0}; /* per source: slots 2 3 4 */
    static const int64_t want_send[9] = {1, 0, 0, 2, 0, 1, 2, 0, 0};
    static const int64_t rows_out[3] = {1, 3, 2}, token[6] = {1, 0, 3, 1, 0, 2}, choice[8] = {4, 1, 0, 3, -1, 5, 2, -1};
    static const int64_t rows_in[3] = {3, 3, 3}, slot_rows[3] = {4, 3, 2}, place[9] = {0, 1, 7, 2, 3, 8, 4, 5, 6};
    uint64_t s = 1;
    model m = make_model(3, 2, 2, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    float x[8] = {0}, y[8], w[8] = {.1f, .2f, .3f, .4f, .5f, .6f, .7f, .8f};
    recorder r;
    moe_ep_hooks h = all_hooks(&r);
    moe_ep_rank_desc d;
    moe_ep_rank rank;
    moe_ep_batch b;
    moe_ep_error err;
    const moe_ep_plan *p;
    counter c = {0, 0, 0, {0}};
    memset(&r, 0, sizeof r);
    memset(&d, 0, sizeof d);
    h.counts = three_counts;
    layer.num_null = 1;
    d.alloc.alloc_fn = count_alloc, d.alloc.free_fn = count_free, d.alloc.user = &c;
    d.rank = 1, d.num_ranks = 3, d.slot_start = start, d.top_k = 2, d.hidden = 2, d.hooks = &h, d.layer = &layer;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    memset(&b, 0, sizeof b);
    b.num_tokens = 4, b.slot_ids = ids, b.weights = w, b.x = x, b.y = y, b.call = &b;
    memcpy(three_recv, recv, sizeof recv);
    CHECK_I64(moe_ep_rank_plan(&rank, 1, &b, NULL, &err), MOE_EP_OK);
    CHECK(memcmp(three_send, want_send, sizeof want_send) == 0);
    p = moe_ep_rank_plan_of(&rank, 1);
    CHECK(p != NULL && p->call == &b);
    if (!p) return;
    CHECK_I64(p->rank, 1);
    CHECK_I64(p->nranks, 3);
    CHECK_I64(p->nslots, 3);
    CHECK_I64(p->top_k, 2);
    CHECK_I64(p->batch, 1);
    CHECK_I64(p->ntokens, 4);
    CHECK_I64(p->nsend, 6);
    CHECK_I64(p->nrecv, 9);
    for (int i = 0; i < 3; i++) {
        CHECK_I64(p->send_rows[i], rows_out[i]);
        CHECK_I64(p->recv_rows[i], rows_in[i]);
        CHECK_I64(p->slot_rows[i], slot_rows[i]);
        CHECK_I64(p->send_start[i + 1] - p->send_start[i], rows_out[i]);
        CHECK_I64(p->recv_start[i + 1] - p->recv_start[i], rows_in[i]);
        CHECK_I64(p->slot_start[i + 1] - p->slot_start[i], slot_rows[i]);
    }
    CHECK_I64(p->send_start[0] + p->recv_start[0] + p->slot_start[0], 0);
    CHECK_I64(p->weight_on_input, 0);
    for (int i = 0; i < 6; i++) CHECK_I64(p->send_token[i], token[i]);
    for (int i = 0; i < 8; i++) {
        CHECK_I64(p->choice_row[i], choice[i]);
        CHECK_I64(p->topk_ids[i], ids[i]);
        if (choice[i] >= 0) CHECK_NEAR(p->send_weight[choice[i]], w[i], 0, 0);
    }
    for (int i = 0; i < 9; i++) CHECK_I64(p->recv_row[i], place[i]);
    /* no stage before its turn: there is nothing yet in the memory it reads */
    CHECK_I64(moe_ep_rank_experts(&rank, 1, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.what, "is not dispatched yet");
    CHECK_I64(moe_ep_rank_combine(&rank, 1, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(moe_ep_rank_finish(&rank, 1, NULL, &err), MOE_EP_ERR_CONFIG);
    three_recv[4] = -1; /* what the other ranks say is checked too */
    CHECK_I64(moe_ep_rank_plan(&rank, 1, &b, NULL, &err), MOE_EP_ERR_NEGATIVE);
    error_is(&err, "counts", 4, -1.0);
    CHECK(moe_ep_rank_plan_of(&rank, 1) == NULL);
    CHECK_I64(moe_ep_rank_dispatch(&rank, 1, NULL, &err), MOE_EP_ERR_CONFIG);
    three_recv[4] = INT64_MAX / 2;
    CHECK_I64(moe_ep_rank_plan(&rank, 1, &b, NULL, &err), MOE_EP_ERR_OVERFLOW);
    /* as many as can be counted are too many for the memory; one more is too many to count */
    memset(three_recv, 0, sizeof three_recv);
    for (int at = 0; at < 8; at++) {
        for (int more = 0; more < 2; more++) {
            three_recv[at] = INT64_MAX / 64 - at, three_recv[at + 1] = at + more;
            CHECK_I64(moe_ep_rank_plan(&rank, 1, &b, NULL, &err),
                      more || sizeof(size_t) < 8 ? MOE_EP_ERR_OVERFLOW : MOE_EP_ERR_MEMORY);
            if (more) error_is(&err, "counts", at + 1, at + 1.0);
            three_recv[at] = three_recv[at + 1] = 0;
        }
    }
    three_recv[0] = INT64_MAX / 64 + 1;
    CHECK_I64(moe_ep_rank_plan(&rank, 1, &b, NULL, &err), MOE_EP_ERR_OVERFLOW);
    error_is(&err, "counts", 0, (double)three_recv[0]);
    moe_ep_rank_free(&rank);
    CHECK_I64(c.live, 0);
    free_model(&m);
}

TEST(host_helpers_move_rows_and_sum_them)
{
    int64_t choice[2] = {0, 1}, to[3] = {2, 0, 1}, token[3] = {1, 1, 0};
    int32_t ids[2] = {0, 1};
    float w[2] = {0.5f, 0.25f}, rows[2] = {2.0f, 4.0f}, x = 1.0f, y = 0.0f, in[4] = {1, 2, 3, 4}, out[6], back[6];
    float sw[3] = {2.0f, 3.0f, 4.0f};
    moe_ep_error err;
    moe_ep_plan p;
    memset(&p, 0, sizeof p);
    p.ntokens = 1, p.top_k = 2, p.topk_ids = ids, p.topk_weights = w, p.choice_row = choice, p.nsend = 2;
    CLEARS(moe_ep_plan_sum(&p, NULL, 8, 1, &x, rows, &y, NULL, &err));
    CHECK_NEAR(y, 2.0, 0, 0);
    CHECK_I64(moe_ep_plan_sum(NULL, NULL, 8, 1, &x, rows, &y, NULL, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 0, &x, rows, &y, NULL, NULL), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, NULL, rows, &y, NULL, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, &x, NULL, &y, NULL, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, &x, rows, NULL, NULL, NULL), MOE_EP_ERR_NULL);
    for (int i = 0; i < 4; i++) { /* what is not finite is said in plan->late: x before y */
        moe_ep_error late;
        float x1 = i == 1 ? (float)NAN : 1.0f, home[2] = {i == 2 ? (float)INFINITY : 2.0f, 4.0f};
        memset(&late, 0x77, sizeof late);
        p.late = &late, p.ntokens = i < 3;
        CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, &x1, home, &y, NULL, &err), MOE_EP_OK);
        error_is(&err, "", -1, 0.0);
        CHECK_I64(late.status, i == 1 ? MOE_EP_ERR_NAN : i == 2 ? MOE_EP_ERR_OVERFLOW : MOE_EP_OK);
        CHECK_STR(late.arg, i == 1 ? "x" : i == 2 ? "y" : "");
        CHECK_I64(late.index, i == 1 || i == 2 ? 0 : -1);
        p.late = NULL, p.ntokens = 1;
        CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, &x1, home, &y, NULL, &err), MOE_EP_OK);
    }
    p.nsend = p.nrecv = 3, p.send_token = token, p.recv_row = to, p.send_weight = sw;
    CLEARS(moe_ep_plan_pack(&p, in, out, 8, &err)); /* rows (3,4 | 3,4 | 1,2) */
    CHECK_NEAR(out[1] + 10 * out[4], 14.0, 0, 0);
    CLEARS(moe_ep_plan_place(&p, out, back, 8, &err));
    CHECK_NEAR(back[2] + 10 * back[0], 31.0, 0, 1e-6);
    memset(out, 0, sizeof out);
    CLEARS(moe_ep_plan_unplace(&p, back, out, 8, &err));
    CHECK_NEAR(out[0] + 10 * out[4], 13.0, 0, 0);
    p.weight_on_input = 1;
    CHECK_I64(moe_ep_plan_pack(&p, in, out, 8, NULL), MOE_EP_OK);
    for (int i = 0; i < 6; i++) CHECK_NEAR(out[i], in[2 * token[i / 2] + i % 2] * sw[i / 2], 0, 0);
    CHECK_I64(moe_ep_plan_pack(&p, in, out, 7, &err), MOE_EP_ERR_SIZE);
    error_is(&err, "row_bytes", -1, 7.0);
    CHECK_I64(moe_ep_plan_pack(NULL, in, out, 8, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_plan_pack(&p, NULL, out, 8, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_plan_place(&p, NULL, out, 8, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_plan_place(NULL, in, out, 8, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_plan_unplace(&p, in, out, 0, NULL), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_plan_unplace(NULL, in, out, 8, NULL), MOE_EP_ERR_NULL);
    /* one row needs both ends, no row needs none */
    for (int n = 0; n < 2; n++) {
        const moe_ep_status want = n ? MOE_EP_ERR_NULL : MOE_EP_OK;
        const int64_t here[1] = {0};
        p.ntokens = 1, p.nsend = p.nrecv = n, p.send_token = p.recv_row = here;
        for (int k = 0; k < 4; k++) { /* nothing from, nothing to, both there; the sum without rows */
            const void *from = k == 0 ? NULL : in;
            void *to = k == 1 ? NULL : out;
            const char *name = !n || k > 1 ? "" : k == 0 ? "input" : "output";
            CHECK_I64(moe_ep_plan_pack(&p, from, to, 8, &err), k > 1 ? MOE_EP_OK : want);
            error_is(&err, name, -1, 0.0);
            CHECK_I64(moe_ep_plan_place(&p, from, to, 8, &err), k > 1 ? MOE_EP_OK : want);
            error_is(&err, name, -1, 0.0);
            CHECK_I64(moe_ep_plan_unplace(&p, from, to, 8, &err), k > 1 ? MOE_EP_OK : want);
            error_is(&err, name, -1, 0.0);
        }
        p.ntokens = 0;
        CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, &x, NULL, &y, NULL, &err), MOE_EP_OK);
        p.ntokens = 1, choice[0] = choice[1] = -1;
        CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, &x, NULL, &y, NULL, &err), want);
        error_is(&err, n ? "rows" : "", -1, 0.0);
        CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 0, &x, NULL, &y, NULL, &err), MOE_EP_ERR_SIZE);
        error_is(&err, "hidden", -1, 0.0);
        CHECK_I64(moe_ep_plan_sum(&p, NULL, 8, 1, &x, rows, &y, NULL, &err), MOE_EP_OK);
        error_is(&err, "", -1, 0.0);
        CHECK_NEAR(y, 0.0, 0, 0);
    }
}

/* Rows of 16 bits times their weight, against the rounding of <math.h> in double; what cannot be multiplied is said. */
TEST(packed_rows_of_every_type_times_their_weight)
{
    static const int64_t token[5] = {2, 0, 1, 1, 2};
    uint64_t s = t_seed + 79;
    moe_ep_error err;
    moe_ep_plan p;
    memset(&p, 0, sizeof p);
    p.nsend = 5, p.send_token = token, p.weight_on_input = 1;
    for (int i = 0; i < 60; i++) {
        int bf16 = i & 1, H = 1 + (int)t_below(&s, 19), digits = bf16 ? 8 : 11;
        uint16_t x[3 * 19], rows[5 * 19];
        float w[5];
        for (int j = 0; j < 3 * H; j++)
            x[j] = bf16 ? moe_ep_bf16_from_f32(4 * draw(&s)) : moe_ep_f16_from_f32(4 * draw(&s));
        for (int j = 0; j < 5; j++) w[j] = i % 3 ? (float)(0.1 + t_unit(&s)) : 1.5f; /* 1.5: ties */
        p.send_weight = w, p.elem_bytes = 2, p.elem_type = bf16 ? MOE_EP_BF16 : MOE_EP_F16;
        CLEARS(moe_ep_plan_pack(&p, x, rows, (size_t)(2 * H), &err));
        for (int r = 0; r < 5; r++)
            for (int j = 0; j < H; j++) {
                int exponent;
                uint16_t from = x[token[r] * H + j];
                float v = bf16 ? moe_ep_f32_from_bf16(from) : moe_ep_f32_from_f16(from);
                double exact = (double)(v * w[r]), part = frexp(exact, &exponent);
                if (!bf16 && exponent < -13) continue; /* subnormal */
                double want = ldexp(nearbyint(ldexp(part, digits)), exponent - digits);
                uint16_t got = rows[r * H + j];
                CHECK((bf16 ? moe_ep_f32_from_bf16(got) : moe_ep_f32_from_f16(got)) == (float)want);
            }
        STOP_IF_FAILED("case %d", i);
    }
    /* the worked number */
    const uint16_t three = 0x4040;
    static const int64_t first[1] = {0};
    uint16_t out = 0;
    float w = 0.3f;
    p.nsend = 1, p.send_token = first, p.send_weight = &w, p.elem_bytes = 2, p.elem_type = MOE_EP_BF16;
    CHECK_I64(moe_ep_plan_pack(&p, &three, &out, 2, NULL), MOE_EP_OK);
    CHECK_I64(out, 0x3f66);
    CHECK(moe_ep_f32_from_bf16(out) == 0.8984375f);
    /* elements of which nobody said what they are, and types that are none */
    static const struct { int32_t bytes; int type; moe_ep_status st; } cases[] = {
        {0, MOE_EP_F32, MOE_EP_OK},          {4, MOE_EP_F32, MOE_EP_OK},          {2, MOE_EP_F32, MOE_EP_ERR_CONFIG},
        {1, MOE_EP_F32, MOE_EP_ERR_CONFIG},  {8, MOE_EP_F32, MOE_EP_ERR_CONFIG},  {0, MOE_EP_BF16, MOE_EP_ERR_CONFIG},
        {2, MOE_EP_BF16, MOE_EP_OK},         {4, MOE_EP_F16, MOE_EP_ERR_CONFIG},  {2, MOE_EP_F16, MOE_EP_OK},
        {2, MOE_EP_I8, MOE_EP_ERR_CONFIG},   {2, -1, MOE_EP_ERR_CONFIG},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float x = 2.0f, to = 7.0f;
        p.elem_bytes = cases[i].bytes, p.elem_type = (moe_ep_dtype)cases[i].type, p.weight_on_input = 1;
        CHECK_I64(moe_ep_plan_pack(&p, &x, &to, 4, &err), cases[i].st);
        error_is(&err, cases[i].st ? "plan->elem_type" : "", -1, cases[i].st ? (double)cases[i].type : 0.0);
        if (cases[i].st) CHECK(to == 7.0f);
        p.weight_on_input = 0; /* copies do not ask */
        CHECK_I64(moe_ep_plan_pack(&p, &x, &to, 4, &err), MOE_EP_OK);
        CHECK(to == 2.0f);
    }
    p.elem_bytes = 2, p.elem_type = MOE_EP_BF16, p.weight_on_input = 1;
    CHECK_I64(moe_ep_plan_pack(&p, &three, &out, 3, &err), MOE_EP_ERR_SIZE);
    error_is(&err, "row_bytes", -1, 3.0);
}

/* Llama-4 in bf16: the dispatch without a hook, and one that packs by itself, put weight * token before the experts. */
static int rows_seen(void *user, const moe_ep_plan *p, const void *rx, void *ry, void *stream)
{
    (void)stream, (void)ry;
    memcpy(user, rx, (size_t)p->nrecv * 12);
    return 0;
}
static int pack_and_place(void *user, const moe_ep_plan *p, const void *x, void *rx, size_t row_bytes, void *stream)
{
    uint16_t rows[12 * 6];
    (void)user, (void)stream;
    int code = (int)moe_ep_plan_pack(p, x, rows, row_bytes, NULL);
    return code ? code : (int)moe_ep_plan_place(p, rows, rx, row_bytes, NULL);
}
static int combine_nothing(void *user, const moe_ep_plan *p, const void *ry, void *y, size_t row_bytes, void *stream)
{
    (void)user, (void)p, (void)ry, (void)y, (void)row_bytes, (void)stream;
    return 0;
}
TEST(weights_on_the_input_reach_bf16_rows)
{
    for (int i = 0; i < 4; i++) {
        uint16_t x[36], seen[12 * 6];
        rig g;
        rig_up(&g, t_seed + 80);
        memset(&g.hooks, 0, sizeof g.hooks);
        g.hooks.size = sizeof g.hooks, g.hooks.user = seen, g.hooks.experts = rows_seen;
        g.hooks.combine = combine_nothing;
        if (i == 1 || i == 2) g.hooks.dispatch = pack_and_place;
        g.layer.weight_on_input = i < 3;
        g.d.hooks = &g.hooks, g.d.elem_bytes = 2, g.d.elem_type = i < 2 ? MOE_EP_BF16 : MOE_EP_F32;
        for (int j = 0; j < 36; j++) x[j] = moe_ep_bf16_from_f32(g.x[j]);
        g.b.num_tokens = 6, g.b.x = x;
        CHECK_I64(rig_start(&g), MOE_EP_OK);
        if (i == 2) { /* nobody said what two bytes are: the dispatch that packs says so */
            CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_ERR_CONFIG);
            CHECK_STR(g.err.arg, "hooks.dispatch");
            rig_down(&g);
            continue;
        }
        if (i == 3) { /* switched on behind the back of moe_ep_rank_init */
            CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_OK);
            g.layer.weight_on_input = 1;
            CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_ERR_CONFIG);
            CHECK_STR(g.err.arg, "plan->elem_type");
            rig_down(&g);
            continue;
        }
        CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_OK);
        const moe_ep_plan *p = moe_ep_rank_plan_of(&g.rank, 0);
        CHECK_I64(p->elem_bytes, 2);
        CHECK_I64(p->elem_type, MOE_EP_BF16);
        for (int k = 0; k < 12; k++)
            for (int h = 0; h < 6; h++)
                CHECK_I64(seen[p->recv_row[p->choice_row[k]] * 6 + h],
                          moe_ep_bf16_from_f32(moe_ep_f32_from_bf16(x[k / 2 * 6 + h]) * g.w[k]));
        rig_down(&g);
    }
}

/* ---- memory ---- */

typedef struct row_counter {
    int allocs, frees;
} row_counter;
static void *rubbish(size_t bytes)
{
    void *p = malloc(bytes);
    if (p) memset(p, 0x5b, bytes);
    return p;
}
static void *row_alloc(void *user, size_t bytes)
{
    ((row_counter *)user)->allocs++;
    return rubbish(bytes);
}
static void row_free(void *user, void *p)
{
    ((row_counter *)user)->frees++;
    free(p);
}

/* Host memory and rows: every batch within the reserved sizes lives on what reserve took, one batch or two. */
TEST(no_call_after_reserve_allocates)
{
    uint64_t s = t_seed + 71;
    for (int i = 0; i < 16; i++) {
        int64_t most = 1 + t_below(&s, 40);
        model m = make_model(4, 6, 1 + (int)t_below(&s, 60), &s);
        moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
        counter c = {0, 0, 0, {0}};
        row_counter rows = {0, 0};
        moe_ep_hooks h;
        moe_ep_rank rank;
        moe_ep_batch b[2];
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(4 * most));
        float *w = t_alloc(sizeof(float) * (size_t)(4 * most)), *x = floats(2 * most * 6, &s);
        float *y = t_alloc(sizeof(float) * (size_t)(2 * most * 6));
        memset(&h, 0, sizeof h);
        memset(b, 0, sizeof b);
        h.size = sizeof h, h.user = &rows, h.alloc_fn = row_alloc, h.free_fn = row_free;
        if (i & 1) layer.shared = &m.shared;
        layer.weight_on_input = i >> 1 & 1;
        layer.num_null = i >> 2 & 1;
        moe_ep_rank_desc d = one_rank(i & 8 ? &h : NULL, &layer);
        d.alloc.alloc_fn = count_alloc, d.alloc.free_fn = count_free, d.alloc.user = &c;
        CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_reserve(&rank, most, 2 * most, NULL), MOE_EP_OK);
        int before = c.allocs;
        CHECK_I64(rows.allocs, i & 8 ? 4 : 0);
        for (int call = 0; call < 12; call++) {
            for (int k = 0; k < 2; k++) {
                b[k].num_tokens = call == 0 ? most : t_below(&s, most + 1);
                b[k].slot_ids = ids + k * 2 * most, b[k].weights = w + k * 2 * most;
                b[k].x = x + k * most * 6, b[k].y = y + k * most * 6;
                draw_ids(ids + k * 2 * most, w + k * 2 * most, b[k].num_tokens, 2, 4 + layer.num_null, call & 1, &s);
            }
            if (call % 3 == 2) CHECK_I64(moe_ep_rank_forward(&rank, b, NULL, NULL), MOE_EP_OK);
            else CHECK_I64(moe_ep_rank_forward2(&rank, b, NULL, NULL), MOE_EP_OK);
        }
        CHECK_I64(c.allocs, before);
        CHECK_I64(rows.allocs, i & 8 ? 4 : 0);
        moe_ep_rank_free(&rank);
        CHECK_I64(c.live, 0);
        CHECK_I64(rows.allocs, rows.frees);
        free(ids), free(w), free(x), free(y);
        free_model(&m);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(nothing_is_allocated_after_reserve_and_nothing_leaks_when_memory_runs_out)
{
    uint64_t s = t_seed + 7;
    model m = make_model(4, 6, 9, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    layer.shared = &m.shared;
    for (int fail = 0, done = 0; !done; fail++) {
        counter c = {0, 0, fail, {0}};
        moe_ep_rank_desc d = one_rank(NULL, &layer);
        moe_ep_rank rank;
        moe_ep_batch b;
        int32_t ids[16];
        float w[16], y[48], *x = floats(48, &s);
        moe_ep_status st;
        memset(&rank, 0, sizeof rank);
        memset(&b, 0, sizeof b);
        d.alloc.alloc_fn = count_alloc, d.alloc.free_fn = count_free, d.alloc.user = &c;
        draw_ids(ids, w, 8, 2, 4, 0, &s);
        b.num_tokens = 8, b.slot_ids = ids, b.weights = w, b.x = x, b.y = y;
        st = moe_ep_rank_init(&rank, &d, NULL);
        if (st == MOE_EP_OK && fail == 0) {
            CHECK_I64(moe_ep_rank_reserve(&rank, 8, 16, NULL), MOE_EP_OK);
            int before = c.allocs;
            CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, NULL), MOE_EP_OK);
            CHECK_I64(c.allocs, before);
        } else if (st == MOE_EP_OK) {
            st = moe_ep_rank_forward(&rank, &b, NULL, NULL);
        }
        if (fail > 0) {
            CHECK(st == MOE_EP_OK || st == MOE_EP_ERR_MEMORY);
            done = st == MOE_EP_OK;
        }
        moe_ep_rank_free(&rank);
        CHECK_I64(c.live, 0);
        free(x);
        STOP_IF_FAILED("allocation %d", fail);
    }
    /* and in-process ranks, through the allocator of a scratch */
    own_placement o = make_placement(REPLICATED, 4, 2, 6, &s);
    for (int fail = 1, done = 0; !done; fail++) {
        counter c = {0, 0, fail, {0}};
        moe_ep_scratch scratch;
        int32_t ids[16];
        float w[16], y[48], before[48], *x = floats(48, &s);
        moe_ep_status st;
        draw_ids(ids, w, 8, 2, 4, 0, &s);
        layer.ids = ids, layer.choice_weights = w;
        memset(&scratch, 0, sizeof scratch);
        scratch.alloc.alloc_fn = count_alloc, scratch.alloc.free_fn = count_free, scratch.alloc.user = &c;
        memset(y, 0x11, sizeof y);
        memcpy(before, y, sizeof y);
        st = moe_ep_forward_ranks(&layer, &o.p, 0, NULL, NULL, x, 8, y, NULL, &scratch, NULL);
        CHECK(st == MOE_EP_OK || st == MOE_EP_ERR_MEMORY);
        done = st == MOE_EP_OK;
        CHECK(done || memcmp(before, y, sizeof y) == 0);
        for (int again = 0; done && again < 3; again++) { /* other routings of the same size need no more */
            draw_ids(ids, w, 8, 2, 4, again & 1, &s);
            CHECK_I64(moe_ep_forward_ranks(&layer, &o.p, 0, NULL, NULL, x, 8, y, NULL, &scratch, NULL), MOE_EP_OK);
            CHECK_I64(c.allocs, 1);
        }
        moe_ep_scratch_free(&scratch);
        CHECK_I64(c.live, 0);
        free(x);
        STOP_IF_FAILED("allocation %d", fail);
    }
    free(o.mem);
    free_model(&m);
}

static int copy_experts(void *user, const moe_ep_plan *p, const void *rx, void *ry, void *stream)
{
    (void)user, (void)stream;
    memcpy(ry, rx, (size_t)p->nrecv * 24);
    return 0;
}
static int first_choices(void *user, const moe_ep_plan *p, const void *ry, void *y, size_t row_bytes, void *stream)
{
    (void)user, (void)stream;
    for (int64_t t = 0; t < p->ntokens; t++)
        memcpy((char *)y + (size_t)t * row_bytes,
               (const char *)ry + (size_t)p->recv_row[p->choice_row[t * p->top_k]] * row_bytes, row_bytes);
    return 0;
}

/* The dispatch without a hook takes memory of its own, with a layer and without one. */
TEST(a_dispatch_without_a_hook_lives_on_what_was_reserved)
{
    uint64_t s = t_seed + 78;
    for (int i = 0; i < 8; i++) {
        int64_t most = 1 + t_below(&s, 40);
        counter c = {0, 0, 0, {0}};
        rig g;
        rig_up(&g, t_seed + (uint64_t)i);
        float *x = floats(most * 6, &s), *y = floats(most * 6, &s);
        int32_t *ids = t_alloc(sizeof(int32_t) * (size_t)(2 * most));
        float *w = t_alloc(sizeof(float) * (size_t)(2 * most));
        memset(&g.hooks, 0, sizeof g.hooks);
        g.hooks.size = sizeof g.hooks, g.hooks.experts = copy_experts, g.hooks.combine = first_choices;
        g.d.hooks = &g.hooks;
        if (i & 1) g.d.layer = NULL;
        g.d.alloc.alloc_fn = count_alloc, g.d.alloc.free_fn = count_free, g.d.alloc.user = &c;
        CHECK_I64(rig_start(&g), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_reserve(&g.rank, most, 2 * most, &g.err), MOE_EP_OK);
        CHECK_I64(c.allocs, 11); /* the last one for the rows that go out: 24 bytes each, and room to align them */
        CHECK_I64(c.bytes[10], (2 * most * 24 + 63) / 64 * 64 + 128);
        for (int call = 0; call < 3; call++) {
            g.b.num_tokens = call == 0 ? most : t_below(&s, most + 1);
            draw_ids(ids, w, g.b.num_tokens, 2, 4, 0, &s);
            g.b.slot_ids = ids, g.b.weights = w, g.b.x = x, g.b.y = y;
            CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_OK);
            CHECK(memcmp(x, y, sizeof(float) * (size_t)(6 * g.b.num_tokens)) == 0);
        }
        CHECK_I64(c.allocs, 11);
        rig_down(&g);
        CHECK_I64(c.live, 0);
        free(x), free(y), free(ids), free(w);
        STOP_IF_FAILED("case %d", i);
    }
}

static int device_calls;
static int64_t device_room;
static int no_plan_stage(void *user, const moe_ep_plan *p, const void *in, void *out, size_t row_bytes, void *stream)
{
    (void)user, (void)in, (void)out, (void)row_bytes, (void)stream;
    CHECK(p->topk_ids == NULL && p->send_token == NULL && p->slot_start == NULL && p->nsend == 0);
    CHECK(p->call == (void *)&device_calls && p->ntokens == 5);
    CHECK_I64(p->room_rows, device_room);
    device_calls++;
    return 0;
}
static int no_plan_experts(void *user, const moe_ep_plan *p, const void *rx, void *ry, void *stream)
{
    CHECK(rx != NULL && ry != NULL && rx != ry);
    return no_plan_stage(user, p, rx, ry, 0, stream);
}

/* ---- memory of a device: pages that this process may not touch while the library runs ---- */

typedef struct device {
    struct { void *at; size_t bytes; } block[16];
    int blocks;
    int hooked; /* bits: dispatch 1, experts 2, combine 4 */
    const moe_ep_forward_desc *layer;
    int64_t launches;
    float *rows; /* the device's own buffer on the way */
} device;

static size_t pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes / page + 1) * page;
}

/* protect: the host must not touch it. */
static void *device_alloc(device *v, size_t bytes, int protect)
{
    void *p = mmap(NULL, pages(bytes), protect ? PROT_NONE : PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED && v->blocks < 16);
    v->block[v->blocks].at = p;
    v->block[v->blocks++].bytes = protect ? pages(bytes) : 0;
    return p;
}
static void device_open(device *v, int open)
{
    for (int i = 0; i < v->blocks; i++)
        if (v->block[i].bytes)
            CHECK_I64(mprotect(v->block[i].at, v->block[i].bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE), 0);
}
/* Row buffers are the device's alone when no CPU stage touches them. */
static void *device_rows(void *user, size_t bytes)
{
    device *v = user;
    int second = v->blocks & 1; /* rx, ry, rx, ry .. */
    return device_alloc(v, bytes, (v->hooked & (second ? 6 : 3)) == (second ? 6 : 3));
}
static void device_free(void *user, void *ptr)
{
    device *v = user;
    for (int i = 0; i < v->blocks; i++)
        if (v->block[i].at == ptr) munmap(ptr, v->block[i].bytes ? v->block[i].bytes : 1), v->block[i].bytes = 0;
}
static int device_dispatch(void *user, const moe_ep_plan *p, const void *x, void *rx, size_t row_bytes, void *stream)
{
    device *v = user;
    (void)stream;
    device_open(v, 1);
    CHECK_I64(moe_ep_plan_pack(p, x, v->rows, row_bytes, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_place(p, v->rows, rx, row_bytes, NULL), MOE_EP_OK);
    device_open(v, 0);
    v->launches++;
    return 0;
}
static int device_experts(void *user, const moe_ep_plan *p, const void *rx, void *ry, void *stream)
{
    device *v = user;
    (void)stream;
    device_open(v, 1);
    CHECK_I64(moe_ep_experts(v->layer, rx, p->slot_start, p->nslots, NULL, ry, NULL, NULL), MOE_EP_OK);
    device_open(v, 0);
    v->launches++;
    return 0;
}
static int device_combine(void *user, const moe_ep_plan *p, const void *ry, void *y, size_t row_bytes, void *stream)
{
    device *v = user;
    (void)stream;
    device_open(v, 1);
    CHECK_I64(moe_ep_plan_unplace(p, ry, v->rows, row_bytes, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_plan_sum(p, v->layer, 4, (int32_t)(row_bytes / 4), *(const float *const *)p->call, v->rows, y,
                              NULL,
                              NULL), MOE_EP_OK);
    device_open(v, 0);
    v->launches++;
    return 0;
}

TEST(memory_of_stages_with_a_hook_is_never_touched)
{
    enum { H = 6, T = 9 };
    uint64_t s = t_seed + 70;
    model m = make_model(4, H, 5, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    layer.shared = &m.shared;
    for (int hooked = 0; hooked < 8; hooked++) {
        device v;
        moe_ep_hooks h;
        moe_ep_rank_desc d;
        moe_ep_rank rank;
        moe_ep_batch b[2];
        float *in[2], want[T * H];
        int32_t ids[2][2 * T];
        float w[2][2 * T];
        memset(&v, 0, sizeof v);
        memset(&h, 0, sizeof h);
        memset(b, 0, sizeof b);
        v.hooked = hooked, v.layer = &layer, v.rows = t_alloc(sizeof(float) * H * 2 * T);
        h.size = sizeof h, h.user = &v, h.alloc_fn = device_rows, h.free_fn = device_free;
        if (hooked & 1) h.dispatch = device_dispatch;
        if (hooked & 2) h.experts = device_experts;
        if (hooked & 4) h.combine = device_combine, h.adds_shared = 1;
        d = one_rank(&h, &layer);
        for (int i = 0; i < 2; i++) {
            float *x = floats(T * H, &s);
            draw_ids(ids[i], w[i], T, 2, 4, 1, &s);
            /* the sum at the end reads x again */
            b[i].x = in[i] = device_alloc(&v, sizeof(float) * T * H, (hooked & 5) == 5);
            b[i].y = device_alloc(&v, sizeof(float) * T * H, (hooked & 4) == 4);
            b[i].num_tokens = T, b[i].slot_ids = ids[i], b[i].weights = w[i], b[i].call = &in[i];
            device_open(&v, 1);
            memcpy(in[i], x, sizeof(float) * T * H);
            device_open(&v, 0);
            free(x);
        }
        CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_forward2(&rank, b, NULL, NULL), MOE_EP_OK);
        CHECK_I64(v.launches, 2 * ((hooked & 1) + (hooked >> 1 & 1) + (hooked >> 2)));
        device_open(&v, 1);
        for (int i = 0; i < 2; i++) {
            moe_ep_forward_desc one = layer;
            one.ids = ids[i], one.choice_weights = w[i];
            CHECK_I64(moe_ep_forward(&one, in[i], T, want, NULL, NULL), MOE_EP_OK);
            CHECK(memcmp(want, b[i].y, sizeof want) == 0);
        }
        device_open(&v, 0);
        moe_ep_rank_free(&rank);
        for (int i = 0; i < 4; i++) munmap(v.block[i].at, pages(sizeof(float) * T * H));
        free(v.rows);
        STOP_IF_FAILED("hooks %d", hooked);
    }
    free_model(&m);
}

TEST(routing_that_stays_on_the_device_needs_no_plan)
{
    recorder r;
    memset(&r, 0, sizeof r);
    moe_ep_hooks h = all_hooks(&r);
    h.dispatch = no_plan_stage, h.combine = no_plan_stage, h.experts = no_plan_experts, h.wait = NULL;
    moe_ep_rank_desc d = one_rank(&h, NULL);
    moe_ep_rank rank;
    moe_ep_batch b;
    memset(&b, 0, sizeof b);
    b.num_tokens = 5, b.no_plan = 1, b.x = &r, b.y = &d, b.call = &device_calls;
    void *hidden = mmap(NULL, pages(1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b.slot_ids = hidden, b.weights = hidden; /* not read either */
    CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
    device_calls = 0;
    for (int i = 0; i < 2; i++) { /* nobody has said how many rows there are: no hook is called */
        moe_ep_batch two[2] = {b, b};
        moe_ep_error err;
        CHECK_I64(moe_ep_rank_forward2(&rank, two, NULL, &err), MOE_EP_ERR_CONFIG);
        error_is(&err, "no_plan", -1, 1.0);
        CHECK_STR(err.what, "needs moe_ep_rank_reserve before");
        CHECK_I64(moe_ep_rank_reserve(&rank, 5, -1, NULL), MOE_EP_ERR_SIZE); /* a refused one does not count */
    }
    CHECK_I64(device_calls, 0);
    CHECK_I64(moe_ep_rank_reserve(&rank, 5, 10, NULL), MOE_EP_OK);
    device_room = 10;
    CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, NULL), MOE_EP_OK);
    CHECK_I64(device_calls, 3);
    CHECK_STR(r.log, "");
    moe_ep_rank_free(&rank);
    munmap(hidden, pages(1));
    CHECK_I64(r.allocs, r.frees);
}

typedef struct sized {
    size_t bytes[8];
    int allocs, frees, fail_at;
} sized;
static void *sized_alloc(void *user, size_t bytes)
{
    sized *z = user;
    if (z->allocs + 1 == z->fail_at) return NULL;
    z->bytes[z->allocs++ & 7] = bytes;
    return rubbish(bytes);
}
static void sized_free(void *user, void *p)
{
    ((sized *)user)->frees++;
    free(p);
}

TEST(a_batch_without_a_plan_has_the_rows_that_were_reserved)
{
    sized z;
    rig g;
    rig_up(&g, t_seed + 72);
    memset(&z, 0, sizeof z);
    g.hooks.user = &z, g.hooks.alloc_fn = sized_alloc, g.hooks.free_fn = sized_free;
    g.hooks.counts = NULL, g.hooks.wait = NULL;
    g.hooks.dispatch = no_plan_stage, g.hooks.combine = no_plan_stage, g.hooks.experts = no_plan_experts;
    g.d.hooks = &g.hooks;
    CHECK_I64(rig_start(&g), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_reserve(&g.rank, 5, 10, &g.err), MOE_EP_OK);
    error_is(&g.err, "", -1, 0.0);
    CHECK_I64(moe_ep_rank_plan(&g.rank, 0, &g.b, NULL, &g.err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_plan(&g.rank, 1, &g.b, NULL, &g.err), MOE_EP_OK);
    CHECK(moe_ep_rank_plan_of(&g.rank, 0) && moe_ep_rank_plan_of(&g.rank, 1) && !moe_ep_rank_plan_of(&g.rank, 2));
    CHECK_I64(moe_ep_rank_plan_of(&g.rank, 0)->room_rows, 10);
    CHECK_I64(moe_ep_rank_plan_of(&g.rank, 0)->nrecv, 4);
    /* reserve once more: plans made before are void, and what is there suffices */
    CHECK_I64(moe_ep_rank_reserve(&g.rank, 5, 10, &g.err), MOE_EP_OK);
    CHECK(!moe_ep_rank_plan_of(&g.rank, 0) && !moe_ep_rank_plan_of(&g.rank, 1));
    CHECK_I64(z.allocs, 4);
    /* rows of a plan that do not fit and are refused: the smaller ones are gone */
    g.b.num_tokens = 6;
    z.fail_at = 5;
    CHECK_I64(moe_ep_rank_plan(&g.rank, 0, &g.b, NULL, &g.err), MOE_EP_ERR_MEMORY);
    error_is(&g.err, "rx", -1, 12.0 * 24.0);
    z.fail_at = 0;
    g.b.num_tokens = 5, g.b.no_plan = 1, g.b.call = &device_calls;
    device_calls = 0, device_room = 10;
    CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_OK);
    error_is(&g.err, "", -1, 0.0);
    CHECK_I64(device_calls, 3);
    CHECK_I64(z.allocs, 6);
    for (int i = 0; i < 6; i++) CHECK_I64(z.bytes[i], 240);
    rig_down(&g);
    CHECK_I64(z.frees, 6);
}

/* One token, one choice: the smallest batch has the same checks. */
TEST(a_batch_of_one_token_is_checked_too)
{
    static const moe_ep_status want[6] = {MOE_EP_OK,       MOE_EP_ERR_NULL,      MOE_EP_ERR_NULL,
                                          MOE_EP_ERR_NULL, MOE_EP_ERR_EXPERT_ID, MOE_EP_ERR_NAN};
    static const char *const names[6] = {"", "x", "y", "slot_ids", "slot_ids", "weights"};
    int32_t id, wrong[2] = {-2, 4};
    float w;
    rig g;
    rig_up(&g, t_seed + 73);
    g.d.top_k = 1;
    CHECK_I64(rig_start(&g), MOE_EP_OK);
    for (int bad = 0; bad < 7; bad++) {
        moe_ep_batch b = g.b;
        int kind = bad < 5 ? bad : bad - 1;
        id = kind == 4 ? wrong[bad - 4] : 3, w = kind == 5 ? (float)NAN : 0.5f;
        b.num_tokens = 1, b.slot_ids = &id, b.weights = &w;
        if (kind == 1) b.x = NULL;
        if (kind == 2) b.y = NULL;
        if (kind == 3) b.slot_ids = NULL;
        CHECK_I64(moe_ep_rank_forward(&g.rank, &b, NULL, &g.err), want[kind]);
        CHECK_STR(g.err.arg, names[kind]);
        CHECK_I64(g.err.index, kind < 4 ? -1 : 0);
    }
    rig_down(&g);
}

/* An empty slot: its rows of tables say nothing, neighbours serve; here it is the second of a single expert. */
TEST(an_empty_slot_beside_the_only_expert)
{
    static const int32_t held[4] = {0, -1, 0, -1};
    uint64_t s = t_seed + 74;
    rig g;
    float want[12];
    rig_up(&g, s);
    g.m.w.num_experts = 1;
    g.d.slot_expert = held;
    int32_t slots[4] = {0, 2, 2, 0}, same[4] = {0, 0, 0, 0};
    g.b.slot_ids = slots;
    CHECK_I64(rig_start(&g), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_OK);
    g.layer.top_k = 1;
    for (int t = 0; t < 2; t++) { /* both choices are the one expert: twice with its weights */
        float part[2][6];
        for (int k = 0; k < 2; k++) {
            moe_ep_forward_desc one = desc_of(&g.m, 1, same, g.w + 2 * t + k);
            CHECK_I64(moe_ep_forward(&one, g.x + 6 * t, 1, part[k], NULL, NULL), MOE_EP_OK);
        }
        for (int h = 0; h < 6; h++) want[6 * t + h] = part[0][h] + part[1][h];
    }
    for (int i = 0; i < 12; i++) CHECK_NEAR(g.y[i], want[i], 1e-5, 1e-6);
    for (int wrong = 1; wrong < 4; wrong += 2) {
        slots[3] = wrong;
        CHECK_I64(moe_ep_rank_forward(&g.rank, &g.b, NULL, &g.err), MOE_EP_ERR_PLACEMENT);
        error_is(&g.err, "counts", wrong, 1.0);
    }
    rig_down(&g);
}

TEST(bad_ranks_and_batches_are_named)
{
    uint64_t s = t_seed + 8;
    model m = make_model(4, 6, 3, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    recorder r;
    memset(&r, 0, sizeof r);
    moe_ep_hooks h = all_hooks(&r), broken;
    moe_ep_rank_desc d, good = one_rank(&h, &layer);
    moe_ep_rank rank;
    moe_ep_error err;
    static const int32_t falling[3] = {0, 3, 2}, late[3] = {1, 3, 4}, many[2] = {0, 5};
    int32_t wrong[4] = {0, 4, 1, 2};
    memset(&rank, 0, sizeof rank);
#define BAD(change, status, name)                                                                   \
    do {                                                                                            \
        d = good;                                                                                   \
        broken = h;                                                                                 \
        change;                                                                                     \
        CHECK_I64(moe_ep_rank_init(&rank, &d, &err), status);                                       \
        CHECK_STR(err.arg, name);                                                                   \
        if (status == MOE_EP_ERR_CONFIG) CHECK_I64(err.index, -1);                                  \
        CHECK(rank.state == NULL);                                                                  \
    } while (0)
    CHECK_I64(moe_ep_rank_init(NULL, &good, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_init(&rank, NULL, &err), MOE_EP_ERR_NULL);
    BAD(d.num_ranks = 0, MOE_EP_ERR_SIZE, "num_ranks");
    BAD(d.rank = 1, MOE_EP_ERR_RANGE, "rank");
    BAD(d.rank = -1, MOE_EP_ERR_RANGE, "rank");
    BAD(d.hidden = 0, MOE_EP_ERR_SIZE, "hidden");
    BAD(d.hidden = 7, MOE_EP_ERR_SIZE, "hidden");
    BAD(d.elem_bytes = -1, MOE_EP_ERR_SIZE, "elem_bytes");
    BAD(d.top_k = 0, MOE_EP_ERR_SIZE, "top_k");
    BAD(d.top_k = 5, MOE_EP_ERR_TOP_K, "top_k");
    BAD(d.slot_start = NULL, MOE_EP_ERR_NULL, "slot_start");
    BAD((d.num_ranks = 2, d.slot_start = falling), MOE_EP_ERR_RANGE, "slot_start");
    BAD((d.num_ranks = 2, d.slot_start = late), MOE_EP_ERR_RANGE, "slot_start");
    BAD(d.slot_start = many, MOE_EP_ERR_SIZE, "slot_start");
    BAD(d.slot_expert = wrong, MOE_EP_ERR_EXPERT_ID, "slot_expert");
    BAD(d.alloc.alloc_fn = count_alloc, MOE_EP_ERR_CONFIG, "alloc");
    BAD((broken.size = 8, d.hooks = &broken), MOE_EP_ERR_CONFIG, "hooks.size");
    BAD((broken.free_fn = NULL, d.hooks = &broken), MOE_EP_ERR_CONFIG, "hooks.alloc_fn");
    error_is(&err, "hooks.alloc_fn", -1, 0.0);
    BAD((broken.counts = NULL, d.num_ranks = 2, d.hooks = &broken), MOE_EP_ERR_CONFIG, "hooks.counts");
    error_is(&err, "hooks.counts", -1, 0.0);
    BAD((broken.dispatch = NULL, d.num_ranks = 2, d.hooks = &broken), MOE_EP_ERR_CONFIG, "hooks.dispatch");
    error_is(&err, "hooks.dispatch", -1, 0.0);
    BAD((broken.combine = NULL, d.num_ranks = 2, d.hooks = &broken), MOE_EP_ERR_CONFIG, "hooks.combine");
    error_is(&err, "hooks.combine", -1, 0.0);
    BAD((broken.experts = NULL, d.layer = NULL, d.hooks = &broken), MOE_EP_ERR_CONFIG, "layer");
    error_is(&err, "layer", -1, 0.0);
    BAD((broken.experts = NULL, d.elem_bytes = 2, d.hooks = &broken), MOE_EP_ERR_CONFIG, "elem_bytes");
    BAD((broken.combine = NULL, d.elem_bytes = 2, d.hooks = &broken), MOE_EP_ERR_CONFIG, "elem_bytes");
    error_is(&err, "elem_bytes", -1, 2.0);
    layer.shared = &m.shared; /* of which only a combine hook that says so is sure to think */
    BAD((broken.adds_shared = 0, d.hooks = &broken), MOE_EP_ERR_CONFIG, "hooks.adds_shared");
    error_is(&err, "hooks.adds_shared", -1, 0.0);
    for (int i = 0; i < 4; i++) {
        broken = h, d = good, d.hooks = &broken;
        broken.adds_shared = i == 0, layer.shared = i == 1 ? NULL : &m.shared;
        if (i == 2) broken.combine = NULL;
        if (i == 3) d.layer = NULL;
        CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
        moe_ep_rank_free(&rank);
    }
    layer.shared = NULL;
    BAD(d.elem_type = MOE_EP_I8, MOE_EP_ERR_RANGE, "elem_type");
    BAD(d.elem_type = (moe_ep_dtype)-1, MOE_EP_ERR_RANGE, "elem_type");
    error_is(&err, "elem_type", -1, -1.0);
    BAD(d.elem_type = MOE_EP_BF16, MOE_EP_ERR_CONFIG, "elem_bytes");
    BAD((d.elem_type = MOE_EP_F16, d.elem_bytes = 4), MOE_EP_ERR_CONFIG, "elem_bytes");
    error_is(&err, "elem_bytes", -1, 4.0);
    BAD((broken.alloc_fn = NULL, d.hooks = &broken), MOE_EP_ERR_CONFIG, "hooks.alloc_fn");
    error_is(&err, "hooks.alloc_fn", -1, 0.0);
    BAD(d.alloc.free_fn = count_free, MOE_EP_ERR_CONFIG, "alloc");
    error_is(&err, "alloc", -1, 0.0);
    for (int i = 0; i < 4; i++) {
        int32_t one_wrong[4] = {0, 1, 2, 3};
        one_wrong[i] = i & 1 ? -2 : 4;
        BAD(d.slot_expert = one_wrong, MOE_EP_ERR_EXPERT_ID, "slot_expert");
        error_is(&err, "slot_expert", i, i & 1 ? -2.0 : 4.0);
    }
    CHECK_I64(moe_ep_rank_init(&rank, &good, &err), MOE_EP_OK);
    error_is(&err, "", -1, 0.0);
    moe_ep_batch b, bad;
    int32_t ids[4] = {0, 1, 2, 3};
    float w[4] = {1, 1, 1, 1}, x[12] = {0}, y[12];
    memset(&b, 0, sizeof b);
    b.num_tokens = 2, b.slot_ids = ids, b.weights = w, b.x = x, b.y = y;
    r.stream = NULL;
    r.m = &m;
    r.x[0] = x, r.y[0] = y;
#define BAD_BATCH(change, status, name, at)                                                         \
    do {                                                                                            \
        bad = b;                                                                                    \
        change;                                                                                     \
        CHECK_I64(moe_ep_rank_forward(&rank, &bad, NULL, &err), status);                            \
        CHECK_STR(err.arg, name);                                                                   \
        CHECK_I64(err.index, at);                                                                   \
        CHECK_STR(r.log, "");                                                                       \
        ids[2] = 2, w[3] = 1.0f;                                                                    \
    } while (0)
    BAD_BATCH(bad.num_tokens = -1, MOE_EP_ERR_SIZE, "num_tokens", -1);
    CHECK_NEAR(err.value, -1.0, 0, 0);
    BAD_BATCH(bad.num_tokens = INT64_MAX / 2, MOE_EP_ERR_OVERFLOW, "num_tokens", -1);
    CHECK_NEAR(err.value, (double)(INT64_MAX / 2), 0, 0);
    BAD_BATCH(bad.x = NULL, MOE_EP_ERR_NULL, "x", -1);
    BAD_BATCH(bad.y = NULL, MOE_EP_ERR_NULL, "y", -1);
    BAD_BATCH(bad.slot_ids = NULL, MOE_EP_ERR_NULL, "slot_ids", -1);
    BAD_BATCH(ids[2] = 4, MOE_EP_ERR_EXPERT_ID, "slot_ids", 2);
    BAD_BATCH(ids[2] = -2, MOE_EP_ERR_EXPERT_ID, "slot_ids", 2);
    BAD_BATCH(w[3] = (float)NAN, MOE_EP_ERR_NAN, "weights", 3);
    {
        moe_ep_batch both[2] = {b, b}; /* of two that are wrong the first is named */
        both[0].x = NULL, both[1].num_tokens = -1;
        CHECK_I64(moe_ep_rank_forward2(&rank, both, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_STR(err.arg, "x");
        CHECK_STR(r.log, "");
    }
    CHECK_I64(moe_ep_rank_forward(&rank, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_forward(NULL, &b, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_forward2(&rank, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_forward2(NULL, &b, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_plan(&rank, 2, &b, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_rank_experts(&rank, 0, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(moe_ep_rank_combine(&rank, -1, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_rank_finish(NULL, 0, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_reserve(NULL, 1, 1, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_rank_reserve(&rank, -1, 1, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_rank_reserve(&rank, 1, -1, &err), MOE_EP_ERR_SIZE);
    CHECK(moe_ep_rank_plan_of(NULL, 0) == NULL && moe_ep_rank_plan_of(&rank, 7) == NULL);
    moe_ep_rank_free(&rank);
    moe_ep_rank_free(NULL);
    free_model(&m);
}

TEST(bad_in_process_calls_are_named_and_y_stays)
{
    uint64_t s = t_seed + 9;
    model m = make_model(4, 3, 3, &s);
    own_placement o = make_placement(CONTIGUOUS, 4, 2, 4, &s);
    int32_t ids[8] = {0, 1, 2, 3, 0, 1, 2, 3};
    int64_t three[2] = {2, 1}, negative[2] = {5, -1}, below[2] = {-1, 5};
    float x[12] = {0}, y[12], before[12];
    moe_ep_router router = moe_ep_router_mixtral(4, 2);
    moe_ep_forward_desc d = desc_of(&m, 2, ids, NULL), e;
    moe_ep_scratch fixed = moe_ep_scratch_fixed(y, 16);
    moe_ep_error err;
    memset(y, 0x5a, sizeof y);
    memcpy(before, y, sizeof y);
    CHECK_I64(moe_ep_forward_ranks(NULL, &o.p, 0, NULL, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_forward_ranks(&d, NULL, 0, NULL, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 1, NULL, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, -1, NULL, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, three, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, negative, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, below, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    e = d, e.blas_min_rows = -1;
    CHECK_I64(moe_ep_forward_ranks(&e, &o.p, 0, NULL, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, -1, y, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, NULL, 4, y, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 4, y, NULL, &fixed, &err), MOE_EP_ERR_SCRATCH);
    CHECK((double)fixed.need - err.value < 0.5 && fixed.need > 16);
    e = d, e.router = &router, e.gate = m.gate;
    CHECK_I64(moe_ep_forward_ranks(&e, &o.p, 0, NULL, ids, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_CONFIG);
    o.p.slot_expert[3] = -1; /* expert 3 has lost its slot */
    CHECK_I64(moe_ep_placement_index(&o.p, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_LOST_EXPERT);
    CHECK_I64(err.index, 3);
    o.p.slot_expert[3] = 4;
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 3);
    CHECK(memcmp(before, y, sizeof y) == 0);
    free(o.mem);
    free_model(&m);
}

TEST(ranks_name_the_first_value_that_overflows_as_one_device_does)
{
    uint64_t s = t_seed + 31;
    model m = make_model(4, 5, 3, &s);
    own_placement o = make_placement(CONTIGUOUS, 4, 2, 4, &s);
    int32_t ids[8] = {0, 1, 2, 3, 4, 4, 0, 3}; /* 4: identity */
    float weights[8] = {1, 1, 1, 1, 2, 2, 1, 1}, x[20], y[20], want[20];
    moe_ep_forward_desc d = desc_of(&m, 2, ids, weights);
    moe_ep_ranks_result res;
    moe_ep_error a, b;
    d.num_null = 1;
    for (int i = 0; i < 20; i++) x[i] = draw(&s);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 4, y, NULL, NULL, NULL), MOE_EP_OK);
    x[13] = -1e38f; /* 4 * -1e38 */
    memset(&res, 0, sizeof res);
    CHECK_I64(moe_ep_forward(&d, x, 4, want, NULL, &a), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 4, y, &res, NULL, &b), MOE_EP_ERR_OVERFLOW);
    CHECK(memcmp(y, want, sizeof y) == 0);
    CHECK_STR(a.arg, "y");
    CHECK_STR(b.arg, "y");
    CHECK_I64(a.index, 13);
    CHECK_I64(b.index, 13);
    CHECK_I64(res.rows, 6);
    CHECK_I64(res.identity, 2);
    ids[4] = 0, weights[4] = 4.0f, d.weight_on_input = 1; /* 4 * -1e38 on its way in */
    CHECK_I64(moe_ep_forward(&d, x, 4, want, NULL, &a), MOE_EP_ERR_OVERFLOW);
    memset(y, 0x5a, sizeof y);
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, NULL, x, 4, y, NULL, NULL, &b), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(b.arg, "y");
    CHECK_I64(b.index, a.index);
    for (int i = 0; i < 20; i++) CHECK(i / 5 == 2 || memcmp(&y[i], &want[i], sizeof y[i]) == 0);
    free(o.mem);
    free_model(&m);
}

/* ---- numbers that are not finite: their token's own affair ---- */

/* Ranks of one process that hand each other rows through plain memory, driven in step as a collective drives them. */
enum { W = 3, W_SLOTS = 2, W_T = 5, W_K = 2, W_H = 6 };
typedef struct world {
    int64_t board[W][W][W_SLOTS]; /* rows from rank to slot of rank */
    float rows[W][W_T * W_K * W_H], back[W][W * W_T * W_K * W_H], *rx[W];
    const float *x[W];
    const moe_ep_plan *plan[W];
    const moe_ep_forward_desc *layer;
    int own_sum; /* the hook adds up by itself, and says so in plan->late or does not look */
} world;
typedef struct member {
    world *w;
    int rank;
} member;

static int world_counts(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    const member *m = user;
    (void)stream;
    for (int r = 0; r < W; r++)
        for (int l = 0; l < per_rank; l++) {
            CHECK_I64(send[r * per_rank + l], m->w->board[m->rank][r][l]);
            recv[r * per_rank + l] = m->w->board[r][m->rank][l];
        }
    return 0;
}
static int world_dispatch(void *user, const moe_ep_plan *p, const void *x, void *rx, size_t row_bytes, void *stream)
{
    const member *m = user;
    (void)stream;
    m->w->x[m->rank] = x, m->w->rx[m->rank] = rx, m->w->plan[m->rank] = p;
    return (int)moe_ep_plan_pack(p, x, m->w->rows[m->rank], row_bytes, NULL);
}
static int world_combine(void *user, const moe_ep_plan *p, const void *ry, void *y, size_t row_bytes, void *stream)
{
    const member *m = user;
    (void)stream, (void)y;
    return (int)moe_ep_plan_unplace(p, ry, m->w->back[m->rank], row_bytes, NULL);
}
/* Rows have arrived: by source, from where the source's own order has them. */
static void world_move(world *w, int to, int home, float *out)
{
    for (int from = 0; from < W; from++) {
        const moe_ep_plan *here = w->plan[to], *there = w->plan[from];
        const int64_t rows = home ? here->send_rows[from] : here->recv_rows[from];
        memcpy(out + W_H * (home ? here->send_start[from] : here->recv_start[from]),
               (home ? w->back[from] : w->rows[from]) + W_H * (home ? there->recv_start[to] : there->send_start[to]),
               sizeof(float) * W_H * (size_t)rows);
    }
}
static float *world_y[W];
static int world_wait(void *user, const moe_ep_plan *p, int stage, void *stream)
{
    const member *m = user;
    world *w = m->w;
    float rows[W * W_T * W_K * W_H];
    moe_ep_plan blind = *p;
    (void)stream;
    if (stage == MOE_EP_STAGE_EXPERTS) return 0;
    world_move(w, m->rank, stage == MOE_EP_STAGE_COMBINE, rows);
    if (stage == MOE_EP_STAGE_DISPATCH) return (int)moe_ep_plan_place(p, rows, w->rx[m->rank], 4 * W_H, NULL);
    blind.late = NULL;
    return (int)moe_ep_plan_sum(w->own_sum ? &blind : p, w->layer, W * W_SLOTS, W_H, w->x[m->rank], rows,
                                world_y[m->rank], NULL, NULL);
}

/* One token of one rank is not finite, in x or on its way to y: every rank goes through all stages, the one that has
 * the token names it at the end, and all other tokens have the bits of a layer without it. */
TEST(a_number_that_is_not_finite_stops_no_rank_and_is_named_by_its_own)
{
    uint64_t s = t_seed + 81;
    for (int i = 0; i < 36; i++) {
        static const int32_t start[W + 1] = {0, 2, 4, 6};
        static const float rubbish[3] = {(float)NAN, (float)INFINITY, -(float)INFINITY};
        int shared = i & 1, hot = i % W, kind = i / 3 % 4, token = (int)t_below(&s, W_T), E = W * W_SLOTS;
        world w;
        member m[W];
        moe_ep_hooks h;
        moe_ep_rank rank[W];
        float x[W][W_T * W_H], y[W][W_T * W_H], want[W_T * W_H], weights[W][W_T * W_K];
        int32_t ids[W][W_T * W_K];
        model all = make_model(E, W_H, 7, &s);
        moe_ep_forward_desc layer = desc_of(&all, W_K, NULL, NULL);
        if (shared) layer.shared = &all.shared, layer.shared_gate = all.sg[3];
        layer.num_null = 1;
        memset(&w, 0, sizeof w);
        w.layer = &layer;
        w.own_sum = kind == 3;
        for (int r = 0; r < W; r++) {
            for (int j = 0; j < W_T * W_H; j++) x[r][j] = draw(&s);
            draw_ids(ids[r], weights[r], W_T, W_K, E + 1, 1, &s);
        }
        if (i == 13 || i == 14) /* with shared experts, without */
            ids[hot][token * W_K] = ids[hot][token * W_K + 1] = -1;
        int bad = token * W_H + (int)t_below(&s, W_H), beside = ids[hot][token * W_K] < 0;
        beside = beside && ids[hot][token * W_K + 1] < 0 && !shared;
        if (kind == 2) { /* finite here, beyond float in y: an identity expert with the weight 1e30 */
            ids[hot][token * W_K] = E, weights[hot][token * W_K] = 1e30f;
            x[hot][bad] = 1e10f, beside = 0;
        } else {
            x[hot][bad] = rubbish[i % 3];
        }
        for (int r = 0; r < W; r++)
            for (int j = 0; j < W_T * W_K; j++)
                if (ids[r][j] >= 0 && ids[r][j] < E) w.board[r][ids[r][j] / W_SLOTS][ids[r][j] % W_SLOTS]++;
        for (int r = 0; r < W; r++) {
            moe_ep_rank_desc d;
            moe_ep_batch b;
            int32_t held[W_SLOTS] = {W_SLOTS * r, W_SLOTS * r + 1};
            memset(&d, 0, sizeof d);
            memset(&b, 0, sizeof b);
            memset(&h, 0, sizeof h);
            m[r].w = &w, m[r].rank = r, world_y[r] = y[r];
            h.size = sizeof h, h.user = &m[r], h.counts = world_counts, h.dispatch = world_dispatch;
            h.combine = world_combine, h.wait = world_wait, h.adds_shared = 1;
            d.rank = r, d.num_ranks = W, d.slot_start = start, d.slot_expert = held, d.top_k = W_K, d.hidden = W_H;
            d.hooks = &h, d.layer = &layer;
            CHECK_I64(moe_ep_rank_init(&rank[r], &d, NULL), MOE_EP_OK);
            b.num_tokens = W_T, b.slot_ids = ids[r], b.weights = weights[r], b.x = x[r], b.y = y[r];
            CHECK_I64(moe_ep_rank_plan(&rank[r], 0, &b, NULL, NULL), MOE_EP_OK);
        }
        for (int r = 0; r < W; r++) CHECK_I64(moe_ep_rank_dispatch(&rank[r], 0, NULL, NULL), MOE_EP_OK);
        for (int r = 0; r < W; r++) CHECK_I64(moe_ep_rank_experts(&rank[r], 0, NULL, NULL), MOE_EP_OK);
        for (int r = 0; r < W; r++) CHECK_I64(moe_ep_rank_combine(&rank[r], 0, NULL, NULL), MOE_EP_OK);
        for (int r = 0; r < W; r++) {
            moe_ep_error err;
            int named = r == hot && !beside && kind != 3;
            CHECK_I64(moe_ep_rank_finish(&rank[r], 0, NULL, &err),
                      !named ? MOE_EP_OK : kind == 2 ? MOE_EP_ERR_OVERFLOW : MOE_EP_ERR_NAN);
            CHECK_STR(err.arg, !named ? "" : kind == 2 ? "y" : "x");
            CHECK_I64(err.index, named ? bad : -1);
            if (r == hot) x[r][bad] = 0.25f;
            layer.ids = ids[r], layer.choice_weights = weights[r];
            CHECK_I64(moe_ep_forward(&layer, x[r], W_T, want, NULL, NULL), MOE_EP_OK);
            for (int t = 0; t < W_T; t++)
                if (r != hot || t != token || beside)
                    CHECK(memcmp(want + t * W_H, y[r] + t * W_H, sizeof(float) * W_H) == 0);
        }
        for (int r = 0; r < W; r++) moe_ep_rank_free(&rank[r]);
        free_model(&all);
        STOP_IF_FAILED("case %d", i);
    }
}

/* Two batches, the first with a NaN: both are finished, the second is right, and the next call starts clean. */
TEST(a_batch_with_a_nan_does_not_stop_the_other)
{
    for (int first = 0; first < 2; first++) {
        recorder r;
        rig g;
        float x[2][12], y[2][12], want[12];
        moe_ep_batch b[2];
        rig_up(&g, t_seed + 82);
        memset(&r, 0, sizeof r);
        memset(&g.hooks, 0, sizeof g.hooks);
        g.hooks.size = sizeof g.hooks, g.hooks.user = &r, g.hooks.wait = hook_wait;
        g.d.hooks = &g.hooks;
        CHECK_I64(rig_start(&g), MOE_EP_OK);
        for (int i = 0; i < 2; i++) {
            b[i] = g.b;
            memcpy(x[i], g.x + 12 * i, sizeof x[i]);
            b[i].x = x[i], b[i].y = y[i];
        }
        x[first][7] = (float)NAN, x[first][9] = (float)INFINITY;
        CHECK_I64(moe_ep_rank_forward2(&g.rank, b, NULL, &g.err), MOE_EP_ERR_NAN);
        CHECK_I64(g.err.status, MOE_EP_ERR_NAN);
        CHECK_STR(g.err.arg, "x");
        CHECK_I64(g.err.index, 7);
        CHECK_I64(moe_ep_rank_forward2(&g.rank, b, NULL, NULL), MOE_EP_ERR_NAN);
        CHECK_STR(r.log, "wD0 wE0 wD1 wE1 wC0 wC1 wD0 wE0 wD1 wE1 wC0 wC1 ");
        g.layer.ids = g.ids, g.layer.choice_weights = g.w;
        CHECK_I64(moe_ep_forward(&g.layer, x[1 - first], 2, want, NULL, NULL), MOE_EP_OK);
        CHECK(memcmp(want, y[1 - first], sizeof want) == 0);
        /* both: the first is named */
        x[first][7] = 1;
        memcpy(x[1 - first], x[first], sizeof x[first]);
        x[first][3] = (float)NAN;
        x[1 - first][5] = (float)NAN;
        for (int i = 0; i < 2; i++) b[i].x = x[i];
        CHECK_I64(moe_ep_rank_forward2(&g.rank, b, NULL, &g.err), MOE_EP_ERR_NAN);
        CHECK_I64(g.err.index, first ? 5 : 3);
        CHECK_I64(moe_ep_rank_forward(&g.rank, &b[first], NULL, &g.err), MOE_EP_ERR_NAN);
        memcpy(x[1 - first], g.x + 12 * (1 - first), sizeof x[first]);
        CHECK_I64(moe_ep_rank_forward(&g.rank, &b[1 - first], NULL, &g.err), MOE_EP_OK);
        error_is(&g.err, "", -1, 0.0);
        /* a hook that adds up by itself may say what it found; the next combine begins anew */
        CHECK_I64(moe_ep_rank_plan(&g.rank, 0, &b[1 - first], NULL, NULL), MOE_EP_OK);
        moe_ep_error *late = moe_ep_rank_plan_of(&g.rank, 0)->late;
        for (int stage = 0; stage < 3; stage++) CHECK_I64(rig_stage(&g, stage), MOE_EP_OK);
        late->status = MOE_EP_ERR_OVERFLOW, late->arg = "y", late->index = 4;
        CHECK_I64(moe_ep_rank_finish(&g.rank, 0, NULL, &g.err), MOE_EP_ERR_OVERFLOW);
        error_is(&g.err, "y", 4, 0.0);
        CHECK_I64(rig_stage(&g, 2), MOE_EP_OK);
        CHECK_I64(rig_stage(&g, 3), MOE_EP_OK);
        rig_down(&g);
    }
}

/* ---- the worked numbers of the declarations, and inputs that must be refused ---- */

TEST(worked_numbers_of_the_rank_functions)
{
    float gate = 1, up = 2, down = 3, x = 1, w = 0.5f, y = 0, xs[36] = {0}, ys[36];
    static const int32_t one_slot[2] = {0, 1};
    int32_t id = 0, ids[6] = {0, 3, 1, -1, 2, 0};
    static const int64_t token[5] = {0, 2, 1, 2, 0}, choice[6] = {0, 4, 2, -1, 3, 1};
    uint64_t s = 3;
    model m = make_model(4, 6, 3, &s);
    moe_ep_weights one;
    moe_ep_forward_desc layer;
    moe_ep_rank_desc d;
    moe_ep_rank rank;
    moe_ep_batch b;
    moe_ep_error err;
    moe_ep_hooks h;
    sized z;
    counter c = {0, 0, 0, {0}};
    memset(&one, 0, sizeof one);
    one.num_experts = one.hidden = one.inter = 1;
    one.gate = &gate, one.up = &up, one.down = &down;
    memset(&layer, 0, sizeof layer);
    layer.experts = &one;
    memset(&d, 0, sizeof d);
    d.num_ranks = 1, d.slot_start = one_slot, d.top_k = 1, d.hidden = 1, d.layer = &layer;
    d.alloc.alloc_fn = count_alloc, d.alloc.free_fn = count_free, d.alloc.user = &c;
    CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
    memset(&b, 0, sizeof b);
    b.num_tokens = 1, b.slot_ids = &id, b.weights = &w, b.x = &x, b.y = &y;
    CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, NULL), MOE_EP_OK);
    CHECK_NEAR(y, 2.193176, 1e-6, 0);
    moe_ep_rank_free(&rank);
    /* four slots: what the plan holds, what reserve takes, what free gives back */
    memset(&h, 0, sizeof h);
    memset(&z, 0, sizeof z);
    h.size = sizeof h, h.user = &z, h.alloc_fn = sized_alloc, h.free_fn = sized_free;
    layer = desc_of(&m, 2, NULL, NULL);
    d = one_rank(&h, &layer);
    CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_reserve(&rank, 8, 16, NULL), MOE_EP_OK);
    CHECK_I64(z.allocs, 4);
    for (int i = 0; i < 4; i++) CHECK_I64(z.bytes[i], 384);
    b.num_tokens = 3, b.slot_ids = ids, b.weights = NULL, b.x = xs, b.y = ys;
    CHECK_I64(moe_ep_rank_plan(&rank, 0, &b, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_plan_of(&rank, 0)->nsend, 5);
    for (int i = 0; i < 5; i++) CHECK_I64(moe_ep_rank_plan_of(&rank, 0)->send_token[i], token[i]);
    for (int i = 0; i < 6; i++) CHECK_I64(moe_ep_rank_plan_of(&rank, 0)->choice_row[i], choice[i]);
    CHECK(moe_ep_rank_plan_of(&rank, 1) == NULL && moe_ep_rank_plan_of(&rank, -1) == NULL);
    moe_ep_rank_free(&rank);
    CHECK(moe_ep_rank_plan_of(&rank, 0) == NULL);
    CHECK_I64(z.frees, 4);
    memset(&z, 0, sizeof z);
    CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, NULL), MOE_EP_OK);
    CHECK_I64(z.allocs, 2);
    moe_ep_rank_free(&rank);
    CHECK_I64(z.frees, 2);
    memset(&h.counts, 0, sizeof h.counts);
    d.num_ranks = 2;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "hooks.counts");
    free_model(&m);
}

TEST(worked_numbers_of_the_row_helpers)
{
    static const int64_t token[2] = {2, 0}, to[2] = {1, 0};
    char out[2], x[3] = {'A', 'B', 'C'}, rows[2] = {'A', 'B'};
    moe_ep_plan p;
    memset(&p, 0, sizeof p);
    p.nsend = p.nrecv = 2, p.send_token = token, p.recv_row = to;
    CHECK_I64(moe_ep_plan_pack(&p, x, out, 1, NULL), MOE_EP_OK);
    CHECK(out[0] == 'C' && out[1] == 'A');
    CHECK_I64(moe_ep_plan_place(&p, rows, out, 1, NULL), MOE_EP_OK);
    CHECK(out[0] == 'B' && out[1] == 'A');
    CHECK_I64(moe_ep_plan_unplace(&p, out, rows, 1, NULL), MOE_EP_OK);
    CHECK(rows[0] == 'A' && rows[1] == 'B');
    CHECK_I64(moe_ep_plan_pack(&p, x, NULL, 1, NULL), MOE_EP_ERR_NULL);
}

/* The caller's memory hook says no, at its first, second .. call: nothing stays behind, and the rank goes on. */
TEST(memory_hooks_that_fail)
{
    uint64_t s = 4;
    model m = make_model(4, 6, 3, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    for (int fail = 1; fail <= 8; fail++) {
        float x[36] = {0}, y[36];
        int32_t ids[12] = {0, 3, 1, -1, 2, 0, 1, 2, 3, 0, 1, 2};
        moe_ep_rank rank;
        moe_ep_batch b[2];
        moe_ep_error err;
        moe_ep_hooks h;
        sized z;
        memset(&h, 0, sizeof h);
        memset(&z, 0, sizeof z);
        z.fail_at = fail;
        h.size = sizeof h, h.user = &z, h.alloc_fn = sized_alloc, h.free_fn = sized_free;
        moe_ep_rank_desc d = one_rank(&h, &layer);
        CHECK_I64(moe_ep_rank_init(&rank, &d, NULL), MOE_EP_OK);
        memset(b, 0, sizeof b);
        for (int i = 0; i < 2; i++) b[i].num_tokens = 2 + i, b[i].slot_ids = ids, b[i].x = x, b[i].y = y;
        moe_ep_status st = moe_ep_rank_forward2(&rank, b, NULL, &err);
        if (st == MOE_EP_OK) { /* grow: both buffers of a batch are exchanged */
            b[1].num_tokens = 6;
            st = moe_ep_rank_forward2(&rank, b, NULL, &err);
        }
        CHECK_I64(st, fail <= 6 ? MOE_EP_ERR_MEMORY : MOE_EP_OK);
        CHECK_STR(err.arg, fail > 6 ? "" : fail % 2 ? "rx" : "ry");
        z.fail_at = 0;
        b[1].num_tokens = fail & 1 ? 6 : 3;
        CHECK_I64(moe_ep_rank_forward2(&rank, b, NULL, NULL), MOE_EP_OK);
        b[1].num_tokens = fail & 1 ? 3 : 6;
        CHECK_I64(moe_ep_rank_forward2(&rank, b, NULL, NULL), MOE_EP_OK);
        moe_ep_rank_free(&rank);
        CHECK_I64(z.allocs, z.frees);
        STOP_IF_FAILED("allocation %d", fail);
    }
    free_model(&m);
}

static moe_ep_status sum_with(const moe_ep_plan *p, const moe_ep_forward_desc *layer, int32_t H,
                              moe_ep_scratch *scratch)
{
    static float x[64], rows[64], y[64];
    return moe_ep_plan_sum(p, layer, 9, H, x, rows, y, scratch, NULL);
}

TEST(more_bad_ranks_plans_and_placements)
{
    uint64_t s = 5;
    model m = make_model(4, 6, 3, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    recorder r;
    memset(&r, 0, sizeof r);
    r.m = &m;
    moe_ep_hooks h = all_hooks(&r);
    moe_ep_rank_desc d = one_rank(&h, &layer);
    moe_ep_rank rank = {NULL};
    moe_ep_batch b;
    moe_ep_error err;
    int32_t slots[4] = {0, -2, 1, 2}, ids[12] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    static const int32_t two_ranks[3] = {0, 2, 2}, empty[3] = {0, 0, 0};
    float x[36] = {0}, y[36];
    memset(&b, 0, sizeof b);
    b.num_tokens = 2, b.slot_ids = ids, b.x = x, b.y = y;
    d.slot_expert = slots;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 1);
    CHECK(moe_ep_rank_reserve(&rank, 1, 1, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_rank_forward(&rank, &b, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_rank_dispatch(&rank, 0, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_rank_plan(&rank, 0, NULL, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_rank_forward2(&rank, &b, NULL, &err) == MOE_EP_ERR_NULL);
    CHECK(moe_ep_rank_plan_of(&rank, 0) == NULL);
    d = one_rank(&h, &layer);
    d.elem_bytes = 4;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_reserve(&rank, 1, INT64_MAX / 2, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_rank_reserve(&rank, INT64_MAX / 128, 1, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_rank_plan(&rank, -1, &b, NULL, &err), MOE_EP_ERR_RANGE);
    moe_ep_rank_free(&rank);
    /* no plan: all three stages need a hook */
    for (int i = 0; i < 3; i++) {
        moe_ep_hooks part = h;
        if (i == 0) part.dispatch = NULL;
        if (i == 1) part.experts = NULL;
        if (i == 2) part.combine = NULL;
        d.hooks = &part;
        CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
        b.no_plan = 1;
        CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, &err), MOE_EP_ERR_CONFIG);
        error_is(&err, "no_plan", -1, 1.0);
        b.no_plan = 0;
        moe_ep_rank_free(&rank);
    }
    CHECK_STR(r.log, "");
    /* rows for a slot that holds nothing */
    slots[1] = -1;
    d = one_rank(&h, &layer);
    d.slot_expert = slots;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 1);
    moe_ep_rank_free(&rank);
    /* ranks without slots: all choices are identity experts or none */
    layer.num_null = 2;
    d = one_rank(&h, &layer);
    d.num_ranks = 2, d.rank = 1, d.slot_start = empty;
    memset(ids, 0, sizeof ids);
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    r.x[0] = x, r.y[0] = y;
    CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_plan_of(&rank, 0)->nsend + moe_ep_rank_plan_of(&rank, 0)->nrecv, 0);
    moe_ep_rank_free(&rank);
    d.slot_start = two_ranks; /* and beside a rank that has some */
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    moe_ep_rank_free(&rank);
    free_model(&m);
}

TEST(sums_with_shared_experts_that_do_not_fit)
{
    uint64_t s = 6;
    model m = make_model(2, 4, 3, &s);
    moe_ep_forward_desc layer = desc_of(&m, 1, NULL, NULL);
    static const int32_t ids[2] = {0, -1};
    static const int64_t choice[2] = {0, -1};
    static const float w[2] = {1, 1};
    moe_ep_scratch tiny = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_plan p;
    memset(&p, 0, sizeof p);
    p.ntokens = 2, p.top_k = 1, p.topk_ids = ids, p.topk_weights = w, p.choice_row = choice, p.nsend = 1;
    layer.shared = &m.shared;
    CHECK_I64(sum_with(&p, &layer, 4, NULL), MOE_EP_OK);
    CHECK_I64(sum_with(&p, &layer, 5, NULL), MOE_EP_ERR_SIZE);
    CHECK_I64(sum_with(&p, &layer, 4, &tiny), MOE_EP_ERR_SCRATCH);
    m.shared.inter = 0;
    CHECK_I64(sum_with(&p, &layer, 4, NULL), MOE_EP_ERR_SIZE);
    p.ntokens = 0;
    CHECK_I64(sum_with(&p, &layer, 4, NULL), MOE_EP_OK);
    free_model(&m);
}

TEST(placements_that_are_not_whole_are_named)
{
    uint64_t s = 7;
    model m = make_model(4, 3, 3, &s);
    own_placement o = make_placement(CONTIGUOUS, 4, 2, 4, &s);
    int32_t ids[8] = {0, 1, 2, 3, 0, 1, 2, -1}, slots[8] = {0, 1, 2, 3, 0, 1, 2, 0};
    float x[12] = {0}, y[12];
    moe_ep_forward_desc d = desc_of(&m, 2, ids, NULL);
    moe_ep_error err;
#define BENT(change, status, name)                                                                       \
    do {                                                                                                 \
        moe_ep_placement p = o.p;                                                                        \
        change;                                                                                          \
        CHECK_I64(moe_ep_forward_ranks(&d, &p, 0, NULL, NULL, x, 4, y, NULL, NULL, &err), status);       \
        CHECK_STR(err.arg, name);                                                                        \
    } while (0)
    BENT(p.slot_start = NULL, MOE_EP_ERR_NULL, "p");
    BENT(p.slot_expert = NULL, MOE_EP_ERR_NULL, "p");
    BENT(p.replica_start = NULL, MOE_EP_ERR_NULL, "p");
    BENT(p.replica_slot = NULL, MOE_EP_ERR_NULL, "p");
    BENT(p.num_experts = 5, MOE_EP_ERR_SIZE, "p->num_experts");
    BENT(p.num_devices = 0, MOE_EP_ERR_SIZE, "p");
    BENT(p.num_slots = 0, MOE_EP_ERR_SIZE, "p");
    d.num_null = 1;
    BENT(p.num_slots = INT32_MAX, MOE_EP_ERR_SIZE, "p->num_slots");
    error_is(&err, "p->num_slots", -1, INT32_MAX);
    BENT(p.num_slots = INT32_MAX - 1, MOE_EP_ERR_PLACEMENT, "p.slot_start"); /* that many there may be */
    d.num_null = 0;
    o.p.slot_expert[2] = -2;
    BENT((void)0, MOE_EP_ERR_EXPERT_ID, "p.slot_expert");
    o.p.slot_expert[2] = 2;
    /* rows are never sent by a map that points elsewhere: all are checked first */
    static int32_t falls[3] = {0, 5, 4}, late[3] = {1, 2, 4}, few[3] = {0, 2, 3}, wrong_device[4] = {0, 0, 0, 1};
    static int32_t stale_slot[4] = {0, 1, 3, 2}, twice[4] = {0, 0, 2, 3}, stale_start[5] = {0, 1, 0, 3, 4};
    BENT(p.slot_start = falls, MOE_EP_ERR_PLACEMENT, "p.slot_start");
    BENT(p.slot_start = late, MOE_EP_ERR_PLACEMENT, "p.slot_start");
    BENT(p.slot_start = few, MOE_EP_ERR_PLACEMENT, "p.slot_start");
    BENT(p.slot_device = wrong_device, MOE_EP_ERR_PLACEMENT, "p.slot_device");
    BENT(p.replica_slot = stale_slot, MOE_EP_ERR_PLACEMENT, "p.replica_slot");
    BENT(p.replica_slot = twice, MOE_EP_ERR_PLACEMENT, "p.replica_slot");
    BENT(p.replica_start = stale_start, MOE_EP_ERR_PLACEMENT, "p.replica_start");
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, slots, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 7); /* -1 has no slot */
    slots[7] = -1;
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, slots, x, 4, y, NULL, NULL, &err), MOE_EP_OK);
    slots[2] = 4;
    CHECK_I64(moe_ep_forward_ranks(&d, &o.p, 0, NULL, slots, x, 4, y, NULL, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 2);
    free(o.mem);
    free_model(&m);
}
#undef BENT

/* ---- the far corners of sizes, and stages without slots ---- */

TEST(sizes_at_the_end_of_their_ranges)
{
    static const int32_t huge[3] = {0, 4, INT32_MAX};
    uint64_t s = 8;
    model m = make_model(4, 6, 3, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    recorder r;
    memset(&r, 0, sizeof r);
    moe_ep_hooks h = all_hooks(&r), part = h;
    moe_ep_rank_desc d = one_rank(&part, NULL);
    moe_ep_rank rank = {NULL};
    moe_ep_batch b;
    moe_ep_error err;
    int32_t id = 0;
    part.combine = NULL; /* experts alone is not enough without a layer */
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "layer");
    d = one_rank(&h, &layer); /* more slots and identity experts than an id can name */
    d.num_ranks = 2, d.slot_start = huge;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    moe_ep_rank_free(&rank);
    layer.num_null = 1;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "layer->num_null");
    CHECK_I64(err.index, -1);
    layer.num_null = 0;
    /* weights multiply what elem_type names: elements of another size need a dispatch of their own for that */
    part = h, part.dispatch = NULL;
    d = one_rank(&part, &layer);
    d.elem_bytes = 2;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    moe_ep_rank_free(&rank);
    layer.weight_on_input = 1;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_ERR_CONFIG);
    CHECK_STR(err.arg, "elem_bytes");
    for (int type = MOE_EP_BF16; type <= MOE_EP_F16; type++) {
        d.elem_type = (moe_ep_dtype)type;
        CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
        moe_ep_rank_free(&rank);
    }
    d.elem_type = MOE_EP_F32;
    d.hooks = &h;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    moe_ep_rank_free(&rank);
    d = one_rank(&part, NULL); /* nobody multiplies: copies of any size */
    d.elem_bytes = 2;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    moe_ep_rank_free(&rank);
    layer.weight_on_input = 0;
    /* a row of nearly 2^62 bytes, and one of 4 MiB */
    d = one_rank(&h, NULL);
    d.hidden = d.elem_bytes = INT32_MAX;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_reserve(&rank, 0, 2, &err), MOE_EP_ERR_OVERFLOW);
    error_is(&err, "rows", -1, 2.0);
    CHECK_I64(r.allocs, 0);
    if (sizeof(size_t) < 8) {
        CHECK_I64(moe_ep_rank_reserve(&rank, 0, 1, &err), MOE_EP_ERR_OVERFLOW);
    } else { /* a quarter of the address space */
        CHECK_I64(moe_ep_rank_reserve(&rank, 0, 1, &err), MOE_EP_OK);
        error_is(&err, "", -1, 0.0);
        CHECK_I64(r.allocs, 4);
    }
    moe_ep_rank_free(&rank);
    d.hidden = 1 << 20, d.elem_bytes = 4;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_reserve(&rank, (int64_t)1 << 45, 0, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "num_tokens");
    memset(&b, 0, sizeof b);
    b.slot_ids = &id, b.x = &id, b.y = &id;
    b.num_tokens = INT64_MIN;
    CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, &err), MOE_EP_ERR_SIZE);
    b.num_tokens = INT64_MAX;
    CHECK_I64(moe_ep_rank_forward(&rank, &b, NULL, &err), MOE_EP_ERR_OVERFLOW);
    moe_ep_rank_free(&rank);
    free_model(&m);
}

/* n elements of some bytes in pieces of 64. */
static size_t piece(int64_t n, size_t bytes) { return ((size_t)n * bytes + 63u) / 64u * 64u; }

/* What moe_ep_experts and moe_ep_plan_sum want: nothing is read before they say so. */
static size_t experts_need(const moe_ep_forward_desc *layer, const moe_ep_weights *w, int32_t groups, int64_t rows)
{
    moe_ep_forward_desc d = *layer;
    moe_ep_scratch tiny = moe_ep_scratch_fixed(NULL, 0);
    int64_t start[64] = {0};
    float *x = t_alloc(sizeof(float) * (size_t)(2 * rows * w->hidden));
    d.experts = w;
    for (int i = 1; i <= groups; i++) start[i] = rows;
    CHECK_I64(moe_ep_experts(&d, x, start, groups, NULL, x + rows * w->hidden, &tiny, NULL), MOE_EP_ERR_SCRATCH);
    free(x);
    return tiny.need;
}
static size_t sum_need(const moe_ep_forward_desc *layer, int64_t tokens)
{
    static float cell[1];
    moe_ep_scratch tiny = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_plan p;
    memset(&p, 0, sizeof p);
    p.ntokens = tokens, p.top_k = 1;
    CHECK_I64(moe_ep_plan_sum(&p, layer, 4, layer->experts->hidden, cell, NULL, cell, &tiny, NULL), MOE_EP_ERR_SCRATCH);
    return tiny.need;
}

/* Tables of a rank, arrays of a plan, rows: each in pieces of 64 bytes, and 64 to align the first. */
TEST(a_rank_takes_no_more_than_its_tables)
{
    static const int32_t late[2] = {1, 101};
    static const int sizes[] = {1, 2, 3, 7, 8, 15, 16, 33, 64, 100};
    uint64_t s = t_seed + 12;
    model m = make_model(100, 2, 2, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    recorder r;
    moe_ep_hooks h = all_hooks(&r);
    moe_ep_rank_desc d;
    moe_ep_rank rank;
    moe_ep_error err;
    h.alloc_fn = NULL, h.free_fn = NULL;
    for (int i = 0; i < 100; i++) {
        int32_t ranks = sizes[i / 10], slots = sizes[i % 10], start[101] = {0}, K = 1 + (int)t_below(&s, 3);
        int64_t tokens = 1 + t_below(&s, 40), rows = 1 + t_below(&s, 40), n = tokens * K;
        int64_t pairs = (int64_t)ranks * slots;
        counter c = {0, 0, 0, {0}};
        for (int k = 0; k < ranks; k++) start[k + 1] = start[k] + slots;
        d = one_rank(&h, NULL);
        d.num_ranks = ranks, d.rank = (int32_t)t_below(&s, ranks), d.slot_start = start, d.top_k = K;
        d.alloc.alloc_fn = count_alloc, d.alloc.free_fn = count_free, d.alloc.user = &c;
        if (K > pairs) continue;
        CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
        CHECK_I64(c.allocs, 2);
        CHECK_I64(c.bytes[1], piece(ranks + 1, 4) + piece(slots, 4) + piece(slots, 1) + 64);
        CHECK_I64(moe_ep_rank_reserve(&rank, tokens, rows, &err), MOE_EP_OK);
        CHECK_I64(c.allocs, 10);
        for (int k = 0; k < 2; k++) {
            CHECK_I64(c.bytes[2 + 4 * k], 2 * piece(pairs, 8) + 3 * piece(n, 4) + 2 * piece(n, 8) +
                                              piece(4 * (ranks + 1), 8) + piece(2 * (slots + 1), 8) + 64);
            CHECK_I64(c.bytes[3 + 4 * k], piece(rows, 8) + 64);
            CHECK_I64(c.bytes[4 + 4 * k], rows * 24);
            CHECK_I64(c.bytes[5 + 4 * k], rows * 24);
        }
        moe_ep_rank_free(&rank);
        CHECK_I64(c.live, 0);
        STOP_IF_FAILED("case %d", i);
    }
    d = one_rank(NULL, &layer);
    d.hidden = 2, d.slot_start = late;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_ERR_RANGE);
    error_is(&err, "slot_start", 0, 1.0);
    free_model(&m);
}

/* The CPU's stages share their memory: that of the experts, or of the rows home and the sum, whichever is more. */
TEST(the_stages_take_what_the_larger_of_them_wants)
{
    uint64_t s = t_seed + 14;
    for (int i = 0; i < 60; i++) {
        int64_t tokens = 1 + t_below(&s, 50), rows = 1 + t_below(&s, i % 7 ? 100 : 3);
        int32_t start[2] = {0, i % 5}, slots = start[1];
        size_t experts, sums;
        counter c = {0, 0, 0, {0}};
        rig g;
        rig_up(&g, t_seed + (uint64_t)i);
        moe_ep_weights *sh = &g.m.shared;
        if (i & 1) g.layer.shared = sh;
        if (i & 4) sh->num_experts = 3, sh->inter = 1;
        g.d.alloc.alloc_fn = count_alloc, g.d.alloc.free_fn = count_free, g.d.alloc.user = &c;
        g.hooks.alloc_fn = NULL, g.hooks.free_fn = NULL, g.hooks.combine = NULL;
        g.d.hooks = i & 2 ? &g.hooks : NULL;
        g.d.slot_start = start, g.layer.num_null = 2;
        experts = i & 2 || slots == 0 ? 0 : experts_need(&g.layer, g.layer.experts, slots, rows) - 64;
        sums = piece(2 * tokens, 24);
        if (i & 1) {
            /* the answers of each shared expert, and what the experts alone take but for the copies of the tokens,
               32 floats each, which all of them read */
            size_t alone = experts_need(&g.layer, sh, sh->num_experts, sh->num_experts * tokens);
            alone -= (size_t)((sh->num_experts - 1) * tokens * 32) * sizeof(float);
            CHECK_I64(sum_need(&g.layer, tokens), piece(tokens * sh->num_experts, 24) + alone);
            sums += sum_need(&g.layer, tokens) - 64;
        }
        CHECK_I64(rig_start(&g), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_reserve(&g.rank, tokens, rows, &g.err), MOE_EP_OK);
        CHECK_I64(c.allocs, 11);
        CHECK_I64(c.bytes[10], (experts > sums ? experts : sums) + 128); /* two scratches to align, one in the other */
        rig_down(&g);
        CHECK_I64(c.live, 0);
        STOP_IF_FAILED("case %d", i);
    }
}

TEST(nothing_is_sent_when_either_of_two_batches_is_unsound)
{
    model m = {0};
    recorder r;
    memset(&r, 0, sizeof r);
    m.H = 6, r.m = &m;
    moe_ep_hooks h = all_hooks(&r);
    moe_ep_rank_desc d = one_rank(&h, NULL);
    moe_ep_rank rank;
    moe_ep_error err;
    int32_t ids[2] = {0, 1}, wrong[2] = {0, 4};
    float x[6] = {0}, y[6];
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    for (int bad = 0; bad < 2; bad++) {
        moe_ep_batch b[2];
        memset(b, 0, sizeof b);
        for (int i = 0; i < 2; i++)
            b[i].num_tokens = 1, b[i].slot_ids = i == bad ? wrong : ids, b[i].x = x, b[i].y = y;
        CHECK_I64(moe_ep_rank_forward2(&rank, b, NULL, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, 1);
        CHECK_STR(r.log, "");
        CHECK(moe_ep_rank_plan_of(&rank, 0) == NULL && moe_ep_rank_plan_of(&rank, 1) == NULL);
    }
    moe_ep_rank_free(&rank);
    CHECK_I64(r.allocs, 0);
}

TEST(a_rank_that_cannot_start_says_how_much_it_wanted)
{
    rig g;
    counter c = {0, 0, 1, {0}};
    double first;
    rig_up(&g, t_seed + 75);
    g.d.alloc.alloc_fn = count_alloc, g.d.alloc.free_fn = count_free, g.d.alloc.user = &c;
    CHECK_I64(rig_start(&g), MOE_EP_ERR_MEMORY);
    first = g.err.value;
    CHECK(g.rank.state == NULL);
    c.allocs = c.fail_at = 0;
    CHECK_I64(rig_start(&g), MOE_EP_OK);
    CHECK(c.bytes[0] > 0);
    moe_ep_rank_free(&g.rank);
    c.allocs = 0, c.fail_at = 1;
    CHECK_I64(rig_start(&g), MOE_EP_ERR_MEMORY);
    error_is(&g.err, "alloc", -1, (double)c.bytes[0]);
    CHECK_NEAR(first, (double)c.bytes[0], 0, 0);
    rig_down(&g);
    CHECK_I64(c.live, 0);
}

static double nowhere[8]; /* what an address space without end would give; never touched */
static void *boundless_alloc(void *user, size_t bytes)
{
    (void)user;
    return bytes > ((size_t)1 << 30) ? (void *)nowhere : malloc(bytes);
}
static void boundless_free(void *user, void *p, size_t bytes)
{
    (void)user, (void)bytes;
    if (p != (void *)nowhere) free(p);
}

TEST(rows_times_the_inner_size_that_do_not_fit_are_an_overflow)
{
    uint64_t s = 13;
    model m = make_model(4, 6, 3, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    moe_ep_rank_desc d = one_rank(NULL, &layer);
    moe_ep_rank rank;
    moe_ep_error err;
    m.w.inter = INT32_MAX; /* sizes are checked, weights are not read */
    d.alloc.alloc_fn = boundless_alloc, d.alloc.free_fn = boundless_free;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_reserve(&rank, 1, (int64_t)1 << 45, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "scratch");
    moe_ep_rank_free(&rank);
    free_model(&m);
}

/* The most tokens that can be counted, and one more; the plan's arrays are never written. */
TEST(tokens_at_the_end_of_their_range)
{
    static const int32_t hidden[3] = {1, 16, 1 << 20};
    if (sizeof(size_t) < 8) SKIP("counts beyond an address space of 32 bits");
    for (int i = 0; i < 3; i++) {
        const uint64_t fit = SIZE_MAX / 8u / (uint64_t)hidden[i], count = (uint64_t)INT64_MAX / 64u;
        const int64_t most = (int64_t)(fit < count ? fit : count);
        rig g;
        rig_up(&g, t_seed + 76);
        g.hooks.alloc_fn = NULL, g.hooks.free_fn = NULL;
        g.d.alloc.alloc_fn = boundless_alloc, g.d.alloc.free_fn = boundless_free;
        g.d.hooks = &g.hooks, g.d.layer = NULL;
        g.d.hidden = hidden[i], g.d.elem_bytes = 1, g.d.top_k = 1;
        CHECK_I64(rig_start(&g), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_reserve(&g.rank, most, 0, &g.err), MOE_EP_OK);
        CHECK_I64(moe_ep_rank_reserve(&g.rank, most + 1, 0, &g.err), MOE_EP_ERR_OVERFLOW);
        error_is(&g.err, "num_tokens", -1, (double)(most + 1));
        CHECK_I64(moe_ep_rank_reserve(&g.rank, -2, 0, &g.err), MOE_EP_ERR_SIZE);
        error_is(&g.err, "num_tokens", -1, -2.0);
        CHECK_I64(moe_ep_rank_reserve(&g.rank, 0, -2, &g.err), MOE_EP_ERR_SIZE);
        error_is(&g.err, "max_rows", -1, -2.0);
        rig_down(&g);
    }
}

TEST(a_rank_without_slots_serves_identity_experts_and_shared_ones)
{
    static const int32_t none[2] = {0, 0}, beside[3] = {0, 4, 4};
    uint64_t s = 9;
    model m = make_model(4, 6, 3, &s);
    int32_t ids[4] = {0, 1, -1, 0}, same[4] = {4, 5, -1, 4};
    float w[4] = {0.5f, 0.25f, 1.0f, 2.0f}, *x = floats(12, &s), y[12], want[12];
    moe_ep_forward_desc layer = desc_of(&m, 2, same, w);
    moe_ep_rank_desc d;
    moe_ep_rank rank;
    moe_ep_batch b;
    moe_ep_error err;
    layer.num_null = 2;
    layer.shared = &m.shared;
    CHECK_I64(moe_ep_forward(&layer, x, 2, want, NULL, NULL), MOE_EP_OK);
    d = one_rank(NULL, &layer);
    d.slot_start = none;
    memset(&b, 0, sizeof b);
    b.num_tokens = 2, b.slot_ids = ids, b.weights = w, b.x = x, b.y = y;
    for (int fail = 0; fail < 5; fail++) { /* also with memory that is refused at each step */
        counter c = {0, 0, fail, {0}};
        d.alloc.alloc_fn = count_alloc, d.alloc.free_fn = count_free, d.alloc.user = &c;
        memset(y, 0, sizeof y);
        moe_ep_status st = moe_ep_rank_init(&rank, &d, &err);
        if (st == MOE_EP_OK) {
            st = moe_ep_rank_forward(&rank, &b, NULL, &err);
            moe_ep_rank_free(&rank);
        }
        CHECK_I64(st, fail > 0 && c.allocs >= fail ? MOE_EP_ERR_MEMORY : MOE_EP_OK);
        if (st == MOE_EP_OK) CHECK(memcmp(want, y, sizeof y) == 0);
        CHECK_I64(c.live, 0);
        if (fail == 4) CHECK_I64(st, MOE_EP_ERR_MEMORY); /* state, tables, plan, and the sum at the end */
    }
    /* a rank without slots beside one that has four: rows for it are an error, memory for its experts is none */
    recorder r;
    memset(&r, 0, sizeof r);
    r.m = &m;
    moe_ep_hooks h = all_hooks(&r);
    h.experts = NULL;
    h.counts = three_counts;
    h.alloc_fn = NULL, h.free_fn = NULL;
    d = one_rank(&h, &layer);
    d.num_ranks = 2, d.rank = 1, d.slot_start = beside;
    CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_rank_reserve(&rank, 4, 0, &err), MOE_EP_OK);
    moe_ep_rank_free(&rank);
    free(x);
    free_model(&m);
}

static int one_for_everybody(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    (void)send, (void)stream;
    for (int i = 0; i < 3 * per_rank; i++) recv[i] = i == *(const int *)user;
    return 0;
}

TEST(rows_for_slots_that_this_rank_does_not_have_are_refused)
{
    /* slots 0 1 2 | 3 | on ranks 0 1 2; this is rank 1 with one slot where others have three */
    static const int32_t start[4] = {0, 3, 4, 4};
    uint64_t s = 10;
    model m = make_model(4, 6, 3, &s);
    moe_ep_forward_desc layer = desc_of(&m, 2, NULL, NULL);
    for (int at = 0; at < 9; at++) {
        recorder r;
        memset(&r, 0, sizeof r);
        moe_ep_hooks h = all_hooks(&r);
        moe_ep_rank_desc d;
        moe_ep_rank rank;
        moe_ep_batch b;
        moe_ep_error err;
        h.user = &at;
        h.counts = one_for_everybody;
        h.wait = NULL, h.alloc_fn = NULL, h.free_fn = NULL;
        d = one_rank(&h, &layer);
        d.num_ranks = 3, d.rank = 1, d.slot_start = start;
        CHECK_I64(moe_ep_rank_init(&rank, &d, &err), MOE_EP_OK);
        memset(&b, 0, sizeof b);
        CHECK_I64(moe_ep_rank_plan(&rank, 0, &b, NULL, &err), at % 3 == 0 ? MOE_EP_OK : MOE_EP_ERR_PLACEMENT);
        CHECK_I64(err.index, at % 3 == 0 ? -1 : at);
        if (at % 3 == 0) CHECK_I64(moe_ep_rank_plan_of(&rank, 0)->recv_rows[at / 3], 1);
        moe_ep_rank_free(&rank);
    }
    free_model(&m);
}

TEST(in_process_ranks_with_fewer_slots_than_choices_or_too_many_devices)
{
    uint64_t s = 11;
    model m = make_model(4, 3, 3, &s);
    own_placement o = make_placement(GAPS, 4, 2, 4, &s), few;
    int32_t ids[6] = {0, -1, -1, -1, 0, -1};
    float x[6] = {0}, y[6];
    moe_ep_forward_desc d = desc_of(&m, 3, ids, NULL);
    moe_ep_shape shape;
    moe_ep_error err;
    /* two slots for four experts: fine for these ids, but a rank cannot offer three choices */
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 2, shape.num_slots = 4;
    size_t bytes = moe_ep_placement_bytes(1, 4, &shape);
    few.mem = t_alloc(bytes);
    CHECK_I64(moe_ep_placement_init(&few.p, 1, 4, &shape, few.mem, bytes, &err), MOE_EP_OK);
    few.p.slot_expert[0] = 0, few.p.slot_expert[1] = few.p.slot_expert[2] = few.p.slot_expert[3] = -1;
    few.p.num_slots = 2; /* its slots are 0 | 1 */
    few.p.slot_start[1] = 1, few.p.slot_start[2] = 2, few.p.slot_device[1] = 1;
    CHECK_I64(moe_ep_placement_index(&few.p, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_forward_ranks(&d, &few.p, 0, NULL, NULL, x, 2, y, NULL, NULL, &err), MOE_EP_ERR_TOP_K);
    d.top_k = 2;
    CHECK_I64(moe_ep_forward_ranks(&d, &few.p, 0, NULL, NULL, x, 2, y, NULL, NULL, &err), MOE_EP_OK);
    /* One device has all slots.  2^19 devices and slots: a table of 2^57 counts, one too many.  336387^2 * 1273595 is
     * 726317 less than that, and no table of these devices lies between: 2^60 bytes are only not to be had. */
    static const int32_t tables[3][2] = {{1 << 19, 1 << 19}, {336387, 1273596}, {336387, 1273595}};
    for (int i = 0; i < (sizeof(size_t) < 8 ? 2 : 3); i++) {
        int32_t D = tables[i][0], *per = t_alloc(sizeof(int32_t) * (size_t)D);
        moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
        per[7] = tables[i][1];
        memset(&shape, 0, sizeof shape);
        shape.num_devices = D, shape.num_slots = tables[i][1], shape.slots_per_device = per;
        bytes = moe_ep_placement_bytes(1, 4, &shape);
        CHECK(bytes > 0);
        free(few.mem);
        few.mem = t_alloc(bytes + 1);
        CHECK_I64(moe_ep_placement_init(&few.p, 1, 4, &shape, few.mem, bytes, &err), MOE_EP_OK);
        for (int e = 0; e < 4; e++) few.p.slot_expert[e] = e;
        CHECK_I64(moe_ep_placement_index(&few.p, &err), MOE_EP_OK);
        CHECK_I64(moe_ep_forward_ranks(&d, &few.p, 0, NULL, NULL, x, 2, y, NULL, &none, &err),
                  i < 2 ? MOE_EP_ERR_OVERFLOW : MOE_EP_ERR_SCRATCH);
        error_is(&err, i < 2 ? "p" : "scratch", -1, i < 2 ? (double)D : (double)none.need);
        if (i == 2) CHECK((double)none.need >= 8.0 * 336387.0 * 336387.0 * 1273595.0);
        free(per);
    }
    free(few.mem), free(o.mem);
    free_model(&m);
}

T_MAIN
