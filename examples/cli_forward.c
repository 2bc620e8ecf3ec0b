/* cli_forward.c - moe-ep forward: the expert layer on this machine, checked, and against the machine's limits
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_commands.h"
#include "threads.h"

#include "roofline.h"

#include <getopt.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static const char forward_help[] =
    "usage: moe-ep forward [options]\n"
    "\n"
    "Runs one MoE layer with random weights and routing on this machine, checks a sample of rows against a\n"
    "float64 calculation, and compares the time with what memory and the vector unit allow.\n"
    "\n"
    "  --model NAME      shapes of a model (moe-ep presets); default qwen3-30b-a3b\n"
    "  --hidden H        --intermediate I   --experts E   --topk K   shapes instead of the model's\n"
    "  --tokens N[,N..]  batch sizes (1,16,64,256)\n"
    "  --type NAME       of the weights: bf16 (default), f32, f16, int8 (with a float for each row)\n"
    "  --exact           bf16 weights: activations stay fp32 (otherwise they are rounded to bf16)\n"
    "  --threads N       1 to 64; default: one for each processor, at most 16\n"
    "  --isa NAME        not better than portable, avx2, avx512 or neon\n"
    "  --seconds S       time spent on each batch size (1)   --check N   rows to check (2)   --seed N\n"
    "  --json            prints one JSON object instead of text\n"
    "  --width W         --ascii   --color auto|always|never\n"
    "\n"
    "The limit of a batch: the longer of reading the weights of its active experts once, and 6 x tokens x topk x\n"
    "hidden x intermediate operations; both speeds are measured here, in turn with the layer.  Weights are cold:\n"
    "every run routes anew.\n";

enum {
    O_TYPE = 256,
    O_EXACT,
    O_THREADS,
    O_ISA,
    O_SECONDS,
    O_CHECK,
    O_SEED,
    MOST_BATCHES = 16,
    MOST_TOKENS = 1 << 16,
    MOST_RUNS = 40
};
static const struct option forward_long[] = {{"model", 1, NULL, CLI_O_MODEL},
                                             {"hidden", 1, NULL, CLI_O_HIDDEN},
                                             {"intermediate", 1, NULL, CLI_O_INTER},
                                             {"tokens", 1, NULL, CLI_O_TOKENS},
                                             {"topk", 1, NULL, CLI_O_TOPK},
                                             {"type", 1, NULL, O_TYPE},
                                             {"exact", 0, NULL, O_EXACT},
                                             {"threads", 1, NULL, O_THREADS},
                                             {"isa", 1, NULL, O_ISA},
                                             {"seconds", 1, NULL, O_SECONDS},
                                             {"check", 1, NULL, O_CHECK},
                                             {"seed", 1, NULL, O_SEED},
                                             CLI_COMMON_OPTIONS,
                                             {NULL, 0, NULL, 0}};

typedef struct batch_row {
    int64_t tokens;
    double experts, seconds, limit_s, read_GBps, error; /* experts: active, mean over the runs */
} batch_row;

typedef struct forward {
    const char *model, *type, *unit;
    int32_t H, I, E, K, hidden, inter, top_k; /* the last three: 0 = the model's */
    int64_t tokens[MOST_BATCHES];
    int batches, threads, check;
    double seconds, weight_bytes, peak_GFLOPs;
    moe_ep_rng rng;
    uint64_t seed;
    moe_ep_forward_desc desc;
    moe_ep_weights w;
    void *matrix[3];
    float *scale[3], *x, *y, *weights;
    int32_t *ids;
    threads_pool *pool;
    moe_ep_scratch scratch;
    batch_row row[MOST_BATCHES];
} forward;

/* ---- options ------------------------------------------------------------------------------------------- */

static void take_tokens(forward *f, const char *value)
{
    char **list = cli_list("tokens", value);
    if (arrlen(list) > MOST_BATCHES) cli_die(CLI_USAGE, "--tokens: at most %d batch sizes", MOST_BATCHES);
    f->batches = (int)arrlen(list);
    for (int i = 0; i < f->batches; i++) f->tokens[i] = cli_option_count("tokens", list[i], 1, MOST_TOKENS);
    arrfree(list);
}

static void take_type(forward *f, const char *value)
{
    static const char *const name[] = {"f32", "bf16", "f16", "int8"};
    for (int i = 0; i < 4; i++)
        if (strcasecmp(value, name[i]) == 0) {
            f->type = name[i];
            f->w.dtype = (moe_ep_dtype)i;
            return;
        }
    cli_die(CLI_USAGE, "--type %s: f32, bf16, f16 or int8", cli_printable(value));
}

static void take_isa(forward *f, const char *value)
{
    for (int i = MOE_EP_ISA_PORTABLE; i <= MOE_EP_ISA_NEON; i++)
        if (strcasecmp(value, moe_ep_isa_name((moe_ep_isa)i)) == 0) {
            f->desc.isa_max = (moe_ep_isa)i;
            return;
        }
    cli_die(CLI_USAGE, "--isa %s: portable, avx2, avx512 or neon", cli_printable(value));
}

static void take_option(forward *f, cli_common *common, int option, const char *value)
{
    switch (option) {
    case CLI_O_MODEL: f->model = value; return;
    case CLI_O_HIDDEN: f->hidden = (int32_t)cli_option_count("hidden", value, 1, 1 << 20); return;
    case CLI_O_INTER: f->inter = (int32_t)cli_option_count("intermediate", value, 1, 1 << 20); return;
    case CLI_O_TOPK: f->top_k = (int32_t)cli_option_count("topk", value, 1, 1024); return;
    case CLI_O_TOKENS: take_tokens(f, value); return;
    case O_TYPE: take_type(f, value); return;
    case O_EXACT: f->desc.products = MOE_EP_PRODUCTS_F32; return;
    case O_THREADS: f->threads = (int)cli_option_count("threads", value, 1, 64); return;
    case O_ISA: take_isa(f, value); return;
    case O_SECONDS: f->seconds = cli_option_number("seconds", value, 0.0, 3600.0); return;
    case O_CHECK: f->check = (int)cli_option_count("check", value, 0, 1024); return;
    case O_SEED: f->seed = (uint64_t)cli_option_count("seed", value, 0, INT64_MAX); return;
    default: (void)cli_common_option(common, option, value, forward_help);
    }
}

static void take_shape(forward *f, int32_t experts)
{
    moe_ep_model m;
    moe_ep_error err;
    if (moe_ep_model_by_name(f->model, &m, &err) != MOE_EP_OK)
        cli_die(CLI_USAGE, "--model %s: no such preset; moe-ep presets lists them", cli_printable(f->model));
    f->H = f->hidden > 0 ? f->hidden : m.hidden;
    f->I = f->inter > 0 ? f->inter : m.inter;
    f->K = f->top_k > 0 ? f->top_k : m.top_k;
    f->E = experts > 0 ? experts : m.num_experts;
    if (f->K > f->E) cli_die(CLI_USAGE, "--topk %d: there are only %d experts", f->K, f->E);
}

/* ---- the layer ------------------------------------------------------------------------------------------ */

static double element_bytes(const forward *f)
{
    return f->w.dtype == MOE_EP_F32 ? 4.0 : f->w.dtype == MOE_EP_I8 ? 1.0 : 2.0;
}

/* Bytes that can be had without swapping; 0 = not known. */
static double memory_available(void)
{
    double kb = 0.0;
    char line[256];
    FILE *m = fopen("/proc/meminfo", "r");
    while (m && fgets(line, sizeof line, m))
        if (sscanf(line, "MemAvailable: %lf kB", &kb) == 1) break;
    if (m) (void)fclose(m);
    return 1024.0 * kb;
}

typedef struct fill_work {
    const forward *f;
    int which;
    int64_t elements;
} fill_work;

enum { FILL_PIECE = 1 << 20 };

/* Values in +-0.05, the same for any number of threads. */
static void fill_task(void *context, int64_t index)
{
    const fill_work *w = context;
    const forward *f = w->f;
    int64_t i = index * FILL_PIECE, end = i + FILL_PIECE < w->elements ? i + FILL_PIECE : w->elements;
    uint64_t s = (f->seed + 1) * 0x9e3779b97f4a7c15u + (uint64_t)(index * 3 + w->which + 1) * 0xbf58476d1ce4e5b9u;
    for (; i < end; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        float v = ((float)(s & 0xffff) - 32767.5f) * (0.05f / 32768.0f);
        if (f->w.dtype == MOE_EP_F32) ((float *)f->matrix[w->which])[i] = v;
        else if (f->w.dtype == MOE_EP_I8) ((int8_t *)f->matrix[w->which])[i] = (int8_t)((int)(s % 255) - 127);
        else ((uint16_t *)f->matrix[w->which])[i] =
            f->w.dtype == MOE_EP_BF16 ? moe_ep_bf16_from_f32(v) : moe_ep_f16_from_f32(v);
    }
}

static void open_layer(forward *f)
{
    int64_t n = (int64_t)f->E * f->H * f->I, up = (int64_t)f->E * f->I, rows[3] = {up, up, (int64_t)f->E * f->H};
    int64_t most = 0;
    double have = memory_available(), rows_bytes;
    for (int i = 0; i < f->batches; i++) most = f->tokens[i] > most ? f->tokens[i] : most;
    f->weight_bytes = 3.0 * (double)n * element_bytes(f);
    rows_bytes = 8.0 * (double)most * f->K * (f->H + f->I);
    if (have > 0.0 && f->weight_bytes + rows_bytes > 0.9 * have)
        cli_die(CLI_USAGE, "the weights are %s, the rows of %s tokens %s, and %s of memory are free: %s",
                cli_bytes(f->weight_bytes), cli_count((double)most), cli_bytes(rows_bytes), cli_bytes(have),
                f->weight_bytes > rows_bytes ? "fewer --experts or another --type"
                                             : "fewer --tokens or a smaller --topk");
    for (int i = 0; i < 3; i++) {
        fill_work w = {f, i, n};
        f->matrix[i] = cli_alloc((size_t)n, (size_t)element_bytes(f));
        limits_run(f->pool, (n + FILL_PIECE - 1) / FILL_PIECE, fill_task, &w);
        cli_progress("weights", i + 1.0, 3.0);
        if (f->w.dtype != MOE_EP_I8) continue;
        f->scale[i] = cli_alloc((size_t)rows[i], sizeof(float));
        for (int64_t r = 0; r < rows[i]; r++) f->scale[i][r] = 0.05f / 127.0f;
    }
    cli_progress_end();
    f->w.num_experts = f->E;
    f->w.hidden = f->H;
    f->w.inter = f->I;
    f->w.gate = f->matrix[0], f->w.up = f->matrix[1], f->w.down = f->matrix[2];
    f->w.gate_scale = f->scale[0], f->w.up_scale = f->scale[1], f->w.down_scale = f->scale[2];
    f->x = cli_alloc((size_t)(most * f->H), sizeof(float));
    f->y = cli_alloc((size_t)(most * f->H), sizeof(float));
    f->ids = cli_alloc((size_t)(most * f->K), sizeof(int32_t));
    f->weights = cli_alloc((size_t)(most * f->K), sizeof(float));
    for (int64_t i = 0; i < most * f->H; i++) f->x[i] = (float)(2.0 * moe_ep_rng_f64(&f->rng) - 1.0);
    for (int64_t i = 0; i < most * f->K; i++) f->weights[i] = 1.0f / (float)f->K;
    f->desc.experts = &f->w;
    f->desc.top_k = f->K;
    f->desc.ids = f->ids;
    f->desc.choice_weights = f->weights;
    f->desc.parallel_for = f->pool ? threads_run : NULL;
    f->desc.parallel_user = f->pool;
}

/* Random distinct choices; returns the number of experts that have tokens. */
static int32_t draw_choices(forward *f, int64_t tokens)
{
    char *used = cli_alloc((size_t)f->E, 1);
    int32_t active = 0;
    for (int64_t t = 0; t < tokens; t++) {
        int32_t *ids = f->ids + t * f->K;
        for (int32_t k = 0; k < f->K; k++) {
            int again = 1;
            while (again) {
                ids[k] = (int32_t)moe_ep_rng_below(&f->rng, (uint64_t)f->E);
                again = 0;
                for (int32_t j = 0; j < k; j++) again |= ids[j] == ids[k];
            }
            active += !used[ids[k]];
            used[ids[k]] = 1;
        }
    }
    free(used);
    return active;
}

static double element(const forward *f, int which, int64_t i, int64_t row)
{
    const void *m = f->matrix[which];
    switch (f->w.dtype) {
    case MOE_EP_BF16: return (double)moe_ep_f32_from_bf16(((const uint16_t *)m)[i]);
    case MOE_EP_F16: return (double)moe_ep_f32_from_f16(((const uint16_t *)m)[i]);
    case MOE_EP_I8: return (double)((const int8_t *)m)[i] * (double)f->scale[which][row];
    default: return (double)((const float *)m)[i];
    }
}

/* One token in float64; the largest difference over the largest value. */
static double token_error(const forward *f, int64_t t)
{
    const float *x = f->x + t * f->H, *y = f->y + t * f->H;
    double *h = cli_alloc((size_t)f->I, sizeof *h), *want = cli_alloc((size_t)f->H, sizeof *want);
    double top = 0.0, worst = 0.0;
    for (int32_t k = 0; k < f->K; k++) {
        int64_t e = f->ids[t * f->K + k], base = e * f->H * f->I;
        for (int64_t i = 0; i < f->I; i++) {
            double g = 0.0, u = 0.0;
            for (int64_t j = 0; j < f->H; j++) {
                g += (double)x[j] * element(f, 0, base + i * f->H + j, e * f->I + i);
                u += (double)x[j] * element(f, 1, base + i * f->H + j, e * f->I + i);
            }
            h[i] = moe_ep_activate(&f->w.activation, g, u);
        }
        for (int64_t j = 0; j < f->H; j++) {
            double sum = 0.0;
            for (int64_t i = 0; i < f->I; i++) sum += h[i] * element(f, 2, base + j * f->I + i, e * f->H + j);
            want[j] += (double)f->weights[t * f->K + k] * sum;
        }
    }
    for (int32_t j = 0; j < f->H; j++) {
        double d = fabs((double)y[j] - want[j]);
        top = fabs(want[j]) > top ? fabs(want[j]) : top;
        worst = d > worst || d != d ? d : worst;
    }
    free(h);
    free(want);
    return top > 0.0 ? worst / top : worst;
}

/* ---- measuring ------------------------------------------------------------------------------------------ */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static double run_once(forward *f, int64_t tokens)
{
    moe_ep_error err;
    double start = limits_now();
    cli_check(moe_ep_forward(&f->desc, f->x, tokens, f->y, &f->scratch, &err), &err, "the layer");
    return limits_now() - start;
}

static double read_GBps(forward *f, int run)
{
    double bytes = f->weight_bytes / 3.0;
    return limits_read_GBps(f->pool, f->matrix[run % 3], (size_t)(bytes < 4e8 ? bytes : 4e8));
}

static void measure(forward *f, batch_row *r)
{
    double time[MOST_RUNS], read[MOST_RUNS], start, active = 0.0, per = 3.0 * f->H * (double)f->I, flops;
    int runs = 0;
    draw_choices(f, r->tokens);
    (void)run_once(f, r->tokens); /* takes the memory */
    for (int64_t t = 0; t < f->check && t < r->tokens; t++) {
        double e = token_error(f, f->check < r->tokens ? t * r->tokens / f->check : t);
        r->error = e > r->error || e != e ? e : r->error;
        cli_progress("checking rows", t + 1.0, (double)f->check);
    }
    start = limits_now();
    while (runs < MOST_RUNS && (runs < 3 || limits_now() - start < f->seconds)) {
        active += draw_choices(f, r->tokens);
        read[runs] = read_GBps(f, runs);
        time[runs] = run_once(f, r->tokens);
        runs++;
        cli_progress("timing", limits_now() - start, f->seconds);
    }
    r->experts = active / runs;
    r->seconds = median(time, runs);
    r->read_GBps = median(read, runs);
    flops = 2.0 * per * (double)r->tokens * f->K;
    r->limit_s = r->experts * per * element_bytes(f) * 1e-9 / r->read_GBps;
    if (f->peak_GFLOPs > 0.0 && flops * 1e-9 / f->peak_GFLOPs > r->limit_s) r->limit_s = flops * 1e-9 / f->peak_GFLOPs;
}

/* ---- answers -------------------------------------------------------------------------------------------- */

static double row_GBps(const forward *f, const batch_row *r)
{
    return r->experts * 3.0 * f->H * (double)f->I * element_bytes(f) * 1e-9 / r->seconds;
}

static double row_GFLOPs(const forward *f, const batch_row *r)
{
    return 6.0 * f->H * (double)f->I * (double)r->tokens * f->K * 1e-9 / r->seconds;
}

static double allowed(const forward *f) { return strstr(f->unit, "bf16") ? 1e-2 : 1e-5; }

static void forward_text(const void *data, FILE *out, const chart_text *t)
{
    const forward *f = data;
    (void)t;
    fprintf(out, "%s: %d experts of %d x %d, top-%d, %s, %s of weights\n", f->model, f->E, f->H, f->I, f->K, f->type,
            cli_bytes(f->weight_bytes));
    fprintf(out, "%d thread%s, unit %s", f->threads, f->threads > 1 ? "s" : "", f->unit);
    if (f->peak_GFLOPs > 0.0) fprintf(out, ", at most %.0f GFLOP/s", f->peak_GFLOPs);
    fputs("\n\n  tokens  experts       time   tokens/s    GB/s   read  GFLOP/s      limit  of it", out);
    fputs(f->check ? "    error\n" : "\n", out);
    for (int i = 0; i < f->batches; i++) {
        const batch_row *r = &f->row[i];
        fprintf(out, "  %6lld %8.1f %10s %10s %7.1f %6.1f %8.1f %10s %5.0f%%", (long long)r->tokens, r->experts,
                cli_seconds(r->seconds), cli_count((double)r->tokens / r->seconds), row_GBps(f, r), r->read_GBps,
                row_GFLOPs(f, r), cli_seconds(r->limit_s), 100.0 * r->limit_s / r->seconds);
        fprintf(out, f->check ? "  %.1e\n" : "\n", r->error);
    }
    if (f->check)
        fprintf(out, "\nerror: of %d rows against float64, over the largest value; at most %.0e is right here\n",
                f->check, allowed(f));
}

static void forward_json(const void *data, FILE *out)
{
    const forward *f = data;
    fprintf(out, "{\"model\": \"%s\", \"experts\": %d, \"hidden\": %d, \"intermediate\": %d, \"topk\": %d,\n", f->model,
            f->E, f->H, f->I, f->K);
    fprintf(out, " \"type\": \"%s\", \"unit\": \"%s\", \"threads\": %d, ", f->type, f->unit, f->threads);
    fprintf(out, "\"weight_bytes\": %.0f, \"peak_gflops\": %.6g,\n", f->weight_bytes, f->peak_GFLOPs);
    fputs(" \"batches\": [", out);
    for (int i = 0; i < f->batches; i++) {
        const batch_row *r = &f->row[i];
        fprintf(out, "%s\n  {\"tokens\": %lld, \"active_experts\": %.6g, \"seconds\": %.6g, \"limit_seconds\": %.6g, ",
                i ? "," : "", (long long)r->tokens, r->experts, r->seconds, r->limit_s);
        fprintf(out, "\"read_gbps\": %.6g, \"gbps\": %.6g, \"gflops\": %.6g, ", r->read_GBps, row_GBps(f, r),
                row_GFLOPs(f, r));
        fprintf(out, "\"tokens_per_second\": %.6g, \"of_limit\": %.6g, \"error\": ", (double)r->tokens / r->seconds,
                r->limit_s / r->seconds);
        fprintf(out, f->check ? "%.3g}" : "null}", r->error);
    }
    fputs("]}\n", out);
}

static void check_rows(const forward *f)
{
    for (int i = 0; i < f->batches; i++)
        if (f->check && !(f->row[i].error <= allowed(f)))
            cli_die(CLI_INTERNAL, "%lld tokens: off by %.1e of the largest value, more than %.0e: wrong here",
                    (long long)f->tokens[i], f->row[i].error, allowed(f));
}

static void close_layer(forward *f)
{
    moe_ep_scratch_free(&f->scratch);
    threads_stop(f->pool);
    for (int i = 0; i < 3; i++) free(f->matrix[i]), free(f->scale[i]);
    free(f->x), free(f->y), free(f->ids), free(f->weights);
}

int cli_forward_main(int argc, char **argv)
{
    static const cli_writers writers = {.text = forward_text, .json = forward_json};
    static forward f;
    cli_common common;
    cli_out page;
    int option;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    memset(&common, 0, sizeof common);
    memset(&page, 0, sizeof page);
    common.screen.color = "auto";
    f.model = "qwen3-30b-a3b";
    f.type = "bf16";
    f.w.dtype = MOE_EP_BF16;
    f.desc.products = MOE_EP_PRODUCTS_BF16;
    f.threads = processors < 1 ? 1 : processors > 16 ? 16 : (int)processors;
    f.seconds = 1.0;
    f.check = 2;
    f.seed = 42;
    for (int64_t t = 1; t <= 256; t *= t < 16 ? 16 : 4) f.tokens[f.batches++] = t;
    while ((option = cli_option(argc, argv, forward_long, NULL)) != -1) take_option(&f, &common, option, optarg);
    if (optind < argc) cli_die(CLI_USAGE, "forward reads no input: %s", cli_printable(argv[optind]));
    if (common.html || common.read.only || common.read.as_counts || common.read.layers_first)
        cli_die(CLI_USAGE, "forward has no --html, --only, --counts or --layers-first");
    cli_check_form(&common, NULL);
    take_shape(&f, common.read.experts);
    f.rng = moe_ep_rng_seed(f.seed);
    f.pool = f.threads > 1 ? threads_start(f.threads) : NULL;
    f.threads = f.pool ? f.pool->threads : 1;
    open_layer(&f);
    f.unit = moe_ep_forward_unit(&f.desc);
    f.peak_GFLOPs = limits_peak_GFLOPs(f.pool, f.unit);
    for (int i = 0; i < f.batches; i++) {
        f.row[i].tokens = f.tokens[i];
        measure(&f, &f.row[i]);
    }
    cli_progress_end();
    cli_write_all(&common, &page, &f, &writers);
    check_rows(&f);
    close_layer(&f);
    return CLI_OK;
}
