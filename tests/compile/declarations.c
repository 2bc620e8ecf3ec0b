/* The declarations alone, as the first and only include. */
#include "moe_ep.h"

extern int moe_ep_test_declarations(void);
extern int moe_ep_test_declarations(void)
{
    moe_ep_error err;
    moe_ep_rng rng = moe_ep_rng_seed(1);
    err.status = MOE_EP_OK;
    err.arg = err.what = "";
    err.index = -1;
    err.value = 0.0;
    return moe_ep_version()[0] == MOE_EP_VERSION_STRING[0] && moe_ep_rng_below(&rng, 6) < 6 &&
           moe_ep_error_text(&err, NULL, 0) == 2;
}
