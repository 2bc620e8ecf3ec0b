/* cli_forms.c - the report as a table for a spreadsheet and as a picture by itself
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_page.h"
#include "cli_report.h"

#include <stdlib.h>
#include <string.h>

void cli_report_csv(const cli_report *r, FILE *f)
{
    fputs(
        "layer,experts_max_over_mean,chance_p95,devices_today,devices_no_copies,devices_copies,bound,busiest_device,"
        "hottest_expert,experts_unused\n",
        f);
    for (int32_t l = 0; l < r->L; l++) {
        const cli_layer_row *row = &r->layer[l];
        fprintf(f, "%d,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%d,%d,%d\n", row->number, row->expert_imbalance, row->chance,
                row->before, row->one_copy, row->copies, row->bound, row->hot_device, row->hot_expert, row->dead);
    }
}

static double ratio_of(const double *v, int32_t n)
{
    moe_ep_error err;
    double x = moe_ep_imbalance_d(v, n, &err);
    return x < 0.0 ? 1.0 : x;
}

static double largest(const double *v, int32_t n, double top)
{
    for (int32_t i = 0; i < n; i++) top = v[i] > top ? v[i] : top;
    return top;
}

/* One panel in a picture of several. */
static void put_panel(const cli_report *r, FILE *f, const double *v, chart_kind kind, double top, double y,
                      const char *name)
{
    int32_t D = r->setup->devices;
    char *title = cli_format("%s: max/mean %.2f", name, ratio_of(v, D)), *id = cli_format("p%.0f", y);
    cli_bars b = cli_device_bars(v, D, title, kind, top);
    cli_svg_panel(f, y, title);
    cli_draw_bars(&b, f, CLI_WIDE, 952, id);
    fputs("</svg>\n", f);
    free(title);
    free(id);
}

void cli_report_svg(const cli_report *r, FILE *f)
{
    int32_t D = r->setup->devices;
    size_t at = (size_t)r->hot * (size_t)D;
    const double *now = r->today_devices + at,
                 *then = (r->chosen == &r->one ? r->one_devices : r->copies_devices) + at;
    double top = largest(then, D, largest(now, D, 0.0));
    char *today = cli_format("Today, %s", cli_today(r));
    char *caption = cli_format("Layer %d, rows per step on each device; figures are multiples of the mean",
                               r->layer[r->hot].number);
    cli_svg_begin(f, r->headline, r->verdict, caption);
    put_panel(r, f, now, CHART_HOT, top, 72, today);
    put_panel(r, f, then, r->chosen == &r->one ? CHART_GOOD : CHART_BEST, top, 316, "With the plan");
    fputs("</svg>\n", f);
    free(today);
    free(caption);
}
