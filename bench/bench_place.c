/* bench/bench_place.c - placement, rebalance and split: time and quality against their targets.
 * SPDX-License-Identifier: MIT
 *
 * usage: bench_place [--quick]
 * Recorded loads are read from the folder in MOE_EP_TRACES (deepseek_v3/NAME.json with "logical_count" 61 x
 * 256, the first three layers dense; deepseek_v2_lite/TASK_topk_ids_u8.npy).  Without it a seeded heavy-tailed
 * load stands in and the rows that need recordings are left out.  One thread.  Times are medians (and the
 * least) of the thread's CPU time over rounds in which all planners take turns, so that waiting for a busy
 * machine does not count; the others' share of the machine is printed at the end.  Scratch is kept between
 * calls, results are not asked for. With MOE_EP_PEERS=FOLDER, a folder that holds DeepSeek's eplb.py and vLLM's
 * policy/default.py as vllm_default.py, those that are there run on the same loads (bench/peers/eplb_peer.py,
 * by the python3 in MOE_EP_PYTHON, needs torch) and their plans are compared.  Last comes a table: aim, our
 * figure (the worst workload's), the peers' figures of this run. */
#define _GNU_SOURCE
#include <math.h>
#include <stdarg.h>

#include "bench.h"
#include "moe_ep.h"

enum { L = 58, E = 256, D = 32, P = 288, NODES = 4, GROUPS = 8, FILES = 4 };

static const char *const names[FILES] = {"decode_in1000out1000", "decode_in2000out100", "prefill_in1024",
                                         "prefill_in4096"};
static int rounds = 15;

/* The table at the end: figures of the least favourable workload. */
static struct summary_table {
    double eplb_ms[2], best_ms, best_mean, best_worst, soft_mean, soft_off, rebalance_ms, rebalance_moves, split_us;
    double split_rows_us, split_above, batch[2], large_ms, large_growth, peer_ms[2][2], peer_mean[2][2];
    int best_duplicates, same[2], compared[2];
    double changed_ms, changed_moves; /* means over the changes */
} table = {{0, 0},           0, 2,      2,      2, 0, 0, 0, 0, 0, -1, {0, 0}, 0, 0, {{0, 0}, {0, 0}},
           {{2, 2}, {2, 2}}, 0, {0, 0}, {0, 0}, 0, 0};

static void raise_to(double *most, double value)
{
    if (value > *most) *most = value;
}

static void lower_to(double *least, double value)
{
    if (value < *least) *least = value;
}

/* Seconds of CPU time of this thread. */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void need(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "bench_place: %s failed\n", what);
    exit(1);
}

static char *read_file(const char *folder, const char *name, size_t *bytes)
{
    char path[1200];
    FILE *f;
    char *text;
    long size;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    text = (char *)bench_alloc((size_t)size + 1);
    *bytes = fread(text, 1, (size_t)size, f);
    text[*bytes] = '\0';
    fclose(f);
    return text;
}

/* The 58 layers behind the three dense ones; NULL when there is no such recording. */
static double *recorded(const char *folder, const char *name)
{
    char file[200], *text, *p, *end;
    double *v;
    size_t bytes;
    int n = 0;
    snprintf(file, sizeof file, "deepseek_v3/%s.json", name);
    text = folder ? read_file(folder, file, &bytes) : NULL;
    if (!text) return NULL;
    v = (double *)bench_alloc(sizeof(double) * (L + 3) * E);
    for (p = strchr(text, '['); p && *p && n < (L + 3) * E;) {
        double x = strtod(p, &end);
        if (end == p) p++;
        else {
            v[n++] = x;
            p = end;
        }
    }
    free(text);
    need(n == (L + 3) * E, name);
    return v + 3 * E;
}

static double *made_up(uint64_t seed, int layers, int experts)
{
    moe_ep_rng rng = moe_ep_rng_seed(seed);
    double *v = (double *)bench_alloc(sizeof(double) * (size_t)layers * (size_t)experts);
    int i;
    for (i = 0; i < layers * experts; i++) v[i] = floor(1000.0 * exp(3.0 * moe_ep_rng_f64(&rng)));
    return v;
}

static moe_ep_place_desc desc_of(const double *loads, int layers, int experts, int devices, int slots, int nodes)
{
    moe_ep_place_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = layers;
    d.num_experts = experts;
    d.shape.num_devices = devices;
    d.shape.num_slots = slots;
    d.shape.num_nodes = nodes;
    d.num_groups = GROUPS;
    d.loads = loads;
    return d;
}

static moe_ep_placement placement_of(const moe_ep_place_desc *d)
{
    moe_ep_placement p;
    size_t bytes = moe_ep_placement_bytes(d->num_layers, d->num_experts, &d->shape);
    need(moe_ep_placement_init(&p, d->num_layers, d->num_experts, &d->shape, bench_alloc(bytes), bytes, NULL) ==
             MOE_EP_OK,
         "placement_init");
    return p;
}

static void placement_free(moe_ep_placement *p) { free(p->device_speed); }

typedef struct summary {
    double mean, worst, off;
    int duplicates;
    int64_t moves;
} summary;

static summary summarise(const moe_ep_plan_result *r, int layers)
{
    summary s = {0, 2, 0, 0, 0};
    double off = 0, total = 0;
    int l;
    for (l = 0; l < layers; l++) {
        s.mean += 1 / r[l].imbalance / layers;
        if (1 / r[l].imbalance < s.worst) s.worst = 1 / r[l].imbalance;
        s.duplicates += r[l].duplicates;
        s.moves += r[l].moves;
        off += r[l].off_node * r[l].total;
        total += r[l].total;
    }
    s.off = total > 0 ? off / total : 0;
    return s;
}

typedef moe_ep_status (*planner)(const moe_ep_place_desc *, moe_ep_placement *, moe_ep_plan_result *,
                                 moe_ep_scratch *, moe_ep_error *);

enum { PLANS = 4, MOST_ROUNDS = 64 };

typedef struct plan_kind {
    const char *name;
    planner plan;
    moe_ep_eplb_mode mode;
    int node_soft;
    double target_ms; /* 0 = none */
} plan_kind;

static const plan_kind kinds[PLANS] = {
    {"EPLB global", moe_ep_place_eplb, MOE_EP_EPLB_GLOBAL, 0, 0.8},
    {"EPLB hierarchical", moe_ep_place_eplb, MOE_EP_EPLB_HIERARCHICAL, 0, 0.5},
    {"best", moe_ep_best_placement, MOE_EP_EPLB_AUTO, 0, 3.0},
    {"best, 10 % off node", moe_ep_best_placement, MOE_EP_EPLB_AUTO, 1, 0},
};

static moe_ep_place_desc desc_of_kind(const plan_kind *kind, const double *w)
{
    moe_ep_place_desc d = desc_of(w, L, E, D, P, NODES);
    d.eplb_mode = kind->mode;
    d.node_soft = kind->node_soft;
    d.max_off_node = 0.1;
    return d;
}

static const char *balance_words(const moe_ep_plan_result *r)
{
    static char text[100];
    summary s = summarise(r, L);
    snprintf(text, sizeof text, "balance %.5f, worst layer %.5f, %3d duplicates", s.mean, s.worst, s.duplicates);
    return text;
}

static const char *const peer_names[2] = {"DeepSeek's eplb.py", "vLLM's default.py"};

/* A peer's planner on the same loads: its time, its balance, and how many layers are the same as ours. */
static void peer_row(int who, const plan_kind *kind, const double *w, const moe_ep_placement *ours)
{
    const char *folder = getenv("MOE_EP_PEERS"), *python = getenv("MOE_EP_PYTHON");
    char base[] = "/tmp/moe_ep_bench_XXXXXX", path[1200], command[2000];
    moe_ep_place_desc d = desc_of_kind(kind, w);
    moe_ep_placement p;
    moe_ep_plan_result r[L];
    double ms = -1;
    int32_t *slots;
    int l, same = 0, fd, global = kind->mode == MOE_EP_EPLB_GLOBAL;
    FILE *f;
    snprintf(path, sizeof path, "%s/%s", folder, who ? "vllm_default.py" : "eplb.py");
    if (!(f = fopen(path, "r"))) return;
    fclose(f);
    slots = (int32_t *)bench_alloc(sizeof(int32_t) * L * P);
    fd = mkstemp(base);
    f = fd >= 0 ? fdopen(fd, "wb") : NULL;
    need(f && fwrite(w, sizeof(double), L * E, f) == L * E && fclose(f) == 0, "writing a temporary file");
    snprintf(command, sizeof command, "'%s' bench/peers/eplb_peer.py %s '%s' %s %d %d %d %d %d %d %d",
             python ? python : "python3", who ? "vllm" : "deepseek", folder, base, L, E, P, global ? 1 : GROUPS,
             global ? 1 : NODES, D, who ? 5 : 3);
    f = popen(command, "r");
    if (f && (fscanf(f, "%lf", &ms) != 1 || pclose(f) != 0)) ms = -1;
    snprintf(path, sizeof path, "%s.slots", base);
    f = ms >= 0 ? fopen(path, "rb") : NULL;
    if (f && fread(slots, sizeof *slots, L * P, f) == L * P) {
        p = placement_of(&d);
        need(moe_ep_placement_from_eplb(slots, NULL, 0, NULL, &p, NULL) == MOE_EP_OK, "placement_from_eplb");
        need(moe_ep_evaluate(&p, w, 1, r, NULL, NULL) == MOE_EP_OK, "evaluate");
        for (l = 0; l < L; l++)
            same += memcmp(slots + l * P, ours->slot_expert + l * P, sizeof(int32_t) * P) == 0;
        printf("  %-20s %10.1f ms                          %s, %d of %d layers the same as ours\n", peer_names[who], ms,
               balance_words(r), same, L);
        if (who == 0) {
            table.same[!global] += same;
            table.compared[!global] += L;
        }
        if (!(table.peer_ms[who][!global] > 0)) table.peer_ms[who][!global] = ms;
        lower_to(&table.peer_ms[who][!global], ms);
        lower_to(&table.peer_mean[who][!global], summarise(r, L).mean);
        placement_free(&p);
    } else printf("  %-20s did not run: MOE_EP_PYTHON must name a python3 that has torch\n", peer_names[who]);
    if (f) fclose(f);
    remove(base);
    remove(path);
    free(slots);
}

/* The planners take turns; then each reports. */
static void plans(const double *w, const char *file, int with_peer)
{
    double ms[PLANS][MOST_ROUNDS];
    moe_ep_scratch s;
    int i, k;
    memset(&s, 0, sizeof s);
    printf("%s\n", file);
    for (i = 0; i < rounds; i++)
        for (k = 0; k < PLANS; k++) {
            moe_ep_place_desc d = desc_of_kind(&kinds[k], w);
            moe_ep_placement p = placement_of(&d);
            double t = now();
            need(kinds[k].plan(&d, &p, NULL, &s, NULL) == MOE_EP_OK, kinds[k].name);
            ms[k][i] = (now() - t) * 1e3;
            placement_free(&p);
        }
    for (k = 0; k < PLANS; k++) {
        moe_ep_place_desc d = desc_of_kind(&kinds[k], w);
        moe_ep_placement p = placement_of(&d);
        moe_ep_plan_result r[L];
        double median = bench_median(ms[k], rounds);
        char target[20] = "";
        need(kinds[k].plan(&d, &p, r, &s, NULL) == MOE_EP_OK, kinds[k].name);
        if (kinds[k].target_ms > 0) snprintf(target, sizeof target, "(target %.1f)", kinds[k].target_ms);
        printf("  %-20s %8.3f (%.3f) ms %-12s %s", kinds[k].name, median, ms[k][0], target, balance_words(r));
        if (kinds[k].node_soft) printf(", %.2f %% off home node", 100 * summarise(r, L).off);
        printf("\n");
        if (k < 2) raise_to(&table.eplb_ms[k], median);
        if (k == 2) {
            summary sum = summarise(r, L);
            raise_to(&table.best_ms, median);
            lower_to(&table.best_mean, sum.mean);
            lower_to(&table.best_worst, sum.worst);
            table.best_duplicates += sum.duplicates;
        }
        if (k == 3) {
            lower_to(&table.soft_mean, summarise(r, L).mean);
            raise_to(&table.soft_off, summarise(r, L).off);
        }
        for (i = 0; with_peer && k < 2 && i < 2; i++) peer_row(i, &kinds[k], w, &p);
        placement_free(&p);
    }
    moe_ep_scratch_free(&s);
}

/* Planned on a, loads become b. */
static void rebalance_row(const double *a, const double *b, const char *from, const char *to)
{
    moe_ep_place_desc d = desc_of(a, L, E, D, P, NODES);
    moe_ep_placement p = placement_of(&d), q = placement_of(&d);
    moe_ep_rebalance_desc x;
    moe_ep_plan_result r[L];
    moe_ep_moves_result m;
    moe_ep_scratch s;
    double ms[MOST_ROUNDS], stale, median;
    summary sum;
    int i;
    memset(&s, 0, sizeof s);
    memset(&x, 0, sizeof x);
    need(moe_ep_best_placement(&d, &p, NULL, NULL, NULL) == MOE_EP_OK, "best");
    need(moe_ep_evaluate(&p, b, 1, r, NULL, NULL) == MOE_EP_OK, "evaluate");
    stale = summarise(r, L).mean;
    x.current = &p;
    x.loads = b;
    x.target = 1 / 0.98;
    for (i = 0; i < rounds; i++) {
        double t = now();
        need(moe_ep_rebalance(&x, &q, NULL, &s, NULL) == MOE_EP_OK, "rebalance");
        ms[i] = (now() - t) * 1e3;
    }
    need(moe_ep_rebalance(&x, &q, r, &s, NULL) == MOE_EP_OK, "rebalance");
    need(moe_ep_plan_moves(&p, &q, 0, NULL, 0, &m, NULL, NULL) == MOE_EP_OK, "plan_moves");
    sum = summarise(r, L);
    median = bench_median(ms, rounds);
    printf("  %s -> %s: %.3f (%.3f) ms (target 5)   balance %.4f -> %.4f, worst %.4f, moves %.2f %% of the slots "
           "(target 10)\n",
           from, to, median, ms[0], stale, sum.mean, sum.worst, 100.0 * (double)m.moves / (L * P));
    raise_to(&table.rebalance_ms, median);
    raise_to(&table.rebalance_moves, (double)m.moves / (L * P));
    table.changed_ms += median / (FILES * (FILES - 1));
    table.changed_moves += (double)m.moves / (L * P) / (FILES * (FILES - 1));
    moe_ep_scratch_free(&s);
    placement_free(&p);
    placement_free(&q);
}

/* Tokens of b over the copies planned for a. */
static void split_row(const double *a, const double *b, const char *from, const char *to)
{
    moe_ep_place_desc d = desc_of(a, L, E, D, P, NODES);
    moe_ep_placement p = placement_of(&d);
    moe_ep_plan_result r[L];
    moe_ep_scratch s;
    double share[P], worst, us[2][4 * MOST_ROUNDS], median[2], equal = 0, exact = 0;
    int64_t counts[L * E], rows[P];
    moe_ep_split_desc x;
    int i, l, e;
    memset(&s, 0, sizeof s);
    memset(&x, 0, sizeof x);
    x.policy = MOE_EP_SPLIT_EXACT;
    need(moe_ep_best_placement(&d, &p, NULL, NULL, NULL) == MOE_EP_OK, "best");
    need(moe_ep_evaluate(&p, b, 1, r, NULL, NULL) == MOE_EP_OK, "evaluate");
    for (l = 0; l < L; l++) equal += r[l].imbalance / L;
    for (i = 0; i < 4 * rounds; i++) {
        double t = now(), start;
        for (l = 0, exact = 0; l < L; l++) {
            need(moe_ep_split_shares(&p, l, b + l * E, 0, share, &worst, &s, NULL) == MOE_EP_OK, "split_shares");
            exact += worst / r[l].mean / L;
        }
        us[0][i] = (now() - t) / L * 1e6;
        for (l = 0; l < L; l++)
            for (e = 0; e < E; e++) counts[l * E + e] = (int64_t)b[l * E + e];
        start = now();
        for (l = 0; l < L; l++)
            need(moe_ep_split(&x, &p, l, counts + l * E, rows, &s, NULL) == MOE_EP_OK, "split");
        us[1][i] = (now() - start) / L * 1e6;
    }
    for (i = 0; i < 2; i++) median[i] = bench_median(us[i], 4 * rounds);
    printf("  %s -> %s: %.2f (%.2f) us, whole rows %.2f (%.2f) us (target 3)   max/mean equal %.5f -> exact %.5f\n",
           from, to, median[0], us[0][0], median[1], us[1][0], equal, exact);
    raise_to(&table.split_us, median[0]);
    raise_to(&table.split_rows_us, median[1]);
    for (l = 0; l < L; l++) { /* the same optimum by very many plain passes */
        double slow;
        need(moe_ep_split_shares(&p, l, b + l * E, 0, share, &worst, &s, NULL) == MOE_EP_OK, "split_shares");
        need(moe_ep_split_shares(&p, l, b + l * E, 2000, share, &slow, &s, NULL) == MOE_EP_OK, "split_shares");
        raise_to(&table.split_above, worst / slow - 1);
    }
    moe_ep_scratch_free(&s);
    placement_free(&p);
}

/* 64 experts, 8 devices, 80 slots: planned on the first half of the tokens, batches of the second half. */
static void small_batches(const char *folder)
{
    static const int sizes[3] = {128, 512, 2048};
    enum { LAYERS = 26, TOP = 6, EXPERTS = 64, SLOTS = 80, DEVICES = 8 };
    size_t bytes = 0, header;
    char *file = folder ? read_file(folder, "deepseek_v2_lite/law_topk_ids_u8.npy", &bytes) : NULL;
    const uint8_t *ids;
    int64_t tokens, t;
    double *plan;
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_split_desc x;
    int l, k, b, size;
    if (!file) return;
    header = 10 + (uint8_t)file[8] + 256 * (size_t)(uint8_t)file[9];
    ids = (const uint8_t *)file + header;
    tokens = (int64_t)(bytes - header) / (LAYERS * TOP);
    plan = (double *)bench_alloc(sizeof(double) * LAYERS * EXPERTS);
    memset(plan, 0, sizeof(double) * LAYERS * EXPERTS);
    for (t = 0; t < tokens / 2; t++)
        for (l = 0; l < LAYERS; l++)
            for (k = 0; k < TOP; k++) plan[l * EXPERTS + ids[(t * LAYERS + l) * TOP + k]]++;
    d = desc_of(plan, LAYERS, EXPERTS, DEVICES, SLOTS, 1);
    p = placement_of(&d);
    need(moe_ep_best_placement(&d, &p, NULL, NULL, NULL) == MOE_EP_OK, "best");
    memset(&x, 0, sizeof x);
    for (size = 0; size < 3; size++) {
        double sum[2] = {0, 0};
        int n = 0, policy;
        for (b = 0; b < 6 && tokens / 2 + (int64_t)(b + 1) * sizes[size] <= tokens; b++)
            for (l = 0; l < LAYERS; l++, n++) {
                int64_t counts[EXPERTS] = {0}, rows[SLOTS], device[DEVICES], most;
                for (t = 0; t < sizes[size]; t++)
                    for (k = 0; k < TOP; k++)
                        counts[ids[((tokens / 2 + (int64_t)b * sizes[size] + t) * LAYERS + l) * TOP + k]]++;
                for (policy = 0; policy < 2; policy++) {
                    x.policy = policy ? MOE_EP_SPLIT_EXACT : MOE_EP_SPLIT_EVEN;
                    need(moe_ep_split(&x, &p, l, counts, rows, NULL, NULL) == MOE_EP_OK, "split");
                    need(moe_ep_device_rows(&p, rows, device, NULL) == MOE_EP_OK, "device_rows");
                    for (k = 0, most = 0; k < DEVICES; k++)
                        if (device[k] > most) most = device[k];
                    sum[policy] += (double)most * DEVICES / ((double)sizes[size] * TOP);
                }
            }
        if (n)
            printf("batches of %4d tokens  64 experts, 80 slots, 8 devices: max/mean equal %.4f, exact %.4f%s\n",
                   sizes[size], sum[0] / n, sum[1] / n, size == 0 ? " (target 1.05)" : "");
        for (k = 0; size == 0 && n && k < 2; k++) table.batch[k] = sum[k] / n;
    }
    placement_free(&p);
    free(plan);
    free(file);
}

/* The same number of slots in all at every size, in layers of different loads: one layer planned over and over would
 * let the processor learn its branches, small layers better than large ones. */
static void scaling(void)
{
    enum { SLOTS = 32768 };
    int experts;
    double first[2] = {0, 0};
    for (experts = 256; experts <= 4096; experts *= 2) {
        int layers = SLOTS / (4 * experts), i, k;
        double *w = made_up(7, layers, experts), ns[2][MOST_ROUNDS], gap = 0;
        moe_ep_place_desc d = desc_of(w, layers, experts, experts / 2, 4 * experts, 1);
        moe_ep_placement p = placement_of(&d);
        moe_ep_plan_result *r = (moe_ep_plan_result *)bench_alloc(sizeof *r * (size_t)layers);
        moe_ep_scratch s;
        memset(&s, 0, sizeof s);
        d.num_groups = 1;
        for (i = 0; i < rounds; i++)
            for (k = 0; k < 2; k++) {
                double t = now();
                need((k ? moe_ep_best_placement : moe_ep_place_eplb)(&d, &p, NULL, &s, NULL) == MOE_EP_OK, "scaling");
                ns[k][i] = (now() - t) / SLOTS * 1e9;
            }
        need(moe_ep_best_placement(&d, &p, r, NULL, NULL) == MOE_EP_OK, "best");
        for (i = 0; i < layers; i++)
            if (r[i].gap > gap) gap = r[i].gap;
        for (k = 0; k < 2; k++) {
            double median = bench_median(ns[k], rounds);
            if (experts == 256) first[k] = median;
            if (k == 0) printf("  %4d experts -> %5d slots on %4d devices: EPLB", experts, 4 * experts, experts / 2);
            else printf(", best");
            printf(" %.1f ns per slot", median);
            printf(" (%.2f x linear)", median / first[k]);
        }
        printf(", a layer %.2f ms%s, gap %.5f\n", ns[1][rounds / 2] * 4e-6 * experts,
               experts == 4096 ? " (target 25, 1.3 x)" : "", gap);
        table.large_ms = ns[1][rounds / 2] * 4e-6 * experts;
        raise_to(&table.large_growth, ns[1][rounds / 2] / first[1]);
        moe_ep_scratch_free(&s);
        placement_free(&p);
        free(w);
        free(r);
    }
}

/* The peers' columns of a row: time, or "-" where they did not run. */
static const char *peer_words(int hierarchical)
{
    static char text[2][120];
    char *t = text[hierarchical], *at = t;
    int who;
    snprintf(t, sizeof text[0], "not run");
    for (who = 0; who < 2; who++)
        if (table.peer_ms[who][hierarchical] > 0)
            at += snprintf(at, sizeof text[0] - (size_t)(at - t), "%s%s %.1f ms", at > t ? ", " : "",
                           who ? "vLLM" : "DeepSeek", table.peer_ms[who][hierarchical]);
    return t;
}

static void line(const char *what, const char *aim, int met, const char *peer, const char *format, ...)
{
    char ours[120];
    va_list list;
    va_start(list, format);
    vsnprintf(ours, sizeof ours, format, list);
    va_end(list);
    printf("| %-42s | %-44s | %-26s | %-3s | %s |\n", what, ours, aim, met ? "yes" : "NO", peer);
}

static void print_table(int is_recorded)
{
    const struct summary_table *t = &table;
    char equal[2][60], peer[120];
    int h;
    printf("\n%s, the least favourable of %d workloads; peers: their least time over the workloads\n\n",
           is_recorded ? "Recorded loads" : "Made-up loads", FILES);
    printf("| %-42s | %-44s | %-26s | %-3s | %s |\n|---|---|---|---|---|\n", "what", "measured", "aim", "met",
           "peer, same run");
    for (h = 0; h < 2; h++) {
        if (t->compared[h]) snprintf(equal[h], sizeof equal[h], ", %d of %d layers equal", t->same[h], t->compared[h]);
        else snprintf(equal[h], sizeof equal[h], ", not compared");
        line(h ? "EPLB plan, hierarchical" : "EPLB plan, global",
             h ? "0.5 ms, every layer equal" : "0.8 ms, every layer equal",
             t->eplb_ms[h] <= (h ? 0.5 : 0.8) && t->same[h] == t->compared[h], peer_words(h), "%.2f ms%s",
             t->eplb_ms[h], equal[h]);
    }
    if (t->peer_mean[0][0] < 2) snprintf(peer, sizeof peer, "DeepSeek, global: mean %.4f", t->peer_mean[0][0]);
    else snprintf(peer, sizeof peer, "not run");
    line("best: balance mean / worst layer", "0.9998 / 0.999, 0 twice",
         t->best_mean >= 0.9998 && t->best_worst >= 0.999 && !t->best_duplicates, peer,
         "%.5f / %.5f, %d twice on a device", t->best_mean, t->best_worst, t->best_duplicates);
    line("best: time", "3 ms", t->best_ms <= 3, peer_words(0), "%.2f ms", t->best_ms);
    if (t->peer_mean[0][1] < 2) snprintf(peer, sizeof peer, "DeepSeek, strict: mean %.4f", t->peer_mean[0][1]);
    line("nodes respected, balance", "0.97, 10 % off home", t->soft_mean >= 0.97 && t->soft_off <= 0.1, peer,
         "%.4f with %.1f %% off home", t->soft_mean, 100 * t->soft_off);
    line("change of workload, to a balance of 0.98", "10 % moved, 5 ms, every change",
         t->rebalance_moves <= 0.1 && t->rebalance_ms <= 5, "none", "worst %.2f %%, %.2f ms (mean %.2f %%, %.2f ms)",
         100 * t->rebalance_moves, t->rebalance_ms, 100 * t->changed_moves, t->changed_ms);
    line("exact split per layer (whole rows)", "3 us, 1e-5 of the optimum",
         t->split_us <= 3 && t->split_above <= 1e-5, "none", "%.2f us (%.2f us), %+.0e of 2000 passes",
         t->split_us, t->split_rows_us, t->split_above);
    if (t->batch[0] > 0)
        line("batches of 128 tokens, 80 slots, 8 devices", "1.05", t->batch[1] <= 1.05, "equal split beside it",
             "max/mean %.3f (equal split %.3f)", t->batch[1], t->batch[0]);
    line("4,096 experts, 16,384 slots, 2,048 devices", "25 ms, 1.3 x linear",
         t->large_ms <= 25 && t->large_growth <= 1.3, "none", "%.2f ms, %.2f x linear", t->large_ms,
         t->large_growth);
}

int main(int argc, char **argv)
{
    const char *folder = getenv("MOE_EP_TRACES"), *peers = getenv("MOE_EP_PEERS");
    double *w[FILES];
    int is_recorded;
    bench_load load = bench_load_now();
    int f;
    (void)bench_read_part; /* of bench.h, not needed here */
    if (argc > 1 && strcmp(argv[1], "--quick") == 0) rounds = 3;
    for (f = 0; f < FILES; f++) w[f] = recorded(folder, names[f]);
    printf("placement on %s, %d layers x %d experts -> %d slots, %d devices, %d nodes; median (least) of %d\n",
           bench_cpu(), L, E, P, D, NODES, rounds);
    is_recorded = w[0] != NULL;
    if (!w[0]) {
        printf("MOE_EP_TRACES is not set: made-up loads stand in for recorded ones\n");
        for (f = 0; f < FILES; f++) w[f] = made_up((uint64_t)f + 1, L, E);
    }
    if (!peers)
        printf("planners of DeepSeek and vLLM beside ours: put eplb.py of github.com/deepseek-ai/EPLB and vLLM's\n"
               "vllm/distributed/eplb/policy/default.py as vllm_default.py into a folder, MOE_EP_PEERS=folder\n");
    for (f = 0; f < FILES; f++) plans(w[f], names[f], peers && (rounds > 3 || f == 0));
    printf("rebalance to a balance of 0.98\n");
    for (f = 0; f < FILES * FILES; f++)
        if (f / FILES != f % FILES) rebalance_row(w[f / FILES], w[f % FILES], names[f / FILES], names[f % FILES]);
    printf("exact split, per layer\n");
    for (f = 0; f < FILES * FILES; f++)
        if (f / FILES != f % FILES) split_row(w[f / FILES], w[f % FILES], names[f / FILES], names[f % FILES]);
    small_batches(folder);
    printf("scaling, made-up loads, four slots per expert, two experts per device\n");
    scaling();
    print_table(is_recorded);
    printf("\nothers used %.0f %% of the machine meanwhile\n", 100 * bench_others(&load));
    return 0;
}
