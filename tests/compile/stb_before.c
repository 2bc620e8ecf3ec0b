/* The host's stb_ds first, its implementation in this file. */
#define STB_DS_IMPLEMENTATION
#include "stb_ds.h"
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#include "use.h"
