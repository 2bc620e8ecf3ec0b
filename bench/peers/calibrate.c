/* bench/peers/calibrate.c - how well moe_ep_calibrate predicts rows of measured tables that it was not given.
 * SPDX-License-Identifier: MIT
 *
 *   python3 bench/peers/calibrate_tables.py TABLES FOLDER          # other projects' tables into this program's lines
 *   cc -O2 -I. -D_GNU_SOURCE -DMOE_EP_IMPLEMENTATION bench/peers/calibrate.c -lm -o calibrate
 *   ./calibrate [--draws N] [--share PERCENT] [--rows N] [--wild FACTOR] [--blind] [--start PRESET] [--each]
 *               FOLDER/FILE...
 *
 * Every file is one table.  N times (25) a random tenth of its rows, at least 3, is given to moe_ep_calibrate and the
 * median error on the other nine tenths is taken; a table counts with the median of its draws.  --rows N gives that
 * many rows instead of a tenth, --wild multiplies the time of one of them, --blind leaves rows and peers out,
 * --each prints every table.  Lines: `L intra_bytes inter_bytes rows peers seconds` or
 * `E math H I product slots rows_per_slot weight_bytes in_bytes out_bytes seconds experts top_k [rows of a slot ...]`,
 * experts and top_k of the layer, 0 = as many as slots, one. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "moe_ep.h"

enum { MAX_ROWS = 20000, MAX_DRAWS = 200, MAX_TABLES = 1000 };

typedef struct line {
    int is_link;
    moe_ep_link_row link;
    moe_ep_expert_row expert;
    moe_ep_model model;
} line;

static line table[MAX_ROWS], mixed[MAX_ROWS];
static moe_ep_link_row links[MAX_ROWS];
static moe_ep_expert_row experts[MAX_ROWS];
static double misses[MAX_ROWS];
static uint64_t random_state;

static uint64_t draw(uint64_t below)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state % below;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, ascending);
    return v[n / 2];
}

static int64_t *slot_rows(char *at, int slots)
{
    int64_t *rows = malloc(sizeof *rows * (size_t)slots);
    int i, used = 0;
    for (i = 0; rows && i < slots; i++, at += used)
        if (sscanf(at, "%lld%n", (long long *)&rows[i], &used) != 1) break;
    if (rows && i == slots) return rows;
    free(rows);
    return NULL;
}

static int parse(char *text, int blind, line *l)
{
    int math, H, I, product, slots, experts, top_k, used = 0;
    memset(l, 0, sizeof *l);
    l->model = moe_ep_model_deepseek_v3();
    if (sscanf(text, "L %lf %lf %lf %lf %lf", &l->link.intra_bytes, &l->link.inter_bytes, &l->link.rows, &l->link.peers,
               &l->link.seconds) == 5) {
        l->is_link = 1;
        if (blind) l->link.rows = l->link.peers = 0;
        return 1;
    }
    if (sscanf(text, "E %d %d %d %d %d %lf %lf %lf %lf %lf %d %d%n", &math, &H, &I, &product, &slots,
               &l->expert.rows_per_slot,
               &l->model.weight_bytes, &l->model.in_bytes, &l->model.out_bytes, &l->expert.seconds, &experts,
               &top_k, &used) != 12)
        return 0;
    l->model.math = (moe_ep_math)math;
    l->model.hidden = l->expert.hidden = H;
    l->model.inter = l->expert.inter = I;
    l->expert.product = product;
    l->expert.num_slots = slots;
    l->expert.num_experts = experts > 0 ? experts : slots;
    l->expert.top_k = top_k > 0 ? top_k : 1;
    l->expert.slot_rows = slot_rows(text + used, slots);
    return 1;
}

static int load(const char *path, int blind)
{
    FILE *f = fopen(path, "r");
    char *text = NULL;
    size_t room = 0;
    int n = 0;
    if (!f) return 0;
    while (n < MAX_ROWS && getline(&text, &room, f) > 0) n += parse(text, blind, &table[n]);
    free(text);
    fclose(f);
    return n;
}

/* Rows of other devices' experts per own row. */
static double others_of(const moe_ep_expert_row *r, const moe_ep_machine *m)
{
    double others = (double)r->num_experts / r->num_slots - 1;
    if (m->gemm.other_reached && others > r->top_k - 1) others = r->top_k - 1;
    return others > 0 ? others : 0;
}

/* Whether a batch is small: its tokens, all of them or those with an expert here, against a number or the slots. */
static int is_small(const line *l, double rows, const moe_ep_machine *m)
{
    double tokens = rows * l->expert.num_experts / l->expert.num_slots / l->expert.top_k;
    int all = !m->gemm.other_reached && (m->gemm.other_multiplied || m->gemm.other_byte_s > 0);
    if (l->expert.product || m->gemm.small_tokens == 0) return 0;
    if (!all && tokens > rows) tokens = rows;
    return tokens < (m->gemm.small_tokens < 0 ? l->expert.num_slots : m->gemm.small_tokens) + 0.5;
}

/* |model / measured - 1| of a row that was held back: of a fit that may move nothing, from the fitted machine. */
static double miss_of(const line *l, const moe_ep_machine *m)
{
    double seconds, fixed = 0, up, down, bytes, flops, act = 0, rows = 0, padded = 0, K, N, q;
    int tile = m->gemm.tile > 0 ? m->gemm.tile : 1, i, small;
    if (l->is_link)
        return fabs(moe_ep_link_time_rows(&m->ll_dispatch, l->link.intra_bytes, l->link.inter_bytes, l->link.rows,
                                          l->link.peers, NULL) / l->link.seconds - 1);
    for (i = 0; i < l->expert.num_slots; i++) {
        double all = floor(l->expert.rows_per_slot * l->expert.num_slots + 0.5), each = l->expert.num_slots;
        double r = l->expert.slot_rows ? (double)l->expert.slot_rows[i]
                                       : floor(all * (i + 1.0) / each) - floor(all * i / each);
        act += r > 0, rows += r, padded += ceil(r / tile) * tile;
    }
    small = is_small(l, rows, m);
    for (seconds = 0, i = 1; i <= 2; i++) {
        if (l->expert.product && l->expert.product != i) continue;
        K = i == 1 ? l->expert.hidden : l->expert.inter;
        N = i == 1 ? 2.0 * l->expert.inter : l->expert.hidden;
        q = rows * (K * l->model.in_bytes + N * l->model.out_bytes);
        bytes = act * K * N * l->model.weight_bytes + q;
        flops = 2 * K * N * (padded + (m->gemm.other_multiplied ? rows * others_of(&l->expert, m) : 0));
        up = bytes / (m->memory_Bps * m->gemm.mem_eff) * (small ? m->gemm.small_byte : 1);
        down = flops / (m->flops[l->model.math] * m->gemm.flop_eff);
        fixed += m->gemm.t0_s * (small ? m->gemm.small_t0 : 1) + act * m->gemm.expert_s;
        seconds += q * m->gemm.row_byte_s;
        if (!l->expert.product) seconds += q * others_of(&l->expert, m) * m->gemm.other_byte_s;
        seconds += m->gemm.p > 0 ? pow(pow(up, m->gemm.p) + pow(down, m->gemm.p), 1 / m->gemm.p)
                   : up > down ? up : down;
    }
    q = m->gemm.t0_p > 0 ? m->gemm.t0_p : 1;
    return fabs(pow(pow(fixed, q) + pow(seconds, q), 1 / q) / l->expert.seconds - 1);
}

/* Median error on the rows behind the first `given` ones of mixed. */
static double held_out(const moe_ep_machine *start, int n, int given, double wild)
{
    moe_ep_calibrate_desc d;
    moe_ep_machine fitted;
    moe_ep_error err;
    int i;
    memset(&d, 0, sizeof d);
    d.start = start;
    d.model = &mixed[0].model;
    for (i = 0; i < given; i++) {
        links[i] = mixed[i].link;
        experts[i] = mixed[i].expert;
    }
    links[0].seconds *= wild;
    experts[0].seconds *= wild;
    if (mixed[0].is_link) d.links = links, d.num_links = given;
    else d.experts = experts, d.num_experts = given;
    if (moe_ep_calibrate(&d, &fitted, NULL, NULL, NULL, NULL, &err) != MOE_EP_OK) {
        fprintf(stderr, "%s: %s\n", err.arg, err.what);
        exit(1);
    }
    for (i = given; i < n; i++) misses[i - given] = miss_of(&mixed[i], &fitted);
    return median(misses, n - given);
}

static void shuffle(int n)
{
    int i;
    memcpy(mixed, table, sizeof *mixed * (size_t)n);
    for (i = n - 1; i > 0; i--) {
        int j = (int)draw((uint64_t)i + 1);
        line kept = mixed[i];
        mixed[i] = mixed[j];
        mixed[j] = kept;
    }
}

int main(int argc, char **argv)
{
    static double of_table[MAX_TABLES], of_draw[MAX_DRAWS];
    moe_ep_machine start = moe_ep_machine_h100();
    int draws = 25, fixed = 0, blind = 0, each = 0, tables = 0, good[2] = {0, 0}, all = 0, good_draws = 0;
    double wild = 1, share = 10, sum = 0, aim;
    int a, i;
    for (a = 1; a < argc && argv[a][0] == '-'; a++) {
        const char *value = a + 1 < argc ? argv[a + 1] : "";
        if (!strcmp(argv[a], "--blind")) { blind = 1; continue; }
        if (!strcmp(argv[a], "--each")) { each = 1; continue; }
        if (!strcmp(argv[a], "--draws")) draws = atoi(value);
        else if (!strcmp(argv[a], "--share")) share = atof(value);
        else if (!strcmp(argv[a], "--rows")) fixed = atoi(value);
        else if (!strcmp(argv[a], "--wild")) wild = atof(value);
        else if (strcmp(argv[a], "--start") || moe_ep_machine_by_name(value, &start, NULL) != MOE_EP_OK) {
            fprintf(stderr, "calibrate: %s %s? see the top of bench/peers/calibrate.c\n", argv[a], value);
            return 2;
        }
        a++;
    }
    draws = draws < 1 ? 1 : draws > MAX_DRAWS ? MAX_DRAWS : draws;
    for (; a < argc && tables < MAX_TABLES; a++) {
        int n = load(argv[a], blind), given = fixed ? fixed : (int)(share / 100 * n + 0.5);
        if (given < 3) given = 3;
        if (n < given + 3) continue;
        aim = table[0].is_link ? 0.07 : 0.10;
        for (i = 0; i < draws; i++) {
            random_state = 88172645463325252u + (uint64_t)i * 7919u;
            shuffle(n);
            of_draw[i] = held_out(&start, n, given, wild);
            good_draws += of_draw[i] <= aim, all++;
        }
        of_table[tables] = median(of_draw, draws);
        if (each)
            printf("%-72s %5d rows, %3d given: held-out median %5.1f %%, worst draw %5.1f %%\n", argv[a], n, given,
                   100 * of_table[tables], 100 * of_draw[draws - 1]);
        good[table[0].is_link] += of_table[tables] <= aim;
        sum += of_table[tables++];
        for (i = 0; i < n; i++) free((void *)(uintptr_t)table[i].expert.slot_rows);
    }
    if (!tables) return 1;
    qsort(of_table, (size_t)tables, sizeof *of_table, ascending);
    printf("%d tables: mean %.1f %%, median %.1f %%, largest %.1f %%; within the aim "
           "(links 7 %%, experts 10 %%): %d of %d "
           "tables, %.0f %% of the draws\n",
           tables, 100 * sum / tables, 100 * of_table[tables / 2], 100 * of_table[tables - 1],
           good[0] + good[1], tables,
           100.0 * good_draws / all);
    return 0;
}
