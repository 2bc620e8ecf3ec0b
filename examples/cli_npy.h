/* cli_npy.h - NumPy .npy files: header, streamed elements, writer
 * SPDX-License-Identifier: MIT */
#ifndef CLI_NPY_H
#define CLI_NPY_H

#include "cli_base.h"

enum { CLI_NPY_MAX_DIMS = 8 };

typedef struct cli_npy {
    const char *path;
    FILE *file;           /* stands at the next element */
    char kind;            /* 'i' signed, 'u' unsigned, 'f' float, 'b' bool */
    int size;             /* bytes per element */
    int swapped;          /* bytes are in the other order than this machine's */
    int ndim;
    int64_t shape[CLI_NPY_MAX_DIMS];
    int64_t count;        /* product of the shape */
    char descr[16];       /* as the header says it, "<i4" */
    char shape_text[96];  /* "(4096, 4, 8)" */
    int64_t read;      /* elements read as integers so far                          */
    int64_t wide_at;   /* the first of them beyond 32 bits, from 1; 0 = none         */
    char wide[24];     /* what it is                                                */
} cli_npy;

/* Opens, checks the header against the real size of the file, leaves on any fault. */
void cli_npy_open(cli_npy *a, const char *path);
void cli_npy_close(cli_npy *a);
/* Next n elements as integers; leaves when one does not fit int32 or the type is not integer. */
void cli_npy_read_i32(cli_npy *a, int32_t *out, int64_t n);
/* Next n elements as numbers. */
void cli_npy_read_double(cli_npy *a, double *out, int64_t n);

/* Writes a whole C-order array of n elements; descr "<i4" or "<f4", the data int32_t or float. */
void cli_npy_write(FILE *f, const char *descr, int ndim, const int64_t *shape, const void *data, size_t n_elements);

#endif
