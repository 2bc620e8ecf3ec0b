/* tests/test_basics.c - section 0: version, status, error text, scratch memory, random numbers.
 * SPDX-License-Identifier: MIT
 *
 * A private static copy of the implementation, so that the scratch arena can be looked into; its malloc
 * and free are counted here. */
#include "t.h"

static int live_blocks;            /* malloc'd by the library and not yet freed */
static int malloc_calls, refuse_malloc;

static void *counted_malloc(size_t bytes)
{
    void *p;
    malloc_calls++;
    if (refuse_malloc) return NULL;
    p = malloc(bytes);
    if (p) live_blocks++;
    return p;
}

static void counted_free(void *p)
{
    if (p) live_blocks--;
    free(p);
}

#define malloc counted_malloc
#define free counted_free
#define MOE_EP_STATIC
#ifndef MOE_EP_NO_BLAS
#  define MOE_EP_NO_BLAS
#endif
#include "moe_ep.h"
#undef malloc
#undef free

/* ---- version and status -------------------------------------------------------------------------- */

TEST(version_string_equals_its_numbers)
{
    char text[64];
    snprintf(text, sizeof text, "%d.%d.%d", MOE_EP_VERSION_MAJOR, MOE_EP_VERSION_MINOR, MOE_EP_VERSION_PATCH);
    CHECK_STR(moe_ep_version(), text);
    CHECK_STR(MOE_EP_VERSION_STRING, text);
    CHECK_I64(MOE_EP_VERSION,
              MOE_EP_VERSION_MAJOR * 1000000 + MOE_EP_VERSION_MINOR * 1000 + MOE_EP_VERSION_PATCH);
    CHECK(MOE_EP_VERSION_MINOR < 1000 && MOE_EP_VERSION_PATCH < 1000);
#if MOE_EP_VERSION < 1
#  error "MOE_EP_VERSION must be usable by the preprocessor"
#endif
}

#define VALUE_OF(name, value, text) value,
#define TEXT_OF(name, value, text) text,
#define ENUM_OF(name, value, text) (int)MOE_EP_##name,
static const int status_values[] = {MOE_EP_STATUS_LIST(VALUE_OF)};
static const int status_enums[] = {MOE_EP_STATUS_LIST(ENUM_OF)};
static const char *const status_texts[] = {MOE_EP_STATUS_LIST(TEXT_OF)};

TEST(statuses_are_distinct_and_have_distinct_texts)
{
    int n = (int)(sizeof status_values / sizeof status_values[0]), i, j;
    CHECK(n >= 18);
    CHECK_I64(MOE_EP_OK, 0);
    for (i = 0; i < n; i++) {
        CHECK_I64(status_enums[i], status_values[i]);
        CHECK(i == 0 ? status_values[i] == 0 : status_values[i] < 0);
        CHECK_STR(moe_ep_status_str((moe_ep_status)status_values[i]), status_texts[i]);
        CHECK(strlen(status_texts[i]) >= 2);
        for (j = 0; j < i; j++) {
            CHECK(status_values[i] != status_values[j]);
            CHECK(strcmp(status_texts[i], status_texts[j]) != 0);
        }
    }
}

TEST(status_codes_keep_their_numbers)
{
    CHECK_I64(MOE_EP_ERR_NULL, -1);
    CHECK_I64(MOE_EP_ERR_SIZE, -2);
    CHECK_I64(MOE_EP_ERR_RANGE, -3);
    CHECK_I64(MOE_EP_ERR_EXPERT_ID, -4);
    CHECK_I64(MOE_EP_ERR_DEVICE_ID, -5);
    CHECK_I64(MOE_EP_ERR_TOP_K, -6);
    CHECK_I64(MOE_EP_ERR_NAN, -7);
    CHECK_I64(MOE_EP_ERR_NEGATIVE, -8);
    CHECK_I64(MOE_EP_ERR_OVERFLOW, -9);
    CHECK_I64(MOE_EP_ERR_SCRATCH, -10);
    CHECK_I64(MOE_EP_ERR_MEMORY, -11);
    CHECK_I64(MOE_EP_ERR_SLOTS, -12);
    CHECK_I64(MOE_EP_ERR_CONFIG, -13);
    CHECK_I64(MOE_EP_ERR_PLACEMENT, -14);
    CHECK_I64(MOE_EP_ERR_LOST_EXPERT, -15);
    CHECK_I64(MOE_EP_ERR_INFEASIBLE, -16);
    CHECK_I64(MOE_EP_ERR_UNSUPPORTED, -17);
}

TEST(unknown_status_has_a_text_too)
{
    CHECK_STR(moe_ep_status_str((moe_ep_status)1), "unknown status");
    CHECK_STR(moe_ep_status_str((moe_ep_status)-1000), "unknown status");
    CHECK_STR(moe_ep_status_str(MOE_EP_STATUS_FORCE_INT), "unknown status");
    CHECK(strncmp(moe_ep_status_str(MOE_EP_ERR_TOP_K), "K is larger", 11) == 0); /* the example in the header */
}

/* ---- error text ---------------------------------------------------------------------------------- */

static moe_ep_error error_of(moe_ep_status status, const char *arg, const char *what, int64_t index, double value)
{
    moe_ep_error e;
    memset(&e, 0, sizeof e);
    e.status = status;
    e.arg = arg;
    e.what = what;
    e.index = index;
    e.value = value;
    return e;
}

/* Everything an error says but its words. */
static void error_is(const moe_ep_error *err, const char *arg, int64_t index, double value)
{
    CHECK_STR(err->arg, arg);
    CHECK_I64(err->index, index);
    CHECK_NEAR(err->value, value, 0, 0);
}

static const char *text_of(moe_ep_error e)
{
    static char buf[400];
    size_t n = moe_ep_error_text(&e, buf, sizeof buf);
    CHECK_I64(n, strlen(buf));
    return buf;
}

TEST(error_text_names_argument_element_value_and_status)
{
    CHECK_STR(text_of(error_of(MOE_EP_ERR_EXPERT_ID, "ids", "there are 8 experts", 5, 12.0)),
              "ids[5] = 12: there are 8 experts (an expert id is neither -1 nor in 0..E-1)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_RANGE, "d.beta", "must be in 0..1", -1, -0.25)),
              "d.beta = -0.25: must be in 0..1 (a value lies outside its allowed range)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_NULL, "loads", "must not be NULL", -1, 0.0)),
              "loads: must not be NULL (a required pointer is NULL)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_OVERFLOW, "T*K", "too many rows", -1, 0.0)),
              "T*K: too many rows (a product or sum of sizes does not fit)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_OVERFLOW, "T", "too many rows", -1, 3e18)),
              "T = 3e18: too many rows (a product or sum of sizes does not fit)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_RANGE, "a", "b", INT64_MAX, 0.0)),
              "a[9223372036854775807] = 0: b (a value lies outside its allowed range)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_SIZE, "E", "must be at least 1", -1, 0.0)), /* a zero is a value ... */
              "E = 0: must be at least 1 (a size is zero, negative or does not fit another one)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_CONFIG, "up", "differs", -1, 0.5)), /* a fraction is a value too */
              "up = 0.5: differs (the options contradict each other)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_CONFIG, "up", "must be NULL here", -1, 0.0)), /* ... of a number only */
              "up: must be NULL here (the options contradict each other)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_CONFIG, "slots", "differs", 0, 0.0)), /* an element has one, 0 included */
              "slots[0] = 0: differs (the options contradict each other)");
    CHECK_STR(text_of(error_of(MOE_EP_ERR_RANGE, "name", "nobody has it", -1, 0.0)), /* a name is no number */
              "name: nobody has it (a value lies outside its allowed range)");
    CHECK_STR(text_of(error_of((moe_ep_status)-99, NULL, NULL, 0, 1.0)), "?[0] = 1: ? (unknown status)");
}

TEST(error_text_of_success_is_ok)
{
    char buf[8] = "xxxxxxx";
    moe_ep_error e;
    memset(&e, 0, sizeof e);
    CHECK_I64(moe_ep_error_text(NULL, buf, sizeof buf), 2);
    CHECK_STR(buf, "ok");
    CHECK_I64(moe_ep_error_text(&e, buf, sizeof buf), 2);
    CHECK_STR(buf, "ok");
    moe_epi_ok(&e);
    CHECK_I64(e.status, MOE_EP_OK);
    CHECK_STR(e.arg, "");
    CHECK_STR(e.what, "ok");
    CHECK_I64(e.index, -1);
    CHECK(e.value >= 0.0 && e.value <= 0.0);
    moe_epi_ok(NULL);
    CHECK_I64(moe_epi_fail(NULL, MOE_EP_ERR_SIZE, "n", "w", 0, 0.0), MOE_EP_ERR_SIZE);
    CHECK_I64(moe_epi_null(&e, "loads"), MOE_EP_ERR_NULL);
    CHECK_I64(e.status, MOE_EP_ERR_NULL);
    error_is(&e, "loads", -1, 0.0);
}

TEST(error_text_is_cut_at_the_buffer_and_always_terminated)
{
    moe_ep_error e = error_of(MOE_EP_ERR_EXPERT_ID, "ids", "there are 8 experts", 5, 12.0);
    char full[200], cut[200];
    size_t n = moe_ep_error_text(&e, full, sizeof full), bytes;
    CHECK_I64(moe_ep_error_text(&e, NULL, 0), n);
    CHECK_I64(moe_ep_error_text(&e, NULL, 50), n);
    for (bytes = 0; bytes <= n + 2; bytes++) {
        size_t kept = bytes == 0 ? 0 : bytes - 1 < n ? bytes - 1 : n;
        memset(cut, '#', sizeof cut);
        CHECK_I64(moe_ep_error_text(&e, cut, bytes), n);
        CHECK(memcmp(cut, full, kept) == 0);
        if (bytes > 0) CHECK_I64(cut[kept], 0);
        CHECK_I64(cut[bytes], '#'); /* nothing is written behind the buffer */
    }
}

static const char *number(double v)
{
    static char buf[64];
    moe_epi_text t;
    memset(buf, 0, sizeof buf);
    t.buf = buf;
    t.bytes = sizeof buf;
    t.len = 0;
    moe_epi_putd(&t, v);
    return buf;
}

TEST(numbers_have_six_significant_digits)
{
    static const struct {
        double value;
        const char *text;
    } row[] = {
        {0.0, "0"}, {-0.0, "0"}, {1.0, "1"}, {-1.0, "-1"}, {12.5, "12.5"}, {1.0 / 3.0, "0.333333"},
        {2.0 / 3.0, "0.666667"}, {-2.0 / 3.0, "-0.666667"}, {0.1, "0.1"}, {0.05, "0.05"}, {0.99999949, "0.999999"},
        {0.99999951, "1"}, {999999.4, "999999"}, {999999.6, "1e6"}, {1234567.25, "1.23457e6"}, {123456.5, "123457"},
        {10.00005, "10.0001"}, {100.001, "100.001"}, {3.14159265358979, "3.14159"}, {1e-5, "0.00001"},
        {1.5e-6, "1.5e-6"}, {1e-300, "1e-300"}, {4.9406564584124654e-324, "4.94066e-324"}, {1e15, "1000000000000000"},
        {9007199254740991.0, "9007199254740991"}, {9007199254740992.0, "9.0072e15"}, {1e300, "1e300"},
        {1.7976931348623157e308, "1.79769e308"}, {-2.5e20, "-2.5e20"}, {1048576.0, "1048576"}, {5e-1, "0.5"},
        {99999.95, "100000"}, {0.000123456789, "0.000123457"}};
    int i, n = (int)(sizeof row / sizeof row[0]);
    volatile double zero = 0.0;
    for (i = 0; i < n; i++)
        if (t_subnormals() || strcmp(row[i].text, "4.94066e-324") != 0) CHECK_STR(number(row[i].value), row[i].text);
    CHECK_STR(number(1.0 / zero), "infinity");
    CHECK_STR(number(-1.0 / zero), "-infinity");
    CHECK_STR(number(zero / zero), "NaN");
}

TEST(numbers_agree_with_printf_on_random_values)
{
    uint64_t state = t_seed;
    int i;
    for (i = 0; i < 20000; i++) {
        double v = (t_unit(&state) - 0.5) * pow(10.0, (double)t_below(&state, 60) - 30.0), ours, printed;
        char want[64];
        CHECK(strlen(number(v)) <= 17);
        ours = strtod(number(v), NULL);
        snprintf(want, sizeof want, "%.5e", v);
        printed = strtod(want, NULL);
        /* whole numbers are printed in full; a tie in the seventh digit may go either way */
        CHECK(fabs(ours - v) <= fabs(printed - v) * (1.0 + 1e-6) + fabs(v) * 1e-12);
        STOP_IF_FAILED("value %.17g", v);
    }
}

TEST(integers_are_printed_in_full)
{
    static const struct {
        int64_t value;
        const char *text;
    } row[] = {{0, "0"},
               {-1, "-1"},
               {10, "10"},
               {INT64_MAX, "9223372036854775807"},
               {INT64_MIN, "-9223372036854775808"}};
    int i;
    for (i = 0; i < 5; i++) {
        char buf[32] = "";
        moe_epi_text t = {NULL, 0, 0};
        t.buf = buf;
        t.bytes = sizeof buf;
        moe_epi_puti(&t, row[i].value);
        buf[t.len] = '\0';
        CHECK_STR(buf, row[i].text);
    }
}

TEST(finite_is_decided_from_the_bits)
{
    volatile double zero = 0.0;
    CHECK(moe_epi_finite(0.0) && moe_epi_finite(-0.0) && moe_epi_finite(1.7976931348623157e308));
    CHECK(moe_epi_finite(-1.7976931348623157e308) && moe_epi_finite(4.9406564584124654e-324));
    CHECK(!moe_epi_finite(1.0 / zero) && !moe_epi_finite(-1.0 / zero));
    CHECK(!moe_epi_finite(zero / zero) && !moe_epi_finite(-(zero / zero)));
}

/* The upper 64 bits of a * b, from 32-bit halves. */
static uint64_t high_half(uint64_t a, uint64_t b)
{
    uint64_t al = a & 0xffffffffu, ah = a >> 32, bl = b & 0xffffffffu, bh = b >> 32;
    uint64_t middle = ah * bl + (al * bl >> 32), carry = al * bh + (middle & 0xffffffffu);
    return ah * bh + (middle >> 32) + (carry >> 32);
}

TEST(products_that_do_not_fit_are_seen)
{
    static const int64_t n[] = {0, 1, 2, 3, 1 << 20, INT64_C(3037000499), INT64_C(3037000500), INT64_MAX / 2,
                                INT64_MAX / 2 + 1, INT64_MAX - 1, INT64_MAX};
    int i, j, count = (int)(sizeof n / sizeof n[0]);
    for (i = 0; i < count; i++)
        for (j = 0; j < count; j++) {
            int64_t out = -7;
            int fits = moe_epi_mul(n[i], n[j], &out);
            uint64_t product = (uint64_t)n[i] * (uint64_t)n[j];
            int want = high_half((uint64_t)n[i], (uint64_t)n[j]) == 0 && product <= (uint64_t)INT64_MAX;
            CHECK_I64(fits, want);
            CHECK_I64(out, want ? (int64_t)product : -7);
        }
}

/* ---- scratch memory ------------------------------------------------------------------------------ */

TEST(needs_are_rounded_up_to_64_and_saturate)
{
    size_t total = 0;
    moe_epi_need(&total, 0, 8);
    CHECK_I64(total, 0);
    moe_epi_need(&total, 1, 1);
    CHECK_I64(total, 64);
    moe_epi_need(&total, 8, 8);
    CHECK_I64(total, 128);
    moe_epi_need(&total, 9, 8);
    CHECK_I64(total, 256);
    moe_epi_need(&total, INT64_MAX, 8);
    CHECK(total == SIZE_MAX);
    moe_epi_need(&total, 1, 8);
    CHECK(total == SIZE_MAX);
    total = SIZE_MAX - 63u;
    moe_epi_need(&total, 1, 1);
    CHECK(total == SIZE_MAX);
    total = 0; /* a quarter of what can be addressed, and one element more */
    moe_epi_need(&total, (int64_t)(SIZE_MAX / 4u / 8u), 8);
    CHECK(total == (SIZE_MAX / 4u / 8u * 8u + 63u) / 64u * 64u);
    moe_epi_need(&total, (int64_t)(SIZE_MAX / 4u / 8u) + 1, 8);
    CHECK(total == SIZE_MAX);
}

/* Opens room for 10 int64 and 3 bytes, checks that the pieces are aligned, apart and inside. */
static moe_ep_status use_scratch(moe_ep_scratch *s, moe_ep_error *err)
{
    moe_epi_arena a;
    size_t total = 0;
    int64_t *numbers;
    char *bytes;
    moe_ep_status status;
    moe_epi_need(&total, 10, sizeof *numbers);
    moe_epi_need(&total, 3, 1);
    CHECK_I64(total, 128 + 64);
    status = moe_epi_arena_open(&a, s, total, err);
    if (status != MOE_EP_OK) return status;
    numbers = (int64_t *)moe_epi_take(&a, 10, sizeof *numbers);
    bytes = (char *)moe_epi_take(&a, 3, 1);
    CHECK_I64((uintptr_t)numbers % 64, 0);
    CHECK_I64(bytes - (char *)numbers, 128);
    memset(numbers, 1, 10 * sizeof *numbers);
    memset(bytes, 2, 3);
    if (s) CHECK((char *)numbers >= (char *)s->buf && bytes + 64 <= (char *)s->buf + s->bytes);
    CHECK_I64(a.used, total);
    CHECK_I64(a.bytes, total);
    moe_epi_arena_close(&a);
    return MOE_EP_OK;
}

TEST(null_scratch_allocates_and_frees_inside_the_call)
{
    moe_ep_error e;
    malloc_calls = 0;
    CHECK_I64(use_scratch(NULL, &e), MOE_EP_OK);
    CHECK_I64(malloc_calls, 1);
    CHECK_I64(live_blocks, 0);
    refuse_malloc = 1;
    CHECK_I64(use_scratch(NULL, &e), MOE_EP_ERR_MEMORY);
    refuse_malloc = 0;
    CHECK_I64(e.status, MOE_EP_ERR_MEMORY);
    error_is(&e, "scratch", -1, 192 + 64);
    CHECK_I64(live_blocks, 0);
}

TEST(zeroed_scratch_grows_and_is_kept_for_the_next_call)
{
    moe_ep_scratch s;
    moe_epi_arena a;
    void *first;
    memset(&s, 0, sizeof s);
    malloc_calls = 0;
    CHECK_I64(use_scratch(&s, NULL), MOE_EP_OK);
    CHECK_I64(s.need, 192 + 64);
    CHECK_I64(s.bytes, s.need);
    first = s.buf;
    CHECK_I64(use_scratch(&s, NULL), MOE_EP_OK);
    CHECK(s.buf == first);
    CHECK_I64(malloc_calls, 1);
    CHECK_I64(moe_epi_arena_open(&a, &s, 64, NULL), MOE_EP_OK); /* a smaller call keeps the larger memory */
    CHECK_I64(s.need, 128);
    CHECK_I64(s.bytes, 256);
    refuse_malloc = 1; /* what it holds survives a refused growth */
    CHECK_I64(moe_epi_arena_open(&a, &s, 4096, NULL), MOE_EP_ERR_MEMORY);
    refuse_malloc = 0;
    CHECK(s.buf == first && s.bytes == 256);
    CHECK_I64(s.need, 4096 + 64);
    CHECK_I64(moe_epi_arena_open(&a, &s, 4096, NULL), MOE_EP_OK);
    CHECK_I64(s.bytes, 4096 + 64);
    CHECK_I64(live_blocks, 1);
    moe_ep_scratch_free(&s);
    CHECK_I64(live_blocks, 0);
    CHECK(s.buf == NULL && s.bytes == 0);
    moe_ep_scratch_free(&s);
    CHECK_I64(use_scratch(&s, NULL), MOE_EP_OK); /* and may be used again */
    moe_ep_scratch_free(&s);
    CHECK_I64(live_blocks, 0);
}

TEST(fixed_scratch_never_allocates_and_tells_what_it_needs)
{
    char memory[512];
    moe_ep_error e;
    moe_ep_scratch s = moe_ep_scratch_fixed(memory, sizeof memory);
    size_t shift;
    malloc_calls = 0;
    moe_epi_ok(&e);
    CHECK(s.buf == memory && s.bytes == sizeof memory && s.fixed != 0 && s.need == 0);
    CHECK(s.alloc.alloc_fn == NULL && s.alloc.free_fn == NULL);
    for (shift = 0; shift < 64; shift++) { /* whatever the alignment of the caller's buffer */
        s = moe_ep_scratch_fixed(memory + shift, 256);
        CHECK_I64(use_scratch(&s, &e), MOE_EP_OK);
        CHECK_I64(e.status == MOE_EP_ERR_SCRATCH, 0);
        CHECK_I64(s.need, 256);
        s = moe_ep_scratch_fixed(memory + shift, 255); /* one byte too few */
        CHECK_I64(use_scratch(&s, &e), MOE_EP_ERR_SCRATCH);
        CHECK_I64(s.need, 256);
        CHECK_I64(e.status, MOE_EP_ERR_SCRATCH);
        error_is(&e, "scratch", -1, 256);
        moe_epi_ok(&e);
    }
    s = moe_ep_scratch_fixed(NULL, 1000); /* no buffer, whatever its size says */
    CHECK_I64(s.bytes, 0);
    CHECK_I64(use_scratch(&s, NULL), MOE_EP_ERR_SCRATCH);
    s.bytes = 1000;
    CHECK_I64(use_scratch(&s, NULL), MOE_EP_ERR_SCRATCH);
    s = moe_ep_scratch_fixed(memory, sizeof memory);
    moe_ep_scratch_free(&s);
    CHECK(s.buf == memory);
    moe_ep_scratch_free(NULL);
    CHECK_I64(malloc_calls, 0);
}

TEST(a_call_that_needs_nothing_takes_nothing)
{
    moe_epi_arena a;
    moe_ep_scratch s;
    memset(&s, 0, sizeof s);
    malloc_calls = 0;
    CHECK_I64(moe_epi_arena_open(&a, &s, 0, NULL), MOE_EP_OK);
    CHECK(moe_epi_take(&a, 0, 8) == NULL);
    moe_epi_arena_close(&a);
    CHECK_I64(s.need, 0);
    s = moe_ep_scratch_fixed(NULL, 0);
    CHECK_I64(moe_epi_arena_open(&a, &s, 0, NULL), MOE_EP_OK);
    CHECK_I64(moe_epi_arena_open(&a, NULL, 0, NULL), MOE_EP_OK);
    moe_epi_arena_close(&a);
    CHECK_I64(malloc_calls, 0);
}

TEST(sizes_beyond_the_address_space_are_an_overflow)
{
    moe_epi_arena a;
    moe_ep_scratch s;
    moe_ep_error e;
    char memory[64];
    memset(&s, 0, sizeof s);
    CHECK_I64(moe_epi_arena_open(&a, &s, SIZE_MAX, &e), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(e.status, MOE_EP_ERR_OVERFLOW);
    error_is(&e, "scratch", -1, 0.0);
    CHECK_I64(moe_epi_arena_open(&a, &s, SIZE_MAX - 63u, &e), MOE_EP_ERR_OVERFLOW);
    CHECK_I64(moe_epi_arena_open(&a, NULL, SIZE_MAX, &e), MOE_EP_ERR_OVERFLOW);
    s = moe_ep_scratch_fixed(memory, sizeof memory);
    CHECK_I64(moe_epi_arena_open(&a, &s, SIZE_MAX - 64u, &e), MOE_EP_ERR_SCRATCH);
    CHECK(s.need == SIZE_MAX);
}

/* A caller's allocator that remembers what it was asked. */
typedef struct shelf {
    int live, refuse;
    size_t last_bytes, freed_bytes;
} shelf;

static void *shelf_take(void *user, size_t bytes)
{
    shelf *h = (shelf *)user;
    h->last_bytes = bytes;
    if (h->refuse) return NULL;
    h->live++;
    return malloc(bytes);
}

static void shelf_give(void *user, void *ptr, size_t bytes)
{
    shelf *h = (shelf *)user;
    h->live--;
    h->freed_bytes = bytes;
    free(ptr);
}

TEST(the_callers_allocator_is_used_for_everything)
{
    shelf h;
    moe_ep_scratch s;
    moe_ep_error e;
    memset(&h, 0, sizeof h);
    memset(&s, 0, sizeof s);
    s.alloc.alloc_fn = shelf_take;
    s.alloc.free_fn = shelf_give;
    s.alloc.user = &h;
    malloc_calls = 0;
    h.refuse = 1;
    CHECK_I64(use_scratch(&s, &e), MOE_EP_ERR_MEMORY);
    CHECK(s.buf == NULL && s.bytes == 0);
    h.refuse = 0;
    CHECK_I64(use_scratch(&s, &e), MOE_EP_OK);
    CHECK_I64(h.last_bytes, 256);
    CHECK_I64(h.live, 1);
    moe_ep_scratch_free(&s);
    CHECK_I64(h.live, 0);
    CHECK_I64(h.freed_bytes, 256);
    CHECK_I64(malloc_calls, 0);
}

TEST(an_allocator_has_both_functions_or_neither)
{
    shelf h;
    moe_ep_scratch s;
    moe_ep_error e;
    memset(&h, 0, sizeof h);
    memset(&s, 0, sizeof s);
    s.alloc.user = &h;
    s.alloc.alloc_fn = shelf_take;
    CHECK_I64(use_scratch(&s, &e), MOE_EP_ERR_CONFIG);
    error_is(&e, "scratch.alloc", -1, 0.0);
    s.alloc.alloc_fn = NULL;
    s.alloc.free_fn = shelf_give;
    CHECK_I64(use_scratch(&s, &e), MOE_EP_ERR_CONFIG);
    CHECK_I64(h.live, 0);
    CHECK_I64(live_blocks, 0);
    CHECK(s.buf == NULL);
}

/* ---- random numbers ------------------------------------------------------------------------------ */

TEST(generator_gives_the_published_sequence)
{
    /* xoshiro256** from the state 1, 2, 3, 4: the sequence its authors' C code prints */
    static const uint64_t want[10] = {
        UINT64_C(11520), UINT64_C(0), UINT64_C(1509978240), UINT64_C(1215971899390074240),
        UINT64_C(1216172134540287360), UINT64_C(607988272756665600), UINT64_C(16172922978634559625),
        UINT64_C(8476171486693032832), UINT64_C(10595114339597558777), UINT64_C(2904607092377533576)};
    moe_ep_rng r = {{1, 2, 3, 4}};
    int i;
    for (i = 0; i < 10; i++) CHECK(moe_ep_rng_u64(&r) == want[i]);
}

TEST(seeding_is_splitmix64)
{
    static const uint64_t seeds[3] = {0, 1, UINT64_MAX};
    static const uint64_t want[3][4] = {
        {UINT64_C(0x99ec5f36cb75f2b4), UINT64_C(0xbf6e1f784956452a), UINT64_C(0x1a5f849d4933e6e0),
         UINT64_C(0x6aa594f1262d2d2c)},
        {UINT64_C(0xb3f2af6d0fc710c5), UINT64_C(0x853b559647364cea), UINT64_C(0x92f89756082a4514),
         UINT64_C(0x642e1c7bc266a3a7)},
        {UINT64_C(0x8f5520d52a7ead08), UINT64_C(0xc476a018caa1802d), UINT64_C(0x81de31c0d260469e),
         UINT64_C(0xbf658d7e065f3c2f)}};
    int i, j;
    for (i = 0; i < 3; i++) {
        uint64_t state = seeds[i]; /* t_u64 is an independent splitmix64 */
        moe_ep_rng r = moe_ep_rng_seed(seeds[i]);
        for (j = 0; j < 4; j++) CHECK(r.s[j] == t_u64(&state));
        for (j = 0; j < 4; j++) CHECK(moe_ep_rng_u64(&r) == want[i][j]);
    }
}

TEST(doubles_are_in_the_unit_interval_with_53_bits)
{
    moe_ep_rng r = moe_ep_rng_seed(1), twin;
    double sum = 0.0, squares = 0.0, low = 1.0, high = 0.0;
    int i, n = 200000;
    CHECK_NEAR(moe_ep_rng_f64(&r), 0.70292183315885048, 0, 0); /* the example in the header */
    for (i = 0; i < n; i++) {
        double x;
        twin = r;
        x = moe_ep_rng_f64(&r);
        CHECK_NEAR(x, (double)(moe_ep_rng_u64(&twin) >> 11) / 9007199254740992.0, 0, 0);
        sum += x;
        squares += x * x;
        if (x < low) low = x;
        if (x > high) high = x;
    }
    CHECK(low >= 0.0 && high < 1.0 && low < 1e-3 && high > 1.0 - 1e-3);
    CHECK_NEAR(sum / n, 0.5, 0, 0.004);          /* 6 sigma */
    CHECK_NEAR(squares / n, 1.0 / 3.0, 0, 0.004);
}

TEST(below_stays_below_and_repeats_its_example)
{
    static const uint64_t want[6] = {1, 4, 2, 5, 5, 4};
    static const uint64_t bounds[] = {1, 2, 3, 7, 64, 1000003, UINT64_C(1) << 63, UINT64_MAX - 1, UINT64_MAX};
    moe_ep_rng r = moe_ep_rng_seed(1);
    int i, k;
    for (i = 0; i < 6; i++) CHECK(moe_ep_rng_below(&r, 6) == want[i]);
    for (k = 0; k < (int)(sizeof bounds / sizeof bounds[0]); k++)
        for (i = 0; i < 2000; i++) CHECK(moe_ep_rng_below(&r, bounds[k]) < bounds[k]);
    CHECK_I64(moe_ep_rng_below(&r, 0), 0);
    CHECK_I64(moe_ep_rng_below(&r, 1), 0);
}

/* The next number of a generator is that of a chosen one: its steps are turned round. */
static moe_ep_rng about_to_give(uint64_t wanted)
{
    moe_ep_rng r = {{1, 0, 3, 4}};
    uint64_t fifth = UINT64_C(0xcccccccccccccccd), ninth = UINT64_C(0x8e38e38e38e38e39), x; /* 1/5 and 1/9 mod 2^64 */
    CHECK(5 * fifth == 1 && 9 * ninth == 1);
    x = wanted * ninth;
    r.s[1] = ((x >> 7) | (x << 57)) * fifth;
    return r;
}

TEST(below_refuses_what_is_behind_the_last_whole_multiple)
{
    static const uint64_t bounds[] = {3, 6, 7, 1000003, UINT64_C(1) << 63, UINT64_MAX - 1};
    size_t i;
    for (i = 0; i < sizeof bounds / sizeof bounds[0]; i++) {
        const uint64_t n = bounds[i], limit = UINT64_MAX / n * n;
        uint64_t following;
        moe_ep_rng r = about_to_give(limit - 1), twin = r;
        CHECK(moe_ep_rng_u64(&twin) == limit - 1);
        CHECK(moe_ep_rng_below(&r, n) == n - 1);
        r = about_to_give(limit);
        twin = r;
        CHECK(moe_ep_rng_u64(&twin) == limit);
        do following = moe_ep_rng_u64(&twin);
        while (following >= limit);
        CHECK(moe_ep_rng_below(&r, n) == following % n);
    }
}

TEST(below_has_no_bias)
{
    /* For n = 3 * 2^62 a plain remainder would return values below 2^62 half of the time, not a third. */
    moe_ep_rng r = moe_ep_rng_seed(20240607);
    uint64_t quarter = UINT64_C(1) << 62;
    int64_t seen[3] = {0, 0, 0}, faces[6] = {0, 0, 0, 0, 0, 0};
    int i, n = 120000;
    double chi = 0.0;
    for (i = 0; i < n; i++) seen[moe_ep_rng_below(&r, 3 * quarter) / quarter]++;
    for (i = 0; i < 3; i++) CHECK_NEAR((double)seen[i] / n, 1.0 / 3.0, 0, 0.0082); /* 6 sigma */
    for (i = 0; i < n; i++) faces[moe_ep_rng_below(&r, 6)]++;
    for (i = 0; i < 6; i++) chi += ((double)faces[i] - n / 6.0) * ((double)faces[i] - n / 6.0) / (n / 6.0);
    CHECK(chi < 30.0); /* chi-square with 5 degrees: 30 has probability 1.5e-5 */
}

TEST(a_null_generator_gives_zero)
{
    CHECK_I64(moe_ep_rng_u64(NULL), 0);
    CHECK_NEAR(moe_ep_rng_f64(NULL), 0.0, 0, 0);
    CHECK_I64(moe_ep_rng_below(NULL, 10), 0);
}

/* ---- which instruction set ------------------------------------------------------------------------- */

#if !defined(MOE_EP_NO_SIMD) && defined(__x86_64__) && defined(__GNUC__)
TEST(instruction_sets_by_what_the_cpu_and_the_system_say)
{
    /* what cpuid says: leaf 1 ecx has FMA 12, OSXSAVE 27, F16C 29; leaf 7 ebx has AVX2 5, AVX-512 F 16, DQ 17, BW 30,
       VL 31; the system saves SSE and AVX (2, 4), and the mask and upper registers of AVX-512 (0x20, 0x40, 0x80) */
    static const unsigned one[] = {1u << 12, 1u << 27, 1u << 29}, wide[] = {1u << 16, 1u << 17, 1u << 30, 1u << 31};
    static const unsigned saves[] = {0x20, 0x40, 0x80};
    const unsigned leaf1 = 1u << 12 | 1u << 27 | 1u << 29, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const unsigned noise = 1u << 3 | 1u << 8;
    unsigned i;
    CHECK_I64(moe_epi_isa_of(0, 0, 0), MOE_EP_ISA_PORTABLE);
    CHECK_I64(moe_epi_isa_of(leaf1, 1u << 5, 6), MOE_EP_ISA_AVX2);
    CHECK_I64(moe_epi_isa_of(leaf1 | noise, 1u << 5 | noise, 0xff), MOE_EP_ISA_AVX2);
    CHECK_I64(moe_epi_isa_of(leaf1 | noise, 1u << 5 | avx512 | noise, 0xe7), MOE_EP_ISA_AVX512);
    for (i = 0; i < 3; i++) { /* one thing less: fused multiply-add, saved registers, half floats */
        CHECK_I64(moe_epi_isa_of(leaf1 & ~one[i], 1u << 5 | avx512, 0xe7), MOE_EP_ISA_PORTABLE);
        CHECK_I64(moe_epi_isa_of(leaf1, 1u << 5 | avx512, 0xe7 & ~saves[i]), MOE_EP_ISA_AVX2);
    }
    for (i = 0; i < 4; i++) CHECK_I64(moe_epi_isa_of(leaf1, (1u << 5 | avx512) & ~wide[i], 0xe7), MOE_EP_ISA_AVX2);
    CHECK_I64(moe_epi_isa_of(leaf1, avx512, 0xe7), MOE_EP_ISA_PORTABLE); /* AVX-512 without AVX2 is no machine */
    CHECK_I64(moe_epi_isa_of(leaf1, 1u << 5 | avx512, 0xe5), MOE_EP_ISA_PORTABLE);
    CHECK_I64(moe_epi_isa_of(leaf1, 1u << 5 | avx512, 0xe3), MOE_EP_ISA_PORTABLE);
    CHECK_I64(moe_epi_isa_level(0, 0), MOE_EP_ISA_PORTABLE);
    CHECK_I64(moe_epi_isa_level(0, 1), MOE_EP_ISA_PORTABLE);
    CHECK_I64(moe_epi_isa_level(1, 0), MOE_EP_ISA_AVX2);
    CHECK_I64(moe_epi_isa_level(1, 1), MOE_EP_ISA_AVX512);
}

TEST(both_ways_to_ask_the_cpu_agree)
{
    /* the quick one does not ask for F16C: it may know more, never less, and on machines with F16C the same */
    unsigned a, b, c = 0, d;
    const unsigned f16c = __get_cpuid(1, &a, &b, &c, &d) ? c >> 29 & 1 : 0; /* not every compiler's builtin knows it */
    CHECK(moe_epi_isa_cached() >= moe_ep_isa_best());
    if (__builtin_cpu_supports("avx2") && f16c)
        CHECK_I64(moe_epi_isa_cached(), moe_ep_isa_best());
    printf("    this machine: %s\n", moe_ep_isa_name(moe_ep_isa_best()));
}
#endif

TEST(names_of_instruction_sets)
{
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_AUTO), "auto");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_PORTABLE), "portable");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_AVX2), "avx2");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_AVX512), "avx512");
    CHECK_STR(moe_ep_isa_name(MOE_EP_ISA_NEON), "neon");
#if !defined(MOE_EP_NO_SIMD) && defined(__aarch64__) && !defined(__AARCH64EB__) && defined(__GNUC__)
    CHECK_I64(moe_ep_isa_best(), MOE_EP_ISA_NEON);
#else
    CHECK(moe_ep_isa_best() != MOE_EP_ISA_NEON);
#endif
    CHECK_STR(moe_ep_isa_name((moe_ep_isa)77), "auto");
}

/* ---- what a call that succeeds leaves in err: nothing of an earlier failure -------------------------------------- */

enum { C_L = 2, C_E = 6, C_D = 3, C_P = 9 };

static const double c_loads[C_L * C_E] = {9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5};

static moe_ep_shape c_shape(void)
{
    moe_ep_shape s;
    memset(&s, 0, sizeof s);
    s.num_devices = C_D;
    s.num_slots = C_P;
    return s;
}

static moe_ep_place_desc c_place(void)
{
    moe_ep_place_desc d;
    memset(&d, 0, sizeof d);
    d.num_layers = C_L;
    d.num_experts = C_E;
    d.shape = c_shape();
    d.loads = c_loads;
    return d;
}

/* An empty placement, and one by lpt. */
static void c_placements(moe_ep_placement *empty, moe_ep_placement *plan, double memory[2][512])
{
    const moe_ep_shape shape = c_shape();
    const moe_ep_place_desc d = c_place();
    moe_ep_error err;
    CLEARS(moe_ep_placement_init(empty, C_L, C_E, &shape, memory[0], sizeof memory[0], &err));
    CLEARS(moe_ep_placement_init(plan, C_L, C_E, &shape, memory[1], sizeof memory[1], &err));
    CLEARS(moe_ep_place_lpt(&d, plan, NULL, NULL, &err));
}

TEST(success_clears_err_placements)
{
    static double memory[2][512];
    double sums[C_L * C_D];
    int32_t phy2log[C_L * C_P], log2phy[C_L * C_E * C_P], logcnt[C_L * C_E], device[C_L * C_P], at[C_L * C_E];
    int32_t rows[C_L], fewest = 0, l, e, k, i;
    int64_t extra[1] = {6};
    moe_ep_placement empty, plan;
    moe_ep_place_desc d = c_place();
    moe_ep_plan_result result[C_L];
    moe_ep_check_result check;
    moe_ep_moves_result moves;
    moe_ep_rebalance_desc change;
    moe_ep_copies_desc copies;
    moe_ep_copies_point points[16];
    moe_ep_error err;
    c_placements(&empty, &plan, memory);
    CLEARS(moe_ep_validate(&plan, 0, &check, &err));
    CLEARS(moe_ep_placement_index(&plan, &err));
    CLEARS(moe_ep_device_loads(&plan, c_loads, sums, &err));
    CLEARS(moe_ep_node_loads(&plan, c_loads, sums, &err));
    CLEARS(moe_ep_evaluate(&plan, c_loads, 1, result, NULL, &err));
    CLEARS(moe_ep_max_replicas(&plan, &err));
    CLEARS(moe_ep_eplb_arrays(&plan, C_P, phy2log, log2phy, logcnt, &err));
    CLEARS(moe_ep_placement_from_eplb(phy2log, log2phy, C_P, logcnt, &empty, &err));
    CHECK(memcmp(empty.slot_expert, plan.slot_expert, C_L * C_P * sizeof(int32_t)) == 0);
    CLEARS(moe_ep_placement_copy(&plan, &empty, &err));
    for (i = l = 0; l < C_L; l++)
        for (e = 0; e < C_E; e++) {
            const int32_t *start = plan.replica_start + l * (C_E + 1) + e;
            at[l * C_E + e] = start[1] - start[0];
            for (k = start[0]; k < start[1]; k++) device[i++] = plan.slot_device[plan.replica_slot[l * C_P + k]];
        }
    CLEARS(moe_ep_devices_placement(device, at, &empty, &err));
    memset(&moves, 1, sizeof moves);
    CLEARS(moe_ep_plan_moves(&plan, &empty, 1.0, NULL, 0, &moves, NULL, &err));
    CHECK_I64(moves.moves, 0);
    CLEARS(moe_ep_pick_slot(&plan, 1, 2, 77, &err));
    memset(&change, 0, sizeof change);
    change.current = &plan;
    change.loads = c_loads;
    CLEARS(moe_ep_rebalance(&change, &empty, NULL, NULL, &err));
    CLEARS(moe_ep_replica_budget_row(&d, extra, 1, rows, NULL, &err));
    memset(&copies, 0, sizeof copies);
    copies.place = d;
    copies.place.shape.num_slots = 0;
    copies.max_extra = 3;
    copies.target = 9;
    CLEARS(moe_ep_min_copies(&copies, points, &fewest, NULL, &err));
}

TEST(success_clears_err_times)
{
    static int64_t slot_rows[64];
    static const int64_t traffic[C_D * C_D] = {0, 1, 2, 3, 0, 4, 5, 6, 0};
    static const double one[1] = {1};
    const moe_ep_model model = moe_ep_model_olmoe_1b_7b();
    const moe_ep_machine machine = moe_ep_machine_h100();
    moe_ep_machine fitted;
    moe_ep_comm_desc comm;
    moe_ep_comm_result bytes;
    moe_ep_a2a_desc a2a;
    moe_ep_a2a_device devices[C_D];
    moe_ep_step_desc step;
    moe_ep_time_result time;
    moe_ep_step_result whole;
    moe_ep_ep_vs_tp_desc choice;
    moe_ep_ep_vs_tp_result chosen;
    moe_ep_memory_desc memory;
    moe_ep_memory_result room;
    moe_ep_link_row row;
    moe_ep_calibrate_desc fit;
    moe_ep_time_table table;
    moe_ep_error err;
    int i;
    memset(&comm, 0, sizeof comm);
    comm.tokens = 64;
    comm.num_experts = 64;
    comm.top_k = 8;
    comm.hidden = 2048;
    comm.num_devices = 8;
    CLEARS(moe_ep_comm_bytes(&comm, &bytes, &err));
    CLEARS(moe_ep_link_time_rows(&machine.ll_dispatch, 1e6, 0, 10, 8, &err));
    CLEARS(moe_ep_logical_time(&comm, 0, 1e9, &err));
    CLEARS(moe_ep_logical_Bps(&comm, 0, 1e-3, &err));
    memset(&a2a, 0, sizeof a2a);
    a2a.num_devices = C_D;
    a2a.rows = traffic;
    a2a.row_bytes = 100;
    a2a.link = machine.ll_dispatch;
    CLEARS(moe_ep_a2a_time(&a2a, devices, &err));
    memset(&step, 0, sizeof step);
    step.layer.model = &model;
    step.layer.machine = &machine;
    step.layer.num_devices = 8;
    step.num_layers = 1;
    for (i = 0; i < 64; i++) slot_rows[i] = 16;
    CLEARS(moe_ep_layer_time(&step.layer, slot_rows, &time, NULL, &err));
    CLEARS(moe_ep_step(&step, slot_rows, &whole, NULL, &err));
    step.layer.num_devices = 1; /* no exchange */
    CLEARS(moe_ep_layer_time(&step.layer, slot_rows, &time, NULL, &err));
    CLEARS(moe_ep_step(&step, slot_rows, &whole, NULL, &err));
    memset(&choice, 0, sizeof choice);
    choice.model = &model;
    choice.machine = &machine;
    choice.num_devices = 8;
    choice.tokens = 64;
    CLEARS(moe_ep_ep_vs_tp(&choice, &chosen, &err));
    memset(&memory, 0, sizeof memory);
    memory.model = &model;
    memory.num_devices = 8;
    CLEARS(moe_ep_memory(&memory, &room, &err));
    memset(&row, 0, sizeof row);
    row.intra_bytes = 1e6;
    row.peers = 8;
    row.seconds = 1e-4;
    memset(&fit, 0, sizeof fit);
    fit.start = &machine;
    fit.links = &row;
    fit.num_links = 1;
    CLEARS(moe_ep_calibrate(&fit, &fitted, NULL, NULL, NULL, NULL, &err));
    memset(&table, 0, sizeof table);
    table.num_rows = table.num_active = 1;
    table.rows = table.active = table.us = one;
    CLEARS(moe_ep_table_us(&table, 1, 1, &err));
}

/* A policy that cannot place the last shape is a point that says so, not an error that stays. */
TEST(success_clears_err_verdicts)
{
    static const int64_t tokens[1] = {16};
    static const int32_t ep[1] = {8}, redundant[1] = {3};
    static const moe_ep_place_policy policy[1] = {MOE_EP_PLACE_EPLB_GLOBAL};
    static moe_ep_sweep_point points[8];
    const moe_ep_model model = moe_ep_model_olmoe_1b_7b();
    const moe_ep_machine machine = moe_ep_machine_h100();
    moe_ep_diagnose_desc d;
    moe_ep_diagnosis out;
    moe_ep_sweep_desc sweep;
    moe_ep_sweep_result result;
    moe_ep_error err;
    memset(&d, 0, sizeof d);
    d.num_layers = C_L;
    d.num_experts = C_E;
    d.top_k = 1;
    d.shape = c_shape();
    d.plan_loads = d.judge_loads = c_loads;
    d.plan_steps = d.judge_steps = 1;
    CLEARS(moe_ep_diagnose(&d, NULL, &out, NULL, &err));
    memset(&sweep, 0, sizeof sweep);
    sweep.model = &model;
    sweep.machine = &machine;
    sweep.num_devices = 8;
    sweep.tokens = tokens;
    sweep.num_tokens = 1;
    sweep.ep = ep;
    sweep.num_ep = 1;
    CLEARS(moe_ep_sweep_count(&sweep, &err));
    sweep.redundant = redundant;
    sweep.num_redundant = 1;
    sweep.policies = policy;
    sweep.num_policies = 1;
    CLEARS(moe_ep_sweep(&sweep, points, 8, &result, NULL, &err));
    CHECK(result.points > 0 && result.fit == 0 && points[0].limit == MOE_EP_LIMIT_PLACEMENT);
}

/* Of one group what all have in common is added to the largest: mean sqrt(1 - s) m, variance s + (1 - s) v.  Of groups
 * of one nothing is in common.  A law by tenths adds a twelfth of a tenth's square to the variance. */
TEST(largest_of_normals_in_groups)
{
    const double shared[] = {1e-9, 1e-4, 0.004, 0.02, 0.0224, 0.0226, 0.05, 0.2, 0.5, 0.85}, pi = 3.14159265358979324;
    const double each[] = {1, 1.5, 2, 8, 36, 500}, grid = 0.01 / 12;
    double m, v, m1, v1;
    size_t i, j;
    moe_epi_normal_groups(0.0, 2.0, 1.0, &m, &v);
    CHECK_NEAR(m, 1 / sqrt(pi), 1e-9, 0);
    CHECK_NEAR(v, 1 - 1 / pi + grid, 1e-9, 0);
    moe_epi_normal_groups(0.0, 1.0, 3.0, &m, &v);
    CHECK_NEAR(m, 1.5 / sqrt(pi), 1e-9, 0);
    CHECK_NEAR(v, 1 + sqrt(3.0) / (2 * pi) - 2.25 / pi + grid, 1e-9, 0);
    for (i = 0; i < sizeof each / sizeof *each; i++) {
        moe_epi_normal_groups(0.0, each[i], 1.0, &m, &v);
        for (j = 0; j < sizeof shared / sizeof *shared; j++) {
            const double s = shared[j];
            moe_epi_normal_groups(s, each[i], 1.0, &m1, &v1);
            CHECK_NEAR(m1, sqrt(1 - s) * m, 0, 1e-6);
            CHECK_NEAR(v1, s + (1 - s) * (v - grid) + grid, 0, 1e-6);
            moe_epi_normal_groups(s, 1.0, each[i], &m1, &v1);
            CHECK_NEAR(m1, m, 0, 1e-6);
            CHECK_NEAR(v1, v, 0, 1e-6);
        }
    }
}

TEST(whole_values_below_zero_keep_their_digits)
{
    char text[200];
    moe_ep_error err;
    memset(&err, 0, sizeof err);
    err.status = MOE_EP_ERR_RANGE, err.arg = "v", err.what = "w", err.index = -1, err.value = -12345678.0;
    (void)moe_ep_error_text(&err, text, sizeof text);
    CHECK(strstr(text, "v = -12345678: w") != NULL);
}

T_MAIN
