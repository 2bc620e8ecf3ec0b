/* stb_ds behind the header. */
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#define STB_DS_IMPLEMENTATION
#include "stb_ds.h"
#include "use.h"
