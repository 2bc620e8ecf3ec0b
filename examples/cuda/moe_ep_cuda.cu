/* examples/cuda/moe_ep_cuda.cu - the expert layer on one GPU through the hooks of moe_ep.h: checked against the CPU
 * and a double oracle, then timed against what the card's memory and cuBLAS give in the same run.
 * SPDX-License-Identifier: MIT
 *
 * build: nvcc -O3 -I. examples/cuda/moe_ep_cuda.cu -o moe_ep_cuda -lcublas          run: ./moe_ep_cuda [--check]
 *
 * Exit status 0: every check holds.  --check leaves the timing out. */
#ifndef MOE_EP_IMPLEMENTATION
#define MOE_EP_IMPLEMENTATION
#endif
#define MOE_EP_NO_BLAS
#include "moe_ep_check.h"
#include <algorithm>

static int failures;

static void report(int ok, const char *what, const char *detail)
{
    if (!ok) failures++;
    printf("  %s %-58s %s\n", ok ? "ok  " : "FAIL", what, detail);
}

/* ---- checks: permutation, gather, scatter, sum ---------------------------------------------------------- */

/* The device's maps are those of moe_ep_permute, element by element. */
static int check_permute(int64_t n, int E, choice how)
{
    std::vector<int32_t> ids, offsets((size_t)E + 1), rows((size_t)n + 1), flat((size_t)n + 1);
    std::vector<int32_t> want_rows((size_t)n + 1), want_flat((size_t)n + 1);
    std::vector<int64_t> want((size_t)E + 1);
    moe_ep_rng g = moe_ep_rng_seed((uint64_t)n * 31 + (uint64_t)E);
    const size_t words = (size_t)(n + E + 1 + 2 * n + mc_permute_work(n, E));
    void *mem = NULL;
    int32_t *at;
    int64_t i;
    int e, same = 1;
    char name[96];
    for (i = 0; i < n; i++) {
        int32_t id = (int32_t)moe_ep_rng_below(&g, (uint64_t)E);
        if (how == ONE_EXPERT) id = E - 1;
        if (how == HOLES && moe_ep_rng_below(&g, 3) == 0) id = -1;
        ids.push_back(id);
    }
    ids.push_back(0);
    must(moe_ep_permute(ids.data(), n, E, want.data(), want_rows.data(), want_flat.data(), NULL), "moe_ep_permute");
    MC_TRY(cudaMalloc(&mem, 4 * words));
    MC_TRY(cudaMemset(mem, 0xee, 4 * words));
    at = (int32_t *)mem;
    MC_TRY(cudaMemcpy(at, ids.data(), 4 * (size_t)n, cudaMemcpyHostToDevice));
    MC_TRY(mc_permute(at, n, E, at + n, at + n + E + 1, at + 2 * n + E + 1, at + 3 * n + E + 1, NULL));
    MC_TRY(cudaStreamSynchronize(NULL));
    MC_TRY(cudaMemcpy(offsets.data(), at + n, 4 * (size_t)(E + 1), cudaMemcpyDeviceToHost));
    MC_TRY(cudaMemcpy(rows.data(), at + n + E + 1, 4 * (size_t)n, cudaMemcpyDeviceToHost));
    MC_TRY(cudaMemcpy(flat.data(), at + 2 * n + E + 1, 4 * (size_t)n, cudaMemcpyDeviceToHost));
    MC_TRY(cudaFree(mem));
    for (e = 0; e <= E; e++) same &= offsets[(size_t)e] == want[(size_t)e];
    same &= std::equal(rows.begin(), rows.begin() + (long)n, want_rows.begin());
    same &= std::equal(flat.begin(), flat.begin() + (long)n, want_flat.begin());
    snprintf(name, sizeof name, "permutation of %lld over %d experts%s", (long long)n, E,
             how == HOLES ? ", a third -1" : how == ONE_EXPERT ? ", all on one" : "");
    report(same, name, same ? "equal to moe_ep_permute" : "DIFFERS");
    return 0;
}

/* gather, scatter and the weighted sum against loops on the host, bit for bit; on_input: weights in the gather. */
static int check_rows(int64_t rows, int H, int K, int on_input)
{
    moe_ep_rng g = moe_ep_rng_seed((uint64_t)rows);
    halves x((size_t)(rows * H)), got((size_t)(rows * H)), sum((size_t)(rows * H)), times((size_t)(rows * H));
    std::vector<int32_t> order((size_t)rows), row_of((size_t)(rows * K));
    std::vector<float> w((size_t)(rows * K));
    void *dx, *dy, *dz, *dorder, *drow, *dw;
    mc_terms terms;
    int64_t i, j;
    int k, same = 1;
    char name[96];
    for (i = 0; i < rows * H; i++) x[(size_t)i] = draw_half(&g, 3.0);
    for (i = 0; i < rows; i++) order[(size_t)i] = (int32_t)((i * 7 + 3) % rows);
    for (i = 0; i < rows * K; i++) {
        row_of[(size_t)i] = (int32_t)moe_ep_rng_below(&g, (uint64_t)rows + 2) - 2; /* MC_IDENTITY, MC_NONE, a row */
        w[(size_t)i] = (float)moe_ep_rng_f64(&g);
    }
    MC_TRY(upload(&dx, x.data(), 2 * x.size()));
    MC_TRY(upload(&dy, NULL, 2 * x.size()));
    MC_TRY(upload(&dz, NULL, 2 * x.size()));
    MC_TRY(upload(&dorder, order.data(), 4 * order.size()));
    MC_TRY(upload(&drow, row_of.data(), 4 * row_of.size()));
    MC_TRY(upload(&dw, w.data(), 4 * w.size()));
    MC_TRY(mc_run_gather(dy, dx, (const int32_t *)dorder, rows, 1, H, NULL)); /* there and back: y = x, as 7 and rows */
    MC_TRY(mc_run_scatter(dz, dy, (const int32_t *)dorder, rows, H, NULL));   /* have no common divisor */
    terms.rows = terms.x = dx, terms.row_of = (const int32_t *)drow, terms.weight = (const float *)dw;
    terms.on_input = on_input;
    MC_TRY(mc_run_combine(dy, &terms, rows, K, H, NULL));
    MC_TRY(cudaStreamSynchronize(NULL));
    MC_TRY(cudaMemcpy(got.data(), dz, 2 * got.size(), cudaMemcpyDeviceToHost));
    MC_TRY(cudaMemcpy(sum.data(), dy, 2 * sum.size(), cudaMemcpyDeviceToHost));
    for (i = 0; i < rows; i++)
        for (j = 0; j < H; j++) {
            volatile float s = 0.0f, product; /* rounded after every step, as the kernel does */
            for (k = 0; k < K; k++) {
                const int32_t row = row_of[(size_t)(i * K + k)];
                if (row == MC_NONE) continue;
                product = (on_input && row >= 0 ? 1.0f : w[(size_t)(i * K + k)]) *
                          moe_ep_f32_from_bf16(x[(size_t)((row < 0 ? i : row) * (int64_t)H + j)]);
                s = s + product;
            }
            same &= sum[(size_t)(i * H + j)] == moe_ep_bf16_from_f32(s);
        }
    for (k = 0; k < 2; k++) { /* weight of the row; weight of the choice that it comes from, which is its token here */
        const float *factor = (const float *)dw;
        MC_TRY(mc_run_gather_times(dy, dx, (const int32_t *)dorder, factor, k, rows, 1, H, NULL));
        MC_TRY(cudaStreamSynchronize(NULL));
        MC_TRY(cudaMemcpy(times.data(), dy, 2 * times.size(), cudaMemcpyDeviceToHost));
        for (i = 0; i < rows; i++)
            for (j = 0; j < H; j++) {
                const int32_t from = order[(size_t)i];
                const volatile float product =
                    w[(size_t)(k ? from : i)] * moe_ep_f32_from_bf16(x[(size_t)(from * (int64_t)H + j)]);
                same &= times[(size_t)(i * H + j)] == moe_ep_bf16_from_f32(product);
            }
    }
    snprintf(name, sizeof name, "gather, scatter, sum of %lld rows of %d, top-%d%s", (long long)rows, H, K,
             on_input ? ", no weights" : "");
    report(same && got == x, name, same && got == x ? "the bits of the host" : "DIFFER");
    MC_TRY(cudaFree(dx));
    MC_TRY(cudaFree(dy));
    MC_TRY(cudaFree(dz));
    MC_TRY(cudaFree(dorder));
    MC_TRY(cudaFree(drow));
    return (int)cudaFree(dw);
}

/* ---- checks: the layer ------------------------------------------------------------------------------------ */

typedef struct trial {
    const char *name;
    int E, H, I, K, ranks, slots;
    int64_t tokens[2]; /* of rank 0 in each micro-batch; rank r has 3 r more, the last of several none in the first */
    choice how;
    int loop, routed; /* one product per expert; top-k on the device */
    int on_input, nulls; /* weights on the input; identity experts */
} trial;

static const trial trials[] = {
    {"one token", 8, 64, 32, 2, 1, 8, {1, 1}, ANY, 0, 0, 0, 0},
    {"no token, then some", 8, 64, 32, 2, 1, 8, {0, 5}, ANY, 0, 0, 0, 0},
    {"empty experts", 12, 64, 40, 3, 1, 12, {17, 33}, FEW_EXPERTS, 0, 0, 0, 0},
    {"all tokens on one expert", 8, 128, 64, 2, 1, 8, {40, 9}, ONE_EXPERT, 0, 0, 0, 0},
    {"a quarter of the ids -1", 16, 64, 72, 4, 1, 16, {50, 31}, HOLES, 0, 0, 0, 0},
    {"one product per expert", 16, 64, 32, 4, 1, 16, {50, 31}, HOLES, 1, 0, 0, 0},
    {"top-k on the device", 16, 64, 32, 4, 1, 16, {300, 31}, HOLES, 0, 1, 0, 0},
    {"top-k on the device, all on one expert", 16, 64, 32, 2, 1, 16, {40, 1}, ONE_EXPERT, 0, 1, 0, 0},
    {"two ranks", 8, 64, 32, 2, 2, 8, {20, 33}, ANY, 0, 0, 0, 0},
    {"three uneven ranks, holes", 9, 72, 24, 3, 3, 9, {11, 4}, HOLES, 0, 0, 0, 0},
    {"four ranks, copies of hot experts", 12, 64, 32, 4, 4, 20, {30, 13}, FEW_EXPERTS, 0, 0, 0, 0},
    {"four ranks, all on one expert", 8, 64, 32, 2, 4, 12, {14, 1}, ONE_EXPERT, 1, 0, 0, 0},
    {"weights on the input", 8, 64, 32, 2, 1, 8, {20, 33}, HOLES, 0, 0, 1, 0},
    {"weights on the input, top-k on the device", 8, 64, 32, 2, 1, 8, {20, 33}, HOLES, 0, 1, 1, 0},
    {"identity experts", 8, 64, 32, 3, 1, 8, {20, 33}, HOLES, 0, 0, 0, 4},
    {"identity experts, top-k on the device", 8, 64, 32, 3, 1, 8, {20, 33}, HOLES, 0, 1, 0, 4},
    {"three ranks, both", 9, 72, 24, 3, 3, 11, {11, 4}, HOLES, 0, 0, 1, 3},
    {"top-k on the device, both", 9, 72, 24, 3, 1, 9, {11, 4}, ANY, 0, 1, 1, 3},
};

/* Rows of every rank for every slot, as an all-to-all of counts would give them. */
static void fill_board(mc_node *node, const moe_ep_placement *p, const std::vector<batch> &b, int which,
                       std::vector<int64_t> *board)
{
    int per_rank = 0, r, d;
    size_t i;
    for (r = 0; r < node->nranks; r++) per_rank = std::max(per_rank, p->slot_start[r + 1] - p->slot_start[r]);
    board->assign((size_t)(node->nranks * node->nranks * per_rank), 0);
    for (r = 0; r < node->nranks; r++) {
        const std::vector<int32_t> &slots = b[(size_t)(2 * r + which)].slots;
        for (i = 0; i < slots.size(); i++) {
            if (slots[i] < 0 || slots[i] >= p->num_slots) continue;
            for (d = 0; p->slot_start[d + 1] <= slots[i];) d++;
            (*board)[(size_t)((r * node->nranks + d) * per_rank + slots[i] - p->slot_start[d])]++;
        }
    }
    node->board = board->data();
}

/* Both micro-batches through all ranks of this process, stage by stage, in the order of moe_ep_rank_forward2. */
static int run_node(mc_node *node, device_rank *ranks, const moe_ep_placement *p, const std::vector<batch> &b,
                    const moe_ep_batch *calls)
{
    std::vector<int64_t> board;
    int which, r, stage;
    for (which = 0; which < 2; which++) {
        fill_board(node, p, b, which, &board);
        for (r = 0; r < node->nranks; r++)
            MC_TRY(moe_ep_rank_plan(&ranks[r].handle, which, &calls[2 * r + which], ranks[r].stream, NULL));
        for (r = 0; r < node->nranks; r++) MC_TRY(moe_ep_rank_dispatch(&ranks[r].handle, which, ranks[r].stream, NULL));
    }
    for (which = 0; which < 2; which++)
        for (stage = 0; stage < 2; stage++)
            for (r = 0; r < node->nranks; r++)
                MC_TRY(stage == 0 ? moe_ep_rank_experts(&ranks[r].handle, which, ranks[r].stream, NULL)
                                  : moe_ep_rank_combine(&ranks[r].handle, which, ranks[r].stream, NULL));
    for (which = 0; which < 2; which++)
        for (r = 0; r < node->nranks; r++) MC_TRY(moe_ep_rank_finish(&ranks[r].handle, which, ranks[r].stream, NULL));
    return 0;
}

/* The layer three times over the same state, each time with other batches, so that buffers are reused and grow. */
static int run_trial(const trial *t, const layer *l, mc_node *node, device_rank *ranks, distance *far)
{
    placed where;
    int round, r, i;
    for (round = 0; round < 3; round++) {
        std::vector<batch> b;
        std::vector<moe_ep_batch> calls((size_t)(2 * t->ranks));
        for (r = 0; r < t->ranks; r++)
            for (i = 0; i < 2; i++) {
                const int64_t T = t->ranks > 1 && r == t->ranks - 1 && i == 0 ? 0 : t->tokens[i] + 3 * r + 5 * round;
                b.push_back(make_batch(l, round == 0 && t->ranks == 1 ? t->tokens[i] : T, t->how,
                                       (uint64_t)(round * 100 + r * 10 + i)));
            }
        if (round == 0) {
            place(l, t->ranks, t->slots, b, &where);
            if (t->ranks == 1) /* slot s is expert s, so that ids are slots */
                for (i = 0; i < t->slots; i++) where.p.slot_expert[i] = i;
            must(moe_ep_placement_index(&where.p, NULL), "index");
            for (r = 0; r < t->ranks; r++) {
                const mc_link link = mc_node_link(node);
                MC_TRY(rank_open(&ranks[r], l, &where.p, r, t->ranks, t->ranks > 1 ? &link : NULL, t->loop));
                node->members[r] = &ranks[r].backend;
                if (t->routed) MC_TRY(moe_ep_rank_reserve(&ranks[r].handle, 1024, 4096, NULL));
            }
        }
        for (i = 0; i < 2 * t->ranks; i++) {
            deal(&where.p, &b[(size_t)i]);
            MC_TRY(t->routed ? rank_load_routed(&ranks[i / 2], &b[(size_t)i], i % 2, &calls[(size_t)i])
                             : rank_load(&ranks[i / 2], &b[(size_t)i], i % 2, &calls[(size_t)i]));
        }
        if (t->ranks == 1) MC_TRY(moe_ep_rank_forward2(&ranks[0].handle, calls.data(), ranks[0].stream, NULL));
        else MC_TRY(run_node(node, ranks, &where.p, b, calls.data()));
        for (i = 0; i < 2 * t->ranks; i++) {
            distance d;
            MC_TRY(rank_unload(&ranks[i / 2], &b[(size_t)i], i % 2));
            if (!far) continue;
            d = compare(l, &b[(size_t)i]);
            worst(&far->oracle, d.oracle);
            worst(&far->cpu, d.cpu);
        }
    }
    return 0;
}

/* One trial from start to end; far NULL = only run it. */
static int try_layer(const trial *t, distance *far)
{
    layer l = make_layer(t->E, t->H, t->I, t->K, (uint64_t)(t->E + t->H + t->ranks + (int)t->how));
    std::vector<device_rank> ranks((size_t)t->ranks);
    std::vector<mc_backend *> members((size_t)t->ranks);
    mc_node node;
    int r, code;
    l.on_input = t->on_input, l.nulls = t->nulls;
    memset(&node, 0, sizeof node);
    memset(ranks.data(), 0, sizeof(device_rank) * ranks.size());
    node.nranks = t->ranks;
    node.members = members.data();
    code = run_trial(t, &l, &node, ranks.data(), far);
    for (r = 0; r < t->ranks; r++) rank_close(&ranks[(size_t)r]);
    return code;
}

static void check_layers(void)
{
    size_t i;
    for (i = 0; i < sizeof trials / sizeof *trials; i++) {
        distance far = {0, 0};
        char detail[96];
        must(try_layer(&trials[i], &far), trials[i].name);
        snprintf(detail, sizeof detail, "%.1e from double, %.1e from the CPU", far.oracle, far.cpu);
        report(far.oracle <= 2e-2 && far.cpu <= 2e-2, trials[i].name, detail);
    }
}

/* Three calls in a row without a look at the stream in between: what one still reads must not be overwritten.  The
 * second finds its memory there, so that nothing but upload() itself makes its kernels wait for x. */
static int check_calls_in_a_row(void)
{
    const layer l = make_layer(6, 64, 32, 3, 4);
    std::vector<batch> b;
    placed where;
    device_rank r, second; /* second: only the device's copies of batches 2 and 3 */
    moe_ep_batch calls[4];
    distance far = {0, 0};
    char detail[64];
    int i;
    memset(&r, 0, sizeof r);
    memset(&second, 0, sizeof second);
    for (i = 0; i < 4; i++) b.push_back(make_batch(&l, 21 - 2 * i, HOLES, (uint64_t)i));
    place(&l, 1, 6, b, &where);
    for (i = 0; i < 6; i++) where.p.slot_expert[i] = i;
    MC_TRY(rank_open(&r, &l, &where.p, 0, 1, NULL, 0));
    second.stream = r.stream;
    for (i = 0; i < 2; i++) MC_TRY(rank_load(&r, &b[(size_t)i], i, &calls[i]));
    MC_TRY(moe_ep_rank_forward2(&r.handle, calls, r.stream, NULL));
    for (i = 2; i < 4; i++) MC_TRY(rank_load(&second, &b[(size_t)i], i - 2, &calls[i]));
    MC_TRY(moe_ep_rank_forward2(&r.handle, calls + 2, r.stream, NULL));
    MC_TRY(moe_ep_rank_forward2(&r.handle, calls, r.stream, NULL));
    for (i = 0; i < 4; i++) {
        distance d;
        MC_TRY(rank_unload(i < 2 ? &r : &second, &b[(size_t)i], i % 2));
        d = compare(&l, &b[(size_t)i]);
        worst(&far.oracle, d.oracle);
    }
    rank_close(&r);
    snprintf(detail, sizeof detail, "%.1e from double", far.oracle);
    report(far.oracle <= 2e-2, "three calls in a row, six batches in flight", detail);
    return 0;
}

/* A backend's code and the library's own reach the caller, and the rank works afterwards. */
static int check_codes(void)
{
    const layer l = make_layer(4, 64, 32, 2, 2);
    placed where;
    std::vector<batch> b(1, make_batch(&l, 6, ANY, 1));
    device_rank r;
    moe_ep_batch call;
    moe_ep_error err;
    mc_memory none;
    mc_routing enough = {NULL, NULL};
    moe_ep_forward_desc with_shared;
    moe_ep_rank_desc d;
    moe_ep_hooks hooks;
    moe_ep_rank refused = {NULL};
    int st;
    memset(&r, 0, sizeof r);
    place(&l, 1, 4, b, &where);
    for (st = 0; st < 4; st++) where.p.slot_expert[st] = st;
    MC_TRY(rank_open(&r, &l, &where.p, 0, 1, NULL, 0));
    MC_TRY(rank_load(&r, &b[0], 0, &call));
    call.no_plan = 1;
    st = (int)moe_ep_rank_forward(&r.handle, &call, r.stream, &err);
    report(st == MOE_EP_ERR_CONFIG && strcmp(err.arg, "no_plan") == 0, "no plan and no rows reserved are refused", "");
    MC_TRY(moe_ep_rank_reserve(&r.handle, 6, 11, NULL)); /* one row less than 6 tokens may bring */
    call.call = &enough;
    st = (int)moe_ep_rank_forward(&r.handle, &call, r.stream, &err);
    report(st == MC_SHAPE && strcmp(err.arg, "hooks.dispatch") == 0, "more rows than were reserved are refused", "");
    MC_TRY(moe_ep_rank_reserve(&r.handle, 6, 12, NULL));
    call.call = NULL; /* no routing: the hook must refuse */
    st = (int)moe_ep_rank_forward(&r.handle, &call, r.stream, &err);
    report(st == MC_SHAPE && strcmp(err.arg, "hooks.dispatch") == 0, "the code of a hook comes back unchanged",
           err.arg);
    st = (int)moe_ep_rank_reserve(&r.handle, 1, (int64_t)1 << 42, &err);
    report(st == MOE_EP_ERR_MEMORY, "more memory than the card has is refused", moe_ep_status_str((moe_ep_status)st));
    memset(&none, 0, sizeof none);
    st = mc_room(&none, (size_t)1 << 42);
    report(st == (int)cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess, "and is reported once", "");
    call.no_plan = 0;
    MC_TRY(moe_ep_rank_forward(&r.handle, &call, r.stream, NULL));
    MC_TRY(rank_unload(&r, &b[0], 0));
    report(compare(&l, &b[0]).oracle <= 2e-2, "the same rank works afterwards", "");
    memset(&call, 0, sizeof call);
    memset(&d, 0, sizeof d);
    hooks = mc_hooks(&r.backend);
    with_shared = r.host, with_shared.shared = &r.host_weights;
    d.num_ranks = 1, d.slot_start = where.p.slot_start, d.top_k = l.K, d.hidden = l.H, d.elem_bytes = 2;
    d.hooks = &hooks, d.layer = &with_shared;
    st = (int)moe_ep_rank_init(&refused, &d, &err);
    report(st == MOE_EP_ERR_CONFIG, "shared experts, which nobody here adds, are refused", err.arg);
    rank_close(&r);
    r.backend.hidden = 20, r.backend.inter = 8;
    report(mc_open(&r.backend) == MC_SHAPE, "sizes that are no multiple of 8 are refused", "");
    mc_close(&r.backend);
    return 0;
}

static void check_all(void)
{
    static const int64_t sizes[] = {0, 1, 255, 256, 257, 5000};
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) must(check_permute(sizes[i], 7, HOLES), "permutation");
    must(check_permute(3000, 300, ANY), "permutation");
    must(check_permute(700, 1, ANY), "permutation");
    must(check_permute(1500, 64, ONE_EXPERT), "permutation");
    for (int on_input = 0; on_input < 2; on_input++) {
        must(check_rows(1, 8, 1, on_input), "rows");
        must(check_rows(100, 264, 3, on_input), "rows");
        must(check_rows(13, 2056, 8, on_input), "rows");
    }
    check_layers();
    must(check_calls_in_a_row(), "calls in a row");
    must(check_codes(), "codes");
}

/* ---- timing --------------------------------------------------------------------------------------------------- */

typedef struct clock_pair {
    cudaEvent_t from, to;
} clock_pair;

/* Median seconds of one run of `what`, by events on stream, after a warm-up. */
template <class F> static int seconds_of(F what, cudaStream_t stream, double *seconds)
{
    enum { ROUNDS = 9 };
    double all[ROUNDS];
    clock_pair c;
    int i, j, repeat = 1;
    MC_TRY(cudaEventCreate(&c.from));
    MC_TRY(cudaEventCreate(&c.to));
    for (i = -2; i < ROUNDS; i++) {
        float ms;
        MC_TRY(cudaEventRecord(c.from, stream));
        for (j = 0; j < repeat; j++) MC_TRY(what());
        MC_TRY(cudaEventRecord(c.to, stream));
        MC_TRY(cudaEventSynchronize(c.to));
        MC_TRY(cudaEventElapsedTime(&ms, c.from, c.to));
        if (i == -1) repeat = std::max(1, std::min(200, (int)(20.0f / (ms + 1e-3f)))); /* a round takes some 20 ms */
        if (i >= 0) all[i] = 1e-3 * (double)ms / repeat;
    }
    std::sort(all, all + ROUNDS);
    *seconds = all[ROUNDS / 2];
    MC_TRY(cudaEventDestroy(c.from));
    return (int)cudaEventDestroy(c.to);
}

typedef struct limits {
    double bytes, flops; /* per second: copy inside the device (read + write), bf16 product */
} limits;

/* Random bf16 numbers on the device: a block from the host, doubled there. */
static int random_halves(void **p, size_t count)
{
    const size_t block = std::min(count, (size_t)1 << 20);
    moe_ep_rng g = moe_ep_rng_seed(5);
    halves host(block);
    size_t have;
    for (have = 0; have < block; have++) host[have] = draw_half(&g, 0.1);
    MC_TRY(cudaMalloc(p, 2 * count));
    MC_TRY(cudaMemcpy(*p, host.data(), 2 * block, cudaMemcpyHostToDevice));
    for (have = block; have < count; have += std::min(have, count - have))
        MC_TRY(cudaMemcpy((uint16_t *)*p + have, *p, 2 * std::min(have, count - have), cudaMemcpyDeviceToDevice));
    return (int)cudaStreamSynchronize(NULL); /* other streams do not wait for these */
}

static int measure_limits(int small, cudaStream_t stream, limits *out)
{
    const size_t bytes = small ? 1 << 16 : (size_t)1 << 30;
    const int n = small ? 16 : 8192;
    const float one = 1.0f, zero = 0.0f;
    cublasHandle_t blas;
    void *a, *b;
    double s;
    MC_TRY(random_halves(&a, bytes / 2));
    MC_TRY(random_halves(&b, bytes / 2));
    MC_TRY(seconds_of([=] { return (int)cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, stream); }, stream, &s));
    out->bytes = 2.0 * (double)bytes / s;
    MC_TRY_BLAS(cublasCreate(&blas));
    MC_TRY_BLAS(cublasSetStream(blas, stream));
    MC_TRY(seconds_of(
        [=, &one, &zero] {
            return (int)cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a, CUDA_R_16BF, n,
                                     (const uint16_t *)a + (size_t)n * n, CUDA_R_16BF, n, &zero, b, CUDA_R_16BF, n,
                                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        },
        stream, &s));
    out->flops = 2.0 * n * n * n / s;
    MC_TRY_BLAS(cublasDestroy(blas));
    MC_TRY(cudaFree(a));
    return (int)cudaFree(b);
}

static int time_permute(int64_t n, int E, const limits *most, cudaStream_t stream)
{
    const size_t words = (size_t)(3 * n + E + 1 + mc_permute_work(n, E));
    std::vector<int32_t> ids;
    moe_ep_rng g = moe_ep_rng_seed(1);
    int32_t *at;
    void *mem;
    double s, bytes = 12.0 * (double)n;
    int64_t i;
    for (i = 0; i < n; i++) ids.push_back((int32_t)moe_ep_rng_below(&g, (uint64_t)E));
    MC_TRY(cudaMalloc(&mem, 4 * words));
    at = (int32_t *)mem;
    MC_TRY(cudaMemcpy(at, ids.data(), 4 * (size_t)n, cudaMemcpyHostToDevice));
    MC_TRY(cudaStreamSynchronize(NULL));
    MC_TRY(seconds_of(
        [=] { return mc_permute(at, n, E, at + n, at + n + E + 1, at + 2 * n + E + 1, at + 3 * n + E + 1, stream); },
        stream, &s));
    printf("permutation of %lld over %d experts: %.1f us, %.0f GB/s of ids and maps, %.0f %% of the copy\n",
           (long long)n, E, 1e6 * s, 1e-9 * bytes / s, 100 * bytes / s / most->bytes);
    return (int)cudaFree(mem);
}

typedef struct preset {
    const char *name;
    int E, H, I, K;
} preset;

/* Stages of one batch on one rank, each alone and the whole layer as forward2 runs it. */
static int time_layer(const preset *q, int64_t T, const limits *most, device_rank *r, const moe_ep_batch *calls)
{
    mc_backend *m = &r->backend;
    mc_batch *b = &m->batch[0];
    const moe_ep_plan *p;
    const int64_t rows = T * q->K;
    double gather, grouped, loop, sum, both, active = 0, bytes, flops = 6.0 * (double)rows * q->H * q->I, bound;
    void *rx, *ry;
    mc_terms terms;
    int s, fell_back;
    MC_TRY(moe_ep_rank_forward2(&r->handle, calls, r->stream, NULL)); /* memory, plans */
    MC_TRY(cudaStreamSynchronize(r->stream));
    p = moe_ep_rank_plan_of(&r->handle, 0);
    for (s = 0; s < q->E; s++) active += p->slot_rows[s] > 0;
    MC_TRY(cudaMalloc(&rx, 2u * (size_t)(rows * q->H)));
    MC_TRY(cudaMalloc(&ry, 2u * (size_t)(rows * q->H)));
    MC_TRY(seconds_of([=] { return mc_run_gather(rx, r->x[0], b->send_token, rows, 1, q->H, r->stream); }, r->stream,
                      &gather));
    MC_TRY(seconds_of([=] { return mc_experts(m, p, rx, ry, r->stream); }, r->stream, &grouped));
    fell_back = m->grouped_failed;
    m->loop = 1;
    MC_TRY(seconds_of([=] { return mc_experts(m, p, rx, ry, r->stream); }, r->stream, &loop));
    m->loop = 0;
    terms.rows = ry, terms.x = r->x[0], terms.row_of = b->choice_row, terms.weight = b->weight, terms.on_input = 0;
    MC_TRY(seconds_of([=] { return mc_run_combine(r->y[0], &terms, T, q->K, q->H, r->stream); }, r->stream, &sum));
    MC_TRY(seconds_of([=] { return (int)moe_ep_rank_forward2(&r->handle, calls, r->stream, NULL); }, r->stream, &both));
    bytes = active * 6.0 * q->H * q->I + 2.0 * (double)rows * (2 * q->H + 6 * q->I);
    bound = std::max(bytes / most->bytes, flops / most->flops);
    printf("%-14s %6lld | %8.1f %3.0f%% | %8.1f %8.1f%s %3.0f%% %-5s | %8.1f %3.0f%% | %9.1f\n", q->name, (long long)T,
           1e6 * gather, 100 * 4.0 * (double)rows * q->H / gather / most->bytes, 1e6 * grouped, 1e6 * loop,
           fell_back ? "*" : " ", 100 * bound / std::min(grouped, loop),
           bytes / most->bytes > flops / most->flops ? "bytes" : "flops", 1e6 * sum,
           100 * 2.0 * (double)(rows + T) * q->H / sum / most->bytes, 1e6 * both / 2);
    MC_TRY(cudaFree(rx));
    return (int)cudaFree(ry);
}

static int time_preset(const preset *q, const std::vector<int64_t> &tokens, const limits *most)
{
    layer l;
    placed where;
    device_rank r;
    moe_ep_rank_desc d;
    moe_ep_hooks hooks;
    size_t i;
    int s;
    l.E = q->E, l.H = q->H, l.I = q->I, l.K = q->K, l.on_input = l.nulls = 0;
    memset(&l.act, 0, sizeof l.act);
    memset(&r, 0, sizeof r);
    place(&l, 1, l.E, std::vector<batch>(), &where);
    for (s = 0; s < l.E; s++) where.p.slot_expert[s] = s;
    MC_TRY(random_halves(&r.gate_up, (size_t)2 * l.E * l.I * l.H));
    MC_TRY(random_halves(&r.down, (size_t)l.E * l.H * l.I));
    MC_TRY(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking));
    r.backend.nranks = 1, r.backend.hidden = l.H, r.backend.inter = l.I, r.backend.slots = l.E;
    r.backend.gate_up = (const uint16_t *)r.gate_up, r.backend.down = (const uint16_t *)r.down;
    MC_TRY(mc_open(&r.backend));
    hooks = mc_hooks(&r.backend);
    memset(&d, 0, sizeof d);
    d.num_ranks = 1, d.slot_start = where.p.slot_start, d.top_k = l.K, d.hidden = l.H, d.elem_bytes = 2;
    d.hooks = &hooks;
    MC_TRY(moe_ep_rank_init(&r.handle, &d, NULL));
    for (i = 0; i < tokens.size(); i++) {
        batch b[2] = {make_batch(&l, tokens[i], ANY, 1), make_batch(&l, tokens[i], ANY, 2)};
        moe_ep_batch calls[2];
        for (s = 0; s < 2; s++) MC_TRY(rank_load(&r, &b[s], s, &calls[s]));
        MC_TRY(time_layer(q, tokens[i], most, &r, calls));
        for (s = 0; s < 2; s++) MC_TRY(rank_unload(&r, &b[s], s));
    }
    rank_close(&r);
    return 0;
}

/* small: sizes for a run on the CPU, which only shows that this code works. */
static int time_all(int small)
{
    static const preset presets[] = {{"Qwen3-30B", 128, 2048, 768, 8}, {"Phi-tiny", 16, 4096, 448, 2},
                                     {"Mixtral-8x7B", 8, 4096, 14336, 2}, {"DeepSeek-V3/8", 32, 7168, 2048, 8}};
    static const preset tiny = {"tiny", 4, 16, 8, 2};
    const std::vector<int64_t> tokens =
        small ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 16, 64, 256, 1024, 4096};
    cudaStream_t stream;
    limits most = {0, 0};
    size_t i;
    MC_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MC_TRY(measure_limits(small, stream, &most));
    printf("limits measured now: copy %.0f GB/s, bf16 product %.1f TFLOP/s\n", 1e-9 * most.bytes, 1e-12 * most.flops);
    MC_TRY(time_permute(small ? 300 : 131072, small ? 16 : 256, &most, stream));
    printf("us per micro-batch; %% of the copy, of the experts' bound (* no grouped product here); layer: two in "
           "flight\n");
    printf("%-14s %6s | %13s | %28s | %13s | %9s\n", "", "tokens", "gather", "experts: grouped, loop", "sum", "layer");
    for (i = 0; i < (small ? 1u : 4u); i++) MC_TRY(time_preset(small ? &tiny : &presets[i], tokens, &most));
    return (int)cudaStreamDestroy(stream);
}

int main(int argc, char **argv)
{
    cudaDeviceProp prop;
    int count = 0, check_only = argc > 1 && strcmp(argv[1], "--check") == 0;
    int small = argc > 1 && strcmp(argv[1], "--small") == 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        fprintf(stderr, "moe_ep_cuda: no GPU here\n");
        return 3;
    }
    must(cudaSetDevice(0), "cudaSetDevice");
    must(cudaGetDeviceProperties(&prop, 0), "cudaGetDeviceProperties");
    printf("%s\n", prop.name);
    check_all();
    if (!check_only) must(time_all(small), "timing");
    printf("%s\n", failures ? "there are differences" : "every check holds");
    return failures != 0;
}
