/* lab_cluster.h - reads LLMServingSim's cluster file (first instance of the first node) with jansson
 * SPDX-License-Identifier: MIT */
#ifndef LAB_CLUSTER_H
#define LAB_CLUSTER_H

#include <jansson.h>
#include "lab.h"

typedef struct lab_cluster {
    moe_ep_model model;
    moe_ep_machine machine; /* the preset of the same name with the file's memory and links */
    int tp, ep;
} lab_cluster;

/* link_bw in GiB/s (binary), link_latency in ns, mem_size in GB, mem_bw in GB/s, as that simulator reads them. */
static inline lab_cluster lab_read_cluster(const char *path)
{
    lab_cluster c;
    json_error_t bad;
    json_t *root = json_load_file(path, 0, &bad);
    const char *model, *hardware;
    double link_GBps, link_ns, size_GB, mem_GBps;
    if (!root ||
        json_unpack_ex(root, &bad, 0, "{s:F s:F s:[{s:[{s:s s:s s:{s:F s:F} s:i s:i}]}]}", "link_bw", &link_GBps,
                       "link_latency", &link_ns, "nodes", "instances", "model_name", &model, "hardware", &hardware,
                       "npu_mem", "mem_size", &size_GB, "mem_bw", &mem_GBps, "tp_size", &c.tp, "ep_size", &c.ep)) {
        fprintf(stderr, "%s:%d: %s\n", path, bad.line, bad.text);
        exit(1);
    }
    lab_need(moe_ep_model_by_name(model, &c.model, &err));
    lab_need(moe_ep_machine_by_name(hardware, &c.machine, &err));
    c.machine.memory_bytes = 1e9 * size_GB, c.machine.memory_Bps = 1e9 * mem_GBps;
    c.machine.ll_dispatch.alpha_s = c.machine.ll_combine.alpha_s = 1e-9 * link_ns;
    c.machine.ll_dispatch.intra_Bps = c.machine.ll_combine.intra_Bps = 1073741824.0 * link_GBps;
    json_decref(root);
    return c;
}

#endif
