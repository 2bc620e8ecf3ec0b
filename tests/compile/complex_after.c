/* <complex.h> behind the header. */
#define MOE_EP_IMPLEMENTATION
#include "moe_ep.h"
#include <complex.h>
#include "use.h"
