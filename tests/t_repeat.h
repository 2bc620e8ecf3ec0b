/* t_repeat.h - arrays of 2^31 elements in little memory, for the tests of 64-bit paths
 * SPDX-License-Identifier: MIT */
#ifndef T_REPEAT_H
#define T_REPEAT_H

#include <stdlib.h>
#if defined(__linux__) && defined(_GNU_SOURCE) && !defined(__SANITIZE_ADDRESS__)
#  include <sys/mman.h>
#  include <unistd.h>
#  define CAN_REPEAT 1
#else
#  define CAN_REPEAT 0
#endif

#if CAN_REPEAT
/* 2^31 ids and more in little memory: one small file mapped again and again, one behind the other.  NULL where
 * that cannot be had. */
static void *repeated(size_t bytes, size_t piece, int fd)
{
    char *base;
    size_t at;
    if (fd < 0 || ftruncate(fd, (off_t)piece) != 0) return NULL;
    if (t_slow()) return NULL; /* minutes under an emulator or a sanitizer */
    base = (char *)mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == (char *)MAP_FAILED) return NULL;
    for (at = 0; at < bytes; at += piece)
        if (mmap(base + at, piece, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) ==
            MAP_FAILED) {
            munmap(base, bytes);
            return NULL;
        }
    return base;
}
#endif

#endif /* T_REPEAT_H */
