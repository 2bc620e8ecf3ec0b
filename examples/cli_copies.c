/* cli_copies.c - moe-ep copies: how many copies of experts reach a balance, and what do they cost?
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_copies.h"

#include "cli_commands.h"

#include <getopt.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static const char copies_help[] =
    "usage: moe-ep copies INPUT... --devices D [--target R] [options]\n"
    "\n"
    "Plans with 0, 1, 2, ... copies of experts per layer and says how balanced each plan is, how "
    "many copies\n"
    "reach the target and what they weigh.  More copies are not always better; the answer says "
    "where.\n"
    "A second curve, of the policy best, shares the copies out over the layers instead of giving every layer as\n"
    "many.\n"
    "Inputs as in moe-ep report; several are added up.\n"
    "\n"
    "  --target R        max/mean wanted in the worst layer (1.05)\n"
    "  --devices D       --nodes N   nodes of equal size; else one for every 8 devices, or as --machine has them\n"
    "  --machine NAME    whose nodes\n"
    "  --policy NAME     best (default) or eplb (as many slots on every device: the copies that fill the\n"
    "                    experts up to a multiple of D, then D more at a time)\n"
    "  --max-copies N    most copies per layer to try (4 per device)\n"
    "  --step N          tried: 0, N, 2 N, ... (so that there are at most 129; eplb: a multiple of D)\n"
    "  --model NAME      --hidden H   --intermediate I   size of an expert\n"
    "  --experts E       --only TEXT   --layers-first   --counts   (see moe-ep report --help)\n"
    "  --html FILE       --json   --width W   --ascii   --color auto|always|never\n";

enum { O_POLICY = 256, O_MAX, O_STEP };
enum { MOST_POINTS = 128 };
static const double clear_rise = 0.002; /* of max/mean; below it is called a wobble */

static const struct option copies_long[] = {CLI_COMMON_OPTIONS,
                                            CLI_SHAPE_OPTIONS,
                                            {"policy", 1, NULL, O_POLICY},
                                            {"max-copies", 1, NULL, O_MAX},
                                            {"step", 1, NULL, O_STEP},
                                            {NULL, 0, NULL, 0}};

static void take_option(cli_copies *c, cli_common *common, int option, const char *value)
{
    switch (option) {
    case O_POLICY:
        if (strcmp(value, "best") != 0 && strcmp(value, "eplb") != 0)
            cli_die(CLI_USAGE, "--policy %s: best or eplb", cli_printable(value));
        c->policy = *value == 'e' ? MOE_EP_PLACE_EPLB_GLOBAL : MOE_EP_PLACE_BEST;
        return;
    case O_MAX:
        c->max_extra = (int32_t)cli_option_count("max-copies", value, 1, 1 << 20);
        return;
    case O_STEP:
        c->step = (int32_t)cli_option_count("step", value, 1, 1 << 20);
        return;
    default:
        if (!cli_setup_option(&c->setup, option, value))
            (void)cli_common_option(common, option, value, copies_help);
    }
}

/* ---- figures ------------------------------------------------------------------------------------------- */

static void add_loads(cli_copies *c, const cli_trace *list)
{
    size_t n = (size_t)list[0].layers * (size_t)list[0].experts;
    c->trace = list;
    c->L = list[0].layers;
    c->E = list[0].experts;
    c->names = cli_keep(cli_strdup(list[0].name));
    c->loads = cli_keep_block(cli_alloc(n, sizeof *c->loads));
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        for (size_t j = 0; j < n; j++) c->loads[j] += list[i].loads[j];
        if (i > 0) c->names = cli_keep(cli_format("%s + %s", c->names, list[i].name));
    }
}

static void settle(cli_copies *c)
{
    int32_t unit = c->policy == MOE_EP_PLACE_BEST ? 1 : c->setup.devices;
    if (c->setup.devices == 0) cli_die(CLI_USAGE, "--devices is needed");
    if (c->setup.slots > 0)
        cli_note(&c->setup,
                 "--slots %d was not used: the number of slots is what is asked for; --max-copies limits it.",
                 c->setup.slots);
    cli_setup_layout(&c->setup);
    c->D = c->setup.devices;
    if (c->policy != MOE_EP_PLACE_BEST) c->policy = cli_setup_eplb(&c->setup);
    if (c->policy != MOE_EP_PLACE_BEST) c->first = (c->D - c->E % c->D) % c->D;
    if (c->first > 0)
        cli_note(&c->setup,
                 "EPLB needs as many slots on every device: %d experts on %d devices take %d cop%s at least.", c->E,
                 c->D, c->first, c->first == 1 ? "y" : "ies");
    if (c->max_extra > 0 && c->max_extra < c->first)
        cli_die(CLI_USAGE, "--max-copies %d: eplb needs as many slots on every device, and %d experts on %d devices "
                           "take %d copies at least", c->max_extra, c->E, c->D, c->first);
    if (c->max_extra == 0) {
        int64_t most = (int64_t)c->E * (c->D - 1);
        c->max_extra = (int32_t)(most < 4 * (int64_t)c->D ? most : 4 * (int64_t)c->D);
        if (c->max_extra < unit) c->max_extra = unit;
    }
    if (c->step == 0) {
        c->step = (c->max_extra + MOST_POINTS - 1) / MOST_POINTS;
        c->step = (c->step + unit - 1) / unit * unit;
    }
    if (c->step % unit != 0)
        cli_die(CLI_USAGE, "--step %d: eplb needs multiples of the %d devices", c->step, unit);
    if (c->max_extra / c->step > 100000)
        cli_die(CLI_USAGE, "--max-copies %d with --step %d: more than 100,000 plans", c->max_extra,
                c->step);
    cli_setup_sizes(&c->setup, c->L, c->E, c->trace->top_k);
    c->expert_bytes = cli_expert_bytes(&c->setup.model);
}

static moe_ep_place_desc place_desc(const cli_copies *c, int32_t slots)
{
    moe_ep_place_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = c->L;
    d.num_experts = c->E;
    d.loads = c->loads;
    d.shape.num_devices = c->D;
    d.shape.num_slots = slots;
    d.shape.num_nodes = c->setup.nodes;
    return d;
}

/* Extra weights on the fullest device when P slots are dealt evenly. */
static double fullest_bytes(const cli_copies *c, int32_t extra)
{
    int32_t with = (c->E + extra + c->D - 1) / c->D, without = (c->E + c->D - 1) / c->D;
    return (double)(with - without) * c->L * c->expert_bytes;
}

/* One point of the curve; the balance of its layers is kept as well. */
static moe_ep_copies_point plan_point(cli_copies *c, int32_t extra, double *layer_worst)
{
    moe_ep_place_desc d = place_desc(c, c->E + extra);
    size_t bytes = moe_ep_placement_bytes(c->L, c->E, &d.shape);
    moe_ep_plan_result *result = cli_alloc((size_t)c->L, sizeof *result);
    void *mem = cli_alloc(bytes, 1);
    moe_ep_copies_point point;
    moe_ep_placement p;
    moe_ep_error err;
    memset(&point, 0, sizeof point);
    cli_check(moe_ep_placement_init(&p, c->L, c->E, &d.shape, mem, bytes, &err), &err, "shape");
    cli_check((c->policy == MOE_EP_PLACE_BEST ? moe_ep_best_placement
                                              : moe_ep_place_eplb)(&d, &p, result, NULL, &err),
              &err, "plan");
    point.extra = extra;
    point.bytes = (double)extra * c->L * c->expert_bytes;
    for (int32_t l = 0; l < c->L; l++) {
        layer_worst[l] = result[l].imbalance;
        point.worst = fmax(point.worst, result[l].imbalance);
        point.mean += result[l].imbalance / c->L;
        point.max_sum += result[l].max;
    }
    free(mem);
    free(result);
    return point;
}

static void draw_curve(cli_copies *c)
{
    c->points = (c->max_extra - c->first) / c->step + 1;
    c->point = cli_keep_block(cli_alloc((size_t)c->points, sizeof *c->point));
    c->device_bytes = cli_keep_block(cli_alloc((size_t)c->points, sizeof *c->device_bytes));
    c->layer_worst = cli_keep_block(cli_alloc((size_t)c->points * (size_t)c->L, sizeof *c->layer_worst));
    c->fewest = c->fewest_equal = -1;
    for (int32_t i = 0; i < c->points; i++) {
        const moe_ep_copies_point *p = &c->point[i];
        c->point[i] = plan_point(c, c->first + i * c->step, c->layer_worst + (size_t)i * (size_t)c->L);
        cli_progress("plans", i + 1.0, c->points);
        c->device_bytes[i] = fullest_bytes(c, p->extra);
        if (c->fewest < 0 && p->worst <= c->setup.target) c->fewest = i;
        if (c->fewest_equal < 0 && c->fewest >= 0 && p->worst <= c->setup.target &&
            (c->E + p->extra) % c->D == 0)
            c->fewest_equal = i;
        if (p->worst < c->point[c->best].worst) c->best = i;
        if (i == 0 || p->worst <= p[-1].worst + clear_rise) continue;
        if (c->rises++ == 0 ||
            p->worst - p[-1].worst > c->point[c->rise_at].worst - c->point[c->rise_at - 1].worst)
            c->rise_at = i;
    }
}

/* ---- layers by themselves ------------------------------------------------------------------------------- */

static cli_need need_for(const cli_copies *c, double target)
{
    cli_need n;
    memset(&n, 0, sizeof n);
    n.least = INT32_MAX;
    n.worst = 1.0;
    for (int32_t l = 0; l < c->L; l++) {
        int32_t i = 0;
        while (i < c->points && c->layer_worst[(size_t)i * (size_t)c->L + (size_t)l] > target) i++;
        if (i == c->points) {
            n.extra = -1;
            return n;
        }
        n.worst = fmax(n.worst, c->layer_worst[(size_t)i * (size_t)c->L + (size_t)l]);
        n.extra += c->point[i].extra;
        n.least = c->point[i].extra < n.least ? c->point[i].extra : n.least;
        n.most = c->point[i].extra > n.most ? c->point[i].extra : n.most;
    }
    n.per_layer = (double)n.extra / c->L;
    n.bytes = (double)n.extra * c->expert_bytes;
    return n;
}

static void count_needs(cli_copies *c)
{
    static const double part[CLI_NEEDS] = {1.0,  0.7,  0.5,  0.35, 0.25,  0.17,  0.12,
                                           0.08, 0.05, 0.03, 0.02, 0.012, 0.006, 0.003};
    double start = c->point[0].worst;
    c->target_need = need_for(c, c->setup.target);
    if (c->L < 2) return; /* one layer has nothing to share out */
    for (int i = 0; i < CLI_NEEDS; i++) {
        cli_need n = need_for(c, 1.0 + (start - 1.0) * part[i]);
        if (n.extra < 0) break;
        if (c->needs > 0 && n.extra <= c->need[c->needs - 1].extra) continue;
        c->need[c->needs++] = n;
    }
}

/* Extra weights of the device that holds the most. */
static double placed_bytes(const cli_copies *c, const moe_ep_placement *p)
{
    int64_t *held = cli_alloc((size_t)c->D, sizeof *held), most = 0;
    for (int32_t l = 0; l < p->num_layers; l++)
        for (int32_t s = 0; s < p->num_slots; s++)
            held[p->slot_device[s]] +=
                p->slot_expert[(size_t)l * (size_t)p->num_slots + (size_t)s] >= 0;
    for (int32_t d = 0; d < c->D; d++) most = held[d] > most ? held[d] : most;
    free(held);
    most -= (int64_t)((c->E + c->D - 1) / c->D) * c->L;
    return most > 0 ? (double)most * c->expert_bytes : 0.0;
}

/* Devices have room for the most copies in every layer, but for none where there are none, as in the curve: two
 * experts would go onto one device for nothing. */
static cli_budget spread_copies(const cli_copies *c, void *mem, size_t bytes, moe_ep_plan_result *result,
                                const int32_t *slots)
{
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_error err;
    cli_budget b;
    memset(&b, 0, sizeof b);
    b.least = INT32_MAX;
    for (int32_t l = 0; l < c->L; l++) {
        int32_t more = slots[l] - c->E;
        b.extra += more;
        b.least = more < b.least ? more : b.least;
        b.most = more > b.most ? more : b.most;
    }
    d = place_desc(c, c->E + (b.extra > 0 ? c->max_extra : 0));
    d.layer_slots = slots;
    cli_check(moe_ep_placement_init(&p, c->L, c->E, &d.shape, mem, bytes, &err), &err, "shape");
    cli_check(moe_ep_best_placement(&d, &p, result, NULL, &err), &err, "copies per layer");
    for (int32_t l = 0; l < c->L; l++) {
        b.worst = fmax(b.worst, result[l].imbalance);
        b.mean += result[l].imbalance / c->L;
    }
    b.per_layer = (double)b.extra / c->L;
    b.device_bytes = placed_bytes(c, &p);
    return b;
}

static void draw_budgets(cli_copies *c)
{
    moe_ep_place_desc d = place_desc(c, c->E + c->max_extra);
    size_t bytes = moe_ep_placement_bytes(c->L, c->E, &d.shape);
    void *mem;
    moe_ep_plan_result *result;
    int64_t extra[CLI_BUDGETS];
    int32_t *slots;
    moe_ep_error err;
    c->fewest_budget = -1;
    if (c->L < 2 || c->policy != MOE_EP_PLACE_BEST) return; /* one layer has nothing to share out; EPLB cannot */
    mem = cli_alloc(bytes, 1);
    result = cli_alloc((size_t)c->L, sizeof *result);
    slots = cli_alloc((size_t)c->L * CLI_BUDGETS, sizeof *slots);
    for (int i = 0; i < CLI_BUDGETS; i++)
        extra[i] = (int64_t)((double)c->max_extra * c->L * i * i / ((CLI_BUDGETS - 1) * (CLI_BUDGETS - 1)) +
                             0.5);
    cli_check(moe_ep_replica_budget_row(&d, extra, CLI_BUDGETS, slots, NULL, &err), &err, "copies per layer");
    for (int i = 0; i < CLI_BUDGETS; i++) {
        cli_budget b = spread_copies(c, mem, bytes, result, slots + (size_t)i * (size_t)c->L);
        cli_progress("copies per layer", i + 1.0, CLI_BUDGETS);
        if (c->budgets > 0 && b.extra <= c->budget[c->budgets - 1].extra) continue;
        if (c->fewest_budget < 0 && b.worst <= c->setup.target) c->fewest_budget = c->budgets;
        c->budget[c->budgets++] = b;
    }
    free(mem);
    free(result);
    free(slots);
}

/* ---- sentences ------------------------------------------------------------------------------------------- */

static void write_headline(cli_copies *c)
{
    const moe_ep_copies_point *none = &c->point[0], *best = &c->point[c->best];
    double target = c->setup.target;
    c->state = c->fewest >= 0 ? "yes" : "open";
    if (c->fewest == 0 && c->first == 0) {
        c->badge = "No copies needed";
        c->headline = cli_format("No copies needed: the worst layer has max/mean %.3f without any",
                                 none->worst);
    } else if (c->fewest == 0) {
        c->badge = "Target reached";
        c->headline = cli_format("%d cop%s per layer, the fewest that give every device as many slots, reach%s "
                                 "max/mean %.2f: the worst layer has %.3f", c->first, c->first == 1 ? "y" : "ies",
                                 c->first == 1 ? "es" : "", target, none->worst);
    } else if (c->fewest > 0 && c->first > 0) {
        c->badge = "Target reached";
        c->headline = cli_format("%d copies per layer reach max/mean %.2f; with %d, the fewest that give every device "
                                 "as many slots, the worst layer has %.2f",
                                 c->point[c->fewest].extra, target, c->first, none->worst);
    } else if (c->fewest > 0) {
        c->badge = "Target reached";
        c->headline = cli_format("%d cop%s per layer reach max/mean %.2f; without copies the worst "
                                 "layer has %.2f",
                                 c->point[c->fewest].extra,
                                 c->point[c->fewest].extra == 1 ? "y" : "ies", target, none->worst);
    } else {
        c->badge = "Target missed";
        c->headline = cli_format("No number of copies up to %d per layer reaches max/mean %.2f; %d "
                                 "come closest with %.3f",
                                 c->point[c->points - 1].extra, target, best->extra, best->worst);
    }
}

static void write_verdict(cli_copies *c)
{
    write_headline(c);
    if (c->fewest > 0 || (c->fewest == 0 && c->first > 0))
        c->reason = cli_format(
            "That is %s over all devices, %s on the fullest one.%s",
            cli_bytes(c->point[c->fewest].bytes), cli_bytes(c->device_bytes[c->fewest]),
            c->fewest_equal == c->fewest ? ""
            : c->fewest_equal >= 0
                ? cli_keep(cli_format(" A server that wants the same number of slots on every device needs "
                                      "%d.",
                                      c->point[c->fewest_equal].extra))
                : " None of those tried gives every device the same number of slots.");
    else if (c->first > 0)
        c->reason = cli_format("With %d, the fewest that give every device as many slots, the worst layer has %.3f and "
                               "the mean over layers is %.3f.", c->first, c->point[0].worst, c->point[0].mean);
    else
        c->reason =
            cli_format("Placing the %d experts well, one copy each, already brings the worst "
                       "layer to %.3f and the mean over layers to %.3f.",
                       c->E, c->point[0].worst, c->point[0].mean);
    if (c->rises > 0) {
        const moe_ep_copies_point *p = &c->point[c->rise_at];
        c->not_monotone = cli_format("The curve is not monotone: it rises %d time%s, most at %d "
                                     "copies, where the worst layer "
                                     "has %.3f after %.3f with %d.",
                                     c->rises, c->rises == 1 ? "" : "s", p->extra, p->worst,
                                     p[-1].worst, p[-1].extra);
    } else {
        c->not_monotone =
            cli_format("Here no step of the curve makes the worst layer worse by more "
                       "than %.3f; on other loads more copies can be worse.",
                       clear_rise);
    }
    if (c->needs > 0 && c->target_need.extra > 0 && c->fewest > 0)
        c->spread =
            cli_format("Giving each layer only what it needs takes %.1f copies per layer on "
                       "average (%d to %d): "
                       "%s over all devices instead of %s.",
                       c->target_need.per_layer, c->target_need.least, c->target_need.most,
                       cli_bytes(c->target_need.bytes), cli_bytes(c->point[c->fewest].bytes));
    else if (c->needs > 0 && c->target_need.extra > 0 && c->fewest < 0)
        c->spread =
            cli_format("With its own number of copies each layer does reach the target, with "
                       "%.1f per layer on average (%d to %d), %s over all devices.",
                       c->target_need.per_layer, c->target_need.least, c->target_need.most,
                       cli_bytes(c->target_need.bytes));
}

int cli_copies_main(int argc, char **argv)
{
    static const cli_writers writers = {cli_copies_text, cli_copies_json, cli_copies_html};
    cli_copies c;
    cli_common common;
    cli_out page;
    cli_trace *list;
    int option;
    memset(&c, 0, sizeof c);
    memset(&common, 0, sizeof common);
    common.screen.color = "auto";
    c.policy = MOE_EP_PLACE_BEST;
    c.setup.target = 1.05;
    while ((option = cli_option(argc, argv, copies_long, NULL)) != -1)
        take_option(&c, &common, option, optarg);
    if (c.setup.devices == 0 && optind < argc) cli_die(CLI_USAGE, "--devices is needed");
    cli_check_form(&common, NULL);
    cli_open_page(&common, &page, argc, argv, optind);
    list = cli_read_all(argc, argv, optind, &common.read, 1, &c.left_out);
    cli_note_inputs(&c.setup, list);
    cli_note_left_out(&c.setup, c.left_out);
    add_loads(&c, list);
    settle(&c);
    draw_curve(&c);
    count_needs(&c);
    draw_budgets(&c);
    write_verdict(&c);
    cli_progress_end();
    cli_write_all(&common, &page, &c, &writers);
    cli_traces_free(list);
    free(c.headline);
    free(c.reason);
    free(c.not_monotone);
    free(c.spread);
    free(c.setup.assumed);
    free(c.left_out);
    return CLI_OK;
}
