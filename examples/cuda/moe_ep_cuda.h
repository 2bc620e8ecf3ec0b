/* examples/cuda/moe_ep_cuda.h - the expert layer on GPUs, behind the hooks of moe_ep.h.
 * SPDX-License-Identifier: MIT
 *
 *   x --gather--> out ==link==> in --scatter--> rx --grouped GEMM, SwiGLU, grouped GEMM--> ry
 *   ry --gather--> in ==link==> out --weighted sum in choice order--> y       (one rank: x -> rx and ry -> y directly)
 *
 * Rows and weights are bf16, sums are float; H and I are multiples of 8, so that every row moves in 16-byte pieces.
 * x, rx, ry, y are device pointers; the library passes them through.  Only indices, not rows, cross the bus: one
 * copy from pinned memory per batch.  No call waits for the GPU, but for a plan on the device (see mc_routing).
 * Weights on the input and identity experts are done here; shared experts are not: a layer that has some is refused.
 *
 * Streams: experts run on the caller's stream, rows travel on a stream of their own per batch, tied to the caller's
 * by events; so the rows of one micro-batch move while the experts of the other compute.  A hook's code is a
 * cudaError_t, MC_BLAS + cublasStatus_t, MC_NCCL + ncclResult_t or MC_SHAPE; the library hands it on unchanged. */
#ifndef MOE_EP_CUDA_H
#define MOE_EP_CUDA_H

#include "moe_ep.h"
#include <stdlib.h>
#include <string.h>

#ifdef MOE_EP_CUDA_ON_HOST
#include "cuda_on_host.h" /* the same source on the CPU, for machines without a GPU */
#else
#include <cublas_v2.h>
#include <cuda_runtime.h>
#define MC_LAUNCH(kernel, grid, block, stream, ...) kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
#endif

enum { MC_BLAS = 10000, MC_NCCL = 20000, MC_SHAPE = 30000 }; /* bases of codes, see above */
enum { MC_CHUNK = 256 };                                     /* ids that one block of the permutation takes */
enum { MC_NONE = -1, MC_IDENTITY = -2 };                     /* in place of the row of a choice that has none */

#define MC_TRY(call)                            \
    do {                                        \
        const int mc_code = (int)(call);        \
        if (mc_code != 0) return mc_code;       \
    } while (0)
#define MC_TRY_BLAS(call)                                    \
    do {                                                     \
        const int mc_status = (int)(call);                   \
        if (mc_status != 0) return MC_BLAS + mc_status;      \
    } while (0)

/* ---- kernels ---------------------------------------------------------------------------------------- */

static __device__ float mc_low(unsigned two) { return __uint_as_float(two << 16); }
static __device__ float mc_high(unsigned two) { return __uint_as_float(two & 0xffff0000u); }

/* Nearest bf16, ties to even; NaN stays NaN. */
static __device__ unsigned mc_bf16(float v)
{
    const unsigned bits = __float_as_uint(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

static __device__ unsigned mc_pair(float low, float high) { return mc_bf16(low) | (mc_bf16(high) << 16); }

/* dst row i <- src row from[i] / divisor, one block per row; rows with from[i] < 0 are left alone. */
static __global__ void mc_gather(uint4 *dst, const uint4 *src, const int32_t *from, int divisor, int units)
{
    const int64_t row = blockIdx.x;
    const int32_t at = from[row];
    int u;
    if (at < 0) return;
    for (u = (int)threadIdx.x; u < units; u += (int)blockDim.x)
        dst[row * units + u] = src[(int64_t)(at / divisor) * units + u];
}

/* The same, and times weight[i], or with of_choice weight[from[i]], rounded to bf16. */
static __global__ void mc_gather_times(uint4 *dst, const uint4 *src, const int32_t *from, const float *weight,
                                       int of_choice, int divisor, int units)
{
    const int64_t row = blockIdx.x;
    const int32_t at = from[row];
    float w;
    int u, j;
    if (at < 0) return;
    w = weight[of_choice ? at : row];
    for (u = (int)threadIdx.x; u < units; u += (int)blockDim.x) {
        const uint4 in = src[(int64_t)(at / divisor) * units + u];
        unsigned word[4] = {in.x, in.y, in.z, in.w};
        uint4 v;
        for (j = 0; j < 4; j++) word[j] = mc_pair(__fmul_rn(w, mc_low(word[j])), __fmul_rn(w, mc_high(word[j])));
        v.x = word[0], v.y = word[1], v.z = word[2], v.w = word[3];
        dst[row * units + u] = v;
    }
}

/* dst row to[i] <- src row i. */
static __global__ void mc_scatter(uint4 *dst, const uint4 *src, const int32_t *to, int units)
{
    const int64_t row = blockIdx.x, at = to[row];
    int u;
    for (u = (int)threadIdx.x; u < units; u += (int)blockDim.x) dst[at * units + u] = src[row * units + u];
}

/* y[t] <- sum over k, in choice order, of weight[t,k] * rows[row_of[t,k]], or x[t] in place of the row for MC_IDENTITY;
 * with on_input rows have their weight already.  One block per token.  Product and sum round separately, so the bits do
 * not depend on what the compiler would contract. */
static __global__ void mc_combine(uint4 *y, const uint4 *rows, const uint4 *x, const int32_t *row_of,
                                  const float *weight, int on_input, int top_k, int units)
{
    const int64_t t = blockIdx.x;
    int u, k, j;
    for (u = (int)threadIdx.x; u < units; u += (int)blockDim.x) {
        float sum[8];
        uint4 v;
        for (j = 0; j < 8; j++) sum[j] = 0.0f;
        for (k = 0; k < top_k; k++) {
            const int64_t row = row_of[t * top_k + k];
            const float w = on_input && row >= 0 ? 1.0f : weight[t * top_k + k];
            unsigned word[4];
            if (row == MC_NONE) continue;
            v = row == MC_IDENTITY ? x[t * units + u] : rows[row * units + u];
            word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
            for (j = 0; j < 4; j++) {
                sum[2 * j] = __fadd_rn(sum[2 * j], __fmul_rn(w, mc_low(word[j])));
                sum[2 * j + 1] = __fadd_rn(sum[2 * j + 1], __fmul_rn(w, mc_high(word[j])));
            }
        }
        v.x = mc_pair(sum[0], sum[1]), v.y = mc_pair(sum[2], sum[3]);
        v.z = mc_pair(sum[4], sum[5]), v.w = mc_pair(sum[6], sum[7]);
        y[t * units + u] = v;
    }
}

/* moe_ep_activation with MOE_EP_ACT_SWIGLU: cut, gate, offset. */
static __device__ float mc_swiglu_of(float g, float u, float alpha, float limit, float up_offset)
{
    if (limit > 0.0f) {
        g = fminf(g, limit);
        u = fmaxf(fminf(u, limit), -limit);
    }
    return g / (1.0f + expf(-alpha * g)) * (u + up_offset);
}

/* h (rows,I) <- both (rows,2I): I gate values, then I up values; one block per row. */
static __global__ void mc_swiglu(uint4 *h, const uint4 *both, int units, float alpha, float limit, float up_offset)
{
    const int64_t row = blockIdx.x;
    int i, j;
    for (i = (int)threadIdx.x; i < units; i += (int)blockDim.x) {
        const uint4 g = both[row * 2 * units + i], u = both[row * 2 * units + units + i];
        const unsigned gate[4] = {g.x, g.y, g.z, g.w}, up[4] = {u.x, u.y, u.z, u.w};
        unsigned out[4];
        uint4 v;
        for (j = 0; j < 4; j++)
            out[j] = mc_pair(mc_swiglu_of(mc_low(gate[j]), mc_low(up[j]), alpha, limit, up_offset),
                             mc_swiglu_of(mc_high(gate[j]), mc_high(up[j]), alpha, limit, up_offset));
        v.x = out[0], v.y = out[1], v.z = out[2], v.w = out[3];
        h[row * units + i] = v;
    }
}

/* ---- the permutation: a stable counting sort without atomics, so that its result never depends on timing ---- */

/* One block per chunk of MC_CHUNK ids: rank of each id among its equals of the chunk, and how many there are:
 * count (E,chunks), zero before.  Ids outside 0..E-1 have no row. */
static __global__ void mc_rank(const int32_t *ids, int64_t n, int experts, int chunks, int32_t *rank, int32_t *count)
{
    __shared__ int32_t chunk[MC_CHUNK];
    const int me = (int)threadIdx.x;
    const int64_t i = (int64_t)blockIdx.x * MC_CHUNK + me;
    int before = 0, after = 0, j, id = -1;
    if (i < n) id = ids[i];
    chunk[me] = id;
    __syncthreads();
    for (j = 0; j < MC_CHUNK; j++) {
        const int same = chunk[j] == id;
        before += same & (j < me);
        after |= same & (j > me);
    }
    if (id < 0 || id >= experts) return;
    rank[i] = before;
    if (!after) count[(int64_t)id * chunks + blockIdx.x] = before + 1; /* the last of its kind knows the number */
}

/* Each row of cells (gridDim.x,len) becomes its own exclusive prefix sum; total[row] is the sum. */
static __global__ void mc_scan(int32_t *cells, int64_t len, int32_t *total)
{
    __shared__ int32_t part[MC_CHUNK];
    const int me = (int)threadIdx.x;
    const int64_t each = (len + MC_CHUNK - 1) / MC_CHUNK, from = me * each;
    const int64_t to = from + each < len ? from + each : len;
    int32_t *row = cells + (int64_t)blockIdx.x * len, sum = 0, cell;
    int64_t i;
    int step;
    for (i = from; i < to; i++) sum += row[i];
    part[me] = sum;
    __syncthreads();
    for (step = 1; step < MC_CHUNK; step *= 2) {
        const int32_t left = me >= step ? part[me - step] : 0;
        __syncthreads();
        part[me] += left;
        __syncthreads();
    }
    sum = part[me] - sum; /* what lies before this thread's piece */
    for (i = from; i < to; i++) {
        cell = row[i];
        row[i] = sum;
        sum += cell;
    }
    if (me == MC_CHUNK - 1) total[blockIdx.x] = part[me];
}

/* Both maps; row_to_flat is -1 everywhere before. */
static __global__ void mc_place(const int32_t *ids, int64_t n, int experts, int chunks, const int32_t *rank,
                                const int32_t *count, const int32_t *offsets, int32_t *row_to_flat,
                                int32_t *flat_to_row)
{
    const int64_t i = (int64_t)blockIdx.x * MC_CHUNK + threadIdx.x;
    int32_t id, row;
    if (i >= n) return;
    id = ids[i];
    if (id < 0 || id >= experts) {
        flat_to_row[i] = id < 0 ? MC_NONE : MC_IDENTITY;
        return;
    }
    row = offsets[id] + count[(int64_t)id * chunks + blockIdx.x] + rank[i];
    flat_to_row[i] = row;
    row_to_flat[row] = (int32_t)i;
}

/* ---- memory ----------------------------------------------------------------------------------------- */

typedef struct mc_memory {
    void *ptr;
    size_t bytes;
    int pinned; /* host memory that the GPU can read */
} mc_memory;

/* "Out of memory" is reported here or by the library, not by the next launch, too. */
static int mc_take(void **p, size_t bytes, int pinned)
{
    const int code = (int)(pinned ? cudaMallocHost(p, bytes) : cudaMalloc(p, bytes));
    if (code != 0) (void)cudaGetLastError();
    return code;
}

static int mc_release(mc_memory *m)
{
    int code;
    if (!m->ptr) return 0;
    code = (int)(m->pinned ? cudaFreeHost(m->ptr) : cudaFree(m->ptr));
    m->ptr = NULL;
    m->bytes = 0;
    return code;
}

/* At least `bytes`, contents lost.  Grows after the GPU has finished with the old piece. */
static int mc_room(mc_memory *m, size_t bytes)
{
    if (bytes <= m->bytes) return 0;
    MC_TRY(cudaDeviceSynchronize());
    MC_TRY(mc_release(m));
    MC_TRY(mc_take(&m->ptr, bytes, m->pinned));
    m->bytes = bytes;
    return 0;
}

/* ---- the backend -------------------------------------------------------------------------------------- */

/* Top-k that never leaves the device: put it in moe_ep_batch.call with no_plan = 1; one rank, ids are slots.  As the
 * host does not see how many are -1, moe_ep_rank_reserve must have made room for T*K rows. */
typedef struct mc_routing {
    const int32_t *ids;   /* (T,K) on the device, -1 = none, from the number of slots on: identity experts */
    const float *weights; /* (T,K) on the device            */
} mc_routing;

struct mc_backend;

/* How counts and rows reach the other ranks.  NULL members on one rank. */
typedef struct mc_link {
    void *user;
    int (*counts)(struct mc_backend *m, const int64_t *send, int64_t *recv, int32_t per_rank, cudaStream_t stream);
    /* back = 0: out of every rank -> in of this one; back = 1: in -> out.  Enqueued on the batch's stream.  begin is
       called by dispatch and combine, end by the wait that follows; a transport fills one of them or both. */
    int (*begin)(struct mc_backend *m, int batch, int back);
    int (*end)(struct mc_backend *m, int batch, int back);
} mc_link;

typedef struct mc_batch {
    const moe_ep_plan *plan;
    cudaStream_t wire;                      /* rows travel here */
    cudaEvent_t ready, arrived;             /* the caller's stream got here; rows are where they belong */
    cudaEvent_t uploaded, posted;           /* pinned memory may be written again; own rows stand ready for the peers */
    mc_memory staging, index;               /* pinned: indices of one call; the same on the device */
    mc_memory pointers_host, pointers;      /* of the grouped GEMM, in pinned memory and on the device */
    mc_memory out, in;                      /* rows to and from the other ranks */
    mc_memory both, hidden;                 /* (rows,2I), (rows,I) between the two products */
    mc_memory sort, offsets_host;           /* permutation on the device; its offsets (E+1) come back */
    const int32_t *send_token, *recv_row, *choice_row; /* on the device */
    const float *weight, *send_weight;      /* on the device; send_weight when the plan has weight_on_input */
    cudaEvent_t counted, pointers_read;
    const void *x;
    void *rx, *y;
} mc_batch;

typedef struct mc_backend {
    int rank, nranks, hidden, inter, slots; /* sizes of this rank */
    const uint16_t *gate_up, *down;         /* device: (slots,2I,H) gate rows, then up rows; (slots,H,I) */
    float alpha, limit, up_offset;          /* as in moe_ep_activation; alpha 0 = 1 */
    int loop;                               /* not 0: one cublasGemmEx per expert in place of the grouped product */
    int grouped_failed;                     /* cuBLAS said that it has no grouped product for this */
    cublasHandle_t blas;
    mc_link link;
    mc_batch batch[2];
} mc_backend;

static mc_memory *mc_memory_of(mc_batch *b, int i)
{
    mc_memory *all[10];
    all[0] = &b->staging, all[1] = &b->index, all[2] = &b->pointers_host, all[3] = &b->pointers, all[4] = &b->out;
    all[5] = &b->in, all[6] = &b->both, all[7] = &b->hidden, all[8] = &b->sort, all[9] = &b->offsets_host;
    return all[i];
}

static cudaEvent_t *mc_event_of(mc_batch *b, int i)
{
    cudaEvent_t *all[6];
    all[0] = &b->ready, all[1] = &b->arrived, all[2] = &b->uploaded, all[3] = &b->posted, all[4] = &b->counted;
    all[5] = &b->pointers_read;
    return all[i];
}

/* Gives everything back; a zeroed backend is fine.  Weights stay the caller's. */
static void mc_close(mc_backend *m)
{
    int b, i;
    (void)cudaDeviceSynchronize();
    for (b = 0; b < 2; b++) {
        for (i = 0; i < 10; i++)
            if (mc_memory_of(&m->batch[b], i)->ptr) (void)mc_release(mc_memory_of(&m->batch[b], i));
        for (i = 0; i < 6; i++)
            if (*mc_event_of(&m->batch[b], i)) (void)cudaEventDestroy(*mc_event_of(&m->batch[b], i));
        if (m->batch[b].wire) (void)cudaStreamDestroy(m->batch[b].wire);
    }
    if (m->blas) (void)cublasDestroy(m->blas);
    memset(m, 0, sizeof *m);
}

/* Streams, events and the cuBLAS handle; the caller has zeroed *m and filled its sizes and weights. */
static int mc_open(mc_backend *m)
{
    int b, i;
    if (m->hidden % 8 != 0 || m->inter % 8 != 0 || m->hidden < 8 || m->inter < 8 || m->slots < 0) return MC_SHAPE;
    for (b = 0; b < 2; b++) {
        mc_batch *q = &m->batch[b];
        q->staging.pinned = q->pointers_host.pinned = q->offsets_host.pinned = 1;
        MC_TRY(cudaStreamCreateWithFlags(&q->wire, cudaStreamNonBlocking));
        for (i = 0; i < 6; i++) MC_TRY(cudaEventCreateWithFlags(mc_event_of(q, i), cudaEventDisableTiming));
    }
    MC_TRY_BLAS(cublasCreate(&m->blas));
    return 0;
}

static int mc_threads(int units) { return units >= 256 ? 256 : (units + 31) / 32 * 32; }

/* `later` goes on when `first` has come this far. */
static int mc_after(cudaStream_t first, cudaEvent_t event, cudaStream_t later)
{
    MC_TRY(cudaEventRecord(event, first));
    return (int)cudaStreamWaitEvent(later, event, 0);
}

static int mc_run_gather(void *dst, const void *src, const int32_t *from, int64_t rows, int divisor, int hidden,
                         cudaStream_t stream)
{
    if (rows == 0) return 0;
    if (rows > INT32_MAX) return MC_SHAPE;
    MC_LAUNCH(mc_gather, (unsigned)rows, (unsigned)mc_threads(hidden / 8), stream, (uint4 *)dst, (const uint4 *)src,
              from, divisor, hidden / 8);
    return (int)cudaGetLastError();
}

static int mc_run_gather_times(void *dst, const void *src, const int32_t *from, const float *weight, int of_choice,
                               int64_t rows, int divisor, int hidden, cudaStream_t stream)
{
    if (rows == 0) return 0;
    if (rows > INT32_MAX) return MC_SHAPE;
    MC_LAUNCH(mc_gather_times, (unsigned)rows, (unsigned)mc_threads(hidden / 8), stream, (uint4 *)dst,
              (const uint4 *)src, from, weight, of_choice, divisor, hidden / 8);
    return (int)cudaGetLastError();
}

static int mc_run_scatter(void *dst, const void *src, const int32_t *to, int64_t rows, int hidden, cudaStream_t stream)
{
    if (rows == 0) return 0;
    if (rows > INT32_MAX) return MC_SHAPE;
    MC_LAUNCH(mc_scatter, (unsigned)rows, (unsigned)mc_threads(hidden / 8), stream, (uint4 *)dst, (const uint4 *)src,
              to, hidden / 8);
    return (int)cudaGetLastError();
}

/* What a sum reads, see mc_combine. */
typedef struct mc_terms {
    const void *rows, *x;
    const int32_t *row_of;
    const float *weight;
    int on_input;
} mc_terms;

static int mc_run_combine(void *y, const mc_terms *q, int64_t tokens, int top_k, int hidden, cudaStream_t stream)
{
    if (tokens == 0) return 0;
    MC_LAUNCH(mc_combine, (unsigned)tokens, (unsigned)mc_threads(hidden / 8), stream, (uint4 *)y,
              (const uint4 *)q->rows, (const uint4 *)q->x, q->row_of, q->weight, q->on_input, top_k, hidden / 8);
    return (int)cudaGetLastError();
}

/* moe_ep_permute on the device: ids (n) -> offsets (E+1), row_to_flat (n), flat_to_row (n), all int32 on the device.
 * work: mc_permute_work(n, E) int32 on the device. */
static int64_t mc_permute_work(int64_t n, int experts)
{
    return n + (n + MC_CHUNK - 1) / MC_CHUNK * experts;
}

static int mc_permute(const int32_t *ids, int64_t n, int experts, int32_t *offsets, int32_t *row_to_flat,
                      int32_t *flat_to_row, int32_t *work, cudaStream_t stream)
{
    const int64_t chunks = (n + MC_CHUNK - 1) / MC_CHUNK;
    int32_t *rank = work, *count = work + n;
    if (n == 0) return (int)cudaMemsetAsync(offsets, 0, sizeof(int32_t) * (size_t)(experts + 1), stream);
    if (n > INT32_MAX) return MC_SHAPE;
    MC_TRY(cudaMemsetAsync(count, 0, sizeof(int32_t) * (size_t)(chunks * experts), stream));
    MC_TRY(cudaMemsetAsync(row_to_flat, 0xff, sizeof(int32_t) * (size_t)n, stream));
    MC_LAUNCH(mc_rank, (unsigned)chunks, (unsigned)MC_CHUNK, stream, ids, n, experts, (int)chunks, rank, count);
    MC_TRY(cudaGetLastError());
    MC_LAUNCH(mc_scan, (unsigned)experts, (unsigned)MC_CHUNK, stream, count, chunks, offsets);
    MC_TRY(cudaGetLastError());
    MC_LAUNCH(mc_scan, 1u, (unsigned)MC_CHUNK, stream, offsets, (int64_t)experts, offsets + experts);
    MC_TRY(cudaGetLastError());
    MC_LAUNCH(mc_place, (unsigned)chunks, (unsigned)MC_CHUNK, stream, ids, n, experts, (int)chunks,
              (const int32_t *)rank, (const int32_t *)count, (const int32_t *)offsets, row_to_flat, flat_to_row);
    return (int)cudaGetLastError();
}

/* ---- hooks: counts, dispatch --------------------------------------------------------------------------- */

static int mc_counts(void *user, const int64_t *send, int64_t *recv, int32_t per_rank, void *stream)
{
    mc_backend *m = (mc_backend *)user;
    if (m->link.counts) return m->link.counts(m, send, recv, per_rank, (cudaStream_t)stream);
    memcpy(recv, send, sizeof(int64_t) * (size_t)per_rank);
    return 0;
}

static int32_t *mc_narrow(int32_t *to, const int64_t *from, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) to[i] = (int32_t)from[i];
    return to + n;
}

/* The plan's indices, as 32-bit numbers, and weights in one copy. */
static int mc_upload(mc_batch *b, const moe_ep_plan *p)
{
    const int64_t n = p->ntokens * p->top_k, weights = p->weight_on_input ? p->nsend : 0;
    const int64_t words = p->nsend + p->nrecv + 2 * n + weights;
    int64_t i;
    int32_t *at;
    if (p->nsend > INT32_MAX || p->nrecv > INT32_MAX || n > INT32_MAX) return MC_SHAPE;
    if (words == 0) return 0;
    MC_TRY(cudaEventSynchronize(b->uploaded)); /* of the call before: done long ago */
    MC_TRY(mc_room(&b->staging, sizeof(int32_t) * (size_t)words));
    MC_TRY(mc_room(&b->index, sizeof(int32_t) * (size_t)words));
    at = mc_narrow((int32_t *)b->staging.ptr, p->send_token, p->nsend);
    at = mc_narrow(at, p->recv_row, p->nrecv);
    for (i = 0; i < n; i++) /* a choice without a row is none, or an identity expert */
        *at++ = p->choice_row[i] >= 0 ? (int32_t)p->choice_row[i] : p->topk_ids[i] < 0 ? MC_NONE : MC_IDENTITY;
    if (n > 0) memcpy(at, p->topk_weights, sizeof(float) * (size_t)n);
    if (weights > 0) memcpy(at + n, p->send_weight, sizeof(float) * (size_t)weights);
    MC_TRY(cudaMemcpyAsync(b->index.ptr, b->staging.ptr, sizeof(int32_t) * (size_t)words, cudaMemcpyHostToDevice,
                           b->wire));
    MC_TRY(cudaEventRecord(b->uploaded, b->wire));
    b->send_token = (const int32_t *)b->index.ptr;
    b->recv_row = b->send_token + p->nsend;
    b->choice_row = b->recv_row + p->nrecv;
    b->weight = (const float *)(const void *)(b->choice_row + n);
    b->send_weight = b->weight + n;
    return 0;
}

/* Top-k on the device: sort there, and fetch the offsets, which the grouped product wants on the host. */
static int mc_dispatch_routed(mc_backend *m, mc_batch *b, const moe_ep_plan *p, const void *x, void *rx)
{
    const mc_routing *r = (const mc_routing *)p->call;
    const int64_t n = p->ntokens * p->top_k;
    int32_t *offsets;
    if (m->nranks != 1 || !r || n > INT32_MAX || n > p->room_rows) return MC_SHAPE; /* rows: n at most */
    MC_TRY(mc_room(&b->sort, sizeof(int32_t) * (size_t)(m->slots + 1 + 2 * n + mc_permute_work(n, m->slots))));
    MC_TRY(mc_room(&b->offsets_host, sizeof(int32_t) * (size_t)(m->slots + 1)));
    offsets = (int32_t *)b->sort.ptr;
    b->send_token = offsets + m->slots + 1; /* row_to_flat */
    b->choice_row = b->send_token + n;      /* flat_to_row */
    b->weight = r->weights;
    MC_TRY(mc_permute(r->ids, n, m->slots, offsets, offsets + m->slots + 1, offsets + m->slots + 1 + n,
                      offsets + m->slots + 1 + 2 * n, b->wire));
    MC_TRY(cudaMemcpyAsync(b->offsets_host.ptr, offsets, sizeof(int32_t) * (size_t)(m->slots + 1),
                           cudaMemcpyDeviceToHost, b->wire));
    MC_TRY(cudaEventRecord(b->counted, b->wire));
    if (p->weight_on_input)
        return mc_run_gather_times(rx, x, b->send_token, r->weights, 1, n, p->top_k, m->hidden, b->wire);
    return mc_run_gather(rx, x, b->send_token, n, p->top_k, m->hidden, b->wire);
}

/* Rows of the plan in the order in which they leave. */
static int mc_leave(mc_backend *m, mc_batch *b, const moe_ep_plan *p, const void *x, void *out)
{
    if (p->weight_on_input)
        return mc_run_gather_times(out, x, b->send_token, b->send_weight, 0, p->nsend, 1, m->hidden, b->wire);
    return mc_run_gather(out, x, b->send_token, p->nsend, 1, m->hidden, b->wire);
}

static int mc_dispatch(void *user, const moe_ep_plan *p, const void *x, void *rx, size_t row_bytes, void *stream)
{
    mc_backend *m = (mc_backend *)user;
    mc_batch *b = &m->batch[p->batch];
    if (row_bytes != 2u * (size_t)m->hidden) return MC_SHAPE;
    b->plan = p;
    b->x = x;
    b->rx = rx;
    MC_TRY(mc_after((cudaStream_t)stream, b->ready, b->wire)); /* x is written by then, rx and ry are free */
    if (!p->topk_ids) return mc_dispatch_routed(m, b, p, x, rx);
    MC_TRY(mc_upload(b, p));
    if (m->nranks == 1) /* rows leave in the order in which they are wanted */
        return mc_leave(m, b, p, x, rx);
    MC_TRY(mc_room(&b->out, row_bytes * (size_t)p->nsend));
    MC_TRY(mc_room(&b->in, row_bytes * (size_t)p->nrecv));
    MC_TRY(mc_leave(m, b, p, x, b->out.ptr));
    MC_TRY(cudaEventRecord(b->posted, b->wire));
    return m->link.begin ? m->link.begin(m, p->batch, 0) : 0;
}

/* ---- hooks: experts -------------------------------------------------------------------------------------- */

/* One product per group with rows: c (rows,m) = a (rows,k) * w (m,k)^T, all row-major.  cuBLAS counts in columns, so w
 * stands first and transposed.  ptrs (3,groups): w, a, c on the device; n (groups): rows. */
typedef struct mc_product {
    int groups, m, k;
    const void *const *host; /* (3,groups), for the loop */
    void **device;           /* (3,groups) */
    const int *n;
} mc_product;

static int mc_product_loop(mc_backend *m, const mc_product *q)
{
    const float one = 1.0f, zero = 0.0f;
    int g;
    for (g = 0; g < q->groups; g++)
        MC_TRY_BLAS(cublasGemmEx(m->blas, CUBLAS_OP_T, CUBLAS_OP_N, q->m, q->n[g], q->k, &one, q->host[g], CUDA_R_16BF,
                                 q->k, q->host[q->groups + g], CUDA_R_16BF, q->k, &zero,
                                 (void *)q->host[2 * q->groups + g], CUDA_R_16BF, q->m, CUBLAS_COMPUTE_32F,
                                 CUBLAS_GEMM_DEFAULT));
    return 0;
}

/* The arrays that the grouped call wants on the host, one element per group. */
typedef struct mc_arrays {
    cublasOperation_t *trans, *plain;
    int *m, *n, *k, *size;
    float *one, *zero;
} mc_arrays;

#if defined(MOE_EP_CUDA_ON_HOST) || CUBLAS_VER_MAJOR > 12 || (CUBLAS_VER_MAJOR == 12 && CUBLAS_VER_MINOR >= 5)
static int mc_product_grouped(mc_backend *m, const mc_product *q, const mc_arrays *a)
{
    int g;
    for (g = 0; g < q->groups; g++) {
        a->trans[g] = CUBLAS_OP_T, a->plain[g] = CUBLAS_OP_N;
        a->m[g] = q->m, a->n[g] = q->n[g], a->k[g] = q->k, a->size[g] = 1;
        a->one[g] = 1.0f, a->zero[g] = 0.0f;
    }
    return (int)cublasGemmGroupedBatchedEx(
        m->blas, a->trans, a->plain, a->m, a->n, a->k, a->one, (const void *const *)q->device, CUDA_R_16BF, a->k,
        (const void *const *)(q->device + q->groups), CUDA_R_16BF, a->k, a->zero,
        (void *const *)(q->device + 2 * q->groups), CUDA_R_16BF, a->m, q->groups, a->size, CUBLAS_COMPUTE_32F);
}
#else /* CUDA before 12.5 */
static int mc_product_grouped(mc_backend *m, const mc_product *q, const mc_arrays *a)
{
    (void)m, (void)q, (void)a;
    return (int)CUBLAS_STATUS_NOT_SUPPORTED;
}
#endif

static int mc_multiply(mc_backend *m, const mc_product *q)
{
    mc_arrays a;
    unsigned char *mem;
    const size_t each = (size_t)q->groups;
    int status;
    if (m->loop || m->grouped_failed) return mc_product_loop(m, q);
    mem = (unsigned char *)malloc(each * (2 * sizeof(cublasOperation_t) + 4 * sizeof(int) + 2 * sizeof(float)));
    if (!mem) return (int)cudaErrorMemoryAllocation;
    a.trans = (cublasOperation_t *)mem, a.plain = a.trans + each;
    a.m = (int *)(a.plain + each), a.n = a.m + each, a.k = a.n + each, a.size = a.k + each;
    a.one = (float *)(a.size + each), a.zero = a.one + each;
    status = mc_product_grouped(m, q, &a);
    free(mem);
    if (status == (int)CUBLAS_STATUS_NOT_SUPPORTED) {
        m->grouped_failed = 1;
        return mc_product_loop(m, q);
    }
    MC_TRY_BLAS(status);
    return 0;
}

/* First row of slot s in rx, from the plan or, when the device sorted, from there. */
static int64_t mc_start(const mc_batch *b, int s)
{
    return b->plan->slot_start ? b->plan->slot_start[s] : ((const int32_t *)b->offsets_host.ptr)[s];
}

/* Pointers of both products for the slots that have rows: (2,3,groups), and their rows n.  Returns the groups. */
static int mc_pointers(const mc_backend *m, const mc_batch *b, const void *rx, void *ry, int groups, const void **ptr,
                       int *n)
{
    const size_t H = (size_t)m->hidden, I = (size_t)m->inter;
    int s, g = 0;
    for (s = 0; s < m->slots; s++) {
        const int64_t row = mc_start(b, s), rows = mc_start(b, s + 1) - row;
        if (rows == 0) continue;
        if (groups > 0) {
            const void **second = ptr + 3 * groups;
            n[g] = (int)rows;
            ptr[g] = m->gate_up + (size_t)s * 2 * I * H;
            ptr[groups + g] = (const uint16_t *)rx + (size_t)row * H;
            ptr[2 * groups + g] = (const uint16_t *)b->both.ptr + (size_t)row * 2 * I;
            second[g] = m->down + (size_t)s * H * I;
            second[groups + g] = (const uint16_t *)b->hidden.ptr + (size_t)row * I;
            second[2 * groups + g] = (const uint16_t *)ry + (size_t)row * H;
        }
        g++;
    }
    return g;
}

static int mc_run_experts(mc_backend *m, mc_batch *b, const void **ptr, int *n, int groups, int64_t rows,
                          cudaStream_t stream)
{
    mc_product q;
    MC_TRY(cudaMemcpyAsync(b->pointers.ptr, ptr, sizeof(void *) * 6u * (size_t)groups, cudaMemcpyHostToDevice, stream));
    MC_TRY(cudaEventRecord(b->pointers_read, stream));
    MC_TRY_BLAS(cublasSetStream(m->blas, stream));
    q.groups = groups, q.m = 2 * m->inter, q.k = m->hidden, q.n = n, q.host = ptr, q.device = (void **)b->pointers.ptr;
    MC_TRY(mc_multiply(m, &q));
    MC_LAUNCH(mc_swiglu, (unsigned)rows, (unsigned)mc_threads(m->inter / 8), stream, (uint4 *)b->hidden.ptr,
              (const uint4 *)b->both.ptr, m->inter / 8, m->alpha > 0.0f || m->alpha < 0.0f ? m->alpha : 1.0f,
              m->limit, m->up_offset);
    MC_TRY(cudaGetLastError());
    q.m = m->hidden, q.k = m->inter, q.host = ptr + 3 * groups, q.device = (void **)b->pointers.ptr + 3 * groups;
    return mc_multiply(m, &q);
}

static int mc_experts(void *user, const moe_ep_plan *p, const void *rx, void *ry, void *stream)
{
    mc_backend *m = (mc_backend *)user;
    mc_batch *b = &m->batch[p->batch];
    const void **ptr;
    int64_t rows;
    int groups;
    if (!p->slot_start) MC_TRY(cudaEventSynchronize(b->counted)); /* the one wait of a plan on the device */
    rows = mc_start(b, m->slots);
    if (rows == 0) return 0;
    if (rows > INT32_MAX) return MC_SHAPE;
    MC_TRY(mc_room(&b->both, sizeof(uint16_t) * 2u * (size_t)m->inter * (size_t)rows));
    MC_TRY(mc_room(&b->hidden, sizeof(uint16_t) * (size_t)m->inter * (size_t)rows));
    MC_TRY(cudaEventSynchronize(b->pointers_read)); /* of the call before: done long ago */
    MC_TRY(mc_room(&b->pointers_host, (6u * sizeof(void *) + sizeof(int)) * (size_t)m->slots));
    MC_TRY(mc_room(&b->pointers, 6u * sizeof(void *) * (size_t)m->slots));
    ptr = (const void **)b->pointers_host.ptr;
    groups = mc_pointers(m, b, rx, ry, 0, NULL, NULL);
    (void)mc_pointers(m, b, rx, ry, groups, ptr, (int *)(ptr + 6 * groups));
    return mc_run_experts(m, b, ptr, (int *)(ptr + 6 * groups), groups, rows, (cudaStream_t)stream);
}

/* ---- hooks: combine, wait, memory -------------------------------------------------------------------------- */

static int mc_sum(mc_backend *m, mc_batch *b, const void *rows)
{
    const moe_ep_plan *p = b->plan;
    mc_terms q;
    q.rows = rows, q.x = b->x, q.row_of = b->choice_row, q.weight = b->weight, q.on_input = p->weight_on_input;
    return mc_run_combine(b->y, &q, p->ntokens, p->top_k, m->hidden, b->wire);
}

static int mc_combine_rows(void *user, const moe_ep_plan *p, const void *ry, void *y, size_t row_bytes, void *stream)
{
    mc_backend *m = (mc_backend *)user;
    mc_batch *b = &m->batch[p->batch];
    (void)row_bytes;
    b->y = y;
    MC_TRY(mc_after((cudaStream_t)stream, b->ready, b->wire)); /* ry is written by then */
    if (m->nranks == 1) return mc_sum(m, b, ry);
    MC_TRY(mc_run_gather(b->in.ptr, ry, b->recv_row, p->nrecv, 1, m->hidden, b->wire));
    MC_TRY(cudaEventRecord(b->posted, b->wire));
    return m->link.begin ? m->link.begin(m, p->batch, 1) : 0;
}

/* Nothing here stops the host: the caller's stream waits for the batch's. */
static int mc_wait(void *user, const moe_ep_plan *p, int stage, void *stream)
{
    mc_backend *m = (mc_backend *)user;
    mc_batch *b = &m->batch[p->batch];
    if (stage == MOE_EP_STAGE_EXPERTS) return 0; /* on the caller's stream itself */
    if (m->nranks > 1 && m->link.end) MC_TRY(m->link.end(m, p->batch, stage == MOE_EP_STAGE_COMBINE));
    if (m->nranks > 1 && stage == MOE_EP_STAGE_DISPATCH)
        MC_TRY(mc_run_scatter(b->rx, b->in.ptr, b->recv_row, p->nrecv, m->hidden, b->wire));
    if (m->nranks > 1 && stage == MOE_EP_STAGE_COMBINE) MC_TRY(mc_sum(m, b, b->out.ptr));
    return mc_after(b->wire, b->arrived, (cudaStream_t)stream);
}

static void *mc_alloc(void *user, size_t bytes)
{
    void *p = NULL;
    (void)user;
    return mc_take(&p, bytes, 0) == 0 ? p : NULL;
}

static void mc_free(void *user, void *ptr)
{
    (void)user;
    (void)cudaFree(ptr);
}

static moe_ep_hooks mc_hooks(mc_backend *m)
{
    moe_ep_hooks h;
    memset(&h, 0, sizeof h);
    h.size = sizeof h, h.user = m;
    h.counts = mc_counts, h.dispatch = mc_dispatch, h.experts = mc_experts, h.combine = mc_combine_rows;
    h.wait = mc_wait, h.alloc_fn = mc_alloc, h.free_fn = mc_free;
    return h;
}

/* ---- several ranks on one device, driven by one thread -------------------------------------------------------- */

/* Every stage is called for all ranks before the next begins, so a rank that waits finds the rows of all others posted
 * and fetches them by copies on the device. */
typedef struct mc_node {
    int nranks;
    mc_backend **members; /* (nranks) */
    int64_t *board;       /* (nranks,nranks,per_rank) rows from rank to slots of rank */
} mc_node;

static int mc_node_counts(mc_backend *m, const int64_t *send, int64_t *recv, int32_t per_rank, cudaStream_t stream)
{
    const mc_node *node = (const mc_node *)m->link.user;
    int src;
    (void)send;
    (void)stream;
    for (src = 0; src < node->nranks; src++)
        memcpy(recv + (int64_t)src * per_rank, node->board + ((int64_t)src * node->nranks + m->rank) * per_rank,
               sizeof(int64_t) * (size_t)per_rank);
    return 0;
}

static int mc_node_fetch(mc_backend *m, int batch, int back)
{
    const mc_node *node = (const mc_node *)m->link.user;
    mc_batch *b = &m->batch[batch];
    const size_t row = 2u * (size_t)m->hidden;
    int src;
    for (src = 0; src < node->nranks; src++) /* all of them, before anything here is overwritten */
        MC_TRY(cudaStreamWaitEvent(b->wire, node->members[src]->batch[batch].posted, 0));
    for (src = 0; src < node->nranks; src++) {
        const mc_batch *peer = &node->members[src]->batch[batch];
        const int64_t rows = back ? b->plan->send_rows[src] : b->plan->recv_rows[src];
        const int64_t from = back ? peer->plan->recv_start[m->rank] : peer->plan->send_start[m->rank];
        const int64_t to = back ? b->plan->send_start[src] : b->plan->recv_start[src];
        if (rows == 0) continue;
        MC_TRY(cudaMemcpyAsync((char *)(back ? b->out.ptr : b->in.ptr) + (size_t)to * row,
                               (const char *)(back ? peer->in.ptr : peer->out.ptr) + (size_t)from * row,
                               (size_t)rows * row, cudaMemcpyDeviceToDevice, b->wire));
    }
    return 0;
}

static mc_link mc_node_link(mc_node *node)
{
    mc_link l;
    memset(&l, 0, sizeof l);
    l.user = node;
    l.counts = mc_node_counts;
    l.end = mc_node_fetch;
    return l;
}

#endif
