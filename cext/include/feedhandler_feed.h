/* SPDX-License-Identifier: Apache-2.0
 *
 * feedhandler_feed.h: read a running instance from C or C++: open, poll, wait, look up, close.
 *
 * Who writes:   a fh_feed writes its own slot of `readers` and the waiting words there; nothing else.
 * Who reads:    one thread owns a fh_feed; any number of processes read at once.
 * What blocks:  only fh_feed_wait().
 * What is lost: what a writer overwrote before it was read: counted exactly, reported once (FH_FEED_LAPPED).
 * After a crash: of a writer: fh_feed_poll() says WORKER_SILENT, later EPOCH; events cut off by its death are dropped;
 *               of a reader: the next one takes its slot.
 *
 * C11 and C++17, header only, no allocation: a fh_feed is the caller's memory, its mappings are made at opening.
 */
#ifndef FEEDHANDLER_FEED_H
#define FEEDHANDLER_FEED_H

#include "feedhandler_reader.h"
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A reader of a whole instance. Owned by one thread; its memory is the caller's. */
typedef struct fh_feed {
    char directory[256];
    const fh_file *instruments, *state; /* mapped read-only, NULL when absent */
    fh_readers *readers;                /* mapped for writing, NULL when not permitted: then waiting naps 1 ms at a time */
    fh_reader_slot *slot;               /* ours in readers, or NULL when all are taken */
    uint32_t ring_count, turn;          /* highest worker + 1; whose ring is looked at first */
    uint64_t looked_ns;                 /* when new rings were looked for */
    uint32_t polls, pad0;               /* every FH_LOOK_POLLS-th looks around even when there is news */
    fh_ring_reader ring[FH_RING_MAX];   /* by worker */
} fh_feed;

/* What a poll brought: records of one worker's ring, or how many of them were lost. */
typedef struct fh_feed_news { size_t count; uint32_t worker; uint64_t lost; } fh_feed_news;

#define FH_LOOK_NS 10000000u /* between two looks for a new ring: one failed open, 2 µs, in 10 ms */
#define FH_LOOK_POLLS 64u /* polls with news between two looks around: a dead ring is told beside a busy one */
#define FH_SILENT_NS 100000000 /* a heartbeat older than this, 10 beats, is silence */

static inline uint64_t fh_clock_mono_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Map a table; *file stays NULL unless its geometry holds. */
static inline int fh_table_attach(fh_feed *feed, const char *name, uint64_t magic, uint32_t row_size, fh_file **file,
                                  char *error, size_t error_size)
{
    char path[320];
    fh_file head;
    *file = NULL;
    if (snprintf(path, sizeof path, "%s/%s", feed->directory, name) >= (int)sizeof path)
        return fh_feed_fail(error, error_size, FH_FEED_BAD, feed->directory, "path too long");
    int fd = fh_file_attach(path, magic, O_RDONLY, &head, error, error_size);
    if (fd < 0)
        return fd;
    void *map = MAP_FAILED;
    if (head.row_size == row_size && head.row_max > 0 && head.total_size == 4096 + (uint64_t)row_size * head.row_max)
        map = mmap(NULL, head.total_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return fh_feed_fail(error, error_size, FH_FEED_BAD, path, "its rows do not fit its size");
    *file = (fh_file *)map;
    return FH_FEED_OK;
}

#define FH_READERS_SIZE (4096 + FH_READER_MAX * sizeof(fh_reader_slot))

/* Map `readers`, or NULL. Anybody who reads may write it, so its head is not believed: its size is known here. */
static inline fh_readers *fh_readers_attach(const fh_feed *feed)
{
    char path[320];
    struct stat status;
    snprintf(path, sizeof path, "%s/readers", feed->directory);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return NULL;
    void *map = MAP_FAILED;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == (off_t)FH_READERS_SIZE)
        map = mmap(NULL, FH_READERS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return map == MAP_FAILED ? NULL : (fh_readers *)map;
}

/* Take a free slot of `readers`, or one whose process is gone. */
static inline void fh_feed_sign(fh_feed *feed, const char *name)
{
    fh_reader_slot *slots = (fh_reader_slot *)(void *)((char *)feed->readers + 4096);
    for (uint32_t i = 0; i < FH_READER_MAX; i++) {
        uint32_t pid = fh_load_relaxed(&slots[i].pid);
        if (pid != 0 && !(kill((pid_t)pid, 0) != 0 && errno == ESRCH))
            continue;
        /* Acquire and release: of two readers that want this slot one gets it, after all its last owner stored. */
        if (!__atomic_compare_exchange_n(&slots[i].pid, &pid, (uint32_t)getpid(), 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            continue;
        feed->slot = &slots[i];
        feed->slot->pid_start = fh_pid_start();
        memset(feed->slot->ring, 0, sizeof feed->slot->ring);
        snprintf(feed->slot->name, sizeof feed->slot->name, "%s", name);
        return;
    }
}

/* Map the ring of a worker if it is there. */
static inline int fh_feed_join(fh_feed *feed, uint32_t worker, char *error, size_t error_size)
{
    char path[320];
    snprintf(path, sizeof path, "%s/worker-%u.ring", feed->directory, worker);
    int result = fh_ring_map(&feed->ring[worker], path, error, error_size);
    if (result == FH_FEED_OK && worker >= feed->ring_count)
        feed->ring_count = worker + 1;
    return result;
}

static inline void fh_feed_close(fh_feed *feed)
{
    for (uint32_t i = 0; i < feed->ring_count; i++)
        fh_ring_unmap(&feed->ring[i]);
    if (feed->slot != NULL)
        fh_store_release(&feed->slot->pid, 0u); /* pairs with the exchange in fh_feed_sign() */
    const fh_file *file[2] = {feed->instruments, feed->state};
    for (int i = 0; i < 2; i++)
        if (file[i] != NULL)
            munmap((void *)(uintptr_t)file[i], file[i]->total_size);
    if (feed->readers != NULL)
        munmap(feed->readers, FH_READERS_SIZE);
    memset(feed, 0, sizeof *feed);
}

/* Open an instance by name, or by its directory if name holds a slash. Reading starts at what is new; `state` has the last
 * values. On failure error holds one sentence and nothing stays open. */
static inline int fh_feed_open(fh_feed *feed, const char *name, char *error, size_t error_size)
{
    fh_file *file;
    memset(feed, 0, sizeof *feed);
    snprintf(feed->directory, sizeof feed->directory, strchr(name, '/') ? "%s" : "/dev/shm/feedhandler-%s", name);
    int result = fh_table_attach(feed, "instruments", FH_MAGIC_INSTRUMENTS, sizeof(fh_instrument), &file, error, error_size);
    feed->instruments = file;
    if (result == FH_FEED_OK)
        result = fh_table_attach(feed, "state", FH_MAGIC_STATE, sizeof(fh_state_row), &file, error, error_size);
    feed->state = result == FH_FEED_OK ? file : NULL;
    for (uint32_t worker = 0; worker < FH_RING_MAX && result == FH_FEED_OK; worker++) {
        int joined = fh_feed_join(feed, worker, error, error_size);
        result = joined == FH_FEED_ABSENT ? FH_FEED_OK : joined;
    }
    if (result != FH_FEED_OK) {
        fh_feed_close(feed);
        return result;
    }
    feed->readers = fh_readers_attach(feed);
    if (feed->readers != NULL)
        fh_feed_sign(feed, program_invocation_short_name);
    error[0] = 0;
    return FH_FEED_OK;
}

/* A look around, at idle polls and now and then at others: a ring whose heartbeat stopped or came back (one local STATUS record), a new worker. */
static inline int fh_feed_idle(fh_feed *feed, fh_record *out, fh_feed_news *news)
{
    char error[400];
    uint64_t now = fh_clock_mono_ns();
    if (feed->slot != NULL)
        fh_store_relaxed(&feed->slot->polled_ns, now); /* for `readers` only */
    for (uint32_t i = 0; i < feed->ring_count; i++) {
        fh_ring_reader *reader = &feed->ring[i];
        if (reader->ring == NULL)
            continue;
        /* Relaxed: a number to compare with the clock. Pairs with the store in fh_ring_heartbeat(). */
        int64_t age = (int64_t)(now - fh_load_relaxed(&reader->ring->heartbeat_ns));
        if ((age > FH_SILENT_NS) == reader->silent)
            continue;
        reader->silent = !reader->silent;
        memset(out, 0, sizeof *out);
        out->instrument = FH_INSTRUMENT_NONE;
        out->kind = FH_STATUS;
        out->flags = FH_LAST;
        out->body.status.code = reader->silent ? FH_WORKER_SILENT : FH_LIVE;
        out->body.status.a = (uint64_t)age;
        news->count = 1;
        news->worker = i;
        return FH_FEED_OK;
    }
    if (now - feed->looked_ns < FH_LOOK_NS || feed->ring_count >= FH_RING_MAX)
        return FH_FEED_EMPTY;
    feed->looked_ns = now;
    news->worker = feed->ring_count;
    if (fh_feed_join(feed, news->worker, error, sizeof error) != FH_FEED_OK)
        return FH_FEED_EMPTY;
    feed->ring[news->worker].position = 0; /* it was not there when we opened: everything in it is new to us */
    return FH_FEED_NEW_RING;
}

/* Whether a ring waits for another one to be read up to where an instrument left it. */
static inline int fh_feed_held(const fh_feed *feed, const fh_ring_reader *reader)
{
    return reader->behind_until != 0 && feed->ring[reader->behind].position < reader->behind_until;
}

/* Met a MOVED_IN: put it back and wait if the ring it came from still holds records of the instrument. */
static inline int fh_feed_hold(fh_feed *feed, fh_ring_reader *reader, const fh_record *moved_in)
{
    uint64_t from = moved_in->body.status.b;
    if (from >= feed->ring_count || feed->ring[from].ring == NULL || &feed->ring[from] == reader)
        return 0;
    reader->behind = (uint32_t)from;
    reader->behind_until = fh_ring_barrier(&feed->ring[from], moved_in);
    if (!fh_feed_held(feed, reader))
        return 0;
    reader->position = moved_in->commit - 1;
    return 1;
}

/* The next complete events of one worker's ring, rings in turn; max should be 1,024 or more. Results as documented at
 * enum fh_feed_result; news->worker says whose. FH_FEED_SMALL: no event larger than a quarter of a ring is ever published. */
static inline int fh_feed_poll(fh_feed *feed, fh_record *out, size_t max, fh_feed_news *news)
{
    memset(news, 0, sizeof *news);
    if (max == 0)
        return FH_FEED_SMALL;
    if (++feed->polls % FH_LOOK_POLLS == 0) {
        int look = fh_feed_idle(feed, out, news);
        if (look != FH_FEED_EMPTY)
            return look;
        memset(news, 0, sizeof *news);
    }
    for (uint32_t i = 0; i < feed->ring_count; i++) {
        uint32_t worker = feed->turn < feed->ring_count ? feed->turn : 0;
        fh_ring_reader *reader = &feed->ring[worker];
        feed->turn = worker + 1;
        if (reader->ring == NULL || fh_feed_held(feed, reader))
            continue;
        int result = fh_ring_poll(reader, out, max, &news->count, &news->lost);
        if (result == FH_FEED_EMPTY
            || (result == FH_FEED_OK && fh_ring_is(out, FH_MOVED_IN) && fh_feed_hold(feed, reader, out)))
            continue;
        news->worker = worker;
        if (feed->slot != NULL) { /* relaxed: for `readers` only */
            fh_store_relaxed(&feed->slot->ring[worker].cursor, reader->position);
            fh_store_relaxed(&feed->slot->ring[worker].lost, reader->lost);
        }
        return result;
    }
    news->count = 0;
    return fh_feed_idle(feed, out, news);
}

/* Whether head says that some ring has an event for us. */
static inline int fh_feed_pending(const fh_feed *feed)
{
    for (uint32_t i = 0; i < feed->ring_count; i++) {
        const fh_ring_reader *reader = &feed->ring[i];
        if (reader->ring != NULL && !fh_feed_held(feed, reader)
            && fh_load_acquire(&reader->ring->head) > reader->position) /* pairs with fh_ring_flush() */
            return 1;
    }
    return 0;
}

#define FH_WAIT_MAX 128 /* futexes of one wait: the kernel's limit */

/* Sleep until a writer publishes, at most timeout_ns and 50 ms; may return early. Then poll. */
static inline void fh_feed_wait(fh_feed *feed, uint64_t timeout_ns)
{
    struct futex_waitv word[FH_WAIT_MAX];
    uint32_t count = 0;
    uint64_t now = fh_clock_mono_ns(), until = now + (timeout_ns < 50000000u ? timeout_ns : 50000000u);
    int fenced = feed->readers != NULL;
    memset(word, 0, sizeof word);
    for (uint32_t i = 0; i < feed->ring_count; i++) {
        const fh_ring *ring = feed->ring[i].ring;
        if (ring == NULL)
            continue;
        fenced &= count < FH_WAIT_MAX && fh_load_relaxed(&ring->wake_fenced);
        if (count < FH_WAIT_MAX) {
            /* Acquire, and before the flag: a wake from here on changes the word, an earlier one shows its time.
             * Pairs with the release store in fh_ring_wake(). */
            word[count].val = fh_load_acquire(&ring->wake_seq);
            word[count].uaddr = (uintptr_t)&ring->wake_seq;
            word[count++].flags = FUTEX_32;
        }
        /* So soon after a wake the writer would not wake again: sleep to the end of that gap and look again. The clock was
         * read before our last look, so a record that we miss is published when the gap is over, and does wake us. */
        uint64_t quiet_end = fh_load_relaxed(&ring->wake_last_ns) + FH_WAKE_GAP_NS;
        if (quiet_end > now && quiet_end < until)
            until = quiet_end;
        if (feed->readers != NULL)
            fh_store_relaxed(&feed->readers->waiting[i], 1u); /* pairs with the load in fh_ring_wake() */
    }
    /* The fence of both sides, paid by the side that has time: either the writer sees our flag, or we see its head. */
    if (!fenced || syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) != 0 || count == 0)
        until = until < now + 1000000u ? until : now + 1000000u;
    if (fh_feed_pending(feed))
        return;
    struct timespec end = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    long result = -1;
    if (count == 1)
        result = syscall(SYS_futex, word[0].uaddr, FUTEX_WAIT_BITSET, (uint32_t)word[0].val, &end, NULL, FUTEX_BITSET_MATCH_ANY);
    else if (count > 1)
        result = syscall(SYS_futex_waitv, word, count, 0, &end, CLOCK_MONOTONIC);
    if (result < 0 && errno == ENOSYS) { /* before Linux 5.16: several rings are looked at every millisecond */
        end.tv_nsec = timeout_ns < 1000000u ? (long)timeout_ns : 1000000;
        end.tv_sec = 0;
        nanosleep(&end, NULL);
    }
}

/* The row of an instrument by venue and canonical symbol; NULL: not listed. */
static inline const fh_instrument *fh_feed_find(const fh_feed *feed, const char *venue, const char *canonical)
{
    const fh_instrument *row = (const fh_instrument *)(const void *)((const char *)feed->instruments + 4096);
    for (uint32_t i = 0; i < feed->instruments->row_max; i++, row++)
        if (fh_load_acquire(&row->state) != 0 && strncmp(row->venue_name, venue, sizeof row->venue_name) == 0
            && strncmp(row->canonical, canonical, sizeof row->canonical) == 0)
            return row;
    return NULL;
}

/* The `state` row of an instrument, for fh_state_read_l1() and fh_state_read_book(); NULL: no such row. */
static inline const fh_state_row *fh_feed_state(const fh_feed *feed, uint32_t instrument)
{
    const fh_state_row *rows = (const fh_state_row *)(const void *)((const char *)feed->state + 4096);
    return instrument < feed->state->row_max ? &rows[instrument] : NULL;
}

#ifdef __cplusplus
}
#endif
#endif
