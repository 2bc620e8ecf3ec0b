/* cli_html.c - the report as one HTML page
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_figures.h"
#include "cli_page.h"

#include <math.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>

static void put_tiles(const cli_report *r, FILE *f)
{
    const moe_ep_diagnosis *d = r->chosen;
    char *a = cli_format("%.2f", d->imbalance_before), *b = cli_format("%.2f", d->imbalance_after);
    char *n = cli_format("busiest over mean device, all layers together; %.2f is the proven limit here",
                         d->imbalance_bound);
    fputs("<dl class=\"tiles\">\n", f);
    cli_page_tile(f, "Imbalance over devices", a, b, n);
    free(a), free(b), free(n);
    a = cli_format("%.0f", 100.0 / d->imbalance_before),
    b = cli_format("%.0f<small> %%</small>", 100.0 / d->imbalance_after);
    cli_page_tile(f, "Balance efficiency", a, b,
                  "share of the devices' time in which they have rows to work on");
    free(a), free(b);
    a = cli_strdup(cli_seconds(d->before_s)), b = cli_strdup(cli_seconds(d->after_s));
    n = cli_format("%.1f %% of the step saved; at best %.1f %%%s", 100.0 * d->gain,
                   d->before_s > 0.0 ? 100.0 * (1.0 - fmin(d->balanced_s, d->after_s) / d->before_s) : 0.0,
                   r->prefill_sized ? "; the size of a step is a guess, prefill-sized: for decode give --tokens" : "");
    cli_page_tile(f, "Step time, predicted", a, b, n);
    free(a), free(b), free(n);
    a = cli_format("%d", d == &r->one ? 0 : r->slots - r->E);
    n = d == &r->one ? cli_strdup("experts only change places; no memory needed")
                     : cli_format("slots beyond one per expert: %s more on each device",
                                  cli_bytes(r->copy_bytes));
    cli_page_tile(f, "Copies per layer", a, NULL, n);
    free(a), free(n);
    fputs("</dl>\n", f);
}

static void put_between(FILE *f, const char *before, const char *text, const char *after)
{
    fputs(before, f);
    cli_put_html(f, text);
    fputs(after, f);
}

static void put_steps(const cli_report *r, FILE *f)
{
    fputs("<figure><figcaption><h3>From loads to the verdict</h3><p>Each line uses only the lines "
          "above it.</p></figcaption>" CLI_PAGE_SCROLL
          "<table class=\"steps\"><thead><tr><th>step<th>result<th>what it means</thead><tbody>\n",
          f);
    for (ptrdiff_t i = 0; i < arrlen(r->line); i++) {
        put_between(f, "<tr><th>", r->line[i].name, "<td>");
        put_between(f, "", r->line[i].value, "<td>");
        cli_put_html(f, r->line[i].meaning);
        fputs("\n", f);
    }
    fputs("</tbody></table></div></figure>\n", f);
}

static void put_what_if(const cli_report *r, FILE *f)
{
    fputs("<figure><figcaption><h3>What if?</h3><p>The same loads under other conditions; the best "
          "placement with copies each time.</p></figcaption>"
          CLI_PAGE_SCROLL "<table class=\"figures\"><thead><tr><th>case<th>max/mean "
          "today<th>after<th>step today<th>after<th>saved<th>verdict</thead><tbody>\n",
          f);
    for (ptrdiff_t i = 0; i < arrlen(r->what_if); i++) {
        const cli_what_if *w = &r->what_if[i];
        fputs("<tr><th>", f);
        cli_put_html(f, w->name);
        fprintf(f, "<td>%.2f<td>%.2f<td>%s<td>%s<td>%.1f %%<td>%s\n", w->imbalance_before,
                w->imbalance_after, cli_seconds(w->before_s), cli_seconds(w->after_s),
                100.0 * w->gain, moe_ep_verdict_str(w->verdict));
    }
    fputs("</tbody></table></div>", f);
    if (arrlen(r->hint) > 0) fputs("<ul class=\"plain\" style=\"margin-top:14px\">", f);
    for (ptrdiff_t i = 0; i < arrlen(r->hint); i++) {
        fputs("<li>", f);
        cli_put_prose(f, r->hint[i]);
    }
    if (arrlen(r->hint) > 0) fputs("</ul>", f);
    fputs("</figure>\n", f);
}

static void put_next(const cli_report *r, FILE *f)
{
    fputs("<figure><ul class=\"plain\">", f);
    for (ptrdiff_t i = 0; i < arrlen(r->next); i++) {
        fputs("<li>", f);
        cli_put_prose(f, r->next[i].what);
        put_between(f, "<br><code style=\"white-space:normal\">", r->next[i].command, "</code>\n");
    }
    fputs("</ul></figure>\n", f);
}

static void put_head(const cli_report *r, FILE *f)
{
    cli_page_head head;
    head.title = "Expert load report";
    head.subject = r->trace[0].name;
    head.headline = r->headline;
    head.lead = r->verdict;
    head.state = r->recommend                                         ? "yes"
                 : r->chosen->verdict == MOE_EP_INSUFFICIENT_EVIDENCE ? "open"
                                                                      : "no";
    head.badge = r->badge;
    head.reason = r->reason;
    cli_page_begin(f, &head);
    put_tiles(r, f);
    cli_page_note(f, r->input_line);
    fputs("<nav aria-label=\"Parts of this page\"><a href=\"#proof\">Proof</a> <a href=\"#next\">What to do</a> "
          "<a href=\"#figures\">Figures</a> <a href=\"#more\">More pictures</a></nav>\n",
          f);
}

void cli_report_html(const cli_report *r, FILE *f)
{
    put_head(r, f);
    fputs("<h2 id=\"proof\">The proof in four pictures</h2>\n", f);
    cli_section_devices(r, f);
    cli_section_experts(r, f);
    cli_section_traffic(r, f);
    cli_section_gantt(r, f);
    fputs("<h2 id=\"next\">What to do</h2>\n", f);
    put_next(r, f);
    fputs("<h2 id=\"figures\">The figures</h2>\n", f);
    put_steps(r, f);
    put_what_if(r, f);
    cli_section_layers(r, f);
    cli_section_drill(r, f);
    fputs("<h2 id=\"more\">More pictures</h2>\n", f);
    cli_section_heatmap(r, f);
    fputs("<div class=\"two\">", f);
    cli_section_sweep(r, f);
    cli_section_ep_sizes(r, f);
    fputs("</div>\n", f);
    cli_section_shift(r, f);
    cli_section_strips(r, f);
    cli_section_strategies(r, f);
    fputs("<figure><figcaption><h3>What was taken for granted</h3></figcaption>", f);
    cli_page_list(f, r->setup->assumed);
    fputs("</figure>\n", f);
    cli_page_end(f, "A row is one (token, expert) assignment. max/mean is the load of the busiest "
                    "over the mean; balance efficiency is its inverse. Times are computed with a "
                    "roofline for the expert matrices and a latency-bandwidth model for dispatch "
                    "and combine, never measured.");
}
