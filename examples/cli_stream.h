/* cli_stream.h - JSON files of any size, value after value: the file is never held in memory
 * SPDX-License-Identifier: MIT
 *
 * Brackets, commas and keys are walked here; every value that is wanted goes through jansson. */
#ifndef CLI_STREAM_H
#define CLI_STREAM_H

#include "cli_base.h"

#include <jansson.h>

enum { CLI_STREAM_BUFFER = 1 << 16, CLI_STREAM_DEPTH = 64 };

typedef struct cli_stream {
    const char *path;
    FILE *file;
    int64_t left;          /* bytes that may still be read from the file   */
    int64_t line, column;  /* of the next character, from 1                */
    size_t at, end;        /* what is left of the buffer                   */
    unsigned char buffer[CLI_STREAM_BUFFER];
    char *text;            /* stb_ds: the value that is being collected    */
    int64_t size;          /* bytes of the file, for the line of progress  */
} cli_stream;

/* Reads `bytes` of f from where it stands, -1 = to its end.  The stream is large: keep it off the stack. */
void cli_stream_open(cli_stream *s, const char *path, FILE *f, int64_t bytes);
void cli_stream_close(cli_stream *s); /* not the file */
/* To the beginning of the file again. */
void cli_stream_rewind(cli_stream *s);

/* The next character that is no blank, which stays; -1 = the end. */
int cli_stream_peek(cli_stream *s);
/* Takes this character or leaves with "... expected". */
void cli_stream_take(cli_stream *s, int c);
/* In a list or an object: 1 = one more follows (the comma is taken), 0 = it is over (the bracket is taken).
 * *first starts as 1. */
int cli_stream_more(cli_stream *s, int close, int *first);
/* The key and its colon; malloc'd. */
char *cli_stream_key(cli_stream *s);
/* The next value, which must not be longer than a row of numbers can be; opened = '[' when its bracket was taken
 * already, else 0. */
json_t *cli_stream_value(cli_stream *s, int opened);
/* Past the next value, of any size. */
void cli_stream_skip(cli_stream *s);
/* Nothing but blanks may follow. */
void cli_stream_done(cli_stream *s);

/* What stands on a line of n bytes of JSON lines; NULL = it is blank.  Leaves where it is no JSON. */
json_t *cli_json_line(const char *path, int64_t line, const char *text, size_t n);
/* A value as it stands in a file, short enough for a message; "nothing" for NULL.  Kept to the end of the program. */
const char *cli_json_shown(const json_t *value);

/* From the beginning: is the root an object with this key?  Then the stream stands before its value. */
int cli_stream_find(cli_stream *s, const char *key);
/* What follows that value, for its faults: the other keys, then nothing. */
void cli_stream_rest(cli_stream *s, const char *key);

#endif
