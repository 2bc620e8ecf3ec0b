/* tests/digest.c - prints the digest of every section; tests/determinism.sh compares builds by it.
 * SPDX-License-Identifier: MIT */
#include "digest.h"

static digest_input in;

int main(void)
{
    int s;
    digest_inputs(&in);
    for (s = 0; s < DIGEST_SECTIONS; s++) printf("%d %016llx\n", s, (unsigned long long)digest_section(s, &in));
    return 0;
}
