/* cli_map.h - placements as files: SGLang's physical_to_logical_map, TensorRT-LLM's YAML, CSV
 * SPDX-License-Identifier: MIT */
#ifndef CLI_MAP_H
#define CLI_MAP_H

#include "cli_base.h"
#include "cli_read.h"
#include "cli_setup.h"

/* Which expert stands in which slot, as a file says it. */
typedef struct cli_map {
    const char *path;
    int32_t layers, slots, devices; /* devices 0 = the file does not say             */
    int32_t *expert;                /* (layers, slots), -1 = empty                   */
    int32_t *number;                /* (layers) number of the layer, 0.. in order    */
    int numbered;                   /* 1: the file gives these numbers (not JSON)    */
    int32_t *device_slots;          /* (devices) slots on each, NULL = not said      */
    int32_t *slot_device;           /* (slots), NULL = not said                      */
} cli_map;

/* Whether a file looks like a map and not like loads. */
int cli_map_is(const char *path);
/* Reads {"physical_to_logical_map": [layer][slot]}, TensorRT-LLM's initial_global_assignments or a CSV
 * layer,device,slot,expert; leaves on any fault. */
cli_map cli_map_read(const char *path);

void cli_map_free(cli_map *m);

/* The row of the map that belongs to each of the L layers of a recording, (L): by number, or, when nothing of the
 * numbers is in both or one of the two has none, in order.  NULL when they do not fit.  *words = why not, or a sentence
 * about what is taken for granted; malloc'd, NULL = nothing. */
int32_t *cli_map_match(const cli_map *m, const cli_trace *t, char **words);
/* The same; leaves when they do not fit.  The sentence goes to the setup, if it is not NULL. */
int32_t *cli_map_rows(const cli_map *m, const cli_trace *t, cli_setup *s);
/* Leaves when the file does not say its devices and its slots do not divide over these; not where --slots (0 = was not
 * given, -1 = the command has no such option) says that they are as many. */
void cli_map_check_even(const cli_map *m, int32_t devices, int32_t slots);
/* The map as a placement of t's layers; devices 0 = what the map says.  Every expert must have a slot.  Its memory
 * lives to the end of the program. */
moe_ep_placement cli_map_placement(const cli_map *m, const cli_trace *t, const int32_t *rows, int32_t devices,
                                   int32_t nodes);
/* The same; *mem is its memory, to be freed. */
moe_ep_placement cli_map_placement_in(const cli_map *m, const cli_trace *t, const int32_t *rows, int32_t devices,
                                      int32_t nodes, void **mem);

/* The form of a plan goes by the end of its name.  cli_map_check_name leaves unless it is .json, .csv or .yaml. */
void cli_map_check_name(const char *name);
/* 1 when the form knows no empty slots: JSON and YAML; see cli_map_full. */
int cli_map_wants_full(const char *name);
/* Writes the plan in that form.  expert (layers, slots), slot_device (slots), number (layers) in the file; idle
 * (layers), NULL = none: layers without load, which the YAML leaves out. */
void cli_map_put(FILE *f, const char *name, int32_t layers, int32_t slots, const int32_t *expert,
                 const int32_t *slot_device, const int32_t *number, const unsigned char *idle);
/* How a server takes the file, "SGLang loads it with ..."; malloc'd, NULL = there is nothing to say. */
char *cli_map_usage(const char *name, int32_t experts, int32_t slots, int32_t devices);

/* The single writers. */
void cli_map_put_json(FILE *f, int32_t layers, int32_t slots, const int32_t *expert);
void cli_map_put_csv(FILE *f, int32_t layers, int32_t slots, const int32_t *expert, const int32_t *slot_device,
                     const int32_t *number);

void cli_map_put_yaml(FILE *f, int32_t layers, int32_t slots, const int32_t *expert, const int32_t *slot_device,
                      const int32_t *number, const unsigned char *idle);
/* Rows of experts (stb_ds of stb_ds, all of one length) and the numbers of their layers (stb_ds). */
int32_t **cli_map_read_yaml(const char *path, int32_t **number);

/* slot_expert (L,P) without empty slots: an empty one gets a further copy of an expert of the same device, one that
 * has all its copies there, which changes no load, or else one that brings least of loads (L,E) there.  Leaves when a
 * device is empty.  *filled = how many; *worst = max/mean of the worst layer then, 0 = no load changed. */
int32_t *cli_map_full(const moe_ep_placement *p, const double *loads, int64_t *filled, double *worst);

/* 1 when the name ends so, whatever the case. */
int cli_has_suffix(const char *name, const char *tail);

#endif
