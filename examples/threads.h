/* examples/threads.h - two ready answers to moe_ep_parallel_for: a pthread pool, and OpenMP.
 * SPDX-License-Identifier: MIT
 *
 *     threads_pool *pool = threads_start(2);            desc.parallel_for = threads_run;
 *     ...                                               desc.parallel_user = pool;
 *     threads_stop(pool);
 *
 * Items are taken from one counter, so a slow or disturbed core takes fewer of them.  Include after moe_ep.h. */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#ifdef _OPENMP
static void threads_openmp(void *user, int64_t count, moe_ep_task task, void *context)
{
    int64_t i;
    (void)user;
#pragma omp parallel for schedule(dynamic, 1)
    for (i = 0; i < count; i++) task(context, i);
}
#endif

typedef struct threads_pool {
    pthread_t id[64];
    int threads; /* with the caller */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int64_t job, next, count, busy; /* job counts the calls; next and busy are shared while one runs */
    int stop;
    moe_ep_task task;
    void *context;
} threads_pool;

static void threads_drain(threads_pool *p)
{
    for (;;) {
        int64_t i = __sync_fetch_and_add(&p->next, 1);
        if (i >= p->count) return;
        p->task(p->context, i);
    }
}

static void *threads_worker(void *argument)
{
    threads_pool *p = (threads_pool *)argument;
    int64_t seen = 0;
    for (;;) {
        int spin;
        for (spin = 0; spin < 2000 && __atomic_load_n(&p->job, __ATOMIC_ACQUIRE) == seen; spin++)
            if (spin > 200) sched_yield(); /* a layer has several short jobs: sleep only after a while */
        pthread_mutex_lock(&p->lock);
        while (p->job == seen) pthread_cond_wait(&p->wake, &p->lock);
        seen = p->job;
        spin = p->stop;
        pthread_mutex_unlock(&p->lock);
        if (spin) return NULL;
        threads_drain(p);
        __sync_fetch_and_sub(&p->busy, 1);
    }
}

static void threads_run(void *user, int64_t count, moe_ep_task task, void *context)
{
    threads_pool *p = (threads_pool *)user;
    pthread_mutex_lock(&p->lock);
    p->task = task;
    p->context = context;
    p->count = count;
    p->next = 0;
    p->busy = p->threads - 1;
    __atomic_store_n(&p->job, p->job + 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    threads_drain(p);
    while (__atomic_load_n(&p->busy, __ATOMIC_ACQUIRE) > 0) sched_yield();
}

/* NULL when threads cannot be made; threads counts the caller. */
static threads_pool *threads_start(int threads)
{
    threads_pool *p = (threads_pool *)calloc(1, sizeof *p);
    int i;
    if (!p || threads < 1 || threads > 64) { free(p); return NULL; }
    p->threads = 1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (i = 0; i + 1 < threads; i++, p->threads++)
        if (pthread_create(&p->id[i], NULL, threads_worker, p) != 0) break;
    return p;
}

static void threads_stop(threads_pool *p)
{
    int i;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = 1;
    __atomic_store_n(&p->job, p->job + 1, __ATOMIC_RELEASE); /* ends the spinning too */
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (i = 0; i + 1 < p->threads; i++) pthread_join(p->id[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    free(p);
}

#endif
