/* cli_page.c - the frame of an HTML page: inline SVG, no script, no network, light and dark, paper and phone
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_page.h"

#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char page_css[] =
    "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%;background:var(--bg)}\n"
    "body{margin:0 auto;max-width:1128px;padding:40px 24px 64px;color:var(--ink);background:var(--bg);\n"
    "font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;\n"
    "font-variant-numeric:tabular-nums}\n"
    "h1,h2,h3{font-family:'Iowan Old Style',Charter,'Palatino Linotype',Palatino,'Source Serif 4',Georgia,\n"
    "'DejaVu Serif',serif;font-weight:600;line-height:1.2;text-wrap:balance;letter-spacing:-.01em}\n"
    "h1{font-size:clamp(27px,4.4vw,42px);margin:10px 0 14px;max-width:23em}\n"
    "h2{font-size:25px;margin:52px 0 16px}h3{font-size:20px;margin:0 0 4px}\n"
    "h4{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;font-size:14px;font-weight:500;\n"
    "margin:14px 0 8px;color:var(--soft)}h4 b{color:var(--ink);white-space:nowrap}\n"
    "p{margin:0 0 12px;max-width:74ch;text-wrap:pretty}\n"
    ".lead{font-size:19px;line-height:1.5;color:var(--ink)}\n"
    ".over{font-size:13px;letter-spacing:.04em;color:var(--soft);margin:0;overflow-wrap:anywhere}\n"
    ".badge{display:inline-block;border:2px solid currentColor;border-radius:5px;padding:3px 11px;\n"
    "font-weight:700;font-size:14px;letter-spacing:.02em}\n"
    ".say{display:flex;flex-wrap:wrap;gap:8px 14px;align-items:baseline;max-width:none}\n"
    ".say span+span{flex:1 1 420px;max-width:74ch}.yes{color:var(--best)}.no{color:var(--soft)}\n"
    ".open{color:var(--hot)}\n"
    ".tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:14px;margin:26px 0 10px}\n"
    ".tile{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px 18px 12px}\n"
    ".tile dt{font-size:13px;color:var(--soft)}\n"
    ".tile dd{margin:2px 0 0;font-size:26px;font-weight:600;letter-spacing:-.02em;white-space:nowrap}\n"
    ".tile dd i{font-style:normal;white-space:nowrap}\n"
    ".tile dd span{color:var(--faint);font-weight:400;padding:0 .18em}\n"
    ".tile dd.note{font-size:13px;font-weight:400;letter-spacing:0;white-space:normal;line-height:1.35;\n"
    "color:var(--soft);margin:3px 0 0}.tile dd small{font-size:15px;font-weight:500}\n"
    "figure{background:var(--card);border:1px solid var(--grid);border-radius:12px;margin:0 0 20px;\n"
    "padding:22px 24px 18px;break-inside:avoid}\n"
    "figcaption p{color:var(--soft);font-size:15px;margin-bottom:16px}\n"
    ".two{display:grid;grid-template-columns:1fr 1fr;gap:0 20px}\n"
    ".three{display:grid;grid-template-columns:repeat(3,1fr);gap:0 24px}.w,.m,.n{display:none}\n"
    "ul.legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:12px 0 0;padding:0;list-style:none;\n"
    "font-size:13px;color:var(--soft)}ul.legend li{display:flex;align-items:center;gap:7px}\n"
    ".key{flex:none;border-radius:2px;vertical-align:-2px;margin-right:6px}ul.legend .key{margin:0}\n"
    ".heat-legend{display:flex;gap:12px;align-items:flex-start;margin-top:10px;font-size:13px;\n"
    "color:var(--soft)}.heat-legend div{flex:1}.heat-legend span{white-space:nowrap;line-height:13px}\n"
    ".scroll{overflow-x:auto;margin:14px -6px 0}\n"
    "table{border-collapse:collapse;font-size:14px;min-width:100%}\n"
    "th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--grid);vertical-align:bottom}\n"
    "thead th{font-weight:500;color:var(--soft);font-size:13px;line-height:1.3;max-width:150px}\n"
    "tbody th{font-weight:600}th:first-child{text-align:left}\n"
    "tr.pick td,tr.pick th{color:var(--best);font-weight:600}\n"
    "nav{display:flex;flex-wrap:wrap;gap:6px 18px;margin:0 0 4px;font-size:15px}a{color:var(--good)}\n"
    "a:focus-visible,.scroll:focus-visible{outline:2px solid var(--good);outline-offset:3px}\n"
    ".drill{columns:3;column-gap:28px}.drill details{break-inside:avoid;border-bottom:1px solid var(--grid)}\n"
    ".drill details[open]{column-span:all;padding-bottom:14px}.drill summary{margin:0;padding:7px 0}\n"
    ".drill summary b{color:var(--ink)}.pair{display:grid;grid-template-columns:1fr 1fr;gap:0 24px}\n"
    ".pair p{font-size:13px;color:var(--soft);margin:4px 0}\n"
    "svg.mini{display:block;width:100%;height:84px}svg.mini .line{stroke:var(--ink);stroke-width:1.5;\n"
    "stroke-dasharray:5 4;vector-effect:non-scaling-stroke;fill:none}\n"
    "summary{cursor:pointer;font-size:14px;color:var(--soft);margin-top:12px}\n"
    "summary:focus-visible{outline:2px solid var(--good);outline-offset:3px}\n"
    ".steps td,.steps th{text-align:left;vertical-align:top}.steps td:last-child{color:var(--soft)}\n"
    ".steps tbody th{white-space:nowrap}.steps td:nth-child(2){font-weight:600;min-width:190px}\n"
    ".figures td{white-space:nowrap}.figures tbody th{min-width:110px}\n"
    ".below{font-size:14px;color:var(--soft);margin:10px 0 0}\n"
    "ul.plain{padding-left:20px;margin:0;max-width:80ch}ul.plain li{margin:5px 0}\n"
    "footer{font-size:13px;color:var(--soft);margin-top:40px}footer p{max-width:90ch}\n"
    "code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;\n"
    "background:var(--band);padding:1px 5px;border-radius:4px;white-space:nowrap}\n"
    "@media(min-width:940px){\n"
    ".w{display:block}}\n"
    "@media(min-width:620px) and (max-width:939.98px){\n"
    ".m{display:block}.two,.three{grid-template-columns:1fr}.tiles{grid-template-columns:1fr 1fr}}\n"
    "@media(max-width:619.98px){\n"
    ".n{display:block}body{padding:22px 12px 48px}figure{padding:16px 14px 14px;border-radius:10px}\n"
    ".two,.three,.pair{grid-template-columns:1fr}.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}\n"
    ".drill{columns:1}.figures td{white-space:normal}.figures tbody th{min-width:70px}"
    ".tile{padding:11px 13px}.tile dd:not(.note){font-size:18px;white-space:normal}.lead{font-size:17px}\n"
    "h2{font-size:22px;margin-top:38px}.heat-legend{display:block}th,td{padding:6px 7px}\n"
    ".steps thead{display:none}\n"
    ".steps tbody,.steps tr,.steps th,.steps td{display:block;border:0;padding:1px 7px}\n"
    ".steps tr{border-bottom:1px solid var(--grid);padding:7px 0}\n"
    ".steps tbody th{color:var(--soft);font-weight:500;font-size:13px}}\n"
    "@media print{.scroll{overflow:visible}table{font-size:9.5pt}th,td{padding:4px 5px}\n"
    "body{max-width:none;padding:0;font-size:11pt}.w,.n{display:none!important}.m{display:block!important}\n"
    ".two,.three{grid-template-columns:1fr}figure{border-color:#bbb}\n"
    "nav{display:none}details::details-content{content-visibility:visible;height:auto}\n"
    "*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}\n";
/* clang-format on */

static void put_style(FILE *f)
{
    fputs("<style>\n", f);
    chart_css(f);
    fputs(page_css, f);
    fputs("</style>\n", f);
}

/* A sentence; options in it are set as code, so that no line breaks inside one. */
void cli_put_prose(FILE *f, const char *text)
{
    for (const char *at; (at = strstr(text, "--")) != NULL;) {
        size_t option = 2 + strspn(at + 2, "abcdefghijklmnopqrstuvwxyz-");
        char *before = cli_format("%.*s", (int)(at - text), text), *name = cli_format("%.*s", (int)option, at);
        cli_put_html(f, before);
        fputs("<code>", f);
        cli_put_html(f, name);
        fputs("</code>", f);
        free(before);
        free(name);
        text = at + option;
    }
    cli_put_html(f, text);
}

void cli_page_tile(FILE *f, const char *name, const char *before, const char *after,
                   const char *note)
{
    fprintf(f, "<div class=\"tile\"><dt>%s</dt><dd><i>%s</i>", name, before);
    if (after) fprintf(f, "<wbr><span>\xe2\x86\x92</span><i>%s</i>", after);
    fputs("</dd><dd class=\"note\">", f);
    cli_put_html(f, note);
    fputs("</dd></div>\n", f);
}

void cli_page_begin(FILE *f, const cli_page_head *h)
{
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta "
          "name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
          "<meta name=\"color-scheme\" content=\"light dark\"><title>",
          f);
    cli_put_html(f, h->title);
    fputs(": ", f);
    cli_put_html(f, h->subject);
    fputs("</title>\n", f);
    put_style(f);
    fputs("</head><body>\n", f);
    chart_defs(f);
    fputs("<header><p class=\"over\">", f);
    cli_put_html(f, h->title);
    fputs("</p><h1>", f);
    cli_put_html(f, h->headline);
    fputs("</h1>\n", f);
    if (*h->lead) {
        fputs("<p class=\"lead\">", f);
        cli_put_html(f, h->lead);
        fputs("</p>\n", f);
    }
    fprintf(f, "<p class=\"say\"><span class=\"badge %s\">%s</span><span>", h->state, h->badge);
    cli_put_html(f, h->reason);
    fputs("</span></p></header>\n", f);
}

void cli_page_note(FILE *f, const char *text)
{
    fputs("<p class=\"over\" style=\"max-width:none;margin-bottom:18px\">", f);
    cli_put_html(f, text);
    fputs("</p>\n<main>", f);
}

void cli_page_end(FILE *f, const char *explanation)
{
    fputs("</main>\n<footer><p>Made by moe-ep ", f);
    cli_put_html(f, moe_ep_version());
    fputs(". ", f);
    cli_put_html(f, explanation);
    fputs("</p></footer></body></html>\n", f);
}

void cli_page_list(FILE *f, const char *text)
{
    char *copy = cli_strdup(text), *save = NULL;
    fputs("<ul class=\"plain\">", f);
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        fputs("<li>", f);
        cli_put_prose(f, line);
    }
    fputs("</ul>", f);
    free(copy);
}

/* ---- figures ------------------------------------------------------------------------------------------ */

void cli_page_figure(FILE *f, const char *question, const char *answer)
{
    fputs("<figure><figcaption><h3>", f);
    cli_put_html(f, question);
    fputs("</h3>", f);
    if (*answer) {
        fputs("<p>", f);
        cli_put_html(f, answer);
        fputs("</p>", f);
    }
    fputs("</figcaption>\n", f);
}

void cli_page_figure_end(FILE *f)
{
    fputs("</figure>\n", f);
}

void cli_legend(FILE *f, const cli_key *key)
{
    fputs("<ul class=\"legend\">", f);
    for (; key->kind != CLI_KEY_END; key++) {
        if (!key->text) continue;
        if (key->kind == CLI_KEY_MEAN)
            chart_html_key_mean(f, key->text);
        else if (key->kind == CLI_KEY_BAND)
            fprintf(f, "<li><svg class=\"key\" width=\"22\" height=\"14\" aria-hidden=\"true\"><rect width=\"22\" "
                       "height=\"14\" style=\"fill:var(--band)\"/></svg>%s</li>", key->text);
        else
            chart_html_key(f, (chart_kind)key->kind, key->style, key->text);
    }
    fputs("</ul>", f);
}

const char *const cli_width_name[CLI_WIDTHS] = {"w", "m", "n"};
const double cli_full_width[CLI_WIDTHS] = {1032, 640, 334};
const double cli_half_width[CLI_WIDTHS] = {486, 640, 334};
const double cli_third_width[CLI_WIDTHS] = {328, 640, 334};

void cli_page_draw(const void *data, FILE *f, cli_draw draw, const char *id, const double *width)
{
    for (int w = 0; w < CLI_WIDTHS; w++) {
        char *unique = cli_format("%s-%s", id, cli_width_name[w]);
        fprintf(f, "<div class=\"%s\">", cli_width_name[w]);
        draw(data, f, (cli_width)w, width[w], unique);
        fputs("</div>\n", f);
        free(unique);
    }
}

cli_marks cli_marks_new(int n)
{
    size_t count = (size_t)n;
    return (cli_marks){n, cli_alloc(count, sizeof(char *)), cli_alloc(count, sizeof(char *)),
                       cli_alloc(count, sizeof(char *)), cli_alloc(count, sizeof(chart_kind))};
}

void cli_free_labels(const char **label, int n)
{
    for (int i = 0; i < n; i++) free((void *)(uintptr_t)label[i]);
    free(label);
}

void cli_marks_free(cli_marks *m)
{
    cli_free_labels(m->label, m->n);
    cli_free_labels(m->value, m->n);
    cli_free_labels(m->tip, m->n);
    free(m->kind);
}

cli_bars cli_device_bars(const double *v, int n, const char *title, chart_kind kind, double top)
{
    int busiest = 0;
    for (int i = 1; i < n; i++) busiest = v[i] > v[busiest] ? i : busiest;
    return (cli_bars){n, v, title, "device", "rows", kind, kind == CHART_HOT ? busiest : -1, 1, top};
}

void cli_draw_bars(const void *data, FILE *f, cli_width w, double width, const char *id)
{
    const cli_bars *b = data;
    double total = 0.0, slot = (width - 48) / b->n;
    cli_marks m = cli_marks_new(b->n);
    chart_bars c;
    (void)w;
    for (int i = 0; i < b->n; i++) total += b->value[i];
    for (int i = 0; i < b->n; i++) {
        double v = b->over_mean ? (total > 0.0 ? b->value[i] * b->n / total : 1.0) : b->value[i];
        int shown = (slot >= (b->over_mean ? 24 : 16) && b->n <= MOST_LABELLED) || i == b->marked;
        m.label[i] = cli_format("%d", i);
        m.value[i] = shown ? cli_format(b->over_mean ? "%.2f" : "%.0f", v) : cli_strdup("");
        m.tip[i] = cli_format("%s %d: %s", b->x_title, i, cli_count(b->value[i]));
        m.kind[i] = b->marked < 0 || i == b->marked ? b->kind : CHART_PLAIN;
    }
    c = (chart_bars){.id = id, .title = b->title, .description = b->title, .y_title = b->y_title,
                     .x_title = b->x_title, .n = b->n, .value = b->value, .label = m.label, .value_label = m.value,
                     .tip = m.tip, .kind = m.kind, .line = total / b->n, .line_label = "mean", .top = b->top};
    chart_svg_bars(f, &c, width, 190);
    cli_marks_free(&m);
}

/* ---- a picture by itself --------------------------------------------------------------------------------- */

void cli_svg_begin(FILE *f, const char *headline, const char *description, const char *caption)
{
    fputs("<svg class=\"c\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 560\" width=\"1000\" "
          "height=\"560\" role=\"img\" aria-labelledby=\"t d\"><title id=\"t\">", f);
    chart_xml(f, headline);
    fputs("</title><desc id=\"d\">", f);
    chart_xml(f, description);
    fputs("</desc><style>", f);
    chart_css(f);
    fputs("</style><rect width=\"1000\" height=\"560\" style=\"fill:var(--card)\"/>\n", f);
    chart_defs(f);
    fprintf(f, "<text x=\"24\" y=\"34\" style=\"font-size:%dpx;font-weight:600;fill:var(--ink)\">",
            strlen(headline) > 92 ? 15 : 19);
    chart_xml(f, headline);
    fputs("</text>\n", f);
    chart_label(f, "s", 24, 56, caption);
}

void cli_svg_panel(FILE *f, double y, const char *title)
{
    chart_label(f, "b", 24, y + 16, title);
    fprintf(f, "<svg x=\"24\" y=\"%.0f\" width=\"952\" height=\"190\">", y + 26);
}
