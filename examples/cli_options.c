/* cli_options.c - options that several commands share, reading of all inputs, writing of all outputs
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_options.h"

#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const char *cli_command = "";

enum { MOST_OPTIONS = 64 }; /* of one command */

static const char *name_of(const struct option *list, int value)
{
    while (list->name && list->val != value) list++;
    return list->name;
}

/* What getopt found wrong, in one line. */
static void refuse_option(int option, const char *word, const struct option *list)
{
    const char *name = optopt >= 256 ? name_of(list, optopt) : NULL;
    int alike = 0;
    for (const struct option *o = list; o->name && !name && strncmp(word, "--", 2) == 0; o++)
        alike += strncmp(o->name, word + 2, strcspn(word + 2, "=")) == 0;
    if (name && option == ':')
        cli_die(CLI_USAGE, "%s: option '--%s' needs a value; moe-ep %s --help lists the options", cli_command, name,
                cli_command);
    if (name)
        cli_die(CLI_USAGE, "%s: option '--%s' takes no value; moe-ep %s --help lists the options", cli_command, name,
                cli_command);
    /* a letter; that of others, "-nx", when optind is still at them and the word is the one before */
    if (optopt > 0 && optopt < 256 && (strncmp(word, "--", 2) != 0 || !name_of(list, optopt)))
        cli_die(CLI_USAGE, "%s: unrecognized option '-%c'; moe-ep %s --help lists the options", cli_command, optopt,
                cli_command);
    cli_die(CLI_USAGE, "%s: %s option '%s'; moe-ep %s --help lists the options", cli_command,
            alike > 1 ? "ambiguous" : "unrecognized", word, cli_command);
}

int cli_option(int argc, char **argv, const struct option *list, const char *several)
{
    static unsigned char given[MOST_OPTIONS];
    int at = -1, option;
    opterr = 0;
    option = getopt_long(argc, argv, ":h", list, &at);
    if (option == '?' || option == ':') refuse_option(option, argv[optind - 1], list);
    if (option == 'h') return optarg = NULL, CLI_O_HELP;
    if (option == -1 || list[at].has_arg == 0 || (several && strcmp(list[at].name, several) == 0)) return option;
    if (given[at]++) cli_die(CLI_USAGE, "--%s is given twice; it takes one value", list[at].name);
    return option;
}

void cli_check_slots(const char *planner, const char *origin, int32_t experts, int32_t devices, int32_t slots)
{
    int32_t less = slots / devices * devices, more = less + devices;
    const char *equal;
    if (less == slots) return;
    equal = cli_keep(less < experts ? cli_format("%d", more) : cli_format("%d or %d", less, more));
    if (!origin)
        cli_die(CLI_USAGE, "--slots %d does not divide over %d devices; %s needs equal slots (%s)", slots, devices,
                planner, equal);
    cli_die(CLI_USAGE, "%s %d slots, which do not divide over %d devices; %s needs equal slots: --slots %s", origin,
            slots, devices, planner, equal);
}

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
                char *numbered = cli_format("%s (%d)", list[i].name, i + 1);
                free(list[i].name);
                list[i].name = numbered;
                j = -1;
            }
}

cli_trace *cli_read_all(int argc, char **argv, int from, const cli_read_options *options, int drop,
                        char **left_out)
{
    cli_trace *list = NULL;
    if (from >= argc)
        cli_die(CLI_USAGE, "no input; moe-ep %s --help tells what can be read", cli_command);
    for (int i = from; i < argc; i++) cli_read(&list, argv[i], options);
    cli_progress_end();
    make_unique(list);
    *left_out = cli_read_align(list, (int)arrlen(list), drop);
    return list;
}

void cli_note_inputs(cli_setup *s, const cli_trace *list)
{
    for (ptrdiff_t i = 0; i < arrlen(list); i++)
        if (list[i].note) cli_note(s, "%s", list[i].note);
}

void cli_note_left_out(cli_setup *s, const char *left_out)
{
    if (left_out && *left_out) cli_note(s, "Layers without load, left out: %s.", left_out);
}

/* cli_out_open and cli_open_input see it too, but later. */
void cli_refuse_overwriting(const char *output, int argc, char **argv, int from)
{
    struct stat out, in;
    if (stat(output, &out) != 0) return;
    for (int i = from; i < argc; i++)
        if (stat(argv[i], &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
            cli_die(CLI_USAGE, "%s: is an input; it would be overwritten", output);
}

void cli_refuse_stdout(const char *option, const char *path)
{
    if (path && strcmp(path, "-") == 0)
        cli_die(CLI_USAGE, "--%s -: a file is needed; standard output holds the answer", option);
}

char **cli_list(const char *option, const char *text)
{
    char **list = NULL, *at = cli_keep(cli_strdup(text));
    if (!*text) cli_die(CLI_USAGE, "--%s: a value is needed", option);
    while (at) {
        char *end = strchr(at, ',');
        if (end) *end++ = '\0';
        arrput(list, at);
        if (!*at) cli_die(CLI_USAGE, "--%s %s: nothing stands %s a comma", option, text, end ? "before" : "behind");
        at = end;
    }
    return list;
}

int32_t *cli_device_list(const char *option, const char *text)
{
    char **list = cli_list(option, text);
    int32_t *devices = NULL;
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        int32_t device = (int32_t)cli_option_count(option, list[i], 0, 65535);
        for (ptrdiff_t j = 0; j < i; j++)
            if (devices[j] == device) cli_die(CLI_USAGE, "--%s %s: device %d twice", option, text, device);
        arrput(devices, device);
    }
    arrfree(list);
    return devices;
}

int cli_take_number(const cli_number_option *list, size_t n, void *target, int option, const char *value)
{
    for (size_t i = 0; i < n; i++) {
        const cli_number_option *o = &list[i];
        void *at = (char *)target + o->offset;
        if (o->option != option) continue;
        if (o->kind == CLI_DOUBLE)
            *(double *)at = cli_option_number(o->name, value, o->least, o->most) * (o->unit > 0.0 ? o->unit : 1.0);
        else if (o->kind == CLI_INT64)
            *(int64_t *)at = cli_option_count(o->name, value, (int64_t)o->least, (int64_t)o->most);
        else
            *(int32_t *)at = (int32_t)cli_option_count(o->name, value, (int64_t)o->least, (int64_t)o->most);
        return 1;
    }
    return 0;
}

static cli_kernels kernels_named(const char *value)
{
    for (int i = CLI_KERNELS_AUTO; i <= CLI_KERNELS_LOW_LATENCY; i++)
        if (strcmp(cli_kernels_name((cli_kernels)i), value) == 0) return (cli_kernels)i;
    cli_die(CLI_USAGE, "--kernels %s: auto, normal or low-latency", cli_printable(value));
}

/* Options that describe the machine and the step. */
int cli_setup_option(cli_setup *s, int option, const char *value)
{
    static const cli_number_option number[] = {
        {CLI_O_DEVICES, "devices", CLI_INT32, offsetof(cli_setup, devices), 1, 65536, 0},
        {CLI_O_SLOTS, "slots", CLI_INT32, offsetof(cli_setup, slots), 1, 1 << 20, 0},
        {CLI_O_NODES, "nodes", CLI_INT32, offsetof(cli_setup, nodes), 1, 65536, 0},
        {CLI_O_GROUPS, "groups", CLI_INT32, offsetof(cli_setup, groups), 1, 65536, 0},
        {CLI_O_TOKENS, "tokens", CLI_INT64, offsetof(cli_setup, tokens), 1, 1e9, 0},
        {CLI_O_TOPK, "topk", CLI_INT32, offsetof(cli_setup, top_k), 1, 512, 0},
        {CLI_O_HIDDEN, "hidden", CLI_INT32, offsetof(cli_setup, hidden), 1, 1 << 20, 0},
        {CLI_O_INTER, "intermediate", CLI_INT32, offsetof(cli_setup, intermediate), 1, 1 << 20, 0},
        {CLI_O_OTHER, "other-ms", CLI_DOUBLE, offsetof(cli_setup, other_s), 0, 1e6, 1e-3},
        {CLI_O_TARGET, "target", CLI_DOUBLE, offsetof(cli_setup, target), 1, 1e6, 0},
        {CLI_O_GAIN, "min-gain", CLI_DOUBLE, offsetof(cli_setup, min_gain), 0, 1, 0},
        {CLI_O_HORIZON, "horizon", CLI_DOUBLE, offsetof(cli_setup, horizon_steps), 1, 1e15, 0}};
    if (cli_take_number(number, sizeof number / sizeof number[0], s, option, value)) return 1;
    switch (option) {
    case CLI_O_MODEL:
        s->model_name = value;
        return 1;
    case CLI_O_MACHINE:
        s->machine_name = value;
        return 1;
    case CLI_O_ROUND_ROBIN:
        s->round_robin = 1;
        return 1;
    case CLI_O_KERNELS:
        s->kernels = kernels_named(value);
        return 1;
    default:
        return 0;
    }
}

static void refuse_two_on_stdout(const cli_common *o)
{
    if (o->json && o->html && strcmp(o->html, "-") == 0)
        cli_die(CLI_USAGE, "--html - and --json cannot both go to standard output");
    if (o->json && o->form && strcmp(o->form, "json") != 0)
        cli_die(CLI_USAGE, "--json and --format %s: one of them", o->form);
    if (o->form && o->html && strcmp(o->html, "-") == 0 && strcmp(o->form, "html") != 0)
        cli_die(CLI_USAGE, "--html - and --format %s cannot both go to standard output", o->form);
    if (o->form && o->html && strcmp(o->html, "-") != 0 && strcmp(o->form, "html") == 0)
        cli_die(CLI_USAGE, "--format html writes the page to standard output, --html to a file: one of them");
}

/* text, json and html are other names for what there was before. */
static void take_format(cli_common *o, const char *value)
{
    o->form = value;
    o->json |= strcmp(value, "json") == 0;
    if (strcmp(value, "html") == 0 && !o->html) o->html = "-";
    if (strcmp(value, "csv") == 0 || strcmp(value, "svg") == 0)
        o->format = value;
    else if (strcmp(value, "json") != 0 && strcmp(value, "html") != 0 && strcmp(value, "text") != 0)
        cli_die(CLI_USAGE, "--format %s: text, json, csv, html or svg", cli_printable(value));
    refuse_two_on_stdout(o);
}

int cli_common_option(cli_common *o, int option, const char *value, const char *help)
{
    switch (option) {
    case CLI_O_EXPERTS:
        o->read.experts = (int32_t)cli_option_count("experts", value, 1, 65536);
        return 1;
    case CLI_O_ONLY:
        o->read.only = value;
        return 1;
    case CLI_O_LAYERS_FIRST:
        o->read.layers_first = 1;
        return 1;
    case CLI_O_COUNTS:
        o->read.as_counts = 1;
        return 1;
    case CLI_O_HTML:
        o->html = value;
        refuse_two_on_stdout(o);
        return 1;
    case CLI_O_JSON:
        o->json = 1;
        refuse_two_on_stdout(o);
        return 1;
    case CLI_O_FORMAT:
        take_format(o, value);
        return 1;
    case CLI_O_WIDTH:
        o->screen.width = (int)cli_option_count("width", value, 60, 400);
        return 1;
    case CLI_O_ASCII:
        o->screen.ascii = 1;
        return 1;
    case CLI_O_COLOR:
        if (strcmp(value, "auto") != 0 && strcmp(value, "always") != 0 &&
            strcmp(value, "never") != 0)
            cli_die(CLI_USAGE, "--color %s: auto, always or never", cli_printable(value));
        o->screen.color = value;
        return 1;
    case CLI_O_HELP:
        cli_help(help);
    default:
        return 0;
    }
}

/* ---- outputs ------------------------------------------------------------------------------------------ */

void cli_open_page(const cli_common *o, cli_out *page, int argc, char **argv, int from)
{
    memset(page, 0, sizeof *page);
    if (!o->html) return;
    cli_refuse_overwriting(o->html, argc, argv, from);
    cli_out_open(page, o->html);
}

void cli_check_form(const cli_common *o, const cli_more_writers *more)
{
    int csv = o->format && strcmp(o->format, "csv") == 0;
    if (o->format && (!more || (csv ? !more->csv : !more->svg)))
        cli_die(CLI_USAGE, "--format %s: moe-ep %s has none", o->format, cli_command);
}

void cli_write_all(const cli_common *o, cli_out *page, const void *data, const cli_writers *w)
{
    static const cli_more_writers none;
    cli_write_forms(o, page, data, w, &none);
}

void cli_write_forms(const cli_common *o, cli_out *page, const void *data, const cli_writers *w,
                     const cli_more_writers *more)
{
    cli_out text;
    void (*form)(const void *, FILE *) = !o->format                     ? NULL
                                         : strcmp(o->format, "csv") == 0 ? more->csv
                                                                         : more->svg;
    chart_text t = cli_screen_chart(&o->screen);
    cli_check_form(o, more);
    if (o->html) {
        w->html(data, page->stream);
        cli_out_commit(page);
        if (strcmp(o->html, "-") == 0) return;
    }
    cli_out_open(&text, "-");
    if (form)
        form(data, text.stream);
    else if (o->json)
        w->json(data, text.stream);
    else
        w->text(data, text.stream, &t);
    if (o->html && !o->json && !o->format)
        fprintf(text.stream, "\nThe same with pictures: %s\n", cli_keep(cli_printable(o->html)));
    cli_out_commit(&text);
}
