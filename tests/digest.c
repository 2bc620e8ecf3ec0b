/* tests/digest.c - prints the digest of every section; tests/determinism.sh compares builds by it.
 * SPDX-License-Identifier: MIT
 * digest layer: the numbers of the expert layer themselves, where builds may differ in the last bits. */
#include "digest.h"

static digest_input in;

int main(int argc, char **argv)
{
    int s;
    digest_inputs(&in);
    if (argc > 1 && strcmp(argv[1], "layer") == 0) {
        static float y[DIGEST_T * DIGEST_H];
        if (digest_layer(&in, y) != MOE_EP_OK) return 1;
        for (s = 0; s < DIGEST_T * DIGEST_H; s++) printf("%.9g\n", (double)y[s]);
        return 0;
    }
    for (s = 0; s < DIGEST_SECTIONS; s++) printf("%d %016llx\n", s, (unsigned long long)digest_section(s, &in));
    return 0;
}
