/* cli_place.c - moe-ep place: a plan with its figures, as SGLang's physical_to_logical_map, as CSV
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_place.h"

#include "cli_commands.h"
#include "cli_map.h"
#include "cli_options.h"

#include <getopt.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static const char place_help[] =
    "usage: moe-ep place INPUT --devices D [--slots P] [options]\n"
    "\n"
    "Plans the experts of every layer onto the slots of the devices.  Inputs as in moe-ep report; "
    "with several\n"
    "recordings their loads are added.\n"
    "\n"
    "  --policy NAME   best (default), eplb, eplb-global, eplb-hierarchical, trtllm, lpt, "
    "contiguous, round-robin\n"
    "                  (eplb: hierarchical where the groups divide over the nodes, else global)\n"
    "  --nodes N       nodes, of equal size (one for every 8 devices, or as many as a node of the machine has)\n"
    "  --machine NAME  --groups G   whose nodes; expert groups of the router\n"
    "  --off-node S    best: at most this share (0 to 1) of the load is served off its home node.\n"
    "                  Groups (--groups, or one block of neighbours per node) are at home on one node\n"
    "  --dead D,D,...  best: devices that are gone or drained; they hold nothing\n"
    "  --speeds S,...  best: relative speed of every device; a slow one gets less\n"
    "  --experts E     --only TEXT   --layers-first   --counts   (see moe-ep report --help)\n"
    "  --out FILE      writes the plan; .json: {\"physical_to_logical_map\": [layer][slot]}, which "
    "SGLang takes as\n"
    "                  --init-expert-location; .yaml: TensorRT-LLM's load_balancer file; .csv: "
    "layer,device,slot,\n"
    "                  expert.  May be given several times\n"
    "  --json          prints that JSON instead of the table\n"
    "  --html FILE     writes the figures as a page with pictures\n"
    "  --format F      what goes to standard output: text, json (the figures), csv (a line per layer), html or svg\n"
    "                  (the devices before and after)\n";

typedef moe_ep_status (*planner)(const moe_ep_place_desc *, moe_ep_placement *,
                                 moe_ep_plan_result *, moe_ep_scratch *, moe_ep_error *);

typedef struct policy {
    const char *name;
    planner run;
    moe_ep_eplb_mode mode;
} policy;

static const policy policies[] = {
    {"best", moe_ep_best_placement, MOE_EP_EPLB_AUTO},
    {"eplb", moe_ep_place_eplb, MOE_EP_EPLB_AUTO},
    {"eplb-global", moe_ep_place_eplb, MOE_EP_EPLB_GLOBAL},
    {"eplb-hierarchical", moe_ep_place_eplb, MOE_EP_EPLB_HIERARCHICAL},
    {"trtllm", moe_ep_place_trtllm, MOE_EP_EPLB_AUTO},
    {"lpt", moe_ep_place_lpt, MOE_EP_EPLB_AUTO},
    {"contiguous", moe_ep_place_contiguous, MOE_EP_EPLB_AUTO},
    {"round-robin", moe_ep_place_round_robin, MOE_EP_EPLB_AUTO}};

typedef struct place_options {
    cli_common common;
    const policy *policy;
    int figures; /* --format json: the figures, where --json is the plan */
} place_options;

enum { O_POLICY = 256, O_OUT, O_OFF_NODE, O_DEAD, O_SPEEDS };

static const struct option place_long[] = {{"devices", 1, NULL, CLI_O_DEVICES},
                                           {"slots", 1, NULL, CLI_O_SLOTS},
                                           {"nodes", 1, NULL, CLI_O_NODES},
                                           {"machine", 1, NULL, CLI_O_MACHINE},
                                           {"groups", 1, NULL, CLI_O_GROUPS},
                                           {"experts", 1, NULL, CLI_O_EXPERTS},
                                           {"only", 1, NULL, CLI_O_ONLY},
                                           {"layers-first", 0, NULL, CLI_O_LAYERS_FIRST},
                                           {"counts", 0, NULL, CLI_O_COUNTS},
                                           {"html", 1, NULL, CLI_O_HTML},
                                           {"json", 0, NULL, CLI_O_JSON},
                                           {"format", 1, NULL, CLI_O_FORMAT},
                                           {"policy", 1, NULL, O_POLICY},
                                           {"out", 1, NULL, O_OUT},
                                           {"off-node", 1, NULL, O_OFF_NODE},
                                           {"dead", 1, NULL, O_DEAD},
                                           {"speeds", 1, NULL, O_SPEEDS},
                                           {"help", 0, NULL, CLI_O_HELP},
                                           {NULL, 0, NULL, 0}};

/* ---- options ------------------------------------------------------------------------------------------- */

static const policy *find_policy(const char *name)
{
    for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++)
        if (strcmp(policies[i].name, name) == 0) return &policies[i];
    cli_die(CLI_USAGE, "--policy %s: no such policy; moe-ep place --help lists them",
            cli_printable(name));
}

static void take_speeds(cli_place *r, const char *value)
{
    char **list = cli_list("speeds", value);
    for (ptrdiff_t i = 0; i < arrlen(list); i++)
        arrput(r->speeds, cli_option_number("speeds", list[i], 1e-6, 1e6));
    arrfree(list);
}

static void take_option(cli_place *r, place_options *o, int option, const char *value)
{
    switch (option) {
    case O_POLICY:
        o->policy = find_policy(value);
        return;
    case O_OUT:
        cli_map_check_name(value);
        arrput(r->out, value);
        return;
    case O_OFF_NODE:
        r->off_node = cli_option_number("off-node", value, 0, 1);
        return;
    case O_DEAD:
        r->dead = cli_device_list("dead", value);
        return;
    case O_SPEEDS:
        take_speeds(r, value);
        return;
    case CLI_O_JSON:
        o->figures = 0;
        break;
    case CLI_O_FORMAT:
        o->figures = strcmp(value, "json") == 0;
        break;
    default:
        break;
    }
    if (!cli_setup_option(&r->setup, option, value))
        (void)cli_common_option(&o->common, option, value, place_help);
}

/* Whether a map without empty slots is asked for. */
static int wants_full(const cli_place *r, const place_options *o)
{
    int wanted = o->common.json && !o->figures;
    for (ptrdiff_t i = 0; i < arrlen(r->out); i++) wanted |= cli_map_wants_full(r->out[i]);
    return wanted;
}

/* What does not go together, before anything is read. */
static void check_options(const cli_place *r, const place_options *o)
{
    const char *only_best = r->off_node >= 0.0 ? "off-node" : r->dead ? "dead" : r->speeds ? "speeds" : NULL;
    if (r->setup.devices == 0) cli_die(CLI_USAGE, "--devices is needed");
    if (only_best && o->policy != &policies[0])
        cli_die(CLI_USAGE, "--%s: --policy %s cannot plan for it; --policy best can", only_best, o->policy->name);
    if (r->speeds && arrlen(r->speeds) != r->setup.devices)
        cli_die(CLI_USAGE, "--speeds: %td numbers for %d devices", arrlen(r->speeds), r->setup.devices);
    for (ptrdiff_t i = 0; i < arrlen(r->dead); i++)
        if (r->dead[i] >= r->setup.devices)
            cli_die(CLI_USAGE, "--dead %d: there are only %d devices (0..%d)", r->dead[i], r->setup.devices,
                    r->setup.devices - 1);
}

/* ---- what is planned ----------------------------------------------------------------------------------- */

/* Sum of all recordings.  In a layer that none of them loads every expert counts as one, so that its spare slots are
 * shared out; idle says which these are. */
static void add_loads(cli_place *r, const cli_trace *list)
{
    size_t E = (size_t)list[0].experts;
    size_t n = (size_t)list[0].layers * (size_t)list[0].experts;
    double *loads = cli_keep_block(cli_alloc(n, sizeof *loads));
    r->trace = list;
    r->names = cli_keep(cli_strdup(list[0].name));
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        for (size_t j = 0; j < n; j++) loads[j] += list[i].loads[j];
        if (i > 0) r->names = cli_keep(cli_format("%s + %s", r->names, list[i].name));
    }
    r->idle = cli_keep_block(cli_alloc((size_t)list[0].layers, 1));
    for (size_t l = 0; l * E < n; l++) {
        double total = 0.0;
        for (size_t e = 0; e < E; e++) total += loads[l * E + e];
        r->idle[l] = !(total > 0.0);
        for (size_t e = 0; e < E && r->idle[l]; e++) loads[l * E + e] = 1.0;
    }
    r->d.num_layers = list[0].layers;
    r->d.num_experts = list[0].experts;
    r->d.loads = loads;
}

/* Fewest slots, as many on each device, with which the devices that are left hold every expert. */
static int32_t equal_slots(int32_t experts, int32_t devices, int32_t left)
{
    return (experts + left - 1) / left * devices;
}

/* Slots on the devices that are left when P are dealt evenly. */
static int32_t slots_left(const cli_place *r, int32_t P)
{
    int32_t D = r->setup.devices, left = 0;
    for (int32_t d = 0; d < D; d++) left += r->inactive[d] ? 0 : P / D + (d < P % D);
    return left;
}

static void settle_dead(cli_place *r)
{
    int32_t E = r->d.num_experts, D = r->setup.devices, left = D;
    r->inactive = cli_keep_block(cli_alloc((size_t)D, 1));
    for (ptrdiff_t i = 0; i < arrlen(r->dead); i++) r->inactive[r->dead[i]] = 1;
    for (int32_t d = 0; d < D; d++) left -= r->inactive[d];
    if (left == 0) cli_die(CLI_USAGE, "--dead: no device is left");
    if (r->setup.slots == 0) {
        r->setup.slots = left == D ? E : equal_slots(E, D, left);
        cli_note(&r->setup, "%d slots: the fewest, as many on every device, with which %d of %d devices hold %d "
                            "experts; --slots changes it.", r->setup.slots, left, D, E);
    }
    if (r->setup.slots >= E && slots_left(r, r->setup.slots) < E)
        cli_die(CLI_USAGE, "--dead: the other devices have %d slots for %d experts; --slots %d is enough",
                slots_left(r, r->setup.slots), E, equal_slots(E, D, left));
}

static void settle_off_node(cli_place *r)
{
    int32_t N = r->setup.nodes;
    r->d.node_soft = 1;
    r->d.max_off_node = r->off_node;
    if (r->d.num_groups == 0) {
        if (r->d.num_experts % N != 0)
            cli_die(CLI_USAGE, "--off-node: %d nodes do not divide the %d experts", N, r->d.num_experts);
        r->d.num_groups = N;
        cli_note(&r->setup, "Home nodes: %d blocks of %d neighbouring experts, one per node; --groups changes it.", N,
                 r->d.num_experts / N);
    }
    if (r->d.num_experts % r->d.num_groups != 0 || r->d.num_groups % N != 0)
        cli_die(CLI_USAGE, "--off-node: %d groups of %d experts do not divide over %d nodes", r->d.num_groups,
                r->d.num_experts, N);
}

static void settle(cli_place *r, const policy *by)
{
    int32_t E = r->d.num_experts, D = r->setup.devices;
    cli_setup_layout(&r->setup);
    cli_setup_groups(&r->setup, E);
    r->d.num_groups = r->setup.groups;
    r->d.eplb_mode = by->mode;
    if (by->mode == MOE_EP_EPLB_HIERARCHICAL) cli_setup_hierarchical(&r->setup, by->name);
    if (r->off_node >= 0.0 && r->setup.nodes < 2)
        cli_die(CLI_USAGE, "--off-node: --nodes of 2 or more is needed");
    if (r->dead) settle_dead(r);
    if (r->off_node >= 0.0) settle_off_node(r);
    if (r->speeds) cli_note(&r->setup, "Loads are divided by the speeds of the devices.");
    r->d.shape.num_devices = D;
    r->d.shape.num_slots = r->setup.slots > 0 ? r->setup.slots : E;
    r->d.shape.num_nodes = r->setup.nodes;
    r->d.shape.inactive = r->inactive;
    r->d.shape.speed = r->speeds;
    if (r->d.shape.num_slots < E)
        cli_die(CLI_USAGE, "--slots %d: fewer than the %d experts", r->setup.slots, E);
    if (strncmp(by->name, "eplb", 4) == 0 || strcmp(by->name, "trtllm") == 0)
        cli_check_slots(*by->name == 'e' ? "EPLB" : "trtllm",
                        r->setup.slots > 0 ? NULL : "without --slots there are", E, D, r->d.shape.num_slots);
}

/* An empty placement of L layers; its memory lives to the end of the program. */
static moe_ep_placement empty_placement(const cli_place *r, int32_t L, const moe_ep_shape *shape)
{
    size_t bytes = moe_ep_placement_bytes(L, r->d.num_experts, shape);
    moe_ep_placement p;
    moe_ep_error err;
    if (bytes == 0)
        cli_die(CLI_USAGE, "%d devices, %d slots, %d nodes: no such shape", r->setup.devices, r->setup.slots,
                r->setup.nodes);
    cli_check(moe_ep_placement_init(&p, L, r->d.num_experts, shape, cli_keep_block(cli_alloc(bytes, 1)), bytes, &err),
              &err, "shape");
    return p;
}

/* The layers l .. l + n-1 of a placement, in its own memory. */
static moe_ep_placement layers_of(const moe_ep_placement *p, int32_t l, int32_t n)
{
    moe_ep_placement part = *p;
    part.num_layers = n;
    part.slot_expert += (size_t)l * (size_t)p->num_slots;
    part.replica_start += (size_t)l * ((size_t)p->num_experts + 1);
    part.replica_slot += (size_t)l * (size_t)p->num_slots;
    return part;
}

/* No layer's plan depends on the others, so that they can be counted one by one; only the load off the home nodes is
 * limited over all of them together. */
static void plan_layers(cli_place *r, const policy *by)
{
    int32_t L = r->d.num_layers, step = r->d.node_soft ? L : 1;
    moe_ep_error err;
    r->p = empty_placement(r, L, &r->d.shape);
    r->result = cli_keep_block(cli_alloc((size_t)L, sizeof *r->result));
    for (int32_t l = 0; l < L; l += step) {
        moe_ep_place_desc d = r->d;
        moe_ep_placement part = layers_of(&r->p, l, step);
        cli_progress("planning", l, L);
        d.num_layers = step;
        d.loads += (size_t)l * (size_t)d.num_experts;
        cli_check(by->run(&d, &part, r->result + l, NULL, &err), &err, by->name);
    }
    cli_progress_end();
}

/* ---- figures ------------------------------------------------------------------------------------------- */

/* One layer of contiguous blocks on the shape: what the plan is compared with. */
static moe_ep_placement contiguous(const cli_place *r, const moe_ep_shape *shape)
{
    moe_ep_placement p = empty_placement(r, 1, shape);
    moe_ep_place_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_layers = 1;
    d.num_experts = r->d.num_experts;
    d.shape = *shape;
    cli_check(moe_ep_place_contiguous(&d, &p, NULL, NULL, &err), &err, "contiguous");
    return p;
}

static void load_devices(cli_place *r)
{
    moe_ep_placement blocks = contiguous(r, &r->d.shape);
    size_t D = (size_t)r->p.num_devices, n = (size_t)r->p.num_layers * D;
    moe_ep_error err;
    r->before = cli_keep_block(cli_alloc(n, sizeof *r->before));
    r->after = cli_keep_block(cli_alloc(n, sizeof *r->after));
    cli_check(moe_ep_device_loads(&r->p, r->d.loads, r->after, &err), &err, "device loads");
    for (int32_t l = 0; l < r->p.num_layers; l++)
        cli_check(moe_ep_device_loads(&blocks, r->d.loads + (size_t)l * (size_t)r->p.num_experts,
                                      r->before + (size_t)l * D, &err),
                  &err, "device loads");
    for (size_t i = 0; i < n; i++) {
        r->before[i] /= r->p.device_speed[i % D];
        r->after[i] /= r->p.device_speed[i % D];
    }
}

static void add_layer(cli_place_balance *b, double ratio, int32_t loaded)
{
    b->worst = fmax(b->worst, ratio);
    b->mean += (ratio - b->mean) / loaded;
}

static void sum_up(cli_place *r)
{
    static const cli_place_balance even = {1.0, 1.0};
    double total = 0.0, off = 0.0;
    r->blocks = r->plan = r->bound = even;
    r->nodes = 1.0;
    for (int32_t l = 0; l < r->p.num_layers; l++) {
        const moe_ep_plan_result *a = &r->result[l];
        r->copies += a->slots_used - r->p.num_experts;
        r->duplicates += a->duplicates;
        r->most_copies = a->max_replicas > r->most_copies ? a->max_replicas : r->most_copies;
        if (r->idle[l]) continue;
        if (a->max_before / a->mean > r->blocks.worst || r->loaded == 0) r->shown = l;
        r->loaded++;
        add_layer(&r->blocks, a->max_before / a->mean, r->loaded);
        add_layer(&r->plan, a->imbalance, r->loaded);
        add_layer(&r->bound, a->lower_bound / a->mean, r->loaded);
        r->gap = fmax(r->gap, a->gap);
        r->nodes = fmax(r->nodes, a->node_imbalance);
        total += a->total;
        off += a->off_node * a->total;
    }
    r->off_home = total > 0.0 ? off / total : 0.0;
}

/* ---- sentences ----------------------------------------------------------------------------------------- */

/* Experts that only the dead devices held, when contiguous blocks ran on all of them. */
static void note_lost(cli_place *r)
{
    moe_ep_shape whole = r->d.shape;
    moe_ep_placement blocks;
    int32_t *lost = NULL;
    char *text;
    whole.inactive = NULL;
    blocks = contiguous(r, &whole);
    for (int32_t e = 0; e < r->p.num_experts; e++) {
        int32_t left = 0;
        for (int32_t i = blocks.replica_start[e]; i < blocks.replica_start[e + 1]; i++)
            left += !r->inactive[blocks.slot_device[blocks.replica_slot[i]]];
        if (left == 0) arrput(lost, e);
    }
    text = cli_ranges(lost, arrlen(lost));
    if (arrlen(lost) > 0)
        cli_note(&r->setup,
                 "As contiguous blocks, expert%s %s had the only copy on a dead device: the weights come from disk. "
                 "moe-ep rebalance CURRENT --dead begins with the map that runs.",
                 arrlen(lost) == 1 ? "" : "s", text);
    free(text);
    arrfree(lost);
}

static void write_headline(cli_place *r)
{
    double worst = r->plan.worst, before = r->blocks.worst;
    r->state = r->gap <= 0.01 ? "yes" : "open";
    r->badge = r->gap <= 0.01 ? "Within 1 % of the bound" : "Above the bound";
    if (r->loaded == 0) {
        r->state = "open";
        r->badge = "No load";
        r->headline = cli_format("No layer has load; the slots are shared out evenly");
    } else if (worst > before * (1.0 + 1e-9)) {
        r->state = "no";
        r->badge = "Worse than blocks";
        r->headline = cli_format("This plan is worse than contiguous blocks: max/mean %.3f in the worst layer instead "
                                 "of %.3f", worst, before);
    } else if (r->p.num_layers == 1) {
        r->headline = cli_format("The plan brings the busiest device from max/mean %.3f to %.3f", before, worst);
    } else {
        r->headline = cli_format("The plan brings the worst layer from max/mean %.3f to %.3f, the mean over layers "
                                 "from %.3f to %.3f", before, worst, r->blocks.mean, r->plan.mean);
    }
}

static void write_sentences(cli_place *r)
{
    const moe_ep_placement *p = &r->p;
    int one = p->num_layers == 1;
    char *copies = r->copies == 0 ? cli_strdup("Every expert stands once.")
                                  : cli_format("%s cop%s%s, at most %d of one expert, %s twice on a device.",
                                               cli_count((double)r->copies), r->copies == 1 ? "y" : "ies",
                                               one ? "" : " over all layers", r->most_copies,
                                               r->duplicates > 0 ? cli_count((double)r->duplicates) : "none");
    char *off = r->d.node_soft ? cli_format(" %.2f %% of the load is served off its home node.", 100.0 * r->off_home)
                               : cli_strdup("");
    write_headline(r);
    r->reason = cli_format("No plan with these slots gets %sbelow %.3f, and %s is %s%.2f %% above its bound. %s%s",
                           one ? "" : "the worst layer ", r->bound.worst, one ? "this one" : "no layer of this one",
                           one ? "" : "more than ", 100.0 * r->gap, copies, off);
    r->subject = cli_format("%s \xc2\xb7 %d layer%s \xc2\xb7 %d experts in %d slots on %d devices, %d node%s "
                            "\xc2\xb7 %s: %s", r->names, p->num_layers, one ? "" : "s",
                            p->num_experts, p->num_slots, p->num_devices, p->num_nodes, p->num_nodes == 1 ? "" : "s",
                            moe_ep_place_policy_str(r->result[0].policy), r->result[0].reason);
    if (r->dead) note_lost(r);
    free(copies);
    free(off);
}

/* ---- files --------------------------------------------------------------------------------------------- */

/* Opened before the reading and planning, which may be long. */
static void open_maps(cli_place *r, int argc, char **argv)
{
    r->maps = cli_alloc((size_t)arrlen(r->out) + 1, sizeof *r->maps);
    for (ptrdiff_t i = 0; i < arrlen(r->out); i++) {
        cli_refuse_overwriting(r->out[i], argc, argv, optind);
        cli_out_open(&r->maps[i], r->out[i]);
    }
}

/* The plan without empty slots, when a file or the answer has to have it so. */
static void fill_map(cli_place *r, const place_options *o)
{
    int64_t filled;
    double worst;
    if (!wants_full(r, o)) return;
    r->full = cli_keep_block(cli_map_full(&r->p, r->d.loads, &filled, &worst));
    if (worst > 0.0)
        cli_note(&r->setup,
                 "%s slots are free in the plan; the JSON or YAML map has a further copy of an expert of the same "
                 "device there. Some of these take load: the worst layer of the file has max/mean %.3f.",
                 cli_count((double)filled), worst);
}

static void write_maps(const cli_place *r)
{
    const moe_ep_placement *p = &r->p;
    for (ptrdiff_t i = 0; i < arrlen(r->out); i++) {
        cli_map_put(r->maps[i].stream, r->out[i], p->num_layers, p->num_slots,
                    cli_map_wants_full(r->out[i]) ? r->full : p->slot_expert, p->slot_device, r->trace->layer,
                    r->idle);
        cli_out_commit(&r->maps[i]);
    }
}

static void free_place(cli_place *r)
{
    free(r->maps);
    arrfree(r->out);
    arrfree(r->dead);
    arrfree(r->speeds);
    free(r->headline);
    free(r->reason);
    free(r->subject);
    free(r->setup.assumed);
}

int cli_place_main(int argc, char **argv)
{
    static const cli_writers plan = {cli_place_text, cli_place_map, cli_place_html},
                             figures = {cli_place_text, cli_place_json, cli_place_html};
    static const cli_more_writers more = {cli_place_csv, cli_place_svg};
    cli_place r;
    place_options o;
    cli_trace *list;
    cli_out page;
    char *left_out;
    int option;
    memset(&r, 0, sizeof r);
    memset(&o, 0, sizeof o);
    r.off_node = -1.0;
    o.policy = &policies[0];
    o.common.screen.color = "auto";
    while ((option = cli_option(argc, argv, place_long, "out")) != -1) take_option(&r, &o, option, optarg);
    check_options(&r, &o);
    cli_check_form(&o.common, &more);
    open_maps(&r, argc, argv);
    cli_open_page(&o.common, &page, argc, argv, optind);
    list = cli_read_all(argc, argv, optind, &o.common.read, 0, &left_out);
    cli_note_inputs(&r.setup, list);
    add_loads(&r, list);
    settle(&r, o.policy);
    plan_layers(&r, o.policy);
    load_devices(&r);
    sum_up(&r);
    write_sentences(&r);
    fill_map(&r, &o);
    write_maps(&r);
    cli_write_forms(&o.common, &page, &r, o.figures ? &figures : &plan, &more);
    cli_traces_free(list);
    free_place(&r);
    free(left_out);
    return CLI_OK;
}
