/* cli_npy.c - NumPy .npy files: header, streamed elements, writer
 * Format: numpy.lib.format, versions 1.0 to 3.0.
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_npy.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_HEADER = 65536, BATCH = 65536 };

/* Where "'key':" ends in the text, blanks behind it skipped; NULL = it is not there. */
static const char *after_key(const char *dict, const char *key)
{
    for (const char *at = dict; (at = strpbrk(at, "'\"")); at++) {
        const char *end = at + 1 + strlen(key);
        if (strncmp(at + 1, key, strlen(key)) != 0 || *end != *at) continue;
        end++;
        while (isspace((unsigned char)*end)) end++;
        if (*end != ':') continue;
        end++;
        while (isspace((unsigned char)*end)) end++;
        return end;
    }
    return NULL;
}

/* Text after 'key': in the header dictionary, or NULL. */
static const char *dict_value(const cli_npy *a, const char *dict, const char *key)
{
    const char *at = after_key(dict, key);
    if (at && after_key(at, key)) cli_die(CLI_USAGE, "%s: the .npy header has '%s' twice", a->path, key);
    return at;
}

static void read_descr(cli_npy *a, const char *at)
{
    const uint16_t probe = 1;
    int little = *(const unsigned char *)&probe == 1;
    size_t n = 0;
    if (!at) cli_die(CLI_USAGE, "%s: the .npy header has no 'descr'", a->path);
    if (*at == '[')
        cli_die(CLI_USAGE, "%s: holds records; an array of one plain number type is needed",
                a->path);
    if (*at != '\'' && *at != '"')
        cli_die(CLI_USAGE, "%s: the .npy header has a damaged 'descr'", a->path);
    for (at++; *at && *at != '\'' && *at != '"' && n + 1 < sizeof a->descr; at++)
        a->descr[n++] = *at;
    a->descr[n] = '\0';
    if (n >= 3 && n <= 4 && strchr("<>|=", a->descr[0]) && strchr("iufb", a->descr[1])) {
        a->kind = a->descr[1];
        a->size = atoi(a->descr + 2);
        a->swapped =
            a->size > 1 && ((a->descr[0] == '<' && !little) || (a->descr[0] == '>' && little));
        if (a->kind == 'b' ? a->size == 1
                           : (a->size == 1 && a->kind != 'f') || a->size == 2 || a->size == 4 || a->size == 8)
            return;
    }
    cli_die(CLI_USAGE,
            "%s: number type '%s' is not one of int8..int64, uint8..uint64, float16..float64",
            a->path, cli_printable(a->descr));
}

static void read_shape(cli_npy *a, const char *at)
{
    size_t used = 0;
    if (!at || *at != '(') cli_die(CLI_USAGE, "%s: the .npy header has no 'shape'", a->path);
    a->count = 1;
    a->shape_text[used++] = '(';
    for (at++; *at && *at != ')';) {
        char *end = NULL;
        long long v;
        while (*at == ' ' || *at == ',') at++;
        if (*at == ')' || !*at) break;
        errno = 0;
        v = strtoll(at, &end, 10);
        if (end == at || errno != 0 || v < 0)
            cli_die(CLI_USAGE, "%s: the .npy header has a damaged 'shape'", a->path);
        if (*end == 'L') end++;
        if (a->ndim == CLI_NPY_MAX_DIMS)
            cli_die(CLI_USAGE, "%s: more than %d axes", a->path, CLI_NPY_MAX_DIMS);
        if (v > 0 && a->count > INT64_MAX / 8 / v)
            cli_die(CLI_USAGE, "%s: the header claims a shape that no file can hold", a->path);
        a->count *= v;
        a->shape[a->ndim++] = v;
        used += (size_t)snprintf(a->shape_text + used, sizeof a->shape_text - used, "%s%lld",
                                 a->ndim > 1 ? ", " : "", v);
        if (used + 2 >= sizeof a->shape_text)
            cli_die(CLI_USAGE, "%s: the .npy header has a damaged 'shape'", a->path);
        at = end;
    }
    if (*at != ')') cli_die(CLI_USAGE, "%s: the .npy header has a damaged 'shape'", a->path);
    a->shape_text[used++] = ')';
    a->shape_text[used] = '\0';
}

static void read_order(const cli_npy *a, const char *at)
{
    if (!at) cli_die(CLI_USAGE, "%s: the .npy header has no 'fortran_order'", a->path);
    if (strncmp(at, "False", 5) == 0) return;
    if (strncmp(at, "True", 4) == 0 && a->ndim <= 1) return;
    cli_die(CLI_USAGE,
            "%s: the array is in Fortran order; save it with np.save(name, "
            "np.ascontiguousarray(array))",
            a->path);
}

void cli_npy_open(cli_npy *a, const char *path)
{
    unsigned char lead[12];
    struct stat info;
    size_t lead_bytes = 10, header_bytes, got;
    char *dict;
    int64_t have, want;
    memset(a, 0, sizeof *a);
    a->path = path;
    a->file = cli_open_input(path);
    if (fstat(fileno(a->file), &info) != 0) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    got = fread(lead, 1, 10, a->file);
    if (got < 10 || memcmp(lead, "\x93NUMPY", 6) != 0)
        cli_die(CLI_USAGE, "%s: does not begin like a .npy file", path);
    if (lead[6] < 1 || lead[6] > 3)
        cli_die(CLI_USAGE, "%s: .npy version %d.%d is not known", path, lead[6], lead[7]);
    header_bytes = (size_t)lead[8] | (size_t)lead[9] << 8;
    if (lead[6] >= 2) {
        if (fread(lead + 10, 1, 2, a->file) != 2)
            cli_die(CLI_USAGE, "%s: truncated inside the .npy header", path);
        header_bytes |= (size_t)lead[10] << 16 | (size_t)lead[11] << 24;
        lead_bytes = 12;
    }
    if (header_bytes > MAX_HEADER)
        cli_die(CLI_USAGE, "%s: the .npy header claims %zu bytes", path, header_bytes);
    dict = cli_alloc(header_bytes + 1, 1);
    if (fread(dict, 1, header_bytes, a->file) != header_bytes)
        cli_die(CLI_USAGE, "%s: truncated inside the .npy header", path);
    if (memchr(dict, '\0', header_bytes)) cli_die(CLI_USAGE, "%s: the .npy header holds a zero byte", path);
    read_descr(a, dict_value(a, dict, "descr"));
    read_shape(a, dict_value(a, dict, "shape"));
    read_order(a, dict_value(a, dict, "fortran_order"));
    free(dict);
    have = (int64_t)info.st_size - (int64_t)(lead_bytes + header_bytes);
    want = a->count * a->size;
    if (have < want)
        cli_die(CLI_USAGE,
                "%s: truncated: shape %s of '%s' needs %s bytes of data, the file holds %s", path,
                a->shape_text, a->descr, cli_count((double)want), cli_count((double)have));
    if (have > want)
        cli_die(CLI_USAGE,
                "%s: %s bytes follow the array of shape %s: damaged, or more than one array", path,
                cli_count((double)(have - want)), a->shape_text);
}

void cli_npy_close(cli_npy *a)
{
    if (a->file) (void)fclose(a->file);
    a->file = NULL;
}

/* Next n <= BATCH elements in this machine's byte order. */
static void read_raw(cli_npy *a, unsigned char *buf, size_t n)
{
    size_t size = (size_t)a->size;
    if (fread(buf, size, n, a->file) != n)
        cli_die(CLI_USAGE, "%s: truncated while reading", a->path);
    if (!a->swapped) return;
    for (size_t i = 0; i < n; i++) {
        unsigned char *p = buf + i * size;
        for (size_t j = 0; j < size / 2; j++) {
            unsigned char t = p[j];
            p[j] = p[size - 1 - j];
            p[size - 1 - j] = t;
        }
    }
}

static int64_t integer_at(const cli_npy *a, const unsigned char *p)
{
    int64_t i64;
    uint64_t u64;
    int32_t i32;
    uint32_t u32;
    int16_t i16;
    uint16_t u16;
    switch (a->size) {
    case 1:
        return a->kind == 'i' ? (int64_t)(int8_t)*p : (int64_t)*p;
    case 2:
        memcpy(&i16, p, 2);
        memcpy(&u16, p, 2);
        return a->kind == 'i' ? (int64_t)i16 : (int64_t)u16;
    case 4:
        memcpy(&i32, p, 4);
        memcpy(&u32, p, 4);
        return a->kind == 'i' ? (int64_t)i32 : (int64_t)u32;
    default:
        memcpy(&i64, p, 8);
        memcpy(&u64, p, 8);
        return a->kind == 'u' && u64 > (uint64_t)INT64_MAX ? INT64_MAX : i64;
    }
}

static double half(uint16_t h)
{
    double mantissa = (double)(h & 0x3ffu);
    int exponent = (h >> 10) & 31;
    double v = exponent == 31  ? (mantissa > 0.0 ? (double)NAN : (double)INFINITY)
               : exponent == 0 ? ldexp(mantissa, -24)
                               : ldexp(mantissa + 1024.0, exponent - 25);
    return h & 0x8000u ? -v : v;
}

static double number_at(const cli_npy *a, const unsigned char *p)
{
    float f32;
    double f64;
    uint16_t f16;
    if (a->kind != 'f') return (double)integer_at(a, p);
    switch (a->size) {
    case 2:
        memcpy(&f16, p, 2);
        return half(f16);
    case 4:
        memcpy(&f32, p, 4);
        return (double)f32;
    default:
        memcpy(&f64, p, 8);
        return f64;
    }
}

/* Remembers the value that 32 bits do not hold, for the message that names it. */
static void note_wide(cli_npy *a, const unsigned char *p, int64_t at)
{
    uint64_t u64 = 0;
    a->wide_at = at + 1;
    if (a->kind == 'u' && a->size == 8) {
        memcpy(&u64, p, 8);
        (void)snprintf(a->wide, sizeof a->wide, "%llu", (unsigned long long)u64);
    } else {
        (void)snprintf(a->wide, sizeof a->wide, "%lld", (long long)integer_at(a, p));
    }
}

void cli_npy_read_i32(cli_npy *a, int32_t *out, int64_t n)
{
    unsigned char *buf = cli_alloc(BATCH, (size_t)a->size);
    if (a->kind != 'i' && a->kind != 'u')
        cli_die(CLI_USAGE,
                "%s: '%s' holds no integers; expert ids must be int8..int64 or uint8..uint64",
                a->path, a->descr);
    for (int64_t done = 0; done < n;) {
        int64_t part = n - done < BATCH ? n - done : BATCH;
        read_raw(a, buf, (size_t)part);
        for (int64_t i = 0; i < part; i++) {
            int64_t v = integer_at(a, buf + i * a->size);
            if ((v > INT32_MAX || v < INT32_MIN) && a->wide_at == 0) note_wide(a, buf + i * a->size, a->read + i);
            out[done + i] = v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : (int32_t)v;
        }
        done += part;
        a->read += part;
    }
    free(buf);
}

void cli_npy_read_double(cli_npy *a, double *out, int64_t n)
{
    unsigned char *buf = cli_alloc(BATCH, (size_t)a->size);
    for (int64_t done = 0; done < n;) {
        int64_t part = n - done < BATCH ? n - done : BATCH;
        read_raw(a, buf, (size_t)part);
        for (int64_t i = 0; i < part; i++) out[done + i] = number_at(a, buf + i * a->size);
        done += part;
    }
    free(buf);
}

void cli_npy_write(FILE *f, const char *descr, int ndim, const int64_t *shape, const void *data, size_t n_elements)
{
    char dict[256];
    size_t n = (size_t)snprintf(dict, sizeof dict,
                                "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int i = 0; i < ndim; i++)
        n += (size_t)snprintf(dict + n, sizeof dict - n, "%lld,%s", (long long)shape[i],
                              i + 1 < ndim ? " " : "");
    n += (size_t)snprintf(dict + n, sizeof dict - n, "), }");
    while ((10 + n + 1) % 64 != 0) dict[n++] = ' ';
    dict[n++] = '\n';
    (void)fwrite("\x93NUMPY\x01\x00", 1, 8, f);
    fputc((int)(n & 255u), f);
    fputc((int)(n >> 8), f);
    (void)fwrite(dict, 1, n, f);
    for (size_t i = 0; i < n_elements; i++) { /* the lowest byte first, whatever this machine does */
        uint32_t v;
        memcpy(&v, (const unsigned char *)data + 4 * i, 4);
        for (int shift = 0; shift < 32; shift += 8) fputc((int)(v >> shift & 255u), f);
    }
}
