/* tests/test_place_lp.c - sections 5 and 6 against a solver of linear and integer programs. */
/* needs: glpk */
/* SPDX-License-Identifier: MIT */
#include "placement.h"

#if defined(__has_include)
#if __has_include(<glpk.h>)
#include <glpk.h>
#define HAVE_GLPK
#endif
#endif

#ifdef HAVE_GLPK

static void random_loads(uint64_t *s, double *w, int n)
{
    int kind = (int)t_below(s, 6), i;
    for (i = 0; i < n; i++) {
        if (kind == 0) w[i] = (double)t_below(s, 1000);
        else if (kind == 1) w[i] = (double)(128 * t_below(s, 20));
        else if (kind == 2) w[i] = t_below(s, 3) ? 1.0 : (double)t_below(s, 5);
        else if (kind == 3) w[i] = 1e4 / (double)(1 + t_below(s, n));
        else if (kind == 4) w[i] = exp(4.0 * t_unit(s));
        else w[i] = i == n / 2 ? 1e3 : 10.0 * t_unit(s);
    }
}

/* A program being written: rows and columns are added, coefficients collected. */
typedef struct program {
    glp_prob *lp;
    int n, room, *row, *column;
    double *value;
} program;

static program program_new(int room)
{
    program p;
    p.lp = glp_create_prob();
    p.n = 0;
    p.room = room;
    p.row = (int *)t_alloc(sizeof(int) * (size_t)(room + 1));
    p.column = (int *)t_alloc(sizeof(int) * (size_t)(room + 1));
    p.value = (double *)t_alloc(sizeof(double) * (size_t)(room + 1));
    glp_set_obj_dir(p.lp, GLP_MIN);
    return p;
}

static void program_free(program *p)
{
    glp_delete_prob(p->lp);
    free(p->row);
    free(p->column);
    free(p->value);
}

static int add_row(program *p, int kind, double bound)
{
    int row = glp_add_rows(p->lp, 1);
    glp_set_row_bnds(p->lp, row, kind, bound, bound);
    return row;
}

static int add_column(program *p, int binary)
{
    int column = glp_add_cols(p->lp, 1);
    if (binary) glp_set_col_kind(p->lp, column, GLP_BV);
    else glp_set_col_bnds(p->lp, column, GLP_LO, 0, 0);
    return column;
}

static void put(program *p, int row, int column, double value)
{
    if (p->n == p->room) {
        fprintf(stderr, "program too large\n");
        exit(2);
    }
    p->n++;
    p->row[p->n] = row;
    p->column[p->n] = column;
    p->value[p->n] = value;
}

static void quiet(glp_smcp *simplex)
{
    glp_init_smcp(simplex);
    simplex->msg_lev = GLP_MSG_OFF;
    simplex->presolve = GLP_ON;
}

/* Least busiest device (load / speed) of any split of loads over the replicas of p. */
static double split_optimum(const moe_ep_placement *p, const double *loads)
{
    program x = program_new(4 * p->num_slots + p->num_devices + 8);
    int row_of_device[64], row_of_expert[64], d, e, s, z = add_column(&x, 0);
    double found;
    glp_smcp simplex;
    glp_set_obj_coef(x.lp, z, 1);
    for (d = 0; d < p->num_devices; d++) {
        row_of_device[d] = add_row(&x, GLP_UP, 0);
        put(&x, row_of_device[d], z, -p->device_speed[d]);
    }
    for (e = 0; e < p->num_experts; e++) row_of_expert[e] = add_row(&x, GLP_FX, loads[e]);
    for (s = 0; s < p->num_slots; s++) {
        int part;
        if (p->slot_expert[s] < 0 || p->device_inactive[p->slot_device[s]]) continue;
        part = add_column(&x, 0);
        put(&x, row_of_device[p->slot_device[s]], part, 1);
        put(&x, row_of_expert[p->slot_expert[s]], part, 1);
    }
    glp_load_matrix(x.lp, x.n, x.row, x.column, x.value);
    quiet(&simplex);
    if (glp_simplex(x.lp, &simplex) != 0 || glp_get_status(x.lp) != GLP_OPT) found = -1;
    else found = glp_get_obj_val(x.lp);
    program_free(&x);
    return found;
}

TEST(exact_split_is_the_lp_optimum)
{
    uint64_t s = t_seed;
    int n, i;
    double furthest = 0;
    for (n = 0; n < 600; n++) {
        int D = 1 + (int)t_below(&s, n % 3 ? 6 : 16), S = 1 + (int)t_below(&s, 6), P = D * S,
            E = 1 + (int)t_below(&s, P < 60 ? P : 60), speeds = (int)t_below(&s, 2);
        double loads[64], share[128], level = 0, want, busiest = 0, device[16] = {0};
        moe_ep_shape shape;
        moe_ep_placement p;
        memset(&shape, 0, sizeof shape);
        shape.num_devices = D;
        shape.num_slots = P;
        p = placement_new(1, E, &shape);
        for (i = 0; i < P; i++) p.slot_expert[i] = i < E ? i : (int32_t)t_below(&s, E + 1) - 1;
        for (i = P - 1; i > 0; i--) {
            int j = (int)t_below(&s, i + 1);
            int32_t swap = p.slot_expert[i];
            p.slot_expert[i] = p.slot_expert[j];
            p.slot_expert[j] = swap;
        }
        for (i = 0; i < D && speeds; i++) p.device_speed[i] = 0.5 + t_unit(&s);
        CHECK_I64(moe_ep_placement_index(&p, NULL), MOE_EP_OK);
        random_loads(&s, loads, E);
        CHECK_I64(moe_ep_split_shares(&p, 0, loads, 0, share, &level, NULL, NULL), MOE_EP_OK);
        for (i = 0; i < P; i++) {
            CHECK(share[i] >= 0);
            device[p.slot_device[i]] += share[i];
        }
        for (i = 0; i < D; i++)
            if (device[i] / p.device_speed[i] > busiest) busiest = device[i] / p.device_speed[i];
        CHECK_NEAR(level, busiest, 1e-9, 1e-9);
        want = split_optimum(&p, loads);
        CHECK(want >= 0);
        CHECK_NEAR(level, want, 1e-5, 1e-9);
        if (want > 0 && fabs(level / want - 1) > furthest) furthest = fabs(level / want - 1);
        placement_free(&p);
        STOP_IF_FAILED("case %d", n);
    }
    printf("    600 splits, at most %.1e from the optimum of the linear program\n", furthest);
}

/* The placement with equal shares as an integer program.  Column have[e][c]: expert e has c copies; on[e][c][d]: one of
 * them is on d.  Devices are alike, so the first expert's copies stand on the first devices. */
static program placement_program(const double *w, int E, int D, int S, double most)
{
    program x = program_new(8 * E * D * D + E * D + 4 * D);
    int device_row[8], slot_row[8], z = add_column(&x, 0), e, c, d;
    glp_set_obj_coef(x.lp, z, 1);
    if (most > 0) glp_set_col_bnds(x.lp, z, GLP_DB, 0, most);
    for (d = 0; d < D; d++) {
        device_row[d] = add_row(&x, GLP_UP, 0);
        put(&x, device_row[d], z, -1);
        slot_row[d] = add_row(&x, GLP_UP, S);
    }
    for (e = 0; e < E; e++) {
        int once = add_row(&x, GLP_FX, 1);
        for (c = 1; c <= D; c++) {
            int have = add_column(&x, 1), copies = add_row(&x, GLP_FX, 0);
            put(&x, once, have, 1);
            put(&x, copies, have, -c);
            for (d = 0; d < D; d++) {
                int on = add_column(&x, 1), only = add_row(&x, GLP_UP, 0);
                if (e == 0 && d >= c) glp_set_col_bnds(x.lp, on, GLP_FX, 0, 0);
                put(&x, copies, on, 1);
                put(&x, only, on, 1);
                put(&x, only, have, -1);
                put(&x, slot_row[d], on, 1);
                put(&x, device_row[d], on, w[e] / c);
            }
        }
    }
    glp_load_matrix(x.lp, x.n, x.row, x.column, x.value);
    return x;
}

/* Least busiest device below most (0 = any) -> *value.  1 = solved, 0 = none exists, -1 = not decided in time. */
static int placement_optimum(const double *w, int E, int D, int S, double most, double *value)
{
    program x = placement_program(w, E, D, S, most);
    glp_iocp integer;
    int code, status, answer = -1;
    glp_init_iocp(&integer);
    integer.msg_lev = GLP_MSG_OFF;
    integer.presolve = GLP_ON;
    integer.tm_lim = 150;
    code = glp_intopt(x.lp, &integer);
    status = glp_mip_status(x.lp);
    if (code == GLP_ENOPFS || code == GLP_ENODFS || (code == 0 && status == GLP_NOFEAS)) answer = 0;
    else if (code == 0 && status == GLP_OPT) answer = 1;
    if (status == GLP_OPT || status == GLP_FEAS) *value = glp_mip_obj_val(x.lp);
    if (most > 0 && status == GLP_FEAS) answer = 1; /* any plan below most answers the question */
    program_free(&x);
    return answer;
}

/* Nothing is more than 0.5 % below best: the program is asked for such a plan. */
TEST(best_within_half_a_percent_of_the_mip)
{
    uint64_t s = t_seed;
    const int cases = t_slow() > 1 ? 250 : 1000;
    int n, open = 0, solved = 0;
    for (n = 0; n < cases; n++) {
        int D = 2 + (int)t_below(&s, 3), S = 1 + (int)t_below(&s, 3), E = 2 + (int)t_below(&s, D * S - 1), found;
        double w[8], value = -1;
        moe_ep_place_desc d;
        moe_ep_placement p;
        moe_ep_plan_result r;
        if (E > 8) E = 8;
        random_loads(&s, w, E);
        memset(&d, 0, sizeof d);
        d.num_layers = 1;
        d.num_experts = E;
        d.shape.num_devices = D;
        d.shape.num_slots = D * S;
        d.loads = w;
        p = placement_new(1, E, &d.shape);
        CHECK_I64(moe_ep_best_placement(&d, &p, &r, NULL, NULL), MOE_EP_OK);
        placement_free(&p);
        if (!(r.max > 0)) continue;
        found = placement_optimum(w, E, D, S, r.max / 1.005, &value);
        CHECK(found != 1);
        open += found < 0;
        if (n % 8 == 0 && E <= 5 && placement_optimum(w, E, D, S, 0, &value) == 1) { /* and what is the optimum? */
            CHECK(r.max >= value * (1 - 1e-6));
            CHECK(r.lower_bound <= value * (1 + 1e-6));
            solved++;
        }
        STOP_IF_FAILED("case %d", n);
    }
    CHECK(open <= cases / 5);
    CHECK(solved > cases * 3 / 100);
    printf("    %d placements, %d not decided within 0.15 s; %d optima solved in full\n", cases, open, solved);
}

#else

TEST(place_lp) { SKIP("glpk.h was not found: install libglpk-dev"); }

#endif

T_MAIN
