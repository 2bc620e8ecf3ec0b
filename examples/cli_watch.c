/* cli_watch.c - moe-ep watch: follows a trace as it grows; options, terminal, the loop
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_watch.h"
#include "cli_commands.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

static const char watch_help[] =
    "usage: moe-ep watch FILE [options]\n"
    "\n"
    "Follows a trace that a server is writing and shows how the devices stand: a verdict on the last "
    "steps, max/mean\n"
    "over time, rows per device.  q or Ctrl-C ends it, space holds it still.  Without a terminal it "
    "prints a line\n"
    "whenever something changed.  A file that is cut, replaced or not there yet is no obstacle; a last "
    "line that is\n"
    "only half written waits for its rest.\n"
    "\n"
    "FILE\n"
    "  ids.jsonl         {\"step\": 0, \"layer\": 3, \"ids\": [[1, 5], ...]} or \"counts\": [...] on each line\n"
    "  counts.csv        header step,layer,0,1,...; a line per step and layer\n"
    "  server.log        vLLM with log_balancedness: \"EPLB step: ... avg_tokens=..., max_tokens=...\"\n"
    "\n"
    "  --devices D       devices (ranks) that share the experts (8, or what the map says)\n"
    "  --current MAP     the placement that runs (.json, .yaml, .csv; see moe-ep rebalance --help)\n"
    "  --round-robin     expert e on device e mod D, not contiguous blocks\n"
    "  --window N        steps that the verdict looks at (64)\n"
    "  --interval S      seconds between two looks at the file (1)\n"
    "  --once            reads what is there, prints one picture and ends\n"
    "  --min-gain S      least share of a step that makes a new placement worth while (0.05)\n"
    "what a step costs, as in moe-ep diagnose\n"
    "  --model NAME      --machine NAME   --nodes N   --hidden H   --intermediate I   --other-ms X   (see "
    "moe-ep report --help)\n"
    "  --kernels NAME    of dispatch and combine: auto (normal from 512 tokens per device on), normal or low-latency\n"
    "\n"
    "  --json            a JSON object per change instead of text    --experts E   --topk K\n"
    "  --width W         --ascii   --color auto|always|never         (NO_COLOR is respected)\n";

enum { O_ONCE = 256, O_INTERVAL, O_WINDOW, O_CURRENT };

static const struct option watch_long[] = {CLI_COMMON_OPTIONS,
                                           {"devices", 1, NULL, CLI_O_DEVICES},
                                           {"topk", 1, NULL, CLI_O_TOPK},
                                           {"min-gain", 1, NULL, CLI_O_GAIN},
                                           {"round-robin", 0, NULL, CLI_O_ROUND_ROBIN},
                                           {"model", 1, NULL, CLI_O_MODEL},
                                           {"machine", 1, NULL, CLI_O_MACHINE},
                                           {"nodes", 1, NULL, CLI_O_NODES},
                                           {"hidden", 1, NULL, CLI_O_HIDDEN},
                                           {"intermediate", 1, NULL, CLI_O_INTER},
                                           {"other-ms", 1, NULL, CLI_O_OTHER},
                                           {"kernels", 1, NULL, CLI_O_KERNELS},
                                           {"once", 0, NULL, O_ONCE},
                                           {"interval", 1, NULL, O_INTERVAL},
                                           {"window", 1, NULL, O_WINDOW},
                                           {"current", 1, NULL, O_CURRENT},
                                           {NULL, 0, NULL, 0}};

typedef struct watching {
    cli_watch w;
    cli_common common;
    cli_setup setup;
    cli_map map;
    const char *current;
    int once;
    double interval;
} watching;

/* ---- terminal ------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t stopped, resized;
static struct termios before;
static int raw_input, full_screen;

static void on_signal(int number)
{
    if (number == SIGWINCH || number == SIGCONT)
        resized = 1;
    else
        stopped = number;
}

/* Other screen, no cursor, no wrapping; keys without Enter and unechoed. */
static void enter_screen(void)
{
    static const char text[] = "\033[?1049h\033[?25l\033[?7l\033[2J";
    if (isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &before) == 0) {
        struct termios raw = before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VMIN] = 0;
        raw.c_cc[VTIME] = 0;
        raw_input = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
    }
    full_screen = write(STDOUT_FILENO, text, sizeof text - 1) > 0;
}

static void leave_screen(void)
{
    static const char text[] = "\033[?7h\033[?25h\033[?1049l";
    if (full_screen && write(STDOUT_FILENO, text, sizeof text - 1) < 0) full_screen = 0;
    full_screen = 0;
    if (raw_input) (void)tcsetattr(STDIN_FILENO, TCSANOW, &before);
    raw_input = 0;
}

static void suspend(void)
{
    leave_screen();
    (void)raise(SIGSTOP);
    enter_screen();
    stopped = 0;
    resized = 1;
}

static void catch_signals(void)
{
    static const int number[] = {SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGCONT, SIGTSTP, SIGPIPE};
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = on_signal; /* without SA_RESTART: poll comes back at once */
    for (size_t i = 0; i < sizeof number / sizeof number[0]; i++) (void)sigaction(number[i], &a, NULL);
    (void)atexit(leave_screen);
}

static void screen_size(const cli_screen *s, chart_text *t, int *height)
{
    struct winsize size;
    *height = 24;
    *t = cli_screen_chart(s);
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return;
    if (size.ws_row > 3) *height = size.ws_row;
    if (size.ws_col > 20 && s->width == 0) t->width = size.ws_col < 160 ? size.ws_col : 160;
}

/* Nobody reads any more: a pipe that is closed, or a terminal that is gone, of which SIGHUP may come only after. */
static void cannot_write(void) { stopped = errno == EIO ? SIGHUP : SIGPIPE; }

static void put_all(const char *text, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t wrote = write(STDOUT_FILENO, text + done, n - done);
        if (wrote < 0 && errno != EINTR && errno != EAGAIN) {
            cannot_write();
            return;
        }
        if (wrote > 0) done += (size_t)wrote;
    }
}

static void draw(const watching *o, int held)
{
    cli_text text;
    chart_text t;
    int height;
    FILE *f;
    cli_text_open(&text);
    f = text.stream;
    screen_size(&o->common.screen, &t, &height);
    fputs("\033[H", f);
    cli_watch_frame(&o->w, f, &t, height - 2, "\033[K\r\n");
    fprintf(f, "\033[J\033[%d;1H%s%s%s\033[K", height, t.color ? "\033[2m" : "",
            held ? "held still: space goes on, q quits" : "q quits, space holds still", t.color ? "\033[0m" : "");
    cli_text_end(&text);
    put_all(text.text, text.length);
    free(text.text);
}

/* ---- the loop -------------------------------------------------------------------------------------------- */

/* Waits for the time or a key; returns the key, 0 = none. */
static int wait_for(double seconds)
{
    struct pollfd in = {STDIN_FILENO, POLLIN, 0};
    char key = 0;
    int n = poll(&in, raw_input ? 1 : 0, (int)(1000.0 * seconds + 0.5));
    if (n > 0 && read(STDIN_FILENO, &key, 1) != 1) raw_input = 0;
    return key;
}

static void put_change(watching *o)
{
    if (o->common.json)
        cli_watch_json(&o->w, stdout);
    else
        cli_watch_plain(&o->w, stdout);
    o->w.news = NULL;
    o->w.map_news = 0;
    if (fflush(stdout) != 0) cannot_write();
}

static void follow(watching *o)
{
    const char *term = getenv("TERM");
    int live = isatty(STDOUT_FILENO) && !o->common.json && term && strcmp(term, "dumb") != 0, held = 0;
    int64_t seen = -1;
    catch_signals();
    if (live) enter_screen();
    while (!stopped) {
        int changed = !held && cli_watch_read(&o->w), key;
        if ((changed && o->w.seen != seen) || seen < 0) cli_watch_judge(&o->w);
        if (live)
            draw(o, held);
        else if (o->w.seen != seen && o->w.seen > 0)
            put_change(o);
        seen = o->w.seen;
        resized = 0;
        key = wait_for(o->interval);
        if (key == 'q' || key == 'Q' || key == 4) return;
        if (key == ' ') held = !held;
        if (stopped == SIGTSTP) suspend();
    }
}

/* The picture as it stands, as text. */
static int once(watching *o)
{
    cli_out out;
    chart_text t = cli_screen_chart(&o->common.screen);
    struct stat info;
    if (stat(o->w.path, &info) != 0) cli_die(CLI_USAGE, "%s: %s", o->w.path, strerror(errno));
    (void)cli_watch_read(&o->w);
    cli_watch_finish(&o->w);
    if (o->w.seen == 0)
        cli_die(CLI_USAGE, "%s: holds no complete step%s%s%s", o->w.path, o->w.complaint ? "; " : "",
                o->w.complaint ? o->w.complaint : "",
                cli_has_suffix(o->w.path, ".json") ? "; moe-ep report reads a dump" : "");
    cli_watch_judge(&o->w);
    cli_out_open(&out, "-");
    if (o->common.json)
        cli_watch_json(&o->w, out.stream);
    else
        cli_watch_frame(&o->w, out.stream, &t, 0, "\n");
    cli_out_commit(&out);
    return CLI_OK;
}

static void take_option(watching *o, int option, const char *value)
{
    switch (option) {
    case O_ONCE:
        o->once = 1;
        return;
    case O_INTERVAL:
        o->interval = cli_option_number("interval", value, 0.05, 3600.0);
        return;
    case O_WINDOW:
        o->w.window = (int)cli_option_count("window", value, 4, CLI_HISTORY);
        return;
    case O_CURRENT:
        o->current = value;
        return;
    default:
        if (!cli_setup_option(&o->setup, option, value))
            (void)cli_common_option(&o->common, option, value, watch_help);
    }
}

static void use_map(watching *o)
{
    if (!o->current) return;
    o->map = cli_map_read(o->current);
    o->w.map = &o->map;
    if (o->map.devices > 0 && o->setup.devices > 0 && o->setup.devices != o->map.devices)
        cli_die(CLI_USAGE, "%s has %d devices, --devices says %d", o->map.path, o->map.devices, o->setup.devices);
    if (o->map.devices > 0) o->w.devices = o->map.devices;
    cli_map_check_even(&o->map, o->w.devices, -1);
    for (int64_t i = 0; i < (int64_t)o->map.layers * o->map.slots; i++)
        if (o->map.expert[i] >= o->w.experts) o->w.experts = o->map.expert[i] + 1;
}

/* Says now what else a verdict would end on: no such preset, devices that are no whole number of nodes. */
static void check_cost(const watching *o)
{
    cli_setup s = o->setup;
    s.devices = o->w.devices;
    if (s.model_name) cli_setup_sizes(&s, 0, 0, 0);
    cli_setup_machine(&s);
    cli_setup_nodes(&s);
    free(s.assumed);
}

int cli_watch_main(int argc, char **argv)
{
    watching o;
    int option, code = CLI_OK;
    memset(&o, 0, sizeof o);
    o.common.screen.color = "auto";
    o.interval = 1.0;
    o.setup.min_gain = 0.05;
    o.w.window = 64;
    o.w.fd = -1;
    o.w.hot_layer = -1;
    o.w.setup = &o.setup;
    while ((option = cli_option(argc, argv, watch_long, NULL)) != -1) take_option(&o, option, optarg);
    if (argc - optind != 1) cli_die(CLI_USAGE, "one FILE is needed; moe-ep watch --help tells what can be read");
    if (o.common.format) cli_die(CLI_USAGE, "--format %s: text or json", o.common.format);
    if (o.common.html) cli_die(CLI_USAGE, "--html: moe-ep report writes pages");
    o.w.path = argv[optind];
    o.w.devices = o.setup.devices > 0 ? o.setup.devices : 8;
    o.w.experts = o.common.read.experts;
    use_map(&o);
    check_cost(&o);
    if (o.once)
        code = once(&o);
    else
        follow(&o);
    leave_screen();
    cli_watch_close(&o.w);
    cli_map_free(&o.map);
    if (stopped == SIGTERM || stopped == SIGHUP || stopped == SIGPIPE) {
        (void)signal((int)stopped, SIG_DFL);
        (void)raise((int)stopped);
    }
    return code;
}
