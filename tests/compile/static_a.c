/* A private copy; static_b.c has its own, both in one program. */
#define MOE_EP_STATIC
#include "moe_ep.h"
#include "use.h"
