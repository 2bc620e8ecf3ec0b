/* tests/json_check.c - is this file one JSON value, and what stands at a path of keys in it?
 * SPDX-License-Identifier: MIT
 *
 * usage: json_check FILE                    exit 0 when it is valid JSON without rubbish behind it
 *        json_check FILE KEY...             prints the value there: a key of an object, an index of a list, or
 *                                           "length", "sum", "min", "max", "count=V" of all numbers below */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct numbers {
    double sum, min, max, wanted;
    long count, equal;
} numbers;

static void collect(const json_t *v, numbers *n)
{
    size_t i;
    const char *key;
    json_t *item;
    if (json_is_number(v)) {
        double x = json_number_value(v);
        if (n->count == 0 || x < n->min) n->min = x;
        if (n->count == 0 || x > n->max) n->max = x;
        n->sum += x;
        n->count++;
        if (!(x < n->wanted) && !(x > n->wanted)) n->equal++;
    } else if (json_is_array(v)) {
        json_array_foreach((json_t *)v, i, item) collect(item, n);
    } else if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, item) collect(item, n);
    }
}

int main(int argc, char **argv)
{
    json_error_t error;
    json_t *root, *v;
    int i;
    if (argc < 2) return 2;
    root = json_load_file(argv[1], JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        fprintf(stderr, "%s:%d:%d: %s\n", argv[1], error.line, error.column, error.text);
        return 1;
    }
    v = root;
    for (i = 2; i < argc; i++) {
        numbers n;
        memset(&n, 0, sizeof n);
        n.wanted = strncmp(argv[i], "count=", 6) == 0 ? strtod(argv[i] + 6, NULL) : 0.0;
        collect(v, &n);
        if (strcmp(argv[i], "length") == 0) {
            printf("%zu\n", json_is_array(v) ? json_array_size(v) : json_object_size(v));
        } else if (strcmp(argv[i], "sum") == 0) {
            printf("%.10g\n", n.sum);
        } else if (strcmp(argv[i], "min") == 0) {
            printf("%.10g\n", n.min);
        } else if (strcmp(argv[i], "max") == 0) {
            printf("%.10g\n", n.max);
        } else if (strncmp(argv[i], "count=", 6) == 0) {
            printf("%ld\n", n.equal);
        } else {
            v = json_is_array(v) ? json_array_get(v, (size_t)atol(argv[i])) : json_object_get(v, argv[i]);
            if (!v) {
                fprintf(stderr, "%s: nothing at \"%s\"\n", argv[1], argv[i]);
                return 1;
            }
            continue;
        }
        json_decref(root);
        return 0;
    }
    if (argc > 2) {
        if (json_is_string(v)) {
            printf("%s\n", json_string_value(v));
        } else {
            json_dumpf(v, stdout, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(10));
            printf("\n");
        }
    }
    json_decref(root);
    return 0;
}
