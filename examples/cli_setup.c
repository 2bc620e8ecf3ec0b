/* cli_setup.c - what the command line does not say: shapes, machine, devices
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_setup.h"

#include <stdarg.h>
#include <stdlib.h>

/* Adds a sentence to what was assumed. */
void cli_note(cli_setup *s, const char *format, ...)
{
    char *line = NULL, *all;
    va_list args;
    va_start(args, format);
    if (vasprintf(&line, format, args) < 0) cli_die(CLI_INTERNAL, "out of memory");
    va_end(args);
    cli_clean(line);
    all = cli_format("%s%s%s", s->assumed ? s->assumed : "", s->assumed ? "\n" : "", line);
    free(line);
    free(s->assumed);
    s->assumed = all;
}

/* The preset that has this many experts (and choices, layers as far as known); -1 when none has. */
static int32_t matching_model(int32_t E, int32_t K, int32_t L)
{
    int32_t best = -1, best_score = -1;
    for (int32_t i = 0; moe_ep_model_preset_name(i); i++) {
        moe_ep_model m;
        int32_t score = 0;
        if (moe_ep_model_by_name(moe_ep_model_preset_name(i), &m, NULL) != MOE_EP_OK ||
            m.num_experts != E)
            continue;
        if (K > 0 && m.top_k != K) continue;
        score += m.num_moe_layers == L;
        if (score > best_score) {
            best_score = score;
            best = i;
        }
    }
    return best;
}

/* A model that was named for a recording of another one: its shapes may be wanted all the same. */
static void note_other_model(cli_setup *s, int32_t E, int32_t K)
{
    const moe_ep_model *m = &s->model;
    if (m->num_experts == E && (K == 0 || m->top_k == K)) return;
    cli_note(s, "Matrix shapes of %s (%d experts%s) for a recording of %d experts%s: of that model the shapes alone "
                "are taken.", m->name, m->num_experts, K > 0 ? cli_keep(cli_format(", top-%d", m->top_k)) : "", E,
             K > 0 ? cli_keep(cli_format(", top-%d", K)) : "");
}

/* What a recording of fewer layers says of the times of the model, and that one of more is another model's. */
static void note_layers(cli_setup *s, int32_t L)
{
    if (s->stands_in || L == s->model.num_moe_layers) return;
    if (L > s->model.num_moe_layers)
        cli_note(s, "The recording has %d layers with experts, more than the %d of %s: of that model the shapes alone "
                    "are taken, and times of a step cover all that were recorded.", L, s->model.num_moe_layers,
                 s->model.name);
    else
        cli_note(s, "Times of a step, and tokens/s from them, cover the %d recorded layer%s alone; %s has %d "
                    "with experts.", L, L == 1 ? "" : "s", s->model.name, s->model.num_moe_layers);
    if (L < s->model.num_moe_layers && s->other_s > 0.0)
        cli_note(s, "Of the %s of --other-ms, which are of a whole step, the recorded layers' share counts.",
                 cli_seconds(s->other_s));
}

void cli_setup_sizes(cli_setup *s, int32_t L, int32_t E, int32_t K)
{
    moe_ep_error err;
    int32_t found = matching_model(E, K, L);
    const char *name = s->model_name;
    if (!name && found >= 0) {
        name = moe_ep_model_preset_name(found);
        cli_note(s,
                 "Shapes of %s, the preset with %d experts%s; --model, --hidden and --intermediate "
                 "change them.",
                 name, E, K > 0 ? cli_keep(cli_format(" and top-%d", K)) : "");
    }
    if (!name) {
        name = moe_ep_model_preset_name(0);
        s->stands_in = 1;
        cli_note(s,
                 "No preset has %d experts%s: matrix shapes of %s stand in; --hidden and "
                 "--intermediate give the real ones.",
                 E, K > 0 ? cli_keep(cli_format(" and top-%d", K)) : "", name);
    }
    if (moe_ep_model_by_name(name, &s->model, &err) != MOE_EP_OK)
        cli_die(CLI_USAGE, "--model %s: no such preset; moe-ep presets lists them",
                cli_printable(name));
    if (s->model_name && E > 0) note_other_model(s, E, K);
    if (s->hidden > 0) s->model.hidden = s->hidden;
    if (s->intermediate > 0) s->model.inter = s->intermediate;
}

void cli_setup_groups(const cli_setup *s, int32_t E)
{
    if (s->groups > 0 && E % s->groups != 0)
        cli_die(CLI_USAGE, "--groups %d: %d experts do not divide into %d groups of one size", s->groups, E, s->groups);
}

/* No groups are one. */
static int32_t router_groups(const cli_setup *s)
{
    return s->groups > 0 ? s->groups : 1;
}

moe_ep_place_policy cli_setup_eplb(const cli_setup *s)
{
    return router_groups(s) % s->nodes == 0 ? MOE_EP_PLACE_EPLB_HIERARCHICAL : MOE_EP_PLACE_EPLB_GLOBAL;
}

void cli_setup_hierarchical(const cli_setup *s, const char *policy)
{
    int32_t groups = router_groups(s);
    if (groups % s->nodes != 0)
        cli_die(CLI_USAGE, "--policy %s: %d group%s of experts do%s not divide over %d nodes; --groups says how many "
                           "the router has", policy, groups, groups == 1 ? "" : "s", groups == 1 ? "es" : "", s->nodes);
}

void cli_setup_model(cli_setup *s, int32_t L, int32_t E, int32_t *K)
{
    int32_t layers;
    cli_setup_groups(s, E);
    cli_setup_sizes(s, L, E, *K);
    if (*K == 0) {
        *K = s->model.num_experts == E ? s->model.top_k : 1;
        cli_note(s,
                 "The recording does not say how many experts a token takes: top-%d, from %s; "
                 "--topk changes it.",
                 *K, s->model.num_experts == E ? s->model.name : "no source at all");
    }
    if (*K > E)
        cli_die(CLI_USAGE, "%s %d: there are only %d experts", s->top_k > 0 ? "--topk" : "the recording's top", *K, E);
    note_layers(s, L);
    if (s->model_name && s->model.num_experts == E && s->model.top_k == *K && s->model.top_groups > 0 &&
        s->model.top_groups < s->model.num_groups) {
        s->router_groups = s->model.num_groups;
        s->top_groups = s->model.top_groups;
        cli_note(s, "Chance is that of the router of %s: a token's experts come from %d of %d groups.", s->model.name,
                 s->top_groups, s->router_groups);
    }
    layers = s->stands_in ? 1 : s->model.num_moe_layers; /* nobody knows: a step is what was recorded */
    s->model.num_experts = E;
    s->model.top_k = *K;
    s->model.num_moe_layers = s->model.num_layers = L;
    if (s->model.num_groups > 0 && E % s->model.num_groups != 0)
        s->model.num_groups = s->model.top_groups = 0;
    s->whole = s->model;
    s->whole.num_moe_layers = s->whole.num_layers = layers;
}

void cli_setup_machine(cli_setup *s)
{
    moe_ep_error err;
    if (!s->machine_name) {
        s->machine_name = moe_ep_machine_preset_name(0);
        cli_note(s, "Machine %s; --machine changes it.", s->machine_name);
    }
    if (moe_ep_machine_by_name(s->machine_name, &s->machine, &err) != MOE_EP_OK)
        cli_die(CLI_USAGE, "--machine %s: no such preset; moe-ep presets lists them",
                s->machine_name);
}

void cli_setup_devices(cli_setup *s, int32_t E)
{
    int32_t each;
    if (s->devices == 0) {
        s->devices = E < 8 ? E : 8;
        cli_note(s, "%d devices; --devices changes it.", s->devices);
    }
    each = (E + s->devices - 1) / s->devices;
    if (s->slots == 0) {
        s->slots = (each + 1) * s->devices;
        cli_note(s, "%d slots: room for one more expert on each device; --slots changes it.",
                 s->slots);
    }
    if (s->slots < E && s->slots_of)
        cli_die(CLI_USAGE, "%s has %d slots, fewer than the %d experts of the recording", s->slots_of, s->slots, E);
    if (s->slots < E) cli_die(CLI_USAGE, "--slots %d: fewer than the %d experts", s->slots, E);
    cli_setup_nodes(s);
}

void cli_setup_check_nodes(const cli_setup *s)
{
    if (s->nodes > s->devices) cli_die(CLI_USAGE, "--nodes %d: more than the %d devices", s->nodes, s->devices);
    if (s->devices % s->nodes != 0)
        cli_die(CLI_USAGE, "--nodes %d: %d devices do not divide over them; every node has as many devices", s->nodes,
                s->devices);
}

void cli_setup_nodes(cli_setup *s)
{
    int32_t per = s->machine.devices_per_node > 0 ? s->machine.devices_per_node : s->devices;
    s->nodes_given = s->nodes > 0;
    if (s->nodes > 0) {
        cli_setup_check_nodes(s);
        return;
    }
    if (s->devices > per && s->devices % per != 0)
        cli_die(CLI_USAGE,
                "--devices %d: not a whole number of nodes of %d, as %s has them; --nodes says how many nodes of equal "
                "size there are, --machine what they are",
                s->devices, per, s->machine.name);
    s->nodes = s->devices > per ? s->devices / per : 1;
    if (s->nodes > 1)
        cli_note(s, "%d nodes of %d devices, as %s has them; --nodes changes it.", s->nodes, per, s->machine.name);
}

void cli_setup_layout(cli_setup *s)
{
    if (!s->machine_name) s->machine_name = moe_ep_machine_preset_name(0);
    cli_setup_machine(s);
    cli_setup_nodes(s);
    if (!s->nodes_given && s->nodes == 1 && s->devices > 1)
        cli_note(s, "All %d devices on one node; --nodes changes it.", s->devices);
}

const char *cli_kernels_name(cli_kernels kernels)
{
    return kernels == CLI_KERNELS_NORMAL ? "normal" : kernels == CLI_KERNELS_LOW_LATENCY ? "low-latency" : "auto";
}

const char *cli_kernels_args(const cli_setup *s)
{
    return s->kernels == CLI_KERNELS_NORMAL        ? " --kernels normal"
           : s->kernels == CLI_KERNELS_LOW_LATENCY ? " --kernels low-latency"
                                                   : "";
}

double cli_expert_bytes(const moe_ep_model *m)
{
    return (m->ungated ? 2.0 : 3.0) * m->hidden * m->inter *
           (m->weight_bytes > 0.0 ? m->weight_bytes : 2.0);
}
