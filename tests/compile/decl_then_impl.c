/* First declarations (through some other header, say), later the implementation. */
#include "moe_ep.h"
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#include "use.h"
