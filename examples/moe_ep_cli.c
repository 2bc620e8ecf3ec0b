/* moe_ep_cli.c - moe-ep: which rank is the bottleneck, what does it cost, what would fixing it save, is it worth it?
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_commands.h"
#include "cli_map.h"
#include "cli_report.h"

#include <getopt.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static const char main_help[] =
    "usage: moe-ep COMMAND ...\n"
    "\n"
    "  report INPUT...   which device is the bottleneck, what it costs, what a new placement "
    "saves, whether it is worth it\n"
    "  place INPUT       a plan: which expert goes into which slot, for SGLang (JSON), TensorRT-LLM (YAML) "
    "or as CSV\n"
    "  rebalance [MAP] INPUT...   from the placement that runs now to a better one, with few "
    "moves\n"
    "  diagnose A [B...] plan on A, judge on B: recommend, not now or insufficient evidence, and "
    "why\n"
    "  copies INPUT      how many copies of experts reach a balance, and what they cost\n"
    "  sweep             which EP size, how many redundant experts and which batch for a model on "
    "a machine\n"
    "  inspect           parameters, memory, legality and EP against TP of a model on a machine, without a recording\n"
    "  simulate          requests through an instance of a cluster file, step by step\n"
    "  forward           runs an MoE layer on this machine: checked, and against what the machine allows\n"
    "  traffic INPUT     the rank x rank matrix of bytes, as CSV or JSON for network simulators\n"
    "  drops IDS         rows, tokens and routing weight lost at a capacity, by who comes first\n"
    "  watch FILE        follows a trace that a server is writing, on the terminal\n"
    "  route INPUT       logits, or hidden states and a gate, through a named router; compared "
    "with recorded ids\n"
    "  presets           models, machines and routers known by name\n"
    "\n"
    "moe-ep COMMAND --help tells more; moe-ep --version the version.\n"
    "Exit codes: 0 done, 1 the machine failed (disk, memory), 2 bad usage or bad input;\n"
    "diagnose --exit-code also 3 and 4, inspect --exit-code also 3.\n";

static const char report_help[] =
    "usage: moe-ep report INPUT... [options]\n"
    "\n"
    "Plans on the first input and judges on the others; with one input of several steps, on its "
    "second half.\n"
    "\n"
    "inputs (ordinary files; no pipes, no standard input)\n"
    "  ids.npy           integers (tokens, layers, choices) or (tokens, choices); -1 = none\n"
    "  loads.npy         floats, or integers with --counts: (layers, experts) or (steps, layers, "
    "experts)\n"
    "  counts.csv        label columns, layer, one column per expert; or label, layer, expert, "
    "count; or plain rows\n"
    "  counts.json       {\"logical_count\": [layer][expert]}, also [step][layer][expert]; or "
    "{\"0\": [...], ...}\n"
    "  ids.jsonl         {\"step\": 0, \"layer\": 3, \"ids\": [[1, 5], ...]} or \"counts\": [...] "
    "on each line\n"
    "  expert_statistic/ TensorRT-LLM's folder: meta_info.json and rankN.safetensors\n"
    "\n"
    "  --devices D       devices (ranks) that share the experts\n"
    "  --slots P         places for experts over all devices, copies included\n"
    "  --nodes N         nodes, of equal size (one for every 8 devices, or as many as a node of the machine has)\n"
    "  --groups G        expert groups of the router\n"
    "  --tokens T        tokens per step over all devices (as recorded; ids without steps: a quarter)\n"
    "  --topk K          --experts E   where the input does not say\n"
    "  --model NAME      --machine NAME   shapes and speeds for the step time (moe-ep presets); of a model\n"
    "                    with other experts or choices than the recording the shapes alone are taken, and the answer "
    "says so\n"
    "  --hidden H        --intermediate I   matrix shapes instead of the model's\n"
    "  --kernels NAME    of dispatch and combine: auto (normal from 512 tokens per device on), normal or low-latency\n"
    "  --other-ms X      attention and the rest of a step, in milliseconds\n"
    "  --target R        max/mean for which copies are counted (1.05)\n"
    "  --min-gain S      least share of a step that makes it worth while (0.05)\n"
    "  --horizon N       steps that a plan will serve, for the break-even (no limit)\n"
    "  --round-robin     today's placement is expert e on device e mod D, not contiguous blocks\n"
    "  --current MAP     today's placement (.json, .yaml, .csv; see moe-ep rebalance --help)\n"
    "  --only TEXT       of a CSV with several recordings, those whose label contains TEXT\n"
    "  --layers-first    ids are (layers, tokens, choices)      --counts   an integer .npy holds "
    "counts\n"
    "\n"
    "  --html FILE       writes the report as one HTML page      --json   prints one JSON object "
    "instead of text\n"
    "  --format F        text, json, html, csv (a line per layer) or svg (the devices before and after) on "
    "standard output\n"
    "  --charts          the text with every picture, as in the page, every device and every layer\n"
    "  --width W         --ascii   --color auto|always|never     (NO_COLOR is respected)\n";

enum { O_CHARTS = 256, O_CURRENT };

static const struct option report_long[] = {CLI_COMMON_OPTIONS,
                                            CLI_SHAPE_OPTIONS,
                                            CLI_STEP_OPTIONS,
                                            {"charts", 0, NULL, O_CHARTS},
                                            {"current", 1, NULL, O_CURRENT},
                                            {NULL, 0, NULL, 0}};

typedef struct report {
    cli_report figures;
    cli_common common;
    cli_map map;
    const char *current;
    int charts;
} report;

static void report_text(const void *data, FILE *f, const chart_text *t)
{
    const report *r = data;
    cli_report_text(&r->figures, f, t->width, t->ascii, t->color, r->charts);
}

static void report_json(const void *data, FILE *f)
{
    cli_report_json(&((const report *)data)->figures, f);
}

static void report_csv(const void *data, FILE *f)
{
    cli_report_csv(&((const report *)data)->figures, f);
}

static void report_svg(const void *data, FILE *f)
{
    cli_report_svg(&((const report *)data)->figures, f);
}

static void report_html(const void *data, FILE *f)
{
    cli_report_html(&((const report *)data)->figures, f);
}

/* The options that the inputs were read with, for the commands that the report names. */
static char *reading_args(const cli_read_options *o)
{
    char *experts = o->experts > 0 ? cli_format(" --experts %d", o->experts) : cli_strdup("");
    char *text = cli_format("%s%s%s", experts, o->layers_first ? " --layers-first" : "",
                            o->as_counts ? " --counts" : "");
    free(experts);
    return text;
}

/* The placement that runs, with its devices and slots. */
static void use_map(report *r, cli_setup *setup)
{
    if (!r->current) return;
    if (setup->round_robin) cli_die(CLI_USAGE, "--current and --round-robin: one of them");
    r->map = cli_map_read(r->current);
    setup->map = &r->map;
    if (setup->devices == 0) setup->devices = r->map.devices;
    if (setup->devices == 0)
        cli_die(CLI_USAGE, "%s does not say on how many devices its slots are: --devices is needed", r->current);
    cli_map_check_even(&r->map, setup->devices, setup->slots);
    if (setup->slots > 0) return;
    setup->slots = r->map.slots;
    setup->slots_of = r->current;
}

int cli_report_main(int argc, char **argv)
{
    static const cli_writers writers = {report_text, report_json, report_html};
    static const cli_more_writers more = {report_csv, report_svg};
    report r;
    cli_setup setup;
    cli_out page;
    cli_trace *traces;
    char *left_out;
    int option;
    memset(&r, 0, sizeof r);
    memset(&setup, 0, sizeof setup);
    setup.target = 1.05;
    setup.min_gain = 0.05;
    r.common.screen.color = "auto";
    while ((option = cli_option(argc, argv, report_long, NULL)) != -1) {
        if (option == O_CHARTS)
            r.charts = 1;
        else if (option == O_CURRENT)
            r.current = optarg;
        else if (!cli_setup_option(&setup, option, optarg))
            (void)cli_common_option(&r.common, option, optarg, report_help);
    }
    setup.read_args = reading_args(&r.common.read);
    setup.only = r.common.read.only;
    use_map(&r, &setup);
    cli_check_form(&r.common, &more);
    cli_open_page(&r.common, &page, argc, argv, optind);
    traces = cli_read_all(argc, argv, optind, &r.common.read, 1, &left_out);
    cli_report_make(&r.figures, traces, (int)arrlen(traces), left_out, &setup);
    cli_write_forms(&r.common, &page, &r, &writers, &more);
    cli_report_free(&r.figures);
    cli_traces_free(traces);
    free(setup.assumed);
    free(setup.read_args);
    cli_map_free(&r.map);
    return CLI_OK;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {{"report", cli_report_main},     {"place", cli_place_main},
                {"route", cli_route_main},       {"rebalance", cli_rebalance_main},
                {"diagnose", cli_diagnose_main}, {"copies", cli_copies_main},
                {"sweep", cli_sweep_main},       {"simulate", cli_simulate_main}, {"forward", cli_forward_main},
                {"inspect", cli_inspect_main},
                {"watch", cli_watch_main},       {"traffic", cli_traffic_main},
                {"drops", cli_drops_main}};

static const char presets_help[] =
    "usage: moe-ep presets\n"
    "\n"
    "Lists the models, machines and routers that are known by name, with their sources.  No inputs, no options.\n";

/* For what stands by itself on the command line. */
static void refuse_more(int argc, char **argv)
{
    if (argc > 2) cli_die(CLI_USAGE, "%s: nothing can follow moe-ep %s", argv[2], argv[1]);
}

int main(int argc, char **argv)
{
    cli_start();
    if (argc < 2) {
        fputs(main_help, stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        refuse_more(argc, argv);
        cli_help(main_help);
    }
    if (strcmp(argv[1], "--version") == 0) {
        refuse_more(argc, argv);
        printf("moe-ep %s\n", moe_ep_version());
        cli_flush();
        return CLI_OK;
    }
    if (strcmp(argv[1], "presets") == 0) {
        if (argc == 3 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0)) cli_help(presets_help);
        refuse_more(argc, argv);
        cli_presets(stdout);
        cli_flush();
        return CLI_OK;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(argv[1], commands[i].name) == 0) {
            cli_command = commands[i].name;
            return commands[i].run(argc - 1, argv + 1);
        }
    cli_die(CLI_USAGE, "%.60s: no such command; moe-ep --help lists them", argv[1]);
}
