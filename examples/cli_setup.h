/* cli_setup.h - what the command line asks for, and what it leaves to be found out
 * SPDX-License-Identifier: MIT */
#ifndef CLI_SETUP_H
#define CLI_SETUP_H

#include "cli_base.h"

/* Kernels of the all-to-all: auto goes by the tokens per device. */
typedef enum cli_kernels { CLI_KERNELS_AUTO, CLI_KERNELS_NORMAL, CLI_KERNELS_LOW_LATENCY } cli_kernels;

/* What the command line asks for; 0 and NULL mean "find out". */
typedef struct cli_setup {
    int32_t devices, slots, nodes, groups, top_k;
    const char *slots_of;      /* the map that the slots are of, NULL = --slots                   */
    int64_t tokens;            /* per step, over all devices                                      */
    const char *model_name, *machine_name;
    int32_t hidden, intermediate; /* instead of the model's                                       */
    double other_s;            /* attention and the rest of a step, seconds                       */
    double target;             /* max/mean that copies are searched for                           */
    double min_gain;           /* share of a step that must be saved                              */
    double horizon_steps;
    char *read_args;           /* options of the reading, as given, " --counts"; NULL = none      */
    const char *only;          /* of --only, which is not among them; NULL = none                  */
    cli_kernels kernels;
    int nodes_given;           /* --nodes was there                                               */
    int round_robin;           /* today's placement: expert e on device e mod D                   */
    const struct cli_map *map; /* today's placement, NULL = blocks or round robin                 */
    moe_ep_model model;        /* filled by cli_setup_model, with the layers of the recording     */
    moe_ep_model whole;        /* the same with its own layers: what other_s is the rest of       */
    int stands_in;             /* 1: no preset fits, the model is any                             */
    int32_t router_groups, top_groups; /* of a named model that limits a token's groups, else 0   */
    moe_ep_machine machine;
    char *assumed;             /* sentences about what was found out, one per line                */
} cli_setup;

/* Adds a sentence to what was assumed. */
void cli_note(cli_setup *s, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The model by name, or the preset that fits E experts, *K choices (0 = not known, then filled) and L layers.  Notes
 * where the named one has others, and where it has more layers, which the times do not cover, or fewer. */
void cli_setup_model(cli_setup *s, int32_t L, int32_t E, int32_t *K);
/* Only for the size of an expert: K choices are used when they are known (not 0); E 0 = there is no recording. */
void cli_setup_sizes(cli_setup *s, int32_t L, int32_t E, int32_t K);
void cli_setup_machine(cli_setup *s);
/* Devices, slots and nodes; wants the machine. */
void cli_setup_devices(cli_setup *s, int32_t E);
/* Nodes alone, for devices that are known; wants the machine.  Up to the devices that a node of it has they are one
 * node, above as many as it takes; nodes are of one size. */
void cli_setup_nodes(cli_setup *s);
/* Leaves when the devices do not divide over the nodes that were given; wants both. */
void cli_setup_check_nodes(const cli_setup *s);
/* Leaves when the experts do not divide over the groups that were given. */
void cli_setup_groups(const cli_setup *s, int32_t E);
/* What "eplb" is for these groups and nodes, as upstream's rebalance_experts chooses; wants the nodes. */
moe_ep_place_policy cli_setup_eplb(const cli_setup *s);
/* Leaves when hierarchical EPLB, by this name, cannot be had; wants the nodes. */
void cli_setup_hierarchical(const cli_setup *s, const char *policy);
/* Nodes for commands that want nothing else of the machine. */
void cli_setup_layout(cli_setup *s);

const char *cli_kernels_name(cli_kernels kernels);
/* " --kernels normal" where they were chosen; "" for auto. */
const char *cli_kernels_args(const cli_setup *s);

/* Weights of one expert in one layer. */
double cli_expert_bytes(const moe_ep_model *m);

#endif
