/* SPDX-License-Identifier: Apache-2.0
 *
 * feedhandler_reader.h: read one ring, or one row of `state`. Layout: feedhandler.h. Whole instance: feedhandler_feed.h.
 *
 * Who writes:   nobody: everything is mapped read-only.
 * Who reads:    one thread owns a fh_ring_reader; any number of processes read at once.
 * What blocks:  nothing.
 * What is lost: what the writer overwrote before it was read: counted exactly, reported once (FH_FEED_LAPPED).
 * After a crash: of a writer: the part of an event it left is dropped when its successor's EPOCH record says so.
 *
 * C11 and C++17, header only, no allocation but the mapping.
 */
#ifndef FEEDHANDLER_READER_H
#define FEEDHANDLER_READER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* include this header first, or compile with -D_GNU_SOURCE */
#endif
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "feedhandler.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a reading call answers: what to do next. Negative: it failed, and the error text says how. */
enum fh_feed_result {
    FH_FEED_OK = 0,       /* records came: use them, ask again */
    FH_FEED_EMPTY = 1,    /* nothing new: spin, or fh_feed_wait() */
    FH_FEED_LAPPED = 2,   /* records were lost, exactly so many: rebuild from `state`, ask again */
    FH_FEED_NEW_RING = 3, /* another worker joined: its records follow, ask again */
    FH_FEED_SMALL = 4,    /* the next event is larger than the array offered: ask with a larger one */
    FH_FEED_BUSY = 5,     /* the row changed during every attempt: ask again */
    FH_FEED_ABSENT = -1,  /* no such file: is the instance running? */
    FH_FEED_BAD = -2      /* the file is not what this header describes */
};

/* Reads one ring. The data area is mapped twice, back to back, so that no span wraps. Owned by one thread. */
typedef struct fh_ring_reader {
    const fh_ring *ring;      /* NULL: not mapped */
    const fh_record *slots;   /* slots[0] to slots[2 * slot_count - 1] */
    uint64_t slot_count, map_size;
    uint64_t position;        /* next to read */
    uint64_t lost, lost_told; /* records overwritten before they were read; of these, reported so far */
    uint64_t dropped;         /* records of events whose writer died inside them */
    int cut;                  /* position may lie inside an event: skip to its end */
    int silent;               /* its heartbeat stopped, and the reader said so */
    uint32_t behind;          /* the worker whose ring comes first, until its position reaches behind_until */
    uint64_t behind_until;
} fh_ring_reader;

static inline int fh_feed_fail(char *error, size_t error_size, int result, const char *path, const char *what)
{
    if (snprintf(error, error_size, "%s: %s", path, what) < 0 && error_size > 0)
        error[0] = 0;
    return result;
}

/* Start time of this process in clock ticks since boot, which tells a reused pid apart; 0 when /proc is absent. */
static inline uint64_t fh_pid_start(void)
{
    char text[1024];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return 0;
    text[size] = 0;
    /* The command name, field 2, may hold spaces and brackets: count fields from its last bracket. */
    char *at = strrchr(text, ')');
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at + 1, NULL, 10);
}

/* Open a file of an instance and check its head. Answers the descriptor, or a negative fh_feed_result. */
static inline int fh_file_attach(const char *path, uint64_t magic, int mode, fh_file *head, char *error, size_t error_size)
{
    struct stat status;
    const char *what = NULL;
    int fd = open(path, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return fh_feed_fail(error, error_size, errno == ENOENT ? FH_FEED_ABSENT : FH_FEED_BAD, path, strerror(errno));
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || pread(fd, head, sizeof *head, 0) != (ssize_t)sizeof *head)
        what = "not a regular file with a head";
    else if (head->magic != magic)
        what = "not a file of this kind, or not finished by its writer";
    else if (head->abi_version != FH_ABI_VERSION || head->schema_hash != FH_SCHEMA_HASH)
        what = "written by a build with another layout; use the feedhandler.h of that build";
    else if (head->header_size != 4096 || status.st_size < 4096 || head->total_size != (uint64_t)status.st_size)
        what = "its size is not the one in its head; was it cut short?";
    if (what == NULL)
        return fd;
    close(fd);
    return fh_feed_fail(error, error_size, FH_FEED_BAD, path, what);
}

/* Map worker-<n>.ring for reading, positioned at its head: what comes next is new. */
static inline int fh_ring_map(fh_ring_reader *reader, const char *path, char *error, size_t error_size)
{
    fh_file head;
    fh_ring geometry;
    memset(reader, 0, sizeof *reader);
    int fd = fh_file_attach(path, FH_MAGIC_RING, O_RDONLY, &head, error, error_size);
    if (fd < 0)
        return fd;
    int got = pread(fd, &geometry, sizeof geometry, 0) == (ssize_t)sizeof geometry;
    uint64_t count = got ? geometry.slot_count : 0, size = count * FH_SLOT_SIZE;
    if (count < 1024 || count > (1u << 26) || (count & (count - 1)) != 0 || head.total_size != 4096 + size) {
        close(fd);
        return fh_feed_fail(error, error_size, FH_FEED_BAD, path, "its slot count does not fit its size");
    }
    char *map = (char *)mmap(NULL, 4096 + 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    /* Populated: else a page fault stops every 64th record of the first lap (4 ns a record, in half-microsecond pieces). */
    int flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
    if (map != MAP_FAILED && (mmap(map, 4096 + size, PROT_READ, flags, fd, 0) == MAP_FAILED
        || mmap(map + 4096 + size, size, PROT_READ, flags, fd, 4096) == MAP_FAILED)) {
        munmap(map, 4096 + 2 * size);
        map = (char *)MAP_FAILED;
    }
    close(fd);
    if (map == (char *)MAP_FAILED)
        return fh_feed_fail(error, error_size, FH_FEED_BAD, path, strerror(errno));
    reader->ring = (const fh_ring *)(const void *)map;
    reader->slots = (const fh_record *)(const void *)(map + 4096);
    reader->slot_count = count;
    reader->map_size = 4096 + 2 * size;
    reader->position = fh_load_acquire(&reader->ring->head); /* pairs with fh_ring_flush() */
    return FH_FEED_OK;
}

static inline void fh_ring_unmap(fh_ring_reader *reader)
{
    if (reader->ring != NULL)
        munmap((void *)(uintptr_t)reader->ring, reader->map_size);
    reader->ring = NULL;
}

/* The slot of a position, and whether it holds that position's record (else the writer is not there yet, or past it). */
static inline const fh_record *fh_ring_peek(const fh_ring_reader *reader, uint64_t position, int *there)
{
    const fh_record *slot = &reader->slots[position & (reader->slot_count - 1)];
    *there = fh_load_acquire(&slot->commit) == position + 1; /* pairs with the release store in fh_ring_put() */
    return slot;
}

/* Whether everything read from reader->position on was still intact. Call after the reading. */
static inline int fh_ring_valid(const fh_ring_reader *reader)
{
    /* Acquire fence, then the claim: if a byte we read came from a later lap, we see the claim made before it was written.
     * Pairs with the claim store and release fence in fh_ring_claim(). */
    fh_fence_acquire();
    return fh_load_relaxed(&reader->ring->claim) <= reader->position + reader->slot_count;
}

static inline int fh_ring_is(const fh_record *record, uint32_t code)
{
    return fh_load_relaxed(&record->kind) == FH_STATUS && fh_load_relaxed(&record->body.status.code) == code;
}

/* Go on three quarters of a ring behind the writer if it overwrote our position, then skip the rest of a cut event. FH_FEED_OK
 * if reading can go on, FH_FEED_LAPPED once with *lost, FH_FEED_EMPTY while the end of the cut event is missing. */
static inline int fh_ring_ready(fh_ring_reader *reader, uint64_t *lost)
{
    int there = 1;
    if (!fh_ring_valid(reader)) {
        /* One earlier, for the flag that says whether an event ended there. */
        uint64_t resume = fh_load_relaxed(&reader->ring->claim) - reader->slot_count + reader->slot_count / 4 - 1;
        reader->lost += resume - reader->position;
        reader->position = resume;
        reader->cut = 1;
    }
    while (reader->cut) {
        const fh_record *slot = fh_ring_peek(reader, reader->position, &there);
        if (!there)
            return FH_FEED_EMPTY;
        reader->cut = !(fh_load_relaxed(&slot->flags) & FH_LAST) && !fh_ring_is(slot, FH_EPOCH);
        if (fh_ring_is(slot, FH_EPOCH))
            break;
        reader->position++;
        reader->lost++;
    }
    *lost = reader->lost - reader->lost_told;
    reader->lost_told = reader->lost;
    return *lost != 0 ? FH_FEED_LAPPED : FH_FEED_OK;
}

/* Where a span from reader->position must end: before an INSTRUMENT_CHANGED, MOVED_IN or EPOCH that is not its first record.
 * Records of an event that its writer's death cut off are passed over. */
static inline uint64_t fh_ring_cut(fh_ring_reader *reader, uint64_t end)
{
    uint64_t whole = reader->position;
    for (uint64_t at = reader->position; at < end; at++) {
        const fh_record *slot = &reader->slots[at & (reader->slot_count - 1)];
        if (at > reader->position && fh_ring_is(slot, FH_EPOCH)) {
            if (whole > reader->position)
                return whole;
            reader->dropped += at - reader->position;
            reader->position = at;
        } else if (at > reader->position && (fh_ring_is(slot, FH_INSTRUMENT_CHANGED) || fh_ring_is(slot, FH_MOVED_IN)))
            return at;
        if (fh_load_relaxed(&slot->flags) & FH_LAST)
            whole = at + 1;
    }
    return end;
}

/* The next complete events in place: first[0] to first[*count - 1], of which INSTRUMENT_CHANGED, MOVED_IN and EPOCH can only be
 * first[0]. Use or copy them, then fh_ring_advance(). FH_FEED_OK, FH_FEED_EMPTY, or FH_FEED_LAPPED with *lost. */
static inline int fh_ring_batch(fh_ring_reader *reader, const fh_record **first, size_t *count, uint64_t *lost)
{
    int result = fh_ring_ready(reader, lost);
    *count = 0;
    if (result != FH_FEED_OK)
        return result;
    uint64_t end = fh_load_acquire(&reader->ring->head); /* pairs with the release store in fh_ring_flush() */
    if (end <= reader->position)
        return FH_FEED_EMPTY;
    if (end - reader->position > reader->slot_count)
        end = reader->position + reader->slot_count; /* overwritten since, or a head that lies: stay inside the mapping */
    /* Relaxed: the load of head before it ordered this one. Pairs with fh_ring_note(). */
    if (fh_load_relaxed(&reader->ring->changed) > reader->position)
        end = fh_ring_cut(reader, end);
    *first = &reader->slots[reader->position & (reader->slot_count - 1)];
    *count = end - reader->position;
    if (fh_ring_valid(reader))
        return FH_FEED_OK;
    *count = 0;
    return fh_ring_ready(reader, lost);
}

/* Done with count records of the span. 1: all were intact; 0: the writer overtook them while they were used: do not trust what
 * was taken from them; the next call says how many were lost. */
static inline int fh_ring_advance(fh_ring_reader *reader, size_t count)
{
    if (!fh_ring_valid(reader))
        return 0;
    reader->position += count;
    return 1;
}

/* Copy the next complete events, at the tip of the ring: seen before head moves. *count of them, in order, none in part; a
 * MOVED_IN alone. FH_FEED_OK, FH_FEED_EMPTY, FH_FEED_SMALL, or FH_FEED_LAPPED with *lost. */
static inline int fh_ring_poll(fh_ring_reader *reader, fh_record *out, size_t max, size_t *count, uint64_t *lost)
{
    size_t used = 0, whole = 0;
    uint64_t at, next = reader->position, dropped = 0;
    int there = 1, result = fh_ring_ready(reader, lost);
    *count = 0;
    if (result != FH_FEED_OK)
        return result;
    for (at = reader->position; used < max; at++) {
        const fh_record *slot = fh_ring_peek(reader, at, &there);
        if (!there)
            break;
        fh_copy(&out[used], slot, sizeof *slot);
        if (whole > 0 && fh_ring_is(&out[used], FH_MOVED_IN))
            break;
        if (fh_ring_is(&out[used], FH_EPOCH) && used > whole) { /* what its writer left of an event is void */
            dropped += used - whole;
            out[whole] = out[used];
            used = whole;
        }
        used++;
        if (out[used - 1].flags & FH_LAST) {
            whole = used;
            next = at + 1;
        }
        if (fh_ring_is(&out[0], FH_MOVED_IN))
            break;
    }
    if (!fh_ring_valid(reader))
        return fh_ring_ready(reader, lost);
    reader->position = next;
    reader->dropped += dropped;
    *count = whole;
    return whole > 0 ? FH_FEED_OK : there ? FH_FEED_SMALL : FH_FEED_EMPTY;
}

/* The position which the ring an instrument came from must be read up to before its MOVED_IN may be used; 0: none. It lies before
 * this MOVED_IN in time, so rings never wait for each other in a circle; one that its ring has not got to is no position of that ring. */
static inline uint64_t fh_ring_barrier(const fh_ring_reader *from, const fh_record *moved_in)
{
    uint64_t until = moved_in->body.status.c;
    return until <= fh_load_relaxed(&from->ring->claim) ? until : 0;
}

/* A copy of the intact one of two, however often the writer writes: FH_FEED_OK, FH_FEED_EMPTY (never written), FH_FEED_BUSY. */
static inline int fh_state_read(const uint64_t *latch, const void *copies, size_t size, void *out)
{
    for (int attempt = 0; attempt < 64; attempt++) {
        uint64_t before = fh_load_acquire(latch); /* pairs with fh_latch_flip() */
        fh_copy(out, (const char *)copies + (before & 1) * size, size);
        /* Acquire fence: a byte of a later value would show us a later latch. Pairs with the fence in fh_latch_begin(). */
        fh_fence_acquire();
        if (fh_load_relaxed(latch) == before)
            return before != 0 ? FH_FEED_OK : FH_FEED_EMPTY;
    }
    return FH_FEED_BUSY;
}

static inline int fh_state_read_l1(const fh_state_row *row, fh_state_l1 *out)
{
    return fh_state_read(&row->latch_l1, row->l1, sizeof *out, out);
}

static inline int fh_state_read_book(const fh_state_row *row, fh_state_book *out)
{
    return fh_state_read(&row->latch_book, row->book, sizeof *out, out);
}

#ifdef __cplusplus
}
#endif
#endif
