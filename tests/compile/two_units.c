/* A second file with declarations only, linked with alone.c and one implementation. */
#include "moe_ep.h"
int moe_ep_test_b(void);
int moe_ep_test_b(void) { return moe_ep_version()[0] != 0; }
