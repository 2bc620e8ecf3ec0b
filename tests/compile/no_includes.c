/* The declarations drag in nothing but <stddef.h> and <stdint.h>. */
#include "moe_ep.h"
#if defined(EOF) || defined(RAND_MAX) || defined(HUGE_VAL) || defined(assert) || defined(CBLAS_H) ||           \
    defined(complex) || defined(I) || defined(EXIT_FAILURE) || defined(CHAR_BIT)
#    error "another header came along"
#endif
#include "use.h"
