/* cli_traffic.c - moe-ep traffic: the rank x rank matrix of rows and bytes, for simulators of networks
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_answer.h"
#include "cli_commands.h"
#include "cli_map.h"
#include "cli_options.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static const char traffic_help[] =
    "usage: moe-ep traffic INPUT [MAP] --devices D [options]\n"
    "\n"
    "Rows and bytes that every rank sends to every other in dispatch and combine, layer by layer, "
    "as CSV or JSON:\n"
    "an alltoallv for ASTRA-sim, Chakra or any other simulator of networks.  With recorded ids every "
    "choice is counted,\n"
    "the tokens of each recorded step (without steps, all) starting on the ranks in equal blocks; the copies of an\n"
    "expert serve equal parts of its rows, and which copy a token takes, the server's own choice, is drawn by a fixed\n"
    "hash.  With counts every rank sends an equal part of each expert's rows.\n"
    "MAP is a placement as moe-ep place writes it; without, contiguous blocks.\n"
    "\n"
    "  --devices D       --nodes N   nodes of equal size; else one for every 8 devices, or as --machine has them\n"
    "  --machine NAME    whose nodes\n"
    "  --mode NAME       pairs (a row per choice, default), ranks (a token once per rank), nodes "
    "(once per node, to the\n"
    "                    rank in the sender's place there, which forwards it once per rank: DeepEP's normal kernels); "
    "counts\n"
    "                    have pairs only\n"
    "  --dispatch WIRE   --combine WIRE   bf16, fp32, fp8, mxfp8 or nvfp4 (fp8, bf16)\n"
    "  --model NAME      --hidden H   length of a row\n"
    "  --layer N         only this layer of the recording\n"
    "  --matrix PHASE    dispatch or combine: nothing but that matrix in bytes, a line per sending "
    "rank, summed over\n"
    "                    the layers; with --mode nodes both hops: between nodes the first, inside them the second\n"
    "  --out FILE        .csv or .json instead of standard output      --json   JSON on standard "
    "output\n"
    "  --experts E       --only TEXT   --layers-first   --counts   (see moe-ep report --help)\n"
    "\n"
    "CSV: layer,phase,source,destination,rows,bytes, pairs without rows left out.  JSON: "
    "{\"ranks\": D, \"layers\": [\n"
    "{\"layer\": 0, \"dispatch\": {\"row_bytes\": b, \"rows\": [[...]], \"bytes\": [[...]]}, "
    "\"combine\": ...}]}; the diagonal\n"
    "is what stays on the rank.  With --mode nodes dispatch_node and combine_node are the hop between nodes,\n"
    "dispatch and combine what is left for the one inside them, and JSON has node_rows, from node to node.\n"
    "What was assumed (one node, contiguous blocks, the model) is said on standard error and in the JSON.\n";

enum { O_MODE = 256, O_DISPATCH, O_COMBINE, O_LAYER, O_MATRIX, O_OUT };

static const struct option traffic_long[] = {{"devices", 1, NULL, CLI_O_DEVICES},
                                             {"nodes", 1, NULL, CLI_O_NODES},
                                             {"machine", 1, NULL, CLI_O_MACHINE},
                                             {"model", 1, NULL, CLI_O_MODEL},
                                             {"hidden", 1, NULL, CLI_O_HIDDEN},
                                             {"mode", 1, NULL, O_MODE},
                                             {"dispatch", 1, NULL, O_DISPATCH},
                                             {"combine", 1, NULL, O_COMBINE},
                                             {"layer", 1, NULL, O_LAYER},
                                             {"matrix", 1, NULL, O_MATRIX},
                                             {"out", 1, NULL, O_OUT},
                                             {"json", 0, NULL, CLI_O_JSON},
                                             {"experts", 1, NULL, CLI_O_EXPERTS},
                                             {"only", 1, NULL, CLI_O_ONLY},
                                             {"layers-first", 0, NULL, CLI_O_LAYERS_FIRST},
                                             {"counts", 0, NULL, CLI_O_COUNTS},
                                             {"help", 0, NULL, CLI_O_HELP},
                                             {NULL, 0, NULL, 0}};

typedef struct traffic {
    cli_setup setup;
    cli_common common;
    const cli_trace *t;
    moe_ep_placement p;
    int32_t D, layer;         /* layer: number in the file, -1 = all */
    moe_ep_count_mode mode;
    moe_ep_wire wire[2];      /* dispatch, combine */
    int64_t row_bytes[2];
    int matrix;               /* 0 = no, 1 = dispatch, 2 = combine */
    const char *out;
    int64_t *rows;            /* (D,D) of the layer at hand; with nodes the hop inside them */
    int64_t *hop;             /* (D,D) with nodes the hop between them, else NULL */
    int64_t *node_rows;       /* (N,N) the same as the library counts it          */
    int64_t *sum;             /* (D,D) over the layers, both hops                 */
} traffic;

static const char *const phase_name[2] = {"dispatch", "combine"};

/* ---- options --------------------------------------------------------------------------------------------- */

static moe_ep_wire take_wire(const char *option, const char *value)
{
    static const char *const name[] = {"bf16", "fp32", "fp8", "mxfp8", "nvfp4"};
    for (int i = 0; i < 5; i++)
        if (strcmp(value, name[i]) == 0) return (moe_ep_wire)i;
    cli_die(CLI_USAGE, "--%s %s: bf16, fp32, fp8, mxfp8 or nvfp4", option, cli_printable(value));
}

static moe_ep_count_mode take_mode(const char *value)
{
    static const char *const name[] = {"pairs", "ranks", "nodes"};
    for (int i = 0; i < 3; i++)
        if (strcmp(value, name[i]) == 0) return (moe_ep_count_mode)i;
    cli_die(CLI_USAGE, "--mode %s: pairs, ranks or nodes", cli_printable(value));
}

static int take_matrix(const char *value)
{
    for (int i = 0; i < 2; i++)
        if (strcmp(value, phase_name[i]) == 0) return i + 1;
    cli_die(CLI_USAGE, "--matrix %s: dispatch or combine", cli_printable(value));
}

static void take_option(traffic *x, int option, const char *value)
{
    switch (option) {
    case O_MODE:
        x->mode = take_mode(value);
        return;
    case O_DISPATCH:
        x->wire[0] = take_wire("dispatch", value);
        return;
    case O_COMBINE:
        x->wire[1] = take_wire("combine", value);
        return;
    case O_LAYER:
        x->layer = (int32_t)cli_option_count("layer", value, 0, INT32_MAX);
        return;
    case O_MATRIX:
        x->matrix = take_matrix(value);
        return;
    case O_OUT:
        if (!cli_has_suffix(value, ".csv") && !cli_has_suffix(value, ".json"))
            cli_die(CLI_USAGE, "--out %s: a name that ends in .csv or .json", cli_printable(value));
        x->out = value;
        return;
    default:
        if (!cli_setup_option(&x->setup, option, value))
            (void)cli_common_option(&x->common, option, value, traffic_help);
    }
}

/* ---- the matrix --------------------------------------------------------------------------------------------- */

static void place_contiguous(traffic *x)
{
    moe_ep_place_desc d;
    moe_ep_error err;
    size_t bytes;
    memset(&d, 0, sizeof d);
    d.num_layers = x->t->layers;
    d.num_experts = x->t->experts;
    d.shape.num_devices = x->D;
    d.shape.num_slots = (x->t->experts + x->D - 1) / x->D * x->D;
    d.shape.num_nodes = x->setup.nodes;
    bytes = moe_ep_placement_bytes(d.num_layers, d.num_experts, &d.shape);
    if (bytes == 0) cli_die(CLI_USAGE, "--devices %d: no such shape", x->D);
    cli_check(moe_ep_placement_init(&x->p, d.num_layers, d.num_experts, &d.shape,
                                    cli_keep_block(cli_alloc(bytes, 1)), bytes, &err), &err, "shape");
    cli_check(moe_ep_place_contiguous(&d, &x->p, NULL, NULL, &err), &err, "contiguous blocks");
}

/* Slots of the choices of one step: equal parts for the copies of an expert, drawn which row goes where. */
static void assign_step(const traffic *x, int32_t l, const int32_t *ids, int64_t n, int32_t *slots)
{
    int64_t *counts = cli_alloc((size_t)x->t->experts, sizeof *counts);
    int64_t *quota = cli_alloc((size_t)x->p.num_slots, sizeof *quota);
    moe_ep_split_desc even;
    moe_ep_error err;
    memset(&even, 0, sizeof even);
    cli_check(moe_ep_expert_loads(ids, n, x->t->experts, counts, NULL, &err), &err, "loads");
    cli_check(moe_ep_split(&even, &x->p, l, counts, quota, NULL, &err), &err, "split");
    cli_check(moe_ep_assign_slots(&x->p, l, ids, n, quota, slots, NULL, &err), &err, "slots");
    free(counts);
    free(quota);
}

/* The rank in the place of s on the node of d: s itself on its own. */
static int32_t relay(const traffic *x, int32_t s, int32_t d)
{
    int32_t per = x->D / x->setup.nodes;
    return d / per * per + s % per;
}

/* The two hops of a token that starts on rank s: once to each node, then once to each rank. */
static void count_hops(const traffic *x, const int32_t *slots, int32_t s)
{
    for (int32_t k = 0; k < x->t->top_k; k++) {
        int32_t d, at, rank_seen = 0, node_seen = 0;
        if (slots[k] < 0) continue;
        d = x->p.slot_device[slots[k]];
        at = relay(x, s, d);
        for (int32_t j = 0; j < k; j++) {
            if (slots[j] < 0) continue;
            rank_seen |= x->p.slot_device[slots[j]] == d;
            node_seen |= relay(x, s, x->p.slot_device[slots[j]]) == at;
        }
        if (!rank_seen) x->rows[(size_t)at * (size_t)x->D + (size_t)d]++;
        if (!node_seen && at != s) x->hop[(size_t)s * (size_t)x->D + (size_t)at]++;
    }
}

/* One layer's recorded choices step after step; the tokens of each start on the ranks in blocks. */
static void count_ids(const traffic *x, int32_t l)
{
    const cli_trace *t = x->t;
    int64_t K = t->top_k, *start = cli_step_starts(t);
    size_t n = (size_t)(t->kept * K);
    int32_t *ids = cli_alloc(n, sizeof *ids), *slots = cli_alloc(n, sizeof *slots);
    int32_t *source = cli_alloc((size_t)t->kept, sizeof *source);
    moe_ep_error err;
    for (int64_t i = 0; i < t->kept; i++)
        memcpy(ids + i * K, t->ids + (i * t->layers + l) * K, (size_t)K * sizeof *ids);
    for (ptrdiff_t s = 0; s + 1 < arrlen(start); s++) {
        int64_t first = start[s], T = start[s + 1] - first;
        for (int64_t i = 0; i < T; i++)
            source[first + i] = (int32_t)moe_ep_rank_of_token(i, T, x->D, &err);
        assign_step(x, l, ids + first * K, T * K, slots + first * K);
    }
    cli_check(moe_ep_traffic(&x->p, slots, t->kept, t->top_k, source, x->mode, x->hop ? NULL : x->rows, x->node_rows,
                             &err), &err, "traffic");
    if (x->hop) {
        memset(x->rows, 0, (size_t)x->D * (size_t)x->D * sizeof *x->rows);
        memset(x->hop, 0, (size_t)x->D * (size_t)x->D * sizeof *x->hop);
        for (int64_t i = 0; i < t->kept; i++) count_hops(x, slots + i * K, source[i]);
    }
    arrfree(start);
    free(source);
    free(ids);
    free(slots);
}

/* Rows of every slot dealt over the sending ranks, what is left over to the ranks from the slot's number on. */
static void count_loads(const traffic *x, int32_t l)
{
    const cli_trace *t = x->t;
    int64_t *counts = cli_alloc((size_t)t->experts, sizeof *counts);
    int64_t *quota = cli_alloc((size_t)x->p.num_slots, sizeof *quota);
    moe_ep_split_desc even;
    moe_ep_error err;
    memset(&even, 0, sizeof even);
    memset(x->rows, 0, (size_t)x->D * (size_t)x->D * sizeof *x->rows);
    for (int32_t e = 0; e < t->experts; e++)
        counts[e] = (int64_t)(t->loads[(size_t)l * (size_t)t->experts + (size_t)e] + 0.5);
    cli_check(moe_ep_split(&even, &x->p, l, counts, quota, NULL, &err), &err, "split");
    for (int32_t s = 0; s < x->p.num_slots; s++)
        for (int32_t r = 0; r < x->D; r++)
            x->rows[(size_t)((s + r) % x->D) * (size_t)x->D + (size_t)x->p.slot_device[s]] +=
                quota[s] / x->D + (r < quota[s] % x->D);
    free(counts);
    free(quota);
}

static void count_layer(traffic *x, int32_t l)
{
    if (x->t->ids)
        count_ids(x, l);
    else
        count_loads(x, l);
    for (size_t i = 0; i < (size_t)x->D * (size_t)x->D; i++) x->sum[i] += x->rows[i] + (x->hop ? x->hop[i] : 0);
}

/* Rows from s to d in a phase: combine sends back what came. */
static int64_t cell(const traffic *x, const int64_t *rows, int phase, int32_t s, int32_t d)
{
    return phase == 0 ? rows[(size_t)s * (size_t)x->D + (size_t)d]
                      : rows[(size_t)d * (size_t)x->D + (size_t)s];
}

/* ---- output ---------------------------------------------------------------------------------------------------- */

static void put_csv_phase(const traffic *x, FILE *f, int32_t l, int phase, const int64_t *rows, const char *hop)
{
    for (int32_t s = 0; s < x->D; s++)
        for (int32_t d = 0; d < x->D; d++) {
            int64_t n = cell(x, rows, phase, s, d);
            if (n > 0)
                fprintf(f, "%d,%s%s,%d,%d,%lld,%lld\n", x->t->layer[l], phase_name[phase], hop, s, d, (long long)n,
                        (long long)(n * x->row_bytes[phase]));
        }
}

/* In the order in which they happen: what goes out crosses nodes first, what comes back last. */
static void put_csv_layer(const traffic *x, FILE *f, int32_t l)
{
    if (x->hop) put_csv_phase(x, f, l, 0, x->hop, "_node");
    put_csv_phase(x, f, l, 0, x->rows, "");
    put_csv_phase(x, f, l, 1, x->rows, "");
    if (x->hop) put_csv_phase(x, f, l, 1, x->hop, "_node");
}

static json_t *json_cells(const traffic *x, const int64_t *rows, int phase, int64_t unit)
{
    json_t *all = json_array();
    for (int32_t s = 0; s < x->D; s++) {
        json_t *line = json_array();
        for (int32_t d = 0; d < x->D; d++)
            json_array_append_new(line, json_integer((json_int_t)(cell(x, rows, phase, s, d) * unit)));
        json_array_append_new(all, line);
    }
    return all;
}

static json_t *json_phase(const traffic *x, const int64_t *rows, int phase)
{
    json_t *p = json_object();
    json_object_set_new(p, "row_bytes", json_integer((json_int_t)x->row_bytes[phase]));
    json_object_set_new(p, "rows", json_cells(x, rows, phase, 1));
    json_object_set_new(p, "bytes", json_cells(x, rows, phase, x->row_bytes[phase]));
    return p;
}

/* Rows that cross from node to node in dispatch; the diagonal is what finds an expert where it starts. */
static json_t *json_nodes(const traffic *x)
{
    json_t *all = json_array();
    for (int32_t s = 0; s < x->setup.nodes; s++) {
        json_t *line = json_array();
        for (int32_t d = 0; d < x->setup.nodes; d++)
            json_array_append_new(line, json_integer((json_int_t)x->node_rows[s * x->setup.nodes + d]));
        json_array_append_new(all, line);
    }
    return all;
}

static json_t *json_layer(const traffic *x, int32_t l)
{
    json_t *o = json_object();
    json_object_set_new(o, "layer", json_integer(x->t->layer[l]));
    if (x->hop) json_object_set_new(o, "node_rows", json_nodes(x));
    if (x->hop) json_object_set_new(o, "dispatch_node", json_phase(x, x->hop, 0));
    for (int phase = 0; phase < 2; phase++) json_object_set_new(o, phase_name[phase], json_phase(x, x->rows, phase));
    if (x->hop) json_object_set_new(o, "combine_node", json_phase(x, x->hop, 1));
    return o;
}

static void put_matrix(const traffic *x, FILE *f)
{
    for (int32_t s = 0; s < x->D; s++)
        for (int32_t d = 0; d < x->D; d++)
            fprintf(f, "%lld%c", (long long)(cell(x, x->sum, x->matrix - 1, s, d) * x->row_bytes[x->matrix - 1]),
                    d + 1 < x->D ? ',' : '\n');
}

static int asked(const traffic *x, int32_t l)
{
    return x->layer < 0 || x->t->layer[l] == x->layer;
}

static void put_all(traffic *x, FILE *f, int as_json)
{
    static const char *const mode[] = {"pairs", "ranks", "nodes"};
    json_t *root = as_json ? json_object() : NULL, *layers = as_json ? json_array() : NULL;
    if (!as_json && !x->matrix) fputs("layer,phase,source,destination,rows,bytes\n", f);
    for (int32_t l = 0; l < x->t->layers; l++) {
        if (!asked(x, l)) continue;
        count_layer(x, l);
        if (as_json)
            json_array_append_new(layers, json_layer(x, l));
        else if (!x->matrix)
            put_csv_layer(x, f, l);
        cli_progress("traffic", l + 1.0, x->t->layers);
    }
    cli_progress_end();
    if (x->matrix) put_matrix(x, f);
    if (!as_json) return;
    json_object_set_new(root, "moe_ep", json_string(moe_ep_version()));
    json_object_set_new(root, "recording", json_string(x->t->name));
    json_object_set_new(root, "ranks", json_integer(x->D));
    json_object_set_new(root, "nodes", json_integer(x->setup.nodes));
    cli_json_assumed(root, x->setup.assumed);
    json_object_set_new(root, "tokens", json_integer((json_int_t)x->t->kept));
    json_object_set_new(root, "counting", json_string(mode[x->mode]));
    json_object_set_new(root, "exact", json_boolean(x->t->ids != NULL));
    json_object_set_new(root, "layers", layers);
    if (json_dumpf(root, f, JSON_COMPACT) != 0) cli_die(CLI_INTERNAL, "cannot write the matrix: %s", strerror(errno));
    fputc('\n', f);
    json_decref(root);
}

/* ---- everything together ----------------------------------------------------------------------------------- */

/* Every count and its bytes, that of all asked layers on one pair included, stay within int64_t. */
static void check_range(const traffic *x)
{
    const cli_trace *t = x->t;
    size_t E = (size_t)t->experts;
    double rows = 0.0, bytes = (double)(x->row_bytes[0] > x->row_bytes[1] ? x->row_bytes[0] : x->row_bytes[1]);
    for (int32_t l = 0; l < t->layers; l++)
        for (size_t e = 0; e < E && asked(x, l); e++) rows += t->loads[(size_t)l * E + e];
    if (rows * bytes > 9e18) /* INT64_MAX is 9.22e18 */
        cli_die(CLI_USAGE, "%s: %.3g rows of %.0f bytes are more than 9e18 bytes; --layer counts one layer", t->name,
                rows, bytes);
}

static void settle(traffic *x, const cli_map *map)
{
    moe_ep_error err;
    int32_t found = 0;
    for (int32_t l = 0; l < x->t->layers; l++) found += asked(x, l);
    if (found == 0) cli_die(CLI_USAGE, "--layer %d: the recording has no such layer", x->layer);
    x->D = x->setup.devices > 0 ? x->setup.devices : map ? map->devices : 0;
    if (x->D == 0) cli_die(CLI_USAGE, "--devices is needed");
    if (x->D > 8192) cli_die(CLI_USAGE, "--devices %d: a matrix for at most 8192", x->D);
    x->setup.devices = x->D;
    if (!x->t->ids && x->mode != MOE_EP_COUNT_PAIRS)
        cli_die(CLI_USAGE, "--mode: counts do not say which choices belong to one token; pairs only");
    cli_setup_layout(&x->setup);
    if (*cli_kept_ids(x->t)) cli_note(&x->setup, "%s", cli_kept_ids(x->t));
    if (*cli_idle_steps(x->t)) cli_note(&x->setup, "%s", cli_idle_steps(x->t));
    if (x->t->ids && x->t->step_tokens)
        cli_note(&x->setup, "Steps as recorded: the tokens of each start on the ranks in equal blocks.");
    if (!map) cli_note(&x->setup, "Contiguous blocks of experts; a placement as second file changes it.");
    cli_setup_sizes(&x->setup, x->t->layers, x->t->experts, x->t->top_k);
    for (int phase = 0; phase < 2; phase++) {
        x->row_bytes[phase] = moe_ep_row_bytes(x->wire[phase], x->setup.model.hidden, 0, &err);
        if (x->row_bytes[phase] < 0) cli_check(err.status, &err, "row");
    }
    check_range(x);
    if (map) cli_map_check_even(map, x->D, -1);
    if (map)
        x->p = cli_map_placement(map, x->t, cli_keep_block(cli_map_rows(map, x->t, &x->setup)), x->D, x->setup.nodes);
    else
        place_contiguous(x);
    x->rows = cli_alloc((size_t)x->D * (size_t)x->D, sizeof *x->rows);
    x->sum = cli_alloc((size_t)x->D * (size_t)x->D, sizeof *x->sum);
    if (x->mode != MOE_EP_COUNT_NODES) return;
    x->hop = cli_alloc((size_t)x->D * (size_t)x->D, sizeof *x->hop);
    x->node_rows = cli_alloc((size_t)x->setup.nodes * (size_t)x->setup.nodes, sizeof *x->node_rows);
}

int cli_traffic_main(int argc, char **argv)
{
    traffic x;
    cli_map map;
    cli_out out;
    cli_trace *list;
    char *left_out;
    int option, as_json, with_map;
    memset(&x, 0, sizeof x);
    x.layer = -1;
    x.wire[0] = MOE_EP_WIRE_FP8;
    x.common.screen.color = "auto";
    while ((option = cli_option(argc, argv, traffic_long, NULL)) != -1)
        take_option(&x, option, optarg);
    with_map = argc - optind == 2 && cli_map_is(argv[argc - 1]);
    if (with_map) map = cli_map_read(argv[argc - 1]);
    list = cli_read_all(argc - with_map, argv, optind, &x.common.read, 0, &left_out);
    if (arrlen(list) != 1) cli_die(CLI_USAGE, "%td recordings: one is needed; --only chooses", arrlen(list));
    x.t = &list[0];
    cli_note_inputs(&x.setup, list);
    settle(&x, with_map ? &map : NULL);
    as_json = x.out ? cli_has_suffix(x.out, ".json") : x.common.json;
    if (as_json && x.matrix) cli_die(CLI_USAGE, "--matrix is CSV; without it JSON holds every matrix");
    if (x.common.json && !as_json)
        cli_die(CLI_USAGE, "--json: --out %s is CSV; a name that ends in .json is JSON", cli_printable(x.out));
    if (x.out) cli_refuse_overwriting(x.out, argc, argv, optind);
    cli_out_open(&out, x.out ? x.out : "-");
    put_all(&x, out.stream, as_json);
    cli_out_commit(&out);
    if (x.setup.assumed) fprintf(stderr, "moe-ep traffic: assumed:\n%s\n", x.setup.assumed);
    free(x.rows);
    free(x.hop);
    free(x.node_rows);
    free(x.sum);
    free(x.setup.assumed);
    free(left_out);
    if (with_map) cli_map_free(&map);
    cli_traces_free(list);
    return CLI_OK;
}
