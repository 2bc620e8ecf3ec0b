/* <complex.h> defines the macro I. */
#include <complex.h>
#include "moe_ep.h"
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#ifndef I
#  error "the macro I of <complex.h> was taken away"
#endif
#include "use.h"
