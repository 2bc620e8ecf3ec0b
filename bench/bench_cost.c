/* bench/bench_cost.c - how long an estimate of a layer and of a step takes, and a loop of them.
 * SPDX-License-Identifier: MIT
 *
 * usage: bench_cost [--quick] [--steps N]     N steps of 58 layers in the loop (2000; 1000000 is the full run, about
 *                                             three minutes)
 * E = 256 experts, R = 128 devices, DeepSeek-V3 on H800.  Minimum over rounds: noise only adds. */
#include "moe_ep.h"

#include "bench.h"

enum { E = 256, R = 128, LAYERS = 58, CHUNK = 20 };

/* Cost of a published simulator's random routing in Python, per token-to-expert assignment. */
static const double python_ns = 670.0;

static int64_t rows[LAYERS * E];
static double sink;

static void fill(void)
{
    uint64_t s = 88172645463325252u;
    for (int i = 0; i < LAYERS * E; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        rows[i] = (int64_t)(s % 512);
    }
}

static moe_ep_layer_desc layer(const moe_ep_model *m, const moe_ep_machine *c, moe_ep_overlap overlap)
{
    moe_ep_layer_desc d;
    memset(&d, 0, sizeof d);
    d.model = m;
    d.machine = c;
    d.num_devices = R;
    d.tokens = 64;
    d.dispatch_wire = MOE_EP_WIRE_FP8;
    d.overlap = overlap;
    d.attention_s = 100e-6;
    d.attention_half_s = 60e-6;
    return d;
}

/* Microseconds of one layer estimate: the best of many short rounds. */
static double layer_us(const moe_ep_layer_desc *d, int rounds)
{
    double best = 1e9;
    for (int k = 0; k < rounds; k++) {
        double t = bench_now();
        for (int i = 0; i < 100; i++) {
            moe_ep_time_result r;
            if (moe_ep_layer_time(d, rows + (i % LAYERS) * E, &r, NULL, NULL) != MOE_EP_OK) exit(1);
            sink += r.total_s;
        }
        t = (bench_now() - t) / 100;
        best = t < best ? t : best;
    }
    return 1e6 * best;
}

static void layers(const moe_ep_model *m, const moe_ep_machine *c, int rounds)
{
    static const char *const name[] = {"one batch", "shared experts under dispatch", "two batches, exposed",
                                       "two batches, hidden", "two batches, staggered"};
    printf("layer estimate from a histogram, E = %d, R = %d (target: 10 us at most, no allocation)\n", E, R);
    for (int i = 0; i < 5; i++) {
        moe_ep_layer_desc d = layer(m, c, (moe_ep_overlap)i);
        printf("  %-32s %8.2f us\n", name[i], layer_us(&d, rounds));
    }
}

static void steps(const moe_ep_model *m, const moe_ep_machine *c, long n)
{
    moe_ep_step_desc d;
    moe_ep_step_result r;
    double t = 0, us = 1e18, python_us = python_ns * 1e-3 * 64 * R * 8 * LAYERS;
    memset(&d, 0, sizeof d);
    d.layer = layer(m, c, MOE_EP_OVERLAP_NONE);
    d.num_layers = LAYERS;
    for (long i = 0; i < n; i += CHUNK) {
        double begin = bench_now(), spent;
        for (long j = 0; j < CHUNK; j++) {
            rows[(i + j) % (LAYERS * E)] ^= 1; /* no two steps alike */
            if (moe_ep_step(&d, rows, &r, NULL, NULL) != MOE_EP_OK) exit(1);
            sink += r.step_s;
        }
        spent = bench_now() - begin;
        t += spent;
        us = 1e6 * spent / CHUNK < us ? 1e6 * spent / CHUNK : us;
    }
    printf("\n%d layers x %ld steps: %.3f s; best %d in a row: %.1f us a step, %.2f us a layer\n", LAYERS, n, t, CHUNK,
           us, us / LAYERS);
    printf("  10^6 such steps: %.0f s\n", us);
    printf("  a simulator that draws the routing of these %d tokens in Python at %.0f ns an assignment\n", 64 * R,
           python_ns);
    printf("  (LLMServingSim's RAND, measured elsewhere): %.2f s a step before any time is computed, %.0f times as "
           "long\n",
           1e-6 * python_us, python_us / us);
}

int main(int argc, char **argv)
{
    moe_ep_model m = moe_ep_model_deepseek_v3();
    moe_ep_machine c = moe_ep_machine_h800();
    long n = 2000;
    int rounds = 200;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0)
            n = 100, rounds = 20;
        else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc)
            n = atol(argv[++i]);
        else {
            fprintf(stderr, "usage: bench_cost [--quick] [--steps N]\n");
            return 2;
        }
    }
    if (n < 1) n = 1;
    fill();
    layers(&m, &c, rounds);
    steps(&m, &c, n);
    (void)bench_read_part; /* of bench.h, not needed here */
    bench_keep(&sink);
    return 0;
}
