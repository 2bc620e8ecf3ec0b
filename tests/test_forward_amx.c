/* tests/test_forward_amx.c - section 9 once more, with the matrix unit in a model of it: the tests run on
 * machines that have none.
 * SPDX-License-Identifier: MIT
 * The model follows the operation sections of TILELOADD, TILESTORED and TDPBF16PS in Intel's
 * Architecture Instruction Set Extensions reference: eight tiles for each thread, products in pairs by fused
 * multiply-adds, denormal values read and written as zero.  A product of two bf16 numbers has 16 bits and is exact in
 * float: multiplied and then added it is the fused operation, which takes ten times as long under Valgrind.
 * In one point it is stricter: where the rows of a load overlap, what stands in the columns behind the distance of two
 * rows belongs to the next row, and the model takes it for NaN. */
#define MOE_EP_STATIC
#define MOE_EPI_FW_EMULATE_AMX
/* results come in ranges of columns already where there are fewer of them */
#define MOE_EPI_FW_AT_ONCE (1 << 15)
#define MOE_EPI_FW_LEAST_COLS 16
/* and more of them go past the caches */
#define MOE_EPI_FW_PAST (1 << 12)
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int moe_epi_fw_tile_permit(void);
static void moe_epi_fw_tile_begin(void);
static void moe_epi_fw_tile_end(void);
static void model_zero(int t);
static void model_load(int t, const void *from, intptr_t stride);
static void model_store(int t, void *to, intptr_t stride);
static void model_dp(int c, int a, int b);
#define MOE_EPI_FW_TILE_ZERO(t) model_zero(t)
#define MOE_EPI_FW_TILE_LOAD(t, from, stride) model_load(t, from, stride)
#define MOE_EPI_FW_TILE_STORE(t, to, stride) model_store(t, to, stride)
#define MOE_EPI_FW_TILE_DP(c, a, b) model_dp(c, a, b)

/* The header first: the pragma below defines __OPTIMIZE__, its end does not take that back, and the compiler's own
 * headers look at it. */
#if defined(__OPTIMIZE__) && defined(__GNUC__) && !defined(__clang__)
#  pragma GCC push_options
#  pragma GCC optimize("O2") /* the portable kernels take most of the time that the model leaves */
#endif
#include "moe_ep.h"
#if defined(__OPTIMIZE__) && defined(__GNUC__) && !defined(__clang__)
#  pragma GCC pop_options
#endif

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC push_options /* the model takes most of the time, above all where the rest is built for a debugger */
#  pragma GCC optimize("O3")
#endif
typedef int32_t int4 __attribute__((vector_size(16), may_alias));
typedef float float4 __attribute__((vector_size(16), may_alias));

typedef struct tile {
    int32_t word[16][16] __attribute__((aligned(16))); /* of sums, or pairs of bf16: the even one is the low half */
    int columns;          /* words of a row that are its own */
} tile;
static __thread struct {
    int live;
    tile tile[8];
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
    memset(unit.tile[t].word, 0, sizeof unit.tile[t].word);
    unit.tile[t].columns = 16;
}
static void model_load(int t, const void *from, intptr_t stride)
{
    need_live("tileloadd");
    unit.tile[t].columns = stride > 0 && stride < 64 ? (int)(stride / 4) : 16;
    for (int row = 0; row < 16; row++) memcpy(unit.tile[t].word[row], (const unsigned char *)from + row * stride, 64);
}
static void model_store(int t, void *to, intptr_t stride)
{
    need_live("tilestored");
    for (int row = 0; row < 16; row++) memcpy((unsigned char *)to + row * stride, unit.tile[t].word[row], 64);
}

/* The numbers of a tile as floats, denormal ones as zero, apart for even and odd places.  Columns that are not the
 * row's own are 0: they hold anything. */
typedef struct numbers {
    float even[16][16] __attribute__((aligned(16))), odd[16][16] __attribute__((aligned(16)));
    int wild; /* one is infinite, NaN, or small enough for a sum of products to be denormal */
} numbers;

/* Without a branch, and without a look at columns that hold anything.  A product of numbers of 2^-56 and more is a
 * multiple of 2^-126 (seven bits behind each point), and so are sums, however they are rounded: 0 or normal. */
static void numbers_of(const tile *t, int vectors, numbers *out)
{
    const int4 exponent = {0x7f800000, 0x7f800000, 0x7f800000, 0x7f800000};
    const int4 small = {71 << 23, 71 << 23, 71 << 23, 71 << 23};
    const int4 sign = {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN}, high = {-65536, -65536, -65536, -65536};
    int4 own[4], wild = {0, 0, 0, 0};
    for (int i = 0; i < 16; i++) own[i / 4][i % 4] = i < t->columns ? -1 : 0;
    for (int row = 0; row < 16; row++)
        for (int v = 0; v < vectors; v++) {
            int4 word = *(const int4 *)&t->word[row][4 * v] & own[v], even = word << 16, odd = word & high, e, o;
            e = even & exponent, o = odd & exponent;
            wild |= ((e != 0) & (e < small)) | (e == exponent) | ((o != 0) & (o < small)) | (o == exponent);
            *(int4 *)&out->even[row][4 * v] = even & (sign | (e != 0));
            *(int4 *)&out->odd[row][4 * v] = odd & (sign | (o != 0));
        }
    out->wild = (wild[0] | wild[1] | wild[2] | wild[3]) != 0;
}

static inline __attribute__((always_inline)) float4 no_denormal(float4 v)
{
    const int4 exponent = {0x7f800000, 0x7f800000, 0x7f800000, 0x7f800000};
    const int4 sign = {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
    return (float4)((int4)v & (sign | (((int4)v & exponent) != 0)));
}

/* Row m of the products with the first 4 * vectors columns: the sum of the even and that of the odd pairs. */
static inline __attribute__((always_inline)) void product_row(const numbers *left, const numbers *right, int m,
                                                              int pairs, int wild, int vectors, float4 *out)
{
    float4 even[4], odd[4];
    for (int v = 0; v < vectors; v++) even[v] = odd[v] = (float4){0, 0, 0, 0};
    for (int k = 0; k < pairs; k++) {
        const float l = left->even[m][k], r = left->odd[m][k];
        const float4 by_even = {l, l, l, l}, by_odd = {r, r, r, r};
        for (int v = 0; v < vectors; v++) {
            even[v] = by_even * *(const float4 *)&right->even[k][4 * v] + even[v];
            odd[v] = by_odd * *(const float4 *)&right->odd[k][4 * v] + odd[v];
            if (wild) even[v] = no_denormal(even[v]), odd[v] = no_denormal(odd[v]);
        }
    }
    for (int v = 0; v < vectors; v++) out[v] = no_denormal(even[v] + odd[v]);
}
static void product_row_of(const numbers *left, const numbers *right, int m, int pairs, int wild, int vectors,
                           float4 *out)
{
    if (vectors == 1) product_row(left, right, m, pairs, wild, 1, out);
    else if (wild) product_row(left, right, m, pairs, 1, 4, out);
    else product_row(left, right, m, pairs, 0, 4, out);
}

static void model_dp(int c, int a, int b)
{
    numbers left, right;
    float4 sum[4];
    int vectors = unit.tile[b].columns <= 4 ? 1 : 4, wild, pairs = 16;
    need_live("tdpbf16ps");
    __sync_fetch_and_add(&products_done, 1);
    numbers_of(&unit.tile[a], 4, &left);
    numbers_of(&unit.tile[b], vectors, &right);
    wild = left.wild || right.wild;
    if (!wild) { /* 0 times a finite number changes no sum: they begin with +0 and never are -0 */
        int32_t any = 0;
        for (; pairs > 0; pairs--) {
            for (int m = 0; m < 16; m++) any |= unit.tile[a].word[m][pairs - 1];
            if (any & 0x7fff7fff) break;
        }
    }
    for (int m = 0; m < 16; m++) {
        /* rows that are filled up are the same as the last */
        if (m == 0 || memcmp(unit.tile[a].word[m], unit.tile[a].word[m - 1], 64) != 0)
            product_row_of(&left, &right, m, pairs, wild, vectors, sum);
        for (int v = 0; v < vectors; v++) {
            float4 *at = (float4 *)&unit.tile[c].word[m][4 * v];
            *at = no_denormal(no_denormal(*at) + sum[v]);
        }
        for (int n = unit.tile[b].columns; n < 16; n++) unit.tile[c].word[m][n] = -1; /* NaN */
    }
}
#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC pop_options
#endif

#include "test_forward.c"
