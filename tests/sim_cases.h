/* tests/sim_cases.h - two published cases that are drawn, not computed: the imbalance table of TensorRT-LLM's blog 4
 * and when EPLB pays on H100.  For test_sim.c and test_published.c.  SPDX-License-Identifier: MIT */
#ifndef SIM_CASES_H
#define SIM_CASES_H

/* ---- the imbalance table of TensorRT-LLM's blog 4: DeepSeek-R1, 128 tokens per rank --------------------- */

/* Greedy replication and balanced packing, global form: copies to the expert with most load per copy, then slots,
 * largest first, to the lightest device with room.  slot_expert (P). */
static void plan(const int64_t *load, int E, int P, int D, int *slot_expert, int *copies)
{
    int item[512], room[64], i, j, d, fill[64];
    double device[64], weight[512];
    for (i = 0; i < E; i++) copies[i] = 1;
    for (i = 0; i < E; i++) item[i] = i;
    for (i = E; i < P; i++) {
        int best = 0;
        for (j = 1; j < E; j++)
            if ((double)load[j] / copies[j] > (double)load[best] / copies[best]) best = j;
        item[i] = best;
        copies[best]++;
    }
    for (i = 0; i < P; i++) weight[i] = (double)load[item[i]] / copies[item[i]];
    for (d = 0; d < D; d++) room[d] = P / D, fill[d] = 0, device[d] = 0;
    for (i = 0; i < P; i++) {
        int big = -1, light = -1;
        for (j = 0; j < P; j++)
            if (weight[j] >= 0 && (big < 0 || weight[j] > weight[big])) big = j;
        for (d = 0; d < D; d++)
            if (room[d] > 0 && (light < 0 || device[d] < device[light])) light = d;
        slot_expert[light * (P / D) + fill[light]++] = item[big];
        device[light] += weight[big];
        room[light]--;
        weight[big] = -1;
    }
}

/* std and (max - mean) / mean of n numbers, added to out[0] and out[1]. */
static void spread(const double *v, int n, double *out)
{
    double mean = 0, most = 0, square = 0;
    int i;
    for (i = 0; i < n; i++) mean += v[i] / n;
    for (i = 0; i < n; i++) {
        if (v[i] > most) most = v[i];
        square += (v[i] - mean) * (v[i] - mean) / n;
    }
    out[0] += sqrt(square);
    out[1] += most / mean - 1;
}

static void devices_and_slots(const double *slot, int P, int D, double *out)
{
    double device[64] = {0};
    int i;
    for (i = 0; i < P; i++) device[i / (P / D)] += slot[i];
    spread(device, D, out);
    spread(slot, P, out + 2);
}

static void count_tokens(const moe_ep_workload *w, int step, int T, int32_t *ids, int64_t *load)
{
    int i;
    CHECK(moe_ep_simulate(w, 0, step, T, ids, NULL, NULL) == MOE_EP_OK);
    for (i = 0; i < 256; i++) load[i] = 0;
    for (i = 0; i < T * 8; i++) load[ids[i]]++;
}


static const char *const blog4_name[12] = {"rank std",         "rank excess", "expert std", "expert excess",
                                           "9 x 32: rank std", "9 x 32: rank excess", "9 x 32: slot std",
                                           "9 x 32: slot excess", "8 x 36: rank std", "8 x 36: rank excess",
                                           "8 x 36: slot std", "8 x 36: slot excess"};
static const double blog4_published[12] = {491.6, 1.564, 164.1, 10.948, 52.0, 0.109,
                                           77.8,  1.792, 53.9,  0.115,  87.5, 1.791};

/* The 12 statistics, mean over the seeds; *still = rank excess of 9 x 32 when the popularity does not drift. */
static void blog4(int seeds, double *out, double *still)
{
    static int32_t ids[16384 * 8];
    double sum[12] = {0}, slot[288], none[4] = {0};
    int64_t past[256], now[256];
    int seed, i, D, slot_expert[288], copies[256];
    for (seed = 0; seed < seeds; seed++) {
        moe_ep_workload w;
        memset(&w, 0, sizeof w);
        w.kind = MOE_EP_LOAD_LOGNORMAL;
        w.seed = (uint64_t)seed;
        w.num_experts = 256;
        w.top_k = 8;
        w.sigma = 1.1;
        w.drift = 0.1;
        count_tokens(&w, 0, 16384, ids, past);
        count_tokens(&w, 1, 4096, ids, now);
        for (i = 0; i < 256; i++) slot[i] = (double)now[i];
        devices_and_slots(slot, 256, 32, sum);
        for (D = 32; D <= 36; D += 4) {
            plan(past, 256, 288, D, slot_expert, copies);
            count_tokens(&w, 1, 128 * D, ids, now);
            for (i = 0; i < 288; i++) slot[i] = (double)now[slot_expert[i]] / copies[slot_expert[i]];
            devices_and_slots(slot, 288, D, sum + (D == 32 ? 4 : 8));
        }
        w.drift = 0; /* without drift a plan looks better than it will be */
        plan(past, 256, 288, 32, slot_expert, copies);
        count_tokens(&w, 1, 4096, ids, now);
        for (i = 0; i < 288; i++) slot[i] = (double)now[slot_expert[i]] / copies[slot_expert[i]];
        devices_and_slots(slot, 288, 32, none);
    }
    for (i = 0; i < 12; i++) out[i] = sum[i] / seeds;
    *still = none[1] / seeds;
}

/* Time without EPLB over time with it (288 slots), EP32, measured on H100 (aiconfigurator's tables, power law 1.01). */
enum { EPLB_POINTS = 15 };
static const int eplb_tokens[EPLB_POINTS] = {48,  64,  96,   128,  192,  256,  384,  512,
                                             768, 1024, 1536, 2048, 4096, 8192, 16384};
static const double eplb_measured[EPLB_POINTS] = {1.12, 0.91, 0.77, 1.02, 0.93, 1.09, 1.03, 1.30,
                                                  1.24, 1.45, 1.53, 1.54, 1.34, 2.07, 1.94};

/* The kernel of those tables: whole MoE layers of TensorRT-LLM's CUTLASS path, fitted by moe_ep_calibrate to the rows
 * of the same tables with every EP size but 32. */
static moe_ep_machine eplb_machine(void)
{
    moe_ep_machine c = moe_ep_machine_h100();
    c.gemm.t0_s = 21.2e-6;
    c.gemm.mem_eff = 0.78;
    c.gemm.flop_eff = 0.23;
    c.gemm.p = 1.5;
    c.gemm.tile = 16;
    c.gemm.expert_s = 0.14e-6;
    return c;
}

/* Mean seconds without and with EPLB over draws of the loads, the same in rows of the busiest rank, and the share of
 * draws in which EPLB gains more than 15 %. */
typedef struct eplb_case {
    double seconds, rows, share;
} eplb_case;

static eplb_case eplb_gain(const moe_ep_machine *c, int tokens, int seeds)
{
    static int32_t ids[16384 * 8];
    moe_ep_model m = moe_ep_model_deepseek_v3();
    double before = 0, after = 0, rows_before = 0, rows_after = 0;
    eplb_case out;
    int j, seed, above = 0;
    for (seed = 0; seed < seeds; seed++) {
        moe_ep_workload w;
        moe_ep_layer_desc d;
        moe_ep_time_result one, two;
        int64_t load[256], slot[288];
        int slot_expert[288], copies[256], seen[256] = {0};
        memset(&w, 0, sizeof w);
        w.kind = MOE_EP_LOAD_POWER_LAW;
        w.alpha = 1.01;
        w.seed = (uint64_t)seed;
        w.num_experts = 256;
        w.top_k = 8;
        count_tokens(&w, 0, tokens, ids, load);
        memset(&d, 0, sizeof d);
        d.model = &m;
        d.machine = c;
        d.num_devices = 32;
        CHECK(moe_ep_layer_time(&d, load, &one, NULL, NULL) == MOE_EP_OK);
        plan(load, 256, 288, 32, slot_expert, copies);
        for (j = 0; j < 288; j++) {
            int e = slot_expert[j], n = copies[e];
            slot[j] = load[e] / n + (seen[e]++ < load[e] % n);
        }
        d.num_slots = 288;
        CHECK(moe_ep_layer_time(&d, slot, &two, NULL, NULL) == MOE_EP_OK);
        before += one.compute_s;
        after += two.compute_s;
        rows_before += (double)one.max_rows;
        rows_after += (double)two.max_rows;
        above += one.compute_s / two.compute_s > 1.15;
    }
    out.seconds = before / after;
    out.rows = rows_before / rows_after;
    out.share = (double)above / seeds;
    return out;
}

/* Held-out error of such a kernel fit (the rows of EP 32), and what the library then says to "pays more than 15 %". */
#define EPLB_TIME_ERROR 0.09
static moe_ep_payoff eplb_payoff(double gain)
{
    moe_ep_payback_desc d;
    moe_ep_payback_result r;
    memset(&d, 0, sizeof d);
    d.before_s = gain;
    d.after_s = 1;
    d.time_error = EPLB_TIME_ERROR;
    d.need_ratio = 1.15;
    return moe_ep_payback(&d, &r, NULL) == MOE_EP_OK ? r.payoff : MOE_EP_PAYOFF_UNSURE;
}

#endif
