/* The implementation alone. */
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
