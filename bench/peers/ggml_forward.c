/* bench/peers/ggml_forward.c - the same MoE layer by ggml or ik_llama.cpp, for bench_forward --peer
 * SPDX-License-Identifier: MIT
 *
 * Built against a copy of that project of your own; none of its code is here:
 *   cc -O2 -shared -fPIC -I GGML/include bench/peers/ggml_forward.c -o peer_ggml.so -L LIB -lggml-cpu -lggml-base \
 *      -Wl,-rpath,LIB
 *   cc -O2 -shared -fPIC -DPEER_IK -I IK/ggml/include bench/peers/ggml_forward.c -o peer_ik.so -L LIB -lggml \
 *      -Wl,-rpath,LIB
 * The weights are used where they lie; with PEER_IK and repack set, bf16 weights are rearranged into a copy (bf16_r16).
 * Every layer is a graph of its own, built and planned before it is timed. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"
#ifndef PEER_IK
#include "ggml-cpu.h"
#else
void iqk_repack_tensor(struct ggml_tensor *tensor);
#endif

typedef struct peer {
    struct ggml_context *weights, *graph_memory;
    struct ggml_tensor *gate, *up, *down, *x, *ids, *scale, *y;
    struct ggml_cgraph *graph;
    struct ggml_cplan plan;
    uint8_t *work;
    void *copy[3];
    int threads, K;
} peer;

const char *peer_name(void)
{
#ifdef PEER_IK
    return "ik_llama";
#else
    return "ggml";
#endif
}

static struct ggml_context *context(size_t bytes, bool no_alloc)
{
    struct ggml_init_params p;
    memset(&p, 0, sizeof p);
    p.mem_size = bytes;
    p.no_alloc = no_alloc;
    return ggml_init(p);
}

static struct ggml_tensor *matrix(peer *p, int which, enum ggml_type type, int cols, int rows, int experts,
                                  const void *data, int repack)
{
    struct ggml_tensor *t = ggml_new_tensor_3d(p->weights, type, cols, rows, experts);
    t->data = (void *)(uintptr_t)data;
#ifdef PEER_IK
    if (repack && type == GGML_TYPE_BF16) {
        size_t bytes = ggml_nbytes(t);
        if (posix_memalign(&p->copy[which], 64, bytes) != 0) return NULL;
        memcpy(p->copy[which], data, bytes);
        t->data = p->copy[which];
        iqk_repack_tensor(t);
    }
#else
    (void)which, (void)repack;
#endif
    return t;
}

/* type 0: float, 1: bf16, 2: half.  gate and up (experts, inter, hidden), down (experts, hidden, inter). */
void *peer_open(int type, int experts, int top_k, int hidden, int inter, const void *gate, const void *up,
                const void *down, int threads, int repack)
{
    static const enum ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_F16};
    peer *p = (peer *)calloc(1, sizeof *p);
    if (!p || type < 0 || type > 2) return NULL;
#ifndef PEER_IK
    ggml_cpu_init();
#endif
    p->threads = threads;
    p->K = top_k;
    p->weights = context(16 * ggml_tensor_overhead(), true);
    p->gate = matrix(p, 0, types[type], hidden, inter, experts, gate, repack);
    p->up = matrix(p, 1, types[type], hidden, inter, experts, up, repack);
    p->down = matrix(p, 2, types[type], inter, hidden, experts, down, repack);
    return p;
}

/* A graph for this many tokens. */
int peer_prepare(void *peer_of, int64_t tokens)
{
    peer *p = (peer *)peer_of;
    int64_t H = p->gate->ne[0], I = p->gate->ne[1], K = p->K;
    struct ggml_context *c;
    struct ggml_tensor *h, *rows;
    if (p->graph_memory) ggml_free(p->graph_memory);
    free(p->work);
    c = p->graph_memory =
        context((size_t)(tokens * K * (4 * H + 4 * I) + tokens * 4 * H * (K + 2)) * 4 + (64u << 20), false);
    if (!c) return 0;
    p->x = ggml_new_tensor_3d(c, GGML_TYPE_F32, H, 1, tokens);
    p->ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, K, tokens);
    p->scale = ggml_new_tensor_3d(c, GGML_TYPE_F32, 1, K, tokens);
#ifdef PEER_IK
    h = ggml_moe_up_gate(c, p->up, p->gate, p->x, p->ids, GGML_UNARY_OP_SILU);
#else
    h = ggml_swiglu_split(c, ggml_mul_mat_id(c, p->gate, p->x, p->ids), ggml_mul_mat_id(c, p->up, p->x, p->ids));
#endif
    rows = ggml_mul(c, ggml_mul_mat_id(c, p->down, h, p->ids), p->scale);
#ifdef PEER_IK
    p->y = ggml_multi_add(c, ggml_view_2d(c, rows, H, tokens, rows->nb[2], 0), (int)K);
#else
    p->y = ggml_view_2d(c, rows, H, tokens, rows->nb[2], 0);
    for (int64_t k = 1; k < K; k++)
        p->y = ggml_add(c, p->y, ggml_view_2d(c, rows, H, tokens, rows->nb[2], (size_t)k * rows->nb[1]));
#endif
    p->graph = ggml_new_graph(c);
    ggml_build_forward_expand(p->graph, p->y);
#ifdef PEER_IK
    p->plan = ggml_graph_plan(p->graph, p->threads);
#else
    p->plan = ggml_graph_plan(p->graph, p->threads, NULL);
#endif
    p->work = (uint8_t *)malloc(p->plan.work_size + (8u << 20)); /* ik_llama.cpp writes behind what it asks for */
    p->plan.work_data = p->work;
    return p->work != NULL;
}

void peer_inputs(void *peer_of, const float *x, const int32_t *ids, const float *weights)
{
    peer *p = (peer *)peer_of;
    memcpy(p->x->data, x, ggml_nbytes(p->x));
    memcpy(p->ids->data, ids, ggml_nbytes(p->ids));
    memcpy(p->scale->data, weights, ggml_nbytes(p->scale));
}

int peer_run(void *peer_of)
{
    peer *p = (peer *)peer_of;
    return ggml_graph_compute(p->graph, &p->plan) == GGML_STATUS_SUCCESS;
}

const float *peer_result(void *peer_of) { return (const float *)((peer *)peer_of)->y->data; }

void peer_close(void *peer_of)
{
    peer *p = (peer *)peer_of;
    if (p->graph_memory) ggml_free(p->graph_memory);
    ggml_free(p->weights);
    for (int i = 0; i < 3; i++) free(p->copy[i]);
    free(p->work);
    free(p);
}
