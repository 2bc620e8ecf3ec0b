/* moe_ep_cli.c - moe-ep: which rank is the bottleneck, what does it cost, what would fixing it save, is it worth it?
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_commands.h"
#include "cli_report.h"

#include <getopt.h>
#include <langinfo.h>
#include <locale.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char main_help[] =
    "usage: moe-ep COMMAND ...\n"
    "\n"
    "  report INPUT...   which device is the bottleneck, what it costs, what a new placement "
    "saves, whether it is worth it\n"
    "  place INPUT       a plan: which expert goes into which slot, as SGLang's JSON or CSV\n"
    "  route INPUT       logits, or hidden states and a gate, through a named router; compared "
    "with recorded ids\n"
    "  presets           models, machines and routers known by name\n"
    "\n"
    "moe-ep COMMAND --help tells more; moe-ep --version the version.\n"
    "Exit codes: 0 done, 1 the machine failed (disk, memory), 2 bad usage or bad input.\n";

static const char report_help[] =
    "usage: moe-ep report INPUT... [options]\n"
    "\n"
    "Plans on the first input and judges on the others; with one input of several steps, on its "
    "second half.\n"
    "\n"
    "inputs\n"
    "  ids.npy           integers (tokens, layers, choices) or (tokens, choices); -1 = none\n"
    "  loads.npy         floats, or integers with --counts: (layers, experts) or (steps, layers, "
    "experts)\n"
    "  counts.csv        label columns, layer, one column per expert; or label, layer, expert, "
    "count; or plain rows\n"
    "  counts.json       {\"logical_count\": [layer][expert]}, also [step][layer][expert]; or "
    "{\"0\": [...], ...}\n"
    "  ids.jsonl         {\"step\": 0, \"layer\": 3, \"ids\": [[1, 5], ...]} or \"counts\": [...] "
    "on each line\n"
    "\n"
    "  --devices D       devices (ranks) that share the experts\n"
    "  --slots P         places for experts over all devices, copies included\n"
    "  --nodes N         --groups G    nodes; expert groups of the router\n"
    "  --tokens T        tokens per step over all devices\n"
    "  --topk K          --experts E   where the input does not say\n"
    "  --model NAME      --machine NAME   shapes and speeds for the step time (moe-ep presets)\n"
    "  --hidden H        --intermediate I   matrix shapes instead of the model's\n"
    "  --other-ms X      attention and the rest of a step, in milliseconds\n"
    "  --target R        max/mean for which copies are counted (1.05)\n"
    "  --min-gain S      least share of a step that makes it worth while (0.05)\n"
    "  --horizon N       steps that a plan will serve, for the break-even (no limit)\n"
    "  --round-robin     today's placement is expert e on device e mod D, not contiguous blocks\n"
    "  --only TEXT       of a CSV with several recordings, those whose label contains TEXT\n"
    "  --layers-first    ids are (layers, tokens, choices)      --counts   an integer .npy holds "
    "counts\n"
    "\n"
    "  --html FILE       writes the report as one HTML page      --json   prints one JSON object "
    "instead of text\n"
    "  --charts          the text with every picture, as in the page\n"
    "  --width W         --ascii   --color auto|always|never     (NO_COLOR is respected)\n";

int64_t cli_option_count(const char *option, const char *text, int64_t least, int64_t most)
{
    int64_t v;
    if (!cli_parse_i64(text, &v) || v < least || v > most)
        cli_die(CLI_USAGE, "--%s %s: a whole number from %lld to %lld is needed", option,
                cli_printable(text), (long long)least, (long long)most);
    return v;
}

double cli_option_number(const char *option, const char *text, double least, double most)
{
    double v;
    if (!cli_parse_double(text, &v) || !(v >= least) || !(v <= most))
        cli_die(CLI_USAGE, "--%s %s: a number from %g to %g is needed", option, cli_printable(text),
                least, most);
    return v;
}

/* Two recordings of one name get their folder or a number. */
static void make_unique(cli_trace *list)
{
    for (int i = 1; i < (int)arrlen(list); i++)
        for (int j = 0; j < i; j++)
            if (strcmp(list[i].name, list[j].name) == 0) {
                list[i].name = cli_format("%s (%d)", list[i].name, i + 1);
                j = -1;
            }
}

cli_trace *cli_read_all(int argc, char **argv, int from, const cli_read_options *options, int drop,
                        char **left_out)
{
    cli_trace *list = NULL;
    if (from >= argc)
        cli_die(CLI_USAGE, "no input; moe-ep %s --help tells what can be read", argv[0]);
    for (int i = from; i < argc; i++) cli_read(&list, argv[i], options);
    cli_progress_end();
    make_unique(list);
    *left_out = cli_read_align(list, (int)arrlen(list), drop);
    return list;
}

/* Writing over what is being read is a slip of the hand. */
static void refuse_overwriting(const char *output, int argc, char **argv, int from)
{
    struct stat out, in;
    if (stat(output, &out) != 0) return;
    for (int i = from; i < argc; i++)
        if (stat(argv[i], &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
            cli_die(CLI_USAGE, "%s: is an input; the report would overwrite it", output);
}

typedef struct screen {
    const char *color;
    int width, ascii;
} screen;

static int screen_width(const screen *s)
{
    struct winsize size;
    if (s->width > 0) return s->width;
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 60)
        return size.ws_col < 120 ? size.ws_col : 120;
    return 100;
}

static int screen_color(const screen *s)
{
    const char *none = getenv("NO_COLOR"), *term = getenv("TERM");
    if (strcmp(s->color, "always") == 0) return 1;
    if (strcmp(s->color, "never") == 0 || (none && *none) || (term && strcmp(term, "dumb") == 0))
        return 0;
    return isatty(STDOUT_FILENO);
}

static int screen_ascii(const screen *s)
{
    (void)setlocale(LC_CTYPE, "");
    return s->ascii || strcmp(nl_langinfo(CODESET), "UTF-8") != 0;
}

typedef struct report_options {
    cli_setup setup;
    cli_read_options read;
    screen screen;
    const char *html;
    int json, charts;
} report_options;

enum {
    O_DEVICES = 256,
    O_SLOTS,
    O_NODES,
    O_GROUPS,
    O_TOKENS,
    O_TOPK,
    O_EXPERTS,
    O_MODEL,
    O_MACHINE,
    O_HIDDEN,
    O_INTER,
    O_OTHER,
    O_TARGET,
    O_GAIN,
    O_HORIZON,
    O_ROUND_ROBIN,
    O_ONLY,
    O_LAYERS_FIRST,
    O_COUNTS,
    O_CHARTS,
    O_HTML,
    O_JSON,
    O_WIDTH,
    O_ASCII,
    O_COLOR,
    O_HELP
};

static const struct option report_long[] = {{"devices", 1, NULL, O_DEVICES},
                                            {"slots", 1, NULL, O_SLOTS},
                                            {"nodes", 1, NULL, O_NODES},
                                            {"groups", 1, NULL, O_GROUPS},
                                            {"tokens", 1, NULL, O_TOKENS},
                                            {"topk", 1, NULL, O_TOPK},
                                            {"experts", 1, NULL, O_EXPERTS},
                                            {"model", 1, NULL, O_MODEL},
                                            {"machine", 1, NULL, O_MACHINE},
                                            {"hidden", 1, NULL, O_HIDDEN},
                                            {"intermediate", 1, NULL, O_INTER},
                                            {"other-ms", 1, NULL, O_OTHER},
                                            {"target", 1, NULL, O_TARGET},
                                            {"min-gain", 1, NULL, O_GAIN},
                                            {"horizon", 1, NULL, O_HORIZON},
                                            {"round-robin", 0, NULL, O_ROUND_ROBIN},
                                            {"only", 1, NULL, O_ONLY},
                                            {"layers-first", 0, NULL, O_LAYERS_FIRST},
                                            {"counts", 0, NULL, O_COUNTS},
                                            {"charts", 0, NULL, O_CHARTS},
                                            {"html", 1, NULL, O_HTML},
                                            {"json", 0, NULL, O_JSON},
                                            {"width", 1, NULL, O_WIDTH},
                                            {"ascii", 0, NULL, O_ASCII},
                                            {"color", 1, NULL, O_COLOR},
                                            {"help", 0, NULL, O_HELP},
                                            {NULL, 0, NULL, 0}};

/* Options that describe the machine and the step. */
static int setup_option(cli_setup *s, int option, const char *value)
{
    switch (option) {
    case O_DEVICES:
        s->devices = (int32_t)cli_option_count("devices", value, 1, 65536);
        return 1;
    case O_SLOTS:
        s->slots = (int32_t)cli_option_count("slots", value, 1, 1 << 20);
        return 1;
    case O_NODES:
        s->nodes = (int32_t)cli_option_count("nodes", value, 1, 65536);
        return 1;
    case O_GROUPS:
        s->groups = (int32_t)cli_option_count("groups", value, 1, 65536);
        return 1;
    case O_TOKENS:
        s->tokens = cli_option_count("tokens", value, 1, 1000000000);
        return 1;
    case O_TOPK:
        s->top_k = (int32_t)cli_option_count("topk", value, 1, 512);
        return 1;
    case O_MODEL:
        s->model_name = value;
        return 1;
    case O_MACHINE:
        s->machine_name = value;
        return 1;
    case O_HIDDEN:
        s->hidden = (int32_t)cli_option_count("hidden", value, 1, 1 << 20);
        return 1;
    case O_INTER:
        s->intermediate = (int32_t)cli_option_count("intermediate", value, 1, 1 << 20);
        return 1;
    case O_OTHER:
        s->other_s = 1e-3 * cli_option_number("other-ms", value, 0.0, 1e6);
        return 1;
    case O_TARGET:
        s->target = cli_option_number("target", value, 1.0, 1e6);
        return 1;
    case O_GAIN:
        s->min_gain = cli_option_number("min-gain", value, 0.0, 1.0);
        return 1;
    case O_HORIZON:
        s->horizon_steps = cli_option_number("horizon", value, 1.0, 1e15);
        return 1;
    case O_ROUND_ROBIN:
        s->round_robin = 1;
        return 1;
    default:
        return 0;
    }
}

static void report_option(report_options *o, int option, const char *value)
{
    if (setup_option(&o->setup, option, value)) return;
    switch (option) {
    case O_EXPERTS:
        o->read.experts = (int32_t)cli_option_count("experts", value, 1, 65536);
        break;
    case O_ONLY:
        o->read.only = value;
        break;
    case O_LAYERS_FIRST:
        o->read.layers_first = 1;
        break;
    case O_CHARTS:
        o->charts = 1;
        break;
    case O_COUNTS:
        o->read.as_counts = 1;
        break;
    case O_HTML:
        o->html = value;
        break;
    case O_JSON:
        o->json = 1;
        break;
    case O_WIDTH:
        o->screen.width = (int)cli_option_count("width", value, 60, 400);
        break;
    case O_ASCII:
        o->screen.ascii = 1;
        break;
    case O_COLOR:
        if (strcmp(value, "auto") != 0 && strcmp(value, "always") != 0 &&
            strcmp(value, "never") != 0)
            cli_die(CLI_USAGE, "--color %s: auto, always or never", cli_printable(value));
        o->screen.color = value;
        break;
    case O_HELP:
        fputs(report_help, stdout);
        exit(fflush(stdout) == 0 ? CLI_OK : CLI_INTERNAL);
    default:
        exit(CLI_USAGE); /* getopt has said what is wrong */
    }
}

int cli_report_main(int argc, char **argv)
{
    report_options o;
    cli_report report;
    cli_out html, text;
    cli_trace *traces;
    char *left_out;
    int option;
    memset(&o, 0, sizeof o);
    o.setup.target = 1.05;
    o.setup.min_gain = 0.05;
    o.screen.color = "auto";
    while ((option = getopt_long(argc, argv, "", report_long, NULL)) != -1)
        report_option(&o, option, optarg);
    if (o.html && o.json && strcmp(o.html, "-") == 0)
        cli_die(CLI_USAGE, "--html - and --json cannot both go to standard output");
    if (o.html) refuse_overwriting(o.html, argc, argv, optind);
    if (o.html && optind < argc) cli_out_open(&html, o.html);
    traces = cli_read_all(argc, argv, optind, &o.read, 1, &left_out);
    cli_report_make(&report, traces, (int)arrlen(traces), left_out, &o.setup);
    if (o.html) {
        cli_report_html(&report, html.stream);
        cli_out_commit(&html);
        if (strcmp(o.html, "-") == 0) return CLI_OK;
    }
    cli_out_open(&text, "-");
    if (o.json)
        cli_report_json(&report, text.stream);
    else
        cli_report_text(&report, text.stream, screen_width(&o.screen), screen_ascii(&o.screen),
                        screen_color(&o.screen), o.charts);
    if (o.html && !o.json)
        fprintf(text.stream, "\nThe report with pictures: %s\n", cli_printable(o.html));
    cli_out_commit(&text);
    return CLI_OK;
}

int main(int argc, char **argv)
{
    static char name[64];
    if (argc < 2) {
        fputs(main_help, stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        fputs(main_help, stdout);
        return fflush(stdout) == 0 ? CLI_OK : CLI_INTERNAL;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("moe-ep %s\n", moe_ep_version());
        return fflush(stdout) == 0 ? CLI_OK : CLI_INTERNAL;
    }
    if (strcmp(argv[1], "presets") == 0) {
        cli_presets(stdout);
        return fflush(stdout) == 0 ? CLI_OK : CLI_INTERNAL;
    }
    if (strcmp(argv[1], "report") == 0) return cli_report_main(argc - 1, argv + 1);
    if (strcmp(argv[1], "place") == 0) return cli_place_main(argc - 1, argv + 1);
    if (strcmp(argv[1], "route") == 0) return cli_route_main(argc - 1, argv + 1);
    (void)snprintf(name, sizeof name, "%.60s", argv[1]);
    cli_die(CLI_USAGE, "%s: no such command; moe-ep --help lists them", cli_printable(name));
}
