/* tests/fuzz/simulate_inside.c - the readers inside `moe-ep simulate`, which have no header of their own
 * SPDX-License-Identifier: MIT */
#include "cli_simulate.c"

/* -1: what was read is no cluster. */
int readers_cluster(const char *path);
int readers_cluster(const char *path)
{
    cli_simulate s;
    memset(&s, 0, sizeof s);
    s.cluster.path = path;
    read_cluster(&s);
    return s.cluster.ep >= 1 && s.cluster.tp >= 1 && s.cluster.devices >= 1 && s.setup.machine.memory_bytes > 0.0 &&
                   isfinite(s.setup.machine.ll_dispatch.intra_Bps)
               ? 0
               : -1;
}

/* -1: what was read are no requests in order. */
int readers_requests(const char *path);
int readers_requests(const char *path)
{
    cli_simulate s;
    int good = 1;
    memset(&s, 0, sizeof s);
    s.trace = path;
    read_requests(&s);
    for (ptrdiff_t i = 0; i < arrlen(s.request); i++) {
        const cli_request *q = &s.request[i];
        good &= q->input >= 1 && q->output >= 1 && q->arrival_s >= 0.0 && isfinite(q->arrival_s) &&
                (i == 0 || q->arrival_s >= q[-1].arrival_s);
    }
    arrfree(s.request);
    return good ? 0 : -1;
}
