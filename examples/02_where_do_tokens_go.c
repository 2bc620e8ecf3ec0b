/* Where do tokens go, and how do they come back? - dispatch and combine of three tokens on two ranks
 * SPDX-License-Identifier: MIT */
#include "lab.h"

enum { T = 3, K = 1, E = 4, D = 2, H = 2 };
static const int32_t choice[T * K] = {3, 1, 3}; /* tok0 -> expert 3, tok1 -> expert 1, tok2 -> expert 3 */
static const int32_t rank_of[E] = {0, 0, 1, 1};
static const float x[T * H] = {1, 2, 3, 4, 5, 6};

/* Rows grouped by expert -> outputs in token order.  "Expert e" multiplies by 10 e. */
static void experts_and_combine(const int32_t *ids, float *out, int64_t *offsets, int32_t *row_to_flat, float *rows)
{
    int32_t flat_to_row[T * K];
    lab_need(moe_ep_permute(ids, T * K, E, offsets, row_to_flat, flat_to_row, &err));
    lab_need(moe_ep_gather(x, T, H, K, row_to_flat, offsets[E], rows, &err));
    for (int e = 0; e < E; e++)
        for (int64_t i = offsets[e] * H; i < offsets[e + 1] * H; i++) rows[i] *= 10.0f * (float)e;
    lab_need(moe_ep_combine(rows, offsets[E], flat_to_row, NULL, T, K, H, out, &err));
}

int main(void)
{
    static const char *const mode_name[3] = {"a row per expert", "a row per rank", "every token everywhere"};
    static const moe_ep_a2a_mode mode[3] = {MOE_EP_A2A_PAIR, MOE_EP_A2A_RANK_DEDUP, MOE_EP_A2A_ALLGATHER};
    int64_t loads[E], offsets[E + 1], send[D];
    int32_t row_to_flat[T * K], mine[T * K];
    float rows[T * K * H], out[T * H], part[T * H], sum[T * H] = {0};
    moe_ep_comm_desc comm;
    moe_ep_comm_result bytes;

    lab_need(moe_ep_expert_loads(choice, T * K, E, loads, NULL, &err));
    lab_need(moe_ep_send_counts(choice, T * K, E, rank_of, D, send, NULL, &err));
    printf("tok0 -> expert 3, tok1 -> expert 1, tok2 -> expert 3\n\n");
    printf("expert      0  1  2  3\nrows       %2lld %2lld %2lld %2lld\n", (long long)loads[0], (long long)loads[1],
           (long long)loads[2], (long long)loads[3]);
    printf("rank 0 (experts 0,1) gets %lld row, rank 1 (experts 2,3) gets %lld: imbalance %.3f\n\n", (long long)send[0],
           (long long)send[1], lab_number(moe_ep_imbalance(send, D, &err)));

    experts_and_combine(choice, out, offsets, row_to_flat, rows);
    printf("dispatch: row  expert  token     combine: token  x          output (expert e multiplies by 10 e)\n");
    for (int r = 0; r < T; r++)
        printf("          %3d  %6d  tok%d               tok%d   (%.0f, %.0f)     (%.0f, %.0f)\n", r,
               choice[row_to_flat[r]], row_to_flat[r] / K, r, x[2 * r], x[2 * r + 1], out[2 * r], out[2 * r + 1]);

    /* The other way to do it: all tokens go to all ranks, each adds up what its own experts say. */
    for (int r = 0; r < D; r++) {
        for (int i = 0; i < T * K; i++) mine[i] = rank_of[choice[i]] == r ? choice[i] : -1;
        experts_and_combine(mine, part, offsets, row_to_flat, rows);
        for (int i = 0; i < T * H; i++) sum[i] += part[i];
    }
    printf("\nall-gather + reduce-scatter gives %s numbers; the bytes differ:\n\n",
           memcmp(sum, out, sizeof out) == 0 ? "the same" : "OTHER");

    memset(&comm, 0, sizeof comm);
    comm.tokens = 128, comm.num_experts = 256, comm.top_k = 8, comm.hidden = 7168, comm.num_devices = 16;
    printf("what travels             out of a rank, dispatch   combine   (256 experts, top-8, H 7168, 16 ranks,\n");
    for (int m = 0; m < 3; m++) {
        comm.mode = mode[m];
        lab_need(moe_ep_comm_bytes(&comm, &bytes, &err));
        printf("%-24s %20.2f MB %6.2f MB%s\n", mode_name[m], bytes.dispatch_intra_bytes / 1e6,
               bytes.combine_intra_bytes / 1e6, m == 0 ? "   128 tokens per rank, bf16)" : "");
    }
    return 0;
}
