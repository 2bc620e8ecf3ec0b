/* cli_base.h - what every part of the moe-ep tool shares: messages, exit codes, whole files or none
 * SPDX-License-Identifier: MIT */
#ifndef CLI_BASE_H
#define CLI_BASE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "moe_ep.h"

enum { CLI_OK = 0, CLI_INTERNAL = 1, CLI_USAGE = 2 }; /* exit codes */

/* Prints "moe-ep: ..." as one clean line on stderr, removes unfinished output files and leaves with the exit code. */
void cli_die(int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));

/* Leaves unless the status is OK; what names the thing that was being worked out. */
void cli_check(moe_ep_status status, const moe_ep_error *err, const char *what);

/* Memory that is refused ends the program with one line: what it would have left out of an answer is not shown. */
void cli_start(void); /* the same for jansson, and signals; first of all */
void *cli_alloc(size_t count, size_t size); /* zeroed; never NULL */
char *cli_strdup(const char *s);
char *cli_keep(char *text); /* frees the text at the end of the program; returns it */
void *cli_keep_block(void *block); /* the same for what cli_alloc gave */
char *cli_format(const char *format, ...) __attribute__((format(printf, 1, 2))); /* malloc'd text */

/* Number with thin groups of three, as text in one of eight rotating buffers: 1234567 -> "1,234,567". */
const char *cli_count(double v);
/* Seconds as text with a unit that keeps three digits: 0.00123 -> "1.23 ms". */
const char *cli_seconds(double s);
/* Bytes as text: 2554331136 -> "2.55 GB" (powers of ten). */
const char *cli_bytes(double b);

/* Opens an ordinary file for reading; leaves at anything else, so that no pipe is waited for. */
FILE *cli_open_input(const char *path);

/* The next line of a file as getline reads it; -1 = the end.  Leaves at an error, memory among them. */
ssize_t cli_getline(char **line, size_t *room, FILE *f, const char *path);
/* The exit code for what errno says about an input: it is wrong, or the machine failed. */
int cli_errno_code(void);

/* Rising numbers as text, "3, 8-15"; malloc'd. */
char *cli_ranges(const int32_t *number, ptrdiff_t n);
/* How many of n rising numbers are below v: where it is, or would be put in. */
ptrdiff_t cli_rank(const int64_t *rising, ptrdiff_t n, int64_t v);

/* A stream into memory; text[length] is 0 after the end, and whoever asked for it frees it. */
typedef struct cli_text {
    FILE *stream; /* write here */
    char *text;
    size_t length, room;
    int failed;
} cli_text;

void cli_text_open(cli_text *t);
void cli_text_end(cli_text *t); /* leaves unless all that was written is there */

/* An output that appears whole or not at all: written in memory, then to a temporary file beside the
 * target, synced and renamed.  Opening checks that the target can be written before long work starts, and that it is
 * neither an input nor another output. */
typedef struct cli_out {
    const char *path;
    const char *target; /* where the path leads */
    char *temp;
    FILE *stream; /* write here */
    cli_text text;
    int fd;
} cli_out;

void cli_out_open(cli_out *out, const char *path); /* "-" is stdout */
void cli_out_commit(cli_out *out);
/* Ends what goes to standard output; leaves with a message where it cannot be written. */
void cli_flush(void);
/* Prints a help text and leaves. */
void cli_help(const char *text) __attribute__((noreturn));

/* Writes text with &, <, > and quotes made safe for HTML, control characters dropped. */
void cli_put_html(FILE *f, const char *text);
/* Puts question marks for what is no text in UTF-8 and for what a terminal would act on; returns the text. */
char *cli_clean(char *text);
/* Clean copy of a file name or label. */
char *cli_printable(const char *text);

/* Text as one word of a shell command; malloc'd. */
char *cli_shell_word(const char *text);

/* One line of progress on stderr when it is a terminal and more than a second has passed. */
void cli_progress(const char *what, double done, double total);
void cli_progress_end(void);

/* Strict numbers from text: the whole text must be one.  0 = it is not. */
int cli_parse_i64(const char *text, int64_t *out);
int cli_parse_double(const char *text, double *out);

#endif
