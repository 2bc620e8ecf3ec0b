/* cli_rebalance.c - moe-ep rebalance: from the placement that runs to a better one, with few moves
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_rebalance.h"

#include "cli_commands.h"

#include <getopt.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static const char rebalance_help[] =
    "usage: moe-ep rebalance [CURRENT] INPUT... [--target R] [--moves N] [options]\n"
    "\n"
    "Changes the placement that runs into a better one for the loads of the inputs (added up), "
    "moving as few\n"
    "experts as it can, and says what a full replan would move instead.\n"
    "\n"
    "  CURRENT           what runs today: {\"physical_to_logical_map\": [layer][slot]}, as SGLang "
    "dumps it and\n"
    "                    moe-ep place --out writes it, TensorRT-LLM's YAML, or a CSV "
    "layer,device,\n"
    "                    slot,expert.  Without it: contiguous blocks on --devices D, in --slots P (the spare ones "
    "empty).\n"
    "                    Layers are matched by number, those of a file without numbers (.json, .npy) counting "
    "from\n"
    "                    0; in order, which is said, where that finds not all; numbers only partly in both are "
    "refused\n"
    "  INPUT             recorded loads or ids, see moe-ep report --help\n"
    "\n"
    "  --target R        stop a layer when its max/mean is at most R (1.05; with --moves alone: as "
    "far as it gets)\n"
    "  --moves N         at most N moves over all layers; a move is an expert arriving on a "
    "device\n"
    "  --layer-moves N   --device-moves N   --link-moves N   at most N per layer; arriving on a "
    "device; between two\n"
    "                    devices\n"
    "  --dead D,D,...    devices that are gone; what only they held is put back first\n"
    "  --devices D       --slots P   --nodes N   shape; a CSV map says its devices itself; with a "
    "JSON map --slots\n"
    "                    is needed only when its slots do not divide over the devices\n"
    "  --model NAME      --hidden H   --intermediate I   size of an expert      --machine NAME   "
    "speed of the links\n"
    "  --out FILE        writes the new map, .json, .yaml or .csv; may be given several times\n"
    "  --moves-out FILE  writes layer,expert,from_device,from_slot,to_device,to_slot,round as CSV; "
    "in one round a\n"
    "                    device sends at most one expert and receives at most one, all of one layer; arrivals "
    "wait in\n"
    "                    memory of their own until their layer's last round, and only then go to their slots\n"
    "  --experts E       --only TEXT   --layers-first   --counts   (see moe-ep report --help)\n"
    "  --html FILE       --json   --width W   --ascii   --color auto|always|never\n";

enum { O_MOVES = 256, O_LAYER_MOVES, O_DEVICE_MOVES, O_LINK_MOVES, O_DEAD, O_OUT, O_MOVES_OUT };

static const struct option rebalance_long[] = {CLI_COMMON_OPTIONS,
                                               CLI_SHAPE_OPTIONS,
                                               {"moves", 1, NULL, O_MOVES},
                                               {"layer-moves", 1, NULL, O_LAYER_MOVES},
                                               {"device-moves", 1, NULL, O_DEVICE_MOVES},
                                               {"link-moves", 1, NULL, O_LINK_MOVES},
                                               {"dead", 1, NULL, O_DEAD},
                                               {"out", 1, NULL, O_OUT},
                                               {"moves-out", 1, NULL, O_MOVES_OUT},
                                               {NULL, 0, NULL, 0}};

typedef struct rebalance_files {
    const char **out; /* stb_ds */
    const char *moves;
    cli_out *stream; /* one per out */
    cli_out moves_stream;
} rebalance_files;

/* ---- options ------------------------------------------------------------------------------------------- */

static void take_option(cli_rebalance *r, cli_common *common, rebalance_files *files, int option,
                        const char *value)
{
    switch (option) {
    case O_MOVES:
        r->max_moves = cli_option_count("moves", value, 1, INT64_MAX);
        return;
    case O_LAYER_MOVES:
        r->layer_moves = (int32_t)cli_option_count("layer-moves", value, 1, 1 << 30);
        return;
    case O_DEVICE_MOVES:
        r->device_moves = (int32_t)cli_option_count("device-moves", value, 1, 1 << 30);
        return;
    case O_LINK_MOVES:
        r->link_moves = (int32_t)cli_option_count("link-moves", value, 1, 1 << 30);
        return;
    case O_DEAD:
        r->dead = cli_device_list("dead", value);
        return;
    case O_OUT:
        cli_map_check_name(value);
        arrput(files->out, value);
        return;
    case O_MOVES_OUT:
        files->moves = value;
        return;
    default:
        if (!cli_setup_option(&r->setup, option, value))
            (void)cli_common_option(common, option, value, rebalance_help);
    }
}

/* ---- what runs today ------------------------------------------------------------------------------------- */

static moe_ep_placement new_placement(const cli_rebalance *r, const moe_ep_shape *shape)
{
    moe_ep_placement p;
    moe_ep_error err;
    size_t bytes = moe_ep_placement_bytes(r->trace->layers, r->trace->experts, shape);
    if (bytes == 0)
        cli_die(CLI_USAGE, "%d devices with %d slots on %d nodes: no such shape",
                shape->num_devices, shape->num_slots, shape->num_nodes);
    cli_check(moe_ep_placement_init(&p, r->trace->layers, r->trace->experts, shape,
                                    cli_keep_block(cli_alloc(bytes, 1)), bytes, &err),
              &err, "devices and slots");
    return p;
}

static void place_contiguous(cli_rebalance *r)
{
    moe_ep_place_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    if (r->setup.devices == 0) cli_die(CLI_USAGE, "--devices is needed when no map says what runs");
    if (r->setup.slots > 0 && r->setup.slots < r->trace->experts)
        cli_die(CLI_USAGE, "--slots %d: fewer than the %d experts", r->setup.slots,
                r->trace->experts);
    d.num_layers = r->trace->layers;
    d.num_experts = r->trace->experts;
    d.shape.num_devices = r->setup.devices;
    d.shape.num_slots = r->setup.slots > 0 || d.num_experts % r->setup.devices == 0
                            ? (r->setup.slots > 0 ? r->setup.slots : d.num_experts)
                            : (d.num_experts / r->setup.devices + 1) * r->setup.devices;
    d.shape.num_nodes = r->setup.nodes;
    r->today = new_placement(r, &d.shape);
    cli_check(moe_ep_place_contiguous(&d, &r->today, NULL, NULL, &err), &err, "contiguous blocks");
    cli_note(&r->setup,
             "No map was given: today's placement is taken to be contiguous blocks in %d "
             "slots.",
             r->today.num_slots);
}

/* The devices that are left hold every expert. */
static void check_room(const cli_rebalance *r)
{
    int32_t left = 0;
    for (int32_t s = 0; s < r->today.num_slots; s++)
        left += !r->today.device_inactive[r->today.slot_device[s]];
    if (left < r->trace->experts)
        cli_die(CLI_USAGE, "--dead: the other devices have %d slots for %d experts", left,
                r->trace->experts);
}

static void read_current(cli_rebalance *r)
{
    if (!r->current) {
        place_contiguous(r);
    } else {
        if (r->setup.slots > 0 && r->setup.slots != r->map.slots)
            cli_die(CLI_USAGE, "%s has %d slots, --slots says %d", r->current, r->map.slots,
                    r->setup.slots);
        cli_map_check_even(&r->map, r->setup.devices, r->setup.slots);
        r->rows = cli_keep_block(cli_map_rows(&r->map, r->trace, &r->setup));
        r->today = cli_map_placement(&r->map, r->trace, r->rows, r->setup.devices, r->setup.nodes);
    }
    for (ptrdiff_t i = 0; i < arrlen(r->dead); i++) {
        if (r->dead[i] >= r->today.num_devices)
            cli_die(CLI_USAGE, "--dead %d: there are only %d devices (0..%d)", r->dead[i],
                    r->today.num_devices, r->today.num_devices - 1);
        r->today.device_inactive[r->dead[i]] = 1;
    }
    check_room(r);
    r->setup.devices = r->today.num_devices;
    r->setup.slots = r->today.num_slots;
    r->setup.nodes = r->today.num_nodes;
}

/* ---- the placements -------------------------------------------------------------------------------------- */

/* The shape of today's placement; the arrays belong to it. */
static moe_ep_shape shape_of(const moe_ep_placement *p, int32_t *slots)
{
    moe_ep_shape shape;
    memset(&shape, 0, sizeof shape);
    for (int32_t d = 0; d < p->num_devices; d++) slots[d] = p->slot_start[d + 1] - p->slot_start[d];
    shape.num_devices = p->num_devices;
    shape.slots_per_device = slots;
    shape.num_nodes = p->num_nodes;
    shape.node_of_device = p->device_node;
    shape.inactive = p->device_inactive;
    return shape;
}

static moe_ep_placement copy_of(const cli_rebalance *r, const moe_ep_placement *p)
{
    int32_t *slots = cli_alloc((size_t)p->num_devices, sizeof *slots);
    moe_ep_shape shape = shape_of(p, slots);
    moe_ep_placement copy = new_placement(r, &shape);
    moe_ep_error err;
    cli_check(moe_ep_placement_copy(p, &copy, &err), &err, "copy");
    free(slots);
    return copy;
}

static int is_idle(const cli_rebalance *r, int32_t l)
{
    const double *loads = r->loads + (size_t)l * (size_t)r->trace->experts;
    for (int32_t e = 0; e < r->trace->experts; e++)
        if (loads[e] > 0.0) return 0;
    return 1;
}

static int all_idle(const cli_rebalance *r)
{
    for (int32_t l = 0; l < r->trace->layers; l++)
        if (!is_idle(r, l)) return 0;
    return 1;
}

/* All layers anew; those without load stay as they are. */
static moe_ep_placement full_replan(const cli_rebalance *r)
{
    int32_t P = r->today.num_slots, *slots = cli_alloc((size_t)r->today.num_devices, sizeof *slots);
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_layers = r->trace->layers;
    d.num_experts = r->trace->experts;
    d.shape = shape_of(&r->today, slots);
    d.loads = r->loads;
    p = new_placement(r, &d.shape);
    cli_check(moe_ep_best_placement(&d, &p, NULL, NULL, &err), &err, "full replan");
    for (int32_t l = 0; l < d.num_layers; l++)
        if (is_idle(r, l))
            memcpy(p.slot_expert + (size_t)l * (size_t)P,
                   r->today.slot_expert + (size_t)l * (size_t)P, (size_t)P * sizeof *p.slot_expert);
    cli_check(moe_ep_placement_index(&p, &err), &err, "full replan");
    free(slots);
    return p;
}

/* Slots of the layers that have load: what shares are of. */
static double busy_slots(const cli_rebalance *r)
{
    double slots = 0.0;
    for (int32_t l = 0; l < r->trace->layers; l++)
        if (!is_idle(r, l)) slots += r->today.num_slots;
    return slots;
}

static moe_ep_rebalance_desc question(const cli_rebalance *r, double target)
{
    moe_ep_rebalance_desc d;
    memset(&d, 0, sizeof d);
    d.current = &r->today;
    d.loads = r->loads;
    d.target = target;
    return d;
}

/* Results per layer of a placement; NULL when an expert is only on dead devices. */
static moe_ep_plan_result *evaluate(const cli_rebalance *r, const moe_ep_placement *p)
{
    moe_ep_plan_result *out = cli_alloc((size_t)r->trace->layers, sizeof *out);
    moe_ep_error err;
    moe_ep_status status = moe_ep_evaluate(p, r->loads, 1, out, NULL, &err);
    if (status == MOE_EP_OK) return out;
    if (status != MOE_EP_ERR_LOST_EXPERT) cli_check(status, &err, "evaluation");
    free(out);
    return NULL;
}

static void sum_up(const cli_rebalance *r, cli_change *c, const moe_ep_plan_result *layer)
{
    double most = 0.0, mean = 0.0;
    c->worst = c->overall = 1.0;
    for (int32_t l = 0; l < r->trace->layers; l++) {
        if (!(layer[l].total > 0.0)) continue;
        most += layer[l].max;
        mean += layer[l].mean;
        if (layer[l].imbalance <= c->worst) continue;
        c->worst = layer[l].imbalance;
        c->worst_layer = l;
    }
    if (mean > 0.0) c->overall = most / mean;
}

static void compare(cli_rebalance *r, int which, const char *name, const moe_ep_placement *p)
{
    cli_change *c = &r->change[which];
    moe_ep_plan_result *layer = evaluate(r, p);
    moe_ep_error err;
    c->name = name;
    if (layer) sum_up(r, c, layer);
    if (!layer) c->worst = c->overall = 0.0; /* it does not serve every expert any more */
    cli_check(moe_ep_plan_moves(&r->today, p, r->expert_bytes, NULL, 0, &c->moves, NULL, &err),
              &err, name);
    c->share = (double)c->moves.moves / busy_slots(r);
    if (layer) (void)cli_keep_block(layer);
    if (which == CLI_TODAY) r->before = layer;
    if (which == CLI_REBALANCED) r->after = layer;
}

static void list_moves(cli_rebalance *r)
{
    moe_ep_moves_result *m = &r->change[CLI_REBALANCED].moves;
    moe_ep_error err;
    r->move = cli_keep_block(cli_alloc((size_t)m->moves, sizeof *r->move));
    cli_check(
        moe_ep_plan_moves(&r->today, &r->plan, r->expert_bytes, r->move, m->moves, m, NULL, &err),
        &err, "moves");
    r->arrivals = cli_keep_block(cli_alloc((size_t)r->today.num_devices, sizeof *r->arrivals));
    r->layer_arrivals = cli_keep_block(cli_alloc((size_t)r->trace->layers, sizeof *r->layer_arrivals));
    r->departures = cli_keep_block(cli_alloc((size_t)r->today.num_devices, sizeof *r->departures));
    for (int64_t i = 0; i < m->moves; i++) {
        r->arrivals[r->move[i].to_device]++;
        r->layer_arrivals[r->move[i].layer]++;
        if (r->move[i].from_device >= 0) r->departures[r->move[i].from_device]++;
    }
}

/* How far balance gets with how many moves: rebalances to a row of targets. */
static void draw_frontier(cli_rebalance *r)
{
    static const double part[] = {0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05, 0.03, 0.015, 0.0};
    double start = r->change[CLI_TODAY].worst;
    moe_ep_placement p = copy_of(r, &r->today);
    if (!(start > 1.0)) return;
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        moe_ep_rebalance_desc d = question(r, part[i] > 0.0 ? 1.0 + (start - 1.0) * part[i] : 0.0);
        moe_ep_plan_result *layer;
        moe_ep_moves_result m;
        moe_ep_error err;
        cli_change c;
        memset(&c, 0, sizeof c);
        cli_check(moe_ep_rebalance(&d, &p, NULL, NULL, &err), &err, "rebalance");
        cli_check(moe_ep_plan_moves(&r->today, &p, 0.0, NULL, 0, &m, NULL, &err), &err, "moves");
        layer = evaluate(r, &p);
        sum_up(r, &c, layer);
        free(layer);
        cli_progress("moves against balance", (double)i + 1.0, sizeof part / sizeof part[0]);
        if (m.moves == 0) continue;
        while (r->points > 0 && m.moves <= r->point_moves[r->points - 1] && c.worst < r->point_worst[r->points - 1])
            r->points--; /* better balance for no more moves */
        if (r->points > 0 && m.moves <= r->point_moves[r->points - 1]) continue;
        r->point_moves[r->points] = m.moves;
        r->point_share[r->points] = (double)m.moves / busy_slots(r);
        r->point_overall[r->points] = c.overall;
        r->point_worst[r->points++] = c.worst;
    }
}

static int worse(const void *a, const void *b, void *rows)
{
    double x = ((const moe_ep_plan_result *)rows)[*(const int32_t *)a].imbalance,
           y = ((const moe_ep_plan_result *)rows)[*(const int32_t *)b].imbalance;
    return x < y ? 1 : x > y ? -1 : *(const int32_t *)a - *(const int32_t *)b;
}

static void make_plans(cli_rebalance *r)
{
    moe_ep_rebalance_desc d = question(r, r->target);
    moe_ep_error err;
    d.max_moves = r->max_moves;
    d.max_layer_moves = r->layer_moves;
    d.max_device_moves = r->device_moves;
    d.max_link_moves = r->link_moves;
    r->plan = copy_of(r, &r->today);
    cli_check(moe_ep_rebalance(&d, &r->plan, NULL, NULL, &err), &err, "rebalance");
    r->replan = full_replan(r);
    r->relabelled = copy_of(r, &r->replan);
    cli_check(moe_ep_relabel(&r->today, &r->relabelled, 0, NULL, &err), &err, "relabelling");
    compare(r, CLI_TODAY, "today", &r->today);
    compare(r, CLI_REBALANCED, "rebalanced", &r->plan);
    compare(r, CLI_RELABELLED, "full replan, relabelled", &r->relabelled);
    compare(r, CLI_REPLANNED, "full replan", &r->replan);
    list_moves(r);
    if (r->before) draw_frontier(r);
    r->worst = cli_keep_block(cli_alloc((size_t)r->trace->layers, sizeof *r->worst));
    for (int32_t l = 0; l < r->trace->layers; l++) r->worst[l] = l;
    qsort_r(r->worst, (size_t)r->trace->layers, sizeof *r->worst, worse,
            r->before ? r->before : r->after);
}

/* ---- sentences ---------------------------------------------------------------------------------------------- */

static int limited(const cli_rebalance *r)
{
    return r->max_moves > 0 || r->layer_moves > 0 || r->device_moves > 0 || r->link_moves > 0;
}

static char *why_missed(const cli_rebalance *r)
{
    const cli_change *c = &r->change[CLI_REBALANCED];
    const moe_ep_plan_result *layer = &r->after[c->worst_layer];
    double bound = layer->mean > 0.0 ? layer->lower_bound / layer->mean : 1.0;
    int32_t number = r->trace->layer[c->worst_layer];
    if (bound > r->target)
        return cli_format("Layer %d cannot get below %.3f in %d slots (%s): more copies would be "
                          "needed, see moe-ep copies.",
                          number, bound, r->today.num_slots, moe_ep_bound_str(layer->bound));
    if (limited(r))
        return cli_format(c->moves.moves > 0 ? "The limit on moves was used up: layer %d stays at %.3f."
                                             : "Layer %d, which stays at %.3f, takes more moves at a time than the "
                                               "limits allow.", number, c->worst);
    return cli_format("No further swap or copy helps layer %d, which stays at %.3f; its bound is "
                      "%.3f, and the full replan reaches %.3f in the worst layer.",
                      number, c->worst, bound, r->change[CLI_REPLANNED].worst);
}

static void write_verdict(cli_rebalance *r)
{
    const cli_change *a = &r->change[CLI_TODAY], *b = &r->change[CLI_REBALANCED],
                     *c = &r->change[CLI_RELABELLED];
    int reached = r->target > 0.0 && b->worst <= r->target + 1e-12;
    if (b->moves.moves == 0 && a->worst > 0.0)
        r->headline = reached ? cli_format("Nothing to move: max/mean is %.3f in the worst layer, within the %.4g "
                                           "asked for", a->worst, r->target)
                              : cli_format("No move%s helps: max/mean stays at %.3f in the worst layer",
                                           limited(r) ? " within the limits" : "", a->worst);
    else if (a->worst > 0.0)
        r->headline =
            cli_format("%s move%s (%.1f %% of the slots) bring%s the worst layer from "
                       "max/mean %.2f to %.2f",
                       cli_count((double)b->moves.moves), b->moves.moves == 1 ? "" : "s",
                       100.0 * b->share, b->moves.moves == 1 ? "s" : "", a->worst, b->worst);
    else
        r->headline = cli_format(
            "%s moves bring back every expert, %s of them from disk; the worst "
            "layer has max/mean %.2f",
            cli_count((double)b->moves.moves), cli_count((double)b->moves.lost), b->worst);
    r->badge = !(r->target > 0.0) ? "As far as it gets"
               : reached          ? "Target reached"
                                  : "Target missed";
    r->state = reached || !(r->target > 0.0) ? "yes" : "open";
    r->reason = cli_format(
        "%s %s in %s rounds%s. A full replan reaches %.3f and moves %.1f %% of the slots, %.1f %% "
        "when its devices are renamed to fit. %s",
        cli_bytes(b->moves.bytes), b->moves.moves == 1 ? "travels" : "travel",
        cli_count((double)b->moves.rounds),
        r->seconds > 0.0 ? cli_keep(cli_format(", %s at the speed of the links", cli_seconds(r->seconds)))
                         : "",
        c->worst, 100.0 * r->change[CLI_REPLANNED].share, 100.0 * c->share,
        r->target > 0.0 && !reached ? cli_keep(why_missed(r)) : "");
}

/* ---- outputs ------------------------------------------------------------------------------------------------ */

/* The numbers of the layers of the new map, which are those of the old one where it has some. */
static const int32_t *map_numbers(const cli_rebalance *r)
{
    return r->current && (r->map.numbered || r->map.layers != r->trace->layers) ? r->map.number : r->trace->layer;
}

/* 1 = no recording has loads of this layer of the map. */
static int unrecorded(const cli_rebalance *r, int32_t row)
{
    for (int32_t l = 0; l < r->trace->layers; l++)
        if (r->rows[l] == row) return 0;
    return 1;
}

/* Empty slots of a layer without loads get a further copy of the first expert of their device. */
static void fill_row(const cli_rebalance *r, int32_t *expert)
{
    for (int32_t d = 0; d < r->plan.num_devices; d++) {
        int32_t first = -1;
        for (int32_t s = r->plan.slot_start[d]; s < r->plan.slot_start[d + 1]; s++)
            if (first < 0) first = expert[s];
        for (int32_t s = r->plan.slot_start[d]; s < r->plan.slot_start[d + 1]; s++) {
            if (first < 0)
                cli_die(CLI_USAGE, "a layer without loads leaves device %d empty, which only a .csv map can say", d);
            if (expert[s] < 0) expert[s] = first;
        }
    }
}

/* The new map with all layers of the old one, also those without loads here. */
static void write_map(const cli_rebalance *r, const char *path, FILE *f)
{
    int32_t L = r->trace->layers, P = r->plan.num_slots;
    int full = cli_map_wants_full(path);
    const int32_t *expert = full ? r->full : r->plan.slot_expert;
    int32_t *all = NULL;
    if (r->current) {
        size_t bytes = (size_t)P * sizeof *all;
        all = cli_alloc((size_t)r->map.layers, bytes);
        memcpy(all, r->map.expert, (size_t)r->map.layers * bytes);
        for (int32_t row = 0; row < r->map.layers && full; row++)
            if (unrecorded(r, row)) fill_row(r, all + (size_t)row * (size_t)P);
        for (int32_t l = 0; l < L; l++)
            memcpy(all + (size_t)r->rows[l] * (size_t)P, expert + (size_t)l * (size_t)P, bytes);
        L = r->map.layers;
        expert = all;
    }
    cli_map_put(f, path, L, P, expert, r->plan.slot_device, map_numbers(r), NULL);
    free(all);
}

/* Layers of the map that the recording lacks stay as they are, which cannot be on a device that is gone. */
static void note_unrecorded(cli_rebalance *r)
{
    char *text = NULL;
    int32_t *number = cli_keep_block(cli_alloc((size_t)r->map.layers + 1, sizeof *number)), n = 0;
    for (int32_t row = 0; r->current && row < r->map.layers; row++)
        if (unrecorded(r, row)) number[n++] = r->map.number[row];
    if (n == 0) return;
    text = cli_keep(cli_ranges(number, n));
    if (arrlen(r->dead) > 0)
        cli_die(CLI_USAGE, "--dead needs loads of every layer of %s: %s has none of layer%s %s", r->map.path,
                r->trace->path, n == 1 ? "" : "s", text);
    cli_note(&r->setup, "There are no loads of layer%s %s of the map, which stay%s as %s.", n == 1 ? "" : "s", text,
             n == 1 ? "s" : "", n == 1 ? "it is" : "they are");
}

static void write_moves(const cli_rebalance *r, FILE *f)
{
    const int32_t *number = map_numbers(r);
    fputs("layer,expert,from_device,from_slot,to_device,to_slot,round\n", f);
    for (int64_t i = 0; i < r->change[CLI_REBALANCED].moves.moves; i++) {
        const moe_ep_move *m = &r->move[i];
        fprintf(f, "%d,%d,%d,%d,%d,%d,%d\n", number[r->current ? r->rows[m->layer] : m->layer], m->expert,
                m->from_device, m->from_slot, m->to_device, m->to_slot, m->round);
    }
}

/* A map for SGLang has no empty slots. */
static void fill_slots(cli_rebalance *r, const rebalance_files *files)
{
    int64_t filled = 0;
    double worst = 0.0;
    for (ptrdiff_t i = 0; i < arrlen(files->out); i++)
        if (cli_map_wants_full(files->out[i]) && !r->full)
            r->full = cli_keep_block(cli_map_full(&r->plan, r->loads, &filled, &worst));
    if (filled > 0 && worst > 0.0)
        cli_note(&r->setup,
                 "%s slots are free in the new plan; the map has a further copy of an expert of the same device "
                 "there. Some of these take load: the worst layer of the file has max/mean %.3f.",
                 cli_count((double)filled), worst);
    else if (filled > 0)
        cli_note(&r->setup,
                 "%s slots are free in the new plan; the map has a second copy of an expert of "
                 "the same device there, which changes no load.",
                 cli_count((double)filled));
}

static void open_files(rebalance_files *files, int argc, char **argv, int from)
{
    files->stream = cli_keep_block(cli_alloc((size_t)arrlen(files->out) + 1, sizeof *files->stream));
    for (ptrdiff_t i = 0; i < arrlen(files->out); i++) {
        cli_refuse_overwriting(files->out[i], argc, argv, from);
        cli_out_open(&files->stream[i], files->out[i]);
    }
    if (!files->moves) return;
    cli_refuse_overwriting(files->moves, argc, argv, from);
    cli_out_open(&files->moves_stream, files->moves);
}

static void write_files(const cli_rebalance *r, rebalance_files *files)
{
    for (ptrdiff_t i = 0; i < arrlen(files->out); i++) {
        write_map(r, files->out[i], files->stream[i].stream);
        cli_out_commit(&files->stream[i]);
    }
    if (!files->moves) return;
    write_moves(r, files->moves_stream.stream);
    cli_out_commit(&files->moves_stream);
}

static void add_loads(cli_rebalance *r, const cli_trace *list)
{
    size_t n = (size_t)list[0].layers * (size_t)list[0].experts;
    r->trace = list;
    r->names = cli_keep(cli_strdup(list[0].name));
    r->loads = cli_keep_block(cli_alloc(n, sizeof *r->loads));
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        for (size_t j = 0; j < n; j++) r->loads[j] += list[i].loads[j];
        if (i > 0) r->names = cli_keep(cli_format("%s + %s", r->names, list[i].name));
    }
}

static void settle(cli_rebalance *r)
{
    if (r->max_moves == 0 && !(r->setup.target > 0.0)) {
        r->setup.target = 1.05;
        cli_note(&r->setup, "Target max/mean 1.05 in every layer; --target or --moves changes it.");
    }
    r->target = r->setup.target;
    cli_setup_sizes(&r->setup, r->trace->layers, r->trace->experts, r->trace->top_k);
    cli_setup_machine(&r->setup);
    if (r->current) r->map = cli_map_read(r->current);
    if (r->setup.devices == 0) r->setup.devices = r->map.devices;
    if (r->setup.devices > 0) cli_setup_nodes(&r->setup);
    read_current(r);
    note_unrecorded(r);
    r->expert_bytes = cli_expert_bytes(&r->setup.model);
}

int cli_rebalance_main(int argc, char **argv)
{
    static const cli_writers writers = {cli_rebalance_text, cli_rebalance_json, cli_rebalance_html};
    cli_rebalance r;
    cli_common common;
    rebalance_files files;
    cli_out page;
    cli_trace *list;
    char *left_out;
    double speed;
    int option, from;
    memset(&r, 0, sizeof r);
    memset(&common, 0, sizeof common);
    memset(&files, 0, sizeof files);
    common.screen.color = "auto";
    while ((option = cli_option(argc, argv, rebalance_long, "out")) != -1)
        take_option(&r, &common, &files, option, optarg);
    cli_check_form(&common, NULL);
    cli_refuse_stdout("moves-out", files.moves);
    from = optind;
    if (from < argc && cli_map_is(argv[from])) r.current = argv[from++];
    list = cli_read_all(argc, argv, from, &common.read, 0, &left_out);
    cli_note_inputs(&r.setup, list);
    add_loads(&r, list);
    if (all_idle(&r)) cli_die(CLI_USAGE, "%s: every load is zero", list[0].path);
    settle(&r);
    cli_open_page(&common, &page, argc, argv, optind);
    open_files(&files, argc, argv, optind);
    make_plans(&r);
    speed = r.today.num_nodes > 1 ? r.setup.machine.normal_dispatch.inter_Bps
                                  : r.setup.machine.normal_dispatch.intra_Bps;
    if (speed > 0.0)
        r.seconds = (double)r.change[CLI_REBALANCED].moves.rounds * r.expert_bytes / speed;
    fill_slots(&r, &files);
    write_verdict(&r);
    cli_progress_end();
    write_files(&r, &files);
    cli_write_all(&common, &page, &r, &writers);
    cli_traces_free(list);
    cli_map_free(&r.map);
    arrfree(files.out);
    arrfree(r.dead);
    free(r.headline);
    free(r.reason);
    free(r.setup.assumed);
    free(left_out);
    return CLI_OK;
}
