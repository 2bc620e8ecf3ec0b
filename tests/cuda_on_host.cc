/* tests/cuda_on_host.cc - examples/cuda on the CPU: all its checks under many orders of execution, and API calls
 * made to fail one after the other.
 * SPDX-License-Identifier: MIT
 * usage: cuda_on_host [seeds] */
#define MOE_EP_CUDA_ON_HOST
#define main program_main
#ifdef PROGRAM_NCCL
#include "../examples/cuda/moe_ep_nccl.cu"
#else
#include "../examples/cuda/moe_ep_cuda.cu"
#endif
#undef main

static int bad;

static void expect(int ok, const char *what, long long value)
{
    if (ok) return;
    bad++;
    printf("  FAIL %s (%lld)\n", what, value);
}

#ifdef PROGRAM_NCCL

static int run_program(void)
{
    host_all().devices = 4;
    return program_main();
}
static void fail_every_call(void) {}

#else

static int run_program(void)
{
    const char *all[] = {"moe_ep_cuda", "--small", NULL};
    return program_main(2, (char **)all);
}

/* What gives memory back has nobody to tell. */
static int cleans_up(const char *call)
{
    return !strcmp(call, "cudaFree") || !strcmp(call, "cudaFreeHost") || !strcmp(call, "cudaDeviceSynchronize");
}

/* The code that the library hands on must be one that was put in, and nothing may stay behind. */
static void fail_calls_of(const trial *t)
{
    const uint64_t before = host_all().calls;
    uint64_t calls, f;
    expect(try_layer(t, NULL) == 0, t->name, 0);
    calls = host_all().calls - before;
    for (f = 1; f <= calls; f += t->ranks > 1 || t->routed ? 3 : 1) {
        int code;
        host_all().fail_at = host_all().calls + f;
        code = try_layer(t, NULL);
        host_all().fail_at = 0;
        expect((code != cudaErrorMemoryAllocation && code != MOE_EP_ERR_MEMORY) || host_last == cudaSuccess,
               "memory that ran out is not reported by the next launch, too", (long long)f);
        host_last = cudaSuccess; /* what is left of other errors is the caller's, who has seen the code */
        expect(code == 0 || code == cudaErrorUnknown || code == cudaErrorMemoryAllocation ||
                   code == MC_BLAS + CUBLAS_STATUS_EXECUTION_FAILED || code == MOE_EP_ERR_MEMORY,
               "the code of a failing call comes back", code);
        expect(code != 0 || cleans_up(host_all().failed), host_all().failed, (long long)f);
        expect(host_all().live == 0, "nothing stays behind after a failing call", (long long)f);
    }
    printf("%s: calls of %llu made to fail\n", t->name, (unsigned long long)calls);
}

static void fail_every_call(void)
{
    static const trial small[] = {
        {"one rank", 3, 8, 8, 2, 1, 3, {2, 3}, HOLES, 0, 0, 0, 0},
        {"one rank, one product per expert, top-k on the device", 3, 8, 8, 2, 1, 3, {2, 3}, HOLES, 1, 1, 0, 0},
        {"two ranks", 3, 8, 8, 2, 2, 4, {2, 3}, HOLES, 0, 0, 0, 0},
        {"weights on the input, identity experts", 3, 8, 8, 2, 1, 3, {2, 3}, HOLES, 0, 0, 1, 1},
    };
    size_t i;
    for (i = 0; i < sizeof small / sizeof *small; i++) fail_calls_of(&small[i]);
}

#endif

int main(int argc, char **argv)
{
    const int seeds = argc > 1 ? atoi(argv[1]) : 2;
    int i;
    for (i = 0; i < seeds; i++) {
        host_all().seed = (uint64_t)i * 7919 + 1;
        host_all().eager = i % 2;
        host_all().no_grouped = i % 4 == 1;
        expect(run_program() == 0, "the program's checks hold under seed", i);
        expect(host_all().live == 0, "everything was given back under seed", i);
    }
    host_all().no_grouped = 0;
    fail_every_call();
    printf("%d differences\n", bad);
    return bad != 0;
}
