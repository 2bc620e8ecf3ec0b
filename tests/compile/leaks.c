/* Preprocessed by include.sh: which macros does the header leave behind? */
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
