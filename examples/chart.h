/* chart.h - small charts for the terminal and as SVG, printed to a FILE
 * SPDX-License-Identifier: MIT
 *
 * Terminal: chart_text_*   width from the caller, plain ASCII or eighth blocks, colour only when asked.
 * SVG:      chart_svg_*    one <svg> per call, colours by class (chart_css), patterns by chart_defs, so that a page
 *                          may follow light and dark; every figure has a title and a description, every bar a value
 *                          and a hatch or a marker beside its colour.
 * Output depends on the input only.  Needs C99 and <stdio.h>. */
#ifndef CHART_H
#define CHART_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Colour, hatch and marker of a bar, point or line. */
typedef enum chart_kind {
    CHART_PLAIN = 0, /* grey, the ordinary                         */
    CHART_HOT,       /* orange, diagonal hatch, triangle: before   */
    CHART_GOOD,      /* blue, solid, circle: after                 */
    CHART_BEST,      /* green, dotted, square: after, second kind  */
    CHART_COLD,      /* grey outline: below what chance explains   */
    CHART_KINDS
} chart_kind;

/* ==== terminal ======================================================================================== */

typedef struct chart_text {
    int width; /* columns, 0 = 72           */
    int ascii; /* 1: ASCII only             */
    int color; /* 1: ANSI colours           */
} chart_text;

static inline int chart_width(const chart_text *t)
{
    return t->width > 0 ? t->width : 72;
}

static inline const char *chart_ansi(const chart_text *t, chart_kind kind)
{
    if (!t->color) return "";
    return kind == CHART_HOT    ? "\033[38;5;208m"
           : kind == CHART_GOOD ? "\033[38;5;75m"
           : kind == CHART_BEST ? "\033[38;5;79m"
                                : "\033[2m";
}

static inline const char *chart_ansi_end(const chart_text *t)
{
    return t->color ? "\033[0m" : "";
}

/* A bar of `share` (0..1) of `cells` columns, padded to them. */
static inline void chart_text_bar(FILE *f, const chart_text *t, double share, int cells)
{
    static const char *const eighth[] = {"",
                                         "\xe2\x96\x8f",
                                         "\xe2\x96\x8e",
                                         "\xe2\x96\x8d",
                                         "\xe2\x96\x8c",
                                         "\xe2\x96\x8b",
                                         "\xe2\x96\x8a",
                                         "\xe2\x96\x89"};
    int units = (int)(share * 8.0 * cells + 0.5), full, used;
    if (units > 8 * cells) units = 8 * cells;
    if (units < 0) units = 0;
    if (t->ascii) units = (units + 4) / 8 * 8;
    full = units / 8;
    for (int i = 0; i < full; i++) fputs(t->ascii ? "#" : "\xe2\x96\x88", f);
    used = full;
    if (units % 8 != 0) {
        fputs(eighth[units % 8], f);
        used++;
    }
    for (int i = used; i < cells; i++) fputc(' ', f);
}

/* One line per bar: label, bar, value, note.  mark (may be 0) is drawn as '|' at that value. */
static inline void chart_text_bars(FILE *f, const chart_text *t, int n, const char *const *label,
                                   const double *value, const char *const *note,
                                   const chart_kind *kind)
{
    int wide = 0, tail = 0, cells;
    double top = 0.0;
    for (int i = 0; i < n; i++) {
        if ((int)strlen(label[i]) > wide) wide = (int)strlen(label[i]);
        if (note && (int)strlen(note[i]) > tail) tail = (int)strlen(note[i]);
        if (value[i] > top) top = value[i];
    }
    cells = chart_width(t) - wide - tail - 5;
    if (cells < 8) cells = 8;
    for (int i = 0; i < n; i++) {
        fprintf(f, "  %-*s %s", wide, label[i], t->ascii ? "|" : "\xe2\x94\x82");
        fputs(chart_ansi(t, kind ? kind[i] : CHART_PLAIN), f);
        chart_text_bar(f, t, top > 0.0 ? value[i] / top : 0.0, cells);
        fprintf(f, "%s %s\n", chart_ansi_end(t), note ? note[i] : "");
    }
}

/* Shade of a value given as a multiple of the mean: 0 (none) .. 9 (six times and more). */
enum { CHART_LEVELS = 10 };
static const double chart_level_from[CHART_LEVELS] = {0.0, 0.25, 0.5, 0.75, 1.0,
                                                      1.5, 2.0,  3.0, 4.0,  6.0};

static inline int chart_level(double times_mean)
{
    int level = 0;
    while (level + 1 < CHART_LEVELS && times_mean >= chart_level_from[level + 1]) level++;
    return level;
}

/* rows x cols values (multiples of the mean) as shades; more columns than fit are joined, the largest shown. */
static inline void chart_text_heatmap(FILE *f, const chart_text *t, int rows, int cols,
                                      const char *const *label, const double *value,
                                      const char *const *note)
{
    static const char ramp[] = " .:-=+*#%@";
    int wide = 0, tail = 0, per = 1;
    for (int r = 0; r < rows; r++) {
        if ((int)strlen(label[r]) > wide) wide = (int)strlen(label[r]);
        if (note && (int)strlen(note[r]) > tail) tail = (int)strlen(note[r]);
    }
    while ((cols + per - 1) / per > chart_width(t) - wide - tail - 6 && per < cols) per++;
    for (int r = 0; r < rows; r++) {
        fprintf(f, "  %*s |", wide, label[r]);
        for (int c = 0; c < cols; c += per) {
            double top = 0.0;
            for (int i = c; i < c + per && i < cols; i++)
                if (value[(size_t)r * (size_t)cols + (size_t)i] > top)
                    top = value[(size_t)r * (size_t)cols + (size_t)i];
            fputc(ramp[chart_level(top)], f);
        }
        fprintf(f, "| %s\n", note ? note[r] : "");
    }
}

/* One line per token: the experts it went to, 1 for the first choice, '+' where several share a column. */
static inline void chart_text_strips(FILE *f, const chart_text *t, int tokens, int top_k,
                                     int experts, const int *ids)
{
    int per = 1, cells;
    char line[512];
    while ((experts + per - 1) / per > chart_width(t) - 12 || (experts + per - 1) / per > 500)
        per++;
    cells = (experts + per - 1) / per;
    for (int i = 0; i < tokens; i++) {
        memset(line, '.', (size_t)cells);
        line[cells] = '\0';
        for (int k = 0; k < top_k; k++) {
            int at = ids[i * top_k + k] / per;
            if (ids[i * top_k + k] < 0) continue;
            line[at] = line[at] != '.' ? '+' : k < 9 ? (char)('1' + k) : '*';
        }
        fprintf(f, "  %5d |%s|\n", i, line);
    }
}

/* A line of n values as one row of blocks, scaled to the largest. */
static inline void chart_text_spark(FILE *f, const chart_text *t, int n, const double *value)
{
    static const char *const block[] = {"\xe2\x96\x81", "\xe2\x96\x82", "\xe2\x96\x83",
                                        "\xe2\x96\x84", "\xe2\x96\x85", "\xe2\x96\x86",
                                        "\xe2\x96\x87", "\xe2\x96\x88"};
    double top = 0.0;
    for (int i = 0; i < n; i++)
        if (value[i] > top) top = value[i];
    for (int i = 0; i < n; i++) {
        int level = top > 0.0 ? (int)(value[i] / top * 7.0 + 0.5) : 0;
        if (t->ascii)
            fputc("_.-=+*#@"[level], f);
        else
            fputs(block[level], f);
    }
}

/* ==== SVG ============================================================================================= */

/* Text with the characters that mean something in XML made safe. */
static inline void chart_xml(FILE *f, const char *s)
{
    for (; *s; s++) {
        if (*s == '&')
            fputs("&amp;", f);
        else if (*s == '<')
            fputs("&lt;", f);
        else if (*s == '>')
            fputs("&gt;", f);
        else if (*s == '"')
            fputs("&quot;", f);
        else if ((unsigned char)*s >= 32u)
            fputc(*s, f);
    }
}

/* The classes of all figures.  Colours are custom properties: light here, dark by the media rule. */
static inline void chart_css(FILE *f)
{
    /* clang-format off */
    fputs(
        ":root{--bg:#f6f5f1;--card:#fffffd;--ink:#1d2126;--soft:#4c5560;--faint:#626c77;--grid:#e2e2dc;\n"
        "--axis:#a5a9a8;--plain:#818c97;--hot:#c2410c;--good:#1f5fa8;--best:#0b7a66;--band:#dfe7ee;--h0:#fbf3e4;\n"
        "--h1:#fae7c6;--h2:#f8d6a0;--h3:#f4c078;--h4:#eda557;--h5:#e0843c;--h6:#cb622b;--h7:#a94622;--h8:#7f311d;\n"
        "--h9:#531f18;--mark:#111}\n"
        "@media(prefers-color-scheme:dark){\n"
        ":root{--bg:#0e1217;--card:#151a21;--ink:#e9edf1;--soft:#b3bcc6;--faint:#8d98a4;--grid:#29313b;\n"
        "--axis:#55606c;--plain:#76828f;--hot:#ff8b4d;--good:#69b0ff;--best:#3fd6ba;--band:#222c38;--h0:#1a1e25;\n"
        "--h1:#2b242c;--h2:#442a32;--h3:#633136;--h4:#853b35;--h5:#a84b30;--h6:#c8642c;--h7:#e08632;--h8:#f2ae51;\n"
        "--h9:#fddf98;--mark:#fff}}\n"
        "@media print{\n"
        ":root{--bg:#fff;--card:#fff;--ink:#000;--soft:#333;--faint:#555;--grid:#ddd;--axis:#888;--plain:#8c96a0;\n"
        "--hot:#c2410c;--good:#1f5fa8;--best:#0b7a66;--band:#dfe7ee;--h0:#fbf3e4;--h1:#fae7c6;--h2:#f8d6a0;\n"
        "--h3:#f4c078;--h4:#eda557;--h5:#e0843c;--h6:#cb622b;--h7:#a94622;--h8:#7f311d;--h9:#531f18;--mark:#111}\n"
        "}svg.c{display:block;width:100%;height:auto;overflow:visible}\n"
        "svg.c text{font:12px/1 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;\n"
        "fill:var(--soft);font-variant-numeric:tabular-nums}\n"
        "svg.c .v{fill:var(--ink);font-weight:600;font-size:11px}svg.c .s{font-size:11px}\n"
        "svg.c .e{text-anchor:end}svg.c .mid{text-anchor:middle}svg.c .b{fill:var(--ink);font-weight:600}\n"
        "svg.c .g{stroke:var(--grid);stroke-width:1}svg.c .x{stroke:var(--axis);stroke-width:1}\n"
        "svg.c .mean{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:5 4}svg.c .band{fill:var(--band)}\n"
        "svg.c .halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}\n"
        ".k0{fill:var(--plain)}.k1{fill:url(#hatch-hot)}.k2{fill:var(--good)}.k3{fill:url(#dots-best)}\n"
        ".k4{fill:url(#lines-cold)}.l0{stroke:var(--plain)}.l1{stroke:var(--hot)}.l2{stroke:var(--good)}\n"
        ".l3{stroke:var(--best)}.l4{stroke:var(--faint)}\n"
        ".l0,.l1,.l2,.l3,.l4{fill:none;stroke-width:2;stroke-linejoin:round}.l2{stroke-dasharray:none}\n"
        ".l3{stroke-dasharray:7 3}.l4{stroke-dasharray:2 4;stroke-width:1.5}.p0{fill:var(--plain)}\n"
        ".p1{fill:var(--hot)}.p2{fill:var(--good)}.p3{fill:var(--best)}.p4{fill:var(--faint)}\n"
        ".h0{stroke:var(--h0)}.h1{stroke:var(--h1)}.h2{stroke:var(--h2)}.h3{stroke:var(--h3)}\n"
        ".h4{stroke:var(--h4)}.h5{stroke:var(--h5)}.h6{stroke:var(--h6)}.h7{stroke:var(--h7)}\n"
        ".h8{stroke:var(--h8)}.h9{stroke:var(--h9)}.hm path{fill:none;stroke-width:1}\n"
        ".dead{fill:none;stroke:var(--faint);stroke-width:.12}\n"
        ".peak{fill:none;stroke:var(--mark);stroke-width:1.5}\n",
        f);
    /* clang-format on */
}

/* The hatches, once per page or file. */
static inline void chart_defs(FILE *f)
{
    fputs("<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><defs>"
          "<pattern id=\"hatch-hot\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
          "patternTransform=\"rotate(45)\">"
          "<rect width=\"6\" height=\"6\" style=\"fill:var(--hot)\"/><rect width=\"2\" "
          "height=\"6\" style=\"fill:var(--card);opacity:.45\"/></pattern>"
          "<pattern id=\"dots-best\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
          "<rect width=\"6\" height=\"6\" style=\"fill:var(--best)\"/><circle cx=\"2\" cy=\"2\" "
          "r=\"1\" style=\"fill:var(--card);opacity:.7\"/>"
          "<circle cx=\"5\" cy=\"5\" r=\"1\" style=\"fill:var(--card);opacity:.7\"/></pattern>"
          "<pattern id=\"lines-cold\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\">"
          "<rect width=\"5\" height=\"5\" style=\"fill:var(--card)\"/><rect width=\"5\" "
          "height=\"1.6\" style=\"fill:var(--plain)\"/></pattern>"
          "</defs></svg>\n",
          f);
}

/* Opens a figure.  id must be unique on the page; description is the text alternative. */
static inline void chart_open(FILE *f, const char *id, double width, double height,
                              const char *title, const char *description)
{
    fprintf(f,
            "<svg class=\"c\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
            "role=\"img\" aria-labelledby=\"%s-t %s-d\">"
            "<title id=\"%s-t\">",
            width, height, id, id, id);
    chart_xml(f, title);
    fprintf(f, "</title><desc id=\"%s-d\">", id);
    chart_xml(f, description);
    fputs("</desc>\n", f);
}

static inline void chart_close(FILE *f)
{
    fputs("</svg>\n", f);
}

static inline void chart_label(FILE *f, const char *cls, double x, double y, const char *text)
{
    fprintf(f, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\">", cls, x, y);
    chart_xml(f, text);
    fputs("</text>\n", f);
}

/* Rough width of a label at the sizes used here. */
static inline double chart_text_px(const char *s, double size)
{
    size_t n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0u) != 0x80u;
    return 0.58 * size * (double)n;
}

/* Step of about `ticks` round marks up to top: 1, 2 or 5 times a power of ten. */
static inline double chart_step(double top, int ticks)
{
    double raw = top / ticks, power = raw > 0.0 ? pow(10.0, floor(log10(raw))) : 1.0,
           r = raw / power;
    return (r <= 1.0 ? 1.0 : r <= 2.0 ? 2.0 : r <= 5.0 ? 5.0 : 10.0) * power;
}

/* 1200 -> "1.2k", 0.25 -> "0.25". */
static inline void chart_number(char *out, size_t bytes, double v)
{
    const char *unit = "";
    if (fabs(v) >= 999.5e6)
        v /= 1e9, unit = "G";
    else if (fabs(v) >= 999.5e3)
        v /= 1e6, unit = "M";
    else if (fabs(v) >= 999.5)
        v /= 1e3, unit = "k";
    (void)snprintf(out, bytes, "%.3g%s", v, unit);
}

/* ---- vertical bars ----------------------------------------------------------------------------------- */

typedef struct chart_bars {
    const char *id, *title, *description;
    const char *y_title, *x_title; /* with units */
    int n;
    const double *value;
    const char *const *label;       /* below a bar; NULL or "" = none there */
    const char *const *value_label; /* above a bar; NULL = none             */
    const char *const *tip;         /* hover text; NULL = label and value   */
    const chart_kind *kind;         /* NULL = plain                         */
    double line;                    /* level of the dashed line, 0 = none   */
    const char *line_label;
    double band_low, band_high; /* shaded range, both 0 = none          */
    double top;                 /* of the axis, 0 = from the values     */
} chart_bars;

static inline void chart_y_axis(FILE *f, double left, double right, double base, double height,
                                double top, const char *title)
{
    double step = chart_step(top, height > 170 ? 5 : height > 90 ? 4 : 3);
    char text[32];
    for (double v = 0.0; v <= top * 1.0001; v += step) {
        double y = base - height * v / top;
        if (v > 0.0)
            fprintf(f, "<line class=\"g\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", left,
                    right, y, y);
        chart_number(text, sizeof text, v);
        chart_label(f, "s e", left - 6, y + 4, text);
    }
    chart_label(f, "s", 0, 12, title);
}

static inline void chart_bar(FILE *f, chart_kind kind, double x, double y, double w, double h,
                             const char *tip)
{
    fprintf(f, "<rect class=\"k%d\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\">",
            (int)kind, x, y, w, h);
    if (tip) {
        fputs("<title>", f);
        chart_xml(f, tip);
        fputs("</title>", f);
    }
    fputs("</rect>\n", f);
}

static inline void chart_svg_bars(FILE *f, const chart_bars *c, double width, double height)
{
    double left = 44, right = width - 4, high = 34, low = c->x_title ? 40 : 24, base = height - low,
           top = c->top, room = base - high;
    double slot = (right - left) / c->n,
           gap = slot > 8   ? slot * 0.22
                 : slot > 3 ? 1
                            : 0,
           widest = 0, widest_label = 0;
    int turned, every = 1;
    for (int i = 0; i < c->n; i++) {
        if (c->value[i] > top) top = c->value[i];
        if (c->value_label && chart_text_px(c->value_label[i], 11) > widest)
            widest = chart_text_px(c->value_label[i], 11);
        if (c->label && c->label[i] && chart_text_px(c->label[i], 11) > widest_label)
            widest_label = chart_text_px(c->label[i], 11);
    }
    if (!(top > 0.0)) top = 1.0;
    turned = widest > slot + 1;
    if (turned) high += widest * 0.8, room = base - high;
    while (widest_label > 0 && slot * every < widest_label + 5) every *= 2;
    chart_open(f, c->id, width, height, c->title, c->description);
    if (c->band_high > 0.0) {
        double y0 = base - room * (c->band_high < top ? c->band_high : top) / top,
               y1 = base - room * c->band_low / top;
        fprintf(f, "<rect class=\"band\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
                left, y0, right - left, y1 - y0);
    }
    chart_y_axis(f, left, right, base, room, top, c->y_title ? c->y_title : "");
    for (int i = 0; i < c->n; i++) {
        double x = left + slot * i, h = room * c->value[i] / top;
        chart_bar(f, c->kind ? c->kind[i] : CHART_PLAIN, x + gap / 2, base - h, slot - gap, h,
                  c->tip ? c->tip[i] : NULL);
        if (c->label && c->label[i] && i % every == 0)
            chart_label(f, "s mid", x + slot / 2, base + 15, c->label[i]);
    }
    fprintf(f, "<line class=\"x\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", left, right,
            base, base);
    if (c->line > 0.0) {
        double y = base - room * c->line / top;
        fprintf(f, "<line class=\"mean\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", left,
                right, y, y);
    }
    for (int i = 0; c->value_label && i < c->n; i++) {
        double x = left + slot * (i + 0.5), y = base - room * c->value[i] / top - 5;
        if (!c->value_label[i][0]) continue;
        if (turned)
            fprintf(f, "<text class=\"v halo\" transform=\"translate(%.1f %.1f) rotate(-90)\">",
                    x + 4, y);
        else
            fprintf(f, "<text class=\"v mid halo\" x=\"%.1f\" y=\"%.1f\">", x, y);
        chart_xml(f, c->value_label[i]);
        fputs("</text>\n", f);
    }
    if (c->line_label) chart_label(f, "s e", right, 12, c->line_label);
    if (c->x_title) chart_label(f, "s mid", (left + right) / 2, height - 4, c->x_title);
    chart_close(f);
}

/* ---- horizontal bars: label, bar, value -------------------------------------------------------------- */

typedef struct chart_hbars {
    const char *id, *title, *description;
    int n;
    const double *value;
    const char *const *label;
    const char *const *value_label;
    const chart_kind *kind;
    double line; /* dashed, 0 = none */
    const char *line_label;
} chart_hbars;

static inline double chart_hbars_height(const chart_hbars *c, double width)
{
    return 22 + c->n * (width < 520 ? 46.0 : 34.0);
}

static inline void chart_svg_hbars(FILE *f, const chart_hbars *c, double width)
{
    double height = chart_hbars_height(c, width), left = 0, tail = 0, top = 0, room,
           pitch = width < 520 ? 46.0 : 34.0;
    int stacked = width < 520;
    for (int i = 0; i < c->n; i++) {
        double w = chart_text_px(c->label[i], 12), v = chart_text_px(c->value_label[i], 11);
        if (!stacked && w > left) left = w;
        if (v > tail) tail = v;
        if (c->value[i] > top) top = c->value[i];
    }
    if (!(top > 0.0)) top = 1.0;
    if (!stacked) left += 14;
    room = width - left - tail - 14;
    chart_open(f, c->id, width, height, c->title, c->description);
    for (int i = 0; i < c->n; i++) {
        double y = 18 + pitch * i + (stacked ? 18 : 4), bar = stacked ? 18 : 22;
        chart_bar(f, c->kind ? c->kind[i] : CHART_PLAIN, left, y, room * c->value[i] / top, bar,
                  NULL);
    }
    if (c->line > 0.0) {
        double x = left + room * c->line / top;
        for (int i = 0; i < (stacked ? c->n : 1); i++) {
            double y = stacked ? 18 + pitch * i + 15 : 16;
            fprintf(f, "<line class=\"mean\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                    x, x, y, stacked ? y + 24 : height);
        }
        if (c->line_label) chart_label(f, x > width / 2 ? "s e" : "s", x, 11, c->line_label);
    }
    for (int i = 0; i < c->n; i++) {
        double y = 18 + pitch * i;
        chart_label(f, stacked ? "halo" : "e", stacked ? 0 : left - 10, y + (stacked ? 13 : 19),
                    c->label[i]);
    }
    for (int i = 0; i < c->n; i++)
        chart_label(f, "v halo", left + room * c->value[i] / top + 7,
                    18 + pitch * i + (stacked ? 31 : 19), c->value_label[i]);
    chart_close(f);
}

/* ---- lines and points on axes ------------------------------------------------------------------------- */

typedef struct chart_series {
    int n;
    const double *x, *y; /* on a logarithmic axis values <= 0 are left out */
    chart_kind kind;
    int marks; /* 1: a marker on every point, 2: markers without a line */
    const char *const *label; /* beside each point; NULL = none, "" = not this one */
} chart_series;

typedef struct chart_lines {
    const char *id, *title, *description, *x_title, *y_title;
    int n;
    const chart_series *series;
    int linear_x, linear_y;  /* 0: logarithmic                        */
    double line;             /* dashed level, 0 = none                */
} chart_lines;

static inline void chart_marker(FILE *f, chart_kind kind, double x, double y, double r)
{
    if (kind == CHART_HOT)
        fprintf(f, "<path class=\"p1\" d=\"M%.1f %.1fl%.1f %.1fh%.1fz\"/>", x, y - r * 1.2,
                r * 1.15, r * 2.1, -r * 2.3);
    else if (kind == CHART_BEST)
        fprintf(f, "<rect class=\"p3\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
                x - r * .9, y - r * .9, r * 1.8, r * 1.8);
    else
        fprintf(f, "<circle class=\"p%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>", (int)kind, x, y,
                r);
}

/* One axis: the values at its ends (logarithms unless linear) and where these are drawn. */
typedef struct chart_axis {
    double from, to, start, end, step;
    int linear;
} chart_axis;

static inline double chart_at(const chart_axis *a, double v)
{
    return a->start + (a->end - a->start) * ((a->linear ? v : log10(v)) - a->from) /
                          (a->to - a->from);
}

static inline int chart_visible(const chart_lines *c, double x, double y)
{
    return (c->linear_x || x > 0.0) && (c->linear_y || y > 0.0);
}

static inline chart_axis chart_axis_of(const chart_lines *c, int axis, double start, double end)
{
    chart_axis a = {1e300, -1e300, start, end, 0.0, axis ? c->linear_y : c->linear_x};
    for (int s = 0; s < c->n; s++)
        for (int i = 0; i < c->series[s].n; i++) {
            double v = axis ? c->series[s].y[i] : c->series[s].x[i];
            if (!chart_visible(c, c->series[s].x[i], c->series[s].y[i])) continue;
            if (v < a.from) a.from = v;
            if (v > a.to) a.to = v;
        }
    if (axis && c->line > 0.0 && c->line < a.from) a.from = c->line;
    if (axis && c->line > a.to) a.to = c->line;
    if (a.from > a.to) a.from = a.linear ? 0.0 : 0.1, a.to = 1.0;
    if (a.linear) {
        if (a.from >= 0.0 && (!axis || a.from < 0.4 * a.to)) a.from = 0.0;
        double most = fabs(a.from) > fabs(a.to) ? fabs(a.from) : fabs(a.to), least;
        /* marks have three digits: closer ones would read alike */
        least = most > 0.0 ? pow(10.0, floor(log10(most)) - 2.0) : 0.0;
        a.step = chart_step(a.to - a.from > 1e-3 ? a.to - a.from : 1e-3, axis ? 5 : 7);
        if (a.step < least) a.step = least;
        a.from = floor(a.from / a.step + 1e-9) * a.step;
        a.to = axis ? ceil(a.to / a.step - 1e-9) * a.step : a.to + 0.03 * (a.to - a.from);
        if (!(a.to > a.from)) a.to = a.from + a.step;
        return a;
    }
    a.from = floor(log10(a.from) * 2 + 1e-9) / 2;
    a.to = ceil(log10(a.to) * 2 - 1e-9) / 2;
    if (a.to - a.from < 0.5) a.to = a.from + 0.5;
    return a;
}

/* A grid line and, when there is room, its value. */
static inline void chart_tick(FILE *f, int axis, double at, double from, double to, double v,
                              int shown)
{
    char text[32];
    chart_number(text, sizeof text, v);
    fprintf(f, "<line class=\"g\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
            axis ? from : at, axis ? to : at, axis ? at : from, axis ? at : to);
    if (shown && axis)
        chart_label(f, "s e", from - 6, at + 4, text);
    else if (shown)
        chart_label(f, "s mid", at, to + 16, text);
}

static inline void chart_ticks(FILE *f, const chart_axis *a, int axis, double from, double to)
{
    double last = -1e9;
    if (a->linear) {
        for (double v = a->from; v <= a->to + 1e-6 * a->step; v += a->step) {
            double shown = fabs(v) < 1e-9 * a->step ? 0.0 : v;
            chart_tick(f, axis, chart_at(a, v), from, to, shown, 1);
        }
        return;
    }
    for (int e = (int)floor(a->from); e <= (int)ceil(a->to); e++)
        for (int m = 1; m <= 5; m = m == 1 ? 2 : m == 2 ? 5 : 6) {
            double v = m * pow(10.0, e), at = chart_at(a, v);
            int shown = m == 1 || (a->to - a->from < 4 && at - last > 34 && a->end - at > -1);
            if (log10(v) < a->from - 1e-9 || log10(v) > a->to + 1e-9) continue;
            chart_tick(f, axis, at, from, to, v, axis || shown);
            if (shown) last = at;
        }
}

static inline void chart_series_line(FILE *f, const chart_lines *c, const chart_series *q,
                                     const chart_axis *x, const chart_axis *y)
{
    int begun = 0;
    fprintf(f, "<path class=\"l%d\" d=\"", (int)q->kind);
    for (int i = 0; i < q->n; i++) {
        if (!chart_visible(c, q->x[i], q->y[i])) continue;
        fprintf(f, "%s%.1f %.1f", begun ? "L" : "M", chart_at(x, q->x[i]), chart_at(y, q->y[i]));
        begun = 1;
    }
    fputs("\"/>\n", f);
}

static inline void chart_series_marks(FILE *f, const chart_lines *c, const chart_series *q,
                                      const chart_axis *x, const chart_axis *y, double right)
{
    for (int i = 0; i < q->n; i++) {
        double px, py;
        if (!chart_visible(c, q->x[i], q->y[i])) continue;
        px = chart_at(x, q->x[i]);
        py = chart_at(y, q->y[i]);
        chart_marker(f, q->kind, px, py, q->n == 1 ? 5.0 : 3.4);
        if (q->label && q->label[i] && q->label[i][0]) {
            int before = px + 10 + chart_text_px(q->label[i], 11) > right;
            chart_label(f, before ? "v e halo" : "v halo", before ? px - 9 : px + 9, py - 6,
                        q->label[i]);
        }
    }
}

static inline void chart_svg_lines(FILE *f, const chart_lines *c, double width, double height)
{
    double left = 46, right = width - 12, high = 30, base = height - 44;
    chart_axis x = chart_axis_of(c, 0, left, right), y = chart_axis_of(c, 1, base, high);
    chart_open(f, c->id, width, height, c->title, c->description);
    chart_ticks(f, &x, 0, high, base);
    chart_ticks(f, &y, 1, left, right);
    fprintf(f, "<path class=\"x\" style=\"fill:none\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", left, high,
            base, right);
    if (c->line > 0.0)
        fprintf(f, "<line class=\"mean\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", left,
                right, chart_at(&y, c->line), chart_at(&y, c->line));
    for (int s = 0; s < c->n; s++) {
        if (c->series[s].marks != 2) chart_series_line(f, c, &c->series[s], &x, &y);
        if (c->series[s].marks) chart_series_marks(f, c, &c->series[s], &x, &y, right);
    }
    chart_label(f, "s", 0, 12, c->y_title);
    chart_label(f, "s mid", (left + right) / 2, height - 8, c->x_title);
    chart_close(f);
}

/* ---- one column of points per item: before and after --------------------------------------------------- */

typedef struct chart_points {
    const char *id, *title, *description, *x_title, *y_title;
    int n, series;
    const double *value;      /* (series, n) */
    const chart_kind *kind;   /* (series)    */
    const char *const *label; /* (n)         */
    double line;              /* dashed      */
} chart_points;

static inline void chart_svg_points(FILE *f, const chart_points *c, double width, double height)
{
    double left = 44, right = width - 8, high = 30, base = height - 40, top = 0, low = 1e300,
           slot = (right - left) / c->n, step, widest = 0, r;
    int every = 1;
    char text[32];
    for (int i = 0; i < c->n * c->series; i++) {
        if (c->value[i] > top) top = c->value[i];
        if (c->value[i] < low) low = c->value[i];
    }
    if (low > c->line) low = c->line;
    step = chart_step(top - low > 0.05 ? top - low : 0.05, 5);
    low = floor(low / step + 1e-9) * step;
    top = ceil(top / step - 1e-9) * step;
    if (!(top > low)) top = low + step;
    for (int i = 0; i < c->n; i++)
        if (chart_text_px(c->label[i], 11) > widest) widest = chart_text_px(c->label[i], 11);
    while (slot * every < widest + 4) every++;
    r = slot < 7 ? 2.2 : slot < 12 ? 3 : 4.2;
    chart_open(f, c->id, width, height, c->title, c->description);
    for (double v = low; v <= top + step / 2; v += step) {
        double y = base - (base - high) * (v - low) / (top - low);
        fprintf(f, "<line class=\"g\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", left,
                right, y, y);
        (void)snprintf(text, sizeof text, "%.4g", v);
        chart_label(f, "s e", left - 6, y + 4, text);
    }
    if (c->line >= low) {
        double y = base - (base - high) * (c->line - low) / (top - low);
        fprintf(f, "<line class=\"mean\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", left,
                right, y, y);
    }
    for (int i = 0; i < c->n; i++) {
        double x = left + slot * (i + 0.5), bottom = 1e300, upper = 0;
        for (int s = 0; s < c->series; s++) {
            double v = c->value[s * c->n + i];
            if (v < bottom) bottom = v;
            if (v > upper) upper = v;
        }
        fprintf(f, "<line class=\"x\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", x, x,
                base - (base - high) * (bottom - low) / (top - low),
                base - (base - high) * (upper - low) / (top - low));
        for (int s = 0; s < c->series; s++)
            chart_marker(f, c->kind[s], x,
                         base - (base - high) * (c->value[s * c->n + i] - low) / (top - low), r);
        if (i % every == 0) chart_label(f, "s mid", x, base + 16, c->label[i]);
    }
    fputc('\n', f);
    chart_label(f, "s", 0, 12, c->y_title);
    chart_label(f, "s mid", (left + right) / 2, height - 6, c->x_title);
    chart_close(f);
}

/* ---- heatmap ------------------------------------------------------------------------------------------ */

/* The cells of a heatmap in units of one cell, as <g id="name">, to be placed by chart_svg_heatmap any number of
 * times.  Neighbouring cells of one shade are one stroke; cells without any load carry a cross. */
static inline void chart_heat_cells(FILE *f, const char *name, int rows, int cols,
                                    const double *value)
{
    fprintf(f,
            "<svg width=\"0\" height=\"0\" style=\"position:absolute\" "
            "aria-hidden=\"true\"><defs><g id=\"%s\" class=\"hm\">",
            name);
    for (int level = 0; level < CHART_LEVELS; level++) {
        int any = 0;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols;) {
                int from = c;
                while (c < cols &&
                       chart_level(value[(size_t)r * (size_t)cols + (size_t)c]) == level)
                    c++;
                if (c == from) {
                    c++;
                    continue;
                }
                if (!any)
                    fprintf(f, "<path class=\"h%d\" transform=\"translate(0 .5)\" d=\"", level);
                any = 1;
                fprintf(f, "M%d %dh%d", from, r, c - from);
            }
        if (any) fputs("\"/>\n", f);
    }
    fputs("<path class=\"dead\" style=\"stroke-width:.12\" d=\"M0 0", f);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++)
            if (!(value[(size_t)r * (size_t)cols + (size_t)c] > 0.0))
                fprintf(f, "M%d.2 %d.2l.6 .6m0-.6l-.6 .6", c, r);
    fputs("\"/></g></defs></svg>\n", f);
}

/* Marks blocks of columns (devices) above a picture and parts them inside it. */
static inline void chart_blocks(FILE *f, int blocks, const int *start, double left, double cell,
                                double top, double height)
{
    char text[16];
    int every = 1;
    double narrowest = 1e9, widest;
    for (int b = 0; b < blocks; b++)
        if (cell * (start[b + 1] - start[b]) < narrowest)
            narrowest = cell * (start[b + 1] - start[b]);
    (void)snprintf(text, sizeof text, "%d", blocks - 1);
    widest = chart_text_px(text, 11) + 6;
    while (narrowest > 0.0 && narrowest * every < widest) every *= 2;
    for (int b = 0; b < blocks; b++) {
        double x = left + cell * start[b], w = cell * (start[b + 1] - start[b]);
        (void)snprintf(text, sizeof text, "%d", b);
        if (b > 0 && w > 6)
            fprintf(f,
                    "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" "
                    "style=\"stroke:var(--card);stroke-width:%.1f\"/>",
                    x, x, top - 8, top + height, cell < 3 ? 1.0 : 2.0);
        fprintf(f, "<path class=\"x\" style=\"fill:none\" d=\"M%.1f %.1fv-4h%.1fv4\"/>",
                x + w * 0.1, top - 3, w * 0.8);
        if (b % every == 0) chart_label(f, "s mid", x + w / 2, top - 11, text);
    }
}

typedef struct chart_heat {
    const char *id, *title, *description, *cells; /* cells: the name given to chart_heat_cells */
    int rows, cols;
    const char *const *label; /* (rows)                                     */
    const char *const *note;  /* (rows) at the right, NULL = none            */
    const char *note_title;
    const int *peak;        /* (rows) column to be framed, NULL = none      */
    const int *note_shown;  /* (rows) shown even when rows are narrow       */
    int blocks;             /* devices marked above the columns, 0 = none   */
    const int *block_start; /* (blocks+1)                                  */
    const char *x_title, *y_title;
} chart_heat;

static inline double chart_heat_height(const chart_heat *c)
{
    double row = c->rows <= 6 ? 28 : c->rows <= 16 ? 18 : c->rows <= 32 ? 12 : 8;
    return 40 + row * c->rows + 26;
}

static inline void chart_svg_heatmap(FILE *f, const chart_heat *c, double width)
{
    double height = chart_heat_height(c), left = 0, tail = 0, top = 40, row, cell, last = -100;
    for (int r = 0; r < c->rows; r++) {
        if (chart_text_px(c->label[r], 11) > left) left = chart_text_px(c->label[r], 11);
        if (c->note && chart_text_px(c->note[r], 11) > tail) tail = chart_text_px(c->note[r], 11);
    }
    left += 8;
    if (left < 26) left = 26;
    tail += c->note ? 8 : 0;
    row = (height - 66) / c->rows;
    cell = (width - left - tail) / c->cols;
    chart_open(f, c->id, width, height, c->title, c->description);
    chart_label(f, "s", 0, 12, c->y_title);
    if (c->note) chart_label(f, "s e", width, 12, c->note_title);
    fprintf(f,
            "<use href=\"#%s\" transform=\"translate(%.2f %.2f) scale(%.4f %.4f)\" "
            "shape-rendering=\"%s\"/>\n",
            c->cells, left, top, cell, row, "crispEdges");
    chart_blocks(f, c->blocks, c->block_start, left, cell, top, row * c->rows);
    for (int r = 0; r < c->rows; r++) {
        double y = top + row * r;
        int shown = row >= 11 || r - last >= 12.5 / row;
        if (row >= 11 ? 1 : (r % (int)ceil(13.0 / row) == 0))
            chart_label(f, "s e", left - 6, y + row / 2 + 4, c->label[r]);
        if (c->note && (row >= 11 || (c->note_shown && c->note_shown[r] && shown))) {
            chart_label(f, "v e", width, y + row / 2 + 4, c->note[r]);
            last = r;
        }
        if (c->peak) {
            double w = cell < 8 ? cell + 4 : cell, h = cell < 8 ? row + 2 : row - 1.5,
                   x = left + cell * (c->peak[r] + 0.5) - w / 2;
            fprintf(f,
                    "<rect class=\"peak\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"/>",
                    x, y + (row - h) / 2, w, h);
        }
    }
    chart_label(f, "s mid", left + cell * c->cols / 2, height - 8, c->x_title);
    chart_close(f);
}

/* The shades with their meaning, one row. */
static inline void chart_svg_heat_legend(FILE *f, double width)
{
    double cell = (width < 520 ? width - 4 : 460) / CHART_LEVELS;
    static const char *const from[CHART_LEVELS] = {"0",   "\xc2\xbc", "\xc2\xbd", "\xc2\xbe", "1",
                                                   "1.5", "2",        "3",        "4",        "6"};
    fprintf(f,
            "<svg class=\"c legend-heat\" viewBox=\"0 0 %.0f 32\" style=\"max-width:%.0fpx\" "
            "aria-hidden=\"true\">",
            cell * CHART_LEVELS + 4, cell * CHART_LEVELS + 4);
    for (int i = 0; i < CHART_LEVELS; i++) {
        fprintf(f,
                "<rect x=\"%.1f\" y=\"0\" width=\"%.1f\" height=\"12\" "
                "style=\"fill:var(--h%d);stroke:var(--grid);stroke-width:.5\"/>",
                2 + cell * i, cell, i);
        chart_label(f, "s mid", 2 + cell * i + (i == 0 ? 4 : 0), 27, from[i]);
    }
    fputs("</svg>\n", f);
}

/* ---- token -> expert strips ---------------------------------------------------------------------------- */

typedef struct chart_strips {
    const char *id, *title, *description, *x_title, *y_title;
    int tokens, top_k, experts;
    const int *ids; /* (tokens, top_k), best first, -1 = none */
    int first_token;
    int blocks; /* devices, 0 = none */
    const int *block_start;
    int hot_from, hot_to; /* experts of the bottleneck device, to exclusive */
} chart_strips;

static inline void chart_svg_strips(FILE *f, const chart_strips *c, double width)
{
    double left = 40, right = width - 2, top = 38, pitch = 15, row = 11,
           height = top + pitch * c->tokens + 24, cell = (right - left) / c->experts;
    double mark = cell < 3 ? 3 : cell > 10 ? cell - 2 : cell - 0.6;
    char text[32];
    chart_open(f, c->id, width, height, c->title, c->description);
    chart_label(f, "s", 0, 12, c->y_title);
    for (int t = 0; t < c->tokens; t++) {
        double y = top + pitch * t;
        (void)snprintf(text, sizeof text, "%d", c->first_token + t);
        chart_label(f, "s e", left - 6, y + row - 1.5, text);
        fprintf(f,
                "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                "style=\"fill:var(--band)\"/>",
                left, y, right - left, row);
    }
    chart_blocks(f, c->blocks, c->block_start, left, cell, top, pitch * c->tokens);
    for (int t = 0; t < c->tokens; t++)
        for (int k = 0; k < c->top_k; k++) {
            int e = c->ids[t * c->top_k + k];
            int hot = e >= c->hot_from && e < c->hot_to;
            if (e < 0) continue;
            fprintf(f,
                    "<rect class=\"k%d\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\"%s/>",
                    hot ? CHART_HOT : CHART_GOOD, left + cell * (e + 0.5) - mark / 2,
                    top + pitch * t + (k == 0 ? -1.0 : 1.5), mark, k == 0 ? row + 2 : row - 3,
                    k == 0 ? "" : " opacity=\".8\"");
        }
    fputc('\n', f);
    chart_label(f, "s mid", (left + right) / 2, height - 6, c->x_title);
    chart_close(f);
}

/* ---- legend entry as HTML: a swatch with the hatch or marker and its meaning ----------------------------- */

static inline void chart_html_key(FILE *f, chart_kind kind, int point, const char *text)
{
    fputs("<li><svg class=\"key\" width=\"22\" height=\"14\" aria-hidden=\"true\">", f);
    if (point == 2)
        fprintf(f, "<path class=\"l%d\" d=\"M0 7h22\"/>", (int)kind);
    else if (point == 1)
        chart_marker(f, kind, 11, 7, 4.4);
    else
        fprintf(f, "<rect class=\"k%d\" width=\"22\" height=\"14\"/>", (int)kind);
    fputs("</svg>", f);
    chart_xml(f, text);
    fputs("</li>", f);
}

static inline void chart_html_key_mean(FILE *f, const char *text)
{
    fputs("<li><svg class=\"key c\" width=\"22\" height=\"14\" "
          "style=\"width:22px;display:inline-block\" aria-hidden=\"true\"><line class=\"mean\" "
          "x1=\"0\" x2=\"22\" y1=\"7\" y2=\"7\"/></svg>",
          f);
    chart_xml(f, text);
    fputs("</li>", f);
}

#endif
