/* tests/oom_tool.c - the moe-ep tool in which the N-th allocation fails
 * SPDX-License-Identifier: MIT
 *
 * usage: moe-ep-oom [--sites K] [--timed] --dir DIR -- ARGS OF moe-ep
 *
 * Linked with the tool's own objects (-Wl,--wrap=main).  malloc, calloc, realloc and the aligned kinds of the whole
 * process are the ones below, so that jansson, libyaml and the C library are refused memory, too.  What the command
 * prints and writes when nothing fails is the reference; DIR is where its output files go, and holds nothing else.
 * Then a child runs the command once for each N:
 *   either it answers as if nothing had happened: status, standard output, messages and files are the reference's;
 *   or it leaves with status 1 and one line, "moe-ep: ... memory ..."; each output file is whole or absent.
 * A crash, another status, another text, a part of a file, a temporary file left behind is a failure.
 * Beside each N alone, the first call of each place in the program (a place is a call stack) with every later call
 * refused as well.  --sites K: of every K-th place only the first and last call, not every N.  --timed: what is
 * printed holds times and is not compared. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __GLIBC__
#error "needs glibc: __libc_malloc"
#endif

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);

/* ---- memory that is refused ----------------------------------------------------------------------------- */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);
void __libc_free(void *p);

enum { STACK = 24, MOST_CALLS = 1 << 20 };
static struct shared { /* between a child and its parent */
    long calls;
    int frames; /* of the first call that was refused */
    void *frame[STACK];
    uint64_t stack_of[MOST_CALLS]; /* hash of the call stack of each call, when recording */
} *shared;
static int armed, recording, in_hook;
static long refuse_from, refuse_to;

static void record(long call)
{
    void *frame[STACK];
    uint64_t hash = 1469598103934665603u;
    int i, n;
    in_hook = 1;
    n = backtrace(frame, STACK);
    in_hook = 0;
    for (i = 2; i < n; i++) hash = (hash ^ (uint64_t)(uintptr_t)frame[i]) * 1099511628211u;
    if (call <= MOST_CALLS) shared->stack_of[call - 1] = hash;
}

static int refused(void)
{
    long call;
    if (!armed || in_hook) return 0;
    call = __atomic_add_fetch(&shared->calls, 1, __ATOMIC_RELAXED);
    if (recording) record(call);
    if (call < refuse_from || call > refuse_to) return 0;
    if (call == refuse_from) {
        in_hook = 1;
        shared->frames = backtrace(shared->frame, STACK);
        in_hook = 0;
    }
    errno = ENOMEM;
    return 1;
}

static void *fresh(void *p)
{
    if (p && armed) memset(p, 0xa5, malloc_usable_size(p)); /* what malloc gives is rubbish */
    return p;
}

void *malloc(size_t bytes)
{
    return refused() ? NULL : fresh(__libc_malloc(bytes));
}

void *calloc(size_t count, size_t bytes)
{
    return refused() ? NULL : __libc_calloc(count, bytes);
}

void free(void *p)
{
    int saved = errno;
    if (!p) return;
    if (armed) memset(p, 0xdd, malloc_usable_size(p)); /* reading it afterwards shows */
    __libc_free(p);
    errno = saved;
}

/* Always to another place. */
void *realloc(void *p, size_t bytes)
{
    size_t old;
    void *moved;
    if (!p) return malloc(bytes);
    if (refused()) return NULL;
    moved = fresh(__libc_malloc(bytes));
    if (!moved) return NULL;
    old = malloc_usable_size(p);
    memcpy(moved, p, old < bytes ? old : bytes);
    free(p);
    return moved;
}

void *memalign(size_t align, size_t bytes)
{
    return refused() ? NULL : fresh(__libc_memalign(align, bytes));
}

void *aligned_alloc(size_t align, size_t bytes)
{
    return memalign(align, bytes);
}

int posix_memalign(void **out, size_t align, size_t bytes)
{
    void *p = memalign(align, bytes);
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}

int fsync(int fd)
{
    (void)fd; /* no power fails here, and thousands of runs write */
    return 0;
}

/* ---- files ------------------------------------------------------------------------------------------------ */

enum { MOST_FILES = 16, PATH = 1024 };
typedef struct text {
    char *bytes;
    size_t length;
} text;
typedef struct result {
    int status; /* 256 + signal when it was killed */
    text out, err, file[MOST_FILES];
    char name[MOST_FILES][PATH];
    int files;
} result;

static const char *dir;
static char own[PATH]; /* folder of standard output and messages */

static text slurp(const char *path)
{
    text t = {NULL, 0};
    struct stat info;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &info) != 0) {
        perror(path);
        exit(2);
    }
    t.bytes = malloc((size_t)info.st_size + 1);
    while (t.length < (size_t)info.st_size) {
        ssize_t n = read(fd, t.bytes + t.length, (size_t)info.st_size - t.length);
        if (n <= 0) break;
        t.length += (size_t)n;
    }
    t.bytes[t.length] = '\0';
    (void)close(fd);
    return t;
}

static int same(const text *a, const text *b)
{
    return a->length == b->length && memcmp(a->bytes, b->bytes, a->length) == 0;
}

static void free_result(result *r)
{
    int i;
    free(r->out.bytes);
    free(r->err.bytes);
    for (i = 0; i < r->files; i++) free(r->file[i].bytes);
}

/* Takes the files out of DIR, which is empty afterwards. */
static void collect(result *r)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    r->files = 0;
    while (d && (e = readdir(d)) != NULL) {
        char path[2 * PATH];
        if (e->d_name[0] == '.') continue;
        (void)snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (r->files < MOST_FILES) {
            (void)snprintf(r->name[r->files], PATH, "%.*s", PATH - 1, e->d_name);
            r->file[r->files++] = slurp(path);
        }
        (void)unlink(path);
    }
    if (d) (void)closedir(d);
}

static void redirect(int fd, const char *name, int flags)
{
    char path[2 * PATH];
    int file;
    (void)snprintf(path, sizeof path, "%s%s", name[0] == '/' ? "" : own, name);
    file = open(path, flags, 0600);
    if (file < 0 || dup2(file, fd) < 0) _exit(99);
    (void)close(file);
}

/* One run of the command in a child; calls from..to of its allocations are refused. */
static void run(int argc, char **argv, long from, long to, int record_it, result *r)
{
    char path[2 * PATH];
    int state = 0;
    pid_t child;
    shared->calls = 0;
    fflush(NULL);
    child = fork();
    if (child < 0) {
        perror("fork");
        exit(2);
    }
    if (child == 0) {
        redirect(0, "/dev/null", O_RDONLY);
        redirect(1, "out", O_WRONLY | O_CREAT | O_TRUNC);
        redirect(2, "err", O_WRONLY | O_CREAT | O_TRUNC);
        (void)alarm(120);
        refuse_from = from;
        refuse_to = to;
        recording = record_it;
        armed = 1;
        exit(__real_main(argc, argv));
    }
    while (waitpid(child, &state, 0) < 0 && errno == EINTR) {}
    memset(r, 0, sizeof *r);
    r->status = WIFEXITED(state) ? WEXITSTATUS(state) : 256 + WTERMSIG(state);
    (void)snprintf(path, sizeof path, "%sout", own);
    r->out = slurp(path);
    (void)snprintf(path, sizeof path, "%serr", own);
    r->err = slurp(path);
    collect(r);
}

/* ---- judgement ---------------------------------------------------------------------------------------------- */

static int one_line_about_memory(const text *t)
{
    const char *end = strchr(t->bytes, '\n');
    if (!end || end != t->bytes + t->length - 1) return 0;
    return strncmp(t->bytes, "moe-ep: ", 8) == 0 && strstr(t->bytes, "memory") != NULL;
}

static const char *files_wrong(const result *r, const result *want, int all)
{
    int i, j;
    if (all && r->files != want->files) return "a file is missing";
    for (i = 0; i < r->files; i++) {
        for (j = 0; j < want->files && strcmp(r->name[i], want->name[j]) != 0; j++) {}
        if (j == want->files) return "another file was left";
        if (!same(&r->file[i], &want->file[j])) return "a file is not whole";
    }
    return NULL;
}

/* What is wrong with a run, or NULL. */
static const char *wrong(const result *r, const result *want, int timed, int *refusal)
{
    *refusal = r->status == 1 && want->status != 1;
    if (r->status >= 256) return "it crashed";
    if (*refusal && !one_line_about_memory(&r->err)) return "its message is not one line about memory";
    if (*refusal) return files_wrong(r, want, 0);
    if (r->status != want->status) return "its exit status is neither 1 nor what it should be";
    if (!same(&r->err, &want->err)) return "its messages differ, and the status does not tell";
    if (!timed && !same(&r->out, &want->out)) return "its output differs, and the status does not tell";
    return files_wrong(r, want, 1);
}

static long runs, refusals, failures;

static void try(int argc, char **argv, long from, long to, const result *want, int timed)
{
    result r;
    const char *why;
    int refusal;
    run(argc, argv, from, to, 0, &r);
    why = wrong(&r, want, timed, &refusal);
    runs++;
    refusals += refusal;
    if (why && failures++ < 12) {
        printf("allocation %ld%s refused: %s (status %d) %.300s\n", from, to > from ? " and all later ones" : "", why,
               r.status, r.err.bytes);
        fflush(stdout);
        backtrace_symbols_fd(shared->frame + 2, shared->frames > 10 ? 8 : shared->frames - 2, 1);
    }
    free_result(&r);
}

/* ---- which calls ---------------------------------------------------------------------------------------------- */

typedef struct site {
    uint64_t stack;
    long first, last;
} site;

static int by_stack(const void *a, const void *b)
{
    const site *x = a, *y = b;
    if (x->stack != y->stack) return x->stack < y->stack ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* The different stacks of calls 1..n, with the first and last call of each. */
static long sites_of(site *s, long n)
{
    long i, at = 0;
    for (i = 0; i < n; i++) {
        s[i].stack = shared->stack_of[i];
        s[i].first = s[i].last = i + 1;
    }
    qsort(s, (size_t)n, sizeof *s, by_stack);
    for (i = 1; i < n; i++) {
        if (s[i].stack == s[at].stack)
            s[at].last = s[i].first;
        else
            s[++at] = s[i];
    }
    return n > 0 ? at + 1 : 0;
}

int __wrap_main(int argc, char **argv)
{
    void *warm[4];
    long sites = 0, i, calls, places = 0;
    int at = 1, timed = 0;
    site *s;
    result want;
    for (; at < argc && strcmp(argv[at], "--") != 0; at++) {
        if (strcmp(argv[at], "--timed") == 0) timed = 1;
        if (strcmp(argv[at], "--sites") == 0) sites = atol(argv[++at]);
        if (strcmp(argv[at], "--dir") == 0) dir = argv[++at];
    }
    if (at + 1 >= argc || !dir || sites < 0) return 2;
    argv[at] = argv[0];
    (void)snprintf(own, sizeof own, "%.900s.run.", dir);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 2;
    (void)backtrace(warm, 4); /* loads what it needs */
    run(argc - at, argv + at, 0, -1, 1, &want);
    calls = shared->calls < MOST_CALLS ? shared->calls : MOST_CALLS;
    if (want.status >= 256) {
        printf("it crashes without any failure\n");
        return 1;
    }
    s = calloc((size_t)calls + 1, sizeof *s);
    if (!s) return 2;
    places = sites_of(s, calls);
    if (!sites)
        for (i = 1; i <= calls + 1; i++) try(argc - at, argv + at, i, i, &want, timed);
    for (i = 0; i < places; i += sites ? sites : 1) {
        if (sites) try(argc - at, argv + at, s[i].first, s[i].first, &want, timed);
        if (sites && s[i].last > s[i].first) try(argc - at, argv + at, s[i].last, s[i].last, &want, timed);
        try(argc - at, argv + at, s[i].first, INT32_MAX, &want, timed);
    }
    printf("%ld allocations at %ld places, %ld runs, %ld refusals, %ld failures\n", calls, places, runs, refusals,
           failures);
    free(s);
    free_result(&want);
    return failures > 0;
}
