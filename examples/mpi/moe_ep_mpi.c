/* examples/mpi/moe_ep_mpi.c - the expert layer over real MPI ranks, two micro-batches in flight, and a rebalance that
 * moves weights.  Equal to one process, bit for bit.
 * SPDX-License-Identifier: MIT
 *
 * build: mpicc -O2 -I. examples/mpi/moe_ep_mpi.c -o moe_ep_mpi -lm          run: mpirun -n 4 ./moe_ep_mpi
 *
 * Counts travel by MPI_Alltoall, rows by MPI_Ialltoallv.  Ranks have different numbers of tokens: the last of two has
 * none in the first batch, the last of more has none at all, and one batch is nobody's.  Some choices are -1.  At the
 * end one token is NaN: its own rank says so, and nobody waits for anybody. */
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { E = 16, K = 2, H = 96, I = 40, EXPERT = 3 * H * I }; /* floats of one expert: gate, up, down in a row */

static int rank, ranks;

static void check(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "rank %d: %s\n", rank, what);
    MPI_Abort(MPI_COMM_WORLD, 1); /* the others wait in a collective: end them too */
}

/* ---- the backend: hooks over MPI ------------------------------------------------------------------- */

/* One micro-batch on the wire.  MPI forbids changing counts during a transfer, so each batch has its own. */
typedef struct wire {
    MPI_Request request;
    int *send_n, *send_at, *recv_n, *recv_at; /* (ranks) in rows */
    float *out, *in;                          /* rows sent, rows received */
    int64_t out_room, in_room;
    const float *x;
    void *rx;
    float *y;
} wire;

typedef struct backend {
    wire wires[2];
    MPI_Datatype row;
    const moe_ep_forward_desc *layer;
    int32_t first_null;
    moe_ep_scratch scratch;
} backend;

static float *room(float *p, int64_t *have, int64_t rows)
{
    if (rows <= *have) return p;
    free(p);
    *have = rows;
    p = (float *)malloc(sizeof(float) * H * (size_t)rows);
    check(p != NULL, "out of memory");
    return p;
}

static int counts(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    (void)user, (void)stream;
    return MPI_Alltoall(send, per_rank, MPI_INT64_T, recv, per_rank, MPI_INT64_T, MPI_COMM_WORLD);
}

static int dispatch(void *user, const moe_ep_plan *p, const void *x, void *rx, size_t row_bytes, void *stream)
{
    backend *b = (backend *)user;
    wire *w = &b->wires[p->batch];
    int r;
    (void)stream;
    w->x = (const float *)x;
    w->rx = rx;
    w->out = room(w->out, &w->out_room, p->nsend);
    w->in = room(w->in, &w->in_room, p->nrecv);
    for (r = 0; r < ranks; r++) {
        w->send_n[r] = (int)p->send_rows[r], w->send_at[r] = (int)p->send_start[r];
        w->recv_n[r] = (int)p->recv_rows[r], w->recv_at[r] = (int)p->recv_start[r];
    }
    check(moe_ep_plan_pack(p, x, w->out, row_bytes, NULL) == MOE_EP_OK, "plan_pack");
    return MPI_Ialltoallv(w->out, w->send_n, w->send_at, b->row, w->in, w->recv_n, w->recv_at, b->row, MPI_COMM_WORLD,
                          &w->request);
}

/* The way back: sent and received change places. */
static int combine(void *user, const moe_ep_plan *p, const void *ry, void *y, size_t row_bytes, void *stream)
{
    backend *b = (backend *)user;
    wire *w = &b->wires[p->batch];
    (void)stream;
    w->y = (float *)y;
    moe_ep_plan_unplace(p, ry, w->in, row_bytes, NULL);
    return MPI_Ialltoallv(w->in, w->recv_n, w->recv_at, b->row, w->out, w->send_n, w->send_at, b->row, MPI_COMM_WORLD,
                          &w->request);
}

static int wait_for(void *user, const moe_ep_plan *p, int stage, void *stream)
{
    backend *b = (backend *)user;
    wire *w = &b->wires[p->batch];
    int code;
    (void)stream;
    if (stage == MOE_EP_STAGE_EXPERTS) return 0; /* computed on the CPU: finished when it returned */
    code = MPI_Wait(&w->request, MPI_STATUS_IGNORE);
    if (code != 0) return code;
    if (stage == MOE_EP_STAGE_DISPATCH) return (int)moe_ep_plan_place(p, w->in, w->rx, sizeof(float) * H, NULL);
    return (int)moe_ep_plan_sum(p, b->layer, b->first_null, H, w->x, w->out, w->y, &b->scratch, NULL);
}

static void backend_open(backend *b)
{
    int i;
    memset(b, 0, sizeof *b);
    MPI_Type_contiguous(H, MPI_FLOAT, &b->row);
    MPI_Type_commit(&b->row);
    for (i = 0; i < 2; i++) {
        int *n = (int *)calloc((size_t)(4 * ranks), sizeof(int));
        check(n != NULL, "out of memory");
        b->wires[i].send_n = n, b->wires[i].send_at = n + ranks;
        b->wires[i].recv_n = n + 2 * ranks, b->wires[i].recv_at = n + 3 * ranks;
    }
}

static void backend_close(backend *b)
{
    int i;
    for (i = 0; i < 2; i++) {
        free(b->wires[i].send_n);
        free(b->wires[i].out);
        free(b->wires[i].in);
    }
    moe_ep_scratch_free(&b->scratch);
    MPI_Type_free(&b->row);
}

/* ---- the model: every rank can make every expert, but computes only with what lies in its slots ---- */

static void make_expert(int e, float *w)
{
    moe_ep_rng g = moe_ep_rng_seed((uint64_t)e + 1);
    int i;
    for (i = 0; i < EXPERT; i++) w[i] = (float)(0.4 * (moe_ep_rng_f64(&g) - 0.5));
}

static moe_ep_weights weights_over(const float *mem, int32_t experts)
{
    moe_ep_weights w;
    memset(&w, 0, sizeof w);
    w.num_experts = experts, w.hidden = H, w.inter = I;
    w.gate = mem, w.up = mem + H * I, w.down = mem + 2 * H * I;
    w.gate_expert_stride = w.up_expert_stride = w.down_expert_stride = EXPERT;
    return w;
}

typedef struct batch {
    int64_t tokens;
    float *x, *y, *want, *weight;
    int32_t *ids, *slots;
} batch;

/* Skewed choices (low ids are hot), some -1.  Empty: batch 2 everywhere, batch 0 on the last of several ranks, all on
 * the last of more than two. */
static batch make_batch(int index)
{
    moe_ep_rng g = moe_ep_rng_seed((uint64_t)(100 * rank + index));
    batch b;
    int64_t i;
    memset(&b, 0, sizeof b);
    b.tokens = 20 + 13 * rank + 7 * index;
    if (index == 2 || (rank == ranks - 1 && ranks > 1 && (index == 0 || ranks > 2))) b.tokens = 0;
    b.x = (float *)malloc(sizeof(float) * H * (size_t)(3 * b.tokens + 1));
    b.weight = (float *)malloc(sizeof(float) * K * (size_t)(b.tokens + 1));
    b.ids = (int32_t *)malloc(sizeof(int32_t) * 2 * K * (size_t)(b.tokens + 1));
    check(b.x && b.weight && b.ids, "out of memory");
    b.y = b.x + H * b.tokens, b.want = b.y + H * b.tokens, b.slots = b.ids + K * b.tokens;
    for (i = 0; i < H * b.tokens; i++) b.x[i] = (float)(moe_ep_rng_f64(&g) - 0.5);
    for (i = 0; i < K * b.tokens; i++) {
        double u = moe_ep_rng_f64(&g);
        b.ids[i] = moe_ep_rng_below(&g, 9) == 0 ? -1 : (int32_t)(E * u * u * u);
        b.weight[i] = (float)moe_ep_rng_f64(&g);
    }
    return b;
}

/* ---- one step: both batches through the ranks, compared with one process --------------------------- */

/* nan_at: the element of x of rank 0 in the second batch that is NaN, -1 = none. */
static void step(const moe_ep_placement *p, const float *slots, const moe_ep_weights *all, batch *b, int64_t nan_at,
                 const char *name)
{
    moe_ep_weights mine = weights_over(slots, p->slot_start[rank + 1] - p->slot_start[rank]);
    moe_ep_forward_desc layer, one;
    moe_ep_hooks hooks;
    moe_ep_rank_desc desc;
    moe_ep_rank handle;
    moe_ep_batch two[2];
    moe_ep_split_desc split;
    moe_ep_status status;
    moe_ep_error err;
    backend net;
    int64_t rows = 0, busiest, bad = 0, sum;
    int i;
    memset(&layer, 0, sizeof layer);
    layer.experts = &mine;
    backend_open(&net);
    net.layer = &layer;
    net.first_null = p->num_slots;
    memset(&hooks, 0, sizeof hooks);
    hooks.size = sizeof hooks, hooks.user = &net;
    hooks.counts = counts, hooks.dispatch = dispatch, hooks.combine = combine, hooks.wait = wait_for;
    hooks.adds_shared = 1; /* moe_ep_plan_sum does */
    memset(&desc, 0, sizeof desc);
    desc.rank = rank, desc.num_ranks = ranks, desc.slot_start = p->slot_start;
    desc.top_k = K, desc.hidden = H, desc.hooks = &hooks, desc.layer = &layer;
    check(moe_ep_rank_init(&handle, &desc, NULL) == MOE_EP_OK, "rank_init");
    memset(two, 0, sizeof two);
    memset(&split, 0, sizeof split);
    for (i = 0; i < 2; i++) { /* this rank's rows of each expert, dealt over the copies of the expert */
        int64_t loads[E], quota[4 * E];
        moe_ep_expert_loads(b[i].ids, K * b[i].tokens, E, loads, NULL, NULL);
        check(moe_ep_split(&split, p, 0, loads, quota, NULL, NULL) == MOE_EP_OK, "split");
        check(moe_ep_assign_slots(p, 0, b[i].ids, K * b[i].tokens, quota, b[i].slots, NULL, NULL) == MOE_EP_OK,
              "assign_slots");
        two[i].num_tokens = b[i].tokens, two[i].slot_ids = b[i].slots, two[i].weights = b[i].weight;
        two[i].x = b[i].x, two[i].y = b[i].y;
    }
    status = moe_ep_rank_forward2(&handle, two, NULL, &err);
    if (rank != 0 || nan_at < 0) check(status == MOE_EP_OK, "forward2");
    else check(status == MOE_EP_ERR_NAN && err.index == nan_at, "forward2 does not name the NaN");
    for (i = 0; i < 2; i++) {
        rows += moe_ep_rank_plan_of(&handle, i)->nrecv;
        memset(&one, 0, sizeof one);
        one.experts = all, one.top_k = K, one.ids = b[i].ids, one.choice_weights = b[i].weight;
        if (rank == 0 && i == 1 && nan_at >= 0) b[i].x[nan_at] = 0.0f; /* for a result to compare the others with */
        check(moe_ep_forward(&one, b[i].x, b[i].tokens, b[i].want, NULL, NULL) == MOE_EP_OK, "forward");
        if (rank == 0 && i == 1 && nan_at >= 0)
            memcpy(b[i].y + nan_at / H * H, b[i].want + nan_at / H * H, sizeof(float) * H);
        bad += memcmp(b[i].y, b[i].want, sizeof(float) * H * (size_t)b[i].tokens) != 0;
    }
    MPI_Reduce(&rows, &busiest, 1, MPI_INT64_T, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Reduce(&rows, &sum, 1, MPI_INT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Allreduce(MPI_IN_PLACE, &bad, 1, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0)
        printf("%-18s %lld rows, busiest rank %lld, mean %.1f: %s\n", name, (long long)sum, (long long)busiest,
               (double)sum / ranks, bad ? "DIFFERS from one process" : "the bits of one process");
    moe_ep_rank_free(&handle);
    backend_close(&net);
    check(bad == 0, "the result differs from one process");
}

/* ---- the rebalance: weights travel by the planner's list ------------------------------------------- */

/* fresh is a second set of slots: nothing that others still wait for is overwritten, and all rounds may go at once. */
static void move_weights(const moe_ep_placement *from, const moe_ep_placement *to, const float *old, float *fresh)
{
    moe_ep_move moves[4 * E];
    moe_ep_moves_result res;
    MPI_Request pending[8 * E];
    int32_t s, s0 = from->slot_start[rank], s1 = from->slot_start[rank + 1], t;
    int n = 0;
    int64_t i;
    check(moe_ep_plan_moves(from, to, sizeof(float) * EXPERT, moves, 4 * E, &res, NULL, NULL) == MOE_EP_OK,
          "plan_moves");
    for (s = s0; s < s1; s++) /* what this rank holds already */
        for (t = s0; t < s1; t++)
            if (to->slot_expert[s] >= 0 && from->slot_expert[t] == to->slot_expert[s])
                memcpy(fresh + (size_t)(s - s0) * EXPERT, old + (size_t)(t - s0) * EXPERT, sizeof(float) * EXPERT);
    for (i = 0; i < res.moves; i++) {
        const moe_ep_move *m = &moves[i];
        if (m->from_device == rank)
            MPI_Isend(old + (size_t)(m->from_slot - s0) * EXPERT, EXPERT, MPI_FLOAT, m->to_device, m->to_slot,
                      MPI_COMM_WORLD, &pending[n++]);
        if (m->to_device == rank)
            MPI_Irecv(fresh + (size_t)(m->to_slot - s0) * EXPERT, EXPERT, MPI_FLOAT, m->from_device, m->to_slot,
                      MPI_COMM_WORLD, &pending[n++]);
    }
    MPI_Waitall(n, pending, MPI_STATUSES_IGNORE);
    if (rank == 0)
        printf("rebalance          %lld experts moved in %lld rounds, %.0f bytes\n", (long long)res.moves,
               (long long)res.rounds, res.bytes);
}

/* An empty placement; returns its memory. */
static void *placement_open(moe_ep_placement *p, const moe_ep_shape *shape)
{
    size_t bytes = moe_ep_placement_bytes(1, E, shape);
    void *mem = malloc(bytes);
    check(mem && moe_ep_placement_init(p, 1, E, shape, mem, bytes, NULL) == MOE_EP_OK, "placement_init");
    return mem;
}

int main(int argc, char **argv)
{
    moe_ep_shape shape;
    moe_ep_place_desc plan;
    moe_ep_placement now, next;
    moe_ep_weights all;
    batch b[4];
    double loads[E];
    int64_t counted[E], once[E];
    float *every, *slots, *fresh;
    void *mem_now, *mem_next;
    size_t room_floats;
    int e, i, s;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    check(ranks <= 16, "at most 16 ranks");
    memset(&shape, 0, sizeof shape);
    shape.num_devices = ranks;
    shape.num_slots = E + (ranks > 1 ? ranks : 0); /* one spare slot per rank for copies of hot experts */
    memset(&plan, 0, sizeof plan);
    plan.num_layers = 1, plan.num_experts = E, plan.shape = shape, plan.loads = loads;
    for (e = 0; e < E; e++) loads[e] = 1.0;
    mem_now = placement_open(&now, &shape), mem_next = placement_open(&next, &shape);
    check(moe_ep_place_contiguous(&plan, &now, NULL, NULL, NULL) == MOE_EP_OK, "contiguous");
    every = (float *)malloc(sizeof(float) * EXPERT * E);
    room_floats = (size_t)(now.slot_start[rank + 1] - now.slot_start[rank]) * EXPERT;
    slots = (float *)calloc(room_floats, sizeof(float)), fresh = (float *)calloc(room_floats, sizeof(float));
    check(every && slots && fresh, "out of memory");
    for (e = 0; e < E; e++) make_expert(e, every + (size_t)e * EXPERT);
    for (s = now.slot_start[rank]; s < now.slot_start[rank + 1]; s++)
        if (now.slot_expert[s] >= 0)
            make_expert(now.slot_expert[s], slots + (size_t)(s - now.slot_start[rank]) * EXPERT);
    all = weights_over(every, E);
    for (i = 0; i < 4; i++) b[i] = make_batch(i < 2 ? i : 2);
    step(&now, slots, &all, b, -1, "contiguous");
    memset(counted, 0, sizeof counted);
    for (i = 0; i < 2; i++) {
        moe_ep_expert_loads(b[i].ids, K * b[i].tokens, E, once, NULL, NULL);
        for (e = 0; e < E; e++) counted[e] += once[e];
    }
    MPI_Allreduce(MPI_IN_PLACE, counted, E, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    for (e = 0; e < E; e++) loads[e] = (double)counted[e];
    check(moe_ep_best_placement(&plan, &next, NULL, NULL, NULL) == MOE_EP_OK, "best_placement"); /* same on all ranks */
    check(moe_ep_relabel(&now, &next, 0, NULL, NULL) == MOE_EP_OK, "relabel");
    move_weights(&now, &next, slots, fresh);
    step(&next, fresh, &all, b, -1, "after rebalancing");
    step(&next, fresh, &all, b + 2, -1, "nobody has tokens");
    if (rank == 0) b[1].x[5 * H + 7] = (float)NAN, b[1].ids[5 * K] = E - 1; /* it has a choice */
    step(&next, fresh, &all, b, 5 * H + 7, "one token is NaN");
    for (i = 0; i < 4; i++) free(b[i].x), free(b[i].weight), free(b[i].ids);
    free(every), free(slots), free(fresh), free(mem_now), free(mem_next);
    MPI_Finalize();
    return 0;
}
