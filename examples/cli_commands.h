/* cli_commands.h - the subcommands of moe-ep and what they share
 * SPDX-License-Identifier: MIT */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "cli_base.h"
#include "cli_read.h"

/* Each takes its own arguments (argv[0] is the name of the subcommand) and returns an exit code. */
int cli_report_main(int argc, char **argv);
int cli_place_main(int argc, char **argv);
int cli_route_main(int argc, char **argv);

/* Values of options; leave with exit code 2 when the text is none. */
int64_t cli_option_count(const char *option, const char *text, int64_t least, int64_t most);
double cli_option_number(const char *option, const char *text, double least, double most);

/* Reads all inputs (argv[from..argc-1]) and makes them comparable.  Returns an stb_ds array. */
cli_trace *cli_read_all(int argc, char **argv, int from, const cli_read_options *options, int drop, char **left_out);

#endif
