/* cli_inspect_out.c - the answer of moe-ep inspect as text and JSON
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_inspect.h"

#include "cli_answer.h"

#include <stdlib.h>
#include <string.h>

/* Numbers by their names in JSON and in the text, in three tables. */
enum { PARAMS, MEMORY, SIDES, FIGURES = 26 };
typedef struct figure {
    int table;
    const char *key, *label;
    double value, other; /* other: bytes of so many parameters; under tensor parallelism */
} figure;

static void list_figures(const cli_inspect *x, figure *list)
{
    const moe_ep_params_result *p = &x->params;
    const moe_ep_memory_result *r = &x->memory;
    const moe_ep_ep_vs_tp_result *a = &x->against;
    double w = x->setup.model.weight_bytes, o = x->setup.model.other_weight_bytes, expert = (double)p->expert;
    double shared = x->setup.model.shared_weight_bytes > 0.0 ? x->setup.model.shared_weight_bytes : w;
    double embedding = x->setup.model.embedding_weight_bytes;
    double slot = expert * x->setup.model.num_moe_layers, rest = (double)(p->router + p->dense + p->attention);
    double token = x->setup.model.kv_bytes * x->kv_on_device * x->setup.model.num_layers +
                   x->setup.model.index_bytes * x->setup.model.window_layers;
    const figure all[FIGURES] = {
        {PARAMS, "expert", "one expert", expert, expert * w},
        {PARAMS, "layer", "experts of a layer", (double)p->layer, (double)p->layer * w},
        {PARAMS, "routed", "routed experts", (double)p->routed, (double)p->routed * w},
        {PARAMS, "shared", "shared experts", (double)p->shared, (double)p->shared * shared},
        {PARAMS, "router", "router", (double)p->router, (double)p->router * o},
        {PARAMS, "dense", "dense layers", (double)p->dense, (double)p->dense * o},
        {PARAMS, "attention", "attention", (double)p->attention, (double)p->attention * o},
        {PARAMS, "embedding", "embeddings", (double)p->embedding, (double)p->embedding * embedding},
        {PARAMS, "total", "total", (double)p->total,
         (double)p->routed * w + (double)p->shared * shared + rest * o + (double)p->embedding * embedding},
        {PARAMS, "redundant_slot", "one redundant slot", slot, slot * w},
        {PARAMS, "active", "active for a token", (double)p->active, -1.0},
        {MEMORY, "routed_bytes", "experts", r->routed_bytes, 0.0},
        {MEMORY, "redundant_bytes", "  redundant of them", r->redundant_bytes, 0.0},
        {MEMORY, "shared_bytes", "shared experts", r->shared_bytes, 0.0},
        {MEMORY, "router_bytes", "router", r->router_bytes, 0.0},
        {MEMORY, "other_bytes", "other weights", r->other_bytes, 0.0},
        {MEMORY, "buffer_bytes", "buffers", r->buffer_bytes, 0.0},
        {MEMORY, "reserve_bytes", "reserve", x->reserve_bytes, 0.0},
        {MEMORY, "total_bytes", "total", r->total_bytes, 0.0},
        {MEMORY, "kv_room_bytes", "left for cache", r->kv_room_bytes, 0.0},
        {MEMORY, "kv_token_bytes", "cache of a token", token, 0.0},
        {SIDES, "weight_bytes", "weights on a device", a->ep_weight_bytes, a->tp_weight_bytes},
        {SIDES, "sent_bytes", "sent by a device", a->ep_sent_bytes, a->tp_sent_bytes},
        {SIDES, "compute_s", "experts compute", a->ep_compute_s, a->tp_compute_s},
        {SIDES, "comm_s", "communication", a->ep_comm_s, a->tp_comm_s},
        {SIDES, "total_s", "together", a->ep_s, a->tp_s}};
    memcpy(list, all, sizeof all);
}

static const char *severity(const moe_ep_reason *r)
{
    return r->severity == MOE_EP_WRONG ? "wrong" : r->severity == MOE_EP_WARNING ? "warning" : "note";
}

/* A heading, which it takes over, and the table below it. */
static void put_table(const cli_inspect *x, FILE *f, const chart_text *t, char *title, int table)
{
    figure list[FIGURES];
    list_figures(x, list);
    cli_put_title(f, t, title);
    for (const figure *g = list; g < list + FIGURES; g++) {
        const char *(*text)(double v) = table == SIDES && !strstr(g->key, "bytes") ? cli_seconds : cli_bytes;
        if (g->table != table || !(g->value > 0.0)) continue;
        fprintf(f, "  %-19s ", g->label);
        if (table == PARAMS) fprintf(f, "%19s", cli_count(g->value));
        else fprintf(f, "%10s", text(g->value));
        if (table != MEMORY && g->other >= 0.0) fprintf(f, " %10s", text(g->other));
        fputc('\n', f);
    }
    free(title);
}

void cli_inspect_text(const void *data, FILE *f, const chart_text *t)
{
    const cli_inspect *x = data;
    const moe_ep_model *m = &x->setup.model;
    const moe_ep_memory_result *r = &x->memory;
    cli_put_headline(f, t, x->headline, x->why);
    put_table(x, f, t, cli_format("Parameters: %d of %d layers with %d experts of %d x %d x %d, top-%d",
                                  m->num_moe_layers, m->num_layers, m->num_experts, m->ungated ? 2 : 3, m->hidden,
                                  m->inter, m->top_k), PARAMS);
    put_table(x, f, t, cli_format("Memory of the fullest device, slots: %d", r->slots), MEMORY);
    if (r->fits && m->kv_elems > 0)
        fprintf(f, "  that is a cache of %s tokens, %s for each of %s sequences\n", cli_count((double)r->kv_tokens),
                cli_count((double)(r->kv_tokens / x->sequences)), cli_count((double)x->sequences));
    put_table(x, f, t, cli_format("Configuration: EP %d%s, TP %d, DP %d, %d slots for %d experts: %s", x->ep,
                                  x->cut > 1 ? cli_keep(cli_format(" x %d", x->cut)) : "", x->tp, x->dp,
                                  x->setup.slots, m->num_experts, x->legal ? "legal" : "not legal"), FIGURES);
    for (const moe_ep_reason *w = x->reason; w < x->reason + x->reasons; w++) {
        fprintf(f, "  %s:", severity(w));
        cli_put_wrapped(f, cli_keep(cli_format("%s (%s, %s)", w->text, cli_count(w->have), cli_count(w->need))),
                        t->width, 4, 3 + cli_columns(severity(w)));
    }
    if (x->not_compared) put_table(x, f, t, cli_format("EP and TP are not compared: %s", x->not_compared), FIGURES);
    else
        put_table(x, f, t, cli_format("Experts of one layer%12s%11s",
                                      x->cut > 1 ? cli_keep(cli_format("EP %d", x->group)) : "EP",
                                      x->cut == 1  ? "TP"
                                      : x->ep == 1 ? cli_keep(cli_format("TP %d", x->group))
                                                   : cli_keep(cli_format("EP %d x %d", x->ep, x->cut))), SIDES);
    cli_put_assumed(f, t, x->setup.assumed);
}

void cli_inspect_json(const void *data, FILE *f)
{
    static const char *const name[] = {"parameters", "memory", "ep"}, *const other[] = {"bytes", NULL, "tp"};
    const cli_inspect *x = data;
    const cli_setup *s = &x->setup;
    json_t *root = json_object(), *against = json_object(), *reasons = json_array();
    figure list[FIGURES];
    list_figures(x, list);
    cli_json_words(root, "moe_ep", moe_ep_version(), "headline", x->headline, "reason", x->why, "model", s->model.name,
                   "machine", s->machine.name, "assumed", s->assumed, NULL);
    cli_json_counts(root, "devices", (int64_t)s->devices, "nodes", (int64_t)s->nodes, "ep", (int64_t)x->ep, "expert_tp",
                    (int64_t)x->cut, "tp", (int64_t)x->tp, "dp", (int64_t)x->dp, "slots", (int64_t)s->slots,
                    "redundant", (int64_t)x->redundant, "slots_per_device", (int64_t)x->memory.slots,
                    "tokens_per_device", x->tokens, "smallest_ep", (int64_t)x->smallest_ep, "devices_needed",
                    (int64_t)x->needed, "devices_needed_ep", (int64_t)x->needed_ep, "kv_heads",
                    (int64_t)x->kv_heads, "kv_tokens", x->memory.kv_tokens, "sequences", x->sequences,
                    "kv_tokens_sequence", x->memory.kv_tokens / x->sequences, NULL);
    cli_json_numbers(root, "memory_bytes", x->memory_bytes, NULL);
    if (x->smallest_ep == 0) json_object_set_new(root, "smallest_ep", json_null());
    if (x->needed == 0) json_object_set_new(root, "devices_needed", json_null());
    if (x->needed == 0) json_object_set_new(root, "devices_needed_ep", json_null());
    json_object_set_new(root, "legal", json_boolean(x->legal));
    json_object_set_new(root, "fits", json_boolean(x->memory.fits));
    for (const moe_ep_reason *w = x->reason; w < x->reason + x->reasons; w++)
        json_array_append_new(reasons, json_pack("{s:s, s:s, s:I, s:I}", "severity", severity(w), "text", w->text,
                                                 "have", (json_int_t)w->have, "need", (json_int_t)w->need));
    json_object_set_new(root, "reasons", reasons);
    for (int table = PARAMS; table <= SIDES; table++) {
        json_t *a = json_object(), *b = json_object();
        for (const figure *g = list; g < list + FIGURES; g++) {
            if (g->table != table) continue;
            if (table == PARAMS) cli_json_counts(a, g->key, (int64_t)g->value, NULL);
            else cli_json_numbers(a, g->key, g->value, NULL);
            if (g->other >= 0.0) cli_json_numbers(b, g->key, g->other, NULL);
        }
        json_object_set_new(table == SIDES ? against : root, name[table], a);
        if (other[table]) json_object_set(table == SIDES ? against : root, other[table], b);
        json_decref(b);
    }
    if (x->not_compared) json_object_clear(against);
    if (x->not_compared) cli_json_words(against, "not_compared", x->not_compared, NULL);
    else cli_json_numbers(against, "speedup", x->against.speedup, NULL);
    if (!x->not_compared) /* of which side there are: EP over so many, and so many groups of cut experts */
        cli_json_counts(against, "devices", (int64_t)x->group, "cut_ep", (int64_t)(x->cut > 1 ? x->ep : 1), NULL);
    json_object_set_new(root, "ep_vs_tp", against);
    cli_json_write(root, f);
}
