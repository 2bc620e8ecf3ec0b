/* cli_inspect.h - moe-ep inspect: every figure of it
 * SPDX-License-Identifier: MIT */
#ifndef CLI_INSPECT_H
#define CLI_INSPECT_H

#include "chart.h"
#include "cli_setup.h"

enum { CLI_REASONS = 16 /* there are fourteen */ };

/* What is asked for, and all that was found. */
typedef struct cli_inspect {
    cli_setup setup;
    moe_ep_model given;   /* instead of the model's; -1 = not given, and num_layers are the dense ones */
    const char *weights;  /* NULL = as published, or bf16                                              */
    int32_t ep, tp, dp, redundant; /* redundant -1 = not given, until it is settled                    */
    int32_t expert_tp;    /* devices that cut each expert: asked for, 0 = not given                    */
    int32_t cut;          /* the same, settled                                                         */
    int32_t kv_heads;     /* over which the cache can be shared, 0 = not given, until it is settled    */
    int32_t kv_on_device; /* of the model's kv_elems                                                   */
    int64_t sequences;    /* of the devices that share an attention                                    */
    int64_t tokens;       /* per device                                                                */
    double memory_bytes, reserve_bytes;
    int uneven, exit_code, normal; /* normal: the kernels                                              */

    moe_ep_params_result params;
    moe_ep_memory_result memory;
    int32_t smallest_ep;  /* legal on these devices and fits, of whole experts (or cut as asked), 0 = none */
    int32_t needed, needed_ep; /* then: the fewest devices that do, and at which EP; 0 = none is enough */
    moe_ep_reason reason[CLI_REASONS];
    int32_t reasons;
    int legal;
    moe_ep_ep_vs_tp_result against; /* with cut experts: all devices' EP against what is asked for      */
    int32_t group;        /* devices that are compared                                                 */
    const char *not_compared; /* why there is no `against`; NULL = there is                            */
    const char *headline, *why;
} cli_inspect;

void cli_inspect_text(const void *data, FILE *f, const chart_text *t);
void cli_inspect_json(const void *data, FILE *f);

#endif
