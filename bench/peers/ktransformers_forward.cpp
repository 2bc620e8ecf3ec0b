/* bench/peers/ktransformers_forward.cpp - the same MoE layer by KTransformers' CPU kernels, for bench_forward --peer
 * SPDX-License-Identifier: MIT
 *
 * Built against a copy of that project of your own (KT) with its llama.cpp (LLAMA: ggml.h, ggml-impl.h, ggml-quants.h
 * as llama.cpp/..., and llamafile/sgemm.h); none of its code is here:
 *   c++ -std=c++20 -O2 -march=native -ffast-math -shared -fPIC -I KT -I LLAMA bench/peers/ktransformers_forward.cpp \
 *      KT/kt-kernel/cpu_backend/worker_pool.cpp KT/kt-kernel/cpu_backend/shared_mem_buffer.cpp -o peer_kt.so \
 *      -L LIB -lggml-cpu -lggml-base -Wl,-rpath,LIB -lnuma -lhwloc -lpthread
 * bf16 only: --type bf16.  It keeps a packed copy of the weights.  Its threads spin: run without chrt.  Without AMX in
 * -march it multiplies by AVX-512-BF16. */
#include <cstdint>
#include <cstring>
#include <vector>

#include "kt-kernel/operators/amx/bf16-moe.hpp"

namespace {

typedef TP_MOE<AMX_BF16_MOE_TP<amx::GemmKernel224BF16>> Layer;

struct Peer {
    GeneralMOEConfig config;
    WorkerPool *pool;
    Layer *layer;
    int64_t tokens;
    std::vector<ggml_bf16_t> x, y;
    std::vector<float> result, weights;
    std::vector<int64_t> ids;
};

uint16_t narrow(float v)
{
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float widen(uint16_t v)
{
    const uint32_t bits = (uint32_t)v << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

} // namespace

extern "C" {

const char *peer_name(void) { return "ktransformers"; }

/* As in ggml_forward.c. */
void *peer_open(int type, int experts, int top_k, int hidden, int inter, const void *gate, const void *up,
                const void *down, int threads, int repack)
{
    (void)repack;
    if (type != 1) return nullptr;
    Peer *p = new Peer;
    WorkerPoolConfig pool;
    pool.subpool_count = 1;
    pool.subpool_numa_map = {0};
    pool.subpool_thread_count = {threads};
    p->pool = new WorkerPool(pool);
    p->config = GeneralMOEConfig(experts, top_k, hidden, inter);
    p->config.pool = p->pool;
    p->config.max_len = 1024;
    p->config.gate_proj = const_cast<void *>(gate);
    p->config.up_proj = const_cast<void *>(up);
    p->config.down_proj = const_cast<void *>(down);
    p->layer = new Layer(p->config);
    p->layer->load_weights();
    return p;
}

int peer_prepare(void *peer, int64_t tokens)
{
    Peer *p = (Peer *)peer;
    const size_t n = (size_t)(tokens * p->config.hidden_size);
    p->tokens = tokens;
    p->x.resize(n);
    p->y.resize(n);
    p->result.resize(n);
    return 1;
}

void peer_inputs(void *peer, const float *x, const int32_t *ids, const float *weights)
{
    Peer *p = (Peer *)peer;
    const int64_t choices = p->tokens * p->config.num_experts_per_tok;
    for (size_t i = 0; i < p->x.size(); i++) p->x[i].bits = narrow(x[i]);
    p->ids.assign(ids, ids + choices);
    p->weights.assign(weights, weights + choices);
}

int peer_run(void *peer)
{
    Peer *p = (Peer *)peer;
    int tokens = (int)p->tokens;
    p->layer->forward(&tokens, p->config.num_experts_per_tok, p->ids.data(), p->weights.data(), p->x.data(),
                      p->y.data());
    return 1;
}

const float *peer_result(void *peer)
{
    Peer *p = (Peer *)peer;
    for (size_t i = 0; i < p->y.size(); i++) p->result[i] = widen(p->y[i].bits);
    return p->result.data();
}

void peer_close(void *peer)
{
    Peer *p = (Peer *)peer;
    delete p->layer;
    delete p->pool;
    delete p;
}
}
