/* tests/test_fuzz.c - the fuzz targets as unit tests: every row of findings.h, and some thousand random inputs.
 * SPDX-License-Identifier: MIT */
#include "t.h"

#define FUZZ_TABLE
#include "fuzz/fuzz_balance.c"
#include "fuzz/fuzz_basics.c"
#include "fuzz/fuzz_capacity.c"
#include "fuzz/fuzz_cost.c"
#include "fuzz/fuzz_diagnose.c"
#include "fuzz/fuzz_dispatch.c"
#include "fuzz/fuzz_forward.c"
#include "fuzz/fuzz_hooks.c"
#include "fuzz/fuzz_loads.c"
#include "fuzz/fuzz_place.c"
#include "fuzz/fuzz_route.c"
#include "fuzz/fuzz_sim.c"
#include "fuzz/fuzz_split.c"

#include "fuzz/findings.h"

static const struct fuzz_entry {
    const char *name;
    void (*one_case)(void);
} targets[] = {{"balance", balance_case},   {"basics", basics_case},     {"capacity", capacity_case},
               {"cost", cost_case},         {"diagnose", diagnose_case}, {"dispatch", dispatch_case},
               {"forward", forward_case},   {"hooks", hooks_case},       {"loads", loads_case},
               {"place", place_case},       {"route", route_case},       {"sim", sim_case},
               {"split", split_case}};
enum { TARGETS = (int)(sizeof targets / sizeof targets[0]) };

/* A case that fails prints itself and aborts: that it came back is the check. */
TEST(every_finding_stays_fixed)
{
    int i, k, rows = (int)(sizeof findings / sizeof findings[0]);
    for (i = 0; i < rows; i++) {
        uint8_t data[2048];
        size_t n = 0;
        const char *hex;
        unsigned byte;
        for (hex = findings[i].input; n < sizeof data && sscanf(hex, "%2x", &byte) == 1; hex += 2)
            data[n++] = (uint8_t)byte;
        for (k = 0; k < TARGETS && strcmp(targets[k].name, findings[i].target) != 0; k++) {}
        CHECK(k < TARGETS || strcmp(findings[i].target, "readers") == 0);
        if (k < TARGETS) fz_run(targets[k].name, targets[k].one_case, data, n);
    }
    CHECK(rows >= 30);
}

TEST(random_inputs)
{
    int k, i;
    for (k = 0; k < TARGETS; k++) {
        uint64_t state = t_seed + (uint64_t)k;
        for (i = 0; i < 500; i++) {
            uint8_t data[40];
            size_t n = i % 2 ? 9u : sizeof data, j;
            for (j = 0; j < n; j++) data[j] = (uint8_t)t_u64(&state);
            fz_run(targets[k].name, targets[k].one_case, data, n);
        }
        CHECK(fz_output_count == 0);
    }
}

T_MAIN
