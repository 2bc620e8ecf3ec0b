/* cli_report.c - every number of the report, by calls of the library
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_report.h"

#include "chart.h"
#include "cli_map.h"
#include "cli_options.h"

#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

enum { PREFILL_TOKENS = 4096, DECODE_TOKENS = 128 };
enum { MOST_TOKENS = 65536, MAX_STEPS = CLI_KEPT_STEPS, MAX_FINE = 128, NORMAL_KERNELS = 512 };

static const char *tokens_word(int64_t n) { return n == 1 ? "token" : "tokens"; }

double cli_scaled_tokens(double recorded, int32_t devices)
{
    return recorded > (double)MOST_TOKENS * devices ? (double)PREFILL_TOKENS * devices : 0.0;
}

static double total_of(const double *v, size_t n)
{
    double total = 0.0;
    for (size_t i = 0; i < n; i++) total += v[i];
    return total;
}

/* Tokens behind rows of all layers. */
static double tokens_of(const cli_report *r, double rows)
{
    return rows / r->L / r->K;
}

/* Whether the steps hold parts of a whole instead of counts: those have no tokens to join. */
static int are_shares(const cli_report *r, const cli_trace *t)
{
    size_t n = (size_t)r->L * (size_t)r->E;
    if (tokens_of(r, total_of(t->loads, n)) > 1.001 * t->steps) return 0;
    for (size_t i = 0; i < (size_t)t->kept_steps * n; i++)
        if (t->step_loads[i] > 0.0 && t->step_loads[i] < 1.0) return 1;
    return 0;
}

/* Tokens behind all of a recording; 0 where its loads are parts of a whole and stand for none. */
static double held_tokens(const cli_report *r, const cli_trace *t)
{
    return are_shares(r, t) ? 0.0 : tokens_of(r, total_of(t->loads, (size_t)r->L * (size_t)r->E));
}

/* Tokens per step: what the caller says, what is recorded, a quarter of ids without steps, or for counts without
 * steps what they hold, at most a prefill batch: more rows than were recorded would hide what chance does to few. */
static void settle_tokens(cli_report *r, cli_setup *s)
{
    const cli_trace *t = &r->trace[0];
    int64_t recorded = cli_recorded_step(t, r->K);
    double held = held_tokens(r, t);
    r->tokens = s->tokens;
    if (r->tokens > 0) return;
    r->rescaled = recorded > (int64_t)MOST_TOKENS * s->devices;
    if (recorded > 0 && !r->rescaled) {
        r->tokens = recorded;
        cli_note(s, "Steps as recorded, %s %s on average%s.", cli_count((double)r->tokens), tokens_word(r->tokens),
                 t->ids ? "; --tokens cuts others from the recording in order" : "");
    } else if (t->ids) {
        r->tokens = t->kept / 4 > 0 ? t->kept / 4 : 1;
        if (r->tokens > (int64_t)PREFILL_TOKENS * s->devices)
            r->tokens = (int64_t)PREFILL_TOKENS * s->devices;
        if (r->rescaled)
            cli_note(s, "The recorded steps hold %s tokens each, more than one step can.", cli_count((double)recorded));
        cli_note(s,
                 "Steps of %s tokens over all devices, cut from the recording in order; --tokens "
                 "changes it.",
                 cli_count((double)r->tokens));
    } else if (r->rescaled) {
        r->tokens = (int64_t)PREFILL_TOKENS * s->devices;
        r->prefill_sized = 1;
        cli_note(s,
                 "The recorded steps hold %s tokens each, more than one step can: taken as sums over many steps "
                 "and scaled to %s tokens, %s per device.  That is prefill-sized; for decode give --tokens.",
                 cli_count((double)recorded), cli_count((double)r->tokens), cli_count(PREFILL_TOKENS));
    } else if (held > 0.0 && held < (double)PREFILL_TOKENS * s->devices) {
        r->tokens = held < 1.0 ? 1 : (int64_t)(held + 0.5);
        r->one_step = 1;
        cli_note(s, "The recording says nothing of steps and holds %s %s: taken as one step; --tokens scales it to "
                    "another.", cli_count((double)r->tokens), tokens_word(r->tokens));
    } else {
        r->tokens = (int64_t)PREFILL_TOKENS * s->devices;
        cli_note(s,
                 "The recording is one sum over many steps: scaled to steps of %s tokens, %s per "
                 "device; single steps scatter more.  That is prefill-sized; for decode give --tokens.",
                 cli_count((double)r->tokens), cli_count(PREFILL_TOKENS));
        r->prefill_sized = 1;
    }
}

/* ---- recordings -> steps --------------------------------------------------------------------- */

static cli_window new_window(const cli_report *r, int64_t steps)
{
    cli_window w;
    w.steps = (int32_t)steps;
    w.loads = cli_alloc((size_t)steps * (size_t)r->L * (size_t)r->E, sizeof *w.loads);
    w.tokens = cli_alloc((size_t)steps, sizeof *w.tokens);
    w.recorded = cli_alloc((size_t)steps, sizeof *w.recorded);
    return w;
}

void cli_window_free(cli_window *w)
{
    free(w->loads);
    free(w->tokens);
    free(w->recorded);
    memset(w, 0, sizeof *w);
}

/* Steps of `tokens` tokens from kept ids, in order; what does not fill a step at the end is left out.  Of more than can
 * be looked at some are taken, evenly spread: the first half of them is of the first half of the recording. */
static cli_window cut_ids(const cli_report *r, const cli_trace *t, int64_t tokens)
{
    cli_window w;
    size_t n = (size_t)r->L * (size_t)r->E;
    int64_t all = t->kept / tokens, steps = all > MAX_STEPS ? MAX_STEPS : all, *counts = cli_alloc(n, sizeof *counts);
    moe_ep_error err;
    w = new_window(r, steps);
    for (int64_t s = 0; s < steps; s++) {
        moe_ep_ids view = moe_ep_ids_tlk(t->ids + s * all / steps * tokens * r->L * t->top_k, tokens, r->L, t->top_k,
                                         r->E);
        cli_check(moe_ep_layer_loads(&view, counts, NULL, &err), &err, t->path);
        for (size_t i = 0; i < n; i++) w.loads[(size_t)s * n + i] = (double)counts[i];
        w.tokens[s] = w.recorded[s] = (double)tokens;
    }
    free(counts);
    return w;
}

int cli_report_as_recorded(const cli_report *r, const cli_trace *t)
{
    int64_t recorded = cli_recorded_step(t, r->K);
    return r->setup->tokens == 0 && !r->rescaled && recorded > 0 &&
           recorded <= (int64_t)MOST_TOKENS * r->setup->devices;
}

int64_t cli_report_batch(const cli_report *r)
{
    return (int64_t)(r->batch + 0.5);
}

double cli_against_today(const cli_report *r, ptrdiff_t strategy)
{
    double today = r->strategy[0].tokens_per_s;
    return today > 0.0 ? r->strategy[strategy].tokens_per_s / today : 1.0;
}

const char *cli_large_step(const cli_report *r)
{
    int64_t tokens = cli_report_batch(r) / r->setup->devices;
    return tokens < NORMAL_KERNELS ? "" : cli_keep(cli_format(" of %s tokens per device", cli_count((double)tokens)));
}

/* Every step as it was recorded. */
static cli_window keep_steps(const cli_report *r, const cli_trace *t)
{
    cli_window w = new_window(r, t->kept_steps);
    size_t n = (size_t)r->L * (size_t)r->E;
    memcpy(w.loads, t->step_loads, (size_t)w.steps * n * sizeof *w.loads);
    for (int32_t s = 0; s < w.steps; s++) {
        w.recorded[s] = tokens_of(r, total_of(w.loads + (size_t)s * n, n));
        w.tokens[s] = t->step_tokens ? (double)t->step_tokens[s] : w.recorded[s];
    }
    return w;
}

/* Tokens of the steps that a recording is cut into which is not taken as recorded.  A first one of few tokens is no
 * measure for the counts of others. */
static int64_t default_step(const cli_report *r, const cli_trace *t)
{
    return r->one_step && !t->ids ? (int64_t)PREFILL_TOKENS * r->setup->devices : r->tokens;
}

/* Whether all of a recording is taken as one step of its own size: where it holds fewer tokens than steps have by
 * default. */
static int is_one_step(const cli_report *r, const cli_trace *t)
{
    double held = held_tokens(r, t);
    return r->setup->tokens == 0 && !cli_report_as_recorded(r, t) && !(t->ids && t->kept >= r->tokens) && held > 0.0 &&
           held < (double)default_step(r, t);
}

/* All of it as one step. */
static cli_window keep_all(const cli_report *r, const cli_trace *t)
{
    cli_window w = new_window(r, 1);
    memcpy(w.loads, t->loads, (size_t)r->L * (size_t)r->E * sizeof *w.loads);
    w.tokens[0] = w.recorded[0] = held_tokens(r, t);
    return w;
}

/* Whether so many tokens are a whole step; counts of a file may be rounded. */
static int fills(double recorded, int64_t tokens)
{
    return recorded >= (1.0 - 1e-6) * (double)tokens;
}

/* Steps of `tokens` tokens from loads (steps, L, E), without their ids: recorded steps are joined in order until they
 * hold so many, and the sum is scaled.  One small step scaled would be as uneven as few tokens are.  What does not fill
 * a step at the end is left out; where nothing fills one, all of it is one: `all` (L, E), NULL = the sum of these. */
static cli_window join_loads(const cli_report *r, const double *loads, int32_t steps, const double *all, int shares,
                             int64_t tokens)
{
    cli_window w = new_window(r, steps);
    size_t n = (size_t)r->L * (size_t)r->E;
    int32_t at = 0;
    for (int32_t s = 0; s < steps; s++) {
        double *sum = w.loads + (size_t)at * n;
        for (size_t i = 0; i < n; i++) sum[i] += loads[(size_t)s * n + i];
        w.recorded[at] = tokens_of(r, total_of(sum, n));
        at += shares || fills(w.recorded[at], tokens);
    }
    if (at == 0) {
        if (all) memcpy(w.loads, all, n * sizeof *w.loads);
        w.recorded[at++] = tokens_of(r, total_of(w.loads, n));
    }
    w.steps = at;
    for (int32_t s = 0; s < w.steps; s++) {
        double factor = w.recorded[s] > 0.0 ? (double)tokens / w.recorded[s] : 1.0;
        for (size_t i = 0; i < n; i++) w.loads[(size_t)s * n + i] *= factor;
        w.tokens[s] = (double)tokens;
    }
    return w;
}

static cli_window join_steps(const cli_report *r, const cli_trace *t, int64_t tokens)
{
    return join_loads(r, t->step_loads, t->kept_steps, t->loads, are_shares(r, t), tokens);
}

cli_window cli_report_window(const cli_report *r, const cli_trace *t, int64_t tokens)
{
    if (tokens == 0 && cli_report_as_recorded(r, t)) return keep_steps(r, t);
    if (tokens == 0 && is_one_step(r, t)) return keep_all(r, t);
    if (tokens == 0) tokens = default_step(r, t);
    return t->ids && t->kept >= tokens ? cut_ids(r, t, tokens) : join_steps(r, t, tokens);
}

/* Steps of a window to the place `at` of another one. */
static void copy_steps(const cli_report *r, cli_window *to, int32_t at, const cli_window *from, int32_t first,
                       int32_t count)
{
    size_t n = (size_t)r->L * (size_t)r->E;
    if (count == 0) return;
    memcpy(to->loads + (size_t)at * n, from->loads + (size_t)first * n, (size_t)count * n * sizeof *to->loads);
    memcpy(to->tokens + at, from->tokens + first, (size_t)count * sizeof *to->tokens);
    memcpy(to->recorded + at, from->recorded + first, (size_t)count * sizeof *to->recorded);
}

static void append_window(const cli_report *r, cli_window *to, const cli_window *from)
{
    cli_window both = new_window(r, to->steps + from->steps);
    copy_steps(r, &both, 0, to, 0, to->steps);
    copy_steps(r, &both, to->steps, from, 0, from->steps);
    cli_window_free(to);
    *to = both;
}

static cli_window part_of(const cli_report *r, const cli_window *w, int32_t first, int32_t count)
{
    cli_window part = new_window(r, count);
    copy_steps(r, &part, 0, w, first, count);
    return part;
}

/* Window A to plan on and window B to judge on; tokens as in cli_report_window. */
static void make_windows(const cli_report *r, int64_t tokens, cli_window *plan, cli_window *judge)
{
    cli_window all = cli_report_window(r, &r->trace[0], tokens);
    memset(judge, 0, sizeof *judge);
    if (r->traces > 1) {
        *plan = all;
        for (int i = 1; i < r->traces; i++) {
            cli_window w = cli_report_window(r, &r->trace[i], tokens);
            append_window(r, judge, &w);
            cli_window_free(&w);
        }
        return;
    }
    if (all.steps < 4) {
        *plan = all;
        *judge = part_of(r, &all, 0, all.steps);
        return;
    }
    *plan = part_of(r, &all, 0, all.steps / 2);
    *judge = part_of(r, &all, all.steps / 2, all.steps - all.steps / 2);
    cli_window_free(&all);
}

static double *mean_of(const cli_report *r, const cli_window *w)
{
    double *mean = cli_alloc((size_t)r->L * (size_t)r->E, sizeof *mean);
    moe_ep_error err;
    cli_check(moe_ep_window_loads(w->loads, w->steps, r->L, r->E, 0.0, mean, &err), &err,
              "mean load");
    return mean;
}

/* Tokens behind the loads of a window: what the luck of the draw is measured by. */
static int64_t shown_tokens(const cli_window *w)
{
    int64_t tokens = (int64_t)(total_of(w->recorded, (size_t)w->steps) + 0.5);
    return tokens < 1 ? 1 : tokens;
}

static int32_t recorded_steps(const cli_report *r)
{
    cli_window all = cli_report_window(r, &r->trace[0], 0);
    int32_t steps = all.steps;
    cli_window_free(&all);
    return steps;
}

/* How a recording came to steps of so many tokens: 1 = its own were joined, 2 = all of it is less than one, else 0. */
static int how_joined(const cli_report *r, const cli_trace *t, int64_t tokens)
{
    cli_window w;
    int how;
    if ((t->ids && t->kept >= tokens) || are_shares(r, t)) return 0;
    w = cli_report_window(r, t, tokens);
    how = !fills(w.recorded[0], tokens) ? 2 : w.steps < t->kept_steps;
    cli_window_free(&w);
    return how;
}

/* What was made of steps that are too small for what was asked. */
static void note_joined(const cli_report *r, const cli_trace *t, cli_setup *s)
{
    int64_t step = default_step(r, t);
    int one = is_one_step(r, t), how = one || cli_report_as_recorded(r, t) ? 0 : how_joined(r, t, step);
    double all = floor(held_tokens(r, t) + 0.5);
    if (one && t != &r->trace[0])
        cli_note(s, "%s holds %s %s in all: taken as one step.", t->name, cli_count(all), tokens_word((int64_t)all));
    if (how == 1)
        cli_note(s, "%s: recorded steps are joined in order until they hold %s tokens.", t->name,
                 cli_count((double)step));
    if (how == 2)
        cli_note(s, "%s holds %s tokens in all, less than one step of %s: its sum is taken once and scaled. It stays "
                    "as uneven as so few tokens are, and what chance gives is then understated.", t->name,
                 cli_count(all),
                 cli_count((double)step));
}

/* Which of its steps are looked at, where it is not all of them. */
static void note_looked_at(const cli_report *r, const cli_trace *t, cli_setup *s)
{
    int64_t step = default_step(r, t);
    if (t->kept_steps < t->steps)
        cli_note(s, "%s: the first %d of its %s steps are looked at one by one; its sums hold all.", t->name,
                 t->kept_steps, cli_count(t->steps));
    if (cli_report_as_recorded(r, t) || is_one_step(r, t) || !t->ids || t->kept < step) return;
    if (t->kept_steps == t->steps && *cli_kept_ids(t)) cli_note(s, "%s: %s", t->name, cli_kept_ids(t));
    if (t->kept / step > MAX_STEPS)
        cli_note(s, "%s: of its %s steps of %s %s %d are looked at, evenly spread.", t->name,
                 cli_count((double)(t->kept / step)), cli_count((double)step), tokens_word(step), MAX_STEPS);
}

/* Whether two recordings have the same loads in every layer and expert, up to one factor in each layer (to six digits,
 * for files that round): layers are planned one by one, so a plan made on the one has then seen the other. */
static int same_loads(const cli_report *r, const cli_trace *a, const cli_trace *b)
{
    size_t E = (size_t)r->E, n = (size_t)r->L * E;
    double all_a = total_of(a->loads, n), all_b = total_of(b->loads, n);
    if (!(all_a > 0.0) || !(all_b > 0.0) || !isfinite(all_a) || !isfinite(all_b)) return 0;
    for (size_t i = 0; i < n; i++) {
        double x, y;
        if (i % E == 0) { /* of the layer that begins here, 0 of one without loads */
            all_a = total_of(a->loads + i, E);
            all_b = total_of(b->loads + i, E);
        }
        x = all_a > 0.0 ? a->loads[i] / all_a : 0.0;
        y = all_b > 0.0 ? b->loads[i] / all_b : 0.0;
        if (fabs(x - y) > 1e-6 * fmax(x, y)) return 0;
    }
    return 1;
}

/* Judges on nothing that is the first recording again.  Those go behind the others, where they are freed. */
static void leave_out_equal(cli_report *r, cli_setup *s)
{
    char *names = NULL;
    int kept = 1, count;
    for (int i = 1; i < r->traces; i++) {
        cli_trace t = r->trace[i];
        char *more;
        if (!same_loads(r, &r->trace[0], &t)) {
            r->trace[i] = r->trace[kept];
            r->trace[kept++] = t;
            continue;
        }
        more = cli_format("%s%s%s", names ? names : "", names ? ", " : "", t.name);
        free(names);
        names = more;
    }
    count = r->equals = r->traces - kept;
    r->traces = kept;
    if (!names) return;
    r->equal = cli_format("%s ha%s the same loads as %s and %s left out.", names, count == 1 ? "s" : "ve",
                          r->trace[0].name, count == 1 ? "was" : "were");
    cli_note(s, "%s  The same means: in every layer and expert, up to one factor a layer. A plan made on the one has "
                "seen the other.", r->equal);
    free(names);
}

static void describe_windows(cli_report *r, cli_setup *s)
{
    const cli_trace *last = &r->trace[r->traces - 1];
    for (int i = 0; i < r->traces; i++) {
        const cli_trace *t = &r->trace[i];
        int64_t recorded = cli_recorded_step(t, r->K);
        if (*cli_idle_steps(t)) cli_note(s, "%s", cli_idle_steps(t));
        note_looked_at(r, t, s);
        if (i > 0 && recorded != r->tokens && cli_report_as_recorded(r, t))
            cli_note(s, "%s: steps as recorded, %s %s on average.", t->name, cli_count((double)recorded),
                     tokens_word(recorded));
        note_joined(r, t, s);
        if (r->one_step && !t->ids && !is_one_step(r, t) && !cli_report_as_recorded(r, t)) {
            cli_note(s, "%s is a sum over many steps: scaled to steps of %s tokens.", t->name,
                     cli_count((double)default_step(r, t)));
            r->prefill_sized = 1;
        }
    }
    if (cli_report_batch(r) != r->tokens)
        cli_note(s, "The judged steps hold %s %s on average: times, tokens/s and kernels are those of such a step.",
                 cli_count((double)cli_report_batch(r)), tokens_word(cli_report_batch(r)));
    r->sums = !last->ids && last->steps == 1 && r->traces > 1 && !is_one_step(r, last) &&
              how_joined(r, last, default_step(r, last)) != 2;
    if (r->traces > 1) {
        char *names = cli_strdup(r->trace[1].name);
        for (int i = 2; i < r->traces; i++) {
            char *more =
                cli_format("%s%s%s", names, i + 1 < r->traces ? ", " : " and ", r->trace[i].name);
            free(names);
            names = more;
        }
        r->judged_on = names;
        cli_note(
            s,
            "Planned on %s (%d step%s), judged on %s (%d step%s), which the plan has not seen.%s",
            r->trace[0].name, r->plan.steps, r->plan.steps == 1 ? "" : "s", names, r->judge.steps,
            r->judge.steps == 1 ? "" : "s",
            r->sums ? "  Each is a sum over many steps: how much single steps scatter is not known."
                    : "");
    } else if (recorded_steps(r) >= 4 && last->kept_steps < last->steps) {
        r->judged_on = cli_strdup("the second half of the steps that are looked at");
        cli_note(s, "Planned on the first half of the steps that are looked at (%d), judged on the second half of them "
                    "(%d); the later steps of the recording are in neither.", r->plan.steps, r->judge.steps);
    } else if (recorded_steps(r) >= 4) {
        r->judged_on = cli_strdup("the second half of the recording");
        cli_note(s,
                 "Planned on the first half of the recording (%d steps), judged on the second (%d "
                 "steps).",
                 r->plan.steps, r->judge.steps);
    } else {
        r->judged_on = cli_strdup("the window it was planned on");
        r->self_judged = 1;
        cli_note(s, "Only one window was given: the plan is judged on the loads it was made from, "
                    "which flatters it. A second recording makes the verdict firm.");
    }
}

/* ---- diagnosis ------------------------------------------------------------------------------- */

typedef struct question {
    int32_t devices, slots, nodes;
    int64_t tokens;
    moe_ep_place_policy policy;
    const cli_window *plan, *judge;
} question;

moe_ep_shape cli_shape(int32_t devices, int32_t slots, int32_t nodes)
{
    moe_ep_shape shape;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = devices;
    shape.num_slots = slots;
    shape.num_nodes = nodes;
    return shape;
}

/* An empty placement; *mem is its memory, to be freed. */
moe_ep_placement cli_report_placement(const cli_report *r, const moe_ep_shape *shape, void **mem)
{
    moe_ep_placement p;
    moe_ep_error err;
    size_t bytes = moe_ep_placement_bytes(r->L, r->E, shape);
    if (bytes == 0)
        cli_die(CLI_USAGE, "%d devices with %d slots on %d nodes: no such shape",
                shape->num_devices, shape->num_slots, shape->num_nodes);
    *mem = cli_alloc(bytes, 1);
    cli_check(moe_ep_placement_init(&p, r->L, r->E, shape, *mem, bytes, &err), &err,
              "devices and slots");
    return p;
}

const char *cli_shown_name(const cli_report *r)
{
    return r->traces > 1 ? cli_keep(cli_format(" of %s", r->trace[r->shown].name)) : "";
}

const char *cli_today(const cli_report *r)
{
    return r->setup->map ? "as the map says" : r->setup->round_robin ? "round robin" : "contiguous blocks";
}

/* What runs today; for another number of devices than the map has, contiguous blocks. */
static moe_ep_placement make_today(const cli_report *r, int32_t devices, int32_t nodes, void **mem)
{
    moe_ep_place_desc d;
    moe_ep_placement p;
    moe_ep_error err;
    if (r->setup->map && devices == r->setup->devices) {
        int32_t *rows = cli_map_rows(r->setup->map, &r->trace[0], NULL);
        p = cli_map_placement_in(r->setup->map, &r->trace[0], rows, devices, nodes, mem);
        free(rows);
        return p;
    }
    memset(&d, 0, sizeof d);
    d.num_layers = r->L;
    d.num_experts = r->E;
    d.shape = cli_shape(devices, r->setup->round_robin || r->E % devices == 0 ? r->E : 0, nodes);
    p = cli_report_placement(r, &d.shape, mem);
    cli_check((r->setup->round_robin ? moe_ep_place_round_robin
                                     : moe_ep_place_contiguous)(&d, &p, NULL, NULL, &err),
              &err, "today's placement");
    return p;
}

moe_ep_layer_desc cli_report_layer(const cli_report *r, int64_t tokens, int32_t devices,
                                   int32_t nodes)
{
    moe_ep_layer_desc t;
    memset(&t, 0, sizeof t);
    t.model = &r->setup->model;
    t.machine = &r->setup->machine;
    t.num_nodes = nodes;
    t.high_throughput = r->setup->kernels == CLI_KERNELS_AUTO ? tokens / devices >= NORMAL_KERNELS
                                                              : r->setup->kernels == CLI_KERNELS_NORMAL;
    t.mode = !t.high_throughput ? MOE_EP_A2A_PAIR
             : nodes > 1        ? MOE_EP_A2A_NODE_DEDUP
                                : MOE_EP_A2A_RANK_DEDUP;
    t.dispatch_wire = r->setup->model.math == MOE_EP_MATH_BF16 ? MOE_EP_WIRE_BF16 : MOE_EP_WIRE_FP8;
    t.combine_wire = MOE_EP_WIRE_BF16;
    return t;
}

const char *cli_report_kernels(const cli_report *r)
{
    int normal = cli_report_layer(r, cli_report_batch(r), r->setup->devices, r->setup->nodes).high_throughput;
    return cli_kernels_name(normal ? CLI_KERNELS_NORMAL : CLI_KERNELS_LOW_LATENCY);
}

/* A recording that is a sum over many steps stands for all of them. */
int32_t cli_report_min_steps(const cli_report *r)
{
    moe_ep_diagnose_desc d;
    memset(&d, 0, sizeof d);
    moe_ep_diagnose_thresholds(&d);
    return r->sums ? 1 : d.min_steps;
}

/* What the library decided by, for the sentence that says why. */
moe_ep_diagnose_desc cli_report_thresholds(const cli_report *r)
{
    moe_ep_diagnose_desc d;
    memset(&d, 0, sizeof d);
    moe_ep_diagnose_thresholds(&d);
    d.horizon_steps = r->setup->horizon_steps;
    d.min_gain = r->setup->min_gain;
    d.min_steps = r->self_judged ? 1 : cli_report_min_steps(r);
    return d;
}

/* On the loads that it was made from a plan always saves: where those are no more uneven than chance makes as many
 * tokens as were recorded, a scaled step holds no more luck, the saving is no evidence. */
static void doubt(const cli_report *r, const question *q, const moe_ep_diagnose_desc *asked, moe_ep_diagnosis *out)
{
    size_t n = (size_t)r->L * (size_t)r->E;
    cli_window own;
    moe_ep_diagnose_desc d = *asked;
    moe_ep_diagnosis as_recorded;
    moe_ep_error err;
    if (are_shares(r, &r->trace[0])) return;
    own = part_of(r, q->judge, 0, q->judge->steps);
    for (size_t i = 0; i < (size_t)own.steps * n; i++)
        if (own.tokens[i / n] > 0.0) own.loads[i] *= own.recorded[i / n] / own.tokens[i / n];
    d.judge_loads = own.loads;
    cli_check(moe_ep_diagnose(&d, NULL, &as_recorded, NULL, &err), &err, "diagnosis");
    cli_window_free(&own);
    if (as_recorded.imbalance_before > as_recorded.chance_imbalance) return;
    out->verdict = MOE_EP_INSUFFICIENT_EVIDENCE;
    out->reason = MOE_EP_REASON_CHANCE;
    out->chance_imbalance = as_recorded.chance_imbalance;
}

/* One call of the library's judgement; 0 when the planner cannot do this shape. */
static int ask(const cli_report *r, const question *q, moe_ep_placement *plan,
               moe_ep_diagnosis *out)
{
    const cli_setup *s = r->setup;
    moe_ep_diagnose_desc d;
    moe_ep_error err;
    void *mem;
    moe_ep_placement today = make_today(r, q->devices, q->nodes, &mem);
    moe_ep_layer_desc layer = cli_report_layer(r, q->tokens, q->devices, q->nodes);
    moe_ep_status status;
    layer.model = &s->whole;
    memset(&d, 0, sizeof d);
    moe_ep_diagnose_thresholds(&d);
    d.num_layers = r->L;
    d.num_experts = r->E;
    d.top_k = r->K;
    d.num_groups = s->groups;
    d.router_groups = s->router_groups;
    d.top_groups = s->top_groups;
    d.shape = cli_shape(q->devices, q->slots, q->nodes);
    d.policy = q->policy;
    d.current = &today;
    d.plan_loads = q->plan->loads;
    d.plan_steps = q->plan->steps;
    d.judge_loads = q->judge->loads;
    d.judge_steps = q->judge->steps;
    d.cost = &layer;
    d.other_s = s->other_s;
    d.move_Bps =
        q->nodes > 1 ? s->machine.normal_dispatch.inter_Bps : s->machine.normal_dispatch.intra_Bps;
    d.horizon_steps = s->horizon_steps;
    d.min_gain = s->min_gain;
    d.min_steps = r->self_judged ? 1 : cli_report_min_steps(r);
    status = moe_ep_diagnose(&d, plan, out, NULL, &err);
    if (status == MOE_EP_OK && r->self_judged && out->verdict == MOE_EP_RECOMMEND) doubt(r, q, &d, out);
    free(mem);
    if (status == MOE_EP_OK) return 1;
    if (q->policy == MOE_EP_PLACE_BEST || status == MOE_EP_ERR_MEMORY) cli_check(status, &err, "diagnosis");
    return 0;
}

static question main_question(const cli_report *r, int32_t slots)
{
    question q = {r->setup->devices, slots,    r->setup->nodes, cli_report_batch(r),
                  MOE_EP_PLACE_BEST, &r->plan, &r->judge};
    return q;
}

/* Without copies first: if they add nothing, the cheaper plan is the answer. */
int cli_report_copies_pay(const moe_ep_diagnosis *without, const moe_ep_diagnosis *with)
{
    int one = without->verdict == MOE_EP_RECOMMEND, copies = with->verdict == MOE_EP_RECOMMEND;
    if (one != copies) return copies;
    return one ? with->gain - without->gain >= 0.01 : with->gain > without->gain;
}

static void choose(cli_report *r)
{
    r->chosen = r->slots > r->E && cli_report_copies_pay(&r->one, &r->copies) ? &r->copies : &r->one;
    r->recommend = r->one.verdict == MOE_EP_RECOMMEND || r->copies.verdict == MOE_EP_RECOMMEND;
}

/* Loads (L, E) of the judged recordings: `behind` of the steps that are not looked at one by one, of which only the sum
 * is known, else of the others. */
static double *sum_of_judged(const cli_report *r, int behind)
{
    size_t n = (size_t)r->L * (size_t)r->E;
    double *sum = cli_alloc(n, sizeof *sum), *looked = cli_alloc(n, sizeof *looked);
    for (int i = r->traces > 1; i < r->traces; i++) {
        const cli_trace *t = &r->trace[i];
        if (t->kept_steps == t->steps) continue;
        memset(looked, 0, n * sizeof *looked);
        for (int32_t s = 0; s < t->kept_steps; s++)
            for (size_t at = 0; at < n; at++) looked[at] += t->step_loads[(size_t)s * n + at];
        for (size_t at = 0; at < n; at++) {
            double rest = t->loads[at] - looked[at];
            sum[at] += !behind ? looked[at] : rest > 1e-9 * t->loads[at] ? rest : 0.0; /* shares round */
        }
    }
    free(looked);
    return sum;
}

/* max/mean over devices of loads, all layers together; 0 = they are none. */
static double sum_imbalance(const cli_report *r, const moe_ep_placement *p, const double *loads)
{
    moe_ep_plan_result *layer = cli_alloc((size_t)r->L, sizeof *layer);
    double most = 0.0, mean = 0.0;
    moe_ep_error err;
    cli_check(moe_ep_evaluate(p, loads, 1, layer, NULL, &err), &err, "evaluation");
    for (int32_t l = 0; l < r->L; l++) {
        most += layer[l].max;
        mean += layer[l].mean;
    }
    free(layer);
    return mean > 0.0 ? most / mean : 0.0;
}

cli_behind cli_report_behind(const cli_report *r, const moe_ep_placement *plan)
{
    double *looked, *rest, gain;
    cli_behind b = {0.0, 0.0, 0};
    int more = 0;
    for (int i = r->traces > 1; i < r->traces; i++) more |= r->trace[i].kept_steps < r->trace[i].steps;
    if (!more) return b;
    looked = sum_of_judged(r, 0);
    rest = sum_of_judged(r, 1);
    b.before = sum_imbalance(r, &r->today, rest);
    b.after = sum_imbalance(r, plan, rest);
    gain = sum_imbalance(r, &r->today, looked) - sum_imbalance(r, plan, looked);
    b.shifted = b.before > 0.0 && gain > 0.05 && b.before - b.after < 0.5 * gain;
    free(looked);
    free(rest);
    return b;
}

void cli_report_doubt_behind(const cli_report *r, const moe_ep_placement *plan, moe_ep_diagnosis *d)
{
    if (d->verdict != MOE_EP_RECOMMEND || !cli_report_behind(r, plan).shifted) return;
    d->verdict = MOE_EP_INSUFFICIENT_EVIDENCE; /* the reason stays that it pays */
}

void cli_report_note_behind(const cli_report *r, const moe_ep_placement *plan, cli_setup *s)
{
    cli_behind b = cli_report_behind(r, plan);
    if (!(b.before > 0.0)) return;
    cli_note(s, "Of the steps that are not looked at one by one the sum is known: its max/mean is %.2f today and %.2f "
                "with the plan%s", b.before, b.after,
             b.shifted ? ", which keeps less than half there of what it brings before." : ".");
}

static void diagnose_all(cli_report *r, cli_setup *s)
{
    question one = main_question(r, r->E), copies = main_question(r, r->slots);
    moe_ep_shape a = cli_shape(one.devices, one.slots, one.nodes),
                 b = cli_shape(copies.devices, copies.slots, copies.nodes);
    r->plan_one = cli_report_placement(r, &a, &r->memory[1]);
    r->plan_copies = cli_report_placement(r, &b, &r->memory[2]);
    (void)ask(r, &one, &r->plan_one, &r->one);
    (void)ask(r, &copies, &r->plan_copies, &r->copies);
    cli_report_doubt_behind(r, &r->plan_one, &r->one);
    cli_report_doubt_behind(r, &r->plan_copies, &r->copies);
    choose(r);
    cli_report_note_behind(r, r->chosen == &r->one ? &r->plan_one : &r->plan_copies, s);
}

/* ---- per layer ------------------------------------------------------------------------------- */

static double *device_loads(const cli_report *r, const moe_ep_placement *p, const double *loads)
{
    double *out = cli_alloc((size_t)r->L * (size_t)p->num_devices, sizeof *out);
    moe_ep_error err;
    cli_check(moe_ep_device_loads(p, loads, out, &err), &err, "device loads");
    return out;
}

/* The pictures show one judged recording, the one in which the bottleneck stands out most: a mean over several would
 * hide what alternates between them. */
static void pick_shown(cli_report *r)
{
    int32_t D = r->setup->devices;
    double worst = -1.0;
    for (int i = r->traces > 1; i < r->traces; i++) {
        cli_window w = i > 0 ? cli_report_window(r, &r->trace[i], 0)
                             : part_of(r, &r->judge, 0, r->judge.steps);
        double *mean = mean_of(r, &w), *devices = device_loads(r, &r->today, mean), total = 0.0,
               share;
        for (int32_t d = 0; d < D; d++) total += devices[r->hot * D + d];
        share = total > 0.0 ? devices[r->hot * D + r->chosen->hot_device] / total : 0.0;
        if (share > worst) {
            worst = share;
            free(r->shown_loads);
            r->shown_loads = mean;
            r->shown = i;
            r->shown_tokens = shown_tokens(&w);
        } else {
            free(mean);
        }
        free(devices);
        cli_window_free(&w);
    }
}

static int32_t argmax(const double *v, int32_t n)
{
    int32_t at = 0;
    for (int32_t i = 1; i < n; i++)
        if (v[i] > v[at]) at = i;
    return at;
}

static double imbalance(const double *v, int32_t n)
{
    moe_ep_error err;
    double x = moe_ep_imbalance_d(v, n, &err);
    if (x < 0.0) cli_check(err.status, &err, "imbalance");
    return x;
}

static int worse(const void *a, const void *b, void *rows)
{
    double x = ((const cli_layer_row *)rows)[*(const int32_t *)a].before,
           y = ((const cli_layer_row *)rows)[*(const int32_t *)b].before;
    return x < y ? 1 : x > y ? -1 : *(const int32_t *)a - *(const int32_t *)b;
}

static moe_ep_plan_result *evaluate(const cli_report *r, const moe_ep_placement *p)
{
    moe_ep_plan_result *out = cli_alloc((size_t)r->L, sizeof *out);
    moe_ep_error err;
    cli_check(moe_ep_evaluate(p, r->judge.loads, r->judge.steps, out, NULL, &err), &err,
              "evaluation");
    return out;
}

static void fill_layer(cli_report *r, int32_t l, cli_layer_row *row)
{
    const double *loads = r->shown_loads + (size_t)l * (size_t)r->E;
    row->number = r->trace[0].layer[l];
    row->expert_imbalance = imbalance(loads, r->E);
    row->chance = r->chance.p95;
    row->hot_device =
        argmax(r->today_devices + (size_t)l * (size_t)r->setup->devices, r->setup->devices);
    row->hot_expert = argmax(loads, r->E);
    for (int32_t e = 0; e < r->E; e++) row->dead += !(loads[e] > 0.0);
}

static void look_at_layers(cli_report *r)
{
    moe_ep_plan_result *today = evaluate(r, &r->today), *one = evaluate(r, &r->plan_one),
                       *copies = evaluate(r, &r->plan_copies);
    moe_ep_error err;
    r->hot = r->chosen->hot_layer;
    pick_shown(r);
    cli_check(moe_ep_chance(r->shown_tokens, r->K, r->E, &r->chance, &err), &err, "chance");
    r->today_devices = device_loads(r, &r->today, r->shown_loads);
    r->one_devices = device_loads(r, &r->plan_one, r->shown_loads);
    r->copies_devices = device_loads(r, &r->plan_copies, r->shown_loads);
    r->layer = cli_alloc((size_t)r->L, sizeof *r->layer);
    r->worst = cli_alloc((size_t)r->L, sizeof *r->worst);
    for (int32_t l = 0; l < r->L; l++) {
        cli_layer_row *row = &r->layer[l];
        fill_layer(r, l, row);
        row->before = today[l].imbalance;
        row->one_copy = one[l].imbalance;
        row->copies = copies[l].imbalance;
        row->bound = copies[l].mean > 0.0 ? copies[l].lower_bound / copies[l].mean : 1.0;
        r->worst[l] = l;
    }
    qsort_r(r->worst, (size_t)r->L, sizeof *r->worst, worse, r->layer);
    free(today);
    free(one);
    free(copies);
}

/* What the busiest device of the hot layer waits for today: weights, multiplications or the network. */
static moe_ep_regime todays_regime(const cli_report *r)
{
    int64_t *counts = cli_alloc((size_t)r->E, sizeof *counts);
    int64_t *rows = cli_alloc((size_t)r->today.num_slots, sizeof *rows);
    moe_ep_layer_desc layer = cli_report_layer(r, cli_report_batch(r), r->setup->devices, r->setup->nodes);
    moe_ep_split_desc even;
    moe_ep_time_result time;
    moe_ep_error err;
    memset(&even, 0, sizeof even);
    for (int32_t e = 0; e < r->E; e++)
        counts[e] = (int64_t)(r->shown_loads[(size_t)r->hot * (size_t)r->E + (size_t)e] + 0.5);
    cli_check(moe_ep_split(&even, &r->today, r->hot, counts, rows, NULL, &err), &err, "split");
    layer.placement = &r->today;
    cli_check(moe_ep_layer_time(&layer, rows, &time, NULL, &err), &err, "layer time");
    free(counts);
    free(rows);
    return time.regime;
}

/* ---- other traffic --------------------------------------------------------------------------- */

/* "12 7 40 3 9": the five hottest experts. */
static char *hottest(const double *loads, int32_t n)
{
    int32_t *list = cli_alloc((size_t)n, sizeof *list), count = 0;
    moe_ep_error err;
    char *text = cli_strdup("");
    cli_check(moe_ep_hot_list(loads, n, 0.0, list, &count, &err), &err, "hottest experts");
    for (int32_t i = 0; i < count && i < 5; i++) {
        char *more = cli_format("%s%s%d", text, i > 0 ? " " : "", list[i]);
        free(text);
        text = more;
    }
    free(list);
    return text;
}

static void look_at_shift(cli_report *r)
{
    double lowest = 2.0;
    r->shift = cli_alloc((size_t)r->traces, sizeof *r->shift);
    for (int i = 0; i < r->traces; i++) {
        cli_shift_row *s = &r->shift[i];
        cli_window own = cli_report_window(r, &r->trace[i], 0);
        question q = main_question(r, r->slots);
        moe_ep_diagnosis d;
        s->name = r->trace[i].name;
        s->lowest = 2.0;
        for (int32_t l = 0; l < r->L; l++) {
            moe_ep_similarity_result same;
            moe_ep_error err;
            size_t at = (size_t)l * (size_t)r->E;
            cli_check(moe_ep_similarity(r->trace[0].loads + at, r->trace[i].loads + at, r->E, 0,
                                        &same, NULL, &err),
                      &err, "similarity");
            s->correlation += same.correlation / r->L;
            s->overlap += (double)same.overlap / same.top / r->L;
            if (same.correlation < s->lowest) {
                s->lowest = same.correlation;
                s->lowest_layer = r->trace[0].layer[l];
            }
            if (i > 0 && same.correlation < lowest) {
                lowest = same.correlation;
                r->shift_layer = l;
            }
        }
        q.judge = &own;
        (void)ask(r, &q, NULL, &d);
        s->today = d.imbalance_before;
        s->planned = d.imbalance_after;
        q.plan = &own;
        (void)ask(r, &q, NULL, &d);
        s->own = d.imbalance_after;
        s->own_gain = d.gain;
        cli_window_free(&own);
        cli_progress("judging", i + 1.0, r->traces);
    }
    for (int i = 0; i < r->traces; i++)
        r->shift[i].hottest =
            hottest(r->trace[i].loads + (size_t)r->shift_layer * (size_t)r->E, r->E);
}

/* ---- strategies, copies, what-if ------------------------------------------------------------- */

static void add_strategy(cli_report *r, const char *name, int32_t slots, double imbalance_after,
                         double step_s, chart_kind kind)
{
    cli_strategy s = {cli_strdup(name),
                      slots,
                      imbalance_after,
                      step_s,
                      step_s > 0.0 ? r->batch / step_s : 0.0,
                      (int)kind};
    arrput(r->strategy, s);
}

static void compare_strategies(cli_report *r)
{
    static const struct {
        moe_ep_place_policy policy;
        const char *name;
        int copies;
    } other[] = {{MOE_EP_PLACE_ROUND_ROBIN, "Round robin", 0},
                 {MOE_EP_PLACE_CONTIGUOUS, "Contiguous blocks", 0},
                 {MOE_EP_PLACE_LPT, "Heaviest first (LPT)", 0},
                 {MOE_EP_PLACE_EPLB_GLOBAL, "EPLB", 1}}; /* or hierarchical */
    moe_ep_place_policy eplb = cli_setup_eplb(r->setup);
    char *name;
    add_strategy(r, r->setup->map           ? "The map (today)"
                    : r->setup->round_robin ? "Round robin (today)"
                                            : "Contiguous blocks (today)",
                 r->E, r->one.imbalance_before, r->one.before_s, CHART_HOT);
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
        question q = main_question(r, other[i].copies ? r->slots : r->E);
        moe_ep_diagnosis d;
        int is_today = !r->setup->map && i == (r->setup->round_robin ? 0u : 1u);
        if (is_today ||
            (other[i].copies && r->slots == r->E))
            continue;
        q.policy = other[i].policy == MOE_EP_PLACE_EPLB_GLOBAL ? eplb : other[i].policy;
        if (!ask(r, &q, NULL, &d)) continue;
        if (i == 3)
            add_strategy(r, "Best, no copies", r->E, r->one.imbalance_after, r->one.after_s,
                         CHART_GOOD);
        name = cli_strdup(other[i].name);
        if (other[i].copies) {
            free(name);
            name = cli_format("%s%s, %d copies", other[i].name,
                              eplb == MOE_EP_PLACE_EPLB_HIERARCHICAL && r->setup->nodes > 1 ? " by nodes" : "",
                              r->slots - r->E);
        }
        add_strategy(r, name, q.slots, d.imbalance_after, d.after_s,
                     other[i].copies ? CHART_BEST : CHART_PLAIN);
        free(name);
    }
    if (arrlen(r->strategy) < 4 || strcmp(arrlast(r->strategy).name, "Heaviest first (LPT)") == 0)
        add_strategy(r, "Best, no copies", r->E, r->one.imbalance_after, r->one.after_s,
                     CHART_GOOD);
    if (r->slots > r->E) {
        name = cli_format("Best, %d copies", r->slots - r->E);
        add_strategy(r, name, r->slots, r->copies.imbalance_after, r->copies.after_s, CHART_BEST);
        free(name);
    }
    add_strategy(r, "Perfect balance (limit)", r->E, 1.0,
                 fmin(fmin(r->one.balanced_s, r->copies.balanced_s), fmin(r->one.after_s, r->copies.after_s)),
                 CHART_COLD);
}

static void count_copies(cli_report *r)
{
    moe_ep_copies_desc d;
    moe_ep_copies_point *fine;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.place.num_layers = r->L;
    d.place.num_experts = r->E;
    d.place.shape = cli_shape(r->setup->devices, 0, r->setup->nodes);
    d.place.loads = r->plan_loads;
    d.policy = MOE_EP_PLACE_BEST;
    d.step = r->setup->devices > 4 ? r->setup->devices / 4 : 1;
    d.max_extra = 2 * r->setup->devices / d.step * d.step;
    d.target = r->setup->target;
    d.expert_bytes = r->expert_bytes;
    r->curve_points = d.max_extra / d.step + 1;
    r->curve = cli_alloc((size_t)r->curve_points, sizeof *r->curve);
    cli_check(moe_ep_min_copies(&d, r->curve, &r->fewest_copies, NULL, &err), &err, "copies");
    r->copies_step = d.step;
    if (r->fewest_copies == 0) r->copies_step = 1;
    if (r->copies_step == 1) return;
    d.max_extra = r->fewest_copies > 0 ? r->fewest_copies : d.max_extra;
    if (d.max_extra > MAX_FINE) return;
    d.step = 1; /* fewer may do between the coarse points */
    fine = cli_alloc((size_t)d.max_extra + 1, sizeof *fine);
    cli_check(moe_ep_min_copies(&d, fine, &r->fewest_copies, NULL, &err), &err, "copies");
    r->copies_step = 1;
    free(fine);
}

/* Whether one recording has too few steps of so many tokens to plan on some and judge on others, while this report,
 * of smaller steps, does: then its halves are joined, each for itself. */
static int halves(const cli_report *r, int64_t tokens)
{
    cli_window all;
    int few;
    if (tokens == 0 || r->traces > 1 || r->self_judged) return 0;
    all = cli_report_window(r, &r->trace[0], tokens);
    few = all.steps < 4;
    cli_window_free(&all);
    return few;
}

/* tokens 0: the steps of the report. */
static void what_if(cli_report *r, const char *name, int32_t devices, int32_t slots, int64_t tokens)
{
    cli_window plan, judge;
    moe_ep_diagnosis d;
    int32_t per = r->setup->devices / r->setup->nodes;
    question q = {devices, slots, (devices + per - 1) / per, tokens > 0 ? tokens : cli_report_batch(r),
                  MOE_EP_PLACE_BEST, &plan, &judge};
    if (halves(r, tokens)) {
        plan = join_loads(r, r->plan.loads, r->plan.steps, NULL, 0, tokens);
        judge = join_loads(r, r->judge.loads, r->judge.steps, NULL, 0, tokens);
    } else {
        make_windows(r, tokens, &plan, &judge);
    }
    (void)ask(r, &q, NULL, &d);
    cli_what_if w = {cli_strdup(name),   d.before_s,        d.after_s, d.gain,
                     d.imbalance_before, d.imbalance_after, d.verdict};
    arrput(r->what_if, w);
    cli_window_free(&plan);
    cli_window_free(&judge);
}

/* A batch that may be larger than what a recorded step, or all of a recording, holds: then that is said. */
static void what_if_batch(cli_report *r, cli_setup *s, const char *kind, int64_t each)
{
    int64_t tokens = each * r->setup->devices;
    int how = 0;
    char *name;
    if (tokens == cli_report_batch(r)) return;
    name = cli_format("%s, %lld tokens per device", kind, (long long)each);
    for (int i = 0; i < r->traces; i++) {
        int one = how_joined(r, &r->trace[i], tokens);
        if (one > how) how = one;
    }
    if (how > 0)
        cli_note(s, "What if, %s: %s.", name,
                 how == 1 ? "recorded steps are joined in order until they hold as many"
                          : "a recording of fewer tokens than one such step is taken once and scaled; it stays as "
                            "uneven as so few tokens are, and what chance gives is understated");
    if (halves(r, tokens))
        cli_note(s, "What if, %s: planned on the first half of the recording, joined for itself, and judged on the "
                    "second; a verdict needs two judged steps.", name);
    what_if(r, name, r->setup->devices, r->slots, tokens);
    free(name);
}

static void ask_what_if(cli_report *r, cli_setup *s)
{
    int32_t D = r->setup->devices, extra = r->slots - r->E;
    char *name;
    what_if(r, r->slots > r->E ? "this report, with copies" : "this report", D, r->slots, 0);
    what_if_batch(r, s, "decode", DECODE_TOKENS);
    what_if_batch(r, s, "prefill", PREFILL_TOKENS);
    if (D % 2 == 0 && D > 2 && (D / 2 <= D / r->setup->nodes || r->setup->nodes % 2 == 0)) {
        name = cli_format("%d devices, same step", D / 2);
        what_if(r, name, D / 2, r->E + extra, 0);
        free(name);
    }
    if (D * 2 <= r->E) {
        name = cli_format("%d devices, same step", D * 2);
        what_if(r, name, D * 2,
                r->E + extra > r->E + 2 * D ? r->E + extra : r->E + (extra > 0 ? 2 * D : 0), 0);
        free(name);
    }
}

/* ---- batch size ------------------------------------------------------------------------------ */

/* Mean over windows of `tokens` tokens of the excess in the hot layer of the recording that is judged. */
static double own_excess(const cli_report *r, const cli_trace *t, int64_t tokens)
{
    int64_t windows = t->kept / tokens, *counts, K = t->top_k;
    double excess = 0.0;
    int32_t *ids;
    moe_ep_error err;
    if (windows < 1) return 0.0;
    if (windows > 256) windows = 256;
    counts = cli_alloc((size_t)r->E, sizeof *counts);
    ids = cli_alloc((size_t)(tokens * K), sizeof *ids);
    for (int64_t w = 0; w < windows; w++) {
        for (int64_t i = 0; i < tokens; i++)
            memcpy(ids + i * K, t->ids + ((w * tokens + i) * r->L + r->hot) * K,
                   (size_t)K * sizeof *ids);
        cli_check(moe_ep_expert_loads(ids, tokens * K, r->E, counts, NULL, &err), &err, t->path);
        excess += moe_ep_imbalance(counts, r->E, &err) - 1.0;
    }
    free(ids);
    free(counts);
    return excess / (double)windows;
}

static void sweep_batches(cli_report *r)
{
    const cli_trace *t = &r->trace[r->shown];
    for (int64_t tokens = 1; r->sweep < 18; tokens *= 2) {
        moe_ep_chance_result c;
        moe_ep_error err;
        cli_check(moe_ep_chance(tokens, r->K, r->E, &c, &err), &err, "chance");
        r->sweep_tokens[r->sweep] = (double)tokens;
        r->sweep_chance[r->sweep] = c.max_over_mean - 1.0;
        r->sweep_own[r->sweep] = t->ids ? own_excess(r, t, tokens) : 0.0;
        r->sweep++;
    }
}

static void size_groups(cli_report *r)
{
    int32_t D = r->setup->devices, first = D;
    while (first > 1 && first * 8 > D) first = (first + 1) / 2;
    for (int32_t size = first; size <= r->E && r->ep_sizes < 8; size *= 2) {
        int32_t low, high, with;
        moe_ep_error err;
        cli_check(moe_ep_experts_per_device(r->E, size, &low, &high, &with, &err), &err,
                  "experts per device");
        r->ep_size[r->ep_sizes] = size;
        r->ep_experts[r->ep_sizes++] = high;
    }
}

/* What the step times take for granted; see cli_report_layer. */
static void note_timing(const cli_report *r, cli_setup *s)
{
    moe_ep_layer_desc layer = cli_report_layer(r, cli_report_batch(r), s->devices, s->nodes);
    const char *wire = layer.dispatch_wire == MOE_EP_WIRE_BF16 ? "bf16" : "FP8", *kernels = cli_report_kernels(r);
    char *which = s->kernels != CLI_KERNELS_AUTO
                      ? cli_format("%s kernels at every batch, as --kernels says", kernels)
                      : cli_format("normal kernels from %d tokens per device on, low-latency kernels below: here %s; "
                                   "--kernels changes it", NORMAL_KERNELS, kernels);
    cli_note(s, "Step times: %s dispatch and bf16 combine, no overlap of communication with computation; %s.", wire,
             which);
    free(which);
}

void cli_report_settle(cli_report *r, cli_trace *traces, int count, char *left_out,
                       cli_setup *setup)
{
    int said = -1; /* the first recording that says how many experts a token takes */
    memset(r, 0, sizeof *r);
    r->setup = setup;
    r->trace = traces;
    r->traces = count;
    r->left_out = left_out;
    r->L = traces[0].layers;
    r->E = traces[0].experts;
    r->K = setup->top_k > 0 ? setup->top_k : traces[0].top_k;
    for (int i = 0; i < count; i++) {
        if (traces[i].top_k > 0 && setup->top_k > 0 && traces[i].top_k != setup->top_k)
            cli_die(CLI_USAGE, "%s: has ids of top-%d, --topk says %d", traces[i].path, traces[i].top_k, setup->top_k);
        if (traces[i].top_k == 0) continue; /* counts do not say */
        if (said < 0) said = i;
        if (traces[i].top_k != traces[said].top_k)
            cli_die(CLI_USAGE, "%s has top-%d, %s has top-%d", traces[i].path, traces[i].top_k,
                    traces[said].path, traces[said].top_k);
    }
    if (setup->top_k == 0 && said >= 0) r->K = traces[said].top_k;
    cli_note_inputs(setup, traces);
    cli_setup_model(setup, r->L, r->E, &r->K);
    cli_setup_machine(setup);
    cli_setup_devices(setup, r->E);
    settle_tokens(r, setup);
    r->slots = setup->slots;
    leave_out_equal(r, setup);
    make_windows(r, 0, &r->plan, &r->judge);
    r->batch = total_of(r->judge.tokens, (size_t)r->judge.steps) / r->judge.steps;
    describe_windows(r, setup);
    r->plan_loads = mean_of(r, &r->plan);
    r->expert_bytes = cli_expert_bytes(&setup->model);
    r->copy_bytes = r->expert_bytes * r->L * ceil((double)(r->slots - r->E) / setup->devices);
    note_timing(r, setup);
    if (setup->map) free(cli_map_rows(setup->map, &traces[0], setup));
    r->today = make_today(r, setup->devices, setup->nodes, &r->memory[0]);
}

void cli_report_make(cli_report *r, cli_trace *traces, int count, char *left_out, cli_setup *setup)
{
    cli_report_settle(r, traces, count, left_out, setup);
    diagnose_all(r, setup);
    look_at_layers(r);
    r->regime = todays_regime(r);
    cli_report_proof(r);
    look_at_shift(r);
    compare_strategies(r);
    count_copies(r);
    ask_what_if(r, setup);
    sweep_batches(r);
    size_groups(r);
    cli_report_words(r);
    cli_progress_end();
}

static void free_lists(cli_report *r)
{
    for (int i = 0; r->shift && i < r->traces; i++) free(r->shift[i].hottest);
    for (ptrdiff_t i = 0; i < arrlen(r->strategy); i++) free(r->strategy[i].name);
    for (ptrdiff_t i = 0; i < arrlen(r->what_if); i++) free(r->what_if[i].name);
    for (ptrdiff_t i = 0; i < arrlen(r->hint); i++) free(r->hint[i]);
    for (ptrdiff_t i = 0; i < arrlen(r->line); i++) {
        free(r->line[i].name);
        free(r->line[i].value);
        free(r->line[i].meaning);
    }
    for (ptrdiff_t i = 0; i < arrlen(r->next); i++) {
        free(r->next[i].what);
        free(r->next[i].command);
    }
    arrfree(r->strategy);
    arrfree(r->what_if);
    arrfree(r->hint);
    arrfree(r->line);
    arrfree(r->next);
}

void cli_report_free(cli_report *r)
{
    void *list[] = {r->plan_loads,     r->shown_loads,    r->today_devices,
                    r->one_devices,    r->copies_devices, r->layer,      r->worst,       r->curve,
                    r->headline,       r->verdict,        r->reason,     r->input_line,  r->judged_on,  r->equal,
                    r->memory[0],      r->memory[1],      r->memory[2],  r->left_out,
                    r->now.traffic,    r->now.device,     r->then.traffic, r->then.device};
    free_lists(r);
    cli_window_free(&r->plan);
    cli_window_free(&r->judge);
    free(r->shift);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) free(list[i]);
}

void cli_presets(FILE *f)
{
    fputs("models (--model)\n", f);
    for (int32_t i = 0; moe_ep_model_preset_name(i); i++) {
        moe_ep_model m;
        if (moe_ep_model_by_name(moe_ep_model_preset_name(i), &m, NULL) != MOE_EP_OK) continue;
        fprintf(f, "  %-18s %2d layers, %3d experts, top-%d, %d x %d   %s\n",
                moe_ep_model_preset_name(i), m.num_moe_layers, m.num_experts, m.top_k, m.hidden,
                m.inter, m.source);
    }
    fputs("machines (--machine)\n", f);
    for (int32_t i = 0; moe_ep_machine_preset_name(i); i++) {
        moe_ep_machine m;
        if (moe_ep_machine_by_name(moe_ep_machine_preset_name(i), &m, NULL) != MOE_EP_OK) continue;
        fprintf(f, "  %-18s %s\n", moe_ep_machine_preset_name(i), m.source);
    }
    fputs("routers (route --router)\n", f);
    for (int32_t i = 0; i < moe_ep_router_count(); i++)
        fprintf(f, "  %-26s %s\n", moe_ep_router_name(i), moe_ep_router_source(i));
}
