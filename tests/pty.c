/* pty.c - runs a program on a terminal of its own and plays what happens to it: keys, signals, a new size, a hang-up
 * SPDX-License-Identifier: MIT
 *
 * usage: pty OUTPUT ACTION... -- COMMAND...
 * actions, in order: wait:TEXT (until the output since the last action has it, 60 s), key:TEXT, signal:NUMBER,
 * size:ROWS:COLUMNS, stopped (until the program is stopped), cooked (the terminal must be as it was), raw (must not),
 * hangup (the terminal goes away)
 * Prints "exit N" or "signal N", then "cooked" or "raw": how the terminal was left.  2 = an action failed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static int master = -1, slave = -1;
static FILE *record;
static char seen[1 << 20];
static size_t have;

static void fail(const char *what)
{
    fprintf(stdout, "failed: %s\n", what);
    exit(2);
}

static int is_cooked(void)
{
    struct termios t;
    return tcgetattr(slave, &t) == 0 && (t.c_lflag & ICANON) && (t.c_lflag & ECHO);
}

/* What the program writes within some milliseconds. */
static void listen_for(int ms)
{
    struct pollfd p = {master, POLLIN, 0};
    char buf[4096];
    ssize_t n;
    if (poll(&p, 1, ms) <= 0) return;
    n = read(master, buf, sizeof buf);
    if (n <= 0) return;
    (void)fwrite(buf, 1, (size_t)n, record);
    if (have + (size_t)n >= sizeof seen) have = 0;
    memcpy(seen + have, buf, (size_t)n);
    have += (size_t)n;
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void wait_text(const char *text)
{
    double end = now() + 60.0;
    while (!memmem(seen, have, text, strlen(text))) {
        if (now() > end) fail(text);
        listen_for(50);
    }
    have = 0;
}

static void wait_stopped(pid_t pid)
{
    double end = now() + 60.0;
    int status;
    while (waitpid(pid, &status, WUNTRACED | WNOHANG) != pid || !WIFSTOPPED(status)) {
        if (now() > end) fail("stopped");
        listen_for(20);
    }
}

static void set_size(const char *text)
{
    struct winsize size;
    char *end;
    memset(&size, 0, sizeof size);
    size.ws_row = (unsigned short)strtol(text, &end, 10);
    size.ws_col = (unsigned short)strtol(end + (*end == ':'), NULL, 10);
    if (ioctl(master, TIOCSWINSZ, &size) != 0) fail("size");
}

static void act(const char *action, pid_t pid)
{
    const char *value = strchr(action, ':');
    if (value) value++;
    if (strncmp(action, "wait:", 5) == 0)
        wait_text(value);
    else if (strncmp(action, "key:", 4) == 0 && write(master, value, strlen(value)) > 0)
        have = 0;
    else if (strncmp(action, "signal:", 7) == 0 && kill(pid, atoi(value)) == 0)
        have = 0;
    else if (strncmp(action, "size:", 5) == 0)
        set_size(value);
    else if (strcmp(action, "stopped") == 0)
        wait_stopped(pid);
    else if (strcmp(action, "hangup") == 0)
        close(slave), close(master), slave = master = -1;
    else if (strcmp(action, "cooked") == 0 ? !is_cooked() : strcmp(action, "raw") == 0 ? is_cooked() : 1)
        fail(action);
}

static void open_pty(void)
{
    const char *name;
    master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) fail("no terminal");
    name = ptsname(master);
    slave = name ? open(name, O_RDWR | O_NOCTTY) : -1;
    if (slave < 0) fail("no terminal");
    set_size("24:80");
}

static pid_t start(char **command)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    (void)setsid();
    (void)ioctl(slave, TIOCSCTTY, 0);
    (void)dup2(slave, 0);
    (void)dup2(slave, 1);
    (void)dup2(slave, 2);
    close(master);
    close(slave);
    execv(command[0], command);
    _exit(127);
}

int main(int argc, char **argv)
{
    int first = 2, status = 0;
    double end;
    pid_t pid;
    while (first < argc && strcmp(argv[first], "--") != 0) first++;
    if (first + 1 >= argc || !(record = fopen(argv[1], "wb"))) return 2;
    open_pty();
    pid = start(argv + first + 1);
    for (int i = 2; i < first; i++) act(argv[i], pid);
    end = now() + 60.0;
    while (waitpid(pid, &status, WNOHANG) != pid) {
        if (now() > end) fail("it does not end");
        if (master >= 0)
            listen_for(50);
        else
            (void)usleep(20000);
    }
    while (master >= 0) { /* what is still on its way */
        struct pollfd p = {master, POLLIN, 0};
        if (poll(&p, 1, 100) <= 0) break;
        listen_for(0);
    }
    if (WIFSIGNALED(status))
        printf("signal %d", WTERMSIG(status));
    else
        printf("exit %d", WEXITSTATUS(status));
    printf(" %s\n", slave < 0 ? "gone" : is_cooked() ? "cooked" : "raw");
    return fclose(record) != 0;
}
