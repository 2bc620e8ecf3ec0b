/* The declarations twice. */
#include "moe_ep.h"
#include "moe_ep.h"
#include "use.h"
