/* The implementation asked for twice in one file. */
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#include "moe_ep.h"
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#include "use.h"
