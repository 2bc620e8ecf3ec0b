/* cli_words.c - the report in sentences
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_map.h"
#include "cli_report.h"
#include "cli_rows.h"

#include <ctype.h>
#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

const char cli_other_loads[] = "Planned on some loads, judged on others: a plan that is best on the ones it was made "
                               "from need not lead on the others.";

/* Recorded (token, expert) assignments. */
static double rows_of(const cli_report *r, const cli_trace *t)
{
    double rows = 0.0;
    for (size_t i = 0; i < (size_t)r->L * (size_t)r->E; i++) rows += t->loads[i];
    return rows;
}

static void add_line(cli_report *r, const char *name, char *value, char *meaning)
{
    cli_line line = {cli_strdup(name), value, meaning};
    arrput(r->line, line);
}

/* ---- why --------------------------------------------------------------------------------------------- */

char *cli_after_steps(double steps)
{
    if (steps <= 1.0) return cli_strdup("within the first step");
    return cli_format("after %s steps", cli_count(ceil(steps)));
}

static char *step_change(const moe_ep_diagnosis *o)
{
    char *before = o->before_s > 0.0 ? cli_strdup(cli_seconds(o->before_s))
                                     : cli_format("%s rows", cli_count(o->before_rows));
    char *after = o->before_s > 0.0 ? cli_strdup(cli_seconds(o->after_s))
                                    : cli_format("%s rows", cli_count(o->after_rows));
    char *text = cli_format("a step goes from %s to %s (%.1f %% %s)", before, after, 100.0 * fabs(o->gain),
                            o->gain < 0.0 ? "more" : "less");
    free(before);
    free(after);
    return text;
}

static char *pays(const moe_ep_diagnosis *o, const char *change)
{
    char *share = o->improved < 1.0 ? cli_format("%.1f %% of %s judged steps", 100.0 * o->improved, cli_count(o->steps))
                  : o->steps == 1   ? cli_strdup("the one judged step")
                                    : cli_format("every one of %s judged steps", cli_count(o->steps));
    char *when = cli_after_steps(o->break_even_steps);
    char *text = cli_format("%s, faster in %s, moving %s experts%s%s", change, share, cli_count((double)o->moves),
                            o->break_even_steps > 0.0 ? ", paid back " : "", o->break_even_steps > 0.0 ? when : "");
    free(share);
    free(when);
    return text;
}

char *cli_chance_words(const char *words, double chance, int decimals)
{
    return chance > 0.0 ? cli_format("%s %.*f", words, decimals, chance) : cli_strdup("chance not known");
}

double cli_chance_number(const moe_ep_diagnosis *d)
{
    return d->chance_imbalance > 0.0 ? d->chance_imbalance : (double)NAN;
}

int cli_only_chance(const moe_ep_diagnosis *d)
{
    return d->verdict == MOE_EP_INSUFFICIENT_EVIDENCE && d->reason == MOE_EP_REASON_CHANCE;
}

double cli_gain_sd_number(const moe_ep_diagnosis *d)
{
    return d->chance_imbalance > 0.0 ? d->gain_sd : (double)NAN;
}

char *cli_reason(const moe_ep_diagnose_desc *d, const moe_ep_diagnosis *o)
{
    char *change = step_change(o), *text = NULL, *when;
    switch (o->reason) {
    case MOE_EP_REASON_NO_JUDGE_WINDOW:
        text = cli_format("there is no second window: a plan must be judged on loads it was not made from; on its "
                          "own window %s",
                          change);
        break;
    case MOE_EP_REASON_NO_LOAD:
        text = cli_strdup("a window holds no tokens, so nothing can be said");
        break;
    case MOE_EP_REASON_FEW_STEPS:
        text = cli_format("%d judged step%s fewer than the %d asked for; on %s %s", o->steps,
                          o->steps == 1 ? " is" : "s are", d->min_steps, o->steps == 1 ? "it" : "them", change);
        break;
    case MOE_EP_REASON_BALANCED:
        text = cli_format("the busiest device has %.3f times the mean, within the %.3f that is good enough",
                          o->imbalance_before, d->target_imbalance);
        break;
    case MOE_EP_REASON_CHANCE:
        if (cli_only_chance(o)) {
            text = cli_format("the busiest device has %.2f times the mean, no more than the %.2f that even routing of "
                              "as many tokens as were recorded gives by chance: that a plan saves %.1f %% on the loads "
                              "that it was made from says nothing",
                              o->imbalance_before, o->chance_imbalance, 100.0 * o->gain);
            break;
        }
        text = cli_format("the busiest device has %.2f times the mean, no more than the %.2f that even routing of so "
                          "few tokens gives by chance; larger batches help, %s",
                          o->imbalance_before, o->chance_imbalance,
                          o->gain > 0.0 ? cli_keep(cli_format("the plan saves only %.1f %%", 100.0 * o->gain))
                                        : "a plan does not");
        break;
    case MOE_EP_REASON_SMALL_GAIN:
        text = cli_format("the plan saves too little: %s, wanted at least %.1f %%", change, 100.0 * d->min_gain);
        break;
    case MOE_EP_REASON_UNRELIABLE:
        text = cli_format("the plan helps in only %.1f %% of the steps, wanted %.1f %%: the load shifts faster than "
                          "the plan",
                          100.0 * o->improved, 100.0 * o->improved_wanted);
        break;
    case MOE_EP_REASON_NOISE:
        text = cli_format("%s, but in so few steps chance moves that by %.1f %%; more of them would tell", change,
                          100.0 * d->min_sigmas * o->gain_sd);
        break;
    case MOE_EP_REASON_BREAK_EVEN:
        when = cli_after_steps(o->break_even_steps);
        text = cli_format("moving %s experts is paid back %s, but the plan will serve only %s",
                          cli_count((double)o->moves), when, cli_count(d->horizon_steps));
        free(when);
        break;
    case MOE_EP_REASON_PAYS:
        text = pays(o, change);
        if (o->verdict != MOE_EP_RECOMMEND) {
            char *but = cli_format("%s; but of the steps behind them, of which only the sum is known, the plan keeps "
                                   "less than half of that", text);
            free(text);
            text = but;
        }
        break;
    default:
        text = cli_strdup(o->text);
    }
    free(change);
    return text;
}

int cli_stays_hot(double hot_share) { return hot_share > 0.5; }

char *cli_bottleneck(const moe_ep_diagnosis *d, int32_t layer)
{
    if (cli_stays_hot(d->hot_share))
        return cli_format("Device %d is the bottleneck: in layer %d it carries %.2f times its share", d->hot_device,
                          layer, d->hot_own);
    return cli_format("No device stays the busiest: the busiest of layer %d has %.2f times the mean on average", layer,
                      d->hot_imbalance);
}

/* The first letter made a capital. */
static char *sentence(char *text)
{
    *text = (char)toupper((unsigned char)*text);
    return text;
}

static const char *and_copies(const cli_report *r)
{
    return r->chosen == &r->one ? "no copies" : cli_keep(cli_format("%d copies", r->slots - r->E));
}

/* The judged recording that a plan of its own would serve much better; NULL when there is none. */
static const cli_shift_row *furthest(const cli_report *r)
{
    const cli_shift_row *far = NULL;
    for (int i = 1; i < r->traces; i++) {
        const cli_shift_row *s = &r->shift[i];
        if (s->planned - s->own < 0.5 * (s->planned - 1.0))
            continue; /* its own plan halves the excess */
        if (!far || s->planned - s->own > far->planned - far->own) far = s;
    }
    return far;
}

static char *headline(const cli_report *r)
{
    const moe_ep_diagnosis *d = r->chosen;
    const cli_shift_row *far = furthest(r);
    int runs = r->one.moves == 0 || r->copies.moves == 0; /* what would be planned is there */
    double saved = d->gain > 0.0 ? 100.0 * d->gain : 0.0;
    const char *large = cli_large_step(r);
    const char *hot = cli_stays_hot(d->hot_share)
                          ? cli_keep(cli_format("Device %d holds everybody up", d->hot_device))
                          : "No device stays the busiest";
    if (!(r->batch > 0.0)) return cli_strdup("The judged steps hold no tokens: nothing can be said of a placement");
    if (r->recommend)
        return cli_format("%s; a new placement %s %.0f %% of %s step%s", hot, r->self_judged ? "should save" : "saves",
                          saved, *large ? "a" : "every", large);
    if (cli_only_chance(d))
        return cli_strdup("The unevenness is no more than chance gives; a second recording is needed to tell");
    if (d->verdict == MOE_EP_INSUFFICIENT_EVIDENCE)
        return cli_format("%s; a new placement might save %.0f %%%s%s, on thin evidence", hot, saved,
                          *large ? " of a step" : "", large);
    if (runs && far)
        return cli_format("The plan made on %s is what runs; it does not carry over to %s", r->trace[0].name,
                          r->judged_on);
    if (runs) return cli_strdup("Leave the placement as it is: it is the plan that these loads give");
    if (far && d->gain < r->setup->min_gain)
        return cli_format(
            "A plan made on %s does not carry over to %s: it would save %.1f %% of a step%s",
            r->trace[0].name, r->judged_on, saved, large);
    if (d->gain < 0.005)
        return cli_strdup("Leave the placement as it is: a new one would save nothing that counts");
    return cli_format("Leave the placement as it is: a new one would save %.1f %% of a step%s",
                      saved, large);
}

/* "The best placement brings max/mean over devices from 2.88 to 1.41 without copies and to 1.36 with 32 ..." */
static char *best_placement(const cli_report *r)
{
    const moe_ep_diagnosis *one = &r->one;
    int same = fabs(one->imbalance_before - one->imbalance_after) < 0.005;
    char *copies = r->slots > r->E ? cli_format(" and %s %.2f with %d copies per layer", same ? "at" : "to",
                                                r->copies.imbalance_after, r->slots - r->E)
                                   : cli_strdup("");
    char *text = same
                     ? cli_format("The best placement leaves max/mean over devices at %.2f without copies%s",
                                  one->imbalance_after, copies)
                     : cli_format("The best placement brings max/mean over devices from %.2f to %.2f without copies%s",
                                  one->imbalance_before, one->imbalance_after, copies);
    free(copies);
    return text;
}

const char *cli_report_alone(const cli_report *r)
{
    return r->equal && r->traces == 1 ? cli_keep(cli_format(" %s", r->equal)) : "";
}

/* What holds the steps up, what that costs, and what could be done; malloc'd. */
static char *verdict(const cli_report *r)
{
    const moe_ep_diagnosis *d = r->chosen;
    char *best, *text, *where;
    double cost = d->before_s > 0.0 ? 100.0 * (1.0 - d->balanced_s / d->before_s) : 0.0;
    if (!(r->batch > 0.0))
        return cli_strdup("Where no tokens are, no device is the bottleneck and no step takes time: the figures below "
                          "are those of nothing. Judge on steps that hold tokens.");
    best = best_placement(r);
    where = cli_bottleneck(d, r->layer[r->hot].number);
    text = cli_format("%s. Uneven load costs %.1f %% of each step (balance efficiency %.0f %%). "
                      "%s; with %s the step goes from %s to %s, %.1f %% %s.",
                      where, cost, 100.0 / d->imbalance_before, best, and_copies(r), cli_seconds(d->before_s),
                      cli_seconds(d->after_s), fabs(100.0 * d->gain), d->gain < 0.0 ? "more" : "less");
    free(where);
    free(best);
    return text;
}

static void write_verdict(cli_report *r)
{
    const moe_ep_diagnosis *d = r->chosen;
    moe_ep_diagnose_desc limits = cli_report_thresholds(r);
    char *why;
    r->headline = headline(r);
    r->verdict = verdict(r);
    r->badge = r->recommend ? (r->self_judged ? "Worth a trial, if a second recording agrees"
                                              : "Recommended")
               : d->verdict == MOE_EP_INSUFFICIENT_EVIDENCE ? "Not enough evidence"
                                                            : "Not now";
    why = sentence(cli_reason(&limits, d));
    r->reason = cli_format(
        "%s.%s%s", why,
        r->self_judged
            ? " Judged on the window it was planned on; give a second recording to make it firm."
            : "",
        cli_report_alone(r));
    free(why);
}

static void write_lines(cli_report *r)
{
    const cli_setup *s = r->setup;
    const cli_trace *t = &r->trace[0];
    const cli_layer_row *hot = &r->layer[r->hot];
    const moe_ep_diagnosis *d = r->chosen;
    const char *shown = cli_shown_name(r); /* begins with a space */
    int64_t batch = cli_report_batch(r);
    moe_ep_balance_result b;
    moe_ep_error err;
    cli_check(
        moe_ep_balance_d(r->shown_loads + (size_t)r->hot * (size_t)r->E, r->E, &b, NULL, &err),
        &err, "balance");
    add_line(
        r, "loads", cli_format("%s rows in %d layer%s", cli_count(rows_of(r, t)), r->L, r->L == 1 ? "" : "s"),
        cli_format(
            "%s, %d experts, top-%d%s%s", t->name, r->E, r->K,
            t->skipped > 0
                ? cli_keep(cli_format("; %s choices were -1 and skipped", cli_count((double)t->skipped)))
                : "",
            *r->left_out ? cli_keep(cli_format("; layers without load, left out: %s", r->left_out)) : ""));
    add_line(
        r, "experts", cli_format("max/mean %.2f in layer %d", hot->expert_imbalance, hot->number),
        cli_format("%s%schance alone: %.2f, 95 %% below %.2f; CV %.2f, Gini %.2f, %d unused expert%s",
                   *shown ? shown + 1 : "", *shown ? "; " : "", r->chance.max_over_mean, r->chance.p95, b.cv_population,
                   b.gini, hot->dead, hot->dead == 1 ? "" : "s"));
    add_line(r, "devices",
             cli_format("max/mean %.2f, device %d", d->imbalance_before, d->hot_device),
             cli_format("all layers together; %s; device %d is the busiest of layer %d in %.0f %% of the steps",
                        cli_keep(cli_chance_words("chance alone up to", d->chance_imbalance, 2)), d->hot_device,
                        hot->number, 100.0 * d->hot_share));
    add_line(r, "bound", cli_format("%.3f with %d slots", r->one.imbalance_bound, r->E),
             cli_format("no placement with these slots on each device gets below; %.3f with %d slots",
                        r->copies.imbalance_bound, r->slots));
    add_line(r, "best placement", cli_format("max/mean %.3f, no copies", r->one.imbalance_after),
             cli_format("%s experts change their device", cli_count((double)r->one.moves)));
    if (r->slots > r->E)
        add_line(r, "with copies",
                 cli_format("max/mean %.3f, %d copies", r->copies.imbalance_after, r->slots - r->E),
                 cli_format("per layer; %s more on each device", cli_bytes(r->copy_bytes)));
    add_line(r, "copies needed",
             r->fewest_copies < 0 ? cli_format("none up to %d", r->curve[r->curve_points - 1].extra)
                                  : cli_format("%s%d per layer", r->copies_step > 1 ? "at most " : "",
                                               r->fewest_copies),
             cli_format("for max/mean %.2f in the worst layer, on the planning loads%s", s->target,
                        r->copies_step > 1 ? cli_format(" (tried in steps of %d; moe-ep copies says exactly)",
                                                        r->copies_step)
                                           : ""));
    add_line(r, "step time",
             cli_format("%s -> %s", cli_seconds(d->before_s), cli_seconds(d->after_s)),
             cli_format("predicted, %s on %s, %s token%s; balanced %s%s", s->model.name,
                        s->machine.name, cli_count((double)batch), batch == 1 ? "" : "s",
                        cli_seconds(d->balanced_s),
                        r->prefill_sized ? cli_keep(cli_format("; %s tokens per device is prefill-sized; for "
                                                               "decode give --tokens",
                                                               cli_count((double)batch / s->devices)))
                                         : ""));
    add_line(r, "switching",
             cli_format("%s moves, %s", cli_count((double)d->moves), cli_bytes(d->move_bytes)),
             d->break_even_steps < 0.0
                 ? cli_strdup("never paid back")
                 : cli_format("%s of moving, paid back %s", cli_seconds(d->move_s),
                              cli_keep(cli_after_steps(d->break_even_steps))));
    add_line(r, "verdict", cli_strdup(r->badge), cli_strdup(r->reason));
}

static void write_hints(cli_report *r)
{
    const moe_ep_diagnosis *o = &r->one, *c = &r->copies;
    if (r->regime == MOE_EP_REGIME_WEIGHTS && o->before_s > 0.0 && o->imbalance_before < 1.005)
        arrput(r->hint, cli_strdup("No device has more than the mean rows: balance has nothing to gain. At this batch "
                                   "a device waits for the weights of its experts, not for rows; more tokens per step "
                                   "use them better."));
    else if (r->regime == MOE_EP_REGIME_WEIGHTS && o->before_s > 0.0)
        arrput(r->hint, cli_format("The busiest device has %.2f times the mean rows, but the step "
                                   "takes only %.2f times "
                                   "the balanced time: at this batch a device waits for the "
                                   "weights of its experts, not "
                                   "for rows. More tokens per step make balance worth more.",
                                   o->imbalance_before, o->before_s / o->balanced_s));
    if (r->regime == MOE_EP_REGIME_NETWORK)
        arrput(r->hint,
               cli_strdup(
                   "Dispatch and combine take longer than the experts: the bytes to and from the "
                   "busiest device set the pace, not its multiplications."));
    if (r->slots > r->E && c->imbalance_after >= o->imbalance_after) {
        arrput(r->hint,
               cli_format("Copies do not help here: max/mean %.2f with them, %.2f without.",
                          c->imbalance_after, o->imbalance_after));
    } else if (r->slots > r->E && o->imbalance_before > o->imbalance_after) {
        double all = o->imbalance_before - c->imbalance_after;
        double moved = o->imbalance_before - o->imbalance_after;
        arrput(r->hint,
               cli_format("Moving experts alone, without a byte of memory, brings %.0f %% of "
                          "the balance that copies bring.",
                          100.0 * moved / all));
    }
    if (r->traces > 1) {
        const cli_shift_row *w = &r->shift[1];
        for (int i = 2; i < r->traces; i++)
            if (r->shift[i].correlation < w->correlation) w = &r->shift[i];
        arrput(r->hint,
               cli_format(
                   "%s differs most from %s: correlation %.2f, and %.0f %% of the hottest "
                   "experts are the same. The plan from %s brings max/mean to %.2f there, a plan "
                   "of its own to %.2f (%.1f %% of a step saved).",
                   w->name, r->trace[0].name, w->correlation, 100.0 * w->overlap, r->trace[0].name,
                   w->planned, w->own, 100.0 * w->own_gain));
    }
    if (r->layer[r->hot].expert_imbalance <= r->chance.p95)
        arrput(r->hint, cli_format("The hottest expert of layer %d%s is no hotter than chance makes "
                                   "it: a larger batch helps more than a new placement.",
                                   r->layer[r->hot].number, cli_shown_name(r)));
    if (!(r->setup->other_s > 0.0))
        arrput(r->hint, cli_strdup("Attention and the rest of the step are not counted; --other-ms "
                                   "adds them, and every share above shrinks accordingly."));
}

/* ---- what to do now ----------------------------------------------------------------------------------- */

static void add_next(cli_report *r, char *what, char *command)
{
    cli_next n = {what, command};
    arrput(r->next, n);
}

/* The recording that was planned on, with the options that read it. */
static char *plan_input(const cli_report *r)
{
    const char *given = r->setup->only ? r->setup->only : "";
    char *path = cli_shell_word(r->trace[0].path), *name, *text;
    int several = 0;
    for (int i = 1; i < r->traces; i++) several |= strcmp(r->trace[i].path, r->trace[0].path) == 0;
    name = cli_shell_word(several ? r->trace[0].name : given);
    text = cli_format("%s%s%s%s", path, several || *given ? " --only " : "", several || *given ? name : "",
                      r->setup->read_args ? r->setup->read_args : "");
    free(path);
    free(name);
    return text;
}

/* Where another command might take another number of nodes. */
static char *nodes_args(const cli_setup *s)
{
    return s->nodes_given || s->nodes > 1 || s->devices > 8 ? cli_format(" --nodes %d", s->nodes) : cli_strdup("");
}

static char *shape_args(const cli_report *r)
{
    char *nodes = nodes_args(r->setup);
    char *text = cli_format("--devices %d --slots %d%s", r->setup->devices, r->chosen == &r->one ? r->E : r->slots,
                            nodes);
    free(nodes);
    return text;
}

/* The sizes that were given instead of the model's. */
static char *size_args(const cli_setup *s)
{
    char *hidden = s->hidden > 0 ? cli_format(" --hidden %d", s->hidden) : cli_strdup(""), *text;
    text = s->intermediate > 0 ? cli_format("%s --intermediate %d", hidden, s->intermediate) : cli_strdup(hidden);
    free(hidden);
    return text;
}

/* The options that rebalance needs for the report's bytes and times. */
static char *cost_args(const cli_setup *s)
{
    char *model = s->model_name ? cli_shell_word(s->model_name) : NULL, *sizes = size_args(s);
    char *machine = strcmp(s->machine_name, moe_ep_machine_preset_name(0)) ? cli_shell_word(s->machine_name) : NULL;
    char *text = cli_format("%s%s%s%s%s", model ? " --model " : "", model ? model : "", sizes,
                            machine ? " --machine " : "", machine ? machine : "");
    free(model);
    free(sizes);
    free(machine);
    return text;
}

static void next_change(cli_report *r, const char *input, const char *shape)
{
    char *cost = cost_args(r->setup);
    int trtllm = cli_is_statistics(r->trace[0].path);
    int32_t copies = r->chosen == &r->one ? 0 : r->slots - r->E;
    char *map = r->setup->map ? cli_shell_word(r->setup->map->path) : NULL;
    char *nodes = nodes_args(r->setup), *devices = cli_format("--devices %d%s", r->setup->devices, nodes);
    char *groups = r->setup->groups > 0 ? cli_format(" --groups %d", r->setup->groups) : cli_strdup("");
    char *redundant = copies > 0 ? cli_format(" with --ep-num-redundant-experts %d", copies) : cli_strdup("");
    if (trtllm)
        add_next(r, cli_strdup("Write the plan; TensorRT-LLM loads it as moe_config: load_balancer: plan.yaml:"),
                 cli_format("moe-ep place %s %s%s --out plan.yaml", input, shape, groups));
    else
        add_next(r, cli_format("Write the plan; SGLang loads it as --init-expert-location plan.json%s:", redundant),
                 cli_format("moe-ep place %s %s%s --out plan.json", input, shape, groups));
    if (r->setup->round_robin)
        add_next(r, cli_strdup("What runs today as a map, for the next line:"),
                 cli_format("moe-ep place %s %s --policy round-robin --out today.csv", input, devices));
    add_next(r,
             cli_format("Or change what runs with far fewer moves than the %s of a full replan:",
                        cli_count((double)r->chosen->moves)),
             cli_format("moe-ep rebalance %s%s%s %s%s --out plan.%s",
                        map                     ? map
                        : r->setup->round_robin ? "today.csv"
                                                : "",
                        map || r->setup->round_robin ? " " : "", input, map ? devices : shape,
                        cost, trtllm ? "yaml" : "json"));
    free(cost);
    free(map);
    free(nodes);
    free(devices);
    free(redundant);
    free(groups);
}

/* " NAME VALUE" appended to text, which is freed, unless the value is the one that holds without it. */
static char *with_option(char *text, const char *name, double value, double otherwise)
{
    char *longer;
    if (!(value != otherwise)) return text;
    longer = cli_format("%s %s %.15g", text, name, value);
    free(text);
    return longer;
}

/* What else the report was asked for: the steps and what they are judged by. */
static char *judge_args(const cli_setup *s)
{
    moe_ep_diagnose_desc d;
    char *text = cli_strdup(s->round_robin ? " --round-robin" : "");
    memset(&d, 0, sizeof d);
    moe_ep_diagnose_thresholds(&d);
    text = with_option(text, "--groups", s->groups, 0);
    text = with_option(text, "--tokens", (double)s->tokens, 0);
    text = with_option(text, "--min-gain", s->min_gain, d.min_gain);
    text = with_option(text, "--other-ms", 1e3 * s->other_s, 0);
    text = with_option(text, "--target", s->target, d.target_imbalance);
    return with_option(text, "--horizon", s->horizon_steps, 0);
}

static void write_next(cli_report *r)
{
    const cli_setup *s = r->setup;
    char *input = plan_input(r), *shape = shape_args(r), *model = cli_shell_word(s->model.name);
    char *machine = cli_shell_word(s->machine.name);
    char *map = s->map ? cli_shell_word(s->map->path) : NULL;
    char *nodes = s->nodes_given ? nodes_args(s) : cli_strdup("");
    char *judge = judge_args(s);
    char *sizes = size_args(s), *choices = with_option(cli_strdup(""), "--topk", s->top_k, 0);
    char *report = cli_format("moe-ep report %s NEW --devices %d --slots %d%s%s%s --model %s%s%s --machine %s%s%s",
                              input, s->devices, r->slots, nodes, map ? " --current " : "", map ? map : "", model,
                              choices, sizes, machine, cli_kernels_args(s), judge);
    if (r->self_judged)
        add_next(r, cli_strdup("Judge the plan on a second recording, NEW:"), cli_strdup(report));
    if (r->recommend)
        next_change(r, input, shape);
    else if (!r->self_judged)
        add_next(r,
                 cli_strdup("Change nothing now; when the traffic has changed, ask again with a recording of it, "
                            "NEW:"),
                 cli_strdup(report));
    free(report);
    free(choices);
    free(sizes);
    free(judge);
    free(nodes);
    free(map);
    free(machine);
    free(model);
    free(shape);
    free(input);
}

static void write_input_line(cli_report *r)
{
    const cli_setup *s = r->setup;
    int64_t batch = cli_report_batch(r);
    char *names = cli_strdup(r->trace[0].name);
    if (r->traces > 1) {
        char *more = cli_format("%s (planned on), %s (judged on)", names, r->judged_on);
        free(names);
        names = more;
    }
    r->input_line = cli_format(
        "%s \xc2\xb7 %d MoE layer%s%s%s%s \xc2\xb7 %d experts, top-%d \xc2\xb7 %d devices, %d "
        "slots, %d node%s \xc2\xb7 %s token%s per step \xc2\xb7 %s on %s",
        names, r->L, r->L == 1 ? "" : "s", *r->left_out ? " (without load and left out: " : "", r->left_out,
        *r->left_out ? ")" : "", r->E, r->K, s->devices, r->slots, s->nodes,
        s->nodes == 1 ? "" : "s", cli_count((double)batch), batch == 1 ? "" : "s", s->model.name, s->machine.name);
    free(names);
}

void cli_report_words(cli_report *r)
{
    write_input_line(r);
    write_verdict(r);
    write_lines(r);
    write_hints(r);
    write_next(r);
}
