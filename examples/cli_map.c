/* cli_map.c - placements as files: SGLang's physical_to_logical_map, TensorRT-LLM's YAML, CSV
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli_map.h"
#include "cli_stream.h"

#include <stb_ds.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { MOST_SLOTS = 1 << 20, MOST_LAYERS = 65536, MOST_EXPERTS = 65536, MOST_PARTS = 12 };

static const char map_key[] = "physical_to_logical_map";

int cli_has_suffix(const char *name, const char *tail)
{
    size_t n = strlen(name), m = strlen(tail);
    return n > m && strcasecmp(name + n - m, tail) == 0;
}

/* ---- which kind of file ------------------------------------------------------------------------------- */

static int is_json_map(const char *path)
{
    cli_stream *s = cli_alloc(1, sizeof *s);
    FILE *f = cli_open_input(path);
    int yes;
    cli_stream_open(s, path, f, -1);
    yes = cli_stream_find(s, map_key) && !cli_stream_find(s, "logical_count");
    cli_stream_close(s);
    free(s);
    (void)fclose(f);
    return yes;
}

/* A CSV map has columns slot and expert in its first line. */
static int is_csv_map(const char *path)
{
    char *line = NULL;
    size_t room = 0;
    int yes = 0;
    FILE *f = cli_open_input(path);
    if (cli_getline(&line, &room, f, path) > 0) yes = strstr(line, "slot") && strstr(line, "expert");
    free(line);
    (void)fclose(f);
    return yes;
}

static int is_yaml(const char *path)
{
    return cli_has_suffix(path, ".yaml") || cli_has_suffix(path, ".yml");
}

int cli_map_is(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) return 0;
    if (cli_has_suffix(path, ".json")) return is_json_map(path);
    if (is_yaml(path)) return 1;
    return cli_has_suffix(path, ".csv") && is_csv_map(path);
}

static cli_map new_map(const char *path, int64_t layers, int64_t slots)
{
    cli_map m;
    memset(&m, 0, sizeof m);
    if (layers < 1 || slots < 1) cli_die(CLI_USAGE, "%s: holds no slots", path);
    if (layers > MOST_LAYERS || slots > MOST_SLOTS)
        cli_die(CLI_USAGE, "%s: %s layers of %s slots are too many", path,
                cli_count((double)layers), cli_count((double)slots));
    m.path = path;
    m.layers = (int32_t)layers;
    m.slots = (int32_t)slots;
    m.expert = cli_alloc((size_t)layers * (size_t)slots, sizeof *m.expert);
    m.number = cli_alloc((size_t)layers, sizeof *m.number);
    for (int32_t l = 0; l < m.layers; l++) m.number[l] = l;
    return m;
}

static int32_t expert_id(int64_t v, const char *where)
{
    if (v < -1 || v >= MOST_EXPERTS)
        cli_die(CLI_USAGE, "%s: %lld is no expert id (0.. or -1 for an empty slot)", where,
                (long long)v);
    return (int32_t)v;
}

/* ---- JSON --------------------------------------------------------------------------------------------- */

/* One row of the list behind the others, which are as long. */
static void add_map_row(cli_stream *s, cli_map *m, int32_t **slots)
{
    json_t *row = cli_stream_value(s, 0), *item;
    size_t i;
    if (m->layers == MOST_LAYERS || json_array_size(row) > MOST_SLOTS)
        cli_die(CLI_USAGE, "%s: more than %d layers or %d slots", s->path, MOST_LAYERS, MOST_SLOTS);
    if (m->layers == 0) m->slots = (int32_t)json_array_size(row);
    if (!json_is_array(row) || json_array_size(row) != (size_t)m->slots)
        cli_die(CLI_USAGE, "%s: %s[%d] is not a list of %d slots as the first is", s->path, map_key, m->layers,
                m->slots);
    json_array_foreach(row, i, item)
    {
        char *where = cli_format("%s: %s[%d][%zu]", s->path, map_key, m->layers, i);
        if (!json_is_integer(item)) cli_die(CLI_USAGE, "%s is not a whole number: %s", where, cli_json_shown(item));
        arrput(*slots, expert_id(json_integer_value(item), where));
        free(where);
    }
    json_decref(row);
    m->layers++;
}

static cli_map read_json_map(const char *path)
{
    cli_stream *s = cli_alloc(1, sizeof *s);
    FILE *f = cli_open_input(path);
    int32_t *slots = NULL;
    int first = 1;
    cli_map read, m;
    memset(&read, 0, sizeof read);
    cli_stream_open(s, path, f, -1);
    if (!cli_stream_find(s, map_key) || cli_stream_peek(s) != '[')
        cli_die(CLI_USAGE, "%s: has no \"%s\": [layer][slot]", path, map_key);
    cli_stream_take(s, '[');
    while (cli_stream_more(s, ']', &first)) {
        if (read.layers == 0 && cli_stream_peek(s) != '[')
            cli_die(CLI_USAGE, "%s: has no \"%s\": [layer][slot]", path, map_key);
        add_map_row(s, &read, &slots);
    }
    cli_stream_rest(s, map_key);
    cli_stream_close(s);
    free(s);
    (void)fclose(f);
    m = new_map(path, read.layers, read.slots);
    memcpy(m.expert, slots, (size_t)m.layers * (size_t)m.slots * sizeof *m.expert);
    arrfree(slots);
    return m;
}

/* ---- CSV ---------------------------------------------------------------------------------------------- */

typedef struct slot_line {
    int64_t layer, device, slot, expert, line;
} slot_line;

enum { LAYER, DEVICE, SLOT, EXPERT, COLUMNS };
static const char *const column_name[COLUMNS] = {"layer", "device", "slot", "expert"};

/* Splits a line at commas; blanks around a field do not count. */
static char **split(char *line)
{
    char **fields = NULL;
    for (char *at = line, *rest; at; at = rest) {
        char *end;
        rest = strchr(at, ',');
        if (rest) *rest++ = '\0';
        end = at + strlen(at);
        at += strspn(at, " \t\r\n\"");
        while (end > at && strchr(" \t\r\n\"", end[-1])) *--end = '\0';
        arrput(fields, at);
    }
    return fields;
}

/* Where the four columns are. */
static void find_columns(const char *path, int64_t line, char **fields, ptrdiff_t *at)
{
    for (int c = 0; c < COLUMNS; c++) {
        at[c] = -1;
        for (ptrdiff_t i = 0; i < arrlen(fields); i++)
            if (strcasecmp(fields[i], column_name[c]) == 0) at[c] = i;
        if (at[c] < 0)
            cli_die(CLI_USAGE,
                    "%s:%lld: the header has no column \"%s\"; layer,device,slot,expert "
                    "are needed",
                    path, (long long)line, column_name[c]);
    }
}

static slot_line read_slot_line(const char *path, int64_t line, char **fields, const ptrdiff_t *at)
{
    int64_t v[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) {
        const char *text = at[c] < arrlen(fields) ? fields[at[c]] : "";
        int64_t most = c == SLOT ? MOST_SLOTS - 1 : MOST_LAYERS - 1;
        if (!cli_parse_i64(text, &v[c]) || v[c] < (c == EXPERT ? -1 : 0) || v[c] > most)
            cli_die(CLI_USAGE, "%s:%lld: %s \"%.40s\" is not a whole number from %d to %lld", path, (long long)line,
                    column_name[c], text, c == EXPERT ? -1 : 0, (long long)most);
    }
    return (slot_line){v[LAYER], v[DEVICE], v[SLOT], v[EXPERT], line};
}

static slot_line *read_slot_lines(const char *path)
{
    slot_line *list = NULL;
    char *text = NULL;
    size_t room = 0;
    ptrdiff_t at[COLUMNS];
    FILE *f = cli_open_input(path);
    ssize_t n;
    int header = 0;
    for (int64_t line = 1; (n = cli_getline(&text, &room, f, path)) >= 0; line++) {
        char **fields, *from;
        if (strlen(text) != (size_t)n)
            cli_die(CLI_USAGE, "%s:%lld: holds a zero byte: not a text file", path, (long long)line);
        from = line == 1 && strncmp(text, "\xef\xbb\xbf", 3) == 0 ? text + 3 : text;
        if (from[strspn(from, " \t\r\n")] == '\0') continue;
        fields = split(from);
        if (!header)
            find_columns(path, line, fields, at);
        else
            arrput(list, read_slot_line(path, line, fields, at));
        header = 1;
        arrfree(fields);
    }
    (void)fclose(f);
    free(text);
    if (!list) cli_die(CLI_USAGE, "%s: holds no slots", path);
    return list;
}

/* Devices in the order of the slots, each with a block of neighbours. */
static void set_devices(cli_map *m)
{
    for (int32_t s = 1; s < m->slots; s++)
        if (m->slot_device[s] < m->slot_device[s - 1])
            cli_die(CLI_USAGE,
                    "%s: slot %d is on device %d, slot %d on device %d: slots are numbered over "
                    "all devices, device after device",
                    m->path, s - 1, m->slot_device[s - 1], s, m->slot_device[s]);
    m->devices = m->slot_device[m->slots - 1] + 1; /* the largest, now that they rise */
    m->device_slots = cli_alloc((size_t)m->devices, sizeof *m->device_slots);
    for (int32_t s = 0; s < m->slots; s++) m->device_slots[m->slot_device[s]]++;
    for (int32_t d = 0; d < m->devices; d++)
        if (m->device_slots[d] == 0) cli_die(CLI_USAGE, "%s: device %d has no slot", m->path, d);
}

static void add_layer(int64_t **layers, int64_t layer)
{
    ptrdiff_t at = arrlen(*layers);
    while (at > 0 && (*layers)[at - 1] > layer) at--;
    if (at > 0 && (*layers)[at - 1] == layer) return;
    arrput(*layers, layer);
    for (ptrdiff_t i = arrlen(*layers) - 1; i > at; i--) (*layers)[i] = (*layers)[i - 1];
    (*layers)[at] = layer;
}

static cli_map read_csv_map(const char *path)
{
    slot_line *list = read_slot_lines(path);
    int64_t *layers = NULL, *line_of, slots = 0;
    cli_map m;
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        add_layer(&layers, list[i].layer);
        if (list[i].slot >= slots) slots = list[i].slot + 1;
    }
    m = new_map(path, arrlen(layers), slots);
    m.slot_device = cli_alloc((size_t)slots, sizeof *m.slot_device);
    line_of = cli_keep_block(cli_alloc((size_t)(arrlen(layers) * slots), sizeof *line_of));
    for (int32_t s = 0; s < m.slots; s++) m.slot_device[s] = -1;
    for (ptrdiff_t i = 0; i < arrlen(list); i++) {
        const slot_line *q = &list[i];
        int64_t at = cli_rank(layers, arrlen(layers), q->layer) * slots + q->slot;
        if (line_of[at] != 0)
            cli_die(CLI_USAGE, "%s:%lld: slot %lld of layer %lld was already given on line %lld",
                    path, (long long)q->line, (long long)q->slot, (long long)q->layer,
                    (long long)line_of[at]);
        if (m.slot_device[q->slot] >= 0 && m.slot_device[q->slot] != q->device)
            cli_die(CLI_USAGE, "%s:%lld: slot %lld is on device %lld here and on %d elsewhere",
                    path, (long long)q->line, (long long)q->slot, (long long)q->device,
                    m.slot_device[q->slot]);
        line_of[at] = q->line;
        m.slot_device[q->slot] = (int32_t)q->device;
        m.expert[at] = (int32_t)q->expert;
    }
    for (int64_t i = 0; i < arrlen(layers) * slots; i++)
        if (line_of[i] == 0)
            cli_die(CLI_USAGE, "%s: layer %lld has no line for slot %lld", path,
                    (long long)layers[i / slots], (long long)(i % slots));
    for (int32_t l = 0; l < m.layers; l++) m.number[l] = (int32_t)layers[l];
    m.numbered = 1;
    set_devices(&m);
    arrfree(layers);
    arrfree(list);
    return m;
}

/* ---- TensorRT-LLM's YAML --------------------------------------------------------------------------------- */

static cli_map read_yaml_map(const char *path)
{
    int32_t *number = NULL, **row = cli_map_read_yaml(path, &number);
    cli_map m = new_map(path, arrlen(row), arrlen(row[0]));
    for (int32_t l = 0; l < m.layers; l++) { /* the layers by number, whatever their order in the file */
        int32_t at = 0;
        for (int32_t i = 0; i < m.layers; i++) at += number[i] < number[l];
        m.number[at] = number[l];
        memcpy(m.expert + (size_t)at * (size_t)m.slots, row[l], (size_t)m.slots * sizeof *m.expert);
        arrfree(row[l]);
    }
    arrfree(row);
    m.numbered = 1;
    arrfree(number);
    return m;
}

cli_map cli_map_read(const char *path)
{
    if (is_yaml(path)) return read_yaml_map(path);
    return cli_has_suffix(path, ".csv") ? read_csv_map(path) : read_json_map(path);
}

void cli_map_free(cli_map *m)
{
    free(m->expert);
    free(m->number);
    free(m->device_slots);
    free(m->slot_device);
    memset(m, 0, sizeof *m);
}

/* ---- to a placement ----------------------------------------------------------------------------------- */

/* The row with this number; -1 when there is none. */
static int32_t find_number(const cli_map *m, int32_t number)
{
    for (int32_t l = 0; l < m->layers; l++)
        if (m->number[l] == number) return l;
    return -1;
}

/* Rows by number, -1 where the map has none; returns how many it has. */
static int32_t rows_by_number(const cli_map *m, const cli_trace *t, int32_t *rows)
{
    int32_t found = 0;
    for (int32_t l = 0; l < t->layers; l++) {
        rows[l] = find_number(m, t->layer[l]);
        found += rows[l] >= 0;
    }
    return found;
}

/* The numbers of layers in a sentence. */
static char *layer_numbers(const int32_t *number, int32_t n)
{
    int32_t parts = 1;
    for (int32_t l = 1; l < n; l++) parts += number[l] != number[l - 1] + 1;
    if (parts <= MOST_PARTS) return cli_ranges(number, n);
    return cli_format("%d to %d, %d of them", number[0], number[n - 1], n);
}

/* Numbers on both sides, of which only some are the same: nothing says which layers are. */
static char *say_some(const cli_map *m, const cli_trace *t, const int32_t *rows)
{
    int32_t *both = cli_alloc((size_t)t->layers, sizeof *both), n = 0;
    char *theirs = layer_numbers(m->number, m->layers), *ours = layer_numbers(t->layer, t->layers), *common, *text;
    for (int32_t l = 0; l < t->layers; l++)
        if (rows[l] >= 0) both[n++] = t->layer[l];
    common = layer_numbers(both, n);
    text = cli_format("%s has layers %s, %s has layers %s, and of these both have only %s: they do not fit together",
                      m->path, theirs, t->path, ours, common);
    free(common);
    free(ours);
    free(theirs);
    free(both);
    return text;
}

/* How layers that stand in order were matched; NULL where the numbers are the same. */
static char *say_order(const cli_map *m, const cli_trace *t)
{
    char *theirs, *ours, *text;
    if (memcmp(m->number, t->layer, (size_t)t->layers * sizeof *t->layer) == 0) return NULL;
    theirs = layer_numbers(m->number, m->layers);
    ours = layer_numbers(t->layer, t->layers);
    if (!m->numbered)
        text = cli_format("The map has no layer numbers: its layers stand for the recording's %s, in order.", ours);
    else if (t->unnumbered > 0)
        text = cli_format("The recording has no layer numbers: its layers stand for the map's %s, in order.", theirs);
    else
        text = cli_format("Map and recording have no layer number in common: the map's layers %s stand for the "
                          "recording's %s, in order.", theirs, ours);
    free(theirs);
    free(ours);
    return text;
}

int32_t *cli_map_match(const cli_map *m, const cli_trace *t, char **words)
{
    int32_t *rows = cli_alloc((size_t)t->layers, sizeof *rows), found = rows_by_number(m, t, rows);
    int numbers = m->numbered || t->unnumbered == 0 || t->unnumbered == m->layers;
    *words = NULL;
    if (numbers && found == t->layers) {
        if (m->numbered && t->unnumbered > 0 && m->layers != t->layers)
            *words = cli_format("The recording has no layer numbers: counted from 0, its layers are taken for those of "
                                "the map.");
        return rows;
    }
    if (m->numbered && t->unnumbered == 0 && found > 0) {
        *words = say_some(m, t, rows);
    } else if (m->layers != t->layers) {
        *words = cli_format("%s has %d layers, %s has %d (%d to %d)%s: they do not fit together", m->path, m->layers,
                            t->path, t->layers, t->layer[0], t->layer[t->layers - 1],
                            m->numbered || t->unnumbered == 0 ? "" : ", neither with layer numbers");
    } else {
        for (int32_t l = 0; l < t->layers; l++) rows[l] = l;
        *words = say_order(m, t);
        return rows;
    }
    free(rows);
    return NULL;
}

int32_t *cli_map_rows(const cli_map *m, const cli_trace *t, cli_setup *s)
{
    char *words;
    int32_t *rows = cli_map_match(m, t, &words);
    if (!rows) cli_die(CLI_USAGE, "%s", cli_keep(words));
    if (words && s) cli_note(s, "%s", words);
    free(words);
    return rows;
}

void cli_map_check_even(const cli_map *m, int32_t devices, int32_t slots)
{
    int32_t more = devices > 0 ? m->slots % devices : 0;
    if (m->devices > 0 || more == 0 || devices > m->slots || slots == m->slots) return;
    cli_die(CLI_USAGE, "%s has %d slots a layer, which %d devices cannot hold in equal numbers; if the first %d do "
                       "have one more, %s says so",
            m->path, m->slots, devices, more,
            slots < 0 ? "a .csv map" : cli_keep(cli_format("--slots %d", m->slots)));
}

/* Every expert of the recording stands somewhere in every layer, and nothing else does. */
static void check_experts(const cli_map *m, const cli_trace *t, const int32_t *rows)
{
    char *seen = cli_keep_block(cli_alloc((size_t)t->experts, 1));
    for (int32_t l = 0; l < t->layers; l++) {
        const int32_t *expert = m->expert + (size_t)rows[l] * (size_t)m->slots;
        memset(seen, 0, (size_t)t->experts);
        for (int32_t s = 0; s < m->slots; s++) {
            if (expert[s] >= t->experts)
                cli_die(CLI_USAGE, "%s: layer %d, slot %d holds expert %d, but %s has %d (0..%d)",
                        m->path, m->number[rows[l]], s, expert[s], t->path, t->experts,
                        t->experts - 1);
            if (expert[s] >= 0) seen[expert[s]] = 1;
        }
        for (int32_t e = 0; e < t->experts; e++)
            if (!seen[e])
                cli_die(CLI_USAGE, "%s: layer %d: expert %d of %d stands in no slot", m->path,
                        m->number[rows[l]], e, t->experts);
    }
}

moe_ep_placement cli_map_placement(const cli_map *m, const cli_trace *t, const int32_t *rows,
                                   int32_t devices, int32_t nodes)
{
    void *mem;
    moe_ep_placement p = cli_map_placement_in(m, t, rows, devices, nodes, &mem);
    (void)cli_keep_block(mem);
    return p;
}

moe_ep_placement cli_map_placement_in(const cli_map *m, const cli_trace *t, const int32_t *rows,
                                      int32_t devices, int32_t nodes, void **mem)
{
    moe_ep_shape shape;
    moe_ep_placement p;
    moe_ep_error err;
    size_t bytes;
    memset(&shape, 0, sizeof shape);
    if (m->devices > 0 && devices > 0 && m->devices != devices)
        cli_die(CLI_USAGE, "%s has %d devices, --devices says %d", m->path, m->devices, devices);
    if (m->devices == 0 && devices == 0)
        cli_die(CLI_USAGE,
                "%s does not say on how many devices its %d slots are: --devices is needed",
                m->path, m->slots);
    if (devices > m->slots)
        cli_die(CLI_USAGE, "--devices %d: %s has only %d slots", devices, m->path, m->slots);
    check_experts(m, t, rows);
    shape.num_devices = m->devices > 0 ? m->devices : devices;
    shape.num_slots = m->slots;
    shape.slots_per_device = m->device_slots;
    shape.num_nodes = nodes;
    bytes = moe_ep_placement_bytes(t->layers, t->experts, &shape);
    if (bytes == 0)
        cli_die(CLI_USAGE, "%s: %d slots on %d devices and %d nodes: no such shape", m->path,
                m->slots, shape.num_devices, nodes);
    *mem = cli_alloc(bytes, 1);
    cli_check(moe_ep_placement_init(&p, t->layers, t->experts, &shape, *mem, bytes, &err), &err, m->path);
    for (int32_t l = 0; l < t->layers; l++)
        memcpy(p.slot_expert + (size_t)l * (size_t)m->slots,
               m->expert + (size_t)rows[l] * (size_t)m->slots,
               (size_t)m->slots * sizeof *p.slot_expert);
    cli_check(moe_ep_placement_index(&p, &err), &err, m->path);
    return p;
}

/* One layer whose empty slots are being filled. */
typedef struct filling {
    const moe_ep_placement *p;
    int32_t *expert;     /* (slots) of this layer          */
    int32_t *copies;     /* (experts) in this layer so far */
    const double *loads; /* (experts) of this layer        */
} filling;

static int32_t copies_on(const filling *q, int32_t d, int32_t e)
{
    int32_t n = 0;
    for (int32_t s = q->p->slot_start[d]; s < q->p->slot_start[d + 1]; s++) n += q->expert[s] == e;
    return n;
}

/* The expert of device d whose further copy there adds least load, none where all its copies are there; -1 when the
 * device is empty. */
static int32_t cheapest_copy(const filling *q, int32_t d, double *adds)
{
    int32_t best = -1;
    *adds = 0.0;
    for (int32_t s = q->p->slot_start[d]; s < q->p->slot_start[d + 1]; s++) {
        int32_t e = q->expert[s], here = e >= 0 ? copies_on(q, d, e) : 0;
        double more;
        if (e < 0) continue;
        more = here == q->copies[e]
                   ? 0.0
                   : q->loads[e] * ((here + 1.0) / (q->copies[e] + 1.0) - (double)here / q->copies[e]);
        if (best >= 0 && more >= *adds) continue;
        best = e;
        *adds = more;
    }
    return best;
}

/* max/mean over the devices, every copy of an expert with the same share. */
static double filled_imbalance(const filling *q)
{
    double most = 0.0, sum = 0.0;
    for (int32_t d = 0; d < q->p->num_devices; d++) {
        double load = 0.0;
        for (int32_t s = q->p->slot_start[d]; s < q->p->slot_start[d + 1]; s++)
            load += q->loads[q->expert[s]] / q->copies[q->expert[s]];
        sum += load;
        most = load > most ? load : most;
    }
    return sum > 0.0 ? most * q->p->num_devices / sum : 1.0;
}

int32_t *cli_map_full(const moe_ep_placement *p, const double *loads, int64_t *filled, double *worst)
{
    size_t n = (size_t)p->num_layers * (size_t)p->num_slots, E = (size_t)p->num_experts;
    int32_t *expert = cli_alloc(n, sizeof *expert);
    filling q = {p, NULL, NULL, NULL};
    int changed = 0;
    q.copies = cli_keep_block(cli_alloc(E, sizeof *q.copies));
    memcpy(expert, p->slot_expert, n * sizeof *expert);
    *filled = 0;
    *worst = 0.0;
    for (int32_t l = 0; l < p->num_layers; l++) {
        double adds, imbalance;
        q.expert = expert + (size_t)l * (size_t)p->num_slots;
        q.loads = loads + (size_t)l * E;
        memset(q.copies, 0, E * sizeof *q.copies);
        for (int32_t s = 0; s < p->num_slots; s++)
            if (q.expert[s] >= 0) q.copies[q.expert[s]]++;
        for (int32_t s = 0; s < p->num_slots; s++) {
            int32_t e;
            if (q.expert[s] >= 0) continue;
            e = cheapest_copy(&q, p->slot_device[s], &adds);
            if (e < 0)
                cli_die(CLI_USAGE, "this plan leaves device %d empty, which only a .csv map can say",
                        p->slot_device[s]);
            q.expert[s] = e;
            q.copies[e]++;
            changed |= adds > 0.0;
            (*filled)++;
        }
        imbalance = filled_imbalance(&q);
        *worst = imbalance > *worst ? imbalance : *worst;
    }
    if (!changed) *worst = 0.0;
    return expert;
}

/* ---- writers ------------------------------------------------------------------------------------------ */

void cli_map_put_json(FILE *f, int32_t layers, int32_t slots, const int32_t *expert)
{
    fprintf(f, "{\"%s\": [", map_key);
    for (int32_t l = 0; l < layers; l++) {
        fputs(l > 0 ? ",\n [" : "\n [", f);
        for (int32_t s = 0; s < slots; s++)
            fprintf(f, "%s%d", s > 0 ? ", " : "", expert[(size_t)l * (size_t)slots + (size_t)s]);
        fputc(']', f);
    }
    fputs("\n]}\n", f);
}

void cli_map_put_csv(FILE *f, int32_t layers, int32_t slots, const int32_t *expert,
                     const int32_t *slot_device, const int32_t *number)
{
    fputs("layer,device,slot,expert\n", f);
    for (int32_t l = 0; l < layers; l++)
        for (int32_t s = 0; s < slots; s++)
            fprintf(f, "%d,%d,%d,%d\n", number[l], slot_device[s], s,
                    expert[(size_t)l * (size_t)slots + (size_t)s]);
}

/* ---- by name ------------------------------------------------------------------------------------------- */

void cli_map_check_name(const char *name)
{
    if (!cli_has_suffix(name, ".json") && !cli_has_suffix(name, ".csv") && !is_yaml(name))
        cli_die(CLI_USAGE, "--out %s: the name must end in .json (SGLang), .yaml (TensorRT-LLM) or .csv",
                cli_printable(name));
}

int cli_map_wants_full(const char *name)
{
    return !cli_has_suffix(name, ".csv");
}

void cli_map_put(FILE *f, const char *name, int32_t layers, int32_t slots, const int32_t *expert,
                 const int32_t *slot_device, const int32_t *number, const unsigned char *idle)
{
    if (cli_has_suffix(name, ".csv"))
        cli_map_put_csv(f, layers, slots, expert, slot_device, number);
    else if (is_yaml(name))
        cli_map_put_yaml(f, layers, slots, expert, slot_device, number, idle);
    else
        cli_map_put_json(f, layers, slots, expert);
}

char *cli_map_usage(const char *name, int32_t experts, int32_t slots, int32_t devices)
{
    char *shown = cli_printable(name), *text = NULL;
    if (is_yaml(name))
        text = cli_format("TensorRT-LLM loads it as moe_config: load_balancer: %s", shown);
    else if (cli_has_suffix(name, ".json") && slots % devices != 0)
        text = cli_format("SGLang will not load it: %d slots do not divide over %d devices; --slots %d would", slots,
                          devices, slots + devices - slots % devices);
    else if (cli_has_suffix(name, ".json") && slots > experts)
        text = cli_format("SGLang loads it with --init-expert-location %s --ep-num-redundant-experts %d", shown,
                          slots - experts);
    else if (cli_has_suffix(name, ".json"))
        text = cli_format("SGLang loads it with --init-expert-location %s", shown);
    free(shown);
    return text;
}
