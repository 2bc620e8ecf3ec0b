/* tests/test_forward_amx.c - section 9 once more, with the matrix unit in a model of it: the tests run on
 * machines that have none.
 * SPDX-License-Identifier: MIT
 * The model follows the operation sections of TILELOADD, TILESTORED and TDPBF16PS in Intel's
 * Architecture Instruction Set Extensions reference: eight tiles for each thread, products in pairs by fused
 * multiply-adds, denormal values read and written as zero.  A product of two bf16 numbers has 16 bits and is exact in
 * float: multiplied and then added it is the fused operation, which takes ten times as long under Valgrind. */
#define MOE_EP_STATIC
#define MOE_EPI_FW_EMULATE_AMX
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC push_options /* the model takes most of the time, above all where the rest is built for a debugger */
#  pragma GCC optimize("O3")
#endif
static __thread struct {
    int live;
    unsigned char tile[8][16][64];
} unit;
static int refuse;            /* what the kernel answers */
static long products_done;

static void need_live(const char *what)
{
    if (unit.live) return;
    fprintf(stderr, "%s without a configuration\n", what); /* #UD on the machine */
    abort();
}
static int moe_epi_fw_tile_permit(void) { return !refuse; }
static void moe_epi_fw_tile_begin(void)
{
    memset(&unit, 0, sizeof unit);
    unit.live = 1;
}
static void moe_epi_fw_tile_end(void) { unit.live = 0; }
static void model_zero(int t)
{
    need_live("tilezero");
    memset(unit.tile[t], 0, sizeof unit.tile[t]);
}
static void model_load(int t, const void *from, intptr_t stride)
{
    need_live("tileloadd");
    for (int row = 0; row < 16; row++) memcpy(unit.tile[t][row], (const unsigned char *)from + row * stride, 64);
}
static void model_store(int t, void *to, intptr_t stride)
{
    need_live("tilestored");
    for (int row = 0; row < 16; row++) memcpy((unsigned char *)to + row * stride, unit.tile[t][row], 64);
}
/* Denormal values are read and written as zero.  Without a branch: lanes of tokens that do not exist hold anything, and
 * analysers complain only where it matters. */
static float no_denormal(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    bits &= 0x80000000u | (0u - (uint32_t)((bits & 0x7f800000u) != 0));
    memcpy(&v, &bits, 4);
    return v;
}
static void halves_of(int t, float (*v)[32])
{
    for (int row = 0; row < 16; row++)
        for (int i = 0; i < 32; i++) {
            uint32_t bits = 0;
            memcpy((unsigned char *)&bits + 2, &unit.tile[t][row][2 * i], 2); /* little-endian */
            memcpy(&v[row][i], &bits, 4);
            v[row][i] = no_denormal(v[row][i]);
        }
}
static void model_dp(int c, int a, int b)
{
    float left[16][32], right[16][32];
    need_live("tdpbf16ps");
    __sync_fetch_and_add(&products_done, 1);
    halves_of(a, left);
    halves_of(b, right);
    for (int m = 0; m < 16; m++) {
        float sum[32] = {0};
        for (int k = 0; k < 16; k++) {
            float even = left[m][2 * k], odd = left[m][2 * k + 1];
            const float *in = right[k];
            for (int n = 0; n < 32; n += 2) {
                float e = even * in[n] + sum[n], o = odd * in[n + 1] + sum[n + 1];
                sum[n] = no_denormal(e);
                sum[n + 1] = no_denormal(o);
            }
        }
        for (int n = 0; n < 16; n++) {
            float old, pair = sum[2 * n] + sum[2 * n + 1];
            memcpy(&old, &unit.tile[c][m][4 * n], 4);
            old = no_denormal(old) + no_denormal(pair);
            old = no_denormal(old);
            memcpy(&unit.tile[c][m][4 * n], &old, 4);
        }
    }
}
#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC pop_options
#endif
#define MOE_EPI_FW_TILE_ZERO(t) model_zero(t)
#define MOE_EPI_FW_TILE_LOAD(t, from, stride) model_load(t, from, stride)
#define MOE_EPI_FW_TILE_STORE(t, to, stride) model_store(t, to, stride)
#define MOE_EPI_FW_TILE_DP(c, a, b) model_dp(c, a, b)

#include "test_forward.c"
