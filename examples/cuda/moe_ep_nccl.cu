/* examples/cuda/moe_ep_nccl.cu - the expert layer over several GPUs of one machine: a thread, a rank and a device each,
 * rows and counts by NCCL, two micro-batches in flight; compared with the CPU.
 * SPDX-License-Identifier: MIT
 *
 * build: nvcc -O3 -I. examples/cuda/moe_ep_nccl.cu -o moe_ep_nccl -lcublas -lnccl          run: ./moe_ep_nccl
 *
 * Over several machines only the start differs: ncclCommInitRank with an id that the launcher hands round. */
#ifndef MOE_EP_IMPLEMENTATION
#define MOE_EP_IMPLEMENTATION
#endif
#define MOE_EP_NO_BLAS
#include "moe_ep_check.h"
#ifndef MOE_EP_CUDA_ON_HOST
#include <nccl.h>
#endif
#include <thread>

#define MC_TRY_NCCL(call)                               \
    do {                                                \
        const int mc_result = (int)(call);              \
        if (mc_result != 0) return MC_NCCL + mc_result; \
    } while (0)

/* ---- the transport: one communicator, one stream for all that goes over it: all ranks agree on the order ---- */

typedef struct mc_nccl {
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t moved[2];
    mc_memory host, device; /* counts of one exchange: sent, then received */
} mc_nccl;

/* Blocks until the counts of all ranks are here; they go behind the rows of the other batch. */
static int mc_nccl_counts(mc_backend *m, const int64_t *send, int64_t *recv, int32_t per_rank, cudaStream_t stream)
{
    mc_nccl *c = (mc_nccl *)m->link.user;
    const size_t bytes = sizeof(int64_t) * (size_t)per_rank * (size_t)m->nranks;
    int64_t *to, *from;
    int peer;
    (void)stream;
    if (bytes == 0) return 0;
    MC_TRY(mc_room(&c->host, 2 * bytes));
    MC_TRY(mc_room(&c->device, 2 * bytes));
    to = (int64_t *)c->device.ptr, from = to + (int64_t)per_rank * m->nranks;
    memcpy(c->host.ptr, send, bytes);
    MC_TRY(cudaMemcpyAsync(to, c->host.ptr, bytes, cudaMemcpyHostToDevice, c->stream));
    MC_TRY_NCCL(ncclGroupStart());
    for (peer = 0; peer < m->nranks; peer++) {
        MC_TRY_NCCL(ncclSend(to + (int64_t)peer * per_rank, (size_t)per_rank, ncclInt64, peer, c->comm, c->stream));
        MC_TRY_NCCL(ncclRecv(from + (int64_t)peer * per_rank, (size_t)per_rank, ncclInt64, peer, c->comm, c->stream));
    }
    MC_TRY_NCCL(ncclGroupEnd());
    MC_TRY(cudaMemcpyAsync((char *)c->host.ptr + bytes, from, bytes, cudaMemcpyDeviceToHost, c->stream));
    MC_TRY(cudaStreamSynchronize(c->stream));
    memcpy(recv, (const char *)c->host.ptr + bytes, bytes);
    return 0;
}

static int mc_nccl_rows(mc_backend *m, int batch, int back)
{
    mc_nccl *c = (mc_nccl *)m->link.user;
    mc_batch *b = &m->batch[batch];
    const size_t row = 2u * (size_t)m->hidden;
    const int64_t *out = back ? b->plan->recv_rows : b->plan->send_rows;
    const int64_t *out_at = back ? b->plan->recv_start : b->plan->send_start;
    const int64_t *in = back ? b->plan->send_rows : b->plan->recv_rows;
    const int64_t *in_at = back ? b->plan->send_start : b->plan->recv_start;
    const char *from = (const char *)(back ? b->in.ptr : b->out.ptr);
    char *to = (char *)(back ? b->out.ptr : b->in.ptr);
    int peer;
    MC_TRY(cudaStreamWaitEvent(c->stream, b->posted, 0));
    MC_TRY_NCCL(ncclGroupStart());
    for (peer = 0; peer < m->nranks; peer++) {
        if (out[peer] > 0)
            MC_TRY_NCCL(ncclSend(from + (size_t)out_at[peer] * row, (size_t)out[peer] * row, ncclInt8, peer, c->comm,
                                 c->stream));
        if (in[peer] > 0)
            MC_TRY_NCCL(ncclRecv(to + (size_t)in_at[peer] * row, (size_t)in[peer] * row, ncclInt8, peer, c->comm,
                                 c->stream));
    }
    MC_TRY_NCCL(ncclGroupEnd());
    return mc_after(c->stream, c->moved[batch], b->wire); /* what follows on this batch waits, the other one does not */
}

static int mc_nccl_open(mc_nccl *c, ncclComm_t comm, mc_link *link)
{
    int i;
    memset(c, 0, sizeof *c);
    c->comm = comm;
    c->host.pinned = 1;
    MC_TRY(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    for (i = 0; i < 2; i++) MC_TRY(cudaEventCreateWithFlags(&c->moved[i], cudaEventDisableTiming));
    memset(link, 0, sizeof *link);
    link->user = c, link->counts = mc_nccl_counts, link->begin = mc_nccl_rows;
    return 0;
}

static int mc_nccl_close(mc_nccl *c)
{
    int i;
    MC_TRY(cudaStreamSynchronize(c->stream));
    MC_TRY(mc_release(&c->host));
    MC_TRY(mc_release(&c->device));
    for (i = 0; i < 2; i++) MC_TRY(cudaEventDestroy(c->moved[i]));
    return (int)cudaStreamDestroy(c->stream);
}

/* ---- the check ---------------------------------------------------------------------------------------------- */

enum { ROUNDS = 3 };

typedef struct job {
    const layer *l;
    const moe_ep_placement *p;
    ncclComm_t comm;
    int rank, ranks;
    std::vector<batch> b; /* (ROUNDS,2) */
} job;

/* All rounds on one rank: the same state, other batches. */
static int run_rank(job *j)
{
    device_rank r;
    mc_nccl net;
    mc_link link;
    moe_ep_batch calls[2];
    int round, i;
    memset(&r, 0, sizeof r);
    MC_TRY(cudaSetDevice(j->rank));
    MC_TRY(mc_nccl_open(&net, j->comm, &link));
    MC_TRY(rank_open(&r, j->l, j->p, j->rank, j->ranks, &link, 0));
    for (round = 0; round < ROUNDS; round++) {
        batch *b = &j->b[(size_t)(2 * round)];
        for (i = 0; i < 2; i++) MC_TRY(rank_load(&r, &b[i], i, &calls[i]));
        MC_TRY(moe_ep_rank_forward2(&r.handle, calls, r.stream, NULL));
        for (i = 0; i < 2; i++) MC_TRY(rank_unload(&r, &b[i], i));
    }
    rank_close(&r);
    return mc_nccl_close(&net);
}

/* A rank that failed leaves the others in a collective: end them too. */
static void run_thread(job *j) { must(run_rank(j), "a rank"); }

/* Returns the batches that are not what the CPU computes. */
static int run_ranks(int ranks, const layer *l, const moe_ep_placement *p, std::vector<job> *jobs)
{
    std::vector<ncclComm_t> comms((size_t)ranks);
    std::vector<std::thread> threads;
    int r, wrong = 0;
    size_t i;
    must(ncclCommInitAll(comms.data(), ranks, NULL) ? MC_NCCL : 0, "ncclCommInitAll");
    for (r = 0; r < ranks; r++) {
        job *j = &(*jobs)[(size_t)r];
        j->l = l, j->p = p, j->comm = comms[(size_t)r], j->rank = r, j->ranks = ranks;
        for (i = 0; i < j->b.size(); i++) deal(p, &j->b[i]);
        threads.push_back(std::thread(run_thread, j));
    }
    for (r = 0; r < ranks; r++) {
        double far = 0;
        threads[(size_t)r].join();
        for (i = 0; i < (*jobs)[(size_t)r].b.size(); i++) {
            const distance d = compare(l, &(*jobs)[(size_t)r].b[i]);
            wrong += !(d.oracle <= 2e-2 && d.cpu <= 2e-2);
            worst(&far, d.oracle);
        }
        printf("  %s rank %d of %d: %d batches, %.1e from double\n", far <= 2e-2 ? "ok  " : "FAIL", r, ranks,
               (int)(*jobs)[(size_t)r].b.size(), far);
        (void)ncclCommDestroy(comms[(size_t)r]);
    }
    return wrong;
}

/* Skewed choices, a quarter -1, uneven ranks, the last one without tokens in the first micro-batch.  Every other layer
 * has its weights on the input and two identity experts. */
static int check_ranks(int ranks)
{
    layer l = make_layer(16, 64, 40, 4, 3);
    std::vector<job> jobs((size_t)ranks);
    std::vector<batch> all;
    placed where;
    int r, i;
    if (ranks % 2) l.on_input = 1, l.nulls = 2;
    for (r = 0; r < ranks; r++)
        for (i = 0; i < 2 * ROUNDS; i++) {
            const int64_t T = i % 2 == 0 && r == ranks - 1 ? 0 : 20 + 13 * r + 7 * i;
            jobs[(size_t)r].b.push_back(make_batch(&l, T, i < 2 ? HOLES : FEW_EXPERTS, (uint64_t)(100 * r + i)));
            all.push_back(jobs[(size_t)r].b.back());
        }
    place(&l, ranks, 16 + ranks, all, &where);
    return run_ranks(ranks, &l, &where.p, &jobs);
}

int main(void)
{
    cudaDeviceProp prop;
    int count = 0, ranks, wrong = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 2) {
        fprintf(stderr, "moe_ep_nccl: needs two GPUs or more, there are %d\n", count);
        return 3;
    }
    must(cudaGetDeviceProperties(&prop, 0), "cudaGetDeviceProperties");
    printf("%d x %s\n", count, prop.name);
    for (ranks = 2; ranks <= count && ranks <= 8; ranks++) wrong += check_ranks(ranks);
    printf("%s\n", wrong ? "there are differences" : "every check holds");
    return wrong != 0;
}
