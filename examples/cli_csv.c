/* cli_csv.c - counts as text: columns with a header, the long form, plain rows
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_rows.h"

#include <ctype.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NOT_GIVEN (-1.0) /* a load that no line has named yet */

typedef enum csv_role {
    ROLE_LABEL,
    ROLE_LAYER,
    ROLE_STEP,
    ROLE_EXPERT,
    ROLE_COUNT,
    ROLE_IGNORED
} csv_role;

enum { MOST_LINES = 1 << 16 }; /* apart from each other are the lines of one row of the long form */

/* What tells rows of the long form apart: the place of the label in the list of labels, step, layer. */
typedef struct long_key {
    int64_t label, step, layer;
} long_key;

/* The counts of one layer in the long form, a line for each. */
typedef struct long_row {
    long_key key;
    int64_t line, last; /* its first and its last line so far */
    double *loads;      /* stb_ds */
} long_row;

typedef struct csv_reader {
    const char *path;
    char separator;
    csv_role *role; /* per column, NULL = no header: every field is a load */
    int long_form;  /* one count per line, with an expert column */
    cli_rows *rows;
    long_row *open; /* stb_ds hash map, rows of the long form that may go on */
    char **label;   /* stb_ds, of the long form */
    int64_t line;
    int64_t bare; /* line of a header that is experts alone, 0, 1, 2, ...; 0 = there is none */
} csv_reader;

static char *trim(char *s)
{
    char *end;
    while (isspace((unsigned char)*s)) s++;
    end = s + strlen(s);
    while (end > s && isspace((unsigned char)end[-1])) *--end = '\0';
    return s;
}

/* A field in quotes (RFC 4180), its text moved to `at`; returns where the line goes on, at a separator or its end. */
static char *unquote(const csv_reader *c, char *at)
{
    char *to = at, *from = at + 1;
    for (; *from && (*from != '"' || from[1] == '"'); from++) {
        if (*from == '"') from++;
        *to++ = *from;
    }
    if (!*from) cli_die(CLI_USAGE, "%s:%lld: a quote is not closed on its line", c->path, (long long)c->line);
    from++;
    while (isspace((unsigned char)*from) && *from != c->separator) from++;
    if (*from && *from != c->separator && !(c->separator == ' ' && isspace((unsigned char)from[-1])))
        cli_die(CLI_USAGE, "%s:%lld: text follows a closing quote", c->path, (long long)c->line);
    *to = '\0';
    if (!*from) return NULL;
    return from + (*from == c->separator);
}

static char **split_line(const csv_reader *c, char *line)
{
    char **fields = NULL, separator = c->separator;
    for (char *at = line; at;) {
        char *next;
        while (isspace((unsigned char)*at) && *at != separator) at++;
        if (*at == '"') {
            next = unquote(c, at);
            arrput(fields, at);
            at = next;
            continue;
        }
        next = separator == ' ' ? strpbrk(at, " \t") : strchr(at, separator);
        if (next) *next++ = '\0';
        at = trim(at);
        if (separator != ' ' || *at) arrput(fields, at);
        at = next;
    }
    return fields;
}

static int is_number(const char *s)
{
    double v;
    return cli_parse_double(s, &v);
}

static int named(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (strcasecmp(name, *list) == 0) return 1;
    return 0;
}

/* Number of the expert a column is named after: "17", "c17", "expert_17"; -1 = none. */
static int64_t column_expert(const char *name)
{
    int64_t v;
    while (*name && !isdigit((unsigned char)*name)) name++;
    return cli_parse_i64(name, &v) ? v : -1;
}

static csv_role role_of(const char *name)
{
    static const char *const layer[] = {"layer",     "layer_idx",     "layer_id", "layer_index",
                                        "moe_layer", "counter_index", NULL};
    static const char *const step[] = {"step", "iteration", "iter", "window", "batch", NULL};
    static const char *const expert[] = {"expert", "expert_id", "expert_idx", "expert_index", NULL};
    static const char *const count[] = {"count",  "counts", "load",      "loads",
                                        "tokens", "rows",   "frequency", NULL};
    if (!*name) return ROLE_IGNORED;
    if (named(name, layer)) return ROLE_LAYER;
    if (named(name, step)) return ROLE_STEP;
    if (named(name, expert)) return ROLE_EXPERT;
    if (named(name, count)) return ROLE_COUNT;
    return ROLE_LABEL;
}

/* Whether a line is 0, 1, 2, ...: the experts, as pandas names the columns of an array. */
static int counts_up(char **fields)
{
    for (ptrdiff_t i = 0; i < arrlen(fields); i++) {
        char number[24];
        (void)snprintf(number, sizeof number, "%td", i);
        if (strcmp(fields[i], number) != 0) return 0;
    }
    return arrlen(fields) > 1;
}

static void refuse_bare(const csv_reader *c, ptrdiff_t experts)
{
    cli_die(CLI_USAGE, "%s:%lld: this line, 0 to %td, may be the header of the experts or the loads of a layer: write "
                       "a line c0,c1,... above it if it holds loads, in its place if it is the header",
            c->path, (long long)c->bare, experts - 1);
}

/* Decides what the columns are.  Returns 0 when the line is no header. */
static int csv_header(csv_reader *c, char **fields)
{
    ptrdiff_t n = arrlen(fields), first = n;
    int words = 0, experts = 0, counts = 0;
    for (ptrdiff_t i = 0; i < n; i++) words += !is_number(fields[i]);
    if (words == 0 && !counts_up(fields)) return 0;
    if (words == 0) c->bare = c->line;
    while (first > 0 &&
           column_expert(fields[first - 1]) == column_expert(fields[n - 1]) - (n - first) &&
           column_expert(fields[first - 1]) >= 0)
        first--;
    if (n - first >= 2 && column_expert(fields[first]) != 0)
        cli_die(CLI_USAGE,
                "%s:%lld: the expert columns must be named 0, 1, 2, ...; the first is \"%s\"; without a header "
                "put a line label,layer,0,1,... above",
                c->path, (long long)c->line, cli_printable(fields[first]));
    if (n - first < 2) first = n;
    c->long_form = first == n;
    for (ptrdiff_t i = 0; i < n; i++) {
        csv_role r = i >= first ? ROLE_COUNT : role_of(fields[i]);
        if (!c->long_form && i < first && (r == ROLE_COUNT || r == ROLE_EXPERT)) r = ROLE_IGNORED; /* a sum, say */
        for (ptrdiff_t k = 0; k < i && (r == ROLE_LAYER || r == ROLE_STEP); k++)
            if (c->role[k] == r)
                cli_die(CLI_USAGE, "%s:%lld: columns \"%s\" and \"%s\" both number the %s: one of them", c->path,
                        (long long)c->line, cli_keep(cli_printable(fields[k])), cli_keep(cli_printable(fields[i])),
                        r == ROLE_LAYER ? "layers" : "steps");
        arrput(c->role, r);
        experts += r == ROLE_EXPERT;
        counts += r == ROLE_COUNT;
    }
    if (c->long_form && (experts != 1 || counts != 1))
        cli_die(CLI_USAGE,
                "%s:%lld: the header names neither columns 0, 1, 2, ... for the experts nor one "
                "column \"expert\" "
                "and one \"count\"",
                c->path, (long long)c->line);
    return 1;
}

static int64_t csv_integer(const csv_reader *c, const char *field, const char *what)
{
    int64_t v;
    if (!cli_parse_i64(field, &v) || v < 0)
        cli_die(CLI_USAGE, "%s:%lld: %s \"%s\" is not a whole number from 0", c->path,
                (long long)c->line, what, cli_printable(field));
    return v;
}

static double csv_load(const csv_reader *c, const char *field, ptrdiff_t column)
{
    double v;
    char *where = cli_format("%s:%lld: column %td", c->path, (long long)c->line, column + 1);
    if (!cli_parse_double(field, &v))
        cli_die(CLI_USAGE, "%s: \"%.40s\" is not a number", where, cli_printable(field));
    cli_check_load(v, where);
    free(where);
    return v;
}

static int64_t label_of(csv_reader *c, const char *label)
{
    ptrdiff_t n = arrlen(c->label);
    for (ptrdiff_t i = 0; i < n; i++)
        if (cli_same(c->label[i], label)) return i;
    arrput(c->label, cli_strdup(label));
    return n;
}

/* The row a line belongs to in the long form: one row per (label, step, layer), experts in any order. */
static long_row *row_of_line(csv_reader *c, long_key key)
{
    ptrdiff_t at = hmgeti(c->open, key);
    if (at < 0) {
        long_row row = {key, c->line, c->line, NULL};
        hmputs(c->open, row);
        at = hmgeti(c->open, key);
    }
    c->open[at].last = c->line;
    return &c->open[at];
}

static int in_order(const void *a, const void *b)
{
    const long_row *x = a, *y = b;
    if (x->key.step != y->key.step) return x->key.step < y->key.step ? -1 : 1;
    if (x->key.layer != y->key.layer) return x->key.layer < y->key.layer ? -1 : 1;
    return (x->line > y->line) - (x->line < y->line);
}

/* Rows that no line has named for some time are complete; experts that no line named received nothing. */
static void close_rows(csv_reader *c, int64_t before)
{
    long_row *done = NULL;
    for (ptrdiff_t i = 0; i < hmlen(c->open); i++)
        if (c->open[i].last < before) arrput(done, c->open[i]);
    if (arrlen(done) > 0) qsort(done, (size_t)arrlen(done), sizeof *done, in_order);
    for (ptrdiff_t i = 0; i < arrlen(done); i++) {
        long_row *at = &done[i];
        cli_row row = {c->label[at->key.label], at->key.step, at->key.layer, at->line, at->loads, arrlen(at->loads),
                       NULL, 0, 0};
        (void)hmdel(c->open, at->key);
        for (ptrdiff_t e = 0; e < arrlen(at->loads); e++)
            if (at->loads[e] < 0.0) at->loads[e] = 0.0;
        if (cli_rows_has(c->rows, &row))
            cli_die(CLI_USAGE, "%s:%lld: more of step %lld, layer %lld, whose lines before are more than %d lines "
                               "above: sort the file by step and layer",
                    c->path, (long long)at->line, (long long)row.step, (long long)row.layer, MOST_LINES);
        cli_rows_add(c->rows, &row);
        arrfree(at->loads);
    }
    arrfree(done);
}

static void put_long(csv_reader *c, const char *label, const cli_row *row, int64_t expert, double count)
{
    long_key key = {label_of(c, label), row->step, row->layer < 0 ? 0 : row->layer};
    long_row *at;
    if (c->line % MOST_LINES == 0) close_rows(c, c->line - MOST_LINES);
    at = row_of_line(c, key);
    if (expert >= MAX_EXPERTS)
        cli_die(CLI_USAGE, "%s:%lld: expert %lld; at most %d", c->path, (long long)c->line,
                (long long)expert, MAX_EXPERTS);
    while (arrlen(at->loads) <= expert) arrput(at->loads, NOT_GIVEN);
    if (at->loads[expert] >= 0.0)
        cli_die(CLI_USAGE, "%s:%lld: expert %lld of this layer was already given", c->path,
                (long long)c->line, (long long)expert);
    at->loads[expert] = count;
}

static void csv_line(csv_reader *c, char **fields)
{
    cli_row row = {NULL, 0, -1, c->line, NULL, 0, NULL, 0, 0};
    int64_t expert = -1;
    double count = 0.0, *loads = NULL;
    char label[256] = "";
    if (c->role && arrlen(fields) != arrlen(c->role))
        cli_die(CLI_USAGE, "%s:%lld: %td fields where the header has %td", c->path,
                (long long)c->line, arrlen(fields), arrlen(c->role));
    for (ptrdiff_t i = 0; i < arrlen(fields); i++) {
        switch (c->role ? c->role[i] : ROLE_COUNT) {
        case ROLE_LABEL:
            if (*label) strncat(label, "/", sizeof label - strlen(label) - 1);
            strncat(label, fields[i], sizeof label - strlen(label) - 1);
            break;
        case ROLE_LAYER:
            row.layer = csv_integer(c, fields[i], "layer");
            break;
        case ROLE_STEP:
            row.step = csv_integer(c, fields[i], "step");
            break;
        case ROLE_EXPERT:
            expert = csv_integer(c, fields[i], "expert");
            break;
        case ROLE_COUNT:
            count = csv_load(c, fields[i], i);
            if (!c->long_form) arrput(loads, count);
            break;
        case ROLE_IGNORED:
        default:
            break;
        }
    }
    if (c->long_form) {
        put_long(c, label, &row, expert, count);
        return;
    }
    /* no layer column: the lines of a recording are its layers in order */
    if (row.layer < 0) row.layer = cli_rows_count(c->rows, label, row.step);
    row.label = label;
    row.loads = loads;
    row.n = arrlen(loads);
    cli_rows_add(c->rows, &row);
    arrfree(loads);
}

static int has_layers(const csv_reader *c)
{
    for (ptrdiff_t i = 0; i < arrlen(c->role); i++)
        if (c->role[i] == ROLE_LAYER) return 1;
    return 0;
}

/* The first kind of separator that stands outside quotes. */
static char guess_separator(const char *line)
{
    for (const char *one = ",;\t"; *one; one++) {
        int quoted = 0;
        for (const char *p = line; *p; p++) {
            quoted ^= *p == '"';
            if (*p == *one && !quoted) return *one;
        }
    }
    return ' ';
}

void cli_read_csv(cli_trace **list, const char *path, FILE *f, const cli_read_options *o)
{
    csv_reader c;
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    ptrdiff_t at = arrlen(*list);
    int started = 0, numbered;
    int64_t under = 0;
    memset(&c, 0, sizeof c);
    c.path = path;
    while ((n = cli_getline(&line, &room, f, path)) >= 0) {
        char **fields, *text = line;
        c.line++;
        if (strlen(line) != (size_t)n)
            cli_die(CLI_USAGE, "%s:%lld: holds a zero byte: not a text file", path,
                    (long long)c.line);
        if (c.line == 1 && strncmp(text, "\xef\xbb\xbf", 3) == 0) text += 3;
        for (const unsigned char *p = (const unsigned char *)text; *p; p++)
            if (*p < 32u && *p != '\t' && *p != '\n' && *p != '\r')
                cli_die(CLI_USAGE, "%s:%lld: holds control characters: not a text file", path,
                        (long long)c.line);
        text = text + strspn(text, " \r\n");
        if (*text == '#' || !*text) continue;
        if (!started) c.separator = guess_separator(text);
        fields = split_line(&c, text);
        if (started) {
            if (c.bare && arrlen(fields) == 2 && arrlen(c.role) == 2) refuse_bare(&c, 2);
            csv_line(&c, fields);
            under++;
        } else {
            int header = csv_header(&c, fields);
            c.rows = cli_rows_new(path, o, c.long_form ? CLI_ROWS_GROW : CLI_ROWS_EQUAL);
            if (!header) csv_line(&c, fields);
        }
        started = 1;
        arrfree(fields);
    }
    free(line);
    if (c.bare && under == 0) refuse_bare(&c, arrlen(c.role));
    numbered = has_layers(&c);
    arrfree(c.role);
    if (!c.rows) c.rows = cli_rows_new(path, o, CLI_ROWS_EQUAL);
    close_rows(&c, INT64_MAX);
    hmfree(c.open);
    for (ptrdiff_t i = 0; i < arrlen(c.label); i++) free(c.label[i]);
    arrfree(c.label);
    cli_rows_end(c.rows, list);
    for (; !numbered && at < arrlen(*list); at++) {
        cli_trace *t = &(*list)[at];
        t->unnumbered = t->layers;
        if (c.bare)
            t->note = cli_format("%s: its first line, 0 to %d, is taken for the header of the experts, not for loads.",
                                 t->name, t->experts - 1);
    }
}
