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
 * from 1,024 to 2^26. FH_OK, FH_ERROR_RANGE, or FH_ERROR_SYSTEM with errno (ENOSPC: /dev/shm is too small).
 * Holds an exclusive lock on the file; EWOULDBLOCK: another writer lives. A resumed ring carries a STATUS EPOCH record. */
int fh_ring_create(fh_writer *writer, int dir_fd, uint32_t worker, uint64_t slot_count, uint64_t generation);
int fh_ring_resume(fh_writer *writer, int dir_fd, uint32_t worker);
void fh_ring_close(fh_writer *writer);

/* Next slot to fill: every word of the record but commit. Claims its block first. */
static inline fh_record *fh_ring_slot(fh_writer *writer);
/* Commit the slot just filled. */
static inline void fh_ring_commit(fh_writer *writer);
/* After the last record of an event: readers of head see the event. Call after `state` was written. */
static inline void fh_ring_flush(fh_writer *writer);
/* Wake sleeping readers, at most once in 50 µs; now_ns is CLOCK_MONOTONIC. */
void fh_ring_wake(fh_writer *writer, uint64_t now_ns);
void fh_ring_heartbeat(fh_writer *writer, uint64_t now_ns);

#endif
