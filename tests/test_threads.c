/* tests/test_threads.c - many threads call every section on shared, constant inputs and get the serial bits.
 * SPDX-License-Identifier: MIT
 * Under ThreadSanitizer (tests/check.sh) it also shows that nothing is written behind the callers' backs. */
#include "t.h"

#include <pthread.h>

#include "digest.h"

enum { THREADS = 4, ROUNDS = 3 };
static digest_input shared;
static uint64_t serial[DIGEST_SECTIONS], threaded[THREADS][ROUNDS][DIGEST_SECTIONS];

static void *work(void *argument)
{
    uint64_t(*mine)[DIGEST_SECTIONS] = (uint64_t(*)[DIGEST_SECTIONS])argument;
    int round, i, first = (int)((size_t)((char *)argument - (char *)threaded) / sizeof threaded[0]);
    for (round = 0; round < ROUNDS; round++)
        for (i = 0; i < DIGEST_SECTIONS; i++) { /* each thread begins with another section */
            int s = (i + 3 * first) % DIGEST_SECTIONS;
            mine[round][s] = digest_section(s, &shared);
        }
    return NULL;
}

TEST(shared_inputs_give_the_serial_bits_in_every_thread)
{
    pthread_t thread[THREADS];
    digest_input before;
    int t, r, s;
    digest_inputs(&shared);
    before = shared;
    for (s = 0; s < DIGEST_SECTIONS; s++) serial[s] = digest_section(s, &shared);
    for (t = 0; t < THREADS; t++) CHECK_I64(pthread_create(&thread[t], NULL, work, threaded[t]), 0);
    for (t = 0; t < THREADS; t++) pthread_join(thread[t], NULL);
    for (t = 0; t < THREADS; t++)
        for (r = 0; r < ROUNDS; r++)
            for (s = 0; s < DIGEST_SECTIONS; s++) CHECK(threaded[t][r][s] == serial[s]);
    CHECK(memcmp(&before, &shared, sizeof shared) == 0);
}

TEST(the_same_input_twice_gives_the_same_bits)
{
    digest_input again;
    int s;
    digest_inputs(&shared);
    digest_inputs(&again);
    CHECK(memcmp(&again, &shared, sizeof shared) == 0);
    for (s = 0; s < DIGEST_SECTIONS; s++) CHECK(digest_section(s, &again) == digest_section(s, &shared));
}

TEST(no_section_is_empty)
{
    int s;
    digest_inputs(&shared);
    for (s = 0; s < DIGEST_SECTIONS; s++) CHECK(digest_section(s, &shared) != UINT64_C(0xcbf29ce484222325));
}

T_MAIN
