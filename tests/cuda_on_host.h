/* tests/cuda_on_host.h - as much of CUDA, cuBLAS and NCCL as examples/cuda uses, on the CPU, so that its source runs
 * where there is no GPU.  C++11, one header, for tests only: it is slow and strict.
 * SPDX-License-Identifier: MIT
 *
 * Strict means: work on streams is deferred and happens in an order drawn from a seed among all orders that streams
 * and events allow, so that a missing event gives a wrong answer.  Device memory is not accessible to the host
 * while no kernel runs, ends at a page that must stay as it is, and begins as NaN.  A cudaMemcpy to the device or on it
 * returns before its work is done, as it may for pageable memory, and other streams do not wait for it.  An error stays
 * until cudaGetLastError takes it.  Threads of a block run one after
 * the other in an order drawn from the seed, as fibers, so that barriers work and a missing one shows.  Every API call
 * can be made to fail.  What is still alive is counted. */
#ifndef CUDA_ON_HOST_H
#define CUDA_ON_HOST_H

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <math.h>
#include <memory>
#include <mutex>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <thread>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct uint4 {
    unsigned x, y, z, w;
};
struct host_dim {
    unsigned x;
};

/* ---- state, all under one lock ---- */

struct host_stream {
    int device = 0;
    std::deque<std::function<bool()>> queue; /* false: cannot go on yet */
};
typedef std::shared_ptr<std::pair<bool, double>> host_mark; /* done, when */
struct host_event {
    host_mark mark;
};
enum { HOST_PAGE = 4096 };
static const size_t host_arena_bytes = (size_t)1 << 32; /* addresses; pages come as they are touched */
struct host_state {
    std::recursive_mutex lock;
    std::vector<host_stream *> streams;
    unsigned char *arena = NULL; /* device memory, given out upwards, begun anew when nothing is left alive */
    size_t used = 0;
    std::map<void *, size_t> device; /* bytes of each piece */
    std::map<void *, bool> barriers; /* kernels seen, and whether they have barriers */
    uint64_t seed = 1, calls = 0, fail_at = 0;
    const char *failed = "";
    int64_t live = 0;
    int inside = 0, no_grouped = 0, devices = 1;
    int eager = 0; /* not 0: some work is done at once, else nothing before somebody waits for it */
    host_stream null_stream;
};

static inline host_state &host_all(void)
{
    static host_state *s = NULL; /* never destroyed: streams may outlive main's locals */
    static std::once_flag once;
    std::call_once(once, [] { s = new host_state, s->streams.push_back(&s->null_stream); });
    return *s;
}

static inline uint64_t host_random(void)
{
    host_state &s = host_all();
    s.seed ^= s.seed << 13, s.seed ^= s.seed >> 7, s.seed ^= s.seed << 17;
    return s.seed;
}

static inline double host_now(void)
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#define HOST_LOCK() std::lock_guard<std::recursive_mutex> host_guard(host_all().lock)
static thread_local int host_device; /* the current one of this thread */

/* Called at the start of every API call; true once, at the call that is to fail. */
static inline bool host_fails(const char *name)
{
    if (++host_all().calls != host_all().fail_at) return false;
    host_all().failed = name;
    return true;
}

/* ---- device memory ---- */

static inline void host_protect(int access)
{
    if (host_all().used) mprotect(host_all().arena, host_all().used, access);
}
static inline void host_enter(void)
{
    if (host_all().inside++ == 0) host_protect(PROT_READ | PROT_WRITE);
}
static inline void host_leave(void)
{
    if (--host_all().inside == 0) host_protect(PROT_NONE);
}
static inline size_t host_pages(size_t bytes) { return (bytes + HOST_PAGE - 1) / HOST_PAGE * HOST_PAGE; }

/* ---- the scheduler ---- */

/* Lets some stream do its next piece of work; false when none can.  The NULL stream, whose copies others must not count
 * on, comes last. */
static inline bool host_progress(void)
{
    host_state &s = host_all();
    const size_t n = s.streams.size(), first = (size_t)(host_random() % n);
    for (size_t i = 0; i <= n; i++) {
        host_stream *q = i < n ? s.streams[(first + i) % n] : &s.null_stream;
        if (q->queue.empty() || (i < n && q == &s.null_stream)) continue;
        host_enter();
        const bool done = q->queue.front()();
        host_leave();
        if (!done) continue;
        q->queue.pop_front();
        return true;
    }
    return false;
}

/* Works until finished() holds; other host threads may have to bring what is missing. */
static inline void host_until(const std::function<bool()> &finished)
{
    const double start = host_now();
    for (;;) {
        {
            HOST_LOCK();
            host_enter(); /* once for the whole stretch, page protection is dear */
            while (!finished() && host_progress()) continue;
            host_leave();
            if (finished()) return;
        }
        if (host_now() - start > 60) {
            fprintf(stderr, "cuda_on_host: waits for what never comes\n");
            abort();
        }
        std::this_thread::yield();
    }
}

static inline void host_push(host_stream *stream, std::function<bool()> op)
{
    host_stream *q = stream ? stream : &host_all().null_stream;
    q->queue.push_back(std::move(op));
    if (host_all().eager && host_random() % 4 == 0) host_progress();
}

/* ---- kernels: threads of a block are fibers ---- */

struct host_block {
    std::vector<ucontext_t> fibers;
    std::vector<std::vector<char>> stacks;
    std::vector<int> done;
    ucontext_t home;
    size_t running;
    bool plain, barrier; /* no fibers; a barrier was met */
    std::function<void()> body;
};
static host_dim threadIdx, blockIdx, blockDim, gridDim;

static inline host_block &host_block_now(void)
{
    static host_block *b = new host_block;
    return *b;
}
static inline void host_fiber(void)
{
    host_block &b = host_block_now();
    b.body();
    b.done[b.running] = 1;
    swapcontext(&b.fibers[b.running], &b.home);
}
static inline void __syncthreads(void)
{
    host_block &b = host_block_now();
    if (b.plain) {
        fprintf(stderr, "cuda_on_host: a barrier in a kernel that had none before\n");
        abort();
    }
    b.barrier = true;
    swapcontext(&b.fibers[b.running], &b.home);
}

/* Runs all threads to their next barrier or end, in an order of the seed; false when all have ended. */
static inline bool host_phase(host_block &b, unsigned threads)
{
    const unsigned first = (unsigned)(host_random() % threads), step = (host_random() & 1) ? 1 : threads - 1;
    unsigned ended = 0;
    for (unsigned i = 0, t = first; i < threads; i++, t = (t + step) % threads) {
        b.running = t;
        threadIdx.x = t;
        if (b.plain) b.body(), b.done[t] = 1;
        else if (!b.done[t]) swapcontext(&b.home, &b.fibers[t]);
        ended += (unsigned)b.done[t];
    }
    if (ended != 0 && ended != threads) {
        fprintf(stderr, "cuda_on_host: %u of %u threads left a kernel while others wait at a barrier\n", ended,
                threads);
        abort();
    }
    return ended == 0;
}

static inline void host_run_block(unsigned threads)
{
    host_block &b = host_block_now();
    if (b.fibers.size() < threads) b.fibers.resize(threads), b.stacks.resize(threads), b.done.resize(threads);
    for (unsigned t = 0; t < threads; t++) {
        b.done[t] = 0;
        if (b.plain) continue;
        if (b.stacks[t].empty()) b.stacks[t].resize(32768);
        getcontext(&b.fibers[t]);
        b.fibers[t].uc_stack.ss_sp = b.stacks[t].data();
        b.fibers[t].uc_stack.ss_size = b.stacks[t].size();
        b.fibers[t].uc_link = &b.home;
        makecontext(&b.fibers[t], host_fiber, 0);
    }
    while (host_phase(b, threads)) continue;
}

template <class... P, class... A>
static inline void host_launch(void (*kernel)(P...), unsigned grid, unsigned block, host_stream *stream, A... args)
{
    HOST_LOCK();
    if (grid == 0 || block == 0 || block > 1024) {
        fprintf(stderr, "cuda_on_host: bad launch of %u blocks of %u threads\n", grid, block);
        abort();
    }
    host_push(stream, [=]() {
        const bool backward = host_random() & 1;
        host_block &b = host_block_now();
        auto seen = host_all().barriers.find((void *)kernel);
        b.body = [=]() { kernel(args...); };
        b.plain = seen != host_all().barriers.end() && !seen->second;
        b.barrier = false;
        gridDim.x = grid, blockDim.x = block;
        for (unsigned i = 0; i < grid; i++) {
            blockIdx.x = backward ? grid - 1 - i : i;
            host_run_block(block);
        }
        if (!b.plain) host_all().barriers[(void *)kernel] = b.barrier;
        return true;
    });
}
#define MC_LAUNCH(kernel, grid, block, stream, ...) host_launch(kernel, grid, block, stream, __VA_ARGS__)

static inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline unsigned __float_as_uint(float f)
{
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }

/* ---- the runtime API ---- */

typedef int cudaError_t;
typedef host_stream *cudaStream_t;
typedef host_event *cudaEvent_t;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorUnknown = 999 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
typedef enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
} cudaMemcpyKind;
typedef struct cudaDeviceProp {
    char name[256];
    int multiProcessorCount, major, minor;
} cudaDeviceProp;

static thread_local cudaError_t host_last; /* what went wrong last on this thread, until somebody asks */
static inline cudaError_t host_error(cudaError_t e)
{
    if (e != cudaSuccess) host_last = e;
    return e;
}
#define HOST_CALL()                           \
    HOST_LOCK();                              \
    if (host_fails(__func__)) return host_error(cudaErrorUnknown)

static inline const char *cudaGetErrorString(cudaError_t e) { return e == 0 ? "no error" : "an error made on purpose"; }
static inline cudaError_t cudaGetLastError(void)
{
    HOST_LOCK();
    const cudaError_t e = host_fails(__func__) ? (cudaError_t)cudaErrorUnknown : host_last;
    host_last = cudaSuccess;
    return e;
}
static inline cudaError_t cudaGetDeviceCount(int *n)
{
    *n = host_all().devices;
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int device)
{
    host_device = device;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "CPU in place of a GPU");
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = *total = (size_t)1 << 31;
    return cudaSuccess;
}

static inline bool host_idle(void)
{
    for (host_stream *q : host_all().streams)
        if (q->device == host_device && !q->queue.empty()) return false;
    return true;
}
static inline cudaError_t cudaDeviceSynchronize(void)
{
    {
        HOST_CALL();
    }
    host_until(host_idle);
    return cudaSuccess;
}

static inline cudaError_t cudaMalloc(void **p, size_t bytes)
{
    host_state &s = host_all();
    const size_t used = (bytes + 15) / 16 * 16, pages = host_pages(used);
    HOST_LOCK();
    if (host_fails(__func__) || bytes > host_arena_bytes / 4) return host_error(cudaErrorMemoryAllocation);
    if (!s.arena)
        s.arena = (unsigned char *)mmap(NULL, host_arena_bytes, PROT_NONE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s.arena == MAP_FAILED || pages + HOST_PAGE > host_arena_bytes - s.used)
        return host_error(cudaErrorMemoryAllocation);
    *p = s.arena + s.used + pages - used; /* its end is the end of a page */
    s.used += pages + HOST_PAGE;
    s.device[*p] = used;
    s.live++;
    host_enter();
    host_protect(PROT_READ | PROT_WRITE); /* the new end, too */
    memset(*p, 0xff, used + HOST_PAGE);
    host_leave();
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p)
{
    host_state &s = host_all();
    if (!p) return cudaSuccess;
    host_until(host_idle);
    HOST_LOCK();
    auto at = s.device.find(p);
    if (at == s.device.end()) {
        fprintf(stderr, "cuda_on_host: cudaFree of what cudaMalloc did not give\n");
        abort();
    }
    unsigned char *end = (unsigned char *)p + at->second;
    host_enter();
    for (int i = 0; i < HOST_PAGE; i++)
        if (end[i] != 0xff) {
            fprintf(stderr, "cuda_on_host: something was written %d bytes behind a piece of %zu\n", i, at->second);
            abort();
        }
    memset(p, 0xff, at->second); /* who reads it now reads NaN */
    host_leave();
    s.device.erase(at);
    s.live--;
    if (s.device.empty()) s.used = 0;
    return host_error(host_fails(__func__) ? cudaErrorUnknown : cudaSuccess);
}
static inline cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    HOST_LOCK();
    if (host_fails(__func__)) return host_error(cudaErrorMemoryAllocation);
    *p = malloc(bytes ? bytes : 1);
    if (!*p) return host_error(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes);
    host_all().live++;
    return cudaSuccess;
}
static inline cudaError_t cudaFreeHost(void *p)
{
    if (!p) return host_error(cudaErrorInvalidValue); /* unlike cudaFree, not said to be fine */
    host_until(host_idle);
    HOST_LOCK();
    free(p);
    host_all().live--;
    return host_error(host_fails(__func__) ? cudaErrorUnknown : cudaSuccess);
}

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    HOST_CALL();
    *s = new host_stream();
    (*s)->device = host_device;
    host_all().streams.push_back(*s);
    host_all().live++;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    {
        HOST_CALL();
    }
    host_stream *q = stream ? stream : &host_all().null_stream;
    host_until([=]() { return q->queue.empty(); });
    return cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    host_until([=]() { return stream->queue.empty(); });
    HOST_LOCK();
    std::vector<host_stream *> &all = host_all().streams;
    for (size_t i = 0; i < all.size(); i++)
        if (all[i] == stream) all.erase(all.begin() + (long)i--);
    delete stream;
    host_all().live--;
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    HOST_CALL();
    *e = new host_event;
    host_all().live++;
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
static inline cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    HOST_LOCK();
    delete e;
    host_all().live--;
    return cudaSuccess;
}
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    HOST_CALL();
    host_mark mark = std::make_shared<std::pair<bool, double>>(false, 0.0);
    e->mark = mark;
    host_push(stream, [=]() {
        mark->first = true, mark->second = host_now();
        return true;
    });
    return cudaSuccess;
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned)
{
    HOST_CALL();
    host_mark mark = e->mark;
    if (mark) host_push(stream, [=]() { return mark->first; });
    return cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    host_mark mark;
    {
        HOST_CALL();
        mark = e->mark;
    }
    if (mark) host_until([=]() { return mark->first; });
    return cudaSuccess;
}
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    HOST_CALL();
    *ms = (float)(1e3 * (b->mark->second - a->mark->second));
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream)
{
    HOST_CALL();
    host_push(stream, [=]() { return memcpy(to, from, bytes) != NULL; });
    return cudaSuccess;
}
/* On the NULL stream: what comes from the host has left it when the call returns, and may not have arrived. */
static inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    {
        HOST_CALL();
        if (kind == cudaMemcpyHostToDevice) {
            const std::vector<char> staged((const char *)from, (const char *)from + bytes);
            host_push(NULL, [=]() { return bytes == 0 || memcpy(to, staged.data(), bytes) != NULL; });
            return cudaSuccess;
        }
        host_push(NULL, [=]() { return memcpy(to, from, bytes) != NULL; });
    }
    if (kind == cudaMemcpyDeviceToHost) host_until([]() { return host_all().null_stream.queue.empty(); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    HOST_CALL();
    host_push(stream, [=]() { return memset(to, value, bytes) != NULL; });
    return cudaSuccess;
}
static inline cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    return cudaMemsetAsync(to, value, bytes, NULL);
}

/* ---- cuBLAS: bf16 in and out, float sums ---- */

typedef int cublasStatus_t;
typedef struct host_blas {
    cudaStream_t stream;
} *cublasHandle_t;
typedef enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 } cublasOperation_t;
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_EXECUTION_FAILED = 13, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
typedef int cudaDataType_t, cublasComputeType_t, cublasGemmAlgo_t;
enum { CUDA_R_16BF = 14, CUBLAS_COMPUTE_32F = 68, CUBLAS_GEMM_DEFAULT = -1 };

static inline float host_bf16(uint16_t v) { return __uint_as_float((unsigned)v << 16); }
static inline uint16_t host_to_bf16(float v)
{
    const unsigned bits = __float_as_uint(v);
    if (v != v) return 0x7fc0;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Column-major c (m,n) = alpha * op(a) * op(b) + beta * c. */
static inline void host_gemm(int ta, int tb, int m, int n, int k, float alpha, const uint16_t *a, int lda,
                             const uint16_t *b, int ldb, float beta, uint16_t *c, int ldc)
{
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            float sum = 0;
            for (int l = 0; l < k; l++)
                sum += host_bf16(ta ? a[(int64_t)i * lda + l] : a[(int64_t)l * lda + i]) *
                       host_bf16(tb ? b[(int64_t)l * ldb + j] : b[(int64_t)j * ldb + l]);
            uint16_t *out = &c[(int64_t)j * ldc + i];
            *out = host_to_bf16(alpha * sum + (beta > 0 || beta < 0 ? beta * host_bf16(*out) : 0.0f));
        }
}

static inline cublasStatus_t cublasCreate(cublasHandle_t *h)
{
    HOST_LOCK();
    if (host_fails(__func__)) return CUBLAS_STATUS_EXECUTION_FAILED;
    *h = new host_blas();
    host_all().live++;
    return 0;
}
static inline cublasStatus_t cublasDestroy(cublasHandle_t h)
{
    HOST_LOCK();
    delete h;
    host_all().live--;
    return 0;
}
static inline cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t stream)
{
    HOST_LOCK();
    if (host_fails(__func__)) return CUBLAS_STATUS_EXECUTION_FAILED;
    h->stream = stream;
    return 0;
}
static inline cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                          int k, const void *alpha, const void *a, cudaDataType_t, int lda,
                                          const void *b, cudaDataType_t, int ldb, const void *beta, void *c,
                                          cudaDataType_t, int ldc, cublasComputeType_t, cublasGemmAlgo_t)
{
    HOST_LOCK();
    if (host_fails(__func__)) return CUBLAS_STATUS_EXECUTION_FAILED;
    const float one = *(const float *)alpha, zero = *(const float *)beta;
    host_push(h->stream, [=]() {
        host_gemm(ta, tb, m, n, k, one, (const uint16_t *)a, lda, (const uint16_t *)b, ldb, zero, (uint16_t *)c, ldc);
        return true;
    });
    return 0;
}
static inline cublasStatus_t cublasGemmGroupedBatchedEx(
    cublasHandle_t h, const cublasOperation_t ta[], const cublasOperation_t tb[], const int m[], const int n[],
    const int k[], const void *alpha, const void *const a[], cudaDataType_t, const int lda[], const void *const b[],
    cudaDataType_t, const int ldb[], const void *beta, void *const c[], cudaDataType_t, const int ldc[], int groups,
    const int size[], cublasComputeType_t)
{
    struct call {
        int ta, tb, m, n, k, lda, ldb, ldc, size;
        float alpha, beta;
    };
    HOST_LOCK();
    if (host_fails(__func__)) return CUBLAS_STATUS_EXECUTION_FAILED;
    if (host_all().no_grouped) return CUBLAS_STATUS_NOT_SUPPORTED;
    std::vector<call> all; /* the host arrays may go after the call, the device arrays may not */
    for (int g = 0; g < groups; g++) {
        call one = {ta[g], tb[g], m[g], n[g], k[g], lda[g], ldb[g], ldc[g], size[g], ((const float *)alpha)[g],
                    ((const float *)beta)[g]};
        if (n[g] < 1 || m[g] < 1 || k[g] < 1) return 7;
        all.push_back(one);
    }
    host_push(h->stream, [=]() {
        int at = 0;
        for (const call &q : all)
            for (int i = 0; i < q.size; i++, at++)
                host_gemm(q.ta, q.tb, q.m, q.n, q.k, q.alpha, (const uint16_t *)a[at], q.lda, (const uint16_t *)b[at],
                          q.ldb, q.beta, (uint16_t *)c[at], q.ldc);
        return true;
    });
    return 0;
}

/* ---- NCCL: ranks are host threads of one process ---- */

typedef int ncclResult_t;
typedef enum ncclDataType_t { ncclInt8 = 0, ncclInt64 = 4 } ncclDataType_t;
enum { ncclSuccess = 0, ncclUnhandledCudaError = 1 };

struct host_letter {
    const void *from;
    size_t bytes;
    bool taken;
};
struct host_world {
    int ranks;
    std::map<std::pair<int, int>, std::deque<std::shared_ptr<host_letter>>> mail; /* (from, to) */
};
typedef struct host_comm {
    std::shared_ptr<host_world> world;
    int rank;
} *ncclComm_t;
struct host_group {
    int depth = 0;
    ncclComm_t comm = NULL;
    cudaStream_t stream = NULL;
    std::vector<std::pair<int, std::pair<const void *, size_t>>> sends;
    std::vector<std::pair<int, std::pair<void *, size_t>>> receives;
};
static thread_local host_group host_group_now;

static inline ncclResult_t ncclCommInitAll(ncclComm_t *comm, int ranks, const int *)
{
    HOST_LOCK();
    std::shared_ptr<host_world> world = std::make_shared<host_world>();
    world->ranks = ranks;
    for (int r = 0; r < ranks; r++) {
        comm[r] = new host_comm;
        comm[r]->world = world, comm[r]->rank = r;
        host_all().live++;
    }
    return ncclSuccess;
}
static inline ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    HOST_LOCK();
    delete comm;
    host_all().live--;
    return ncclSuccess;
}
static inline ncclResult_t ncclGroupStart(void) { return host_group_now.depth++ < 0; }
static inline ncclResult_t ncclSend(const void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    host_group_now.comm = c, host_group_now.stream = s;
    host_group_now.sends.push_back({peer, {p, n * (t == ncclInt64 ? 8 : 1)}});
    return ncclSuccess;
}
static inline ncclResult_t ncclRecv(void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    host_group_now.comm = c, host_group_now.stream = s;
    host_group_now.receives.push_back({peer, {p, n * (t == ncclInt64 ? 8 : 1)}});
    return ncclSuccess;
}
/* The group is one piece of work: it posts its letters once and ends when all were taken and all awaited ones came. */
static inline ncclResult_t ncclGroupEnd(void)
{
    HOST_LOCK();
    host_group g = host_group_now;
    host_group_now = host_group();
    if (host_fails(__func__)) return ncclUnhandledCudaError;
    if (!g.comm) return ncclSuccess;
    auto posted = std::make_shared<std::vector<std::shared_ptr<host_letter>>>();
    auto open = std::make_shared<std::vector<bool>>(g.receives.size(), true);
    auto begun = std::make_shared<bool>(false);
    host_push(g.stream, [=]() {
        host_world &w = *g.comm->world;
        bool all = true;
        if (!*begun)
            for (auto &s : g.sends) {
                posted->push_back(std::make_shared<host_letter>(host_letter{s.second.first, s.second.second, false}));
                w.mail[{g.comm->rank, s.first}].push_back(posted->back());
            }
        *begun = true;
        for (size_t i = 0; i < g.receives.size(); i++) {
            auto &box = w.mail[{g.receives[i].first, g.comm->rank}];
            if ((*open)[i] && !box.empty()) {
                if (box.front()->bytes != g.receives[i].second.second) {
                    fprintf(stderr, "cuda_on_host: %zu bytes sent, %zu awaited\n", box.front()->bytes,
                            g.receives[i].second.second);
                    abort();
                }
                memcpy(g.receives[i].second.first, box.front()->from, box.front()->bytes);
                box.front()->taken = true;
                box.pop_front();
                (*open)[i] = false;
            }
            all = all && !(*open)[i];
        }
        for (auto &letter : *posted) all = all && letter->taken;
        return all;
    });
    return ncclSuccess;
}

#endif
