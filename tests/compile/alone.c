/* The declarations, nothing before them; the bodies come from another object. */
#include "moe_ep.h"
#include "use.h"
