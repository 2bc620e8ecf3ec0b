/* cli_screen.c - width, characters and colours of the text; sentences in lines
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_screen.h"

#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int cli_screen_width(const cli_screen *s)
{
    struct winsize size;
    if (s->width > 0) return s->width;
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 60)
        return size.ws_col < 120 ? size.ws_col : 120;
    return 100;
}

int cli_screen_color(const cli_screen *s)
{
    const char *none = getenv("NO_COLOR"), *term = getenv("TERM");
    if (strcmp(s->color, "always") == 0) return 1;
    if (strcmp(s->color, "never") == 0 || (none && *none) || (term && strcmp(term, "dumb") == 0))
        return 0;
    return isatty(STDOUT_FILENO);
}

int cli_screen_ascii(const cli_screen *s)
{
    (void)setlocale(LC_CTYPE, "");
    return s->ascii || strcmp(nl_langinfo(CODESET), "UTF-8") != 0;
}

chart_text cli_screen_chart(const cli_screen *s)
{
    chart_text t = {cli_screen_width(s), cli_screen_ascii(s), cli_screen_color(s)};
    return t;
}

/* Columns that a text takes on the screen. */
int cli_columns(const char *s)
{
    int n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0u) != 0x80u;
    return n;
}

/* Text in lines of at most `width` columns, the first after `used` of them, the others indented. */
void cli_put_wrapped(FILE *f, const char *text, int width, int indent, int used)
{
    int at = used;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (text[n] == ' ' && text[n + 1] == '%') n += 1 + strcspn(text + n + 1, " ");
        char *word = cli_format("%.*s", (int)n, text);
        int wide = cli_columns(word);
        if (at > indent && at + 1 + wide > width) {
            fprintf(f, "\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            fputc(' ', f);
            at++;
        }
        fputs(word, f);
        at += wide;
        free(word);
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', f);
}

void cli_put_title(FILE *f, const chart_text *t, const char *text)
{
    fprintf(f, "\n%s%s%s\n", t->color ? "\033[1m" : "", text, t->color ? "\033[0m" : "");
}

void cli_put_assumed(FILE *f, const chart_text *t, const char *assumed)
{
    char *copy = cli_strdup(assumed ? assumed : ""), *save = NULL;
    if (*copy) cli_put_title(f, t, "Taken for granted");
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        fputs("  * ", f);
        cli_put_wrapped(f, line, t->width, 4, 4);
    }
    free(copy);
}
