/* tests/test_capacity.c - section 4: capacity formulas, drops, padding, rerouting.
 * SPDX-License-Identifier: MIT
 *
 * usage: test_capacity [vector files of kind capacity_formula, drops or seed_and_literals] */
#include "t.h"
#include "vec.h"

#include <strings.h>

#include "moe_ep.h"

/* Calls check on every case of one kind; returns the number of cases it took on. */
static int each_case(const char *bundled, const char *kind, int (*check)(const vec_case *))
{
    const char *path;
    int i, n, seen = 0;
    for (i = 0; (path = vec_path(bundled, i)) != NULL; i++) {
        vec_file v = vec_read(path);
        for (n = 0; strcmp(v.kind, kind) == 0 && n < v.count && !t_failed_here; n++) {
            seen += check(&v.cases[n]);
            if (t_failed_here) printf("    case %s\n", v.cases[n].name);
        }
        vec_free(&v);
    }
    return seen;
}

/* ---- capacity formulas -------------------------------------------------------------------------------- */

static moe_ep_capacity_desc capacity_case(const vec_case *c, moe_ep_capacity_rule rule)
{
    moe_ep_capacity_desc d;
    memset(&d, 0, sizeof d);
    d.rule = rule;
    d.num_tokens = vec_int(c, "T");
    d.num_experts = (int32_t)vec_int(c, "E");
    d.top_k = (int32_t)vec_int(c, "k");
    d.factor = vec_float(c, "cf");
    return d;
}

/* What a source's formula takes besides T, E, k, cf. */
enum { PLAIN = 0, MIN = 1, ALIGN = 2, WORLD = 4, NO_FACTOR = 8 };

static const struct formula {
    const char *key;
    moe_ep_capacity_rule rule;
    int uses;
} formulas[] = {
    {"capacity.megatron_ceil", MOE_EP_CAPACITY_MEGATRON, PLAIN},
    {"capacity.megatron_ceil_min", MOE_EP_CAPACITY_MEGATRON, MIN},
    {"capacity.deepspeed_top1", MOE_EP_CAPACITY_DEEPSPEED_TOP1, MIN},
    {"capacity.deepspeed_topk", MOE_EP_CAPACITY_DEEPSPEED_TOPK, MIN},
    {"capacity.deepspeed_top2", MOE_EP_CAPACITY_DEEPSPEED_TOPK, MIN},
    {"capacity.tutel", MOE_EP_CAPACITY_TUTEL, ALIGN},
    {"capacity.megablocks", MOE_EP_CAPACITY_MEGABLOCKS, WORLD},
    {"capacity.maxtext_per_seq", MOE_EP_CAPACITY_MAXTEXT, PLAIN},
    {"capacity.flaxformer_switch", MOE_EP_CAPACITY_FLAXFORMER, MIN},
    {"capacity.mesh_tf", MOE_EP_CAPACITY_MESH_TF, MIN},
    {"capacity.lingvo_gshard", MOE_EP_CAPACITY_LINGVO, PLAIN},
    {"capacity.nllb_default", MOE_EP_CAPACITY_NLLB, NO_FACTOR},
    {"capacity.hunyuan", MOE_EP_CAPACITY_HUNYUAN, NO_FACTOR},
};

static int check_formulas(const vec_case *c)
{
    size_t i;
    int seen = 0;
    for (i = 0; i < sizeof formulas / sizeof formulas[0]; i++) {
        const struct formula *f = &formulas[i];
        moe_ep_capacity_desc d = capacity_case(c, f->rule);
        int64_t want;
        if (!vec_find(c, f->key)) continue;
        if (f->uses & MIN) d.min_capacity = vec_int_or(c, "min_capacity", 0);
        if (f->uses & ALIGN) d.multiple = vec_int_or(c, "alignment", 1);
        if (f->uses & WORLD) d.world = (int32_t)vec_int_or(c, "world", 1);
        if (f->uses & NO_FACTOR) d.factor = 0.0;
        want = vec_int(c, f->key); /* MegaBlocks takes a 0 as the largest load, which the cases do not tell */
        if (f->rule == MOE_EP_CAPACITY_MEGABLOCKS && want == 0 && d.num_tokens > 0) want = INT64_MAX;
        CHECK_I64(moe_ep_capacity(&d, NULL), want);
        if (t_failed_here) printf("    formula %s\n", f->key);
        seen = 1;
    }
    return seen;
}

TEST(capacity_vectors)
{
    if (each_case("tests/vectors/capacity_formulas.vec", "capacity_formula", check_formulas) == 0)
        SKIP("no file of kind capacity_formula was named");
}

/* ---- drops -------------------------------------------------------------------------------------------- */

typedef struct drop_run {
    int64_t T, C, n, *slot, *position;
    int32_t E, K, *ids;
    float *raw, *after; /* weights before, as routed, and after */
    uint8_t *keep;
    moe_ep_drop_result r;
} drop_run;

static drop_run drop_open(const vec_case *c)
{
    drop_run d;
    const vec_field *ids = vec_get(c, "ids"), *probs = vec_find(c, "probs");
    int64_t i;
    memset(&d, 0, sizeof d);
    d.T = ids->dim[0];
    d.K = (int32_t)(ids->ndim > 1 ? ids->dim[1] : 1);
    d.E = (int32_t)vec_int_or(c, "E", probs ? probs->dim[1] : 0);
    d.C = vec_int(c, "capacity");
    d.n = d.T * d.K;
    d.ids = vec_i32(ids);
    d.slot = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)d.n);
    d.position = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)d.n);
    d.raw = (float *)t_alloc(sizeof(float) * (size_t)d.n);
    d.after = (float *)t_alloc(sizeof(float) * (size_t)d.n);
    d.keep = (uint8_t *)t_alloc((size_t)d.n);
    for (i = 0; probs && i < d.n; i++)
        d.raw[i] = d.ids[i] < 0 ? 0.0f : (float)probs->f[i / d.K * d.E + d.ids[i]];
    return d;
}

static void drop_close(drop_run *d)
{
    free(d->ids);
    free(d->slot);
    free(d->position);
    free(d->raw);
    free(d->after);
    free(d->keep);
}

static int starts(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }

/* Does the case's name or its reference mention the word (any letter case)? */
static int mentions(const vec_case *c, const char *word)
{
    const char *texts[2], *p;
    int i;
    texts[0] = c->name;
    texts[1] = vec_text(c, "reference");
    for (i = 0; i < 2; i++)
        for (p = texts[i]; *p; p++)
            if (strncasecmp(p, word, strlen(word)) == 0) return 1;
    return 0;
}

static int deepspeed_preset(const vec_case *c, int64_t C, moe_ep_drop_policy *p)
{
    if (mentions(c, "top1")) *p = moe_ep_drop_deepspeed_top1(C);
    else if (mentions(c, "top2")) *p = moe_ep_drop_deepspeed_top2(C);
    else if (mentions(c, "probs")) *p = moe_ep_drop_deepspeed_probs(C);
    else *p = moe_ep_drop_deepspeed_position(C);
    return 1;
}

/* The preset that a case is about; 0 = none known. */
static int drop_preset(const vec_case *c, int64_t C, moe_ep_rng *rng, moe_ep_drop_policy *p)
{
    int bpr = vec_int_or(c, "batch_prioritized", mentions(c, "bpr1")) != 0;
    int before = vec_int_or(c, "normalize_before_dropping", mentions(c, "normbefore1")) != 0, found = 1;
    if (mentions(c, "megatron") && mentions(c, "position")) *p = moe_ep_drop_megatron_position(C);
    else if (mentions(c, "megatron")) *p = moe_ep_drop_megatron_probs(C);
    else if (mentions(c, "deepspeed")) found = deepspeed_preset(c, C, p);
    else if (mentions(c, "tutel")) *p = moe_ep_drop_tutel(C, bpr);
    else if (mentions(c, "nllb")) *p = moe_ep_drop_nllb(C, before, bpr);
    else if (mentions(c, "flaxformer")) *p = moe_ep_drop_flaxformer(C, bpr);
    else if (mentions(c, "megablocks")) *p = moe_ep_drop_megablocks(C);
    else if (mentions(c, "maxtext")) *p = moe_ep_drop_maxtext(C);
    else if (mentions(c, "hunyuan")) *p = moe_ep_drop_hunyuan(C);
    else if (mentions(c, "switch") || mentions(c, "hash")) *p = moe_ep_drop_switch(C);
    else if (mentions(c, "legacy") || mentions(c, "lingvo")) *p = moe_ep_drop_gshard_legacy(C);
    else if (mentions(c, "gshard") || mentions(c, "mesh")) *p = moe_ep_drop_gshard(C);
    else found = 0;
    p->rng = rng;
    return found;
}

static void check_kept(const vec_case *c, const drop_run *d)
{
    const vec_field *kept = vec_find(c, "kept"), *where = vec_find(c, "locations"), *w = vec_find(c, "weights_after");
    int64_t i;
    for (i = 0; kept && i < d->n; i++) CHECK_I64(d->keep[i], kept->i[i]);
    for (i = 0; where && i < d->n; i++) { /* what references write for a dropped one differs: its place, 0 or -1 */
        if (d->keep[i]) CHECK_I64(d->slot[i], where->i[i]);
        else CHECK(where->i[i] == d->position[i] || where->i[i] == 0 || where->i[i] == -1);
    }
    for (i = 0; w && i < d->n; i++) CHECK_NEAR(d->after[i], w->f[i], 1e-5, 1e-30);
}

static void check_padding(const vec_case *c, const drop_run *d)
{
    const vec_field *rows = vec_find(c, "padded_map_rows_per_expert"), *map = vec_find(c, "padded_map");
    uint8_t *got;
    int64_t e, t, sum;
    if (!rows && !map) return;
    got = (uint8_t *)t_alloc((size_t)(d->T * d->E));
    CHECK_I64(moe_ep_pad_to_capacity(d->ids, d->keep, d->T, d->K, d->E, d->C, got, NULL, NULL), MOE_EP_OK);
    for (e = 0; rows && e < d->E; e++) {
        for (sum = 0, t = 0; t < d->T; t++) sum += got[t * d->E + e];
        CHECK_I64(sum, rows->i[e]);
    }
    for (t = 0; map && t < d->T * d->E; t++) CHECK_I64(got[t], map->i[t]);
    free(got);
}

/* Auxiliary losses that some drop cases carry. */
static void check_drop_loss(const vec_case *c, const char *key, moe_ep_aux kind, const int32_t *ids)
{
    moe_ep_aux_desc a;
    float *probs;
    if (!vec_find(c, key) || !vec_find(c, "probs")) return;
    probs = vec_f32(vec_get(c, "probs"));
    memset(&a, 0, sizeof a);
    a.kind = kind;
    a.num_tokens = vec_int(c, "T");
    a.num_experts = (int32_t)vec_int(c, "E");
    a.top_k = (int32_t)vec_int(c, "K");
    a.scores = probs;
    a.ids = ids;
    CHECK_NEAR(moe_ep_aux_loss(&a, NULL, NULL), vec_float(c, key), 4e-6, 1e-9);
    free(probs);
}

/* Counts hold for every order, also where the source leaves open which assignments survive. */
static void check_drop_counts(const vec_case *c, const drop_run *d)
{
    const vec_field *loads = vec_find(c, "loads"), *kept = vec_find(c, "kept");
    int64_t *per_expert = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)d->E), i, dropped = 0, count = 0;
    CHECK_I64(moe_ep_drop_counts(d->ids, d->keep, d->n, d->E, NULL, 0, per_expert, NULL, NULL), MOE_EP_OK);
    for (i = 0; loads && i < d->E; i++) CHECK_I64(per_expert[i], loads->i[i] > d->C ? loads->i[i] - d->C : 0);
    for (i = 0; i < d->E; i++) dropped += per_expert[i];
    for (i = 0; kept && i < kept->count; i++) count += kept->i[i] != 0;
    if (kept) CHECK_I64(d->r.kept, count);
    CHECK_I64(d->r.dropped, dropped);
    CHECK_I64(vec_int_or(c, "dropped", dropped), dropped);
    if (loads) CHECK_I64(moe_ep_dropped_tokens(loads->i, d->E, d->C, NULL), dropped);
    free(per_expert);
}

static void check_expert_choice(const vec_case *c)
{
    const vec_field *want = vec_get(c, "tokens_of_expert"), *w = vec_find(c, "weights");
    const vec_field *per_token = vec_find(c, "experts_per_token");
    int64_t T = vec_int(c, "T"), C = want->dim[1], i;
    int32_t E = (int32_t)vec_int(c, "E"), *tokens = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)want->count);
    float *probs = vec_f32(vec_get(c, "probs")), *got = (float *)t_alloc(sizeof(float) * (size_t)want->count);
    int64_t *used = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)T);
    CHECK_I64(moe_ep_expert_choice(probs, T, E, C, tokens, got, used, NULL), MOE_EP_OK);
    for (i = 0; i < want->count; i++) CHECK_I64(tokens[i], want->i[i]);
    for (i = 0; w && i < w->count; i++) CHECK_NEAR(got[i], w->f[i], 1e-6, 0.0);
    for (i = 0; per_token && i < T; i++) CHECK_I64(used[i], per_token->i[i]);
    free(tokens);
    free(probs);
    free(got);
    free(used);
}

static int check_drops(const vec_case *c)
{
    moe_ep_rng rng = moe_ep_rng_seed(1);
    moe_ep_drop_policy p = moe_ep_drop_switch(1);
    moe_ep_error err;
    drop_run d;
    int open;
    if (vec_find(c, "tokens_of_expert")) {
        check_expert_choice(c);
        return 1;
    }
    if (!drop_preset(c, vec_int(c, "capacity"), &rng, &p)) {
        printf("    no preset for %s\n", c->name);
        CHECK(0);
        return 1;
    }
    d = drop_open(c);
    CHECK_I64(moe_ep_drop(&p, d.ids, d.raw, d.T, d.K, d.E, d.keep, d.slot, d.position, d.after, &d.r, NULL, &err),
              MOE_EP_OK);
    open = (int)vec_int_or(c, "kept_unspecified", p.order == MOE_EP_DROP_RANDOM) != 0;
    if (!open) {
        check_kept(c, &d);
        check_padding(c, &d);
    }
    check_drop_counts(c, &d);
    check_drop_loss(c, "l_aux", starts(c->name, "deepspeed_topk") ? MOE_EP_AUX_SWITCH : MOE_EP_AUX_FIRST_CHOICE, d.ids);
    check_drop_loss(c, "aux_loss", MOE_EP_AUX_ANY_CHOICE, d.ids);
    drop_close(&d);
    return 1;
}

TEST(drop_vectors)
{
    if (each_case("tests/vectors/drops.vec", "drops", check_drops) == 0) SKIP("no file of kind drops was named");
}

/* ---- the seed's drop numbers and published literals ---------------------------------------------------- */

/* sweep.<cf>.capacity and sweep.<cf>.dropped */
static void check_sweep(const vec_case *c, const int64_t *loads, int32_t E)
{
    moe_ep_capacity_desc d;
    int i, seen = 0;
    memset(&d, 0, sizeof d);
    d.num_tokens = vec_int(c, "T");
    d.top_k = (int32_t)vec_int(c, "K");
    d.num_experts = E;
    d.basis_tokens = strcmp(vec_text(c, "basis"), "tokens") == 0;
    for (i = 0; i < c->fields; i++) {
        const vec_field *f = &c->field[i];
        char *end;
        int64_t C;
        if (!starts(f->key, "sweep.")) continue;
        d.factor = strtod(f->key + 6, &end);
        C = moe_ep_capacity(&d, NULL);
        if (strcmp(end, ".capacity") == 0) CHECK_I64(C, f->i[0]);
        else CHECK_I64(moe_ep_dropped_tokens(loads, E, C, NULL), f->i[0]);
        seen++;
    }
    CHECK(seen > 0);
}

static int check_seed_drop(const vec_case *c)
{
    const vec_field *loads, *f = vec_find(c, "ids");
    moe_ep_drop_policy p;
    moe_ep_drop_result r;
    int32_t *ids, E;
    int64_t basis;
    if (!starts(c->name, "seed_drop/")) return 0;
    loads = vec_get(c, "loads");
    E = (int32_t)vec_int(c, "E");
    ids = vec_i32(f);
    basis = strcmp(vec_text(c, "basis"), "tokens") == 0 ? vec_int(c, "T") : f->count;
    p = moe_ep_drop_switch(vec_int(c, "C"));
    CHECK_I64(moe_ep_drop(&p, ids, NULL, f->count, 1, E, NULL, NULL, NULL, NULL, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.dropped, vec_int(c, "dropped_cf1"));
    CHECK_I64(r.kept, vec_int(c, "kept_cf1"));
    CHECK_I64(moe_ep_dropped_tokens(loads->i, E, vec_int(c, "C"), NULL), vec_int(c, "dropped_cf1"));
    CHECK_NEAR(moe_ep_smallest_capacity_factor(loads->i, E, basis, NULL), vec_float(c, "smallest_cf_without_drop"),
               0.0, 0.0);
    check_sweep(c, loads->i, E);
    free(ids);
    return 1;
}

/* [token, expert, slot] of what DeepSpeed's own test expects. */
static int check_deepspeed_literal(const vec_case *c)
{
    const vec_field *l = vec_get(c, "logits"), *slots = vec_get(c, "slots");
    int64_t T = l->dim[0], i, j, kept = 0;
    int32_t E = (int32_t)l->dim[1], K = (int32_t)vec_int(c, "K");
    int32_t *ids = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(T * K));
    int64_t *slot = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)(T * K)), C = vec_int(c, "capacity");
    float *logits = vec_f32(l), *w = (float *)t_alloc(sizeof(float) * (size_t)(T * K));
    moe_ep_router r = moe_ep_router_qwen2(E, K);
    moe_ep_drop_policy p = moe_ep_drop_deepspeed_position(C);
    moe_ep_drop_result result;
    if (strcmp(vec_text(c, "policy"), "probs") == 0) p = moe_ep_drop_deepspeed_probs(C);
    CHECK_I64(moe_ep_route(&r, logits, T, NULL, ids, w, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_drop(&p, ids, w, T, K, E, NULL, slot, NULL, NULL, &result, NULL, NULL), MOE_EP_OK);
    CHECK_I64(result.kept, slots->dim[0]);
    for (i = 0; i < slots->dim[0]; i++) {
        for (j = 0; j < K; j++) {
            int64_t at = slots->i[i * 3] * K + j;
            if (ids[at] == slots->i[i * 3 + 1] && slot[at] == slots->i[i * 3 + 2]) kept++;
        }
    }
    CHECK_I64(kept, slots->dim[0]);
    free(ids);
    free(slot);
    free(logits);
    free(w);
    return 1;
}

static int check_literal(const vec_case *c)
{
    if (starts(c->name, "literal/deepspeed_TestTopkGate")) return check_deepspeed_literal(c);
    if (starts(c->name, "literal/maxtext_docstring")) {
        moe_ep_drop_policy p = moe_ep_drop_maxtext(vec_int(c, "capacity"));
        drop_run d = drop_open(c);
        CHECK_I64(moe_ep_drop(&p, d.ids, NULL, d.T, d.K, d.E, d.keep, d.slot, d.position, NULL, &d.r, NULL, NULL),
                  MOE_EP_OK);
        check_kept(c, &d);
        drop_close(&d);
        return 1;
    }
    return check_seed_drop(c);
}

TEST(seed_and_literal_vectors)
{
    if (each_case("tests/vectors/seed_and_literals.vec", "seed_and_literals", check_literal) == 0)
        SKIP("no file of kind seed_and_literals was named");
}

/* ---- capacity by hand ------------------------------------------------------------------------------------ */

static int64_t rows_of(moe_ep_capacity_rule rule, int64_t T, int32_t K, int32_t E, double factor)
{
    moe_ep_capacity_desc d;
    memset(&d, 0, sizeof d);
    d.rule = rule;
    d.num_tokens = T;
    d.top_k = K;
    d.num_experts = E;
    d.factor = factor;
    return moe_ep_capacity(&d, NULL);
}

TEST(capacity_examples)
{
    CHECK_I64(rows_of(MOE_EP_CAPACITY_MEGATRON, 64, 2, 8, 1.0), 16);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_MEGATRON, 45, 1, 2, 1.2), 27);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_DEEPSPEED_TOP1, 45, 1, 2, 1.2), 28);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_MEGATRON, 25, 1, 1, 1.2), 30);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_DEEPSPEED_TOP1, 25, 1, 1, 1.2), 31);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_DEEPSPEED_TOPK, 25, 1, 2, 1.2), 16);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_MEGATRON, 25, 1, 2, 1.2), 15);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_HUNYUAN, 3, 8, 64, 0.0), 8);   /* K is the floor */
    CHECK_I64(rows_of(MOE_EP_CAPACITY_HUNYUAN, 100, 8, 64, 0.0), 12); /* 12.5 */
    CHECK_I64(rows_of(MOE_EP_CAPACITY_NLLB, 33, 2, 8, 0.0), 10);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_NLLB, 33, 2, 8, 0.1), 4);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_FLAXFORMER, 10, 1, 4, 1.0), 2); /* 2.5, half to even */
    CHECK_I64(rows_of(MOE_EP_CAPACITY_FLAXFORMER, 14, 1, 4, 1.0), 4); /* 3.5 */
    CHECK_I64(rows_of(MOE_EP_CAPACITY_LINGVO, 1, 1, 4, 1.0), 4);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_MAXTEXT, 8, 1, 8, 0.5), 0);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_TUTEL, 4, 1, 4, 0.5), 0);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_MEGABLOCKS, 4, 1, 4, 0.5), INT64_MAX);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_MEGATRON, 0, 1, 4, 1.0), 0);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_LINGVO, 0, 1, 4, 1.0), 4);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_HUNYUAN, 0, 2, 4, 1.0), 2);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_HUNYUAN, 0, 1, 4, 1.0), 0);
    CHECK_I64(rows_of(MOE_EP_CAPACITY_HUNYUAN, 8, 1, 4, 0.0), 8); /* one choice: nothing is dropped */
    CHECK_STR(moe_ep_capacity_rule_name(1), "megatron");
    CHECK(moe_ep_capacity_rule_name(12) == NULL && moe_ep_capacity_rule_name(-1) == NULL);
    {
        int32_t i, j; /* every rule has a name of its own */
        for (i = 0; i < 12; i++)
            for (j = 0; j < i; j++) CHECK(strcmp(moe_ep_capacity_rule_name(i), moe_ep_capacity_rule_name(j)) != 0);
    }
}

TEST(capacity_options)
{
    moe_ep_capacity_desc d;
    memset(&d, 0, sizeof d);
    d.num_tokens = 50;
    d.top_k = 2;
    d.num_experts = 8;
    d.factor = 1.0; /* 12.5 */
    CHECK_I64(moe_ep_capacity(&d, NULL), 13);
    d.rounding = MOE_EP_ROUND_FLOOR;
    CHECK_I64(moe_ep_capacity(&d, NULL), 12);
    d.rounding = MOE_EP_ROUND_HALF_EVEN;
    CHECK_I64(moe_ep_capacity(&d, NULL), 12);
    d.basis_tokens = 1; /* 6.25 */
    d.rounding = MOE_EP_ROUND_CEIL;
    CHECK_I64(moe_ep_capacity(&d, NULL), 7);
    d.min_capacity = 9;
    CHECK_I64(moe_ep_capacity(&d, NULL), 9);
    d.multiple = 4;
    CHECK_I64(moe_ep_capacity(&d, NULL), 12);
    d.min_capacity = d.multiple = 0;
    d.num_tokens = 25;
    d.num_experts = 1;
    d.factor = 1.2;
    CHECK_I64(moe_ep_capacity(&d, NULL), 30);
    d.in_float32 = 1;
    CHECK_I64(moe_ep_capacity(&d, NULL), 31);
    memset(&d, 0, sizeof d);
    d.rule = MOE_EP_CAPACITY_TUTEL;
    d.num_tokens = 36;
    d.top_k = 2;
    d.num_experts = 8;
    d.max_load = 17;
    CHECK_I64(moe_ep_capacity(&d, NULL), 17); /* cf 0: as much as needed */
    d.factor = -1.0;
    CHECK_I64(moe_ep_capacity(&d, NULL), 10); /* but at most 2 * 5 */
    d.factor = -2.0;
    CHECK_I64(moe_ep_capacity(&d, NULL), 17);
    d.multiple = 8;
    CHECK_I64(moe_ep_capacity(&d, NULL), 24);
    d.multiple = 0;
    d.rule = MOE_EP_CAPACITY_MAXTEXT;
    CHECK_I64(moe_ep_capacity(&d, NULL), 17);
    d.rule = MOE_EP_CAPACITY_MEGABLOCKS;
    d.factor = 0.0;
    CHECK_I64(moe_ep_capacity(&d, NULL), 17);
    d.factor = 1.0;
    d.world = 4;
    CHECK_I64(moe_ep_capacity(&d, NULL), 36);
}

/* transformers 4.x counts the queue of an expert in each sequence. */
TEST(hf_switch_by_sequence)
{
    static const int32_t ids[8] = {0, 0, 1, 1, 0, 0, 1, 1};
    moe_ep_drop_policy p = moe_ep_drop_hf_switch(2);
    moe_ep_drop_result r;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 8, 1, 2, NULL, NULL, NULL, NULL, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.dropped, 4);
    p.group_tokens = 4;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 8, 1, 2, NULL, NULL, NULL, NULL, &r, NULL, NULL), MOE_EP_OK);
    CHECK_I64(r.dropped, 0);
}

/* Dropless is no limit: a drop policy would enforce what min_capacity or multiple made of it; 0 drops everything. */
TEST(dropless_has_no_least_capacity)
{
    static const moe_ep_capacity_rule rules[3] = {MOE_EP_CAPACITY_TUTEL, MOE_EP_CAPACITY_MEGABLOCKS,
                                                  MOE_EP_CAPACITY_MAXTEXT};
    moe_ep_capacity_desc d;
    moe_ep_error err;
    int i;
    memset(&d, 0, sizeof d);
    d.num_tokens = 1024;
    d.top_k = 8;
    d.num_experts = 64;
    for (i = 0; i < 3; i++) {
        d.rule = rules[i];
        d.min_capacity = 4;
        d.multiple = i == 2 ? 0 : 8;
        d.max_load = 0;
        CHECK_I64(moe_ep_capacity(&d, &err), INT64_MAX);
        CHECK_I64(err.status, MOE_EP_OK);
        d.max_load = 3;
        CHECK_I64(moe_ep_capacity(&d, &err), i == 2 ? 4 : 8);
    }
    d.factor = -1.0; /* MaxText: 0 or less */
    d.max_load = 0;
    CHECK_I64(moe_ep_capacity(&d, &err), INT64_MAX);
    d.rule = MOE_EP_CAPACITY_TUTEL; /* but there a bound, also without the load */
    CHECK_I64(moe_ep_capacity(&d, &err), 128);
    d.rule = MOE_EP_CAPACITY_MEGABLOCKS; /* 4 / 64 rows truncate to 0: the largest load */
    d.factor = d.top_k = 1;
    d.num_tokens = 4;
    CHECK_I64(moe_ep_capacity(&d, &err), INT64_MAX);
    d.max_load = 3;
    d.min_capacity = 0;
    CHECK_I64(moe_ep_capacity(&d, &err), 3);
    d.rule = MOE_EP_CAPACITY_MESH_TF; /* no row fits, and min_capacity gives some */
    d.max_load = 0;
    CHECK_I64(moe_ep_capacity(&d, &err), 0);
    d.min_capacity = 4;
    CHECK_I64(moe_ep_capacity(&d, &err), 4);
}

/* A step in which a rank has no token: every formula runs, and what follows takes its result. */
TEST(capacity_of_an_idle_step)
{
    moe_ep_capacity_desc d;
    moe_ep_drop_policy p;
    moe_ep_drop_result r;
    int64_t added = -9, moved = -9;
    int32_t rule;
    memset(&d, 0, sizeof d);
    d.top_k = 3;
    d.num_experts = 8;
    d.factor = 2.5;
    for (rule = 0; rule < 12; rule++) {
        d.rule = (moe_ep_capacity_rule)rule;
        CHECK_I64(moe_ep_capacity(&d, NULL), rule == MOE_EP_CAPACITY_LINGVO    ? 4
                                             : rule == MOE_EP_CAPACITY_MAXTEXT ? 2 /* at least the factor */
                                             : rule == MOE_EP_CAPACITY_HUNYUAN ? 3 : 0);
        d.min_capacity = 7;
        CHECK_I64(moe_ep_capacity(&d, NULL), 7);
        d.min_capacity = 0;
    }
    d.rule = MOE_EP_CAPACITY_NLLB; /* 2 ceil(T/E) */
    d.factor = 0.0;
    CHECK_I64(moe_ep_capacity(&d, NULL), 0);
    d.rule = MOE_EP_CAPACITY_TUTEL; /* the largest load of no tokens, or of all ranks */
    CHECK_I64(moe_ep_capacity(&d, NULL), 0);
    d.max_load = 9;
    CHECK_I64(moe_ep_capacity(&d, NULL), 9);
    d.factor = -1.0;
    CHECK_I64(moe_ep_capacity(&d, NULL), 0);
    p = moe_ep_drop_megatron_probs(0);
    CHECK_I64(moe_ep_drop(&p, NULL, NULL, 0, 3, 8, NULL, NULL, NULL, NULL, &r, NULL, NULL), MOE_EP_OK);
    CHECK(r.assignments == 0 && r.dropped == 0 && r.weight_kept >= 1.0);
    CHECK_I64(moe_ep_pad_to_capacity(NULL, NULL, 0, 3, 8, 0, NULL, &added, NULL), MOE_EP_OK);
    CHECK_I64(moe_ep_reroute(NULL, NULL, NULL, 0, 3, 4, 8, 0, NULL, NULL, &moved, NULL, NULL), MOE_EP_OK);
    CHECK(added == 0 && moved == 0);
}

/* What a formula returns goes into its preset as it is: 0 drops everything, no limit drops nothing. */
TEST(capacity_of_no_row_in_its_preset)
{
    static const int32_t ids[4] = {0, 1, 2, 3};
    static const float w[4] = {0.5f, 0.25f, 0.5f, 0.75f};
    int i, preset;
    for (preset = 0; preset < 16; preset++) {
        moe_ep_rng rng = moe_ep_rng_seed(1);
        moe_ep_drop_result r;
        moe_ep_error err;
        uint8_t keep[4] = {9, 9, 9, 9}, map[16];
        int64_t C, slot[4], added = -9;
        float after[4];
        int kept;
        moe_ep_drop_policy p;
        C = preset == 8   ? rows_of(MOE_EP_CAPACITY_FLAXFORMER, 4, 1, 4, 0.5)
            : preset == 9 ? rows_of(MOE_EP_CAPACITY_TUTEL, 4, 1, 4, 0.5)
            : preset == 10 ? rows_of(MOE_EP_CAPACITY_MAXTEXT, 4, 1, 4, 0.5)
            : preset == 13 ? rows_of(MOE_EP_CAPACITY_MEGABLOCKS, 4, 1, 4, 0.5) /* 0 is the largest load there */
            : preset == 14 ? rows_of(MOE_EP_CAPACITY_TUTEL, 4, 1, 4, 0.0)
            : preset == 15 ? rows_of(MOE_EP_CAPACITY_MAXTEXT, 4, 1, 4, -1.0)
                           : rows_of(MOE_EP_CAPACITY_MESH_TF, 4, 1, 4, 0.5);
        switch (preset) {
        case 0: p = moe_ep_drop_switch(C); break;
        case 1: p = moe_ep_drop_hf_switch(C); break;
        case 2: p = moe_ep_drop_gshard_legacy(C); break;
        case 3: p = moe_ep_drop_gshard(C); break;
        case 4: p = moe_ep_drop_deepspeed_top1(C); break;
        case 5: p = moe_ep_drop_deepspeed_top2(C); break;
        case 6: p = moe_ep_drop_deepspeed_position(C); break;
        case 7: p = moe_ep_drop_deepspeed_probs(C); break;
        case 8: p = moe_ep_drop_flaxformer(C, 1); break;
        case 9: case 14: p = moe_ep_drop_tutel(C, 0); break;
        case 10: case 15: p = moe_ep_drop_maxtext(C); break;
        case 11: p = moe_ep_drop_nllb(C, 1, 0); break;
        case 12: p = moe_ep_drop_hunyuan(C); break;
        default: p = moe_ep_drop_megablocks(C); break;
        }
        p.rng = &rng;
        kept = preset >= 13;
        CHECK_I64(C, kept ? INT64_MAX : 0);
        CHECK_I64(moe_ep_drop(&p, ids, w, 4, 1, 4, keep, slot, NULL, after, &r, NULL, &err), MOE_EP_OK);
        CHECK(r.assignments == 4 && r.kept == 4 * kept && r.dropped == 4 - 4 * kept && r.tokens_lost == 4 - 4 * kept);
        for (i = 0; i < 4; i++) {
            CHECK(keep[i] == kept && slot[i] == kept - 1);
            CHECK_NEAR(after[i], kept || preset == 9 ? w[i] : 0.0f, 0.0, 0.0);
        }
        CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 4, 1, 4, C, map, &added, &err), MOE_EP_OK);
        CHECK_I64(added, kept ? 12 : 0);
        STOP_IF_FAILED("preset %d", preset);
    }
}

TEST(capacity_errors)
{
    moe_ep_capacity_desc good, d;
    moe_ep_error err;
    memset(&good, 0, sizeof good);
    CHECK_I64(moe_ep_capacity(NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_capacity(&good, &err), MOE_EP_ERR_SIZE);
    good.num_tokens = 10;
    good.top_k = 2;
    good.num_experts = 4;
    good.factor = 1.0;
#define BAD(field, value, want)                                                                     \
    do {                                                                                            \
        d = good;                                                                                   \
        d.field = value;                                                                            \
        CHECK_I64(moe_ep_capacity(&d, &err), want);                                                 \
        CHECK_STR(err.arg, #field);                                                                 \
    } while (0)
    BAD(rule, (moe_ep_capacity_rule)12, MOE_EP_ERR_RANGE);
    BAD(rounding, (moe_ep_rounding)3, MOE_EP_ERR_RANGE);
    BAD(num_tokens, -1, MOE_EP_ERR_SIZE);
    BAD(top_k, 0, MOE_EP_ERR_SIZE);
    BAD(num_experts, -1, MOE_EP_ERR_SIZE);
    BAD(factor, (double)NAN, MOE_EP_ERR_NAN);
    BAD(factor, 0.0, MOE_EP_ERR_RANGE);
    BAD(factor, -1.0, MOE_EP_ERR_RANGE);
    BAD(factor, 1e300, MOE_EP_ERR_OVERFLOW);
    BAD(min_capacity, -1, MOE_EP_ERR_NEGATIVE);
    BAD(multiple, -1, MOE_EP_ERR_NEGATIVE);
    BAD(multiple, INT64_MAX, MOE_EP_ERR_OVERFLOW);
    BAD(world, -1, MOE_EP_ERR_SIZE);
    BAD(max_load, -1, MOE_EP_ERR_NEGATIVE);
    BAD(num_tokens, INT64_MAX, MOE_EP_ERR_OVERFLOW);
#undef BAD
}

TEST(dropped_tokens_and_smallest_factor)
{
    int64_t loads[8] = {84, 7, 7, 6, 6, 6, 6, 6}, bad[2] = {1, -1}, huge[2] = {INT64_MAX, 1};
    moe_ep_capacity_desc d;
    uint64_t s = t_seed;
    moe_ep_error err;
    int n, e;
    CHECK_I64(moe_ep_dropped_tokens(loads, 8, 16, &err), 68);
    CHECK_I64(moe_ep_dropped_tokens(loads, 8, 0, &err), 128);
    CHECK_NEAR(moe_ep_smallest_capacity_factor(loads, 8, 128, &err), 5.25, 0.0, 0.0);
    CHECK_I64(moe_ep_dropped_tokens(NULL, 8, 16, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_dropped_tokens(loads, 0, 16, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_dropped_tokens(loads, 8, -1, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(moe_ep_dropped_tokens(bad, 2, 1, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(err.index, 1);
    CHECK_I64(moe_ep_dropped_tokens(huge, 2, 1, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_NEAR(moe_ep_smallest_capacity_factor(NULL, 8, 128, &err), MOE_EP_ERR_NULL, 0.0, 0.0);
    CHECK_NEAR(moe_ep_smallest_capacity_factor(loads, 8, 0, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    CHECK_NEAR(moe_ep_smallest_capacity_factor(bad, 2, 8, &err), MOE_EP_ERR_NEGATIVE, 0.0, 0.0);
    memset(&d, 0, sizeof d);
    for (n = 0; n < 3000; n++) { /* at that factor nothing drops; drops never grow with the factor */
        int64_t sum = 0, most = 0, before = INT64_MAX, now, step;
        int32_t E = 1 + (int32_t)t_below(&s, 8);
        for (e = 0; e < E; e++) {
            loads[e] = t_below(&s, 100);
            sum += loads[e];
            most = loads[e] > most ? loads[e] : most;
        }
        if (most == 0) continue;
        d.num_tokens = sum;
        d.top_k = 1;
        d.num_experts = E;
        d.factor = moe_ep_smallest_capacity_factor(loads, E, sum, NULL);
        CHECK(moe_ep_capacity(&d, NULL) >= most);
        CHECK_I64(moe_ep_dropped_tokens(loads, E, moe_ep_capacity(&d, NULL), NULL), 0);
        for (step = 1; step < 20; step++) {
            d.factor = (double)step / 4.0;
            now = moe_ep_dropped_tokens(loads, E, moe_ep_capacity(&d, NULL), NULL);
            CHECK(now <= before);
            before = now;
        }
        STOP_IF_FAILED("case %d", n);
    }
}

/* ---- drops by definition --------------------------------------------------------------------------------- */

/* Does assignment a stand before b in the queue?  Straight from the words of each order. */
static int stands_before(const moe_ep_drop_policy *p, const float *w, int64_t K, int64_t a, int64_t b)
{
    int64_t ta = a / K, tb = b / K, ja = a % K, jb = b % K, j;
    float wa = w[ta * K], wb = w[tb * K];
    if (p->order == MOE_EP_DROP_TOKEN_MAJOR) return a < b;
    if (p->order == MOE_EP_DROP_CHOICE_MAJOR) return ja != jb ? ja < jb : ta < tb;
    if (p->order == MOE_EP_DROP_GATE) return w[a] > w[b] || (!(w[a] < w[b]) && a < b);
    for (j = 0; j < K; j++) { /* MAX_GATE */
        wa = w[ta * K + j] > wa ? w[ta * K + j] : wa;
        wb = w[tb * K + j] > wb ? w[tb * K + j] : wb;
    }
    if (p->priority) {
        wa = p->priority[ta];
        wb = p->priority[tb];
    }
    if (ja != jb) return ja < jb;
    return wa > wb || (!(wa < wb) && ta < tb);
}

typedef struct drop_case {
    moe_ep_drop_policy p;
    int64_t T, limits[6];
    int32_t K, E, ids[120];
    float w[120], priority[40];
} drop_case;

static void random_drop(uint64_t *s, drop_case *c)
{
    const int kind = (int)t_below(s, 16); /* 0: nobody routed, 1: all on one expert with equal weights */
    int64_t i;
    memset(c, 0, sizeof *c);
    c->T = t_below(s, 8) ? t_below(s, 7) : 1 + t_below(s, 40);
    c->K = 1 + (int32_t)t_below(s, 3);
    c->E = 1 + (int32_t)t_below(s, 6);
    c->p.capacity = 1 + t_below(s, c->T > 0 ? c->T : 1);
    if (t_below(s, 12) == 0) { /* nothing fits */
        c->p.capacity = 0;
        c->p.capacity_given = 1;
    }
    c->p.order = (moe_ep_drop_order)t_below(s, 4);
    c->p.norm = (moe_ep_drop_norm)t_below(s, 3);
    c->p.eps_mode = (moe_ep_eps_mode)t_below(s, 3);
    c->p.eps = 0.125f;
    c->p.norm_skip_k1 = (int32_t)t_below(s, 2);
    c->p.keep_weights = c->p.norm != MOE_EP_NORM_AFTER && t_below(s, 3) == 0;
    c->p.slots_by_token = t_below(s, 3) == 0;
    c->p.group_tokens = t_below(s, 3) ? 0 : 1 + t_below(s, c->T + 3);
    for (i = 0; i < c->E; i++) c->limits[i] = t_below(s, 8);
    if (t_below(s, 4) == 0) c->p.capacities = c->limits;
    for (i = 0; i < c->T * c->K; i++) {
        c->ids[i] = (int32_t)t_below(s, c->E + 1) - (t_below(s, 4) == 0); /* some -1, duplicates allowed */
        if (c->ids[i] >= c->E || kind == 1) c->ids[i] = 0;
        if (kind == 0) c->ids[i] = -1;
        c->w[i] = c->ids[i] < 0 ? 0.0f : kind == 1 ? 0.5f : (float)t_below(s, 9) / 8.0f;
    }
    for (i = 0; i < c->T; i++) c->priority[i] = (float)t_below(s, 5);
    if (t_below(s, 4) == 0) c->p.priority = c->priority;
}

/* Place of assignment i in its queue, by counting who stands before it in its group. */
static int64_t place_of(const drop_case *c, int64_t i)
{
    int64_t group = c->p.group_tokens > 0 ? c->p.group_tokens : c->T, b, place = 0;
    for (b = 0; b < c->T * c->K; b++)
        if (c->ids[b] == c->ids[i] && b / c->K / group == i / c->K / group && stands_before(&c->p, c->w, c->K, b, i))
            place++;
    return place;
}

static int64_t limit_of(const drop_case *c, int64_t i)
{
    return c->p.capacities ? c->limits[c->ids[i]] : c->p.capacity;
}

/* Slot in token order: kept ones of the same expert and group before i. */
static int64_t token_slot(const drop_case *c, const uint8_t *keep, int64_t i)
{
    int64_t group = c->p.group_tokens > 0 ? c->p.group_tokens : c->T, b, slot = 0;
    for (b = 0; b < i; b++)
        if (keep[b] && c->ids[b] == c->ids[i] && b / c->K / group == i / c->K / group) slot++;
    return slot;
}

static double weight_after(const drop_case *c, const uint8_t *keep, int64_t i)
{
    int64_t t = i / c->K, j;
    double norm = 0.0;
    if (c->ids[i] < 0 || (!keep[i] && !c->p.keep_weights)) return 0.0;
    if (c->p.norm == MOE_EP_NORM_NEVER || (c->p.norm_skip_k1 && c->K == 1)) return (double)c->w[i];
    for (j = t * c->K; j < (t + 1) * c->K; j++)
        if (c->ids[j] >= 0 && (c->p.norm == MOE_EP_NORM_BEFORE || keep[j])) norm += (double)c->w[j];
    if (c->p.eps_mode == MOE_EP_EPS_ADD) norm += 0.125;
    if (c->p.eps_mode == MOE_EP_EPS_CLAMP && norm < 0.125) norm = 0.125;
    return norm > 0.0 ? (double)c->w[i] / norm : 0.0;
}

static void check_drop_result(const drop_case *c, const uint8_t *keep, const moe_ep_drop_result *r)
{
    int64_t t, i, used, kept, assignments = 0, survivors = 0, hit = 0, lost = 0;
    for (t = 0; t < c->T; t++) {
        for (used = kept = 0, i = t * c->K; i < (t + 1) * c->K; i++) {
            used += c->ids[i] >= 0;
            kept += keep[i];
        }
        assignments += used;
        survivors += kept;
        hit += kept < used;
        lost += used > 0 && kept == 0;
    }
    CHECK_I64(r->assignments, assignments);
    CHECK_I64(r->skipped, c->T * c->K - assignments);
    CHECK_I64(r->kept, survivors);
    CHECK_I64(r->dropped, assignments - survivors);
    CHECK_I64(r->tokens_hit, hit);
    CHECK_I64(r->tokens_lost, lost);
    CHECK(r->weight_kept >= 0.0 && r->weight_kept <= 1.0);
}

TEST(random_drops_equal_the_definition)
{
    drop_case c;
    uint64_t s = t_seed;
    uint8_t keep[120];
    int64_t slot[120], position[120], i, n;
    float after[120];
    moe_ep_drop_result r;
    for (n = 0; n < (t_slow() > 1 ? 20000 : 100000); n++) {
        random_drop(&s, &c);
        CHECK_I64(moe_ep_drop(&c.p, c.ids, c.w, c.T, c.K, c.E, keep, slot, position, after, &r, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < c.T * c.K; i++) {
            int64_t place = c.ids[i] < 0 ? -1 : place_of(&c, i);
            int kept = place >= 0 && place < limit_of(&c, i);
            CHECK_I64(position[i], place);
            CHECK_I64(keep[i], kept);
            if (!kept) CHECK_I64(slot[i], -1);
            else CHECK_I64(slot[i], c.p.slots_by_token ? token_slot(&c, keep, i) : place);
        }
        for (i = 0; i < c.T * c.K; i++) CHECK_NEAR(after[i], weight_after(&c, keep, i), 1e-6, 1e-12);
        check_drop_result(&c, keep, &r);
        { /* in place, and without the optional outputs: the same weights */
            float in_place[120];
            memcpy(in_place, c.w, sizeof in_place);
            CHECK_I64(moe_ep_drop(&c.p, c.ids, in_place, c.T, c.K, c.E, NULL, NULL, NULL, in_place, NULL, NULL, NULL),
                      MOE_EP_OK);
            CHECK(memcmp(in_place, after, sizeof(float) * (size_t)(c.T * c.K)) == 0);
        }
        STOP_IF_FAILED("case %lld", (long long)n);
    }
}

/* Who survives depends on the order; how many do not. */
TEST(every_order_keeps_min_of_load_and_capacity)
{
    drop_case c;
    uint64_t s = t_seed + 1;
    moe_ep_rng rng = moe_ep_rng_seed(t_seed);
    uint8_t keep[120];
    int64_t n, i, e, load[6], kept[6];
    for (n = 0; n < 3000; n++) {
        random_drop(&s, &c);
        c.p.order = (moe_ep_drop_order)(n % 5);
        c.p.rng = &rng;
        c.p.group_tokens = 0;
        CHECK_I64(moe_ep_drop(&c.p, c.ids, c.w, c.T, c.K, c.E, keep, NULL, NULL, NULL, NULL, NULL, NULL), MOE_EP_OK);
        memset(load, 0, sizeof load);
        memset(kept, 0, sizeof kept);
        for (i = 0; i < c.T * c.K; i++) {
            if (c.ids[i] < 0) continue;
            load[c.ids[i]]++;
            kept[c.ids[i]] += keep[i];
        }
        for (e = 0; e < c.E; e++) {
            int64_t limit = c.p.capacities ? c.limits[e] : c.p.capacity;
            CHECK_I64(kept[e], load[e] < limit ? load[e] : limit);
        }
        STOP_IF_FAILED("case %lld", (long long)n);
    }
}

/* A random order treats all alike: each of 8 tokens survives a capacity of 2 in about a quarter of runs. */
TEST(random_order_is_fair)
{
    moe_ep_rng rng = moe_ep_rng_seed(t_seed);
    moe_ep_drop_policy p = moe_ep_drop_deepspeed_top1(2);
    int32_t ids[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    int64_t slot[8];
    int count[8] = {0, 0, 0, 0, 0, 0, 0, 0}, n, i;
    uint8_t keep[8];
    p.rng = &rng;
    for (n = 0; n < 8000; n++) {
        int64_t next = 0;
        CHECK_I64(moe_ep_drop(&p, ids, NULL, 8, 1, 1, keep, slot, NULL, NULL, NULL, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < 8; i++) {
            count[i] += keep[i];
            if (keep[i]) CHECK_I64(slot[i], next++); /* slots stay in token order */
        }
    }
    for (i = 0; i < 8; i++) CHECK_NEAR(count[i], 2000, 0.0, 5.0 * sqrt(8000 * 0.25 * 0.75));
}

TEST(drop_presets)
{
    CHECK(moe_ep_drop_switch(3).order == MOE_EP_DROP_TOKEN_MAJOR && moe_ep_drop_switch(3).capacity == 3);
    CHECK(moe_ep_drop_hf_switch(3).norm == MOE_EP_NORM_NEVER);
    CHECK_I64(moe_ep_drop_tutel(3, 1).norm_skip_k1, 1);
    CHECK(moe_ep_drop_gshard_legacy(3).norm == MOE_EP_NORM_BEFORE);
    CHECK(moe_ep_drop_gshard(3).norm == MOE_EP_NORM_AFTER && moe_ep_drop_gshard(3).order == MOE_EP_DROP_CHOICE_MAJOR);
    CHECK(moe_ep_drop_deepspeed_top1(3).order == MOE_EP_DROP_RANDOM);
    CHECK(moe_ep_drop_deepspeed_top2(3).eps_mode == MOE_EP_EPS_CLAMP);
    CHECK(moe_ep_drop_deepspeed_position(3).order == MOE_EP_DROP_TOKEN_MAJOR);
    CHECK(moe_ep_drop_deepspeed_probs(3).order == MOE_EP_DROP_GATE);
    CHECK(moe_ep_drop_megatron_probs(3).norm == MOE_EP_NORM_NEVER);
    CHECK(moe_ep_drop_megatron_position(3).order == MOE_EP_DROP_TOKEN_MAJOR);
    CHECK(moe_ep_drop_tutel(3, 1).order == MOE_EP_DROP_MAX_GATE && moe_ep_drop_tutel(3, 0).keep_weights == 1);
    CHECK(moe_ep_drop_nllb(3, 1, 0).norm == MOE_EP_NORM_BEFORE && moe_ep_drop_nllb(3, 0, 1).norm == MOE_EP_NORM_AFTER);
    CHECK(moe_ep_drop_flaxformer(3, 1).order == MOE_EP_DROP_MAX_GATE);
    CHECK(moe_ep_drop_megablocks(3).keep_weights == 1);
    CHECK(moe_ep_drop_maxtext(3).order == MOE_EP_DROP_TOKEN_MAJOR);
    CHECK(moe_ep_drop_hunyuan(3).norm == MOE_EP_NORM_BEFORE);
    { /* one choice: the raw gate, nothing divided */
        static const int32_t id[1] = {0};
        static const float gate[1] = {0.61f};
        moe_ep_drop_policy p = moe_ep_drop_hunyuan(1);
        float after[1];
        CHECK(moe_ep_drop(&p, id, gate, 1, 1, 4, NULL, NULL, NULL, after, NULL, NULL, NULL) == MOE_EP_OK);
        CHECK_NEAR(after[0], 0.61f, 0.0, 0.0);
    }
}

static void expect_drop_error(const moe_ep_drop_policy *p, moe_ep_status want, const char *arg)
{
    int32_t ids[4] = {0, 0, 0, 1};
    float w[4] = {0.5f, 0.5f, 0.5f, 0.5f}, after[4] = {-9.0f, -9.0f, -9.0f, -9.0f};
    uint8_t keep[4] = {77, 77, 77, 77};
    int64_t slot[4] = {-9, -9, -9, -9};
    moe_ep_error err;
    int i;
    CHECK_I64(moe_ep_drop(p, ids, w, 4, 1, 2, keep, slot, NULL, after, NULL, NULL, &err), want);
    CHECK_STR(err.arg, arg);
    for (i = 0; i < 4; i++) CHECK(keep[i] == 77 && slot[i] == -9 && after[i] < -8.0f);
}

TEST(drop_example_and_policy_errors)
{
    const moe_ep_drop_policy good = moe_ep_drop_switch(2);
    moe_ep_drop_policy p = good;
    int64_t limits[2] = {1, -1};
    int32_t ids[4] = {0, 0, 0, 1};
    uint8_t keep[4];
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 4, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, NULL), MOE_EP_OK);
    CHECK(keep[0] == 1 && keep[1] == 1 && keep[2] == 0 && keep[3] == 1);
#define BAD(field, value, want)                                                                     \
    do {                                                                                            \
        p = good;                                                                                   \
        p.field = value;                                                                            \
        expect_drop_error(&p, want, #field);                                                        \
    } while (0)
    BAD(capacity, -1, MOE_EP_ERR_SIZE);
    BAD(capacity, MOE_EP_ERR_NAN, MOE_EP_ERR_SIZE); /* moe_ep_capacity that failed */
    BAD(capacities, limits, MOE_EP_ERR_NEGATIVE);
    BAD(order, (moe_ep_drop_order)5, MOE_EP_ERR_RANGE);
    BAD(norm, (moe_ep_drop_norm)3, MOE_EP_ERR_RANGE);
    BAD(eps_mode, (moe_ep_eps_mode)3, MOE_EP_ERR_RANGE);
    BAD(eps, -1.0f, MOE_EP_ERR_RANGE);
    BAD(eps, NAN, MOE_EP_ERR_NAN);
    BAD(group_tokens, -1, MOE_EP_ERR_SIZE);
#undef BAD
    memset(&p, 0, sizeof p); /* forgotten, not given */
    expect_drop_error(&p, MOE_EP_ERR_SIZE, "capacity");
    p = moe_ep_drop_deepspeed_top1(2);
    expect_drop_error(&p, MOE_EP_ERR_CONFIG, "rng");
    p = moe_ep_drop_gshard(2);
    p.keep_weights = 1;
    expect_drop_error(&p, MOE_EP_ERR_CONFIG, "keep_weights");
    expect_drop_error(NULL, MOE_EP_ERR_NULL, "policy");
}

TEST(drop_argument_errors)
{
    moe_ep_drop_policy p = moe_ep_drop_megatron_probs(2);
    int32_t ids[4] = {0, 0, 0, 1}, wrong[4] = {0, 0, 2, 1};
    float w[4] = {0.5f, 0.25f, 0.5f, 0.5f}, bad[4] = {0.5f, 0.5f, 0.5f, NAN}, after[4];
    uint8_t keep[4] = {77, 77, 77, 77};
    char memory[2048];
    moe_ep_scratch small = moe_ep_scratch_fixed(memory, 1);
    moe_ep_error err;
    CHECK_I64(moe_ep_drop(&p, NULL, w, 4, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 4, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "weights");
    CHECK_I64(moe_ep_drop(&p, ids, w, -1, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop(&p, ids, w, 4, 0, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop(&p, ids, w, 4, 1, 0, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop(&p, ids, w, INT64_MAX / 2, 8, 2, keep, NULL, NULL, NULL, NULL, NULL, &err),
              MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_drop(&p, wrong, w, 4, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(err.index, 2);
    CHECK_I64(moe_ep_drop(&p, ids, bad, 4, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_I64(moe_ep_drop(&p, ids, w, 4, 1, 2, keep, NULL, NULL, NULL, NULL, &small, &err), MOE_EP_ERR_SCRATCH);
    small = moe_ep_scratch_fixed(memory, small.need - 1);
    CHECK_I64(moe_ep_drop(&p, ids, w, 4, 1, 2, keep, NULL, NULL, NULL, NULL, &small, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(keep[0], 77);
    small = moe_ep_scratch_fixed(memory, small.need);
    CHECK_I64(moe_ep_drop(&p, ids, w, 4, 1, 2, keep, NULL, NULL, NULL, NULL, &small, &err), MOE_EP_OK);
    CHECK(keep[0] == 1 && keep[1] == 0 && keep[2] == 1 && keep[3] == 1);
    p = moe_ep_drop_switch(2);
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 4, 1, 2, keep, NULL, NULL, after, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop(&p, NULL, NULL, 0, 1, 2, NULL, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_OK);
    p.order = MOE_EP_DROP_MAX_GATE;
    p.priority = bad;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 4, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_NAN);
    CHECK_STR(err.arg, "priority");
}

/* ---- padding, rerouting, counting ------------------------------------------------------------------------- */

TEST(padding_fills_every_expert)
{
    drop_case c;
    uint64_t s = t_seed + 2;
    uint8_t keep[120], map[240];
    int64_t n, t, e, i, added, ones;
    for (n = 0; n < 2000; n++) {
        random_drop(&s, &c);
        c.p.capacities = NULL;
        c.p.group_tokens = 0;
        for (i = 0; i < c.T * c.K; i++) /* distinct experts inside a token */
            for (t = i / c.K * c.K; t < i; t++)
                if (c.ids[t] == c.ids[i]) c.ids[i] = -1;
        CHECK_I64(moe_ep_drop(&c.p, c.ids, c.w, c.T, c.K, c.E, keep, NULL, NULL, NULL, NULL, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_pad_to_capacity(c.ids, keep, c.T, c.K, c.E, c.p.capacity, map, &added, NULL), MOE_EP_OK);
        for (ones = 0, i = 0; i < c.T * c.E; i++) ones += map[i];
        CHECK_I64(ones, c.E * (c.p.capacity < c.T ? c.p.capacity : c.T));
        for (i = 0; i < c.T * c.K; i++) {
            if (keep[i]) CHECK_I64(map[i / c.K * c.E + c.ids[i]], 1);
            ones -= keep[i];
        }
        CHECK_I64(added, ones);
        for (e = 0; e < c.E; e++) { /* an unkept token in the map has no unkept token before it outside */
            int hole = 0;
            for (t = 0; t < c.T; t++) {
                int kept = 0;
                for (i = 0; i < c.K; i++) kept |= keep[t * c.K + i] && c.ids[t * c.K + i] == e;
                if (!map[t * c.E + e]) hole = 1;
                else if (!kept) CHECK(!hole);
            }
        }
        STOP_IF_FAILED("case %lld", (long long)n);
    }
}

TEST(padding_example_and_errors)
{
    int32_t ids[2] = {0, 0}, none[2] = {0, -1}, wrong[2] = {0, 5};
    uint8_t keep[2] = {1, 1}, map[4] = {9, 9, 9, 9};
    int64_t added = -9;
    moe_ep_error err;
    CHECK_I64(moe_ep_pad_to_capacity(NULL, keep, 2, 1, 2, 2, map, &added, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_pad_to_capacity(ids, NULL, 2, 1, 2, 2, map, &added, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 2, 1, 2, 2, NULL, &added, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, -1, 1, 2, 2, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 2, 0, 2, 2, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 2, 1, 0, 2, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 2, 1, 2, -1, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_pad_to_capacity(none, keep, 2, 1, 2, 2, map, &added, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(moe_ep_pad_to_capacity(wrong, keep, 2, 1, 2, 2, map, &added, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, INT64_MAX / 4, 1, 2, 2, map, &added, &err), MOE_EP_ERR_OVERFLOW);
    CHECK(map[0] == 9 && added == -9);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 2, 1, 2, 2, map, &added, &err), MOE_EP_OK);
    CHECK(map[0] == 1 && map[1] == 1 && map[2] == 1 && map[3] == 1 && added == 2);
}

TEST(reroute_uses_the_room_there_is)
{
    float logits[30 * 6], w[30 * 6], kept_w[60];
    int32_t candidates[30 * 6], ids[60];
    uint64_t s = t_seed + 3;
    int n, t, i;
    for (n = 0; n < 1000; n++) {
        int32_t T = 1 + (int32_t)t_below(&s, 30), E = 6, K = 2, R = 2 + (int32_t)t_below(&s, 5), first[60];
        int64_t C = 1 + t_below(&s, 12), load[6] = {0, 0, 0, 0, 0, 0}, moved, empty = 0;
        moe_ep_router r = moe_ep_router_qwen2(E, R);
        moe_ep_drop_policy p = moe_ep_drop_switch(C);
        moe_ep_drop_result result;
        uint8_t keep[60];
        for (i = 0; i < T * E; i++) logits[i] = (float)t_unit(&s) + (i % E == 0 ? 2.0f : 0.0f);
        CHECK_I64(moe_ep_route(&r, logits, T, NULL, candidates, w, NULL), MOE_EP_OK);
        for (i = 0; i < T * K; i++) first[i] = candidates[i / K * R + i % K];
        CHECK_I64(moe_ep_drop(&p, first, NULL, T, K, E, keep, NULL, NULL, NULL, &result, NULL, NULL), MOE_EP_OK);
        CHECK_I64(moe_ep_reroute(candidates, w, keep, T, K, R, E, C, ids, kept_w, &moved, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < T * K; i++) {
            if (keep[i]) CHECK_I64(ids[i], first[i]);
            if (ids[i] < 0) empty++;
            else load[ids[i]]++;
        }
        CHECK_I64(moved, result.dropped - empty);
        for (i = 0; i < E; i++) CHECK(load[i] <= C);
        for (t = 0; t < T; t++) CHECK(ids[2 * t] < 0 || ids[2 * t] != ids[2 * t + 1]);
        for (i = 0; i < T * K; i++) { /* a gap means that no candidate of the token has room */
            int j;
            for (j = K; ids[i] < 0 && j < R; j++) {
                int32_t e = candidates[i / K * R + j];
                CHECK(load[e] == C || ids[i / K * K] == e || ids[i / K * K + 1] == e);
            }
        }
        STOP_IF_FAILED("case %d", n);
    }
}

TEST(reroute_example_and_errors)
{
    int32_t candidates[4] = {0, 1, 0, 1}, wrong[4] = {0, 2, 0, 1}, none[4] = {-1, 1, 0, 1}, ids[2] = {-9, -9};
    float w[4] = {0.7f, 0.3f, 0.6f, 0.4f}, out[2], bad[4] = {0.7f, NAN, 0.6f, 0.4f};
    uint8_t keep[2] = {1, 0};
    int64_t moved;
    char memory[512];
    moe_ep_scratch small = moe_ep_scratch_fixed(memory, 1);
    moe_ep_error err;
    CHECK_I64(moe_ep_reroute(NULL, w, keep, 2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute(candidates, NULL, keep, 2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute(candidates, w, NULL, 2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 1, 2, 2, 1, NULL, out, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, -2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 0, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 3, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 1, 2, 0, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 1, 2, 2, -1, ids, out, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_reroute(wrong, w, keep, 2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_reroute(none, w, keep, 2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(moe_ep_reroute(candidates, bad, keep, 2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_ERR_NAN);
    {
        int32_t many[12], got[3];
        float last[12];
        uint8_t none_kept[3] = {0, 0, 0};
        int i;
        for (i = 0; i < 12; i++) many[i] = i % 4, last[i] = i < 11 ? 0.5f : NAN; /* only the last of 3 times 4 is bad */
        CHECK_I64(moe_ep_reroute(many, last, none_kept, 3, 1, 4, 4, 1, got, out, NULL, NULL, &err), MOE_EP_ERR_NAN);
        CHECK_I64(err.index, 11);
    }
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 1, 2, 2, 1, ids, out, &moved, &small, &err), MOE_EP_ERR_SCRATCH);
    small = moe_ep_scratch_fixed(memory, small.need - 1);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 1, 2, 2, 1, ids, out, &moved, &small, &err), MOE_EP_ERR_SCRATCH);
    CHECK_I64(ids[0], -9);
    CHECK_I64(moe_ep_reroute(candidates, w, keep, 2, 1, 2, 2, 1, ids, out, &moved, NULL, &err), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == 1 && moved == 1);
    CHECK_NEAR(out[1], 0.4, 1e-7, 0.0);
}

/* Arrays that may be NULL because nothing is in them, sizes that end the call early, outputs that are not wanted. */
TEST(nothing_to_drop_pad_or_reroute)
{
    const int32_t ids[2] = {0, -1}, wrong[2] = {0, 2}, below[2] = {0, -2}, devices[2] = {0, -1};
    const int32_t candidates[4] = {0, 1, 1, 0};
    const uint8_t keep[2] = {1, 0}, lost[2] = {1, 0};
    const float w[4] = {0.75f, 0.25f, 0.5f, 0.5f};
    float got_w[2] = {9.0f, 9.0f};
    int32_t got[2] = {9, 9};
    uint8_t map[4] = {7, 7, 7, 7};
    int64_t added = -1, moved = -1, per[2];
    moe_ep_error err;
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 0, 1, 2, 1, NULL, &added, &err), MOE_EP_OK);
    CHECK_I64(added, 0);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, -1, 1, 2, 1, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_pad_to_capacity(ids, keep, 2, 1, 2, 1, NULL, &added, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "map");
    CHECK_I64(moe_ep_pad_to_capacity(below, keep, 2, 1, 2, 1, map, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_pad_to_capacity(wrong, keep, 2, 1, 2, 1, map, NULL, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK(err.index == 1 && map[0] == 7 && map[3] == 7);
    CHECK_I64(moe_ep_reroute(candidates, w, lost, -1, 1, 2, 2, 1, got, got_w, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_reroute(NULL, NULL, NULL, 0, 1, 2, 2, 1, NULL, NULL, &moved, NULL, &err), MOE_EP_OK);
    CHECK_I64(moved, 0);
    CHECK_I64(moe_ep_reroute(candidates, NULL, lost, 2, 1, 2, 2, 1, got, got_w, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "candidate_weights");
    CHECK_I64(moe_ep_reroute(candidates, w, lost, 2, 1, 2, 2, 1, NULL, got_w, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK(got[0] == 9 && got_w[0] > 8.0f);
    CHECK_I64(moe_ep_reroute(candidates, w, lost, 2, 1, 2, 2, 2, got, NULL, NULL, NULL, &err), MOE_EP_OK);
    CHECK(got[0] == 0 && got[1] == 0 && got_w[0] > 8.0f); /* the next choice had room for two */
    CHECK_I64(moe_ep_reroute(candidates, w, lost, 2, 1, 2, 2, 1, got, got_w, &moved, NULL, &err), MOE_EP_OK);
    CHECK(got[0] == 0 && got[1] == -1 && moved == 0); /* for one only */
    CHECK_NEAR(got_w[1], 0.0, 0, 0);
    CHECK_I64(moe_ep_reroute(candidates, w, lost, 2, 1, 2, 2, 2, got, got_w, &moved, NULL, &err), MOE_EP_OK);
    CHECK(got[1] == 0 && moved == 1);
    CHECK_NEAR(got_w[1], 0.5, 0, 0);
    CHECK_I64(moe_ep_drop_counts(NULL, NULL, 0, 2, NULL, 0, per, NULL, &err), MOE_EP_OK);
    CHECK(per[0] == 0 && per[1] == 0);
    CHECK_I64(moe_ep_drop_counts(ids, keep, 2, 2, devices, 1, per, per, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
}

/* Rounding to even and the rules that are dropless below some factor, by their definitions. */
TEST(capacity_rounding_and_dropless_factors)
{
    moe_ep_capacity_desc d;
    int64_t T, rows;
    memset(&d, 0, sizeof d);
    d.top_k = 1;
    d.num_experts = 8;
    d.factor = 1.0;
    for (T = 8; T < 80; T++) {
        d.num_tokens = T;
        d.rule = MOE_EP_CAPACITY_FLAXFORMER;
        CHECK_I64(moe_ep_capacity(&d, NULL), nearbyint((double)T / 8.0));
        d.rule = MOE_EP_CAPACITY_GENERAL;
        d.rounding = MOE_EP_ROUND_HALF_EVEN;
        CHECK_I64(moe_ep_capacity(&d, NULL), nearbyint((double)T / 8.0));
        d.multiple = 3;
        rows = (int64_t)nearbyint((double)T / 8.0);
        CHECK_I64(moe_ep_capacity(&d, NULL), (rows + 2) / 3 * 3);
        d.multiple = 0;
    }
    d.rule = MOE_EP_CAPACITY_MEGABLOCKS; /* no world is a world of one rank */
    d.num_tokens = 40;
    CHECK_I64(moe_ep_capacity(&d, NULL), 5);
    d.world = 3;
    CHECK_I64(moe_ep_capacity(&d, NULL), 15);
    d.rule = MOE_EP_CAPACITY_TUTEL; /* K floor(|cf| ceil(T/E)) */
    d.num_tokens = 20;
    d.top_k = 2;
    for (T = 0; T < 12; T++) {
        d.max_load = T;
        d.factor = -1.5; /* the largest load, at most 2 floor(1.5 * 3) = 8 of them */
        CHECK_I64(moe_ep_capacity(&d, NULL), T == 0 || T > 8 ? 8 : T);
        d.factor = 1.5;
        CHECK_I64(moe_ep_capacity(&d, NULL), 8);
        d.factor = 0.0;
        CHECK_I64(moe_ep_capacity(&d, NULL), T == 0 ? INT64_MAX : T);
    }
}

/* Quotients beyond the floats stop at the largest one, with their sign. */
TEST(drop_weights_beyond_the_floats)
{
    const int32_t ids[4] = {0, 1, 2, 3};
    const float weights[4] = {3e38f, -3e38f, 1e-7f, 0.0f};
    float after[4];
    uint8_t keep[4];
    moe_ep_drop_policy p = moe_ep_drop_switch(1);
    p.norm = MOE_EP_NORM_BEFORE;
    CHECK_I64(moe_ep_drop(&p, ids, weights, 1, 4, 4, keep, NULL, NULL, after, NULL, NULL, NULL), MOE_EP_OK);
    CHECK(after[0] >= 3.4028234e38f && after[1] <= -3.4028234e38f);
    CHECK(after[0] <= 3.4028235e38f && after[1] >= -3.4028235e38f);
    CHECK_NEAR(after[2], 1.0, 1e-6, 0.0);
    CHECK_NEAR(after[3], 0.0, 0.0, 0.0);
    {
        int32_t many[12];
        float last[12];
        uint8_t kept[12];
        moe_ep_error err;
        int i;
        for (i = 0; i < 12; i++) many[i] = i % 4, last[i] = i < 11 ? 0.5f : NAN; /* only the last of 3 times 4 is bad */
        CHECK_I64(moe_ep_drop(&p, many, last, 3, 4, 4, kept, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_NAN);
        CHECK_I64(err.index, 11);
    }
}

/* Candidates with gaps and repeats: the first with room that the token does not use, token by token. */
TEST(reroute_by_definition)
{
    uint64_t s = t_seed + 41;
    int round;
    for (round = 0; round < 4000; round++) {
        enum { MOST = 6 };
        const int32_t T = (int32_t)t_below(&s, 8), K = 1 + (int32_t)t_below(&s, 3), R = K + (int32_t)t_below(&s, 4),
                      E = 1 + (int32_t)t_below(&s, 6);
        const int64_t C = t_below(&s, 5);
        int32_t candidates[8 * MOST], ids[8 * 3], want[8 * 3], t, j, r, i;
        float weights[8 * MOST], got[8 * 3], want_w[8 * 3];
        uint8_t keep[8 * 3];
        int64_t count[6] = {0}, moved = -1, expected = 0;
        for (i = 0; i < T * R; i++) {
            candidates[i] = (int32_t)t_below(&s, E + 1) - 1;
            weights[i] = (float)t_unit(&s);
        }
        for (i = 0; i < T * K; i++) {
            const int32_t at = i / K * R + i % K, e = candidates[at];
            keep[i] = e >= 0 && count[e] < C && t_below(&s, 3) > 0;
            if (keep[i]) count[e]++;
            want[i] = keep[i] ? e : -1;
            want_w[i] = keep[i] ? weights[at] : 0.0f;
        }
        for (t = 0; t < T; t++)
            for (j = 0; j < K; j++) {
                if (keep[t * K + j] || candidates[t * R + j] < 0) continue;
                for (r = K; r < R && want[t * K + j] < 0; r++) {
                    const int32_t e = candidates[t * R + r];
                    int used = e < 0;
                    for (i = 0; i < K && !used; i++) used = want[t * K + i] == e;
                    if (used || count[e] >= C) continue;
                    want[t * K + j] = e;
                    want_w[t * K + j] = weights[t * R + r];
                    count[e]++;
                    expected++;
                }
            }
        CHECK_I64(moe_ep_reroute(candidates, weights, keep, T, K, R, E, C, ids, got, round % 5 ? &moved : NULL, NULL,
                                 NULL), MOE_EP_OK);
        if (round % 5) CHECK_I64(moved, expected);
        CHECK(memcmp(ids, want, sizeof *ids * (size_t)(T * K)) == 0);
        CHECK(memcmp(got, want_w, sizeof *got * (size_t)(T * K)) == 0);
        STOP_IF_FAILED("round %d", round);
    }
}

/* ---- the presets as their comments say, and the last value that still goes ---- */

typedef struct drop_row {
    moe_ep_drop_policy p;
    moe_ep_drop_order order;
    moe_ep_drop_norm norm;
    moe_ep_eps_mode eps_mode;
    double eps;
    int skip_k1, keeps, by_token;
} drop_row;

TEST(drop_presets_field_by_field)
{
    const double step = 1.0 / (1 << 23); /* of float32 above 1 */
    const drop_row rows[] = {
        {moe_ep_drop_switch(7), MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_hf_switch(7), MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_gshard_legacy(7), MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_BEFORE, MOE_EP_EPS_ADD, 1e-9, 0, 0, 0},
        {moe_ep_drop_gshard(7), MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_AFTER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_deepspeed_top1(7), MOE_EP_DROP_RANDOM, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 1},
        {moe_ep_drop_deepspeed_top2(7), MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_AFTER, MOE_EP_EPS_CLAMP, step, 0, 0, 0},
        {moe_ep_drop_deepspeed_position(7), MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_AFTER, MOE_EP_EPS_CLAMP, step, 0, 0,
         0},
        {moe_ep_drop_deepspeed_probs(7), MOE_EP_DROP_GATE, MOE_EP_NORM_AFTER, MOE_EP_EPS_CLAMP, step, 0, 0, 1},
        {moe_ep_drop_megatron_probs(7), MOE_EP_DROP_GATE, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_megatron_position(7), MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_tutel(7, 0), MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_BEFORE, MOE_EP_EPS_CLAMP, step, 1, 1, 0},
        {moe_ep_drop_tutel(7, 1), MOE_EP_DROP_MAX_GATE, MOE_EP_NORM_BEFORE, MOE_EP_EPS_CLAMP, step, 1, 1, 0},
        {moe_ep_drop_nllb(7, 0, 0), MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_AFTER, MOE_EP_EPS_CLAMP, step, 0, 0, 0},
        {moe_ep_drop_nllb(7, 1, 1), MOE_EP_DROP_MAX_GATE, MOE_EP_NORM_BEFORE, MOE_EP_EPS_CLAMP, step, 0, 0, 0},
        {moe_ep_drop_flaxformer(7, 0), MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_flaxformer(7, 1), MOE_EP_DROP_MAX_GATE, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_megablocks(7), MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 1, 0},
        {moe_ep_drop_maxtext(7), MOE_EP_DROP_TOKEN_MAJOR, MOE_EP_NORM_NEVER, MOE_EP_EPS_NONE, 0, 0, 0, 0},
        {moe_ep_drop_hunyuan(7), MOE_EP_DROP_CHOICE_MAJOR, MOE_EP_NORM_BEFORE, MOE_EP_EPS_CLAMP, step, 1, 0, 0}};
    size_t i;
    for (i = 0; i < sizeof rows / sizeof *rows; i++) {
        const drop_row *r = &rows[i];
        CHECK(r->p.capacity == 7 && r->p.order == r->order && r->p.norm == r->norm && r->p.eps_mode == r->eps_mode);
        CHECK_NEAR(r->p.eps, r->eps, 1e-7, 0.0);
        CHECK(r->p.norm_skip_k1 == r->skip_k1 && r->p.keep_weights == r->keeps && r->p.slots_by_token == r->by_token);
        CHECK(r->p.group_tokens == 0 && !r->p.capacities && !r->p.priority && !r->p.rng);
        STOP_IF_FAILED("preset %d", (int)i);
    }
}

/* Nothing is said of no token, one token, one expert or one device that would not be said of more. */
TEST(one_token_of_one_expert)
{
    const int32_t id[3] = {0, 7, 7}, device[3] = {0, 1, 0}, behind[2] = {0, 1};
    const uint8_t kept[2] = {1, 9}, lost[2] = {0, 9};
    const int64_t loads[2] = {3, -1}, full[2] = {INT64_MAX - 1, 1};
    const float w[2] = {0.5f, NAN};
    int32_t ids[2] = {-9, -9};
    int64_t per[3] = {-9, -9, -9}, on[3] = {-9, -9, -9}, added = -9, moved = -9, slot[2] = {-9, -9};
    uint8_t map[2] = {9, 9}, keep[2] = {9, 9};
    float after[2] = {-9.0f, -9.0f};
    moe_ep_drop_policy p = moe_ep_drop_switch(1);
    moe_ep_capacity_desc d;
    moe_ep_error err;
    CHECK_I64(moe_ep_drop(&p, NULL, w, 1, 1, 1, keep, slot, NULL, after, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop(&p, id, NULL, 1, 1, 1, keep, slot, NULL, after, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop(&p, id, w, 1, 0, 1, keep, slot, NULL, after, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop(&p, id, w, 1, 1, 0, keep, slot, NULL, after, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop(&p, id, w, INT64_MAX / 16 + 1, 1, 1, keep, slot, NULL, after, NULL, NULL, &err),
              MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_ep_pad_to_capacity(NULL, kept, 1, 1, 1, 1, map, &added, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_pad_to_capacity(id, NULL, 1, 1, 1, 1, map, &added, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_pad_to_capacity(id, kept, 1, 1, 1, 1, NULL, &added, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_pad_to_capacity(id, kept, 1, 0, 1, 1, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "K");
    CHECK_I64(moe_ep_pad_to_capacity(id, kept, 1, 1, 0, 1, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "E");
    CHECK_I64(moe_ep_pad_to_capacity(id, kept, 1, 1, 1, -1, map, &added, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "C");
    CHECK_I64(moe_ep_reroute(NULL, NULL, kept, 1, 1, 1, 1, 1, ids, NULL, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute(id, NULL, NULL, 1, 1, 1, 1, 1, ids, NULL, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_reroute(id, NULL, kept, 1, 1, 1, 1, 1, NULL, NULL, &moved, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "ids");
    CHECK_I64(moe_ep_reroute(id, NULL, kept, 1, 0, 1, 1, 1, ids, NULL, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "K");
    CHECK_I64(moe_ep_reroute(id, NULL, kept, 1, 2, 1, 1, 1, ids, NULL, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "R");
    CHECK_I64(moe_ep_reroute(id, NULL, kept, 1, 1, 1, 0, 1, ids, NULL, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "E");
    CHECK_I64(moe_ep_reroute(id, NULL, kept, 1, 1, 1, 1, -1, ids, NULL, &moved, NULL, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "C");
    CHECK_I64(moe_ep_drop_counts(NULL, kept, 1, 1, NULL, 1, per, on, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop_counts(id, NULL, 1, 1, NULL, 1, per, on, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop_counts(id, kept, 1, 1, NULL, 1, NULL, on, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop_counts(id, kept, 1, 0, NULL, 1, per, on, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "E");
    CHECK_I64(moe_ep_drop_counts(id, kept, 1, 1, NULL, 0, per, on, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "D");
    CHECK_I64(moe_ep_drop_counts(id, kept, -1, 1, NULL, 1, per, on, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "n");
    CHECK_I64(moe_ep_drop_counts(id, lost, 1, 2, device, 1, per, on, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    CHECK(ids[0] == -9 && per[0] == -9 && on[0] == -9 && added == -9 && moved == -9 && map[0] == 9 && keep[0] == 9);
    CHECK(slot[0] == -9 && after[0] < -8.0f);
    CHECK_I64(moe_ep_drop(&p, id, w, 1, 1, 1, keep, slot, NULL, after, NULL, NULL, &err), MOE_EP_OK);
    CHECK(keep[0] == 1 && slot[0] == 0 && after[0] >= 0.5f && keep[1] == 9 && slot[1] == -9 && after[1] < -8.0f);
    CHECK_I64(moe_ep_pad_to_capacity(id, kept, 1, 1, 1, 1, map, &added, &err), MOE_EP_OK);
    CHECK(map[0] == 1 && map[1] == 9 && added == 0);
    CHECK_I64(moe_ep_pad_to_capacity(id, lost, 1, 1, 1, 5, map, &added, &err), MOE_EP_OK);
    CHECK(map[0] == 1 && map[1] == 9 && added == 1);
    CHECK_I64(moe_ep_reroute(id, w, kept, 1, 1, 1, 1, 1, ids, after, &moved, NULL, &err), MOE_EP_OK);
    CHECK(ids[0] == 0 && ids[1] == -9 && moved == 0 && after[0] >= 0.5f && after[1] < -8.0f);
    CHECK_I64(moe_ep_drop_counts(id, lost, 1, 1, NULL, 1, per, on, &err), MOE_EP_OK);
    CHECK(per[0] == 1 && per[1] == -9 && on[0] == 1 && on[1] == -9);
    CHECK_I64(moe_ep_drop_counts(id, lost, 1, 2, behind, 2, per, on, &err), MOE_EP_OK);
    CHECK(per[0] == 1 && per[1] == 0 && per[2] == -9 && on[0] == 1 && on[1] == 0 && on[2] == -9);
    CHECK_I64(moe_ep_dropped_tokens(loads, 1, 1, &err), 2); /* a bad load behind them is not looked at */
    CHECK_I64(moe_ep_dropped_tokens(loads, 1, 0, &err), 3);
    CHECK_I64(moe_ep_dropped_tokens(loads, 1, -1, &err), MOE_EP_ERR_NEGATIVE);
    CHECK_I64(moe_ep_dropped_tokens(loads, 0, 1, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_dropped_tokens(full, 2, 0, &err), INT64_MAX);
    CHECK_NEAR(moe_ep_smallest_capacity_factor(loads, 1, 1, &err), 3.0, 0.0, 0.0);
    CHECK_NEAR(moe_ep_smallest_capacity_factor(loads, 1, 0, &err), MOE_EP_ERR_SIZE, 0.0, 0.0);
    memset(&d, 0, sizeof d);
    d.num_tokens = d.top_k = d.num_experts = 1;
    d.factor = 1.0;
    CHECK_I64(moe_ep_capacity(&d, &err), 1);
    d.num_tokens = 0;
    CHECK_I64(moe_ep_capacity(&d, &err), 0);
    d.num_tokens = -1;
    CHECK_I64(moe_ep_capacity(&d, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_tokens");
    d.num_tokens = 1;
    d.top_k = 0;
    CHECK_I64(moe_ep_capacity(&d, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "top_k");
    d.top_k = 1;
    d.num_experts = 0;
    CHECK_I64(moe_ep_capacity(&d, &err), MOE_EP_ERR_SIZE);
    CHECK_STR(err.arg, "num_experts");
}

/* The first id is looked at as well, limits behind the last expert are not; capacities end below 9e18. */
TEST(first_and_last_of_the_lists)
{
    const int64_t limits[3] = {1, 0, -1};
    const int32_t ids[3] = {0, 1, 0}, bad[2][2] = {{-2, 0}, {2, 0}};
    const uint8_t keep[2] = {1, 1};
    int32_t out[4];
    int64_t per[2];
    uint8_t got[3], map[4];
    moe_ep_drop_policy p = moe_ep_drop_switch(1);
    moe_ep_capacity_desc d;
    moe_ep_error err;
    int i;
    for (i = 0; i < 2; i++) {
        CHECK_I64(moe_ep_drop(&p, bad[i], NULL, 2, 1, 2, got, NULL, NULL, NULL, NULL, NULL, &err),
                  MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, 0);
        CHECK_I64(moe_ep_pad_to_capacity(bad[i], keep, 2, 1, 2, 1, map, NULL, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, 0);
        CHECK_I64(moe_ep_reroute(bad[i], NULL, keep, 2, 1, 1, 2, 1, out, NULL, NULL, NULL, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, 0);
        CHECK_I64(moe_ep_drop_counts(bad[i], keep, 2, 2, NULL, 1, per, NULL, &err), MOE_EP_ERR_EXPERT_ID);
        CHECK_I64(err.index, 0);
    }
    p.capacities = limits;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 3, 1, 2, got, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_OK);
    CHECK(got[0] == 1 && got[1] == 0 && got[2] == 0);
    memset(&d, 0, sizeof d);
    d.rule = MOE_EP_CAPACITY_MEGATRON;
    d.num_tokens = INT64_C(4500000000000000000);
    d.top_k = 2;
    d.num_experts = 1;
    d.factor = 1.0;
    CHECK_I64(moe_ep_capacity(&d, &err), MOE_EP_ERR_OVERFLOW);
    CHECK_STR(err.arg, "factor");
    d.num_tokens -= 1024;
    CHECK_I64(moe_ep_capacity(&d, &err), INT64_C(9000000000000000000) - 2048);
}

/* Every rule at sizes and factors of all kinds, by its line in the header's list, in integers: factors are quarters,
 * numbers of experts powers of two, so that nothing is rounded on the way. */
TEST(capacity_rules_by_definition)
{
    uint64_t s = t_seed + 98;
    int round;
    for (round = 0; round < 6000; round++) {
        const int rule = round % 12;
        moe_ep_capacity_desc d;
        int64_t T, K, E, n, quarters, want = 0, share, world;
        memset(&d, 0, sizeof d);
        T = t_below(&s, 16) ? 1 + t_below(&s, round % 5 ? 40 : 100000) : 0;
        K = 1 + t_below(&s, 5);
        E = (int64_t)1 << t_below(&s, 7); /* a power of two: quotients are exact, in float32 too */
        quarters = 1 + t_below(&s, 12);
        world = t_below(&s, 4);
        n = T * K;
        share = (T + E - 1) / E;
        d.rule = (moe_ep_capacity_rule)rule;
        d.num_tokens = T;
        d.top_k = (int32_t)K;
        d.num_experts = (int32_t)E;
        d.max_load = t_below(&s, 60);
        d.world = (int32_t)world;
        if (rule >= 4 && rule <= 6 && t_below(&s, 3) == 0) quarters = 0;
        if (rule == 4 && t_below(&s, 2)) quarters = -quarters;
        if (rule == 10 && t_below(&s, 2)) quarters = 0;
        d.factor = (double)quarters / 4.0;
        switch (rule) {
        case 0:
            d.basis_tokens = (int32_t)t_below(&s, 2);
            d.in_float32 = (int32_t)t_below(&s, 2);
            d.rounding = (moe_ep_rounding)t_below(&s, 3);
            {
                const int64_t top = (d.basis_tokens ? T : n) * quarters, low = top / (4 * E), rest = top % (4 * E);
                want = low;
                if (d.rounding == MOE_EP_ROUND_CEIL) want += rest > 0;
                if (d.rounding == MOE_EP_ROUND_HALF_EVEN) want += rest > 2 * E || (rest == 2 * E && low % 2 == 1);
            }
            break;
        case 1: want = (n * quarters + 4 * E - 1) / (4 * E); break;
        case 2: want = (T * quarters + 4 * E - 1) / (4 * E); break;
        case 3: want = (n * quarters + 4 * E - 1) / (4 * E); break;
        case 4:
            want = K * ((quarters < 0 ? -quarters : quarters) * share / 4);
            if (quarters == 0 || (quarters < 0 && d.max_load > 0 && d.max_load <= want)) want = d.max_load;
            break;
        case 5:
            want = n * (world > 0 ? world : 1) * quarters / (4 * E);
            if (want == 0) want = d.max_load;
            break;
        case 6:
            want = (n > 0 ? (n + E - 1) / E : 1) * quarters / 4;
            if (quarters == 0) want = d.max_load;
            break;
        case 7: /* half to even */
            want = T * quarters / (4 * E);
            want += T * quarters % (4 * E) > 2 * E || (T * quarters % (4 * E) == 2 * E && want % 2 == 1);
            break;
        case 8:
            want = T * quarters / (4 * E);
            want = want < T ? want : T;
            break;
        case 9:
            want = T * quarters / (4 * E);
            want = want == 0 ? 4 : (want + 3) / 4 * 4;
            break;
        case 10: want = quarters > 0 ? (T * quarters + 3) / 4 : 2 * share; break;
        default: want = K == 1 ? T : n / E > K ? n / E : K; break;
        }
        d.min_capacity = t_below(&s, 3) ? 0 : t_below(&s, 9);
        d.multiple = t_below(&s, 3) ? 0 : t_below(&s, 9);
        if (T > 0 && d.max_load == 0 && (rule == 5 ? want == 0 : (rule == 4 || rule == 6) && quarters == 0)) {
            CHECK_I64(moe_ep_capacity(&d, NULL), INT64_MAX); /* dropless, whatever the least is */
            continue;
        }
        if (want < d.min_capacity) want = d.min_capacity;
        if (d.multiple > 0) want = (want + d.multiple - 1) / d.multiple * d.multiple;
        if (rule == 2 || rule == 3 || (rule == 0 && d.in_float32)) { /* all digits must fit a float */
            if (n * 12 >= 1 << 24) continue;
        }
        CHECK_I64(moe_ep_capacity(&d, NULL), want);
        STOP_IF_FAILED("round %d", round);
    }
}

/* Scratch is asked for by the arrays that are worked in, each rounded up to 64 bytes, and 64 to align the first. */
TEST(scratch_is_what_the_arrays_take)
{
    enum { T = 30, K = 3, E = 19, GROUP = 7 };
    static int32_t ids[T * K];
    static float w[T * K];
    static uint8_t keep[T * K];
    int order, grouped, own;
    moe_ep_rng rng = moe_ep_rng_seed(1);
    moe_ep_scratch none = moe_ep_scratch_fixed(NULL, 0);
    for (order = 0; order < 5; order++)
        for (grouped = 0; grouped < 3; grouped++)
            for (own = 0; own < 2; own++) {
                const size_t tokens = grouped == 1 ? GROUP : T;
                const size_t ranked = order < 2 ? 0 : order == MOE_EP_DROP_MAX_GATE ? tokens : tokens * K;
                moe_ep_drop_policy p = moe_ep_drop_switch(2);
                p.order = (moe_ep_drop_order)order;
                p.group_tokens = grouped == 1 ? GROUP : grouped == 2 ? T + 1 : 0;
                p.rng = &rng;
                CHECK_I64(moe_ep_drop(&p, ids, w, T, K, E, own ? keep : NULL, NULL, NULL, NULL, NULL, &none, NULL),
                          MOE_EP_ERR_SCRATCH);
                CHECK_I64(none.need, 64 + (8 * E + 63) / 64 * 64 + (own ? 0 : (T * K + 63) / 64 * 64) +
                                     (4 * ranked + 63) / 64 * 64 + (8 * ranked + 63) / 64 * 64);
            }
    CHECK_I64(moe_ep_reroute(ids, w, keep, T, K, K, E, 1, ids, NULL, NULL, &none, NULL), MOE_EP_ERR_SCRATCH);
    CHECK_I64(none.need, 64 + (8 * E + 63) / 64 * 64);
}

TEST(success_clears_the_error)
{
    const int32_t ids[2] = {0, 1};
    const uint8_t kept[2] = {1, 1};
    const int64_t loads[2] = {1, 1};
    int32_t out[2];
    int64_t per[2], device[1], added;
    uint8_t keep[2], map[2];
    moe_ep_capacity_desc d;
    moe_ep_drop_policy p = moe_ep_drop_switch(1);
    moe_ep_drop_result r;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_tokens = d.top_k = d.num_experts = 1;
    d.factor = 1.0;
    CLEARS(moe_ep_capacity(&d, &err));
    CLEARS(moe_ep_dropped_tokens(loads, 2, 1, &err));
    CLEARS(moe_ep_smallest_capacity_factor(loads, 2, 2, &err));
    CLEARS(moe_ep_drop(&p, ids, NULL, 1, 2, 2, keep, NULL, NULL, NULL, &r, NULL, &err));
    CLEARS(moe_ep_pad_to_capacity(ids, kept, 1, 2, 2, 1, map, &added, &err));
    CLEARS(moe_ep_reroute(ids, NULL, kept, 1, 1, 2, 2, 1, out, NULL, NULL, NULL, &err));
    CLEARS(moe_ep_drop_counts(ids, kept, 2, 2, NULL, 1, per, device, &err));
}

/* Weights that cancel, or that no float can hold after the norm. */
TEST(weights_that_cancel)
{
    const int32_t ids[2] = {0, 1};
    const float cancel[2] = {0.5f, -0.5f}, huge[2] = {3e38f, -2.9999e38f}, against[2] = {-3e38f, 2.9999e38f};
    float after[2];
    uint8_t keep[2];
    moe_ep_drop_result r;
    moe_ep_drop_policy p = moe_ep_drop_gshard(1);
    p.norm = MOE_EP_NORM_AFTER;
    p.eps_mode = MOE_EP_EPS_NONE;
    CHECK_I64(moe_ep_drop(&p, ids, cancel, 1, 2, 2, keep, NULL, NULL, after, &r, NULL, NULL), MOE_EP_OK);
    CHECK(keep[0] && keep[1]);
    CHECK_NEAR(after[0], 0.0, 0, 0); /* a norm of 0 gives 0 */
    CHECK_NEAR(r.weight_kept, 1.0, 0, 0);
    p.eps_mode = MOE_EP_EPS_ADD;
    p.eps = 0.0f;
    CHECK_I64(moe_ep_drop(&p, ids, huge, 1, 2, 2, keep, NULL, NULL, after, &r, NULL, NULL), MOE_EP_OK);
    CHECK(after[0] > 1.0f && after[0] < 1e5f && after[1] < -1.0f);
    CHECK_I64(moe_ep_drop(&p, ids, against, 1, 2, 2, keep, NULL, NULL, after, &r, NULL, NULL), MOE_EP_OK);
    CHECK(after[0] > 1.0f && after[1] < -1.0f); /* divided by a negative norm */
    CHECK_NEAR(r.weight_kept, 1.0, 1e-12, 0);
}

TEST(drop_counts_example_and_errors)
{
    int32_t ids[4] = {0, 0, 1, -1}, wrong[2] = {0, 9}, device[2] = {0, 3}, swap[2] = {1, 0};
    uint8_t keep[4] = {1, 0, 0, 0}, all[4] = {1, 1, 1, 1};
    int64_t expert[2] = {-9, -9}, dev[2] = {-9, -9};
    moe_ep_error err;
    CHECK_I64(moe_ep_drop_counts(NULL, keep, 3, 2, NULL, 1, expert, dev, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop_counts(ids, NULL, 3, 2, NULL, 1, expert, dev, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop_counts(ids, keep, 3, 2, NULL, 1, NULL, dev, &err), MOE_EP_ERR_NULL);
    CHECK_I64(moe_ep_drop_counts(ids, keep, -3, 2, NULL, 1, expert, dev, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop_counts(ids, keep, 3, 0, NULL, 1, expert, dev, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop_counts(ids, keep, 3, 2, NULL, 0, expert, dev, &err), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_ep_drop_counts(wrong, keep, 2, 2, NULL, 1, expert, dev, &err), MOE_EP_ERR_EXPERT_ID);
    CHECK_I64(moe_ep_drop_counts(ids, all, 4, 2, NULL, 1, expert, dev, &err), MOE_EP_ERR_CONFIG);
    CHECK_I64(moe_ep_drop_counts(ids, keep, 3, 2, device, 2, expert, dev, &err), MOE_EP_ERR_DEVICE_ID);
    CHECK_I64(err.index, 1);
    CHECK(expert[0] == -9 && dev[0] == -9);
    CHECK_I64(moe_ep_drop_counts(ids, keep, 4, 2, NULL, 1, expert, dev, &err), MOE_EP_OK);
    CHECK(expert[0] == 1 && expert[1] == 1 && dev[0] == 2);
    keep[1] = 1;
    CHECK_I64(moe_ep_drop_counts(ids, keep, 4, 2, swap, 2, expert, dev, &err), MOE_EP_OK);
    CHECK(expert[0] == 0 && expert[1] == 1 && dev[0] == 1 && dev[1] == 0);
}

TEST(smallest_factor_of_loads_near_2_to_the_63)
{
    const int64_t loads[4] = {INT64_C(1) << 62, 0, 0, 0};
    CHECK_NEAR(moe_ep_smallest_capacity_factor(loads, 4, INT64_C(1) << 62, NULL), 4, 1e-15, 0);
}

TEST(drop_says_what_is_missing)
{
    const int32_t ids[2] = {0, 1};
    uint8_t keep[2];
    moe_ep_drop_policy p = moe_ep_drop_megatron_probs(2);
    moe_ep_error err;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 2, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_NULL);
    CHECK_STR(err.arg, "weights");
    p.order = (moe_ep_drop_order)9;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 2, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_RANGE);
}

/* The random order of groups, by the keys of the same generator: larger keys come first, each group has queues of its
 * own, and the slots go to the survivors by token where that is asked for. */
TEST(random_order_of_groups)
{
    uint64_t s = t_seed + 91;
    for (int round = 0; round < 200; round++) {
        const int32_t K = 1 + (int32_t)t_below(&s, 3), E = 2 + (int32_t)t_below(&s, 5);
        const int64_t T = 1 + (int64_t)t_below(&s, 20), G = (int64_t)t_below(&s, 8), group = G > 0 ? G : T;
        moe_ep_rng rng = moe_ep_rng_seed(1 + t_below(&s, 1000)), same = rng;
        moe_ep_drop_policy p = moe_ep_drop_deepspeed_top1((int64_t)t_below(&s, 4));
        int32_t ids[60];
        uint8_t keep[60], want_keep[60];
        int64_t slot[60], position[60], want_slot[60], want_position[60];
        moe_ep_scratch scratch;
        static char memory[4096];
        size_t need;
        moe_ep_error err;
        p.rng = &rng;
        p.group_tokens = G;
        p.slots_by_token = (int32_t)t_below(&s, 2);
        for (int64_t i = 0; i < T * K; i++) ids[i] = (int32_t)t_below(&s, (uint64_t)E + 1) - 1;
        for (int64_t t0 = 0; t0 < T; t0 += group) {
            int64_t first = t0 * K, n = (T - t0 < group ? T - t0 : group) * K, count[8] = {0}, dealt[8] = {0};
            float key[60];
            int done[60] = {0};
            for (int64_t i = 0; i < n; i++) key[i] = (float)moe_ep_rng_f64(&same);
            for (int64_t turn = 0; turn < n; turn++) {
                int64_t best = -1, at;
                for (int64_t i = 0; i < n; i++)
                    if (!done[i] && (best < 0 || key[i] > key[best])) best = i;
                done[best] = 1;
                at = first + best;
                want_position[at] = ids[at] < 0 ? -1 : count[ids[at]]++;
                want_keep[at] = ids[at] >= 0 && want_position[at] < p.capacity;
                want_slot[at] = want_keep[at] ? want_position[at] : -1;
            }
            for (int64_t i = first; p.slots_by_token && i < first + n; i++)
                if (want_keep[i]) want_slot[i] = dealt[ids[i]]++;
        }
        scratch = moe_ep_scratch_fixed(memory, 1);
        CHECK_I64(moe_ep_drop(&p, ids, NULL, T, K, E, keep, slot, position, NULL, NULL, &scratch, &err),
                  MOE_EP_ERR_SCRATCH);
        need = (size_t)err.value;
        CHECK(need <= sizeof memory);
        scratch = moe_ep_scratch_fixed(memory, need); /* no larger than for one group */
        CHECK_I64(moe_ep_drop(&p, ids, NULL, T, K, E, keep, slot, position, NULL, NULL, &scratch, &err), MOE_EP_OK);
        for (int64_t i = 0; i < T * K; i++) {
            CHECK_I64(keep[i], want_keep[i]);
            CHECK_I64(slot[i], want_slot[i]);
            CHECK_I64(position[i], want_position[i]);
        }
        STOP_IF_FAILED("round %d", round);
    }
}

/* capacities replace capacity, whatever that is; a map of experts is read for the devices only. */
TEST(what_is_not_asked_for_is_not_looked_at)
{
    static const int64_t limits[2] = {1, 0};
    static const int32_t ids[3] = {0, 0, 1}, map[2] = {7, -3};
    uint8_t keep[3];
    int64_t per[2];
    moe_ep_drop_policy p = moe_ep_drop_switch(-1);
    moe_ep_error err;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 3, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_ERR_SIZE);
    p.capacities = limits;
    CHECK_I64(moe_ep_drop(&p, ids, NULL, 3, 1, 2, keep, NULL, NULL, NULL, NULL, NULL, &err), MOE_EP_OK);
    CHECK(keep[0] == 1 && keep[1] == 0 && keep[2] == 0);
    CHECK_I64(moe_ep_drop_counts(ids, keep, 3, 2, map, 0, per, NULL, &err), MOE_EP_OK);
    CHECK(per[0] == 1 && per[1] == 1);
}

T_MAIN
