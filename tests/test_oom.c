/* tests/test_oom.c - memory that is refused, for every function that takes a scratch, and for ranks.
 * SPDX-License-Identifier: MIT
 *
 * A private static copy of the implementation whose malloc and free are counted here.  For each function:
 *   scratch NULL     the N-th malloc fails, N = 1, 2, ..: ERR_MEMORY, nothing leaks, no output changes
 *   growing scratch  the same with the caller's allocator; afterwards the scratch is as good as new
 *   fixed scratch    exactly need bytes at any alignment and full of rubbish: the same result;
 *                    one byte less: ERR_SCRATCH, no output changes; malloc is never called
 * The list below must hold every public function with a scratch: the header is read and compared. */
#include "t.h"

static long live_blocks, malloc_calls, refuse_from, refuse_to; /* calls number refuse_from..refuse_to fail */

static void *oom_malloc(size_t bytes)
{
    void *p;
    malloc_calls++;
    if (malloc_calls >= refuse_from && malloc_calls <= refuse_to) return NULL;
    p = malloc(bytes ? bytes : 1);
    if (!p) return NULL;
    memset(p, 0xa5, bytes); /* what malloc gives is rubbish */
    live_blocks++;
    return p;
}

static void oom_free(void *p)
{
    if (p) live_blocks--;
    free(p);
}

static void *user_alloc(void *user, size_t bytes)
{
    (void)user;
    return oom_malloc(bytes);
}

static void user_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    if (bytes > 0 && ptr) memset(ptr, 0xdd, bytes); /* reading it afterwards shows */
    oom_free(ptr);
}

#define malloc oom_malloc
#define free oom_free
#define MOE_EP_STATIC
#define MOE_EP_NO_BLAS
#define MOE_EP_DEBUG /* its assertions see a piece that was not asked for */
#include "moe_ep.h"
#undef malloc
#undef free

/* ---- a small world that every case takes its inputs from -------------------------------------------- */

enum { L = 2, E = 8, D = 4, P = 12, T = 16, K = 2, H = 4, I = 3, STEPS = 3, PLACE_BYTES = 4096 };

static double loads[STEPS * L * E];
static int64_t counts[E];
static int32_t ids[T * K], source_device[T * K], candidates[T * 4];
static float scores[T * E], logits[T * E], weights[T * K], thresholds[T], x[T * H];
static float w_gate[E * I * H], w_up[E * I * H], w_down[E * H * I];
static double current_memory[PLACE_BYTES / 8];
static moe_ep_placement current; /* contiguous, copies of experts 0..3 in the spare slots */
static moe_ep_shape shape;
static moe_ep_place_desc place;

/* Everything a call may write.  The first part holds plain numbers, compared after a success as well. */
static struct outputs {
    struct numbers {
        double d[512];
        int64_t i64[512];
        int32_t i32[512];
        float f[512];
        uint8_t u8[512];
        double memory[PLACE_BYTES / 8]; /* of placement */
    } n;
    moe_ep_placement placement;
    moe_ep_plan_result plan[L];
    unsigned char results[8192]; /* any result struct */
} out, before;
#define RESULT(type) ((type *)(void *)out.results)

static void make_world(void)
{
    moe_ep_error err;
    uint64_t state = 7;
    int i, j;
    memset(&out, 0x5a, sizeof out);
    for (i = 0; i < STEPS * L * E; i++) loads[i] = (double)(1 + t_below(&state, 100));
    for (i = 0; i < E; i++) counts[i] = 0;
    for (i = 0; i < T; i++) {
        double sum = 0.0;
        int32_t first = (int32_t)t_below(&state, E);
        for (j = 0; j < 4; j++) candidates[i * 4 + j] = (first + 1 + j) % E;
        for (j = 0; j < K; j++) {
            ids[i * K + j] = (first + j) % E;
            counts[(first + j) % E]++;
            weights[i * K + j] = (float)(0.25 + t_unit(&state) / 2.0);
            source_device[i * K + j] = (int32_t)t_below(&state, D);
        }
        for (j = 0; j < E; j++) {
            logits[i * E + j] = (float)(2.0 * t_unit(&state));
            sum += exp((double)logits[i * E + j]);
        }
        for (j = 0; j < E; j++) scores[i * E + j] = (float)(exp((double)logits[i * E + j]) / sum);
        for (j = 0; j < H; j++) x[i * H + j] = (float)(t_unit(&state) - 0.5);
        thresholds[i] = 0.1f;
    }
    for (i = 0; i < E * I * H; i++) {
        w_gate[i] = (float)(t_unit(&state) - 0.5);
        w_up[i] = (float)(t_unit(&state) - 0.5);
        w_down[i] = (float)(t_unit(&state) - 0.5);
    }
    memset(&shape, 0, sizeof shape);
    shape.num_devices = D;
    shape.num_slots = P;
    shape.num_nodes = 2;
    memset(&place, 0, sizeof place);
    place.num_layers = L;
    place.num_experts = E;
    place.shape = shape;
    place.loads = loads;
    CHECK(moe_ep_placement_bytes(L, E, &shape) > 0 && moe_ep_placement_bytes(L, E, &shape) <= PLACE_BYTES);
    CHECK_I64(moe_ep_placement_init(&current, L, E, &shape, current_memory, sizeof current_memory, &err), MOE_EP_OK);
    for (i = 0; i < L; i++)
        for (j = 0; j < P; j++) current.slot_expert[i * P + j] = j < E ? j : j - E;
    CHECK_I64(moe_ep_placement_index(&current, &err), MOE_EP_OK);
    memset(out.n.memory, 0, sizeof out.n.memory);
    CHECK_I64(moe_ep_placement_init(&out.placement, L, E, &shape, out.n.memory, sizeof out.n.memory, &err), MOE_EP_OK);
}

static moe_ep_status of_number(double v) { return v < 0.0 ? (moe_ep_status)(int)v : MOE_EP_OK; }

/* ---- one case for each function: CASE(name) { return moe_ep_name(...); } ------------------------------ */

#define CASE(name) static moe_ep_status case_##name(moe_ep_scratch *scratch, moe_ep_error *err)

CASE(sinkhorn) { return moe_ep_sinkhorn(logits, T, E, 0.0, 0, out.n.f, out.n.i32, scratch, err); }
CASE(auction) { return moe_ep_auction(scores, T, E, out.n.i32, scratch, err); }
CASE(quantile_update)
{
    memset(out.n.f, 0, E * sizeof out.n.f[0]);
    memcpy(&before.n.f, out.n.f, sizeof before.n.f);
    return moe_ep_quantile_update(scores, T, E, K, out.n.f, scratch, err);
}
CASE(aux_loss)
{
    moe_ep_aux_desc d;
    memset(&d, 0, sizeof d);
    d.num_tokens = T;
    d.top_k = K;
    d.num_experts = E;
    d.scores = scores;
    d.ids = ids;
    return of_number(moe_ep_aux_loss(&d, scratch, err));
}
CASE(importance_loss) { return of_number(moe_ep_importance_loss(scores, T, E, scratch, err)); }
CASE(load_loss) { return of_number(moe_ep_load_loss(scores, thresholds, T, E, 0.5, scratch, err)); }

CASE(balance) { return moe_ep_balance(counts, E, RESULT(moe_ep_balance_result), scratch, err); }
CASE(balance_d) { return moe_ep_balance_d(loads, E, RESULT(moe_ep_balance_result), scratch, err); }
CASE(balance_layers) { return moe_ep_balance_layers(counts, 2, E / 2, RESULT(moe_ep_layers_result), scratch, err); }
CASE(balance_layers_d) { return moe_ep_balance_layers_d(loads, L, E, RESULT(moe_ep_layers_result), scratch, err); }
CASE(balance_steps) { return moe_ep_balance_steps(loads, STEPS, L, E, RESULT(moe_ep_steps_result), scratch, err); }
CASE(experts_for_share) { return of_number((double)moe_ep_experts_for_share(loads, E, 0.5, scratch, err)); }
CASE(top_share) { return of_number(moe_ep_top_share(loads, E, 3, scratch, err)); }
CASE(similarity) { return moe_ep_similarity(loads, loads + E, E, 0, RESULT(moe_ep_similarity_result), scratch, err); }

CASE(drop)
{
    moe_ep_drop_policy p = moe_ep_drop_megatron_probs(3);
    return moe_ep_drop(&p, ids, weights, T, K, E, out.n.u8, out.n.i64, out.n.i64 + T * K, out.n.f,
                       RESULT(moe_ep_drop_result), scratch, err);
}
CASE(reroute)
{
    static uint8_t keep[T * K];
    keep[0] = 1;
    return moe_ep_reroute(candidates, NULL, keep, T, K, 4, E, 6, out.n.i32, NULL, out.n.i64, scratch, err);
}

#define PLANNER(name)                                                                               \
    CASE(name) { return moe_ep_##name(&place, &out.placement, out.plan, scratch, err); }
PLANNER(place_round_robin)
PLANNER(place_contiguous)
PLANNER(place_lpt)
PLANNER(place_eplb)
PLANNER(place_trtllm)
PLANNER(best_placement)
CASE(lpt) { return moe_ep_lpt(loads, E, D, out.n.i32, scratch, err); }
CASE(lpt_replicas)
{
    static const int32_t copies[E] = {2, 1, 1, 1, 2, 1, 1, 1};
    return moe_ep_lpt_replicas(loads, E, copies, D, out.n.i32, scratch, err);
}
CASE(replicate) { return moe_ep_replicate(loads, E, P, 0, out.n.i32, scratch, err); }
CASE(evaluate) { return moe_ep_evaluate(&current, loads, STEPS, out.plan, scratch, err); }
CASE(lower_bound) { return moe_ep_lower_bound(loads, E, &shape, RESULT(moe_ep_bound_result), scratch, err); }
CASE(min_copies)
{
    moe_ep_copies_desc d;
    memset(&d, 0, sizeof d);
    d.place = place;
    d.max_extra = 4;
    return moe_ep_min_copies(&d, RESULT(moe_ep_copies_point), out.n.i32, scratch, err);
}
CASE(calibrate)
{
    static moe_ep_machine start;
    static moe_ep_model model;
    static moe_ep_expert_row row[2];
    moe_ep_calibrate_desc d;
    start = moe_ep_machine_h800();
    model = moe_ep_model_mixtral_8x7b();
    memset(row, 0, sizeof row);
    row[0].num_slots = row[1].num_slots = 2;
    row[0].rows_per_slot = 8.0;
    row[1].rows_per_slot = 512.0;
    row[0].seconds = 300e-6;
    row[1].seconds = 900e-6;
    memset(&d, 0, sizeof d);
    d.start = &start;
    d.model = &model;
    d.experts = row;
    d.num_experts = 2;
    d.keep_tile = 1;
    return moe_ep_calibrate(&d, RESULT(moe_ep_machine), NULL, out.n.d, NULL, scratch, err);
}
CASE(replica_budget_row)
{
    static const int64_t extra[2] = {2, 4};
    return moe_ep_replica_budget_row(&place, extra, 2, out.n.i32, scratch, err);
}
CASE(replica_budgets) { return moe_ep_replica_budgets(&place, 4, out.n.i32, scratch, err); }
CASE(rebalance)
{
    moe_ep_rebalance_desc d;
    memset(&d, 0, sizeof d);
    d.current = &current;
    d.loads = loads;
    return moe_ep_rebalance(&d, &out.placement, out.plan, scratch, err);
}
static moe_ep_placement *other_placement(void) /* a plan to compare `current` with */
{
    static double memory[PLACE_BYTES / 8];
    static moe_ep_placement other;
    long from = refuse_from, to = refuse_to;
    refuse_from = refuse_to = 0; /* this is not the call under test */
    malloc_calls = 0;
    CHECK_I64(moe_ep_placement_init(&other, L, E, &shape, memory, sizeof memory, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_place_lpt(&place, &other, NULL, NULL, NULL), MOE_EP_OK);
    malloc_calls = 0;
    refuse_from = from;
    refuse_to = to;
    return &other;
}
CASE(plan_moves)
{
    const moe_ep_placement *to = other_placement();
    moe_ep_move *moves = (moe_ep_move *)(void *)out.n.i64;
    return moe_ep_plan_moves(&current, to, 1.0, moves, (int64_t)(sizeof out.n.i64 / (sizeof *moves)),
                             RESULT(moe_ep_moves_result), scratch, err);
}
CASE(relabel)
{
    const moe_ep_placement *to = other_placement();
    CHECK_I64(moe_ep_placement_copy(to, &out.placement, NULL), MOE_EP_OK);
    memcpy(&before.n.memory, out.n.memory, sizeof before.n.memory);
    return moe_ep_relabel(&current, &out.placement, 0, scratch, err);
}

CASE(split)
{
    moe_ep_split_desc d;
    memset(&d, 0, sizeof d);
    d.policy = MOE_EP_SPLIT_EXACT;
    return moe_ep_split(&d, &current, 0, counts, out.n.i64, scratch, err);
}
CASE(split_shares) { return moe_ep_split_shares(&current, 0, loads, 0, out.n.d, out.n.d + P, scratch, err); }
static const int64_t *even_rows(void)
{
    static int64_t rows[P];
    moe_ep_split_desc d;
    memset(&d, 0, sizeof d);
    CHECK_I64(moe_ep_split(&d, &current, 0, counts, rows, NULL, NULL), MOE_EP_OK);
    CHECK_I64(malloc_calls, 0); /* an even split takes no memory */
    return rows;
}
CASE(assign_slots)
{
    return moe_ep_assign_slots(&current, 0, ids, T * K, even_rows(), out.n.i32, scratch, err);
}
CASE(assign_slots_local)
{
    return moe_ep_assign_slots_local(&current, 0, ids, T * K, source_device, even_rows(), out.n.i32, scratch, err);
}

CASE(reroute_replicas)
{
    static int32_t slots[T * K];
    int32_t i;
    for (i = 0; i < T * K; i++) slots[i] = ids[i] < 0 ? -1 : current.replica_slot[current.replica_start[ids[i]]];
    return moe_ep_reroute_replicas(&current, 0, 1, slots, T * K, out.n.i32, NULL, NULL, scratch, err);
}

CASE(align_block)
{
    moe_ep_align_desc d;
    memset(&d, 0, sizeof d);
    d.num_experts = E;
    d.block_size = 4;
    return moe_ep_align_block(&d, ids, T * K, out.n.i32, out.n.i32 + 256, out.n.i64, scratch, err);
}
CASE(vllm_permute)
{
    return moe_ep_vllm_permute(ids, T * K, E, 2, 4, NULL, out.n.i64, out.n.i32, out.n.i32 + T * K, scratch, err);
}
CASE(trtllm_permute)
{
    return moe_ep_trtllm_permute(ids, T, K, E, 4, out.n.i64, out.n.i32, out.n.i32 + 100, out.n.i32 + 200, T * K + E * 3,
                                 scratch, err);
}

static moe_ep_forward_desc layer_desc(void)
{
    static moe_ep_weights experts;
    moe_ep_forward_desc d;
    memset(&experts, 0, sizeof experts);
    memset(&d, 0, sizeof d);
    experts.num_experts = E;
    experts.hidden = H;
    experts.inter = I;
    experts.gate = w_gate;
    experts.up = w_up;
    experts.down = w_down;
    d.experts = &experts;
    d.top_k = K;
    d.ids = ids;
    d.choice_weights = weights;
    return d;
}
CASE(forward)
{
    moe_ep_forward_desc d = layer_desc();
    return moe_ep_forward(&d, x, T, out.n.f, scratch, err);
}
CASE(experts)
{
    static const int64_t start[3] = {0, 5, 9};
    moe_ep_forward_desc d = layer_desc();
    return moe_ep_experts(&d, x, start, 2, NULL, out.n.f, scratch, err);
}
CASE(forward_ranks)
{
    moe_ep_forward_desc d = layer_desc();
    return moe_ep_forward_ranks(&d, &current, 0, NULL, NULL, x, T, out.n.f, RESULT(moe_ep_ranks_result), scratch, err);
}
CASE(plan_sum)
{
    static const int32_t slots[K] = {0, 1};
    static const float shares[K] = {0.5f, 0.25f};
    static const int64_t rows[K] = {0, 1};
    moe_ep_forward_desc d = layer_desc();
    moe_ep_plan plan;
    d.shared = d.experts; /* the shared experts are what takes memory */
    memset(&plan, 0, sizeof plan);
    plan.nranks = 1;
    plan.nslots = E;
    plan.top_k = K;
    plan.ntokens = 1;
    plan.nsend = plan.nrecv = K;
    plan.topk_ids = slots;
    plan.topk_weights = shares;
    plan.choice_row = rows;
    return moe_ep_plan_sum(&plan, &d, E, H, x, x + H, out.n.f, scratch, err);
}
CASE(sort_chunks)
{
    static const int64_t sizes[6] = {1, 2, 0, 3, 1, 2};
    static const int32_t order[6] = {3, 0, 5, 2, 1, 4};
    return moe_ep_sort_chunks(sizes, order, 6, out.n.i32, 512, out.n.i64, scratch, err);
}
CASE(diagnose)
{
    moe_ep_diagnose_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = L;
    d.num_experts = E;
    d.top_k = K;
    d.shape = shape;
    d.plan_loads = loads;
    d.plan_steps = 1;
    d.judge_loads = loads + L * E;
    d.judge_steps = STEPS - 1;
    return moe_ep_diagnose(&d, &out.placement, RESULT(moe_ep_diagnosis), scratch, err);
}
CASE(simulate)
{
    moe_ep_workload w;
    memset(&w, 0, sizeof w);
    w.kind = MOE_EP_LOAD_ZIPF;
    w.seed = 1;
    w.num_experts = E;
    w.top_k = K;
    w.alpha = 1.0;
    return moe_ep_simulate(&w, 0, 0, T, out.n.i32, scratch, err);
}

CASE(sweep) /* its points mean nothing after an error; the result is compared */
{
    static moe_ep_sweep_point points[8];
    static moe_ep_model model;
    static moe_ep_machine machine;
    static const int64_t tokens[1] = {8};
    static const int32_t ep[1] = {4}, redundant[1] = {0};
    static const moe_ep_overlap overlaps[1] = {MOE_EP_OVERLAP_NONE};
    static const moe_ep_place_policy policies[1] = {MOE_EP_PLACE_LPT};
    moe_ep_sweep_desc d;
    model = moe_ep_model_mixtral_8x7b();
    machine = moe_ep_machine_h100();
    memset(&d, 0, sizeof d);
    d.model = &model;
    d.machine = &machine;
    d.num_devices = 4;
    d.tokens = tokens, d.num_tokens = 1;
    d.ep = ep, d.num_ep = 1;
    d.redundant = redundant, d.num_redundant = 1;
    d.overlaps = overlaps, d.num_overlaps = 1;
    d.policies = policies, d.num_policies = 1;
    d.num_layers = 1;
    return moe_ep_sweep(&d, points, 8, RESULT(moe_ep_sweep_result), scratch, err);
}

typedef struct oom_case {
    const char *name;
    moe_ep_status (*call)(moe_ep_scratch *scratch, moe_ep_error *err);
} oom_case;
#define ROW(name) {"moe_ep_" #name, case_##name}
static const oom_case cases[] = {
    ROW(sinkhorn), ROW(auction), ROW(quantile_update), ROW(aux_loss), ROW(importance_loss), ROW(load_loss),
    ROW(balance), ROW(balance_d), ROW(balance_layers), ROW(balance_layers_d), ROW(balance_steps),
    ROW(experts_for_share), ROW(top_share), ROW(similarity), ROW(align_block), ROW(vllm_permute), ROW(trtllm_permute),
    ROW(sort_chunks), ROW(plan_sum),
    ROW(drop), ROW(reroute), ROW(place_round_robin), ROW(place_contiguous), ROW(place_lpt), ROW(place_eplb),
    ROW(place_trtllm), ROW(best_placement), ROW(lpt), ROW(lpt_replicas), ROW(replicate), ROW(evaluate),
    ROW(calibrate),
    ROW(lower_bound), ROW(min_copies), ROW(replica_budget_row),
    ROW(replica_budgets), ROW(rebalance),
    ROW(plan_moves), ROW(relabel),
    ROW(split), ROW(split_shares), ROW(assign_slots), ROW(assign_slots_local),
    ROW(reroute_replicas), ROW(forward), ROW(experts),
    ROW(forward_ranks), ROW(diagnose), ROW(simulate), ROW(sweep)};
enum { CASES = (int)(sizeof cases / sizeof cases[0]) };

/* ---- the sweep ------------------------------------------------------------------------------------- */

/* Runs one case on fresh inputs; calls number from..to of malloc fail. */
static moe_ep_status run(const oom_case *c, moe_ep_scratch *scratch, moe_ep_error *err, long from, long to)
{
    moe_ep_status status;
    refuse_from = refuse_to = 0;
    make_world();
    before = out;
    malloc_calls = 0;
    refuse_from = from;
    refuse_to = to;
    status = c->call(scratch, err);
    refuse_from = refuse_to = 0;
    if (status != MOE_EP_OK) CHECK(memcmp(&out, &before, sizeof out) == 0); /* outputs untouched */
    return status;
}

static struct numbers expected; /* what the case writes when all goes well */

static void check_expected(void) { CHECK(memcmp(&out.n, &expected, sizeof expected) == 0); }

static void sweep_null(const oom_case *c)
{
    moe_ep_error err;
    long n, calls;
    CHECK_I64(run(c, NULL, &err, 0, 0), MOE_EP_OK);
    CHECK_I64(err.status, MOE_EP_OK);
    expected = out.n;
    calls = malloc_calls;
    CHECK_I64(live_blocks, 0);
    for (n = 1; n <= calls; n++) {
        CHECK_I64(run(c, NULL, &err, n, n), MOE_EP_ERR_MEMORY);
        CHECK_I64(err.status, MOE_EP_ERR_MEMORY);
        CHECK(err.arg && err.arg[0] && err.value > 0.0);
        CHECK_I64(live_blocks, 0);
        CHECK_I64(run(c, NULL, NULL, n, 1000000), MOE_EP_ERR_MEMORY);
        CHECK_I64(live_blocks, 0);
    }
    CHECK_I64(run(c, NULL, NULL, 0, 0), MOE_EP_OK);
    check_expected();
}

static void sweep_growing(const oom_case *c)
{
    moe_ep_scratch s;
    long n, calls;
    memset(&s, 0, sizeof s);
    s.alloc.alloc_fn = user_alloc;
    s.alloc.free_fn = user_free;
    CHECK_I64(run(c, &s, NULL, 0, 0), MOE_EP_OK);
    check_expected();
    calls = malloc_calls;
    CHECK_I64(run(c, &s, NULL, 0, 0), MOE_EP_OK); /* the second call lives on what the first one took */
    CHECK_I64(malloc_calls, strcmp(c->name, "moe_ep_sweep") == 0); /* its planners' part lies beside a growing one */
    check_expected();
    moe_ep_scratch_free(&s);
    CHECK_I64(live_blocks, 0);
    for (n = 1; n <= calls; n++) {
        CHECK_I64(run(c, &s, NULL, n, n), MOE_EP_ERR_MEMORY);
        CHECK_I64(run(c, &s, NULL, 0, 0), MOE_EP_OK);
        check_expected();
        moe_ep_scratch_free(&s);
        CHECK_I64(live_blocks, 0);
    }
}

static void sweep_fixed(const oom_case *c)
{
    moe_ep_error err;
    moe_ep_scratch s = moe_ep_scratch_fixed(NULL, 0);
    unsigned char *memory = NULL;
    size_t need = 0, offset;
    int tries;
    /* a function that calls others may learn only by and by what it needs; each try must ask for more */
    for (tries = 0; tries < 8; tries++) {
        moe_ep_status status;
        memory = (unsigned char *)malloc(need + 64);
        memset(memory, 0xa5, need + 64);
        s = moe_ep_scratch_fixed(memory, need);
        status = run(c, &s, &err, 0, 0);
        CHECK_I64(malloc_calls, 0);
        free(memory);
        if (status == MOE_EP_OK) break;
        CHECK_I64(status, MOE_EP_ERR_SCRATCH);
        CHECK_I64(err.status, MOE_EP_ERR_SCRATCH);
        CHECK(s.need > need);
        need = s.need;
    }
    CHECK(tries < 8);
    check_expected();
    for (offset = 0; offset < 64; offset += 7) {
        memory = (unsigned char *)malloc(need + offset); /* its end is exact: a sanitizer sees an overrun */
        memset(memory, (int)offset, need + offset);
        s = moe_ep_scratch_fixed(memory + offset, need);
        CHECK_I64(run(c, &s, NULL, 0, 0), MOE_EP_OK);
        check_expected();
        if (need > 0) {
            s = moe_ep_scratch_fixed(memory + offset, need - 1);
            CHECK_I64(run(c, &s, &err, 0, 0), MOE_EP_ERR_SCRATCH);
            CHECK_I64(s.need, need);
            CHECK_I64(run(c, &s, NULL, 0, 0), MOE_EP_ERR_SCRATCH);
        }
        CHECK_I64(malloc_calls, 0);
        free(memory);
    }
}

#define SWEEP(kind)                                                                                 \
    int i;                                                                                          \
    for (i = 0; i < CASES; i++) {                                                                   \
        int failures = t_failed_here;                                                               \
        sweep_##kind(&cases[i]);                                                                    \
        if (t_failed_here > failures) printf("    in %s\n", cases[i].name);                         \
    }

TEST(null_scratch_survives_every_refused_malloc)
{
    SWEEP(null)
}

TEST(growing_scratch_survives_every_refused_malloc)
{
    int j;
    for (j = 0; j < CASES; j++) {
        int failures = t_failed_here;
        CHECK_I64(run(&cases[j], NULL, NULL, 0, 0), MOE_EP_OK);
        expected = out.n;
        sweep_growing(&cases[j]);
        if (t_failed_here > failures) printf("    in %s\n", cases[j].name);
    }
}

TEST(fixed_scratch_is_used_to_the_last_byte_and_no_further)
{
    int j;
    for (j = 0; j < CASES; j++) {
        int failures = t_failed_here;
        CHECK_I64(run(&cases[j], NULL, NULL, 0, 0), MOE_EP_OK);
        expected = out.n;
        sweep_fixed(&cases[j]);
        if (t_failed_here > failures) printf("    in %s\n", cases[j].name);
    }
}

/* ---- ranks: their memory lives longer than a call ---------------------------------------------------- */

/* early: a plan that is thrown away comes first */
static moe_ep_status rank_life(int early, moe_ep_error *err)
{
    static const int32_t slot_start[2] = {0, E};
    moe_ep_forward_desc layer = layer_desc();
    moe_ep_rank_desc d;
    moe_ep_batch b;
    moe_ep_rank rank;
    moe_ep_status status;
    static int32_t twice[2 * T * K];
    static float in[2 * T * H], back[2 * T * H];
    int i;
    memcpy(twice, ids, sizeof ids);
    memcpy(twice + T * K, ids, sizeof ids);
    memcpy(in, x, sizeof x);
    memcpy(in + T * H, x, sizeof x);
    memset(&rank, 0, sizeof rank);
    memset(&d, 0, sizeof d);
    memset(&b, 0, sizeof b);
    d.num_ranks = 1;
    d.slot_start = slot_start;
    d.top_k = K;
    d.hidden = H;
    d.layer = &layer;
    d.alloc.alloc_fn = user_alloc;
    d.alloc.free_fn = user_free;
    b.num_tokens = T;
    b.slot_ids = ids;
    b.weights = weights;
    b.x = x;
    b.y = out.n.f;
    status = moe_ep_rank_init(&rank, &d, err);
    if (status == MOE_EP_OK && early) status = moe_ep_rank_plan(&rank, 0, &b, NULL, err);
    if (status == MOE_EP_OK) status = moe_ep_rank_forward(&rank, &b, NULL, err);
    if (status == MOE_EP_OK) status = moe_ep_rank_reserve(&rank, 4 * T, 4 * T * K, err);
    if (status == MOE_EP_OK) status = moe_ep_rank_forward2(&rank, (const moe_ep_batch[]){b, b}, NULL, err);
    for (i = 0; i < 2 && status == MOE_EP_OK; i++) { /* stage by stage, twice as many tokens */
        b.num_tokens = 2 * T;
        b.slot_ids = twice;
        b.weights = NULL;
        b.x = in;
        b.y = back;
        status = moe_ep_rank_plan(&rank, i, &b, NULL, err);
        if (status == MOE_EP_OK) CHECK(moe_ep_rank_plan_of(&rank, i) != NULL);
        if (status == MOE_EP_OK) status = moe_ep_rank_dispatch(&rank, i, NULL, err);
        if (status == MOE_EP_OK) status = moe_ep_rank_experts(&rank, i, NULL, err);
        if (status == MOE_EP_OK) status = moe_ep_rank_combine(&rank, i, NULL, err);
        if (status == MOE_EP_OK) status = moe_ep_rank_finish(&rank, i, NULL, err);
    }
    moe_ep_rank_free(&rank);
    return status;
}

TEST(ranks_survive_every_refused_malloc)
{
    moe_ep_error err;
    long n, calls;
    float want[T * H];
    int early;
    for (early = 0; early < 2; early++) {
        make_world();
        malloc_calls = 0;
        CHECK_I64(rank_life(early, &err), MOE_EP_OK);
        calls = malloc_calls;
        CHECK(calls > 0);
        CHECK_I64(live_blocks, 0);
        memcpy(want, out.n.f, sizeof want);
        for (n = 1; n <= calls; n++) {
            malloc_calls = 0;
            refuse_from = refuse_to = n;
            CHECK_I64(rank_life(early, &err), MOE_EP_ERR_MEMORY);
            CHECK_I64(err.status, MOE_EP_ERR_MEMORY);
            refuse_from = refuse_to = 0;
            CHECK_I64(live_blocks, 0);
        }
        memset(out.n.f, 0, sizeof want);
        CHECK_I64(rank_life(early, &err), MOE_EP_OK);
        CHECK(memcmp(want, out.n.f, sizeof want) == 0);
    }
}

/* ---- in-process ranks inside: their pool is sized so that it suffices; here it does not ------ */

static long pool_calls, pool_refuses;
static void *stingy_alloc(void *user, size_t bytes)
{
    return ++pool_calls == pool_refuses ? NULL : moe_epi_hk_pool_alloc(user, bytes);
}

TEST(in_process_ranks_stop_at_every_piece_that_their_pool_refuses)
{
    static double memory[1 << 16], board[D * D * P], members[4096], slot_memory[T * K], turn[E];
    moe_epi_hk_world w;
    moe_epi_hk_pool pool;
    moe_ep_allocator alloc;
    moe_ep_ranks_result res;
    moe_ep_error err;
    moe_ep_forward_desc d;
    float want[T * H];
    long calls = 0;
    int i;
    make_world();
    d = layer_desc();
    CHECK_I64(moe_ep_forward(&d, x, T, want, NULL, NULL), MOE_EP_OK);
    alloc.alloc_fn = stingy_alloc;
    alloc.free_fn = moe_epi_hk_pool_free;
    alloc.user = &pool;
    for (pool_refuses = 0; pool_refuses <= calls; pool_refuses++) {
        memset(&w, 0, sizeof w);
        memset(&res, 0, sizeof res);
        memset(out.n.f, 0, sizeof want);
        pool.base = (unsigned char *)memory + (64 - ((uintptr_t)memory & 63u));
        pool.used = 0;
        pool.bytes = sizeof memory - 64;
        w.d = &d, w.p = &current, w.K = K, w.x = x, w.y = out.n.f;
        for (i = 0; i < D; i++)
            if (current.slot_start[i + 1] - current.slot_start[i] > w.per_rank)
                w.per_rank = current.slot_start[i + 1] - current.slot_start[i];
        CHECK(D * sizeof(moe_epi_hk_member) <= sizeof members);
        w.members = (moe_epi_hk_member *)(void *)members;
        memset(members, 0, sizeof members);
        w.board = (int64_t *)(void *)board;
        w.slot_ids = (int32_t *)(void *)slot_memory;
        CHECK(moe_epi_hk_deal(&w, NULL, T));
        CHECK_I64(moe_epi_hk_slots(&w, ids, T * K, NULL, (int64_t *)(void *)turn, NULL), MOE_EP_OK);
        moe_epi_hk_board(&w, &res);
        pool_calls = 0;
        CHECK_I64(moe_epi_hk_run_world(&w, weights, &alloc, &err), pool_refuses ? MOE_EP_ERR_MEMORY : MOE_EP_OK);
        CHECK_I64(err.status, pool_refuses ? MOE_EP_ERR_MEMORY : MOE_EP_OK);
        if (pool_refuses == 0) {
            CHECK(memcmp(want, out.n.f, sizeof want) == 0);
            calls = pool_calls;
            CHECK(calls > 4 * D);
        } else {
            CHECK_I64(pool_calls, pool_refuses); /* nothing is asked for behind a refusal */
        }
    }
    pool.base = (unsigned char *)memory; /* and the pool itself: to its last byte, and no further */
    pool.used = 0;
    pool.bytes = 128;
    CHECK(moe_epi_hk_pool_alloc(&pool, 65) == (void *)memory);
    CHECK(moe_epi_hk_pool_alloc(&pool, 1) == NULL);
    pool.used = 64;
    CHECK(moe_epi_hk_pool_alloc(&pool, 65) == NULL);
    CHECK(moe_epi_hk_pool_alloc(&pool, 64) == (void *)((unsigned char *)memory + 64));
}

/* ---- the list is complete ------------------------------------------------------------------------------ */

/* Functions that take memory by the allocator of a rank: the lives below call them all. */
static const char *const rank_functions[] = {
    "moe_ep_rank_init", "moe_ep_rank_free", "moe_ep_rank_reserve", "moe_ep_rank_forward", "moe_ep_rank_forward2",
    "moe_ep_rank_plan", "moe_ep_rank_dispatch", "moe_ep_rank_experts", "moe_ep_rank_combine", "moe_ep_rank_finish",
    "moe_ep_rank_plan_of"};
enum { RANK_FUNCTIONS = (int)(sizeof rank_functions / sizeof rank_functions[0]) };

static char *header_text(void)
{
    FILE *fp = fopen("moe_ep.h", "rb");
    char *text, *end;
    long size;
    CHECK(fp != NULL);
    if (!fp) return NULL;
    fseek(fp, 0, SEEK_END);
    size = ftell(fp);
    rewind(fp);
    text = (char *)t_alloc((size_t)size + 1);
    CHECK_I64(fread(text, 1, (size_t)size, fp), size);
    text[size] = '\0';
    fclose(fp);
    end = strstr(text, "MOE_EP_IMPLEMENTATION_DONE"); /* declarations only */
    CHECK(end != NULL);
    if (end) *end = '\0';
    return text;
}

/* Name of the function declared at a line that begins with MOE_EP_API; *params and *end: its parameters. */
static void declared(char *at, char *name, size_t bytes, char **params, char **end)
{
    char *open = strchr(at, '('), *start = open;
    *params = open;
    *end = open ? strchr(open, ';') : NULL;
    if (!*end) return;
    while (start[-1] == '_' || (start[-1] >= 'a' && start[-1] <= 'z') || (start[-1] >= '0' && start[-1] <= '9'))
        start--;
    snprintf(name, bytes, "%.*s", (int)(open - start), start);
}

static int mentions(const char *from, const char *end, const char *what)
{
    const char *at = strstr(from, what);
    return at && at < end;
}

TEST(every_function_that_takes_memory_has_a_case)
{
    char *text = header_text(), *at, *params, *end, name[100];
    int with_scratch = 0, with_rank = 0, allocators = 0, hooks = 0, i;
    if (!text) return;
    for (at = text; (at = strstr(at, "\nMOE_EP_API ")) != NULL; at++) {
        declared(at, name, sizeof name, &params, &end);
        if (!end) continue;
        if (mentions(params, end, "moe_ep_scratch *") && strcmp(name, "moe_ep_scratch_free") != 0) {
            with_scratch++;
            for (i = 0; i < CASES; i++)
                if (strcmp(cases[i].name, name) == 0) break;
            CHECK(i < CASES);
            if (i == CASES) printf("    no case for %s\n", name);
        }
        if (mentions(params, end, "moe_ep_rank *")) {
            with_rank++;
            for (i = 0; i < RANK_FUNCTIONS; i++)
                if (strcmp(rank_functions[i], name) == 0) break;
            CHECK(i < RANK_FUNCTIONS);
            if (i == RANK_FUNCTIONS) printf("    no life of a rank calls %s\n", name);
        }
    }
    CHECK_I64(with_scratch, CASES);
    CHECK_I64(with_rank, RANK_FUNCTIONS);
    /* memory comes in by three doors only: the two structs with an allocator, and the rows of the hooks */
    for (at = text; (at = strstr(at, "moe_ep_allocator alloc;")) != NULL; at++) allocators++;
    for (at = text; (at = strstr(at, "(*alloc_fn)")) != NULL; at++) hooks++;
    CHECK_I64(allocators, 2);
    CHECK_I64(hooks, 2);
    free(text);
}

T_MAIN
