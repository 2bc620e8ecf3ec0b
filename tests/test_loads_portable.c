/* tests/test_loads_portable.c - section 2 once more, by the portable loops.  SPDX-License-Identifier: MIT */
#define MOE_EP_STATIC
#define MOE_EP_NO_SIMD
#define MOE_EP_NO_FORWARD
#include "test_loads.c"
