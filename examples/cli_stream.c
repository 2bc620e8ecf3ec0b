/* cli_stream.c - JSON files of any size, value after value
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_stream.h"

#include <ctype.h>
#include <errno.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TEXT = 1 << 24 }; /* 65,536 numbers of 24 digits on lines of their own are 6 MB */

void cli_stream_open(cli_stream *s, const char *path, FILE *f, int64_t bytes)
{
    int64_t at = (int64_t)ftello(f);
    s->path = path;
    s->file = f;
    s->line = s->column = 1;
    s->at = s->end = 0;
    s->text = NULL;
    if (at < 0 || fseeko(f, 0, SEEK_END) != 0) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    s->size = (int64_t)ftello(f);
    if (fseeko(f, (off_t)at, SEEK_SET) != 0) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    s->left = bytes < 0 ? s->size - at : bytes;
}

void cli_stream_close(cli_stream *s)
{
    arrfree(s->text);
}

void cli_stream_rewind(cli_stream *s)
{
    arrfree(s->text);
    rewind(s->file);
    cli_stream_open(s, s->path, s->file, -1);
}

/* ---- characters -------------------------------------------------------------------------------------------- */

static int fill(cli_stream *s)
{
    size_t most = s->left < CLI_STREAM_BUFFER ? (size_t)s->left : CLI_STREAM_BUFFER;
    s->at = 0;
    s->end = most > 0 ? fread(s->buffer, 1, most, s->file) : 0;
    if (ferror(s->file)) cli_die(CLI_INTERNAL, "%s: %s", s->path, strerror(errno));
    s->left -= (int64_t)s->end;
    cli_progress("reading", (double)(s->size - s->left), (double)s->size);
    return s->end > 0;
}

/* The next character, which stays; -1 = the end. */
static int look(cli_stream *s)
{
    return s->at == s->end && !fill(s) ? -1 : s->buffer[s->at];
}

/* The next character; -1 = the end. */
static int get(cli_stream *s)
{
    int c = look(s);
    if (c < 0) return c;
    s->at++;
    if (c == '\n') {
        s->line++;
        s->column = 1;
    } else {
        s->column += (c & 0xc0) != 0x80;
    }
    return c;
}

static void wrong(const cli_stream *s, const char *what) __attribute__((noreturn));
static void wrong(const cli_stream *s, const char *what)
{
    cli_die(CLI_USAGE, "%s:%lld:%lld: %s", s->path, (long long)s->line, (long long)s->column, what);
}

int cli_stream_peek(cli_stream *s)
{
    int c;
    while ((c = look(s)) == ' ' || c == '\t' || c == '\n' || c == '\r') (void)get(s);
    return c;
}

void cli_stream_take(cli_stream *s, int c)
{
    char what[] = "' ' expected";
    what[1] = (char)c;
    if (cli_stream_peek(s) != c) wrong(s, cli_stream_peek(s) < 0 ? "the file ends inside a value" : what);
    (void)get(s);
}

int cli_stream_more(cli_stream *s, int close, int *first)
{
    int was_first = *first;
    *first = 0;
    if (cli_stream_peek(s) == close) {
        (void)get(s);
        return 0;
    }
    if (!was_first) cli_stream_take(s, ',');
    if (cli_stream_peek(s) < 0) wrong(s, "the file ends inside a value");
    return 1;
}

/* ---- values ------------------------------------------------------------------------------------------------ */

/* Takes a string from its first quote to its last; kept: into the text. */
static void take_string(cli_stream *s, int kept)
{
    int c = get(s), escaped = 0;
    if (kept) arrput(s->text, (char)c);
    do {
        int slash = c == '\\' && !escaped;
        c = get(s);
        if (c < 0) wrong(s, "the file ends inside a string");
        if (c < 32) wrong(s, "a control character inside a string");
        escaped = slash;
        if (kept) arrput(s->text, (char)c);
        if (arrlen(s->text) > MOST_TEXT) wrong(s, "a value is too long");
    } while (c != '"' || escaped);
}

static void keep(cli_stream *s)
{
    if (arrlen(s->text) == MOST_TEXT) wrong(s, "a list is too long for one row of numbers");
    arrput(s->text, (char)get(s));
}

/* Collects up to the bracket that closes what is open, or one scalar when nothing is. */
static void collect(cli_stream *s, int depth)
{
    int c = look(s);
    if (depth == 0 && c != '[' && c != '{' && c != '"') {
        for (; c > ' ' && !strchr(",:]}", c); c = look(s)) keep(s);
        return;
    }
    do {
        c = look(s);
        if (c < 0) wrong(s, "the file ends inside a value");
        if (c == '"') {
            take_string(s, 1);
            continue;
        }
        depth += (c == '[' || c == '{') - (c == ']' || c == '}');
        keep(s);
    } while (depth > 0);
}

json_t *cli_stream_value(cli_stream *s, int opened)
{
    int64_t line, column;
    json_error_t e;
    json_t *value;
    (void)cli_stream_peek(s);
    arrsetlen(s->text, 0);
    if (opened) arrput(s->text, (char)opened);
    line = s->line;
    column = s->column - (opened != 0);
    collect(s, opened != 0);
    value = json_loadb(s->text, (size_t)arrlen(s->text), JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &e);
    if (!value)
        cli_die(CLI_USAGE, "%s:%lld:%lld: %s", s->path, (long long)line + e.line - 1,
                e.line == 1 ? (long long)column + e.column - 1 : (long long)e.column, cli_printable(e.text));
    return value;
}

char *cli_stream_key(cli_stream *s)
{
    json_t *key;
    char *text;
    if (cli_stream_peek(s) != '"') wrong(s, "a key in quotes expected");
    key = cli_stream_value(s, 0);
    text = cli_strdup(json_string_value(key));
    json_decref(key);
    cli_stream_take(s, ':');
    return text;
}

static void skip(cli_stream *s, int depth)
{
    int c = cli_stream_peek(s), first = 1;
    if (depth > CLI_STREAM_DEPTH) wrong(s, "nested too deep");
    if (c == '"') {
        take_string(s, 0);
    } else if (c == '[') {
        (void)get(s);
        while (cli_stream_more(s, ']', &first)) skip(s, depth + 1);
    } else if (c == '{') {
        (void)get(s);
        while (cli_stream_more(s, '}', &first)) {
            free(cli_stream_key(s));
            skip(s, depth + 1);
        }
    } else if (c == '-' || isdigit(c)) { /* a number; the strict look at it is for those that are used */
        for (; isalnum(c) || (c > 0 && strchr(".+-", c)); c = look(s)) (void)get(s);
    } else {
        json_decref(cli_stream_value(s, 0));
    }
}

void cli_stream_skip(cli_stream *s)
{
    skip(s, 0);
}

void cli_stream_done(cli_stream *s)
{
    if (cli_stream_peek(s) >= 0) wrong(s, "end of file expected");
}

json_t *cli_json_line(const char *path, int64_t line, const char *text, size_t n)
{
    json_error_t e;
    json_t *value;
    if (memchr(text, '\0', n))
        cli_die(CLI_USAGE, "%s:%lld: holds a zero byte: not a text file", path, (long long)line);
    if (text[strspn(text, " \t\r\n")] == '\0') return NULL;
    value = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!value) cli_die(CLI_USAGE, "%s:%lld: %s", path, (long long)line, e.text);
    return value;
}

const char *cli_json_shown(const json_t *value)
{
    char *all = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL, *shown;
    if (!all) return "nothing";
    shown = cli_format("%.40s%s", all, strlen(all) > 40 ? "..." : "");
    free(all);
    return cli_keep(shown);
}

int cli_stream_find(cli_stream *s, const char *key)
{
    int first = 1;
    cli_stream_rewind(s);
    if (cli_stream_peek(s) != '{') return 0;
    cli_stream_take(s, '{');
    while (cli_stream_more(s, '}', &first)) {
        char *name = cli_stream_key(s);
        int here = strcmp(name, key) == 0;
        free(name);
        if (here) return 1;
        cli_stream_skip(s);
    }
    cli_stream_done(s);
    return 0;
}

void cli_stream_rest(cli_stream *s, const char *key)
{
    int first = 0;
    while (cli_stream_more(s, '}', &first)) {
        char *name = cli_stream_key(s);
        int again = strcmp(name, key) == 0;
        free(name);
        if (again) cli_die(CLI_USAGE, "%s:%lld: \"%s\" for the second time", s->path, (long long)s->line, key);
        cli_stream_skip(s);
    }
    cli_stream_done(s);
}
