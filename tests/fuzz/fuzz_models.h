/* tests/fuzz/fuzz_models.h - published models and machines, some with a field or two replaced
 * SPDX-License-Identifier: MIT */
#ifndef FUZZ_MODELS_H
#define FUZZ_MODELS_H

#include "fuzz.h"

/* mutate only at 4/8 byte words outside pointer fields: macro list */
static void mutate(void *base, size_t n, const size_t *ptr, int np, int isd)
{
    (void)isd;
    int k = fz_int(1, 2);
    if (fz_calm) return;
    while (k--) {
        size_t o = (fz_u64() % (n / 4)) * 4;
        int bad = 0;
        for (int i = 0; i < np; i++)
            if (o + 7 >= ptr[i] && o < ptr[i] + 8) bad = 1;
        if (bad) continue;
        if (fz_chance(.5) && o % 8 == 0 && o + 8 <= n) {
            bad = 0;
            for (int i = 0; i < np; i++)
                if (o + 7 >= ptr[i] && o < ptr[i] + 8) bad = 1;
            if (!bad) {
                if (fz_chance(.5)) {
                    double v = fz_bad_double();
                    memcpy((char *)base + o, &v, 8);
                } else {
                    int64_t v = fz_bad_i64();
                    memcpy((char *)base + o, &v, 8);
                }
            }
        } else {
            int32_t v = fz_bad_i32();
            memcpy((char *)base + o, &v, 4);
        }
    }
}
#define OFF(t, f) offsetof(t, f)
static const size_t two_pointers[] = {0, 8};
static moe_ep_model any_model(void)
{
    static const char *n;
    int c = 0;
    while (moe_ep_model_preset_name(c)) c++;
    n = moe_ep_model_preset_name(fz_int(0, c - 1));
    moe_ep_model m;
    moe_ep_error e = fz_stale;
    moe_ep_model_by_name(n, &m, &e);
    if (fz_chance(.3)) {
        m.num_experts = fz_int(1, 8);
        m.top_k = 1;
    }
    if (fz_chance(.3)) mutate(&m, sizeof m, two_pointers, 2, 0);
    return m;
}

static moe_ep_machine any_machine(void)
{
    int c = 0;
    while (moe_ep_machine_preset_name(c)) c++;
    moe_ep_machine m;
    moe_ep_error e = fz_stale;
    moe_ep_machine_by_name(moe_ep_machine_preset_name(fz_int(0, c - 1)), &m, &e);
    if (fz_chance(.1)) memset(&m, 0, sizeof m);
    if (fz_chance(.3)) mutate(&m, sizeof m, two_pointers, 2, 0);
    return m;
}
#endif
