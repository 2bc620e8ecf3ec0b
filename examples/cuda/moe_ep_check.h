/* examples/cuda/moe_ep_check.h - layers, batches and answers to compare with, for the CUDA and the NCCL program.
 * SPDX-License-Identifier: MIT */
#ifndef MOE_EP_CUDA_CHECK_H
#define MOE_EP_CUDA_CHECK_H

#include "moe_ep_cuda.h"
#include <cmath>
#include <stdio.h>
#include <vector>

typedef std::vector<uint16_t> halves; /* bf16 */

static void must(int code, const char *what)
{
    if (code == 0) return;
    fprintf(stderr, "moe_ep_cuda: %s: code %d%s%s\n", what, code, code > 0 && code < MC_BLAS ? ", " : "",
            code > 0 && code < MC_BLAS ? cudaGetErrorString((cudaError_t)code) : "");
    exit(2);
}

static uint16_t draw_half(moe_ep_rng *g, double size)
{
    return moe_ep_bf16_from_f32((float)(size * (2.0 * moe_ep_rng_f64(g) - 1.0)));
}

/* ---- a layer and the answer to it ------------------------------------------------------------------- */

typedef struct layer {
    int E, H, I, K;
    halves gate_up, down; /* (E,2I,H): gate rows, then up rows; (E,H,I) */
    moe_ep_activation act;
    int on_input, nulls;  /* weights on the input; identity experts, ids E .. E+nulls-1 */
} layer;

static layer make_layer(int E, int H, int I, int K, uint64_t seed)
{
    moe_ep_rng g = moe_ep_rng_seed(seed);
    layer l;
    size_t i;
    l.E = E, l.H = H, l.I = I, l.K = K, l.on_input = l.nulls = 0;
    l.gate_up.resize((size_t)E * 2 * I * H);
    l.down.resize((size_t)E * H * I);
    memset(&l.act, 0, sizeof l.act);
    if (seed % 2) l.act = moe_ep_activation_gpt_oss();
    l.act.kind = MOE_EP_ACT_SWIGLU;
    for (i = 0; i < l.gate_up.size(); i++) l.gate_up[i] = draw_half(&g, 2.0 / sqrt((double)H));
    for (i = 0; i < l.down.size(); i++) l.down[i] = draw_half(&g, 2.0 / sqrt((double)I));
    return l;
}

typedef enum choice { ANY, HOLES, ONE_EXPERT, FEW_EXPERTS } choice;

/* One micro-batch of one rank, on the host. */
typedef struct batch {
    int64_t T;
    halves x, y;
    std::vector<float> weights;
    std::vector<int32_t> ids, slots; /* (T,K) */
} batch;

static batch make_batch(const layer *l, int64_t T, choice how, uint64_t seed)
{
    moe_ep_rng g = moe_ep_rng_seed(seed);
    batch b;
    int64_t i, j;
    b.T = T;
    b.x.resize((size_t)(T * l->H));
    b.y.assign((size_t)(T * l->H), 0xffff); /* NaN: every element must be written */
    for (i = 0; i < T * l->H; i++) b.x[(size_t)i] = draw_half(&g, 1.0);
    for (i = 0; i < T * l->K; i++) {
        const int all = l->E + l->nulls;
        int32_t id = how == ONE_EXPERT ? (int32_t)(l->E - 1) : (int32_t)moe_ep_rng_below(&g, (uint64_t)all);
        if (how == FEW_EXPERTS) id = id % 3 * (l->E / 3);
        for (j = 0; how == ANY && j < i % l->K; j++) /* different experts for each token */
            if (b.ids[(size_t)(i - 1 - j)] == id) id = (id + 1) % all, j = -1;
        if (how == HOLES && moe_ep_rng_below(&g, 4) == 0) id = -1;
        b.ids.push_back(id);
        b.weights.push_back((float)(0.1 + moe_ep_rng_f64(&g)));
    }
    b.slots = b.ids;
    return b;
}

/* The layer as the library's CPU part has it. */
static moe_ep_weights weights_of(const layer *l)
{
    moe_ep_weights w;
    memset(&w, 0, sizeof w);
    w.num_experts = l->E, w.hidden = l->H, w.inter = l->I, w.dtype = MOE_EP_BF16, w.layout = MOE_EP_GATE_FIRST;
    w.activation = l->act, w.gate = l->gate_up.data(), w.down = l->down.data();
    return w;
}

static moe_ep_forward_desc forward_of(const layer *l, const moe_ep_weights *w)
{
    moe_ep_forward_desc d;
    memset(&d, 0, sizeof d);
    d.experts = w, d.top_k = l->K, d.weight_on_input = l->on_input, d.num_null = l->nulls;
    return d;
}

/* out (H) += weight * expert(x), or expert(weight * x), everything in double from the same bf16 numbers. */
static void add_expert(const layer *l, int e, const uint16_t *x, double weight, std::vector<double> *out)
{
    const double before = l->on_input ? weight : 1.0, after = l->on_input ? 1.0 : weight;
    const uint16_t *w = l->gate_up.data() + (size_t)e * 2 * l->I * l->H;
    const uint16_t *down = l->down.data() + (size_t)e * l->H * l->I;
    std::vector<double> mid((size_t)l->I);
    int i, h;
    for (i = 0; i < l->I && e < l->E; i++) {
        double gate = 0, up = 0;
        for (h = 0; h < l->H; h++) {
            const double v = before * (double)moe_ep_f32_from_bf16(x[h]);
            gate += v * (double)moe_ep_f32_from_bf16(w[(size_t)i * l->H + h]);
            up += v * (double)moe_ep_f32_from_bf16(w[(size_t)(l->I + i) * l->H + h]);
        }
        mid[(size_t)i] = moe_ep_activate(&l->act, gate, up);
    }
    for (h = 0; h < l->H; h++) {
        if (e >= l->E) (*out)[(size_t)h] += weight * (double)moe_ep_f32_from_bf16(x[h]);
        for (i = 0; i < l->I && e < l->E; i++)
            (*out)[(size_t)h] += after * (double)moe_ep_f32_from_bf16(down[(size_t)h * l->I + i]) * mid[(size_t)i];
    }
}

typedef struct distance {
    double oracle, cpu; /* largest difference from the double oracle and from moe_ep_forward, in units of max |y| */
} distance;

/* The larger one; NaN beats every number. */
static void worst(double *far, double d)
{
    if (!std::isnan(*far) && !(d <= *far)) *far = d;
}

static distance compare(const layer *l, const batch *b)
{
    std::vector<float> x(b->x.size() + 1), cpu(b->x.size() + 1);
    std::vector<double> want((size_t)l->H);
    const moe_ep_weights w = weights_of(l);
    moe_ep_forward_desc d = forward_of(l, &w);
    distance far = {0, 0};
    double most = 1e-30;
    int64_t t;
    int k, h;
    size_t i;
    for (i = 0; i < b->x.size(); i++) x[i] = moe_ep_f32_from_bf16(b->x[i]);
    d.ids = b->ids.data(), d.choice_weights = b->weights.data();
    must(moe_ep_forward(&d, x.data(), b->T, cpu.data(), NULL, NULL), "moe_ep_forward");
    for (t = 0; t < b->T; t++) {
        want.assign((size_t)l->H, 0.0);
        for (k = 0; k < l->K; k++)
            if (b->ids[(size_t)(t * l->K + k)] >= 0)
                add_expert(l, b->ids[(size_t)(t * l->K + k)], b->x.data() + t * l->H,
                           (double)b->weights[(size_t)(t * l->K + k)], &want);
        for (h = 0; h < l->H; h++) {
            const double y = (double)moe_ep_f32_from_bf16(b->y[(size_t)(t * l->H + h)]);
            const double a = fabs(y - want[(size_t)h]), c = fabs(y - (double)cpu[(size_t)(t * l->H + h)]);
            worst(&far.oracle, a);
            worst(&far.cpu, c);
            if (fabs(want[(size_t)h]) > most) most = fabs(want[(size_t)h]);
        }
    }
    far.oracle /= most, far.cpu /= most;
    return far;
}

/* ---- ranks -------------------------------------------------------------------------------------------- */

/* Experts on the slots of `ranks` devices, with copies of the hot ones where there are more slots than experts. */
typedef struct placed {
    moe_ep_placement p;
    std::vector<unsigned char> memory;
} placed;

static void place(const layer *l, int ranks, int slots, const std::vector<batch> &batches, placed *out)
{
    moe_ep_place_desc d;
    std::vector<double> loads((size_t)l->E, 1.0);
    size_t i, j;
    for (i = 0; i < batches.size(); i++)
        for (j = 0; j < batches[i].ids.size(); j++)
            if (batches[i].ids[j] >= 0 && batches[i].ids[j] < l->E) loads[(size_t)batches[i].ids[j]] += 1.0;
    memset(&d, 0, sizeof d);
    d.num_layers = 1, d.num_experts = l->E, d.loads = loads.data();
    d.shape.num_devices = ranks, d.shape.num_slots = slots;
    out->memory.resize(moe_ep_placement_bytes(1, l->E, &d.shape) + 1);
    must(moe_ep_placement_init(&out->p, 1, l->E, &d.shape, out->memory.data(), out->memory.size(), NULL), "placement");
    must(moe_ep_best_placement(&d, &out->p, NULL, NULL, NULL), "moe_ep_best_placement");
}

/* Slots of the choices: each expert's rows dealt over its copies; identity experts stand behind the last slot. */
static void deal(const moe_ep_placement *p, batch *b)
{
    moe_ep_split_desc d;
    std::vector<int32_t> ids(b->ids);
    size_t i;
    std::vector<int64_t> loads((size_t)p->num_experts), quota((size_t)p->num_slots);
    const int64_t n = (int64_t)b->ids.size();
    memset(&d, 0, sizeof d);
    for (i = 0; i < ids.size(); i++)
        if (ids[i] >= p->num_experts) ids[i] = -1;
    must(moe_ep_expert_loads(ids.data(), n, p->num_experts, loads.data(), NULL, NULL), "moe_ep_expert_loads");
    must(moe_ep_split(&d, p, 0, loads.data(), quota.data(), NULL, NULL), "moe_ep_split");
    must(moe_ep_assign_slots(p, 0, ids.data(), n, quota.data(), b->slots.data(), NULL, NULL), "moe_ep_assign_slots");
    for (i = 0; i < ids.size(); i++)
        if (b->ids[i] >= p->num_experts) b->slots[i] = p->num_slots + b->ids[i] - p->num_experts;
}

/* Device memory of `bytes` with a copy of what lies at host (NULL = uninitialised).  A copy from pageable memory may
 * return before it has arrived, and streams made with cudaStreamNonBlocking do not wait for it. */
static int upload(void **device, const void *host, size_t bytes)
{
    MC_TRY(mc_take(device, bytes ? bytes : 1, 0));
    if (!bytes || !host) return 0;
    MC_TRY(cudaMemcpy(*device, host, bytes, cudaMemcpyHostToDevice));
    return (int)cudaStreamSynchronize(NULL);
}

/* A rank on its device: weights of its slots, backend, library state, and the device's copies of two batches. */
typedef struct device_rank {
    mc_backend backend;
    moe_ep_rank handle;
    cudaStream_t stream;
    void *gate_up, *down, *x[2], *y[2], *ids[2], *weights[2];
    mc_routing routing[2];
    moe_ep_weights host_weights; /* the library hands on what it learns here: weights on the input, identity experts */
    moe_ep_forward_desc host;
} device_rank;

static int rank_weights(device_rank *r, const layer *l, const moe_ep_placement *p, int rank)
{
    const size_t in = (size_t)2 * l->I * l->H, out = (size_t)l->H * l->I;
    halves gate_up, down;
    int s;
    for (s = p->slot_start[rank]; s < p->slot_start[rank + 1]; s++) {
        const size_t e = (size_t)(p->slot_expert[s] < 0 ? 0 : p->slot_expert[s]);
        gate_up.insert(gate_up.end(), l->gate_up.begin() + (long)(e * in), l->gate_up.begin() + (long)((e + 1) * in));
        down.insert(down.end(), l->down.begin() + (long)(e * out), l->down.begin() + (long)((e + 1) * out));
    }
    MC_TRY(upload(&r->gate_up, gate_up.data(), 2 * gate_up.size()));
    return upload(&r->down, down.data(), 2 * down.size());
}

/* Starts rank `rank` of `ranks`; r zeroed.  link may be NULL. */
static int rank_open(device_rank *r, const layer *l, const moe_ep_placement *p, int rank, int ranks,
                     const mc_link *link, int loop)
{
    moe_ep_rank_desc d;
    moe_ep_hooks hooks;
    mc_backend *m = &r->backend;
    MC_TRY(rank_weights(r, l, p, rank));
    MC_TRY(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
    m->rank = rank, m->nranks = ranks, m->hidden = l->H, m->inter = l->I;
    m->slots = p->slot_start[rank + 1] - p->slot_start[rank];
    m->gate_up = (const uint16_t *)r->gate_up, m->down = (const uint16_t *)r->down;
    m->alpha = l->act.alpha, m->limit = l->act.limit, m->up_offset = l->act.up_offset;
    m->loop = loop;
    if (link) m->link = *link;
    MC_TRY(mc_open(m));
    hooks = mc_hooks(m);
    memset(&d, 0, sizeof d);
    d.rank = rank, d.num_ranks = ranks, d.slot_start = p->slot_start, d.top_k = l->K, d.hidden = l->H;
    d.elem_bytes = 2, d.elem_type = MOE_EP_BF16, d.hooks = &hooks;
    r->host_weights = weights_of(l), r->host = forward_of(l, &r->host_weights);
    d.layer = &r->host, d.slot_expert = p->slot_expert + p->slot_start[rank];
    return (int)moe_ep_rank_init(&r->handle, &d, NULL);
}

/* Brings batch i of this rank to the device; y begins as NaN. */
static int rank_load(device_rank *r, const batch *b, int i, moe_ep_batch *out)
{
    memset(out, 0, sizeof *out);
    MC_TRY(upload(&r->x[i], b->x.data(), 2 * b->x.size()));
    MC_TRY(upload(&r->y[i], b->y.data(), 2 * b->y.size()));
    out->num_tokens = b->T, out->x = r->x[i], out->y = r->y[i];
    out->slot_ids = b->slots.data(), out->weights = b->weights.data();
    return 0;
}

/* The same with the top-k on the device, unseen by the host. */
static int rank_load_routed(device_rank *r, const batch *b, int i, moe_ep_batch *out)
{
    MC_TRY(rank_load(r, b, i, out));
    MC_TRY(upload(&r->ids[i], b->ids.data(), sizeof(int32_t) * b->ids.size()));
    MC_TRY(upload(&r->weights[i], b->weights.data(), sizeof(float) * b->weights.size()));
    r->routing[i].ids = (const int32_t *)r->ids[i], r->routing[i].weights = (const float *)r->weights[i];
    out->slot_ids = NULL, out->weights = NULL, out->no_plan = 1, out->call = &r->routing[i];
    return 0;
}

/* Fetches y of batch i and gives its memory back. */
static int rank_unload(device_rank *r, batch *b, int i)
{
    void **all[4];
    int j;
    all[0] = &r->x[i], all[1] = &r->y[i], all[2] = &r->ids[i], all[3] = &r->weights[i];
    MC_TRY(cudaStreamSynchronize(r->stream));
    if (!b->y.empty()) MC_TRY(cudaMemcpy(b->y.data(), r->y[i], 2 * b->y.size(), cudaMemcpyDeviceToHost));
    for (j = 0; j < 4; j++) {
        void *p = *all[j];
        *all[j] = NULL;
        if (p) MC_TRY(cudaFree(p));
    }
    return 0;
}

/* Gives everything back, whatever state it is in. */
static void rank_close(device_rank *r)
{
    int i;
    mc_close(&r->backend);
    moe_ep_rank_free(&r->handle);
    for (i = 0; i < 2; i++)
        (void)cudaFree(r->x[i]), (void)cudaFree(r->y[i]), (void)cudaFree(r->ids[i]), (void)cudaFree(r->weights[i]);
    (void)cudaFree(r->gate_up);
    (void)cudaFree(r->down);
    if (r->stream) (void)cudaStreamDestroy(r->stream);
    memset(r, 0, sizeof *r);
}

#endif
