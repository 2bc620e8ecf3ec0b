/* tests/fuzz/fuzz_dispatch.c - section 7: permutations, layouts of other frameworks
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

static void dispatch_case(void)
{
    int E = fz_grow(fz_int(1, 9), 70), K = fz_int(1, 4);
    int64_t T = fz_grow(fz_int(0, 10), 80), n = T * K;
    int32_t *ids = fz_in(4 * n);
    int bad = 0;
    for (int i = 0; i < n; i++) {
        ids[i] = fz_chance(.1) ? -1 : fz_int(0, E - 1);
        if (fz_chance(.01)) {
            ids[i] = fz_chance(.5) ? E : -2;
            bad = 1;
        }
    }
    moe_ep_error e = fz_stale;
    moe_ep_status s;
    int64_t *of = fz_out(8 * (E + 1));
    int32_t *rf = fz_out(4 * n), *fr = fz_out(4 * n);
    fz_seal();
    fz_where = "permute";
    s = moe_ep_permute(ids, n, E, of, rf, fr, &e);
    fz_error(s, &e);
    fz_untouched(s);
    if ((s == 0) == bad) fz_fail("bad %d", s);
    if (s == 0) {
        for (int64_t r = 0; r < of[E]; r++)
            if (rf[r] < 0 || rf[r] >= n || fr[rf[r]] != r) fz_fail("inverse");
        for (int x = 0; x < E; x++)
            for (int64_t r = of[x]; r < of[x + 1]; r++)
                if (ids[rf[r]] != x || (r > of[x] && rf[r] < rf[r - 1])) fz_fail("order");
        int H = fz_int(1, 4);
        float *x = fz_work(4 * T * H), *rows = fz_work(4 * n * H), *y = fz_work(4 * T * H), *w = fz_work(4 * n);
        for (int i = 0; i < T * H; i++) x[i] = fz_int(0, 9);
        for (int i = 0; i < n; i++) w[i] = 1;
        s = moe_ep_gather(x, T, H, K, rf, of[E], rows, &e);
        if (s) fz_fail("gather %d", s);
        s = moe_ep_combine(rows, of[E], fr, w, T, K, H, y, &e);
        if (s) fz_fail("combine %d", s);
        else
            for (int t = 0; t < T; t++) {
                int m = 0;
                for (int k = 0; k < K; k++) m += ids[t * K + k] >= 0;
                for (int h = 0; h < H; h++)
                    if (y[t * H + h] != m * x[t * H + h]) fz_fail("round trip");
            }
        if (n) {
            rf[fz_u64() % n] = fz_bad_i32();
            fr[fz_u64() % n] = fz_bad_i32();
        }
        moe_ep_gather(x, T, H, K, rf, of[E], rows, &e);
        moe_ep_combine(rows, of[E], fr, w, T, K, H, y, &e);
        fz_where = "binned";
        int C = fz_int(1, 4);
        int32_t *sf = fz_work(4 * E * C);
        if (fz_chance(.2)) of[fz_int(0, E)] = fz_bad_i64();
        if (n > 0 && of[E] >= 0 && of[E] <= n) moe_ep_binned_rows(of, rf, E, C, sf, &e);
    }
    fz_release();
    fz_where = "align";
    moe_ep_align_desc d;
    memset(&d, 0, sizeof d);
    d.num_experts = fz_chance(.05) ? fz_bad_i32() : E;
    d.block_size = fz_chance(.1) ? fz_bad_i32() : fz_int(1, 5);
    d.pad_sorted_ids = fz_int(0, 1);
    d.old_buffer = fz_int(0, 1);
    int32_t *mp = fz_in(4 * E);
    for (int i = 0; i < E; i++) mp[i] = fz_chance(.02) ? fz_bad_i32() : fz_chance(.4) ? -1 : fz_int(0, E - 1);
    if (fz_chance(.4) && d.num_experts == E) d.expert_map = mp;
    d.ignore_invalid = fz_int(0, 1);
    d.skip_foreign = fz_int(0, 1);
    int64_t sl, nb;
    s = moe_ep_align_sizes(&d, n, &sl, &nb, &e);
    fz_error(s, &e);
    if (s == 0 && sl < 100000 && nb < 100000 && d.num_experts == E) {
        int32_t *so = fz_out(4 * sl), *be = fz_out(4 * nb);
        int64_t *pr = fz_out(8);
        s = moe_ep_align_block(&d, ids, n, so, be, pr, fz_scratch(), &e);
        fz_scratch_done();
        fz_error(s, &e);
        fz_untouched(s);
        if (s == 0 && *pr > sl) fz_fail("padded");
    }
    fz_release();
    fz_where = "vllm";
    {
        int nl = fz_chance(.1) ? fz_bad_i32() : fz_int(1, E),
            fe = fz_chance(.1) ? fz_bad_i32() : fz_int(0, nl >= 0 && E > nl ? E - nl : 0);
        if (nl > E && nl < 1000) nl = E;
        int na = nl < 1 || nl > E ? E : nl;
        int64_t *o = fz_out(8 * (na + 1));
        int32_t *a = fz_out(4 * n), *b = fz_out(4 * n);
        s = moe_ep_vllm_permute(ids, n, E, fe, nl, fz_chance(.3) ? mp : NULL, o, a, b, fz_scratch(), &e);
        fz_scratch_done();
        fz_end(s, &e);
    }
    fz_where = "sglang";
    {
        int32_t *a = fz_out(4 * n), *b = fz_out(4 * n);
        int64_t *g = fz_out(8 * (E + 1));
        s = fz_chance(.5) ? moe_ep_sglang_preprocess(ids, n, E, a, b, g, &e)
                          : moe_ep_sglang_preprocess_keep(ids, n, E, a, b, g, &e);
        fz_end(s, &e);
    }
    fz_where = "trtllm";
    {
        int pd = fz_chance(.1) ? fz_bad_i32() : fz_int(1, 4);
        int64_t mr = fz_chance(.2) ? fz_int(0, 20) : n + E * 4;
        int64_t *o = fz_out(8 * (E + 1));
        int32_t *a = fz_out(4 * n), *b = fz_out(4 * mr), *c = fz_out(4 * mr);
        s = moe_ep_trtllm_permute(ids, T, K, E, pd, o, a, b, c, mr, fz_scratch(), &e);
        fz_scratch_done();
        fz_end(s, &e);
    }
    fz_where = "megablocks";
    {
        int32_t *a = fz_out(4 * n), *b = fz_out(4 * n);
        int64_t *c = fz_out(8 * E), *bi = fz_out(8 * E), *pb = fz_out(8 * E);
        s = moe_ep_megablocks_bins(ids, n, E, fz_chance(.2) ? fz_bad_i32() : 128, a, b, c, bi, pb, &e);
        fz_end(s, &e);
    }
    fz_where = "megatron";
    {
        uint8_t *m = fz_out(T * E);
        s = moe_ep_routing_map(ids, T, K, E, m, &e);
        fz_error(s, &e);
        fz_untouched(s);
        uint8_t *mm = fz_in(T * E);
        for (int i = 0; i < T * E; i++) mm[i] = fz_chance(.05) ? (uint8_t)fz_u64() : fz_chance(.3);
        fz_release();
        int64_t mr = fz_int(0, (int)(T * E));
        int64_t *o = fz_out(8 * (E + 1));
        int32_t *t = fz_out(4 * mr);
        s = moe_ep_megatron_permute(mm, T, E, o, t, mr, &e);
        fz_end(s, &e);
        int C = fz_chance(.1) ? fz_bad_i32() : fz_int(1, T > 0 ? T : 1);
        int Ca = C < 1 || C > T ? 1 : C;
        t = fz_out(4 * E * Ca);
        s = moe_ep_megatron_drop_and_pad(mm, T, E, C, t, &e);
        fz_end(s, &e);
        uint8_t *pm = fz_out(T * E);
        s = moe_ep_megatron_pad_map(mm, T, E, fz_chance(.2) ? fz_bad_i32() : fz_int(1, 4), pm, &e);
        fz_end(s, &e);
    }
    fz_where = "sort_chunks";
    {
        int k = fz_int(1, 5);
        int64_t sz[5];
        int32_t or [5];
        for (int i = 0; i < k; i++) {
            sz[i] = fz_chance(.05) ? fz_bad_i64() : fz_int(0, 4);
            or [i] = fz_chance(.1) ? fz_bad_i32() : i;
        }
        for (int i = k - 1; i > 0; i--) {
            int j = fz_int(0, i);
            int t = or [i];
            or [i] = or [j];
            or [j] = t;
        }
        if (fz_chance(.1) && k >= 4) {
            or [0] = 0;
            or [1] = 3;
            or [2] = 3;
            or [3] = 0;
        }
        int64_t mr = fz_int(0, 20);
        int32_t *rf2 = fz_out(4 * mr);
        int64_t *nr = fz_out(8);
        s = moe_ep_sort_chunks(sz, or, k, rf2, mr, nr, fz_scratch(), &e);
        fz_scratch_done();
        fz_end(s, &e);
    }
    fz_where = "tt_idx";
    {
        int R = fz_int(1, 3), ee = fz_int(1, 4);
        int64_t c[12];
        for (int i = 0; i < 12; i++) c[i] = fz_chance(.02) ? fz_bad_i64() : fz_int(0, 4);
        int64_t ml = fz_int(0, 100);
        int32_t *rf2 = fz_out(4 * ml);
        int64_t *ms = fz_out(8 * ee), *mo = fz_out(8 * ee);
        s = moe_ep_torchtitan_permute_indices(c, ee, R, ml, fz_chance(.1) ? fz_bad_i32() : fz_int(1, 8), rf2,
                                              ms, mo, &e);
        fz_end(s, &e);
    }
    fz_where = "align_batched";
    {
        int64_t *c = fz_in(8 * E);
        int mt = fz_chance(.05) ? fz_bad_i32() : fz_int(0, 6);
        int B = fz_chance(.1) ? fz_int(-1, 0) : fz_int(1, 5);
        if ((int64_t)mt < 1000 && (B < 100 || 1)) {
            for (int i = 0; i < E; i++) c[i] = fz_chance(.03) ? fz_bad_i64() : fz_int(0, mt > 0 ? mt : 0);
            int64_t tot = (int64_t)E * (mt > 0 ? ((int64_t)(mt + B - 1) / (B > 0 ? B : 1) + 1) *
                                                     (int64_t)(B > 0 && B < 100 ? B : 1)
                                               : 1);
            int32_t *a = fz_work(4 * (tot + 1) + 4096), *b = fz_work(4 * tot + 4096);
            int64_t pr;
            if (B < 100) {
                s = moe_ep_align_batched(c, E, mt, B, a, b, &pr, &e);
                fz_error(s, &e);
            }
        }
    }
    fz_where = "padded_offsets";
    {
        int64_t *c = fz_in(8 * E);
        for (int i = 0; i < E; i++) c[i] = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 9);
        int64_t *o = fz_out(8 * (E + 1));
        s = moe_ep_padded_offsets(c, E, fz_chance(.3) ? fz_bad_i64() : fz_int(1, 5),
                                  fz_chance(.2) ? fz_bad_i64() : 0, o, &e);
        fz_end(s, &e);
    }
    fz_where = "deepep";
    {
        int R = fz_chance(.1) ? fz_bad_i32() : fz_int(1, E);
        int Ra = R < 1 || R > 100 ? 1 : R;
        int rpn = fz_chance(.2) ? fz_bad_i32() : fz_int(0, 3);
        moe_ep_layout l;
        memset(&l, 0, sizeof l);
        l.tokens_per_rank = fz_out(8 * Ra);
        l.tokens_per_node = fz_out(8 * Ra);
        l.tokens_per_expert = fz_out(8 * E);
        l.is_token_in_rank = fz_out(T * Ra);
        l.token_idx_in_rank = fz_out(4 * T * Ra);
        int32_t *dv = fz_in(4 * E);
        for (int i = 0; i < E; i++) dv[i] = fz_chance(.02) ? fz_bad_i32() : fz_int(0, Ra - 1);
        if (R <= 100) {
            s = moe_ep_deepep_layout(ids, T, K, E, R, rpn, fz_chance(.5) ? dv : NULL, &l, &e);
            fz_error(s, &e);
            fz_untouched(s);
        }
        fz_release();
    }
    if (fz_grows) { /* rows that fit a buffer, and two more frameworks */
        int R = fz_int(1, 5);
        int64_t *rows = fz_in(8 * R * R), *kept = fz_out(8 * R * R), *from = fz_out(8 * R * R), *lost = fz_out(8 * R);
        int64_t room = fz_chance(.1) ? fz_bad_i64() : fz_int(0, 20);
        for (int i = 0; i < R * R; i++) rows[i] = fz_chance(.03) ? fz_bad_i64() : fz_int(0, 9);
        fz_where = "receive_buffer";
        s = moe_ep_receive_buffer(rows, R, room, kept, from, lost, &e);
        fz_error(s, &e);
        fz_untouched(s);
        for (int j = 0; s == 0 && j < R; j++) {
            int64_t got = 0, sent = 0;
            for (int i = 0; i < R; i++) got += kept[i * R + j], sent += rows[i * R + j];
            if (got > room || got + lost[j] != sent) fz_fail("kept %lld of %lld", (long long)got, (long long)sent);
        }
        fz_release();
        int64_t *o2 = fz_out(8 * (E + 1));
        int32_t *r2 = fz_out(4 * n), *t2 = fz_out(4 * n);
        fz_where = "torchtitan_reorder";
        s = moe_ep_torchtitan_reorder(ids, T, K, E, o2, r2, t2, &e);
        fz_error(s, &e);
        fz_untouched(s);
        for (int64_t i = 0; s == 0 && i < o2[E]; i++)
            if (t2[i] != r2[i] / K) fz_fail("token %d of row %d", t2[i], r2[i]);
        fz_release();
        o2 = fz_out(8 * E);
        r2 = fz_out(4 * n);
        t2 = fz_out(4 * n);
        fz_where = "maxtext_permute";
        int roll = fz_chance(.1) ? fz_bad_i32() : fz_int(0, E - 1);
        s = moe_ep_maxtext_permute(ids, n, E, roll, o2, r2, t2, &e);
        fz_error(s, &e);
        fz_untouched(s);
        for (int64_t i = 0; s == 0 && i < n; i++)
            if (t2[i] >= 0 && ids[r2[i]] != (t2[i] + roll) % E) fz_fail("row %d in group %d", r2[i], t2[i]);
        fz_release();
    }
    fz_where = "send_counts";
    {
        int D = fz_int(1, 4);
        int64_t *c = fz_out(8 * D), *k = fz_out(8);
        s = moe_ep_send_counts(ids, n, E, NULL, D, c, k, &e);
        fz_end(s, &e);
    }
}

FUZZ_TARGET(dispatch)
