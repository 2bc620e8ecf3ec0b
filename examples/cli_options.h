/* cli_options.h - options that several commands share, reading of all inputs, writing of all outputs
 * SPDX-License-Identifier: MIT */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "cli_base.h"
#include "cli_read.h"
#include "cli_screen.h"
#include "cli_setup.h"

#include <getopt.h>

/* Values from 1024 on; a command numbers its own options from 256. */
enum {
    CLI_O_EXPERTS = 1024,
    CLI_O_ONLY,
    CLI_O_LAYERS_FIRST,
    CLI_O_COUNTS,
    CLI_O_HTML,
    CLI_O_JSON,
    CLI_O_WIDTH,
    CLI_O_ASCII,
    CLI_O_COLOR,
    CLI_O_HELP,
    CLI_O_DEVICES,
    CLI_O_SLOTS,
    CLI_O_NODES,
    CLI_O_GROUPS,
    CLI_O_TOKENS,
    CLI_O_TOPK,
    CLI_O_MODEL,
    CLI_O_MACHINE,
    CLI_O_HIDDEN,
    CLI_O_INTER,
    CLI_O_OTHER,
    CLI_O_TARGET,
    CLI_O_GAIN,
    CLI_O_HORIZON,
    CLI_O_ROUND_ROBIN,
    CLI_O_FORMAT,
    CLI_O_KERNELS
};

/* Lines of a getopt_long table. */
#define CLI_COMMON_OPTIONS                                                                        \
    {"experts", 1, NULL, CLI_O_EXPERTS}, {"only", 1, NULL, CLI_O_ONLY},                           \
        {"layers-first", 0, NULL, CLI_O_LAYERS_FIRST}, {"counts", 0, NULL, CLI_O_COUNTS},         \
        {"html", 1, NULL, CLI_O_HTML}, {"json", 0, NULL, CLI_O_JSON},                             \
        {"format", 1, NULL, CLI_O_FORMAT},                                                        \
        {"width", 1, NULL, CLI_O_WIDTH}, {"ascii", 0, NULL, CLI_O_ASCII},                         \
        {"color", 1, NULL, CLI_O_COLOR}, {"help", 0, NULL, CLI_O_HELP}
#define CLI_SHAPE_OPTIONS                                                                         \
    {"devices", 1, NULL, CLI_O_DEVICES}, {"nodes", 1, NULL, CLI_O_NODES},                         \
        {"slots", 1, NULL, CLI_O_SLOTS}, {"target", 1, NULL, CLI_O_TARGET},                       \
        {"model", 1, NULL, CLI_O_MODEL}, {"machine", 1, NULL, CLI_O_MACHINE},                     \
        {"hidden", 1, NULL, CLI_O_HIDDEN}, {"intermediate", 1, NULL, CLI_O_INTER}
#define CLI_STEP_OPTIONS                                                                          \
    {"groups", 1, NULL, CLI_O_GROUPS}, {"tokens", 1, NULL, CLI_O_TOKENS},                         \
        {"topk", 1, NULL, CLI_O_TOPK}, {"other-ms", 1, NULL, CLI_O_OTHER},                        \
        {"min-gain", 1, NULL, CLI_O_GAIN}, {"horizon", 1, NULL, CLI_O_HORIZON},                   \
        {"round-robin", 0, NULL, CLI_O_ROUND_ROBIN}, {"kernels", 1, NULL, CLI_O_KERNELS}

/* What the common options say. */
typedef struct cli_common {
    cli_read_options read;
    cli_screen screen;
    const char *html;
    int json;
    const char *format; /* "csv" or "svg", NULL = what the others say */
    const char *form;   /* what --format was given, NULL = nothing    */
} cli_common;

/* Takes an option that all commands, or all that know a machine, share.  0 = it is none of them. */
int cli_common_option(cli_common *o, int option, const char *value, const char *help);
int cli_setup_option(cli_setup *s, int option, const char *value);

/* The command that runs, for messages. */
extern const char *cli_command;
/* The next option of the table as getopt_long gives it, -h as --help; -1 = the last is taken.  Leaves at one that is
 * none, and at a second value of any but the one that may have several (NULL = none may). */
int cli_option(int argc, char **argv, const struct option *list, const char *several);
/* The texts between the commas, stb_ds, kept to the end of the program; leaves where there is none. */
char **cli_list(const char *option, const char *text);
/* Such a list of devices, each named once; stb_ds. */
int32_t *cli_device_list(const char *option, const char *text);

/* Leaves when the planner wants as many slots on every device and the shape has not.  origin: who says how many there
 * are ("map.csv has"); NULL = --slots does. */
void cli_check_slots(const char *planner, const char *origin, int32_t experts, int32_t devices, int32_t slots);

/* Options that set one number each: where it goes in a struct, and what it may be. */
typedef enum cli_kind { CLI_INT32, CLI_INT64, CLI_DOUBLE } cli_kind;
typedef struct cli_number_option {
    int option;
    const char *name;
    cli_kind kind;
    size_t offset;
    double least, most;
    double unit; /* of a double: what one of the option is in the struct; 0 = 1 */
} cli_number_option;
/* Takes the option if it is one of the n; 0 = it is none of them. */
int cli_take_number(const cli_number_option *list, size_t n, void *target, int option, const char *value);

/* Values of options; leave with exit code 2 when the text is none. */
int64_t cli_option_count(const char *option, const char *text, int64_t least, int64_t most);
double cli_option_number(const char *option, const char *text, double least, double most);

/* Reads all inputs (argv[from..argc-1]) and makes them comparable.  Returns an stb_ds array. */
cli_trace *cli_read_all(int argc, char **argv, int from, const cli_read_options *options, int drop, char **left_out);
/* What was taken for granted in reading them, to what was assumed. */
void cli_note_inputs(cli_setup *s, const cli_trace *list);
/* Which layers cli_read_all has dropped, where the answer does not say it otherwise. */
void cli_note_left_out(cli_setup *s, const char *left_out);

/* Leaves when the output is one of the inputs. */
void cli_refuse_overwriting(const char *output, int argc, char **argv, int from);
/* Leaves when a further output is to go where the answer goes; the path may be NULL. */
void cli_refuse_stdout(const char *option, const char *path);

/* The three forms of an answer. */
typedef struct cli_writers {
    void (*text)(const void *data, FILE *f, const chart_text *t);
    void (*json)(const void *data, FILE *f);
    void (*html)(const void *data, FILE *f);
} cli_writers;

/* Checks that the page can be written, before long work; then writes everything that was asked for. */
void cli_open_page(const cli_common *o, cli_out *page, int argc, char **argv, int from);
void cli_write_all(const cli_common *o, cli_out *page, const void *data, const cli_writers *w);

/* A table for a spreadsheet and a picture by itself, for the commands that have them. */
typedef struct cli_more_writers {
    void (*csv)(const void *data, FILE *f);
    void (*svg)(const void *data, FILE *f);
} cli_more_writers;

/* Leaves when --format names a form that is not there, NULL = neither of them is; before long work. */
void cli_check_form(const cli_common *o, const cli_more_writers *more);
/* cli_write_all with them. */
void cli_write_forms(const cli_common *o, cli_out *page, const void *data, const cli_writers *w,
                     const cli_more_writers *more);

#endif
