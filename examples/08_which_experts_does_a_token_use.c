/* Which experts does a token use? - 256 router scores, top-8, weights, and what a grouped router changes
 * SPDX-License-Identifier: MIT
 *
 * Scores: tests/vectors/seed/seed002_router_scores.csv, five rows of 256 normal deviates. */
#include "lab.h"

enum { T = 5, K = 8, E = 256 };
static float logits[T * E];

static void read_scores(const char *path)
{
    FILE *f = fopen(path, "r");
    for (int i = 0; i < T * E; i++)
        if (!f || fscanf(f, i % E ? ",%f" : "%f", &logits[i]) != 1) {
            fprintf(stderr, "%s: number %d is missing (run from the repository root)\n", path, i);
            exit(1);
        }
    fclose(f);
}

/* 64 columns for 256 experts: how many of four neighbours are used. */
static void strip(const int32_t *ids)
{
    char column[65];
    memset(column, '.', 64);
    column[64] = '\0';
    for (int k = 0; k < K; k++) column[ids[k] / 4] = (char)(column[ids[k] / 4] == '.' ? '1' : column[ids[k] / 4] + 1);
    printf("%s", column);
}

int main(void)
{
    static const char *const token[T] = {"The", "quantum", "entanglement", "phenomenon", "is"};
    moe_ep_router flat = moe_ep_router_gpt_oss(E, K), all = moe_ep_router_olmoe(E, K), grouped = flat;
    int32_t ids[T * K], other[T * K];
    float weights[T * K], raw[T * K];
    int64_t loads[E];

    read_scores("tests/vectors/seed/seed002_router_scores.csv");
    lab_need(moe_ep_route(&flat, logits, T, NULL, ids, weights, &err));
    printf("top-8 of 256 experts (%.3f %%), softmax over the 8 chosen; strips of 64 x 4 experts\n\n", 100.0 * K / E);
    for (int t = 0; t < T; t++) {
        printf("%-13s|", token[t]);
        strip(ids + t * K);
        printf("|\n  expert     ");
        for (int k = 0; k < K; k++) printf(" %5d", ids[t * K + k]);
        printf("\n  weight     ");
        for (int k = 0; k < K; k++) printf(" %5.3f", (double)weights[t * K + k]);
        printf("\n");
    }
    lab_need(moe_ep_expert_loads(ids, T * K, E, loads, NULL, &err));
    printf("\n40 choices reach %lld different experts.\n\n", (long long)moe_ep_active_experts(loads, E, &err));

    lab_need(moe_ep_route(&all, logits, T, NULL, other, raw, &err));
    printf("\"Softmax\" is two rules.  Over the chosen, the weights of \"The\" sum to 1 and the first is %.3f;\n"
           "over all 256 experts the first is %.3f and the eight sum to ", (double)weights[0], (double)raw[0]);
    for (int k = 1; k < K; k++) raw[0] += raw[k];
    printf("%.3f.\n\n", (double)raw[0]);

    grouped.n_group = 8, grouped.topk_group = 4, grouped.group_top_m = 2; /* the groups of DeepSeek-V3 */
    lab_need(moe_ep_route(&grouped, logits, T, NULL, other, NULL, &err));
    printf("Eight groups of 32, of which a token may use four (DeepSeek-V3), change the choices:\n");
    for (int t = 0; t < T; t++) {
        int kept = 0;
        for (int i = 0; i < K * K; i++) kept += ids[t * K + i / K] == other[t * K + i % K];
        printf("%-13s|", token[t]);
        strip(other + t * K);
        printf("| %d of 8 stay\n", kept);
    }
    return 0;
}
