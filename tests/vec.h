/* tests/vec.h - reader of the .vec reference vectors (format: tests/vectors/README.md).
 * SPDX-License-Identifier: MIT
 *
 * Values are kept as double (f) and int64 (i); an integer field may be asked for as float and, when all
 * values are whole, the other way round. */
#ifndef VEC_H
#define VEC_H

#include "t.h"

typedef struct vec_field {
    char *key, *text; /* text: s fields only */
    int ndim;
    int64_t dim[8], count;
    double *f;
    int64_t *i;
} vec_field;

typedef struct vec_case {
    char *name;
    vec_field *field;
    int fields;
} vec_case;

typedef struct vec_file {
    char kind[64];
    vec_case *cases;
    int count;
} vec_file;

static inline void vec_bad(const char *path, long line, const char *why)
{
    fprintf(stderr, "%s:%ld: %s\n", path, line, why);
    exit(2);
}

static inline char *vec_dup(const char *s)
{
    char *d = (char *)t_alloc(strlen(s) + 1);
    strcpy(d, s);
    return d;
}

/* Reads a whole file; stops the program on a malformed one (it would prove nothing). */
static inline vec_file vec_read(const char *path)
{
    vec_file v;
    vec_case *c = NULL;
    FILE *fp = fopen(path, "rb");
    char *text, *line, *next;
    long size, number = 0;
    int declared = 0;
    memset(&v, 0, sizeof v);
    if (!fp) vec_bad(path, 0, "cannot open");
    fseek(fp, 0, SEEK_END);
    size = ftell(fp);
    rewind(fp);
    text = (char *)t_alloc((size_t)size + 1);
    if (fread(text, 1, (size_t)size, fp) != (size_t)size) vec_bad(path, 0, "cannot read");
    fclose(fp);
    for (line = text; *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = '\0';
        else next = line + strlen(line);
        number++;
        if (number == 1) {
            if (sscanf(line, "moe_ep_vec 1 %63s %d", v.kind, &declared) != 2)
                vec_bad(path, number, "no moe_ep_vec header");
            v.cases = (vec_case *)t_alloc(sizeof *v.cases * (size_t)(declared + 1));
        } else if (strncmp(line, "case ", 5) == 0) {
            if (c) vec_bad(path, number, "case inside a case");
            if (v.count == declared) vec_bad(path, number, "more cases than declared");
            c = &v.cases[v.count++];
            c->name = vec_dup(line + 5);
        } else if (strcmp(line, "end") == 0) {
            c = NULL;
        } else if (line[0] != '\0') {
            vec_field *f;
            char *p = line + 2, *e;
            int d;
            if (!c || line[1] != ' ' || !strchr("sif", line[0])) vec_bad(path, number, "not a field");
            c->field = (vec_field *)realloc(c->field, sizeof *c->field * (size_t)(c->fields + 1));
            f = &c->field[c->fields++];
            memset(f, 0, sizeof *f);
            e = strchr(p, ' ');
            if (!e) vec_bad(path, number, "field without a value");
            *e = '\0';
            f->key = vec_dup(p);
            p = e + 1;
            if (line[0] == 's') {
                f->text = vec_dup(p);
                continue;
            }
            f->ndim = (int)strtol(p, &p, 10);
            if (f->ndim < 0 || f->ndim > 8) vec_bad(path, number, "bad number of dimensions");
            f->count = 1;
            for (d = 0; d < f->ndim; d++) f->count *= (f->dim[d] = strtoll(p, &p, 10));
            while (*p == ' ') p++;
            if (*p++ != ':') vec_bad(path, number, "no colon");
            f->f = (double *)t_alloc(sizeof(double) * (size_t)(f->count + 1));
            f->i = (int64_t *)t_alloc(sizeof(int64_t) * (size_t)(f->count + 1));
            for (d = 0; d < f->count; d++) {
                if (line[0] == 'i') {
                    f->i[d] = strtoll(p, &e, 10);
                    f->f[d] = (double)f->i[d];
                } else {
                    f->f[d] = strtod(p, &e);
                    f->i[d] = f->f[d] > -9e18 && f->f[d] < 9e18 ? (int64_t)f->f[d] : 0;
                }
                if (e == p) vec_bad(path, number, "fewer values than the shape says");
                p = e;
            }
        }
    }
    if (c) vec_bad(path, number, "last case has no end");
    if (v.count != declared) vec_bad(path, number, "fewer cases than declared");
    free(text);
    return v;
}

static inline const vec_field *vec_find(const vec_case *c, const char *key)
{
    int i;
    for (i = 0; i < c->fields; i++)
        if (strcmp(c->field[i].key, key) == 0) return &c->field[i];
    return NULL;
}

/* The field, which must be there. */
static inline const vec_field *vec_get(const vec_case *c, const char *key)
{
    const vec_field *f = vec_find(c, key);
    if (!f) {
        fprintf(stderr, "case %s has no field %s\n", c->name, key);
        exit(2);
    }
    return f;
}

static inline int64_t vec_int(const vec_case *c, const char *key) { return vec_get(c, key)->i[0]; }
static inline int64_t vec_int_or(const vec_case *c, const char *key, int64_t otherwise)
{
    const vec_field *f = vec_find(c, key);
    return f && f->i ? f->i[0] : otherwise;
}
static inline double vec_float(const vec_case *c, const char *key) { return vec_get(c, key)->f[0]; }
static inline const char *vec_text(const vec_case *c, const char *key)
{
    const vec_field *f = vec_find(c, key);
    return f && f->text ? f->text : "";
}

/* int64 values as int32 (ids); the caller frees. */
static inline int32_t *vec_i32(const vec_field *f)
{
    int32_t *p = (int32_t *)t_alloc(sizeof(int32_t) * (size_t)(f->count + 1));
    int64_t i;
    for (i = 0; i < f->count; i++) p[i] = (int32_t)f->i[i];
    return p;
}
static inline float *vec_f32(const vec_field *f)
{
    float *p = (float *)t_alloc(sizeof(float) * (size_t)(f->count + 1));
    int64_t i;
    for (i = 0; i < f->count; i++) p[i] = (float)f->f[i];
    return p;
}

static inline void vec_free(vec_file *v)
{
    int c, k;
    for (c = 0; c < v->count; c++) {
        for (k = 0; k < v->cases[c].fields; k++) {
            free(v->cases[c].field[k].key);
            free(v->cases[c].field[k].text);
            free(v->cases[c].field[k].f);
            free(v->cases[c].field[k].i);
        }
        free(v->cases[c].field);
        free(v->cases[c].name);
    }
    free(v->cases);
    memset(v, 0, sizeof *v);
}

/* tests/vectors/own/X.vec beside the bundled tests/vectors/X.vec: cases of this project; NULL without one. */
static inline const char *vec_own(const char *bundled)
{
    static char own[256];
    const char *name = strrchr(bundled, '/') + 1;
    FILE *fp;
    snprintf(own, sizeof own, "%.*sown/%s", (int)(name - bundled), bundled, name);
    fp = fopen(own, "rb");
    if (fp) fclose(fp);
    return fp ? own : NULL;
}

/* Files to check: those named on the command line, or, without any, the bundled one and its neighbour in own/.  A test
 * program can so be pointed at other vectors of the same kind: test_route more/routers.vec */
static inline const char *vec_path(const char *bundled, int index)
{
    int n = 0;
    while (t_argv && t_argv[n]) n++;
    if (n > 0) return index < n ? t_argv[index] : NULL;
    if (index == 1) return vec_own(bundled);
    return index == 0 ? bundled : NULL;
}

/* Operations of metrics files that route, count and move the bias for some steps, whatever they are called. */
static inline int vec_is_bias_trace(const char *op)
{
    return strstr(op, "bias") && (strstr(op, "trace") || strstr(op, "steps") || strstr(op, "loop"));
}

#endif
