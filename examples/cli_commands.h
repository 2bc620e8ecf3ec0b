/* cli_commands.h - the subcommands of moe-ep
 * SPDX-License-Identifier: MIT */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "cli_options.h"

/* Each takes its own arguments (argv[0] is the name of the subcommand) and returns an exit code. */
int cli_report_main(int argc, char **argv);
int cli_place_main(int argc, char **argv);
int cli_route_main(int argc, char **argv);
int cli_rebalance_main(int argc, char **argv);
int cli_diagnose_main(int argc, char **argv);
int cli_copies_main(int argc, char **argv);
int cli_sweep_main(int argc, char **argv);
int cli_simulate_main(int argc, char **argv);
int cli_forward_main(int argc, char **argv);
int cli_inspect_main(int argc, char **argv);
int cli_watch_main(int argc, char **argv);
int cli_traffic_main(int argc, char **argv);
int cli_drops_main(int argc, char **argv);

#endif
