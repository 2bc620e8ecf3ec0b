/* tests/test_dispatch.c - section 7: permutations, layouts, traffic, combine.  SPDX-License-Identifier: MIT */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* memfd_create */
#endif
#include "t.h"
#include "vec.h"
#include "moe_ep.h"
#include "t_repeat.h"

static const int32_t picture[] = {1, 3, 0, 1, 1, 2, 3, 1}; /* T = 4, K = 2, E = 4 */

static void check_i32s(const int32_t *got, const int32_t *want, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) CHECK_I64(got[i], want[i]);
}
static void check_i64s(const int64_t *got, const int64_t *want, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) CHECK_I64(got[i], want[i]);
}
static void check_vec32(const int32_t *got, const vec_field *want)
{
    int64_t i;
    for (i = 0; i < want->count; i++) {
        CHECK_I64(got[i], want->i[i]);
        if (t_failed_here) { printf("    field %s, element %d\n", want->key, (int)i); return; }
    }
}
static void check_vec64(const int64_t *got, const vec_field *want)
{
    int64_t i;
    for (i = 0; i < want->count; i++) {
        CHECK_I64(got[i], want->i[i]);
        if (t_failed_here) { printf("    field %s, element %d\n", want->key, (int)i); return; }
    }
}
static int32_t *new32(int64_t n)
{
    int32_t *p = (int32_t *)t_alloc(sizeof *p * (size_t)(n + 1));
    memset(p, 0x5a, sizeof *p * (size_t)(n + 1));
    return p;
}
static int64_t *new64(int64_t n)
{
    int64_t *p = (int64_t *)t_alloc(sizeof *p * (size_t)(n + 1));
    memset(p, 0x5a, sizeof *p * (size_t)(n + 1));
    return p;
}
static int32_t *random_ids(uint64_t *s, int64_t n, int32_t E, int percent_none)
{
    int32_t *ids = new32(n);
    int64_t i;
    for (i = 0; i < n; i++) ids[i] = t_below(s, 100) < percent_none ? -1 : (int32_t)t_below(s, E);
    return ids;
}

/* ---- the sort ---- */

TEST(permute_picture)
{
    static const int64_t offsets[] = {0, 1, 5, 6, 8}, padded[] = {0, 2, 6, 8, 10}, counts[] = {1, 4, 1, 2};
    static const int32_t rows[] = {2, 0, 3, 4, 7, 5, 1, 6}, flat[] = {1, 6, 0, 2, 3, 5, 7, 4};
    int64_t got[6];
    int32_t row_to_flat[8], flat_to_row[8];
    moe_ep_error err;
    CHECK_I64(moe_ep_permute(picture, 8, 4, got, row_to_flat, flat_to_row, NULL), MOE_EP_OK);
    check_i64s(got, offsets, 5);
    check_i32s(row_to_flat, rows, 8);
    check_i32s(flat_to_row, flat, 8);
    CHECK_I64(moe_ep_permute(picture, 8, 4, got, NULL, NULL, NULL), MOE_EP_OK);
    check_i64s(got, offsets, 5);
    CHECK_I64(moe_ep_padded_offsets(counts, 4, 2, 0, got, NULL), MOE_EP_OK);
    check_i64s(got, padded, 5);
    CHECK_I64(moe_ep_permute(NULL, 8, 4, got, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "ids");
    CHECK_I64(moe_ep_permute(picture, 8, 4, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_permute(picture, -1, 4, got, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_permute(picture, 8, 0, got, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_permute(picture, ((int64_t)1 << 31) + 1, 4, got, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_permute(picture, 8, 3, got, row_to_flat, flat_to_row, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 1);
    CHECK_NEAR(err.value, 3, 0, 0);
    check_i64s(got, padded, 5);
    check_i32s(row_to_flat, rows, 8);
    CHECK_I64(moe_ep_permute(NULL, 0, 4, got, NULL, NULL, NULL), MOE_EP_OK);
    CHECK_I64(got[4], 0);
    CHECK_I64(moe_ep_padded_offsets(counts, 0, 2, 0, got, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_padded_offsets(counts, 4, 0, 0, got, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_padded_offsets(counts, 4, 1, -1, got, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_padded_offsets(counts, 4, INT64_MAX, 0, got, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_padded_offsets(NULL, 4, 1, 0, got, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_padded_offsets(counts, 4, 1, 0, NULL, &err), MOE_EP_ERR_NULL);
}

/* The sort is stable, a bijection, and the maps are inverse; all other contracts agree with it. */
TEST(permute_random)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < 2000; round++) {
        int32_t E = (int32_t)(1 + t_below(&s, round % 40 == 0 ? 6000 : 20)), K = (int32_t)(1 + t_below(&s, 5)), e;
        int64_t T = t_below(&s, 60), n = T * K, i, r, rows = 0, max_rows;
        int none = (int)t_below(&s, 3) * 40 + (t_below(&s, 20) == 0 ? 100 : 0), padding = (int)(1 + t_below(&s, 6));
        int32_t *ids = random_ids(&s, n, E,
                                  none), *to_flat = new32(n), *to_row = new32(n), *other = new32(n + E * padding),
                                      *more = new32(n + E * padding), *third = new32(n);
        int64_t *offsets = new64(E + 1), *bins = new64(E + 1), *pads = new64(E + 1), skipped;
        CHECK_I64(moe_ep_permute(ids, n, E, offsets, to_flat, to_row, NULL), MOE_EP_OK);
        for (i = 0; i < n; i++) {
            rows += ids[i] >= 0;
            if (ids[i] < 0) CHECK_I64(to_row[i], -1);
            else {
                CHECK(to_row[i] >= offsets[ids[i]] && to_row[i] < offsets[ids[i] + 1]);
                CHECK_I64(to_flat[to_row[i]], i);
            }
        }
        CHECK_I64(offsets[0], 0);
        CHECK_I64(offsets[E], rows);
        for (e = 0; e < E; e++)
            for (r = offsets[e] + 1; r < offsets[e + 1]; r++) CHECK(to_flat[r] > to_flat[r - 1]);
        for (r = rows; r < n; r++) CHECK_I64(to_flat[r], -1);
        /* torchtitan, MegaBlocks and the TensorRT-LLM form see the same order */
        CHECK_I64(moe_ep_torchtitan_reorder(ids, T, K, E, bins, other, third, NULL), MOE_EP_OK);
        check_i32s(other, to_flat, n);
        for (r = 0; r < rows; r++) CHECK_I64(third[r], to_flat[r] / K);
        CHECK_I64(moe_ep_megablocks_bins(ids, n, E, padding, other, third, NULL, bins, pads, NULL), MOE_EP_OK);
        check_i64s(bins, offsets + 1, E);
        check_i32s(other, to_flat, n);
        for (r = 0; r < rows; r++) CHECK_I64(third[r], ids[to_flat[r]]);
        max_rows = pads[E - 1];
        CHECK_I64(moe_ep_trtllm_permute(ids, T, K, E, padding, bins, third, other, more, max_rows, NULL, NULL),
                  MOE_EP_OK);
        CHECK_I64(bins[E], max_rows);
        for (i = 0; i < n; i++) {
            if (ids[i] < 0) { CHECK_I64(third[i], -1); continue; }
            CHECK_I64(third[i] - bins[ids[i]], to_row[i] - offsets[ids[i]]);
            CHECK_I64(other[third[i]], i);
            CHECK_I64(more[third[i]], i / K);
        }
        for (skipped = 0, r = 0; r < max_rows; r++) skipped += other[r] < 0;
        CHECK_I64(skipped, max_rows - rows);
        free(ids); free(to_flat); free(to_row); free(other); free(more); free(third); free(offsets); free(bins);
        free(pads);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(send_counts)
{
    static const int32_t ids[] = {3, 1, 3}, devices[] = {0, 0, 1, 1}, bad[] = {0, 0, 2, 0};
    int64_t counts[4] = {7, 7, 7, 7}, skipped = 0;
    moe_ep_error err;
    CHECK_I64(moe_ep_send_counts(ids, 3, 4, devices, 2, counts, &skipped, NULL), MOE_EP_OK);
    CHECK_I64(counts[0], 1);
    CHECK_I64(counts[1], 2);
    CHECK_I64(moe_ep_send_counts(ids, 3, 4, NULL, 2, counts, NULL, NULL), MOE_EP_OK);
    CHECK_I64(counts[1], 3);
    CHECK_I64(moe_ep_send_counts(ids, 3, 4, bad, 2, counts, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_send_counts(ids, 3, 3, NULL, 2, counts, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_send_counts(ids, 3, 4, NULL, 0, counts, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_send_counts(ids, 3, 4, NULL, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(counts[1], 3);
}

/* ---- gather and combine ---- */

TEST(gather_combine)
{
    static const float x[] = {10, 20}, rows3[] = {1, 2, 4}, half[] = {0.5f, 0.5f, 0.5f, 0.5f};
    static const int32_t to_flat[] = {2, 0, 3, -1}, to_row[] = {1, 2, 0, -1};
    float rows[4], out[2] = {9, 9};
    moe_ep_error err;
    uint64_t s = t_seed + 1;
    int round;
    CHECK_I64(moe_ep_gather(x, 2, 1, 2, to_flat, 4, rows, NULL), MOE_EP_OK);
    CHECK(rows[0] == 20 && rows[1] == 10 && rows[2] == 20 && rows[3] == 0);
    CHECK_I64(moe_ep_combine(rows3, 3, to_row, half, 2, 2, 1, out, NULL), MOE_EP_OK);
    CHECK(out[0] == 3 && out[1] == 0.5f);
    for (round = 0; round < 300; round++) { /* the round trip with weights 1/K is the identity */
        int32_t E = (int32_t)(1 + t_below(&s, 9)), K = 1 << t_below(&s, 3), H = (int32_t)(1 + t_below(&s, 9));
        int64_t T = 1 + t_below(&s, 20), n = T * K, i, offsets[10];
        int32_t *ids = random_ids(&s, n, E, 0), *f = new32(n), *r = new32(n);
        float *a = (float *)t_alloc(sizeof(float) * (size_t)(T * H)),
            *b = (float *)t_alloc(sizeof(float) * (size_t)(n * H));
        float *c = (float *)t_alloc(sizeof(float) * (size_t)(T * H)), *w = (float *)t_alloc(sizeof(float) * (size_t)n);
        for (i = 0; i < T * H; i++) a[i] = (float)t_below(&s, 1000);
        for (i = 0; i < n; i++) w[i] = 1.0f / (float)K;
        CHECK_I64(moe_ep_permute(ids, n, E, offsets, f, r, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_gather(a, T, H, K, f, n, b, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_combine(b, n, r, w, T, K, H, c, NULL), MOE_EP_OK);
        CHECK(memcmp(a, c, sizeof(float) * (size_t)(T * H)) == 0);
        CHECK_I64(moe_ep_combine(b, n, r, NULL, T, K, H, c, NULL), MOE_EP_OK);
        for (i = 0; i < T * H; i++) CHECK(c[i] == (float)K * a[i]);
        free(ids); free(f); free(r); free(a); free(b); free(c); free(w);
        STOP_IF_FAILED("round %d", round);
    }
    {
        static const int32_t wrong[] = {4, 0}, low[] = {-2, 0};
        float before[2];
        memcpy(before, out, sizeof out);
        CHECK_I64(moe_ep_gather(x, 2, 1, 2, wrong, 2, rows, &err), MOE_EP_ERR_RANGE);
        CHECK_I64(err.index, 0);
        CHECK_I64(moe_ep_combine(rows3, 3, wrong, NULL, 1, 2, 1, out, &err), MOE_EP_ERR_RANGE);
        CHECK_I64(moe_ep_combine(rows3, 3, low, NULL, 1, 2, 1, out, &err), MOE_EP_ERR_RANGE);
        CHECK(memcmp(before, out, sizeof out) == 0);
    }
    CHECK_I64(moe_ep_gather(NULL, 2, 1, 2, to_flat, 4, rows, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_gather(x, 2, 0, 2, to_flat, 4, rows, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_gather(x, 2, 1, 0, to_flat, 4, rows, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_gather(x, INT64_MAX / 2, 7, 1, to_flat, 4, rows, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_gather(x, 2, 1, 2, NULL, 4, rows, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_gather(x, 2, 1, 2, to_flat, 4, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_gather(x, 2, 1, 2, to_flat, -1, rows, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_combine(NULL, 3, to_row, half, 2, 2, 1, out, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_combine(rows3, 3, NULL, half, 2, 2, 1, out, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_combine(rows3, 3, to_row, half, 2, 2, 1, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_combine(NULL, 0, NULL, NULL, 0, 2, 1, NULL, &err), MOE_EP_OK);
}

/* ---- contracts: worked examples and errors ---- */

static moe_ep_align_desc align(int32_t E, int32_t B)
{
    moe_ep_align_desc d;
    memset(&d, 0, sizeof d);
    d.num_experts = E;
    d.block_size = B;
    return d;
}

TEST(align_examples)
{
    static const int32_t want[] = {2, 8, 0, 3, 4, 7, 5, 8, 1, 6}, blocks[] = {0, 1, 1, 2, 3};
    static const int64_t counts[] = {2, 3, 0, 6, 8};
    static const int32_t batched[] = {0, 1, 3, 3, 4, 4, -1, -1, -1, -1};
    static const int32_t rows[] = {
        0, 1, 40, 40, 8, 9, 10, 40, 24, 25, 26, 27, 28, 29, 40, 40, 32, 33, 34, 35, 36, 37, 38, 39, 40};
    static const int32_t foreign[] = {0, 9, -7, 1}, map[] = {0, 4};
    int32_t sorted[64], experts[64];
    int64_t len = 0, num = 0, used = 0;
    moe_ep_align_desc d = align(5, 4);
    moe_ep_error err;
    moe_ep_scratch s = moe_ep_scratch_fixed(sorted, 8);
    CHECK_I64(moe_ep_align_sizes(&d, 12, &len, &num, NULL), MOE_EP_OK);
    CHECK_I64(len, 27);
    CHECK_I64(num, 7);
    d = align(4, 2);
    CHECK_I64(moe_ep_align_block(&d, picture, 8, sorted, experts, &used, NULL, NULL), MOE_EP_OK);
    CHECK_I64(used, 10);
    check_i32s(sorted, want, 10);
    check_i32s(experts, blocks, 5);
    CHECK_I64(sorted[10], 8);
    CHECK_I64(experts[5], -1);
    CHECK_I64(moe_ep_align_batched(counts, 5, 8, 4, sorted, experts, &used, NULL), MOE_EP_OK);
    CHECK_I64(used, 24);
    check_i32s(experts, batched, 10);
    check_i32s(sorted, rows, 25);
    used = 5;
    CHECK_I64(moe_ep_align_block(&d, picture, 8, sorted, experts, &used, &s, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(moe_ep_align_block(&d, foreign, 4, sorted, experts, &used, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 1);
    CHECK_I64(used, 5);
    d.skip_foreign = 1;
    CHECK_I64(moe_ep_align_block(&d, foreign, 4, sorted, experts, &used, NULL, &err), MOE_EP_OK);
    CHECK_I64(used, 4);
    d = align(2, 2);
    d.expert_map = map;
    CHECK_I64(moe_ep_align_sizes(&d, 8, &len, &num, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_align_sizes(NULL, 8, &len, &num, &err), MOE_EP_ERR_NULL);
    d = align(2, 0);
    CHECK_I64(moe_ep_align_sizes(&d, 8, &len, &num, &err), MOE_EP_ERR_SIZE);
    d = align(0, 2);
    CHECK_I64(moe_ep_align_sizes(&d, 8, &len, &num, &err), MOE_EP_ERR_SIZE);
    d = align(4, 2);
    CHECK_I64(moe_ep_align_sizes(&d, (int64_t)1 << 40, &len, &num, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_align_sizes(&d, -1, &len, &num, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_align_sizes(&d, 1, NULL, &num, &err), MOE_EP_ERR_NULL);
    d = align(4, 2);
    CHECK_I64(moe_ep_align_block(&d, NULL, 8, sorted, experts, &used, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_block(&d, picture, 8, NULL, experts, &used, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_block(&d, picture, 8, sorted, NULL, &used, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_block(&d, picture, 8, sorted, experts, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_batched(counts, 5, 7, 4, sorted, experts, &used, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 4);
    CHECK_I64(moe_ep_align_batched(counts, 0, 7, 4, sorted, experts, &used, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_align_batched(counts, 5, 0, 4, sorted, experts, &used, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_align_batched(counts, 5, 8, 0, sorted, experts, &used, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_align_batched(NULL, 5, 8, 4, sorted, experts, &used, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_batched(counts, 5, INT32_MAX, 4, sorted, experts, &used, &err), MOE_EP_ERR_OVERFLOW);
}

TEST(contract_examples)
{
    static const int32_t sglang[] = {
        3, -1, 0, 3, -1, -1, 2, 0}, sorted[] = {0, 0, 2, 3, 3, -1, -1, -1}, dst[] = {3, -3, 0, 4, -2, -1, 2, 1};
    static const int32_t keep[] = {1, -1, 0}, kept[] = {-1, 0, 1}, kept_dst[] = {2, 0, 1};
    static const int64_t indptr[] = {0, 2, 2, 3, 5}, kept_indptr[] = {0, 2, 3};
    static const int32_t perm[] = {2, 0, 3, 4, 7, 5, 1, 6}, inv[] = {1, 6, 0, 2, 3, 5, 7, 4};
    static const int32_t tokens[] = {1, 0, 1, 2, 3, 2, 0, 3};
    static const int32_t expanded[] = {2, 8, 0, 3, 4, 6, 9, 5}, trt_tokens[] = {1, -1, 0, 1, 2, 3, 2, -1, 0, 3};
    static const int64_t offsets[] = {0, 1, 5, 6, 8}, padded[] = {0, 2, 6, 8, 10}, bins[] = {128, 256, 384, 512};
    static const int32_t slots[] = {2, -1, 0, 3, 5, -1, 1, 6};
    int32_t a[16], b[16], c[16];
    int64_t p[8], q[8], r[8];
    moe_ep_error err;
    moe_ep_scratch s = moe_ep_scratch_fixed(a, 4);
    CHECK_I64(moe_ep_sglang_preprocess(sglang, 8, 4, a, b, p, NULL), MOE_EP_OK);
    check_i32s(a, sorted, 8);
    check_i32s(b, dst, 8);
    check_i64s(p, indptr, 5);
    CHECK_I64(moe_ep_sglang_preprocess_keep(keep, 3, 2, a, b, p, NULL), MOE_EP_OK);
    check_i32s(a, kept, 3);
    check_i32s(b, kept_dst, 3);
    check_i64s(p, kept_indptr, 3);
    CHECK_I64(moe_ep_sglang_preprocess(picture, 8, 3, a, b, p, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_sglang_preprocess(picture, 8, 4, NULL, b, p, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sglang_preprocess_keep(picture, 8, 4, a, NULL, p, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_vllm_permute(picture, 8, 4, 0, 4, NULL, p, a, b, NULL, NULL), MOE_EP_OK);
    check_i64s(p, offsets, 5);
    check_i32s(a, perm, 8);
    check_i32s(b, inv, 8);
    { /* with a map the first expert does not count, whatever it is */
        int32_t map[4] = {0, 1, 2, 3};
        CHECK_I64(moe_ep_vllm_permute(picture, 8, 4, INT32_MIN, 4, map, p, a, b, NULL, NULL), MOE_EP_OK);
        check_i64s(p, offsets, 5);
        check_i32s(a, perm, 8);
        check_i32s(b, inv, 8);
    }
    CHECK_I64(moe_ep_vllm_permute(picture, 8, 4, 2, 3, NULL, p, a, b, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_vllm_permute(picture, 8, 4, 0, 5, NULL, p, a, b, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_vllm_permute(picture, 8, 4, 0, 2, inv, p, a, b, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_vllm_permute(picture, 8, 4, 0, 4, NULL, p, a, b, &s, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(moe_ep_vllm_permute(picture, 8, 4, 0, 4, NULL, NULL, a, b, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_torchtitan_reorder(picture, 4, 2, 4, p, a, b, NULL), MOE_EP_OK);
    check_i32s(b, tokens, 8);
    CHECK_I64(moe_ep_torchtitan_reorder(picture, 4, 0, 4, p, a, b, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_trtllm_permute(picture, 4, 2, 4, 2, p, a, b, c, 10, NULL, NULL), MOE_EP_OK);
    check_i64s(p, padded, 5);
    check_i32s(a, expanded, 8);
    check_i32s(c, trt_tokens, 10);
    a[0] = 77;
    CHECK_I64(moe_ep_trtllm_permute(picture, 4, 2, 4, 2, p, a, b, c, 9, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, 10, 0, 0);
    CHECK_I64(a[0], 77);
    CHECK_I64(moe_ep_trtllm_permute(picture, 4, 2, 4, 0, p, a, b, c, 9, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_megablocks_bins(picture, 8, 4, 128, a, b, q, p, r, NULL), MOE_EP_OK);
    check_i64s(p, offsets + 1, 4);
    check_i64s(r, bins, 4);
    CHECK_I64(q[1], 4);
    CHECK_I64(moe_ep_binned_rows(offsets, perm, 4, 2, c, NULL), MOE_EP_OK);
    check_i32s(c, slots, 8);
    CHECK_I64(moe_ep_binned_rows(offsets, perm, 4, 0, c, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_binned_rows(NULL, perm, 4, 1, c, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_megablocks_bins(picture, 8, 4, 0, a, b, q, p, r, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_megablocks_bins(picture, 8, 4, 1, a, b, q, NULL, r, &err), MOE_EP_ERR_NULL);
}

TEST(megatron_and_torchtitan)
{
    static const int32_t tokens[] = {
        1, 0, 1, 2, 3, 2, 0, 3}, dropped[] = {1, 3, 0}, chunks[] = {3, 0, 1, 2}, order[] = {2, 0, 1};
    static const uint8_t column[] = {0, 1, 0, 1}, lone[] = {0, 1, 0, 0}, filled[] = {1, 1, 0, 0};
    static const int64_t offsets[] = {0, 1, 5, 6, 8}, sizes[] = {1, 2, 1}, groups[] = {4, 2, 1, 3, 1, 2, 3, 4};
    static const int32_t first[] = {0, 1, 2, 3, 10, -1, -1, -1, 4, 5, 11, 12};
    uint8_t map[16], padded[16];
    int32_t a[64], same[] = {1, 1, 1}, bad[] = {0, 3, 1};
    int64_t p[8], q[8], rows = 0;
    moe_ep_error err;
    int i;
    CHECK_I64(moe_ep_routing_map(picture, 4, 2, 4, map, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_megatron_permute(map, 4, 4, p, a, 8, NULL), MOE_EP_OK);
    check_i64s(p, offsets, 5);
    check_i32s(a, tokens, 8);
    CHECK_I64(moe_ep_megatron_permute(map, 4, 4, p, a, 7, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, 8, 0, 0);
    CHECK_I64(moe_ep_megatron_permute(NULL, 4, 4, p, a, 8, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_megatron_drop_and_pad(column, 4, 1, 3, a, NULL), MOE_EP_OK);
    check_i32s(a, dropped, 3);
    CHECK_I64(moe_ep_megatron_drop_and_pad(column, 4, 1, 5, a, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_megatron_pad_map(lone, 4, 1, 2, padded, NULL), MOE_EP_OK);
    CHECK(memcmp(padded, filled, 4) == 0);
    CHECK_I64(moe_ep_megatron_pad_map(lone, 4, 1, 100, padded, NULL), MOE_EP_OK);
    for (i = 0; i < 4; i++) CHECK_I64(padded[i], 1);
    CHECK_I64(moe_ep_megatron_pad_map(lone, 4, 1, 0, padded, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_routing_map(picture, 4, 2, 2, map, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 3, a, 4, &rows, NULL, NULL), MOE_EP_OK);
    CHECK_I64(rows, 4);
    check_i32s(a, chunks, 4);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 3, a, 3, &rows, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_sort_chunks(sizes, bad, 3, a, 4, &rows, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    same[0] = 0; /* 0 1 1 */
    CHECK_I64(moe_ep_sort_chunks(sizes, same, 3, a, 4, &rows, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 2);
    same[0] = 1; /* 1 1 1 has the sum of a permutation */
    CHECK_I64(moe_ep_sort_chunks(sizes, same, 3, a, 4, &rows, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_torchtitan_permute_indices(groups, 4, 2, 56, 8, a, p, q, NULL), MOE_EP_OK);
    check_i32s(a, first, 12);
    for (i = 0; i < 4; i++) {
        CHECK_I64(p[i], 8);
        CHECK_I64(q[i], 8 * (i + 1));
    }
    CHECK_I64(a[32], -1);
    CHECK_I64(moe_ep_torchtitan_permute_indices(groups, 4, 2, 31, 8, a, p, q, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, 32, 0, 0);
    CHECK_I64(moe_ep_torchtitan_permute_indices(groups, 0, 2, 56, 8, a, p, q, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_torchtitan_permute_indices(groups, 4, 2, 56, 0, a, p, q, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_torchtitan_permute_indices(NULL, 4, 2, 56, 8, a, p, q, &err), MOE_EP_ERR_NULL);
}

/* Any sizes and orders against a search from the front. */
TEST(sort_chunks_random)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < 300; round++) {
        int32_t n = (int32_t)(1 + t_below(&s, round % 30 == 0 ? 3000 : 12)), c, *order = new32(n), *rows;
        int64_t *sizes = new64(n), total = 0, got = -1, row = 0, i, start;
        for (c = 0; c < n; c++) {
            int32_t other = (int32_t)t_below(&s, c + 1);
            order[c] = c;
            order[c] = order[other];
            order[other] = c;
            total += sizes[c] = t_below(&s, 4);
        }
        rows = new32(total);
        CHECK_I64(moe_ep_sort_chunks(sizes, order, n, rows, total, &got, NULL, NULL), MOE_EP_OK);
        CHECK_I64(got, total);
        for (c = 0; c < n; c++) {
            for (start = 0, i = 0; i < order[c]; i++) start += sizes[i];
            for (i = 0; i < sizes[order[c]]; i++) CHECK_I64(rows[row++], start + i);
        }
        if (n > 1) { /* repeat one: the later of the two is named, and nothing is written */
            int32_t first = (int32_t)t_below(&s, n - 1), second = first + 1 + (int32_t)t_below(&s, n - 1 - first);
            moe_ep_error err;
            order[second] = order[first];
            got = -7;
            CHECK_I64(moe_ep_sort_chunks(sizes, order, n, rows, total, &got, NULL, &err), MOE_EP_ERR_RANGE);
            CHECK_I64(err.index, second);
            CHECK_I64(got, -7);
        }
        free(order); free(rows); free(sizes);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(sort_chunks_errors)
{
    static const int64_t sizes[] = {1, 2, 1}, negative[] = {1, -2, 1}, huge[] = {1, INT32_MAX, 1};
    static const int32_t order[] = {2, 0, 1};
    int32_t a[4] = {7, 7, 7, 7};
    int64_t rows = 9, memory[64];
    moe_ep_scratch s = moe_ep_scratch_fixed(memory, 1);
    moe_ep_error err;
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 3, a, 4, &rows, &s, &err), MOE_EP_ERR_SCRATCH);
    CHECK(s.need <= sizeof memory);
    s = moe_ep_scratch_fixed(memory, s.need - 1);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 3, a, 4, &rows, &s, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(moe_ep_sort_chunks(negative, order, 3, a, 4, &rows, NULL, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_sort_chunks(huge, order, 3, a, 4, &rows, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 0, a, 4, &rows, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_sort_chunks(NULL, order, 3, a, 4, &rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sort_chunks(sizes, NULL, 3, a, 4, &rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 3, NULL, 4, &rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 3, a, 4, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(a[0], 7);
    CHECK_I64(rows, 9);
    s = moe_ep_scratch_fixed(memory, s.need);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, 3, a, 4, &rows, &s, &err), MOE_EP_OK);
}

/* Rolling is sorting by (id - roll) mod E. */
TEST(maxtext_permute)
{
    static const int64_t sizes[] = {1, 2, 1, 4};
    static const int32_t rows[] = {5, 1, 6, 2, 0, 3, 4, 7}, groups[] = {0, 1, 1, 2, 3, 3, 3, 3};
    int64_t p[4] = {7, 7, 7, 7};
    int32_t a[8], b[8];
    uint64_t s = t_seed;
    moe_ep_error err;
    int round;
    CHECK_I64(moe_ep_maxtext_permute(picture, 8, 4, 4, p, a, b, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_maxtext_permute(picture, 8, 4, -1, p, a, b, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_maxtext_permute(picture, 8, 3, 2, p, a, b, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_maxtext_permute(picture, 8, 0, 0, p, a, b, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_maxtext_permute(NULL, 8, 4, 2, p, a, b, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_maxtext_permute(picture, 8, 4, 2, NULL, a, b, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_maxtext_permute(picture, 8, 4, 2, p, NULL, b, &err), MOE_EP_ERR_NULL);
    CHECK_I64(p[0], 7);
    CHECK_I64(moe_ep_maxtext_permute(picture, 8, 4, 2, p, a, b, NULL), MOE_EP_OK);
    check_i64s(p, sizes, 4);
    check_i32s(a, rows, 8);
    check_i32s(b, groups, 8);
    for (round = 0; round < 500; round++) {
        int32_t E = (int32_t)(1 + t_below(&s, 30)), roll = (int32_t)t_below(&s, E), g;
        int64_t n = t_below(&s, 200), i, r, *group_sizes = new64(E), *offsets = new64(E + 1);
        int32_t *ids = random_ids(&s, n, E, (int)t_below(&s, 3) * 30), *rolled = new32(n), *got = new32(n);
        int32_t *want = new32(n), *group = new32(n);
        for (i = 0; i < n; i++) rolled[i] = ids[i] < 0 ? -1 : (ids[i] - roll + E) % E;
        CHECK_I64(moe_ep_permute(rolled, n, E, offsets, want, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_maxtext_permute(ids, n, E, roll, group_sizes, got, group, NULL), MOE_EP_OK);
        check_i32s(got, want, n);
        for (g = 0; g < E; g++) {
            CHECK_I64(group_sizes[g], offsets[g + 1] - offsets[g]);
            for (r = offsets[g]; r < offsets[g + 1]; r++) CHECK_I64(group[r], g);
        }
        for (r = offsets[E]; r < n; r++) CHECK_I64(group[r], -1);
        free(ids); free(rolled); free(got); free(want); free(group); free(group_sizes); free(offsets);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Against a buffer that is filled row by row. */
TEST(receive_buffer)
{
    static const int64_t rows[] = {4, 1, 3, 2}, want[] = {4, 1, 1, 2}, begin[] = {0, 0, 4, 1}, lost[] = {2, 0};
    static const int64_t negative[] = {4, 1, -3, 2}, huge[] = {INT64_MAX, 1, 0, 0};
    int64_t kept[4] = {7, 7, 7, 7}, start[4], dropped[2];
    uint64_t s = t_seed;
    moe_ep_error err;
    int round;
    CHECK_I64(moe_ep_receive_buffer(rows, 0, 5, kept, start, dropped, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_receive_buffer(rows, 2, -1, kept, start, dropped, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_receive_buffer(negative, 2, 5, kept, start, dropped, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_receive_buffer(huge, 2, 5, kept, start, dropped, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_receive_buffer(NULL, 2, 5, kept, start, dropped, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_receive_buffer(rows, 2, 5, NULL, start, dropped, &err), MOE_EP_ERR_NULL);
    CHECK_I64(kept[0], 7);
    CHECK_I64(moe_ep_receive_buffer(rows, 2, 5, kept, start, dropped, NULL), MOE_EP_OK);
    check_i64s(kept, want, 4);
    check_i64s(start, begin, 4);
    check_i64s(dropped, lost, 2);
    CHECK_I64(moe_ep_receive_buffer(rows, 2, 5, kept, NULL, NULL, NULL), MOE_EP_OK);
    for (round = 0; round < 500; round++) {
        int32_t D = (int32_t)(1 + t_below(&s, 7)), from, to;
        int64_t in[49], out[49], first[49], gone[7], buffer = t_below(&s, 40), i, fill, count, left;
        for (i = 0; i < D * D; i++) in[i] = t_below(&s, 12);
        CHECK_I64(moe_ep_receive_buffer(in, D, buffer, out, first, gone, NULL), MOE_EP_OK);
        for (to = 0; to < D; to++) {
            for (fill = 0, left = 0, from = 0; from < D; from++) {
                CHECK_I64(first[from * D + to], fill);
                for (count = 0, i = 0; i < in[from * D + to]; i++) {
                    if (fill < buffer) { fill++; count++; }
                    else left++;
                }
                CHECK_I64(out[from * D + to], count);
            }
            CHECK_I64(gone[to], left);
        }
        STOP_IF_FAILED("round %d", round);
    }
}

/* The documented lengths, no element more: max_tokens is rounded up for each expert, not once for all. */
TEST(align_batched_writes_the_documented_length)
{
    static const int64_t counts[5] = {2, 3, 0, 6, 7};
    static const int32_t blocks[10] = {0, 1, 3, 3, 4, 4, -1, -1, -1, -1};
    int32_t *sorted = new32(40), *experts = new32(10), i;
    int64_t used = 0;
    CHECK_I64(moe_ep_align_batched(counts, 5, 7, 4, sorted, experts, &used, NULL), MOE_EP_OK);
    CHECK_I64(used, 24);
    check_i32s(experts, blocks, 10);
    for (i = 0; i < 40; i++) CHECK(sorted[i] <= 35);
    for (i = 24; i < 40; i++) CHECK_I64(sorted[i], 35);
    free(sorted); free(experts);
}

/* The batched form is the plain one on the ids that its counts stand for. */
TEST(align_batched_random)
{
    uint64_t s = t_seed;
    int round;
    for (round = 0; round < 500; round++) {
        int32_t E = (int32_t)(1 + t_below(&s, 9)), most = (int32_t)(1 + t_below(&s, 12)), e;
        int32_t B = (int32_t)(1 + t_below(&s, 6));
        int64_t len = (int64_t)E * ((most + B - 1) / B * B), *counts = new64(E), used = 0, row = 0, block, j;
        int32_t *sorted = new32(len), *experts = new32(len / B);
        for (e = 0; e < E; e++) counts[e] = t_below(&s, most + 1);
        CHECK_I64(moe_ep_align_batched(counts, E, most, B, sorted, experts, &used, NULL), MOE_EP_OK);
        for (e = 0; e < E; e++)
            for (j = 0; j < (counts[e] + B - 1) / B * B; j++, row++) {
                CHECK_I64(sorted[row], j < counts[e] ? e * most + j : E * most);
                CHECK_I64(experts[row / B], e);
            }
        CHECK_I64(used, row);
        for (block = row / B; block < len / B; block++) CHECK_I64(experts[block], -1);
        for (; row < len; row++) CHECK_I64(sorted[row], E * most);
        free(counts); free(sorted); free(experts);
        STOP_IF_FAILED("round %d", round);
    }
}

static int32_t rank_key(int32_t id, int32_t E, int32_t rank, int32_t local)
{
    return id < 0 ? 3 * E : id / local == rank ? id % local : E + id;
}

/* Local ranks of vLLM's permute put together are the global sort. */
TEST(vllm_permute_random)
{
    uint64_t s = t_seed + 2;
    int round;
    for (round = 0; round < 500; round++) {
        int32_t local = (int32_t)(1 + t_below(&s, 4)), R = (int32_t)(1 + t_below(&s, 4)), E = local * R, r, e;
        int64_t n = t_below(&s, 80), i, base = 0;
        int32_t *ids = random_ids(&s, n, E, (int)t_below(&s,
                                  2) * 30), *perm = new32(n), *inv = new32(n), *flat = new32(n), *back = new32(n),
                                      map[16];
        int64_t offsets[17], part[17];
        CHECK_I64(moe_ep_permute(ids, n, E, offsets, flat, back, NULL), MOE_EP_OK);
        for (r = 0; r < R; r++) {
            uint8_t seen[100] = {0};
            for (e = 0; e < E; e++) map[e] = e / local == r ? e % local : -1;
            CHECK_I64(moe_ep_vllm_permute(ids, n, E, r * local, local, t_below(&s, 2) ? map : NULL, part, perm,
                      inv, NULL, NULL), MOE_EP_OK);
            for (i = 0; i < part[local]; i++) CHECK_I64(perm[i], flat[base + i]);
            for (; i < n; i++) CHECK_I64(perm[i], n);
            for (i = 0; i < n; i++) seen[inv[i]]++;
            for (i = 0; i < n; i++) CHECK_I64(seen[i], 1); /* a bijection */
            for (i = 0; i < part[local]; i++) CHECK_I64(inv[perm[i]], i);
            for (i = 0; i < n; i++) { /* behind the local rows those of other ranks, by expert, -1 last */
                int64_t j, before = 0;
                for (j = 0; j < n; j++) {
                    const int32_t a = rank_key(ids[j], E, r, local), b = rank_key(ids[i], E, r, local);
                    before += a < b || (a == b && j < i);
                }
                CHECK_I64(inv[i], before);
            }
            base += part[local];
        }
        CHECK_I64(base, offsets[E]);
        free(ids); free(perm); free(inv); free(flat); free(back);
        STOP_IF_FAILED("round %d", round);
    }
}

/* ---- layout and traffic against brute force ---- */

TEST(layout_random)
{
    uint64_t s = t_seed + 3;
    int round;
    for (round = 0; round < 1000; round++) {
        int32_t R = (int32_t)(1 + t_below(&s, round % 10 == 0 ? 90 : 9)), E = R * (int32_t)(1 + t_below(&s, 4)),
            K = (int32_t)(1 + t_below(&s, 9));
        int32_t per_node = (int32_t)t_below(&s,
                                            R + 1), size = per_node ? per_node : R, N = (R + size - 1) / size, r, k, e;
        int64_t T = t_below(&s, 20), t, idx;
        int32_t *ids = random_ids(&s, T * K, E, (int)t_below(&s, 60)), *map = new32(E), *where = new32(T * R);
        int64_t *ranks = new64(R), *nodes = new64(N), *experts = new64(E),
            *count = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)E);
        uint8_t *in = (uint8_t *)t_alloc((size_t)(T * R + 1));
        int mapped = (int)t_below(&s, 2);
        moe_ep_layout out;
        for (e = 0; e < E; e++) map[e] = mapped ? (int32_t)t_below(&s, R) : e / (E / R);
        out.tokens_per_rank = ranks;
        out.tokens_per_node = nodes;
        out.tokens_per_expert = experts;
        out.is_token_in_rank = in;
        out.token_idx_in_rank = where;
        CHECK_I64(moe_ep_deepep_layout(ids, T, K, E, R, per_node, mapped ? map : NULL, &out, NULL), MOE_EP_OK);
        for (r = 0; r < R; r++) {
            for (idx = 0, t = 0; t < T; t++) {
                int hit = 0;
                for (k = 0; k < K; k++) hit |= ids[t * K + k] >= 0 && map[ids[t * K + k]] == r;
                CHECK_I64(in[t * R + r], hit);
                CHECK_I64(where[t * R + r], hit ? idx : -1);
                idx += hit;
            }
            CHECK_I64(ranks[r], idx);
        }
        for (r = 0; r < N; r++) {
            for (idx = 0, t = 0; t < T; t++) {
                int hit = 0;
                for (k = 0; k < K; k++) hit |= ids[t * K + k] >= 0 && map[ids[t * K + k]] / size == r;
                idx += hit;
            }
            CHECK_I64(nodes[r], idx);
        }
        for (t = 0; t < T * K; t++)
            if (ids[t] >= 0) count[ids[t]]++;
        check_i64s(experts, count, E);
        free(ids); free(map); free(where); free(ranks); free(nodes); free(experts); free(count); free(in);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Many tokens and any number of ranks: the counts are kept in words of bits that are emptied now and then. */
TEST(layout_large)
{
    static const int32_t ranks[] = {1, 2, 8, 63, 64, 65, 128, 200, 256, 257, 320};
    uint64_t s = t_seed;
    size_t at;
    for (at = 0; at < sizeof ranks / sizeof ranks[0]; at++) {
        const int32_t R = ranks[at], E = R * (int32_t)(1 + t_below(&s, 3)), K = (int32_t)(1 + t_below(&s, 9));
        const int32_t per_node = (int32_t)(1 + t_below(&s, 8)), N = (R + per_node - 1) / per_node;
        const int64_t T = 9000 + t_below(&s, 9000);
        int32_t *ids = random_ids(&s, T * K, E, at % 3 == 0 ? 20 : 0), *map = new32(E), k, r;
        int64_t *want = new64(R), *want_nodes = new64(N), *got = new64(R), *got_nodes = new64(N), t;
        char *seen = (char *)t_alloc((size_t)(R + N));
        moe_ep_layout out;
        for (k = 0; k < E; k++) map[k] = at % 2 ? (int32_t)t_below(&s, R) : k / (E / R);
        memset(want, 0, sizeof *want * (size_t)R);
        memset(want_nodes, 0, sizeof *want_nodes * (size_t)N);
        for (t = 0; t < T; t++) {
            memset(seen, 0, (size_t)(R + N));
            for (k = 0; k < K; k++) {
                if (ids[t * K + k] < 0) continue;
                r = map[ids[t * K + k]];
                want[r] += !seen[r];
                want_nodes[r / per_node] += !seen[R + r / per_node];
                seen[r] = seen[R + r / per_node] = 1;
            }
        }
        memset(&out, 0, sizeof out);
        out.tokens_per_rank = got;
        out.tokens_per_node = got_nodes;
        CHECK_I64(moe_ep_deepep_layout(ids, T, K, E, R, per_node, at % 2 ? map : NULL, &out, NULL), MOE_EP_OK);
        check_i64s(got, want, R);
        check_i64s(got_nodes, want_nodes, N);
        free(ids); free(map); free(want); free(want_nodes); free(got); free(got_nodes); free(seen);
        STOP_IF_FAILED("%d ranks", R);
    }
}

TEST(layout_examples_and_errors)
{
    int64_t ranks[4] = {9, 9, 9, 9}, experts[4];
    int32_t bad[] = {0, 0, 5, 0};
    moe_ep_layout out;
    moe_ep_error err;
    memset(&out, 0, sizeof out);
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 4, 2, 0, NULL, &out, NULL), MOE_EP_OK); /* nothing wanted */
    out.tokens_per_rank = ranks;
    out.tokens_per_expert = experts;
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 4, 2, 0, NULL, &out, NULL), MOE_EP_OK);
    CHECK_I64(ranks[0], 4);
    CHECK_I64(ranks[1], 3);
    CHECK_I64(experts[1], 4);
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 4, 3, 0, NULL, &out, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "R");
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 4, 0, 0, NULL, &out, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 4, 2, -1, NULL, &out, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 4, 2, 0, bad, &out, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 3, 3, 0, NULL, &out, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_deepep_layout(picture, 4, 2, 4, 2, 0, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_deepep_layout(NULL, 4, 2, 4, 2, 0, NULL, &out, &err), MOE_EP_ERR_NULL);
    CHECK_I64(ranks[1], 3);
}

/* The device side of a placement is all that traffic looks at. */
static moe_ep_placement shape_of(int32_t D, int32_t N, int32_t P, int32_t *slot_device, int32_t *device_node)
{
    moe_ep_placement p;
    memset(&p, 0, sizeof p);
    p.num_layers = 1;
    p.num_experts = P;
    p.num_devices = D;
    p.num_nodes = N;
    p.num_slots = P;
    p.slot_device = slot_device;
    p.device_node = device_node;
    return p;
}

TEST(traffic_random)
{
    uint64_t s = t_seed + 4;
    int round;
    for (round = 0; round < 1000; round++) {
        int32_t D = (int32_t)(1 + t_below(&s, round % 10 == 0 ? 100 : 8)), N = (int32_t)(1 + t_below(&s, D)),
            P = (int32_t)(1 + t_below(&s, 30));
        int32_t K = (int32_t)(1 + t_below(&s, 8)), i, k, j, d, mode;
        int64_t T = t_below(&s, 30), t;
        int32_t *slot_device = new32(P), *node = new32(D), *slots = random_ids(&s, T * K, P,
                                                                               15), *source = new32(T),
                                                                                   *fr = new32(T), *fn = new32(T);
        int64_t *rank = new64(D * D), *nodes = new64(N * N);
        moe_ep_placement p = shape_of(D, N, P, slot_device, node);
        int given = (int)t_below(&s, 2);
        for (i = 0; i < P; i++) slot_device[i] = (int32_t)t_below(&s, D);
        for (d = 0; d < D; d++) node[d] = (int32_t)t_below(&s, N);
        for (t = 0; t < T; t++) source[t] = given ? (int32_t)t_below(&s, D) : (int32_t)moe_ep_rank_of_token(t, T, D,
            NULL);
        for (mode = 0; mode < 3; mode++) {
            int64_t *br = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)(D * D)),
                *bn = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)(N * N));
            for (t = 0; t < T; t++)
                for (k = 0; k < K; k++) {
                    int32_t slot = slots[t * K + k], dev, new_rank = 1, new_node = 1;
                    if (slot < 0) continue;
                    dev = slot_device[slot];
                    for (j = 0; j < k; j++) {
                        int32_t before = slots[t * K + j];
                        if (before < 0) continue;
                        if (slot_device[before] == dev) new_rank = 0;
                        if (node[slot_device[before]] == node[dev]) new_node = 0;
                    }
                    br[source[t] * D + dev] += mode == MOE_EP_COUNT_PAIRS || new_rank;
                    bn[node[source[t]] * N + node[dev]] += mode == MOE_EP_COUNT_PAIRS ||
                        (mode == MOE_EP_COUNT_RANKS ? new_rank : new_node);
                }
            CHECK_I64(moe_ep_traffic(&p, slots, T, K, given ? source : NULL, (moe_ep_count_mode)mode, rank,
                      nodes, NULL), MOE_EP_OK);
            check_i64s(rank, br, (int64_t)D * D);
            check_i64s(nodes, bn, (int64_t)N * N);
            CHECK_I64(moe_ep_traffic(&p, slots, T, K, given ? source : NULL, (moe_ep_count_mode)mode, NULL,
                      nodes, NULL), MOE_EP_OK);
            free(br);
            free(bn);
        }
        {
            int64_t *got = new64(D * N), *want = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)(D * N));
            for (t = 0; t < T; t++)
                for (d = 0; d < N; d++) { /* is any choice on node d? */
                    for (k = 0; k < K; k++)
                        if (slots[t * K + k] >= 0 && node[slot_device[slots[t * K + k]]] == d) break;
                    want[source[t] * N + d] += k < K;
                }
            CHECK_I64(moe_ep_node_traffic(&p, slots, T, K, given ? source : NULL, got, NULL), MOE_EP_OK);
            check_i64s(got, want, (int64_t)D * N);
            free(got);
            free(want);
        }
        CHECK_I64(moe_ep_fan_out(&p, slots, T, K, fr, fn, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_traffic(&p, slots, T, K, NULL, MOE_EP_COUNT_NODES, rank, nodes, NULL), MOE_EP_OK);
        {
            int64_t all_ranks = 0, all_nodes = 0, i64;
            for (t = 0; t < T; t++) { all_ranks += fr[t]; all_nodes += fn[t]; CHECK(fn[t] <= fr[t] && fr[t] <= K); }
            for (i64 = 0; i64 < (int64_t)D * D; i64++) all_ranks -= rank[i64];
            for (i64 = 0; i64 < (int64_t)N * N; i64++) all_nodes -= nodes[i64];
            CHECK_I64(all_ranks, 0);
            CHECK_I64(all_nodes, 0);
        }
        free(slot_device); free(node); free(slots); free(source); free(fr); free(fn); free(rank); free(nodes);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(traffic_example_and_errors)
{
    int32_t slot_device[] = {
        0, 1}, node[] = {0, 0}, slots[] = {0, 1, 1, 1}, wrong[] = {0, 2, 0, 0}, source[] = {0, 7}, ranks[2];
    static const int64_t pairs[] = {1, 1, 0, 2}, once[] = {1, 1, 0, 1};
    int64_t rank[4];
    moe_ep_placement p = shape_of(2, 1, 2, slot_device, node), q;
    moe_ep_error err;
    CHECK_I64(moe_ep_traffic(&p, slots, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, NULL), MOE_EP_OK);
    check_i64s(rank, pairs, 4);
    CHECK_I64(moe_ep_traffic(&p, slots, 2, 2, NULL, MOE_EP_COUNT_RANKS, rank, NULL, NULL), MOE_EP_OK);
    check_i64s(rank, once, 4);
    CHECK_I64(moe_ep_fan_out(&p, slots, 2, 2, ranks, NULL, NULL), MOE_EP_OK);
    CHECK_I64(ranks[0], 2);
    CHECK_I64(ranks[1], 1);
    CHECK_I64(moe_ep_traffic(NULL, slots, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_traffic(&p, NULL, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_traffic(&p, slots, 2, 2, NULL, MOE_EP_COUNT_PAIRS, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_traffic(&p, slots, 2, 2, NULL, (moe_ep_count_mode)9, rank, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "mode");
    CHECK_I64(moe_ep_traffic(&p, wrong, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_traffic(&p, slots, 2, 2, source, MOE_EP_COUNT_PAIRS, rank, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_traffic(&p, slots, 2, 0, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_traffic(&p, slots, INT64_MAX / 2, 5, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, &err),
              MOE_EP_ERR_OVERFLOW);
    memset(&q, 0, sizeof q);
    CHECK_I64(moe_ep_traffic(&q, slots, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, &err), MOE_EP_ERR_SIZE);
    slot_device[1] = 5;
    CHECK_I64(moe_ep_traffic(&p, slots, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rank, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 1);
    slot_device[1] = 1;
    node[1] = -1;
    CHECK_I64(moe_ep_fan_out(&p, slots, 2, 2, ranks, NULL, &err), MOE_EP_ERR_PLACEMENT);
    node[1] = 0;
    CHECK_I64(moe_ep_fan_out(&p, slots, 2, 2, NULL, NULL, &err), MOE_EP_ERR_NULL);
    check_i64s(rank, once, 4);
}

/* What each device sends to each node: the example, and DeepEP's layout of the tokens that are there. */
TEST(node_traffic_is_the_layout_of_each_rank)
{
    enum { T = 48, K = 3, E = 24, R = 6, N = 3 };
    int32_t slot_device[E], node[R] = {0, 0, 1, 1, 2, 2}, ids[T * K], source[T], few[6] = {0, 1, 2, 2, 3, 3};
    int32_t near[4] = {0, 0, 1, 1}, four[4] = {0, 1, 2, 3}, from[2] = {0, 3}, i, r;
    static const int64_t example[] = {1, 1, 0, 0, 0, 0, 0, 1};
    int64_t rows[R * N], per_node[N];
    uint64_t s = t_seed + 40;
    moe_ep_placement p = shape_of(4, 2, 4, four, near);
    moe_ep_layout layout;
    moe_ep_error err;
    CHECK_I64(moe_ep_node_traffic(&p, few, 2, 3, from, rows, &err), MOE_EP_OK);
    check_i64s(rows, example, 8);
    from[1] = 4;
    CHECK_I64(moe_ep_node_traffic(&p, few, 2, 3, from, rows, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    few[2] = 4;
    CHECK_I64(moe_ep_node_traffic(&p, few, 2, 3, NULL, rows, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "slot_ids");
    check_i64s(rows, example, 8);
    for (i = 0; i < E; i++) slot_device[i] = i / (E / R);
    p = shape_of(R, N, E, slot_device, node);
    for (i = 0; i < T * K; i++) ids[i] = (int32_t)t_below(&s, E + 2) - 2 < 0 ? -1 : (int32_t)t_below(&s, E);
    for (i = 0; i < T; i++) source[i] = i / (T / R); /* blocks: what no source_rank means */
    CHECK_I64(moe_ep_node_traffic(&p, ids, T, K, NULL, rows, NULL), MOE_EP_OK);
    memset(&layout, 0, sizeof layout);
    layout.tokens_per_node = per_node;
    for (r = 0; r < R; r++) {
        CHECK_I64(moe_ep_deepep_layout(ids + r * (T / R) * K, T / R, K, E, R, R / N, NULL, &layout, NULL), MOE_EP_OK);
        check_i64s(rows + r * N, per_node, N);
    }
    CHECK_I64(moe_ep_node_traffic(&p, ids, T, K, source, rows, NULL), MOE_EP_OK);
    check_i64s(rows + (R - 1) * N, per_node, N);
}

/* Lists in which one expert, or "no expert", is met again and again: the same maps as the naive sort makes. */
TEST(permute_hot_experts)
{
    enum { MOST = 700, EXPERTS = 40 };
    uint64_t state = t_seed + 4;
    int round;
    for (round = 0; round < 4000; round++) {
        int32_t ids[MOST], to_flat[MOST], to_row[MOST], want_flat[MOST], want_row[MOST];
        int64_t offsets[EXPERTS + 1], n, i, rows = 0;
        const int32_t E = 1 + (int32_t)(t_u64(&state) % EXPERTS);
        const int32_t hot = (int32_t)(t_u64(&state) % (uint64_t)(E + 1)) - 1;
        const uint64_t share = 1 + t_u64(&state) % 6;
        int32_t e;
        n = E + (int64_t)(t_u64(&state) % (uint64_t)(MOST - E));
        for (i = 0; i < n; i++)
            ids[i] = t_u64(&state) % 6 < share ? hot : (int32_t)(t_u64(&state) % (uint64_t)(E + 1)) - 1;
        for (i = 0; i < n; i++) want_flat[i] = want_row[i] = -1;
        for (e = 0; e < E; e++)
            for (i = 0; i < n; i++)
                if (ids[i] == e) {
                    want_row[i] = (int32_t)rows;
                    want_flat[rows++] = (int32_t)i;
                }
        CHECK_I64(moe_ep_permute(ids, n, E, offsets, to_flat, to_row, NULL), MOE_EP_OK);
        CHECK_I64(offsets[E], rows);
        if (memcmp(to_flat, want_flat, sizeof *to_flat * (size_t)n) ||
            memcmp(to_row, want_row, sizeof *to_row * (size_t)n))
            printf("    round %d: E %d, n %lld, hot %d\n", round, (int)E, (long long)n, (int)hot);
        CHECK(!memcmp(to_flat, want_flat, sizeof *to_flat * (size_t)n));
        CHECK(!memcmp(to_row, want_row, sizeof *to_row * (size_t)n));
    }
}

/* ---- 2^31 assignments ---- */

#if CAN_REPEAT
/* All positions up to 2^31 - 1.  The maps alias themselves too: a place of flat_to_row keeps what was written last,
 * which is its value for the last piece where rows are written in order. */
TEST(permute_of_2_to_the_31)
{
    const int64_t n = (int64_t)1 << 31, piece = (int64_t)1 << 21, last = n - piece;
    const size_t bytes = (size_t)n * sizeof(int32_t), part = (size_t)piece * sizeof(int32_t);
    int fd = memfd_create("ids", 0), fe = memfd_create("rows", 0), ff = memfd_create("flat", 0);
    int32_t *ids = (int32_t *)repeated(bytes, part, fd), *to_flat = (int32_t *)repeated(bytes, part, fe);
    int32_t *to_row = (int32_t *)repeated(bytes, part, ff);
    int64_t offsets[9], i, wrong = 0;
    if (ids && to_flat && to_row) {
        for (i = 0; i < piece; i++) ids[i] = (int32_t)(i % 8);
        CHECK_I64(moe_ep_permute(ids, n, 8, offsets, to_flat, to_row, NULL), MOE_EP_OK);
        for (i = 0; i <= 8; i++) CHECK_I64(offsets[i], i * (n / 8));
        for (i = 0; i < piece; i++) wrong += to_row[i] != (last + i) / 8 + (i % 8) * (n / 8);
        CHECK_I64(wrong, 0);
        for (i = 0; i < piece; i++) ids[i] = (int32_t)(i % 4);
        CHECK_I64(moe_ep_permute(ids, n, 4, offsets, to_flat, to_row, NULL), MOE_EP_OK);
        for (i = 0; i <= 4; i++) CHECK_I64(offsets[i], i * (n / 4));
        for (i = 0; i < piece; i++) wrong += to_row[i] != (last + i) / 4 + (i % 4) * (n / 4); /* by halves */
        CHECK_I64(wrong, 0);
        ids[piece - 1] = 4;
        CHECK_I64(moe_ep_permute(ids, n, 4, offsets, NULL, NULL, NULL), MOE_EP_ERR_EXPERT_ID);
    }
    if (ids) munmap(ids, bytes);
    if (to_flat) munmap(to_flat, bytes);
    if (to_row) munmap(to_row, bytes);
    close(fd);
    close(fe);
    close(ff);
    if (!ids || !to_flat || !to_row) SKIP("24 GiB of addresses cannot be mapped here");
}
#endif

/* What is left of sizes, pointers and empty calls. */
TEST(bad_arguments_at_the_ends)
{
    const int32_t ids[2] = {1, 0}, none[2] = {-1, -1};
    const int64_t counts[2] = {INT64_MAX - 1, 1}, small[2] = {2, 1}, offsets[3] = {0, 1, 2};
    int64_t got[4] = {-9, -9, -9, -9}, rows = -9, blocks = -9;
    int32_t out[4] = {-9, -9, -9, -9}, more[4] = {-9, -9, -9, -9};
    uint8_t map[4] = {0, 1, 1, 0}, none_map[4] = {7, 7, 7, 7};
    float x[2] = {1.0f, 2.0f}, y[2] = {-9.0f, -9.0f};
    moe_ep_align_desc d;
    moe_ep_placement p;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    memset(&p, 0, sizeof p);
    d.num_experts = 2, d.block_size = 4;
    CHECK_I64(moe_ep_send_counts(ids, -1, 2, NULL, 1, got, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "n");
    CHECK_I64(moe_ep_padded_offsets(counts, 1, 8, 0, got, &err), MOE_EP_ERR_OVERFLOW); /* the rounding */
    CHECK_I64(moe_ep_padded_offsets(counts, 2, 2, 0, got, &err), MOE_EP_ERR_OVERFLOW); /* the sum */
    CHECK_I64(moe_ep_padded_offsets(small, 2, INT64_MAX / 2, 3, got, &err), MOE_EP_ERR_OVERFLOW); /* the least */
    CHECK_I64(moe_ep_gather(NULL, 0, 2, 1, ids, 1, y, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_gather(NULL, 2, 1, 1, ids, 2, y, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "x");
    CHECK_I64(moe_ep_gather(x, INT64_MAX / 2, 4, 1, ids, 2, y, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_gather(x, INT64_MAX / 3, 2, 1, ids, 2, y, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_combine(NULL, 1, ids, NULL, 2, 1, 1, y, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "rows");
    CHECK_I64(moe_ep_align_block(&d, NULL, 2, out, more, &rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_block(&d, ids, 2, NULL, more, &rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "sorted_ids");
    CHECK_I64(moe_ep_align_block(&d, ids, 2, out, NULL, &rows, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "block_experts");
    d.block_size = INT32_MAX;
    d.old_buffer = 1;
    CHECK_I64(moe_ep_align_block(&d, ids, 2, out, more, &rows, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_align_sizes(&d, 2, got, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_batched(small, INT32_MAX, INT32_MAX, 1, out, more, &rows, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_align_batched(small, 2, INT32_MAX, 2, out, more, &rows, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_sglang_preprocess(ids, 2, 2, NULL, out, got, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sglang_preprocess(ids, 2, 2, out, NULL, got, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "src2dst");
    CHECK_I64(moe_ep_routing_map(ids, 2, 0, 2, none_map, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_megatron_permute(map, 2, 2, got, NULL, 2, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "token_of_row");
    CHECK_I64(moe_ep_megatron_permute(map, 2, 2, got, out, 1, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_receive_buffer(small, INT32_MAX, 1, got, got + 1, &rows, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_trtllm_permute(ids, 2, 0, 2, 1, got, out, more, more, 2, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_binned_rows(offsets, NULL, 2, 1, out, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "row_to_flat");
    CHECK_I64(moe_ep_deepep_layout(ids, 2, 0, 2, 2, 0, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK(got[0] == -9 && got[3] == -9 && out[0] == -9 && more[0] == -9 && rows == -9 && blocks == -9);
    CHECK(none_map[0] == 7 && y[0] < -8.0f);
    CHECK_I64(moe_ep_routing_map(none, 2, 1, 2, none_map, &err), MOE_EP_OK); /* nobody routed */
    CHECK(none_map[0] == 0 && none_map[3] == 0);
    CHECK_I64(moe_ep_megatron_permute(none_map, 2, 2, got, NULL, 0, &err), MOE_EP_OK);
    CHECK(got[0] == 0 && got[2] == 0);
    CHECK_I64(moe_ep_megatron_pad_map(map, 2, 2, 2, map, &err), MOE_EP_OK); /* in place */
    CHECK(map[0] && map[1] && map[2] && map[3]);
    CHECK_I64(moe_ep_binned_rows(got, NULL, 2, 1, out, &err), MOE_EP_OK);
    CHECK(out[0] == -1 && out[1] == -1);
    CHECK_I64(moe_ep_combine(NULL, 0, none, NULL, 2, 1, 1, y, &err), MOE_EP_OK);
    CHECK_NEAR(fabs((double)y[0]) + fabs((double)y[1]), 0.0, 0, 0);
    CHECK_I64(moe_ep_sglang_preprocess(NULL, 0, 2, NULL, NULL, got, &err), MOE_EP_OK);
    CHECK_I64(got[2], 0);
    p.num_devices = p.num_nodes = 1, p.num_slots = 1;
    CHECK_I64(moe_ep_fan_out(&p, ids, 2, 1, out, NULL, &err), MOE_EP_ERR_NULL);
    {
        int32_t slot_device[1] = {-1}, device_node[1] = {0}, zero[2] = {0, 0};
        p.slot_device = slot_device;
        CHECK_I64(moe_ep_fan_out(&p, zero, 2, 1, out, NULL, &err), MOE_EP_ERR_NULL);
        p.device_node = device_node;
        CHECK_I64(moe_ep_fan_out(&p, zero, 2, 1, out, NULL, &err), MOE_EP_ERR_PLACEMENT);
        CHECK_STR(err.arg, "p.slot_device");
        slot_device[0] = 0, device_node[0] = -1;
        CHECK_I64(moe_ep_fan_out(&p, zero, 2, 1, out, NULL, &err), MOE_EP_ERR_PLACEMENT);
        CHECK_STR(err.arg, "p.device_node");
        device_node[0] = 0;
        CHECK_I64(moe_ep_fan_out(&p, zero, 2, 1, NULL, NULL, &err), MOE_EP_ERR_NULL);
        CHECK_I64(moe_ep_fan_out(&p, zero, 2, 1, out, NULL, &err), MOE_EP_OK);
        CHECK(out[0] == 1 && out[1] == 1);
        CHECK_I64(moe_ep_fan_out(&p, zero, 2, 1, NULL, more, &err), MOE_EP_OK);
        CHECK(more[0] == 1 && more[1] == 1);
    }
}

/* ---- properties ---- */

enum { MOST = 256 };

typedef struct sample {
    int32_t T, K, E, R, ids[MOST], per_rank;
    int distinct; /* every token names K different experts */
} sample;

/* All the corners more often than chance would have them. */
static void draw(uint64_t *s, sample *x)
{
    const int kind = (int)t_below(s, 10);
    int32_t i, k, other;
    x->R = (int32_t)(1 + t_below(s, 6));
    x->per_rank = kind == 0 ? 1 : (int32_t)(1 + t_below(s, 4));
    if (kind == 0) x->R = 1;                                   /* one expert */
    x->E = x->R * x->per_rank;
    x->K = kind == 1 ? x->E : kind == 2 ? 1 : (int32_t)(1 + t_below(s, x->E < 8 ? x->E : 8));
    x->T = kind == 3 ? 0 : (int32_t)t_below(s, MOST / x->K < 40 ? MOST / x->K + 1 : 40);
    for (i = 0; i < x->T * x->K; i++) {
        if (kind == 4) x->ids[i] = -1;                         /* nobody routed */
        else if (kind == 5) x->ids[i] = x->E - 1;              /* all the same */
        else x->ids[i] = t_below(s, 100) < (kind == 6 ? 50 : 5) ? -1 : (int32_t)t_below(s, x->E);
    }
    x->distinct = kind == 1 || kind >= 7;
    if (!x->distinct) return;
    for (i = 0; i < x->T; i++) { /* distinct choices, as a router makes them: a shuffled row of 0..E-1 */
        int32_t row[64];
        for (k = 0; k < x->E; k++) {
            other = (int32_t)t_below(s, k + 1);
            row[k] = row[other];
            row[other] = k;
        }
        for (k = 0; k < x->K; k++) x->ids[i * x->K + k] = row[k];
    }
}

/* Sort, counts and maps of one sample. */
static void check_sort(const sample *x)
{
    const int32_t n = x->T * x->K;
    int32_t to_flat[MOST], to_row[MOST], i, e, rows = 0;
    int64_t offsets[65], loads[64], skipped = -1, most = 0;
    CHECK_I64(moe_ep_expert_loads(x->ids, n, x->E, loads, &skipped, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_permute(x->ids, n, x->E, offsets, to_flat, to_row, NULL), MOE_EP_OK);
    for (e = 0; e < x->E; e++) {
        CHECK_I64(offsets[e + 1] - offsets[e], loads[e]);
        if (loads[e] > most) most = loads[e];
    }
    for (i = 0; i < n; i++) rows += x->ids[i] >= 0;
    CHECK_I64(offsets[x->E], rows);
    CHECK_I64(skipped, n - rows);
    CHECK(most * x->E >= rows && most <= rows);
    for (i = 0; i < n; i++) {
        const int32_t row = to_row[i];
        if (x->ids[i] < 0) { CHECK_I64(row, -1); continue; }
        CHECK(row >= offsets[x->ids[i]] && row < offsets[x->ids[i] + 1] && to_flat[row] == i);
        CHECK(row == offsets[x->ids[i]] || to_flat[row - 1] < i);
    }
    for (i = rows; i < n; i++) CHECK_I64(to_flat[i], -1);
}

/* Tokens and choices in another order give the same counts; choices moved to other experts, those counts. */
static void check_invariance(uint64_t *s, const sample *x)
{
    const int32_t n = x->T * x->K, shift = (int32_t)t_below(s, x->E);
    int32_t ids[MOST], i, other, e;
    int64_t loads[64], moved[64], sum = 0;
    CHECK_I64(moe_ep_expert_loads(x->ids, n, x->E, loads, NULL, NULL), MOE_EP_OK);
    for (i = 0; i < n; i++) {
        other = (int32_t)t_below(s, i + 1);
        ids[i] = ids[other];
        ids[other] = x->ids[i] < 0 ? -1 : (x->ids[i] + shift) % x->E;
    }
    CHECK_I64(moe_ep_expert_loads(ids, n, x->E, moved, NULL, NULL), MOE_EP_OK);
    for (e = 0; e < x->E; e++) {
        CHECK_I64(moved[(e + shift) % x->E], loads[e]);
        sum += loads[e];
    }
    CHECK_NEAR(moe_ep_imbalance(moved, x->E, NULL), moe_ep_imbalance(loads, x->E, NULL), 1e-15, 0);
    if (sum == 0) CHECK_NEAR(moe_ep_imbalance(loads, x->E, NULL), 1, 0, 0);
    for (e = 0; x->distinct && e < x->E; e++) {
        CHECK(loads[e] <= x->T);
        if (x->K == x->E) CHECK_I64(loads[e], x->T);
    }
}

/* Deduplicated counts lie between the largest group and the sum, and grow with the number of places. */
static void check_places(const sample *x)
{
    int64_t ranks[8], nodes[8], one[1], experts[64], assigned, rank_sum = 0;
    moe_ep_layout out;
    int32_t r, e, n;
    memset(&out, 0, sizeof out);
    out.tokens_per_rank = ranks;
    out.tokens_per_node = nodes;
    out.tokens_per_expert = experts;
    CHECK_I64(moe_ep_deepep_layout(x->ids, x->T, x->K, x->E, x->R, 2, NULL, &out, NULL), MOE_EP_OK);
    for (r = 0; r < x->R; r++) {
        int64_t most = 0;
        for (assigned = 0, e = r * x->per_rank; e < (r + 1) * x->per_rank; e++) {
            assigned += experts[e];
            if (experts[e] > most) most = experts[e];
        }
        CHECK(ranks[r] <= assigned && ranks[r] <= x->T && (assigned == 0) == (ranks[r] == 0));
        if (x->K == 1) CHECK_I64(ranks[r], assigned);
        rank_sum += ranks[r];
    }
    for (n = 0; n < (x->R + 1) / 2; n++) {
        const int64_t a = ranks[2 * n], b = 2 * n + 1 < x->R ? ranks[2 * n + 1] : 0;
        CHECK(nodes[n] <= a + b && nodes[n] >= (a > b ? a : b));
    }
    out.tokens_per_rank = one;
    out.tokens_per_node = NULL;
    out.tokens_per_expert = NULL;
    CHECK_I64(moe_ep_deepep_layout(x->ids, x->T, x->K, x->E, 1, 0, NULL, &out, NULL), MOE_EP_OK);
    CHECK(one[0] <= rank_sum && one[0] <= x->T);
}

/* Out and back: every token is summed once per choice that has a row. */
static void check_round_trip(const sample *x)
{
    float in[2 * MOST], rows[2 * MOST], out[2 * MOST];
    int32_t to_flat[MOST], to_row[MOST], t, k;
    int64_t offsets[65];
    const int32_t n = x->T * x->K;
    CHECK_I64(moe_ep_permute(x->ids, n, x->E, offsets, to_flat, to_row, NULL), MOE_EP_OK);
    for (t = 0; t < x->T; t++) {
        in[2 * t] = (float)(t + 1);
        in[2 * t + 1] = (float)-t;
    }
    CHECK_I64(moe_ep_gather(in, x->T, 2, x->K, to_flat, offsets[x->E], rows, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_combine(rows, offsets[x->E], to_row, NULL, x->T, x->K, 2, out, NULL), MOE_EP_OK);
    for (t = 0; t < x->T; t++) {
        int32_t used = 0;
        for (k = 0; k < x->K; k++) used += x->ids[t * x->K + k] >= 0;
        CHECK(out[2 * t] == (float)(used * (t + 1)) && out[2 * t + 1] == (float)(used * -t));
    }
}

/* ---- every bad argument of the section gives its own status, and the outputs stay ---- */

typedef struct bad_outputs {
    int64_t wide[64];
    int32_t a[64], b[64], c[64];
    uint8_t map[64];
    float f[64];
} bad_outputs;

static bad_outputs bad_out, bad_before;

static int outputs_stay(void) { return memcmp(&bad_out, &bad_before, sizeof bad_out) == 0; }

#define REFUSED(call, want)                                                                             \
    do {                                                                                                \
        CHECK_I64(call, want);                                                                          \
        CHECK_I64(bad_err.status, want);                                                                \
        CHECK(outputs_stay());                                                                          \
    } while (0)

TEST(bad_arguments_of_the_permutations)
{
    static const int32_t ids[8] = {1, 3, 0, 1, 1, 2, 3, 1}, foreign[8] = {1, 3, 0, 1, 1, 2, 4, 1};
    static const int32_t map[4] = {0, 1, -1, 4}, map_low[4] = {0, -2, 1, 1};
    const int64_t most = (int64_t)1 << 31;
    static const int64_t none[4] = {0, 0, 0, 0};
    bad_outputs *o = &bad_out;
    moe_ep_error bad_err;
    moe_ep_align_desc d = align(4, 2), big = align(4, INT32_MAX);
    int64_t len = 0, blocks = 0;
    memset(o, 0x6b, sizeof *o);
    bad_before = bad_out;
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, 0, 0, NULL, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, -1, 2, NULL, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_RANGE);
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, 3, 2, NULL, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_RANGE);
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, 0, 4, map, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_RANGE);
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, 0, 4, map_low, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_RANGE);
    REFUSED(moe_ep_vllm_permute(ids, 8, 0, 0, 4, NULL, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_vllm_permute(ids, most, 4, 0, 4, NULL, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_OVERFLOW);
    REFUSED(moe_ep_vllm_permute(foreign, 8, 4, 0, 4, NULL, o->wide, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_EXPERT_ID);
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, 0, 4, NULL, NULL, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, 0, 4, NULL, o->wide, NULL, o->b, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_vllm_permute(ids, 8, 4, 0, 4, NULL, o->wide, o->a, NULL, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_sglang_preprocess(foreign, 8, 4, o->a, o->b, o->wide, &bad_err), MOE_EP_ERR_EXPERT_ID);
    REFUSED(moe_ep_sglang_preprocess(ids, 8, 0, o->a, o->b, o->wide, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_sglang_preprocess(ids, 8, 4, NULL, o->b, o->wide, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_sglang_preprocess(ids, 8, 4, o->a, NULL, o->wide, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_sglang_preprocess_keep(ids, 8, 4, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_torchtitan_reorder(ids, 4, 2, 4, o->wide, NULL, o->b, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_torchtitan_reorder(ids, 4, 2, 4, o->wide, o->a, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_torchtitan_reorder(foreign, 4, 2, 4, o->wide, o->a, o->b, &bad_err), MOE_EP_ERR_EXPERT_ID);
    REFUSED(moe_ep_megablocks_bins(foreign, 8, 4, 2, o->a, o->b, NULL, o->wide, NULL, &bad_err), MOE_EP_ERR_EXPERT_ID);
    REFUSED(moe_ep_megablocks_bins(ids, -1, 4, 2, o->a, o->b, NULL, o->wide, NULL, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_trtllm_permute(ids, 4, 2, 0, 2, o->wide, o->a, o->b, o->c, 16, NULL, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_trtllm_permute(ids, 4, 2, 4, 2, o->wide, o->a, o->b, o->c, most, NULL, &bad_err),
            MOE_EP_ERR_OVERFLOW);
    REFUSED(moe_ep_trtllm_permute(ids, 4, 2, 4, 2, NULL, o->a, o->b, o->c, 16, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_trtllm_permute(ids, 4, 2, 4, 2, o->wide, NULL, o->b, o->c, 16, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_trtllm_permute(foreign, 4, 2, 4, 2, o->wide, o->a, o->b, o->c, 16, NULL, &bad_err),
            MOE_EP_ERR_EXPERT_ID);
    REFUSED(moe_ep_trtllm_permute(ids, 4, 2, 4, 2, o->wide, o->a, o->b, o->c, 9, NULL, &bad_err), MOE_EP_ERR_SIZE);
    /* aligned blocks */
    CHECK_I64(moe_ep_align_sizes(&d, 8, NULL, &blocks, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_sizes(&d, 8, &len, NULL, NULL), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_sizes(&d, -1, &len, &blocks, NULL), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_align_block(&big, ids, 8, o->a, o->b, o->wide, NULL, &bad_err), MOE_EP_ERR_OVERFLOW);
    REFUSED(moe_ep_align_block(&d, ids, 8, NULL, o->b, o->wide, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_align_block(&d, ids, 8, o->a, NULL, o->wide, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_align_block(&d, NULL, 8, o->a, o->b, o->wide, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_align_block(NULL, ids, 8, o->a, o->b, o->wide, NULL, &bad_err), MOE_EP_ERR_NULL);
    d.expert_map = map_low;
    REFUSED(moe_ep_align_block(&d, ids, 8, o->a, o->b, o->wide, NULL, &bad_err), MOE_EP_ERR_RANGE);
    d.expert_map = map;
    REFUSED(moe_ep_align_block(&d, ids, 8, o->a, o->b, o->wide, NULL, &bad_err), MOE_EP_ERR_RANGE);
    CHECK_I64(bad_err.index, 3);
    REFUSED(moe_ep_align_batched(none, 1, INT32_MAX, 2, o->a, o->b, o->wide, &bad_err), MOE_EP_ERR_OVERFLOW);
    REFUSED(moe_ep_align_batched(none, INT32_MAX, 2, 2, o->a, o->b, o->wide, &bad_err), MOE_EP_ERR_OVERFLOW);
}

TEST(bad_arguments_of_maps_and_buffers)
{
    static const int32_t ids[8] = {1, 3, 0, 1, 1, 2, 3, 1}, twice[3] = {0, 1, 1}, low[3] = {0, -1, 2};
    static const int64_t counts[4] = {1, 2, 0, 1}, falls[3] = {0, 4, 2}, minus[3] = {-1, 2, 3};
    static uint8_t map[16] = {1, 0, 1, 0};
    bad_outputs *o = &bad_out;
    moe_ep_error bad_err;
    memset(o, 0x6b, sizeof *o);
    bad_before = bad_out;
    REFUSED(moe_ep_routing_map(ids, 4, 2, 0, o->map, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_routing_map(ids, 4, 2, 3, o->map, &bad_err), MOE_EP_ERR_EXPERT_ID);
    REFUSED(moe_ep_routing_map(ids, 4, 2, 4, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_megatron_permute(map, -1, 4, o->wide, o->a, 16, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_megatron_permute(map, 4, 0, o->wide, o->a, 16, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_megatron_permute(map, INT64_MAX, 4, o->wide, o->a, 16, &bad_err), MOE_EP_ERR_OVERFLOW);
    REFUSED(moe_ep_megatron_permute(NULL, 4, 4, o->wide, o->a, 16, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_megatron_permute(map, 4, 4, NULL, o->a, 16, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_megatron_permute(map, 4, 4, o->wide, NULL, 16, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_megatron_drop_and_pad(map, 4, 4, 5, o->a, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_megatron_drop_and_pad(map, 4, 4, 0, o->a, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_megatron_drop_and_pad(map, 4, 4, 2, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_megatron_drop_and_pad(NULL, 4, 4, 2, o->a, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_megatron_pad_map(NULL, 4, 4, 2, o->map, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_megatron_pad_map(map, 4, 4, 0, o->map, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_megatron_pad_map(map, 4, 4, 2, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_sort_chunks(counts, twice, 3, o->a, 9, o->wide, NULL, &bad_err), MOE_EP_ERR_RANGE);
    CHECK_I64(bad_err.index, 2);
    REFUSED(moe_ep_sort_chunks(counts, low, 3, o->a, 9, o->wide, NULL, &bad_err), MOE_EP_ERR_RANGE);
    CHECK_I64(bad_err.index, 1);
    REFUSED(moe_ep_torchtitan_permute_indices(counts, 2, 0, 64, 8, o->a, o->wide, o->wide + 9, &bad_err),
            MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_torchtitan_permute_indices(counts, 2, 2, 64, 8, NULL, o->wide, o->wide + 9, &bad_err),
            MOE_EP_ERR_NULL);
    REFUSED(moe_ep_torchtitan_permute_indices(counts, 2, 2, 64, 8, o->a, NULL, o->wide + 9, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_torchtitan_permute_indices(counts, 2, 2, 64, 8, o->a, o->wide, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_binned_rows(falls, ids, 2, 2, o->a, &bad_err), MOE_EP_ERR_RANGE);
    CHECK_I64(bad_err.index, 1);
    CHECK_NEAR(bad_err.value, 4, 0, 0);
    REFUSED(moe_ep_binned_rows(minus, ids, 2, 2, o->a, &bad_err), MOE_EP_ERR_RANGE);
    CHECK_I64(bad_err.index, 0);
    REFUSED(moe_ep_binned_rows(falls, ids, 0, 2, o->a, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_binned_rows(counts, NULL, 1, 2, o->a, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_binned_rows(counts, ids, 1, 2, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_align_batched(counts, 4, 8, 4, NULL, o->b, o->wide, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_align_batched(counts, 4, 8, 4, o->a, NULL, o->wide, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_align_batched(counts, 4, 8, 4, o->a, o->b, NULL, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_gather(o->f, 1, INT32_MAX, 1, ids, INT64_MAX / 2, o->f, &bad_err), MOE_EP_ERR_OVERFLOW);
    REFUSED(moe_ep_gather(NULL, 4, 2, 2, ids, 8, o->f, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_combine(o->f, -1, ids, NULL, 4, 2, 2, o->f, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_combine(o->f, 8, ids, NULL, 4, 2, 0, o->f, &bad_err), MOE_EP_ERR_SIZE);
    REFUSED(moe_ep_combine(NULL, 8, ids, NULL, 4, 2, 2, o->f, &bad_err), MOE_EP_ERR_NULL);
    REFUSED(moe_ep_combine(o->f, 8, ids, NULL, -4, 2, 2, o->f, &bad_err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_combine(NULL, 0, NULL, NULL, 0, 2, 2, NULL, NULL), MOE_EP_OK);
}
#undef REFUSED

/* Outputs that are not wanted, and the sizes at which another way of counting begins. */
TEST(optional_outputs_and_long_lists)
{
    static const int32_t ids[8] = {1, 3, 0, 1, 1, 2, 3, -1};
    int32_t *many = new32(5000), *devices = new32(4096), a[16], b[16];
    int64_t offsets[8], counts[8], bins[8], per_device[3], other[3] = {0, 0, 0}, skipped = 0;
    uint8_t in[16], picture[16];
    static const uint8_t want[16] = {0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1};
    static const int32_t picture_ids[8] = {1, 3, 0, 1, 1, 2, 3, 1};
    int32_t where[8];
    moe_ep_layout only;
    uint64_t s = t_seed;
    int i;
    CHECK_I64(moe_ep_routing_map(picture_ids, 4, 2, 4, picture, NULL), MOE_EP_OK);
    CHECK(memcmp(picture, want, 16) == 0);
    CHECK_I64(moe_ep_routing_map(NULL, 0, 2, 4, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_megatron_pad_map(NULL, 0, 4, 2, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_megatron_pad_map(want, 4, 4, 2, in, NULL), MOE_EP_OK);
    CHECK_I64(in[0] + in[2] * 10, 11); /* columns 0 and 2 had one token each, and get the first that was not routed */
    CHECK_I64(moe_ep_maxtext_permute(ids, 8, 4, 1, counts, a, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_megablocks_bins(ids, 8, 4, 2, NULL, NULL, NULL, bins, NULL, NULL), MOE_EP_OK);
    CHECK_I64(bins[3], 7);
    CHECK_I64(moe_ep_trtllm_permute(ids, 4, 2, 4, 2, offsets, a, NULL, NULL, 12, NULL, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_trtllm_permute(ids, 4, 2, 4, 2, bins, b, NULL, where, 8, NULL, NULL), MOE_EP_ERR_SIZE);
    memset(&only, 0, sizeof only);
    only.is_token_in_rank = in;
    CHECK_I64(moe_ep_deepep_layout(ids, 4, 2, 4, 2, 0, NULL, &only, NULL), MOE_EP_OK);
    CHECK_I64(in[0] + in[1] * 2 + in[6] * 4 + in[7] * 8, 11);
    memset(&only, 0, sizeof only);
    only.token_idx_in_rank = where;
    CHECK_I64(moe_ep_deepep_layout(ids, 4, 2, 4, 2, 0, NULL, &only, NULL), MOE_EP_OK);
    CHECK_I64(where[7], 2);
    CHECK_I64(moe_ep_deepep_layout(ids, 4, 2, 4, 65537, 0, NULL, &only, NULL), MOE_EP_ERR_SIZE);
    /* send_counts by expert and by id */
    for (i = 0; i < 5000; i++) many[i] = (int32_t)t_below(&s, 4097) - 1;
    for (i = 0; i < 4096; i++) devices[i] = (int32_t)t_below(&s, 3);
    CHECK_I64(moe_ep_send_counts(many, 5000, 4096, devices, 3, per_device, &skipped, NULL), MOE_EP_OK);
    for (i = 0; i < 5000; i++)
        if (many[i] >= 0) other[devices[many[i]]]++;
    for (i = 0; i < 3; i++) CHECK_I64(per_device[i], other[i]);
    CHECK_I64(per_device[0] + per_device[1] + per_device[2] + skipped, 5000);
    CHECK_I64(moe_ep_send_counts(many, 5000, 4096, NULL, 3, per_device, NULL, NULL), MOE_EP_OK);
    CHECK_I64(per_device[0] + per_device[1] + per_device[2] + skipped, 5000);
    CHECK_I64(moe_ep_send_counts(ids, 8, 4096, NULL, 2, per_device, &skipped, NULL), MOE_EP_OK);
    CHECK_I64(per_device[0] * 100 + per_device[1] * 10 + skipped, 251);
    free(many);
    free(devices);
}

/* A layout by its definition, for any way the counts are made: many places, many experts, few tokens. */
TEST(layout_by_definition)
{
    static const struct { int32_t R, E; int64_t T; } shape[] = {
        {2, 5000, 900}, {300, 600, 200}, {300, 600, 20}, {64, 512, 60}, {64, 512, 70}, {200, 400, 49}, {200, 400, 51},
        {100, 5000, 30}, {5000, 5000, 700}, {7, 7, 0}};
    uint64_t s = t_seed + 61;
    size_t c;
    for (c = 0; c < 2 * sizeof shape / sizeof *shape; c++) {
        const int32_t R = shape[c / 2].R, E = shape[c / 2].E, K = 3, per_node = 1 + (int32_t)t_below(&s, 3),
                      N = (R + per_node - 1) / per_node;
        const int64_t T = shape[c / 2].T;
        int32_t *ids = random_ids(&s, T * K, E, 10), *seen = new32(R), *node_seen = new32(N), k;
        int64_t *ranks = new64(R), *nodes = new64(N), *experts = new64(E), t, i;
        int64_t *want = (int64_t *)t_alloc(sizeof *want * (size_t)R);
        int64_t *want_nodes = (int64_t *)t_alloc(sizeof *want * (size_t)N);
        moe_ep_layout out;
        memset(&out, 0, sizeof out);
        out.tokens_per_rank = ranks;
        out.tokens_per_node = nodes;
        out.tokens_per_expert = c % 2 ? experts : NULL;
        for (i = 0; i < R; i++) seen[i] = -1;
        for (i = 0; i < N; i++) node_seen[i] = -1;
        for (t = 0; t < T; t++)
            for (k = 0; k < K; k++) {
                const int32_t id = ids[t * K + k], r = id / (E / R);
                if (id < 0) continue;
                if (seen[r] != t) want[r]++;
                if (node_seen[r / per_node] != t) want_nodes[r / per_node]++;
                seen[r] = node_seen[r / per_node] = (int32_t)t;
            }
        CHECK_I64(moe_ep_deepep_layout(ids, T, K, E, R, per_node, NULL, &out, NULL), MOE_EP_OK);
        check_i64s(ranks, want, R);
        check_i64s(nodes, want_nodes, N);
        free(ids);
        free(seen);
        free(node_seen);
        free(ranks);
        free(nodes);
        free(experts);
        free(want);
        free(want_nodes);
        STOP_IF_FAILED("shape %d", (int)c);
    }
}

/* The buffer lengths of vLLM by their definition, small and where they no longer fit 32 bits. */
TEST(align_sizes_by_definition)
{
    moe_ep_align_desc d;
    moe_ep_error err;
    int64_t n, len = -9, blocks = -9, want, most = INT32_MAX;
    int32_t one[1] = {0}, out[1] = {-9};
    int pad, old;
    memset(&d, 0, sizeof d);
    for (d.num_experts = 1; d.num_experts < 7; d.num_experts++)
        for (d.block_size = 1; d.block_size < 6; d.block_size++)
            for (n = 0; n < 12; n++)
                for (pad = 0; pad < 2; pad++)
                    for (old = 0; old < 2; old++) {
                        d.pad_sorted_ids = pad;
                        d.old_buffer = old;
                        want = n + d.num_experts * (d.block_size - 1);
                        if (pad) want = (want + d.block_size - 1) / d.block_size * d.block_size;
                        if (!old && n < d.num_experts && n * d.block_size < want) want = n * d.block_size;
                        CHECK_I64(moe_ep_align_sizes(&d, n, &len, &blocks, NULL), MOE_EP_OK);
                        CHECK_I64(len, want);
                        CHECK_I64(blocks, (want + d.block_size - 1) / d.block_size);
                        STOP_IF_FAILED("n %d", (int)n);
                    }
    memset(&d, 0, sizeof d);
    d.num_experts = d.block_size = INT32_MAX;
    d.pad_sorted_ids = d.old_buffer = 1;
    CHECK_I64(moe_ep_align_sizes(&d, most, &len, &blocks, &err), MOE_EP_OK); /* the largest there can be */
    CHECK_I64(len, most * most);
    CHECK_I64(blocks, most);
    d.num_experts = d.block_size = 70000;
    CHECK_I64(moe_ep_align_block(&d, one, 1, out, out, &len, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "desc");
    CHECK_I64(moe_ep_align_batched(&len, INT32_MAX, INT32_MAX, INT32_MAX, out, out, &len, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_align_batched(&len, 2, INT32_MAX, 1, out, out, &len, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "E");
    CHECK_I64(out[0], -9);
    memset(&d, 0, sizeof d);
    d.num_experts = 4;
    d.block_size = 2;
    CHECK_I64(moe_ep_align_block(&d, NULL, 0, NULL, NULL, &len, NULL, &err), MOE_EP_OK); /* no buffers, no rows */
    CHECK_I64(len, 0);
    CHECK_I64(moe_ep_align_block(&d, NULL, 1, out, out, &len, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "ids");
    CHECK_I64(moe_ep_align_block(&d, one, 1, NULL, out, &len, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "sorted_ids");
    CHECK_I64(moe_ep_align_block(&d, one, 1, out, NULL, &len, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "block_experts");
}

/* One hot expert among more than the waiting places hold, and more experts than counted ids keep apart. */
TEST(hot_expert_among_many)
{
    static const int32_t experts[] = {900, 2000, 4096, 5000};
    enum { N = 6000, D = 7 };
    static int32_t ids[N], row_to_flat[N], flat_to_row[N];
    static int64_t offsets[5001];
    int64_t counts[D], want[D], skipped, none, i, row;
    uint64_t s = t_seed + 62;
    int round;
    for (round = 0; round < 8; round++) {
        const int32_t E = experts[round % 4], hot = (int32_t)t_below(&s, E);
        int32_t e;
        memset(want, 0, sizeof want);
        for (none = i = 0; i < N; i++) {
            ids[i] = t_below(&s, 2) ? hot : (int32_t)t_below(&s, E + 1) - 1;
            if (ids[i] >= 0) want[ids[i] % D]++;
            else none++;
        }
        CHECK_I64(moe_ep_permute(ids, N, E, offsets, row_to_flat, flat_to_row, NULL), MOE_EP_OK);
        for (row = 0, e = 0; e < E; e++) { /* each expert's assignments in their order */
            int64_t last = -1;
            CHECK_I64(offsets[e], row);
            for (; row < offsets[e + 1]; row++) {
                CHECK(row_to_flat[row] > last && ids[row_to_flat[row]] == e);
                CHECK_I64(flat_to_row[row_to_flat[row]], row);
                last = row_to_flat[row];
            }
        }
        CHECK_I64(row, N - none);
        for (; row < N; row++) CHECK_I64(row_to_flat[row], -1);
        for (i = 0; i < N; i++) CHECK((ids[i] < 0) == (flat_to_row[i] < 0));
        CHECK_I64(moe_ep_send_counts(ids, N, E, NULL, D, counts, &skipped, NULL), MOE_EP_OK);
        check_i64s(counts, want, D);
        CHECK_I64(skipped, none);
        STOP_IF_FAILED("round %d", round);
    }
}

TEST(sizes_and_memory_at_the_ends)
{
    int32_t ids[4] = {0, 1, 1, 0}, slot_device[2] = {0, 1}, node[2] = {0, 0}, none[2] = {-1, -1}, a[8], b[8], c[8];
    int64_t rows[4] = {-9, -9, -9, -9}, four[8];
    float x[2] = {1.0f, 2.0f}, out[4] = {9.0f, 9.0f, 9.0f, 9.0f};
    uint8_t map[1] = {0};
    char memory[512];
    moe_ep_placement p = shape_of(2, 1, 2, slot_device, node);
    moe_ep_scratch scratch = moe_ep_scratch_fixed(memory, 1);
    moe_ep_layout layout;
    moe_ep_error err;
    memset(&layout, 0, sizeof layout);
    CHECK_I64(moe_ep_gather(NULL, 0, 2, 1, none, 2, out, &err), MOE_EP_OK); /* no tokens: rows of zeros */
    CHECK(out[0] <= 0.0f && out[3] <= 0.0f && out[0] >= 0.0f && out[3] >= 0.0f);
    out[0] = 9.0f;
    CHECK_I64(moe_ep_gather(NULL, 1, 2, 1, none, 2, out, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "x");
    CHECK(out[0] > 8.0f);
    CHECK_I64(moe_ep_gather(x, 1, 2, 1, none, 2, out, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_megatron_permute(map, INT32_MAX, INT32_MAX, rows, a, 1, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "T");
    CHECK_I64(moe_ep_megatron_permute(NULL, 1, 2, rows, a, 1, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "map");
    CHECK_I64(moe_ep_torchtitan_reorder(ids, 1, 1, 2, rows, NULL, b, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "row_to_flat");
    CHECK_I64(moe_ep_vllm_permute(NULL, 0, 2, 0, 2, NULL, four, NULL, NULL, NULL, &err), MOE_EP_OK);
    CHECK(four[0] == 0 && four[2] == 0);
    CHECK_I64(moe_ep_receive_buffer(rows, INT32_MAX, 1, rows, NULL, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "D");
    CHECK_I64(moe_ep_deepep_layout(ids, (int64_t)INT32_MAX + 1, 1, 2, 2, 0, NULL, &layout, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "T");
    memset(a, 1, sizeof a);
    CHECK_I64(moe_ep_trtllm_permute(ids, 2, 2, 2, 1, rows, a, b, c, 4, &scratch, &err), MOE_EP_ERR_SCRATCH);
    scratch = moe_ep_scratch_fixed(memory, scratch.need - 1);
    CHECK_I64(moe_ep_trtllm_permute(ids, 2, 2, 2, 1, rows, a, b, c, 4, &scratch, &err), MOE_EP_ERR_SCRATCH);
    CHECK(rows[0] == -9 && a[0] == 0x01010101);
    scratch = moe_ep_scratch_fixed(memory, scratch.need);
    CHECK_I64(moe_ep_trtllm_permute(ids, 2, 2, 2, 1, rows, a, b, c, 4, &scratch, &err), MOE_EP_OK);
    CHECK(rows[0] == 0 && rows[1] == 2 && rows[2] == 4 && a[0] == 0 && a[3] == 1);
    node[1] = 1; /* there is one node */
    CHECK_I64(moe_ep_traffic(&p, ids, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rows, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 1);
    node[1] = -1;
    CHECK_I64(moe_ep_traffic(&p, ids, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rows, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "p.device_node");
    node[0] = -1;
    CHECK_I64(moe_ep_traffic(&p, ids, 2, 2, NULL, MOE_EP_COUNT_PAIRS, rows, NULL, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_I64(err.index, 0);
}

/* One token, one row or one expert without its array is refused everywhere, and nothing is written. */
TEST(one_row_without_its_array)
{
    const int32_t id[1] = {0};
    const int64_t one[1] = {1}, ends[2] = {0, 1};
    const uint8_t map[1] = {1};
    int32_t a[2] = {-9, -9}, b[2] = {-9, -9};
    int64_t w[4] = {-9, -9, -9, -9}, v[2] = {-9, -9};
    float y[1] = {-9.0f};
    uint8_t m[1] = {9};
    int32_t device[1] = {0}, node[1] = {0};
    moe_ep_placement p = shape_of(1, 1, 1, device, node);
    moe_ep_align_desc d;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_experts = d.block_size = 1;
#define LACKS(call, name)                                                                           \
    do {                                                                                            \
        CHECK_I64(call, MOE_EP_ERR_NULL);                                                           \
        CHECK_STR(err.arg, name);                                                                   \
    } while (0)
    LACKS(moe_ep_permute(NULL, 1, 1, w, a, b, &err), "ids");
    LACKS(moe_ep_permute(id, 1, 1, NULL, a, b, &err), "offsets");
    LACKS(moe_ep_padded_offsets(NULL, 1, 1, 0, w, &err), "counts");
    LACKS(moe_ep_padded_offsets(one, 1, 1, 0, NULL, &err), "offsets");
    LACKS(moe_ep_send_counts(NULL, 1, 1, NULL, 1, w, v, &err), "ids");
    LACKS(moe_ep_send_counts(id, 1, 1, NULL, 1, NULL, v, &err), "counts");
    LACKS(moe_ep_gather(NULL, 1, 1, 1, id, 1, y, &err), "x");
    LACKS(moe_ep_gather(y, 1, 1, 1, NULL, 1, y, &err), "row_to_flat");
    LACKS(moe_ep_gather(y, 1, 1, 1, id, 1, NULL, &err), "rows");
    LACKS(moe_ep_combine(NULL, 1, id, NULL, 1, 1, 1, y, &err), "rows");
    LACKS(moe_ep_combine(y, 1, NULL, NULL, 1, 1, 1, y, &err), "flat_to_row");
    LACKS(moe_ep_combine(y, 1, id, NULL, 1, 1, 1, NULL, &err), "out");
    LACKS(moe_ep_align_sizes(&d, 1, NULL, v, &err), "sorted_len");
    LACKS(moe_ep_align_sizes(&d, 1, w, NULL, &err), "num_blocks");
    LACKS(moe_ep_align_block(&d, NULL, 1, a, b, w, NULL, &err), "ids");
    LACKS(moe_ep_align_block(&d, id, 1, NULL, b, w, NULL, &err), "sorted_ids");
    LACKS(moe_ep_align_block(&d, id, 1, a, NULL, w, NULL, &err), "block_experts");
    LACKS(moe_ep_align_block(&d, id, 1, a, b, NULL, NULL, &err), "padded_rows");
    LACKS(moe_ep_align_batched(NULL, 1, 1, 1, a, b, w, &err), "counts");
    LACKS(moe_ep_align_batched(one, 1, 1, 1, NULL, b, w, &err), "sorted_ids");
    LACKS(moe_ep_align_batched(one, 1, 1, 1, a, NULL, w, &err), "block_experts");
    LACKS(moe_ep_align_batched(one, 1, 1, 1, a, b, NULL, &err), "padded_rows");
    LACKS(moe_ep_vllm_permute(NULL, 1, 1, 0, 1, NULL, w, a, b, NULL, &err), "ids");
    LACKS(moe_ep_vllm_permute(id, 1, 1, 0, 1, NULL, NULL, a, b, NULL, &err), "offsets");
    LACKS(moe_ep_vllm_permute(id, 1, 1, 0, 1, NULL, w, NULL, b, NULL, &err), "permuted_idx");
    LACKS(moe_ep_vllm_permute(id, 1, 1, 0, 1, NULL, w, a, NULL, NULL, &err), "inv_permuted_idx");
    LACKS(moe_ep_sglang_preprocess(NULL, 1, 1, a, b, w, &err), "ids");
    LACKS(moe_ep_sglang_preprocess(id, 1, 1, NULL, b, w, &err), "sorted_ids");
    LACKS(moe_ep_sglang_preprocess(id, 1, 1, a, NULL, w, &err), "src2dst");
    LACKS(moe_ep_sglang_preprocess_keep(id, 1, 1, a, b, NULL, &err), "seg_indptr");
    LACKS(moe_ep_routing_map(NULL, 1, 1, 1, m, &err), "ids");
    LACKS(moe_ep_routing_map(id, 1, 1, 1, NULL, &err), "map");
    LACKS(moe_ep_megatron_permute(NULL, 1, 1, w, a, 1, &err), "map");
    LACKS(moe_ep_megatron_permute(map, 1, 1, NULL, a, 1, &err), "offsets");
    LACKS(moe_ep_megatron_permute(map, 1, 1, w, NULL, 1, &err), "token_of_row");
    LACKS(moe_ep_megatron_drop_and_pad(NULL, 1, 1, 1, a, &err), "map");
    LACKS(moe_ep_megatron_drop_and_pad(map, 1, 1, 1, NULL, &err), "token_of_row");
    LACKS(moe_ep_megatron_pad_map(NULL, 1, 1, 1, m, &err), "map");
    LACKS(moe_ep_megatron_pad_map(map, 1, 1, 1, NULL, &err), "padded");
    LACKS(moe_ep_sort_chunks(NULL, id, 1, a, 1, w, NULL, &err), "sizes");
    LACKS(moe_ep_sort_chunks(one, NULL, 1, a, 1, w, NULL, &err), "order");
    LACKS(moe_ep_sort_chunks(one, id, 1, NULL, 1, w, NULL, &err), "row_from");
    LACKS(moe_ep_sort_chunks(one, id, 1, a, 1, NULL, NULL, &err), "num_rows");
    LACKS(moe_ep_maxtext_permute(NULL, 1, 1, 0, w, a, b, &err), "ids");
    LACKS(moe_ep_maxtext_permute(id, 1, 1, 0, NULL, a, b, &err), "group_sizes");
    LACKS(moe_ep_maxtext_permute(id, 1, 1, 0, w, NULL, b, &err), "row_to_flat");
    LACKS(moe_ep_receive_buffer(NULL, 1, 1, w, v, NULL, &err), "rows");
    LACKS(moe_ep_receive_buffer(one, 1, 1, NULL, v, NULL, &err), "kept");
    LACKS(moe_ep_torchtitan_reorder(NULL, 1, 1, 1, w, a, b, &err), "ids");
    LACKS(moe_ep_torchtitan_reorder(id, 1, 1, 1, NULL, a, b, &err), "offsets");
    LACKS(moe_ep_torchtitan_reorder(id, 1, 1, 1, w, NULL, b, &err), "row_to_flat");
    LACKS(moe_ep_torchtitan_reorder(id, 1, 1, 1, w, a, NULL, &err), "token_of_row");
    LACKS(moe_ep_trtllm_permute(NULL, 1, 1, 1, 1, w, a, b, NULL, 1, NULL, &err), "ids");
    LACKS(moe_ep_trtllm_permute(id, 1, 1, 1, 1, NULL, a, b, NULL, 1, NULL, &err), "padded_offsets");
    LACKS(moe_ep_trtllm_permute(id, 1, 1, 1, 1, w, NULL, b, NULL, 1, NULL, &err), "expanded_to_permuted");
    LACKS(moe_ep_megablocks_bins(NULL, 1, 1, 1, a, b, w, v, NULL, &err), "ids");
    LACKS(moe_ep_megablocks_bins(id, 1, 1, 1, a, b, w, NULL, NULL, &err), "bins");
    LACKS(moe_ep_binned_rows(NULL, id, 1, 1, a, &err), "offsets");
    LACKS(moe_ep_binned_rows(ends, NULL, 1, 1, a, &err), "row_to_flat");
    LACKS(moe_ep_binned_rows(ends, id, 1, 1, NULL, &err), "slot_flat");
    LACKS(moe_ep_deepep_layout(NULL, 1, 1, 1, 1, 0, NULL, NULL, &err), "ids");
    LACKS(moe_ep_deepep_layout(id, 1, 1, 1, 1, 0, NULL, NULL, &err), "layout");
    LACKS(moe_ep_traffic(&p, NULL, 1, 1, NULL, MOE_EP_COUNT_PAIRS, w, NULL, &err), "slot_ids");
    LACKS(moe_ep_traffic(&p, id, 1, 1, NULL, MOE_EP_COUNT_PAIRS, NULL, NULL, &err), "rank_rows");
    LACKS(moe_ep_node_traffic(&p, NULL, 1, 1, NULL, w, &err), "slot_ids");
    LACKS(moe_ep_node_traffic(&p, id, 1, 1, NULL, NULL, &err), "node_rows");
    LACKS(moe_ep_fan_out(&p, NULL, 1, 1, a, b, &err), "slot_ids");
    LACKS(moe_ep_fan_out(&p, id, 1, 1, NULL, NULL, &err), "ranks");
#undef LACKS
    CHECK(a[0] == -9 && b[0] == -9 && w[0] == -9 && v[0] == -9 && y[0] < -8.0f && m[0] == 9);
}

/* The largest sizes of 32 bits, and one more; nothing is read or written on the way. */
TEST(sizes_that_just_fit)
{
    const int64_t most = INT32_MAX, cells = (int64_t)(SIZE_MAX / sizeof(float)), full[2] = {INT64_MAX - 5, 5};
    const int64_t pages[2] = {INT32_MAX - 5, 5}, more[2] = {INT32_MAX - 5, 6}, none[6] = {0, 0, 0, 0, 0, 0};
    const int32_t id[2] = {0, 0}, order[2] = {1, 0};
    int32_t a[16], b[16], i;
    int64_t w[8], v[8];
    float y[2];
    moe_ep_align_desc d;
    moe_ep_layout layout;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    memset(&layout, 0, sizeof layout);
    memset(w, 0, sizeof w);
    d.num_experts = d.block_size = 1;
    CHECK_I64(moe_ep_permute(NULL, most + 1, 1, w, a, b, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_permute(NULL, most + 2, 1, w, a, b, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_vllm_permute(id, most, 1, 0, 0, NULL, w, a, b, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_local");
    CHECK_I64(moe_ep_vllm_permute(id, most + 1, 1, 0, 1, NULL, w, a, b, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_align_sizes(&d, most, w, v, &err), MOE_EP_OK);
    CHECK(w[0] == most && v[0] == most);
    CHECK_I64(moe_ep_align_sizes(&d, most + 1, w, v, &err), MOE_EP_ERR_OVERFLOW);
    d.block_size = INT32_MAX - 1; /* two rows and all but one of a block */
    CHECK_I64(moe_ep_align_block(&d, id, 2, NULL, b, w, NULL, &err), MOE_EP_ERR_NULL);
    d.block_size = INT32_MAX;
    CHECK_I64(moe_ep_align_block(&d, id, 2, NULL, b, w, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_align_batched(NULL, 1, INT32_MAX, 1, a, b, w, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_align_batched(NULL, 1, INT32_MAX, 2, a, b, w, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_combine(y, 1, id, NULL, cells, 1, 1, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_combine(y, 1, id, NULL, cells + 1, 1, 1, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "T");
    CHECK_I64(moe_ep_combine(y, cells + 1, id, NULL, 1, 1, 1, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "num_rows");
    CHECK_I64(moe_ep_gather(y, cells, 1, 1, NULL, 0, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_gather(y, cells + 1, 1, 1, NULL, 0, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "T");
    CHECK_I64(moe_ep_gather(y, 1, 1, 1, id, cells + 1, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "num_rows");
    CHECK_I64(moe_ep_padded_offsets(full, 2, 1, 0, w, &err), MOE_EP_OK);
    CHECK(w[0] == 0 && w[1] == full[0] && w[2] == INT64_MAX);
    CHECK_I64(moe_ep_padded_offsets(full, 2, 1, 6, w, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_padded_offsets(full + 1, 1, INT64_MAX, 0, w, &err), MOE_EP_OK);
    CHECK_I64(w[1], INT64_MAX);
    CHECK_I64(moe_ep_padded_offsets(full, 1, 4, 0, w, &err), MOE_EP_OK); /* INT64_MAX is 3 above a multiple of 4 */
    CHECK_I64(w[1], INT64_MAX - 3);
    CHECK_I64(moe_ep_padded_offsets(full, 1, INT64_MAX / 2, 0, w, &err), MOE_EP_OK);
    CHECK_I64(w[1], INT64_MAX - 1);
    CHECK_I64(moe_ep_padded_offsets(full, 1, INT64_MAX / 2 + 1, 0, w, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_sort_chunks(pages, order, 2, NULL, most - 1, w, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, (double)most, 0, 0);
    CHECK_I64(moe_ep_sort_chunks(pages, order, 2, NULL, most, w, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_sort_chunks(more, order, 2, NULL, most + 1, w, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_torchtitan_permute_indices(pages, 2, 1, most, 1, NULL, w, v, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_torchtitan_permute_indices(pages, 2, 1, most + 1, 1, NULL, w, v, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "max_len");
    CHECK_I64(moe_ep_torchtitan_permute_indices(more, 2, 1, most, 1, NULL, w, v, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "counts");
    CHECK_I64(moe_ep_torchtitan_permute_indices(none, 3, 2, 11, 4, a, w, v, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, 12.0, 0, 0); /* an expert without rows has a group all the same */
    CHECK_I64(moe_ep_torchtitan_permute_indices(none, 3, 2, 12, 4, a, w, v, &err), MOE_EP_OK);
    for (i = 0; i < 12; i++) CHECK_I64(a[i], -1);
    CHECK(w[0] == 4 && w[1] == 4 && w[2] == 4 && v[0] == 4 && v[1] == 8 && v[2] == 12);
    CHECK_I64(moe_ep_deepep_layout(id, 2, 1, 1, 65536, 0, id, &layout, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_deepep_layout(id, 2, 1, 1, 65537, 0, id, &layout, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "R");
    CHECK_I64(moe_ep_deepep_layout(id, 2, 1, 1, 0, 0, id, &layout, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_trtllm_permute(id, 2, 1, 1, 1, w, a, NULL, NULL, most + 1, NULL, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "max_rows");
    CHECK_I64(moe_ep_trtllm_permute(id, 2, 1, 1, 4, w, a, NULL, NULL, 3, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_NEAR(err.value, 4.0, 0, 0);
    CHECK_I64(moe_ep_trtllm_permute(id, 2, 1, 1, 4, w, a, b, NULL, 4, NULL, &err), MOE_EP_OK);
    CHECK(w[0] == 0 && w[1] == 4 && a[0] == 0 && a[1] == 1 && b[0] == 0 && b[1] == 1 && b[2] == -1 && b[3] == -1);
}

/* Rows that nobody asked for have token -1; experts of other ranks stand behind the local ones in the order of ids. */
TEST(skipped_and_foreign_rows)
{
    const int32_t ids[4] = {1, -1, 0, -1}, other[3] = {2, 0, 1};
    int32_t a[4], b[4];
    int64_t w[4];
    CHECK_I64(moe_ep_torchtitan_reorder(ids, 2, 2, 2, w, a, b, NULL), MOE_EP_OK);
    CHECK(a[0] == 2 && a[1] == 0 && a[2] == -1 && a[3] == -1);
    CHECK(b[0] == 1 && b[1] == 0 && b[2] == -1 && b[3] == -1);
    CHECK_I64(moe_ep_vllm_permute(other, 3, 4, 1, 1, NULL, w, a, b, NULL, NULL), MOE_EP_OK);
    CHECK(w[0] == 0 && w[1] == 1 && a[0] == 2 && a[1] == 3 && a[2] == 3);
    CHECK(b[2] == 0 && b[1] == 1 && b[0] == 2); /* expert 1, then 0, then 2 */
}

/* The first number beyond each range is refused, the last one in it is not. */
TEST(indices_that_just_fit)
{
    const int32_t two[2] = {0, 2}, one[2] = {0, 1}, maps[2] = {-1, 1};
    int32_t devices[2] = {0, 1}, nodes[2] = {0, 0}, a[8], b[8];
    int64_t w[8], v[8];
    float y[4] = {1.0f, 2.0f, 3.0f, 4.0f}, out[4];
    moe_ep_placement p = shape_of(2, 1, 2, devices, nodes);
    moe_ep_align_desc d;
    moe_ep_layout layout;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    memset(&layout, 0, sizeof layout);
    CHECK_I64(moe_ep_gather(y, 2, 1, 1, two, 2, out, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_gather(y, 2, 1, 1, one, 2, out, &err), MOE_EP_OK);
    CHECK(out[0] < 1.5f && out[1] > 1.5f);
    CHECK_I64(moe_ep_combine(y, 2, two, NULL, 2, 1, 1, out, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_combine(y, 2, one, NULL, 2, 1, 1, out, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_send_counts(one, 2, 2, two, 2, w, v, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(moe_ep_permute(two, 2, 2, w, a, b, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_vllm_permute(one, 2, 2, 0, 1, maps, w, a, b, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "expert_map");
    CHECK_I64(moe_ep_vllm_permute(one, 2, 2, 0, 2, maps, w, a, b, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_vllm_permute(one, 2, 2, 1, 2, NULL, w, a, b, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_STR(err.arg, "first_expert");
    CHECK_I64(moe_ep_vllm_permute(one, 2, 2, 1, 1, NULL, w, a, b, NULL, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_vllm_permute(one, 2, 2, 0, 3, NULL, w, a, b, NULL, &err), MOE_EP_ERR_SIZE);
    d.num_experts = 2;
    d.block_size = 1;
    d.expert_map = two;
    CHECK_I64(moe_ep_align_sizes(&d, 2, w, v, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(err.index, 1);
    d.expert_map = maps;
    CHECK_I64(moe_ep_align_sizes(&d, 2, w, v, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_maxtext_permute(one, 2, 2, 2, w, a, b, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_maxtext_permute(one, 2, 2, 1, w, a, b, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_deepep_layout(one, 2, 1, 2, 2, 0, two, &layout, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(moe_ep_deepep_layout(one, 2, 1, 2, 2, 0, one, &layout, &err), MOE_EP_OK);
    CHECK_I64(moe_ep_traffic(&p, two, 2, 1, NULL, MOE_EP_COUNT_PAIRS, w, NULL, &err), MOE_EP_ERR_RANGE);
    CHECK_I64(moe_ep_traffic(&p, one, 2, 1, two, MOE_EP_COUNT_PAIRS, w, NULL, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(moe_ep_traffic(&p, one, 2, 1, one, MOE_EP_COUNT_PAIRS, w, NULL, &err), MOE_EP_OK);
    devices[1] = 2;
    CHECK_I64(moe_ep_fan_out(&p, one, 2, 1, a, b, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "p.slot_device");
    devices[1] = 1;
    nodes[1] = 1;
    CHECK_I64(moe_ep_fan_out(&p, one, 2, 1, a, b, &err), MOE_EP_ERR_PLACEMENT);
    CHECK_STR(err.arg, "p.device_node");
}

/* What stands behind a result stays, and behind an argument is not looked at. */
TEST(neighbours_of_the_maps)
{
    const int32_t ids[5] = {1, 0, -1, 1, 99}, device[3] = {1, 0, 99};
    const int64_t ends[4] = {0, 1, 3, -5}, sizes[3] = {2, 1, -1};
    const int32_t rows[4] = {7, 8, 9, -1}, order[3] = {1, 0, 99};
    const uint8_t map[5] = {1, 0, 1, 1, 77};
    int call, i;
    for (call = 0; call < 12; call++) {
        int32_t a[6], b[6];
        int64_t w[6], v[6];
        uint8_t m[6];
        moe_ep_status s = MOE_EP_OK;
        const int an = call == 6 || call == 8 ? 3 : 4;
        const int wn = call == 1 || call == 9 || call == 10 ? 2 : call == 8 ? 1 : 3;
        for (i = 0; i < 6; i++) {
            a[i] = b[i] = -77;
            w[i] = v[i] = -77;
            m[i] = 77;
        }
        if (call == 0) s = moe_ep_permute(ids, 4, 2, w, a, b, NULL);
        if (call == 1) s = moe_ep_send_counts(ids, 4, 2, device, 2, w, v, NULL);
        if (call == 2) s = moe_ep_binned_rows(ends, rows, 2, 2, a, NULL);
        if (call == 3) s = moe_ep_sglang_preprocess(ids, 4, 2, a, b, w, NULL);
        if (call == 4) s = moe_ep_sglang_preprocess_keep(ids, 4, 2, a, b, w, NULL);
        if (call == 5) s = moe_ep_vllm_permute(ids, 4, 2, 0, 2, NULL, w, a, b, NULL, NULL);
        if (call == 6) s = moe_ep_megatron_permute(map, 2, 2, w, a, 3, NULL);
        if (call == 7) s = moe_ep_megatron_drop_and_pad(map, 2, 2, 2, a, NULL);
        if (call == 8) s = moe_ep_sort_chunks(sizes, order, 2, a, 3, w, NULL, NULL);
        if (call == 9) s = moe_ep_maxtext_permute(ids, 4, 2, 1, w, a, b, NULL);
        if (call == 10) s = moe_ep_megablocks_bins(ids, 4, 2, 1, a, b, v, w, NULL, NULL);
        if (call == 11) s = moe_ep_routing_map(ids, 2, 2, 2, m, NULL);
        CHECK_I64(s, MOE_EP_OK);
        for (i = an; i < 6; i++) CHECK_I64(a[i], -77);
        for (i = 4; i < 6; i++) CHECK_I64(b[i], -77);
        for (i = wn; i < 6; i++) CHECK_I64(w[i], -77);
        for (i = call == 1 ? 1 : 2; i < 6; i++) CHECK_I64(v[i], -77);
        CHECK(m[4] == 77 && m[5] == 77);
        STOP_IF_FAILED("call %d", call);
    }
}

/* Scratch is asked for by the arrays that are worked in, each rounded up to 64 bytes, and 64 to align the first. */
TEST(scratch_is_what_the_arrays_take)
{
    enum { E = 21 };
    const int32_t ids[4] = {0, 1, 2, 3}, order[E] = {0};
    const int64_t sizes[E] = {0};
    int32_t a[E * 4], b[E * 4];
    int64_t w[E + 1];
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    moe_ep_align_desc d;
    memset(&d, 0, sizeof d);
    d.num_experts = E;
    d.block_size = 4;
    CHECK_I64(moe_ep_align_block(&d, ids, 4, a, b, w, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, 64 + (8 * (E + 1) + 63) / 64 * 64);
    CHECK_I64(moe_ep_vllm_permute(ids, 4, E, 3, 6, NULL, w, a, b, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, 64 + (4 * E + 63) / 64 * 64 + (8 * (6 + E + 2) + 63) / 64 * 64);
    CHECK_I64(moe_ep_sort_chunks(sizes, order, E, a, 4, w, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, 64 + (8 * E + 63) / 64 * 64);
    CHECK_I64(moe_ep_trtllm_permute(ids, 4, 1, E, 1, w, a, b, NULL, 4, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, 64 + (8 * (E + 1) + 63) / 64 * 64);
}

TEST(success_clears_the_error)
{
    const int32_t ids[2] = {0, 1}, order[2] = {1, 0};
    const int64_t counts[4] = {1, 1, 1, 1}, starts[3] = {0, 1, 2};
    const float x[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    uint8_t map[4], padded[4];
    int32_t a[16], b[16], c[16], slot_device[2] = {0, 1}, node[2] = {0, 0};
    int64_t p[8], q[8], r[8], sum;
    float y[8];
    moe_ep_placement placement = shape_of(2, 1, 2, slot_device, node);
    moe_ep_align_desc d;
    moe_ep_layout layout;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    memset(&layout, 0, sizeof layout);
    d.num_experts = d.block_size = 2;
    CLEARS(moe_ep_permute(ids, 2, 2, p, a, b, &err));
    CLEARS(moe_ep_padded_offsets(counts, 2, 2, 0, p, &err));
    CLEARS(moe_ep_send_counts(ids, 2, 2, NULL, 2, p, NULL, &err));
    CLEARS(moe_ep_gather(x, 2, 2, 1, ids, 2, y, &err));
    CLEARS(moe_ep_combine(x, 2, ids, NULL, 2, 1, 2, y, &err));
    CLEARS(moe_ep_align_sizes(&d, 2, p, q, &err));
    CLEARS(moe_ep_align_block(&d, ids, 2, a, b, &sum, NULL, &err));
    CLEARS(moe_ep_align_batched(counts, 2, 2, 2, a, b, &sum, &err));
    CLEARS(moe_ep_vllm_permute(ids, 2, 2, 0, 2, NULL, p, a, b, NULL, &err));
    CLEARS(moe_ep_sglang_preprocess(ids, 2, 2, a, b, p, &err));
    CLEARS(moe_ep_sglang_preprocess_keep(ids, 2, 2, a, b, p, &err));
    CLEARS(moe_ep_routing_map(ids, 2, 1, 2, map, &err));
    CLEARS(moe_ep_megatron_permute(map, 2, 2, p, a, 4, &err));
    CLEARS(moe_ep_megatron_drop_and_pad(map, 2, 2, 1, a, &err));
    CLEARS(moe_ep_megatron_pad_map(map, 2, 2, 1, padded, &err));
    CLEARS(moe_ep_sort_chunks(counts, order, 2, a, 4, &sum, NULL, &err));
    CLEARS(moe_ep_maxtext_permute(ids, 2, 2, 0, p, a, b, &err));
    CLEARS(moe_ep_receive_buffer(counts, 2, 4, p, q, r, &err));
    CLEARS(moe_ep_torchtitan_reorder(ids, 2, 1, 2, p, a, b, &err));
    CLEARS(moe_ep_torchtitan_permute_indices(counts, 2, 2, 16, 1, a, p, q, &err));
    CLEARS(moe_ep_trtllm_permute(ids, 2, 1, 2, 1, p, a, b, c, 4, NULL, &err));
    CLEARS(moe_ep_megablocks_bins(ids, 2, 2, 1, a, b, p, q, r, &err));
    CLEARS(moe_ep_binned_rows(starts, ids, 2, 1, a, &err));
    CLEARS(moe_ep_deepep_layout(ids, 2, 1, 2, 2, 0, NULL, &layout, &err));
    CLEARS(moe_ep_traffic(&placement, ids, 2, 1, NULL, MOE_EP_COUNT_PAIRS, p, NULL, &err));
    CLEARS(moe_ep_node_traffic(&placement, ids, 2, 1, NULL, p, &err));
    CLEARS(moe_ep_fan_out(&placement, ids, 2, 1, a, NULL, &err));
}

/* Columns of any density, larger than bytes of 0 and 1: by definition, and in place. */
TEST(pad_map_by_definition)
{
    uint64_t s = t_seed + 63;
    int round;
    for (round = 0; round < 1000; round++) {
        const int32_t E = 1 + (int32_t)t_below(&s, 6), multiple = 1 + (int32_t)t_below(&s, 6);
        const int64_t T = 1 + t_below(&s, 12);
        uint8_t map[12 * 6], want[12 * 6], got[12 * 6];
        int64_t t, i, ones;
        int32_t e;
        for (i = 0; i < T * E; i++) map[i] = t_below(&s, 3) ? 0 : (uint8_t)(1 + t_below(&s, 2));
        memcpy(want, map, sizeof want);
        for (e = 0; e < E; e++) {
            for (ones = 0, t = 0; t < T; t++) ones += map[t * E + e] > 0;
            for (t = 0; t < T && ones % multiple != 0; t++)
                if (map[t * E + e] == 0) {
                    want[t * E + e] = 1;
                    ones++;
                }
        }
        CHECK_I64(moe_ep_megatron_pad_map(map, T, E, multiple, got, NULL), MOE_EP_OK);
        CHECK(memcmp(got, want, (size_t)(T * E)) == 0);
        CHECK_I64(moe_ep_megatron_pad_map(map, T, E, multiple, map, NULL), MOE_EP_OK);
        CHECK(memcmp(map, want, (size_t)(T * E)) == 0);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Distinct ranks of a token over more places than one word, with repeats, by stamps and by marks. */
TEST(layout_over_many_ranks)
{
    uint64_t s = t_seed + 99;
    static const int32_t ranks[] = {65, 128, 256, 300, 1024, 4096, 5000};
    for (size_t c = 0; c < sizeof ranks / sizeof *ranks; c++)
        for (int with = 0; with < 2; with++) {
            const int32_t R = ranks[c], E = R <= 4096 ? 4096 / R * R : R, K = 1 + (int32_t)t_below(&s, 12);
            const int64_t T = 600 + t_below(&s, 300);
            int32_t *ids = new32(T * K);
            int64_t *per_rank = new64(R), *per_node = new64(R), *experts = new64(E), *want = new64(R);
            int64_t *nodes = new64(R), t;
            moe_ep_layout out;
            memset(&out, 0, sizeof out);
            memset(want, 0, sizeof *want * (size_t)R);
            memset(nodes, 0, sizeof *nodes * (size_t)R);
            for (t = 0; t < T * K; t++) ids[t] = (int32_t)t_below(&s, t % 3 ? E + 1 : 9) - 1;
            for (t = 0; t < T; t++)
                for (int32_t k = 0; k < K; k++) {
                    int32_t rank = ids[t * K + k] < 0 ? -1 : ids[t * K + k] / (E / R), first = rank >= 0, node = first;
                    for (int32_t j = 0; j < k; j++) {
                        if (ids[t * K + j] < 0) continue;
                        if (ids[t * K + j] / (E / R) == rank) first = 0;
                        if (ids[t * K + j] / (E / R) / 2 == rank / 2) node = 0;
                    }
                    if (first) want[rank]++;
                    if (node) nodes[rank / 2]++;
                }
            out.tokens_per_rank = per_rank, out.tokens_per_node = per_node;
            if (with) out.tokens_per_expert = experts;
            CHECK_I64(moe_ep_deepep_layout(ids, T, K, E, R, 2, NULL, &out, NULL), MOE_EP_OK);
            CHECK(memcmp(per_rank, want, sizeof *want * (size_t)R) == 0);
            CHECK(memcmp(per_node, nodes, sizeof *nodes * (size_t)((R + 1) / 2)) == 0);
            free(ids), free(per_rank), free(per_node), free(experts), free(want), free(nodes);
            STOP_IF_FAILED("%d ranks", (int)R);
        }
}

TEST(properties_of_many_cases)
{
    uint64_t s = t_seed;
    static sample x;
    int round;
    for (round = 0; round < (t_slow() > 1 ? 20000 : 100000); round++) {
        draw(&s, &x);
        check_sort(&x);
        check_invariance(&s, &x);
        check_places(&x);
        check_round_trip(&x);
        if (t_failed_here) printf("    T=%d K=%d E=%d R=%d\n", x.T, x.K, x.E, x.R);
        STOP_IF_FAILED("round %d", round);
    }
}

/* ---- vectors ---- */

/* The first of several names ("a|b|c") that the case has. */
static const vec_field *any_of(const vec_case *x, const char *names)
{
    char name[80];
    while (*names) {
        size_t len = strcspn(names, "|");
        const vec_field *f;
        snprintf(name, sizeof name, "%.*s", (int)len, names);
        if ((f = vec_find(x, name))) return f;
        names += len + (names[len] == '|');
    }
    return NULL;
}

static int32_t experts_of(const vec_case *x)
{
    const vec_field *f = any_of(x, "num_experts|E|n_expert|n_experts|num_batches"), *ids;
    int64_t i, most = 0;
    if (f) return (int32_t)f->i[0];
    ids = any_of(x, "topk_ids|topk_idx|ids|indices");
    for (i = 0; ids && i < ids->count; i++) most = ids->i[i] > most ? ids->i[i] : most;
    return (int32_t)most + 1;
}

static void run_align(const vec_case *x, moe_ep_align_desc d, const char *sorted_key, const char *experts_key,
                      const char *post_key)
{
    const vec_field *ids = any_of(x, "topk_ids|ids"), *f;
    int32_t *p = vec_i32(ids), *sorted, *experts;
    int64_t len = 0, blocks = 0, used = 0;
    d.skip_foreign = 1;
    CHECK_I64(moe_ep_align_sizes(&d, ids->count, &len, &blocks, NULL), MOE_EP_OK);
    sorted = new32(len);
    experts = new32(blocks);
    CHECK_I64(moe_ep_align_block(&d, p, ids->count, sorted, experts, &used, NULL, NULL), MOE_EP_OK);
    if ((f = any_of(x, post_key))) CHECK_I64(used, f->i[0]);
    if ((f = any_of(x, sorted_key))) {
        CHECK(f->count <= len);
        if (f->count <= len) check_vec32(sorted, f);
    }
    if ((f = any_of(x, experts_key))) {
        CHECK(f->count <= blocks);
        if (f->count <= blocks) check_vec32(experts, f);
    }
    if (d.old_buffer && (f = vec_find(x, "buffer_len"))) CHECK_I64(len, f->i[0]);
    if (!d.old_buffer && (f = vec_find(x, "buffer_len_newer"))) CHECK_I64(len, f->i[0]);
    free(p);
    free(sorted);
    free(experts);
}

static void vec_align(const vec_case *x)
{
    const vec_field *map = vec_find(x, "expert_map"), *counts = vec_find(x, "counts");
    moe_ep_align_desc d = align(experts_of(x), (int32_t)vec_int(x, "block_size"));
    d.pad_sorted_ids = (int32_t)vec_int_or(x, "pad_sorted_ids", 0);
    if (map) {
        int32_t *m = vec_i32(map);
        d.expert_map = m;
        d.old_buffer = 1;
        run_align(x, d, "mapped.sorted_token_ids", "mapped.expert_ids_valid|mapped.expert_ids",
                  "mapped.num_tokens_post_pad");
        d.ignore_invalid = 1;
        run_align(x, d, "ignore_invalid.sorted_token_ids",
                  "ignore_invalid.expert_ids_valid|ignore_invalid.expert_ids", "ignore_invalid.num_tokens_post_pad");
        free(m);
        return;
    }
    d.old_buffer = 1;
    run_align(x, d, "sorted_token_ids|sorted_token_ids_valid", "expert_ids|expert_ids_valid", "num_tokens_post_pad");
    d.old_buffer = 0;
    run_align(x, d, "sorted_token_ids_newer", "expert_ids_newer", "num_tokens_post_pad");
    if (counts) {
        int32_t *p = vec_i32(vec_get(x, "topk_ids"));
        int64_t *loads = new64(d.num_experts);
        CHECK_I64(moe_ep_expert_loads(p, vec_get(x, "topk_ids")->count, d.num_experts, loads, NULL, NULL), MOE_EP_OK);
        check_vec64(loads, counts);
        free(p);
        free(loads);
    }
}

static void vec_align_batched(const vec_case *x)
{
    const vec_field *counts = any_of(x, "expert_num_tokens|counts|num_tokens_per_expert"), *f;
    int32_t E = (int32_t)counts->count, max = (int32_t)any_of(x,
                                                              "max_tokens_per_batch|max_tokens|max_num_tokens")->i[0];
    int32_t B = (int32_t)vec_int(x, "block_size");
    int64_t len = (int64_t)E * ((max + B - 1) / B * B), used = 0;
    int32_t *sorted = new32(len), *experts = new32(len / B);
    CHECK_I64(moe_ep_align_batched(counts->i, E, max, B, sorted, experts, &used, NULL), MOE_EP_OK);
    if ((f = any_of(x, "num_tokens_post_pad"))) CHECK_I64(used, f->i[0]);
    if ((f = any_of(x,
        "sorted_token_ids|sorted_ids"))) { CHECK(f->count <= len); if (f->count <= len) check_vec32(sorted, f); }
    if ((f = any_of(x,
        "expert_ids|expert_ids_valid"))) {
            CHECK(f->count <= len / B); if (f->count <= len / B) check_vec32(experts, f); }
    free(sorted);
    free(experts);
}

static void vec_vllm_permute(const vec_case *x)
{
    const vec_field *ids = any_of(x, "topk_ids|ids"), *map = vec_find(x, "expert_map");
    int32_t E = experts_of(x), local = (int32_t)vec_int_or(x, "num_local",
                                                           E), *p = vec_i32(ids), *m = map ? vec_i32(map) : NULL;
    int32_t *perm = new32(ids->count), *inv = new32(ids->count);
    int64_t *offsets = new64(local + 1);
    CHECK_I64(moe_ep_vllm_permute(p, ids->count, E, (int32_t)vec_int_or(x, "start_expert", 0), local, m,
              offsets, perm, inv, NULL, NULL), MOE_EP_OK);
    check_vec64(offsets, vec_get(x, "expert_first_token_offset"));
    check_vec32(perm, vec_get(x, "permuted_idx"));
    check_vec32(inv, vec_get(x, "inv_permuted_idx"));
    free(p); free(m); free(perm); free(inv); free(offsets);
}

static void vec_sglang(const vec_case *x)
{
    const vec_field *ids = any_of(x, "topk_ids|ids"), *sorted = any_of(x, "reorder_topk_ids|reorder_ids");
    int32_t E = experts_of(x), *p = vec_i32(ids), *a = new32(ids->count), *b = new32(ids->count);
    int64_t *seg = new64(E + 1);
    /* the variant for DeepEP drops the -1 entries, so that fewer ids than assignments are listed */
    if (sorted && sorted->count == ids->count) CHECK_I64(moe_ep_sglang_preprocess_keep(p, ids->count, E, a, b,
                                                         seg, NULL), MOE_EP_OK);
    else CHECK_I64(moe_ep_sglang_preprocess(p, ids->count, E, a, b, seg, NULL), MOE_EP_OK);
    if (sorted) check_vec32(a, sorted);
    check_vec32(b, vec_get(x, "src2dst"));
    check_vec64(seg, vec_get(x, "seg_indptr"));
    free(p); free(a); free(b); free(seg);
}

static void vec_torchtitan_indices(const vec_case *x)
{
    const vec_field *counts = vec_get(x, "tokens_per_expert_group");
    int32_t e = (int32_t)vec_int(x, "experts_per_rank"), R = (int32_t)(counts->count / e);
    int64_t max_len = vec_int_or(x, "max_len", vec_get(x,
                                 "permuted_indices")->count), *sizes = new64(e), *offsets = new64(e);
    int32_t *rows = new32(max_len);
    CHECK_I64(moe_ep_torchtitan_permute_indices(counts->i, e, R, max_len, (int32_t)vec_int(x, "alignment"),
              rows, sizes, offsets, NULL), MOE_EP_OK);
    check_vec32(rows, vec_get(x, "permuted_indices"));
    check_vec64(sizes, vec_get(x, "m_sizes"));
    check_vec64(offsets, vec_get(x, "m_offsets"));
    free(sizes); free(offsets); free(rows);
}

static void vec_torchtitan_reorder(const vec_case *x)
{
    const vec_field *ids = any_of(x, "topk_ids|ids"), *scores = vec_find(x, "scores"), *f;
    int32_t E = experts_of(x), K = (int32_t)ids->dim[1], *p = vec_i32(ids), *flat = new32(ids->count),
        *token = new32(ids->count);
    int64_t *offsets = new64(E + 1), i;
    CHECK_I64(moe_ep_torchtitan_reorder(p, ids->dim[0], K, E, offsets, flat, token, NULL), MOE_EP_OK);
    if ((f = vec_find(x, "flat_sorted"))) check_vec32(flat, f);
    if ((f = vec_find(x, "token_indices"))) check_vec32(token, f);
    if (scores && (f = vec_find(x, "scores_sorted")))
        for (i = 0; i < f->count; i++) CHECK_NEAR(scores->f[flat[i]], f->f[i], 0, 0);
    if ((f = any_of(x, "num_tokens_per_expert|counts|tokens_per_expert")))
        for (i = 0; i < f->count && i < E; i++) CHECK_I64(offsets[i + 1] - offsets[i], f->i[i]);
    free(p); free(flat); free(token); free(offsets);
}

/* Megatron: the map itself, or built from ids. */
static int vec_megatron(const vec_case *x)
{
    const char *op = vec_text(x, "op");
    const vec_field *map = vec_find(x, "routing_map"), *ids = any_of(x, "topk_ids|ids"), *f;
    int64_t T, i, *offsets;
    int32_t E, *tokens;
    uint8_t *m;
    int seen = 0;
    if (map) {
        T = map->dim[0];
        E = (int32_t)map->dim[1];
        m = (uint8_t *)t_alloc((size_t)map->count);
        for (i = 0; i < map->count; i++) m[i] = map->i[i] != 0;
    } else if (ids && ids->ndim == 2) {
        int32_t *p = vec_i32(ids);
        T = ids->dim[0];
        E = experts_of(x);
        m = (uint8_t *)t_alloc((size_t)(T * E));
        CHECK_I64(moe_ep_routing_map(p, T, (int32_t)ids->dim[1], E, m, NULL), MOE_EP_OK);
        free(p);
    } else return 0;
    offsets = new64(E + 1);
    tokens = new32(T * E);
    if ((f = any_of(x, "padded_routing_map|routing_map_padded|padded_map"))) {
        const vec_field *multiple = any_of(x, "multiple|pad_multiple|pad_to_multiple");
        if (multiple) {
            CHECK_I64(moe_ep_megatron_pad_map(m, T, E, (int32_t)multiple->i[0], m, NULL), MOE_EP_OK);
            for (i = 0; i < f->count; i++) CHECK_I64(m[i], f->i[i] != 0);
            seen = 1;
        }
    }
    f = any_of(x, "sorted_indices|permuted_token_indices|token_indices");
    if (f && (strstr(op, "drop") || vec_int_or(x, "drop_and_pad", 0))) {
        const vec_field *C = any_of(x, "capacity|C");
        CHECK_I64(moe_ep_megatron_drop_and_pad(m, T, E, (int32_t)(C ? C->i[0] : f->count / E), tokens, NULL),
                  MOE_EP_OK);
        check_vec32(tokens, f);
        seen = 1;
    } else if (f) {
        CHECK_I64(moe_ep_megatron_permute(m, T, E, offsets, tokens, T * E, NULL), MOE_EP_OK);
        check_vec32(tokens, f);
        if ((f = any_of(x, "num_out_tokens"))) CHECK_I64(offsets[E], f->i[0]);
        if ((f = any_of(x, "tokens_per_expert|counts|num_tokens_per_expert")))
            for (i = 0; i < E; i++) CHECK_I64(offsets[i + 1] - offsets[i], f->i[i]);
        seen = 1;
    }
    free(m); free(offsets); free(tokens);
    return seen;
}

static int vec_sort_chunks(const vec_case *x)
{
    const vec_field *sizes = any_of(x, "split_sizes|sizes|chunk_sizes"), *order = any_of(x, "sorted_idxs|order|idxs");
    const vec_field *want = any_of(x, "row_id_map|row_from|output_rows|output|rows");
    int32_t *o, *rows;
    int64_t total = 0, num = 0, i;
    if (!sizes || !order || !want) return 0;
    for (i = 0; i < sizes->count; i++) total += sizes->i[i];
    o = vec_i32(order);
    rows = new32(total);
    CHECK_I64(moe_ep_sort_chunks(sizes->i, o, (int32_t)order->count, rows, total, &num, NULL, NULL), MOE_EP_OK);
    CHECK_I64(num, want->count);
    check_vec32(rows, want);
    free(o);
    free(rows);
    return 1;
}

static int vec_trtllm(const vec_case *x)
{
    const vec_field *ids = any_of(x, "topk_ids|ids|topk_indices|topKIndices"), *f;
    const vec_field *pad = any_of(x, "padding|tile|tile_tokens_dim|pad");
    const vec_field *routed = any_of(x, "num_experts|E|n_expert|n_experts");
    const vec_field *fused = any_of(x, "num_fused_shared_experts|num_shared_experts|num_fused_shared");
    int32_t E, *p, *a, *b, *c, padding;
    int64_t *offsets, *counts, max_rows;
    int seen = 0;
    if (!ids || ids->ndim != 2) return 0;
    E = experts_of(x);
    if (routed && fused) E += (int32_t)fused->i[0]; /* every token has the ids E .. E+S-1 as well */
    padding = pad ? (int32_t)pad->i[0] : 1;
    max_rows = ids->count + (int64_t)E * padding;
    p = vec_i32(ids);
    a = new32(ids->count);
    b = new32(max_rows);
    c = new32(max_rows);
    offsets = new64(E + 1);
    counts = new64(E);
    CHECK_I64(moe_ep_trtllm_permute(p, ids->dim[0], (int32_t)ids->dim[1], E, padding, offsets, a, b, c,
              max_rows, NULL, NULL), MOE_EP_OK);
    if ((f = any_of(x,
        "expanded_token_idx_to_permuted_idx|expandedTokenIdxToPermutedIdx|expanded_to_permuted"))) {
            check_vec32(a, f); seen = 1; }
    if ((f = any_of(x, "permuted_idx_to_expanded_idx|permutedIdxToExpandedIdx|permuted_to_expanded")) &&
        f->count <= max_rows) { check_vec32(b, f); seen = 1; }
    if ((f = any_of(x, "permuted_idx_to_token_idx|permutedIdxToTokenIdx|permuted_to_token")) &&
        f->count <= max_rows) { check_vec32(c, f); seen = 1; }
    if ((f = any_of(x, "padded_prefix|padded_offsets|paddedPrefixSum|padded_tokens_prefix_sum|"
                       "paddedTokensPerExpertPrefixSum"))) {
            CHECK(f->count <= E + 1);
            if (f->count <= E + 1) check_vec64(offsets, f);
            seen = 1; }
    if ((f = any_of(x, "permutedBufferSize|permuted_buffer_size"))) { CHECK_I64(offsets[E], f->i[0]); seen = 1; }
    if ((f = any_of(x, "numTokensPerExpert|num_tokens_per_expert|tokens_per_expert")) && f->count == E) {
        CHECK_I64(moe_ep_expert_loads(p, ids->count, E, counts, NULL, NULL), MOE_EP_OK);
        check_vec64(counts, f);
        seen = 1; }
    free(p); free(a); free(b); free(c); free(offsets); free(counts);
    return seen;
}

static int vec_megablocks(const vec_case *x)
{
    const vec_field *ids = any_of(x, "topk_ids|ids|top_experts"), *f;
    int32_t E, *p, *a, *b;
    int64_t *counts, *bins, *padded;
    int seen = 0;
    if (!ids) return 0;
    E = experts_of(x);
    p = vec_i32(ids);
    a = new32(ids->count);
    b = new32(ids->count);
    counts = new64(E);
    bins = new64(E);
    padded = new64(E);
    CHECK_I64(moe_ep_megablocks_bins(p, ids->count, E, (int32_t)vec_int_or(x, "block_size", 128), a, b, counts,
              bins, padded, NULL), MOE_EP_OK);
    if ((f = any_of(x, "indices|sorted_indices"))) { check_vec32(a, f); seen = 1; }
    if ((f = any_of(x, "bin_ids"))) { check_vec32(b, f); seen = 1; }
    if ((f = any_of(x, "tokens_per_expert|counts"))) { check_vec64(counts, f); seen = 1; }
    if ((f = any_of(x, "bins"))) { check_vec64(bins, f); seen = 1; }
    if ((f = any_of(x, "padded_bins"))) { check_vec64(padded, f); seen = 1; }
    free(p); free(a); free(b); free(counts); free(bins); free(padded);
    return seen;
}

static void vec_layout(const vec_case *x)
{
    const vec_field *ids = vec_get(x, "topk_idx"), *f;
    int32_t E = experts_of(x), R = (int32_t)vec_int(x, "num_ranks"),
        per_node = (int32_t)vec_int_or(x, "ranks_per_node", 0), *p = vec_i32(ids);
    int64_t T = ids->dim[0], i, *ranks = new64(R), *nodes = new64(R), *experts = new64(E);
    int32_t *where = new32(T * R);
    uint8_t *in = (uint8_t *)t_alloc((size_t)(T * R + 1));
    moe_ep_layout out;
    out.tokens_per_rank = ranks;
    out.tokens_per_node = nodes;
    out.tokens_per_expert = experts;
    out.is_token_in_rank = in;
    out.token_idx_in_rank = where;
    CHECK_I64(moe_ep_deepep_layout(p, T, (int32_t)ids->dim[1], E, R, per_node, NULL, &out, NULL), MOE_EP_OK);
    if ((f = vec_find(x, "num_tokens_per_rank"))) check_vec64(ranks, f);
    if ((f = vec_find(x, "num_tokens_per_rdma_rank"))) check_vec64(nodes, f);
    if ((f = vec_find(x, "num_tokens_per_expert"))) check_vec64(experts, f);
    if ((f = vec_find(x, "token_idx_in_rank"))) check_vec32(where, f);
    if ((f = vec_find(x, "is_token_in_rank")))
        for (i = 0; i < f->count; i++) CHECK_I64(in[i], f->i[i]);
    free(p); free(ranks); free(nodes); free(experts); free(where); free(in);
}

/* 1 when the case belongs to this section and was checked. */
static int check_case(const vec_case *x)
{
    const char *op = vec_text(x, "op");
    if (vec_find(x, "topk_idx")) vec_layout(x);
    else if (vec_find(x, "tokens_per_expert_group")) vec_torchtitan_indices(x);
    else if (strstr(op, "batched") && vec_find(x, "block_size")) vec_align_batched(x);
    else if (strstr(op, "megablocks")) return vec_megablocks(x);
    else if (strstr(op, "trt") || strstr(op, "flashinfer")) return vec_trtllm(x);
    else if (vec_find(x, "block_size") && any_of(x, "topk_ids|ids")) vec_align(x);
    else if (vec_find(x, "inv_permuted_idx")) vec_vllm_permute(x);
    else if (vec_find(x, "src2dst")) vec_sglang(x);
    else if (strstr(op, "torchtitan")) vec_torchtitan_reorder(x);
    else if (strstr(op, "chunk")) return vec_sort_chunks(x);
    else if (strstr(op, "megatron") || vec_find(x, "routing_map")) return vec_megatron(x);
    else return 0;
    return 1;
}

/* Files of these kinds are this section's alone: a case that nobody checks would prove nothing. */
static int is_ours(const char *kind) { return strcmp(kind, "permute") == 0 || strcmp(kind, "deepep_layout") == 0; }

/* 0 when a case of ours was not recognised, or recognised and not compared with anything. */
static int check_whole_case(const char *kind, const vec_case *x, int *checked, int *others)
{
    const long before = t_checks;
    const int known = check_case(x);
    if (known) ++*checked;
    else ++*others;
    if (!is_ours(kind) && !known) return 1;
    return known && t_checks > before + 1; /* one check says that the call succeeded, the others compare */
}

/* The check above must be able to fail. */
TEST(vectors_unknown_case)
{
    static char name[] = "made_up", key[] = "op", text[] = "a_contract_nobody_knows";
    vec_field f;
    vec_case x;
    int checked = 0, others = 0;
    memset(&f, 0, sizeof f);
    f.key = key;
    f.text = text;
    x.name = name;
    x.field = &f;
    x.fields = 1;
    CHECK(!check_whole_case("permute", &x, &checked, &others));
    CHECK(!check_whole_case("deepep_layout", &x, &checked, &others));
    CHECK(check_whole_case("router", &x, &checked, &others));
    CHECK_I64(checked, 0);
    CHECK_I64(others, 3);
}

TEST(vectors_dispatch)
{
    static const char *bundled[] = {
        "tests/vectors/permute.vec", "tests/vectors/deepep_layout.vec", "tests/vectors/seed_and_literals.vec",
        "tests/vectors/own/permute.vec"};
    const int named = t_argv && t_argv[0];
    int f, c, checked = 0, others = 0;
    for (f = 0; named || f < 4; f++) {
        const char *path = vec_path(bundled[f < 4 ? f : 0], named ? f : 0);
        vec_file v;
        if (!named) path = bundled[f];
        if (!path) break;
        v = vec_read(path);
        for (c = 0; c < v.count; c++) {
            if (!check_whole_case(v.kind, &v.cases[c], &checked, &others)) {
                CHECK(!"every case is known and compared");
                printf("    not checked: op %s\n", vec_text(&v.cases[c], "op"));
            }
            STOP_IF_FAILED("case %s", v.cases[c].name);
        }
        vec_free(&v);
    }
    printf("    %d vector cases, %d of other sections\n", checked, others);
    if (checked == 0) SKIP("no dispatch cases in these vectors");
}

/* Four devices on two nodes, a slot each: every output is right without the other, too. */
TEST(one_of_two_outputs)
{
    const int32_t slots[3] = {2, 3, 1}, from = 0;
    int64_t memory[256], nodes[4], ranks[16];
    int32_t on_ranks, on_nodes;
    moe_ep_placement p;
    moe_ep_shape shape;
    memset(&shape, 0, sizeof shape);
    shape.num_devices = 4;
    shape.num_nodes = 2;
    CHECK_I64(moe_ep_placement_init(&p, 1, 4, &shape, memory, sizeof memory, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_traffic(&p, slots, 1, 2, &from, MOE_EP_COUNT_RANKS, NULL, nodes, NULL), MOE_EP_OK);
    CHECK(nodes[0] == 0 && nodes[1] == 2 && nodes[2] == 0 && nodes[3] == 0);
    CHECK_I64(moe_ep_traffic(&p, slots, 1, 2, &from, MOE_EP_COUNT_RANKS, ranks, NULL, NULL), MOE_EP_OK);
    CHECK(ranks[0] == 0 && ranks[1] == 0 && ranks[2] == 1 && ranks[3] == 1);
    CHECK_I64(moe_ep_fan_out(&p, slots, 1, 3, NULL, &on_nodes, NULL), MOE_EP_OK);
    CHECK_I64(on_nodes, 2);
    CHECK_I64(moe_ep_fan_out(&p, slots, 1, 3, &on_ranks, NULL, NULL), MOE_EP_OK);
    CHECK_I64(on_ranks, 3);
}

T_MAIN
