/* tests/fuzz/fuzz_split.c - section 6: rows over replicas, slots of rows, and their traffic
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "fuzz_shapes.h"

enum { FZ_EXPERTS = 100 };

static void split_one(const moe_ep_placement *pl, int E)
{
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    int P = pl->num_slots, D = pl->num_devices, N = pl->num_nodes, L = pl->num_layers;
    int layer = fz_chance(.05) ? fz_bad_i32() : fz_int(0, L - 1);
    int64_t *cnt = fz_in(8 * E);
    for (int i = 0; i < E; i++) cnt[i] = fz_chance(.02) ? fz_bad_i64() : fz_int(0, 30);
    int64_t tot = 0;
    moe_ep_split_desc d;
    memset(&d, 0, sizeof d);
    d.policy = fz_chance(.03) ? fz_bad_i32() : fz_int(0, 6);
    d.seed = fz_u64();
    d.max_sweeps = fz_chance(.2) ? fz_int(-1, 3) : 0;
    int64_t *src = fz_in(8 * D * E);
    int big = 0;
    for (int i = 0; i < E; i++)
        if (cnt[i] < 0 || cnt[i] > 1000000) big = 1;
    if (big && (d.policy == 2 || d.policy == 3)) return;
    for (int i = 0; i < E; i++) {
        int64_t left = big ? 0 : cnt[i];
        for (int k = 0; k < D; k++) {
            int64_t x = k == D - 1 ? left : (left ? (int64_t)(fz_u64() % (left + 1)) : 0);
            src[k * E + i] = x;
            left -= x;
        }
    }
    if (fz_chance(.9)) d.source_counts = src;
    fz_seal();
    fz_where = "split";
    int64_t *sr = fz_out(8 * P);
    s = moe_ep_split(&d, pl, layer, cnt, sr, fz_scratch(), &e);
    fz_scratch_done();
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        int64_t per[FZ_EXPERTS] = {0};
        const int32_t *se = pl->slot_expert + (size_t)layer * P;
        for (int i = 0; i < P; i++) {
            if (sr[i] < 0) fz_fail("neg rows");
            if (se[i] >= 0) per[se[i]] += sr[i];
            else if (sr[i]) fz_fail("rows in empty");
            if (sr[i] && pl->device_inactive[pl->slot_device[i]]) fz_fail("rows on inactive");
        }
        for (int i = 0; i < E; i++)
            if (per[i] != cnt[i])
                fz_fail("expert rows %lld != %lld policy %d", (long long)per[i], (long long)cnt[i], d.policy);
        if (fz_grows) {
            int64_t *rows = fz_out(8 * D), all = 0, given = 0;
            fz_where = "device_rows";
            s = moe_ep_device_rows(pl, sr, rows, &e);
            fz_error(s, &e);
            for (int i = 0; s == 0 && i < D; i++) all += rows[i];
            for (int i = 0; i < P && !big; i++) given += sr[i];
            if (s == 0 && !big && all != given) fz_fail("%lld rows of %lld", (long long)all, (long long)given);
            if (!moe_ep_split_policy_str(d.policy)) fz_fail("no name");
        }
        if (!big) {
            for (int i = 0; i < E; i++) tot += cnt[i];
            int32_t *ids = fz_in(4 * tot), *so = fz_work(4 * tot);
            memset(so, 0xa5, 4 * tot);
            int64_t n = 0;
            for (int i = 0; i < E; i++)
                for (int j = 0; j < cnt[i]; j++) ids[n++] = i;
            for (int64_t i = n - 1; i > 0; i--) {
                int64_t j = fz_u64() % (i + 1);
                int32_t t = ids[i];
                ids[i] = ids[j];
                ids[j] = t;
            }
            int32_t *sd = fz_in(4 * n);
            for (int64_t i = 0; i < n; i++) sd[i] = fz_chance(.001) ? fz_bad_i32() : fz_int(0, D - 1);
            fz_where = "assign";
            fz_seal();
            moe_ep_status s2 =
                fz_chance(.5) ? moe_ep_assign_slots(pl, layer, ids, n, sr, so, fz_scratch(), &e)
                              : moe_ep_assign_slots_local(pl, layer, ids, n, sd, sr, so, fz_scratch(), &e);
            fz_scratch_done();
            fz_error(s2, &e);
            if (s2 == 0) {
                int64_t c[1 << 10] = {0};
                for (int64_t i = 0; i < n; i++) {
                    if (so[i] < 0 || so[i] >= P || se[so[i]] != ids[i]) fz_fail("slot wrong");
                    else if (so[i] < 1 << 10) c[so[i]]++;
                }
                for (int i = 0; i < P && i < 1 << 10; i++)
                    if (c[i] != sr[i]) fz_fail("quota");
                fz_where = "reroute_replicas";
                int64_t cap = fz_chance(.02) ? -1 : fz_int(0, 40), moved = 0, lost = 0, gone = 0, other = 0;
                fz_release();
                int32_t *ro = fz_out(4 * n);
                s2 = moe_ep_reroute_replicas(pl, layer, cap, so, n, ro, &moved, &lost, fz_scratch(), &e);
                fz_scratch_done();
                fz_error(s2, &e);
                fz_untouched(s2);
                for (int64_t i = 0; s2 == 0 && i < n; i++) {
                    if (ro[i] < -1 || ro[i] >= P || (ro[i] >= 0 && se[ro[i]] != ids[i])) fz_fail("slot wrong");
                    gone += ro[i] < 0;
                    other += ro[i] >= 0 && ro[i] != so[i];
                }
                if (s2 == 0 && (gone != lost || other != moved))
                    fz_fail("%lld moved, %lld lost", (long long)moved, (long long)lost);
                int K = fz_int(1, 3);
                int64_t T = n / K;
                if (fz_chance(.1) && n) so[fz_u64() % n] = fz_bad_i32();
                int mode = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 2);
                fz_where = "traffic";
                fz_release();
                int64_t *rr = fz_out(8 * D * D), *nr = fz_out(8 * N * N), rows = 0;
                s2 = moe_ep_traffic(pl, so, T, K, fz_chance(.5) ? sd : NULL, mode, rr, nr, &e);
                fz_error(s2, &e);
                fz_untouched(s2);
                for (int i = 0; s2 == 0 && i < D * D; i++) {
                    if (rr[i] < 0) fz_fail("%lld rows", (long long)rr[i]);
                    rows += rr[i];
                }
                if (s2 == 0 && (rows > T * K || (mode == 0 && !memchr(so, 0xff, 4 * n) && rows != T * K)))
                    fz_fail("%lld rows of %lld, mode %d", (long long)rows, (long long)(T * K), mode);
                fz_release();
                fz_where = "node_traffic";
                nr = fz_out(8 * D * N);
                s2 = moe_ep_node_traffic(pl, so, T, K, fz_chance(.5) ? sd : NULL, nr, &e);
                fz_error(s2, &e);
                fz_untouched(s2);
                rows = 0;
                for (int i = 0; s2 == 0 && i < D * N; i++) {
                    if (nr[i] < 0) fz_fail("%lld rows to a node", (long long)nr[i]);
                    rows += nr[i];
                }
                if (s2 == 0 && rows > T * (K < N ? K : N)) fz_fail("%lld rows to nodes", (long long)rows);
                fz_release();
                fz_where = "fan_out";
                int32_t *rk = fz_out(4 * T), *nk = fz_out(4 * T);
                s2 = moe_ep_fan_out(pl, so, T, K, rk, nk, &e);
                fz_error(s2, &e);
                fz_untouched(s2);
                for (int i = 0; s2 == 0 && i < T; i++)
                    if (rk[i] < 0 || rk[i] > D || rk[i] > K || nk[i] < 0 || nk[i] > rk[i])
                        fz_fail("%d ranks, %d nodes of a token", rk[i], nk[i]);
            } else
                for (int64_t i = 0; i < 4 * n; i++)
                    if (((unsigned char *)so)[i] != 0xa5) fz_fail("slots were touched: %s", moe_ep_status_str(s2));
        }
    }
    fz_release();
    fz_where = "split_shares";
    double *ld = fz_in(8 * E);
    for (int i = 0; i < E; i++)
        ld[i] = fz_chance(.02) ? fz_bad_double() : fz_chance(.1) ? 0 : fz_unit() * pow(10, fz_int(-3, 3));
    double *sl = fz_out(8 * P), *mx = fz_out(8);
    s = moe_ep_split_shares(pl, layer, ld, fz_chance(.2) ? fz_int(-1, 3) : 0, sl, mx, fz_scratch(), &e);
    fz_scratch_done();
    fz_error(s, &e);
    fz_untouched(s);
    if (s == 0) {
        if (fz_wild(*mx)) fz_fail("max %g", *mx);
        double dl[FZ_DEVICES] = {0}, top = 0;
        double per[FZ_EXPERTS] = {0};
        for (int i = 0; i < P; i++) {
            dl[pl->slot_device[i]] += sl[i];
            int x = pl->slot_expert[(size_t)layer * P + i];
            if (x >= 0) per[x] += sl[i];
            if (fz_wild(sl[i]) || sl[i] < 0) fz_fail("slot %g", sl[i]);
        }
        for (int i = 0; i < D; i++) top = dl[i] / pl->device_speed[i] > top ? dl[i] / pl->device_speed[i] : top;
        if (!fz_extreme && fabs(top - *mx) > 1e-9 * top) fz_fail("max %g, device %g", *mx, top);
        double ld_sum = 0;
        for (int i = 0; i < E; i++) ld_sum += ld[i];
        for (int i = 0; i < E; i++)
            if (fabs(per[i] - ld[i]) > 1e-9 * ld[i] + 1e-12 * (ld_sum + *mx) && !fz_extreme) {
                fz_fail("expert %g != %g i %d layer %d maxl %g", per[i], ld[i], i, layer, *mx);
            }
    }
    fz_release();
    fz_where = "pick";
    int64_t ps = moe_ep_pick_slot(pl, layer, fz_chance(.1) ? fz_bad_i32() : fz_int(0, E - 1), fz_u64(), &e);
    if (ps >= P) fz_fail("slot");
    if (ps >= 0 && pl->device_inactive[pl->slot_device[ps]]) fz_fail("inactive");
}
/* Experts dealt at random, so that some have several copies and some slots are empty. */
static void split_case(void)
{
    int E = fz_grow(fz_int(1, 10), FZ_EXPERTS), L = fz_int(1, 2);
    int32_t per_device[FZ_DEVICES], nodes[FZ_DEVICES];
    double speed[FZ_DEVICES];
    uint8_t inactive[FZ_DEVICES];
    moe_ep_shape shape;
    moe_ep_error e = fz_stale;
    make_shape(&shape, E, per_device, nodes, speed, inactive);
    if (!make_placement(L, E, &shape)) return;
    int P = PL.num_slots;
    for (int l = 0; l < L; l++)
        for (int i = 0; i < P; i++)
            PL.slot_expert[l * P + i] = i < E ? i : fz_chance(.2) ? -1 : fz_int(0, E - 1);
    for (int l = 0; l < L; l++)
        for (int i = P - 1; i > 0; i--) {
            int j = fz_int(0, i);
            int32_t t = PL.slot_expert[l * P + i];
            PL.slot_expert[l * P + i] = PL.slot_expert[l * P + j];
            PL.slot_expert[l * P + j] = t;
        }
    fz_where = "placement_index";
    moe_ep_status s = moe_ep_placement_index(&PL, &e);
    fz_error(s, &e);
    if (s == 0) split_one(&PL, E);
}

FUZZ_TARGET(split)
