/* cli_base.c - messages, memory, whole-or-nothing output files
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_base.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void *resize(void *p, size_t bytes);
#define STBDS_REALLOC(context, p, bytes) resize(p, bytes)
#define STBDS_FREE(context, p) free(p)
#define STB_DS_IMPLEMENTATION
#include <stb_ds.h>

/* ---- temporary files still to be removed when the program ends early -------------------------------- */

enum { CLI_MAX_TEMP = 8 };
static char *volatile unfinished[CLI_MAX_TEMP];

static void remove_unfinished(void)
{
    for (int i = 0; i < CLI_MAX_TEMP; i++)
        if (unfinished[i]) (void)unlink(unfinished[i]);
}

static void on_signal(int number)
{
    remove_unfinished();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static int remember(char *path)
{
    static const int caught[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGXCPU};
    for (size_t i = 0; i < sizeof caught / sizeof caught[0]; i++) {
        struct sigaction now;
        if (sigaction(caught[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL)
            (void)signal(caught[i], on_signal);
    }
    for (int i = 0; i < CLI_MAX_TEMP; i++) {
        if (unfinished[i]) continue;
        unfinished[i] = path;
        return 1;
    }
    return 0;
}

static void forget(const char *path)
{
    for (int i = 0; i < CLI_MAX_TEMP; i++)
        if (unfinished[i] == path) unfinished[i] = NULL;
}

/* ---- messages ---------------------------------------------------------------------------------------- */

static int progress_shown;

void cli_die(int code, const char *format, ...)
{
    static char text[1 << 14]; /* no memory is asked for: there may be none */
    va_list args;
    remove_unfinished();
    cli_progress_end();
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_clean(text); /* names of files are whatever somebody made them */
    fprintf(stderr, "moe-ep: %s\n", text);
    exit(code);
}

void cli_check(moe_ep_status status, const moe_ep_error *err, const char *what)
{
    char text[256];
    if (status == MOE_EP_OK) return;
    (void)moe_ep_error_text(err, text, sizeof text);
    cli_die(status == MOE_EP_ERR_MEMORY ? CLI_INTERNAL : CLI_USAGE, "%s: %s", what, text);
}

void cli_progress(const char *what, double done, double total)
{
    static struct timespec start;
    struct timespec now;
    if (!isatty(STDERR_FILENO)) return;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    if (start.tv_sec == 0) start = now;
    if ((double)(now.tv_sec - start.tv_sec) + 1e-9 * (double)(now.tv_nsec - start.tv_nsec) < 1.0)
        return;
    progress_shown = 1;
    fprintf(stderr, "\r\033[K%s: %.0f %%", what, total > 0.0 ? 100.0 * done / total : 0.0);
    fflush(stderr);
}

void cli_progress_end(void)
{
    if (progress_shown) fputs("\r\033[K", stderr);
    progress_shown = 0;
}

/* ---- memory and text --------------------------------------------------------------------------------- */

static void *resize(void *p, size_t bytes)
{
    void *q = realloc(p, bytes > 0 ? bytes : 1);
    if (!q) cli_die(CLI_INTERNAL, "out of memory (%zu bytes)", bytes);
    return q;
}

static void *take(size_t bytes)
{
    return resize(NULL, bytes);
}

void cli_start(void)
{
    json_set_alloc_funcs(take, free);
    (void)signal(SIGXFSZ, SIG_IGN); /* a file that may not grow further is an error of write */
}

void *cli_alloc(size_t count, size_t size)
{
    void *p = calloc(count > 0 ? count : 1, size > 0 ? size : 1);
    if (!p) cli_die(CLI_INTERNAL, "out of memory (%zu x %zu bytes)", count, size);
    return p;
}

char *cli_strdup(const char *s)
{
    char *copy = strdup(s);
    if (!copy) cli_die(CLI_INTERNAL, "out of memory");
    return copy;
}

static void **kept; /* stb_ds */

static void free_kept(void)
{
    for (ptrdiff_t i = 0; i < arrlen(kept); i++) free(kept[i]);
    arrfree(kept);
}

void *cli_keep_block(void *block)
{
    if (!kept && atexit(free_kept) != 0) return block;
    arrput(kept, block);
    return block;
}

char *cli_keep(char *text)
{
    return cli_keep_block(text);
}

char *cli_format(const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0) cli_die(CLI_INTERNAL, "out of memory");
    va_end(args);
    return text;
}

static char *rotating(void)
{
    static char buffers[8][48];
    static int next;
    next = (next + 1) % 8;
    return buffers[next];
}

const char *cli_count(double v)
{
    char digits[40];
    char *out = rotating();
    int n = snprintf(digits, sizeof digits, "%.0f", fabs(v) < 1e15 ? v : 1e15);
    int at = 0;
    for (int i = 0; i < n; i++) {
        out[at++] = digits[i];
        if (isdigit((unsigned char)digits[i]) && i + 1 < n && (n - 1 - i) % 3 == 0) out[at++] = ',';
    }
    out[at] = '\0';
    return out;
}

/* v in units of 1, k, M, ... with three significant digits. */
static const char *scaled(double v, const char *const *unit, int units)
{
    char *out = rotating();
    int u = 0;
    while (u + 1 < units && fabs(v) >= 999.5) {
        v /= 1000.0;
        u++;
    }
    (void)snprintf(out, 48, "%.*f %s",
                   fabs(v) >= 99.95 || !(fabs(v) > 0.0) ? 0
                   : fabs(v) >= 9.995                   ? 1
                                                        : 2,
                   v, unit[u]);
    return out;
}

const char *cli_seconds(double s)
{
    static const char *const unit[] = {"ns", "us", "ms", "s"};
    return scaled(s * 1e9, unit, 4);
}

const char *cli_bytes(double b)
{
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    return scaled(b, unit, 6);
}

int cli_parse_i64(const char *text, int64_t *out)
{
    char *end = NULL;
    long long v;
    if (!*text || isspace((unsigned char)*text)) return 0;
    errno = 0;
    v = strtoll(text, &end, 10);
    if (errno != 0 || *end) return 0;
    *out = v;
    return 1;
}

int cli_parse_double(const char *text, double *out)
{
    char *end = NULL;
    double v;
    if (!*text || isspace((unsigned char)*text)) return 0;
    if (strpbrk(text, "xX")) return 0; /* no hexadecimal */
    v = strtod(text, &end);
    if (end == text || *end) return 0;
    *out = v;
    return 1;
}

void cli_put_html(FILE *f, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", f);
            break;
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        case ' ':
            fputs(text[1] == '%' ? "&nbsp;" : " ", f);
            break;
        default:
            if ((unsigned char)*text >= 32u && *text != 127) fputc(*text, f);
        }
    }
}

/* Bytes of the UTF-8 character that begins here; 0 = none does. */
static size_t character(const unsigned char *p)
{
    size_t n = *p < 0x80u                 ? 1
               : *p < 0xc2u || *p > 0xf4u ? 0
               : *p < 0xe0u               ? 2
               : *p < 0xf0u               ? 3
                                          : 4;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0u) != 0x80u) return 0;
    if (n == 3 && ((*p == 0xe0u && p[1] < 0xa0u) || (*p == 0xedu && p[1] >= 0xa0u))) return 0;
    if (n == 4 && ((*p == 0xf0u && p[1] < 0x90u) || (*p == 0xf4u && p[1] >= 0x90u))) return 0;
    return n;
}

/* Whether a terminal would act on the character of n bytes: control characters, ends of lines, turns of direction. */
static int acts(const unsigned char *p, size_t n)
{
    if (n == 1) return *p < 32u || *p == 127u;
    if (n == 2) return *p == 0xc2u && p[1] < 0xa0u;
    return n == 3 && *p == 0xe2u && ((p[1] == 0x80u && p[2] >= 0xa8u && p[2] <= 0xaeu) ||
                                     (p[1] == 0x81u && p[2] >= 0xa6u && p[2] <= 0xa9u));
}

char *cli_clean(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p;) {
        size_t n = character(p);
        if (n == 0 || acts(p, n)) {
            memset(p, '?', n > 0 ? n : 1);
            n += n == 0;
        }
        p += n;
    }
    return text;
}

char *cli_printable(const char *text)
{
    return cli_clean(cli_strdup(text));
}

char *cli_shell_word(const char *text)
{
    char *safe = cli_printable(text), *quoted, *at;
    if (*safe && !safe[strspn(safe, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./+=:,@%-")])
        return safe;
    at = quoted = cli_alloc(4 * strlen(safe) + 3, 1);
    *at++ = '\'';
    for (const char *p = safe; *p; p++) {
        if (*p == '\'') {
            memcpy(at, "'\\''", 4);
            at += 4;
        } else {
            *at++ = *p;
        }
    }
    *at = '\'';
    free(safe);
    return quoted;
}

int cli_errno_code(void)
{
    return errno == ENOMEM || errno == EMFILE || errno == ENFILE || errno == EIO ? CLI_INTERNAL : CLI_USAGE;
}

static void claim_input(const char *path, const struct stat *file);

FILE *cli_open_input(const char *path)
{
    struct stat info;
    FILE *f;
    if (strcmp(path, "-") == 0)
        cli_die(CLI_USAGE, "-: standard input cannot be read; inputs must be files");
    if (stat(path, &info) != 0) cli_die(CLI_USAGE, "%s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        cli_die(CLI_USAGE, "%s: is a directory, and not TensorRT-LLM's, which holds a meta_info.json", path);
    if (!S_ISREG(info.st_mode))
        cli_die(CLI_USAGE, "%s: is not an ordinary file; inputs must be files, not pipes or devices", path);
    f = fopen(path, "rb");
    if (!f) cli_die(cli_errno_code(), "%s: %s", path, strerror(errno));
    claim_input(path, &info);
    return f;
}

ssize_t cli_getline(char **line, size_t *room, FILE *f, const char *path)
{
    ssize_t n = getline(line, room, f);
    if (n < 0 && !feof(f)) cli_die(CLI_INTERNAL, "%s: %s", path, strerror(errno));
    return n;
}

char *cli_ranges(const int32_t *number, ptrdiff_t n)
{
    char *text = cli_strdup("");
    for (ptrdiff_t i = 0, end; i < n; i = end + 1) {
        char *longer;
        for (end = i; end + 1 < n && number[end + 1] == number[end] + 1;) end++;
        longer = end > i ? cli_format("%s%s%d-%d", text, i > 0 ? ", " : "", number[i], number[end])
                         : cli_format("%s%s%d", text, i > 0 ? ", " : "", number[i]);
        free(text);
        text = longer;
    }
    return text;
}

ptrdiff_t cli_rank(const int64_t *rising, ptrdiff_t n, int64_t v)
{
    ptrdiff_t low = 0, high = n;
    while (low < high) {
        ptrdiff_t mid = low + (high - low) / 2;
        if (rising[mid] < v)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* ---- streams into memory ----------------------------------------------------------------------------- */

/* What the C library's own stream does when memory ends is to go on without that part. */
static ssize_t put_text(void *cookie, const char *bytes, size_t n)
{
    cli_text *t = cookie;
    if (!t->failed && n >= t->room - t->length) {
        size_t room = 2 * (t->length + n + 512);
        char *more = realloc(t->text, room);
        if (!more) t->failed = 1;
        if (more) t->text = more, t->room = room;
    }
    if (t->failed) return 0;
    memcpy(t->text + t->length, bytes, n);
    t->length += n;
    t->text[t->length] = '\0';
    return (ssize_t)n;
}

void cli_text_open(cli_text *t)
{
    static const cookie_io_functions_t functions = {NULL, put_text, NULL, NULL};
    memset(t, 0, sizeof *t);
    t->text = cli_alloc(1, 1);
    t->room = 1;
    t->stream = fopencookie(t, "w", functions);
    if (!t->stream) cli_die(CLI_INTERNAL, "out of memory");
}

void cli_text_end(cli_text *t)
{
    int wrong = ferror(t->stream);
    if (fclose(t->stream) != 0 || wrong || t->failed)
        cli_die(CLI_INTERNAL, "out of memory (a text of %zu bytes)", t->length);
}

/* ---- files that are read, files that are written ------------------------------------------------------- */

/* A file by what it is, and by the folder and the name in it, which also a file has that is not there yet. */
typedef struct file_identity {
    struct stat file, folder;
    int is_there;
    char name[256]; /* in its folder */
} file_identity;

enum { MOST_INPUTS = 4096 }; /* are remembered; nobody names as many by hand */
static struct { dev_t dev; ino_t ino; } inputs[MOST_INPUTS];
static file_identity outputs[CLI_MAX_TEMP];
static int input_count, output_count;

static file_identity identity_of(const char *path)
{
    file_identity id;
    char *copy = cli_strdup(path), *again = cli_strdup(path);
    memset(&id, 0, sizeof id);
    id.is_there = stat(path, &id.file) == 0;
    if (stat(dirname(copy), &id.folder) != 0) memset(&id.folder, 0, sizeof id.folder);
    (void)snprintf(id.name, sizeof id.name, "%s", basename(again));
    free(copy);
    free(again);
    return id;
}

static int same_node(const struct stat *a, dev_t dev, ino_t ino)
{
    return a->st_dev == dev && a->st_ino == ino;
}

static int same_file(const file_identity *a, const file_identity *b)
{
    if (a->is_there && b->is_there && same_node(&a->file, b->file.st_dev, b->file.st_ino)) return 1;
    return same_node(&a->folder, b->folder.st_dev, b->folder.st_ino) && strcmp(a->name, b->name) == 0;
}

/* Writing over what is being read, or over another answer, is a slip of the hand. */
static void claim_output(const char *path, const char *target)
{
    file_identity id = identity_of(target);
    struct stat out;
    for (int i = 0; i < input_count && id.is_there; i++)
        if (same_node(&id.file, inputs[i].dev, inputs[i].ino))
            cli_die(CLI_USAGE, "%s: is an input; it would be overwritten", path);
    for (int i = 0; i < output_count; i++)
        if (same_file(&id, &outputs[i]))
            cli_die(CLI_USAGE, "%s: two outputs cannot go to one file; one would overwrite the other", path);
    if (id.is_there && fstat(STDOUT_FILENO, &out) == 0 && same_node(&id.file, out.st_dev, out.st_ino))
        cli_die(CLI_USAGE, "%s: is standard output, which holds the answer", path);
    if (output_count == CLI_MAX_TEMP) cli_die(CLI_USAGE, "%s: more than %d files to write", path, CLI_MAX_TEMP);
    outputs[output_count++] = id;
}

static void claim_input(const char *path, const struct stat *file)
{
    for (int i = 0; i < output_count; i++)
        if (outputs[i].is_there && same_node(file, outputs[i].file.st_dev, outputs[i].file.st_ino))
            cli_die(CLI_USAGE, "%s: is an input; it would be overwritten", path);
    for (int i = 0; i < input_count; i++)
        if (same_node(file, inputs[i].dev, inputs[i].ino)) return;
    if (input_count == MOST_INPUTS) return;
    inputs[input_count].dev = file->st_dev;
    inputs[input_count++].ino = file->st_ino;
}

/* Where a path leads: a symbolic link is written through, not replaced. */
static char *target_of(const char *path)
{
    char *at = cli_strdup(path);
    struct stat info;
    for (int links = 0; lstat(at, &info) == 0 && S_ISLNK(info.st_mode); links++) {
        char to[4096], *copy, *next;
        ssize_t n = readlink(at, to, sizeof to - 1);
        if (n < 0 || links == 40)
            cli_die(CLI_USAGE, "%s: cannot be written: %s", path, strerror(n < 0 ? errno : ELOOP));
        to[n] = '\0';
        copy = cli_strdup(at);
        next = *to == '/' ? cli_strdup(to) : cli_format("%s/%s", dirname(copy), to);
        free(copy);
        free(at);
        at = next;
    }
    return at;
}

/* ---- output files ------------------------------------------------------------------------------------ */

void cli_out_open(cli_out *out, const char *path)
{
    struct stat info;
    memset(out, 0, sizeof *out);
    out->path = path;
    out->fd = -1;
    if (strcmp(path, "-") == 0) {
        out->stream = stdout;
        return;
    }
    if (stat(path, &info) == 0) {
        if (S_ISDIR(info.st_mode))
            cli_die(CLI_USAGE, "%s: is a directory, not a file to write", path);
        if (access(path, W_OK) != 0)
            cli_die(CLI_USAGE, "%s: cannot be written: %s", path, strerror(errno));
        if (!S_ISREG(info.st_mode)) { /* a device or pipe is written in place */
            out->fd = open(path, O_WRONLY | O_CLOEXEC);
            if (out->fd < 0) cli_die(CLI_USAGE, "%s: cannot be written: %s", path, strerror(errno));
        }
    }
    if (out->fd < 0) {
        out->target = cli_keep(target_of(path));
        claim_output(path, out->target);
        out->temp = cli_format("%s.XXXXXX", out->target);
        out->fd = mkostemp(out->temp, O_CLOEXEC);
        if (out->fd < 0) {
            const char *why = strerror(errno);
            free(out->temp);
            cli_die(CLI_USAGE, "%s: cannot be written: %s", path, why);
        }
        if (!remember(out->temp)) cli_die(CLI_INTERNAL, "too many output files");
    }
    cli_text_open(&out->text);
    out->stream = out->text.stream;
}

static void write_all(const cli_out *out)
{
    size_t done = 0;
    while (done < out->text.length) {
        ssize_t n = write(out->fd, out->text.text + done, out->text.length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) cli_die(CLI_INTERNAL, "%s: %s", out->path, strerror(errno));
        done += (size_t)n;
    }
}

/* Makes the rename itself durable; a folder that cannot be synced is not an error. */
static void sync_folder(const char *path)
{
    char *copy = cli_strdup(path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
    free(copy);
}

void cli_flush(void)
{
    if (fflush(stdout) != 0 || ferror(stdout)) cli_die(CLI_INTERNAL, "standard output: %s", strerror(errno));
}

void cli_help(const char *text)
{
    fputs(text, stdout);
    cli_flush();
    exit(CLI_OK);
}

void cli_out_commit(cli_out *out)
{
    mode_t mask;
    if (out->stream == stdout) {
        cli_flush();
        return;
    }
    cli_text_end(&out->text);
    write_all(out);
    if (out->temp) {
        mask = umask(0);
        (void)umask(mask);
        (void)fchmod(out->fd, 0666 & ~mask); /* mkostemp makes 0600 */
        if (fsync(out->fd) != 0) cli_die(CLI_INTERNAL, "%s: %s", out->path, strerror(errno));
    }
    if (close(out->fd) != 0) cli_die(CLI_INTERNAL, "%s: %s", out->path, strerror(errno));
    if (out->temp) {
        if (rename(out->temp, out->target) != 0) cli_die(CLI_INTERNAL, "%s: %s", out->path, strerror(errno));
        sync_folder(out->target);
        forget(out->temp);
        free(out->temp);
    }
    free(out->text.text);
}
