/* cli_yaml.c - TensorRT-LLM's load-balancer file: num_slots, initial_global_assignments, layer_updates_per_iter
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_map.h"

#include <errno.h>
#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

static const char assignments_key[] = "initial_global_assignments";

/* ---- writing ------------------------------------------------------------------------------------------ */

typedef struct yaml_out {
    yaml_emitter_t emitter;
} yaml_out;

static void emit(yaml_out *y, yaml_event_t *event, int made)
{
    if (!made || y->emitter.error == YAML_MEMORY_ERROR) cli_die(CLI_INTERNAL, "YAML: out of memory");
    if (!yaml_emitter_emit(&y->emitter, event))
        cli_die(CLI_INTERNAL, "YAML: %s: %s", y->emitter.problem ? y->emitter.problem : "error", strerror(errno));
}

static void emit_text(yaml_out *y, const char *text)
{
    yaml_event_t e;
    yaml_char_t copy[64];
    int n = snprintf((char *)copy, sizeof copy, "%.63s", text);
    emit(y, &e, yaml_scalar_event_initialize(&e, NULL, NULL, copy, n, 1, 1, YAML_PLAIN_SCALAR_STYLE));
}

static void emit_number(yaml_out *y, int32_t v)
{
    char text[16];
    (void)snprintf(text, sizeof text, "%d", v);
    emit_text(y, text);
}

static void emit_begin(yaml_out *y, int mapping)
{
    yaml_event_t e;
    if (mapping)
        emit(y, &e, yaml_mapping_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE));
    else
        emit(y, &e, yaml_sequence_start_event_initialize(&e, NULL, NULL, 1, YAML_FLOW_SEQUENCE_STYLE));
}

static void emit_end(yaml_out *y, int mapping)
{
    yaml_event_t e;
    emit(y, &e, mapping ? yaml_mapping_end_event_initialize(&e) : yaml_sequence_end_event_initialize(&e));
}

/* TensorRT-LLM cuts the slots into as many equal pieces as there are ranks. */
static void check_even(int32_t slots, const int32_t *slot_device)
{
    int32_t devices = slot_device[slots - 1] + 1;
    int even = slots % devices == 0;
    for (int32_t s = 0; s < slots && even; s++) even = slot_device[s] == s / (slots / devices);
    if (!even)
        cli_die(CLI_USAGE, "%d slots on %d devices: TensorRT-LLM needs as many slots on every device (%d or %d)",
                slots, devices, slots / devices * devices, (slots / devices + 1) * devices);
}

void cli_map_put_yaml(FILE *f, int32_t layers, int32_t slots, const int32_t *expert, const int32_t *slot_device,
                      const int32_t *number, const unsigned char *idle)
{
    yaml_out y;
    yaml_event_t e;
    check_even(slots, slot_device);
    memset(&y, 0, sizeof y);
    if (!yaml_emitter_initialize(&y.emitter)) cli_die(CLI_INTERNAL, "out of memory");
    yaml_emitter_set_output_file(&y.emitter, f);
    yaml_emitter_set_width(&y.emitter, -1);
    emit(&y, &e, yaml_stream_start_event_initialize(&e, YAML_UTF8_ENCODING));
    emit(&y, &e, yaml_document_start_event_initialize(&e, NULL, NULL, NULL, 1));
    emit_begin(&y, 1);
    emit_text(&y, assignments_key);
    emit_begin(&y, 1);
    for (int32_t l = 0; l < layers; l++) {
        if (idle && idle[l]) continue; /* a dense layer, which TensorRT-LLM does not number here */
        emit_number(&y, number[l]);
        emit_begin(&y, 0);
        for (int32_t s = 0; s < slots; s++) emit_number(&y, expert[(size_t)l * (size_t)slots + (size_t)s]);
        emit_end(&y, 0);
    }
    emit_end(&y, 1);
    emit_text(&y, "num_slots");
    emit_number(&y, slots);
    emit_text(&y, "layer_updates_per_iter");
    emit_number(&y, 0);
    emit_end(&y, 1);
    emit(&y, &e, yaml_document_end_event_initialize(&e, 1));
    emit(&y, &e, yaml_stream_end_event_initialize(&e));
    (void)yaml_emitter_flush(&y.emitter);
    yaml_emitter_delete(&y.emitter);
}

/* ---- reading ------------------------------------------------------------------------------------------ */

enum { MOST_DEPTH = 64 }; /* what libyaml takes for deeper nesting grows with its square */

typedef struct yaml_in {
    int depth;
    yaml_parser_t parser;
    yaml_event_t event;
    const char *path;
    int64_t num_slots; /* 0 = not said               */
    int32_t *number;   /* stb_ds, layers             */
    int32_t **row;     /* stb_ds of stb_ds, experts  */
} yaml_in;

static long long line_of(const yaml_in *y)
{
    return (long long)y->event.start_mark.line + 1;
}

static yaml_event_type_t next(yaml_in *y)
{
    yaml_event_delete(&y->event);
    if (yaml_parser_parse(&y->parser, &y->event)) {
        yaml_event_type_t t = y->event.type;
        y->depth += t == YAML_MAPPING_START_EVENT || t == YAML_SEQUENCE_START_EVENT;
        y->depth -= t == YAML_MAPPING_END_EVENT || t == YAML_SEQUENCE_END_EVENT;
        if (y->depth > MOST_DEPTH) cli_die(CLI_USAGE, "%s:%lld: nested too deep", y->path, line_of(y));
        return t;
    }
    if (y->parser.error == YAML_MEMORY_ERROR) cli_die(CLI_INTERNAL, "%s: out of memory", y->path);
    cli_die(CLI_USAGE, "%s:%zu: %s", y->path, y->parser.problem_mark.line + 1,
            y->parser.problem ? y->parser.problem : "is no YAML");
}

static const char *text_of(const yaml_in *y)
{
    return (const char *)y->event.data.scalar.value;
}

/* Goes past the value that has just begun. */
static void skip_value(yaml_in *y)
{
    int depth = 0;
    for (;;) {
        yaml_event_type_t t = y->event.type;
        depth += t == YAML_MAPPING_START_EVENT || t == YAML_SEQUENCE_START_EVENT;
        depth -= t == YAML_MAPPING_END_EVENT || t == YAML_SEQUENCE_END_EVENT;
        if (depth == 0) return;
        (void)next(y);
    }
}

static int32_t integer(yaml_in *y, const char *what, int64_t least, int64_t most)
{
    int64_t v;
    if (y->event.type != YAML_SCALAR_EVENT || !cli_parse_i64(text_of(y), &v) || v < least || v > most)
        cli_die(CLI_USAGE, "%s:%lld: %s%s%s is not a whole number from %lld to %lld", y->path, line_of(y), what,
                y->event.type == YAML_SCALAR_EVENT ? " " : "",
                y->event.type == YAML_SCALAR_EVENT ? cli_keep(cli_printable(text_of(y))) : "", (long long)least,
                (long long)most);
    return (int32_t)v;
}

static void read_assignments(yaml_in *y)
{
    if (y->event.type != YAML_MAPPING_START_EVENT)
        cli_die(CLI_USAGE, "%s:%lld: %s is not a list of slots per layer", y->path, line_of(y), assignments_key);
    while (next(y) != YAML_MAPPING_END_EVENT) {
        int32_t layer = integer(y, "layer", 0, 65535), *row = NULL;
        for (ptrdiff_t i = 0; i < arrlen(y->number); i++)
            if (y->number[i] == layer)
                cli_die(CLI_USAGE, "%s:%lld: layer %d was already given", y->path, line_of(y), layer);
        if (next(y) != YAML_SEQUENCE_START_EVENT)
            cli_die(CLI_USAGE, "%s:%lld: layer %d is not a list of experts", y->path, line_of(y), layer);
        while (next(y) != YAML_SEQUENCE_END_EVENT) arrput(row, integer(y, "expert", 0, 65535));
        arrput(y->number, layer);
        arrput(y->row, row);
        if (arrlen(row) == 0 || arrlen(row) != arrlen(y->row[0]))
            cli_die(CLI_USAGE, "%s:%lld: layer %d has %td slots where the first layer has %td", y->path, line_of(y),
                    layer, arrlen(row), arrlen(y->row) > 1 ? arrlen(y->row[0]) : 1);
    }
}

static void read_top(yaml_in *y)
{
    while (next(y) != YAML_MAPPING_START_EVENT)
        if (y->event.type == YAML_STREAM_END_EVENT || y->event.type == YAML_SCALAR_EVENT)
            cli_die(CLI_USAGE, "%s: has no %s", y->path, assignments_key);
    while (next(y) != YAML_MAPPING_END_EVENT) {
        int slots, wanted;
        if (y->event.type != YAML_SCALAR_EVENT)
            cli_die(CLI_USAGE, "%s:%lld: a key is needed here", y->path, line_of(y));
        slots = strcmp(text_of(y), "num_slots") == 0;
        wanted = strcmp(text_of(y), assignments_key) == 0;
        (void)next(y);
        if (wanted)
            read_assignments(y);
        else if (slots)
            y->num_slots = integer(y, "num_slots", 1, 1 << 20);
        else
            skip_value(y);
    }
    if (arrlen(y->row) == 0) cli_die(CLI_USAGE, "%s: has no %s", y->path, assignments_key);
    if (y->num_slots > 0 && y->num_slots != arrlen(y->row[0]))
        cli_die(CLI_USAGE, "%s: num_slots is %lld, but the layers have %td slots", y->path, (long long)y->num_slots,
                arrlen(y->row[0]));
}

int32_t **cli_map_read_yaml(const char *path, int32_t **number)
{
    yaml_in y;
    FILE *f = cli_open_input(path);
    memset(&y, 0, sizeof y);
    y.path = path;
    if (!yaml_parser_initialize(&y.parser)) cli_die(CLI_INTERNAL, "out of memory");
    yaml_parser_set_input_file(&y.parser, f);
    read_top(&y);
    yaml_event_delete(&y.event);
    yaml_parser_delete(&y.parser);
    (void)fclose(f);
    *number = y.number;
    return y.row;
}
