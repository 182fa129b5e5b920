/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_ring.h"
#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "fh_file.h"
#include "include/feedhandler_reader.h"

static uint64_t fh_clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fh_ring_name(char *name, size_t size, uint32_t worker)
{
    snprintf(name, size, "worker-%u.ring", worker);
}

/* What both ways to a ring share: who writes it, and that it lives. */
static void fh_ring_take(fh_writer *writer)
{
    fh_ring *ring = writer->ring;
    writer->slots = (fh_record *)(void *)(ring + 1);
    writer->mask = ring->slot_count - 1;
    writer->wake_count = 0;
    writer->waiting = NULL;
    ring->pid_start = fh_pid_start();
    fh_store_relaxed(&ring->pid, (uint32_t)getpid());
    /* A waiting reader issues membarrier(GLOBAL_EXPEDITED) between its flag and its last look; that is the fence our
     * relaxed load in fh_ring_wake() needs, and it only reaches registered processes. */
    int registered = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
    fh_store_relaxed(&ring->wake_fenced, (uint32_t)registered);
    fh_ring_heartbeat(writer, fh_clock_ns(CLOCK_MONOTONIC));
    fh_store_release(&ring->state, FH_RING_LIVE); /* pairs with the acquire load of state by whoever asks for it */
}

int fh_ring_create(fh_writer *writer, int dir_fd, uint32_t worker, uint64_t slot_count, uint64_t generation)
{
    char name[32];
    void *map;
    if (slot_count < FH_RING_SLOTS_MIN || slot_count > FH_RING_SLOTS_MAX || (slot_count & (slot_count - 1)) != 0
        || worker >= FH_RING_MAX)
        return FH_ERROR_RANGE;
    uint64_t size = sizeof(fh_ring) + slot_count * FH_SLOT_SIZE;
    fh_ring_name(name, sizeof name, worker);
    int result = fh_file_create(dir_fd, name, size, &writer->fd, &map);
    if (result != FH_OK)
        return result;
    if (flock(writer->fd, LOCK_EX | LOCK_NB) != 0) {
        fh_file_close(writer->fd, map, size);
        return FH_ERROR_SYSTEM;
    }
    writer->ring = (fh_ring *)map;
    writer->ring->slot_count = slot_count;
    writer->ring->worker = worker;
    writer->ring->epoch = 1;
    writer->position = 0;
    writer->claimed = 0;
    fh_ring_take(writer);
    fh_file_seal(&writer->ring->file, FH_MAGIC_RING, sizeof(fh_ring), size, generation);
    return FH_OK;
}

/* Whether the words a resume relies on can be what a writer left behind. */
static int fh_ring_sound(const fh_ring *ring, uint64_t size, uint32_t worker)
{
    uint64_t slots = ring->slot_count;
    return ring->file.header_size == sizeof(fh_ring) && ring->worker == worker && slots >= FH_RING_SLOTS_MIN
        && slots <= FH_RING_SLOTS_MAX && (slots & (slots - 1)) == 0 && size == sizeof(fh_ring) + slots * FH_SLOT_SIZE
        && ring->claim % FH_CLAIM_BLOCK == 0 && ring->head <= ring->claim && ring->claim - ring->head <= slots;
}

/* The first position from head on whose slot was not committed: there the last writer stopped. */
static uint64_t fh_ring_end(const fh_ring *ring, const fh_record *slots)
{
    uint64_t position = ring->head;
    while (position < ring->claim && slots[position & (ring->slot_count - 1)].commit == position + 1)
        position++;
    return position;
}

int fh_ring_resume(fh_writer *writer, int dir_fd, uint32_t worker)
{
    char name[32];
    void *map;
    uint64_t size;
    fh_ring_name(name, sizeof name, worker);
    int result = worker >= FH_RING_MAX ? FH_ERROR_RANGE
                                       : fh_file_open(dir_fd, name, FH_MAGIC_RING, 1, &writer->fd, &map, &size);
    if (result != FH_OK)
        return result;
    fh_ring *ring = (fh_ring *)map;
    result = flock(writer->fd, LOCK_EX | LOCK_NB) != 0 ? FH_ERROR_SYSTEM
           : fh_ring_sound(ring, size, worker) ? FH_OK : FH_ERROR_MALFORMED;
    if (result != FH_OK) {
        fh_file_close(writer->fd, map, size);
        return result;
    }
    writer->ring = ring;
    fh_ring_take(writer);
    writer->claimed = ring->claim;
    writer->position = fh_ring_end(ring, writer->slots);
    /* The dead writer's claim covers what we are about to overwrite: say it again before our first store, so that our
     * release fence carries it. Pairs with fh_ring_valid(), as in fh_ring_claim(). */
    fh_store_relaxed(&ring->claim, writer->claimed);
    fh_fence_release();
    fh_store_relaxed(&ring->epoch, ring->epoch + 1);
    fh_record epoch = {.ts_recv_ns = fh_clock_ns(CLOCK_REALTIME), .instrument = FH_INSTRUMENT_NONE, .kind = FH_STATUS,
                       .flags = FH_LAST, .body.status = {.code = FH_EPOCH, .a = ring->epoch}};
    fh_ring_put(writer, &epoch);
    fh_ring_flush(writer);
    return FH_OK;
}

void fh_ring_close(fh_writer *writer)
{
    if (writer->ring == NULL)
        return;
    fh_store_release(&writer->ring->state, FH_RING_CLOSED); /* pairs as in fh_ring_take() */
    fh_file_close(writer->fd, writer->ring, writer->ring->file.total_size);
    writer->ring = NULL;
    writer->fd = -1;
}

void fh_ring_wake(fh_writer *writer, uint64_t now_ns)
{
    fh_ring *ring = writer->ring;
    /* Relaxed: the order of our records before this load is forced by the waiter's membarrier in fh_feed_wait(). */
    if (writer->waiting == NULL || fh_load_relaxed(writer->waiting) == 0)
        return;
    /* now_ns may be as old as the batch: ask again before refusing, or a reader that slept since would be missed. */
    if ((int64_t)(now_ns - ring->wake_last_ns) < FH_WAKE_GAP_NS)
        now_ns = fh_clock_ns(CLOCK_MONOTONIC);
    if ((int64_t)(now_ns - ring->wake_last_ns) < FH_WAKE_GAP_NS)
        return; /* the waiter knows wake_last_ns and looks again by itself when the gap ends */
    fh_store_relaxed(writer->waiting, 0u);
    fh_store_relaxed(&ring->wake_last_ns, now_ns);
    /* Release: a waiter that sees the new number sees wake_last_ns. Pairs with the acquire load in fh_feed_wait(). */
    fh_store_release(&ring->wake_seq, ring->wake_seq + 1);
    syscall(SYS_futex, &ring->wake_seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    writer->wake_count++;
}

void fh_ring_heartbeat(fh_writer *writer, uint64_t now_ns)
{
    fh_store_relaxed(&writer->ring->heartbeat_ns, now_ns); /* pairs with the relaxed load in a reader's poll */
}
