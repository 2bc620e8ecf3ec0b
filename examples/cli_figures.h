/* cli_figures.h - the figures of the HTML report, each with its question, answer and legend
 * SPDX-License-Identifier: MIT */
#ifndef CLI_FIGURES_H
#define CLI_FIGURES_H

#include "cli_report.h"

void cli_section_devices(const cli_report *r, FILE *f);
/* What the colours of a heat map mean, at every width. */
void cli_put_heat_legend(FILE *f);
void cli_section_heatmap(const cli_report *r, FILE *f);
void cli_section_experts(const cli_report *r, FILE *f);
void cli_section_sweep(const cli_report *r, FILE *f);
void cli_section_ep_sizes(const cli_report *r, FILE *f);
void cli_section_strips(const cli_report *r, FILE *f);
void cli_section_strategies(const cli_report *r, FILE *f);
void cli_section_layers(const cli_report *r, FILE *f);
void cli_section_shift(const cli_report *r, FILE *f);
void cli_section_traffic(const cli_report *r, FILE *f);
void cli_section_gantt(const cli_report *r, FILE *f);
void cli_section_drill(const cli_report *r, FILE *f);

#endif
