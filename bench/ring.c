/* SPDX-License-Identifier: Apache-2.0
 * ring.c <directory> <writer CPU> <reader CPU> <fifo> <what> ...: one measurement of a ring, as one JSON line.
 *
 *   pingpong                                one cache line handed to and fro: one-way p50
 *   latency ours-tip|ours-head|agrona|spsc  one-way latency at 100,000 records a second
 *   lossless ours|agrona|spsc               records a second, the writer waiting for a reader a ring behind
 *   free ours|ours-copied|agrona READERS    writer's ns a record, READERS processes attached and asleep
 *
 * agrona and spsc are our own short versions of the two usual layouts (three counters on a trailer; two indices with
 * cached copies), 64 bytes a record as ours. Readers check every number they see; a wrong one ends the run.
 */
#include "feedhandler_reader.h"
#include "fh_ring.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

enum { SLOTS = 65536, PINGS = 20000, PACED = 20000, STREAMED = 8000000, FREE = 4000000, CREDIT = 1024, READERS_MAX = 64, INTERVAL_NS = 10000 };

typedef struct peer_ring { /* both peers: 64-byte slots, counters of their own lines */
    char pad0[128];
    uint64_t intent, tail, latest; /* agrona: one line, as its trailer */
    char pad1[104];
    uint64_t head;                 /* spsc: the reader's index */
    char pad2[120];
    uint64_t slot[SLOTS][8];
} peer_ring;

typedef struct shared {
    uint64_t ping;
    char pad0[120];
    uint64_t pong;
    char pad1[120];
    uint64_t ready, done, credit, wrong;
    uint64_t sample[PACED];
    peer_ring ring;
} shared;

static shared *common;
static fh_writer writer;
static fh_ring_reader reader;
static int cpu[2], fifo;
static uint64_t spsc_head_cached, spsc_tail_cached, next_read, next_write;

static uint64_t clock_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t ticks(void)
{
#if defined(__x86_64__)
    unsigned core;
    return __rdtscp(&core);
#else
    return clock_ns();
#endif
}

static double ns_per_tick(void)
{
    uint64_t ns = clock_ns(), begin = ticks();
    while (clock_ns() - ns < 20000000) { }
    uint64_t end_ns = clock_ns();
    return (double)(end_ns - ns) / (double)(ticks() - begin);
}

static void settle(int which)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu[which], &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        perror("sched_setaffinity");
    if (fifo) {
        struct sched_param priority = {.sched_priority = 1};
        if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0)
            perror("sched_setscheduler");
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#endif
}

/* -- the three rings, one put and one get each ---------------------------------------------------------------- */

/* As the publisher does it: the record is made in its slot. */
static void ours_put(uint64_t stamp)
{
    fh_record *slot = fh_ring_slot(&writer);
    slot->ts_recv_ns = stamp;
    slot->ts_event_ns = stamp;
    slot->instrument = 1;
    slot->kind = FH_TRADE;
    slot->flags = FH_LAST;
    slot->session = 0;
    slot->body.word[0] = (int64_t)next_write++;
    slot->body.word[1] = slot->body.word[2] = slot->body.word[3] = 0;
    fh_ring_commit(&writer);
}

static void ours_put_copied(uint64_t stamp)
{
    fh_record record = {.ts_recv_ns = stamp, .kind = FH_TRADE, .flags = FH_LAST, .body.word = {(int64_t)next_write}};
    fh_ring_put(&writer, &record);
    next_write++;
}

static void ours_put_flushed(uint64_t stamp)
{
    ours_put(stamp);
    fh_ring_flush(&writer);
}

static int ours_get_tip(uint64_t *stamp, uint64_t *number)
{
    fh_record record;
    int there;
    const fh_record *slot = fh_ring_peek(&reader, reader.position, &there);
    if (!there)
        return 0;
    fh_copy(&record, slot, sizeof record);
    if (!fh_ring_advance(&reader, 1))
        return 0;
    *stamp = record.ts_recv_ns;
    *number = (uint64_t)record.body.word[0];
    return 1;
}

static int ours_get_head(uint64_t *stamp, uint64_t *number)
{
    const fh_record *first;
    size_t count;
    uint64_t lost;
    if (fh_ring_batch(&reader, &first, &count, &lost) != FH_FEED_OK)
        return 0;
    *stamp = fh_load_relaxed(&first->ts_recv_ns);
    *number = (uint64_t)fh_load_relaxed(&first->body.word[0]);
    return fh_ring_advance(&reader, 1);
}

static void agrona_put(uint64_t stamp)
{
    peer_ring *ring = &common->ring;
    uint64_t *slot = ring->slot[next_write & (SLOTS - 1)];
    fh_store_relaxed(&ring->intent, next_write + 1);
    fh_fence_release(); /* the intent before the bytes; pairs with the fence in agrona_get() */
    fh_store_relaxed(&slot[0], 64u);
    fh_store_relaxed(&slot[1], stamp);
    fh_store_relaxed(&slot[2], next_write);
    for (int i = 3; i < 8; i++)
        fh_store_relaxed(&slot[i], 0u);
    fh_store_relaxed(&ring->latest, next_write);
    fh_store_release(&ring->tail, ++next_write); /* pairs with the load in agrona_get() */
}

static int agrona_get(uint64_t *stamp, uint64_t *number)
{
    peer_ring *ring = &common->ring;
    uint64_t copy[8];
    if (fh_load_acquire(&ring->tail) <= next_read) /* pairs with agrona_put() */
        return 0;
    fh_copy(copy, ring->slot[next_read & (SLOTS - 1)], 64);
    fh_fence_acquire();
    if (fh_load_relaxed(&ring->intent) > next_read + SLOTS) {
        next_read = fh_load_relaxed(&ring->latest); /* its way out of a lap: all of the backlog is lost */
        return 0;
    }
    next_read++;
    *stamp = copy[1];
    *number = copy[2];
    return 1;
}

static void spsc_put(uint64_t stamp)
{
    peer_ring *ring = &common->ring;
    while (next_write - spsc_head_cached == SLOTS)
        spsc_head_cached = fh_load_acquire(&ring->head); /* pairs with the store in spsc_get() */
    uint64_t *slot = ring->slot[next_write & (SLOTS - 1)];
    slot[0] = 64;
    slot[1] = stamp;
    slot[2] = next_write;
    memset(slot + 3, 0, 40);
    fh_store_release(&ring->tail, ++next_write); /* pairs with the load in spsc_get() */
}

static int spsc_get(uint64_t *stamp, uint64_t *number)
{
    peer_ring *ring = &common->ring;
    uint64_t copy[8];
    if (next_read == spsc_tail_cached && (spsc_tail_cached = fh_load_acquire(&ring->tail)) == next_read) /* pairs with spsc_put() */
        return 0;
    memcpy(copy, ring->slot[next_read & (SLOTS - 1)], 64);
    fh_store_release(&ring->head, ++next_read); /* pairs with the load in spsc_put() */
    *stamp = copy[1];
    *number = copy[2];
    return 1;
}

typedef struct kind {
    const char *name;
    void (*put)(uint64_t stamp);
    int (*get)(uint64_t *stamp, uint64_t *number);
    int ours;
} kind;

static const kind KINDS[] = {
    {"ours-tip", ours_put, ours_get_tip, 1}, {"ours-head", ours_put_flushed, ours_get_head, 1},
    {"ours", ours_put, ours_get_tip, 1}, {"ours-copied", ours_put_copied, ours_get_tip, 1}, {"agrona", agrona_put, agrona_get, 0},
    {"spsc", spsc_put, spsc_get, 0},
};

static const kind *kind_named(const char *name)
{
    for (size_t i = 0; i < sizeof KINDS / sizeof KINDS[0]; i++)
        if (strcmp(KINDS[i].name, name) == 0)
            return &KINDS[i];
    fprintf(stderr, "no ring %s\n", name);
    exit(2);
}

/* -- the measurements ------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double quantile(uint64_t *sorted, size_t count, double q)
{
    return (double)sorted[(size_t)((double)(count - 1) * q)];
}

static pid_t beside(void (*child)(const kind *), const kind *kind)
{
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid == 0) {
        settle(1);
        child(kind);
        _exit(common->wrong != 0);
    }
    settle(0);
    while (!fh_load_acquire(&common->ready)) { } /* pairs with the child's store of ready */
    return pid;
}

static void finish(pid_t pid)
{
    int status = 1;
    waitpid(pid, &status, 0);
    if (status != 0) {
        fprintf(stderr, "the reader saw a wrong record, or died\n");
        exit(1);
    }
}

static void ping_child(const kind *unused)
{
    (void)unused;
    fh_store_release(&common->ready, 1u);
    for (uint64_t i = 1; i <= PINGS; i++) {
        while (fh_load_acquire(&common->ping) != i) { }
        fh_store_release(&common->pong, i);
    }
}

static void pingpong(void)
{
    pid_t pid = beside(ping_child, NULL);
    for (uint64_t i = 1; i <= PINGS; i++) {
        uint64_t begin = ticks();
        fh_store_release(&common->ping, i);
        while (fh_load_acquire(&common->pong) != i) { }
        common->sample[i - 1] = ticks() - begin;
    }
    finish(pid);
    qsort(common->sample, PINGS, sizeof(uint64_t), by_value);
    printf("{\"p50\": %.1f}\n", quantile(common->sample, PINGS, 0.5) / 2 * ns_per_tick());
}

static void latency_child(const kind *kind)
{
    uint64_t stamp = 0, number = 0;
    fh_store_release(&common->ready, 1u);
    for (uint64_t i = 0; i < PACED; i++) {
        while (!kind->get(&stamp, &number)) { }
        uint64_t now = ticks();
        common->wrong += number != i;
        common->sample[i] = now > stamp ? now - stamp : 0;
    }
}

static void latency(const kind *kind)
{
    double tick = ns_per_tick();
    uint64_t interval = (uint64_t)(INTERVAL_NS / tick);
    pid_t pid = beside(latency_child, kind);
    uint64_t due = ticks() + interval;
    for (uint64_t i = 0; i < PACED; i++) {
        while (ticks() < due)
            relax();
        due += interval;
        kind->put(ticks());
    }
    finish(pid);
    size_t skip = PACED / 10; /* cold start */
    qsort(common->sample + skip, PACED - skip, sizeof(uint64_t), by_value);
    printf("{\"p50\": %.1f, \"p99\": %.1f, \"records\": %d}\n", quantile(common->sample + skip, PACED - skip, 0.5) * tick,
           quantile(common->sample + skip, PACED - skip, 0.99) * tick, PACED);
}

static void lossless_child(const kind *kind)
{
    uint64_t stamp, number = 0;
    fh_store_release(&common->ready, 1u);
    for (uint64_t i = 0; i < STREAMED; i++) {
        while (!kind->get(&stamp, &number)) { }
        common->wrong += number != i;
        if ((i & (CREDIT - 1)) == 0)
            fh_store_release(&common->credit, i); /* pairs with the load in lossless() */
    }
}

/* A broadcast ring has no flow control: here the writer asks how far the reader is, once in a while. */
static void lossless(const kind *kind)
{
    uint64_t seen = 0;
    pid_t pid = beside(lossless_child, kind);
    uint64_t begin = clock_ns();
    for (uint64_t i = 0; i < STREAMED; i++) {
        while (i - seen > SLOTS - 2 * CREDIT)
            seen = fh_load_acquire(&common->credit); /* pairs with the store in lossless_child() */
        kind->put(0);
    }
    finish(pid);
    printf("{\"per_s\": %.0f, \"records\": %d}\n", STREAMED * 1e9 / (double)(clock_ns() - begin), STREAMED);
}

static void free_running(const kind *kind, int readers, const char *path)
{
    pid_t pid[READERS_MAX];
    char error[400];
    int pipe_fd[2], n = 0;
    if (readers > READERS_MAX || pipe(pipe_fd) != 0)
        exit(2);
    for (; n < readers; n++) {
        pid[n] = fork();
        if (pid[n] == 0) { /* attached: every page of the ring mapped and read once, then asleep */
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (fh_ring_map(&reader, path, error, sizeof error) != FH_FEED_OK)
                _exit(1);
            for (uint64_t at = 0; at < SLOTS; at++)
                common->wrong += fh_load_relaxed(&reader.slots[at].commit) > SLOTS;
            if (write(pipe_fd[1], "+", 1) == 1)
                for (;;)
                    pause();
        }
    }
    char byte;
    for (int i = 0; i < readers; i++)
        if (read(pipe_fd[0], &byte, 1) != 1)
            exit(1);
    settle(0);
    for (int i = 0; i < SLOTS; i++)
        kind->put(0);
    uint64_t begin = clock_ns();
    for (int i = 0; i < FREE; i++)
        kind->put(0);
    double ns = (double)(clock_ns() - begin) / FREE;
    if (kind->ours && (writer.position != SLOTS + FREE || writer.slots[(writer.position - 1) & writer.mask].commit != writer.position))
        exit(1);
    while (n-- > 0) {
        kill(pid[n], SIGKILL);
        waitpid(pid[n], NULL, 0);
    }
    printf("{\"ns\": %.3f, \"readers\": %d}\n", ns, readers);
}

int main(int count, char **text)
{
    char path[4096], error[400];
    if (count < 6)
        return 2;
    int dir_fd = open(text[1], O_RDONLY | O_DIRECTORY);
    cpu[0] = atoi(text[2]);
    cpu[1] = atoi(text[3]);
    fifo = atoi(text[4]);
    common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (dir_fd < 0 || common == MAP_FAILED || fh_ring_create(&writer, dir_fd, 0, SLOTS, 1) != FH_OK) {
        perror(text[1]);
        return 1;
    }
    snprintf(path, sizeof path, "%s/worker-0.ring", text[1]);
    if (fh_ring_map(&reader, path, error, sizeof error) != FH_FEED_OK) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    memset(common, 0, sizeof *common);
    for (uint64_t at = 0; at < SLOTS; at++)
        common->wrong += reader.slots[at].commit != 0;
    if (strcmp(text[5], "pingpong") == 0)
        pingpong();
    else if (strcmp(text[5], "latency") == 0)
        latency(kind_named(text[6]));
    else if (strcmp(text[5], "lossless") == 0)
        lossless(kind_named(text[6]));
    else if (strcmp(text[5], "free") == 0 && count == 8)
        free_running(kind_named(text[6]), atoi(text[7]), path);
    else
        return 2;
    fh_ring_close(&writer);
    return 0;
}
