/* tests/fuzz/fuzz_hooks.c - section 10: the stages of one rank in any order, with hooks that fail
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

/* A backend of one rank that copies rows, and stops with a code of its own when told to. */
typedef struct hooks_backend {
    int code[4], calls;
    size_t row; /* bytes of a result */
    int64_t live;
} hooks_backend;

static int hooks_counts(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    hooks_backend *b = (hooks_backend *)user;
    (void)stream;
    b->calls++;
    memcpy(recv, send, sizeof *send * (size_t)per_rank);
    return b->code[0];
}
static int hooks_dispatch(void *user, const moe_ep_plan *plan, const void *x, void *rx, size_t row, void *stream)
{
    hooks_backend *b = (hooks_backend *)user;
    int64_t i;
    (void)stream;
    b->calls++;
    for (i = 0; i < plan->nsend; i++)
        memcpy((char *)rx + (size_t)plan->recv_row[i] * row, (const char *)x + (size_t)plan->send_token[i] * row, row);
    return b->code[1];
}
static int hooks_experts(void *user, const moe_ep_plan *plan, const void *rx, void *ry, void *stream)
{
    hooks_backend *b = (hooks_backend *)user;
    (void)stream;
    b->calls++;
    if (plan->slot_start && plan->slot_start[plan->nslots] > 0) { /* the first value only */
        memset(ry, 0, b->row * (size_t)plan->slot_start[plan->nslots]);
        memcpy(ry, rx, 4);
    }
    return b->code[2];
}
static void *hooks_alloc(void *user, size_t bytes)
{
    hooks_backend *b = (hooks_backend *)user;
    if (b->code[3]-- == 1) return NULL;
    b->live++;
    return calloc(bytes ? bytes : 1, 1);
}
static void hooks_free(void *user, void *p)
{
    if (p) ((hooks_backend *)user)->live--;
    free(p);
}

static int hooks_same(const float *a, const float *b, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= 1e-4 * (1.0 + fabs((double)b[i])))) return 0;
    return 1;
}

static void hooks_case(void)
{
    enum { MAX_E = 4, MAX_H = 5, MAX_I = 3, MAX_T = 8, MAX_K = 3 };
    float w[3][MAX_E * MAX_H * MAX_I], x[MAX_T * MAX_H], cw[MAX_T * MAX_K], want[MAX_T * MAX_H], *y;
    int32_t ids[MAX_T * MAX_K], start[2] = {0, 0}, order[12];
    int E = fz_int(1, MAX_E), H = fz_int(1, MAX_H), I = fz_int(1, MAX_I), T = fz_int(0, MAX_T), i, j, wild = 0;
    int K = fz_int(1, E < MAX_K ? E : MAX_K);
    hooks_backend backend;
    moe_ep_hooks h;
    moe_ep_weights weights;
    moe_ep_forward_desc f;
    moe_ep_rank_desc d;
    moe_ep_rank rank;
    moe_ep_batch b;
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    memset(&backend, 0, sizeof backend);
    memset(&h, 0, sizeof h);
    memset(&weights, 0, sizeof weights);
    memset(&f, 0, sizeof f);
    memset(&d, 0, sizeof d);
    memset(&b, 0, sizeof b);
    memset(&rank, 0, sizeof rank);
    for (i = 0; i < 3; i++)
        for (j = 0; j < E * H * I; j++) w[i][j] = (float)(fz_unit() - 0.5);
    for (i = 0; i < T * H; i++) x[i] = (float)(fz_unit() - 0.5);
    for (i = 0; i < T * K; i++) {
        cw[i] = (float)fz_unit();
        ids[i] = fz_chance(.1) ? -1 : fz_int(0, E - 1);
        if (fz_chance(.003)) {
            ids[i] = fz_bad_i32();
            wild |= ids[i] < -1 || ids[i] >= E;
        }
    }
    weights.num_experts = E;
    weights.hidden = H;
    weights.inter = I;
    weights.gate = w[0];
    weights.up = w[1];
    weights.down = w[2];
    f.experts = &weights;
    f.top_k = K;
    f.ids = ids;
    f.choice_weights = cw;
    start[1] = fz_chance(.05) ? fz_bad_i32() % 100 : E;
    d.num_ranks = fz_chance(.02) ? fz_int(-1, 1) : 1;
    d.rank = fz_chance(.02) ? fz_bad_i32() : 0;
    d.slot_start = start;
    d.top_k = fz_chance(.03) ? fz_bad_i32() : K;
    d.hidden = fz_chance(.02) ? fz_int(-1, MAX_H) : H;
    d.elem_bytes = fz_chance(.02) ? fz_int(-1, 8) : 0;
    d.layer = fz_chance(.95) ? &f : NULL;
    h.size = fz_chance(.98) ? sizeof h : (size_t)fz_int(0, 200);
    h.user = &backend;
    if (fz_chance(.4)) h.counts = hooks_counts;
    if (fz_chance(.4)) h.dispatch = hooks_dispatch;
    if (fz_chance(.2)) h.experts = hooks_experts;
    if (fz_chance(.4)) h.alloc_fn = hooks_alloc;
    if (h.alloc_fn ? fz_chance(.95) : fz_chance(.05)) h.free_fn = hooks_free;
    backend.row = sizeof(float) * (size_t)H;
    for (i = 0; i < 4; i++) backend.code[i] = fz_chance(.05) ? fz_int(1, 99) : 0;
    if (fz_chance(.5)) d.hooks = &h;
    b.num_tokens = fz_chance(.02) ? fz_bad_i64() : T;
    if (b.num_tokens > T) b.num_tokens = T;
    b.slot_ids = ids;
    b.weights = cw;
    b.x = x;
    b.y = y = (float *)fz_out(sizeof *y * (size_t)(T * H));
    fz_where = "rank_init";
    s = moe_ep_rank_init(&rank, &d, &e);
    fz_error(s, &e);
    if (s != MOE_EP_OK) {
        moe_ep_rank_free(&rank);
        return;
    }
    if (d.hidden != H || d.elem_bytes > 4 || d.top_k != K || start[1] != E) { /* arrays of other sizes */
        moe_ep_rank_free(&rank);
        return;
    }
    if (fz_seldom(4)) {
        int64_t most = fz_chance(.1) ? fz_bad_i64() : T, rows = fz_chance(.1) ? fz_bad_i64() : T * K;
        fz_where = "rank_reserve";
        if (most < 1 << 20 && rows < 1 << 20) {
            s = moe_ep_rank_reserve(&rank, most, rows, &e);
            fz_error(s, &e);
        }
    }
    fz_where = "stages in any order";
    for (i = 0; i < 12; i++) order[i] = fz_int(0, 4);
    for (i = 0; i < fz_int(0, 12); i++) {
        int32_t batch = fz_chance(.1) ? fz_bad_i32() : fz_int(0, 1);
        if (order[i] == 0) s = moe_ep_rank_plan(&rank, batch, fz_chance(.95) ? &b : NULL, NULL, &e);
        else if (order[i] == 1) s = moe_ep_rank_dispatch(&rank, batch, NULL, &e);
        else if (order[i] == 2) s = moe_ep_rank_experts(&rank, batch, NULL, &e);
        else if (order[i] == 3) s = moe_ep_rank_combine(&rank, batch, NULL, &e);
        else s = moe_ep_rank_finish(&rank, batch, NULL, &e);
        if (e.status != s) fz_fail("status %d, err.status %d", (int)s, (int)e.status);
        (void)moe_ep_rank_plan_of(&rank, batch);
    }
    fz_where = "rank_forward";
    memset(y, 0xa5, sizeof *y * (size_t)(T * H));
    s = moe_ep_rank_forward(&rank, &b, NULL, &e);
    if (e.status != s) fz_fail("status %d, err.status %d", (int)s, (int)e.status);
    if (s == MOE_EP_OK && wild && b.num_tokens == T) fz_fail("a wild id was taken");
    if (s == MOE_EP_OK && !(d.hooks && h.experts) && b.num_tokens == T) {
        fz_where = "rank_forward against forward";
        if (moe_ep_forward(&f, x, T, want, NULL, &e) != MOE_EP_OK) fz_fail("forward refuses what the rank took");
        if (!hooks_same(y, want, (int64_t)T * H)) fz_fail("T %d K %d E %d H %d: results differ", T, K, E, H);
    }
    if (s == MOE_EP_OK && fz_seldom(4) && b.num_tokens == T) { /* what an adapter does: pack, place, back, sum */
        const moe_ep_plan *plan;
        fz_where = "plan_pack";
        s = moe_ep_rank_plan(&rank, 0, &b, NULL, &e);
        plan = moe_ep_rank_plan_of(&rank, 0);
        if (s == MOE_EP_OK && plan && plan->nsend == plan->nrecv) {
            size_t bytes = 4u * (size_t)H;
            float *there = fz_out(bytes * (size_t)plan->nsend), *rx = fz_out(bytes * (size_t)plan->nrecv);
            float *back = fz_out(bytes * (size_t)plan->nsend), *sum = fz_out(bytes * (size_t)T);
            if (moe_ep_plan_pack(plan, x, there, bytes, &e) || moe_ep_plan_place(plan, there, rx, bytes, &e) ||
                moe_ep_plan_unplace(plan, rx, back, bytes, &e))
                fz_fail("status %d", (int)e.status);
            if (memcmp(there, back, bytes * (size_t)plan->nsend)) fz_fail("rows come back changed");
            s = moe_ep_plan_sum(plan, NULL, E, H, x, back, sum, NULL, &e);
            if (s) fz_fail("status %d", (int)s);
            for (i = 0; i < T * H; i++)
                if (fz_wild(sum[i])) fz_fail("sum %g", sum[i]);
        }
    }
    if (s == MOE_EP_OK && fz_seldom(4) && b.num_tokens == T && !(d.hooks && h.experts)) {
        moe_ep_batch two[2];
        float *y2 = (float *)fz_out(sizeof *y2 * (size_t)(T * H));
        two[0] = two[1] = b;
        two[1].y = y2;
        fz_where = "rank_forward2";
        s = moe_ep_rank_forward2(&rank, two, NULL, &e);
        if (e.status != s) fz_fail("status %d, err.status %d", (int)s, (int)e.status);
        if (s == MOE_EP_OK && memcmp(y, y2, sizeof *y * (size_t)(T * H))) fz_fail("two batches differ");
    }
    moe_ep_rank_free(&rank);
    if (backend.live != 0) fz_fail("%lld blocks of the caller's allocator are left", (long long)backend.live);
}

FUZZ_TARGET(hooks)
