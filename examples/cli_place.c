/* cli_place.c - moe-ep place: a plan as a table, as SGLang's physical_to_logical_map, as CSV
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_commands.h"
#include "cli_map.h"

#include <getopt.h>
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
    "  --nodes N       --groups G\n"
    "  --experts E     --only TEXT   --layers-first   --counts   (see moe-ep report --help)\n"
    "  --out FILE      writes the plan; .json: {\"physical_to_logical_map\": [layer][slot]}, which "
    "SGLang takes as\n"
    "                  --init-expert-location; .yaml: TensorRT-LLM's load_balancer file; .csv: "
    "layer,device,slot,\n"
    "                  expert.  May be given several times\n"
    "  --json          prints that JSON instead of the table\n";

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
    cli_read_options read;
    int32_t devices, slots, nodes, groups;
    const policy *policy;
    const char **out; /* stb_ds */
    int json;
} place_options;

enum {
    O_DEVICES = 256,
    O_SLOTS,
    O_NODES,
    O_GROUPS,
    O_EXPERTS,
    O_ONLY,
    O_LAYERS_FIRST,
    O_COUNTS,
    O_POLICY,
    O_OUT,
    O_JSON,
    O_HELP
};

static const struct option place_long[] = {{"devices", 1, NULL, O_DEVICES},
                                           {"slots", 1, NULL, O_SLOTS},
                                           {"nodes", 1, NULL, O_NODES},
                                           {"groups", 1, NULL, O_GROUPS},
                                           {"experts", 1, NULL, O_EXPERTS},
                                           {"only", 1, NULL, O_ONLY},
                                           {"layers-first", 0, NULL, O_LAYERS_FIRST},
                                           {"counts", 0, NULL, O_COUNTS},
                                           {"policy", 1, NULL, O_POLICY},
                                           {"out", 1, NULL, O_OUT},
                                           {"json", 0, NULL, O_JSON},
                                           {"help", 0, NULL, O_HELP},
                                           {NULL, 0, NULL, 0}};

static const policy *find_policy(const char *name)
{
    for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++)
        if (strcmp(policies[i].name, name) == 0) return &policies[i];
    cli_die(CLI_USAGE, "--policy %s: no such policy; moe-ep place --help lists them",
            cli_printable(name));
}

/* Whether a map without empty slots is asked for. */
static int wants_json(const place_options *o)
{
    int wanted = o->json;
    for (ptrdiff_t i = 0; i < arrlen(o->out); i++) wanted |= cli_map_wants_full(o->out[i]);
    return wanted;
}

static void take_option(place_options *o, int option, const char *value)
{
    switch (option) {
    case O_DEVICES:
        o->devices = (int32_t)cli_option_count("devices", value, 1, 65536);
        break;
    case O_SLOTS:
        o->slots = (int32_t)cli_option_count("slots", value, 1, 1 << 20);
        break;
    case O_NODES:
        o->nodes = (int32_t)cli_option_count("nodes", value, 1, 65536);
        break;
    case O_GROUPS:
        o->groups = (int32_t)cli_option_count("groups", value, 1, 65536);
        break;
    case O_EXPERTS:
        o->read.experts = (int32_t)cli_option_count("experts", value, 1, 65536);
        break;
    case O_ONLY:
        o->read.only = value;
        break;
    case O_LAYERS_FIRST:
        o->read.layers_first = 1;
        break;
    case O_COUNTS:
        o->read.as_counts = 1;
        break;
    case O_POLICY:
        o->policy = find_policy(value);
        break;
    case O_OUT:
        cli_map_check_name(value);
        arrput(o->out, value);
        break;
    case O_JSON:
        o->json = 1;
        break;
    case O_HELP:
        fputs(place_help, stdout);
        exit(fflush(stdout) == 0 ? CLI_OK : CLI_INTERNAL);
    default:
        cli_bad_option();
    }
}

static void put_table(const moe_ep_placement *p, const cli_trace *t,
                      const moe_ep_plan_result *result, const unsigned char *idle, FILE *f)
{
    fprintf(f, "%d layers, %d experts in %d slots on %d devices\n%s: %s\n\n", p->num_layers,
            p->num_experts, p->num_slots, p->num_devices, moe_ep_place_policy_str(result[0].policy),
            result[0].reason);
    fputs(
        "  layer   max/mean before    after    bound  slots used  most copies  same device twice\n",
        f);
    for (int32_t l = 0; l < p->num_layers; l++) {
        const moe_ep_plan_result *r = &result[l];
        if (idle[l]) {
            fprintf(f, "  %5d   no load: spare slots shared out evenly\n", t->layer[l]);
            continue;
        }
        fprintf(f, "  %5d   %15.3f  %7.3f  %7.3f  %10d  %11d  %17d\n", t->layer[l],
                r->max_before / r->mean, r->imbalance, r->lower_bound / r->mean, r->slots_used,
                r->max_replicas, r->duplicates);
    }
}

/* Groups are packed to nodes by EPLB, so what was assumed of them is said. */
static void put_nodes(const moe_ep_placement *p, int32_t asked, FILE *f)
{
    if (asked == 0 && p->num_devices > 1)
        fprintf(f, "\nall %d devices are taken to be on one node; --nodes N changes it\n", p->num_devices);
}

/* What was written, and how SGLang takes it. */
static void put_written(const moe_ep_placement *p, const char *const *out, FILE *f)
{
    if (arrlen(out) > 0) fputc('\n', f);
    for (ptrdiff_t i = 0; i < arrlen(out); i++) {
        char *name = cli_printable(out[i]);
        fprintf(f, "wrote %s\n", name);
        char *usage = cli_map_usage(out[i], p->num_experts, p->num_slots);
        if (usage) fprintf(f, "  %s\n", usage);
        free(usage);
        free(name);
    }
}

/* Sum of all recordings.  In a layer that none of them loads every expert counts as one, so that its spare slots are
 * shared out; (*idle)[layer] says which these are. */
static double *all_loads(const cli_trace *list, unsigned char **idle)
{
    size_t E = (size_t)list[0].experts;
    size_t n = (size_t)list[0].layers * (size_t)list[0].experts;
    double *loads = cli_keep_block(cli_alloc(n, sizeof *loads));
    for (ptrdiff_t i = 0; i < arrlen(list); i++)
        for (size_t j = 0; j < n; j++) loads[j] += list[i].loads[j];
    *idle = cli_keep_block(cli_alloc((size_t)list[0].layers, 1));
    for (size_t l = 0; l * E < n; l++) {
        double total = 0.0;
        for (size_t e = 0; e < E; e++) total += loads[l * E + e];
        (*idle)[l] = !(total > 0.0);
        for (size_t e = 0; e < E && (*idle)[l]; e++) loads[l * E + e] = 1.0;
    }
    return loads;
}

int cli_place_main(int argc, char **argv)
{
    place_options o;
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_plan_result *result;
    moe_ep_error err;
    cli_trace *list;
    cli_out *out, text;
    char *left_out;
    size_t bytes;
    int64_t filled;
    int32_t *full = NULL;
    unsigned char *idle;
    int option;
    memset(&o, 0, sizeof o);
    memset(&d, 0, sizeof d);
    o.policy = &policies[0];
    while ((option = getopt_long(argc, argv, "", place_long, NULL)) != -1)
        take_option(&o, option, optarg);
    if (o.devices == 0) cli_die(CLI_USAGE, "--devices is needed");
    out = cli_keep_block(cli_alloc((size_t)arrlen(o.out) + 1, sizeof *out));
    for (ptrdiff_t i = 0; i < arrlen(o.out); i++) {
        cli_refuse_overwriting(o.out[i], argc, argv, optind);
        cli_out_open(&out[i], o.out[i]); /* before the reading and planning, which may be long */
    }
    list = cli_read_all(argc, argv, optind, &o.read, 0, &left_out);
    d.num_layers = list[0].layers;
    d.num_experts = list[0].experts;
    d.loads = all_loads(list, &idle);
    d.num_groups = o.groups;
    d.eplb_mode = o.policy->mode;
    d.shape.num_devices = o.devices;
    d.shape.num_slots = o.slots > 0 ? o.slots : d.num_experts;
    d.shape.num_nodes = o.nodes;
    if (d.shape.num_slots < d.num_experts)
        cli_die(CLI_USAGE, "--slots %d: fewer than the %d experts", o.slots, d.num_experts);
    if (strncmp(o.policy->name, "eplb", 4) == 0 || strcmp(o.policy->name, "trtllm") == 0)
        cli_check_slots(*o.policy->name == 'e' ? "EPLB" : "trtllm", d.num_experts, o.devices, d.shape.num_slots);
    bytes = moe_ep_placement_bytes(d.num_layers, d.num_experts, &d.shape);
    if (bytes == 0)
        cli_die(CLI_USAGE, "%d devices, %d slots, %d nodes: no such shape", o.devices, o.slots,
                o.nodes);
    cli_check(moe_ep_placement_init(&p, d.num_layers, d.num_experts, &d.shape, cli_keep_block(cli_alloc(bytes, 1)),
                                    bytes, &err),
              &err, "shape");
    result = cli_keep_block(cli_alloc((size_t)d.num_layers, sizeof *result));
    cli_check(o.policy->run(&d, &p, result, NULL, &err), &err, o.policy->name);
    if (wants_json(&o)) full = cli_keep_block(cli_map_full(&p, &filled));
    for (ptrdiff_t i = 0; i < arrlen(o.out); i++) {
        cli_map_put(out[i].stream, o.out[i], p.num_layers, p.num_slots,
                    cli_map_wants_full(o.out[i]) ? full : p.slot_expert, p.slot_device, list[0].layer, idle);
        cli_out_commit(&out[i]);
    }
    cli_out_open(&text, "-");
    if (o.json)
        cli_map_put_json(text.stream, p.num_layers, p.num_slots, full);
    else
        {
        put_table(&p, &list[0], result, idle, text.stream);
        put_nodes(&p, o.nodes, text.stream);
        put_written(&p, o.out, text.stream);
    }
    cli_out_commit(&text);
    cli_traces_free(list);
    arrfree(o.out);
    free(left_out);
    return CLI_OK;
}
