/* SPDX-License-Identifier: Apache-2.0
 * fh_ring.h: the writer's side of worker-<n>.ring (layout and reader: include/feedhandler.h).
 *
 * Who writes:   one worker thread. Who reads: any process. What blocks: nothing.
 * What is lost: nothing on this side; the writer never looks at a reader.
 * After a crash: fh_ring_resume() goes on at the first uncommitted position with the next epoch.
 */
#ifndef FH_RING_H
#define FH_RING_H
#include <stdint.h>
#include "fh_error.h"
#include "include/feedhandler.h"

#define FH_RING_SLOTS_MIN (UINT64_C(1) << 10)
#define FH_RING_SLOTS_MAX (UINT64_C(1) << 26) /* 4 GiB */

typedef struct fh_writer {
    fh_ring *ring;
    fh_record *slots;
    uint64_t position;    /* next to write; private copy, the commit words are the truth */
    uint64_t claimed;     /* as stored in ring->claim */
    uint64_t mask;
    uint64_t wake_count;
    uint32_t *waiting;    /* readers' word for this worker, or NULL */
    int fd;
} fh_writer;

/* Create (O_EXCL, posix_fallocate) or resume worker-<n>.ring in directory dir_fd. slot_count is a power of two
 * from 1,024 to 2^26; a reader finds the last slot_count - 64 records intact. FH_OK, FH_ERROR_RANGE,
 * FH_ERROR_SYSTEM with errno (ENOSPC: /dev/shm is too small; EWOULDBLOCK: another writer lives), or from resume
 * FH_ERROR_MALFORMED and FH_ERROR_UNKNOWN as fh_file_open(). Both hold an exclusive lock that the kernel frees
 * when the last process with this open file ends: call them in the worker itself, after its fork.
 * A resumed ring carries a STATUS EPOCH record, already flushed. */
int fh_ring_create(fh_writer *writer, int dir_fd, uint32_t worker, uint64_t slot_count, uint64_t generation);
int fh_ring_resume(fh_writer *writer, int dir_fd, uint32_t worker);
void fh_ring_close(fh_writer *writer);

/* Wake sleeping readers, at most once in 50 µs. Without a waiting reader it costs one load. */
void fh_ring_wake(fh_writer *writer, uint64_t now_ns);
/* Say that the worker's loop turns; now_ns is CLOCK_MONOTONIC. */
void fh_ring_heartbeat(fh_writer *writer, uint64_t now_ns);

/* Announce that the next 64 slots may be overwritten. */
static inline void fh_ring_claim(fh_writer *writer)
{
    writer->claimed += FH_CLAIM_BLOCK;
    /* Relaxed store, then a release fence: a reader that saw any byte stored into these slots later sees this claim
     * after its own acquire fence. Pairs with the fence and the claim load in fh_ring_valid(). */
    fh_store_relaxed(&writer->ring->claim, writer->claimed);
    fh_fence_release();
}

/* Note where the last record lies that a reader of whole spans must not jump over. */
static inline void fh_ring_note(fh_writer *writer, const fh_record *record)
{
    uint32_t code = record->body.status.code;
    if (code == FH_EPOCH || code == FH_INSTRUMENT_CHANGED || code == FH_MOVED_IN)
        /* Relaxed: published by the release store of head. Pairs with the load of changed in fh_ring_batch(). */
        fh_store_relaxed(&writer->ring->changed, writer->position + 1);
}

/* Append one record: words 1 to 7 of it; the commit word is ours. */
static inline void fh_ring_put(fh_writer *writer, const fh_record *record)
{
    fh_record *slot = &writer->slots[writer->position & writer->mask];
    if (writer->position == writer->claimed)
        fh_ring_claim(writer);
    /* Word by word, atomically: a vector load of words stored one by one a moment ago would wait for them (6 ns, not 3). */
    for (size_t i = 1; i < FH_SLOT_SIZE / 8; i++)
        fh_store_relaxed((fh_word *)slot + i, ((const fh_word *)record)[i]);
    if (record->kind == FH_STATUS)
        fh_ring_note(writer, record);
    writer->position++;
    /* Release: who sees this number sees the record. Pairs with the acquire load of commit in fh_ring_peek(). */
    fh_store_release(&slot->commit, writer->position);
}

/* After the last record of an event, and after `state` was written: readers of head see the event. */
static inline void fh_ring_flush(fh_writer *writer)
{
    /* Release: who sees this head sees every record, state row and `changed` before it. Pairs with the acquire load
     * of head in fh_ring_batch(). */
    if (fh_load_relaxed(&writer->ring->head) != writer->position)
        fh_store_release(&writer->ring->head, writer->position);
}

/* The same as fh_ring_put() in two steps: fill every word but commit of the slot, then commit it. */
static inline fh_record *fh_ring_slot(fh_writer *writer)
{
    if (writer->position == writer->claimed)
        fh_ring_claim(writer);
    return &writer->slots[writer->position & writer->mask];
}

static inline void fh_ring_commit(fh_writer *writer)
{
    fh_record *slot = &writer->slots[writer->position & writer->mask];
    if (slot->kind == FH_STATUS)
        fh_ring_note(writer, slot);
    writer->position++;
    fh_store_release(&slot->commit, writer->position); /* as in fh_ring_put() */
}

#endif
