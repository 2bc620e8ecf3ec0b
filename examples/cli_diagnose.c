/* cli_diagnose.c - moe-ep diagnose: is a new placement worth it, judged on loads it was not made from?
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_diagnose.h"

#include "cli_commands.h"
#include "cli_map.h"

#include <ctype.h>
#include <getopt.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static const char diagnose_help[] =
    "usage: moe-ep diagnose A [B...] [options]\n"
    "\n"
    "Plans on the first input and judges the plan on every step of the others: recommend, not now, "
    "or\n"
    "insufficient evidence, with the reason.  A single input of four steps or more is planned on "
    "its first half\n"
    "and judged on its second.  Without --slots two plans are judged, without and with copies, and the better one is\n"
    "the answer.  Inputs as in moe-ep report.\n"
    "\n"
    "what runs, and what would\n"
    "  --current MAP     placement that runs (SGLang's physical_to_logical_map, or CSV "
    "layer,device,slot,expert);\n"
    "                    without it contiguous blocks, or --round-robin\n"
    "  --devices D       --slots P   --nodes N   --groups G\n"
    "  --policy NAME     planner: best (default), eplb (hierarchical where the groups divide over the nodes, else\n"
    "                    global), eplb-global, eplb-hierarchical, trtllm, lpt\n"
    "  --tokens T        tokens per step over all devices      --topk K   --experts E\n"
    "what counts as worth it\n"
    "  --target R        max/mean that is good enough (1.05)\n"
    "  --min-gain S      least share of a step saved (0.05)\n"
    "  --min-improved S  least share of judged steps that get faster (0.8; less where steps are so small that chance\n"
    "                    makes some of them slower)\n"
    "  --min-steps N     least number of judged steps (2; 1 where the recordings are sums)\n"
    "  --min-sigmas S    least gain, in standard deviations of what chance does to it (1.645: in 19 of 20 cases no\n"
    "                    chance, so far as the judged steps show it; 0 = not asked)\n"
    "  --horizon N       steps that the plan will serve (no limit)\n"
    "what it costs\n"
    "  --kernels NAME    of dispatch and combine: auto (normal from 512 tokens per device on), normal or low-latency\n"
    "  --model NAME      --machine NAME   --hidden H   --intermediate I   --other-ms X   (see "
    "moe-ep report --help)\n"
    "  --pause-ms X      serving stops so long for the change (0)\n"
    "  --move-gbps X     speed at which a device receives weights, in 1e9 bytes per second (the "
    "machine's links)\n"
    "\n"
    "  --exit-code       exit code 3 for \"not now\", 4 for \"insufficient evidence\"; 0 without "
    "this option\n"
    "  --only TEXT       --layers-first   --counts      of the inputs (see moe-ep report --help)\n"
    "  --html FILE       --json   --width W   --ascii   --color auto|always|never\n";

enum { O_CURRENT = 256, O_POLICY, O_IMPROVED, O_STEPS, O_SIGMAS, O_PAUSE, O_SPEED, O_EXIT };
enum { EXIT_NOT_NOW = 3, EXIT_INSUFFICIENT = 4 };

static const struct option diagnose_long[] = {CLI_COMMON_OPTIONS,
                                              CLI_SHAPE_OPTIONS,
                                              CLI_STEP_OPTIONS,
                                              {"current", 1, NULL, O_CURRENT},
                                              {"policy", 1, NULL, O_POLICY},
                                              {"min-improved", 1, NULL, O_IMPROVED},
                                              {"min-steps", 1, NULL, O_STEPS},
                                              {"min-sigmas", 1, NULL, O_SIGMAS},
                                              {"pause-ms", 1, NULL, O_PAUSE},
                                              {"move-gbps", 1, NULL, O_SPEED},
                                              {"exit-code", 0, NULL, O_EXIT},
                                              {NULL, 0, NULL, 0}};

static void take_policy(cli_diagnose *g, const char *value)
{
    static const struct {
        const char *name;
        moe_ep_place_policy policy;
    } list[] = {{"best", MOE_EP_PLACE_BEST},
                {"eplb", MOE_EP_PLACE_EPLB_GLOBAL}, /* until groups and nodes are known */
                {"eplb-global", MOE_EP_PLACE_EPLB_GLOBAL},
                {"eplb-hierarchical", MOE_EP_PLACE_EPLB_HIERARCHICAL},
                {"trtllm", MOE_EP_PLACE_TRTLLM},
                {"lpt", MOE_EP_PLACE_LPT}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (strcmp(value, list[i].name) == 0) {
            g->policy = list[i].name;
            g->desc.policy = list[i].policy;
            return;
        }
    cli_die(CLI_USAGE, "--policy %s: best, eplb, eplb-global, eplb-hierarchical, trtllm or lpt",
            cli_printable(value));
}

static void take_option(cli_diagnose *g, cli_common *common, int *exit_code, int option,
                        const char *value)
{
    switch (option) {
    case O_CURRENT:
        g->current = value;
        return;
    case O_POLICY:
        take_policy(g, value);
        return;
    case O_IMPROVED:
        g->desc.min_improved = cli_option_number("min-improved", value, 0.0, 1.0);
        return;
    case O_STEPS:
        g->min_steps_given = 1;
        g->desc.min_steps = (int32_t)cli_option_count("min-steps", value, 1, INT32_MAX);
        return;
    case O_SIGMAS:
        g->desc.min_sigmas = cli_option_number("min-sigmas", value, 0.0, 1e6);
        return;
    case O_PAUSE:
        g->desc.pause_s = 1e-3 * cli_option_number("pause-ms", value, 0.0, 1e9);
        return;
    case O_SPEED:
        g->desc.move_Bps = 1e9 * cli_option_number("move-gbps", value, 1e-6, 1e9);
        return;
    case O_EXIT:
        *exit_code = 1;
        return;
    default:
        if (!cli_setup_option(&g->setup, option, value))
            (void)cli_common_option(common, option, value, diagnose_help);
    }
}

/* ---- figures ------------------------------------------------------------------------------------------- */

/* The map says devices and slots where the options do not. */
static cli_map read_current(cli_diagnose *g)
{
    cli_map m = cli_map_read(g->current);
    if (g->setup.devices == 0) g->setup.devices = m.devices;
    cli_map_check_even(&m, g->setup.devices, g->setup.slots);
    if (g->setup.slots == 0) {
        g->setup.slots = m.slots;
        g->setup.slots_of = g->current;
    }
    return m;
}

static moe_ep_diagnosis ask(const cli_diagnose *g, const cli_window *judge, moe_ep_placement *plan)
{
    moe_ep_diagnose_desc d = g->desc;
    moe_ep_diagnosis out;
    moe_ep_error err;
    d.judge_loads = judge->steps > 0 ? judge->loads : NULL;
    d.judge_steps = judge->steps;
    cli_check(moe_ep_diagnose(&d, plan, &out, NULL, &err), &err, "diagnosis");
    return out;
}

/* Whether the planner has a plan without copies: EPLB wants as many slots on every device. */
static int can_do_without(const cli_diagnose *g)
{
    int equal = g->desc.policy == MOE_EP_PLACE_EPLB_GLOBAL || g->desc.policy == MOE_EP_PLACE_EPLB_HIERARCHICAL ||
                g->desc.policy == MOE_EP_PLACE_TRTLLM;
    return !equal || g->r.E % g->setup.devices == 0;
}

static void fill_desc(cli_diagnose *g)
{
    const cli_report *r = &g->r;
    moe_ep_diagnose_desc *d = &g->desc;
    g->layer = cli_report_layer(r, cli_report_batch(r), g->setup.devices, g->setup.nodes);
    g->layer.model = &g->setup.whole;
    if (g->policy && strcmp(g->policy, "eplb") == 0) d->policy = cli_setup_eplb(&g->setup);
    if (d->policy == MOE_EP_PLACE_EPLB_HIERARCHICAL) cli_setup_hierarchical(&g->setup, g->policy);
    if (d->policy == MOE_EP_PLACE_EPLB_GLOBAL || d->policy == MOE_EP_PLACE_EPLB_HIERARCHICAL ||
        d->policy == MOE_EP_PLACE_TRTLLM)
        cli_check_slots(d->policy == MOE_EP_PLACE_TRTLLM ? "trtllm" : "EPLB",
                        g->setup.slots_of ? cli_keep(cli_format("%s has", g->setup.slots_of)) : NULL, r->E,
                        g->setup.devices, g->setup.slots);
    d->num_layers = r->L;
    d->num_experts = r->E;
    d->top_k = r->K;
    d->num_groups = g->setup.groups;
    d->router_groups = g->setup.router_groups;
    d->top_groups = g->setup.top_groups;
    d->shape = cli_shape(g->setup.devices, g->setup.slots, g->setup.nodes);
    d->current = &r->today;
    d->plan_loads = r->plan.loads;
    d->plan_steps = r->plan.steps;
    d->cost = &g->layer;
    d->other_s = g->setup.other_s;
    d->horizon_steps = g->setup.horizon_steps;
    d->min_gain = g->setup.min_gain;
    d->target_imbalance = g->setup.target;
    if (!g->min_steps_given) d->min_steps = cli_report_min_steps(r);
    if (!(d->move_Bps > 0.0))
        d->move_Bps = g->setup.nodes > 1 ? g->setup.machine.normal_dispatch.inter_Bps
                                         : g->setup.machine.normal_dispatch.intra_Bps;
}

/* Every judged recording by itself. */
static void judge_each(cli_diagnose *g)
{
    const cli_report *r = &g->r;
    size_t n = (size_t)r->L * (size_t)r->E;
    int32_t first = 0;
    for (int i = r->traces > 1; i < r->traces; i++) {
        cli_judged q;
        cli_window w = r->judge;
        if (r->traces > 1) {
            int32_t steps;
            w = cli_report_window(r, &r->trace[i], 0);
            steps = w.steps;
            cli_window_free(&w);
            w.steps = steps;
            w.loads = r->judge.loads + (size_t)first * n;
        }
        memset(&q, 0, sizeof q);
        q.name = r->traces > 1                               ? r->trace[i].name
                 : r->trace[0].kept_steps < r->trace[0].steps
                     ? cli_keep(cli_format("second half of the first %d", r->trace[0].kept_steps))
                     : "second half";
        q.first = first;
        q.steps = w.steps;
        q.d = ask(g, &w, NULL);
        if (r->traces == 1) cli_report_doubt_behind(r, &g->plan, &q.d);
        first += w.steps;
        arrput(g->judged, q);
        cli_progress("judging", i + 1.0, r->traces);
    }
}

static double step_imbalance(const cli_diagnose *g, const moe_ep_placement *p, int32_t step,
                             moe_ep_plan_result *layer)
{
    const cli_report *r = &g->r;
    double most = 0.0, mean = 0.0;
    moe_ep_error err;
    cli_check(moe_ep_evaluate(p, r->judge.loads + (size_t)step * (size_t)r->L * (size_t)r->E, 1,
                              layer, NULL, &err),
              &err, "evaluation");
    for (int32_t l = 0; l < r->L; l++) {
        most += layer[l].max;
        mean += layer[l].mean;
    }
    return mean > 0.0 ? most / mean : 1.0;
}

static void judge_steps(cli_diagnose *g)
{
    moe_ep_plan_result *layer = cli_alloc((size_t)g->r.L, sizeof *layer);
    g->steps = g->r.judge.steps;
    g->step_before = cli_keep_block(cli_alloc((size_t)g->steps, sizeof *g->step_before));
    g->step_after = cli_keep_block(cli_alloc((size_t)g->steps, sizeof *g->step_after));
    for (int32_t s = 0; s < g->steps; s++) {
        g->step_before[s] = step_imbalance(g, &g->r.today, s, layer);
        g->step_after[s] = step_imbalance(g, &g->plan, s, layer);
    }
    free(layer);
}

/* Rows of the bottleneck layer on each device, mean over the judged steps (planned ones without them). */
static double *device_rows(const cli_diagnose *g, const moe_ep_placement *p)
{
    const cli_report *r = &g->r;
    const cli_window *w = g->window_judged ? &r->judge : &r->plan;
    int32_t D = p->num_devices;
    double *mean = cli_alloc((size_t)r->L * (size_t)r->E, sizeof *mean);
    double *all = cli_alloc((size_t)r->L * (size_t)D, sizeof *all),
           *one = cli_keep_block(cli_alloc((size_t)D, sizeof *one));
    moe_ep_error err;
    cli_check(moe_ep_window_loads(w->loads, w->steps, r->L, r->E, 0.0, mean, &err), &err, "mean");
    cli_check(moe_ep_device_loads(p, mean, all, &err), &err, "device loads");
    memcpy(one, all + (size_t)g->d.hot_layer * (size_t)D, (size_t)D * sizeof *one);
    free(all);
    free(mean);
    return one;
}

/* One of the plans that may be the answer. */
typedef struct candidate {
    moe_ep_placement plan;
    moe_ep_diagnosis d;
    moe_ep_diagnosis trial; /* d, or where there is nothing to judge on, what its own loads say: only to choose by */
} candidate;

static candidate make_candidate(const cli_diagnose *g, int32_t slots, int compared)
{
    cli_window nothing = {0, NULL, NULL, NULL};
    cli_diagnose with = *g;
    candidate c;
    void *mem;
    with.desc.shape.num_slots = slots;
    c.plan = cli_report_placement(&g->r, &with.desc.shape, &mem);
    (void)cli_keep_block(mem);
    c.d = ask(&with, g->window_judged ? &g->r.judge : &nothing, &c.plan);
    cli_report_doubt_behind(&g->r, &c.plan, &c.d);
    c.trial = c.d;
    if (g->window_judged || !compared) return c;
    with.desc.min_steps = 1; /* as the report has it */
    c.trial = ask(&with, &g->r.judge, NULL);
    return c;
}

/* The plan that was asked for, or the better one of those without and with copies. */
static void choose_plan(cli_diagnose *g)
{
    int both = !g->slots_given && g->setup.slots > g->r.E, two = both && can_do_without(g);
    candidate with = make_candidate(g, g->setup.slots, two), without;
    g->slots = g->setup.slots;
    g->plan = with.plan;
    g->d = with.d;
    if (both && !two)
        cli_note(&g->setup, "Only the plan with %d slots was judged: without copies %d devices cannot have as many "
                            "slots each, as --policy %s wants.", g->slots, g->setup.devices, g->policy);
    if (!two) return;
    without = make_candidate(g, g->r.E, two);
    g->other = without.d;
    g->other_slots = g->r.E;
    cli_note(&g->setup, "Two plans were judged, without copies (%d slots) and with them (%d slots); --slots judges "
                        "one.  The answer is the one that is worth it; of two such the one without copies, unless "
                        "copies save 1 %% of a step more; of none such the one that saves more.", g->r.E, g->slots);
    if (cli_report_copies_pay(&without.trial, &with.trial)) return;
    g->other_slots = g->slots;
    g->other = with.d;
    g->slots = g->desc.shape.num_slots = g->r.E;
    g->plan = without.plan;
    g->d = without.d;
}

static void look(cli_diagnose *g)
{
    g->window_judged = !g->r.self_judged;
    choose_plan(g);
    cli_report_note_behind(&g->r, &g->plan, &g->setup);
    if (g->window_judged) {
        judge_each(g);
        judge_steps(g);
    }
    g->device_before = device_rows(g, &g->r.today);
    g->device_after = device_rows(g, &g->plan);
}

/* ---- sentences ------------------------------------------------------------------------------------------- */

static void add_check(cli_diagnose *g, const char *name, char *found, char *wanted, int state)
{
    cli_check_line line = {cli_keep(cli_strdup(name)), cli_keep(found), cli_keep(wanted), state};
    arrput(g->check, line);
}

static void write_checks(cli_diagnose *g)
{
    const moe_ep_diagnosis *d = &g->d;
    const moe_ep_diagnose_desc *q = &g->desc;
    add_check(g, "judged steps", g->window_judged ? cli_format("%d", d->steps) : cli_strdup("none"),
              cli_format("%d or more", q->min_steps), g->window_judged && d->steps >= q->min_steps);
    add_check(g, "max/mean today", cli_format("%.3f", d->imbalance_before),
              cli_format("above %.3f", q->target_imbalance),
              d->imbalance_before > q->target_imbalance);
    if (d->chance_imbalance > 0.0) /* known */
        add_check(g, "against chance", cli_format("%.3f", d->imbalance_before),
                  cli_format("above %.3f or a gain", d->chance_imbalance),
                  d->imbalance_before > d->chance_imbalance ? 1 : -1);
    add_check(g, "share of a step saved", cli_format("%.1f %%", 100.0 * d->gain),
              cli_format("%.1f %% or more", 100.0 * q->min_gain), d->gain >= q->min_gain);
    add_check(g, "steps that get faster",
              g->window_judged ? cli_format("%.0f %%", 100.0 * d->improved) : cli_strdup("unknown"),
              cli_format("%.0f %% or more", 100.0 * d->improved_wanted),
              g->window_judged ? d->improved >= d->improved_wanted : -1);
    if (d->gain_sd > 0.0 && q->min_sigmas > 0.0)
        add_check(g, "more than chance saves", cli_format("%.1f %%", 100.0 * d->gain),
                  cli_format("%.1f %% or more", 100.0 * q->min_sigmas * d->gain_sd),
                  g->window_judged ? d->gain >= q->min_sigmas * d->gain_sd : -1);
    add_check(g, "steps until moving is repaid",
              d->break_even_steps < 0.0 ? cli_strdup("never")
                                        : cli_strdup(cli_count(ceil(d->break_even_steps))),
              q->horizon_steps > 0.0 ? cli_format("%s or fewer", cli_count(q->horizon_steps))
                                     : cli_strdup("any number (--horizon)"),
              d->break_even_steps < 0.0 ? 0
              : q->horizon_steps > 0.0  ? d->break_even_steps <= q->horizon_steps
                                        : -1);
}

/* "without copies (64 slots)", "with 8 copies per layer (72 slots)"; malloc'd. */
static char *copies_of(const cli_diagnose *g, int32_t slots)
{
    int32_t copies = slots - g->r.E;
    if (copies == 0) return cli_format("without copies (%d slots)", slots);
    return cli_format("with %d cop%s per layer (%d slots)", copies, copies == 1 ? "y" : "ies", slots);
}

/* What the plan is, and what the other one gives. */
static char *write_beside(const cli_diagnose *g)
{
    char *this, *that, *change, *text;
    double gain = 100.0 * g->other.gain;
    if (g->other_slots == 0) return cli_strdup("");
    this = copies_of(g, g->slots);
    that = copies_of(g, g->other_slots);
    *that = (char)toupper((unsigned char)*that);
    change = gain > -0.05 ? cli_format("%.1f %% of a step saved", fmax(gain, 0.0))
                          : cli_format("a step takes %.1f %% more", -gain);
    text = cli_format("This is the plan %s. %s: %s, %s.", this, that, moe_ep_verdict_str(g->other.verdict), change);
    free(change);
    free(this);
    free(that);
    return text;
}

static void write_verdict(cli_diagnose *g)
{
    const moe_ep_diagnosis *d = &g->d;
    double saved = 100.0 * d->gain;
    const char *large = cli_large_step(&g->r);
    char *why;
    switch (d->verdict) {
    case MOE_EP_RECOMMEND:
        g->badge = "Recommend";
        g->state = "yes";
        g->headline = cli_format("Recommend: a new placement saves %.1f %% of a step%s", saved, large);
        break;
    case MOE_EP_NOT_NOW:
        g->badge = "Not now";
        g->state = "no";
        g->headline =
            saved > 0.0 ? cli_format("Not now: a new placement would save %.1f %% of a step%s", saved, large)
                        : cli_strdup("Not now: a new placement would save nothing");
        break;
    case MOE_EP_INSUFFICIENT_EVIDENCE:
    default:
        g->badge = "Insufficient evidence";
        g->state = "open";
        g->headline =
            cli_strdup(d->reason == MOE_EP_REASON_NOISE   ? "Insufficient evidence: chance alone may save as much"
                       : d->reason == MOE_EP_REASON_PAYS  ? "Insufficient evidence: later steps of the recording differ"
                       : g->window_judged                 ? "Insufficient evidence: too few steps were judged"
                                                          : "Insufficient evidence: a second window is needed");
    }
    if (d->reason == MOE_EP_REASON_NO_LOAD) {
        free(g->headline);
        g->headline = cli_strdup("Insufficient evidence: a window holds no tokens");
    }
    why = cli_reason(&g->desc, d);
    g->reason = cli_format("%c%s.%s", toupper((unsigned char)*why), why + 1, cli_report_alone(&g->r));
    free(why);
    g->beside = write_beside(g);
    write_checks(g);
}

/* The notes of the report about windows also name the rules of the report; what differs here is said. */
static void note_windows(cli_diagnose *g)
{
    if (!g->current)
        cli_note(&g->setup, "Today's placement is %s; --current MAP gives another.",
                 g->setup.round_robin ? "expert e on device e mod D" : "contiguous blocks");
    if (!(g->setup.other_s > 0.0))
        cli_note(&g->setup, "Attention and the rest of a step are not counted; --other-ms adds "
                            "them, and every share shrinks accordingly.");
    if (g->desc.pause_s > 0.0 && g->r.L < g->setup.whole.num_moe_layers)
        cli_note(&g->setup, "Of the pause, which is for all %d layers, the share of the %d recorded counts.",
                 g->setup.whole.num_moe_layers, g->r.L);
}

int cli_diagnose_main(int argc, char **argv)
{
    static const cli_writers writers = {cli_diagnose_text, cli_diagnose_json, cli_diagnose_html};
    cli_diagnose g;
    cli_common common;
    cli_out page;
    cli_trace *list;
    cli_map map;
    char *left_out;
    int option, exit_code = 0;
    memset(&g, 0, sizeof g);
    memset(&common, 0, sizeof common);
    common.screen.color = "auto";
    moe_ep_diagnose_thresholds(&g.desc);
    g.setup.target = g.desc.target_imbalance;
    g.setup.min_gain = g.desc.min_gain;
    while ((option = cli_option(argc, argv, diagnose_long, NULL)) != -1)
        take_option(&g, &common, &exit_code, option, optarg);
    if (g.current && g.setup.round_robin) cli_die(CLI_USAGE, "--current and --round-robin: one of them");
    cli_check_form(&common, NULL);
    cli_open_page(&common, &page, argc, argv, optind);
    list = cli_read_all(argc, argv, optind, &common.read, 1, &left_out);
    g.slots_given = g.setup.slots > 0;
    if (g.current) map = read_current(&g);
    cli_report_settle(&g.r, list, (int)arrlen(list), left_out, &g.setup);
    if (g.current)
        g.r.today = cli_map_placement(&map, list, cli_keep_block(cli_map_rows(&map, list, &g.setup)), g.setup.devices,
                                      g.setup.nodes);
    fill_desc(&g);
    note_windows(&g);
    look(&g);
    write_verdict(&g);
    cli_progress_end();
    cli_write_all(&common, &page, &g, &writers);
    cli_report_free(&g.r);
    cli_traces_free(list);
    if (g.current) cli_map_free(&map);
    arrfree(g.judged);
    arrfree(g.check);
    free(g.headline);
    free(g.reason);
    free(g.beside);
    free(g.setup.assumed);
    if (!exit_code) return CLI_OK;
    return g.d.verdict == MOE_EP_NOT_NOW                 ? EXIT_NOT_NOW
           : g.d.verdict == MOE_EP_INSUFFICIENT_EVIDENCE ? EXIT_INSUFFICIENT
                                                         : CLI_OK;
}
