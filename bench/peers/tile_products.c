/* bench/peers/tile_products.c - what one core's AMX unit gives with its operands in registers, in L1 and in L2.
 * SPDX-License-Identifier: MIT
 *
 *   cc -O2 bench/peers/tile_products.c -o tile_products && chrt -f 1 ./tile_products [ROUNDS]
 * Nanoseconds for a product of two tiles (16,384 flops) or a load, least and median of the rounds, the rows by turns: a
 * neighbour on the same core shows in the median.  x86-64, Linux. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOAD(t, at) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(at), "r"(64l) : "memory")
#define DP(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

enum { TILE = 1024, L1_TILES = 24, L2_TILES = 384, ROWS = 6, MOST = 5000 };
static unsigned char tiles[L2_TILES * TILE] __attribute__((aligned(4096)));

static void registers_only(void)
{
    for (int i = 0; i < L2_TILES; i += 6) {
        DP(0, 6, 7); DP(1, 6, 7); DP(2, 6, 7);
        DP(3, 6, 7); DP(4, 6, 7); DP(5, 6, 7);
    }
}

static void loads_only(void)
{
    for (int i = 0; i < L2_TILES; i++) LOAD(7, tiles + i % L1_TILES * TILE);
}

/* One tile of weights by six of tokens, which lie in `count` tiles and are read again and again. */
static void one_by_six(int count)
{
    for (int i = 0; i < L2_TILES; i += 6) {
        const unsigned char *at = tiles + i % count * TILE;
        LOAD(6, tiles + i % L1_TILES * TILE);
        LOAD(7, at); DP(0, 6, 7);
        LOAD(7, at + TILE); DP(1, 6, 7);
        LOAD(7, at + 2 * TILE); DP(2, 6, 7);
        LOAD(7, at + 3 * TILE); DP(3, 6, 7);
        LOAD(7, at + 4 * TILE); DP(4, 6, 7);
        LOAD(7, at + 5 * TILE); DP(5, 6, 7);
    }
}
static void one_by_six_l1(void) { one_by_six(L1_TILES); }
static void one_by_six_l2(void) { one_by_six(L2_TILES); }

static void two_by_two_l1(void)
{
    for (int i = 0; i < L2_TILES; i += 4) {
        const unsigned char *at = tiles + i % L1_TILES * TILE;
        LOAD(4, at); LOAD(6, at + TILE); DP(0, 4, 6);
        LOAD(7, at + 2 * TILE); DP(1, 4, 7);
        LOAD(5, at + 3 * TILE); DP(2, 5, 6); DP(3, 5, 7);
    }
}

/* A load for each product, which does not use it. */
static void beside(void)
{
    for (int i = 0; i < L2_TILES; i += 2) {
        const unsigned char *at = tiles + i % L1_TILES * TILE;
        LOAD(6, at); DP(0, 4, 5);
        LOAD(7, at + TILE); DP(1, 4, 5);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    const double *p = a, *q = b;
    return (*p > *q) - (*p < *q);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } rows[ROWS] = {{"products of registers, six sums", registers_only},
                    {"loads from L1", loads_only},
                    {"1 x 6 tiles from L1", one_by_six_l1},
                    {"2 x 2 tiles from L1", two_by_two_l1},
                    {"1 x 6 tiles, tokens from L2 (384 KB)", one_by_six_l2},
                    {"a load beside each product", beside}};
    static double ns[ROWS][MOST];
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape;
    int rounds = argc > 1 ? atoi(argv[1]) : 2000;
    if (rounds < 1 || rounds > MOST) rounds = MOST;
    if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) { /* ARCH_REQ_XCOMP_PERM */
        fprintf(stderr, "tile_products: no AMX here\n");
        return 1;
    }
    memset(tiles, 1, sizeof tiles); /* pages of its own, not one of zeros */
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
    for (int i = 0; i < rounds; i++)
        for (int r = 0; r < ROWS; r++) {
            double start = now();
            rows[r].run();
            ns[r][i] = 1e9 * (now() - start) / L2_TILES;
        }
    __asm__ volatile("tilerelease");
    for (int r = 0; r < ROWS; r++) {
        qsort(ns[r], (size_t)rounds, sizeof ns[r][0], ascending);
        printf("%-40s %6.1f %6.1f\n", rows[r].name, ns[r][0], ns[r][rounds / 2]);
    }
    return 0;
}
