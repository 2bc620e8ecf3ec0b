/* The second private copy of the program. */
#define MOE_EP_STATIC
#include "moe_ep.h"
int moe_ep_test_b(void);
int moe_ep_test_b(void)
{
    moe_ep_rng rng = moe_ep_rng_seed(2);
    return moe_ep_rng_below(&rng, 6) < 6;
}
