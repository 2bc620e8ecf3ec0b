/* tests/fuzz/fuzz_basics.c - section 0: texts of errors, scratch memory, random numbers
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

static void basics_case(void)
{
    static const char *const words[] = {"", "ids", "a rather long name of an argument that fills the line", NULL};
    moe_ep_error e = fz_stale;
    moe_ep_rng r = moe_ep_rng_seed(fz_u64()), twin = r;
    size_t size = (size_t)fz_int(0, 120), written;
    char *text = (char *)fz_out(size);
    int i;
    fz_where = "error_text";
    e.status = (moe_ep_status)(fz_chance(.7) ? fz_int(-18, 2) : fz_bad_i32());
    e.arg = words[fz_int(0, 3)];
    e.what = words[fz_int(0, 3)];
    e.index = fz_bad_i64();
    e.value = fz_chance(.5) ? fz_bad_double() : (double)fz_int(-1000, 1000);
    written = moe_ep_error_text(fz_chance(.9) ? &e : NULL, fz_chance(.9) ? text : NULL, size);
    if (size > 0 && ((unsigned char *)text)[0] != 0xa5 && !memchr(text, 0, size)) fz_fail("no end, %zu", written);
    if (!moe_ep_status_str(e.status) || !moe_ep_isa_name((moe_ep_isa)fz_bad_i32())) fz_fail("NULL text");
    if (fz_seldom(64) &&
        (moe_ep_isa_best() < MOE_EP_ISA_PORTABLE || strcmp(moe_ep_version(), MOE_EP_VERSION_STRING) != 0))
        fz_fail("version %s", moe_ep_version());
    fz_where = "rng";
    for (i = 0; i < 8; i++) {
        uint64_t n = fz_chance(.5) ? fz_u64() : (uint64_t)fz_int(0, 9), x = moe_ep_rng_below(&r, n);
        double u = moe_ep_rng_f64(&r);
        if (n > 0 ? x >= n : x != 0) fz_fail("%llu of %llu", (unsigned long long)x, (unsigned long long)n);
        if (!(u >= 0.0 && u < 1.0)) fz_fail("%g", u);
        if (moe_ep_rng_u64(NULL) != 0) fz_fail("a number of no generator");
        if (x != moe_ep_rng_below(&twin, n) || u > moe_ep_rng_f64(&twin)) fz_fail("not repeated");
    }
    fz_where = "scratch";
    { /* any scratch, used by a call that sorts: refused, or the same result as with malloc */
        double loads[9], share = fz_unit();
        int n = fz_int(1, 9);
        int64_t with, without;
        for (i = 0; i < n; i++) loads[i] = (double)fz_int(0, 99);
        with = moe_ep_experts_for_share(loads, n, share, fz_scratch(), &e);
        fz_scratch_done();
        without = moe_ep_experts_for_share(loads, n, share, NULL, NULL);
        if (with != without && with != MOE_EP_ERR_SCRATCH) fz_fail("%lld, %lld", (long long)with, (long long)without);
    }
}

FUZZ_TARGET(basics)
